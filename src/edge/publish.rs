//! Publishing: one message to the channels of a URL, batches, deletion.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use sha1::{Digest, Sha1};

use crate::domain::auth::{Act, Bearer, Proof};
use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::home::{PublishRefusal, Published};
use crate::domain::idempotency::{Key, Known};
use crate::domain::message::{Body, Draft};
use crate::proto::http::date::format_imf_date;
use crate::proto::json;
use crate::proto::publish::{Publish, PublishData, parse_batch_line};
use crate::proto::refusal::{ErrorCode, Refusal};
use crate::runtime::mail::{Answer as Told, Ask};
use crate::runtime::peer::Peer;
use crate::runtime::quotas::Limited;
use crate::runtime::running::Work;
use crate::runtime::stats::Refusal as Counted;
use crate::runtime::turns::Pace;
use crate::runtime::worker::Worker;

use super::answer::{Answer, HEAD_BYTES};
use super::auth::{Declined, Denied};
use super::doorman::Doorman;

/// A publish that waits for the first one with its key asks so often, and so many times.
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(5);
const IN_FLIGHT_TRIES: usize = 2_000;

/// Lines of one batch: what answers them is longer than they are.
const BATCH_LINES_MAX: usize = 65_536;
/// Of the answer to a batch, about what a line's result takes.
const RESULT_BYTES: usize = 128;

/// Who publishes.
#[derive(Clone, Copy)]
pub struct Publisher<'b>(Option<(&'b Doorman, &'b Bearer, Peer)>);

impl<'b> Publisher<'b> {
    /// Anyone: no authentication is configured.
    pub const ANYONE: Self = Self(None);

    pub const fn of(doorman: &'b Doorman, bearer: &'b Bearer, peer: Peer) -> Self {
        Self(Some((doorman, bearer, peer)))
    }

    /// Whether they may publish to a channel. That they may not is told of in the log.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn may_publish(self, name: &Name) -> Result<(), Denied> {
        match self.0 {
            Some((doorman, bearer, peer)) => {
                doorman.permit(bearer, Act::Publish, std::slice::from_ref(name), peer)
            }
            None => Ok(()),
        }
    }

    fn key_space(self) -> Box<str> {
        self.0.map_or_else(|| "".into(), |(_, bearer, _)| key_space(bearer))
    }
}

/// Whose idempotency keys they are: a token's and an API key's are not of one publisher, though they are called alike.
fn key_space(bearer: &Bearer) -> Box<str> {
    let Some(subject) = &bearer.subject else { return "".into() };
    match bearer.proof {
        Proof::None => "".into(),
        Proof::Token => format!("token:{subject}").into(),
        Proof::ApiKey => format!("key:{subject}").into(),
    }
}

/// Why a message was not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Key(PublishRefusal),
    Overloaded,
    /// The node is short of memory.
    Memory,
    Draining,
    Limited(Limited),
}

impl Refused {
    pub const fn status(self) -> u16 {
        match self {
            Self::Key(PublishRefusal::KeyConflict) => 409,
            Self::Key(PublishRefusal::KeysFull) | Self::Limited(_) => 429,
            Self::Key(PublishRefusal::InFlight | PublishRefusal::ChannelsFull)
            | Self::Overloaded
            | Self::Memory
            | Self::Draining => 503,
        }
    }

    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Key(PublishRefusal::KeyConflict) => ErrorCode::KeyConflict,
            Self::Key(PublishRefusal::KeysFull) => ErrorCode::KeyStoreFull,
            Self::Key(PublishRefusal::InFlight | PublishRefusal::ChannelsFull)
            | Self::Overloaded
            | Self::Memory => ErrorCode::Overloaded,
            Self::Draining => ErrorCode::Draining,
            Self::Limited(_) => ErrorCode::RateLimited,
        }
    }

    pub const fn detail(self) -> &'static str {
        match self {
            Self::Key(PublishRefusal::KeyConflict) => {
                "this idempotency key was used for another message in the last two minutes; use a new key"
            }
            Self::Key(PublishRefusal::KeysFull) => {
                "the store of idempotency keys is full; publish again later with the same key"
            }
            Self::Key(PublishRefusal::InFlight) => {
                "the first publish with this idempotency key is still under way; publish again later with the same key"
            }
            Self::Key(PublishRefusal::ChannelsFull) => {
                "every channel that the server may have is in use; publish again later, or raise limits.channels"
            }
            Self::Overloaded => "the server has more to do than it can; publish again later",
            Self::Memory => "the server is short of memory; come back later",
            Self::Draining => "the server is going away; publish again on a new connection",
            Self::Limited(limited) => limited.detail(),
        }
    }
}

