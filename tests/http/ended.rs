//! Who ended a connection, as the report tells it: an end agreed before the drain is *finished*, and
//! a request whose client left is counted (C5 and C7 of G18).

#![cfg(all(unix, feature = "serve"))]

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::routing::{get, post};
use axum::{Router, response::IntoResponse};
use futures_util::stream::{self, StreamExt};
use http::header;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use http_terminator::{Phase, Report, Terminator, TerminatorBuilder, TrackedIo};

use crate::support;
use crate::support::outside::{Host, block_on};
use crate::support::wait::{until_async, until_stats, until_stats_async};
use crate::support::{
    App, BOUND, FrontEnd, Gate, RawClient, RawH2, ReadEnd, Target, app, blocking, bound, each,
    kind, start, within,
};

fn patient() -> TerminatorBuilder {
    Terminator::builder().grace_period(BOUND * 3)
}

/// [`app`], with `/parts`, whose last part waits at the gate, and which says close at `/last`.
fn gated(gate: &Gate) -> Router {
    let parts = |gate: &Gate, last: fn() -> io::Result<&'static str>| {
        let gate = gate.clone();
        let last = stream::once(async move {
            // The first part is out before the gate is reached.
            tokio::task::yield_now().await;
            gate.enter().await;
            last()
        });
        Body::from_stream(stream::iter([Ok("first\n")]).chain(last))
    };
    let [keeps, last, upload, fails, panics] = [(); 5].map(|()| gate.clone());
    app(App {
        gate: gate.clone(),
        terminator: None,
    })
    .route("/parts", get(async move || parts(&keeps, || Ok("last\n"))))
    .route(
        "/last",
        get(async move || {
            (
                [(header::CONNECTION, "close")],
                parts(&last, || Ok("last\n")),
            )
                .into_response()
        }),
    )
    .route(
        "/fails",
        get(async move || parts(&fails, || Err(io::Error::other("on purpose")))),
    )
    .route(
        "/panics",
        get(async move || parts(&panics, || panic!("on purpose"))),
    )
    // Answers when its body is there, or says that it is not.
    .route(
        "/upload",
        post(async move |request: Request| {
            upload.enter().await;
            let read = axum::body::to_bytes(request.into_body(), usize::MAX).await;
            read.map(|read| format!("{} bytes", read.len()))
                .map_err(|error| error.to_string())
        }),
    )
}

async fn ended(terminator: &Terminator) -> Report {
    within(BOUND, "the end", terminator.terminate()).await
}

/// Asks for something of which the first part is out when this returns.
async fn begun(mut client: RawClient, request: &str, gate: &Gate) -> RawClient {
    client.send(format!("{request}\r\nhost: localhost\r\n\r\n"));
    let client = blocking(move || {
        assert_eq!(client.read_response_headers().status, 200);
        client.read_chunk().expect("a first part");
        client
    });
    let client = client.await;
    gate.wait_entered_async(1).await;
    client
}

const AGREED: [&str; 4] = [
    "GET /parts HTTP/1.1\r\nconnection: close",
    "GET /last HTTP/1.1",
    "GET /parts HTTP/1.0",
    "GET /last HTTP/1.0\r\nconnection: keep-alive",
];

// ===== C5: finished, or closed by the peer =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_an_end_that_was_agreed_before_the_drain_is_finished() {
    each(FrontEnd::all_and_tls(), async |front| {
        for request in AGREED {
            let gate = Gate::new();
            let terminator = patient().build();
            let server = start(front, &terminator, gated(&gate)).await;
            let mut client = begun(server.connect(), request, &gate).await;
            let termination = terminator.terminate();
            within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
            gate.open();
            blocking(move || {
                client.read_body();
                assert_eq!(client.read_to_end(), ReadEnd::Eof);
            })
            .await;
            let report = within(BOUND, "the end", termination).await;
            let what = format!("{front:?} {request}: {report}");
            assert_eq!((report.finished, report.connections()), (1, 1), "{what}");
        }
    });
}

