//! Streams without end whose handlers know of no termination, under `Terminator::end_streams` (G5, G9,
//! G17, G21).

#![cfg(all(unix, feature = "tonic", feature = "serve", feature = "rustls"))]

use std::convert::Infallible;
use std::error::Error;
use std::future::pending;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::middleware::{self, Next};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Extension, Router};
use bytes::{Buf, BufMut, Bytes};
use futures_util::stream::{self, Stream, StreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::service::{LayerExt, Routes};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use crate::support::outside::measured;
use crate::support::{
    BIG, BOUND, FrontEnd, Gate, RawClient, assert_big, big, blocking, each, h2_connect, start,
    start_known, within,
};
use http_terminator::{Connection, EndingBody, Phase, Report, Terminator};

/// From the call to the report: all front ends are asked at once. A stall is [`STALL`], and the deadline far.
const AT_ONCE: Duration = Duration::from_millis(800);

const STALL: Duration = Duration::from_secs(3);

/// What ends by itself ends long before any deadline.
const SOON: Duration = Duration::from_secs(5);

// ===== somebody's server-sent events =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_sse_of_others_ends_with_the_last_chunk() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = terminator(SOON * 6);
        let (target, _) = start_known(front, &terminator, routes(&terminator)).await;
        let mut client = blocking(move || watching(RawClient::connect(target))).await;
        let begin = Instant::now();
        let ended = terminator.terminate();
        blocking(move || {
            // `None` is the last chunk alone: an end of file before it would be an error.
            assert_eq!(client.read_chunk(), None, "{front:?}");
            client.expect_eof();
        })
        .await;
        assert_ended_at_once(begin, &within(SOON, "the end", ended).await, front);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_g17_sse_of_others_over_http2_ends_with_end_stream() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = terminator(SOON * 6);
        let (target, _) = start_known(front, &terminator, routes(&terminator)).await;
        let mut client = h2_connect(target).await;
        let mut events = begun(client.start("/events").await).await;
        let begin = Instant::now();
        let ended = terminator.terminate();
        within(SOON, "the end of the stream", ended_well(&mut events)).await;
        let report = within(SOON, "the end", ended).await;
        assert_ended_at_once(begin, &report, front);
        let _ = client.closed().await;
    });
}

/// Without that layer nothing gives time but the turn that a body has. hyper polls one of HTTP/1 twice in each of its own turns.
#[tokio::test]
async fn g17_a_goodbye_by_a_channel_has_one_turn() {
    let token = CancellationToken::new();
    let of_app = token.clone();
    let talks = async move || {
        let (to, from) = mpsc::unbounded_channel();
        let _ = to.send("hello\n");
        let told = of_app.clone();
        tokio::spawn(async move {
            told.cancelled().await;
            let _ = to.send("goodbye\n"); // its client has gone
        });
        let says = stream::unfold(from, async |mut from| {
            let said = from.recv().await?;
            Some((
                Ok::<_, Infallible>(Bytes::from_static(said.as_bytes())),
                from,
            ))
        });
        Body::new(EndingBody::new(
            Body::from_stream(says),
            of_app.clone().cancelled_owned(),
        ))
    };
    let terminator = terminator(SOON * 6);
    let app = Router::new().route("/", get(talks));
    let (target, _) = start_known(FrontEnd::Serve, &terminator, app).await;
    let mut client = blocking(move || {
        let mut client = RawClient::connect(target);
        client.get("/");
        client.read_response_headers();
        assert_eq!(client.read_chunk().as_deref(), Some(&b"hello\n"[..]));
        client
    })
    .await;
    token.cancel();
    blocking(move || {
        assert_eq!(client.read_chunk().as_deref(), Some(&b"goodbye\n"[..]));
        assert_eq!(client.read_chunk(), None);
    })
    .await;
}

