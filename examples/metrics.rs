//! `Stats` and `Report` as metrics for Prometheus, served by a second terminator that ends last: the report is there
//! only when everything else has ended, and is worth nothing if nobody fetches it.
//!
//! ```text
//! $ cargo run --example metrics         # or: … -- 127.0.0.1:3000 127.0.0.1:3001 15 (seconds)
//! traffic on 127.0.0.1:3000, metrics on 127.0.0.1:3001
//! ```
//!
//! `curl localhost:3001/metrics` shows what is in hand, also while it drains. After Ctrl-C the traffic side ends; the
//! metrics side waits until somebody has fetched the report, or for 15 seconds (let that be a bit more than Prometheus's
//! `scrape_interval`; like everything here it counts against the patience of who has sent SIGTERM), and ends as well:
//!
//! ```text
//! traffic: terminated cleanly in 2.1s: 1 connection (1 finished)
//! its report was fetched: true
//! metrics: terminated cleanly in 0.4ms: 1 connection (1 finished)
//! ```

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it
#![allow(clippy::cast_precision_loss)] // of counts above 2⁵³

use std::error::Error;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Router, http::header, response::IntoResponse};
use http_terminator::{Phase, Report, Stats, Terminator};
use metrics::{counter, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::Notify;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let traffic_address = args.next().unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let metrics_address = args.next().unwrap_or_else(|| "127.0.0.1:3001".to_owned());
    let patience = args.next().unwrap_or_else(|| "15".to_owned()).parse()?;
    let patience = Duration::try_from_secs_f64(patience)?;

    let traffic = Terminator::builder()
        .grace_period(Duration::from_secs(10))
        .build();
    let metrics = Terminator::new();
    let export = Export {
        prometheus: PrometheusBuilder::new().install_recorder()?,
        traffic: traffic.clone(),
        report: Arc::default(),
        fetched: Arc::default(),
    };
    let app = Router::new()
        .route("/", get(async || "hello\n"))
        .route("/echo", post(async |body: Bytes| body));
    let scraped = Router::new()
        .route("/metrics", get(render))
        .with_state(export.clone());

    let traffic_listener = TcpListener::bind(traffic_address).await?;
    let metrics_listener = TcpListener::bind(metrics_address).await?;
    traffic.terminate_on_signal()?;
    println!(
        "traffic on {}, metrics on {}",
        traffic_listener.local_addr()?,
        metrics_listener.local_addr()?
    );
    tokio::spawn(metrics.serve(metrics_listener, scraped));

    let report = traffic.serve(traffic_listener, app).await;
    println!("traffic: {report}");
    export.report.set(report).expect("there is one end");
    let fetched = tokio::time::timeout(patience, export.fetched.notified());
    println!("its report was fetched: {}", fetched.await.is_ok());
    // Its answer may still be on its way: a response in hand is finished.
    println!("metrics: {}", metrics.terminate().await);
    Ok(())
}

#[derive(Clone)]
struct Export {
    prometheus: PrometheusHandle,
    traffic: Terminator,
    report: Arc<OnceLock<Report>>,
    fetched: Arc<Notify>,
}

/// Looks when it is asked, so nothing goes stale and nothing runs meanwhile.
async fn render(State(export): State<Export>) -> impl IntoResponse {
    // The report first: beside it, the rest is that of the end.
    let report = export.report.get();
    record(&export.traffic.stats());
    if let Some(report) = report {
        record_end(report);
    }
    let text = export.prometheus.render();
    if report.is_some() {
        export.fetched.notify_one();
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

fn record(stats: &Stats) {
    for phase in [
        Phase::Serving,
        Phase::LameDuck,
        Phase::Draining,
        Phase::Forcing,
        Phase::Terminated,
    ] {
        let is_it = u8::from(stats.phase == phase);
        gauge!("http_terminator_phase", "phase" => phase.to_string()).set(is_it);
    }
    for (state, n) in [
        ("idle", stats.idle),
        ("busy", stats.busy),
        ("upgraded", stats.upgraded),
    ] {
        gauge!("http_terminator_connections", "state" => state).set(n as f64);
    }
    gauge!("http_terminator_requests").set(stats.requests as f64);
    gauge!("http_terminator_guards").set(stats.guards as f64);
    gauge!("http_terminator_listeners").set(stats.listeners as f64);
    counter!("http_terminator_accepted_total").absolute(stats.accepted);
}

/// Gauges: the process ends with them, and what was lost is to be summed over the servers, not over time.
fn record_end(report: &Report) {
    gauge!("http_terminator_end_clean").set(u8::from(report.is_clean()));
    for (outcome, n) in [
        ("idle", report.idle),
        ("finished", report.finished),
        ("closed_by_peer", report.closed_by_peer),
        ("stalled", report.stalled),
        ("upgraded", report.upgraded),
        ("left", report.left),
        ("detached", report.detached),
        ("forced", report.forced),
    ] {
        gauge!("http_terminator_end_connections", "outcome" => outcome).set(n as f64);
    }
    for (what, n) in [
        ("answered_at_deadline", report.answered_at_deadline),
        ("abandoned", report.abandoned),
        ("unresponsive", report.unresponsive),
        ("guards_cut", report.guards_cut),
        ("accepted_late", report.accepted_late),
        ("lost_in_queue", report.lost_in_queue),
        ("unclosed", report.unclosed),
    ] {
        gauge!("http_terminator_end_events", "what" => what).set(n as f64);
    }
    for (phase, took) in [
        (Phase::LameDuck, report.lame_duck),
        (Phase::Draining, report.draining),
        (Phase::Forcing, report.forcing),
    ] {
        gauge!("http_terminator_end_seconds", "phase" => phase.to_string()).set(took.as_secs_f64());
    }
}
