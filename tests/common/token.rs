//! Tokens as an application's back end makes them, and what a server needs to take them.
//! Owns one key, and has the server's own command make API keys. Never checks what a server makes of a token.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// The key of [`KEYS`].
pub const SECRET: &str = "a secret of the tests that is long enough for HS256";

/// `--set` this, and a server takes the tokens made here.
pub const KEYS: &str = r#"auth.keys=[{ kid = "tests", algorithm = "HS256", secret = "a secret of the tests that is long enough for HS256" }]"#;

/// Seconds since 1970.
pub fn now_s() -> u64 {
    now().as_secs()
}

pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// A token with these claims, as they are.
#[allow(clippy::needless_pass_by_value)]
pub fn sign(claims: Value) -> String {
    let header = Header { kid: Some("tests".to_owned()), ..Header::new(Algorithm::HS256) };
    encode(&header, &claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("claims are JSON")
}

/// Somebody's token under way.
#[derive(Debug, Clone)]
pub struct Token(Value);

/// A token that permits everything to `subject` for a minute, from now.
pub fn of(subject: &str) -> Token {
    let all = json!(["**"]);
    Token(json!({"sub": subject, "exp": now_s() + 60, "subscribe": all, "publish": all, "delete": all}))
}

impl Token {
    pub fn with(mut self, claim: &str, value: impl Into<Value>) -> Self {
        self.0[claim] = value.into();
        self
    }

    /// Ends at this second since 1970.
    pub fn until(self, exp: u64) -> Self {
        self.with("exp", exp)
    }

    pub fn subscribe(self, channels: &[&str]) -> Self {
        self.with("subscribe", channels)
    }

    pub fn publish(self, channels: &[&str]) -> Self {
        self.with("publish", channels)
    }

    pub fn sign(self) -> String {
        sign(self.0)
    }
}

/// The value of `Authorization` for a token.
pub fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// An API key as `pushline api-key` prints it, and the element of `auth.api_keys` for it.
pub fn api_key(args: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pushline"))
        .arg("api-key")
        .args(args)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned);
    (lines.next().expect("a key"), lines.next().expect("a line"))
}
