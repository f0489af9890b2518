//! A connection that a task serves: read and written with deadlines, then given to the holder or closed.
//! Owns the way of a descriptor between monoio and the holder, and what is known of the connection meanwhile.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{CancelableAsyncReadRent, CancelableAsyncWriteRent, Canceller};
use monoio::net::TcpStream;

use super::budget::{Held, TASK_BYTES};
use super::close::{Reason, Transport};
use super::io::{RecvOutcome, recv_nonblocking};
use super::noted::Noted;
use super::sendring::{Outcome, send_now};
use super::state::Socket;
use super::tasks::Awaits;
use super::worker::Worker;

/// Read at once of a client that sends much.
const FLOW_BYTES: usize = 64 * 1024;
/// Encrypted at once of what is sent.
const SEALED_BYTES: usize = 64 * 1024;

/// Why a read or write came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamError {
    /// The deadline passed.
    Late,
    /// The client sends no more.
    Eof,
    /// The connection is broken.
    Broken,
    /// The node has no memory for more of it.
    Full,
}

/// Who has the descriptor.
enum Hold {
    /// This connection alone: monoio has not needed to know of it.
    Ours,
    Monoios(TcpStream),
    GivenAway,
}

/// A connection in the hands of a task. What can be done at once is; monoio is told of the descriptor when something has
/// to be waited for, and those waits are boxed: most requests never wait, and their tasks stay small.
pub struct Stream {
    hold: Hold,
    pub socket: Socket,
    /// What the log says of it if it ends here. A task that lets go of it without a reason was at fault.
    pub transport: Transport,
    pub reason: Reason,
    /// The request that is being answered, where somebody wants to know.
    pub noted: Option<Noted>,
    /// The last read filled its room: more is there, most likely, and much of it.
    filled: bool,
    /// What was sent last did not go out whole.
    torn: bool,
    /// What its task holds beside what it reads into.
    pub beside_bytes: usize,
    /// Bytes that are still to come of what is read, where that is known: room is made for no more.
    pub wanted: usize,
    /// What is read next.
    pub awaits: Awaits,
    /// Where the worker remembers what the task holds.
    place: Option<u32>,
    /// What acting on its request takes, and whether that is under way: not while its client is waited for.
    work_bytes: usize,
    is_running: bool,
    worker: Rc<Worker>,
}

impl Stream {
    /// Takes a descriptor that the holder or the accept loop gave away; nobody else has it now.
    pub fn new(worker: Rc<Worker>, socket: Socket) -> Self {
        Self {
            hold: Hold::Ours,
            socket,
            transport: Transport::Http,
            reason: Reason::Internal,
            noted: None,
            filled: false,
            torn: false,
            beside_bytes: 0,
            wanted: usize::MAX,
            awaits: Awaits::Head,
            place: None,
            work_bytes: 0,
            is_running: false,
            worker,
        }
    }

    /// A request is acted on, which takes so much until it is answered.
    pub fn begin_work(&mut self, bytes: usize) {
        self.pause_work();
        self.work_bytes = bytes;
        self.go_on_working();
    }

    fn pause_work(&mut self) {
        if std::mem::take(&mut self.is_running) {
            self.worker.with(|state| state.end_running(self.work_bytes));
        }
    }

    fn go_on_working(&mut self) {
        if !std::mem::replace(&mut self.is_running, true) {
            self.worker.with(|state| state.begin_running(self.work_bytes));
        }
    }

    /// The connection as monoio's.
    fn tcp(&mut self) -> Result<&mut TcpStream, StreamError> {
        if let Hold::Ours = self.hold {
            // SAFETY: the descriptor is this connection's alone (`new`).
            let std = unsafe { std::net::TcpStream::from_raw_fd(self.socket.fd) };
            // Until the driver has it, nobody does: an error closes it.
            self.hold = Hold::GivenAway;
            match TcpStream::from_std(std) {
                Ok(tcp) => self.hold = Hold::Monoios(tcp),
                Err(_) => {
                    let (transport, reason) = (self.transport, self.reason);
                    self.worker.with(|state| state.on_closed(&self.socket, None, transport, reason));
                }
            }
        }
        match &mut self.hold {
            Hold::Monoios(tcp) => Ok(tcp),
            Hold::Ours | Hold::GivenAway => Err(StreamError::Broken),
        }
    }

