//! A request's head as a value (RFC 9110, RFC 9112 §3, §5).
//! Owns the request line and the list of fields; `framing` owns what the fields say about where messages end. Borrows
//! everything from the input, allocates nothing, and looks at each field once.

use std::mem::MaybeUninit;

use super::error::HttpError;
use super::framing::Seen;
use super::head::{HeadScanner, HeadSpan, TARGET_BYTES_MAX};
use super::target::{self, Target};

/// Most fields of a head.
pub const FIELDS_MAX: usize = 64;

/// Methods that anything here could care about; the rest are `Other` (RFC 9110 §9.1: names are case-sensitive).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Trace,
    Connect,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Http10,
    Http11,
}

/// How the content is framed (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// Neither `Content-Length` nor `Transfer-Encoding`.
    None,
    Length(u64),
    Chunked,
}

/// Which protocol the client asks for. Upgrades other than to WebSocket are ignored, as RFC 9110 §7.8 allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade<'a> {
    None,
    /// A valid handshake; `key` is the value of `Sec-WebSocket-Key`, 24 characters. The subprotocols are in
    /// `fields.all("sec-websocket-protocol")`.
    WebSocket {
        key: &'a str,
    },
}

/// One request without its content.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: Method,
    pub version: Version,
    pub target: Target<'a>,
    /// `name` or `name:port` as the client wrote it, valid. Empty only in HTTP/1.0 without a `Host`.
    pub host: &'a str,
    pub fields: Fields<'a>,
    pub body: BodyLength,
    /// Whether the client wants the connection to go on (RFC 9112 §9.3).
    pub keep_alive: bool,
    /// The client waits for `100` before it sends the content (RFC 9110 §10.1.1).
    pub expect_continue: bool,
    pub upgrade: Upgrade<'a>,
}

/// Room for the fields of one request, on the caller's stack. Costs nothing to make: make one for each request.
pub struct FieldSlots<'b>([MaybeUninit<httparse::Header<'b>>; FIELDS_MAX]);

/// The header fields, in the order they came.
#[derive(Clone, Copy)]
pub struct Fields<'a>(&'a [httparse::Header<'a>]);

/// One parse attempt over the bytes read so far.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// The head took the first `used` bytes; the body, if any, follows.
    Done { request: Request<'a>, used: usize },
    /// Nothing taken; try again when more came.
    Partial,
}

/// Finds and parses a head in one step. Where the borrow of `input` stands in the way of reading more bytes, call
/// [`HeadScanner::find`] until it gives a span, then [`parse`].
///
/// # Errors
/// [`HttpError`] when no further byte could make the request acceptable.
pub fn scan<'b: 's, 's>(
    scanner: &mut HeadScanner,
    input: &'b [u8],
    slots: &'s mut FieldSlots<'b>,
) -> Result<Parsed<'s>, HttpError> {
    match scanner.find(input)? {
        Some(span) => Ok(Parsed::Done { request: parse(input, span, slots)?, used: span.used() }),
        None => Ok(Parsed::Partial),
    }
}

/// Parses the head that `span` marks in `input`.
///
/// # Errors
/// [`HttpError`] for every request that is malformed, asks for what is not spoken here, or could be read two ways.
pub fn parse<'b: 's, 's>(
    input: &'b [u8],
    span: HeadSpan,
    slots: &'s mut FieldSlots<'b>,
) -> Result<Request<'s>, HttpError> {
    let head = span.of(input);
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut slots.0) {
        Ok(httparse::Status::Complete(used)) if used == head.len() => {}
        // The span says that the head is whole, so a need for more bytes is a line that ended too early.
        Ok(_) => return Err(HttpError::RequestLine),
        Err(error) => return Err(refusal(error, head)),
    }
    let (Some(method), Some(raw_target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HttpError::RequestLine);
    };
    let method = Method::parse(method);
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    if raw_target.len() > TARGET_BYTES_MAX {
        return Err(HttpError::TargetTooLong);
    }
    let (target, authority) = target::parse(method, raw_target)?;

    let fields = Fields(parsed.headers);
    let mut seen = Seen::default();
    for field in fields.0 {
        seen.on_field(field.name, field.value)?;
    }
    let host = seen.host(version)?;
    let body = seen.body(version)?;
    Ok(Request {
        method,
        version,
        target,
        host: authority.unwrap_or(host),
        fields,
        body,
        keep_alive: seen.keep_alive(version),
        expect_continue: seen.expect_continue(version, body),
        upgrade: seen.upgrade(method, version, body)?,
    })
}

