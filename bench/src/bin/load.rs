//! `load`: N readers and those who publish, against any server.
//!
//! Opens the readers, prints a JSON line when all are subscribed, then takes orders from standard input,
//! one JSON object a line (`{"do":"groups","messages":100,"together":1}`), and answers each with a JSON line.
//! With `--order` it carries out that one order and ends.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use pushline_bench::api::{Api, Publish};
use pushline_bench::board::Board;
use pushline_bench::message::{MESSAGE_BYTES_MAX, MESSAGE_BYTES_MIN};
use pushline_bench::order::{Order, Ready};
use pushline_bench::publisher::Target;
use pushline_bench::script::Script;
use pushline_bench::session::Session;
use pushline_bench::sources::{self, Place, Sources};
use pushline_bench::swarm::{self, HANDSHAKES_WAITING_MAX, Plan, READERS_PER_THREAD_MAX};
use pushline_bench::transport::Transport;
use pushline_bench::{net, proc, refusal, tls};

#[derive(Parser)]
#[command(about = "N readers and those who publish, against any server; counts every message")]
struct Args {
    /// HOST:PORT of the server
    #[arg(long, value_parser = place)]
    target: Place,
    /// HOST:PORT of a second server, that readers move to
    #[arg(long, value_parser = place)]
    second: Option<Place>,
    /// Readers come by TLS, to this HOST:PORT
    #[arg(long, value_parser = place)]
    tls: Option<Place>,
    /// Addresses of this machine that readers come from, `10.0.0.5,10.0.0.8-10.0.0.20` (default: 127.0.x.y to a
    /// server on loopback, to another as the kernel chooses)
    #[arg(long, value_parser = listed)]
    sources: Option<Sources>,
    /// How to talk to it: a peer.json (default: Pushline)
    #[arg(long)]
    api: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "ws")]
    transport: Transport,
    #[arg(long, default_value_t = 1_000)]
    readers: u32,
    /// Readers of each channel (default: one channel for all)
    #[arg(long, value_parser = value_parser!(u32).range(1..))]
    members: Option<u32>,
    /// Number of the first channel: loads beside each other keep apart
    #[arg(long, default_value_t = 0)]
    channel_from: usize,
    /// Reader threads, each with a file table of its own (default: as few as hold the readers)
    #[arg(long, value_parser = value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Handshakes per second
    #[arg(long, default_value_t = 5_000.0, value_parser = rate)]
    rate: f64,
    /// Handshakes of each thread that wait for their answer, when the server is slower than the rate
    #[arg(long, default_value_t = HANDSHAKES_WAITING_MAX as u32, value_parser = value_parser!(u32).range(1..))]
    waiting: u32,
    /// CPU to stay on
    #[arg(long)]
    cpu: Option<usize>,
    /// Run before all others on that CPU (SCHED_FIFO): for a probe beside a crowd
    #[arg(long)]
    first: bool,
    /// Path that readers ask for, `{channel}` for the channel's name
    #[arg(long)]
    read_path: Option<String>,
    /// Path that is POSTed to
    #[arg(long)]
    publish_path: Option<String>,
    #[arg(long)]
    batch_path: Option<String>,
    #[arg(long, default_value_t = 128,
          value_parser = value_parser!(u32).range(MESSAGE_BYTES_MIN as i64..=MESSAGE_BYTES_MAX as i64))]
    message_bytes: u32,
    /// Receive buffer of each reader (default: the kernel's choice)
    #[arg(long)]
    receive_buffer: Option<i32>,
    /// Carry out this order and end, instead of taking orders from standard input
    #[arg(long)]
    order: Option<String>,
    /// Messages that have not come after so many seconds are lost (more for crowds)
    #[arg(long, default_value_t = 20)]
    patience: u64,
    /// Give up when not all readers are open after so many seconds
    #[arg(long, default_value_t = 600)]
    ramp_seconds: u64,
}

impl Args {
    fn api(&self) -> Result<Api> {
        let mut api = match &self.api {
            Some(path) => Api::read_file(path)?,
            None => Api::pushline(),
        };
        if let Some(path) = &self.read_path {
            api.read.insert(self.transport.key().to_owned(), path.clone());
        }
        if let Some(path) = &self.publish_path {
            api.publish = Some(Publish::Http { method: "POST".into(), path: path.clone() });
        }
        if self.batch_path.is_some() {
            api.batch.clone_from(&self.batch_path);
        }
        Ok(api)
    }
}

fn place(host: &str) -> Result<Place, String> {
    sources::resolve(host).map_err(|error| format!("{error:#}"))
}

fn listed(text: &str) -> Result<Sources, String> {
    Sources::parse(text).map_err(|error| format!("{error:#}"))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a number is wanted".to_owned())?;
    if rate > 0.0 && rate.is_finite() { Ok(rate) } else { Err("more than 0 a second are wanted".into()) }
}

