//! What all workers of a node share: settings, counts, mailboxes, and which worker a channel lives on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use foldhash::fast::RandomState;
use rustls::ServerConfig;

use crate::domain::channel::Name;
use crate::domain::feed::FeedBounds;
use crate::domain::history::Bounds;
use crate::domain::home::WorkerIndex;

use super::access::AccessLog;
use super::clock::Clock;
use super::io::EventFd;
use super::mail::Mail;
use super::mailbox::Sender;
use super::memory::Memory;
use super::phase::Progress;
use super::quotas::{Begins, Limited, Quotas};
use super::report::Reports;
use super::settings::{Settings, SlowPolicy};
use super::state::{Socket, State};
use super::stats::{Places, Stats};

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
    /// Workers that have ended.
    pub ended: AtomicUsize,
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
    pub fn home_of(&self, name: &str) -> WorkerIndex {
        use std::hash::BuildHasher;
        (self.home_seed.hash_one(name) % self.mailboxes.len() as u64) as WorkerIndex
    }

    /// Has one worker do something with its state, soon: see [`on_each_worker`](Self::on_each_worker).
    pub fn on_worker(&self, worker: WorkerIndex, errand: impl FnOnce(&mut State) + Send + 'static) {
        if usize::from(worker) < self.mailboxes.len() {
            self.post(worker, Mail::Do(Box::new(errand)));
        }
    }

    /// Sends a letter that a worker must have.
    #[inline]
    pub fn post(&self, worker: WorkerIndex, mail: Mail) {
        let bytes = mail.cost_bytes();
        self.mailboxes[usize::from(worker)].send_reserved(mail, bytes);
    }

    /// Sends a letter if there is room for it. Returns whether there was.
    #[inline]
    pub fn try_post(&self, worker: WorkerIndex, mail: Mail) -> bool {
        let bytes = mail.cost_bytes();
        self.mailboxes[usize::from(worker)].try_send(mail, bytes).is_ok()
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

    pub(super) fn channel_bounds(&self) -> Bounds {
        let history = &self.settings.history;
        Bounds { messages: history.messages, bytes: history.bytes, age_ms: history.age.as_millis() as u64 }
    }
}
