//! PostgreSQL's own programs by the read/write port: backups, restores, maintenance, and the streams of the replication protocol.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use switchyard_tests::Result;

use crate::Yard;
use crate::twice::{WAYS, Way, postgres_program, same};

/// Objects of many kinds, that a dump has a way of its own for.
const OBJECTS: &str = r#"
    CREATE SCHEMA shop;
    CREATE TYPE shop.state AS ENUM ('new', 'paid', 'sent');
    CREATE DOMAIN shop.amount AS numeric(10, 2) CHECK (VALUE >= 0);
    CREATE TABLE shop.customer (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, mail text, since date DEFAULT current_date);
    CREATE TABLE shop.sale (id bigserial, customer int REFERENCES shop.customer, state shop.state DEFAULT 'new', total shop.amount, made date NOT NULL) PARTITION BY RANGE (made);
    CREATE TABLE shop.sale_2023 PARTITION OF shop.sale FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
    CREATE TABLE shop.sale_2024 PARTITION OF shop.sale FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
    CREATE INDEX ON shop.sale (customer, made DESC) INCLUDE (total);
    CREATE UNLOGGED TABLE shop.scratch (a int);
    CREATE FUNCTION shop.stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.mail := lower(NEW.mail); RETURN NEW; END$$;
    CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.stamp();
    INSERT INTO shop.customer (name, mail, since) SELECT 'name ' || g, CASE WHEN g % 3 > 0 THEN 'MAIL' || g || '@x' END, '2023-01-01'::date + g FROM generate_series(1, 500) g;
    INSERT INTO shop.sale (customer, total, made) SELECT 1 + g % 500, g / 7.0, '2023-01-01'::date + g % 700 FROM generate_series(1, 3000) g;
    INSERT INTO shop.scratch VALUES (1);
    CREATE VIEW shop.good AS SELECT customer, sum(total) AS total FROM shop.sale GROUP BY customer HAVING sum(total) > 100;
    CREATE MATERIALIZED VIEW shop.frozen AS SELECT * FROM shop.good;
    CREATE SEQUENCE shop.counter START 5 INCREMENT 3;
    SELECT nextval('shop.counter'), nextval('shop.counter');
    ALTER TABLE shop.customer ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON shop.customer USING (name = current_user);
    CREATE RULE nothing AS ON DELETE TO shop.good DO INSTEAD NOTHING;
    CREATE PUBLICATION everything FOR TABLE shop.customer;
    COMMENT ON TABLE shop.sale IS 'it''s partitioned';
    GRANT USAGE ON SCHEMA shop TO app;
    GRANT SELECT (id, name), INSERT ON shop.customer TO app;
    SELECT lo_from_bytea(4711, 'a large object');
    CREATE STATISTICS shop.together ON customer, made FROM shop.sale;
"#;

const ORIGIN: &str = "clients_origin";
/// One that the router has no connections to, of which a CREATE DATABASE that is made elsewhere would know.
const UPKEEP: &str = "clients_upkeep";
const COPY: &str = "clients_copy";

/// Runs one to its end, which must be a good one. Its output.
async fn good(program: &str, arguments: &[&str], folder: &Path) -> Result<String> {
    let done = postgres_program(program, arguments, folder).await?;
    ensure!(done.ok(), "{program} {arguments:?}: exit status {:?}\n{}{}", done.status, done.stdout, done.stderr);
    Ok(done.stdout)
}

/// A dump without what is drawn at random for each, which newer minor versions put into it.
fn without_keys(dump: &str) -> String {
    dump.lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .map(|line| format!("{line}\n"))
        .collect()
}

async fn objects(yard: &Yard, database: &str) -> Result {
    yard.new_database(database).await?;
    let client = switchyard_tests::cluster::connect(&yard.dsn(Way::Direct, "postgres", database).await?).await?;
    client.batch_execute(OBJECTS).await?;
    yard.cluster.settled().await
}

