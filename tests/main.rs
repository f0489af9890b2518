//! All tests over real sockets, in one program: linked once. A file is a module; `tests/run` runs each by itself
//! (`cargo test --test black_box FILE::`).

mod common;

mod access_log;
mod admin;
mod auth;
mod batch;
mod chaos;
mod choice;
mod cli;
mod confine;
mod doctor;
mod drain;
mod expiry;
mod guarantee;
mod hostile;
mod http;
mod idempotency;
mod limits;
mod longpoll;
mod metrics;
mod names;
mod origins;
mod panic;
mod poll;
mod proxy;
mod publish;
mod readme;
mod reasons;
mod renewal;
mod revocation;
mod slow;
mod sse;
mod start;
mod stopped;
mod systemd;
mod takeover;
mod tickets;
mod tidy;
mod tls;
mod trace;
mod tuning;
mod v1;
mod websocket;
