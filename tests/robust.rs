//! G18, G19, G20: what the report says; panics, bad input, absurd settings and ten thousand
//! connections; connections that are only watched.
#![cfg(all(unix, feature = "serve"))]
#![allow(
    unreachable_pub,
    reason = "the support library serves several test crates"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests spawn tasks and measure time"
)]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::get;
use futures_util::stream::{self, StreamExt};
use http::{StatusCode, header};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tracing::Level;

use http_terminator::{IdlePolicy, Phase, Protocol, Stats, Terminator, TerminatorBuilder};
use support::log::Log;
use support::outside::{Host, Other, alone, block_on, descriptors};
use support::program::{freeze, signal};
use support::starts::no_starts;
use support::wait::{time_passes, time_passes_async, until, until_async, until_read};
use support::{
    App, BOUND, FrontEnd, Gate, H2Client, PREFACE, RawClient, RawH2, ReadEnd, Server, Target, app,
    blocking, each, h2_connect, h2_finish, kind, start, within,
};

// ===== G18: the report =====

/// One connection of each kind, and two more that tell HTTP/2 from HTTP/1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_each_connection_is_counted_by_how_it_ended() {
    each(FrontEnd::all(), async |front| {
        let (slow, left) = (Gate::new(), Gate::new());
        let terminator = Terminator::builder()
            .grace_period(Duration::from_millis(600))
            .stall_timeout(Duration::from_millis(100))
            .build();
        let server = start(front, &terminator, gated(&slow)).await;

        // Ended before the call: counted nowhere.
        drop(server.connect());
        until_async("one that came and went", || {
            let stats = terminator.stats();
            stats.accepted == 1 && stats.connections == 0
        })
        .await;
        let mut idle = server.connect();
        assert_eq!(idle.fetch("/quick").status, 200);
        let mut finished = server.connect();
        finished.get("/slow");
        let closed_by_peer = server.connect();
        closed_by_peer.get("/slow");
        slow.wait_entered(2);
        let stalled = server.connect();
        stalled.send("GET /half HT");
        let mut upgraded = server.connect();
        upgraded.get_upgrade("/upgrade");
        assert_eq!(upgraded.read_response().status, 101);
        let (io, _peer) = tokio::io::duplex(64);
        let (io, inside) = (terminator.track(io), left.clone());
        let leaves = tokio::spawn(async move {
            inside.enter().await;
            io.into_inner()
        });
        let forced = server.connect();
        forced.get("/pending");
        let detached = terminator.track(());
        detached.connection().detach();
        until_async("all of them", || {
            let stats = terminator.stats();
            (stats.connections, stats.requests, stats.upgraded) == (8, 3, 1) && stats.busy == 4
        })
        .await;

        let ended = terminator.terminate();
        within(BOUND, "the drain", terminator.draining()).await;
        idle.expect_eof();
        drop(closed_by_peer);
        until_async("the peer's leaving", || slow.inside() == 1).await;
        slow.open();
        assert!(finished.read_response().says_close(), "{front:?}");
        upgraded.shutdown_write();
        upgraded.expect_eof();
        left.open();
        leaves.await.expect("the IO leaves");
        let report = within(BOUND, "the end", ended).await;

        let counts = [
            report.idle,
            report.finished,
            report.closed_by_peer,
            report.stalled,
            report.upgraded,
            report.left,
            report.detached,
            report.forced,
        ];
        assert_eq!(counts, [1; 8], "{front:?}: {report:?}");
        assert_eq!(
            report.connections(),
            counts.iter().sum::<usize>(),
            "{front:?}"
        );
        assert!(!report.is_clean(), "{front:?}: {report}");
        assert!(
            report.draining >= Duration::from_millis(600),
            "{front:?}: {report:?}"
        );
        drop((stalled, forced));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_stragglers_are_named() {
    each(FrontEnd::all(), async |front| {
        let grace = Duration::from_millis(60);
        let terminator = Terminator::builder().grace_period(grace).build();
        let server = start(front, &terminator, app(App::default())).await;
        let posts = server.connect();
        posts.send("POST /slow?a=b HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
        until_async("its request", || terminator.stats().requests == 1).await;
        let gets = server.connect();
        gets.get("/pending");
        until_async("both requests", || terminator.stats().requests == 2).await;
        let mut upgraded = server.connect();
        upgraded.get_upgrade("/upgrade");
        assert_eq!(upgraded.read_response().status, 101);

        let peers = [&posts, &gets, &upgraded].map(local_addr);
        let report = within(BOUND, "the end", terminator.terminate()).await;
        let mut stragglers: Vec<_> = report
            .stragglers
            .iter()
            .map(|it| {
                (
                    it.connection,
                    it.peer,
                    it.protocol,
                    it.method.as_deref(),
                    it.path.as_deref(),
                )
            })
            .collect();
        stragglers.sort_by_key(|it| it.0);
        let method_and_path = |n: usize| (stragglers[n].3, stragglers[n].4);
        assert_eq!(stragglers.len(), 3, "{front:?}: {report}");
        for (straggler, peer) in stragglers.iter().zip(peers) {
            assert_eq!(straggler.1, peer, "{front:?}: {report}");
        }
        let protocols = [0, 1, 2].map(|n: usize| stragglers[n].2);
        let expected = [Protocol::Http1, Protocol::Http1, Protocol::Upgraded];
        assert_eq!(protocols, expected, "{front:?}: {report}");
        let (method, path) = method_and_path(0);
        assert_eq!(method, Some("POST"), "{front:?}: {report}");
        assert!(
            path.is_some_and(|path| path.starts_with("/slow")),
            "{front:?}: {report}"
        );
        assert_eq!(
            method_and_path(1),
            (Some("GET"), Some("/pending")),
            "{front:?}: {report}"
        );
        for straggler in &report.stragglers {
            assert!(
                straggler.age >= grace && straggler.age < BOUND,
                "{front:?}: {report}"
            );
            assert!(!straggler.unresponsive, "{front:?}: {report}");
        }
        assert_eq!(report.to_string().lines().count(), 1, "{report}");
        let block = format!("{report:#}");
        let lines: Vec<_> = block.lines().collect();
        for straggler in &report.stragglers {
            let listed = lines.contains(&&*format!("  {straggler}"));
            assert!(listed, "{straggler} is missing: {block}");
        }
        assert!(
            lines.iter().all(|line| line.trim_end() == *line),
            "{lines:?}"
        );
    });
}

/// On HTTP/2 the request is named as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_http2_stragglers_are_named() {
    each(FrontEnd::all(), async |front| {
        let grace = Duration::from_millis(60);
        let terminator = Terminator::builder().grace_period(grace).build();
        let server = start(front, &terminator, app(App::default())).await;
        let client = h2_connect(&server.target).await;
        assert_eq!(client.get("/quick").await.0, StatusCode::OK);
        let _pending = client.start("/pending").await;
        until_async("the request", || terminator.stats().requests == 1).await;
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert_eq!(
            (report.forced, report.answered_at_deadline),
            (1, 0),
            "{front:?}: {report}"
        );
        let straggler = &report.stragglers[0];
        assert_eq!(straggler.protocol, Protocol::Http2, "{front:?}: {report}");
        let name = (straggler.method.as_deref(), straggler.path.as_deref());
        assert_eq!(name, (Some("GET"), Some("/pending")), "{front:?}: {report}");
    });
}

/// Whoever blocks its thread is named with its peer, although its socket was closed under it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_an_unresponsive_handler_is_named_with_its_peer() {
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        let grace = Duration::from_millis(60);
        let terminator = Terminator::builder().grace_period(grace).build();
        let server = start(front, &terminator, gated(&gate)).await;
        let client = server.connect();
        client.get("/block");
        gate.wait_entered(1);
        // By the wake-up of the driver's thread alone: this thread is none of the runtime's.
        let report = block_on(BOUND, "the end", terminator.terminate());
        gate.open();
        assert_eq!(
            (report.forced, report.unresponsive),
            (1, 1),
            "{front:?}: {report}"
        );
        assert_eq!(report.stragglers.len(), 1, "{front:?}: {report}");
        let straggler = &report.stragglers[0];
        assert!(straggler.unresponsive, "{front:?}: {report}");
        let name = (straggler.method.as_deref(), straggler.path.as_deref());
        assert_eq!(name, (Some("GET"), Some("/block")), "{front:?}: {report}");
        assert_eq!(straggler.peer, local_addr(&client), "{front:?}: {report}");
    });
}

