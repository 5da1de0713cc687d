//! A small model of a PostgreSQL server connection: which messages it answers how, not what is in tables.
//!
//! It knows transactions, settings, prepared statements, portals, COPY and skipping to Sync. A row shows the statement's text and the
//! settings under which it ran, so that whatever leaks from another session is seen.

use std::collections::{BTreeMap, BTreeSet};

use super::text;
use crate::wire::frame;

type Values = BTreeMap<String, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    None,
    Open,
    Failed,
}

#[derive(Debug)]
pub(super) struct Server {
    replica: bool,
    startup: Values,
    pub(super) values: Values,
    local: Values,
    undo: Option<Values>,
    savepoints: Vec<(String, Values, Values)>,
    block: Block,
    read_only: bool,
    pub(super) prepared: BTreeMap<String, String>,
    /// Custom settings that were ever set.
    custom: BTreeSet<String>,
    portals: BTreeMap<String, (String, bool, Vec<Option<String>>)>,
    skipping: bool,
    /// Something has been executed since the last Sync (`XACT_FLAGS_PIPELINING`).
    pipelines: bool,
    /// COPY FROM STDIN: whether by the extended protocol.
    copy: Option<bool>,
    reported: String,
    pub(super) input: Vec<u8>,
}

type Failed = &'static str;

/// The RowDescription of every query: one column.
fn rows() -> Vec<u8> {
    text::server(&format!("T \0\x01column\0{}", "\x01".repeat(18)))
}

impl Server {
    pub(super) fn new(replica: bool, startup: &[(&str, &str)]) -> Server {
        let startup: Values = startup.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut server = Server {
            replica,
            values: startup.clone(),
            startup,
            local: Values::new(),
            undo: None,
            savepoints: Vec::new(),
            block: Block::None,
            read_only: false,
            prepared: BTreeMap::new(),
            custom: BTreeSet::new(),
            portals: BTreeMap::new(),
            skipping: false,
            pipelines: false,
            copy: None,
            reported: String::new(),
            input: Vec::new(),
        };
        server.reported = server.value("datestyle");
        server
    }

    pub(super) fn value(&self, name: &str) -> String {
        let placeholder = || if self.custom.contains(name) { String::new() } else { "none".to_owned() };
        self.local.get(name).or_else(|| self.values.get(name)).cloned().unwrap_or_else(placeholder)
    }

    /// Nothing is under way: another session may have it.
    pub(super) fn is_clean(&self) -> bool {
        self.block == Block::None && !self.skipping && self.copy.is_none() && self.input.is_empty() && self.undo.is_none()
    }

    /// It waits for the rest of a COPY's data.
    pub(super) fn is_copying(&self) -> bool {
        self.copy.is_some()
    }