/// A stream that is fed by a channel, whose task says goodbye when it is told: as often as not it was woken after the
/// connection, whose body had nothing to give then, and ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_goodbye_by_a_channel_goes_out() {
    each(FrontEnd::seeing(), async |front| {
        for n in 0..4 {
            // Time for a task to be woken on a busy machine.
            let settle = Duration::from_millis(800);
            let builder = Terminator::builder().grace_period(SOON * 6);
            let terminator = builder.settle(settle).build();
            let told = terminator.clone();
            let talks = async move |connection: Option<Extension<Connection>>| {
                let (to, from) = mpsc::unbounded_channel();
                let _ = to.send("hello\n");
                tokio::spawn(async move {
                    // The other kind of being told, each second time.
                    match connection.filter(|_| n % 2 == 0) {
                        Some(Extension(connection)) => connection.draining().await,
                        None => told.draining().await,
                    }
                    let _ = to.send("goodbye\n"); // its client has gone
                });
                let says = stream::unfold(from, async |mut from| {
                    let said = from.recv().await?;
                    Some((
                        Ok::<_, Infallible>(Bytes::from_static(said.as_bytes())),
                        from,
                    ))
                });
                Body::from_stream(says)
            };
            let app = Router::new()
                .route("/", get(talks))
                .route_layer(terminator.end_streams());
            let (target, known) = start_known(front, &terminator, app).await;
            let mut client = blocking(move || {
                let mut client = RawClient::connect(target);
                client.get("/");
                client.read_response_headers();
                assert_eq!(client.read_chunk().as_deref(), Some(&b"hello\n"[..]));
                client
            })
            .await;
            let ended = if n % 4 == 2 {
                known.get(0).terminate();
                None
            } else {
                Some(terminator.terminate())
            };
            blocking(move || {
                let goodbye = client.read_chunk();
                assert_eq!(goodbye.as_deref(), Some(&b"goodbye\n"[..]), "{front:?} {n}");
                assert_eq!(client.read_chunk(), None, "{front:?} {n}");
            })
            .await;
            let ended = ended.unwrap_or_else(|| terminator.terminate());
            let report = within(SOON, "the end", ended).await;
            assert!(report.is_clean(), "{front:?} {n}: {report}");
        }
    });
}

/// A lame duck tells HTTP/2 to go away, and by that told its streams too: each ended as it began, and clients that came
/// again for it did so without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_g17_sse_of_others_over_http2_goes_on_through_the_lame_duck() {
    each(FrontEnd::seeing(), async |front| {
        let builder = Terminator::builder().grace_period(SOON * 6);
        let lame_duck = Duration::from_secs(2);
        let terminator = builder.lame_duck(lame_duck).build();
        let (target, known) = start_known(front, &terminator, routes(&terminator)).await;
        let mut before = h2_connect(target.clone()).await;
        let mut events = begun(before.start("/events").await).await;
        let ended = terminator.terminate();
        // One that comes meanwhile, as well.
        let mut meanwhile = h2_connect(target).await;
        let mut more = begun(meanwhile.start("/events").await).await;
        let told = [0, 1].map(|n| tokio::spawn(known.get(n).draining()));
        let goes_on = Duration::from_millis(300);
        for events in [&mut events, &mut more] {
            let ended = tokio::time::timeout(goes_on, events.data()).await;
            assert!(ended.is_err(), "{front:?}: {ended:?}");
        }
        assert!(told.iter().all(|told| !told.is_finished()), "{front:?}");
        assert_eq!(terminator.phase(), Phase::LameDuck, "{front:?}");
        for events in [&mut events, &mut more] {
            within(SOON, "the end of a stream", ended_well(events)).await;
        }
        for told in told {
            within(SOON, "told", told).await.expect("no panic");
        }
        let report = within(SOON, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        assert!(report.lame_duck >= lame_duck, "{front:?}: {report}");
        let _ = (before.closed().await, meanwhile.closed().await);
    });
}