pub(crate) async fn dump_and_restore(yard: &Yard) -> Result {
    objects(yard, ORIGIN).await?;
    let direct = yard.dsn(Way::Direct, "postgres", ORIGIN).await?;
    let routed = yard.dsn(Way::Routed, "postgres", ORIGIN).await?;
    let scratch = yard.scratch()?;

    // The text of a dump, also as INSERTs.
    for options in [&[][..], &["--inserts", "--rows-per-insert=50"], &["--schema-only", "--create"], &["--serializable-deferrable"]] {
        let expected = without_keys(&good("pg_dump", &[options, &["-d", &direct]].concat(), &scratch).await?);
        let got = without_keys(&good("pg_dump", &[options, &["-d", &routed]].concat(), &scratch).await?);
        same("pg_dump", &expected, &got).with_context(|| format!("{options:?}"))?;
    }
    let globals = ["--globals-only", "--no-role-passwords", "-d"];
    let expected = without_keys(&good("pg_dumpall", &[&globals[..], &[&direct]].concat(), &scratch).await?);
    let got = without_keys(&good("pg_dumpall", &[&globals[..], &[&routed]].concat(), &scratch).await?);
    same("pg_dumpall", &expected, &got)?;

    // There and back again: the workers of a parallel dump share one snapshot. Then text, by psql in one transaction.
    let original = without_keys(&good("pg_dump", &["-d", &direct], &scratch).await?);
    let copy = yard.dsn(Way::Routed, "postgres", COPY).await?;
    let plain = scratch.join("plain.sql").display().to_string();
    std::fs::write(&plain, good("pg_dump", &["-d", &routed], &scratch).await?)?;
    good("pg_dump", &["-d", &routed, "-Fd", "-j2", "-f", "folder"], &scratch).await?;
    good("pg_dump", &["-d", &routed, "-Fc", "-f", "custom"], &scratch).await?;
    let ways: [(&str, &[&str]); 4] = [
        ("pg_restore", &["-d", &copy, "-j2", "folder"]),
        ("pg_restore", &["-d", &copy, "--single-transaction", "custom"]),
        ("pg_restore", &["-d", &copy, "--clean", "--if-exists", "custom"]),
        ("psql", &["-X", "-q", "-d", &copy, "-v", "ON_ERROR_STOP=1", "-1", "-f", &plain]),
    ];
    for (program, arguments) in ways {
        if !arguments.contains(&"--clean") {
            yard.new_database(COPY).await?;
        }
        good(program, arguments, &scratch).await?;
        let restored = without_keys(&good("pg_dump", &["-d", &yard.dsn(Way::Direct, "postgres", COPY).await?], &scratch).await?);
        same("restored", &original, &restored).with_context(|| format!("{program} {arguments:?}"))?;
    }
    Ok(())
}

