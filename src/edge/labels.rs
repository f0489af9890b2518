//! What the head of a publish says of its message: its content's kind, event name, TTL and key.
//! Owns which of these fields may stand how often, and the answers to heads that say it wrongly.

use crate::domain::message::{Body, Draft};
use crate::proto::http::error::HttpError;
use crate::proto::http::fields::ContentKind;
use crate::proto::http::request::Fields;
use crate::proto::json;
use crate::proto::publish::{check_event, check_key, parse_ttl};

use super::answer::Answer;
use super::channels::refused;

/// What the head of a publish says of the message.
#[derive(Debug)]
pub struct Labels {
    event: Option<Box<str>>,
    ttl_seconds: Option<u32>,
    key: Option<Box<[u8]>>,
    kind: ContentKind,
}

/// The fields that say something of the message, found in one pass over all.
#[derive(Default)]
struct Said<'r> {
    event: Option<&'r [u8]>,
    ttl: Option<&'r [u8]>,
    key: Option<&'r [u8]>,
    content_type: Option<&'r [u8]>,
    has_encoding: bool,
    /// One of them stands twice.
    repeats: bool,
}

impl<'r> Said<'r> {
    fn of(fields: &Fields<'r>) -> Self {
        let mut said = Self::default();
        for (name, value) in fields.iter() {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            let place = match name.len() {
                12 if is("content-type") => &mut said.content_type,
                12 if is("pushline-ttl") => &mut said.ttl,
                14 if is("pushline-event") => &mut said.event,
                15 if is("idempotency-key") => &mut said.key,
                16 if is("content-encoding") => {
                    said.has_encoding = true;
                    continue;
                }
                _ => continue,
            };
            said.repeats |= place.replace(value).is_some();
        }
        said
    }
}

impl Labels {
    /// # Errors
    /// The answer to give.
    pub fn of(fields: &Fields<'_>) -> Result<Self, Answer> {
        let said = Said::of(fields);
        if said.has_encoding {
            return Err(Answer::problem(415, "Content-Encoding is not taken; send the message as it is"));
        }
        if said.repeats {
            return Err(refused(HttpError::FieldRepeated));
        }
        if let Some(Err(error)) = said.key.map(check_key) {
            return Err(Answer::problem(400, error.detail()));
        }
        let event = said.event.map(check_event).transpose();
        let ttl_seconds = said.ttl.map(parse_ttl).transpose();
        Ok(Self {
            event: event.map_err(|error| Answer::problem(400, error.detail()))?.map(Into::into),
            ttl_seconds: ttl_seconds.map_err(|error| Answer::problem(400, error.detail()))?,
            key: said.key.map(Into::into),
            kind: ContentKind::of(said.content_type),
        })
    }

    /// The message that these labels and `content` make.
    ///
    /// # Errors
    /// The answer to give.
    pub fn draft(&self, content: Vec<u8>) -> Result<Draft, Answer> {
        let not_utf8 = || {
            Answer::problem(
                400,
                "the body is not UTF-8, as its Content-Type asks; send application/octet-stream for bytes",
            )
        };
        let body = match self.kind {
            ContentKind::Json => {
                if let Err(error) = json::check(&content) {
                    return Err(Answer::problem(400, error.detail()));
                }
                Body::Json(String::from_utf8(content).map_err(|_| not_utf8())?.into())
            }
            ContentKind::Text => Body::Text(String::from_utf8(content).map_err(|_| not_utf8())?.into()),
            ContentKind::Binary => Body::Binary(content.into()),
        };
        Ok(Draft { event: self.event.clone(), body, ttl_seconds: self.ttl_seconds })
    }

    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }
}
