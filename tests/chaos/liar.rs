//! Clients that no server would wish for. Each does one thing after the other, chosen by its seed, and never expects more
//! than that the server lets it connect.

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use super::door::Door;
use super::{World, breaker, forger, framer, impostor};
use crate::common::http::{Conn, wire};
use crate::common::receive_buffer;
use crate::common::rng::Rng;
use crate::common::ws::{self, masked};

/// Channels that liars publish to, and read.
pub const CHANNELS: usize = 4;

pub fn name(channel: usize) -> String {
    format!("liar/{channel}")
}

/// One of those who liars say they are.
pub fn subject(rng: &mut Rng) -> String {
    format!("liar-{}", rng.below(5))
}

/// Liars' addresses begin with this one, and are so many.
const LIARS: usize = 100;
const ADDRESSES: usize = 3;
/// How long a socket may take what is written to it.
const MOMENT: Duration = Duration::from_millis(100);

/// One connection of a liar's.
pub struct Liar<'r> {
    pub conn: Conn,
    /// What it calls its host.
    pub addr: SocketAddr,
    pub door: Door,
    /// Its address.
    pub who: u8,
    pub rng: &'r mut Rng,
    pub world: &'r World,
}

pub type Trick = fn(&mut Liar<'_>);

const TRICKS: [Trick; 12] = [
    |liar| liar.says_nothing(),
    |liar| liar.cuts_a_request(),
    |liar| liar.drips(),
    |liar| liar.sends_noise(),
    |liar| liar.greets_by_tls(),
    |liar| liar.asks_two_ways(),
    |liar| liar.promises_a_body(),
    |liar| liar.floods_requests(),
    |liar| liar.publishes_and_hangs_up(),
    |liar| liar.stops_reading_a_stream(),
    |liar| liar.reads_by_the_byte(),
    |liar| liar.asks_for_a_panic(),
];

/// Lies until it is over, in all ways that there are and in some `more`.
pub fn lie(world: &World, more: &[Trick], mut rng: Rng) {
    let usual = [&TRICKS[..], &framer::TRICKS, &forger::TRICKS].concat();
    while world.goes_on() {
        let door = *rng.pick(&Door::ALL);
        let who = u8::try_from(LIARS + rng.below(ADDRESSES)).expect("few");
        // A proxy that lies does so before anything else.
        let is_impostor = door.is_behind_proxy() && rng.once_in(4);
        let tricks = if is_impostor {
            &impostor::TRICKS[..]
        } else if rng.once_in(4) {
            more
        } else if door.is_tls() && rng.once_in(3) {
            &breaker::TRICKS[..]
        } else {
            &usual
        };
        let trick = *rng.pick(tricks);
        let conn =
            if is_impostor { world.doors.knock(door, who) } else { world.doors.enter(door, who, &mut rng) };
        let mut liar = Liar::new(world, conn.expect("the server takes connections"), door, who, &mut rng);
        trick(&mut liar);
        liar.leave();
    }
}

impl<'r> Liar<'r> {
    pub fn new(world: &'r World, conn: Conn, door: Door, who: u8, rng: &'r mut Rng) -> Self {
        Self { addr: conn.addr(), conn, door, who, rng, world }
    }
}

impl Liar<'_> {
    /// One more connection, by the same door.
    pub fn another(&mut self) -> Conn {
        let conn = self.world.doors.enter(self.door, self.who, self.rng);
        let mut conn = conn.expect("the server takes connections");
        conn.set_timeout(MOMENT);
        let _ = conn.stream().set_write_timeout(Some(MOMENT));
        conn
    }

    /// In one of the ways that a connection may end.
    pub fn leave(mut self) {
        match self.rng.below(4) {
            0 => self.conn.abort(),
            1 if self.door.is_tls() && self.rng.once_in(2) => self.conn.close_notify(),
            1 => {
                let _ = self.conn.stream().shutdown(Shutdown::Write);
                self.listen(Duration::from_millis(20));
            }
            2 => {
                let _ = self.conn.stream().shutdown(Shutdown::Both);
            }
            _ => {}
        }
    }

    /// Writes what the socket takes within a moment. False: no more.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.hurry();
        self.conn.try_send_raw(bytes).is_ok()
    }

    /// The same of bytes as they stand on the wire.
    pub fn put(&mut self, bytes: &[u8]) -> bool {
        self.hurry();
        self.conn.stream().write_all(bytes).is_ok()
    }

    fn hurry(&self) {
        let _ = self.conn.stream().set_write_timeout(Some(MOMENT));
    }

    /// Reads, and forgets, for so long or to the end. False: it ended.
    pub fn listen(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            self.conn.set_timeout(left.min(Duration::from_millis(50)));
            match self.conn.fill() {
                Ok(0) => return false,
                Ok(_) => drop(self.conn.take(self.conn.ahead().len())),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
    }

    pub fn wait(&mut self, ms_max: usize) {
        std::thread::sleep(Duration::from_millis(self.rng.within(0..=ms_max) as u64));
    }

    pub fn target(&mut self) -> String {
        format!("/channels/{}", name(self.rng.below(CHANNELS)))
    }

    /// A request that is right.
    pub fn request(&mut self) -> Vec<u8> {
        let (addr, target) = (self.addr, self.target());
        match self.rng.below(6) {
            0 => wire(addr, "GET", &target, &[], b""),
            1 => wire(addr, "GET", &format!("{target}?limit=0"), &[("If-None-Match", "\"x\"")], b""),
            2 => wire(addr, "GET", &target, &[("Accept", "text/event-stream")], b""),
            3 => {
                let body = "y".repeat(self.rng.by_scale(13));
                wire(addr, "POST", &target, &[("Content-Type", "text/plain")], body.as_bytes())
            }
            4 => {
                let lines = "{\"channel\":\"liar/0\",\"data\":1}\nno JSON\n".repeat(self.rng.within(1..=20));
                wire(addr, "POST", "/publish", &[("Content-Type", "application/x-ndjson")], lines.as_bytes())
            }
            _ => ws::request(addr, &target, &[]),
        }
    }

    /// Becomes a WebSocket. False: it was not let.
    pub fn upgrade(&mut self, v1: bool) -> bool {
        let headers: &[(&str, &str)] = if v1 { &[("Sec-WebSocket-Protocol", ws::V1_NAME)] } else { &[] };
        let request = ws::request(self.addr, &self.target(), headers);
        self.say(&request) && self.listen(Duration::from_millis(30))
    }

    fn says_nothing(&mut self) {
        self.wait(1_500);
    }

    fn cuts_a_request(&mut self) {
        let request = self.request();
        let cut = self.rng.below(request.len());
        self.say(&request[..cut]);
        self.wait(200);
    }

    fn drips(&mut self) {
        let request = self.request();
        for byte in request {
            if !self.say(&[byte]) || !self.world.goes_on() {
                break;
            }
            self.wait(10);
        }
        self.listen(Duration::from_millis(50));
    }

    fn sends_noise(&mut self) {
        let noise: Vec<u8> = (0..self.rng.by_scale(14)).map(|_| self.rng.next() as u8).collect();
        self.say(&noise);
        self.listen(Duration::from_millis(50));
    }

    fn greets_by_tls(&mut self) {
        self.put(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
        self.listen(Duration::from_millis(50));
    }

    fn asks_two_ways(&mut self) {
        let pairs = [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Content-Length: 3\r\nContent-Length: 4",
            "Transfer-Encoding: chunked, chunked",
            "Host: elsewhere",
            "Content-Length: -1",
            "Content-Length: 99999999999999999999",
        ];
        let pair = *self.rng.pick(&pairs);
        let host = self.addr;
        self.say(format!("POST /channels/liar/0 HTTP/1.1\r\nHost: {host}\r\n{pair}\r\n\r\nabc").as_bytes());
        self.listen(Duration::from_millis(50));
    }

    fn promises_a_body(&mut self) {
        let host = self.addr;
        let head = format!("POST /channels/liar/1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 16000\r\n\r\n");
        self.say(head.as_bytes());
        let part = vec![b'z'; self.rng.below(16_000)];
        self.say(&part);
        self.wait(800);
    }

    fn floods_requests(&mut self) {
        let many: Vec<u8> = (0..self.rng.within(50..=400)).flat_map(|_| self.request()).collect();
        self.say(&many);
        self.wait(100);
        if self.rng.once_in(2) {
            self.listen(Duration::from_millis(200));
        }
    }

    fn publishes_and_hangs_up(&mut self) {
        for _ in 0..self.rng.within(1..=50) {
            let target = self.target();
            let body = "w".repeat(self.rng.by_scale(13));
            let request =
                wire(self.addr, "POST", &target, &[("Content-Type", "text/plain")], body.as_bytes());
            self.say(&request);
        }
    }

    fn stops_reading_a_stream(&mut self) {
        receive_buffer(self.conn.stream(), 4 * 1024);
        let target = format!("{}?history=1000", self.target());
        let request = wire(self.addr, "GET", &target, &[("Accept", "text/event-stream")], b"");
        self.say(&request);
        self.wait(2_500);
        if self.rng.once_in(2) {
            self.listen(Duration::from_millis(300));
        }
    }

    fn reads_by_the_byte(&mut self) {
        receive_buffer(self.conn.stream(), 4 * 1024);
        let target = format!("{}?history=1000", self.target());
        let request = wire(self.addr, "GET", &target, &[("Accept", "text/event-stream")], b"");
        self.say(&request);
        self.conn.set_timeout(Duration::from_millis(20));
        let mut byte = [0];
        for _ in 0..200 {
            use std::io::Read as _;
            let _ = self.conn.stream().read(&mut byte);
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    fn asks_for_a_panic(&mut self) {
        self.world.panics.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        if self.rng.once_in(2) {
            let request = wire(self.addr, "GET", "/$debug/panic", &[], b"");
            self.say(&request);
        } else if self.upgrade(false) {
            self.say(&masked(true, ws::TEXT, b"$debug/panic"));
        }
        self.listen(Duration::from_millis(100));
    }
}
