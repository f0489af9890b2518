//! One reader of ten stops to read: what the others feel, what it costs, and that nothing is lost in silence.

use anyhow::Result;

use crate::lab::{Programs, Round, Stand, Subject};
use crate::order::{By, Order, Outcome};
use crate::proc;
use crate::report::{Bar, Finding, Table};
use crate::rounds;
use crate::scale::{Scale, WARM_UP, shape};
use crate::transport::Transport;

/// Every so manieth reader stops.
const PART: usize = 10;
const MESSAGE_BYTES: usize = 1_024;
/// Small, so that a stopped reader is a slow one for the server and not for its own kernel.
const RECEIVE_BUFFER: usize = 32 * 1024;
/// Fewer bytes than history keeps of a channel (1,000 messages, 1 MiB): a reader that stopped has all of them later.
const KEPT: u32 = 600;
/// Many more: a reader that stopped must be told.
const TOO_MANY: u32 = 3_000;
const TOGETHER: u32 = 8;
const FLOW_MS: u64 = 20_000;

/// Pushline alone: the floor waits for whoever is slow, and most peers drop messages or readers without a word.
pub fn slow(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("slow");
    let readers = scale.size(500, 2_000);
    for transport in scale.transports(&[Transport::Ws, Transport::Sse]) {
        let mut crowd = scale.crowd(transport, readers);
        crowd.message_bytes = MESSAGE_BYTES;
        crowd.args = vec!["--receive-buffer".into(), RECEIVE_BUFFER.to_string()];
        let subjects = rounds::present(programs, &[Subject::Pushline], |_| false);
        for mut stand in rounds::start(programs, &subjects, &shape(readers), &crowd, &mut finding)? {
            measure(&mut stand, transport, readers, &mut finding)?;
        }
    }
    Ok(finding)
}

fn measure(stand: &mut Stand, transport: Transport, readers: usize, finding: &mut Finding) -> Result<()> {
    let title = format!(
        "{readers} {} readers, {MESSAGE_BYTES} bytes, {TOGETHER} at once; one of {PART} stops to read",
        transport.name()
    );
    let columns = [
        "when",
        "messages",
        "CPU/delivery µs",
        "p50 ms",
        "p99 ms",
        "max ms",
        "server's memory MiB",
        "TCP buffers MiB",
        "lost",
        "jumped",
        "told to go",
        "cut",
    ];
    let mut table = Table::new(&title, &columns);
    let stopped = readers.div_ceil(PART) as u64;
    stand.round(&WARM_UP)?;
    let publish = |messages| Order::together(messages, TOGETHER, By::Pipeline);
    let mut silent = 0;
    for (when, order) in [
        ("all read", publish(KEPT)),
        ("", Order::Stall { part: PART }),
        ("one of ten has stopped", publish(KEPT)),
        ("it reads again", Order::Flow { ms: FLOW_MS }),
        ("", Order::Stall { part: PART }),
        ("it has stopped for longer than history keeps", publish(TOO_MANY)),
        ("it reads again: too late", Order::Flow { ms: FLOW_MS }),
    ] {
        let round = stand.round(&order)?;
        let Outcome { lost, jumped, repeated, out_of_order, told, cut, .. } = round.outcome;
        silent += jumped + repeated + out_of_order + cut;
        let late = when.ends_with("too late") || when.contains("longer");
        // Who was told to go may miss the rest: it knows.
        silent += if late && told > 0 { 0 } else { lost + told };
        if when.is_empty() {
            continue;
        }
        table.rows.push(row(stand, when, &round)?);
    }
    let label = format!("{} {readers}", transport.name());
    let what = format!("{label}: messages lost or readers ended without need or a word");
    finding.bars.push(Bar::at_most(&what, 0.0, silent as f64));
    let left = stand.load.carry_out(&Order::Watch { ms: 100 })?;
    let told = readers as u64 - left.open;
    let what = format!("{label}: readers told that they are too slow, of {stopped} that were");
    finding.bars.push(Bar::at_least(&what, 1.0, told as f64 / stopped as f64));
    finding.bars.push(Bar::at_most(&what, 1.0, told as f64 / stopped as f64));
    finding.tables.push(table);
    Ok(())
}

fn row(stand: &Stand, when: &str, round: &Round) -> Result<Vec<String>> {
    let Outcome { messages, latency, lost, jumped, told, cut, .. } = round.outcome;
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let ms = |us: f64| format!("{:.1}", us / 1e3);
    Ok(vec![
        when.into(),
        messages.to_string(),
        rounds::micro(round.ns_per_delivery()),
        ms(latency.p50_us),
        ms(latency.p99_us),
        ms(latency.max_us),
        mib(stand.server.memory_bytes()?),
        mib(proc::kernel_memory()?.tcp_buffers),
        lost.to_string(),
        jumped.to_string(),
        told.to_string(),
        cut.to_string(),
    ])
}
