//! Responses (RFC 9112 §4, RFC 9110 §15): values in, bytes out. Owns status lines, what may stand in a field, and
//! which answers have content. Reads no clock: the date comes formatted.

use memchr::memchr3;

use super::date::DATE_BYTES;
use super::error::HttpError;
use super::problem::{self, Problem};
use super::request::Version;

/// Writes one response. End it with one of the `end` calls, which take it.
#[must_use = "a head that is not ended lacks its empty line"]
#[derive(Debug)]
pub struct ResponseWriter<'o> {
    out: &'o mut Vec<u8>,
    status: u16,
}

impl<'o> ResponseWriter<'o> {
    /// Appends the status line to `out`. It always says HTTP/1.1 (RFC 9110 §6.2).
    pub fn new(out: &'o mut Vec<u8>, status: u16) -> Self {
        if status == 200 {
            out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        } else {
            out.extend_from_slice(b"HTTP/1.1 ");
            out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
            out.push(b' ');
            out.extend_from_slice(reason(status).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Self { out, status }
    }

    /// Appends a field. CR, LF and NUL in the value become spaces (RFC 9110 §5.5), so that no value can begin another
    /// field; `name` is one of ours.
    pub fn field(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b": ");
        let mut rest = value.as_ref();
        while let Some((before, after)) =
            memchr3(b'\r', b'\n', 0, rest).and_then(|at| rest.split_at_checked(at))
        {
            self.out.extend_from_slice(before);
            self.out.push(b' ');
            rest = after.get(1..).unwrap_or_default();
        }
        self.out.extend_from_slice(rest);
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Appends a field if there is a value.
    pub fn field_opt(self, name: &str, value: Option<impl AsRef<[u8]>>) -> Self {
        match value {
            Some(value) => self.field(name, value),
            None => self,
        }
    }

    /// Appends a field with a number.
    pub fn number(self, name: &str, value: u64) -> Self {
        self.field(name, itoa::Buffer::new().format(value))
    }

    /// Appends `Date` (RFC 9110 §6.6.1).
    pub fn date(self, date: &[u8; DATE_BYTES]) -> Self {
        self.field("Date", date)
    }

    /// Says whether the connection goes on (RFC 9112 §9.3): `close` if not, `keep-alive` to an HTTP/1.0 client that
    /// asked for it, nothing where it goes without saying.
    pub fn connection(self, version: Version, keep_alive: bool) -> Self {
        match (keep_alive, version) {
            (false, _) => self.field("Connection", "close"),
            (true, Version::Http10) => self.field("Connection", "keep-alive"),
            (true, Version::Http11) => self,
        }
    }

    /// Appends lines that were written before, each with its end.
    pub fn lines(self, lines: &[u8]) -> Self {
        self.out.extend_from_slice(lines);
        self
    }

    /// Ends the head without `Content-Length`: for what never has content (101, 204, 304), and for streams that the
    /// close ends.
    pub fn end(self) {
        self.out.extend_from_slice(b"\r\n");
    }

    /// Ends the head as the answer to HEAD: with the length that GET would have, and no content.
    pub fn end_head_only(self, content_bytes: u64) {
        if self.may_have_content() { self.number("Content-Length", content_bytes).end() } else { self.end() }
    }

    /// Ends the head and appends the content. 1xx, 204 and 304 have neither content nor length (RFC 9110 §8.6).
    pub fn end_with(self, content: &[u8]) {
        if !self.may_have_content() {
            return self.end();
        }
        let this = self.number("Content-Length", content.len() as u64);
        this.out.extend_from_slice(b"\r\n");
        this.out.extend_from_slice(content);
    }

    /// Ends with problem details; `head_only` for the answer to HEAD.
    pub fn end_with_problem(self, problem: &Problem<'_>, head_only: bool) {
        let mut content = Vec::with_capacity(256);
        problem.write_json(&mut content);
        let this = self.field("Content-Type", problem::CONTENT_TYPE);
        if head_only { this.end_head_only(content.len() as u64) } else { this.end_with(&content) }
    }

    const fn may_have_content(&self) -> bool {
        !matches!(self.status, 100..=199 | 204 | 304)
    }
}

/// Appends the whole answer to a request that the codec refused; `head_only` if it was HEAD
/// (RFC 9110 §9.3.2); `more` adds fields. The connection is to be closed, lingering.
pub fn write_refusal(
    out: &mut Vec<u8>,
    error: HttpError,
    date: &[u8; DATE_BYTES],
    head_only: bool,
    more: impl FnOnce(ResponseWriter<'_>) -> ResponseWriter<'_>,
) {
    let writer = ResponseWriter::new(out, error.status()).date(date).field("Cache-Control", "no-store");
    let mut writer = more(writer);
    for (name, value) in error.answer_fields() {
        writer = writer.field(name, value);
    }
    // RFC 9110 §7.8: whoever sends Upgrade must name it in Connection.
    let names_upgrade = error.answer_fields().iter().any(|(name, _)| *name == "Upgrade");
    let connection = if names_upgrade { "close, Upgrade" } else { "close" };
    writer.field("Connection", connection).end_with_problem(&error.into(), head_only);
}

/// The interim answer to `Expect: 100-continue` (RFC 9110 §15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The reason phrase of a status (RFC 9110 §15); empty for one that is never sent here.
pub const fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        207 => "Multi-Status",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::date::format_imf_date;
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"before ".to_vec();
        write(&mut out);
        String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_owned()
    }

    #[test]
    fn named_cases() {
        let full = written(|out| {
            ResponseWriter::new(out, 200)
                .date(&format_imf_date(0))
                .connection(Version::Http11, true)
                .field_opt("ETag", Some("\"a\""))
                .field_opt("X", None::<&str>)
                .end_with(b"hi");
        });
        assert_eq!(
            full,
            "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nETag: \"a\"\r\nContent-Length: 2\r\n\r\nhi"
        );
        type Case = (&'static str, fn(ResponseWriter<'_>), u16, &'static str);
        let cases: &[Case] = &[
            ("304", |w| w.end_with(b"x"), 304, "HTTP/1.1 304 Not Modified\r\n\r\n"),
            ("204 to HEAD", |w| w.end_head_only(3), 204, "HTTP/1.1 204 No Content\r\n\r\n"),
            ("HEAD", |w| w.end_head_only(3), 404, "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\n"),
            ("a stream", |w| w.end(), 200, "HTTP/1.1 200 OK\r\n\r\n"),
            (
                "close",
                |w| w.connection(Version::Http10, false).end(),
                200,
                "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
            ),
            (
                "keep-alive in 1.0",
                |w| w.connection(Version::Http10, true).end(),
                200,
                "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n",
            ),
            (
                "no second field from a value",
                |w| w.field("A", b"b\r\nSet-Cookie: c\0").end(),
                200,
                "HTTP/1.1 200 OK\r\nA: b  Set-Cookie: c \r\n\r\n",
            ),
        ];
        for &(name, write, status, expected) in cases {
            assert_eq!(written(|out| write(ResponseWriter::new(out, status))), expected, "{name}");
        }
    }

    #[test]
    fn refusals() {
        let date = format_imf_date(0);
        let refused =
            written(|out| write_refusal(out, HttpError::UpgradeRequired, &date, false, |writer| writer));
        let (head, body) = refused.split_once("\r\n\r\n").unwrap();
        for line in [
            "HTTP/1.1 426 Upgrade Required",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Connection: close, Upgrade",
            "Content-Type: application/problem+json",
        ] {
            assert!(head.split("\r\n").any(|got| got == line), "{line} in {head}");
        }
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["status"], 426);
        let refused = written(|out| write_refusal(out, HttpError::BareLf, &date, false, |writer| writer));
        assert!(
            refused.starts_with("HTTP/1.1 400 Bad Request\r\n")
                && refused.contains("\r\nConnection: close\r\n")
        );
    }
}
