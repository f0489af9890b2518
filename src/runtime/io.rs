//! Thin safe wrappers over descriptors: eventfd, epoll, receiving without waiting, socket options.
//!
//! Owns one system call (and its retries) to a function, and no policy. What takes a [`RawFd`]
//! takes the number as the calling thread's file table knows it: with tables of their own
//! (`files`), the same number is another file in another thread. So nothing here that owns a
//! descriptor is `Send`, except [`EventFd`], which exists to be written from elsewhere.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A system call's result: negative is `errno`.
pub(super) fn checked(rc: i32) -> io::Result<i32> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// Takes over a descriptor that a system call has just made.
pub(super) fn owned(rc: i32) -> io::Result<OwnedFd> {
    let fd = checked(rc)?;
    // SAFETY: the kernel has just made it for this call, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Another descriptor for what `fd` is, the first free one that is not below `least`.
///
/// # Errors
/// No descriptor is left.
pub(super) fn lifted(fd: RawFd, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) })
}

/// A counter that can be waited for. Non-blocking.
///
/// Made by main before any worker starts, its number means the same file in every thread's table.
/// It may then be dropped by any one thread, once no other uses it.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        owned(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) }).map(Self)
    }

    /// Makes it readable.
    pub fn write(&self) {
        let one = 1_u64;
        // SAFETY: eight live bytes.
        let written = unsafe { libc::write(self.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
        // A full counter (EAGAIN) is readable already; anything else is a wrong number of ours.
        let errno = io::Error::last_os_error();
        assert!(written == 8 || errno.raw_os_error() == Some(libc::EAGAIN), "writing an eventfd: {errno}");
    }

    /// Another descriptor of the same counter, for what closes what it has.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Makes it unreadable; whether it was readable.
    pub fn drain(&self) -> bool {
        let mut count = 0_u64;
        // SAFETY: eight live bytes, of a type for which any bytes are valid.
        let read = unsafe { libc::read(self.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
        let errno = io::Error::last_os_error();
        assert!(read == 8 || errno.raw_os_error() == Some(libc::EAGAIN), "reading an eventfd: {errno}");
        read == 8
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Whether something waits to be received.
pub fn has_input(fd: RawFd) -> bool {
    let mut byte = 0_u8;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: one live byte.
    unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, flags) > 0 }
}

/// What to be told of a descriptor. Errors and a full hang-up are always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Errors and hang-ups alone.
    Trouble,
    /// Input, and the end of input.
    Read,
    /// The same, once: then nothing until it is asked for again. Whoever is told may keep the descriptor without taking
    /// it out of the set.
    ReadOnce,
    Write,
    ReadWrite,
}

impl Interest {
    const fn bits(self) -> u32 {
        let (read, write) = ((libc::EPOLLIN | libc::EPOLLRDHUP) as u32, libc::EPOLLOUT as u32);
        match self {
            Self::Trouble => 0,
            Self::Read => read,
            Self::ReadOnce => read | libc::EPOLLONESHOT as u32,
            Self::Write => write,
            Self::ReadWrite => read | write,
        }
    }
}

/// What is the case with a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready(u32);

impl Ready {
    /// A receive would not wait: bytes, the end of input, or an error.
    pub const fn is_readable(self) -> bool {
        self.0 & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// A send would not wait: room, or an error.
    pub const fn is_writable(self) -> bool {
        self.0 & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// The connection is over: an error, or both directions are shut.
    pub const fn is_dead(self) -> bool {
        self.0 & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }
}

/// Room for the events of one [`Epoll::wait`].
pub struct Events {
    room: Vec<libc::epoll_event>,
    len: usize,
}

impl Events {
    /// # Panics
    /// When `events_max` is 0.
    pub fn with_capacity(events_max: usize) -> Self {
        assert!(events_max > 0 && i32::try_from(events_max).is_ok());
        Self { room: vec![libc::epoll_event { events: 0, u64: 0 }; events_max], len: 0 }
    }

    /// Each event's token and what is the case.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, Ready)> + '_ {
        self.room[..self.len].iter().map(|event| (event.u64, Ready(event.events)))
    }
}

/// A set of descriptors that wait, level-triggered. Its own descriptor is readable while one is
/// ready, so it can be awaited like any other.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
    /// Sockets are added by number.
    _of_one_thread: PhantomData<*const ()>,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { fd, _of_one_thread: PhantomData })
    }

    pub fn add(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    pub fn modify(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    /// Needed only for a descriptor that lives on: closing one removes it.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, Interest::Trouble)
    }

    fn control(&self, operation: i32, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.bits(), u64: token };
        // SAFETY: `event` lives through the call.
        checked(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) })?;
        Ok(())
    }

    /// Puts what is ready into `events`, in the place of what was there. Returns their number;
    /// when it is the whole room, more may be ready. `None` waits for as long as it takes, and
    /// less than a millisecond does not wait.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout_ms = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        let room = events.room.len() as i32;
        events.len = 0;
        loop {
            // SAFETY: `room` initialised events that live through the call.
            let rc =
                unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.room.as_mut_ptr(), room, timeout_ms) };
            match checked(rc) {
                Ok(ready) => {
                    events.len = ready as usize;
                    return Ok(events.len);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// What a receive found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecvOutcome {
    /// So many bytes, at least one.
    Bytes(usize),
    /// The peer sends no more.
    Eof,
    /// Nothing yet.
    Empty,
    /// The `errno`.
    Failed(i32),
}

/// Receives what is there, without waiting, whatever the socket's own mode.
///
/// # Panics
/// When `buffer` has no room: the answer could not be told from the end of input.
pub fn recv_nonblocking(fd: RawFd, buffer: &mut [u8]) -> RecvOutcome {
    assert!(!buffer.is_empty());
    loop {
        // SAFETY: the pointer and the length are those of one live slice of bytes.
        let got = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(got) {
            Ok(0) => return RecvOutcome::Eof,
            Ok(bytes) => return RecvOutcome::Bytes(bytes),
            Err(_) => match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return RecvOutcome::Empty,
                errno => return RecvOutcome::Failed(errno.unwrap_or(libc::EIO)),
            },
        }
    }
}

