//! A connection's script: read a request, answer it, and again; then to the holder, or the end.
//! Owns deadlines, keep-alive and pipelining, heads and bodies. What a request is answered with is `route`'s.

use std::rc::Rc;
use std::time::Instant;

use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::page::From;
use crate::proto::http::body::BodyDecoder;
use crate::proto::http::date::format_imf_date;
use crate::proto::http::error::HttpError;
use crate::proto::http::head::HeadScanner;
use crate::proto::http::request::{BodyLength, FieldSlots, Method, Request, Version, parse};
use crate::proto::http::response::{CONTINUE, write_refusal};
use crate::proto::http::target::{Query, Target};
use crate::runtime::close::{Reason, Transport};
use crate::runtime::entry::{HeldPoll, Kind};
use crate::runtime::peer::Peer;
use crate::runtime::quotas::{Begins, Limited};
use crate::runtime::state::Socket;
use crate::runtime::stats::Refusal;
use crate::runtime::stream::{Stream, StreamError};
use crate::runtime::tasks::Awaits;
use crate::runtime::trace::Who;
use crate::runtime::turns::Pace;
use crate::runtime::worker::Worker;

use super::answer::{Answer, Manner, vary_of};
use super::forwarding;
use super::origin::Passed;
use super::publish;
use super::read::{self, PollRequest, Waited};
use super::site::Site;

/// Answers to pipelined requests are sent together, up to this.
pub(super) const OUT_BYTES: usize = 64 * 1024;

/// What comes after a request.
pub(super) enum Next {
    /// The next request, on this connection.
    Request(Conn),
    /// The connection has its last answer.
    End(Conn, Reason),
    /// The holder has it, or it is closed.
    Gone,
}

impl Next {
    /// Sends what was answered, if it is much.
    async fn sent(self) -> Self {
        match self {
            Self::Request(mut conn) if conn.out.len() > OUT_BYTES => match conn.flush().await {
                Ok(()) => Self::Request(conn),
                Err(Lost) => Self::Gone,
            },
            next => next,
        }
    }
}

/// One connection in the hands of its task.
pub(super) struct Conn {
    pub(super) site: Rc<Site>,
    pub(super) worker: Rc<Worker>,
    pub(super) stream: Stream,
    /// What came and is not yet part of a request.
    pub(super) input: Vec<u8>,
    /// Answers that wait to be sent.
    pub(super) out: Vec<u8>,
    /// The trusted proxy whose connection this is: each of its requests says whose it is.
    pub(super) proxy: Option<Peer>,
}

/// What a request's head says, besides its body.
pub(super) struct Call<'r> {
    pub(super) request: Request<'r>,
    pub(super) manner: Manner<'r>,
    pub(super) query: Query<'r>,
}

impl Conn {
    pub(super) fn new(site: Rc<Site>, worker: Rc<Worker>, stream: Stream, input: Vec<u8>) -> Self {
        let peer = stream.socket.peer;
        let proxy = site.settings().proxy.forwards(&peer).then_some(peer);
        Self { site, worker, stream, input, out: Vec::new(), proxy }
    }

    pub(super) async fn run(mut self) {
        let mut head = Vec::new();
        let mut pace = Pace::new(self.site.settings().history.messages);
        loop {
            if self.input.is_empty() {
                // Nothing is pipelined: it waits for the client anyway.
                pace.rested();
            }
            pace.step(head.len()).await;
            match self.read_head(&mut head).await {
                Ok(Some(span)) => {
                    let mut slots = FieldSlots::new();
                    let parsed = parse(&head, span, &mut slots);
                    let next = match parsed {
                        Ok(request) => {
                            self.note(&request);
                            self.on_request(request).await
                        }
                        Err(error) => {
                            self.refuse(error, &head);
                            Next::End(self, Reason::BadRequest)
                        }
                    };
                    match next {
                        Next::Request(conn) => self = conn,
                        Next::End(conn, reason) => return conn.end(reason).await,
                        Next::Gone => return,
                    }
                }
                // To the holder, until it speaks again.
                Ok(None) => {
                    let Conn { worker, mut stream, proxy, .. } = self;
                    stream.socket.peer = proxy.unwrap_or(stream.socket.peer);
                    if let Some(socket) = stream.into_socket() {
                        worker.with(|state| {
                            state.adopt(socket, Kind::Idle);
                            state.bury();
                        });
                    }
                    return;
                }
                Err(Stop::Lost(Lost)) => return,
                Err(Stop::Ends(reason)) => return self.end(reason).await,
            }
        }
    }

