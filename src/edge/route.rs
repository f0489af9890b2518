//! Which handler a request goes to, by path and method, and what each asks for: one `match` a step.
//! Owns the URLs. Never reads from the connection itself, nor writes to it.

use crate::domain::auth::{Act, Bearer};
use crate::domain::channel::Name;
use crate::proto::http::date::format_imf_date;
use crate::proto::http::fields::Accept;
use crate::proto::http::request::{Method, Request, Upgrade};
use crate::proto::http::target::{Query, Target, decode_path};
use crate::runtime::close::Reason;
use crate::runtime::stats::Refusal;

use super::answer::{Answer, Manner, VARY_READ};
use super::auth::TicketUse;
use super::channels::{parse_names, refused, stream_start, switch};
use super::conn::{Call, Conn, Next, why_it_ends};
use super::doorman::{self, Admitted};
use super::lab;
use super::labels::Labels;
use super::origin::Passed;
use super::publish;
use super::read::{self, Polled};
use super::renewal;
use super::stream::{Reads, open_events};
use super::tickets;
use super::turnstile;

impl Conn {
    pub(super) async fn on_request(mut self, request: Request<'_>) -> Next {
        if let Some(why) = self.is_turned_away()
            && let Some(refusal) = turnstile::turn_away(&self.site, &self.worker, &request)
        {
            return self.turned_away(&refusal, why);
        }
        self.find_client(&request);
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
                return self.barred(call, barred).await;
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
            "/readyz" => {
                let answer = self.readiness();
                self.fixed(call, answer).await
            }
            "/publish" => self.on_batch(call).await,
            "/tickets" => self.on_tickets(call).await,
            path if renewed_by(path).is_some() => {
                self.on_renewal(call, renewed_by(path).unwrap_or_default()).await
            }
            #[cfg(debug_assertions)]
            path if path.starts_with("/$debug/") => {
                let answer = self.debug(path);
                self.fixed(call, answer).await
            }
            path => match path.strip_prefix("/channels") {
                Some("") => self.on_channels(call, None).await,
                Some(rest) if rest.starts_with('/') => self.on_channels(call, rest.get(1..)).await,
                _ => self.without_body(call, nothing_here()).await,
            },
        }
    }

    /// What tests ask a debug build to do.
    #[cfg(debug_assertions)]
    fn debug(&self, path: &str) -> Answer {
        use crate::runtime::{host, state::State};
        match path {
            "/$debug/panic" => panic!("a panic that a test asked for"),
            // Holds its worker up, as a loop without end would.
            "/$debug/hang" => std::thread::sleep(std::time::Duration::from_secs(2)),
            // What allocators keep of what was freed is no leak: a test that looks for those asks for it.
            "/$debug/give-back" => {
                self.site.node.on_each_worker(|_| |_: &mut State| host::give_back_freed_memory());
            }
            _ => return nothing_here(),
        }
        Answer::new(204)
    }

    /// Why this connection's first request is not served, when it comes where there is no room or time for it.
    fn is_turned_away(&self) -> Option<Refusal> {
        let socket = &self.stream.socket;
        if socket.sent_messages > 0 {
            return None;
        }
        self.worker.with(|state| state.turns_away(socket.fd))
    }

    fn turned_away(mut self, refusal: &turnstile::Refusal, why: Refusal) -> Next {
        self.worker.stats().refuse(why);
        self.stream.socket.sent_messages += 1;
        self.out.extend_from_slice(&refusal.bytes);
        Next::End(self, Reason::Full)
    }

    async fn preflight(mut self, call: Call<'_>, methods: &'static str) -> Next {
        if let Err(failed) = self.discard_body(&call).await {
            return failed.tell(self, &call).await;
        }
        let unix_s = call.manner.unix_s;
        let draining = self.worker.with(|state| state.draining.is_some());
        let keep_alive = call.manner.keep_alive && !draining;
        self.worker.stats().answer(204);
        let before = self.out.len();
        let writer = crate::proto::http::response::ResponseWriter::new(&mut self.out, 204);
        call.manner
            .passed
            .write_preflight(writer.date(&format_imf_date(unix_s)), methods)
            .field("Allow", methods)
            .field("Vary", "Origin")
            .connection(call.manner.version, keep_alive)
            .end();
        let bytes = self.out.len() - before;
        self.note_answer(204, bytes);
        if keep_alive {
            Next::Request(self)
        } else {
            Next::End(self, why_it_ends(&call.manner, draining, None))
        }
    }

    /// Whether new clients should come here.
    fn readiness(&self) -> Answer {
        let phase = self.site.node.progress.phase();
        if phase.is_ready() {
            return Answer::json(200, b"{\"status\":\"serving\"}\n".to_vec())
                .field("Cache-Control", "no-store");
        }
        publish::with_retry_after(&self.worker, Answer::problem(503, phase.detail()))
    }

    /// An answer that GET and HEAD have.
    async fn fixed(self, call: Call<'_>, answer: Answer) -> Next {
        let answer = match call.request.method {
            Method::Get | Method::Head => answer,
            _ => not_allowed("GET, HEAD, OPTIONS"),
        };
        self.without_body(call, answer).await
    }

    async fn on_batch(mut self, call: Call<'_>) -> Next {
        if call.request.method != Method::Post {
            return self.without_body(call, not_allowed("POST, OPTIONS")).await;
        }
        let bearer = match self.admit(&call).and_then(|admitted| self.permit_batch(admitted.bearer)) {
            Ok(bearer) => bearer,
            Err(denied) => return self.denied(call, denied).await,
        };
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
        for (field, member) in LINE_LABELS {
            if fields.get(field).is_some() {
                let detail = format!(
                    "{field} is for POST /channels/NAME; in a batch each line has its own, as its member '{member}'"
                );
                return self.without_body(call, Answer::problem(400, detail)).await;
            }
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
        let publisher = self.publisher(&bearer);
        let over_quota = |bytes| self.over_quota(1, bytes);
        let answer = publish::batch(&self.worker, &content, message_bytes, publisher, over_quota).await;
        drop(content);
        self.answered_whole(answer, &call.manner).await
    }

    async fn on_channels(mut self, call: Call<'_>, path: Option<&str>) -> Next {
        let names = match path.map(parse_names).transpose() {
            Ok(names) => names,
            Err(answer) if is_read(&call.request) => {
                return self.without_body(call, answer.vary(VARY_READ)).await;
            }
            Err(answer) => return self.without_body(call, answer).await,
        };
        let (act, names) = match (call.request.method, names) {
            (Method::Get, names) if matches!(call.request.upgrade, Upgrade::WebSocket { .. }) => {
                return self.on_websocket(call, names.unwrap_or_default()).await;
            }
            (Method::Get | Method::Head, Some(names)) => (Act::Subscribe, names),
            (Method::Post, Some(names)) => (Act::Publish, names),
            (Method::Delete, Some(names)) => (Act::Delete, names),
            (Method::Get | Method::Head, None) => {
                let answer = Answer::problem(
                    404,
                    "no channel is named; read /channels/NAME, or open a WebSocket here with the subprotocol pushline.v1",
                );
                return self.without_body(call, answer).await;
            }
            (_, None) => return self.without_body(call, not_allowed("GET, HEAD, OPTIONS")).await,
            (_, Some(_)) => return self.without_body(call, not_allowed(METHODS)).await,
        };
        let admitted = match self.admit(&call).and_then(|admitted| self.permit(admitted, act, &names)) {
            Ok(admitted) => admitted,
            Err(denied) => return self.denied(call, denied).await,
        };
        match act {
            Act::Subscribe => self.on_read(call, names, admitted).await,
            Act::Publish => self.on_publish(call, &names, &admitted.bearer).await,
            Act::Delete => self.on_delete(call, &names).await,
        }
    }

    async fn on_delete(mut self, call: Call<'_>, names: &[Name]) -> Next {
        if let Err(failed) = self.discard_body(&call).await {
            return failed.tell(self, &call).await;
        }
        let answer = match self.over_quota(names.len(), 0) {
            Some(limited) => publish::refusal(&self.worker, publish::Refused::Limited(limited)),
            None => publish::delete(&self.worker, names).await,
        };
        self.answered(&answer, &call.manner).await
    }

    async fn on_tickets(mut self, call: Call<'_>) -> Next {
        if call.request.method != Method::Post {
            return self.without_body(call, not_allowed("POST, OPTIONS")).await;
        }
        if self.site.doorman.is_open() {
            return self.without_body(call, tickets::none_needed()).await;
        }
        // Of a request before this.
        self.stream.socket.bearer = None;
        let now_s = call.manner.unix_s;
        match self.site.doorman.asks_for_ticket(&call.request, call.query, now_s) {
            Ok((bearer, key)) => {
                self.stream.socket.bearer = Some(bearer.clone());
                // It counts as a publish does: both make the node keep something.
                let answer = match self.over_quota(1, 0) {
                    Some(limited) => tickets::over_quota(&self.worker, limited),
                    None => tickets::give(&self.site, &self.worker, &bearer, key, now_s),
                };
                self.without_body(call, answer).await
            }
            Err(unwelcome) => {
                self.tell_unwelcome(&unwelcome);
                self.denied(call, unwelcome.denied).await
            }
        }
    }

    async fn on_renewal(mut self, call: Call<'_>, id: &str) -> Next {
        if call.request.method != Method::Post {
            return self.without_body(call, not_allowed("POST, OPTIONS")).await;
        }
        if self.site.doorman.is_open() {
            return self.without_body(call, renewal::none_needed()).await;
        }
        let bearer = match self.admit(&call) {
            Ok(admitted) => admitted.bearer,
            Err(denied) => return self.denied(call, denied).await,
        };
        if let Err(failed) = self.discard_body(&call).await {
            return failed.tell(self, &call).await;
        }
        let renewed = renewal::renew(&self.site, &self.worker, id, &bearer).await;
        let answer = renewed.unwrap_or_else(|denied| {
            self.tell_denied(denied, Some(&bearer));
            self.worker.stats().refuse(denied.counted());
            doorman::answer(denied)
        });
        self.answered(&answer, &call.manner).await
    }

    async fn on_publish(mut self, call: Call<'_>, names: &[Name], bearer: &Bearer) -> Next {
        let labels = match Labels::of(&call.request.fields) {
            Ok(labels) => labels,
            Err(answer) => return self.without_body(call, answer).await,
        };
        let content = match self.read_body(&call, self.site.settings().limits.message_bytes).await {
            Ok(content) => content,
            Err(failed) => return failed.tell(self, &call).await,
        };
        let bytes = content.len() * names.len();
        let answer = match labels.draft(content) {
            Ok(draft) => match self.over_quota(names.len(), bytes) {
                Some(limited) => publish::refusal(&self.worker, publish::Refused::Limited(limited)),
                None => {
                    let publisher = self.publisher(bearer);
                    publish::publish(&self.worker, names, draft, labels.key(), publisher).await
                }
            },
            Err(answer) => answer,
        };
        self.answered(&answer, &call.manner).await
    }

    async fn on_read(mut self, call: Call<'_>, names: Vec<Name>, admitted: Admitted) -> Next {
        if let Err(failed) = self.discard_body(&call).await {
            return failed.tell(self, &call).await;
        }
        let head_only = call.request.method == Method::Head;
        let fields = call.request.fields;
        let accept = Accept::parse(fields.all("accept"));
        if accept.event_stream {
            return self.on_events(call, &names, head_only, admitted.ticket).await;
        }
        if !accept.json {
            let answer = Answer::problem(
                406,
                "a channel reads as application/json or text/event-stream; put one of them into Accept",
            );
            return self.answered(&answer.vary(VARY_READ), &call.manner).await;
        }
        // What is found for one who waits must be used at once: nothing is waited for after it.
        let waits = read::wait_of(call.query, &call.request).is_ok_and(|wait_s| wait_s > 0);
        if waits && self.flush().await.is_err() {
            return Next::Gone;
        }
        let remembered = &self.site.remembered;
        match read::poll(&self.worker, remembered, &call.request, call.query, names).await {
            Polled::Answer(answer) => self.answered_whole(answer, &call.manner).await,
            Polled::Hold { places, limit, wait_s } => {
                if let Some(limited) = self.begin_waiting(places.len()) {
                    return self.answered(&limited, &call.manner).await;
                }
                let Conn { worker, mut stream, input, proxy, site, .. } = self;
                let noted = stream.noted.take();
                if let Some(socket) = stream.into_socket() {
                    worker.with(|state| {
                        let mut held = read::held(state, &call.manner, limit, wait_s, input, proxy);
                        held.hold_noted(noted);
                        let conn = read::hold(state, socket, &places, held);
                        site.doorman.recheck(state, conn);
                    });
                }
                Next::Gone
            }
        }
    }

    async fn on_events(
        mut self,
        call: Call<'_>,
        names: &[Name],
        head_only: bool,
        ticket: Option<TicketUse>,
    ) -> Next {
        let fields = call.request.fields;
        let start = stream_start(call.query, fields.get("last-event-id"), names.len());
        let envelope = switch(call.query, "envelope");
        let (from, envelope) = match start.and_then(|from| Ok((from, envelope?))) {
            Ok(both) => both,
            Err(answer) => return self.answered(&answer.vary(VARY_READ), &call.manner).await,
        };
        if self.flush().await.is_err() {
            return Next::Gone;
        }
        self.worker.stats().answer(200);
        if head_only {
            super::stream::event_stream_head(&mut self.out, &call.manner);
            let bytes = self.out.len();
            self.note_answer(200, bytes);
            return Next::End(self, Reason::Answered);
        }
        let Conn { worker, stream, site, .. } = self;
        tickets::make_way(&site, &worker, ticket).await;
        let reads = Reads { names, from: &from };
        let opened = open_events(&worker, &site.doorman, stream, &call.manner, reads, envelope, ticket).await;
        tickets::opened(&site, &worker, ticket, opened);
        Next::Gone
    }
}

