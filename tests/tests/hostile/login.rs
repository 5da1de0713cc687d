//! Before anybody is logged in.

use std::time::Instant;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use switchyard_tests::Result;
use switchyard_tests::unruly::{Dice, Raw, first, head, message, query, ssl_request, startup};
use tokio::io::AsyncWriteExt;

use super::{LOGIN_TIMEOUT, SOON, USER, Yard};

pub(crate) async fn garbage(yard: &Yard) -> Result {
    let mut dice = Dice(1);
    let [rw, ro] = yard.ports();
    let http = yard.router.http_url().rsplit_once(':').context("a port")?.1.parse()?;
    for port in [rw, ro, http] {
        for _ in 0..60 {
            let count = 1 + dice.below(4000);
            let mut raw = Raw::connect(port).await?;
            // It may hang up in the middle of it.
            let _ = raw.send(&dice.bytes(count)).await;
            let _ = raw.stream.shutdown().await;
            raw.until_closed(SOON).await?;
        }
        // Each other's protocols.
        for text in
            ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n", "\x16\x03\x01\x02\x00\x01\x00", "SSH-2.0-x\r\n"]
        {
            let mut raw = Raw::connect(port).await?;
            let _ = raw.send(text.as_bytes()).await;
            let _ = raw.stream.shutdown().await;
            raw.until_closed(SOON).await?;
        }
        let mut raw = Raw::connect(port).await?;
        let _ = raw.send(&startup(USER)[..9]).await;
        let _ = raw.stream.shutdown().await;
        raw.until_closed(SOON).await?;
    }
    // A request without an end: its head is limited.
    let mut raw = Raw::connect(http).await?;
    raw.send(b"GET /stats HTTP/1.1\r\n").await?;
    let sent =
        raw.stuff(&b"X-Endless: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n".repeat(500), 64 << 20, LOGIN_TIMEOUT).await;
    ensure!(sent < 8 << 20, "{sent} bytes of a request's head were taken");
    ensure!(yard.router.get("/livez").await?.status == 200);
    Ok(())
}

pub(crate) async fn lies(yard: &Yard) -> Result {
    let version = 196_608_u32.to_be_bytes();
    let packets: Vec<Vec<u8>> = vec![
        // 2 GB, 4 GB, and a little more than allowed.
        0x7fff_ffff_u32.to_be_bytes().to_vec(),
        u32::MAX.to_be_bytes().to_vec(),
        10_005_u32.to_be_bytes().to_vec(),
        // Shorter than its own length, or than a version.
        0_u32.to_be_bytes().to_vec(),
        3_u32.to_be_bytes().to_vec(),
        4_u32.to_be_bytes().to_vec(),
        first(&[0, 3, 0]),
        // Versions.
        first(&[0, 2, 0, 0, 0]),
        first(&[9, 9, 9, 9, 0]),
        // Parameters: none, no end, no value, no user, too many ends, bytes that aren't text.
        first(&version),
        first(&[&version[..], b"user\0mallory"].concat()),
        first(&[&version[..], b"user\0"].concat()),
        first(&[&version[..], b"database\0postgres\0\0"].concat()),
        first(&[&version[..], b"user\0mallory\0\0garbage behind"].concat()),
        first(&[&version[..], b"user\0\xff\xfe\xfd\0\0"].concat()),
        first(&[&version[..], b"user\0mallory\0options\0-c\0\0"].concat()),
        first(&[&version[..], b"user\0mallory\0replication\0perhaps\0\0"].concat()),
        // Cancel requests of wrong sizes.
        first(&80_877_102_u32.to_be_bytes()),
        first(&[&80_877_102_u32.to_be_bytes()[..], &[0; 5]].concat()),
        first(&[&80_877_102_u32.to_be_bytes()[..], &[0; 2000]].concat()),
    ];
    for port in yard.ports() {
        for packet in &packets {
            let mut raw = Raw::connect(port).await?;
            raw.send(packet).await?;
            // It isn't waited for what was announced.
            raw.until_closed(LOGIN_TIMEOUT / 2).await.with_context(|| format!("{packet:x?}"))?;
        }
        // SSLRequest is answered once; PostgreSQL takes a second one for a version that it doesn't speak.
        let mut raw = Raw::connect(port).await?;
        raw.send(&ssl_request()).await?;
        let mut answer = [0];
        tokio::io::AsyncReadExt::read_exact(&mut raw.stream, &mut answer).await?;
        ensure!(&answer == b"N", "{answer:?}");
        for _ in 0..20 {
            let _ = raw.send(&ssl_request()).await;
        }
        raw.until_closed(LOGIN_TIMEOUT / 2).await?;
    }
    Ok(())
}

