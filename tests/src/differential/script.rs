//! What the judge plays: a client's startup, the messages that it writes, and how it goes; and the same as text, one
//! line for each write.
//!
//! The text form is what a finding is printed in and what is played again (`--replay`), so it says everything that
//! counts:
//!
//! ```text
//! user diff_app
//! option options -c standard_conforming_strings=off
//! Q BEGIN | Q SET my.x = '1'; SELECT 1/0
//! P a SELECT $1 | B "" a 7 | E "" 0 | S
//! look
//! end terminate
//! ```
//!
//! Texts are bytes: each `char` below 256 stands for one, written as `<xHH>` where it isn't printable ASCII.

use std::fmt;

use anyhow::{Context, bail};

/// A client from its login to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// One of [`USERS`](super::objects::USERS).
    pub user: String,
    /// Startup parameters beside user and database.
    pub options: Vec<(String, String)>,
    pub steps: Vec<Step>,
    /// Whether the session's own state is asked for before it goes. That pins it, so not every script does.
    pub state: bool,
    pub end: End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Messages in one write, answered before the next step; to the router in pieces if `split`.
    Write { messages: Vec<Message>, split: bool },
    /// A `pg_sleep` that is canceled as soon as it runs.
    Cancel,
    /// A second client looks at what it sees. Nothing happens while a transaction is open.
    Look,
    /// Another client holds a server connection until the script's end: only with room in the pool.
    Hold,
    /// A superuser runs this, on the leader itself; then both sides are logged in to anew. With `diff_here` in it, it
    /// is run for the database of each side.
    Alter(String),
}

/// How the client goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum End {
    #[default]
    Terminate,
    /// Messages and Terminate in one write.
    Behind(Vec<Message>),
    /// Messages, and the end of input right behind them.
    HalfClose(Vec<Message>),
    /// The connection is reset.
    Reset,
}

