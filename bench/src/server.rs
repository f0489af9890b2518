//! A server under test: what it is, how it is started, what it has used. Ended with the value that owns it.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::api::Api;
use crate::net;
use crate::proc::{self, Cpu};
use crate::tls;

/// CPU of the servers under test.
pub const SERVER_CPU: usize = 0;

/// Programs and what they are started with.
#[derive(Debug, Clone)]
pub struct Programs {
    pub pushline: PathBuf,
    pub floor: PathBuf,
    pub load: PathBuf,
    pub waiting: PathBuf,
    /// Further arguments of `pushline`.
    pub pushline_args: Vec<String>,
    /// Where the certificate for servers by TLS is made.
    pub certificates: PathBuf,
    /// Those that can run here.
    pub peers: Vec<Peer>,
}

/// A server of `bench/peers/`.
#[derive(Debug, Clone)]
pub struct Peer {
    pub name: &'static str,
    pub folder: PathBuf,
    pub api: Api,
}

impl Programs {
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Floor,
    FloorCoalescing,
    /// The floor by Pushline's send ring, so many sends to a system call.
    FloorRing(u32),
    /// The floor with a ping to each reader in so many milliseconds.
    FloorPing(u32),
    Pushline,
    Peer(&'static str),
    /// The same, read from by TLS; published to plainly.
    PushlineTls,
    PeerTls(&'static str),
}

impl Subject {
    pub fn name(self) -> String {
        match self {
            Self::Floor => "floor".into(),
            Self::FloorCoalescing => "floor-coalescing".into(),
            Self::FloorRing(batch) => format!("floor (ring, {batch} to a call)"),
            Self::FloorPing(_) => "floor-pinging".into(),
            Self::Pushline => "pushline".into(),
            Self::Peer(name) => name.into(),
            Self::PushlineTls => "pushline, TLS".into(),
            Self::PeerTls(name) => format!("{name}, TLS"),
        }
    }

    /// The peer, if it is one.
    pub fn peer(self) -> Option<&'static str> {
        match self {
            Self::Peer(name) | Self::PeerTls(name) => Some(name),
            _ => None,
        }
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Self::PushlineTls | Self::PeerTls(_))
    }

    fn is_pushline(self) -> bool {
        matches!(self, Self::Pushline | Self::PushlineTls)
    }

    pub fn is_floor(self) -> bool {
        !self.is_pushline() && self.peer().is_none()
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

/// How many threads a server has and whether it stays on the server's CPU.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    pub workers: usize,
    pub connections: usize,
    pub pinned: bool,
    /// `--set` of Pushline.
    pub settings: Vec<String>,
}

/// A running process of ours; ended when dropped.
pub struct Process {
    pub child: Child,
    pub command: String,
    ending: Ending,
}

/// How a process of ours is ended, also when the runner is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Kill,
    /// It has children of its own to end, so it is asked to.
    Ask,
}

impl Ending {
    fn signal(self) -> libc::c_int {
        match self {
            Self::Kill => libc::SIGKILL,
            Self::Ask => libc::SIGTERM,
        }
    }
}

const END_PATIENCE: Duration = Duration::from_secs(5);

