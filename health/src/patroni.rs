//! Patroni's REST API, for the failsafe rule only: is `/primary` answered with 200?
//!
//! Source: Patroni's documentation, "Patroni REST API", "Health check endpoints".

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time;
use tokio_rustls::TlsConnector;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("api_url is no URL of a REST API")]
    Url,
    #[error("no TLS configuration for an https api_url")]
    NoTls,
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// Whether the member whose `api_url` this is says that it is the primary and holds the leader lock. Each question has its own connection:
/// an answer proves that Patroni lives now.
pub(crate) async fn primary(api_url: &str, tls: Option<Arc<rustls::ClientConfig>>, timeout: Duration) -> Result<bool, Error> {
    time::timeout(timeout, ask(api_url, tls)).await.map_err(|_| Error::Timeout(timeout))?
}

async fn ask(api_url: &str, tls: Option<Arc<rustls::ClientConfig>>) -> Result<bool, Error> {
    let uri: Uri = api_url.parse().map_err(|_| Error::Url)?;
    let https = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(Error::Url),
    };
    let host = uri.host().ok_or(Error::Url)?.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(if https { 443 } else { 80 }))).await?;
    let authority = uri.authority().ok_or(Error::Url)?.as_str();
    if https {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::Url)?;
        let connector = TlsConnector::from(tls.ok_or(Error::NoTls)?);
        request(connector.connect(name, stream).await?, authority).await
    } else {
        request(stream, authority).await
    }
}

async fn request(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, authority: &str) -> Result<bool, Error> {
    let (mut sender, connection) = http1::Builder::new().max_buf_size(16 * 1024).handshake(TokioIo::new(stream)).await?;
    let request =
        Request::get("/primary").header(HOST, authority).header(CONNECTION, "close").body(Empty::<Bytes>::new()).map_err(|_| Error::Url)?;
    let response = sender.send_request(request);
    tokio::pin!(connection, response);
    // The status is all that counts: the body is never read.
    let response = tokio::select! {
        response = &mut response => response?,
        ended = &mut connection => {
            ended?;
            // It may have ended with the answer, which is then at hand.
            response.await?
        }
    };
    Ok(response.status() == StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with `answer`, if any; returns the request's first line.
    async fn serve(listener: TcpListener, answer: Option<&'static str>) -> String {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut buffer = vec![0; 4096];
        let read = stream.read(&mut buffer).await.expect("read");
        if let Some(answer) = answer {
            stream.write_all(answer.as_bytes()).await.expect("write");
        } else {
            // Says nothing until the client gives up.
            let _ = stream.read(&mut buffer).await;
        }
        String::from_utf8_lossy(&buffer[..read]).lines().next().unwrap_or_default().to_owned()
    }

    async fn asked(answer: Option<&'static str>, timeout: Duration) -> (Result<bool, Error>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}/patroni", listener.local_addr().expect("address"));
        let server = tokio::spawn(serve(listener, answer));
        let said = primary(&url, None, timeout).await;
        (said, server.await.expect("server"))
    }

    #[tokio::test]
    async fn only_200_is_yes() {
        let long = Duration::from_secs(10);
        let (said, line) = asked(Some("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"), long).await;
        assert!(said.expect("an answer"));
        assert_eq!(line, "GET /primary HTTP/1.1");
        assert!(!asked(Some("HTTP/1.0 503 Service Unavailable\r\n\r\n"), long).await.0.expect("an answer"));
        assert!(asked(Some("garbage\r\n\r\n"), long).await.0.is_err());
    }

    #[tokio::test]
    async fn silence_is_no_answer() {
        assert!(matches!(asked(None, Duration::from_millis(50)).await.0, Err(Error::Timeout(_))));
        assert!(matches!(primary("ftp://a/", None, Duration::from_secs(1)).await, Err(Error::Url)));
    }
}
