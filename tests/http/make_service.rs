//! A service that is made for each connection is made as a part of it, under every bound (C6).

#![cfg(all(unix, feature = "serve"))]

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::TcpListener;
use tower::Service;

use http_terminator::{Phase, Report, Terminator, TerminatorBuilder};

use crate::support;
use crate::support::wait::{time_passes_async, until_stats_async};
use crate::support::{
    App, BOUND, FrontEnd, Gate, RawClient, ReadEnd, Target, app, blocking, each, side_by_side,
    within,
};

/// Much less than any bound here, much more than what is to happen at once.
const SOON: Duration = Duration::from_secs(3);

fn patient() -> TerminatorBuilder {
    Terminator::builder().grace_period(BOUND * 3)
}

type Making = Pin<Box<dyn Future<Output = io::Result<Router>> + Send>>;

/// Makes a service as its function says.
#[derive(Clone)]
struct Make(Arc<dyn Fn() -> Making + Send + Sync>);

impl Make {
    fn new<F>(make: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Router>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(make())))
    }

    /// One that waits at the gate.
    fn gated(gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::new(move || {
            let gate = gate.clone();
            async move {
                gate.enter().await;
                Ok(app(App::default()))
            }
        })
    }
}

impl Service<SocketAddr> for Make {
    type Response = Router;
    type Error = io::Error;
    type Future = Making;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: SocketAddr) -> Making {
        (self.0)()
    }
}

fn fronts() -> Vec<FrontEnd> {
    vec![
        FrontEnd::Serve,
        #[cfg(feature = "rustls")]
        FrontEnd::ServeTls,
    ]
}

async fn serve(front: FrontEnd, terminator: &Terminator, make: Make) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let server = terminator.serve_make_service(listener, make);
    #[cfg(feature = "rustls")]
    if front == FrontEnd::ServeTls {
        tokio::spawn(server.tls(support::tls_acceptor(&[])));
        return Target::Tls(addr);
    }
    assert_eq!(front, FrontEnd::Serve);
    tokio::spawn(server);
    Target::Tcp(addr)
}

/// Without a handshake, which would have to wait for the service.
fn bare(target: &Target) -> RawClient {
    match target {
        Target::Tcp(addr) | Target::Tls(addr) => RawClient::connect(*addr),
        Target::Unix(_) => unreachable!("none here"),
    }
}

