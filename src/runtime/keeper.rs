//! The keeper of a node: its main thread, once all serves. Waits for signals, for a process that takes its place, for
//! workers that end, and for the times at which the service manager is to be told.
//! Owns the order of a stop: readiness ends first, then connections are taken no more, then everybody is told.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::domain::home::WorkerIndex;

use super::host::{Signal, SignalFd};
use super::io::{Epoll, Events, Interest};
use super::mail::Mail;
use super::node::Node;
use super::notify::Supervisor;
use super::phase::Phase;
use super::report::Report;
use super::serve_error::{ServeError, io_error};
use super::server::Ended;
use super::takeover::Controls;

/// What is waited for.
const SIGNALS: u64 = 0;
const MAIN: u64 = 1;
const CONTROL: u64 = 2;

/// How often it is tried to get the name of a process that drains.
const NAME_PAUSE: Duration = Duration::from_millis(100);

/// How far a stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Serving,
    /// Nobody is to be sent here any more; whoever comes all the same until then is served.
    Leaving {
        until: Instant,
    },
    Draining,
}

/// The descriptors by which the keeper sees what happens: made before any worker starts, lest they fail later.
pub(super) struct Signs {
    signals: SignalFd,
    epoll: Epoll,
}

impl Signs {
    pub fn new() -> Result<Self, ServeError> {
        let signals = SignalFd::new().map_err(io_error("cannot make a signal descriptor"))?;
        let epoll = Epoll::new().map_err(io_error("cannot make an epoll set"))?;
        Ok(Self { signals, epoll })
    }

    /// Has other processes heard from now on, as far as the names are free.
    pub fn hear(&self, controls: &mut Controls) {
        controls.take_names(&self.epoll, CONTROL);
    }

    /// The higher of their numbers.
    pub fn last_fd(&self) -> RawFd {
        self.signals.as_raw_fd().max(self.epoll.as_raw_fd())
    }
}

pub(super) struct Keeper<'n, R> {
    node: &'n Arc<Node>,
    signs: &'n Signs,
    controls: Controls,
    supervisor: Supervisor,
    reload: R,
    course: Course,
}

impl<'n, R: FnMut(&Arc<Node>)> Keeper<'n, R> {
    pub fn new(
        node: &'n Arc<Node>,
        signs: &'n Signs,
        controls: Controls,
        supervisor: Supervisor,
        reload: R,
    ) -> Self {
        Self { node, signs, controls, supervisor, reload, course: Course::Serving }
    }

    /// Keeps the node until it has ended.
    ///
    /// # Errors
    /// A worker ended by itself, or the kernel refuses to wait.
    pub fn run(mut self) -> Result<Ended, ServeError> {
        let waiting = |error| ServeError::Io { what: "cannot wait for signals", error };
        let add = |fd: RawFd, token| self.signs.epoll.add(fd, token, Interest::Read);
        add(self.signs.signals.as_raw_fd(), SIGNALS)
            .and_then(|()| add(self.node.main.as_raw_fd(), MAIN))
            .map_err(waiting)?;
        let mut events = Events::with_capacity(8);
        loop {
            let has_names = self.controls.take_names(&self.signs.epoll, CONTROL);
            let patience = self.patience(has_names);
            self.signs.epoll.wait(&mut events, patience).map_err(waiting)?;
            let tokens: Vec<u64> = events.iter().map(|(token, _)| token).collect();
            for token in tokens {
                let ended = match token {
                    SIGNALS => self.on_signal(),
                    MAIN => self.on_worker()?,
                    _ => {
                        self.on_control();
                        None
                    }
                };
                if let Some(ended) = ended {
                    return Ok(ended);
                }
            }
            self.on_time(Instant::now());
        }
    }

    /// How long nothing is to be done if nothing happens. `None`: for ever.
    fn patience(&self, has_names: bool) -> Option<Duration> {
        let until = match self.course {
            Course::Leaving { until } => Some(until),
            Course::Serving | Course::Draining => None,
        };
        let now = Instant::now();
        let due = until.into_iter().chain(self.supervisor.due()).min();
        let due = due.map(|due| due.saturating_duration_since(now));
        due.into_iter().chain((!has_names).then_some(NAME_PAUSE)).min()
    }

    fn on_time(&mut self, now: Instant) {
        if matches!(self.course, Course::Leaving { until } if until <= now) {
            self.drain(None);
        }
        self.supervisor.on_time(self.node, now);
    }

    fn on_signal(&mut self) -> Option<Ended> {
        match (self.signs.signals.read(), self.course) {
            (Ok(Some(Signal::Terminate | Signal::Interrupt)), Course::Serving) => {
                self.leave(None);
                None
            }
            (Ok(Some(second @ (Signal::Terminate | Signal::Interrupt))), _) => {
                tracing::warn!("a second signal: stopping at once");
                Some(Ended::AtOnce(second))
            }
            (Ok(Some(Signal::HangUp)), _) => {
                let (reload, node) = (&mut self.reload, self.node);
                self.supervisor.around_reload(|| {
                    if let Some(access) = &node.access {
                        access.reopen();
                    }
                    reload(node);
                });
                None
            }
            (Ok(None) | Err(_), _) => None,
        }
    }

    /// A worker has closed its listeners, or has ended.
    fn on_worker(&mut self) -> Result<Option<Ended>, ServeError> {
        self.node.main.drain();
        let ended = self.node.ended.load(Ordering::Acquire);
        if self.course != Course::Draining {
            return if ended == 0 { Ok(None) } else { Err(ServeError::WorkerEnded) };
        }
        if self.node.listening.load(Ordering::Acquire) == 0 {
            self.controls.tell_closed();
        }
        Ok((ended == self.node.mailboxes.len()).then_some(Ended::Drained))
    }

    fn on_control(&mut self) {
        if let Some(listeners) = self.controls.hear(&self.signs.epoll, CONTROL) {
            match self.course {
                Course::Serving => self.leave(Some(listeners)),
                Course::Leaving { .. } => self.drain(Some(listeners)),
                Course::Draining => {}
            }
        }
    }

    /// Begins to stop. `successor`: how many listeners of another process serve each address already: nobody need be
    /// waited for then.
    fn leave(&mut self, successor: Option<u32>) {
        self.node.progress.reach(Phase::Draining);
        let drain = &self.node.settings.drain;
        let delay = if successor.is_some() { Duration::ZERO } else { drain.delay };
        tracing::info!(
            delay_seconds = delay.as_secs_f64(),
            window_seconds = drain.window.as_secs_f64(),
            takeover = successor.is_some(),
            "draining"
        );
        self.supervisor.on_stop(delay + drain.window);
        if delay.is_zero() {
            self.drain(successor);
        } else {
            self.course = Course::Leaving { until: Instant::now() + delay };
        }
    }

    /// No connection is taken any more, and everybody is told.
    fn drain(&mut self, successor: Option<u32>) {
        self.course = Course::Draining;
        self.controls.close();
        if successor.is_some() {
            self.node.reports.send(Report::HandOver);
        }
        for worker in 0..self.node.mailboxes.len() {
            self.node.post(worker as WorkerIndex, Mail::Drain { successor });
        }
    }
}
