//! gRPC with tonic: its routes through `Terminator::serve`, and its own server on a tracked listener
//! (G5, G9, G11, G13, G14, G20). The service is written by hand, over strings instead of protobuf.

#![cfg(all(unix, feature = "tonic", feature = "serve"))]

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use futures_util::stream::{self, Stream, StreamExt};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tower::Service;

use crate::support::outside::{self, LATE, measured, promised};
use crate::support::wait::{bind_again, until_async};
use crate::support::{ABANDONED, BOUND, Gate, RawH2, blocking, kind, load, open_fds_to, within};
use http_terminator::{Phase, Protocol, Report, Terminator, TerminatorBuilder};

/// What ends by itself ends long before any deadline.
const SOON: Duration = Duration::from_millis(1500);

const STALL: Duration = Duration::from_millis(150);

/// Held for writing by the test that keeps the processors busy, for reading by those that measure:
/// they mostly wait, and may do so side by side.
static LOAD: RwLock<()> = RwLock::const_new(());

// ===== calls in flight =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_g9_a_unary_call_in_flight_completes() {
    let _measuring = LOAD.read().await;
    for front in Front::ALL {
        let it = Setup::new(front, Duration::from_secs(30)).await;
        let mut client = it.client().await;
        assert_eq!(client.call("quick").await.expect("answered"), "quick");
        let calls: Vec<_> = (0..8)
            .map(|n| {
                let mut client = client.clone();
                tokio::spawn(async move { client.call(&format!("slow {n}")).await })
            })
            .collect();
        it.echo.gate.wait_entered_async(8).await;
        let mut ended = it.terminator.terminate();
        it.terminator.reached(Phase::Draining).await;
        let early = tokio::time::timeout(STALL * 2, &mut ended).await;
        assert!(early.is_err(), "{front:?}: not waited for: {early:?}");
        it.echo.gate.open();
        for (n, call) in calls.into_iter().enumerate() {
            let answer = within(SOON, "an answer", call).await.expect("no panic");
            let answer = answer.unwrap_or_else(|e| panic!("{front:?}: call {n}: {e}"));
            assert_eq!(answer, format!("slow {n}"), "{front:?}");
        }
        let report = within(SOON, "the end", ended).await;
        assert_one_clean(front, &report);
        it.assert_over().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_g9_a_server_stream_in_flight_completes() {
    let _measuring = LOAD.read().await;
    for front in Front::ALL {
        let it = Setup::new(front, Duration::from_secs(30)).await;
        let mut client = it.client().await;
        let mut answers = client.stream("a word").await.expect("accepted");
        assert_eq!(next(&mut answers).await.as_deref(), Some("first a word"));
        it.echo.gate.wait_entered_async(1).await;
        let mut ended = it.terminator.terminate();
        it.terminator.reached(Phase::Draining).await;
        let early = tokio::time::timeout(STALL * 2, &mut ended).await;
        assert!(early.is_err(), "{front:?}: not waited for: {early:?}");
        it.echo.gate.open();
        assert_eq!(next(&mut answers).await.as_deref(), Some("last a word"));
        // The end is a trailer with `grpc-status: 0`; anything else would be an error.
        assert_eq!(next(&mut answers).await, None, "{front:?}");
        let trailers = answers.trailers().await.expect("no error");
        assert!(trailers.is_some(), "{front:?}: no trailers");
        let report = within(SOON, "the end", ended).await;
        assert_one_clean(front, &report);
        it.assert_over().await;
    }
}

/// A stream that would never end ends when the drain begins, with its status.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_server_stream_without_end_is_told() {
    let _measuring = LOAD.read().await;
    for front in Front::ALL {
        let it = Setup::new(front, Duration::from_secs(30)).await;
        let mut client = it.client().await;
        let mut answers = client.stream("until draining").await.expect("accepted");
        assert_eq!(
            next(&mut answers).await.as_deref(),
            Some("first until draining")
        );
        let ended = it.terminator.terminate();
        assert_eq!(next(&mut answers).await, None, "{front:?}");
        let report = within(SOON, "the end", ended).await;
        assert_one_clean(front, &report);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_an_idle_channel_is_told_and_ends_at_once() {
    let _measuring = LOAD.read().await;
    for front in Front::ALL {
        // So that neither the stall timeout nor the deadline is what ends it.
        let it = Setup::patient(front).await;
        let mut client = it.client().await;
        assert_eq!(client.call("quick").await.expect("answered"), "quick");
        let begin = Instant::now();
        let report = within(BOUND, "the end", it.terminator.terminate()).await;
        measured(
            begin.elapsed(),
            outside::SOON,
            &format!("{front:?}: the end"),
        );
        assert_one_clean(front, &report);
        it.assert_over().await;
        // Nobody is there any more, and the client is told so, which may not have seen the end yet.
        let error = client.call("quick").await.expect_err("nobody listens");
        let gone = matches!(error.code(), Code::Unavailable | Code::Cancelled);
        assert!(gone, "{front:?}: {error:?}");
    }
}

// ===== the deadline =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g11_calls_that_never_end_are_cut_at_the_deadline() {
    let _measuring = LOAD.read().await;
    let grace = Duration::from_millis(400);
    for front in Front::ALL {
        let it = Setup::new(front, grace).await;
        let mut client = it.client().await;
        let mut answers = client.stream("a word").await.expect("accepted");
        assert_eq!(next(&mut answers).await.as_deref(), Some("first a word"));
        let pending = tokio::spawn(async move { client.call("slow").await });
        it.echo.gate.wait_entered_async(2).await;
        let begin = Instant::now();
        let report = within(BOUND, "the end", it.terminator.terminate()).await;
        assert_at(begin.elapsed(), grace, front, &report);
        assert_eq!(open_fds_to(it.addr.port()), 0, "{front:?}");
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        assert!(!report.is_clean(), "{front:?}: {report}");
        let error = within(SOON, "an error", pending).await.expect("no panic");
        error.expect_err("it was never answered");
        let cut = within(SOON, "the stream's end", answers.message()).await;
        cut.expect_err("it was cut");
        let mut named: Vec<_> = report
            .stragglers
            .iter()
            .filter_map(|it| it.path.as_deref())
            .collect();
        named.sort_unstable();
        match front {
            Front::Serve => {
                assert_eq!(
                    named,
                    ["/test.Echo/Stream", "/test.Echo/Unary"],
                    "{front:?}: {report}"
                );
                assert!(
                    report
                        .stragglers
                        .iter()
                        .all(|it| it.protocol == Protocol::Http2),
                    "{front:?}: {report}"
                );
            }
            // Its docs: the report can't name requests.
            Front::Tonic | Front::TonicByStream => assert!(named.is_empty(), "{front:?}: {report}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_force_cuts_calls_at_once() {
    let _measuring = LOAD.read().await;
    for front in Front::ALL {
        let it = Setup::new(front, Duration::from_secs(30)).await;
        let mut client = it.client().await;
        let pending = tokio::spawn(async move { client.call("slow").await });
        it.echo.gate.wait_entered_async(1).await;
        let begin = Instant::now();
        let report = within(BOUND, "the end", it.terminator.force()).await;
        measured(begin.elapsed(), LATE, &format!("{front:?}: force"));
        promised(&report, Duration::ZERO);
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        let error = within(SOON, "an error", pending).await.expect("no panic");
        error.expect_err("it was never answered");
    }
}

/// The PING that follows the GOAWAY is never acknowledged. What the docs promise: `serve` closes such
/// a peer after the stall timeout, tonic's own server leaves it to the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_g9_a_silent_peer_is_bounded() {
    let _measuring = LOAD.read().await;
    let grace = Duration::from_millis(900);
    for front in Front::ALL {
        let it = Setup::new(front, grace).await;
        let mut silent = RawH2::connect(it.addr);
        let silent = blocking(move || {
            silent.read_until(kind::SETTINGS);
            silent.ack_settings();
            silent
        })
        .await;
        let begin = Instant::now();
        let ended = it.terminator.terminate();
        let took = blocking(move || {
            let mut silent = silent;
            silent.expect_eof_within(BOUND);
            begin.elapsed()
        })
        .await;
        let report = within(BOUND, "the end", ended).await;
        match front {
            Front::Serve => {
                assert!(took >= STALL && took < grace / 2, "{took:?}");
                assert_eq!(report.stalled, 1, "{report}");
                assert!(report.is_clean(), "{report}");
            }
            Front::Tonic | Front::TonicByStream => {
                assert_at(took, grace, front, &report);
                assert_eq!(report.forced, 1, "{report}");
            }
        }
    }
}

// ===== a new server on the same port =====

/// Clients call in a loop while the server is replaced on its port, several times. No call that a
/// server has seen fails, and of the others the client knows that they were not.
///
/// The channel connects again by itself. In between there is a moment in which nobody listens, so its
/// connector tries again for as long as it is refused: a call that finds no server at all is not a
/// server's to save.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g9_g14_a_rolling_restart_loses_no_call() {
    const ROUNDS: usize = 6;
    const CALLERS: usize = 8;

    let _busy = LOAD.write().await;
    for front in Front::ALL {
        let echo = Echo::new();
        let mut it = Setup::at(front, Duration::from_secs(30), None, echo.clone()).await;
        let client = Client::new(it.channel());
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let callers: Vec<JoinHandle<Vec<(String, Status)>>> = (0..CALLERS)
            .map(|caller| {
                let (mut client, stop) = (client.clone(), Arc::clone(&stop));
                let answered = Arc::clone(&answered);
                tokio::spawn(async move {
                    let mut failed = Vec::new();
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let word = format!("quick {caller} {n}");
                        match within(BOUND, "an answer", client.call(&word)).await {
                            Ok(answer) => {
                                assert_eq!(answer, word);
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(status) => failed.push((word, status)),
                        }
                    }
                    failed
                })
            })
            .collect();
        for round in 0..ROUNDS {
            let before = answered.load(Ordering::Relaxed);
            until_async("200 calls", || {
                answered.load(Ordering::Relaxed) >= before + 200
            })
            .await;
            let ended = it.terminator.terminate();
            // The port is free as soon as the listener is closed, while the old one still drains.
            let next = Setup::at(front, Duration::from_secs(30), Some(it.addr), echo.clone()).await;
            let report = within(SOON, "the end", ended).await;
            // On its signal tonic leaves what is in the accept queue, which the report tells.
            let left = front == Front::Tonic && report.lost_in_queue > 0;
            assert!(report.is_clean() || left, "{front:?}, {round}: {report}");
            it.assert_over().await;
            it = next;
        }
        stop.store(true, Ordering::Relaxed);
        let mut failed: BTreeMap<Failed, usize> = BTreeMap::new();
        for caller in callers {
            for (word, status) in caller.await.expect("no panic") {
                assert!(
                    !echo.has_seen(&word),
                    "{front:?}: a server has seen {word:?}, which failed: {status:?}"
                );
                let why = Failed::why(&status);
                assert!(
                    why != Failed::Lost || front == Front::Tonic,
                    "{front:?}: {word:?} was lost: {status:?}"
                );
                *failed.entry(why).or_default() += 1;
            }
        }
        let report = within(SOON, "the end", it.terminator.terminate()).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        println!(
            "{front:?}: {} answered, failed: {failed:?}",
            answered.load(Ordering::Relaxed),
        );
        // Each caller has one call in hand.
        let total: usize = failed.values().sum();
        assert!(
            total <= 2 * ROUNDS * CALLERS,
            "{front:?}: {total} of {ROUNDS} x {CALLERS}: {failed:?}"
        );
    }
}

/// Why a call failed that no server has seen. tonic's channel tries none of these again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Failed {
    /// It still was in the client's own queue when its connection ended: hyper's "a pending item was
    /// dropped before ever being processed".
    NotSent,
    /// The client's h2 gave it up because of a GOAWAY: one came between the call's being taken and its
    /// stream's being opened; or, where `Terminator::serve` is not in between, its head came behind
    /// the acknowledged PING (tests/http/http2.rs has that at the level of frames).
    Refused,
    /// Its connection was reset or ended without a GOAWAY. tonic's server, when it is told by
    /// `draining()`, stops accepting with connections in the queue, and ends those that have not sent
    /// their preface yet.
    Lost,
}

impl Failed {
    fn why(status: &Status) -> Self {
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<hyper::Error>() {
                if error.is_canceled() {
                    return Self::NotSent;
                }
            }
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                let refused =
                    error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
                let told = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
                if error.is_remote() && (refused || told) {
                    return Self::Refused;
                }
            }
            cause = error.source();
        }
        Self::Lost
    }
}

