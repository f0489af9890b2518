//! A reader that hops between the transports, is cut at random bytes, and goes on with the last cursor it was given.
//! Owns its cursors and its log. What it did not receive whole, it has not seen: exactly as a browser.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::World;
use super::ledger::{Entry, Log, digest};
use super::message::{Key, Message};
use crate::common::rng::Rng;
use crate::common::ws::{self, FrameParser, text_of};
use crate::common::{receive_buffer, sse};

/// The transports, as a reader of one or of several channels meets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    ShortPoll,
    LongPoll,
    Sse,
    SseEnvelope,
    Raw,
    V1Url,
    V1Subscribe,
}

pub const TRANSPORTS: [Transport; 7] = [
    Transport::ShortPoll,
    Transport::LongPoll,
    Transport::Sse,
    Transport::SseEnvelope,
    Transport::Raw,
    Transport::V1Url,
    Transport::V1Subscribe,
];

/// Why a hop ended.
#[derive(Debug)]
enum Cut {
    /// The reader had read as many bytes as it wanted.
    Bytes,
    /// Nothing came for as long as the reader had patience.
    Silence,
    /// The reader was done with it.
    Done,
    /// The server ended it, and said why, or did not.
    Server(String),
}

pub struct Reader<'a> {
    world: &'a World,
    rng: Rng,
    /// The channels that it reads.
    set: Vec<usize>,
    /// By place in `set`.
    cursors: Vec<Option<String>>,
    ended: Vec<bool>,
    pub logs: Vec<Log>,
    pub hops: Vec<String>,
    /// How many messages each transport brought.
    pub counts: [usize; TRANSPORTS.len()],
    transport: Transport,
    /// Answered publishes before this hop began, by place in `set`: what a start from now must not bring.
    before: Vec<Vec<usize>>,
}

impl<'a> Reader<'a> {
    pub fn new(world: &'a World, number: usize) -> Self {
        let mut rng = Rng::new(world.seed, number as u64);
        let mut set: Vec<usize> = (0..world.channels.len()).collect();
        rng.shuffle(&mut set);
        set.truncate(if rng.once_in(2) { 1 } else { rng.within(2..=3) });
        let count = set.len();
        Self {
            world,
            rng,
            set,
            cursors: vec![None; count],
            ended: vec![false; count],
            logs: vec![Log::new(); count],
            hops: Vec::new(),
            counts: [0; TRANSPORTS.len()],
            transport: Transport::ShortPoll,
            before: Vec::new(),
        }
    }

    pub fn channels(&self) -> &[usize] {
        &self.set
    }

    /// Takes its first cursor, so that what comes from now on is its to get.
    pub fn start(&mut self) {
        while self.cursors.iter().any(Option::is_none) {
            self.hop();
        }
    }

    /// Hops until it has the last message of each of its channels.
    pub fn run(&mut self) {
        while !self.ended.iter().all(|&ended| ended) {
            assert!(Instant::now() < self.world.deadline, "not done in time: {:#?}", self.recent());
            self.hop();
        }
    }

    /// The last hops, for a failure.
    pub fn recent(&self) -> &[String] {
        &self.hops[self.hops.len().saturating_sub(12)..]
    }

    fn hop(&mut self) {
        self.transport = self.choose();
        let mut places: Vec<usize> = (0..self.set.len()).collect();
        self.rng.shuffle(&mut places);
        self.before = self.set.iter().map(|&channel| self.world.channels[channel].seen_acked()).collect();
        self.hops.push(format!("{:?}", self.transport));
        let cut = match self.transport {
            Transport::ShortPoll | Transport::LongPoll => self.polls(&places),
            Transport::Sse | Transport::SseEnvelope => self.stream(&places),
            Transport::Raw => self.raw(),
            Transport::V1Url | Transport::V1Subscribe => self.v1(&places),
        };
        self.note(&format!("-> {:?}, cursors {:?}", cut, self.cursors));
        if let (Cut::Server(why), false) = (&cut, self.world.lossy) {
            panic!("the server ended a stream ({why}): {:#?}", self.recent());
        }
    }