/// A client that does not read, so that the server's write is pending when the deadline comes.
///
/// Interleaving: the driver half-closes the socket, which breaks the pending write; hyper ends with
/// that error, and nobody has said yet that it was by force.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_response_cut_in_its_middle_counts_as_forced() {
    support::big(); // made once, and not within somebody's grace period
    for path in ["/big", "/bigstream"] {
        for front in FrontEnd::all() {
            let grace = Duration::from_millis(50);
            let terminator = Terminator::builder().grace_period(grace).build();
            let server = start(front, &terminator, app(App::default())).await;
            // The head of one goes out before the drain, as keep-alive; that of the other says close.
            let before = server.connect();
            before.get(path);
            until_async("a response", || terminator.stats().busy == 1).await;
            let half = server.connect();
            half.send(format!("GET {path} HTTP/1.1\r\n"));
            until_async("half a head", || terminator.stats().busy == 2).await;
            let ended = terminator.terminate();
            half.send("host: localhost\r\n\r\n");
            let report = within(BOUND, "the end", ended).await;
            assert_eq!(report.forced, 2, "{front:?}, {path}: {report}");
            assert!(!report.is_clean(), "{front:?}, {path}: {report}");
            assert_eq!(report.connections(), 2, "{front:?}, {path}: {report}");
            assert_eq!(report.stragglers.len(), 2, "{front:?}, {path}: {report}");
            for straggler in &report.stragglers {
                let name = (straggler.method.as_deref(), straggler.path.as_deref());
                assert_eq!(name, (Some("GET"), Some(path)), "{front:?}: {report}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_the_list_of_stragglers_is_bounded() {
    let grace = Duration::from_millis(60);
    let terminator = Terminator::builder().grace_period(grace).build();
    let server = start(FrontEnd::Serve, &terminator, app(App::default())).await;
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let client = server.connect();
            client.get("/pending");
            client
        })
        .collect();
    until_async("all requests", || terminator.stats().requests == 100).await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!(
        (report.forced, report.stragglers.len()),
        (100, 64),
        "{report}"
    );
    assert_eq!(report.answered_at_deadline, 100, "{report}");
    let line = report.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.ends_with("; and 97 more"), "{line}");
    let block = format!("{report:#}");
    let listed = block.lines().filter(|it| it.starts_with("  connection "));
    assert_eq!(listed.count(), 64, "{block}");
    assert!(block.ends_with("\n  and 36 more"), "{block}");
    drop(clients);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_report_without_stragglers_is_one_line() {
    let terminator = Terminator::new();
    let server = start(FrontEnd::Serve, &terminator, app(App::default())).await;
    let mut client = server.connect();
    assert_eq!(client.fetch("/quick").status, 200);
    let report = within(BOUND, "the end", terminator.terminate()).await;
    let shown = report.to_string();
    assert!(shown.starts_with("terminated cleanly in "), "{shown:?}");
    assert!(shown.ends_with(": 1 connection (1 idle)"), "{shown:?}");
    assert_eq!((shown.lines().count(), shown.trim_end()), (1, &shown[..]));
    let shown = terminator.stats().to_string();
    assert_eq!((shown.lines().count(), shown.trim()), (1, &shown[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_stats_are_live() {
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let expect = async |what: &str, expected: [usize; 5]| {
            until_async(what, || numbers(&terminator.stats()) == expected).await;
        };
        assert_eq!(terminator.stats().listeners, 0);
        let server = start(front, &terminator, gated(&gate)).await;
        assert_eq!(terminator.stats().listeners, 1, "{front:?}");
        expect("nothing", [0, 0, 0, 0, 0]).await;
        // connections, idle, busy, upgraded, requests
        let mut first = server.connect();
        expect("a fresh one", [1, 1, 0, 0, 0]).await;
        first.send("GET /slow HT");
        expect("half a head", [1, 0, 1, 0, 0]).await;
        first.send("TP/1.1\r\nhost: localhost\r\n\r\n");
        expect("a request", [1, 0, 1, 0, 1]).await;
        let mut upgraded = server.connect();
        upgraded.get_upgrade("/upgrade");
        assert_eq!(upgraded.read_response().status, 101);
        expect("an upgrade", [2, 0, 1, 1, 1]).await;
        let h2 = h2_connect(&server.target).await;
        let streams = (h2.start("/slow").await, h2.start("/slow").await);
        expect("two streams", [3, 0, 2, 1, 3]).await;
        let guard = terminator.guard();
        assert_eq!(
            (terminator.stats().guards, terminator.stats().accepted),
            (1, 3),
            "{front:?}"
        );
        drop(guard);
        assert_eq!(terminator.stats().guards, 0);

        gate.open();
        assert_eq!(first.read_response().text(), "slow", "{front:?}");
        for stream in [streams.0, streams.1] {
            h2_finish(stream).await.expect("a response");
        }
        expect("all answered", [3, 2, 0, 1, 0]).await;
        upgraded.shutdown_write();
        upgraded.expect_eof();
        drop(first);
        expect("two gone", [1, 1, 0, 0, 0]).await;
        drop(h2);
        expect("all gone", [0, 0, 0, 0, 0]).await;
        assert_eq!(terminator.stats().accepted, 3, "{front:?}");
        within(BOUND, "the end", terminator.terminate()).await;
        let stats = terminator.stats();
        assert_eq!(
            (stats.phase, stats.listeners),
            (Phase::Terminated, 0),
            "{front:?}"
        );
    });
}

// ===== G19: panics =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_a_panic_breaks_its_own_connection_only() {
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let router = gated(&gate)
            .route("/panic-in-body", get(panic_in_body))
            .route("/panic-in-upgrade", get(panic_in_upgrade));
        let server = start(front, &terminator, router).await;
        let mut busy = server.connect();
        busy.get("/slow");
        gate.wait_entered(1);

        let mut client = server.connect();
        client.get("/panic");
        assert!(client.try_read_response().is_err(), "{front:?}: no answer");
        let mut client = server.connect();
        client.get("/panic-in-body");
        assert_eq!(client.read_response_headers().status, 200, "{front:?}");
        assert!(
            client.try_read_body().is_err(),
            "{front:?}: the body is not ended well"
        );
        let mut client = server.connect();
        client.get_upgrade("/panic-in-upgrade");
        assert_eq!(client.read_response().status, 101, "{front:?}");
        client.expect_reset_or_eof();
        until_async("the end of the broken ones", || {
            numbers(&terminator.stats()) == [1, 0, 1, 0, 1]
        })
        .await;

        // While draining as well.
        let draining = server.connect();
        draining.get("/slow");
        gate.wait_entered(2);
        let mut late = server.connect();
        late.send("GET /panic HTTP/1.1\r\n");
        until_async("half a head", || terminator.stats().busy == 3).await;
        let ended = terminator.terminate();
        late.send("host: localhost\r\n\r\n");
        assert!(late.try_read_response().is_err(), "{front:?}: no answer");
        gate.open();
        assert_eq!(busy.read_response().text(), "slow", "{front:?}");
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(
            (report.finished, report.connections()),
            (2, 3),
            "{front:?}: {report}"
        );
        drop(draining);
    });
}

