//! Memory, as the process budgets it, and as the machine and control groups give it.
//! Owns what connections are taken to cost, and these checks.

use super::report::Bytes;
use super::{Finding, Wanted};
use crate::edge::machine::{Cgroup, Machine};

/// Measured at 100,000 connections: a socket in the kernel, a waiting reader in this process, and what TLS adds to it.
const KERNEL_BYTES: usize = 4_096;
const USER_BYTES: usize = 300;
const TLS_BYTES: usize = 2_600;
/// The program itself and each of its workers, before anybody comes.
const START_BYTES: usize = 16 << 20;
const WORKER_BYTES: usize = 512 << 10;
/// The program with its scratch buffers, at work.
const NODE_BYTES: usize = 64 << 20;

/// Of the budget, in 32nds: where connections begin to be closed for it, less what history and feeds keep of it.
const USED_PARTS: usize = 26;
/// What is taken at start counts as at most this part of the budget.
const BASE_PART: usize = 4;

/// What the node's memory goes to.
struct Needs<'a> {
    wanted: &'a Wanted,
    /// `limits.memory_bytes`, or what stands for it.
    budget: Option<usize>,
}

/// What is found of memory.
pub fn examine(machine: &Machine, wanted: &Wanted) -> Vec<Finding> {
    let needs = Needs { wanted, budget: wanted.memory_bytes.or_else(|| machine.memory_share()) };
    let mut findings: Vec<_> = needs.budget.map(|budget| needs.budget(budget)).into_iter().collect();
    findings.push(needs.machine(machine.memory_available));
    findings.extend(machine.cgroups.iter().map(|group| needs.cgroup(group)));
    findings
}

impl Needs<'_> {
    /// Of a waiting connection, in this process.
    fn user_bytes(&self) -> usize {
        if self.wanted.tls { USER_BYTES + TLS_BYTES } else { USER_BYTES }
    }

    fn budget(&self, budget: usize) -> Finding {
        let connections = self.wanted.connections;
        let used = (budget / 32 * USED_PARTS).saturating_sub(self.start().min(budget / BASE_PART));
        let needed = self.budget_needed();
        let says = format!(
            "the process may take {}; {} needed ({} bytes for each waiting connection{}, with history at its least)",
            Bytes(budget),
            Bytes(needed),
            self.user_bytes(),
            self.by_tls(),
        );
        let remedy = format!("--set limits.memory_bytes={needed}");
        Finding::limit(connections, "limits.memory_bytes", used / self.user_bytes(), says, remedy)
    }

    /// Before anybody comes.
    fn start(&self) -> usize {
        START_BYTES + WORKER_BYTES * self.wanted.workers
    }

    /// The budget that has room for the wanted connections.
    fn budget_needed(&self) -> usize {
        let connections = self.wanted.connections.saturating_mul(self.user_bytes());
        (connections + self.start()).div_ceil(USED_PARTS) * 32
    }

    fn by_tls(&self) -> &'static str {
        if self.wanted.tls { " by TLS" } else { "" }
    }

    /// What the process takes beside its connections when history is at its fullest.
    fn beside(&self) -> usize {
        NODE_BYTES + self.wanted.history_bytes
    }

    /// For the wanted connections, in the kernel.
    fn sockets(&self) -> usize {
        self.wanted.connections.saturating_mul(KERNEL_BYTES)
    }

    /// For the wanted connections, in the process, with a full history.
    fn own(&self) -> usize {
        self.wanted.connections.saturating_mul(self.user_bytes()).saturating_add(self.beside())
    }

    /// For the wanted connections, sockets included. The process takes no more than its budget: history gives way.
    fn needed(&self) -> usize {
        self.own().min(self.budget.unwrap_or(usize::MAX)).saturating_add(self.sockets())
    }

    /// What must come to the `left` bytes to be enough. A budget that nobody set is half of the whole, and grows with it.
    fn missing(&self, left: usize) -> usize {
        let (Some(budget), None) = (self.budget, self.wanted.memory_bytes) else {
            return self.needed().saturating_sub(left);
        };
        let with_history = (self.sockets() + self.own()).saturating_sub(left);
        let within_budget = (2 * (self.sockets() + budget)).saturating_sub(2 * left);
        let for_budget = 2 * self.budget_needed().saturating_sub(budget);
        with_history.min(within_budget).max(for_budget)
    }

    /// Connections that so many bytes are enough for.
    fn held(&self, bytes: usize) -> usize {
        let with_history = bytes.saturating_sub(self.beside()) / (KERNEL_BYTES + self.user_bytes());
        let within_budget = self.budget.map_or(0, |budget| bytes.saturating_sub(budget) / KERNEL_BYTES);
        with_history.max(within_budget)
    }

    fn machine(&self, available: Option<usize>) -> Finding {
        const NAME: &str = "memory";
        let Some(available) = available else {
            return Finding::unread(NAME, "grep MemAvailable /proc/meminfo");
        };
        let (needed, history) = (self.needed(), self.wanted.history_bytes);
        let says = format!(
            "{} available; {} needed ({} bytes for each waiting connection{}, of which {KERNEL_BYTES} in the kernel, and \
             up to {} for history.node_bytes)",
            Bytes(available),
            Bytes(needed),
            KERNEL_BYTES + self.user_bytes(),
            self.by_tls(),
            Bytes(history)
        );
        let holds = self.held(available);
        let mut remedy = format!("{} more memory", Bytes(self.missing(available)));
        if holds > 0 {
            remedy += &format!(", or --set limits.connections={holds}");
        }
        if history > needed / 4 {
            remedy += ", or a smaller history.node_bytes";
        }
        Finding::limit(self.wanted.connections, NAME, holds, says, remedy)
    }

    fn cgroup(&self, group: &Cgroup) -> Finding {
        let Cgroup { limit_file, memory, is_own } = group;
        let needed = self.needed();
        let says = format!(
            "{} left of the {} that {} allows{}; {} needed, sockets included",
            Bytes(memory.left()),
            Bytes(memory.max),
            limit_file.display(),
            if *is_own { "" } else { " all that is below it" },
            Bytes(needed)
        );
        let limit = memory.max + self.missing(memory.left());
        let by_file = format!("`echo {limit} > {}` as root", limit_file.display());
        let remedy = if *is_own {
            format!("MemoryMax={limit} in the unit, --memory {limit} for a container, or {by_file}")
        } else {
            format!(
                "MemoryMax={limit} for the slice (systemctl set-property), a pod's or a parent's limit, or {by_file}"
            )
        };
        Finding::limit(self.wanted.connections, "cgroup memory", self.held(memory.left()), says, remedy)
    }
}
