//! HTTP/1.1 heads, as far as a bench needs them: requests of the load, heads that the floor looks into.
//! Lenient on purpose: both ends are ours or under test elsewhere.

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

/// A `GET` with further fields, each `Name: value`.
pub fn get(host: &str, path: &str, fields: &[&str]) -> Vec<u8> {
    let mut head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n");
    for field in fields {
        let _ = write!(head, "{field}\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// Appends a `POST` with its body.
pub fn write_post(out: &mut Vec<u8>, host: &str, path: &str, content_type: &str, body: &[u8]) {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_is_read_back() {
        let mut wire = Vec::new();
        write_post(&mut wire, "127.0.0.1:1", "/channels/x", "text/plain", b"hello");
        let end = head_end(&wire).expect("a whole head");
        assert_eq!(content_length(&wire[..end]), 5);
        assert_eq!(field(&wire[..end], "HOST"), Some("127.0.0.1:1"));
        assert_eq!(&wire[end..], b"hello");
        assert_eq!(status(b"HTTP/1.1 201 Created\r\n\r\n"), Some(201));
    }
}
