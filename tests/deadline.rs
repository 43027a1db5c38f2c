//! The deadline, whatever handlers do: what is pending, what blocks its thread, what has lost its
//! runtime (G10, G11, G12).
//!
//! Where threads of a runtime are blocked, nothing of the test runs on it: servers run on runtimes
//! made by hand, clients and waits on plain threads.

#![cfg(all(unix, feature = "serve"))]
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
use std::future::Future;
use std::hint;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use futures_util::stream;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{self, Runtime};

use http_terminator::{Phase, Protocol, Report, Terminator};
use support::load::{LOAD, stolen_in_the_last};
use support::outside::{LATE, PROMISED, promised};
use support::starts::{Start, no_starts};
use support::wait::{time_passes, until_stats};
use support::{
    App, BIG, BOUND, FrontEnd, Gate, RawClient, RawH2, ReadEnd, Served, Server, TLS_KEY, Target,
    app, big, kind, open_fds_to, start, tls_key,
};

const GRACE: Duration = Duration::from_millis(300);

/// What ends before its deadline ends long before.
const SOON: Duration = Duration::from_secs(1);

/// For deadlines that are not to be reached.
const FAR: Duration = Duration::from_secs(30);

// ===== G10: what the client sees =====

#[test]
fn g10_a_pending_request_is_answered_503_at_the_deadline() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        let host = Host::start(Flavour::TwoWorkers, front, &grace(GRACE));
        let mut client = host.server.connect();
        client.get("/slow");
        host.gate.wait_entered(1);
        let begin = Instant::now();
        let ended = host.terminator.terminate();
        let response = client.read_response();
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the 503"));
        assert_eq!(response.status, 503, "{front:?}: {response:?}");
        assert!(response.says_close(), "{front:?}: {response:?}");
        client.expect_eof();
        let report = block_on(ended);
        promised(&report, GRACE);
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the report"));
        host.assert_no_fds();
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        assert_eq!(report.answered_at_deadline, 1, "{front:?}: {report}");
        assert_eq!(report.connections(), 1, "{front:?}: {report}");
        assert_eq!(report.unresponsive, 0, "{front:?}: {report}");
        assert!(!report.is_clean(), "{front:?}");
    }
}

/// Who is late at the deadline is named then, before it is cut. A client that takes the rest of its answer in the 70 ms which
/// a late answer has was named in a clean report, as if it had been.
#[test]
fn g18_who_gets_all_of_its_answer_behind_the_deadline_is_no_straggler() {
    let _measuring = LOAD.read();
    let mut reports = Vec::new();
    for _ in 0..5 {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let (terminator, gate) = (grace(GRACE), Gate::new());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket can be");
        let mut client = RawClient::connect(listener.local_addr().expect("bound"));
        let inside = gate.clone();
        // What it answers says close.
        let late = async move || {
            inside.enter().await;
            big()
        };
        let entered = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        drop(runtime.spawn(terminator.serve(listener, Router::new().route("/", get(late)))));
        drop(entered);
        client.get("/");
        gate.wait_entered(1);
        let ended = terminator.terminate();
        gate.open();
        while terminator.phase() < Phase::Forcing {
            thread::yield_now();
        }
        assert!(client.read_response_headers().says_close());
        assert_ne!(client.read_to_end(), ReadEnd::Timeout);
        let report = block_on(ended);
        assert_eq!(report.stragglers.len(), report.forced, "{report}");
        reports.push(report);
    }
    assert!(reports.iter().any(Report::is_clean), "{reports:?}");
}

/// A handler that nobody will ever wake.
#[test]
fn g10_a_handler_that_is_pending_for_ever_is_answered_503() {
    let _measuring = LOAD.read();
    for flavour in Flavour::ALL {
        let host = Host::start(flavour, FrontEnd::Serve, &grace(GRACE));
        let mut client = host.server.connect();
        client.get("/pending");
        host.wait_requests(1);
        let begin = Instant::now();
        let ended = host.terminator.terminate();
        let response = client.read_response();
        assert_eq!(response.status, 503, "{flavour:?}: {response:?}");
        client.expect_eof();
        assert_at_deadline(begin.elapsed(), &format!("{flavour:?}: the 503"));
        assert_eq!(block_on(ended).answered_at_deadline, 1, "{flavour:?}");
    }
}

#[test]
fn g10_nothing_is_answered_at_the_deadline_if_so_wished() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        let terminator = Terminator::builder()
            .grace_period(GRACE)
            .answer_at_deadline(false)
            .build();
        let host = Host::start(Flavour::TwoWorkers, front, &terminator);
        let mut client = host.server.connect();
        client.get("/slow");
        host.gate.wait_entered(1);
        let begin = Instant::now();
        let ended = terminator.terminate();
        client.expect_eof();
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the end of file"));
        let report = block_on(ended);
        promised(&report, GRACE);
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the report"));
        host.assert_no_fds();
        assert_eq!(
            (report.forced, report.answered_at_deadline),
            (1, 0),
            "{front:?}: {report}"
        );
    }
}

