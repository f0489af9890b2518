//! One process taking the place of another on the same address: over a unix socket with an abstract name that the address,
//! or the path, gives, open to the same user alone, in lines. Each asks the other who it is: anybody may take an abstract name.
//!
//! The new process says `hello`, before it listens: the old one answers `ready N`, with its listeners to an address, or
//! the new one gives up and nobody has noticed. Once all of its own listen, which are at least as many (`listen`), it
//! says `drain N`: the old one gives up its names, answers `draining`, and later `closed`, when no new connection can come
//! to it any more.
//!
//! A second name of an address is its [`Claim`]: of several processes that start at once, one after the other has it.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::Duration;

use super::host;
use super::io::{Epoll, Interest, lifted};
use super::settings::At;

/// How long the other process may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
const LINE_BYTES_MAX: usize = 64;
/// Processes that are heard at once; the oldest must go when more come.
const VISITORS_MAX: usize = 8;

/// An address, and the name that another process asks for it by.
#[derive(Debug)]
struct Place {
    at: At,
    listener: Option<UnixListener>,
    /// Somebody has come by it.
    is_asked_for: bool,
}

/// Where this process hears that another wants its place.
#[derive(Debug)]
pub struct Controls {
    names: Vec<Place>,
    visitors: Vec<Visitor>,
    /// The process that takes over, until it was told the last.
    successor: Option<UnixStream>,
    /// Of this process, to each address.
    listeners: u32,
}

#[derive(Debug)]
struct Visitor {
    stream: UnixStream,
    /// The front of a line.
    begun: Vec<u8>,
}

enum Heard {
    Nothing,
    /// It wants this place, and has so many listeners.
    Drain(u32),
    Gone,
}

/// An address is this process's alone to begin to listen at. Others wait, or are refused, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    _name: OwnedFd,
}

