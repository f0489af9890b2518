//! All tests over real sockets, in one program: linked once. A file is a module; `tests/run` runs each by itself
//! (`cargo test --test black_box FILE::`).

// What the fuzz targets use instead of libfuzzer: `fuzzed::fuzz_target`.
extern crate self as libfuzzer_sys;

mod common;

mod access_log;
mod admin;
mod auth;
mod batch;
mod bodies;
mod chaos;
mod choice;
mod cli;
mod confine;
mod doctor;
mod drain;
mod expiry;
mod floods;
mod forwarded;
mod fuzzed;
mod guarantee;
mod handshakes;
mod hostile;
mod http;
mod idempotency;
mod limits;
mod log;
mod longpoll;
mod memory;
mod metrics;
mod names;
mod origins;
mod panic;
mod poll;
mod proxy;
mod proxy_protocol;
mod publish;
mod quotas;
mod readme;
mod reasons;
mod refusals;
mod renewal;
mod revocation;
mod slow;
mod slowloris;
mod sse;
mod start;
mod stopped;
mod storm;
mod subjects;
mod systemd;
mod takeover;
mod tickets;
mod tidy;
mod tls;
mod tls_wire;
mod trace;
mod tuning;
mod unix;
mod v1;
mod websocket;
