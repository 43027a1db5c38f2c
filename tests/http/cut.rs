//! What is cut can be told from what is whole: a response whose end only the close would tell is cut
//! by a reset, and nothing else is (B5 of G10).

#![cfg(all(unix, feature = "serve"))]

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::stream::{self, StreamExt};
use http::{HeaderValue, StatusCode, Version, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use http_terminator::{Connection, Phase, Report, Terminator, TerminatorBuilder};

use crate::support::{
    App, BIG, BOUND, FrontEnd, Gate, RawClient, ReadEnd, app, blocking, each, start, start_known,
    within,
};

/// Long enough for what is asked before it.
const GRACE: Duration = Duration::from_millis(300);

fn patient() -> TerminatorBuilder {
    Terminator::builder().grace_period(BOUND * 3)
}

/// On a socket that can be reset.
fn fronts() -> Vec<FrontEnd> {
    let mut fronts = FrontEnd::all_and_tls();
    fronts.retain(|front| *front != FrontEnd::ServeUnix);
    fronts
}

/// A stream without a length, whose first part goes out at once and whose last waits at the gate.
fn parts(gate: &Gate, last: io::Result<&'static str>) -> Body {
    let gate = gate.clone();
    let last = stream::once(async move {
        // The first part is out before the gate is reached.
        tokio::task::yield_now().await;
        gate.enter().await;
        last
    });
    Body::from_stream(stream::iter([Ok("first\n")]).chain(last))
}

fn cut_app(gate: &Gate) -> Router {
    let of = |last: fn() -> io::Result<&'static str>| {
        let gate = gate.clone();
        get(async move || parts(&gate, last()))
    };
    let mute = gate.clone();
    let dated = gate.clone();
    let posted = gate.clone();
    let known = gate.clone();
    let panics = gate.clone();
    let shelved = gate.clone();
    // What lies there is read by nobody, and not dropped either.
    let shelf = Arc::<Mutex<Vec<Body>>>::default();
    app(App {
        gate: gate.clone(),
        terminator: None,
    })
    .route("/parts", of(|| Ok("last\n")))
    .route("/fails", of(|| Err(io::Error::other("on purpose"))))
    .route(
        "/panics",
        get(async move || {
            let last = stream::once(async move {
                panics.enter().await;
                panic!("this body panics on purpose")
            });
            let first = stream::iter([Ok::<_, Infallible>("first\n")]);
            Body::from_stream(first.chain(last))
        }),
    )
    // Its handler claims an older version than it was asked in.
    .route(
        "/older",
        get(async move || {
            let mut response = parts(&dated, Ok("last\n")).into_response();
            *response.version_mut() = Version::HTTP_10;
            response
        }),
    )
    .route(
        "/known",
        get(async move || {
            let mut response = parts(&known, Ok("last\n")).into_response();
            let length = HeaderValue::from_static("11");
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length);
            response
        }),
    )
    // Has a body that never ends, where there can be none.
    .route(
        "/304",
        get(async move || (StatusCode::NOT_MODIFIED, parts(&mute, Ok("last\n")))),
    )
    .route(
        "/shelved",
        post(async move |body: Body| {
            shelf.lock().expect("no panic").push(body);
            parts(&shelved, Ok("last\n"))
        }),
    )
    .route(
        "/upload",
        post(async move || {
            let body = parts(&posted, Ok("last\n"));
            (StatusCode::PAYLOAD_TOO_LARGE, body)
        }),
    )
}

/// Asks, and reads what comes before the gate.
async fn begun(mut client: RawClient, request: &str, gate: &Gate) -> RawClient {
    let before = gate.entered();
    client.send(format!("{request}\r\nhost: localhost\r\n\r\n"));
    let client = blocking(move || {
        client.read_response_headers();
        assert_eq!(client.read_chunk().as_deref(), Some(&b"first\n"[..]));
        client
    });
    let client = client.await;
    gate.wait_entered_async(before + 1).await;
    client
}

/// How a body ends that is read until the end.
async fn end(mut client: RawClient) -> Result<String, ReadEnd> {
    let body = blocking(move || client.try_read_body()).await?;
    Ok(String::from_utf8(body).expect("text"))
}

async fn ended(terminator: &Terminator) -> Report {
    within(BOUND, "the end", terminator.terminate()).await
}

const BY_CLOSE: [&str; 3] = [
    "GET /parts HTTP/1.0",
    "GET /parts HTTP/1.0\r\nconnection: keep-alive",
    "GET /older HTTP/1.1",
];

