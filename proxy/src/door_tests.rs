use tokio::net::{TcpListener, TcpStream};

use super::*;

fn door(proxy_protocol: bool) -> Door {
    Door { tls: None, max_startup_bytes: startup::MAX_STARTUP_BYTES, proxy_protocol }
}

/// Sends `bytes` to a door, and returns what came of it, what the client got, and the server's end to read on.
async fn knock(door: Door, bytes: &[u8], hang_up: bool) -> (Result<Opened, DoorError>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
    let (accepted, _) = listener.accept().await.expect("a connection");
    client.write_all(bytes).await.expect("room in the socket");
    if hang_up {
        client.shutdown().await.expect("a shutdown");
    }
    (open(Stream::tcp(accepted).expect("options"), &door).await, client)
}

async fn all(client: &mut TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.expect("an end");
    got
}

fn startup_packet() -> Vec<u8> {
    let body = [&0x3_0000u32.to_be_bytes()[..], b"user\0ann\0\0"].concat();
    [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()
}

fn request(code: u32) -> Vec<u8> {
    [8u32.to_be_bytes(), code.to_be_bytes()].concat()
}

#[tokio::test]
async fn nothing_is_read_past_the_startup_packet() {
    let (opened, _client) = knock(door(false), &[&startup_packet()[..], b"pipelined"].concat(), false).await;
    let Ok(Opened::Startup { mut stream, startup, .. }) = opened else { panic!("{opened:?}") };
    assert_eq!(startup.user, "ann");
    let mut rest = [0; 9];
    stream.read_exact(&mut rest).await.expect("still there");
    assert_eq!(&rest, b"pipelined");
}

#[tokio::test]
async fn encryption_is_declined_and_then_not_asked_for_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let client = async {
        let mut client = TcpStream::connect(address).await.expect("a connection");
        let mut answer = [0];
        for code in [80_877_104, 80_877_103] {
            client.write_all(&request(code)).await.expect("room");
            client.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(&answer, b"N");
        }
        client.write_all(&request(80_877_103)).await.expect("room");
        all(&mut client).await
    };
    let server = async {
        let (accepted, _) = listener.accept().await.expect("a connection");
        open(Stream::tcp(accepted).expect("options"), &door(false)).await
    };
    let (got, opened) = tokio::join!(client, server);
    assert!(matches!(opened, Err(DoorError::Refused(Refusal::UnsupportedProtocol { major: 1234, minor: 5679 }))), "{opened:?}");
    assert!(got.starts_with(b"E") && got.windows(5).any(|code| code == b"0A000"));
}

#[tokio::test]
async fn bytes_behind_an_ssl_request_are_refused() {
    let bytes = [request(80_877_103), startup_packet()].concat();
    let (opened, _client) = knock(door(false), &bytes, false).await;
    assert!(matches!(opened, Err(DoorError::Refused(Refusal::UnencryptedData))), "{opened:?}");
}

#[tokio::test]
async fn a_cancel_request_is_read() {
    let packet = [&20u32.to_be_bytes()[..], &80_877_102u32.to_be_bytes(), &77u32.to_be_bytes(), &[9; 8]].concat();
    let (opened, _client) = knock(door(false), &packet, false).await;
    assert!(matches!(&opened, Ok(Opened::Cancel { pid: 77, key, .. }) if *key == [9; 8]), "{opened:?}");
}

#[tokio::test]
async fn nonsense_is_closed_without_a_word() {
    let http = b"GET / HTTP/1.1\r\n\r\n";
    let huge = [&0x7fff_ffffu32.to_be_bytes()[..], &[0; 64]].concat();
    let truncated = &startup_packet()[..10];
    let direct_tls = [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0];
    for bytes in [&http[..], &huge, truncated, &direct_tls, &[0, 0], &[0; 8]] {
        let (opened, mut client) = knock(door(false), bytes, true).await;
        assert!(matches!(opened, Err(DoorError::Closed(_))), "{bytes:?}: {opened:?}");
        drop(opened);
        let mut got = Vec::new();
        // Unread bytes make the kernel say "reset" instead of "end".
        let _ = client.read_to_end(&mut got).await;
        assert_eq!(got, b"", "{bytes:?}");
    }
    let (opened, _client) = knock(door(false), b"", true).await;
    assert!(matches!(opened, Err(DoorError::Gone)), "{opened:?}");
}

#[tokio::test]
async fn proxy_headers_name_the_client() {
    let v2 = |command: u8, family: u8, body: &[u8]| {
        let length = (body.len() as u16).to_be_bytes();
        [&PROXY_V2_SIGNATURE[..], &[command, family], &length, body].concat()
    };
    let v4 = [&[10, 0, 0, 7][..], &[127, 0, 0, 1], &4711u16.to_be_bytes(), &15000u16.to_be_bytes()].concat();
    for (header, expected) in [
        (b"PROXY TCP4 10.0.0.7 127.0.0.1 4711 15000\r\n".to_vec(), Some("10.0.0.7:4711")),
        (b"PROXY TCP6 2001:db8::7 ::1 4711 15000\r\n".to_vec(), Some("[2001:db8::7]:4711")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (v2(0x21, 0x11, &v4), Some("10.0.0.7:4711")),
        (v2(0x21, 0x11, &[&v4[..], &[4, 0, 1, 0]].concat()), Some("10.0.0.7:4711")),
        (v2(0x20, 0x00, &[]), None),
    ] {
        let (opened, client) = knock(door(true), &[header, startup_packet()].concat(), false).await;
        let Ok(Opened::Startup { peer, .. }) = opened else { panic!("{opened:?}") };
        let own = client.local_addr().ok();
        assert_eq!(peer.address, expected.map_or(own, |text| text.parse().ok()));
    }
}

#[tokio::test]
async fn malformed_proxy_headers_are_closed() {
    let endless = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
    let long = [&PROXY_V2_SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
    let short = [&PROXY_V2_SIGNATURE[..], &[0x21, 0x11, 0, 4, 1, 2, 3, 4]].concat();
    let headers: [&[u8]; 7] = [
        &startup_packet(),
        b"PROXY TCP4 10.0.0.7 127.0.0.1 4711\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP4 10.0.0.7 127.0.0.1 99999 1\r\n",
        &endless,
        &long,
        &short,
    ];
    for header in headers {
        let (opened, _client) = knock(door(true), header, true).await;
        assert!(matches!(opened, Err(DoorError::Closed(_))), "{opened:?}");
    }
}
