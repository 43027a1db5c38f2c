//! npm `http-terminator` 3.2.0 (gajus/http-terminator at aabca475): `test/helpers/createTests.ts`, which it runs over its
//! kinds of servers, and `test/http-terminator/factories/createInternalHttpTerminator.ts`.
//!
//! Every case has its counterpart. Where those tests sleep for a tenth of a second, these wait for what the sleep is for.

use std::time::{Duration, Instant};

use http_terminator::Phase;

use super::support::outside::{SOON, measured, promised};
use super::support::wait::until;
use super::support::{BOUND, open_fds_to};
use super::support::{FrontEnd, ReadEnd, assert_refused, each, within};
use super::{Site, patient, report};

/// As there.
const TIMEOUT: Duration = Duration::from_millis(150);

#[test]
fn terminates_http_server_with_no_connections() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        assert_eq!(site.terminator.stats().listeners, 1);
        let begin = Instant::now();
        let report = report(site.terminator.terminate()).await;
        measured(
            begin.elapsed(),
            SOON,
            &format!("{front:?}: nothing to wait for"),
        );
        assert_eq!(site.terminator.stats().listeners, 0);
        assert_refused(&site.server.target);
        assert!(
            report.is_clean() && report.connections() == 0,
            "{front:?}: {report}"
        );
    });
}

#[test]
fn terminates_hanging_sockets_after_graceful_termination_timeout() {
    each(FrontEnd::all_and_tls(), async |front| {
        let builder = patient().grace_period(TIMEOUT).answer_at_deadline(false);
        let site = Site::start(front, builder).await;
        let mut client = site.server.connect();
        client.get("/slow");
        site.gate.wait_entered(1);
        let termination = site.terminator.terminate();
        // The timeout has not passed.
        assert_eq!(site.terminator.phase(), Phase::Draining);
        assert_eq!(site.terminator.stats().connections, 1, "{front:?}");
        let report = report(termination).await;
        if site.server.addr.is_some() {
            assert_eq!(open_fds_to(site.server.port()), 0, "{front:?}");
        }
        // Its task may have had no core to let go of what it has of it.
        until("its task's end", || {
            site.terminator.stats().connections == 0
        });
        assert!(report.draining >= TIMEOUT, "{front:?}: {report:?}");
        promised(&report, TIMEOUT);
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        client.expect_reset_or_eof();
    });
}

#[test]
fn server_stops_accepting_new_connections_after_terminate_is_called() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        client.get("/slow");
        site.gate.wait_entered(1);
        let termination = site.terminator.terminate();
        until("the listener's end", || {
            site.terminator.stats().listeners == 0
        });
        assert_refused(&site.server.target);
        site.gate.open();
        let response = client.read_response();
        assert_eq!(
            (response.says_close(), response.text()),
            (true, "slow"),
            "{front:?}"
        );
        assert!(report(termination).await.is_clean(), "{front:?}");
    });
}

#[test]
fn ongoing_requests_receive_connection_close() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        // One that has kept its connection alive before.
        let mut client = site.server.connect();
        assert!(!client.fetch("/quick").says_close(), "{front:?}");
        client.get("/slow");
        site.gate.wait_entered(1);
        let termination = site.terminator.terminate();
        site.gate.open();
        let response = client.read_response();
        assert_eq!(
            (response.says_close(), response.text()),
            (true, "slow"),
            "{front:?}"
        );
        client.expect_eof();
        assert!(report(termination).await.is_clean(), "{front:?}");
    });
}

/// The head of the first response was out before, and could say nothing: the next request on that socket is answered too.
#[test]
fn ongoing_requests_receive_connection_close_when_a_new_request_reuses_the_socket() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient().settle(SOON)).await;
        let mut client = site.server.connect();
        client.get("/stream");
        let first = client.read_response_headers();
        assert!(!first.says_close(), "{front:?}: {first:?}");
        site.gate.wait_entered(1);
        let termination = site.terminator.terminate();
        site.gate.open();
        assert_eq!(client.read_body(), b"first\nlast\n", "{front:?}");
        let second = client.fetch("/quick");
        assert_eq!(
            (second.says_close(), second.text()),
            (true, "ok"),
            "{front:?}"
        );
        client.expect_eof();
        let report = report(termination).await;
        assert_eq!(report.finished, 1, "{front:?}: {report}");
    });
}

#[test]
fn does_not_send_connection_close_when_server_is_not_terminating() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        for _ in 0..2 {
            let response = client.fetch("/quick");
            assert!(!response.says_close(), "{front:?}: {response:?}");
        }
        assert!(client.is_still_open(), "{front:?}");
    });
}

/// That is two cases there, as it has a collection for each of HTTP and HTTPS.
#[test]
fn empties_internal_socket_collection() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        client.send("GET /quick HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        assert_eq!(client.read_response().text(), "ok");
        assert_eq!(client.read_to_end(), ReadEnd::Eof, "{front:?}");
        drop(client);
        until("no connection", || site.terminator.stats().connections == 0);
        assert!(
            report(site.terminator.terminate()).await.is_clean(),
            "{front:?}"
        );
    });
}

/// It does not sit out a period.
#[test]
fn closes_immediately_after_in_flight_connections_are_closed() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        client.get("/slow");
        site.gate.wait_entered(1);
        assert_eq!(site.terminator.stats().connections, 1, "{front:?}");
        let termination = site.terminator.terminate();
        let begin = Instant::now();
        site.gate.open();
        let report = within(BOUND, "the end", termination).await;
        measured(
            begin.elapsed(),
            SOON,
            &format!("{front:?}: the end behind the last request"),
        );
        assert_eq!(site.terminator.stats().connections, 0, "{front:?}");
        assert_eq!(
            (report.finished, report.forced),
            (1, 0),
            "{front:?}: {report}"
        );
        assert_eq!(client.read_response().text(), "slow", "{front:?}");
    });
}
