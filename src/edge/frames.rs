//! What WebSocket clients say: raw frames are published, `pushline.v1` frames are acted on one after another.

use std::rc::Rc;

use crate::domain::auth::Act;
use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::home::Published;
use crate::domain::lane::Encoding;
use crate::domain::message::{Body, Draft};
use crate::domain::page::From;
use crate::proto::client_frame::{Operation, Start, parse_v1};
use crate::proto::envelope::{self, Seq};
use crate::proto::publish::Publish;
use crate::proto::refusal::{ErrorCode, Refusal};
use crate::runtime::close::Reason;
use crate::runtime::entry::{ConnId, Kind};
use crate::runtime::framing::text_frame;
use crate::runtime::holder::Last;
use crate::runtime::quotas::Limited;
use crate::runtime::state::Frame;
use crate::runtime::stats::Refusal as Counted;
use crate::runtime::trace::What;
use crate::runtime::turns::Pace;
use crate::runtime::worker::Worker;

use super::ask;
use super::auth::Declined;
use super::channels::newest;
use super::doorman;
use super::publish::{self, Publisher, Refused, publish_one, publish_parsed};
use super::renewal;
use super::site::Site;
use super::stream::{end_unless, has_channel};
use super::websocket::subscribed_frame;

/// Ends a connection whose frames were not acted on to the end: that was a fault of ours.
struct Unfinished {
    worker: Rc<Worker>,
    conn: ConnId,
    finished: bool,
    /// What the frames take, as the worker counts it.
    bytes: isize,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let bytes = self.bytes;
        self.worker.with(|state| state.weigh_work(-bytes));
        if !self.finished {
            let conn = self.conn;
            self.worker.with(|state| {
                if state.conn(conn).is_some() {
                    state.farewell(conn.slot, Reason::Internal, 0);
                    state.bury();
                }
            });
        }
    }
}

/// Acts on frames, in order.
pub async fn act(
    site: Rc<Site>,
    worker: Rc<Worker>,
    conn: ConnId,
    raw: Option<Name>,
    frames: Vec<Frame>,
    last: Option<Last>,
) {
    let bytes = frames.iter().map(|frame| size_of::<Frame>() + frame.len()).sum::<usize>() as isize;
    worker.with(|state| state.weigh_work(bytes));
    let mut unfinished = Unfinished { worker: Rc::clone(&worker), conn, finished: false, bytes };
    let mut pace = Pace::new(worker.with(|state| state.node.settings.history.messages));
    for frame in frames {
        pace.step(frame.len()).await;
        if !site.doorman.is_open() && is_ended(&worker, conn) {
            // Its token has ended, or was taken back: what it still asked for is not done.
            break;
        }
        match (&raw, frame) {
            (Some(channel), frame) => {
                if let Err(refused) = publish_raw(&site, &worker, conn, channel, frame).await {
                    unfinished.finished = true;
                    worker.with(|state| {
                        let reconnect_ms = state.reconnect_ms();
                        if state.conn(conn).is_some() {
                            state.farewell(conn.slot, refused, reconnect_ms);
                            state.bury();
                        }
                    });
                    return;
                }
            }
            (None, Frame::Text(text)) => on_text(&site, &worker, conn, &text).await,
            // Refused by the session already.
            (None, Frame::Binary(_)) => {}
        }
    }
    unfinished.finished = true;
    worker.with(|state| state.on_acted(conn, last));
}

/// A connection has published: whoever watches it hears of it.
fn trace_published(worker: &Rc<Worker>, conn: ConnId, channel: &Name, bytes: usize, published: &Published) {
    worker.with(|state| {
        if state.is_traced() {
            let Published { cursor, replayed } = *published;
            state.trace_publisher(conn, channel, || What::Published {
                cursor,
                bytes: bytes as u64,
                replayed,
            });
        }
    });
}

fn is_ended(worker: &Rc<Worker>, conn: ConnId) -> bool {
    worker.with(|state| state.conn(conn).is_none_or(|entry| matches!(entry.kind, Kind::Ending { .. })))
}

