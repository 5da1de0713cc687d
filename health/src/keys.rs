//! Patroni's keys in etcd, parsed once, at the edge.
//!
//! Owns the forms that Patroni 3.0 to 4.1 writes under `/<namespace>/<scope>/` (`patroni/dcs/__init__.py`). Parsing is
//! lenient where versions differ: unknown fields are ignored, missing ones have defaults, and a value that makes no
//! sense is left out with a warning instead of taking the cluster down. Values are bounded in size.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use switchyard_core::lsn::{Lsn, Timeline};
use tracing::warn;

/// A member's value, at most. Patroni writes about 500 bytes.
pub(crate) const MEMBER_BYTES_MAX: usize = 64 * 1024;
/// Any other value, at most: `history` grows by one line for each promotion.
const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Timelines kept of `history`; older forks matter to nobody who streams.
pub(crate) const FORKS_MAX: usize = 1024;
/// Weight of a member without the tag `weight`.
pub(crate) const WEIGHT_DEFAULT: u32 = 100;
const WEIGHT_MAX: u64 = 10_000;

/// Which of Patroni's keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    Leader,
    Member(Arc<str>),
    Config,
    History,
    Failover,
    Sync,
    Initialize,
}

impl Slot {
    /// From what follows `/<namespace>/<scope>/`. `None`: a key that decides nothing here (`status`, `failsafe`, ...).
    pub(crate) fn parse(suffix: &str) -> Option<Slot> {
        Some(match suffix {
            "leader" => Slot::Leader,
            "config" => Slot::Config,
            "history" => Slot::History,
            "failover" => Slot::Failover,
            "sync" => Slot::Sync,
            "initialize" => Slot::Initialize,
            _ => {
                let name = suffix.strip_prefix("members/")?;
                if name.is_empty() || name.contains('/') {
                    return None;
                }
                Slot::Member(name.into())
            }
        })
    }
}

/// One key with its value, understood.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fact {
    Leader(LeaderKey),
    Member(Arc<str>, Announced),
    Config(ClusterConfig),
    History(Forks),
    Failover(FailoverKey),
    Sync(SyncKey),
    Initialize(Arc<str>),
}

impl Fact {
    /// `None`, with a warning, where the value makes no sense. `create_revision` and `lease` are etcd's for this key.
    pub(crate) fn parse(slot: &Slot, value: &[u8], create_revision: i64, lease: i64) -> Option<Fact> {
        let limit = if matches!(slot, Slot::Member(_)) { MEMBER_BYTES_MAX } else { VALUE_BYTES_MAX };
        if value.len() > limit {
            warn!(key = ?slot, bytes = value.len(), limit, "ignoring a value that is too large");
            return None;
        }
        let fact = Fact::understand(slot, value, create_revision, lease);
        if fact.is_none() {
            warn!(key = ?slot, "ignoring a value that makes no sense");
        }
        fact
    }

    fn understand(slot: &Slot, value: &[u8], create_revision: i64, lease: i64) -> Option<Fact> {
        let text = std::str::from_utf8(value).ok()?;
        Some(match slot {
            Slot::Leader if text.is_empty() => return None,
            Slot::Leader => Fact::Leader(LeaderKey { name: text.into(), create_revision, lease }),
            Slot::Member(name) => Fact::Member(name.clone(), Announced::parse(text)?),
            Slot::Config => Fact::Config(serde_json::from_str::<RawConfig>(text).ok()?.into()),
            Slot::History => Fact::History(forks_from_json(text)?),
            Slot::Failover => Fact::Failover(FailoverKey::parse(text)?),
            Slot::Sync => Fact::Sync(SyncKey::parse(text)),
            Slot::Initialize => Fact::Initialize(text.into()),
        })
    }

    pub(crate) fn slot(&self) -> Slot {
        match self {
            Fact::Leader(_) => Slot::Leader,
            Fact::Member(name, _) => Slot::Member(name.clone()),
            Fact::Config(_) => Slot::Config,
            Fact::History(_) => Slot::History,
            Fact::Failover(_) => Slot::Failover,
            Fact::Sync(_) => Slot::Sync,
            Fact::Initialize(_) => Slot::Initialize,
        }
    }
}

/// The leader key. Its create revision tells one life of the key from the next, also where its deletion went unseen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaderKey {
    pub(crate) name: Arc<str>,
    pub(crate) create_revision: i64,
    /// 0: bound to no lease.
    pub(crate) lease: i64,
}

/// What a member says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
    pub(crate) api_url: Option<Arc<str>>,
    /// `running`, `streaming`, `starting`, `stopped`, ...
    pub(crate) state: Arc<str>,
    pub(crate) no_load_balance: bool,
    pub(crate) weight: u32,
    pub(crate) zone: Option<Arc<str>>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct RawMember {
    conn_url: Option<String>,
    api_url: Option<String>,
    state: Option<String>,
    replication_state: Option<String>,
    tags: Option<Map<String, Value>>,
}

