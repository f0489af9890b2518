//! What every black-box test needs: a server of its own on port 0, and clients held by hand.
//! Owns no expectations of the contract; those stand in the tests.

// Each test binary uses its own part of this.
#![allow(dead_code)]

pub mod http;
pub mod server;

use std::time::{Duration, Instant};

/// The bound of every wait. Generous: a machine under load is slow, not wrong.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Asks again until `ask` gives a value, for what no event tells (a file in /proc, another process).
///
/// # Panics
/// With `what` when the deadline passes.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = ask() {
            return value;
        }
        assert!(Instant::now() < end, "waited {DEADLINE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
