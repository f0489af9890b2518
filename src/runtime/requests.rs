//! What comes on held connections between requests: served by the edge at once, as far as it can be, else by a task.
//! Owns the order: answers that are made go out before anything else that is done for their connection.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::domain::channel::Name;
use crate::domain::home::{PublishRefusal, Published};

use super::admission::Turned;
use super::close::Reason;
use super::entry::ConnId;
use super::stats::Refusal;
use super::worker::Worker;

/// Answers that are collected before they are sent, about.
const ANSWERS_BYTES_MAX: usize = 1 << 20;

impl Worker {
    /// Serves what came on held connections. Never called by what serves it: that may read mail, which brings more.
    pub(super) fn serve_requests(self: &Rc<Self>) {
        self.has_requests.unring();
        loop {
            let Some((conn, input)) = self.requests.borrow_mut().pop_front() else { return };
            if let Some((_, next)) = self.requests.borrow().front() {
                self.edge.expect(self, next);
            }
            self.on_request(conn, input);
        }
    }

    /// Serves what nobody else does: what was held back behind answers that came by mail.
    pub(super) async fn requests(self: Rc<Self>) {
        loop {
            self.has_requests.wait().await;
            self.serve_requests();
            self.send_answers();
        }
    }

    /// Something came on a held connection between requests.
    fn on_request(self: &Rc<Self>, conn: ConnId, input: Vec<u8>) {
        let begun = self.with(|state| Some((state.begin_request(conn, input)?, state.turns_away_held(conn))));
        let Some((mut input, why)) = begun else { return };
        if why.is_some_and(|why| self.turn_away_held(conn, &input, why)) {
            return;
        }
        let mut answers = self.answers.take();
        let start = answers.bytes.len();
        let done = catch_unwind(AssertUnwindSafe(|| {
            self.edge.serve_at_once(self, conn, &input, &mut answers.bytes)
        }));
        match &done {
            Ok(done) => answers.add(conn, start, done.answers),
            Err(_) => answers.bytes.truncate(start),
        }
        self.answers.replace(answers);
        match done {
            Ok(done) if done.bytes == input.len() => {
                // Whoever is served next may read the mail that has the others.
                let goes_first = done.more_by_mail && done.answers > 0;
                if goes_first || self.answers.borrow().bytes.len() > ANSWERS_BYTES_MAX {
                    self.send_answers();
                }
            }
            Ok(done) => {
                if done.answers > 0 {
                    // Before a task says more.
                    self.send_answers();
                }
                input.drain(..done.bytes);
                self.with(|state| state.serve_rest(conn, input));
            }
            Err(_) => self.with(|state| {
                state.stats().panics.add(1);
                tracing::error!(worker = state.index, "a request panicked; its connection is closed");
                state.remove(conn.slot, Reason::Internal);
            }),
        }
    }

    /// Tells a newcomer that it is not served. False: that cannot be told yet, or it is served all the same.
    fn turn_away_held(self: &Rc<Self>, conn: ConnId, input: &[u8], why: Refusal) -> bool {
        let mut out = Vec::new();
        let Turned::Away(transport) = self.edge.turn_away(self, input, &mut out) else { return false };
        self.with(|state| {
            state.stats().refuse(why);
            state.end(conn.slot, transport, Reason::Full, &out);
            state.bury();
        });
        true
    }

    pub(super) fn send_answers(self: &Rc<Self>) {
        let mut answers = self.answers.take();
        if !answers.is_empty() {
            self.with(|state| state.send_answers(&mut answers));
        }
        self.answers.replace(answers);
    }

    /// A home has answered a publish of a held connection.
    pub(super) fn on_published(
        self: &Rc<Self>,
        conn: ConnId,
        at: u32,
        name: &Name,
        result: Result<Published, PublishRefusal>,
    ) {
        let mut answer = Vec::with_capacity(320);
        let status = self.edge.write_published(self, name, result, &mut answer);
        let mut answers = self.answers.take();
        self.with(|state| state.on_publish_answered(conn, at, status, answer, &mut answers));
        self.answers.replace(answers);
    }
}