    /// Takes the descriptor back, if it is still here.
    fn take_fd(&mut self) -> Option<RawFd> {
        match std::mem::replace(&mut self.hold, Hold::GivenAway) {
            Hold::Ours => Some(self.socket.fd),
            Hold::Monoios(tcp) => Some(tcp.into_raw_fd()),
            Hold::GivenAway => None,
        }
    }

    /// Appends what comes to `buffer`, at least a byte.
    ///
    /// # Errors
    /// [`StreamError`]; nothing that came is lost but for a broken connection.
    pub async fn read(&mut self, buffer: &mut Vec<u8>, deadline: Duration) -> Result<(), StreamError> {
        let bytes =
            TASK_BYTES + self.beside_bytes + buffer.capacity().max(buffer.len() + self.growth(buffer));
        self.weigh(self.awaits, bytes)?;
        let read = if self.socket.tls.is_some() {
            Box::pin(self.read_sealed(buffer, deadline)).await
        } else {
            self.read_wire(buffer, deadline).await
        };
        self.resume();
        read
    }

    /// Whether the connection is to end with its next answer, for what it holds.
    pub fn is_evicted(&self) -> bool {
        self.told_to_end() == Some(Reason::Full)
    }

    fn told_to_end(&self) -> Option<Reason> {
        self.place.and_then(|_| self.worker.with(|state| state.task_ends(self.place)))
    }

    /// The same of bytes as they stand on the wire.
    async fn read_wire(&mut self, buffer: &mut Vec<u8>, deadline: Duration) -> Result<(), StreamError> {
        if self.filled && self.read_at_once(buffer) {
            return Ok(());
        }
        let until = Instant::now() + deadline;
        loop {
            let draining = self.worker.drain_ends();
            let until = draining.map_or(until, |end| until.min(end));
            let left = until.saturating_duration_since(Instant::now());
            match Box::pin(self.read_once(buffer, left, draining.is_some())).await {
                // The drain began meanwhile: its end is nearer.
                Err(StreamError::Late) if draining.is_none() && self.worker.drain_ends().is_some() => {}
                Err(error @ (StreamError::Eof | StreamError::Broken)) => match self.told_to_end() {
                    Some(Reason::Full) if error == StreamError::Eof => return Err(StreamError::Full),
                    Some(Reason::Full) | None => return Err(error),
                    Some(reason) => {
                        self.reason = reason;
                        return Err(error);
                    }
                },
                done => return done,
            }
        }
    }

    /// Reads, and decrypts, until a byte has come of it.
    async fn read_sealed(&mut self, buffer: &mut Vec<u8>, deadline: Duration) -> Result<(), StreamError> {
        let (until, before) = (Instant::now() + deadline, buffer.len());
        loop {
            let mut wire = self.socket.tls.as_mut().map(|tls| tls.lend_partial()).unwrap_or_default();
            let left = until.saturating_duration_since(Instant::now());
            // So much is wanted of plain bytes: of what is encrypted, what comes.
            let wanted = std::mem::replace(&mut self.wanted, usize::MAX);
            let read = self.read_wire(&mut wire, left).await;
            self.wanted = wanted;
            let Some(tls) = &mut self.socket.tls else { return Err(StreamError::Broken) };
            if let Err(error) = read {
                tls.keep_partial(wire);
                return Err(error);
            }
            let mut out = Vec::new();
            let received = tls.receive(&mut wire, buffer, &mut out);
            if !out.is_empty() {
                let left = until.saturating_duration_since(Instant::now());
                self.write_wire(out, left).await?;
            }
            match received {
                Ok(_) if buffer.len() > before => return Ok(()),
                Ok(received) if received.closed => return Err(StreamError::Eof),
                Ok(_) => {}
                Err(error) => {
                    self.reason = Reason::TlsFailed;
                    tracing::debug!(peer = %self.socket.peer, %error, "TLS failed");
                    return Err(StreamError::Broken);
                }
            }
        }
    }

    /// Counts what the task holds, where it waits.
    fn weigh(&mut self, awaits: Awaits, bytes: usize) -> Result<(), StreamError> {
        self.pause_work();
        let (place, socket) = (&mut self.place, &self.socket);
        match self.worker.with(|state| state.weigh_task(place, socket, awaits, bytes)) {
            Held::Fits => Ok(()),
            Held::Full => Err(StreamError::Full),
        }
    }

    /// The client has done what was waited for.
    fn resume(&mut self) {
        self.worker.with(|state| state.resume_task(self.place));
        self.go_on_working();
    }

