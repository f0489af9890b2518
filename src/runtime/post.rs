//! Questions between workers: what a worker asks of a channel's home, what the home answers, and what the answer is for.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use crate::domain::channel::Name;
use crate::domain::feed::Link;
use crate::domain::home::{Home, PublishRefusal, Published, WorkerIndex};
use crate::domain::message::{Draft, Message};

use super::ahead;
use super::entry::ConnId;
use super::mail::{Answer, Ask, Mail};
use super::state::State;
use super::stats::Stats;
use super::trace::{What, Who};

/// A place for one answer, and who waits for it.
#[derive(Default)]
pub struct Reply {
    pub answer: Option<Answer>,
    pub waker: Option<Waker>,
}

/// Tells a worker that reads a channel of a message that was placed there. False: it cannot take it.
type Deliver<'d> = dyn FnMut(WorkerIndex, &Arc<Message>) -> bool + 'd;

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

impl State {
    /// Does, as their home, what `from` asks of this worker's channels.
    pub fn answer(&mut self, from: WorkerIndex, ask: Ask) -> Answer {
        self.see_growth();
        let now_ms = self.node.clock.now_ms();
        match ask {
            Ask::Publish { name, draft, key } => {
                Answer::Published(self.place(&name, draft, |home, draft, now_ms, deliver| {
                    home.publish(&name, draft, key.as_deref(), now_ms, deliver)
                }))
            }
            Ask::PublishReserved { name, draft, key } => {
                Answer::Published(self.place(&name, draft, |home, draft, now_ms, deliver| {
                    home.publish_reserved(&name, draft, &key, now_ms, deliver)
                }))
            }
            Ask::Reserve { name, key } => Answer::Known(self.home.reserve(&name, &key, now_ms)),
            Ask::Release { name, key } => {
                self.home.release(&name, &key);
                Answer::Done
            }
            Ask::Delete { name } => {
                let ((), placed_us) = self.at_home(|home, deliver| home.delete(&name, now_ms, deliver));
                self.trace_in(Who::default(), &name, || What::Deleted);
                self.tell_arrived(placed_us);
                Answer::Done
            }
            Ask::Read { name, from, max } => Answer::Page(Some(self.home.read(&name, from, max, now_ms))),
            Ask::Claim { name } => Answer::Claimed(self.home.claim(&name, now_ms)),
            Ask::Join { name, max } => Answer::Page(self.home.join(&name, from, max, now_ms)),
            Ask::Leave { name } => {
                self.home.leave(&name, from, now_ms);
                Answer::Done
            }
        }
    }

    /// A message for a channel will be published soon: where it will lie is fetched meanwhile, if the channel lives here.
    pub fn expect(&self, channel: &str) {
        if self.node.home_of(channel) == self.index
            && let Some(places) = self.home.next_places(channel)
        {
            for (place, bytes) in places {
                ahead::fetch(place, bytes);
            }
        }
    }

    /// Publishes to a channel that lives here, without a key.
    ///
    /// # Errors
    /// [`PublishRefusal`]
    pub fn publish_here(&mut self, name: &Name, draft: Draft) -> Result<Published, PublishRefusal> {
        self.see_growth();
        self.place(name, draft, |home, draft, now_ms, deliver| {
            home.publish(name, draft, None, now_ms, deliver)
        })
    }

    fn place(
        &mut self,
        name: &Name,
        draft: Draft,
        publish: impl FnOnce(&mut Home, Draft, u64, &mut Deliver<'_>) -> Result<Published, PublishRefusal>,
    ) -> Result<Published, PublishRefusal> {
        self.make_room(draft.cost_bytes());
        let now_ms = self.node.clock.now_ms();
        let bytes = draft.body.bytes().len();
        let (result, placed_us) = self.at_home(|home, deliver| publish(home, draft, now_ms, deliver));
        count_placed(&self.node.stats[usize::from(self.index)], &result, bytes);
        if self.is_traced() {
            self.trace_in(Who::default(), name, || match &result {
                Ok(published) => What::Published {
                    cursor: published.cursor,
                    bytes: bytes as u64,
                    replayed: published.replayed,
                },
                Err(refusal) => What::Denied { why: format!("{refusal:?}").into() },
            });
        }
        self.tell_arrived(placed_us);
        result
    }

    /// Does something to this worker's channels. What is placed meanwhile is told to all workers that read it, to this one by
    /// [`tell_arrived`](Self::tell_arrived), which is told when that was: 0, if nobody reads it.
    fn at_home<T>(&mut self, act: impl FnOnce(&mut Home, &mut Deliver<'_>) -> T) -> (T, u64) {
        let (index, node, arrived) = (self.index, &self.node, &mut self.arrived);
        // The exact clock is read where somebody reads the channel: once for all its readers.
        let mut placed_us = 0;
        let mut deliver = |worker: WorkerIndex, message: &Arc<Message>| {
            if placed_us == 0 {
                placed_us = node.clock.us(Instant::now());
            }
            if worker == index {
                arrived.push(Arc::clone(message));
                return true;
            }
            let fits = node.try_post(worker, Mail::Live(Arc::clone(message), placed_us));
            if !fits {
                node.post(worker, Mail::Lost(message.channel.clone()));
            }
            fits
        };
        let done = act(&mut self.home, &mut deliver);
        (done, placed_us)
    }

    fn tell_arrived(&mut self, placed_us: u64) {
        if placed_us > 0 {
            for message in std::mem::take(&mut self.arrived) {
                self.on_live(message, placed_us);
            }
        }
    }

    /// Sends a request to another worker.
    ///
    /// # Errors
    /// The request did not fit into its mailbox: this node is overloaded.
    pub fn ask(&mut self, home: WorkerIndex, ask: Ask, pending: Pending) -> Result<(), Overloaded> {
        let token = self.pending.insert(pending) as u32;
        if self.node.try_post(home, Mail::Ask { from: self.index, token, ask }) {
            return Ok(());
        }
        self.pending.remove(token as usize);
        Err(Overloaded)
    }

    /// Sends a request that always has room: what makes whole again, or completes what is half done.
    pub fn ask_surely(&mut self, home: WorkerIndex, ask: Ask, pending: Pending) {
        let token = self.pending.insert(pending) as u32;
        self.node.post(home, Mail::Ask { from: self.index, token, ask });
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
            state.node.post(from, Mail::Answer { token, answer });
        }));
        self.node.post(to, mail);
    }

    pub fn on_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Ask { from, token, ask } => {
                let is_leave = matches!(ask, Ask::Leave { .. });
                let answer = self.answer(from, ask);
                if !is_leave {
                    self.node.post(from, Mail::Answer { token, answer });
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
}

fn count_placed(stats: &Stats, result: &Result<Published, PublishRefusal>, bytes: usize) {
    if result.as_ref().is_ok_and(|published| !published.replayed) {
        stats.placed.add(1);
        stats.placed_bytes.add(bytes as u64);
    }
}

/// A worker's mailbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overloaded;
