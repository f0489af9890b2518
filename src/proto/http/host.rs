//! The authority of a request: host and port (RFC 9110 §7.2, RFC 3986 §3.2).
//! Owns what is taken for a host. Stricter than RFC 3986: sub-delims, percent-encoding, zones and userinfo are
//! refused, for no DNS name or address needs them and peers read them differently.

use std::net::Ipv6Addr;

/// Checks `name`, `name:port`, `[IPv6]` or `[IPv6]:port`. `None`: not a host.
pub fn parse(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let (name, port) = split_text(text)?;
    let name_ok = match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(is_name_byte),
    };
    let port_ok =
        port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok());
    (name_ok && port_ok).then_some(text)
}

/// The name (an IPv6 address keeps its brackets) and the port of a host that [`parse`] gave.
pub fn split(host: &str) -> (&str, Option<u16>) {
    match split_text(host) {
        Some((name, port)) => (name, port.parse().ok()),
        None => (host, None),
    }
}

fn split_text(text: &str) -> Option<(&str, &str)> {
    let name_bytes =
        if text.starts_with('[') { text.find(']')? + 1 } else { text.find(':').unwrap_or(text.len()) };
    let (name, rest) = text.split_at_checked(name_bytes)?;
    match rest.strip_prefix(':') {
        Some(port) => Some((name, port)),
        None => rest.is_empty().then_some((name, "")),
    }
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_cases() {
        for (text, expected) in [
            ("localhost", ("localhost", None)),
            ("localhost:8080", ("localhost", Some(8080))),
            ("a_b.example.:80", ("a_b.example.", Some(80))),
            ("127.0.0.1:0", ("127.0.0.1", Some(0))),
            ("name:", ("name", None)),
            ("[::1]", ("[::1]", None)),
            ("[::1]:443", ("[::1]", Some(443))),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(text));
            assert_eq!(split(text), expected, "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in [
            "",
            ":80",
            "a b",
            "a,b",
            "a/b",
            "a?b",
            "a#b",
            "user@a",
            "a:b",
            "a:65536",
            "a:+1",
            "a:1:2",
            "::1",
            "[]",
            "[::1",
            "::1]",
            "[::1]x",
            "[a]",
            "[fe80::1%25eth0]",
            "a%41",
            "é",
            "a\\b",
            "\"a\"",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse(b"\xff"), None);
    }
}
