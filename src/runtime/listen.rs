//! Listeners: one to a worker, all on one port (`SO_REUSEPORT`), and handing a port over. Owns making, accepting, and
//! steering new connections among the listeners of a port. Never decides who may connect. (Unix sockets: `unix`.)
//!
//! The listeners of an address form a group, which the kernel spreads connections over by hash. Each has an index, in the
//! order of `listen(2)`; when one is closed, the last takes its index, and what is in its queue is reset. So a port is
//! handed over, from `old` listeners to `new` ones that began to listen after them, in this order:
//!
//! 1. [`steer_away`]: connections go to the new ones alone. Those in the middle of their handshake still come to the old
//!    ones: go on accepting for longer than a handshake takes.
//! 2. [`steer_to_first_new`]: all go to the index `old`, which stays that of a new listener whichever of the old ones are
//!    closed, if `new >= old`. With fewer, the last closings would leave the hash to choose for a moment, and it may choose
//!    an old one: so a process makes [`listeners_each`] worker as many as it needs not to be fewer.
//! 3. Accept until empty, and close, each old one.
//! 4. [`unsteer`], by the new process, at once: the hash again, or one worker would have all that come.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::io::{SocketOptions, checked, owned, set_option};
use super::peer::Peer;
use super::settings::{At, Endpoint};

/// Linux cuts the backlog to `net.core.somaxconn` (4,096 by default).
const BACKLOG_AS_CONFIGURED: i32 = i32::MAX;

/// A listener of one worker.
#[derive(Debug)]
pub struct Listener {
    /// Its own; or, of a unix socket and of one that was passed, its hold of the one that all share.
    pub fd: OwnedFd,
    pub endpoint: Endpoint,
    /// A service manager made it (`activation`), and keeps it when we go.
    pub is_passed: bool,
}

impl Listener {
    /// Whether it is of a unix socket: made by main, and one for all workers.
    pub const fn is_unix(&self) -> bool {
        matches!(self.endpoint.at, At::Unix(_))
    }
}

/// How many listeners to an address each of `workers` makes, beside `old` ones of a process whose place is taken: as many
/// for each, so that the kernel's hash favours none, and in all not fewer.
pub const fn listeners_each(workers: usize, old: u32) -> usize {
    let needed = (old as usize).div_ceil(workers);
    if needed == 0 { 1 } else { needed }
}

/// A socket that will listen on `addr` beside other listeners of this user: all that may fail but for a bug is done then.
/// Non-blocking; what it accepts has `options`. An IPv6 listener takes no IPv4.
pub fn prepare(addr: SocketAddr, options: SocketOptions) -> io::Result<OwnedFd> {
    let fd = bound(addr, true)?;
    options.set_on(fd.as_raw_fd())?;
    Ok(fd)
}

/// Listens: connections come from now on.
pub fn begin(listener: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    checked(unsafe { libc::listen(listener, BACKLOG_AS_CONFIGURED) }).map(drop)
}

/// Both at once: for tests.
pub fn listen(addr: SocketAddr, options: SocketOptions) -> io::Result<OwnedFd> {
    let fd = prepare(addr, options)?;
    begin(fd.as_raw_fd())?;
    Ok(fd)
}

/// Takes a port (of the kernel's choice when `addr` has port 0) without listening, so that every
/// worker can then [`prepare`] its own on the same. No connection comes to it; keep it until they do.
pub fn reserve_port(addr: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let fd = bound(addr, true)?;
    let addr = local_addr(fd.as_raw_fd())?;
    Ok((fd, addr))
}

/// Whether anyone listens on `addr`, ourselves included. Binds only: a moment of listening would
/// reset who came in it.
///
/// # Errors
/// Any other reason why `addr` cannot be had.
pub fn port_is_taken(addr: SocketAddr) -> io::Result<bool> {
    match bound(addr, false) {
        Ok(_) => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(true),
        Err(e) => Err(e),
    }
}

