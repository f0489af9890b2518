//! Clients that lie about who they are by their tokens: ended, taken back, forged, or hoarded as tickets.

use std::time::Duration;

use super::liar::{Liar, Trick, subject};
use crate::common::http::wire;
use crate::common::token;
use crate::common::ws;

pub const TRICKS: [Trick; 3] =
    [|liar| liar.outstays_its_token(), |liar| liar.shows_a_bad_token(), |liar| liar.hoards_tickets()];

impl Liar<'_> {
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
}
