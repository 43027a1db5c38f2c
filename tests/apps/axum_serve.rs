//! `axum::serve` on a tracked listener: what its docs promise (G11, G12, G13, G14, G16), and what they
//! say that only `Terminator::serve` gives, each seen to be missing here and to be there.

#![cfg(all(unix, feature = "axum", feature = "serve"))]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::connect_info::Connected;
use axum::routing::get;
use axum::serve::{IncomingStream, ListenerExt};
use futures_util::FutureExt;
use http::StatusCode;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime;
use tokio::task::JoinHandle;

use crate::support;
use crate::support::outside::{LATE, measured, promised};
use crate::support::starts::no_starts;
use crate::support::wait::{bind_again, time_passes, until_stats_async};
use crate::support::{
    ABANDONED, App, BOUND, Gate, RawClient, RawH2, ReadEnd, Served, app, blocking, h2_connect,
    h2_finish, kind, load, open_fds_to, within,
};
use http_terminator::{Phase, Report, Terminator, TerminatorBuilder, TrackedListener};

/// What ends by itself ends long before any deadline.
const SOON: Duration = Duration::from_millis(1500);

const GRACE: Duration = Duration::from_millis(700);
const STALL: Duration = Duration::from_millis(100);

// ===== what it gives =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_idle_connections_are_closed_and_requests_in_flight_answered() {
    let it = Setup::far(Front::Axum).await;
    let mut fresh = it.client();
    let mut idle = it.client();
    let slow = it.client();
    let (fresh, idle, mut slow) = {
        slow.get("/slow");
        it.gate.wait_entered_async(1).await;
        blocking(move || {
            assert_eq!(idle.fetch("/quick").text(), "ok");
            // So that the server has accepted it.
            assert_eq!(fresh.fetch("/quick").text(), "ok");
            (fresh, idle, slow)
        })
        .await
    };
    assert_eq!(it.terminator.stats().connections, 3);
    let mut ended = it.terminator.terminate();
    blocking(move || {
        for mut client in [fresh, idle] {
            client.expect_eof();
        }
    })
    .await;
    assert!(
        (&mut ended).now_or_never().is_none(),
        "one request is in flight"
    );
    it.gate.open();
    let slow = blocking(move || {
        let response = slow.read_response();
        assert_eq!(response.text(), "slow");
        assert!(response.says_close(), "{response:?}");
        slow.expect_eof();
        slow
    })
    .await;
    let report = within(SOON, "the end", ended).await;
    assert_eq!(it.terminator.phase(), Phase::Terminated);
    assert_eq!(open_fds_to(it.port()), 0, "all sockets are closed");
    assert_eq!(report.connections(), 3, "{report}");
    assert!(report.is_clean(), "{report}");
    // Called again it gives the same, and axum's own future has ended too.
    assert_eq!(it.terminator.terminate().await, report);
    it.axum_has_ended().await;
    drop(slow);
}

/// Whoever is reset while he writes may give up answers that he has yet to read: so hyper's own clients of HTTP/2 do, for
/// all streams. A server that has sent its last closes, and does not read what crosses that; here it is read for `settle`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_what_crosses_the_end_of_an_http2_connection_draws_no_reset() {
    let builder = Terminator::builder().grace_period(BOUND * 3).settle(BOUND);
    let it = Setup::new(Front::Axum, &builder).await;
    let (addr, gate, terminator) = (it.addr, it.gate.clone(), it.terminator.clone());
    blocking(move || {
        let mut client = RawH2::connect(addr);
        client.ack_settings();
        client.get("/slow", 1);
        gate.wait_entered(1);
        drop(terminator.terminate());
        let ping = client.read_until(kind::PING);
        client.ack_ping(&ping);
        assert_eq!(client.read_until(kind::GOAWAY).goaway().0, 1);
        gate.open();
        while !client.read_frame().is_end_stream() {}
        client.expect_eof_within(BOUND);
        for _ in 0..3 {
            let sent = client.try_send([0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            sent.expect("nobody has reset it");
            time_passes(Duration::from_millis(20));
        }
    })
    .await;
    let report = within(BOUND, "the end", it.terminator.terminated()).await;
    assert!(report.is_clean(), "{report}");
}

/// What the docs say of `axum::serve` without its signal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_signal_idle_connections_wait_for_the_deadline() {
    let terminator = Terminator::builder().grace_period(GRACE).build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("it is bound");
    let app = Router::new().route("/", get(|| async { "ok" }));
    let server = axum::serve(terminator.listen(listener), app);
    let server = tokio::spawn(async move { server.await });
    let client = blocking(move || {
        let mut client = RawClient::connect(addr);
        assert_eq!(client.fetch("/").text(), "ok");
        client
    })
    .await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!((report.forced, report.connections()), (1, 1), "{report}");
    assert!(!server.is_finished());
    server.abort();
    drop(client);
}

