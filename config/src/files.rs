//! The files that a configuration names: can they be read, and do they hold what they should?

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A password, certificate or key file larger than this isn't one.
const NAMED_FILE_MAX_BYTES: u64 = 1 << 20;

/// The text of a file of at most `max_bytes`; the error says what is wrong with it.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("can't be read: {error}");
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err("can't be read: it is a directory".to_owned());
    }
    let mut bytes = Vec::new();
    // One byte more than allowed tells "too large"; devices and pipes have no length to ask for.
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!("can't be read: it is larger than {max_bytes} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("can't be read: it isn't UTF-8 (line {line}, byte {valid} of the file)")
    })
}

/// A password is the file's text without the line end that editors and `echo` leave.
pub(crate) fn read_password(path: &Path) -> Result<String, String> {
    let text = read_text(path, NAMED_FILE_MAX_BYTES)?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err("is empty".to_owned());
    }
    if password.contains(['\0', '\n']) {
        return Err("must hold one line".to_owned());
    }
    Ok(password.to_owned())
}

/// What a PEM file should have in it (RFC 7468 labels).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pem {
    Certificate,
    PrivateKey,
}

pub(crate) fn check_pem(path: &Path, kind: Pem) -> Result<(), String> {
    let text = read_text(path, NAMED_FILE_MAX_BYTES)?;
    let has = |label: &str| text.lines().any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(label));
    match kind {
        Pem::Certificate if has("CERTIFICATE-----") => Ok(()),
        Pem::Certificate => Err("holds no PEM certificate".to_owned()),
        Pem::PrivateKey if has("ENCRYPTED PRIVATE KEY-----") => {
            Err("holds an encrypted key; the router has no way to ask for its passphrase".to_owned())
        }
        Pem::PrivateKey if has("PRIVATE KEY-----") => Ok(()),
        Pem::PrivateKey => Err("holds no PEM private key".to_owned()),
    }
}
