//! The messages of a run: each is made from the seed and its key alone, so that a reader knows every byte that it
//! must get, over any transport.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::common::rng::Rng;

/// Which message: the `n`th that `publisher` sent to `channel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub channel: usize,
    pub publisher: usize,
    pub n: usize,
}

impl Key {
    /// Reads the key out of a message's bytes, in whatever form they came.
    pub fn find(bytes: &[u8]) -> Option<Self> {
        let start = bytes.iter().position(|&byte| byte == b'<')? + 1;
        let length = bytes[start..].iter().position(|&byte| byte == b'>')?;
        let mut numbers = std::str::from_utf8(&bytes[start..start + length]).ok()?.split('.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self { channel: next()?, publisher: next()?, n: next()? })
    }

    /// The key of a poll's message object.
    pub fn of_object(object: &Value) -> Option<Self> {
        match object.get("base64") {
            Some(base64) => Self::find(&BASE64.decode(base64.as_str()?).ok()?),
            None => Self::find(object["data"].to_string().as_bytes()),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    Text(String),
    Json(String),
    Binary(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub key: Key,
    pub event: Option<&'static str>,
    pub ttl: Option<u32>,
    pub data: Data,
}

impl Message {
    /// The message of a key. `brief`: some of the channel's messages end by their own TTL.
    pub fn new(seed: u64, key: Key, brief: bool) -> Self {
        let stream = (key.channel as u64) << 48 | (key.publisher as u64) << 40 | key.n as u64;
        let mut rng = Rng::new(seed, stream ^ 0x6D65_7373);
        let mark = format!("<{}.{}.{}>", key.channel, key.publisher, key.n);
        // Most are small; some are larger than a slow reader's socket takes at once.
        let length = if rng.once_in(24) { rng.within(1_000..=1_900) } else { rng.by_scale(8) };
        let data = match rng.below(4) {
            0 | 1 => {
                let pad: String =
                    (0..length).map(|_| *rng.pick(&['x', 'y', ' ', '"', '\\', '\n', 'ä', ':'])).collect();
                Data::Text(format!("{mark}{pad}"))
            }
            2 => Data::Json(format!("{{\"k\": \"{mark}\", \"pad\" : {}}}", json!("z".repeat(length)))),
            _ => {
                let mut bytes = mark.into_bytes();
                bytes.extend((0..length).map(|_| rng.next().to_le_bytes()[3]));
                Data::Binary(bytes)
            }
        };
        let event = rng.once_in(4).then_some("tick");
        let ttl = (brief && rng.once_in(12)).then(|| [0, 1][rng.below(2)]);
        Self { key, event, ttl, data }
    }

    /// Whether a reader may miss it without being told: it ends by its own TTL.
    pub const fn brief(&self) -> bool {
        self.ttl.is_some()
    }

    /// Its bytes, and whether they are text.
    pub fn bytes(&self) -> (&[u8], bool) {
        match &self.data {
            Data::Text(text) | Data::Json(text) => (text.as_bytes(), true),
            Data::Binary(bytes) => (bytes, false),
        }
    }

    /// The members that a batch's line and a `pushline.v1` publish share, with their braces.
    pub fn line(&self, channel: &str, kind: &str) -> String {
        let data = match &self.data {
            Data::Text(text) => format!("\"data\":{}", json!(text)),
            Data::Json(text) => format!("\"data\":{text}"),
            Data::Binary(bytes) => format!("\"base64\":\"{}\"", BASE64.encode(bytes)),
        };
        let event = self.event.map(|event| format!(",\"event\":\"{event}\"")).unwrap_or_default();
        let ttl = self.ttl.map(|ttl| format!(",\"ttl\":{ttl}")).unwrap_or_default();
        format!("{{{kind}\"channel\":{},{data}{event}{ttl}}}", json!(channel))
    }

    /// The head fields of its POST.
    pub fn fields(&self) -> String {
        let mut fields = match self.data {
            Data::Text(_) => "Content-Type: text/plain\r\n",
            Data::Json(_) => "Content-Type: application/json\r\n",
            Data::Binary(_) => "Content-Type: application/octet-stream\r\n",
        }
        .to_owned();
        if let Some(event) = self.event {
            fields += &format!("Pushline-Event: {event}\r\n");
        }
        if let Some(ttl) = self.ttl {
            fields += &format!("Pushline-TTL: {ttl}\r\n");
        }
        fields
    }

    /// Whether a message object (of a poll, an envelope, `pushline.v1`) is this message.
    pub fn is_object(&self, object: &Value) -> bool {
        let (member, value, other) = match &self.data {
            Data::Text(text) => ("data", json!(text), "base64"),
            Data::Json(text) => ("data", serde_json::from_str(text).expect("our own JSON"), "base64"),
            Data::Binary(bytes) => ("base64", json!(BASE64.encode(bytes)), "data"),
        };
        object[member] == value
            && object.get(other).is_none()
            && object.get("event").and_then(Value::as_str) == self.event
    }

    /// Whether an event of a stream without envelopes is this message.
    pub fn is_event(&self, name: &str, data: &str) -> bool {
        let (want, want_name) = match &self.data {
            Data::Text(text) | Data::Json(text) => (text.clone(), self.event.unwrap_or_default().to_owned()),
            Data::Binary(bytes) => {
                let name = self.event.map_or_else(|| "$binary".into(), |event| format!("$binary:{event}"));
                (BASE64.encode(bytes), name)
            }
        };
        want == data && want_name == name
    }
}