    /// A request came: somebody may want to know of it.
    fn note(&mut self, request: &Request<'_>) {
        let peer = self.stream.socket.peer;
        self.stream.noted = self
            .worker
            .with(|state| if state.notes() { state.note(request, peer, Instant::now()) } else { None });
    }

    /// The same for what could not be read as a request, of which the first byte came at `begun`.
    fn note_unread(&mut self, head: &[u8], begun: Instant) {
        let peer = self.stream.socket.peer;
        self.stream.noted = self.worker.with(|state| state.note_unread(head, peer, begun));
    }

    /// The request that is noted has its answer, of so many bytes.
    pub(super) fn note_answer(&mut self, status: u16, bytes: usize) {
        if let Some(noted) = self.stream.noted.take() {
            let bearer = self.stream.socket.bearer.as_deref();
            self.worker.with(|state| state.on_answered(noted, status, bytes, bearer, None));
        }
    }

    /// Reads one head into `head`. `None`: the next request has not begun; the holder waits for it, at less cost than a
    /// read through the driver with its timer.
    async fn read_head(
        &mut self,
        head: &mut Vec<u8>,
    ) -> Result<Option<crate::proto::http::head::HeadSpan>, Stop> {
        let mut scanner = HeadScanner::new(self.site.settings().limits.head_bytes);
        let mut begun = None;
        loop {
            match scanner.find(&self.input) {
                Ok(Some(span)) => {
                    head.clear();
                    head.extend_from_slice(self.input.get(..span.used()).unwrap_or_default());
                    self.input.drain(..span.used());
                    if self.input.is_empty() && self.input.capacity() > OUT_BYTES {
                        self.input = Vec::new();
                    }
                    return Ok(Some(span));
                }
                Ok(None) => {}
                Err(error) => {
                    let begun = std::mem::take(&mut self.input);
                    self.refuse(error, &begun);
                    return Err(Stop::Ends(Reason::BadRequest));
                }
            }
            // Whoever waits for more of a request waits with all earlier ones answered.
            self.flush().await?;
            if self.input.is_empty() {
                return Ok(None);
            }
            let begun = *begun.get_or_insert_with(Instant::now);
            let until = begun + self.site.settings().timeouts.head;
            let left = until.saturating_duration_since(Instant::now());
            match self.stream.read(&mut self.input, left).await {
                Ok(()) => {}
                Err(StreamError::Late) => {
                    let head = std::mem::take(&mut self.input);
                    self.note_unread(&head, begun);
                    if self.worker.drain_ends().is_some() {
                        let answer = publish::refusal(&self.worker, publish::Refused::Draining);
                        self.tell(&answer, &self.unknown());
                        return Err(Stop::Ends(Reason::Drain));
                    }
                    self.worker.stats().refuse(Refusal::SlowRequest);
                    let late =
                        "the request's head came too slowly; send it whole within timeouts.head_seconds";
                    self.tell(&Answer::problem(408, late).closing(), &self.unknown());
                    return Err(Stop::Ends(Reason::RequestTimeout));
                }
                Err(StreamError::Full) => {
                    let answer = publish::refusal(&self.worker, publish::Refused::Memory).closing();
                    self.tell(&answer, &self.unknown());
                    return Err(Stop::Ends(Reason::Full));
                }
                Err(StreamError::Eof | StreamError::Broken) => return Err(Stop::Lost(Lost)),
            }
        }
    }

    /// Finds whose a request is, if a trusted proxy passes it on.
    pub(super) fn find_client(&mut self, request: &Request<'_>) {
        if let Some(proxy) = self.proxy {
            self.stream.socket.peer = forwarding::client(&self.site.settings().proxy, &request.fields, proxy);
        }
    }

    /// Why a client may not publish so much just now.
    pub(super) fn over_quota(&self, messages: usize, bytes: usize) -> Option<Limited> {
        let quotas = self.site.node.quotas.as_ref()?;
        let Socket { peer, bearer, .. } = &self.stream.socket;
        let limited = quotas.publish(peer, bearer.as_deref(), messages, bytes).err()?;
        self.trace_limited(limited);
        Some(limited)
    }

