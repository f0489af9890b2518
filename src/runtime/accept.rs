//! Connections coming in: accepted, counted, refused at the limit; and listeners handed to a process that takes over.

use std::future::Future;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::domain::home::WorkerIndex;

use super::capacity::Room;
use super::close::{Reason, Transport};
use super::entry::Kind;
use super::introduction;
use super::io::{EventFd, RecvOutcome, bound_send_buffer, close, recv_nonblocking};
use super::listen::{self, Listener};
use super::mail::Mail;
use super::peer::Peer;
use super::quotas::Limited;
use super::state::{Socket, State};
use super::stats::Refusal;
use super::stream::Awaited;
use super::trace::{What, Who};
use super::worker::Worker;

/// Connections accepted in one go: of a listener of the worker's own, and of one that all workers share, where the
/// others are to have their part.
const ACCEPTS_MAX: usize = 64;
const SHARED_ACCEPTS_MAX: usize = 4;
/// Read of a connection at once when it is accepted: most requests.
pub(super) const FIRST_BYTES: usize = 4 * 1024;
/// How long a queue that does not become empty may hold the thread, and how long others then have it.
const SLICE: Duration = Duration::from_millis(2);
const OTHERS_TURN: Duration = Duration::from_millis(1);
/// A pause after the table of open files was found full.
const FILES_FULL_PAUSE: Duration = Duration::from_millis(50);
/// Longer than a handshake on any sane path takes, or its first answer lost and sent again: for connections that were on
/// their way to this process when the kernel was told to send new ones elsewhere.
const HANDSHAKES_END: Duration = Duration::from_millis(1_500);

impl Worker {
    pub(super) async fn accept(self: Rc<Self>, ready: Awaited, listener: Listener, spare: EventFd) {
        let mut spare = Some(spare);
        let fd = listener.fd.as_raw_fd();
        let is_shared = listener.is_unix() || listener.is_passed;
        let accepts_max = if is_shared { SHARED_ACCEPTS_MAX } else { ACCEPTS_MAX };
        let (mut taken, mut until) = (accepts_max, Instant::now() + SLICE);
        loop {
            if self.ready_or_closing(&ready).await {
                until = Instant::now() + SLICE;
            } else if taken == 0 || Instant::now() >= until {
                // No other task has had its turn, not even the one that hears that this one is to end. A listener that
                // another worker has stopped is ready for ever, and gives nothing.
                monoio::time::sleep(OTHERS_TURN).await;
                until = Instant::now() + SLICE;
            }
            let is_last = self.closing.is_rung();
            if is_last && listener.is_passed {
                // It listens on: who waits in it waits for the next process.
                return;
            }
            if is_last && is_shared {
                // Who is in its queue stays there: whichever worker is the last takes them.
                listen::stop(fd);
            }
            taken = self.accept_some(&listener, &mut spare, accepts_max);
            while taken == accepts_max && is_last {
                taken = self.accept_some(&listener, &mut spare, accepts_max);
            }
            if is_last {
                // At once: the driver keeps its hold of the descriptor until it is told of the close, which may be after
                // the process has ended.
                listen::stop(fd);
                return;
            }
            if spare.is_none() {
                monoio::time::sleep(FILES_FULL_PAUSE).await;
                spare = EventFd::new().ok();
            }
        }
    }

