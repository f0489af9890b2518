//! HTTP/1.1 heads, as far as a bench needs them: requests of the load, answers of any server, heads that the floor
//! looks into. Lenient on purpose: both ends are ours or under test elsewhere.

use std::fmt::Write as _;

use memchr::memmem;

/// Where the head at the front of `input` ends (after its empty line).
pub fn head_end(input: &[u8]) -> Option<usize> {
    memmem::find(input, b"\r\n\r\n").map(|at| at + 4)
}

/// A field's value in a head, name in any case.
pub fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    head.split(|&byte| byte == b'\n').skip(1).find_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        let (found, value) = line.split_at(colon);
        found.eq_ignore_ascii_case(name.as_bytes()).then(|| str::from_utf8(&value[1..]).ok())?.map(str::trim)
    })
}

/// The length that a head announces for its body; 0 without one.
pub fn content_length(head: &[u8]) -> usize {
    field(head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// The status of a response's head.
pub fn status(head: &[u8]) -> Option<u16> {
    str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}

/// A whole answer at the front of some input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head_bytes: usize,
    /// Head and body together. A chunked body keeps its chunk heads.
    pub used: usize,
}

/// `None` while the answer is cut.
pub fn parse_answer(input: &[u8]) -> Option<Answer> {
    let head_bytes = head_end(input)?;
    let head = &input[..head_bytes];
    let status = status(head).unwrap_or(0);
    let body_bytes = if matches!(status, 204 | 304) {
        0
    } else if field(head, "transfer-encoding").is_some() {
        // The last chunk; a body of ours holds no such bytes.
        let body = &input[head_bytes..];
        if body.starts_with(b"0\r\n\r\n") { 5 } else { memmem::find(body, b"\r\n0\r\n\r\n")? + 7 }
    } else {
        content_length(head)
    };
    let used = head_bytes + body_bytes;
    (input.len() >= used).then_some(Answer { status, head_bytes, used })
}

/// A `GET` with further fields, each `Name: value`.
pub fn get(host: &str, path: &str, fields: &[&str]) -> Vec<u8> {
    let mut head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n");
    for field in fields {
        let _ = write!(head, "{field}\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// The head of a request whose body is a place of a template.
pub fn publish_template(method: &str, host: &str, path: &str, content_type: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\n\
         Content-Length: {{bytes}}\r\n\r\n{{body}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_every_form() {
        for (name, wire, status, body_bytes) in [
            ("length", &b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}"[..], 201, 2),
            ("none", b"HTTP/1.1 204 No Content\r\n\r\n", 204, 0),
            ("304 with a length", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, 0),
            ("chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, 12),
            ("no chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, 5),
        ] {
            let answer = parse_answer(wire).expect(name);
            assert_eq!((answer.status, answer.used - answer.head_bytes), (status, body_bytes), "{name}");
            assert_eq!(answer.used, wire.len(), "{name}");
            for cut in 0..wire.len() {
                assert_eq!(parse_answer(&wire[..cut]), None, "{name} cut at {cut}");
            }
        }
    }

    #[test]
    fn fields_are_found() {
        let head = b"POST / HTTP/1.1\r\nHost: 127.0.0.1:1\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(field(head, "HOST"), Some("127.0.0.1:1"));
        assert_eq!(content_length(head), 5);
    }
}
