//! Clients that lie to TLS itself: handshakes that are cut, are none, or come by the dozen; records that are torn, changed, or
//! of a byte each; keys that are renewed without end.

use std::io::Write as _;
use std::time::Duration;

use super::liar::{Liar, Trick};

pub const TRICKS: [Trick; 9] = [
    |liar| liar.cuts_a_handshake(),
    |liar| liar.speaks_plainly(),
    |liar| liar.floods_handshakes(),
    |liar| liar.changes_a_record(),
    |liar| liar.tears_a_record(),
    |liar| liar.speaks_in_records_of_a_byte(),
    |liar| liar.sends_the_wire_byte_by_byte(),
    |liar| liar.renews_its_keys(),
    |liar| liar.goes_on_after_its_goodbye(),
];

impl Liar<'_> {
    /// What its TLS has to say now, after these plain bytes.
    fn sealed(&mut self, plain: &[u8]) -> Vec<u8> {
        let conn = &mut self.conn.tls().conn;
        let mut wire = Vec::new();
        let _ = conn.writer().write_all(plain);
        while conn.wants_write() {
            conn.write_tls(&mut wire).expect("a vector");
        }
        wire
    }

    /// Its handshake, to the end. False: it was not let.
    fn shakes_hands(&mut self) -> bool {
        self.say(b"")
    }

    fn cuts_a_handshake(&mut self) {
        let hello = self.sealed(b"");
        let cut = self.rng.within(0..=hello.len());
        self.put(&hello[..cut]);
        self.wait(1_500);
        self.put(&hello[cut..]);
    }

    fn speaks_plainly(&mut self) {
        let request = self.request();
        let cut = self.rng.within(1..=request.len());
        self.put(&request[..cut]);
        self.listen(Duration::from_millis(100));
    }

    fn floods_handshakes(&mut self) {
        let mut begun = Vec::new();
        for _ in 0..self.rng.within(1..=30) {
            let mut conn = self.another();
            let mut hello = Vec::new();
            conn.tls().conn.write_tls(&mut hello).expect("a vector");
            let _ = conn.stream().write_all(&hello);
            begun.push(conn);
        }
        self.wait(100);
    }

    fn changes_a_record(&mut self) {
        if !self.shakes_hands() {
            return;
        }
        let request = self.request();
        let mut wire = self.sealed(&request);
        let at = self.rng.below(wire.len());
        wire[at] ^= 1 << self.rng.below(8);
        self.put(&wire);
        self.listen(Duration::from_millis(100));
    }

    fn tears_a_record(&mut self) {
        if self.shakes_hands() {
            let request = self.request();
            let wire = self.sealed(&request);
            let cut = self.rng.below(wire.len());
            self.put(&wire[..cut]);
            self.wait(1_500);
        }
    }

    fn speaks_in_records_of_a_byte(&mut self) {
        let request = self.request();
        let many = request.iter().all(|byte| self.say(&[*byte]));
        if many {
            self.listen(Duration::from_millis(100));
        }
    }

    fn sends_the_wire_byte_by_byte(&mut self) {
        if !self.shakes_hands() {
            return;
        }
        let _ = self.conn.stream().set_nodelay(true);
        let request = self.request();
        for byte in self.sealed(&request) {
            if !self.put(&[byte]) || !self.world.goes_on() {
                return;
            }
        }
        self.listen(Duration::from_millis(100));
    }

    /// Each has the server renew its own, which this client may not read.
    fn renews_its_keys(&mut self) {
        if !self.shakes_hands() {
            return;
        }
        let request = self.request();
        self.say(&request);
        for _ in 0..self.rng.within(1..=300) {
            if self.conn.tls().conn.refresh_traffic_keys().is_err() || !self.say(b"") {
                return;
            }
        }
        if self.rng.once_in(2) {
            self.say(&request);
            self.listen(Duration::from_millis(100));
        }
    }

    fn goes_on_after_its_goodbye(&mut self) {
        if !self.shakes_hands() {
            return;
        }
        let request = self.request();
        let before = self.sealed(&request);
        self.conn.close_notify();
        self.put(&before);
        self.listen(Duration::from_millis(50));
    }
}
