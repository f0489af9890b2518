//! What workers say to each other: requests to a channel's home, its answers, and live messages.

use std::any::Any;
use std::sync::Arc;

use crate::domain::channel::Name;
use crate::domain::home::{PublishRefusal, Published, WorkerIndex};
use crate::domain::idempotency::{Key, Known};
use crate::domain::message::{Draft, Message};
use crate::domain::page::{From, Page, PageMax};

use super::state::State;

/// One letter in a worker's mailbox.
pub enum Mail {
    Ask {
        from: WorkerIndex,
        token: u32,
        ask: Ask,
    },
    Answer {
        token: u32,
        answer: Answer,
    },
    /// A message of a channel that this worker reads, and when it was placed (µs of the node's clock).
    Live(Arc<Message>, u64),
    /// A live message did not fit: join the channel again.
    Lost(Name),
    /// Stop: tell every client to come back, spread over the drain window. `successor`: how many listeners of another
    /// process serve each address already.
    Drain {
        successor: Option<u32>,
    },
    /// Accept what is queued, then close.
    CloseListeners,
    /// The process before this one is gone: the kernel may spread connections again.
    Unsteer,
    /// Something that an operator asked for, done between two other letters.
    Do(Errand),
}

/// What a worker is to do with its state.
pub type Errand = Box<dyn FnOnce(&mut State) + Send>;

/// A request to the home of a channel.
#[derive(Debug)]
pub enum Ask {
    Publish {
        name: Name,
        draft: Draft,
        key: Option<Box<Key>>,
    },
    PublishReserved {
        name: Name,
        draft: Draft,
        key: Box<Key>,
    },
    Reserve {
        name: Name,
        key: Box<Key>,
    },
    Release {
        name: Name,
        key: Box<Key>,
    },
    Delete {
        name: Name,
    },
    Read {
        name: Name,
        from: From,
        max: PageMax,
    },
    /// A place for a message that follows.
    Claim {
        name: Name,
    },
    Join {
        name: Name,
        max: PageMax,
    },
    Leave {
        name: Name,
    },
}

/// What the home answers.
#[derive(Debug)]
pub enum Answer {
    Published(Result<Published, PublishRefusal>),
    Known(Known),
    /// Whether there is room for the channel.
    Claimed(bool),
    /// `None`: there is no room for one more channel.
    Page(Option<Page>),
    /// What an errand came to ([`Worker::on_worker`](super::worker::Worker::on_worker)).
    Errand(Box<dyn Any + Send>),
    Done,
}

/// A letter's own size, beside what it carries.
const LETTER_BYTES: usize = 128;

impl Mail {
    /// The memory that this letter holds while it waits, in bytes.
    pub fn cost_bytes(&self) -> usize {
        LETTER_BYTES
            + match self {
                Self::Ask {
                    ask: Ask::Publish { draft, .. } | Ask::PublishReserved { draft, .. }, ..
                } => draft.body.bytes().len(),
                Self::Live(message, _) => message.cost_bytes(),
                _ => 0,
            }
    }
}
