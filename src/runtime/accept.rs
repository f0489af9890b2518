//! Connections coming in: accepted, counted, refused at the limit; and listeners handed to a process that takes over.

use std::future::Future;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::close::{Reason, Transport};
use super::entry::Kind;
use super::io::{EventFd, RecvOutcome, close, recv_nonblocking};
use super::listen::{self, Listener};
use super::mail::Mail;
use super::peer::Peer;
use super::state::{Socket, Spawn, State};
use super::stats::Refusal;
use super::stream::Awaited;
use super::trace::{What, Who};
use super::worker::Worker;

/// Connections accepted in one go.
const ACCEPTS_MAX: usize = 64;
/// Read of a connection at once when it is accepted: most requests.
const FIRST_BYTES: usize = 4 * 1024;
/// A pause after the table of open files was found full.
const FILES_FULL_PAUSE: Duration = Duration::from_millis(50);
/// Longer than a handshake on any sane path takes, or its first answer lost and sent again: for connections that were on
/// their way to this process when the kernel was told to send new ones elsewhere.
const HANDSHAKES_END: Duration = Duration::from_millis(1_500);

impl Worker {
    pub(super) async fn accept(self: Rc<Self>, ready: Awaited, listener: Listener, spare: EventFd) {
        let mut spare = Some(spare);
        let Listener { fd: listener, is_passed, is_tls } = listener;
        loop {
            {
                let mut readable = std::pin::pin!(ready.readable());
                let mut closing = std::pin::pin!(self.closing.wait());
                std::future::poll_fn(|cx| match readable.as_mut().poll(cx) {
                    Poll::Ready(_) => Poll::Ready(()),
                    Poll::Pending => closing.as_mut().poll(cx),
                })
                .await;
            }
            let is_last = self.closing.is_rung();
            if is_last && is_passed {
                // It listens on: who waits in it waits for the next process.
                return;
            }
            loop {
                let taken = self.accept_some(&listener, is_tls, &mut spare);
                if taken < ACCEPTS_MAX {
                    break;
                }
                if !is_last {
                    break;
                }
            }
            if is_last {
                // At once: the driver keeps its hold of the descriptor until it is told of the close, which may be after
                // the process has ended.
                listen::stop(listener.as_raw_fd());
                return;
            }
            if spare.is_none() {
                monoio::time::sleep(FILES_FULL_PAUSE).await;
                spare = EventFd::new().ok();
            }
        }
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
            for mailbox in &state.node.mailboxes {
                let letter = Mail::CloseListeners;
                let bytes = letter.cost_bytes();
                mailbox.send_reserved(letter, bytes);
            }
        });
    }

    fn accept_some(self: &Rc<Self>, listener: &OwnedFd, is_tls: bool, spare: &mut Option<EventFd>) -> usize {
        for taken in 0..ACCEPTS_MAX {
            match listen::accept_nonblocking(listener.as_raw_fd(), self.nonblocking) {
                Ok(Some((fd, peer))) => self.take_in(fd, peer.into(), is_tls),
                Ok(None) => return taken,
                Err(_) => {
                    // The table of open files is full. One descriptor was kept for this: whoever waits is told by
                    // the close, and does not fill the queue for those who might be served.
                    drop(spare.take());
                    if let Ok(Some((fd, peer))) = listen::accept_nonblocking(listener.as_raw_fd(), true) {
                        drop(fd);
                        self.with(|state| {
                            state.stats().refuse(Refusal::Files);
                            state.tell_refused(peer.into(), Reason::Full);
                        });
                    }
                    return taken;
                }
            }
        }
        self.with(State::see_crowd);
        ACCEPTS_MAX
    }

    fn take_in(self: &Rc<Self>, fd: OwnedFd, peer: Peer, is_tls: bool) {
        use std::os::fd::IntoRawFd;
        let fd = fd.into_raw_fd();
        self.with(|state| {
            let max = state.node.settings.limits.connections;
            if state.is_spent() {
                state.stats().refuse(Refusal::Memory);
                close(fd);
                return;
            }
            if state.connections >= self.connections_max || !state.node.places.take(max) {
                state.stats().refuse(Refusal::Connections);
                close(fd);
                state.tell_refused(peer, Reason::Full);
                return;
            }
            state.connections += 1;
            state.stats().accepted.add(1);
            if state.is_traced() {
                state.trace(Who::of_peer(peer), || What::Accepted);
            }
            let socket = Socket {
                fd,
                is_in_epoll: false,
                opened_tick: state.tick(),
                sent_messages: 0,
                sent_bytes: 0,
                peer,
                bearer: None,
                tls: None,
            };
            if is_tls {
                // Its handshake has its turn when its first bytes are there.
                state.adopt(socket, Kind::Handshake);
                return;
            }
            // The request came while the connection waited to be accepted, or it is held until it comes: no task waits.
            let mut first = [0; FIRST_BYTES];
            match recv_nonblocking(fd, &mut first) {
                RecvOutcome::Bytes(bytes) => {
                    state.spawns.push(Spawn::Serve { socket, input: first[..bytes].to_vec() });
                }
                RecvOutcome::Empty => drop(state.adopt(socket, Kind::Idle)),
                RecvOutcome::Eof => state.close(&socket, Transport::Http, Reason::Gone),
                RecvOutcome::Failed(errno) => {
                    state.close(&socket, Transport::Http, Reason::of_errno(errno));
                }
            }
        });
    }
}