impl Announced {
    fn parse(text: &str) -> Option<Announced> {
        let raw: RawMember = serde_json::from_str(text).ok()?;
        let (host, port) = host_and_port(raw.conn_url.as_deref()?)?;
        let tags = raw.tags.unwrap_or_default();
        let state = raw.state.unwrap_or_default();
        let weight = tags.get("weight").and_then(number).map_or(WEIGHT_DEFAULT, |weight| weight.min(WEIGHT_MAX) as u32);
        Some(Announced {
            host: host.into(),
            port,
            api_url: raw.api_url.filter(|url| !url.is_empty()).map(Into::into),
            // Patroni 3 and later say `running`, and how it replicates beside it.
            state: match (state.as_str(), raw.replication_state) {
                ("running", Some(how)) if !how.is_empty() => how.into(),
                _ => state.into(),
            },
            no_load_balance: tags.get("noloadbalance").is_some_and(truth) || weight == 0,
            weight,
            zone: tags.get("zone").and_then(Value::as_str).filter(|zone| !zone.is_empty()).map(Into::into),
        })
    }

    /// A member of the configuration's list, about which nothing but its address is known.
    pub(crate) fn of_static(host: &str, port: u16) -> Announced {
        Announced {
            host: host.into(),
            port,
            api_url: None,
            state: "running".into(),
            no_load_balance: false,
            weight: WEIGHT_DEFAULT,
            zone: None,
        }
    }

    /// Whether Patroni says that its PostgreSQL can be used. A word that isn't known doesn't take a member out: the
    /// probe decides.
    pub(crate) fn runs(&self) -> bool {
        const DOWN: &[&str] = &[
            "stopped",
            "stopping",
            "starting",
            "restarting",
            "crashed",
            "stop failed",
            "start failed",
            "restart failed",
            "creating replica",
            "initializing new cluster",
            "running custom bootstrap script",
            "initdb failed",
            "custom bootstrap failed",
        ];
        !DOWN.iter().any(|down| self.state.starts_with(down))
    }
}

/// The parts of Patroni's dynamic configuration that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterConfig {
    pub(crate) ttl: Duration,
    pub(crate) loop_wait: Duration,
    pub(crate) retry_timeout: Duration,
    pub(crate) standby_cluster: bool,
}

impl Default for ClusterConfig {
    /// Patroni's own defaults (`patroni/config.py`).
    fn default() -> ClusterConfig {
        ClusterConfig {
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            retry_timeout: Duration::from_secs(10),
            standby_cluster: false,
        }
    }
}

impl ClusterConfig {
    /// What a leader lease has left, at least, while Patroni renews it as it should, for when etcd won't tell: it is
    /// renewed in each loop, which takes `loop_wait`, and up to `retry_timeout` more.
    pub(crate) fn lease_left(&self) -> Duration {
        self.ttl.saturating_sub(self.loop_wait + self.retry_timeout).max(Duration::from_secs(3)).min(self.ttl)
    }
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct RawConfig {
    ttl: Value,
    loop_wait: Value,
    retry_timeout: Value,
    standby_cluster: Value,
}

impl From<RawConfig> for ClusterConfig {
    fn from(raw: RawConfig) -> ClusterConfig {
        let default = ClusterConfig::default();
        let seconds = |value: &Value, default: Duration| number(value).map_or(default, |n| Duration::from_secs(n.clamp(1, 86_400)));
        ClusterConfig {
            ttl: seconds(&raw.ttl, default.ttl),
            loop_wait: seconds(&raw.loop_wait, default.loop_wait),
            retry_timeout: seconds(&raw.retry_timeout, default.retry_timeout),
            standby_cluster: raw.standby_cluster.as_object().is_some_and(|section| !section.is_empty()),
        }
    }
}

/// A timeline's history: each earlier timeline with the position where it was left, oldest first.
pub(crate) type Forks = Arc<[(Timeline, Lsn)]>;

/// Patroni's `history`: `[[1, 67109024, "no recovery target specified", "2023-...", "name"], ...]`.
fn forks_from_json(text: &str) -> Option<Forks> {
    let lines: Vec<Value> = serde_json::from_str(text).ok()?;
    let skip = lines.len().saturating_sub(FORKS_MAX);
    lines
        .iter()
        .skip(skip)
        .map(|line| {
            let timeline = u32::try_from(line.get(0)?.as_u64()?).ok()?;
            Some((Timeline(timeline), Lsn(line.get(1)?.as_u64()?)))
        })
        .collect()
}

/// A timeline history file as PostgreSQL writes it (`src/backend/access/transam/timeline.c`, `readTimeLineHistory`).
pub(crate) fn forks_from_file(text: &str) -> Forks {
    let mut forks: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let timeline = fields.next()?.parse().ok()?;
            Some((Timeline(timeline), fields.next()?.parse().ok()?))
        })
        .collect();
    forks.drain(..forks.len().saturating_sub(FORKS_MAX));
    forks.into()
}