    /// By how much a buffer grows to be read into.
    fn growth(&self, buffer: &Vec<u8>) -> usize {
        let has_room = buffer.capacity() - buffer.len() >= self.wanted.min(512);
        if has_room { 0 } else { buffer.len().max(2_048).min(self.wanted) }
    }

    /// Reads what is there of a client that sends much at once, without a turn of the driver for each piece.
    fn read_at_once(&mut self, buffer: &mut Vec<u8>) -> bool {
        let before = buffer.len();
        let room = FLOW_BYTES.min(self.wanted);
        if buffer.capacity() < before + room {
            buffer.reserve_exact(before.max(room).min(self.wanted));
        }
        buffer.resize(before + room, 0);
        let got = match recv_nonblocking(self.socket.fd, &mut buffer[before..]) {
            RecvOutcome::Bytes(bytes) => bytes,
            // What else is the case, the read that waits is told.
            RecvOutcome::Empty | RecvOutcome::Eof | RecvOutcome::Failed(_) => 0,
        };
        buffer.truncate(before + got);
        self.filled = got == room && got < self.wanted;
        got > 0
    }

    async fn read_once(
        &mut self,
        buffer: &mut Vec<u8>,
        left: Duration,
        draining: bool,
    ) -> Result<(), StreamError> {
        buffer.reserve_exact(self.growth(buffer));
        let taken = std::mem::take(buffer);
        let (start, end) = (taken.len(), taken.capacity());
        let canceller = Canceller::new();
        let worker = Rc::clone(&self.worker);
        let tcp = self.tcp()?;
        let (result, slice) = {
            let mut read =
                std::pin::pin!(tcp.cancelable_read(taken.slice_mut(start..end), canceller.handle()));
            monoio::select! {
                done = &mut read => done,
                () = monoio::time::sleep(left) => {
                    canceller.cancel();
                    // The operation is awaited to its end: bytes that came meanwhile are not lost.
                    read.await
                }
                () = worker.drain_begins(), if !draining => {
                    canceller.cancel();
                    read.await
                }
            }
        };
        *buffer = slice.into_inner();
        match result {
            Ok(0) => {
                self.reason = Reason::Gone;
                Err(StreamError::Eof)
            }
            Ok(got) => {
                self.filled = got == end - start && got < self.wanted;
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => Err(StreamError::Late),
            Err(error) => Err(self.broken(&error)),
        }
    }

    /// It broke: that is why it ends.
    fn broken(&mut self, error: &io::Error) -> StreamError {
        self.reason = Reason::of_errno(error.raw_os_error().unwrap_or(libc::EIO));
        StreamError::Broken
    }

    /// Sends all of `bytes`, which it empties; what the socket does not take at once is waited for.
    ///
    /// # Errors
    /// [`StreamError`]
    pub async fn write_all(&mut self, bytes: &mut Vec<u8>, deadline: Duration) -> Result<(), StreamError> {
        self.socket.sent_bytes += bytes.len() as u64;
        self.worker.stats().sent_bytes.add(self.transport as usize, bytes.len() as u64);
        if self.socket.tls.is_some() {
            return Box::pin(self.write_sealed(std::mem::take(bytes), deadline)).await;
        }
        let sent = self.send_at_once(bytes)?;
        if sent < bytes.len() {
            let rest = std::mem::take(bytes);
            return Box::pin(self.write_rest(rest, sent, deadline)).await;
        }
        bytes.clear();
        Ok(())
    }

    async fn write_sealed(&mut self, bytes: Vec<u8>, deadline: Duration) -> Result<(), StreamError> {
        let until = Instant::now() + deadline;
        // It stays until the last of it is encrypted.
        self.beside_bytes += bytes.capacity();
        let mut done = Ok(());
        for part in bytes.chunks(SEALED_BYTES) {
            let mut sealed = Vec::new();
            let sealing = self.socket.tls.as_mut().map(|tls| tls.seal(part, &mut sealed));
            if !matches!(sealing, Some(Ok(()))) {
                done = Err(StreamError::Broken);
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            done = self.write_wire(sealed, left).await;
            if done.is_err() {
                break;
            }
        }
        self.beside_bytes -= bytes.capacity();
        done
    }

    /// Sends bytes as they stand on the wire.
    async fn write_wire(&mut self, bytes: Vec<u8>, deadline: Duration) -> Result<(), StreamError> {
        let sent = self.send_at_once(&bytes)?;
        if sent < bytes.len() { self.write_rest(bytes, sent, deadline).await } else { Ok(()) }
    }

    /// Sends what the socket takes. Returns how much.
    fn send_at_once(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        // Behind half of a record, or of an answer, nothing that follows could be read.
        if self.torn || matches!(self.hold, Hold::GivenAway) {
            return Err(StreamError::Broken);
        }
        match send_now(self.socket.fd, bytes) {
            Outcome::Whole => Ok(bytes.len()),
            Outcome::Short(sent) => Ok(sent),
            Outcome::Full => Ok(0),
            Outcome::Failed(errno) => Err(self.broken(&io::Error::from_raw_os_error(errno))),
        }
    }

    /// Sends what follows the first `sent` bytes.
    async fn write_rest(
        &mut self,
        bytes: Vec<u8>,
        sent: usize,
        deadline: Duration,
    ) -> Result<(), StreamError> {
        let written = self.write_waiting(bytes, sent, deadline).await;
        self.torn = written.is_err();
        match written {
            Err(StreamError::Full) => self.reason = Reason::Full,
            Err(_) => self.reason = self.told_to_end().unwrap_or(self.reason),
            Ok(()) => {}
        }
        self.resume();
        written
    }

    async fn write_waiting(
        &mut self,
        mut bytes: Vec<u8>,
        mut sent: usize,
        deadline: Duration,
    ) -> Result<(), StreamError> {
        self.weigh(Awaits::Answer, TASK_BYTES + self.beside_bytes + bytes.capacity())?;
        let until = Instant::now() + deadline;
        while sent < bytes.len() {
            let left = until.saturating_duration_since(Instant::now());
            let canceller = Canceller::new();
            let tcp = self.tcp()?;
            let (result, slice) = {
                let mut write = std::pin::pin!(tcp.cancelable_write(bytes.slice(sent..), canceller.handle()));
                monoio::select! {
                    done = &mut write => done,
                    () = monoio::time::sleep(left) => {
                        canceller.cancel();
                        write.await
                    }
                }
            };
            bytes = slice.into_inner();
            match result {
                Ok(0) => return Err(StreamError::Broken),
                Ok(more) => sent += more,
                Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => {
                    self.reason = Reason::Stalled;
                    return Err(StreamError::Late);
                }
                Err(error) => return Err(self.broken(&error)),
            }
        }
        Ok(())
    }

    /// Gives the connection away, to the holder.
    pub fn into_socket(mut self) -> Option<Socket> {
        let fd = self.take_fd()?;
        debug_assert_eq!(fd, self.socket.fd);
        self.pause_work();
        if let Some(place) = self.place.take() {
            self.worker.with(|state| state.forget_task(place));
        }
        Some(self.socket.take())
    }

    pub fn fd(&self) -> RawFd {
        self.socket.fd
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.pause_work();
        if let Some(place) = self.place.take() {
            self.worker.with(|state| state.forget_task(place));
        }
        let Some(fd) = self.take_fd() else { return };
        debug_assert_eq!(fd, self.socket.fd);
        let mut last = Vec::new();
        if let (Some(tls), false) = (&mut self.socket.tls, self.torn) {
            tls.close(&mut last);
        }
        if !last.is_empty() {
            // Whether the client hears it or not.
            send_now(fd, &last);
        }
        self.worker.with(|state| state.close(&self.socket, self.transport, self.reason));
    }
}

/// A descriptor of the worker's own whose readiness is awaited: a listener, an eventfd, an epoll set.
pub struct Awaited(TcpStream);

impl Awaited {
    /// # Errors
    /// The driver could not take it.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // monoio's type for sockets serves for any descriptor that can be polled: only readiness is asked of it.
        Ok(Self(TcpStream::from_std(std::net::TcpStream::from(fd))?))
    }

    /// A duplicate of a descriptor that stays its owner's.
    ///
    /// # Errors
    /// No descriptor was left, or the driver could not take it.
    pub fn duplicate_of(fd: RawFd) -> io::Result<Self> {
        // SAFETY: `fd` is open for as long as this call: the caller owns it.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        Self::new(borrowed.try_clone_to_owned()?)
    }

    /// Waits until a read would not wait. Returns whether it waited at all: with epoll it does not where something is
    /// there already, and then no other task has had its turn.
    pub async fn readable(&self) -> bool {
        let mut readable = std::pin::pin!(self.0.readable(false));
        let mut waited = false;
        std::future::poll_fn(|cx| {
            // An error means that the descriptor is in a state that the next use of it will tell of.
            let poll = readable.as_mut().poll(cx).map(drop);
            waited |= poll.is_pending();
            poll
        })
        .await;
        waited
    }
}