impl Claim {
    /// Takes the claim to `at`, with a descriptor not below `least`. One that another user has made counts for nothing:
    /// anybody may take an abstract name.
    ///
    /// # Errors
    /// `AddrInUse`: another process of this user has it. Others: there can be none.
    pub fn take(at: &At, least: RawFd) -> io::Result<Self> {
        let name = UnixAddr::from_abstract_name(format!("pushline+/{at}"))?;
        match UnixListener::bind_addr(&name) {
            Ok(listener) => Ok(Self { _name: lifted(listener.as_raw_fd(), least)? }),
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_strangers(&name) => {
                Err(ErrorKind::PermissionDenied.into())
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether another user's process listens there.
fn is_strangers(name: &UnixAddr) -> bool {
    UnixStream::connect_addr(name).is_ok_and(|stream| !host::is_same_user(stream.as_raw_fd()))
}

impl Controls {
    pub fn new(places: impl IntoIterator<Item = At>, listeners: u32) -> Self {
        let names = places.into_iter().map(|at| Place { at, listener: None, is_asked_for: false }).collect();
        Self { names, visitors: Vec::new(), successor: None, listeners }
    }

    /// Takes the names that are free: that of a process before this one is only when it drains. Returns whether all are
    /// taken.
    pub fn take_names(&mut self, epoll: &Epoll, token: u64) -> bool {
        for Place { at, listener, .. } in self.names.iter_mut().filter(|place| place.listener.is_none()) {
            *listener = listen(at)
                .ok()
                .filter(|listener| epoll.add(listener.as_raw_fd(), token, Interest::Read).is_ok());
        }
        self.names.iter().all(|place| place.listener.is_some())
    }

    /// Hears those who speak. A number: one of them takes this process's place, with so many listeners to each address.
    pub fn hear(&mut self, epoll: &Epoll, token: u64) -> Option<u32> {
        for Place { listener, is_asked_for, .. } in &mut self.names {
            while let Some(Ok((stream, _))) = listener.as_ref().map(UnixListener::accept) {
                let is_heard = host::is_same_user(stream.as_raw_fd())
                    && stream.set_nonblocking(true).is_ok()
                    && epoll.add(stream.as_raw_fd(), token, Interest::Read).is_ok();
                if is_heard {
                    *is_asked_for = true;
                    self.visitors.push(Visitor { stream, begun: Vec::new() });
                }
            }
        }
        while self.visitors.len() > VISITORS_MAX {
            self.visitors.remove(0);
        }
        let mut at = 0;
        while let Some(visitor) = self.visitors.get_mut(at) {
            match visitor.hear(self.listeners) {
                Heard::Nothing => at += 1,
                Heard::Gone => drop(self.visitors.remove(at)),
                Heard::Drain(listeners) => {
                    let mut visitor = self.visitors.remove(at);
                    let _ = epoll.remove(visitor.stream.as_raw_fd());
                    // It takes them as soon as it is answered. They are taken back from one that has just gone.
                    self.names.iter_mut().for_each(|place| place.listener = None);
                    if visitor.say("draining\n") {
                        self.warn_of_left();
                        self.close();
                        self.successor = Some(visitor.stream);
                        return Some(listeners);
                    }
                }
            }
        }
        None
    }

    /// Says which addresses no other process has asked for: nobody serves them from now on.
    fn warn_of_left(&self) {
        for Place { at, .. } in self.names.iter().filter(|place| !place.is_asked_for) {
            tracing::warn!(
                %at,
                "the process that takes over does not listen here: from now on nobody does; name this address in its \
                 configuration too, if that is not meant"
            );
        }
    }

    /// Gives the names up, for the successor to take.
    pub fn close(&mut self) {
        self.names.clear();
        self.visitors.clear();
    }

    /// Tells the successor, if there is one, that no connection comes to this process any more.
    pub fn tell_closed(&mut self) {
        if let Some(mut successor) = self.successor.take() {
            let _ = successor.write_all(b"closed\n");
        }
    }
}

fn listen(at: &At) -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&name(at)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Visitor {
    fn hear(&mut self, listeners: u32) -> Heard {
        loop {
            let mut part = [0; LINE_BYTES_MAX];
            match self.stream.read(&mut part) {
                Ok(0) => return Heard::Gone,
                Ok(bytes) => self.begun.extend_from_slice(&part[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::Nothing,
                Err(_) => return Heard::Gone,
            }
            while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.begun.drain(..=end).collect();
                match std::str::from_utf8(&line).map(str::trim_end) {
                    Ok("hello") if self.say(&format!("ready {listeners}\n")) => {}
                    Ok(line) => match count_in(line, "drain ") {
                        Some(theirs) => return Heard::Drain(theirs),
                        None => return Heard::Gone,
                    },
                    Err(_) => return Heard::Gone,
                }
            }
            if self.begun.len() > LINE_BYTES_MAX {
                return Heard::Gone;
            }
        }
    }

    fn say(&mut self, line: &str) -> bool {
        self.stream.write_all(line.as_bytes()).is_ok()
    }
}

/// The number above zero that follows `word`.
fn count_in(line: &str, word: &str) -> Option<u32> {
    line.strip_prefix(word)?.parse().ok().filter(|count| *count > 0)
}

/// A process that serves an address, found before this one listens there.
#[derive(Debug)]
pub struct Predecessor {
    stream: BufReader<UnixStream>,
    /// Of that process, to each address.
    pub listeners: u32,
}

impl Predecessor {
    /// Finds the process that serves `at`. It goes on as if nothing had been.
    ///
    /// # Errors
    /// `ConnectionRefused`: there is none. Others: it is not a Pushline of this user, or does not answer.
    pub fn find(at: &At) -> io::Result<Self> {
        let stream = UnixStream::connect_addr(&name(at)?)?;
        if !host::is_same_user(stream.as_raw_fd()) {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "another user has its name"));
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut found = Self { stream: BufReader::new(stream), listeners: 0 };
        let answer = found.ask("hello\n")?;
        found.listeners = count_in(&answer, "ready ").ok_or_else(|| strange(&answer))?;
        Ok(found)
    }

    /// Asks it to drain, now that `listeners` of this process serve its address too.
    ///
    /// # Errors
    /// It ended meanwhile, or does not answer.
    pub fn ask_to_drain(&mut self, listeners: u32) -> io::Result<()> {
        match self.ask(&format!("drain {listeners}\n"))? {
            answer if answer == "draining" => Ok(()),
            answer => Err(strange(&answer)),
        }
    }

    /// Waits until no connection comes to it any more, or its end.
    pub fn wait_until_closed(mut self) {
        if self.stream.get_ref().set_read_timeout(None).is_ok() {
            let _ = self.hear();
        }
    }

    fn ask(&mut self, question: &str) -> io::Result<String> {
        self.stream.get_mut().write_all(question.as_bytes())?;
        self.hear()
    }

    fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match (&mut self.stream).take(LINE_BYTES_MAX as u64).read_line(&mut line) {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "it hung up")),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(io::Error::new(ErrorKind::TimedOut, "it does not answer"))
            }
            Err(error) => Err(error),
        }
    }
}

