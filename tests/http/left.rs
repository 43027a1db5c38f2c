//! Ends that hostile trying found: an upgrade that did not come about, peers that leave, and what is counted
//! meanwhile.

#![cfg(all(unix, feature = "serve"))]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::routing::{get, post};
use futures_util::stream::{self, StreamExt};
use http::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use http_terminator::{
    HttpBuilder, IdlePolicy, Phase, Terminator, TerminatorBuilder, TowerToHyper,
};

use crate::support::outside;
use crate::support::wait::{gone, time_passes, time_passes_async, until_stats_async};
use crate::support::{
    App, BOUND, FrontEnd, Gate, PREFACE, RawClient, ReadEnd, app, blocking, bound_here, start,
    within,
};

fn patient() -> TerminatorBuilder {
    Terminator::builder().grace_period(BOUND * 3)
}

fn fronts() -> Vec<FrontEnd> {
    vec![
        FrontEnd::Serve,
        FrontEnd::OwnLoopAuto,
        #[cfg(feature = "rustls")]
        FrontEnd::ServeTls,
        FrontEnd::OwnLoopAutoTls,
    ]
}

async fn busy(terminator: &Terminator) {
    until_stats_async(terminator, "in hand", |it| it.busy > 0).await;
}

/// As `curl --http2` asks for. hyper then drops the connection at its end without shutting it down.
const ASKS: &str = "connection: upgrade\r\nupgrade: h2c\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g8_an_early_answer_to_who_asked_for_an_upgrade_survives_the_upload() {
    for front in fronts() {
        for draining in [false, true] {
            let terminator = patient().build();
            let server = start(front, &terminator, app(App::default())).await;
            let client = server.connect();
            if draining {
                client.send("POST /ear");
                busy(&terminator).await;
                drop(terminator.terminate());
            }
            if !draining {
                client.send("POST /ear");
            }
            client.send(format!(
                "ly HTTP/1.1\r\nhost: a\r\n{ASKS}content-length: 9000000\r\n\r\n"
            ));
            let what = format!("{front:?}, {draining}");
            let client = blocking(move || {
                let mut client = client;
                // Behind the answer, and before it is looked for.
                client.send(vec![b'x'; 1_000_000]);
                assert_eq!(client.read_response().status, 413, "{what}");
                let end = client.read_to_end();
                assert_eq!(end, ReadEnd::Eof, "{what}");
                client
            })
            .await;
            drop(client);
            let report = within(BOUND, "the end", terminator.terminate()).await;
            assert!(report.is_clean(), "{front:?}, {draining}: {report}");
            if draining {
                assert_eq!(report.finished, 1, "{front:?}: {report}");
            }
        }
    }
}

/// It ends as was agreed before the drain, also where hyper does not shut it down, for whoever keeps its request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_an_end_that_was_agreed_with_who_asked_for_an_upgrade_is_finished() {
    for front in fronts() {
        for (asks, keeps) in [("close\r\n", false), (ASKS, false), (ASKS, true)] {
            let gate = Gate::new();
            let (opens, kept) = (gate.clone(), Arc::<Mutex<Vec<Request>>>::default());
            let streams = get(move |request: Request| async move {
                if keeps {
                    kept.lock().expect("no panic").push(request);
                }
                let last = stream::once(async move {
                    tokio::task::yield_now().await;
                    gate.enter().await;
                    Ok::<_, Infallible>("last\n")
                });
                let body = Body::from_stream(stream::iter([Ok("first\n")]).chain(last));
                ([(header::CONNECTION, "close")], body)
            });
            let terminator = patient().build();
            let router = app(App::default()).route("/stream-once", streams);
            let server = start(front, &terminator, router).await;
            let mut client = server.connect();
            let asks = asks.replace("close", "connection: close");
            client.send(format!(
                "GET /stream-once HTTP/1.1\r\nhost: a\r\n{asks}\r\n"
            ));
            let client = blocking(move || {
                assert_eq!(client.read_response_headers().status, 200);
                client.read_chunk().expect("a first part");
                client
            });
            let mut client = client.await;
            opens.wait_entered_async(1).await;
            let termination = terminator.terminate();
            within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
            opens.open();
            blocking(move || {
                client.read_body();
                let end = client.read_to_end();
                // Of what is kept nobody can say so over TLS.
                assert!(end == ReadEnd::Eof || keeps && end == ReadEnd::NoCloseNotify);
            })
            .await;
            let report = within(BOUND, "the end", termination).await;
            let counts = (report.finished, report.closed_by_peer);
            assert_eq!(counts, (1, 0), "{front:?}, {asks:?}, {keeps}: {report}");
        }
    }
}

