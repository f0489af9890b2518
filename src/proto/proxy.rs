//! The header with which a proxy begins a connection, versions 1 and 2 (HAProxy's proxy-protocol.txt): bytes to the
//! client's address. Owns how much of it is taken, and where it ends; `ppp` reads what stands in it.

use std::net::SocketAddr;

use ppp::{v1, v2};

/// Longest line of version 1, its CRLF included (§2.1).
pub const V1_BYTES_MAX: usize = 107;
/// Before what version 2's length counts (§2.2).
const V2_START_BYTES: usize = 16;
/// Most bytes that version 2's length may count: the addresses, and what proxies add (names, certificates), which is
/// passed over. Senders stay below 536 if they can (§2.2).
pub const V2_REST_BYTES_MAX: usize = 4_096;

/// Most bytes that a header of either version takes.
pub const HEADER_BYTES_MAX: usize = V2_START_BYTES + V2_REST_BYTES_MAX;

const V1_PREFIX: &[u8] = b"PROXY ";
const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN";

/// What a proxy says of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Client(SocketAddr),
    /// Nothing: the proxy speaks for itself (a health check), or does not know. The connection's own address counts.
    Unsaid,
}

/// One parse attempt over the bytes read so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The header was the first `used` bytes.
    Done { source: Source, used: usize },
    /// Nothing taken; retry with more.
    Partial,
}

/// Why a connection is not begun as its proxy must. It is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyError {
    /// It does not begin with a header of either version.
    Missing,
    /// It does, but then is none.
    Malformed,
    TooLong,
}

impl ProxyError {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "no PROXY header",
            Self::Malformed => "a malformed PROXY header",
            Self::TooLong => "a PROXY header that is too long",
        }
    }
}

/// Parses the header at the start of `input`, which is all that came since the connection began.
///
/// # Errors
/// [`ProxyError`], as soon as no further byte could make it a header.
pub fn parse(input: &[u8]) -> Result<Parsed, ProxyError> {
    let begins_as = |prefix: &[u8]| input.starts_with(prefix) || prefix.starts_with(input);
    if begins_as(V1_PREFIX) {
        parse_v1(input)
    } else if begins_as(v2::PROTOCOL_PREFIX) {
        parse_v2(input)
    } else {
        Err(ProxyError::Missing)
    }
}

fn parse_v1(input: &[u8]) -> Result<Parsed, ProxyError> {
    let window = input.get(..V1_BYTES_MAX).unwrap_or(input);
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if window.len() == V1_BYTES_MAX { Err(ProxyError::TooLong) } else { Ok(Parsed::Partial) };
    };
    let line = window.get(..=end).unwrap_or_default();
    let used = line.len();
    // Whatever stands after it is ignored (§2.1).
    let after_unknown = line.strip_prefix(V1_UNKNOWN).and_then(|rest| rest.strip_suffix(b"\r\n"));
    if after_unknown.is_some_and(|rest| rest.is_empty() || rest.starts_with(b" ")) {
        return Ok(Parsed::Done { source: Source::Unsaid, used });
    }
    // A part of a line is not always known as one there: it is given the whole.
    let header = v1::Header::try_from(line).map_err(|_| ProxyError::Malformed)?;
    let source = match header.addresses {
        v1::Addresses::Tcp4(ip) => Source::Client((ip.source_address, ip.source_port).into()),
        v1::Addresses::Tcp6(ip) => Source::Client((ip.source_address, ip.source_port).into()),
        v1::Addresses::Unknown => Source::Unsaid,
    };
    Ok(Parsed::Done { source, used })
}

