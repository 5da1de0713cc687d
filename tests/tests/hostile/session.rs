//! After a good login.

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use switchyard_tests::Result;
use switchyard_tests::unruly::{Dice, Message, Raw, head, message, query, sync};

use super::{SOON, USER, Yard};

pub(crate) async fn lengths(yard: &Yard) -> Result {
    for port in yard.ports() {
        for tag in [b'Q', b'P', b'B', b'd', b'S', b'X', b'F', 0, 255] {
            for length in [0, 1, 3] {
                let mut raw = Raw::log_in(port, USER).await?;
                raw.send(&head(tag, length)).await?;
                ends_with(&mut raw, "08P01").await.with_context(|| format!("{} of length {length}", tag as char))?;
            }
        }
        for length in [u32::MAX, 0x8000_0000, 0x7fff_ffff] {
            let mut raw = Raw::log_in(port, USER).await?;
            raw.send(&head(b'Q', length)).await?;
            let (answer, _) = raw.answer().await?;
            ensure!(answer.last().and_then(Message::severity).as_deref() == Some("FATAL"), "{answer:?}");
        }
    }
    Ok(())
}

pub(crate) async fn unknown(yard: &Yard) -> Result {
    let known = b"QPBDECFHSXdcf";
    for tag in (0..=u8::MAX).filter(|tag| !known.contains(tag)) {
        let mut raw = Raw::log_in(yard.ports()[usize::from(tag) % 2], USER).await?;
        raw.send(&[message(tag, b"whatever\0"), query("SELECT 1")].concat()).await?;
        ends_with(&mut raw, "08P01").await.with_context(|| format!("message type {tag}"))?;
    }
    Ok(())
}

/// Whatever PostgreSQL makes of it: the session ends with an error, or answers the query behind it.
pub(crate) async fn malformed(yard: &Yard) -> Result {
    let parse = message(b'P', b"\0SELECT $1::int4\0\0\0");
    let bind = |tail: &[u8]| [parse.clone(), message(b'B', &[b"\0\0", tail].concat())].concat();
    let cases: Vec<(&str, Vec<u8>, Option<&str>)> = vec![
        ("Query without terminator", message(b'Q', b"SELECT 1"), None),
        ("Query without anything", message(b'Q', b""), None),
        ("Query with a zero inside", message(b'Q', b"SELECT 1\0SELECT 2\0"), None),
        ("Query that isn't UTF-8", message(b'Q', b"SELECT '\xff\xfe'\0"), Some("22021")),
        ("Parse without terminator", message(b'P', b"name"), None),
        ("Parse without text", message(b'P', b"name\0"), None),
        ("Parse without a terminated text", message(b'P', b"name\0SELECT 1"), None),
        ("Parse without types", message(b'P', b"name\0SELECT 1\0"), None),
        ("Parse with more types than there are", message(b'P', b"name\0SELECT 1\0\x7f\xff"), None),
        ("Parse with a negative number of types", message(b'P', b"name\0SELECT 1\0\xff\xff"), None),
        ("Bind without anything", [parse.clone(), message(b'B', b"")].concat(), None),
        ("Bind without counts", bind(b""), None),
        ("Bind with too many formats", bind(&[0x7f, 0xff]), None),
        ("Bind with too many values", bind(&[0, 0, 0x7f, 0xff]), None),
        ("Bind with a value longer than the message", bind(&[0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff]), None),
        ("Bind with a negative length", bind(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xf0]), None),
        ("Bind with bytes behind its end", bind(&[0, 0, 0, 1, 0, 0, 0, 1, b'1', 0, 0, 1, 2, 3]), None),
        ("Bind of an unknown statement", message(b'B', b"\0nosuch\0\0\0\0\0\0\0"), Some("26000")),
        ("Execute of an unknown portal", message(b'E', b"nosuch\0\0\0\0\0"), Some("34000")),
        ("Execute without a count", message(b'E', b"nosuch\0"), None),
        ("Describe of an unknown statement", message(b'D', b"Snosuch\0"), Some("26000")),
        ("Describe of an unknown portal", message(b'D', b"Pnosuch\0"), Some("34000")),
        ("Describe of something else", message(b'D', b"Xnosuch\0"), None),
        ("Describe of nothing", message(b'D', b""), None),
        ("Close of something else", message(b'C', b"Xnosuch\0"), None),
        ("Close of nothing", message(b'C', b""), None),
        ("FunctionCall of nothing", message(b'F', b""), None),
        ("FunctionCall with broken counts", message(b'F', &[0, 0, 0, 77, 0x7f, 0xff]), None),
        ("Sync with a body", message(b'S', b"body"), None),
        ("Flush with a body", message(b'H', b"body"), None),
        ("CopyData out of place", message(b'd', b"1\t2\n"), None),
        ("CopyDone out of place", message(b'c', b""), None),
        ("CopyFail out of place", message(b'f', b"no\0"), None),
        ("CopyData within a batch", [parse.clone(), message(b'd', b"1\t2\n")].concat(), None),
    ];
    let postgres = yard.cluster.leader().await?.port();
    let mut different = Vec::new();
    for (what, bytes, sqlstate) in &cases {
        let direct = outcome(postgres, bytes).await.with_context(|| format!("{what}, directly"))?;
        for port in yard.ports() {
            let routed = outcome(port, bytes).await.with_context(|| (*what).to_owned())?;
            if let Some(sqlstate) = sqlstate {
                ensure!(routed.0.iter().any(|code| code.ends_with(sqlstate)) && routed.1, "{what}: {routed:?}");
            }
            if routed != direct {
                different.push(format!("{what}: {routed:?}, directly {direct:?}"));
            }
        }
    }
    different.dedup();
    println!("{} malformed messages, {} answered otherwise than by PostgreSQL: {different:#?}", cases.len(), different.len());
    Ok(())
}

