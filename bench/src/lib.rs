//! The load laboratory. Three programs, one library:
//!
//! - `floor`: the least any server can do. What Pushline is measured against.
//! - `load`: N readers and one publisher; counts every message. Speaks to any server.
//! - `pushline-bench` (`bench/run`): starts a server and its load, reads the server's CPU and memory
//!   from `/proc`, alternates floor and Pushline round by round, and writes `bench/RESULTS.md`.
//!
//! The way of a round: `scenario` -> `lab` (a server and its load, as processes) -> `load` publishes, its
//! `reader` threads count -> `proc` before and after -> `stats` -> `report`.

pub mod http;
pub mod lab;
pub mod net;
pub mod plot;
pub mod proc;
pub mod publisher;
pub mod reader;
pub mod report;
pub mod scenario;
pub mod stats;
pub mod transport;
pub mod ws;
