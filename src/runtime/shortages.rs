//! What the log says of clients that are refused because there is no place, or no time, for them: a line for each limit
//! that refuses, soon after it has begun to, and again with what has come since, but not more often than an operator reads.
//! Owns the pace. Refusals are counted where they happen (`stats`, `quotas`), and cost nothing more; memory that is short
//! is told of by `budget`.

use super::node::Node;
use super::quotas::{Resource, Scope};
use super::state::State;
use super::stats::Refusal;

/// How often the counts are looked at.
const LOOK_TICKS: u32 = 10;
/// Of one limit there is a line so often at most.
const PACE_TICKS: u32 = 100;

/// A limit, by the key that an operator would change.
#[derive(Debug, Clone, Copy)]
enum Limit {
    Of(Refusal),
    Quota(Scope, Resource),
}

const LIMITS: usize = 3 + Scope::ALL.len() * Resource::ALL.len();

fn limits() -> impl Iterator<Item = Limit> {
    let quotas =
        Scope::ALL.into_iter().flat_map(|scope| Resource::ALL.map(|resource| Limit::Quota(scope, resource)));
    [Refusal::Connections, Refusal::Files, Refusal::Admission].map(Limit::Of).into_iter().chain(quotas)
}

impl Limit {
    /// How often it has refused, since the node began.
    fn refused(self, node: &Node) -> u64 {
        match self {
            Self::Of(refusal) => node.stats.iter().map(|stats| stats.refused(refusal)).sum(),
            Self::Quota(scope, resource) => {
                node.quotas.as_ref().map_or(0, |quotas| quotas.refused(scope, resource))
            }
        }
    }

    fn tell(self, refused: u64) {
        match self {
            Self::Of(Refusal::Admission) => tracing::warn!(
                refused,
                "newcomers are turned away: more come than can be served in time; see timeouts.admission_seconds"
            ),
            Self::Of(Refusal::Files) => tracing::warn!(
                refused,
                "connections are refused: no open file is left; `pushline doctor` says what to do"
            ),
            Self::Of(_) => tracing::warn!(
                refused,
                "connections are refused: there are as many as limits.connections, or open files, allow"
            ),
            Self::Quota(scope, resource) => tracing::warn!(
                refused,
                quota = format!("quotas.{}.{}", scope.as_str(), resource.as_str()),
                "clients are refused what is over their quota; GET /connections shows who has how many"
            ),
        }
    }
}

/// What was told already. The first worker's alone.
#[derive(Debug, Default)]
pub struct Shortages {
    look_tick: u32,
    told: [Told; LIMITS],
}

#[derive(Debug, Default, Clone, Copy)]
struct Told {
    refused: u64,
    again_tick: u32,
}

impl Told {
    /// So many were refused in all: how many there are to tell of now.
    fn next(&mut self, refused: u64, tick: u32) -> Option<u64> {
        if refused == self.refused || tick < self.again_tick {
            return None;
        }
        self.again_tick = tick + PACE_TICKS;
        Some(refused - std::mem::replace(&mut self.refused, refused))
    }
}

impl State {
    /// Says which limits have refused anybody since that was last told.
    pub fn tell_shortages(&mut self) {
        let tick = self.tick();
        if self.index != 0 || tick < self.shortages.look_tick {
            return;
        }
        self.shortages.look_tick = tick + LOOK_TICKS;
        for (limit, told) in limits().zip(&mut self.shortages.told) {
            if let Some(refused) = told.next(limit.refused(&self.node), tick) {
                limit.tell(refused);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_all_others_together() {
        assert_eq!(limits().count(), LIMITS);
        let mut told = Told::default();
        assert_eq!(told.next(0, 5), None);
        assert_eq!(told.next(3, 10), Some(3));
        assert_eq!(told.next(9, 10 + PACE_TICKS - 1), None, "too soon");
        assert_eq!(told.next(11, 10 + PACE_TICKS), Some(8), "none is left out");
        assert_eq!(told.next(11, 10 + 9 * PACE_TICKS), None, "nothing new");
        assert_eq!(told.next(12, 10 + 9 * PACE_TICKS), Some(1));
    }
}
