//! TLS of one connection (RFC 8446, RFC 5246): bytes of the wire to plain ones and back. rustls does it, driven without
//! I/O by its unbuffered interface, so that a connection can be held like any other: the buffered one keeps 4 KiB to read
//! into, and two queues, for each connection.
//! Owns a connection's keys, and the beginning of a record that has not come whole. Never sockets or clocks.

use std::fmt;
use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};

/// Of records, or of handshake messages, that have not come whole: more than any client of ours needs (a record has at
/// most 16,645 bytes, a usual first message less than 2,000).
pub const PARTIAL_BYTES_MAX: usize = 32 * 1024;
/// Plain bytes in one record at most (RFC 8446 §5.1).
pub const RECORD_BYTES_MAX: usize = 16 * 1024;
/// What a record has beside its plain bytes: header, nonce (TLS 1.2), type (TLS 1.3), tag.
const RECORD_OVERHEAD_BYTES: usize = 5 + 8 + 1 + 16;
/// An alert in a record.
const CLOSE_BYTES: usize = 2 + RECORD_OVERHEAD_BYTES;

/// What a connection's keys and state take once its handshake is done (`bench/run tls`).
pub const SESSION_BYTES: usize = 2_560;

/// One connection's TLS.
pub struct Tls {
    conn: UnbufferedServerConnection,
    /// Empty, without memory of its own, but in the middle of a record.
    partial: Vec<u8>,
    state: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Handshaking,
    Open,
    /// rustls is not asked again: what it kept points into bytes that are gone.
    Failed,
}

/// What bytes of the wire came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The handshake ended with them.
    pub established: bool,
    /// The client says that nothing more comes.
    pub closed: bool,
}

/// Why a connection cannot go on. What there is to say to the client of it was appended to what is to be sent.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Protocol(#[from] rustls::Error),
    #[error("more than {PARTIAL_BYTES_MAX} bytes without a whole record or handshake message")]
    TooLong,
    /// A connection's key takes no more records (TLS 1.2 alone: TLS 1.3 renews it), or it had failed before.
    #[error("nothing more can be encrypted for it")]
    Exhausted,
}

impl Tls {
    /// # Errors
    /// The configuration is of no use to rustls.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        let conn = UnbufferedServerConnection::new(config)?;
        Ok(Self { conn, partial: Vec::new(), state: Progress::Handshaking })
    }

    /// Memory beside [`SESSION_BYTES`].
    pub fn kept_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// How much is kept of what has come: it is to stand before what is read next.
    pub fn partial_bytes(&self) -> usize {
        self.partial.len()
    }

    /// Puts what is kept at the front of `room`. [`Tls::receive`] must follow.
    pub fn take_partial(&mut self, room: &mut [u8]) {
        room[..self.partial.len()].copy_from_slice(&self.partial);
        self.partial = Vec::new();
    }

    /// The same, as a buffer to read into.
    pub fn lend_partial(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }

    /// Takes it back when nothing was read after all.
    pub fn keep_partial(&mut self, partial: Vec<u8>) {
        self.partial = partial;
    }

    /// Decrypts `wire`: what was kept, and what was read behind it. Appends plain bytes to `plain`, and what
    /// is to be sent to `out`. A record's beginning is kept.
    ///
    /// # Errors
    /// [`TlsError`]: the connection is over once `out` is sent. What stands in `plain` came before that.
    pub fn receive(
        &mut self,
        wire: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Received, TlsError> {
        if self.state == Progress::Failed {
            return Err(TlsError::Exhausted);
        }
        let received = self.receive_all(wire, plain, out);
        if received.is_err() {
            self.state = Progress::Failed;
        }
        received
    }

    fn receive_all(
        &mut self,
        wire: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Received, TlsError> {
        let (mut from, mut closed) = (0, false);
        let before = self.state;
        loop {
            let UnbufferedStatus { discard, state } = self.conn.process_tls_records(&mut wire[from..]);
            let mut used = discard;
            let goes_on = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        used += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(encode)) => append(encode, out),
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    closed = true;
                    true
                }
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.state = Progress::Open;
                    false
                }
                // More bytes are needed, or none will come. (Early data is not offered, so none is given.)
                Ok(_) => false,
                Err(error) => {
                    self.append_alerts(&mut wire[from + used..], out);
                    return Err(error.into());
                }
            };
            from += used;
            if !goes_on {
                break;
            }
        }
        let rest = if closed { &[] } else { &wire[from..] };
        if rest.len() > PARTIAL_BYTES_MAX {
            return Err(TlsError::TooLong);
        }
        self.partial = rest.to_vec();
        Ok(Received { established: self.state != before, closed })
    }

    /// What rustls says to a client whose connection has failed: it stands before anything that was not read.
    fn append_alerts(&mut self, rest: &mut [u8], out: &mut Vec<u8>) {
        while self.conn.wants_write() {
            let Ok(ConnectionState::EncodeTlsData(encode)) = self.conn.process_tls_records(rest).state else {
                return;
            };
            if !append(encode, out) {
                return;
            }
        }
    }

    /// Encrypts all of `plain`, and appends it to `out`, behind what rustls itself has to say (a renewed key).
    ///
    /// # Errors
    /// [`TlsError::Exhausted`]: nothing more can be sent.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        let records = plain.len().div_ceil(RECORD_BYTES_MAX);
        self.write(plain.len() + records * RECORD_OVERHEAD_BYTES, out, |traffic, room| {
            traffic.encrypt(plain, room)
        })
    }

    /// Appends to `out` that nothing more comes from here (`close_notify`); nothing the second time, or before the
    /// handshake has ended.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if self.state == Progress::Open {
            let start = out.len();
            let told = self.write(CLOSE_BYTES, out, |traffic, room| traffic.queue_close_notify(room));
            if told.is_err() {
                out.truncate(start);
            }
        }
    }

    /// Has `write` put so many bytes behind `out`, or as many as it then says.
    fn write(
        &mut self,
        mut room_bytes: usize,
        out: &mut Vec<u8>,
        write: impl Fn(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), TlsError> {
        if self.state != Progress::Open {
            return Err(TlsError::Exhausted);
        }
        // What has come of a record stays where it is: rustls may know its places.
        let mut partial = std::mem::take(&mut self.partial);
        let written = loop {
            match self.conn.process_tls_records(&mut partial).state {
                Ok(ConnectionState::EncodeTlsData(encode)) => {
                    if !append(encode, out) {
                        break Err(TlsError::Exhausted);
                    }
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(ConnectionState::PeerClosed) => {}
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let start = out.len();
                    out.resize(start + room_bytes, 0);
                    match write(&mut traffic, &mut out[start..]) {
                        Ok(bytes) => {
                            out.truncate(start + bytes);
                            break Ok(());
                        }
                        Err(EncryptError::InsufficientSize(size)) if size.required_size > room_bytes => {
                            out.truncate(start);
                            room_bytes = size.required_size;
                        }
                        Err(_) => {
                            out.truncate(start);
                            break Err(TlsError::Exhausted);
                        }
                    }
                }
                // It failed before, or its handshake has not ended.
                Ok(_) | Err(_) => break Err(TlsError::Exhausted),
            }
        };
        self.partial = partial;
        if written.is_err() {
            self.state = Progress::Failed;
        }
        written
    }

    /// Whether the client came back with what it was given by an earlier handshake.
    pub fn is_resumed(&self) -> bool {
        self.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Of the protocol, for an operator.
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.conn.protocol_version()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partial, state, .. } = self;
        f.debug_struct("Tls")
            .field("partial_bytes", &partial.len())
            .field("state", state)
            .finish_non_exhaustive()
    }
}

