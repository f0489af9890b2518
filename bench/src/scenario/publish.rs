//! HTTP publishes per second without readers: one message in a request, and a hundred.

use anyhow::Result;

use crate::lab::{Programs, Round, Subject};
use crate::order::Order;
use crate::report::{Bar, Better, Figure, Finding, Table};
use crate::rounds::{self, Series, micro, percent};
use crate::scale::{Scale, shape};
use crate::stats::Spread;
use crate::transport::Transport;

const CONNECTIONS: usize = 256;
const BATCH: u32 = 100;
/// Requests per CPU second, times nchan's; and messages in batches, times that.
const NCHAN_RATIO_MIN: f64 = 1.5;
const BATCH_RATIO_MIN: f64 = 5.0;

pub fn publish(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("publish");
    let post = |batch| Order::Post { ms: scale.pick(500, 1_000), connections: CONNECTIONS, batch };
    let by_http = |api: &crate::api::Api| {
        matches!(api.publish, Some(crate::api::Publish::Http { .. })) && api.has(Transport::Ws)
    };
    let subjects = rounds::present(programs, &[Subject::Floor, Subject::Pushline], by_http);
    let crowd = scale.crowd(Transport::Ws, 0);
    let mut stands = rounds::start(programs, &subjects, &shape(CONNECTIONS), &crowd, &mut finding)?;
    let turns = scale.rounds.unwrap_or(scale.pick(3, 15));
    let single = rounds::run(&mut stands, Some(post(1)), &[post(1)], turns, &mut finding)?;
    stands.retain(|stand| !matches!(stand.server.subject, Subject::Peer(_)));
    let batches = rounds::run(&mut stands, None, &[post(BATCH)], turns, &mut finding)?;
    for (label, taken) in [("one message a request", &single), ("100 messages a request", &batches)] {
        tell(&mut finding, label, scale.message_bytes, taken);
        finding.keep_samples(label, taken);
    }
    let of = |taken: &'_ [Series], subject| taken.iter().position(|series| series.subject == subject);
    let nchan = of(&single, Subject::Peer("nchan")).map(|at| &single[at]);
    let (ours, ours_batched) = (of(&single, Subject::Pushline), of(&batches, Subject::Pushline));
    if let (Some(ours), Some(ours_batched), Some(nchan)) = (ours, ours_batched, nchan) {
        let ratio = 1.0 / single[ours].ratio_to(nchan, Round::ns_per_message);
        let what = "publishes per CPU second, times nchan's";
        finding.bars.push(Bar::at_least(what, NCHAN_RATIO_MIN, ratio));
        // Not of the same turns: nchan takes no batches.
        let batched = Spread::of(batches[ours_batched].rounds.iter().map(Round::ns_per_message)).median;
        let ratio = nchan.median(Round::ns_per_message) / batched;
        let what = "messages in batches per CPU second, times nchan's publishes";
        finding.bars.push(Bar::at_least(what, NCHAN_RATIO_MIN * BATCH_RATIO_MIN, ratio));
    }
    Ok(finding)
}

fn tell(finding: &mut Finding, label: &str, message_bytes: usize, taken: &[Series]) {
    let Some(floor) = taken.first() else { return };
    let columns = [
        "server",
        "messages/s",
        "messages per CPU s",
        "CPU/message µs",
        "× floor",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "server busy",
        "client busy",
    ];
    let title =
        format!("{CONNECTIONS} connections, each to a channel of its own, {label}, {message_bytes} bytes");
    let mut table = Table::new(&title, &columns);
    let mut figure = Figure::new(&format!("{title}: CPU per message"), "µs", Better::Less);
    for series in taken {
        let cost = series.median(Round::ns_per_message);
        let latency = |of: fn(&Round) -> f64| format!("{:.2}", series.median(of) / 1e3);
        let per_s = |round: &Round| f64::from(round.outcome.messages) / round.outcome.wall_ns as f64 * 1e9;
        table.rows.push(vec![
            series.subject.name(),
            format!("{:.0}", series.median(per_s)),
            format!("{:.0}", 1e9 / cost),
            micro(cost),
            format!("{:.3}", series.ratio_to(floor, Round::ns_per_message)),
            latency(|round| round.outcome.latency.p50_us),
            latency(|round| round.outcome.latency.p99_us),
            latency(|round| round.outcome.latency.p999_us),
            latency(|round| round.outcome.latency.max_us),
            percent(series.median(|round| round.busy().0)),
            percent(series.median(|round| round.busy().1)),
        ]);
        figure = figure.with(&series.subject.name(), cost / 1e3);
    }
    finding.tables.push(table);
    finding.figures.push(figure);
    rounds::tell_faults(finding, label, &taken.iter().collect::<Vec<_>>());
}
