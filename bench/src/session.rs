//! Orders carried out, one after the other, on readers that are open: who publishes what, when, and what came of it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::api::{Api, channel_name};
use crate::board::{Board, Command, Cursor};
use crate::message::Stamp;
use crate::order::{By, CLIENT_BUSY_MAX, Order, Outcome};
use crate::publisher::{Publisher, Target};
use crate::swarm::Plan;
use crate::{http, net, poster, proc, refusal, stats, transport};

const READERS_SERVED_PER_S_MIN: u64 = 10_000;
const RETURN_PATIENCE: Duration = Duration::from_secs(120);
/// Answers to the last short polls of a round.
const POLLS_SETTLE: Duration = Duration::from_millis(50);
/// An open loop writes so many together when it has fallen behind.
const OVERDUE_TOGETHER_MAX: u32 = 64;

pub struct Session<'a> {
    api: &'a Api,
    target: &'a Target,
    plan: &'a Plan,
    board: &'a Board,
    /// The last number of each channel.
    numbers: Vec<u32>,
    /// The last numbers of the posters' channels.
    posted: Vec<u32>,
    /// Deliveries that should have been made, of all orders so far.
    expected: u64,
    /// Deliveries that readers who do not read are still to make.
    owed: u64,
    /// Every so manieth reader does not read.
    stalled: Option<usize>,
    turn: usize,
    chance: u64,
    messages: Vec<(usize, Stamp)>,
}

/// What a kind of order has to say beyond the tally.
#[derive(Default)]
struct Done {
    messages: u32,
    late_groups: u32,
    lost: u64,
    answers: u64,
    latency: Option<stats::Latency>,
    wall_ns: Option<u64>,
}

impl<'a> Session<'a> {
    pub fn new(api: &'a Api, target: &'a Target, plan: &'a Plan, board: &'a Board) -> Self {
        Self {
            api,
            target,
            plan,
            board,
            numbers: (0..plan.channels())
                .map(|channel| board.held(channel_name(plan.first_channel + channel)))
                .collect(),
            posted: Vec::new(),
            expected: 0,
            owed: 0,
            stalled: None,
            turn: 0,
            chance: 0x9e37_79b9_7f4a_7c15,
            messages: Vec::new(),
        }
    }

    /// Why an order cannot be carried out here, before anything is done.
    pub fn check(order: &Order, plan: &Plan, api: &Api) -> Result<()> {
        if let Some(why) = order.refusal(plan.script.transport, plan.readers) {
            bail!("{why}");
        }
        if order.publishes() && api.publish.is_none() {
            bail!("{} takes no messages", api.name);
        }
        Ok(())
    }

    pub fn carry_out(&mut self, order: &Order) -> Result<Outcome> {
        Self::check(order, self.plan, self.api)?;
        // What came between two orders is told of neither.
        self.expected += self.board.take_tally().first();
        let pid = std::process::id();
        let (cpu_before, expected_before) = (proc::cpu(pid)?, self.expected);
        let began = Instant::now();
        let done = self.run(order);
        let elapsed = began.elapsed();
        let client_cpu = proc::cpu(pid)? - cpu_before;
        let mut tally = self.board.take_tally();
        let wanted = self.expected - expected_before;
        // What readers who do not read are owed is not given up.
        if tally.first() < wanted && self.owed == 0 {
            self.board.give_up(net::now_ns());
            tally.add(&self.board.take_tally());
        }
        let lost = wanted.saturating_sub(tally.first());
        // The next order is not to wait for what this one has lost.
        self.expected = expected_before + tally.first();
        let done = done?;
        let wall_ns = done.wall_ns.unwrap_or(elapsed.as_nanos() as u64);
        let threads = thread::available_parallelism().map_or(1, usize::from).min(self.plan.threads + 1);
        let client_busy = client_cpu.run_ns as f64 / wall_ns.max(1) as f64 / threads as f64;
        Ok(Outcome {
            messages: done.messages,
            deliveries: tally.delivered,
            lost: lost + done.lost,
            stragglers: tally.stragglers,
            damaged: tally.damaged,
            jumped: tally.jumped,
            repeated: tally.repeated,
            out_of_order: tally.late,
            gaps: tally.gaps,
            told: tally.told,
            cut: tally.cut,
            late_groups: done.late_groups,
            wall_ns,
            latency: done.latency.unwrap_or_else(|| stats::latency(&tally.latency)),
            waits: stats::latency(&tally.waits),
            client_cpu,
            client_busy,
            client_bound: client_busy > CLIENT_BUSY_MAX,
            reads: tally.reads,
            answers: done.answers + tally.answers,
            unchanged: tally.unchanged,
            heartbeats: tally.heartbeats,
            left: tally.left,
            back: tally.back,
            retried: self.board.retried() as u64,
            open: self.board.open() as u64,
        })
    }

