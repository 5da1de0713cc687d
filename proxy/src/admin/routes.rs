//! One request in, one response out. All routes here are reads: GET and HEAD, no request bodies, no parameters.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::server::Shared;
use super::snapshot::Snapshot;
use super::{csv, metrics, page};

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

pub(super) fn answer(shared: &Shared, request: &Request<impl Body>) -> Answer {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return closing(answer);
    }
    if !request.body().is_end_stream() {
        return closing(text(StatusCode::PAYLOAD_TOO_LARGE, "requests have no body here\n"));
    }
    let admin = &shared.admin;
    match request.uri().path() {
        "/" => {
            let mut answer = text(StatusCode::FOUND, "see /stats\n");
            answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/stats"));
            answer
        }
        "/stats" | "/stats/" => {
            let past = admin.history.lock().past(std::time::Instant::now());
            let mut answer = full(StatusCode::OK, "text/html; charset=utf-8", page::render(&admin.snapshot(), &past));
            answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, page::policy());
            answer
        }
        "/stats/events" => events(shared, request.method()),
        // HAProxy takes further words after the first: `;csv;norefresh`. Patroni's template has its page at the root.
        path if ["/stats;csv", "/;csv"]
            .iter()
            .any(|csv| path == *csv || path.strip_prefix(csv).is_some_and(|rest| rest.starts_with(';'))) =>
        {
            full(StatusCode::OK, TEXT, csv::render(&admin.snapshot()))
        }
        "/metrics" => full(StatusCode::OK, metrics::CONTENT_TYPE, metrics::exposition(&admin.snapshot())),
        "/api/v1/cluster" => full(StatusCode::OK, JSON, json(&admin.snapshot())),
        "/api/v1/statements" => full(StatusCode::OK, JSON, serde_json::to_vec(&admin.statements()).unwrap_or_default()),
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match admin.snapshot().not_ready {
            None => text(StatusCode::OK, "ready\n"),
            Some(reason) => full(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "not here; try /stats, /stats;csv, /metrics, /api/v1/cluster, /api/v1/statements, /livez, /readyz\n",
        ),
    }
}

/// On one line, as server-sent events need it.
pub(super) fn json(snapshot: &Snapshot) -> Bytes {
    // Strings and numbers only: can't fail.
    serde_json::to_vec(snapshot).unwrap_or_default().into()
}

fn text(status: StatusCode, words: &'static str) -> Answer {
    full(status, TEXT, words)
}

fn full(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    answer_with(status, content_type, Full::new(body.into()).boxed_unsync())
}

fn answer_with(status: StatusCode, content_type: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

struct Subscriber {
    feed: watch::Receiver<Bytes>,
    _permit: OwnedSemaphorePermit,
}

/// A stream of snapshots. A reader that is slower than they come misses some, and gets the newest next: nothing piles up.
fn events(shared: &Shared, method: &Method) -> Answer {
    const TYPE: &str = "text/event-stream";
    if method == Method::HEAD {
        return full(StatusCode::OK, TYPE, "");
    }
    let Ok(permit) = Arc::clone(&shared.streams).try_acquire_owned() else {
        return closing(text(StatusCode::SERVICE_UNAVAILABLE, "too many open pages\n"));
    };
    // The first snapshot comes at once, and what the feed still holds from earlier readers doesn't count.
    let mut feed = shared.feed.clone();
    feed.mark_unchanged();
    let first = event(&json(&shared.admin.snapshot()), "retry: 1000\n");
    let subscriber = Subscriber { feed, _permit: permit };
    let later = stream::unfold(subscriber, |mut subscriber| async move {
        // An error means that the feed is gone: the server shuts down.
        subscriber.feed.changed().await.ok()?;
        let data = subscriber.feed.borrow_and_update().clone();
        Some((event(&data, ""), subscriber))
    });
    let all = stream::StreamExt::chain(stream::iter([first]), later);
    let frames = stream::StreamExt::map(all, |data| Ok::<_, Infallible>(Frame::data(data)));
    answer_with(StatusCode::OK, TYPE, BodyExt::boxed_unsync(StreamBody::new(frames)))
}

fn event(data: &[u8], prefix: &str) -> Bytes {
    let mut event = Vec::with_capacity(data.len() + prefix.len() + 32);
    event.extend_from_slice(prefix.as_bytes());
    event.extend_from_slice(b"event: snapshot\ndata: ");
    event.extend_from_slice(data);
    event.extend_from_slice(b"\n\n");
    event.into()
}
