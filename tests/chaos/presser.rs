//! Clients that press against the memory budget, in each way that it counts: history, requests and messages that come in
//! part, readers of large messages, TLS, channels that are subscribed to.

use std::io::Write as _;

use super::liar::{Liar, Trick};
use crate::common::http::{Conn, wire};
use crate::common::receive_buffer;
use crate::common::ws::{self, TEXT, V1_NAME, masked};

pub const TRICKS: [Trick; 6] = [
    |liar| liar.begins_bodies(),
    |liar| liar.begins_messages(),
    |liar| liar.fills_history(),
    |liar| liar.owes_the_reading(),
    |liar| liar.begins_handshakes(),
    |liar| liar.subscribes_to_long_names(),
];

/// Most of the largest message.
const LARGE: usize = 60_000;

impl Liar<'_> {
    /// So many more connections that each say this and are held for a while. No more than their first bytes where the
    /// server does not take them.
    fn crowd(&mut self, count: usize, said: impl Fn(&mut Self) -> Vec<u8>) {
        let mut held: Vec<Conn> = Vec::new();
        for _ in 0..count {
            if !self.world.goes_on() {
                return;
            }
            let mut conn = self.another();
            receive_buffer(conn.stream(), 4 * 1024);
            let _ = conn.try_send_raw(said(self));
            held.push(conn);
        }
        self.wait(800);
    }

    fn begins_bodies(&mut self) {
        let target = self.target();
        let whole = wire(self.addr, "POST", &target, &[], &[b'b'; LARGE]);
        self.crowd(100, |_| whole[..whole.len() - 100].to_vec());
    }

    fn begins_messages(&mut self) {
        let mut begun = ws::request(self.addr, &self.target(), &[]);
        begun.extend(masked(false, TEXT, &[b'm'; LARGE]));
        self.crowd(100, |_| begun.clone());
    }

    fn fills_history(&mut self) {
        for _ in 0..100 {
            let whole = wire(self.addr, "POST", &self.target(), &[], &[b'h'; LARGE]);
            if !self.say(&whole) {
                return;
            }
        }
        self.wait(100);
    }

    /// Of messages that are large.
    fn owes_the_reading(&mut self) {
        self.crowd(60, |liar| {
            if liar.rng.once_in(2) {
                return ws::request(liar.addr, &liar.target(), &[]);
            }
            let target = format!("{}?history=20", liar.target());
            wire(liar.addr, "GET", &target, &[("Accept", "text/event-stream")], b"")
        });
    }

    /// Their first bytes, where TLS is spoken; nothing where it is not.
    fn begins_handshakes(&mut self) {
        let mut held = Vec::new();
        for _ in 0..150 {
            let mut conn = self.another();
            let mut hello = Vec::new();
            if self.door.is_tls() {
                conn.tls().conn.write_tls(&mut hello).expect("a vector");
            }
            let _ = conn.stream().write_all(&hello);
            held.push(conn);
        }
        self.wait(800);
    }

    fn subscribes_to_long_names(&mut self) {
        let names: Vec<String> =
            (0..32).map(|number| format!("{}-{:0180}", self.rng.below(4), number)).collect();
        let target = format!("/channels/{}", names.join(","));
        let request = ws::request(self.addr, &target, &[("Sec-WebSocket-Protocol", V1_NAME)]);
        self.crowd(60, |_| request.clone());
    }
}
