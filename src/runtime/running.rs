//! Requests under way: what tasks take while they act on one, and how much of it a worker has at once. A task that waits for
//! its client is not among them (`budget`).
//! Owns whose turn it is: beyond the bound, connections are not read, and what they ask waits in the kernel; large requests
//! that were read wait for each other.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::entry::{ConnId, Kind};
use super::state::State;
use super::worker::Worker;

/// A node's requests under way may take this part of its memory.
const NODE_PARTS: usize = 16;
/// A worker's, however small the node.
const BYTES_MIN: usize = 512 * 1_024;
/// Requests that are no larger wait for nobody.
const AT_ONCE_BYTES: usize = 64 * 1_024;
/// Connections that are read again in one go.
const RESUMED_MAX: usize = 64;

/// What a task takes for itself, and for a request whose target, which may name many channels, has so many bytes: names,
/// cursors and the questions to other workers.
pub const fn request_bytes(target_bytes: usize) -> usize {
    10 * 1_024 + 5 * target_bytes
}

#[derive(Debug, Default)]
pub struct Running {
    bytes: usize,
    /// Connections that have sent something, and are not read yet.
    deferred: VecDeque<ConnId>,
    /// Large requests that wait for their turn.
    turns: Vec<Waker>,
}

impl State {
    /// Bytes of requests under way.
    pub(super) fn running_bytes(&self) -> usize {
        self.running.bytes
    }

    pub(super) fn begin_running(&mut self, bytes: usize) {
        self.running.bytes += bytes;
    }

    pub(super) fn end_running(&mut self, bytes: usize) {
        self.running.bytes -= bytes;
        if !self.is_busy() {
            // Those that find that another was first, wait on.
            self.running.turns.drain(..).for_each(Waker::wake);
        }
        self.resume_deferred();
    }

    /// Whether no further request may begin just now. Some are under way then, and their end lets others begin.
    pub(super) fn is_busy(&self) -> bool {
        let memory = &self.node.memory;
        self.running.bytes > (memory.bytes_max() / NODE_PARTS / memory.workers()).max(BYTES_MIN)
    }

    /// Leaves unread what a connection between requests has sent, until there is room for one more.
    pub(super) fn defer(&mut self, conn: ConnId) {
        if let Some(entry) = self.conn_mut(conn) {
            entry.flags.input_off = true;
            self.set_interest(conn.slot);
            self.running.deferred.push_back(conn);
        }
    }

    /// Reads again from some of those that wait, if there is room.
    pub(super) fn resume_deferred(&mut self) {
        if self.running.deferred.is_empty() {
            return;
        }
        for _ in 0..RESUMED_MAX {
            if self.is_busy() {
                return;
            }
            let Some(conn) = self.running.deferred.pop_front() else { return };
            if let Some(entry) = self.conn_mut(conn)
                && matches!(entry.kind, Kind::Idle)
            {
                entry.flags.input_off = false;
                self.set_interest(conn.slot);
            }
        }
    }
}

/// What a large request takes of the worker's memory, from when it was read until it is answered.
pub struct Work {
    worker: Rc<Worker>,
    /// What was read.
    content_bytes: usize,
    /// Of its answer.
    bytes: usize,
}

impl Work {
    /// Waits for the turn of a request of so many bytes, of which the answer will have about `bytes`.
    pub async fn begin(worker: &Rc<Worker>, content_bytes: usize, bytes: usize) -> Self {
        let mut work = Self { worker: Rc::clone(worker), content_bytes, bytes: 0 };
        worker.with(|state| state.weigh_work(content_bytes as isize));
        if bytes > AT_ONCE_BYTES {
            std::future::poll_fn(|cx| {
                worker.with(|state| {
                    if state.is_busy() {
                        state.running.turns.push(cx.waker().clone());
                        return Poll::Pending;
                    }
                    state.begin_running(bytes);
                    Poll::Ready(())
                })
            })
            .await;
            work.bytes = bytes;
        } else {
            work.weighs(bytes);
        }
        work
    }

    /// Its answer has so many bytes by now.
    pub fn weighs(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        self.worker.with(|state| match bytes.checked_sub(before) {
            Some(more) => state.begin_running(more),
            None => state.end_running(before - bytes),
        });
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.weighs(0);
        let content_bytes = self.content_bytes as isize;
        self.worker.with(|state| state.weigh_work(-content_bytes));
    }
}
