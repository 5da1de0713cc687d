//! The router's corpus of statements, each run where it belongs, with the answers of a direct connection.
//!
//! Where a statement ran is told by the members' own logs: the role that runs them has `log_statement = 'all'`, and PostgreSQL writes the
//! log before it answers. Each row gets a session of its own, so that none carries what the one before it left.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, ensure};
use switchyard_tests::machine::checkout;
use switchyard_tests::{Batch, Member, Raw, Result, eventually};

use crate::yard::{SOON, Yard, in_database, tell};

const ROLE: &str = "postgres";

/// Rows whose answers differ from one time to the next, or from server to server: only what kind of answer it is, is compared.
const VOLATILE: &[&str] = &[
    "now()",
    "random()",
    "TABLESAMPLE",
    "EXPLAIN",
    "pg_backend_pid",
    "inet_server",
    "pg_stat_",
    "pg_locks",
    "pg_current_wal",
    "txid_",
    "pg_current_xact",
    "pg_replication_slots",
    "lo_",
    "pg_settings",
    "pg_postmaster_start_time",
    "pg_export_snapshot",
    "pg_notify",
    "NOTIFY",
    "pg_sequences",
    "pg_total_relation_size",
    "pg_type",
    "pg_class",
    "audit",
    "version()",
    "::mood",
    "current_database",
    "pg_logical_emit_message",
    "pg_cursors",
    "localtime",
    "information_schema.tables",
];

struct Row {
    /// Its file and line.
    place: String,
    read_write: String,
    read_only: String,
    sql: String,
}

fn corpus() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for file in ["routing.tsv", "forms.tsv"] {
        let text = std::fs::read_to_string(checkout().join("proxy/core/corpus").join(file))?;
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty()) {
            let place = format!("{file}, line {}", index + 1);
            let mut columns = line.splitn(3, '\t');
            let mut column = || columns.next().with_context(|| place.clone()).map(str::to_owned);
            let (read_write, read_only, sql) = (column()?, column()?, column()?.replace("\\n", "\n"));
            rows.push(Row { place, read_write, read_only, sql });
        }
    }
    ensure!(rows.len() > 350, "{} rows", rows.len());
    Ok(rows)
}

/// In the order of a hash table's rows it is seen what the planner has known of a table: that mustn't change while answers are compared.
const STATISTICS: &str = "DO $$ DECLARE t regclass; BEGIN
        FOR t IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace LOOP
            EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', t);
            EXECUTE format('ANALYZE %s', t);
        END LOOP;
    END $$";

async fn load(yard: &Yard, database: &str) -> Result {
    let schema = std::fs::read_to_string(checkout().join("proxy/core/corpus/schema.sql"))?;
    yard.prepare(&format!("CREATE DATABASE {database}")).await?;
    yard.prepare(&format!("ALTER DATABASE {database} SET log_statement = 'all'")).await?;
    let client = switchyard_tests::cluster::connect(&in_database(&yard.leader.dsn(), database)).await?;
    client.batch_execute(&schema).await?;
    client.batch_execute(STATISTICS).await?;
    yard.cluster.settled().await
}

/// Which members ran a statement since this was made.
struct Logs<'a> {
    members: Vec<(&'a Member, u64)>,
}