/// The deadline comes while the connection is being polled, just after its handler was: the handler
/// was pending and has not seen the phase, the connection's future sees it right after, and must not
/// take that poll for the last. A window of a microsecond, so it is tried at many moments.
#[test]
fn g10_a_deadline_in_the_middle_of_a_poll_is_answered_503() {
    const ROUNDS: usize = 2000;

    let _alone = LOAD.write();
    let runtime = Flavour::TwoWorkers.runtime();
    let (mut unanswered, mut judged) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let terminator = grace(FAR);
        let (mut client, server) = tokio::io::duplex(4096);
        let polled = Arc::new(AtomicUsize::new(0));
        let polls = polled.clone();
        let service = service_fn(move |_: Request<Incoming>| {
            let polls = polls.clone();
            std::future::poll_fn(move |_| {
                polls.fetch_add(1, Ordering::SeqCst);
                Poll::<Result<Response<String>, Infallible>>::Pending
            })
        });
        let io = terminator.track(server);
        let builder = auto::Builder::new(TokioExecutor::new());
        let task = runtime.spawn(io.connection().serve(&builder, io, service));
        let sent = client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        runtime.block_on(sent).expect("there is room");
        let begin = Instant::now();
        while polled.load(Ordering::SeqCst) == 0 {
            assert!(begin.elapsed() < BOUND, "never polled");
            hint::spin_loop();
        }
        for _ in 0..round % 64 {
            hint::spin_loop();
        }
        let begin = Instant::now();
        let ended = terminator.force();
        let mut answer = String::new();
        let read = runtime.block_on(client.read_to_string(&mut answer));
        let took = begin.elapsed();
        // Later the driver has cut it, as nobody ran its task: that is the load, and no race.
        let in_time = took < Duration::from_millis(50);
        judged += usize::from(in_time);
        if in_time && (read.is_err() || !answer.starts_with("HTTP/1.1 503")) {
            unanswered.push((round, took, answer));
        }
        let report = block_on(ended);
        assert_eq!(report.forced, 1, "{report}");
        drop(task);
    }
    assert!(judged > 0, "none of {ROUNDS} rounds was in time");
    assert!(
        unanswered.is_empty(),
        "{} of {ROUNDS}: {unanswered:?}",
        unanswered.len()
    );
}

/// A head that has gone out is not followed by a second one.
#[test]
fn g10_a_response_that_has_begun_is_cut_at_the_deadline() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        let host = Host::start(Flavour::TwoWorkers, front, &grace(GRACE));
        let mut client = host.server.connect();
        client.get("/stream");
        let head = client.read_response_headers();
        assert_eq!(head.status, 200, "{front:?}: {head:?}");
        assert_eq!(client.read_chunk().as_deref(), Some(&b"first\n"[..]));
        host.gate.wait_entered(1);
        let begin = Instant::now();
        let ended = host.terminator.terminate();
        assert_eq!(
            client.try_read_chunk(),
            Err(ReadEnd::Truncated),
            "{front:?}"
        );
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the cut"));
        let report = block_on(ended);
        host.assert_no_fds();
        assert_eq!(
            (report.forced, report.answered_at_deadline),
            (1, 0),
            "{front:?}: {report}"
        );
    }
}

/// A reset would destroy the 503: what still comes in is to be discarded first.
#[test]
fn g10_the_503_survives_an_upload_that_nobody_reads() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        let host = Host::start(Flavour::TwoWorkers, front, &grace(GRACE));
        let mut client = host.server.connect();
        client.send("POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n");
        client.send(vec![b'x'; 100_000]);
        host.gate.wait_entered(1);
        let begin = Instant::now();
        let ended = host.terminator.terminate();
        let response = client.read_response();
        assert_eq!(response.status, 503, "{front:?}: {response:?}");
        assert!(response.says_close(), "{front:?}: {response:?}");
        client.expect_reset_or_eof();
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the end"));
        let report = block_on(ended);
        promised(&report, GRACE);
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the report"));
        host.assert_no_fds();
        assert_eq!(report.forced, 1, "{front:?}: {report}");
    }
}

#[test]
fn g10_http2_is_cut_at_the_deadline() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        let host = Host::start(Flavour::TwoWorkers, front, &grace(GRACE));
        let mut client = RawH2::connect(&host.server.target);
        client.get("/slow", 1);
        host.gate.wait_entered(1);
        let begin = Instant::now();
        let ended = host.terminator.terminate();
        while client.try_read_frame().is_ok() {}
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the end"));
        let report = block_on(ended);
        promised(&report, GRACE);
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the report"));
        host.assert_no_fds();
        assert_eq!(
            (report.forced, report.answered_at_deadline),
            (1, 0),
            "{front:?}: {report}"
        );
        let straggler = &report.stragglers[0];
        assert_eq!(straggler.protocol, Protocol::Http2, "{front:?}: {report}");
        assert_eq!(straggler.method.as_deref(), Some("GET"), "{front:?}");
        assert_eq!(straggler.path.as_deref(), Some("/slow"), "{front:?}");
    }
}

/// A client that does not read is owed bytes, but not past the deadline.
#[test]
fn g10_a_client_that_does_not_read_is_cut_at_the_deadline() {
    let _alone = LOAD.write();
    assert_eq!(big().len(), BIG, "made before time matters");
    for front in FrontEnd::all() {
        let host = Host::start(Flavour::TwoWorkers, front, &grace(GRACE));
        let mut client = host.server.connect();
        client.get("/big");
        client.read_response_headers();
        let begin = Instant::now();
        let report = block_on(host.terminator.terminate());
        promised(&report, GRACE);
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the report"));
        host.assert_no_fds();
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        assert!(!report.is_clean(), "{front:?}: {report}");
        // The handler is done and its body dropped; the response is not.
        assert_eq!(report.stragglers.len(), 1, "{front:?}: {report}");
        let straggler = &report.stragglers[0];
        assert_eq!(
            straggler.method.as_deref(),
            Some("GET"),
            "{front:?}: {report}"
        );
        assert_eq!(
            straggler.path.as_deref(),
            Some("/big"),
            "{front:?}: {report}"
        );
    }
}

