//! The one who publishes: over one connection (HTTP, WebSocket or TCP), one message at a time or many together.

use std::io::Write as _;
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::api::{Api, Publish, channel_name, template};
use crate::message::{self, Stamp};
use crate::order::By;
use crate::sources::Place;
use crate::template::{Fields, Template};
use crate::{http, net, ws};

const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// How messages reach the server.
enum Way {
    /// Whole requests, each answered.
    Http,
    /// Frames of this opcode, not answered.
    Ws(u8),
    Tcp,
}

/// Where and how is published.
pub struct Target {
    dest: SocketAddrV4,
    host: String,
    way: Way,
    /// A whole HTTP request, or a frame's payload, or bytes.
    single: Template,
    batch: Option<Template>,
    /// The handshake of a WebSocket, which is answered.
    handshake: Vec<u8>,
    /// What is said before the first message. After the handshake's answer: servers in Go refuse what comes early.
    hello: Vec<u8>,
    message_bytes: usize,
}

impl Target {
    pub fn new(api: &Api, place: &Place, message_bytes: usize) -> Result<Self> {
        let Place { host, address: dest } = place.clone();
        let batch = api.batch.as_ref().map(|path| {
            Template::parse(http::publish_template("POST", &host, path, "application/x-ndjson").as_bytes())
        });
        let mut target = Self {
            dest,
            host: host.clone(),
            way: Way::Http,
            single: Template::default(),
            batch,
            handshake: Vec::new(),
            hello: Vec::new(),
            message_bytes,
        };
        // Without any, who publishes is refused.
        let Some(publish) = &api.publish else { return Ok(target) };
        match publish {
            Publish::Http { method, path } => {
                let request = http::publish_template(method, &host, path, "text/plain");
                target.single = Template::parse(request.as_bytes());
            }
            Publish::Ws { path, subprotocol, hello, frame } => {
                let (single, text) = template(frame)?;
                target.way = Way::Ws(if text { ws::TEXT } else { ws::BINARY });
                target.single = single;
                target.handshake = handshake(&host, path, subprotocol.as_deref());
                for piece in hello {
                    let (payload, text) = piece.bytes()?;
                    let opcode = if text { ws::TEXT } else { ws::BINARY };
                    ws::write_client_frame(&mut target.hello, opcode, &payload);
                }
            }
            Publish::Tcp { port, hello, frame } => {
                target.way = Way::Tcp;
                target.single = template(frame)?.0;
                target.dest.set_port(port.unwrap_or(dest.port()));
                for piece in hello {
                    target.hello.extend(piece.bytes()?.0);
                }
            }
        }
        Ok(target)
    }

    pub fn is_answered(&self) -> bool {
        matches!(self.way, Way::Http)
    }

    /// As requests say it.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn dest(&self) -> SocketAddrV4 {
        self.dest
    }

    pub fn message_bytes(&self) -> usize {
        self.message_bytes
    }

    /// Appends one publish; `body` is the caller's room.
    pub fn write_single(&self, out: &mut Vec<u8>, body: &mut Vec<u8>, channel: usize, stamp: Stamp) {
        body.clear();
        message::write(body, stamp, self.message_bytes);
        let channel = channel_name(channel);
        let fields = Fields { channel: &channel, body, ..Fields::default() };
        match self.way {
            Way::Http | Way::Tcp => self.single.write(out, fields),
            Way::Ws(opcode) => {
                let mut payload = Vec::new();
                self.single.write(&mut payload, fields);
                ws::write_client_frame(out, opcode, &payload);
            }
        }
    }

    /// Appends one batch of messages with their channels.
    pub fn write_batch(
        &self,
        out: &mut Vec<u8>,
        body: &mut Vec<u8>,
        messages: impl Iterator<Item = (usize, Stamp)>,
    ) -> Result<()> {
        body.clear();
        for (channel, stamp) in messages {
            body.extend_from_slice(b"{\"channel\":\"");
            body.extend_from_slice(&channel_name(channel));
            body.extend_from_slice(b"\",\"data\":\"");
            message::write(body, stamp, self.message_bytes);
            body.extend_from_slice(b"\"}\n");
        }
        let batch = self.batch.as_ref().context("this server takes no batches")?;
        batch.write(out, Fields { body, ..Fields::default() });
        Ok(())
    }
}

