//! Proxies that lie, or are broken: headers of the PROXY protocol that are cut, torn, none, or two.

use std::time::Duration;

use super::door::{introduction, version_2};
use super::liar::{Liar, Trick};

pub const TRICKS: [Trick; 7] = [
    |liar| liar.introduces_nobody(),
    |liar| liar.cuts_its_introduction(),
    |liar| liar.drips_its_introduction(),
    |liar| liar.changes_its_introduction(),
    |liar| liar.introduces_wrongly(),
    |liar| liar.introduces_twice(),
    |liar| liar.speaks_for_itself(),
];

impl Liar<'_> {
    fn introduction(&mut self) -> Vec<u8> {
        introduction(self.who, self.rng)
    }

    /// A request, or a handshake, and nothing before it.
    fn introduces_nobody(&mut self) {
        let request = self.request();
        self.say(&request);
        self.listen(Duration::from_millis(50));
    }

    fn cuts_its_introduction(&mut self) {
        let header = self.introduction();
        let cut = self.rng.below(header.len());
        self.put(&header[..cut]);
        self.wait(1_500);
    }

    fn drips_its_introduction(&mut self) {
        for byte in self.introduction() {
            if !self.put(&[byte]) || !self.world.goes_on() {
                return;
            }
            self.wait(4);
        }
        let request = self.request();
        self.say(&request);
        self.listen(Duration::from_millis(100));
    }

    fn changes_its_introduction(&mut self) {
        let mut header = self.introduction();
        let at = self.rng.below(header.len());
        header[at] ^= 1 << self.rng.below(8);
        self.put(&header);
        let request = self.request();
        self.say(&request);
        self.listen(Duration::from_millis(100));
    }

    fn introduces_wrongly(&mut self) {
        let long = [b"PROXY UNKNOWN ", &[b'x'; 200][..], b"\r\n"].concat();
        let wrong: [Vec<u8>; 8] = [
            b"PROXY TCP4 nonsense\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.1 10.0.0.1 99999 80\r\n".to_vec(),
            b"PROXY TCP6 203.0.113.1 10.0.0.1 1 80\r\n".to_vec(),
            b"\r\n".to_vec(),
            // Addresses that are too short; a version that is none; a length that does not come.
            version_2(0x21, 0x11, &[1]),
            version_2(0x31, 0x11, &[0; 12]),
            version_2(0x21, 0x11, &[0; 4_097]),
            long,
        ];
        let header = self.rng.pick(&wrong).clone();
        self.put(&header);
        let request = self.request();
        self.say(&request);
        self.listen(Duration::from_millis(50));
    }

    /// The second is no request, and no handshake.
    fn introduces_twice(&mut self) {
        let header = [self.introduction(), self.introduction()].concat();
        self.put(&header);
        let request = self.request();
        self.say(&request);
        self.listen(Duration::from_millis(50));
    }

    /// As checks do.
    fn speaks_for_itself(&mut self) {
        let own = [b"PROXY UNKNOWN\r\n".to_vec(), version_2(0x20, 0, &[]), version_2(0x21, 0, &[])];
        let header = self.rng.pick(&own).clone();
        self.put(&header);
        let request = self.request();
        self.say(&request);
        self.listen(Duration::from_millis(50));
    }
}
