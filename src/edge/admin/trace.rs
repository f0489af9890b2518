//! `/trace`: what happens to a connection, a subject, a channel or an address, live, as Server-Sent Events of one JSON
//! object each (`runtime::trace_line`).
//! Owns how many go on at once, and the looking for events: workers wake nobody (`runtime::trace`).

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_core::Stream;
use ipnet::IpNet;
use tokio::time::{Interval, MissedTickBehavior};

use crate::domain::channel::Name;
use crate::runtime::identity::read_id;
use crate::runtime::node::Node;
use crate::runtime::state::State as Worker;
use crate::runtime::trace::{By, Trace, What};
use crate::runtime::trace_line;

use super::desk::Desk;
use super::problem::Refused;

/// Traces at once.
const TRACES_MAX: usize = 8;
/// How often events are looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Looks without an event before a comment says that the trace goes on.
const QUIET_LOOKS: u32 = 300;
/// Events in one piece.
const EVENTS_MAX: usize = 256;

static TRACES: AtomicUsize = AtomicUsize::new(0);

pub fn routes() -> Router<Desk> {
    Router::new().route("/trace", get(trace))
}

type Asked = Vec<(String, String)>;

async fn trace(
    State(desk): State<Desk>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(asked) = asked?;
    let by = asked.iter().map(|(name, text)| read(desk.node(), name, text)).collect::<Result<Vec<_>, _>>()?;
    if by.is_empty() {
        return Err(Refused::bad(SAY_WHAT));
    }
    let place = Place::take().ok_or_else(|| {
        Refused::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{TRACES_MAX} traces are under way, as many as there may be; end one of them"),
        )
    })?;
    let of_one = matches!(by[..], [By::Connection(..)]);
    let (trace, watch) = Trace::new(desk.node(), by);
    let watched = desk.ask_all(|_| {
        let watch = watch.clone();
        move |state: &mut Worker| state.watch(watch)
    });
    for watched in watched.await {
        watched?;
    }
    let events = Events::begin(desk.node(), &asked, trace, of_one, place);
    let fields = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((fields, Body::from_stream(events)).into_response())
}

const SAY_WHAT: &str = "say what to trace: ?connection=ID (as `$open` gave it), ?subject=SUB, ?channel=NAME, or ?address=IP, \
                        IP/BITS or unix; several are traced together";

fn read(node: &Node, name: &str, text: &str) -> Result<By, Refused> {
    match name {
        "connection" => {
            read_id(&node.secret, text).map(|(worker, conn)| By::Connection(worker, conn)).ok_or_else(|| {
                Refused::new(
                    StatusCode::NOT_FOUND,
                    "this process never gave a connection that id; /connections lists those that are open",
                )
            })
        }
        "subject" => Ok(By::Subject(text.into())),
        "channel" => Name::parse(text).map(By::Channel).map_err(|error| {
            Refused::bad(format!("channel: {}; a trace is of one channel, not of a pattern", error.detail()))
        }),
        "address" if text == "unix" => Ok(By::Unix),
        "address" => {
            let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            let wrong = |_| Refused::bad("address: give an IP address, a network like 10.0.0.0/8, or unix");
            network.map(By::Network).map_err(wrong)
        }
        _ => Err(Refused::bad(format!("{name:?} is nothing to trace by; {SAY_WHAT}"))),
    }
}

/// One of the traces that may go on at once.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let taken = TRACES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < TRACES_MAX).then_some(taken + 1)
        });
        taken.ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TRACES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of the answer.
struct Events {
    node: Arc<Node>,
    trace: Trace,
    /// It ends with the one connection that it is of.
    of_one: bool,
    is_over: bool,
    looks: Interval,
    quiet: u32,
    first: Option<Bytes>,
    _place: Place,
}

impl Events {
    /// All workers watch now: nothing that happens after the first event is missed.
    fn begin(node: &Arc<Node>, asked: &Asked, trace: Trace, of_one: bool, place: Place) -> Self {
        let mut json = Vec::new();
        let of: Vec<(&str, &str)> = asked.iter().map(|(name, text)| (&**name, &**text)).collect();
        trace_line::write_watching(&mut json, node.clock.now_ms(), &of);
        let mut first = Vec::new();
        write_event(&mut first, &json);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            node: Arc::clone(node),
            trace,
            of_one,
            is_over: false,
            looks,
            quiet: 0,
            first: Some(first.into()),
            _place: place,
        }
    }

    /// What came since the last look.
    fn look(&mut self) -> Vec<u8> {
        let (mut out, mut json) = (Vec::new(), Vec::new());
        for _ in 0..EVENTS_MAX {
            let Some(event) = self.trace.next() else { break };
            json.clear();
            trace_line::write(&mut json, &event, &self.node.secret);
            write_event(&mut out, &json);
            self.is_over |= self.of_one && matches!(event.what, What::Absent | What::Closed { .. });
        }
        let dropped = self.trace.dropped();
        if dropped > 0 {
            json.clear();
            trace_line::write_dropped(&mut json, self.node.clock.now_ms(), dropped);
            write_event(&mut out, &json);
        }
        out
    }
}

/// One event, which is one line of JSON.
fn write_event(out: &mut Vec<u8>, json: &[u8]) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(json);
    out.extend_from_slice(b"\n\n");
}

impl Stream for Events {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if self.is_over {
            return Poll::Ready(None);
        }
        loop {
            if self.looks.poll_tick(cx).is_pending() {
                return Poll::Pending;
            }
            let out = self.look();
            self.quiet = if out.is_empty() { self.quiet + 1 } else { 0 };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(out.into())));
            }
            if self.quiet >= QUIET_LOOKS {
                self.quiet = 0;
                return Poll::Ready(Some(Ok(Bytes::from_static(b":\n\n"))));
            }
        }
    }
}
