//! Turn by turn: all stands are up at once, each order is given to each in turn, and only rounds of the same turn are
//! compared, because this machine's speed drifts. What counts is the median of the rounds' own ratios.

use anyhow::Result;

use crate::lab::{Crowd, Programs, Round, Shape, Stand, Subject};
use crate::order::{CLIENT_BUSY_MAX, Order};
use crate::proc;
use crate::report::{Bar, Better, Figure, Finding, Table};
use crate::stats::Spread;
use crate::transport::Transport;

/// All rounds of one order on one stand.
pub struct Series {
    pub subject: Subject,
    pub order: Order,
    pub rounds: Vec<Round>,
}

impl Series {
    pub fn spread(&self, of: impl Fn(&Round) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(of))
    }

    pub fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        self.spread(of).median
    }

    /// Ratios of rounds in the same turn.
    pub fn ratio_to(&self, other: &Self, of: impl Fn(&Round) -> f64) -> f64 {
        Spread::of(self.rounds.iter().zip(&other.rounds).map(|(mine, theirs)| of(mine) / of(theirs))).median
    }

    /// Over all rounds: a tick of 4 ms needs seconds to tell user from system time.
    pub fn user_share(&self) -> f64 {
        self.rounds
            .iter()
            .map(|round| round.server_cpu)
            .fold(proc::Cpu::default(), |sum, one| sum + one)
            .user_share()
    }

    /// Messages lost, repeated or out of order, and readers ended, in all rounds.
    pub fn faults(&self) -> u64 {
        self.rounds.iter().map(|round| round.outcome.faults()).sum()
    }
}

/// The subjects whose program is there, and the peers that can do what is asked.
pub fn present(
    programs: &Programs,
    subjects: &[Subject],
    peers: impl Fn(&crate::api::Api) -> bool,
) -> Vec<Subject> {
    let there = proc::is_program(&programs.pushline);
    let ours = subjects.iter().copied().filter(|&subject| there || subject != Subject::Pushline);
    let peers = programs.peers.iter().filter(|peer| peers(&peer.api)).map(|peer| Subject::Peer(peer.name));
    ours.chain(peers).collect()
}

/// Peers that this crowd can read and publish on. Their threads share a file table, of 20,000 descriptors here, unless
/// there are several workers and `peer.json` does not say otherwise: beyond one table's worth none is asked.
pub fn serves(transport: Transport, readers: usize) -> impl Fn(&crate::api::Api) -> bool {
    move |api| api.has(transport) && api.publish.is_some() && readers <= READERS_OF_A_PEER_MAX
}

pub const READERS_OF_A_PEER_MAX: usize = 19_000;