/// Appends what rustls itself has to say; whether it did.
fn append(mut encode: EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut bytes = 0;
    loop {
        out.resize(start + bytes, 0);
        match encode.encode(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return true;
            }
            Err(EncodeError::InsufficientSize(size)) if size.required_size > bytes => {
                bytes = size.required_size;
            }
            Err(_) => {
                out.truncate(start);
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

    use super::super::tls_keys;
    use super::*;

    static IDENTITY: LazyLock<(String, String)> = LazyLock::new(|| {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    });

    /// Both halves of a connection, and what each has for the other.
    struct Pair {
        server: Tls,
        client: ClientConnection,
        heard: Vec<u8>,
        to_client: Vec<u8>,
        closed: bool,
    }

    impl Pair {
        fn new(version: &'static SupportedProtocolVersion) -> Self {
            let certificate = CertificateDer::from_pem_slice(IDENTITY.0.as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(IDENTITY.1.as_bytes()).expect("PEM");
            let config = ServerConfig::builder_with_provider(Arc::new(tls_keys::provider()))
                .with_protocol_versions(&[&TLS12, &TLS13])
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![certificate.clone()], key)
                .expect("a key");
            let mut roots = RootCertStore::empty();
            roots.add(certificate).expect("a certificate");
            // rustls's own keys at the other end: the small ones must mean the same.
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let client = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .expect("a version")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let name = ServerName::try_from("localhost").expect("a name");
            Self {
                server: Tls::new(Arc::new(config)).expect("a configuration"),
                client: ClientConnection::new(Arc::new(client), name).expect("a configuration"),
                heard: Vec::new(),
                to_client: Vec::new(),
                closed: false,
            }
        }

        /// Gives the server bytes as the holder does.
        fn feed(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
            let before = self.server.partial_bytes();
            let mut room = vec![0; before + bytes.len()];
            self.server.take_partial(&mut room);
            room[before..].copy_from_slice(bytes);
            self.closed |= self.server.receive(&mut room, &mut self.heard, &mut self.to_client)?.closed;
            Ok(())
        }

        /// All that the client has to say, in pieces of these sizes, again and again.
        fn say(&mut self, sizes: &mut impl Iterator<Item = usize>) -> Result<(), TlsError> {
            let mut wire = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut wire).expect("a vector");
            }
            let mut rest = &wire[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
                self.feed(piece)?;
                rest = after;
            }
            Ok(())
        }

        /// What the client hears of what the server has for it.
        fn hear(&mut self) -> Vec<u8> {
            let wire = std::mem::take(&mut self.to_client);
            let (mut rest, mut plain) = (&wire[..], Vec::new());
            while !rest.is_empty() {
                self.client.read_tls(&mut rest).expect("room");
                self.client.process_new_packets().expect("records");
                let mut part = vec![0; 1 << 16];
                while let Ok(bytes @ 1..) = self.client.reader().read(&mut part) {
                    plain.extend_from_slice(&part[..bytes]);
                }
            }
            plain
        }

        fn shake(&mut self, sizes: &mut impl Iterator<Item = usize>) {
            while self.client.is_handshaking() {
                self.say(sizes).expect("a handshake");
                assert_eq!(self.hear(), b"");
            }
            self.say(sizes).expect("the last of it");
            self.hear();
        }
    }

    fn version() -> impl Strategy<Value = &'static SupportedProtocolVersion> {
        prop_oneof![Just(&TLS13), Just(&TLS12)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        /// However the wire is cut, both hear what was said, and nothing is kept between records.
        #[test]
        fn records_may_be_cut_anywhere(
            version in version(),
            sizes in prop::collection::vec(1usize..3_000, 1..20),
            texts in prop::collection::vec(0usize..40_000, 1..6),
        ) {
            let mut sizes = sizes.into_iter().cycle();
            let mut pair = Pair::new(version);
            pair.shake(&mut sizes);
            for (at, bytes) in texts.into_iter().enumerate() {
                let text: Vec<u8> = (0..bytes).map(|byte| (byte * 7 + at) as u8).collect();
                if at % 2 == 1 && version.version == ProtocolVersion::TLSv1_3 {
                    pair.client.refresh_traffic_keys().expect("a handshake that has ended");
                }
                let mut rest = &text[..];
                while !rest.is_empty() {
                    let taken = pair.client.writer().write(rest).expect("room");
                    rest = &rest[taken..];
                    pair.say(&mut sizes).expect("records");
                }
                prop_assert!(std::mem::take(&mut pair.heard) == text);
                prop_assert_eq!(pair.server.partial.capacity(), 0);
                pair.server.seal(&text, &mut pair.to_client).expect("a key that lasts");
                prop_assert!(pair.hear() == text);
            }
            pair.client.send_close_notify();
            pair.say(&mut sizes).expect("its goodbye");
            prop_assert!(pair.closed);
            pair.server.seal(b"half-open", &mut pair.to_client).expect("our direction is open");
            pair.server.close(&mut pair.to_client);
            prop_assert_eq!(pair.hear(), b"half-open");
        }
    }

    #[test]
    fn a_goodbye_is_said_once_and_not_before_the_handshake() {
        let mut pair = Pair::new(&TLS13);
        pair.server.close(&mut pair.to_client);
        assert!(pair.server.seal(b"x", &mut pair.to_client).is_err());
        assert_eq!(pair.to_client, b"");
        let mut pair = Pair::new(&TLS13);
        pair.shake(&mut std::iter::repeat(4_096));
        pair.server.close(&mut pair.to_client);
        let once = pair.to_client.len();
        pair.server.close(&mut pair.to_client);
        assert!(once > 0 && pair.to_client.len() == once);
    }

    /// Whatever comes instead of records: an error, an alert for the client if there is one, and nothing more after that.
    #[test]
    fn what_is_no_record_ends_it() {
        for (name, shaken, bytes) in [
            ("no TLS", false, &b"\x05nothing of the kind"[..]),
            ("too long", false, &[0x16, 3, 1, 0xFF, 0xFF, 1]),
            ("an empty record", false, &[0x16, 3, 1, 0, 0]),
            (
                "undecryptable",
                true,
                &[0x17, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
            ),
            ("plain in the middle", true, &[0x16, 3, 3, 0, 4, 1, 0, 0, 0]),
        ] {
            let mut pair = Pair::new(&TLS13);
            if shaken {
                pair.shake(&mut std::iter::repeat(4_096));
            }
            let error = pair.feed(bytes);
            assert!(error.is_err(), "{name}");
            assert!(!pair.to_client.is_empty(), "{name}: {error:?}");
            let told = pair.to_client.len();
            assert!(pair.feed(bytes).is_err(), "{name}");
            assert!(pair.server.seal(b"x", &mut pair.to_client).is_err(), "{name}");
            pair.server.close(&mut pair.to_client);
            assert_eq!(pair.to_client.len(), told, "{name}: nothing after the alert");
        }
    }

    /// Handshake messages that never end are not kept without bound.
    #[test]
    fn what_never_comes_whole_is_bounded() {
        let mut pair = Pair::new(&TLS13);
        let mut result = pair.feed(&[0x16, 3, 1, 0x40, 0]);
        for _ in 0..40 {
            // A message of 65,535 bytes, in records of 1,024.
            let mut record = vec![0x16, 3, 1, 4, 0, 1, 0, 0xFF, 0xFF];
            record.resize(5 + 1_024, 0);
            result = result.and_then(|()| pair.feed(&record));
        }
        assert!(result.is_err());
        assert!(pair.server.partial_bytes() <= PARTIAL_BYTES_MAX);
    }
}
