//! Two terminators in sequence: traffic first, health and metrics last.
//!
//! ```text
//! $ cargo run --example order           # or: cargo run --example order -- 127.0.0.1:8080 127.0.0.1:8081
//! traffic on 127.0.0.1:3000, health on 127.0.0.1:3001
//! ```
//!
//! On Ctrl-C `curl -i localhost:3001/ready` says 503 at once, while the traffic side goes on serving
//! for two seconds (a lame duck, for the load balancer to learn of it), then drains. Only when it has
//! ended is the health side terminated:
//!
//! ```text
//! traffic: terminated cleanly in 2.0s: 0 connections
//! health: terminated cleanly in 400.0µs: 1 connection (1 idle)
//! ```

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Router, routing::get};
use http_terminator::Terminator;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let traffic_address = args.next().unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let health_address = args.next().unwrap_or_else(|| "127.0.0.1:3001".to_owned());

    let traffic = Terminator::builder()
        .lame_duck(Duration::from_secs(2))
        .build();
    let health = Terminator::new();
    let app = Router::new().route("/", get(|| async { "hello\n" }));
    let probes = Router::new()
        .route("/ready", get(ready))
        .route("/stats", get(stats))
        .with_state(traffic.clone());

    let traffic_listener = TcpListener::bind(traffic_address).await?;
    let health_listener = TcpListener::bind(health_address).await?;
    let addresses = (
        traffic_listener.local_addr()?,
        health_listener.local_addr()?,
    );
    traffic.terminate_on_signal()?;
    tokio::spawn(health.serve(health_listener, probes));
    let served = traffic.serve(traffic_listener, app);
    println!("traffic on {}, health on {}", addresses.0, addresses.1);
    println!("traffic: {}", served.await);
    println!("health: {}", health.terminate().await);
    Ok(())
}

async fn ready(State(traffic): State<Terminator>) -> StatusCode {
    if traffic.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn stats(State(traffic): State<Terminator>) -> String {
    format!("{}\n", traffic.stats())
}
