//! `Forwarded` (RFC 7239) and `X-Forwarded-For`: the addresses that a request came by, nearest first.
//! Owns their grammar. Read from the end, and cut at every comma, quoted or not: what the nearest proxy appended is read
//! alike whatever the client wrote before it. Never decides whom to believe.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::http::fields::{is_token_byte, trim};

/// Whom one proxy says that it was connected from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// The port is 0 where none is said.
    At(IpAddr, u16),
    /// It knows and does not tell, or does not know (RFC 7239 §6.2, §6.3).
    Hidden,
    Malformed,
}

/// The hops of all values of `Forwarded`, nearest first.
pub fn of_forwarded<'a>(values: &'a [&'a [u8]]) -> impl Iterator<Item = Hop> + 'a {
    elements(values).map(|element| forwarded_element(element).unwrap_or(Hop::Malformed))
}

/// The hops of all values of `X-Forwarded-For`, nearest first.
pub fn of_x_forwarded_for<'a>(values: &'a [&'a [u8]]) -> impl Iterator<Item = Hop> + 'a {
    elements(values).map(|element| std::str::from_utf8(element).map_or(Hop::Malformed, node))
}

/// Empty ones are skipped (RFC 9110 §5.6.1.2).
fn elements<'a>(values: &'a [&'a [u8]]) -> impl Iterator<Item = &'a [u8]> + 'a {
    let parts = values.iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    parts.map(trim).filter(|element| !element.is_empty())
}

/// RFC 7239 §4: pairs of tokens and values, split by semicolons, each name once. `None`: it is none.
fn forwarded_element(element: &[u8]) -> Option<Hop> {
    let mut rest = element;
    let mut hop = None;
    loop {
        let equals = rest.iter().position(|byte| *byte == b'=')?;
        let (name, after) = rest.split_at_checked(equals)?;
        let (value, after) = value(after.get(1..)?)?;
        if name.is_empty() || !name.iter().all(|byte| is_token_byte(*byte)) {
            return None;
        }
        if name.eq_ignore_ascii_case(b"for") {
            if hop.is_some() {
                return None;
            }
            hop = Some(node(&value));
        }
        match trim(after) {
            // One that does not say for whom.
            [] => return Some(hop.unwrap_or(Hop::Hidden)),
            [b';', next @ ..] => rest = trim(next),
            _ => return None,
        }
    }
}

/// A token or a quoted string, and what follows it.
fn value(input: &[u8]) -> Option<(String, &[u8])> {
    let Some(inner) = input.strip_prefix(b"\"") else {
        let end = input.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(input.len());
        let (token, after) = input.split_at_checked(end).filter(|(token, _)| !token.is_empty())?;
        return Some((String::from_utf8(token.to_vec()).ok()?, after));
    };
    let mut text = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some((String::from_utf8(text).ok()?, inner.get(at + 1..)?)),
            b'\\' => text.push(*bytes.next()?.1),
            _ => text.push(*byte),
        }
    }
    None
}

/// An address with or without a port, or a word in its place (RFC 7239 §6). IPv6 may stand without brackets, as it does
/// in `X-Forwarded-For`.
fn node(text: &str) -> Hop {
    let word = text.split(':').next().unwrap_or_default();
    if word.eq_ignore_ascii_case("unknown") || is_obfuscated(word) {
        return Hop::Hidden;
    }
    let (ip, rest) = match text.strip_prefix('[') {
        Some(inner) => match inner.split_once(']') {
            Some((ip, rest)) => (ip.parse::<Ipv6Addr>().map(IpAddr::V6), rest),
            None => return Hop::Malformed,
        },
        None => {
            if let Ok(ip) = text.parse::<Ipv6Addr>() {
                return Hop::At(ip.into(), 0);
            }
            let end = text.find(':').unwrap_or(text.len());
            let (ip, rest) = text.split_at_checked(end).unwrap_or((text, ""));
            (ip.parse::<Ipv4Addr>().map(IpAddr::V4), rest)
        }
    };
    let Ok(ip) = ip else { return Hop::Malformed };
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => Some(0),
        Some(port) if is_obfuscated(port) => Some(0),
        Some(port) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok(),
        _ => None,
    };
    port.map_or(Hop::Malformed, |port| Hop::At(ip, port))
}

