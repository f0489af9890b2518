//! The little JSON (RFC 8259) that the codecs need: escaping strings, writing numbers, checking a value.
//! A JSON payload is passed on as it came: it is checked once, when published, and never parsed into values.

use memchr::memchr2;
use serde::de::IgnoredAny;

/// Deepest nesting of arrays and objects in a payload. Parsers of readers recurse, and many stop or crash beyond this.
pub const DEPTH_MAX: usize = 128;

/// Why bytes are not taken as a JSON payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonError {
    NotUtf8,
    /// Not exactly one value: malformed, nothing, or something after it.
    Malformed,
    TooDeep,
}

impl JsonError {
    /// What was wrong and what would be right, for the client.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NotUtf8 => "the JSON is not UTF-8; encode it as UTF-8, without a byte order mark",
            Self::Malformed => "the data is not valid JSON; send exactly one JSON value",
            Self::TooDeep => "the JSON nests arrays and objects more than 128 deep; flatten it",
        }
    }
}

/// Checks that `bytes` are one JSON value in UTF-8, white space around it permitted, at most [`DEPTH_MAX`] deep.
/// Linear in time; its memory is one byte for each level of nesting.
///
/// # Errors
/// [`JsonError`], when they are not.
pub fn check(bytes: &[u8]) -> Result<&str, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|_| JsonError::NotUtf8)?;
    // serde_json skips values in a loop, without recursion, and so without its own limit.
    serde_json::from_str::<IgnoredAny>(text).map_err(|_| JsonError::Malformed)?;
    check_depth(text)?;
    Ok(text)
}

/// The limit alone, for text known to be valid JSON.
pub(super) fn check_depth(json: &str) -> Result<(), JsonError> {
    let mut depth = 0usize;
    let mut rest = json.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'[' | b'{' if depth == DEPTH_MAX => return Err(JsonError::TooDeep),
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => rest = after_string(rest),
            _ => {}
        }
    }
    Ok(())
}

/// What follows the string whose opening quote was just taken.
fn after_string(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = memchr2(b'"', b'\\', rest) {
        if rest.get(at) == Some(&b'"') {
            return rest.get(at + 1..).unwrap_or_default();
        }
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    &[]
}

/// Appends `text` as a JSON string. Only what must be escaped is: quotes, backslashes, controls below U+0020.
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some((plain, byte, tail)) = split_at_escape(rest) {
        out.extend_from_slice(plain);
        write_escape(out, byte);
        rest = tail;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// How many bytes [`write_str`] appends.
pub fn str_bytes(text: &str) -> usize {
    let (mut bytes, mut rest) = (2, text.as_bytes());
    while let Some((plain, byte, tail)) = split_at_escape(rest) {
        bytes += plain.len() + if byte < b' ' && !b"\n\r\t\x08\x0c".contains(&byte) { 6 } else { 2 };
        rest = tail;
    }
    bytes + rest.len()
}

/// Appends a number.
pub fn write_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        0x08 => out.extend_from_slice(b"\\b"),
        0x0c => out.extend_from_slice(b"\\f"),
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// Cuts at the first byte that needs an escape: what stands before it, the byte, what follows.
fn split_at_escape(bytes: &[u8]) -> Option<(&[u8], u8, &[u8])> {
    let words = bytes.chunks_exact(8);
    let clean_words = words
        .take_while(|word| {
            let mut eight = [0; 8];
            eight.copy_from_slice(word);
            !any_needs_escape(u64::from_ne_bytes(eight))
        })
        .count();
    let (clean, rest) = bytes.split_at(clean_words * 8);
    let at = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\')?;
    let (before, from) = bytes.split_at(clean.len() + at);
    let (&byte, tail) = from.split_first()?;
    Some((before, byte, tail))
}

/// Eight bytes at a time: whether any of them needs an escape.
const fn any_needs_escape(word: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = ONES << 7;
    const fn any_below(word: u64, limit: u8) -> u64 {
        word.wrapping_sub(ONES * limit as u64) & !word & HIGHS
    }
    let control = any_below(word, 0x20);
    let quote = any_below(word ^ (ONES * b'"' as u64), 1);
    let backslash = any_below(word ^ (ONES * b'\\' as u64), 1);
    control | quote | backslash != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn checks() {
        let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        let objects = |n: usize| format!("{}1{}", r#"{"a":"#.repeat(n), "}".repeat(n));
        let (fits, too_deep) = (deep(128), deep(129));
        let (objects_fit, objects_too_deep) = (objects(128), objects(129));
        let wide = format!("[{}[]]", "[[]],".repeat(10_000));
        let bombs = ["[".repeat(1_000_000), deep(1_000_000)];
        for (name, bytes, want) in [
            ("object", &br#"{"a":[1,2.5e3,null,true,"x"]}"#[..], Ok(())),
            ("scalar", b"1", Ok(())),
            ("white space around", b" \r\n\t1 \n", Ok(())),
            ("brackets in strings", br#"["[[[\"[[[","\\"]"#, Ok(())),
            ("lone surrogate, passed on", br#""\ud800""#, Ok(())),
            ("huge number, passed on", b"1e999999", Ok(())),
            ("128 deep", fits.as_bytes(), Ok(())),
            ("129 deep", too_deep.as_bytes(), Err(JsonError::TooDeep)),
            ("128 objects deep", objects_fit.as_bytes(), Ok(())),
            ("129 objects deep", objects_too_deep.as_bytes(), Err(JsonError::TooDeep)),
            ("wide, not deep", wide.as_bytes(), Ok(())),
            ("a million open", bombs[0].as_bytes(), Err(JsonError::Malformed)),
            ("a million deep", bombs[1].as_bytes(), Err(JsonError::TooDeep)),
            ("nothing", b"", Err(JsonError::Malformed)),
            ("white space alone", b"  ", Err(JsonError::Malformed)),
            ("two values", b"1 2", Err(JsonError::Malformed)),
            ("trailing garbage", b"{}x", Err(JsonError::Malformed)),
            ("trailing comma", b"[1,]", Err(JsonError::Malformed)),
            ("single quotes", b"'a'", Err(JsonError::Malformed)),
            ("leading zero", b"01", Err(JsonError::Malformed)),
            ("NaN", b"NaN", Err(JsonError::Malformed)),
            ("line break in a string", b"\"a\nb\"", Err(JsonError::Malformed)),
            ("unknown escape", br#""\x41""#, Err(JsonError::Malformed)),
            ("byte order mark", b"\xef\xbb\xbf1", Err(JsonError::Malformed)),
            ("form feed as white space", b"\x0c1", Err(JsonError::Malformed)),
            ("not UTF-8", b"\"\xff\"", Err(JsonError::NotUtf8)),
        ] {
            assert_eq!(check(bytes).map(|_| ()), want, "{name}");
        }
    }

    #[test]
    fn every_escape_comes_back() {
        for code in 0..=0x2100u32 {
            let Some(c) = char::from_u32(code) else { continue };
            for before in 0..9 {
                let text = format!("{}{c}tail", "x".repeat(before));
                let mut out = Vec::new();
                write_str(&mut out, &text);
                assert_eq!(serde_json::from_slice::<String>(&out).ok(), Some(text), "{code:x} at {before}");
            }
        }
    }

    proptest! {
        #[test]
        fn strings_are_written_as_serde_json_does(text in "(?s).*") {
            let mut out = Vec::new();
            write_str(&mut out, &text);
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            let _ = check(&bytes);
        }

        #[test]
        fn depth_of_anything_scans(text in r#"[\[\]{}"\\a]*"#) {
            let _ = check_depth(&text);
        }
    }
}
