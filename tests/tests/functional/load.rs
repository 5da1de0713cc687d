//! Many clients at once, and large amounts of data.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use switchyard_tests::psql::run;
use switchyard_tests::{Result, RouterOptions, eventually};

use crate::yard::{SOON, ask, memory, metric, tell};

/// Gigabytes to copy in each direction, such as `1`; a quarter of one if it isn't set.
const COPY_GB: &str = "SWITCHYARD_COPY_GB";
/// What the router may need for a COPY of any size, in bytes beside what it had.
const COPY_MEMORY: u64 = 16 << 20;

#[tokio::test]
async fn two_hundred_clients_and_a_pool_of_ten() -> Result {
    tell(async |yard| {
        const CLIENTS: usize = 200;
        yard.prepare("CREATE TABLE load_many (client int, round int); GRANT ALL ON load_many TO app").await?;
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 10)).await?;
        let stories = (0..CLIENTS as i32).map(|me| {
            let router = &router;
            async move {
                let client = router.rw("app").await.with_context(|| format!("client {me}"))?;
                for round in 0..5_i32 {
                    ensure!(client.query_one("SELECT $1::int * 2", &[&me]).await?.get::<_, i32>(0) == me * 2);
                    client.execute("INSERT INTO load_many VALUES ($1, $2)", &[&me, &round]).await?;
                    let mine = client.query_one("SELECT count(*) FROM load_many WHERE client = $1", &[&me]).await?;
                    ensure!(mine.get::<_, i64>(0) == i64::from(round) + 1, "client {me} doesn't see its own row");
                }
                anyhow::Ok(client)
            }
        });
        let clients = try_join_all(stories).await?;
        ensure!(metric(&router, "switchyard_clients{port=\"read_write\"}").await? as usize == CLIENTS);
        let servers = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = 'postgres'";
        for member in yard.cluster.members() {
            // The other router may hold some of its own.
            let open: usize = member.ask(servers).await?.parse()?;
            ensure!(open <= 10 + 20, "{open} connections to {}", member.name());
        }
        let opened = metric(&router, &format!("switchyard_server_connections{{node=\"{}\"}}", yard.leader.name())).await?;
        ensure!((1.0..=12.0).contains(&opened), "{opened} connections to the leader");
        ensure!(yard.leader.ask("SELECT count(*) FROM load_many").await? == (CLIENTS * 5).to_string());
        drop(clients);
        eventually(SOON, "all of them have gone", || async {
            Ok((metric(&router, "switchyard_clients{port=\"read_write\"}").await? == 0.0).then_some(()))
        })
        .await?;

        // The same by pgbench, with new connections for each transaction.
        let dsn = router.rw_dsn("app");
        let script = "/proc/self/fd/0";
        let churn = run("pgbench", &["-n", "-C", "-c", "20", "-j", "2", "-t", "5", "-f", script, &dsn], "SELECT 1;\n").await?.success()?;
        ensure!(churn.contains("100/100"), "{churn}");
        Ok(())
    })
    .await
}

/// The most memory that the router had while the work was done, beyond what it had before.
async fn growth(pid: u32, work: impl Future<Output = Result>) -> Result<u64> {
    let before = memory(pid, "VmRSS")?;
    let mut most = before;
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(Duration::from_millis(20), &mut work).await {
            Ok(done) => {
                done?;
                return Ok(most - before);
            }
            Err(_) => most = most.max(memory(pid, "VmRSS")?),
        }
    }
}

#[tokio::test]
async fn a_large_copy_in_constant_memory() -> Result {
    tell(async |yard| {
        let gigabytes: f64 = std::env::var(COPY_GB).ok().map_or(Ok(0.25), |text| text.parse())?;
        // Lines of 1,000 bytes.
        let lines = (gigabytes * (1 << 30) as f64 / 1_000.0) as u64;
        let router = yard.other_router(RouterOptions::new()).await?;
        let pid = router.pid().context("it runs")?;
        ask(&router.rw_dsn("app"), "CREATE UNLOGGED TABLE load_copy (line text)").await?;
        let begin = Instant::now();
        // From the servers through the router to a pipe, and from there through the router to the leader.
        let generate = format!("COPY (SELECT lpad(g::text, 999, '.') FROM generate_series(1, {lines}) g) TO STDOUT");
        let (from, to) = (router.rw_dsn("app"), router.rw_dsn("app"));
        let pipe = format!("psql -X -q '{from}' -c \"{generate}\" | psql -X -q '{to}' -c 'COPY load_copy FROM STDIN'");
        let grown = growth(pid, async {
            let status = tokio::process::Command::new("bash").args(["-o", "pipefail", "-c", &pipe]).kill_on_drop(true).status().await?;
            ensure!(status.success(), "{status}");
            Ok(())
        })
        .await?;
        let check = "SELECT count(*) || ' ' || sum(length(line)) || ' ' || sum(ltrim(line, '.')::bigint) FROM load_copy";
        let expected = format!("{lines} {} {}", lines * 999, lines * (lines + 1) / 2);
        ensure!(yard.leader.ask(check).await? == expected);
        println!("COPY out and in, {gigabytes} GB each: {:.1} s, {} kB more", begin.elapsed().as_secs_f64(), grown / 1024);
        ensure!(grown < COPY_MEMORY, "{} MB for a COPY", grown >> 20);
        yard.prepare("DROP TABLE load_copy").await
    })
    .await
}

/// What nobody may bring down: garbage, half a message and silence, a packet that says it is huge.
#[tokio::test]
async fn bad_input_harms_nobody() -> Result {
    tell(async |yard| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let witness = yard.router.rw("app").await?;
        let (rw, ro) = (yard.router.rw_port(), yard.router.ro_port());
        let http: u16 = yard.router.http_url().rsplit(':').next().context("a port")?.parse()?;
        let huge = [&i32::MAX.to_be_bytes()[..], &196_608_i32.to_be_bytes()].concat();
        let mut silent = Vec::new();
        for port in [rw, ro, http] {
            for bytes in
                [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 64], &huge, &[0, 0, 0, 8, 4, 210, 22, 48], b"\x16\x03\x01\x02"]
            {
                let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
                let _ = stream.write_all(bytes).await;
                stream.shutdown().await.ok();
                let mut answer = Vec::new();
                let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.context("it hangs")?;
                // Half a message, and silence.
                let mut half = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
                half.write_all(&[0, 0, 0]).await?;
                silent.push(half);
            }
        }
        // Garbage behind a login.
        for bytes in [
            &b"\xff\xff\xff\xff\xff\xff\xff"[..],
            b"Q\x7f\xff\xff\xffSELECT",
            b"Q\0\0\0\x01",
            b"P\0\0\0\x06xx",
            b"B\0\0\0\x04",
            b"Z\0\0\0\x05I",
        ] {
            let mut client = switchyard_tests::Raw::connect(&yard.router.rw_dsn("app")).await?;
            client.send(bytes).await?;
            client.stream.shutdown().await?;
            ensure!(client.is_closed().await, "{bytes:?}: it stays open");
        }
        ensure!(witness.query_one("SELECT 42", &[]).await?.get::<_, i32>(0) == 42);
        ensure!(yard.router.get("/livez").await?.status == 200);
        drop(silent);
        Ok(())
    })
    .await
}