/// Every server ends with a call in flight; when that is answered and its connection over, the channel
/// goes on with the next server. No call fails.
///
/// A call made *before* the connection is over is the client's to save: hyper's HTTP/2 client does not
/// look at the GOAWAY until it takes the next call from its queue, which it then cancels
/// (anthropics/connect-rust#285). hyper-util's pooled client sends such a call again, tonic's does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_a_channel_goes_on_elsewhere_without_a_failed_call() {
    let _measuring = LOAD.read().await;
    for front in Front::ALL {
        let mut it = Setup::new(front, Duration::from_secs(30)).await;
        let connections = Terminator::new();
        let mut client = Client::new(it.tracked_channel(&connections));
        let unconnected = connections.stats().guards;
        for round in 0..10 {
            let mut caller = client.clone();
            let call = tokio::spawn(async move { caller.call("slow").await });
            it.echo.gate.wait_entered_async(1).await;
            assert!(connections.stats().guards > unconnected, "tasks");
            let ended = it.terminator.terminate();
            let grace = Duration::from_secs(30);
            let next = Setup::at(front, grace, Some(it.addr), Echo::new()).await;
            it.echo.gate.open();
            let answer = within(SOON, "the answer in flight", call).await;
            let answer = answer.expect("no panic");
            assert_eq!(answer.expect("answered"), "slow", "{front:?}, {round}");
            assert_one_clean(front, &within(SOON, "the end", ended).await);
            let seen = async {
                // Its tasks as well: the one that takes calls ends after the one that has the socket.
                let stats = || connections.stats();
                while stats().connections > 0 || stats().guards > unconnected {
                    tokio::task::yield_now().await;
                }
            };
            within(SOON, "the client's end", seen).await;
            let answer = within(SOON, "the next answer", client.call("quick")).await;
            assert_eq!(answer.expect("answered"), "quick", "{front:?}, {round}");
            it = next;
        }
        assert_eq!(connections.stats().accepted, 11, "{front:?}");
    }
}

