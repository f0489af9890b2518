//! What a thread asks of the machine: a core of its own, no signals, open files, memory.
//! Owns the system calls. Never decides how many workers there are, or what a signal means.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::io::{checked, owned};

/// Signals that stop or reload the node: blocked everywhere, read by main from a [`SignalFd`].
const OUR_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// A signal that was sent to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Interrupt,
    /// Reserved for reloading.
    HangUp,
}

impl Signal {
    /// The kernel's number for it.
    pub const fn number(self) -> i32 {
        match self {
            Self::Terminate => libc::SIGTERM,
            Self::Interrupt => libc::SIGINT,
            Self::HangUp => libc::SIGHUP,
        }
    }
}

/// Bytes in a page of memory.
pub fn page_bytes() -> usize {
    // SAFETY: no pointers.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4_096)
}

unsafe extern "C" {
    /// mimalloc's, which the program is linked with: gives back what this thread's heap keeps for later.
    fn mi_collect(force: bool);
}

/// Gives memory that the calling thread has freed back to the machine: the allocator would keep it for a while.
pub fn give_back_freed_memory() {
    // SAFETY: it may be called at any time, by any thread, for its own heap.
    unsafe { mi_collect(true) };
}

/// The process's own memory in the machine's; `None`: the kernel does not tell.
pub fn resident_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_ascii_whitespace().skip(1).map_while(|word| word.parse::<usize>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    Some(resident.saturating_sub(shared) * page_bytes())
}

/// Binds the calling thread to one core: the `index`th of those that this process may use, and
/// over again from the first when there are fewer. Returns the core's number.
pub fn pin_to_cpu(index: usize) -> io::Result<usize> {
    let allowed = allowed_cpus()?;
    let cpu = allowed[index % allowed.len()];
    let mut set = no_cpus();
    // SAFETY: `cpu` came out of such a set, so it is below its size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: a live set and its size; 0 is the calling thread.
    checked(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) })?;
    Ok(cpu)
}

/// The cores that the calling thread may run on, at least one. Ask in main, before pinning.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let mut set = no_cpus();
    // SAFETY: a live set and its size; 0 is the calling thread.
    checked(unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) })?;
    // SAFETY: each number is below the set's size.
    let is_allowed = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &set) };
    let allowed: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(is_allowed).collect();
    if allowed.is_empty() { Err(io::Error::from_raw_os_error(libc::EINVAL)) } else { Ok(allowed) }
}

fn no_cpus() -> libc::cpu_set_t {
    // SAFETY: an array of integers, for which zeroes are valid: the empty set.
    unsafe { std::mem::zeroed() }
}

/// Keeps the signals of the node from the calling thread and from those that it starts.
pub fn block_signals() -> io::Result<()> {
    let set = our_signals();
    // SAFETY: a live set; the former mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn our_signals() -> libc::sigset_t {
    // SAFETY: plain integers, for which zeroes are valid; emptied in the next step all the same.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a live set.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in OUR_SIGNALS {
        // SAFETY: a live set and a signal that exists.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// The node's signals, as a descriptor to wait for. Made by main before any other thread, since a
/// thread that does not block them would be given them instead.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
    /// It reads the signals of the thread that reads it.
    _of_one_thread: PhantomData<*const ()>,
}

impl SignalFd {
    /// Blocks the node's signals in the calling thread and makes the descriptor, non-blocking.
    pub fn new() -> io::Result<Self> {
        block_signals()?;
        let set = our_signals();
        // SAFETY: a live set; -1 asks for a new descriptor.
        let fd =
            owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) })?;
        Ok(Self { fd, _of_one_thread: PhantomData })
    }

    /// The next signal that came, `None` when none did.
    pub fn read(&self) -> io::Result<Option<Signal>> {
        loop {
            // SAFETY: plain integers, for which zeroes are valid.
            let mut record: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
            let bytes = size_of_val(&record);
            // SAFETY: `bytes` live bytes of a type for which any bytes are valid.
            let read = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut record).cast(), bytes) };
            if read == bytes as isize {
                return Ok(match record.ssi_signo as i32 {
                    libc::SIGTERM => Some(Signal::Terminate),
                    libc::SIGINT => Some(Signal::Interrupt),
                    _ => Some(Signal::HangUp),
                });
            }
            match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            }
        }
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Raises the limit on open files as far as it goes without privileges, and returns it: of the
/// process, or of each thread that has a table of its own (`files`).
pub fn set_nofile_to_hard_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live struct.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: a live struct.
    checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_cur)
}

/// Whether the peer of a unix socket is of the same user as this process.
pub fn is_same_user(fd: RawFd) -> bool {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers live through the call, and the length is the size of what they point to.
    let rc = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut len)
    };
    // SAFETY: no pointers, and it cannot fail.
    rc == 0 && peer.uid == unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_to_one_core_and_indexes_wrap() {
        let all = allowed_cpus().unwrap();
        for index in 0..2 * all.len() {
            let expected = all[index % all.len()];
            std::thread::spawn(move || {
                assert_eq!(pin_to_cpu(index).unwrap(), expected);
                assert_eq!(allowed_cpus().unwrap(), [expected]);
            })
            .join()
            .unwrap();
        }
        assert_eq!(allowed_cpus().unwrap(), all, "other threads are not concerned");
    }

    /// Signals of a thread, not of the process, so that other tests are not concerned.
    #[test]
    fn blocked_signals_are_read() {
        std::thread::spawn(|| {
            let signals = SignalFd::new().unwrap();
            assert_eq!(signals.read().unwrap(), None);
            for (number, signal) in [
                (libc::SIGTERM, Signal::Terminate),
                (libc::SIGINT, Signal::Interrupt),
                (libc::SIGHUP, Signal::HangUp),
            ] {
                // SAFETY: no pointers; the signal is blocked in this thread, to which it goes.
                assert_eq!(unsafe { libc::raise(number) }, 0);
                assert_eq!(signals.read().unwrap(), Some(signal));
                assert_eq!(signals.read().unwrap(), None);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_limit_on_open_files_is_raised() {
        let limit = set_nofile_to_hard_limit().unwrap();
        assert!(limit >= 256);
        assert_eq!(set_nofile_to_hard_limit().unwrap(), limit);
    }
}
