//! WebSocket messages out of a byte stream (RFC 6455 §5.4 to §8.1): fragments put together, control frames in between,
//! limits, UTF-8. Whole frames are unmasked where they lie and handed on without a copy.
//! Owns what has begun and not ended, boxed: a connection that waits keeps one null pointer.

use super::close::{Close, parse_close};
use super::frame::{
    CONTROL_BYTES_MAX, FrameError, HEADER_BYTES_MAX, Header, Opcode, Parsed, parse_header, unmask,
};
use super::utf8::Utf8Check;

/// What came, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    /// To be answered by a pong with the same payload.
    Ping(&'a [u8]),
    Pong,
    /// The last event: nothing after it is read.
    Close(Close<'a>),
}

/// Whether the receiver of an event wants the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    Continue,
    /// Read no further in this input.
    Stop,
}

/// How far a feed came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// All input was taken; more may be fed.
    All,
    /// A receiver's [`Control::Stop`] ended it after `used` bytes; the rest of the input may be fed later.
    Stopped { used: usize },
    /// A close frame came. Feed no more.
    Closed,
}

/// A connection's place in its input. Nothing while it is between messages.
#[derive(Debug, Default)]
pub struct ReaderState(Option<Box<Partial>>);

/// What has begun and not ended.
#[derive(Debug, Default)]
struct Partial {
    within: Within,
    /// The data message under way, over all its fragments so far.
    message: Option<Message>,
    /// The payload so far of the control frame under way; 125 bytes at most.
    control: Vec<u8>,
    /// Frames and messages that have ended since this is kept, not counting control frames within a message.
    ended: u32,
}

/// Which part of a frame the input ended in.
#[derive(Debug)]
enum Within {
    /// The header, of which this much is there; nothing of it between two frames.
    Header {
        bytes: [u8; HEADER_BYTES_MAX],
        len: usize,
    },
    Payload(Frame),
}

/// A frame, and how much of its payload was taken.
#[derive(Debug, Clone, Copy)]
struct Frame {
    header: Header,
    taken_bytes: u64,
}

/// Grows only as bytes arrive, never to what a header claims.
#[derive(Debug)]
struct Message {
    kind: Kind,
    bytes: Vec<u8>,
}

/// Only text is checked.
#[derive(Debug)]
enum Kind {
    Text(Utf8Check),
    Binary,
}

impl Default for Within {
    fn default() -> Self {
        Self::Header { bytes: [0; HEADER_BYTES_MAX], len: 0 }
    }
}

impl ReaderState {
    /// Whether nothing has begun: a connection may wait so for as long as it lives; a begun frame has a deadline.
    pub const fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Tells what has begun and not ended from what had begun before: another value, another beginning. Control frames
    /// within a message are not told from it.
    pub fn begun(&self) -> Option<u32> {
        self.0.as_ref().map(|partial| partial.ended)
    }

    /// Memory held beside the state itself.
    pub fn kept_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |partial| {
            let message = partial.message.as_ref().map_or(0, |message| message.bytes.capacity());
            size_of::<Partial>() + partial.control.capacity() + message
        })
    }

    /// Takes the next bytes of the stream, and gives the events that they complete, in order.
    ///
    /// # Errors
    /// [`FrameError`], as early as a byte makes it certain. Send its close code, then close; feed no more.
    pub fn feed(
        &mut self,
        input: &mut [u8],
        message_bytes_max: u64,
        sink: &mut impl FnMut(Event<'_>) -> Control,
    ) -> Result<Fed, FrameError> {
        let input_bytes = input.len();
        let mut rest = input;
        // On errors and a close, what had begun is dropped with this.
        let mut partial = self.0.take();
        loop {
            let Some(mut frame) = next_frame(&mut partial, &mut rest, message_bytes_max)? else {
                self.0 = partial.filter(|partial| !partial.is_over());
                return Ok(Fed::All);
            };
            let missing_bytes = frame.header.payload_bytes - frame.taken_bytes;
            let chunk = take_front(&mut rest, missing_bytes);
            unmask(chunk, frame.header.mask, frame.taken_bytes);
            if (chunk.len() as u64) < missing_bytes {
                let mut kept = partial.unwrap_or_default();
                kept.keep(&frame.header, chunk)?;
                frame.taken_bytes += chunk.len() as u64;
                kept.within = Within::Payload(frame);
                self.0 = Some(kept);
                return Ok(Fed::All);
            }
            match end_frame(&mut partial, &frame, chunk, sink)? {
                Ended::Next => {}
                Ended::Close => return Ok(Fed::Closed),
                Ended::Stop => {
                    self.0 = partial.filter(|partial| !partial.is_over());
                    return Ok(Fed::Stopped { used: input_bytes - rest.len() });
                }
            }
        }
    }
}

