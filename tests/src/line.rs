//! A line to a TCP service that can be cut without a word: what is sent into it then is neither answered nor refused.

use std::sync::Arc;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Relays until it is cut, and again when it is mended. Dropped, it is gone.
#[derive(Debug)]
pub struct Line {
    address: String,
    whole: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Line {
    /// A line to `to`, such as `127.0.0.1:2379`.
    pub async fn to(to: &str) -> anyhow::Result<Line> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("the line's end")?;
        let address = listener.local_addr()?.to_string();
        let (whole, watched) = watch::channel(true);
        let to: Arc<str> = to.into();
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (to, watched) = (to.clone(), watched.clone());
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(&*to).await else { return };
                    let (near_in, near_out) = near.into_split();
                    let (far_in, far_out) = far.into_split();
                    // Both ends stay open until both directions have ended.
                    tokio::join!(relay(near_in, far_out, watched.clone()), relay(far_in, near_out, watched));
                });
            }
        });
        Ok(Line { address, whole, accepting })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut whole: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(count) = from.read(&mut buffer).await else { return };
        if whole.wait_for(|whole| *whole).await.is_err() {
            return;
        }
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
