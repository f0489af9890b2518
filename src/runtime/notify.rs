//! What the service manager is told (sd_notify(3)): that the node serves, loads its configuration anew, stops, and is
//! alive. Nothing where there is none (no NOTIFY_SOCKET), and nobody is asked anything then.

use std::fmt::Write;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::node::Node;
use super::phase::Phase;
use super::pulse::Pulse;

/// How often it is told how many connections there are: while serving, and while they are told to leave.
const STATUS_SERVING: Duration = Duration::from_secs(10);
const STATUS_DRAINING: Duration = Duration::from_secs(1);
/// What a stop may take beyond its delay and window: answers on their way, and those who do not listen.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Supervisor {
    is_there: bool,
    /// The status that it was told last, and when it may want another.
    status: String,
    status_due: Instant,
    watchdog: Option<Watchdog>,
}

/// It restarts the service when it hears nothing for twice the interval.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    due: Instant,
    pulse: Pulse,
    /// It was logged that a worker does not answer.
    is_worried: bool,
}

impl Supervisor {
    /// Looks for it in the environment.
    pub fn find(workers: usize) -> Self {
        let (now, mut usec) = (Instant::now(), 0);
        let watchdog = (sd_notify::watchdog_enabled(false, &mut usec) && usec > 0).then(|| Watchdog {
            interval: Duration::from_micros(usec) / 2,
            due: now,
            pulse: Pulse::new(workers),
            is_worried: false,
        });
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self { is_there, status: String::new(), status_due: now, watchdog }
    }

    /// Everything listens.
    pub fn on_ready(&mut self, node: &Node) {
        self.status = status(node);
        self.tell(&[NotifyState::Ready, NotifyState::Status(&self.status)]);
        self.status_due = Instant::now() + STATUS_SERVING;
    }

    /// The configuration is loaded anew by `reload`.
    pub fn around_reload(&self, reload: impl FnOnce()) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.tell(&[NotifyState::Reloading, now]);
        }
        reload();
        self.tell(&[NotifyState::Ready]);
    }

    /// A stop has begun, which takes so long by the configuration: no need to have it repeated in the unit.
    pub fn on_stop(&mut self, takes: Duration) {
        let mut extend = String::from("EXTEND_TIMEOUT_USEC=");
        let _ = write!(extend, "{}", (takes + STOP_GRACE).as_micros());
        self.tell(&[NotifyState::Stopping, NotifyState::Custom(&extend)]);
        self.status_due = Instant::now();
    }

    /// When [`on_time`](Self::on_time) has something to say.
    pub fn due(&self) -> Option<Instant> {
        let status = self.is_there.then_some(self.status_due);
        status.into_iter().chain(self.watchdog.as_ref().map(|watchdog| watchdog.due)).min()
    }

    pub fn on_time(&mut self, node: &Node, now: Instant) {
        if self.is_there && self.status_due <= now {
            let draining = node.progress.phase() >= Phase::Draining;
            self.status_due = now + if draining { STATUS_DRAINING } else { STATUS_SERVING };
            let status = status(node);
            if status != self.status {
                self.tell(&[NotifyState::Status(&status)]);
                self.status = status;
            }
        }
        if self.watchdog.as_mut().is_some_and(|watchdog| watchdog.is_alive(node, now)) {
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.is_there
            && let Err(error) = sd_notify::notify(false, states)
        {
            tracing::warn!(%error, "the service manager cannot be told (NOTIFY_SOCKET)");
        }
    }
}

impl Watchdog {
    /// Whether it is time to say so, and every worker has answered since the last time.
    fn is_alive(&mut self, node: &Node, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        let silent = self.pulse.silent();
        if silent.is_empty() {
            self.is_worried = false;
            self.due = now + self.interval;
            self.pulse.ask(node);
            return true;
        }
        // Looked at again soon: one that was late is no reason to be late with the next word.
        self.due = now + self.interval / 8;
        if !std::mem::replace(&mut self.is_worried, true) {
            tracing::error!(workers = ?silent, "workers do not answer; the service manager's watchdog is not told");
        }
        false
    }
}

fn status(node: &Node) -> String {
    let connections = node.places.taken();
    match node.progress.phase() {
        Phase::Starting => "Starting".into(),
        Phase::Serving => format!("Serving {connections} connections"),
        Phase::Draining => format!("Draining: {connections} connections left"),
        Phase::Stopped => "Stopped".into(),
    }
}
