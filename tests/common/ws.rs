//! A WebSocket client held by hand (RFC 6455): every bit of every frame is the test's to choose; and `pushline.v1` over it.
//! Owns one connection and the parse of the server's frames, which must be plain ones. Never reconnects.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};

use super::DEADLINE;
use super::http::{Conn, Headers, Response};

pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

/// The handshake key of RFC 6455 §1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The one subprotocol.
pub const V1_NAME: &str = "pushline.v1";

/// One frame of the server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of a close frame, 1005 when it has none.
    #[track_caller]
    pub fn close_code(&self) -> u16 {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        match self.payload[..] {
            [] => 1005,
            [high, low, ref reason @ ..] => {
                assert!(std::str::from_utf8(reason).is_ok(), "{self:?}");
                u16::from_be_bytes([high, low])
            }
            [_] => panic!("a close frame of one byte"),
        }
    }
}

/// Frames out of the server's bytes, cut anywhere.
#[derive(Debug, Default)]
pub struct FrameParser {
    ahead: Vec<u8>,
    taken: usize,
}

impl FrameParser {
    pub fn push(&mut self, bytes: &[u8]) {
        self.ahead.drain(..std::mem::take(&mut self.taken));
        self.ahead.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Panics
    /// When the server masks, sets a reserved bit, cuts a control frame or writes a length the long way.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let input = &self.ahead[self.taken..];
        let (&[first, second], _) = input.split_first_chunk()?;
        assert_eq!(first & 0x70, 0, "no extension was agreed on");
        assert_eq!(second & 0x80, 0, "a server never masks");
        let (head, length) = match second {
            126 => (4, u64::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?))),
            127 => (10, u64::from_be_bytes(input.get(2..10)?.try_into().ok()?)),
            short => (2, u64::from(short)),
        };
        let shortest = match length {
            0..126 => 2,
            126..65_536 => 4,
            _ => 10,
        };
        assert_eq!(head, shortest, "a length of {length} in its shortest form");
        let end = head + usize::try_from(length).expect("a length that fits");
        let payload = input.get(head..end)?.to_vec();
        self.taken += end;
        let frame = Frame { fin: first & 0x80 != 0, opcode: first & 0x0F, payload };
        assert!(frame.opcode < 8 || (frame.fin && frame.payload.len() < 126), "{frame:?}");
        Some(frame)
    }
}

/// One frame of a client's, masked.
pub fn masked(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    wire(u8::from(fin) << 7 | opcode, Some([0x37, 0xFA, 0x21, 0x3D]), payload)
}

/// One frame with any first byte and any mask, its length in the shortest form.
pub fn wire(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let mut wire = vec![first];
    let bit = u8::from(mask.is_some()) << 7;
    match payload.len() {
        short @ 0..126 => wire.push(bit | u8::try_from(short).expect("below 126")),
        middle @ 126..65_536 => {
            wire.push(bit | 126);
            wire.extend(u16::try_from(middle).expect("below 65,536").to_be_bytes());
        }
        long => {
            wire.push(bit | 127);
            wire.extend((long as u64).to_be_bytes());
        }
    }
    wire.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    wire.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    wire
}

/// A message of the server's, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Text(String),
    Binary(Vec<u8>),
    /// A close frame with this code (1005: without one).
    Close(u16),
    /// The connection's end without a close frame before it.
    End,
}

/// One connection, past its handshake.
pub struct Socket {
    conn: Conn,
    pub head: Response,
    parser: FrameParser,
    closed: bool,
}

impl Socket {
    /// Opens a raw one.
    #[track_caller]
    pub fn open(addr: SocketAddr, target: &str) -> Self {
        Self::open_with(addr, target, &[])
    }

    #[track_caller]
    pub fn open_with(addr: SocketAddr, target: &str, headers: Headers) -> Self {
        Self::handshake(addr, target, headers).unwrap_or_else(|answer| panic!("no handshake: {answer}"))
    }

