//! What a message carries, as the codecs see it, and base64 (RFC 4648 §4), the form of binary in text.
//! Owns the borrowed view of one message. Never keeps a message.

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::engine::{DecodePaddingMode, general_purpose};

/// Reads what `STANDARD` writes, and the same without its padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    general_purpose::NO_PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The data of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// One valid JSON value, byte for byte as the publisher wrote it.
    Json(&'a str),
    Text(&'a str),
    Binary(&'a [u8]),
}

/// One message, borrowed for as long as it takes to write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageView<'a> {
    pub id: &'a str,
    pub channel: &'a str,
    pub event: Option<&'a str>,
    /// Milliseconds since 1970.
    pub ts_ms: u64,
    pub payload: Payload<'a>,
}

/// Appends `bytes` as padded base64 of the standard alphabet.
pub fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    let encoded_bytes = base64_bytes(bytes.len());
    out.resize(start + encoded_bytes, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]);
    assert!(matches!(written, Ok(n) if n == encoded_bytes), "base64 is 4 bytes for each 3");
}

/// How many bytes [`write_base64`] appends for so many bytes.
pub const fn base64_bytes(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// Decodes base64 of the standard alphabet (`+`, `/`). Padding may be left off; the URL alphabet, white space and stray
/// bits in the last character are refused.
pub fn read_base64(text: &str) -> Option<Vec<u8>> {
    LENIENT.decode(text).ok()
}

/// Whether `text` is the base64 of exactly 16 bytes: the form of `Sec-WebSocket-Key` (RFC 6455 §4.1). Stray bits in the
/// last character are let pass, for the key's value is never used.
pub(super) fn is_base64_of_16_bytes(text: &[u8]) -> bool {
    const LAX: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
    );
    // `decode_slice` wants room for whole groups of three: 24 characters give at most 18.
    let mut room = [0; 18];
    text.len() == 24 && matches!(LAX.decode_slice(text, &mut room), Ok(16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base64_forms() {
        for (name, text, want) in [
            ("empty", "", Some(&b""[..])),
            ("padded", "aGk=", Some(b"hi")),
            ("unpadded", "aGk", Some(b"hi")),
            ("standard alphabet", "+/+/", Some(&[0xfb, 0xff, 0xbf])),
            ("half a padding", "aA=", Some(b"h")),
            ("url alphabet", "-_-_", None),
            ("white space", "aG k=", None),
            ("stray bits", "aGl=", None),
            ("one character", "a", None),
            ("padding alone", "====", None),
            ("after padding", "aGk=aGk=", None),
        ] {
            assert_eq!(read_base64(text).as_deref(), want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn base64_comes_back(bytes: Vec<u8>) {
            let mut out = b"x".to_vec();
            write_base64(&mut out, &bytes);
            prop_assert_eq!(out.len(), 1 + base64_bytes(bytes.len()));
            let text = std::str::from_utf8(&out[1..]).unwrap();
            prop_assert_eq!(read_base64(text), Some(bytes));
        }
    }
}
