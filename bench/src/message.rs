//! What is published: a sign, the message's number in its channel, the time at which it was meant to be
//! published, and filling. Pure: the same bytes tell order, loss and latency, whoever carried them.

use memchr::memchr;

/// Stands before each message; in no id, channel name, chunk size or filling.
const SIGN: u8 = b'#';
const DIGITS: usize = 10;
const TIME_DIGITS: usize = 16;
/// The least that carries a number and a time.
pub const MESSAGE_BYTES_MIN: usize = 1 + DIGITS + TIME_DIGITS;
/// Far above what any server here takes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// What fills a message.
const FILLING: u8 = b'.';

/// A message as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Counted from 1 in each channel.
    pub number: u32,
    /// `net::now_ns` when it was to be published; of an open loop the time that was planned, not that of the write,
    /// so that a publisher that is held up cannot hide the wait.
    pub at_ns: u64,
}

/// Appends a message of `bytes` bytes.
pub fn write(out: &mut Vec<u8>, stamp: Stamp, bytes: usize) {
    use std::io::Write as _;
    write!(out, "#{:010}{:016x}", stamp.number, stamp.at_ns).expect("a Vec takes all");
    out.resize(out.len() + bytes.saturating_sub(MESSAGE_BYTES_MIN), FILLING);
}

fn parse(text: &[u8]) -> Option<Stamp> {
    let digits = text.get(..DIGITS)?;
    let number = digits.iter().try_fold(0u32, |sum, &digit| {
        let value = digit.wrapping_sub(b'0');
        if value > 9 { None } else { sum.checked_mul(10)?.checked_add(u32::from(value)) }
    })?;
    let time = text.get(DIGITS..DIGITS + TIME_DIGITS)?;
    let at_ns = time.iter().try_fold(0u64, |sum, &digit| {
        let value = char::from(digit).to_digit(16)?;
        Some(sum << 4 | u64::from(value))
    })?;
    Some(Stamp { number, at_ns })
}

/// All messages in `text`, in their order, each with what follows its stamp.
pub fn with_rest(text: &[u8]) -> impl Iterator<Item = (Stamp, &[u8])> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(found) = memchr(SIGN, &text[at..]) {
            at += found + 1;
            if let Some(stamp) = parse(&text[at..]) {
                at += DIGITS + TIME_DIGITS;
                return Some((stamp, &text[at..]));
            }
        }
        None
    })
}

/// All messages in `text`, in their order.
pub fn all_in(text: &[u8]) -> impl Iterator<Item = Stamp> + '_ {
    with_rest(text).map(|(stamp, _)| stamp)
}

/// Whether a message of `bytes` bytes has its last one, and no more. Looks at its end alone.
pub fn ends_right(rest: &[u8], bytes: usize) -> bool {
    let filling = bytes.saturating_sub(MESSAGE_BYTES_MIN);
    let last = filling.checked_sub(1).is_none_or(|last| rest.get(last) == Some(&FILLING));
    last && rest.get(filling) != Some(&FILLING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_wherever_they_stand() {
        let (one, two) = (Stamp { number: 7, at_ns: 0xfeed }, Stamp { number: u32::MAX, at_ns: u64::MAX });
        let mut text = b"MSG # 12\r\n".to_vec();
        write(&mut text, one, 128);
        text.extend_from_slice(b"\"}# #00000");
        write(&mut text, two, 0);
        assert_eq!(all_in(&text).collect::<Vec<_>>(), [one, two]);
        let whole = text.len();
        for cut in whole - MESSAGE_BYTES_MIN..whole {
            assert_eq!(all_in(&text[..cut]).collect::<Vec<_>>(), [one], "cut at {cut}");
        }
    }

    #[test]
    fn a_message_of_another_length_is_told() {
        for (written, asked, right) in [
            (128, 128, true),
            (60, 128, false),
            (129, 128, false),
            (27, 27, true),
            (28, 27, false),
            (27, 28, false),
        ] {
            let mut text = Vec::new();
            write(&mut text, Stamp { number: 1, at_ns: 1 }, written);
            text.extend_from_slice(b"\"}");
            let (_, rest) = with_rest(&text).next().expect("a message");
            assert_eq!(ends_right(rest, asked), right, "{written} of {asked}");
        }
    }

    #[test]
    fn a_message_has_the_length_asked_for() {
        for (asked, written) in [(0, MESSAGE_BYTES_MIN), (27, 27), (128, 128), (65_536, 65_536)] {
            let mut text = Vec::new();
            write(&mut text, Stamp { number: 1, at_ns: 1 }, asked);
            assert_eq!(text.len(), written);
        }
    }
}