    /// How to answer one of whom nothing is known.
    fn unknown(&self) -> Manner<'static> {
        Manner {
            method: Method::Get,
            version: Version::Http11,
            keep_alive: false,
            passed: Passed::default(),
            unix_s: self.site.node.clock.now_ms() / 1_000,
        }
    }

    /// Refuses what could not be read as a request. A page that sent it is still shown the answer.
    fn refuse(&mut self, error: HttpError, head: &[u8]) {
        let stats = self.worker.stats();
        stats.answer(error.status());
        stats.refuse(Refusal::BadRequest);
        let passed = self.site.gate.pass_unread(head);
        let date = format_imf_date(self.site.node.clock.now_ms() / 1_000);
        let head_only = head.starts_with(b"HEAD ");
        let before = self.out.len();
        write_refusal(&mut self.out, error, &date, head_only, |writer| {
            passed.write(writer).field("Vary", vary_of(head))
        });
        let bytes = self.out.len() - before;
        self.note_unread(head, Instant::now());
        self.note_answer(error.status(), bytes);
    }

    /// Puts an answer behind those that wait. Returns whether the connection goes on.
    fn tell(&mut self, answer: &Answer, manner: &Manner<'_>) -> bool {
        self.tell_with(answer.status, |out| answer.write(out, manner))
    }

    fn tell_with(&mut self, status: u16, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        self.stream.socket.sent_messages += 1;
        self.worker.stats().answer(status);
        let before = self.out.len();
        let goes_on = write(&mut self.out);
        let bytes = self.out.len() - before;
        self.note_answer(status, bytes);
        goes_on
    }

    pub(super) async fn flush(&mut self) -> Result<(), Lost> {
        if self.out.is_empty() {
            return Ok(());
        }
        let deadline = self.site.settings().timeouts.body;
        let sent = self.stream.write_all(&mut self.out, deadline).await;
        self.out.clear();
        self.out.shrink_to(OUT_BYTES);
        sent.map_err(|_| Lost)
    }

    /// Sends what waits, then lingers, so that the last answer is not lost to a reset.
    async fn end(mut self, reason: Reason) {
        if self.flush().await.is_err() {
            return;
        }
        let Conn { worker, stream, .. } = self;
        let Some(socket) = stream.into_socket() else { return };
        worker.with(|state| {
            let conn = state.adopt(socket, Kind::Idle);
            state.end(conn.slot, Transport::Http, reason, &[]);
            state.bury();
        });
    }

    /// Tells the answer, and goes on or ends as it says.
    pub(super) async fn answered(self, answer: &Answer, manner: &Manner<'_>) -> Next {
        self.answered_for(answer, manner, Reason::Answered).await
    }

    /// The same of an answer that may be large: there is one of it while it is sent.
    pub(super) async fn answered_whole(self, answer: Answer, manner: &Manner<'_>) -> Next {
        self.told(manner, (answer.close, Reason::Answered), |conn, manner| {
            conn.tell_with(answer.status, |out| {
                if !out.is_empty() {
                    return answer.write(out, manner);
                }
                let goes_on;
                (*out, goes_on) = answer.into_bytes(manner);
                goes_on
            })
        })
        .sent()
        .await
    }

    /// The same. `reason`: why the connection ends, if it is the answer that ends it.
    async fn answered_for(self, answer: &Answer, asked: &Manner<'_>, reason: Reason) -> Next {
        self.told(asked, (answer.close, reason), |conn, manner| conn.tell(answer, manner)).sent().await
    }

    /// Puts an answer behind those that wait, and finds what comes after it.
    fn told(
        mut self,
        asked: &Manner<'_>,
        (closes, reason): (bool, Reason),
        tell: impl FnOnce(&mut Self, &Manner<'_>) -> bool,
    ) -> Next {
        let draining = self.worker.with(|state| state.draining.is_some());
        let evicted = self.stream.is_evicted();
        let manner = Manner { keep_alive: asked.keep_alive && !draining && !evicted, ..*asked };
        let reason = if evicted { Reason::Full } else { reason };
        if !tell(&mut self, &manner) {
            return Next::End(self, why_it_ends(asked, draining, (evicted || closes).then_some(reason)));
        }
        Next::Request(self)
    }

    /// Answers a request whose content, if it has any, does not count.
    pub(super) async fn without_body(mut self, call: Call<'_>, answer: Answer) -> Next {
        if let Err(next) = self.discard_body(&call).await {
            return match next {
                BodyFailed::Refused(_) => self.answered(&answer.closing(), &call.manner).await,
                failed => failed.tell(self, &call).await,
            };
        }
        self.answered(&answer, &call.manner).await
    }

    /// Reads over the content, so that the next request is found.
    pub(super) async fn discard_body(&mut self, call: &Call<'_>) -> Result<(), BodyFailed> {
        if call.request.body.is_empty() {
            return Ok(());
        }
        if call.request.expect_continue {
            // It is not asked for: the client sends it or not, so the place of the next request is not known.
            return Err(BodyFailed::Refused(HttpError::Expectation));
        }
        self.read_body(call, self.site.settings().limits.message_bytes).await.map(drop)
    }

    pub(super) async fn read_body(
        &mut self,
        call: &Call<'_>,
        bytes_max: usize,
    ) -> Result<Vec<u8>, BodyFailed> {
        let mut decoder =
            BodyDecoder::new(call.request.body, bytes_max as u64).map_err(BodyFailed::Refused)?;
        if call.request.expect_continue && self.input.is_empty() && !decoder.is_done() {
            self.out.extend_from_slice(CONTINUE);
        }
        let until = Instant::now() + self.site.settings().timeouts.body;
        if let BodyLength::Length(bytes) = call.request.body
            && self.input.len() as u64 <= bytes
        {
            return self.read_into_place(bytes as usize, until).await;
        }
        let mut content = Vec::new();
        loop {
            let used = decoder.decode(&self.input, &mut content).map_err(BodyFailed::Refused)?;
            self.input.drain(..used);
            if decoder.is_done() {
                return Ok(content);
            }
            let mut input = std::mem::take(&mut self.input);
            let read = self.read_more(&mut input, content.capacity(), until).await;
            self.input = input;
            read?;
        }
    }

    /// Reads content of a known length, of which what has come is the beginning: without a copy of it.
    async fn read_into_place(&mut self, bytes: usize, until: Instant) -> Result<Vec<u8>, BodyFailed> {
        let mut content = std::mem::take(&mut self.input);
        while content.len() < bytes {
            self.stream.wanted = bytes - content.len();
            let read = self.read_more(&mut content, 0, until).await;
            self.stream.wanted = usize::MAX;
            read?;
        }
        if content.len() > bytes {
            self.input = content.split_off(bytes);
        }
        Ok(content)
    }

    /// Waits for more of a body, of which so many bytes are held elsewhere.
    async fn read_more(
        &mut self,
        buffer: &mut Vec<u8>,
        beside_bytes: usize,
        until: Instant,
    ) -> Result<(), BodyFailed> {
        self.flush().await.map_err(|Lost| BodyFailed::Gone)?;
        let left = until.saturating_duration_since(Instant::now());
        (self.stream.awaits, self.stream.beside_bytes) = (Awaits::Body, beside_bytes);
        let read = self.stream.read(buffer, left).await;
        (self.stream.awaits, self.stream.beside_bytes) = (Awaits::Head, 0);
        read.map_err(|error| match error {
            StreamError::Late => BodyFailed::Late,
            StreamError::Full => BodyFailed::Full,
            StreamError::Eof | StreamError::Broken => BodyFailed::Gone,
        })
    }

    /// Counts a poll that is to be held; the answer where it may not be.
    pub(super) fn begin_waiting(&mut self, channels: usize) -> Option<Answer> {
        let begun = self.site.node.begin_reading(&mut self.stream.socket, channels, Begins::Poll);
        let limited = begun.err()?;
        self.trace_limited(limited);
        Some(read::over_quota(&self.worker, limited))
    }

    fn trace_limited(&self, limited: Limited) {
        let who = Who::of_socket(&self.stream.socket, Transport::Http);
        self.worker.with(|state| state.trace_limited(who, limited));
    }

    /// Answers a held poll that a feed could not: with what the channels' homes hold.
    pub(super) async fn repoll(mut self, names: Vec<Name>, cursors: Vec<Cursor>, mut held: Box<HeldPoll>) {
        let from = cursors.iter().copied().map(From::After).collect();
        let poll = PollRequest { names, from, limit: held.limit, has_cursor: true };
        self.input = held.leftover.clone();
        self.proxy = held.proxy;
        let waited = match read::long_poll(&self.worker, &poll, 0).await {
            // It was given back when the poll left its feeds.
            Waited::Hold(places) => match self.begin_waiting(places.len()) {
                Some(limited) => Waited::Answer(limited),
                None => Waited::Hold(places),
            },
            answer => answer,
        };
        match waited {
            Waited::Answer(mut answer) => {
                // The request's own fields were written when it came.
                answer.fields.retain(|(name, _)| !matches!(*name, "Cache-Control" | "Preference-Applied"));
                let unix_s = self.site.node.clock.now_ms() / 1_000;
                self.worker.stats().answer(answer.status);
                let before = self.out.len();
                let goes_on = super::answer::write_held(&mut self.out, &answer, &held, unix_s);
                let bytes = self.out.len() - before;
                self.stream.noted = held.noted.take();
                self.note_answer(answer.status, bytes);
                if goes_on {
                    self.run().await;
                } else {
                    self.end(Reason::Answered).await;
                }
            }
            Waited::Hold(places) => {
                let Conn { worker, stream, site, .. } = self;
                if let Some(socket) = stream.into_socket() {
                    worker.with(|state| {
                        let conn = read::hold(state, socket, &places, held);
                        site.doorman.recheck(state, conn);
                    });
                }
            }
        }
    }
}

