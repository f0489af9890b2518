//! A connection's script: read a request, answer it, and again; then to the holder, or the end.
//! Owns deadlines, keep-alive and pipelining, and which handler a request goes to.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::history::From;
use crate::proto::http::body::BodyDecoder;
use crate::proto::http::date::format_imf_date;
use crate::proto::http::error::HttpError;
use crate::proto::http::fields::{Accept, prefer_wait};
use crate::proto::http::head::HeadScanner;
use crate::proto::http::request::{FieldSlots, Method, Request, Upgrade, parse};
use crate::proto::http::response::{CONTINUE, write_refusal};
use crate::proto::http::target::{Query, Target, decode_path};
use crate::proto::ws::handshake::{self, Subprotocol};
use crate::runtime::clock::TICK_MS;
use crate::runtime::close::{Reason, Transport};
use crate::runtime::entry::{ConnId, HeldPoll, Kind};
use crate::runtime::holder::Last;
use crate::runtime::settings::Settings;
use crate::runtime::state::{Frame, Node, Socket};
use crate::runtime::stream::{Stream, StreamError};
use crate::runtime::worker::{Edge, LocalTask, Pace, Worker};

use super::answer::{Answer, Manner, VARY_READ};
use super::channels::{LIMIT_MAX, WAIT_MAX_S, cursor, newest, number, parse_names, refused, stream_start};
use super::origin::{Gate, Passed};
use super::publish::{self, Labels};
use super::read::{self, PollRequest, Remembered, Waited};
use super::stream::{Handshake, open_events, open_websocket};
use super::{frames, lab};

/// How long a task stays with a connection between requests before it gives it to the holder.
const GRACE: Duration = Duration::from_secs(1);
/// Answers to pipelined requests are sent together, up to this.
const OUT_BYTES: usize = 64 * 1024;

/// The policy of one worker.
pub struct Site {
    node: Arc<Node>,
    gate: Gate,
    remembered: Remembered,
}

impl Site {
    pub fn new(node: &Arc<Node>) -> Self {
        Self { node: Arc::clone(node), gate: Gate::new(&node.settings), remembered: Remembered::default() }
    }

    fn settings(&self) -> &Settings {
        &self.node.settings
    }
}

impl Edge for Site {
    fn serve(self: Rc<Self>, worker: Rc<Worker>, socket: Socket, input: Vec<u8>) -> LocalTask {
        Box::pin(async move {
            if let Ok(stream) = Stream::new(Rc::clone(&worker), socket) {
                Conn { site: self, worker, stream, input, out: Vec::new() }.run().await;
            }
        })
    }

    fn repoll(
        self: Rc<Self>,
        worker: Rc<Worker>,
        socket: Socket,
        names: Vec<Name>,
        cursors: Vec<Cursor>,
        held: Box<HeldPoll>,
    ) -> LocalTask {
        Box::pin(async move {
            if let Ok(stream) = Stream::new(Rc::clone(&worker), socket) {
                let conn = Conn { site: self, worker, stream, input: Vec::new(), out: Vec::new() };
                conn.repoll(names, cursors, held).await;
            }
        })
    }

    fn act(
        self: Rc<Self>,
        worker: Rc<Worker>,
        conn: ConnId,
        raw: Option<Name>,
        frames: Vec<Frame>,
        last: Option<Last>,
    ) -> LocalTask {
        let message_bytes_max = self.settings().limits.message_bytes;
        Box::pin(frames::act(worker, conn, raw, frames, last, message_bytes_max))
    }
}

/// What comes after a request.
enum Next {
    /// The next request, on this connection.
    Request(Conn),
    /// The connection has its last answer.
    End(Conn, Reason),
    /// The holder has it, or it is closed.
    Gone,
}

/// One connection in the hands of its task.
struct Conn {
    site: Rc<Site>,
    worker: Rc<Worker>,
    stream: Stream,
    /// What came and is not yet part of a request.
    input: Vec<u8>,
    /// Answers that wait to be sent.
    out: Vec<u8>,
}

/// What a request's head says, besides its body.
struct Call<'r> {
    request: Request<'r>,
    manner: Manner<'r>,
    query: Query<'r>,
}

