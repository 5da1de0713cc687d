use proptest::prelude::*;

use super::*;

fn packet(version: u32, pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in pairs {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    body
}

fn startup(pairs: &[(&str, &str)]) -> Startup {
    match parse(&packet(0x3_0000, pairs)) {
        Ok(FirstPacket::Startup(startup)) => *startup,
        other => panic!("{other:?}"),
    }
}

fn refused(body: &[u8]) -> (String, &'static str) {
    match parse(body) {
        Err(StartupError::Refuse(refusal)) => (refusal.wording().message.into_owned(), refusal.wording().sqlstate),
        other => panic!("{other:?}"),
    }
}

fn settings(options: &str) -> Result<Vec<(String, String)>, String> {
    startup(&[("user", "u"), ("options", options)]).settings().map_err(|refusal| refusal.wording().message.into_owned())
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn lengths_are_refused_before_anything_is_read() {
    let close = Err(StartupError::Close("invalid length of startup packet"));
    for total in [0, 3, 4, 7, 10_005, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff_u32] {
        assert_eq!(packet_length(total.to_be_bytes(), MAX_STARTUP_BYTES), close, "{total}");
    }
    assert_eq!(packet_length(8u32.to_be_bytes(), MAX_STARTUP_BYTES), Ok(4));
    assert_eq!(packet_length(10_004u32.to_be_bytes(), MAX_STARTUP_BYTES), Ok(10_000));
}

#[test]
fn requests_are_told_apart() {
    assert_eq!(parse(&SSL_REQUEST.to_be_bytes()), Ok(FirstPacket::SslRequest));
    assert_eq!(parse(&GSSENC_REQUEST.to_be_bytes()), Ok(FirstPacket::GssEncRequest));
    let mut cancel = CANCEL_REQUEST.to_be_bytes().to_vec();
    cancel.extend_from_slice(&7i32.to_be_bytes());
    assert!(matches!(parse(&cancel), Err(StartupError::Close(_))), "no key");
    cancel.extend_from_slice(&[1, 2, 3, 4]);
    assert_eq!(parse(&cancel), Ok(FirstPacket::CancelRequest { pid: 7, key: vec![1, 2, 3, 4] }));
    cancel.extend_from_slice(&[0; 252]);
    assert!(matches!(parse(&cancel), Ok(FirstPacket::CancelRequest { key, .. }) if key.len() == 256));
    cancel.push(0);
    assert!(matches!(parse(&cancel), Err(StartupError::Close(_))), "257 bytes");
}

#[test]
fn a_startup_message_keeps_its_order_and_defaults() {
    let got = startup(&[("user", "ann"), ("zeta", "1"), ("application_name", "x"), ("alpha", "2")]);
    assert_eq!((got.user.as_str(), got.database.as_str()), ("ann", "ann"));
    assert_eq!(got.parameters, pairs(&[("zeta", "1"), ("application_name", "x"), ("alpha", "2")]));
    assert_eq!(startup(&[("user", "ann"), ("database", "shop")]).database, "shop");
    assert_eq!(startup(&[("user", &"é".repeat(40))]).user, "é".repeat(31), "cut at 63 bytes, between characters");
}

#[test]
fn replication_is_recognised() {
    for (value, expected) in [
        ("true", Replication::Physical),
        ("on", Replication::Physical),
        ("1", Replication::Physical),
        ("YES", Replication::Physical),
        ("database", Replication::Logical),
        ("off", Replication::No),
        ("0", Replication::No),
    ] {
        assert_eq!(startup(&[("user", "u"), ("replication", value)]).replication, expected, "{value}");
    }
    assert_eq!(startup(&[("user", "u"), ("database", "d"), ("replication", "true")]).database, "");
    let bad = packet(0x3_0000, &[("user", "u"), ("replication", "o")]);
    assert_eq!(refused(&bad), ("invalid value for parameter \"replication\": \"o\"".into(), "22023"));
}

#[test]
fn newer_minors_and_unknown_protocol_options_are_negotiated() {
    let minor = |version| match parse(&packet(version, &[("user", "u")])) {
        Ok(FirstPacket::Startup(startup)) => (startup.minor, startup.must_negotiate()),
        other => panic!("{other:?}"),
    };
    assert_eq!(minor(0x3_0000), (0, false));
    assert_eq!(minor(0x3_0002), (2, false));
    assert_eq!(minor(0x3_0003), (2, true));
    assert_eq!(minor(0x3_270f), (2, true));
    let options = startup(&[("user", "u"), ("_pq_.compression", "on")]);
    assert_eq!(options.protocol_options, ["_pq_.compression"]);
    assert!(options.must_negotiate() && options.parameters.is_empty());
}

#[test]
fn nonsense_gets_postgresqls_words() {
    let (text, code) = refused(&packet(0x2_0000, &[("user", "u")]));
    assert_eq!((text.as_str(), code), ("unsupported frontend protocol 2.0: server supports 3.0 to 3.2", "0A000"));
    assert_eq!(refused(&packet(0x3_0000, &[])), ("no PostgreSQL user name specified in startup packet".into(), "28000"));
    let layout = ("invalid startup packet layout: expected terminator as last byte".to_owned(), "08P01");
    let good = packet(0x3_0000, &[("user", "u")]);
    assert_eq!(refused(&good[..good.len() - 1]), layout);
    assert_eq!(refused(&good[..good.len() - 2]), layout);
    assert_eq!(refused(&[good.as_slice(), b"x"].concat()), layout);
    assert_eq!(
        refused(&3u32.to_be_bytes().map(|b| b << 1)),
        ("unsupported frontend protocol 0.6: server supports 3.0 to 3.2".into(), "0A000")
    );
    let mut latin = packet(0x3_0000, &[("user", "u"), ("application_name", "xy")]);
    let at = latin.len() - 3;
    latin[at] = 0xe9;
    assert!(
        matches!(parse(&latin), Ok(FirstPacket::Startup(startup)) if startup.parameter("application_name") == Some("x?") || startup.parameter("application_name") == Some("?y"))
    );
    let mut user = packet(0x3_0000, &[("user", "uu")]);
    user[9] = 0xff;
    assert_eq!(refused(&user).1, "08P01");
}

#[test]
fn options_become_settings() {
    assert_eq!(
        settings("-c search_path=a -cwork_mem=1MB --statement-timeout=5s"),
        Ok(pairs(&[("search_path", "a"), ("work_mem", "1MB"), ("statement_timeout", "5s"),]))
    );
    assert_eq!(settings(r"  -c app.name=a\ b\\c  -e"), Ok(pairs(&[("app.name", r"a b\c"), ("datestyle", "euro")])));
    assert_eq!(
        settings("-fs -S 100 -sO"),
        Ok(pairs(&[
            ("enable_seqscan", "false"),
            ("work_mem", "100"),
            ("log_statement_stats", "true"),
            ("allow_system_table_mods", "true"),
        ]))
    );
    assert_eq!(settings(""), Ok(vec![]));
    assert_eq!(settings("-c geqo"), Err("-c geqo requires a value".into()));
    assert_eq!(settings("--geqo"), Err("--geqo requires a value".into()));
    assert_eq!(settings("-c"), Err("invalid command-line argument for server process: -c".into()));
    assert_eq!(settings("geqo=off"), Err("invalid command-line argument for server process: geqo=off".into()));
    assert_eq!(settings("-Z 1"), Err("invalid command-line argument for server process: -Z".into()));
    let both = startup(&[("user", "u"), ("geqo", "off"), ("options", "-c geqo=on")]).settings();
    assert_eq!(both, Ok(pairs(&[("geqo", "on"), ("geqo", "off")])), "parameters come after options");
}

proptest! {
    #[test]
    fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200), version in prop::option::of(Just(0x3_0000u32))) {
        let bytes = match version {
            Some(version) => [version.to_be_bytes().as_slice(), &body].concat(),
            None => body,
        };
        if let Ok(FirstPacket::Startup(startup)) = parse(&bytes) {
            prop_assert!(!startup.user.is_empty() && startup.user.len() <= NAME_BYTES);
            let _ = startup.settings();
        }
    }

    #[test]
    fn no_options_panic(options in ".{0,80}") {
        let _ = switches(&options);
    }
}
