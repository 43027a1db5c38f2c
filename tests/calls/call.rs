//! G16, G17: the call, and what others can learn of it, ask of it and hold against it.
#![cfg(all(unix, feature = "serve"))]

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, Weak, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::routing::get;
use axum::{Extension, Router};
use futures_util::future::FutureExt;
use futures_util::stream::{self, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::support;
use crate::support::load::watch_load;
use crate::support::outside::{LATE, measured};
use crate::support::starts::no_starts;
use crate::support::wait::{until, until_async};
use crate::support::{
    App, BOUND, FrontEnd, Gate, RawClient, Server, app, blocking, each, start, within,
};
use http_terminator::{HttpBuilder, Phase, Report, Terminator, TowerToHyper};

const PHASES: [Phase; 5] = [
    Phase::Serving,
    Phase::LameDuck,
    Phase::Draining,
    Phase::Forcing,
    Phase::Terminated,
];

// ===== G16: the call =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_terminate_begins_at_the_call() {
    for front in FrontEnd::all() {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let server = start(front, &terminator, gated(&gate)).await;
        let mut idle = server.connect();
        assert_eq!(idle.fetch("/quick").status, 200);
        let mut busy = server.connect();
        busy.get("/slow");
        gate.wait_entered(1);
        assert_eq!(
            (terminator.phase(), terminator.is_ready()),
            (Phase::Serving, true)
        );

        let never_polled = terminator.terminate();
        assert_eq!(
            (terminator.phase(), terminator.is_ready()),
            (Phase::Draining, false)
        );
        idle.expect_eof();
        gate.open();
        assert!(busy.read_response().says_close(), "{front:?}");
        busy.expect_eof();
        let report = within(BOUND, "the end", terminator.terminated()).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        drop(never_polled);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_dropping_its_future_stops_nothing() {
    for front in FrontEnd::all() {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let server = start(front, &terminator, gated(&gate)).await;
        let mut busy = server.connect();
        busy.get("/slow");
        gate.wait_entered(1);
        let mut ended = Box::pin(terminator.terminate());
        assert!(
            ended.as_mut().now_or_never().is_none(),
            "{front:?}: a request is in hand"
        );
        drop(ended);
        gate.open();
        assert_eq!(busy.read_response().text(), "slow", "{front:?}");
        busy.expect_eof();
        let report = within(BOUND, "the end", terminator.terminated()).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(report.finished, 1, "{front:?}: {report}");
        let output = within(BOUND, "the server", server.task)
            .await
            .expect("the server");
        assert!(output.is_none_or(|it| it == report), "{front:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_two_calls_from_two_threads_give_equal_reports() {
    for front in FrontEnd::all() {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let server = start(front, &terminator, gated(&gate)).await;
        let mut busy = server.connect();
        busy.get("/slow");
        gate.wait_entered(1);
        let reports = terminate_from(2, &terminator, || gate.open());
        assert_eq!(reports[0], reports[1], "{front:?}");
        assert_eq!(reports[0].connections(), 1, "{front:?}: {}", reports[0]);
        assert_eq!(busy.read_response().status, 200, "{front:?}");
    }
}

#[tokio::test]
async fn g16_before_serving_anything() {
    let _alone = no_starts();
    watch_load();
    let terminator = Terminator::new();
    let began = Instant::now();
    let report = within(BOUND, "the end", terminator.terminate()).await;
    measured(began.elapsed(), LATE, "the end");
    assert_eq!(
        (report.connections(), report.is_clean()),
        (0, true),
        "{report}"
    );

    // Who serves after that learns at once.
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    let serve = terminator.serve(listener, app(App::default()));
    assert!(
        RawClient::try_connect(addr).is_err(),
        "the listener is closed"
    );
    assert_eq!(within(BOUND, "`Serve`", serve).await, report);
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let mut listener = terminator.listen(listener);
    assert!(within(BOUND, "`accept`", listener.accept()).await.is_none());
    let (io, mut peer) = tokio::io::duplex(64);
    let io = terminator.track(io);
    let mut buf = [0];
    let read = tokio::io::AsyncReadExt::read(&mut peer, &mut buf);
    assert_eq!(
        within(BOUND, "its end", read).await.expect("no error"),
        0,
        "closed at once"
    );
    drop(io);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_after_terminated_again() {
    for front in FrontEnd::all() {
        let terminator = Terminator::new();
        let server = start(front, &terminator, app(App::default())).await;
        let mut client = server.connect();
        assert_eq!(client.fetch("/quick").status, 200);
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert_eq!(terminator.phase(), Phase::Terminated);
        for again in [
            terminator.terminate(),
            terminator.force(),
            terminator.terminated(),
        ] {
            assert_eq!(
                again.now_or_never().as_ref(),
                Some(&report),
                "{front:?}: ready at once"
            );
        }
        let clone = terminator.clone();
        let elsewhere = thread::spawn(move || block_on(clone.terminate()));
        assert_eq!(elsewhere.join().expect("a report"), report, "{front:?}");
        assert_eq!(terminator.phase(), Phase::Terminated);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_in_any_phase() {
    let terminator = Terminator::builder()
        .lame_duck(Duration::from_millis(50))
        .grace_period(Duration::from_millis(50))
        .build();
    let guard = terminator.guard().expect("serving");
    let mut calls = Vec::new();
    for phase in PHASES {
        within(BOUND, &format!("{phase}"), terminator.reached(phase)).await;
        calls.push(terminator.terminate());
    }
    let report = within(BOUND, "the end", terminator.terminated()).await;
    for call in calls {
        assert_eq!(within(BOUND, "a call's end", call).await, report);
    }
    assert_eq!(report.guards_cut, 1, "{report}");
    assert!(report.lame_duck >= Duration::from_millis(50), "{report:?}");
    assert!(report.draining >= Duration::from_millis(50), "{report:?}");
    drop(guard);
}

/// That very request is answered with `connection: close`, and its connection ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_from_inside_a_handler() {
    for front in FrontEnd::all() {
        let terminator = Terminator::new();
        let router = app(App {
            gate: Gate::new(),
            terminator: Some(terminator.clone()),
        });
        let server = start(front, &terminator, router).await;
        let mut client = server.connect();
        let response = client.fetch("/terminate");
        assert_eq!(
            (response.status, response.text()),
            (200, "bye"),
            "{front:?}"
        );
        assert!(response.says_close(), "{front:?}: {response:?}");
        client.expect_eof();
        let report = within(BOUND, "the end", terminator.terminated()).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(report.finished, 1, "{front:?}: {report}");
    }
}

/// A handler that awaits it waits for itself, but no longer than until the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_awaited_inside_a_handler_it_ends_at_the_deadline() {
    for front in FrontEnd::all() {
        let grace = Duration::from_millis(100);
        let terminator = Terminator::builder().grace_period(grace).build();
        let inner = terminator.clone();
        let awaits = get(move || {
            let ended = inner.terminate();
            async move { ended.await.to_string() }
        });
        let router = app(App::default()).route("/await", awaits);
        let server = start(front, &terminator, router).await;
        let mut client = server.connect();
        assert_eq!(client.fetch("/await").status, 503, "{front:?}");
        client.expect_reset_or_eof();
        let report = within(BOUND, "the end", terminator.terminated()).await;
        assert_eq!(
            (report.forced, report.answered_at_deadline),
            (1, 1),
            "{front:?}: {report}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_from_outside_any_runtime() {
    for front in FrontEnd::all() {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let server = start(front, &terminator, gated(&gate)).await;
        let mut busy = server.connect();
        busy.get("/slow");
        gate.wait_entered(1);
        let outside = {
            let terminator = terminator.clone();
            thread::spawn(move || {
                assert!(tokio::runtime::Handle::try_current().is_err());
                block_on(terminator.terminate())
            })
        };
        within(BOUND, "the drain", terminator.draining()).await;
        gate.open();
        assert_eq!(busy.read_response().text(), "slow", "{front:?}");
        let report = blocking(move || outside.join().expect("a report")).await;
        assert!(report.is_clean(), "{front:?}: {report}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn g16_within_a_current_thread_runtime() {
    for front in FrontEnd::all() {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let server = start(front, &terminator, gated(&gate)).await;
        let (mut idle, busy) = (server.connect(), server.connect());
        let clients = blocking(move || {
            assert_eq!(idle.fetch("/quick").status, 200);
            busy.get("/slow");
            (idle, busy)
        });
        let (mut idle, mut busy) = clients.await;
        gate.wait_entered_async(1).await;
        let ended = terminator.terminate();
        let opens = gate.clone();
        let clients = blocking(move || {
            idle.expect_eof();
            opens.open();
            assert!(busy.read_response().says_close(), "{front:?}");
            busy.expect_eof();
        });
        let (report, ()) = tokio::join!(within(BOUND, "the end", ended), clients);
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(
            (report.idle, report.finished),
            (1, 1),
            "{front:?}: {report}"
        );
    }
}

/// The bound here is wide, for a loaded machine; the millisecond is a bench's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_returns_soon_after_the_last_response_byte() {
    for front in FrontEnd::all() {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let server = start(front, &terminator, gated(&gate)).await;
        let mut busy = server.connect();
        busy.get("/slow");
        gate.wait_entered(1);
        let ended = terminator.terminate();
        let ended = tokio::spawn(async move {
            let report = ended.await;
            (report, Instant::now())
        });
        gate.open();
        assert_eq!(busy.read_response().text(), "slow", "{front:?}");
        let last_byte = Instant::now();
        let (report, at) = within(BOUND, "the end", ended).await.expect("a report");
        let after = at.saturating_duration_since(last_byte);
        measured(after, LATE, &format!("{front:?}: the end of {report}"));
        busy.expect_eof();
    }
}

/// One connection of each kind; all clients hold their ends until the file descriptors are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_when_it_returns_everything_is_closed_and_dropped() {
    for front in FrontEnd::all() {
        let gate = Gate::new();
        let stall = Duration::from_millis(100);
        let terminator = Terminator::builder().stall_timeout(stall).build();
        let (router, token) = tokened(&gate);
        let server = start(front, &terminator, router).await;
        let fresh = server.connect();
        let mut idle = server.connect();
        assert_eq!(idle.fetch("/quick").status, 200);
        let half = server.connect();
        half.send("GET /quick HT");
        let busy = server.connect();
        busy.get("/slow");
        let mut streaming = server.connect();
        streaming.get("/stream");
        assert_eq!(streaming.read_response_headers().status, 200);
        let mut upgraded = server.connect();
        upgraded.get_upgrade("/upgrade");
        assert_eq!(upgraded.read_response().status, 101);
        gate.wait_entered(2);
        until_async("half a head", || terminator.stats().busy == 3).await;
        assert_open(&server, 6);

        let ended = terminator.terminate();
        gate.open();
        upgraded.shutdown_write();
        let report = within(BOUND, "the end", ended).await;
        assert_eq!(server.target.open_fds(), 0, "{front:?}");
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(report.connections(), 6, "{front:?}: {report}");
        assert_eq!(terminator.stats().connections, 0, "{front:?}");
        server.task.await.expect("the server");
        assert!(
            token.upgrade().is_none(),
            "{front:?}: the application's state lives on"
        );
        drop((fresh, idle, half, busy, streaming, upgraded));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_when_it_returns_by_force_everything_is_closed_and_dropped() {
    support::big(); // made once, and not within somebody's grace period
    for front in FrontEnd::all() {
        let gate = Gate::new();
        let grace = Duration::from_millis(50);
        let terminator = Terminator::builder().grace_period(grace).build();
        let (router, token) = tokened(&gate);
        let server = start(front, &terminator, router).await;
        let half = server.connect();
        half.send("GET /quick HT");
        let pending = server.connect();
        pending.get("/pending");
        let busy = server.connect();
        busy.get("/slow");
        let mut streaming = server.connect();
        streaming.get("/stream");
        assert_eq!(streaming.read_response_headers().status, 200);
        let big = server.connect();
        big.get("/bigstream");
        let mut upgraded = server.connect();
        upgraded.get_upgrade("/upgrade-held");
        assert_eq!(upgraded.read_response().status, 101);
        gate.wait_entered(2);
        until_async("six connections", || {
            let stats = terminator.stats();
            (stats.busy, stats.upgraded) == (5, 1)
        })
        .await;
        assert_open(&server, 6);

        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert_eq!(server.target.open_fds(), 0, "{front:?}");
        assert_eq!(
            (report.forced, report.unresponsive),
            (6, 0),
            "{front:?}: {report}"
        );
        server.task.await.expect("the server");
        assert!(
            token.upgrade().is_none(),
            "{front:?}: the application's state lives on"
        );
        drop((half, pending, busy, streaming, big, upgraded));
    }
}

/// Four threads, a few connections each time, a hundred times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_a_hundred_terminations_from_four_threads_each() {
    for round in 0..25 {
        for front in FrontEnd::all() {
            let gate = Gate::new();
            let terminator = Terminator::new();
            let server = start(front, &terminator, gated(&gate)).await;
            let fresh = server.connect();
            let mut idle = server.connect();
            assert_eq!(idle.fetch("/quick").status, 200);
            let mut busy = server.connect();
            busy.get("/slow");
            gate.wait_entered(1);
            let reports = terminate_from(4, &terminator, || gate.open());
            assert_eq!(
                busy.read_response().text(),
                "slow",
                "round {round}, {front:?}"
            );
            let first = &reports[0];
            assert!(
                reports.iter().all(|it| it == first),
                "round {round}, {front:?}: {reports:?}"
            );
            assert!(first.is_clean(), "round {round}, {front:?}: {first}");
            assert_eq!(first.connections(), 3, "round {round}, {front:?}: {first}");
            let output = within(BOUND, "the server", server.task)
                .await
                .expect("the server");
            assert!(
                output.is_none_or(|it| it == *first),
                "round {round}, {front:?}"
            );
            drop(fresh);
        }
    }
}

// ===== the lame duck =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_a_lame_duck_serves_accepts_and_says_close() {
    each(FrontEnd::all(), async |front| {
        let lame = Duration::from_millis(1500);
        let terminator = Terminator::builder().lame_duck(lame).build();
        let server = start(front, &terminator, app(App::default())).await;
        let mut idle = server.connect();
        let response = idle.fetch("/quick");
        assert!(!response.says_close(), "{front:?}: {response:?}");
        let mut kept = server.connect();
        assert_eq!(kept.fetch("/quick").status, 200);

        let began = Instant::now();
        let ended = terminator.terminate();
        assert_eq!(
            (terminator.phase(), terminator.is_ready()),
            (Phase::LameDuck, false)
        );
        let mut new = server.connect();
        let response = new.fetch("/quick");
        assert!(
            response.status == 200 && response.says_close(),
            "{front:?}: {response:?}"
        );
        new.expect_eof();
        let response = idle.fetch("/quick");
        assert!(
            response.status == 200 && response.says_close(),
            "{front:?}: {response:?}"
        );
        idle.expect_eof();
        assert!(
            terminator.guard().is_some(),
            "{front:?}: it is not too late for work"
        );
        assert!(kept.is_still_open(), "{front:?}");
        assert_eq!(
            terminator.phase(),
            Phase::LameDuck,
            "{front:?}: all that within {lame:?}"
        );

        kept.expect_eof();
        assert!(
            began.elapsed() >= lame,
            "{front:?}: idle connections are kept"
        );
        let report = within(BOUND, "the end", ended).await;
        assert!(report.lame_duck >= lame, "{front:?}: {report:?}");
        assert!(report.is_clean(), "{front:?}: {report}");
        // Those that ended in the lame-duck phase are not counted.
        assert_eq!(
            (report.idle, report.connections()),
            (1, 1),
            "{front:?}: {report}"
        );
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_force_ends_a_lame_duck() {
    for front in FrontEnd::all() {
        let terminator = Terminator::builder()
            .lame_duck(Duration::from_secs(3600))
            .grace_period(None)
            .build();
        let server = start(front, &terminator, app(App::default())).await;
        let mut busy = server.connect();
        busy.get("/pending");
        until_async("the request", || terminator.stats().requests == 1).await;
        let ended = terminator.terminate();
        assert_eq!(terminator.phase(), Phase::LameDuck);
        let began = Instant::now();
        let forced = within(BOUND, "the end", terminator.force()).await;
        measured(began.elapsed(), LATE, "force");
        assert_eq!(busy.read_response().status, 503, "{front:?}");
        assert_eq!(
            (forced.forced, forced.draining),
            (1, Duration::ZERO),
            "{front:?}: {forced:?}"
        );
        assert_eq!(
            within(BOUND, "the first call", ended).await,
            forced,
            "{front:?}"
        );
    }
}

// ===== G17: who wants to know =====

#[tokio::test]
async fn g17_phases_are_levels() {
    let terminator = Terminator::builder()
        .lame_duck(Duration::from_secs(1))
        .grace_period(Duration::from_secs(1))
        .build();
    let guard = terminator.guard();
    let early: Vec<_> = PHASES
        .into_iter()
        .map(|phase| {
            let terminator = terminator.clone();
            tokio::spawn(async move {
                terminator.reached(phase).await;
                (phase, terminator.phase())
            })
        })
        .collect();
    let draining = terminator.draining();
    assert!(terminator.reached(Phase::LameDuck).now_or_never().is_none());
    assert!(terminator.draining().now_or_never().is_none());
    assert!(terminator.reached(Phase::Serving).now_or_never().is_some());

    let ended = terminator.terminate();
    assert!(
        terminator.reached(Phase::LameDuck).now_or_never().is_some(),
        "late is not too late"
    );
    assert!(terminator.draining().now_or_never().is_none(), "not yet");
    within(BOUND, "the drain", draining).await;
    assert_eq!(terminator.phase(), Phase::Draining);
    assert!(
        terminator.reached(Phase::Forcing).now_or_never().is_none(),
        "not yet"
    );
    for task in early {
        let (asked, seen) = within(BOUND, "a phase", task).await.expect("no panic");
        assert!(seen >= asked, "{asked} was announced in {seen}");
    }
    within(BOUND, "the end", ended).await;
    for phase in PHASES {
        assert!(
            terminator.reached(phase).now_or_never().is_some(),
            "{phase}"
        );
    }
    assert!(terminator.draining().now_or_never().is_some());
    drop(guard);
}

/// Phases that are passed at once, or skipped by force, are reached all the same.
#[tokio::test]
async fn g17_skipped_phases_are_reached() {
    let terminator = Terminator::new();
    let waiting: Vec<_> = PHASES
        .into_iter()
        .map(|phase| {
            let terminator = terminator.clone();
            tokio::spawn(async move { terminator.reached(phase).await })
        })
        .collect();
    let (draining, token) = (terminator.draining(), terminator.cancellation_token());
    tokio::task::yield_now().await;
    within(BOUND, "the end", terminator.force()).await;
    for task in waiting {
        within(BOUND, "a phase", task).await.expect("no panic");
    }
    within(BOUND, "the drain", draining).await;
    within(BOUND, "the token", token.cancelled()).await;
}

/// With nothing open there is no drain in which it would have been: it was, a moment behind the report.
#[test]
fn g17_a_token_is_cancelled_when_the_end_is_seen() {
    struct Looks(CancellationToken, mpsc::Sender<bool>);
    impl Wake for Looks {
        fn wake(self: Arc<Self>) {
            let _ = self.1.send(self.0.is_cancelled()); // somebody waits
        }
    }
    for _ in 0..200 {
        let terminator = Terminator::new();
        let (tell, told) = mpsc::channel();
        let looks = Waker::from(Arc::new(Looks(terminator.cancellation_token(), tell)));
        let mut ended = pin!(terminator.terminated());
        let polled = ended.as_mut().poll(&mut Context::from_waker(&looks));
        assert!(polled.is_pending());
        drop(terminator.terminate());
        let cancelled = told.recv_timeout(BOUND).expect("it is told");
        assert!(cancelled);
    }
}

/// It has ended, and counts no more, whoever keeps what has served it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_future_that_is_kept_behind_its_end_counts_nothing() {
    for ours in [true, false] {
        let terminator = Terminator::builder().grace_period(BOUND).build();
        let (client, io) = tokio::io::duplex(1024);
        let io = terminator.track(io);
        let connection = io.connection();
        let service = TowerToHyper::new(app(App::default()));
        let mut served: Pin<Box<dyn Future<Output = ()> + Send>> = if ours {
            let served = connection.serve(&HttpBuilder::default(), io, service);
            kept(served)
        } else {
            let builder = hyper::server::conn::http1::Builder::new();
            let served = builder.serve_connection(TokioIo::new(io), service);
            kept(connection.watch(served))
        };
        drop(client);
        within(BOUND, "its end", served.as_mut()).await;
        assert!(connection.draining().now_or_never().is_some(), "{ours}");
        assert_eq!(terminator.stats().connections, 0, "{ours}");
        let begin = Instant::now();
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert!(report.is_clean(), "{ours}: {report}");
        assert!(begin.elapsed() < BOUND / 2, "{ours}");
        drop(served);
    }
}

/// All of it is out, and hyper ends before it has dropped the body: no peer has closed it.
#[tokio::test]
async fn g18_an_answer_whose_last_write_goes_out_at_the_second_try_is_finished() {
    const BIG: usize = 1 << 20;
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (mut client, io) = tokio::io::duplex(BIG * 2);
    let io = terminator.track(Second { io, is_first: true });
    let answers = terminator.clone();
    let service = hyper::service::service_fn(move |_| {
        drop(answers.terminate());
        let body = futures_util::stream::once(async {
            let frame = http_body::Frame::data(bytes::Bytes::from(vec![b'x'; BIG]));
            Ok::<_, std::convert::Infallible>(frame)
        });
        let body = http_body_util::StreamBody::new(Box::pin(body));
        let answer = http::Response::builder().header("content-length", BIG);
        async { answer.body(body) }
    });
    let connection = io.connection();
    let served = tokio::spawn(connection.serve(&HttpBuilder::default(), io, service));
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("there is room");
    let mut answer = Vec::new();
    let read = client.read_to_end(&mut answer);
    within(BOUND, "an answer", read).await.expect("its end");
    assert!(answer.len() > BIG);
    let _ = within(BOUND, "its end", served).await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
}

/// Of each two tries to write the first has to be made again.
struct Second<Io> {
    io: Io,
    is_first: bool,
}

impl<Io: AsyncRead + Unpin> AsyncRead for Second<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Second<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.is_first = !self.is_first;
        if !self.is_first {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Nor does what came before it is served.
#[tokio::test]
async fn g18_a_handshake_that_is_kept_behind_its_end_counts_nothing() {
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (client, io) = tokio::io::duplex(1024);
    let io = terminator.track(io);
    let connection = io.connection();
    let mut shakes = Box::pin(connection.handshake(async { io }));
    let io = within(BOUND, "its end", shakes.as_mut()).await;
    assert_eq!(terminator.stats().connections, 1);
    drop((io, client));
    assert_eq!(terminator.stats().connections, 0);
    let begin = Instant::now();
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.is_clean(), "{report}");
    assert!(begin.elapsed() < BOUND / 2);
    drop(shakes);
}

fn kept<F>(served: F) -> Pin<Box<dyn Future<Output = ()> + Send>>
where
    F: Future + Send + 'static,
{
    let mut served = Box::pin(served);
    Box::pin(poll_fn(move |cx| served.as_mut().poll(cx).map(|_| ())))
}

#[tokio::test]
async fn g17_the_cancellation_token_is_cancelled_at_draining() {
    let lame = Duration::from_secs(1);
    let terminator = Terminator::builder().lame_duck(lame).build();
    let guard = terminator.guard();
    let (mine, other) = (
        terminator.cancellation_token(),
        terminator.cancellation_token(),
    );
    mine.cancel();
    assert!(!other.is_cancelled(), "somebody else's");
    assert!(!terminator.cancellation_token().is_cancelled());
    assert_eq!(terminator.phase(), Phase::Serving);
    assert!(terminator.draining().now_or_never().is_none());

    let began = Instant::now();
    let ended = terminator.terminate();
    assert!(!other.is_cancelled(), "in the lame-duck phase");
    within(BOUND, "the token", other.cancelled()).await;
    assert!(began.elapsed() >= lame);
    assert_eq!(terminator.phase(), Phase::Draining);
    assert!(
        terminator.cancellation_token().is_cancelled(),
        "late is not too late"
    );
    drop(guard);
    within(BOUND, "the end", ended).await;
    assert!(terminator.cancellation_token().is_cancelled());
}

#[tokio::test]
async fn g17_time_left() {
    let (lame, grace) = (Duration::from_millis(100), Duration::from_millis(300));
    let terminator = Terminator::builder()
        .lame_duck(lame)
        .grace_period(grace)
        .build();
    let guard = terminator.guard();
    assert_eq!(terminator.time_left(), None);
    let ended = terminator.terminate();
    let mut last = lame + grace;
    let first = terminator
        .time_left()
        .expect("a lame duck knows its deadline");
    assert!(first <= last && first > grace, "{first:?}");
    within(BOUND, "the drain", terminator.draining()).await;
    let mut falls = 0;
    while terminator.phase() == Phase::Draining {
        let left = terminator.time_left().expect("known while draining");
        // The drain began a moment later than planned.
        assert!(
            left <= grace && (falls == 0 || left <= last),
            "{left:?} after {last:?}"
        );
        falls += usize::from(left < last);
        last = left;
        tokio::task::yield_now().await;
    }
    assert!(falls > 10, "it decreases");
    within(BOUND, "the end", ended).await;
    assert_eq!(terminator.time_left(), Some(Duration::ZERO));
    drop(guard);

    // A clean end is long before its deadline.
    let terminator = Terminator::builder()
        .grace_period(Duration::from_secs(60))
        .build();
    within(BOUND, "the end", terminator.terminate()).await;
    let left = terminator.time_left();
    assert!(left > Some(Duration::from_secs(30)), "{left:?}");

    let terminator = Terminator::builder().grace_period(None).build();
    let guard = terminator.guard();
    let ended = terminator.terminate();
    assert_eq!(
        (terminator.phase(), terminator.time_left()),
        (Phase::Draining, None)
    );
    drop(guard);
    within(BOUND, "the end", ended).await;
}

#[tokio::test]
async fn g17_guards_hold_the_drain_and_clones_count() {
    let terminator = Terminator::new();
    let guard = terminator.guard().expect("serving");
    let clone = guard.clone();
    assert_eq!(terminator.stats().guards, 2);
    let mut ended = terminator.terminate();
    assert!(terminator.guard().is_none(), "too late");
    assert!(terminator.guard().is_none(), "refusing leaves no trace");
    assert_eq!(terminator.stats().guards, 2);
    drop(guard);
    let held = tokio::time::timeout(Duration::from_millis(100), &mut ended).await;
    assert!(held.is_err(), "the clone holds it");
    assert_eq!(
        (terminator.phase(), terminator.stats().guards),
        (Phase::Draining, 1)
    );
    // A guard that is held may still be passed on.
    let another = clone.clone();
    drop(clone);
    let held = tokio::time::timeout(Duration::from_millis(50), &mut ended).await;
    assert!(held.is_err(), "the clone's clone holds it");
    drop(another);
    let report = within(Duration::from_secs(1), "the end", ended).await;
    assert!(report.is_clean(), "{report}");
    assert!(terminator.guard().is_none());
    assert_eq!(terminator.stats().guards, 0);
}

#[tokio::test]
async fn g17_guards_left_at_the_deadline_are_counted() {
    let grace = Duration::from_millis(50);
    let terminator = Terminator::builder().grace_period(grace).build();
    let guards = (terminator.guard(), terminator.guard());
    let began = Instant::now();
    let report = within(BOUND, "the end", terminator.terminate()).await;
    let took = began.elapsed();
    assert!(
        took >= grace && took < grace + Duration::from_secs(1),
        "took {took:?}"
    );
    assert_eq!(
        (report.guards_cut, report.is_clean()),
        (2, false),
        "{report}"
    );
    assert!(
        report.to_string().contains("2 guards still held"),
        "{report}"
    );
    drop(guards);
    assert_eq!(terminator.terminated().await, report);
}

#[tokio::test]
async fn g17_spawned_work_is_awaited() {
    let terminator = Terminator::new();
    let gate = Gate::new();
    let held = gate.clone();
    let work = terminator.spawn(async move {
        held.enter().await;
        7
    });
    gate.wait_entered_async(1).await;
    assert_eq!(terminator.stats().guards, 1);
    let mut ended = terminator.terminate();
    // A request that finishes may leave something behind: also now it is waited for.
    let held = gate.clone();
    let late = terminator.spawn(async move {
        held.enter().await;
        8
    });
    gate.wait_entered_async(2).await;
    assert_eq!(terminator.stats().guards, 2);
    let held = tokio::time::timeout(Duration::from_millis(50), &mut ended).await;
    assert!(held.is_err(), "it is waited for");
    gate.open();
    let report = within(BOUND, "the end", ended).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(work.await.expect("no panic"), Some(7));
    assert_eq!(late.await.expect("no panic"), Some(8));
}

#[tokio::test]
async fn g17_spawned_work_is_cut_by_force() {
    let terminator = Terminator::new();
    let gate = Gate::new();
    let held = gate.clone();
    let work = terminator.spawn(async move {
        held.enter().await;
        pending::<()>().await;
    });
    gate.wait_entered_async(1).await;
    let report = within(Duration::from_secs(1), "the end", terminator.force()).await;
    assert_eq!(gate.inside(), 0, "it was dropped");
    assert_eq!(
        within(BOUND, "the work", work).await.expect("no panic"),
        None
    );
    assert_eq!(report.guards_cut, 0, "it let go in time: {report}");

    let polled = Arc::new(AtomicBool::new(false));
    let saw = Arc::clone(&polled);
    let late = terminator.spawn(async move { saw.store(true, Ordering::SeqCst) });
    assert_eq!(
        within(BOUND, "the late work", late)
            .await
            .expect("no panic"),
        None
    );
    assert!(!polled.load(Ordering::SeqCst), "never polled");
}

/// A panic in spawned work holds nothing.
#[tokio::test]
async fn g17_spawned_work_that_panics_is_waited_for_no_longer() {
    let terminator = Terminator::new();
    let work = terminator.spawn(async { panic!("this work panics on purpose") });
    assert!(
        within(BOUND, "the work", work)
            .await
            .expect_err("a panic")
            .is_panic()
    );
    let report = within(Duration::from_secs(1), "the end", terminator.terminate()).await;
    assert!(report.is_clean(), "{report}");
}

/// Interleaving: the driver reads the guards and finds none; the last connection's handler spawns work
/// and ends; the driver reads the connections and finds none. Together: all gone, with work alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_work_spawned_by_the_last_connection_is_awaited() {
    // Others look as well: whoever counts the connections has to wait for locks, which takes time.
    let looked_at = Arc::new(Mutex::new(Some(Terminator::new())));
    let lookers: Vec<_> = (0..2)
        .map(|_| {
            let looked_at = Arc::clone(&looked_at);
            thread::spawn(move || {
                let next = || looked_at.lock().expect("no panic in here").clone();
                while let Some(terminator) = next() {
                    for _ in 0..20 {
                        terminator.stats();
                    }
                }
            })
        })
        .collect();
    let (mut early, began) = (None, Instant::now());
    for round in 0..4_000_usize {
        let terminator = Terminator::new();
        *looked_at.lock().expect("no panic in here") = Some(terminator.clone());
        // Numbers are handed out in turn, and with them the places in which a count looks: be last.
        let mut last = terminator.track(());
        for _ in 1..15 {
            last = terminator.track(());
        }
        let go = Arc::new(Notify::new());
        let held = Arc::clone(&go);
        let mut ended = terminator.terminate();
        // The driver starts at about now: meet it at different times.
        for _ in 0..round * 7_919 % 6_000 {
            std::hint::spin_loop();
        }
        let work = terminator.spawn(async move { held.notified().await });
        drop(last);
        // There is nothing to be seen of an end that does not come: look for a moment.
        let until = Instant::now() + Duration::from_micros(200);
        let end = loop {
            let end = (&mut ended).now_or_never();
            if end.is_some() || Instant::now() > until {
                break end;
            }
            thread::yield_now();
        };
        go.notify_one();
        let output = work.await.expect("no panic");
        let report = match end {
            Some(report) => report,
            None => within(BOUND, "the end", ended).await,
        };
        if !report.is_clean() || output.is_none() {
            early = Some(format!("round {round}: {output:?}, {report}"));
            break;
        }
        if began.elapsed() > Duration::from_secs(4) {
            break; // rare as it is, a few thousand rounds are to find it
        }
    }
    *looked_at.lock().expect("no panic in here") = None;
    for looker in lookers {
        looker.join().expect("no panic in here");
    }
    assert_eq!(early, None, "ended without the work");
}

/// An accept loop of one's own has a last one in its hands as the drain ends. Interleaving: the driver finds nothing left; it
/// joins; the last sweep cuts it; the report counts it as forced.
#[test]
fn g18_who_comes_when_all_are_gone_is_no_part_of_the_report() {
    let began = Instant::now();
    let mut round = 0;
    // In every third round or so it met that moment.
    while round < 300 && began.elapsed() < Duration::from_secs(4) {
        let terminator = Terminator::new();
        let accepts = {
            let terminator = terminator.clone();
            thread::spawn(move || {
                while terminator.phase() < Phase::Terminated {
                    let io = terminator.track(());
                    for _ in 0..round * 7_919 % 300 {
                        std::hint::spin_loop();
                    }
                    drop(io);
                    for _ in 0..300 {
                        std::hint::spin_loop();
                    }
                }
            })
        };
        let report = block_on(terminator.terminate());
        accepts.join().expect("no panic");
        assert!(
            report.is_clean() && report.stragglers.is_empty(),
            "round {round}: {report:?}"
        );
        round += 1;
    }
}

/// As server-sent events do: a response without an end ends well when the drain begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_stream_ends_its_response_cleanly() {
    for front in FrontEnd::all() {
        let terminator = Terminator::new();
        let watched = terminator.clone();
        let events = get(move || {
            let terminator = watched.clone();
            async move {
                let events = stream::iter(["event\n"]).chain(stream::pending());
                let events = events.take_until(terminator.draining());
                Body::from_stream(events.map(Ok::<_, Infallible>))
            }
        });
        let router = app(App::default()).route("/events", events);
        let server = start(front, &terminator, router).await;
        let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.get("/events");
            assert_eq!(client.read_response_headers().status, 200, "{front:?}");
            assert_eq!(
                client.read_chunk().as_deref(),
                Some(&b"event\n"[..]),
                "{front:?}"
            );
        }
        let ended = terminator.terminate();
        for client in &mut clients {
            assert_eq!(
                client.read_chunk(),
                None,
                "{front:?}: the terminating chunk"
            );
            client.expect_eof();
        }
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        assert!(
            report.draining < Duration::from_secs(1),
            "{front:?}: {report}"
        );

        // Who asks for events now learns at once; there is nobody to ask here but the future.
        let late = stream::pending::<()>().take_until(terminator.draining());
        assert_eq!(within(BOUND, "a late stream", late.count()).await, 0);
    }
}

// ===== helpers =====

fn gated(gate: &Gate) -> Router {
    app(App {
        gate: gate.clone(),
        terminator: None,
    })
}

/// An application, and what tells whether anything of it is alive.
fn tokened(gate: &Gate) -> (Router, Weak<()>) {
    let token = Arc::new(());
    let weak = Arc::downgrade(&token);
    (gated(gate).layer(Extension(token)), weak)
}

/// Or a count of none would say nothing.
#[track_caller]
fn assert_open(server: &Server, connections: usize) {
    if cfg!(target_os = "linux") {
        assert_eq!(server.target.open_fds(), connections);
    }
}

/// Calls `terminate()` on `n` threads at once, then `then`, and gives all reports.
fn terminate_from(n: usize, terminator: &Terminator, then: impl FnOnce()) -> Vec<Report> {
    let barrier = Barrier::new(n);
    let called = AtomicUsize::new(0);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..n)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let ended = terminator.terminate();
                    called.fetch_add(1, Ordering::SeqCst);
                    block_on(ended)
                })
            })
            .collect();
        until("`terminate` does not block", || {
            called.load(Ordering::SeqCst) == n
        });
        then();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a report"))
            .collect()
    })
}

/// Awaits without any runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    let began = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park_timeout(BOUND);
        assert!(began.elapsed() < BOUND, "not woken within {BOUND:?}");
    }
}
