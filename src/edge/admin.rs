//! The operator's side of a node: a listener, a token and a thread of its own, where waiting costs clients nothing.
//! Owns that thread, from the taking of its address to its end with the node, and the list of what is told there. It looks
//! at workers only by errands (`desk`): nothing is shared with them, and no descriptor either (`runtime::files`).
//! Its clients are few; axum and tokio serve them, on one thread.
//!
//! Another topic: a file with a `routes() -> Router<Desk>`, merged in [`router`]. What it answers is an `IntoResponse`,
//! its refusals are [`Refused`](problem::Refused), and the gate has been passed before.

mod census;
mod channels;
mod connections;
mod desk;
mod door;
mod exposition;
mod gate;
mod health;
mod metrics;
mod own;
mod portrait;
mod problem;
mod revocations;
mod trace;

use std::sync::Arc;
use std::thread::JoinHandle;

use axum::{Router, middleware};

use crate::edge::revoked::Revocations;
use crate::runtime::node::Node;
use crate::runtime::report::Report;
use crate::runtime::serve_error::ServeError;
use crate::runtime::settings::Settings;

use self::desk::Desk;
use self::door::Listening;
use self::gate::Gate;
use self::problem::Refused;

/// Makes ready to listen at `admin.listen`, if there is one. Clients wait in the queue from [`begin`] to [`Admin::start`].
///
/// # Errors
/// Somebody has the address, or it cannot be had.
pub fn listen(settings: &Settings) -> Result<Option<Listening>, ServeError> {
    settings.admin.listen.as_ref().map(|address| Listening::new(address, settings.takeover)).transpose()
}

/// Takes the address, now that this process serves, whatever comes.
pub fn begin(listening: &mut Listening) {
    if let Err(error) = listening.begin() {
        tracing::error!(listen = %listening, %error, "nobody can listen there any more; operators do not reach this node");
    }
}

/// The thread that serves operators, until it is dropped.
pub struct Admin {
    node: Arc<Node>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Starts it. Call it on the main thread, when the workers have their own tables of files.
    pub fn start(node: &Arc<Node>, revocations: &Arc<Revocations>, listening: Listening) -> Self {
        let address = listening.to_string();
        let desk = Desk::new(Arc::clone(node), Arc::clone(revocations));
        let thread = std::thread::Builder::new().name("admin".into()).spawn(move || run(desk, listening));
        match &thread {
            Ok(_) => tracing::info!(listen = address, "admin"),
            Err(error) => tracing::error!(%error, "the admin thread could not start; serving without it"),
        }
        Self { node: Arc::clone(node), thread: thread.ok() }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.node.reports.send(Report::End);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the admin thread panicked");
        }
    }
}

/// How many of a list are told at once, unless it is asked for more or fewer: of channels and of connections, each of which
/// takes a look at a worker.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1_000;

/// How many of a list are asked for.
fn limit_of(asked: Option<usize>, usual: usize, max: usize) -> Result<usize, Refused> {
    match asked.unwrap_or(usual) {
        limit if (1..=max).contains(&limit) => Ok(limit),
        limit => Err(Refused::bad(format!("limit = {limit}: must be 1 to {max}; there are pages for more"))),
    }
}

fn run(desk: Desk, listening: Listening) {
    let Some(mailbox) = desk.node().reports.take_mailbox() else { return };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the admin listener cannot be served"),
    };
    let served = runtime.block_on(async {
        let door = listening.open(desk.handed_over())?;
        let serving = axum::serve(door, router(desk.clone()));
        tokio::select! {
            ended = desk.hear(mailbox) => ended,
            served = async { serving.await } => served,
        }
    });
    if let Err(error) = served {
        tracing::error!(%error, "the admin listener is not served any more");
    }
    runtime.shutdown_background();
}

/// All that operators can ask for.
fn router(desk: Desk) -> Router {
    let gate = Arc::new(Gate::new(&desk.node().settings.admin));
    Router::new()
        .merge(health::routes())
        .merge(metrics::routes())
        .merge(channels::routes())
        .merge(connections::routes())
        .merge(revocations::routes())
        .merge(trace::routes())
        .fallback(problem::nothing_here)
        .method_not_allowed_fallback(problem::not_allowed)
        .layer(middleware::from_fn_with_state(gate, gate::check))
        .with_state(desk)
}