/// The next connection in the queue; `None` when there is none. io_uring waits only for sockets that are not
/// themselves `nonblocking`; epoll only for those that are.
///
/// # Errors
/// What concerns this process (`EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`), or a bug. Connections
/// that failed while they waited in the queue are passed over (accept(2), "Error handling").
pub fn accept_nonblocking(listener: RawFd, nonblocking: bool) -> io::Result<Option<(OwnedFd, Peer)>> {
    loop {
        let mut storage = Address::empty();
        let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
        // SAFETY: the address and its length live through the call, and the length is its size.
        let rc =
            unsafe { libc::accept4(listener, (&raw mut storage.bytes).cast(), &raw mut storage.len, flags) };
        match owned(rc) {
            Ok(fd) => return Ok(Some((fd, storage.peer()?))),
            Err(e) => match e.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(None),
                Some(
                    libc::EINTR
                    | libc::ECONNABORTED
                    | libc::EPROTO
                    | libc::ENETDOWN
                    | libc::ENOPROTOOPT
                    | libc::EHOSTDOWN
                    | libc::ENONET
                    | libc::EHOSTUNREACH
                    | libc::EOPNOTSUPP
                    | libc::ENETUNREACH,
                ) => {}
                _ => return Err(e),
            },
        }
    }
}

/// The address that a socket is bound to.
pub fn local_addr(fd: RawFd) -> io::Result<SocketAddr> {
    let mut storage = Address::empty();
    // SAFETY: the address and its length live through the call, and the length is its size.
    checked(unsafe { libc::getsockname(fd, (&raw mut storage.bytes).cast(), &raw mut storage.len) })?;
    storage.parsed()
}

/// Sends new connections of the group of `listener` to the `new` listeners that follow the first
/// `old` ones, spread evenly.
pub fn steer_away(listener: RawFd, old: u32, new: u32) -> io::Result<()> {
    assert!(new > 0, "there is nowhere to steer to");
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
    steer(
        listener,
        &mut [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, random),
            statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, new),
            statement(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, old),
            statement(libc::BPF_RET | libc::BPF_A, 0),
        ],
    )
}

/// Sends all new connections of the group of `listener` to the first listener that follows the
/// `old` ones: for the moment in which those are closed (see above).
pub fn steer_to_first_new(listener: RawFd, old: u32) -> io::Result<()> {
    steer(listener, &mut [statement(libc::BPF_RET | libc::BPF_K, old)])
}

/// Stops listening, whoever else holds the descriptor. What waits to be accepted is reset.
pub fn stop(listener: RawFd) {
    // SAFETY: no pointers. It fails for what does not listen any more.
    unsafe { libc::shutdown(listener, libc::SHUT_RD) };
}