    fn choose(&mut self) -> Transport {
        loop {
            let transport = *self.rng.pick(&TRANSPORTS);
            if transport != Transport::Raw || (self.set.len() == 1 && self.cursors[0].is_some()) {
                return transport;
            }
        }
    }

    fn note(&mut self, text: &str) {
        if let Some(hop) = self.hops.last_mut() {
            *hop += " ";
            *hop += text;
        }
    }

    /// `/channels/a,b` in this order, `?` and the cursor, if it has any.
    fn target(&mut self, places: &[usize]) -> String {
        let names: Vec<&str> =
            places.iter().map(|&place| self.world.channels[self.set[place]].name.as_str()).collect();
        let mut target = format!("/channels/{}?", names.join(","));
        if self.cursors.iter().any(Option::is_some) {
            target += &format!("cursor={}", self.joined(places));
        }
        target
    }

    fn joined(&self, places: &[usize]) -> String {
        let parts: Vec<&str> =
            places.iter().map(|&place| self.cursors[place].as_deref().unwrap_or("")).collect();
        parts.join(".")
    }

    // --- What it is told ---------------------------------------------------------------------------------------------

    fn log(&mut self, place: usize, entry: Entry) {
        let hop = self.hops.len() - 1;
        self.logs[place].push((hop, entry));
    }

    /// One channel's cursor; the first one begins its log. `earlier`: it may reach back before now.
    fn learn(&mut self, place: usize, cursor: &str, earlier: bool) {
        assert!(!cursor.is_empty() && !cursor.contains('.'), "a cursor of one channel: {cursor:?}");
        if self.cursors[place].is_none() {
            let until = self.world.channels[self.set[place]].seen_sent();
            let before = if earlier { vec![0; until.len()] } else { self.before[place].clone() };
            self.log(place, Entry::Start { before, until });
        }
        self.cursors[place] = Some(cursor.to_owned());
    }

    fn learn_joined(&mut self, places: &[usize], joined: &str, earlier: bool) {
        let parts: Vec<&str> = joined.split('.').collect();
        assert_eq!(parts.len(), places.len(), "{joined}: {:#?}", self.recent());
        for (&place, part) in places.iter().zip(parts) {
            self.learn(place, part, earlier);
        }
    }

    fn gap(&mut self, name: &str) {
        let place = self.place(name);
        self.note(&format!("[gap {name}]"));
        self.log(place, Entry::Gap);
    }

    fn place(&self, name: &str) -> usize {
        self.set
            .iter()
            .position(|&channel| self.world.channels[channel].name == name)
            .unwrap_or_else(|| panic!("{name} was not asked for: {:#?}", self.recent()))
    }

    /// The message that these bytes are of.
    fn expected(&self, place: usize, bytes: &[u8]) -> Message {
        let key = Key::find(bytes);
        let key =
            key.unwrap_or_else(|| panic!("a message of nobody's: {:?}", String::from_utf8_lossy(bytes)));
        assert_eq!(key.channel, self.set[place], "a message of another channel: {:#?}", self.recent());
        self.world.channels[key.channel].message(self.world.seed, key)
    }

    fn message(&mut self, place: usize, key: Key, id: &str) {
        self.counts[self.transport as usize] += 1;
        self.ended[place] |= key.publisher == self.world.publishers;
        self.log(place, Entry::Message { key, id: digest(id) });
    }

    /// A message object: of a poll, an envelope or `pushline.v1`. Its place and its id.
    fn object(&mut self, object: &Value) -> (usize, String) {
        let place = self.place(&text_of(object, "channel"));
        let data = match object.get("base64") {
            Some(base64) => {
                use base64::Engine as _;
                let text = base64.as_str().expect("base64 is a string");
                base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
            }
            None => match &object["data"] {
                Value::String(text) => text.clone().into_bytes(),
                json => json.to_string().into_bytes(),
            },
        };
        let want = self.expected(place, &data);
        assert!(want.is_object(object), "{object} is not {want:?}");
        let id = text_of(object, "id");
        self.message(place, want.key, &id);
        (place, id)
    }

    // --- Polling -----------------------------------------------------------------------------------------------------

