//! All that one worker knows: its connections, feeds and channels, and what is to be done next.
//! Everything here is synchronous and belongs to one thread. What needs a task is put on `spawns`, which the worker
//! runs when nothing is borrowed.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use foldhash::fast::RandomState;
use rustls::ServerConfig;

use crate::domain::auth::Bearer;
use crate::domain::channel::Name;
use crate::domain::feed::{Arrival, Feed, FeedBounds, Link};
use crate::domain::history::{Bounds, PageMax};
use crate::domain::home::{Home, HomeBounds, PublishRefusal, Published, WorkerIndex};
use crate::domain::message::Message;

use super::access::AccessLog;
use super::budget::Ledger;
use super::clock::{Clock, ticks};
use super::entry::{ConnId, Entry, HeldPoll};
use super::framing::frame;
use super::holder::Last;
use super::io::{Epoll, EventFd};
use super::mail::{Answer, Ask, Mail};
use super::mailbox::Sender;
use super::memory::Memory;
use super::peer::Peer;
use super::phase::Progress;
use super::quotas::{Begins, Limited, Quotas};
use super::report::Reports;
use super::sendring::SendRing;
use super::settings::{Settings, SlowPolicy};
use super::share::Share;
use super::slots::ChunkedSlab;
use super::stats::{Places, Stats};
use super::tls::Tls;
use super::tokens::Waiting;
use super::trace::{Watch, What, Who};
use super::wheel::Wheel;

/// What a worker asks for when it joins a channel, and one page of history.
pub const PAGE: PageMax = PageMax { messages: 64, bytes: 64 * 1024 };
/// A feed stays this long for polls and for readers that come back.
pub const LEASE_MS: u64 = 5_000;

/// What all workers share; nothing of it changes but counts, and what is loaded anew.
pub struct Node {
    pub settings: Settings,
    /// What TLS connections are served with, from their handshake on.
    pub tls: ArcSwapOption<ServerConfig>,
    pub clock: Clock,
    pub mailboxes: Vec<Sender<Mail>>,
    pub stats: Vec<Stats>,
    pub places: Places,
    pub progress: Progress,
    /// Workers that take connections.
    pub listening: AtomicUsize,
    /// Where requests and ends of connections are told, if anywhere.
    pub access: Option<AccessLog>,
    pub memory: Memory,
    /// `None`: nothing is configured.
    pub quotas: Option<Arc<Quotas>>,
    /// Workers that have told all their clients to leave.
    pub drained: AtomicUsize,
    /// Wakes the main thread.
    pub main: EventFd,
    /// To the operator's thread.
    pub reports: Reports,
    /// Keeps connection ids unguessable: nothing that anybody is told is made of it but their seals.
    pub secret: [u8; 20],
    /// Where incarnations begin, which cursors show.
    pub first_incarnation: u64,
    /// Of hashes that choose a channel's home.
    pub home_seed: RandomState,
}

impl Node {
    /// The worker on which a channel lives.
    pub fn home_of(&self, name: &Name) -> WorkerIndex {
        use std::hash::BuildHasher;
        (self.home_seed.hash_one(name.as_str()) % self.mailboxes.len() as u64) as WorkerIndex
    }

    /// Has one worker do something with its state, soon: see [`on_each_worker`](Self::on_each_worker).
    pub fn on_worker(&self, worker: WorkerIndex, errand: impl FnOnce(&mut State) + Send + 'static) {
        let Some(mailbox) = self.mailboxes.get(usize::from(worker)) else { return };
        let mail = Mail::Do(Box::new(errand));
        let bytes = mail.cost_bytes();
        mailbox.send_reserved(mail, bytes);
    }

    /// Sends a letter that a worker must have.
    pub fn post(&self, worker: usize, mail: Mail) {
        let bytes = mail.cost_bytes();
        self.mailboxes[worker].send_reserved(mail, bytes);
    }

    /// A worker takes no more connections.
    pub fn tell_closed_to_connections(&self) {
        self.listening.fetch_sub(1, Ordering::AcqRel);
        self.main.write();
    }