    /// # Errors
    /// The answer, when it is not `101`.
    pub fn handshake(addr: SocketAddr, target: &str, headers: Headers) -> Result<Self, Box<Response>> {
        let mut conn = Conn::open(addr);
        conn.send_raw(request(addr, target, headers));
        Self::of(conn)
    }

    /// The connection whose handshake `conn` has asked for, with [`KEY`].
    ///
    /// # Errors
    /// The answer, when it is not `101`.
    pub fn of(mut conn: Conn) -> Result<Self, Box<Response>> {
        let head = conn.read_head();
        Self::of_head(conn, head)
    }

    /// The same, the answer's head having been read.
    ///
    /// # Errors
    /// The answer, when it is not `101`.
    pub fn of_head(mut conn: Conn, mut head: Response) -> Result<Self, Box<Response>> {
        if head.status != 101 {
            let length = head.get("content-length").and_then(|length| length.parse().ok());
            head.body = conn.take(length.unwrap_or(0)).unwrap_or_default();
            return Err(Box::new(head));
        }
        assert_eq!(head.header("sec-websocket-accept"), accept(KEY), "{head}");
        assert!(head.lists("upgrade", "websocket") && head.lists("connection", "upgrade"), "{head}");
        assert_eq!(head.get("sec-websocket-extensions"), None, "{head}");
        for absent in ["content-length", "transfer-encoding"] {
            assert_eq!(head.get(absent), None, "{head}");
        }
        Ok(Self { conn, head, parser: FrameParser::default(), closed: false })
    }

    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// Sends bytes as they are, to a server that may have hung up.
    pub fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.conn.try_send_raw(bytes);
    }

    pub fn send(&mut self, fin: bool, opcode: u8, payload: impl AsRef<[u8]>) {
        self.send_raw(masked(fin, opcode, payload.as_ref()));
    }

    pub fn text(&mut self, text: &str) {
        self.send(true, TEXT, text);
    }

    pub fn binary(&mut self, payload: &[u8]) {
        self.send(true, BINARY, payload);
    }

    pub fn close(&mut self, code: u16, reason: &str) {
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend(reason.bytes());
        self.send(true, CLOSE, payload);
    }

    /// The next frame of any kind; `None` at the connection's end, orderly or not.
    ///
    /// # Panics
    /// When nothing comes in time.
    #[track_caller]
    pub fn frame(&mut self) -> Option<Frame> {
        self.frame_within(DEADLINE).expect("a frame, or the end, in time")
    }

    /// The next frame within `patience`: `Some(None)` at the end, `None` when nothing came.
    #[track_caller]
    #[allow(clippy::option_option)]
    pub fn frame_within(&mut self, patience: Duration) -> Option<Option<Frame>> {
        self.conn.set_timeout(patience);
        loop {
            let ahead = self.conn.take(self.conn.ahead().len()).expect("bytes already read");
            self.parser.push(&ahead);
            if let Some(frame) = self.parser.next_frame() {
                return Some(Some(frame));
            }
            match self.conn.fill() {
                Ok(0) => return Some(None),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return None;
                }
                Err(_) => return Some(None),
            }
        }
    }

    /// The next message or the end, past pings (answered) and pongs. A message comes in one frame.
    #[track_caller]
    pub fn message(&mut self) -> Message {
        loop {
            let Some(frame) = self.frame() else { return Message::End };
            assert!(!self.closed, "a frame after the close frame: {frame:?}");
            assert!(frame.fin, "{frame:?}");
            match frame.opcode {
                TEXT => return Message::Text(String::from_utf8(frame.payload).expect("text is UTF-8")),
                BINARY => return Message::Binary(frame.payload),
                PING => self.send(true, PONG, frame.payload),
                PONG => {}
                CLOSE => {
                    self.closed = true;
                    return Message::Close(frame.close_code());
                }
                other => panic!("opcode {other}"),
            }
        }
    }

    /// The next message, which is a text.
    #[track_caller]
    pub fn expect_text(&mut self) -> String {
        match self.message() {
            Message::Text(text) => text,
            other => panic!("{other:?} instead of a text"),
        }
    }

    /// The next message, which is binary.
    #[track_caller]
    pub fn expect_binary(&mut self) -> Vec<u8> {
        match self.message() {
            Message::Binary(payload) => payload,
            other => panic!("{other:?} instead of a binary message"),
        }
    }

    /// The close frame is next, with this code; the server ends the connection once it is answered.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) {
        assert_eq!(self.message(), Message::Close(code));
        self.close(code, "");
        assert_eq!(self.frame(), None, "after the close frame");
    }

    /// Asserts that no message comes for a while (pings may).
    #[track_caller]
    pub fn quiet(&mut self, patience: Duration) {
        match self.frame_within(patience) {
            None => {}
            Some(Some(frame)) if matches!(frame.opcode, PING | PONG) => {}
            other => panic!("not quiet: {other:?}"),
        }
    }
}

