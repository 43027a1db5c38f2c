//! npm `stoppable` 1.1.0 (hunterloftis/stoppable at c01a5e23): `test/stoppable.test.js`, which it runs over HTTP and HTTPS.
//!
//! Its `it`s that belong together (stops accepting, closes, gracefully) are one test here. Its cases of Node's own `close()`
//! have a counterpart in what the drop of a `Serve` does: the listener goes and the connections stay.

use std::time::{Duration, Instant};

use super::support::outside::{SOON, ended, measured, promised};
use super::support::wait::until;
use super::support::{BOUND, FrontEnd, RawClient, assert_refused, each, within};
use super::{Site, patient, report};

#[test]
fn close_without_keep_alive_connections_stops_accepting_new_connections_and_closes() {
    closes(false);
}

#[test]
fn close_with_keep_alive_connections_stops_accepting_new_connections_and_does_not_close() {
    closes(true);
}

/// A server whose future is dropped, and of which nobody asked a termination.
fn closes(keep_alive: bool) {
    each(
        FrontEnd::tls().into_iter().chain([FrontEnd::Serve]),
        async |front| {
            let site = Site::start(front, patient()).await;
            let mut client = asked(&site, keep_alive);
            site.server.task.abort();
            until("the listener's end", || {
                site.terminator.stats().listeners == 0
            });
            assert_refused(&site.server.target);
            if keep_alive {
                assert_eq!(client.fetch("/quick").text(), "ok", "{front:?}");
            } else {
                client.expect_eof();
                until("no connection", || site.terminator.stats().connections == 0);
            }
            assert!(
                report(site.terminator.terminate()).await.is_clean(),
                "{front:?}"
            );
        },
    );
}

#[test]
fn stop_without_keep_alive_connections_stops_accepting_and_closes_gracefully() {
    stops(false);
}

#[test]
fn stop_with_keep_alive_connections_stops_accepting_and_closes_gracefully() {
    stops(true);
}

fn stops(keep_alive: bool) {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = asked(&site, keep_alive);
        if !keep_alive {
            client.expect_eof();
        }
        let report = report(site.terminator.terminate()).await;
        assert_refused(&site.server.target);
        if keep_alive {
            client.expect_eof();
        }
        let stats = site.terminator.stats();
        assert_eq!(
            (stats.listeners, stats.connections),
            (0, 0),
            "{front:?}: its sockets"
        );
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// One request has been answered.
fn asked(site: &Site, keep_alive: bool) -> RawClient {
    let mut client = site.server.connect();
    let connection = if keep_alive { "keep-alive" } else { "close" };
    client.send(format!(
        "GET /quick HTTP/1.1\r\nhost: localhost\r\nconnection: {connection}\r\n\r\n"
    ));
    assert_eq!(client.read_response().text(), "ok");
    client
}

/// What was given to `stop` is called; here, what was awaited is ready, for all that ask.
#[test]
fn stop_registers_the_close_callback() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let told = tokio::spawn(site.terminator.terminated());
        let report = report(site.terminator.terminate()).await;
        let told = within(BOUND, "who waits", told).await;
        assert_eq!(told.expect("no panic"), report, "{front:?}");
    });
}

/// Two clients have their heads and the first part of their bodies, and the rest never comes.
#[test]
fn kills_connections_after_half_a_second_and_not_gracefully() {
    const GRACE: Duration = Duration::from_millis(500);
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient().grace_period(GRACE)).await;
        let clients = [(); 2].map(|()| {
            let mut client = site.server.connect();
            client.get("/stream");
            assert_eq!(client.read_response_headers().status, 200);
            client
        });
        site.gate.wait_entered(2);
        let report = report(site.terminator.terminate()).await;
        assert!(report.draining >= GRACE, "{front:?}: {report:?}");
        promised(&report, GRACE);
        assert!(
            !report.is_clean() && report.forced == 2,
            "{front:?}: {report}"
        );
        assert_eq!(
            site.terminator.stats().connections,
            0,
            "{front:?}: its sockets"
        );
        for mut client in clients {
            let end = client.read_to_end();
            assert!(ended(end), "{front:?}: {end:?}");
        }
    });
}

#[test]
fn closes_the_sockets_of_requests_in_flight_once_they_finish_and_gracefully() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let clients = [(); 2].map(|()| {
            let mut client = site.server.connect();
            client.get("/stream");
            assert_eq!(client.read_response_headers().status, 200);
            client
        });
        site.gate.wait_entered(2);
        let termination = site.terminator.terminate();
        site.gate.open();
        for mut client in clients {
            assert_eq!(client.read_body(), b"first\nlast\n", "{front:?}");
            client.expect_eof();
        }
        let report = report(termination).await;
        assert!(
            report.is_clean() && report.connections() == 2,
            "{front:?}: {report}"
        );
    });
}

/// Stopped from inside of a handler, by a program that then has nothing else to do: its server's future is over as soon as
/// the last answer is out, far before the grace period. (There, a process that exits.)
#[test]
fn exits_immediately_with_in_flights_finishing_before_the_grace_period_ends() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut busy = site.server.connect();
        busy.get("/slow");
        site.gate.wait_entered(1);
        let mut client = site.server.connect();
        assert_eq!(client.fetch("/terminate").text(), "bye", "{front:?}");
        let begin = Instant::now();
        site.gate.open();
        assert_eq!(busy.read_response().text(), "slow", "{front:?}");
        let ended = within(BOUND, "the server", site.server.task).await;
        measured(
            begin.elapsed(),
            SOON,
            &format!("{front:?}: the server's end"),
        );
        let report = ended
            .expect("no panic")
            .unwrap_or(site.terminator.terminate().await);
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}
