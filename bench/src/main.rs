//! `pushline-bench` (by `bench/run`): runs a scenario, prints its tables, keeps them when it was a full run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use pushline_bench::lab::Programs;
use pushline_bench::report::{self, Finding};
use pushline_bench::scenario::{self, Scale};
use pushline_bench::transport::Transport;
use pushline_bench::{net, proc};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// One channel, one message at a time: CPU per delivery beside the floor's
    Fanout,
    /// 16 messages together beside one
    Burst,
    /// Memory of readers that wait
    Idle,
    /// The floor by send(2) and by the send ring
    Sends,
    /// All of them
    All,
    /// Only write RESULTS.md anew
    Report,
}

#[derive(Parser)]
#[command(name = "bench/run", about = "Measures Pushline beside the floor")]
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
    #[arg(long)]
    readers: Option<usize>,
    #[arg(long)]
    rounds: Option<usize>,
    /// Groups of messages in each round
    #[arg(long)]
    groups: Option<u32>,
    #[arg(long, default_value_t = 128)]
    message_bytes: usize,
    /// Transports to measure (default: ws; idle: all)
    #[arg(long, value_enum, value_delimiter = ',')]
    transport: Vec<Transport>,
    /// idle: connections:workers
    #[arg(long, value_delimiter = ',', value_parser = connections_and_workers)]
    idle: Vec<(usize, usize)>,
    /// idle: seconds of quiet before memory is read
    #[arg(long)]
    hold: Option<u64>,
    /// Handshakes per second
    #[arg(long, default_value_t = 8_000)]
    rate: u32,
    /// The server (default: beside this program)
    #[arg(long)]
    pushline: Option<PathBuf>,
    /// A further argument of the server, repeatable (`--arg=--driver=epoll`)
    #[arg(long, allow_hyphen_values = true)]
    arg: Vec<String>,
}

/// Server and load make 2 of it.
const LOAD_AVERAGE_MAX: f64 = 3.0;

fn connections_and_workers(text: &str) -> Result<(usize, usize), String> {
    let pair = text.split_once(':').ok_or("CONNECTIONS:WORKERS")?;
    let number = |part: &str| part.parse::<usize>().map_err(|error| format!("{part}: {error}"));
    Ok((number(pair.0)?, number(pair.1)?))
}

impl Args {
    fn scale(&self, name: Name) -> Scale {
        let quick = self.quick;
        let default_transports = match name {
            Name::Idle => vec![Transport::Ws, Transport::V1, Transport::Sse],
            _ => vec![Transport::Ws],
        };
        let idle = if quick { vec![(5_000, 1)] } else { vec![(15_000, 1), (100_000, 8)] };
        Scale {
            readers: self.readers.unwrap_or(if quick { 2_000 } else { 10_000 }),
            rounds: self.rounds.unwrap_or(if quick { 5 } else { 25 }),
            groups: self.groups.unwrap_or(if quick { 3 } else { 4 }),
            message_bytes: self.message_bytes,
            transports: if self.transport.is_empty() { default_transports } else { self.transport.clone() },
            idle: if self.idle.is_empty() { idle } else { self.idle.clone() },
            hold: Duration::from_secs(self.hold.unwrap_or(if quick { 1 } else { 3 })),
            rate_per_s: self.rate,
        }
    }

    fn programs(&self) -> Result<Programs> {
        let here = std::env::current_exe()?;
        let beside = here.parent().context("a program lies in a folder")?;
        Ok(Programs {
            pushline: self.pushline.clone().unwrap_or_else(|| beside.join("pushline")),
            floor: beside.join("floor"),
            load: beside.join("load"),
            pushline_args: self.arg.clone(),
        })
    }
}

fn run(args: &Args, name: Name) -> Result<Finding> {
    let (programs, scale) = (args.programs()?, args.scale(name));
    if !proc::is_program(&programs.pushline) {
        eprintln!("{} is not there: only the floor is measured", programs.pushline.display());
    }
    let mut finding = match name {
        Name::Fanout => scenario::fanout(&programs, &scale),
        Name::Burst => scenario::burst(&programs, &scale),
        Name::Idle => scenario::idle(&programs, &scale),
        Name::Sends => scenario::sends(&programs, &scale),
        Name::All | Name::Report => unreachable!("made of the others"),
    }?;
    finding.load_average = proc::load_average();
    if finding.load_average > LOAD_AVERAGE_MAX {
        finding.doubts.push(format!(
            "other programs were running (load average {:.1}): a load that is kept from its CPU need not be woken, which flatters every server",
            finding.load_average
        ));
    }
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
        Name::All => vec![Name::Fanout, Name::Burst, Name::Idle, Name::Sends],
        one => vec![one],
    };
    let mut met = true;
    for name in names {
        let finding = run(&args, name)?;
        if args.json {
            println!("{}", serde_json::to_string(&finding)?);
        } else {
            println!("{}", finding.markdown());
        }
        if !args.quick && !args.dry {
            report::save(folder, &finding)?;
        }
        met &= finding.bars.iter().all(report::Bar::met);
    }
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
