//! What the fields of a head say about framing: where the body ends, whether the connection goes on, whether it
//! becomes a WebSocket (RFC 9112 §6, §9.3; RFC 9110 §10.1.1; RFC 6455 §4.2.1).
//! Owns these rules; refuses whatever could be read two ways. Sees each field once.

use super::error::HttpError;
use super::fields::{is_token_byte, list_has};
use super::host;
use super::request::{BodyLength, Method, Upgrade, Version};

/// What the one pass over the fields found of those that decide about framing.
#[derive(Default)]
pub(super) struct Seen<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    transfer_encoding: Option<&'a [u8]>,
    close: bool,
    keep_alive: bool,
    upgrade_option: bool,
    upgrade_websocket: bool,
    expect_continue: bool,
    key: Option<&'a [u8]>,
    websocket_version: Option<&'a [u8]>,
    websocket_version_repeated: bool,
}

impl<'a> Seen<'a> {
    /// The value of `Host`, checked; required since HTTP/1.1 (RFC 9112 §3.2).
    pub(super) fn host(&self, version: Version) -> Result<&'a str, HttpError> {
        match (self.host, version) {
            (Some(value), _) => host::parse(value).ok_or(HttpError::HostInvalid),
            (None, Version::Http10) => Ok(""),
            (None, Version::Http11) => Err(HttpError::HostMissing),
        }
    }

    /// RFC 9112 §9.3.
    pub(super) fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// RFC 9110 §10.1.1: not in HTTP/1.0, and void without content.
    pub(super) fn expect_continue(&self, version: Version, body: BodyLength) -> bool {
        self.expect_continue && version == Version::Http11 && !body.is_empty()
    }

    pub(super) fn on_field(&mut self, name: &str, value: &'a [u8]) -> Result<(), HttpError> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is("host") => set_once(&mut self.host, value, HttpError::HostRepeated)?,
            6 if is("expect") => self.on_expect(value)?,
            7 if is("upgrade") => self.upgrade_websocket |= list_has(value, b"websocket"),
            10 if is("connection") => {
                self.close |= list_has(value, b"close");
                self.keep_alive |= list_has(value, b"keep-alive");
                self.upgrade_option |= list_has(value, b"upgrade");
            }
            14 if is("content-length") => {
                set_once(&mut self.length, content_length(value)?, HttpError::LengthRepeated)?;
            }
            17 if is("transfer-encoding") => {
                set_once(&mut self.transfer_encoding, value, HttpError::TransferEncodingAmbiguous)?;
            }
            17 if is("sec-websocket-key") => {
                set_once(&mut self.key, value, HttpError::HandshakeKeyRepeated)?;
            }
            21 if is("sec-websocket-version") => {
                self.websocket_version_repeated |= self.websocket_version.is_some();
                self.websocket_version = Some(value);
            }
            _ => {}
        }
        Ok(())
    }

    fn on_expect(&mut self, value: &[u8]) -> Result<(), HttpError> {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(HttpError::Expectation);
        }
        self.expect_continue = true;
        Ok(())
    }

    /// RFC 9112 §6.1 and §6.3. Only a plain `chunked`, once, is a transfer coding here: a list of several is refused
    /// as ambiguous (the safest reading), one other coding as unknown.
    pub(super) fn body(&self, version: Version) -> Result<BodyLength, HttpError> {
        let Some(coding) = self.transfer_encoding else {
            return Ok(self.length.map_or(BodyLength::None, BodyLength::Length));
        };
        if self.length.is_some() {
            return Err(HttpError::LengthAndTransferEncoding);
        }
        if version == Version::Http10 {
            return Err(HttpError::TransferEncodingInHttp10);
        }
        if coding.eq_ignore_ascii_case(b"chunked") {
            return Ok(BodyLength::Chunked);
        }
        let is_token = !coding.is_empty() && coding.iter().all(|&byte| is_token_byte(byte));
        Err(if is_token { HttpError::TransferEncodingUnknown } else { HttpError::TransferEncodingAmbiguous })
    }

    /// RFC 6455 §4.2.1. A key without the rest of a handshake is told so, for a proxy may have eaten the rest; the
    /// rest without a key is malformed; without either it is an upgrade like any other, and ignored.
    pub(super) fn upgrade(
        &self,
        method: Method,
        version: Version,
        body: BodyLength,
    ) -> Result<Upgrade<'a>, HttpError> {
        let asks = self.upgrade_websocket
            && self.upgrade_option
            && method == Method::Get
            && version == Version::Http11;
        let Some(key) = self.key else {
            return if asks { Err(HttpError::HandshakeKeyMissing) } else { Ok(Upgrade::None) };
        };
        let key = handshake_key(key).ok_or(HttpError::HandshakeKeyInvalid)?;
        if !asks {
            return Err(HttpError::UpgradeRequired);
        }
        if self.websocket_version != Some(b"13") || self.websocket_version_repeated {
            return Err(HttpError::HandshakeVersion);
        }
        if body.is_empty() { Ok(Upgrade::WebSocket { key }) } else { Err(HttpError::HandshakeBody) }
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T, repeated: HttpError) -> Result<(), HttpError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(repeated),
    }
}