/// The connection is broken: its stream knows why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost;

/// Why no further request is read.
enum Stop {
    Lost(Lost),
    /// Once what waits is sent.
    Ends(Reason),
}

impl std::convert::From<Lost> for Stop {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

/// Why a connection ends with an answer. `asked`: how the request wanted it; `closing`: the answer ends it itself.
pub(super) fn why_it_ends(asked: &Manner<'_>, draining: bool, closing: Option<Reason>) -> Reason {
    match closing {
        Some(reason) => reason,
        None if draining && asked.keep_alive => Reason::Drain,
        None if asked.version == Version::Http11 => Reason::Asked,
        // HTTP/1.0 goes on only where it is asked to.
        None => Reason::Answered,
    }
}

/// Why a body did not come.
pub(super) enum BodyFailed {
    Refused(HttpError),
    Late,
    /// The node has no memory for it.
    Full,
    Gone,
}

impl BodyFailed {
    /// The answer that ends the connection.
    pub(super) async fn tell(self, conn: Conn, call: &Call<'_>) -> Next {
        let limits = &conn.site.settings().limits;
        let reason = match self {
            Self::Refused(HttpError::BodyTooLarge) => Reason::TooBig,
            Self::Refused(_) => Reason::BadRequest,
            Self::Late if conn.worker.drain_ends().is_some() => Reason::Drain,
            Self::Late => Reason::RequestTimeout,
            Self::Full => Reason::Full,
            Self::Gone => return Next::Gone,
        };
        let answer = match self {
            Self::Refused(HttpError::BodyTooLarge) if is_batch(call) => Answer::problem(
                413,
                format!(
                    "the batch is larger than {} bytes (limits.batch_bytes); split it",
                    limits.batch_bytes
                ),
            ),
            Self::Refused(HttpError::BodyTooLarge) => {
                Answer::problem(413, publish::too_large(limits.message_bytes))
            }
            Self::Refused(error) => Answer::problem(error.status(), error.detail()),
            Self::Late if conn.worker.drain_ends().is_some() => {
                publish::refusal(&conn.worker, publish::Refused::Draining)
            }
            Self::Late => {
                conn.worker.stats().refuse(Refusal::SlowRequest);
                Answer::problem(
                    408,
                    "the request's body came too slowly; send it whole within timeouts.body_seconds",
                )
            }
            Self::Full => publish::refusal(&conn.worker, publish::Refused::Memory),
            Self::Gone => return Next::Gone,
        };
        conn.answered_for(&answer.closing(), &call.manner, reason).await
    }
}

fn is_batch(call: &Call<'_>) -> bool {
    matches!(call.request.target, Target::Path { path: "/publish", .. })
}