// ===== cut =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_a_response_that_only_the_close_would_end_is_reset_at_the_deadline() {
    each(fronts(), async |front| {
        for request in BY_CLOSE {
            let gate = Gate::new();
            let terminator = Terminator::builder().grace_period(GRACE).build();
            let server = start(front, &terminator, cut_app(&gate)).await;
            let client = begun(server.connect(), request, &gate).await;
            let report = ended(&terminator).await;
            assert_eq!(
                end(client).await,
                Err(ReadEnd::Reset),
                "{front:?} {request}"
            );
            assert_eq!((report.forced, report.connections()), (1, 1), "{report}");
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_it_is_reset_by_force_and_what_had_arrived_stays_readable() {
    each(fronts(), async |front| {
        let gate = Gate::new();
        let terminator = patient().build();
        let server = start(front, &terminator, cut_app(&gate)).await;
        let mut client = server.connect();
        client.send("GET /parts HTTP/1.0\r\n\r\n");
        gate.wait_entered_async(1).await;
        // The bytes of it are in the client's socket now.
        within(BOUND, "the end", terminator.force()).await;
        let client = blocking(move || {
            assert_eq!(client.read_response_headers().status, 200);
            client
        });
        let mut client = client.await;
        assert_eq!(client.read_chunk().as_deref(), Some(&b"first\n"[..]));
        assert_eq!(end(client).await, Err(ReadEnd::Reset), "{front:?}");
    });
}

/// An error and a panic, while serving, in the lame-duck phase and while draining.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_a_body_that_fails_is_reset_in_every_phase() {
    each(fronts(), async |front| {
        for phase in [Phase::Serving, Phase::LameDuck, Phase::Draining] {
            for path in ["/fails", "/panics"] {
                let gate = Gate::new();
                let lame_duck = BOUND * u32::from(phase == Phase::LameDuck);
                let terminator = patient().lame_duck(lame_duck).build();
                let server = start(front, &terminator, cut_app(&gate)).await;
                let client = begun(server.connect(), &format!("GET {path} HTTP/1.0"), &gate).await;
                if phase > Phase::Serving {
                    drop(terminator.terminate());
                }
                within(BOUND, "the phase", terminator.reached(phase)).await;
                gate.open();
                let what = format!("{front:?} {path} {phase:?}");
                assert_eq!(end(client).await, Err(ReadEnd::Reset), "{what}");
                drop(terminator.force());
            }
        }
    });
}

/// hyper's default drops the handler's body then; what the client has got is not the whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_it_is_reset_when_the_client_has_half_closed() {
    each(fronts(), async |front| {
        let gate = Gate::new();
        let terminator = patient().build();
        let server = start(front, &terminator, cut_app(&gate)).await;
        let client = begun(server.connect(), "GET /parts HTTP/1.0", &gate).await;
        // Below TLS: after a close_notify the reset might come before it.
        let half_closed = client.socket().shutdown(std::net::Shutdown::Write);
        half_closed.expect("it is connected");
        assert_eq!(end(client).await, Err(ReadEnd::Reset), "{front:?}");
        assert!(ended(&terminator).await.is_clean());
    });
}

/// Its body has ended long before the client has got all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_a_slow_reader_of_a_response_that_only_the_close_would_end_is_reset() {
    each(fronts(), async |front| {
        let terminator = Terminator::builder().grace_period(GRACE).build();
        let server = start(front, &terminator, cut_app(&Gate::new())).await;
        let mut client = server.connect();
        client.send("GET /bigstream HTTP/1.0\r\n\r\n");
        let client = blocking(move || {
            client.read_response_headers();
            client.read_chunk().expect("a part");
            client
        });
        let mut client = client.await;
        let report = ended(&terminator).await;
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        let end = blocking(move || client.read_to_end()).await;
        assert_eq!(end, ReadEnd::Reset, "{front:?}");
    });
}

/// By who owns its task.
#[tokio::test]
async fn g10_it_is_reset_when_its_future_is_dropped() {
    let gate = Gate::new();
    let terminator = patient().build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let mut listener = terminator.listen(listener);
    let service = TowerToHyperService::new(cut_app(&gate));
    let client = tokio::spawn({
        let gate = gate.clone();
        async move { begun(RawClient::connect(addr), BY_CLOSE[0], &gate).await }
    });
    let (io, _) = listener.accept().await.expect("serving");
    let builder = auto::Builder::new(TokioExecutor::new());
    let serving = tokio::spawn(io.connection().serve(&builder, io, service));
    let client = client.await.expect("begun");
    serving.abort();
    assert_eq!(end(client).await, Err(ReadEnd::Reset));
}

