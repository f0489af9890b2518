//! `waiting`: sockets that wait for input, in an epoll set or as polls in a ring. Prints one JSON line: kernel memory of
//! each socket that waits, and CPU of arming, of waking (the write that wakes, the wake, the read, arming again) and of
//! ending. One thread does all of it, so that no scheduler comes in between.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use io_uring::{IoUring, cqueue, opcode, types};

use pushline_bench::net::{self, Epoll, Events};
use pushline_bench::proc;
use pushline_bench::wait::{Waited, Waiter};

#[derive(Parser)]
struct Args {
    #[arg(long, value_enum)]
    by: Waiter,
    /// Sockets that wait; each has its other end in this process too
    #[arg(long, default_value_t = 9_000)]
    sockets: usize,
    /// Wakes of each kind
    #[arg(long, default_value_t = 100_000)]
    wakes: usize,
}

const SOME: usize = 64;

/// Sockets that wait, by number.
trait Wait {
    fn arm(&mut self, sockets: &[TcpStream]) -> Result<()>;
    /// Waits, reads a byte from each socket that has one, and returns how many were read.
    fn wake(&mut self, sockets: &[TcpStream]) -> Result<usize>;
    fn end(&mut self, sockets: Vec<TcpStream>) -> Result<()>;
}

struct InEpoll {
    epoll: Epoll,
    events: Events,
}

impl Wait for InEpoll {
    fn arm(&mut self, sockets: &[TcpStream]) -> Result<()> {
        for (index, socket) in sockets.iter().enumerate() {
            self.epoll.add(socket.as_raw_fd(), net::IN, index as u64)?;
        }
        Ok(())
    }

    fn wake(&mut self, sockets: &[TcpStream]) -> Result<usize> {
        let mut read = 0;
        for event in self.epoll.wait(&mut self.events, 1_000)? {
            read += read_byte(&sockets[event.u64 as usize])?;
        }
        Ok(read)
    }

    fn end(&mut self, sockets: Vec<TcpStream>) -> Result<()> {
        drop(sockets);
        Ok(())
    }
}

struct InRing {
    ring: IoUring,
    multi: bool,
    /// Sockets whose poll is over.
    unarmed: Vec<usize>,
}

impl InRing {
    fn new(sockets: usize, multi: bool) -> Result<Self> {
        let room = (sockets * 2).next_power_of_two() as u32;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(room)
            .build(1_024)
            .context("a ring")?;
        Ok(Self { ring, multi, unarmed: Vec::new() })
    }

    fn push(&mut self, entry: &io_uring::squeue::Entry) -> Result<()> {
        // SAFETY: polls and their removals carry no pointers.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    fn poll(&mut self, socket: &TcpStream, index: usize) -> Result<()> {
        let poll = opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), net::IN).multi(self.multi);
        self.push(&poll.build().user_data(index as u64))
    }
}

impl Wait for InRing {
    fn arm(&mut self, sockets: &[TcpStream]) -> Result<()> {
        for (index, socket) in sockets.iter().enumerate() {
            self.poll(socket, index)?;
        }
        self.ring.submit()?;
        Ok(())
    }

    fn wake(&mut self, sockets: &[TcpStream]) -> Result<usize> {
        self.ring.submit_and_wait(1)?;
        let mut read = 0;
        let mut unarmed = std::mem::take(&mut self.unarmed);
        for event in self.ring.completion() {
            let index = event.user_data() as usize;
            if event.result() < 0 {
                bail!("a poll ended: {}", std::io::Error::from_raw_os_error(-event.result()));
            }
            read += read_byte(&sockets[index])?;
            if !cqueue::more(event.flags()) {
                unarmed.push(index);
            }
        }
        for index in unarmed.drain(..) {
            self.poll(&sockets[index], index)?;
        }
        self.unarmed = unarmed;
        Ok(read)
    }

