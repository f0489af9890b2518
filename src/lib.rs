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
}

pub mod runtime {
    pub mod settings;
}

pub mod edge {}
