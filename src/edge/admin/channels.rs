//! `/channels`: what channels there are, who reads them, how often they are published to, what they keep.
//! Owns the choice among many (by name, a page after another; or the first by a number) and the adding up: a channel lives
//! on one worker and is read on all. Each worker first tells its candidates, walking over its channels a slice at a time
//! with no more in hand than may be answered; then all are asked about those chosen.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::domain::channel::Name;
use crate::domain::home::{Look, WorkerIndex};
use crate::runtime::close::Transport;
use crate::runtime::fanout::ENCODING_TRANSPORTS;
use crate::runtime::state::State as Worker;
use crate::runtime::stats::TRANSPORTS;

use super::desk::{Desk, SLICE, Silent};
use super::problem::Refused;
use super::{LIMIT, LIMIT_MAX, limit_of};

/// Channels looked at before the clock is.
const LOOKS: usize = 128;

pub fn routes() -> Router<Desk> {
    Router::new().route("/channels", get(list))
}

/// What a list is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    prefix: String,
    sort: Sort,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sort {
    #[default]
    Name,
    /// The largest first.
    Readers,
    Rate,
    Messages,
    Bytes,
}

#[derive(Debug, Serialize)]
struct List {
    channels: Vec<Row>,
    /// All channels of the node, whatever was asked for.
    known: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    channel: String,
    /// Where it lives.
    worker: WorkerIndex,
    head: String,
    publishes_per_second: f64,
    history: Kept,
    readers: Readers,
    feed_bytes: usize,
}

#[derive(Debug, Default, Serialize)]
struct Kept {
    messages: usize,
    bytes: usize,
}

/// By transport.
#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Readers {
    total: u64,
    long_poll: u64,
    sse: u64,
    websocket: u64,
    #[serde(rename = "pushline.v1")]
    v1: u64,
}

impl Readers {
    fn add(&mut self, counts: &[u64; TRANSPORTS]) {
        self.long_poll += counts[Transport::LongPoll as usize];
        self.sse += counts[Transport::Sse as usize];
        self.websocket += counts[Transport::Raw as usize];
        self.v1 += counts[Transport::V1 as usize];
        self.total = self.long_poll + self.sse + self.websocket + self.v1;
    }
}

