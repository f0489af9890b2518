//! Questions to channels, wherever they live: pages, and the places where readers begin.

use std::rc::Rc;

use crate::domain::channel::Name;
use crate::domain::feed::Link;
use crate::domain::page::{From, Page, PageMax};
use crate::runtime::feeds::{LEASE_MS, Place};
use crate::runtime::mail::{Answer, Ask};
use crate::runtime::post::Overloaded;
use crate::runtime::worker::Worker;

/// How often a feed that is dropped at just the wrong moment is asked for again.
const TRIES: usize = 4;

/// A page of a channel: from this worker's feed if it holds it, else from the channel's home.
///
/// # Errors
/// [`Overloaded`]
pub async fn page(worker: &Rc<Worker>, name: &Name, from: From, max: PageMax) -> Result<Page, Overloaded> {
    read_mail(worker);
    let local = worker.with(|state| {
        let (now_ms, bounds) = (state.node.clock.now_ms(), state.node.feed_bounds());
        let feed = *state.feeds_by_name.get(name)?;
        let feed = state.feeds.get_mut(feed)?;
        feed.leased_until_ms = feed.leased_until_ms.max(now_ms + LEASE_MS);
        feed.read(from, max, bounds, now_ms)
    });
    if let Some(page) = local {
        return Ok(page);
    }
    match worker.ask(name, Ask::Read { name: name.clone(), from, max }).await? {
        Answer::Page(Some(page)) => Ok(page),
        _ => Err(Overloaded),
    }
}

/// Whether a page of the channel can be had without waiting, unless its feed here is just joining.
pub fn is_here(worker: &Rc<Worker>, name: &Name) -> bool {
    worker.with(|state| {
        state.node.home_of(name.as_str()) == state.index
            || state.feeds_by_name.get(name).and_then(|feed| state.feeds.get(*feed)).is_some()
    })
}

/// Whether a reader of the channel can begin without waiting for another worker.
pub fn is_live_here(worker: &Rc<Worker>, name: &Name) -> bool {
    worker.with(|state| {
        let feed = state.feeds_by_name.get(name).and_then(|feed| state.feeds.get(*feed));
        feed.map_or(state.node.home_of(name.as_str()) == state.index, |feed| feed.link == Link::Live)
    })
}

/// Makes sure that the channel has a live feed here, and finds where in it a reader begins.
///
/// # Errors
/// [`Overloaded`]
pub async fn place(worker: &Rc<Worker>, name: &Name, from: From) -> Result<Place, Overloaded> {
    let one = PageMax { messages: 1, bytes: 1 };
    for _ in 0..TRIES {
        worker.with(|state| state.feed(name));
        // The home answers after it has answered the feed's joining, if that is under way.
        let page = page(worker, name, from, one).await?;
        let place = worker.with(|state| {
            let feed = *state.feeds_by_name.get(name)?;
            let live = state.feeds.get(feed)?;
            let fits = live.link == Link::Live
                && live.head().incarnation == page.incarnation
                && page.after <= live.head().seq;
            let generation = state.feeds.generation(feed)?;
            let (incarnation, after, gap) = (page.incarnation, page.after, page.gap);
            fits.then_some(Place { feed, generation, incarnation, after, gap })
        });
        if let Some(place) = place {
            return Ok(place);
        }
    }
    Err(Overloaded)
}

/// What other workers had placed before this request came must be seen by its answer.
pub fn read_mail(worker: &Rc<Worker>) {
    while worker.has_mail() && worker.read_mail() {}
}