async fn publish_raw(
    site: &Site,
    worker: &Rc<Worker>,
    conn: ConnId,
    channel: &Name,
    frame: Frame,
) -> Result<(), Reason> {
    let permitted = worker.with(|state| {
        let permitted = site.doorman.permit_conn(state, conn, Act::Publish, channel);
        permitted.inspect_err(|denied| doorman::trace_conn(state, conn, *denied))
    });
    permitted.map_err(|denied| if denied.status() == 403 { Reason::NotAllowed } else { denied.reason() })?;
    let body = match frame {
        Frame::Text(text) => Body::Text(text.into()),
        Frame::Binary(bytes) => Body::Binary(bytes.into()),
    };
    let bytes = body.bytes().len();
    let draft = Draft { event: None, body, ttl_seconds: None };
    let published = match over_quota(worker, conn, bytes) {
        Some(limited) => {
            worker.with(|state| state.trace_conn_limited(conn, limited));
            Err(Refused::Limited(limited))
        }
        None => publish_one(worker, channel, draft, None).await,
    };
    match published {
        Ok(published) => {
            trace_published(worker, conn, channel, bytes, &published);
            Ok(())
        }
        Err(refused) => {
            publish::count(worker, refused);
            Err(match refused {
                Refused::Draining => Reason::Drain,
                Refused::Limited(_) => Reason::RateLimited,
                Refused::Overloaded | Refused::Memory | Refused::Key(_) => Reason::Full,
            })
        }
    }
}

/// Why a connection may not publish so much just now.
fn over_quota(worker: &Rc<Worker>, conn: ConnId, bytes: usize) -> Option<Limited> {
    worker.with(|state| {
        let quotas = state.node.quotas.as_ref()?;
        let entry = state.conn(conn)?;
        quotas.publish(&entry.peer, entry.bearer.as_deref(), 1, bytes).err()
    })
}

async fn on_text(site: &Site, worker: &Rc<Worker>, conn: ConnId, text: &str) {
    let (seq, result) = match parse_v1(text) {
        Ok(frame) => (frame.seq, operate(site, worker, conn, frame.operation, frame.seq).await),
        Err(refused) => (refused.seq, Err(Declined::from(refused.refusal))),
    };
    if let Err(declined) = result {
        worker.with(|state| {
            if state.is_traced() && state.conn(conn).is_some() {
                state.trace_conn(conn.slot, || What::Denied { why: declined.why() });
            }
        });
        let Refusal { code, detail } = declined.refusal;
        say(worker, conn, |json| {
            envelope::write_v1_error(json, code, detail, None, seq);
        });
    }
}

fn say(worker: &Rc<Worker>, conn: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
    let mut out = Vec::with_capacity(128);
    text_frame(&mut out, write);
    worker.with(|state| {
        if state.conn(conn).is_some() {
            state.say(conn.slot, &out);
            state.bury();
        }
    });
}

async fn operate(
    site: &Site,
    worker: &Rc<Worker>,
    conn: ConnId,
    operation: Operation<'_>,
    seq: Option<Seq>,
) -> Result<(), Declined> {
    match operation {
        Operation::Ping => say(worker, conn, |json| envelope::write_v1_pong(json, seq)),
        Operation::Auth { token } => renewal::authenticate(site, worker, conn, &token, seq).await?,
        Operation::Subscribe { channel, start } => {
            renewal::has_begun(site, worker, conn)?;
            subscribe(site, worker, conn, &channel, &start, seq).await?;
        }
        Operation::Unsubscribe { channel } => {
            renewal::has_begun(site, worker, conn)?;
            unsubscribe(worker, conn, &channel, seq)?;
        }
        Operation::Publish(publish) => {
            renewal::has_begun(site, worker, conn)?;
            publish_v1(site, worker, conn, publish, seq).await?;
        }
    }
    Ok(())
}

fn name_of(channel: &str) -> Result<Name, Refusal> {
    Name::parse(channel).map_err(|error| Refusal::new(ErrorCode::BadChannel, error.detail()))
}

