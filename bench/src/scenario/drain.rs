//! A server is told to stop while all its readers are there; each comes to a second one when it was told to, with its
//! cursor: how evenly they leave and come back, and whether each is answered there.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::lab::{Load, Programs, Server, Shape, Subject};
use crate::memory;
use crate::order::{Order, Outcome};
use crate::proc;
use crate::report::{Bar, Finding, Table};
use crate::scale::{Scale, WARM_UP, shape};
use crate::transport::Transport;

/// The busiest second, times the mean.
const BUSIEST_MAX: f64 = 1.3;
/// Tenths of a second in a second.
const SECOND: usize = 10;
/// Beyond the window and what readers stay away at most: answers on their way.
const GRACE_S: u64 = 20;

const COLUMNS: [&str; 11] = [
    "transport",
    "readers",
    "window s",
    "leave in s",
    "busiest ÷ mean",
    "back in s",
    "busiest ÷ mean",
    "told",
    "back",
    "gaps told",
    "p99 from connect to answer ms",
];

pub fn drain(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("drain");
    if !proc::is_program(&programs.pushline) {
        return Ok(finding);
    }
    let title =
        "SIGTERM; each reader comes to a second server, by its cursor, after the time that it was told";
    let mut table = Table::new(title, &COLUMNS);
    let readers = scale.size(5_000, 100_000);
    let window_s = scale.pick(4, 10);
    for transport in scale.transports(&[Transport::V1, Transport::Sse]) {
        memory::wait_sockets_gone();
        let moved = move_all(programs, scale, transport, readers, window_s)?;
        tell(&mut finding, &mut table, transport, readers, window_s, &moved);
    }
    finding.tables.push(table);
    Ok(finding)
}

/// What came of one move.
struct Moved {
    outcome: Outcome,
    ended: String,
    clean: bool,
    second_cpu: proc::Cpu,
}

fn move_all(
    programs: &Programs,
    scale: &Scale,
    transport: Transport,
    readers: usize,
    window_s: u64,
) -> Result<Moved> {
    let shape = Shape {
        settings: vec![
            // Heartbeats of a crowd would be part of the work of some seconds and not of others.
            "heartbeat.interval_seconds=300".into(),
            "heartbeat.timeout_seconds=900".into(),
            format!("drain.window_seconds={window_s}"),
        ],
        ..shape(readers)
    };
    let mut first = Server::start(programs, Subject::Pushline, &shape, None)?;
    let second = Server::start(programs, Subject::Pushline, &shape, None)?;
    let mut crowd = scale.crowd(transport, readers);
    crowd.args.extend(["--second".into(), second.address.to_string()]);
    let mut load = Load::start(programs, &first, &crowd)?;
    load.carry_out(&WARM_UP)?;
    let second_before = second.cpu()?;
    let patience_s = 2 * window_s + GRACE_S;
    load.begin(&Order::Move { ms: patience_s * 1_000 })?;
    // The load has asked for the cursor, and is waiting.
    std::thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    let asked = first.terminate(Duration::from_secs(patience_s));
    let outcome = load.finish()?;
    let ended = match &asked {
        Ok((status, _)) => format!("{status} after {:.1} s", began.elapsed().as_secs_f64()),
        Err(error) => format!("{error:#}"),
    };
    let clean = asked.is_ok_and(|(status, _)| status.success());
    Ok(Moved { outcome, ended, clean, second_cpu: second.cpu()? - second_before })
}

/// From the first to the last, in seconds, and the busiest second, times the mean.
fn evenness(tenths: &[u32]) -> (f64, f64) {
    let is_some = |count: &u32| *count > 0;
    let (Some(first), Some(last)) = (tenths.iter().position(is_some), tenths.iter().rposition(is_some))
    else {
        return (0.0, f64::NAN);
    };
    let span = &tenths[first..=last];
    let all: u32 = span.iter().sum();
    let seconds = span.len() as f64 / SECOND as f64;
    let busiest = span.windows(SECOND.min(span.len())).map(|second| second.iter().sum::<u32>()).max();
    (seconds, f64::from(busiest.unwrap_or(0)) / (f64::from(all) / seconds))
}

fn tell(
    finding: &mut Finding,
    table: &mut Table,
    transport: Transport,
    readers: usize,
    window_s: u64,
    moved: &Moved,
) {
    let Moved { outcome, ended, clean, second_cpu } = moved;
    let (left_s, left_busiest) = evenness(&outcome.left);
    let (back_s, back_busiest) = evenness(&outcome.back);
    let back: u32 = outcome.back.iter().sum();
    table.rows.push(vec![
        transport.name().into(),
        readers.to_string(),
        window_s.to_string(),
        format!("{left_s:.1}"),
        format!("{left_busiest:.2}"),
        format!("{back_s:.1}"),
        format!("{back_busiest:.2}"),
        outcome.told.to_string(),
        back.to_string(),
        outcome.gaps.to_string(),
        format!("{:.1}", outcome.waits.p99_us / 1e3),
    ]);
    finding.samples.push(json!({"transport": transport, "readers": readers, "window_s": window_s,
        "ended": ended, "second_cpu": second_cpu, "moved": outcome}));
    let label = format!("{} {readers}", transport.name());
    let all = readers as f64;
    let bars = &mut finding.bars;
    let mut bar = |what: &str, limit: fn(&str, f64, f64) -> Bar, bound: f64, measured: f64| {
        bars.push(limit(&format!("{label}: {what}"), bound, measured));
    };
    bar("goodbyes in the busiest second, times the mean", Bar::at_most, BUSIEST_MAX, left_busiest);
    bar("returns in the busiest second, times the mean", Bar::at_most, BUSIEST_MAX, back_busiest);
    bar("readers told when to come back", Bar::at_least, all, outcome.told as f64);
    bar("readers cut without a word", Bar::at_most, 0.0, outcome.cut as f64);
    bar("readers back, by their cursor", Bar::at_least, all, f64::from(back));
    bar("gaps told to them", Bar::at_least, all, outcome.gaps as f64);
    bar("the first ended by itself", Bar::at_least, 1.0, f64::from(u8::from(*clean)));
    finding.note_busy_client(Subject::Pushline, outcome.client_busy, crate::order::CLIENT_BUSY_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenness_is_of_the_busiest_second_wherever_it_begins() {
        let flat = vec![10; 40];
        assert_eq!(evenness(&flat), (4.0, 1.0));
        let padded = [&[0; 7][..], &flat, &[0; 9]].concat();
        assert_eq!(evenness(&padded), (4.0, 1.0));
        // A second of 200 that lies across two.
        let heaped = [&[10; 15][..], &[20; 10], &[10; 15]].concat();
        let (seconds, busiest) = evenness(&heaped);
        assert!(seconds == 4.0 && (busiest - 1.6).abs() < 1e-9, "{busiest}");
        assert!(evenness(&[]).1.is_nan(), "nobody left: no bar is met");
    }
}
