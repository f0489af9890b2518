//! As many as the machine holds: all subscribed to one channel, one message to all, then a clean drain.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::lab::{Programs, Shape, Subject};
use crate::memory;
use crate::order::Order;
use crate::proc;
use crate::report::{Bar, Finding, Table};
use crate::scale::{Scale, shape};
use crate::transport::Transport;

const USER_BYTES_MAX: f64 = 300.0;
const USER_BYTES_READERS_MIN: usize = 100_000;
/// Of the load, so that it leaves the machine to the server.
const CLIENT_BYTES_MAX: f64 = 100.0;
const DRAIN_WINDOW_S: u64 = 30;
/// Beyond the window: goodbyes of a crowd on two cores.
const DRAIN_READERS_PER_S_MIN: u64 = 10_000;

pub fn capacity(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("capacity");
    let title = "one channel, server and load on all CPUs; kernel bytes are of both ends";
    let mut held_table = Table::new(title, &memory::COLUMNS);
    let columns = [
        "transport",
        "readers",
        "workers",
        "one message to all: p50 s",
        "max s",
        "drain s",
        "told",
        "cut",
        "exit",
        "MemAvailable left MiB",
    ];
    let mut table = Table::new("one message, then SIGTERM", &columns);
    if !proc::is_program(&programs.pushline) {
        return Ok(finding);
    }
    for (transport, readers) in
        [(Transport::Ws, scale.size(40_000, 1_000_000)), (Transport::Sse, scale.size(20_000, 500_000))]
    {
        if !scale.transports(&[Transport::Ws, Transport::Sse]).contains(&transport) {
            continue;
        }
        memory::wait_sockets_gone();
        let shape = Shape {
            pinned: false,
            settings: vec![
                // 40,000 heartbeats a second would be most of what two cores can do while the others come.
                "heartbeat.interval_seconds=300".into(),
                "heartbeat.timeout_seconds=900".into(),
                format!("drain.window_seconds={}", scale.pick(3, DRAIN_WINDOW_S)),
            ],
            ..shape(readers)
        };
        let mut crowd = scale.crowd(transport, readers);
        crowd.pinned = false;
        let quiet = Duration::from_secs(scale.hold_s.unwrap_or(scale.pick(1, 5)));
        let (mut stand, held) =
            memory::hold(programs, Subject::Pushline, &shape, &crowd, quiet, &mut finding)?;
        held_table.rows.push(held.row(Subject::Pushline, &shape, &crowd));
        finding.samples.push(held.sample(Subject::Pushline, &crowd));
        let available = proc::kernel_memory()?.available >> 20;
        let round = stand.round(&Order::single(1))?;

        let patience = Duration::from_secs(DRAIN_WINDOW_S + 10 + readers as u64 / DRAIN_READERS_PER_S_MIN);
        let began = Instant::now();
        stand.load.begin(&Order::End { ms: patience.as_millis() as u64 })?;
        let ended = stand.server.terminate(patience);
        let drain = stand.load.finish()?;
        let status = match &ended {
            Ok((status, _)) => status.to_string(),
            Err(error) => format!("{error:#}"),
        };
        let clean = ended.is_ok_and(|(status, _)| status.success());
        table.rows.push(vec![
            transport.name().into(),
            readers.to_string(),
            shape.workers.to_string(),
            format!("{:.2}", round.outcome.latency.p50_us / 1e6),
            format!("{:.2}", round.outcome.latency.max_us / 1e6),
            format!("{:.1}", began.elapsed().as_secs_f64()),
            drain.told.to_string(),
            drain.cut.to_string(),
            status,
            available.to_string(),
        ]);
        finding.samples.push(json!({"transport": transport, "readers": readers, "message": round.outcome,
            "drain": drain, "server_cpu": round.server_cpu}));
        let label = format!("{} {readers}", transport.name());
        let bars = &mut finding.bars;
        let all = readers as f64;
        bars.push(Bar::at_least(&format!("{label}: readers reached"), all, round.outcome.deliveries as f64));
        bars.push(Bar::at_most(&format!("{label}: faults"), 0.0, round.outcome.faults() as f64));
        // What a worker takes once would count among fewer.
        if readers >= USER_BYTES_READERS_MIN {
            bars.push(Bar::at_most(
                &format!("{label}: user bytes per reader"),
                USER_BYTES_MAX,
                held.user_bytes,
            ));
        }
        bars.push(Bar::at_most(
            &format!("{label}: the load's own bytes per reader"),
            CLIENT_BYTES_MAX,
            held.client_bytes,
        ));
        bars.push(Bar::at_least(&format!("{label}: readers told of the drain"), all, drain.told as f64));
        bars.push(Bar::at_least(
            &format!("{label}: drained and ended by itself"),
            1.0,
            f64::from(u8::from(clean)),
        ));
    }
    finding.tables.extend([held_table, table]);
    Ok(finding)
}
