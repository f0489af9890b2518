//! Clients that lie by WebSocket: frames that are none, floods of those that are, and sockets that nobody reads.

use std::time::Duration;

use serde_json::json;

use super::liar::{Liar, Trick};
use crate::common::receive_buffer;
use crate::common::ws::{self, masked};

pub const TRICKS: [Trick; 5] = [
    |liar| liar.stops_reading_a_socket(),
    |liar| liar.breaks_frames(),
    |liar| liar.floods_pings(),
    |liar| liar.floods_fragments(),
    |liar| liar.floods_subscriptions(),
];

impl Liar<'_> {
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
}
