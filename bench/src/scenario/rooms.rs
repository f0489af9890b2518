//! Many channels: rooms of ten in which everyone speaks, and inboxes with one reader each.

use anyhow::Result;

use crate::lab::{Crowd, Programs, Round, Subject};
use crate::order::{By, Order};
use crate::report::Finding;
use crate::rounds::{self, Series};
use crate::scale::{Scale, WARM_UP, shape};
use crate::transport::Transport;

const ROOM: usize = 10;
/// Publishes that are under way at once.
const TOGETHER: u32 = 64;

/// N/10 channels of 10 readers, to each of which its ten speak in turn.
pub fn rooms(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = many(programs, scale, "rooms", ROOM, false)?;
    spoken(programs, scale, &mut finding)?;
    Ok(finding)
}

/// The same, said by the members over their own WebSockets: one of each room at a time, as rooms do.
fn spoken(programs: &Programs, scale: &Scale, finding: &mut Finding) -> Result<()> {
    let readers = scale.size(2_000, 10_000) / ROOM * ROOM;
    let subjects = rounds::present(programs, &[Subject::Floor, Subject::Pushline], |_| false);
    let crowd = Crowd { members: Some(ROOM), ..scale.crowd(Transport::Ws, readers) };
    let mut stands = rounds::start(programs, &subjects, &shape(readers), &crowd, finding)?;
    let order = Order::Speak { turns: ROOM as u32 };
    let turns = scale.rounds.unwrap_or(scale.pick(5, 20));
    let taken = rounds::run(&mut stands, Some(order), &[order], turns, finding)?;
    let title = format!(
        "{readers} ws readers in {} rooms, {} bytes, each speaks once by its own WebSocket in each of {turns} rounds",
        readers / ROOM,
        scale.message_bytes,
    );
    rounds::tell_costs(finding, &title, &taken.iter().collect::<Vec<_>>());
    finding.keep_samples("spoken", &taken);
    Ok(())
}

/// N channels of one reader, published to by chance.
pub fn inbox(programs: &Programs, scale: &Scale) -> Result<Finding> {
    many(programs, scale, "inbox", 1, true)
}

fn many(programs: &Programs, scale: &Scale, name: &str, members: usize, random: bool) -> Result<Finding> {
    let mut finding = Finding::new(name);
    let readers = scale.size(2_000, 10_000);
    for transport in scale.transports(&[Transport::Ws]) {
        // 64 publishes come together: sent after what came with them was read, deliveries cost less than one by one.
        let ours = [Subject::FloorCoalescing, Subject::Pushline];
        let subjects = rounds::present(programs, &ours, rounds::serves(transport, readers));
        let crowd = Crowd { members: Some(members), ..scale.crowd(transport, readers) };
        let mut stands = rounds::start(programs, &subjects, &shape(readers), &crowd, &mut finding)?;
        // In rooms: each room once, so that after ten rounds everyone has spoken.
        let messages = if random { scale.pick(1_000, 5_000) } else { (readers / members) as u32 };
        let order = Order::Groups { messages, together: TOGETHER, by: By::Pipeline, random };
        let turns = scale.rounds.unwrap_or(scale.pick(5, 20));
        let taken = rounds::run(&mut stands, Some(WARM_UP), &[order], turns, &mut finding)?;
        let title = format!(
            "{readers} {} readers in {} channels, {} bytes, {turns} rounds of {messages} publishes, {TOGETHER} at once",
            transport.name(),
            readers / members,
            scale.message_bytes,
        );
        let all: Vec<&Series> = taken.iter().collect();
        rounds::tell_costs(&mut finding, &title, &all);
        let label = format!("{} {readers}: CPU per delivery", transport.name());
        rounds::bar_peers(&mut finding, &label, 1.0, &all, Round::ns_per_delivery);
        finding.keep_samples(transport.name(), &taken);
    }
    Ok(finding)
}