impl Partial {
    /// Between two frames, and no message under way.
    fn is_over(&self) -> bool {
        matches!(self.within, Within::Header { len: 0, .. }) && self.message.is_none()
    }

    /// Takes more payload of the frame under way.
    fn keep(&mut self, header: &Header, chunk: &[u8]) -> Result<(), FrameError> {
        let kind = match header.opcode {
            Opcode::Text => Kind::Text(Utf8Check::default()),
            // Continuations only come when there is a message: its kind is kept.
            Opcode::Binary | Opcode::Continuation => Kind::Binary,
            Opcode::Close | Opcode::Ping | Opcode::Pong => {
                assert!(self.control.len() + chunk.len() <= CONTROL_BYTES_MAX);
                self.control.extend_from_slice(chunk);
                return Ok(());
            }
        };
        let message = self.message.get_or_insert(Message { kind, bytes: Vec::new() });
        if let Kind::Text(check) = &mut message.kind {
            check.feed(chunk).map_err(|_| FrameError::NotUtf8)?;
        }
        message.bytes.extend_from_slice(chunk);
        Ok(())
    }
}

/// The frame under way, or the next one if its header is there; `None` when the input ended first.
fn next_frame(
    partial: &mut Option<Box<Partial>>,
    rest: &mut &mut [u8],
    message_bytes_max: u64,
) -> Result<Option<Frame>, FrameError> {
    let (mut bytes, len) = match partial.as_mut().map(|partial| std::mem::take(&mut partial.within)) {
        Some(Within::Payload(frame)) => return Ok(Some(frame)),
        Some(Within::Header { bytes, len }) => (bytes, len),
        None => ([0; HEADER_BYTES_MAX], 0),
    };
    if len == 0 && rest.is_empty() {
        return Ok(None);
    }
    let message = partial.as_ref().and_then(|partial| partial.message.as_ref());
    let room_bytes =
        message_bytes_max.saturating_sub(message.map_or(0, |message| message.bytes.len() as u64));
    let parsed = if len == 0 {
        parse_header(rest, room_bytes)?
    } else {
        let (place, added) = (bytes.get_mut(len..).unwrap_or_default(), rest.len());
        for (byte, new) in place.iter_mut().zip(rest.iter()) {
            *byte = *new;
        }
        parse_header(bytes.get(..len + added).unwrap_or(&bytes), room_bytes)?
    };
    match parsed {
        Parsed::Done { value: header, used } => {
            check_order(&header, message.is_some())?;
            take_front(rest, (used - len) as u64);
            Ok(Some(Frame { header, taken_bytes: 0 }))
        }
        Parsed::Partial { .. } => {
            // Shorter than a header, or it would have been one.
            let new = std::mem::take(rest);
            if len == 0 {
                for (byte, new) in bytes.iter_mut().zip(new.iter()) {
                    *byte = *new;
                }
            }
            partial.get_or_insert_default().within = Within::Header { bytes, len: len + new.len() };
            Ok(None)
        }
    }
}

