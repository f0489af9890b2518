//! How a connection of a trusted proxy begins where the PROXY protocol is spoken: with who the client is.
//! Owns the reading of that header, in the time that a request's head may take; then the connection is accepted as the
//! client's. What the header looks like is `proto::proxy`'s.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::proto::proxy::{HEADER_BYTES_MAX, Parsed, ProxyError, Source, parse};

use super::close::Reason;
use super::io::{RecvOutcome, has_ended, peek_nonblocking, recv_nonblocking, take_error};
use super::peer::Peer;
use super::state::Socket;
use super::stream::{Stream, StreamError};
use super::worker::Worker;

/// Read at once: a header, and most requests behind it.
const FIRST_BYTES: usize = 4 * 1024;

/// How often it is looked for more of a header that came in pieces, where it may not be taken in pieces.
const PEEK_PAUSE: Duration = Duration::from_millis(10);

/// Reads the header, then lets the connection in. One that does not begin so is closed without an answer.
pub(super) async fn introduce(worker: Rc<Worker>, socket: Socket, is_tls: bool) {
    let until = Instant::now() + worker.with(|state| state.node.settings.timeouts.head);
    if is_tls {
        return introduce_before_tls(worker, socket, until).await;
    }
    let mut input = Vec::with_capacity(FIRST_BYTES);
    // Proxies send it together with their first bytes, or before: most often it is there.
    let got = {
        let mut first = [0; FIRST_BYTES];
        let got = recv_nonblocking(socket.fd, &mut first);
        if let RecvOutcome::Bytes(bytes) = got {
            input.extend_from_slice(&first[..bytes]);
        }
        got
    };
    let mut stream = Stream::new(Rc::clone(&worker), socket);
    if let Some(reason) = end_of(got) {
        stream.reason = reason;
        return;
    }
    loop {
        match parse(&input) {
            Ok(Parsed::Done { source, used }) => {
                input.drain(..used);
                return let_in(&worker, stream, source, input, false);
            }
            Ok(Parsed::Partial) => {}
            Err(error) => return refuse(stream, error),
        }
        let left = until.saturating_duration_since(Instant::now());
        if let Err(error) = stream.read(&mut input, left).await {
            match error {
                StreamError::Late => stream.reason = Reason::RequestTimeout,
                StreamError::Full => stream.reason = Reason::Full,
                // The stream has seen why.
                StreamError::Eof | StreamError::Broken => {}
            }
            return;
        }
    }
}

/// The same before TLS, whose handshake reads the socket itself: nothing behind the header may be taken from it.
async fn introduce_before_tls(worker: Rc<Worker>, socket: Socket, until: Instant) {
    let fd = socket.fd;
    let mut stream = Stream::new(Rc::clone(&worker), socket);
    let mut seen = vec![0; HEADER_BYTES_MAX];
    loop {
        // Asked before: what has come is then all.
        let is_all = has_ended(fd);
        let got = peek_nonblocking(fd, &mut seen);
        if let Some(reason) = end_of(got) {
            stream.reason = reason;
            return;
        }
        let bytes = if let RecvOutcome::Bytes(bytes) = got { bytes } else { 0 };
        match parse(&seen[..bytes]) {
            Ok(Parsed::Done { source, used }) => {
                let mut left = used;
                while left > 0 {
                    match recv_nonblocking(fd, &mut seen[..left]) {
                        RecvOutcome::Bytes(taken) => left -= taken,
                        got => {
                            stream.reason = end_of(got).unwrap_or(Reason::Internal);
                            return;
                        }
                    }
                }
                return let_in(&worker, stream, source, Vec::new(), true);
            }
            Ok(Parsed::Partial) if is_all => {
                stream.reason = Reason::of_errno(take_error(fd));
                return;
            }
            Ok(Parsed::Partial) => {}
            Err(error) => return refuse(stream, error),
        }
        let until = worker.drain_ends().map_or(until, |end| until.min(end));
        if Instant::now() >= until {
            stream.reason = Reason::RequestTimeout;
            return;
        }
        monoio::time::sleep(PEEK_PAUSE).await;
    }
}

/// It is known who the client is: the connection is theirs, and `input` is what they sent so far.
fn let_in(worker: &Rc<Worker>, mut stream: Stream, source: Source, input: Vec<u8>, is_tls: bool) {
    if let Source::Client(addr) = source {
        stream.socket.peer = Peer::from(addr);
    }
    if let Some(socket) = stream.into_socket() {
        worker.welcome(socket, input, is_tls);
    }
}

/// Closes what does not begin as a proxy's connection does.
fn refuse(mut stream: Stream, error: ProxyError) {
    stream.reason = Reason::BadProxy;
    tracing::debug!(peer = %stream.socket.peer, "a trusted proxy began with {}", error.as_str());
}

/// Why a connection is over, if it is.
const fn end_of(got: RecvOutcome) -> Option<Reason> {
    match got {
        RecvOutcome::Bytes(_) | RecvOutcome::Empty => None,
        RecvOutcome::Eof => Some(Reason::Gone),
        RecvOutcome::Failed(errno) => Some(Reason::of_errno(errno)),
    }
}
