//! What every black-box test needs: a server of its own on port 0, and clients held by hand.
//! Owns no expectations of the server; those stand in the tests.

pub mod access;
pub mod admin;
pub mod cost;
pub mod crowd;
pub mod http;
pub mod response;
pub mod rng;
pub mod server;
pub mod sock_diag;
pub mod sse;
pub mod tls;
pub mod token;
pub mod ws;

use std::time::{Duration, Instant};

/// The bound of every wait. Generous: a machine under load is slow, not wrong.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Asks again until `ask` gives a value, for what no event tells (a file in /proc, another process).
///
/// # Panics
/// With `what` when the deadline passes.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = ask() {
            return value;
        }
        assert!(Instant::now() < end, "waited {DEADLINE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bounds what the kernel takes for a socket that its owner does not read (`SO_RCVBUF`).
#[allow(unsafe_code)]
pub fn receive_buffer(socket: &std::net::TcpStream, bytes: libc::c_int) {
    use std::os::fd::AsRawFd;
    let size = libc::socklen_t::try_from(size_of_val(&bytes)).expect("small");
    // SAFETY: the descriptor is open while `socket` is borrowed; `bytes` has the size given and lives through the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const bytes).cast(),
            size,
        )
    };
    assert_eq!(done, 0, "SO_RCVBUF: {}", std::io::Error::last_os_error());
}