/// On HTTP/2 it is the stream only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_a_panic_on_http2_leaves_no_count() {
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let router = gated(&gate).route("/panic-in-body", get(panic_in_body));
        let server = start(front, &terminator, router).await;
        let mut client = h2_connect(&server.target).await;
        let slow = client.start("/slow").await;
        gate.wait_entered(1);
        assert!(client.try_get("/panic").await.is_err(), "{front:?}");
        assert!(client.try_get("/panic-in-body").await.is_err(), "{front:?}");
        until_async("the end of the broken ones", || {
            numbers(&terminator.stats()) == [1, 0, 1, 0, 1]
        })
        .await;
        let ended = terminator.terminate();
        gate.open();
        assert_eq!(
            h2_finish(slow).await.expect("a response").1,
            b"slow",
            "{front:?}"
        );
        // Its own farewell may meet a socket that is closed already.
        let _ = client.closed().await;
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(report.connections(), 1, "{front:?}: {report}");
    });
}

async fn panic_in_body() -> Body {
    let last = stream::once(async {
        tokio::task::yield_now().await; // so that the head goes out
        panic!("this body panics on purpose")
    });
    let chunks = stream::iter(["first\n"]).chain(last);
    Body::from_stream(chunks.map(Ok::<_, Infallible>))
}

async fn panic_in_upgrade(mut request: Request) -> impl IntoResponse {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _io = upgraded.await.expect("an upgrade");
        panic!("this upgraded connection panics on purpose");
    });
    let names = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")];
    (StatusCode::SWITCHING_PROTOCOLS, names)
}

// ===== G19: ten thousand connections =====

/// Looks at the memory of its process, so it needs one of its own.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn g19_ten_thousand_connections_later_memory_is_what_it_was() {
    const NAME: &str = "g19_ten_thousand_connections_later_memory_is_what_it_was";
    if alone(NAME, &[], BOUND * 12) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime
        .expect("a runtime")
        .block_on(ten_thousand_connections());
}

