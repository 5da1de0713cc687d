//! A connection of the judge's: bytes out, messages in, and an end to waiting. Blocking, as each worker does one
//! thing at a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;

/// An answer that hasn't come by then is a finding of its own.
pub(super) const ANSWER: Duration = Duration::from_secs(6);
/// CloseCompletes in a row that only a [`MARK`] brings.
const MARK_CLOSES: usize = 5;

/// A message of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) tag: u8,
    pub(super) body: Vec<u8>,
}

/// Until what an answer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// So many ReadyForQuerys, and behind the last so many messages that complete one of the client's. An error there
    /// ends it.
    Counted { readies: usize, completed: usize },
    /// The answer to [`mark`].
    Mark,
    /// The connection's end.
    Closed,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Whole,
    Closed,
    /// Nothing came for [`ANSWER`].
    Hung,
}

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) told: Vec<Told>,
    pub(super) stop: Stop,
}

#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
    port: u16,
    /// Process id and secret.
    key: Vec<u8>,
    /// Of the last ReadyForQuery.
    pub(super) status: u8,
}

impl Wire {
    /// Connects and sends a StartupMessage. The answer goes up to ReadyForQuery, or to the refusal.
    ///
    /// # Errors
    /// If nobody listens.
    pub(super) fn log_in(port: u16, parameters: &[(&str, &str)]) -> anyhow::Result<(Wire, Answer)> {
        let stream = TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("connect to port {port}"))?;
        stream.set_nodelay(true)?;
        let mut wire = Wire { stream, input: Vec::new(), port, key: Vec::new(), status: 0 };
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        for (name, value) in parameters {
            for text in [name, value] {
                body.extend(super::script::bytes(text));
                body.push(0);
            }
        }
        body.push(0);
        wire.send(&first(&body))?;
        let answer = wire.read(Until::Counted { readies: 1, completed: 0 });
        wire.key = answer.told.iter().find(|told| told.tag == b'K').map(|told| told.body.clone()).unwrap_or_default();
        Ok((wire, answer))
    }

    /// # Errors
    /// If the other side has gone or doesn't read.
    pub(super) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.set_write_timeout(Some(ANSWER))?;
        self.stream.write_all(bytes)
    }

    /// Reads an answer. A connection that is reset counts as closed.
    pub(super) fn read(&mut self, until: Until) -> Answer {
        let mut reader = Progress { until, readies: 0, completed: 0, closes: 0 };
        let mut told = Vec::new();
        if reader.is_done() {
            return Answer { told, stop: Stop::Whole };
        }
        loop {
            match self.message() {
                Err(stop) => {
                    let stop = if until == Until::Closed && stop == Stop::Closed { Stop::Whole } else { stop };
                    return Answer { told, stop };
                }
                Ok(message) => {
                    if message.tag == b'Z' {
                        self.status = message.body.first().copied().unwrap_or_default();
                    }
                    reader.sees(message.tag);
                    told.push(message);
                    if reader.is_done() {
                        return Answer { told, stop: Stop::Whole };
                    }
                }
            }
        }
    }

    fn message(&mut self) -> Result<Told, Stop> {
        let deadline = Instant::now() + ANSWER;
        loop {
            if let Some((head, rest)) = self.input.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if rest.len() + 4 >= length {
                    let told = Told { tag: head[0], body: rest[..length - 4].to_vec() };
                    self.input.drain(..=length);
                    return Ok(told);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return Err(Stop::Hung);
            }
            let mut buffer = [0; 16_384];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Stop::Closed),
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(_) => return Err(Stop::Closed),
            }
        }
    }

    /// A simple query's whole answer.
    ///
    /// # Errors
    /// If the other side has gone.
    pub(super) fn ask(&mut self, sql: &str) -> std::io::Result<Answer> {
        self.send(&query(sql))?;
        Ok(self.read(Until::Counted { readies: 1, completed: 0 }))
    }

    /// The first column of the first row.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn value(&mut self, sql: &str) -> anyhow::Result<String> {
        let answer = self.ask(sql)?;
        let row = answer.told.iter().find(|told| told.tag == b'D').with_context(|| format!("{sql}: no row, but {answer:?}"))?;
        let text = row.body.get(6..).unwrap_or_default();
        let length = row.body.get(2..6).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
        let text = length.and_then(|length| text.get(..usize::try_from(length).ok()?)).unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// Asks for the cancel of what runs, by a connection of its own, and waits for that to be taken.
    ///
    /// # Errors
    /// If nobody listens.
    pub(super) fn cancel(&self) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.write_all(&first(&[&80_877_102_u32.to_be_bytes()[..], &self.key].concat()))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let _ = stream.read(&mut [0; 1]);
        Ok(())
    }

    /// Says that nothing more comes.
    pub(super) fn end_input(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection by a reset (`SO_LINGER` of 0).
    pub(super) fn reset(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

struct Progress {
    until: Until,
    readies: usize,
    completed: usize,
    closes: usize,
}

impl Progress {
    fn sees(&mut self, tag: u8) {
        let closes = self.closes;
        self.closes = 0;
        match tag {
            b'Z' => {
                self.readies += 1;
                self.completed = 0;
                if closes >= MARK_CLOSES && self.until == Until::Mark {
                    self.until = Until::Counted { readies: 0, completed: 0 };
                }
            }
            b'3' => {
                self.closes = closes + 1;
                self.completed += 1;
            }
            b'1' | b'2' | b'C' | b's' | b'I' | b'T' | b'n' => self.completed += 1,
            // Reports come where they come.
            b'S' | b'A' | b'N' => self.closes = closes,
            // What follows is skipped up to Sync, or waits for the client's data.
            b'E' | b'G' => self.completed = usize::MAX / 2,
            _ => {}
        }
    }

    fn is_done(&self) -> bool {
        match self.until {
            Until::Counted { readies, completed } => self.readies > readies || self.readies == readies && self.completed >= completed,
            Until::Mark | Until::Closed => false,
        }
    }
}

/// Messages that end whatever a step has left open, and whose answer can't be taken for another's: CopyFail, which is
/// ignored outside of COPY, Sync, Closes of a statement that isn't there, and Sync.
pub(super) fn mark() -> Vec<u8> {
    let mut bytes = message(b'f', b"\0");
    bytes.extend(message(b'S', b""));
    for _ in 0..MARK_CLOSES {
        bytes.extend(message(b'C', b"Smark\0"));
    }
    bytes.extend(message(b'S', b""));
    bytes
}

pub(super) fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[&super::script::bytes(sql)[..], b"\0"].concat())
}

pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &first(body)].concat()
}

/// A packet without a letter.
fn first(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], body].concat()
}
