//! What is served: a few requests that try what workers do.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::{Router, routing::get};

use crate::worker::Worker;
use crate::{echo, session};

pub fn router(worker: Worker) -> Router {
    Router::new()
        .route("/", get(who))
        .route("/slow/{ms}", get(slow))
        .route("/panic", get(panic))
        .route("/job/{ms}", get(job))
        .route("/count", get(session::join))
        .route("/echo", get(echo::join))
        .with_state(worker)
}

async fn who(State(worker): State<Worker>) -> String {
    format!("{worker}\n")
}

async fn slow(State(worker): State<Worker>, Path(ms): Path<u64>) -> String {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!("{worker}, after {ms} ms\n")
}

/// A fault that nobody catches, in a task that no request waits for.
async fn panic(State(worker): State<Worker>) -> String {
    tokio::spawn(async { panic!("a bug") });
    format!("{worker} has a bug\n")
}

/// The last thing that this worker does, however long it takes. It accepts no more, so another takes its place at once.
async fn job(State(worker): State<Worker>, Path(ms): Path<u64>) -> String {
    // Without a deadline, unless the supervisor has one later. Not awaited: that would wait for this very request.
    drop(worker.terminator.terminate_within(None));
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!("{worker} has worked for {ms} ms\n")
}
