//! Publishes of held connections that their channels' homes are asked for: many at once, answered in the order of the
//! requests when the last of them is.

use crate::domain::channel::Name;
use crate::domain::home::{PublishRefusal, Published};
use crate::domain::message::Draft;

use super::answers::Answers;
use super::close::Reason;
use super::entry::{ConnId, Kind};
use super::mail::Ask;
use super::noted::Noted;
use super::post::{Overloaded, Pending};
use super::state::{Spawn, State};

/// The answers to some requests of one connection.
#[derive(Debug, Default)]
pub struct Publishing {
    /// Empty where it is waited for.
    answers: Vec<Vec<u8>>,
    waiting: usize,
    /// What came behind those requests.
    rest: Vec<u8>,
    /// Those that somebody wants to know of, each with its place.
    noted: Vec<(u32, Noted)>,
}

impl Publishing {
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Requests so far.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Somebody wants to know of the last request.
    pub fn note(&mut self, noted: Noted) {
        self.noted.push(((self.answers.len() as u32).saturating_sub(1), noted));
    }

    fn noted_at(&mut self, at: u32) -> Option<Noted> {
        let place = self.noted.iter().position(|(of, _)| *of == at)?;
        Some(self.noted.swap_remove(place).1)
    }

    /// Memory that this holds.
    pub fn kept_bytes(&self) -> usize {
        let answers: usize = self.answers.iter().map(Vec::capacity).sum();
        size_of::<Self>() + self.answers.capacity() * size_of::<Vec<u8>>() + answers + self.rest.capacity()
    }

    /// One that is answered already.
    pub fn add(&mut self, answer: Vec<u8>) {
        self.answers.push(answer);
    }
}

impl State {
    /// Asks another worker, as the channel's home, to publish for a request that `publishing` then waits for.
    ///
    /// # Errors
    /// [`Overloaded`]: the home's mailbox is full.
    pub fn ask_to_publish(
        &mut self,
        conn: ConnId,
        publishing: &mut Publishing,
        name: Name,
        draft: Draft,
    ) -> Result<(), Overloaded> {
        let home = self.node.home_of(name.as_str());
        let pending = Pending::Publish { conn, at: publishing.len() as u32, name: name.clone() };
        self.ask(home, Ask::Publish { name, draft, key: None }, pending)?;
        publishing.answers.push(Vec::new());
        publishing.waiting += 1;
        Ok(())
    }

    /// The connection waits for its answers.
    pub fn hold_publishing(&mut self, conn: ConnId, mut publishing: Publishing, rest: &[u8]) {
        let Some(entry) = self.conn_mut(conn) else { return };
        publishing.rest = rest.to_vec();
        entry.kind = Kind::Publishing(Box::new(publishing));
        if entry.flags.once {
            self.set_interest(conn.slot);
        }
        self.schedule(conn);
    }

    /// A home has answered: the edge says how.
    pub fn on_published(
        &mut self,
        conn: ConnId,
        at: u32,
        name: Name,
        result: Result<Published, PublishRefusal>,
    ) {
        if self.conn(conn).is_some() {
            self.spawns.push(Spawn::Published { conn, at, name, result });
        }
    }

    /// One answer is there. With the last of them all are added to `answers`, and the connection goes on.
    pub fn on_publish_answered(
        &mut self,
        conn: ConnId,
        at: u32,
        status: u16,
        answer: Vec<u8>,
        answers: &mut Answers,
    ) {
        let tick = self.tick();
        self.note_publish_answered(conn, at, status, answer.len());
        let Some(entry) = self.conn_mut(conn) else { return };
        let Kind::Publishing(publishing) = &mut entry.kind else { return };
        let Some(place) = publishing.answers.get_mut(at as usize) else { return };
        *place = answer;
        publishing.waiting -= 1;
        if publishing.waiting > 0 {
            return;
        }
        let Publishing { answers: done, rest, .. } = std::mem::take(&mut **publishing);
        entry.kind = Kind::Idle;
        entry.heard_tick = tick;
        let start = answers.bytes.len();
        done.iter().for_each(|answer| answers.bytes.extend_from_slice(answer));
        answers.add(conn, start, done.len() as u32);
        if std::mem::take(&mut entry.flags.input_off) {
            self.set_interest(conn.slot);
        }
        self.schedule(conn);
        if !rest.is_empty() {
            self.serve_next(conn, rest);
        }
    }

    fn note_publish_answered(&mut self, conn: ConnId, at: u32, status: u16, bytes: usize) {
        let Some(entry) = self.conn_mut(conn) else { return };
        let Kind::Publishing(publishing) = &mut entry.kind else { return };
        if let Some(noted) = publishing.noted_at(at) {
            let bearer = entry.bearer.clone();
            self.on_answered(noted, status, bytes, bearer.as_deref(), None);
        }
    }

    /// The homes have not answered in all the time that a request may take.
    pub fn expire_publishing(&mut self, slot: u32) {
        self.remove(slot, Reason::Internal);
    }
}