async fn ten_thousand_connections() {
    const THREADS: usize = 8;
    const EACH: usize = 1_250;
    /// A leak of the connection's state alone would be more: 10,000 times 500 bytes.
    const SLACK: usize = 3 << 20;
    let token = Arc::new(());
    let terminator = Terminator::new();
    let router = app(App::default()).layer(axum::Extension(Arc::clone(&token)));
    let make = router.into_make_service_with_connect_info::<SocketAddr>();
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    let server = tokio::spawn(terminator.serve_make_service(listener, make));

    let storm = async |each: usize| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                thread::spawn(move || {
                    for n in 0..each {
                        let mut client = RawClient::connect(addr);
                        match (thread + n) % 8 {
                            0 => client.get_upgrade("/upgrade"),
                            1 => client.send("GET /quick HTTP/1.1\r\nconnection: close\r\n\r\n"),
                            2 => client.post("/echo", "hello"),
                            3 => client.send("nonsense\r\n\r\n"),
                            _ => client.get("/quick"),
                        }
                        client.read_response();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("a client");
        }
        until_async("the end of all", || terminator.stats().connections == 0).await;
    };
    storm(EACH / 4).await;
    let tokens = Arc::strong_count(&token);
    let before = (resident(), descriptors(), threads());
    storm(EACH).await;
    assert!(
        resident() < before.0 + SLACK,
        "{} bytes before, {} after",
        before.0,
        resident()
    );
    // Who closed last is closed on the other side a moment later.
    until_async("as few descriptors and threads", || {
        descriptors() <= before.1 && threads() <= before.2
    })
    .await;
    until_async("the services' end", || Arc::strong_count(&token) <= tokens).await;
    assert_eq!(
        terminator.stats().accepted,
        (THREADS * (EACH / 4 + EACH)) as u64
    );

    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!(
        (report.connections(), report.is_clean()),
        (0, true),
        "{report}"
    );
    server.await.expect("the server");
    assert_eq!(
        Arc::strong_count(&token),
        1,
        "nothing of the application is left"
    );
}

/// As above, of connections that keep more: TLS, and HTTP/2 with streams and with some that their clients give up.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn g19_thousands_over_tls_and_http2_later_memory_is_what_it_was() {
    const NAME: &str = "g19_thousands_over_tls_and_http2_later_memory_is_what_it_was";
    if alone(NAME, &[], BOUND * 30) {
        return;
    }
    let host = Host::workers(2);
    for front in FrontEnd::seeing() {
        let terminator = Terminator::new();
        let server = start(front, &terminator, app(App::default()));
        let server = host.block_on(server);
        let one = |n: usize| match n % 4 {
            0 => {
                let mut client = server.connect();
                assert_eq!(client.fetch("/quick").status, 200);
            }
            1 => {
                let client = server.connect();
                client.get("/pending");
            }
            2 => {
                let mut client = RawH2::connect(server.target.clone());
                client.ack_settings();
                client.get("/pending", 1);
                client.get("/quick", 3);
                client.read_until(kind::DATA);
            }
            _ => {
                let client = RawH2::connect(server.target.clone());
                client.request("POST", "/echo", 1, false);
                client.send_frame(kind::DATA, 0, 1, b"half of it");
            }
        };
        stays_flat(&terminator, 1_000, one);
        let report = block_on(BOUND, "the end", terminator.terminate());
        assert_eq!(report.connections(), 0, "{front:?}: {report}");
    }
}

/// A server each, with a client that stays to its end, which is clean or by force.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn g19_thousands_of_terminators_later_memory_is_what_it_was() {
    const NAME: &str = "g19_thousands_of_terminators_later_memory_is_what_it_was";
    if alone(NAME, &[], BOUND * 30) {
        return;
    }
    let host = Host::workers(2);
    stays_flat(&Terminator::new(), 2_000, |n| {
        let fronts = FrontEnd::all();
        let terminator = Terminator::builder()
            .max_connection_age(BOUND)
            .idle_timeout(BOUND)
            .build();
        let server = start(fronts[n % fronts.len()], &terminator, app(App::default()));
        let server = host.block_on(server);
        let mut client = server.connect();
        assert_eq!(client.fetch("/quick").status, 200);
        let ended = if n % 3 == 0 {
            client.get("/pending");
            until("its request", || terminator.stats().requests > 0);
            terminator.force()
        } else {
            terminator.terminate()
        };
        // One in seven is not waited for.
        if n % 7 > 0 {
            assert_eq!(block_on(BOUND, "the end", ended).connections(), 1);
        }
        assert!(support::outside::ended(client.read_to_end()));
    });
}

/// Does it so often, by some at once, and again as often, after which the process has what it had.
fn stays_flat(terminator: &Terminator, times: usize, one: impl Fn(usize) + Sync) {
    const THREADS: usize = 8;
    /// Of each. What a connection shares with the rest of the crate, were it left, is more.
    const SLACK: usize = 384;

    let (one, next) = (&one, AtomicUsize::new(0));
    let round = |times: usize| {
        let end = next.load(Ordering::SeqCst) + times;
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::SeqCst);
                        if n >= end {
                            break;
                        }
                        one(n);
                    }
                });
            }
        });
        until("the end of all", || terminator.stats().connections == 0);
        next.store(end, Ordering::SeqCst);
    };
    round(times);
    let before = (descriptors(), threads());
    let grown: Vec<_> = (0..3)
        .map(|_| {
            let before = resident();
            round(times);
            resident().saturating_sub(before)
        })
        .collect();
    println!("measured: grown by {grown:?} bytes");
    // What is left of each is left each time; what the allocator takes is taken now and then.
    let mut sorted = grown.clone();
    sorted.sort_unstable();
    assert!(sorted[1] < SLACK * times, "{grown:?}");
    // Who closed last is closed on the other side a moment later.
    until("as few descriptors and threads", || {
        descriptors() <= before.0 && threads() <= before.1
    });
}

/// How many threads this process has. Linux only.
fn threads() -> usize {
    let all = std::fs::read_dir("/proc/self/task").expect("Linux has this directory");
    all.count()
}

/// Bytes of memory that this process has. Linux only.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has this file");
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number") * 4096
}

// ===== G22: a process that stands still =====