    /// Takes what has come; the answers.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut unflushed = Vec::new();
        let mut out = self.receive_in(bytes, &mut unflushed);
        out.append(&mut unflushed);
        out
    }

    /// As [`Server::receive`]; answers that nothing has flushed stay in `unflushed`, as a server keeps them.
    pub(super) fn receive_in(&mut self, bytes: &[u8], unflushed: &mut Vec<u8>) -> Vec<u8> {
        self.input.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(header) = frame::header(&self.input).expect("the router sends whole messages") {
            if self.input.len() < header.total {
                break;
            }
            let message: Vec<u8> = self.input.drain(..header.total).collect();
            let (skipped, copied) = (self.skipping, self.copy.is_some());
            self.message(header.tag, &message[frame::HEADER..], unflushed);
            let fails = self.skipping && !skipped;
            let copies = self.copy.is_some() && !copied;
            let ready = unflushed.iter().rev().nth(5) == Some(&b'Z');
            if ready || fails || copies || header.tag == b'H' {
                out.append(unflushed);
            }
        }
        out
    }

    fn message(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) {
        let words: Vec<String> = body.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
        if let Some(extended) = self.copy {
            let failed = match tag {
                b'd' | b'S' | b'H' => return,
                b'c' => None,
                b'f' => Some("57014"),
                _ => Some("08P01"),
            };
            self.copy = None;
            match failed {
                None => out.extend(text::server("C COPY 1")),
                Some(code) => self.fails(code, extended, out),
            }
            if !extended {
                self.done(out);
            }
            return;
        }
        if tag == b'S' {
            self.skipping = false;
            return self.done(out);
        }
        if self.skipping {
            return;
        }
        match tag {
            b'Q' => self.query(&words[0], out),
            b'd' | b'c' | b'f' | b'H' => {}
            _ => {
                if let Err(code) = self.extended(tag, &words, body, out) {
                    self.fails(code, true, out);
                }
            }
        }
    }

    fn fails(&mut self, code: &str, extended: bool, out: &mut Vec<u8>) {
        out.extend(text::server(&format!("E {code} failed")));
        self.skipping = extended;
        self.portals.clear();
        match self.block {
            Block::None => {
                if let Some(undo) = self.undo.take() {
                    self.values = undo;
                }
                self.local.clear();
            }
            Block::Open | Block::Failed => self.block = Block::Failed,
        }
    }

    /// The end of a transaction that is no block, and ReadyForQuery.
    fn done(&mut self, out: &mut Vec<u8>) {
        if self.block == Block::None {
            self.end(true);
        }
        if self.block != Block::Failed && self.reported != self.value("datestyle") {
            self.reported = self.value("datestyle");
            out.extend(text::server(&format!("S DateStyle {}", self.reported)));
        }
        out.extend(text::server(match self.block {
            Block::None => "Z I",
            Block::Open => "Z T",
            Block::Failed => "Z E",
        }));
    }

    fn end(&mut self, commit: bool) {
        if let Some(undo) = self.undo.take()
            && !commit
        {
            self.values = undo;
        }
        self.local.clear();
        self.savepoints.clear();
        self.portals.clear();
        self.block = Block::None;
        self.read_only = false;
        self.pipelines = false;
    }

    fn query(&mut self, sql: &str, out: &mut Vec<u8>) {
        // It runs in the unnamed portal, which is gone then.
        self.portals.remove("");
        // "A simple Query message also destroys the unnamed statement."
        self.prepared.remove("");
        if text::looked_at(sql).is_some() {
            out.extend(text::server("T"));
            self.routers_own(sql, &[], out);
            return self.done(out);
        }
        let statements: Vec<&str> = sql.split(';').map(str::trim).filter(|statement| !statement.is_empty()).collect();
        if statements.is_empty() {
            out.extend(text::server("I"));
        }
        if statements.iter().any(|statement| statement.starts_with("selekt")) {
            self.fails("42601", false, out);
            return self.done(out);
        }
        for statement in statements {
            if (statement.starts_with("select") || statement.starts_with("show")) && self.block != Block::Failed {
                out.extend(rows());
            }
            if let Err(code) = self.run(statement, false, out) {
                self.fails(code, false, out);
                break;
            }
        }
        if self.copy.is_none() {
            self.done(out);
        }
    }

    fn extended(&mut self, tag: u8, words: &[String], body: &[u8], out: &mut Vec<u8>) -> Result<(), Failed> {
        self.undo.get_or_insert_with(|| self.values.clone());
        match tag {
            b'P' => {
                let (name, sql) = (&words[0], words[1].trim().trim_end_matches(';').trim());
                if name.is_empty() {
                    self.prepared.remove("");
                }
                if sql.starts_with("selekt") || sql.starts_with("refused") {
                    return Err("42601");
                }
                self.alive(sql)?;
                if self.prepared.contains_key(name) {
                    return Err("42P05");
                }
                self.prepared.insert(name.clone(), sql.to_owned());
                out.extend(text::server("1"));
            }
            b'B' => {
                let sql = self.prepared.get(&words[1]).cloned().ok_or("26000")?;
                self.alive(&sql)?;
                if !words[0].is_empty() && self.portals.contains_key(&words[0]) {
                    return Err("42P03");
                }
                self.portals.insert(words[0].clone(), (sql, false, text::bound(body)));
                out.extend(text::server("2"));
            }
            b'D' => {
                let name = &words[0][1..];
                let sql = if body[0] == b'S' {
                    let sql = self.prepared.get(name).ok_or("26000")?;
                    // PostgreSQL describes what has no rows even so; the router's replay of the statement fails here, too.
                    self.alive(sql)?;
                    out.extend(text::server("t"));
                    sql
                } else {
                    &self.portals.get(name).ok_or("34000")?.0
                };
                out.extend(if sql.starts_with("select") { rows() } else { text::server("n") });
            }
            b'E' => {
                let (sql, done, values) = self.portals.get_mut(&words[0]).ok_or("34000")?;
                let (sql, again, values) = (sql.clone(), std::mem::replace(done, true), values.clone());
                if sql.starts_with("SELECT pg_catalog.set_config($1, $2, false)") {
                    self.routers_own(&sql, &values, out);
                    return Ok(());
                }
                if again && sql.starts_with("select") {
                    out.extend(text::server("C SELECT 0"));
                } else if again {
                    return Err("55000");
                } else {
                    self.run(&sql, true, out)?;
                    let controls = ["begin", "commit", "rollback", "savepoint", "discard all"];
                    self.pipelines |= !controls.iter().any(|control| sql.starts_with(control));
                }
            }
            b'C' => {
                let name = words[0][1..].to_owned();
                if body[0] == b'S' {
                    self.prepared.remove(&name);
                } else {
                    self.portals.remove(&name);
                }
                out.extend(text::server("3"));
            }
            _ => return Err("08P01"),
        }
        Ok(())
    }

    /// What the router asks and sets itself.
    fn routers_own(&mut self, sql: &str, values: &[Option<String>], out: &mut Vec<u8>) {
        let row = |kind: &str, name: &str, value: &str| text::server(&format!("L {kind} {name} {value}"));
        if sql.starts_with("SELECT pg_catalog.set_config") {
            let name = values[0].clone().expect("a name");
            if name.contains('.') {
                self.custom.insert(name.clone());
            }
            match &values[1] {
                Some(value) => self.values.insert(name, value.clone()),
                None => match self.startup.get(&name) {
                    Some(value) => self.values.insert(name, value.clone()),
                    None => self.values.remove(&name),
                },
            };
        } else {
            for name in text::looked_at(sql).expect("names") {
                let value = self.values.get(&name).cloned().or_else(|| self.custom.contains(&name).then(|| "-".to_owned()));
                match value {
                    Some(value) => out.extend(row("v", &name, &value)),
                    None if name.contains('.') => out.extend(text::server(&format!("L v {name}"))),
                    None => out.extend(row("v", &name, "none")),
                }
            }
            if sql.starts_with("SELECT CASE ") {
                for (name, value) in
                    self.values.iter().filter(|(name, value)| !name.contains('.') && self.startup.get(*name) != Some(value))
                {
                    out.extend(row("s", name, value));
                }
                out.extend(row("r", "none", "none"));
                for name in self.prepared.keys().filter(|name| !name.is_empty()) {
                    out.extend(row("p", name, "-"));
                }
            }
        }
        out.extend(text::server("C SELECT 1"));
    }

    /// In a transaction that has failed only its end is accepted.
    fn alive(&self, sql: &str) -> Result<(), Failed> {
        let ends = ["commit", "rollback", "COMMIT", "ROLLBACK"].iter().any(|end| sql.starts_with(end));
        if self.block == Block::Failed && !ends && !sql.is_empty() { Err("25P02") } else { Ok(()) }
    }

    fn run(&mut self, sql: &str, extended: bool, out: &mut Vec<u8>) -> Result<(), Failed> {
        self.alive(sql)?;
        self.undo.get_or_insert_with(|| self.values.clone());
        self.custom.extend(
            ["app.x"]
                .iter()
                .filter(|name| sql.starts_with(&format!("set {name}")) || sql.starts_with(&format!("set local {name}")))
                .map(|name| (*name).to_owned()),
        );
        let lower = sql.to_ascii_lowercase();
        let words: Vec<&str> = lower.split_whitespace().collect();
        let last = sql.split_whitespace().next_back().unwrap_or_default().trim_matches('\'').to_owned();
        let tag = match words.as_slice() {
            [] => {
                out.extend(text::server("I"));
                return Ok(());
            }
            ["begin" | "start", ..] => {
                if self.block == Block::Open {
                    out.extend(text::server("N 25001 already"));
                } else {
                    self.block = Block::Open;
                    self.read_only = lower.ends_with("read only");
                }
                if words[0] == "begin" { "BEGIN" } else { "START TRANSACTION" }
            }
            ["rollback", "to", name] => {
                if self.block == Block::None {
                    return Err("25P01");
                }
                let at = self.savepoints.iter().rposition(|(known, ..)| known == name).ok_or("3B001")?;
                self.savepoints.truncate(at + 1);
                (self.values, self.local) = (self.savepoints[at].1.clone(), self.savepoints[at].2.clone());
                self.block = Block::Open;
                "ROLLBACK"
            }
            ["release", name] => {
                let at = self.savepoints.iter().rposition(|(known, ..)| known == name).ok_or("3B001")?;
                self.savepoints.truncate(at);
                "RELEASE"
            }
            ["savepoint", name] => {
                if self.block == Block::None {
                    return Err("25P01");
                }
                self.savepoints.push(((*name).to_owned(), self.values.clone(), self.local.clone()));
                "SAVEPOINT"
            }
            ["commit" | "rollback", rest @ ..] => {
                let chain = *rest == ["and", "chain"];
                if self.block == Block::None {
                    if chain {
                        return Err("25P01");
                    }
                    out.extend(text::server("N 25P01 no transaction"));
                    // What the implicit transaction has done so far stays, or goes with it.
                    self.end(words[0] == "commit");
                    self.undo = Some(self.values.clone());
                    if words[0] == "commit" { "COMMIT" } else { "ROLLBACK" }
                } else {
                    let commit = words[0] == "commit" && self.block == Block::Open;
                    let read_only = self.read_only;
                    self.end(commit);
                    if chain {
                        self.block = Block::Open;
                        self.read_only = read_only;
                        self.undo = Some(self.values.clone());
                    }
                    if commit { "COMMIT" } else { "ROLLBACK" }
                }
            }
            ["select", "pg_catalog.int4div(1,", "0)"] | ["select", "fail"] => return Err("22012"),
            ["select", "unlogged"] if self.replica => return Err("0A000"),
            ["select", ..] => {
                let row = format!("{sql}|{}|{}|{}", self.value("datestyle"), self.value("work_mem"), self.value("app.x"));
                out.extend(text::server(&format!("D {row}")));
                "SELECT 1"
            }
            ["show", name] => {
                out.extend(text::server(&format!("D {}", self.value(name))));
                "SHOW"
            }
            ["insert", ..] => {
                if self.replica || self.read_only {
                    return Err("25006");
                }
                "INSERT 0 1"
            }
            ["set", "local", name, "=", _] => {
                if self.block == Block::None && !extended {
                    out.extend(text::server("N 25P01 no transaction"));
                }
                self.local.insert((*name).to_owned(), last);
                "SET"
            }
            ["set", _, "=", "'bad'"] => return Err("22023"),
            ["set", name, "=", _] => {
                self.local.remove(*name);
                self.values.insert((*name).to_owned(), last);
                "SET"
            }
            ["reset", "all"] => {
                self.values = self.startup.clone();
                self.local.clear();
                "RESET"
            }
            ["reset", name] => {
                let name = name.replace('"', "");
                self.local.remove(&name);
                match self.startup.get(&name) {
                    Some(value) => self.values.insert(name, value.clone()),
                    None => self.values.remove(&name),
                };
                "RESET"
            }
            ["discard", "all"] => {
                if self.block != Block::None || self.pipelines {
                    return Err("25001");
                }
                self.values = self.startup.clone();
                self.prepared.retain(|name, _| name.is_empty());
                self.end(true);
                self.undo = Some(self.values.clone());
                "DISCARD ALL"
            }
            ["discard", "sequences"] => "DISCARD SEQUENCES",
            ["deallocate", "all"] => {
                self.prepared.retain(|name, _| name.is_empty());
                "DEALLOCATE ALL"
            }
            ["deallocate", name] => {
                self.prepared.remove(*name).ok_or("26000")?;
                "DEALLOCATE"
            }
            ["copy", "t", "from", "stdin"] => {
                if self.replica || self.read_only {
                    return Err("25006");
                }
                self.copy = Some(extended);
                out.extend(text::server("G"));
                return Ok(());
            }
            ["copy", "t", "to", "stdout"] => {
                out.extend(["H", "d row", "c"].map(text::server).concat());
                "COPY 1"
            }
            _ => panic!("the model doesn't know «{sql}»"),
        };
        out.extend(text::server(&format!("C {tag}")));
        Ok(())
    }
}
