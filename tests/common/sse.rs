//! A Server-Sent Events client (WHATWG HTML, "Server-sent events"): a pure parser, and one stream over a `Conn`.
//! Owns the parse as browsers do it, and the lines as they came. Never reconnects.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::DEADLINE;
use super::http::{Conn, Headers, Response};

/// What a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Event(Event),
    /// A comment line, without its colon.
    Comment(String),
    /// `retry:`, in ms.
    Retry(u64),
}

/// One event, as a browser dispatches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `event:`, or empty.
    pub name: String,
    pub data: String,
    /// The last event id once this event is dispatched.
    pub id: String,
    /// The lines of the block as they came, without the empty one.
    pub lines: Vec<String>,
}

impl Event {
    /// `data` as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// Asserts the name; gives itself back.
    #[track_caller]
    pub fn named(self, name: &str) -> Self {
        assert_eq!(self.name, name, "{self:?}");
        self
    }

    /// Asserts that this is a message, not one of the server's own events.
    #[track_caller]
    pub fn expect_message(self) -> Self {
        assert!(!self.name.starts_with('$') || self.name.starts_with("$binary"), "{self:?}");
        self
    }
}

/// The parser: bytes in, items out, cut anywhere.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    begun: bool,
    name: String,
    data: String,
    id_buffer: String,
    last_id: String,
    lines: Vec<String>,
}

impl Parser {
    /// The id that a browser would send as `Last-Event-ID` now.
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    /// Takes some bytes; appends what they complete.
    pub fn push(&mut self, bytes: &[u8], items: &mut VecDeque<Item>) {
        for &byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => self.end_line(items),
                _ => self.line.push(byte),
            }
        }
    }

    fn end_line(&mut self, items: &mut VecDeque<Item>) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8(line).expect("a stream is UTF-8");
        let line = if self.begun { line } else { line.trim_start_matches('\u{feff}').to_owned() };
        self.begun = true;
        if line.is_empty() {
            self.dispatch(items);
            return;
        }
        if let Some(comment) = line.strip_prefix(':') {
            items.push_back(Item::Comment(comment.to_owned()));
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id_buffer),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                items.push_back(Item::Retry(value.parse().expect("ms that fit")));
            }
            _ => panic!("a line that browsers ignore: {line:?}"),
        }
        self.lines.push(line);
    }

    fn dispatch(&mut self, items: &mut VecDeque<Item>) {
        self.last_id.clone_from(&self.id_buffer);
        let name = std::mem::take(&mut self.name);
        let mut data = std::mem::take(&mut self.data);
        let lines = std::mem::take(&mut self.lines);
        if data.is_empty() {
            assert!(name.is_empty(), "an event without data is never dispatched: {lines:?}");
            return;
        }
        data.pop();
        items.push_back(Item::Event(Event { name, data, id: self.last_id.clone(), lines }));
    }
}

/// One stream, its head and its `$open` checked and read.
pub struct Stream {
    conn: Conn,
    pub head: Response,
    parser: Parser,
    items: VecDeque<Item>,
    /// What `retry:` said first.
    pub retry_ms: u64,
    /// What `$open` said.
    pub cursor: String,
    pub connection: String,
}

impl Stream {
    /// Opens a stream and reads it up to its `$open`.
    #[track_caller]
    pub fn open(addr: SocketAddr, target: &str) -> Self {
        Self::open_with(addr, target, &[])
    }

    /// As a browser comes back.
    #[track_caller]
    pub fn resume(addr: SocketAddr, target: &str, last_event_id: &str) -> Self {
        Self::open_with(addr, target, &[("Last-Event-ID", last_event_id)])
    }