/// Why a socket is broken, once: the `errno`, 0 if it is not.
pub fn take_error(fd: RawFd) -> i32 {
    let (mut errno, mut bytes) = (0_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: an int and its size, which live through the call.
    let rc = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut errno).cast(), &raw mut bytes)
    };
    if rc < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { errno }
}

/// What is there to be received, which stays there; without waiting.
///
/// # Panics
/// When `buffer` has no room: the answer could not be told from the end of input.
pub fn peek_nonblocking(fd: RawFd, buffer: &mut [u8]) -> RecvOutcome {
    assert!(!buffer.is_empty());
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the pointer and the length are those of one live slice of bytes.
    let got = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    match usize::try_from(got) {
        Ok(0) => RecvOutcome::Eof,
        Ok(bytes) => RecvOutcome::Bytes(bytes),
        Err(_) => match io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN) => RecvOutcome::Empty,
            errno => RecvOutcome::Failed(errno.unwrap_or(libc::EIO)),
        },
    }
}

/// Whether nothing more comes than what is there to be received: the peer has said so, or the connection is broken.
pub fn has_ended(fd: RawFd) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one live entry; it does not wait.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

/// Says to the peer that no more will come (`FIN`, after what was sent).
pub fn shutdown_write(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    checked(unsafe { libc::shutdown(fd, libc::SHUT_WR) })?;
    Ok(())
}

/// Whoever waits for input of the peer's sees its end. What cannot be shut is closed already by the peer.
pub fn shutdown_read(fd: RawFd) {
    // SAFETY: no pointers.
    let _ = checked(unsafe { libc::shutdown(fd, libc::SHUT_RD) });
}

/// Ends both directions of a socket: whoever waits for it, waits no more.
pub fn shutdown_both(fd: RawFd) {
    // SAFETY: no pointers.
    let _ = checked(unsafe { libc::shutdown(fd, libc::SHUT_RDWR) });
}

