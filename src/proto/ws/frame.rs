//! WebSocket frames (RFC 6455 §5.2): bytes in, values out.
//! Owns parsing client headers, masking, writing server frames, and why a frame is refused. Never sockets, clocks, logs.

use super::close;

/// Longest header of a client: two bytes, a 64-bit length, a mask.
pub const HEADER_BYTES_MAX: usize = 14;
/// Longest header of the server, which does not mask.
pub const SERVER_HEADER_BYTES_MAX: usize = 10;
/// Most payload of a control frame (§5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;

/// One parse attempt over the bytes read so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<T> {
    /// `value` took the first `used` bytes.
    Done { value: T, used: usize },
    /// Nothing taken; retry once `want` bytes are buffered.
    Partial { want: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0x0 => Some(Self::Continuation),
            0x1 => Some(Self::Text),
            0x2 => Some(Self::Binary),
            0x8 => Some(Self::Close),
            0x9 => Some(Self::Ping),
            0xa => Some(Self::Pong),
            _ => None,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }

    pub const fn is_control(self) -> bool {
        match self {
            Self::Continuation | Self::Text | Self::Binary => false,
            Self::Close | Self::Ping | Self::Pong => true,
        }
    }
}

/// The header of a frame from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub fin: bool,
    pub opcode: Opcode,
    pub payload_bytes: u64,
    pub mask: [u8; 4],
}

/// Why a client frame, or the message it belongs to, is refused. Send `close_code`, then close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// No extension was agreed on (§5.2).
    ReservedBits,
    ReservedOpcode,
    /// Client frames must be masked (§5.1).
    Unmasked,
    /// Control frames must not be fragmented (§5.5).
    FragmentedControl,
    /// Control frames carry at most 125 bytes (§5.5).
    ControlTooBig,
    /// The length must be written in the fewest bytes (§5.2).
    LengthNotMinimal,
    /// The highest bit of a 64-bit length must be 0 (§5.2).
    LengthTopBit,
    /// The frame would make its message larger than the limit.
    TooBig {
        payload_bytes: u64,
    },
    /// There is no message to continue (§5.4).
    NothingToContinue,
    /// A message began before the last one had ended (§5.4).
    MessageInMessage,
    /// Text, or the reason of a close, that is not UTF-8 (§8.1).
    NotUtf8,
    /// A close frame of one byte (§5.5.1).
    HalfCloseCode,
    /// A close code that may not be sent (§7.4).
    CloseCode {
        code: u16,
    },
}

impl FrameError {
    /// Status for the peer (§7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Self::ReservedBits
            | Self::ReservedOpcode
            | Self::Unmasked
            | Self::FragmentedControl
            | Self::ControlTooBig
            | Self::LengthNotMinimal
            | Self::LengthTopBit
            | Self::NothingToContinue
            | Self::MessageInMessage
            | Self::HalfCloseCode
            | Self::CloseCode { .. } => close::PROTOCOL,
            Self::NotUtf8 => close::NOT_UTF8,
            Self::TooBig { .. } => close::TOO_BIG,
        }
    }

    /// The reason of the close frame: what was wrong.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ReservedBits => "a reserved bit is set; no extension was agreed on",
            Self::ReservedOpcode => "reserved opcode",
            Self::Unmasked => "client frames must be masked",
            Self::FragmentedControl => "control frames must not be fragmented",
            Self::ControlTooBig => "control frames carry at most 125 bytes",
            Self::LengthNotMinimal => "the length is not in its shortest form",
            Self::LengthTopBit => "the length has its highest bit set",
            Self::TooBig { .. } => "the message is larger than the limit",
            Self::NothingToContinue => "a continuation of no message",
            Self::MessageInMessage => "a message began inside another",
            Self::NotUtf8 => "text is not UTF-8",
            Self::HalfCloseCode => "a close frame with half a code",
            Self::CloseCode { .. } => "a close code that may not be sent",
        }
    }
}

/// Parses one client header. Allocates nothing. Each refusal comes with the first byte that makes it certain, so
/// however the bytes are cut, it is the same one.
///
/// # Errors
/// [`FrameError`] when no further byte could make the frame legal. `payload_bytes_max` is for data frames alone.
pub fn parse_header(input: &[u8], payload_bytes_max: u64) -> Result<Parsed<Header>, FrameError> {
    let [first, after_first @ ..] = input else { return Ok(Parsed::Partial { want: 2 }) };
    if first & RESERVED != 0 {
        return Err(FrameError::ReservedBits);
    }
    let opcode = Opcode::from_bits(first & 0x0f).ok_or(FrameError::ReservedOpcode)?;
    let fin = first & FIN != 0;
    if opcode.is_control() && !fin {
        return Err(FrameError::FragmentedControl);
    }
    let [second, after_second @ ..] = after_first else { return Ok(Parsed::Partial { want: 2 }) };
    if second & MASKED == 0 {
        return Err(FrameError::Unmasked);
    }
    let length_code = second & !MASKED;
    if opcode.is_control() && usize::from(length_code) > CONTROL_BYTES_MAX {
        return Err(FrameError::ControlTooBig);
    }
    let used = HEADER_BYTES_MAX - 8 + length_bytes(length_code);
    let Some((payload_bytes, mask)) = split_length(length_code, after_second)? else {
        return Ok(Parsed::Partial { want: used });
    };
    if !opcode.is_control() && payload_bytes > payload_bytes_max {
        return Err(FrameError::TooBig { payload_bytes });
    }
    let Some(&mask) = mask.first_chunk::<4>() else { return Ok(Parsed::Partial { want: used }) };
    Ok(Parsed::Done { value: Header { fin, opcode, payload_bytes, mask }, used })
}