    fn polls(&mut self, places: &[usize]) -> Cut {
        let mut wire = self.connect();
        for _ in 0..self.rng.within(1..=6) {
            let mut target = self.target(places);
            let mut prefer = "";
            let fresh = self.cursors.iter().any(Option::is_none);
            if self.cursors.iter().all(Option::is_none) {
                target += &format!("&limit={}", self.rng.within(0..=2));
            } else {
                target += &format!("&limit={}", self.rng.within(1..=100));
                match (self.transport == Transport::LongPoll, self.rng.once_in(2)) {
                    (true, true) => target += "&wait=2",
                    (true, false) => prefer = "Prefer: wait=2\r\n",
                    (false, _) => {}
                }
            }
            let earlier = fresh && !target.contains("cursor=") && !target.contains("limit=0");
            self.note(&target);
            let answer = match self.ask(&mut wire, &target, prefer).and_then(|()| wire.answer()) {
                Ok(answer) => answer,
                Err(cut) => return cut,
            };
            if answer.status == 204 {
                let cursor = answer.cursor.expect("Pushline-Cursor");
                self.learn_joined(places, &cursor, false);
                continue;
            }
            assert_eq!(answer.status, 200, "{target}: {}", String::from_utf8_lossy(&answer.body));
            let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
            let cursor = text_of(&body, "cursor");
            if self.transport == Transport::LongPoll && target.contains("cursor=") {
                assert_eq!(answer.cursor.as_ref(), Some(&cursor), "Pushline-Cursor");
            }
            self.learn_joined(places, &cursor, earlier);
            let gaps = body.get("gaps").and_then(Value::as_array).cloned().unwrap_or_default();
            assert_eq!(body["gap"], json!(!gaps.is_empty()), "{body}");
            for name in gaps {
                self.gap(name.as_str().expect("a channel"));
            }
            for object in body["messages"].as_array().expect("messages") {
                self.object(object);
            }
        }
        Cut::Done
    }

    // --- Server-Sent Events ------------------------------------------------------------------------------------------

    fn stream(&mut self, places: &[usize]) -> Cut {
        let started = self.cursors.iter().any(Option::is_some);
        let mut target = self.target(places);
        let mut fields = "Accept: text/event-stream\r\n".to_owned();
        if started && self.rng.once_in(2) {
            // As a browser comes back: the URL as it was, and what it saw last.
            fields += &format!("Last-Event-ID: {}\r\n", self.joined(places));
            target.truncate(target.find('?').expect("a query") + 1);
            target += ["", "history=3"][self.rng.below(2)];
        }
        let earlier = !started && self.rng.once_in(2);
        if earlier {
            target += "history=3";
        }
        let wrapped = self.transport == Transport::SseEnvelope || places.len() > 1;
        if self.transport == Transport::SseEnvelope {
            target += "&envelope=1";
        }
        self.note(&target);
        let mut wire = self.connect();
        if let Err(cut) = self.ask(&mut wire, &target, &fields).and_then(|()| wire.head()) {
            return cut;
        }
        let mut parser = sse::Parser::default();
        let mut items = VecDeque::new();
        let mut opened = false;
        loop {
            parser.push(&wire.ahead, &mut items);
            wire.ahead.clear();
            while let Some(item) = items.pop_front() {
                let sse::Item::Event(event) = item else { continue };
                assert_eq!(event.name == "$open", !opened, "{event:?}");
                opened = true;
                match &event.name[..] {
                    "$open" => {
                        assert_eq!(event.json()["cursor"], json!(event.id));
                        self.learn_joined(places, &event.id, earlier);
                    }
                    "$gap" => {
                        self.gap(&text_of(&event.json(), "channel"));
                        self.learn_joined(places, &event.id, false);
                    }
                    "$close" => return Cut::Server(event.data),
                    _ if wrapped => {
                        let (place, id) = self.object(&event.json());
                        self.learn_joined(places, &event.id, false);
                        assert_eq!(self.cursors[place].as_ref(), Some(&id), "{event:?}");
                    }
                    _ => {
                        let binary = event.name.starts_with("$binary");
                        let bytes =
                            if binary { decode(&event.data) } else { event.data.clone().into_bytes() };
                        let want = self.expected(0, &bytes);
                        assert!(want.is_event(&event.name, &event.data), "{event:?} is not {want:?}");
                        self.message(0, want.key, &event.id);
                        self.learn_joined(places, &event.id, false);
                    }
                }
            }
            if let Err(cut) = wire.fill() {
                return cut;
            }
        }
    }