async fn subscribe(
    site: &Site,
    worker: &Rc<Worker>,
    conn: ConnId,
    channel: &str,
    start: &Start<'_>,
    seq: Option<Seq>,
) -> Result<(), Declined> {
    let name = name_of(channel)?;
    worker.with(|state| site.doorman.permit_conn(state, conn, Act::Subscribe, &name))?;
    let from = match start {
        Start::Now => From::Now,
        Start::Cursor(text) => From::After(
            Cursor::parse(text).map_err(|error| Refusal::new(ErrorCode::BadCursor, error.detail()))?,
        ),
        Start::History(count) => newest(u64::from(*count)),
    };
    let (has, full, short, bearer) = worker.with(|state| {
        let bearer = state.conn(conn).and_then(|entry| entry.bearer.clone());
        let count = state.conn(conn).map_or(0, |entry| entry.subs.as_slice().len());
        let full = count >= state.node.settings.limits.subscriptions;
        (has_channel(state, conn, &name), full, state.is_full(), bearer)
    });
    if has {
        return Err(Refusal::new(
            ErrorCode::AlreadySubscribed,
            "this connection has the channel already; unsubscribe first to begin elsewhere",
        )
        .into());
    }
    if full {
        return Err(Refusal::new(
            ErrorCode::TooManySubscriptions,
            "this connection has as many channels as limits.subscriptions allows; unsubscribe one, or open another \
             connection",
        )
        .into());
    }
    if short {
        worker.stats().refuse(Counted::Memory);
        return Err(Refusal::new(
            ErrorCode::Overloaded,
            "the server is short of memory; subscribe again later",
        )
        .into());
    }
    let counted = worker.with(|state| state.begin_subscription(conn));
    counted.map_err(|limited| {
        worker.stats().refuse(Counted::Quota);
        Refusal::new(ErrorCode::RateLimited, limited.detail())
    })?;
    let place = ask::place(worker, &name, from).await.map_err(|_| {
        worker.stats().refuse(Counted::Overloaded);
        worker.with(|state| state.give_subscription_back(conn));
        Refusal::new(ErrorCode::Overloaded, "the server has more to do than it can; subscribe again later")
    })?;
    let mut out = Vec::with_capacity(128);
    subscribed_frame(&mut out, &name, &place, seq);
    worker.with(|state| {
        if state.conn(conn).is_some() {
            state.say(conn.slot, &out);
            let reads = state.subscribe(conn.slot, place, Encoding::V1, false);
            end_unless(state, conn, reads);
            if let Some(bearer) = &bearer {
                renewal::recheck(&site.doorman, state, conn, bearer);
            }
            state.bury();
        }
    });
    Ok(())
}

fn unsubscribe(worker: &Rc<Worker>, conn: ConnId, channel: &str, seq: Option<Seq>) -> Result<(), Refusal> {
    let name = name_of(channel)?;
    let had = worker.with(|state| {
        if !has_channel(state, conn, &name) {
            return false;
        }
        if let Some(&feed) = state.feeds_by_name.get(&name) {
            // What was published before is still its own.
            state.send_pending(conn.slot);
            state.unsubscribe(conn.slot, feed);
        }
        true
    });
    if !had {
        return Err(Refusal::new(
            ErrorCode::NotSubscribed,
            "this connection does not have the channel; subscribe first",
        ));
    }
    say(worker, conn, |json| envelope::write_v1_unsubscribed(json, name.as_str(), seq));
    Ok(())
}

async fn publish_v1(
    site: &Site,
    worker: &Rc<Worker>,
    conn: ConnId,
    publish: Publish<'_>,
    seq: Option<Seq>,
) -> Result<(), Declined> {
    let bytes = publish.data.bytes();
    let bearer = worker.with(|state| site.doorman.bearer_of(state, conn))?;
    let publisher = bearer
        .as_ref()
        .map_or(Publisher::ANYONE, |(bearer, peer)| Publisher::of(&site.doorman, bearer, *peer));
    let message_bytes_max = site.settings().limits.message_bytes;
    let over_quota = |bytes| over_quota(worker, conn, bytes);
    let published = publish_parsed(worker, publish, message_bytes_max, publisher, None, over_quota).await;
    let (name, published) = published.map_err(|(declined, _)| declined)?;
    trace_published(worker, conn, &name, bytes, &published);
    say(worker, conn, |json| {
        envelope::write_v1_published(json, name.as_str(), &published.cursor.text(), published.replayed, seq);
    });
    Ok(())
}
