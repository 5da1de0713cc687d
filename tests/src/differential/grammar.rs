//! Random scripts. `grammar.txt` says what statements there are; here is how they come together.
//!
//! A script draws a few themes, and most of its statements from those, so that the same few things meet often;
//! transaction control, errors and reads come everywhere. Names come from tiny sets, so that they collide.
//!
//! Left out, because the two sides differ there by nature: process ids and what tells them, LSNs, clocks, OIDs of
//! what is made on the way, `pg_my_temp_schema()`, plans (and what depends on them), and random numbers. And a FETCH or EXECUTE
//! that is prepared by name: what it gives is what its cursor or statement gave at its Parse, which can't be repeated on another server. Nor is what
//! an IMMUTABLE function does when a plan is made, which a server that has the plan does no more.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::Port;
use super::objects::{ALTERED, REPLICATES, USERS};
use super::script::{End, Message, Script, Step, unescaped};
use crate::unruly::Dice;

/// The sections of `grammar.txt`.
static BOOK: LazyLock<Book> = LazyLock::new(|| Book::read(include_str!("grammar.txt")));
/// The theme whose scripts begin with other settings for lexers more often.
const STRINGS: &str = "strings";
/// The theme whose scripts take names away more often.
const NAMES: &str = "prepare";

type Alternatives = Vec<String>;

#[derive(Default)]
struct Book {
    control: Alternatives,
    errors: Alternatives,
    reads: Alternatives,
    writes: Alternatives,
    alters: Alternatives,
    themes: Vec<(&'static str, Alternatives)>,
    parts: HashMap<&'static str, Alternatives>,
}

impl Book {
    fn read(text: &'static str) -> Book {
        let mut book = Book::default();
        let mut section: &mut Alternatives = &mut Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
            if let Some(title) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = match title.split_once(' ') {
                    Some(("theme", name)) => {
                        book.themes.push((name, Vec::new()));
                        &mut book.themes.last_mut().expect("it was just pushed").1
                    }
                    Some((_, name)) => book.parts.entry(name).or_default(),
                    None => match title {
                        "control" => &mut book.control,
                        "errors" => &mut book.errors,
                        "reads" => &mut book.reads,
                        "writes" => &mut book.writes,
                        "alters" => &mut book.alters,
                        _ => panic!("a section that isn't known: {title}"),
                    },
                };
                continue;
            }
            let (times, text) = line.split_once("* ").and_then(|(times, text)| Some((times.parse().ok()?, text))).unwrap_or((1, line));
            let text = if text == "<nothing>" { String::new() } else { unescaped(text) };
            section.extend(std::iter::repeat_n(text, times));
        }
        book
    }
}

/// Built-in functions that FunctionCall calls by OID: set_config(text, text, boolean), pg_advisory_lock(bigint),
/// current_setting(text), pg_advisory_unlock_all().
const CALLS: &[(u32, &[&str])] = &[
    (2078, &["app.tenant", "called", "\0"]),
    (2078, &["work_mem", "7MB", "\0"]),
    (2078, &["app.tenant", "called", "\u{1}"]),
    (2880, &["\0\0\0\0\0\0\0\u{5}"]),
    (2077, &["work_mem"]),
    (2892, &[]),
    (1, &[]),
];

const OPTIONS: &[(&str, &str)] = &[
    ("options", "-c standard_conforming_strings=off"),
    ("options", "-c standard_conforming_strings=off"),
    ("options", "-c DateStyle=German"),
    ("options", "-c app.tenant=started"),
    ("options", "-c role=grp"),
    ("options", "-c search_path=pg_catalog,public -c work_mem=3MB"),
    ("DateStyle", "SQL, DMY"),
    ("client_encoding", "SJIS"),
    ("client_encoding", "LATIN1"),
    ("application_name", "started"),
    ("options", "-c backslash_quote=on -c client_encoding=SJIS"),
    ("options", "-c default_transaction_isolation=repeatable\\ read"),
    ("options", "-c nosuch=1"),
    ("options", "-c my.x=5 -c TimeZone=Asia/Tokyo"),
];

