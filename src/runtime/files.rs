//! File tables: one to a worker, in the place of one shared by all threads.
//!
//! A table of its own spares a worker the lock of the shared one, and makes the limit on open
//! files hold for each worker alone. The price: a descriptor's number means another file in
//! another thread, but for those that main made before. Owns the division.
//! Never opens or closes a particular file.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

/// Gives the calling thread a table of its own, in which only the descriptors up to and with
/// `last_shared` are open. The first act of a worker: later ones would lose their descriptors.
///
/// # Errors
/// `EPERM` (a seccomp profile) and `ENOSYS` (before Linux 5.9): tables stay shared, and nothing
/// was closed. `ENOMEM`, `EMFILE`: the same.
pub fn unshare_from(last_shared: RawFd) -> io::Result<()> {
    let first = u32::try_from(last_shared).expect("a descriptor's number") + 1;
    // By number: musl has no wrapper.
    // SAFETY: no pointers. Descriptors are closed in the new table alone, if the caller keeps to
    // the rule above and shares its table with another thread now, as all threads do at start.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_UNSHARE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a thread can have a table of its own: done once, in a thread that ends with it, closing nothing.
///
/// # Errors
/// Those of [`unshare_from`], and `EAGAIN` when no thread can be started.
pub fn can_unshare() -> io::Result<()> {
    let thread = std::thread::Builder::new().spawn(|| unshare_from(RawFd::MAX))?;
    thread.join().expect("a system call does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::host::set_nofile_to_hard_limit;
    use crate::runtime::io::{EventFd, close};
    use std::fs::File;
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::sync::Barrier;

    /// How many descriptors are open in the calling thread's table.
    fn open_descriptors_of_thread() -> io::Result<usize> {
        // One of them is the directory's own.
        Ok(std::fs::read_dir("/proc/thread-self/fd")?.count() - 1)
    }

    /// Three threads that together open more than the process may: each counts its own.
    #[test]
    fn the_limit_holds_for_each_thread_alone() {
        let limit = usize::try_from(set_nofile_to_hard_limit().unwrap()).unwrap();
        let each = (limit / 2 + 100).min(12_000);
        let all_open = Barrier::new(3);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        unshare_from(2).unwrap();
                        let before = open_descriptors_of_thread().unwrap();
                        assert!(before <= 3, "{before} open after the division");
                        let files: Vec<File> = (0..each).map(|_| File::open("/dev/null").unwrap()).collect();
                        all_open.wait();
                        assert_eq!(open_descriptors_of_thread().unwrap(), before + each);
                        drop(files);
                        assert_eq!(open_descriptors_of_thread().unwrap(), before);
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn trying_it_costs_nothing() {
        let file = File::open("/dev/null").unwrap();
        can_unshare().unwrap();
        // SAFETY: no pointers.
        assert_ne!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFD) }, -1);
    }

    /// What was made before is the same file in each table, and each table closes it for itself.
    #[test]
    fn shared_numbers_stay_the_same_file() {
        let event = EventFd::new().unwrap();
        let number = event.as_raw_fd();
        let later = File::open("/dev/null").unwrap().into_raw_fd();
        std::thread::spawn(move || {
            unshare_from(number).unwrap();
            if later > number {
                // SAFETY: no pointers.
                assert_eq!(unsafe { libc::fcntl(later, libc::F_GETFD) }, -1, "it was closed here");
            }
            let one = 1_u64;
            // SAFETY: eight live bytes.
            assert_eq!(unsafe { libc::write(number, (&raw const one).cast(), 8) }, 8);
            close(number);
        })
        .join()
        .unwrap();
        assert!(event.drain(), "written there, read here");
        // SAFETY: no pointers.
        assert_ne!(unsafe { libc::fcntl(later, libc::F_GETFD) }, -1, "it is open here");
        close(later);
    }
}
