//! The node's clocks: ticks for deadlines, which never go back, and the time of day for messages.
#![allow(unsafe_code)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds in a tick.
pub const TICK_MS: u64 = 100;

#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Of the kernel's coarse clock.
    started_ms: u64,
    started: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { started_ms: coarse_ms(), started: Instant::now() }
    }

    /// Milliseconds since 1970, as the machine's clock has it: it may be set.
    pub fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
    }

    /// Seconds since 1970, as of the kernel's last timer interrupt: a few ms late, and read at less cost.
    pub fn unix_s(&self) -> u64 {
        coarse(libc::CLOCK_REALTIME_COARSE).tv_sec as u64
    }

    /// Microseconds from the node's start to `now`, at least 1: what took how long.
    pub fn us(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.started);
        // `as_micros` divides 128 bits.
        (since.as_secs() * 1_000_000 + u64::from(since.subsec_micros())).max(1)
    }

    /// Ticks since the node started.
    pub fn tick(&self) -> u32 {
        (coarse_ms().saturating_sub(self.started_ms) / TICK_MS) as u32
    }
}

/// Monotonic milliseconds, as of the kernel's last timer interrupt: right to a few ms, and read several times for each
/// delivery and connection, at a fifth of the exact clock's cost.
fn coarse_ms() -> u64 {
    let now = coarse(libc::CLOCK_MONOTONIC_COARSE);
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

fn coarse(clock: libc::clockid_t) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which lives through the call.
    let rc = unsafe { libc::clock_gettime(clock, &raw mut now) };
    assert_eq!(rc, 0, "Linux has these clocks since 2.6.32");
    now
}

/// A duration in ticks, at least one unless it is zero.
pub fn ticks(duration: Duration) -> u32 {
    (duration.as_millis() as u64).div_ceil(TICK_MS).min(u64::from(u32::MAX / 2)) as u32
}
