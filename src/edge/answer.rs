//! Answers as values: what a handler decides, apart from how the request wants it told.

use std::rc::Rc;

use crate::proto::http::date::format_imf_date;
use crate::proto::http::problem::Problem;
use crate::proto::http::request::{Method, Version};
use crate::proto::http::response::ResponseWriter;

use crate::runtime::entry::HeldPoll;

use super::origin::Passed;

/// What varies between answers to one URL.
pub const VARY_READ: &str = "Accept, Prefer, Origin";
pub const VARY: &str = "Origin";

/// The `Vary` of a refusal, by the head that is refused: that of a read differs with what it accepts and prefers.
pub fn vary_of(head: &[u8]) -> &'static str {
    let target = head.strip_prefix(b"GET ").or_else(|| head.strip_prefix(b"HEAD "));
    if target.is_some_and(|target| target.starts_with(b"/channels/")) { VARY_READ } else { VARY }
}

/// The content of an answer.
#[derive(Debug, Clone)]
pub enum Content {
    None,
    Of(&'static str, Rc<Vec<u8>>),
    /// Problem details.
    Problem(String),
}

/// Room for the head of an answer.
pub const HEAD_BYTES: usize = 512;

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub content: Content,
    pub fields: Vec<(&'static str, String)>,
    pub vary: &'static str,
    /// The connection ends with it.
    pub close: bool,
}

/// How the request wants its answer told.
#[derive(Debug, Clone, Copy)]
pub struct Manner<'r> {
    pub method: Method,
    pub version: Version,
    pub keep_alive: bool,
    pub passed: Passed<'r>,
    pub unix_s: u64,
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Self { status, content: Content::None, fields: Vec::new(), vary: VARY, close: false }
    }

    pub fn json(status: u16, body: Vec<u8>) -> Self {
        Self::of(status, "application/json", body)
    }

    pub fn of(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Self { content: Content::Of(content_type, Rc::new(body)), ..Self::new(status) }
    }

    /// An error: what was wrong and what would be right.
    pub fn problem(status: u16, detail: impl Into<String>) -> Self {
        Self { content: Content::Problem(detail.into()), ..Self::new(status) }
            .field("Cache-Control", "no-store")
    }

    pub fn field(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    pub fn vary(mut self, vary: &'static str) -> Self {
        self.vary = vary;
        self
    }

    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Appends the answer's bytes. Returns whether the connection goes on.
    pub fn write(&self, out: &mut Vec<u8>, manner: &Manner<'_>) -> bool {
        let keep_alive = manner.keep_alive && !self.close;
        let head_only = manner.method == Method::Head;
        let writer = ResponseWriter::new(out, self.status).date(&format_imf_date(manner.unix_s));
        let mut writer = manner.passed.write(writer).field("Vary", self.vary);
        for (name, value) in &self.fields {
            writer = writer.field(name, value);
        }
        let writer = writer.connection(manner.version, keep_alive);
        match &self.content {
            Content::None => writer.end_with(&[]),
            Content::Of(content_type, body) => {
                let writer = writer.field("Content-Type", content_type);
                if head_only { writer.end_head_only(body.len() as u64) } else { writer.end_with(body) }
            }
            Content::Problem(detail) => {
                writer.end_with_problem(&Problem::new(self.status, detail), head_only);
            }
        }
        keep_alive
    }

    /// The same as bytes of their own: a large body is not copied. And whether the connection goes on.
    pub fn into_bytes(self, manner: &Manner<'_>) -> (Vec<u8>, bool) {
        let mut head = Vec::with_capacity(HEAD_BYTES);
        if manner.method == Method::Head || !matches!(self.content, Content::Of(..)) {
            let keep_alive = self.write(&mut head, manner);
            return (head, keep_alive);
        }
        let keep_alive = self.write(&mut head, &Manner { method: Method::Head, ..*manner });
        match self.content {
            Content::Of(_, body) => match Rc::try_unwrap(body) {
                Ok(mut body) => {
                    body.splice(0..0, head);
                    (body, keep_alive)
                }
                // Others are answered with it too.
                Err(body) => {
                    head.extend_from_slice(&body);
                    (head, keep_alive)
                }
            },
            Content::None | Content::Problem(_) => (head, keep_alive),
        }
    }
}

/// Appends the answer to a poll that was held: the fields that its request decided stand in `held`. Returns whether the
/// connection goes on.
pub fn write_held(out: &mut Vec<u8>, answer: &Answer, held: &HeldPoll, unix_s: u64) -> bool {
    let keep_alive = held.keep_alive && !answer.close;
    let mut writer = ResponseWriter::new(out, answer.status).date(&format_imf_date(unix_s));
    for (name, value) in &answer.fields {
        writer = writer.field(name, value);
    }
    if !keep_alive {
        writer = writer.field("Connection", "close");
    }
    let writer = writer.lines(&held.fields);
    match &answer.content {
        Content::None => writer.end_with(&[]),
        Content::Of(content_type, body) => writer.field("Content-Type", content_type).end_with(body),
        Content::Problem(detail) => writer.end_with_problem(&Problem::new(answer.status, detail), false),
    }
    keep_alive
}
