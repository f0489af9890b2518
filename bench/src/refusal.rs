//! Why a reader's connection came to nothing, in words. Pure.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::reader::State;

/// How a connection ended.
#[derive(Debug)]
pub enum End {
    /// The kernel says so.
    Broken(io::Error),
    /// The server closed it; so many bytes had come that were nothing whole.
    Closed {
        cut_bytes: usize,
    },
    /// The server said something that no reader understands: its beginning.
    Answered(String),
    /// The server said goodbye.
    Goodbye,
    Tls(String),
    /// The socket took no more of what a reader had to say.
    Deaf,
}

/// Of an answer's first line.
const LINE_BYTES_MAX: usize = 80;

impl End {
    /// The status line of an answer, or what stands there instead.
    pub fn answered(input: &[u8]) -> Self {
        let line = input.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let line = &line[..line.len().min(LINE_BYTES_MAX)];
        Self::Answered(String::from_utf8_lossy(line).trim_end().to_owned())
    }

    /// Why a handshake failed that had come so far.
    pub fn reason(&self, state: State) -> String {
        match self {
            Self::Broken(error) if state == State::Connecting => format!("connecting: {error}"),
            Self::Closed { .. } if state == State::Shaking => "closed during the TLS handshake".into(),
            Self::Closed { cut_bytes: 0 } if state == State::Opening => {
                "closed before it said that the reader is subscribed".into()
            }
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => write!(to, "{error}"),
            Self::Closed { cut_bytes: 0 } => to.write_str("closed without an answer"),
            Self::Closed { cut_bytes } => {
                write!(to, "closed after {cut_bytes} bytes that are no whole answer")
            }
            Self::Answered(line) => write!(to, "answered {line:?}"),
            Self::Goodbye => to.write_str("a goodbye in place of a subscription"),
            Self::Tls(error) => write!(to, "TLS: {error}"),
            Self::Deaf => to.write_str("the server does not read"),
        }
    }
}

/// Of readers that are still waited for.
pub fn no_answer(within: Duration) -> String {
    format!("no answer within {} s", within.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_told() {
        for (input, said) in [
            (
                &b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"[..],
                "answered \"HTTP/1.1 404 Not Found\"",
            ),
            (b"\x15\x03\x01\x00", "answered \"\\u{15}\\u{3}\\u{1}\\0\""),
            (b"", "answered \"\""),
        ] {
            assert_eq!(End::answered(input).reason(State::Head), said);
        }
        assert!(End::answered(&[b'x'; 500]).to_string().len() < 100);
    }
}