/// How many bytes of length follow the second byte.
const fn length_bytes(length_code: u8) -> usize {
    match length_code {
        LENGTH_16 => 2,
        LENGTH_64 => 8,
        _ => 0,
    }
}

/// The payload's length, and what follows it. `None`: not all there yet.
fn split_length(length_code: u8, after_second: &[u8]) -> Result<Option<(u64, &[u8])>, FrameError> {
    let (length, length_min, rest) = match length_code {
        LENGTH_16 => match after_second.split_first_chunk::<2>() {
            Some((bytes, rest)) => (u64::from(u16::from_be_bytes(*bytes)), u64::from(LENGTH_16), rest),
            None => return Ok(None),
        },
        LENGTH_64 => match after_second.split_first_chunk::<8>() {
            Some((bytes, rest)) => (u64::from_be_bytes(*bytes), 0x1_0000, rest),
            None => return Ok(None),
        },
        short => (u64::from(short), 0, after_second),
    };
    if length >> 63 != 0 {
        return Err(FrameError::LengthTopBit);
    }
    if length < length_min {
        return Err(FrameError::LengthNotMinimal);
    }
    Ok(Some((length, rest)))
}

/// Unmasks in place (§5.3; masking is the same act). `offset` is where in the frame's payload `bytes` begin.
pub fn unmask(bytes: &mut [u8], mask: [u8; 4], offset: u64) {
    let mut key = mask;
    key.rotate_left((offset % 4) as usize);
    // Words of any alignment; the compiler makes vectors of this loop.
    let [a, b, c, d] = key;
    let word_key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ word_key).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends one whole frame of the server's.
pub fn write_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    write_header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a frame whose payload `write` appends, of a length not known before.
pub fn write_frame_with(out: &mut Vec<u8>, opcode: Opcode, write: impl FnOnce(&mut Vec<u8>)) {
    // The length that most messages need gets room at once; the payload moves only if it needs another.
    const ROOM: usize = 4;
    let start = out.len();
    out.resize(start + ROOM, 0);
    write(out);
    assert!(out.len() >= start + ROOM, "the payload's writer only appends");
    let end = out.len();
    let (header, header_bytes) = server_header(opcode, end - start - ROOM);
    if header_bytes > ROOM {
        out.resize(end + header_bytes - ROOM, 0);
    }
    if header_bytes != ROOM {
        out.copy_within(start + ROOM..end, start + header_bytes);
        out.truncate(end + header_bytes - ROOM);
    }
    out[start..start + header_bytes].copy_from_slice(&header[..header_bytes]);
}

/// Appends the header of an unfragmented frame of the server's.
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    let (header, header_bytes) = server_header(opcode, payload_bytes);
    out.extend_from_slice(&header[..header_bytes]);
}

/// How many bytes [`write_header`] appends.
pub const fn server_header_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => SERVER_HEADER_BYTES_MAX,
    }
}

