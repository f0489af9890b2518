//! What a server costs: its memory at its most, its CPU, and how long somebody else waits meanwhile.
//! Owns the measuring. What is too much, the tests say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::crowd::own_memory;
use super::http::{Conn, get};
use super::server::{Server, descriptors};

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;

/// Descriptors of a server at rest, all of its workers having begun.
pub fn baseline(server: &Server) -> usize {
    for _ in 0..16 {
        get(server.addr(), "/healthz").expect(200);
    }
    descriptors(server.pid())
}

/// CPU that a process has used, in user space and in the kernel.
#[allow(unsafe_code)]
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    // The name, in parentheses, may have spaces.
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name")..].split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    // SAFETY: no pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Duration::from_millis((ticks(12) + ticks(13)) * 1_000 / u64::try_from(per_second).expect("100 or so"))
}

/// The most memory that a process had (`RssAnon`) since this was made.
pub struct Peak {
    bytes: Arc<AtomicUsize>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// At the beginning.
    pub before: usize,
}

impl Peak {
    pub fn watch(pid: u32) -> Self {
        let before = own_memory(pid);
        let (bytes, done) = (Arc::new(AtomicUsize::new(before)), Arc::new(AtomicBool::new(false)));
        let (most, end) = (Arc::clone(&bytes), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                most.fetch_max(own_memory(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Self { bytes, done, thread: Some(thread), before }
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Ends the watching; the most, and the growth since the beginning.
    pub fn end(mut self) -> (usize, usize) {
        self.stop();
        (self.bytes(), self.bytes().saturating_sub(self.before))
    }

    fn stop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The process may be gone when a test fails.
            let _ = thread.join();
        }
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Somebody else, who asks again and again on a connection of his own, while `attack` runs: it is told by the flag that it
/// is enough. Gives what `attack` gives, and the longest that he waited for an answer.
pub fn bystander<T>(addr: SocketAddr, attack: impl FnOnce() -> T) -> (T, Duration) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| {
            let mut conn = Conn::open(addr);
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let asked = Instant::now();
                conn.get("/channels/bystander").expect(200);
                longest = longest.max(asked.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            longest
        });
        let end = Flag(&done);
        let value = attack();
        drop(end);
        (value, asker.join().expect("he is served"))
    })
}

/// Set when dropped, whoever panics.
struct Flag<'a>(&'a AtomicBool);

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