fn parse_order(text: &str) -> Result<Order> {
    serde_json::from_str(text).context("an order")
}

fn main() -> Result<()> {
    let args = Args::parse();
    net::raise_open_files()?;
    if let Some(cpu) = args.cpu {
        net::pin(cpu)
            .with_context(|| format!("--cpu {cpu}: this program may not run there, or there is none"))?;
    }
    if args.first {
        net::run_first().context("--first needs root")?;
    }
    let api = args.api()?;
    let readers = args.readers as usize;
    let threads = args.threads.map_or_else(|| readers.div_ceil(READERS_PER_THREAD_MAX).max(1), usize::from);
    ensure!(
        readers <= threads * READERS_PER_THREAD_MAX,
        "--threads {threads}: {readers} readers need {}",
        readers.div_ceil(READERS_PER_THREAD_MAX)
    );
    // First of all descriptors: the lowest are those that reader threads keep.
    let board = Arc::new(Board::new(threads)?);
    let second = |place: &Place| -> Result<_> {
        Ok((place.address, Script::new(&api.clone().resuming(), args.transport, &place.host)?))
    };
    let read_from = args.tls.as_ref().unwrap_or(&args.target);
    let sources = args.sources.unwrap_or_default();
    sources.check(readers, read_from.address)?;
    let plan = Arc::new(Plan {
        dest: read_from.address,
        sources,
        tls: args.tls.as_ref().map(|place| tls::client(&place.host)).transpose()?,
        script: Script::new(&api, args.transport, &args.target.host)?,
        second: args.second.as_ref().map(second).transpose()?,
        readers,
        members: args.members.map_or(readers, |members| members as usize).clamp(1, readers.max(1)),
        message_bytes: args.message_bytes as usize,
        patience: Duration::from_secs(args.patience),
        first_channel: args.channel_from,
        threads,
        rate_per_s: args.rate,
        waiting_max: args.waiting as usize,
        receive_buffer_bytes: args.receive_buffer,
    });
    let target = Target::new(&api, &args.target, plan.message_bytes)?;
    // Before readers are opened, which may take minutes.
    let order = args.order.as_deref().map(parse_order).transpose()?;
    if let Some(order) = &order {
        Session::check(order, &plan, &api)?;
    }

    let ready = open_readers(&plan, &board, Duration::from_secs(args.ramp_seconds))?;
    say(&serde_json::to_value(ready)?)?;
    let mut session = Session::new(&api, &target, &plan, &board);
    if let Some(order) = &order {
        let outcome = session.carry_out(order)?;
        say(&serde_json::to_value(&outcome)?)?;
        if outcome.client_bound {
            eprintln!(
                "load: busy {:.0} % of its time: this may measure the load",
                outcome.client_busy * 100.0
            );
        }
        return match outcome.fault() {
            Some(fault) => bail!("{fault}"),
            None => Ok(()),
        };
    }
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        match parse_order(&line).and_then(|order| session.carry_out(&order)) {
            Ok(outcome) => say(&serde_json::to_value(outcome)?)?,
            Err(error) => say(&json!({"error": format!("{error:#}")}))?,
        }
    }
    Ok(())
}

fn say(line: &serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn open_readers(plan: &Arc<Plan>, board: &Arc<Board>, patience: Duration) -> Result<Ready> {
    let pid = std::process::id();
    let began = Instant::now();
    let (cpu_before, memory_before) = (proc::cpu(pid)?, proc::anonymous_bytes(pid)?);
    swarm::start(plan, board)?;
    // Drawn only on a terminal.
    let style = "  {wide_bar} {human_pos} of {human_len} readers, {per_sec}, {eta} to go";
    let bar = ProgressBar::new(plan.readers as u64).with_style(ProgressStyle::with_template(style)?);
    while board.open() < plan.readers {
        bar.set_position(board.open() as u64);
        if board.failed() || began.elapsed() > patience {
            bail!(
                "{} of {} readers are open, {} were tried again; last reason: {}",
                board.open(),
                plan.readers,
                board.retried(),
                board.refusal().unwrap_or_else(|| refusal::no_answer(patience))
            );
        }
        thread::sleep(Duration::from_millis(5));
    }
    bar.finish_and_clear();
    let memory = proc::anonymous_bytes(pid)?.saturating_sub(memory_before);
    Ok(Ready {
        readers: plan.readers,
        ramp_s: began.elapsed().as_secs_f64(),
        retried: board.retried(),
        client_cpu: proc::cpu(pid)? - cpu_before,
        client_bytes: memory as f64 / plan.readers.max(1) as f64,
    })
}