/// Half of a head, or of a `ClientHello`, has come; the rest comes in time, and then its bound is over, while the process stands still.
/// A runtime that goes on has its timers first: all of them were closed without an answer.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "stops a process")]
fn g22_what_came_in_time_is_answered_by_a_process_that_stood_still() {
    const NAME: &str = "g22_what_came_in_time_is_answered_by_a_process_that_stood_still";
    const BOUNDED: Duration = Duration::from_secs(1);
    const CLIENTS: usize = 8;

    if support::outside::is_alone() {
        let host = Host::workers(2);
        for front in FrontEnd::seeing() {
            let terminator = Terminator::builder().head_timeout(BOUNDED).build();
            let server = start(front, &terminator, app(App::default()));
            println!("port {}", host.block_on(server).port());
        }
        println!("pid {}", std::process::id());
        // Until nobody wants it any more.
        let _ = std::io::stdin().lines().next();
        return;
    }
    let key = format!("{}={}", support::TLS_KEY, support::tls_key());
    let mut other = Other::start(NAME, &["env", &key]);
    let targets: Vec<_> = FrontEnd::seeing()
        .into_iter()
        .map(|front| {
            let port: u16 = other.line("port ").parse().expect("a port");
            let addr = SocketAddr::from(([127, 0, 0, 1], port));
            (
                front,
                if front.is_tls() {
                    Target::Tls(addr)
                } else {
                    Target::Tcp(addr)
                },
            )
        })
        .collect();
    let pid = other.line("pid ").parse().expect("a number");
    let head = b"GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut asked = Vec::new();
    let mut shaking = Vec::new();
    for (front, target) in &targets {
        for _ in 0..CLIENTS {
            let mut client = RawClient::connect(target);
            assert_eq!(client.fetch("/quick").status, 200);
            client.send(&head[..9]);
            asked.push((front, client));
        }
        if let Target::Tls(addr) = target {
            let client = RawClient::connect(Target::Tcp(*addr));
            let mut tls = support::tls_client(&["http/1.1"]);
            let hello = support::client_hello(&mut tls);
            client.send(&hello[..9]);
            shaking.push((front, client, tls, hello));
        }
    }
    let begun = Instant::now();
    // The time is the subject: what was sent is read by then, or the clients have all of their time behind that.
    time_passes(BOUNDED / 10);
    freeze(pid);
    for (_, client) in &asked {
        client.send(&head[9..]);
    }
    for (_, client, _, hello) in &shaking {
        client.send(&hello[9..]);
    }
    time_passes((BOUNDED * 2).saturating_sub(begun.elapsed()));
    assert!(signal(pid, "CONT"));
    let mut wrong = Vec::new();
    for (front, mut client) in asked {
        let answer = client.try_read_response().map(|it| it.status);
        if !matches!(answer, Ok(200)) {
            wrong.push(format!("{front:?}: {answer:?}"));
        }
    }
    for (front, mut client, tls, _) in shaking {
        if let Err(error) = client.shake_hands(tls) {
            wrong.push(format!("{front:?}: {error}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
    other.tell("that is all");
    assert_eq!(other.wait(BOUND), Some(true));
}

// ===== G19: bad input =====

/// What a peer does badly; the client that did it, if it is to hold its end.
type Misdeed = fn(&Target, &Gate) -> Option<RawClient>;

const MISDEEDS: [(&str, Misdeed); 15] = [
    ("garbage", |target, _| {
        talk(target, "\0\x01\x02nothing that HTTP knows\r\n\r\n")
    }),
    ("garbage without an end", |target, _| {
        talk(target, [0xff; 300])
    }),
    ("a TLS ClientHello", |target, _| {
        let mut hello = vec![0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
        hello.extend([7; 194]);
        talk(target, hello)
    }),
    ("an HTTP/0.9 request", |target, _| {
        talk(target, "GET /\r\n\r\n")
    }),
    ("100 KiB of header", |target, _| {
        let field = format!("x: {}\r\n", "y".repeat(505)).repeat(200);
        talk(target, format!("GET / HTTP/1.1\r\n{field}\r\n"))
    }),
    ("two lengths", |target, _| {
        talk(
            target,
            "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        )
    }),
    ("a bad chunk", |target, _| {
        talk(
            target,
            "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        )
    }),
    ("half a preface, then a reset", |target, _| {
        let client = RawClient::connect(target);
        client.send(&PREFACE[..12]);
        reset(client)
    }),
    ("a preface and garbage", |target, _| {
        talk(target, [PREFACE, &[0xee; 100]].concat())
    }),
    ("a reset, fresh", |target, _| {
        reset(RawClient::connect(target))
    }),
    ("a reset, idle", |target, _| {
        let mut client = RawClient::connect(target);
        assert_eq!(client.fetch("/quick").status, 200);
        reset(client)
    }),
    ("a reset in half a head", |target, _| {
        let client = RawClient::connect(target);
        client.send("GET /quick HTTP/1.1\r\nho");
        reset(client)
    }),
    ("a reset in flight", |target, gate| {
        let client = RawClient::connect(target);
        let before = gate.entered();
        client.get("/slow");
        gate.wait_entered(before + 1);
        reset(client)
    }),
    ("a reset in the body", |target, gate| {
        let mut client = RawClient::connect(target);
        let before = gate.entered();
        client.get("/stream");
        assert_eq!(client.read_response_headers().status, 200);
        gate.wait_entered(before + 1);
        reset(client)
    }),
    ("a reset after an upgrade", |target, _| {
        let mut client = RawClient::connect(target);
        client.get_upgrade("/upgrade");
        assert_eq!(client.read_response().status, 101);
        client.send("hello");
        assert_eq!(client.read_exact(5), b"hello");
        reset(client)
    }),
];

/// The connection is closed, the counts are right, and nothing loud is logged: anybody can do this.
///
/// On a runtime with one thread, so that the log is this test's alone.
#[tokio::test]
async fn g19_bad_input_breaks_its_own_connection_only() {
    let log = Log::default();
    let _logging = log.here();
    for front in FrontEnd::all() {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let server = start(front, &terminator, gated(&gate)).await;
        for (what, misdeed) in MISDEEDS {
            let (target, at) = (server.target.clone(), gate.clone());
            drop(blocking(move || misdeed(&target, &at)).await);
            until_async(&format!("{front:?}: the end after {what}"), || {
                numbers(&terminator.stats()) == [0; 5]
            })
            .await;
            assert_eq!(
                gate.inside(),
                0,
                "{front:?}: the handler's end after {what}"
            );
        }
        let target = server.target.clone();
        let good = blocking(move || RawClient::connect(target).fetch("/quick")).await;
        assert_eq!(good.text(), "ok", "{front:?}: afterwards");
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        let loud = log.at_least(Level::INFO);
        assert!(loud.is_empty(), "{front:?}: {loud:#?}");
    }
}

/// What begins as TLS does, and says that it is longer than any record of TLS: it was followed without end, by the thread that read
/// it and under the lock of its socket. In a process of its own, as nothing would end that.
#[test]
fn g11_g19_what_claims_to_be_longer_than_any_record_holds_no_thread() {
    const NAME: &str = "g11_g19_what_claims_to_be_longer_than_any_record_holds_no_thread";
    if alone(NAME, &[], BOUND * 3) {
        return;
    }
    let mut fronts = FrontEnd::all_and_tls();
    fronts.push(FrontEnd::Watch);
    #[cfg(feature = "axum")]
    fronts.push(FrontEnd::Axum);
    #[cfg(feature = "tonic")]
    fronts.push(FrontEnd::Tonic);
    for front in fronts {
        for before in [
            &b""[..],
            b"A",
            b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n",
        ] {
            let host = Host::workers(2);
            let grace = Duration::from_millis(200);
            let terminator = Terminator::builder().grace_period(grace).build();
            let server = host.block_on(start(front, &terminator, app(App::default())));
            let clients: Vec<_> = (0..3)
                .map(|_| {
                    let client = server.connect();
                    let hello = [22, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xff, 3, 3];
                    client.send_raw(&[before, &hello].concat());
                    client
                })
                .collect();
            until("they are there", || terminator.stats().accepted == 3);
            // All workers have a turn.
            let turns: Vec<_> = (0..8)
                .map(|_| host.spawn(tokio::task::yield_now()))
                .collect();
            until("their turns", || turns.iter().all(JoinHandle::is_finished));
            if front != FrontEnd::Tonic {
                assert_eq!(server.connect().fetch("/quick").text(), "ok", "{front:?}");
            }
            let report = block_on(BOUND, "the end", terminator.terminate());
            assert_eq!(report.unclosed, 0, "{front:?}: {report}");
            drop(clients);
        }
    }
}

/// The same while draining: all ends before the deadline, and counts as the peer's doing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_bad_input_does_not_delay_a_drain() {
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        // Nothing is closed as idle before.
        let terminator = Terminator::builder().grace_period(BOUND * 2).settle(BOUND);
        let terminator = terminator.build();
        let server = start(front, &terminator, gated(&gate)).await;
        // Each holds its end, and says no more.
        let wrong: [&[u8]; 4] = [
            b"nonsense\r\n\r\n",
            b"GET /\r\n\r\n",
            b"\x16\x03\x01\0\x01\x01\r\n\r\n",
            &[0x16, 3, 1, 2, 0, 1],
        ];
        let half = [&PREFACE[..12], b"GET /quick HTTP/1.1\r\nho"];
        let all = [&wrong[..], &half].concat();
        let clients: Vec<_> = all.iter().map(|_| server.connect()).collect();
        until_async("all of them", || {
            terminator.stats().connections == all.len()
        })
        .await;
        let termination = terminator.terminate();
        within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
        let began = Instant::now();
        for (client, bytes) in clients.iter().zip(&all) {
            client.send(bytes);
        }
        let report = within(BOUND, "the end", termination).await;
        let took = began.elapsed();
        assert!(report.is_clean(), "{front:?}: {report}");
        let ends = report.closed_by_peer + report.stalled;
        assert_eq!(
            (ends, report.connections()),
            (all.len(), all.len()),
            "{front:?}: {report}"
        );
        // Whoever is wrong and then silent may be cut in the second stage of its close.
        assert!(report.stalled >= half.len(), "{front:?}: {report}");
        assert!(report.closed_by_peer > half.len(), "{front:?}: {report}");
        // The stall timeout is one second.
        assert!(
            took < Duration::from_millis(2_500),
            "{front:?}: {took:?}: {report}"
        );
    });
}

/// Interleaving: the first segment holds half of the preface; `terminate()`; then comes the rest, with a
/// request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_half_an_http2_preface_may_be_completed() {
    for cut in [2, 3, 4, 12, 23] {
        for front in FrontEnd::all() {
            let terminator = Terminator::new();
            let server = start(front, &terminator, app(App::default())).await;
            println!("{front:?}, {cut} bytes first"); // shown when it fails
            let mut client = RawH2::connect_silent(&server.target);
            client.send(&PREFACE[..cut]);
            until_async("half a preface", || terminator.stats().connections == 1).await;
            until_read(client.socket());
            let ended = terminator.terminate();
            terminator.reached(Phase::Draining).await;
            // Whoever closes it at once has done so.
            time_passes_async(Duration::from_millis(20)).await;
            client.send(&PREFACE[cut..]);
            client.send_frame(kind::SETTINGS, 0, 0, &[]);
            client.ack_settings();
            client.get("/quick", 1);
            let answer = loop {
                match client.try_read_frame() {
                    Ok(frame) if frame.kind == kind::PING && !frame.is_ack() => {
                        client.ack_ping(&frame);
                    }
                    Ok(frame) if frame.kind == kind::HEADERS => break Ok(()),
                    Ok(_) => {}
                    Err(end) => break Err(end),
                }
            };
            assert_eq!(
                answer,
                Ok(()),
                "{front:?}: no answer after {cut} bytes first"
            );
            drop(client);
            within(BOUND, "the end", ended).await;
        }
    }
}

/// Sends, and reads until the server ends it.
#[track_caller]
#[allow(clippy::unnecessary_wraps, reason = "as every misdeed")]
fn talk(target: &Target, bytes: impl AsRef<[u8]>) -> Option<RawClient> {
    let mut client = RawClient::connect(target);
    // It may be closed before it has taken everything.
    let _ = client.try_send(bytes);
    match client.read_to_end() {
        ReadEnd::Timeout => panic!("the server neither answers nor closes"),
        _ => Some(client),
    }
}

fn reset(client: RawClient) -> Option<RawClient> {
    let lingers = client.socket().set_linger(Some(Duration::ZERO));
    lingers.expect("sockets can be made to reset");
    drop(client);
    None
}

// ===== G19: absurd settings =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_absurd_durations_do_not_panic() {
    let panics = panics_of_the_crate();
    let mut broken = Vec::new();
    let all = |d: Duration, idle| {
        Terminator::builder()
            .grace_period(d)
            .lame_duck(d)
            .settle(d)
            .stall_timeout(d)
            .idle(idle)
    };
    let mut cases: Vec<(String, TerminatorBuilder)> = Vec::new();
    let new = Terminator::builder;
    for d in [Duration::MAX, Duration::ZERO] {
        let idles = [
            IdlePolicy::Immediate,
            IdlePolicy::LastRequest { wait: d },
            IdlePolicy::Spread { over: d },
        ];
        cases.push((format!("grace period {d:?}"), new().grace_period(d)));
        cases.push((format!("lame duck {d:?}"), new().lame_duck(d)));
        cases.push((format!("settle {d:?}"), new().settle(d)));
        cases.push((format!("stall timeout {d:?}"), new().stall_timeout(d)));
        for idle in idles {
            cases.push((format!("{idle:?}"), new().idle(idle)));
            cases.push((
                format!("{idle:?}, no grace period"),
                new().idle(idle).grace_period(None),
            ));
            cases.push((
                format!("settle {d:?}, {idle:?}"),
                new().idle(idle).settle(d),
            ));
            cases.push((format!("all {d:?}, {idle:?}"), all(d, idle)));
            let drains = all(d, idle).lame_duck(Duration::ZERO);
            cases.push((format!("all but lame duck {d:?}, {idle:?}"), drains));
        }
    }
    for (what, builder) in cases {
        let terminator = builder.build();
        let server = start(FrontEnd::Serve, &terminator, app(App::default())).await;
        let mut idle = server.connect();
        assert_eq!(idle.fetch("/quick").status, 200, "{what}");
        let half = server.connect();
        half.send("GET /quick HT");
        let busy = server.connect();
        busy.get("/pending");
        let h2 = h2_connect(&server.target).await;
        assert_eq!(h2.get("/quick").await.0, StatusCode::OK, "{what}");
        until_async("the request", || terminator.stats().requests == 1).await;
        let ended = terminator.terminate();
        let _ = terminator.time_left();
        // Some turns, in which it does what it is told to.
        let _ = tokio::time::timeout(Duration::from_millis(40), terminator.terminated()).await;
        let _ = (terminator.time_left(), terminator.stats());
        let began = Instant::now();
        let report = within(BOUND, &what, terminator.force()).await;
        assert!(
            began.elapsed() < Duration::from_millis(500),
            "{what}: {:?}",
            began.elapsed()
        );
        assert_eq!(within(BOUND, &what, ended).await, report, "{what}");
        let seen = std::mem::take(&mut *panics.lock().expect("no panic while noting one"));
        broken.extend(seen.into_iter().map(|panic| format!("{what}: {panic}")));
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Notes every panic that is not a test's own.
fn panics_of_the_crate() -> &'static Mutex<Vec<String>> {
    static PANICS: LazyLock<Mutex<Vec<String>>> = LazyLock::new(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let here = info
                .location()
                .is_some_and(|it| it.file().starts_with("tests/"));
            if !here {
                let mut panics = PANICS
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                panics.push(info.to_string());
            }
            before(info);
        }));
        Mutex::default()
    });
    &PANICS
}

