//! WebSocket close frames (RFC 6455 §5.5.1, §7.4): reading and writing them, and the codes of what a codec refuses.

use super::frame::{CONTROL_BYTES_MAX, FrameError, Opcode, write_frame};

/// Frames that RFC 6455 forbids.
pub const PROTOCOL: u16 = 1002;
/// Text that is not UTF-8.
pub const NOT_UTF8: u16 = 1007;
/// A message larger than the limit.
pub const TOO_BIG: u16 = 1009;

/// Most bytes of a reason: a control frame less the code.
pub const REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// What a close frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close<'a> {
    pub code: Option<u16>,
    pub reason: &'a str,
}

/// Reads the unmasked payload of a close frame.
///
/// # Errors
/// Half a code, a code that may not be sent (§7.4.2), a reason that is not UTF-8.
pub fn parse_close(payload: &[u8]) -> Result<Close<'_>, FrameError> {
    match payload {
        [] => Ok(Close { code: None, reason: "" }),
        [_] => Err(FrameError::HalfCloseCode),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !may_be_sent(code) {
                return Err(FrameError::CloseCode { code });
            }
            let reason = std::str::from_utf8(reason).map_err(|_| FrameError::NotUtf8)?;
            Ok(Close { code: Some(code), reason })
        }
    }
}

/// Appends a close frame. A reason that is too long is cut between characters.
pub fn write_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    debug_assert!(may_be_sent(code));
    let longest = REASON_BYTES_MAX.min(reason.len());
    let cut = (0..=longest).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or_default();
    let reason = &reason[..cut];
    let mut payload = [0; CONTROL_BYTES_MAX];
    let (code_place, rest) = payload.split_at_mut(2);
    code_place.copy_from_slice(&code.to_be_bytes());
    rest[..reason.len()].copy_from_slice(reason.as_bytes());
    write_frame(out, Opcode::Close, &payload[..2 + reason.len()]);
}

/// Codes of the RFC and IANA's registry that may stand in a frame, of libraries, and of applications.
const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads() {
        let long = [&[0x03, 0xe8][..], &[b'a'; 123]].concat();
        for (name, payload, want) in [
            ("empty", &[][..], Ok((None, ""))),
            ("half a code", &[0x03], Err(1002)),
            ("1000", &[0x03, 0xe8], Ok((Some(1000), ""))),
            ("with a reason", &[0x03, 0xe9, b'b', b'y', b'e'], Ok((Some(1001), "bye"))),
            ("longest reason", &long, Ok((Some(1000), "a".repeat(123).leak()))),
            ("reason not UTF-8", &[0x03, 0xe8, 0xff], Err(1007)),
            ("bad code and reason", &[0x00, 0x00, 0xff], Err(1002)),
        ] {
            let got = parse_close(payload).map(|close| (close.code, close.reason));
            assert_eq!(got.map_err(FrameError::close_code), want, "{name}");
        }
    }

    #[test]
    fn codes() {
        for (codes, want) in [
            (0..=999, false),
            (1000..=1003, true),
            (1004..=1006, false),
            (1007..=1014, true),
            (1015..=2999, false),
            (3000..=4999, true),
            (5000..=u16::MAX, false),
        ] {
            for code in codes {
                assert_eq!(parse_close(&code.to_be_bytes()).is_ok(), want, "{code}");
            }
        }
    }

    #[test]
    fn written() {
        let euros = "€".repeat(50);
        for (name, reason, want) in
            [("short", "bye", "bye"), ("none", "", ""), ("cut between characters", &euros, &"€".repeat(41))]
        {
            let mut out = Vec::new();
            write_close(&mut out, 4408, reason);
            assert_eq!(out[..2], [0x88, 2 + want.len() as u8], "{name}");
            assert_eq!(parse_close(&out[2..]), Ok(Close { code: Some(4408), reason: want }), "{name}");
        }
        let odd = format!("a{euros}");
        let mut out = Vec::new();
        write_close(&mut out, 4408, &odd);
        assert_eq!(out.len(), 4 + 121, "the cut falls inside a character and moves before it");
    }
}
