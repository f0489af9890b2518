//! `floor`: the least that any server can do to fan a message out.
//!
//! Answers a WebSocket upgrade or an SSE request with canned bytes, and sends each message that is `POST`ed
//! to every reader with one `send(2)`, in the order of descriptors. No history, no ids, no limits, no checks.
//! With `--coalesce`, all messages that came while it was sending go out as one send to each reader.
//! With `--ring N`, Pushline's send ring takes the place of `send(2)`, N sends to a system call.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::Barrier;
use std::thread;

use anyhow::{Context as _, Result};
use clap::Parser;

use pushline::runtime::sendring::{BATCH_MAX, Outcome, Send, SendRing};
use pushline_bench::net::{self, Epoll, Events};
use pushline_bench::{http, ws};

#[derive(Parser)]
#[command(about = "The least any server can do: canned answers, and one send(2) for each reader")]
struct Args {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddrV4,
    /// Threads, each with a listener and a file table of its own
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Send what came during a pass together in the next
    #[arg(long)]
    coalesce: bool,
    /// Send through Pushline's send ring, so many to a system call
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=BATCH_MAX as u64))]
    ring: Option<u64>,
    /// CPU to stay on
    #[arg(long)]
    cpu: Option<usize>,
}

const BACKLOG: i32 = 4096;
const SCRATCH_BYTES: usize = 256 * 1024;
/// How long a reader whose socket is full may hold up all others.
const FULL_PATIENCE_MS: i32 = 1_000;

fn main() -> Result<()> {
    let args = Args::parse();
    net::raise_open_files()?;
    if let Some(cpu) = args.cpu {
        net::pin(cpu)?;
    }
    // Made first, so that the descriptors that all threads keep are the lowest.
    let pairs: Vec<_> = (0..args.threads).map(|_| net::packet_pair()).collect::<io::Result<_>>()?;
    let last_shared =
        pairs.iter().flat_map(|(a, b)| [a.as_raw_fd(), b.as_raw_fd()]).max().expect("at least one thread");
    let inboxes: Vec<(RawFd, RawFd)> = pairs.iter().map(|(a, b)| (a.as_raw_fd(), b.as_raw_fd())).collect();
    let reserved = net::bind(args.listen)?;
    let address = SocketAddrV4::new(*args.listen.ip(), net::local_port(&reserved)?);
    let listening = Barrier::new(args.threads + 1);
    thread::scope(|scope| {
        for index in 0..args.threads {
            let (args, inboxes, listening) = (&args, &inboxes, &listening);
            scope.spawn(move || {
                let made = Worker::new(address, index, inboxes, last_shared, args);
                listening.wait();
                if let Err(error) = made.and_then(|mut worker| worker.run()) {
                    eprintln!("floor: thread {index}: {error:#}");
                    std::process::exit(1);
                }
            });
        }
        listening.wait();
        drop(reserved);
        eprintln!("{{\"message\":\"serving\",\"listen\":\"{address}\",\"threads\":{}}}", args.threads);
    });
    Ok(())
}

/// What a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    None,
    /// Has not asked for a stream: publishes.
    Control,
    Raw,
    V1,
    Sse,
}

const READER_ROLES: [Role; 3] = [Role::Raw, Role::V1, Role::Sse];

struct Conn {
    /// Kept to be closed with the entry; sends name it by its number.
    #[expect(dead_code, reason = "owned, not read")]
    socket: Option<OwnedFd>,
    role: Role,
}

/// Bytes to be sent to the readers of each role, in the order of `READER_ROLES`.
type Framed = [Vec<u8>; 3];

struct Worker {
    epoll: Epoll,
    listener: OwnedFd,
    inbox: OwnedFd,
    /// Sending ends of the other threads' inboxes.
    others: Vec<OwnedFd>,
    coalesce: bool,
    ring: Option<SendRing>,
    /// Sends to a system call, through the ring.
    batch: usize,
    /// By descriptor.
    conns: Vec<Conn>,
    readers: [usize; 3],
    /// Requests that were cut, of the few connections that publish.
    cut: Vec<(RawFd, Vec<u8>)>,
    framed: Framed,
    published: u64,
}