impl End {
    /// What is sent at the end.
    pub(super) fn messages(&self) -> &[Message] {
        match self {
            End::Behind(messages) | End::HalfClose(messages) => messages,
            End::Terminate | End::Reset => &[],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Statements, sent with `; ` between them: the judge takes single ones away.
    Query(Vec<String>),
    Parse {
        name: String,
        text: String,
    },
    Bind {
        portal: String,
        statement: String,
        values: Vec<String>,
    },
    DescribeStatement(String),
    DescribePortal(String),
    Execute {
        portal: String,
        rows: u32,
    },
    CloseStatement(String),
    ClosePortal(String),
    Flush,
    Sync,
    /// FunctionCall of a built-in function by its OID, with arguments in binary form.
    Call {
        function: u32,
        arguments: Vec<String>,
    },
    CopyData(String),
    CopyDone,
    CopyFail,
}

impl Script {
    /// Whether there is a Flush among its steps.
    pub(super) fn flushes(&self) -> bool {
        let has =
            |step: &Step| matches!(step, Step::Write { messages, .. } if messages.iter().any(|message| matches!(message, Message::Flush)));
        self.steps.iter().any(has)
    }

    /// Every text of a statement in it, in order.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let written = self.steps.iter().flat_map(|step| match step {
            Step::Write { messages, .. } => messages.as_slice(),
            Step::Cancel | Step::Look | Step::Hold | Step::Alter(_) => &[],
        });
        written.chain(self.end.messages()).flat_map(|message| match message {
            Message::Query(texts) => texts.iter().map(String::as_str).collect::<Vec<_>>(),
            Message::Parse { text, .. } => vec![text.as_str()],
            _ => vec![],
        })
    }

    /// With other names in all its texts, and of its user.
    #[must_use]
    pub(super) fn renamed(&self, named: impl Fn(&str) -> String) -> Script {
        let mut script = self.clone();
        script.user = named(&script.user);
        let rename = |messages: &mut Vec<Message>| {
            for message in messages {
                match message {
                    Message::Query(texts) => texts.iter_mut().for_each(|text| *text = named(text)),
                    Message::Parse { text, .. } => *text = named(text),
                    _ => {}
                }
            }
        };
        for step in &mut script.steps {
            match step {
                Step::Write { messages, .. } => rename(messages),
                Step::Alter(text) => *text = named(text),
                Step::Cancel | Step::Look | Step::Hold => {}
            }
        }
        if let End::Behind(messages) | End::HalfClose(messages) = &mut script.end {
            rename(messages);
        }
        script
    }

    pub(super) fn alters(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Alter(_)))
    }

    /// Whether its connection is a walsender's, which takes simple queries only.
    pub(super) fn replicates(&self) -> bool {
        self.options.iter().any(|(name, _)| name == "replication")
    }

    /// Scripts with an empty line between them.
    ///
    /// # Errors
    /// If a line says nothing that is known.
    pub fn parse_all(text: &str) -> anyhow::Result<Vec<Script>> {
        let says = |text: &&str| text.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#'));
        text.split("\n\n").filter(says).map(Script::parse).collect()
    }

    /// Whether it is none of those that PostgreSQL 15 itself crashes over: Execute of the unnamed portal that a
    /// simple query in a failed transaction has left.
    pub(super) fn is_harmless(&self) -> bool {
        self.steps.iter().all(|step| {
            let Step::Write { messages, .. } = step else { return true };
            let unnamed = |message: &Message| match message {
                Message::Bind { portal, .. } if portal.is_empty() => Some(true),
                Message::Execute { portal, .. } if portal.is_empty() => Some(false),
                _ => None,
            };
            messages.iter().find_map(unnamed).unwrap_or(true)
        })
    }

    /// # Errors
    /// If a line says nothing that is known.
    pub fn parse(text: &str) -> anyhow::Result<Script> {
        let mut script = Script::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "user" => script.user = rest.to_owned(),
                "option" => {
                    let (name, value) = rest.split_once(' ').context("an option without a value")?;
                    script.options.push((name.to_owned(), unescaped(value)));
                }
                "look" => script.steps.push(Step::Look),
                "hold" => script.steps.push(Step::Hold),
                "cancel" => script.steps.push(Step::Cancel),
                "alter" => script.steps.push(Step::Alter(unescaped(rest))),
                "state" => script.state = true,
                "split" => script.steps.push(Step::Write { messages: messages(rest)?, split: true }),
                "end" => {
                    let (how, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                    script.end = match how {
                        "terminate" => End::Terminate,
                        "reset" => End::Reset,
                        "behind" => End::Behind(messages(rest)?),
                        "half-close" => End::HalfClose(messages(rest)?),
                        _ => bail!("an end that isn't known: {line}"),
                    };
                }
                _ => script.steps.push(Step::Write { messages: messages(line)?, split: false }),
            }
        }
        Ok(script)
    }
}

fn messages(line: &str) -> anyhow::Result<Vec<Message>> {
    line.split(" | ").filter(|part| !part.is_empty()).map(|part| message(part.trim()).with_context(|| part.to_owned())).collect()
}

