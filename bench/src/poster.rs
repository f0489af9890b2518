//! Publishers by the dozen: each connection posts to a channel of its own, one request after the other.
//! A closed loop for requests per second; what was acknowledged last is read back, so that none is lost unnoticed.

use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;

use crate::api::{Api, channel_name};
use crate::message::{self, Stamp};
use crate::net::{self, Epoll, Events};
use crate::publisher::Target;
use crate::script::Script;
use crate::transport::Transport;
use crate::{http, stats};

/// Channels of posters begin here: no reader has one of them.
const CHANNEL_FIRST: usize = 5_000_000;
const SILENCE_MAX: Duration = Duration::from_secs(5);

struct Poster {
    stream: TcpStream,
    channel: usize,
    /// The last message that was sent.
    number: u32,
    input: Vec<u8>,
    asked_ns: u64,
}

/// What the posters have reached.
pub struct Posted {
    pub messages: u32,
    pub answers: u64,
    /// Acknowledged, but not what the channel holds afterwards.
    pub lost: u64,
    /// From request to answer.
    pub latency: Histogram<u64>,
    pub wall_ns: u64,
}

/// `numbers`: the last number of each connection's channel, kept by the caller between rounds.
pub fn run(api: &Api, target: &Target, numbers: &mut [u32], ms: u64, batch: u32) -> Result<Posted> {
    if !target.is_answered() {
        bail!("{} does not publish by HTTP", api.name);
    }
    let epoll = Epoll::new()?;
    let mut posters = Vec::new();
    for (index, &number) in numbers.iter().enumerate() {
        let stream = TcpStream::connect(target.dest()).context("connecting a poster")?;
        stream.set_nodelay(true)?;
        epoll.add(stream.as_raw_fd(), net::IN, index as u64)?;
        posters.push(Poster {
            stream,
            channel: CHANNEL_FIRST + index,
            number,
            input: Vec::new(),
            asked_ns: 0,
        });
    }
    let mut posted = Posted { messages: 0, answers: 0, lost: 0, latency: stats::new_histogram(), wall_ns: 0 };
    let (mut out, mut body) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for poster in &mut posters {
        poster.ask(target, batch, &mut out, &mut body)?;
    }
    let mut asking = posters.len();
    let mut events = Events::new(256);
    let mut room = vec![0; 64 * 1024];
    let mut heard = Instant::now();
    while asking > 0 {
        let ready = epoll.wait(&mut events, 100)?;
        if ready.is_empty() && heard.elapsed() > SILENCE_MAX {
            bail!("{asking} publishes were not answered within {} s", SILENCE_MAX.as_secs());
        }
        for event in ready {
            heard = Instant::now();
            let poster = &mut posters[event.u64 as usize];
            match net::recv(poster.stream.as_raw_fd(), &mut room) {
                Ok(0) => bail!("the server closed a poster's connection"),
                Ok(got) => poster.input.extend_from_slice(&room[..got]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("reading the answer to a publish"),
            }
            let Some(answer) = http::parse_answer(&poster.input) else { continue };
            if !matches!(answer.status, 200..=299) {
                bail!("publish was answered {}", String::from_utf8_lossy(&poster.input));
            }
            poster.input.drain(..answer.used);
            posted.answers += 1;
            posted.messages += batch;
            posted.latency.saturating_record(net::now_ns() - poster.asked_ns);
            if began.elapsed() < Duration::from_millis(ms) {
                poster.ask(target, batch, &mut out, &mut body)?;
            } else {
                asking -= 1;
            }
        }
    }
    posted.wall_ns = began.elapsed().as_nanos() as u64;
    for (number, poster) in numbers.iter_mut().zip(&mut posters) {
        *number = poster.number;
        if api.has(Transport::Short) {
            posted.lost += u64::from(poster.number - poster.newest(api, target.host())?.min(poster.number));
        }
    }
    Ok(posted)
}

impl Poster {
    fn ask(&mut self, target: &Target, batch: u32, out: &mut Vec<u8>, body: &mut Vec<u8>) -> Result<()> {
        out.clear();
        self.asked_ns = net::now_ns();
        let at_ns = self.asked_ns;
        let from = self.number + 1;
        self.number += batch;
        if batch == 1 {
            target.write_single(out, body, self.channel, Stamp { number: from, at_ns });
        } else {
            let channel = self.channel;
            let stamps = (from..from + batch).map(|number| (channel, Stamp { number, at_ns }));
            target.write_batch(out, body, stamps)?;
        }
        std::io::Write::write_all(&mut self.stream, out).context("publishing")
    }

    /// The number of the newest message that the channel holds.
    fn newest(&mut self, api: &Api, host: &str) -> Result<u32> {
        let mut out = Vec::new();
        Script::new(api, Transport::Short, host)?.write_first(&mut out, &channel_name(self.channel));
        std::io::Write::write_all(&mut self.stream, &out).context("reading back")?;
        let until = Instant::now() + SILENCE_MAX;
        let mut room = [0; 16 * 1024];
        while Instant::now() < until {
            net::wait_readable(self.stream.as_raw_fd(), 100)?;
            match net::recv(self.stream.as_raw_fd(), &mut room) {
                Ok(0) => bail!("the server closed a poster's connection"),
                Ok(got) => self.input.extend_from_slice(&room[..got]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("reading back"),
            }
            if let Some(answer) = http::parse_answer(&self.input) {
                let newest = message::all_in(&self.input[..answer.used]).last();
                return Ok(newest.map_or(0, |stamp| stamp.number));
            }
        }
        bail!("what was published could not be read back")
    }
}
