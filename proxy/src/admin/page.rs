//! The page: one file, with the first snapshot inside, so that it is complete at first paint.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::history::Past;
use super::snapshot::Snapshot;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

#[derive(Serialize)]
struct First<'a> {
    snapshot: &'a Snapshot,
    past: &'a [Past],
}

pub(super) fn render(snapshot: &Snapshot, past: &[Past]) -> String {
    // Numbers and strings only: can't fail. `<` can only stand inside strings, where an escape means the same, and without it nothing in
    // the data can end the script element.
    let first = serde_json::to_string(&First { snapshot, past })
        .unwrap_or_default()
        .replace('<', "\\u003c");
    // The data goes last, so that nothing within it is taken for a mark.
    PAGE.replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT)
        .replacen("{{first}}", &first, 1)
}

/// Only this very style and script, and nothing from elsewhere.
pub(super) fn policy() -> HeaderValue {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
            hash(STYLE),
            hash(SCRIPT),
        );
        HeaderValue::try_from(policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
    });
    POLICY.clone()
}
