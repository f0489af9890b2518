//! Where operators come in: a TCP address, or a unix socket of this user's alone.
//! Owns taking the address in two steps, how many may be connected, and how long one may say nothing. Until the second
//! step, which cannot fail but for a bug, whoever has the address goes on as if nothing had been: a process that fails to
//! start takes it from nobody. Its own socket file is removed at the end; a successor's is not.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;

use crate::runtime::addresses::becomes_free;
use crate::runtime::io::SocketOptions;
use crate::runtime::listen;
use crate::runtime::serve_error::ServeError;
use crate::runtime::settings::AdminAddress;

/// Connections at once: dashboards, probes, a few people. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 128;
/// A connection on which nothing moves for so long is closed. What streams to operators says something more often.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Before the next is accepted, where one could not be.
const PAUSE: Duration = Duration::from_millis(50);
/// For so long a connection may have been on its way to this process when its successor took the address.
const HANDED_OVER_MAX: Duration = Duration::from_secs(1);
/// The name of a socket before it is put in its place.
const STAGED: &str = "s";
/// Of sockets: an operator that does not read is slow like any client.
const OPTIONS: SocketOptions = SocketOptions { unsent_bytes_max: 131_072, unacked_ms_max: 60_000 };

/// An address that can be had, and is once [`Listening::begin`] was called: from then on clients may queue.
pub enum Listening {
    Tcp(OwnedFd, SocketAddr),
    Unix(StdUnixListener, SocketFile),
}

impl Listening {
    /// # Errors
    /// Another process listens there, and is not to be taken over from; or the address cannot be had.
    pub fn new(address: &AdminAddress, takeover: bool) -> Result<Self, ServeError> {
        let failed = |error| ServeError::AdminListen { address: address.to_string(), error };
        let taken = || ServeError::AdminTaken(address.to_string());
        match address {
            AdminAddress::Tcp(addr) => {
                if addr.port() != 0 && !takeover {
                    becomes_free(*addr).map_err(|error| match error.kind() {
                        io::ErrorKind::AddrInUse => taken(),
                        _ => failed(error),
                    })?;
                }
                let fd = listen::prepare(*addr, OPTIONS).map_err(failed)?;
                let addr = listen::local_addr(fd.as_raw_fd()).map_err(failed)?;
                Ok(Self::Tcp(fd, addr))
            }
            AdminAddress::Unix(path) => {
                if !takeover && is_served(path) {
                    return Err(taken());
                }
                let (listener, file) = bind_unix(path).map_err(failed)?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// Clients come from now on: to this process, or still to the one before it, and of a unix socket to this one alone.
    ///
    /// # Errors
    /// What was made at its place since: a directory, say.
    pub fn begin(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(fd, _) => listen::begin(fd.as_raw_fd()),
            Self::Unix(_, file) => file.put_in_place(),
        }
    }

    /// Begins to accept, until `handed_over`.
    ///
    /// # Errors
    /// The runtime cannot take the socket.
    pub fn open(self, handed_over: watch::Receiver<bool>) -> io::Result<Door> {
        let (socket, file) = match self {
            Self::Tcp(fd, _) => (Socket::Tcp(TcpListener::from_std(fd.into())?), None),
            Self::Unix(listener, file) => (Socket::Unix(UnixListener::from_std(listener)?), Some(file)),
        };
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Ok(Door { socket: Some(socket), places, handed_over, leaves_at: None, _file: file })
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(_, addr) => addr.fmt(f),
            Self::Unix(_, file) => write!(f, "unix:{}", file.path.display()),
        }
    }
}

/// Whether somebody answers there. A socket file that a dead process left does not.
fn is_served(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path).is_ok()
}

/// A socket to be listened at `path`, in place of whatever socket is there. Made in a directory of this user's alone, so
/// that at no moment anybody else can connect, and later moved to its place, so that at no moment nobody is there.
fn bind_unix(path: &Path) -> io::Result<(StdUnixListener, SocketFile)> {
    check_place(path)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let folder = PathBuf::from(beside);
    let _ = fs::remove_dir_all(&folder);
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    bind_in(&folder, path).inspect_err(|_| drop(fs::remove_dir_all(&folder)))
}

fn bind_in(folder: &Path, path: &Path) -> io::Result<(StdUnixListener, SocketFile)> {
    let made = folder.join(STAGED);
    let listener = StdUnixListener::bind(&made)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
    let file = fs::symlink_metadata(&made)?;
    let inode = (file.dev(), file.ino());
    Ok((listener, SocketFile { path: path.to_owned(), folder: Some(folder.to_owned()), inode }))
}

/// Only a socket is ever replaced.
fn check_place(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is no socket; choose another path",
        )),
        _ => Ok(()),
    }
}

/// The file of a unix socket, removed at the end, if it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Where it stands until it is put in its place.
    folder: Option<PathBuf>,
    /// Device and number: tells it from one that another process put there since.
    inode: (u64, u64),
}

impl SocketFile {
    fn put_in_place(&mut self) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        check_place(&self.path)?;
        fs::rename(folder.join(STAGED), &self.path)?;
        let _ = fs::remove_dir_all(folder);
        self.folder = None;
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = fs::remove_dir_all(folder);
        } else if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The listener, open.
