//! Where the node is in its life: what `/readyz` answers by, and what everybody may ask at any time.
//! Owns that it only goes forward. Never does what a phase asks for.

use std::sync::atomic::{AtomicU8, Ordering};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Some workers do not listen yet.
    Starting,
    Serving,
    /// Told to stop. Said before anything else of a drain is done, so that whoever asks sends no new clients here while
    /// the listeners still take them.
    Draining,
}

impl Phase {
    pub const ALL: [Self; 3] = [Self::Starting, Self::Serving, Self::Draining];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }

    /// Whether new clients are welcome.
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Serving)
    }
}

/// The phase of a node, written by its main thread and read by any.
#[derive(Debug, Default)]
pub struct Progress(AtomicU8);

impl Progress {
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.0.load(Ordering::Acquire)).min(Phase::ALL.len() - 1)]
    }

    /// Goes on to `phase`, never back.
    pub fn reach(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_never_left_for_an_earlier_one() {
        let progress = Progress::default();
        assert_eq!((progress.phase(), progress.phase().is_ready()), (Phase::Starting, false));
        progress.reach(Phase::Serving);
        assert!(progress.phase().is_ready());
        progress.reach(Phase::Draining);
        progress.reach(Phase::Serving);
        assert_eq!((progress.phase(), progress.phase().is_ready()), (Phase::Draining, false));
        for (at, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, at);
        }
    }
}
