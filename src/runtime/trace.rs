//! Traces: what happens to a client or a channel, told live to an operator who asked.
//! Owns what is watched on this worker, the list of events, and the bounded queue to whoever shows them. Off costs one
//! branch where something happens, and nothing for each reader of a fan-out pass. On is bounded: so many traces, so many
//! events in each queue; what does not fit is counted and told. Never holds a payload or a token.
//!
//! The queue wakes nobody: a wake-up would write to a descriptor of another thread's table (`files`). Who shows events
//! looks for them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use ipnet::IpNet;

use crate::domain::auth::Proof;
use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::home::WorkerIndex;
use crate::domain::lane::Standing;

use super::close::{Reason, Transport};
use super::entry::{ConnId, Entry};
use super::node::Node;
use super::peer::Peer;
use super::quotas::Limited;
use super::state::{Socket, State};

/// Events that wait to be shown, of one trace.
const EVENTS_MAX: usize = 4_096;

/// What a trace is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    Connection(WorkerIndex, ConnId),
    Subject(Box<str>),
    Channel(Name),
    Network(IpNet),
    /// Clients that come by a unix socket have no address.
    Unix,
}

/// Who something happens to, as far as it is known there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Who<'a> {
    pub conn: Option<ConnId>,
    pub peer: Option<Peer>,
    pub subject: Option<&'a str>,
    pub transport: Option<Transport>,
}

impl<'a> Who<'a> {
    pub fn of_peer(peer: Peer) -> Self {
        Self { peer: Some(peer), ..Self::default() }
    }

    pub fn of_socket(socket: &'a Socket, transport: Transport) -> Self {
        let subject = socket.bearer.as_ref().and_then(|bearer| bearer.subject.as_deref());
        Self { conn: None, peer: Some(socket.peer), subject, transport: Some(transport) }
    }

    pub fn of_entry(conn: ConnId, entry: &'a Entry) -> Self {
        let subject = entry.bearer.as_ref().and_then(|bearer| bearer.subject.as_deref());
        Self { conn: Some(conn), peer: Some(entry.peer), subject, transport: Some(entry.kind.transport()) }
    }
}

/// What happens. Cursors are positions: the channel's own, just after what is spoken of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The connection that is watched is here; it reads so many channels.
    Found {
        subscriptions: u32,
        open_ms: u64,
    },
    /// The connection that is watched is not: it has ended, or never was.
    Absent,
    Accepted,
    /// Closed when it came.
    Refused {
        reason: Reason,
    },
    Request {
        method: Option<Box<str>>,
        target: Option<Box<str>>,
    },
    Authenticated {
        proof: Proof,
    },
    /// Why somebody may not, exactly.
    Denied {
        why: Box<str>,
    },
    Answered {
        status: u16,
        bytes: u64,
        duration_us: u64,
    },
    Subscribed {
        cursor: Cursor,
        behind: u64,
        gap: bool,
    },
    /// `because`: its connection ended.
    Unsubscribed {
        because: Option<Reason>,
    },
    /// To one connection.
    Sent {
        cursor: Cursor,
        messages: u32,
        bytes: u64,
    },
    /// To so many readers of a channel that is watched, in one batch.
    SentToReaders {
        cursor: Cursor,
        readers: u32,
        messages: u32,
        bytes: u64,
    },
    /// The socket takes no more for now.
    Blocked {
        owed_bytes: u64,
    },
    /// It takes more again.
    Unblocked,
    /// The feed no longer holds its position: it goes on from history.
    Lagged {
        cursor: Cursor,
        behind: u64,
    },
    /// Level with the feed again.
    CaughtUp {
        cursor: Cursor,
    },
    /// It was told that messages before this are lost to it.
    Gap {
        cursor: Cursor,
    },
    Pinged,
    /// It was heard after a ping.
    Ponged,
    Published {
        cursor: Cursor,
        bytes: u64,
        replayed: bool,
    },
    Deleted,
    /// It showed a new token.
    Renewed {
        expires_s: Option<u64>,
    },
    /// It is told to go, and why.
    Closing {
        reason: Reason,
    },
    Closed {
        reason: Reason,
        messages: u32,
        bytes: u64,
        duration_ms: u64,
    },
}

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    pub at_ms: u64,
    pub worker: WorkerIndex,
    pub conn: Option<ConnId>,
    pub peer: Option<Peer>,
    pub subject: Option<Box<str>>,
    pub transport: Option<Transport>,
    pub channel: Option<Name>,
    pub what: What,
}

/// What one reader was sent: of a feed, up to a position.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub slot: u32,
    pub feed: u32,
    pub upto: u64,
    pub messages: u32,
    pub bytes: u64,
}