    /// Has every worker do something with its state, soon. For what an operator asks, seldom: it holds up the worker.
    pub fn on_each_worker<E: FnOnce(&mut State) + Send + 'static>(
        &self,
        mut errand: impl FnMut(WorkerIndex) -> E,
    ) {
        for index in 0..self.mailboxes.len() {
            let index = index as WorkerIndex;
            self.on_worker(index, errand(index));
        }
    }

    /// A client begins to read `channels` on a socket of which it is known whose it is.
    ///
    /// # Errors
    /// [`Limited`]
    pub fn begin_reading(&self, socket: &mut Socket, channels: usize, begins: Begins) -> Result<(), Limited> {
        let Some(quotas) = &self.quotas else { return Ok(()) };
        let Socket { share, peer, bearer, .. } = socket;
        quotas.begin_reading(share, peer, bearer.as_deref(), channels, begins)
    }

    pub fn policy_for(&self, name: &Name) -> SlowPolicy {
        let slow = &self.settings.slow;
        let rule = slow.rules.iter().find(|(pattern, _)| pattern.matches(name.as_str()));
        rule.map_or(slow.policy, |(_, policy)| *policy)
    }

    pub fn feed_bounds(&self) -> FeedBounds {
        FeedBounds { bytes: self.settings.feed.bytes, history: self.channel_bounds() }
    }

    fn channel_bounds(&self) -> Bounds {
        let history = &self.settings.history;
        Bounds { messages: history.messages, bytes: history.bytes, age_ms: history.age.as_millis() as u64 }
    }
}

/// A place for one answer, and who waits for it.
#[derive(Default)]
pub struct Reply {
    pub answer: Option<Answer>,
    pub waker: Option<Waker>,
}

/// What an answer that is on its way is for.
pub enum Pending {
    Task(Rc<RefCell<Reply>>),
    /// The next page for a reader that catches up.
    Page {
        conn: ConnId,
        feed: u32,
    },
    /// A publish of a held connection: the answer to its request `at` of those that wait.
    Publish {
        conn: ConnId,
        at: u32,
        name: Name,
    },
    /// A feed that joins.
    Join(Name),
}

/// Where a reader begins in a feed of this worker.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub feed: u32,
    pub generation: u32,
    pub incarnation: u64,
    /// The position just before the first message that follows.
    pub after: u64,
    pub gap: bool,
}

impl Place {
    pub fn cursor(&self) -> crate::domain::cursor::Cursor {
        crate::domain::cursor::Cursor { incarnation: self.incarnation, seq: self.after }
    }
}

/// A socket on its way between the holder and a task, with what is known of it.
#[derive(Debug)]
pub struct Socket {
    pub fd: RawFd,
    /// In the holder's epoll set, disarmed.
    pub is_in_epoll: bool,
    pub opened_tick: u32,
    pub sent_messages: u32,
    pub sent_bytes: u64,
    pub peer: Peer,
    /// Who the connection's last request, or the stream that it is, was found to be of.
    pub bearer: Option<Rc<Bearer>>,
    pub tls: Option<Box<Tls>>,
    /// What it holds of the quotas.
    pub share: Option<Box<Share>>,
}

impl Socket {
    /// The same, out of the hands of something that may not be taken apart.
    pub fn take(&mut self) -> Self {
        let Self { fd, is_in_epoll, opened_tick, sent_messages, sent_bytes, peer, .. } = *self;
        let (bearer, tls, share) = (self.bearer.take(), self.tls.take(), self.share.take());
        Self { fd, is_in_epoll, opened_tick, sent_messages, sent_bytes, peer, bearer, tls, share }
    }
}

/// What a frame of a WebSocket client asks for that cannot be done at once.
pub enum Spawn {
    /// Bytes came on a held connection between requests.
    Request { conn: ConnId, input: Vec<u8> },
    /// A publish of a held connection was answered by the channel's home.
    Published { conn: ConnId, at: u32, name: Name, result: Result<Published, PublishRefusal> },
    /// The same as `Request`, for a task.
    Serve { socket: Socket, input: Vec<u8> },
    /// A held poll that the feed cannot answer.
    Repoll {
        socket: Socket,
        names: Vec<Name>,
        cursors: Vec<crate::domain::cursor::Cursor>,
        held: Box<HeldPoll>,
    },
    /// Frames came: to be acted on in order. `raw`: the channel that they are published to; `None`: `pushline.v1`.
    Frames { conn: ConnId, raw: Option<Name>, frames: Vec<Frame>, last: Option<Last> },
}

/// One frame of a WebSocket client to act on.
#[derive(Debug)]
pub enum Frame {
    Text(String),
    Binary(Vec<u8>),
}