/// What lexers are told at the start.
const LEXERS: &[(&str, &str)] = &[
    ("options", "-c standard_conforming_strings=off"),
    ("options", "-c standard_conforming_strings=off -c backslash_quote=on -c client_encoding=SJIS"),
    ("options", "-c backslash_quote=on -c client_encoding=SJIS"),
    ("client_encoding", "SJIS"),
    ("options", "-c standard_conforming_strings=off -c escape_string_warning=off"),
];

const STATEMENTS: &[&str] = &["", "", "a", "a", "w", "w"];
const PORTALS: &[&str] = &["", "", "", "p", "q"];
/// In ten.
const THEMED: usize = 4;

pub(super) struct Grammar {
    dice: Dice,
    port: Port,
    /// Whether the pool has room for somebody else's transaction.
    holds: bool,
    themes: Vec<&'static (&'static str, Alternatives)>,
}

impl Grammar {
    /// The same script for the same seed.
    pub(super) fn script(seed: u64, port: Port, pool: usize) -> Script {
        let mut grammar = Grammar { dice: Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)), port, holds: pool > 1, themes: Vec::new() };
        let count = 1 + grammar.dice.below(3);
        grammar.themes = (0..count).map(|_| &BOOK.themes[grammar.dice.below(BOOK.themes.len())]).collect();
        grammar.whole()
    }

    /// A statement is prepared by name, a string takes it away and may fail behind that, and the name is used again.
    fn names_gone_in_a_string(&mut self) -> [Step; 3] {
        let statement = if self.one_in(2) { "a" } else { "w" }.to_owned();
        let string = vec![self.pick(&["DEALLOCATE ALL", "DEALLOCATE {st}", "DEALLOCATE PREPARE ALL"]), self.pick(&BOOK.errors)];
        let bind = Message::Bind { portal: String::new(), statement: statement.clone(), values: Vec::new() };
        let execute = Message::Execute { portal: String::new(), rows: 0 };
        let messages = [
            vec![Message::Parse { name: statement, text: "SELECT 1".to_owned() }, Message::Sync],
            vec![Message::Query(string)],
            vec![bind, execute, Message::Sync],
        ];
        messages.map(|messages| Step::Write { messages, split: false })
    }

    /// A replication connection's: simple queries of one statement each.
    fn walsender(&mut self) -> Script {
        let options = vec![("replication".to_owned(), "database".to_owned())];
        let mut script = Script { user: REPLICATES.to_owned(), options, ..Script::default() };
        for _ in 0..1 + self.dice.below(5) {
            let message = Message::Query(vec![self.statement()]);
            if !copies(&message) {
                script.steps.push(Step::Write { messages: vec![message], split: false });
            }
        }
        script
    }

    fn whole(&mut self) -> Script {
        if self.one_in(30) {
            return self.walsender();
        }
        let mut script = Script { user: USERS[0].to_owned(), ..Script::default() };
        if self.one_in(6) {
            script.user = USERS[1 + self.dice.below(USERS.len() - 1)].to_owned();
        }
        if self.one_in(6) {
            let (name, value) = OPTIONS[self.dice.below(OPTIONS.len())];
            script.options.push((name.to_owned(), value.to_owned()));
        }
        if self.themes.iter().any(|theme| theme.0 == STRINGS) && self.one_in(2) {
            let (name, value) = LEXERS[self.dice.below(LEXERS.len())];
            script.options = vec![(name.to_owned(), value.to_owned())];
            // What was read under these settings is brought back behind somebody else's use of the connection.
            let brought = [self.pick(&["SET my.x = {string}", "SELECT set_config('my.x', {string}, false)"]), self.pick(&BOOK.reads)];
            for text in brought {
                script.steps.extend([Step::Write { messages: vec![Message::Query(vec![text])], split: false }, Step::Look]);
            }
        }
        for _ in 0..2 + self.dice.below(9) {
            if self.one_in(8) {
                let steps =
                    self.transaction().into_iter().map(|text| Step::Write { messages: vec![Message::Query(vec![text])], split: false });
                script.steps.extend(steps.filter(|step| !matches!(step, Step::Write { messages, .. } if copies(&messages[0]))));
            } else {
                let step = self.step();
                script.steps.push(step);
            }
        }
        if self.themes.iter().any(|theme| theme.0 == NAMES) && self.one_in(2) {
            script.steps.extend(self.names_gone_in_a_string());
        }
        if self.one_in(3) {
            script.steps.push(Step::Look);
        }
        if self.one_in(20) {
            // What a role or a database is counts at the next login: the script's own messages come before.
            ALTERED.clone_into(&mut script.user);
            script.steps.truncate(3);
            for _ in 0..1 + self.dice.below(2) {
                let text = self.pick(&BOOK.alters);
                script.steps.push(Step::Alter(text));
            }
            script.end = End::Terminate;
            return script;
        }
        script.state = self.one_in(2);
        script.end = match self.dice.below(12) {
            0 | 1 => End::Behind(self.last()),
            2 => End::HalfClose(self.last()),
            3 => End::Reset,
            _ => End::Terminate,
        };
        script
    }

    fn step(&mut self) -> Step {
        match self.dice.below(400) {
            0 => return Step::Cancel,
            1..12 => return Step::Look,
            12..24 if self.holds => return Step::Hold,
            _ => {}
        }
        let split = self.one_in(12);
        let mut messages = match self.dice.below(40) {
            0..18 => vec![Message::Query(vec![self.statement()])],
            18..26 => vec![self.batch()],
            26..34 => self.segment(),
            34..37 => self.pipeline(),
            37 | 38 => self.copy(),
            _ => {
                let (function, arguments) = CALLS[self.dice.below(CALLS.len())];
                vec![Message::Call { function, arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect() }]
            }
        };
        // A COPY gets some data, wherever it was drawn.
        if let [Message::Query(texts)] = messages.as_slice() {
            let copies = texts.iter().filter(|text| text.contains("FROM STDIN")).count();
            for _ in 0..copies {
                messages.push(Message::CopyData("7\n".to_owned()));
                messages.push(if self.one_in(6) { Message::CopyFail } else { Message::CopyDone });
            }
        }
        // Of a pipeline, only COPY may have been there.
        if messages.is_empty() { Step::Look } else { Step::Write { messages, split } }
    }

    /// What a transaction makes final or undoes, and what comes behind that.
    fn transaction(&mut self) -> Vec<String> {
        let mut texts = Vec::new();
        if !self.one_in(3) {
            texts.push(self.pick(&["BEGIN", "BEGIN", "START TRANSACTION", "BEGIN {mode}"]));
        }
        if self.one_in(4) {
            texts.push("SAVEPOINT s1".to_owned());
        }
        for _ in 0..1 + self.dice.below(2) {
            texts.push(self.themed());
        }
        if self.one_in(4) {
            texts.push(self.pick(&["ROLLBACK TO s1", "RELEASE s1", "SELECT 1/0", "INSERT INTO t VALUES ({n}, 'new')"]));
        }
        texts.push(self.pick(&["COMMIT", "COMMIT", "COMMIT", "COMMIT AND CHAIN", "END", "ROLLBACK", "ROLLBACK AND CHAIN"]));
        texts.push(match self.dice.below(5) {
            0 => self.pick(&BOOK.errors),
            1 => self.pick(&["BEGIN", "ROLLBACK", "COMMIT", "SELECT 1/0"]),
            2 => "BEGIN".to_owned(),
            3 => self.themed(),
            _ => return texts,
        });
        if self.one_in(3) {
            texts.push(self.pick(&["ROLLBACK", "COMMIT", "SELECT 1/0", "SELECT 1"]));
        }
        texts
    }

    fn batch(&mut self) -> Message {
        if self.one_in(3) {
            return Message::Query(self.transaction());
        }
        let count = 2 + self.dice.below(3);
        Message::Query((0..count).map(|_| self.statement()).collect())
    }

    /// What stands before a Terminate or the end of input: complete, with its Sync.
    fn last(&mut self) -> Vec<Message> {
        match self.dice.below(4) {
            0 => vec![Message::Query(vec!["COMMIT".to_owned()])],
            1 => self.segment(),
            2 => vec![Message::Query(vec![self.pick(&BOOK.writes)])],
            _ => vec![self.batch()].into_iter().filter(|message| !copies(message)).collect(),
        }
    }

    fn segment(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        for _ in 0..1 + self.dice.below(3) {
            self.unit(&mut messages);
            if self.one_in(10) {
                messages.push(Message::Flush);
            }
        }
        if self.one_in(20) {
            messages.push(Message::Query(vec![self.statement()]));
        } else {
            messages.push(Message::Sync);
        }
        messages
    }

    fn unit(&mut self, messages: &mut Vec<Message>) {
        let (mut statement, portal) = (self.name(STATEMENTS), self.name(PORTALS));
        let rows = [0, 0, 0, 1, 2][self.dice.below(5)];
        match self.dice.below(12) {
            0..5 => {
                let (text, values) = self.parsed();
                if is_of_its_server(&text) {
                    statement.clear();
                }
                messages.push(Message::Parse { name: statement.clone(), text });
                if self.one_in(4) {
                    messages.push(Message::DescribeStatement(statement.clone()));
                }
                messages.push(Message::Bind { portal: portal.clone(), statement, values });
                if self.one_in(4) {
                    messages.push(Message::DescribePortal(portal.clone()));
                }
                if portal.is_empty() || !self.one_in(6) {
                    messages.push(Message::Execute { portal, rows });
                }
            }
            5 => {
                let (text, _) = self.parsed();
                if is_of_its_server(&text) {
                    statement.clear();
                }
                messages.push(Message::Parse { name: statement, text });
            }
            6 | 7 => {
                messages.push(Message::Bind { portal: portal.clone(), statement, values: Vec::new() });
                messages.push(Message::Execute { portal, rows });
            }
            8 => messages.push(Message::DescribeStatement(statement)),
            9 => messages.push(Message::CloseStatement(statement)),
            10 if self.one_in(2) => messages.push(Message::ClosePortal(portal)),
            // Of the unnamed one behind a Query that has failed, it depends on what stood before that: BEGIN by the router's messages.
            10 => messages.push(Message::DescribePortal(named(portal))),
            // A lone Execute of the unnamed portal can crash PostgreSQL 15 (see `Script::is_harmless`).
            _ => messages.push(Message::Execute { portal: named(portal), rows }),
        }
    }

    fn pipeline(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        if self.one_in(2) {
            // A transaction in a pipeline, in one segment or in several, as drivers send it.
            let (each, synced) = (self.one_in(3), self.one_in(3));
            for text in self.transaction() {
                if each {
                    messages.push(Message::Query(vec![text]));
                } else if !text.contains("FROM STDIN") {
                    messages.push(Message::Parse { name: String::new(), text });
                    messages.push(Message::Bind { portal: String::new(), statement: String::new(), values: Vec::new() });
                    messages.push(Message::Execute { portal: String::new(), rows: 0 });
                    if synced {
                        messages.push(Message::Sync);
                    }
                }
            }
            if !each {
                messages.push(Message::Sync);
            }
            messages.retain(|message| !copies(message));
            return messages;
        }
        for _ in 0..2 + self.dice.below(3) {
            if self.one_in(4) {
                messages.push(Message::Query(vec![self.statement()]));
            } else {
                let segment = self.segment();
                messages.extend(segment);
            }
        }
        // Data for COPY stand behind a single Query only.
        messages.retain(|message| !copies(message));
        messages
    }

    fn copy(&mut self) -> Vec<Message> {
        let table = ["t", "on_tenant", "on_temp", "late", "nowhere"][self.dice.below(5)];
        let mut messages = vec![Message::Query(vec![format!("COPY {table} (i) FROM STDIN")])];
        for _ in 0..self.dice.below(3) {
            messages.push(Message::CopyData(["7\n", "8\n9\n", "nonsense\n", "1\n", "1"][self.dice.below(5)].to_owned()));
        }
        messages.push(if self.one_in(4) { Message::CopyFail } else { Message::CopyDone });
        messages
    }

    /// For a Parse: no COPY FROM, as a later Bind of the name would leave the server waiting for data.
    fn parsed(&mut self) -> (String, Vec<String>) {
        if self.one_in(5) {
            let text = [
                "SELECT $1::int",
                "INSERT INTO t VALUES ($1, 'bound')",
                "SELECT set_config('app.tenant', $1, false)",
                "SELECT v FROM t WHERE i = $1",
            ];
            return (text[self.dice.below(text.len())].to_owned(), vec![self.pick(&["5", "6", "1"])]);
        }
        let text = self.statement();
        if text.contains("FROM STDIN") { ("SELECT 1".to_owned(), Vec::new()) } else { (text, Vec::new()) }
    }

    fn statement(&mut self) -> String {
        match self.dice.below(10) {
            0..THEMED => self.themed(),
            4..7 => self.pick(&BOOK.control),
            7 => self.pick(&BOOK.errors),
            8 => self.pick(&BOOK.reads),
            _ => self.pick(&BOOK.writes),
        }
    }

    fn themed(&mut self) -> String {
        let theme = self.themes[self.dice.below(self.themes.len())];
        self.pick(&theme.1)
    }

    fn pick<T: AsRef<str>>(&mut self, from: &[T]) -> String {
        let drawn = from[self.dice.below(from.len())].as_ref();
        let text = self.expand(drawn);
        // On a replica's connection READ ONLY is the default from the beginning (ARCHITECTURE.md, invariant 7): what
        // changes it is told otherwise.
        let sets = text.contains("CHARACTERISTICS AS TRANSACTION") && ["READ ONLY", "READ WRITE"].iter().any(|mode| text.contains(mode));
        let told_otherwise = self.port == Port::ReadOnly && sets;
        if told_otherwise { "SELECT 1".to_owned() } else { text }
    }

    fn expand(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            out.push_str(before);
            let part = behind.split_once('}').and_then(|(name, after)| Some((BOOK.parts.get(name)?, after)));
            match part {
                Some((alternatives, after)) => {
                    out.push_str(&self.pick(alternatives));
                    rest = after;
                }
                None => {
                    out.push('{');
                    rest = behind;
                }
            }
        }
        out + rest
    }

    fn name(&mut self, from: &[&str]) -> String {
        from[self.dice.below(from.len())].to_owned()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.dice.below(count) == 0
    }
}

/// Whether what it gives is what its cursor, or its statement, gave at its Parse, or what it does is done when its plan is made.
fn is_of_its_server(text: &str) -> bool {
    text.starts_with("FETCH") || text.starts_with("EXECUTE") || text.contains("sets_immutably")
}

fn named(portal: String) -> String {
    if portal.is_empty() { "p".to_owned() } else { portal }
}

fn copies(message: &Message) -> bool {
    matches!(message, Message::Query(texts) if texts.iter().any(|text| text.contains("FROM STDIN")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_reads_back_and_says_no_name_of_a_rule() {
        for seed in 0..5_000 {
            let script = Grammar::script(seed, Port::ReadWrite, 3);
            let text = script.to_string();
            // All but an empty statement at a line's end.
            let lines = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
            assert_eq!(lines(&Script::parse(&text).unwrap().to_string()), lines(&text));
            for rule in BOOK.parts.keys() {
                assert!(!text.contains(&format!("{{{rule}}}")), "{rule} in {text}");
            }
        }
    }
}
