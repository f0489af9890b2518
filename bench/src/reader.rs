//! One reader of one channel: bytes in; counts, and the bytes that it answers. Never touches its socket.
//!
//! Nothing is allocated for a message that arrives whole, and a waiting reader is 48 bytes.

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

use memchr::memmem;

use crate::board::{Board, Tally};
use crate::count::{Count, Seen};
use crate::message;
use crate::script::Script;
use crate::tls::Tls;
use crate::transport::{self, Item, Transport};
use crate::{http, net, ws};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing sent yet.
    Connecting,
    /// TLS is being agreed on.
    Shaking,
    /// The request is sent, its head not yet answered.
    Head,
    /// The head has come, the subscription not yet.
    Opening,
    Live,
    /// A short poller between two rounds.
    Resting,
}

pub struct Reader {
    pub socket: OwnedFd,
    count: Count,
    /// When `connect` was called: microseconds of `net::now_ns`, which wrap after 71 minutes.
    began_us: u32,
    pub state: State,
    /// Does not read for now.
    pub stalled: bool,
    /// The server has said goodbye.
    pub told: bool,
    /// When it wants this reader back, if it said so.
    pub away_ms: Option<NonZeroU32>,
    /// The front of an item that was cut; few readers have one.
    #[expect(clippy::box_collection, reason = "8 bytes instead of 24 for each of a million readers")]
    cut: Option<Box<Vec<u8>>>,
    /// What a short poller asks again.
    #[expect(clippy::box_collection, reason = "as above")]
    again: Option<Box<Vec<u8>>>,
    pub tls: Option<Box<Tls>>,
}

/// What all readers of a thread use while they look at what came.
pub struct Desk<'a> {
    pub script: &'a Script,
    pub board: &'a Board,
    /// Short pollers ask again at once.
    pub polling: bool,
    /// What was published before was given up (`net::now_ns`).
    pub given_up_ns: u64,
    pub message_bytes: usize,
    pub channel: [u8; 8],
    /// What is to be sent back.
    pub out: &'a mut Vec<u8>,
    pub tally: &'a mut Tally,
}

/// The reader is over.
#[derive(Debug, PartialEq, Eq)]
pub enum Over {
    /// The server said goodbye.
    Goodbye,
    /// It said something that no reader understands.
    Refused,
}

impl Reader {
    pub fn new(socket: OwnedFd, count: Count) -> Self {
        Self {
            socket,
            count,
            began_us: now_us(),
            state: State::Connecting,
            stalled: false,
            told: false,
            away_ms: None,
            cut: None,
            again: None,
            tls: None,
        }
    }

    /// Makes of what is to be said what goes out.
    pub fn seal(&mut self, out: &mut Vec<u8>) -> anyhow::Result<()> {
        self.tls.as_mut().map_or(Ok(()), |tls| tls.seal(out))
    }

    /// Goes on as another connection of the same reader.
    pub fn count(&self) -> Count {
        self.count
    }

    /// Counts what an earlier try has waited already.
    pub fn set_began(&mut self, began_us: u32) {
        self.began_us = began_us;
    }

    pub fn began(&self) -> u32 {
        self.began_us
    }

    pub fn waited_ns(&self) -> u64 {
        u64::from(now_us().wrapping_sub(self.began_us)) * 1_000
    }

    /// Puts what was cut before at the front of `scratch`.
    pub fn take_cut(&mut self, scratch: &mut [u8]) -> usize {
        self.cut.take().map_or(0, |cut| {
            scratch[..cut.len()].copy_from_slice(&cut);
            cut.len()
        })
    }

    pub fn keep_cut(&mut self, rest: &[u8]) {
        self.cut = if rest.is_empty() { None } else { Some(Box::new(rest.to_vec())) };
    }

    /// What a resting short poller asks.
    pub fn ask_again(&mut self, out: &mut Vec<u8>) {
        if self.state == State::Resting
            && let Some(again) = &self.again
        {
            out.extend_from_slice(again);
            self.state = State::Live;
        }
    }

