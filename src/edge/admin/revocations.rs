//! Taking back tokens and channels: `POST /revocations`, `GET /revocations`, `DELETE /revocations/{n}`.
//! Owns their JSON. What a revocation concerns, and what it does, is `revoked`'s.

use std::fmt::Write;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::edge::identity::find_connection;
use crate::edge::revoked::{Asked, NotRevoked, Revocation, Revocations, Target, take};

use super::desk::Desk;
use super::problem::Refused;

/// A list of so many revocations comes in one request, about.
const BODY_BYTES_MAX: usize = 32 << 20;
const LIMIT: usize = 1_000;
const LIMIT_MAX: usize = 100_000;

pub fn routes() -> Router<Desk> {
    Router::new()
        .route("/revocations", get(list).post(revoke).layer(DefaultBodyLimit::max(BODY_BYTES_MAX)))
        .route("/revocations/{number}", delete(lift))
}

/// A revocation as operators give and get it. A list that one node tells is taken by another.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    /// The node's own: not looked at when it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<Box<str>>,
    /// Of the token itself, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<Box<str>>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    made: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

impl Told {
    fn of(revocations: &Revocations, one: &Revocation) -> Self {
        let Target { subject, token_id, digest, channel } = one.target.clone();
        Self {
            number: Some(one.number),
            subject,
            token_id,
            token_sha256: digest.map(|digest| hex(&digest)),
            connection: one.connection.clone(),
            channel,
            made: Some(one.made_s),
            until: Some(revocations.until_s(one)),
        }
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let bytes: &[[u8; 2]; 32] = text.as_bytes().as_chunks().0.try_into().ok().filter(|_| text.len() == 64)?;
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(bytes) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

const fn status_of(why: NotRevoked) -> StatusCode {
    match why {
        NotRevoked::Full { .. } => StatusCode::CONFLICT,
        NotRevoked::Nothing
        | NotRevoked::Empty(_)
        | NotRevoked::Channel(_)
        | NotRevoked::Future
        | NotRevoked::Past => StatusCode::BAD_REQUEST,
    }
}

fn answer(status: StatusCode, body: Value) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

/// Either one object, or a list as `GET` tells it.
async fn revoke(State(desk): State<Desk>, body: Bytes) -> Result<Response, Refused> {
    let bad = |error: serde_json::Error| {
        Refused::bad(format!(
            "not a revocation: {error}; send an object with at least one of subject, token_id, token_sha256, connection \
             and channel, as {{\"subject\":\"anna\"}}"
        ))
    };
    let mut value: Value = serde_json::from_slice(&body).map_err(bad)?;
    if !value.is_object() {
        return Err(Refused::bad("not an object; send one, as {\"subject\":\"anna\"}"));
    }
    if let Some(list) = value.get_mut("revocations").map(Value::take) {
        let told: Vec<Told> = serde_json::from_value(list).map_err(bad)?;
        return revoke_list(&desk, told).await;
    }
    let told: Told = serde_json::from_value(value).map_err(bad)?;
    let connection = told.connection.clone();
    let Some(asked) = asked(&desk, told).await? else {
        // It came without a token: it is closed, and there is nothing to remember.
        return Ok(answer(StatusCode::OK, json!({ "number": null, "connection": connection })));
    };
    let revocations = desk.revocations();
    let (made, result) = revocations.revoke(desk.node(), [asked]);
    result.map_err(|why| Refused::new(status_of(why), why.to_string()))?;
    let made = made.first().map(|one| Told::of(revocations, one)).unwrap_or_default();
    tracing::info!(
        number = made.number,
        subject = made.subject,
        token_id = made.token_id,
        channel = made.channel,
        "revoked"
    );
    Ok(answer(StatusCode::CREATED, json!(made)))
}

async fn revoke_list(desk: &Desk, told: Vec<Told>) -> Result<Response, Refused> {
    let mut all = Vec::with_capacity(told.len());
    for told in told {
        all.extend(asked(desk, told).await?);
    }
    let count = all.len();
    let (made, result) = desk.revocations().revoke(desk.node(), all);
    tracing::info!(count = made.len(), "revoked a list");
    if let Err(why) = result {
        let done = made.len();
        return Err(Refused::new(status_of(why), format!("{done} of {count} hold; the next: {why}")));
    }
    Ok(answer(StatusCode::CREATED, told_list(desk, &made)))
}

fn told_list(desk: &Desk, all: &[Arc<Revocation>]) -> Value {
    let told: Vec<Told> = all.iter().map(|one| Told::of(desk.revocations(), one)).collect();
    json!({ "revocations": told })
}

/// What is asked for. `None`: all that was asked for is done.
async fn asked(desk: &Desk, told: Told) -> Result<Option<Asked>, Refused> {
    let Told { subject, token_id, token_sha256, connection, channel, made, until, number: _ } = told;
    let mut digest = match token_sha256.as_deref() {
        Some(text) => Some(parse_hex(text).ok_or_else(|| {
            Refused::bad("token_sha256 is not 64 hex digits; give the SHA-256 of the whole token")
        })?),
        None => None,
    };
    if let (Some(id), None) = (&connection, digest) {
        let gone = || {
            Refused::new(
                StatusCode::NOT_FOUND,
                "no connection has this id, or no longer; GET /connections lists them",
            )
        };
        let (worker, conn) = find_connection(desk.node(), id).ok_or_else(gone)?;
        digest = desk.ask(worker, move |state| take(state, conn)).await?.ok_or_else(gone)?.digest;
        if digest.is_none() {
            return Ok(None);
        }
    }
    let target = Target { subject, token_id, digest, channel };
    Ok(Some(Asked { target, connection, made_s: made, until_s: until }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    after: Option<u64>,
    limit: Option<usize>,
}

async fn list(
    State(desk): State<Desk>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(Page { after, limit }) = page?;
    let limit = super::limit_of(limit, LIMIT, LIMIT_MAX)?;
    let mut all = desk.revocations().list(after.unwrap_or(0), limit + 1);
    let has_more = all.len() > limit;
    all.truncate(limit);
    let mut told = told_list(&desk, &all);
    if has_more && let Some(last) = all.last() {
        told["next"] = last.number.into();
    }
    Ok(answer(StatusCode::OK, told))
}

async fn lift(State(desk): State<Desk>, Path(number): Path<String>) -> Result<Response, Refused> {
    let number: u64 =
        number.parse().map_err(|_| Refused::bad("the number of a revocation is digits alone"))?;
    if !desk.revocations().lift(number) {
        return Err(Refused::new(
            StatusCode::NOT_FOUND,
            "no revocation has this number, or no longer; GET /revocations lists them",
        ));
    }
    tracing::info!(number, "lifted a revocation");
    Ok(StatusCode::NO_CONTENT.into_response())
}
