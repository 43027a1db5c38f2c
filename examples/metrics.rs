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
//! metrics: terminated cleanly in 400.0µs: 1 connection (1 finished)
//! ```

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it
#![allow(clippy::cast_precision_loss)] // of counts above 2⁵³

use std::error::Error;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Router, http::Method, http::header, response::IntoResponse};
use http_terminator::{Phase, Report, Stats, Terminator};
use metrics::{counter, describe_counter, describe_gauge, gauge};
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
    describe();
    let app = Router::new()
        .route("/", get(async || "hello\n"))
        .route("/echo", post(async |body: Bytes| body));
    let scraped = Router::new()
        .route("/metrics", get(render))
        .with_state(export.clone());

    let traffic_listener = TcpListener::bind(traffic_address).await?;
    let metrics_listener = TcpListener::bind(metrics_address).await?;
    traffic.terminate_on_signal()?;
    let addresses = (
        traffic_listener.local_addr()?,
        metrics_listener.local_addr()?,
    );
    tokio::spawn(metrics.serve(metrics_listener, scraped));
    let served = traffic.serve(traffic_listener, app);
    println!("traffic on {}, metrics on {}", addresses.0, addresses.1);

    let report = served.await;
    // If nobody reads that, which is no reason not to be scraped, `println!` panics.
    let mut out = io::stdout();
    let _ = writeln!(out, "traffic: {report}");
    export.report.set(report).expect("there is one end");
    let fetched = tokio::time::timeout(patience, export.fetched.notified());
    let _ = writeln!(out, "its report was fetched: {}", fetched.await.is_ok());
    // Its answer may still be on its way: a response in hand is finished.
    let report = metrics.terminate().await;
    let _ = writeln!(out, "metrics: {report}");
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
async fn render(method: Method, State(export): State<Export>) -> impl IntoResponse {
    // The report first: beside it, the rest is that of the end.
    let report = export.report.get();
    record(&export.traffic.stats());
    if let Some(report) = report {
        record_end(report);
    }
    let text = export.prometheus.render();
    // Whoever asks by HEAD has not got it.
    if report.is_some() && method == Method::GET {
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
    counter!("http_terminator_connections_accepted_total").absolute(stats.accepted);
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
    gauge!("http_terminator_end_requests_answered_at_deadline")
        .set(report.answered_at_deadline as f64);
    gauge!("http_terminator_end_requests_abandoned").set(report.abandoned as f64);
    gauge!("http_terminator_end_handlers_unresponsive").set(report.unresponsive as f64);
    gauge!("http_terminator_end_guards_cut").set(report.guards_cut as f64);
    gauge!("http_terminator_end_connections_accepted_late").set(report.accepted_late as f64);
    gauge!("http_terminator_end_connections_lost_in_queue").set(report.lost_in_queue as f64);
    gauge!("http_terminator_end_sockets_unclosed").set(report.unclosed as f64);
    for (phase, took) in [
        (Phase::LameDuck, report.lame_duck),
        (Phase::Draining, report.draining),
        (Phase::Forcing, report.forcing),
    ] {
        gauge!("http_terminator_end_seconds", "phase" => phase.to_string()).set(took.as_secs_f64());
    }
}

/// The `# HELP` of each. What is counted together has one name and a label, so that its sum means something.
fn describe() {
    describe_counter!(
        "http_terminator_connections_accepted_total",
        "Connections accepted since the start."
    );
    for (name, help) in [
        ("phase", "1 for the phase that it is in, 0 for the others."),
        ("connections", "Connections that are open, by state."),
        ("requests", "Requests in flight."),
        ("guards", "Shutdown guards held."),
        ("listeners", "Listeners that accept."),
        ("end_clean", "1 if nothing was cut."),
        ("end_connections", "Connections, by how they ended."),
        (
            "end_requests_answered_at_deadline",
            "Requests that were answered 503 at the deadline.",
        ),
        (
            "end_requests_abandoned",
            "Requests whose clients left before they were answered.",
        ),
        (
            "end_handlers_unresponsive",
            "Handlers that blocked their thread at the end.",
        ),
        ("end_guards_cut", "Shutdown guards still held at the end."),
        (
            "end_connections_accepted_late",
            "Connections taken from the kernel's queue as the drain began.",
        ),
        (
            "end_connections_lost_in_queue",
            "Connections that nobody accepted before the deadline.",
        ),
        (
            "end_sockets_unclosed",
            "Connections and listeners whose drop had not ended.",
        ),
        ("end_seconds", "How long each phase of the end took."),
    ] {
        describe_gauge!(format!("http_terminator_{name}"), help);
    }
}
