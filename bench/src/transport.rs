//! What a reader says and hears on each transport: its request, and the items of the stream that follows.
//! Pure: slices in, values out.

use clap::ValueEnum;
use memchr::{memchr, memmem};
use serde::{Deserialize, Serialize};

use crate::{http, ws};

/// How a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// WebSocket without a subprotocol: frames are messages.
    Ws,
    /// WebSocket, `pushline.v1`: frames are JSON.
    V1,
    /// Server-Sent Events.
    Sse,
    /// Long polling: a request held until there is something after its cursor.
    Poll,
}

/// One thing that a server sent after its head.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// The reader is subscribed: what is published from now on reaches it.
    Opened,
    /// A message of ours, by its number.
    Message(u32),
    /// A whole answer to a poll: the cursor for the next one, and a body with any number of messages.
    Polled { cursor: &'a str, body: &'a [u8] },
    /// To be answered with a pong.
    Ping(&'a [u8]),
    /// The server says that messages were lost.
    Gap,
    /// The server says goodbye, or refuses.
    Closed,
    /// A heartbeat, a greeting: nothing to do.
    Other,
}

/// A message's data is this sign, ten digits, and filling. The sign stands in no id and no channel name.
const SIGN: u8 = b'#';
const DIGITS: usize = 10;
/// The least that carries a number.
pub const MESSAGE_BYTES_MIN: usize = 1 + DIGITS;

/// Appends the data of message `number`, `bytes` long.
pub fn write_numbered(out: &mut Vec<u8>, number: u32, bytes: usize) {
    out.extend_from_slice(format!("#{number:010}").as_bytes());
    out.resize(out.len() + bytes.saturating_sub(MESSAGE_BYTES_MIN), b'.');
}

fn number_in(text: &[u8]) -> Option<u32> {
    let at = memchr(SIGN, text)? + 1;
    let digits = text.get(at..at + DIGITS)?;
    digits.iter().try_fold(0u32, |sum, &digit| {
        let value = digit.wrapping_sub(b'0');
        if value > 9 { None } else { sum.checked_mul(10)?.checked_add(u32::from(value)) }
    })
}

impl Transport {
    /// The name as results and options spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::V1 => "v1",
            Self::Sse => "sse",
            Self::Poll => "poll",
        }
    }

    pub fn request(self, host: &str, path: &str) -> Vec<u8> {
        let key = format!("Sec-WebSocket-Key: {}", ws::KEY);
        let upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", &key];
        match self {
            Self::Ws => http::get(host, path, &upgrade),
            Self::V1 => {
                http::get(host, path, &[&upgrade[..], &["Sec-WebSocket-Protocol: pushline.v1"]].concat())
            }
            Self::Sse => http::get(host, path, &["Accept: text/event-stream"]),
            // The cursor alone, from which the held polls go on.
            Self::Poll => http::get(host, &format!("{path}?limit=0"), &[]),
        }
    }

    /// The status of the head that begins the stream.
    pub fn status(self) -> u16 {
        match self {
            Self::Ws | Self::V1 => 101,
            Self::Sse | Self::Poll => 200,
        }
    }

    /// True when the head alone says that the reader is subscribed.
    pub fn opens_with_head(self) -> bool {
        self == Self::Ws
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
                    ws::CLOSE => Item::Closed,
                    _ if self == Self::Ws => number_in(payload).map_or(Item::Other, Item::Message),
                    _ => number_in(payload).map_or_else(|| v1_item(payload), Item::Message),
                };
                Some((item, used))
            }
            Self::Sse => {
                let end = memmem::find(input, b"\n\n")?;
                let block = &input[..end];
                let item = number_in(block).map_or_else(|| sse_item(block), Item::Message);
                Some((item, end + 2))
            }
            Self::Poll => {
                let head_bytes = http::head_end(input)?;
                let head = &input[..head_bytes];
                let used = head_bytes + http::content_length(head);
                let body = input.get(head_bytes..used)?;
                let cursor = http::field(head, "pushline-cursor").or_else(|| cursor_in(body));
                let item = match (http::status(head), cursor) {
                    (Some(200 | 204), Some(_)) if memmem::find(body, b"\"gap\":true").is_some() => Item::Gap,
                    (Some(200 | 204), Some(cursor)) => Item::Polled { cursor, body },
                    _ => Item::Closed,
                };
                Some((item, used))
            }
        }
    }
}

