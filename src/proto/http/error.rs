//! Why a request is refused, and what its sender hears (RFC 9110 §15, RFC 9112).
//! Owns the one list of refusals of the HTTP codec. Never writes them: see `response`.

use std::fmt;

/// A refusal: answer with [`status`](Self::status) and [`detail`](Self::detail); close if [`closes`](Self::closes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpError {
    /// Not a request line (RFC 9112 §3), or not HTTP at all.
    RequestLine,
    /// More empty lines before a request than anyone needs (RFC 9112 §2.2).
    EmptyLines,
    /// A line ended by LF alone. RFC 9112 §2.2 lets it pass; peers that disagree about lines can be smuggled through.
    BareLf,
    /// RFC 9112 §3.2: none of the four forms.
    Target,
    /// CONNECT, or the authority-form (RFC 9112 §3.2.3).
    NotAProxy,
    TargetTooLong,
    Version,
    HeadTooLarge,
    TooManyFields,
    /// Bad field name, a space before the colon, obs-fold (RFC 9112 §5.1, §5.2).
    FieldName,
    /// NUL, bare CR or another control character (RFC 9110 §5.5).
    FieldValue,
    HostMissing,
    HostRepeated,
    HostInvalid,
    Length,
    LengthRepeated,
    LengthAndTransferEncoding,
    TransferEncodingInHttp10,
    /// Anything but one plain `chunked`, when it is a list, empty or malformed.
    TransferEncodingAmbiguous,
    /// One coding, but not `chunked` (RFC 9112 §6.1).
    TransferEncodingUnknown,
    Expectation,
    /// `Sec-WebSocket-Key` outside a handshake.
    UpgradeRequired,
    /// `Sec-WebSocket-Version` is not 13 (RFC 6455 §4.4).
    HandshakeVersion,
    HandshakeKeyMissing,
    HandshakeKeyRepeated,
    HandshakeKeyInvalid,
    /// A handshake with content: could be read as content or as frames.
    HandshakeBody,
    BodyTooLarge,
    /// Bad chunk size, or a line that does not end in CRLF (RFC 9112 §7.1).
    Chunk,
    ChunkExtensionsTooLong,
    Trailer,
    TrailersTooLarge,
    /// A field that may stand once stands several times.
    FieldRepeated,
    /// `%` without two hexadecimal digits (RFC 3986 §2.1).
    PercentEncoding,
    /// UTF-8 is asked of what was percent-encoded.
    NotUtf8,
    ParameterRepeated,
}

impl HttpError {
    /// The status to answer with.
    pub const fn status(self) -> u16 {
        match self {
            Self::RequestLine
            | Self::EmptyLines
            | Self::BareLf
            | Self::Target
            | Self::NotAProxy
            | Self::FieldName
            | Self::FieldValue
            | Self::HostMissing
            | Self::HostRepeated
            | Self::HostInvalid
            | Self::Length
            | Self::LengthRepeated
            | Self::LengthAndTransferEncoding
            | Self::TransferEncodingInHttp10
            | Self::TransferEncodingAmbiguous
            | Self::HandshakeKeyMissing
            | Self::HandshakeKeyRepeated
            | Self::HandshakeKeyInvalid
            | Self::HandshakeBody
            | Self::Chunk
            | Self::ChunkExtensionsTooLong
            | Self::Trailer
            | Self::FieldRepeated
            | Self::PercentEncoding
            | Self::NotUtf8
            | Self::ParameterRepeated => 400,
            Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::UpgradeRequired | Self::HandshakeVersion => 426,
            Self::HeadTooLarge | Self::TooManyFields | Self::TrailersTooLarge => 431,
            Self::TransferEncodingUnknown => 501,
            Self::Version => 505,
        }
    }

