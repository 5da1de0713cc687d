//! Untagged first packets: what a client says before authentication, and the settings it asks for.
//!
//! Invariant: nothing here allocates by a length that a peer claims; [`packet_length`] refuses it before a byte of the
//! body is read. Source: PostgreSQL `src/backend/tcop/backend_startup.c` (`ProcessStartupPacket`; up to 16 in
//! `postmaster.c`), `src/backend/utils/init/postinit.c` (`pg_split_opts`) and `src/backend/tcop/postgres.c`
//! (`process_postgres_switches`). These packets are parsed here and not by pgwire, whose `Startup` sorts the parameters,
//! replaces bytes that aren't UTF-8, and takes packets that PostgreSQL refuses.

use crate::refusal::Refusal;

/// PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`, without the length word itself.
pub const MAX_STARTUP_BYTES: usize = 10_000;
/// The newest minor version of protocol 3 that the router speaks (3.2: cancel keys of up to 256 bytes).
pub const NEWEST_MINOR: u16 = 2;
/// PostgreSQL's `NAMEDATALEN - 1`: longer role and database names are cut.
const NAME_BYTES: usize = 63;
/// Cancel keys, in bytes (protocol 3.2; always 4 in protocol 3.0).
const CANCEL_KEY_BYTES: std::ops::RangeInclusive<usize> = 4..=256;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// A complete first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPacket {
    SslRequest,
    GssEncRequest,
    CancelRequest { pid: i32, key: Vec<u8> },
    Startup(Box<Startup>),
}

/// Why a first packet goes no further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// PostgreSQL tells only its log (`COMMERROR`) and closes the connection.
    #[error("{0}")]
    Close(&'static str),
    /// The client is told.
    #[error("{}", .0.wording().message)]
    Refuse(Refusal),
}

/// Whether the client asked for a walsender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replication {
    #[default]
    No,
    /// `replication=true`: no database.
    Physical,
    /// `replication=database`.
    Logical,
}

impl Replication {
    /// The value of the startup parameter `replication` that asks a server for the same.
    pub fn parameter(self) -> Option<&'static str> {
        match self {
            Replication::No => None,
            Replication::Physical => Some("true"),
            Replication::Logical => Some("database"),
        }
    }
}

/// A StartupMessage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    /// The minor version of protocol 3 that the client asked for.
    pub asked_minor: u16,
    /// The minor version in force: the lesser of the client's and [`NEWEST_MINOR`].
    pub minor: u16,
    /// Never empty, at most 63 bytes.
    pub user: String,
    /// As given, else the user's name; empty for physical replication.
    pub database: String,
    pub replication: Replication,
    /// `options` as given: switches of the server process. [`Startup::settings`] reads them.
    pub options: Option<String>,
    /// Every other parameter, in the client's order: settings by name.
    pub parameters: Vec<(String, String)>,
    /// `_pq_.` options; none is known so far.
    pub protocol_options: Vec<String>,
}

impl Startup {
    /// Whether a NegotiateProtocolVersion message is due, before authentication.
    pub fn must_negotiate(&self) -> bool {
        self.asked_minor > NEWEST_MINOR || !self.protocol_options.is_empty()
    }

    /// What the client sets, in the order in which PostgreSQL applies it: `options` first, then the parameters
    /// (`process_startup_options`). A later value of a name wins.
    ///
    /// Errors are PostgreSQL's, which it raises after authentication.
    pub fn settings(&self) -> Result<Vec<(String, String)>, Refusal> {
        let mut settings = match &self.options {
            Some(options) => switches(options)?,
            None => Vec::new(),
        };
        settings.extend(self.parameters.iter().cloned());
        Ok(settings)
    }