fn handshake(host: &str, path: &str, subprotocol: Option<&str>) -> Vec<u8> {
    let key = format!("Sec-WebSocket-Key: {}", ws::KEY);
    let subprotocol = subprotocol.map(|subprotocol| format!("Sec-WebSocket-Protocol: {subprotocol}"));
    let mut fields = vec!["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", &key];
    fields.extend(subprotocol.as_deref());
    http::get(host, path, &fields)
}

/// One open connection. Made anew for each order: servers end idle ones.
pub struct Publisher<'a> {
    target: &'a Target,
    stream: TcpStream,
    /// Bytes read beyond the last answer.
    input: Vec<u8>,
    out: Vec<u8>,
    body: Vec<u8>,
    /// Requests whose answers have not come.
    pub unanswered: usize,
}

impl<'a> Publisher<'a> {
    pub fn connect(target: &'a Target) -> Result<Self> {
        let mut stream = TcpStream::connect(target.dest).context("connecting the publisher")?;
        stream.set_nodelay(true)?;
        stream.write_all(&target.handshake)?;
        let (input, out, body) = (Vec::new(), Vec::new(), Vec::new());
        let mut publisher = Self { target, stream, input, out, body, unanswered: 0 };
        if let Way::Ws(_) = target.way {
            publisher.unanswered = 1;
            publisher.collect(0)?;
            // What the server says from here on is not looked at.
        }
        publisher.stream.write_all(&target.hello)?;
        Ok(publisher)
    }

    /// Writes what is to be published together. Answers are collected later.
    pub fn publish(&mut self, messages: &[(usize, Stamp)], by: By) -> Result<()> {
        self.out.clear();
        match by {
            By::Pipeline => {
                for &(channel, stamp) in messages {
                    self.target.write_single(&mut self.out, &mut self.body, channel, stamp);
                }
            }
            By::Batch => {
                self.target.write_batch(&mut self.out, &mut self.body, messages.iter().copied())?;
            }
        }
        if self.target.is_answered() {
            self.unanswered += if by == By::Batch { 1 } else { messages.len() };
        }
        let written = self.stream.write_all(&self.out).context("publishing");
        // A server that has closed may have said why.
        self.collect_ready().and(written)
    }

    /// Waits until at most `left` requests are unanswered.
    pub fn collect(&mut self, left: usize) -> Result<()> {
        let until = Instant::now() + ANSWER_PATIENCE;
        while self.unanswered > left {
            if Instant::now() > until {
                bail!(
                    "{} publishes were not answered within {} s",
                    self.unanswered,
                    ANSWER_PATIENCE.as_secs()
                );
            }
            net::wait_readable(self.stream.as_raw_fd(), 100)?;
            self.collect_ready()?;
        }
        Ok(())
    }

    /// Takes the answers that are there.
    pub fn collect_ready(&mut self) -> Result<()> {
        let (mut room, mut closed) = ([0; 16 * 1024], false);
        loop {
            match net::recv(self.stream.as_raw_fd(), &mut room) {
                Ok(0) => {
                    closed = true;
                    break;
                }
                Ok(got) if self.unanswered > 0 => self.input.extend_from_slice(&room[..got]),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("reading answers to publishes"),
            }
        }
        let mut at = 0;
        while self.unanswered > 0
            && let Some(answer) = http::parse_answer(&self.input[at..])
        {
            let whole = &self.input[at..at + answer.used];
            if !matches!(answer.status, 101 | 200..=299) {
                bail!("publish was answered {}", String::from_utf8_lossy(whole));
            }
            // A batch is answered line by line: one that failed must not pass for published.
            if memchr::memmem::find(&whole[answer.head_bytes..], b"\"error\"").is_some() {
                bail!("a batch was answered {}", String::from_utf8_lossy(whole));
            }
            at += answer.used;
            self.unanswered -= 1;
        }
        self.input.drain(..at);
        // Only now: a refusal may have come before.
        if closed {
            bail!("the server closed the publisher's connection");
        }
        Ok(())
    }
}
