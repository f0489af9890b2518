//! Clients that no server would wish for. Each does one thing after the other, chosen by its seed, and never expects more
//! than that the server lets it connect.

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{World, breaker};
use crate::common::http::{Conn, wire};
use crate::common::receive_buffer;
use crate::common::rng::Rng;
use crate::common::token;
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

/// One connection of a liar's.
pub struct Liar<'r> {
    pub conn: Conn,
    /// Where it came to.
    pub addr: SocketAddr,
    pub rng: &'r mut Rng,
    pub world: &'r World,
}

pub type Trick = fn(&mut Liar<'_>);

const TRICKS: [Trick; 20] = [
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
    |liar| liar.stops_reading_a_socket(),
    |liar| liar.reads_by_the_byte(),
    |liar| liar.breaks_frames(),
    |liar| liar.floods_pings(),
    |liar| liar.floods_fragments(),
    |liar| liar.floods_subscriptions(),
    |liar| liar.asks_for_a_panic(),
    |liar| liar.outstays_its_token(),
    |liar| liar.shows_a_bad_token(),
    |liar| liar.hoards_tickets(),
];

pub fn lie(world: &World, mut rng: Rng) {
    while world.goes_on() {
        let by_tls = rng.once_in(2);
        let addr = if by_tls { world.tls } else { world.plain };
        // By TLS the same, inside of it; or TLS itself is lied to.
        let breaks_tls = by_tls && rng.once_in(3);
        let trick = *rng.pick(if breaks_tls { &breaker::TRICKS[..] } else { &TRICKS[..] });
        let Ok(conn) = Conn::try_open(addr) else {
            panic!("the server does not take connections any more");
        };
        let mut liar = Liar { conn, addr, rng: &mut rng, world };
        trick(&mut liar);
        liar.leave();
    }
}

impl Liar<'_> {
    /// In one of the ways that a connection may end.
    fn leave(mut self) {
        match self.rng.below(4) {
            0 => self.conn.abort(),
            1 if self.addr == self.world.tls && self.rng.once_in(2) => self.conn.close_notify(),
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
        let _ = self.conn.stream().set_write_timeout(Some(Duration::from_millis(100)));
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

    fn target(&mut self) -> String {
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
    fn upgrade(&mut self, v1: bool) -> bool {
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

    fn stops_reading_a_socket(&mut self) {
        receive_buffer(self.conn.stream(), 4 * 1024);
        let is_v1 = self.rng.once_in(2);
        if self.upgrade(is_v1) {
            // What comes back to it piles up.
            for _ in 0..self.rng.within(1..=200) {
                let frame = if is_v1 {
                    let body = "v".repeat(self.rng.by_scale(12));
                    json!({"type": "publish", "channel": "liar/2", "data": body, "seq": 1}).to_string()
                } else {
                    "u".repeat(self.rng.by_scale(12))
                };
                if !self.say(&masked(true, ws::TEXT, frame.as_bytes())) {
                    break;
                }
            }
            self.wait(1_500);
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

    fn breaks_frames(&mut self) {
        let v1 = self.rng.once_in(2);
        if !self.upgrade(v1) {
            return;
        }
        let broken: [&[u8]; 8] = [
            // Unmasked; a reserved bit; an opcode that is none; a ping of 126 bytes; a length the long way; a
            // continuation of nothing; a length of 2^63; text that is not UTF-8.
            &[0x81, 0x01, b'a'],
            &[0xc1, 0x80, 0, 0, 0, 0],
            &[0x83, 0x80, 0, 0, 0, 0],
            &[0x89, 0xfe, 0, 126, 0, 0, 0, 0],
            &[0x81, 0xfe, 0, 1, 0, 0, 0, 0, b'a'],
            &[0x80, 0x80, 0, 0, 0, 0],
            &[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xfe],
        ];
        let frame = *self.rng.pick(&broken);
        self.say(frame);
        self.listen(Duration::from_millis(100));
    }

    fn floods_pings(&mut self) {
        if self.upgrade(false) {
            let pings: Vec<u8> = (0..2_000).flat_map(|_| masked(true, ws::PING, b"are you there")).collect();
            self.say(&pings);
            self.wait(300);
        }
    }

    fn floods_fragments(&mut self) {
        if self.upgrade(false) {
            let mut fragments = masked(false, ws::TEXT, b"a");
            for _ in 0..2_000 {
                fragments.extend(masked(false, 0, b"b"));
            }
            self.say(&fragments);
            self.wait(300);
        }
    }

    fn floods_subscriptions(&mut self) {
        if !self.upgrade(true) {
            return;
        }
        for _ in 0..300 {
            let channel = format!("liar/{}", self.rng.below(200));
            let kind = if self.rng.once_in(2) { "subscribe" } else { "unsubscribe" };
            let frame = json!({"type": kind, "channel": channel}).to_string();
            if !self.say(&masked(true, ws::TEXT, frame.as_bytes())) {
                return;
            }
        }
        self.listen(Duration::from_millis(200));
    }

    /// A token that ends, or is taken back, while it is used.
    fn outstays_its_token(&mut self) {
        let subject = subject(self.rng);
        let until = token::now_s() + self.rng.within(1..=3) as u64;
        let token = token::of(&subject).until(until).sign();
        let target = self.target();
        if self.rng.once_in(2) {
            let headers = [("Accept", "text/event-stream"), ("Authorization", &*token::bearer(&token))];
            let request = wire(self.addr, "GET", &target, &headers, b"");
            self.say(&request);
        } else {
            let request = ws::request(self.addr, &format!("{target}?token={token}"), &[]);
            self.say(&request);
        }
        for _ in 0..self.rng.within(1..=30) {
            if !self.listen(Duration::from_millis(100)) || !self.world.goes_on() {
                return;
            }
        }
    }

    fn shows_a_bad_token(&mut self) {
        let good = token::of("liar-0").sign();
        let ended = token::of("liar-0").until(token::now_s() - 10).sign();
        let (head, signature) = good.rsplit_once('.').unwrap_or_default();
        let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
        let none = format!("eyJhbGciOiJub25lIn0.{}.", head.split('.').nth(1).unwrap_or_default());
        let long = "x".repeat(self.rng.by_scale(15));
        let tokens = [ended, forged, none, long, String::new(), ".".into(), "..".into(), "\u{1}".into()];
        let token = self.rng.pick(&tokens).clone();
        let request = if self.rng.once_in(2) {
            let bearer = token::bearer(&token);
            wire(self.addr, "GET", &self.target(), &[("Authorization", &bearer)], b"")
        } else {
            ws::request(self.addr, &format!("{}?token={token}", self.target()), &[])
        };
        self.say(&request);
        self.listen(Duration::from_millis(50));
    }

    fn hoards_tickets(&mut self) {
        let bearer = token::bearer(&token::of(&subject(self.rng)).sign());
        let request = wire(self.addr, "POST", "/tickets", &[("Authorization", &bearer)], b"");
        for _ in 0..self.rng.within(1..=100) {
            if !self.say(&request) {
                return;
            }
        }
        self.listen(Duration::from_millis(100));
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
