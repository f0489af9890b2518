//! How the operator's thread asks workers: an errand to each, and a number under which the answer comes back
//! (`runtime::report`). Owns who waits. A worker that does not answer in time is given up on, and told of.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use crate::domain::home::WorkerIndex;
use crate::edge::revoked::Revocations;
use crate::runtime::mailbox::Mailbox;
use crate::runtime::node::Node;
use crate::runtime::report::{Body, Report};
use crate::runtime::state::State;

use super::problem::Refused;

/// A worker answers within a millisecond or so, or is in trouble.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// An errand that walks over much stops after so long, and another goes on: clients wait no longer than for any batch.
pub const SLICE: Duration = Duration::from_millis(1);
/// Reports heard in one go.
const REPORTS_MAX: usize = 256;

/// The desk that all requests of operators share.
#[derive(Clone)]
pub struct Desk(Arc<Shared>);

struct Shared {
    node: Arc<Node>,
    revocations: Arc<Revocations>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Body>>>,
    next: AtomicU64,
    handed_over: watch::Sender<bool>,
}

/// A worker that did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silent(pub WorkerIndex);

impl From<Silent> for Refused {
    fn from(Silent(worker): Silent) -> Self {
        let seconds = ANSWER_MAX.as_secs();
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "worker {worker} did not answer within {seconds} s: it has more to do than it can; ask again"
            ),
        )
    }
}

impl Desk {
    pub fn new(node: Arc<Node>, revocations: Arc<Revocations>) -> Self {
        let (waiting, next) = (Mutex::default(), AtomicU64::new(1));
        Self(Arc::new(Shared { node, revocations, waiting, next, handed_over: watch::Sender::new(false) }))
    }

    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.0.revocations
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.0.node
    }

    pub fn workers(&self) -> impl Iterator<Item = WorkerIndex> + use<> {
        0..self.node().mailboxes.len() as WorkerIndex
    }

    /// Becomes true when another process takes this one's place.
    pub fn handed_over(&self) -> watch::Receiver<bool> {
        self.0.handed_over.subscribe()
    }

    /// Asks one worker. The errand must not panic (that would end the process) and be done within [`SLICE`] or so.
    ///
    /// # Errors
    /// [`Silent`]
    pub async fn ask<T: Send + 'static>(
        &self,
        worker: WorkerIndex,
        errand: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, Silent> {
        self.begin(worker, errand).answer().await
    }

    /// Asks every worker the same, all at once; the answers in their order.
    pub async fn ask_all<T: Send + 'static, E: FnOnce(&mut State) -> T + Send + 'static>(
        &self,
        mut errand: impl FnMut(WorkerIndex) -> E,
    ) -> Vec<Result<T, Silent>> {
        let asked: Vec<_> = self.workers().map(|worker| self.begin(worker, errand(worker))).collect();
        let mut answers = Vec::with_capacity(asked.len());
        for asked in asked {
            answers.push(asked.answer().await);
        }
        answers
    }

    /// Asks, without waiting.
    pub fn begin<T: Send + 'static>(
        &self,
        worker: WorkerIndex,
        errand: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Asked<T> {
        let (tx, answer) = oneshot::channel();
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.waiting().insert(number, tx);
        self.node().on_worker(worker, move |state| {
            let body: Body = Box::new(errand(state));
            state.node.reports.send(Report::Answer { number, body });
        });
        let until = Instant::now() + ANSWER_MAX;
        let place = Place { desk: self.clone(), number };
        Asked { place, worker, until, answer, of: std::marker::PhantomData }
    }

    /// Hears what is told, until the node ends.
    ///
    /// # Errors
    /// The mailbox cannot be waited for.
    pub async fn hear(&self, mut mailbox: Mailbox<Report>) -> io::Result<()> {
        // tokio's type for sockets serves for any descriptor that can be polled: only readiness is asked of it.
        let wake = UnixStream::from_std(mailbox.duplicate_wake()?.into())?;
        let mut reports = Vec::new();
        loop {
            // What was told before this thread listened is there already.
            let more = mailbox.drain(REPORTS_MAX, &mut reports);
            for report in reports.drain(..) {
                match report {
                    Report::Answer { number, body } => {
                        // One that nobody waits for any more was given up on.
                        if let Some(tx) = self.waiting().remove(&number) {
                            let _ = tx.send(body);
                        }
                    }
                    Report::HandOver => drop(self.0.handed_over.send_replace(true)),
                    Report::End => return Ok(()),
                }
            }
            if more {
                tokio::task::yield_now().await;
            } else {
                wake.readable().await?;
                // Read by the mailbox itself, before it looks for more.
                let _ = wake.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Body>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place under which somebody waits; given up when dropped.
struct Place {
    desk: Desk,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.desk.waiting().remove(&self.number);
    }
}

/// An answer on its way.
pub struct Asked<T> {
    place: Place,
    worker: WorkerIndex,
    until: Instant,
    answer: oneshot::Receiver<Body>,
    of: std::marker::PhantomData<fn() -> T>,
}

impl<T: Send + 'static> Asked<T> {
    /// # Errors
    /// [`Silent`]
    pub async fn answer(self) -> Result<T, Silent> {
        let Self { place, worker, until, answer, .. } = self;
        let body = tokio::time::timeout_at(until.into(), answer).await;
        drop(place);
        let body = body.ok().and_then(Result::ok).ok_or(Silent(worker))?;
        body.downcast().map(|answer| *answer).map_err(|_| Silent(worker))
    }
}