/// When it is closed, what was not sent yet is thrown away, and the kernel keeps nothing of the connection.
pub fn reset_when_closed(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let bytes = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: a linger that lives through the call, and its size. A failure leaves an orderly close.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), bytes) };
}

/// How long ago the last bytes came on a TCP socket, read or not; `None`: it is none.
pub fn since_input(fd: RawFd) -> Option<Duration> {
    // SAFETY: a plain struct of numbers, for which zeros are valid.
    let mut told: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut bytes = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the struct and its size, which live through the call.
    let rc = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut told).cast(), &raw mut bytes)
    };
    (rc == 0).then(|| Duration::from_millis(u64::from(told.tcpi_last_data_recv)))
}

/// Closes a descriptor that is kept as a number. The caller owns it and forgets it now.
pub fn close(fd: RawFd) {
    // SAFETY: no pointers. Linux frees the number whatever it returns, so an error is not retried;
    // EBADF would be a number of ours closed twice.
    let rc = unsafe { libc::close(fd) };
    debug_assert!(rc == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EBADF), "closed twice");
}

/// What the kernel puts into one segment of a send queue at most (GSO's 64 KiB). It looks at
/// `TCP_NOTSENT_LOWAT` before it begins one, and fills it whatever was said there.
pub const SEGMENT_BYTES_MAX: u32 = 64 * 1024;

/// Options of a client's socket. Set on a listener, they hold for all that it accepts, at no cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// Bytes not yet sent to the network that the kernel keeps for a slow reader at most, more than
    /// [`SEGMENT_BYTES_MAX`].
    pub unsent_bytes_max: u32,
    /// How long sent bytes may stay unacknowledged before the peer counts as dead
    /// (`TCP_USER_TIMEOUT`).
    pub unacked_ms_max: u32,
}

impl SocketOptions {
    /// Sets these, and `TCP_NODELAY`, on a TCP socket.
    pub fn set_on(self, fd: RawFd) -> io::Result<()> {
        let int = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        let lowat = self.unsent_bytes_max.saturating_sub(SEGMENT_BYTES_MAX).max(1);
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, int(lowat))?;
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, int(self.unacked_ms_max))
    }
}

/// Bounds what the kernel takes for a reader by a unix socket that does not read (`SO_SNDBUF`).
pub fn bound_send_buffer(fd: RawFd, bytes: usize) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, i32::try_from(bytes).unwrap_or(i32::MAX))
}