/// Severity and SQLSTATE of each error, and whether the session lived on.
async fn outcome(port: u16, bytes: &[u8]) -> Result<(Vec<String>, bool)> {
    let mut raw = Raw::log_in(port, USER).await?;
    let _ = raw.send(&[bytes, &sync()].concat()).await;
    let _ = raw.send(&query("SELECT 'alive'")).await;
    let mut errors = Vec::new();
    loop {
        let (answer, ready) = raw.answer().await?;
        errors.extend(
            answer
                .iter()
                .filter(|message| message.tag == b'E')
                .map(|error| format!("{} {}", error.severity().unwrap_or_default(), error.sqlstate().unwrap_or_default())),
        );
        let alive = answer.iter().any(|message| message.tag == b'D' && message.body.ends_with(b"alive"));
        if alive || !ready {
            return Ok((errors, alive));
        }
    }
}

/// After an error the server skips to Sync, however much is sent before, and whenever it is sent.
pub(crate) async fn skipped(yard: &Yard) -> Result {
    let select = [message(b'P', b"\0SELECT 1\0\0\0"), message(b'B', b"\0\0\0\0\0\0\0\0"), message(b'E', b"\0\0\0\0\0")].concat();
    let wrong = message(b'P', b"\0SELECT nonsense FROM nowhere\0\0\0");
    let flush = message(b'H', b"");
    let run = [message(b'B', b"\0\0\0\0\0\0\0\0"), message(b'E', b"\0\0\0\0\0")].concat();
    let long = select.repeat(200_000 / select.len());
    let openings = [
        ("a flushed batch", [&wrong[..], &run, &flush].concat()),
        ("a long batch", [&wrong[..], &long].concat()),
        ("a long batch, flushed", [&select[..], &flush, &wrong, &long, &flush].concat()),
    ];
    for port in yard.ports() {
        for (what, opening) in &openings {
            for behind in [&b""[..], &select, &long, &flush, &[&select[..], &flush].concat(), &query("SELECT 'skipped'")] {
                let mut raw = Raw::log_in(port, USER).await?;
                raw.send(opening).await?;
                let error = loop {
                    let message = raw.message().await.with_context(|| format!("{what}: no error"))?;
                    if message.tag == b'E' {
                        break message;
                    }
                };
                ensure!(error.sqlstate().as_deref() == Some("42P01"), "{what}: {error:?}");
                raw.send(&[behind, &sync(), &query("SELECT 'alive'")].concat()).await?;
                let (answer, ready) = raw.answer().await.with_context(|| what.to_string())?;
                ensure!(ready && answer.len() == 1, "{what}: {answer:?}");
                let (answer, ready) = raw.answer().await.with_context(|| what.to_string())?;
                ensure!(ready && answer.iter().any(|message| message.body.ends_with(b"alive")), "{what}: {answer:?}");
            }
        }
    }
    Ok(())
}