    fn run(&mut self, order: &Order) -> Result<Done> {
        Ok(match *order {
            Order::Groups { messages, together, by, random } => {
                self.groups(messages, together, by, random)?
            }
            Order::Flood { ms, window, together, by } => self.flood(ms, window, together, by)?,
            Order::Pace { ms, per_s, random } => self.pace(ms, per_s, random)?,
            Order::Speak { turns } => self.speak(turns)?,
            Order::Post { ms, connections, batch } => self.post(ms, connections, batch)?,
            Order::Poll { ms, per_s } => self.poll(ms, per_s)?,
            Order::Stall { part } => self.stall(part)?,
            Order::Flow { ms } => self.flow(ms)?,
            Order::End { ms } => self.end(ms),
            Order::Return {} => self.come_back()?,
            Order::Move { ms } => self.move_away(ms)?,
            Order::Watch { ms } => {
                thread::sleep(Duration::from_millis(ms));
                Done::default()
            }
        })
    }

    fn patience(&self) -> Duration {
        self.plan.patience + Duration::from_secs(self.plan.readers as u64 / READERS_SERVED_PER_S_MIN)
    }

    /// Notes one more message and returns its channel and stamp.
    fn next_message(&mut self, random: bool, at_ns: u64) -> (usize, Stamp) {
        let channels = self.numbers.len();
        let channel = if random {
            // xorshift64: any spread will do.
            self.chance ^= self.chance << 13;
            self.chance ^= self.chance >> 7;
            self.chance ^= self.chance << 17;
            (self.chance >> 20) as usize % channels
        } else {
            self.turn += 1;
            (self.turn - 1) % channels
        };
        self.numbers[channel] += 1;
        let first = channel * self.plan.members;
        let last = (first + self.plan.members).min(self.plan.readers);
        let asleep = match self.stalled {
            Some(part) => last.div_ceil(part) - first.div_ceil(part),
            None => 0,
        };
        self.owed += asleep as u64;
        self.expected += (last - first - asleep) as u64;
        (self.plan.first_channel + channel, Stamp { number: self.numbers[channel], at_ns })
    }

    fn publish(&mut self, publisher: &mut Publisher<'_>, count: u32, by: By, random: bool) -> Result<()> {
        let at_ns = net::now_ns();
        let mut messages = std::mem::take(&mut self.messages);
        messages.clear();
        messages.extend((0..count).map(|_| self.next_message(random, at_ns)));
        let written = publisher.publish(&messages, by);
        self.messages = messages;
        written
    }

    fn groups(&mut self, messages: u32, together: u32, by: By, random: bool) -> Result<Done> {
        let mut publisher = Publisher::connect(self.target)?;
        let mut done = Done::default();
        while done.messages < messages {
            let count = together.clamp(1, messages - done.messages);
            self.publish(&mut publisher, count, by, random)?;
            publisher.collect(0)?;
            done.messages += count;
            if !self.board.wait_delivered(self.expected, self.patience()) {
                done.late_groups += 1;
                bail_if_hopeless(done.late_groups)?;
            }
        }
        Ok(done)
    }

