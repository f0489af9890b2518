//! Problem details (RFC 9457): the body of every answer that is an error. Owns the JSON of it.

use super::error::HttpError;
use super::response::reason;

/// The `Content-Type` of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// One problem. `kind` is the member `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem<'a> {
    pub kind: &'a str,
    pub title: &'a str,
    pub status: u16,
    /// What was wrong and what would be right.
    pub detail: &'a str,
}

impl<'a> Problem<'a> {
    /// A problem that its status names well enough (RFC 9457 §4.2.1).
    pub const fn new(status: u16, detail: &'a str) -> Self {
        Self { kind: "about:blank", title: reason(status), status, detail }
    }

    /// Appends the JSON object.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"type":"#);
        write_json_string(out, self.kind);
        out.extend_from_slice(br#","title":"#);
        write_json_string(out, self.title);
        out.extend_from_slice(br#","status":"#);
        out.extend_from_slice(itoa::Buffer::new().format(self.status).as_bytes());
        out.extend_from_slice(br#","detail":"#);
        write_json_string(out, self.detail);
        out.push(b'}');
    }
}

impl From<HttpError> for Problem<'static> {
    fn from(error: HttpError) -> Self {
        Self::new(error.status(), error.detail())
    }
}

/// Appends `text` as a JSON string (RFC 8259 §7), quotes included.
fn write_json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for &byte in text.as_bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(br"\n"),
            b'\r' => out.extend_from_slice(br"\r"),
            b'\t' => out.extend_from_slice(br"\t"),
            0..=0x1f => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(&[
                    b'\\',
                    b'u',
                    b'0',
                    b'0',
                    b'0' + (byte >> 4),
                    HEX[usize::from(byte & 15)],
                ]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_problem() {
        let mut out = Vec::new();
        Problem::new(404, "no \"x\"").write_json(&mut out);
        let expected = r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"no \"x\""}"#;
        assert_eq!(String::from_utf8(out).as_deref(), Ok(expected));
    }

    proptest! {
        #[test]
        fn every_string_is_json(text in any::<String>(), controls in "[\\x00-\\x1f\"\\\\]{0,8}") {
            let text = text + &controls;
            let mut out = Vec::new();
            write_json_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
