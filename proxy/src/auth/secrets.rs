//! Verifiers as PostgreSQL stores them, and what proves a user to a server.
//!
//! Source: PostgreSQL `src/backend/libpq/crypt.c` (`get_password_type`), `auth-scram.c` (`parse_scram_secret`), RFC 5802 section 3.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use md5::Md5;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of a SCRAM-SHA-256 key.
pub const KEY_BYTES: usize = 32;

/// A key of SCRAM-SHA-256. Wiped on drop, compared in constant time, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    pub fn new(bytes: [u8; KEY_BYTES]) -> Key {
        Key(bytes)
    }

    pub fn from_slice(bytes: &[u8]) -> Option<Key> {
        Some(Key(bytes.try_into().ok()?))
    }

    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// HMAC-SHA-256 of `parts` with this key.
    pub fn hmac(&self, parts: &[&[u8]]) -> [u8; KEY_BYTES] {
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// `H(key)`: the StoredKey of a ClientKey.
    pub fn hash(&self) -> Key {
        Key(Sha256::digest(self.0).into())
    }

    /// This key with `mask` laid over it, bit by bit: proof to key and back.
    pub fn xor(&self, mask: &[u8; KEY_BYTES]) -> Key {
        let mut bytes = self.0;
        for (byte, mask) in bytes.iter_mut().zip(mask) {
            *byte ^= mask;
        }
        Key(bytes)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}

/// What `pg_authid.rolpassword` holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verifier {
    Scram(ScramVerifier),
    Md5(Md5Hash),
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScramVerifier {
    pub iterations: u32,
    pub salt: Vec<u8>,
    pub stored_key: Key,
    pub server_key: Key,
}

/// The 32 hexadecimal digits behind `md5`: a password's equivalent, wiped on drop.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Md5Hash(String);

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Hash(***)")
    }
}

impl Md5Hash {
    /// What answers a server's salt: `md5` and the hash of hash and salt (protocol section "Start-up", AuthenticationMD5Password).
    pub fn response(&self, salt: &[u8]) -> Zeroizing<String> {
        let digest = Md5::new().chain_update(self.0.as_bytes()).chain_update(salt).finalize();
        Zeroizing::new(format!("md5{digest:x}"))
    }
}

impl Verifier {
    /// `None` for anything that PostgreSQL couldn't have stored; PostgreSQL takes such a password for plain text, which it never stores
    /// either.
    pub fn parse(text: &str) -> Option<Verifier> {
        if let Some(digits) = text.strip_prefix("md5") {
            let is_hash = digits.len() == 32 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            return is_hash.then(|| Verifier::Md5(Md5Hash(digits.to_owned())));
        }
        let (head, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let key = |text: &str| Key::from_slice(&Zeroizing::new(BASE64.decode(text).ok()?));
        let iterations: u32 = iterations.parse().ok().filter(|count| (1..=i32::MAX as u32).contains(count))?;
        Some(Verifier::Scram(ScramVerifier {
            iterations,
            salt: BASE64.decode(salt).ok()?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        }))
    }
}

/// What proves a user to a SCRAM server, and the server to us: a ClientKey, and the verifier it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScramKeys {
    pub client_key: Key,
    pub server_key: Key,
    /// Which verifier the keys belong to: another password, or the same one set again, has another salt.
    pub salt: Vec<u8>,
    pub iterations: u32,
}

/// How the router logs in to servers as a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    Scram(ScramKeys),
    Md5(Md5Hash),
    /// The servers trust the router (`server_auth` rule `trust`).
    Trust,
    /// The servers know the user by the router's own client certificate (`server_auth` rule `cert`).
    Cert,
}
