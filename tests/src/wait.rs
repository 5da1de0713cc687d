//! Waiting for a condition, with a deadline. The only place of this crate that sleeps.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// Looks at a condition again and again until it holds, for `limit` at most.
///
/// `look` says `Some(value)` when it holds and `None` when it doesn't yet; an error means "not yet" too, as servers that are being
/// started, killed and promoted give many, and the last one is told when the time is over.
pub async fn eventually<T, F>(limit: Duration, what: &str, mut look: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let deadline = Instant::now() + limit;
    let mut last = None;
    loop {
        match timeout_at(deadline, look()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => last = None,
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(last.unwrap_or_else(|| anyhow!("the last look got no answer"))),
        }
        if Instant::now() >= deadline {
            return match last {
                Some(error) => Err(error).with_context(|| format!("{what}: not within {limit:?}")),
                None => bail!("{what}: not within {limit:?}"),
            };
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Fails if `work` takes longer than `limit`.
pub async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.with_context(|| what.to_owned()),
        Err(_) => bail!("{what}: not within {limit:?}"),
    }
}
