//! `POST /api/v1/control`: a [`Job`] as JSON in, [`Line`]s as JSON out, one a line, as they come; the last one has `ok`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Body, Frame};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::{Control, Job, guard};

/// Where jobs are asked for.
pub(super) const PATH: &str = "/api/v1/control";
/// Of a job, in bytes.
const JOB_BYTES_MAX: usize = 4 * 1024;
/// For a job's body to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Whether the request is for this module.
pub(crate) fn is_control<B>(request: &Request<B>) -> bool {
    request.uri().path() == PATH
}

/// Cancel-safe: a job that has begun goes on without its reader, as far as [`Control::start`] says.
pub(crate) async fn answer(
    control: &Arc<Control>,
    peer: SocketAddr,
    request: Request<impl Body<Data = Bytes, Error: Into<BoxError>>>,
) -> Answer {
    match begin(control, peer, request).await {
        Ok(answer) => answer,
        Err((status, words)) => {
            tracing::warn!(%peer, %status, "a request to do something was refused");
            let mut answer = plain(status, "text/plain; charset=utf-8", Full::new(Bytes::from(words)).boxed_unsync());
            if status == StatusCode::METHOD_NOT_ALLOWED {
                answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            // Whatever of a body hasn't been read ends with the connection.
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            answer
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn begin(
    control: &Arc<Control>,
    peer: SocketAddr,
    request: Request<impl Body<Data = Bytes, Error: Into<BoxError>>>,
) -> Result<Answer, (StatusCode, String)> {
    if request.method() != Method::POST {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "only POST\n".into()));
    }
    guard::admit(&control.context.config.load().control, peer, request.headers()).map_err(|(status, words)| (status, words.into()))?;
    let body = Limited::new(request.into_body(), JOB_BYTES_MAX).collect();
    let body = tokio::time::timeout(BODY_TIMEOUT, std::pin::pin!(body))
        .await
        .map_err(|_| (StatusCode::REQUEST_TIMEOUT, "the body didn't come\n".into()))?
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")))?;
    let job: Job = serde_json::from_slice(&body.to_bytes()).map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")))?;
    tracing::info!(%peer, ?job, "asked for");
    let lines = control.start(job);
    let frames = stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        // Numbers and strings only: can't fail.
        let mut data = serde_json::to_vec(&line).unwrap_or_default();
        data.push(b'\n');
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(data))), lines))
    });
    Ok(plain(StatusCode::OK, "application/x-ndjson", BodyExt::boxed_unsync(StreamBody::new(frames))))
}

fn plain(status: StatusCode, content_type: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