    /// The client's value for a setting given as a parameter of its own, such as `application_name`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Bytes that follow the length word. `limit` is in bytes without the length word, at most [`MAX_STARTUP_BYTES`] in PostgreSQL.
pub fn packet_length(word: [u8; 4], limit: usize) -> Result<usize, StartupError> {
    let invalid = StartupError::Close("invalid length of startup packet");
    match usize::try_from(i32::from_be_bytes(word)).ok().and_then(|total| total.checked_sub(4)) {
        Some(body) if (4..=limit).contains(&body) => Ok(body),
        _ => Err(invalid),
    }
}

/// Reads what follows the length word.
pub fn parse(body: &[u8]) -> Result<FirstPacket, StartupError> {
    let Some((code, rest)) = body.split_first_chunk::<4>() else {
        return Err(StartupError::Close("invalid length of startup packet"));
    };
    match u32::from_be_bytes(*code) {
        SSL_REQUEST if rest.is_empty() => Ok(FirstPacket::SslRequest),
        GSSENC_REQUEST if rest.is_empty() => Ok(FirstPacket::GssEncRequest),
        CANCEL_REQUEST => cancel_request(rest),
        version => startup_message((version >> 16) as u16, version as u16, rest).map(|startup| FirstPacket::Startup(Box::new(startup))),
    }
}

/// The refusal of a second SSLRequest or GSSENCRequest: PostgreSQL then reads the code as a version.
pub fn repeated_request(packet: &FirstPacket) -> Refusal {
    let code = if matches!(packet, FirstPacket::GssEncRequest) { GSSENC_REQUEST } else { SSL_REQUEST };
    Refusal::UnsupportedProtocol { major: (code >> 16) as u16, minor: code as u16 }
}

fn cancel_request(rest: &[u8]) -> Result<FirstPacket, StartupError> {
    match rest.split_first_chunk::<4>() {
        Some((pid, key)) if CANCEL_KEY_BYTES.contains(&key.len()) => {
            Ok(FirstPacket::CancelRequest { pid: i32::from_be_bytes(*pid), key: key.to_vec() })
        }
        _ => Err(StartupError::Close("invalid length of cancel request packet")),
    }
}

fn startup_message(major: u16, minor: u16, rest: &[u8]) -> Result<Startup, StartupError> {
    if major != 3 {
        return refuse(Refusal::UnsupportedProtocol { major, minor });
    }
    let mut startup = Startup {
        asked_minor: minor,
        minor: minor.min(NEWEST_MINOR),
        user: String::new(),
        database: String::new(),
        replication: Replication::No,
        options: None,
        parameters: Vec::new(),
        protocol_options: Vec::new(),
    };
    let mut fields = Fields { rest };
    while let Some((name, value)) = fields.next_pair()? {
        match name {
            b"user" => startup.user = text(name, value)?,
            b"database" => startup.database = text(name, value)?,
            b"options" => startup.options = Some(text(name, value)?),
            b"replication" => startup.replication = replication(&text(name, value)?)?,
            b"application_name" => startup.parameters.push(("application_name".into(), clean_name(value))),
            _ if name.starts_with(b"_pq_.") => startup.protocol_options.push(text(name, name)?),
            _ => startup.parameters.push((text(name, name)?, text(name, value)?)),
        }
    }
    cut_name(&mut startup.user);
    cut_name(&mut startup.database);
    if startup.user.is_empty() {
        return refuse(Refusal::NoUserName);
    }
    if startup.replication == Replication::Physical {
        startup.database.clear();
    } else if startup.database.is_empty() {
        startup.database.clone_from(&startup.user);
    }
    Ok(startup)
}

fn refuse<T>(refusal: Refusal) -> Result<T, StartupError> {
    Err(StartupError::Refuse(refusal))
}

/// A parameter's name and value.
type Pair<'a> = (&'a [u8], &'a [u8]);

/// Names and values, each ended by a zero byte, up to an empty name that must be the packet's last byte.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn next_pair(&mut self) -> Result<Option<Pair<'a>>, StartupError> {
        let layout = || {
            StartupError::Refuse(Refusal::BadStartup { detail: "invalid startup packet layout: expected terminator as last byte".into() })
        };
        let name = self.string().ok_or_else(layout)?;
        if name.is_empty() {
            return if self.rest.is_empty() { Ok(None) } else { Err(layout()) };
        }
        Ok(Some((name, self.string().ok_or_else(layout)?)))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(0, self.rest)?;
        let string = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(string)
    }
}

/// The router keeps names and settings as text. PostgreSQL takes bytes in any encoding here, but no role or database whose
/// name isn't UTF-8 can be looked up over a UTF-8 connection.
fn text(name: &[u8], value: &[u8]) -> Result<String, StartupError> {
    match std::str::from_utf8(value) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => {
            refuse(Refusal::BadStartup { detail: format!("startup parameter \"{}\" is not valid UTF-8", name.escape_ascii()).into() })
        }
    }
}

/// `application_name` may be in any encoding: PostgreSQL replaces what isn't printable ASCII (`pg_clean_ascii`), so this loses
/// nothing that a server would keep.
fn clean_name(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().map(|byte| if (32..=126).contains(byte) { char::from(*byte) } else { '?' }).collect(),
    }
}

fn cut_name(name: &mut String) {
    if name.len() > NAME_BYTES {
        let end = (0..=NAME_BYTES).rev().find(|index| name.is_char_boundary(*index)).unwrap_or(0);
        name.truncate(end);
    }
}

