//! Messages that come together: 16 at once to N readers, and as many as go to 1,000.

use anyhow::Result;

use crate::lab::{Programs, Round, Subject};
use crate::order::{By, Order};
use crate::report::{Bar, Better, Figure, Finding, Table};
use crate::rounds::{self, Series, micro, percent};
use crate::scale::{Scale, WARM_UP, shape};
use crate::stats::Spread;
use crate::transport::Transport;

/// How many messages of a burst are published together.
const TOGETHER: u32 = 16;
const FLOOR_RATIO_MAX: f64 = 1.15;
/// What 16 together may cost, times one.
const GROWTH_MAX: f64 = 2.0;
/// Messages that the flood may be ahead of the slowest reader: within what every server here keeps.
const WINDOW: u32 = 256;

/// One message and 16 together, N readers: what the further fifteen cost.
pub fn burst(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("burst");
    let readers = scale.size(2_000, 10_000);
    let together = |by| Order::together(scale.groups() * TOGETHER, TOGETHER, by);
    let (one, pipelined, batch) =
        (Order::single(scale.groups()), together(By::Pipeline), together(By::Batch));
    for transport in scale.transports(&[Transport::Ws]) {
        let ours = [Subject::FloorCoalescing, Subject::Pushline];
        let subjects = rounds::present(programs, &ours, rounds::serves(transport, readers));
        let crowd = scale.crowd(transport, readers);
        let mut stands = rounds::start(programs, &subjects, &shape(readers), &crowd, &mut finding)?;
        let mut taken =
            rounds::run(&mut stands, Some(WARM_UP), &[one, pipelined], scale.rounds(), &mut finding)?;
        // No peer takes batches.
        stands.retain(|stand| !matches!(stand.server.subject, Subject::Peer(_)));
        taken.extend(rounds::run(&mut stands, None, &[batch], scale.rounds(), &mut finding)?);
        for (label, is) in [("one", 0), ("16 pipelined", 1), ("16 in one batch", 2)] {
            let these: Vec<&Series> = taken.iter().filter(|series| kind(&series.order) == is).collect();
            let title =
                format!("{readers} {} readers, {label}, {} bytes", transport.name(), scale.message_bytes);
            rounds::tell_costs(&mut finding, &title, &these);
            let label = format!("{} {readers}, {label}: CPU per delivery", transport.name());
            let what = format!("{label}, times the coalescing floor's");
            let cost = Round::ns_per_delivery;
            if is > 0 {
                rounds::bar_ratio(
                    &mut finding,
                    &what,
                    FLOOR_RATIO_MAX,
                    &these,
                    Subject::FloorCoalescing,
                    cost,
                );
                rounds::bar_peers(&mut finding, &label, 1.0, &these, cost);
            }
        }
        bar_growth(&mut finding, &taken, transport);
        finding.keep_samples(transport.name(), &taken);
    }
    Ok(finding)
}

fn kind(order: &Order) -> usize {
    match order {
        Order::Groups { together: 1, .. } => 0,
        Order::Groups { by: By::Pipeline, .. } => 1,
        _ => 2,
    }
}

/// What a group of 16 costs Pushline, times one message: of rounds in the same turn, so that drift cancels.
fn bar_growth(finding: &mut Finding, taken: &[Series], transport: Transport) {
    let ours = |is| taken.iter().find(|at| at.subject == Subject::Pushline && kind(&at.order) == is);
    if let (Some(one), Some(many)) = (ours(0), ours(1)) {
        let ratios = many.rounds.iter().zip(&one.rounds);
        let growth = Spread::of(
            ratios.map(|(many, one)| many.ns_per_message() * f64::from(TOGETHER) / one.ns_per_message()),
        );
        let what = format!("{}: 16 pipelined cost, times one", transport.name());
        finding.bars.push(Bar::at_most(&what, GROWTH_MAX, growth.median));
    }
}

/// Publishing as fast as it goes: deliveries per second, and what coalescing makes of them.
pub fn firehose(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("firehose");
    let readers = scale.size(500, 1_000);
    let order =
        Order::Flood { ms: scale.pick(500, 2_000), window: WINDOW, together: TOGETHER, by: By::Pipeline };
    for transport in scale.transports(&[Transport::Ws]) {
        let ours = [Subject::FloorCoalescing, Subject::Pushline];
        let subjects = rounds::present(programs, &ours, rounds::serves(transport, readers));
        let crowd = scale.crowd(transport, readers);
        let mut stands = rounds::start(programs, &subjects, &shape(readers), &crowd, &mut finding)?;
        let turns = scale.rounds.unwrap_or(scale.pick(3, 10));
        let taken = rounds::run(&mut stands, Some(WARM_UP), &[order], turns, &mut finding)?;
        let all: Vec<&Series> = taken.iter().collect();
        tell_flood(&mut finding, transport, readers, &all);
        let label = format!("{} {readers}: CPU per delivery", transport.name());
        let (what, cost) = (format!("{label}, times the coalescing floor's"), Round::ns_per_delivery);
        rounds::bar_ratio(&mut finding, &what, FLOOR_RATIO_MAX, &all, Subject::FloorCoalescing, cost);
        rounds::bar_peers(&mut finding, &label, 1.0, &all, cost);
        finding.keep_samples(transport.name(), &taken);
    }
    Ok(finding)
}

fn tell_flood(finding: &mut Finding, transport: Transport, readers: usize, taken: &[&Series]) {
    let columns = [
        "server",
        "messages/s",
        "deliveries/s",
        "deliveries per CPU s",
        "CPU/delivery µs",
        "messages in a read",
        "p50 ms",
        "p99 ms",
        "max ms",
        "server busy",
        "client busy",
    ];
    let title =
        format!("{readers} {} readers, publishing at most {WINDOW} messages ahead of them", transport.name());
    let mut table = Table::new(&title, &columns);
    let mut figure = Figure::new(&format!("{title}: CPU per delivery"), "µs", Better::Less);
    for series in taken {
        let per_s = |of: fn(&Round) -> f64| {
            series.median(move |round| of(round) / round.outcome.wall_ns.max(1) as f64 * 1e9)
        };
        let cost = series.median(Round::ns_per_delivery);
        let read = |round: &Round| round.outcome.deliveries as f64 / round.outcome.reads.max(1) as f64;
        table.rows.push(vec![
            series.subject.name(),
            format!("{:.0}", per_s(|round| f64::from(round.outcome.messages))),
            format!("{:.0}", per_s(|round| round.outcome.deliveries as f64)),
            format!("{:.0}", 1e9 / cost),
            micro(cost),
            format!("{:.1}", series.median(read)),
            format!("{:.1}", series.median(|round| round.outcome.latency.p50_us) / 1e3),
            format!("{:.1}", series.median(|round| round.outcome.latency.p99_us) / 1e3),
            format!("{:.1}", series.median(|round| round.outcome.latency.max_us) / 1e3),
            percent(series.median(|round| round.busy().0)),
            percent(series.median(|round| round.busy().1)),
        ]);
        figure = figure.with(&series.subject.name(), cost / 1e3);
    }
    finding.tables.push(table);
    finding.figures.push(figure);
    rounds::tell_faults(finding, &format!("{} {readers}", transport.name()), taken);
}
