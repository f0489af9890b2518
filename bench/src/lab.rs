//! Stands: a server and its load as processes, pinned, and one round on them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::order::{Order, Outcome, Ready};
use crate::proc::Cpu;
use crate::server::{Ending, Process, text};
pub use crate::server::{Programs, Server, Shape, Subject};
use crate::transport::Transport;

/// CPU of the loads.
pub const LOAD_CPU: usize = 1;

/// What a load is to open.
#[derive(Debug, Clone)]
pub struct Crowd {
    pub transport: Transport,
    pub readers: usize,
    /// Readers of each channel; `None`: one channel.
    pub members: Option<usize>,
    pub rate_per_s: u32,
    pub message_bytes: usize,
    pub pinned: bool,
    /// Further arguments of the load.
    pub args: Vec<String>,
}

/// A load whose readers are subscribed.
pub struct Load {
    process: Process,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub ready: Ready,
}

impl Load {
    pub fn start(programs: &Programs, server: &Server, crowd: &Crowd) -> Result<Self> {
        let mut words: Vec<String> = [
            &text(&programs.load),
            "--target",
            &server.address.to_string(),
            "--transport",
            crowd.transport.name(),
            "--readers",
            &crowd.readers.to_string(),
            "--rate",
            &crowd.rate_per_s.to_string(),
            "--message-bytes",
            &crowd.message_bytes.to_string(),
        ]
        .map(|word| word.to_string())
        .to_vec();
        if let Some(members) = crowd.members {
            words.extend(["--members".into(), members.to_string()]);
        }
        if let Some(address) = server.tls_address {
            words.extend(["--tls".into(), address.to_string()]);
        }
        if let Some(name) = server.subject.peer() {
            let peer = programs.peer(name).with_context(|| format!("no peer {name}"))?;
            words.extend(["--api".into(), text(&peer.folder.join("peer.json"))]);
        }
        words.extend(crowd.args.iter().cloned());
        let cpu = crowd.pinned.then_some(LOAD_CPU);
        let mut process = Process::start(&words, cpu, Ending::Kill, |command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        })?;
        let orders = process.child.stdin.take().context("standard input is piped")?;
        let mut answers = BufReader::new(process.child.stdout.take().context("standard output is piped")?);
        let ready =
            read_line(&mut answers).with_context(|| format!("opening readers: {}", process.command))?;
        let ready = serde_json::from_value(ready)?;
        Ok(Self { process, orders, answers, ready })
    }

    pub fn command(&self) -> &str {
        &self.process.command
    }

    pub fn carry_out(&mut self, order: &Order) -> Result<Outcome> {
        self.begin(order)?;
        self.finish()
    }

    /// Gives an order whose outcome is asked for later.
    pub fn begin(&mut self, order: &Order) -> Result<()> {
        Ok(writeln!(self.orders, "{}", serde_json::to_string(order)?)?)
    }

    pub fn finish(&mut self) -> Result<Outcome> {
        let answer = read_line(&mut self.answers)?;
        if let Some(error) = answer.get("error") {
            bail!("load: {error}");
        }
        Ok(serde_json::from_value(answer)?)
    }
}

fn read_line(from: &mut BufReader<ChildStdout>) -> Result<Value> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        bail!("the load has ended");
    }
    Ok(serde_json::from_str(&line)?)
}

/// A server with its load.
pub struct Stand {
    // Dropped first: readers go before the server does.
    pub load: Load,
    pub server: Server,
}

/// One round on a stand.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Round {
    pub server_cpu: Cpu,
    pub outcome: Outcome,
}

impl Round {
    /// Server CPU for each message that reached a reader, in nanoseconds.
    pub fn ns_per_delivery(&self) -> f64 {
        self.server_cpu.run_ns as f64 / self.outcome.deliveries.max(1) as f64
    }

    /// Server CPU for each message published, in nanoseconds.
    pub fn ns_per_message(&self) -> f64 {
        self.server_cpu.run_ns as f64 / f64::from(self.outcome.messages.max(1))
    }

    /// Server CPU for each answer to a poll or publish, in nanoseconds.
    pub fn ns_per_answer(&self) -> f64 {
        self.server_cpu.run_ns as f64 / self.outcome.answers.max(1) as f64
    }

    /// Part of the round's time that a CPU was busy with the server, and with the load.
    pub fn busy(&self) -> (f64, f64) {
        let wall = self.outcome.wall_ns.max(1) as f64;
        (self.server_cpu.run_ns as f64 / wall, self.outcome.client_busy)
    }
}

/// Time for a server to finish what follows the last delivery, before its CPU is read.
const SETTLE: Duration = Duration::from_millis(30);

impl Stand {
    pub fn start(programs: &Programs, subject: Subject, shape: &Shape, crowd: &Crowd) -> Result<Self> {
        let server = Server::start(programs, subject, shape, None)?;
        let began = Instant::now();
        let load = Load::start(programs, &server, crowd)?;
        eprintln!(
            "  {}: {} {} readers in {:.1} s",
            subject.name(),
            crowd.readers,
            crowd.transport.name(),
            began.elapsed().as_secs_f64()
        );
        Ok(Self { load, server })
    }

    pub fn round(&mut self, order: &Order) -> Result<Round> {
        let before = self.server.cpu()?;
        let outcome = self.load.carry_out(order).with_context(|| self.server.subject.name())?;
        thread::sleep(SETTLE);
        let server_cpu = self.server.cpu()? - before;
        if let Some(fault) = outcome.fault() {
            eprintln!("  {}: {fault}", self.server.subject.name());
        }
        Ok(Round { server_cpu, outcome })
    }
}
