//! What happens between `accept` and authentication: PROXY header, TLS, and the first packet.
//!
//! Invariant: not a byte is read past the startup packet, so that what a client pipelines behind it stays unread for the
//! session. Source: PostgreSQL `backend_startup.c` (`ProcessSSLStartup`, `ProcessStartupPacket`); the PROXY protocol's
//! specification at <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use switchyard_core::refusal::Refusal;
use switchyard_core::wire::startup::{self, FirstPacket, Startup, StartupError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stream::Stream;
use crate::tls::Acceptor;

/// The first byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What every connection to a data port goes through.
#[derive(Clone, Debug)]
pub struct Door {
    /// `None`: SSLRequest is answered 'N', and direct TLS is refused.
    pub tls: Option<Arc<Acceptor>>,
    /// Startup packets, at most, in bytes.
    pub max_startup_bytes: usize,
    /// Each TCP connection begins with a PROXY header.
    pub proxy_protocol: bool,
}

/// Where a client comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The client's own address, by the PROXY header where there is one. `None`: a Unix socket.
    pub address: Option<SocketAddr>,
}

impl Peer {
    /// As PostgreSQL writes a host: `[local]` for Unix sockets.
    pub fn host(&self) -> String {
        match self.address {
            Some(address) => address.ip().to_canonical().to_string(),
            None => "[local]".to_owned(),
        }
    }
}

/// What a client wants.
#[derive(Debug)]
pub enum Opened {
    /// A cancel request. Whether it hits is never told, but its connection is to be closed only when its server has taken it: clients wait
    /// for that before they send their next statement.
    Cancel {
        stream: Stream,
        pid: i32,
        key: Vec<u8>,
    },
    Startup {
        stream: Stream,
        startup: Box<Startup>,
        peer: Peer,
    },
}

