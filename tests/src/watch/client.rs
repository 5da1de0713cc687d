//! One client: a statement, its answer, a pause, and again; a new connection where the old one ended.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow, Statement};

use super::{Event, What, timeline_of};
use crate::cluster::connect;
use crate::load::{Style, sqlstate};

/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(50);
/// An answer that takes longer counts as none.
const ANSWER: Duration = Duration::from_secs(120);

/// Three of four are autocommit.
pub(super) fn style_of(client: usize) -> Style {
    match client % 8 {
        0 | 2 | 4 => Style::Simple,
        1 | 3 | 5 => Style::Prepared,
        6 => Style::Transaction,
        _ => Style::PreparedTransaction,
    }
}

pub(super) struct Task {
    id: usize,
    dsn: String,
    table: String,
    pace: Duration,
    stop: watch::Receiver<bool>,
    events: Vec<Event>,
}

/// A connection, and the statement that is prepared on it.
struct Connection {
    client: Client,
    statement: Option<Statement>,
}

impl Task {
    pub(super) fn new(id: usize, dsn: String, table: String, pace: Duration, stop: watch::Receiver<bool>) -> Task {
        Task { id, dsn, table, pace, stop, events: Vec::new() }
    }

    pub(super) async fn write(self, style: Style) -> Vec<Event> {
        let prepared = format!("INSERT INTO {} (writer, number) VALUES ($1, $2) RETURNING server, timeline", self.table);
        self.run(style, &prepared, true).await
    }

    pub(super) async fn read(self, style: Style) -> Vec<Event> {
        // Nothing in it that a router would send to the leader.
        let prepared = format!("SELECT 'yes' FROM {} WHERE writer = $1 AND number >= $2 LIMIT 1", self.table);
        self.run(style, &prepared, false).await
    }

    async fn run(mut self, style: Style, prepared: &str, writes: bool) -> Vec<Event> {
        let mut pace = tokio::time::interval(self.pace);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut connection = None;
        let mut number = 0i64;
        while !*self.stop.borrow() {
            pace.tick().await;
            let Some(connected) = &mut connection else {
                match connect(&self.dsn).await {
                    Ok(client) => {
                        if number > 0 {
                            self.note(Instant::now(), What::Reconnected);
                        }
                        connection = Some(Connection { client, statement: None });
                    }
                    Err(error) => {
                        let sqlstate = error.downcast_ref().and_then(sqlstate);
                        self.note(Instant::now(), What::Failed { number: None, sqlstate, text: format!("{error:#}") });
                        tokio::time::sleep(RECONNECT).await;
                    }
                }
                continue;
            };
            number += 1;
            let began = Instant::now();
            let (id, text) = (i32::try_from(self.id).unwrap_or(i32::MAX), self.text(writes, number));
            let answer = tokio::time::timeout(ANSWER, connected.run(style, prepared, &text, id, number)).await;
            let alive = match answer {
                Ok(Ok((server, timeline))) => {
                    self.note(began, if writes { What::Wrote { number, server, timeline } } else { What::Read { server } });
                    true
                }
                Ok(Err(error)) => {
                    self.note(began, failed(writes.then_some(number), Some(&error)));
                    // Whatever state it is in, this ends it.
                    let ended = style.in_transaction() && connected.client.batch_execute("ROLLBACK").await.is_err();
                    !ended && !connected.client.is_closed()
                }
                Err(_) => {
                    self.note(began, failed(writes.then_some(number), None));
                    false
                }
            };
            if !alive {
                connection = None;
            }
        }
        self.events
    }

    fn text(&self, writes: bool, number: i64) -> String {
        let (id, table) = (self.id, &self.table);
        if writes {
            format!("INSERT INTO {table} (writer, number) VALUES ({id}, {number}) RETURNING server, timeline")
        } else {
            format!("SELECT 'yes' FROM {table} WHERE writer = {id} AND number >= {number} LIMIT 1")
        }
    }

    fn note(&mut self, began: Instant, what: What) {
        let at = Instant::now();
        self.events.push(Event { at, took: at - began, client: self.id, what });
    }
}

impl Connection {
    /// Which server answered, on which timeline; empty and 0 where it doesn't say.
    async fn run(
        &mut self,
        style: Style,
        prepared: &str,
        text: &str,
        id: i32,
        number: i64,
    ) -> Result<(String, u32), tokio_postgres::Error> {
        if style.prepared() && self.statement.is_none() {
            self.statement = Some(self.client.prepare(prepared).await?);
        }
        if style.in_transaction() {
            self.client.batch_execute("BEGIN").await?;
        }
        let answer = match &self.statement {
            Some(statement) => {
                let row = self.client.query_opt(statement, &[&id, &number]).await?;
                let column = |at| row.as_ref().and_then(|row| row.try_get::<_, String>(at).ok()).unwrap_or_default();
                (column(0), timeline_of(&column(1)))
            }
            None => {
                let messages = self.client.simple_query(text).await?;
                let column = |at| first(&messages).filter(|row| at < row.len()).and_then(|row| row.get(at)).unwrap_or_default();
                (column(0).to_owned(), timeline_of(column(1)))
            }
        };
        if style.in_transaction() {
            self.client.batch_execute("COMMIT").await?;
        }
        Ok(answer)
    }
}

fn first(messages: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

/// `None`: there was no answer in time.
fn failed(number: Option<i64>, error: Option<&tokio_postgres::Error>) -> What {
    let text = match error {
        None => format!("no answer within {ANSWER:?}"),
        Some(error) => error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned()),
    };
    What::Failed { number, sqlstate: error.and_then(sqlstate), text }
}