fn refusal(error: httparse::Error, head: &[u8]) -> HttpError {
    match error {
        httparse::Error::HeaderName => HttpError::FieldName,
        httparse::Error::HeaderValue => HttpError::FieldValue,
        httparse::Error::TooManyHeaders => HttpError::TooManyFields,
        httparse::Error::Version if names_other_version(head) => HttpError::Version,
        httparse::Error::Version
        | httparse::Error::Token
        | httparse::Error::NewLine
        | httparse::Error::Status => HttpError::RequestLine,
    }
}

/// Whether the request line ends in `HTTP/` and a number: HTTP of another version, not some other noise.
fn names_other_version(head: &[u8]) -> bool {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut parts = line.split(|&byte| byte == b' ').skip(2);
    let (Some(version), None) = (parts.next(), parts.next()) else { return false };
    let Some(number) = version.strip_prefix(b"HTTP/") else { return false };
    number.first().is_some_and(u8::is_ascii_digit)
        && number.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
}

impl BodyLength {
    /// Whether no content can come.
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

impl Method {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Patch => "PATCH",
            Self::Trace => "TRACE",
            Self::Connect => "CONNECT",
            Self::Other => "OTHER",
        }
    }

    fn parse(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            "PATCH" => Self::Patch,
            "TRACE" => Self::Trace,
            "CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }
}

impl FieldSlots<'_> {
    pub const fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; FIELDS_MAX])
    }
}

impl Default for FieldSlots<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Fields<'a> {
    /// The first value of `name`; case does not matter.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// Every value of `name`, in order: for fields that are lists (RFC 9110 §5.3).
    pub fn all<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        self.0.iter().map(|field| (field.name, field.value))
    }
}

