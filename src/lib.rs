//! Pushline: one channel, one URL, four transports, one cursor.
//!
//! Four layers; imports point down only (`tests/tidy.rs`): `edge` is policy and the outside world, `runtime` threads, rings
//! and time, `domain` what a channel server is, `proto` bytes to values and back; the last two know no I/O, clocks, each other.
//!
//! A message: `edge::conn` (reads the POST) -> `edge::route` -> `edge::publish` -> `runtime::worker` (-> `mailbox`) ->
//! `domain::home`, `domain::history` (its place; unread: on a `domain::shelf`) -> `domain::feed`, `domain::lane` (framed once,
//! by `runtime::framing`) -> `runtime::fanout` -> `runtime::sendring`. A connection: `runtime::server` -> `runtime::accept` ->
//! `edge::site` -> `edge::opening` (a stream whose request is there, at once), else `edge::conn` (a task reads requests with
//! `proto::http`) -> `edge::route` (which handler) -> `edge::stream`, `edge::websocket` or `edge::read` -> `runtime::conns`
//! (held: an entry without a task) -> `runtime::holder` (its input), `runtime::sweep` (its time) -> `runtime::close` (why it
//! ended). By TLS it begins with `runtime::handshakes`, and its bytes go through `runtime::tls` on their way in and out.
//!
//! Absent by design: a task, timer or buffer for a connection that waits; state of channels or connections that workers
//! share; a queue for each reader; persistence.

pub mod proto {
    pub mod http {
        pub mod body;
        pub mod date;
        pub mod error;
        pub mod fields;
        mod framing;
        pub mod head;
        pub mod host;
        pub mod problem;
        pub mod request;
        pub mod response;
        pub mod shown;
        pub mod target;
    }
    pub mod client_frame;
    pub mod envelope;
    pub mod forwarded;
    pub mod json;
    mod members;
    pub mod payload;
    pub mod proxy;
    pub mod publish;
    pub mod refusal;
    pub mod sse;
    pub mod x509;
    pub mod ws {
        pub mod close;
        pub mod frame;
        pub mod handshake;
        pub mod reader;
        pub mod utf8;
    }
}

pub mod domain {
    pub mod ages;
    pub mod auth;
    pub mod channel;
    pub mod channels;
    pub mod cursor;
    pub mod feed;
    pub mod history;
    pub mod home;
    pub mod idempotency;
    pub mod kept;
    pub mod lane;
    pub mod message;
    pub mod page;
    pub mod rests;
    pub mod shelf;
}

pub mod runtime {
    pub mod accept;
    pub mod access;
    pub mod access_file;
    pub mod access_line;
    pub mod activation;
    pub mod addresses;
    pub mod admission;
    mod ahead;
    pub mod answers;
    pub mod bell;
    pub mod budget;
    pub mod caller;
    pub mod capacity;
    pub mod catchup;
    pub mod clock;
    pub mod close;
    pub mod conns;
    pub mod ending;
    pub mod entry;
    pub mod fanout;
    pub mod feeds;
    pub mod files;
    pub mod framing;
    pub mod handshakes;
    pub mod holder;
    pub mod host;
    pub mod identity;
    mod introduction;
    pub mod io;
    pub mod keeper;
    mod ledger;
    pub mod line;
    pub mod listen;
    pub mod mail;
    pub mod mailbox;
    pub mod memory;
    pub mod node;
    pub mod noted;
    pub mod notify;
    pub mod peer;
    pub mod phase;
    pub mod poll;
    pub mod post;
    pub mod probe;
    pub mod publishing;
    pub mod pulse;
    pub mod quotas;
    pub mod report;
    pub mod requests;
    pub mod running;
    pub mod sendring;
    pub mod serve_error;
    pub mod server;
    pub mod settings;
    pub mod share;
    pub mod shortages;
    mod single;
    pub mod slots;
    pub mod state;
    pub mod stats;
    pub mod stderr;
    pub mod stream;
    mod subs;
    mod succession;
    pub mod sweep;
    pub mod takeover;
    pub mod tally;
    pub mod tasks;
    pub mod tcp;
    mod threads;
    pub mod tls;
    pub mod tls_keys;
    pub mod tokens;
    pub mod trace;
    pub mod trace_line;
    pub mod turns;
    pub mod unix;
    pub mod wheel;
    pub mod wire;
    pub mod worker;
}

pub mod edge {
    pub mod admin;
    pub mod answer;
    pub mod api_key;
    pub mod ask;
    pub mod at_once;
    pub mod auth;
    pub mod certificates;
    pub mod channels;
    pub mod cli;
    pub mod config;
    pub mod conn;
    pub mod doctor;
    pub mod doorman;
    pub mod forwarding;
    pub mod frames;
    pub mod identity;
    pub mod lab;
    pub mod labels;
    pub mod log;
    pub mod machine;
    pub mod opening;
    pub mod origin;
    mod permit;
    pub mod publish;
    pub mod read;
    pub mod renewal;
    pub mod revoked;
    pub mod route;
    pub mod rules;
    pub mod site;
    pub mod start;
    pub mod stream;
    pub mod tickets;
    pub mod turnstile;
    pub mod watch;
    pub mod websocket;
}