fn strange(answer: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("it answered {answer:?}"))
}

fn name(at: &At) -> io::Result<UnixAddr> {
    UnixAddr::from_abstract_name(format!("pushline/{at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::io::Events;

    /// An address that no socket has: the name alone is of interest. Each test its own.
    fn nowhere(port: u16) -> At {
        At::Tcp(([192, 0, 2, std::process::id() as u8], port).into())
    }

    /// Hears for a while, or until somebody takes over.
    fn serve(controls: &mut Controls, epoll: &Epoll, rounds: usize) -> Option<u32> {
        let mut events = Events::with_capacity(4);
        (0..rounds).find_map(|_| {
            epoll.wait(&mut events, Some(Duration::from_millis(20))).unwrap();
            controls.hear(epoll, 7)
        })
    }

    #[test]
    fn a_place_is_handed_over_in_two_steps() {
        let addr = nowhere(1);
        assert_eq!(Predecessor::find(&addr).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let (epoll, mut old) = (Epoll::new().unwrap(), Controls::new([addr.clone()], 4));
        assert!(old.take_names(&epoll, 7));
        let mut waiting = Controls::new([addr.clone()], 2);
        assert!(!waiting.take_names(&epoll, 7), "the name is taken");
        std::thread::scope(|scope| {
            // One that only asks, as a process does that then fails to start, changes nothing.
            let asked = scope.spawn(|| Predecessor::find(&addr).unwrap().listeners);
            assert_eq!(serve(&mut old, &epoll, 10), None);
            assert_eq!(asked.join().unwrap(), 4);
            let new = scope.spawn(|| {
                let mut found = Predecessor::find(&addr).unwrap();
                found.ask_to_drain(6).unwrap();
                found.wait_until_closed();
            });
            assert_eq!(serve(&mut old, &epoll, 100), Some(6));
            assert!(waiting.take_names(&epoll, 7), "the name is free");
            old.tell_closed();
            new.join().unwrap();
        });
    }

    #[test]
    fn one_process_at_a_time_has_the_claim_to_an_address() {
        let addr = nowhere(3);
        let claim = Claim::take(&addr, 200).unwrap();
        assert!(claim._name.as_raw_fd() >= 200);
        assert_eq!(Claim::take(&addr, 3).unwrap_err().kind(), ErrorKind::AddrInUse);
        Claim::take(&nowhere(4), 3).expect("another address is another claim");
        drop(claim);
        Claim::take(&addr, 3).expect("it is free again");
    }

    #[test]
    fn nonsense_and_silence_are_not_waited_for() {
        let addr = nowhere(2);
        let (epoll, mut old) = (Epoll::new().unwrap(), Controls::new([addr.clone()], 1));
        assert!(old.take_names(&epoll, 7));
        let connect = || UnixStream::connect_addr(&name(&addr).unwrap()).unwrap();
        let mut silent: Vec<_> = (0..VISITORS_MAX + 4).map(|_| connect()).collect();
        for nonsense in ["drain\n", "drain 0\n", "drain -1\n", "\n", "hello you\n", &"x".repeat(200)] {
            let mut stream = connect();
            stream.write_all(nonsense.as_bytes()).unwrap();
            assert_eq!(serve(&mut old, &epoll, 2), None, "{nonsense}");
            let mut end = Vec::new();
            // What was not read of it makes a reset of the end.
            let ended = stream.read_to_end(&mut end).map_err(|error| error.kind());
            assert!(matches!(ended, Ok(0) | Err(io::ErrorKind::ConnectionReset)), "{nonsense}: {ended:?}");
            assert_eq!(end, b"", "{nonsense}");
        }
        assert!(old.visitors.len() <= VISITORS_MAX);
        let last = silent.last_mut().unwrap();
        last.write_all(b"hel").unwrap();
        serve(&mut old, &epoll, 2);
        last.write_all(b"lo\ndrain 3\n").unwrap();
        assert_eq!(serve(&mut old, &epoll, 2), Some(3), "a line in pieces, two lines at once");
    }
}