/// A trace, as workers have it.
#[derive(Debug, Clone)]
pub struct Watch {
    id: u64,
    by: Arc<[By]>,
    events: Sender<Box<Event>>,
    dropped: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

/// A trace, as whoever shows it has it. It ends when this is dropped.
pub struct Trace {
    node: Arc<Node>,
    id: u64,
    events: Receiver<Box<Event>>,
    dropped: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Trace {
    /// A trace of whatever fits one of `by`, and what each worker is to be given ([`State::watch`]).
    pub fn new(node: &Arc<Node>, by: Vec<By>) -> (Self, Watch) {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let (sender, events) = bounded(EVENTS_MAX);
        let watch = Watch {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            by: by.into(),
            events: sender,
            dropped: Arc::default(),
            is_over: Arc::default(),
        };
        let (id, dropped, is_over) = (watch.id, Arc::clone(&watch.dropped), Arc::clone(&watch.is_over));
        (Self { node: Arc::clone(node), id, events, dropped, is_over }, watch)
    }

    /// The next event, if there is one now.
    pub fn next(&self) -> Option<Box<Event>> {
        self.events.try_recv().ok()
    }

    /// Events that did not fit since this was last asked.
    pub fn dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let id = self.id;
        self.node.on_each_worker(|_| move |state: &mut State| state.unwatch(id));
    }
}

impl Watch {
    /// Whether this is about what the trace is of. `channels`: whether a channel is one that it is about.
    fn fits(&self, worker: WorkerIndex, who: &Who<'_>, channels: &dyn Fn(&Name) -> bool) -> bool {
        self.by.iter().any(|by| match by {
            By::Connection(of, conn) => *of == worker && who.conn == Some(*conn),
            By::Subject(subject) => who.subject == Some(&**subject),
            By::Channel(name) => channels(name),
            By::Network(network) => who.peer.and_then(|peer| peer.ip()).is_some_and(|ip| holds(network, ip)),
            By::Unix => who.peer.is_some_and(|peer| peer.is_unix),
        })
    }