    /// Reads all items in `input`; returns how many messages came that had not come before.
    pub fn on_bytes(&mut self, input: &[u8], desk: &mut Desk<'_>) -> Result<u64, Over> {
        let mut at = 0;
        if self.state == State::Head && desk.script.transport.is_polling() {
            self.state = State::Opening;
        }
        if self.state == State::Head {
            let Some(end) = http::head_end(input) else {
                self.keep_cut(input);
                return Ok(0);
            };
            if http::status(&input[..end]) != Some(desk.script.status()) {
                return Err(Over::Refused);
            }
            desk.script.write_hello(desk.out, &desk.channel);
            self.state = if desk.script.ready.is_none() { State::Live } else { State::Opening };
            at = end;
        }
        let now_ns = net::now_ns();
        let (mut delivered, before) = (0, desk.tally.delivered);
        while let Some((item, used)) = desk.script.transport.parse(&input[at..]) {
            match item {
                Item::Piece(piece) => delivered += self.on_piece(piece, now_ns, desk),
                Item::Answer { head, body } => delivered += self.on_answer(head, body, now_ns, desk)?,
                Item::Ping(payload) => {
                    desk.tally.heartbeats += 1;
                    ws::write_pong(desk.out, payload);
                }
                Item::Goodbye => {
                    self.told = true;
                    self.away_ms = transport::away_ms(&input[at..at + used]).or(self.away_ms);
                    return Err(Over::Goodbye);
                }
            }
            at += used;
        }
        desk.tally.reads += u64::from(desk.tally.delivered > before);
        self.keep_cut(&input[at..]);
        Ok(delivered)
    }

    fn on_piece(&mut self, piece: &[u8], now_ns: u64, desk: &mut Desk<'_>) -> u64 {
        let before = desk.tally.delivered;
        let delivered = self.note_all(piece, now_ns, desk);
        if desk.tally.delivered > before {
            return delivered;
        }
        desk.tally.gaps += u64::from(transport::tells_gap(piece));
        self.away_ms = transport::away_ms(piece).or(self.away_ms);
        // An SSE comment.
        desk.tally.heartbeats += u64::from(piece.first() == Some(&b':'));
        let ready = desk.script.ready.as_ref().is_some_and(|sign| memmem::find(piece, sign).is_some());
        if ready && self.state == State::Opening {
            self.state = State::Live;
        }
        0
    }

    fn on_answer(&mut self, head: &[u8], body: &[u8], now_ns: u64, desk: &mut Desk<'_>) -> Result<u64, Over> {
        if http::field(head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.told = true;
            return Err(Over::Goodbye);
        }
        desk.tally.answers += 1;
        let status = http::status(head);
        if desk.script.transport == Transport::Short {
            return self.on_short_answer(status, head, body, now_ns, desk);
        }
        if !matches!(status, Some(200 | 204 | 304)) {
            return Err(Over::Refused);
        }
        desk.tally.gaps += u64::from(transport::tells_gap(body));
        let delivered = self.note_all(body, now_ns, desk);
        let cursor = http::field(head, "pushline-cursor").map(str::as_bytes);
        let cursor = cursor.or_else(|| transport::cursor_in(body)).unwrap_or_default();
        desk.script.write_next(desk.out, &desk.channel, head, cursor);
        self.state = State::Live;
        Ok(delivered)
    }

    fn on_short_answer(
        &mut self,
        status: Option<u16>,
        head: &[u8],
        body: &[u8],
        now_ns: u64,
        desk: &mut Desk<'_>,
    ) -> Result<u64, Over> {
        let mut delivered = 0;
        match status {
            Some(304) => desk.tally.unchanged += 1,
            Some(200) => {
                if self.state == State::Opening {
                    // What was published before is no delivery.
                    if let Some(last) = message::all_in(body).last() {
                        self.count = Count::after(last.number);
                        desk.board.note_held(desk.channel, last.number);
                    }
                } else {
                    delivered = self.note_all(body, now_ns, desk);
                }
                let mut again = Vec::new();
                desk.script.write_again(&mut again, &desk.channel, head);
                self.again = Some(Box::new(again));
            }
            _ => return Err(Over::Refused),
        }
        if self.state == State::Opening || !desk.polling {
            self.state = State::Resting;
        } else if let Some(again) = &self.again {
            desk.out.extend_from_slice(again);
        }
        Ok(delivered)
    }

