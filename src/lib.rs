//! Pushline: one channel, one URL, four transports, one cursor.

pub mod proto {}

pub mod domain {
    pub mod channel;
    pub mod cursor;
    pub mod feed;
    pub mod history;
    pub mod home;
    pub mod idempotency;
    pub mod message;
}

pub mod runtime {
    pub mod settings;
}

pub mod edge {
    pub mod cli;
    pub mod config;
    pub mod log;
    pub mod start;
}
