//! A small HTTP client for status pages, health checks and Patroni's REST API.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// Longer than Patroni takes for a switchover.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub content_type: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }
}

pub async fn get(url: &str) -> anyhow::Result<Response> {
    send(Method::GET, url, Bytes::new()).await
}

pub async fn post(url: &str, body: &serde_json::Value) -> anyhow::Result<Response> {
    send(Method::POST, url, body.to_string().into()).await
}

pub async fn patch(url: &str, body: &serde_json::Value) -> anyhow::Result<Response> {
    send(Method::PATCH, url, body.to_string().into()).await
}

async fn send(method: Method, url: &str, body: Bytes) -> anyhow::Result<Response> {
    let exchange = async {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let request = Request::builder().method(method).uri(url).header(header::CONNECTION, "close").body(Full::new(body))?;
        let response = client.request(request).await?;
        let status: StatusCode = response.status();
        let content_type =
            response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok(Response { status: status.as_u16(), content_type, body: String::from_utf8_lossy(&body).into_owned() })
    };
    tokio::time::timeout(LIMIT, exchange)
        .await
        .with_context(|| format!("{url}: no answer within {LIMIT:?}"))?
        .with_context(|| url.to_owned())
}
