//! Bun's `server.stop` (oven-sh/bun at 00d37642): `test/js/bun/http/bun-server.test.ts`, from "should be able to await
//! `server.stop()`" to "server wrapper survives GC while a websocket is connected after `stop()`".
//!
//! No counterpart: `server.reload` (a service is not replaced here), `Bun.serve().unref` (whether the process goes on is the
//! application's matter; a connection's `detach` is the nearest), `closeIdleConnections` as a sweep of all (here one ends those
//! that one knows: `Connection::terminate`), node:http's pipelining behind its `close` (the opposite of `Bun.serve`'s; here as
//! there). Of the two cases of what the garbage collector may take, what remains is that nobody need hold the terminator.

use std::future::IntoFuture;
use std::time::{Duration, Instant};

use socket2::SockRef;

use http_terminator::{Phase, Terminator};

use super::support::outside::{SOON, block_on, ended, measured};
use super::support::start_known;
use super::support::wait::until;
use super::support::{
    App, BOUND, FrontEnd, Gate, RawClient, app, assert_big, assert_refused, each, start, within,
};
use super::{Site, assert_cut, patient, report};

#[test]
fn should_be_able_to_await_server_stop() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        client.get("/slow");
        site.gate.wait_entered(1);
        let stopped = site.terminator.terminate();
        site.gate.open();
        assert_eq!(client.read_response().text(), "slow", "{front:?}");
        assert!(report(stopped).await.is_clean(), "{front:?}");
        assert_refused(&site.server.target);
    });
}

#[test]
fn stop_closes_an_idle_keep_alive_connection_and_the_promise_resolves() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        assert_eq!(client.fetch("/quick").text(), "ok", "{front:?}");
        let begin = Instant::now();
        let report = report(site.terminator.terminate()).await;
        measured(begin.elapsed(), SOON, &format!("{front:?}: an idle one"));
        client.expect_eof();
        assert_eq!(
            (report.idle, report.connections()),
            (1, 1),
            "{front:?}: {report}"
        );
    });
}

#[test]
fn in_flight_request_completes_across_stop_then_its_connection_is_closed() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        client.get("/slow");
        site.gate.wait_entered(1);
        let mut stopped = Box::pin(site.terminator.terminate().into_future());
        assert!(
            futures_util::poll!(&mut stopped).is_pending(),
            "{front:?}: too early"
        );
        site.gate.open();
        assert_eq!(client.read_response().text(), "slow", "{front:?}");
        // The client never hangs up first.
        client.expect_eof();
        assert_eq!(report(stopped).await.finished, 1, "{front:?}");
    });
}

/// The first call's promise is the second's.
#[test]
fn stop_true_after_stop_false_force_closes_the_still_busy_connection() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        client.get("/slow");
        site.gate.wait_entered(1);
        let stopped = site.terminator.terminate();
        let begin = Instant::now();
        let forced = report(site.terminator.force()).await;
        measured(
            begin.elapsed(),
            SOON,
            &format!("{front:?}: the end by force"),
        );
        assert_eq!(report(stopped).await, forced, "{front:?}");
        assert_eq!(forced.forced, 1, "{front:?}: {forced}");
        site.gate.open();
        // There the client reads nothing.
        assert_cut(&mut client);
        assert!(ended(client.read_to_end()), "{front:?}");
    });
}