fn parse_v2(input: &[u8]) -> Result<Parsed, ProxyError> {
    let Some(&[high, low]) = input.get(V2_START_BYTES - 2..V2_START_BYTES) else {
        return Ok(Parsed::Partial);
    };
    if usize::from(u16::from_be_bytes([high, low])) > V2_REST_BYTES_MAX {
        return Err(ProxyError::TooLong);
    }
    let header = match v2::Header::try_from(input) {
        Ok(header) => header,
        Err(v2::ParseError::Incomplete(_) | v2::ParseError::Partial(..)) => return Ok(Parsed::Partial),
        Err(_) => return Err(ProxyError::Malformed),
    };
    let source = match (header.command, header.protocol, header.addresses) {
        (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::IPv4(ip)) => {
            Source::Client((ip.source_address, ip.source_port).into())
        }
        (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::IPv6(ip)) => {
            Source::Client((ip.source_address, ip.source_port).into())
        }
        // Of itself, or of what has no address of the network's.
        _ => Source::Unsaid,
    };
    Ok(Parsed::Done { source, used: header.header.len() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header of version 2.
    fn v2(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut wire = v2::PROTOCOL_PREFIX.to_vec();
        wire.extend([version_command, family]);
        wire.extend(u16::try_from(rest.len()).expect("short").to_be_bytes());
        wire.extend(rest);
        wire
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0, 80];

    fn v6() -> Vec<u8> {
        let mut rest = vec![0; 36];
        rest[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        rest[15] = 7;
        rest[33] = 9;
        rest
    }

    fn client(text: &str) -> Source {
        Source::Client(text.parse().expect("an address"))
    }

    #[test]
    fn named_cases() {
        let with_tlvs = [&V4[..], &[0x04, 0, 3, 1, 2, 3], &[0xE0; 500]].concat();
        let cases: Vec<(&str, Vec<u8>, Source)> = vec![
            ("v1 tcp4", b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 80\r\n".into(), client("192.0.2.7:12345")),
            ("v1 tcp6", b"PROXY TCP6 2001:db8::7 ::1 9 80\r\n".into(), client("[2001:db8::7]:9")),
            ("v1 unknown", b"PROXY UNKNOWN\r\n".into(), Source::Unsaid),
            ("v1 unknown, and more", b"PROXY UNKNOWN a b c d e f g h\r\n".into(), Source::Unsaid),
            ("v2 tcp4", v2(0x21, 0x11, &V4), client("192.0.2.7:12345")),
            ("v2 tcp6", v2(0x21, 0x21, &v6()), client("[2001:db8::7]:9")),
            ("v2 with TLVs", v2(0x21, 0x11, &with_tlvs), client("192.0.2.7:12345")),
            ("v2 local", v2(0x20, 0x00, &[]), Source::Unsaid),
            ("v2 local with an address", v2(0x20, 0x11, &V4), Source::Unsaid),
            ("v2 of no family", v2(0x21, 0x00, &[1, 2, 3]), Source::Unsaid),
            ("v2 of datagrams", v2(0x21, 0x12, &V4), Source::Unsaid),
            ("v2 of a unix socket", v2(0x21, 0x31, &[b'x'; 216]), Source::Unsaid),
        ];
        for (name, wire, source) in cases {
            let done = Ok(Parsed::Done { source, used: wire.len() });
            assert_eq!(parse(&wire), done, "{name}");
            let behind = [&wire[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(parse(&behind), done, "{name}, a request behind it");
            for cut in 0..wire.len() {
                assert_eq!(parse(&wire[..cut]), Ok(Parsed::Partial), "{name}, cut at {cut}");
            }
        }
    }

    #[test]
    fn refused() {
        let long = v2(0x21, 0x11, &[0; V2_REST_BYTES_MAX + 1]);
        let line = |text: &str| format!("PROXY {text}\r\n").into_bytes();
        let cases: Vec<(&str, Vec<u8>, ProxyError)> = vec![
            ("a request", b"GET / HTTP/1.1\r\n".into(), ProxyError::Missing),
            ("a first byte", b"G".into(), ProxyError::Missing),
            ("a TLS hello", b"\x16\x03\x01".into(), ProxyError::Missing),
            ("an empty line and a request", b"\r\nGET".into(), ProxyError::Missing),
            ("lower case", b"proxy TCP4".into(), ProxyError::Missing),
            ("no family", line(""), ProxyError::Malformed),
            ("another family", line("TCP5 1.2.3.4 5.6.7.8 1 2"), ProxyError::Malformed),
            ("unknown, and a letter", line("UNKNOWNS"), ProxyError::Malformed),
            ("an address of the other family", line("TCP4 ::1 ::1 1 2"), ProxyError::Malformed),
            ("a name", line("TCP4 localhost 5.6.7.8 1 2"), ProxyError::Malformed),
            ("a port too large", line("TCP4 1.2.3.4 5.6.7.8 65536 2"), ProxyError::Malformed),
            ("a port too few", line("TCP4 1.2.3.4 5.6.7.8 1"), ProxyError::Malformed),
            ("something more", line("TCP4 1.2.3.4 5.6.7.8 1 2 3"), ProxyError::Malformed),
            ("a bare LF", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n".into(), ProxyError::Malformed),
            ("a line without end", [b"PROXY UNKNOWN ", &[b'x'; 93][..]].concat(), ProxyError::TooLong),
            ("version 3", v2(0x31, 0x11, &V4), ProxyError::Malformed),
            ("another command", v2(0x22, 0x11, &V4), ProxyError::Malformed),
            ("a family that is none", v2(0x21, 0x41, &V4), ProxyError::Malformed),
            ("too short for its family", v2(0x21, 0x21, &V4), ProxyError::Malformed),
            ("more than is passed over", long[..16].into(), ProxyError::TooLong),
        ];
        for (name, wire, error) in cases {
            assert_eq!(parse(&wire), Err(error), "{name}");
        }
    }

    fn any_wire() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            (any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..60))
                .prop_map(|(command, family, rest)| v2(command, family, &rest)),
            (0_u8..4, proptest::collection::vec(any::<u8>(), 36..40)).prop_map(|(family, rest)| v2(
                0x21,
                family << 4 | 1,
                &rest
            )),
            proptest::collection::vec(
                proptest::sample::select(vec![
                    "TCP4", "TCP6", "UNKNOWN", "1.2.3.4", "::1", "80", "\r", "\n", ""
                ]),
                0..9
            )
            .prop_map(|words| format!("PROXY {}\r\n", words.join(" ")).into_bytes()),
        ]
    }

    proptest! {
        /// What is decided of a part stays decided when more comes.
        #[test]
        fn cuts_change_nothing(wire in any_wire()) {
            let whole = parse(&wire);
            for cut in 0..wire.len() {
                let part = parse(&wire[..cut]);
                prop_assert!(part == Ok(Parsed::Partial) || part == whole, "cut at {}: {:?}", cut, part);
            }
            if let Ok(Parsed::Done { used, .. }) = whole {
                prop_assert!(used <= wire.len() && used <= V2_START_BYTES + V2_REST_BYTES_MAX);
            }
        }
    }
}
