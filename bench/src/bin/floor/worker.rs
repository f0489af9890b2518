//! One thread of the floor: a listener, an epoll set, a table of connections by descriptor.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::Instant;

use anyhow::{Context as _, Result};

use pushline::runtime::sendring::{BATCH_MAX, Send, SendRing};
use pushline_bench::net::{self, Epoll, Events};
use pushline_bench::{http, ws};

use crate::Args;
use crate::channel::{Channel, RAW, SSE, V1};
use crate::sender::{send_by_ring, send_one};

const BACKLOG: i32 = 4096;
const SCRATCH_BYTES: usize = 256 * 1024;
/// Between two slices of a round of pings.
const PING_SLICE_MS: i32 = 50;
const PINGS: [&[u8]; 3] = [&[0x89, 0], &[0x89, 0], b":\n"];
const CREATED: &[u8] =
    b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 62\r\n\r\n\
    {\"published\":[{\"channel\":\"c0000000\",\"id\":\"0000000000000000\"}]}";

/// What a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    None,
    /// Has not asked for a stream: publishes, or polls.
    Control,
    Held,
    /// Reads a stream, by its index.
    Stream(u8),
}

struct Conn {
    /// Kept to be closed with the entry; sends name it by its number.
    #[expect(dead_code, reason = "owned, not read")]
    socket: Option<OwnedFd>,
    channel: u32,
    /// Where it stands among its channel's readers.
    place: u32,
    role: Role,
}

const NOBODY: Conn = Conn { socket: None, channel: 0, place: 0, role: Role::None };

pub struct Worker {
    epoll: Epoll,
    listener: OwnedFd,
    inbox: OwnedFd,
    /// Sending ends of the other threads' inboxes.
    others: Vec<OwnedFd>,
    coalesce: bool,
    ring: Option<SendRing>,
    /// Sends to a system call, through the ring.
    batch: usize,
    ping_s: Option<f64>,
    /// Sends that are left out, and made twice: every so manieth.
    lose: Option<u64>,
    repeat: Option<u64>,
    sends: u64,
    /// By descriptor.
    conns: Vec<Conn>,
    names: HashMap<Vec<u8>, u32>,
    channels: Vec<Channel>,
    /// Channels that have something to send.
    due: Vec<u32>,
    /// Requests that were cut, of the few connections that publish.
    cut: Vec<(RawFd, Vec<u8>)>,
    /// Heads that open a stream.
    opened: [Vec<u8>; 3],
}

impl Worker {
    pub fn new(
        address: SocketAddrV4,
        index: usize,
        inboxes: &[(RawFd, RawFd)],
        last_shared: RawFd,
        args: &Args,
    ) -> Result<Self> {
        net::own_file_table(last_shared).context("a file table of its own")?;
        let ring =
            args.ring.map(|_| SendRing::uring(BATCH_MAX as u32)).transpose().context("the send ring")?;
        let inbox = net::adopt(inboxes[index].1);
        let others = inboxes
            .iter()
            .enumerate()
            .filter(|&(other, _)| other != index)
            .map(|(_, &(sending, _))| net::adopt(sending))
            .collect();
        let listener = net::bind(address)?;
        net::listen(&listener, BACKLOG)?;
        let epoll = Epoll::new()?;
        for fd in [listener.as_raw_fd(), inbox.as_raw_fd()] {
            epoll.add(fd, net::IN, fd as u64)?;
        }
        Ok(Self {
            epoll,
            listener,
            inbox,
            others,
            coalesce: args.coalesce,
            ring,
            batch: args.ring.unwrap_or(0) as usize,
            ping_s: args.ping,
            lose: args.lose,
            repeat: args.repeat,
            sends: 0,
            conns: Vec::new(),
            names: HashMap::new(),
            channels: Vec::new(),
            due: Vec::new(),
            cut: Vec::new(),
            opened: opened(),
        })
    }

    pub fn run(&mut self) -> Result<()> {
        let mut events = Events::new(1024);
        let mut scratch = vec![0; SCRATCH_BYTES];
        let began = Instant::now();
        let mut pinged = 0;
        let timeout_ms = if self.ping_s.is_some() { PING_SLICE_MS } else { -1 };
        loop {
            for event in self.epoll.wait(&mut events, timeout_ms)? {
                let fd = event.u64 as RawFd;
                if fd == self.listener.as_raw_fd() {
                    self.accept()?;
                } else if fd == self.inbox.as_raw_fd() {
                    while let Ok(got @ 1..) = net::recv(fd, &mut scratch) {
                        let message = scratch[..got].to_vec();
                        let (name, message) = message.split_at(8);
                        self.take(name, message);
                    }
                } else {
                    self.on_bytes(fd, &mut scratch);
                }
            }
            self.fan_out();
            if let Some(ping_s) = self.ping_s {
                pinged = self.ping(pinged, began.elapsed().as_secs_f64() / ping_s);
            }
        }
    }