async fn list(
    State(desk): State<Desk>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<List>, Refused> {
    let Query(wanted) = wanted?;
    let limit = limit_of(wanted.limit, LIMIT, LIMIT_MAX)?;
    if wanted.after.is_some() && wanted.sort != Sort::Name {
        return Err(Refused::bad(
            "after goes with sort=name: a list by a number has no second page; raise limit",
        ));
    }
    let choice = Choice { wanted: Arc::new(wanted), room: limit + 1, at: 0, best: BinaryHeap::new() };
    let sort = choice.wanted.sort;
    let (mut names, known) = candidates(&desk, choice).await?;
    let mut next = None;
    if sort != Sort::Readers && names.len() > limit {
        names.truncate(limit);
        next = names.last().filter(|_| sort == Sort::Name).map(|name| name.as_str().to_owned());
    }
    let mut channels = Vec::with_capacity(names.len());
    for some in names.chunks(LIMIT_MAX) {
        channels.extend(describe(&desk, some.into()).await?);
    }
    if sort == Sort::Readers {
        channels.sort_by(|a, b| (b.readers.total, &a.channel).cmp(&(a.readers.total, &b.channel)));
        channels.truncate(limit);
    }
    Ok(Json(List { channels, known, next }))
}

/// The best of all workers, in order, and how many channels there are. By readers, of which each worker knows its own
/// alone: the best of each worker, in no order.
async fn candidates(desk: &Desk, choice: Choice) -> Result<(Vec<Name>, usize), Refused> {
    let mut choosing = JoinSet::new();
    for worker in desk.workers() {
        let (desk, mut choice) = (desk.clone(), choice.fresh());
        choosing.spawn(async move {
            loop {
                let asked = desk.ask(worker, move |state| {
                    let is_whole = choice.go_on(state);
                    (choice, is_whole, state.home.channels())
                });
                let (chosen, is_whole, known) = asked.await?;
                choice = chosen;
                if is_whole {
                    return Ok::<_, Silent>((choice, known));
                }
            }
        });
    }
    let (mut best, mut each, mut known) = (choice.fresh(), BTreeSet::new(), 0);
    while let Some(chosen) = choosing.join_next().await {
        // A task of ours that panicked has been told of by the panic.
        let Ok(chosen) = chosen else { continue };
        let (chosen, channels) = chosen?;
        known += channels;
        if choice.wanted.sort == Sort::Readers {
            each.extend(chosen.best.into_iter().map(|Rank(_, name)| name));
        } else {
            chosen.best.into_iter().for_each(|rank| best.add(rank));
        }
    }
    let best = best.best.into_sorted_vec().into_iter().map(|Rank(_, name)| name);
    Ok((each.into_iter().chain(best).collect(), known))
}

/// What a channel is chosen by, the best first: its number, the largest first; then its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(Reverse<u64>, Name);

/// The best channels found so far on one worker, and where the walk goes on.
struct Choice {
    wanted: Arc<Wanted>,
    room: usize,
    at: usize,
    /// The worst on top.
    best: BinaryHeap<Rank>,
}

impl Choice {
    fn fresh(&self) -> Self {
        Self { wanted: Arc::clone(&self.wanted), room: self.room, at: 0, best: BinaryHeap::new() }
    }

    fn add(&mut self, rank: Rank) {
        self.best.push(rank);
        if self.best.len() > self.room {
            self.best.pop();
        }
    }

    /// Whether a channel with this number could be among the best; asked before its name is taken.
    fn would_take(&self, number: u64, name: &Name) -> bool {
        self.best.len() < self.room
            || self.best.peek().is_some_and(|worst| (Reverse(number), name) < (worst.0, &worst.1))
    }

    fn fits(&self, name: &Name) -> bool {
        let after = self.wanted.after.as_deref();
        name.as_str().starts_with(&self.wanted.prefix) && after.is_none_or(|after| name.as_str() > after)
    }

    /// Looks on, for a slice of time. True when all was looked at.
    fn go_on(&mut self, state: &Worker) -> bool {
        let until = Instant::now() + SLICE;
        if self.wanted.sort == Sort::Readers {
            self.go_on_feeds(state, until)
        } else {
            self.go_on_homes(state, until)
        }
    }

    fn go_on_homes(&mut self, state: &Worker, until: Instant) -> bool {
        for (at, look) in state.home.look_from(self.at, state.node.clock.now_ms()) {
            if let Some(look) = look.filter(|look| self.fits(look.name)) {
                self.consider(number_of(self.wanted.sort, &look), look.name);
            }
            if at.is_multiple_of(LOOKS) && Instant::now() >= until {
                self.at = at + 1;
                return false;
            }
        }
        true
    }

    fn go_on_feeds(&mut self, state: &Worker, until: Instant) -> bool {
        while self.at < state.feeds.slots_end() as usize {
            if let Some(feed) = state.feeds.get(self.at as u32).filter(|feed| self.fits(&feed.name)) {
                let readers: usize = feed.lanes.iter().map(|lane| lane.readers.len()).sum();
                self.consider(readers as u64, &feed.name);
            }
            self.at += 1;
            if self.at.is_multiple_of(LOOKS) && Instant::now() >= until {
                return false;
            }
        }
        true
    }

    fn consider(&mut self, number: u64, name: &Name) {
        if self.would_take(number, name) {
            self.add(Rank(Reverse(number), name.clone()));
        }
    }
}

fn number_of(sort: Sort, look: &Look<'_>) -> u64 {
    match sort {
        Sort::Name | Sort::Readers => 0,
        // In the order of numbers that are not negative.
        Sort::Rate => look.per_second.to_bits(),
        Sort::Messages => look.messages as u64,
        Sort::Bytes => look.bytes as u64,
    }
}

/// What one worker knows of a channel.
#[derive(Default)]
struct Part {
    /// Head, messages per second, what is kept; of its home alone.
    home: Option<(String, f64, Kept)>,
    readers: [u64; TRANSPORTS],
    feed_bytes: usize,
}

async fn describe(desk: &Desk, names: Arc<[Name]>) -> Result<Vec<Row>, Refused> {
    let answers = desk.ask_all(|_| {
        let names = Arc::clone(&names);
        move |state: &mut Worker| names.iter().map(|name| part_of(state, name)).collect::<Vec<Part>>()
    });
    let mut parts = Vec::new();
    for answer in answers.await {
        parts.push(answer?.into_iter());
    }
    let mut rows = Vec::with_capacity(names.len());
    for name in names.iter() {
        let mut row = Row {
            channel: name.as_str().to_owned(),
            worker: desk.node().home_of(name.as_str()),
            head: String::new(),
            publishes_per_second: 0.0,
            history: Kept::default(),
            readers: Readers::default(),
            feed_bytes: 0,
        };
        for part in parts.iter_mut().filter_map(Iterator::next) {
            if let Some((head, per_second, kept)) = part.home {
                (row.head, row.publishes_per_second, row.history) =
                    (head, (per_second * 1e3).round() / 1e3, kept);
            }
            row.readers.add(&part.readers);
            row.feed_bytes += part.feed_bytes;
        }
        // Forgotten between the two questions: nothing is to be told of it.
        if !row.head.is_empty() {
            rows.push(row);
        }
    }
    Ok(rows)
}

fn part_of(state: &Worker, name: &Name) -> Part {
    let home = state.home.look(name, state.node.clock.now_ms()).map(|look| {
        (look.head.text().to_string(), look.per_second, Kept { messages: look.messages, bytes: look.bytes })
    });
    let mut part = Part { home, ..Part::default() };
    if let Some(feed) = state.feeds_by_name.get(name).and_then(|feed| state.feeds.get(*feed)) {
        part.feed_bytes = feed.held_bytes();
        for lane in &feed.lanes {
            part.readers[ENCODING_TRANSPORTS[lane.encoding as usize] as usize] += lane.readers.len() as u64;
        }
    }
    part
}
