//! A request's content, as it comes (RFC 9112 §6, §7.1): framed bytes in, content out.
//! Owns the framing, and the limits on content, chunk extensions and trailers. Extensions and trailers are read,
//! bounded and dropped. Takes whatever pieces the bytes come in; keeps no bytes of its own.

use super::error::HttpError;
use super::fields::is_token_byte;
use super::request::BodyLength;
use super::target::hex_digit;

/// Most bytes of chunk extensions in one body, all chunks together (RFC 9112 §7.1.1 asks for such a limit).
pub const EXTENSION_BYTES_MAX: u32 = 4 * 1024;
/// Most bytes of trailer fields.
pub const TRAILER_BYTES_MAX: u32 = 8 * 1024;

/// Decodes one body. Feed it until [`is_done`](Self::is_done).
#[derive(Debug, Clone)]
pub struct BodyDecoder {
    state: State,
    /// Content bytes that may still come.
    room: u64,
    extension_bytes: u32,
    trailer_bytes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Content of known length.
    Plain {
        left: u64,
    },
    /// In a chunk size; `digits` of it seen.
    Size {
        size: u64,
        digits: u8,
    },
    /// White space after a chunk size: only an extension may follow it (RFC 9112 §7.1.1).
    SizeSpace {
        size: u64,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Chunk {
        left: u64,
    },
    ChunkCr,
    ChunkLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

/// A chunk size has at most this many digits: more than any limit needs, and no `u64` overflows.
const SIZE_DIGITS_MAX: u8 = 15;

impl BodyDecoder {
    /// # Errors
    /// [`HttpError::BodyTooLarge`] at once, when the length is known and above `content_bytes_max`.
    pub const fn new(length: BodyLength, content_bytes_max: u64) -> Result<Self, HttpError> {
        let state = match length {
            BodyLength::None | BodyLength::Length(0) => State::Done,
            BodyLength::Length(bytes) if bytes > content_bytes_max => return Err(HttpError::BodyTooLarge),
            BodyLength::Length(bytes) => State::Plain { left: bytes },
            BodyLength::Chunked => State::Size { size: 0, digits: 0 },
        };
        Ok(Self { state, room: content_bytes_max, extension_bytes: 0, trailer_bytes: 0 })
    }

    /// Whether the body is whole; what follows is the next request.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes bytes from `input`, appends content to `content` (never more than the limit in all), and says how many
    /// bytes it took: all of them unless the body ended before.
    ///
    /// The outcome does not depend on how the bytes were cut into calls.
    ///
    /// # Errors
    /// As soon as no further byte could make the body acceptable. What was appended until then is to be dropped.
    pub fn decode(&mut self, input: &[u8], content: &mut Vec<u8>) -> Result<usize, HttpError> {
        let mut rest = input;
        while self.state != State::Done {
            match self.state {
                State::Plain { left } => {
                    let (piece, after) = take(rest, left);
                    content.extend_from_slice(piece);
                    let left = left - piece.len() as u64;
                    self.state = if left == 0 { State::Done } else { State::Plain { left } };
                    rest = after;
                }
                State::Chunk { left } => {
                    let (piece, after) = take(rest, left);
                    content.extend_from_slice(piece);
                    let left = left - piece.len() as u64;
                    self.state = if left == 0 { State::ChunkCr } else { State::Chunk { left } };
                    rest = after;
                }
                _ => {
                    let Some((&byte, after)) = rest.split_first() else { break };
                    self.state = self.on_byte(byte)?;
                    rest = after;
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        Ok(input.len() - rest.len())
    }

    fn on_byte(&mut self, byte: u8) -> Result<State, HttpError> {
        match (self.state, byte) {
            (State::Size { size, digits }, _) => match (hex_digit(byte), byte) {
                (Some(_), _) if digits == SIZE_DIGITS_MAX => Err(HttpError::Chunk),
                (Some(digit), _) => {
                    Ok(State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
                }
                (None, _) if digits == 0 => Err(HttpError::Chunk),
                (None, b'\r') => self.on_size(size),
                (None, b';') => self.on_extension_byte(size),
                (None, b' ' | b'\t') => self.on_extension_byte(size).map(|_| State::SizeSpace { size }),
                (None, _) => Err(HttpError::Chunk),
            },
            (State::SizeSpace { size }, b' ' | b'\t') => {
                self.on_extension_byte(size).map(|_| State::SizeSpace { size })
            }
            (State::SizeSpace { size }, b';') => self.on_extension_byte(size),
            (State::Extension { size }, b'\r') => self.on_size(size),
            (State::Extension { size }, _) if is_value_byte(byte) => self.on_extension_byte(size),
            (State::SizeLf { size: 0 }, b'\n') => Ok(State::TrailerStart),
            (State::SizeLf { size }, b'\n') => Ok(State::Chunk { left: size }),
            (State::ChunkCr, b'\r') => Ok(State::ChunkLf),
            (State::ChunkLf, b'\n') => Ok(State::Size { size: 0, digits: 0 }),
            (State::TrailerStart, b'\r') => Ok(State::EndLf),
            (State::TrailerStart | State::TrailerName, _) if is_token_byte(byte) => {
                self.on_trailer_byte(State::TrailerName)
            }
            (State::TrailerName, b':') => self.on_trailer_byte(State::TrailerValue),
            (State::TrailerValue, b'\r') => self.on_trailer_byte(State::TrailerLf),
            (State::TrailerValue, _) if is_value_byte(byte) => self.on_trailer_byte(State::TrailerValue),
            (State::TrailerLf, b'\n') => self.on_trailer_byte(State::TrailerStart),
            (State::EndLf, b'\n') => Ok(State::Done),
            (State::SizeSpace { .. } | State::Extension { .. } | State::SizeLf { .. }, _)
            | (State::ChunkCr | State::ChunkLf, _) => Err(HttpError::Chunk),
            (State::TrailerStart | State::TrailerName | State::TrailerValue, _)
            | (State::TrailerLf | State::EndLf, _) => Err(HttpError::Trailer),
            // `decode` never comes here with these: they take more than a byte, or none.
            (state @ (State::Plain { .. } | State::Chunk { .. } | State::Done), _) => Ok(state),
        }
    }

    /// The size is whole: its chunk must fit before a byte of it is taken.
    fn on_size(&mut self, size: u64) -> Result<State, HttpError> {
        self.room = self.room.checked_sub(size).ok_or(HttpError::BodyTooLarge)?;
        Ok(State::SizeLf { size })
    }

    fn on_extension_byte(&mut self, size: u64) -> Result<State, HttpError> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(HttpError::ChunkExtensionsTooLong);
        }
        Ok(State::Extension { size })
    }

    fn on_trailer_byte(&mut self, next: State) -> Result<State, HttpError> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(HttpError::TrailersTooLarge);
        }
        Ok(next)
    }
}

/// At most `count` bytes of `bytes`, and the rest.
fn take(bytes: &[u8], count: u64) -> (&[u8], &[u8]) {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at_checked(count).unwrap_or((bytes, &[]))
}

/// Whether a byte may stand in a field value or a chunk extension: no control characters but the tab.
const fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Content, bytes taken, done; decoded from pieces that end at `cuts`.
    type Outcome = Result<(Vec<u8>, usize, bool), HttpError>;

    fn decode(length: BodyLength, max: u64, input: &[u8], cuts: &[usize]) -> Outcome {
        let mut decoder = BodyDecoder::new(length, max)?;
        let (mut content, mut used) = (Vec::new(), 0);
        for &cut in cuts.iter().chain([&input.len()]) {
            used += decoder.decode(&input[used..cut.max(used)], &mut content)?;
        }
        Ok((content, used, decoder.is_done()))
    }

    #[test]
    fn lengths() {
        let by_length = |length, max| decode(length, max, b"hello", &[]);
        assert_eq!(by_length(BodyLength::None, 0), Ok((b"".to_vec(), 0, true)));
        assert_eq!(by_length(BodyLength::Length(0), 0), Ok((b"".to_vec(), 0, true)));
        assert_eq!(by_length(BodyLength::Length(3), 3), Ok((b"hel".to_vec(), 3, true)));
        assert_eq!(by_length(BodyLength::Length(3), 2), Err(HttpError::BodyTooLarge));
        assert_eq!(by_length(BodyLength::Length(9), 9), Ok((b"hello".to_vec(), 5, false)));
        assert_eq!(by_length(BodyLength::Length(u64::MAX), u64::MAX), Ok((b"hello".to_vec(), 5, false)));
    }

    #[test]
    fn chunks() {
        type Case = (&'static str, &'static str, Result<(&'static str, usize, bool), HttpError>);
        let cases: &[Case] = &[
            ("nothing", "", Ok(("", 0, false))),
            ("empty", "0\r\n\r\n", Ok(("", 5, true))),
            ("two chunks", "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", Ok(("abcde", 20, true))),
            (
                "hex of both cases",
                "a\r\n0123456789\r\n0A\r\n0123456789\r\n000\r\n\r\n",
                Ok(("01234567890123456789", 38, true)),
            ),
            ("stops at the end", "1\r\na\r\n0\r\n\r\nGET /", Ok(("a", 11, true))),
            ("extensions", "1;a=b\r\na\r\n0 ;c=\"d\";e\r\n\r\n", Ok(("a", 24, true))),
            ("trailers", "0\r\nA: b\r\nC:\r\n\r\n", Ok(("", 15, true))),
            ("cut in a chunk", "5\r\nab", Ok(("ab", 5, false))),
            ("no size", "\r\n", Err(HttpError::Chunk)),
            ("no size but an extension", ";a\r\n", Err(HttpError::Chunk)),
            ("a sign", "+1\r\n", Err(HttpError::Chunk)),
            ("0x", "0x1\r\n", Err(HttpError::Chunk)),
            ("not hexadecimal", "g\r\n", Err(HttpError::Chunk)),
            ("a space before", " 1\r\n", Err(HttpError::Chunk)),
            ("a space after", "1 \r\n", Err(HttpError::Chunk)),
            ("size overflows", "fffffffffffffffff\r\n", Err(HttpError::Chunk)),
            ("many zeros", "0000000000000000\r\n", Err(HttpError::Chunk)),
            ("size by LF", "1\na\r\n", Err(HttpError::Chunk)),
            ("size by CR", "1\ra\r\n", Err(HttpError::Chunk)),
            ("extension by LF", "1;a\na\r\n", Err(HttpError::Chunk)),
            ("NUL in an extension", "1;\0\r\n", Err(HttpError::Chunk)),
            ("chunk by LF", "1\r\na\n", Err(HttpError::Chunk)),
            ("chunk longer than its size", "1\r\nab\r\n", Err(HttpError::Chunk)),
            ("end by LF", "0\r\n\n", Err(HttpError::Trailer)),
            ("end by CR", "0\r\n\rX", Err(HttpError::Trailer)),
            ("trailer by LF", "0\r\na: b\n", Err(HttpError::Trailer)),
            ("trailer without colon", "0\r\nab\r\n", Err(HttpError::Trailer)),
            ("trailer without name", "0\r\n: b\r\n", Err(HttpError::Trailer)),
            ("trailer with a space before its colon", "0\r\na : b\r\n", Err(HttpError::Trailer)),
            ("trailer folded", "0\r\na: b\r\n c\r\n", Err(HttpError::Trailer)),
            ("NUL in a trailer", "0\r\na: \0\r\n", Err(HttpError::Trailer)),
            ("the limit", "64\r\n", Ok(("", 4, false))),
            ("over the limit at once", "65\r\n", Err(HttpError::BodyTooLarge)),
            ("over the limit together", "1\r\na\r\n64\r\n", Err(HttpError::BodyTooLarge)),
        ];
        for (name, input, expected) in cases {
            let got = decode(BodyLength::Chunked, 100, input.as_bytes(), &[]);
            let expected = expected.map(|(content, used, done)| (content.as_bytes().to_vec(), used, done));
            assert_eq!(got, expected, "{name}");
        }
    }

    #[test]
    fn what_is_dropped_is_bounded() {
        let decode =
            |input: String| decode(BodyLength::Chunked, 100, input.as_bytes(), &[]).map(|(_, _, done)| done);
        let extension = |bytes: u32| format!("0;{}\r\n\r\n", "a".repeat(bytes as usize - 1));
        assert_eq!(decode(extension(EXTENSION_BYTES_MAX)), Ok(true));
        assert_eq!(decode(extension(EXTENSION_BYTES_MAX + 1)), Err(HttpError::ChunkExtensionsTooLong));
        let many = "1;abc\r\nx\r\n".repeat(EXTENSION_BYTES_MAX as usize / 4 + 1);
        let mut decoder = BodyDecoder::new(BodyLength::Chunked, 1 << 20).unwrap();
        assert_eq!(decoder.decode(many.as_bytes(), &mut vec![]), Err(HttpError::ChunkExtensionsTooLong));
        let trailer = |bytes: u32| format!("0\r\na:{}\r\n\r\n", "b".repeat(bytes as usize - 4));
        assert_eq!(decode(trailer(TRAILER_BYTES_MAX)), Ok(true));
        assert_eq!(decode(trailer(TRAILER_BYTES_MAX + 1)), Err(HttpError::TrailersTooLarge));
    }

    fn any_body() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            4 => Just("3\r\nabc\r\n"),
            2 => Just("1;x=\"y\"\r\na\r\n"),
            2 => Just("0\r\n"),
            2 => Just("\r\n"),
            1 => Just("A: b\r\n"),
            1 => Just("1f\r\n"),
            1 => Just("\n"),
            1 => Just("5 "),
        ];
        proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(input in any_body(), max in 0_u64..20, length in 0_u64..20) {
            for length in [BodyLength::Chunked, BodyLength::Length(length)] {
                let whole = decode(length, max, &input, &[]);
                for cut in 0..=input.len() {
                    prop_assert_eq!(&decode(length, max, &input, &[cut]), &whole, "cut at {}", cut);
                }
                let every_byte: Vec<_> = (0..input.len()).collect();
                prop_assert_eq!(&decode(length, max, &input, &every_byte), &whole);
                if let Ok((content, used, done)) = whole {
                    prop_assert!(content.len() as u64 <= max && (done || used == input.len()));
                }
            }
        }
    }
}