/// What hyper ends by an error was not agreed: its own bound on heads, over a connection that is idle, and a malformed one that comes behind such
/// a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_what_hyper_ends_by_an_error_is_closed_by_peer() {
    for malformed in [false, true] {
        let wait = BOUND * 2;
        let builder = patient().idle(IdlePolicy::LastRequest { wait });
        let terminator = builder.settle(wait).build();
        let (listener, addr) = bound_here();
        let mut builder = HttpBuilder::default();
        let time = Duration::from_millis(200);
        let http1 = builder.http1().timer(TokioTimer::new());
        http1.header_read_timeout((!malformed).then_some(time));
        let served = terminator.serve(listener, app(App::default()));
        tokio::spawn(served.builder(builder));
        let ended = terminator.clone();
        let termination = blocking(move || {
            let mut client = RawClient::connect(addr);
            let asks = if malformed { ASKS } else { "" };
            client.send(format!("GET /quick HTTP/1.1\r\nhost: a\r\n{asks}\r\n"));
            assert_eq!(client.read_response().text(), "ok");
            let termination = ended.terminate();
            if malformed {
                client.send("GARBAGE\n\n");
            }
            assert!(outside::ended(client.read_to_end()));
            termination
        });
        let report = within(BOUND, "the end", termination.await).await;
        let counts = (report.finished, report.closed_by_peer);
        assert_eq!(counts, (0, 1), "{malformed}: {report}");
    }
}

/// hyper hands over the socket of who asked for an upgrade as soon as nobody will read the rest of the request, and forgets what
/// of the answer was not flushed. That can't be mended from outside; but such a connection has not finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_an_answer_that_hyper_cuts_for_an_upgrade_has_not_finished() {
    for front in fronts() {
        let terminator = patient().build();
        let answer = async || vec![b'x'; BIG];
        let router = app(App::default()).route("/ignored", axum::routing::post(answer));
        let server = start(front, &terminator, router).await;
        let client = server.connect();
        client.send("POST /ig");
        busy(&terminator).await;
        let ended = terminator.terminate();
        client.send(format!(
            "nored HTTP/1.1\r\nhost: a\r\n{ASKS}content-length: 9000000\r\n\r\nx"
        ));
        let whole = blocking(move || {
            let mut client = client;
            // So that not all of it fits.
            time_passes(Duration::from_millis(100));
            client
                .try_read_response()
                .is_ok_and(|it| it.body.len() == BIG)
        })
        .await;
        let report = within(BOUND, "the end", ended).await;
        let finished = usize::from(whole);
        assert_eq!(
            (report.finished, report.closed_by_peer),
            (finished, 1 - finished),
            "{front:?}, whole {whole}: {report}"
        );
    }
}

/// More than any kernel takes at once.
const BIG: usize = 20_000_000;

/// Over TLS with a `close_notify`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_who_asked_for_an_upgrade_and_got_none_is_idle_and_told_of_the_end() {
    for front in fronts() {
        let terminator = patient().build();
        let server = start(front, &terminator, app(App::default())).await;
        let mut client = server.connect();
        client.send(format!("GET /quick HTTP/1.1\r\nhost: a\r\n{ASKS}\r\n"));
        assert_eq!(client.read_response().text(), "ok", "{front:?}");
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert_eq!(
            (report.idle, report.connections()),
            (1, 1),
            "{front:?}: {report}"
        );
        blocking(move || client.expect_eof()).await;
    }
}