/// A switchover or failover that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FailoverKey {
    /// The leader it is meant for; empty: any.
    pub(crate) leader: String,
    pub(crate) candidate: String,
    /// Seconds since 1970; `None`: at once.
    pub(crate) scheduled_at: Option<f64>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct RawFailover {
    leader: Option<String>,
    member: Option<String>,
    candidate: Option<String>,
    scheduled_at: Option<String>,
}

impl FailoverKey {
    fn parse(text: &str) -> Option<FailoverKey> {
        let Ok(raw) = serde_json::from_str::<RawFailover>(text) else {
            // The form of old versions: `leader:candidate`.
            let (leader, candidate) = text.split_once(':')?;
            return Some(FailoverKey { leader: leader.trim().to_owned(), candidate: candidate.trim().to_owned(), scheduled_at: None });
        };
        Some(FailoverKey {
            leader: raw.leader.unwrap_or_default(),
            candidate: raw.member.or(raw.candidate).unwrap_or_default(),
            // A time that can't be read isn't "at once": writes would be held for nothing.
            scheduled_at: raw.scheduled_at.filter(|at| !at.is_empty()).map(|at| unix_seconds(&at).unwrap_or(f64::INFINITY)),
        })
    }

    /// Nothing is asked for: so a new leader leaves the key that it has followed (`Failover.__len__` in Patroni's `dcs/__init__.py`).
    pub(crate) fn is_empty(&self) -> bool {
        self.leader.is_empty() && self.candidate.is_empty()
    }
}

/// The `sync` key: whose flush the leader's commits wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SyncKey {
    /// Whose commits.
    pub(crate) leader: String,
    pub(crate) standbys: Vec<String>,
    /// Of so many of the standbys at least one has flushed every commit. With `synchronous_mode: quorum` one more than the key's `quorum`, which is
    /// how many others a candidate must see; else each has flushed all.
    pub(crate) enough: usize,
}

impl SyncKey {
    fn parse(text: &str) -> SyncKey {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let text = |key| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let standbys = text("sync_standby").split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let quorum = value.get("quorum").and_then(number).and_then(|quorum| usize::try_from(quorum).ok()).unwrap_or(0);
        SyncKey { leader: text("leader").to_owned(), standbys, enough: quorum.saturating_add(1) }
    }
}

