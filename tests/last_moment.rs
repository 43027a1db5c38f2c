//! What happens in the very moment in which a termination ends, or is forced: who comes then, who counts then, and
//! what is left behind. Most of it are races, so it is done many times.
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

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http_terminator::{HttpBuilder, Phase, Terminator, TowerToHyper, TrackedIo};
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};

use support::load::{stolen_in_the_last, watch_load};
use support::outside::{SOON, block_on};
use support::wait::until_async;
use support::{BOUND, RawClient};

fn workers(n: usize) -> Runtime {
    let mut builder = runtime::Builder::new_multi_thread();
    builder.worker_threads(n).enable_all();
    builder.build().expect("a runtime")
}

/// A background task that learns of the drain as the drain has nothing to wait for, and then has something to
/// write: all of it, or nothing.
#[test]
fn g17_work_that_is_spawned_in_the_last_moment_is_done_or_never_begun() {
    watch_load();
    let runtime = workers(2);
    let (mut done, mut refused) = (0, 0);
    for round in 0..400 {
        let terminator = Terminator::new();
        // Who is detached is not waited for, but cut at the end.
        let detached = (round % 16 == 1).then(|| {
            let _inside = runtime.enter();
            let io = terminator.track(duplex(16).0);
            io.connection().detach();
            io
        });
        let stages = Arc::new(AtomicUsize::new(0));
        let flush = {
            let (terminator, stages) = (terminator.clone(), Arc::clone(&stages));
            runtime.spawn(async move {
                terminator.reached(Phase::Draining).await;
                for _ in 0..round % 8 {
                    thread::yield_now();
                }
                let writes = terminator.spawn(async move {
                    for _ in 0..4 {
                        stages.fetch_add(1, SeqCst);
                        tokio::task::yield_now().await;
                    }
                });
                writes.await.expect("it does not panic")
            })
        };
        let report = block_on(BOUND, "the end", terminator.terminate());
        let whole = block_on(BOUND, "the work", flush).expect("it does not panic");
        let stages = stages.load(SeqCst);
        assert!(
            matches!((whole, stages), (Some(()), 4) | (None, 0)),
            "{round}: {whole:?} after {stages} of 4 stages; {report}"
        );
        // Who closes it is waited for, and on a machine with other work not for long enough.
        let starved = stolen_in_the_last(SOON) > Duration::from_millis(50);
        let given_up = detached.is_some() && report.unclosed == 1 && starved;
        assert!(report.is_clean() || given_up, "{round}: {report}");
        drop(detached);
        done += usize::from(whole.is_some());
        refused += usize::from(whole.is_none());
    }
    println!("{done} done, {refused} refused");
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused");
}

/// Who is refused a guard holds none.
#[test]
fn g18_guards_that_are_refused_are_not_counted() {
    for round in 0..100 {
        let terminator = Terminator::new();
        let stop = Arc::new(AtomicBool::new(false));
        let asking: Vec<_> = (0..3)
            .map(|_| {
                let (terminator, stop) = (terminator.clone(), Arc::clone(&stop));
                thread::spawn(move || {
                    while !stop.load(Relaxed) {
                        drop(terminator.guard());
                    }
                })
            })
            .collect();
        let report = block_on(BOUND, "the end", terminator.terminate());
        stop.store(true, Relaxed);
        for thread in asking {
            thread.join().expect("it does not panic");
        }
        assert!(report.is_clean(), "{round}: {report}");
    }
}

/// A client of a server whose handler never answers.
fn pends(terminator: &Terminator) -> DuplexStream {
    let (client, server) = duplex(1024);
    let io = terminator.track(server);
    let app = Router::new().route("/", get(std::future::pending::<()>));
    let builder = HttpBuilder::default();
    tokio::spawn(io.connection().serve(&builder, io, TowerToHyper::new(app)));
    client
}

