//! A held connection: all that is kept of one that waits. What only some need is boxed and freed when done with.

use std::os::fd::RawFd;

use crate::proto::ws::reader::ReaderState;

use super::caller::Caller;
use super::close::{Reason, Transport};
use super::noted::Noted;
use super::peer::Peer;
use super::publishing::Publishing;
use super::share::Share;
use super::tls::{SESSION_BYTES, Tls};

/// A connection's slot and its generation: names it, and no later one in the same slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId {
    pub slot: u32,
    pub generation: u32,
}

impl ConnId {
    pub fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    pub fn of_token(token: u64) -> Self {
        Self { slot: token as u32, generation: (token >> 32) as u32 }
    }
}

/// Where a connection stands in a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sub {
    pub feed: u32,
    pub index: u32,
    pub lane: u8,
    /// Has not been level with the feed since it came: what it missed is told as a gap, whatever the policy for the slow.
    pub fresh: bool,
}

/// The channels that a connection reads.
#[derive(Debug)]
pub enum Subs {
    None,
    One(Sub),
    Many(Box<Vec<Sub>>),
}

impl Subs {
    pub fn as_slice(&self) -> &[Sub] {
        match self {
            Self::None => &[],
            Self::One(sub) => std::slice::from_ref(sub),
            Self::Many(subs) => subs,
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [Sub] {
        match self {
            Self::None => &mut [],
            Self::One(sub) => std::slice::from_mut(sub),
            Self::Many(subs) => subs,
        }
    }

    pub fn push(&mut self, sub: Sub) {
        match self {
            Self::None => *self = Self::One(sub),
            Self::One(first) => *self = Self::Many(Box::new(vec![*first, sub])),
            Self::Many(subs) => subs.push(sub),
        }
    }

    /// Removes the subscription to `feed`, keeping the order of the others.
    pub fn remove(&mut self, feed: u32) -> Option<Sub> {
        match self {
            Self::One(sub) if sub.feed == feed => {
                let sub = *sub;
                *self = Self::None;
                Some(sub)
            }
            Self::None | Self::One(_) => None,
            Self::Many(subs) => {
                let at = subs.iter().position(|sub| sub.feed == feed)?;
                let sub = subs.remove(at);
                match subs.as_slice() {
                    [] => *self = Self::None,
                    [last] => *self = Self::One(*last),
                    _ => {}
                }
                Some(sub)
            }
        }
    }

    pub fn of_feed(&self, feed: u32) -> Option<Sub> {
        self.as_slice().iter().find(|sub| sub.feed == feed).copied()
    }
}

/// A request that waits for a message.
#[derive(Debug)]
pub struct HeldPoll {
    /// Most messages in the answer.
    pub limit: u32,
    pub until_tick: u32,
    /// The answer's fields that the request decided, each line with its end.
    pub fields: Box<[u8]>,
    pub keep_alive: bool,
    /// What the client sent after the request.
    pub leftover: Vec<u8>,
    /// Where somebody wants to know of the request.
    pub noted: Option<Noted>,
    /// The trusted proxy whose connection this is, and will be again when the client is answered.
    pub proxy: Option<Peer>,
}

impl HeldPoll {
    /// Somebody wants to know of the request.
    pub fn hold_noted(&mut self, noted: Option<Noted>) {
        self.noted = noted.map(|mut noted| {
            noted.becomes(Transport::LongPoll);
            noted
        });
    }
}

/// What a held connection is.
#[derive(Debug)]
pub enum Kind {
    /// Came to an address for TLS, and its handshake has not ended.
    Handshake,
    /// A kept-alive connection between requests.
    Idle,
    /// Its publishes are at their channels' homes.
    Publishing(Box<Publishing>),
    Poll(Box<HeldPoll>),
    Sse,
    Ws {
        v1: bool,
        reader: ReaderState,
        /// When what has begun in `reader` did.
        begun_tick: u32,
    },
    /// All is said: what is owed goes out, then input is discarded until the client closes too, or `until_tick`.
    Ending {
        transport: Transport,
        reason: Reason,
        until_tick: u32,
    },
}

impl Kind {
    pub fn transport(&self) -> Transport {
        match self {
            Self::Handshake | Self::Idle | Self::Publishing(_) => Transport::Http,
            Self::Poll(_) => Transport::LongPoll,
            Self::Sse => Transport::Sse,
            Self::Ws { v1: false, .. } => Transport::Raw,
            Self::Ws { v1: true, .. } => Transport::V1,
            Self::Ending { transport, .. } => *transport,
        }
    }
}

/// Bytes that a socket would not take yet, as they stand on the wire. Nothing else goes to it before them.
#[derive(Debug, Default)]
pub struct Owed {
    pub bytes: Vec<u8>,
    /// So many of `bytes` are sent.
    pub sent: usize,
    /// Only the latest pong is kept (RFC 6455 §5.5.3). Not encrypted yet.
    pub pong: Option<Vec<u8>>,
    /// What came after the requests that these answer: served when they are sent.
    pub held_back: Vec<u8>,
}

impl Owed {
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent + self.pong.as_ref().map_or(0, Vec::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn kept_bytes(&self) -> usize {
        let pong = self.pong.as_ref().map_or(0, Vec::capacity);
        size_of::<Self>() + self.bytes.capacity() + pong + self.held_back.capacity()
    }
}

/// What is true of a connection just now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags {
    /// The socket takes no more: waiting until it does.
    pub blocked: bool,
    /// What it sent is being acted on; no more is read until that is done.
    pub busy: bool,
    /// A ping went out since it was last heard.
    pub pinged: bool,
    /// Not read from: it owes us the reading of what it is owed.
    pub input_off: bool,
    /// The epoll set tells of its input once, and has forgotten it then.
    pub once: bool,
    /// Both directions are done with; only the client's close is awaited.
    pub shut: bool,
    /// It was told that its token ends soon.
    pub told_expiring: bool,
    /// Without its token yet: what it waits for stands in `State::waiting`.
    pub waiting: bool,
}

/// One held connection.
#[derive(Debug)]
pub struct Entry {
    pub fd: RawFd,
    pub flags: Flags,
    pub kind: Kind,
    pub subs: Subs,
    pub owed: Option<Box<Owed>>,
    pub opened_tick: u32,
    /// The tick in which something last came from it.
    pub heard_tick: u32,
    /// The tick in which something last went to it outside of feeds.
    pub said_tick: u32,
    /// When it is next to be looked at.
    pub due_tick: u32,
    /// The last batch of sends that it was part of.
    pub batch: u32,
    /// What its worker counted of what is boxed, last.
    pub counted_bytes: u32,
    /// Of feeds that it has left, and outside of feeds.
    pub sent_messages: u32,
    pub sent_bytes: u64,
    pub peer: Peer,
    /// Who it was found to be of. `None`: nobody's word was asked for yet.
    pub bearer: Option<Caller>,
    /// `None`: it speaks plainly, or has not spoken yet.
    pub tls: Option<Box<Tls>>,
    /// What it holds of the quotas.
    pub share: Option<Box<Share>>,
}

impl Entry {
    /// Whether nothing is going on: neither a request nor the rest of an answer.
    pub fn is_between_requests(&self) -> bool {
        matches!(self.kind, Kind::Idle) && self.owed.is_none()
    }

    /// The tick until which a first request may be expected, `ticks` after its opening or its TLS handshake; 0 once one was
    /// answered.
    pub const fn first_request_due(&self, ticks: u32) -> u32 {
        if self.sent_messages == 0 { self.heard_tick.saturating_add(ticks) } else { 0 }
    }

    /// What its TLS session takes, whatever happens on it.
    pub fn session_bytes(&self) -> usize {
        if self.tls.is_some() { SESSION_BYTES } else { 0 }
    }

    /// Memory that it holds beside itself and its TLS session.
    pub fn boxed_bytes(&self) -> usize {
        let kind = match &self.kind {
            Kind::Idle | Kind::Handshake | Kind::Sse | Kind::Ending { .. } => 0,
            Kind::Publishing(publishing) => publishing.kept_bytes(),
            Kind::Poll(held) => size_of::<HeldPoll>() + held.fields.len() + held.leftover.capacity(),
            Kind::Ws { reader, .. } => reader.kept_bytes(),
        };
        let subs = match &self.subs {
            Subs::None | Subs::One(_) => 0,
            Subs::Many(subs) => size_of::<Vec<Sub>>() + subs.capacity() * size_of::<Sub>(),
        };
        let partial = self.tls.as_ref().map_or(0, |tls| tls.kept_bytes());
        kind + subs + partial + self.owed.as_ref().map_or(0, |owed| owed.kept_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Entry>() <= 136, "{}", size_of::<Entry>());
    }
}