/// `createdb`, `vacuumdb` and the like: the same output, and the same end.
pub(crate) async fn maintenance(yard: &Yard) -> Result {
    objects(yard, UPKEEP).await?;
    let mut printed = Vec::new();
    for way in WAYS {
        let dsn = yard.dsn(way, "postgres", UPKEEP).await?;
        let first = yard.dsn(way, "postgres", "postgres").await?;
        let made = yard.dsn(way, "postgres", "clients_made").await?;
        let maintenance = format!("--maintenance-db={first}");
        // createuser and dropuser know no connection strings.
        let port = format!("-p{}", first.rsplit([':', '/']).nth(1).context("a port")?);
        let scratch = yard.scratch()?;
        std::fs::write(scratch.join("pgpass"), format!("*:*:*:*:{}\n", yard.cluster.superuser_password()))?;
        std::fs::set_permissions(scratch.join("pgpass"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let variables = [("PGPASSFILE".to_owned(), scratch.join("pgpass").display().to_string())];
        let by_options = ["-h127.0.0.1", "-Upostgres", &port];
        let lines: [(&str, Vec<&str>); 14] = [
            ("vacuumdb", vec!["-z", "-j2", "-d", &dsn]),
            ("vacuumdb", vec!["--analyze-in-stages", "-d", &dsn]),
            ("vacuumdb", vec!["-f", "-t", "shop.customer", "-d", &dsn]),
            ("reindexdb", vec!["-d", &dsn]),
            ("reindexdb", vec!["--concurrently", "-t", "shop.customer", "-d", &dsn]),
            ("clusterdb", vec!["-d", &dsn]),
            ("createdb", vec![&maintenance, "-T", UPKEEP, "clients_made"]),
            ("createdb", vec![&maintenance, "clients_made"]),
            // Its connections are kept for a while.
            ("vacuumdb", vec!["-z", "-d", &made]),
            ("dropdb", vec![&maintenance, "clients_made"]),
            ("dropdb", vec![&maintenance, "clients_made"]),
            ("createuser", [&by_options[..], &["--no-login", "clients_made"]].concat()),
            ("dropuser", [&by_options[..], &["-e", "clients_made"]].concat()),
            ("dropuser", [&by_options[..], &["clients_made"]].concat()),
        ];
        let mut text = String::new();
        for (program, arguments) in lines {
            let owned: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
            let path = switchyard_tests::machine::Machine::look()?.postgres_program(program);
            let done = crate::twice::run(&path, &owned, &variables, &scratch).await?;
            text += &format!("{program}: {:?}\n{}{}", done.status, done.stdout, done.stderr);
        }
        ensure!(text.matches("Some(0)").count() == 11, "{way:?}:\n{text}");
        printed.push(text);
    }
    same("maintenance", &printed[0], &printed[1])
}

pub(crate) async fn base_backup(yard: &Yard) -> Result {
    let dsn = yard.dsn(Way::Routed, "replicator", "postgres").await?;
    let scratch = yard.scratch()?;
    good("pg_basebackup", &["-d", &dsn, "-D", "plain", "-X", "stream", "-c", "fast", "--no-sync"], &scratch).await?;
    // Every file's checksum, and that the WAL which it needs is there.
    good("pg_verifybackup", &["plain"], &scratch).await?;
    good("pg_basebackup", &["-d", &dsn, "-D", "tar", "-F", "tar", "-z", "-X", "fetch", "-c", "fast", "--no-sync"], &scratch).await?;
    ensure!(std::fs::metadata(scratch.join("tar/base.tar.gz"))?.len() > 1_000_000, "an empty backup");
    Ok(())
}

/// WAL for a stream to carry, and where it ends.
async fn wal(yard: &Yard, sql: &str) -> Result<String> {
    let leader = yard.cluster.leader().await?;
    leader.connect().await?.batch_execute(sql).await?;
    let end = leader.ask("SELECT pg_current_wal_lsn()").await?;
    // A stream ends when it sees something behind its end.
    leader.ask("SELECT pg_logical_emit_message(false, 'clients', repeat('x', 100000)), pg_switch_wal()").await?;
    Ok(end)
}

pub(crate) async fn receive_wal(yard: &Yard) -> Result {
    let mut folders = Vec::new();
    for way in WAYS {
        let dsn = yard.dsn(way, "replicator", "postgres").await?;
        let scratch = yard.scratch()?;
        let slot = format!("--slot=wal_{way:?}").to_lowercase();
        good("pg_receivewal", &["-d", &dsn, &slot, "--create-slot"], &scratch).await?;
        good("pg_receivewal", &["-d", &dsn, &slot, "--drop-slot"], &scratch).await?;
        // Made so, it keeps WAL only from its first use on.
        let name = slot.trim_start_matches("--slot=");
        yard.cluster.leader().await?.ask(&format!("SELECT pg_create_physical_replication_slot('{name}', true)")).await?;
        folders.push((dsn, scratch, slot));
    }
    let end = wal(yard, "CREATE TABLE wal_received AS SELECT g, md5(g::text) FROM generate_series(1, 200000) g; SELECT pg_switch_wal(); DROP TABLE wal_received").await?;
    for (dsn, scratch, slot) in &folders {
        std::fs::create_dir(scratch.join("wal"))?;
        good("pg_receivewal", &["-d", dsn, slot, "-D", "wal", "--endpos", &end, "--no-loop", "--no-sync"], scratch).await?;
        good("pg_receivewal", &["-d", dsn, slot, "--drop-slot"], scratch).await?;
    }
    let mut compared = 0;
    for entry in std::fs::read_dir(folders[1].1.join("wal"))? {
        let name = entry?.file_name();
        let routed = std::fs::read(folders[1].1.join("wal").join(&name))?;
        // The last segment isn't complete, and both streams ended somewhere in it.
        if name.to_string_lossy().ends_with(".partial") {
            continue;
        }
        let direct =
            std::fs::read(folders[0].1.join("wal").join(&name)).with_context(|| format!("{} came by the router only", name.display()))?;
        ensure!(direct == routed, "{} isn't the same", name.display());
        compared += 1;
    }
    ensure!(compared >= 2, "{compared} segments");
    Ok(())
}

pub(crate) async fn receive_logical(yard: &Yard) -> Result {
    yard.new_database("clients_logical").await?;
    let change = "CREATE TABLE noted (a int PRIMARY KEY, b text); CREATE PUBLICATION noted FOR TABLE noted;";
    let client = switchyard_tests::cluster::connect(&yard.dsn(Way::Direct, "postgres", "clients_logical").await?).await?;
    client.batch_execute(change).await?;
    let plugins: [(&str, &[&str]); 2] = [
        ("test_decoding", &["-o", "include-xids=1", "-o", "include-timestamp=1"]),
        ("pgoutput", &["-o", "proto_version=1", "-o", "publication_names=noted"]),
    ];
    let mut streams = Vec::new();
    for (plugin, options) in plugins {
        for way in WAYS {
            let dsn = yard.dsn(way, "postgres", "clients_logical").await?;
            let (scratch, slot) = (yard.scratch()?, format!("--slot={plugin}_{way:?}").to_lowercase());
            good("pg_recvlogical", &["-d", &dsn, &slot, "--create-slot", "-P", plugin], &scratch).await?;
            streams.push((dsn, scratch, slot, options));
        }
    }
    for sql in [
        "INSERT INTO noted SELECT g, repeat('x', g % 300) FROM generate_series(1, 2000) g",
        "BEGIN; UPDATE noted SET b = 'changed' WHERE a < 100; DELETE FROM noted WHERE a > 1900; COMMIT",
        "BEGIN; INSERT INTO noted VALUES (-1, 'never'); ROLLBACK; TRUNCATE noted",
    ] {
        client.batch_execute(sql).await?;
    }
    let end = wal(yard, "SELECT 1").await?;
    let mut received = Vec::new();
    for (dsn, scratch, slot, options) in streams {
        let arguments = [&["-d", &dsn, &slot, "--start", "--endpos", &end, "--no-loop", "-f", "changes"], options].concat();
        good("pg_recvlogical", &arguments, &scratch).await?;
        good("pg_recvlogical", &["-d", &dsn, &slot, "--drop-slot"], &scratch).await?;
        received.push(std::fs::read(scratch.join("changes"))?);
    }
    for pair in received.chunks(2) {
        let [direct, routed] = pair else { bail!("one of a pair") };
        ensure!(direct.len() > 10_000 && direct == routed, "{} bytes directly, {} by the router", direct.len(), routed.len());
    }
    Ok(())
}