/// One that keeps sending neither.
#[test]
fn g10_a_client_that_keeps_sending_is_cut_at_the_deadline() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        let host = Host::start(Flavour::TwoWorkers, front, &grace(GRACE));
        let client = host.server.connect();
        client.send("POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000000\r\n\r\n");
        host.gate.wait_entered(1);
        let begin = Instant::now();
        let ended = host.terminator.terminate();
        let sender = thread::spawn(move || {
            // Never a pause in which the server could think that this was all.
            let junk = vec![b'x'; 16 * 1024];
            while client.try_send(&junk).is_ok() {
                thread::park_timeout(Duration::from_millis(1));
            }
            (client, begin.elapsed())
        });
        let report = block_on(ended);
        promised(&report, GRACE);
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the report"));
        host.assert_no_fds();
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        let (_client, took) = sender.join().expect("the sender does not panic");
        assert_at_deadline(took, &format!("{front:?}: the sender's end"));
    }
}

#[test]
fn g10_the_report_names_the_straggler() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        let host = Host::start(Flavour::TwoWorkers, front, &grace(GRACE));
        let mut idle = host.server.connect();
        assert_eq!(idle.fetch("/quick").text(), "ok");
        let client = host.server.connect();
        client.post("/slow?and=more", "body");
        host.gate.wait_entered(1);
        let begin = Instant::now();
        let report = block_on(host.terminator.terminate());
        promised(&report, GRACE);
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the report"));
        assert_eq!(report.stragglers.len(), 1, "{front:?}: {report}");
        let straggler = &report.stragglers[0];
        let path = straggler.path.as_deref().unwrap_or_default();
        assert_eq!(straggler.protocol, Protocol::Http1, "{front:?}: {report}");
        assert_eq!(
            straggler.method.as_deref(),
            Some("POST"),
            "{front:?}: {report}"
        );
        assert!(path.starts_with("/slow"), "{front:?}: {report}");
        let local = client.socket().local_addr().expect("it is connected");
        let peer = host.server.addr.and(local.as_socket());
        assert_eq!(straggler.peer, peer, "{front:?}: {report}");
        assert!(straggler.age >= GRACE, "{front:?}: {report}");
        assert!(
            straggler.age < begin.elapsed() + BOUND,
            "{front:?}: {report}"
        );
        assert!(!straggler.unresponsive, "{front:?}: {report}");
        assert_eq!((report.idle, report.forced), (1, 1), "{front:?}: {report}");
    }
}

// ===== G12: other deadlines =====

#[test]
fn g12_force_goes_there_at_once() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        for terminate_first in [false, true] {
            let host = Host::start(Flavour::TwoWorkers, front, &grace(FAR));
            let mut client = host.server.connect();
            client.get("/slow");
            host.gate.wait_entered(1);
            if terminate_first {
                drop(host.terminator.terminate());
                client.set_timeout(Duration::from_millis(100));
                assert_eq!(client.try_read_response().err(), Some(ReadEnd::Timeout));
                client.set_timeout(BOUND);
            }
            let begin = Instant::now();
            let ended = host.terminator.force();
            let response = client.read_response();
            assert_eq!(response.status, 503, "{front:?}: {response:?}");
            client.expect_eof();
            let report = block_on(ended);
            promised(&report, Duration::ZERO);
            assert_within(begin.elapsed(), LATE, &format!("{front:?}: the report"));
            host.assert_no_fds();
            assert_eq!(report.forced, 1, "{front:?}: {report}");
            assert_eq!(block_on(host.terminator.terminate()), report, "one report");
        }
    }
}

#[test]
fn g12_a_grace_period_of_zero_goes_there_at_once() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        let host = Host::start(Flavour::TwoWorkers, front, &grace(Duration::ZERO));
        let mut client = host.server.connect();
        client.get("/slow");
        host.gate.wait_entered(1);
        let begin = Instant::now();
        let ended = host.terminator.terminate();
        let response = client.read_response();
        assert_eq!(response.status, 503, "{front:?}: {response:?}");
        client.expect_eof();
        let report = block_on(ended);
        promised(&report, Duration::ZERO);
        assert_within(begin.elapsed(), LATE, &format!("{front:?}: the report"));
        host.assert_no_fds();
        assert_eq!(report.forced, 1, "{front:?}: {report}");
    }
}

#[test]
fn g12_without_a_grace_period_it_waits_without_end() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        let terminator = Terminator::builder().grace_period(None).build();
        let host = Host::start(Flavour::TwoWorkers, front, &terminator);
        let mut client = host.server.connect();
        client.get("/slow");
        host.gate.wait_entered(1);
        let mut ended = pin!(terminator.terminate());
        assert_eq!(terminator.time_left(), None);
        client.set_timeout(Duration::from_millis(500));
        assert_eq!(
            client.try_read_response().err(),
            Some(ReadEnd::Timeout),
            "{front:?}"
        );
        client.set_timeout(BOUND);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(
            ended.as_mut().poll(&mut cx).is_pending(),
            "{front:?}: it is to wait"
        );
        assert_eq!(terminator.phase(), Phase::Draining, "{front:?}");
        host.gate.open();
        let response = client.read_response();
        assert_eq!(response.text(), "slow", "{front:?}: {response:?}");
        assert!(response.says_close(), "{front:?}: {response:?}");
        client.expect_eof();
        let report = block_on(ended);
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(report.finished, 1, "{front:?}: {report}");
    }
}

// ===== G11: blocked threads =====

#[test]
fn g11_one_blocked_handler_of_two_workers_moves_no_deadline() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        blocked_handlers(Flavour::TwoWorkers, front, 1);
    }
}

#[test]
fn g11_all_workers_blocked_move_no_deadline() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        blocked_handlers(Flavour::TwoWorkers, front, 2);
    }
}

#[test]
fn g11_a_blocked_current_thread_runtime_moves_no_deadline() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        blocked_handlers(Flavour::CurrentThread, front, 1);
    }
}

