//! Streams and long polls that would never end by themselves.
//!
//! ```text
//! $ cargo run --example sse             # or: cargo run --example sse -- 127.0.0.1:8080
//! listening on 127.0.0.1:3000
//! ```
//!
//! `curl -N localhost:3000/events` gets an event each second, `curl -i localhost:3000/poll` waits for
//! news that never come. On Ctrl-C the stream gets a last event and ends cleanly, the long poll is
//! answered `204`, and the server prints its report and exits with 0:
//!
//! ```text
//! terminated cleanly in 2.0ms: 2 connections (1 finished, 1 closed by peer)
//! ```

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Sse;
use axum::response::sse::Event;
use axum::{Router, routing::get};
use futures_util::stream::{self, Stream, StreamExt};
use http_terminator::Terminator;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let terminator = Terminator::new();
    let app = Router::new()
        .route("/events", get(events))
        .route("/poll", get(poll))
        .with_state(terminator.clone());

    let listener = TcpListener::bind(address).await?;
    terminator.terminate_on_signal()?;
    let address = listener.local_addr()?;
    let server = terminator.serve(listener, app);
    println!("listening on {address}");
    println!("{}", server.await);
    Ok(())
}

async fn events(
    State(terminator): State<Terminator>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let ticks = stream::unfold(0, |n| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some((Event::default().data(n.to_string()), n + 1))
    });
    let goodbye = stream::iter([Event::default().event("goodbye").data("restarting")]);
    Sse::new(
        ticks
            .take_until(terminator.draining())
            .chain(goodbye)
            .map(Ok),
    )
}

async fn poll(State(terminator): State<Terminator>) -> (StatusCode, &'static str) {
    let news = std::future::pending::<&str>();
    match terminator
        .cancellation_token()
        .run_until_cancelled(news)
        .await
    {
        Some(news) => (StatusCode::OK, news),
        None => (StatusCode::NO_CONTENT, ""),
    }
}