impl Worker {
    fn new(
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
            conns: Vec::new(),
            readers: [0; 3],
            cut: Vec::new(),
            framed: Framed::default(),
            published: 0,
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut events = Events::new(1024);
        let mut scratch = vec![0; SCRATCH_BYTES];
        loop {
            for event in self.epoll.wait(&mut events, -1)? {
                let fd = event.u64 as RawFd;
                if fd == self.listener.as_raw_fd() {
                    self.accept()?;
                } else if fd == self.inbox.as_raw_fd() {
                    while let Ok(got @ 1..) = net::recv(fd, &mut scratch) {
                        let message = scratch[..got].to_vec();
                        self.take(&message);
                    }
                } else {
                    self.on_bytes(fd, &mut scratch);
                }
            }
            self.fan_out();
        }
    }

    fn accept(&mut self) -> Result<()> {
        while let Some(socket) = net::accept(self.listener.as_raw_fd())? {
            let fd = socket.as_raw_fd();
            net::set_no_delay(fd)?;
            self.epoll.add(fd, net::IN, fd as u64)?;
            if self.conns.len() <= fd as usize {
                self.conns.resize_with(fd as usize + 1, || Conn { socket: None, role: Role::None });
            }
            self.conns[fd as usize] = Conn { socket: Some(socket), role: Role::Control };
        }
        Ok(())
    }

