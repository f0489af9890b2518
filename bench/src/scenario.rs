//! What is measured, and against which bar. Each scenario starts its stands, runs rounds turn by turn, and
//! returns a `Finding`. Turn by turn, because this machine's speed drifts: only what ran within the same
//! second is compared, and the ratio that counts is the median of the rounds' own ratios.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use crate::lab::{Crowd, Load, Order, Programs, Round, Server, Shape, Stand, Subject};
use crate::proc::{self, KernelMemory};
use crate::publisher::By;
use crate::report::{Bar, Finding, Table};
use crate::stats::Spread;
use crate::transport::Transport;

/// How large and how long.
#[derive(Debug, Clone)]
pub struct Scale {
    pub readers: usize,
    pub rounds: usize,
    /// Groups of messages in each round.
    pub groups: u32,
    pub message_bytes: usize,
    pub transports: Vec<Transport>,
    /// Connections and workers of `idle`.
    pub idle: Vec<(usize, usize)>,
    /// Quiet time before memory is read.
    pub hold: Duration,
    /// Handshakes per second.
    pub rate_per_s: u32,
}

impl Scale {
    fn crowd(&self, transport: Transport) -> Crowd {
        let Self { readers, rate_per_s, message_bytes, .. } = *self;
        Crowd { transport, readers, rate_per_s, message_bytes }
    }

    fn one_worker(&self) -> Shape {
        Shape { workers: 1, connections: self.readers, pinned: true }
    }
}

/// How many messages of a burst are published together.
const TOGETHER: u32 = 16;
const FANOUT_RATIO_MAX: f64 = 1.15;
const BURST_COST_MAX: f64 = 2.0;
const IDLE_BYTES_MAX: f64 = 500.0;
/// A load as busy as this may be what is measured.
const CLIENT_BUSY_MAX: f64 = 0.9;

/// One channel, one worker, N readers, one message at a time: CPU per delivery beside the floor's.
pub fn fanout(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("fanout");
    for &transport in &scale.transports {
        let order = Order { messages: scale.groups, together: 1, by: By::Pipeline };
        let stands = start(programs, scale, transport, &[Subject::Floor, Subject::Pushline], &mut finding)?;
        let taken = rounds(stands, &[order], scale.rounds)?;
        let title = format!(
            "{} {} readers, {} bytes, one at a time, {} rounds of {} messages",
            scale.readers,
            transport.name(),
            scale.message_bytes,
            scale.rounds,
            scale.groups
        );
        let mut table = Table::new(&title, &FANOUT_COLUMNS);
        for series in &taken {
            let (row, ratio) = fanout_row(series, &taken[0]);
            table.rows.push(row);
            finding.note_busy_client(series.subject, series.client_busy(), CLIENT_BUSY_MAX);
            if series.subject == Subject::Pushline {
                finding.bars.push(Bar::at_most(
                    &format!("{}: CPU per delivery, times the floor's", transport.name()),
                    FANOUT_RATIO_MAX,
                    ratio,
                ));
            }
        }
        finding.tables.push(table);
        finding.keep_samples(transport.name(), &taken);
    }
    Ok(finding)
}

const FANOUT_COLUMNS: [&str; 10] = [
    "server",
    "CPU/delivery µs",
    "min–max",
    "user µs",
    "system µs",
    "× floor",
    "p50 ms",
    "p99 ms",
    "server busy",
    "client busy",
];

fn fanout_row(series: &Series, floor: &Series) -> (Vec<String>, f64) {
    let cost = series.spread(Round::ns_per_delivery);
    let user = series.user_share() * cost.median;
    let ratio = series.ratio_to(floor, Round::ns_per_delivery);
    let row = vec![
        series.subject.name(),
        micro(cost.median),
        format!("{}–{}", micro(cost.min), micro(cost.max)),
        micro(user),
        micro(cost.median - user),
        format!("{:.3}", ratio.median),
        format!("{:.1}", series.spread(|round| round.outcome.latency.p50_us).median / 1e3),
        format!("{:.1}", series.spread(|round| round.outcome.latency.p99_us).median / 1e3),
        percent(series.server_busy()),
        percent(series.client_busy()),
    ];
    (row, ratio.median)
}

/// Whether the send ring earns its place over `send(2)`: the same floor, by each, one message at a time.
pub fn sends(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("sends");
    let order = Order { messages: scale.groups, together: 1, by: By::Pipeline };
    let subjects = [Subject::Floor, Subject::FloorRing(1), Subject::FloorRing(16), Subject::FloorRing(64)];
    let stands = start(programs, scale, Transport::Ws, &subjects, &mut finding)?;
    let taken = rounds(stands, &[order], scale.rounds)?;
    let title = format!("The floor by send(2) and by Pushline's send ring, {} readers", scale.readers);
    let mut table = Table::new(&title, &FANOUT_COLUMNS);
    table.rows.extend(taken.iter().map(|series| fanout_row(series, &taken[0]).0));
    finding.tables.push(table);
    finding.keep_samples("ws", &taken);
    Ok(finding)
}