    fn flood(&mut self, ms: u64, window: u32, together: u32, by: By) -> Result<Done> {
        let mut publisher = Publisher::connect(self.target)?;
        let ahead_max = u64::from(window.saturating_sub(together)) * self.plan.members as u64;
        let until = Instant::now() + Duration::from_millis(ms);
        let mut done = Done::default();
        while Instant::now() < until {
            let at_least = self.expected.saturating_sub(ahead_max);
            if !self.board.wait_delivered(at_least, self.patience()) {
                done.late_groups += 1;
                break;
            }
            self.publish(&mut publisher, together, by, false)?;
            publisher.collect(window as usize)?;
            done.messages += together;
        }
        publisher.collect(0)?;
        done.late_groups += u32::from(!self.board.wait_delivered(self.expected, self.patience()));
        Ok(done)
    }

    fn pace(&mut self, ms: u64, per_s: f64, random: bool) -> Result<Done> {
        let mut publisher = Publisher::connect(self.target)?;
        let began = net::now_ns();
        let total = (ms as f64 / 1e3 * per_s) as u32;
        let planned = |number: u32| began + (f64::from(number) / per_s * 1e9) as u64;
        let mut done = Done::default();
        while done.messages < total {
            let now = net::now_ns();
            if let Some(early) = planned(done.messages).checked_sub(now).filter(|&early| early > 0) {
                thread::sleep(Duration::from_nanos(early));
                continue;
            }
            let mut messages = std::mem::take(&mut self.messages);
            messages.clear();
            while done.messages < total
                && planned(done.messages) <= now
                && messages.len() < OVERDUE_TOGETHER_MAX as usize
            {
                messages.push(self.next_message(random, planned(done.messages)));
                done.messages += 1;
            }
            publisher.publish(&messages, By::Pipeline)?;
            self.messages = messages;
        }
        publisher.collect(0)?;
        done.late_groups += u32::from(!self.board.wait_delivered(self.expected, self.patience()));
        Ok(done)
    }

    fn speak(&mut self, turns: u32) -> Result<Done> {
        let (members, channels) = (self.plan.members, self.numbers.len());
        let last = self.numbers[0];
        if !self.plan.readers.is_multiple_of(members) || self.numbers.iter().any(|&number| number != last) {
            bail!("to speak in turn, all channels must have as many readers, and as many messages so far");
        }
        let mut done = Done::default();
        for turn in 1..=turns {
            let number = last + turn;
            self.numbers.fill(number);
            self.expected += self.plan.readers as u64;
            self.board.command(Command::Speak { member: number as usize % members, number })?;
            done.messages += channels as u32;
            if !self.board.wait_delivered(self.expected, self.patience()) {
                done.late_groups += 1;
                bail_if_hopeless(done.late_groups)?;
            }
        }
        Ok(done)
    }

    fn post(&mut self, ms: u64, connections: usize, batch: u32) -> Result<Done> {
        self.posted.resize(connections.max(self.posted.len()), 0);
        let posted = poster::run(self.api, self.target, &mut self.posted[..connections], ms, batch)?;
        Ok(Done {
            messages: posted.messages,
            lost: posted.lost,
            answers: posted.answers,
            latency: Some(stats::latency(&posted.latency)),
            wall_ns: Some(posted.wall_ns),
            ..Done::default()
        })
    }

    fn poll(&mut self, ms: u64, per_s: f64) -> Result<Done> {
        self.board.set_polling(true);
        self.board.command(Command::Poll)?;
        // A server of files has nothing that changes.
        let done = if per_s > 0.0 && self.api.publish.is_some() {
            self.pace(ms, per_s, false)
        } else {
            thread::sleep(Duration::from_millis(ms));
            Ok(Done::default())
        };
        self.board.set_polling(false);
        thread::sleep(POLLS_SETTLE);
        done
    }