    /// Waits until somebody comes, or none may come any more. Returns whether it waited at all (see
    /// [`Awaited::readable`]).
    async fn ready_or_closing(&self, ready: &Awaited) -> bool {
        let mut readable = std::pin::pin!(ready.readable());
        let mut closing = std::pin::pin!(self.closing.wait());
        let mut waited = false;
        std::future::poll_fn(|cx| {
            let poll = match readable.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => closing.as_mut().poll(cx),
            };
            waited |= poll.is_pending();
            poll
        })
        .await;
        waited
    }

    /// Sends new connections to the process that takes over, which has `new` listeners to each address, then lets every
    /// worker close. For the first worker, on behalf of all: `steered` is one of its listeners of each address.
    pub(super) async fn hand_over(self: Rc<Self>, steered: Rc<[RawFd]>, old: u32, new: u32) {
        for listener in steered.iter() {
            let _ = listen::steer_away(*listener, old, new);
        }
        if !steered.is_empty() {
            monoio::time::sleep(HANDSHAKES_END).await;
        }
        for listener in steered.iter() {
            let _ = listen::steer_to_first_new(*listener, old);
        }
        self.with(|state| {
            for worker in 0..state.node.mailboxes.len() {
                state.node.post(worker as WorkerIndex, Mail::CloseListeners);
            }
        });
    }

    /// Takes in whoever waits, at most `accepts_max`. Returns how many did.
    fn accept_some(
        self: &Rc<Self>,
        listener: &Listener,
        spare: &mut Option<EventFd>,
        accepts_max: usize,
    ) -> usize {
        let fd = listener.fd.as_raw_fd();
        let mut newcomers = self.newcomers.take();
        let mut taken = 0;
        while taken < accepts_max {
            match listen::accept_nonblocking(fd, self.nonblocking) {
                Ok(Some((client, peer))) => newcomers.extend(self.take_in(client, peer, listener)),
                Ok(None) => break,
                Err(_) => {
                    self.refuse_for_files(fd, spare);
                    break;
                }
            }
            taken += 1;
        }
        if taken == accepts_max {
            // Whoever is left in a queue that others take from too waits for them as well.
            self.with(State::see_crowd);
        }
        let is_tls = listener.endpoint.tls;
        for socket in newcomers.drain(..) {
            if self.node.settings.proxy.announces(&socket.peer) {
                self.spawn(Box::pin(introduction::introduce(Rc::clone(self), socket, is_tls)));
            } else {
                self.welcome(socket, Vec::new(), is_tls);
            }
        }
        self.newcomers.replace(newcomers);
        taken
    }

    /// The table of open files is full, whether anybody waits or not. One descriptor was kept for this: whoever waits is told
    /// by the close, and does not fill the queue for those who might be served.
    fn refuse_for_files(self: &Rc<Self>, listener: RawFd, spare: &mut Option<EventFd>) {
        drop(spare.take());
        let Ok(waiting) = listen::accept_nonblocking(listener, true) else { return };
        let refused = waiting.map(|(_, peer)| peer);
        // At once: where workers share the table, another's newcomer would have it.
        *spare = EventFd::new().ok();
        if let Some(peer) = refused {
            self.with(|state| {
                state.stats().refuse(Refusal::Files);
                state.tell_refused(peer, Reason::Full);
            });
        }
    }

    /// One that was accepted, if there is a place for it.
    fn take_in(self: &Rc<Self>, fd: OwnedFd, peer: Peer, listener: &Listener) -> Option<Socket> {
        use std::os::fd::IntoRawFd;
        let fd = fd.into_raw_fd();
        self.with(|state| {
            let socket = state.accepted(fd, peer, self.room)?;
            if listener.is_unix() {
                // What listeners of ports hand down.
                let _ = bound_send_buffer(fd, state.node.settings.slow.kernel_bytes);
            }
            Some(socket)
        })
    }

    /// Begins with a connection of which the client's address is known, as far as it is before a request is read.
    /// `input`: what came already.
    pub(super) fn welcome(self: &Rc<Self>, socket: Socket, input: Vec<u8>, is_tls: bool) {
        let Some(socket) = self.with(|state| state.admitted(socket, is_tls)) else { return };
        if !input.is_empty() {
            self.begin(socket, &input);
            return;
        }
        // The request came while the connection waited to be accepted, or it is held until it comes: no task waits.
        let mut first = self.first.borrow_mut();
        match recv_nonblocking(socket.fd, &mut first[..]) {
            RecvOutcome::Bytes(bytes) => self.begin(socket, &first[..bytes]),
            RecvOutcome::Empty => {
                self.with(|state| state.adopt(socket, Kind::Idle));
            }
            RecvOutcome::Eof => self.with(|state| state.close(&socket, Transport::Http, Reason::Gone)),
            RecvOutcome::Failed(errno) => {
                self.with(|state| state.close(&socket, Transport::Http, Reason::of_errno(errno)));
            }
        }
    }

    /// A newcomer's first bytes are there.
    fn begin(self: &Rc<Self>, socket: Socket, input: &[u8]) {
        let mut newcomer = Some(socket);
        let opens = || self.edge.open_at_once(self, &mut newcomer, input);
        let opened = catch_unwind(AssertUnwindSafe(opens));
        if opened.is_err() {
            self.stats().panics.add(1);
            self.with(|state| {
                tracing::error!(worker = state.index, "a request panicked; its connection is closed");
                if let Some(socket) = &newcomer {
                    state.close(socket, Transport::Http, Reason::Internal);
                }
            });
        } else if let Some(socket) = newcomer {
            self.spawn(Rc::clone(&self.edge).serve(Rc::clone(self), socket, input.to_vec()));
        }
    }
}