fn server_header(opcode: Opcode, payload_bytes: usize) -> ([u8; SERVER_HEADER_BYTES_MAX], usize) {
    assert!(!opcode.is_control() || payload_bytes <= CONTROL_BYTES_MAX, "control frames are short");
    let mut header = [0; SERVER_HEADER_BYTES_MAX];
    header[0] = FIN | opcode.bits();
    let header_bytes = server_header_bytes(payload_bytes);
    let length = (payload_bytes as u64).to_be_bytes();
    match header_bytes {
        2 => header[1] = length[7],
        4 => {
            header[1] = LENGTH_16;
            header[2..4].copy_from_slice(&length[6..]);
        }
        _ => {
            header[1] = LENGTH_64;
            header[2..].copy_from_slice(&length);
        }
    }
    (header, header_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u64 = 65_536;

    #[test]
    fn refusals() {
        for (name, wire, error) in [
            ("unmasked text", &[0x81, 0x01][..], FrameError::Unmasked),
            ("unmasked empty ping", &[0x89, 0x00], FrameError::Unmasked),
            ("RSV1, at the first byte", &[0xc1], FrameError::ReservedBits),
            ("RSV2", &[0xa1], FrameError::ReservedBits),
            ("RSV3", &[0x91], FrameError::ReservedBits),
            ("opcode 3", &[0x83], FrameError::ReservedOpcode),
            ("opcode 7", &[0x87], FrameError::ReservedOpcode),
            ("opcode 11", &[0x8b], FrameError::ReservedOpcode),
            ("opcode 15", &[0x8f], FrameError::ReservedOpcode),
            ("fragmented ping", &[0x09], FrameError::FragmentedControl),
            ("fragmented close", &[0x08, 0x80], FrameError::FragmentedControl),
            ("ping of 126", &[0x89, 0xfe], FrameError::ControlTooBig),
            ("close of 64 bits", &[0x88, 0xff], FrameError::ControlTooBig),
            ("125 in 16 bits", &[0x81, 0xfe, 0, 125], FrameError::LengthNotMinimal),
            ("65535 in 64 bits", &[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], FrameError::LengthNotMinimal),
            ("top bit", &[0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], FrameError::LengthTopBit),
            (
                "one too many",
                &[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1],
                FrameError::TooBig { payload_bytes: 65_537 },
            ),
        ] {
            assert_eq!(parse_header(wire, LIMIT), Err(error), "{name}");
        }
        assert_eq!(parse_header(&[0x81, 0xff], 0), Ok(Parsed::Partial { want: 14 }));
        assert_eq!(
            parse_header(&[0x81, 0x82], 1),
            Err(FrameError::TooBig { payload_bytes: 2 }),
            "before the mask"
        );
        assert_eq!(
            parse_header(&[0x89, 0xfd], 1),
            Ok(Parsed::Partial { want: 6 }),
            "no limit on control frames"
        );
    }

    #[test]
    fn unmask_resumes_anywhere() {
        let mask = [1, 2, 4, 8];
        let plain: Vec<u8> = (0..100).collect();
        let mut masked = plain.clone();
        for (at, byte) in masked.iter_mut().enumerate() {
            *byte ^= mask[at % 4];
        }
        for cut in 0..=plain.len() {
            let mut bytes = masked.clone();
            let (head, tail) = bytes.split_at_mut(cut);
            unmask(head, mask, 0);
            unmask(tail, mask, cut as u64);
            assert_eq!(bytes, plain, "cut at {cut}");
        }
    }

    #[test]
    fn server_frames() {
        for (payload_bytes, want) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 0xff, 0xff]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload: Vec<u8> = (0..payload_bytes).map(|at| at as u8).collect();
            let mut out = b"before".to_vec();
            write_frame(&mut out, Opcode::Binary, &payload);
            assert_eq!(out[6..], [want, &payload].concat(), "{payload_bytes}");
            assert_eq!(server_header_bytes(payload_bytes), want.len());
            let mut with = b"before".to_vec();
            write_frame_with(&mut with, Opcode::Binary, |out| out.extend_from_slice(&payload));
            assert_eq!(with, out, "{payload_bytes}");
        }
    }

    fn any_wire() -> impl Strategy<Value = (Header, Vec<u8>)> {
        let opcode = prop_oneof![Just(Opcode::Continuation), Just(Opcode::Text), Just(Opcode::Binary)];
        let control = prop_oneof![Just(Opcode::Close), Just(Opcode::Ping), Just(Opcode::Pong)];
        let bytes = prop_oneof![0..200u64, 65_400..=LIMIT];
        prop_oneof![
            (any::<bool>(), opcode, bytes, any::<[u8; 4]>()),
            (Just(true), control, 0..=125u64, any::<[u8; 4]>()),
        ]
        .prop_map(|(fin, opcode, payload_bytes, mask)| {
            let mut wire = Vec::new();
            write_header(&mut wire, opcode, payload_bytes as usize);
            wire[0] &= if fin { 0xff } else { 0x7f };
            wire[1] |= MASKED;
            wire.extend(mask);
            (Header { fin, opcode, payload_bytes, mask }, wire)
        })
    }

    proptest! {
        #[test]
        fn every_cut_asks_for_more((header, wire) in any_wire()) {
            for cut in 0..wire.len() {
                let more = matches!(parse_header(&wire[..cut], LIMIT), Ok(Parsed::Partial { want }) if want > cut);
                prop_assert!(more, "cut at {}", cut);
            }
            prop_assert_eq!(parse_header(&wire, LIMIT), Ok(Parsed::Done { value: header, used: wire.len() }));
        }

        #[test]
        fn a_refusal_stays_one(wire in proptest::collection::vec(any::<u8>(), 0..16), limit in 0..70_000u64) {
            for cut in 0..wire.len() {
                if let Err(error) = parse_header(&wire[..cut], limit) {
                    prop_assert_eq!(parse_header(&wire, limit), Err(error));
                }
            }
        }
    }
}
