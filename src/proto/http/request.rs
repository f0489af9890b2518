//! A request's head as a value (RFC 9110, RFC 9112; the handshake: RFC 6455 §4.2.1).
//! Owns how the body is framed, whether the connection goes on, and which handshakes are valid; refuses whatever
//! could be read two ways. Borrows everything from the input, allocates nothing, and looks at each field once.

use std::mem::MaybeUninit;

use super::error::HttpError;
use super::fields::list_has;
use super::head::{HeadScanner, HeadSpan, TARGET_BYTES_MAX};
use super::host;
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
    let host = match (seen.host, version) {
        (Some(value), _) => host::parse(value).ok_or(HttpError::HostInvalid)?,
        (None, Version::Http10) => "",
        (None, Version::Http11) => return Err(HttpError::HostMissing),
    };
    let body = seen.body(version)?;
    Ok(Request {
        method,
        version,
        target,
        host: authority.unwrap_or(host),
        fields,
        body,
        keep_alive: !seen.close && (version == Version::Http11 || seen.keep_alive),
        // RFC 9110 §10.1.1: not in HTTP/1.0, and void without content.
        expect_continue: seen.expect_continue
            && version == Version::Http11
            && !matches!(body, BodyLength::None | BodyLength::Length(0)),
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
    let version = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    let Some(number) = version.strip_prefix(b"HTTP/") else { return false };
    number.first().is_some_and(u8::is_ascii_digit)
        && number.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
}

/// What the one pass over the fields found of those that decide about framing.
#[derive(Default)]
struct Seen<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    transfer_encoding: Option<&'a [u8]>,
    close: bool,
    keep_alive: bool,
    upgrade_option: bool,
    upgrade_websocket: bool,
    expect_continue: bool,
    key: Option<&'a [u8]>,
    websocket_version: Option<&'a [u8]>,
    websocket_version_repeated: bool,
}

impl<'a> Seen<'a> {
    fn on_field(&mut self, name: &str, value: &'a [u8]) -> Result<(), HttpError> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is("host") => set_once(&mut self.host, value, HttpError::HostRepeated)?,
            6 if is("expect") => self.on_expect(value)?,
            7 if is("upgrade") => self.upgrade_websocket |= list_has(value, b"websocket"),
            10 if is("connection") => {
                self.close |= list_has(value, b"close");
                self.keep_alive |= list_has(value, b"keep-alive");
                self.upgrade_option |= list_has(value, b"upgrade");
            }
            14 if is("content-length") => {
                set_once(&mut self.length, content_length(value)?, HttpError::LengthRepeated)?;
            }
            17 if is("transfer-encoding") => {
                set_once(&mut self.transfer_encoding, value, HttpError::TransferEncodingAmbiguous)?;
            }
            17 if is("sec-websocket-key") => {
                set_once(&mut self.key, value, HttpError::HandshakeKeyRepeated)?;
            }
            21 if is("sec-websocket-version") => {
                self.websocket_version_repeated |= self.websocket_version.is_some();
                self.websocket_version = Some(value);
            }
            _ => {}
        }
        Ok(())
    }

    fn on_expect(&mut self, value: &[u8]) -> Result<(), HttpError> {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(HttpError::Expectation);
        }
        self.expect_continue = true;
        Ok(())
    }

    /// RFC 9112 §6.1 and §6.3. Only a plain `chunked`, once, is a transfer coding here: a list of several is refused
    /// as ambiguous (the safest reading), one other coding as unknown.
    fn body(&self, version: Version) -> Result<BodyLength, HttpError> {
        let Some(coding) = self.transfer_encoding else {
            return Ok(self.length.map_or(BodyLength::None, BodyLength::Length));
        };
        if self.length.is_some() {
            return Err(HttpError::LengthAndTransferEncoding);
        }
        if version == Version::Http10 {
            return Err(HttpError::TransferEncodingInHttp10);
        }
        if coding.eq_ignore_ascii_case(b"chunked") {
            return Ok(BodyLength::Chunked);
        }
        let is_token = !coding.is_empty() && coding.iter().all(|&byte| super::fields::is_token_byte(byte));
        Err(if is_token { HttpError::TransferEncodingUnknown } else { HttpError::TransferEncodingAmbiguous })
    }

    /// RFC 6455 §4.2.1. A key without the rest of a handshake is told so, for a proxy may have eaten the rest; the
    /// rest without a key is malformed; without either it is an upgrade like any other, and ignored.
    fn upgrade(&self, method: Method, version: Version, body: BodyLength) -> Result<Upgrade<'a>, HttpError> {
        let asks = self.upgrade_websocket
            && self.upgrade_option
            && method == Method::Get
            && version == Version::Http11;
        let Some(key) = self.key else {
            return if asks { Err(HttpError::HandshakeKeyMissing) } else { Ok(Upgrade::None) };
        };
        let key = handshake_key(key).ok_or(HttpError::HandshakeKeyInvalid)?;
        if !asks {
            return Err(HttpError::UpgradeRequired);
        }
        if self.websocket_version != Some(b"13") || self.websocket_version_repeated {
            return Err(HttpError::HandshakeVersion);
        }
        match body {
            BodyLength::None | BodyLength::Length(0) => Ok(Upgrade::WebSocket { key }),
            BodyLength::Length(_) | BodyLength::Chunked => Err(HttpError::HandshakeBody),
        }
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T, repeated: HttpError) -> Result<(), HttpError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(repeated),
    }
}

/// Digits alone (RFC 9110 §8.6). `5, 5`, which a recipient may merge, is refused: it could be read two ways.
fn content_length(value: &[u8]) -> Result<u64, HttpError> {
    if value.is_empty() {
        return Err(HttpError::Length);
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0')).ok_or(HttpError::Length)?;
        length.checked_mul(10).and_then(|length| length.checked_add(digit)).ok_or(HttpError::Length)
    })
}

/// 16 bytes are 22 characters of base64 and `==`. Bits past the 16 bytes are not looked at (RFC 4648 §3.5: MAY).
fn handshake_key(value: &[u8]) -> Option<&str> {
    let digits = value.strip_suffix(b"==")?;
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    if digits.len() == 22 && digits.iter().all(is_digit) { std::str::from_utf8(value).ok() } else { None }
}

impl Method {
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

    /// The value of a field that may stand only once.
    ///
    /// # Errors
    /// [`HttpError::FieldRepeated`]: which one counts could be read two ways.
    pub fn one(&self, name: &str) -> Result<Option<&'a [u8]>, HttpError> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            (_, Some(_)) => Err(HttpError::FieldRepeated),
        }
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
