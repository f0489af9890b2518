//! N readers and nothing else: memory of each, and what keeping them alive costs.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::lab::{Programs, Shape, Subject};
use crate::memory::{self, Held};
use crate::order::Order;
use crate::proc;
use crate::report::{Bar, Better, Figure, Finding, Table};
use crate::rounds::{READERS_OF_A_PEER_MAX, present, serves, start};
use crate::scale::{Scale, shape};
use crate::transport::Transport;

const USER_BYTES_MAX: f64 = 300.0;
const KERNEL_RATIO_MAX: f64 = 1.03;
const HEARTBEAT_RATIO_MAX: f64 = 1.15;
/// A larger crowd takes longer to come than a heartbeat's interval, and its heartbeats would be most of the work.
const HEARTBEATS_MEANWHILE_MAX: usize = 200_000;
/// Percent of a core that readers may cost without heartbeats: nothing measurable.
const SILENT_PERCENT_MAX: f64 = 0.2;

pub fn idle(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("idle");
    let quiet = Duration::from_secs(scale.hold_s.unwrap_or(scale.pick(1, 3)));
    let title = format!(
        "idle readers, read {} s after the last was subscribed; kernel bytes are of both ends of a connection",
        quiet.as_secs()
    );
    let mut table = Table::new(&title, &memory::COLUMNS);
    let transports = scale.transports(&[Transport::Ws, Transport::V1, Transport::Sse]);
    for readers in scale.sizes(&[5_000], &[10_000, 100_000, 1_000_000]) {
        // The growth of a large crowd takes minutes; v1 differs from ws by a few bytes.
        let these = transports.iter().filter(|&&transport| readers < 500_000 || transport != Transport::V1);
        for &transport in these {
            let held = subjects(programs, scale, transport, readers, quiet, &mut table, &mut finding)?;
            tell(&mut finding, transport, readers, &held);
        }
    }
    finding.tables.push(table);
    for transport in scale.transports(&[Transport::Ws, Transport::Sse]) {
        heartbeats(programs, scale, transport, &mut finding)?;
    }
    Ok(finding)
}

