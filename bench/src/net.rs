//! Sockets, epoll, file tables and CPUs: the system calls that std lacks, each behind a safe function.
//! Owns every `unsafe` of the bench but the ring of `waiting`. IPv4 only.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Readiness bits as epoll knows them.
pub const IN: u32 = libc::EPOLLIN as u32;
pub const OUT: u32 = libc::EPOLLOUT as u32;
/// Edge-triggered: a reader that was emptied is not looked at again until more arrives.
pub const EDGE: u32 = libc::EPOLLET as u32;
pub const BROKEN: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn counted(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// An epoll set; entries carry a `u64` of the caller's.
pub struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a non-negative result is a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(checked(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Self { fd })
    }

    pub fn add(&self, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    pub fn change(&self, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` outlives the call, which copies it.
        checked(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
    }

    /// Waits at most `timeout_ms` (-1: for ever) and returns the events that came.
    pub fn wait<'a>(&self, events: &'a mut Events, timeout_ms: i32) -> io::Result<&'a [libc::epoll_event]> {
        let room = libc::c_int::try_from(events.0.len()).expect("a few thousand events");
        // SAFETY: the pointer and `room` describe the caller's initialised array.
        let ready = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.0.as_mut_ptr(), room, timeout_ms) };
        match checked(ready) {
            Ok(ready) => Ok(&events.0[..ready as usize]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(&[]),
            Err(error) => Err(error),
        }
    }
}

/// Room for what one `Epoll::wait` returns.
pub struct Events(Box<[libc::epoll_event]>);

impl Events {
    pub fn new(room: usize) -> Self {
        Self(vec![libc::epoll_event { events: 0, u64: 0 }; room].into_boxed_slice())
    }
}

fn sockaddr(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

const SOCKADDR_BYTES: libc::socklen_t = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;

fn set_option<T>(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let bytes = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for `bytes` for the call.
    checked(unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), bytes) }).map(drop)
}

fn tcp_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; the result is a new descriptor of ours.
    Ok(unsafe { OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_INET, kind, 0))?) })
}

/// A socket bound to `address` with `SO_REUSEPORT`, not yet listening: it reserves the port.
pub fn bind(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = tcp_socket()?;
    set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32)?;
    set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, &1i32)?;
    let raw = sockaddr(address);
    // SAFETY: `raw` outlives the call and has the given size.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), SOCKADDR_BYTES) })?;
    Ok(socket)
}

pub fn listen(socket: &OwnedFd, backlog: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    checked(unsafe { libc::listen(socket.as_raw_fd(), backlog) }).map(drop)
}

pub fn local_port(socket: &OwnedFd) -> io::Result<u16> {
    let mut raw = sockaddr(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    let mut bytes = SOCKADDR_BYTES;
    // SAFETY: `raw` and `bytes` are valid for writing for the call.
    checked(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut raw).cast(), &raw mut bytes) })?;
    Ok(u16::from_be(raw.sin_port))
}

/// Accepts one connection, non-blocking; `None` when none waits.
pub fn accept(listener: RawFd) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null address and length are permitted: the peer's address is not wanted.
    let result =
        checked(unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) });
    match result {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Answers and messages are written whole: waiting to fill a packet only delays them.
pub fn set_no_delay(fd: RawFd) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)
}

/// How far a connect got when the call returned.
pub enum Connect {
    Done(OwnedFd),
    Pending(OwnedFd),
}

/// Connects from `source` (or as the kernel chooses), whose port the kernel picks by the whole 4-tuple
/// (`IP_BIND_ADDRESS_NO_PORT`), so that each source address has all ephemeral ports. Closing sends RST: no TIME_WAIT is
/// left behind. A `receive_buffer` must be set before, or the window is promised already.
pub fn connect(
    source: Option<Ipv4Addr>,
    dest: SocketAddrV4,
    receive_buffer: Option<i32>,
) -> io::Result<Connect> {
    let socket = tcp_socket()?;
    let fd = socket.as_raw_fd();
    if let Some(bytes) = receive_buffer {
        set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes)?;
    }
    set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    if let Some(source) = source {
        let raw = sockaddr(SocketAddrV4::new(source, 0));
        // SAFETY: `raw` outlives the call and has the given size.
        checked(unsafe { libc::bind(fd, (&raw const raw).cast(), SOCKADDR_BYTES) })?;
    }
    let raw = sockaddr(dest);
    // SAFETY: `raw` outlives the call and has the given size.
    match checked(unsafe { libc::connect(fd, (&raw const raw).cast(), SOCKADDR_BYTES) }) {
        Ok(_) => Ok(Connect::Done(socket)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(Connect::Pending(socket)),
        Err(error) => Err(error),
    }
}

/// What broke a socket; taken from it.
pub fn socket_error(fd: RawFd) -> io::Error {
    let (mut code, mut bytes) = (0, mem::size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: `code` and `bytes` are valid for writing for the call.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut code).cast(), &raw mut bytes)
    };
    checked(result).map_or_else(|error| error, |_| io::Error::from_raw_os_error(code))
}

/// One `send(2)`, never blocking, never raising SIGPIPE.
pub fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: pointer and length are of one live slice.
    counted(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// One `recv(2)`, never blocking. 0: the peer has ended.
pub fn recv(fd: RawFd, room: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are of one live, exclusively borrowed slice.
    counted(unsafe { libc::recv(fd, room.as_mut_ptr().cast(), room.len(), libc::MSG_DONTWAIT) })
}

/// Waits until `fd` takes bytes again, or `timeout_ms` is over.
pub fn wait_writable(fd: RawFd, timeout_ms: i32) -> io::Result<()> {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid entry, and the count says one.
    checked(unsafe { libc::poll(&raw mut poll, 1, timeout_ms) }).map(drop)
}

/// Waits until `fd` has bytes, or `timeout_ms` is over.
pub fn wait_readable(fd: RawFd, timeout_ms: i32) -> io::Result<()> {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry, and the count says one.
    checked(unsafe { libc::poll(&raw mut poll, 1, timeout_ms) }).map(drop)
}

/// Two ends that keep the borders of what is sent through them (SEQPACKET), non-blocking to receive.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for the two descriptors.
    checked(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    // SAFETY: both are new and ours.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Sends one packet and waits for room if there is none.
pub fn send_packet(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length are of one live slice.
    counted(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) }).map(drop)
}

/// A counter that wakes who waits for it by epoll.
pub fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor of ours.
    let fd = checked(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn write_event(fd: RawFd) -> io::Result<()> {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight readable bytes, as eventfd(2) wants.
    counted(unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) }).map(drop)
}

pub fn clear_event(fd: RawFd) {
    let mut count = [0u8; 8];
    // SAFETY: eight writable bytes. Nothing to read is as good as cleared.
    unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) };
}

/// Nanoseconds of the clock that all processes of this machine share.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing; CLOCK_MONOTONIC is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time of the calling thread.
pub fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Runs the calling thread, and those that it will start, before all others (SCHED_FIFO; needs root): a probe must not
/// wait for the crowd that shares its CPU.
pub fn run_first() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: `param` outlives the call.
    checked(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) }).map(drop)
}

/// Has a command's process end by `signal` with the calling thread. It is kept through `exec`, not through set-uid.
pub fn end_with_this_thread(command: &mut Command, signal: libc::c_int) {
    let parent = std::process::id();
    // SAFETY: prctl and getppid are async-signal-safe; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            checked(libc::prctl(libc::PR_SET_PDEATHSIG, signal))?;
            // The parent that has ended before the call sends no signal.
            if libc::getppid() as u32 == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
}

/// Ends a process as an operator would.
pub fn terminate(pid: u32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).expect("pids are below 2^22");
    // SAFETY: no pointers.
    checked(unsafe { libc::kill(pid, libc::SIGTERM) }).map(drop)
}

/// Gives the calling thread a file table of its own that keeps the descriptors up to `last_shared` alone.
/// The limit on open files then counts for this thread, and no lock is shared.
/// The caller owns none of the later descriptors in this thread afterwards.
pub fn own_file_table(last_shared: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(last_shared + 1).expect("descriptors are not negative");
    let flags = libc::CLOSE_RANGE_UNSHARE as libc::c_int;
    // SAFETY: no pointers. In the new table the closed numbers belong to nobody.
    checked(unsafe { libc::close_range(first, libc::c_uint::MAX, flags) }).map(drop)
}

/// Takes over, in a thread with its own file table, the copy of a descriptor that main made before.
///
/// # Panics
/// When `fd` is not open.
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: no pointers.
    assert!(unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0, "descriptor {fd} is open");
    // SAFETY: open (asserted), and in this thread's own table nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Keeps the calling thread, and those that it will start, on one CPU.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: an all-zero set is a valid empty one; `cpu` is within it.
    let set = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: `set` has the given size and outlives the call.
    checked(unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set) }).map(drop)
}

/// Raises the soft limit on open files to the hard one, and returns it.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writing.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is valid for reading.
    checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_cur)
}
