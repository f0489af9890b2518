//! Idempotency keys: which publishes were done already (`Idempotency-Key`).
//! Remembers a key for two minutes after its success, per channel and publisher. Bounded: when full, new keys are
//! refused; none is forgotten early. Never reads a clock.

use std::collections::{HashMap, VecDeque};

use super::channel::Name;
use super::cursor::Cursor;

/// How long a success is remembered.
pub const KEY_KEPT_MS: u64 = 120_000;
/// How long a place may be held for a publish that has begun; the publisher's worker died if it takes longer.
const RESERVED_MS: u64 = 30_000;

/// Ends of keys that were given back, before they are cleared away.
const ENDS_SLACK: usize = 1_024;

/// A key as a publisher gave it, with the digest of what it came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub publisher: Box<str>,
    pub key: Box<[u8]>,
    /// Of the message: another body under the same key is refused.
    pub digest: [u8; 20],
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Never seen; now reserved for the caller.
    New,
    /// Done: this was the answer.
    Done(Cursor),
    /// The first publish with it is still under way.
    InFlight,
    /// It came with another body.
    Conflict,
    /// No room for a new key.
    Full,
}

#[derive(Debug)]
struct Entry {
    digest: [u8; 20],
    done: Option<Cursor>,
    ends_ms: u64,
}

type Id = (Name, Box<str>, Box<[u8]>);

/// The keys of one worker's channels.
#[derive(Debug)]
pub struct Keys {
    entries: HashMap<Id, Entry>,
    /// In order of `ends_ms`, but for reservations; an entry whose end has moved is skipped.
    ends: VecDeque<(u64, Id)>,
    max: usize,
}

impl Keys {
    pub fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), ends: VecDeque::new(), max }
    }

    /// Looks a key up; a new one is reserved until `commit` or `release`.
    pub fn reserve(&mut self, channel: &Name, key: &Key, now_ms: u64) -> Known {
        self.expire(now_ms);
        let id = (channel.clone(), key.publisher.clone(), key.key.clone());
        match self.entries.get(&id) {
            Some(entry) if entry.digest != key.digest => Known::Conflict,
            Some(Entry { done: Some(cursor), .. }) => Known::Done(*cursor),
            Some(_) => Known::InFlight,
            None if self.entries.len() >= self.max => Known::Full,
            None => {
                let ends_ms = now_ms + RESERVED_MS;
                self.ends.push_back((ends_ms, id.clone()));
                self.entries.insert(id, Entry { digest: key.digest, done: None, ends_ms });
                Known::New
            }
        }
    }

    pub fn commit(&mut self, channel: &Name, key: &Key, cursor: Cursor, now_ms: u64) {
        let id = (channel.clone(), key.publisher.clone(), key.key.clone());
        let ends_ms = now_ms + KEY_KEPT_MS;
        self.ends.push_back((ends_ms, id.clone()));
        self.entries.insert(id, Entry { digest: key.digest, done: Some(cursor), ends_ms });
    }

    pub fn release(&mut self, channel: &Name, key: &Key) {
        let id = (channel.clone(), key.publisher.clone(), key.key.clone());
        if self.entries.get(&id).is_some_and(|entry| entry.done.is_none()) {
            self.entries.remove(&id);
        }
        if self.ends.len() > 2 * self.entries.len() + ENDS_SLACK {
            let entries = &self.entries;
            self.ends.retain(|(ends_ms, id)| entries.get(id).is_some_and(|entry| entry.ends_ms == *ends_ms));
        }
    }

    /// Forgets what has ended. Cheap when nothing has.
    pub fn expire(&mut self, now_ms: u64) {
        while let Some((ends_ms, _)) = self.ends.front() {
            if *ends_ms > now_ms {
                break;
            }
            if let Some((ends_ms, id)) = self.ends.pop_front()
                && self.entries.get(&id).is_some_and(|entry| entry.ends_ms <= ends_ms)
            {
                self.entries.remove(&id);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str, digest: u8) -> Key {
        Key { publisher: "".into(), key: key.as_bytes().into(), digest: [digest; 20] }
    }

    #[test]
    fn keys_given_back_leave_nothing() {
        let a = Name::parse("a").expect("name");
        let mut keys = Keys::new(10);
        for _ in 0..10_000 {
            assert_eq!(keys.reserve(&a, &key("k", 1), 0), Known::New);
            keys.release(&a, &key("k", 1));
        }
        assert!(keys.is_empty() && keys.ends.len() <= ENDS_SLACK + 1);
    }

    #[test]
    fn the_life_of_a_key() {
        let (a, b) = (Name::parse("a").expect("name"), Name::parse("b").expect("name"));
        let id = Cursor { incarnation: 1, seq: 1 };
        let mut keys = Keys::new(2);
        assert_eq!(keys.reserve(&a, &key("k", 1), 0), Known::New);
        assert_eq!(keys.reserve(&a, &key("k", 1), 0), Known::InFlight);
        keys.commit(&a, &key("k", 1), id, 0);
        assert_eq!(keys.reserve(&a, &key("k", 1), 1), Known::Done(id));
        assert_eq!(keys.reserve(&a, &key("k", 2), 1), Known::Conflict);
        assert_eq!(keys.reserve(&b, &key("k", 1), 1), Known::New, "per channel");
        assert_eq!(keys.reserve(&b, &key("l", 1), 1), Known::Full);
        keys.release(&b, &key("k", 1));
        assert_eq!(keys.reserve(&b, &key("l", 1), 1), Known::New);
        assert_eq!(keys.reserve(&a, &key("k", 2), KEY_KEPT_MS - 1), Known::Conflict, "kept two minutes");
        assert_eq!(keys.reserve(&a, &key("k", 2), KEY_KEPT_MS), Known::New, "then forgotten");
    }
}