/// `terminate()` is called from a plain thread, with so many handlers blocking theirs.
#[track_caller]
fn blocked_handlers(flavour: Flavour, front: FrontEnd, n: usize) {
    let _alone = no_starts();
    let what = format!("{flavour:?}, {front:?}, {n} blocked");
    let host = Host::start(flavour, front, &grace(GRACE));
    let mut idle = host.server.connect();
    assert_eq!(idle.fetch("/quick").text(), "ok");
    let blocking: Vec<_> = (0..n).map(|_| host.server.connect()).collect();
    for client in &blocking {
        client.get("/block");
    }
    host.wait_blocked(n);

    let begin = Instant::now();
    let ended = host.terminator.terminate();
    let idle = Watch::start(idle, begin);
    let blocking: Vec<_> = blocking
        .into_iter()
        .map(|it| Watch::late(it, begin))
        .collect();
    let report = block_on(ended);
    promised(&report, GRACE);
    assert_at_deadline(begin.elapsed(), &format!("{what}: the report"));
    host.assert_no_fds();
    if let Some(addr) = host.server.addr {
        let refused = RawClient::try_connect(addr);
        assert!(refused.is_err(), "{what}: the listener is open");
    }
    let (_idle, took) = idle.end();
    assert_within(
        took,
        GRACE + LATE,
        &format!("{what}: the idle connection's end"),
    );
    for watch in blocking {
        let (_client, took) = watch.end();
        assert_at_deadline(took, &format!("{what}: a blocked connection's end"));
    }

    assert_names(&report, n, "/block", &what);
    assert_eq!(report.connections(), n + 1, "{what}: {report}");
    assert!(report.forced >= n, "{what}: {report}");
}

/// Requests that come while nobody runs the runtime: they lie in their sockets, where nobody has read them.
#[test]
fn g10_what_nobody_could_read_is_answered_503() {
    let _measuring = LOAD.read();
    for flavour in Flavour::ALL {
        for front in FrontEnd::all() {
            let what = format!("{flavour:?}, {front:?}");
            let host = Host::start(flavour, front, &grace(GRACE));
            let mut kept: Vec<_> = (0..4).map(|_| host.server.connect()).collect();
            for client in &mut kept {
                assert_eq!(client.fetch("/quick").text(), "ok");
            }
            let n = flavour.threads();
            let blocking: Vec<_> = (0..n).map(|_| host.server.connect()).collect();
            for client in &blocking {
                client.get("/block");
            }
            host.wait_blocked(n);
            for client in &mut kept {
                client.get("/quick");
            }
            let report = block_on(host.terminator.terminate());
            for client in &mut kept {
                let response = client.read_response();
                assert_eq!(response.status, 503, "{what}: {report}");
                assert!(response.says_close(), "{what}: {response:?}");
                client.expect_eof();
            }
            assert_eq!(report.answered_at_deadline, n + 4, "{what}: {report}");
            assert_eq!(report.forced, n + 4, "{what}: {report}");
            promised(&report, GRACE);
            drop(blocking);
        }
    }
}

/// Two streams of one connection block two workers: two handlers, both to be named.
#[test]
fn g11_two_blocked_http2_handlers_of_one_connection_are_both_counted() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        let host = Host::start(Flavour::TwoWorkers, front, &grace(GRACE));
        let mut client = RawH2::connect(&host.server.target);
        client.read_until(kind::SETTINGS);
        client.get("/block", 1);
        client.get("/block", 3);
        host.wait_blocked(2);
        let begin = Instant::now();
        let ended = host.terminator.terminate();
        client.expect_eof_within(BOUND);
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the client's end"));
        let report = block_on(ended);
        promised(&report, GRACE);
        assert_at_deadline(begin.elapsed(), &format!("{front:?}: the report"));
        host.assert_no_fds();
        assert_eq!(report.connections(), 1, "{front:?}: {report}");
        assert_names(&report, 2, "/block", &format!("{front:?}"));
    }
}

#[test]
fn g11_a_body_that_blocks_its_thread_moves_no_deadline() {
    let _measuring = LOAD.read();
    for flavour in Flavour::ALL {
        let gate = Gate::new();
        let inside = gate.clone();
        let body = move || {
            let gate = inside.clone();
            let last = stream::once(async move {
                gate.enter_blocking();
                Ok::<_, Infallible>("never\n")
            });
            std::future::ready(Body::from_stream(last))
        };
        let router = Router::new().route("/body", get(body));
        let host = Host::with(flavour, FrontEnd::Serve, &grace(GRACE), &gate, router);
        let client = host.server.connect();
        client.get("/body");
        host.wait_blocked(1);
        let begin = Instant::now();
        let ended = host.terminator.terminate();
        // Whether its head is out is hyper's affair; the end is ours.
        let report = block_on(ended);
        promised(&report, GRACE);
        assert_at_deadline(begin.elapsed(), &format!("{flavour:?}: the report"));
        host.assert_no_fds();
        assert_names(&report, 1, "/body", &format!("{flavour:?}"));
        drop(client);
    }
}

/// A hyper service may block before it returns a future at all.
#[test]
fn g11_a_service_that_blocks_in_its_call_is_named() {
    let _measuring = LOAD.read();
    for flavour in Flavour::ALL {
        let terminator = grace(GRACE);
        let gate = Gate::new();
        let host = Host::run(flavour, &terminator, &gate, {
            let (terminator, gate) = (terminator.clone(), gate.clone());
            async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
                let listener = listener.expect("a free port");
                let addr = listener.local_addr().expect("bound");
                let mut listener = terminator.listen(listener);
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    while let Some((io, _)) = listener.accept().await {
                        let gate = gate.clone();
                        let service = service_fn(move |_: Request<Incoming>| {
                            gate.enter_blocking();
                            let response = Response::new("blocked".to_owned());
                            std::future::ready(Ok::<_, Infallible>(response))
                        });
                        tokio::spawn(io.connection().serve(&builder, io, service));
                    }
                });
                addr
            }
        });
        let client = RawClient::connect(host.server);
        client.get("/call");
        host.wait_blocked(1);
        let begin = Instant::now();
        let ended = terminator.terminate();
        let watch = Watch::late(client, begin);
        let report = block_on(ended);
        promised(&report, GRACE);
        assert_at_deadline(begin.elapsed(), &format!("{flavour:?}: the report"));
        assert_eq!(open_fds_to(host.server.port()), 0, "{flavour:?}");
        let (_client, took) = watch.end();
        assert_at_deadline(took, &format!("{flavour:?}: the client's end"));
        assert_names(&report, 1, "/call", &format!("{flavour:?}"));
    }
}

