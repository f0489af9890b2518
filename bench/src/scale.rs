//! How large and how long: what the command line asks for, and what each scenario takes where it asks for nothing.

use crate::lab::{Crowd, Shape};
use crate::order::Order;
use crate::transport::Transport;

#[derive(Debug, Clone)]
pub struct Scale {
    pub quick: bool,
    pub readers: Option<usize>,
    pub rounds: Option<usize>,
    /// Groups of messages in each round.
    pub groups: Option<u32>,
    pub message_bytes: usize,
    pub transports: Vec<Transport>,
    /// Seconds of quiet before memory is read.
    pub hold_s: Option<u64>,
    /// Handshakes per second.
    pub rate_per_s: u32,
}

/// Readers that a worker can hold, with room for an uneven spread: its file table has 20,000 descriptors here.
const READERS_PER_WORKER: usize = 16_500;

/// Deliveries in a turn: a sixth of a second or more.
const DELIVERIES_MIN: usize = 40_000;

impl Scale {
    pub fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    pub fn rounds(&self) -> usize {
        self.rounds.unwrap_or(self.pick(5, 25))
    }

    pub fn groups(&self) -> u32 {
        self.groups.unwrap_or(self.pick(3, 4))
    }

    /// As many, or more where there are few readers: in a turn of some milliseconds a server is measured that has just
    /// been pushed out of every cache by those before it.
    pub fn groups_of(&self, readers: usize) -> u32 {
        let long = (DELIVERIES_MIN / readers.max(1)) as u32;
        self.groups.unwrap_or(self.groups().max(long))
    }

    /// The sizes asked for, or these.
    pub fn sizes(&self, quick: &[usize], full: &[usize]) -> Vec<usize> {
        self.readers.map_or_else(|| self.pick(quick, full).to_vec(), |readers| vec![readers])
    }

    pub fn size(&self, quick: usize, full: usize) -> usize {
        self.readers.unwrap_or(self.pick(quick, full))
    }

    pub fn transports(&self, default: &[Transport]) -> Vec<Transport> {
        if self.transports.is_empty() { default.to_vec() } else { self.transports.clone() }
    }

    /// A crowd on the load's CPU, all on one channel.
    pub fn crowd(&self, transport: Transport, readers: usize) -> Crowd {
        Crowd {
            transport,
            readers,
            members: None,
            rate_per_s: self.rate_per_s,
            message_bytes: self.message_bytes,
            pinned: true,
            args: Vec::new(),
        }
    }
}

/// A server on its CPU with as few workers as hold the readers.
pub fn shape(readers: usize) -> Shape {
    Shape {
        workers: readers.div_ceil(READERS_PER_WORKER).max(1),
        connections: readers,
        pinned: true,
        settings: Vec::new(),
    }
}

/// A few messages, before those that count.
pub const WARM_UP: Order =
    Order::Groups { messages: 3, together: 1, by: crate::order::By::Pipeline, random: false };