/// At once; but with tonic's server that is told by `draining()`, in every other case only when the
/// terminator closes the listener that nobody polls any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g14_the_port_is_free_while_calls_are_in_flight() {
    let _measuring = LOAD.read().await;
    for front in Front::ALL {
        let mut took = Vec::new();
        for _ in 0..5 {
            took.push(rebound_after(front).await);
        }
        println!("{front:?}: bound after {took:?}");
        took.sort_unstable();
        let bound = match front {
            Front::Tonic => ABANDONED + LATE,
            _ => LATE,
        };
        assert!(took[2] < bound, "{front:?}: {took:?}");
    }
}

async fn rebound_after(front: Front) -> Duration {
    let old = Setup::new(front, Duration::from_secs(30)).await;
    let mut client = old.client().await;
    let call = tokio::spawn(async move { client.call("slow").await });
    old.echo.gate.wait_entered_async(1).await;
    let ended = old.terminator.terminate();
    let begin = Instant::now();
    let new = Setup::at(front, Duration::from_secs(30), Some(old.addr), Echo::new()).await;
    let took = begin.elapsed();
    assert_eq!(old.terminator.phase(), Phase::Draining, "{front:?}");
    let mut client = new.client().await;
    assert_eq!(client.call("quick").await.expect("the new one"), "quick");
    old.echo.gate.open();
    let answer = within(SOON, "the old one's answer", call).await;
    assert_eq!(answer.expect("no panic").expect("answered"), "slow");
    assert_one_clean(front, &within(SOON, "the end", ended).await);
    let ended = new.terminator.terminate();
    assert_one_clean(front, &within(SOON, "the end", ended).await);
    took
}

