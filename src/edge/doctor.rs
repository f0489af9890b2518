//! What would stop a number of connections on a machine, and what to do about it (`pushline doctor`).
//! Owns the checks, their words and remedies: readings and settings in, a `report` out. Never reads the machine
//! (`machine`), prints or exits (`cli`, `start`).

mod memory;
mod report;

use super::machine::{Machine, Usage};
use crate::runtime::capacity::{self, FILES_RESERVE};
use crate::runtime::probe::{By, Refused};
use crate::runtime::settings::{DriverChoice, Endpoint, FilesChoice, Settings};

use report::Count;
pub use report::{Finding, Level, Report};

/// All clients come back within the default drain window of 10 s, and a busy worker may not look for 0.1 s: a hundredth
/// of them then waits in the workers' queues. Who finds a queue full is left to try again after 1, 3, 7… seconds.
const RETURN_PARTS: usize = 100;
/// A third of a second of accepting, at the 12,000 connections a second that a core takes: who waits longer in a queue
/// has tried again meanwhile. It is the kernel's own default since 5.4.
const QUEUE_ENOUGH: usize = 4_096;
/// Worker threads that the configuration permits.
const WORKERS_MAX: usize = 1_024;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub connections: usize,
    /// `limits.connections`.
    pub limit: usize,
    pub workers: usize,
    pub files: FilesChoice,
    pub driver: DriverChoice,
    /// `history.node_bytes`.
    pub history_bytes: usize,
    /// `limits.memory_bytes`; `None`: as the machine has it.
    pub memory_bytes: Option<usize>,
    /// Clients may come by TLS.
    pub tls: bool,
    /// `quotas.node.connections`.
    pub quota: Option<usize>,
    /// `quotas.address.connections`, where no proxy is trusted to tell addresses.
    pub address_quota: Option<usize>,
    /// Addresses, if all of them are loopback: then whoever connects is on this machine.
    pub local_listeners: Option<usize>,
}

impl Wanted {
    /// What `settings` need, for `connections` in the place of `limits.connections` when given.
    pub fn new(settings: &Settings, connections: Option<usize>, machine: &Machine) -> Self {
        let limit = settings.limits.connections;
        let addresses: Vec<_> = settings.listen.iter().filter_map(Endpoint::addr).collect();
        let local =
            !addresses.is_empty() && addresses.iter().all(|addr| addr.ip().to_canonical().is_loopback());
        Self {
            connections: connections.unwrap_or(limit),
            limit,
            workers: settings.workers.unwrap_or(machine.cpus).max(1),
            files: settings.files,
            driver: settings.driver,
            history_bytes: settings.history.node_bytes,
            memory_bytes: settings.limits.memory_bytes,
            tls: settings.listen.iter().any(|endpoint| endpoint.tls),
            quota: settings.quotas.node.connections,
            address_quota: settings.quotas.address.connections.filter(|_| settings.proxy.trusted.is_empty()),
            local_listeners: local.then_some(addresses.len()),
        }
    }
}

/// Judges a machine.
pub fn examine(machine: &Machine, wanted: &Wanted) -> Report {
    let files = Files::of(machine, wanted);
    let mut findings = vec![configured(wanted)];
    findings.extend(quotas(wanted));
    findings.push(files.limit(machine.files_max));
    findings.push(files.nr_open(machine.nr_open));
    findings.extend(files.refused(machine.own_files_refused.as_deref()));
    findings.push(file_max(machine.file_max, wanted));
    findings.push(queue(machine.somaxconn, wanted));
    findings.push(half_open(machine.syn_backlog, machine.syncookies, wanted));
    findings.extend(ports(machine.ports, wanted));
    findings.extend(memory::examine(machine, wanted));
    findings.push(tcp_buffers(machine.tcp_pages_max, wanted));
    findings.push(conntrack(machine.conntrack, wanted));
    findings.extend(machine.io_uring.as_ref().map(|works| io_uring(works.as_ref().err(), wanted.driver)));
    let stopping = findings.iter().filter(|finding| finding.level != Level::Note);
    let holds = stopping.filter_map(|finding| finding.holds).min().unwrap_or(wanted.connections);
    Report {
        connections: wanted.connections,
        holds,
        workers: wanted.workers,
        files: if files.own { "per-worker" } else { "shared" },
        stops: findings.iter().filter(|finding| finding.level == Level::Stop).count(),
        findings,
    }
}

