//! What the feature `serde` writes: the documented names (G18).

#![cfg(all(unix, feature = "serde", feature = "serve"))]

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{App, BOUND, FrontEnd, Gate, app, blocking, each, h2_connect, start, within};
use http_terminator::{Phase, Protocol, Report, Terminator};

#[track_caller]
fn assert_names<const N: usize>(value: &Value, names: [&str; N]) {
    let got: BTreeSet<_> = value
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(got, BTreeSet::from(names));
}

#[test]
fn g18_a_report_has_the_documented_names() {
    let mut report = Report::default();
    report.idle = 1;
    report.finished = 2;
    report.closed_by_peer = 3;
    report.stalled = 4;
    report.upgraded = 5;
    report.left = 6;
    report.detached = 7;
    report.forced = 8;
    report.answered_at_deadline = 9;
    report.unresponsive = 10;
    report.guards_cut = 11;
    report.accepted_late = 12;
    report.abandoned = 13;
    report.lost_in_queue = 14;
    report.unclosed = 15;
    report.draining = Duration::from_millis(1500);
    let expected = json!({
        "idle": 1,
        "finished": 2,
        "closed_by_peer": 3,
        "stalled": 4,
        "upgraded": 5,
        "left": 6,
        "detached": 7,
        "forced": 8,
        "answered_at_deadline": 9,
        "abandoned": 13,
        "unresponsive": 10,
        "guards_cut": 11,
        "accepted_late": 12,
        "lost_in_queue": 14,
        "unclosed": 15,
        "lame_duck": { "secs": 0, "nanos": 0 },
        "draining": { "secs": 1, "nanos": 500_000_000 },
        "forcing": { "secs": 0, "nanos": 0 },
        "stragglers": [],
    });
    assert_eq!(serde_json::to_value(&report).expect("serializes"), expected);
}

#[test]
fn g18_phases_and_protocols_are_their_names() {
    for (phase, name) in [
        (Phase::Serving, "Serving"),
        (Phase::LameDuck, "LameDuck"),
        (Phase::Draining, "Draining"),
        (Phase::Forcing, "Forcing"),
        (Phase::Terminated, "Terminated"),
    ] {
        assert_eq!(serde_json::to_value(phase).expect("serializes"), name);
    }
    for (protocol, name) in [
        (Protocol::Unknown, "Unknown"),
        (Protocol::Http1, "Http1"),
        (Protocol::Http2, "Http2"),
        (Protocol::Upgraded, "Upgraded"),
        (Protocol::Guard, "Guard"),
    ] {
        assert_eq!(serde_json::to_value(protocol).expect("serializes"), name);
    }
}

/// Stats and a straggler can't be made by hand: they are those of a request that is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_stats_and_stragglers_have_the_documented_names() {
    let gate = Gate::new();
    let terminator = Terminator::builder()
        .grace_period(Duration::from_millis(50))
        .build();
    let router = app(App {
        gate: gate.clone(),
        terminator: None,
    });
    let server = start(FrontEnd::Serve, &terminator, router).await;
    let client = server.connect();
    client.get("/slow");
    gate.wait_entered_async(1).await;

    let stats = serde_json::to_value(terminator.stats()).expect("serializes");
    let expected = json!({
        "phase": "Serving",
        "listeners": 1,
        "connections": 1,
        "idle": 0,
        "busy": 1,
        "upgraded": 0,
        "requests": 1,
        "guards": 0,
        "accepted": 1,
    });
    assert_eq!(stats, expected);

    let local = client.socket().local_addr().expect("connected");
    let local = local.as_socket().expect("TCP").to_string();
    let report = within(BOUND, "the end", terminator.terminate()).await;
    let report = serde_json::to_value(&report).expect("serializes");
    assert_eq!(report["forced"], 1, "{report}");
    let straggler = &report["stragglers"][0];
    assert_names(
        straggler,
        [
            "connection",
            "peer",
            "protocol",
            "method",
            "path",
            "place",
            "age",
            "unresponsive",
        ],
    );
    assert_names(&straggler["age"], ["secs", "nanos"]);
    assert_eq!(straggler["connection"], 1, "{straggler}");
    assert_eq!(straggler["peer"], local, "{straggler}");
    assert_eq!(straggler["protocol"], "Http1", "{straggler}");
    assert_eq!(straggler["method"], "GET", "{straggler}");
    assert_eq!(straggler["path"], "/slow", "{straggler}");
    assert_eq!(straggler["place"], Value::Null, "{straggler}");
    assert_eq!(straggler["unresponsive"], false, "{straggler}");
    blocking(move || drop(client)).await;
}

/// A query may hold what is not for a log, and no front end or protocol is to differ.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_straggler_is_named_without_its_query() {
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        let terminator = Terminator::builder()
            .grace_period(Duration::from_millis(50))
            .build();
        let router = app(App {
            gate: gate.clone(),
            terminator: None,
        });
        let server = start(front, &terminator, router).await;
        let http1 = server.connect();
        http1.get("/slow?token=secret");
        let http2 = h2_connect(&server.target).await;
        let _response = http2.start("/slow?token=secret").await;
        gate.wait_entered_async(2).await;
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert_eq!(report.stragglers.len(), 2, "{front:?}: {report}");
        for straggler in &report.stragglers {
            assert_eq!(
                straggler.path.as_deref(),
                Some("/slow"),
                "{front:?}: {report}"
            );
        }
        drop(http1);
    });
}
