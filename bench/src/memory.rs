//! What readers that wait hold: the growth of the server's own memory and of the kernel's, from an empty server to one
//! that all readers have come to.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::lab::{Crowd, Load, Programs, Server, Shape, Stand, Subject};
use crate::proc::{self, KernelMemory};
use crate::report::Finding;

/// What one reader holds, in bytes, and what its accept cost.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Of the server before the first reader: what it took early does not show in the growth.
    pub user_before: u64,
    pub user_bytes: f64,
    /// Slabs of sockets, of both ends.
    pub slab_bytes: f64,
    pub epoll_bytes: f64,
    pub buffer_bytes: f64,
    pub available_bytes: f64,
    pub accept_ns: f64,
    /// Of the load, for each reader.
    pub client_bytes: f64,
    pub ramp_s: f64,
}

/// The load's own start must not count: it is small, and it comes before the first handshake only by chance.
const START_SETTLE: Duration = Duration::from_millis(300);

/// Starts a server and its crowd and reads memory `quiet` after the last reader was subscribed.
pub fn hold(
    programs: &Programs,
    subject: Subject,
    shape: &Shape,
    crowd: &Crowd,
    quiet: Duration,
    finding: &mut Finding,
) -> Result<(Stand, Held)> {
    let server = Server::start(programs, subject, shape, None)?;
    thread::sleep(START_SETTLE);
    let user_before = server.memory_bytes()?;
    let cpu_before = server.cpu()?;
    let kernel_before = proc::kernel_memory()?;
    let load = Load::start(programs, &server, crowd)?;
    let accept = server.cpu()? - cpu_before;
    thread::sleep(quiet);
    let user_after = server.memory_bytes()?;
    let kernel_after = proc::kernel_memory()?;
    finding.commands.insert(subject.name(), server.command().into());
    let name = if subject.is_floor() || subject == Subject::Pushline { "load" } else { "load of a peer" };
    finding.commands.insert(name.into(), load.command().into());
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
    let held = Held {
        user_before,
        user_bytes: each(user_after, user_before),
        slab_bytes: grown(|memory| memory.socket_slabs),
        epoll_bytes: grown(|memory| memory.epoll_slabs),
        buffer_bytes: grown(|memory| memory.tcp_buffers),
        available_bytes: -grown(|memory| memory.available),
        accept_ns: accept.run_ns as f64 / crowd.readers as f64,
        client_bytes: load.ready.client_bytes,
        ramp_s: load.ready.ramp_s,
    };
    Ok((Stand { load, server }, held))
}

const SOCKETS_LEFT_MAX: u64 = 1_000;
const SOCKETS_GONE_PATIENCE: Duration = Duration::from_secs(60);

/// Sockets of the stand before leave slabs behind for a while; waiting keeps them out of the next growth.
pub fn wait_sockets_gone() {
    let began = Instant::now();
    let left = || proc::kernel_memory().map_or(0, |memory| memory.tcp_sockets);
    while left() > SOCKETS_LEFT_MAX && began.elapsed() < SOCKETS_GONE_PATIENCE {
        thread::sleep(Duration::from_millis(200));
    }
    if began.elapsed() > Duration::from_secs(5) {
        let (waited_s, left) = (began.elapsed().as_secs(), left());
        eprintln!("  waited {waited_s} s for other programs' TCP sockets to go: {left} are left");
    }
    thread::sleep(Duration::from_millis(500));
}

pub const COLUMNS: [&str; 13] = [
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
    "ramp s",
    "load B/reader",
];

impl Held {
    pub fn row(&self, subject: Subject, shape: &Shape, crowd: &Crowd) -> Vec<String> {
        vec![
            subject.name(),
            crowd.transport.name().into(),
            crowd.readers.to_string(),
            shape.workers.to_string(),
            format!("{:.1}", self.user_before as f64 / f64::from(1 << 20)),
            format!("{:.0}", self.user_bytes),
            format!("{:.0}", self.slab_bytes),
            format!("{:.0}", self.epoll_bytes),
            format!("{:.0}", self.buffer_bytes),
            format!("{:.0}", self.available_bytes),
            format!("{:.2}", self.accept_ns / 1e3),
            format!("{:.1}", self.ramp_s),
            format!("{:.0}", self.client_bytes),
        ]
    }

    /// A point of the plot of memory.
    pub fn sample(&self, subject: Subject, crowd: &Crowd) -> Value {
        json!({
            "plot": "memory", "subject": subject, "transport": crowd.transport, "readers": crowd.readers,
            "user_bytes": self.user_bytes, "kernel_bytes": self.slab_bytes, "accept_ns": self.accept_ns,
        })
    }
}
