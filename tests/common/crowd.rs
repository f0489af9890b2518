//! Many connections read by one thread (epoll), and what the kernel says about them.
//! Owns the sockets given to it. Never parses: bytes go to the test as they come.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

/// What a member heard.
pub enum Heard<'a> {
    Bytes(&'a [u8]),
    /// FIN, or why the connection broke. The member is gone.
    End(Option<ErrorKind>),
}

/// Sockets, each with a number: its place in the order of `add`.
pub struct Crowd {
    epoll: OwnedFd,
    members: Vec<Option<TcpStream>>,
    part: Vec<u8>,
}

impl Crowd {
    #[allow(unsafe_code)]
    pub fn new() -> Self {
        // SAFETY: no memory is passed; the descriptor it gives is nobody else's.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        assert!(epoll >= 0, "epoll_create1: {}", io::Error::last_os_error());
        // SAFETY: just made, and owned by nothing yet.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        Self { epoll, members: Vec::new(), part: vec![0; 256 * 1024] }
    }

    /// Takes a socket; its number.
    pub fn add(&mut self, socket: TcpStream) -> usize {
        socket.set_nonblocking(true).expect("an open socket");
        self.control(libc::EPOLL_CTL_ADD, socket.as_raw_fd(), self.members.len());
        self.members.push(Some(socket));
        self.members.len() - 1
    }

    /// Sends what the socket takes now. False: the member has ended, or its connection is broken.
    pub fn send(&mut self, number: usize, bytes: &[u8]) -> bool {
        let Some(socket) = &mut self.members[number] else { return false };
        match socket.write(bytes) {
            Ok(sent) => sent > 0,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }

    /// Members that have not ended.
    pub fn live(&self) -> usize {
        self.members.iter().flatten().count()
    }

    /// Waits until something comes, at most `patience`, and tells it. Gives how many members heard something.
    #[allow(unsafe_code)]
    pub fn listen(&mut self, patience: Duration, mut hear: impl FnMut(usize, Heard)) -> usize {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 256];
        let ms = i32::try_from(patience.as_millis()).expect("a short wait");
        // SAFETY: the kernel writes at most 256 events into `events`, which lives through the call.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), 256, ms) };
        if count < 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), ErrorKind::Interrupted, "epoll_wait: {error}");
        }
        let count = usize::try_from(count).unwrap_or(0);
        for event in &events[..count] {
            let number = usize::try_from(event.u64).expect("a number of ours");
            let Some(socket) = &mut self.members[number] else { continue };
            let end = match socket.read(&mut self.part) {
                Ok(0) => None,
                Ok(length) => {
                    hear(number, Heard::Bytes(&self.part[..length]));
                    continue;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    continue;
                }
                Err(error) => Some(error.kind()),
            };
            // Closing it takes it out of the epoll set too.
            self.members[number] = None;
            hear(number, Heard::End(end));
        }
        count
    }

    #[allow(unsafe_code)]
    fn control(&self, operation: libc::c_int, socket: RawFd, number: usize) {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: number as u64 };
        // SAFETY: both descriptors are open; `event` lives through the call.
        let done = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, socket, &raw mut event) };
        assert_eq!(done, 0, "epoll_ctl: {}", io::Error::last_os_error());
    }
}

impl Default for Crowd {
    fn default() -> Self {
        Self::new()
    }
}

/// A process's memory of its own, in bytes (`RssAnon`).
pub fn own_memory(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1_024
}