    fn stall(&mut self, part: usize) -> Result<Done> {
        self.stalled = Some(part.max(1));
        self.board.command(Command::Stall(part.max(1)))?;
        thread::sleep(POLLS_SETTLE);
        Ok(Done::default())
    }

    fn flow(&mut self, ms: u64) -> Result<Done> {
        self.stalled = None;
        self.expected += std::mem::take(&mut self.owed);
        self.board.command(Command::Flow)?;
        let until = Instant::now() + Duration::from_millis(ms);
        let quiet = Duration::from_secs(1);
        let mut before = self.board.delivered();
        // Readers that were told to go will not have all: what counts is that nothing more comes.
        while Instant::now() < until && !self.board.wait_delivered(self.expected, quiet) {
            let now = self.board.delivered();
            if now == before {
                break;
            }
            before = now;
        }
        Ok(Done::default())
    }

    fn end(&mut self, ms: u64) -> Done {
        let until = Instant::now() + Duration::from_millis(ms);
        while self.board.open() > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        Done::default()
    }

    fn move_away(&mut self, ms: u64) -> Result<Done> {
        let Some((second, _)) = &self.plan.second else { bail!("no second server was named (--second)") };
        let cursor = head_cursor(self.plan, &channel_name(self.plan.first_channel))?;
        self.board.command(Command::Move { cursor, began_ns: net::now_ns() })?;
        let until = Instant::now() + Duration::from_millis(ms);
        let (mut left, mut back) = (0, 0);
        while back < self.plan.readers && Instant::now() < until {
            if self.board.failed() {
                let why = self.board.refusal().unwrap_or_default();
                bail!("a reader thread failed on its way to {second}: {why}");
            }
            thread::sleep(Duration::from_millis(20));
            (left, back) = self.board.moved();
        }
        if back < self.plan.readers {
            eprintln!("load: {left} of {} readers were ended, {back} came back", self.plan.readers);
        }
        // What each is told when it is back comes within a moment.
        thread::sleep(POLLS_SETTLE);
        Ok(Done::default())
    }

    fn come_back(&mut self) -> Result<Done> {
        let until = Instant::now() + RETURN_PATIENCE;
        if self.board.open() > 0 {
            bail!("{} readers are still open: nothing was restarted", self.board.open());
        }
        self.board.command(Command::Return)?;
        while self.board.open() < self.plan.readers {
            if self.board.failed() || Instant::now() > until {
                let why = self.board.refusal().unwrap_or_else(|| refusal::no_answer(RETURN_PATIENCE));
                bail!("{} of {} readers came back; last reason: {why}", self.board.open(), self.plan.readers);
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(Done::default())
    }
}

/// One channel's head. Readers that have all its messages are there.
fn head_cursor(plan: &Plan, channel: &[u8]) -> Result<Cursor> {
    let channel = std::str::from_utf8(channel)?;
    let request = http::get(&plan.dest.to_string(), &format!("/channels/{channel}?limit=0"), &[]);
    let mut stream = TcpStream::connect(plan.dest)?;
    stream.set_read_timeout(Some(plan.patience))?;
    stream.write_all(&request)?;
    let (mut got, mut part) = (Vec::new(), [0; 4_096]);
    loop {
        let bytes = stream.read(&mut part)?;
        got.extend_from_slice(&part[..bytes]);
        if let Some(answer) = http::parse_answer(&got) {
            let cursor = transport::cursor_in(&got[answer.head_bytes..answer.used]).and_then(Cursor::new);
            return cursor.with_context(|| format!("no cursor: {}", String::from_utf8_lossy(&got)));
        }
        if bytes == 0 {
            bail!("{} gave no answer", plan.dest);
        }
    }
}

/// One late group may be a machine that was held up; many are a server that does not deliver.
fn bail_if_hopeless(late_groups: u32) -> Result<()> {
    if late_groups >= 3 {
        bail!("{late_groups} groups did not reach all readers in time");
    }
    Ok(())
}
