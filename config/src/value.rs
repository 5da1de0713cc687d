//! The kinds of single values that the file and the environment may hold, from text or number to something with a unit.
//!
//! Units are PostgreSQL's (`src/backend/utils/misc/guc.c`): `us`, `ms`, `s`, `min`, `h`, `d` for time; `B`, `kB`, `MB`, `GB`, `TB` for
//! memory, in powers of 1024.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::model::{AddressMatch, AuthMethod, Consistency, LogFormat, Pattern, PoolMode, RuleRoute, Secret, ServerAuthMethod, SslMode};
use crate::problem::nearest;

/// A TOML value that isn't a list or a table; the environment has only `Text`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Given<'a> {
    Text(&'a str),
    Integer(i128),
    Float(f64),
    Boolean(bool),
}

impl Given<'_> {
    /// For messages. Long values are cut: a message is one line.
    pub(crate) fn describe(&self) -> String {
        const SHOWN: usize = 60;
        match self {
            Given::Text(text) if text.chars().count() > SHOWN => format!("{:?}...", text.chars().take(SHOWN).collect::<String>()),
            Given::Text(text) => format!("{text:?}"),
            Given::Integer(number) => format!("the number {number}"),
            Given::Float(_) => "a float".to_owned(),
            Given::Boolean(value) => format!("{value}"),
        }
    }
}

/// Why a value was refused, beyond not being what was expected.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    pub(crate) hint: Option<String>,
}

impl Refused {
    fn because(hint: impl Into<String>) -> Refused {
        Refused { hint: Some(hint.into()) }
    }
}

/// A kind of value.
pub(crate) trait Kind: Sized {
    /// Completes "expected ...".
    const EXPECTED: &'static str;
    /// Whether a refused value may be shown.
    const SHOWN: bool = true;

    fn read(given: Given<'_>) -> Result<Self, Refused>;
}

/// A string that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) String);

impl Kind for Text {
    const EXPECTED: &'static str = "a string that isn't empty";

    fn read(given: Given<'_>) -> Result<Text, Refused> {
        match given {
            Given::Text(text) if text.contains('\0') => Err(Refused::because("it may not contain a zero byte")),
            Given::Text(text) if !text.is_empty() => Ok(Text(text.to_owned())),
            _ => Err(Refused::default()),
        }
    }
}

impl Kind for Secret {
    const EXPECTED: &'static str = "a string that isn't empty";
    const SHOWN: bool = false;

    fn read(given: Given<'_>) -> Result<Secret, Refused> {
        Text::read(given).map(|text| Secret::new(text.0))
    }
}

/// A statement's fingerprint as EXPLAIN (ROUTE) and the page show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FingerprintText(pub(crate) u128);

impl Kind for FingerprintText {
    const EXPECTED: &'static str = "a fingerprint of 32 hexadecimal digits, as EXPLAIN (ROUTE) shows it";

    fn read(given: Given<'_>) -> Result<FingerprintText, Refused> {
        match given {
            Given::Text(text) if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u128::from_str_radix(text, 16).map(FingerprintText).map_err(|_| Refused::default())
            }
            _ => Err(Refused::default()),
        }
    }
}

/// A compiled expression, at most, in bytes.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;

impl Kind for Pattern {
    const EXPECTED: &'static str = "a regular expression";

    fn read(given: Given<'_>) -> Result<Pattern, Refused> {
        let Given::Text(text) = given else { return Err(Refused::default()) };
        if text.is_empty() {
            return Err(Refused::because("it is empty, and would match everything: leave the key out"));
        }
        let compiled = regex::bytes::RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
        compiled.map(Pattern).map_err(|error| {
            // The last line says what is wrong; those before it show where.
            let text = error.to_string();
            Refused::because(text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
        })
    }
}

impl Kind for PathBuf {
    const EXPECTED: &'static str = "a path";

    fn read(given: Given<'_>) -> Result<PathBuf, Refused> {
        Text::read(given).map(|text| PathBuf::from(text.0))
    }
}

impl Kind for bool {
    const EXPECTED: &'static str = "true or false";

    fn read(given: Given<'_>) -> Result<bool, Refused> {
        match given {
            Given::Boolean(value) => Ok(value),
            Given::Text("true" | "false" | "on" | "off" | "yes" | "no") => Err(Refused::because("without quotes, as true or false")),
            _ => Err(Refused::default()),
        }
    }
}

/// How many.
impl Kind for usize {
    const EXPECTED: &'static str = "a whole number";

    fn read(given: Given<'_>) -> Result<usize, Refused> {
        match given {
            Given::Integer(number) => usize::try_from(number).map_err(|_| Refused::default()),
            Given::Text(text) if text.parse::<usize>().is_ok() => Err(Refused::because("without quotes")),
            _ => Err(Refused::default()),
        }
    }
}

/// A part of a whole. Its limits are the key's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Share(pub(crate) f64);

impl Kind for Share {
    const EXPECTED: &'static str = "a number such as 0.5";