    /// Pings the readers whose turn has come in `round` (whole rounds, and a part), each round in the order of
    /// descriptors. `done`: rounds times connections that have had theirs.
    fn ping(&mut self, done: usize, round: f64) -> usize {
        let all = self.conns.len();
        if all == 0 {
            return 0;
        }
        let due = (round * all as f64) as usize;
        // The table has grown meanwhile, or this thread was held up: nobody is owed two at once.
        let from = if done > due { due } else { done.max(due.saturating_sub(all)) };
        for at in from..due {
            let fd = at % all;
            if let Role::Stream(stream) = self.conns[fd].role {
                let _ = net::send(fd as RawFd, PINGS[usize::from(stream)]);
            }
        }
        due
    }

    fn accept(&mut self) -> Result<()> {
        while let Some(socket) = net::accept(self.listener.as_raw_fd())? {
            let fd = socket.as_raw_fd();
            net::set_no_delay(fd)?;
            self.epoll.add(fd, net::IN, fd as u64)?;
            if self.conns.len() <= fd as usize {
                self.conns.resize_with(fd as usize + 1, || NOBODY);
            }
            self.conns[fd as usize] = Conn { socket: Some(socket), role: Role::Control, ..NOBODY };
        }
        Ok(())
    }

    fn on_bytes(&mut self, fd: RawFd, scratch: &mut [u8]) {
        match net::recv(fd, scratch) {
            Ok(0) => self.close(fd),
            Ok(got) if self.conns[fd as usize].role == Role::Stream(RAW as u8) => {
                self.on_frames(fd, &mut scratch[..got]);
            }
            // What other readers say (pongs) is nothing to us.
            Ok(_) if self.conns[fd as usize].role != Role::Control => {}
            Ok(got) => {
                let cut = self.cut.iter().position(|(cut, _)| *cut == fd);
                let Some(cut) = cut else {
                    let used = self.on_requests(fd, &scratch[..got]);
                    if used < got {
                        self.cut.push((fd, scratch[used..got].to_vec()));
                    }
                    return;
                };
                let mut input = self.cut.swap_remove(cut).1;
                input.extend_from_slice(&scratch[..got]);
                let used = self.on_requests(fd, &input);
                if used < input.len() {
                    self.cut.push((fd, input.split_off(used)));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.close(fd),
        }
    }

    /// Publishes what a reader says. A frame that is cut is not put together: those of a bench come whole.
    fn on_frames(&mut self, fd: RawFd, input: &mut [u8]) {
        let mut at = 0;
        while let Some((opcode, range)) = ws::unmask(&mut input[at..]) {
            if opcode == ws::TEXT {
                let channel = self.conns[fd as usize].channel;
                let name = self.channels[channel as usize].name.clone();
                self.publish(&name, &input[at + range.start..at + range.end]);
            }
            at += range.end;
        }
    }

    fn close(&mut self, fd: RawFd) {
        let Conn { channel, place, role, .. } = self.conns[fd as usize];
        match role {
            Role::Stream(stream) => {
                let readers = &mut self.channels[channel as usize].readers[usize::from(stream)];
                readers.swap_remove(place as usize);
                if let Some(&moved) = readers.get(place as usize) {
                    self.conns[moved as usize].place = place;
                }
            }
            Role::Held => self.channels[channel as usize].held.retain(|&held| held != fd),
            Role::None | Role::Control => {}
        }
        self.conns[fd as usize] = NOBODY;
        self.cut.retain(|(cut, _)| *cut != fd);
    }

    /// Answers the whole requests at the front of `input` and returns how many bytes they take.
    fn on_requests(&mut self, fd: RawFd, input: &[u8]) -> usize {
        let mut at = 0;
        while let Some(head_bytes) = http::head_end(&input[at..]) {
            let head = &input[at..at + head_bytes];
            if head.starts_with(b"GET ") {
                self.on_get(fd, head);
                at += head_bytes;
                continue;
            }
            let body_from = at + head_bytes;
            let body_to = body_from + http::content_length(head);
            let Some(body) = input.get(body_from..body_to) else { break };
            self.on_post(fd, head, body);
            at = body_to;
        }
        at
    }

    fn channel(&mut self, name: &[u8]) -> u32 {
        if let Some(&index) = self.names.get(name) {
            return index;
        }
        let index = self.channels.len() as u32;
        self.channels.push(Channel::new(name));
        self.names.insert(name.to_vec(), index);
        index
    }

    fn on_get(&mut self, fd: RawFd, head: &[u8]) {
        let (name, query) = asked(head);
        let channel = self.channel(name);
        let stream = if http::field(head, "upgrade").is_some() {
            if http::field(head, "sec-websocket-protocol").is_some() { V1 } else { RAW }
        } else if http::field(head, "accept").is_some() {
            SSE
        } else {
            return self.on_poll(fd, channel, query, head);
        };
        let readers = &mut self.channels[channel as usize].readers[stream];
        let conn = &mut self.conns[fd as usize];
        (conn.channel, conn.place, conn.role) = (channel, readers.len() as u32, Role::Stream(stream as u8));
        readers.push(fd);
        let _ = net::send(fd, &self.opened[stream]);
    }

    fn on_poll(&mut self, fd: RawFd, index: u32, query: &[u8], head: &[u8]) {
        let channel = &mut self.channels[index as usize];
        let Some(cursor) = query.strip_prefix(b"cursor=") else {
            let _ = match query {
                b"" => net::send(fd, channel.short_answer(head)),
                _ => net::send(fd, &channel.cursor_answer()),
            };
            return;
        };
        let digits = cursor.iter().take_while(|digit| digit.is_ascii_digit());
        let cursor = digits.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        match channel.held_answer(cursor) {
            Some(answer) => drop(net::send(fd, &answer)),
            None => {
                channel.held.push(fd);
                let conn = &mut self.conns[fd as usize];
                (conn.channel, conn.role) = (index, Role::Held);
            }
        }
    }

    fn on_post(&mut self, fd: RawFd, head: &[u8], body: &[u8]) {
        let _ = net::send(fd, CREATED);
        let (name, _) = asked(head);
        if name.is_empty() {
            for line in body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                self.publish(text_of(line, b"\"channel\":\""), text_of(line, b"\"data\":\""));
            }
        } else {
            self.publish(name, body);
        }
    }

    fn publish(&mut self, name: &[u8], message: &[u8]) {
        if !self.others.is_empty() {
            let packet = [name, message].concat();
            for other in &self.others {
                let _ = net::send_packet(other.as_raw_fd(), &packet);
            }
        }
        self.take(name, message);
    }

    /// Frames a message; sends it at once unless messages are to ride together.
    fn take(&mut self, name: &[u8], message: &[u8]) {
        let index = self.channel(name);
        let channel = &mut self.channels[index as usize];
        channel.take(message);
        if !std::mem::replace(&mut channel.due, true) {
            self.due.push(index);
        }
        if !self.coalesce {
            self.fan_out();
        }
    }

    fn fan_out(&mut self) {
        let mut turn = std::mem::take(&mut self.due);
        for index in turn.drain(..) {
            let channel = &mut self.channels[index as usize];
            channel.due = false;
            let framed = channel.readers.iter().zip(&channel.framed).filter(|(_, bytes)| !bytes.is_empty());
            let due = framed.flat_map(|(readers, bytes)| readers.iter().map(move |&fd| Send { fd, bytes }));
            let faulty = self.lose.is_some() || self.repeat.is_some();
            match &mut self.ring {
                None if faulty => due.for_each(|send| {
                    self.sends += 1;
                    let is_due =
                        |every: Option<u64>| every.is_some_and(|every| self.sends.is_multiple_of(every));
                    let times = if is_due(self.lose) { 0 } else { 1 + usize::from(is_due(self.repeat)) };
                    (0..times).for_each(|_| send_one(send.fd, send.bytes));
                }),
                Some(ring) => send_by_ring(ring, due, self.batch),
                None => due.for_each(|send| send_one(send.fd, send.bytes)),
            }
            channel.framed.iter_mut().for_each(Vec::clear);
            let Some((held, answer)) = channel.answer_held() else { continue };
            for fd in held {
                self.conns[fd as usize].role = Role::Control;
                send_one(fd, &answer);
            }
        }
        // Its room is kept.
        self.due = turn;
    }
}

/// Name of the channel and query of a request for `/channels/NAME?QUERY`; no name for another path.
fn asked(head: &[u8]) -> (&[u8], &[u8]) {
    let start = memchr::memchr(b'/', head).unwrap_or(0);
    let rest = &head[start..];
    let path = &rest[..memchr::memchr(b' ', rest).unwrap_or(rest.len())];
    let Some(name) = path.strip_prefix(b"/channels/") else { return (b"", b"") };
    match memchr::memchr(b'?', name) {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (name, b""),
    }
}

fn opened() -> [Vec<u8>; 3] {
    let upgrade = |chosen: &str| {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n{chosen}\r\n",
            ws::ACCEPT
        )
        .into_bytes()
    };
    let mut v1 = upgrade("Sec-WebSocket-Protocol: pushline.v1\r\n");
    ws::write_frame(&mut v1, ws::TEXT, br#"{"type":"open","connection":"0000000000000000"}"#);
    let subscribed = br#"{"type":"subscribed","channel":"bench","cursor":"0000000000000000","gap":false}"#;
    ws::write_frame(&mut v1, ws::TEXT, subscribed);
    let sse = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\
               Connection: close\r\n\r\nretry: 2000\nevent: $open\ndata: {}\nid: 0\n\n";
    [upgrade(""), v1, sse.as_bytes().to_vec()]
}

/// The string after `sign` in a batch's line. Escapes are passed on as they are.
fn text_of<'a>(line: &'a [u8], sign: &[u8]) -> &'a [u8] {
    let start = memchr::memmem::find(line, sign).map_or(line.len(), |at| at + sign.len());
    let rest = &line[start..];
    &rest[..memchr::memchr(b'"', rest).unwrap_or(rest.len())]
}