/// Several requests, one way of ending each: whatever it is, `terminate` has waited for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_terminate_returns_when_all_sockets_are_closed() {
    for http2 in [false, true] {
        let it = Setup::far(Front::Axum).await;
        let big = if http2 {
            let client = h2_connect(it.addr).await;
            let response = client.start("/slow").await;
            tokio::spawn(async move {
                let got = h2_finish(response).await.expect("answered");
                assert_eq!(got, (StatusCode::OK, b"slow".to_vec()));
                drop(client);
            })
        } else {
            let mut client = it.client();
            client.get("/slow");
            tokio::task::spawn_blocking(move || {
                assert_eq!(client.read_response().text(), "slow");
                client.expect_eof();
            })
        };
        it.gate.wait_entered_async(1).await;
        let ended = it.terminator.terminate();
        it.terminator.reached(Phase::Draining).await;
        it.gate.open();
        let report = within(SOON, "the end", ended).await;
        assert_eq!(open_fds_to(it.port()), 0);
        assert_eq!(it.terminator.stats().connections, 0);
        assert_eq!(report.connections(), 1, "{report}");
        assert!(report.is_clean(), "{report}");
        within(SOON, "the client", big).await.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g11_the_deadline_holds_with_a_handler_pending_for_ever() {
    let it = Setup::new(Front::Axum, &Terminator::builder().grace_period(GRACE)).await;
    // Both are in: axum drops what has not come so far.
    let clients = [it.client(), it.client()];
    for client in &clients {
        client.get("/slow");
    }
    it.gate.wait_entered_async(2).await;
    let begin = Instant::now();
    let report = within(BOUND, "the end", it.terminator.terminate()).await;
    assert_at(begin.elapsed(), GRACE, &report);
    assert_eq!(open_fds_to(it.port()), 0);
    assert_eq!((report.forced, report.connections()), (2, 2), "{report}");
    assert!(!report.is_clean(), "{report}");
    // Nothing holds axum's own future either.
    it.axum_has_ended().await;
    drop(clients);
}

#[test]
fn g11_the_deadline_holds_with_blocked_workers() {
    let _alone = no_starts();
    for blocked in [1, 2] {
        let grace = Duration::from_millis(400);
        let terminator = Terminator::builder().grace_period(grace).build();
        let host = host(&terminator);
        let mut idle = RawClient::connect(host.server);
        assert_eq!(idle.fetch("/quick").text(), "ok");
        let clients: Vec<_> = (0..blocked)
            .map(|_| RawClient::connect(host.server))
            .collect();
        for client in &clients {
            client.get("/block");
        }
        host.wait_blocked(blocked);

        let begin = Instant::now();
        let ended = terminator.terminate();
        idle.expect_reset_or_eof();
        let after = begin.elapsed().saturating_sub(grace);
        measured(after, LATE, &format!("{blocked} blocked: idle"));
        let report = runtime().block_on(within(BOUND, "the end", ended));
        assert_at(begin.elapsed(), grace, &report);
        assert_eq!(open_fds_to(host.server.port()), 0, "{blocked} blocked");
        assert!(
            RawClient::try_connect(host.server).is_err(),
            "{blocked} blocked: the listener is open"
        );
        assert!(report.forced >= blocked, "{blocked} blocked: {report}");
        assert_eq!(report.connections(), blocked + 1, "{report}");
        assert!(!report.is_clean(), "{report}");
        for mut client in clients {
            client.expect_reset_or_eof();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_force_and_a_grace_period_of_zero_cut_at_once() {
    for forced in [true, false] {
        let grace = Duration::from_secs(if forced { 30 } else { 0 });
        let it = Setup::new(Front::Axum, &Terminator::builder().grace_period(grace)).await;
        let mut client = it.client();
        client.get("/slow");
        it.gate.wait_entered_async(1).await;
        let begin = Instant::now();
        let ended = if forced {
            it.terminator.force()
        } else {
            it.terminator.terminate()
        };
        let report = within(BOUND, "the end", ended).await;
        measured(begin.elapsed(), LATE, "at once");
        promised(&report, Duration::ZERO);
        assert_eq!(open_fds_to(it.port()), 0);
        assert_eq!(report.forced, 1, "{report}");
        blocking(move || client.expect_reset_or_eof()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_without_a_grace_period_it_waits() {
    let it = Setup::new(Front::Axum, &Terminator::builder().grace_period(None)).await;
    let mut client = it.client();
    client.get("/slow");
    it.gate.wait_entered_async(1).await;
    let mut ended = it.terminator.terminate();
    let early = tokio::time::timeout(Duration::from_millis(500), &mut ended).await;
    assert!(early.is_err(), "not waited for: {early:?}");
    it.gate.open();
    blocking(move || {
        assert_eq!(client.read_response().text(), "slow");
        client.expect_eof();
    })
    .await;
    let report = within(SOON, "the end", ended).await;
    assert!(report.is_clean(), "{report}");
}

/// axum's own future does not wait for what was upgraded; `terminate` does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_an_upgraded_stream_is_counted_and_waited_for() {
    let mut it = Setup::far(Front::Axum).await;
    let mut client = it.upgraded("/upgrade").await;
    assert_eq!(it.terminator.stats().connections, 1);
    let mut ended = it.terminator.terminate();
    let axum = it.axum.take().expect("axum's");
    within(SOON, "axum's own future", axum)
        .await
        .expect("no panic");
    client = blocking(move || {
        client.send(b"while draining");
        assert_eq!(client.read_exact(14), b"while draining");
        client
    })
    .await;
    let early = tokio::time::timeout(Duration::from_millis(300), &mut ended).await;
    assert!(early.is_err(), "not waited for: {early:?}");
    assert_eq!(it.terminator.stats().connections, 1);
    blocking(move || {
        client.send(b"still here");
        assert_eq!(client.read_exact(10), b"still here");
        client.shutdown_write();
        client.expect_eof();
    })
    .await;
    let report = within(SOON, "the end", ended).await;
    assert_eq!(report.connections(), 1, "{report}");
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_an_upgraded_stream_that_nobody_touches_is_cut_at_the_deadline() {
    let it = Setup::new(Front::Axum, &Terminator::builder().grace_period(GRACE)).await;
    let mut client = it.upgraded("/upgrade-held").await;
    let begin = Instant::now();
    let report = within(BOUND, "the end", it.terminator.terminate()).await;
    assert_at(begin.elapsed(), GRACE, &report);
    assert_eq!(open_fds_to(it.port()), 0);
    assert_eq!((report.forced, report.connections()), (1, 1), "{report}");
    blocking(move || client.expect_reset_or_eof()).await;
}

/// Who can see no request can't tell an upgraded connection from another either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_only_serve_tells_upgraded_connections_apart() {
    for front in Front::ALL {
        let it = Setup::far(front).await;
        let mut client = it.upgraded("/upgrade").await;
        let expected = usize::from(front == Front::Serve);
        assert_eq!(it.terminator.stats().upgraded, expected, "{front:?}");
        let ended = it.terminator.terminate();
        blocking(move || {
            client.shutdown_write();
            client.expect_eof();
        })
        .await;
        let report = within(SOON, "the end", ended).await;
        assert_eq!(report.upgraded, expected, "{front:?}: {report}");
        assert_eq!(report.connections(), 1, "{front:?}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g14_the_listener_is_closed_at_once_and_the_port_is_free() {
    let it = Setup::far(Front::Axum).await;
    let mut client = it.client();
    client.get("/slow");
    it.gate.wait_entered_async(1).await;
    let ended = it.terminator.terminate();
    let begin = Instant::now();
    let new = within(SOON, "the port", bind_again(it.addr)).await;
    // Not by the rule for those who forgot their listener.
    measured(begin.elapsed(), ABANDONED / 2, "the port is free");
    assert_eq!(it.terminator.phase(), Phase::Draining);
    drop(new);
    it.gate.open();
    blocking(move || {
        assert_eq!(client.read_response().text(), "slow");
    })
    .await;
    assert!(within(SOON, "the end", ended).await.is_clean());
}

/// The signal may come before axum has been polled at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_a_server_that_is_never_polled_is_ended() {
    let _alone = no_starts();
    let terminator = Terminator::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let server = axum::serve(terminator.listen(listener), Router::new())
        .with_graceful_shutdown(terminator.draining());
    let report = within(SOON, "the end", terminator.terminate()).await;
    assert!(report.is_clean(), "{report}");
    assert!(RawClient::try_connect(addr).is_err(), "it listens");
    within(SOON, "axum", async { server.await })
        .await
        .expect("ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_unix_listeners_work_too() {
    let path = std::env::temp_dir().join(format!("http-terminator-axum-{}", std::process::id()));
    let _ = std::fs::remove_file(&path); // of a process of the same number
    let listener = UnixListener::bind(&path).expect("binds");
    let terminator = Terminator::new();
    let server = axum::serve(terminator.listen(listener), app(App::default()))
        .with_graceful_shutdown(terminator.draining());
    let server = tokio::spawn(async move { server.await });
    let mut client = RawClient::connect(support::Target::Unix(path.clone()));
    let mut client = blocking(move || {
        assert_eq!(client.fetch("/quick").text(), "ok");
        client
    })
    .await;
    let report = within(SOON, "the end", terminator.terminate()).await;
    blocking(move || client.expect_eof()).await;
    assert_eq!(report.connections(), 1, "{report}");
    server.await.expect("no panic").expect("ends");
    let _ = std::fs::remove_file(&path);
}

// ===== ConnectInfo =====

/// A type of the application's own can say what it wants to know of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, TrackedListener<TcpListener>>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TrackedListener<TcpListener>>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// `ConnectInfo<SocketAddr>` itself is axum's to implement, for its own listeners; both types are
/// foreign here. It does so for every listener inside a `TapIo`, and so for ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_connect_info_works() {
    let terminator = Terminator::new();
    let router = Router::new().route(
        "/",
        get(async |ConnectInfo(peer): ConnectInfo<Peer>| peer.0.to_string()),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let of_own = listener.local_addr().expect("bound");
    let tracked = terminator.listen(listener);
    assert_eq!(
        axum::serve::Listener::local_addr(&tracked).expect("bound"),
        of_own
    );
    let server = axum::serve(
        tracked,
        router.into_make_service_with_connect_info::<Peer>(),
    )
    .with_graceful_shutdown(terminator.draining());
    assert_eq!(server.local_addr().expect("bound"), of_own);
    tokio::spawn(async move { server.await });

    let router = Router::new().route(
        "/",
        get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let tapped = listener.local_addr().expect("bound");
    let server = axum::serve(
        terminator.listen(listener).tap_io(|_| ()),
        router.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(terminator.draining());
    tokio::spawn(async move { server.await });

    for addr in [of_own, tapped] {
        let mut client = RawClient::connect(addr);
        let local = client.socket().local_addr().expect("connected");
        let local = local.as_socket().expect("TCP").to_string();
        blocking(move || assert_eq!(client.fetch("/").text(), local)).await;
    }
    let report = within(SOON, "the end", terminator.terminate()).await;
    assert!(report.is_clean(), "{report}");
}

// ===== what only `serve` gives =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_half_a_head_on_a_kept_alive_connection_is_lost_here_and_answered_by_serve() {
    for front in Front::ALL {
        let it = Setup::far(front).await;
        let mut client = it.client();
        let client = blocking(move || {
            assert_eq!(client.fetch("/quick").text(), "ok");
            client.send("GET /quick HTTP/1.1\r\nhos");
            client
        })
        .await;
        let ended = it.terminator.terminate();
        it.terminator.reached(Phase::Draining).await;
        let got = blocking(move || {
            let mut client = client;
            if front == Front::Axum {
                // Lest the rest of the head wins a race that it is to lose.
                client.set_timeout(SOON);
                client.expect_reset_or_eof();
            }
            let _ = client.try_send("t: a\r\n\r\n"); // it may have gone
            client.try_read_response()
        })
        .await;
        match front {
            Front::Serve => {
                let response = got.unwrap_or_else(|end| panic!("lost: {end:?}"));
                assert_eq!(response.text(), "ok");
                assert!(response.says_close(), "{response:?}");
            }
            Front::Axum => {
                let end = got.expect_err("its docs say it is lost");
                assert_ne!(end, ReadEnd::Timeout);
            }
        }
        assert!(within(SOON, "the end", ended).await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_a_partial_first_head_is_bounded_by_the_grace_period_here_and_by_the_stall_in_serve() {
    for front in Front::ALL {
        let it = Setup::stalling(front).await;
        let mut client = it.client();
        client.send("GET /quick HTTP/1.1\r\nhost: a");
        it.accepted(1).await;
        // The head is read on the way to the answer of another connection, if not before.
        it.ping().await;
        let begin = Instant::now();
        let ended = it.terminator.terminate();
        let took = blocking(move || {
            client.expect_reset_or_eof();
            begin.elapsed()
        })
        .await;
        let report = within(BOUND, "the end", ended).await;
        it.assert_bounded(took, &report);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_g9_a_silent_http2_peer_is_bounded_by_the_grace_period_here_and_by_the_stall_in_serve() {
    for front in Front::ALL {
        let it = Setup::stalling(front).await;
        let mut client = RawH2::connect(it.addr);
        let mut client = blocking(move || {
            client.read_until(kind::SETTINGS);
            client.ack_settings();
            client
        })
        .await;
        let begin = Instant::now();
        let ended = it.terminator.terminate();
        let took = blocking(move || {
            client.expect_eof_within(BOUND);
            begin.elapsed()
        })
        .await;
        let report = within(BOUND, "the end", ended).await;
        it.assert_bounded(took, &report);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_g18_no_503_and_no_name_at_the_deadline_here_but_by_serve() {
    for front in Front::ALL {
        let it = Setup::stalling(front).await;
        let mut client = it.client();
        client.get("/slow");
        it.gate.wait_entered_async(1).await;
        let begin = Instant::now();
        let ended = it.terminator.terminate();
        let got = blocking(move || client.try_read_response()).await;
        let report = within(BOUND, "the end", ended).await;
        assert_at(begin.elapsed(), GRACE, &report);
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        let named = report
            .stragglers
            .iter()
            .any(|it| it.path.as_deref() == Some("/slow"));
        match front {
            Front::Serve => {
                let response = got.unwrap_or_else(|end| panic!("not answered: {end:?}"));
                assert_eq!(response.status, 503, "{response:?}");
                assert_eq!(report.answered_at_deadline, 1, "{report}");
                assert!(named, "{report}");
            }
            Front::Axum => {
                let end = got.expect_err("its docs say there is no 503");
                assert!(matches!(end, ReadEnd::Eof | ReadEnd::Reset), "{end:?}");
                assert_eq!(report.answered_at_deadline, 0, "{report}");
                assert!(!named, "{report}");
            }
        }
    }
}

// ===== what they share =====

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    /// `axum::serve` on a tracked listener.
    Axum,
    /// `Terminator::serve`, for comparison.
    Serve,
}

impl Front {
    const ALL: [Self; 2] = [Self::Axum, Self::Serve];
}

struct Setup {
    front: Front,
    terminator: Terminator,
    gate: Gate,
    addr: SocketAddr,
    /// The front end's own future.
    axum: Option<JoinHandle<()>>,
}

impl Setup {
    /// The deadline is not to be reached.
    async fn far(front: Front) -> Self {
        let builder = Terminator::builder().grace_period(Duration::from_secs(30));
        Self::new(front, &builder).await
    }

    async fn stalling(front: Front) -> Self {
        let builder = Terminator::builder()
            .grace_period(GRACE)
            .stall_timeout(STALL);
        Self::new(front, &builder).await
    }

    async fn new(front: Front, builder: &TerminatorBuilder) -> Self {
        load::watch_load();
        let terminator = builder.clone().build();
        let gate = Gate::new();
        let (addr, axum) = serve(front, &terminator, &gate).await;
        Self {
            front,
            terminator,
            gate,
            addr,
            axum: Some(axum),
        }
    }

    fn client(&self) -> RawClient {
        RawClient::connect(self.addr)
    }

    fn port(&self) -> u16 {
        self.addr.port()
    }

    async fn upgraded(&self, path: &'static str) -> RawClient {
        let mut client = self.client();
        blocking(move || {
            client.get_upgrade(path);
            let head = client.read_response_headers();
            assert_eq!(head.status, 101, "{head:?}");
            client
        })
        .await
    }

    async fn accepted(&self, n: u64) {
        until_stats_async(&self.terminator, "an accept", |it| it.accepted >= n).await;
    }

    async fn ping(&self) {
        let mut client = self.client();
        blocking(move || {
            client.send("GET /quick HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            assert_eq!(client.read_response().text(), "ok");
            client.expect_eof();
        })
        .await;
    }

    async fn axum_has_ended(mut self) {
        let axum = self.axum.take().expect("axum's");
        within(SOON, "axum's own future", axum)
            .await
            .expect("no panic");
    }

    /// A peer that owes bytes was closed after the stall timeout, or not before the deadline.
    #[track_caller]
    fn assert_bounded(&self, took: Duration, report: &Report) {
        match self.front {
            Front::Axum => {
                assert_at(took, GRACE, report);
                assert_eq!(report.forced, 1, "{report}");
            }
            Front::Serve => {
                assert!(took >= STALL, "{took:?}");
                assert!(report.draining + STALL < GRACE, "{report}");
                assert_eq!((report.stalled, report.forced), (1, 0), "{report}");
            }
        }
    }
}

async fn serve(front: Front, terminator: &Terminator, gate: &Gate) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let router = app(App {
        gate: gate.clone(),
        terminator: None,
    });
    let task = match front {
        Front::Axum => {
            let server = axum::serve(terminator.listen(listener), router)
                .with_graceful_shutdown(terminator.draining());
            tokio::spawn(async move { server.await.expect("it has no errors") })
        }
        Front::Serve => {
            let server = terminator.serve(listener, router);
            tokio::spawn(async move { drop(server.await) })
        }
    };
    (addr, task)
}

#[track_caller]
fn assert_at(took: Duration, grace: Duration, report: &Report) {
    let early = grace.saturating_sub(Duration::from_millis(5));
    assert!(
        took >= early,
        "before the deadline of {grace:?}: {took:?}: {report:?}"
    );
    promised(report, grace);
    measured(took.saturating_sub(grace), LATE, "after the deadline");
}

fn runtime() -> runtime::Runtime {
    let built = runtime::Builder::new_current_thread().enable_all().build();
    built.expect("a runtime can be made")
}

/// `axum::serve` on a runtime of two workers, which may be blocked.
fn host(terminator: &Terminator) -> Served<SocketAddr> {
    let built = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let (terminator, gate) = (terminator.clone(), Gate::new());
    let inside = gate.clone();
    Served::start(built.expect("a runtime can be made"), &gate, async move {
        serve(Front::Axum, &terminator, &inside).await.0
    })
}