    // --- WebSocket ---------------------------------------------------------------------------------------------------

    /// Resumed into, but not out of: what comes is checked, and comes again.
    fn raw(&mut self) -> Cut {
        let target = self.target(&[0]);
        self.note(&target);
        let mut wire = self.connect();
        if let Err(cut) = self.shake(&mut wire, &target, "") {
            return cut;
        }
        self.log(0, Entry::RawStart);
        let mut parser = FrameParser::default();
        loop {
            parser.push(&std::mem::take(&mut wire.ahead));
            while let Some(frame) = parser.next_frame() {
                match frame.opcode {
                    ws::TEXT | ws::BINARY => {
                        let want = self.expected(0, &frame.payload);
                        assert_eq!(want.bytes(), (&frame.payload[..], frame.opcode == ws::TEXT), "{want:?}");
                        self.counts[self.transport as usize] += 1;
                        self.log(0, Entry::RawMessage { key: want.key });
                    }
                    ws::CLOSE => {
                        assert_eq!(frame.close_code(), 4408, "{:#?}", self.recent());
                        return Cut::Server("4408".into());
                    }
                    _ => {}
                }
            }
            if let Err(cut) = wire.fill() {
                return cut;
            }
        }
    }

    fn v1(&mut self, places: &[usize]) -> Cut {
        let by_url = self.transport == Transport::V1Url;
        let target = if by_url { self.target(places) } else { "/channels".to_owned() };
        self.note(&target);
        let mut wire = self.connect();
        if let Err(cut) = self.shake(&mut wire, &target, "Sec-WebSocket-Protocol: pushline.v1\r\n") {
            return cut;
        }
        let mut earlier = false;
        if !by_url {
            let mut frames = Vec::new();
            for &place in places {
                let name = &self.world.channels[self.set[place]].name;
                let mut subscribe = json!({"type": "subscribe", "channel": name, "seq": place});
                match &self.cursors[place] {
                    Some(cursor) => subscribe["cursor"] = json!(cursor),
                    None if self.rng.once_in(2) => {
                        earlier = true;
                        subscribe["history"] = json!(self.rng.below(4));
                    }
                    None => {}
                }
                frames.extend(ws::masked(true, ws::TEXT, subscribe.to_string().as_bytes()));
            }
            if wire.send(&frames).is_err() {
                return Cut::Server("reset".into());
            }
        }
        let mut parser = FrameParser::default();
        loop {
            parser.push(&std::mem::take(&mut wire.ahead));
            while let Some(frame) = parser.next_frame() {
                match frame.opcode {
                    ws::TEXT => {
                        let object: Value = serde_json::from_slice(&frame.payload).expect("JSON");
                        self.v1_object(&object, earlier);
                    }
                    ws::CLOSE => {
                        assert_eq!(frame.close_code(), 4408, "{:#?}", self.recent());
                        return Cut::Server("4408".into());
                    }
                    ws::PING => {}
                    other => panic!("opcode {other} in pushline.v1"),
                }
            }
            if let Err(cut) = wire.fill() {
                return cut;
            }
        }
    }

    fn v1_object(&mut self, object: &Value, earlier: bool) {
        match &text_of(object, "type")[..] {
            "message" => {
                let (place, id) = self.object(object);
                assert!(self.cursors[place].is_some(), "its cursor comes before the first message");
                self.learn(place, &id, false);
            }
            kind @ ("subscribed" | "gap") => {
                let name = text_of(object, "channel");
                let place = self.place(&name);
                self.learn(place, &text_of(object, "cursor"), earlier);
                if kind == "gap" || object["gap"] == true {
                    self.gap(&name);
                }
            }
            "open" | "closing" => {}
            _ => panic!("{object}: {:#?}", self.recent()),
        }
    }

