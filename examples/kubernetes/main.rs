//! The server that `deployment.yaml`, beside this file, deploys: it fails its readiness first, goes on serving while
//! everybody learns of it, drains, and answers probes to the last.
//!
//! ```text
//! $ cargo run --example kubernetes      # or: cargo run --example kubernetes -- 127.0.0.1:8080 127.0.0.1:8081
//! traffic on 0.0.0.0:8080, health on 0.0.0.0:8081
//! ```
//!
//! Kubernetes sends SIGTERM and removes the pod from its service *at the same time*, and nobody knows which comes first where.
//! A server that stops accepting on SIGTERM refuses who has not learnt yet; the usual answer to that is a
//! `preStop: sleep`. The lame duck does the same, and says so meanwhile: `/ready` is 503, responses say `connection: close`,
//! HTTP/2 connections are told to go away. So clients that keep their connections, which a service's removal does not
//! move at all, leave as well.
//!
//! ```text
//! SIGTERM ── lame duck ──▶ drain, at most GRACE ──▶ health, at most HEALTH_GRACE ──▶ exit      SIGKILL
//! └────────────────────────── terminationGracePeriodSeconds ───────────────────────────────────────┘
//! ```
//!
//! The times come from the environment, so that the manifest has them beside the one they must fit into.
//! If the pod must keep a `preStop: sleep` (a mesh's injector adds it, a policy demands it), set
//! `LAME_DUCK_SECONDS` to 0: the sleep has been the lame duck, and has used up as much of the same patience.

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

use std::io::{self, Write as _};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use http_terminator::Terminator;
use tokio::net::TcpListener;

/// For a removed pod to be known as such by every node and balancer.
const LAME_DUCK: f64 = 5.0;
/// For requests in hand.
const GRACE: f64 = 20.0;
/// For probes in hand, at the very end.
const HEALTH_GRACE: f64 = 1.0;

#[tokio::main]
async fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let traffic_address = args.next().unwrap_or_else(|| "0.0.0.0:8080".to_owned());
    let health_address = args.next().unwrap_or_else(|| "0.0.0.0:8081".to_owned());

    let traffic = Terminator::builder()
        .lame_duck(seconds("LAME_DUCK_SECONDS", LAME_DUCK)?)
        .grace_period(seconds("GRACE_SECONDS", GRACE)?)
        .build();
    let health = Terminator::builder()
        .grace_period(seconds("HEALTH_GRACE_SECONDS", HEALTH_GRACE)?)
        .build();
    let app = Router::new()
        .route("/", get(async || "hello\n"))
        .route("/echo", post(async |body: Bytes| body));
    let probes = Router::new()
        .route("/live", get(async || "alive\n"))
        .route("/ready", get(ready))
        .with_state(traffic.clone());

    // Traffic first: who finds `/ready` finds it as well.
    let traffic_listener = TcpListener::bind(traffic_address).await?;
    let health_listener = TcpListener::bind(health_address).await?;
    traffic.terminate_on_signal()?;
    let addresses = (
        traffic_listener.local_addr()?,
        health_listener.local_addr()?,
    );
    tokio::spawn(health.serve(health_listener, probes));
    let served = traffic.serve(traffic_listener, app);
    println!("traffic on {}, health on {}", addresses.0, addresses.1);
    // If nobody reads that, which is no reason to leave probes without an answer, `println!` panics.
    let mut out = io::stdout();
    let _ = writeln!(out, "traffic: {}", served.await);
    // Only now: a probe that finds nobody looks like a crash.
    let _ = writeln!(out, "health: {}", health.terminate().await);
    Ok(())
}

/// False from SIGTERM on.
async fn ready(State(traffic): State<Terminator>) -> (StatusCode, &'static str) {
    if traffic.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "leaving\n")
    }
}

fn seconds(name: &str, default: f64) -> io::Result<Duration> {
    let seconds = match std::env::var(name) {
        Ok(value) => value.parse().ok(),
        Err(_) => Some(default),
    };
    seconds
        .and_then(|it| Duration::try_from_secs_f64(it).ok())
        .ok_or_else(|| io::Error::other(format!("{name} is no number of seconds")))
}
