//! A client that says whatever it is told to: the protocol's bytes by hand, for what no driver would send.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For an answer that should come at once.
const ANSWER: Duration = Duration::from_secs(20);
/// Longer messages than any test expects would be a mistake of the other side.
const MESSAGE_MAX: usize = 64 << 20;

/// A connection to one of the router's ports, or to PostgreSQL's.
#[derive(Debug)]
pub struct Raw {
    pub stream: TcpStream,
    /// What BackendKeyData told: process id and secret.
    pub key: Option<(i32, Vec<u8>)>,
}

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Message {
    /// The SQLSTATE of an ErrorResponse.
    pub fn sqlstate(&self) -> Option<String> {
        self.field(b'C')
    }

    /// ERROR or FATAL, of an ErrorResponse.
    pub fn severity(&self) -> Option<String> {
        self.field(b'V')
    }

    fn field(&self, kind: u8) -> Option<String> {
        let fields = self.body.split(|byte| *byte == 0);
        let mut found = fields.filter(|field| self.tag == b'E' && field.first() == Some(&kind));
        found.next().map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    }
}

impl Raw {
    pub async fn connect(port: u16) -> anyhow::Result<Raw> {
        let stream = timeout(ANSWER, TcpStream::connect(("127.0.0.1", port))).await.context("connect")??;
        stream.set_nodelay(true)?;
        Ok(Raw { stream, key: None })
    }

    /// Logs in as a user who needs no password, and waits for ReadyForQuery.
    pub async fn log_in(port: u16, user: &str) -> anyhow::Result<Raw> {
        let mut raw = Raw::connect(port).await?;
        raw.send(&startup(user)).await?;
        loop {
            let message = raw.message().await?;
            match message.tag {
                b'K' => {
                    let (pid, secret) = message.body.split_first_chunk().context("a key without a process id")?;
                    raw.key = Some((i32::from_be_bytes(*pid), secret.to_vec()));
                }
                b'E' => bail!("login: {:?}", message.sqlstate()),
                b'R' => ensure!(message.body == [0, 0, 0, 0], "a password is asked for"),
                b'Z' => return Ok(raw),
                _ => {}
            }
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        timeout(ANSWER, self.stream.write_all(bytes)).await.context("the other side doesn't read")?.context("send")
    }

    /// Writes as much as the other side takes within `patience` for each piece. The number of bytes.
    pub async fn stuff(&mut self, piece: &[u8], most: usize, patience: Duration) -> usize {
        let mut sent = 0;
        while sent < most {
            match timeout(patience, self.stream.write(&piece[sent % piece.len()..])).await {
                Ok(Ok(count)) if count > 0 => sent += count,
                _ => break,
            }
        }
        sent
    }

    /// The next message.
    pub async fn message(&mut self) -> anyhow::Result<Message> {
        self.next().await?.context("the connection ended")
    }

    /// The next message; `None` at the connection's end.
    pub async fn next(&mut self) -> anyhow::Result<Option<Message>> {
        timeout(ANSWER, self.read()).await.context("no answer")?
    }

    async fn read(&mut self) -> anyhow::Result<Option<Message>> {
        let mut head = [0; 5];
        match self.stream.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if is_end(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        ensure!((4..MESSAGE_MAX).contains(&length), "a message of {length} bytes");
        let mut body = vec![0; length - 4];
        match self.stream.read_exact(&mut body).await {
            Ok(_) => Ok(Some(Message { tag: head[0], body })),
            Err(error) if is_end(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// All messages up to ReadyForQuery, or to the connection's end; the second says which.
    pub async fn answer(&mut self) -> anyhow::Result<(Vec<Message>, bool)> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await? {
            let ready = message.tag == b'Z';
            messages.push(message);
            if ready {
                return Ok((messages, true));
            }
        }
        Ok((messages, false))
    }

    /// Reads until the other side hangs up; what it said.
    pub async fn until_closed(&mut self, limit: Duration) -> anyhow::Result<Vec<u8>> {
        let mut said = Vec::new();
        match timeout(limit, self.stream.read_to_end(&mut said)).await {
            Err(_) => bail!("not closed within {limit:?}; it said {:?}", String::from_utf8_lossy(&said)),
            Ok(Err(error)) if !is_end(&error) => Err(error.into()),
            Ok(_) => Ok(said),
        }
    }
}

fn is_end(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// A StartupMessage of protocol 3.0 for the database `postgres`.
pub fn startup(user: &str) -> Vec<u8> {
    let body = [&196_608_u32.to_be_bytes()[..], b"user\0", user.as_bytes(), b"\0database\0postgres\0\0"].concat();
    first(&body)
}

/// A CancelRequest.
pub fn cancel(pid: i32, secret: &[u8]) -> Vec<u8> {
    first(&[&80_877_102_u32.to_be_bytes()[..], &pid.to_be_bytes(), secret].concat())
}

/// SSLRequest.
pub fn ssl_request() -> Vec<u8> {
    first(&80_877_103_u32.to_be_bytes())
}

/// A packet as it is sent before the login: a length, and no tag.
pub fn first(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], body].concat()
}

/// A message with its right length.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &first(body)].concat()
}

/// Only the head of a message that announces `length`.
pub fn head(tag: u8, length: u32) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes()].concat()
}

pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// Numbers that look random and are the same in each run: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `below` - 1.
    pub fn below(&mut self, below: usize) -> usize {
        (self.roll() % below.max(1) as u64) as usize
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.roll() as u8).collect()
    }
}