/// A connection built by hand, whose service is tracked.
#[tokio::test]
async fn g10_it_is_reset_on_a_watched_connection() {
    for fails in [false, true] {
        let gate = Gate::new();
        let terminator = Terminator::builder().grace_period(GRACE).build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let mut listener = terminator.listen(listener);
        let app = cut_app(&gate);
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            while let Some((io, _)) = listener.accept().await {
                let connection = io.connection();
                let service = connection.service(TowerToHyperService::new(app.clone()));
                let served = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
                tokio::spawn(connection.watch(served.into_owned()));
            }
        });
        let path = if fails { "/fails" } else { "/parts" };
        let client = RawClient::connect(addr);
        let client = begun(client, &format!("GET {path} HTTP/1.0"), &gate).await;
        if fails {
            gate.open();
        }
        drop(terminator.terminate());
        assert_eq!(end(client).await, Err(ReadEnd::Reset), "{path}");
    }
}

/// Nothing can be reset there: the limit that the docs tell.
#[tokio::test]
async fn g10_a_unix_socket_ends_without_a_reset() {
    let gate = Gate::new();
    let terminator = Terminator::builder().grace_period(GRACE).build();
    let server = start(FrontEnd::ServeUnix, &terminator, cut_app(&gate)).await;
    let client = begun(server.connect(), BY_CLOSE[0], &gate).await;
    ended(&terminator).await;
    assert_eq!(end(client).await.as_deref(), Ok(""));
}

