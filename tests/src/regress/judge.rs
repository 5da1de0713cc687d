//! The regression suite as a judge of verdicts: a man in the middle between its psql sessions and a scratch leader.
//!
//! Of each statement it asks two: the router's classifier, with the facts of that moment, and the server, which runs it in a READ ONLY
//! transaction (or subtransaction) that is rolled back. Then the statement runs as if nobody had asked, so that the next one finds what the
//! suite's author meant it to find. Invariant: the session's transaction status after the question is the one before it.
//!
//! What the suite prints isn't looked at: the question leaves traces that a rollback doesn't take back.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use anyhow::{Context, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use switchyard_core::sql::{Class, Dialect, Effect, Facts, Kind, Verdict, classify};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::cluster::Member;

/// Protocol codes of a first packet (protocol section 55.7).
const CANCEL_REQUEST: i32 = 80_877_102;
const SSL_REQUEST: i32 = 80_877_103;
const GSSENC_REQUEST: i32 = 80_877_104;
/// Authentication requests that the client answers: a password in clear or md5, SASL's start and continuation.
const ASKS_CLIENT: [i32; 4] = [3, 5, 10, 11];
/// A message longer than this isn't the suite's.
const MESSAGE_MAX: usize = 64 * 1024 * 1024;
/// Statements kept for each group of the tally.
const SAMPLES: usize = 12;
const SAMPLE_CHARS: usize = 200;

/// Whether the transaction has used what no standby has, or taken what no standby gives: in recovery there are no transaction ids, no temporary or
/// unlogged tables, and no locks on relations beyond `RowExclusiveLock` (`src/backend/storage/lmgr/lock.c`).
const PRIMARY_ONLY: &str = "\
SELECT EXISTS (SELECT FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) l.relation
                WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
                  AND (c.relpersistence IN ('t', 'u') OR l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')))
       OR pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL";

/// What the server said of a statement in a READ ONLY transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Server {
    /// It ran, and left nothing that a standby couldn't have done.
    Ran,
    /// It ran, and used temporary or unlogged tables, took a transaction id, or a lock that a standby doesn't give.
    RanOnPrimaryOnly,
    /// 25006: it writes.
    Writes,
    /// Another error, which says nothing.
    Failed,
}

/// Statements that got the same answers, for the same reasons.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    pub server: Server,
    pub read: bool,
    /// Within a transaction that the suite had begun.
    pub in_transaction: bool,
    /// The classifier's rules that objected.
    pub rules: String,
}

/// What a group has.
#[derive(Clone, Debug, Default)]
pub struct Members {
    pub count: u64,
    /// The first few distinct ones.
    pub samples: Vec<String>,
}

/// All that was found.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub groups: BTreeMap<Group, Members>,
    /// Statements that weren't put to the server, by why not.
    pub not_asked: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// How many statements of groups that `choose` accepts.
    pub fn count(&self, choose: impl Fn(&Group) -> bool) -> u64 {
        self.groups.iter().filter(|(group, _)| choose(group)).map(|(_, members)| members.count).sum()
    }
}

/// A port that judges what passes it. Ends when dropped.
#[derive(Debug)]
pub struct Judge {
    port: u16,
    court: Arc<Court>,
    _tasks: JoinSet<()>,
}