/// The blocked worker may hold the runtime's IO and timer driver: somebody has to wake the other.
#[test]
fn g11_one_blocked_handler_keeps_no_other_connection_from_being_drained() {
    let _measuring = LOAD.read();
    for front in FrontEnd::all() {
        for _ in 0..3 {
            let hold = Gate::new();
            let inside = hold.clone();
            let handler = move || {
                let gate = inside.clone();
                async move {
                    gate.enter().await;
                    "held"
                }
            };
            let gate = Gate::new();
            let router = app(App {
                gate: gate.clone(),
                terminator: None,
            });
            let router = router.route("/hold", get(handler));
            let terminator = grace(Duration::from_secs(5));
            let host = Host::with(Flavour::TwoWorkers, front, &terminator, &gate, router);

            let mut idle = host.server.connect();
            assert_eq!(idle.fetch("/quick").text(), "ok");
            let mut busy = host.server.connect();
            busy.get("/hold");
            hold.wait_entered(1);
            let mut blocked = host.server.connect();
            blocked.get("/block");
            host.wait_blocked(1);

            let begin = Instant::now();
            let ended = terminator.terminate();
            idle.expect_eof();
            assert_within(
                begin.elapsed(),
                SOON,
                &format!("{front:?}: the idle one's end"),
            );
            hold.open();
            let response = busy.read_response();
            assert_eq!(response.text(), "held", "{front:?}: {response:?}");
            assert!(response.says_close(), "{front:?}: {response:?}");
            busy.expect_eof();
            assert_within(
                begin.elapsed(),
                SOON,
                &format!("{front:?}: the busy one's end"),
            );
            assert!(blocked.is_still_open(), "{front:?}: it has 5 s");

            // A handler that yields after all is served as any other.
            gate.open();
            let response = blocked.read_response();
            assert_eq!(response.text(), "blocked", "{front:?}: {response:?}");
            assert!(response.says_close(), "{front:?}: {response:?}");
            blocked.expect_eof();
            let report = block_on(ended);
            assert!(report.is_clean(), "{front:?}: {report}");
            assert_eq!(
                (report.idle, report.finished),
                (1, 2),
                "{front:?}: {report}"
            );
        }
    }
}

/// Blocked for a while during the drain, but done before the deadline: nothing happened.
#[test]
fn g11_a_runtime_that_was_blocked_for_a_while_drains() {
    let _measuring = LOAD.read();
    for flavour in Flavour::ALL {
        let host = Host::start(flavour, FrontEnd::Serve, &grace(FAR));
        let mut idle = host.server.connect();
        assert_eq!(idle.fetch("/quick").text(), "ok");
        let n = flavour.threads();
        let mut blocked: Vec<_> = (0..n).map(|_| host.server.connect()).collect();
        for client in &blocked {
            client.get("/block");
        }
        host.wait_blocked(n);
        let ended = host.terminator.terminate();
        idle.set_timeout(Duration::from_millis(300));
        let _ = idle.try_read_response(); // a bounded wait: with all threads blocked nothing comes
        idle.set_timeout(BOUND);
        let begin = Instant::now();
        host.gate.open();
        for client in &mut blocked {
            let response = client.read_response();
            assert_eq!(response.text(), "blocked", "{flavour:?}: {response:?}");
            client.expect_eof();
        }
        idle.expect_eof();
        let report = block_on(ended);
        assert_within(begin.elapsed(), SOON, &format!("{flavour:?}: the end"));
        assert!(report.is_clean(), "{flavour:?}: {report}");
    }
}

#[test]
fn g12_force_with_all_threads_blocked() {
    let _measuring = LOAD.read();
    for flavour in Flavour::ALL {
        let host = Host::start(flavour, FrontEnd::Serve, &grace(None));
        let n = flavour.threads();
        let clients: Vec<_> = (0..n).map(|_| host.server.connect()).collect();
        for client in &clients {
            client.get("/block");
        }
        host.wait_blocked(n);
        drop(host.terminator.terminate());
        let begin = Instant::now();
        let ended = host.terminator.force();
        let watches: Vec<_> = clients
            .into_iter()
            .map(|it| Watch::late(it, begin))
            .collect();
        let report = block_on(ended);
        promised(&report, Duration::ZERO);
        assert_within(begin.elapsed(), LATE, &format!("{flavour:?}: the report"));
        host.assert_no_fds();
        for watch in watches {
            let (_client, took) = watch.end();
            assert_within(took, LATE, &format!("{flavour:?}: a client's end"));
        }
        assert_names(&report, n, "/block", &format!("{flavour:?}"));
    }
}

// ===== G11: no runtime at all =====