    /// What was wrong and what would be right, for the client.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::RequestLine => {
                "the request line is malformed; send 'METHOD SP target SP HTTP/1.1' ended by CRLF, in plain HTTP"
            }
            Self::EmptyLines => "too many empty lines before the request; begin with the request line",
            Self::BareLf => "a line of the head ends with LF alone; end every line with CRLF",
            Self::Target => {
                "the request target is malformed; send a path that begins with '/', without a fragment ('#'), or \
                 an http:// URL ('*' is for OPTIONS alone)"
            }
            Self::NotAProxy => "this server is not a proxy; CONNECT and host:port targets are not served",
            Self::TargetTooLong => "the request target is too long; keep it within 15 KiB",
            Self::Version => "this version of HTTP is not spoken here; use HTTP/1.1 or HTTP/1.0",
            Self::HeadTooLarge => "the request head is too large; send fewer or shorter fields",
            Self::TooManyFields => "the request has more than 64 header fields; send fewer",
            Self::FieldName => {
                "a header field's name is malformed; send 'Name: value' with no space before the colon and no \
                 line that begins with a space"
            }
            Self::FieldValue => {
                "a header field's value has a control character; remove NUL, bare CR and the like"
            }
            Self::HostMissing => "HTTP/1.1 requires a Host field; send exactly one",
            Self::HostRepeated => "there is more than one Host field; send exactly one",
            Self::HostInvalid => "the host is not valid; send 'name', 'name:port' or '[IPv6]:port'",
            Self::Length => "Content-Length is not a number; send decimal digits alone",
            Self::LengthRepeated => "there is more than one Content-Length; send exactly one",
            Self::LengthAndTransferEncoding => {
                "there are both Content-Length and Transfer-Encoding; send one of them"
            }
            Self::TransferEncodingInHttp10 => {
                "Transfer-Encoding does not exist in HTTP/1.0; send Content-Length or use HTTP/1.1"
            }
            Self::TransferEncodingAmbiguous => {
                "Transfer-Encoding could be read two ways; send 'chunked' once and nothing else"
            }
            Self::TransferEncodingUnknown => {
                "this transfer coding is not known; send 'chunked' or Content-Length"
            }
            Self::Expectation => "this expectation cannot be met; only 'Expect: 100-continue' is known",
            Self::UpgradeRequired => {
                "Sec-WebSocket-Key came without a handshake; send GET over HTTP/1.1 with 'Upgrade: websocket' \
                 and 'Connection: Upgrade' (a proxy may have removed them)"
            }
            Self::HandshakeVersion => {
                "this WebSocket version is not spoken; send 'Sec-WebSocket-Version: 13'"
            }
            Self::HandshakeKeyMissing => {
                "the WebSocket handshake has no Sec-WebSocket-Key; send 16 random bytes as base64"
            }
            Self::HandshakeKeyRepeated => "there is more than one Sec-WebSocket-Key; send exactly one",
            Self::HandshakeKeyInvalid => {
                "Sec-WebSocket-Key is not the base64 of 16 bytes; send 24 characters of it"
            }
            Self::HandshakeBody => "a WebSocket handshake has no content; leave it out",
            Self::BodyTooLarge => "the body is larger than this server takes; send a smaller one",
            Self::Chunk => {
                "the chunked body is malformed; send each chunk as its size in hexadecimal, CRLF, that many \
                 bytes, CRLF"
            }
            Self::ChunkExtensionsTooLong => "the chunk extensions are too long; leave them out",
            Self::Trailer => "a trailer field is malformed; send 'Name: value' ended by CRLF, or none",
            Self::TrailersTooLarge => "the trailer fields are too large; leave them out",
            Self::FieldRepeated => "a header field that may stand once stands several times; send it once",
            Self::PercentEncoding => {
                "a '%' in the URL is not followed by two hexadecimal digits; write '%' as %25"
            }
            Self::NotUtf8 => "the URL is not UTF-8 after percent-decoding; encode its characters as UTF-8",
            Self::ParameterRepeated => "a query parameter stands several times; send it once",
        }
    }

    /// Whether the connection must end after the answer: where the next request begins is not certain,
    /// or the rest of this one is not wanted.
    pub const fn closes(self) -> bool {
        !matches!(self, Self::FieldRepeated | Self::PercentEncoding | Self::NotUtf8 | Self::ParameterRepeated)
    }

    /// Fields that the answer must have besides the usual (RFC 9110 §15.5.22, RFC 6455 §4.4).
    pub const fn answer_fields(self) -> &'static [(&'static str, &'static str)] {
        match self.status() {
            426 => &[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
            _ => &[],
        }
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail())
    }
}

impl std::error::Error for HttpError {}