pub(super) fn set_option(fd: RawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let bytes = size_of::<i32>() as libc::socklen_t;
    // SAFETY: an int that lives through the call, and its size.
    checked(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), bytes) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_eventfd_is_readable_once_for_many_writes() {
        let event = EventFd::new().unwrap();
        assert!(!event.drain());
        event.write();
        event.write();
        assert!(event.drain());
        assert!(!event.drain());
    }

    #[test]
    fn epoll_tells_tokens_and_readiness() {
        let epoll = Epoll::new().unwrap();
        let mut events = Events::with_capacity(8);
        let (near, mut far) = UnixStream::pair().unwrap();
        epoll.add(near.as_raw_fd(), u64::MAX - 1, Interest::Read).unwrap();
        assert_eq!(epoll.wait(&mut events, Some(Duration::ZERO)).unwrap(), 0);

        far.write_all(b"x").unwrap();
        for _ in 0..2 {
            // Level-triggered: told until it is read.
            assert_eq!(epoll.wait(&mut events, Some(Duration::ZERO)).unwrap(), 1);
            let (token, ready) = events.iter().next().unwrap();
            assert_eq!(token, u64::MAX - 1);
            assert!(ready.is_readable() && !ready.is_writable() && !ready.is_dead());
        }
        epoll.modify(near.as_raw_fd(), 5, Interest::Write).unwrap();
        epoll.wait(&mut events, None).unwrap();
        let (token, ready) = events.iter().next().unwrap();
        assert!(token == 5 && ready.is_writable() && !ready.is_readable());

        epoll.modify(near.as_raw_fd(), 6, Interest::Trouble).unwrap();
        assert_eq!(epoll.wait(&mut events, Some(Duration::ZERO)).unwrap(), 0);
        drop(far);
        epoll.wait(&mut events, None).unwrap();
        assert!(events.iter().next().unwrap().1.is_dead());
        epoll.remove(near.as_raw_fd()).unwrap();
        assert_eq!(epoll.wait(&mut events, Some(Duration::ZERO)).unwrap(), 0);
        assert!(epoll.remove(near.as_raw_fd()).is_err());
    }

    #[test]
    fn epoll_events_end_with_close() {
        let epoll = Epoll::new().unwrap();
        let mut events = Events::with_capacity(1);
        let (near, far) = UnixStream::pair().unwrap();
        let near = near.into_raw_fd();
        epoll.add(near, 1, Interest::Read).unwrap();
        shutdown_write(far.as_raw_fd()).unwrap();
        assert_eq!(epoll.wait(&mut events, Some(Duration::ZERO)).unwrap(), 1);
        assert!(!events.iter().next().unwrap().1.is_dead(), "half-closed is not dead");
        close(near);
        assert_eq!(epoll.wait(&mut events, Some(Duration::ZERO)).unwrap(), 0);
    }

    #[test]
    fn recv_tells_bytes_nothing_and_the_end() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut buffer = [0; 3];
        assert_eq!(recv_nonblocking(near.as_raw_fd(), &mut buffer), RecvOutcome::Empty);
        far.write_all(b"abcd").unwrap();
        assert_eq!(recv_nonblocking(near.as_raw_fd(), &mut buffer), RecvOutcome::Bytes(3));
        assert_eq!(&buffer, b"abc");
        assert_eq!(recv_nonblocking(near.as_raw_fd(), &mut buffer), RecvOutcome::Bytes(1));
        shutdown_write(far.as_raw_fd()).unwrap();
        assert_eq!(recv_nonblocking(near.as_raw_fd(), &mut buffer), RecvOutcome::Eof);
        assert_eq!(recv_nonblocking(-1, &mut buffer), RecvOutcome::Failed(libc::EBADF));
    }

    #[test]
    fn a_read_that_is_shut_ends_and_input_has_an_age() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let fd = listener.accept().unwrap().0.into_raw_fd();
        client.write_all(b"x").unwrap();
        let mut buffer = [0; 3];
        while recv_nonblocking(fd, &mut buffer) == RecvOutcome::Empty {}
        let first = since_input(fd).unwrap();
        std::thread::sleep(Duration::from_millis(60));
        assert!(since_input(fd).unwrap() >= first + Duration::from_millis(40));
        assert_eq!(recv_nonblocking(fd, &mut buffer), RecvOutcome::Empty);
        shutdown_read(fd);
        assert_eq!(recv_nonblocking(fd, &mut buffer), RecvOutcome::Eof);
        reset_when_closed(fd);
        close(fd);
        let read = std::io::Read::read(&mut client, &mut buffer);
        assert_eq!(read.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
        assert_eq!(since_input(UnixStream::pair().unwrap().0.as_raw_fd()), None);
    }

    fn option(fd: RawFd, option: i32) -> i32 {
        let (mut value, mut bytes) = (0_i32, size_of::<i32>() as libc::socklen_t);
        // SAFETY: an int and its size, which live through the call.
        let rc = unsafe {
            libc::getsockopt(fd, libc::IPPROTO_TCP, option, (&raw mut value).cast(), &raw mut bytes)
        };
        assert_eq!(rc, 0);
        value
    }

    #[test]
    fn accepted_sockets_inherit_the_listeners_options() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = SocketOptions { unsent_bytes_max: 131_072, unacked_ms_max: 30_000 };
        options.set_on(listener.as_raw_fd()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let fd = listener.accept().unwrap().0.into_raw_fd();
        assert_eq!(option(fd, libc::TCP_NODELAY), 1);
        assert_eq!(option(fd, libc::TCP_NOTSENT_LOWAT), 65_536);
        assert_eq!(option(fd, libc::TCP_USER_TIMEOUT), 30_000);
        close(fd);
    }
}