/// RFC 7239 §6.3
fn is_obfuscated(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    text.strip_prefix('_').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str, port: u16) -> Hop {
        Hop::At(text.parse().expect("an address"), port)
    }

    #[test]
    fn forwarded() {
        let v6 = "2001:db8:cafe::17";
        for (value, want) in [
            ("for=192.0.2.60;proto=http;by=203.0.113.43", vec![at("192.0.2.60", 0)]),
            ("For=\"[2001:db8:cafe::17]:4711\"", vec![at(v6, 4_711)]),
            ("for=\"[2001:db8:cafe::17]\"", vec![at(v6, 0)]),
            ("for=192.0.2.43, for=198.51.100.17", vec![at("198.51.100.17", 0), at("192.0.2.43", 0)]),
            ("for=192.0.2.43,for=\"[2001:db8:cafe::17]\"", vec![at(v6, 0), at("192.0.2.43", 0)]),
            ("for=unknown, for=_gazonk", vec![Hop::Hidden, Hop::Hidden]),
            ("for=\"_hidden:_port\"", vec![Hop::Hidden]),
            ("for=\"192.0.2.43:_port\"", vec![at("192.0.2.43", 0)]),
            ("for=\"192.0.2.43:47\" ; proto=https", vec![at("192.0.2.43", 47)]),
            ("by=203.0.113.43;proto=https", vec![Hop::Hidden]),
            ("host=\"a\\\"b\";for=192.0.2.1", vec![at("192.0.2.1", 0)]),
            (", ,for=192.0.2.1, ", vec![at("192.0.2.1", 0)]),
            ("", vec![]),
            ("for=192.0.2.1:80", vec![Hop::Malformed]),
            ("for=", vec![Hop::Malformed]),
            ("for", vec![Hop::Malformed]),
            ("=192.0.2.1", vec![Hop::Malformed]),
            ("for=192.0.2.1;", vec![Hop::Malformed]),
            ("for=192.0.2.1;for=192.0.2.2", vec![Hop::Malformed]),
            ("for=192.0.2.300", vec![Hop::Malformed]),
            ("for=\"[::1\"", vec![Hop::Malformed]),
            ("for=\"192.0.2.1", vec![Hop::Malformed]),
            ("for=localhost", vec![Hop::Malformed]),
        ] {
            let values = [value.as_bytes()];
            assert_eq!(of_forwarded(&values).collect::<Vec<_>>(), want, "{value}");
        }
    }

    #[test]
    fn x_forwarded_for() {
        for (value, want) in [
            ("203.0.113.195, 2001:db8::7", vec![at("2001:db8::7", 0), at("203.0.113.195", 0)]),
            ("203.0.113.195:41237", vec![at("203.0.113.195", 41_237)]),
            ("[2001:db8::7]:9", vec![at("2001:db8::7", 9)]),
            ("::ffff:192.0.2.1", vec![at("::ffff:192.0.2.1", 0)]),
            ("unknown", vec![Hop::Hidden]),
            ("192.0.2.1 192.0.2.2", vec![Hop::Malformed]),
            ("192.0.2.1:", vec![Hop::Malformed]),
            ("192.0.2.1:+1", vec![Hop::Malformed]),
            ("192.0.2.1:65536", vec![Hop::Malformed]),
            ("fe80::1%eth0", vec![Hop::Malformed]),
            ("[192.0.2.1]", vec![Hop::Malformed]),
            ("\u{fffd}", vec![Hop::Malformed]),
        ] {
            let values = [value.as_bytes()];
            assert_eq!(of_x_forwarded_for(&values).collect::<Vec<_>>(), want, "{value}");
        }
        let lines = [&b"192.0.2.1"[..], b"192.0.2.2, 192.0.2.3"];
        let want: Vec<_> = ["192.0.2.3", "192.0.2.2", "192.0.2.1"].iter().map(|ip| at(ip, 0)).collect();
        assert_eq!(of_x_forwarded_for(&lines).collect::<Vec<_>>(), want);
    }

    proptest! {
        /// What a client writes, quotes left open included, changes nothing of what a proxy appends to it.
        #[test]
        fn the_nearest_hop_is_the_proxys(noise in "[ -~]{0,40}") {
            let forwarded = format!("{noise}, for=192.0.2.7");
            let for_ = format!("{noise}, 192.0.2.7");
            let first = of_forwarded(&[forwarded.as_bytes()]).next();
            prop_assert_eq!(first, Some(at("192.0.2.7", 0)));
            let first = of_x_forwarded_for(&[for_.as_bytes()]).next();
            prop_assert_eq!(first, Some(at("192.0.2.7", 0)));
        }

        #[test]
        fn noise_is_harmless(noise in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = of_forwarded(&[&noise]).count();
            let _ = of_x_forwarded_for(&[&noise]).count();
        }
    }
}
