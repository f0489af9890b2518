//! A raw HTTP/1.1 client held by hand (RFC 9112): says exactly the bytes that a test wants said.
//! Owns one blocking socket and what was read ahead. Never retries, follows or decodes content.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::DEADLINE;
pub use super::response::Response;
use super::tls::ClientTls;

/// What "at once" is at most, on a machine under load; far below the waits that tests ask for.
pub const AT_ONCE: Duration = Duration::from_secs(10);

/// Headers of a request, in order.
pub type Headers<'a> = &'a [(&'a str, &'a str)];

/// One connection.
pub struct Conn {
    stream: TcpStream,
    /// Of a connection to an address where TLS is spoken.
    tls: Option<Box<ClientTls>>,
    addr: SocketAddr,
    /// Read, but not taken yet.
    ahead: Vec<u8>,
    /// Methods of requests sent whose answers have not been read: a HEAD's answer has no body.
    asked: VecDeque<String>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// FIN.
    Closed,
    /// RST.
    Reset,
    /// Bytes came instead.
    Bytes,
    /// Nothing came in time: still open.
    Open,
}

impl Conn {
    pub fn open(addr: SocketAddr) -> Self {
        Self::try_open(addr).expect("the server accepts")
    }

    /// # Errors
    /// Those of connect.
    pub fn try_open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        let tls = ClientTls::of(addr).map(Box::new);
        Ok(Self { stream, tls, addr, ahead: Vec::new(), asked: VecDeque::new() })
    }

    /// Sends bytes as they stand on the wire, before TLS or in spite of it.
    pub fn send_bare(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// The client's half of its TLS.
    pub fn tls(&mut self) -> &mut ClientTls {
        self.tls.as_mut().expect("a connection to an address where TLS is spoken")
    }

    /// Says by TLS that nothing more comes.
    pub fn close_notify(&mut self) {
        self.tls.as_mut().expect("TLS").close(&mut self.stream);
    }

    /// A connection whose client has the address `127.0.0.LAST`.
    ///
    /// # Panics
    /// When the server does not accept.
    pub fn open_as(last: u8, addr: SocketAddr) -> Self {
        Self::try_open_as(last, addr).expect("the server accepts")
    }

    /// # Errors
    /// Those of bind and connect.
    #[allow(unsafe_code)]
    pub fn try_open_as(last: u8, addr: SocketAddr) -> io::Result<Self> {
        use std::os::fd::FromRawFd;
        let SocketAddr::V4(to) = addr else { panic!("{addr} is no IPv4 address") };
        let place = |octets: [u8; 4], port: u16| libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(octets) },
            sin_zero: [0; 8],
        };
        let (own, to) = (place([127, 0, 0, last], 0), place(to.ip().octets(), to.port()));
        let bytes = libc::socklen_t::try_from(size_of::<libc::sockaddr_in>()).expect("small");
        // SAFETY: no pointers; the descriptor is nobody else's.
        let stream = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0, "socket: {}", io::Error::last_os_error());
            TcpStream::from_raw_fd(fd)
        };
        let fd = std::os::fd::AsRawFd::as_raw_fd(&stream);
        // SAFETY: `own` has the size given and lives through the call.
        let bound = unsafe { libc::bind(fd, (&raw const own).cast(), bytes) };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the same of `to`.
        let connected = unsafe { libc::connect(fd, (&raw const to).cast(), bytes) };
        if connected != 0 {
            return Err(io::Error::last_os_error());
        }
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        let tls = ClientTls::of(addr).map(Box::new);
        Ok(Self { stream, tls, addr, ahead: Vec::new(), asked: VecDeque::new() })
    }

    /// A connection by a unix socket. What is called its address is only what it says as its host.
    pub fn open_unix(path: &Path) -> Self {
        Self::try_open_unix(path).expect("the server accepts")
    }

    /// # Errors
    /// Those of connect.
    pub fn try_open_unix(path: &Path) -> io::Result<Self> {
        // The standard library's type for TCP serves for any stream of bytes.
        let stream = TcpStream::from(OwnedFd::from(UnixStream::connect(path)?));
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let addr = SocketAddr::from(([127, 0, 0, 1], 80));
        Ok(Self { stream, tls: None, addr, ahead: Vec::new(), asked: VecDeque::new() })
    }

    /// What it calls its host.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The socket and the bytes read ahead, for another protocol.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.ahead)
    }

    pub fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send_raw(bytes).expect("the server reads");
    }

    /// As [`Conn::send_raw`], for a server that may have hung up.
    ///
    /// # Errors
    /// Those of write.
    pub fn try_send_raw(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.write_all(&mut self.stream, bytes.as_ref()),
            None => self.stream.write_all(bytes.as_ref()),
        }
    }

    /// Sends a request; its answer is read by [`Conn::read_response`]. Adds `Host`, and `Content-Length` to a body or
    /// a POST, unless given.
    pub fn send(&mut self, method: &str, target: &str, headers: Headers, body: impl AsRef<[u8]>) {
        self.try_send(method, target, headers, body).expect("the server reads");
    }

    /// As [`Conn::send`], to a server that may have hung up.
    ///
    /// # Errors
    /// Those of write.
    pub fn try_send(
        &mut self,
        method: &str,
        target: &str,
        headers: Headers,
        body: impl AsRef<[u8]>,
    ) -> io::Result<()> {
        let wire = wire(self.addr, method, target, headers, body.as_ref());
        self.asked.push_back(method.to_owned());
        self.try_send_raw(wire)
    }

    /// Sends a request and reads its answer.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: Headers,
        body: impl AsRef<[u8]>,
    ) -> Response {
        self.send(method, target, headers, body);
        self.read_response()
    }

    pub fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[], "")
    }

    /// A request was sent by other hands: its answer is read by [`Conn::read_response`].
    pub fn expect_answer_to(&mut self, method: &str) {
        self.asked.push_back(method.to_owned());
    }

    /// The next final answer, whole.
    ///
    /// # Panics
    /// When the connection ends, or the answer is none of HTTP's.
    pub fn read_response(&mut self) -> Response {
        self.try_read_response().unwrap_or_else(|error| {
            panic!("no answer: {error}; read so far: {:?}", String::from_utf8_lossy(&self.ahead))
        })
    }

    /// # Errors
    /// Those of read; `UnexpectedEof` when the connection was closed before the answer's end.
    pub fn try_read_response(&mut self) -> io::Result<Response> {
        let method = self.asked.pop_front().unwrap_or_default();
        let mut response = self.next_head()?;
        response.body = self.read_body(&method, &response)?;
        Ok(response)
    }

    /// The head of the next final answer; its body is left to the caller (a stream, say).
    pub fn read_head(&mut self) -> Response {
        self.try_read_head().unwrap_or_else(|error| {
            panic!("no head: {error}; read so far: {:?}", String::from_utf8_lossy(&self.ahead))
        })
    }

    /// What has been read ahead and waits to be taken.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Takes `count` bytes.
    ///
    /// # Errors
    /// Those of read; `UnexpectedEof` when the connection ends first.
    pub fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < count {
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.ahead.drain(..count).collect())
    }

    /// Takes all up to and including `mark`.
    ///
    /// # Errors
    /// Those of read; `UnexpectedEof` when the connection ends first.
    pub fn take_through(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        let mut from = 0;
        loop {
            let at = self.ahead[from..].windows(mark.len()).position(|part| part == mark);
            if let Some(at) = at {
                return Ok(self.ahead.drain(..from + at + mark.len()).collect());
            }
            from = self.ahead.len().saturating_sub(mark.len() - 1);
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Takes all until the connection is closed.
    ///
    /// # Errors
    /// Those of read.
    pub fn take_all(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? > 0 {}
        Ok(std::mem::take(&mut self.ahead))
    }

    /// Reads once more into what is ahead: how many bytes came, 0 at the end.
    ///
    /// # Errors
    /// Those of read; `WouldBlock` at the socket's timeout.
    pub fn fill(&mut self) -> io::Result<usize> {
        let mut part = [0; 16 * 1024];
        let count = loop {
            let read = match &mut self.tls {
                Some(tls) => tls.read(&mut self.stream, &mut part),
                None => self.stream.read(&mut part),
            };
            match read {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.ahead.extend_from_slice(&part[..count]);
        Ok(count)
    }

    /// How the connection goes on within `patience`.
    pub fn end_within(&mut self, patience: Duration) -> End {
        if !self.ahead.is_empty() {
            return End::Bytes;
        }
        self.stream.set_read_timeout(Some(patience)).expect("a timeout above zero");
        let end = match self.fill() {
            Ok(0) => End::Closed,
            Ok(_) => End::Bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => End::Open,
            Err(_) => End::Reset,
        };
        self.stream.set_read_timeout(Some(DEADLINE)).expect("a timeout above zero");
        end
    }

    /// Waits for an orderly end with nothing before it.
    ///
    /// # Panics
    /// When bytes or a reset come, or nothing in time.
    pub fn eof(&mut self) {
        let end = self.end_within(DEADLINE);
        assert_eq!(end, End::Closed, "ahead: {:?}", String::from_utf8_lossy(&self.ahead));
    }

    /// Asserts that nothing comes for a while: neither bytes nor an end.
    pub fn quiet(&mut self, patience: Duration) {
        let end = self.end_within(patience);
        assert_eq!(end, End::Open, "ahead: {:?}", String::from_utf8_lossy(&self.ahead));
    }

    pub fn set_timeout(&mut self, timeout: Duration) {
        self.stream.set_read_timeout(Some(timeout)).expect("a timeout above zero");
    }

    /// Says that nothing more will be sent.
    pub fn shutdown_write(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("an open socket");
    }

    /// Ends with RST instead of FIN.
    #[allow(unsafe_code)]
    pub fn abort(self) {
        use std::os::fd::AsRawFd;
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let size = libc::socklen_t::try_from(size_of::<libc::linger>()).expect("small");
        // SAFETY: the descriptor is open while `self` lives; `linger` has the size given and lives through the call.
        let done = unsafe {
            libc::setsockopt(
                self.stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size,
            )
        };
        assert_eq!(done, 0, "SO_LINGER: {}", io::Error::last_os_error());
    }

    /// As [`Conn::read_head`], from a server that may have hung up.
    ///
    /// # Errors
    /// Those of read; `UnexpectedEof` when the connection was closed before the head's end.
    pub fn try_read_head(&mut self) -> io::Result<Response> {
        self.asked.pop_front();
        self.next_head()
    }

    fn next_head(&mut self) -> io::Result<Response> {
        let mut interim = Vec::new();
        loop {
            let head = self.take_through(b"\r\n\r\n")?;
            let mut response = Response::of_head(&head).unwrap_or_else(|| {
                panic!("not a head of HTTP/1.1: {:?}", String::from_utf8_lossy(&head));
            });
            if (100..200).contains(&response.status) && response.status != 101 {
                interim.push(response.status);
                continue;
            }
            response.interim = interim;
            return Ok(response);
        }
    }

    fn read_body(&mut self, method: &str, response: &Response) -> io::Result<Vec<u8>> {
        if method == "HEAD" || matches!(response.status, 101 | 204 | 304) {
            return Ok(Vec::new());
        }
        if response.get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            let mut body = Vec::new();
            loop {
                let line = self.take_through(b"\r\n")?;
                let size = std::str::from_utf8(&line[..line.len() - 2]).expect("a chunk's size");
                let size = usize::from_str_radix(size, 16).expect("a chunk's size");
                let chunk = self.take(size + 2)?;
                assert!(chunk.ends_with(b"\r\n"), "a chunk ends with CRLF");
                if size == 0 {
                    return Ok(body);
                }
                body.extend_from_slice(&chunk[..size]);
            }
        }
        match response.get("content-length") {
            Some(length) => self.take(length.parse().expect("a length")),
            None => self.take_all(),
        }
    }
}

/// The bytes of a request, as [`Conn::send`] sends them.
pub fn wire(addr: SocketAddr, method: &str, target: &str, headers: Headers, body: &[u8]) -> Vec<u8> {
    let given = |name: &str| headers.iter().any(|(is, _)| is.eq_ignore_ascii_case(name));
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    if !given("host") {
        head += &format!("Host: {addr}\r\n");
    }
    if (method == "POST" || !body.is_empty()) && !given("content-length") && !given("transfer-encoding") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let mut wire = head.into_bytes();
    wire.extend_from_slice(body);
    wire
}

/// One request on a connection of its own.
pub fn ask(
    addr: SocketAddr,
    method: &str,
    target: &str,
    headers: Headers,
    body: impl AsRef<[u8]>,
) -> Response {
    Conn::open(addr).request(method, target, headers, body)
}

pub fn get(addr: SocketAddr, target: &str) -> Response {
    ask(addr, "GET", target, &[], "")
}

pub fn post(addr: SocketAddr, target: &str, headers: Headers, body: impl AsRef<[u8]>) -> Response {
    ask(addr, "POST", target, headers, body)
}

/// Publishes a text to one channel (its name as it stands in a URL); its id.
#[track_caller]
pub fn publish(addr: SocketAddr, channel: &str, text: &str) -> String {
    let answer = post(addr, &format!("/channels/{channel}"), &[("Content-Type", "text/plain")], text);
    published(&answer)
}

/// The id in the answer to a publish to one channel.
#[track_caller]
pub fn published(answer: &Response) -> String {
    assert_eq!(answer.status, 201, "{answer}");
    let body = answer.json();
    let list = body["published"].as_array().unwrap_or_else(|| panic!("`published` in {answer}"));
    assert_eq!(list.len(), 1, "{answer}");
    list[0]["id"].as_str().unwrap_or_else(|| panic!("an id in {answer}")).to_owned()
}

/// A poll's answer, its form checked.
#[derive(Debug, Clone)]
pub struct Poll {
    pub messages: Vec<Value>,
    pub cursor: String,
    pub gap: bool,
    pub gaps: Vec<String>,
}

impl Poll {
    #[track_caller]
    pub fn of(answer: &Response) -> Self {
        assert_eq!(answer.status, 200, "{answer}");
        assert_eq!(answer.header("content-type"), "application/json", "{answer}");
        let body = answer.json();
        let gap = body["gap"].as_bool().unwrap_or_else(|| panic!("`gap` in {answer}"));
        let gaps: Vec<String> = body
            .get("gaps")
            .map(|gaps| serde_json::from_value(gaps.clone()).unwrap_or_else(|_| panic!("`gaps` in {answer}")))
            .unwrap_or_default();
        assert_eq!(gap, !gaps.is_empty(), "`gaps` stands exactly with a gap: {answer}");
        Self {
            messages: body["messages"]
                .as_array()
                .cloned()
                .unwrap_or_else(|| panic!("`messages` in {answer}")),
            cursor: body["cursor"]
                .as_str()
                .map(str::to_owned)
                .unwrap_or_else(|| panic!("`cursor` in {answer}")),
            gap,
            gaps,
        }
    }

    /// The texts (or JSON values) of its messages.
    pub fn data(&self) -> Vec<Value> {
        self.messages.iter().map(|message| message["data"].clone()).collect()
    }

    pub fn ids(&self) -> Vec<String> {
        self.messages.iter().map(|message| message["id"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// The newest message of a channel.
#[track_caller]
pub fn newest(addr: SocketAddr, channel: &str) -> Value {
    let poll = poll(addr, &format!("/channels/{channel}"));
    assert_eq!(poll.messages.len(), 1, "{poll:?}");
    poll.messages[0].clone()
}

/// A short poll's answer.
#[track_caller]
pub fn poll(addr: SocketAddr, target: &str) -> Poll {
    Poll::of(&get(addr, target))
}

/// The cursor at a channel's head (`channel` as it stands in a URL).
#[track_caller]
pub fn head_cursor(addr: SocketAddr, channel: &str) -> String {
    poll(addr, &format!("/channels/{channel}?limit=0")).cursor
}

/// Asserts the `Vary` of a read.
#[track_caller]
pub fn varies(answer: &Response) {
    for name in ["Accept", "Prefer", "Origin"] {
        assert!(answer.lists("vary", name), "Vary: {name} in {answer}");
    }
}

/// How long something took.
pub fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = act();
    (value, start.elapsed())
}

/// The lines of the answer to a batch.
#[track_caller]
pub fn batch(addr: SocketAddr, lines: &str) -> Vec<Value> {
    batch_with(addr, &[], lines)
}

#[track_caller]
pub fn batch_with(addr: SocketAddr, headers: Headers, lines: &str) -> Vec<Value> {
    let headers = [&[("Content-Type", "application/x-ndjson")], headers].concat();
    let answer = post(addr, "/publish", &headers, lines);
    assert!((200..300).contains(&answer.status), "{answer}");
    assert_eq!(answer.header("content-type"), "application/x-ndjson", "{answer}");
    answer.text().lines().map(|line| serde_json::from_str(line).expect("JSON in each line")).collect()
}

/// The id in a batch's line.
#[track_caller]
pub fn line_id(line: &Value) -> String {
    line["id"].as_str().unwrap_or_else(|| panic!("an id in {line}")).to_owned()
}
