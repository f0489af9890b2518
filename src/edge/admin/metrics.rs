//! `/metrics`: what the workers have counted, and what they hold, as OpenMetrics (openmetrics.io, version 1.0).
//! Owns the scrape. Counters are read where workers write them; what must be walked over is asked for (`census`). A worker
//! that does not answer in time is told as down, and what it has counted is told all the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

use crate::domain::home::WorkerIndex;
use crate::runtime::node::Node;

use super::census::Census;
use super::desk::Desk;
use super::exposition::Exposition;
use super::problem::Refused;

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The census of a worker takes no longer; scrapers wait for 10 s.
const CENSUS_MAX: Duration = Duration::from_secs(6);

pub fn routes() -> Router<Desk> {
    Router::new().route("/metrics", get(metrics))
}

/// What one scrape found.
#[derive(Debug)]
pub struct Scrape {
    pub node: Numbers,
    /// By worker; `None`: it did not answer.
    pub workers: Vec<Option<Counted>>,
}

/// A worker's census, and how long it took to answer the first question of it.
#[derive(Debug)]
pub struct Counted {
    pub census: Census,
    pub answered_in: Duration,
}

/// The node, whose numbers need no asking.
pub struct Numbers(pub Arc<Node>);

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Numbers").finish_non_exhaustive()
    }
}

async fn metrics(State(desk): State<Desk>) -> Result<Response, Refused> {
    let scrape = scrape(&desk).await;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition(scrape)));
    let mut out = String::with_capacity(32 * 1024);
    text::encode(&mut out, &registry).map_err(|_| {
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "a number could not be written; ask again")
    })?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")], out).into_response())
}

async fn scrape(desk: &Desk) -> Scrape {
    let mut counting = JoinSet::new();
    for worker in desk.workers() {
        let desk = desk.clone();
        counting.spawn(async move { (worker, count(&desk, worker).await) });
    }
    let mut workers: Vec<Option<Counted>> = desk.workers().map(|_| None).collect();
    while let Some(counted) = counting.join_next().await {
        if let Ok((worker, counted)) = counted
            && let Some(place) = workers.get_mut(usize::from(worker))
        {
            *place = counted;
        }
    }
    Scrape { node: Numbers(Arc::clone(desk.node())), workers }
}

/// Walks over one worker, slice by slice.
async fn count(desk: &Desk, worker: WorkerIndex) -> Option<Counted> {
    let begun = Instant::now();
    let mut census = Census::default();
    let mut answered_in = None;
    while begun.elapsed() < CENSUS_MAX {
        let (counted, is_whole) = desk
            .ask(worker, move |state| {
                let is_whole = census.go_on(state);
                (census, is_whole)
            })
            .await
            .ok()?;
        census = counted;
        let answered_in = *answered_in.get_or_insert_with(|| begun.elapsed());
        if is_whole {
            return Some(Counted { census, answered_in });
        }
    }
    None
}