impl<'a> Logs<'a> {
    fn mark(members: &'a [Member]) -> Result<Logs<'a>> {
        let length = |member: &Member| std::fs::metadata(member.log()).map(|about| about.len());
        Ok(Logs { members: members.iter().map(|member| Ok((member, length(member)?))).collect::<Result<_>>()? })
    }

    /// The names of those that logged exactly this text, for that database, as a statement that ran or that caused an error.
    fn ran(&self, database: &str, sql: &str) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for (member, from) in &self.members {
            let mut log = std::fs::File::open(member.log())?;
            log.seek(SeekFrom::Start(*from))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            // Continuation lines begin with a tab.
            let text = String::from_utf8_lossy(&bytes).replace("\n\t", "\u{1}");
            let wanted = sql.trim_end().replace('\n', "\u{1}");
            let is_it = |line: &str| {
                let Some((_, said)) = line.split_once(&format!(" {ROLE}@{database} ")) else { return false };
                let said = ["LOG:  statement: ", "STATEMENT:  "].iter().find_map(|kind| Some(said.split_once(kind)?.1));
                let executed = || Some(line.split_once("LOG:  execute ")?.1.split_once(": ")?.1);
                said.or_else(executed).is_some_and(|said| said.trim_end() == wanted)
            };
            if text.lines().any(is_it) {
                names.insert(member.name().to_owned());
            }
        }
        Ok(names)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Simple,
    Extended,
}

/// The answer to a row in a session of its own.
async fn answer(dsn: &str, row: &Row, protocol: Protocol) -> Result<Vec<String>> {
    let mut session = Raw::connect(dsn).await?;
    let mut batch = match protocol {
        Protocol::Simple => Batch::new().query(&row.sql),
        Protocol::Extended => Batch::new().parse("", &row.sql).describe_statement("").bind("", "", &[]).execute("", 0).sync(),
    };
    if row.sql.contains("FROM STDIN") {
        batch = batch.copy_done();
        if protocol == Protocol::Extended {
            batch = batch.sync();
            // The Sync before the data is ignored.
            batch.readies -= 1;
        }
    }
    session.ask(&batch).await.with_context(|| format!("{}: {}", row.place, row.sql))
}

/// What is compared of an answer: all, or the kinds of its messages without the rows, and the SQLSTATEs.
fn comparable(row: &Row, answer: &[String]) -> Vec<String> {
    if !VOLATILE.iter().any(|word| row.sql.contains(word)) {
        return answer.to_vec();
    }
    let kind = |line: &String| match line.split(' ').collect::<Vec<_>>().as_slice() {
        ["E", _, code, ..] => format!("E {code}"),
        ["T", columns @ ..] => format!("T {}", columns.len()),
        [first, ..] => (*first).to_owned(),
        [] => String::new(),
    };
    answer.iter().filter(|line| !matches!(line.as_bytes().first(), Some(b'D' | b'A' | b'd' | b'S'))).map(kind).collect()
}

/// Waits until the router knows what the functions of `schema.sql` are.
async fn facts_are_known(yard: &Yard, database: &str) -> Result {
    let client = switchyard_tests::cluster::connect(&in_database(&yard.router.rw_dsn(ROLE), database)).await?;
    eventually(SOON, "facts", || async {
        let told = switchyard_tests::cluster::column(&client, "EXPLAIN (ROUTE) SELECT f_stable(1)").await?;
        Ok(told.iter().any(|line| line == "Verdict: read").then_some(()))
    })
    .await
}

/// What the writing statements have left, which is the same both ways.
async fn what_is_left(yard: &Yard, direct: &str, routed: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for query in ["SELECT string_agg(what, ',' ORDER BY what) FROM audit", "SELECT string_agg(t::text, ',' ORDER BY id) FROM t"] {
        let ask = async |database: &str| crate::yard::ask(&in_database(&yard.leader.dsn(), database), query).await;
        let (expected, got) = (ask(direct).await?, ask(routed).await?);
        ensure!(expected == got, "{query}\n directly {expected}\n by the router {got}");
        left.push(got);
    }
    Ok(left)
}

async fn read_write(yard: &Yard, protocol: Protocol) -> Result {
    let word = format!("{protocol:?}").to_lowercase();
    let (direct, routed) = (format!("corpus_direct_{word}"), format!("corpus_routed_{word}"));
    load(yard, &direct).await?;
    load(yard, &routed).await?;
    let members = yard.cluster.members();
    let mut wrong = Vec::new();
    let (mut written, mut further) = (true, false);
    for row in corpus()? {
        if row.place.starts_with("forms.tsv") && !std::mem::replace(&mut further, true) {
            let left = what_is_left(yard, &direct, &routed).await?;
            ensure!(left.iter().all(|left| !left.is_empty()), "the corpus writes nothing: {left:?}");
        }
        if written && row.read_write != "leader" {
            // Sessions of their own are promised nothing about the writes of others; the comparison needs them. And while facts are read anew,
            // what they tell of is the leader's.
            yard.cluster.settled().await?;
            facts_are_known(yard, &routed).await?;
            written = false;
        }
        let expected = answer(&in_database(&yard.leader.dsn(), &direct), &row, protocol).await?;
        let logs = Logs::mark(&members)?;
        let got = answer(&in_database(&yard.router.rw_dsn(ROLE), &routed), &row, protocol).await?;
        let ran = logs.ran(&routed, &row.sql)?;
        let at = format!("{}: {:?}", row.place, row.sql);
        if comparable(&row, &expected) != comparable(&row, &got) {
            wrong.push(format!("{at}\n  directly {expected:?}\n  by the router {got:?}"));
        }
        let (on_leader, on_replica) = (ran.contains(yard.leader.name()), ran.iter().any(|name| name != yard.leader.name()));
        // Several statements can't be prepared, and whoever says so is right. And a lone BEGIN is held back, for the transaction's first statement.
        let never_ran = row.sql.starts_with("BEGIN") && !row.sql.contains(';')
            || protocol == Protocol::Extended && expected.iter().any(|line| line.starts_with("E ERROR 42601 cannot insert multiple"));
        let fits = match row.read_write.as_str() {
            "replica" => on_replica && !on_leader,
            "leader" => on_leader && !on_replica,
            "local" => true,
            other => anyhow::bail!("{at}: {other}?"),
        };
        if !fits && !never_ran {
            wrong.push(format!("{at}\n  {} expected, ran on {ran:?}, leader {}, answer {got:?}", row.read_write, yard.leader.name()));
        }
        written |= row.read_write != "replica";
    }
    ensure!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    what_is_left(yard, &direct, &routed).await?;
    Ok(())
}

#[tokio::test]
async fn the_corpus_by_simple_queries() -> Result {
    tell(async |yard| read_write(yard, Protocol::Simple).await).await
}

#[tokio::test]
async fn the_corpus_by_the_extended_protocol() -> Result {
    tell(async |yard| read_write(yard, Protocol::Extended).await).await
}

#[tokio::test]
async fn the_corpus_on_the_read_only_port() -> Result {
    tell(async |yard| {
        load(yard, "corpus_read_only").await?;
        let members = yard.cluster.members();
        let mut wrong = Vec::new();
        for row in corpus()? {
            for protocol in [Protocol::Simple, Protocol::Extended] {
                let expected = answer(&in_database(&yard.replicas[0].dsn(), "corpus_read_only"), &row, protocol).await?;
                let logs = Logs::mark(&members)?;
                let got = answer(&in_database(&yard.router.ro_dsn(ROLE), "corpus_read_only"), &row, protocol).await?;
                let ran = logs.ran("corpus_read_only", &row.sql)?;
                let at = format!("{}, {protocol:?}: {:?}", row.place, row.sql);
                if comparable(&row, &expected) != comparable(&row, &got) {
                    wrong.push(format!("{at}\n  a replica {expected:?}\n  the router {got:?}"));
                }
                let codes: Vec<&str> = got.iter().filter_map(|line| line.strip_prefix("E ")?.split(' ').nth(1)).collect();
                let fits = match row.read_only.as_str() {
                    "ok" => codes.is_empty(),
                    "25006" => codes == ["25006"],
                    "error" => !codes.is_empty(),
                    _ => true,
                };
                // Several statements can't be prepared, wherever it is.
                if !fits && codes != ["42601"] {
                    wrong.push(format!("{at}\n  {} expected: {got:?}", row.read_only));
                }
                if ran.contains(yard.leader.name()) {
                    wrong.push(format!("{at}\n  ran on the leader"));
                }
            }
        }
        ensure!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
        Ok(())
    })
    .await
}
