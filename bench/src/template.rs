//! Bytes with places to be filled: paths, requests and frames of any server, written without an allocation.

use std::io::Write as _;

/// Something between literal bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Channel,
    Cursor,
    /// Length of the body, in decimal digits.
    Bytes,
    Body,
    /// Length of the body and so many bytes more, as MQTT writes lengths (7 bits a byte, the lowest first).
    Varint(usize),
}

/// What the places are filled with; what a template has no place for is not looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fields<'a> {
    pub channel: &'a [u8],
    pub cursor: &'a [u8],
    pub body: &'a [u8],
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template(Vec<Part>);

impl Template {
    /// Places are `{channel}`, `{cursor}`, `{bytes}`, `{body}` and `{varint:N}`; other braces stand for themselves.
    pub fn parse(text: &[u8]) -> Self {
        let (mut parts, mut literal, mut at) = (Vec::new(), Vec::new(), 0);
        while at < text.len() {
            match place_at(&text[at..]) {
                Some((part, used)) => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(part);
                    at += used;
                }
                None => {
                    literal.push(text[at]);
                    at += 1;
                }
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Self(parts)
    }

    pub fn has_cursor(&self) -> bool {
        self.0.contains(&Part::Cursor)
    }

    pub fn write(&self, out: &mut Vec<u8>, fields: Fields<'_>) {
        for part in &self.0 {
            match part {
                Part::Literal(bytes) => out.extend_from_slice(bytes),
                Part::Channel => out.extend_from_slice(fields.channel),
                Part::Cursor => out.extend_from_slice(fields.cursor),
                Part::Bytes => write!(out, "{}", fields.body.len()).expect("a Vec takes all"),
                Part::Body => out.extend_from_slice(fields.body),
                Part::Varint(more) => write_varint(out, fields.body.len() + more),
            }
        }
    }
}

fn place_at(text: &[u8]) -> Option<(Part, usize)> {
    if text.first() != Some(&b'{') {
        return None;
    }
    let end = memchr::memchr(b'}', text)?;
    let part = match &text[1..end] {
        b"channel" => Part::Channel,
        b"cursor" => Part::Cursor,
        b"bytes" => Part::Bytes,
        b"body" => Part::Body,
        other => {
            let more = str::from_utf8(other.strip_prefix(b"varint:")?).ok()?;
            Part::Varint(more.parse().ok()?)
        }
    };
    Some((part, end + 1))
}

fn write_varint(out: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled() {
        let body = vec![b'x'; 200];
        let fields = Fields { channel: b"c0000001", cursor: b"a-1", body: &body };
        for (text, want) in [
            (&b"/channels/{channel}?cursor={cursor}"[..], b"/channels/c0000001?cursor=a-1".to_vec()),
            (b"{\"channel\":\"{channel}\"}", b"{\"channel\":\"c0000001\"}".to_vec()),
            (b"PUB {channel} {bytes}\r\n{body}\r\n", [b"PUB c0000001 200\r\n", &body[..], b"\r\n"].concat()),
            // 210 is 0xd2 0x01 (MQTT 3.1.1 section 2.2.3).
            (b"\x30{varint:10}{x}", b"\x30\xd2\x01{x}".to_vec()),
            (b"{", b"{".to_vec()),
        ] {
            let mut out = Vec::new();
            Template::parse(text).write(&mut out, fields);
            assert_eq!(out, want, "{}", String::from_utf8_lossy(text));
        }
    }
}
