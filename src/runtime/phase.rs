//! Where a node is in its life. Goes forward alone, and is read by whoever is asked whether to send more clients here:
//! readiness ends at the first moment of a drain, before anything else does.

use std::sync::atomic::{AtomicU8, Ordering};

/// In their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Workers are being made; what is accepted already is served.
    Starting,
    Serving,
    /// No more clients should be sent here: it stops taking connections (`drain.delay_seconds` later), and tells those
    /// that it has to come back.
    Draining,
    /// Everybody was told.
    Stopped,
}

impl Phase {
    pub const ALL: [Self; 4] = [Self::Starting, Self::Serving, Self::Draining, Self::Stopped];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }

    /// Whether new clients are welcome.
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Serving)
    }

    /// Why they are not, and what to do; for an answer.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Starting => "this node is starting; ask again in a moment",
            Self::Serving => "this node is ready",
            Self::Draining | Self::Stopped => "this node is stopping; send clients to another",
        }
    }
}

/// A node's phase, shared by all its threads.
#[derive(Debug, Default)]
pub struct Progress(AtomicU8);

impl Progress {
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.0.load(Ordering::Acquire))]
    }

    /// Goes on to a later phase. False: it was there, or further, already.
    pub fn reach(&self, to: Phase) -> bool {
        self.0.fetch_max(to as u8, Ordering::AcqRel) < to as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_go_forward_alone() {
        let progress = Progress::default();
        assert_eq!(progress.phase(), Phase::Starting);
        for (to, went, is) in [
            (Phase::Serving, true, Phase::Serving),
            (Phase::Serving, false, Phase::Serving),
            (Phase::Draining, true, Phase::Draining),
            (Phase::Serving, false, Phase::Draining),
            (Phase::Stopped, true, Phase::Stopped),
            (Phase::Starting, false, Phase::Stopped),
        ] {
            assert_eq!((progress.reach(to), progress.phase()), (went, is), "{to:?}");
        }
    }

    #[test]
    fn each_phase_is_found_by_its_number() {
        for (number, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, number);
            assert_eq!(phase.is_ready(), phase == Phase::Serving);
        }
    }
}