/// A connection that goes no further. It is closed.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Health checks and port scanners: the client left without a word.
    #[error("the client left before its first packet")]
    Gone,
    /// Closed without a word, as PostgreSQL does; for the log.
    #[error("{0}")]
    Closed(&'static str),
    /// The client was told.
    #[error("{}", .0.wording().message)]
    Refused(Refusal),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<StartupError> for DoorError {
    fn from(error: StartupError) -> DoorError {
        match error {
            StartupError::Close(why) => DoorError::Closed(why),
            StartupError::Refuse(refusal) => DoorError::Refused(refusal),
        }
    }
}

/// Takes a new connection up to its startup packet. The caller sets the deadline; dropping this closes the connection, which is
/// what PostgreSQL does too when the time is up this early.
pub async fn open(stream: Stream, door: &Door) -> Result<Opened, DoorError> {
    let mut visit = Visit { peer: Peer { address: stream.peer_address() }, stream, ssl_asked: false, gss_asked: false };
    if door.proxy_protocol && !visit.stream.is_unix() {
        visit.proxy_header().await?;
    }
    if visit.begins_with_tls().await? {
        let acceptor = door.tls.as_deref().ok_or(DoorError::Closed("direct TLS connection, and TLS is not configured"))?;
        visit = visit.start_tls(acceptor, true).await?;
    }
    loop {
        match visit.step(door).await {
            Ok(Step::Again) => {}
            Ok(Step::StartTls(acceptor)) => visit = visit.start_tls(acceptor, false).await?,
            Ok(Step::Done(FirstPacket::Startup(startup))) => {
                return Ok(Opened::Startup { stream: visit.stream, startup, peer: visit.peer });
            }
            Ok(Step::Done(FirstPacket::CancelRequest { pid, key })) => {
                return Ok(Opened::Cancel { stream: visit.stream, pid, key });
            }
            Ok(Step::Done(repeated @ (FirstPacket::SslRequest | FirstPacket::GssEncRequest))) => {
                return visit.turn_away(startup::repeated_request(&repeated)).await;
            }
            Err(DoorError::Refused(refusal)) => return visit.turn_away(refusal).await,
            Err(error) => return Err(error),
        }
    }
}

struct Visit {
    stream: Stream,
    peer: Peer,
    /// Encryption may be asked for once, by each request, and no more once there is some.
    ssl_asked: bool,
    gss_asked: bool,
}

enum Step<'a> {
    Again,
    StartTls(&'a Acceptor),
    Done(FirstPacket),
}

impl Visit {
    async fn step<'a>(&mut self, door: &'a Door) -> Result<Step<'a>, DoorError> {
        match self.packet(door.max_startup_bytes).await? {
            FirstPacket::SslRequest if !self.ssl_asked => {
                self.ssl_asked = true;
                // Only plain TCP can be upgraded; PostgreSQL offers no TLS on Unix sockets.
                let acceptor = door.tls.as_deref().filter(|_| matches!(self.stream, Stream::Tcp(_)));
                self.answer(if acceptor.is_some() { b'S' } else { b'N' }).await?;
                Ok(acceptor.map_or(Step::Again, Step::StartTls))
            }
            FirstPacket::GssEncRequest if !self.gss_asked => {
                self.gss_asked = true;
                self.answer(b'N').await?;
                Ok(Step::Again)
            }
            packet => Ok(Step::Done(packet)),
        }
    }

    async fn begins_with_tls(&self) -> Result<bool, DoorError> {
        let Stream::Tcp(tcp) = &self.stream else { return Ok(false) };
        let mut first = [0];
        match tcp.peek(&mut first).await? {
            0 => Err(DoorError::Gone),
            _ => Ok(first[0] == TLS_HANDSHAKE),
        }
    }

    async fn packet(&mut self, limit: usize) -> Result<FirstPacket, DoorError> {
        let mut word = [0; 4];
        match self.stream.read(&mut word).await? {
            0 => return Err(DoorError::Gone),
            4 => {}
            some => self.exactly(&mut word[some..]).await?,
        }
        let mut body = vec![0; startup::packet_length(word, limit)?];
        self.exactly(&mut body).await?;
        Ok(startup::parse(&body)?)
    }

    async fn exactly(&mut self, buffer: &mut [u8]) -> Result<(), DoorError> {
        match self.stream.read_exact(buffer).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(DoorError::Closed("incomplete startup packet")),
            Err(error) => Err(error.into()),
        }
    }

    /// One byte, unless the client has already sent more: that would be taken for encrypted after the handshake (CVE-2021-23214).
    async fn answer(&mut self, byte: u8) -> Result<(), DoorError> {
        if self.stream.has_unread() {
            return Err(DoorError::Refused(Refusal::UnencryptedData));
        }
        self.stream.write_all(&[byte]).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn start_tls(self, acceptor: &Acceptor, direct: bool) -> Result<Visit, DoorError> {
        match self.stream {
            Stream::Tcp(tcp) => {
                let stream = acceptor.accept(tcp, direct).await?;
                Ok(Visit { stream, peer: self.peer, ssl_asked: true, gss_asked: true })
            }
            Stream::Unix(_) | Stream::Tls(_) | Stream::ClientTls(_) => Err(DoorError::Closed("only plain TCP can be upgraded to TLS")),
        }
    }

    async fn turn_away(mut self, refusal: Refusal) -> Result<Opened, DoorError> {
        say_goodbye(&mut self.stream, &refusal).await;
        Err(DoorError::Refused(refusal))
    }

    async fn proxy_header(&mut self) -> Result<(), DoorError> {
        let mut start = [0; 12];
        let first = self.stream.read(&mut start[..1]).await?;
        if first == 0 {
            return Err(DoorError::Gone);
        }
        self.exactly(&mut start[1..]).await?;
        let source = if start == PROXY_V2_SIGNATURE {
            self.proxy_v2().await?
        } else if start.starts_with(b"PROXY ") {
            self.proxy_v1(&start).await?
        } else {
            return Err(DoorError::Closed("no PROXY header, and listen.proxy_protocol is set"));
        };
        if let Some(address) = source {
            self.peer.address = Some(address);
        }
        Ok(())
    }

    async fn proxy_v1(&mut self, start: &[u8]) -> Result<Option<SocketAddr>, DoorError> {
        let mut line = start.to_vec();
        // Byte by byte: nothing behind the line may be read.
        while !line.ends_with(b"\r\n") {
            if line.len() == PROXY_V1_BYTES {
                return Err(BAD_PROXY);
            }
            let mut byte = [0];
            self.exactly(&mut byte).await?;
            line.push(byte[0]);
        }
        parse_proxy_v1(&line[..line.len() - 2]).ok_or(BAD_PROXY)
    }

    async fn proxy_v2(&mut self) -> Result<Option<SocketAddr>, DoorError> {
        let mut fixed = [0; 4];
        self.exactly(&mut fixed).await?;
        let [version_command, family, high, low] = fixed;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > PROXY_V2_BYTES {
            return Err(BAD_PROXY);
        }
        let mut body = vec![0; length];
        self.exactly(&mut body).await?;
        parse_proxy_v2(version_command, family, &body).ok_or(BAD_PROXY)
    }
}

