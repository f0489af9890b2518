//! What a reader says: its first request, what follows the handshake, and the polls after the first.
//! Made once of an `Api`, written for each reader without an allocation. Pure.

use anyhow::{Context as _, Result};

use crate::api::{Api, Hello, template};
use crate::template::{Fields, Template};
use crate::transport::Transport;
use crate::{http, ws};

/// Fields of an answer that a server without cursors in its URL wants back (nchan's way of long polling).
const ECHOED: [(&str, &str); 2] = [("etag", "If-None-Match"), ("last-modified", "If-Modified-Since")];

pub struct Script {
    pub transport: Transport,
    first: Template,
    /// Frames after the handshake: opcode and payload.
    hello: Vec<(u8, Template)>,
    /// Stands in what says that the reader is subscribed.
    pub ready: Option<Vec<u8>>,
    /// The next poll.
    next: Template,
}

impl Script {
    pub fn new(api: &Api, transport: Transport, host: &str) -> Result<Self> {
        let path = api
            .read
            .get(transport.key())
            .with_context(|| format!("{} has no {}", api.name, transport.name()))?;
        let hello = api.hello.get(transport.key()).cloned().unwrap_or_default();
        let request = |path: &str| Template::parse(&request(transport, host, path, &hello));
        let next = request(path);
        let first = match &api.first {
            Some(first) if next.has_cursor() => request(first),
            _ => next.clone(),
        };
        let frames = hello.frames.iter().map(|piece| {
            let (payload, text) = template(piece)?;
            Ok((if text { ws::TEXT } else { ws::BINARY }, payload))
        });
        let ready = api.opened.get(transport.key()).map(|piece| piece.bytes()).transpose()?;
        Ok(Self {
            transport,
            first,
            hello: frames.collect::<Result<_>>()?,
            ready: ready.map(|(bytes, _)| bytes),
            next,
        })
    }

    /// The status of the head that begins a stream.
    pub fn status(&self) -> u16 {
        if self.transport.is_websocket() { 101 } else { 200 }
    }

    /// A long poll without a cursor is held from the first: nothing says that the reader is subscribed.
    pub fn opens_by_asking(&self) -> bool {
        self.transport == Transport::Poll && !self.next.has_cursor()
    }

    pub fn write_first(&self, out: &mut Vec<u8>, channel: &[u8]) {
        self.first.write(out, Fields { channel, ..Fields::default() });
    }

    /// The first request of a reader that comes with a cursor.
    pub fn write_resumed(&self, out: &mut Vec<u8>, channel: &[u8], cursor: &[u8]) {
        self.next.write(out, Fields { channel, cursor, ..Fields::default() });
    }

    /// What follows the handshake.
    pub fn write_hello(&self, out: &mut Vec<u8>, channel: &[u8]) {
        for (opcode, payload) in &self.hello {
            let mut filled = Vec::new();
            payload.write(&mut filled, Fields { channel, ..Fields::default() });
            ws::write_client_frame(out, *opcode, &filled);
        }
    }

    /// The long poll after an answer.
    pub fn write_next(&self, out: &mut Vec<u8>, channel: &[u8], head: &[u8], cursor: &[u8]) {
        self.next.write(out, Fields { channel, cursor, ..Fields::default() });
        if !self.next.has_cursor() {
            echo(out, head, &ECHOED);
        }
    }

    /// The short poll after an answer with this head.
    pub fn write_again(&self, out: &mut Vec<u8>, channel: &[u8], head: &[u8]) {
        self.next.write(out, Fields { channel, ..Fields::default() });
        echo(out, head, &ECHOED[..1]);
    }
}

/// Adds fields before the empty line that ends the request in `out`.
fn echo(out: &mut Vec<u8>, head: &[u8], fields: &[(&str, &str)]) {
    out.truncate(out.len() - 2);
    for (found, said) in fields {
        if let Some(value) = http::field(head, found) {
            for part in [said, ": ", value, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn request(transport: Transport, host: &str, path: &str, hello: &Hello) -> Vec<u8> {
    let key = format!("Sec-WebSocket-Key: {}", ws::KEY);
    let subprotocol =
        hello.subprotocol.as_ref().map(|subprotocol| format!("Sec-WebSocket-Protocol: {subprotocol}"));
    let mut upgrade = vec!["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", &key];
    upgrade.extend(subprotocol.as_deref());
    match transport {
        Transport::Ws | Transport::V1 => http::get(host, path, &upgrade),
        Transport::Sse => http::get(host, path, &["Accept: text/event-stream"]),
        Transport::Poll | Transport::Short => http::get(host, path, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_go_on() {
        let script = Script::new(&Api::pushline(), Transport::Poll, "h").expect("a script");
        let mut out = Vec::new();
        script.write_first(&mut out, b"c0000000");
        assert!(out.starts_with(b"GET /channels/c0000000?limit=0 HTTP/1.1\r\nHost: h\r\n"));
        out.clear();
        script.write_next(&mut out, b"c0000000", b"", b"a-1");
        assert!(out.starts_with(b"GET /channels/c0000000?cursor=a-1&wait=50 "));

        let script = Script::new(&Api::pushline(), Transport::Short, "h").expect("a script");
        out.clear();
        script.write_again(&mut out, b"c0000000", b"HTTP/1.1 200 OK\r\nETag: \"x\"\r\n\r\n");
        assert!(out.ends_with(b"Host: h\r\nIf-None-Match: \"x\"\r\n\r\n"));
    }
}