/// Half a head: there it is waited for without end; here for `stall_timeout` after its last byte, which is long enough here.
#[test]
fn a_connection_mid_request_survives_stop_until_the_client_closes() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient().stall_timeout(2 * BOUND)).await;
        let client = site.server.connect();
        client.send("GET /quick HTTP/1.1\r\nhost: x\r\n");
        let mut idle = site.server.connect();
        assert_eq!(idle.fetch("/quick").text(), "ok", "{front:?}");
        until("both are accepted", || {
            site.terminator.stats().connections == 2
        });
        let mut stopped = Box::pin(site.terminator.terminate().into_future());
        // Who has nothing in hand is gone before.
        idle.expect_eof();
        until("the listener's end", || {
            site.terminator.stats().listeners == 0
        });
        assert!(
            futures_util::poll!(&mut stopped).is_pending(),
            "{front:?}: too early"
        );
        until("the idle one's end", || {
            site.terminator.stats().connections == 1
        });
        assert!(client.is_still_open(), "{front:?}");
        drop(client);
        let begin = Instant::now();
        let report = report(stopped).await;
        measured(
            begin.elapsed(),
            SOON,
            &format!("{front:?}: the end behind the client's"),
        );
        assert_eq!(
            (report.closed_by_peer, report.idle),
            (1, 1),
            "{front:?}: {report}"
        );
    });
}

/// Megabytes of which the client has taken some, and then pauses.
#[test]
fn in_flight_file_response_completes_across_stop_then_its_connection_is_closed() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        client.get("/big");
        assert_eq!(client.read_response_headers().status, 200, "{front:?}");
        let first = client.read_chunk().expect("a first part");
        let mut stopped = Box::pin(site.terminator.terminate().into_future());
        assert!(
            futures_util::poll!(&mut stopped).is_pending(),
            "{front:?}: too early"
        );
        assert_big(&[&first[..], &client.read_body()].concat());
        client.expect_eof();
        let report = report(stopped).await;
        assert!(
            report.is_clean() && report.connections() == 1,
            "{front:?}: {report}"
        );
    });
}

/// One idle connection is ended; the busy one is spared, is not marked, and the listener is untouched.
#[test]
fn close_idle_connections_spares_busy_connections_and_keeps_listening() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = patient().build();
        let gate = Gate::new();
        let state = App {
            gate: gate.clone(),
            terminator: None,
        };
        let (target, known) = start_known(front, &terminator, app(state)).await;
        let mut idle = RawClient::connect(&target);
        assert_eq!(idle.fetch("/quick").text(), "ok", "{front:?}");
        let mut busy = RawClient::connect(&target);
        busy.get("/slow");
        gate.wait_entered(1);
        known.get(0).terminate();
        idle.expect_eof();
        gate.open();
        for response in [busy.read_response(), busy.fetch("/quick")] {
            assert!(!response.says_close(), "{front:?}: {response:?}");
        }
        let mut fresh = RawClient::connect(&target);
        assert_eq!(fresh.fetch("/quick").text(), "ok", "{front:?}");
        for n in [1, 2] {
            known.get(n).terminate();
        }
        busy.expect_eof();
        fresh.expect_eof();
        assert_eq!(terminator.phase(), Phase::Serving);
    });
}

#[test]
fn websocket_only_server_a_second_stop_returns_the_still_pending_promise() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let client = upgraded(&site);
        let mut first = Box::pin(site.terminator.terminate().into_future());
        assert!(
            futures_util::poll!(&mut first).is_pending(),
            "{front:?}: too early"
        );
        let mut second = Box::pin(site.terminator.terminate().into_future());
        assert!(
            futures_util::poll!(&mut second).is_pending(),
            "{front:?}: too early"
        );
        drop(client);
        let (first, second) = (report(first).await, report(second).await);
        assert_eq!(first, second, "{front:?}");
        assert_eq!(first.upgraded, 1, "{front:?}: {first}");
    });
}

fn upgraded(site: &Site) -> RawClient {
    let mut client = site.server.connect();
    client.get_upgrade("/upgrade");
    assert_eq!(client.read_response_headers().status, 101);
    client
}