/// Fragments of one message follow each other; only control frames may stand between them (§5.4).
const fn check_order(header: &Header, message_under_way: bool) -> Result<(), FrameError> {
    match (header.opcode, message_under_way) {
        (Opcode::Continuation, false) => Err(FrameError::NothingToContinue),
        (Opcode::Text | Opcode::Binary, true) => Err(FrameError::MessageInMessage),
        (Opcode::Continuation, true)
        | (Opcode::Text | Opcode::Binary, false)
        | (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => Ok(()),
    }
}

/// What the end of a frame means for the feed.
enum Ended {
    Next,
    Stop,
    Close,
}

/// A frame's last bytes are `chunk`: hands on what it completes.
fn end_frame(
    partial: &mut Option<Box<Partial>>,
    frame: &Frame,
    chunk: &[u8],
    sink: &mut impl FnMut(Event<'_>) -> Control,
) -> Result<Ended, FrameError> {
    let Frame { header, taken_bytes } = *frame;
    let control = match header.opcode {
        Opcode::Close | Opcode::Ping | Opcode::Pong => end_control(partial, frame, chunk, sink)?,
        Opcode::Text if header.fin && taken_bytes == 0 && is_first(partial) => {
            match std::str::from_utf8(chunk) {
                Ok(text) => sink(Event::Text(text)),
                Err(_) => return Err(FrameError::NotUtf8),
            }
        }
        Opcode::Binary if header.fin && taken_bytes == 0 && is_first(partial) => sink(Event::Binary(chunk)),
        Opcode::Text | Opcode::Binary | Opcode::Continuation => {
            let kept = partial.get_or_insert_default();
            kept.keep(&header, chunk)?;
            if !header.fin {
                return Ok(Ended::Next);
            }
            match kept.message.take() {
                Some(message) => end_message(message, sink)?,
                None => return Ok(Ended::Next),
            }
        }
    };
    if let Some(partial) = partial
        && partial.message.is_none()
    {
        partial.ended = partial.ended.wrapping_add(1);
    }
    Ok(match (header.opcode, control) {
        (Opcode::Close, _) => Ended::Close,
        (_, Control::Continue) => Ended::Next,
        (_, Control::Stop) => Ended::Stop,
    })
}

/// Whether a frame is the first of its message.
fn is_first(partial: &Option<Box<Partial>>) -> bool {
    partial.as_ref().is_none_or(|partial| partial.message.is_none())
}

fn end_control(
    partial: &mut Option<Box<Partial>>,
    frame: &Frame,
    chunk: &[u8],
    sink: &mut impl FnMut(Event<'_>) -> Control,
) -> Result<Control, FrameError> {
    let kept;
    let payload = match partial {
        Some(partial) if frame.taken_bytes > 0 => {
            partial.keep(&frame.header, chunk)?;
            kept = std::mem::take(&mut partial.control);
            &kept
        }
        Some(_) | None => chunk,
    };
    Ok(match frame.header.opcode {
        Opcode::Close => sink(Event::Close(parse_close(payload)?)),
        Opcode::Ping => sink(Event::Ping(payload)),
        Opcode::Pong | Opcode::Continuation | Opcode::Text | Opcode::Binary => sink(Event::Pong),
    })
}

fn end_message(message: Message, sink: &mut impl FnMut(Event<'_>) -> Control) -> Result<Control, FrameError> {
    match message.kind {
        Kind::Binary => Ok(sink(Event::Binary(&message.bytes))),
        // The check before has found errors early; this makes a `str` of it, at memory speed.
        Kind::Text(_) => match std::str::from_utf8(&message.bytes) {
            Ok(text) => Ok(sink(Event::Text(text))),
            Err(_) => Err(FrameError::NotUtf8),
        },
    }
}

/// Cuts at most `bytes` off the front.
fn take_front<'a>(rest: &mut &'a mut [u8], bytes: u64) -> &'a mut [u8] {
    let cut = usize::try_from(bytes).map_or(rest.len(), |bytes| bytes.min(rest.len()));
    let (front, tail) = std::mem::take(rest).split_at_mut(cut);
    *rest = tail;
    front
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u64 = 1000;

    /// A client's frame: its first byte, its payload.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x5a, 0x00, 0xff, 0x13];
        let mut wire = vec![first];
        match payload.len() {
            short @ 0..=125 => wire.push(0x80 | short as u8),
            long => wire.extend([0xfe, (long >> 8) as u8, long as u8]),
        }
        wire.extend(mask);
        let start = wire.len();
        wire.extend(payload);
        unmask(&mut wire[start..], mask, 0);
        wire
    }

    fn frames(all: &[(u8, &[u8])]) -> Vec<u8> {
        all.iter().flat_map(|(first, payload)| frame(*first, payload)).collect()
    }

    /// Everything told, to the end of the input or of the reading.
    fn read(pieces: &[&[u8]]) -> (Vec<String>, ReaderState) {
        let (mut told, mut state) = (Vec::new(), ReaderState::default());
        for piece in pieces {
            let fed = state.feed(&mut piece.to_vec(), LIMIT, &mut |event| {
                told.push(format!("{event:?}"));
                Control::Continue
            });
            match fed {
                Ok(Fed::All) => {}
                Ok(Fed::Closed) => break,
                Ok(Fed::Stopped { .. }) => panic!("nobody stopped it"),
                Err(error) => {
                    told.push(error.close_code().to_string());
                    break;
                }
            }
        }
        (told, state)
    }

    fn read_every_way(wire: &[u8]) -> Vec<String> {
        let (whole, _) = read(&[wire]);
        for cut in 0..=wire.len() {
            let (head, tail) = wire.split_at(cut);
            assert_eq!(read(&[head, tail]).0, whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = wire.chunks(1).collect();
        assert_eq!(read(&bytes).0, whole, "byte by byte");
        whole
    }

    #[test]
    fn streams() {
        let text = |text: &str| format!("{:?}", Event::Text(text));
        let binary = |bytes: &[u8]| format!("{:?}", Event::Binary(bytes));
        let ping = |bytes: &[u8]| format!("{:?}", Event::Ping(bytes));
        let pong = || "Pong".to_owned();
        let close = |code, reason| format!("{:?}", Event::Close(Close { code, reason }));
        let refused = |code: u16| code.to_string();
        let big = vec![b'a'; 1000];
        let fragments = |n: usize| [vec![(0x02, &big[..n])], vec![(0x80, &big[..400])]].concat();
        for (name, wire, want) in [
            ("text", frames(&[(0x81, b"hi")]), vec![text("hi")]),
            ("empty text", frames(&[(0x81, b"")]), vec![text("")]),
            ("binary", frames(&[(0x82, &[0, 255])]), vec![binary(&[0, 255])]),
            (
                "several",
                frames(&[(0x81, b"a"), (0x82, b"b"), (0x8a, b"x")]),
                vec![text("a"), binary(b"b"), pong()],
            ),
            ("the limit", frames(&[(0x82, &big)]), vec![binary(&big)]),
            ("fragments", frames(&[(0x01, b"a"), (0x00, b"b"), (0x80, b"c")]), vec![text("abc")]),
            ("empty fragments", frames(&[(0x01, b""), (0x00, b""), (0x80, b"")]), vec![text("")]),
            (
                "control frames in between",
                frames(&[(0x02, b"a"), (0x89, b"p"), (0x00, b"b"), (0x8a, b""), (0x80, b""), (0x89, b"")]),
                vec![ping(b"p"), pong(), binary(b"ab"), ping(b"")],
            ),
            ("a character over fragments", frames(&[(0x01, b"\xe2\x82"), (0x80, b"\xac")]), vec![text("€")]),
            ("longest ping", frames(&[(0x89, &big[..125])]), vec![ping(&big[..125])]),
            ("fragments to the limit", frames(&fragments(600)), vec![binary(&big)]),
            ("fragments beyond it", frames(&fragments(601)), vec![refused(1009)]),
            ("close", frames(&[(0x88, b"")]), vec![close(None, "")]),
            (
                "nothing after a close",
                frames(&[(0x88, b"\x03\xe8bye"), (0x81, b"x")]),
                vec![close(Some(1000), "bye")],
            ),
            (
                "close inside a message",
                frames(&[(0x01, b"a"), (0x88, b"\x0f\xa0")]),
                vec![close(Some(4000), "")],
            ),
            ("half a close code", frames(&[(0x88, b"\x03")]), vec![refused(1002)]),
            ("close code 1005", frames(&[(0x88, b"\x03\xed")]), vec![refused(1002)]),
            ("close reason not UTF-8", frames(&[(0x88, b"\x03\xe8\xff")]), vec![refused(1007)]),
            ("nothing to continue", frames(&[(0x80, b"a")]), vec![refused(1002)]),
            (
                "nothing left to continue",
                frames(&[(0x81, b"a"), (0x80, b"")]),
                vec![text("a"), refused(1002)],
            ),
            ("a message inside another", frames(&[(0x01, b"a"), (0x81, b"b")]), vec![refused(1002)]),
            ("text not UTF-8", frames(&[(0x81, b"\xff")]), vec![refused(1007)]),
            ("a character cut by the end", frames(&[(0x01, b"\xe2"), (0x80, b"\x82")]), vec![refused(1007)]),
            ("binary needs no UTF-8", frames(&[(0x02, b"\xff"), (0x80, b"\xc0")]), vec![binary(b"\xff\xc0")]),
            (
                "events before an error stand",
                [frames(&[(0x81, b"a")]), vec![0xff]].concat(),
                vec![text("a"), refused(1002)],
            ),
        ] {
            assert_eq!(read_every_way(&wire), want, "{name}");
        }
    }

    #[test]
    fn errors_come_early() {
        let wire = frames(&[(0x01, b"ab\xf4\x90\x80\x80 and so on"), (0x80, b"more")]);
        assert_eq!(read(&[&wire[..9]]).0, [""; 0]);
        assert_eq!(read(&[&wire[..10]]).0, ["1007"], "at the first impossible byte");
        assert_eq!(read(&[&[0x82, 0xfe, 0x03, 0xe9]]).0, ["1009"], "before mask and payload");
    }

    #[test]
    fn a_waiting_connection_keeps_nothing() {
        assert_eq!(size_of::<ReaderState>(), 8);
        let wire = frames(&[(0x01, b"a"), (0x89, b"ping"), (0x80, b"b"), (0x82, b"c"), (0x8a, b"")]);
        let bytes: Vec<&[u8]> = wire.chunks(1).collect();
        for pieces in [&[&wire[..]][..], &bytes] {
            let (told, state) = read(pieces);
            assert_eq!(told.len(), 4);
            assert!(state.is_idle());
            assert_eq!(state.kept_bytes(), 0);
        }
        let (_, state) = read(&[&wire, &[0x81]]);
        assert!(!state.is_idle());
    }

    #[test]
    fn a_header_claims_no_memory() {
        let wire = frame(0x82, &[0; 1000]);
        let (_, state) = read(&[&wire[..10]]);
        assert!(state.kept_bytes() < 256, "{}", state.kept_bytes());
    }

    #[test]
    fn empty_fragments_do_not_pile_up() {
        let wire = [frame(0x01, b""), frame(0x00, b"").repeat(10_000)].concat();
        let (told, state) = read(&[&wire[..]; 1]);
        assert!(told.is_empty());
        let before = state.kept_bytes();
        let more = frame(0x00, b"").repeat(100_000);
        let (_, state) = read(&[&wire, &more]);
        assert_eq!(state.kept_bytes(), before);
    }

    #[test]
    fn a_stop_leaves_the_rest() {
        let (first, second) = (frame(0x81, b"a"), frame(0x81, b"b"));
        let mut wire = [&first[..], &second].concat();
        let (mut state, mut told) = (ReaderState::default(), 0);
        let fed = state.feed(&mut wire, LIMIT, &mut |_| {
            told += 1;
            Control::Stop
        });
        assert_eq!(fed, Ok(Fed::Stopped { used: first.len() }));
        assert_eq!(wire[first.len()..], second, "untouched");
        assert_eq!(told, 1);
    }

    proptest! {
        #[test]
        fn every_cut_tells_the_same(
            sent in proptest::collection::vec(
                (
                    prop_oneof![Just(0x01u8), Just(0x02), Just(0x00), Just(0x80), Just(0x81), Just(0x82), 0x88..=0x8au8],
                    prop_oneof![
                        "(?s).{0,12}".prop_map(String::into_bytes),
                        proptest::collection::vec(any::<u8>(), 0..6),
                        (120usize..130).prop_map(|n| vec![b'x'; n]),
                    ],
                ),
                0..6,
            ),
            noise in proptest::collection::vec(any::<u8>(), 0..4),
        ) {
            let wire: Vec<u8> = sent.iter().flat_map(|(first, payload)| frame(*first, payload)).chain(noise).collect();
            read_every_way(&wire);
        }

        #[test]
        fn no_bytes_panic(wire in proptest::collection::vec(any::<u8>(), 0..40)) {
            read_every_way(&wire);
        }
    }
}