/// Whoever ends one connection means it, also one that a lame duck has told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_g21_a_stream_ends_with_its_connection_in_the_lame_duck() {
    each(FrontEnd::seeing(), async |front| {
        let builder = Terminator::builder().grace_period(SOON);
        let terminator = builder.lame_duck(SOON * 6).build();
        let (target, known) = start_known(front, &terminator, routes(&terminator)).await;
        let mut client = h2_connect(target).await;
        let mut events = begun(client.start("/events").await).await;
        drop(terminator.terminate());
        let told = tokio::spawn(known.get(0).draining());
        let goes_on = Duration::from_millis(100);
        let ended = tokio::time::timeout(goes_on, events.data()).await;
        assert!(ended.is_err(), "{front:?}: {ended:?}");
        known.get(0).terminate();
        within(SOON, "told", told).await.expect("no panic");
        within(SOON, "the end of the stream", ended_well(&mut events)).await;
        let _ = client.closed().await;
        assert_eq!(terminator.phase(), Phase::LameDuck, "{front:?}");
        drop(terminator.force());
    });
}

/// It is told by the terminator where requests have no connection in their extensions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_sse_of_others_ends_without_the_extension() {
    each(FrontEnd::all_and_tls(), async |front| {
        let terminator = terminator(SOON * 6);
        let server = start(front, &terminator, routes(&terminator)).await;
        let client = server.connect();
        let mut client = blocking(move || watching(client)).await;
        let begin = Instant::now();
        let ended = terminator.terminate();
        blocking(move || {
            assert_eq!(client.read_chunk(), None, "{front:?}");
            client.expect_eof();
        })
        .await;
        assert_ended_at_once(begin, &within(SOON, "the end", ended).await, front);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_stream_that_always_has_a_next_frame_ends() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = terminator(SOON * 6);
        let (target, _) = start_known(front, &terminator, routes(&terminator)).await;
        let h2 = h2_connect(target.clone()).await;
        let gate = Gate::new();
        let over_h2 = {
            let gate = gate.clone();
            async move {
                let (_, mut body) = within(BOUND, "a head", h2.start("/flood").await)
                    .await
                    .expect("answered")
                    .into_parts();
                let mut read = 0;
                while let Some(data) = within(BOUND, "data", body.data()).await {
                    let data = data.unwrap_or_else(|e| panic!("{front:?}: {e}"));
                    let room = body.flow_control().release_capacity(data.len());
                    room.expect("it was taken");
                    if read == 0 {
                        gate.enter().await;
                    }
                    read += data.len();
                }
                drop(h2);
                read
            }
        };
        let over_h2 = tokio::spawn(over_h2);
        let gate_too = gate.clone();
        let over_h1 = tokio::spawn(blocking(move || {
            let mut client = RawClient::connect(target);
            client.get("/flood");
            client.read_response_headers();
            let mut read = client.read_chunk().expect("a first one").len();
            gate_too.enter_blocking();
            while let Some(chunk) = client.read_chunk() {
                read += chunk.len();
            }
            client.expect_eof();
            read
        }));
        gate.wait_entered_async(2).await;
        let ended = terminator.terminate();
        terminator.reached(Phase::Draining).await;
        gate.open();
        let read = within(SOON, "the end of both", async {
            (over_h1.await.expect("ends"), over_h2.await.expect("ends"))
        })
        .await;
        // Frames are whole.
        assert_eq!((read.0 % FLOOD, read.1 % FLOOD), (0, 0), "{front:?}");
        let report = within(SOON, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// Whether the body says it or the handler.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_g17_what_has_a_length_is_delivered_whole_to_a_slow_reader() {
    each(FrontEnd::seeing(), async |front| {
        for path in ["/big", "/long"] {
            let terminator = terminator(SOON * 6);
            let (target, _) = start_known(front, &terminator, routes(&terminator)).await;
            let (mut client, mut body) = blocking(move || {
                let mut client = RawClient::connect(target);
                client.get(path);
                let head = client.read_response_headers();
                let length = head.header("content-length").map(str::to_owned);
                assert_eq!(length, Some(BIG.to_string()), "{front:?}: {path}");
                let body = client.read_exact(BIG / 4);
                (client, body)
            })
            .await;
            let ended = terminator.terminate();
            terminator.reached(Phase::Draining).await;
            blocking(move || {
                body.extend(client.read_exact(BIG - body.len()));
                assert_big(&body);
            })
            .await;
            let report = within(SOON, "the end", ended).await;
            assert!(report.is_clean(), "{front:?}: {path}: {report}");
        }
    });
}

// ===== one connection =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_g21_streams_end_with_a_connection_that_is_too_old() {
    each(FrontEnd::seeing(), async |front| {
        for by_age in [true, false] {
            let builder = Terminator::builder().grace_period(SOON * 6);
            let age = by_age.then_some(Duration::from_millis(100));
            let terminator = builder.max_connection_age(age).build();
            let (target, known) = start_known(front, &terminator, routes(&terminator)).await;
            let h2 = h2_connect(target.clone()).await;
            let mut events = begun(h2.start("/events").await).await;
            let mut client = blocking(move || watching(RawClient::connect(target))).await;
            if !by_age {
                (0..2).for_each(|n| known.get(n).terminate());
            }
            blocking(move || {
                assert_eq!(client.read_chunk(), None, "{front:?}");
                client.expect_eof();
            })
            .await;
            within(SOON, "the end of the stream", ended_well(&mut events)).await;
            assert_eq!(terminator.phase(), Phase::Serving);
            let report = within(SOON, "the end", terminator.terminate()).await;
            assert!(report.is_clean(), "{front:?}: {report}");
        }
    });
}

// ===== tonic-health =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_watch_of_tonic_health_ends_with_a_status() {
    each(Grpc::ALL, async |front| {
        let it = Served::new(front, SOON * 6).await;
        let mut watched = it.watch().await;
        let begin = Instant::now();
        let ended = it.terminator.terminate();
        let end = within(SOON, "the end of the stream", watched.message()).await;
        assert_unavailable(&end.expect_err("a status"), front);
        let report = within(SOON, "the end", ended).await;
        assert_ended_at_once(begin, &report, front);
    });
}