impl Conn {
    async fn run(mut self) {
        let mut head = Vec::new();
        let mut pace = Pace::default();
        loop {
            pace.step(&self.worker, head.len()).await;
            match self.read_head(&mut head).await {
                Ok(Some(span)) => {
                    let mut slots = FieldSlots::new();
                    self.worker.with(|state| state.stats().requests.add(1));
                    let parsed = parse(&head, span, &mut slots);
                    let next = match parsed {
                        Ok(request) => self.on_request(request).await,
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
                    let draining = self.worker.with(|state| state.draining.is_some());
                    if draining {
                        self.stream.reason = Reason::Drain;
                        return;
                    }
                    let Conn { worker, stream, .. } = self;
                    if let Some(socket) = stream.into_socket() {
                        worker.with(|state| {
                            state.adopt(socket, Kind::Idle);
                            state.bury();
                        });
                    }
                    return;
                }
                Err(reason) => {
                    if reason == Reason::Gone {
                        return;
                    }
                    return self.end(reason).await;
                }
            }
        }
    }

    /// Reads one head into `head`. `None`: nothing came for a while.
    async fn read_head(
        &mut self,
        head: &mut Vec<u8>,
    ) -> Result<Option<crate::proto::http::head::HeadSpan>, Reason> {
        let mut scanner = HeadScanner::new(self.site.settings().limits.head_bytes);
        let mut until = None;
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
                    return Err(Reason::BadRequest);
                }
            }
            // Whoever waits for more of a request waits with all earlier ones answered.
            self.flush().await?;
            let deadline = if self.input.is_empty() {
                GRACE
            } else {
                let until = *until.get_or_insert_with(|| Instant::now() + self.site.settings().timeouts.head);
                until.saturating_duration_since(Instant::now())
            };
            match self.stream.read(&mut self.input, deadline).await {
                Ok(()) => {}
                Err(StreamError::Late) if self.input.is_empty() => return Ok(None),
                Err(StreamError::Late) => {
                    if self.worker.drain_ends().is_some() {
                        let answer = publish::refusal(&self.worker, publish::Refused::Draining);
                        self.tell(&answer, &self.unknown());
                        return Err(Reason::Drain);
                    }
                    let late =
                        "the request's head came too slowly; send it whole within timeouts.head_seconds";
                    self.tell(&Answer::problem(408, late).closing(), &self.unknown());
                    return Err(Reason::RequestTimeout);
                }
                Err(StreamError::Eof | StreamError::Broken) => return Err(Reason::Gone),
            }
        }
    }

    /// How to answer one of whom nothing is known.
    fn unknown(&self) -> Manner<'static> {
        Manner {
            method: Method::Get,
            version: crate::proto::http::request::Version::Http11,
            keep_alive: false,
            passed: Passed::default(),
            unix_s: self.site.node.clock.now_ms() / 1_000,
        }
    }

    /// Refuses what could not be read as a request. A page that sent it is still shown the answer.
    fn refuse(&mut self, error: HttpError, head: &[u8]) {
        let passed = self.site.gate.pass_unread(head);
        let date = format_imf_date(self.site.node.clock.now_ms() / 1_000);
        let head_only = head.starts_with(b"HEAD ");
        write_refusal(&mut self.out, error, &date, head_only, |writer| {
            passed.write(writer).field("Vary", "Origin")
        });
    }

    /// Puts an answer behind those that wait. Returns whether the connection goes on.
    fn tell(&mut self, answer: &Answer, manner: &Manner<'_>) -> bool {
        self.stream.socket.sent_messages += 1;
        answer.write(&mut self.out, manner)
    }

    async fn flush(&mut self) -> Result<(), Reason> {
        if self.out.is_empty() {
            return Ok(());
        }
        let deadline = self.site.settings().timeouts.body;
        let sent = self.stream.write_all(&self.out, deadline).await;
        self.out.clear();
        self.out.shrink_to(OUT_BYTES);
        sent.map_err(|_| Reason::Gone)
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
    async fn answered(mut self, answer: &Answer, manner: &Manner<'_>) -> Next {
        let draining = self.worker.with(|state| state.draining.is_some());
        let manner = Manner { keep_alive: manner.keep_alive && !draining, ..*manner };
        if !self.tell(answer, &manner) {
            return Next::End(self, Reason::Answered);
        }
        if self.out.len() > OUT_BYTES && self.flush().await.is_err() {
            return Next::Gone;
        }
        Next::Request(self)
    }

    async fn on_request(self, request: Request<'_>) -> Next {
        let unix_s = self.site.node.clock.now_ms() / 1_000;
        let manner = Manner {
            method: request.method,
            version: request.version,
            keep_alive: request.keep_alive,
            passed: Passed::default(),
            unix_s,
        };
        let passed = match self.site.gate.pass(&request) {
            Ok(passed) => passed,
            Err(barred) => {
                let call = Call { request, manner, query: Query::default() };
                return self.without_body(call, Answer::problem(403, barred.detail())).await;
            }
        };
        let manner = Manner { passed, ..manner };
        let Target::Path { path, query } = request.target else {
            let answer = Answer::new(204).field("Allow", METHODS);
            return self.answered(&answer, &manner).await;
        };
        let call = Call { request, manner, query };
        let path = match decode_path(path) {
            Ok(path) => path,
            Err(error) => return self.without_body(call, refused(error)).await,
        };
        if request.method == Method::Options {
            return match methods_of(&path) {
                Some(methods) => self.preflight(call, methods).await,
                None => self.without_body(call, nothing_here()).await,
            };
        }
        match &*path {
            "/" => self.fixed(call, lab::page()).await,
            "/healthz" => {
                let body = b"{\"status\":\"ok\"}\n".to_vec();
                self.fixed(call, Answer::json(200, body).field("Cache-Control", "no-store")).await
            }
            "/publish" => self.on_batch(call).await,
            #[cfg(debug_assertions)]
            "/$debug/panic" => panic!("a panic that a test asked for"),
            path => match path.strip_prefix("/channels") {
                Some("") => self.on_channels(call, None).await,
                Some(rest) if rest.starts_with('/') => self.on_channels(call, rest.get(1..)).await,
                _ => self.without_body(call, nothing_here()).await,
            },
        }
    }

    async fn preflight(mut self, call: Call<'_>, methods: &'static str) -> Next {
        if let Err(failed) = self.discard_body(&call).await {
            return failed.tell(self, &call).await;
        }
        let unix_s = call.manner.unix_s;
        let draining = self.worker.with(|state| state.draining.is_some());
        let keep_alive = call.manner.keep_alive && !draining;
        let writer = crate::proto::http::response::ResponseWriter::new(&mut self.out, 204);
        call.manner
            .passed
            .write_preflight(writer.date(&format_imf_date(unix_s)))
            .field("Allow", methods)
            .field("Vary", "Origin")
            .connection(call.manner.version, keep_alive)
            .end();
        if keep_alive { Next::Request(self) } else { Next::End(self, Reason::Answered) }
    }

    /// An answer that GET and HEAD have.
    async fn fixed(self, call: Call<'_>, answer: Answer) -> Next {
        let answer = match call.request.method {
            Method::Get | Method::Head => answer,
            _ => not_allowed("GET, HEAD, OPTIONS"),
        };
        self.without_body(call, answer).await
    }

    /// Answers a request whose content, if it has any, does not count.
    async fn without_body(mut self, call: Call<'_>, answer: Answer) -> Next {
        if let Err(next) = self.discard_body(&call).await {
            return match next {
                BodyFailed::Refused(_) => self.answered(&answer.closing(), &call.manner).await,
                failed => failed.tell(self, &call).await,
            };
        }
        self.answered(&answer, &call.manner).await
    }

    /// Reads over the content, so that the next request is found.
    async fn discard_body(&mut self, call: &Call<'_>) -> Result<(), BodyFailed> {
        if call.request.body.is_empty() {
            return Ok(());
        }
        if call.request.expect_continue {
            // It is not asked for: the client sends it or not, so the place of the next request is not known.
            return Err(BodyFailed::Refused(HttpError::Expectation));
        }
        self.read_body(call, self.site.settings().limits.message_bytes).await.map(drop)
    }

    async fn read_body(&mut self, call: &Call<'_>, bytes_max: usize) -> Result<Vec<u8>, BodyFailed> {
        let mut content = Vec::new();
        let mut decoder =
            BodyDecoder::new(call.request.body, bytes_max as u64).map_err(BodyFailed::Refused)?;
        if call.request.expect_continue && self.input.is_empty() && !decoder.is_done() {
            self.out.extend_from_slice(CONTINUE);
        }
        let until = Instant::now() + self.site.settings().timeouts.body;
        loop {
            let used = decoder.decode(&self.input, &mut content).map_err(BodyFailed::Refused)?;
            self.input.drain(..used);
            if decoder.is_done() {
                return Ok(content);
            }
            self.flush().await.map_err(|_| BodyFailed::Gone)?;
            let left = until.saturating_duration_since(Instant::now());
            match self.stream.read(&mut self.input, left).await {
                Ok(()) => {}
                Err(StreamError::Late) => return Err(BodyFailed::Late),
                Err(StreamError::Eof | StreamError::Broken) => return Err(BodyFailed::Gone),
            }
        }
    }

    async fn on_batch(mut self, call: Call<'_>) -> Next {
        if call.request.method != Method::Post {
            return self.without_body(call, not_allowed("POST, OPTIONS")).await;
        }
        let fields = &call.request.fields;
        let content_type = fields.get("content-type").unwrap_or_default();
        let media_type = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
        if fields.get("content-encoding").is_some()
            || !media_type.trim_ascii().eq_ignore_ascii_case(b"application/x-ndjson")
        {
            let answer = Answer::problem(
                415,
                "a batch is Content-Type: application/x-ndjson without Content-Encoding: one JSON object a line",
            );
            return self.without_body(call, answer).await;
        }
        let limits = &self.site.settings().limits;
        let (batch_bytes, message_bytes) = (limits.batch_bytes, limits.message_bytes);
        let content = match self.read_body(&call, batch_bytes).await {
            Ok(content) => content,
            Err(failed) => return failed.tell(self, &call).await,
        };
        if self.worker.with(|state| state.draining.is_some()) {
            let answer = publish::refusal(&self.worker, publish::Refused::Draining);
            return self.answered(&answer, &call.manner).await;
        }
        let answer = publish::batch(&self.worker, &content, message_bytes).await;
        self.answered(&answer, &call.manner).await
    }

    async fn on_channels(self, call: Call<'_>, path: Option<&str>) -> Next {
        let names = match path.map(parse_names).transpose() {
            Ok(names) => names,
            Err(answer) => return self.without_body(call, answer).await,
        };
        match (call.request.method, names) {
            (Method::Get, names) if matches!(call.request.upgrade, Upgrade::WebSocket { .. }) => {
                self.on_websocket(call, names.unwrap_or_default()).await
            }
            (Method::Get | Method::Head, Some(names)) => self.on_read(call, names).await,
            (Method::Post, Some(names)) => self.on_publish(call, &names).await,
            (Method::Delete, Some(names)) => {
                let mut conn = self;
                if let Err(failed) = conn.discard_body(&call).await {
                    return failed.tell(conn, &call).await;
                }
                let answer = publish::delete(&conn.worker, &names).await;
                conn.answered(&answer, &call.manner).await
            }
            (Method::Get | Method::Head, None) => {
                let answer = Answer::problem(
                    404,
                    "no channel is named; read /channels/NAME, or open a WebSocket here with the subprotocol pushline.v1",
                );
                self.without_body(call, answer).await
            }
            (_, None) => self.without_body(call, not_allowed("GET, HEAD, OPTIONS")).await,
            (_, Some(_)) => self.without_body(call, not_allowed(METHODS)).await,
        }
    }

    async fn on_publish(mut self, call: Call<'_>, names: &[Name]) -> Next {
        let labels = match Labels::of(&call.request.fields) {
            Ok(labels) => labels,
            Err(answer) => return self.without_body(call, answer).await,
        };
        let content = match self.read_body(&call, self.site.settings().limits.message_bytes).await {
            Ok(content) => content,
            Err(failed) => return failed.tell(self, &call).await,
        };
        let answer = match labels.draft(content) {
            Ok(draft) => publish::publish(&self.worker, names, draft, labels.key()).await,
            Err(answer) => answer,
        };
        self.answered(&answer, &call.manner).await
    }

    async fn on_websocket(self, call: Call<'_>, names: Vec<Name>) -> Next {
        let Upgrade::WebSocket { key } = call.request.upgrade else {
            return Next::End(self, Reason::Internal);
        };
        let protocols = call.request.fields.all("sec-websocket-protocol");
        let good = handshake::choose(protocols)
            .and_then(|subprotocol| {
                let accept = handshake::Accept::of_key(key.as_bytes())?;
                Ok(Handshake { accept, subprotocol })
            })
            .map_err(|error| Answer::problem(400, error.detail()).closing());
        let good = good.and_then(|handshake| {
            if handshake.subprotocol == Subprotocol::Raw && names.len() != 1 {
                return Err(Answer::problem(
                    400,
                    "a raw WebSocket reads exactly one channel; name one, or offer the subprotocol pushline.v1",
                )
                .closing());
            }
            let from = stream_start(call.query, None, names.len())?;
            Ok((handshake, from))
        });
        match good {
            Ok((handshake, from)) => {
                let Conn { worker, mut stream, input, out, site } = self;
                // Answers of pipelined requests go first.
                let deadline = site.settings().timeouts.body;
                if !out.is_empty() && stream.write_all(&out, deadline).await.is_err() {
                    return Next::Gone;
                }
                open_websocket(&worker, stream, &handshake, &names, &from, input).await;
                Next::Gone
            }
            Err(answer) => self.answered(&answer, &call.manner).await,
        }
    }

    async fn on_read(mut self, call: Call<'_>, names: Vec<Name>) -> Next {
        if let Err(failed) = self.discard_body(&call).await {
            return failed.tell(self, &call).await;
        }
        let head_only = call.request.method == Method::Head;
        let fields = call.request.fields;
        let accept = Accept::parse(fields.all("accept"));
        if accept.event_stream {
            return self.on_events(call, &names, head_only).await;
        }
        if !accept.json {
            let answer = Answer::problem(
                406,
                "a channel reads as application/json or text/event-stream; put one of them into Accept",
            );
            return self.answered(&answer.vary(VARY_READ), &call.manner).await;
        }
        let target = match call.request.target {
            Target::Path { path, query } if query.is_empty() => path.to_owned(),
            Target::Path { path, query } => format!("{path}?{}", query.raw()),
            Target::Asterisk => String::new(),
        };
        let wait_s = match wait_of(call.query, &call.request) {
            Ok(wait_s) => wait_s,
            Err(answer) => return self.answered(&answer.vary(VARY_READ), &call.manner).await,
        };
        if (wait_s == 0 || head_only)
            && let Some(answer) = self.site.remembered.get(&self.worker, &target, &fields)
        {
            return self.answered(&answer, &call.manner).await;
        }
        let poll = match poll_of(call.query, names) {
            Ok(poll) => poll,
            Err(answer) => return self.answered(&answer.vary(VARY_READ), &call.manner).await,
        };
        if wait_s == 0 || !poll.has_cursor || head_only {
            let site = Rc::clone(&self.site);
            let answer = read::short_poll(&self.worker, &site.remembered, &target, &poll, &fields).await;
            return self.answered(&answer, &call.manner).await;
        }
        // What is found must be used at once: nothing is waited for after it.
        if self.flush().await.is_err() {
            return Next::Gone;
        }
        match read::long_poll(&self.worker, &poll, wait_s).await {
            Waited::Answer(answer) => self.answered(&answer, &call.manner).await,
            Waited::Hold(places) => {
                let fields = read::held_fields(&call.manner, wait_s).into();
                let (limit, keep_alive) = (poll.limit, call.manner.keep_alive);
                let Conn { worker, stream, input, .. } = self;
                if let Some(socket) = stream.into_socket() {
                    worker.with(|state| {
                        let until_tick = state.tick() + (wait_s * 1_000 / TICK_MS) as u32;
                        let held = HeldPoll { limit, until_tick, fields, keep_alive, leftover: input };
                        read::hold(state, socket, &places, Box::new(held));
                    });
                }
                Next::Gone
            }
        }
    }

    async fn on_events(mut self, call: Call<'_>, names: &[Name], head_only: bool) -> Next {
        let fields = call.request.fields;
        let start = stream_start(call.query, fields.get("last-event-id"), names.len());
        let envelope = number(call.query, "envelope");
        let (from, envelope) = match start.and_then(|from| Ok((from, envelope?))) {
            Ok((from, envelope)) => (from, envelope.is_some_and(|on| on > 0)),
            Err(answer) => return self.answered(&answer.vary(VARY_READ), &call.manner).await,
        };
        if self.flush().await.is_err() {
            return Next::Gone;
        }
        if head_only {
            super::stream::event_stream_head(&mut self.out, &call.manner);
            return Next::End(self, Reason::Answered);
        }
        let Conn { worker, stream, .. } = self;
        open_events(&worker, stream, &call.manner, names, &from, envelope).await;
        Next::Gone
    }

    /// Answers a held poll that a feed could not: with what the channels' homes hold.
    async fn repoll(mut self, names: Vec<Name>, cursors: Vec<Cursor>, held: Box<HeldPoll>) {
        let from = cursors.iter().copied().map(From::After).collect();
        let poll = PollRequest { names, from, limit: held.limit, has_cursor: true };
        self.input = held.leftover.clone();
        match read::long_poll(&self.worker, &poll, 0).await {
            Waited::Answer(mut answer) => {
                // The request's own fields were written when it came.
                answer.fields.retain(|(name, _)| !matches!(*name, "Cache-Control" | "Preference-Applied"));
                let unix_s = self.site.node.clock.now_ms() / 1_000;
                let goes_on = super::answer::write_held(&mut self.out, &answer, &held, unix_s);
                if goes_on {
                    self.run().await;
                } else {
                    self.end(Reason::Answered).await;
                }
            }
            Waited::Hold(places) => {
                let Conn { worker, stream, .. } = self;
                if let Some(socket) = stream.into_socket() {
                    worker.with(|state| read::hold(state, socket, &places, held));
                }
            }
        }
    }
}