impl Frame {
    /// Bytes of its payload.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A drain under way.
#[derive(Debug, Clone, Copy)]
pub struct Draining {
    pub begun_tick: u32,
    pub window_ticks: u32,
}

/// Long work: does a slice of itself, about a millisecond of work, and says whether there is more.
type Chore = Box<dyn FnMut(&mut State) -> bool>;

pub struct State {
    pub node: Arc<Node>,
    pub index: WorkerIndex,
    pub conns: ChunkedSlab<Entry>,
    pub epoll: Epoll,
    pub wheel: Wheel,
    pub feeds: ChunkedSlab<Feed>,
    pub feeds_by_name: HashMap<Name, u32, RandomState>,
    pub home: Home,
    pub pending: slab::Slab<Pending>,
    /// What feeds, connections and tasks hold.
    pub(super) ledger: Ledger,
    /// Until then newcomers may have waited for long.
    pub(super) crowd_until_tick: u32,
    /// Feeds with something to send.
    pub dirty: VecDeque<u32>,
    pub catchups: VecDeque<(ConnId, u32)>,
    pub catchups_later: Vec<(ConnId, u32)>,
    /// Long works of which a slice is done at a time, between fan-out and catching up.
    chores: VecDeque<Chore>,
    /// The tick until which the clock's task sleeps.
    pub naps_until: u32,
    /// It must wake before.
    pub calls_clock: bool,
    pub swept_tick: u32,
    pub spawns: Vec<Spawn>,
    pub ring: SendRing,
    pub pass: super::fanout::Passes,
    pub scratch: Vec<u8>,
    /// Handshakes that can go on.
    pub handshakes: VecDeque<ConnId>,
    /// Room for bytes that are encrypted for one connection, and for what one sent, decrypted.
    pub sealed: Vec<u8>,
    pub opened: Vec<u8>,
    pub draining: Option<Draining>,
    /// Open connections, held or in tasks.
    pub connections: usize,
    /// Connections that only wait for the client's close.
    pub lingering: usize,
    /// The slots of connections whose socket takes no more, and since which tick.
    pub blocked: HashMap<u32, u32, RandomState>,
    pub poll_body: Option<super::poll::Body>,
    /// By slot: connections whose token is still to come.
    pub(super) waiting: HashMap<u32, Box<Waiting>, RandomState>,
    pub sweep_feed_at: u32,
    /// Messages placed here for feeds here.
    arrived: Vec<Arc<Message>>,
    /// The node's, without its contended count.
    pub(super) access: Option<Rc<AccessLog>>,
    /// Traces under way.
    pub(super) watches: Vec<Watch>,
    random: u64,
}

impl State {
    pub fn new(node: Arc<Node>, index: WorkerIndex, ring: SendRing, epoll: Epoll, seed: u64) -> Self {
        let workers = node.mailboxes.len();
        let settings = &node.settings;
        let bounds = HomeBounds {
            channel: node.channel_bounds(),
            // Memory is looked at before anything is kept.
            bytes: 0,
            channels: (settings.limits.channels / workers).max(1),
            keys: (settings.limits.idempotency_keys / workers).max(1),
        };
        let first = node.first_incarnation.wrapping_add(u64::from(index));
        Self {
            home: Home::new(bounds, first, workers as u64),
            wheel: Wheel::new(u64::from(node.clock.tick())),
            access: node.access.clone().map(Rc::new),
            watches: Vec::new(),
            node,
            index,
            conns: ChunkedSlab::new(),
            epoll,
            feeds: ChunkedSlab::new(),
            feeds_by_name: HashMap::default(),
            pending: slab::Slab::new(),
            ledger: Ledger::default(),
            crowd_until_tick: 0,
            dirty: VecDeque::new(),
            catchups: VecDeque::new(),
            catchups_later: Vec::new(),
            chores: VecDeque::new(),
            naps_until: 0,
            calls_clock: false,
            swept_tick: 0,
            spawns: Vec::new(),
            ring,
            pass: super::fanout::Passes::default(),
            scratch: Vec::new(),
            handshakes: VecDeque::new(),
            sealed: Vec::new(),
            opened: Vec::new(),
            draining: None,
            connections: 0,
            lingering: 0,
            blocked: HashMap::default(),
            poll_body: None,
            waiting: HashMap::default(),
            sweep_feed_at: 0,
            arrived: Vec::new(),
            random: seed | 1,
        }
    }

