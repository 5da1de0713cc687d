//! A client that speaks the protocol by hand: for what client libraries can't be made to do, and to see each message of an answer.
//!
//! Answers are told as lines of text ([`Message`]'s `Display`), so that a whole conversation can be compared with the same one on a direct
//! connection.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer that hasn't come by then won't come.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection that has logged in.
#[derive(Debug)]
pub struct Raw {
    pub stream: TcpStream,
    input: BytesMut,
    /// What was reported before the first ReadyForQuery.
    pub parameters: Vec<(String, String)>,
    /// Process id and secret of BackendKeyData.
    pub key: (i32, i32),
}

/// A message of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Bytes,
}

impl Raw {
    /// Connects to a PostgreSQL URL, and logs in with its password if it is asked for one.
    pub async fn connect(dsn: &str) -> anyhow::Result<Raw> {
        Raw::connect_with(dsn, &[]).await
    }

    /// With startup parameters beside user and database.
    pub async fn connect_with(dsn: &str, parameters: &[(&str, &str)]) -> anyhow::Result<Raw> {
        let config: tokio_postgres::Config = dsn.parse()?;
        let port = config.get_ports().first().context("a port")?;
        let stream = TcpStream::connect(("127.0.0.1", *port)).await?;
        stream.set_nodelay(true)?;
        let mut raw = Raw { stream, input: BytesMut::new(), parameters: Vec::new(), key: (0, 0) };
        let user = config.get_user().context("a user")?;
        let mut body = BytesMut::new();
        body.put_i32(196_608);
        let own = [("user", user), ("database", config.get_dbname().unwrap_or(user))];
        for (name, value) in own.iter().chain(parameters) {
            for text in [name, value] {
                body.put_slice(text.as_bytes());
                body.put_u8(0);
            }
        }
        body.put_u8(0);
        let mut packet = BytesMut::new();
        packet.put_i32(body.len() as i32 + 4);
        packet.put_slice(&body);
        raw.send(&packet).await?;
        raw.log_in(user, config.get_password().unwrap_or_default()).await?;
        Ok(raw)
    }

    async fn log_in(&mut self, user: &str, password: &[u8]) -> anyhow::Result<()> {
        let mut scram = None;
        loop {
            let mut message = self.next().await?;
            match message.tag {
                b'R' => match message.body.get_i32() {
                    0 => {}
                    5 => {
                        let salt: [u8; 4] = message.body[..4].try_into()?;
                        let hash = md5_hash(user.as_bytes(), password, salt) + "\0";
                        self.send(&framed(b'p', hash.as_bytes())).await?;
                    }
                    10 => {
                        let begun = ScramSha256::new(password, ChannelBinding::unsupported());
                        let mut body = BytesMut::new();
                        body.put_slice(SCRAM_SHA_256.as_bytes());
                        body.put_u8(0);
                        body.put_i32(begun.message().len() as i32);
                        body.put_slice(begun.message());
                        self.send(&framed(b'p', &body)).await?;
                        scram = Some(begun);
                    }
                    11 => {
                        let scram = scram.as_mut().context("SASL out of order")?;
                        scram.update(&message.body)?;
                        let answer = framed(b'p', scram.message());
                        self.send(&answer).await?;
                    }
                    12 => scram.as_mut().context("SASL out of order")?.finish(&message.body)?,
                    kind => bail!("authentication {kind}"),
                },
                b'S' => {
                    let mut texts = message.body.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
                    self.parameters.push((texts.next().unwrap_or_default(), texts.next().unwrap_or_default()));
                }
                b'K' => self.key = (message.body.get_i32(), message.body.get_i32()),
                b'Z' => return Ok(()),
                b'E' => bail!("refused: {message}"),
                _ => {}
            }
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        tokio::time::timeout(ANSWER, self.stream.write_all(bytes)).await.context("nobody reads")??;
        Ok(())
    }

    /// The next message, whatever it is.
    pub async fn next(&mut self) -> anyhow::Result<Message> {
        loop {
            if let Some(head) = self.input.first_chunk::<5>() {
                let total = 1 + u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if self.input.len() >= total {
                    let mut message = self.input.split_to(total).freeze();
                    return Ok(Message { tag: message.get_u8(), body: message.split_off(4) });
                }
                self.input.reserve(total);
            }
            let read = tokio::time::timeout(ANSWER, self.stream.read_buf(&mut self.input)).await.context("no answer")??;
            ensure!(read > 0, "the connection was closed");
        }
    }

    /// All messages up to and with the one of that tag.
    pub async fn until(&mut self, tag: u8) -> anyhow::Result<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            let message = self.next().await?;
            messages.push(message);
            if messages.last().is_some_and(|message| message.tag == tag) {
                return Ok(messages);
            }
        }
    }

    /// Sends a batch and takes the answers up to the last of its ReadyForQuerys, as text.
    pub async fn ask(&mut self, batch: &Batch) -> anyhow::Result<Vec<String>> {
        self.send(&batch.bytes).await?;
        let mut told = Vec::new();
        for _ in 0..batch.readies {
            told.extend(self.until(b'Z').await?.iter().map(ToString::to_string));
        }
        Ok(told)
    }

    /// A simple query's answer as text.
    pub async fn query(&mut self, sql: &str) -> anyhow::Result<Vec<String>> {
        self.ask(&Batch::new().query(sql)).await
    }

    /// Whether the other side has hung up. Reads what is left.
    pub async fn is_closed(&mut self) -> bool {
        tokio::time::timeout(Duration::from_secs(5), async { while self.next().await.is_ok() {} }).await.is_ok()
    }
}