/// The bytes of a handshake with [`KEY`].
pub fn request(addr: SocketAddr, target: &str, headers: Headers) -> Vec<u8> {
    let mut all = vec![("Connection", "Upgrade"), ("Upgrade", "websocket")];
    all.extend([("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", KEY)]);
    all.extend(headers);
    super::http::wire(addr, "GET", target, &all, b"")
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455 §4.2.2).
pub fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64.encode(hash.finalize())
}

/// One `pushline.v1` connection, its `open` read.
pub struct V1 {
    pub socket: Socket,
    pub connection: String,
}

impl V1 {
    /// Opens one. The answers to the URL's channels are left to be read.
    #[track_caller]
    pub fn open(addr: SocketAddr, target: &str) -> Self {
        let socket = Socket::open_with(addr, target, &[("Sec-WebSocket-Protocol", V1_NAME)]);
        Self::of(socket)
    }

    /// The connection that `socket` has opened with the subprotocol.
    #[track_caller]
    pub fn of(socket: Socket) -> Self {
        assert_eq!(socket.head.header("sec-websocket-protocol"), V1_NAME);
        let mut v1 = Self { socket, connection: String::new() };
        let open = v1.expect("open");
        v1.connection = text_of(&open, "connection");
        assert!(!v1.connection.is_empty(), "{open}");
        v1
    }

    /// Opens one on one channel, from now; also its cursor.
    #[track_caller]
    pub fn subscribed(addr: SocketAddr, channel: &str) -> (Self, String) {
        let mut v1 = Self::open(addr, &format!("/channels/{channel}"));
        let subscribed = v1.expect("subscribed");
        assert_eq!((&subscribed["channel"], &subscribed["gap"]), (&json!(channel), &json!(false)));
        let cursor = text_of(&subscribed, "cursor");
        (v1, cursor)
    }

    #[allow(clippy::needless_pass_by_value)]
    pub fn send(&mut self, value: Value) {
        self.socket.text(&value.to_string());
    }

    /// The next object.
    #[track_caller]
    pub fn next(&mut self) -> Value {
        let text = self.socket.expect_text();
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(value["type"].is_string(), "{text}");
        value
    }

    /// The next object, which is of this type.
    #[track_caller]
    pub fn expect(&mut self, kind: &str) -> Value {
        let value = self.next();
        assert_eq!(value["type"], kind, "{value}");
        value
    }

    /// Sends and gives the next object, which is of this type.
    #[track_caller]
    pub fn ask(&mut self, value: Value, kind: &str) -> Value {
        self.send(value);
        self.expect(kind)
    }

    /// Sends what is refused: the error, its form checked; the connection stays.
    #[track_caller]
    pub fn refused(&mut self, value: Value) -> Value {
        let seq = value.get("seq").cloned();
        let error = self.ask(value, "error");
        assert!(!text_of(&error, "code").is_empty() && !text_of(&error, "message").is_empty(), "{error}");
        assert_eq!(error.get("seq").cloned(), seq, "{error}");
        self.ask(json!({"type": "ping"}), "pong");
        error
    }

    /// The data of the next `count` objects, which are messages.
    #[track_caller]
    pub fn texts(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| text_of(&self.expect("message"), "data")).collect()
    }
}

/// A member that is a string.
#[track_caller]
pub fn text_of(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("`{name}` in {value}")).to_owned()
}
