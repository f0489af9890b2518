//! A worker's feeds: made where somebody reads a channel, joined to its home, dropped when nobody does.

use std::sync::Arc;

use crate::domain::channel::Name;
use crate::domain::feed::{Arrival, Feed, Link};
use crate::domain::message::Message;
use crate::domain::page::{Page, PageMax};

use super::framing::frame;
use super::mail::{Answer, Ask, Mail};
use super::post::Pending;
use super::state::State;

/// What a worker asks for when it joins a channel, and one page of history.
pub const PAGE: PageMax = PageMax { messages: 64, bytes: 64 * 1024 };
/// A feed stays this long for polls and for readers that come back.
pub const LEASE_MS: u64 = 5_000;

/// Where a reader begins in a feed of this worker.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub feed: u32,
    pub generation: u32,
    pub incarnation: u64,
    /// The position just before the first message that follows.
    pub after: u64,
    pub gap: bool,
}

impl Place {
    pub fn cursor(&self) -> crate::domain::cursor::Cursor {
        crate::domain::cursor::Cursor { incarnation: self.incarnation, seq: self.after }
    }
}

impl State {
    /// The channel's feed here; made, and asked for at its home, if there is none.
    pub fn feed(&mut self, name: &Name) -> u32 {
        let leased_until_ms = self.node.clock.now_ms() + LEASE_MS;
        if let Some(&feed) = self.feeds_by_name.get(name) {
            if let Some(feed) = self.feeds.get_mut(feed) {
                feed.leased_until_ms = feed.leased_until_ms.max(leased_until_ms);
            }
            return feed;
        }
        let mut feed = Feed::new(name.clone());
        feed.leased_until_ms = leased_until_ms;
        let (slot, _) = self.feeds.insert(feed);
        self.feeds_by_name.insert(name.clone(), slot);
        self.join(name.clone());
        slot
    }

    /// A feed for a channel that lives elsewhere; one that lives here is read where it is.
    pub fn feed_if_remote(&mut self, name: &Name) {
        if self.node.home_of(name.as_str()) != self.index {
            self.feed(name);
        }
    }

    /// The channel's head, if this worker knows it without asking.
    pub fn known_head(&mut self, name: &Name) -> Option<crate::domain::cursor::Cursor> {
        if self.node.home_of(name.as_str()) == self.index {
            return self.home.head(name, self.node.clock.now_ms());
        }
        let feed = self.feeds.get(*self.feeds_by_name.get(name)?)?;
        (feed.link == Link::Live).then(|| feed.head())
    }

    pub(super) fn join(&mut self, name: Name) {
        let home = self.node.home_of(name.as_str());
        let ask = Ask::Join { name: name.clone(), max: PAGE };
        if home == self.index {
            if let Answer::Page(page) = self.answer(self.index, ask) {
                self.on_joined(&name, page);
            }
            return;
        }
        self.ask_surely(home, ask, Pending::Join(name));
    }

    pub(super) fn on_joined(&mut self, name: &Name, page: Option<Page>) {
        let Some(&slot) = self.feeds_by_name.get(name) else { return };
        let bounds = self.feed_bounds();
        let Some(feed) = self.feeds.get_mut(slot) else { return };
        match page {
            Some(page) => {
                feed.on_joined(page, bounds, &mut frame);
                self.weigh_feed(slot);
                self.touch(slot);
            }
            None => {
                // No room for the channel: whoever waits for the feed finds it gone.
                self.drop_feed(slot);
            }
        }
    }

    pub(super) fn on_live(&mut self, message: Arc<Message>, placed_us: u64) {
        let Some(&slot) = self.feeds_by_name.get(&message.channel) else { return };
        let bounds = self.feed_bounds();
        let Some(feed) = self.feeds.get_mut(slot) else { return };
        match feed.on_message(message, bounds, &mut frame) {
            Arrival::Placed => {
                if feed.placed_us == 0 && feed.has_readers() {
                    feed.placed_us = placed_us;
                }
                self.weigh_feed(slot);
                self.touch(slot);
            }
            Arrival::Ignored => {}
            Arrival::Hole => {
                let name = feed.name.clone();
                self.join(name);
            }
        }
    }

    /// Puts a feed into the fan-out's queue if anybody reads it.
    pub fn touch(&mut self, slot: u32) {
        if let Some(feed) = self.feeds.get_mut(slot)
            && !feed.queued
            && feed.has_readers()
        {
            feed.queued = true;
            self.dirty.push_back(slot);
        }
    }

    /// Lets go of a feed that nobody reads, and tells the channel's home.
    pub fn drop_feed(&mut self, slot: u32) {
        let Some(feed) = self.feeds.remove(slot) else { return };
        assert!(!feed.has_readers(), "a feed with readers was dropped");
        self.forget_feed(feed.counted_bytes);
        self.feeds_by_name.remove(&feed.name);
        let home = self.node.home_of(feed.name.as_str());
        let ask = Ask::Leave { name: feed.name };
        if home == self.index {
            self.answer(self.index, ask);
        } else {
            self.node.post(home, Mail::Ask { from: self.index, token: u32::MAX, ask });
        }
    }
}
