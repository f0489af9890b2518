//! Pushline: one channel, one URL, four transports, one cursor.

pub mod proto {
    pub mod client_frame;
    pub mod envelope;
    pub mod json;
    mod members;
    pub mod payload;
    pub mod publish;
    pub mod refusal;
    pub mod sse;
    pub mod ws {
        pub mod close;
        pub mod frame;
        pub mod handshake;
        pub mod reader;
        pub mod utf8;
    }
}

pub mod domain {
    pub mod channel;
}

pub mod runtime {
    pub mod settings;
}

pub mod edge {}
