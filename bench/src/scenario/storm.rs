//! All readers come back at once after a restart: what an accept costs, and how long a reader waits for it.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lab::{Load, Programs, Round, Server, Stand, Subject};
use crate::order::Order;
use crate::report::{Bar, Better, Figure, Finding, Table};
use crate::rounds::{self, micro};
use crate::scale::{Scale, WARM_UP, shape};
use crate::stats::Spread;
use crate::transport::Transport;

/// Accepts per CPU second, of the floor's.
const ACCEPTS_RATIO_MIN: f64 = 0.8;
/// The longest wait, times the mean.
const WAIT_RATIO_MAX: f64 = 2.0;
const END_MS: u64 = 20_000;

/// A stand between two restarts.
struct Victim {
    subject: Subject,
    server: Option<Server>,
    load: Load,
    returns: Vec<Round>,
    /// Messages lost after the return.
    faults: u64,
}

pub fn storm(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("storm");
    for transport in scale.transports(&[Transport::Ws]) {
        measure(programs, scale, transport, &mut finding)?;
    }
    Ok(finding)
}

fn measure(programs: &Programs, scale: &Scale, transport: Transport, finding: &mut Finding) -> Result<()> {
    let readers = scale.size(5_000, 10_000);
    let turns = scale.rounds.unwrap_or(scale.pick(2, 7));
    let ours = [Subject::Floor, Subject::Pushline];
    let subjects = rounds::present(programs, &ours, rounds::serves(transport, readers));
    let crowd = scale.crowd(transport, readers);
    let stands = rounds::start(programs, &subjects, &shape(readers), &crowd, finding)?;
    let mut victims: Vec<Victim> = stands
        .into_iter()
        .map(|Stand { load, server }| Victim {
            subject: server.subject,
            server: Some(server),
            load,
            returns: Vec::new(),
            faults: 0,
        })
        .collect();
    for turn in 0..turns {
        if turn % 2 == 1 {
            victims.reverse();
        }
        let mut left = Vec::new();
        for mut victim in victims {
            match restart(programs, &mut victim, readers) {
                Ok(()) => left.push(victim),
                Err(error) if matches!(victim.subject, Subject::Peer(_)) => {
                    finding.doubts.push(format!("{} is left out: {error:#}", victim.subject.name()));
                }
                Err(error) => return Err(error),
            }
        }
        victims = left;
    }
    victims.sort_by_key(|victim| subjects.iter().position(|&subject| subject == victim.subject));
    tell(finding, transport, readers, &victims);
    Ok(())
}

fn restart(programs: &Programs, victim: &mut Victim, readers: usize) -> Result<()> {
    let server = victim.server.take().context("it was up")?;
    let port = server.address.port();
    drop(server);
    victim.load.carry_out(&Order::End { ms: END_MS })?;
    let server = Server::start(programs, victim.subject, &shape(readers), Some(port))?;
    let before = server.cpu()?;
    let mut outcome = victim.load.carry_out(&Order::Return {})?;
    let server_cpu = server.cpu()? - before;
    let after = victim.load.carry_out(&WARM_UP)?;
    victim.faults += after.faults();
    victim.server = Some(server);
    // Of a return nobody asks for messages: each reader that came back is one.
    outcome.answers = readers as u64;
    victim.returns.push(Round { server_cpu, outcome });
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

fn tell(finding: &mut Finding, transport: Transport, readers: usize, victims: &[Victim]) {
    let columns = [
        "server",
        "all back s",
        "accepts per CPU s",
        "CPU/accept µs",
        "× floor",
        "mean wait ms",
        "p99 ms",
        "max ms",
        "max ÷ mean",
        "tried again",
    ];
    let title = format!(
        "{readers} {} readers come back at once, to a new process on the same port (a wait: from connect to subscribed)",
        transport.name()
    );
    let mut table = Table::new(&title, &columns);
    let mut figure = Figure::new(&format!("{title}: CPU per accept"), "µs", Better::Less);
    let Some(floor) = victims.first() else { return };
    for victim in victims {
        let median = |of: &dyn Fn(&Round) -> f64| Spread::of(victim.returns.iter().map(of)).median;
        let cost = median(&Round::ns_per_answer);
        let pairs = victim.returns.iter().zip(&floor.returns);
        let ratio =
            Spread::of(pairs.map(|(ours, floor)| ours.ns_per_answer() / floor.ns_per_answer())).median;
        let longest = median(&|round| round.outcome.waits.max_us / round.outcome.waits.mean_us.max(1.0));
        let ms = |of: fn(&Round) -> f64| format!("{:.0}", median(&of) / 1e3);
        let retried = victim.returns.last().map_or(0, |round| round.outcome.retried);
        table.rows.push(vec![
            victim.subject.name(),
            format!("{:.2}", median(&|round| round.outcome.wall_ns as f64 / 1e9)),
            format!("{:.0}", 1e9 / cost),
            micro(cost),
            format!("{ratio:.3}"),
            ms(|round| round.outcome.waits.mean_us),
            ms(|round| round.outcome.waits.p99_us),
            ms(|round| round.outcome.waits.max_us),
            format!("{longest:.2}"),
            retried.to_string(),
        ]);
        figure = figure.with(&victim.subject.name(), cost / 1e3);
        if victim.subject == Subject::Pushline {
            let label = format!("{} {readers}", transport.name());
            let what = format!("{label}: accepts per CPU second, of the floor's");
            finding.bars.push(Bar::at_least(&what, ACCEPTS_RATIO_MIN, 1.0 / ratio));
            finding.bars.push(Bar::at_most(
                &format!("{label}: longest wait, times the mean"),
                WAIT_RATIO_MAX,
                longest,
            ));
            let what = format!("{label}: messages lost after the return");
            finding.bars.push(Bar::at_most(&what, 0.0, victim.faults as f64));
        }
        finding.note_busy_client(
            victim.subject,
            median(&|round| round.outcome.client_busy),
            crate::order::CLIENT_BUSY_MAX,
        );
    }
    finding.tables.push(table);
    finding.figures.push(figure);
}
