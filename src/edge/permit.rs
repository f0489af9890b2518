//! Who a request is of, whether they may do what it asks, and who hears of it when they may not: the client, the log,
//! whoever watches.
//! Owns the order of that for a request. What a token permits is `doorman`'s.

use crate::domain::auth::{Act, Bearer, Proof};
use crate::domain::channel::Name;
use crate::runtime::caller::Caller;
use crate::runtime::close::Transport;
use crate::runtime::stats::Refusal;
use crate::runtime::trace::{What, Who};

use super::answer::{Answer, VARY_READ};
use super::auth::{Denied, Unwelcome};
use super::conn::{Call, Conn, Next};
use super::doorman::{self, Admitted};
use super::origin::Barred;
use super::publish::Publisher;
use super::route::is_read;

impl Conn {
    /// Who a request is of. The connection is theirs from now on.
    pub(super) fn admit(&mut self, call: &Call<'_>) -> Result<Admitted, Denied> {
        let peer = self.stream.socket.peer;
        let doorman = &self.site.doorman;
        let admitted = doorman.admit(&call.request, call.query, peer, call.manner.unix_s);
        if !doorman.is_open() {
            self.stream.socket.bearer = admitted.as_ref().ok().map(|admitted| admitted.bearer.clone());
        }
        match admitted {
            Ok(admitted) if self.site.doorman.is_open() => Ok(admitted),
            Ok(admitted) => {
                self.trace_admitted(Ok(admitted.bearer.proof));
                Ok(admitted)
            }
            Err(unwelcome) => {
                self.tell_unwelcome(&unwelcome);
                Err(unwelcome.denied)
            }
        }
    }

    /// Somebody was not let in: exactly why, and who, if that is known, to the logs and to whoever watches.
    pub(super) fn tell_unwelcome(&mut self, unwelcome: &Unwelcome) {
        let peer = self.stream.socket.peer;
        doorman::note_unwelcome(unwelcome, peer);
        let Some(noted) = &mut self.stream.noted else { return };
        noted.is_of(unwelcome.subject());
        self.worker.with(|state| {
            if state.is_traced() {
                let who = Who {
                    subject: unwelcome.subject(),
                    ..Who::of_socket(&self.stream.socket, Transport::Http)
                };
                state.trace(who, || What::Denied { why: unwelcome.why() });
            }
        });
    }

    /// Whether they may do this to all of the channels.
    pub(super) fn permit(&self, admitted: Admitted, act: Act, names: &[Name]) -> Result<Admitted, Denied> {
        if !self.site.doorman.is_open() {
            let permitted = self.site.doorman.permit(&admitted.bearer, act, names, self.stream.socket.peer);
            permitted.inspect_err(|denied| self.trace_admitted(Err(*denied)))?;
        }
        Ok(admitted)
    }

    /// Whether someone may publish to any channel: else no line of a batch can be done.
    pub(super) fn permit_batch(&self, bearer: Caller) -> Result<Caller, Denied> {
        if !bearer.grants.publish.is_empty() {
            return Ok(bearer);
        }
        let denied = doorman::refusal(&bearer, Act::Publish);
        self.tell_denied(denied, Some(&bearer));
        Err(denied)
    }

    /// Somebody is refused: exactly why, to the log and to whoever watches.
    pub(super) fn tell_denied(&self, denied: Denied, bearer: Option<&Bearer>) {
        doorman::note(denied, self.stream.socket.peer, bearer, None);
        self.trace_admitted(Err(denied));
    }

    /// The same of a request that came from another site's page, or by another name. It was not asked who sent it.
    fn tell_barred(&mut self, barred: Barred) {
        self.stream.socket.bearer = None;
        let socket = &self.stream.socket;
        doorman::note_barred(barred, socket.peer);
        self.worker.with(|state| {
            if state.is_traced() {
                let who = Who::of_socket(socket, Transport::Http);
                state.trace(who, || What::Denied { why: barred.detail().into() });
            }
        });
    }

    /// Who it is of, or exactly why not: for whoever watches.
    fn trace_admitted(&self, admitted: Result<Proof, Denied>) {
        // Where nobody wants to know of requests, nobody watches.
        if self.stream.noted.is_none() {
            return;
        }
        self.worker.with(|state| {
            if state.is_traced() {
                let who = Who::of_socket(&self.stream.socket, Transport::Http);
                match admitted {
                    Ok(proof) => state.trace_proof(who, proof),
                    Err(denied) => state.trace(who, || What::Denied { why: denied.to_string().into() }),
                }
            }
        });
    }

    pub(super) fn publisher<'b>(&'b self, bearer: &'b Bearer) -> Publisher<'b> {
        if self.site.doorman.is_open() {
            Publisher::ANYONE
        } else {
            Publisher::of(&self.site.doorman, bearer, self.stream.socket.peer)
        }
    }

    /// The request came from another site's page, or by another name: nothing that it asks for is done.
    pub(super) async fn barred(mut self, call: Call<'_>, barred: Barred) -> Next {
        self.worker.stats().refuse(Refusal::Origin);
        self.tell_barred(barred);
        let answer = Answer::problem(403, barred.detail());
        let answer = if is_read(&call.request) { answer.vary(VARY_READ) } else { answer };
        self.without_body(call, answer).await
    }

    pub(super) async fn denied(self, call: Call<'_>, denied: Denied) -> Next {
        self.worker.stats().refuse(denied.counted());
        let answer = doorman::answer(denied);
        let answer = if is_read(&call.request) { answer.vary(VARY_READ) } else { answer };
        self.without_body(call, answer).await
    }
}