#[test]
fn g11_a_runtime_that_is_gone_does_not_hang_the_end() {
    let _measuring = LOAD.read();
    for flavour in Flavour::ALL {
        for front in FrontEnd::all() {
            let terminator = grace(FAR);
            let gate = Gate::new();
            let runtime = flavour.runtime();
            let router = app(App {
                gate: gate.clone(),
                terminator: None,
            });
            let server = runtime.block_on(start(front, &terminator, router));
            let mut idle = server.connect();
            let mut busy = server.connect();
            idle.get("/quick");
            busy.get("/slow");
            // On one thread nothing runs but inside of `block_on`.
            runtime.block_on(gate.wait_entered_async(1));
            runtime.shutdown_background();
            let begin = Instant::now();
            let report = block_on(terminator.terminate());
            let what = format!("{flavour:?}, {front:?}");
            assert_within(begin.elapsed(), SOON, &what);
            assert_eq!(report.unresponsive, 0, "{what}: {report}");
            assert_eq!(terminator.stats().connections, 0, "{what}");
            busy.expect_reset_or_eof();
            let _ = idle.try_read_response(); // it may have been answered before
            idle.expect_reset_or_eof();
        }
    }
}

/// A runtime that was told to go, but has a blocked handler that can't: its socket is still there
/// at the deadline.
#[test]
fn g11_a_runtime_that_is_gone_but_for_a_blocked_handler_moves_no_deadline() {
    let _measuring = LOAD.read();
    let terminator = grace(GRACE);
    let gate = Gate::new();
    let runtime = Flavour::TwoWorkers.runtime();
    let router = app(App {
        gate: gate.clone(),
        terminator: None,
    });
    let server = runtime.block_on(start(FrontEnd::Serve, &terminator, router));
    let client = server.connect();
    client.get("/block");
    gate.wait_entered(1);
    runtime.shutdown_background();
    let begin = Instant::now();
    let ended = terminator.terminate();
    let watch = Watch::late(client, begin);
    let report = block_on(ended);
    promised(&report, GRACE);
    assert_within(begin.elapsed(), GRACE + LATE, "the report");
    assert_eq!(open_fds_to(server.port()), 0);
    let (_client, took) = watch.end();
    assert_within(took, GRACE + LATE, "the client's end");
    assert_names(&report, 1, "/block", "a runtime that is gone");
    gate.open();
}

#[test]
fn g11_an_end_outside_of_any_runtime_is_awaited_by_any_executor() {
    let _measuring = LOAD.read();
    // Nothing was ever served.
    let report = block_on(Terminator::new().terminate());
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.connections(), 0, "{report}");

    let host = Host::start(Flavour::TwoWorkers, FrontEnd::Serve, &grace(FAR));
    let mut client = host.server.connect();
    client.get("/slow");
    host.gate.wait_entered(1);
    let terminator = host.terminator.clone();
    let waiting = thread::spawn(move || block_on(terminator.terminated()));
    let draining = host.terminator.draining();
    drop(host.terminator.terminate());
    block_on(draining);
    host.gate.open();
    assert_eq!(client.read_response().text(), "slow");
    let report = block_on(host.terminator.terminate());
    assert_eq!(waiting.join().expect("the waiter ends"), report);
    assert!(report.is_clean(), "{report}");
}

// ===== G11: SIGTERM, in a process of its own =====

#[cfg(feature = "signal")]
mod sigterm {
    use std::env;
    use std::io::{BufRead, BufReader};
    use std::process::{self, ChildStdout, Command, Stdio};

    use super::support::program::{freeze, signal};
    use super::*;

    const FLAVOUR: &str = "HTTP_TERMINATOR_TEST_CHILD";
    const FRONT: &str = "HTTP_TERMINATOR_TEST_FRONT";
    const BLOCKED: &str = "HTTP_TERMINATOR_TEST_BLOCKED";
    const PERIOD: &str = "HTTP_TERMINATOR_TEST_GRACE_MS";

    #[test]
    fn g11_sigterm_with_one_of_two_workers_blocked() {
        let _measuring = LOAD.read();
        let (report, names) = terminated_by_signals(Flavour::TwoWorkers, 1, 1);
        assert_eq!(report, "fds=0 unresponsive=1 clean=false connections=2");
        assert_eq!(names, ["GET /block"]);
    }

    #[test]
    fn g11_sigterm_with_all_workers_blocked() {
        let _measuring = LOAD.read();
        let (report, names) = terminated_by_signals(Flavour::TwoWorkers, 2, 1);
        assert_eq!(report, "fds=0 unresponsive=2 clean=false connections=3");
        assert_eq!(names, ["GET /block", "GET /block"]);
    }

    #[test]
    fn g11_sigterm_with_a_blocked_current_thread_runtime() {
        let _measuring = LOAD.read();
        let (report, names) = terminated_by_signals(Flavour::CurrentThread, 1, 1);
        assert_eq!(report, "fds=0 unresponsive=1 clean=false connections=2");
        assert_eq!(names, ["GET /block"]);
    }

    #[test]
    fn g12_a_second_sigterm_forces_with_all_threads_blocked() {
        let _measuring = LOAD.read();
        for flavour in Flavour::ALL {
            let n = flavour.threads();
            let (report, _) = terminated_by_signals(flavour, n, 2);
            let connections = n + 1;
            assert_eq!(
                report,
                format!("fds=0 unresponsive={n} clean=false connections={connections}")
            );
        }
    }

    /// A machine that is starved, or was asleep: the process gets no processor from before its deadline until
    /// long after it. Then it is late, but not too late for an answer.
    #[test]
    fn g10_a_process_that_missed_its_deadline_still_answers_503() {
        let _measuring = LOAD.read();
        for front in [
            FrontEnd::Serve,
            FrontEnd::OwnLoopAuto,
            FrontEnd::OwnLoopAutoTls,
        ] {
            let mut child = Child::start(Flavour::TwoWorkers, front, 1, GRACE);
            let port: u16 = child.hears("port ").parse().expect("a port");
            let addr = ([127, 0, 0, 1], port).into();
            let target = match front {
                FrontEnd::OwnLoopAutoTls => Target::Tls(addr),
                _ => Target::Tcp(addr),
            };
            let mut client = RawClient::connect(&target);
            client.get("/slow");
            child.hears("blocked");
            child.signal();
            child.hears("draining");
            freeze(child.process.id());
            time_passes(GRACE + Duration::from_millis(200));
            assert!(signal(child.process.id(), "CONT"));
            let response = client.read_response();
            assert_eq!(response.status, 503, "{front:?}: {response:?}");
            assert!(response.says_close(), "{front:?}: {response:?}");
            client.expect_eof();
            child.hears("ended");
            let report = child.hears("report ");
            let expected = "fds=0 unresponsive=0 clean=false connections=1";
            assert_eq!(report, expected, "{front:?}");
        }
    }

