//! What the runner tells a load to do, and what came of it: the JSON lines between the two.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::proc::Cpu;
use crate::stats::Latency;
use crate::transport::Transport;

/// How messages that belong together are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// As many requests or frames, written at once.
    #[default]
    Pipeline,
    /// One `POST` of NDJSON lines.
    Batch,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Order {
    /// Closed loop: so many together, to channels in turn, and the next when every reader has them.
    Groups {
        messages: u32,
        together: u32,
        #[serde(default)]
        by: By,
        /// To channels by chance instead of in turn.
        #[serde(default)]
        random: bool,
    },
    /// As fast as it goes, for so long: never more than `window` messages ahead of the slowest reader.
    Flood {
        ms: u64,
        window: u32,
        together: u32,
        #[serde(default)]
        by: By,
    },
    /// Open loop: at a fixed rate, whatever happens. Latency counts from the planned time.
    Pace {
        ms: u64,
        per_s: f64,
        #[serde(default)]
        random: bool,
    },
    /// Readers of raw WebSockets publish themselves: in each turn one of each channel, and the next when all have it.
    Speak { turns: u32 },
    /// No readers needed: so many connections publish, each to its own channel, one request after the other.
    Post {
        ms: u64,
        connections: usize,
        /// Messages in a request; 1: a plain publish.
        batch: u32,
    },
    /// Short pollers poll for so long, one request after the other, while so many messages a second are published.
    Poll { ms: u64, per_s: f64 },
    /// Every so manieth reader stops to read.
    Stall { part: usize },
    /// All read again; ends when all have what was published, or after `ms`.
    Flow { ms: u64 },
    /// Waits until the server has ended all readers, or `ms` are over.
    End { ms: u64 },
    /// All readers come back at once; ends when all are subscribed.
    Return {},
    /// Readers that the server ends come to the second server, with their cursor, when they were told to; ends when all
    /// are there, or after `ms`.
    Move { ms: u64 },
    /// Only counts what comes.
    Watch { ms: u64 },
}

impl Order {
    /// Messages one at a time.
    pub fn single(messages: u32) -> Self {
        Self::together(messages, 1, By::Pipeline)
    }

    pub fn together(messages: u32, together: u32, by: By) -> Self {
        Self::Groups { messages, together, by, random: false }
    }
}

/// Messages, requests and turns a second: beyond, a clock of nanoseconds ends.
const PER_S_MAX: f64 = 1e9;

impl Order {
    /// Why readers of this transport cannot carry it out, if they cannot.
    pub fn refusal(&self, transport: Transport, readers: usize) -> Option<String> {
        let name = transport.name();
        let needs_readers = !matches!(self, Self::Post { .. } | Self::Watch { .. });
        match self {
            _ if needs_readers && readers == 0 => {
                Some("there are no readers: only post and watch need none".into())
            }
            Self::Groups { .. } | Self::Flood { .. } | Self::Pace { .. } if transport == Transport::Short => {
                Some("short pollers poll only in a poll order".into())
            }
            Self::Poll { .. } if transport != Transport::Short => {
                Some(format!("{name} readers do not poll: --transport short"))
            }
            Self::Speak { .. } if transport != Transport::Ws => {
                Some(format!("{name} readers cannot speak: --transport ws"))
            }
            Self::Pace { per_s, .. } if !(*per_s > 0.0 && *per_s <= PER_S_MAX) => {
                Some(format!("per_s {per_s}: more than 0, at most {PER_S_MAX}"))
            }
            Self::Poll { per_s, .. } if !(0.0..=PER_S_MAX).contains(per_s) => {
                Some(format!("per_s {per_s}: from 0 to {PER_S_MAX}"))
            }
            Self::Groups { together: 0, .. } | Self::Flood { together: 0, .. } => {
                Some("together 0: at least 1".into())
            }
            Self::Flood { together, window, .. } if window < together => {
                Some(format!("window {window}: at least together, {together}"))
            }
            Self::Post { connections: 0, .. } => Some("connections 0: at least 1".into()),
            Self::Post { batch: 0, .. } => Some("batch 0: at least 1".into()),
            Self::Stall { part: 0 } => Some("part 0: at least 1".into()),
            _ => None,
        }
    }

    /// Whether the load publishes, by itself.
    pub fn publishes(&self) -> bool {
        matches!(self, Self::Groups { .. } | Self::Flood { .. } | Self::Pace { .. } | Self::Post { .. })
    }
}

/// A load says so when all its readers are subscribed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    pub readers: usize,
    pub ramp_s: f64,
    /// Handshakes that had to be tried again.
    pub retried: usize,
    pub client_cpu: Cpu,
    /// Anonymous memory of the load itself, for each reader.
    pub client_bytes: f64,
}

/// What came of an order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Published and, where the server answers, answered.
    pub messages: u32,
    pub deliveries: u64,
    /// Deliveries that should have been made and were not.
    pub lost: u64,
    /// Messages of an earlier order, told as lost there, that came after its end.
    #[serde(default)]
    pub stragglers: u64,
    /// Messages of another length than what was published.
    #[serde(default)]
    pub damaged: u64,
    /// Numbers that some reader saw jumped over.
    pub jumped: u64,
    pub repeated: u64,
    /// Messages that came after a later one.
    pub out_of_order: u64,
    pub gaps: u64,
    /// Readers that the server ended: with a word, and without.
    pub told: u64,
    pub cut: u64,
    /// Groups that had not arrived when patience ended.
    pub late_groups: u32,
    pub wall_ns: u64,
    pub latency: Latency,
    /// From `connect` to being subscribed, of readers that were opened meanwhile.
    pub waits: Latency,
    pub client_cpu: Cpu,
    /// Part of the time that the load's CPUs were busy with it.
    pub client_busy: f64,
    /// The load had no time left: what was measured may be the load.
    pub client_bound: bool,
    /// Reads that brought messages.
    pub reads: u64,
    /// Answers to polls or publishes, and those of them that were 304.
    pub answers: u64,
    pub unchanged: u64,
    pub heartbeats: u64,
    /// Of a move: readers that were ended, and that were subscribed again, in each tenth of a second.
    #[serde(default)]
    pub left: Vec<u32>,
    #[serde(default)]
    pub back: Vec<u32>,
    pub retried: u64,
    /// Readers that are open at the end.
    pub open: u64,
}

/// A load as busy as this may be what is measured.
pub const CLIENT_BUSY_MAX: f64 = 0.9;

impl Outcome {
    /// Why this outcome proves nothing, if it does not.
    pub fn fault(&self) -> Option<String> {
        let Self { lost, damaged, jumped, repeated, out_of_order, gaps, told, cut, .. } = *self;
        (self.faults() > 0).then(|| {
            format!(
                "lost {lost}, jumped {jumped}, repeated {repeated}, out of order {out_of_order}, damaged {damaged}, \
                 gaps {gaps}, readers ended with a word {told}, without {cut}"
            )
        })
    }

    /// Messages and readers that did not fare as promised.
    pub fn faults(&self) -> u64 {
        let Self { lost, damaged, jumped, repeated, out_of_order, gaps, told, cut, .. } = *self;
        lost.max(jumped) + damaged + repeated + out_of_order + gaps + told + cut
    }
}
