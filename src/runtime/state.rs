//! All that one worker knows: its connections, feeds and channels, and what is to be done next.
//! Everything here is synchronous and belongs to one thread. What needs a task is put on `spawns`, which the worker
//! runs when nothing is borrowed.

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::domain::channel::Name;
use crate::domain::feed::Feed;
use crate::domain::home::{Home, HomeBounds, PublishRefusal, Published, WorkerIndex};
use crate::domain::message::Message;

use super::access::AccessLog;
use super::admission::Crowd;
use super::budget::Ledger;
use super::caller::Caller;
use super::clock::ticks;
use super::entry::{ConnId, Entry, HeldPoll};
use super::holder::Last;
use super::io::Epoll;
use super::node::Node;
use super::peer::Peer;
use super::post::Pending;
use super::running::Running;
use super::sendring::SendRing;
use super::share::Share;
use super::shortages::Shortages;
use super::slots::ChunkedSlab;
use super::stats::Stats;
use super::tasks::Tasks;
use super::tls::Tls;
use super::tokens::Waiting;
use super::trace::Watch;
use super::wheel::Wheel;

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
    pub bearer: Option<Caller>,
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

/// What a held connection needs once nothing is borrowed any more: that the edge acts on what came, or a task of its own.
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
    pub(super) crowd: Crowd,
    pub(super) running: Running,
    pub(super) shortages: Shortages,
    /// That wait for their clients.
    pub tasks: Tasks,
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
    pub poll_body: Option<super::poll::Answered>,
    /// By slot: connections whose token is still to come.
    pub(super) waiting: HashMap<u32, Box<Waiting>, RandomState>,
    pub sweep_feed_at: u32,
    /// Messages placed here for feeds here.
    pub(super) arrived: Vec<Arc<Message>>,
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
            crowd: Crowd::default(),
            running: Running::default(),
            shortages: Shortages::default(),
            tasks: Tasks::default(),
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

    pub fn heartbeat_ticks(&self) -> (u32, u32) {
        let heartbeat = &self.node.settings.heartbeat;
        (ticks(heartbeat.interval), ticks(heartbeat.timeout))
    }
}