// ===== what tonic knows of a connection =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_tonic_knows_the_peer_of_a_tracked_io() {
    let _measuring = LOAD.read().await;
    let it = Setup::new(Front::Tonic, Duration::from_secs(30)).await;
    let mut client = it.client().await;
    let answer = client.call("who").await.expect("answered");
    let peer: SocketAddr = answer.parse().unwrap_or_else(|_| panic!("{answer:?}"));
    assert!(peer.ip().is_loopback() && peer != it.addr, "{peer}");
}

/// tonic asks as soon as it is given a connection, which may be when the terminator has long ended; a
/// panic there would be the whole server's.
#[tokio::test]
async fn g16_tonic_may_ask_whose_a_connection_is_that_came_too_late() {
    for when in [When::ComesAfterTheEnd, When::IsCutMeanwhile] {
        let (mut client, socket) = pair().await;
        let peer = client.local_addr().expect("bound");
        let terminator = Terminator::new();
        let io = if when == When::IsCutMeanwhile {
            let io = terminator.track(socket);
            within(SOON, "the end", terminator.force()).await;
            io
        } else {
            within(SOON, "the end", terminator.terminate()).await;
            terminator.track(socket)
        };
        assert_eq!(terminator.stats().connections, 0, "{when:?}");
        let mut bytes = [0; 8];
        let end = within(SOON, "the client's end", client.read(&mut bytes)).await;
        assert_eq!(end.unwrap_or(0), 0, "{when:?}: it ends while it is held");
        assert_eq!(io.connect_info().remote_addr(), Some(peer), "{when:?}");
        assert!(io.into_inner().is_none(), "{when:?}");
    }
}

