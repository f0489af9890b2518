//! A stretch of a channel's order, as readers ask for it and are given it.

use std::sync::Arc;

use super::cursor::Cursor;
use super::message::Message;

/// Where a reader wants to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// After the head: only what is yet to come.
    Now,
    /// So many messages before the head, or what there is of them.
    Newest(usize),
    After(Cursor),
}

/// How much one page may hold; at least one message is given if there is one.
#[derive(Debug, Clone, Copy)]
pub struct PageMax {
    pub messages: usize,
    pub bytes: usize,
}

/// A stretch of a channel's order.
#[derive(Debug, Clone)]
pub struct Page {
    pub incarnation: u64,
    /// The position just before the first message of the page.
    pub after: u64,
    pub messages: Vec<Arc<Message>>,
    /// The position just after the page; equal to `head` when nothing more is held.
    pub next: u64,
    pub head: u64,
    /// Messages between the position asked for and `after` are lost.
    pub gap: bool,
}

/// How many of the messages that cost so much make a page of at most `max`, and whether more follow.
pub fn page_len(costs_bytes: impl Iterator<Item = usize>, max: PageMax) -> (usize, bool) {
    let (mut count, mut bytes) = (0, 0usize);
    for cost_bytes in costs_bytes {
        bytes = bytes.saturating_add(cost_bytes);
        if count > 0 && (count >= max.messages || bytes > max.bytes) {
            return (count, true);
        }
        count += 1;
    }
    (count, false)
}
