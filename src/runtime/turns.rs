//! Long work in slices: how a thread that has much to do for one lets all others have their turn.

use std::future::Future;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::io::EventFd;
use super::sendring::BATCH_MAX;
use super::stream::Awaited;

/// How long the fan-out, or any other long work, may hold the thread.
const SLICE: Duration = Duration::from_millis(1);
/// Where workers share a CPU, each sends its part of so many, then lets the others: a message that comes by way of three
/// workers waits for three rounds.
const ROUND_SENDS: usize = 48;
/// What a send takes, about.
const SEND: Duration = Duration::from_micros(10);

/// How long a worker's turn is, before other work of its own is done, and that of workers which share its CPU.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Sends in one batch of the fan-out.
    pub sends_max: usize,
    /// The same as time, for work of which nobody knows what it takes.
    pub slice: Duration,
    /// There are more workers than CPUs: a turn of the fan-out is one batch.
    pub shares_cpu: bool,
}

impl Turn {
    pub fn new(workers: usize, cpus: usize) -> Self {
        if workers <= cpus {
            return Self { sends_max: BATCH_MAX, slice: SLICE, shares_cpu: false };
        }
        let sends_max = (ROUND_SENDS * cpus / workers).clamp(4, BATCH_MAX);
        Self { sends_max, slice: SEND * sends_max as u32, shares_cpu: true }
    }
}

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