/// What the layer is for: without it the same stream holds the drain until the deadline, and is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g11_without_the_layer_a_watch_lasts_until_the_deadline() {
    let grace = Duration::from_millis(400);
    each([Grpc::Bare, Grpc::BareTonic], async |front| {
        let it = Served::new(front, grace).await;
        let mut watched = it.watch().await;
        let begin = Instant::now();
        let report = within(SOON, "the end", it.terminator.terminate()).await;
        let took = begin.elapsed();
        assert!(
            took >= grace.saturating_sub(Duration::from_millis(5)),
            "{took:?}"
        );
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        let end = within(SOON, "the end of the stream", watched.message()).await;
        let status = end.expect_err("it was cut");
        assert_ne!(status.message(), GOODBYE, "{front:?}");
    });
}

/// Their heads are made in the drain, so that their bodies are told from the first poll on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_g9_g17_calls_with_one_answer_keep_it_and_their_status() {
    each(Grpc::ALL, async |front| {
        let it = Served::new(front, SOON * 6).await;
        let calls = ["", "nobody"].map(|name| {
            let mut client = HealthClient::new(it.channel.clone());
            tokio::spawn(async move { client.check(request(name)).await })
        });
        it.gate.wait_entered_async(2).await;
        let ended = it.terminator.terminate();
        it.terminator.reached(Phase::Draining).await;
        it.gate.open();
        let [known, unknown] = calls;
        let answer = within(SOON, "an answer", known).await.expect("no panic");
        let answer = answer.unwrap_or_else(|e| panic!("{front:?}: {e:?}"));
        assert_eq!(
            answer.into_inner().status,
            ServingStatus::Serving as i32,
            "{front:?}"
        );
        let answer = within(SOON, "an answer", unknown).await.expect("no panic");
        let status = answer.expect_err("nobody knows it");
        assert_eq!(status.code(), Code::NotFound, "{front:?}: {status:?}");
        let report = within(SOON, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// As of reflection: the client has said nothing yet, and could.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_stream_in_both_directions_ends_with_a_status() {
    each(Grpc::ALL, async |front| {
        let it = Served::new(front, SOON * 6).await;
        let mut client = tonic::client::Grpc::new(it.channel.clone());
        client.ready().await.expect("connected");
        let silence = tonic::Request::new(stream::pending::<Bytes>());
        let path = PathAndQuery::from_static("/test.Talk/Talk");
        let talk = client.streaming(silence, path, Raw);
        let talk = within(SOON, "a head", talk).await.expect("accepted");
        let begin = Instant::now();
        let ended = it.terminator.terminate();
        let end = within(SOON, "the end of the stream", talk.into_inner().message()).await;
        assert_unavailable(&end.expect_err("a status"), front);
        let report = within(SOON, "the end", ended).await;
        assert_ended_at_once(begin, &report, front);
    });
}

// ===== servers =====

fn terminator(grace: Duration) -> Terminator {
    let builder = Terminator::builder().grace_period(grace);
    builder.stall_timeout(STALL).build()
}

/// Those of somebody else, under the layer.
fn routes(terminator: &Terminator) -> Router {
    Router::new()
        .route("/events", get(events))
        .route("/flood", get(flood))
        .route("/big", get(async || big()))
        .route("/long", get(long))
        .route_layer(terminator.end_streams())
}

async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let first = stream::iter([Ok(Event::default().data("0"))]);
    Sse::new(first.chain(stream::pending()))
}

const FLOOD: usize = 16 * 1024;

/// Never pending.
async fn flood() -> Body {
    let piece = Bytes::from_static(&[b'a'; FLOOD]);
    Body::from_stream(stream::repeat(Ok::<_, Infallible>(piece)))
}

/// Has its length in its head alone.
async fn long() -> Response {
    let pieces = stream::unfold(big(), |mut rest| async move {
        let piece = rest.split_to(FLOOD.min(rest.len()));
        (!piece.is_empty()).then_some((Ok::<_, Infallible>(piece), rest))
    });
    let body = Body::from_stream(pieces);
    ([(CONTENT_LENGTH, BIG)], body).into_response()
}

/// A client that has seen the first event.
fn watching(mut client: RawClient) -> RawClient {
    client.get("/events");
    client.read_response_headers();
    assert_eq!(client.read_chunk().as_deref(), Some(&b"data: 0\n\n"[..]));
    client
}

/// The same over HTTP/2.
async fn begun(response: h2::client::ResponseFuture) -> h2::RecvStream {
    let response = within(BOUND, "a head", response).await.expect("answered");
    let mut events = response.into_body();
    let first = within(BOUND, "an event", events.data()).await;
    assert_eq!(first.expect("one").expect("no error"), "data: 0\n\n");
    events
}

/// With `END_STREAM`, and nothing more before it; a reset would be an error.
async fn ended_well(events: &mut h2::RecvStream) {
    while let Some(data) = events.data().await {
        assert_eq!(data.expect("no reset"), "");
    }
    assert!(events.is_end_stream());
    assert_eq!(events.trailers().await.expect("no reset"), None);
}

#[track_caller]
fn assert_ended_at_once(begin: Instant, report: &Report, front: impl std::fmt::Debug) {
    measured(begin.elapsed(), AT_ONCE, &format!("{front:?}: the end"));
    assert!(report.is_clean(), "{front:?}: {report}");
    assert_eq!(report.connections(), 1, "{front:?}: {report}");
}

// ===== gRPC =====

const GOODBYE: &str = "the server ends this connection";

/// Ways to serve tonic's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grpc {
    /// All routes under the layer, through `Terminator::serve`.
    Routes,
    /// One service under it.
    Named,
    /// Told by the connection.
    Extension,
    /// tonic's own server, all under it.
    Tonic,
    /// Without the layer.
    Bare,
    BareTonic,
}

