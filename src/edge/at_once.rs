//! Requests that are served where their bytes were read, without a task: those that came whole, and are polls of channels
//! that this worker holds, or publishes; several that came together too. Channels of other workers are asked for. (Streams:
//! `opening`.)
//! Owns the choice of them. How they are answered is the handlers', the same that tasks call.

use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use memchr::memchr;

use crate::domain::auth::{Act, Bearer};
use crate::domain::channel::{NAME_BYTES_MAX, Name};
use crate::domain::home::{PublishRefusal, Published};
use crate::domain::message::Draft;
use crate::proto::http::fields::Accept;
use crate::proto::http::head::HeadScanner;
use crate::proto::http::request::{BodyLength, FieldSlots, Method, Request, Upgrade, Version, parse};
use crate::proto::http::target::{Target, decode_path};
use crate::runtime::caller::Caller;
use crate::runtime::close::Transport;
use crate::runtime::entry::ConnId;
use crate::runtime::noted::Noted;
use crate::runtime::peer::Peer;
use crate::runtime::publishing::Publishing;
use crate::runtime::quotas::Limited;
use crate::runtime::trace::Who;
use crate::runtime::turns::steps_max;
use crate::runtime::worker::{Done, Worker};

use super::answer::{Answer, Manner};
use super::ask;
use super::channels::parse_names;
use super::conn::OUT_BYTES;
use super::forwarding;
use super::labels::Labels;
use super::opening;
use super::origin::Passed;
use super::publish::{self, Publisher, Refused};
use super::read::{self, Polled};
use super::site::Site;

/// Appends the answers to the requests at the start of what came on a held connection. Where it stops, nothing was done
/// yet, and all is for a task, what is wrong with it included.
pub fn serve(site: &Site, worker: &Rc<Worker>, conn: ConnId, input: &[u8], out: &mut Vec<u8>) -> Done {
    let requests_max = steps_max(site.settings().history.messages);
    let mut batch = Batch {
        site,
        worker,
        conn,
        out,
        start: 0,
        answers: 0,
        publishing: Publishing::default(),
        begun: None,
        noted: None,
    };
    batch.start = batch.out.len();
    let is_noted = worker.with(|state| state.notes());
    let mut bytes = 0;
    while batch.len() < requests_max
        && batch.out.len() - batch.start < OUT_BYTES
        && let Some(rest) = input.get(bytes..)
        && !rest.is_empty()
    {
        batch.begun = is_noted.then(Instant::now);
        match batch.serve(rest) {
            Some(Served::Done { bytes: used }) => bytes += used,
            Some(Served::Held) => bytes = input.len(),
            None => break,
        }
    }
    let Batch { answers, publishing, .. } = batch;
    let more_by_mail = !publishing.is_empty();
    if more_by_mail {
        let behind = input.get(bytes..).unwrap_or_default();
        worker.with(|state| state.hold_publishing(conn, publishing, behind));
        bytes = input.len();
    }
    Done { bytes, answers, more_by_mail }
}

/// Appends the answer to a publish that the channel's home has answered: of a request that [`serve`] read.
pub fn write_published(
    site: &Site,
    worker: &Rc<Worker>,
    name: &Name,
    result: Result<Published, PublishRefusal>,
    out: &mut Vec<u8>,
) -> u16 {
    let result = result.map(|published| vec![published]).map_err(Refused::Key);
    let answer = publish::answer(worker, std::slice::from_ref(name), result);
    worker.stats().answer(answer.status);
    answer.write(out, &manner(site, Method::Post, Passed::default()));
    answer.status
}

/// How requests that are served here want their answers told.
fn manner<'r>(site: &Site, method: Method, passed: Passed<'r>) -> Manner<'r> {
    let unix_s = site.node.clock.unix_s();
    Manner { method, version: Version::Http11, keep_alive: true, passed, unix_s }
}

