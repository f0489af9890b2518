//! Where a request's head begins and ends in the bytes read so far (RFC 9112 §2).
//! Owns the limits on its size and the rule that every line ends in CRLF. Looks at each byte once, however many
//! reads bring them; `request` then parses the whole head, once.

use memchr::memchr_iter;

use super::error::HttpError;
use super::fields::is_token_byte;

/// Longest request target (RFC 9112 §3 asks for at least 8000 bytes in a request line): 64 channels of the longest names,
/// with a cursor, leave 1 KiB of a head of 16 KiB for the fields.
pub const TARGET_BYTES_MAX: usize = 15 * 1024;
/// Longest request line, its CRLF included: a target, and room for a method and the version.
pub const REQUEST_LINE_BYTES_MAX: usize = TARGET_BYTES_MAX + 64;
/// Empty lines skipped before a request (RFC 9112 §2.2: old clients send one after a POST).
pub const EMPTY_LINES_MAX: u8 = 4;

/// Finds the end of one head. Make a new one for each request.
#[derive(Debug, Clone)]
pub struct HeadScanner {
    head_bytes_max: usize,
    /// First byte of the request line, once `begun`.
    start: usize,
    /// First byte of the line that is not ended yet.
    line_start: usize,
    /// Bytes of the input already looked at.
    scanned: usize,
    empty_lines: u8,
    begun: bool,
    found: Option<HeadSpan>,
}

/// A complete head in the input of [`HeadScanner::find`]: every line of it ends in CRLF, the last one is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSpan {
    start: usize,
    end: usize,
}

impl HeadSpan {
    /// Bytes of the input up to the end of the head; the body begins there.
    pub const fn used(self) -> usize {
        self.end
    }

    /// The head itself, without empty lines before it.
    pub fn of(self, input: &[u8]) -> &[u8] {
        input.get(self.start..self.end).unwrap_or_default()
    }
}

impl HeadScanner {
    /// `head_bytes_max` counts from the request line to the empty line, both included.
    pub const fn new(head_bytes_max: usize) -> Self {
        Self {
            head_bytes_max,
            start: 0,
            line_start: 0,
            scanned: 0,
            empty_lines: 0,
            begun: false,
            found: None,
        }
    }

    /// Looks at the bytes of `input` that it has not seen. `input` is all that came since the last request, and only
    /// grows from call to call. `None`: more bytes are needed.
    ///
    /// The outcome does not depend on how the bytes were cut into calls.
    ///
    /// # Errors
    /// As soon as no further byte could make the head acceptable. What does not begin like a request (a TLS hello,
    /// say) is refused at its first byte.
    pub fn find(&mut self, input: &[u8]) -> Result<Option<HeadSpan>, HttpError> {
        if self.found.is_some() || !self.skip_empty_lines(input)? {
            return Ok(self.found);
        }
        let window_end = input.len().min(self.start.saturating_add(self.head_bytes_max));
        let unseen = input.get(self.scanned..window_end).unwrap_or_default();
        for offset in memchr_iter(b'\n', unseen) {
            let lf = self.scanned + offset;
            if self.in_request_line() && lf - self.start >= REQUEST_LINE_BYTES_MAX {
                return Err(HttpError::TargetTooLong);
            }
            if lf.checked_sub(1).and_then(|before| input.get(before)) != Some(&b'\r') {
                return Err(HttpError::BareLf);
            }
            if lf == self.line_start + 1 {
                self.found = Some(HeadSpan { start: self.start, end: lf + 1 });
                return Ok(self.found);
            }
            self.line_start = lf + 1;
        }
        self.scanned = self.scanned.max(window_end);
        let head_bytes = self.scanned - self.start;
        if self.in_request_line() && head_bytes >= REQUEST_LINE_BYTES_MAX {
            return Err(HttpError::TargetTooLong);
        }
        if head_bytes >= self.head_bytes_max { Err(HttpError::HeadTooLarge) } else { Ok(None) }
    }

    const fn in_request_line(&self) -> bool {
        self.line_start == self.start
    }

