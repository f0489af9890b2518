//! A server and its load as processes, pinned, watched through `/proc`, and ended with the value that owns them.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::proc::{self, Cpu};
use crate::publisher::By;
use crate::stats::Latency;
use crate::transport::Transport;

/// CPU of the servers under test, and of the loads.
pub const SERVER_CPU: usize = 0;
pub const LOAD_CPU: usize = 1;

/// What the runner tells a load to do.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Order {
    pub messages: u32,
    /// So many are published together, and the next when every reader has them.
    pub together: u32,
    pub by: By,
}

/// A load says so when all its readers are subscribed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    pub readers: usize,
    pub ramp_s: f64,
    /// Handshakes that had to be tried again.
    pub retried: usize,
    pub client_cpu: Cpu,
}

/// What came of an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    pub messages: u32,
    pub deliveries: u64,
    pub lost: u64,
    /// Numbers that some reader saw jumped over.
    pub jumped: u64,
    pub repeated: u64,
    pub gaps: u64,
    pub closed: u64,
    /// Groups that had not arrived when patience ended.
    pub late_groups: u32,
    pub wall_ns: u64,
    pub latency: Latency,
    pub client_cpu: Cpu,
}

impl Outcome {
    /// Why this outcome proves nothing, if it does not.
    pub fn fault(&self) -> Option<String> {
        let Self { lost, jumped, repeated, gaps, closed, .. } = *self;
        let faulty = lost + jumped + repeated + gaps + closed > 0;
        faulty.then(|| {
            format!("lost {lost}, jumped {jumped}, repeated {repeated}, gaps {gaps}, closed {closed}")
        })
    }
}

/// Programs and what they are started with.
#[derive(Debug, Clone)]
pub struct Programs {
    pub pushline: PathBuf,
    pub floor: PathBuf,
    pub load: PathBuf,
    /// Further arguments of `pushline`.
    pub pushline_args: Vec<String>,
}

/// A server under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    Floor,
    FloorCoalescing,
    /// The floor by Pushline's send ring, so many sends to a system call.
    FloorRing(u32),
    Pushline,
}

impl Subject {
    pub fn name(self) -> String {
        match self {
            Self::Floor => "floor".into(),
            Self::FloorCoalescing => "floor (coalescing)".into(),
            Self::FloorRing(batch) => format!("floor (ring, {batch} to a call)"),
            Self::Pushline => "pushline".into(),
        }
    }
}

/// How many threads a server has and whether it stays on the server's CPU.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub workers: usize,
    pub connections: usize,
    pub pinned: bool,
}

/// A running process of ours; killed when dropped.
struct Process {
    child: Child,
    command: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `words` on a CPU. `taskset` becomes the program: the pid is the program's.
fn start(words: &[String], cpu: Option<usize>, set: impl FnOnce(&mut Command)) -> Result<Process> {
    let mut line: Vec<String> = Vec::new();
    if let Some(cpu) = cpu {
        line.extend(["taskset".into(), "-c".into(), cpu.to_string()]);
    }
    line.extend_from_slice(words);
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]);
    set(&mut command);
    let child = command.spawn().with_context(|| format!("starting {}", line.join(" ")))?;
    Ok(Process { child, command: line.join(" ") })
}

fn text(path: &Path) -> String {
    path.as_os_str().to_string_lossy().into_owned()
}

/// A server that serves.
pub struct Server {
    process: Process,
    pub subject: Subject,
    pub address: SocketAddrV4,
}

const START_PATIENCE: Duration = Duration::from_secs(10);

impl Server {
    pub fn start(programs: &Programs, subject: Subject, shape: Shape) -> Result<Self> {
        let workers = shape.workers.to_string();
        let words: Vec<String> = match subject {
            Subject::Floor => vec![text(&programs.floor), "--threads".into(), workers],
            Subject::FloorCoalescing => {
                vec![text(&programs.floor), "--coalesce".into(), "--threads".into(), workers]
            }
            Subject::FloorRing(batch) => {
                let batch = batch.to_string();
                vec![text(&programs.floor), "--ring".into(), batch, "--threads".into(), workers]
            }
            Subject::Pushline => {
                let mut words = vec![text(&programs.pushline)];
                words.extend(["serve", "--workers", &workers, "--listen", "127.0.0.1:0"].map(String::from));
                words.extend(["--set".into(), "log.format=json".into()]);
                // Room above the even share: SO_REUSEPORT spreads by chance.
                let connections = shape.connections + shape.connections / 10 + 1_000;
                words.extend(["--set".into(), format!("limits.connections={connections}")]);
                words.extend(programs.pushline_args.iter().cloned());
                words
            }
        };
        let cpu = shape.pinned.then_some(SERVER_CPU);
        let mut process = start(&words, cpu, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        })?;
        let log = process.child.stderr.take().context("standard error is piped")?;
        let (found, serving) = mpsc::channel();
        // Goes on reading to the end, so that the server never waits for its log to be read.
        thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                match listen_address(&line) {
                    Some(address) => drop(found.send(address)),
                    None => eprintln!("  server: {line}"),
                }
            }
        });
        let address = serving
            .recv_timeout(START_PATIENCE)
            .map_err(|_| anyhow!("{} did not say that it serves", process.command))?;
        Ok(Self { process, subject, address })
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub fn command(&self) -> &str {
        &self.process.command
    }

    pub fn cpu(&self) -> Result<Cpu> {
        proc::cpu(self.pid())
    }

    pub fn anonymous_bytes(&self) -> Result<u64> {
        proc::anonymous_bytes(self.pid())
    }
}

/// The address in a `{"message":"serving","listen":…}` line; tracing may put the fields into `fields`.
fn listen_address(line: &str) -> Option<SocketAddrV4> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    if fields.get("message")?.as_str()? != "serving" {
        return None;
    }
    let listen = fields.get("listen")?;
    let first = listen.as_str().or_else(|| listen.get(0)?.as_str())?;
    first.trim_matches(['[', ']', '"']).split([',', ' ']).next()?.parse().ok()
}

/// What a load is to open.
#[derive(Debug, Clone)]
pub struct Crowd {
    pub transport: Transport,
    pub readers: usize,
    pub rate_per_s: u32,
    pub message_bytes: usize,
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
        let words: Vec<String> = [
            OsStr::new(&programs.load).to_string_lossy().as_ref(),
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
        .map(String::from)
        .to_vec();
        let mut process = start(&words, Some(LOAD_CPU), |command| {
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
        writeln!(self.orders, "{}", serde_json::to_string(order)?)?;
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

    /// Part of the round's time that a CPU was busy with the server, and with the load.
    pub fn busy(&self) -> (f64, f64) {
        let wall = self.outcome.wall_ns.max(1) as f64;
        (self.server_cpu.run_ns as f64 / wall, self.outcome.client_cpu.run_ns as f64 / wall)
    }
}

/// Time for a server to finish what follows the last delivery, before its CPU is read.
const SETTLE: Duration = Duration::from_millis(30);

impl Stand {
    pub fn start(programs: &Programs, subject: Subject, shape: Shape, crowd: &Crowd) -> Result<Self> {
        let server = Server::start(programs, subject, shape)?;
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
        let outcome = self.load.carry_out(order)?;
        thread::sleep(SETTLE);
        let server_cpu = self.server.cpu()? - before;
        if let Some(fault) = outcome.fault() {
            eprintln!("  {}: {fault}", self.server.subject.name());
        }
        Ok(Round { server_cpu, outcome })
    }
}
