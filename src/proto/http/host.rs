//! The authority of a request: host and port (RFC 9110 §7.2, RFC 3986 §3.2).
//! Owns what is taken for a host. Stricter than RFC 3986: sub-delims, percent-encoding, zones and userinfo are
//! refused, for no DNS name or address needs them and peers read them differently.

use std::net::Ipv6Addr;

/// Checks `name`, `name:port`, `[IPv6]` or `[IPv6]:port`. `None`: not a host.
pub fn parse(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    if value.starts_with(b"[") {
        let (name, port) = split_text(text)?;
        name.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?;
        return (port.is_empty() || port_number(port).is_some()).then_some(text);
    }
    let is_name_byte = |byte: &u8| IS_NAME_BYTE[usize::from(*byte)];
    let name_bytes = value.iter().position(|byte| !is_name_byte(byte)).unwrap_or(value.len());
    let (name, rest) = text.split_at_checked(name_bytes)?;
    let is_port = |port: &str| port.is_empty() || port_number(port).is_some();
    (!name.is_empty() && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))).then_some(text)
}

/// The name (an IPv6 address keeps its brackets) and the port of a host that [`parse`] gave.
pub fn split(host: &str) -> (&str, Option<u16>) {
    match split_text(host) {
        Some((name, port)) => (name, port_number(port)),
        None => (host, None),
    }
}

/// The name alone.
pub fn name(host: &str) -> &str {
    split_text(host).map_or(host, |(name, _)| name)
}

fn split_text(text: &str) -> Option<(&str, &str)> {
    // Short texts: a search that is begun for each costs more than the look at their bytes.
    let find = |wanted: u8| text.bytes().position(|byte| byte == wanted);
    let name_bytes = if text.starts_with('[') { find(b']')? + 1 } else { find(b':').unwrap_or(text.len()) };
    let (name, rest) = text.split_at_checked(name_bytes)?;
    match rest.strip_prefix(':') {
        Some(port) => Some((name, port)),
        None => rest.is_empty().then_some((name, "")),
    }
}

/// Digits alone, at most 65535.
fn port_number(port: &str) -> Option<u16> {
    if port.is_empty() {
        return None;
    }
    port.bytes().try_fold(0_u16, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u16::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

const IS_NAME_BYTE: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'.' | b'-' | b'_' | b'~');
        byte += 1;
    }
    table
};

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