/// Requests of one connection that came together.
struct Batch<'b> {
    site: &'b Site,
    worker: &'b Rc<Worker>,
    conn: ConnId,
    out: &'b mut Vec<u8>,
    /// Where this connection's answers begin in `out`.
    start: usize,
    answers: u32,
    /// From the first publish on that another worker is asked for.
    publishing: Publishing,
    /// When the request that is served was looked at, where somebody wants to know of it.
    begun: Option<Instant>,
    /// It, once it is sure that it is served here: until it has its answer.
    noted: Option<Noted>,
}

enum Served {
    /// The request was so long.
    Done { bytes: usize },
    /// It waits in the holder, and what came behind it too; or it has become a stream.
    Held,
}

impl Batch<'_> {
    fn len(&self) -> usize {
        self.answers as usize + self.publishing.len()
    }

    fn serve(&mut self, input: &[u8]) -> Option<Served> {
        let span = HeadScanner::new(self.site.settings().limits.head_bytes).find(input).ok()??;
        let mut slots = FieldSlots::new();
        let request = parse(input, span, &mut slots).ok()?;
        let behind = input.get(span.used()..)?;
        let reads = request.method == Method::Get;
        let accept = reads.then(|| Accept::parse(request.fields.all("accept")));
        if let Some(accept) = accept
            && self.len() == 0
            && opening::is_for_here(&request, accept)
        {
            opening::open_held(self.site, self.worker, self.conn, &request, behind)?;
            return Some(Served::Held);
        }
        let content = behind.get(..content_bytes(&request)?)?;
        if self.worker.drain_ends().is_some() {
            return None;
        }
        let passed = self.site.gate.pass(&request).ok()?;
        let manner = manner(self.site, request.method, passed);
        match request.method {
            Method::Post => {
                let names = names_of(&request)?;
                let bearer = self.admit(&request, Act::Publish, &names)?;
                self.publish(&request, content, &manner, &names, bearer.as_deref())?;
            }
            Method::Get if self.publishing.is_empty() => match self.poll(&request, accept?)? {
                Polled::Answer(answer) => self.tell(&request, &answer, &manner),
                Polled::Hold { places, limit, wait_s } => {
                    let (client, proxy) = self.client(&request)?;
                    self.note(&request);
                    let noted = &mut self.noted;
                    let held = self.worker.with(|state| {
                        state.begin_reading(self.conn, client, places.len())?;
                        let mut held = read::held(state, &manner, limit, wait_s, behind.to_vec(), proxy);
                        held.hold_noted(noted.take());
                        read::hold_on(state, self.conn, &places, held);
                        Ok::<(), Limited>(())
                    });
                    match held {
                        Ok(()) => return Some(Served::Held),
                        Err(limited) => {
                            self.worker.with(|state| state.trace_conn_limited(self.conn, limited));
                            self.tell(&request, &read::over_quota(self.worker, limited), &manner);
                        }
                    }
                }
            },
            _ => return None,
        }
        Some(Served::Done { bytes: span.used() + content.len() })
    }

    /// The request is served here, and by whom it is, is known: somebody may want to know of it.
    fn note(&mut self, request: &Request<'_>) {
        if self.noted.is_some() {
            return;
        }
        let Some(begun) = self.begun else { return };
        let Some((peer, _)) = self.client(request) else { return };
        let bearer = self.bearer();
        self.noted = self.worker.with(|state| {
            let noted = state.note(request, peer, begun);
            if let Some(bearer) = bearer {
                let subject = bearer.subject.as_deref();
                let who = Who { subject, transport: Some(Transport::Http), ..Who::of_peer(peer) };
                state.trace_proof(who, bearer.proof);
            }
            noted
        });
    }

    fn note_answer(&mut self, request: &Request<'_>, status: u16, bytes: usize) {
        self.note(request);
        let Some(noted) = self.noted.take() else { return };
        let bearer = self.bearer();
        self.worker.with(|state| state.on_answered(noted, status, bytes, bearer.as_deref(), None));
    }

    /// Whom the request is of, where authentication is configured, and they are admitted.
    fn bearer(&self) -> Option<Caller> {
        self.worker.with(|state| state.conn(self.conn).and_then(|entry| entry.bearer.clone()))
    }

    fn tell(&mut self, request: &Request<'_>, answer: &Answer, manner: &Manner<'_>) {
        // No handler that was asked closes a connection: it would have to be told so.
        debug_assert!(!answer.close);
        self.tell_by(request, answer.status, |out| {
            answer.write(out, manner);
        });
    }

    fn tell_by(&mut self, request: &Request<'_>, status: u16, write: impl FnOnce(&mut Vec<u8>)) {
        self.worker.stats().answer(status);
        let before = self.out.len();
        let mut bytes_own = 0;
        if self.publishing.is_empty() {
            write(self.out);
            self.answers += 1;
        } else {
            let mut bytes = Vec::with_capacity(320);
            write(&mut bytes);
            bytes_own = bytes.len();
            self.publishing.add(bytes);
        }
        if self.begun.is_some() {
            self.note_answer(request, status, self.out.len() - before + bytes_own);
        }
    }

    /// Whom a request is of that does this to channels; `Some(None)`: no authentication is configured. Who may not, or whose
    /// token is no good, is for a task.
    #[allow(clippy::option_option)]
    fn admit(&self, request: &Request<'_>, act: Act, names: &[Name]) -> Option<Option<Caller>> {
        let doorman = &self.site.doorman;
        if doorman.is_open() {
            return Some(None);
        }
        let Target::Path { query, .. } = request.target else { return None };
        let (peer, _) = self.client(request)?;
        // Not by the clock of answers' dates: what has ended for one request has ended for the next.
        let now_s = self.site.node.clock.now_ms() / 1_000;
        let bearer = doorman.admit(request, query, peer, now_s).ok()?.bearer;
        if !names.iter().all(|name| doorman.may(&bearer, act, name)) {
            return None;
        }
        self.worker.with(|state| {
            if let Some(entry) = state.conn_mut(self.conn) {
                entry.bearer = Some(bearer.clone());
            }
        });
        Some(Some(bearer))
    }

    fn publish(
        &mut self,
        request: &Request<'_>,
        content: &[u8],
        manner: &Manner<'_>,
        names: &[Name],
        bearer: Option<&Bearer>,
    ) -> Option<()> {
        let [name] = names else { return None };
        if content.len() > self.site.settings().limits.message_bytes {
            return None;
        }
        let (is_home, is_full) =
            self.worker.with(|state| (state.node.home_of(name.as_str()) == state.index, state.is_full()));
        let labels = Labels::of(&request.fields).ok()?;
        if is_full {
            let answer = publish::answer(self.worker, names, Err(Refused::Memory));
            self.tell(request, &answer, manner);
            return Some(());
        }
        if !is_home && (labels.key().is_some() || manner.passed.origin.is_some()) {
            return None;
        }
        let draft = labels.draft(content.to_vec()).ok()?;
        // Once it is sure that no task will ask again.
        if let Some(limited) = self.over_quota(request, bearer, content.len()) {
            let answer = publish::answer(self.worker, names, Err(Refused::Limited(limited)));
            self.tell(request, &answer, manner);
            return Some(());
        }
        // One whose key is in flight waits for it, in a task.
        if labels.key().is_none() {
            self.note(request);
        }
        if is_home && labels.key().is_none() && manner.passed.origin.is_none() {
            self.place(request, manner, name, draft);
            return Some(());
        }
        if is_home {
            // It was asked already whether they may.
            let doorman = &self.site.doorman;
            let publisher =
                bearer.map_or(Publisher::ANYONE, |bearer| Publisher::of(doorman, bearer, Peer::UNIX));
            let answer = now(publish::publish(self.worker, names, draft, labels.key(), publisher))?;
            self.tell(request, &answer, manner);
            return Some(());
        }
        let (conn, publishing) = (self.conn, &mut self.publishing);
        let asked = self.worker.with(|state| state.ask_to_publish(conn, publishing, name.clone(), draft));
        if asked.is_err() {
            let answer = publish::answer(self.worker, names, Err(Refused::Overloaded));
            self.tell(request, &answer, manner);
        } else if let Some(noted) = self.noted.take() {
            self.publishing.note(noted);
        }
        Some(())
    }

    /// Publishes to a channel that lives here.
    fn place(&mut self, request: &Request<'_>, manner: &Manner<'_>, name: &Name, draft: Draft) {
        match self.worker.with(|state| state.publish_here(name, draft)) {
            Ok(Published { cursor, .. }) => {
                self.tell_by(request, 201, |out| publish::write_placed(out, manner.unix_s, name, cursor));
            }
            Err(refusal) => {
                let answer = publish::refusal(self.worker, Refused::Key(refusal));
                self.tell(request, &answer, manner);
            }
        }
    }

    /// Whose a request is, and the trusted proxy whose connection it came on.
    fn client(&self, request: &Request<'_>) -> Option<(Peer, Option<Peer>)> {
        let peer = self.worker.with(|state| state.conn(self.conn).map(|entry| entry.peer))?;
        let proxy = &self.site.settings().proxy;
        if !proxy.forwards(&peer) {
            return Some((peer, None));
        }
        Some((forwarding::client(proxy, &request.fields, peer), Some(peer)))
    }

    /// Why its client may not publish so much just now.
    fn over_quota(
        &mut self,
        request: &Request<'_>,
        bearer: Option<&Bearer>,
        bytes: usize,
    ) -> Option<Limited> {
        let quotas = self.site.node.quotas.as_ref()?;
        let (client, _) = self.client(request)?;
        let limited = quotas.publish(&client, bearer, 1, bytes).err()?;
        self.note(request);
        self.worker.with(|state| state.trace_conn_limited(self.conn, limited));
        Some(limited)
    }

    fn poll(&self, request: &Request<'_>, accept: Accept) -> Option<Polled> {
        if accept.event_stream || !accept.json || !request.body.is_empty() {
            return None;
        }
        let names = names_of(request)?;
        if !names.iter().all(|name| ask::is_here(self.worker, name)) {
            return None;
        }
        let Target::Path { query, .. } = request.target else { return None };
        self.admit(request, Act::Subscribe, &names)?;
        // Answers that are made but not sent go before what a held request is answered with.
        if self.answers > 0 && read::wait_of(query, request).map_or(true, |wait_s| wait_s > 0) {
            return None;
        }
        now(read::poll(self.worker, &self.site.remembered, request, query, names))
    }
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

/// Has what a publish will need fetched, if the channel lives here. Nobody learns from it whether there is such a channel.
pub fn expect(worker: &Rc<Worker>, input: &[u8]) {
    if let Some(name) = published_to(input) {
        worker.with(|state| state.expect(name));
    }
}

/// The channel that a request publishes to, by its first bytes, before it is looked at. A name with escapes is taken as it
/// is written: what is fetched for it is of no use.
fn published_to(input: &[u8]) -> Option<&str> {
    let target = input.strip_prefix(b"POST /channels/")?;
    let target = target.get(..NAME_BYTES_MAX + 1).unwrap_or(target);
    std::str::from_utf8(&target[..memchr(b' ', target)?]).ok()
}

fn names_of(request: &Request<'_>) -> Option<Vec<Name>> {
    let Target::Path { path, .. } = request.target else { return None };
    let path = decode_path(path).ok()?;
    parse_names(path.strip_prefix("/channels/")?).ok()
}

/// What a future comes to without waiting. One that would wait is dropped: it has done nothing yet that a second run of
/// it would do twice.
pub(super) fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