/// Whose runtime is not driven when it is cut.
#[test]
fn g18_a_detached_connection_is_detached_however_late_it_lets_go() {
    let mut builder = runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().expect("a runtime");
    let terminator = Terminator::new();
    let (listener, addr) = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        (listener, addr)
    });
    let client = thread::spawn(move || {
        let mut client = RawClient::connect(addr);
        assert_eq!(client.fetch("/").text(), "hello");
        client
    });
    let client = runtime.block_on(async {
        let mut listener = terminator.listen(listener);
        let (io, _): (TrackedIo<_>, _) = listener.accept().await.expect("serving");
        let app = Router::new().route("/", get(async || "hello"));
        let connection = io.connection();
        let builder = HttpBuilder::default();
        tokio::spawn(connection.serve(&builder, io, TowerToHyper::new(app)));
        until_async("its answer", || client.is_finished()).await;
        connection.detach();
        client.join().expect("it was answered")
    });
    let report = block_on(BOUND, "the end", terminator.terminate());
    assert_eq!((report.detached, report.forced), (1, 0), "{report}");
    assert!(report.is_clean(), "{report}");
    drop((client, runtime));
}

/// Work whose runtime ends before it has begun.
#[test]
fn g16_the_guard_of_spawned_work_goes_behind_what_the_work_holds() {
    struct Held(Terminator, Arc<AtomicUsize>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.1.store(self.0.stats().guards, SeqCst);
        }
    }
    let mut builder = runtime::Builder::new_current_thread();
    let runtime = builder.build().expect("a runtime");
    let terminator = Terminator::new();
    let guards = Arc::new(AtomicUsize::new(9));
    let held = Held(terminator.clone(), Arc::clone(&guards));
    let inside = runtime.enter();
    drop(terminator.spawn(async move { drop(held) }));
    drop(inside);
    drop(runtime);
    assert_eq!(guards.load(SeqCst), 1, "guards, as the work was dropped");
    assert_eq!(terminator.stats().guards, 0);
}

/// A runtime that is dropped while its connections are being told.
#[cfg(target_os = "linux")]
#[test]
fn g19_nothing_is_kept_of_a_runtime_that_goes_as_the_drain_begins() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("Linux").count();
    let round = || {
        let runtime = workers(1);
        let terminator = Terminator::new();
        let clients =
            runtime.block_on(async { (0..20).map(|_| pends(&terminator)).collect::<Vec<_>>() });
        // So that each has been polled, and knows its runtime.
        runtime.block_on(tokio::task::yield_now());
        let ended = terminator.terminate();
        runtime.shutdown_background();
        block_on(BOUND, "the end", ended);
        drop(clients);
    };
    round();
    let before = descriptors();
    for _ in 0..100 {
        round();
    }
    support::wait::until("no descriptors of runtimes that are gone", || {
        // A few are open for a moment, by whatever else runs here.
        descriptors() < before + 20
    });
}

/// Nor of one that comes when all is over, with work that is too late.
#[test]
fn g19_nothing_is_kept_of_a_runtime_that_comes_after_the_end() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("Linux").count();
    let terminator = Terminator::new();
    block_on(BOUND, "the end", terminator.terminate());
    let before = descriptors();
    for _ in 0..100 {
        let runtime = workers(1);
        let late = runtime.block_on(async { terminator.spawn(async {}).await });
        assert!(matches!(late, Ok(None)), "{late:?}");
    }
    support::wait::until("no descriptors of runtimes that are gone", || {
        descriptors() < before + 50
    });
}

/// Without a listener that the terminator knows of, a pause between two connections is no end.
#[test]
fn a_lame_duck_waits_for_who_comes_without_a_listener() {
    let runtime = workers(1);
    let settle = Duration::from_millis(200);
    let terminator = Terminator::builder()
        .settle(settle)
        .lame_duck(Duration::ZERO..=BOUND)
        .build();
    let inside = runtime.enter();
    drop(terminator.track(duplex(16).0));
    drop(inside);
    let report = block_on(BOUND, "the end", terminator.terminate());
    assert!(report.lame_duck >= settle, "{report}");
}
