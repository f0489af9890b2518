//! Tasks that wait for their client: for the rest of a request, or until an answer is taken. What each holds is part of the
//! worker's memory (`budget`), and operators see them beside the connections that the holder has.
//! Owns where they are remembered, and how they are told to end: by the end of what they wait for.

use super::close::Reason;
use super::entry::ConnId;
use super::io;
use super::peer::Peer;
use super::state::{Socket, State};

/// Of a connection's name: it is a task's. The holder never has so many.
pub const TASKS_FROM: u32 = 1 << 31;

/// What a client is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaits {
    Head,
    Body,
    /// That it takes its answer.
    Answer,
}

impl Awaits {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Body => "body",
            Self::Answer => "answer",
        }
    }
}

/// A task that waits, and what it holds.
#[derive(Debug)]
pub struct Waiting {
    pub fd: i32,
    pub peer: Peer,
    pub opened_tick: u32,
    /// When its client last did something.
    pub since_tick: u32,
    pub awaits: Awaits,
    pub bytes: usize,
    /// Until the client does something; not while what came is acted on, which is over in a moment.
    pub for_client: bool,
    /// Why it is to end: told by the end of what it waits for.
    ends: Option<Reason>,
    generation: u32,
}

impl Waiting {
    /// Whether it waits, and was not told to end.
    pub fn may_be_evicted(&self) -> bool {
        self.for_client && self.ends.is_none()
    }
}

/// All of a worker's.
#[derive(Debug, Default)]
pub struct Tasks {
    waiting: slab::Slab<Waiting>,
    /// Of the newest.
    generation: u32,
}

impl Tasks {
    fn remember(&mut self, socket: &Socket, tick: u32) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        let waiting = Waiting {
            fd: socket.fd,
            peer: socket.peer,
            opened_tick: socket.opened_tick,
            since_tick: tick,
            awaits: Awaits::Head,
            bytes: 0,
            for_client: false,
            ends: None,
            generation: self.generation,
        };
        self.waiting.insert(waiting) as u32
    }

    fn at(&self, place: Option<u32>) -> Option<&Waiting> {
        self.waiting.get(place? as usize)
    }

    fn at_mut(&mut self, place: Option<u32>) -> Option<&mut Waiting> {
        self.waiting.get_mut(place? as usize)
    }

    /// Each with its place.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Waiting)> {
        self.waiting.iter()
    }

    /// Those from a name's slot on that wait for their client, each with its name.
    pub fn seen_from(&self, slot: u32) -> impl Iterator<Item = (ConnId, &Waiting)> {
        let from = slot.saturating_sub(TASKS_FROM) as usize;
        self.waiting
            .iter()
            .skip_while(move |(at, _)| *at < from)
            .filter(|(_, waiting)| waiting.for_client)
            .map(|(at, waiting)| {
                (ConnId { slot: TASKS_FROM + at as u32, generation: waiting.generation }, waiting)
            })
    }

    /// The one of that name, if it still waits.
    pub fn named(&self, conn: ConnId) -> Option<&Waiting> {
        let at = conn.slot.checked_sub(TASKS_FROM)?;
        self.at(Some(at)).filter(|waiting| waiting.generation == conn.generation && waiting.for_client)
    }
}

impl State {
    /// Counts what a task that waits for its client holds; `place` is where it is remembered. Returns by how much that is
    /// more than before; `None`: it is to end.
    pub(super) fn remember_task(
        &mut self,
        place: &mut Option<u32>,
        socket: &Socket,
        awaits: Awaits,
        bytes: usize,
    ) -> Option<isize> {
        let tick = self.tick();
        let place = *place.get_or_insert_with(|| self.tasks.remember(socket, tick));
        let waiting = self.tasks.at_mut(Some(place)).filter(|waiting| waiting.ends.is_none())?;
        if !waiting.for_client {
            waiting.since_tick = tick;
        }
        // A proxy may have said meanwhile who it is.
        (waiting.for_client, waiting.awaits, waiting.peer) = (true, awaits, socket.peer);
        let before = std::mem::replace(&mut waiting.bytes, bytes);
        Some(bytes as isize - before as isize)
    }

    /// A task's client has done something.
    pub fn resume_task(&mut self, place: Option<u32>) {
        if let Some(waiting) = self.tasks.at_mut(place) {
            waiting.for_client = false;
        }
    }

    /// A task that waited is done: what it held.
    pub(super) fn take_task(&mut self, place: u32) -> usize {
        self.tasks.waiting.try_remove(place as usize).map_or(0, |waiting| waiting.bytes)
    }

    /// Ends a task's wait for its client, for what it holds: one that sends is told so, by the answer to what it had begun;
    /// one that does not read is cut, and what the kernel holds for it goes too.
    pub(super) fn evict_task(&mut self, at: usize) {
        let Some(waiting) = self.tasks.waiting.get_mut(at) else { return };
        match waiting.awaits {
            Awaits::Head | Awaits::Body => {
                waiting.ends = Some(Reason::Full);
                io::shutdown_read(waiting.fd);
            }
            Awaits::Answer => {
                waiting.ends = Some(Reason::Slow);
                io::reset_when_closed(waiting.fd);
                io::shutdown_both(waiting.fd);
            }
        }
    }

    /// An operator ends a connection that a task waits for. False: it is not there any more.
    pub fn kick_task(&mut self, conn: ConnId) -> bool {
        if self.tasks.named(conn).is_none() {
            return false;
        }
        let Some(waiting) = self.tasks.at_mut(conn.slot.checked_sub(TASKS_FROM)) else { return false };
        waiting.ends = Some(Reason::Kicked);
        match waiting.awaits {
            Awaits::Head | Awaits::Body => io::shutdown_read(waiting.fd),
            Awaits::Answer => drop(io::shutdown_write(waiting.fd)),
        }
        true
    }

    /// Why a task was told to end, if it was.
    pub fn task_ends(&self, place: Option<u32>) -> Option<Reason> {
        self.tasks.at(place)?.ends
    }
}
