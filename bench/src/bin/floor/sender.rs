//! How the floor sends: one `send(2)` for each reader, or Pushline's ring. Waits for a reader that is full.

use std::io;
use std::os::fd::RawFd;

use pushline::runtime::sendring::{BATCH_MAX, Outcome, Send, SendRing};
use pushline_bench::net;

/// How long a reader whose socket is full may hold up all others.
const FULL_PATIENCE_MS: i32 = 1_000;

pub fn send_one(fd: RawFd, bytes: &[u8]) {
    match net::send(fd, bytes) {
        Ok(sent) if sent == bytes.len() => {}
        Ok(sent) => send_rest(fd, &bytes[sent..]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => send_rest(fd, bytes),
        // A reader that has gone is met again by its own event.
        Err(_) => {}
    }
}

pub fn send_by_ring<'a>(ring: &mut SendRing, mut due: impl Iterator<Item = Send<'a>>, batch: usize) {
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
