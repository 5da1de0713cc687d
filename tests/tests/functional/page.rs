//! What people and programs see on the third port: the page in a real browser, with its numbers held against what was done.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_tests::{Result, Router, RouterOptions, eventually};

use crate::yard::{SOON, metric, tell};

/// The document after the page's script has run, as HTML.
async fn dom(router: &Router) -> Result<String> {
    let profile = router.config_file().with_file_name("chromium");
    let output = tokio::process::Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,1500"])
        // The stream of events never ends, so the network never falls silent.
        .args(["--timeout=2500", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("{}/stats", router.http_url()))
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), output).await.context("the browser hangs")?;
    Ok(String::from_utf8_lossy(&output.context("chromium is installed (Debian's package chromium)")?.stdout).into_owned())
}

/// The text of the first element whose tag holds all of `marks`.
fn text<'a>(dom: &'a str, marks: &[&str]) -> Result<&'a str> {
    for (start, _) in dom.match_indices('<') {
        let rest = &dom[start..];
        let Some(end) = rest.find('>') else { continue };
        if marks.iter().all(|mark| rest[..end].contains(mark)) {
            let inner = rest[end + 1..].trim_start_matches("<span>");
            return Ok(&inner[..inner.find('<').unwrap_or(inner.len())]);
        }
    }
    anyhow::bail!("no element with {marks:?}")
}

fn number(text: &str) -> Result<f64> {
    text.replace(',', "").parse().with_context(|| text.to_owned())
}

#[tokio::test]
async fn the_page_tells_what_was_done() -> Result {
    tell(async |yard| {
        const READS: usize = 60;
        const WRITES: usize = 25;
        yard.prepare("CREATE TABLE page_told (id int); GRANT ALL ON page_told TO app").await?;
        let router = yard.other_router(RouterOptions::new().set("routing.consistency_read_write", "session")).await?;
        let reader = router.rw("app").await?;
        for _ in 0..READS {
            reader.simple_query("SELECT 1").await?;
        }
        let writer = router.rw("app").await?;
        for _ in 0..WRITES {
            writer.simple_query("INSERT INTO page_told VALUES (1)").await?;
        }
        let read_only = router.ro("app").await?;
        ensure!(read_only.simple_query("INSERT INTO page_told VALUES (1)").await.is_err());
        // One that keeps its connection.
        let pinned = router.rw("app").await?;
        pinned.simple_query("LISTEN page_channel").await?;

        let (leader, replicas) = (&yard.leader, &yard.replicas);
        // A busy machine's browser may not have got to the stream of events when the document is dumped.
        let page = eventually(SOON * 2, "the page is live", || async {
            let page = dom(&router).await?;
            Ok((text(&page, &["id=\"connection\""])? == "live").then_some(page))
        })
        .await?;
        let member = |name: &str, field: &str| {
            text(&page, &["<td", &format!("data-member=\"{name}\""), &format!("data-field=\"{field}\"")]).map(str::to_owned)
        };
        let summary = text(&page, &["id=\"summary\""])?;
        ensure!(summary == format!("Stable: {} leads (timeline 1), 2 of 2 replicas serve reads", leader.name()), "{summary}");
        ensure!(member(leader.name(), "status")? == "leads");
        let writes = number(&member(leader.name(), "writes")?)?;
        // Beside the INSERTs: LISTEN.
        ensure!((WRITES as f64..=WRITES as f64 + 3.0).contains(&writes), "{writes} writes");
        let mut reads = 0.0;
        for replica in replicas {
            ensure!(member(replica.name(), "status")? == "serves reads", "{}", member(replica.name(), "status")?);
            reads += number(&member(replica.name(), "reads")?)?;
        }
        ensure!((READS as f64..=READS as f64 + 2.0).contains(&reads), "{reads} reads");
        ensure!(text(&page, &["id=\"clients\""])? == "4");
        ensure!(text(&page, &["id=\"pinned-count\""])? == "1");
        ensure!(text(&page, &["id=\"held\""])? == "0" && text(&page, &["id=\"waiting\""])? == "0");
        for member in yard.cluster.members() {
            ensure!(page.contains(&format!("data-picture=\"{}\"", member.name())), "{} isn't in the picture", member.name());
        }

        // The same for programs.
        let json = router.get("/api/v1/cluster").await?.json()?;
        ensure!(json.to_string().contains(leader.name()), "{json}");
        let csv = router.get("/stats;csv").await?;
        ensure!(csv.body.starts_with("# pxname,svname,") && csv.body.contains(replicas[0].name()), "{}", csv.body);
        ensure!(router.get("/readyz").await?.status == 200 && router.get("/livez").await?.status == 200);
        drop((reader, writer, read_only, pinned));
        eventually(SOON, "nobody is connected", || async {
            Ok((metric(&router, "switchyard_clients{port=\"read_write\"}").await? == 0.0).then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn the_metrics_are_openmetrics() -> Result {
    tell(async |yard| {
        let response = yard.router.get("/metrics").await?;
        ensure!(response.status == 200 && response.content_type.starts_with("application/openmetrics-text"), "{}", response.content_type);
        ensure!(response.body.ends_with("# EOF\n"));
        let (mut kinds, mut samples) = (HashMap::new(), 0);
        for line in response.body.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').context("a type")?;
                ensure!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').context("a value")?;
                value.parse::<f64>().with_context(|| line.to_owned())?;
                let family = name.split('{').next().unwrap_or_default();
                let of_family = |known: &String| {
                    family
                        .strip_prefix(known.as_str())
                        .is_some_and(|rest| matches!(rest, "" | "_total" | "_bucket" | "_sum" | "_count" | "_info"))
                };
                ensure!(kinds.keys().any(of_family), "{family} has no type");
                samples += 1;
            }
        }
        ensure!(samples > 60, "{samples} samples");
        let leads = format!("switchyard_member_leader{{node=\"{}\"}}", yard.leader.name());
        ensure!(metric(&yard.router, &leads).await? == 1.0);
        ensure!(metric(&yard.router, "switchyard_cluster_state{state=\"stable\"}").await? == 1.0);
        ensure!(metric(&yard.router, "switchyard_replicas_serving").await? == 2.0);
        Ok(())
    })
    .await
}

/// Ready means: there is somebody to serve. Without a cluster it lives, and isn't ready.
#[tokio::test]
async fn without_a_cluster_it_lives_and_is_not_ready() -> Result {
    tell(async |yard| {
        let options = RouterOptions::new().set("cluster.scope", "nowhere").set("failover.hold_timeout", "500ms").skip_ready();
        let router = yard.other_router(options).await?;
        eventually(SOON, "it lives", || async { Ok((router.get("/livez").await?.status == 200).then_some(())) }).await?;
        ensure!(router.get("/readyz").await?.status == 503);
        ensure!(router.get("/stats").await?.status == 200);
        let refused = router.rw("app").await;
        ensure!(refused.is_err(), "it logged somebody in without a server");
        Ok(())
    })
    .await
}