/// Leaves the choice to the kernel's hash again. Nothing when there was no steering.
pub fn unsteer(listener: RawFd) -> io::Result<()> {
    match set_option(listener, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, 0) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// The program answers with an index; one that no listener has leaves the choice to the hash.
fn steer(listener: RawFd, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `program` and the statements that it points to live through the call, in which the
    // kernel copies them.
    checked(unsafe {
        libc::setsockopt(
            listener,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    })?;
    Ok(())
}

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn bound(addr: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = owned(unsafe { libc::socket(family, kind, 0) })?;
    // Without it a port is "in use" for a minute after a server on it has stopped (TIME_WAIT).
    set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if shared {
        set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    if addr.is_ipv6() {
        set_option(fd.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    let address = Address::from(addr);
    // SAFETY: the address lives through the call, and its first `len` bytes are set.
    checked(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address.bytes).cast(), address.len) })?;
    Ok(fd)
}

/// An address in the kernel's form.
struct Address {
    bytes: AddressBytes,
    len: libc::socklen_t,
}

/// All bytes are always set, so that each form may be read; `v6` is the largest.
#[repr(C)]
union AddressBytes {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

const V6_EMPTY: libc::sockaddr_in6 = libc::sockaddr_in6 {
    sin6_family: libc::AF_UNSPEC as libc::sa_family_t,
    sin6_port: 0,
    sin6_flowinfo: 0,
    sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
    sin6_scope_id: 0,
};

impl Address {
    const fn empty() -> Self {
        let bytes = AddressBytes { v6: V6_EMPTY };
        Self { bytes, len: size_of::<AddressBytes>() as libc::socklen_t }
    }

    /// Who has the address. That of a unix socket, which may be longer than what is kept here, tells nothing.
    fn peer(&self) -> io::Result<Peer> {
        // SAFETY: all bytes are set, and any bytes are a valid `sockaddr_in`.
        let family = unsafe { self.bytes.v4 }.sin_family;
        if i32::from(family) == libc::AF_UNIX { Ok(Peer::UNIX) } else { self.parsed().map(Peer::from) }
    }

    fn parsed(&self) -> io::Result<SocketAddr> {
        // SAFETY: all bytes are set, and any bytes are a valid `sockaddr_in`.
        let v4 = unsafe { self.bytes.v4 };
        // SAFETY: all bytes are set, and any bytes are a valid `sockaddr_in6`.
        let v6 = unsafe { self.bytes.v6 };
        match i32::from(v4.sin_family) {
            libc::AF_INET => {
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Ok(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)))
            }
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Ok(SocketAddr::V6(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id)))
            }
            _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        let mut address = Self::empty();
        match addr {
            SocketAddr::V4(v4) => {
                address.bytes.v4 = v4_bytes(v4);
                address.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                address.bytes.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                address.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        address
    }
}

fn v4_bytes(addr: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: addr.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
        sin_zero: [0; 8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    const OPTIONS: SocketOptions = SocketOptions { unsent_bytes_max: 131_072, unacked_ms_max: 30_000 };
    const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn accept(listener: &OwnedFd) -> Option<(TcpStream, Peer)> {
        let (fd, peer) = accept_nonblocking(listener.as_raw_fd(), true).unwrap()?;
        Some((TcpStream::from(fd), peer))
    }

    #[test]
    fn never_fewer_listeners_than_before_and_each_worker_as_many() {
        for (workers, old, each) in
            [(4, 0, 1), (4, 4, 1), (4, 2, 1), (2, 4, 2), (2, 3, 2), (1, 7, 7), (3, 7, 3)]
        {
            assert_eq!(listeners_each(workers, old), each, "{old} to {workers}");
            assert!(each * workers >= old as usize);
        }
    }

    #[test]
    fn addresses_survive_the_kernels_form() {
        for text in ["127.0.0.1:80", "255.1.2.3:65535", "[::1]:8080", "[fe80::1%7]:1"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(Address::from(addr).parsed().unwrap(), addr);
        }
        assert!(Address::empty().parsed().is_err());
    }

    #[test]
    fn listeners_share_a_reserved_port_and_accept() {
        for any in [ANY_PORT, "[::1]:0".parse().unwrap()] {
            let (reserved, addr) = reserve_port(any).unwrap();
            assert_ne!(addr.port(), 0);
            assert!(TcpStream::connect(addr).is_err(), "a reserved port takes no connection");
            let listeners = [listen(addr, OPTIONS).unwrap(), listen(addr, OPTIONS).unwrap()];
            drop(reserved);
            assert_eq!(local_addr(listeners[0].as_raw_fd()).unwrap(), addr);
            for _ in 0..16 {
                let client = TcpStream::connect(addr).unwrap();
                let (mut server, peer) = listeners.iter().find_map(accept).unwrap();
                assert_eq!(peer, client.local_addr().unwrap().into());
                let error = server.read(&mut [0; 1]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "accepted sockets do not block");
            }
            assert!(listeners.iter().all(|listener| accept(listener).is_none()));
        }
    }

    #[test]
    fn a_taken_port_is_told_also_to_who_would_share_it() {
        let (_reserved, addr) = reserve_port(ANY_PORT).unwrap();
        let listener = listen(addr, OPTIONS).unwrap();
        assert!(port_is_taken(addr).unwrap());
        let everywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr.port());
        assert!(port_is_taken(everywhere).unwrap(), "a wildcard overlaps");

        // Connections of a stopped server (TIME_WAIT on its side) do not hold the port.
        let mut client = TcpStream::connect(addr).unwrap();
        drop(accept(&listener).unwrap());
        client.read_to_end(&mut Vec::new()).unwrap();
        drop((client, listener));
        assert!(!port_is_taken(addr).unwrap());
        let elsewhere = "192.0.2.1:80".parse().unwrap();
        assert_eq!(port_is_taken(elsewhere).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn steering_sends_all_to_the_later_listeners_and_back() {
        let (_reserved, addr) = reserve_port(ANY_PORT).unwrap();
        let old: Vec<_> = (0..3).map(|_| listen(addr, OPTIONS).unwrap()).collect();
        let new: Vec<_> = (0..3).map(|_| listen(addr, OPTIONS).unwrap()).collect();
        let connect =
            |times: usize| (0..times).map(|_| TcpStream::connect(addr).unwrap()).collect::<Vec<_>>();
        let queued = |listener: &OwnedFd| std::iter::from_fn(|| accept(listener)).count();

        steer_away(old[0].as_raw_fd(), 3, 3).unwrap();
        let clients = connect(120);
        assert_eq!(old.iter().map(queued).sum::<usize>(), 0);
        let spread: Vec<usize> = new.iter().map(queued).collect();
        assert!(spread.iter().sum::<usize>() == 120 && spread.iter().all(|n| *n > 10), "{spread:?}");
        drop(clients);

        steer_to_first_new(old[2].as_raw_fd(), 3).unwrap();
        let _clients = connect(20);
        assert_eq!(queued(&new[0]), 20);

        unsteer(new[1].as_raw_fd()).unwrap();
        unsteer(new[1].as_raw_fd()).unwrap();
        let _clients = connect(120);
        assert!(old.iter().map(queued).sum::<usize>() > 10);
    }

    /// A port is handed over under load: clients connect all the time, each wants one byte.
    /// Whichever order the old listeners close in, none is refused or reset.
    #[test]
    fn no_connection_is_lost_while_a_port_is_handed_over() {
        for (old_count, new_count, backwards) in [(2, 2, false), (2, 2, true), (3, 4, false), (1, 1, false)] {
            let (_reserved, addr) = reserve_port(ANY_PORT).unwrap();
            let make = |count| (0..count).map(|_| listen(addr, OPTIONS).unwrap()).collect::<Vec<_>>();
            let mut old = make(old_count);
            let stop = AtomicBool::new(false);
            let answered = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                let clients: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| {
                            while !stop.load(Ordering::Relaxed) {
                                let mut byte = [0];
                                TcpStream::connect(addr).and_then(|mut s| s.read_exact(&mut byte))?;
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok::<_, io::Error>(())
                        })
                    })
                    .collect();
                let serve = |listeners: &[OwnedFd]| {
                    let served = listeners.iter().map(|listener| {
                        std::iter::from_fn(|| accept(listener))
                            .map(|(mut stream, _)| stream.write_all(b"!").unwrap())
                            .count()
                    });
                    served.sum::<usize>()
                };
                let serve_for = |old: &[OwnedFd], new: &[OwnedFd], connections: usize| {
                    let until = answered.load(Ordering::Relaxed) + connections;
                    while answered.load(Ordering::Relaxed) < until && !clients.iter().all(|c| c.is_finished())
                    {
                        if serve(old) + serve(new) == 0 {
                            std::thread::sleep(Duration::from_micros(50));
                        }
                    }
                };
                serve_for(&old, &[], 50);
                let new = make(new_count);
                steer_away(old[0].as_raw_fd(), old_count, new_count).unwrap();
                // Longer than a handshake over loopback takes.
                serve_for(&old, &new, 50);
                steer_to_first_new(old[0].as_raw_fd(), old_count).unwrap();
                if backwards {
                    old.reverse();
                }
                while !old.is_empty() {
                    serve(&old[..1]);
                    // What came between the last accept and the close would be lost.
                    std::thread::sleep(Duration::from_millis(2));
                    drop(old.remove(0));
                    serve_for(&old, &new, 20);
                }
                unsteer(new[0].as_raw_fd()).unwrap();
                serve_for(&[], &new, 50);
                stop.store(true, Ordering::Relaxed);
                while clients.iter().any(|c| !c.is_finished()) {
                    serve(&new);
                }
                for client in clients {
                    let result = client.join().unwrap();
                    assert!(result.is_ok(), "{old_count} to {new_count}: {result:?}");
                }
            });
        }
    }
}
