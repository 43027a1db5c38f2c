//! Streams that others have made end when their connection is told (G17).

#![cfg(all(unix, feature = "serve", feature = "rustls", feature = "tonic"))]
#![allow(
    unreachable_pub,
    reason = "the support library is a module of every test run"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests read the clock and spawn clients"
)]

mod support;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::response::sse::{Event, Sse};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http_terminator::{Terminator, TerminatorBuilder};
use tokio::net::TcpListener;
use tonic::Code;
use tonic::service::Routes;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use support::fronts::{Front, serve};
use support::outside::measured;
use support::{
    App, BOUND, Gate, RawClient, app, assert_big, big, blocking, h2_connect, h2_finish, within,
};

const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(200);

fn patient() -> TerminatorBuilder {
    Terminator::builder().grace_period(NEVER)
}

/// `/events` says one thing and then nothing; `/ready` always has more; `/whole` has a length, and comes when
/// it may.
fn routes(gate: &Gate) -> Router {
    let gate = gate.clone();
    Router::new()
        .route(
            "/events",
            get(async || {
                let first = stream::iter([Ok::<_, Infallible>(Event::default().data("first"))]);
                Sse::new(first.chain(stream::pending()))
            }),
        )
        .route(
            "/ready",
            get(async || {
                let more =
                    stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(b"more\n")));
                // One frame a turn, as from a task that is always ahead.
                let more = more.then(async |it| {
                    tokio::task::yield_now().await;
                    it
                });
                Body::from_stream(Box::pin(more))
            }),
        )
        .route(
            "/whole",
            get(move || {
                let gate = gate.clone();
                async move {
                    let body = stream::once(async move {
                        gate.enter().await;
                        Ok::<_, Infallible>(big())
                    });
                    let length = [("content-length", support::BIG.to_string())];
                    (length, Body::from_stream(Box::pin(body))).into_response()
                }
            }),
        )
}

