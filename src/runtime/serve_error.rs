//! Why a node could not start, or ended badly: what its operator is told, and what there is to do about it.

use std::io;
use std::net::SocketAddr;

use super::activation;
use super::probe;
use super::settings::At;

/// Why the node could not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "{0} is taken: another process listens there. Stop it, choose another --listen, or, if it is a Pushline, \
         start with --takeover"
    )]
    PortTaken(At),
    #[error(
        "cannot listen on {0}: what is there is a file and no socket. Move it away, or choose another path for --listen"
    )]
    NoSocket(At),
    #[error("cannot listen on {at}: {error}")]
    Listen { at: At, error: io::Error },
    #[error(
        "admin.listen = {0} is taken: another process listens there. Stop it, choose another address, or, if it is the \
         Pushline that is to be replaced, start with --takeover"
    )]
    AdminTaken(String),
    #[error("cannot listen on admin.listen = {address}: {error}")]
    AdminListen { address: String, error: io::Error },
    #[error(
        "--takeover: {at} is taken, and not by a Pushline of this user that would give it up ({error}); stop what \
         listens there, or choose another --listen"
    )]
    NoPredecessor { at: At, error: io::Error },
    #[error(
        "{0}: another Pushline is just starting there, and does not come to an end; look at that one, or stop it, and try \
         again"
    )]
    Starting(At),
    #[error("--driver io_uring: {0}; use --driver epoll, or auto")]
    IoUring(probe::Refused),
    #[error(
        "--files per-worker: the kernel refuses close_range(CLOSE_RANGE_UNSHARE) ({0}); use --files shared"
    )]
    Files(io::Error),
    #[error(
        "access_log.to = {path}: cannot be opened ({error}); name a file in a directory that this user may write to"
    )]
    AccessLog { path: String, error: io::Error },
    #[error("{what}: {error}")]
    Io { what: &'static str, error: io::Error },
    #[error(transparent)]
    Passed(#[from] activation::Refused),
    #[error(
        "the socket {name:?} that was passed listens on {addr}, which is not a loopback address, and without \
         authentication anyone who reaches it could read and publish; configure authentication, or permit that with \
         open = true"
    )]
    PassedReachable { name: String, addr: SocketAddr },
    #[error(
        "the socket \"tls\" that was passed, {at}, is for clients that speak TLS, and there is no certificate; give \
         tls.certificates, or the socket another FileDescriptorName="
    )]
    PassedWithoutCertificate { at: At },
    #[error("a worker ended before it was told to")]
    WorkerEnded,
}

/// What was tried when the kernel refused.
pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::Io { what, error }
}