/// The same through a server that is given a connection after the end, and goes on.
#[tokio::test]
async fn g19_tonics_server_outlives_a_connection_that_comes_after_the_end() {
    let terminator = Terminator::new();
    within(SOON, "the end", terminator.terminate()).await;
    let (mut late, socket) = pair().await;
    let (mut untracked, other) = pair().await;
    let incoming = stream::iter([terminator.track(socket), Terminator::new().track(other)])
        .map(Ok::<_, Infallible>)
        .chain(stream::pending());
    let service = EchoService {
        echo: Echo::new(),
        terminator,
    };
    let server = tonic::transport::Server::builder().add_service(service);
    let server = tokio::spawn(server.serve_with_incoming_shutdown(incoming, pending()));
    let mut bytes = [0; 8];
    let end = within(SOON, "the late one's end", late.read(&mut bytes)).await;
    assert_eq!(end.unwrap_or(0), 0);
    // It speaks first, to anybody.
    let spoken = within(SOON, "SETTINGS", untracked.read(&mut bytes)).await;
    assert!(spoken.expect("served") > 0);
    assert!(!server.is_finished(), "the server has ended");
    server.abort();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    ComesAfterTheEnd,
    IsCutMeanwhile,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (client.expect("connected"), accepted.expect("accepted").0)
}

// ===== servers =====

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    /// tonic's routes, through `Terminator::serve`.
    Serve,
    /// tonic's own server on a tracked listener, told by `draining()`.
    Tonic,
    /// The same, told by the end of the stream of connections.
    TonicByStream,
}

impl Front {
    const ALL: [Self; 3] = [Self::Serve, Self::Tonic, Self::TonicByStream];
}

struct Setup {
    terminator: Terminator,
    echo: Echo,
    addr: SocketAddr,
    server: JoinHandle<()>,
}

impl Setup {
    async fn new(front: Front, grace: Duration) -> Self {
        Self::at(front, grace, None, Echo::new()).await
    }