    /// Gives what the child says of its report.
    fn terminated_by_signals(
        flavour: Flavour,
        blocked: usize,
        signals: usize,
    ) -> (String, Vec<String>) {
        let period = if signals == 1 { GRACE } else { FAR };
        let mut child = Child::start(flavour, FrontEnd::Serve, blocked, period);
        let port: u16 = child.hears("port ").parse().expect("a port");
        let target = Target::Tcp(([127, 0, 0, 1], port).into());
        let mut idle = RawClient::connect(&target);
        assert_eq!(idle.fetch("/quick").text(), "ok");
        let clients: Vec<_> = (0..blocked).map(|_| RawClient::connect(&target)).collect();
        for client in &clients {
            client.get("/block");
        }
        child.hears("blocked");

        child.signal();
        if signals > 1 {
            // Two within a second are one.
            child.hears("draining");
            time_passes(Duration::from_millis(1_100));
            child.signal();
        }
        let begin = Instant::now();
        let bound = if signals == 1 { GRACE + LATE } else { LATE };
        let mut watches: Vec<_> = clients
            .into_iter()
            .map(|it| Watch::late(it, begin))
            .collect();
        watches.push(Watch::start(idle, begin));
        let what = format!("{flavour:?}, {blocked} blocked, {signals} signals");
        // Held until the child has looked at its file descriptors.
        let mut held = Vec::new();
        for watch in watches {
            let (client, took) = watch.end();
            assert_within(took, bound, &format!("{what}: a client's end"));
            held.push(client);
        }
        child.hears("ended");
        // Through a pipe, from a process that shares the processors with this one.
        let bound = bound + Duration::from_millis(100);
        assert_within(
            begin.elapsed(),
            bound,
            &format!("{what}: the child's report"),
        );
        let report = child.hears("report ");
        let names = child.hears("names ");
        let names = names.split(',').map(str::to_owned).collect();
        // By its own clock, and what its own watch has seen stolen.
        let forcing = child.hears("forcing ").parse().expect("so many ms");
        let promised = Duration::from_millis(forcing) <= PROMISED;
        assert!(promised, "{what}: {forcing} ms, what was stolen aside");
        (report, names)
    }

    /// What the child does. By hand: nothing.
    #[test]
    #[ignore = "the child process of the tests with SIGTERM"]
    fn child() {
        let Ok(flavour) = env::var(FLAVOUR) else {
            return;
        };
        let number = |name| env::var(name).ok().and_then(|value| value.parse().ok());
        let blocked: usize = number(BLOCKED).expect("a number");
        let period = number(PERIOD).expect("a number");
        let flavour = match flavour.as_str() {
            "CurrentThread" => Flavour::CurrentThread,
            _ => Flavour::TwoWorkers,
        };
        let terminator = grace(Duration::from_millis(period as u64));
        let on_signal = terminator.terminate_on_signal();
        let on_signal = on_signal.expect("the handlers are registered");
        let front = match env::var(FRONT).as_deref() {
            Ok("OwnLoopAutoTls") => FrontEnd::OwnLoopAutoTls,
            Ok("OwnLoopAuto") => FrontEnd::OwnLoopAuto,
            _ => FrontEnd::Serve,
        };
        let host = Host::start(flavour, front, &terminator);
        say(&format!("port {}", host.server.port()));
        host.wait_blocked(blocked);
        say("blocked");
        block_on(terminator.draining());
        say("draining");
        let report = block_on(on_signal.into_future());
        say("ended");
        let fds = open_fds_to(host.server.port());
        say(&format!(
            "report fds={fds} unresponsive={} clean={} connections={}",
            report.unresponsive,
            report.is_clean(),
            report.connections(),
        ));
        let names = unresponsive(&report);
        say(&format!("names {}", names.join(",")));
        let forcing = report.forcing.saturating_sub(stolen_in_the_last(SOON));
        say(&format!("forcing {}", forcing.as_millis()));
        drop(host);
    }

    const MARK: &str = "child says: ";

    fn say(what: &str) {
        // The harness may have left its own line unfinished.
        println!("\n{MARK}{what}");
    }

    struct Child {
        process: process::Child,
        lines: BufReader<ChildStdout>,
    }

    impl Child {
        fn start(flavour: Flavour, front: FrontEnd, blocked: usize, period: Duration) -> Self {
            let binary = env::current_exe().expect("a test run is a file");
            let mut process = Command::new(binary)
                .args(["--exact", "sigterm::child", "--ignored", "--nocapture"])
                .env(FLAVOUR, format!("{flavour:?}"))
                .env(FRONT, format!("{front:?}"))
                .env(TLS_KEY, tls_key())
                .env(BLOCKED, blocked.to_string())
                .env(PERIOD, period.as_millis().to_string())
                .stdout(Stdio::piped())
                .start()
                .expect("it runs once more");
            let lines = process.stdout.take().expect("it is piped");
            Self {
                process,
                lines: BufReader::new(lines),
            }
        }

