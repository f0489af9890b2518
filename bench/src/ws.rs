//! WebSocket frames (RFC 6455 §5), as far as a bench needs them: headers of the server, frames of the client.
//! Never sockets.

pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

/// The handshake key that every reader sends; its answer can be canned.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What RFC 6455 §1.3 gives as the answer to that key.
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An unmasked frame of the server.
pub struct Frame {
    pub opcode: u8,
    pub header_bytes: usize,
    pub payload_bytes: usize,
}

/// Parses the header at the front of `input`; `None`: not all of it is there yet. The payload may be cut.
pub fn parse_header(input: &[u8]) -> Option<Frame> {
    let (&first, &second) = (input.first()?, input.get(1)?);
    let (header_bytes, payload_bytes) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(input.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(short)),
    };
    Some(Frame { opcode: first & 0x0f, header_bytes, payload_bytes: usize::try_from(payload_bytes).ok()? })
}

/// Appends an unmasked frame with the FIN bit.
pub fn write_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(0x80 | opcode);
    match payload.len() {
        short @ 0..126 => out.push(short as u8),
        medium @ 126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// Appends a client's frame. The mask is zero: legal, and nothing to compute.
pub fn write_client_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    let at = out.len();
    write_frame(out, opcode, payload);
    out[at + 1] |= 0x80;
    let mask_at = out.len() - payload.len();
    out.splice(mask_at..mask_at, [0; 4]);
}

/// Appends a client's pong to `payload`.
pub fn write_pong(out: &mut Vec<u8>, payload: &[u8]) {
    write_client_frame(out, PONG, &payload[..payload.len().min(125)]);
}

/// The payload of a client's frame whose mask may be any, unmasked in place; `None` while the frame is cut.
pub fn unmask(input: &mut [u8]) -> Option<(u8, std::ops::Range<usize>)> {
    let frame = parse_header(input)?;
    let from = frame.header_bytes + 4;
    let mask: [u8; 4] = input.get(frame.header_bytes..from)?.try_into().ok()?;
    let range = from..from + frame.payload_bytes;
    let payload = input.get_mut(range.clone())?;
    if mask != [0; 4] {
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    }
    Some((frame.opcode, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        for bytes in [0, 1, 125, 126, 128, 65_535, 65_536] {
            let mut wire = Vec::new();
            write_frame(&mut wire, TEXT, &vec![b'x'; bytes]);
            let frame = parse_header(&wire).expect("whole");
            assert_eq!((frame.opcode, frame.payload_bytes), (TEXT, bytes));
            assert_eq!(frame.header_bytes + bytes, wire.len());
            for cut in 0..frame.header_bytes {
                assert!(parse_header(&wire[..cut]).is_none(), "{bytes} bytes cut at {cut}");
            }
        }
    }

    #[test]
    fn client_frames_come_back() {
        for bytes in [0, 5, 126, 70_000] {
            let mut wire = b"before".to_vec();
            write_client_frame(&mut wire, TEXT, &vec![b'x'; bytes]);
            let (opcode, range) = unmask(&mut wire[6..]).expect("whole");
            assert_eq!((opcode, range.len()), (TEXT, bytes));
            assert!(wire[6..][range].iter().all(|&byte| byte == b'x'));
        }
        // RFC 6455 section 5.7.
        let mut hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(unmask(&mut hello[..10].to_vec()), None);
        let (_, range) = unmask(&mut hello).expect("whole");
        assert_eq!(&hello[range], b"Hello");
    }
}