/// One message and 16 together, N readers: what the further fifteen cost.
pub fn burst(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("burst");
    let orders = [(1, By::Pipeline), (TOGETHER, By::Pipeline), (TOGETHER, By::Batch)]
        .map(|(together, by)| Order { messages: scale.groups * together, together, by });
    let labels = ["one", "16 POSTs pipelined", "16 in one batch"];
    for &transport in &scale.transports {
        let subjects = [Subject::FloorCoalescing, Subject::Pushline];
        let stands = start(programs, scale, transport, &subjects, &mut finding)?;
        let taken = rounds(stands, &orders, scale.rounds)?;
        let title = format!(
            "{} {} readers, {} bytes, {} rounds of {} groups",
            scale.readers,
            transport.name(),
            scale.message_bytes,
            scale.rounds,
            scale.groups
        );
        let columns = [
            "server",
            "published",
            "CPU/group ms",
            "× one",
            "CPU/delivery µs",
            "user µs",
            "× floor",
            "p99 ms",
        ];
        let mut table = Table::new(&title, &columns);
        for (at, series) in taken.iter().enumerate() {
            let (subject, order) = (at / orders.len(), at % orders.len());
            let one = &taken[subject * orders.len()];
            let per_group = |round: &Round| round.ns_per_message() * f64::from(orders[order].together);
            let cost = series.spread(Round::ns_per_delivery);
            // Of rounds in the same turn, so that drift cancels.
            let growth = Spread::of(
                series
                    .rounds
                    .iter()
                    .zip(&one.rounds)
                    .map(|(many, one)| per_group(many) / one.ns_per_message()),
            );
            table.rows.push(vec![
                series.subject.name(),
                labels[order].into(),
                format!("{:.1}", series.spread(per_group).median / 1e6),
                format!("{:.2}", growth.median),
                micro(cost.median),
                micro(series.user_share() * cost.median),
                format!("{:.2}", series.ratio_to(&taken[order], Round::ns_per_delivery).median),
                format!("{:.1}", series.spread(|round| round.outcome.latency.p99_us).median / 1e3),
            ]);
            if series.subject == Subject::Pushline && order > 0 {
                let what = format!("{}: {} cost, times one", transport.name(), labels[order]);
                finding.bars.push(Bar::at_most(&what, BURST_COST_MAX, growth.median));
            }
        }
        finding.tables.push(table);
        finding.keep_samples(transport.name(), &taken);
    }
    Ok(finding)
}

/// N readers and nothing else: user and kernel memory of each.
pub fn idle(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("idle");
    let columns = [
        "server",
        "transport",
        "readers",
        "workers",
        "user MiB before",
        "user B/reader",
        "kernel socket slabs B",
        "of them epoll B",
        "TCP buffers B",
        "MemAvailable B",
        "CPU/accept µs",
    ];
    let title = format!(
        "idle readers, read {} s after the last was subscribed; kernel bytes are of both ends of a connection",
        scale.hold.as_secs()
    );
    let mut table = Table::new(&title, &columns);
    for &(readers, workers) in &scale.idle {
        for &transport in &scale.transports {
            for subject in present(programs, &[Subject::Floor, Subject::Pushline]) {
                let crowd = Crowd { readers, ..scale.crowd(transport) };
                let shape = Shape { workers, connections: readers, pinned: workers == 1 };
                let held = hold(programs, subject, shape, &crowd, scale.hold, &mut finding)?;
                if subject == Subject::Pushline {
                    let what = format!("{}, {readers} on {workers}: user bytes per reader", transport.name());
                    finding.bars.push(Bar::at_most(&what, IDLE_BYTES_MAX, held.user_bytes));
                }
                table.rows.push(vec![
                    subject.name(),
                    transport.name().into(),
                    readers.to_string(),
                    workers.to_string(),
                    format!("{:.1}", held.user_before as f64 / f64::from(1 << 20)),
                    format!("{:.0}", held.user_bytes),
                    format!("{:.0}", held.slab_bytes),
                    format!("{:.0}", held.epoll_bytes),
                    format!("{:.0}", held.buffer_bytes),
                    format!("{:.0}", held.available_bytes),
                    micro(held.accept_ns),
                ]);
                finding.samples.push(json!({
                    "subject": subject, "transport": transport, "readers": readers, "workers": workers,
                    "user_bytes": held.user_bytes, "user_before": held.user_before, "slab_bytes": held.slab_bytes, "accept_ns": held.accept_ns,
                    "epoll_bytes": held.epoll_bytes, "available_bytes": held.available_bytes,
                }));
            }
        }
    }
    finding.tables.push(table);
    Ok(finding)
}

/// What one reader holds, in bytes, and what its accept cost.
struct Held {
    /// Of the server before the first reader: what it took early does not show in the growth.
    user_before: u64,
    user_bytes: f64,
    slab_bytes: f64,
    epoll_bytes: f64,
    buffer_bytes: f64,
    available_bytes: f64,
    accept_ns: f64,
}