fn is_batch(call: &Call<'_>) -> bool {
    matches!(call.request.target, Target::Path { path: "/publish", .. })
}

fn nothing_here() -> Answer {
    Answer::problem(404, "nothing is here; channels are at /channels/NAME, batches go to /publish")
}

/// The methods that a path takes; `None`: nothing is there.
fn methods_of(path: &str) -> Option<&'static str> {
    match path {
        "/" | "/healthz" | "/channels" => Some("GET, HEAD, OPTIONS"),
        "/publish" => Some("POST, OPTIONS"),
        path if path.starts_with("/channels/") => Some(METHODS),
        _ => None,
    }
}

const METHODS: &str = "GET, HEAD, POST, DELETE, OPTIONS";

fn not_allowed(allow: &str) -> Answer {
    Answer::problem(405, format!("this method is not for this URL; it takes {allow}")).field("Allow", allow)
}

/// The wait that a request asks for, in seconds; 0: none.
fn wait_of(query: Query<'_>, request: &Request<'_>) -> Result<u64, Answer> {
    let asked = match number(query, "wait")? {
        Some(wait_s) => Some(wait_s),
        None => prefer_wait(request.fields.all("prefer")),
    };
    Ok(asked.unwrap_or(0).min(WAIT_MAX_S))
}

fn poll_of(query: Query<'_>, names: Vec<Name>) -> Result<PollRequest, Answer> {
    let cursor = cursor(query, names.len())?;
    let limit = number(query, "limit")?;
    let has_cursor = cursor.is_some();
    let limit = limit.unwrap_or(if has_cursor { u64::from(LIMIT_MAX) } else { 1 }).min(u64::from(LIMIT_MAX));
    let from = cursor.unwrap_or_else(|| vec![newest(limit); names.len()]);
    Ok(PollRequest { names, from, limit: limit as u32, has_cursor })
}

/// Why a body did not come.
enum BodyFailed {
    Refused(HttpError),
    Late,
    Gone,
}

impl BodyFailed {
    /// The answer that ends the connection.
    async fn tell(self, conn: Conn, call: &Call<'_>) -> Next {
        let limits = &conn.site.settings().limits;
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
            Self::Late => Answer::problem(
                408,
                "the request's body came too slowly; send it whole within timeouts.body_seconds",
            ),
            Self::Gone => return Next::Gone,
        };
        conn.answered(&answer.closing(), &call.manner).await
    }
}