pub(crate) async fn silence(yard: &Yard) -> Result {
    let began = Instant::now();
    let app = startup("app");
    let openings: [&[u8]; 5] = [b"", &[0, 0], &startup(USER)[..20], &ssl_request(), &app];
    let mut silent = Vec::new();
    for port in yard.ports() {
        for opening in openings {
            let mut raw = Raw::connect(port).await?;
            raw.send(opening).await?;
            silent.push(raw);
        }
        // Half of an answer to the question for a password.
        let mut raw = Raw::connect(port).await?;
        raw.send(&app).await?;
        raw.message().await?;
        raw.send(&head(b'p', 100)).await?;
        silent.push(raw);
    }
    try_join_all(silent.iter_mut().map(|raw| raw.until_closed(SOON))).await?;
    let took = began.elapsed();
    ensure!(took >= LOGIN_TIMEOUT && took < LOGIN_TIMEOUT * 3, "closed after {took:?}");
    Ok(())
}

pub(crate) async fn too_early(yard: &Yard) -> Result {
    let mut dice = Dice(2);
    for port in yard.ports() {
        // In the place of a startup packet.
        let mut raw = Raw::connect(port).await?;
        raw.send(&query("SELECT 1")).await?;
        raw.until_closed(LOGIN_TIMEOUT / 2).await?;
        // In the place of a password.
        let bodies = [query("SELECT 1"), message(b'X', b""), head(b'p', 3), head(b'p', u32::MAX), head(b'p', 1 << 30), message(b'p', b"")];
        let random = (0..20).map(|_| message(b'p', &dice.bytes(1 + dice.clone().below(300))));
        for bytes in bodies.into_iter().chain(random.collect::<Vec<_>>()) {
            let mut raw = Raw::connect(port).await?;
            raw.send(&startup("app")).await?;
            ensure!(raw.message().await?.tag == b'R');
            raw.send(&bytes).await?;
            let said = raw.until_closed(LOGIN_TIMEOUT / 2).await.with_context(|| format!("{bytes:x?}"))?;
            ensure!(!said.contains(&b'Z') || !said.windows(6).any(|part| part == [b'Z', 0, 0, 0, 5, b'I']), "it got in");
        }
    }
    Ok(())
}

/// As many as the limit on open files of this process allows, 5,000 at most.
pub(crate) async fn crowd(yard: &Yard) -> Result {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = usize::try_from(limit.saturating_sub(500).min(5_000))?;
    let before = yard.memory("VmRSS")?;
    let mut crowd = Vec::with_capacity(count);
    for index in 0..count {
        crowd.push(Raw::connect(yard.ports()[index % 2]).await.with_context(|| format!("after {index}"))?);
    }
    yard.load.goes_on(5, SOON).await?;
    let each = yard.memory("VmRSS")?.saturating_sub(before) / count.max(1) as u64;
    println!("{count} silent connections: {each} bytes each");
    ensure!(each < 16 << 10, "{each} bytes for each silent connection");
    let mut late = Raw::log_in(yard.router.rw_port(), USER).await.context("a login in the crowd")?;
    late.send(&query("SELECT 1")).await?;
    ensure!(late.answer().await?.1);
    Ok(())
}
