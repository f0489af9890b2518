//! What the kernel says of a process and of this machine: CPU, memory, sockets, slabs, from `/proc`.

use std::fs;
use std::io::{self, ErrorKind};
use std::ops::{Add, Sub};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// CPU that a process has used.
///
/// `run_ns` is the scheduler's own count, exact for threads that sleep now. `user_ms` and `system_ms` are
/// sampled by the tick: only their proportion is to be trusted, and only over seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    pub run_ns: u64,
    pub user_ms: u64,
    pub system_ms: u64,
}

impl Cpu {
    /// The part of the time spent in user mode.
    pub fn user_share(self) -> f64 {
        let all = self.user_ms + self.system_ms;
        if all == 0 { 0.0 } else { self.user_ms as f64 / all as f64 }
    }
}

impl Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            run_ns: self.run_ns + other.run_ns,
            user_ms: self.user_ms + other.user_ms,
            system_ms: self.system_ms + other.system_ms,
        }
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
            user_ms: self.user_ms.saturating_sub(earlier.user_ms),
            system_ms: self.system_ms.saturating_sub(earlier.system_ms),
        }
    }
}

/// Milliseconds of one `USER_HZ` tick, which is 100 on every Linux.
const TICK_MS: u64 = 10;

/// CPU of all threads of a process so far.
pub fn cpu(pid: u32) -> Result<Cpu> {
    let mut run_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        run_ns += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name may hold spaces; fields are counted from its closing parenthesis (proc_pid_stat(5)).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Ok(Cpu { run_ns, user_ms: ticks(11) * TICK_MS, system_ms: ticks(12) * TICK_MS })
}

/// A process and all that descend from it.
pub fn tree(root: u32) -> Vec<u32> {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or("");
        if let Some(parent) = after_name.split_whitespace().nth(1).and_then(|field| field.parse().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|&&(_, of)| of == parent).map(|&(pid, _)| pid));
        at += 1;
    }
    found
}

/// The value in bytes of a `Name:   12 kB` line.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Anonymous memory of a process in bytes: its heap, stacks and slabs, without its program text.
pub fn anonymous_bytes(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kilobytes(&rollup, "Anonymous:").context("smaps_rollup has Anonymous")
}

/// The same with memory that processes share, its part of it.
pub fn private_and_shared_bytes(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let parts = ["Pss_Anon:", "Pss_Shmem:"].map(|name| kilobytes(&rollup, name));
    Ok(parts.into_iter().flatten().sum())
}

/// Kernel memory of this machine, in bytes. Other programs move it too.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct KernelMemory {
    /// The slabs of sockets, files, inodes of sockets, packets and epoll entries. Names (`dentry`) are left out:
    /// each socket has one of 192 bytes whatever the server does, and other programs move them by megabytes.
    pub socket_slabs: u64,
    /// Of these, the epoll entries and wait queues alone.
    pub epoll_slabs: u64,
    /// TCP buffers, by `/proc/net/sockstat`.
    pub tcp_buffers: u64,
    pub tcp_sockets: u64,
    /// `Slab` of `/proc/meminfo`.
    pub slab: u64,
    pub available: u64,
}

const EPOLL_SLABS: [&str; 2] = ["eventpoll_epi", "eventpoll_pwq"];
const SOCKET_SLABS: [&str; 6] =
    ["TCP", "sock_inode_cache", "filp", "skbuff_head_cache", "skbuff_small_head", "tw_sock_TCP"];

/// Empty where the kernel tells them to root alone, or to nobody: then nothing is counted in slabs.
fn slabs() -> io::Result<String> {
    fs::read_to_string("/proc/slabinfo").or_else(|error| match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::NotFound => Ok(String::new()),
        _ => Err(error),
    })
}

/// False where slabs are read as nothing.
pub fn slabs_are_told() -> bool {
    slabs().is_ok_and(|text| !text.is_empty())
}