/// hyper gives the connection to who has the request, at its end, also if what that asked for was declined: it stayed open to the
/// deadline, and nobody was named. While serving, it is for who answers that it is the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_g21_a_request_that_is_kept_and_asked_for_an_upgrade_keeps_nothing_open() {
    for front in fronts() {
        for alone in [false, true] {
            let terminator = patient().build();
            let kept = Arc::new(Mutex::new(Vec::new()));
            let keeps = Arc::clone(&kept);
            let keep = async move |request: Request| {
                keeps.lock().expect("no panic").push(request);
                "ok"
            };
            let router = app(App::default()).route("/keep", get(keep));
            let server = start(front, &terminator, router).await;
            let mut client = server.connect();
            let close = if alone { ", close" } else { "" };
            client.send(format!(
                "GET /keep HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade{close}\r\n\r\n"
            ));
            assert_eq!(client.read_response().text(), "ok", "{front:?}");
            let end = (!alone).then(|| terminator.terminate());
            blocking(move || {
                client.set_timeout(BOUND / 2);
                assert!(outside::ended(client.read_to_end()), "{front:?} {alone}");
            })
            .await;
            if let Some(end) = end {
                let report = within(BOUND / 2, "the end", end).await;
                let counts = (report.idle, report.connections());
                assert_eq!(counts, (1, 1), "{front:?}: {report}");
            } else {
                gone(&terminator).await;
            }
            drop(kept);
        }
    }
}

/// Whoever keeps such a request for a while has no part in how its connection ends: behind an early answer in stages, under a client
/// that still sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g8_a_request_that_is_kept_for_a_while_spoils_no_early_answer() {
    for front in fronts() {
        let terminator = patient().build();
        let refuse = async |request: Request| {
            let (parts, body) = request.into_parts();
            drop(body);
            tokio::spawn(async move {
                time_passes_async(Duration::from_millis(100)).await;
                drop(parts);
            });
            StatusCode::PAYLOAD_TOO_LARGE
        };
        let router = app(App::default()).route("/refuse", post(refuse));
        let server = start(front, &terminator, router).await;
        let client = server.connect();
        client.send(format!(
            "POST /refuse HTTP/1.1\r\nhost: a\r\n{ASKS}content-length: 100000\r\n\r\n"
        ));
        blocking(move || {
            let mut client = client;
            // The time is the subject: it sends for longer than that is kept.
            for _ in 0..25 {
                client.send([b'x'; 100]);
                time_passes(Duration::from_millis(20));
            }
            let answer = client.read_response_headers();
            assert_eq!(answer.status, 413, "{front:?}");
        })
        .await;
        within(BOUND, "the end", terminator.force()).await;
    }
}

/// An answer is on its way through another task when its connection is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_what_another_task_has_yet_to_pass_on_is_not_cut() {
    let terminator = patient().build();
    let (listener, addr) = bound_here();
    let mut listener = terminator.listen(listener);
    let accepts = tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.expect("serving");
        let connection = io.connection();
        let (mut passes, served) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            // Behind the end of what it is served by.
            time_passes_async(Duration::from_millis(50)).await;
            let _ = tokio::io::copy_bidirectional(&mut passes, &mut io).await;
        });
        let service = TowerToHyper::new(app(App::default()));
        let _ = connection
            .serve(&HttpBuilder::default(), served, service)
            .await;
    });
    let client = RawClient::connect(addr);
    client.send("GET /quick HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    blocking(move || {
        let mut client = client;
        assert_eq!(client.read_response().text(), "ok");
        client.expect_eof();
    })
    .await;
    accepts.await.expect("no panic");
}