/// Its response is out and its upload is not in: the drain finds it half-closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_staged_close_that_began_before_the_drain_is_finished() {
    each(FrontEnd::all_and_tls(), async |front| {
        let terminator = patient().stall_timeout(BOUND).build();
        let server = start(front, &terminator, gated(&Gate::new())).await;
        let mut client = server.connect();
        client.send("POST /early HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf");
        let client = blocking(move || {
            assert_eq!(client.read_response().status, 413);
            assert_eq!(client.read_to_end(), ReadEnd::Eof);
            client
        })
        .await;
        let termination = terminator.terminate();
        within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
        drop(client);
        let report = within(BOUND, "the end", termination).await;
        assert_eq!(
            (report.finished, report.connections()),
            (1, 1),
            "{front:?}: {report}"
        );
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_an_agreed_end_of_a_watched_connection_is_finished() {
    for request in AGREED {
        let gate = Gate::new();
        // It is told when this is over, which would be an end of its own.
        let terminator = patient().settle(BOUND * 2).build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let mut listener = terminator.listen(listener);
        let app = gated(&gate);
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            while let Some((io, _)) = listener.accept().await {
                let connection = io.connection();
                let service = connection.service(TowerToHyperService::new(app.clone()));
                let served = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
                tokio::spawn(connection.watch(served.into_owned()));
            }
        });
        let mut client = begun(RawClient::connect(addr), request, &gate).await;
        let termination = terminator.terminate();
        within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
        gate.open();
        // It stays until the end, lest it should be the first to close.
        blocking(move || {
            client.read_body();
            assert_eq!(client.read_to_end(), ReadEnd::Eof);
        })
        .await;
        let report = within(BOUND, "the end", termination).await;
        assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
    }
}

/// What the other side ends, also when it had asked for an end, or what fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_what_the_peer_or_an_error_ends_is_closed_by_peer() {
    each(FrontEnd::all_and_tls(), async |front| {
        for what in ["idle", "garbage", AGREED[0], AGREED[2], "/fails", "/panics"] {
            let gate = Gate::new();
            // Nothing is closed as idle before.
            let terminator = patient().settle(BOUND * 2).build();
            let server = start(front, &terminator, gated(&gate)).await;
            let mut client = server.connect();
            if what.starts_with("GET") {
                client = begun(client, what, &gate).await;
            } else if what.starts_with('/') {
                let request = format!("GET {what} HTTP/1.1\r\nconnection: close");
                client = begun(client, &request, &gate).await;
            } else {
                client = blocking(move || {
                    assert_eq!(client.fetch("/quick").text(), "ok");
                    client
                })
                .await;
            }
            let termination = terminator.terminate();
            within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
            if what == "garbage" {
                client.send("GARBAGE\r\n\r\n");
                blocking(move || assert_eq!(client.read_response().status, 400)).await;
            } else if what.starts_with('/') {
                gate.open();
                let end = blocking(move || client.read_to_end()).await;
                assert_ne!(end, ReadEnd::Timeout, "{front:?} {what}");
            } else {
                drop(client);
            }
            let report = within(BOUND, "the end", termination).await;
            assert_eq!(
                (report.closed_by_peer, report.connections()),
                (1, 1),
                "{front:?} {what}: {report}"
            );
        }
    });
}

// ===== C7: requests whose clients left =====