    fn read(given: Given<'_>) -> Result<Share, Refused> {
        match given {
            Given::Float(number) => Ok(Share(number)),
            Given::Integer(number @ 0..=1) => Ok(Share(if number == 1 { 1.0 } else { 0.0 })),
            Given::Text(text) if text.parse::<f64>().is_ok() => Err(Refused::because("without quotes")),
            Given::Text(_) | Given::Integer(_) | Given::Boolean(_) => Err(Refused::default()),
        }
    }
}

impl Kind for u16 {
    const EXPECTED: &'static str = "a port from 1 to 65535";

    fn read(given: Given<'_>) -> Result<u16, Refused> {
        match given {
            Given::Integer(number) => u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(Refused::default),
            _ => Err(Refused::default()),
        }
    }
}

/// How long. A plain number counts milliseconds.
impl Kind for Duration {
    const EXPECTED: &'static str = "a time such as \"250ms\", \"5s\", \"10min\" or \"1h\" (a plain number counts milliseconds)";

    fn read(given: Given<'_>) -> Result<Duration, Refused> {
        match given {
            Given::Integer(number) => u64::try_from(number).map(Duration::from_millis).map_err(|_| Refused::default()),
            Given::Text(text) => {
                let (number, unit) = split_unit(text)?;
                let seconds = match unit {
                    "us" => 1e-6,
                    "ms" => 1e-3,
                    "s" => 1.0,
                    "min" => 60.0,
                    "h" => 3600.0,
                    "d" => 86400.0,
                    "" => return Err(Refused::because("its unit is missing")),
                    "m" => return Err(Refused::because("minutes are \"min\", as in PostgreSQL")),
                    _ => return Err(Refused::because("units are us, ms, s, min, h and d, as in PostgreSQL")),
                };
                Duration::try_from_secs_f64(number * seconds).map_err(|_| Refused::because("it is too long"))
            }
            Given::Float(_) | Given::Boolean(_) => Err(Refused::default()),
        }
    }
}

/// A time, or the word `none` for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeOrNone(pub(crate) Option<Duration>);

impl Kind for TimeOrNone {
    const EXPECTED: &'static str = "a time such as \"250ms\" or \"5s\" (a plain number counts milliseconds), or \"none\"";

    fn read(given: Given<'_>) -> Result<TimeOrNone, Refused> {
        match given {
            Given::Text("none") => Ok(TimeOrNone(None)),
            _ => Duration::read(given).map(|time| TimeOrNone(Some(time))),
        }
    }
}

/// How much, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl Kind for Size {
    const EXPECTED: &'static str = "a size such as \"64kB\", \"16MB\" or \"1GB\" (a plain number counts bytes)";

    fn read(given: Given<'_>) -> Result<Size, Refused> {
        match given {
            Given::Integer(number) => u64::try_from(number).map(Size).map_err(|_| Refused::default()),
            Given::Text(text) => {
                let (number, unit) = split_unit(text)?;
                let bytes: u64 = match unit {
                    "B" => 1,
                    "kB" | "KB" | "KiB" => 1 << 10,
                    "MB" | "MiB" => 1 << 20,
                    "GB" | "GiB" => 1 << 30,
                    "TB" | "TiB" => 1 << 40,
                    "" => return Err(Refused::because("its unit is missing")),
                    _ => return Err(Refused::because("units are B, kB, MB, GB and TB, in powers of 1024, as in PostgreSQL")),
                };
                let product = number * bytes as f64;
                // 2^53: beyond it a float no longer holds every whole number.
                if product > 9_007_199_254_740_992.0 {
                    return Err(Refused::because("it is too large"));
                }
                Ok(Size(product as u64))
            }
            Given::Float(_) | Given::Boolean(_) => Err(Refused::default()),
        }
    }
}

/// `1.5min` → (1.5, `min`).
fn split_unit(text: &str) -> Result<(f64, &str), Refused> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| Refused::default())?;
    Ok((number, unit.trim_start()))
}

/// Where to listen: `host:port` with an IP address, `:port` for every address, or the port alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) SocketAddr);

impl Kind for Address {
    const EXPECTED: &'static str = "an address such as \":15000\", \"127.0.0.1:15000\" or \"[::1]:15000\"";

