//! `pushline-bench` (by `bench/run`): runs a scenario, prints its tables, keeps them when it was a full run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum, value_parser};

use pushline_bench::message::{MESSAGE_BYTES_MAX, MESSAGE_BYTES_MIN};
use pushline_bench::report::{self, Bar, Finding};
use pushline_bench::scale::Scale;
use pushline_bench::scenario::{
    burst, capacity, drain, fanout, growth, idle, poll, proof, publish, rooms, slow, storm, tls, waiting,
};
use pushline_bench::server::{Programs, find_peers};
use pushline_bench::transport::Transport;
use pushline_bench::{memory, net, proc};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// One channel, one message at a time: CPU per delivery; a publish aside
    Fanout,
    /// 16 messages together
    Burst,
    /// Publishing as fast as it goes
    Firehose,
    /// N/10 channels of 10, everyone speaks
    Rooms,
    /// N channels with one reader each, random publishes
    Inbox,
    /// HTTP publishes per second, no readers; and batches
    Publish,
    /// Short polls with 304s; held long polls
    Poll,
    /// All readers come back at once after a restart
    Storm,
    /// All readers are told to leave, and come to a second server when they were told to
    Drain,
    /// One reader of ten stops
    Slow,
    /// The floor by send(2) and by the send ring
    Sends,
    /// TLS beside plain: CPU per delivery and handshake, memory of readers that wait
    Tls,
    /// A ring of polls beside the epoll set
    Waiting,
    /// Memory of readers that wait; CPU of heartbeats
    Idle,
    /// Cost and memory from 1,000 to 1,000,000 readers: the plots
    Scale,
    /// As many as the machine holds, one message, a drain
    Capacity,
    /// What tests/run keeps: bytes and CPU of 21,000 readers, with a margin
    Proof,
    /// All but proof
    All,
    /// Only write RESULTS.md anew
    Report,
}

/// In this order, the short ones first. Without `proof`, which the others contain.
const ALL: [Name; 16] = [
    Name::Fanout,
    Name::Burst,
    Name::Firehose,
    Name::Rooms,
    Name::Inbox,
    Name::Publish,
    Name::Poll,
    Name::Storm,
    Name::Drain,
    Name::Slow,
    Name::Sends,
    Name::Tls,
    Name::Waiting,
    Name::Idle,
    Name::Scale,
    Name::Capacity,
];

#[derive(Parser)]
#[command(name = "bench/run", about = "Measures Pushline beside the floor and the peers")]
struct Args {
    scenario: Name,
    /// Small and short; prints, and keeps nothing
    #[arg(long)]
    quick: bool,
    /// Print the finding as one JSON line instead of tables
    #[arg(long)]
    json: bool,
    /// Keep nothing
    #[arg(long)]
    dry: bool,
    /// Readers, in place of the scenario's sizes
    #[arg(long, value_parser = value_parser!(u32).range(1..))]
    readers: Option<u32>,
    /// Turns, in each of which each server has a round; the median counts
    #[arg(long, value_parser = value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Groups of messages in each round
    #[arg(long, value_parser = value_parser!(u32).range(1..))]
    groups: Option<u32>,
    #[arg(long, default_value_t = 128, value_parser = message_bytes())]
    message_bytes: u64,
    /// Transports to measure (default: the scenario's)
    #[arg(long, value_enum, value_delimiter = ',')]
    transport: Vec<Transport>,
    /// Seconds of quiet before memory is read
    #[arg(long)]
    hold: Option<u64>,
    /// Handshakes per second
    #[arg(long, default_value_t = 12_000, value_parser = value_parser!(u32).range(1..))]
    rate: u32,
    /// Only these peers (default: all that can run here)
    #[arg(long, value_delimiter = ',', conflicts_with = "no_peers")]
    peers: Option<Vec<String>>,
    /// The floor and Pushline alone
    #[arg(long)]
    no_peers: bool,
    /// The server (default: beside this program)
    #[arg(long)]
    pushline: Option<PathBuf>,
    /// A further argument of the server, repeatable (`--arg=--driver=epoll`)
    #[arg(long, allow_hyphen_values = true)]
    arg: Vec<String>,
}

impl Name {
    fn measures_pushline(self) -> bool {
        !matches!(self, Self::Sends | Self::Waiting | Self::Report)
    }
}

fn message_bytes() -> impl clap::builder::TypedValueParser<Value = u64> {
    value_parser!(u64).range(MESSAGE_BYTES_MIN as u64..=MESSAGE_BYTES_MAX as u64)
}

/// The part of the CPUs beyond which other programs are told of.
const OTHERS_MAX: f64 = 0.05;

