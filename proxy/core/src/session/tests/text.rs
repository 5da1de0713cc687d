//! Messages as text: `Q select 1`, `D s1`, `Z T`. One line holds several, with ` / ` between them.

use crate::session::settings::hex;
use crate::wire::frame;
use crate::wire::reply::message;

fn name(word: &str) -> &str {
    if word == "-" { "" } else { word }
}

fn shown(bytes: &[u8]) -> String {
    if bytes.is_empty() { "-".to_owned() } else { String::from_utf8_lossy(bytes).into_owned() }
}

/// A client's message.
pub(super) fn client(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
    let (first_name, second_name) = (name(first).as_bytes(), name(second).as_bytes());
    match word {
        "Q" => message(&mut out, b'Q', &[rest.as_bytes(), b"\0"]),
        "P" => match second.split_once(" {") {
            // One parameter, by its type's OID.
            Some((text, oid)) => {
                let oid: u32 = oid.trim_end_matches('}').parse().expect("an OID");
                message(&mut out, b'P', &[first_name, b"\0", text.as_bytes(), b"\0\0\x01", &oid.to_be_bytes()]);
            }
            None => message(&mut out, b'P', &[first_name, b"\0", second.as_bytes(), b"\0\0\0"]),
        },
        "B" => message(&mut out, b'B', &[first_name, b"\0", second_name, b"\0\0\0\0\0\0\0"]),
        "D" => message(&mut out, b'D', &[first.as_bytes(), second_name, b"\0"]),
        "C" => message(&mut out, b'C', &[first.as_bytes(), second_name, b"\0"]),
        "E" => message(&mut out, b'E', &[name(rest).as_bytes(), b"\0\0\0\0\0"]),
        // By its function's OID.
        "F" => message(&mut out, b'F', &[&rest.parse::<u32>().unwrap_or(0).to_be_bytes(), &[0; 6]]),
        "d" => message(&mut out, b'd', &[rest.as_bytes()]),
        "f" => message(&mut out, b'f', &[rest.as_bytes(), b"\0"]),
        "c" | "S" | "H" | "X" => message(&mut out, word.as_bytes()[0], &[]),
        _ => panic!("no client message: {text}"),
    }
    out
}

/// A server's message.
pub(super) fn server(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
    let fault = |out: &mut Vec<u8>, tag, severity: &str, code: &str, text: &str| {
        let fields = format!("S{severity}\0V{severity}\0C{code}\0M{text}\0\0");
        message(out, tag, &[fields.as_bytes()]);
    };
    match word {
        "Z" => message(&mut out, b'Z', &[rest.as_bytes()]),
        "C" => message(&mut out, b'C', &[rest.as_bytes(), b"\0"]),
        "T" | "t" | "V" | "d" => message(&mut out, word.as_bytes()[0], &[rest.as_bytes()]),
        "D" => message(&mut out, b'D', &[rest.as_bytes()]),
        // A row of the router's look at what is left: kind, name, value.
        "L" => {
            let (name, value) = second.split_once(' ').map_or((second, None), |(name, value)| (name, Some(value)));
            let digits = |text: &str| hex(if text == "-" { b"" } else { text.as_bytes() });
            let mut row = vec![0, 3];
            for column in [Some(first.as_bytes().to_vec()), Some(digits(name)), value.map(digits)] {
                match column {
                    Some(column) => {
                        row.extend(i32::try_from(column.len()).expect("short").to_be_bytes());
                        row.extend(column);
                    }
                    None => row.extend((-1i32).to_be_bytes()),
                }
            }
            message(&mut out, b'D', &[&row]);
        }
        "S" => message(&mut out, b'S', &[first.as_bytes(), b"\0", second.as_bytes(), b"\0"]),
        "E" => fault(&mut out, b'E', "ERROR", first, second),
        // An error that tells where it was found.
        "ER" => message(&mut out, b'E', &[b"SERROR\0VERROR\0C", first.as_bytes(), b"\0Mtext\0R", second.as_bytes(), b"\0\0"]),
        "FATAL" => fault(&mut out, b'E', "FATAL", first, second),
        "N" => fault(&mut out, b'N', "NOTICE", first, second),
        "A" => message(&mut out, b'A', &[&[0; 4], rest.as_bytes(), b"\0\0"]),
        "AP" => message(&mut out, b'A', &[&first.parse::<i32>().expect("a pid").to_be_bytes(), second.as_bytes(), b"\0\0"]),
        "G" | "H" => message(&mut out, word.as_bytes()[0], &[&[0; 3]]),
        "1" | "2" | "3" | "n" | "s" | "I" | "c" => message(&mut out, word.as_bytes()[0], &[]),
        _ => panic!("no server message: {text}"),
    }
    out
}

/// Whole messages, and what is left of one.
pub(super) fn cut(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut cut = Vec::new();
    while let Some(header) = frame::header(bytes).expect("a message") {
        assert!(bytes.len() >= header.total, "half a message: {bytes:?}");
        cut.push((header.tag, &bytes[frame::HEADER..header.total]));
        bytes = &bytes[header.total..];
    }
    assert!(bytes.is_empty(), "half a header: {bytes:?}");
    cut
}

fn strings(body: &[u8]) -> Vec<String> {
    body.split(|byte| *byte == 0).map(shown).collect()
}