    fn read(given: Given<'_>) -> Result<Address, Refused> {
        let text = match given {
            Given::Integer(number) => {
                let port = u16::try_from(number).map_err(|_| Refused::because("ports end at 65535"))?;
                return Ok(Address(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)));
            }
            Given::Text(text) => text.trim(),
            Given::Float(_) | Given::Boolean(_) => return Err(Refused::default()),
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| Refused::because("its port is missing"))?;
        let port: u16 = port.parse().map_err(|_| Refused::because("its port isn't a number from 0 to 65535"))?;
        let ip: IpAddr = match host {
            "" | "*" => Ipv6Addr::UNSPECIFIED.into(),
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            _ => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                Some(v6) => v6.parse::<Ipv6Addr>().map(IpAddr::V6),
                None => host.parse::<Ipv4Addr>().map(IpAddr::V4),
            }
            .map_err(|_| Refused::because("names aren't looked up here: give an IP address, an IPv6 one in brackets"))?,
        };
        Ok(Address(SocketAddr::new(ip, port)))
    }
}

/// An etcd endpoint: `http://host:port`, `https://host:port`, or `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `None`: decided by whether TLS files are given.
    pub(crate) tls: Option<bool>,
    /// `host:port`.
    pub(crate) authority: String,
}

/// etcd's registered client port, where an endpoint names none.
const ETCD_PORT: u16 = 2379;

impl Kind for Endpoint {
    const EXPECTED: &'static str = "an etcd endpoint such as \"http://10.0.0.1:2379\"";

