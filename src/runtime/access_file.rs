//! The thread that writes the access log: it owns the file, opens it again when told to, and writes many lines at once.
//! A disk or a pipe that is slow, or full, holds up this thread alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, select};

use super::access::{AccessLog, Order, Outlet, channel};
use super::access_line;
use super::clock::Clock;
use super::identity::Secret;
use super::settings::{Access, AccessTo, LogFormat};

/// Lines are collected for so long before they are written. Nobody who tells one has to wake a thread meanwhile.
const COLLECT: Duration = Duration::from_millis(20);
/// Text that is collected before it is written.
const TEXT_BYTES_MAX: usize = 256 * 1024;

/// Opens the log, and starts the thread that writes it. `None`: it is off.
///
/// # Errors
/// The file cannot be opened, or the thread not started.
pub fn start(settings: &Access, clock: Clock, secret: Secret) -> io::Result<Option<AccessLog>> {
    let to = match &settings.to {
        AccessTo::Off => return Ok(None),
        AccessTo::Stdout => To::Stdout,
        AccessTo::Stderr => To::Stderr,
        AccessTo::File(path) => To::File { file: open(path)?, path: path.clone() },
    };
    let (log, outlet) = channel();
    let writer = Writer {
        outlet,
        to,
        format: settings.format,
        clock,
        secret,
        text: Vec::new(),
        lines: 0,
        dropped: 0,
        telling: 0,
        is_broken: false,
    };
    std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run())?;
    Ok(Some(log))
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // Subjects and addresses are nobody else's business. A named pipe that nobody reads is an error, not a wait; regular
    // files know no difference.
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK).open(path)
}

enum To {
    Stdout,
    Stderr,
    File { file: File, path: PathBuf },
}

struct Writer {
    outlet: Outlet,
    to: To,
    format: LogFormat,
    clock: Clock,
    secret: Secret,
    text: Vec<u8>,
    /// In `text`.
    lines: u64,
    /// Lines that are missing, and of which nothing says so yet.
    dropped: u64,
    /// Those of which `text` says so.
    telling: u64,
    /// The last write failed; that was said.
    is_broken: bool,
}

enum Next {
    Lines,
    Order(Order),
    /// All that could tell are gone.
    Over,
}

impl Writer {
    fn run(mut self) {
        loop {
            match self.wait() {
                Next::Lines => {
                    // What comes in the meantime is written with it.
                    match self.outlet.orders.recv_timeout(COLLECT) {
                        Ok(order) => {
                            if !self.obey(order) {
                                return;
                            }
                        }
                        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.write_all(),
                    }
                }
                Next::Order(order) => {
                    if !self.obey(order) {
                        return;
                    }
                }
                Next::Over => return self.write_all(),
            }
        }
    }

    fn wait(&mut self) -> Next {
        select! {
            recv(self.outlet.orders) -> order => order.map_or(Next::Over, Next::Order),
            recv(self.outlet.lines) -> line => match line {
                Ok(line) => {
                    self.add(&line);
                    Next::Lines
                }
                Err(_) => Next::Over,
            },
        }
    }

    /// False: it was the last.
    fn obey(&mut self, order: Order) -> bool {
        self.write_all();
        match order {
            Order::Reopen => {
                self.reopen();
                true
            }
            Order::Stop(written) => {
                let _ = written.send(());
                false
            }
        }
    }

    fn reopen(&mut self) {
        let To::File { file, path } = &mut self.to else { return };
        match open(path) {
            Ok(new) => *file = new,
            // Goes on with the old one: better in a file that was moved than nowhere.
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the access log cannot be opened again; it goes on in the old file");
            }
        }
    }

    fn add(&mut self, line: &super::access::Line) {
        access_line::write(&mut self.text, line, self.format, &self.secret);
        self.lines += 1;
    }

    /// Writes what is there now.
    fn write_all(&mut self) {
        // Not what comes while it writes, or an order would wait for ever behind a busy node.
        for _ in 0..self.outlet.lines.len() {
            let Ok(line) = self.outlet.lines.try_recv() else { break };
            self.add(&line);
            if self.text.len() >= TEXT_BYTES_MAX {
                self.write_text();
            }
        }
        self.dropped += self.outlet.dropped.swap(0, Ordering::Relaxed);
        if self.dropped > 0 {
            access_line::write_dropped(&mut self.text, self.clock.now_ms(), self.dropped, self.format);
            self.telling += std::mem::take(&mut self.dropped);
        }
        self.write_text();
    }

    fn write_text(&mut self) {
        if self.text.is_empty() {
            return;
        }
        let written = match &mut self.to {
            To::Stdout => io::stdout().lock().write_all(&self.text),
            To::Stderr => io::stderr().lock().write_all(&self.text),
            To::File { file, .. } => {
                // The last write may have ended in the middle of a line.
                let torn = if self.is_broken { file.write_all(b"\n") } else { Ok(()) };
                torn.and_then(|()| file.write_all(&self.text))
            }
        };
        self.text.clear();
        let (lines, telling) = (std::mem::take(&mut self.lines), std::mem::take(&mut self.telling));
        match written {
            Ok(()) => {
                if std::mem::take(&mut self.is_broken) {
                    tracing::info!("the access log is written again");
                }
            }
            Err(error) => {
                self.dropped += lines + telling;
                if !std::mem::replace(&mut self.is_broken, true) {
                    tracing::warn!(%error, "the access log cannot be written; lines are dropped and counted until it can");
                }
            }
        }
    }
}