// ===== G20: connections that are only watched =====

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http1,
    Http2,
    Auto,
    AutoUpgrades,
}

const ALL_HTTP1: [Kind; 3] = [Kind::Http1, Kind::Auto, Kind::AutoUpgrades];
const ALL_HTTP2: [Kind; 3] = [Kind::Http2, Kind::Auto, Kind::AutoUpgrades];

/// An accept loop as hyper-util's documentation shows it, with `terminator.watch` in it.
async fn watch_loop(kind: Kind, terminator: &Terminator, router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    let terminator = terminator.clone();
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = terminator.draining() => return,
            };
            let (stream, _) = accepted.expect("a connection");
            stream.set_nodelay(true).expect("a TCP option");
            watch_one(kind, &terminator, stream, router.clone());
        }
    });
    addr
}

fn watch_one(kind: Kind, terminator: &Terminator, stream: TcpStream, router: Router) {
    let (io, service) = (TokioIo::new(stream), TowerToHyperService::new(router));
    match kind {
        Kind::Http1 => {
            let connection = http1::Builder::new().serve_connection(io, service);
            tokio::spawn(terminator.watch(connection));
        }
        Kind::Http2 => {
            let builder = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(terminator.watch(builder.serve_connection(io, service)));
        }
        Kind::Auto => {
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(io, service).into_owned();
            tokio::spawn(terminator.watch(connection));
        }
        Kind::AutoUpgrades => {
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = builder
                .serve_connection_with_upgrades(io, service)
                .into_owned();
            tokio::spawn(terminator.watch(connection));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_watch_lets_http1_responses_finish() {
    for kind in ALL_HTTP1 {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let addr = watch_loop(kind, &terminator, gated(&gate)).await;
        let mut idle = RawClient::connect(addr);
        assert_eq!(idle.fetch("/quick").status, 200, "{kind:?}");
        let mut fresh = RawClient::connect(addr);
        let mut busy = RawClient::connect(addr);
        busy.get("/slow");
        gate.wait_entered(1);
        until_async("three connections", || terminator.stats().connections == 3).await;

        let ended = terminator.terminate();
        idle.expect_eof();
        fresh.expect_reset_or_eof();
        // Told all at once: the busy one knows by now, too.
        until_async("the end of the others", || {
            terminator.stats().connections == 1
        })
        .await;
        assert!(busy.is_still_open(), "{kind:?}");
        time_passes_async(Duration::from_millis(50)).await;
        gate.open();
        let response = busy.read_response();
        assert_eq!(
            (response.status, response.text()),
            (200, "slow"),
            "{kind:?}"
        );
        assert!(response.says_close(), "{kind:?}: {response:?}");
        busy.expect_eof();
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{kind:?}: {report}");
        assert_eq!(report.connections(), 3, "{kind:?}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_watch_sends_goaway_and_lets_streams_finish() {
    for kind in ALL_HTTP2 {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let addr = watch_loop(kind, &terminator, gated(&gate)).await;
        let mut idle = RawH2::connect(addr);
        idle.ack_settings();
        idle.get("/quick", 1);
        idle.read_until(kind::DATA);
        let mut busy: H2Client = h2_connect(addr).await;
        let slow = busy.start("/slow").await;
        gate.wait_entered(1);

        let ended = terminator.terminate();
        let (last, error) = idle.read_until(kind::GOAWAY).goaway();
        assert_eq!((last, error), (0x7fff_ffff, 0), "{kind:?}");
        let ping = idle.read_until(kind::PING);
        idle.ack_ping(&ping);
        let (last, error) = idle.read_until(kind::GOAWAY).goaway();
        assert_eq!((last, error), (1, 0), "{kind:?}");
        idle.expect_eof_within(BOUND);
        gate.open();
        let (head, body) = h2_finish(slow).await.expect("a response");
        assert_eq!(
            (head, &body[..]),
            (StatusCode::OK, &b"slow"[..]),
            "{kind:?}"
        );
        // Its own farewell may meet a socket that is closed already.
        let _ = busy.closed().await;
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{kind:?}: {report}");
        assert_eq!(report.connections(), 2, "{kind:?}: {report}");
    }
}

/// Written on a kept-alive connection, and then, at once, `terminate()`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_watch_answers_what_was_written_just_before() {
    for kind in ALL_HTTP1 {
        for round in 0..20 {
            let terminator = Terminator::new();
            let addr = watch_loop(kind, &terminator, app(App::default())).await;
            let mut clients: Vec<_> = (0..4).map(|_| RawClient::connect(addr)).collect();
            for client in &mut clients[1..] {
                assert_eq!(client.fetch("/quick").status, 200, "{kind:?}");
            }
            until_async("four connections", || terminator.stats().connections == 4).await;
            for client in &clients {
                client.get("/quick");
            }
            let ended = terminator.terminate();
            for (n, mut client) in clients.into_iter().enumerate() {
                let response = client.try_read_response();
                let response = response.unwrap_or_else(|end| {
                    panic!("{kind:?}, round {round}, client {n}: no answer: {end:?}")
                });
                assert_eq!(response.text(), "ok", "{kind:?}, round {round}, client {n}");
                client.expect_eof();
            }
            let report = within(BOUND, "the end", ended).await;
            assert!(report.is_clean(), "{kind:?}, round {round}: {report}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_watch_cuts_at_the_deadline() {
    for kind in [Kind::Http1, Kind::Http2, Kind::Auto, Kind::AutoUpgrades] {
        let grace = Duration::from_millis(100);
        let terminator = Terminator::builder().grace_period(grace).build();
        let addr = watch_loop(kind, &terminator, app(App::default())).await;
        let (mut http1, mut http2, mut pending) = (None, None, None);
        if kind == Kind::Http2 {
            let client = h2_connect(addr).await;
            pending = Some(client.start("/pending").await);
            http2 = Some(client);
        } else {
            let client = RawClient::connect(addr);
            client.get("/pending");
            http1 = Some(client);
        }
        until_async("the connection", || terminator.stats().connections == 1).await;
        let began = Instant::now();
        let report = within(BOUND, "the end", terminator.terminate()).await;
        let took = began.elapsed();
        assert!(
            took >= grace && took < grace + Duration::from_millis(400),
            "{kind:?}: {took:?}"
        );
        assert_eq!(
            (report.forced, report.connections()),
            (1, 1),
            "{kind:?}: {report}"
        );
        if let Some(mut http1) = http1 {
            http1.expect_reset_or_eof();
        }
        if let Some(mut http2) = http2 {
            let _ = http2.closed().await; // cut, so not a clean end
        }
        drop(pending);
    }
}

/// Cut, and so a straggler, although little is known of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_watched_connection_that_was_cut_is_listed() {
    let grace = Duration::from_millis(60);
    let terminator = Terminator::builder().grace_period(grace).build();
    let addr = watch_loop(Kind::Auto, &terminator, app(App::default())).await;
    let busy = RawClient::connect(addr);
    busy.get("/pending");
    until_async("one connection", || terminator.stats().connections == 1).await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!((report.forced, report.stragglers.len()), (1, 1), "{report}");
    assert!(report.stragglers[0].age >= grace, "{report}");
}

/// As in hyper-util's own examples, where the future that was given to `watch` is awaited in place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_a_watched_connection_that_ends_by_itself_gives_its_own_result() {
    let terminator = Terminator::new();
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    for (bytes, good) in [
        ("GET /quick HTTP/1.0\r\n\r\n", true),
        ("nonsense\r\n\r\n", false),
    ] {
        let client = RawClient::connect(addr);
        client.send(bytes);
        let (stream, _) = listener.accept().await.expect("a connection");
        let service = TowerToHyperService::new(app(App::default()));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let result = within(BOUND, "its end", terminator.watch(connection)).await;
        assert_eq!(result.is_ok(), good, "{bytes:?}: {result:?}");
        assert_eq!(terminator.stats().connections, 0);
    }
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!(report.connections(), 0, "{report}");
}

// ===== G20: letting go of `Serve` =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_dropping_serve_closes_the_listener_and_no_connection() {
    let _alone = no_starts();
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let server: Server = start(front, &terminator, gated(&gate)).await;
        let mut idle = server.connect();
        assert_eq!(idle.fetch("/quick").status, 200);
        let mut busy = server.connect();
        busy.get("/slow");
        gate.wait_entered(1);
        server.task.abort();
        until_async("the listener's end", || terminator.stats().listeners == 0).await;
        assert!(RawClient::try_connect(&server.target).is_err(), "{front:?}");
        assert_eq!(terminator.phase(), Phase::Serving, "{front:?}");
        let response = idle.fetch("/quick");
        assert!(
            response.status == 200 && !response.says_close(),
            "{front:?}: {response:?}"
        );
        assert_eq!(terminator.stats().connections, 2, "{front:?}");

        let ended = terminator.terminate();
        idle.expect_eof();
        gate.open();
        let response = busy.read_response();
        assert!(
            response.text() == "slow" && response.says_close(),
            "{front:?}: {response:?}"
        );
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(report.connections(), 2, "{front:?}: {report}");
    });
}

// ===== helpers =====

fn gated(gate: &Gate) -> Router {
    app(App {
        gate: gate.clone(),
        terminator: None,
    })
}

/// Connections, idle, busy, upgraded, requests.
fn numbers(stats: &Stats) -> [usize; 5] {
    [
        stats.connections,
        stats.idle,
        stats.busy,
        stats.upgraded,
        stats.requests,
    ]
}

/// As the server sees it; nothing over a Unix socket.
fn local_addr(client: &RawClient) -> Option<SocketAddr> {
    client.socket().local_addr().ok()?.as_socket()
}
