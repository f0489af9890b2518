//! The way to stderr: text that waits, of a bounded size, and the thread that writes it. A pipe that is slow, or that nobody
//! reads, holds up this thread alone.
//! Owns the bound, and the count of lines that did not fit, which the log tells once there is room again. Never makes text:
//! `edge::log` does.

use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::host;

/// Text that waits to be written; as much again may be on its way.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// How long the end of the process waits for its last lines to be written.
const PATIENCE: Duration = Duration::from_secs(2);

/// That of the process, once it is started.
static STDERR: OnceLock<Queue> = OnceLock::new();

/// Starts the thread that writes. Whatever is said before, or where there can be no thread, is written where it arises.
/// Signals are blocked from then on, here and in the thread: it is the keeper that takes them.
pub fn start() {
    let is_ready = STDERR.get().is_none() && host::block_signals().is_ok();
    if is_ready && STDERR.set(Queue::default()).is_ok() {
        let thread = std::thread::Builder::new().name("log".into());
        if thread.spawn(|| queue().map(|queue| queue.run(&mut io::stderr(), &tell_dropped))).is_err()
            && let Some(queue) = queue()
        {
            queue.lock().is_direct = true;
        }
    }
}

/// Says whole lines. Never waits.
pub fn say(lines: &[u8]) {
    match queue() {
        Some(queue) => queue.push(lines),
        None => drop(io::stderr().write_all(lines)),
    }
}

/// Waits until all that was said is written, but not for long: a pipe that nobody reads is no reason not to end.
pub fn flush() {
    if let Some(queue) = queue() {
        queue.flush(PATIENCE);
    }
}

/// Says what a thread panicked for, as the standard library would, and without waiting.
pub fn say_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        let mut text = format!("\nthread '{}' {panic}\n", thread.name().unwrap_or("<unnamed>"));
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            text.push_str(&format!("stack backtrace:\n{backtrace}"));
        }
        say(text.as_bytes());
    }));
}

fn queue() -> Option<&'static Queue> {
    STDERR.get()
}

fn tell_dropped(lines: u64) {
    tracing::warn!(lines, "lines of the log were dropped: stderr was not read, or not fast enough");
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// There is text to write.
    more: Condvar,
    /// All of it is written.
    written: Condvar,
}

#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    /// Lines that are missing, and of which nothing says so yet.
    dropped: u64,
    /// Those of which `text` says so.
    telling: u64,
    /// The thread is in the middle of a write.
    is_writing: bool,
    /// There is no thread.
    is_direct: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Text is appended whole: what a panic leaves is sound.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, lines: &[u8]) {
        let mut waiting = self.lock();
        if waiting.is_direct {
            let _ = io::stderr().write_all(lines);
        } else if waiting.text.len() + lines.len() > WAITING_BYTES_MAX {
            waiting.dropped += count(lines);
        } else {
            waiting.text.extend_from_slice(lines);
            self.more.notify_one();
        }
    }

    /// Writes what is pushed, for ever. `tell` says how many lines are missing.
    fn run(&self, out: &mut dyn Write, tell: &dyn Fn(u64)) {
        let mut text = Vec::new();
        loop {
            self.write_next(&mut text, out, tell);
        }
    }

    fn write_next(&self, text: &mut Vec<u8>, out: &mut dyn Write, tell: &dyn Fn(u64)) {
        let mut waiting = self.lock();
        while waiting.text.is_empty() {
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut waiting.text, text);
        waiting.is_writing = true;
        let told = std::mem::take(&mut waiting.telling);
        // They came behind this text, and there is room for a line now.
        let dropped = std::mem::take(&mut waiting.dropped);
        waiting.telling = dropped;
        drop(waiting);
        if dropped > 0 {
            tell(dropped);
        }
        let is_written = out.write_all(text).is_ok();
        let mut waiting = self.lock();
        waiting.is_writing = false;
        if !is_written {
            waiting.dropped += count(text) + told;
        }
        text.clear();
        if waiting.text.is_empty() {
            self.written.notify_all();
        }
    }

    fn flush(&self, patience: Duration) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.text.is_empty();
        let waiting = self.lock();
        if !waiting.is_direct {
            drop(self.written.wait_timeout_while(waiting, patience, is_busy));
        }
    }
}

fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_does_not_fit_is_dropped_counted_and_told() {
        let queue = Queue::default();
        let line = [b"x".repeat(1_023), b"\n".to_vec()].concat();
        for _ in 0..WAITING_BYTES_MAX / 1_024 + 3 {
            queue.push(&line);
        }
        let (mut out, told) = (Vec::new(), Cell::new(0));
        queue.write_next(&mut Vec::new(), &mut out, &|lines| {
            told.set(lines);
            // There is room for it at once.
            queue.push(b"told\n");
        });
        assert_eq!((out.len(), told.get()), (WAITING_BYTES_MAX, 3));
        queue.write_next(&mut Vec::new(), &mut out, &|_| unreachable!("nothing is missing any more"));
        assert!(out.ends_with(b"\ntold\n"));
        queue.flush(Duration::from_secs(9));
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_too_and_nobody_waits_for_ever() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let queue = Queue::default();
        queue.push(b"one\ntwo\n");
        queue.write_next(&mut Vec::new(), &mut Broken, &|_| unreachable!("nothing is missing yet"));
        queue.push(b"three\n");
        queue.flush(Duration::from_millis(1));
        let told = Cell::new(0);
        let tell = |lines| {
            told.set(lines);
            queue.push(b"told\n");
        };
        queue.write_next(&mut Vec::new(), &mut Broken, &tell);
        assert_eq!(told.get(), 2);
        // That did not come through either: nor did what it told of, and the line itself.
        queue.write_next(&mut Vec::new(), &mut Broken, &tell);
        assert_eq!(told.get(), 1, "`three`");
        queue.write_next(&mut Vec::new(), &mut Vec::new(), &tell);
        // What the one that came through told of is not told again.
        assert_eq!(told.get(), 2 + 1);
    }
}
