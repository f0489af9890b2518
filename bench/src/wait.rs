//! What `waiting` tells the runner.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How sockets wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Waiter {
    /// A level-triggered epoll set.
    Epoll,
    /// A poll in a ring, armed again after each wake.
    RingOnce,
    /// A multishot poll in a ring: armed once.
    RingMulti,
}

impl Waiter {
    pub fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::RingOnce => "ring-once",
            Self::RingMulti => "ring-multi",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Epoll => "epoll set",
            Self::RingOnce => "ring, single polls",
            Self::RingMulti => "ring, multishot polls",
        }
    }
}

/// For each socket, or each wake, in bytes and nanoseconds of the waiter's CPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Waited {
    pub kernel_bytes: f64,
    pub arm_ns: f64,
    /// All sockets have input at once.
    pub wake_all_ns: f64,
    /// 64 have.
    pub wake_some_ns: f64,
    /// One has.
    pub wake_one_ns: f64,
    pub end_ns: f64,
    /// Bytes that were written and not read.
    pub lost: u64,
}
