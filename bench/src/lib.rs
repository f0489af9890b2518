//! The load laboratory. Four programs, one library:
//!
//! - `floor`: the least any server can do. What Pushline is measured against.
//! - `load`: N readers and those who publish; counts every message. Speaks to any server.
//! - `waiting`: a ring of polls beside the epoll set.
//! - `pushline-bench` (`bench/run`): starts servers and their loads, reads CPU and memory from `/proc`,
//!   alternates floor, Pushline and peers round by round, and writes `bench/RESULTS.md`.
//!
//! The way of a round: `scenario` -> `lab` (a server and its load, as processes) -> `load`: `session` publishes, the
//! readers of each `swarm` thread count on the `board` -> `proc` before and after -> `stats` -> `report`.

pub mod api;
pub mod board;
pub mod count;
pub mod http;
pub mod lab;
pub mod memory;
pub mod message;
pub mod net;
pub mod order;
pub mod plot;
pub mod poster;
pub mod proc;
pub mod publisher;
pub mod reader;
pub mod refusal;
pub mod report;
pub mod rounds;
pub mod scale;
pub mod script;
pub mod server;
pub mod session;
pub mod sources;
pub mod stats;
pub mod swarm;
pub mod template;
pub mod tls;
pub mod transport;
pub mod wait;
pub mod ws;

/// What is measured, and against which bar. Each starts its stands, runs its rounds, and returns a `Finding`.
pub mod scenario {
    pub mod burst;
    pub mod capacity;
    pub mod drain;
    pub mod fanout;
    pub mod growth;
    pub mod idle;
    pub mod poll;
    pub mod proof;
    pub mod publish;
    pub mod rooms;
    pub mod slow;
    pub mod storm;
    pub mod tls;
    pub mod waiting;

    pub use crate::rounds::Series;
}
