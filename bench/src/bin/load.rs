//! `load`: N readers of one channel and one publisher, against any server.
//!
//! Opens the readers, prints a JSON line when all are subscribed, then takes orders from standard input,
//! one JSON object a line (`{"messages":100,"together":1,"by":"pipeline"}`), and answers each with a JSON line.
//! With `--messages` it carries out that one order and ends.

use std::io::{BufRead as _, Write as _};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde_json::json;

use pushline_bench::lab::{Order, Outcome, Ready};
use pushline_bench::publisher::{By, Publisher, Target};
use pushline_bench::reader::{self, Board, Plan, READERS_PER_THREAD_MAX};
use pushline_bench::transport::{MESSAGE_BYTES_MIN, Transport};
use pushline_bench::{net, proc, stats};

#[derive(Parser)]
#[command(about = "N readers of one channel and one publisher; counts every message")]
struct Args {
    /// Address of the server
    #[arg(long)]
    target: SocketAddrV4,
    #[arg(long, value_enum, default_value = "ws")]
    transport: Transport,
    #[arg(long, default_value_t = 1_000)]
    readers: usize,
    /// Reader threads, each with a file table of its own (default: as few as hold the readers)
    #[arg(long)]
    threads: Option<usize>,
    /// Handshakes per second
    #[arg(long, default_value_t = 5_000.0)]
    rate: f64,
    /// CPU to stay on
    #[arg(long)]
    cpu: Option<usize>,
    #[arg(long, default_value = "bench")]
    channel: String,
    /// Path that readers ask for
    #[arg(long, default_value = "/channels/{channel}")]
    read_path: String,
    #[arg(long, default_value = "/channels/{channel}")]
    publish_path: String,
    #[arg(long, default_value = "/publish")]
    batch_path: String,
    #[arg(long, default_value_t = 128)]
    message_bytes: usize,
    /// Publish so many messages, then end, instead of taking orders from standard input
    #[arg(long)]
    messages: Option<u32>,
    /// So many are published together, and the next when every reader has them
    #[arg(long, default_value_t = 1)]
    together: u32,
    #[arg(long, value_enum, default_value = "pipeline")]
    by: By,
    /// Give up when not all readers are open after so many seconds
    #[arg(long, default_value_t = 120)]
    ramp_seconds: u64,
}

/// A group that has not reached all readers by then is counted as lost.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let args = Args::parse();
    if args.message_bytes < MESSAGE_BYTES_MIN {
        bail!("--message-bytes {}: at least {MESSAGE_BYTES_MIN}", args.message_bytes);
    }
    net::raise_open_files()?;
    if let Some(cpu) = args.cpu {
        net::pin(cpu)?;
    }
    let host = args.target.to_string();
    let named = |template: &str| template.replace("{channel}", &args.channel);
    let threads = args.threads.unwrap_or_else(|| args.readers.div_ceil(READERS_PER_THREAD_MAX)).max(1);
    let plan = Arc::new(Plan {
        dest: args.target,
        transport: args.transport,
        request: args.transport.request(&host, &named(&args.read_path)),
        host: host.clone(),
        path: named(&args.read_path),
        readers: args.readers,
        threads,
        rate_per_s: args.rate,
    });
    let board = Arc::new(Board::new(threads));
    let target = Target {
        dest: args.target,
        host,
        path: named(&args.publish_path),
        batch_path: args.batch_path.clone(),
        channel: args.channel.clone(),
        message_bytes: args.message_bytes,
    };

    let ready = open_readers(&plan, &board, Duration::from_secs(args.ramp_seconds))?;
    say(&serde_json::to_value(ready)?)?;
    let mut session = Session { target: &target, board: &board, readers: args.readers, next: 1 };
    if let Some(messages) = args.messages {
        let order = Order { messages, together: args.together, by: args.by };
        return say(&serde_json::to_value(session.carry_out(&order)?)?);
    }
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?).context("an order")?;
        match session.carry_out(&order) {
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
    let began = Instant::now();
    let cpu_before = proc::cpu(std::process::id())?;
    reader::start(plan, board, 2)?;
    while board.open() < plan.readers {
        if board.failed() || began.elapsed() > patience {
            bail!(
                "{} of {} readers are open, {} were tried again",
                board.open(),
                plan.readers,
                board.retried()
            );
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(Ready {
        readers: plan.readers,
        ramp_s: began.elapsed().as_secs_f64(),
        retried: board.retried(),
        client_cpu: proc::cpu(std::process::id())? - cpu_before,
    })
}

struct Session<'a> {
    target: &'a Target,
    board: &'a Board,
    readers: usize,
    /// Number of the next message.
    next: u32,
}

impl Session<'_> {
    fn carry_out(&mut self, order: &Order) -> Result<Outcome> {
        let mut publisher = Publisher::connect(self.target)?;
        self.board.take_tally();
        let cpu_before = proc::cpu(std::process::id())?;
        let began = Instant::now();
        let mut published = 0;
        let mut late = 0;
        while published < order.messages {
            let together = order.together.clamp(1, order.messages - published);
            let from = self.next;
            self.board.expect(u64::from(together) * self.readers as u64);
            publisher.publish(from, together, order.by, || {
                (from..from + together).for_each(|number| self.board.stamp(number));
            })?;
            self.next += together;
            published += together;
            if !self.board.wait_delivered(DELIVERY_PATIENCE) {
                late += 1;
                self.board.forgive();
            }
        }
        let wall_ns = began.elapsed().as_nanos() as u64;
        let tally = self.board.take_tally();
        let wanted = u64::from(published) * self.readers as u64;
        Ok(Outcome {
            messages: published,
            deliveries: tally.delivered,
            lost: (wanted + tally.repeated).saturating_sub(tally.delivered),
            jumped: tally.missing,
            repeated: tally.repeated,
            gaps: tally.gaps,
            closed: tally.closed,
            late_groups: late,
            wall_ns,
            latency: stats::latency(&tally.latency),
            client_cpu: proc::cpu(std::process::id())? - cpu_before,
        })
    }
}
