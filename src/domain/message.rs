//! A message: what was published, and the place that it has in its channel's order.
//! Immutable once placed; shared by history and the feeds of all workers.

use super::channel::Name;
use super::cursor::Cursor;

/// What a message carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// One valid JSON value, as it came.
    Json(Box<str>),
    Text(Box<str>),
    Binary(Box<[u8]>),
    /// No message: the channel's history was deleted here. Readers are told a gap.
    Deletion,
}

/// What kind of value a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Json,
    Text,
    Binary,
}

impl Body {
    /// `None`: it is a deletion.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Json(_) => Some(Kind::Json),
            Self::Text(_) => Some(Kind::Text),
            Self::Binary(_) => Some(Kind::Binary),
            Self::Deletion => None,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Json(text) | Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
            Self::Deletion => &[],
        }
    }
}

/// What a publisher gave, checked, without a place yet.
#[derive(Debug, Clone)]
pub struct Draft {
    pub event: Option<Box<str>>,
    pub body: Body,
    /// Seconds that history keeps it; 0: deliver now, keep nothing. `None`: as long as the channel keeps messages.
    pub ttl_seconds: Option<u32>,
}

impl Draft {
    /// Of event name and body.
    pub fn content_bytes(&self) -> usize {
        self.body.bytes().len() + self.event.as_ref().map_or(0, |event| event.len())
    }

    /// The memory that it takes once it is kept.
    pub fn cost_bytes(&self) -> usize {
        OVERHEAD_BYTES + self.content_bytes()
    }
}

/// A message in its place.
#[derive(Debug)]
pub struct Message {
    pub channel: Name,
    /// The channel's cursor just after this message: its id.
    pub cursor: Cursor,
    /// When it was placed: ms since 1970.
    pub ts_ms: u64,
    pub event: Option<Box<str>>,
    pub body: Body,
    /// When it ends by its own TTL (ms since 1970); gone then, it is no loss.
    pub ends_ms: Option<u64>,
}

/// What one kept message costs beside its data and event name, in bytes (allocation headers included).
pub(super) const OVERHEAD_BYTES: usize = 160;

impl Message {
    /// Of event name and body.
    pub fn content_bytes(&self) -> usize {
        self.body.bytes().len() + self.event.as_ref().map_or(0, |event| event.len())
    }

    /// The memory that keeping this message takes.
    pub fn cost_bytes(&self) -> usize {
        OVERHEAD_BYTES + self.content_bytes()
    }

    pub fn has_ended(&self, now_ms: u64) -> bool {
        self.ends_ms.is_some_and(|ends| ends <= now_ms)
    }
}
