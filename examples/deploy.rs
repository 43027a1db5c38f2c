//! What a deploy loses: the probe of the feature `testing` goes through the end of plain `axum::serve`, and of this crate's, ten
//! times each.
//!
//! ```text
//! $ cargo run --features testing --example deploy      # on a busy machine
//! axum::serve: 2223 answered, 27 lost, 0 cut
//!   lost: GET / over HTTP/1, 1.8ms before the call; after 26.3ms connection error: Connection reset by peer (os error 104)
//! serve: 1332 answered, 0 lost, 0 cut
//! ```

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

use axum::{Router, routing::get};
use http_terminator::{Terminator, testing::Findings, testing::Kind, testing::Probe};
use tokio::{net::TcpListener, sync::oneshot};

const ROUNDS: usize = 10;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let (mut axums, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        axums.push(axum_serve().await?);
        ours.push(serve().await?);
    }
    show("axum::serve", &axums);
    show("serve", &ours);
    for findings in ours {
        findings.assert_nothing_lost().assert_nothing_left();
    }
    Ok(())
}

/// Ten lines that find what plain `axum::serve` loses.
async fn axum_serve() -> std::io::Result<Findings> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let probe = Probe::new(listener.local_addr()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = axum::serve(listener, app()).with_graceful_shutdown(async {
        let _ = stopped.await; // it is dropped
    });
    let server = tokio::spawn(serve.into_future());
    let findings = probe.through(|| {
        drop(stop);
        server
    });
    Ok(findings.await)
}

async fn serve() -> std::io::Result<Findings> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let probe = Probe::new(listener.local_addr()?);
    let terminator = Terminator::new();
    tokio::spawn(terminator.serve(listener, app()));
    Ok(probe.through(|| terminator.terminate()).await)
}

fn app() -> Router {
    Router::new().route("/", get(async || "hello"))
}

fn show(name: &str, rounds: &[Findings]) {
    let sum = |count: fn(&Findings) -> usize| rounds.iter().map(count).sum::<usize>();
    let (answered, lost, cut) = (sum(|it| it.answered), sum(|it| it.lost), sum(|it| it.cut));
    println!("{name}: {answered} answered, {lost} lost, {cut} cut");
    let mut samples = rounds.iter().flat_map(|it| &it.samples);
    if let Some(one) = samples.find(|it| matches!(it.kind, Kind::Lost | Kind::Cut)) {
        println!("  {one}");
    }
}