fn message(text: &str) -> anyhow::Result<Message> {
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    let name = |word: &str| if word == "\"\"" { String::new() } else { word.to_owned() };
    let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
    Ok(match kind {
        "Q" => Message::Query(vec![unescaped(rest)]),
        "P" => Message::Parse { name: name(first), text: unescaped(second) },
        "B" => {
            let (statement, values) = second.split_once(' ').unwrap_or((second, ""));
            let values = values.split(' ').filter(|value| !value.is_empty()).map(unescaped).collect();
            Message::Bind { portal: name(first), statement: name(statement), values }
        }
        "DS" => Message::DescribeStatement(name(rest)),
        "DP" => Message::DescribePortal(name(rest)),
        "E" => Message::Execute { portal: name(first), rows: second.parse().context("rows")? },
        "CS" => Message::CloseStatement(name(rest)),
        "CP" => Message::ClosePortal(name(rest)),
        "H" => Message::Flush,
        "S" => Message::Sync,
        "F" => Message::Call {
            function: first.parse().context("an OID")?,
            arguments: second.split(' ').filter(|argument| !argument.is_empty()).map(unescaped).collect(),
        },
        "d" => Message::CopyData(unescaped(rest)),
        "c" => Message::CopyDone,
        "f" => Message::CopyFail,
        _ => bail!("a message that isn't known"),
    })
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "user {}", self.user)?;
        for (name, value) in &self.options {
            writeln!(f, "option {name} {}", escaped(value))?;
        }
        for step in &self.steps {
            match step {
                Step::Write { messages, split } => writeln!(f, "{}{}", if *split { "split " } else { "" }, joined(messages))?,
                Step::Cancel => writeln!(f, "cancel")?,
                Step::Look => writeln!(f, "look")?,
                Step::Hold => writeln!(f, "hold")?,
                Step::Alter(text) => writeln!(f, "alter {}", escaped(text))?,
            }
        }
        if self.state {
            writeln!(f, "state")?;
        }
        match &self.end {
            End::Terminate => writeln!(f, "end terminate"),
            End::Reset => writeln!(f, "end reset"),
            End::Behind(messages) => writeln!(f, "end behind {}", joined(messages)),
            End::HalfClose(messages) => writeln!(f, "end half-close {}", joined(messages)),
        }
    }
}

fn joined(messages: &[Message]) -> String {
    messages.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |name: &str| if name.is_empty() { "\"\"".to_owned() } else { name.to_owned() };
        let list = |values: &[String]| values.iter().map(|value| format!(" {}", escaped(value))).collect::<String>();
        match self {
            Message::Query(texts) => write!(f, "Q {}", escaped(&texts.join("; "))),
            Message::Parse { name: statement, text } => write!(f, "P {} {}", name(statement), escaped(text)),
            Message::Bind { portal, statement, values } => write!(f, "B {} {}{}", name(portal), name(statement), list(values)),
            Message::DescribeStatement(statement) => write!(f, "DS {}", name(statement)),
            Message::DescribePortal(portal) => write!(f, "DP {}", name(portal)),
            Message::Execute { portal, rows } => write!(f, "E {} {rows}", name(portal)),
            Message::CloseStatement(statement) => write!(f, "CS {}", name(statement)),
            Message::ClosePortal(portal) => write!(f, "CP {}", name(portal)),
            Message::Flush => write!(f, "H"),
            Message::Sync => write!(f, "S"),
            Message::Call { function, arguments } => write!(f, "F {function}{}", list(arguments)),
            Message::CopyData(data) => write!(f, "d {}", escaped(data)),
            Message::CopyDone => write!(f, "c"),
            Message::CopyFail => write!(f, "f"),
        }
    }
}

/// The bytes that a text stands for.
pub(super) fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap_or(b'?')).collect()
}

fn escaped(text: &str) -> String {
    let plain = |letter: char| (' '..='~').contains(&letter);
    text.chars().map(|letter| if plain(letter) { letter.to_string() } else { format!("<x{:02x}>", u32::from(letter)) }).collect()
}

pub(super) fn unescaped(text: &str) -> String {
    let mut parts = text.split("<x");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|code| u8::from_str_radix(code.strip_suffix('>')?, 16).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            None => {
                out.push_str("<x");
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reads_back_as_it_is_written() {
        let text = "user diff_app\noption options -c DateStyle=German\nQ BEGIN | Q SET my.x = '<x83>\\'; SELECT 1\nP a SELECT $1 | \
            B \"\" a 7 | DS a | E \"\" 0 | CS a | H | S\nlook\nalter ALTER ROLE diff_own RESET ALL\nsplit F 2078 my.x 1\nstate\nend half-close d 1<x09>2<x0a> | c\n";
        let script = Script::parse(text).unwrap();
        assert_eq!(script.to_string(), text);
        assert_eq!(script.texts().collect::<Vec<_>>(), ["BEGIN", "SET my.x = '\u{83}\\'; SELECT 1", "SELECT $1"]);
    }
}
