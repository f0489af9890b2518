//! Cursors: positions in a channel's order, and their text.
//! A cursor names an incarnation (unique for each life of a channel, across restarts) and the last sequence number
//! seen. Text: 11 digits of incarnation, then the sequence number without leading zeros, base 64 (RFC 4648 §5's
//! alphabet, most significant digit first): 12 to 22 bytes. One position has exactly one text.

use std::fmt;

/// Most bytes in one cursor's text.
pub const CURSOR_BYTES_MAX: usize = 22;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const INCARNATION_DIGITS: usize = 11;

/// A position: just after message `seq` of the channel's life `incarnation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub incarnation: u64,
    pub seq: u64,
}

/// The text has not the form of a cursor, or not as many parts as there are channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CursorError {
    Form,
    Parts,
}

impl CursorError {
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Form => {
                "a cursor has not the form that this server gives; pass one on exactly as it was given"
            }
            Self::Parts => {
                "the cursor has not one part for each channel of the URL; pass on the one that was given for these channels, in this order"
            }
        }
    }
}

/// A cursor as text, on the stack.
#[derive(Clone, Copy)]
pub struct CursorText {
    bytes: [u8; CURSOR_BYTES_MAX],
    len: u8,
}

impl CursorText {
    /// Digits alone: nothing that needs an escape, in JSON or anywhere.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::ops::Deref for CursorText {
    type Target = str;
    fn deref(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl fmt::Debug for CursorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl Cursor {
    /// A well-formed cursor that no channel ever held: resuming from it is told a gap.
    pub const NOWHERE: Self = Self { incarnation: 0, seq: 0 };

    pub fn text(self) -> CursorText {
        let mut bytes = [0; CURSOR_BYTES_MAX];
        for (place, byte) in bytes[..INCARNATION_DIGITS].iter_mut().rev().enumerate() {
            *byte = digit(self.incarnation, place);
        }
        let digits = (64 - self.seq.leading_zeros()).div_ceil(6).max(1) as usize;
        for (place, byte) in
            bytes[INCARNATION_DIGITS..INCARNATION_DIGITS + digits].iter_mut().rev().enumerate()
        {
            *byte = digit(self.seq, place);
        }
        CursorText { bytes, len: (INCARNATION_DIGITS + digits) as u8 }
    }

    /// # Errors
    /// [`CursorError::Form`] unless `text` is exactly what [`Cursor::text`] gives for some cursor.
    pub fn parse(text: &str) -> Result<Self, CursorError> {
        let bytes = text.as_bytes();
        if bytes.len() <= INCARNATION_DIGITS || bytes.len() > CURSOR_BYTES_MAX {
            return Err(CursorError::Form);
        }
        let (incarnation, seq) = bytes.split_at(INCARNATION_DIGITS);
        if seq.len() > 1 && seq[0] == ALPHABET[0] {
            return Err(CursorError::Form);
        }
        Ok(Self { incarnation: number(incarnation)?, seq: number(seq)? })
    }
}

fn digit(number: u64, place: usize) -> u8 {
    ALPHABET[(number >> (6 * place)) as usize & 63]
}

fn number(digits: &[u8]) -> Result<u64, CursorError> {
    digits.iter().try_fold(0u64, |sum, byte| {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return Err(CursorError::Form),
        };
        sum.checked_mul(64).map(|sum| sum + u64::from(value)).ok_or(CursorError::Form)
    })
}

/// Parses the joined cursor of `channels` channels; an empty part is `None`: from now.
///
/// # Errors
/// [`CursorError`] of the first part that is wrong, or of their number.
pub fn parse_joined(text: &str, channels: usize) -> Result<Vec<Option<Cursor>>, CursorError> {
    if text.split('.').count() != channels {
        return Err(CursorError::Parts);
    }
    text.split('.')
        .map(|part| if part.is_empty() { Ok(None) } else { Cursor::parse(part).map(Some) })
        .collect()
}

/// Appends the joined text of `cursors`.
pub fn write_joined(out: &mut Vec<u8>, cursors: impl IntoIterator<Item = Cursor>) {
    for (index, cursor) in cursors.into_iter().enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        out.extend_from_slice(cursor.text().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refused() {
        for (name, text) in [
            ("empty", ""),
            ("incarnation alone", "AAAAAAAAAAA"),
            ("leading zero", "AAAAAAAAAAAAB"),
            ("other alphabet", "AAAAAAAAAAA+"),
            ("incarnation over 64 bits", "_AAAAAAAAAAB"),
            ("seq over 64 bits", "AAAAAAAAAAA___________"),
            ("too long", "AAAAAAAAAAABBBBBBBBBBBB"),
        ] {
            assert_eq!(Cursor::parse(text), Err(CursorError::Form), "{name}");
        }
        assert_eq!(parse_joined("AAAAAAAAAAAB", 2), Err(CursorError::Parts));
        assert_eq!(parse_joined("AAAAAAAAAAAB.", 2).map(|c| c[1]), Ok(None));
        assert_eq!(parse_joined("", 1), Ok(vec![None]));
    }

    proptest! {
        #[test]
        fn text_and_back(incarnation: u64, seq: u64, shift in 0..64) {
            let cursor = Cursor { incarnation, seq: seq >> shift };
            prop_assert_eq!(Cursor::parse(&cursor.text()), Ok(cursor));
        }

        #[test]
        fn one_text_each(text in "[A-Za-z0-9_-]{12,22}") {
            if let Ok(cursor) = Cursor::parse(&text) {
                prop_assert_eq!(&*cursor.text(), text.as_str());
            }
        }
    }
}