impl Args {
    fn scale(&self) -> Scale {
        Scale {
            quick: self.quick,
            readers: self.readers.map(|readers| readers as usize),
            rounds: self.rounds.map(|rounds| rounds as usize),
            groups: self.groups,
            message_bytes: self.message_bytes as usize,
            transports: self.transport.clone(),
            hold_s: self.hold,
            rate_per_s: self.rate,
        }
    }

    fn programs(&self, folder: &Path, names: &[Name]) -> Result<Programs> {
        let here = std::env::current_exe()?;
        let beside = here.parent().context("a program lies in a folder")?;
        let peers = if self.no_peers {
            Vec::new()
        } else {
            find_peers(&folder.join("peers"), self.peers.as_deref())?
        };
        let programs = Programs {
            pushline: self.pushline.clone().unwrap_or_else(|| beside.join("pushline")),
            floor: beside.join("floor"),
            load: beside.join("load"),
            waiting: beside.join("waiting"),
            pushline_args: self.arg.clone(),
            certificates: folder.join("peers/.cache/tls"),
            peers,
        };
        // A server that is not there has no bars to miss.
        let with_pushline = self.pushline.is_some() || names.iter().any(|name| name.measures_pushline());
        let pushline = with_pushline.then_some(&programs.pushline);
        for program in [&programs.floor, &programs.load, &programs.waiting].into_iter().chain(pushline) {
            if !proc::is_program(program) {
                bail!("{} is not there, or cannot be run", program.display());
            }
        }
        Ok(programs)
    }
}

fn run(programs: &Programs, scale: &Scale, name: Name) -> Result<Finding> {
    let before = proc::Shared::now();
    let mut finding = match name {
        Name::Fanout => fanout::fanout(programs, scale),
        Name::Burst => burst::burst(programs, scale),
        Name::Firehose => burst::firehose(programs, scale),
        Name::Rooms => rooms::rooms(programs, scale),
        Name::Inbox => rooms::inbox(programs, scale),
        Name::Publish => publish::publish(programs, scale),
        Name::Poll => poll::poll(programs, scale),
        Name::Storm => storm::storm(programs, scale),
        Name::Drain => drain::drain(programs, scale),
        Name::Slow => slow::slow(programs, scale),
        Name::Sends => fanout::sends(programs, scale),
        Name::Tls => tls::tls(programs, scale),
        Name::Waiting => waiting::waiting(programs, scale),
        Name::Idle => idle::idle(programs, scale),
        Name::Scale => growth::scale(programs, scale),
        Name::Capacity => capacity::capacity(programs, scale),
        Name::Proof => proof::proof(programs, scale),
        Name::All | Name::Report => unreachable!("made of the others"),
    }?;
    let others = proc::Shared::now().others_since(before);
    if others.programs > OTHERS_MAX {
        finding.doubts.push(format!(
            "other programs had {:.0} % of the CPUs: a load that is kept from its CPU need not be woken, which flatters every server",
            others.programs * 100.0
        ));
    }
    finding.others = Some(others);
    Ok(finding)
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    net::raise_open_files()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = match args.scenario {
        Name::Report => {
            report::write_results(folder)?;
            return Ok(ExitCode::SUCCESS);
        }
        Name::All => ALL.to_vec(),
        one => vec![one],
    };
    let (programs, scale) = (args.programs(folder, &names)?, args.scale());
    let (mut missed, began) = (Vec::new(), Instant::now());
    for &name in &names {
        let called = name.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        eprintln!("{called} ({:.0} s)", began.elapsed().as_secs_f64());
        memory::wait_sockets_gone();
        let finding = match run(&programs, &scale, name) {
            Ok(finding) => finding,
            // The others can still be measured; the end says that this one was not.
            Err(error) if names.len() > 1 => {
                eprintln!("  {called} failed: {error:#}");
                missed.push(format!("{called}: {error:#}"));
                continue;
            }
            Err(error) => return Err(error),
        };
        if args.json {
            println!("{}", serde_json::to_string(&finding)?);
        } else {
            println!("{}", finding.markdown());
        }
        if !args.quick && !args.dry {
            report::save(folder, &finding)?;
        }
        let bars = finding.bars.iter().filter(|bar| !bar.met());
        missed.extend(bars.map(|Bar { what, measured, .. }| format!("{called}: {what}: {measured:.3}")));
    }
    eprintln!("{:.0} s, {} bars missed", began.elapsed().as_secs_f64(), missed.len());
    missed.iter().for_each(|bar| eprintln!("  missed: {bar}"));
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
