use tokio::net::TcpListener;

use super::*;

/// Logs in at a server that reads the startup packet and then says `bytes`.
async fn log_in_at(bytes: Vec<u8>) -> Result<Connected, ConnectError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let target = Target::new("127.0.0.1", listener.local_addr().expect("an address").port());
    let login = Login { user: "ann", database: "shop", credential: &Credential::Trust, parameters: &[] };
    let server = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut startup = [0; 256];
        assert!(stream.read(&mut startup).await.expect("a startup packet") > 8);
        stream.write_all(&bytes).await.expect("room");
        stream.shutdown().await.expect("half a close");
    };
    let tls = Connector::disabled();
    tokio::join!(connect(&target, &login, &tls, Duration::from_secs(20)), server).0
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn ok() -> Vec<u8> {
    message(b'R', &[0; 4])
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

#[tokio::test]
async fn reports_count_up_to_the_last_byte_that_came() {
    let key = message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]);
    let reports = [message(b'S', b"a\0one\0"), message(b'N', b"SNOTICE\0\0"), message(b'S', b"b\0two\0")].concat();
    // What follows ReadyForQuery in the same segment was read with it, and must not get lost.
    let late = message(b'S', b"a\0three\0");
    let connected = log_in_at([ok(), reports, key, ready(), late].concat()).await.expect("a login");
    let pairs = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(connected.parameters, [pairs("a", "three"), pairs("b", "two")]);
    assert_eq!((connected.pid, connected.secret), (7, vec![1, 2, 3, 4]));
    assert_eq!(connected.notices, [message(b'N', b"SNOTICE\0\0")]);
}

#[tokio::test]
async fn hostile_servers_are_left() {
    let flood = (0..=PARAMETERS_MAX).flat_map(|index| message(b'S', format!("p{index}\0x\0").as_bytes())).collect();
    let header = |tag: u8, length: u32| [&[tag][..], &length.to_be_bytes()].concat();
    let after_ok = |bytes: Vec<u8>| [ok(), bytes].concat();
    for bytes in [
        header(b'R', 0),
        header(b'R', 0x7fff_ffff),
        header(b'R', 30_001),
        message(b'R', b"\0\0\0"),
        message(b'R', b"\0\0\0\x05ab"),
        message(b'D', b"row"),
        b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
        after_ok(message(b'S', b"name")),
        after_ok(message(b'K', &[0; 7])),
        after_ok(message(b'K', &[0; 300])),
        after_ok(message(b'D', b"row")),
        after_ok(flood),
    ] {
        let result = log_in_at(bytes.clone()).await;
        assert!(matches!(result, Err(ConnectError::Protocol(_))), "{:?}: {result:?}", bytes.escape_ascii().to_string());
    }
    for bytes in [vec![], ok(), header(b'R', 8), after_ok(header(b'S', 20))] {
        assert!(matches!(log_in_at(bytes).await, Err(ConnectError::Unreachable(_))));
    }
    for code in [3u32, 5, 7, 9, 10, 99] {
        let result = log_in_at(message(b'R', &[&code.to_be_bytes()[..], b"salt"].concat())).await;
        assert!(matches!(result, Err(ConnectError::Auth(AuthError::NoAnswer(_)))), "{code}: {result:?}");
    }
    for (body, expected) in [(&b"SFATAL\0C57P03\0Mstarting up\0\0"[..], "57P03"), (b"", ""), (b"\0\0\0", ""), (b"C", "")] {
        let result = log_in_at(message(b'E', body)).await;
        let Err(ConnectError::Server { sqlstate, raw, .. }) = result else { panic!("{result:?}") };
        assert_eq!((sqlstate.as_str(), raw), (expected, message(b'E', body)));
    }
}

#[tokio::test]
async fn an_answer_to_ssl_request_must_be_one() {
    for (answer, mode, expected) in [
        (&b"N"[..], SslMode::Require, "TlsRefused"),
        (b"E", SslMode::Prefer, "Protocol"),
        (b"Snot TLS at all", SslMode::Require, "Tls"),
        (b"", SslMode::Require, "Unreachable"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let target = Target::new("127.0.0.1", listener.local_addr().expect("an address").port());
        let config = switchyard_config::ServerTls { mode, ca_file: None, cert_file: None, key_file: None };
        let tls = Connector::new(&config).expect("TLS");
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.expect("a request");
            stream.write_all(answer).await.expect("room");
            stream.shutdown().await.expect("half a close");
            // Whatever is still coming must be read, or the kernel resets the connection under the client.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        };
        let login = Login { user: "ann", database: "shop", credential: &Credential::Trust, parameters: &[] };
        let client = async { format!("{:?}", connect(&target, &login, &tls, Duration::from_secs(20)).await) };
        let (result, ()) = tokio::join!(client, server);
        assert!(result.starts_with(&format!("Err({expected}")), "{result}");
    }
}
