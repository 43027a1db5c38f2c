//! One connection is ended, and everything else goes on (G21).

#![cfg(all(unix, feature = "serve", feature = "rustls"))]

use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::pin::pin;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::routing::get;
use axum::{Extension, Router};
use futures_util::future::try_join_all;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Request, Response};
use http_terminator::{Connection, IdlePolicy, Phase, Report, Terminator, TerminatorBuilder};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use crate::support;
use crate::support::outside::ended;
use crate::support::wait::{time_passes, time_passes_async, until_async, until_stats_async};
use crate::support::{
    App, BOUND, FrontEnd, Gate, Known, RawClient, RawH2, ReadEnd, Target, app, blocking,
    bound_here, h2_connect, kind, open_fds_to, start_known, within,
};

const NEVER: Duration = Duration::from_secs(3600);

/// What ends at once ends long before any timeout.
const SOON: Duration = Duration::from_secs(5);

/// From `force` to the close.
const LATE: Duration = Duration::from_millis(250);

struct It {
    terminator: Terminator,
    target: Target,
    known: Known,
    gate: Gate,
}

fn patient() -> TerminatorBuilder {
    Terminator::builder()
        .grace_period(NEVER)
        .stall_timeout(NEVER)
}

impl It {
    async fn new(front: FrontEnd, builder: TerminatorBuilder) -> Self {
        let terminator = builder.build();
        let gate = Gate::new();
        let state = App {
            gate: gate.clone(),
            terminator: Some(terminator.clone()),
        };
        let router = app(state).merge(routes(&gate));
        let (target, known) = start_known(front, &terminator, router).await;
        Self {
            terminator,
            target,
            known,
            gate,
        }
    }

    fn port(&self) -> u16 {
        match self.target {
            Target::Tcp(addr) | Target::Tls(addr) => addr.port(),
            Target::Unix(_) => unreachable!("none here"),
        }
    }

    async fn client(&self) -> RawClient {
        let target = self.target.clone();
        blocking(move || {
            let mut client = RawClient::connect(target);
            assert_eq!(client.fetch("/quick").text(), "ok");
            client
        })
        .await
    }

    async fn connections(&self, n: usize) {
        until_stats_async(&self.terminator, "so many connections", |it| {
            it.connections == n
        })
        .await;
    }

    async fn idle(&self, n: usize) {
        until_stats_async(&self.terminator, "so many idle", |it| it.idle == n).await;
    }

    async fn end(&self) -> Report {
        within(BOUND, "the end", self.terminator.terminate()).await
    }
}

fn routes(gate: &Gate) -> Router {
    let (gate, held) = (gate.clone(), gate.clone());
    Router::new()
        .route(
            "/streams-until-told",
            get(async move |Extension(connection): Extension<Connection>| {
                let last = stream::once(async move {
                    held.enter().await;
                    "last\n"
                });
                let all = stream::iter(["first\n"]).chain(last);
                let all = all.take_until(connection.draining());
                Body::from_stream(all.map(Ok::<_, Infallible>))
            }),
        )
        .route(
            "/end",
            get(async |Extension(connection): Extension<Connection>| {
                connection.terminate();
                "bye"
            }),
        )
        .route(
            "/until-told",
            get(
                move |Extension(connection): Extension<Connection>| async move {
                    let told = connection.draining();
                    gate.enter().now_or_never();
                    told.await;
                    "told"
                },
            ),
        )
}

async fn fetch(mut client: RawClient, path: &'static str) -> (RawClient, String, bool) {
    blocking(move || {
        let response = client.fetch(path);
        let text = response.text().to_owned();
        let close = response.says_close();
        (client, text, close)
    })
    .await
}

async fn eof_within(client: RawClient, bound: Duration) -> RawClient {
    blocking(move || {
        let mut client = client;
        client.set_timeout(bound);
        client.expect_eof();
        client
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_an_idle_connection_is_closed_and_no_other() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient()).await;
        let first = it.client().await;
        let second = it.client().await;
        it.known.get(0).terminate();
        eof_within(first, SOON).await;
        it.connections(1).await;
        it.idle(1).await;
        assert_eq!(it.terminator.phase(), Phase::Serving);
        let (second, text, close) = fetch(second, "/quick").await;
        assert_eq!((text.as_str(), close), ("ok", false), "{front:?}");
        // One that has gone, over and over.
        for _ in 0..3 {
            it.known.get(0).terminate();
        }
        it.known.get(0).force();
        it.known.get(0).detach();
        it.known.get(0).draining().await;
        let report = it.end().await;
        assert_eq!(
            (report.idle + report.finished, report.connections()),
            (1, 1),
            "{front:?} {report}"
        );
        assert!(report.is_clean(), "{front:?} {report}");
        drop(second);
    }
}