/// Three that end before their handshake, one way or the other, while a request is in hand.
#[test]
fn pre_handshake_tls_close_does_not_steal_another_connections_count() {
    each(FrontEnd::tls(), async |front| {
        for resets in [true, false] {
            let site = Site::start(front, patient()).await;
            let mut client = site.server.connect();
            client.get("/slow");
            site.gate.wait_entered(1);
            for _ in 0..3 {
                let raw = RawClient::connect(site.server.addr.expect("TCP"));
                raw.send([0]);
                if resets {
                    let linger = SockRef::from(raw.socket()).set_linger(Some(Duration::ZERO));
                    linger.expect("a TCP socket takes it");
                }
            }
            until("all are gone but one", || {
                let stats = site.terminator.stats();
                (stats.accepted, stats.connections) == (4, 1)
            });
            let mut stopped = Box::pin(site.terminator.terminate().into_future());
            assert!(
                futures_util::poll!(&mut stopped).is_pending(),
                "{front:?}: too early"
            );
            site.gate.open();
            assert_eq!(client.read_response().text(), "slow", "{front:?}");
            client.expect_eof();
            let report = report(stopped).await;
            assert_eq!(
                (report.finished, report.connections()),
                (1, 1),
                "{front:?}: {report}"
            );
        }
    });
}

/// There the answer is lost; here, as none was on its way, it is a 503.
#[test]
fn should_be_able_to_await_server_stop_true_with_keep_alive() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        assert_eq!(client.fetch("/quick").text(), "ok", "{front:?}");
        client.get("/slow");
        site.gate.wait_entered(1);
        let stopped = site.terminator.force();
        let report = report(stopped).await;
        site.gate.open();
        assert_cut(&mut client);
        assert!(ended(client.read_to_end()), "{front:?}");
        assert_refused(&site.server.target);
        assert_eq!(report.forced, 1, "{front:?}: {report}");
    });
}

/// Behind an answer that says close nothing is served, as RFC 9112 section 9.6 has it, and no request is half done.
#[test]
fn stop_completes_the_in_flight_request_then_closes_instead_of_serving_a_late_pipelined_request() {
    late("GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
}

#[test]
fn stop_closes_the_drained_connection_before_a_late_pipelined_websocket_upgrade_dispatches() {
    late("GET /upgrade-slow HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
}

/// Both `late` and the request that it is late behind would stand at the gate.
fn late(late: &str) {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        client.get("/slow");
        site.gate.wait_entered(1);
        client.send(late);
        let stopped = site.terminator.terminate();
        site.gate.open();
        let response = client.read_response();
        assert_eq!(
            (response.says_close(), response.text()),
            (true, "slow"),
            "{front:?}"
        );
        client.expect_eof();
        let report = report(stopped).await;
        assert_eq!(site.gate.entered(), 1, "{front:?}: the late one");
        assert_eq!(
            (report.finished, report.connections()),
            (1, 1),
            "{front:?}: {report}"
        );
    });
}

/// Whoever stopped it may let go of all there is: an upgraded stream goes on until its client ends it, and the server ends
/// with that.
#[test]
fn server_survives_while_a_websocket_is_connected_after_stop() {
    each([FrontEnd::Serve, FrontEnd::ServeUnix], async |front| {
        let terminator = Terminator::builder().grace_period(None).build();
        let server = start(front, &terminator, app(App::default())).await;
        let mut client = server.connect();
        client.get_upgrade("/upgrade");
        assert_eq!(client.read_response_headers().status, 101, "{front:?}");
        drop(terminator.terminate());
        drop(terminator);
        for _ in 0..3 {
            client.send("still there?");
            assert_eq!(client.read_exact(12), b"still there?", "{front:?}");
        }
        assert!(!server.task.is_finished(), "{front:?}");
        drop(client);
        let over = within(BOUND, "the server", server.task).await;
        let report = over.expect("no panic").expect("a report");
        assert_eq!(
            (report.upgraded, report.connections()),
            (1, 1),
            "{front:?}: {report}"
        );
    });
}

/// Nor need there be a runtime that the caller knows of.
#[test]
fn stop_may_be_awaited_anywhere() {
    let terminator = Terminator::new();
    let report = block_on(BOUND, "the end", terminator.terminate().into_future());
    assert!(report.is_clean() && report.connections() == 0, "{report}");
}
