//! TLS beside plain: what a delivery, a handshake and a waiting reader cost, and the same of the nearest peer.

use std::time::Duration;

use anyhow::Result;

use crate::lab::{Programs, Subject};
use crate::memory;
use crate::order::Order;
use crate::report::{Bar, Better, Figure, Finding, Table};
use crate::rounds::{self, Series};
use crate::scale::{Scale, WARM_UP, shape};
use crate::transport::Transport;

/// User memory of an idle reader by TLS. The floor is rustls's own state: see `docs/tls.md`.
const USER_BYTES_MAX: f64 = 3_000.0;
const PEER: &str = "nchan";

pub fn tls(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("tls");
    let mut subjects = vec![Subject::Pushline, Subject::PushlineTls];
    if programs.peer(PEER).is_some() {
        subjects.extend([Subject::Peer(PEER), Subject::PeerTls(PEER)]);
    }
    for transport in scale.transports(&[Transport::Ws]) {
        let readers = scale.size(2_000, 10_000);
        cost(programs, scale, transport, readers, &subjects, &mut finding)?;
        held(programs, scale, transport, readers, &subjects, &mut finding)?;
    }
    Ok(finding)
}

fn cost(
    programs: &Programs,
    scale: &Scale,
    transport: Transport,
    readers: usize,
    subjects: &[Subject],
    finding: &mut Finding,
) -> Result<()> {
    let title = format!(
        "{readers} {} readers, {} bytes, one at a time, {} rounds of {} messages (\"floor\": Pushline, plain)",
        transport.name(),
        scale.message_bytes,
        scale.rounds(),
        scale.groups()
    );
    let crowd = scale.crowd(transport, readers);
    let mut stands = rounds::start(programs, subjects, &shape(readers), &crowd, finding)?;
    let orders = [Order::single(scale.groups())];
    let taken = rounds::run(&mut stands, Some(WARM_UP), &orders, scale.rounds(), finding)?;
    rounds::tell_costs(finding, &title, &taken.iter().collect::<Vec<_>>());
    let faults: u64 =
        taken.iter().filter(|series| series.subject == Subject::PushlineTls).map(Series::faults).sum();
    let what = format!(
        "{} {readers}, TLS: messages lost, repeated or out of order, readers ended",
        transport.name()
    );
    finding.bars.push(Bar::at_most(&what, 0.0, faults as f64));
    finding.keep_samples(&format!("{} {readers}", transport.name()), &taken);
    Ok(())
}

/// Memory of each reader, and of its handshake the CPU.
fn held(
    programs: &Programs,
    scale: &Scale,
    transport: Transport,
    readers: usize,
    subjects: &[Subject],
    finding: &mut Finding,
) -> Result<()> {
    let quiet = Duration::from_secs(scale.hold_s.unwrap_or(scale.pick(1, 3)));
    let mut table = Table::new(
        &format!("{readers} idle {} readers; CPU of an accept is with its handshake", transport.name()),
        &memory::COLUMNS,
    );
    let label = format!("{} {readers}", transport.name());
    let mut figure = Figure::new(&format!("{label}: user memory of an idle reader"), "B", Better::Less);
    let crowd = scale.crowd(transport, readers);
    for &subject in subjects {
        memory::wait_sockets_gone();
        let (_stand, held) = memory::hold(programs, subject, &shape(readers), &crowd, quiet, finding)?;
        table.rows.push(held.row(subject, &shape(readers), &crowd));
        figure = figure.with(&subject.name(), held.user_bytes);
        if subject == Subject::PushlineTls {
            let what = format!("{label}, TLS: user bytes per reader");
            finding.bars.push(Bar::at_most(&what, USER_BYTES_MAX, held.user_bytes));
        }
    }
    finding.tables.push(table);
    finding.figures.push(figure);
    Ok(())
}
