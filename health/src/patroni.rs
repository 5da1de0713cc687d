//! Patroni's REST API: is `/primary` answered with 200, for the failsafe rule; and `/switchover`, for operators.
//!
//! Source: Patroni's documentation, "Patroni REST API", "Health check endpoints".

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use switchyard_config::Config;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time;
use tokio_rustls::TlsConnector;

use crate::probe;

/// Of an answer, at most, in bytes.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("api_url is no URL of a REST API")]
    Url,
    #[error("no TLS configuration for an https api_url")]
    NoTls,
    #[error("[patroni] holds what no HTTP header can")]
    Credentials,
    #[error("its answer broke off, or is too long")]
    Answer,
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// What Patroni answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The body as text, at most [`ANSWER_BYTES_MAX`] of it, without line breaks at its end.
    pub text: String,
}

/// Whether the member whose `api_url` this is says that it is the primary and holds the leader lock. Each question has its own connection:
/// an answer proves that Patroni lives now.
pub(crate) async fn primary(api_url: &str, tls: Option<Arc<rustls::ClientConfig>>, timeout: Duration) -> Result<bool, Error> {
    let question = Request::get("/primary").body(Full::default()).map_err(|_| Error::Url)?;
    // The status is all that counts.
    Ok(within(timeout, ask(api_url, tls, question, false)).await?.status == StatusCode::OK.as_u16())
}

/// Asks the leader's Patroni for a switchover, to `candidate` where one is named. It answers when the switchover is done, has failed, or takes
/// longer than its own limit (about `loop_wait`): 200 done; 412 and other 4xx refused, with the reason; 503 failed.
///
/// Source: Patroni's documentation, "Patroni REST API", "Switchover".
///
/// # Errors
/// No answer: the switchover may come all the same.
pub async fn switchover(config: &Config, api_url: &str, leader: &str, candidate: Option<&str>, timeout: Duration) -> Result<Answer, Error> {
    let mut body = serde_json::json!({ "leader": leader });
    if let Some(candidate) = candidate {
        body["candidate"] = candidate.into();
    }
    let mut request = Request::post("/switchover").header(CONTENT_TYPE, "application/json");
    if let (Some(username), Some(password)) = (&config.patroni.username, &config.patroni.password) {
        let mut value = HeaderValue::try_from(format!("Basic {}", BASE64.encode(format!("{username}:{}", password.expose()))))
            .map_err(|_| Error::Credentials)?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Full::from(body.to_string())).map_err(|_| Error::Url)?;
    let tls = probe::client_config(config).await.map_err(|error| Error::Io(std::io::Error::other(error)))?;
    within(timeout, ask(api_url, tls, request, true)).await
}

async fn within<T>(timeout: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    time::timeout(timeout, work).await.map_err(|_| Error::Timeout(timeout))?
}

async fn ask(api_url: &str, tls: Option<Arc<rustls::ClientConfig>>, question: Request<Full<Bytes>>, read: bool) -> Result<Answer, Error> {
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
        request(connector.connect(name, stream).await?, authority, question, read).await
    } else {
        request(stream, authority, question, read).await
    }
}

async fn request(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    authority: &str,
    mut question: Request<Full<Bytes>>,
    read: bool,
) -> Result<Answer, Error> {
    let (mut sender, connection) = http1::Builder::new().max_buf_size(16 * 1024).handshake(TokioIo::new(stream)).await?;
    question.headers_mut().insert(HOST, HeaderValue::try_from(authority).map_err(|_| Error::Url)?);
    question.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let answer = async {
        let response = sender.send_request(question).await?;
        let status = response.status().as_u16();
        if !read {
            return Ok(Answer { status, text: String::new() });
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|_| Error::Answer)?;
        Ok(Answer { status, text: String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned() })
    };
    tokio::pin!(connection, answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            // It may have ended with the answer, which is then at hand.
            answer.await
        }
    }
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
