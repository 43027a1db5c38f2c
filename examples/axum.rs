//! An axum server that ends well.
//!
//! ```text
//! $ cargo run --example axum            # or: cargo run --example axum -- 127.0.0.1:8080
//! listening on 127.0.0.1:3000
//! ```
//!
//! In another shell: `curl -i localhost:3000/`, `curl -i localhost:3000/slow` (answers after three
//! seconds), `curl -N localhost:3000/stream` (a line each half second, for ever). Press Ctrl-C while
//! they run: `/slow` is answered with `connection: close`, the stream ends cleanly, and the server
//! prints its report and exits with 0:
//!
//! ```text
//! terminated cleanly in 2.1s: 2 connections (1 finished, 1 closed by peer)
//! ```
//!
//! A second Ctrl-C, a second or more behind the first, ends it at once.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::{Router, routing::get};
use futures_util::StreamExt;
use http_terminator::Terminator;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let terminator = Terminator::builder()
        .grace_period(Duration::from_secs(20))
        .build();
    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .route("/slow", get(slow))
        .route("/stream", get(stream))
        .with_state(terminator.clone());

    let listener = TcpListener::bind(address).await?;
    terminator.terminate_on_signal()?;
    let address = listener.local_addr()?;
    // Before anybody is told: a termination takes over the queue of what it knows.
    let server = terminator.serve(listener, app);
    println!("listening on {address}");
    let report = server.await;
    println!("{report}");
    Ok(())
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_secs(3)).await;
    "that took three seconds\n"
}

/// It would never end by itself, so it ends when the drain begins.
async fn stream(State(terminator): State<Terminator>) -> Body {
    let lines = futures_util::stream::unfold(0, |n| async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        Some((
            Ok::<_, std::io::Error>(Bytes::from(format!("line {n}\n"))),
            n + 1,
        ))
    });
    Body::from_stream(lines.take_until(terminator.draining()))
}