/// They are still there when all others are done, and go on then as if nothing had been.
pub(crate) async fn halves(yard: &Yard) -> Result {
    let whole = query("SELECT 'the other half'");
    let mut waiting = Vec::new();
    for cut in 1..whole.len() {
        let mut raw = Raw::log_in(yard.ports()[cut % 2], USER).await?;
        raw.send(&whole[..cut]).await?;
        waiting.push((raw, cut));
    }
    // Far more announced than sent: nothing is set aside for it.
    let mut announced = Vec::new();
    for _ in 0..100 {
        let mut raw = Raw::log_in(yard.router.rw_port(), USER).await?;
        raw.send(&[head(b'Q', 500_000_000), b"SELECT ".to_vec()].concat()).await?;
        announced.push(raw);
    }
    yard.load.goes_on(10, SOON).await?;
    try_join_all(waiting.iter_mut().map(|(raw, cut)| async {
        raw.send(&whole[*cut..]).await?;
        let (answer, ready) = raw.answer().await?;
        ensure!(ready && answer.iter().any(|message| message.body.ends_with(b"the other half")), "{answer:?}");
        Ok(())
    }))
    .await?;
    Ok(())
}

pub(crate) async fn anything(yard: &Yard) -> Result {
    const ROUNDS: usize = 600;
    let mut dice = Dice(3);
    for round in 0..ROUNDS {
        let mut raw = Raw::log_in(yard.ports()[round % 2], USER).await?;
        let bytes = match dice.below(3) {
            0 => {
                let count = 1 + dice.below(2000);
                dice.bytes(count)
            }
            1 => framed(&mut dice),
            _ => bent(&mut dice),
        };
        // It may hang up in the middle of it, or wait for more.
        let _ = raw.send(&bytes).await;
        if dice.below(2) == 0 {
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await;
            raw.until_closed(SOON).await.with_context(|| format!("round {round}: {bytes:x?}"))?;
        }
    }
    Ok(())
}

/// Messages of real types and right lengths, with anything in them.
fn framed(dice: &mut Dice) -> Vec<u8> {
    const TAGS: &[u8] = b"QPBDECFHSdcf";
    let mut bytes = Vec::new();
    for _ in 0..1 + dice.below(12) {
        let (tag, count) = (TAGS[dice.below(TAGS.len())], dice.below(60));
        let mut body = dice.bytes(count);
        if dice.below(2) == 0 {
            body.push(0);
        }
        bytes.extend(message(tag, &body));
    }
    bytes
}

/// A good conversation with some bytes changed, left out or put in.
fn bent(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = [
        query("BEGIN"),
        message(b'P', b"one\0SELECT $1::text, now()\0\0\0"),
        message(b'B', b"\0one\0\0\0\0\x01\0\0\0\x04text\0\0"),
        message(b'D', b"P\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'C', b"Sone\0"),
        sync(),
        query("COMMIT; SELECT 1"),
        query("COPY (SELECT 1) TO STDOUT"),
        message(b'H', b""),
    ]
    .concat();
    for _ in 0..1 + dice.below(6) {
        let at = dice.below(bytes.len());
        match dice.below(3) {
            0 => bytes[at] = dice.roll() as u8,
            1 => {
                bytes.remove(at);
            }
            _ => bytes.insert(at, dice.roll() as u8),
        }
    }
    bytes
}

/// The session is told FATAL and ended.
async fn ends_with(raw: &mut Raw, sqlstate: &str) -> Result {
    let (answer, ready) = raw.answer().await?;
    let last = answer.last().context("it hung up without a word")?;
    ensure!(!ready && last.severity().as_deref() == Some("FATAL") && last.sqlstate().as_deref() == Some(sqlstate), "{answer:?}");
    Ok(())
}