/// A poll from `cursor` that may be held.
pub fn held_poll(host: &str, path: &str, cursor: &str) -> Vec<u8> {
    http::get(host, &format!("{path}?cursor={cursor}&wait={WAIT_SECONDS}"), &[])
}

/// As long as the server holds a poll at most.
const WAIT_SECONDS: u32 = 50;

/// The numbers of all messages in a poll's answer, in their order.
pub fn numbers_in(body: &[u8]) -> impl Iterator<Item = u32> {
    memchr::memchr_iter(SIGN, body).filter_map(|at| number_in(&body[at..]))
}

/// The `cursor` of a poll's answer: no message of ours has such a member.
fn cursor_in(body: &[u8]) -> Option<&str> {
    let from = memmem::find(body, b"\"cursor\":\"")? + 10;
    let bytes = memchr(b'"', &body[from..])?;
    str::from_utf8(&body[from..from + bytes]).ok()
}

fn first_of<'a>(text: &[u8], signs: &[(&str, Item<'a>); 3]) -> Item<'a> {
    for (sign, item) in signs {
        if memmem::find(text, sign.as_bytes()).is_some() {
            return match item {
                Item::Opened => Item::Opened,
                Item::Gap => Item::Gap,
                _ => Item::Closed,
            };
        }
    }
    Item::Other
}

fn v1_item(object: &[u8]) -> Item<'static> {
    let signs =
        [("\"subscribed\"", Item::Opened), ("\"type\":\"gap\"", Item::Gap), ("\"closing\"", Item::Closed)];
    first_of(object, &signs)
}

fn sse_item(block: &[u8]) -> Item<'static> {
    let signs = [("event: $open", Item::Opened), ("event: $gap", Item::Gap), ("event: $close", Item::Closed)];
    first_of(block, &signs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items() {
        let mut message = Vec::new();
        write_numbered(&mut message, 42, 128);
        assert_eq!(message.len(), 128);
        let data = String::from_utf8(message).expect("ASCII");
        let text = |payload: &str| {
            let mut wire = Vec::new();
            ws::write_frame(&mut wire, ws::TEXT, payload.as_bytes());
            wire
        };
        let v1 = format!("{{\"type\":\"message\",\"channel\":\"c\",\"id\":\"a-1\",\"data\":\"{data}\"}}");
        let event = format!("data: {data}\nid: a-1\n\n").into_bytes();
        let open = b"retry: 900\n\nevent: $open\ndata: {}\nid: a\n\n";
        let polled = b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{\"messages\":[],\"cursor\":\"a-7\"}";
        for (name, transport, wire, item) in [
            ("raw", Transport::Ws, text(&data), Item::Message(42)),
            ("v1", Transport::V1, text(&v1), Item::Message(42)),
            ("v1 opened", Transport::V1, text("{\"type\":\"subscribed\"}"), Item::Opened),
            ("v1 gap", Transport::V1, text("{\"type\":\"gap\"}"), Item::Gap),
            ("v1 greeting", Transport::V1, text("{\"type\":\"open\"}"), Item::Other),
            ("event", Transport::Sse, event, Item::Message(42)),
            ("event opened", Transport::Sse, open[12..].to_vec(), Item::Opened),
            ("retry alone", Transport::Sse, open[..12].to_vec(), Item::Other),
            ("poll", Transport::Poll, polled.to_vec(), Item::Polled { cursor: "a-7", body: &polled[39..] }),
        ] {
            assert_eq!(transport.parse(&wire), Some((item, wire.len())), "{name}");
            for cut in 0..wire.len() {
                assert_eq!(transport.parse(&wire[..cut]), None, "{name} cut at {cut}");
            }
        }
    }
}