// ===== whole =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_a_response_that_only_the_close_ends_is_whole_and_ends_without_a_reset() {
    each(FrontEnd::all_and_tls(), async |front| {
        for request in BY_CLOSE {
            for phase in [Phase::Serving, Phase::Draining] {
                let gate = Gate::new();
                let terminator = patient().build();
                let server = start(front, &terminator, cut_app(&gate)).await;
                let client = begun(server.connect(), request, &gate).await;
                if phase > Phase::Serving {
                    drop(terminator.terminate());
                }
                within(BOUND, "the phase", terminator.reached(phase)).await;
                gate.open();
                let what = format!("{front:?} {request} {phase:?}");
                assert_eq!(end(client).await.as_deref(), Ok("last\n"), "{what}");
                let report = ended(&terminator).await;
                assert!(report.is_clean(), "{what}: {report}");
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_a_slow_reader_gets_a_big_response_whole_that_only_the_close_ends() {
    each(FrontEnd::all_and_tls(), async |front| {
        let terminator = patient().build();
        let server = start(front, &terminator, cut_app(&Gate::new())).await;
        let mut client = server.connect();
        client.send("GET /bigstream HTTP/1.0\r\n\r\n");
        let termination = blocking(move || {
            client.read_response_headers();
            let part = client.read_chunk().expect("a part").len();
            let termination = terminator.terminate();
            assert_eq!(part + client.read_body().len(), BIG, "{front:?}");
            termination
        });
        let report = within(BOUND, "the end", termination.await).await;
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// All of it is with the kernel: what the client has not read by the deadline still reaches it, also
/// from a connection that is being closed in stages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g8_an_early_answer_that_only_the_close_ends_is_not_reset() {
    each(FrontEnd::all_and_tls(), async |front| {
        let gate = Gate::new();
        gate.open();
        let terminator = Terminator::builder().grace_period(GRACE).build();
        let server = start(front, &terminator, cut_app(&gate)).await;
        let mut client = server.connect();
        client.send("POST /upload HTTP/1.0\r\ncontent-length: 100000\r\n\r\nbegin");
        let (mut client, response) = blocking(move || {
            let response = client.read_response();
            (client, response)
        })
        .await;
        assert_eq!(response.text(), "first\nlast\n", "{front:?}");
        ended(&terminator).await;
        let end = blocking(move || client.read_to_end()).await;
        assert_eq!(end, ReadEnd::Eof, "{front:?}");
    });
}

/// The same where its body may still be read: hyper goes on with that, so that nothing but the state tells that the answer is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_a_whole_answer_that_only_the_close_ends_is_not_reset_under_its_upload() {
    each(FrontEnd::all_and_tls(), async |front| {
        let gate = Gate::new();
        gate.open();
        let terminator = Terminator::builder().grace_period(GRACE).build();
        let server = start(front, &terminator, cut_app(&gate)).await;
        let mut client = server.connect();
        client.send("POST /shelved HTTP/1.0\r\ncontent-length: 100000\r\n\r\nbegin");
        let mut client = blocking(move || {
            client.read_response_headers();
            assert_eq!(client.read_exact(11), b"first\nlast\n", "{front:?}");
            client
        })
        .await;
        let report = ended(&terminator).await;
        let end = blocking(move || client.read_to_end()).await;
        // Nobody is there who could encrypt more.
        let eof = if front.is_tls() {
            ReadEnd::NoCloseNotify
        } else {
            ReadEnd::Eof
        };
        assert_eq!(end, eof, "{front:?}: {report}");
    });
}

// ===== nowhere else =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_what_tells_its_own_length_is_cut_without_a_reset() {
    each(FrontEnd::all(), async |front| {
        for request in [
            "GET /parts HTTP/1.1",
            "GET /parts HTTP/1.1\r\nconnection: close",
            "GET /known HTTP/1.0",
            "GET /known HTTP/1.1",
        ] {
            let gate = Gate::new();
            let terminator = Terminator::builder().grace_period(GRACE).build();
            let server = start(front, &terminator, cut_app(&gate)).await;
            let client = begun(server.connect(), request, &gate).await;
            ended(&terminator).await;
            let what = format!("{front:?} {request}");
            assert_eq!(end(client).await, Err(ReadEnd::Truncated), "{what}");
        }
    });
}

/// Heads without a body, on connections that stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_responses_that_have_no_body_leave_nothing_to_reset() {
    each(FrontEnd::all(), async |front| {
        for request in ["HEAD /parts", "GET /304"] {
            let gate = Gate::new();
            let terminator = Terminator::builder().grace_period(GRACE).build();
            let server = start(front, &terminator, cut_app(&gate)).await;
            let mut client = server.connect();
            client.send(format!(
                "{request} HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"
            ));
            let client = blocking(move || {
                assert!(client.read_response_headers().says_keep_alive());
                client
            });
            let mut client = client.await;
            // Held by what is half a request.
            client.send("GET /qui");
            let end = {
                let end = tokio::spawn(blocking(move || client.read_to_end()));
                ended(&terminator).await;
                end.await.expect("no panic")
            };
            assert_eq!(end, ReadEnd::Eof, "{front:?} {request}");
        }
    });
}

/// Nothing was sent of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_a_request_without_a_response_head_is_cut_without_a_reset() {
    each(FrontEnd::all(), async |front| {
        for path in ["/slow", "/panic"] {
            let gate = Gate::new();
            let terminator = Terminator::builder().grace_period(GRACE);
            let terminator = terminator.answer_at_deadline(false).build();
            let server = start(front, &terminator, cut_app(&gate)).await;
            let mut client = server.connect();
            client.send(format!("GET {path} HTTP/1.0\r\n\r\n"));
            if path == "/slow" {
                gate.wait_entered_async(1).await;
                ended(&terminator).await;
            }
            let end = blocking(move || client.read_to_end()).await;
            assert_eq!(end, ReadEnd::Eof, "{front:?} {path}");
        }
    });
}

/// hyper lets others have a turn behind sixteen, and has some more in its buffer: the next one got an end of file in place of a `503`, and its
/// handler was called behind that.
#[tokio::test]
async fn g10_g12_the_next_of_many_that_were_sent_together_is_answered() {
    const TOGETHER: usize = 16;
    for front in FrontEnd::seeing() {
        // More of them than are known to be whole, and no more than one.
        for asked in [20, 17] {
            let known = Arc::<OnceLock<Connection>>::default();
            let calls = Arc::new(AtomicUsize::new(0));
            let (its, counted) = (Arc::clone(&known), Arc::clone(&calls));
            let handler = async move || {
                if counted.fetch_add(1, Ordering::SeqCst) + 1 == TOGETHER {
                    let its = Arc::clone(&its);
                    // It has its turn ahead of the connection's next.
                    tokio::spawn(async move { its.get().expect("it is known").force() });
                }
                "ok"
            };
            let terminator = patient().build();
            let router = app(App::default()).route("/counted", get(handler));
            let (target, all) = start_known(front, &terminator, router).await;
            let client = blocking(move || {
                let mut client = RawClient::connect(target);
                assert_eq!(client.fetch("/quick").status, 200);
                client
            });
            let mut client = client.await;
            assert!(known.set(all.get(0)).is_ok());
            let statuses = blocking(move || {
                let one = "GET /counted HTTP/1.1\r\nhost: localhost\r\n\r\n";
                client.send(one.repeat(asked));
                let statuses = std::iter::from_fn(|| Some(client.try_read_response().ok()?.status));
                statuses.collect::<Vec<_>>()
            });
            let statuses = statuses.await;
            let (before, next) = statuses.split_at(TOGETHER.min(statuses.len()));
            assert_eq!(before, [200; TOGETHER], "{front:?} {asked}");
            // Who had his turn meanwhile has answered.
            assert!(matches!(next, [200 | 503]), "{front:?} {asked}: {next:?}");
            within(BOUND, "the end", terminator.terminate()).await;
        }
    }
}