fn replication(value: &str) -> Result<Replication, StartupError> {
    if value == "database" {
        return Ok(Replication::Logical);
    }
    match parse_bool(value) {
        Some(true) => Ok(Replication::Physical),
        Some(false) => Ok(Replication::No),
        None => refuse(Refusal::BadReplication { value: value.to_owned() }),
    }
}

/// PostgreSQL's `parse_bool`: unique prefixes of true, false, yes, no, on, off; 1 and 0.
pub(crate) fn parse_bool(value: &str) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let prefix_of = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    if prefix_of("true", 1) || prefix_of("yes", 1) || prefix_of("on", 2) || value == "1" {
        Some(true)
    } else if prefix_of("false", 1) || prefix_of("no", 1) || prefix_of("off", 2) || value == "0" {
        Some(false)
    } else {
        None
    }
}

/// Splits `options` at spaces; a backslash keeps the next byte as it is (`pg_split_opts`).
fn split_options(options: &str) -> Vec<String> {
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r');
    let mut arguments = Vec::new();
    let mut rest = options.trim_start_matches(is_space);
    while !rest.is_empty() {
        let mut argument = String::new();
        let mut escaped = false;
        let mut end = rest.len();
        for (index, c) in rest.char_indices() {
            if is_space(c) && !escaped {
                end = index;
                break;
            }
            if c == '\\' && !escaped {
                escaped = true;
            } else {
                escaped = false;
                argument.push(c);
            }
        }
        arguments.push(argument);
        rest = rest[end..].trim_start_matches(is_space);
    }
    arguments
}

/// The switches of a server process that a client may give in `options`, as the settings that they stand for.
fn switches(options: &str) -> Result<Vec<(String, String)>, Refusal> {
    let mut settings = Vec::new();
    let arguments = split_options(options);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(mut letters) = argument.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            return Err(bad_argument(argument));
        };
        if letters == "-" {
            // getopt's end of switches: whatever follows is no switch.
            match arguments.next() {
                Some(next) => return Err(bad_argument(next)),
                None => break,
            }
        }
        while let Some(letter) = letters.chars().next() {
            letters = &letters[letter.len_utf8()..];
            if let Some((name, value)) = plain_switch(letter) {
                settings.push((name.to_owned(), value.to_owned()));
                continue;
            }
            // The others take a value: the rest of this argument, or the next one.
            let value = match letters {
                "" => arguments.next().map(String::as_str),
                rest => Some(rest),
            };
            let value = value.ok_or_else(|| bad_argument(argument))?;
            settings.push(valued_switch(letter, value).ok_or_else(|| bad_argument(argument))??);
            break;
        }
    }
    Ok(settings)
}

fn plain_switch(letter: char) -> Option<(&'static str, &'static str)> {
    Some(match letter {
        'e' => ("datestyle", "euro"),
        'F' => ("fsync", "false"),
        'O' => ("allow_system_table_mods", "true"),
        'P' => ("ignore_system_indexes", "true"),
        's' => ("log_statement_stats", "true"),
        _ => return None,
    })
}

/// `None`: no such switch. An inner error is PostgreSQL's own.
fn valued_switch(letter: char, value: &str) -> Option<Result<(String, String), Refusal>> {
    let named = |name: &str| Some(Ok((name.to_owned(), value.to_owned())));
    match letter {
        'c' | '-' => Some(long_option(letter, value)),
        'B' => named("shared_buffers"),
        'N' => named("max_connections"),
        'S' => named("work_mem"),
        'W' => named("post_auth_delay"),
        'f' => {
            let name = match value {
                "s" => "enable_seqscan",
                "i" => "enable_indexscan",
                "o" => "enable_indexonlyscan",
                "b" => "enable_bitmapscan",
                "t" => "enable_tidscan",
                "n" => "enable_nestloop",
                "m" => "enable_mergejoin",
                "h" => "enable_hashjoin",
                _ => return None,
            };
            Some(Ok((name.to_owned(), "false".to_owned())))
        }
        _ => None,
    }
}

/// `name=value`, with dashes in the name read as underscores (`ParseLongOption`).
fn long_option(letter: char, text: &str) -> Result<(String, String), Refusal> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.replace('-', "_"), value.to_owned())),
        None => {
            let dashes = if letter == 'c' { "-c " } else { "--" };
            Err(Refusal::BadOptions { message: format!("{dashes}{text} requires a value").into(), hint: None })
        }
    }
}

fn bad_argument(argument: &str) -> Refusal {
    Refusal::BadOptions {
        message: format!("invalid command-line argument for server process: {argument}").into(),
        hint: Some("Try \"postgres --help\" for more information."),
    }
}

#[cfg(test)]
#[path = "startup_tests.rs"]
mod tests;