    fn read(given: Given<'_>) -> Result<Endpoint, Refused> {
        let Given::Text(text) = given else {
            return Err(Refused::default());
        };
        let (tls, rest) = match text.trim().split_once("://") {
            Some(("http", rest)) => (Some(false), rest),
            Some(("https", rest)) => (Some(true), rest),
            Some(_) => return Err(Refused::because("its scheme must be http or https")),
            None => (None, text.trim()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err(Refused::because("user and password go into etcd.username and etcd.password"));
        }
        if rest.contains(['/', '?', '#']) {
            return Err(Refused::because("it may not have a path"));
        }
        let (host, port) = split_host(rest).ok_or_else(|| Refused::because("its host or port can't be read"))?;
        Ok(Endpoint { tls, authority: format!("{host}:{}", port.unwrap_or(ETCD_PORT)) })
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`. The host keeps its brackets.
fn split_host(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let close = rest.find(']')?;
            rest[..close].parse::<Ipv6Addr>().ok()?;
            let (host, port) = text.split_at(close + 2);
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let named = !host.is_empty() && (host.starts_with('[') || host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)));
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|port: &u16| *port > 0)?),
        None => None,
    };
    named.then_some((host, port))
}

impl Kind for AddressMatch {
    const EXPECTED: &'static str = "\"all\", \"local\" (Unix sockets), or a network such as \"10.0.0.0/8\"";

    fn read(given: Given<'_>) -> Result<AddressMatch, Refused> {
        let text = match given {
            Given::Text("all") => return Ok(AddressMatch::All),
            Given::Text("local") => return Ok(AddressMatch::Local),
            Given::Text(text) => text,
            Given::Integer(_) | Given::Float(_) | Given::Boolean(_) => return Err(Refused::default()),
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| match nearest(text, ["all", "local"]) {
            Some(word) => Refused::because(format!("did you mean {word:?}?")),
            None => Refused::default(),
        })?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let bits: u8 = match bits {
            None => longest,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= longest)
                .ok_or_else(|| Refused::because(format!("its mask must be a number from 0 to {longest}")))?,
        };
        let network = masked(address, bits);
        if network != address {
            return Err(Refused::because(format!("bits to the right of the mask must be zero, as in \"{network}/{bits}\"")));
        }
        Ok(AddressMatch::Cidr { address, bits })
    }
}

/// The address with everything to the right of the first `bits` bits zero.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) & u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)).into()),
    }
}

/// Reads one of a few words.
fn word<T: Copy>(given: Given<'_>, words: &[(&'static str, T)]) -> Result<T, Refused> {
    let Given::Text(text) = given else {
        return Err(Refused::default());
    };
    match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => match nearest(text, words.iter().map(|(word, _)| *word)) {
            Some(word) => Err(Refused::because(format!("did you mean {word:?}?"))),
            None => Err(Refused::default()),
        },
    }
}

macro_rules! words {
    ($kind:ty, $expected:literal, $($word:literal => $value:expr),+ $(,)?) => {
        impl Kind for $kind {
            const EXPECTED: &'static str = $expected;

            fn read(given: Given<'_>) -> Result<$kind, Refused> {
                word(given, &[$(($word, $value)),+])
            }
        }
    };
}

words!(PoolMode, "\"transaction\" or \"session\"", "transaction" => PoolMode::Transaction, "session" => PoolMode::Session);
words!(
    Consistency, "\"eventual\", \"session\", \"global\" or \"strong\"",
    "eventual" => Consistency::Eventual,
    "session" => Consistency::Session,
    "global" => Consistency::Global,
    "strong" => Consistency::Strong,
);
words!(
    RuleRoute, "\"leader\", \"replica\" or \"reject\"",
    "leader" => RuleRoute::Leader,
    "replica" => RuleRoute::Replica,
    "reject" => RuleRoute::Reject,
);
words!(LogFormat, "\"text\" or \"json\"", "text" => LogFormat::Text, "json" => LogFormat::Json);
words!(ServerAuthMethod, "\"trust\" or \"cert\"", "trust" => ServerAuthMethod::Trust, "cert" => ServerAuthMethod::Cert);
words!(
    AuthMethod, "\"scram-sha-256\", \"md5\", \"trust\", \"cert\" or \"reject\"",
    "scram-sha-256" => AuthMethod::ScramSha256,
    "md5" => AuthMethod::Md5,
    "trust" => AuthMethod::Trust,
    "cert" => AuthMethod::Cert,
    "reject" => AuthMethod::Reject,
);
words!(
    SslMode, "\"disable\", \"prefer\", \"require\", \"verify-ca\" or \"verify-full\"",
    "disable" => SslMode::Disable,
    "prefer" => SslMode::Prefer,
    "require" => SslMode::Require,
    "verify-ca" => SslMode::VerifyCa,
    "verify-full" => SslMode::VerifyFull,
);

/// Where transactions that are READ ONLY run on the read/write port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadonlyTransactions {
    Replica,
    Leader,
}

words!(
    ReadonlyTransactions, "\"replica\" or \"leader\"",
    "replica" => ReadonlyTransactions::Replica,
    "leader" => ReadonlyTransactions::Leader,
);

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Option<Duration> {
        Duration::read(Given::Text(text)).ok()
    }

    #[test]
    fn times_have_postgresql_units() {
        assert_eq!(time("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(time("1.5 min"), Some(Duration::from_secs(90)));
        assert_eq!(time("100us"), Some(Duration::from_micros(100)));
        assert_eq!(time("2d"), Some(Duration::from_secs(172_800)));
        assert_eq!(Duration::read(Given::Integer(5)).ok(), Some(Duration::from_millis(5)));
        for bad in ["", "5", "5m", "s", "-5s", "5 s s", "1e9d", "..5s", "99999999999999999999999999d", "∞"] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        let size = |text| Size::read(Given::Text(text)).ok().map(|size| size.0);
        assert_eq!(size("16MB"), Some(16 << 20));
        assert_eq!(size("1.5kB"), Some(1536));
        assert_eq!(size("64 KiB"), Some(65536));
        assert_eq!(size("3B"), Some(3));
        for bad in ["", "16", "16mb", "MB", "-1MB", "99999999999TB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn listening_addresses() {
        let address = |text| Address::read(Given::Text(text)).ok().map(|address| address.0.to_string());
        assert_eq!(address(":15000").as_deref(), Some("[::]:15000"));
        assert_eq!(address("*:1").as_deref(), Some("[::]:1"));
        assert_eq!(address("localhost:1").as_deref(), Some("127.0.0.1:1"));
        assert_eq!(address("0.0.0.0:1").as_deref(), Some("0.0.0.0:1"));
        assert_eq!(address("[::1]:1").as_deref(), Some("[::1]:1"));
        for bad in ["", "15000", "::1:1", "example.org:1", "127.0.0.1", "127.0.0.1:", ":99999", "[127.0.0.1]:1", "[::1:1"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn etcd_endpoints() {
        let endpoint = |text| Endpoint::read(Given::Text(text)).ok().map(|e| (e.tls, e.authority));
        assert_eq!(endpoint("http://a:2379"), Some((Some(false), "a:2379".to_owned())));
        assert_eq!(endpoint("https://a-b.example/"), Some((Some(true), "a-b.example:2379".to_owned())));
        assert_eq!(endpoint("[::1]:1"), Some((None, "[::1]:1".to_owned())));
        assert_eq!(endpoint("[::1]"), Some((None, "[::1]:2379".to_owned())));
        for bad in ["", "http://", "ftp://a", "http://a/b", "http://u:p@a", "a:0", "a:b", "::1", "[::1", "[x]:1", "a b", "[::1]1"] {
            assert_eq!(endpoint(bad), None, "{bad}");
        }
    }

    #[test]
    fn networks() {
        let network = |text| AddressMatch::read(Given::Text(text)).ok();
        let cidr = |address: &str, bits| address.parse().ok().map(|address| AddressMatch::Cidr { address, bits });
        assert_eq!(network("10.0.0.0/8"), cidr("10.0.0.0", 8));
        assert_eq!(network("10.1.2.3"), cidr("10.1.2.3", 32));
        assert_eq!(network("0.0.0.0/0"), cidr("0.0.0.0", 0));
        assert_eq!(network("::/0"), cidr("::", 0));
        assert_eq!(network("fe80::/10"), cidr("fe80::", 10));
        for bad in ["", "everyone", "10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0/", "/8"] {
            assert_eq!(network(bad), None, "{bad}");
        }
    }
}
