//! A server on a loopback socket, and what well-behaved and other clients get from it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard::admin::{Admin, Live, serve};
use switchyard_core::topology::{ClusterState, Out, Topology};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::fixture;

/// Longer than anything here takes; so that a bug ends as a failure.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) admin: Arc<Admin>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(topology: Topology) -> Server {
        Server::start_with(fixture::admin(topology, Live::default())).await
    }

    pub(crate) async fn start_with(admin: Arc<Admin>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, admin.clone(), stopped));
        Server { address, admin, stop, serving }
    }

    /// Sends bytes as they are, and reads until the server closes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("the server listens");
        // The server may have answered and closed before all is written.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes");
        assert!(read.is_ok() || !answer.is_empty() || bytes.len() > 4096, "neither answer nor end: {read:?}");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.raw(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a header ends");
        (status(head), body.to_owned())
    }

    pub(crate) async fn json(&self) -> serde_json::Value {
        let (status, body) = self.get("/api/v1/cluster").await;
        assert_eq!(status, 200);
        serde_json::from_str(&body).expect("JSON")
    }

    async fn stop(self) {
        self.stop.send(()).expect("the server runs");
        tokio::time::timeout(PATIENCE, self.serving).await.expect("the server stops").expect("without a panic");
    }
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no status in {head:?}"))
}