/// As long as the policy says from when it is told, long after it has settled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_g21_an_idle_connection_may_bring_a_last_request() {
    support::each(FrontEnd::seeing(), async |front| {
        let builder = patient().idle(IdlePolicy::LastRequest { wait: BOUND });
        let it = It::new(front, builder).await;
        let client = it.client().await;
        it.idle(1).await;
        it.known.get(0).terminate();
        time_passes_async(Duration::from_millis(250)).await;
        let (client, text, close) = fetch(client, "/quick").await;
        assert_eq!((text.as_str(), close), ("ok", true), "{front:?}");
        eof_within(client, SOON).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_what_is_in_flight_is_answered_and_says_close() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient()).await;
        let client = it.client().await;
        client.get("/slow");
        it.gate.wait_entered_async(1).await;
        it.known.get(0).terminate();
        it.known.get(0).terminate();
        it.gate.open();
        let (client, text, close) = blocking(move || {
            let mut client = client;
            let response = client.read_response();
            let text = response.text().to_owned();
            let close = response.says_close();
            (client, text, close)
        })
        .await;
        assert_eq!((text.as_str(), close), ("slow", true), "{front:?}");
        eof_within(client, SOON).await;
        it.connections(0).await;
        assert_eq!(it.end().await.connections(), 0, "{front:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_from_inside_of_its_handler() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient()).await;
        let client = it.client().await;
        let (client, text, close) = fetch(client, "/end").await;
        assert_eq!((text.as_str(), close), ("bye", true), "{front:?}");
        eof_within(client, SOON).await;
        it.connections(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_a_body_under_way_is_whole_and_the_next_request_is_answered() {
    for front in FrontEnd::seeing() {
        let it = It::new(front, patient().settle(BOUND / 2)).await;
        let client = it.client().await;
        client.get("/stream");
        it.gate.wait_entered_async(1).await;
        let client = blocking(move || {
            let mut client = client;
            let head = client.read_response_headers();
            assert!(!head.says_close());
            client
        })
        .await;
        it.known.get(0).terminate();
        it.gate.open();
        let client = blocking(move || {
            let mut client = client;
            assert_eq!(client.read_body(), b"first\nlast\n");
            let response = client.fetch("/quick");
            assert!(response.says_close(), "{front:?}");
            client
        })
        .await;
        eof_within(client, SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_http2_goes_away_and_its_streams_finish() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient()).await;
        let mut client = within(BOUND, "h2", h2_connect(&it.target)).await;
        let mut other = within(BOUND, "h2", h2_connect(&it.target)).await;
        assert_eq!(client.get("/quick").await.1, b"ok");
        assert_eq!(other.get("/quick").await.1, b"ok");
        let slow = client.start("/slow").await;
        it.gate.wait_entered_async(1).await;
        it.known.get(0).terminate();
        // The one that is told refuses new streams sooner or later; the other one is left alone.
        it.gate.open();
        let slow = within(BOUND, "the answer", support::h2_finish(slow)).await;
        assert_eq!(slow.expect("answered").1, b"slow", "{front:?}");
        let end = within(SOON, "the end", client.closed()).await;
        end.unwrap_or_else(|error| panic!("{front:?}: {error}"));
        assert_eq!(other.get("/quick").await.1, b"ok");
        it.connections(1).await;
        let report = it.end().await;
        assert_eq!(
            (report.finished, report.connections()),
            (1, 1),
            "{front:?} {report}"
        );
        let _ = within(SOON, "the end", other.closed()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_a_silent_http2_peer_does_not_hold_it() {
    for front in FrontEnd::seeing() {
        let it = It::new(front, patient().stall_timeout(Duration::from_millis(200))).await;
        let target = it.target.clone();
        let client = blocking(move || {
            let mut client = RawH2::connect(&target);
            client.ack_settings();
            client.get("/quick", 1);
            client.read_until(kind::DATA);
            client
        })
        .await;
        it.known.get(0).terminate();
        blocking(move || {
            let mut client = client;
            let goaway = client.read_until(kind::GOAWAY);
            assert_eq!(goaway.goaway().1, 0);
            // The PING is never acknowledged.
            client.expect_eof_within(SOON);
        })
        .await;
        it.connections(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_a_half_head_may_be_completed_or_stalls() {
    for front in FrontEnd::seeing() {
        for completed in [true, false] {
            let stall = if completed {
                BOUND
            } else {
                Duration::from_millis(300)
            };
            let it = It::new(front, patient().stall_timeout(stall)).await;
            let client = it.client().await;
            it.idle(1).await;
            client.send("GET /quick HTTP/1.1\r\nho");
            it.idle(0).await;
            it.known.get(0).terminate();
            blocking(move || {
                let mut client = client;
                client.set_timeout(SOON);
                if completed {
                    client.send("st: localhost\r\n\r\n");
                    assert!(client.read_response().says_close(), "{front:?}");
                }
                client.expect_eof();
            })
            .await;
            it.connections(0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_who_waits_for_it_is_told() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient()).await;
        let client = it.client().await;
        let other = it.client().await;
        let connection = it.known.get(0);
        let mut told = pin!(connection.draining());
        let mut never = pin!(it.known.get(1).draining());
        assert!(told.as_mut().now_or_never().is_none());
        assert!(never.as_mut().now_or_never().is_none());
        client.get("/until-told");
        it.gate.wait_entered_async(1).await;
        let others = try_join_all((0..50).map(|_| tokio::spawn(connection.draining())));
        connection.terminate();
        let all = within(SOON, "all of them", others).await;
        assert_eq!(all.expect("no panic").len(), 50, "{front:?}");
        within(SOON, "told", told).await;
        // Who comes late.
        within(SOON, "a level", connection.draining()).await;
        blocking(move || {
            let mut client = client;
            let response = client.read_response();
            assert_eq!((response.text(), response.says_close()), ("told", true));
            client.expect_eof();
        })
        .await;
        assert!(never.as_mut().now_or_never().is_none(), "{front:?}");
        // By the termination of all.
        let ended = it.terminator.terminate();
        within(SOON, "told", never).await;
        within(BOUND, "the end", ended).await;
        drop(other);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_who_waits_for_one_that_leaves_is_woken() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient()).await;
        let client = it.client().await;
        let gone = tokio::spawn(it.known.get(0).draining());
        drop(client);
        within(BOUND, "gone", gone).await.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_an_upgraded_connection_is_told_and_not_cut() {
    for front in FrontEnd::seeing() {
        let it = It::new(front, patient()).await;
        let client = it.client().await;
        client.get_upgrade("/upgrade");
        let client = blocking(move || {
            let mut client = client;
            assert_eq!(client.read_response_headers().status, 101);
            client
        })
        .await;
        let connection = it.known.get(0);
        let told = connection.draining();
        connection.terminate();
        within(SOON, "told", told).await;
        blocking(move || {
            let mut client = client;
            client.send("still here");
            assert_eq!(client.read_exact(10), b"still here");
            client.shutdown_write();
            client.expect_eof();
        })
        .await;
        it.connections(0).await;
    }
}

// ===== force =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_force_answers_503_and_closes() {
    for front in FrontEnd::seeing() {
        let it = It::new(front, patient()).await;
        let (client, other) = (it.client().await, it.client().await);
        client.get("/slow");
        it.gate.wait_entered_async(1).await;
        let begin = Instant::now();
        it.known.get(0).force();
        it.known.get(0).force();
        blocking(move || {
            let mut client = client;
            let response = client.try_read_response();
            let response = response.unwrap_or_else(|end| panic!("{front:?}: {end:?}"));
            assert_eq!(
                (response.status, response.says_close()),
                (503, true),
                "{front:?}"
            );
            // A goodbye over TLS is not waited for.
            assert!(ended(client.read_to_end()), "{front:?}");
            support::outside::measured(begin.elapsed(), LATE, "the end");
        })
        .await;
        it.connections(1).await;
        let report = it.end().await;
        assert_eq!(
            (report.forced, report.answered_at_deadline),
            (0, 0),
            "{front:?} {report}"
        );
        assert!(report.is_clean(), "{front:?} {report}");
        drop(other);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_force_closes_whatever_it_does() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient()).await;
        for path in [
            "/quick",
            "/stream",
            "/bigstream",
            "/upgrade-held",
            "/block",
            "/pending",
        ] {
            let target = it.target.clone();
            let before = it.gate.entered();
            let known = it.known.len();
            let client = blocking(move || {
                let mut client = RawClient::connect(target);
                if path == "/upgrade-held" {
                    client.get_upgrade(path);
                } else {
                    client.get(path);
                }
                if !matches!(path, "/block" | "/pending") {
                    client.read_response_headers();
                }
                client
            })
            .await;
            if path == "/block" || path == "/stream" {
                it.gate.wait_entered_async(before + 1).await;
            }
            until_async("known", || it.known.len() != known).await;
            let begin = Instant::now();
            it.known.get(known).force();
            blocking(move || {
                let mut client = client;
                assert!(ended(client.read_to_end()), "{front:?} {path}");
                support::outside::measured(begin.elapsed(), LATE, &format!("{front:?} {path}"));
            })
            .await;
            it.gate.open();
            it.gate.close();
            it.connections(0).await;
            assert_eq!(open_fds_to(it.port()), 0, "{front:?} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_force_in_the_drain_counts() {
    for front in FrontEnd::seeing() {
        let it = It::new(front, patient()).await;
        let client = it.client().await;
        client.get("/slow");
        it.gate.wait_entered_async(1).await;
        let ended = it.terminator.terminate();
        it.known.get(0).force();
        let report = within(BOUND, "the end", ended).await;
        assert_eq!(
            (report.forced, report.connections()),
            (1, 1),
            "{front:?} {report}"
        );
        assert_eq!(report.answered_at_deadline, 1, "{front:?} {report}");
        assert_eq!(report.forcing, Duration::ZERO, "{front:?} {report}");
        // Nor was it left by its client.
        assert_eq!(report.abandoned, 0, "{front:?} {report}");
        drop(client);
    }
}

// ===== what a handle keeps =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_a_handle_keeps_nothing_open() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient()).await;
        let client = it.client().await;
        let handle = it.known.get(0);
        let told = handle.draining();
        handle.terminate();
        eof_within(client, SOON).await;
        it.connections(0).await;
        assert_eq!(open_fds_to(it.port()), 0);
        let port = it.port();
        assert_eq!(it.end().await.connections(), 0);
        assert_eq!(open_fds_to(port), 0);
        within(SOON, "told", told).await;
        drop(handle);
    }
}

// ===== age and number =====

/// What still comes in is discarded, and was read on behind that: a message was missing in the middle, which nobody could see.
/// Interleaving: what lies in the kernel is discarded; more comes, before the close; the owner reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_g21_what_is_read_of_one_that_is_cut_has_no_hole() {
    for alone in [true, false] {
        let terminator = patient().build();
        let (listener, addr) = bound_here();
        let mut listener = terminator.listen(listener);
        let writes = thread::spawn(move || {
            let mut client = std::net::TcpStream::connect(addr).expect("it listens");
            let mut all = (0_u32..).map(u32::to_be_bytes);
            while client
                .write_all(&all.by_ref().take(64).flatten().collect::<Vec<_>>())
                .is_ok()
            {}
        });
        let (mut io, _) = listener.accept().await.expect("it connects");
        let connection = io.connection();
        let (flows, under_way) = oneshot::channel();
        let mut flows = Some(flows);
        let reads = tokio::spawn(async move {
            let (mut all, mut part) = (Vec::new(), [0; 512]);
            loop {
                match io.read(&mut part).await {
                    Ok(0) => panic!("an end"),
                    Ok(n) => all.extend_from_slice(&part[..n]),
                    Err(error) => break (all, error, io.into_inner().is_none()),
                }
                if let Some(flows) = flows.take_if(|_| all.len() > 64 << 10) {
                    flows.send(()).expect("waited for");
                }
            }
        });
        within(SOON, "bytes", under_way).await.expect("no panic");
        if alone {
            connection.force();
        } else {
            drop(terminator.force());
        }
        let (all, error, is_gone) = within(SOON, "the end of the reading", reads)
            .await
            .expect("no panic");
        let numbers = all
            .chunks_exact(4)
            .map(|it| u32::from_be_bytes(it.try_into().expect("four")));
        let hole = numbers.zip(0..).find(|(read, sent)| read != sent);
        assert_eq!(hole, None, "{alone}: of {} bytes", all.len());
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert!(is_gone, "{alone}: half-closed, with input missing");
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert!(alone || report.forced == 1, "{report}");
        writes.join().expect("no panic");
    }
}

/// Its IO is cut first, and it is polled behind that: it is no error of its client's.
#[tokio::test]
async fn g21_a_handshake_that_is_cut_is_none() {
    let terminator = patient().build();
    let (listener, addr) = bound_here();
    let mut listener = terminator.listen(listener);
    let client = std::net::TcpStream::connect(addr).expect("it listens");
    let (mut io, _) = listener.accept().await.expect("it connects");
    let connection = io.connection();
    let handshake = connection.handshake(async move { io.read_u8().await });
    let mut handshake = pin!(handshake);
    assert!(handshake.as_mut().now_or_never().is_none());
    connection.force();
    let shaken = within(SOON, "its end", handshake).await;
    assert!(shaken.is_none(), "{shaken:?}");
    drop(client);
}

/// Whoever has it lets go as soon as it is cut, and what its client still sends would draw a reset, which destroys what was
/// written before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_what_was_written_to_one_that_is_cut_arrives() {
    for _ in 0..50 {
        if let Some(got) = reads_what_was_written_before_the_cut().await {
            assert!(matches!(got, Ok(WRITTEN)), "{got:?}");
            return;
        }
    }
    panic!("this client is always late");
}

const WRITTEN: usize = 200 << 10;

/// How much that is. None if the socket was closed before its client had said all.
async fn reads_what_was_written_before_the_cut() -> Option<io::Result<usize>> {
    let terminator = patient().build();
    let (listener, addr) = bound_here();
    let set = SockRef::from(&listener).set_send_buffer_size(2 * WRITTEN);
    set.expect("an option");
    let mut listener = terminator.listen(listener);
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    client.set_recv_buffer_size(4096).expect("an option");
    client.connect(&addr.into()).expect("it listens");
    let (mut io, _) = listener.accept().await.expect("it connects");
    let mut client = std::net::TcpStream::from(client);
    io.write_all(&vec![b'a'; WRITTEN])
        .await
        .expect("room for it");
    let owner = tokio::spawn(async move { io.read_u8().await.map(drop) });
    let begin = Instant::now();
    let ended = terminator.force();
    let owner = within(SOON, "cut", owner).await.expect("no panic");
    owner.expect_err("cut");
    let got = blocking(move || {
        let writes = (0..3).try_for_each(|_| {
            time_passes(Duration::from_millis(10));
            client.write_all(b"more")
        });
        if begin.elapsed() > Duration::from_millis(70) {
            return None;
        }
        let read = |()| client.read_to_end(&mut Vec::new());
        Some(writes.and_then(read))
    })
    .await;
    drop(ended);
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_the_last_of_so_many_requests_says_close() {
    for front in FrontEnd::at_hand() {
        for (limit, last) in [(0, 1), (1, 1), (3, 3)] {
            let it = It::new(front, patient().max_requests_per_connection(limit)).await;
            let target = it.target.clone();
            blocking(move || {
                let mut client = RawClient::connect(target);
                for n in 1..=last {
                    let response = client.fetch("/quick");
                    assert_eq!(response.says_close(), n == last, "{front:?} {n} of {limit}");
                }
                client.expect_eof();
            })
            .await;
            it.connections(0).await;
        }
    }
}

/// It was told as it was answered, and a stream that ends when its connection is told had no time for anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_the_stream_that_is_the_last_of_so_many_requests_goes_on() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient().max_requests_per_connection(1)).await;
        let (target, gate) = (it.target.clone(), it.gate.clone());
        blocking(move || {
            let mut client = RawClient::connect(target);
            client.get("/streams-until-told");
            gate.wait_entered(1);
            gate.open();
            let response = client.read_response();
            assert_eq!(response.text(), "first\nlast\n", "{front:?}");
            assert!(response.says_close(), "{front:?}");
            client.expect_eof();
        })
        .await;
        within(SOON, "told", it.known.get(0).draining()).await;
        it.connections(0).await;
    }
}

/// hyper waits for the body of a request that somebody keeps, with an answer that said close behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_the_last_request_ends_a_connection_that_was_built_by_hand() {
    let terminator = Terminator::builder()
        .max_requests_per_connection(1)
        .grace_period(NEVER)
        .build();
    let (listener, addr) = bound_here();
    let mut listener = terminator.listen(listener);
    let client = blocking(move || {
        let client = RawClient::connect(addr);
        client.send("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n0123456789");
        client
    })
    .await;
    let (io, _) = listener.accept().await.expect("it connects");
    let connection = io.connection();
    let (keep, kept) = mpsc::channel();
    let service = service_fn(move |request: Request<Incoming>| {
        keep.send(request.into_body()).expect("kept");
        async { Ok::<_, Infallible>(Response::new("ok".to_owned())) }
    });
    let served =
        http1::Builder::new().serve_connection(TokioIo::new(io), connection.service(service));
    let served = tokio::spawn(connection.watch(served));
    let body = blocking(move || kept.recv_timeout(BOUND)).await;
    let client = blocking(move || {
        let mut client = client;
        assert!(client.read_response().says_close());
        client
    })
    .await;
    within(SOON, "its end", served)
        .await
        .expect("no panic")
        .expect("no error");
    drop((client, body));
}

/// An upgrade is told by nobody's limit, so its answer has to say what has become of it.
/// Its body lies half unread in a handler's hands, its answer is out, and the task that serves it is woken by something else, more
/// often than `stall_timeout`: each poll was taken for one by who reads the body, and the connection never given up.
#[tokio::test]
async fn g5_g21_one_that_is_polled_without_end_is_given_up() {
    const STALL: Duration = Duration::from_millis(100);

    let cases = [true, false].map(async |alone| {
        let terminator = patient().stall_timeout(STALL).build();
        let (client, io) = tokio::io::duplex(4096);
        let io = terminator.track(io);
        let connection = io.connection();
        let known = connection.clone();
        tokio::spawn(async move {
            let (keep, _kept) = mpsc::channel();
            let service = service_fn(move |request: Request<Incoming>| {
                keep.send(request.into_body()).expect("kept");
                async { Ok::<_, Infallible>(Response::new("ok".to_owned())) }
            });
            let builder = http_terminator::HttpBuilder::default();
            let mut served = pin!(connection.serve(&builder, io, service));
            let mut tick = tokio::time::interval(STALL / 5);
            loop {
                tokio::select! {
                    _ = &mut served => break,
                    _ = tick.tick() => {}
                }
            }
        });
        let mut client = client;
        let request = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nabc";
        client.write_all(request).await.expect("there is room");
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        let ended = if alone {
            known.terminate();
            None
        } else {
            Some(terminator.terminate())
        };
        let mut rest = Vec::new();
        within(5 * BOUND, "the end of it", client.read_to_end(&mut rest))
            .await
            .expect("no error");
        if let Some(ended) = ended {
            let report = within(BOUND, "the end", ended).await;
            assert_eq!((report.stalled, report.connections()), (1, 1), "{report}");
        }
    });
    futures_util::future::join_all(cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_the_last_request_says_close_also_where_an_upgrade_was_declined() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient().max_requests_per_connection(2)).await;
        let target = it.target.clone();
        blocking(move || {
            let mut client = RawClient::connect(target);
            for n in 1..=2 {
                client.send(
                    "GET /426 HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
                );
                let response = client.read_response();
                assert_eq!(response.says_close(), n == 2, "{front:?} {n}: {response:?}");
            }
            client.expect_eof();
        })
        .await;
        it.connections(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_pipelined_requests_count() {
    for front in FrontEnd::seeing() {
        let it = It::new(front, patient().max_requests_per_connection(3)).await;
        let target = it.target.clone();
        blocking(move || {
            let mut client = RawClient::connect(target);
            client.send("GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(9));
            for n in 1..=3 {
                let response = client.read_response();
                assert_eq!(response.says_close(), n == 3, "{front:?} {n}");
            }
            assert!(matches!(
                client.read_to_end(),
                ReadEnd::Eof | ReadEnd::Reset
            ));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_http2_goes_away_after_so_many_requests() {
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient().max_requests_per_connection(3)).await;
        let mut client = within(BOUND, "h2", h2_connect(&it.target)).await;
        for _ in 0..3 {
            assert_eq!(client.get("/quick").await.1, b"ok");
        }
        let end = within(SOON, "the end", client.closed()).await;
        end.unwrap_or_else(|error| panic!("{front:?}: {error}"));
    }
}

/// It was told as it came, and closed unserved when its client took its time for the first request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_one_that_is_old_is_served_once() {
    for front in FrontEnd::seeing() {
        for age in [Duration::ZERO, Duration::from_millis(10)] {
            let it = It::new(front, patient().max_connection_age(age)).await;
            let target = it.target.clone();
            let connect = || {
                let target = target.clone();
                blocking(move || RawClient::connect(target))
            };
            let client = connect().await;
            let mut h2 = within(BOUND, "h2", h2_connect(&it.target)).await;
            time_passes_async(Duration::from_millis(200)).await;
            let (client, text, close) = fetch(client, "/quick").await;
            assert_eq!((&text[..], close), ("ok", true), "{front:?} {age:?}");
            assert_eq!(h2.get("/quick").await.1, b"ok", "{front:?} {age:?}");
            eof_within(client, SOON).await;
            within(SOON, "its end", h2.closed())
                .await
                .expect("no error");
            // One that asks at once is told by its first answer.
            let (_, _, close) = fetch(connect().await, "/quick").await;
            assert!(close || !age.is_zero(), "{front:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_an_old_connection_ends() {
    let age = Duration::from_millis(300);
    for front in FrontEnd::at_hand() {
        let it = It::new(front, patient().max_connection_age(age)).await;
        let begin = Instant::now();
        let client = it.client().await;
        let mut h2 = within(BOUND, "h2", h2_connect(&it.target)).await;
        assert_eq!(h2.get("/quick").await.1, b"ok");
        let busy = it.client().await;
        busy.get("/slow");
        it.gate.wait_entered_async(1).await;
        let client = eof_within(client, BOUND).await;
        let took = begin.elapsed();
        assert!(took >= age.mul_f64(0.89), "{front:?}: {took:?}");
        support::outside::measured(took, age.mul_f64(1.1) + age + LATE, "old and idle");
        let _ = within(BOUND, "the end", h2.closed()).await;
        within(BOUND, "told", it.known.get(2).draining()).await;
        it.gate.open();
        blocking(move || {
            let mut busy = busy;
            assert!(busy.read_response().says_close(), "{front:?}");
            busy.expect_eof();
        })
        .await;
        it.connections(0).await;
        drop(client);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_absurd_limits_are_defined() {
    for front in FrontEnd::at_hand() {
        // Told as it comes, and served: within `settle`.
        let builder = patient().max_connection_age(Duration::ZERO);
        let it = It::new(front, builder.settle(Duration::from_millis(300))).await;
        let client = it.client().await;
        eof_within(client, BOUND).await;
        let it = It::new(
            front,
            patient()
                .max_connection_age(Duration::MAX)
                .max_requests_per_connection(u64::MAX),
        )
        .await;
        let client = it.client().await;
        let (client, _, close) = fetch(client, "/quick").await;
        assert!(!close);
        assert!(it.end().await.is_clean());
        drop(client);
    }
}

/// It holds the drain of all no longer than any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_an_old_connection_in_a_drain_is_closed_as_all_are() {
    for front in FrontEnd::seeing() {
        let old = It::new(
            front,
            patient().max_connection_age(Duration::from_millis(700)),
        )
        .await;
        let client = old.client().await;
        within(BOUND, "old", async {
            // It has just had a request, so that it is not closed as idle, when it is told.
            let mut client = client;
            let told = old.known.get(0).draining();
            let mut told = pin!(told);
            while told.as_mut().now_or_never().is_none() {
                let (next, _, close) = fetch(client, "/quick").await;
                client = next;
                if close {
                    return;
                }
            }
            let begin = Instant::now();
            old.end().await;
            support::outside::measured(begin.elapsed(), Duration::from_millis(300), "the drain");
        })
        .await;
    }
}

/// Neither a terminator that has ended nor one that is forgotten has a thread.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn g19_nothing_is_left_of_those_that_never_grew_old() {
    let name = concat!(
        module_path!(),
        "::g19_nothing_is_left_of_those_that_never_grew_old"
    );
    // Others in this process have threads of that name.
    if support::outside::alone(name, &[], BOUND * 3) {
        return;
    }
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
        };
        let names = tasks.filter_map(name);
        names.filter(|it| it.starts_with("http-term")).count()
    };
    let mut ended = Vec::new();
    for n in 0..20 {
        let terminator = patient().max_connection_age(NEVER).build();
        let (_, io) = tokio::io::duplex(64);
        drop(terminator.track(io));
        support::wait::until("a thread", || threads() > 0);
        if n % 2 == 0 {
            let report = terminator.terminate();
            support::outside::block_on(BOUND, "the end", report);
            ended.push(terminator);
        }
    }
    support::wait::until("no thread", || threads() == 0);
}
