//! hyper-util 0.1.21: the tests of `src/server/graceful.rs`, whose connections are dummies that count how often they are told,
//! and that of `graceful_shutdown` in `src/server/conn/auto/mod.rs`.
//!
//! Every case has its counterpart, by `Terminator::watch`.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use pin_project_lite::pin_project;
use tokio::net::{TcpListener, TcpStream};

use http_terminator::{GracefulConnection, Terminator};

use super::support::outside::{SOON, measured, promised};
use super::support::{App, BOUND, Gate, app, each, within};
use super::{patient, report};

pin_project! {
    /// Ends when its future does, and counts how often it is told to.
    struct Dummy<F> {
        #[pin]
        future: F,
        told: Arc<AtomicUsize>,
    }
}

impl<F: Future<Output = ()>> GracefulConnection for Dummy<F> {
    type Error = Infallible;

    fn graceful_shutdown(self: Pin<&mut Self>) {
        self.told.fetch_add(1, Ordering::SeqCst);
    }
}

impl<F: Future<Output = ()>> Future for Dummy<F> {
    type Output = Result<(), Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx).map(Ok)
    }
}

/// A gate's side that a connection waits at.
async fn behind(gate: Gate) {
    gate.enter().await;
}

/// Each is told once, though what it waits for comes before that.
#[test]
fn graceful_shutdown_ok() {
    one_each(true);
}

/// Each is told once, and ends of itself after that.
#[test]
fn graceful_shutdown_delayed_ok() {
    one_each(false);
}

fn one_each(released_before: bool) {
    each([()], async |()| {
        let (terminator, gate) = (patient().build(), Gate::new());
        let counters: [Arc<AtomicUsize>; 3] = Default::default();
        for told in &counters {
            let future = behind(gate.clone());
            let told = Arc::clone(told);
            tokio::spawn(terminator.watch(Dummy { future, told }));
        }
        gate.wait_entered(3);
        assert_eq!(sum(&counters), 0);
        let termination = if released_before {
            let termination = terminator.terminate();
            gate.open();
            termination
        } else {
            let termination = terminator.terminate();
            until_told(&counters).await;
            gate.open();
            termination
        };
        let begin = Instant::now();
        let report = report(termination).await;
        measured(begin.elapsed(), SOON, "all of them");
        let each_once = counters.iter().all(|it| it.load(Ordering::SeqCst) <= 1);
        assert!(each_once, "{counters:?}");
        assert!(report.is_clean() && report.connections() == 3, "{report}");
    });
}

/// Several in one task.
#[test]
fn graceful_shutdown_multi_per_watcher_ok() {
    each([()], async |()| {
        let (terminator, gate) = (patient().build(), Gate::new());
        let counters: [Arc<AtomicUsize>; 6] = Default::default();
        let mut rest = &counters[..];
        for n in 1..=3 {
            let (these, others) = rest.split_at(n);
            rest = others;
            let watched = these.iter().map(|told| {
                let future = behind(gate.clone());
                let told = Arc::clone(told);
                terminator.watch(Dummy { future, told })
            });
            tokio::spawn(join_all(watched.collect::<Vec<_>>()));
        }
        gate.wait_entered(6);
        assert_eq!(sum(&counters), 0);
        let termination = terminator.terminate();
        until_told(&counters).await;
        gate.open();
        let report = report(termination).await;
        assert_eq!(sum(&counters), 6);
        assert!(report.is_clean() && report.connections() == 6, "{report}");
    });
}

/// One never ends. There the caller's own timeout has to end the wait for it; here the deadline does, and drops it.
#[test]
fn graceful_shutdown_timeout() {
    const GRACE: Duration = Duration::from_secs(1);
    each([()], async |()| {
        let terminator = patient().grace_period(GRACE).build();
        let (told, others): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let held = Arc::new(());
        let inside = Arc::clone(&held);
        let future = async move {
            pending::<()>().await;
            drop(inside);
        };
        let counter = Arc::clone(&told);
        let one = tokio::spawn(terminator.watch(Dummy {
            future,
            told: counter,
        }));
        for _ in 0..2 {
            let told = Arc::clone(&others);
            let future = async {};
            tokio::spawn(terminator.watch(Dummy { future, told }));
        }
        let report = report(terminator.terminate()).await;
        assert!(report.draining >= GRACE, "{report:?}");
        promised(&report, GRACE);
        assert_eq!(told.load(Ordering::SeqCst), 1);
        assert!(others.load(Ordering::SeqCst) <= 2);
        assert_eq!((report.forced, report.connections()), (1, 3), "{report}");
        assert!(Arc::strong_count(&held) == 1, "it is dropped");
        let ended = within(BOUND, "its task", one).await.expect("no panic");
        assert!(ended.is_ok());
    });
}

fn sum(counters: &[Arc<AtomicUsize>]) -> usize {
    counters.iter().map(|it| it.load(Ordering::SeqCst)).sum()
}

async fn until_told(counters: &[Arc<AtomicUsize>]) {
    let all = async {
        while sum(counters) < counters.len() {
            tokio::task::yield_now().await;
        }
    };
    within(BOUND, "all are told", all).await;
}

/// A connection that has sent nothing, so that its version is not known: there it ends with an error of the kind
/// `Interrupted`; here that is an end like any other.
#[test]
fn auto_graceful_shutdown() {
    each([()], async |()| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let client = TcpStream::connect(addr).await.expect("it listens");
        let (stream, _) = listener.accept().await.expect("a client");
        let terminator: Terminator = patient().build();
        let service = TowerToHyperService::new(app(App::default()));
        let builder = auto::Builder::new(TokioExecutor::new());
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let watched = terminator.watch(connection);
        let termination = terminator.terminate();
        let begin = Instant::now();
        let ended = within(BOUND, "the connection", watched).await;
        let error = ended.expect_err("as there");
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::Interrupted), "{error}");
        measured(begin.elapsed(), SOON, "the connection");
        let report = report(termination).await;
        assert!(report.is_clean() && report.connections() == 1, "{report}");
        drop(client);
    });
}
