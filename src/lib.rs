//! Pushline: one channel, one URL, four transports, one cursor.

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
        pub mod target;
    }
}

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
    pub mod files;
    pub mod host;
    pub mod io;
    pub mod listen;
    pub mod mailbox;
    pub mod probe;
    pub mod sendring;
    pub mod settings;
    pub mod slots;
    pub mod wheel;
}

pub mod edge {
    pub mod cli;
    pub mod config;
    pub mod log;
    pub mod start;
}
