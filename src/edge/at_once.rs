//! Requests that are answered where their bytes were read, without a task: those that came whole and need nobody else,
//! publishes to a channel of this worker, polls of channels that it holds. Several that came together too.
//! Owns the choice of them. How they are answered is the handlers', the same that tasks call.

use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::proto::http::fields::Accept;
use crate::proto::http::head::HeadScanner;
use crate::proto::http::request::{BodyLength, FieldSlots, Method, Request, Upgrade, Version, parse};
use crate::proto::http::target::{Target, decode_path};
use crate::runtime::entry::ConnId;
use crate::runtime::turns::steps_max;
use crate::runtime::worker::{Done, Worker};

use super::answer::{Answer, Manner};
use super::ask;
use super::channels::parse_names;
use super::publish::{self, Labels};
use super::read::{self, Polled};
use super::site::Site;

/// Answers to one connection that are made before any is sent, about.
const OUT_BYTES: usize = 64 * 1024;

/// Appends the answers to the requests at the start of what came on a held connection. Where it stops, nothing was done
/// yet, and all is for a task, what is wrong with it included.
pub fn serve(site: &Site, worker: &Rc<Worker>, conn: ConnId, input: &[u8], out: &mut Vec<u8>) -> Done {
    let requests_max = steps_max(site.settings().history.messages);
    let mut done = Done::default();
    let start = out.len();
    while (done.answers as usize) < requests_max
        && out.len() - start < OUT_BYTES
        && let Some(rest) = input.get(done.bytes..)
        && !rest.is_empty()
    {
        match serve_one(site, worker, conn, rest, done.answers == 0, out) {
            Some(Served::Answered { bytes }) => {
                done.bytes += bytes;
                done.answers += 1;
            }
            Some(Served::Held) => done.bytes = input.len(),
            None => break,
        }
    }
    worker.with(|state| state.stats().requests.add(u64::from(done.answers)));
    done
}

enum Served {
    /// The request was so long.
    Answered { bytes: usize },
    /// It waits in the holder, and what came behind it too.
    Held,
}

/// `holds`: nothing is answered yet that must be sent before what a held request is answered with.
fn serve_one(
    site: &Site,
    worker: &Rc<Worker>,
    conn: ConnId,
    input: &[u8],
    holds: bool,
    out: &mut Vec<u8>,
) -> Option<Served> {
    let span = HeadScanner::new(site.settings().limits.head_bytes).find(input).ok()??;
    let mut slots = FieldSlots::new();
    let request = parse(input, span, &mut slots).ok()?;
    let behind = input.get(span.used()..)?;
    let content = behind.get(..content_bytes(&request)?)?;
    if worker.drain_ends().is_some() {
        return None;
    }
    let passed = site.gate.pass(&request).ok()?;
    let unix_s = site.node.clock.now_ms() / 1_000;
    let (method, version) = (request.method, request.version);
    let manner = Manner { method, version, keep_alive: true, passed, unix_s };
    let answer = match method {
        Method::Post => publish_here(site, worker, &request, content)?,
        Method::Get => match poll_here(site, worker, &request, holds)? {
            Polled::Answer(answer) => answer,
            Polled::Hold { places, limit, wait_s } => {
                worker.with(|state| {
                    state.stats().requests.add(1);
                    let held = read::held(state, &manner, limit, wait_s, behind.to_vec());
                    read::hold_on(state, conn, &places, held);
                });
                return Some(Served::Held);
            }
        },
        _ => return None,
    };
    // No handler that was asked closes a connection: it would have to be told so.
    debug_assert!(!answer.close);
    answer.write(out, &manner);
    Some(Served::Answered { bytes: span.used() + content.len() })
}

/// How long the content is, if the connection goes on after it.
fn content_bytes(request: &Request<'_>) -> Option<usize> {
    let goes_on = request.keep_alive
        && request.version == Version::Http11
        && !request.expect_continue
        && request.upgrade == Upgrade::None;
    match request.body {
        BodyLength::None if goes_on => Some(0),
        BodyLength::Length(bytes) if goes_on => usize::try_from(bytes).ok(),
        _ => None,
    }
}

fn publish_here(site: &Site, worker: &Rc<Worker>, request: &Request<'_>, content: &[u8]) -> Option<Answer> {
    let names = names_of(request)?;
    let [name] = &names[..] else { return None };
    let is_home = worker.with(|state| state.node.home_of(name) == state.index);
    if !is_home || content.len() > site.settings().limits.message_bytes {
        return None;
    }
    let labels = Labels::of(&request.fields).ok()?;
    let draft = labels.draft(content.to_vec()).ok()?;
    now(publish::publish(worker, &names, draft, labels.key()))
}

fn poll_here(site: &Site, worker: &Rc<Worker>, request: &Request<'_>, holds: bool) -> Option<Polled> {
    let accept = Accept::parse(request.fields.all("accept"));
    if accept.event_stream || !accept.json || !request.body.is_empty() {
        return None;
    }
    let names = names_of(request)?;
    if !names.iter().all(|name| ask::is_here(worker, name)) {
        return None;
    }
    let Target::Path { query, .. } = request.target else { return None };
    if !holds && read::wait_of(query, request).map_or(true, |wait_s| wait_s > 0) {
        return None;
    }
    now(read::poll(worker, &site.remembered, request, query, names))
}

fn names_of(request: &Request<'_>) -> Option<Vec<crate::domain::channel::Name>> {
    let Target::Path { path, .. } = request.target else { return None };
    let path = decode_path(path).ok()?;
    parse_names(path.strip_prefix("/channels/")?).ok()
}

/// What a future comes to without waiting. One that would wait is dropped: it has done nothing yet that a second run of
/// it would do twice.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
