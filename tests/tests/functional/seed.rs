//! The commands that a new user is told to try, as written but for the ports and the password.

use anyhow::ensure;
use switchyard_tests::psql::{Finished, run};
use switchyard_tests::{Result, psql};

use crate::yard::{Yard, tell};

/// `psql -h 127.0.0.1 -p PORT -U USER -c ... -c ...`
async fn by_hand(yard: &Yard, port: u16, user: &str, commands: &[&str]) -> Result<Finished> {
    let (port, password) = (port.to_string(), yard.cluster.password(user).unwrap_or_default());
    // No environment reaches it, so the password comes in the connection string.
    let database = format!("dbname=postgres password={password}");
    let mut arguments = vec!["-X", "-h", "127.0.0.1", "-p", &port, "-U", user, "-d", &database];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    run("psql", &arguments, "").await
}

async fn seed(yard: &Yard, user: &str) -> Result {
    yard.prepare("DROP TABLE IF EXISTS test").await?;
    let (write, read) = (yard.router.rw_port(), yard.router.ro_port());

    let create = "CREATE TABLE test (id SERIAL, message TEXT); INSERT INTO test (message) VALUES ('Hello CQRS');";
    let made = by_hand(yard, write, user, &[create]).await?;
    ensure!(made.ok() && made.stdout == "CREATE TABLE\nINSERT 0 1\n" && made.stderr.is_empty(), "{made:?}");

    // Nobody types faster than a replica replays, but a test does.
    yard.cluster.settled().await?;
    let shown = by_hand(yard, read, user, &["SELECT * FROM test;"]).await?;
    ensure!(shown.ok() && shown.stdout == " id |  message   \n----+------------\n  1 | Hello CQRS\n(1 row)\n\n", "{shown:?}");

    let insert = "INSERT INTO test (message) VALUES ('Should fail');";
    let refused = by_hand(yard, read, user, &[insert]).await?;
    ensure!(refused.status == Some(1) && refused.stdout.is_empty(), "{refused:?}");
    ensure!(refused.stderr == "ERROR:  cannot execute INSERT in a read-only transaction\n", "{refused:?}");

    // The session is still usable.
    let verbose = psql(&yard.router.ro_dsn(user), &["-c", insert, "-c", "SELECT message FROM test"]).await?;
    ensure!(verbose.ok() && verbose.stdout == "Hello CQRS\n", "{verbose:?}");
    ensure!(verbose.stderr.starts_with("ERROR:  25006: cannot execute INSERT in a read-only transaction"), "{verbose:?}");
    Ok(())
}

#[tokio::test]
async fn the_seed_commands_as_superuser() -> Result {
    tell(async |yard| seed(yard, "postgres").await).await
}

#[tokio::test]
async fn the_seed_commands_as_an_ordinary_user() -> Result {
    tell(async |yard| seed(yard, "app").await).await
}

#[tokio::test]
async fn the_seed_commands_with_an_md5_password() -> Result {
    tell(async |yard| seed(yard, "appmd5").await).await
}

#[tokio::test]
async fn the_stats_page_is_there() -> Result {
    tell(async |yard| {
        let page = yard.router.get("/stats").await?;
        ensure!(page.status == 200 && page.content_type.starts_with("text/html"), "{} {}", page.status, page.content_type);
        Ok(())
    })
    .await
}