        /// Waits until the child says this and gives the rest. Bounded by the child, none of whose
        /// waits is longer than [`BOUND`].
        #[track_caller]
        fn hears(&mut self, word: &str) -> String {
            for line in (&mut self.lines).lines() {
                let line = line.expect("it is text");
                let said = line.strip_prefix(MARK);
                if let Some(rest) = said.and_then(|said| said.strip_prefix(word)) {
                    return rest.to_owned();
                }
            }
            panic!("the child has ended and never said {word:?}");
        }

        fn signal(&self) {
            assert!(signal(self.process.id(), "TERM"), "it has ended");
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = self.process.kill(); // it may have ended
            let _ = self.process.wait();
        }
    }
}

// ===== what they share =====

fn grace(period: impl Into<Option<Duration>>) -> Terminator {
    Terminator::builder().grace_period(period).build()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    TwoWorkers,
    CurrentThread,
}

impl Flavour {
    const ALL: [Self; 2] = [Self::TwoWorkers, Self::CurrentThread];

    fn runtime(self) -> Runtime {
        let mut builder = match self {
            Self::TwoWorkers => runtime::Builder::new_multi_thread(),
            Self::CurrentThread => runtime::Builder::new_current_thread(),
        };
        let built = builder.worker_threads(self.threads()).enable_all().build();
        built.expect("a runtime can be made")
    }

    /// How many blocking handlers it takes to stall it.
    fn threads(self) -> usize {
        match self {
            Self::TwoWorkers => 2,
            Self::CurrentThread => 1,
        }
    }
}

/// A server whose handlers may block its runtime, and who ends it.
struct Host<S = Server> {
    served: Served<S>,
    terminator: Terminator,
}

impl<S> std::ops::Deref for Host<S> {
    type Target = Served<S>;

    fn deref(&self) -> &Served<S> {
        &self.served
    }
}

impl Host {
    fn start(flavour: Flavour, front: FrontEnd, terminator: &Terminator) -> Self {
        let gate = Gate::new();
        let router = app(App {
            gate: gate.clone(),
            terminator: None,
        });
        Self::with(flavour, front, terminator, &gate, router)
    }

    fn with(
        flavour: Flavour,
        front: FrontEnd,
        terminator: &Terminator,
        gate: &Gate,
        router: Router,
    ) -> Self {
        let serving = terminator.clone();
        Self::run(flavour, terminator, gate, async move {
            start(front, &serving, router).await
        })
    }

    /// No socket of the server's side is open. Clients are to hold theirs.
    #[track_caller]
    fn assert_no_fds(&self) {
        let open = self.server.target.open_fds();
        assert_eq!(open, 0, "file descriptors open after the end");
    }
}

impl<S: Send + 'static> Host<S> {
    fn run(
        flavour: Flavour,
        terminator: &Terminator,
        gate: &Gate,
        server: impl Future<Output = S> + Send + 'static,
    ) -> Self {
        Self {
            served: Served::start(flavour.runtime(), gate, server),
            terminator: terminator.clone(),
        }
    }

    /// Waits until so many requests are in hand.
    #[track_caller]
    fn wait_requests(&self, n: usize) {
        let what = format!("{n} requests in hand");
        until_stats(&self.terminator, &what, |it| it.requests >= n);
    }
}

/// Says when the server has ended a connection, and keeps the client's end.
struct Watch(JoinHandle<(RawClient, Duration)>);

impl Watch {
    /// Nothing is to come before the end.
    fn start(mut client: RawClient, begin: Instant) -> Self {
        Self(thread::spawn(move || {
            client.expect_reset_or_eof();
            (client, begin.elapsed())
        }))
    }

    /// Its handler blocks, so the answer is the driver's own.
    fn late(mut client: RawClient, begin: Instant) -> Self {
        Self(thread::spawn(move || {
            let response = client.read_response();
            assert_eq!(response.status, 503, "{response:?}");
            assert!(response.says_close(), "{response:?}");
            client.expect_reset_or_eof();
            (client, begin.elapsed())
        }))
    }

    #[track_caller]
    fn end(self) -> (RawClient, Duration) {
        self.0.join().expect("the connection ends as it is to")
    }
}

#[track_caller]
fn assert_at_deadline(took: Duration, what: &str) {
    // Both sides read the same clock, but not at the same moment.
    let early = GRACE.saturating_sub(Duration::from_millis(5));
    assert!(
        took >= early,
        "{what}: before the deadline of {GRACE:?}: after {took:?}"
    );
    assert_within(took, GRACE + LATE, what);
}

#[track_caller]
fn assert_within(took: Duration, bound: Duration, what: &str) {
    // Only a loaded machine is an excuse.
    let stolen = stolen_in_the_last(took);
    assert!(
        took < bound + stolen,
        "{what}: {took:?} is more than {bound:?}, and {stolen:?} for the load"
    );
}

#[track_caller]
fn assert_names(report: &Report, n: usize, path: &str, what: &str) {
    assert_eq!(report.unresponsive, n, "{what}: {report}");
    let names = unresponsive(report);
    assert_eq!(names, vec![format!("GET {path}"); n], "{what}: {report}");
    assert!(!report.is_clean(), "{what}: {report}");
}

/// Method and path of each handler that did not yield.
fn unresponsive(report: &Report) -> Vec<String> {
    let blocked = report.stragglers.iter().filter(|it| it.unresponsive);
    let unknown = || "?".to_owned();
    blocked
        .map(|it| {
            let method = it.method.clone().unwrap_or_else(unknown);
            format!("{method} {}", it.path.clone().unwrap_or_else(unknown))
        })
        .collect()
}

/// An executor that knows nothing of tokio.
#[track_caller]
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let begin = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        let left = BOUND.saturating_sub(begin.elapsed());
        assert!(!left.is_zero(), "still pending after {BOUND:?}");
        thread::park_timeout(left);
    }
}
