//! The other side: asks a running router for a job, and hands on its lines as they come.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Job, Line, http};

/// For the connection, and for the first line of an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// A router that is at work says something more often than this: a lost one is given up.
const SILENCE: Duration = Duration::from_secs(120);
/// Of one line, in bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Asks the router at `url` (such as `http://127.0.0.1:18080`), with its token where that is needed; `show` gets each line. Whether the job was done.
///
/// # Errors
/// The router can't be reached, refuses to be asked, or goes away in the middle.
pub async fn ask(url: &str, token: Option<&str>, job: &Job, mut show: impl FnMut(&Line)) -> anyhow::Result<bool> {
    let uri: Uri = url.parse().with_context(|| format!("{url}: no URL"))?;
    let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        bail!("{url}: expected the router's HTTP port, such as http://127.0.0.1:18080");
    };
    let host = authority.host().trim_matches(['[', ']']);
    let work = async {
        let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::post(http::PATH).header(HOST, authority.as_str()).header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(serde_json::to_vec(job)?)))?;
        anyhow::Ok((sender.send_request(request).await?, sender))
    };
    let answered = tokio::time::timeout(ANSWER, work).await.map_err(|_| anyhow::anyhow!("no answer within {ANSWER:?}"));
    let (response, _sender) = answered.and_then(|answered| answered).with_context(|| format!("the router at {url}"))?;
    let status = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    loop {
        let frame =
            tokio::time::timeout(SILENCE, body.frame()).await.with_context(|| format!("nothing from the router for {SILENCE:?}"))?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.context("the router went away")?.into_data() else { continue };
        text.extend_from_slice(&data);
        if status != StatusCode::OK {
            text.truncate(LINE_BYTES_MAX);
            continue;
        }
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Line = serde_json::from_slice(&text[..end]).context("the router's answer")?;
            text.drain(..=end);
            show(&line);
            if let Some(ok) = line.ok {
                return Ok(ok);
            }
        }
        if text.len() > LINE_BYTES_MAX {
            bail!("the router's answer is no line of at most {LINE_BYTES_MAX} bytes");
        }
    }
    if status == StatusCode::OK {
        bail!("the router went away before the end");
    }
    bail!("the router refuses: {} ({})", String::from_utf8_lossy(&text).trim_end(), status.as_u16());
}