fn subjects(
    programs: &Programs,
    scale: &Scale,
    transport: Transport,
    readers: usize,
    quiet: Duration,
    table: &mut Table,
    finding: &mut Finding,
) -> Result<Vec<(Subject, Held)>> {
    let ours = [Subject::Floor, Subject::Pushline];
    let mut found = Vec::new();
    // A peer's memory is told at one size: what tens of thousands hold is the same for each.
    let peers_too = serves(transport, readers);
    for subject in present(programs, &ours, |api| peers_too(api) && readers <= READERS_OF_A_PEER_MAX) {
        let mut shape = Shape { pinned: readers <= 100_000, ..shape(readers) };
        if readers > HEARTBEATS_MEANWHILE_MAX {
            let settings = ["heartbeat.interval_seconds=300", "heartbeat.timeout_seconds=900"];
            shape.settings = settings.map(String::from).to_vec();
        }
        let mut crowd = scale.crowd(transport, readers);
        crowd.pinned = shape.pinned;
        memory::wait_sockets_gone();
        match memory::hold(programs, subject, &shape, &crowd, quiet, finding) {
            Ok((_, held)) => {
                table.rows.push(held.row(subject, &shape, &crowd));
                finding.samples.push(held.sample(subject, &crowd));
                found.push((subject, held));
            }
            Err(error) if matches!(subject, Subject::Peer(_)) => {
                finding.doubts.push(format!("{} is left out: {error:#}", subject.name()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn tell(finding: &mut Finding, transport: Transport, readers: usize, held: &[(Subject, Held)]) {
    let label = format!("{} {readers}", transport.name());
    let mut figure = Figure::new(&format!("{label}: user memory of an idle reader"), "B", Better::Less);
    for (subject, held) in held {
        figure = figure.with(&subject.name(), held.user_bytes);
    }
    finding.figures.push(figure);
    let of = |subject| held.iter().find(|(is, _)| *is == subject).map(|(_, held)| held);
    if let Some(ours) = of(Subject::Pushline) {
        let what = format!("{label}: user bytes per reader");
        finding.bars.push(Bar::at_most(&what, USER_BYTES_MAX, ours.user_bytes));
        if let Some(floor) = of(Subject::Floor) {
            let what = format!("{label}: kernel bytes of sockets, times the floor's");
            finding.bars.push(Bar::at_most(&what, KERNEL_RATIO_MAX, ours.slab_bytes / floor.slab_bytes));
        }
    }
}

/// The CPU of heartbeats beside a bare ping loop, and of readers without heartbeats.
fn heartbeats(programs: &Programs, scale: &Scale, transport: Transport, finding: &mut Finding) -> Result<()> {
    let readers = scale.size(5_000, 100_000);
    let (interval_ms, hold_ms): (u32, u64) = scale.pick((4_000, 8_000), (25_000, 50_000));
    let seconds = f64::from(interval_ms) / 1e3;
    let beating = Shape {
        settings: vec![
            format!("heartbeat.interval_seconds={seconds}"),
            format!("heartbeat.timeout_seconds={}", seconds * 2.4),
        ],
        ..shape(readers)
    };
    let silent = Shape {
        settings: vec!["heartbeat.interval_seconds=3600".into(), "heartbeat.timeout_seconds=7200".into()],
        ..shape(readers)
    };
    let crowd = scale.crowd(transport, readers);
    let floor = Subject::FloorPing(interval_ms);
    let mut stands = start(
        programs,
        &present(programs, &[floor, Subject::Pushline], |_| false),
        &beating,
        &crowd,
        finding,
    )?;
    let beating_stands = stands.len();
    let silent_subjects = present(programs, &[Subject::Floor, Subject::Pushline], |_| false);
    stands.extend(start(programs, &silent_subjects, &silent, &crowd, finding)?);
    // A whole interval until every reader has had its first.
    thread::sleep(Duration::from_millis(u64::from(interval_ms)));
    let mut before = Vec::new();
    for stand in &mut stands {
        before.push(stand.server.cpu()?);
        stand.load.begin(&Order::Watch { ms: hold_ms })?;
    }
    thread::sleep(Duration::from_millis(hold_ms));
    let mut used: Vec<proc::Cpu> = Vec::new();
    for (stand, before) in stands.iter().zip(before) {
        used.push(stand.server.cpu()? - before);
    }
    let title = format!(
        "{readers} idle {} readers for {} s, a heartbeat every {seconds} s",
        transport.name(),
        hold_ms / 1_000
    );
    let columns = ["server", "heartbeats", "% of a core", "CPU/heartbeat µs"];
    let mut table = Table::new(&title, &columns);
    let (mut costs, mut ended) = (Vec::new(), 0);
    for (at, (stand, used)) in stands.iter_mut().zip(used).enumerate() {
        let seen = stand.load.finish()?;
        let silent = at >= beating_stands;
        let percent = used.run_ns as f64 / (hold_ms as f64 * 1e6) * 100.0;
        let each_ns = used.run_ns as f64 / seen.heartbeats.max(1) as f64;
        let name = stand.server.subject.name();
        table.rows.push(vec![
            if silent { format!("{name}, no heartbeats") } else { name },
            seen.heartbeats.to_string(),
            format!("{percent:.3}"),
            if silent { "–".into() } else { format!("{:.2}", each_ns / 1e3) },
        ]);
        ended += seen.faults();
        let ours = stand.server.subject == Subject::Pushline;
        let label = format!("{} {readers}", transport.name());
        if silent && ours {
            let what = format!("{label}: percent of a core without heartbeats");
            finding.bars.push(Bar::at_most(&what, SILENT_PERCENT_MAX, percent));
        } else if !silent {
            costs.push(each_ns);
            // A server that sends none would look cheap.
            let due = readers as f64 * hold_ms as f64 / f64::from(interval_ms);
            if ours {
                let what = format!("{label}: heartbeats, of those that were due");
                finding.bars.push(Bar::at_least(&what, 0.8, seen.heartbeats as f64 / due));
            }
        }
    }
    if let [floor, ours] = costs[..] {
        let what = format!("{} {readers}: CPU per heartbeat, times a bare ping loop's", transport.name());
        finding.bars.push(Bar::at_most(&what, HEARTBEAT_RATIO_MAX, ours / floor));
    }
    let what = format!("{} {readers}: idle readers that were ended", transport.name());
    finding.bars.push(Bar::at_most(&what, 0.0, ended as f64));
    finding.tables.push(table);
    Ok(())
}