/// Fields that speak of one message, and the members of a batch's line that say the same.
const LINE_LABELS: [(&str, &str); 3] =
    [("Idempotency-Key", "key"), ("Pushline-TTL", "ttl"), ("Pushline-Event", "event")];

fn nothing_here() -> Answer {
    Answer::problem(404, "nothing is here; channels are at /channels/NAME, batches go to /publish")
}

/// Whether a request reads a channel: its answer depends on what it accepts and prefers.
pub(super) fn is_read(request: &Request<'_>) -> bool {
    matches!(request.method, Method::Get | Method::Head)
        && matches!(request.target, Target::Path { path, .. } if path.starts_with("/channels/"))
}

/// The methods that a path takes; `None`: nothing is there.
fn methods_of(path: &str) -> Option<&'static str> {
    match path {
        "/" | "/healthz" | "/readyz" | "/channels" => Some("GET, HEAD, OPTIONS"),
        "/publish" | "/tickets" => Some("POST, OPTIONS"),
        path if renewed_by(path).is_some() => Some("POST, OPTIONS"),
        path if path.starts_with("/channels/") => Some(METHODS),
        _ => None,
    }
}

/// The id of the connection that is renewed at a path.
fn renewed_by(path: &str) -> Option<&str> {
    let id = path.strip_prefix("/connections/")?.strip_suffix("/auth")?;
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

const METHODS: &str = "GET, HEAD, POST, DELETE, OPTIONS";

fn not_allowed(allow: &str) -> Answer {
    Answer::problem(405, format!("this method is not for this URL; it takes {allow}")).field("Allow", allow)
}