impl Judge {
    pub async fn start(leader: Member) -> anyhow::Result<Judge> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let court = Arc::new(Court { leader, ddl: AtomicU64::new(1), facts: Default::default(), tally: Default::default() });
        let mut tasks = JoinSet::new();
        let own = court.clone();
        tasks.spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let court = own.clone();
                sessions.spawn(async move {
                    if let Err(error) = Session::run(&court, client).await {
                        eprintln!("a session ended: {error:#}");
                    }
                });
                while sessions.try_join_next().is_some() {}
            }
        });
        Ok(Judge { port, court, _tasks: tasks })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What was found up to now.
    pub fn tally(&self) -> Tally {
        self.court.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Facts of one database, and the count of DDL that they know of.
type Known = tokio::sync::Mutex<Option<(u64, Arc<Facts>, tokio_postgres::Client)>>;

#[derive(Debug)]
struct Court {
    leader: Member,
    /// How much of what may have changed catalogs has ended.
    ddl: AtomicU64,
    facts: std::sync::Mutex<HashMap<String, Arc<Known>>>,
    tally: std::sync::Mutex<Tally>,
}

impl Court {
    /// The database's facts as they are now.
    async fn facts(&self, database: &str) -> anyhow::Result<Arc<Facts>> {
        let known = self.facts.lock().unwrap_or_else(PoisonError::into_inner).entry(database.to_owned()).or_default().clone();
        let mut known = known.lock().await;
        let ddl = self.ddl.load(Ordering::SeqCst);
        let client = match known.take() {
            Some((seen, facts, client)) if seen == ddl => {
                *known = Some((seen, facts.clone(), client));
                return Ok(facts);
            }
            Some((_, _, client)) if !client.is_closed() => client,
            _ => connect(&self.leader, database).await?,
        };
        let facts = Arc::new(switchyard::facts::load(&client, ddl).await?);
        *known = Some((ddl, facts.clone(), client));
        Ok(facts)
    }

    fn note(&self, verdict: &Verdict, server: Server, in_transaction: bool, text: &str) {
        let read = verdict.class < Class::Write;
        let mut rules: Vec<&str> = verdict.reasons.iter().map(|reason| reason.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        let group = Group { server, read, in_transaction, rules: rules.join(", ") };
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let members = tally.groups.entry(group).or_default();
        members.count += 1;
        if members.samples.len() < SAMPLES {
            let pieces: Vec<&str> = verdict.reasons.iter().map(|reason| &*reason.piece).collect();
            let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SAMPLE_CHARS).collect();
            let sample = if pieces.is_empty() { text } else { format!("{text}    [{}]", pieces.join(", ")) };
            if !members.samples.contains(&sample) {
                members.samples.push(sample);
            }
        }
    }

    fn not_asked(&self, why: &'static str) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner).not_asked.entry(why).or_default() += 1;
    }
}

/// As superuser.
async fn connect(leader: &Member, database: &str) -> anyhow::Result<tokio_postgres::Client> {
    let mut config: tokio_postgres::Config = leader.dsn().parse()?;
    let (client, connection) =
        config.dbname(database).connect(tokio_postgres::NoTls).await.with_context(|| format!("connect to {database}"))?;
    tokio::spawn(connection);
    Ok(client)
}

/// One side of a connection, message by message.
#[derive(Debug)]
struct Peer {
    stream: TcpStream,
    input: BytesMut,
}

/// A message with its header.
#[derive(Debug)]
struct Message {
    tag: u8,
    bytes: Bytes,
}

impl Message {
    fn body(&self) -> &[u8] {
        &self.bytes[5..]
    }
}

impl Peer {
    fn new(stream: TcpStream) -> anyhow::Result<Peer> {
        stream.set_nodelay(true)?;
        Ok(Peer { stream, input: BytesMut::new() })
    }

    /// `None` at the connection's end. `header`: 5 with a tag, 4 for a first packet.
    async fn bytes(&mut self, header: usize) -> anyhow::Result<Option<Bytes>> {
        loop {
            if self.input.len() >= header {
                let length = (&self.input[header - 4..header]).get_u32() as usize + header - 4;
                if !(header..=MESSAGE_MAX).contains(&length) {
                    bail!("a message of {length} bytes");
                }
                if self.input.len() >= length {
                    return Ok(Some(self.input.split_to(length).freeze()));
                }
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn message(&mut self) -> anyhow::Result<Option<Message>> {
        Ok(self.bytes(5).await?.map(|bytes| Message { tag: bytes[0], bytes }))
    }

    async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }
}

struct Session<'a> {
    court: &'a Court,
    client: Peer,
    server: Peer,
    database: String,
    status: u8,
    dialect: Dialect,
}

impl Session<'_> {
    async fn run(court: &Court, client: TcpStream) -> anyhow::Result<()> {
        let mut client = Peer::new(client)?;
        let mut server = Peer::new(TcpStream::connect(("127.0.0.1", court.leader.port())).await?)?;
        let database = loop {
            let Some(packet) = client.bytes(4).await? else { return Ok(()) };
            let code = packet.get(4..8).context("a first packet without a code")?.get_i32();
            match code {
                SSL_REQUEST | GSSENC_REQUEST => client.send(b"N").await?,
                CANCEL_REQUEST => return server.send(&packet).await,
                _ => {
                    server.send(&packet).await?;
                    let words: Vec<&[u8]> = packet[8..].split(|byte| *byte == 0).collect();
                    let value = |name: &[u8]| words.chunks(2).find(|pair| pair[0] == name).and_then(|pair| pair.get(1)).copied();
                    break String::from_utf8_lossy(value(b"database").or(value(b"user")).unwrap_or_default()).into_owned();
                }
            }
        };
        let mut session = Session { court, client, server, database, status: b'I', dialect: Dialect::default() };
        if !session.answer().await? {
            return Ok(());
        }
        while let Some(message) = session.client.message().await? {
            match message.tag {
                b'Q' => {
                    if !session.query(&message).await? {
                        return Ok(());
                    }
                }
                tag => {
                    session.server.send(&message.bytes).await?;
                    // Sync, and the function calls of large objects.
                    if tag == b'X' || (matches!(tag, b'S' | b'F') && !session.answer().await?) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// A simple query: both are asked, and then it runs. False where the server has hung up.
    async fn query(&mut self, message: &Message) -> anyhow::Result<bool> {
        let text = message.body().strip_suffix(&[0]).unwrap_or_default();
        // Facts take long to read, and most of the suite's DDL comes behind other DDL, whose verdict they don't touch.
        let mut verdict = classify(text, &Facts::default(), self.dialect);
        if !writes_anyway(&verdict) {
            verdict = classify(text, &*self.court.facts(&self.database).await?, self.dialect);
        }
        match self.reason_not_to_ask(&verdict) {
            Some(why) => self.court.not_asked(why),
            None => {
                let in_transaction = self.status == b'T';
                let server = self.ask(message).await?;
                self.court.note(&verdict, server, in_transaction, &String::from_utf8_lossy(text));
            }
        }
        let before = self.status;
        self.server.send(&message.bytes).await?;
        let goes_on = self.answer().await?;
        let committed = before == b'T' && self.status == b'I';
        if committed || (verdict.class == Class::Write && may_change_catalogs(&verdict)) {
            self.court.ddl.fetch_add(1, Ordering::SeqCst);
        }
        Ok(goes_on)
    }

    fn reason_not_to_ask(&self, verdict: &Verdict) -> Option<&'static str> {
        let controls = |effect: &Effect| {
            use Effect::{Begin, Commit, PrepareTransaction, Release, Rollback, RollbackTo, Savepoint, SetSnapshot, SetTransaction};
            matches!(
                effect,
                Begin(_)
                    | Commit { .. }
                    | Rollback { .. }
                    | Savepoint { .. }
                    | RollbackTo { .. }
                    | Release { .. }
                    | PrepareTransaction
                    | SetTransaction { .. }
                    | SetSnapshot
            )
        };
        if self.status == b'E' {
            Some("in a failed transaction")
        } else if verdict.effects.iter().any(controls) {
            Some("transaction control")
        } else if verdict.kind == Kind::Empty {
            Some("empty")
        } else if verdict.class == Class::Local {
            Some("session state only (SET, SHOW, DISCARD...)")
        } else if matches!(
            verdict.command,
            "FETCH" | "MOVE" | "CLOSE" | "CLOSE CURSOR" | "PREPARE" | "EXECUTE" | "DEALLOCATE" | "LISTEN" | "UNLISTEN"
        ) {
            Some("cursors, PREPARE, LISTEN: bound to their session")
        } else {
            None
        }
    }

    /// What the server says in a READ ONLY transaction. Nothing of it reaches the client.
    async fn ask(&mut self, message: &Message) -> anyhow::Result<Server> {
        let (begin, end) = match self.status {
            b'T' => (
                "SAVEPOINT switchyard_verdicts; SET LOCAL transaction_read_only = on",
                "ROLLBACK TO switchyard_verdicts; RELEASE switchyard_verdicts",
            ),
            _ => ("BEGIN READ ONLY", "ROLLBACK"),
        };
        let before = self.status;
        self.quietly(&query(begin)).await?;
        let (said, _) = self.quietly(&message.bytes).await?;
        let mut primary_only = false;
        if said.is_none() {
            primary_only = self.quietly(&query(PRIMARY_ONLY)).await?.1.as_deref() == Some(b"t");
        }
        self.quietly(&query(end)).await?;
        if self.status != before {
            bail!("the question has changed the transaction's status");
        }
        Ok(match said.as_deref() {
            None if primary_only => Server::RanOnPrimaryOnly,
            None => Server::Ran,
            Some("25006") => Server::Writes,
            Some(_) => Server::Failed,
        })
    }

    /// The first error's SQLSTATE, and the first value of the last row.
    async fn quietly(&mut self, message: &[u8]) -> anyhow::Result<(Option<String>, Option<Bytes>)> {
        self.server.send(message).await?;
        let (mut sqlstate, mut value) = (None, None);
        loop {
            let message = self.server.message().await?.context("the server hung up under a question")?;
            match message.tag {
                b'E' if sqlstate.is_none() => {
                    let code = message.body().split(|byte| *byte == 0).find(|field| field.first() == Some(&b'C'));
                    sqlstate = Some(String::from_utf8_lossy(&code.context("an error without SQLSTATE")?[1..]).into_owned());
                }
                // The count of columns, then the first one's length and bytes.
                b'D' => {
                    let length = message.body().get(2..6).map_or(-1, |mut length| length.get_i32());
                    value = usize::try_from(length).ok().and_then(|length| message.body().get(6..6 + length)).map(Bytes::copy_from_slice);
                }
                // Whether it would copy is known by now.
                b'G' => self.server.send(&copy_done()).await?,
                b'S' => self.parameter(&message),
                b'Z' => {
                    self.status = message.body().first().copied().context("no status")?;
                    return Ok((sqlstate, value));
                }
                _ => {}
            }
        }
    }

    /// Passes on what the server says up to ReadyForQuery, and what it asks of the client. False where it has hung up.
    async fn answer(&mut self) -> anyhow::Result<bool> {
        loop {
            let Some(message) = self.server.message().await? else { return Ok(false) };
            self.client.send(&message.bytes).await?;
            match message.tag {
                b'R' if message.body().len() >= 4 && ASKS_CLIENT.contains(&message.body().get_i32()) => {
                    let Some(reply) = self.client.message().await? else { return Ok(false) };
                    self.server.send(&reply.bytes).await?;
                }
                b'G' => loop {
                    let Some(data) = self.client.message().await? else { return Ok(false) };
                    self.server.send(&data.bytes).await?;
                    if matches!(data.tag, b'c' | b'f') {
                        break;
                    }
                },
                b'S' => self.parameter(&message),
                b'Z' => {
                    self.status = message.body().first().copied().context("no status")?;
                    return Ok(true);
                }
                _ => {}
            }
        }
    }

    fn parameter(&mut self, message: &Message) {
        let mut words = message.body().split(|byte| *byte == 0);
        if words.next() == Some(b"standard_conforming_strings") {
            self.dialect.standard_conforming_strings = words.next() == Some(b"on");
        }
    }
}

/// Whatever the facts are.
fn writes_anyway(verdict: &Verdict) -> bool {
    verdict.effects.contains(&Effect::Ddl) || matches!(verdict.kind, Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge)
}

fn may_change_catalogs(verdict: &Verdict) -> bool {
    let plain = matches!(verdict.kind, Kind::Select | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge | Kind::Copy);
    verdict.effects.contains(&Effect::Ddl)
        || !(plain || matches!(verdict.command, "ANALYZE" | "VACUUM" | "EXPLAIN" | "LOCK TABLE" | "FETCH"))
}

fn query(sql: &str) -> Vec<u8> {
    let mut bytes = vec![b'Q'];
    bytes.put_u32(sql.len() as u32 + 5);
    bytes.put_slice(sql.as_bytes());
    bytes.put_u8(0);
    bytes
}

fn copy_done() -> Vec<u8> {
    let mut bytes = vec![b'c'];
    bytes.put_u32(4);
    bytes
}