pub struct Door {
    /// `None`: handed over.
    socket: Option<Socket>,
    places: Arc<Semaphore>,
    handed_over: watch::Receiver<bool>,
    /// It is handed over, and takes until then who was on their way already: what is in a queue is reset by a close.
    leaves_at: Option<tokio::time::Instant>,
    _file: Option<SocketFile>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    /// New connections come to the successor alone, if there is one that listens at the same address.
    fn send_to_successor(&self) {
        if let Self::Tcp(listener) = self {
            // One listener each. Without it the kernel goes on choosing between them, until this one is closed.
            let _ = listen::steer_away(listener.as_raw_fd(), 1, 1);
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

impl Listener for Door {
    type Io = Client;
    type Addr = ();

    async fn accept(&mut self) -> (Client, ()) {
        // It is never closed; a closed one would let nobody in.
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            return std::future::pending().await;
        };
        loop {
            let Some(socket) = &self.socket else { return std::future::pending().await };
            tokio::select! {
                accepted = socket.accept() => match accepted {
                    Ok(stream) => return (Client::new(stream, place), ()),
                    // Gone while it waited, or there is no descriptor for it just now.
                    Err(_) => tokio::time::sleep(PAUSE).await,
                },
                () = over(&mut self.handed_over), if self.leaves_at.is_none() => {
                    socket.send_to_successor();
                    self.leaves_at = Some(tokio::time::Instant::now() + HANDED_OVER_MAX);
                }
                () = at(self.leaves_at), if self.leaves_at.is_some() => self.socket = None,
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until then, if there is such a time.
async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits until the address is handed over.
async fn over(handed_over: &mut watch::Receiver<bool>) {
    if handed_over.wait_for(|over| *over).await.is_err() {
        // The desk is gone, and this thread with it.
        std::future::pending().await
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection of an operator. An end to waiting: when nothing has moved for [`IDLE_MAX`].
pub struct Client {
    stream: Stream,
    idle: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Client {
    fn new(stream: Stream, place: OwnedSemaphorePermit) -> Self {
        Self { stream, idle: Box::pin(tokio::time::sleep(IDLE_MAX)), _place: place }
    }

    /// What came of an operation; one that waits, waits no longer than may be.
    fn timed<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match poll {
            Poll::Ready(done) => {
                self.idle.as_mut().reset(tokio::time::Instant::now() + IDLE_MAX);
                Poll::Ready(done)
            }
            Poll::Pending => self.idle.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        self.timed(cx, poll)
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.timed(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of the test's own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("pushline-door-{}-{name}", std::process::id()));
            fs::create_dir_all(&folder).expect("a directory");
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_socket_file_is_of_one_user_and_outlives_no_one() {
        let folder = Folder::new("file");
        let path = folder.0.join("admin.sock");
        let address = AdminAddress::Unix(path.clone());
        let mut first = Listening::new(&address, false).unwrap_or_else(|error| panic!("{error}"));
        assert!(!path.exists(), "nobody comes before it begins");
        first.begin().expect("its place");
        let mode = fs::metadata(&path).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(is_served(&path));
        assert_eq!(fs::read_dir(&folder.0).expect("a directory").count(), 1, "nothing else is left there");

        assert!(matches!(Listening::new(&address, false), Err(ServeError::AdminTaken(_))));
        // A successor takes its place, and keeps it when the first ends.
        let mut second = Listening::new(&address, true).unwrap_or_else(|error| panic!("{error}"));
        second.begin().expect("its place");
        drop(first);
        assert!(is_served(&path));
        // One that never begins takes nothing.
        drop(Listening::new(&address, true).unwrap_or_else(|error| panic!("{error}")));
        assert!(is_served(&path));
        assert_eq!(fs::read_dir(&folder.0).expect("a directory").count(), 1, "nothing else is left there");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_replaced_and_other_files_are_not() {
        let folder = Folder::new("stale");
        let path = folder.0.join("admin.sock");
        drop(StdUnixListener::bind(&path).expect("a socket"));
        assert!(path.exists() && !is_served(&path));
        let listening = Listening::new(&AdminAddress::Unix(path.clone()), false);
        let mut listening = listening.unwrap_or_else(|error| panic!("{error}"));
        listening.begin().expect("its place");
        assert!(is_served(&path));
        drop(listening);

        let file = folder.0.join("notes.txt");
        fs::write(&file, "kept").expect("a file");
        let refused = Listening::new(&AdminAddress::Unix(file.clone()), true);
        assert!(matches!(refused, Err(ServeError::AdminListen { .. })));
        assert_eq!(fs::read_to_string(&file).expect("the file"), "kept");
    }

    #[test]
    fn a_taken_port_is_told() {
        let address = AdminAddress::Tcp("127.0.0.1:0".parse().expect("an address"));
        let mut first = Listening::new(&address, false).unwrap_or_else(|error| panic!("{error}"));
        first.begin().expect("it listens");
        let taken = AdminAddress::Tcp(first.to_string().parse().expect("an address"));
        assert!(matches!(Listening::new(&taken, false), Err(ServeError::AdminTaken(_))));
        assert!(Listening::new(&taken, true).is_ok(), "a predecessor's is shared until it is told");
    }
}
