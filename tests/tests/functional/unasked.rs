//! A server that says more than it was asked for. No PostgreSQL does, so one stands behind a relay that adds to what
//! it says.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::ensure;
use switchyard_tests::{Raw, Result, Router, RouterOptions, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::yard::{SOON, Yard, metric, tell};

/// In a row of an answer, it has the relay add something behind that answer's ReadyForQuery.
const CUE: &[u8] = b"say more";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// In the same write.
    AtOnce,
    /// When the connection rests in its pool.
    Later,
}

#[derive(Debug, Default)]
struct Script {
    add: Option<(When, Vec<u8>)>,
    /// How often something was added.
    added: usize,
}

/// A way to a server on which more is said than by the server. Dropped, it is gone.
struct Relay {
    port: u16,
    script: Arc<Mutex<Script>>,
    /// Now is later.
    go: Arc<Notify>,
    accepting: JoinHandle<()>,
}

impl Relay {
    async fn to(port: u16) -> Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let near = listener.local_addr()?.port();
        let script = Arc::new(Mutex::new(Script::default()));
        let go = Arc::new(Notify::new());
        let shared = (script.clone(), go.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (script, go) = shared.clone();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let (mut from_client, to_client) = client.into_split();
                    let (from_server, mut to_server) = server.into_split();
                    let there = async {
                        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                        let _ = to_server.shutdown().await;
                    };
                    tokio::join!(there, answers(from_server, to_client, &script, &go));
                });
            }
        });
        Ok(Relay { port: near, script, go, accepting })
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes whole messages on, and adds to them.
async fn answers(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, script: &Mutex<Script>, go: &Notify) {
    let mut input = Vec::new();
    let mut cued = false;
    loop {
        let mut out = Vec::new();
        let mut later = None;
        while let Some(head) = input.first_chunk::<5>() {
            let total = 1 + u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if input.len() < total {
                break;
            }
            let message: Vec<u8> = input.drain(..total).collect();
            cued |= message[0] == b'D' && message.windows(CUE.len()).any(|part| part == CUE);
            out.extend_from_slice(&message);
            if message[0] == b'Z' && std::mem::take(&mut cued) {
                let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
                match script.add.take() {
                    Some((When::AtOnce, more)) => {
                        out.extend_from_slice(&more);
                        script.added += 1;
                    }
                    Some((When::Later, more)) => later = Some(more),
                    None => {}
                }
            }
        }
        if to.write_all(&out).await.is_err() {
            return;
        }
        if let Some(more) = later {
            go.notified().await;
            if to.write_all(&more).await.is_err() {
                return;
            }
            script.lock().unwrap_or_else(PoisonError::into_inner).added += 1;
        }
        match from.read_buf(&mut input).await {
            Ok(count) if count > 0 => {}
            _ => {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn row(value: &[u8]) -> Vec<u8> {
    message(b'D', &[&1u16.to_be_bytes()[..], &(value.len() as u32).to_be_bytes(), value].concat())
}

/// A router in front of the leader alone, by way of the relay, with one server connection for each pool.
async fn router(yard: &Yard, relay: &Relay) -> Result<Router> {
    let mut member = toml::Table::new();
    member.insert("name".to_owned(), "relayed".into());
    member.insert("host".to_owned(), "127.0.0.1".into());
    member.insert("port".to_owned(), i64::from(relay.port).into());
    let options = RouterOptions::new()
        .set("etcd.endpoints", toml::Value::Array(Vec::new()))
        .set("cluster.member", vec![toml::Value::Table(member)])
        .set("server_tls.mode", "disable")
        .set("pool.max_size", 1)
        // A look of the router's would come between.
        .set("pool.verify_returns", 0.0);
    yard.other_router(options).await
}

#[tokio::test]
async fn it_answers_nobody() -> Result {
    tell(async |yard| {
        let relay = Relay::to(yard.leader.port()).await?;
        let router = router(yard, &relay).await?;
        let stolen = [row(b"stolen"), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
        let error = message(b'E', b"SERROR\0VERROR\0CXX000\0Mstolen\0\0");
        let notification = message(b'A', b"\0\0\0\x01stolen\0\0");
        let report = message(b'S', b"IntervalStyle\0postgres\0");
        let notice = message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mstolen\0\0");
        let half = notice[..7].to_vec();
        // What is said, and whether the connection can be used all the same.
        let cases = [
            ("a whole answer", stolen.clone(), false),
            ("a row", row(b"stolen"), false),
            ("CommandComplete", message(b'C', b"SELECT 1\0"), false),
            ("ReadyForQuery", message(b'Z', b"I"), false),
            ("ParseComplete", message(b'1', b""), false),
            ("an error", error, false),
            ("a notification", notification, false),
            ("half a message", half, false),
            ("no message", b"\xff\xff\xff\xff\xff\xff".to_vec(), false),
            ("a report and a notice", [report.clone(), notice].concat(), true),
            ("a report, and an answer behind it", [report, stolen].concat(), false),
        ];
        let (mut added, mut bad) = (0, 0);
        for (what, more, usable) in cases {
            for when in [When::AtOnce, When::Later] {
                let mut one = Raw::connect(&router.rw_dsn("app")).await?;
                let mut other = Raw::connect(&router.rw_dsn("app")).await?;
                relay.script().add = Some((when, more.clone()));
                // The leader's: it writes, for all that the router knows.
                let cue = one.query("SELECT 'say more', pg_current_xact_id_if_assigned(), pg_current_wal_insert_lsn() IS NULL").await?;
                ensure!(cue.last().is_some_and(|last| last == "Z I") && cue.len() == 4, "{what}, {when:?}: {cue:?}");
                added += 1;
                if when == When::Later {
                    eventually(SOON, "the connection rests", || async { Ok((rests(&router).await? == 1).then_some(())) }).await?;
                    relay.go.notify_one();
                }
                eventually(SOON, "it was said", || async { Ok((relay.script().added == added).then_some(())) }).await?;
                let told = other.query("SELECT 'mine'").await?;
                ensure!(told == ["T ?column?:25", "D mine", "C SELECT 1", "Z I"], "{what}, {when:?}: {told:?}");
                let told = one.query("SELECT 'mine, too'").await?;
                ensure!(told == ["T ?column?:25", "D mine, too", "C SELECT 1", "Z I"], "{what}, {when:?}: {told:?}");
            }
            bad += if usable { 0 } else { 2 };
        }
        // Each one that can't be used was closed: one connection to begin with, and another one for each of those.
        let opened = connections_opened(&router).await?;
        ensure!(opened == 1 + bad, "{opened} connections were opened");
        Ok(())
    })
    .await
}

async fn connections_opened(router: &Router) -> Result<usize> {
    Ok(metric(router, "switchyard_server_connections_opened_total{node=\"relayed\"}").await? as usize)
}

async fn rests(router: &Router) -> Result<usize> {
    Ok(metric(router, "switchyard_pool_idle{node=\"relayed\",database=\"postgres\",user=\"app\"}").await? as usize)
}