fn configured(wanted: &Wanted) -> Finding {
    let Wanted { connections, limit, .. } = *wanted;
    let says = format!("configured for {}", Count(limit));
    Finding::limit(
        connections,
        "limits.connections",
        limit,
        says,
        format!("--set limits.connections={connections}"),
    )
}

/// Lines only where there are such quotas.
fn quotas(wanted: &Wanted) -> Vec<Finding> {
    let Wanted { connections, quota, address_quota, .. } = *wanted;
    let of_node = quota.map(|quota| {
        let says = format!("all clients together may have {}", Count(quota));
        let remedy = format!("--set quotas.node.connections={connections}");
        Finding::limit(connections, "quotas.node.connections", quota, says, remedy)
    });
    let of_address = address_quota.map(|quota| {
        let says = format!(
            "clients of one address may have {}; those behind one proxy or NAT are one",
            Count(quota)
        );
        let remedy =
            "proxy.trusted names the proxies that tell whom they forward (docs/limits.md)".to_owned();
        Finding::limit(connections, "quotas.address.connections", quota, says, remedy).noted()
    });
    of_node.into_iter().chain(of_address).collect()
}

/// Open files: the limit counts for each table, and a table may be a worker's own.
struct Files<'a> {
    wanted: &'a Wanted,
    /// Whether workers have tables of their own.
    own: bool,
    /// Whether they could have.
    divisible: bool,
    needed: usize,
}

impl<'a> Files<'a> {
    fn of(machine: &Machine, wanted: &'a Wanted) -> Self {
        let Wanted { connections, limit, workers, files, .. } = *wanted;
        let divisible = machine.own_files_refused.is_none();
        let files_max = machine.files_max.unwrap_or(usize::MAX / 2);
        // As the node would choose with the limit that it has, or needs.
        let chosen = capacity::own_files(files, files_max, workers, limit.max(connections));
        let own = chosen && (divisible || files == FilesChoice::PerWorker);
        let needed = capacity::files_needed(connections, workers, own);
        Self { wanted, own, divisible, needed }
    }

    fn holds(&self, files_max: usize) -> usize {
        capacity::held(files_max, self.wanted.workers, self.own)
    }

    fn limit(&self, files_max: Option<usize>) -> Finding {
        const NAME: &str = "open files";
        let Some(files_max) = files_max else {
            return Finding::unread(NAME, "ulimit -Hn tells it in a shell");
        };
        let counted = if self.own { "for each worker" } else { "for all workers together" };
        let says = format!(
            "at most {} {counted} (of this process; a service or container has a limit of its own); {} needed",
            Count(files_max),
            Count(self.needed)
        );
        let needed = self.needed;
        let mut remedy = format!(
            "LimitNOFILE={needed} in the unit, --ulimit nofile={needed}:{needed} for a container, or `ulimit -Hn {needed}` \
             as root in the shell that starts it"
        );
        if let Some(workers) = self.workers_for(files_max) {
            remedy += &format!("; or, without raising it, --files per-worker --workers {workers}");
        }
        Finding::limit(self.wanted.connections, NAME, self.holds(files_max), says, remedy)
    }

    /// Workers with tables of their own that together are enough.
    fn workers_for(&self, files_max: usize) -> Option<usize> {
        let fits = |workers: &usize| capacity::held(files_max, *workers, true) >= self.wanted.connections;
        (self.wanted.workers..=WORKERS_MAX).find(fits).filter(|_| self.divisible)
    }

    fn nr_open(&self, nr_open: Option<usize>) -> Finding {
        const NAME: &str = "fs.nr_open";
        let Some(nr_open) = nr_open else { return Finding::unread(NAME, "sysctl fs.nr_open") };
        let says = format!("a limit on open files can be {} at most", Count(nr_open));
        let remedy = format!("sysctl -w fs.nr_open={} before the limit on open files is raised", self.needed);
        Finding::limit(self.wanted.connections, NAME, self.holds(nr_open), says, remedy)
    }