    /// Returns how many had not come before; on short polls with those that they stand for.
    fn note_all(&mut self, piece: &[u8], now_ns: u64, desk: &mut Desk<'_>) -> u64 {
        let Desk { tally, given_up_ns, message_bytes, script, .. } = desk;
        let newest_alone = script.transport == Transport::Short;
        let (mut all, mut first) = (0, 0);
        for (stamp, rest) in message::with_rest(piece) {
            tally.damaged += u64::from(!message::ends_right(rest, *message_bytes));
            let seen = self.count.note(stamp.number);
            if stamp.at_ns < *given_up_ns && seen != Seen::Repeated {
                tally.stragglers += 1;
                tally.late += u64::from(seen == Seen::Late);
                continue;
            }
            all += 1;
            first += 1;
            match seen {
                Seen::InOrder => {}
                Seen::Jumped(jumped) if newest_alone => {
                    tally.superseded += u64::from(jumped);
                    first += u64::from(jumped);
                }
                Seen::Jumped(jumped) => tally.jumped += u64::from(jumped),
                Seen::Late if newest_alone => {
                    // Stood for by a later one that came before it.
                    tally.late += 1;
                    tally.superseded = tally.superseded.saturating_sub(1);
                    first -= 1;
                }
                Seen::Late => {
                    tally.late += 1;
                    tally.jumped = tally.jumped.saturating_sub(1);
                }
                Seen::Repeated => {
                    tally.repeated += 1;
                    first -= 1;
                }
            }
            tally.latency.saturating_record(now_ns.saturating_sub(stamp.at_ns));
        }
        tally.delivered += all;
        first
    }
}

