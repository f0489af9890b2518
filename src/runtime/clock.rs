//! The node's clocks: ticks for deadlines, which never go back, and the time of day for messages.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds in a tick.
pub const TICK_MS: u64 = 100;

#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Milliseconds since 1970, as the machine's clock has it: it may be set.
    pub fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
    }

    /// Ticks since the node started.
    pub fn tick(&self) -> u32 {
        (self.started.elapsed().as_millis() as u64 / TICK_MS) as u32
    }
}

/// A duration in ticks, at least one unless it is zero.
pub fn ticks(duration: Duration) -> u32 {
    (duration.as_millis() as u64).div_ceil(TICK_MS).min(u64::from(u32::MAX / 2)) as u32
}