/// A tag's truth: YAML gives booleans, environment variables give text.
fn truth(value: &Value) -> bool {
    match value {
        Value::Bool(yes) => *yes,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1"),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(n) => n.as_u64().or_else(|| n.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64)),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Host and port of `postgres://[user[:password]@]host[:port]/...`; an IPv6 address stands in brackets.
pub(crate) fn host_and_port(url: &str) -> Option<(Cow<'_, str>, u16)> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"))?;
    let authority = rest.split(['/', '?']).next()?;
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    let (host, port) = match place.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => 5432,
    };
    (!host.is_empty() && host.len() <= 255).then(|| (host.into(), port))
}

/// ISO 8601 as Python's `isoformat` writes it: `2026-01-31T12:00:00[.ffffff](+HH:MM|Z)`. Without a zone: UTC.
fn unix_seconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let (date, time) = text.split_once(['T', ' '])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (clock, offset) = match time.find(['+', '-', 'Z']) {
        Some(at) => time.split_at(at),
        None => (time, "Z"),
    };
    let mut clock = clock.splitn(3, ':');
    let (hour, minute) = (clock.next()?.parse::<i64>().ok()?, clock.next()?.parse::<i64>().ok()?);
    let second: f64 = clock.next().map_or(Some(0.0), |second| second.parse().ok())?;
    let offset_minutes = match offset.split_at_checked(1)? {
        ("Z", _) => 0,
        (sign, digits) => {
            let (hours, minutes) = digits.split_once(':').or_else(|| digits.split_at_checked(2))?;
            let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().unwrap_or(0);
            if sign == "-" { -minutes } else { minutes }
        }
    };
    // Days since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let era = y / 400;
    let of_era = y - era * 400;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + (153 * m + 2) / 5 + day - 1;
    let days = era * 146_097 + day_of_era - 719_468;
    Some((days * 86_400 + hour * 3_600 + (minute - offset_minutes) * 60) as f64 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(json: &str) -> Option<Announced> {
        Announced::parse(json)
    }

    #[test]
    fn members_of_several_versions() {
        let old = member(r#"{"conn_url":"postgres://10.0.0.1:5433/postgres","api_url":"http://10.0.0.1:8008/patroni","state":"running","role":"replica","version":"3.0.2","xlog_location":67108864,"timeline":1}"#).expect("old form");
        assert_eq!((&*old.host, old.port, &*old.state, old.no_load_balance), ("10.0.0.1", 5433, "running", false));
        let new = member(r#"{"conn_url":"postgres://u:p@[::1]/postgres","state":"running","replication_state":"streaming","role":"primary","tags":{"noloadbalance":"true","zone":"a","weight":"7","nofailover":null},"pending_restart_reason":{"a":{}}}"#).expect("new form");
        assert_eq!((&*new.host, new.port, &*new.state), ("::1", 5432, "streaming"));
        assert!(new.no_load_balance && new.runs() && new.api_url.is_none());
        assert_eq!((new.weight, new.zone.as_deref()), (7, Some("a")));
        assert!(!member(r#"{"conn_url":"postgres://a/","state":"stopped"}"#).expect("stopped").runs());
        for bad in
            ["", "[]", "{}", r#"{"conn_url":"http://a:1"}"#, r#"{"conn_url":"postgres://:1"}"#, r#"{"conn_url":"postgres://a:99999"}"#]
        {
            assert_eq!(member(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_oversized_member_is_ignored() {
        let mut json = br#"{"conn_url":"postgres://a:1/","state":"running"}"#.to_vec();
        let slot = Slot::Member("a".into());
        assert!(Fact::parse(&slot, &json, 1, 0).is_some());
        json.resize(MEMBER_BYTES_MAX + 1, b' ');
        assert_eq!(Fact::parse(&slot, &json, 1, 0), None);
    }

    #[test]
    fn slots() {
        assert_eq!(Slot::parse("leader"), Some(Slot::Leader));
        assert_eq!(Slot::parse("members/a"), Some(Slot::Member("a".into())));
        for other in ["members/", "members/a/b", "status", "leader/x", ""] {
            assert_eq!(Slot::parse(other), None, "{other}");
        }
    }

    #[test]
    fn configs() {
        let config = |json: &str| ClusterConfig::from(serde_json::from_str::<RawConfig>(json).expect("JSON"));
        assert_eq!(config("{}"), ClusterConfig::default());
        assert_eq!(config(r#"{"ttl":"20","loop_wait":5.0,"retry_timeout":5}"#).lease_left(), Duration::from_secs(10));
        assert!(config(r#"{"standby_cluster":{"host":"h"}}"#).standby_cluster);
        assert!(!config(r#"{"standby_cluster":null}"#).standby_cluster);
    }

    #[test]
    fn failover_requests() {
        let parse = |text: &str| FailoverKey::parse(text).expect("a request");
        assert_eq!(parse(r#"{"leader":"a","member":"b"}"#), FailoverKey { leader: "a".into(), candidate: "b".into(), scheduled_at: None });
        assert_eq!(parse("a:b").candidate, "b");
        assert!(!parse(r#"{"member":"b"}"#).is_empty() && !parse(r#"{"leader":"a"}"#).is_empty());
        assert!(parse("{}").is_empty());
        assert_eq!(parse(r#"{"scheduled_at":"2026-01-31T12:00:00+01:00"}"#).scheduled_at, Some(1_769_857_200.0));
        assert_eq!(parse(r#"{"scheduled_at":"soon"}"#).scheduled_at, Some(f64::INFINITY));
    }

    #[test]
    fn times() {
        assert_eq!(unix_seconds("1970-01-01T00:00:00Z"), Some(0.0));
        assert_eq!(unix_seconds("2024-02-29 23:59:59.5"), Some(1_709_251_199.5));
        assert_eq!(unix_seconds("2024-02-29T23:59:59-0130"), Some(1_709_256_599.0));
        for bad in ["", "2024", "2024-13-01T00:00:00Z", "x-1-1T0:0", "2024-01-01T", "2024-01-01T1:1+é"] {
            assert_eq!(unix_seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn histories() {
        let expected: Forks = [(Timeline(1), Lsn(0x0500_0000)), (Timeline(2), Lsn(0x1_0000_0060))].into();
        let json = r#"[[1,83886080,"no recovery target specified","2023-01-01T00:00:00+00:00","a"],[2,4294967392,"x"]]"#;
        assert_eq!(forks_from_json(json), Some(expected.clone()));
        assert_eq!(forks_from_file("1\t0/5000000\tno recovery target specified\n\n2\t1/60\tbefore 2000\n"), expected);
        assert_eq!(forks_from_json("[]"), Some([].into()));
        assert_eq!(forks_from_json("{}"), None);
    }
}
