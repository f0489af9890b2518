//! Taking the place of the processes that serve a node's addresses: claimed and found before anything else is done, asked
//! to go once all is ready here. How two processes speak is `takeover`'s.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::addresses::endpoints_of;
use super::listen;
use super::mail::Mail;
use super::node::Node;
use super::serve_error::ServeError;
use super::settings::{At, Endpoint, Settings};
use super::takeover::{Claim, Predecessor};
use super::unix;

/// How long a process that has just started, or taken over itself, may need until it can be asked for its place, and how
/// long one that is starting at the same address may take.
const NAME_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is asked meanwhile.
const NAME_PAUSE: Duration = Duration::from_millis(20);

/// What lets this process alone begin to listen at its addresses: of two that would both find a port free, or both take
/// it over from a third, the kernel would give each a part of the connections. To be kept until it listens and is heard by
/// its names. Descriptors are not below `least`.
///
/// # Errors
/// Another process is just starting at one of them, and does not come to an end.
pub fn claim(settings: &Settings, least: RawFd) -> Result<Vec<Claim>, ServeError> {
    let mut places: Vec<At> = endpoints_of(settings).filter(is_known).map(|endpoint| endpoint.at).collect();
    if !settings.passed.is_empty() {
        places.clear();
    }
    // In one order, lest two processes wait for each other.
    places.sort_by_cached_key(At::to_string);
    places.dedup();
    let mut claims = Vec::with_capacity(places.len());
    for at in places {
        claims.extend(claim_one(&at, least)?);
    }
    Ok(claims)
}

fn claim_one(at: &At, least: RawFd) -> Result<Option<Claim>, ServeError> {
    let until = Instant::now() + NAME_PATIENCE;
    loop {
        match Claim::take(at, least) {
            Ok(claim) => return Ok(Some(claim)),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                tracing::debug!(%at, %error, "no claim to the address can be made; another start at the same time is not seen");
                return Ok(None);
            }
            Err(_) if Instant::now() >= until => return Err(ServeError::Starting(at.clone())),
            Err(_) => std::thread::sleep(NAME_PAUSE),
        }
    }
}

/// Not one whose port the kernel is to choose.
fn is_known(endpoint: &Endpoint) -> bool {
    endpoint.addr().is_none_or(|addr| addr.port() != 0)
}

/// Those that serve the addresses already, to be asked for them once all is ready here.
pub fn find_predecessors(settings: &Settings) -> Result<Vec<(At, Predecessor)>, ServeError> {
    let mut found = Vec::new();
    let asks = settings.takeover && settings.passed.is_empty();
    for Endpoint { at, .. } in endpoints_of(settings).filter(|endpoint| asks && is_known(endpoint)) {
        match find_predecessor(&at)? {
            Some(predecessor) => found.push((at, predecessor)),
            // What nobody holds yet is simply ours.
            None => tracing::info!(%at, "--takeover: nobody to take over from"),
        }
    }
    Ok(found)
}

fn find_predecessor(at: &At) -> Result<Option<Predecessor>, ServeError> {
    let until = Instant::now() + NAME_PATIENCE;
    loop {
        let error = match Predecessor::find(at) {
            Ok(predecessor) => return Ok(Some(predecessor)),
            Err(error) => error,
        };
        let is_nobody = error.kind() == io::ErrorKind::ConnectionRefused;
        if is_nobody && !is_taken(at)? {
            return Ok(None);
        }
        if !is_nobody || Instant::now() >= until {
            return Err(ServeError::NoPredecessor { at: at.clone(), error });
        }
        std::thread::sleep(NAME_PAUSE);
    }
}

fn is_taken(at: &At) -> Result<bool, ServeError> {
    let taken = match at {
        At::Tcp(addr) => listen::port_is_taken(*addr),
        At::Unix(path) => unix::is_live(path),
    };
    taken.map_err(|error| ServeError::Listen { at: at.clone(), error })
}

/// Asks those that serve the addresses to drain, now that `listeners` of this process serve each too.
pub fn take_over(node: &Arc<Node>, predecessors: Vec<(At, Predecessor)>, listeners: u32) {
    let mut asked = Vec::new();
    for (at, mut predecessor) in predecessors {
        match predecessor.ask_to_drain(listeners) {
            Ok(()) => asked.push(predecessor),
            // It heard of an address before this, and has begun to drain.
            Err(_) if !asked.is_empty() => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                tracing::info!(%at, "--takeover: the other process has ended");
            }
            // Connections come to this process already: to end now would lose them.
            Err(error) => {
                tracing::warn!(%at, %error, "--takeover: the other process does not answer; stop it: it has half of the new connections");
            }
        }
    }
    if !asked.is_empty() {
        let node = Arc::clone(node);
        std::thread::spawn(move || {
            for predecessor in asked {
                predecessor.wait_until_closed();
                node.post(0, Mail::Unsteer);
            }
        });
    }
}