/// What a client is sent. Errors without their texts, unless the server's own.
pub(super) fn to_client(bytes: &[u8]) -> Vec<String> {
    cut(bytes)
        .into_iter()
        .map(|(tag, body)| {
            let words = strings(body);
            match tag {
                b'E' | b'N' => {
                    let fault = crate::wire::view::fault(body);
                    let kind = match fault.severity {
                        b"ERROR" => "E",
                        b"FATAL" => "FATAL",
                        _ => "N",
                    };
                    format!("{kind} {}", shown(fault.sqlstate))
                }
                b'S' => format!("S {} {}", words[0], words[1]),
                b'C' => format!("C {}", words[0]),
                b'K' => "K".to_owned(),
                b'A' => match i32::from_be_bytes([body[0], body[1], body[2], body[3]]) {
                    0 => format!("A {}", shown(&body[4..body.len() - 2])),
                    pid => format!("AP {pid} {}", shown(&body[4..body.len() - 2])),
                },
                b'Z' | b'T' | b't' | b'D' | b'd' | b'V' => format!("{} {}", tag as char, shown(body)).trim_end_matches(" -").to_owned(),
                _ => (tag as char).to_string(),
            }
        })
        .collect()
}

/// The values of a Bind in text form.
pub(super) fn bound(body: &[u8]) -> Vec<Option<String>> {
    let bind = crate::wire::view::bind(body).expect("a Bind");
    let mut rest = bind.tail.strip_prefix(b"\0\0").expect("text form");
    let mut short = || {
        let (count, behind) = rest.split_first_chunk::<2>().expect("a count");
        rest = behind;
        i16::from_be_bytes(*count)
    };
    (0..short())
        .map(|_| {
            let (length, behind) = rest.split_first_chunk::<4>().expect("a length");
            let length = i32::from_be_bytes(*length);
            let (value, behind) = behind.split_at(usize::try_from(length).unwrap_or(0));
            rest = behind;
            (length >= 0).then(|| String::from_utf8_lossy(value).into_owned())
        })
        .collect()
}

/// What the router has bound to a statement of its own: a setting.
fn own_bind(text: &str, body: &[u8]) -> Option<String> {
    let values = bound(body);
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "null".to_owned());
    if text.contains("current_setting(") {
        let word = if text.contains("set_config($1") { "restore" } else { "save" };
        return Some(format!("{word} {}", shown(&values[0])));
    }
    let set = match text.strip_prefix("SELECT pg_catalog.set_config($1, $2, ")? {
        rest if rest.starts_with("false") => "set",
        _ => "set local",
    };
    Some(format!("{set} {} = {}", shown(&values[0]), shown(&values[1])))
}

/// The names at which a look of the router's looks; `None` where the text is none.
pub(super) fn looked_at(text: &str) -> Option<Vec<String>> {
    if !["SELECT 'v'", "SELECT CASE "].iter().any(|start| text.starts_with(start)) {
        return None;
    }
    let (_, names) = text.split_once("unnest('{").expect("names");
    let (names, _) = names.split_once("}'::pg_catalog.text[]").expect("the end of the names");
    let names = names.split(',').filter(|name| !name.is_empty());
    Some(names.map(|name| String::from_utf8_lossy(&unhex(name)).into_owned()).collect())
}

pub(super) fn unhex(digits: &str) -> Vec<u8> {
    digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits")).collect()
}

/// What a server is sent.
pub(in crate::session) fn to_server(bytes: &[u8]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    // The text of the router's own statement that is parsed last, and whether it is bound.
    let (mut own, mut bound_own) = (String::new(), false);
    for ((tag, body), plain) in cut(bytes).into_iter().zip(plainly(bytes)) {
        let text = strings(body).get(1).cloned().unwrap_or_default();
        let named = matches!(tag, b'P' | b'B' | b'E' | b'C') && plain.contains("switchyard_settings");
        match tag {
            b'P' if named && !text.starts_with("SELECT") => out.push(format!("own {text}")),
            b'B' if named && own.is_empty() => {}
            b'C' if named => {}
            b'E' if named => bound_own = false,
            b'P' if text.starts_with("SELECT pg_catalog.set_config(") => own = text,
            b'B' if !own.is_empty() && (named || body.starts_with(b"\0\0")) => {
                out.extend(own_bind(&own, body));
                bound_own = true;
            }
            b'E' if bound_own => bound_own = false,
            _ => {
                own.clear();
                out.push(plain);
            }
        }
    }
    out
}

fn plainly(bytes: &[u8]) -> Vec<String> {
    cut(bytes)
        .into_iter()
        .map(|(tag, body)| {
            let words = strings(body);
            match tag {
                b'Q' => match looked_at(&words[0]) {
                    Some(names) => {
                        let what = if words[0].starts_with("SELECT CASE ") { "look at all" } else { "look" };
                        let younger = if words[0].contains("c.relpersistence") { " and what is younger" } else { "" };
                        format!("{what} {}", names.join(" ")).trim_end().to_owned() + younger
                    }
                    None if words[0].starts_with("COMMIT; SELECT CASE ") => "look the limit".to_owned(),
                    None => format!("Q {}", words[0].replace('\n', "")),
                },
                b'P' | b'B' => format!("{} {} {}", tag as char, words[0], words[1]),
                b'D' | b'C' => format!("{} {} {}", tag as char, body[0] as char, shown(&body[1..body.len() - 1])),
                b'E' => format!("E {}", words[0]),
                b'd' => format!("d {}", shown(body)),
                b'f' => format!("f {}", words[0]),
                _ => (tag as char).to_string(),
            }
        })
        .collect()
}
