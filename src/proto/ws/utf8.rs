//! UTF-8 of a text message that comes in pieces (RFC 6455 §8.1): refused at the first byte that cannot belong to it.
//! Keeps at most the three bytes of a character that is not yet whole.

/// What was seen so far ends inside a character, or between two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Utf8Check {
    begun: [u8; 4],
    begun_bytes: u8,
}

/// The bytes are not UTF-8, whatever follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotUtf8;

impl Utf8Check {
    /// Takes the next piece.
    ///
    /// # Errors
    /// [`NotUtf8`], as soon as no further byte could help.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), NotUtf8> {
        let rest = self.end_begun(bytes)?;
        let Err(error) = std::str::from_utf8(rest) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(NotUtf8);
        }
        let begun = rest.get(error.valid_up_to()..).unwrap_or_default();
        for &byte in begun {
            self.push(byte);
        }
        Ok(())
    }

    /// The message is over.
    ///
    /// # Errors
    /// [`NotUtf8`], when it ends inside a character.
    pub fn end(self) -> Result<(), NotUtf8> {
        if self.begun_bytes == 0 { Ok(()) } else { Err(NotUtf8) }
    }

    /// Completes the character begun before, byte by byte; gives what follows it.
    fn end_begun<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], NotUtf8> {
        let mut rest = bytes;
        while self.begun_bytes > 0 {
            let Some((&byte, tail)) = rest.split_first() else { break };
            rest = tail;
            self.push(byte);
            let character = self.begun.get(..usize::from(self.begun_bytes)).unwrap_or_default();
            match std::str::from_utf8(character) {
                Ok(_) => *self = Self::default(),
                Err(error) if error.error_len().is_some() => return Err(NotUtf8),
                Err(_) => {}
            }
        }
        Ok(rest)
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.begun.get_mut(usize::from(self.begun_bytes)) {
            *place = byte;
            self.begun_bytes += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// After how many bytes it is refused, fed one by one; `None`: never.
    fn refused_after(bytes: &[u8]) -> Option<usize> {
        let mut check = Utf8Check::default();
        for (at, byte) in bytes.iter().enumerate() {
            if check.feed(&[*byte]).is_err() {
                return Some(at + 1);
            }
        }
        check.end().is_err().then_some(bytes.len() + 1)
    }

    #[test]
    fn refused_at_the_first_impossible_byte() {
        for (name, bytes, want) in [
            ("ascii", &b"abc"[..], None),
            ("two, three, four bytes", "é€😀".as_bytes(), None),
            ("last code point", b"\xf4\x8f\xbf\xbf", None),
            ("beyond the last code point", b"\xf4\x90\x80\x80", Some(2)),
            ("surrogate", b"a\xed\xa0\x80", Some(3)),
            ("overlong two", b"\xc0\xaf", Some(1)),
            ("overlong three", b"\xe0\x80\xaf", Some(2)),
            ("overlong four", b"\xf0\x80\x80\xaf", Some(2)),
            ("continuation alone", b"\x80", Some(1)),
            ("five bytes", b"\xf8\x88\x80\x80\x80", Some(1)),
            ("cut after one", b"\xce", Some(2)),
            ("cut after three", b"a\xf0\x9f\x98", Some(5)),
            ("ascii inside a character", b"\xe2\x82a", Some(3)),
            (
                "autobahn 6.4.1",
                b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited",
                Some(13),
            ),
        ] {
            assert_eq!(refused_after(bytes), want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_cut_says_the_same(
            bytes in prop_oneof![any::<Vec<u8>>(), "(?s).{0,30}".prop_map(String::into_bytes)],
            cuts in proptest::collection::vec(0usize..64, 0..4),
        ) {
            let want = std::str::from_utf8(&bytes).is_ok();
            let mut check = Utf8Check::default();
            let mut rest = &bytes[..];
            let mut ok = true;
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                ok = ok && check.feed(piece).is_ok();
                rest = tail;
            }
            prop_assert_eq!(ok && check.feed(rest).is_ok() && check.end().is_ok(), want);
            prop_assert_eq!(refused_after(&bytes).is_none(), want);
        }
    }
}
