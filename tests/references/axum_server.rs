//! axum-server 0.9.2 (programatik29/axum-server): the tests of `src/server.rs` and `src/handle.rs`, and of `src/tls_rustls/mod.rs`
//! what is of timeouts and shutdown.
//!
//! No counterpart: `listening_…`, `test_listening_returns_none_on_bind_failure` (whoever binds knows the address),
//! `accept_error_handler_is_called` (errors are logged, see `tests/listeners/listener.rs`), `local_addr_acceptor_adds_extension`,
//! `applies_nodelay_and_keepalive`, and what is of certificates (the application's). `first_request_timeout` is in part
//! `idle_timeout`, which also bounds connections that have had a request.

use std::future::IntoFuture;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::routing::get;
use tokio::net::TcpListener;

use http_terminator::{Connection, HttpBuilder, Phase, TerminatorBuilder};

use super::support::outside::{SOON, ended, measured, promised};
use super::support::start_known;
use super::support::wait::until;
use super::support::{
    App, BOUND, FrontEnd, RawClient, RawH2, Target, app, assert_refused, each, h2_connect, start,
    within,
};
use super::{Site, assert_cut, patient, plain, report};

#[test]
fn start_and_request() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        assert_eq!(client.fetch("/quick").text(), "ok", "{front:?}");
        client.get("/stream");
        assert_eq!(client.read_response_headers().status, 200, "{front:?}");
        site.gate.open();
        assert_eq!(client.read_body(), b"first\nlast\n", "{front:?}");
    });
}

/// `shutdown`, which is `force` here: a kept-alive connection is gone soon, and nobody is served any more.
#[test]
fn shutdown() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        assert_eq!(client.fetch("/quick").text(), "ok", "{front:?}");
        let begin = Instant::now();
        let report = report(site.terminator.force()).await;
        client.expect_reset_or_eof();
        measured(begin.elapsed(), SOON, &format!("{front:?}: its connection"));
        assert_refused(&site.server.target);
        assert_eq!(report.connections(), 1, "{front:?}: {report}");
    });
}

/// A handler ends its own connection: what it answers is whole, and the last.
#[test]
fn connection_graceful_shutdown_sends_response_then_closes() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = patient().build();
        let router = app(App::default()).route("/", get(goodbye));
        let (target, _known) = start_known(front, &terminator, router).await;
        let mut client = RawClient::connect(&target);
        let response = client.fetch("/");
        assert_eq!(
            (response.says_close(), response.text()),
            (true, "goodbye"),
            "{front:?}"
        );
        client.expect_eof();
        until("no connection", || terminator.stats().connections == 0);
        assert_eq!(terminator.phase(), Phase::Serving);
    });
}

async fn goodbye(Extension(connection): Extension<Connection>) -> &'static str {
    connection.terminate();
    "goodbye"
}

#[test]
fn connection_shutdown_aborts_connection() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = patient().build();
        let (target, known) = start_known(front, &terminator, app(App::default())).await;
        let mut client = RawClient::connect(&target);
        assert_eq!(client.fetch("/quick").text(), "ok", "{front:?}");
        known.get(0).force();
        client.expect_reset_or_eof();
        until("no connection", || terminator.stats().connections == 0);
        assert_eq!(terminator.phase(), Phase::Serving);
    });
}

#[test]
fn connection_graceful_shutdown_closes_http2_connection() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = patient().build();
        let router = app(App::default()).route("/", get(goodbye));
        let (target, _known) = start_known(front, &terminator, router).await;
        let mut client = h2_connect(&target).await;
        assert_eq!(client.get("/").await.1, b"goodbye", "{front:?}");
        let ended = within(BOUND, "it goes away", client.closed()).await;
        assert!(ended.is_ok(), "{front:?}: {ended:?}");
        until("no connection", || terminator.stats().connections == 0);
    });
}

/// One terminator for two servers, and who holds a clone of it holds the same (`control_is_shared_between_handles`).
#[test]
fn control_shares_tcp_servers() {
    shared([FrontEnd::Serve, FrontEnd::Serve]);
}

#[test]
fn control_shares_tcp_and_unix_servers() {
    shared([FrontEnd::Serve, FrontEnd::ServeUnix]);
}

fn shared(fronts: [FrontEnd; 2]) {
    each([()], async |()| {
        let terminator = patient().build();
        let one = start(fronts[0], &terminator, app(App::default())).await;
        let other = start(fronts[1], &terminator.clone(), app(App::default())).await;
        assert_ne!(one.target, other.target);
        let mut clients = [one.connect(), other.connect()];
        for client in &mut clients {
            assert_eq!(client.fetch("/quick").text(), "ok");
        }
        assert_eq!(terminator.clone().stats().connections, 2);
        let ended = report(terminator.terminate()).await;
        for server in [one, other] {
            let served = within(SOON, "a server", server.task)
                .await
                .expect("no panic");
            assert_eq!(served.as_ref(), Some(&ended));
        }
        assert_eq!(terminator.stats().connections, 0);
        for client in &mut clients {
            client.expect_eof();
        }
    });
}