    pub fn stats(&self) -> &Stats {
        &self.node.stats[usize::from(self.index)]
    }

    pub fn tick(&self) -> u32 {
        self.node.clock.tick()
    }

    /// A number below `end`, for jitter (xorshift; not for secrets).
    pub fn random_below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end.max(1)
    }

    /// Does, as their home, what `from` asks of this worker's channels.
    pub fn answer(&mut self, from: WorkerIndex, ask: Ask) -> Answer {
        let now_ms = self.node.clock.now_ms();
        self.see_ask();
        if let Ask::Publish { draft, .. } | Ask::PublishReserved { draft, .. } = &ask {
            self.make_room(draft.cost_bytes());
        }
        let traced = if self.is_traced() { traced_of(&ask) } else { None };
        let (index, node, arrived) = (self.index, &self.node, &mut self.arrived);
        // The exact clock is read where somebody reads the channel: once for all its readers.
        let mut placed_us = 0;
        let deliver = |worker: WorkerIndex, message: &Arc<Message>| {
            if placed_us == 0 {
                placed_us = node.clock.us(Instant::now());
            }
            if worker == index {
                arrived.push(Arc::clone(message));
                return true;
            }
            let mailbox = &node.mailboxes[usize::from(worker)];
            let mail = Mail::Live(Arc::clone(message), placed_us);
            let bytes = mail.cost_bytes();
            if mailbox.try_send(mail, bytes).is_ok() {
                return true;
            }
            let lost = Mail::Lost(message.channel.clone());
            let bytes = lost.cost_bytes();
            mailbox.send_reserved(lost, bytes);
            false
        };
        let answer = match ask {
            Ask::Publish { name, draft, key } => {
                let bytes = draft.body.bytes().len();
                let result = self.home.publish(&name, draft, key.as_deref(), now_ms, deliver);
                count_placed(&node.stats[usize::from(index)], &result, bytes);
                Answer::Published(result)
            }
            Ask::PublishReserved { name, draft, key } => {
                let bytes = draft.body.bytes().len();
                let result = self.home.publish_reserved(&name, draft, &key, now_ms, deliver);
                count_placed(&node.stats[usize::from(index)], &result, bytes);
                Answer::Published(result)
            }
            Ask::Reserve { name, key } => Answer::Known(self.home.reserve(&name, &key, now_ms)),
            Ask::Release { name, key } => {
                self.home.release(&name, &key);
                Answer::Done
            }
            Ask::Delete { name } => {
                self.home.delete(&name, now_ms, deliver);
                Answer::Done
            }
            Ask::Read { name, from, max } => Answer::Page(Some(self.home.read(&name, from, max, now_ms))),
            Ask::Claim { name } => Answer::Claimed(self.home.claim(&name, now_ms)),
            Ask::Join { name, max } => Answer::Page(self.home.join(&name, from, max, now_ms)),
            Ask::Leave { name } => {
                self.home.leave(&name, from, now_ms);
                Answer::Done
            }
        };
        if let Some((name, bytes)) = traced {
            self.trace_answer(&name, bytes, &answer);
        }
        if placed_us > 0 {
            for message in std::mem::take(&mut self.arrived) {
                self.on_live(message, placed_us);
            }
        }
        answer
    }

    /// What came of an act on a channel that lives here, for who watches the channel.
    fn trace_answer(&self, name: &Name, bytes: u64, answer: &Answer) {
        self.trace_in(Who::default(), name, || match answer {
            Answer::Published(Ok(published)) => {
                What::Published { cursor: published.cursor, bytes, replayed: published.replayed }
            }
            Answer::Published(Err(refusal)) => What::Denied { why: format!("{refusal:?}").into() },
            _ => What::Deleted,
        });
    }

    /// Sends a request to another worker.
    ///
    /// # Errors
    /// The request did not fit into its mailbox: this node is overloaded.
    pub fn ask(&mut self, home: WorkerIndex, ask: Ask, pending: Pending) -> Result<(), Overloaded> {
        let token = self.pending.insert(pending) as u32;
        let mail = Mail::Ask { from: self.index, token, ask };
        let bytes = mail.cost_bytes();
        self.node.mailboxes[usize::from(home)].try_send(mail, bytes).map_err(|_| {
            self.pending.remove(token as usize);
            Overloaded
        })
    }

