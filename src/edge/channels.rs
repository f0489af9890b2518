//! What a request says of channels: the names in its path, where it wants to begin, how much it wants.

use memchr::memchr;

use crate::domain::channel::{CHANNELS_PER_REQUEST_MAX, Name};
use crate::domain::cursor::{Cursor, parse_joined};
use crate::domain::page::From;
use crate::proto::http::error::HttpError;
use crate::proto::http::target::Query;

use super::answer::Answer;

/// Most messages in one poll's answer.
pub const LIMIT_MAX: u32 = 100;
/// A long poll holds no longer: proxies cut at 60 s.
pub const WAIT_MAX_S: u64 = 50;

/// Parses the decoded rest of `/channels/…`.
///
/// # Errors
/// The answer to give.
pub fn parse_names(path: &str) -> Result<Vec<Name>, Answer> {
    let name = |part| Name::parse(part).map_err(|error| Answer::problem(400, error.detail()));
    if memchr(b',', path.as_bytes()).is_none() {
        return Ok(vec![name(path)?]);
    }
    let mut names: Vec<Name> = Vec::new();
    for part in path.split(',') {
        if names.len() == CHANNELS_PER_REQUEST_MAX {
            return Err(Answer::problem(
                400,
                "more than 64 channels in one URL; split them over several requests",
            ));
        }
        let name = name(part)?;
        if names.contains(&name) {
            return Err(Answer::problem(400, "a channel stands twice in the URL; name each once"));
        }
        names.push(name);
    }
    Ok(names)
}

/// Reads a query parameter that is a whole number.
///
/// # Errors
/// The answer to give.
pub fn number(query: Query<'_>, key: &'static str) -> Result<Option<u64>, Answer> {
    let Some(value) = parameter(query, key)? else { return Ok(None) };
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return Err(Answer::problem(400, format!("?{key}= is not a whole number; give digits alone")));
    }
    Ok(Some(value.parse().unwrap_or(u64::MAX)))
}

/// Reads a query parameter that is on or off; its name alone is on, not to be there is off.
///
/// # Errors
/// The answer to give.
pub fn switch(query: Query<'_>, key: &'static str) -> Result<bool, Answer> {
    match parameter(query, key)?.as_deref() {
        Some("" | "1" | "true") => Ok(true),
        None | Some("0" | "false") => Ok(false),
        Some(_) => {
            Err(Answer::problem(400, format!("?{key}= is neither on nor off; give 1 or true, or 0 or false")))
        }
    }
}

/// Reads a query parameter.
///
/// # Errors
/// The answer to give.
pub fn parameter<'q>(query: Query<'q>, key: &str) -> Result<Option<std::borrow::Cow<'q, str>>, Answer> {
    query.get(key).map_err(refused)
}

/// The answer to a request that the codec refused without losing its place.
pub fn refused(error: HttpError) -> Answer {
    let answer = Answer::problem(error.status(), error.detail());
    if error.closes() { answer.closing() } else { answer }
}

/// The cursor of a request, a part for each channel; `None`: there was none.
///
/// # Errors
/// The answer to give.
pub fn cursor(query: Query<'_>, channels: usize) -> Result<Option<Vec<From>>, Answer> {
    let Some(text) = parameter(query, "cursor")? else { return Ok(None) };
    let parts = parse_joined(&text, channels).map_err(|error| Answer::problem(400, error.detail()))?;
    Ok(Some(parts.into_iter().map(|part| part.map_or(From::Now, From::After)).collect()))
}

/// Where a stream begins: `Last-Event-ID`, `?cursor=`, `?history=`, else now. A `Last-Event-ID` that is no cursor is a
/// gap, for an error would end an EventSource for good.
///
/// # Errors
/// The answer to give.
pub fn stream_start(
    query: Query<'_>,
    last_event_id: Option<&[u8]>,
    channels: usize,
) -> Result<Vec<From>, Answer> {
    if let Some(id) = last_event_id.filter(|id| !id.is_empty()) {
        let parts = std::str::from_utf8(id).ok().and_then(|id| parse_joined(id, channels).ok());
        return Ok(match parts {
            Some(parts) => parts.into_iter().map(|part| part.map_or(From::Now, From::After)).collect(),
            None => vec![From::After(Cursor::NOWHERE); channels],
        });
    }
    if let Some(parts) = cursor(query, channels)? {
        return Ok(parts);
    }
    let history = number(query, "history")?.unwrap_or(0);
    Ok(vec![newest(history); channels])
}

/// From so many messages before now.
pub fn newest(count: u64) -> From {
    match usize::try_from(count).unwrap_or(usize::MAX) {
        0 => From::Now,
        count => From::Newest(count),
    }
}