    /// A line only where tables were to be divided and cannot be.
    fn refused(&self, error: Option<&str>) -> Option<Finding> {
        let error =
            error.filter(|_| self.wanted.workers > 1 || self.wanted.files == FilesChoice::PerWorker)?;
        let level = match self.wanted.files {
            FilesChoice::PerWorker => Level::Stop,
            FilesChoice::Auto => Level::Note,
            FilesChoice::Shared => return None,
        };
        Some(Finding {
            name: "file tables",
            level,
            holds: (level == Level::Stop).then_some(0),
            says: format!("workers cannot have tables of their own: close_range(CLOSE_RANGE_UNSHARE): {error}"),
            remedy: Some(
                "permit close_range in the seccomp profile (tuning/seccomp.json does), Linux 5.9 or newer, or --files \
                 shared"
                    .into(),
            ),
        })
    }
}

fn file_max(files: Option<Usage>, wanted: &Wanted) -> Finding {
    const NAME: &str = "fs.file-max";
    let Some(files) = files else { return Finding::unread(NAME, "sysctl fs.file-max fs.file-nr") };
    let reserve = FILES_RESERVE * wanted.workers;
    let says = format!("{} open files in the whole machine, {} in use", Count(files.max), Count(files.used));
    let needed = wanted.connections + reserve + files.used;
    let holds = files.left().saturating_sub(reserve);
    Finding::limit(wanted.connections, NAME, holds, says, format!("sysctl -w fs.file-max={needed}"))
}

/// The queue entries that each worker's listener needs.
fn waiting(wanted: &Wanted) -> usize {
    wanted.connections.div_ceil(RETURN_PARTS).div_ceil(wanted.workers).min(QUEUE_ENOUGH)
}

/// Connections that queues of this length are enough for.
fn returning(queue: usize, wanted: &Wanted) -> usize {
    if queue >= QUEUE_ENOUGH { usize::MAX } else { queue * wanted.workers * RETURN_PARTS }
}

fn queue(somaxconn: Option<usize>, wanted: &Wanted) -> Finding {
    const NAME: &str = "net.core.somaxconn";
    let Some(somaxconn) = somaxconn else { return Finding::unread(NAME, "sysctl net.core.somaxconn") };
    let needed = waiting(wanted);
    let says = format!(
        "{} new connections may wait for each worker; {} may come in the tenth of a second that one looks away, when \
         all come back within 10 s",
        Count(somaxconn),
        Count(needed)
    );
    let remedy =
        format!("sysctl -w net.core.somaxconn={needed}, then restart: a listener keeps what it began with");
    Finding::limit(wanted.connections, NAME, returning(somaxconn, wanted), says, remedy)
}

fn half_open(backlog: Option<usize>, syncookies: Option<bool>, wanted: &Wanted) -> Finding {
    const NAME: &str = "net.ipv4.tcp_max_syn_backlog";
    let (Some(backlog), Some(syncookies)) = (backlog, syncookies) else {
        return Finding::unread(NAME, "sysctl net.ipv4.tcp_max_syn_backlog net.ipv4.tcp_syncookies");
    };
    if syncookies {
        let says = "no limit while tcp_syncookies is on: beyond the queue, cookies answer";
        return Finding::ok(NAME, says);
    }
    // Without cookies, the kernel drops what comes when a quarter is left.
    let needed = (waiting(wanted) * 4).div_ceil(3);
    let says = format!(
        "{} half-open connections for each worker, of which the kernel uses three quarters without tcp_syncookies; {} \
         needed when all come back within 10 s",
        Count(backlog),
        Count(needed)
    );
    let remedy = format!(
        "sysctl -w net.ipv4.tcp_syncookies=1, or net.ipv4.tcp_max_syn_backlog={needed}, then restart"
    );
    Finding::limit(wanted.connections, NAME, returning(backlog * 3 / 4, wanted), says, remedy)
}

