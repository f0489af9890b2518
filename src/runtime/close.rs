//! Why a connection ended: one closed list, which close frames, `$close`, `closing`, logs, metrics and traces all draw
//! from. `docs/close-reasons.md` says of each what to do.

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

/// Makes the enum and all that is said of its members out of one table: name, word, code of a WebSocket's close frame
/// (RFC 6455 §7.4, docs/close-reasons.md), meaning.
macro_rules! reasons {
    ($($name:ident = $word:literal, $code:literal, $meaning:literal;)+) => {
        /// Why a connection ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $name,)+
        }

        impl Reason {
            /// Each once; `ALL[reason as usize]` is the reason.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The word that every output has for it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// The code of a WebSocket's close frame (RFC 6455 §7.4, docs/close-reasons.md).
            pub const fn close_code(self) -> u16 {
                match self {
                    $(Self::$name => $code,)+
                }
            }

            /// What happened, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)+
                }
            }
        }
    };
}

reasons! {
    Asked = "asked", 1000, "The client asked for it: `Connection: close`, or a close frame.";
    Gone = "gone", 1001, "The client closed the connection without a word.";
    Reset = "reset", 1001, "The client, or something between, reset the connection.";
    TimedOut = "timed_out", 1001, "The network stopped acknowledging what was sent.";
    Stalled = "stalled", 1001, "The client did not take its answer in time.";
    Answered = "answered", 1000, "The answer ended the connection: an error after which it cannot go on, or HTTP/1.0.";
    Idle = "idle", 1001, "No request came for so long on a kept-alive connection.";
    RequestTimeout = "request_timeout", 1001, "A request came too slowly.";
    Silent = "silent", 1001, "Nothing came from a WebSocket for so long, not even an answer to pings.";
    BadRequest = "bad_request", 1002, "The request could be read in two ways, or not at all.";
    TlsFailed = "tls_failed", 1002, "No TLS handshake came to its end, or what came could not be decrypted.";
    BadProxy = "bad_proxy", 1002, "A trusted proxy did not say who the client is, as `proxy.protocol` asks.";
    Protocol = "protocol", 1002, "The WebSocket protocol was broken.";
    Unacceptable = "unacceptable", 1003, "A kind of frame came that is not accepted.";
    InvalidUtf8 = "invalid_utf8", 1007, "A text came that is not UTF-8.";
    TooBig = "too_big", 1009, "A message came that is over the limit.";
    NotAllowed = "not_allowed", 1008, "A raw WebSocket published where it may not.";
    Unauthenticated = "unauthenticated", 4401, "No token came, or none that counts, in time.";
    Expired = "expired", 4401, "Its token has ended.";
    Revoked = "revoked", 4401, "An operator took back its token, or its right to the channel.";
    Forbidden = "forbidden", 4403, "It is not allowed on the URL's channels.";
    Replaced = "replaced", 4401, "The ticket that opened it has opened another stream.";
    Kicked = "kicked", 1008, "An operator closed it.";
    Slow = "slow", 4408, "It fell out of what the server keeps.";
    RateLimited = "rate_limited", 4429, "Too many requests.";
    Full = "full", 1013, "The server is full.";
    Drain = "drain", 1012, "The server is stopping: come back after a while.";
    Internal = "internal", 1011, "A fault of the server.";
}

impl Reason {
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

    /// The reason of a socket that failed with `errno`; 0: it did not fail, the client has closed.
    pub const fn of_errno(errno: i32) -> Self {
        match errno {
            0 => Self::Gone,
            libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED | libc::ECONNREFUSED => Self::Reset,
            libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ENETUNREACH | libc::ENETDOWN => {
                Self::TimedOut
            }
            _ => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_reason_has_its_own_word() {
        let words: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at, "{reason:?}");
            // A close frame's reason has at most 123 bytes (RFC 6455 §5.5).
            assert!(reason.as_str().len() <= 123 && reason.meaning().ends_with('.'), "{reason:?}");
        }
    }

    /// What a browser may be shown (RFC 6455 §7.4.2): nothing that only a library may say.
    #[test]
    fn codes_may_stand_in_a_close_frame() {
        for reason in Reason::ALL {
            let code = reason.close_code();
            assert!(matches!(code, 1000..=1003 | 1007..=1014 | 4000..=4999), "{reason:?}: {code}");
        }
    }

    /// The page has a row for each, in the same order, with the same words.
    #[test]
    fn the_page_says_the_same() {
        let page = include_str!("../../docs/close-reasons.md");
        let rows: Vec<Vec<&str>> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .map(|row| row.split(" | ").map(|cell| cell.trim_end_matches(" |")).collect())
            .collect();
        assert_eq!(rows.len(), Reason::ALL.len());
        for (row, reason) in rows.iter().zip(Reason::ALL) {
            let [word, code, meaning, seen, advice] = row[..] else { panic!("five cells: {row:?}") };
            assert_eq!(word.trim_end_matches('`'), reason.as_str());
            assert_eq!(code.trim_matches(['(', ')']), reason.close_code().to_string(), "{word}");
            assert_eq!(meaning, reason.meaning(), "{word}");
            assert!(!seen.is_empty() && !advice.is_empty(), "{word}");
        }
    }
}
