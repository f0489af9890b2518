//! Answers to requests that came on held connections: collected while events are looked at, then sent together.

use super::close::Reason;
use super::close::Transport;
use super::entry::ConnId;
use super::sendring::{BATCH_MAX, Outcome, Send, send_now};
use super::state::State;

/// Room that is kept for the next answers.
const ROOM_BYTES: usize = 64 * 1024;

/// Bytes for connections that are not sent yet.
#[derive(Default)]
pub struct Answers {
    pub bytes: Vec<u8>,
    list: Vec<Answer>,
    outcomes: Vec<(u32, Outcome)>,
    /// What is encrypted of `bytes`.
    sealed: Vec<u8>,
}

/// The answers to one connection: where their bytes begin, and end.
struct Answer {
    conn: ConnId,
    start: usize,
    end: usize,
    count: u32,
    /// These are places in what is encrypted.
    is_sealed: bool,
}

impl Answer {
    /// What goes out.
    fn wire<'a>(&self, bytes: &'a [u8], sealed: &'a [u8]) -> &'a [u8] {
        let all = if self.is_sealed { sealed } else { bytes };
        &all[self.start..self.end]
    }
}

impl Answers {
    /// The bytes from `start` on are `count` answers for `conn`, which has none here yet.
    pub fn add(&mut self, conn: ConnId, start: usize, count: u32) {
        let end = self.bytes.len();
        if end > start {
            self.list.push(Answer { conn, start, end, count, is_sealed: false });
        }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl State {
    /// Sends the answers. What a socket does not take is owed to it.
    pub fn send_answers(&mut self, answers: &mut Answers) {
        let Answers { bytes, list, outcomes, sealed } = answers;
        self.stats().sent_bytes.add(Transport::Http as usize, bytes.len() as u64);
        let tick = self.tick();
        let mut behind = Vec::new();
        // Whoever may be sent to at once: it may be gone.
        list.retain_mut(|answer| {
            let Some(entry) = self.conns.get_checked_mut(answer.conn.slot, answer.conn.generation) else {
                return false;
            };
            entry.heard_tick = tick;
            entry.said_tick = tick;
            entry.sent_bytes += (answer.end - answer.start) as u64;
            entry.sent_messages = entry.sent_messages.wrapping_add(answer.count);
            if let Some(tls) = &mut entry.tls {
                let start = sealed.len();
                if tls.seal(&bytes[answer.start..answer.end], sealed).is_err() {
                    self.pass.doomed.push((answer.conn, Reason::TlsFailed));
                    return false;
                }
                (answer.start, answer.end, answer.is_sealed) = (start, sealed.len(), true);
            }
            // A publish was answered by its home while what was answered before it is still owed: that goes first.
            if entry.flags.blocked || entry.owed.is_some() {
                behind.push((answer.conn.slot, answer.start..answer.end, answer.is_sealed));
                return false;
            }
            true
        });
        for (slot, range, is_sealed) in behind {
            self.block(slot, &if is_sealed { &*sealed } else { &*bytes }[range]);
        }
        for batch in list.chunks(BATCH_MAX) {
            outcomes.clear();
            if let [answer] = batch {
                outcomes.push((0, send_now(self.fd(answer.conn.slot), answer.wire(bytes, sealed))));
            } else {
                let mut sends = [Send { fd: -1, bytes: &[] }; BATCH_MAX];
                for (send, answer) in sends.iter_mut().zip(batch) {
                    *send = Send { fd: self.fd(answer.conn.slot), bytes: answer.wire(bytes, sealed) };
                }
                self.ring.send_batch(&sends[..batch.len()], outcomes);
            }
            for (at, outcome) in outcomes.iter() {
                let answer = &batch[*at as usize];
                let wire = answer.wire(bytes, sealed);
                match outcome {
                    Outcome::Whole => {}
                    Outcome::Short(sent) => self.block(answer.conn.slot, &wire[*sent..]),
                    Outcome::Full => self.block(answer.conn.slot, wire),
                    Outcome::Failed(errno) => self.doom(answer.conn.slot, Reason::of_errno(*errno)),
                }
            }
        }
        // The first answer: the next request is waited for in another way.
        for answer in list.iter() {
            if self.conn(answer.conn).is_some_and(|entry| entry.flags.once) {
                self.set_interest(answer.conn.slot);
            }
        }
        self.bury();
        list.clear();
        for room in [bytes, sealed] {
            room.clear();
            room.shrink_to(ROOM_BYTES);
        }
    }
}