async fn ended(terminator: &Terminator) -> Report {
    within(BOUND, "the end", terminator.terminate()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_a_silent_connection_whose_service_is_being_made_is_closed_as_idle() {
    each(fronts(), async |front| {
        let gate = Gate::new();
        let terminator = patient().build();
        let target = serve(front, &terminator, Make::gated(&gate)).await;
        let mut client = bare(&target);
        gate.wait_entered_async(1).await;
        let called = Instant::now();
        let report = ended(&terminator).await;
        assert!(called.elapsed() < SOON, "{:?}", called.elapsed());
        assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
        assert_eq!(gate.inside(), 0, "what makes it is gone");
        assert_eq!(blocking(move || client.read_to_end()).await, ReadEnd::Eof);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_a_request_that_waits_for_its_service_is_answered_in_the_drain() {
    each(fronts(), async |front| {
        let gate = Gate::new();
        let while_serving = Duration::from_secs(1);
        let terminator = patient().head_timeout(while_serving).build();
        let target = serve(front, &terminator, Make::gated(&gate)).await;
        let mut client = bare(&target);
        let tls = if let Target::Tls(_) = target {
            let mut tls = support::tls_client(&["http/1.1"]);
            client.send(support::client_hello(&mut tls));
            Some(tls)
        } else {
            client.get("/quick");
            None
        };
        gate.wait_entered_async(1).await;
        let termination = terminator.terminate();
        within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
        // Time is the subject: longer than a silent one is kept, or any while serving.
        time_passes_async(while_serving).await;
        gate.open();
        let response = blocking(move || {
            if let Some(tls) = tls {
                client.shake_hands(tls).expect("a handshake");
                client.get("/quick");
            }
            client.read_response()
        });
        let response = response.await;
        assert_eq!(response.text(), "ok", "{front:?}");
        assert!(response.says_close());
        let report = within(BOUND, "the end", termination).await;
        assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g11_a_service_that_is_never_made_is_cut_at_the_deadline() {
    each(fronts(), async |front| {
        let gate = Gate::new();
        let grace = Duration::from_millis(300);
        let terminator = Terminator::builder().grace_period(grace).build();
        let target = serve(front, &terminator, Make::gated(&gate)).await;
        let mut client = bare(&target);
        client.send("GET /qui");
        gate.wait_entered_async(1).await;
        let report = ended(&terminator).await;
        assert_eq!(gate.inside(), 0, "{front:?}: what makes it is gone");
        assert_eq!((report.forced, report.connections()), (1, 1), "{report}");
        assert_eq!(report.unresponsive, 0, "{report}");
        let end = blocking(move || client.read_to_end()).await;
        assert_ne!(end, ReadEnd::Timeout, "{front:?}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_and_by_force() {
    each(fronts(), async |front| {
        let gate = Gate::new();
        let terminator = patient().build();
        let target = serve(front, &terminator, Make::gated(&gate)).await;
        let clients: Vec<_> = (0..3).map(|_| bare(&target)).collect();
        gate.wait_entered_async(3).await;
        let report = within(SOON, "the end", terminator.force()).await;
        assert_eq!(gate.inside(), 0, "{front:?}");
        assert_eq!((report.forced, report.connections()), (3, 3), "{report}");
        drop(clients);
    });
}

/// The bound that heads and handshakes have. Its clock is tokio's, so half a minute need not pass.
#[tokio::test(start_paused = true)]
async fn g22_a_service_that_is_never_made_is_given_up_while_serving() {
    for front in fronts() {
        for bytes in ["", "GET /qui"] {
            let gate = Gate::new();
            let terminator = Terminator::new();
            let target = serve(front, &terminator, Make::gated(&gate)).await;
            let begin = tokio::time::Instant::now();
            let mut client = bare(&target);
            client.send(bytes);
            // By turns of the runtime: with a paused clock a wait would let it run.
            while gate.entered() == 0 {
                tokio::task::yield_now().await;
            }
            tokio::time::timeout(Duration::from_secs(120), async {
                while gate.inside() > 0 {
                    time_passes_async(Duration::from_secs(1)).await;
                }
            })
            .await
            .expect("given up");
            let took = begin.elapsed().as_secs();
            assert!((30..=32).contains(&took), "{front:?}: {took} s");
            let end = std::thread::spawn(move || client.read_to_end());
            let end = end.join().expect("no panic");
            assert!(matches!(end, ReadEnd::Eof | ReadEnd::Reset), "{end:?}");
            assert_eq!(terminator.stats().connections, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_one_that_panics_or_fails_breaks_its_own_connection_only() {
    each(fronts(), async |front| {
        for fails in [false, true] {
            let gate = Gate::new();
            let terminator = patient().build();
            let held = gate.clone();
            let make = Make::new(move || {
                let (held, nth) = (held.clone(), held.entered());
                async move {
                    if nth > 0 {
                        return Ok(app(App::default()));
                    }
                    held.enter().await;
                    assert!(fails, "this make-service panics on purpose");
                    Err(io::Error::other("on purpose"))
                }
            });
            let target = serve(front, &terminator, make).await;
            let mut broken = bare(&target);
            broken.send("GET /qui");
            gate.wait_entered_async(1).await;
            let mut other = blocking({
                let target = target.clone();
                move || {
                    let mut other = RawClient::connect(&target);
                    assert_eq!(other.fetch("/quick").text(), "ok");
                    other
                }
            })
            .await;
            let termination = terminator.terminate();
            within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
            gate.open();
            blocking(move || {
                assert_ne!(broken.read_to_end(), ReadEnd::Timeout);
                other.expect_eof();
            })
            .await;
            let report = within(BOUND, "the end", termination).await;
            let counts = (report.closed_by_peer, report.idle, report.connections());
            assert_eq!(counts, (1, 1, 2), "{front:?} {fails}: {report}");
        }
    });
}

/// Its thread as well: nobody waits for it, and it is named.
#[test]
fn g11_one_that_blocks_is_unresponsive() {
    side_by_side(fronts(), |front| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let gate = Gate::new();
        let grace = Duration::from_millis(300);
        let terminator = Terminator::builder().grace_period(grace).build();
        let held = gate.clone();
        let make = Make::new(move || {
            let held = held.clone();
            async move {
                held.enter_blocking();
                Ok(app(App::default()))
            }
        });
        let target = runtime.block_on(serve(front, &terminator, make));
        let client = bare(&target);
        client.send("GET /qui");
        gate.wait_entered(1);
        let called = Instant::now();
        let report = {
            let ended = terminator.terminate();
            let waiting = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            waiting.block_on(within(BOUND, "the end", ended))
        };
        assert!(called.elapsed() < SOON, "{:?}", called.elapsed());
        assert_eq!((report.forced, report.unresponsive), (1, 1), "{report}");
        assert_eq!(report.connections(), 1, "{report}");
        gate.open();
        runtime.shutdown_timeout(BOUND);
    });
}

/// A tower service that is never ready is as one that is never made.
#[tokio::test]
async fn g11_one_that_is_never_ready_is_under_the_same_bounds() {
    #[derive(Clone)]
    struct Never;

    impl Service<SocketAddr> for Never {
        type Response = Router;
        type Error = Infallible;
        type Future = std::future::Pending<Result<Router, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Pending
        }

        fn call(&mut self, _: SocketAddr) -> Self::Future {
            pending()
        }
    }

    let terminator = patient().build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(terminator.serve_make_service(listener, Never));
    let client = RawClient::connect(addr);
    until_stats_async(&terminator, "accepted", |it| it.connections > 0).await;
    let report = ended(&terminator).await;
    assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
    drop(client);
}