/// Waits until a handler that was held is no more.
async fn dropped(gate: &Gate) {
    until_async("the handler's end", || gate.inside() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_requests_whose_clients_left_before_an_answer_are_counted() {
    each(FrontEnd::all_and_tls(), async |front| {
        let gate = Gate::new();
        let terminator = patient().build();
        let server = start(front, &terminator, gated(&gate)).await;
        let before = server.connect();
        before.get("/slow");
        gate.wait_entered_async(1).await;
        drop(before);
        dropped(&gate).await;
        let (half, whole) = (server.connect(), server.connect());
        let uploading = server.connect();
        uploading.send("POST /upload HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf");
        half.get("/slow");
        whole.get("/slow");
        gate.wait_entered_async(4).await;
        let termination = terminator.terminate();
        within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
        half.shutdown_write();
        drop(whole);
        // This one learns of it as its body's end, and answers.
        uploading.shutdown_write();
        until_async("their end", || gate.inside() <= 1).await;
        gate.open();
        let report = within(BOUND, "the end", termination).await;
        assert_eq!(report.abandoned, 2, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
        let told = report.to_string();
        assert!(told.contains(", 2 requests whose clients left"), "{told}");
    });
}

/// From the call of `terminate` on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_requests_whose_clients_left_in_a_lame_duck_are_counted() {
    each(FrontEnd::all_and_tls(), async |front| {
        let gate = Gate::new();
        let terminator = patient().lame_duck(BOUND * 3).build();
        let server = start(front, &terminator, gated(&gate)).await;
        let client = server.connect();
        client.get("/slow");
        gate.wait_entered_async(1).await;
        drop(terminator.terminate());
        drop(client);
        dropped(&gate).await;
        assert_eq!(terminator.phase(), Phase::LameDuck, "{front:?}");
        let report = within(BOUND, "the end", terminator.force()).await;
        assert_eq!(report.abandoned, 1, "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_reset_streams_without_an_answer_are_counted() {
    each(FrontEnd::all_and_tls(), async |front| {
        let gate = Gate::new();
        let terminator = patient().build();
        let server = start(front, &terminator, gated(&gate)).await;
        let client = RawH2::connect(&server.target);
        let gone = RawH2::connect(&server.target);
        client.get("/slow", 1);
        client.get("/parts", 3);
        client.get("/slow", 5);
        gone.get("/slow", 1);
        gone.get("/slow", 3);
        gate.wait_entered_async(5).await;
        let termination = terminator.terminate();
        within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
        for stream in [1, 3] {
            client.send_frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes());
        }
        drop(gone);
        until_async("their end", || gate.inside() <= 1).await;
        gate.open();
        drop(client);
        let report = within(BOUND, "the end", termination).await;
        // Not the one whose head was out; the last one may have been answered, or not.
        assert!(
            (3..=4).contains(&report.abandoned),
            "{front:?}: {} in {report}",
            report.abandoned
        );
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// Panics, errors, the end by force, an owner that drops the connection, and clients that leave behind a
/// head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_requests_that_end_otherwise_without_an_answer_are_not_counted() {
    each(FrontEnd::all_and_tls(), async |front| {
        for h2 in [false, true] {
            let gate = Gate::new();
            let terminator = patient().build();
            let held = gate.clone();
            let app = gated(&gate).route(
                "/panic-later",
                get(async move || -> &'static str {
                    held.enter().await;
                    panic!("on purpose")
                }),
            );
            let server = start(front, &terminator, app).await;
            let ask = |path: &str| -> Box<dyn Send> {
                if h2 {
                    let client = RawH2::connect(&server.target);
                    client.get(path, 1);
                    Box::new(client)
                } else {
                    let client = server.connect();
                    client.get(path);
                    Box::new(client)
                }
            };
            let cut = ask("/pending");
            let parts = ask("/parts");
            gate.wait_entered_async(1).await;
            let panics = ask("/panic-later");
            gate.wait_entered_async(2).await;
            until_stats_async(&terminator, "all three requests", |it| it.requests >= 3).await;
            let termination = terminator.terminate();
            within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
            drop(parts);
            gate.open();
            // On HTTP/2 the one whose handler panicked has a client that acknowledges nothing.
            let forced = 1 + usize::from(h2);
            until_stats_async(&terminator, "who is left", |it| {
                (it.requests, it.connections) == (1, forced)
            })
            .await;
            drop(terminator.force());
            let report = within(BOUND, "the end", termination).await;
            drop((cut, panics));
            assert_eq!(report.abandoned, 0, "{front:?} h2 {h2}: {report}");
            assert_eq!(report.forced, forced, "{front:?} h2 {h2}: {report}");
            assert!(!report.to_string().contains("clients left"), "{report}");
        }
    });
}

#[tokio::test]
async fn g18_a_connection_that_its_owner_drops_was_not_left_by_its_client() {
    let gate = Gate::new();
    let terminator = patient().build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let mut listener = terminator.listen(listener);
    let client = RawClient::connect(addr);
    client.get("/slow");
    let (io, _) = listener.accept().await.expect("serving");
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(gated(&gate));
    let serving = tokio::spawn(io.connection().serve(&builder, io, service));
    gate.wait_entered_async(1).await;
    let termination = terminator.terminate();
    drop(listener);
    within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
    serving.abort();
    let report = within(BOUND, "the end", termination).await;
    assert_eq!(
        (report.abandoned, report.closed_by_peer),
        (0, 1),
        "{report}"
    );
}

/// At the deadline, or just behind it, by whoever was quicker: its end was none of its client's, nor one that was agreed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_connection_that_its_owner_drops_at_the_deadline_was_cut() {
    // More than the kernel takes from it for a client that does not read.
    let big = get(async || Body::from(vec![0; 64 << 20]));
    for (path, by_hand) in [("/slow", true), ("/huge", false)] {
        let terminator = Terminator::builder().grace_period(Duration::from_millis(200));
        let terminator = terminator.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let mut listener = terminator.listen(listener);
        let client = RawClient::connect(addr);
        client.get(path);
        let (io, _) = listener.accept().await.expect("serving");
        drop(listener);
        let builder = auto::Builder::new(TokioExecutor::new());
        let app = gated(&Gate::new()).route("/huge", big.clone());
        let service = TowerToHyperService::new(app);
        let connection = io.connection();
        let serves: Pin<Box<dyn Future<Output = ()> + Send>> = if by_hand {
            let served = builder.serve_connection(TokioIo::new(io), connection.service(service));
            let watched = connection.watch(served.into_owned());
            Box::pin(async move { drop(watched.await) })
        } else {
            let served = connection.serve(&builder, io, service);
            Box::pin(async move { drop(served.await) })
        };
        let deadline = terminator.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = deadline.reached(Phase::Forcing) => {}
                () = serves => {}
            }
        });
        until_stats_async(&terminator, "its request", |it| it.busy == 1).await;
        let report = ended(&terminator).await;
        let counts = (report.forced, report.connections(), report.is_clean());
        assert_eq!(counts, (1, 1, false), "{path}, {by_hand}: {report}");
        drop(client);
    }
}

/// A runtime ends in whatever order it has its tasks: where a stream's was ahead of its connection's, its client seemed to have left.
#[test]
fn g18_requests_whose_runtime_ends_were_not_left_by_their_clients() {
    const CONNECTIONS: usize = 16;

    let terminator = patient().build();
    let host = Host::workers(2);
    let (listener, addr) = bound(host.handle());
    host.spawn(
        terminator
            .serve(listener, app(App::default()))
            .into_future(),
    );
    let clients: Vec<RawH2> = (0..CONNECTIONS)
        .map(|_| {
            let client = RawH2::connect(addr);
            client.ack_settings();
            client.get("/pending", 1);
            client
        })
        .collect();
    until_stats(&terminator, "all asked", |it| it.requests == CONNECTIONS);
    let ended = terminator.terminate();
    block_on(BOUND, "the drain", terminator.reached(Phase::Draining));
    drop(host);
    let report = block_on(BOUND, "the end", ended);
    assert_eq!(
        (report.abandoned, report.closed_by_peer),
        (0, CONNECTIONS),
        "{report}"
    );
    assert_eq!(report.connections(), CONNECTIONS, "{report}");
    drop(clients);
}

// ===== C7: half-closed clients =====

/// Starts a server whose clients may half-close behind a request.
async fn half_closing(front: FrontEnd, terminator: &Terminator, app: Router) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().half_close(true);
    match front {
        FrontEnd::Serve => {
            tokio::spawn(terminator.serve(listener, app).http(builder));
        }
        #[cfg(feature = "rustls")]
        FrontEnd::ServeTls => {
            let server = terminator.serve(listener, app).http(builder);
            tokio::spawn(server.tls(support::tls_acceptor(&[])));
            return Target::Tls(addr);
        }
        _ => {
            let mut listener = terminator.listen(listener);
            tokio::spawn(async move {
                while let Some((io, _)) = listener.accept().await {
                    let connection = io.connection();
                    let service = TowerToHyperService::new(app.clone());
                    tokio::spawn(connection.serve(&builder, io, service));
                }
            });
        }
    }
    Target::Tcp(addr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_half_close_of_the_builder_is_honoured() {
    for front in [
        FrontEnd::Serve,
        #[cfg(feature = "rustls")]
        FrontEnd::ServeTls,
        FrontEnd::OwnLoopAuto,
    ] {
        for phase in [Phase::Serving, Phase::Draining] {
            let gate = Gate::new();
            // What comes during the drain must find its connection open.
            let terminator = patient().settle(BOUND).build();
            let target = half_closing(front, &terminator, gated(&gate)).await;
            let (slow, upload) = (RawClient::connect(&target), RawClient::connect(&target));
            let later = RawClient::connect(&target);
            if phase == Phase::Serving {
                slow.get("/slow");
                slow.shutdown_write();
                upload.post("/upload", "whole");
                upload.shutdown_write();
                gate.wait_entered_async(2).await;
            } else {
                slow.get("/slow");
                upload.post("/upload", "whole");
                gate.wait_entered_async(2).await;
            }
            let termination = (phase > Phase::Serving).then(|| terminator.terminate());
            within(BOUND, "the phase", terminator.reached(phase)).await;
            if phase > Phase::Serving {
                slow.shutdown_write();
                upload.shutdown_write();
            }
            // A first request during the drain. Over TLS it may be answered, and its connection closed,
            // before the close_notify is out.
            let quick = (phase == Phase::Serving || matches!(target, Target::Tcp(_))).then(|| {
                later.get("/quick");
                later.shutdown_write();
                (later, "ok")
            });
            gate.open();
            for (mut client, text) in [(slow, "slow"), (upload, "5 bytes")]
                .into_iter()
                .chain(quick)
            {
                let what = format!("{front:?} {phase:?} {text}");
                blocking(move || {
                    assert_eq!(client.read_response().text(), text, "{what}");
                    client.expect_eof();
                })
                .await;
            }
            let report = match termination {
                Some(termination) => within(BOUND, "the end", termination).await,
                None => ended(&terminator).await,
            };
            assert!(report.is_clean(), "{front:?}: {report}");
            assert_eq!(report.abandoned, 0, "{front:?}: {report}");
        }
    }
}

/// Its answer is out and said close; then its task gets stuck in the close of its IO, and with it the runtime. It
/// is closed from outside.
#[test]
fn g18_what_was_answered_last_and_is_closed_from_outside_is_finished() {
    let host = Host::current_thread();
    let (gate, stuck) = (Gate::new(), Gate::new());
    let terminator = patient().build();
    let listener = host.block_on(TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a port is free");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    let mut listener = terminator.listen(listener);
    let (app, stuck_in) = (gated(&gate), stuck.clone());
    let terminated = terminator.terminated();
    let accepts = async move {
        while let Some((io, _)) = listener.accept().await {
            let connection = io.connection();
            let io = StuckAtShutdown(io, stuck_in.clone());
            let builder = auto::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(app.clone());
            let served = connection.serve(&builder, io, service);
            tokio::spawn(async move { drop(served.await) });
        }
        terminated.await;
    };
    let ran = std::thread::spawn(move || host.block_on(accepts));
    let mut client = RawClient::connect(addr);
    client.get("/slow");
    gate.wait_entered(1);
    let ended = terminator.terminate();
    gate.open();
    assert!(client.read_response().says_close());
    client.expect_eof();
    let report = block_on(BOUND, "the end", ended);
    stuck.open();
    ran.join().expect("it does not panic");
    assert_eq!((report.finished, report.idle), (1, 0), "{report}");
}

/// Blocks whoever shuts it down.
struct StuckAtShutdown(TrackedIo<TcpStream>, Gate);

impl AsyncRead for StuckAtShutdown {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for StuckAtShutdown {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.1.enter_blocking();
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