    /// Sends a request that always has room: what makes whole again, or completes what is half done.
    pub fn ask_surely(&mut self, home: WorkerIndex, ask: Ask, pending: Pending) {
        let token = self.pending.insert(pending) as u32;
        let mail = Mail::Ask { from: self.index, token, ask };
        let bytes = mail.cost_bytes();
        self.node.mailboxes[usize::from(home)].send_reserved(mail, bytes);
    }

    /// Begins long work, for what operators ask: done a slice at a time, so that nobody waits for all of it.
    pub fn begin_chore(&mut self, chore: impl FnMut(&mut Self) -> bool + 'static) {
        self.chores.push_back(Box::new(chore));
    }

    pub fn has_chores(&self) -> bool {
        !self.chores.is_empty()
    }

    /// Does a slice of one. False when there is none.
    pub fn do_chore(&mut self) -> bool {
        let Some(mut chore) = self.chores.pop_front() else { return false };
        if chore(self) {
            self.chores.push_back(chore);
        }
        true
    }

    /// Has another worker do something with its state; what comes of it is for `pending`.
    pub fn send_errand<T: Send + 'static>(
        &mut self,
        to: WorkerIndex,
        errand: impl FnOnce(&mut State) -> T + Send + 'static,
        pending: Pending,
    ) {
        let (from, token) = (self.index, self.pending.insert(pending) as u32);
        let mail = Mail::Do(Box::new(move |state| {
            let answer = Answer::Errand(Box::new(errand(state)));
            let mail = Mail::Answer { token, answer };
            let bytes = mail.cost_bytes();
            state.node.mailboxes[usize::from(from)].send_reserved(mail, bytes);
        }));
        let bytes = mail.cost_bytes();
        self.node.mailboxes[usize::from(to)].send_reserved(mail, bytes);
    }

    pub fn on_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Ask { from, token, ask } => {
                let is_leave = matches!(ask, Ask::Leave { .. });
                let answer = self.answer(from, ask);
                if !is_leave {
                    let mail = Mail::Answer { token, answer };
                    let bytes = mail.cost_bytes();
                    self.node.mailboxes[usize::from(from)].send_reserved(mail, bytes);
                }
            }
            Mail::Answer { token, answer } => self.on_answer(token, answer),
            Mail::Live(message, placed_us) => self.on_live(message, placed_us),
            Mail::Lost(name) => {
                if let Some(&feed) = self.feeds_by_name.get(&name)
                    && let Some(feed) = self.feeds.get_mut(feed)
                {
                    feed.link = Link::Joining;
                    self.join(name);
                }
            }
            // The worker's own: its listeners are not of the state.
            Mail::Drain { .. } | Mail::CloseListeners | Mail::Unsteer => {}
            Mail::Do(errand) => errand(self),
        }
    }

    fn on_answer(&mut self, token: u32, answer: Answer) {
        let Some(pending) = self.pending.try_remove(token as usize) else { return };
        match pending {
            Pending::Task(reply) => {
                let mut reply = reply.borrow_mut();
                reply.answer = Some(answer);
                if let Some(waker) = reply.waker.take() {
                    waker.wake();
                }
            }
            Pending::Page { conn, feed } => {
                if let Answer::Page(page) = answer {
                    self.on_page(conn, feed, page);
                }
            }
            Pending::Publish { conn, at, name } => {
                if let Answer::Published(result) = answer {
                    self.on_published(conn, at, name, result);
                }
            }
            Pending::Join(name) => {
                if let Answer::Page(page) = answer {
                    self.on_joined(&name, page);
                }
            }
        }
    }

    /// The channel's feed here; made, and asked for at its home, if there is none.
    pub fn feed(&mut self, name: &Name) -> u32 {
        let leased_until_ms = self.node.clock.now_ms() + LEASE_MS;
        if let Some(&feed) = self.feeds_by_name.get(name) {
            if let Some(feed) = self.feeds.get_mut(feed) {
                feed.leased_until_ms = feed.leased_until_ms.max(leased_until_ms);
            }
            return feed;
        }
        let mut feed = Feed::new(name.clone());
        feed.leased_until_ms = leased_until_ms;
        let (slot, _) = self.feeds.insert(feed);
        self.feeds_by_name.insert(name.clone(), slot);
        self.join(name.clone());
        slot
    }

    /// A feed for a channel that lives elsewhere; one that lives here is read where it is.
    pub fn feed_if_remote(&mut self, name: &Name) {
        if self.node.home_of(name) != self.index {
            self.feed(name);
        }
    }

    /// The channel's head, if this worker knows it without asking.
    pub fn known_head(&mut self, name: &Name) -> Option<crate::domain::cursor::Cursor> {
        if self.node.home_of(name) == self.index {
            return self.home.head(name, self.node.clock.now_ms());
        }
        let feed = self.feeds.get(*self.feeds_by_name.get(name)?)?;
        (feed.link == Link::Live).then(|| feed.head())
    }

    fn join(&mut self, name: Name) {
        let home = self.node.home_of(&name);
        let ask = Ask::Join { name: name.clone(), max: PAGE };
        if home == self.index {
            if let Answer::Page(page) = self.answer(self.index, ask) {
                self.on_joined(&name, page);
            }
            return;
        }
        self.ask_surely(home, ask, Pending::Join(name));
    }

    fn on_joined(&mut self, name: &Name, page: Option<crate::domain::history::Page>) {
        let Some(&slot) = self.feeds_by_name.get(name) else { return };
        let bounds = self.feed_bounds();
        let Some(feed) = self.feeds.get_mut(slot) else { return };
        match page {
            Some(page) => {
                feed.on_joined(page, bounds, &mut frame);
                self.weigh_feed(slot);
                self.touch(slot);
            }
            None => {
                // No room for the channel: whoever waits for the feed finds it gone.
                self.drop_feed(slot);
            }
        }
    }

    fn on_live(&mut self, message: Arc<Message>, placed_us: u64) {
        let Some(&slot) = self.feeds_by_name.get(&message.channel) else { return };
        let bounds = self.feed_bounds();
        let Some(feed) = self.feeds.get_mut(slot) else { return };
        let name = message.channel.clone();
        match feed.on_message(message, bounds, &mut frame) {
            Arrival::Placed => {
                if feed.placed_us == 0 && feed.has_readers() {
                    feed.placed_us = placed_us;
                }
                self.weigh_feed(slot);
                self.touch(slot);
            }
            Arrival::Ignored => {}
            Arrival::Hole => self.join(name),
        }
    }

    /// Puts a feed into the fan-out's queue if anybody reads it.
    pub fn touch(&mut self, slot: u32) {
        if let Some(feed) = self.feeds.get_mut(slot)
            && !feed.queued
            && feed.has_readers()
        {
            feed.queued = true;
            self.dirty.push_back(slot);
        }
    }

    /// Lets go of a feed that nobody reads, and tells the channel's home.
    pub fn drop_feed(&mut self, slot: u32) {
        let Some(feed) = self.feeds.remove(slot) else { return };
        assert!(!feed.has_readers(), "a feed with readers was dropped");
        self.forget_feed(feed.counted_bytes);
        self.feeds_by_name.remove(&feed.name);
        let home = self.node.home_of(&feed.name);
        let ask = Ask::Leave { name: feed.name };
        if home == self.index {
            self.answer(self.index, ask);
        } else {
            let mail = Mail::Ask { from: self.index, token: u32::MAX, ask };
            let bytes = mail.cost_bytes();
            self.node.mailboxes[usize::from(home)].send_reserved(mail, bytes);
        }
    }

    pub fn heartbeat_ticks(&self) -> (u32, u32) {
        let heartbeat = &self.node.settings.heartbeat;
        (ticks(heartbeat.interval), ticks(heartbeat.timeout))
    }
}

fn count_placed(stats: &Stats, result: &Result<Published, PublishRefusal>, bytes: usize) {
    if result.as_ref().is_ok_and(|published| !published.replayed) {
        stats.placed.add(1);
        stats.placed_bytes.add(bytes as u64);
    }
}

/// The channel and the bytes of what traces tell of.
fn traced_of(ask: &Ask) -> Option<(Name, u64)> {
    match ask {
        Ask::Publish { name, draft, .. } | Ask::PublishReserved { name, draft, .. } => {
            Some((name.clone(), draft.body.bytes().len() as u64))
        }
        Ask::Delete { name } => Some((name.clone(), 0)),
        Ask::Reserve { .. }
        | Ask::Release { .. }
        | Ask::Read { .. }
        | Ask::Claim { .. }
        | Ask::Join { .. }
        | Ask::Leave { .. } => None,
    }
}

/// A worker's mailbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overloaded;