impl Drop for Process {
    fn drop(&mut self) {
        if self.ending == Ending::Ask && net::terminate(self.child.id()).is_ok() {
            let until = Instant::now() + END_PATIENCE;
            while Instant::now() < until {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts `words` on a CPU. `taskset` becomes the program: the pid is the program's. Ends with the calling thread.
    pub fn start(
        words: &[String],
        cpu: Option<usize>,
        ending: Ending,
        set: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let mut line: Vec<String> = Vec::new();
        if let Some(cpu) = cpu {
            line.extend(["taskset".into(), "-c".into(), cpu.to_string()]);
        }
        line.extend_from_slice(words);
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        set(&mut command);
        net::end_with_this_thread(&mut command, ending.signal());
        let child = command.spawn().with_context(|| format!("starting {}", line.join(" ")))?;
        Ok(Self { child, command: line.join(" "), ending })
    }
}

pub fn text(path: &Path) -> String {
    path.as_os_str().to_string_lossy().into_owned()
}

/// A server that serves.
pub struct Server {
    process: Process,
    pub subject: Subject,
    pub address: SocketAddrV4,
    /// Where readers come, if not there.
    pub tls_address: Option<SocketAddrV4>,
}

const START_PATIENCE: Duration = Duration::from_secs(20);

impl Server {
    /// `port`: that of the server that it takes the place of.
    pub fn start(programs: &Programs, subject: Subject, shape: &Shape, port: Option<u16>) -> Result<Self> {
        if subject.peer().is_some() {
            return Self::start_peer(programs, subject, shape, port);
        }
        let words = words(programs, subject, shape, port.unwrap_or(0))?;
        let cpu = shape.pinned.then_some(SERVER_CPU);
        let mut process = Process::start(&words, cpu, Ending::Kill, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        })?;
        let log = process.child.stderr.take().context("standard error is piped")?;
        let (found, serving) = mpsc::channel();
        // Goes on reading to the end, so that the server never waits for its log to be read.
        thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                match listen_addresses(&line) {
                    Some(addresses) => drop(found.send(addresses)),
                    None if line.contains("\"level\":\"INFO\"") => {}
                    None => eprintln!("  server: {line}"),
                }
            }
        });
        let addresses = serving
            .recv_timeout(START_PATIENCE)
            .map_err(|_| anyhow!("{} did not say that it serves", process.command))?;
        let address = *addresses.first().context("it listens nowhere")?;
        // Without it, its readers would come plainly, and nobody would notice.
        let tls_address =
            subject.is_tls().then(|| addresses.get(1).copied().context("it speaks no TLS")).transpose()?;
        Ok(Self { process, subject, address, tls_address })
    }

    fn start_peer(programs: &Programs, subject: Subject, shape: &Shape, port: Option<u16>) -> Result<Self> {
        let name = subject.peer().context("a peer")?;
        let peer = programs.peer(name).with_context(|| format!("no peer {name}"))?;
        let port = port.map_or_else(free_port, Ok)?;
        let mut words: Vec<String> = [
            &text(&peer.folder.join("start")),
            "--port",
            &port.to_string(),
            "--workers",
            &shape.workers.to_string(),
            "--connections",
            &(shape.connections + 1_000).to_string(),
        ]
        .map(|word| word.to_string())
        .to_vec();
        let mut tls_address = None;
        if subject.is_tls() {
            let (files, tls_port) = (tls::files(&programs.certificates)?, free_port()?);
            tls_address = Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, tls_port));
            words.extend(["--tls-port".into(), tls_port.to_string()]);
            words.extend([
                "--certificate".into(),
                text(&files.certificate),
                "--key".into(),
                text(&files.key),
            ]);
        }
        let cpu = shape.pinned.then_some(SERVER_CPU);
        let mut process = Process::start(&words, cpu, Ending::Ask, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        })?;
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let until = Instant::now() + START_PATIENCE;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = process.child.try_wait()? {
                bail!("{name} ended at its start: {status}");
            }
            if Instant::now() > until {
                bail!("{} does not accept", process.command);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { process, subject, address, tls_address })
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub fn command(&self) -> &str {
        &self.process.command
    }

    fn pids(&self) -> Vec<u32> {
        match self.subject {
            Subject::Peer(_) | Subject::PeerTls(_) => proc::tree(self.pid()),
            _ => vec![self.pid()],
        }
    }

    /// Of the process and its children.
    pub fn cpu(&self) -> Result<Cpu> {
        let mut sum = Cpu::default();
        for pid in self.pids() {
            sum = sum + proc::cpu(pid)?;
        }
        Ok(sum)
    }

    /// Anonymous memory of the process and its children; what they share counts once.
    pub fn memory_bytes(&self) -> Result<u64> {
        self.pids().into_iter().map(proc::private_and_shared_bytes).sum()
    }

    /// Asks it to end, as an operator would, and waits.
    pub fn terminate(&mut self, patience: Duration) -> Result<(ExitStatus, Duration)> {
        let began = Instant::now();
        net::terminate(self.pid())?;
        loop {
            if let Some(status) = self.process.child.try_wait()? {
                return Ok((status, began.elapsed()));
            }
            if began.elapsed() > patience {
                bail!("{} has not ended {:.0} s after SIGTERM", self.subject.name(), patience.as_secs_f64());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn words(programs: &Programs, subject: Subject, shape: &Shape, port: u16) -> Result<Vec<String>> {
    let (workers, listen) = (shape.workers.to_string(), format!("127.0.0.1:{port}"));
    if subject.is_pushline() {
        let mut words = vec![text(&programs.pushline)];
        words.extend(["serve", "--workers", &workers, "--listen", &listen].map(String::from));
        words.extend(["--set".into(), "log.format=json".into()]);
        // Room above the even share: SO_REUSEPORT spreads by chance.
        let connections = shape.connections + shape.connections / 10 + 1_000;
        words.extend(["--set".into(), format!("limits.connections={connections}")]);
        for setting in &shape.settings {
            words.extend(["--set".into(), setting.clone()]);
        }
        if subject.is_tls() {
            let files = tls::files(&programs.certificates)?;
            let (certificate, key) = (text(&files.certificate), text(&files.key));
            words.extend(["--set".into(), "tls.listen=127.0.0.1:0".into(), "--set".into()]);
            words.push(format!(
                "tls.certificates=[{{ certificate_file = '{certificate}', key_file = '{key}' }}]"
            ));
        }
        words.extend(programs.pushline_args.iter().cloned());
        return Ok(words);
    }
    let mut words = vec![text(&programs.floor)];
    match subject {
        Subject::FloorCoalescing => words.push("--coalesce".into()),
        Subject::FloorRing(batch) => words.extend(["--ring".into(), batch.to_string()]),
        Subject::FloorPing(ms) => words.extend(["--ping".into(), (f64::from(ms) / 1e3).to_string()]),
        Subject::Floor
        | Subject::Pushline
        | Subject::PushlineTls
        | Subject::Peer(_)
        | Subject::PeerTls(_) => {}
    }
    words.extend(["--threads".into(), workers, "--listen".into(), listen]);
    Ok(words)
}

fn free_port() -> Result<u16> {
    // Given back before the peer takes it: nobody else is asked for a port in between but by chance.
    let reserved = net::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    Ok(net::local_port(&reserved)?)
}

/// The addresses in a `{"message":"serving","listen":…}` line, those that speak TLS last (`tls:…`); tracing may put the fields
/// into `fields`.
fn listen_addresses(line: &str) -> Option<Vec<SocketAddrV4>> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    if fields.get("message")?.as_str()? != "serving" {
        return None;
    }
    let listen = fields.get("listen")?;
    let text = listen.as_str().or_else(|| listen.get(0)?.as_str())?;
    let parts = text.split([',', ' ']).map(|part| part.trim_matches(['[', ']', '"', '(', ')']));
    let parts = parts.map(|part| part.strip_prefix("tls:").unwrap_or(part));
    Some(parts.filter_map(|part| part.parse().ok()).collect())
}

/// The peers of a folder that can run here; says which are skipped, and why. `wanted`: these, each of which must be there.
pub fn find_peers(folder: &Path, wanted: Option<&[String]>) -> Result<Vec<Peer>> {
    let mut known = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())?.flatten() {
        let file = entry.path().join("peer.json");
        if file.is_file() {
            known.push((entry.path(), Api::read_file(&file)?));
        }
    }
    known.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    if let Some(wanted) = wanted {
        let names: Vec<&str> = known.iter().map(|(_, api)| api.name.as_str()).collect();
        if let Some(unknown) = wanted.iter().find(|name| !names.contains(&name.as_str())) {
            bail!("--peers {unknown}: there is no such peer, only {}", names.join(", "));
        }
        known.retain(|(_, api)| wanted.contains(&api.name));
    }
    let mut found = Vec::new();
    for (folder, api) in known {
        if let Some(why) = lacks(&folder)? {
            if wanted.is_some() {
                bail!("--peers {}: it cannot run here: {why}", api.name);
            }
            eprintln!("  {} is skipped: {why}", api.name);
            continue;
        }
        // A handful of names, kept for as long as the program runs.
        let name: &'static str = Box::leak(api.name.clone().into_boxed_str());
        found.push(Peer { name, folder, api });
    }
    Ok(found)
}

/// What a peer lacks to run here.
fn lacks(folder: &Path) -> Result<Option<String>> {
    let mut command = Command::new(folder.join("start"));
    command.arg("--check").stdin(Stdio::null());
    net::end_with_this_thread(&mut command, libc::SIGTERM);
    let check = command.output().with_context(|| format!("starting {}/start", folder.display()))?;
    if check.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&check.stderr);
    let last = said.trim().lines().last().map(str::to_owned);
    Ok(Some(last.unwrap_or_else(|| format!("`start --check` ended with {}", check.status))))
}
