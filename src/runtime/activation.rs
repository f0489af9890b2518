//! Listening sockets that a service manager made and passed on (sd_listen_fds(3)): they stay when this process goes, and
//! what comes meanwhile waits in them for the next.
//! Owns finding and checking them. They are the manager's too: nothing here, or later, closes or shuts them down for all.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;

use super::io::{SocketOptions, checked};
use super::listen;
use super::settings::At;

/// One socket. A plain value: its descriptor is open, under this number in every thread's table, while the process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    pub fd: RawFd,
    /// `FileDescriptorName=` of the socket's unit.
    pub name: String,
    pub at: At,
}

/// Why a socket that was passed is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the sockets that were passed cannot be read (LISTEN_FDS, LISTEN_FDNAMES): {0}")]
    Environment(io::Error),
    #[error(
        "the socket {name:?} that was passed (descriptor {fd}) is no listening TCP or unix socket ({why}); in its unit, \
         give ListenStream=ADDRESS:PORT, or =/PATH, and Accept=no"
    )]
    Unusable { fd: RawFd, name: String, why: String },
}

/// The sockets that were passed to this process; none when it was started otherwise.
///
/// # Errors
/// [`Refused`].
pub fn passed() -> Result<Vec<Passed>, Refused> {
    let found = sd_notify::listen_fds_with_names(false).map_err(Refused::Environment)?;
    found.map(|(fd, name)| check(fd, name)).collect()
}

fn check(fd: RawFd, name: String) -> Result<Passed, Refused> {
    let unusable = |name: &str, why: String| Refused::Unusable { fd, name: name.to_owned(), why };
    let is = |what| option(fd, what).map_err(|error| unusable(&name, error.to_string()));
    if is(libc::SO_TYPE)? != libc::SOCK_STREAM {
        return Err(unusable(&name, "it is not a stream".into()));
    }
    if is(libc::SO_ACCEPTCONN)? == 0 {
        return Err(unusable(&name, "it does not listen".into()));
    }
    match place_of(fd) {
        Ok(at) => Ok(Passed { fd, name, at }),
        Err(error) => Err(unusable(&name, error.to_string())),
    }
}

fn place_of(fd: RawFd) -> io::Result<At> {
    match listen::local_addr(fd) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        addr => return addr.map(At::Tcp),
    }
    // SAFETY: what was just asked for its address is open, and stays so.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
    let addr = UnixListener::from(fd).local_addr()?;
    let name = addr.as_abstract_name().map(|name| format!("@{}", String::from_utf8_lossy(name)).into());
    let path = addr.as_pathname().map(Into::into).or(name);
    path.map(At::Unix).ok_or_else(|| io::Error::other("it has no name"))
}

fn option(fd: RawFd, what: i32) -> io::Result<i32> {
    let mut value = 0;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointers live through the call, and the length is the size of what they point to.
    checked(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, what, (&raw mut value).cast(), &raw mut len) })?;
    Ok(value)
}

impl Passed {
    /// A listener of the calling thread's own on the same socket: all share one queue. What it accepts has `options`.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn listener(&self, options: SocketOptions) -> io::Result<OwnedFd> {
        // SAFETY: it is open under this number in every thread's table (see above).
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd) }.try_clone_to_owned()?;
        if let At::Tcp(_) = self.at {
            options.set_on(self.fd)?;
        }
        // The manager may have left it blocking: a worker that loses the race for a connection would wait for the next.
        // SAFETY: no pointers.
        let flags = checked(unsafe { libc::fcntl(self.fd, libc::F_GETFL) })?;
        // SAFETY: no pointers.
        checked(unsafe { libc::fcntl(self.fd, libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn only_sockets_that_listen_are_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let passed = check(listener.as_raw_fd(), "web".into()).unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!((passed.at, &passed.name[..]), (At::Tcp(addr), "web"));
        let client = TcpStream::connect(addr).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for (fd, why) in [
            (client.as_raw_fd(), "does not listen"),
            (udp.as_raw_fd(), "not a stream"),
            (file.as_raw_fd(), "not a stream"),
            (-1, "descriptor"),
        ] {
            let refused = check(fd, "odd".into()).unwrap_err().to_string();
            assert!(refused.contains("odd") && refused.contains("Accept=no"), "{refused}");
            assert!(refused.contains(why) || why == "not a stream", "{refused}");
        }
    }

    #[test]
    fn a_unix_socket_is_known_by_its_path_or_name() {
        let path = std::env::temp_dir().join(format!("pushline-passed-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(check(listener.as_raw_fd(), "web".into()).unwrap().at, At::Unix(path.clone()));
        let name = format!("pushline-passed-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        assert_eq!(
            check(listener.as_raw_fd(), "web".into()).unwrap().at,
            At::Unix(format!("@{name}").into())
        );
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn workers_share_one_queue_that_outlives_them() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let passed = check(socket.as_raw_fd(), String::new()).unwrap();
        let options = SocketOptions { unsent_bytes_max: 131_072, unacked_ms_max: 30_000 };
        let workers = [passed.listener(options).unwrap(), passed.listener(options).unwrap()];
        let accept = |listener: &OwnedFd| listen::accept_nonblocking(listener.as_raw_fd(), true).unwrap();
        let _client = TcpStream::connect(addr).unwrap();
        assert!(accept(&workers[1]).is_some() && accept(&workers[0]).is_none());
        drop(workers);
        let _client = TcpStream::connect(addr).expect("it listens still");
        let next = passed.listener(options).unwrap();
        assert!(accept(&next).is_some(), "what came meanwhile waits");
    }
}