fn ending(terminator: &Terminator, gate: &Gate) -> Router {
    routes(gate)
        .route_layer(terminator.end_streams())
        .merge(app(App::default()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_streams_of_http1_end_with_their_last_chunk() {
    for front in Front::ALL {
        for path in ["/events", "/ready"] {
            let terminator = patient().build();
            let (target, _) = serve(front, &terminator, ending(&terminator, &Gate::new())).await;
            let mut client = blocking(move || {
                let mut client = RawClient::connect(&target);
                client.get(path);
                client.read_response_headers();
                assert!(client.read_chunk().is_some());
                client
            })
            .await;
            let begin = Instant::now();
            let ended = terminator.terminate();
            blocking(move || {
                // An end without a last chunk panics.
                client.read_body();
                client.expect_eof();
            })
            .await;
            let report = within(BOUND, "the end", ended).await;
            measured(begin.elapsed(), SOON, &format!("{front:?} {path}"));
            assert!(report.is_clean(), "{front:?} {path}: {report}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_streams_of_http2_end_with_end_stream() {
    for front in Front::ALL {
        // Of `/ready` h2's client gets so many frames that it takes them for an attack.
        for path in ["/events"] {
            let terminator = patient().build();
            let (target, _) = serve(front, &terminator, ending(&terminator, &Gate::new())).await;
            let client = h2_connect(&target).await;
            let response = client.start(path).await;
            // It has begun.
            let body = tokio::spawn(h2_finish(response));
            within(BOUND, "in hand", async {
                while terminator.stats().requests == 0 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            let begin = Instant::now();
            let report = within(BOUND, "the end", terminator.terminate()).await;
            measured(begin.elapsed(), SOON, &format!("{front:?} {path}"));
            assert!(report.is_clean(), "{front:?} {path}: {report}");
            let body = within(BOUND, "its body", body).await.expect("no panic");
            body.unwrap_or_else(|error| panic!("{front:?} {path}: {error}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_without_it_they_hold_the_drain() {
    let terminator = Terminator::builder()
        .grace_period(Duration::from_millis(500))
        .build();
    let (target, _) = serve(Front::Serve, &terminator, routes(&Gate::new())).await;
    let client = blocking(move || {
        let mut client = RawClient::connect(&target);
        client.get("/events");
        client.read_response_headers();
        client
    })
    .await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!(report.forced, 1, "{report}");
    drop(client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_what_has_a_length_is_whole() {
    for front in Front::ALL {
        let (terminator, gate) = (patient().build(), Gate::new());
        let (target, _) = serve(front, &terminator, ending(&terminator, &gate)).await;
        let client = blocking(move || {
            let mut client = RawClient::connect(&target);
            client.get("/whole");
            client.read_response_headers();
            client
        })
        .await;
        gate.wait_entered_async(1).await;
        let ended = terminator.terminate();
        terminator.draining().await;
        gate.open();
        blocking(move || {
            let mut client = client;
            assert_big(&client.read_body());
        })
        .await;
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_an_old_connection_ends_its_streams() {
    for front in Front::ALL {
        let age = Duration::from_millis(300);
        let terminator = patient().max_connection_age(age).build();
        let (target, _) = serve(front, &terminator, ending(&terminator, &Gate::new())).await;
        blocking(move || {
            let mut client = RawClient::connect(&target);
            client.get("/events");
            client.read_response_headers();
            client.read_body();
        })
        .await;
        drop(terminator.force());
    }
}

// ===== gRPC =====

async fn health(
    terminator: &Terminator,
    by_tonic: bool,
    layered: bool,
) -> HealthClient<tonic::transport::Channel> {
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    // The reporter is what ends a `Watch`.
    std::mem::forget(reporter);
    if by_tonic {
        let incoming = terminator.listen(listener);
        let told = terminator.draining();
        let server = tonic::transport::Server::builder();
        if layered {
            let mut server = server.layer(terminator.end_streams());
            let serving = server.add_service(service);
            tokio::spawn(async move { serving.serve_with_incoming_shutdown(incoming, told).await });
        } else {
            let mut server = server;
            let serving = server.add_service(service);
            tokio::spawn(async move { serving.serve_with_incoming_shutdown(incoming, told).await });
        }
    } else {
        let mut router = Routes::new(service).into_axum_router();
        if layered {
            router = router.layer(terminator.end_streams());
        }
        tokio::spawn(terminator.serve(listener, router));
    }
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}"));
    let channel = endpoint.expect("an address").connect().await;
    HealthClient::new(channel.expect("it listens"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_watch_of_grpc_health_ends_with_a_status() {
    for by_tonic in [false, true] {
        let terminator = patient().build();
        let mut client = health(&terminator, by_tonic, true).await;
        let request = HealthCheckRequest::default();
        let watch = within(BOUND, "a watch", client.watch(request.clone())).await;
        let mut watch = watch.expect("it is served").into_inner();
        assert!(watch.message().await.expect("a first message").is_some());
        // A unary call has its own status.
        let checked = within(BOUND, "a check", client.check(request)).await;
        checked.expect("it is served");
        let begin = Instant::now();
        let ended = terminator.terminate();
        let end = within(BOUND, "its end", watch.message()).await;
        let status = end.expect_err("a status");
        assert_eq!(status.code(), Code::Unavailable, "{by_tonic} {status:?}");
        assert_eq!(
            status.message(),
            "the server is going away",
            "{by_tonic} {status:?}"
        );
        let report = within(BOUND, "the end", ended).await;
        measured(begin.elapsed(), SOON, &format!("by tonic: {by_tonic}"));
        assert!(report.is_clean(), "{by_tonic}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_without_it_a_watch_holds_the_drain() {
    let terminator = Terminator::builder()
        .grace_period(Duration::from_millis(500))
        .build();
    let mut client = health(&terminator, false, false).await;
    let watch = within(
        BOUND,
        "a watch",
        client.watch(HealthCheckRequest::default()),
    )
    .await;
    let mut watch = watch.expect("it is served").into_inner();
    assert!(watch.message().await.expect("a first message").is_some());
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!(report.forced, 1, "{report}");
}