fn now_us() -> u32 {
    (net::now_ns() / 1_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Api;
    use crate::message::Stamp;

    /// Feeds `wire` in two reads, cut at `cut`, as the swarm does.
    fn read(transport: Transport, wire: &[u8], cut: usize) -> (Result<u64, Over>, Tally, Vec<u8>, State) {
        read_after(0, transport, wire, cut)
    }

    const MESSAGE_BYTES: usize = 64;

    fn read_after(
        given_up_ns: u64,
        transport: Transport,
        wire: &[u8],
        cut: usize,
    ) -> (Result<u64, Over>, Tally, Vec<u8>, State) {
        let board = Board::new(1).expect("a board");
        let script = Script::new(&Api::pushline(), transport, "h").expect("a script");
        let (mut tally, mut out, mut delivered) = (Tally::default(), Vec::new(), Ok(0));
        let socket = net::event_fd().expect("a descriptor");
        let mut reader = Reader::new(socket, Count::default());
        reader.state = State::Head;
        let mut scratch = vec![0; 1 << 17];
        for part in [&wire[..cut], &wire[cut..]] {
            let before = reader.take_cut(&mut scratch);
            scratch[before..before + part.len()].copy_from_slice(part);
            let mut desk = Desk {
                script: &script,
                board: &board,
                polling: true,
                given_up_ns,
                message_bytes: MESSAGE_BYTES,
                channel: *b"c0000000",
                out: &mut out,
                tally: &mut tally,
            };
            match (reader.on_bytes(&scratch[..before + part.len()], &mut desk), &mut delivered) {
                (Ok(more), Ok(sum)) => *sum += more,
                (Err(over), _) => return (Err(over), tally, out, reader.state),
                (_, Err(_)) => {}
            }
        }
        (delivered, tally, out, reader.state)
    }

    fn text(number: u32) -> Vec<u8> {
        let mut text = Vec::new();
        message::write(&mut text, Stamp { number, at_ns: 1 }, MESSAGE_BYTES);
        text
    }

    fn raw(numbers: &[u32]) -> Vec<u8> {
        let mut wire = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        numbers.iter().for_each(|&number| ws::write_frame(&mut wire, ws::TEXT, &text(number)));
        wire
    }

    #[test]
    fn streams_cut_at_every_byte_count_the_same() {
        let mut ws_wire = raw(&[1, 2]);
        ws::write_frame(&mut ws_wire, ws::PING, b"x");
        ws::write_frame(&mut ws_wire, ws::TEXT, &text(3));
        let mut sse = b"HTTP/1.1 200 OK\r\n\r\nretry: 9\n\nevent: $open\ndata: {}\nid: a\n\n:\n".to_vec();
        (1..4).for_each(|number| sse.extend([b"data: ", &text(number)[..], b"\nid: b\n\n"].concat()));
        let answer = |body: &[u8]| {
            [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
        };
        let mut polled = answer(b"{\"messages\":[],\"cursor\":\"a-0\"}");
        for number in 1..4 {
            polled.extend(answer(&[b"[\"", &text(number)[..], b"\"],\"cursor\":\"a-1\""].concat()));
        }
        for (name, transport, wire) in
            [("ws", Transport::Ws, ws_wire), ("sse", Transport::Sse, sse), ("poll", Transport::Poll, polled)]
        {
            let whole = read(transport, &wire, wire.len());
            for cut in 0..wire.len() {
                let (delivered, tally, out, state) = read(transport, &wire, cut);
                assert_eq!((delivered, state), (Ok(3), State::Live), "{name} cut at {cut}");
                assert_eq!(tally.jumped + tally.repeated + tally.late, 0, "{name} cut at {cut}");
                assert_eq!(tally.heartbeats, u64::from(transport != Transport::Poll), "{name} cut at {cut}");
                assert_eq!(out, whole.2, "{name} cut at {cut}");
            }
        }
    }

    #[test]
    fn losses_and_repetitions_are_noticed() {
        for (name, numbers, jumped, repeated, late) in [
            ("all in order", &[1, 2, 3][..], 0, 0, 0),
            ("one is lost", &[1, 3], 1, 0, 0),
            ("one is repeated", &[1, 1, 2], 0, 1, 0),
            ("two change places", &[2, 1, 3], 0, 0, 1),
        ] {
            let wire = raw(numbers);
            let (delivered, tally, ..) = read(Transport::Ws, &wire, wire.len());
            assert_eq!(delivered, Ok(numbers.len() as u64 - repeated), "{name}");
            assert_eq!(tally.delivered, numbers.len() as u64, "{name}");
            assert_eq!((tally.jumped, tally.repeated, tally.late), (jumped, repeated, late), "{name}");
        }
    }

    #[test]
    fn a_goodbye_is_told_from_a_refusal() {
        let mut wire = raw(&[1]);
        ws::write_frame(&mut wire, ws::CLOSE, b"\x03\xf4");
        assert_eq!(read(Transport::Ws, &wire, 0).0, Err(Over::Goodbye));
        assert_eq!(read(Transport::Ws, b"HTTP/1.1 503 Full\r\n\r\n", 0).0, Err(Over::Refused));
    }

    /// It was told as lost by an order that is over: it must not stand for one that this order is to bring.
    #[test]
    fn a_straggler_is_no_delivery() {
        let wire = raw(&[1, 2]);
        let (delivered, tally, ..) = read_after(2, Transport::Ws, &wire, wire.len());
        assert_eq!((delivered, tally.delivered, tally.stragglers), (Ok(0), 0, 2));
        let (delivered, tally, ..) = read_after(1, Transport::Ws, &wire, wire.len());
        assert_eq!((delivered, tally.delivered, tally.stragglers), (Ok(2), 2, 0));
    }

    #[test]
    fn a_message_cut_short_is_noticed() {
        let mut wire = raw(&[1]);
        ws::write_frame(&mut wire, ws::TEXT, &text(2)[..40]);
        let (delivered, tally, ..) = read(Transport::Ws, &wire, wire.len());
        assert_eq!((delivered, tally.damaged), (Ok(2), 1));
    }

    /// Short polls promise the newest alone.
    #[test]
    fn a_newer_answer_stands_for_those_before() {
        let mut wire = Vec::new();
        for number in [3, 4, 9] {
            wire.extend(format!("HTTP/1.1 200 OK\r\nContent-Length: {MESSAGE_BYTES}\r\n\r\n").into_bytes());
            wire.extend(text(number));
        }
        // The first answer is what the channel held before.
        let (delivered, tally, ..) = read(Transport::Short, &wire, wire.len());
        assert_eq!((delivered, tally.delivered, tally.superseded, tally.jumped), (Ok(6), 2, 4, 0));
    }

    #[test]
    fn a_waiting_reader_is_small() {
        assert!(size_of::<Option<Reader>>() <= 48);
    }
}
