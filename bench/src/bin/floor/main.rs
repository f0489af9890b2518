//! `floor`: the least that any server can do.
//!
//! Answers an upgrade, a stream or a poll with canned bytes, and sends each message that is `POST`ed to every reader
//! of its channel with one `send(2)`. No history beyond what a poll between two answers needs, no ids, no limits, no
//! checks. With `--coalesce`, all messages that came while it was sending go out as one send to each reader.
//! With `--ring N`, Pushline's send ring takes the place of `send(2)`, N sends to a system call.
//! With `--ping S`, each reader is sent a ping (SSE: a comment) every S seconds.

mod channel;
mod sender;
mod worker;

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Barrier;
use std::thread;

use anyhow::Result;
use clap::Parser;

use pushline::runtime::sendring::BATCH_MAX;
use pushline_bench::net;

use worker::Worker;

#[derive(Parser)]
#[command(about = "The least any server can do: canned answers, and one send(2) for each reader")]
pub struct Args {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddrV4,
    /// Threads, each with a listener and a file table of its own
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Send what came during a pass together in the next
    #[arg(long)]
    coalesce: bool,
    /// Send through Pushline's send ring, so many to a system call
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=BATCH_MAX as u64))]
    ring: Option<u64>,
    /// Seconds between two pings to each reader
    #[arg(long)]
    ping: Option<f64>,
    /// Leave out every so manieth send, to see that the load notices
    #[arg(long)]
    lose: Option<u64>,
    /// Make every so manieth send twice, to see that the load notices
    #[arg(long)]
    repeat: Option<u64>,
    /// CPU to stay on
    #[arg(long)]
    cpu: Option<usize>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    net::raise_open_files()?;
    if let Some(cpu) = args.cpu {
        net::pin(cpu)?;
    }
    // Made first, so that the descriptors that all threads keep are the lowest.
    let pairs: Vec<_> = (0..args.threads).map(|_| net::packet_pair()).collect::<io::Result<_>>()?;
    let last_shared =
        pairs.iter().flat_map(|(a, b)| [a.as_raw_fd(), b.as_raw_fd()]).max().expect("at least one thread");
    let inboxes: Vec<(RawFd, RawFd)> = pairs.iter().map(|(a, b)| (a.as_raw_fd(), b.as_raw_fd())).collect();
    let reserved = net::bind(args.listen)?;
    let address = SocketAddrV4::new(*args.listen.ip(), net::local_port(&reserved)?);
    let listening = Barrier::new(args.threads + 1);
    thread::scope(|scope| {
        for index in 0..args.threads {
            let (args, inboxes, listening) = (&args, &inboxes, &listening);
            scope.spawn(move || {
                let made = Worker::new(address, index, inboxes, last_shared, args);
                listening.wait();
                if let Err(error) = made.and_then(|mut worker| worker.run()) {
                    eprintln!("floor: thread {index}: {error:#}");
                    std::process::exit(1);
                }
            });
        }
        listening.wait();
        drop(reserved);
        eprintln!("{{\"message\":\"serving\",\"listen\":\"{address}\",\"threads\":{}}}", args.threads);
    });
    Ok(())
}
