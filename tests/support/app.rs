//! The application that most tests serve.

use std::convert::Infallible;
use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use super::Gate;
use http_terminator::Terminator;

/// Length of what `/big` and `/bigstream` send.
pub const BIG: usize = 20 * 1024 * 1024;

/// What the handlers of [`app`] share with the test.
#[derive(Clone, Default)]
pub struct App {
    pub gate: Gate,
    /// For `/terminate`.
    pub terminator: Option<Terminator>,
}

/// Handlers for every way a request can be in flight. Tests add their own with `.route(…)`.
pub fn app(state: App) -> Router {
    Router::new()
        .route("/quick", get(async || "ok"))
        .route("/slow", get(slow).post(slow))
        .route("/block", get(block))
        .route("/echo", post(async |body: Bytes| body))
        .route("/stream", get(streamed))
        .route("/big", get(async || big()))
        .route("/bigstream", get(big_stream))
        // Does not look at the body, which is dropped before the answer is on its way.
        .route(
            "/early",
            post(async || (StatusCode::PAYLOAD_TOO_LARGE, "too much")),
        )
        .route("/upgrade", get(upgrade))
        .route("/upgrade-held", get(upgrade_held))
        .route("/upgrade-slow", get(upgrade_slow))
        .route("/upgrade-told", get(upgrade_told))
        .route("/panic", get(panics))
        .route("/pending", get(std::future::pending::<&str>))
        .route("/terminate", get(terminate))
        .route("/426", get(upgrade_required))
        .layer(DefaultBodyLimit::disable())
        .with_state(state)
}

/// The bytes of `/big` and `/bigstream`.
pub fn big() -> Bytes {
    // 251 is prime: no two blocks of a power of two are alike, so a swapped or lost one shows.
    static PATTERN: LazyLock<Bytes> = LazyLock::new(|| (0..=250).cycle().take(BIG).collect());
    PATTERN.clone()
}

/// Checks the body of `/big` without printing 20 MB.
#[track_caller]
pub fn assert_big(body: &[u8]) {
    let wrong = body.iter().zip(&big()).position(|(got, sent)| got != sent);
    assert_eq!(wrong, None, "position of the first wrong byte");
    assert_eq!(body.len(), BIG, "length of the big body");
}

async fn slow(State(app): State<App>) -> &'static str {
    app.gate.enter().await;
    "slow"
}

async fn block(State(app): State<App>) -> &'static str {
    app.gate.enter_blocking();
    "blocked"
}

async fn streamed(State(app): State<App>) -> Body {
    let last = stream::once(async move {
        // The first part is out before the gate is reached.
        tokio::task::yield_now().await;
        app.gate.enter().await;
        "last\n"
    });
    let chunks = stream::iter(["first\n"]).chain(last);
    Body::from_stream(chunks.map(Ok::<_, Infallible>))
}

async fn big_stream() -> Body {
    let chunks = (0..BIG)
        .step_by(64 * 1024)
        .map(|at| big().slice(at..at + 64 * 1024));
    Body::from_stream(stream::iter(chunks.map(Ok::<_, Infallible>)))
}

async fn upgrade(request: Request) -> Response {
    switch(request, |io| async move {
        let (mut from, mut to) = tokio::io::split(io);
        // An error is a connection that was cut: the client sees it, nobody here needs to.
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    })
}

async fn upgrade_held(request: Request) -> Response {
    switch(request, |io| async move {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        drop(io);
    })
}

async fn upgrade_slow(State(app): State<App>, request: Request) -> Response {
    app.gate.enter().await;
    upgrade(request).await
}

/// Holds the stream until it is told.
async fn upgrade_told(State(app): State<App>, request: Request) -> Response {
    let terminator = app.terminator.expect("`/upgrade-told` needs one");
    switch(request, move |io| async move {
        terminator.draining().await;
        drop(io);
    })
}

/// Answers 101 and gives the upgraded stream to `talk`, in a task of its own.
fn switch<F>(
    mut request: Request,
    talk: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    if request
        .headers()
        .get(header::UPGRADE)
        .is_none_or(|protocol| protocol != "echo")
    {
        return (StatusCode::BAD_REQUEST, "say `upgrade: echo`").into_response();
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // It fails if the connection ends before the 101 is out; then there is nobody to talk to.
        if let Ok(io) = upgraded.await {
            talk(TokioIo::new(io)).await;
        }
    });
    let names = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")];
    (StatusCode::SWITCHING_PROTOCOLS, names).into_response()
}

async fn panics() -> &'static str {
    panic!("this handler panics on purpose")
}

async fn terminate(State(app): State<App>) -> &'static str {
    let terminator = app
        .terminator
        .expect("`/terminate` needs `App { terminator: Some(…) }`");
    drop(terminator.terminate());
    "bye"
}

async fn upgrade_required() -> impl IntoResponse {
    let names = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "h2c")];
    (StatusCode::UPGRADE_REQUIRED, names, "upgrade, please")
}