    // --- Its sockets -------------------------------------------------------------------------------------------------

    fn connect(&mut self) -> Wire {
        let socket = TcpStream::connect(self.world.addr).expect("the server accepts");
        socket.set_nodelay(true).expect("an open socket");
        let patience = Duration::from_millis(self.rng.within(20..=300) as u64);
        socket.set_read_timeout(Some(patience)).expect("a timeout above zero");
        let mut bytes = self.rng.by_scale(18);
        // Some readers are slow, so that the server meets full sockets and sends that go out in part.
        let stall = self.rng.once_in(3).then(|| {
            receive_buffer(&socket, 4 * 1024);
            bytes = bytes.min(64 * 1024);
            Duration::from_millis(self.rng.by_scale(5) as u64)
        });
        self.note(&format!("({bytes} bytes, {patience:?}, stalls {stall:?})"));
        Wire { socket, left: bytes, stall, ahead: Vec::new() }
    }

    /// Sends a request, or, seldom, a part of it.
    fn ask(&mut self, wire: &mut Wire, target: &str, fields: &str) -> Result<(), Cut> {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", self.world.addr);
        if self.rng.once_in(50) {
            let part = self.rng.below(request.len());
            let _ = wire.send(&request.as_bytes()[..part]);
            return Err(Cut::Bytes);
        }
        wire.send(request.as_bytes()).map_err(|error| Cut::Server(error.to_string()))
    }

    fn shake(&mut self, wire: &mut Wire, target: &str, fields: &str) -> Result<(), Cut> {
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        let fields = format!("{upgrade}Sec-WebSocket-Key: {}\r\n{fields}", ws::KEY);
        self.ask(wire, target, &fields)?;
        wire.head()
    }
}

fn decode(base64: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(base64).expect("base64")
}

/// One connection that will be cut.
struct Wire {
    socket: TcpStream,
    /// How many bytes are still to be read before the cut.
    left: usize,
    /// How long it does not read before each read.
    stall: Option<Duration>,
    ahead: Vec<u8>,
}

struct Answer {
    status: u16,
    cursor: Option<String>,
    body: Vec<u8>,
}

impl Wire {
    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Reads once more into `ahead`.
    fn fill(&mut self) -> Result<(), Cut> {
        if self.left == 0 {
            return Err(Cut::Bytes);
        }
        let mut part = [0; 16 * 1024];
        let end = if self.stall.is_some() { 2 * 1024 } else { part.len() }.min(self.left);
        if let Some(stall) = self.stall {
            std::thread::sleep(stall);
        }
        loop {
            match self.socket.read(&mut part[..end]) {
                Ok(0) => return Err(Cut::Server("FIN".into())),
                Ok(count) => {
                    self.left -= count;
                    self.ahead.extend_from_slice(&part[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(Cut::Silence);
                }
                Err(error) => return Err(Cut::Server(error.to_string())),
            }
        }
    }

    /// Reads a head that begins a stream.
    fn head(&mut self) -> Result<(), Cut> {
        let (status, _, _) = self.read_head()?;
        assert!(matches!(status, 101 | 200), "{status}");
        Ok(())
    }

    /// Reads a whole answer.
    fn answer(&mut self) -> Result<Answer, Cut> {
        let (status, length, cursor) = self.read_head()?;
        while self.ahead.len() < length {
            self.fill()?;
        }
        Ok(Answer { status, cursor, body: self.ahead.drain(..length).collect() })
    }

    /// Status, `Content-Length` and `Pushline-Cursor`.
    fn read_head(&mut self) -> Result<(u16, usize, Option<String>), Cut> {
        let length = loop {
            if let Some(at) = self.ahead.windows(4).position(|part| part == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill()?;
        };
        let head: Vec<u8> = self.ahead.drain(..length).collect();
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        assert!(response.parse(&head).is_ok_and(|parsed| parsed.is_complete()), "a head");
        let get = |name: &str| {
            let field = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        let length = get("content-length").map_or(0, |length| length.parse().expect("a length"));
        Ok((response.code.expect("a status"), length, get("pushline-cursor").map(str::to_owned)))
    }
}
