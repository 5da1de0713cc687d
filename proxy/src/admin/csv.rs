//! HAProxy's CSV, for tools that scrape HAProxy.
//!
//! Source: the header line that HAProxy 2.6.12 prints, and section 9.1 "CSV format" of its Management Guide. A field that means nothing
//! here stays empty, as HAProxy's do for the kinds of rows that don't have them.

use super::snapshot::{MemberView, Port, Snapshot};

/// HAProxy 2.6's columns, in its order.
pub(super) const HEADER: &str = include_str!("haproxy-2.6-header.csv");

/// The proxy name of the rows of members.
const BACKEND: &str = "members";

struct Row {
    cells: Vec<String>,
}

impl Row {
    fn new() -> Row {
        Row {
            cells: vec![String::new(); columns().count()],
        }
    }

    fn with(mut self, column: &str, value: impl ToString) -> Row {
        let at = columns().position(|name| name == column);
        if let Some(cell) = at.and_then(|at| self.cells.get_mut(at)) {
            *cell = value.to_string();
        }
        self
    }

    fn maybe(self, column: &str, value: Option<impl ToString>) -> Row {
        match value {
            Some(value) => self.with(column, value),
            None => self,
        }
    }

    fn write(&self, out: &mut String) {
        for cell in &self.cells {
            push_quoted(out, cell);
            out.push(',');
        }
        out.push('\n');
    }
}

fn columns() -> impl Iterator<Item = &'static str> {
    HEADER.trim_start_matches("# ").trim_end().trim_end_matches(',').split(',')
}

/// As HAProxy's `csv_enc`: quotes only where they are needed, and doubles those within.
fn push_quoted(out: &mut String, cell: &str) {
    if !cell.contains([',', '"', '\n', '\r']) {
        return out.push_str(cell);
    }
    out.push('"');
    for character in cell.chars() {
        match character {
            '"' => out.push_str("\"\""),
            '\n' | '\r' => out.push(' '),
            other => out.push(other),
        }
    }
    out.push('"');
}

/// Two frontends, a server for each member, and the backend that holds them.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let mut out = String::with_capacity(4096);
    out.push_str(HEADER.trim_end());
    out.push('\n');
    for (index, port) in snapshot.ports.iter().enumerate() {
        frontend(snapshot, port, index + 1).write(&mut out);
    }
    let iid = snapshot.ports.len() + 1;
    for (index, member) in snapshot.members.iter().enumerate() {
        server(member, iid, index + 1).write(&mut out);
    }
    backend(snapshot, iid).write(&mut out);
    out
}

fn frontend(snapshot: &Snapshot, port: &Port, iid: usize) -> Row {
    Row::new()
        .with("pxname", port.name)
        .with("svname", "FRONTEND")
        .with("scur", port.clients)
        .with("smax", port.clients_highest)
        .with("slim", snapshot.settings.max_clients)
        .with("stot", port.clients_total)
        .with("bin", port.bytes_in)
        .with("bout", port.bytes_out)
        .with("dreq", 0)
        .with("dresp", 0)
        .with("ereq", port.logins_failed)
        .with("status", if snapshot.draining { "STOP" } else { "OPEN" })
        .with("pid", 1)
        .with("iid", iid)
        .with("sid", 0)
        .with("type", 0)
        .with("mode", "tcp")
        .with("req_tot", port.queries)
        .with("eresp", port.errors)
        .with("conn_tot", port.clients_total)
        .with("addr", port.addresses.first().map_or("", String::as_str))
}

fn server(member: &MemberView, iid: usize, sid: usize) -> Row {
    // NOLB is HAProxy's word for "up, but gets no new load".
    let status = match (member.status, member.out) {
        ("leader" | "serving" | "unconfirmed", _) => "UP",
        ("out", Some("drained")) => "DRAIN",
        ("out", Some("lagging" | "noloadbalance")) => "NOLB",
        ("gone", _) => "MAINT",
        _ => "DOWN",
    };
    let (check, description) = match (&member.check.error, member.check.age_seconds) {
        (Some(_), _) => ("L7RSP", "probe failed"),
        (None, None) => ("INI", "not probed yet"),
        (None, Some(_)) => ("L7OK", "probe succeeded"),
    };
    let milliseconds = |seconds: f64| (seconds * 1e3).round();
    Row::new()
        .with("pxname", BACKEND)
        .with("svname", &member.name)
        .with("qcur", member.waiting)
        .with("scur", member.connections)
        .with("smax", member.connections_highest)
        .with("stot", member.connections_total)
        // As HAProxy sees it: in is from clients to servers.
        .with("bin", member.bytes_out)
        .with("bout", member.bytes_in)
        .with("dresp", 0)
        .with("econ", member.connect_errors)
        .with("eresp", member.errors)
        .with("status", status)
        .with("weight", member.weight)
        .with("act", 1)
        .with("bck", 0)
        .maybe("lastchg", member.since_seconds.map(|seconds| seconds as u64))
        .with("pid", 1)
        .with("iid", iid)
        .with("sid", sid)
        .with("lbtot", member.reads + member.writes)
        .with("type", 2)
        .maybe("rate", member.rates.map(|rates| (rates.reads + rates.writes).round()))
        .with("check_status", check)
        .maybe("check_duration", member.check.round_trip_seconds.map(milliseconds))
        .with("req_tot", member.reads + member.writes)
        .with("last_chk", member.check.error.as_deref().unwrap_or_default())
        .maybe("rtime", member.response_seconds.map(milliseconds))
        .with("check_desc", description)
        .with(
            "addr",
            if member.port == 0 {
                String::new()
            } else {
                format!("{}:{}", member.host, member.port)
            },
        )
        .with("cookie", member.role)
        .with("mode", "tcp")
        .with("used_conn_cur", member.in_use)
        .with("idle_conn_cur", member.connections - member.in_use)
}

fn backend(snapshot: &Snapshot, iid: usize) -> Row {
    let sum = |field: fn(&MemberView) -> u64| snapshot.members.iter().map(field).sum::<u64>();
    let up = snapshot.members.iter().filter(|m| matches!(m.status, "leader" | "serving")).count();
    Row::new()
        .with("pxname", BACKEND)
        .with("svname", "BACKEND")
        .with("qcur", snapshot.held.now + snapshot.members.iter().map(|m| m.waiting).sum::<i64>())
        .with("scur", snapshot.members.iter().map(|m| m.connections).sum::<i64>())
        .with("stot", sum(|m| m.connections_total))
        .with("bin", sum(|m| m.bytes_out))
        .with("bout", sum(|m| m.bytes_in))
        .with("dreq", 0)
        .with("dresp", 0)
        .with("econ", sum(|m| m.connect_errors))
        .with("eresp", sum(|m| m.errors))
        .with("wredis", snapshot.reruns.values().sum::<u64>())
        .with("status", if up > 0 { "UP" } else { "DOWN" })
        .with("act", up)
        .with("bck", 0)
        .maybe("lastchg", snapshot.cluster.state_seconds.map(|seconds| seconds as u64))
        .with("pid", 1)
        .with("iid", iid)
        .with("sid", 0)
        .with("lbtot", sum(|m| m.reads) + sum(|m| m.writes))
        .with("type", 1)
        .with("mode", "tcp")
        .with("algo", "p2c")
        .with("req_tot", sum(|m| m.reads) + sum(|m| m.writes))
}
