//! A line of fields as text: one JSON object, or `key=value` for people and their tools (logfmt).
//! Owns that nothing a client says can end a line, begin another, or speak to a terminal. Pure.

use crate::proto::http::date::civil;

use super::settings::LogFormat;

/// A line under way.
pub struct Fields<'o> {
    out: &'o mut Vec<u8>,
    format: LogFormat,
}

impl<'o> Fields<'o> {
    pub fn begin(out: &'o mut Vec<u8>, format: LogFormat, at_ms: u64, kind: &str) -> Self {
        match format {
            LogFormat::Json => {
                out.extend_from_slice(br#"{"time":""#);
                write_time(out, at_ms);
                out.extend_from_slice(br#"","type":""#);
                out.extend_from_slice(kind.as_bytes());
                out.push(b'"');
            }
            LogFormat::Text => {
                write_time(out, at_ms);
                out.push(b' ');
                out.extend_from_slice(kind.as_bytes());
            }
        }
        Self { out, format }
    }

    fn name(&mut self, name: &str) {
        match self.format {
            LogFormat::Json => put(self.out, &[",\"", name, "\":"]),
            LogFormat::Text => put(self.out, &[" ", name, "="]),
        }
    }

    pub fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    pub fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        match self.format {
            LogFormat::Json => write_quoted(self.out, text),
            LogFormat::Text => write_value(self.out, text),
        }
    }

    pub fn switch(&mut self, name: &str, is_on: bool) {
        self.name(name);
        self.out.extend_from_slice(if is_on { b"true" } else { b"false" });
    }

    pub fn maybe(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    pub fn end(self) {
        if self.format == LogFormat::Json {
            self.out.push(b'}');
        }
        self.out.push(b'\n');
    }
}

fn put(out: &mut Vec<u8>, parts: &[&str]) {
    parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
}

/// Appends a value as it stands in `key=value`: in quotes where it must be.
pub fn write_value(out: &mut Vec<u8>, text: &str) {
    if is_bare(text) {
        out.extend_from_slice(text.as_bytes());
    } else {
        write_quoted(out, text);
    }
}

/// Whether a value can stand in `key=value` without quotes.
fn is_bare(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'='))
        || is_target(text)
}

/// Paths with a query have `=` in them, and are read by people more than by parsers: quoted only where they must be.
fn is_target(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'))
}

/// Appends `text` as a JSON string, in which every control character is escaped, those of terminals too (C1), and what
/// some readers take for the end of a line.
fn write_quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\u{2028}' | '\u{2029}' => write_escaped(out, character),
            control if control.is_control() => write_escaped(out, control),
            other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

fn write_escaped(out: &mut Vec<u8>, character: char) {
    // All of them are below U+10000.
    out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
}

/// Appends a moment as RFC 3339 has it, in UTC, with milliseconds.
pub fn write_time(out: &mut Vec<u8>, at_ms: u64) {
    let (seconds, ms) = (at_ms / 1_000, at_ms % 1_000);
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z");
    out.extend_from_slice(text.as_bytes());
}