    fn tell(&self, event: &Event) {
        if self.events.try_send(Box::new(event.clone())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn holds(network: &IpNet, ip: IpAddr) -> bool {
    network.contains(&ip)
}

impl State {
    /// Somebody asked for more than a quota allows: the key that decided, for whoever watches.
    pub fn trace_limited(&mut self, who: Who<'_>, limited: Limited) {
        if self.is_traced() {
            self.trace(who, || What::Denied { why: limited.detail().into() });
        }
    }

    /// The same of a connection that the holder has.
    pub fn trace_conn_limited(&mut self, conn: ConnId, limited: Limited) {
        if self.is_traced() && self.conn(conn).is_some() {
            self.trace_conn(conn.slot, || What::Denied { why: limited.detail().into() });
        }
    }

    /// Somebody's request was let in: how it is known who they are, unless they need not say.
    pub fn trace_proof(&self, who: Who<'_>, proof: Proof) {
        if self.is_traced() && proof != Proof::None {
            self.trace(who, || What::Authenticated { proof });
        }
    }

    /// Whether anything is watched here.
    pub fn is_traced(&self) -> bool {
        !self.watches.is_empty()
    }

    /// Begins to watch. A connection that is watched is told of at once: it is here, or it is not.
    pub fn watch(&mut self, watch: Watch) {
        for by in watch.by.iter() {
            if let By::Connection(worker, conn) = by
                && *worker == self.index
            {
                let event = match self.conn(*conn) {
                    Some(entry) => {
                        let open_ms = u64::from(self.tick() - entry.opened_tick) * super::clock::TICK_MS;
                        let subscriptions = entry.subs.as_slice().len() as u32;
                        let what = What::Found { subscriptions, open_ms };
                        self.event(&Who::of_entry(*conn, entry), None, what)
                    }
                    None => self.event(&Who { conn: Some(*conn), ..Who::default() }, None, What::Absent),
                };
                watch.tell(&event);
            }
        }
        self.watches.push(watch);
    }

    pub fn unwatch(&mut self, id: u64) {
        self.watches.retain(|watch| watch.id != id);
    }

    fn event(&self, who: &Who<'_>, channel: Option<&Name>, what: What) -> Event {
        Event {
            at_ms: self.node.clock.now_ms(),
            worker: self.index,
            conn: who.conn,
            peer: who.peer,
            subject: who.subject.map(Into::into),
            transport: who.transport,
            channel: channel.cloned(),
            what,
        }
    }

    /// Something happens to someone. Ask [`State::is_traced`] before.
    pub fn trace(&self, who: Who<'_>, what: impl FnOnce() -> What) {
        self.trace_where(who, None, &|_| false, what);
    }

    /// Something happens to someone, in a channel.
    pub fn trace_in(&self, who: Who<'_>, channel: &Name, what: impl FnOnce() -> What) {
        self.trace_where(who, Some(channel), &|name| name == channel, what);
    }

    /// Something happens to a held connection, and so to all channels that it reads.
    pub fn trace_conn(&self, slot: u32, what: impl FnOnce() -> What) {
        let Some((conn, entry)) = self.conn_id(slot).and_then(|conn| Some((conn, self.conn(conn)?))) else {
            return;
        };
        let reads = |name: &Name| {
            let feed = self.feeds_by_name.get(name);
            feed.is_some_and(|feed| entry.subs.of_feed(*feed).is_some())
        };
        self.trace_where(Who::of_entry(conn, entry), None, &reads, what);
    }

    /// Something happens to a held connection in the channel of a feed.
    pub fn trace_sub(&self, slot: u32, feed: u32, what: impl FnOnce() -> What) {
        let Some((conn, entry)) = self.conn_id(slot).and_then(|conn| Some((conn, self.conn(conn)?))) else {
            return;
        };
        let Some(feed) = self.feeds.get(feed) else { return };
        self.trace_in(Who::of_entry(conn, entry), &feed.name, what);
    }

    fn trace_where(
        &self,
        who: Who<'_>,
        channel: Option<&Name>,
        channels: &dyn Fn(&Name) -> bool,
        what: impl FnOnce() -> What,
    ) {
        let mut wanted = self.watches.iter().filter(|watch| {
            // The errand that ends it may be on its way still.
            !watch.is_over.load(Ordering::Relaxed) && watch.fits(self.index, &who, channels)
        });
        let Some(first) = wanted.next() else { return };
        let event = self.event(&who, channel, what());
        first.tell(&event);
        wanted.for_each(|watch| watch.tell(&event));
    }

    /// A reader that goes on after a pause may be level with its feed now.
    pub fn trace_if_level(&self, slot: u32, feed_slot: u32) {
        let Some(sub) = self.conns.get(slot).and_then(|entry| entry.subs.of_feed(feed_slot)) else { return };
        let Some(feed) = self.feeds.get(feed_slot) else { return };
        let reader =
            feed.lanes.get(usize::from(sub.lane)).and_then(|lane| lane.readers.get(sub.index as usize));
        let cursor = feed.head();
        if reader.is_some_and(|reader| reader.standing == Standing::Live && reader.seq >= cursor.seq) {
            self.trace_sub(slot, feed_slot, || What::CaughtUp { cursor });
        }
    }

    /// A held connection ends: whoever watches a channel that it reads hears why.
    pub fn trace_leaving(&self, slot: u32, reason: Reason) {
        let Some(entry) = self.conns.get(slot) else { return };
        for sub in entry.subs.as_slice() {
            self.trace_sub(slot, sub.feed, || What::Unsubscribed { because: Some(reason) });
        }
    }

    /// A reader has fallen out of what its feed holds.
    pub fn trace_lag(&self, slot: u32, feed: u32, seq: u64) {
        let Some((cursor, head)) = self.feeds.get(feed).map(|feed| (feed.at(seq), feed.head().seq)) else {
            return;
        };
        self.trace_sub(slot, feed, || What::Lagged { cursor, behind: head.saturating_sub(seq) });
    }

    /// A held connection published: the channel's home tells those who watch the channel.
    pub fn trace_publisher(&self, conn: ConnId, channel: &Name, what: impl FnOnce() -> What) {
        let Some(entry) = self.conn(conn) else { return };
        self.trace_where(Who::of_entry(conn, entry), Some(channel), &|_| false, what);
    }

    /// So much was sent to one reader. Told to who watches it; not to who watches the channel, which may have very many.
    fn trace_sent(&self, sent: &Sent) {
        let Some(conn) = self.conn_id(sent.slot) else { return };
        let (Some(entry), Some(feed)) = (self.conn(conn), self.feeds.get(sent.feed)) else { return };
        let (messages, bytes) = (sent.messages, sent.bytes);
        let what = || What::Sent { cursor: feed.at(sent.upto), messages, bytes };
        self.trace_where(Who::of_entry(conn, entry), Some(&feed.name), &|_| false, what);
    }

    /// So much was sent, in one batch: to each reader, and to each channel's readers together.
    pub fn trace_batch(&self, batch: &[Sent]) {
        let mut rest = batch;
        while let Some(first) = rest.first() {
            let count = rest.iter().take_while(|sent| sent.feed == first.feed).count();
            let (of_feed, others) = rest.split_at(count);
            rest = others;
            of_feed.iter().for_each(|sent| self.trace_sent(sent));
            let Some(feed) = self.feeds.get(first.feed) else { continue };
            let what = || What::SentToReaders {
                cursor: feed.at(of_feed.iter().map(|sent| sent.upto).max().unwrap_or_default()),
                readers: count as u32,
                messages: of_feed.iter().map(|sent| sent.messages).sum(),
                bytes: of_feed.iter().map(|sent| sent.bytes).sum(),
            };
            self.trace_in(Who::default(), &feed.name, what);
        }
    }
}