/// Reads from a stream of events until `done` finds what it looks for.
async fn read_until(stream: &mut TcpStream, text: &mut String, done: impl Fn(&str) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    let deadline = Instant::now() + PATIENCE;
    while !done(text) {
        let left = deadline.saturating_duration_since(Instant::now());
        let n = tokio::time::timeout(left, stream.read(&mut buffer)).await.expect("in time").expect("readable");
        assert!(n > 0, "the stream ended early: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

#[tokio::test]
async fn routes() {
    let server = Server::start(fixture::five()).await;
    for (path, expected, part) in [
        ("/", 302, "/stats"),
        ("/stats", 200, "<!doctype html>"),
        ("/stats;csv", 200, "# pxname,svname,"),
        ("/stats;csv;norefresh", 200, "# pxname,svname,"),
        ("/;csv", 200, "# pxname,svname,"),
        ("/metrics", 200, "# EOF"),
        ("/api/v1/cluster", 200, "\"leader\":\"node1\""),
        ("/livez", 200, "ok"),
        ("/readyz", 200, "ready"),
        ("/nothing", 404, "try /stats"),
        ("/stats/../../etc/passwd", 404, ""),
    ] {
        let (status, body) = server.get(path).await;
        assert_eq!(status, expected, "{path}");
        assert!(body.contains(part), "{path}: {body}");
    }
    for request in ["POST /stats", "DELETE /api/v1/cluster", "BREW /livez", "CONNECT test:1"] {
        let answer = server.raw(format!("{request} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes()).await;
        assert_eq!(status(&answer), 405, "{request}");
    }
    let answer = server.raw(b"HEAD /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = server.raw(b"GET /livez HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000000\r\n\r\n").await;
    assert_eq!(status(&answer), 413);
    server.stop().await;
}

#[tokio::test]
async fn readiness_says_why_not() {
    let unknown = Topology::default();
    let etcd_down = Topology { etcd_error: Some("connection refused".into()), ..Topology::default() };
    let mut expired = fixture::five();
    expired.leader = Some(fixture::leader(Duration::ZERO));
    let mut nobody = fixture::leaderless();
    for member in &mut nobody.members {
        Arc::make_mut(member).out = Some(Out::Unreachable);
    }
    let mut leader_only = nobody.clone();
    leader_only.leader = Some(fixture::leader(PATIENCE));
    leader_only.state = ClusterState::Stable;
    let none = Live::default();
    let draining = Live { draining: true, ..none };
    for (name, topology, live, status, part) in [
        ("unknown", unknown, none, 503, "not known yet"),
        ("etcd down", etcd_down, none, 503, "connection refused"),
        ("all there", fixture::five(), none, 200, "ready"),
        ("replicas alone", fixture::leaderless(), none, 200, "ready"),
        ("expired, with replicas", expired, none, 200, "ready"),
        ("nobody", nobody, none, 503, "no replica"),
        ("leader alone", leader_only, none, 200, "ready"),
        ("draining", fixture::five(), draining, 503, "shutting down"),
    ] {
        let server = Server::start_with(fixture::admin(topology, live)).await;
        let (got, body) = server.get("/readyz").await;
        assert_eq!(got, status, "{name}: {body}");
        assert!(body.contains(part), "{name}: {body}");
        assert_eq!(server.get("/livez").await.0, 200, "{name}");
    }
}

#[tokio::test]
async fn garbage_hurts_nobody() {
    let server = Server::start(fixture::five()).await;
    let mut long_line = b"GET /".to_vec();
    long_line.resize(1 << 20, b'a');
    let mut many_headers = b"GET /livez HTTP/1.1\r\n".to_vec();
    (0..5_000).for_each(|n| many_headers.extend_from_slice(format!("X-{n}: y\r\n").as_bytes()));
    many_headers.extend_from_slice(b"\r\n");
    let noise: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let ssl_request = [0, 0, 0, 8, 4, 210, 22, 47];
    let client_hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let mut garbage: Vec<&[u8]> = vec![b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n\r\n \r\n\r\n"];
    garbage.extend([&long_line[..], &many_headers, &noise, &ssl_request, &client_hello, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]);
    for bytes in garbage {
        let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        // A reset is fine, too.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:.200}");
        assert_eq!(server.get("/livez").await.0, 200);
    }
    server.stop().await;
}

#[tokio::test]
async fn silent_clients_are_let_go_and_too_many_are_told_so() {
    let server = Server::start(fixture::five()).await;
    let mut silent = Vec::new();
    for _ in 0..256 {
        let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
        stream.write_all(b"GET /livez HT").await.expect("writable");
        silent.push(stream);
    }
    let answer = server.raw(b"").await;
    assert_eq!(status(&answer), 503, "{answer}");
    // Each of them ends by the header's deadline.
    for stream in &mut silent {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the server closes");
    }
    assert_eq!(server.get("/livez").await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_let_go() {
    let server = Server::start(fixture::five()).await;
    let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
    let request = b"GET /stats HTTP/1.1\r\nHost: test\r\n\r\n";
    // Ask for more and more until the answers fill all buffers on the way; then the server gives up, and writing fails.
    let deafness = async { while stream.write_all(request).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, deafness).await.expect("the server closes");
    assert_eq!(server.get("/livez").await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn events_tell_changes_of_the_topology_at_once() {
    let server = Server::start(fixture::five()).await;
    let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
    stream.write_all(b"GET /stats/events HTTP/1.1\r\nHost: test\r\n\r\n").await.expect("writable");
    let mut text = String::new();
    read_until(&mut stream, &mut text, |text| text.contains("event: snapshot\ndata: {") && text.contains("\n\n")).await;
    assert!(text.contains("text/event-stream") && text.contains("Stable: node1 leads (timeline 3), 2 of 4 replicas serve reads"), "{text}");
    // Without a change, one a second.
    let before = Instant::now();
    read_until(&mut stream, &mut text, |text| text.matches("event: snapshot").count() >= 4).await;
    assert!(before.elapsed() > Duration::from_millis(900), "too often: {:?}", before.elapsed());
    let changed = Instant::now();
    server.admin.topology.store(Arc::new(fixture::leaderless()));
    server.admin.stats.held.up();
    read_until(&mut stream, &mut text, |text| text.contains("1 write waits, 2 of 4 replicas serve reads")).await;
    assert!(changed.elapsed() < Duration::from_millis(900), "too late: {:?}", changed.elapsed());
    // A shutdown ends streams.
    server.stop().await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the stream ends");
}
