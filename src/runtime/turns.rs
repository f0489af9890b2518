//! Long work in slices: how a thread that has much to do for one lets all others have their turn.

use std::future::Future;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::io::EventFd;
use super::stream::Awaited;

/// Slices long work of one client, so that readers get what it publishes while it publishes.
#[derive(Debug)]
pub struct Pace {
    steps: usize,
    bytes: usize,
    steps_max: usize,
}

/// Bytes that one client may publish in one go, and steps: what is published together goes to each reader in one send,
/// but no reader that keeps up may come to miss what history has dropped meanwhile.
const PACE_BYTES: usize = 256 * 1024;
const PACE_STEPS: RangeInclusive<usize> = 64..=256;

/// Publishes that one client may do in one go, where channels keep so many messages.
pub fn steps_max(history_messages: usize) -> usize {
    (history_messages / 4).clamp(*PACE_STEPS.start(), *PACE_STEPS.end())
}

impl Pace {
    /// For where channels keep so many messages.
    pub fn new(history_messages: usize) -> Self {
        Self { steps: 0, bytes: 0, steps_max: steps_max(history_messages) }
    }

    /// One step is done.
    pub async fn step(&mut self, bytes: usize) {
        self.steps += 1;
        self.bytes += bytes;
        if self.steps >= self.steps_max || self.bytes >= PACE_BYTES {
            self.rested();
            // A timer of the future: a task that wakes itself would be the next to run.
            // Boxed: seldom needed, and large.
            Box::pin(monoio::time::sleep(Duration::from_millis(1))).await;
        }
    }

    /// The work has waited anyway.
    pub fn rested(&mut self) {
        (self.steps, self.bytes) = (0, 0);
    }
}

/// Lets the driver take its turn between two slices of long work: monoio puts a task that wakes itself in front of
/// timers and accepts, so this one waits for a descriptor, which only the driver's park sees.
pub struct Breather {
    event: EventFd,
    ready: Awaited,
}

impl Breather {
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new()?;
        Ok(Self { ready: Awaited::duplicate_of(event.as_raw_fd())?, event })
    }

    pub async fn breathe(&self) {
        let mut readable = std::pin::pin!(self.ready.readable());
        let mut written = false;
        std::future::poll_fn(|cx| {
            let poll = readable.as_mut().poll(cx);
            if !std::mem::replace(&mut written, true) {
                // Only now, so that the poll above was pending.
                self.event.write();
            }
            poll
        })
        .await;
        self.event.drain();
    }
}