/// Sends a last message and closes, as far as the peer lets us.
pub(crate) async fn say_goodbye(stream: &mut Stream, refusal: &Refusal) {
    let mut message = Vec::new();
    refusal.encode(&mut message);
    if stream.write_all(&message).await.is_ok() {
        let _ = stream.flush().await;
        let _ = stream.shutdown().await;
    }
}

const BAD_PROXY: DoorError = DoorError::Closed("malformed PROXY header");
const PROXY_V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its CRLF.
const PROXY_V1_BYTES: usize = 107;
/// Addresses and TLVs of version 2: the specification asks receivers to take 536 bytes; TLVs with certificates are longer.
const PROXY_V2_BYTES: usize = 4096;

/// Outer `None`: malformed. Inner `None`: the header names no TCP address (`UNKNOWN`), and the connection's own counts.
fn parse_proxy_v1(line: &[u8]) -> Option<Option<SocketAddr>> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split(' ');
    if words.next() != Some("PROXY") {
        return None;
    }
    let is_v4 = match words.next()? {
        "TCP4" => true,
        "TCP6" => false,
        "UNKNOWN" => return Some(None),
        _ => return None,
    };
    let source: IpAddr = words.next()?.parse().ok()?;
    let destination: IpAddr = words.next()?.parse().ok()?;
    let port: u16 = words.next()?.parse().ok()?;
    let _: u16 = words.next()?.parse().ok()?;
    let right = words.next().is_none() && source.is_ipv4() == is_v4 && destination.is_ipv4() == is_v4;
    right.then_some(Some(SocketAddr::new(source, port)))
}

fn parse_proxy_v2(version_command: u8, family: u8, body: &[u8]) -> Option<Option<SocketAddr>> {
    match version_command {
        // LOCAL: the proxy itself, such as its health check.
        0x20 => return Some(None),
        0x21 => {}
        _ => return None,
    }
    match family {
        // TCP over IPv4: two addresses, two ports.
        0x11 => {
            let source: [u8; 4] = body.get(0..4)?.try_into().ok()?;
            let port: [u8; 2] = body.get(8..10)?.try_into().ok()?;
            (body.len() >= 12).then(|| Some(SocketAddr::new(IpAddr::from(source), u16::from_be_bytes(port))))
        }
        0x21 => {
            let source: [u8; 16] = body.get(0..16)?.try_into().ok()?;
            let port: [u8; 2] = body.get(32..34)?.try_into().ok()?;
            (body.len() >= 36).then(|| Some(SocketAddr::new(IpAddr::from(source), u16::from_be_bytes(port))))
        }
        // UNSPEC, UNIX: accepted, without an address that rules could match.
        0x00 | 0x31 => Some(None),
        _ => None,
    }
}

#[cfg(test)]
#[path = "door_tests.rs"]
mod tests;