    #[track_caller]
    pub fn open_with(addr: SocketAddr, target: &str, headers: Headers) -> Self {
        let mut stream = Self::begin(addr, target, headers);
        let Some(Item::Retry(retry_ms)) = stream.item() else { panic!("a stream begins with `retry:`") };
        let open = stream.event().named("$open");
        let data = open.json();
        stream.retry_ms = retry_ms;
        stream.cursor = data["cursor"].as_str().unwrap_or_else(|| panic!("`cursor` in {open:?}")).to_owned();
        stream.connection =
            data["connection"].as_str().unwrap_or_else(|| panic!("`connection` in {open:?}")).to_owned();
        assert_eq!(open.id, stream.cursor, "{open:?}");
        assert!(!stream.connection.is_empty(), "{open:?}");
        stream
    }

    /// Asks for a stream and reads its head alone.
    #[track_caller]
    pub fn begin(addr: SocketAddr, target: &str, headers: Headers) -> Self {
        let mut all = vec![("Accept", "text/event-stream")];
        all.extend(headers);
        let mut conn = Conn::open(addr);
        conn.send("GET", target, &all, "");
        Self::of(conn)
    }

    /// The stream that answers what `conn` has asked.
    #[track_caller]
    pub fn of(mut conn: Conn) -> Self {
        let head = conn.read_head();
        Self::of_head(conn, head)
    }

    /// The stream whose head was read already.
    #[track_caller]
    pub fn of_head(conn: Conn, head: Response) -> Self {
        let head = head.expect(200);
        assert_eq!(head.header("content-type"), "text/event-stream", "{head}");
        Self {
            conn,
            head,
            parser: Parser::default(),
            items: VecDeque::new(),
            retry_ms: 0,
            cursor: String::new(),
            connection: String::new(),
        }
    }

    /// The id that a browser would send as `Last-Event-ID` now.
    pub fn last_id(&self) -> &str {
        self.parser.last_id()
    }

    /// The next item; `None` at the end of the stream.
    ///
    /// # Panics
    /// When nothing comes in time, or the connection is reset.
    #[track_caller]
    pub fn item(&mut self) -> Option<Item> {
        self.item_within(DEADLINE).expect("the stream goes on or ends in time")
    }

    /// The next item within `patience`: `Some(None)` at the end, `None` when nothing came.
    #[track_caller]
    #[allow(clippy::option_option)]
    pub fn item_within(&mut self, patience: Duration) -> Option<Option<Item>> {
        self.try_item_within(patience).unwrap_or_else(|error| panic!("the stream broke: {error}"))
    }

    /// # Errors
    /// Those of read.
    #[allow(clippy::option_option)]
    pub fn try_item_within(&mut self, patience: Duration) -> io::Result<Option<Option<Item>>> {
        self.conn.set_timeout(patience);
        loop {
            let ahead = self.conn.take(self.conn.ahead().len()).expect("bytes already read");
            self.parser.push(&ahead, &mut self.items);
            if let Some(item) = self.items.pop_front() {
                return Ok(Some(Some(item)));
            }
            match self.conn.fill() {
                Ok(0) => return Ok(Some(None)),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The next event, past comments and `retry:`.
    #[track_caller]
    pub fn event(&mut self) -> Event {
        loop {
            match self.item() {
                Some(Item::Event(event)) => return event,
                Some(Item::Comment(_) | Item::Retry(_)) => {}
                None => panic!("the stream ended"),
            }
        }
    }

    /// The next event, which is a message.
    #[track_caller]
    pub fn message(&mut self) -> Event {
        self.event().expect_message()
    }

    /// The data of the next `count` messages.
    #[track_caller]
    pub fn texts(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.message().data).collect()
    }

    /// Asserts that no event comes for a while.
    #[track_caller]
    pub fn quiet(&mut self, patience: Duration) {
        match self.item_within(patience) {
            None | Some(Some(Item::Comment(_))) => {}
            other => panic!("not quiet: {other:?}"),
        }
    }

    /// Waits for the end, with nothing before it.
    #[track_caller]
    pub fn ended(&mut self) {
        assert_eq!(self.item(), None);
    }

    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }
}