/// Starts all stands. A peer that fails is left out, with a doubt that says why.
pub fn start(
    programs: &Programs,
    subjects: &[Subject],
    shape: &Shape,
    crowd: &Crowd,
    finding: &mut Finding,
) -> Result<Vec<Stand>> {
    let mut stands = Vec::new();
    for &subject in subjects {
        match Stand::start(programs, subject, shape, crowd) {
            Ok(stand) => {
                finding.commands.insert(subject.name(), stand.server.command().into());
                let load = if matches!(subject, Subject::Peer(_)) { "load of a peer" } else { "load" };
                finding.commands.insert(load.into(), stand.load.command().into());
                stands.push(stand);
            }
            Err(error) if matches!(subject, Subject::Peer(_)) => {
                let why = format!("{} is left out: {error:#}", subject.name());
                eprintln!("  {why}");
                finding.doubts.push(why);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(stands)
}

/// Runs all orders on all stands, turn by turn, each time [in another order](visits). Stands that are not in turn are quiet. The series come stand by stand, and order by order within. A peer that fails is left out.
pub fn run(
    stands: &mut Vec<Stand>,
    warm_up: Option<Order>,
    orders: &[Order],
    turns: usize,
    finding: &mut Finding,
) -> Result<Vec<Series>> {
    let mut taken: Vec<Vec<Series>> = stands
        .iter()
        .map(|stand| {
            let subject = stand.server.subject;
            orders.iter().map(|&order| Series { subject, order, rounds: Vec::new() }).collect()
        })
        .collect();
    let mut failed = vec![false; stands.len()];
    let mut give = |stands: &mut Vec<Stand>, stand: usize, order: &Order| -> Result<Option<Round>> {
        if failed[stand] {
            return Ok(None);
        }
        match stands[stand].round(order) {
            Ok(round) => Ok(Some(round)),
            Err(error) if matches!(stands[stand].server.subject, Subject::Peer(_)) => {
                let why = format!("left out: {error:#}");
                eprintln!("  {why}");
                finding.doubts.push(why);
                failed[stand] = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    };
    // The first messages after the handshakes meet cold caches and quick acknowledgements.
    if let Some(order) = warm_up {
        for stand in 0..stands.len() {
            give(stands, stand, &order)?;
        }
    }
    for turn in 0..turns {
        for (at, order) in orders.iter().enumerate() {
            for stand in visits(stands.len(), turn) {
                if let Some(round) = give(stands, stand, order)? {
                    taken[stand][at].rounds.push(round);
                }
            }
        }
    }
    let whole = taken.into_iter().filter(|series| series.iter().all(|series| series.rounds.len() == turns));
    Ok(whole.flatten().collect())
}

/// The order in which stands are visited in a turn. Whoever comes right after itself finds its sockets in the caches, whoever
/// comes after a large one does not: so each has each place, and each other before it, equally often (a Williams design).
fn visits(stands: usize, turn: usize) -> Vec<usize> {
    let zigzag = (0..stands).map(|at| if at % 2 == 0 { at / 2 } else { stands - 1 - at / 2 });
    let mut visits: Vec<usize> = zigzag.map(|stand| (stand + turn) % stands).collect();
    if turn / stands % 2 == 1 {
        visits.reverse();
    }
    visits
}

pub const COST_COLUMNS: [&str; 12] = [
    "server",
    "CPU/delivery µs",
    "min–max",
    "user µs",
    "system µs",
    "× floor",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "max ms",
    "server busy",
    "client busy",
];

/// A row of what a delivery costs, beside `floor`.
pub fn cost_row(series: &Series, floor: &Series) -> Vec<String> {
    let cost = series.spread(Round::ns_per_delivery);
    let user = series.user_share() * cost.median;
    let latency = |of: fn(&Round) -> f64| format!("{:.2}", series.median(of) / 1e3);
    vec![
        series.subject.name(),
        micro(cost.median),
        format!("{}–{}", micro(cost.min), micro(cost.max)),
        micro(user),
        micro(cost.median - user),
        format!("{:.3}", series.ratio_to(floor, Round::ns_per_delivery)),
        latency(|round| round.outcome.latency.p50_us),
        latency(|round| round.outcome.latency.p99_us),
        latency(|round| round.outcome.latency.p999_us),
        latency(|round| round.outcome.latency.max_us),
        percent(series.median(|round| round.busy().0)),
        percent(series.median(|round| round.busy().1)),
    ]
}

/// Table, figure, faults and doubts of series that are compared by their cost for each delivery.
pub fn tell_costs(finding: &mut Finding, title: &str, taken: &[&Series]) {
    let Some(floor) = taken.first() else { return };
    let mut table = Table::new(title, &COST_COLUMNS);
    let mut figure = Figure::new(&format!("{title}: CPU per delivery"), "µs", Better::Less);
    for series in taken {
        table.rows.push(cost_row(series, floor));
        figure = figure.with(&series.subject.name(), series.median(Round::ns_per_delivery) / 1e3);
    }
    finding.tables.push(table);
    finding.figures.push(figure);
    tell_faults(finding, title, taken);
}

/// Nothing may be lost, repeated or out of order, and no reader ended: a bar for ours, a doubt for others.
/// A load that has no time left is told too.
pub fn tell_faults(finding: &mut Finding, label: &str, taken: &[&Series]) {
    for series in taken {
        if series.subject == Subject::Pushline {
            let what = format!("{label}: messages lost, repeated or out of order, readers ended");
            finding.bars.push(Bar::at_most(&what, 0.0, series.faults() as f64));
        }
        finding.note_busy_client(series.subject, series.median(|round| round.busy().1), CLIENT_BUSY_MAX);
    }
}

/// A bar on what one subject's rounds are of another's in the same turns.
pub fn bar_ratio(
    finding: &mut Finding,
    what: &str,
    at_most: f64,
    taken: &[&Series],
    other: Subject,
    of: impl Fn(&Round) -> f64 + Copy,
) {
    let by = |subject: Subject| taken.iter().find(|series| series.subject == subject);
    if let (Some(ours), Some(theirs)) = (by(Subject::Pushline), by(other)) {
        finding.bars.push(Bar::at_most(what, at_most, ours.ratio_to(theirs, of)));
    }
}

/// A bar for each peer: ours is to be below it.
pub fn bar_peers(
    finding: &mut Finding,
    label: &str,
    at_most: f64,
    taken: &[&Series],
    of: impl Fn(&Round) -> f64 + Copy,
) {
    for series in taken.iter().filter(|series| matches!(series.subject, Subject::Peer(_))) {
        let what = format!("{label}, times that of {}", series.subject.name());
        bar_ratio(finding, &what, at_most, taken, series.subject, of);
    }
}

pub fn micro(ns: f64) -> String {
    format!("{:.2}", ns / 1e3)
}

pub fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_at_each_place_and_after_each_other_equally_often() {
        for stands in 1..9 {
            let mut places = vec![vec![0; stands]; stands];
            let mut after = vec![vec![0; stands]; stands];
            for turn in 0..2 * stands {
                let order = visits(stands, turn);
                order.iter().enumerate().for_each(|(place, stand)| places[*stand][place] += 1);
                order.windows(2).for_each(|pair| after[pair[1]][pair[0]] += 1);
            }
            for (stand, after) in after.iter().enumerate() {
                assert!(places[stand].iter().all(|times| *times == 2), "{stands}: {places:?}");
                let others = after.iter().enumerate().filter(|(before, _)| *before != stand);
                assert!(others.clone().all(|(_, times)| *times == 2), "{stands}: {after:?}");
            }
        }
    }
}