    /// Nothing is ended but by itself.
    async fn patient(front: Front) -> Self {
        let builder = Terminator::builder().grace_period(BOUND * 3);
        Self::built(front, builder.stall_timeout(BOUND), None, Echo::new()).await
    }

    /// On this address, once it is free.
    async fn at(front: Front, grace: Duration, addr: Option<SocketAddr>, echo: Echo) -> Self {
        let builder = Terminator::builder().grace_period(grace);
        Self::built(front, builder.stall_timeout(STALL), addr, echo).await
    }

    async fn built(
        front: Front,
        builder: TerminatorBuilder,
        addr: Option<SocketAddr>,
        echo: Echo,
    ) -> Self {
        load::watch_load();
        let terminator = builder.build();
        let listener = bind_again(addr.unwrap_or_else(|| ([127, 0, 0, 1], 0).into())).await;
        let addr = listener.local_addr().expect("bound");
        // As `serve` does for its connections; on Linux they inherit it from the listener.
        let nodelay = SockRef::from(&listener).set_tcp_nodelay(true);
        nodelay.expect("a TCP listener takes TCP options");
        let service = EchoService {
            echo: echo.clone(),
            terminator: terminator.clone(),
        };
        let server = match front {
            Front::Serve => {
                let served = terminator.serve(listener, Routes::new(service).prepare());
                tokio::spawn(async move { drop(served.await) })
            }
            Front::Tonic => {
                let served = tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming_shutdown(
                        terminator.listen(listener),
                        terminator.draining(),
                    );
                tokio::spawn(async move { served.await.expect("it serves") })
            }
            Front::TonicByStream => {
                // It must have a signal, or it does not tell its connections.
                let served = tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming_shutdown(terminator.listen(listener), pending());
                tokio::spawn(async move { served.await.expect("it serves") })
            }
        };
        Self {
            terminator,
            echo,
            addr,
            server,
        }
    }

    /// Connected.
    async fn client(&self) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.addr)).expect("a URI");
        let connected = within(BOUND, "a channel", endpoint.connect()).await;
        Client::new(connected.expect("connects"))
    }

    /// Connects when it is used, again and again, and waits where nobody listens.
    fn channel(&self) -> Channel {
        self.tracked_channel(&Terminator::new())
    }

    /// The same, and its connections can be counted, and its tasks.
    fn tracked_channel(&self, connections: &Terminator) -> Channel {
        let addr = self.addr;
        let tasks = Tasks(connections.clone());
        let connections = connections.clone();
        let connector = tower::service_fn(move |_| {
            let connections = connections.clone();
            async move {
                loop {
                    match TcpStream::connect(addr).await {
                        Ok(io) => {
                            io.set_nodelay(true)?;
                            let io = TokioIo::new(connections.track(io));
                            return Ok::<_, std::io::Error>(io);
                        }
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
            }
        });
        Endpoint::from_shared(format!("http://{addr}"))
            .expect("a URI")
            .executor(tasks)
            .connect_with_connector_lazy(connector)
    }

    /// The front end's own future has ended too.
    async fn assert_over(self) {
        within(SOON, "the server's task", self.server)
            .await
            .expect("no panic");
    }
}

/// Where a channel's tasks are counted.
#[derive(Clone)]
struct Tasks(Terminator);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        drop(self.0.spawn(task));
    }
}

/// `serve` knows that it has told the connection to go away. For tonic's own server it is somebody
/// else's, and counts as ended by the connection itself.
#[track_caller]
fn assert_one_clean(front: Front, report: &Report) {
    assert!(report.is_clean(), "{front:?}: {report}");
    assert_eq!(report.connections(), 1, "{front:?}: {report}");
    if front == Front::Serve {
        assert_eq!(report.finished, 1, "{front:?}: {report}");
    }
}

