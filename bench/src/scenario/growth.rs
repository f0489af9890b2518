//! How cost and memory grow with the number of readers, from 1,000 to 1,000,000: the plots, floor beside Pushline.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::lab::{Programs, Round, Shape, Stand, Subject};
use crate::memory;
use crate::order::Order;
use crate::report::{Bar, Finding, Table};
use crate::rounds::{self, Series};
use crate::scale::{Scale, WARM_UP, shape};
use crate::transport::Transport;

/// Two crowds above this do not fit beside each other: they take turns by minutes instead of seconds.
const TOGETHER_MAX: usize = 200_000;

pub fn scale(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("scale");
    let title = "memory of idle readers; kernel bytes are of both ends of a connection";
    let mut table = Table::new(title, &memory::COLUMNS);
    for transport in scale.transports(&[Transport::Ws, Transport::Sse]) {
        for readers in scale.sizes(&[1_000, 5_000], &[1_000, 10_000, 100_000, 1_000_000]) {
            let taken = measure(programs, scale, transport, readers, &mut table, &mut finding)?;
            let all: Vec<&Series> = taken.iter().collect();
            let title = format!("{readers} {} readers, one message at a time", transport.name());
            rounds::tell_costs(&mut finding, &title, &all);
            for series in &all {
                finding.samples.push(json!({
                    "plot": "cost", "subject": series.subject, "transport": transport, "readers": readers,
                    "us_per_delivery": series.median(Round::ns_per_delivery) / 1e3,
                }));
                let whole = series.rounds.iter().all(|round| round.outcome.deliveries > 0);
                let what = format!(
                    "{} {readers}, {}: rounds that delivered",
                    transport.name(),
                    series.subject.name()
                );
                finding.bars.push(Bar::at_least(&what, 1.0, f64::from(u8::from(whole))));
            }
        }
    }
    finding.tables.insert(0, table);
    Ok(finding)
}

fn measure(
    programs: &Programs,
    scale: &Scale,
    transport: Transport,
    readers: usize,
    table: &mut Table,
    finding: &mut Finding,
) -> Result<Vec<Series>> {
    let ours = [Subject::Floor, Subject::Pushline];
    let quiet = Duration::from_secs(scale.hold_s.unwrap_or(scale.pick(1, 3)));
    let large = readers > TOGETHER_MAX;
    // At this size a message alone takes ten seconds of CPU.
    let turns = if large { 3 } else { scale.rounds.unwrap_or(scale.pick(3, 10)) };
    let order = if large { Order::single(1) } else { Order::single(scale.groups()) };
    let (mut stands, mut taken): (Vec<Stand>, Vec<Series>) = (Vec::new(), Vec::new());
    memory::wait_sockets_gone();
    for subject in rounds::present(programs, &ours, rounds::serves(transport, readers)) {
        let shape = Shape {
            // A crowd of this size is opened for longer than a heartbeat's interval.
            settings: vec!["heartbeat.interval_seconds=300".into(), "heartbeat.timeout_seconds=900".into()],
            ..shape(readers)
        };
        let crowd = scale.crowd(transport, readers);
        let held = match memory::hold(programs, subject, &shape, &crowd, quiet, finding) {
            Ok((stand, held)) => {
                stands.push(stand);
                held
            }
            Err(error) if matches!(subject, Subject::Peer(_)) => {
                finding.doubts.push(format!("{} is left out: {error:#}", subject.name()));
                continue;
            }
            Err(error) => return Err(error),
        };
        table.rows.push(held.row(subject, &shape, &crowd));
        finding.samples.push(held.sample(subject, &crowd));
        if large {
            taken.extend(rounds::run(&mut stands, Some(order), &[order], turns, finding)?);
            stands.clear();
            memory::wait_sockets_gone();
        }
    }
    if !large {
        taken = rounds::run(&mut stands, Some(WARM_UP), &[order], turns, finding)?;
    }
    Ok(taken)
}