    /// A poll holds its file: without its removal, `close` would send no FIN.
    fn end(&mut self, sockets: Vec<TcpStream>) -> Result<()> {
        self.ring.submit()?;
        let all = sockets.len();
        for index in 0..all {
            self.push(&opcode::PollRemove::new(index as u64).build().user_data(u64::MAX))?;
        }
        // Of each socket the end of its poll and the answer to the removal: the file is held until both have come.
        let mut ended = 0;
        while ended < 2 * all {
            self.ring.submit_and_wait(1)?;
            ended += self.ring.completion().filter(|event| !cqueue::more(event.flags())).count();
        }
        drop(sockets);
        Ok(())
    }
}

/// 0 when there is none: a multishot poll may tell a byte that was read already.
fn read_byte(socket: &TcpStream) -> Result<usize> {
    match net::recv(socket.as_raw_fd(), &mut [0]) {
        Ok(0) => bail!("a socket was closed"),
        Ok(got) => Ok(got),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    net::raise_open_files()?;
    let (mut writers, mut sockets) = (Vec::new(), Vec::new());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    for _ in 0..args.sockets {
        let writer = TcpStream::connect(listener.local_addr()?)?;
        writer.set_nodelay(true)?;
        sockets.push(listener.accept()?.0);
        writers.push(writer);
    }
    let mut waiter: Box<dyn Wait> = match args.by {
        Waiter::Epoll => Box::new(InEpoll { epoll: Epoll::new()?, events: Events::new(1_024) }),
        Waiter::RingOnce | Waiter::RingMulti => {
            Box::new(InRing::new(args.sockets, args.by == Waiter::RingMulti)?)
        }
    };
    let slab_before = proc::kernel_memory()?.slab;
    let arming = net::cpu_ns();
    waiter.arm(&sockets)?;
    let arm_ns = (net::cpu_ns() - arming) as f64 / args.sockets as f64;
    let slab = proc::kernel_memory()?.slab as f64 - slab_before as f64;

    let mut lost = 0;
    let mut chance = HashMap::new();
    let mut wakes = |waiter: &mut Box<dyn Wait>, together: usize, rounds: usize| -> Result<f64> {
        let began = net::cpu_ns();
        for round in 0..rounds {
            let from = chance.entry(together).or_insert(round * 7_919);
            for at in 0..together {
                // A stride without a common divisor with what people ask for: never twice in a round.
                let index = (*from + at * 7_919) % writers.len();
                net::send(writers[index].as_raw_fd(), b"x")?;
            }
            *from += 13;
            let (mut read, mut idle) = (0, 0);
            while read < together && idle < 3 {
                let got = waiter.wake(&sockets)?;
                idle = if got == 0 { idle + 1 } else { 0 };
                read += got;
            }
            lost += (together - read) as u64;
        }
        Ok((net::cpu_ns() - began) as f64 / (together * rounds) as f64)
    };
    // Once before it counts: the first wakes grow queues.
    wakes(&mut waiter, args.sockets, 1)?;
    let wake_all_ns = wakes(&mut waiter, args.sockets, args.wakes.div_ceil(args.sockets))?;
    let wake_some_ns = wakes(&mut waiter, SOME.min(args.sockets), args.wakes.div_ceil(SOME))?;
    let wake_one_ns = wakes(&mut waiter, 1, args.wakes / 10)?;

    let ending = net::cpu_ns();
    waiter.end(sockets)?;
    // The other ends see it at once, or closing was not what was measured.
    for writer in &writers {
        if !matches!(net::recv(writer.as_raw_fd(), &mut [0]), Ok(0)) {
            bail!("a socket was closed, and its other end does not know");
        }
    }
    let end_ns = (net::cpu_ns() - ending) as f64 / args.sockets as f64;
    let kernel_bytes = slab / args.sockets as f64;
    let waited = Waited { kernel_bytes, arm_ns, wake_all_ns, wake_some_ns, wake_one_ns, end_ns, lost };
    println!("{}", serde_json::to_string(&waited)?);
    Ok(())
}
