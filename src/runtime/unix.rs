//! Unix sockets that clients come by: one listener that all workers accept from, and its file.
//! Owns the file: it has its permissions before anyone can connect, takes the place of what a process left that is gone,
//! and is removed at the end, unless it is another's by then. Never accepts: `accept` does.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::io::{checked, owned};

/// Longest path: with [`STAGED`] it still fits into a socket's address, and so does the name by which a process that
/// takes over is heard.
pub const PATH_BYTES_MAX: usize = 90;
/// Where a process that takes over listens until it puts its file in the place of the other's.
const STAGED: &str = ".new";
/// Linux cuts the backlog to `net.core.somaxconn`.
const BACKLOG_AS_CONFIGURED: i32 = i32::MAX;

/// A listener and its file.
#[derive(Debug)]
pub struct UnixListener {
    fd: OwnedFd,
    /// Where the file is to be, and is unless it is staged.
    path: PathBuf,
    staged: Option<PathBuf>,
    /// Device and number of the file: tells it from one that another process put there since.
    file: (u64, u64),
}

impl UnixListener {
    /// A socket at `path`, which does not listen yet. A file there that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// `AddrInUse`: somebody listens there. `AlreadyExists`: what is there is no socket.
    pub fn new(path: &Path, mode: u32) -> io::Result<Self> {
        if is_live(path)? {
            return Err(ErrorKind::AddrInUse.into());
        }
        remove_socket(path)?;
        let (fd, file) = bound(path, mode)?;
        Ok(Self { fd, path: path.into(), staged: None, file })
    }

    /// A socket beside `path`, until [`UnixListener::begin`]: for a process that takes over.
    ///
    /// # Errors
    /// `AlreadyExists`: what is there is no socket.
    pub fn staged(path: &Path, mode: u32) -> io::Result<Self> {
        if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let mut staged: OsString = path.into();
        staged.push(STAGED);
        let staged = PathBuf::from(staged);
        remove_socket(&staged)?;
        let (fd, file) = bound(&staged, mode)?;
        Ok(Self { fd, path: path.into(), staged: Some(staged), file })
    }

    /// Listens: clients come from now on. The file is put in its place, in one step: whoever connects comes to the one
    /// process or to the other.
    pub fn begin(&mut self) -> io::Result<()> {
        // SAFETY: no pointers.
        checked(unsafe { libc::listen(self.fd.as_raw_fd(), BACKLOG_AS_CONFIGURED) })?;
        if let Some(staged) = &self.staged {
            fs::rename(staged, &self.path)?;
            self.staged = None;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsRawFd for UnixListener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        let path = self.staged.as_ref().unwrap_or(&self.path);
        if fs::symlink_metadata(path).is_ok_and(|found| number_of(&found) == self.file) {
            // What cannot be removed is replaced by the next start.
            let _ = fs::remove_file(path);
        }
    }
}

/// A descriptor of the calling thread's table for a listener that main has made: `fd` is its number in every table.
///
/// # Errors
/// No descriptor was left.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: main owns the descriptor for as long as workers run, and their tables began with all of main's.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// Whether somebody listens at `path`.
///
/// # Errors
/// It cannot be told: no permission, say.
pub fn is_live(path: &Path) -> io::Result<bool> {
    let fd = socket()?;
    let address = address(path)?;
    // SAFETY: the address lives through the call, and has the size that is given.
    let rc = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) };
    match checked(rc) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            // Its queue is full.
            ErrorKind::WouldBlock => Ok(true),
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => Ok(false),
            _ => Err(error),
        },
    }
}

const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe {
        libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
    })
}

fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let bytes = path.as_os_str().as_bytes();
    // One byte less: the path ends with a NUL.
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(address)
}

/// A socket at a path where nothing is, and the number of its file.
fn bound(path: &Path, mode: u32) -> io::Result<(OwnedFd, (u64, u64))> {
    let fd = socket()?;
    let address = address(path)?;
    // SAFETY: the address lives through the call, and has the size that is given.
    checked(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) })?;
    let made = fs::set_permissions(path, Permissions::from_mode(mode))
        .and_then(|()| Ok(number_of(&fs::symlink_metadata(path)?)));
    match made {
        Ok(file) => Ok((fd, file)),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

/// Removes a socket that nobody listens at; what is none stays, and is an error.
fn remove_socket(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn number_of(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::listen;
    use crate::runtime::peer::Peer;
    use std::os::unix::net::UnixStream;

    /// A folder of the test's own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("pushline-unix-{}-{name}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn listening(path: &Path, mode: u32) -> UnixListener {
        let mut listener = UnixListener::new(path, mode).unwrap();
        assert!(UnixStream::connect(path).is_err(), "it has its permissions before it listens");
        listener.begin().unwrap();
        listener
    }

    fn accept(listener: &impl AsRawFd) -> Option<(OwnedFd, Peer)> {
        listen::accept_nonblocking(listener.as_raw_fd(), true).unwrap()
    }

    #[test]
    fn the_file_has_its_permissions_and_goes_with_its_listener() {
        let folder = Folder::new("file");
        let path = folder.0.join("a.sock");
        let listener = listening(&path, 0o640);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let _client = UnixStream::connect(&path).unwrap();
        assert_eq!(accept(&listener).unwrap().1, Peer::UNIX);
        assert!(accept(&listener).is_none());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_stays_and_a_dead_one_is_replaced() {
        let folder = Folder::new("stale");
        let path = folder.0.join("a.sock");
        let live = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(UnixListener::new(&path, 0o600).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(live);
        assert!(path.exists(), "it is left behind");
        let listener = listening(&path, 0o600);
        let _client = UnixStream::connect(&path).unwrap();
        assert!(accept(&listener).is_some());
    }

    #[test]
    fn what_is_no_socket_is_never_removed() {
        let folder = Folder::new("file-in-the-way");
        let path = folder.0.join("precious");
        fs::write(&path, "text").unwrap();
        assert_eq!(UnixListener::new(&path, 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(UnixListener::staged(&path, 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }

    #[test]
    fn a_successor_takes_the_place_and_the_old_one_leaves_it_alone() {
        let folder = Folder::new("takeover");
        let path = folder.0.join("a.sock");
        let old = listening(&path, 0o600);
        let mut new = UnixListener::staged(&path, 0o600).unwrap();
        let _early = UnixStream::connect(&path).unwrap();
        new.begin().unwrap();
        let _late = UnixStream::connect(&path).unwrap();
        assert!(accept(&old).is_some() && accept(&old).is_none());
        assert!(accept(&new).is_some() && accept(&new).is_none());
        drop(old);
        let _later = UnixStream::connect(&path).unwrap();
        assert!(accept(&new).is_some());
        drop(new);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }

    /// Stopped first, then accepted until empty: nobody who came in between is lost.
    #[test]
    fn a_stopped_listener_gives_out_its_queue_and_takes_no_more() {
        let folder = Folder::new("stop");
        let path = folder.0.join("a.sock");
        let listener = listening(&path, 0o600);
        let other = duplicate(listener.as_raw_fd()).unwrap();
        let _queued = UnixStream::connect(&path).unwrap();
        listen::stop(listener.as_raw_fd());
        let refused = UnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(accept(&other).is_some());
        assert!(accept(&other).is_none() && accept(&listener).is_none());
    }

    #[test]
    fn paths_too_long_for_a_socket_are_refused() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        assert_eq!(UnixListener::new(&long, 0o600).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(PATH_BYTES_MAX + STAGED.len() < 108);
    }
}
