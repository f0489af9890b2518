//! Whether waiting in a ring of polls beats the epoll set: `waiting`, run by each, turn by turn.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::lab::{LOAD_CPU, Programs};
use crate::net;
use crate::report::{Bar, Finding, Table};
use crate::scale::Scale;
use crate::stats::Spread;
use crate::wait::{Waited, Waiter};

const WAITERS: [Waiter; 3] = [Waiter::Epoll, Waiter::RingOnce, Waiter::RingMulti];

pub fn waiting(programs: &Programs, scale: &Scale) -> Result<Finding> {
    let mut finding = Finding::new("waiting");
    let sockets = scale.size(2_000, 9_000);
    let turns = scale.rounds.unwrap_or(scale.pick(3, 11));
    let mut taken: Vec<Vec<Waited>> = WAITERS.iter().map(|_| Vec::new()).collect();
    for _ in 0..turns {
        for (waiter, waits) in WAITERS.iter().zip(&mut taken) {
            waits.push(once(programs, *waiter, sockets, scale.pick(20_000, 100_000), &mut finding)?);
        }
    }
    let columns = [
        "waits by",
        "kernel B/socket",
        "arm µs",
        "wake, all at once µs",
        "× epoll",
        "wake, 64 at once µs",
        "× epoll",
        "wake, one µs",
        "× epoll",
        "end µs",
    ];
    let title = format!(
        "{sockets} sockets of one process that wait for input; CPU of the waiter for each, median of {turns}: \
         arming, waking and reading a byte and arming again, closing"
    );
    let mut table = Table::new(&title, &columns);
    let epoll: Vec<Waited> = taken[0].clone();
    for (waiter, waits) in WAITERS.iter().zip(&taken) {
        let median = |of: fn(&Waited) -> f64| Spread::of(waits.iter().map(of)).median;
        let ratio = |of: fn(&Waited) -> f64| {
            let pairs = waits.iter().zip(&epoll).map(|(this, epoll)| of(this) / of(epoll));
            format!("{:.3}", Spread::of(pairs).median)
        };
        let us = |of: fn(&Waited) -> f64| format!("{:.3}", median(of) / 1e3);
        table.rows.push(vec![
            waiter.title().into(),
            format!("{:.0}", median(|waited| waited.kernel_bytes)),
            us(|waited| waited.arm_ns),
            us(|waited| waited.wake_all_ns),
            ratio(|waited| waited.wake_all_ns),
            us(|waited| waited.wake_some_ns),
            ratio(|waited| waited.wake_some_ns),
            us(|waited| waited.wake_one_ns),
            ratio(|waited| waited.wake_one_ns),
            us(|waited| waited.end_ns),
        ]);
    }
    finding.tables.push(table);
    let lost: u64 = taken.iter().flatten().map(|waited| waited.lost).sum();
    finding.bars.push(Bar::at_most("wakes that were lost", 0.0, lost as f64));
    Ok(finding)
}

fn once(
    programs: &Programs,
    waiter: Waiter,
    sockets: usize,
    wakes: usize,
    finding: &mut Finding,
) -> Result<Waited> {
    let mut command = Command::new("taskset");
    command.args(["-c", &LOAD_CPU.to_string()]).arg(&programs.waiting);
    command.args(["--by", waiter.name(), "--sockets", &sockets.to_string(), "--wakes", &wakes.to_string()]);
    finding.commands.insert(format!("waiting, {}", waiter.name()), format!("{command:?}").replace('"', ""));
    net::end_with_this_thread(&mut command, libc::SIGKILL);
    let output = command.output().context("starting waiting")?;
    if !output.status.success() {
        bail!("waiting: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("what waiting says")
}
