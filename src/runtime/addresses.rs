//! The addresses of a node: which there are, holding each before any worker starts, and a worker's listeners on them.
//! Owns the waiting for one that a process which just ended still seems to have. How a port or a path is listened on is
//! `listen`'s and `unix`'s.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use super::activation::Passed;
use super::io::SocketOptions;
use super::listen::{self, Listener};
use super::serve_error::ServeError;
use super::settings::{At, Endpoint, Settings};
use super::unix::{self, UnixListener};

/// How long the port, or the socket, of a process that just ended may still seem taken.
const PORT_PATIENCE: Duration = Duration::from_millis(500);
/// How often it is looked meanwhile.
const PAUSE: Duration = Duration::from_millis(20);

/// What a service manager calls a socket where clients speak TLS (`FileDescriptorName=`).
const TLS_SOCKET: &str = "tls";

/// A socket for every path: made before any worker starts, so that all accept from the same.
pub fn unix_listeners(settings: &Settings) -> Result<Vec<UnixListener>, ServeError> {
    let mut sockets = Vec::new();
    let listen: &[Endpoint] = if settings.passed.is_empty() { &settings.listen } else { &[] };
    for Endpoint { at, .. } in listen {
        let At::Unix(path) = at else { continue };
        let make = if settings.takeover { UnixListener::staged } else { UnixListener::new };
        let made = patiently(|| make(path, settings.unix_mode));
        sockets.push(made.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => ServeError::PortTaken(at.clone()),
            io::ErrorKind::AlreadyExists => ServeError::NoSocket(at.clone()),
            _ => ServeError::Listen { at: at.clone(), error },
        })?);
    }
    Ok(sockets)
}

/// Everything to listen at; what speaks TLS comes last.
pub fn endpoints_of(settings: &Settings) -> impl Iterator<Item = Endpoint> + '_ {
    let tls = settings.tls.listen.iter().map(|addr| Endpoint { at: At::Tcp(*addr), tls: true });
    settings.listen.iter().cloned().chain(tls)
}

/// Where to listen, and where main has the listener already.
pub type Endpoints = Vec<(Endpoint, Option<RawFd>)>;

/// Holds every address, so that all workers can listen on it and nobody else can take it meanwhile. Gives what holds
/// them, and all endpoints, each with the port that it has.
pub fn reserve(
    settings: &Settings,
    sockets: &[UnixListener],
) -> Result<(Vec<OwnedFd>, Endpoints), ServeError> {
    if !settings.passed.is_empty() {
        let passed = settings.passed.iter();
        let endpoints = passed.map(|passed| {
            let tls = speaks_tls(passed, settings)?;
            Ok((Endpoint { at: passed.at.clone(), tls }, Some(passed.fd)))
        });
        let endpoints = endpoints.collect::<Result<Endpoints, ServeError>>()?;
        if !settings.tls.listen.is_empty() && !endpoints.iter().any(|(endpoint, _)| endpoint.tls) {
            tracing::warn!("no socket for tls.listen was passed, and passed sockets alone are listened on");
        }
        return Ok((Vec::new(), endpoints));
    }
    let (mut reserved, mut endpoints) = (Vec::new(), Vec::new());
    let mut sockets = sockets.iter();
    for endpoint in endpoints_of(settings) {
        let Some(addr) = endpoint.addr() else {
            endpoints.push((endpoint.clone(), sockets.next().map(AsRawFd::as_raw_fd)));
            continue;
        };
        let failed = |error| ServeError::Listen { at: endpoint.at.clone(), error };
        if addr.port() != 0 && !settings.takeover {
            becomes_free(addr).map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => ServeError::PortTaken(endpoint.at.clone()),
                _ => failed(error),
            })?;
        }
        let (holder, addr) = listen::reserve_port(addr).map_err(failed)?;
        reserved.push(holder);
        endpoints.push((Endpoint { at: At::Tcp(addr), tls: endpoint.tls }, None));
    }
    Ok((reserved, endpoints))
}

/// Whether clients speak TLS at a socket that was passed: by its name, or because its address stands in `tls.listen`.
fn speaks_tls(passed: &Passed, settings: &Settings) -> Result<bool, ServeError> {
    let stands = |addr: &SocketAddr| passed.at == At::Tcp(*addr);
    let is_tls = passed.name == TLS_SOCKET || settings.tls.listen.iter().any(stands);
    if is_tls && settings.tls.certificates.is_empty() {
        return Err(ServeError::PassedWithoutCertificate { at: passed.at.clone() });
    }
    Ok(is_tls)
}

/// Waits a moment for a port that a process may still have which just ended.
///
/// # Errors
/// `AddrInUse`: it is taken.
pub fn becomes_free(addr: SocketAddr) -> io::Result<()> {
    patiently(|| match listen::port_is_taken(addr)? {
        true => Err(io::ErrorKind::AddrInUse.into()),
        false => Ok(()),
    })
}

/// Tries again for a moment what fails because an address is in use.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + PORT_PATIENCE;
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

/// One worker's sockets to listen with: so many, one after the other, to each address; or those that were passed.
pub fn prepare_listeners(
    endpoints: Endpoints,
    each: usize,
    settings: &Settings,
) -> io::Result<Vec<Listener>> {
    let options = SocketOptions {
        unsent_bytes_max: settings.slow.kernel_bytes.min(u32::MAX as usize) as u32,
        unacked_ms_max: settings.heartbeat.timeout.as_millis() as u32,
    };
    if !settings.passed.is_empty() {
        let listeners = settings.passed.iter().zip(endpoints);
        return listeners
            .map(|(passed, (endpoint, _))| {
                Ok(Listener { fd: passed.listener(options)?, endpoint, is_passed: true })
            })
            .collect();
    }
    let mut listeners = Vec::with_capacity(endpoints.len() * each);
    for (endpoint, made) in endpoints {
        match (&endpoint.at, made) {
            (At::Tcp(addr), _) => {
                for _ in 0..each {
                    let fd = listen::prepare(*addr, options)?;
                    listeners.push(Listener { fd, endpoint: endpoint.clone(), is_passed: false });
                }
            }
            (At::Unix(_), Some(made)) => {
                listeners.push(Listener { fd: unix::duplicate(made)?, endpoint, is_passed: false });
            }
            (At::Unix(_), None) => {}
        }
    }
    Ok(listeners)
}
