//! Who may tell the router to do something: whoever is on its own machine, and whoever shows the token.
//!
//! Without a token a request must come from a loopback address, past no proxy, and to a loopback name: a page in a browser on that machine
//! can send requests there too, but not with this content type (CORS preflight), and not under a name of its own (DNS rebinding).

use std::net::{IpAddr, SocketAddr};

use hyper::header::{self, HeaderMap};
use hyper::{StatusCode, Uri};
use subtle::ConstantTimeEq;
use switchyard_config::Control;

/// Headers that a proxy on this machine leaves: the request may come from anywhere.
const PROXIES: [&str; 5] = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"];

/// # Errors
/// Status and words for the one who asked.
pub(super) fn admit(control: &Control, peer: SocketAddr, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    let json = headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if !json {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected a body of type application/json\n"));
    }
    if let Some(given) = headers.get(header::AUTHORIZATION) {
        let token = given.as_bytes().strip_prefix(b"Bearer ").unwrap_or_default();
        let right = control.token.as_ref().is_some_and(|expected| bool::from(expected.expose().as_bytes().ct_eq(token)));
        return if right { Ok(()) } else { Err((StatusCode::UNAUTHORIZED, "that is not the router's control.token\n")) };
    }
    let proxied = PROXIES.iter().any(|name| headers.contains_key(*name));
    let to_loopback = headers.get(header::HOST).and_then(|host| host.to_str().ok()).is_some_and(is_loopback_name);
    if peer.ip().to_canonical().is_loopback() && to_loopback && !proxied {
        return Ok(());
    }
    let why = match control.token {
        Some(_) => "from elsewhere than the router's own machine this needs the token in its control.token\n",
        None => "only from the router's own machine, unless control.token is set\n",
    };
    Err((StatusCode::FORBIDDEN, why))
}

fn is_loopback_name(host: &str) -> bool {
    let Some(name) = host.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)) else { return false };
    let name = name.trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use switchyard_config::Secret;

    use super::*;

    fn status(token: Option<&str>, peer: &str, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("a header"));
        }
        let peer = SocketAddr::new(peer.parse().expect("an address"), 50_000);
        admit(&Control { token: token.map(Secret::new) }, peer, &map).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn this_machine_may_and_others_need_the_token() {
        const JSON: (&str, &str) = ("content-type", "application/json");
        let host = |name| ("host", name);
        for name in ["127.0.0.1:18080", "localhost:18080", "[::1]:18080", "LOCALHOST"] {
            assert_eq!(status(None, "127.0.0.1", &[JSON, host(name)]), 200, "{name}");
        }
        assert_eq!(status(None, "::ffff:127.0.0.1", &[JSON, host("localhost")]), 200);
        assert_eq!(status(None, "::1", &[JSON, host("localhost")]), 200);
        assert_eq!(status(None, "10.0.0.1", &[JSON, host("localhost")]), 403);
        assert_eq!(status(Some("sesame"), "10.0.0.1", &[JSON, host("router")]), 403);
        let bearer = |token: &'static str| ("authorization", token);
        assert_eq!(status(Some("sesame"), "10.0.0.1", &[JSON, host("router"), bearer("Bearer sesame")]), 200);
        for wrong in ["Bearer sesam", "Bearer sesamee", "Bearer ", "sesame", "Basic sesame"] {
            assert_eq!(status(Some("sesame"), "127.0.0.1", &[JSON, host("localhost"), bearer(wrong)]), 401, "{wrong}");
        }
        assert_eq!(status(None, "10.0.0.1", &[JSON, host("router"), bearer("Bearer ")]), 401, "there is no token");
    }

    #[test]
    fn a_browser_or_a_proxy_on_this_machine_isnt_its_operator() {
        const JSON: (&str, &str) = ("content-type", "application/json");
        assert_eq!(status(None, "127.0.0.1", &[("content-type", "text/plain"), ("host", "localhost")]), 415);
        assert_eq!(status(None, "127.0.0.1", &[("host", "localhost")]), 415);
        for name in ["evil.example:18080", "127.0.0.1.evil.example", "localhost.evil.example", "", "user@:/", "10.0.0.1"] {
            assert_eq!(status(None, "127.0.0.1", &[JSON, ("host", name)]), 403, "{name}");
        }
        assert_eq!(status(None, "127.0.0.1", &[JSON]), 403, "no name at all");
        for header in PROXIES {
            assert_eq!(status(None, "127.0.0.1", &[JSON, ("host", "localhost"), (header, "10.0.0.1")]), 403, "{header}");
        }
    }
}