    fn on_bytes(&mut self, fd: RawFd, scratch: &mut [u8]) {
        match net::recv(fd, scratch) {
            Ok(0) => self.close(fd),
            // What readers say (pongs) is nothing to us.
            Ok(_) if self.conns[fd as usize].role != Role::Control => {}
            Ok(got) => {
                let mut input = match self.cut.iter().position(|(cut, _)| *cut == fd) {
                    Some(at) => self.cut.swap_remove(at).1,
                    None => Vec::new(),
                };
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

    fn close(&mut self, fd: RawFd) {
        let conn = &mut self.conns[fd as usize];
        if let Some(at) = READER_ROLES.iter().position(|&role| role == conn.role) {
            self.readers[at] -= 1;
        }
        *conn = Conn { socket: None, role: Role::None };
        self.cut.retain(|(cut, _)| *cut != fd);
    }

    /// Answers the whole requests at the front of `input` and returns how many bytes they take.
    fn on_requests(&mut self, fd: RawFd, input: &[u8]) -> usize {
        let mut at = 0;
        while let Some(head_bytes) = http::head_end(&input[at..]) {
            let head = &input[at..at + head_bytes];
            let body_from = at + head_bytes;
            let body_to = body_from + http::content_length(head);
            let Some(body) = input.get(body_from..body_to) else { break };
            if head.starts_with(b"GET ") {
                self.on_get(fd, head);
            } else {
                self.on_post(fd, head, body);
            }
            at = body_to;
        }
        at
    }

    fn on_get(&mut self, fd: RawFd, head: &[u8]) {
        let (at, answer) = if http::field(head, "upgrade").is_some() {
            let v1 = http::field(head, "sec-websocket-protocol").is_some();
            let chosen = if v1 { "Sec-WebSocket-Protocol: pushline.v1\r\n" } else { "" };
            let mut answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {}\r\n{chosen}\r\n",
                ws::ACCEPT
            )
            .into_bytes();
            if v1 {
                let subscribed =
                    br#"{"type":"subscribed","channel":"bench","cursor":"0000000000000000","gap":false}"#;
                ws::write_frame(&mut answer, ws::TEXT, br#"{"type":"open","connection":"0000000000000000"}"#);
                ws::write_frame(&mut answer, ws::TEXT, subscribed);
            }
            (usize::from(v1), answer)
        } else {
            let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\
                          Connection: close\r\n\r\nretry: 2000\nevent: $open\ndata: {}\nid: 0\n\n";
            (2, answer.as_bytes().to_vec())
        };
        self.conns[fd as usize].role = READER_ROLES[at];
        self.readers[at] += 1;
        let _ = net::send(fd, &answer);
    }

    fn on_post(&mut self, fd: RawFd, head: &[u8], body: &[u8]) {
        let created = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 59\r\n\r\n\
                       {\"published\":[{\"channel\":\"bench\",\"id\":\"0000000000000000\"}]}";
        let _ = net::send(fd, created.as_bytes());
        let batch = http::field(head, "content-type").is_some_and(|kind| kind.contains("ndjson"));
        if batch {
            for line in body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                self.publish(text_of(line));
            }
        } else {
            self.publish(body);
        }
    }

    fn publish(&mut self, message: &[u8]) {
        for other in &self.others {
            let _ = net::send_packet(other.as_raw_fd(), message);
        }
        self.take(message);
    }

    /// Frames a message; sends it at once unless messages are to ride together.
    fn take(&mut self, message: &[u8]) {
        self.published += 1;
        let id = self.published;
        let [raw, v1, sse] = &mut self.framed;
        ws::write_frame(raw, ws::TEXT, message);
        if self.readers[1] > 0 {
            let text = String::from_utf8_lossy(message);
            let envelope = format!(
                r#"{{"type":"message","channel":"bench","id":"{id:016}","ts":1700000000000,"data":"{text}"}}"#
            );
            ws::write_frame(v1, ws::TEXT, envelope.as_bytes());
        }
        if self.readers[2] > 0 {
            sse.extend_from_slice(b"data: ");
            sse.extend_from_slice(message);
            sse.extend_from_slice(format!("\nid: {id:016}\n\n").as_bytes());
        }
        if !self.coalesce {
            self.fan_out();
        }
    }

    fn fan_out(&mut self) {
        if self.framed[0].is_empty() {
            return;
        }
        let Self { conns, framed, ring, batch, .. } = self;
        let due = conns.iter().enumerate().filter_map(|(fd, conn)| {
            let bytes = match conn.role {
                Role::Raw => &framed[0],
                Role::V1 => &framed[1],
                Role::Sse => &framed[2],
                Role::None | Role::Control => return None,
            };
            Some(Send { fd: fd as RawFd, bytes })
        });
        match ring {
            Some(ring) => send_by_ring(ring, due, *batch),
            None => due.for_each(|send| send_one(send.fd, send.bytes)),
        }
        self.framed.iter_mut().for_each(Vec::clear);
    }
}

fn send_one(fd: RawFd, bytes: &[u8]) {
    match net::send(fd, bytes) {
        Ok(sent) if sent == bytes.len() => {}
        Ok(sent) => send_rest(fd, &bytes[sent..]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => send_rest(fd, bytes),
        // A reader that has gone is met again by its own event.
        Err(_) => {}
    }
}

fn send_by_ring<'a>(ring: &mut SendRing, mut due: impl Iterator<Item = Send<'a>>, batch: usize) {
    let mut sends = [Send { fd: -1, bytes: &[] }; BATCH_MAX];
    let mut outcomes = Vec::new();
    loop {
        let mut count = 0;
        for (place, send) in sends[..batch].iter_mut().zip(&mut due) {
            *place = send;
            count += 1;
        }
        if count == 0 {
            return;
        }
        ring.send_batch(&sends[..count], &mut outcomes);
        for (index, outcome) in outcomes.drain(..) {
            let Send { fd, bytes } = sends[index as usize];
            match outcome {
                Outcome::Short(sent) => send_rest(fd, &bytes[sent..]),
                Outcome::Full => send_rest(fd, bytes),
                Outcome::Whole | Outcome::Failed(_) => {}
            }
        }
    }
}

/// Waits for a full reader: messages stay whole, and all others wait with it.
fn send_rest(fd: RawFd, mut rest: &[u8]) {
    while !rest.is_empty() && net::wait_writable(fd, FULL_PATIENCE_MS).is_ok() {
        match net::send(fd, rest) {
            Ok(sent) => rest = &rest[sent..],
            Err(_) => return,
        }
    }
}

/// The string in `"data":"…"` of a batch's line. Escapes are passed on as they are.
fn text_of(line: &[u8]) -> &[u8] {
    let start = memchr::memmem::find(line, b"\"data\":\"").map_or(line.len(), |at| at + 8);
    let rest = &line[start..];
    &rest[..memchr::memchr(b'"', rest).unwrap_or(rest.len())]
}
