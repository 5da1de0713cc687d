//! Cancel requests of people who guess.

use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_tests::unruly::{Dice, Message, Raw, cancel, query};
use switchyard_tests::{Result, eventually};

use super::{SOON, USER, Yard};

pub(crate) async fn cancels(yard: &Yard) -> Result {
    let mut dice = Dice(4);
    let ports = yard.ports();
    let mut runs = Raw::log_in(ports[0], USER).await?;
    let (pid, secret) = runs.key.clone().context("no key")?;
    let began = std::time::Instant::now();
    runs.send(&query("SELECT 'done' FROM pg_sleep(4)")).await?;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)%' AND state = 'active' AND pid <> pg_backend_pid()";
    eventually(SOON, "it runs", || async {
        for member in yard.cluster.members() {
            if member.ask(running).await? == "1" {
                return Ok(Some(()));
            }
        }
        Ok(None)
    })
    .await?;

    let mut wrong = secret.clone();
    wrong[0] ^= 1;
    let long = [secret.clone(), vec![0; 28]].concat();
    for guess in [&wrong[..], &secret[..3], &long, &[0; 4], b""] {
        ask(ports[0], pid, guess).await?;
    }
    for round in 0..500 {
        let secret = dice.bytes(4);
        let guess = if round % 2 == 0 { pid } else { dice.roll() as i32 };
        ask(ports[round % 2], guess, &secret).await?;
    }
    let (answer, _) = runs.answer().await?;
    let took = began.elapsed();
    ensure!(answer.iter().any(|message| message.tag == b'D') && took >= Duration::from_secs(4), "canceled after {took:?}: {answer:?}");

    // The right one works, at either port.
    for port in ports {
        runs.send(&query("SELECT pg_sleep(60)")).await?;
        // One that came before the statement ran hit nothing: again until it does.
        let mut answer = std::pin::pin!(runs.answer());
        let (messages, ready) = loop {
            match tokio::time::timeout(Duration::from_millis(200), &mut answer).await {
                Ok(answer) => break answer?,
                Err(_) => ask(port, pid, &secret).await?,
            }
        };
        let error = messages.iter().find_map(Message::sqlstate);
        ensure!(ready && error.as_deref() == Some("57014"), "{messages:?}");
    }
    Ok(())
}

async fn ask(port: u16, pid: i32, secret: &[u8]) -> Result {
    let mut raw = Raw::connect(port).await?;
    raw.send(&cancel(pid, secret)).await?;
    let said = raw.until_closed(SOON).await?;
    ensure!(said.is_empty() || said[0] == b'E', "a cancel request was answered: {said:x?}");
    Ok(())
}
