//! How to talk to a server: a `peer.json` of `bench/peers/NAME/`, or Pushline's own.
//! Data alone; `script` makes requests of it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::template::Template;
use crate::transport::Transport;

/// Bytes in a JSON file; places as in `template`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    Text(String),
    BinaryBase64(String),
}

impl Piece {
    /// The bytes, and whether they are text.
    pub fn bytes(&self) -> Result<(Vec<u8>, bool)> {
        Ok(match self {
            Self::Text(text) => (text.clone().into_bytes(), true),
            Self::BinaryBase64(text) => (STANDARD.decode(text).context("base64 in peer.json")?, false),
        })
    }
}

/// What a reader says in and after the handshake.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Hello {
    pub subprotocol: Option<String>,
    #[serde(default)]
    pub frames: Vec<Piece>,
}

/// How a message is published.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Publish {
    Http {
        #[serde(default = "post")]
        method: String,
        path: String,
    },
    Ws {
        path: String,
        subprotocol: Option<String>,
        #[serde(default)]
        hello: Vec<Piece>,
        frame: Piece,
    },
    Tcp {
        /// Another port than that of the readers.
        port: Option<u16>,
        #[serde(default)]
        hello: Vec<Piece>,
        frame: Piece,
    },
}

fn post() -> String {
    "POST".into()
}

#[derive(Debug, Clone, Deserialize)]
pub struct Api {
    pub name: String,
    /// Paths by the transport's name.
    pub read: BTreeMap<String, String>,
    /// Where a long poll begins, when the path above needs a cursor.
    pub first: Option<String>,
    #[serde(default)]
    pub hello: BTreeMap<String, Hello>,
    /// Stands in what the server says once the reader is subscribed. Without it the handshake's answer says so.
    #[serde(default)]
    pub opened: BTreeMap<String, Piece>,
    pub publish: Option<Publish>,
    /// Path that takes many messages at once, as lines of JSON.
    pub batch: Option<String>,
    /// Path of a small file.
    #[serde(rename = "static")]
    pub still: Option<String>,
    /// A shell command that prints the version.
    pub version: Option<String>,
}

impl Api {
    pub fn read_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Pushline's, and so the floor's.
    pub fn pushline() -> Self {
        let channel = "/channels/{channel}";
        let read = [
            (Transport::Ws, channel.to_owned()),
            (Transport::V1, channel.to_owned()),
            (Transport::Sse, channel.to_owned()),
            (Transport::Poll, format!("{channel}?cursor={{cursor}}&wait=50")),
            (Transport::Short, channel.to_owned()),
        ];
        let v1 = Hello { subprotocol: Some("pushline.v1".into()), frames: Vec::new() };
        let opened = [(Transport::V1, "\"subscribed\""), (Transport::Sse, "event: $open")];
        Self {
            name: "pushline".into(),
            read: read.map(|(transport, path)| (transport.key().to_owned(), path)).into(),
            // The cursor alone, from which the held polls go on.
            first: Some(format!("{channel}?limit=0")),
            hello: [(Transport::V1.key().to_owned(), v1)].into(),
            opened: opened
                .map(|(transport, sign)| (transport.key().to_owned(), Piece::Text(sign.into())))
                .into(),
            publish: Some(Publish::Http { method: post(), path: channel.into() }),
            batch: Some("/publish".into()),
            still: None,
            version: None,
        }
    }

    /// The same, of readers that come with a cursor.
    pub fn resuming(mut self) -> Self {
        self.read.values_mut().filter(|path| !path.contains("{cursor}")).for_each(|path| {
            path.push_str("?cursor={cursor}");
        });
        self.first = None;
        self
    }

    /// Whether readers can use this transport.
    pub fn has(&self, transport: Transport) -> bool {
        self.read.contains_key(transport.key())
    }
}

/// A channel's name, 8 bytes of `[a-z0-9]`, so that lengths in binary templates are constant.
pub fn channel_name(index: usize) -> [u8; 8] {
    let mut name = *b"c0000000";
    let mut rest = index;
    for digit in name[1..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    name
}

/// A template out of a piece, and whether it is text.
pub fn template(piece: &Piece) -> Result<(Template, bool)> {
    let (bytes, text) = piece.bytes()?;
    Ok((Template::parse(&bytes), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_file_is_read() {
        let api: Api = serde_json::from_str(
            r#"{"name":"nats","version":"nats-server --version","read":{"ws":"/"},
                "hello":{"ws":{"frames":[{"text":"SUB {channel} 1\r\nPING\r\n"}]}},"opened":{"ws":{"text":"PONG"}},
                "publish":{"ws":{"path":"/","frame":{"text":"PUB {channel} {bytes}\r\n{body}\r\n"}}},
                "batch":null,"static":null,"notes":["no history"]}"#,
        )
        .expect("a peer file");
        assert!(api.has(Transport::Ws) && !api.has(Transport::Sse));
        assert!(matches!(api.publish, Some(Publish::Ws { .. })));
    }

    #[test]
    fn channels_have_names_of_one_length() {
        assert_eq!(&channel_name(0), b"c0000000");
        assert_eq!(&channel_name(1_234_567), b"c1234567");
    }
}
