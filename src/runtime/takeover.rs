//! One process asking another, on the same address, to drain: over a unix socket with an abstract name that the address
//! gives, open to the same user alone.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::Duration;

use super::host;

/// How long the other process may take to hear or to answer.
const PATIENCE: Duration = Duration::from_secs(5);
const LETTER_BYTES_MAX: usize = 64;

/// Where this process hears that another wants its place.
#[derive(Debug)]
pub struct Control {
    /// `None` once heard: the successor takes the name.
    listener: Option<UnixListener>,
    /// The process that takes over; it sees the end of this one by the end of this stream.
    successor: Option<UnixStream>,
}

impl Control {
    /// # Errors
    /// The name is taken, or unix sockets are forbidden.
    pub fn new(addr: SocketAddr) -> io::Result<Self> {
        let listener = UnixListener::bind_addr(&name(addr)?)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: Some(listener), successor: None })
    }

    /// Hears one request: how many listeners serve each address in the other process. `None`: nothing, or nothing that
    /// counts.
    pub fn hear(&mut self) -> Option<u32> {
        let (mut stream, _) = self.listener.as_ref()?.accept().ok()?;
        if !host::is_same_user(stream.as_raw_fd()) {
            return None;
        }
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut letter = [0; LETTER_BYTES_MAX];
        let got = stream.read(&mut letter).ok()?;
        let listeners = std::str::from_utf8(letter.get(..got)?).ok()?.strip_prefix("drain ")?;
        let listeners = listeners.trim().parse().ok().filter(|listeners| *listeners > 0)?;
        stream.write_all(b"draining\n").ok()?;
        self.successor = Some(stream);
        Some(listeners)
    }
}

impl Control {
    /// Gives the name up.
    pub fn close(&mut self) {
        self.listener = None;
    }
}

impl AsRawFd for Control {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

/// A process that is asked to drain, and will end.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// Asks the process that serves `addr` to drain, now that `listeners` of this one serve it too.
    ///
    /// # Errors
    /// No Pushline of this user serves the address, or it does not answer.
    pub fn ask_to_drain(addr: SocketAddr, listeners: u32) -> io::Result<Self> {
        let mut stream = UnixStream::connect_addr(&name(addr)?)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("drain {listeners}\n").as_bytes())?;
        let mut answer = [0; LETTER_BYTES_MAX];
        if stream.read(&mut answer)? == 0 {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        stream.set_read_timeout(None)?;
        Ok(Self(stream))
    }

    /// Waits for its end.
    pub fn wait(mut self) {
        let mut end = [0; 1];
        while matches!(self.0.read(&mut end), Ok(1..)) {}
    }
}

fn name(addr: SocketAddr) -> io::Result<UnixAddr> {
    UnixAddr::from_abstract_name(format!("pushline/{addr}"))
}
