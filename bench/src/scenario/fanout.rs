//! One channel, N readers, one message at a time: what a delivery costs, and what others wait meanwhile.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::lab::{Crowd, Load, Programs, Round, Stand, Subject};
use crate::order::Order;
use crate::report::{Bar, Finding, Table};
use crate::rounds::{self, Series};
use crate::scale::{Scale, WARM_UP, shape};
use crate::transport::Transport;

const RATIO_MAX: f64 = 1.05;
const P99_RATIO_MAX: f64 = 1.1;
/// What a publish to another channel may wait while so many are served.
const ASIDE_MS_MAX: f64 = 5.0;
const ASIDE_PER_S: f64 = 100.0;
/// Longer than Pushline's heartbeat, so that the pings of all readers are among what a publish may have to wait for.
const ASIDE_MS: u64 = 27_000;
const ASIDE_MS_QUICK: u64 = 2_000;

pub fn fanout(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("fanout");
    let sizes = scale.sizes(&[1_000, 5_000], &[1_000, 10_000, 100_000]);
    for transport in scale.transports(&[Transport::Ws]) {
        for &readers in &sizes {
            let last = Some(&readers) == sizes.last();
            measure(programs, scale, transport, readers, last, &mut finding)?;
        }
    }
    Ok(finding)
}

fn measure(
    programs: &Programs,
    scale: &Scale,
    transport: Transport,
    readers: usize,
    last: bool,
    finding: &mut Finding,
) -> Result<()> {
    let title = format!(
        "{readers} {} readers, {} bytes, one at a time, {} rounds of {} messages",
        transport.name(),
        scale.message_bytes,
        scale.rounds(),
        scale.groups_of(readers)
    );
    let ours = [Subject::Floor, Subject::Pushline];
    let subjects = rounds::present(programs, &ours, rounds::serves(transport, readers));
    let crowd = scale.crowd(transport, readers);
    let mut stands = rounds::start(programs, &subjects, &shape(readers), &crowd, finding)?;
    let order = Order::single(scale.groups_of(readers));
    let taken = rounds::run(&mut stands, Some(WARM_UP), &[order], scale.rounds(), finding)?;
    let all: Vec<&Series> = taken.iter().collect();
    rounds::tell_costs(finding, &title, &all);
    finding.keep_samples(&format!("{} {readers}", transport.name()), &taken);
    let label = format!("{} {readers}", transport.name());
    let what = format!("{label}: CPU per delivery, times the floor's");
    rounds::bar_ratio(finding, &what, RATIO_MAX, &all, Subject::Floor, Round::ns_per_delivery);
    if readers == 10_000 || (scale.quick && last) {
        let what = format!("{label}: p99 latency, times the floor's");
        let p99 = |round: &Round| round.outcome.latency.p99_us;
        rounds::bar_ratio(finding, &what, P99_RATIO_MAX, &all, Subject::Floor, p99);
    }
    if last {
        stands.retain(|stand| !matches!(stand.server.subject, Subject::Peer(_)));
        aside(programs, scale, &mut stands, &crowd, finding)?;
    }
    Ok(())
}

/// A probe on another channel while the crowd is being served.
fn aside(
    programs: &Programs,
    scale: &Scale,
    stands: &mut [Stand],
    crowd: &Crowd,
    finding: &mut Finding,
) -> Result<()> {
    let columns = ["server", "p50 ms", "p99 ms", "p99.9 ms", "max ms"];
    let title = format!(
        "A publish to another channel ({ASIDE_PER_S} a second, 10 readers that run before all others on the load's CPU) \
         while {} {} readers are served",
        crowd.readers,
        crowd.transport.name()
    );
    let mut table = Table::new(&title, &columns);
    for stand in stands {
        let subject = stand.server.subject;
        // The floor pings nobody.
        let ms = if scale.quick || subject == Subject::Floor { ASIDE_MS_QUICK } else { ASIDE_MS };
        // As many messages as keep the server at it for the probe's time, at 5 µs a delivery or more.
        let messages = (ms as usize * 200 / crowd.readers).max(2) as u32;
        let mut probe_crowd = Crowd { readers: 10, ..scale.crowd(crowd.transport, 10) };
        probe_crowd.args = vec!["--first".into(), "--channel-from".into(), "4000000".into()];
        let mut probe = Load::start(programs, &stand.server, &probe_crowd)?;
        probe.carry_out(&WARM_UP)?;
        stand.load.begin(&Order::single(messages))?;
        thread::sleep(Duration::from_millis(100));
        let probed = probe.carry_out(&Order::Pace { ms, per_s: ASIDE_PER_S, random: false })?;
        let served = stand.load.finish()?;
        let latency = probed.latency;
        let waits = [latency.p50_us, latency.p99_us, latency.p999_us, latency.max_us];
        table.rows.push([vec![subject.name()], waits.map(|us| format!("{:.2}", us / 1e3)).to_vec()].concat());
        for fault in [probed.fault(), served.fault()].into_iter().flatten() {
            finding.doubts.push(format!("aside, {}: {fault}", subject.name()));
        }
        if subject == Subject::Pushline {
            let label = format!("a publish aside of {} readers", crowd.readers);
            finding.bars.push(Bar::at_most(
                &format!("{label}: ms, 99 of 100"),
                ASIDE_MS_MAX,
                latency.p99_us / 1e3,
            ));
            let faults = (probed.faults() + served.faults()) as f64;
            finding.bars.push(Bar::at_most(&format!("{label}: messages lost"), 0.0, faults));
        }
    }
    finding.tables.push(table);
    Ok(())
}

/// Whether the send ring earns its place over `send(2)`: the same floor, by each, one message at a time.
pub fn sends(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("sends");
    let readers = scale.size(2_000, 10_000);
    let subjects = [Subject::Floor, Subject::FloorRing(1), Subject::FloorRing(16), Subject::FloorRing(64)];
    let crowd = scale.crowd(Transport::Ws, readers);
    let mut stands = rounds::start(programs, &subjects, &shape(readers), &crowd, &mut finding)?;
    let order = Order::single(scale.groups());
    let taken = rounds::run(&mut stands, Some(WARM_UP), &[order], scale.rounds(), &mut finding)?;
    let title = format!("The floor by send(2) and by Pushline's send ring, {readers} readers");
    rounds::tell_costs(&mut finding, &title, &taken.iter().collect::<Vec<_>>());
    let faults: u64 = taken.iter().map(Series::faults).sum();
    finding.bars.push(Bar::at_most("messages lost, repeated or out of order", 0.0, faults as f64));
    finding.keep_samples("ws", &taken);
    Ok(finding)
}