    /// Whether the request line has begun.
    fn skip_empty_lines(&mut self, input: &[u8]) -> Result<bool, HttpError> {
        while !self.begun {
            match (input.get(self.start), input.get(self.start + 1)) {
                (None, _) | (Some(b'\r'), None) => return Ok(false),
                (Some(b'\r'), Some(b'\n')) if self.empty_lines < EMPTY_LINES_MAX => {
                    self.empty_lines += 1;
                    self.start += 2;
                    (self.line_start, self.scanned) = (self.start, self.start);
                }
                (Some(b'\r'), Some(b'\n')) => return Err(HttpError::EmptyLines),
                (Some(b'\n'), _) => return Err(HttpError::BareLf),
                (Some(&first), _) if is_token_byte(first) => self.begun = true,
                (Some(_), _) => return Err(HttpError::RequestLine),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 16 * 1024;

    fn whole(input: &[u8], max: usize) -> Result<Option<usize>, HttpError> {
        HeadScanner::new(max).find(input).map(|span| span.map(HeadSpan::used))
    }

    #[test]
    fn named_cases() {
        type Case = (&'static str, &'static [u8], Result<Option<usize>, HttpError>);
        let cases: &[Case] = &[
            ("nothing", b"", Ok(None)),
            ("one head", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Some(27))),
            ("body follows", b"GET / HTTP/1.1\r\n\r\nbody\n", Ok(Some(18))),
            ("half a head", b"GET / HTTP/1.1\r\nHost: a\r\n", Ok(None)),
            ("half an end", b"GET / HTTP/1.1\r\nHost: a\r\n\r", Ok(None)),
            ("an empty line before", b"\r\nG / HTTP/1.1\r\n\r\n", Ok(Some(18))),
            ("half an empty line", b"\r", Ok(None)),
            ("empty lines for ever", b"\r\n\r\n\r\n\r\n\r\n", Err(HttpError::EmptyLines)),
            ("an empty line of LF", b"\nG", Err(HttpError::BareLf)),
            ("a bare CR first", b"\rG", Err(HttpError::RequestLine)),
            ("TLS", b"\x16\x03\x01", Err(HttpError::RequestLine)),
            ("a space first", b" GET", Err(HttpError::RequestLine)),
            ("bare LF after the request line", b"GET / HTTP/1.1\n", Err(HttpError::BareLf)),
            ("bare LF after a field", b"GET / HTTP/1.1\r\na: b\n", Err(HttpError::BareLf)),
            ("bare LF as the end", b"GET / HTTP/1.1\r\na: b\r\n\n", Err(HttpError::BareLf)),
        ];
        for &(name, input, expected) in cases {
            assert_eq!(whole(input, MAX), expected, "{name}");
        }
    }

    #[test]
    fn limits_are_exact() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(whole(head, head.len()), Ok(Some(head.len())));
        assert_eq!(whole(head, head.len() - 1), Err(HttpError::HeadTooLarge));
        assert_eq!(whole(&head[..26], 26), Err(HttpError::HeadTooLarge), "refused before it is whole");
        assert_eq!(
            whole(&head[..10], 10),
            Err(HttpError::HeadTooLarge),
            "the limit ends in the request line"
        );

        let line = |len: usize| {
            let mut line = vec![b'a'; len - 2];
            line.extend_from_slice(b"\r\n");
            line
        };
        assert_eq!(whole(&line(REQUEST_LINE_BYTES_MAX), MAX), Ok(None));
        assert_eq!(whole(&line(REQUEST_LINE_BYTES_MAX + 1), MAX), Err(HttpError::TargetTooLong));
        assert_eq!(whole(&vec![b'a'; REQUEST_LINE_BYTES_MAX], MAX), Err(HttpError::TargetTooLong));
    }

    fn any_input() -> impl Strategy<Value = Vec<u8>> {
        let part = proptest::sample::select(vec!["\r\n", "\r\n", "\n", "\r", "ab: c", "G"]);
        proptest::collection::vec(part, 0..30).prop_map(|parts| parts.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            input in any_input(),
            max in 1_usize..60,
        ) {
            let expected = whole(&input, max);
            for cut in 0..=input.len() {
                let mut scanner = HeadScanner::new(max);
                let mut got = scanner.find(&input[..cut]);
                if got == Ok(None) {
                    got = scanner.find(&input);
                }
                prop_assert_eq!(got.map(|span| span.map(HeadSpan::used)), expected, "cut at {}", cut);
            }
            let mut scanner = HeadScanner::new(max);
            let by_bytes = (0..=input.len()).map(|len| scanner.find(&input[..len])).find(|got| *got != Ok(None));
            prop_assert_eq!(by_bytes.unwrap_or(Ok(None)).map(|span| span.map(HeadSpan::used)), expected);
        }
    }
}