impl Grpc {
    const ALL: [Self; 4] = [Self::Routes, Self::Named, Self::Extension, Self::Tonic];
}

struct Served {
    terminator: Terminator,
    /// For calls of `Check`.
    gate: Gate,
    channel: Channel,
    _reporter: HealthReporter,
}

impl Served {
    async fn new(front: Grpc, grace: Duration) -> Self {
        let terminator = terminator(grace);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let gate = Gate::new();
        let (reporter, health) = tonic_health::server::health_reporter();
        spawn(front, &terminator, listener, &gate, health);
        Self {
            terminator,
            gate,
            channel: connect(addr).await,
            _reporter: reporter,
        }
    }

    /// A stream that has begun.
    async fn watch(&self) -> tonic::Streaming<tonic_health::pb::HealthCheckResponse> {
        let mut client = HealthClient::new(self.channel.clone());
        let watched = within(BOUND, "a head", client.watch(request(""))).await;
        let mut watched = watched.expect("accepted").into_inner();
        let first = within(BOUND, "a message", watched.message()).await;
        let first = first.expect("no error").expect("one");
        assert_eq!(first.status, ServingStatus::Serving as i32);
        watched
    }
}

fn spawn(
    front: Grpc,
    terminator: &Terminator,
    listener: TcpListener,
    gate: &Gate,
    health: HealthServer<impl Health>,
) {
    let layer = terminator.end_streams();
    let all = Routes::new(health.clone()).prepare().into_axum_router();
    let all = gated(all.route("/test.Talk/Talk", any(talk)), gate);
    match front {
        Grpc::Routes => {
            tokio::spawn(terminator.serve(listener, all.layer(layer)));
        }
        Grpc::Extension => {
            let serve = terminator.serve(listener, all.layer(layer));
            tokio::spawn(serve.connection_in_extensions());
        }
        Grpc::Named => {
            let one = Routes::new(layer.named_layer(health)).prepare();
            let talk = any(talk).layer(layer);
            let one = one.into_axum_router().route("/test.Talk/Talk", talk);
            tokio::spawn(terminator.serve(listener, gated(one, gate)));
        }
        Grpc::Tonic => {
            let served = tonic::transport::Server::builder()
                .layer(layer)
                .add_routes(all.into())
                .serve_with_incoming_shutdown(terminator.listen(listener), pending());
            tokio::spawn(async move { served.await.expect("it serves") });
        }
        Grpc::Bare => {
            tokio::spawn(terminator.serve(listener, all));
        }
        Grpc::BareTonic => {
            let served = tonic::transport::Server::builder()
                .add_routes(all.into())
                .serve_with_incoming_shutdown(terminator.listen(listener), pending());
            tokio::spawn(async move { served.await.expect("it serves") });
        }
    }
}

/// `Check` waits before its handler is called.
fn gated(router: Router, gate: &Gate) -> Router {
    let gate = gate.clone();
    router.layer(middleware::from_fn(
        move |request: axum::extract::Request, next: Next| {
            let gate = gate.clone();
            async move {
                if request.uri().path().ends_with("/Check") {
                    gate.enter().await;
                }
                next.run(request).await
            }
        },
    ))
}

/// Waits for what its client says.
async fn talk(body: Body) -> Response {
    let answers = body.into_data_stream();
    let grpc = [(CONTENT_TYPE, "application/grpc+raw")];
    (grpc, Body::from_stream(answers)).into_response()
}

fn request(name: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: name.to_owned(),
    }
}

async fn connect(addr: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("a URI");
    let connected = within(BOUND, "a channel", endpoint.connect()).await;
    connected.expect("connects")
}

/// It came in trailers: nothing has failed.
#[track_caller]
fn assert_unavailable(status: &Status, front: Grpc) {
    assert_eq!(status.code(), Code::Unavailable, "{front:?}: {status:?}");
    assert_eq!(status.message(), GOODBYE, "{front:?}: {status:?}");
    assert!(status.source().is_none(), "{front:?}: {status:?}");
}

/// A message is its bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