/// Messages of a client, written at once.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Batch {
    pub bytes: BytesMut,
    /// How many ReadyForQuerys answer it.
    pub readies: usize,
}

impl Batch {
    pub fn new() -> Batch {
        Batch::default()
    }

    pub fn message(mut self, tag: u8, parts: &[&[u8]]) -> Batch {
        self.bytes.put_slice(&framed(tag, &parts.concat()));
        self
    }

    pub fn query(mut self, sql: &str) -> Batch {
        self.readies += 1;
        self.message(b'Q', &[sql.as_bytes(), b"\0"])
    }

    pub fn parse(self, name: &str, sql: &str) -> Batch {
        self.message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
    }

    /// With values as text, and results as text.
    pub fn bind(self, portal: &str, statement: &str, values: &[&str]) -> Batch {
        let mut body = BytesMut::new();
        for name in [portal, statement] {
            body.put_slice(name.as_bytes());
            body.put_u8(0);
        }
        body.put_i16(0);
        body.put_i16(values.len() as i16);
        for value in values {
            body.put_i32(value.len() as i32);
            body.put_slice(value.as_bytes());
        }
        body.put_i16(0);
        self.message(b'B', &[&body])
    }

    pub fn describe_statement(self, name: &str) -> Batch {
        self.message(b'D', &[b"S", name.as_bytes(), b"\0"])
    }

    pub fn describe_portal(self, name: &str) -> Batch {
        self.message(b'D', &[b"P", name.as_bytes(), b"\0"])
    }

    /// `rows`: at most so many; 0 for all.
    pub fn execute(self, portal: &str, rows: i32) -> Batch {
        self.message(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()])
    }

    pub fn close_statement(self, name: &str) -> Batch {
        self.message(b'C', &[b"S", name.as_bytes(), b"\0"])
    }

    pub fn close_portal(self, name: &str) -> Batch {
        self.message(b'C', &[b"P", name.as_bytes(), b"\0"])
    }

    pub fn flush(self) -> Batch {
        self.message(b'H', &[])
    }

    pub fn sync(mut self) -> Batch {
        self.readies += 1;
        self.message(b'S', &[])
    }

    /// Parse, Bind, Execute and Sync of the unnamed statement.
    pub fn run(self, sql: &str, values: &[&str]) -> Batch {
        self.parse("", sql).bind("", "", values).execute("", 0).sync()
    }

    pub fn copy_data(self, data: &[u8]) -> Batch {
        self.message(b'd', &[data])
    }

    pub fn copy_done(self) -> Batch {
        self.message(b'c', &[])
    }

    pub fn copy_fail(self, why: &str) -> Batch {
        self.message(b'f', &[why.as_bytes(), b"\0"])
    }
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.put_i32(body.len() as i32 + 4);
    bytes.put_slice(body);
    bytes
}

impl Message {
    /// A field of an error or a notice: `b'C'` for its SQLSTATE, `b'M'` for its text.
    pub fn field(&self, code: u8) -> Option<String> {
        let mut fields = self.body.split(|byte| *byte == 0);
        fields.find_map(|field| (field.first() == Some(&code)).then(|| String::from_utf8_lossy(&field[1..]).into_owned()))
    }
}

/// The message's letter and what a client program would look at. Left out: process ids, and where in PostgreSQL's source an error arose.
impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = char::from(self.tag);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').replace('\0', "=");
        match self.tag {
            b'E' | b'N' => {
                let field = |code| self.field(code).unwrap_or_default();
                write!(f, "{tag} {} {} {}", field(b'V'), field(b'C'), field(b'M'))?;
                for code in [b'D', b'H', b'P', b'W'] {
                    if let Some(more) = self.field(code) {
                        write!(f, " [{} {more}]", char::from(code))?;
                    }
                }
                Ok(())
            }
            b'D' => {
                let mut body = self.body.clone();
                write!(f, "D")?;
                for _ in 0..body.get_u16() {
                    match body.get_i32() {
                        -1 => write!(f, " NULL")?,
                        length => write!(f, " {}", text(&body.split_to(length as usize)))?,
                    }
                }
                Ok(())
            }
            b'T' => {
                let mut body = self.body.clone();
                write!(f, "T")?;
                for _ in 0..body.get_u16() {
                    let end = body.iter().position(|byte| *byte == 0).unwrap_or_default();
                    let name = body.split_to(end);
                    body.advance(1 + 4 + 2);
                    write!(f, " {}:{}", text(&name), body.get_i32())?;
                    body.advance(2 + 4 + 2);
                }
                Ok(())
            }
            b't' => {
                let mut body = self.body.clone();
                write!(f, "t")?;
                for _ in 0..body.get_u16() {
                    write!(f, " {}", body.get_i32())?;
                }
                Ok(())
            }
            b'A' => write!(f, "A {}", text(&self.body[4..])),
            b'C' | b'S' | b'Z' | b'd' => write!(f, "{tag} {}", text(&self.body)),
            _ => write!(f, "{tag}"),
        }
    }
}