pub fn kernel_memory() -> Result<KernelMemory> {
    let mut found = KernelMemory::default();
    for line in slabs()?.lines().skip(2) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let (Some(&name), Some(objects), Some(bytes)) = (fields.first(), number(1), number(3)) else {
            continue;
        };
        if EPOLL_SLABS.contains(&name) {
            found.epoll_slabs += objects * bytes;
            found.socket_slabs += objects * bytes;
        } else if SOCKET_SLABS.contains(&name) {
            found.socket_slabs += objects * bytes;
        }
    }
    let sockstat = fs::read_to_string("/proc/net/sockstat")?;
    let tcp = sockstat.lines().find(|line| line.starts_with("TCP:")).context("sockstat has TCP")?;
    let fields: Vec<&str> = tcp.split_whitespace().collect();
    let after = |name: &str| {
        let at = fields.iter().position(|&field| field == name)?;
        fields.get(at + 1)?.parse::<u64>().ok()
    };
    found.tcp_sockets = after("inuse").unwrap_or(0);
    found.tcp_buffers = after("mem").unwrap_or(0) * 4096;
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    found.slab = kilobytes(&meminfo, "Slab:").unwrap_or(0);
    found.available = kilobytes(&meminfo, "MemAvailable:").unwrap_or(0);
    Ok(found)
}

/// Where a result was measured.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub cores: usize,
    pub memory_mib: u64,
}

pub fn machine() -> Machine {
    let first_line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Machine {
        kernel: first_line("/proc/sys/kernel/osrelease"),
        cpu: model.trim_start_matches(['\t', ' ', ':']).to_owned(),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        memory_mib: kilobytes(&meminfo, "MemTotal:").unwrap_or(0) >> 20,
    }
}

/// Who had this machine's CPUs, in `USER_HZ` ticks since its start (proc_stat(5), proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, Default)]
pub struct Shared {
    all: u64,
    busy: u64,
    stolen: u64,
    /// Of `busy`: this program's, and that of those of its children and their children that have ended.
    ours: u64,
}

/// Parts of the CPUs' time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Others {
    /// Other programs had it.
    pub programs: f64,
    /// Other virtual machines of the same host had it while this one had work.
    pub neighbours: f64,
}

impl Shared {
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/stat"), &read("/proc/self/stat"))
    }

    fn parse(machine: &str, own: &str) -> Self {
        let number = |field: &&str| field.parse().unwrap_or(0);
        // cpu user nice system idle iowait irq softirq steal; guests are within user.
        let times: Vec<u64> = machine
            .lines()
            .next()
            .unwrap_or("")
            .split_whitespace()
            .skip(1)
            .map(|field| number(&field))
            .collect();
        let time = |index: usize| times.get(index).copied().unwrap_or(0);
        let busy = [0, 1, 2, 5, 6].map(time).iter().sum();
        let own: Vec<&str> = own.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ours = own.iter().skip(11).take(4).map(number).sum();
        Self { all: busy + time(3) + time(4) + time(7), busy, stolen: time(7), ours }
    }

    /// What others had since `earlier`.
    pub fn others_since(self, earlier: Self) -> Others {
        let part = |now: u64, then: u64| {
            now.saturating_sub(then) as f64 / self.all.saturating_sub(earlier.all).max(1) as f64
        };
        let ours = part(self.ours, earlier.ours);
        Others {
            programs: (part(self.busy, earlier.busy) - ours).max(0.0),
            neighbours: part(self.stolen, earlier.stolen),
        }
    }
}

/// True when a program is there to be run.
pub fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_had_is_what_was_busy_and_not_ours() {
        let own = |ticks: &str| format!("7 (a b) c) S 1 7 7 0 -1 0 0 0 0 0 {ticks} 20 0 1 0");
        let before = Shared::parse("cpu 100 0 100 800 0 0 0 0 0 0\ncpu0 1 1", &own("10 10 0 0"));
        let after = Shared::parse("cpu 300 10 200 1490 100 20 20 60 5 5\ncpu0 1 1", &own("20 20 100 110"));
        // 1,200 ticks: 350 busy, of which 230 are ours; 60 stolen.
        let others = after.others_since(before);
        assert!((others.programs - 120.0 / 1_200.0).abs() < 1e-9, "{others:?}");
        assert!((others.neighbours - 60.0 / 1_200.0).abs() < 1e-9, "{others:?}");
        assert_eq!(before.others_since(before), Others::default(), "no time");
        assert_eq!(Shared::parse("", "").all, 0);
    }
}
