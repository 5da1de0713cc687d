//! A connection's bytes, whatever carries them: TCP, a Unix socket, TLS on either side.
//!
//! Invariant: a stream never holds bytes back. What was written is in the kernel, or in the TLS session until the next
//! flush; what wasn't read is still unread.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{client, server};

/// Idle time until the first keepalive probe: below the idle limits of common firewalls and load balancers (two minutes and more).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A peer that is gone without a word is noticed after 60 + 6 × 10 seconds.
const KEEPALIVE_PROBES: u32 = 6;

/// Towards servers: one that is gone without a word while it works on a statement is noticed after 5 + 3 × 2 seconds. Routers and servers
/// share a network, and what is asked of it is no more than a probe's.
const SERVER_KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const SERVER_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const SERVER_KEEPALIVE_PROBES: u32 = 3;
/// A server whose kernel takes nothing of what was sent to it for so long is gone.
pub(crate) const SERVER_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// One connection. TLS variants are boxed: a rustls session is a kilobyte and more, and most streams have none.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// The router is the TLS server: a client's connection.
    Tls(Box<TlsAccepted>),
    /// The router is the TLS client: a server's connection.
    ClientTls(Box<client::TlsStream<TcpStream>>),
}

/// A client's TLS connection, with what it was shown.
#[derive(Debug)]
pub struct TlsAccepted {
    pub stream: server::TlsStream<TcpStream>,
    /// `tls-server-end-point` of the certificate that this client saw (RFC 5929); it may have been reloaded since. `None`
    /// where its signature algorithm has no such hash.
    pub end_point: Option<Arc<[u8]>>,
}

impl Stream {
    /// A client's TCP connection, with its options set: no delay (the router flushes when a response is complete) and keepalive.
    ///
    /// TCP_USER_TIMEOUT stays off: since Linux 4.1 it also cuts connections whose peer answers zero-window probes but reads nothing,
    /// and a client may well look at one screen of rows for an hour.
    pub fn tcp(stream: TcpStream) -> io::Result<Stream> {
        let socket = SockRef::from(&stream);
        socket.set_tcp_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
        Ok(Stream::Tcp(stream))
    }

    /// A server's TCP connection: with faster keepalive, and TCP_USER_TIMEOUT until [`Stream::be_patient`] says otherwise.
    pub(crate) fn tcp_to_server(stream: TcpStream) -> io::Result<Stream> {
        let socket = SockRef::from(&stream);
        socket.set_tcp_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(SERVER_KEEPALIVE_IDLE)
            .with_interval(SERVER_KEEPALIVE_INTERVAL)
            .with_retries(SERVER_KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(SERVER_USER_TIMEOUT))?;
        Ok(Stream::Tcp(stream))
    }

    /// Whether a server may leave unread what is sent to it for as long as it likes: while it works off one statement of a long pipeline its
    /// window may be closed, and TCP_USER_TIMEOUT would cut it though it answers.
    pub(crate) fn be_patient(&self, patient: bool) {
        let timeout = (!patient).then_some(SERVER_USER_TIMEOUT);
        if let Some(socket) = self.tcp_socket()
            // Zero means the system's own limit.
            && let Err(error) = SockRef::from(socket).set_tcp_user_timeout(Some(timeout.unwrap_or_default()))
        {
            tracing::debug!(%error, "TCP_USER_TIMEOUT");
        }
    }

    pub fn unix(stream: UnixStream) -> Stream {
        Stream::Unix(stream)
    }

    /// The other end's address; `None` for Unix sockets.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.tcp_socket().and_then(|stream| stream.peer_addr().ok())
    }

    pub fn is_tls(&self) -> bool {
        matches!(self, Stream::Tls(_) | Stream::ClientTls(_))
    }

    pub fn is_unix(&self) -> bool {
        matches!(self, Stream::Unix(_))
    }

    fn tcp_socket(&self) -> Option<&TcpStream> {
        match self {
            Stream::Tcp(stream) => Some(stream),
            Stream::Unix(_) => None,
            Stream::Tls(tls) => Some(tls.stream.get_ref().0),
            Stream::ClientTls(tls) => Some(tls.get_ref().0),
        }
    }

    /// Whether bytes have arrived that nobody has read. Looks at the socket itself, below TLS.
    pub(crate) fn has_unread(&self) -> bool {
        let mut byte = [MaybeUninit::<u8>::uninit()];
        let socket = match self {
            Stream::Unix(stream) => SockRef::from(stream),
            Stream::Tcp(stream) => SockRef::from(stream),
            Stream::Tls(tls) => SockRef::from(tls.stream.get_ref().0),
            Stream::ClientTls(tls) => SockRef::from(tls.get_ref().0),
        };
        matches!(socket.peek(&mut byte), Ok(count) if count > 0)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(&mut tls.stream).poll_read(cx, buf),
            Stream::ClientTls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(&mut tls.stream).poll_write(cx, buf),
            Stream::ClientTls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(tls) => Pin::new(&mut tls.stream).poll_write_vectored(cx, bufs),
            Stream::ClientTls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(&mut tls.stream).poll_flush(cx),
            Stream::ClientTls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
            Stream::ClientTls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn servers_are_given_up_sooner_than_clients_and_not_while_they_may_be_busy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let connect = || async { TcpStream::connect(address).await.expect("connect") };
        let timeout = |stream: &Stream| SockRef::from(stream.tcp_socket().expect("TCP")).tcp_user_timeout().expect("option");
        let none = |timeout: Option<Duration>| timeout.unwrap_or_default().is_zero();
        let client = Stream::tcp(connect().await).expect("options");
        assert!(none(timeout(&client)));
        let server = Stream::tcp_to_server(connect().await).expect("options");
        assert_eq!(timeout(&server), Some(SERVER_USER_TIMEOUT));
        let socket = SockRef::from(server.tcp_socket().expect("TCP"));
        assert!(socket.keepalive().expect("option"));
        assert_eq!(socket.tcp_keepalive_time().expect("option"), SERVER_KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().expect("option"), SERVER_KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().expect("option"), SERVER_KEEPALIVE_PROBES);
        server.be_patient(true);
        assert!(none(timeout(&server)));
        server.be_patient(false);
        assert_eq!(timeout(&server), Some(SERVER_USER_TIMEOUT));
    }
}
