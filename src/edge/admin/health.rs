//! Whether the process lives, and whether clients should come to it.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::desk::Desk;
use super::problem::Refused;

pub fn routes() -> Router<Desk> {
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready))
}

async fn alive() -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(json!({ "status": "ok" }))).into_response()
}

async fn ready(State(desk): State<Desk>) -> Result<Response, Refused> {
    let phase = desk.node().progress.phase();
    if phase.is_ready() {
        let body = Json(json!({ "status": phase.as_str() }));
        return Ok(([(header::CACHE_CONTROL, "no-store")], body).into_response());
    }
    Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, phase.detail()))
}