/// Publishes to all channels of a URL, which `publisher` may.
pub async fn publish(
    worker: &Rc<Worker>,
    names: &[Name],
    draft: Draft,
    key: Option<&[u8]>,
    publisher: Publisher<'_>,
) -> Answer {
    let key = key.map(|key| Box::new(key_of(key, &draft, publisher)));
    let result = match names {
        [name] => publish_one(worker, name, draft, key).await.map(|published| vec![published]),
        names => publish_all(worker, names, &draft, key).await,
    };
    answer(worker, names, result)
}

/// The answer to a publish to the channels of a URL.
pub fn answer(worker: &Rc<Worker>, names: &[Name], result: Result<Vec<Published>, Refused>) -> Answer {
    match result {
        Ok(published) => done(names, &published),
        Err(refused) => refusal(worker, refused),
    }
}

fn done(names: &[Name], published: &[Published]) -> Answer {
    let mut body = Vec::with_capacity(64 * names.len() + 16);
    body.extend_from_slice(br#"{"published":["#);
    for (at, (name, one)) in names.iter().zip(published).enumerate() {
        if at > 0 {
            body.push(b',');
        }
        write_published(&mut body, name, one);
    }
    body.extend_from_slice(b"]}");
    let answer = Answer::json(201, body).field("Cache-Control", "no-store");
    if published.iter().all(|one| one.replayed) {
        answer.field("Idempotency-Replayed", "true")
    } else {
        answer
    }
}

/// Appends the answer to a new message that was placed in one channel, to a request of HTTP/1.1 without `Origin`: the same
/// bytes as [`answer`]'s, in one go. The most frequent answer of all.
pub fn write_placed(out: &mut Vec<u8>, unix_s: u64, name: &Name, cursor: Cursor) {
    const BODY: [&[u8]; 3] = [br#"{"published":[{"channel":"#, br#","id":""#, br#""}]}"#];
    out.extend_from_slice(b"HTTP/1.1 201 Created\r\nDate: ");
    out.extend_from_slice(&format_imf_date(unix_s));
    out.extend_from_slice(
        b"\r\nVary: Origin\r\nCache-Control: no-store\r\nContent-Type: application/json\r\nContent-Length: ",
    );
    let (name, id) = (name.as_str(), cursor.text());
    let body_bytes = BODY.iter().map(|part| part.len()).sum::<usize>() + json::str_bytes(name) + id.len();
    json::write_u64(out, body_bytes as u64);
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(BODY[0]);
    json::write_str(out, name);
    out.extend_from_slice(BODY[1]);
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(BODY[2]);
}

fn write_published(out: &mut Vec<u8>, name: &Name, published: &Published) {
    out.extend_from_slice(br#"{"channel":"#);
    json::write_str(out, name.as_str());
    out.extend_from_slice(br#","id":""#);
    out.extend_from_slice(published.cursor.text().as_bytes());
    out.extend_from_slice(br#""}"#);
}

/// The answer to a publish that was not done.
pub fn refusal(worker: &Rc<Worker>, refused: Refused) -> Answer {
    count(worker, refused);
    let answer = Answer::problem(refused.status(), refused.detail());
    match refused {
        Refused::Key(PublishRefusal::KeyConflict) => answer,
        Refused::Draining => with_retry_after(worker, answer).closing(),
        Refused::Key(_) | Refused::Overloaded | Refused::Memory | Refused::Limited(_) => {
            with_retry_after(worker, answer)
        }
    }
}

/// Counts what was refused because of the server, not of what was sent.
pub fn count(worker: &Rc<Worker>, refused: Refused) {
    let refusal = match refused {
        Refused::Key(PublishRefusal::KeyConflict) => return,
        Refused::Key(PublishRefusal::KeysFull) => Counted::Keys,
        Refused::Key(PublishRefusal::ChannelsFull) => Counted::Channels,
        Refused::Key(PublishRefusal::InFlight) | Refused::Overloaded => Counted::Overloaded,
        Refused::Memory => Counted::Memory,
        Refused::Draining => Counted::Draining,
        Refused::Limited(_) => Counted::Quota,
    };
    worker.stats().refuse(refusal);
}

/// Adds a jittered `Retry-After`.
pub fn with_retry_after(worker: &Rc<Worker>, answer: Answer) -> Answer {
    let seconds = worker.with(|state| state.reconnect_ms()).div_ceil(1_000).max(1);
    answer.field("Retry-After", seconds.to_string())
}

/// A key with the digest of what it came with.
fn key_of(key: &[u8], draft: &Draft, publisher: Publisher<'_>) -> Key {
    let mut digest = Sha1::new();
    digest.update([match draft.body {
        Body::Json(_) => 0,
        Body::Text(_) => 1,
        Body::Binary(_) => 2,
        Body::Deletion => 3,
    }]);
    digest.update(draft.ttl_seconds.map_or(u64::MAX, u64::from).to_le_bytes());
    let event = draft.event.as_deref().unwrap_or_default();
    digest.update((event.len() as u64).to_le_bytes());
    digest.update(event.as_bytes());
    digest.update(draft.body.bytes());
    Key { publisher: publisher.key_space(), key: key.into(), digest: digest.finalize().into() }
}

/// Until the first request with a key may be done. Boxed: seldom needed, and large.
async fn pause() {
    Box::pin(monoio::time::sleep(IN_FLIGHT_PAUSE)).await;
}

/// Publishes one message to one channel.
///
/// # Errors
/// [`Refused`]; nothing was published.
pub async fn publish_one(
    worker: &Rc<Worker>,
    name: &Name,
    draft: Draft,
    key: Option<Box<Key>>,
) -> Result<Published, Refused> {
    may_publish(worker)?;
    let Some(key) = key else {
        let ask = Ask::Publish { name: name.clone(), draft, key: None };
        return told(worker.ask(name, ask).await);
    };
    for _ in 0..IN_FLIGHT_TRIES {
        let ask = Ask::Publish { name: name.clone(), draft: draft.clone(), key: Some(key.clone()) };
        match told(worker.ask(name, ask).await) {
            Err(Refused::Key(PublishRefusal::InFlight)) => pause().await,
            other => return other,
        }
    }
    Err(Refused::Key(PublishRefusal::InFlight))
}

/// # Errors
/// Nobody may just now.
fn may_publish(worker: &Rc<Worker>) -> Result<(), Refused> {
    worker.with(|state| match (state.draining.is_some(), state.is_full()) {
        (true, _) => Err(Refused::Draining),
        (false, true) => Err(Refused::Memory),
        (false, false) => Ok(()),
    })
}

fn told(answer: Result<Told, crate::runtime::post::Overloaded>) -> Result<Published, Refused> {
    match answer {
        Ok(Told::Published(Ok(published))) => Ok(published),
        Ok(Told::Published(Err(refusal))) => Err(Refused::Key(refusal)),
        Ok(_) | Err(_) => Err(Refused::Overloaded),
    }
}

/// Publishes to several channels: with a key, only when it is free, or done, in all of them.
async fn publish_all(
    worker: &Rc<Worker>,
    names: &[Name],
    draft: &Draft,
    key: Option<Box<Key>>,
) -> Result<Vec<Published>, Refused> {
    may_publish(worker)?;
    // All channels have their place before the first message is published; what follows always has room.
    for name in names {
        match worker.ask(name, Ask::Claim { name: name.clone() }).await {
            Ok(Told::Claimed(true)) => {}
            Ok(_) => return Err(Refused::Key(PublishRefusal::ChannelsFull)),
            Err(_) => return Err(Refused::Overloaded),
        }
    }
    let Some(key) = key else {
        let mut published = Vec::with_capacity(names.len());
        for name in names {
            let ask = Ask::Publish { name: name.clone(), draft: draft.clone(), key: None };
            published.push(told(Ok(worker.ask_surely(name, ask).await))?);
        }
        return Ok(published);
    };
    // In the order of names, so that two publishers of the same channels never wait for each other.
    let mut sorted: Vec<&Name> = names.iter().collect();
    sorted.sort();
    let mut reserved = Vec::with_capacity(names.len());
    let mut done = HashMap::new();
    for name in sorted {
        match reserve(worker, name, &key).await {
            Ok(Known::Done(cursor)) => drop(done.insert(name, Published { cursor, replayed: true })),
            Ok(_) => reserved.push(name),
            Err(refused) => {
                release(worker, &reserved, &key).await;
                return Err(refused);
            }
        }
    }
    while let Some(name) = reserved.pop() {
        let ask = Ask::PublishReserved { name: name.clone(), draft: draft.clone(), key: key.clone() };
        match told(Ok(worker.ask_surely(name, ask).await)) {
            Ok(published) => drop(done.insert(name, published)),
            Err(refused) => {
                reserved.push(name);
                release(worker, &reserved, &key).await;
                return Err(refused);
            }
        }
    }
    Ok(names.iter().filter_map(|name| done.remove(name)).collect())
}

/// Gives reservations back.
async fn release(worker: &Rc<Worker>, names: &[&Name], key: &Key) {
    for name in names {
        let ask = Ask::Release { name: (*name).clone(), key: Box::new(key.clone()) };
        // An overloaded home forgets it after a while by itself.
        let _ = worker.ask(name, ask).await;
    }
}

/// Reserves a key in one channel; waits for another publish that has it.
async fn reserve(worker: &Rc<Worker>, name: &Name, key: &Key) -> Result<Known, Refused> {
    for _ in 0..IN_FLIGHT_TRIES {
        let ask = Ask::Reserve { name: name.clone(), key: Box::new(key.clone()) };
        match worker.ask(name, ask).await {
            Ok(Told::Known(known @ (Known::New | Known::Done(_)))) => return Ok(known),
            Ok(Told::Known(Known::InFlight)) => pause().await,
            Ok(Told::Known(Known::Conflict)) => return Err(Refused::Key(PublishRefusal::KeyConflict)),
            Ok(Told::Known(Known::Full)) => return Err(Refused::Key(PublishRefusal::KeysFull)),
            Ok(_) | Err(_) => return Err(Refused::Overloaded),
        }
    }
    Err(Refused::Key(PublishRefusal::InFlight))
}

/// Publishes what a batch line or a frame says. `before`: the channel of what was published before it, often the same.
/// `over_quota`: why a message of so many bytes may not be published just now; asked last, so that what is refused anyway
/// takes nothing of anybody's.
///
/// # Errors
/// The code and the words for it.
pub async fn publish_parsed(
    worker: &Rc<Worker>,
    publish: Publish<'_>,
    message_bytes_max: usize,
    publisher: Publisher<'_>,
    before: Option<&Name>,
    over_quota: impl Fn(usize) -> Option<Limited>,
) -> Result<(Name, Published), (Declined, u16)> {
    let name = match before.filter(|name| name.as_str() == publish.channel) {
        Some(name) => name.clone(),
        None => Name::parse(&publish.channel)
            .map_err(|error| (Refusal::new(ErrorCode::BadChannel, error.detail()).into(), 400))?,
    };
    publisher.may_publish(&name).map_err(|denied| {
        worker.stats().refuse(denied.counted());
        (denied.into(), denied.status())
    })?;
    let body = match publish.data {
        PublishData::Json(text) => Body::Json(text.into()),
        PublishData::Text(text) => Body::Text(text.into()),
        PublishData::Binary(bytes) => Body::Binary(bytes.into()),
    };
    if body.bytes().len() > message_bytes_max {
        return Err((Refusal::new(ErrorCode::MessageTooLarge, TOO_LARGE).into(), 413));
    }
    let draft = Draft { event: publish.event.as_deref().map(Into::into), body, ttl_seconds: publish.ttl_s };
    let key = publish.key.as_deref().map(|key| Box::new(key_of(key.as_bytes(), &draft, publisher)));
    let published = match over_quota(draft.body.bytes().len()) {
        Some(limited) => Err(Refused::Limited(limited)),
        None => publish_one(worker, &name, draft, key).await,
    };
    published.map(|published| (name, published)).map_err(|refused| {
        count(worker, refused);
        (Refusal::new(refused.code(), refused.detail()).into(), refused.status())
    })
}

const TOO_LARGE: &str =
    "the message is larger than limits.message_bytes; publish less at once, or raise the limit";

/// What is said of a body that is larger than messages may be.
pub fn too_large(bytes_max: usize) -> String {
    format!(
        "the message is larger than {bytes_max} bytes; publish less at once, or raise limits.message_bytes"
    )
}

/// Publishes the lines of a batch, in order; each is answered by one line. `over_quota`: why a message of so many bytes may
/// not be published just now.
pub async fn batch(
    worker: &Rc<Worker>,
    body: &[u8],
    message_bytes_max: usize,
    publisher: Publisher<'_>,
    over_quota: impl Fn(usize) -> Option<Limited>,
) -> Answer {
    let lines = memchr::memchr_iter(b'\n', body).count();
    if lines > BATCH_LINES_MAX {
        return Answer::problem(413, "a batch has at most 65536 lines; split it");
    }
    let mut pace = Pace::new(worker.with(|state| state.node.settings.history.messages));
    let mut room = HEAD_BYTES + (lines + 1) * RESULT_BYTES;
    let mut work = Work::begin(worker, body.len(), room).await;
    let mut out = Vec::with_capacity(room);
    let (mut from, mut before) = (0, None);
    for end in memchr::memchr_iter(b'\n', body).chain([body.len()]) {
        let line = &body[std::mem::replace(&mut from, end + 1)..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let result = match parse_batch_line(line) {
            Ok(publish) => {
                let before = before.as_ref();
                publish_parsed(worker, publish, message_bytes_max, publisher, before, &over_quota).await
            }
            Err(refusal) => Err((refusal.into(), 400)),
        };
        match result {
            Ok((name, published)) => {
                write_published(&mut out, &name, &published);
                if published.replayed {
                    out.pop();
                    out.extend_from_slice(br#","replayed":true}"#);
                }
                before = Some(name);
            }
            Err((Declined { refusal, .. }, status)) => {
                out.extend_from_slice(br#"{"status":"#);
                json::write_u64(&mut out, u64::from(status));
                out.extend_from_slice(br#","code":"#);
                json::write_str(&mut out, refusal.code.as_str());
                out.extend_from_slice(br#","detail":"#);
                json::write_str(&mut out, refusal.detail);
                out.push(b'}');
            }
        }
        out.push(b'\n');
        if out.capacity() > room {
            room = out.capacity();
            work.weighs(room);
        }
        pace.step(line.len()).await;
    }
    Answer::of(200, "application/x-ndjson", out).field("Cache-Control", "no-store")
}

/// Forgets the history of channels.
pub async fn delete(worker: &Rc<Worker>, names: &[Name]) -> Answer {
    for name in names {
        if worker.ask(name, Ask::Delete { name: name.clone() }).await.is_err() {
            return refusal(worker, Refused::Overloaded);
        }
    }
    Answer::new(204).field("Cache-Control", "no-store")
}

#[cfg(test)]
mod tests {
    use crate::proto::http::request::{Method, Version};

    use super::super::answer::Manner;
    use super::super::origin::Passed;
    use super::*;
    use crate::domain::auth::Grants;

    #[test]
    fn idempotency_keys_are_each_publishers_own() {
        let bearer = |proof, subject: Option<&str>| Bearer {
            proof,
            subject: subject.map(Into::into),
            token_id: None,
            issued_s: None,
            expires_s: None,
            digest: [0; 32],
            grants: Grants::default(),
        };
        let stranger = bearer(Proof::None, None);
        let (token, key) = (bearer(Proof::Token, Some("app")), bearer(Proof::ApiKey, Some("app")));
        let other = bearer(Proof::Token, Some("other"));
        let spaces = [&stranger, &token, &key, &other].map(key_space);
        for (at, space) in spaces.iter().enumerate() {
            assert!(!spaces[..at].contains(space), "{spaces:?}");
        }
        assert_eq!(Publisher::ANYONE.key_space(), spaces[0]);
    }

    #[test]
    fn an_answer_in_one_go_is_the_same() {
        let passed = Passed::default();
        let manner = |unix_s| Manner {
            method: Method::Post,
            version: Version::Http11,
            keep_alive: true,
            passed,
            unix_s,
        };
        for (name, seq, unix_s) in
            [("a", 1, 0), ("news/1", u64::MAX, 1_700_000_000), ("é \"q\" \\", 70_000, 1_700_000_001)]
        {
            let name = Name::parse(name).expect("a name");
            let cursor = Cursor { incarnation: 77, seq };
            let (mut at_once, mut made) = (b"before".to_vec(), b"before".to_vec());
            write_placed(&mut at_once, unix_s, &name, cursor);
            let published = [Published { cursor, replayed: false }];
            done(std::slice::from_ref(&name), &published).write(&mut made, &manner(unix_s));
            assert_eq!(String::from_utf8(at_once), String::from_utf8(made));
        }
    }
}