/// A line only where every client is on this machine: others bring addresses of their own.
fn ports(range: Option<(usize, usize)>, wanted: &Wanted) -> Option<Finding> {
    let listeners = wanted.local_listeners?;
    let (first, last) = range?;
    let each = last.saturating_sub(first) + 1;
    let says = format!(
        "{} connections from one source address to one listening address; all of yours are loopback, so clients or a \
         proxy on this machine need these ports (clients elsewhere do not)",
        Count(each)
    );
    let sources = wanted.connections.div_ceil(listeners * (65_535 - 10_000 + 1));
    let mut remedy = "sysctl -w net.ipv4.ip_local_port_range=\"10000 65535\"".to_owned();
    if sources > 1 {
        remedy += &format!(
            ", and let the proxy connect from {sources} addresses (127.0.0.2, 127.0.0.3…: tuning/nginx.conf shows how)"
        );
    }
    let finding =
        Finding::limit(wanted.connections, "net.ipv4.ip_local_port_range", each * listeners, says, remedy);
    Some(finding.noted())
}

fn tcp_buffers(pages_max: Option<usize>, wanted: &Wanted) -> Finding {
    const NAME: &str = "net.ipv4.tcp_mem";
    let remedy_unread = "sysctl net.ipv4.tcp_mem (a network namespace does not show it)";
    let Some(pages_max) = pages_max else { return Finding::unread(NAME, remedy_unread) };
    let says = format!(
        "{} pages for all TCP buffers; a message that is on its way to all at once takes up to a page for each",
        Count(pages_max)
    );
    let pages = wanted.connections;
    let remedy = format!("sysctl -w net.ipv4.tcp_mem=\"{} {} {pages}\"", pages / 2, pages * 3 / 4);
    Finding::limit(wanted.connections, NAME, pages_max, says, remedy).noted()
}

fn conntrack(tracked: Option<Usage>, wanted: &Wanted) -> Finding {
    const NAME: &str = "net.netfilter.nf_conntrack_max";
    let Some(tracked) = tracked else { return Finding::ok(NAME, "connections are not tracked here") };
    let says = format!("{} tracked connections, {} in use", Count(tracked.max), Count(tracked.used));
    let remedy = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}, or leave the port untracked (iptables -t raw -A PREROUTING -p tcp \
         --dport PORT -j CT --notrack, and OUTPUT with --sport)",
        tracked.used + wanted.connections
    );
    let finding = Finding::limit(wanted.connections, NAME, tracked.left(), says, remedy);
    // This machine has connections, were it only of the shell that asks: no rule asks for tracking.
    if tracked.used == 0 { finding.noted() } else { finding }
}

fn io_uring(refused: Option<&Refused>, driver: DriverChoice) -> Finding {
    const NAME: &str = "io_uring";
    let Some(refused) = refused else { return Finding::ok(NAME, "works") };
    let level = match driver {
        DriverChoice::Epoll => {
            return Finding::ok(NAME, format!("not asked for (--driver epoll); {refused}"));
        }
        DriverChoice::Auto => Level::Note,
        DriverChoice::IoUring => Level::Stop,
    };
    let epoll = if level == Level::Stop { ", or --driver auto" } else { "; until then epoll serves as well" };
    let remedy = match &refused.by {
        By::Sysctl(_) => "sysctl -w kernel.io_uring_disabled=0",
        By::Seccomp | By::Unknown => {
            "--security-opt seccomp=tuning/seccomp.json for a container; in a unit, no SystemCallFilter that lacks \
             @aio"
        }
        By::SecurityModule => "permit io_uring to this program in SELinux (class io_uring) or AppArmor",
        By::OldKernel | By::Misbehaviour(_) => "a newer kernel (6.1 is known to be enough)",
        By::LockedMemory => "LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`",
        By::Descriptors => "a higher limit on open files (above)",
    };
    let holds = (level == Level::Stop).then_some(0);
    Finding { name: NAME, level, holds, says: refused.to_string(), remedy: Some(format!("{remedy}{epoll}")) }
}

#[cfg(test)]
mod tests;