/// Without a deadline: the slow request takes as long as it wants, and new ones fail meanwhile.
#[test]
fn graceful_shutdown_no_timeout() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient().grace_period(None)).await;
        let (mut slow, mut idle) = (site.server.connect(), site.server.connect());
        for client in [&mut slow, &mut idle] {
            assert_eq!(client.fetch("/quick").text(), "ok", "{front:?}");
        }
        slow.get("/stream");
        assert_eq!(slow.read_response_headers().status, 200, "{front:?}");
        site.gate.wait_entered(1);
        let termination = site.terminator.terminate();
        idle.expect_eof();
        until("the listener's end", || {
            site.terminator.stats().listeners == 0
        });
        for _ in 0..3 {
            assert_refused(&site.server.target);
        }
        assert_eq!(site.terminator.time_left(), None, "{front:?}");
        site.gate.open();
        assert_eq!(slow.read_body(), b"first\nlast\n", "{front:?}");
        let report = report(termination).await;
        assert!(
            report.is_clean() && report.connections() == 2,
            "{front:?}: {report}"
        );
        within(SOON, "the server", site.server.task)
            .await
            .expect("no panic");
    });
}

/// Of two slow requests one is quick enough.
#[test]
fn graceful_shutdown_timeout() {
    const GRACE: Duration = Duration::from_millis(333);
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let (mut shorter, mut longer) = (site.server.connect(), site.server.connect());
        shorter.get("/slow");
        longer.get("/pending");
        site.gate.wait_entered(1);
        until("both requests", || site.terminator.stats().requests == 2);
        let termination = site.terminator.terminate_within(GRACE);
        site.gate.open();
        assert_eq!(shorter.read_response().text(), "slow", "{front:?}");
        let report = report(termination).await;
        promised(&report, GRACE);
        assert_cut(&mut longer);
        assert_eq!(
            (report.finished, report.forced),
            (1, 1),
            "{front:?}: {report}"
        );
        within(SOON, "the server", site.server.task)
            .await
            .expect("no panic");
    });
}

/// A server whose builder speaks one version only.
async fn only(builder: HttpBuilder) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let serve = patient().build().serve(listener, app(App::default()));
    tokio::spawn(serve.builder(builder).into_future());
    addr.into()
}

#[test]
fn http1_only() {
    each([()], async |()| {
        let target = only(HttpBuilder::default().http1_only()).await;
        assert_eq!(RawClient::connect(&target).fetch("/quick").text(), "ok");
        let mut other = RawH2::connect(&target);
        assert!(other.try_read_frame().is_err_and(ended));
    });
}

#[test]
fn http2_only() {
    each([()], async |()| {
        let target = only(HttpBuilder::default().http2_only()).await;
        assert_eq!(h2_connect(&target).await.get("/quick").await.1, b"ok");
        let mut other = RawClient::connect(&target);
        other.get("/quick");
        assert!(ended(other.read_to_end()));
    });
}

/// Half a head.
#[test]
fn header_read_timeout_with_default_timer() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    times_out(
        FrontEnd::all_and_tls(),
        &patient().head_timeout(TIMEOUT),
        TIMEOUT,
        |target| {
            let client = RawClient::connect(target);
            client.send("GET /quick HTTP/1.1\r\nhost:");
            client
        },
    );
}

#[test]
fn first_request_timeout_closes_idle_connection() {
    const TIMEOUT: Duration = Duration::from_millis(100);
    times_out(
        FrontEnd::all_and_tls(),
        &patient().idle_timeout(TIMEOUT),
        TIMEOUT,
        |target| RawClient::connect(target),
    );
}

/// A handshake that is never begun.
#[test]
fn tls_timeout() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    times_out(
        [FrontEnd::ServeTls],
        &patient().head_timeout(TIMEOUT),
        TIMEOUT,
        plain,
    );
}

/// While the server serves.
fn times_out(
    fronts: impl IntoIterator<Item = FrontEnd>,
    builder: &TerminatorBuilder,
    timeout: Duration,
    connect: fn(&Target) -> RawClient,
) {
    each(fronts, async |front| {
        let site = Site::start(front, builder.clone()).await;
        let begin = Instant::now();
        let mut client = connect(&site.server.target);
        assert!(ended(client.read_to_end()), "{front:?}");
        let took = begin.elapsed();
        assert!(took >= timeout, "{front:?}: {took:?}");
        measured(
            took.saturating_sub(timeout),
            SOON,
            &format!("{front:?}: the end of who is late"),
        );
        until("no connection", || site.terminator.stats().connections == 0);
        assert_eq!(site.terminator.phase(), Phase::Serving);
    });
}

/// A handshake that was never begun holds no `shutdown`, and no drain either.
#[test]
fn handshake_is_cancelled_on_shutdown() {
    each([FrontEnd::ServeTls, FrontEnd::OwnLoopTls], async |front| {
        for forces in [true, false] {
            let terminator = patient().build();
            let (target, _known) = start_known(front, &terminator, app(App::default())).await;
            let mut client = plain(&target);
            until("it is accepted", || terminator.stats().connections == 1);
            let begin = Instant::now();
            let ended = if forces {
                report(terminator.force()).await
            } else {
                report(terminator.terminate()).await
            };
            let what = format!("{front:?}, forced: {forces}");
            measured(begin.elapsed(), SOON, &what);
            assert_eq!(ended.connections(), 1, "{what}: {ended}");
            assert_eq!(terminator.stats().connections, 0, "{what}");
            client.expect_reset_or_eof();
        }
    });
}
