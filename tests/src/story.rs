//! Several stories about one cluster: fewer starts, faster tests.
//!
//! Either one test function tells them in turn ([`Stories`]), or several test functions take turns with a cluster that the first of
//! them starts ([`Shared`]).

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use futures_util::FutureExt;
use tokio::sync::{Mutex, MutexGuard};

use crate::leaks;

/// Set to a part of stories' names, it lets only those be told: for work on one of them.
const ONLY: &str = "SWITCHYARD_STORY";

/// Tells stories one after the other, goes on after one that fails, and fails at the end if one did.
#[derive(Debug, Default)]
#[must_use = "`end` tells whether all went well"]
pub struct Stories {
    told: usize,
    failed: Vec<String>,
}

impl Stories {
    pub fn new() -> Stories {
        Stories::default()
    }

    /// One story: an error or a panic in it is its failure, and is printed. So is what a router tells of a leak.
    pub async fn tell(&mut self, name: &str, story: impl Future<Output = anyhow::Result<()>>) {
        if std::env::var(ONLY).is_ok_and(|only| !name.contains(&only)) {
            return;
        }
        let begin = Instant::now();
        self.told += 1;
        // A story that panicked has nothing of its own that a later one could look at.
        let failure = match AssertUnwindSafe(story).catch_unwind().await {
            Ok(Ok(())) => leaks::none().err().map(|error| error.to_string()),
            // In one line, and without a backtrace, which says nothing about a story and hides what does.
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(panic) => Some(panic_text(&*panic)),
        };
        let seconds = begin.elapsed().as_secs_f64();
        match failure {
            None => println!("story {name} ... ok ({seconds:.1} s)"),
            Some(text) => {
                println!("story {name} ... FAILED ({seconds:.1} s)\n{text}");
                self.failed.push(format!("{name}: {text}"));
            }
        }
    }

    /// Fails if a story failed; `evidence`, such as the logs, is printed then. What failed is the error, which the test's runner prints
    /// behind everything else: servers that are dropped on the way print nothing, as nobody panics.
    ///
    /// # Errors
    ///
    /// If a story failed.
    pub fn end(mut self, evidence: impl FnOnce() -> String) -> anyhow::Result<()> {
        self.failed.extend(leaks::none().err().map(|error| error.to_string()));
        if self.failed.is_empty() {
            return Ok(());
        }
        println!("{}", evidence());
        anyhow::bail!("{} of {} stories failed:\n{}", self.failed.len(), self.told, self.failed.join("\n"))
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("with something that isn't text"))
}

/// Something that the test functions of one program share, one at a time: `static YARD: Shared<Cluster> = Shared::new();`
///
/// It is made by the first that needs it, and made again if that failed. It lives until the program's end, and what it started ends then.
#[derive(Debug)]
pub struct Shared<T>(Mutex<Option<T>>);

impl<T> Shared<T> {
    pub const fn new() -> Shared<T> {
        Shared(Mutex::const_new(None))
    }

    /// Waits for its turn; the next one waits until the value given back is dropped.
    pub async fn turn<F>(&self, make: impl FnOnce() -> F) -> anyhow::Result<Turn<'_, T>>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let mut held = self.0.lock().await;
        if held.is_none() {
            *held = Some(make().await?);
        }
        Ok(Turn(held))
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared::new()
    }
}

/// At its end, no router of the program may have told of a leak.
#[derive(Debug)]
pub struct Turn<'a, T>(MutexGuard<'a, Option<T>>);

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("a turn begins with a value")
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("a turn begins with a value")
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        leaks::assert(leaks::none());
    }
}
