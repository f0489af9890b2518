//! Polling: 304s per second beside nginx and a small file, and thousands of held polls with a message each second.

use anyhow::Result;

use crate::lab::{Crowd, Programs, Round, Subject};
use crate::order::Order;
use crate::report::{Bar, Better, Figure, Finding, Table};
use crate::rounds::{self, Series, micro, percent};
use crate::scale::{Scale, WARM_UP, shape};
use crate::transport::Transport;

const POLLERS: usize = 64;
/// Messages while short polls go on: each changes the answer once, and every poller must see it.
const CHANGES_PER_S: f64 = 4.0;

pub fn poll(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("poll");
    short(programs, scale, &mut finding)?;
    held(programs, scale, &mut finding)?;
    Ok(finding)
}

fn short(programs: &Programs, scale: &Scale, finding: &mut Finding) -> Result<()> {
    let crowd = scale.crowd(Transport::Short, POLLERS);
    let ours = rounds::present(programs, &[Subject::Floor, Subject::Pushline], |_| false);
    let mut stands = rounds::start(programs, &ours, &shape(POLLERS), &crowd, finding)?;
    for peer in &programs.peers {
        if let Some(path) = &peer.api.still {
            let crowd = Crowd { args: vec!["--read-path".into(), path.clone()], ..crowd.clone() };
            let subject = [Subject::Peer(peer.name)];
            stands.extend(rounds::start(programs, &subject, &shape(POLLERS), &crowd, finding)?);
        }
    }
    let order = Order::Poll { ms: scale.pick(500, 1_000), per_s: CHANGES_PER_S };
    let turns = scale.rounds.unwrap_or(scale.pick(3, 15));
    let taken = rounds::run(&mut stands, Some(order), &[order], turns, finding)?;
    let all: Vec<&Series> = taken.iter().collect();
    let Some(floor) = all.first() else { return Ok(()) };
    let columns = [
        "server",
        "answers/s",
        "answers per CPU s",
        "of them 304",
        "CPU/answer µs",
        "× floor",
        "server busy",
        "client busy",
    ];
    let title =
        format!("{POLLERS} short pollers, one request after the other, {CHANGES_PER_S} changes a second");
    let mut table = Table::new(&title, &columns);
    let mut figure = Figure::new(&format!("{title}: CPU per answer"), "µs", Better::Less);
    for series in &all {
        let cost = series.median(Round::ns_per_answer);
        let answers = |round: &Round| round.outcome.answers as f64 / round.outcome.wall_ns as f64 * 1e9;
        let unchanged = |round: &Round| round.outcome.unchanged as f64 / round.outcome.answers.max(1) as f64;
        table.rows.push(vec![
            series.subject.name(),
            format!("{:.0}", series.median(answers)),
            format!("{:.0}", 1e9 / cost),
            format!("{:.1} %", series.median(unchanged) * 100.0),
            micro(cost),
            format!("{:.3}", series.ratio_to(floor, Round::ns_per_answer)),
            percent(series.median(|round| round.busy().0)),
            percent(series.median(|round| round.busy().1)),
        ]);
        figure = figure.with(&series.subject.name(), cost / 1e3);
        if series.median(unchanged) < 0.5 {
            finding.doubts.push(format!("{}: most polls were not answered 304", series.subject.name()));
        }
    }
    finding.tables.push(table);
    finding.figures.push(figure);
    let nginx = Subject::Peer("nginx");
    let of = |subject| all.iter().find(|series| series.subject == subject);
    if let (Some(ours), Some(nginx)) = (of(Subject::Pushline), of(nginx)) {
        let ratio = 1.0 / ours.ratio_to(nginx, Round::ns_per_answer);
        finding.bars.push(Bar::at_least("answers per CPU second, times nginx's", 1.0, ratio));
    }
    rounds::tell_faults(finding, "short polls", &all);
    finding.keep_samples("short", &taken);
    Ok(())
}

fn held(programs: &Programs, scale: &Scale, finding: &mut Finding) -> Result<()> {
    let readers = scale.size(2_000, 10_000);
    let ours = [Subject::Floor, Subject::Pushline];
    let subjects = rounds::present(programs, &ours, rounds::serves(Transport::Poll, readers));
    let crowd = scale.crowd(Transport::Poll, readers);
    let mut stands = rounds::start(programs, &subjects, &shape(readers), &crowd, finding)?;
    let order = Order::Pace { ms: scale.pick(2_000, 4_000), per_s: 1.0, random: false };
    let turns = scale.rounds.unwrap_or(scale.pick(1, 5));
    let taken = rounds::run(&mut stands, Some(WARM_UP), &[order], turns, finding)?;
    let all: Vec<&Series> = taken.iter().collect();
    let title =
        format!("{readers} held polls, a message each second (a delivery is an answer and the next poll)");
    rounds::tell_costs(finding, &title, &all);
    finding.keep_samples("held", &taken);
    Ok(())
}
