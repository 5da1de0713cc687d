//! Borrowed readers of the few messages that the router looks into. A body is what follows the header.

use memchr::memchr;

/// The message isn't of its documented form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0} message")]
pub struct Malformed(pub &'static str);

fn cstr<'a>(body: &'a [u8], what: &'static str) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    let end = memchr(0, body).ok_or(Malformed(what))?;
    Ok((&body[..end], &body[end + 1..]))
}

/// Bytes of a statement's or portal's name that a server tells it by (`NAMEDATALEN`, less the terminator).
const NAME_BYTES: usize = 63;

/// A statement's or portal's name, as a server tells it from others, and what follows it.
fn name<'a>(body: &'a [u8], what: &'static str) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    let (name, rest) = cstr(body, what)?;
    Ok((&name[..name.len().min(NAME_BYTES)], rest))
}

/// Query: the text without its terminator.
///
/// # Errors
/// Where the terminator is missing or isn't at the end.
pub fn query(body: &[u8]) -> Result<&[u8], Malformed> {
    let (text, rest) = cstr(body, "Query")?;
    if rest.is_empty() { Ok(text) } else { Err(Malformed("Query")) }
}

/// Parse.
#[derive(Clone, Copy, Debug)]
pub struct Parse<'a> {
    pub name: &'a [u8],
    pub text: &'a [u8],
    /// Everything behind the name: text, terminator, parameter types.
    pub tail: &'a [u8],
    /// The OIDs of parameter types, four bytes each.
    types: &'a [u8],
}

impl Parse<'_> {
    /// The parameter types that are named; 0 leaves one to the server.
    pub fn parameter_types(&self) -> impl Iterator<Item = u32> + '_ {
        self.types.as_chunks().0.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

/// # Errors
/// Where the body isn't of Parse's form.
pub fn parse(body: &[u8]) -> Result<Parse<'_>, Malformed> {
    let (name, tail) = name(body, "Parse")?;
    let (text, types) = cstr(tail, "Parse")?;
    let count = types.first_chunk::<2>().ok_or(Malformed("Parse"))?;
    if types.len() != 2 + 4 * usize::from(u16::from_be_bytes(*count)) {
        return Err(Malformed("Parse"));
    }
    Ok(Parse { name, text, tail, types: &types[2..] })
}

/// Bind: what comes before the formats and values.
#[derive(Clone, Copy, Debug)]
pub struct Bind<'a> {
    pub portal: &'a [u8],
    pub statement: &'a [u8],
    pub tail: &'a [u8],
}

/// # Errors
/// Where the two names aren't there; the rest is the server's to check.
pub fn bind(body: &[u8]) -> Result<Bind<'_>, Malformed> {
    let (portal, rest) = name(body, "Bind")?;
    let (statement, tail) = name(rest, "Bind")?;
    Ok(Bind { portal, statement, tail })
}

/// Describe and Close: which kind of thing (`S` or `P`), and its name.
///
/// # Errors
/// Where the kind or the terminated name is missing.
pub fn target(body: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    let (kind, rest) = body.split_first().ok_or(Malformed("Describe or Close"))?;
    let (name, rest) = name(rest, "Describe or Close")?;
    if rest.is_empty() { Ok((*kind, name)) } else { Err(Malformed("Describe or Close")) }
}

/// Execute: the portal's name.
///
/// # Errors
/// Where the terminated name or the row limit is missing.
pub fn execute(body: &[u8]) -> Result<&[u8], Malformed> {
    let (portal, rest) = name(body, "Execute")?;
    if rest.len() == 4 { Ok(portal) } else { Err(Malformed("Execute")) }
}

/// ParameterStatus: name and value.
///
/// # Errors
/// Where one of the two isn't there.
pub fn parameter(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (name, rest) = cstr(body, "ParameterStatus")?;
    let (value, _) = cstr(rest, "ParameterStatus")?;
    Ok((name, value))
}

/// CommandComplete: the tag.
pub fn command_tag(body: &[u8]) -> &[u8] {
    body.strip_suffix(b"\0").unwrap_or(body)
}

/// The fields of an ErrorResponse or NoticeResponse that decide something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fault<'a> {
    /// Field `V`, which is never translated (`S` is).
    pub severity: &'a [u8],
    pub sqlstate: &'a [u8],
    pub message: &'a [u8],
    /// The server's function that reported it: like the SQLSTATE it is never translated, and drivers decide by it, too.
    pub routine: &'a [u8],
}

impl Fault<'_> {
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }
}

/// ErrorResponse and NoticeResponse. Missing fields are empty.
pub fn fault(mut body: &[u8]) -> Fault<'_> {
    let mut fault = Fault::default();
    while let Some((kind, rest)) = body.split_first() {
        let Ok((text, rest)) = cstr(rest, "ErrorResponse") else { break };
        match kind {
            b'V' => fault.severity = text,
            b'C' => fault.sqlstate = text,
            b'M' => fault.message = text,
            b'R' => fault.routine = text,
            _ => {}
        }
        body = rest;
    }
    fault
}

/// What a RowDescription (or NoData) says of the rows to come, as a hash: the columns' names and types, which is what makes a result type
/// (`equalTupleDescs`), but not where they come from and how they will be sent. `None` for a message that isn't there as a whole.
pub fn row_shape(tag: u8, body: &[u8]) -> Option<u64> {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    if tag == b'n' {
        return Some(hasher.digest());
    }
    let (columns, mut rest) = body.split_first_chunk::<2>()?;
    for _ in 0..u16::from_be_bytes(*columns) {
        let end = rest.iter().position(|byte| *byte == 0)?;
        // Table (4), attribute number (2), type (4), length (2), modifier (4), format (2).
        let fields = rest.get(end + 1..end + 19)?;
        hasher.update(&rest[..=end]);
        hasher.update(&fields[6..10]);
        hasher.update(&fields[12..16]);
        rest = &rest[end + 19..];
    }
    Some(hasher.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_and_bind_are_cut_at_their_names() {
        let parse = parse(b"s1\0SELECT $1\0\0\x01\0\0\0\x17").expect("well formed");
        assert_eq!((parse.name, parse.text), (&b"s1"[..], &b"SELECT $1"[..]));
        assert!(super::parse(b"s1\0SELECT 1\0\0\x01").is_err());
        let bind = bind(b"p\0s1\0\0\0\0\0\0\0").expect("well formed");
        assert_eq!((bind.portal, bind.statement, bind.tail.len()), (&b"p"[..], &b"s1"[..], 6));
        assert!(super::bind(b"p\0s1").is_err());
        assert_eq!(query(b"x\0y\0"), Err(Malformed("Query")));
    }

    #[test]
    fn a_fault_is_read_by_its_untranslated_fields() {
        let fault = fault(b"SFATAL-traduit\0VFATAL\0C57P01\0Mweg\0\0");
        assert!(fault.is_fatal());
        assert_eq!(fault.sqlstate, b"57P01");
        assert!(super::fault(b"VERR").sqlstate.is_empty());
    }
}
