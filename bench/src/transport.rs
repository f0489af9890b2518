//! What a reader hears on each transport: the items of the stream that follows its request.
//! Pure: slices in, values out.

use std::num::NonZeroU32;

use clap::ValueEnum;
use memchr::{memchr, memmem};
use serde::{Deserialize, Serialize};

use crate::{http, ws};

/// How a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// WebSocket without Pushline's subprotocol: frames hold messages.
    Ws,
    /// WebSocket, `pushline.v1`: frames are JSON.
    V1,
    /// Server-Sent Events.
    Sse,
    /// Long polling: a request held until there is something after its cursor.
    #[value(alias = "longpoll")]
    Poll,
    /// Short polling with `If-None-Match`: the newest message, or 304.
    Short,
}

/// One thing that a server sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// Holds messages, signs, or nothing of interest.
    Piece(&'a [u8]),
    /// A whole answer to a poll.
    Answer { head: &'a [u8], body: &'a [u8] },
    /// To be answered with a pong.
    Ping(&'a [u8]),
    /// The server says goodbye, or refuses.
    Goodbye,
}

impl Transport {
    /// The name as results and options spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::V1 => "v1",
            Self::Sse => "sse",
            Self::Poll => "poll",
            Self::Short => "short",
        }
    }

    /// The name in `peer.json`.
    pub fn key(self) -> &'static str {
        if self == Self::Poll { "longpoll" } else { self.name() }
    }

    pub fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::V1)
    }

    pub fn is_polling(self) -> bool {
        matches!(self, Self::Poll | Self::Short)
    }

    /// Reads the item at the front of `input` and how many bytes it takes; `None` while it is cut.
    pub fn parse(self, input: &[u8]) -> Option<(Item<'_>, usize)> {
        match self {
            Self::Ws | Self::V1 => {
                let frame = ws::parse_header(input)?;
                let used = frame.header_bytes + frame.payload_bytes;
                let payload = input.get(frame.header_bytes..used)?;
                let item = match frame.opcode {
                    ws::PING => Item::Ping(payload),
                    ws::CLOSE => Item::Goodbye,
                    _ => Item::Piece(payload),
                };
                Some((item, used))
            }
            Self::Sse if matches!(input.first(), Some(b':' | b'\n')) => {
                // A comment is over with its line; no empty line need follow.
                let used = memchr(b'\n', input)? + 1;
                Some((Item::Piece(&input[..used]), used))
            }
            Self::Sse => {
                let used = memmem::find(input, b"\n\n")? + 2;
                let block = &input[..used];
                let goodbye = memmem::find(block, b"event: $close").is_some();
                Some((if goodbye { Item::Goodbye } else { Item::Piece(block) }, used))
            }
            Self::Poll | Self::Short => {
                let answer = http::parse_answer(input)?;
                let (head, body) = (&input[..answer.head_bytes], &input[answer.head_bytes..answer.used]);
                Some((Item::Answer { head, body }, answer.used))
            }
        }
    }
}

/// The server tells a gap: messages were lost to this reader, and it says so.
pub fn tells_gap(piece: &[u8]) -> bool {
    [&b"\"type\":\"gap\""[..], b"event: $gap", b"\"gap\":true"]
        .iter()
        .any(|sign| memmem::find(piece, sign).is_some())
}

/// When the server that says goodbye wants the reader back.
pub fn away_ms(piece: &[u8]) -> Option<NonZeroU32> {
    const KEY: &[u8] = b"\"reconnect_ms\":";
    let from = memmem::find(piece, KEY)? + KEY.len();
    let digits = piece[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&piece[from..from + digits]).ok()?.parse().ok()
}

/// The `cursor` in the body of a poll's answer: no message of ours has such a member.
pub fn cursor_in(body: &[u8]) -> Option<&[u8]> {
    let from = memmem::find(body, b"\"cursor\":\"")? + 10;
    let bytes = memchr(b'"', &body[from..])?;
    Some(&body[from..from + bytes])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{self, Stamp};

    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        ws::write_frame(&mut wire, opcode, payload);
        wire
    }

    #[test]
    fn items_cut_at_every_byte() {
        let mut data = Vec::new();
        message::write(&mut data, Stamp { number: 42, at_ns: 7 }, 128);
        let long = vec![b'.'; 70_000];
        let event = [b"data: ", &data[..], b"\nid: a-1\n\n"].concat();
        let answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 128\r\n\r\n", &data[..]].concat();
        let unchanged = b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n".to_vec();
        let close = b"event: $close\ndata: {}\n\n".to_vec();
        let body = |wire: &'static [u8]| Item::Answer { head: wire, body: b"" };
        for (name, transport, wire, item) in [
            ("raw", Transport::Ws, frame(ws::TEXT, &data), Item::Piece(&data)),
            ("a long frame", Transport::Ws, frame(ws::BINARY, &long), Item::Piece(&long)),
            ("ping", Transport::V1, frame(ws::PING, b"x"), Item::Ping(b"x")),
            ("close", Transport::V1, frame(ws::CLOSE, b"\x03\xf4"), Item::Goodbye),
            ("event", Transport::Sse, event.clone(), Item::Piece(&event)),
            ("goodbye", Transport::Sse, close, Item::Goodbye),
            ("comment", Transport::Sse, b":\n".to_vec(), Item::Piece(b":\n")),
            (
                "polled",
                Transport::Poll,
                answer.clone(),
                Item::Answer { head: &answer[..answer.len() - 128], body: &data },
            ),
            ("304", Transport::Short, unchanged, body(b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n")),
        ] {
            assert_eq!(transport.parse(&wire), Some((item, wire.len())), "{name}");
            for cut in 0..wire.len() {
                assert_eq!(transport.parse(&wire[..cut]), None, "{name} cut at {cut}");
            }
        }
    }

    #[test]
    fn goodbyes_say_when_to_come_back() {
        for (piece, ms) in [
            (&b"{\"type\":\"closing\",\"reason\":\"drain\",\"reconnect_ms\":1234}"[..], Some(1_234)),
            (b"event: $close\ndata: {\"reconnect_ms\":7,\"reason\":\"drain\"}\n\n", Some(7)),
            (b"event: $close\ndata: {}\n\n", None),
            (b"{\"reconnect_ms\":0}", None),
            (b"{\"reconnect_ms\":", None),
        ] {
            assert_eq!(away_ms(piece).map(NonZeroU32::get), ms);
        }
    }

    #[test]
    fn cursors_and_gaps() {
        assert_eq!(cursor_in(b"{\"messages\":[],\"cursor\":\"a-7\",\"gap\":false}"), Some(&b"a-7"[..]));
        for (piece, gap) in [
            (&b"{\"type\":\"gap\",\"channel\":\"c\"}"[..], true),
            (b"event: $gap\ndata: {}\n\n", true),
            (b"{\"messages\":[],\"gap\":true}", true),
            (b"{\"messages\":[],\"gap\":false}", false),
        ] {
            assert_eq!(tells_gap(piece), gap);
        }
    }
}
