//! Requests that are answered where their bytes were read, without a task: those that came whole and alone, and need
//! nobody else: publishes to a channel of this worker, polls of channels that it holds.
//! Owns the choice of them. How they are answered is the handlers', the same that tasks call.

use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::proto::http::fields::Accept;
use crate::proto::http::head::HeadScanner;
use crate::proto::http::request::{BodyLength, FieldSlots, Method, Request, Upgrade, Version, parse};
use crate::proto::http::target::{Target, decode_path};
use crate::runtime::entry::ConnId;
use crate::runtime::worker::{AtOnce, Worker};

use super::answer::{Answer, Manner};
use super::ask;
use super::channels::parse_names;
use super::publish::{self, Labels};
use super::read::{self, Polled};
use super::site::Site;

/// Appends the answer to what came on a held connection. `None`: nothing was done, and all is for a task, what is wrong
/// with it included.
pub fn serve(
    site: &Site,
    worker: &Rc<Worker>,
    conn: ConnId,
    input: &[u8],
    out: &mut Vec<u8>,
) -> Option<AtOnce> {
    let span = HeadScanner::new(site.settings().limits.head_bytes).find(input).ok()??;
    let mut slots = FieldSlots::new();
    let request = parse(input, span, &mut slots).ok()?;
    let content = input.get(span.used()..)?;
    if !is_whole(&request, content) || worker.drain_ends().is_some() {
        return None;
    }
    let passed = site.gate.pass(&request).ok()?;
    let unix_s = site.node.clock.now_ms() / 1_000;
    let (method, version) = (request.method, request.version);
    let manner = Manner { method, version, keep_alive: true, passed, unix_s };
    let answer = match method {
        Method::Post => publish_here(site, worker, &request, content)?,
        Method::Get => match poll_here(site, worker, &request)? {
            Polled::Answer(answer) => answer,
            Polled::Hold { places, limit, wait_s } => {
                worker.with(|state| {
                    state.stats().requests.add(1);
                    let held = read::held(state, &manner, limit, wait_s, Vec::new());
                    read::hold_on(state, conn, &places, held);
                });
                return Some(AtOnce::Held);
            }
        },
        _ => return None,
    };
    if answer.close {
        return None;
    }
    worker.with(|state| state.stats().requests.add(1));
    answer.write(out, &manner);
    Some(AtOnce::Answered)
}

/// One request, with all of its content and nothing after it, on a connection that goes on.
fn is_whole(request: &Request<'_>, content: &[u8]) -> bool {
    let bytes = match request.body {
        BodyLength::None => 0,
        BodyLength::Length(bytes) => bytes,
        BodyLength::Chunked => return false,
    };
    bytes == content.len() as u64
        && request.keep_alive
        && request.version == Version::Http11
        && !request.expect_continue
        && request.upgrade == Upgrade::None
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

fn poll_here(site: &Site, worker: &Rc<Worker>, request: &Request<'_>) -> Option<Polled> {
    let accept = Accept::parse(request.fields.all("accept"));
    if accept.event_stream || !accept.json || !request.body.is_empty() {
        return None;
    }
    let names = names_of(request)?;
    if !names.iter().all(|name| ask::is_here(worker, name)) {
        return None;
    }
    let Target::Path { query, .. } = request.target else { return None };
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
