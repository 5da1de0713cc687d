//! The page in headless Chromium: it shows the numbers of the snapshot inside it, runs under its own policy, and takes data as text.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::fixture;
use crate::http::Server;

/// The stream of events never ends, so waiting for the network to fall silent would not, either.
const LOADED: &str = "--timeout=2500";

/// Browsers that are too late for the page are started again for so long.
const BUSY: Duration = Duration::from_secs(60);

/// The document after the page's script has run, as HTML.
async fn dom(url: String, until: &'static str) -> String {
    let dump = move || {
        let profile = std::env::temp_dir().join(format!("switchyard-page-{}-{:?}", std::process::id(), std::thread::current().id()));
        let output = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,1500"])
            .args([until, "--dump-dom"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(&url)
            .stderr(Stdio::null())
            .output();
        // Left over if that fails, which harms nobody.
        let _ = std::fs::remove_dir_all(&profile);
        let output = output.expect("chromium is installed (Debian's package chromium)");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    tokio::task::spawn_blocking(dump).await.expect("no panic")
}

/// The document once it says all of this. On a busy machine the browser may end before its stream of events, or even the page itself, has come: then again.
async fn dom_with(url: &str, until: &'static str, said: &[&str]) -> String {
    let deadline = Instant::now() + BUSY;
    loop {
        let dom = dom(url.to_owned(), until).await;
        if said.iter().all(|said| dom.contains(said)) || Instant::now() >= deadline {
            return dom;
        }
    }
}

/// The text of the first element whose tag holds all of `marks`.
fn text<'a>(dom: &'a str, marks: &[&str]) -> &'a str {
    let tags = dom.match_indices('<').map(|(start, _)| &dom[start..]);
    for rest in tags {
        let Some(end) = rest.find('>') else { continue };
        if marks.iter().all(|mark| rest[..end].contains(mark)) {
            let inner = rest[end + 1..].trim_start_matches("<span>");
            return &inner[..inner.find('<').unwrap_or(inner.len())];
        }
    }
    panic!("no element with {marks:?} in {dom}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_the_numbers() {
    let server = Server::start(fixture::five()).await;
    fixture::count(&server.admin.stats);
    // Rates need a second point.
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.json().await["traffic"]["reads_per_second"].is_null() {
        assert!(Instant::now() < deadline, "no rates");
    }
    let dom = dom_with(&format!("http://{}/stats", server.address), LOADED, &["data-state=\"live\"", "data-lag=\"node3\""]).await;
    let member = |name: &str, field: &str| {
        let marks = ["<td", &format!("data-member=\"{name}\""), &format!("data-field=\"{field}\"")];
        text(&dom, &marks).to_owned()
    };
    assert_eq!(text(&dom, &["id=\"summary\""]), "Stable: node1 leads (timeline 3), 2 of 4 replicas serve reads");
    assert_eq!(member("node1", "status"), "leads");
    assert_eq!(member("node1", "writes"), "1,204,551");
    assert_eq!(member("node2", "reads"), "9,345,678");
    assert_eq!(member("node2", "status"), "serves reads, sync");
    assert_eq!(member("node3", "lag_bytes"), "47.1 kB");
    assert_eq!(member("node4", "status"), "out: lagging");
    assert_eq!(member("node5", "status"), "down: unreachable");
    assert!(member("node5", "check_error").contains("Connection refused"));
    assert_eq!(text(&dom, &["id=\"clients\""]), "207");
    assert_eq!(text(&dom, &["id=\"waiting\""]), "2");
    assert_eq!(text(&dom, &["id=\"pinned-count\""]), "2");
    assert_eq!(text(&dom, &["data-word=\"40001\"", "data-field=\"count\""]), "7");
    assert!(dom.contains("data-picture=\"node3\""), "the picture is drawn");
    assert!(text(&dom, &["id=\"lag-now\""]).starts_with("70"), "{}", text(&dom, &["id=\"lag-now\""]));
    assert!(dom.contains("data-lag=\"node3\"") && dom.contains("class=\"limit\""), "the lag is drawn, and its limit");
    assert_eq!(text(&dom, &["id=\"connection\""]), "live");
    assert!(dom.contains("data-state=\"live\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_is_text_and_a_lost_leader_is_told() {
    let hostile = "</script><img src=x onerror=document.title='owned'><b>";
    let mut topology = fixture::leaderless();
    Arc::make_mut(&mut topology.members[3]).probe_error = Some(hostile.into());
    Arc::make_mut(&mut topology.members[2]).name = hostile.into();
    let server = Server::start(topology).await;
    fixture::set(&server.admin.stats.held, 12);
    server.admin.stats.event(hostile);
    let dom = dom_with(&format!("http://{}/stats", server.address), LOADED, &["No leader for "]).await;
    assert!(text(&dom, &["id=\"summary\""]).starts_with("No leader for "), "{dom}");
    assert!(text(&dom, &["id=\"summary\""]).contains("12 writes wait"));
    assert_eq!(text(&dom, &["id=\"held\""]), "12");
    assert!(!dom.contains("<img"), "markup came out of data");
    assert!(!dom.contains("<title>owned"));
    assert!(dom.contains("&lt;img src=x"), "the text itself is shown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_without_its_router_says_so() {
    let server = Server::start(fixture::all_well()).await;
    let (_, html) = server.get("/stats").await;
    // Somebody who has the page, and no stream of events for it.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let orphan = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let n = stream.read(&mut request).await.unwrap_or(0);
            let body = if request[..n].starts_with(b"GET /stats HTTP") { &html } else { "" };
            let status = if body.is_empty() { "404 Not Found" } else { "200 OK" };
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(body.as_bytes()).await;
        }
    });
    // On the browser's virtual clock.
    let dom = dom_with(&format!("http://{address}/stats"), "--virtual-time-budget=8000", &["<body class=\"stale\">"]).await;
    orphan.abort();
    assert!(text(&dom, &["id=\"connection\""]).starts_with("Disconnected: numbers are "), "{}", text(&dom, &["id=\"connection\""]));
    assert!(dom.contains("<body class=\"stale\">"));
}
