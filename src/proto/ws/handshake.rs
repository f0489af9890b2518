//! The WebSocket opening handshake (RFC 6455 §4), the server's half: key, subprotocol, answer.
//! Owns what is in those three. Whether the request is an upgrade at all, and its version, is for the router.

use crate::proto::payload;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

/// The one version of the protocol; `Sec-WebSocket-Version` of a 426.
pub const VERSION: &str = "13";
/// The subprotocol's name on the wire.
pub const V1: &str = "pushline.v1";

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What is spoken after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subprotocol {
    /// None was offered: frames are messages.
    Raw,
    /// `pushline.v1`: frames are JSON objects.
    V1,
}

/// Why a handshake is refused (400).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeError {
    Key,
    Subprotocol,
}

impl HandshakeError {
    /// What was wrong and what would be right, for the client.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Key => "Sec-WebSocket-Key is not the base64 of 16 bytes; send 16 random bytes so",
            Self::Subprotocol => {
                "no subprotocol offered is spoken here; offer pushline.v1, or none for raw messages"
            }
        }
    }
}

/// The server's proof that it read the client's key (§4.2.2): the value of `Sec-WebSocket-Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept([u8; 28]);

impl Accept {
    /// Answers the value of `Sec-WebSocket-Key`, surrounding white space removed.
    ///
    /// # Errors
    /// When it is not the base64 of 16 bytes.
    pub fn of_key(key: &[u8]) -> Result<Self, HandshakeError> {
        if !payload::is_base64_of_16_bytes(key) {
            return Err(HandshakeError::Key);
        }
        let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
        let mut accept = [0; 28];
        let written = STANDARD.encode_slice(digest, &mut accept);
        assert!(matches!(written, Ok(28)), "20 bytes are 28 in base64");
        Ok(Self(accept))
    }

    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Chooses from the values of all `Sec-WebSocket-Protocol` lines, in order: none offered is raw, `pushline.v1` wherever it
/// stands is v1.
///
/// # Errors
/// A list without it: the client would close a connection that answers with none of its offers.
pub fn choose<'a>(offers: impl IntoIterator<Item = &'a [u8]>) -> Result<Subprotocol, HandshakeError> {
    let mut chosen = Ok(Subprotocol::Raw);
    for line in offers {
        if line.split(|&byte| byte == b',').any(|offer| offer.trim_ascii() == V1.as_bytes()) {
            return Ok(Subprotocol::V1);
        }
        chosen = Err(HandshakeError::Subprotocol);
    }
    chosen
}

/// Appends the whole head of the 101.
pub fn write_switching(out: &mut Vec<u8>, accept: &Accept, subprotocol: Subprotocol) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(accept.as_bytes());
    match subprotocol {
        Subprotocol::Raw => {}
        Subprotocol::V1 => {
            out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.extend_from_slice(V1.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for (name, key, want) in [
            ("RFC 6455 §1.3", &b"dGhlIHNhbXBsZSBub25jZQ=="[..], Ok(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..])),
            ("15 bytes", b"dGhlIHNhbXBsZSBub25j", Err(HandshakeError::Key)),
            ("17 bytes", b"dGhlIHNhbXBsZSBub25jZXM=", Err(HandshakeError::Key)),
            ("18 bytes", b"dGhlIHNhbXBsZSBub25jZXMh", Err(HandshakeError::Key)),
            ("no padding", b"dGhlIHNhbXBsZSBub25jZQ", Err(HandshakeError::Key)),
            ("not base64", b"dGhlIHNhbXBsZSBub25jZ!==", Err(HandshakeError::Key)),
            ("empty", b"", Err(HandshakeError::Key)),
            ("long", &[b'A'; 4096], Err(HandshakeError::Key)),
        ] {
            let got = Accept::of_key(key);
            assert_eq!(got.as_ref().map(Accept::as_bytes).map_err(|error| *error), want, "{name}");
        }
        assert!(Accept::of_key(b"dGhlIHNhbXBsZSBub25jZR==").is_ok(), "stray bits are still 16 bytes");
    }

    #[test]
    fn choices() {
        for (name, offers, want) in [
            ("none", &[][..], Ok(Subprotocol::Raw)),
            ("alone", &[&b"pushline.v1"[..]], Ok(Subprotocol::V1)),
            ("in a list", &[b"mqtt,\tpushline.v1 , x"], Ok(Subprotocol::V1)),
            ("on a later line", &[b"mqtt", b"pushline.v1"], Ok(Subprotocol::V1)),
            ("on an earlier line", &[b"pushline.v1", b"mqtt"], Ok(Subprotocol::V1)),
            ("others", &[b"mqtt, stomp"], Err(HandshakeError::Subprotocol)),
            ("other case", &[b"Pushline.V1"], Err(HandshakeError::Subprotocol)),
            ("a part of a name", &[b"pushline.v10"], Err(HandshakeError::Subprotocol)),
            ("an empty line", &[b""], Err(HandshakeError::Subprotocol)),
        ] {
            assert_eq!(choose(offers.iter().copied()), want, "{name}");
        }
    }

    #[test]
    fn answer() {
        let accept = Accept::of_key(b"dGhlIHNhbXBsZSBub25jZQ==").unwrap();
        for (subprotocol, tail) in [
            (Subprotocol::Raw, "\r\n\r\n"),
            (Subprotocol::V1, "\r\nSec-WebSocket-Protocol: pushline.v1\r\n\r\n"),
        ] {
            let mut out = Vec::new();
            write_switching(&mut out, &accept, subprotocol);
            let want = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo={tail}"
            );
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }
}