/// Digits alone (RFC 9110 §8.6). `5, 5`, which a recipient may merge, is refused: it could be read two ways.
fn content_length(value: &[u8]) -> Result<u64, HttpError> {
    if value.is_empty() {
        return Err(HttpError::Length);
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0')).ok_or(HttpError::Length)?;
        length.checked_mul(10).and_then(|length| length.checked_add(digit)).ok_or(HttpError::Length)
    })
}

/// 16 bytes are 22 characters of base64 and `==`. Bits past the 16 bytes are not looked at (RFC 4648 §3.5: MAY).
fn handshake_key(value: &[u8]) -> Option<&str> {
    let digits = value.strip_suffix(b"==")?;
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    if digits.len() == 22 && digits.iter().all(is_digit) { std::str::from_utf8(value).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::super::head::HeadScanner;
    use super::super::request::{FieldSlots, Parsed, Request, scan};
    use super::*;
    use HttpError as E;

    /// Parses a request of these lines and a host.
    fn parsed<T>(line: &str, lines: &str, look: impl FnOnce(&Request<'_>) -> T) -> Result<T, HttpError> {
        let input = format!("{line}\r\nHost: h\r\n{lines}\r\n");
        match scan(&mut HeadScanner::new(16_384), input.as_bytes(), &mut FieldSlots::new())? {
            Parsed::Done { request, .. } => Ok(look(&request)),
            Parsed::Partial => panic!("partial: {input:?}"),
        }
    }

    #[test]
    fn bodies() {
        let both = "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n";
        for (lines, expected) in [
            ("", Ok(BodyLength::None)),
            ("Content-Length: 0\r\n", Ok(BodyLength::Length(0))),
            ("content-length: 007 \r\n", Ok(BodyLength::Length(7))),
            ("Content-Length: 18446744073709551615\r\n", Ok(BodyLength::Length(u64::MAX))),
            ("Content-Length: 18446744073709551616\r\n", Err(E::Length)),
            ("Content-Length:\r\n", Err(E::Length)),
            ("Content-Length: +1\r\n", Err(E::Length)),
            ("Content-Length: -1\r\n", Err(E::Length)),
            ("Content-Length: 1 2\r\n", Err(E::Length)),
            ("Content-Length: 0x1\r\n", Err(E::Length)),
            ("Content-Length: 5, 5\r\n", Err(E::Length)),
            ("Content-Length: 5,\r\n", Err(E::Length)),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", Err(E::LengthRepeated)),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", Err(E::LengthRepeated)),
            ("Transfer-Encoding: chunked\r\n", Ok(BodyLength::Chunked)),
            ("Transfer-Encoding: CHUNKED\r\n", Ok(BodyLength::Chunked)),
            (both, Err(E::LengthAndTransferEncoding)),
            ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", Err(E::LengthAndTransferEncoding)),
            ("Transfer-Encoding: gzip, chunked\r\n", Err(E::TransferEncodingAmbiguous)),
            ("Transfer-Encoding: chunked, gzip\r\n", Err(E::TransferEncodingAmbiguous)),
            ("Transfer-Encoding: chunked, chunked\r\n", Err(E::TransferEncodingAmbiguous)),
            ("Transfer-Encoding: chunked,\r\n", Err(E::TransferEncodingAmbiguous)),
            ("Transfer-Encoding: \"chunked\"\r\n", Err(E::TransferEncodingAmbiguous)),
            ("Transfer-Encoding: chunked;a=b\r\n", Err(E::TransferEncodingAmbiguous)),
            ("Transfer-Encoding:\r\n", Err(E::TransferEncodingAmbiguous)),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Err(E::TransferEncodingAmbiguous),
            ),
            ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Err(E::TransferEncodingAmbiguous)),
            ("Transfer-Encoding: gzip\r\n", Err(E::TransferEncodingUnknown)),
            ("Transfer-Encoding: identity\r\n", Err(E::TransferEncodingUnknown)),
            ("Transfer-Encoding: xchunked\r\n", Err(E::TransferEncodingUnknown)),
        ] {
            assert_eq!(parsed("POST / HTTP/1.1", lines, |request| request.body), expected, "{lines:?}");
        }
        let http10 = parsed("POST / HTTP/1.0", "Transfer-Encoding: chunked\r\n", |_| ());
        assert_eq!(http10, Err(E::TransferEncodingInHttp10));
        assert_eq!(parsed("POST / HTTP/1.0", both, |_| ()), Err(E::LengthAndTransferEncoding));
    }

    #[test]
    fn connections() {
        for (version, lines, expected) in [
            ("1.1", "", true),
            ("1.0", "", false),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: Keep-Alive, CLOSE\r\n", false),
            ("1.1", "Connection: a\r\nConnection: close\r\n", false),
            ("1.1", "Connection: closed\r\n", true),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ] {
            let got = parsed(&format!("GET / HTTP/{version}"), lines, |request| request.keep_alive);
            assert_eq!(got, Ok(expected), "{version} {lines:?}");
        }
    }

    #[test]
    fn expectations() {
        for (line, lines, expected) in [
            ("POST / HTTP/1.1", "Expect: 100-Continue\r\nContent-Length: 1\r\n", Ok(true)),
            ("POST / HTTP/1.1", "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", Ok(true)),
            ("POST / HTTP/1.1", "Expect: 100-continue\r\nContent-Length: 0\r\n", Ok(false)),
            ("POST / HTTP/1.1", "Expect: 100-continue\r\n", Ok(false)),
            ("POST / HTTP/1.0", "Expect: 100-continue\r\nContent-Length: 1\r\n", Ok(false)),
            ("POST / HTTP/1.1", "Expect: tea\r\n", Err(E::Expectation)),
            ("POST / HTTP/1.1", "Expect: 100-continue, tea\r\n", Err(E::Expectation)),
        ] {
            assert_eq!(parsed(line, lines, |request| request.expect_continue), expected, "{line} {lines:?}");
        }
    }

    #[test]
    fn handshakes() {
        const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
        let get = "GET / HTTP/1.1";
        let rest = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n";
        let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
        let with = |lines: &str| format!("{key}{lines}");
        for (name, line, lines, expected) in [
            ("valid", get, with(rest), Ok(true)),
            (
                "as Firefox writes it",
                get,
                with(
                    "Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n",
                ),
                Ok(true),
            ),
            ("without content", get, with(&format!("{rest}Content-Length: 0\r\n")), Ok(true)),
            ("another upgrade", get, "Upgrade: h2c\r\nConnection: Upgrade\r\n".into(), Ok(false)),
            ("no Connection, no key", get, "Upgrade: websocket\r\n".into(), Ok(false)),
            ("POST without a key", "POST / HTTP/1.1", rest.into(), Ok(false)),
            ("no key", get, rest.into(), Err(E::HandshakeKeyMissing)),
            ("key alone", get, key.clone(), Err(E::UpgradeRequired)),
            (
                "no Connection",
                get,
                with("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
                Err(E::UpgradeRequired),
            ),
            (
                "no Upgrade",
                get,
                with("Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"),
                Err(E::UpgradeRequired),
            ),
            ("POST", "POST / HTTP/1.1", with(rest), Err(E::UpgradeRequired)),
            ("HTTP/1.0", "GET / HTTP/1.0", with(rest), Err(E::UpgradeRequired)),
            (
                "no version",
                get,
                with("Upgrade: websocket\r\nConnection: Upgrade\r\n"),
                Err(E::HandshakeVersion),
            ),
            (
                "two versions",
                get,
                with(&format!("{rest}Sec-WebSocket-Version: 13\r\n")),
                Err(E::HandshakeVersion),
            ),
            ("another version", get, with(&rest.replace("13", "8")), Err(E::HandshakeVersion)),
            ("key twice", get, with(&with(rest)), Err(E::HandshakeKeyRepeated)),
            ("key empty", get, with(rest).replace(KEY, ""), Err(E::HandshakeKeyInvalid)),
            ("13 bytes", get, with(rest).replace(KEY, "SGVsbG8sIHdvcmxkIQ=="), Err(E::HandshakeKeyInvalid)),
            (
                "17 bytes",
                get,
                with(rest).replace(KEY, "AAAAAAAAAAAAAAAAAAAAAAA="),
                Err(E::HandshakeKeyInvalid),
            ),
            (
                "18 bytes",
                get,
                with(rest).replace(KEY, "AAAAAAAAAAAAAAAAAAAAAAAA"),
                Err(E::HandshakeKeyInvalid),
            ),
            (
                "not base64",
                get,
                with(rest).replace(KEY, "AAAAAAAAAA AAAAAAAAAAA=="),
                Err(E::HandshakeKeyInvalid),
            ),
            ("content", get, with(&format!("{rest}Content-Length: 1\r\n")), Err(E::HandshakeBody)),
            ("chunks", get, with(&format!("{rest}Transfer-Encoding: chunked\r\n")), Err(E::HandshakeBody)),
        ] {
            let got = parsed(line, &lines, |request| request.upgrade == (Upgrade::WebSocket { key: KEY }));
            assert_eq!(got, expected, "{name}");
        }
    }
}
