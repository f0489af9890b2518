//! A message as history keeps it: what decides when it goes, and either the message itself or where its bytes lie.
//! Owns the way back from those bytes to the message.

use std::sync::Arc;

use super::channel::Name;
use super::cursor::Cursor;
use super::message::{Body, Kind, Message, OVERHEAD_BYTES};
use super::shelf::{Place, Shelf};

/// A kept message. What decides when it goes is here: neither the message nor its bytes are looked at for it.
#[derive(Debug)]
pub struct Kept {
    pub seq: u64,
    /// When it was placed (ms since 1970).
    pub ts_ms: u64,
    /// `u64::MAX`: when the channel's age ends it.
    pub ends_ms: u64,
    /// Of event name and body.
    pub bytes: u32,
    pub form: Form,
}

#[derive(Debug)]
pub enum Form {
    /// Read by somebody, when it came or later.
    Shared(Arc<Message>),
    /// Its event name, of so many bytes, and its body.
    Shelved { place: Place, kind: Kind, event_bytes: Option<u8> },
}

impl Kept {
    /// The memory that keeping it takes.
    pub fn cost_bytes(&self) -> usize {
        OVERHEAD_BYTES + self.bytes as usize
    }

    pub fn has_ended(&self, now_ms: u64) -> bool {
        self.ends_ms <= now_ms
    }

    /// The message, of the channel `name` in this incarnation. What was on the shelf goes from there.
    pub fn share(&mut self, shelf: &mut Shelf, name: &Name, incarnation: u64) -> Arc<Message> {
        let (place, kind, event_bytes) = match &self.form {
            Form::Shared(message) => return Arc::clone(message),
            Form::Shelved { place, kind, event_bytes } => (*place, *kind, *event_bytes),
        };
        let bytes = shelf.get(place, self.bytes as usize);
        let (event, body) = bytes.split_at_checked(event_bytes.map_or(0, usize::from)).unwrap_or_default();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into();
        let message = Arc::new(Message {
            channel: name.clone(),
            cursor: Cursor { incarnation, seq: self.seq },
            ts_ms: self.ts_ms,
            event: event_bytes.map(|_| text(event)),
            body: match kind {
                Kind::Json => Body::Json(text(body)),
                Kind::Text => Body::Text(text(body)),
                Kind::Binary => Body::Binary(body.into()),
            },
            ends_ms: Some(self.ends_ms).filter(|&ends| ends != u64::MAX),
        });
        shelf.forget(place, self.bytes as usize);
        self.form = Form::Shared(Arc::clone(&message));
        message
    }

    /// It goes, and what it has on the shelf with it.
    pub fn leave(&self, shelf: &mut Shelf) {
        if let Form::Shelved { place, .. } = self.form {
            shelf.forget(place, self.bytes as usize);
        }
    }

    /// What it has on one shelf is put on another.
    pub fn move_to(&mut self, from: &Shelf, to: &mut Shelf) {
        if let Form::Shelved { place, .. } = &mut self.form {
            *place = to.put(from.get(*place, self.bytes as usize), b"");
        }
    }
}