impl State {
    /// Takes a place among the node's connections. `Some(None)`: there is none by `limits.connections`, or by open files.
    #[allow(clippy::option_option)]
    fn take_place(&self, peer: &Peer, room: Room) -> Option<Option<Limited>> {
        let limit = self.node.settings.limits.connections.min(room.all);
        let quotas = self.node.quotas.as_ref().filter(|quotas| quotas.connections_max() < limit);
        let limit = quotas.map_or(limit, |quotas| quotas.connections_max());
        (!self.node.places.take(limit)).then(|| quotas.map(|quotas| quotas.on_full(peer)))
    }

    /// Counts a connection of which the client's address is known.
    fn admit(&self, socket: &mut Socket) -> Result<(), Limited> {
        let Some(quotas) = &self.node.quotas else { return Ok(()) };
        let forwards = self.node.settings.proxy.forwards(&socket.peer);
        socket.share = quotas.admit(&socket.peer, forwards)?;
        Ok(())
    }

    /// A connection that was just accepted, if there is a place for it.
    fn accepted(&mut self, fd: RawFd, peer: Peer, room: Room) -> Option<Socket> {
        if self.is_spent() {
            self.stats().refuse(Refusal::Memory);
            close(fd);
            self.tell_refused(peer, Reason::Full);
            return None;
        }
        let full = if self.connections >= room.each { Some(None) } else { self.take_place(&peer, room) };
        if let Some(limited) = full {
            self.stats().refuse(limited.map_or(Refusal::Connections, |_| Refusal::Quota));
            close(fd);
            if let Some(limited) = limited {
                self.trace_limited(Who::of_peer(peer), limited);
            }
            self.tell_refused(peer, limited.map_or(Reason::Full, |_| Reason::RateLimited));
            return None;
        }
        self.connections += 1;
        self.stats().accepted.add(1);
        if self.is_traced() {
            self.trace(Who::of_peer(peer), || What::Accepted);
        }
        Some(Socket {
            fd,
            is_in_epoll: false,
            opened_tick: self.tick(),
            sent_messages: 0,
            sent_bytes: 0,
            peer,
            bearer: None,
            tls: None,
            share: None,
        })
    }

    /// A connection of which the client's address is known, if it may come and is not to shake hands first.
    fn admitted(&mut self, mut socket: Socket, is_tls: bool) -> Option<Socket> {
        if let Err(limited) = self.admit(&mut socket) {
            // Before a head is read: nobody is answered.
            self.stats().refuse(Refusal::Quota);
            self.trace_limited(Who::of_peer(socket.peer), limited);
            self.close(&socket, Transport::Http, Reason::RateLimited);
            return None;
        }
        if is_tls {
            // Its handshake has its turn when its first bytes are there.
            self.stats().handshakes_begun.add(1);
            self.adopt(socket, Kind::Handshake);
            return None;
        }
        Some(socket)
    }
}