#[track_caller]
fn assert_at(took: Duration, grace: Duration, front: Front, report: &Report) {
    let early = grace.saturating_sub(Duration::from_millis(5));
    assert!(
        took >= early,
        "{front:?}: before the deadline: {took:?}: {report:?}"
    );
    promised(report, grace);
    measured(
        took.saturating_sub(grace),
        LATE,
        &format!("{front:?}: after the deadline"),
    );
}

// ===== the service =====

/// What all servers of a test share.
#[derive(Clone)]
struct Echo {
    gate: Gate,
    seen: Arc<Mutex<HashSet<String>>>,
}

impl Echo {
    fn new() -> Self {
        Self {
            gate: Gate::new(),
            seen: Arc::default(),
        }
    }

    fn has_seen(&self, word: &str) -> bool {
        self.seen.lock().expect("not poisoned").contains(word)
    }
}

#[derive(Clone)]
struct EchoService {
    echo: Echo,
    terminator: Terminator,
}

impl NamedService for EchoService {
    const NAME: &'static str = "test.Echo";
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for EchoService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Text);
            Ok(match request.uri().path() {
                "/test.Echo/Unary" => grpc.unary(Unary(service), request).await,
                "/test.Echo/Stream" => grpc.server_streaming(Streams(service), request).await,
                path => Status::unimplemented(path.to_owned()).into_http(),
            })
        })
    }
}

/// Gives its word back; `slow …` waits at the gate.
struct Unary(EchoService);

impl UnaryService<String> for Unary {
    type Response = String;
    type Future = BoxFuture<Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let echo = self.0.echo.clone();
        Box::pin(async move {
            let peer = request.remote_addr();
            let word = request.into_inner();
            echo.seen.lock().expect("not poisoned").insert(word.clone());
            if word == "who" {
                return Ok(Response::new(format!("{}", peer.expect("TCP"))));
            }
            if word.starts_with("slow") {
                echo.gate.enter().await;
            }
            Ok(Response::new(word))
        })
    }
}

/// Gives its word twice; between the two is the gate, or the time until the drain.
struct Streams(EchoService);

impl ServerStreamingService<String> for Streams {
    type Response = String;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;
    type Future = BoxFuture<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let EchoService { echo, terminator } = self.0.clone();
        let word = request.into_inner();
        Box::pin(async move {
            let first = stream::iter([Ok(format!("first {word}"))]);
            let answers: Self::ResponseStream = if word == "until draining" {
                Box::pin(
                    first
                        .chain(stream::pending())
                        .take_until(terminator.draining()),
                )
            } else {
                Box::pin(first.chain(stream::once(async move {
                    echo.gate.enter().await;
                    Ok(format!("last {word}"))
                })))
            };
            Ok(Response::new(answers))
        })
    }
}

/// A message is its text.
#[derive(Clone, Copy, Default)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let text = from.copy_to_bytes(from.remaining());
        let text = String::from_utf8(text.to_vec());
        text.map(Some)
            .map_err(|e| Status::invalid_argument(e.to_string()))
    }
}

// ===== the client =====

#[derive(Clone)]
struct Client(tonic::client::Grpc<Channel>);

impl Client {
    fn new(channel: Channel) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }

    async fn call(&mut self, word: &str) -> Result<String, Status> {
        self.ready().await?;
        let path = PathAndQuery::from_static("/test.Echo/Unary");
        let request = Request::new(word.to_owned());
        self.0
            .unary(request, path, Text)
            .await
            .map(Response::into_inner)
    }

    async fn stream(&mut self, word: &str) -> Result<Streaming<String>, Status> {
        self.ready().await?;
        let path = PathAndQuery::from_static("/test.Echo/Stream");
        let request = Request::new(word.to_owned());
        let answers = self.0.server_streaming(request, path, Text).await;
        answers.map(Response::into_inner)
    }

    async fn ready(&mut self) -> Result<(), Status> {
        let ready = self.0.ready().await;
        ready.map_err(|e| Status::unavailable(e.to_string()))
    }
}

async fn next(answers: &mut Streaming<String>) -> Option<String> {
    let answer = within(BOUND, "an answer", answers.message()).await;
    answer.expect("no error")
}