fn hold(
    programs: &Programs,
    subject: Subject,
    shape: Shape,
    crowd: &Crowd,
    quiet: Duration,
    finding: &mut Finding,
) -> Result<Held> {
    wait_sockets_gone();
    let server = Server::start(programs, subject, shape)?;
    // The load's own start must not count: it is small, and it comes before the first handshake only by chance.
    thread::sleep(Duration::from_millis(300));
    let user_before = server.anonymous_bytes()?;
    let cpu_before = server.cpu()?;
    let kernel_before = proc::kernel_memory()?;
    let load = Load::start(programs, &server, crowd)?;
    let accept = server.cpu()? - cpu_before;
    thread::sleep(quiet);
    let user_after = server.anonymous_bytes()?;
    let kernel_after = proc::kernel_memory()?;
    finding.commands.insert(subject.name(), server.command().into());
    finding.commands.insert("load".into(), load.command().into());
    eprintln!(
        "  {}: {} {} readers on {} workers in {:.1} s, {} tried again",
        subject.name(),
        crowd.readers,
        crowd.transport.name(),
        shape.workers,
        load.ready.ramp_s,
        load.ready.retried
    );
    let each = |after: u64, before: u64| (after as f64 - before as f64) / crowd.readers as f64;
    let grown = |field: fn(&KernelMemory) -> u64| each(field(&kernel_after), field(&kernel_before));
    Ok(Held {
        user_before,
        user_bytes: each(user_after, user_before),
        slab_bytes: grown(|memory| memory.socket_slabs),
        epoll_bytes: grown(|memory| memory.epoll_slabs),
        buffer_bytes: grown(|memory| memory.tcp_buffers),
        available_bytes: -grown(|memory| memory.available),
        accept_ns: accept.run_ns as f64 / crowd.readers as f64,
    })
}

/// Sockets of the stand before leave slabs behind for a while; waiting keeps them out of the next growth.
fn wait_sockets_gone() {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until && proc::kernel_memory().is_ok_and(|memory| memory.tcp_sockets > 1_000) {
        thread::sleep(Duration::from_millis(200));
    }
    thread::sleep(Duration::from_millis(500));
}

/// All rounds of one order on one stand.
pub struct Series {
    pub subject: Subject,
    pub order: Order,
    pub rounds: Vec<Round>,
}

impl Series {
    fn spread(&self, of: impl Fn(&Round) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(of))
    }

    /// Ratios of rounds in the same turn.
    fn ratio_to(&self, floor: &Self, of: impl Fn(&Round) -> f64) -> Spread {
        Spread::of(self.rounds.iter().zip(&floor.rounds).map(|(mine, floors)| of(mine) / of(floors)))
    }

    /// Over all rounds: a tick of 4 ms needs seconds to tell user from system time.
    fn user_share(&self) -> f64 {
        self.rounds
            .iter()
            .map(|round| round.server_cpu)
            .fold(proc::Cpu::default(), |sum, one| sum + one)
            .user_share()
    }

    fn server_busy(&self) -> f64 {
        self.spread(|round| round.busy().0).median
    }

    fn client_busy(&self) -> f64 {
        self.spread(|round| round.busy().1).median
    }
}

/// The subjects whose program is there.
fn present(programs: &Programs, subjects: &[Subject]) -> Vec<Subject> {
    let there = proc::is_program(&programs.pushline);
    subjects.iter().copied().filter(|&subject| there || subject != Subject::Pushline).collect()
}

fn start(
    programs: &Programs,
    scale: &Scale,
    transport: Transport,
    subjects: &[Subject],
    finding: &mut Finding,
) -> Result<Vec<Stand>> {
    let mut stands = Vec::new();
    for subject in present(programs, subjects) {
        let stand = Stand::start(programs, subject, scale.one_worker(), &scale.crowd(transport))?;
        finding.commands.insert(subject.name(), stand.server.command().into());
        finding.commands.insert("load".into(), stand.load.command().into());
        stands.push(stand);
    }
    Ok(stands)
}

/// Runs all orders on all stands, turn by turn, the order of stands reversed in every other turn.
/// The series come stand by stand, and order by order within.
fn rounds(mut stands: Vec<Stand>, orders: &[Order], turns: usize) -> Result<Vec<Series>> {
    let mut taken: Vec<Series> = stands
        .iter()
        .flat_map(|stand| {
            let subject = stand.server.subject;
            orders.iter().map(move |&order| Series { subject, order, rounds: Vec::new() })
        })
        .collect();
    // The first messages after the handshakes meet cold caches and quick acknowledgements.
    for stand in &mut stands {
        stand.round(&Order { messages: 3, together: 1, by: By::Pipeline })?;
    }
    for turn in 0..turns {
        for (at, order) in orders.iter().enumerate() {
            let mut visit: Vec<usize> = (0..stands.len()).collect();
            if turn % 2 == 1 {
                visit.reverse();
            }
            for stand in visit {
                let round = stands[stand].round(order)?;
                if round.outcome.deliveries == 0 {
                    bail!("{}: nothing was delivered", stands[stand].server.subject.name());
                }
                taken[stand * orders.len() + at].rounds.push(round);
            }
        }
    }
    Ok(taken)
}

fn micro(ns: f64) -> String {
    format!("{:.2}", ns / 1e3)
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}