impl std::fmt::Debug for Fields<'_> {
    /// Names alone: values may be tokens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use HttpError as E;

    const MAX: usize = 16 * 1024;

    /// Parses one whole head, and what `look` makes of it.
    fn parsed<T>(input: &[u8], look: impl FnOnce(&Request<'_>) -> T) -> Result<T, HttpError> {
        match scan(&mut HeadScanner::new(MAX), input, &mut FieldSlots::new())? {
            Parsed::Done { request, .. } => Ok(look(&request)),
            Parsed::Partial => panic!("partial: {}", input.escape_ascii()),
        }
    }

    /// A GET in HTTP/1.1 with a host and these further lines.
    fn get_with(lines: &str) -> Vec<u8> {
        format!("GET /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n").into_bytes()
    }

    #[test]
    fn a_request() {
        let input = b"\r\nPOST /a%20b?c=d HTTP/1.1\r\nhOST: h:1\r\nX: 1\r\nx:\t 2 \t\r\nEmpty:\r\nContent-Length: 4\r\n\r\nbody";
        let mut slots = FieldSlots::new();
        let Ok(Parsed::Done { request, used }) = scan(&mut HeadScanner::new(MAX), input, &mut slots) else {
            panic!("not done");
        };
        assert_eq!(&input[used..], b"body");
        assert_eq!((request.method, request.version), (Method::Post, Version::Http11));
        let Target::Path { path, query } = request.target else { panic!("{:?}", request.target) };
        assert_eq!((path, query.raw(), request.host), ("/a%20b", "c=d", "h:1"));
        assert_eq!((request.body, request.keep_alive), (BodyLength::Length(4), true));
        assert_eq!((request.expect_continue, request.upgrade), (false, Upgrade::None));
        assert_eq!(request.fields.all("x").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(request.fields.get("EMPTY"), Some(&b""[..]));
        assert_eq!(request.fields.get("absent"), None);
        assert_eq!(request.fields.iter().count(), 5);
        assert!(!format!("{request:?}").contains("c=d"));
    }

    #[test]
    fn request_lines() {
        for (line, expected) in [
            ("GET / HTTP/1.1", Ok(Method::Get)),
            ("GET http://other:8/x HTTP/1.1", Ok(Method::Get)),
            ("OPTIONS * HTTP/1.1", Ok(Method::Options)),
            ("BREW / HTTP/1.1", Ok(Method::Other)),
            ("get / HTTP/1.1", Ok(Method::Other)),
            ("GET /\u{e9} HTTP/1.1", Ok(Method::Get)),
            ("CONNECT h:443 HTTP/1.1", Err(E::NotAProxy)),
            ("GET h:443 HTTP/1.1", Err(E::NotAProxy)),
            ("GET * HTTP/1.1", Err(E::Target)),
            ("GET a HTTP/1.1", Err(E::Target)),
            ("GET /#a HTTP/1.1", Err(E::Target)),
            ("GET http://u:p@h/ HTTP/1.1", Err(E::HostInvalid)),
            ("GET  / HTTP/1.1", Err(E::RequestLine)),
            ("GET /  HTTP/1.1", Err(E::RequestLine)),
            ("GET / HTTP/1.1 ", Err(E::RequestLine)),
            ("GET /a b HTTP/1.1", Err(E::RequestLine)),
            ("GET\t/ HTTP/1.1", Err(E::RequestLine)),
            ("GET / http/1.1", Err(E::RequestLine)),
            ("GET / HTTP/1.1\r", Err(E::RequestLine)),
            ("GET /\r HTTP/1.1", Err(E::RequestLine)),
            ("GET /\0 HTTP/1.1", Err(E::RequestLine)),
            ("GET /\x7f HTTP/1.1", Err(E::RequestLine)),
            ("GET /", Err(E::RequestLine)),
            ("GET", Err(E::RequestLine)),
            ("G@T / HTTP/1.1", Err(E::RequestLine)),
            ("GET / HTTP/", Err(E::RequestLine)),
            ("GET / HTTP/1.x", Err(E::RequestLine)),
            ("GET / HTTP/1.2", Err(E::Version)),
            ("GET / HTTP/0.9", Err(E::Version)),
            ("GET / HTTP/2", Err(E::Version)),
            ("PRI * HTTP/2.0", Err(E::Version)),
        ] {
            let input = format!("{line}\r\nHost: h\r\n\r\n");
            assert_eq!(parsed(input.as_bytes(), |request| request.method), expected, "{line:?}");
        }
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        assert_eq!(parsed(preface, |_| ()), Err(E::Version));
        assert_eq!(parsed(b"GET /\xff HTTP/1.1\r\n\r\n", |_| ()), Err(E::RequestLine));
        let long = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(len - 1));
        assert_eq!(parsed(long(TARGET_BYTES_MAX).as_bytes(), |_| ()), Ok(()));
        assert_eq!(parsed(long(TARGET_BYTES_MAX + 1).as_bytes(), |_| ()), Err(E::TargetTooLong));
    }

    #[test]
    fn hosts() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\nHost: a:80\r\n", Ok("a:80")),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n", Ok("b")),
            ("GET http://b/ HTTP/1.1\r\n", Err(E::HostMissing)),
            ("GET http://b/ HTTP/1.1\r\nHost: a b\r\n", Err(E::HostInvalid)),
            ("GET / HTTP/1.1\r\n", Err(E::HostMissing)),
            ("GET / HTTP/1.0\r\n", Ok("")),
            ("GET / HTTP/1.0\r\nHost: a\r\n", Ok("a")),
            ("GET / HTTP/1.0\r\nHost: a/b\r\n", Err(E::HostInvalid)),
            ("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n", Err(E::HostRepeated)),
            ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n", Err(E::HostRepeated)),
            ("GET / HTTP/1.1\r\nHost:\r\n", Err(E::HostInvalid)),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n", Err(E::HostInvalid)),
        ] {
            let input = format!("{head}\r\n");
            assert_eq!(
                parsed(input.as_bytes(), |request| request.host.to_owned()).as_deref(),
                expected.as_deref(),
                "{head}"
            );
        }
    }

    #[test]
    fn field_lines() {
        for (lines, expected) in [
            ("A: b\r\n", Ok(())),
            ("A: \u{e9}\t\"x\"\r\n", Ok(())),
            ("A : b\r\n", Err(E::FieldName)),
            ("A\t: b\r\n", Err(E::FieldName)),
            (" A: b\r\n", Err(E::FieldName)),
            ("A: b\r\n c\r\n", Err(E::FieldName)),
            ("A: b\r\n\tc: d\r\n", Err(E::FieldName)),
            ("A\r\n", Err(E::FieldName)),
            (": b\r\n", Err(E::FieldName)),
            ("A(: b\r\n", Err(E::FieldName)),
            ("\u{e9}: b\r\n", Err(E::FieldName)),
            ("A\0: b\r\n", Err(E::FieldName)),
            ("A: b\0c\r\n", Err(E::FieldValue)),
            ("A: b\rc\r\n", Err(E::FieldValue)),
            ("A: b\r\r\n", Err(E::FieldValue)),
            ("A: \r\r\n", Err(E::FieldValue)),
            ("A: \x7f\r\n", Err(E::FieldValue)),
            ("A: \x0b\r\n", Err(E::FieldValue)),
            ("A: b\n", Err(E::BareLf)),
        ] {
            assert_eq!(parsed(&get_with(lines), |_| ()), expected, "{lines:?}");
        }
        assert_eq!(
            parsed(&get_with(&"A: b\r\n".repeat(FIELDS_MAX - 1)), |r| r.fields.iter().count()),
            Ok(FIELDS_MAX)
        );
        assert_eq!(parsed(&get_with(&"A: b\r\n".repeat(FIELDS_MAX)), |_| ()), Err(E::TooManyFields));
        assert_eq!(parsed(&get_with(&format!("A: {}\r\n", "b".repeat(MAX))), |_| ()), Err(E::HeadTooLarge));
    }

    fn any_head() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            8 => Just("Host: h\r\n"),
            1 => Just("Content-Length: 3\r\n"),
            1 => Just("Transfer-Encoding: chunked\r\n"),
            1 => Just("Upgrade: websocket\r\nConnection: Upgrade\r\n"),
            1 => Just("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
            1 => Just("Sec-WebSocket-Version: 13\r\n"),
            1 => Just("A: b\rc\r\n"),
            1 => Just("A : b\r\n"),
            1 => Just("A: b\n"),
            1 => Just(" folded\r\n"),
            1 => Just("\r\n"),
        ];
        let start =
            prop_oneof![Just("GET / HTTP/1.1\r\n"), Just("\r\nPOST /a?b HTTP/1.0\r\n"), Just("BAD\r\n")];
        (start, proptest::collection::vec(line, 0..5))
            .prop_map(|(start, lines)| format!("{start}{}\r\nbody", lines.concat()).into_bytes())
    }

    proptest! {
        #[test]
        fn every_cut_gives_the_same(input in any_head()) {
            /// `None` is partial; else what was read, as text, and the bytes used.
            fn attempt(scanner: &mut HeadScanner, input: &[u8]) -> Option<Result<(String, usize), HttpError>> {
                match scan(scanner, input, &mut FieldSlots::new()) {
                    Ok(Parsed::Partial) => None,
                    Ok(Parsed::Done { request, used }) => Some(Ok((format!("{request:?}"), used))),
                    Err(error) => Some(Err(error)),
                }
            }
            let whole = attempt(&mut HeadScanner::new(MAX), &input);
            prop_assert!(whole.is_some());
            for cut in 0..=input.len() {
                let mut scanner = HeadScanner::new(MAX);
                let first = attempt(&mut scanner, &input[..cut]);
                if let (Some(Ok((_, used))), _) = (&whole, &first) {
                    prop_assert_eq!(first.is_some(), cut >= *used, "cut at {}", cut);
                }
                let got = first.or_else(|| attempt(&mut scanner, &input));
                prop_assert_eq!(&got, &whole, "cut at {}", cut);
            }
        }

        #[test]
        fn noise_is_refused_or_partial(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = scan(&mut HeadScanner::new(MAX), &noise, &mut FieldSlots::new());
        }
    }
}