/// It was told, and might have finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_who_leaves_in_mid_response_is_closed_by_peer() {
    for front in fronts() {
        let gate = Gate::new();
        let state = App {
            gate: gate.clone(),
            terminator: None,
        };
        let terminator = patient().build();
        let server = start(front, &terminator, app(state)).await;
        let mut client = server.connect();
        client.get("/slow");
        gate.wait_entered(1);
        let termination = terminator.terminate();
        drop(client);
        let report = within(BOUND, "the end", termination).await;
        let counts = (report.closed_by_peer, report.finished, report.abandoned);
        assert_eq!(counts, (1, 0, 1), "{front:?}: {report}");

        let terminator = patient().build();
        let server = start(front, &terminator, app(App::default())).await;
        client = server.connect();
        client.send("GET /bigst");
        busy(&terminator).await;
        let termination = terminator.terminate();
        client.send("ream HTTP/1.1\r\nhost: a\r\n\r\n");
        let client = blocking(move || {
            assert!(client.read_response_headers().says_close());
            client
        })
        .await;
        assert_eq!(terminator.stats().requests, 1, "{front:?}");
        drop(client);
        let report = within(BOUND, "the end", termination).await;
        let counts = (report.closed_by_peer, report.finished);
        assert_eq!(counts, (1, 0), "{front:?}: {report}");
    }
}

/// What may be the beginning of HTTP/2, and then an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_who_leaves_within_a_preface_is_closed_by_peer() {
    for front in fronts() {
        for begun in ["P", "PRI * HT"] {
            let terminator = patient().build();
            let server = start(front, &terminator, app(App::default())).await;
            let client: RawClient = server.connect();
            client.send(begun);
            busy(&terminator).await;
            let termination = terminator.terminate();
            drop(client);
            let report = within(BOUND, "the end", termination).await;
            let counts = (report.closed_by_peer, report.finished);
            assert_eq!(counts, (1, 0), "{front:?} {begun}: {report}");
        }
    }
}

/// Whoever goes on with a staged close goes with its runtime.
#[test]
fn g8_a_staged_close_ends_with_its_runtime() {
    for polls in [0, 1, 100] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let terminator = patient().build();
        let (mut client, io) = tokio::io::duplex(1 << 16);
        let connection = {
            let _entered = runtime.enter();
            let io = terminator.track(io);
            let router = TowerToHyper::new(app(App::default()));
            let builder = HttpBuilder::new(TokioExecutor::new());
            Box::pin(io.connection().serve(&builder, io, router))
        };
        runtime.block_on(async {
            let head =
                format!("POST /early HTTP/1.1\r\nhost: a\r\n{ASKS}content-length: 9\r\n\r\n1");
            client
                .write_all(head.as_bytes())
                .await
                .expect("there is room");
            connection.await.expect("no error");
            // What it has spawned has been polled so often.
            for _ in 0..polls {
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(terminator.stats().connections, 1);
        drop(runtime);
        assert_eq!(terminator.stats().connections, 0);
    }
}

/// hyper panics about that, for each connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_settings_that_need_a_timer_break_their_connections_only() {
    for http2 in [false, true] {
        let mut builder = HttpBuilder::default();
        if http2 {
            builder.http2().keep_alive_interval(BOUND);
        } else {
            builder.http1().header_read_timeout(BOUND);
        }
        let terminator = patient().build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let router = app(App::default());
        let server = tokio::spawn(terminator.serve(listener, router).builder(builder));
        for _ in 0..3 {
            let mut client = RawClient::connect(addr);
            client.send(if http2 { PREFACE } else { b"GET / HTTP" });
            // hyper may have said its SETTINGS before.
            let end = blocking(move || client.read_to_end()).await;
            assert!(
                matches!(end, ReadEnd::Eof | ReadEnd::Reset),
                "{http2}: {end:?}"
            );
        }
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert!(report.is_clean(), "{http2}: {report}");
        server.await.expect("the accept loop lives");
    }
}
