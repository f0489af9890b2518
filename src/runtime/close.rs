//! Why a connection ended: one closed list, which logs, close frames, `$close` and `closing` all draw from.

/// The transport that a connection was in when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Http,
    LongPoll,
    Sse,
    Raw,
    V1,
}

impl Transport {
    pub const ALL: [Self; 5] = [Self::Http, Self::LongPoll, Self::Sse, Self::Raw, Self::V1];

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|transport| transport.as_str() == text)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::LongPoll => "long_poll",
            Self::Sse => "sse",
            Self::Raw => "websocket",
            Self::V1 => "pushline.v1",
        }
    }

    pub const fn is_websocket(self) -> bool {
        matches!(self, Self::Raw | Self::V1)
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The client asked for it: `Connection: close`, or a close frame.
    Asked,
    /// The client closed or reset the connection.
    Gone,
    /// The answer ended the connection: an error, or HTTP/1.0.
    Answered,
    /// No request for so long on a kept-alive connection.
    Idle,
    /// A request came too slowly.
    RequestTimeout,
    /// Nothing came from a WebSocket for so long.
    Silent,
    /// The request could be read in two ways, or not at all.
    BadRequest,
    /// The WebSocket protocol was broken.
    Protocol,
    /// A kind of frame that is not accepted.
    Unacceptable,
    /// Text that is not UTF-8.
    InvalidUtf8,
    /// A message over the limit.
    TooBig,
    /// A raw WebSocket published where it may not.
    NotAllowed,
    /// No token, or none that counts, in time.
    Unauthenticated,
    /// Its token has ended.
    Expired,
    /// An operator took back its token, or its right to the channel.
    Revoked,
    /// Not allowed on the URL's channels.
    Forbidden,
    /// The ticket that opened it has opened another stream.
    Replaced,
    /// An operator closed it.
    Kicked,
    /// Fell out of what the server keeps.
    Slow,
    /// Too many requests.
    RateLimited,
    /// The server is full.
    Full,
    /// The server is stopping: come back after a while.
    Drain,
    /// A fault of the server.
    Internal,
}

impl Reason {
    /// Every reason, in the order of their declaration.
    pub const ALL: &[Self] = &[
        Self::Asked,
        Self::Gone,
        Self::Answered,
        Self::Idle,
        Self::RequestTimeout,
        Self::Silent,
        Self::BadRequest,
        Self::Protocol,
        Self::Unacceptable,
        Self::InvalidUtf8,
        Self::TooBig,
        Self::NotAllowed,
        Self::Unauthenticated,
        Self::Expired,
        Self::Revoked,
        Self::Forbidden,
        Self::Kicked,
        Self::Slow,
        Self::RateLimited,
        Self::Full,
        Self::Drain,
        Self::Internal,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Gone => "gone",
            Self::Answered => "answered",
            Self::Idle => "idle",
            Self::RequestTimeout => "request_timeout",
            Self::Silent => "silent",
            Self::BadRequest => "bad_request",
            Self::Protocol => "protocol",
            Self::Unacceptable => "unacceptable",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::TooBig => "too_big",
            Self::NotAllowed => "not_allowed",
            Self::Unauthenticated => "unauthenticated",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Forbidden => "forbidden",
            Self::Replaced => "replaced",
            Self::Kicked => "kicked",
            Self::Slow => "slow",
            Self::RateLimited => "rate_limited",
            Self::Full => "full",
            Self::Drain => "drain",
            Self::Internal => "internal",
        }
    }

    /// The code of a WebSocket's close frame (RFC 6455 §7.4, contract).
    pub const fn close_code(self) -> u16 {
        match self {
            Self::Asked | Self::Answered => 1000,
            Self::Gone | Self::Idle | Self::RequestTimeout | Self::Silent => 1001,
            Self::BadRequest | Self::Protocol => 1002,
            Self::Unacceptable => 1003,
            Self::InvalidUtf8 => 1007,
            Self::NotAllowed | Self::Kicked => 1008,
            Self::TooBig => 1009,
            Self::Internal => 1011,
            Self::Drain => 1012,
            Self::Full => 1013,
            Self::Unauthenticated | Self::Expired | Self::Revoked | Self::Replaced => 4401,
            Self::Forbidden => 4403,
            Self::Slow => 4408,
            Self::RateLimited => 4429,
        }
    }

    /// The reason of a codec's close code.
    pub const fn of_close_code(code: u16) -> Self {
        match code {
            1003 => Self::Unacceptable,
            1007 => Self::InvalidUtf8,
            1009 => Self::TooBig,
            1011 => Self::Internal,
            _ => Self::Protocol,
        }
    }
}
