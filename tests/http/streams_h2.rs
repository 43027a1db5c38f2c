//! The streams of an HTTP/2 connection: which are open (G4, G9), which handlers block (G11), and what
//! a request costs beside many others (G23).
//!
//! The raw clients block in the test's own thread, which is none of the runtime's two workers.
#![cfg(all(unix, feature = "serve"))]

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::task::JoinHandle;

use crate::support::outside::{Host, LATE, block_on, measured};
use crate::support::wait::{busy, idle, time_passes, time_passes_async, until_stats};
use crate::support::{App, BOUND, FrontEnd, Gate, H2Client, RawClient, RawH2};
use crate::support::{app, each, h2_connect_with, kind, start, within};
use http_terminator::{HttpBuilder, Report, Terminator, TerminatorBuilder, TowerToHyper};

/// What happens at once, on a machine with many other things to do: less than what [`patient`] waits.
const SOON: Duration = Duration::from_secs(5);

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CONTINUATION: u8 = 9;

/// `:method GET`, `:scheme http`, `:path /slow` (RFC 7541 appendix A).
const SLOW: &[u8] = b"\x82\x86\x04\x05/slow";

/// A trailer: `a: b`.
const TRAILER: &[u8] = b"\0\x01a\x01b";

// ===== G4, G9: what is open =====

/// The answer did not wait for the upload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_trailers_behind_the_answer_do_not_open_the_stream_again() {
    each(FrontEnd::all_and_tls(), async |front| {
        let what = format!("{front:?}");
        let stall = Duration::from_millis(300);
        let terminator = patient().stall_timeout(stall).build();
        let server = start(front, &terminator, app(App::default())).await;
        let mut h2 = RawH2::connect(&server.target);
        for stream in [1, 3, 5] {
            h2.request("POST", "/early", stream, false);
            while !h2.read_frame().is_end_stream() {}
            h2.send_frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, TRAILER);
        }
        round_trip(&mut h2);
        idle(&terminator, &what);
        stalls(&terminator, &mut h2, stall..stall, &what).await;
    });
}

/// A head of which the rest never comes is owed by the peer, as over HTTP/1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_half_a_head_that_is_never_finished_is_closed_after_the_stall_timeout() {
    each(FrontEnd::all_and_tls(), async |front| {
        for part in [1, 9, 12, 9 + SLOW.len()] {
            let what = format!("{front:?}, {part} bytes");
            let stall = Duration::from_millis(300);
            let terminator = patient().stall_timeout(stall).build();
            let server = start(front, &terminator, app(App::default())).await;
            let mut h2 = RawH2::connect(&server.target);
            round_trip(&mut h2);
            // More is to follow in any case.
            h2.send(&frame(kind::HEADERS, END_STREAM, 1, SLOW)[..part]);
            if part >= 9 {
                busy(&terminator, &what);
            }
            // Of a single byte nobody knows what it begins: told its last stream, such a peer is waited for once more.
            let longest = if part < 9 { stall * 2 } else { stall };
            stalls(&terminator, &mut h2, stall..longest, &what).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_half_a_head_that_is_finished_in_the_drain_is_answered() {
    each(FrontEnd::all_and_tls(), async |front| {
        for part in [9, 12, SLOW.len()] {
            let what = format!("{front:?}, {part} bytes");
            let gate = Gate::new();
            let terminator = patient().build();
            let state = App {
                gate: gate.clone(),
                ..App::default()
            };
            let server = start(front, &terminator, app(state)).await;
            let mut h2 = RawH2::connect(&server.target);
            let (head, more) = SLOW.split_at(4);
            let head = frame(kind::HEADERS, END_STREAM, 1, head);
            let more = frame(CONTINUATION, END_HEADERS, 1, more);
            let head = [head, more].concat();
            h2.send(&head[..part]);
            busy(&terminator, &what);
            let termination = terminator.terminate();
            h2.read_until(kind::GOAWAY);
            h2.send(&head[part..]);
            gate.wait_entered(1);
            let ping = h2.read_until(kind::PING);
            h2.ack_ping(&ping);
            gate.open();
            h2.read_until(kind::HEADERS);
            h2.expect_eof_within(SOON);
            drop(h2); // what it has of the answer is not known until it has closed
            let report = within(BOUND, "the end", termination).await;
            assert_eq!(
                (report.finished, report.connections()),
                (1, 1),
                "{what}: {report}"
            );
        }
    });
}

/// h2 ignores them without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_streams_behind_the_last_goaway_are_not_waited_for() {
    each(FrontEnd::all_and_tls(), async |front| {
        let what = format!("{front:?}");
        let gate = Gate::new();
        let terminator = patient().build();
        let state = App {
            gate: gate.clone(),
            ..App::default()
        };
        let server = start(front, &terminator, app(state)).await;
        let mut h2 = RawH2::connect(&server.target);
        h2.get("/slow", 1);
        gate.wait_entered(1);
        let termination = terminator.terminate();
        let ping = h2.read_until(kind::PING);
        h2.ack_ping(&ping);
        assert_eq!(h2.read_until(kind::GOAWAY).goaway().0, 1, "{what}");
        h2.get("/slow", 3);
        h2.request("POST", "/slow", 5, false);
        gate.open();
        h2.read_until(kind::HEADERS);
        h2.expect_eof_within(SOON);
        drop(h2); // what it has of the answer is not known until it has closed
        let report = within(BOUND, "the end", termination).await;
        assert_eq!(
            (report.finished, report.connections()),
            (1, 1),
            "{what}: {report}"
        );
        assert_eq!(gate.entered(), 1, "{what}");
    });
}

/// The acknowledgment that we hold back is not put into the middle of a head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_half_a_head_behind_the_acknowledgment_is_answered() {
    each(FrontEnd::all_and_tls(), async |front| {
        for part in [9, 12, 9 + 4] {
            let (head, more) = SLOW.split_at(4);
            let head = frame(kind::HEADERS, END_STREAM, 3, head);
            let more = frame(CONTINUATION, END_HEADERS, 3, more);
            let rest = [&head[part..], &more].concat();
            let halves = |_: &RawH2| (head[..part].to_vec(), rest);
            let what = format!("{front:?}, {part} bytes");
            answered_in_halves(front, &what, halves, |h2, half| h2.send(half)).await;
        }
    });
}

/// Nor beside half a TLS record, in which a head may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_half_a_record_behind_the_acknowledgment_is_answered() {
    each(FrontEnd::tls(), async |front| {
        let halves = |h2: &RawH2| {
            let head = frame(kind::HEADERS, END_STREAM | END_HEADERS, 3, SLOW);
            let mut record = h2.encrypt(head);
            let rest = record.split_off(record.len() / 2);
            (record, rest)
        };
        let what = format!("{front:?}");
        answered_in_halves(front, &what, halves, |h2, half| h2.send_raw(half)).await;
    });
}

/// Stream 3 comes in two halves behind the acknowledgment of the PING.
async fn answered_in_halves(
    front: FrontEnd,
    what: &str,
    halves: impl FnOnce(&RawH2) -> (Vec<u8>, Vec<u8>),
    send: impl Fn(&RawH2, &[u8]),
) {
    let gate = Gate::new();
    let terminator = patient().build();
    let state = App {
        gate: gate.clone(),
        ..App::default()
    };
    let server = start(front, &terminator, app(state)).await;
    let mut h2 = RawH2::connect(&server.target);
    h2.get("/slow", 1);
    gate.wait_entered(1);
    let termination = terminator.terminate();
    let ping = h2.read_until(kind::PING);
    h2.ack_ping(&ping);
    let (half, rest) = halves(&h2);
    send(&h2, &half);
    // Time is the subject: well past settle.
    time_passes_async(Duration::from_millis(100)).await;
    send(&h2, &rest);
    gate.wait_entered(2);
    gate.open();
    assert_eq!(h2.read_until(kind::GOAWAY).goaway(), (3, 0), "{what}");
    h2.expect_eof_within(SOON);
    drop(h2); // what it has of the answer is not known until it has closed
    let report = within(BOUND, "the end", termination).await;
    assert_eq!(report.finished, 1, "{what}: {report}");
}

/// The rest of it never comes, and nothing else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_half_a_record_behind_the_acknowledgment_is_not_waited_for_without_end() {
    each(FrontEnd::tls(), async |front| {
        let stall = Duration::from_millis(300);
        let terminator = patient().stall_timeout(stall).build();
        let server = start(front, &terminator, app(App::default())).await;
        let mut h2 = RawH2::connect(&server.target);
        round_trip(&mut h2);
        let begun = Instant::now();
        let termination = terminator.terminate();
        let ping = h2.read_until(kind::PING);
        h2.ack_ping(&ping);
        let record = h2.encrypt(frame(kind::HEADERS, END_STREAM | END_HEADERS, 3, SLOW));
        h2.send_raw(&record[..record.len() / 2]);
        h2.expect_eof_within(BOUND);
        let took = begun.elapsed();
        let report = within(BOUND, "the end", termination).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        measured(took, stall + LATE, &format!("{front:?}: the end"));
    });
}

/// A handler has given the body away and answered. What its client owes of it, it owes as over HTTP/1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_an_upload_behind_its_answer_is_closed_after_the_stall_timeout() {
    each(FrontEnd::all_and_tls(), async |front| {
        let what = format!("{front:?}");
        let stall = Duration::from_millis(300);
        let terminator = patient().stall_timeout(stall).build();
        let given_away = post(async |body: Body| {
            drop(tokio::spawn(to_bytes(body, usize::MAX)));
            "ok"
        });
        let router = app(App::default()).route("/given", given_away);
        let server = start(front, &terminator, router).await;
        let mut h2 = RawH2::connect(&server.target);
        h2.request("POST", "/given", 1, false);
        while !h2.read_frame().is_end_stream() {}
        let termination = terminator.terminate();
        let ping = h2.read_until(kind::PING);
        h2.ack_ping(&ping);
        assert_eq!(h2.read_until(kind::GOAWAY).goaway().0, 1, "{what}");
        // While more comes it is not silent.
        for _ in 0..6 {
            time_passes_async(stall / 3).await;
            h2.send_frame(kind::DATA, 0, 1, b"more");
        }
        let begun = Instant::now();
        h2.expect_eof_within(BOUND);
        let took = begun.elapsed();
        drop(h2);
        let report = within(BOUND, "the end", termination).await;
        assert_eq!(
            (report.stalled, report.connections()),
            (1, 1),
            "{what}: {report}"
        );
        measured(took, stall + LATE, &format!("{what}: the end"));
    });
}

/// While serving a body has no bound, whoever has been answered: over HTTP/2 it counted as idleness.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g22_an_upload_behind_its_answer_is_not_idle_while_serving() {
    each(FrontEnd::all_and_tls(), async |front| {
        let what = format!("{front:?}");
        let idle = Duration::from_millis(200);
        let terminator = Terminator::builder().idle_timeout(idle).build();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let given_away = post(async move |body: Body| {
            let read = to_bytes(body, usize::MAX);
            tokio::spawn(async move { tell.send(read.await.map(|all| all.len())) });
            "ok"
        });
        let router = app(App::default()).route("/given", given_away);
        let server = start(front, &terminator, router).await;
        let mut h2 = RawH2::connect(&server.target);
        h2.request("POST", "/given", 1, false);
        while !h2.read_frame().is_end_stream() {}
        time_passes_async(idle * 3).await;
        assert_eq!(terminator.stats().busy, 1, "{what}");
        h2.send_frame(kind::DATA, 0, 1, b"more");
        time_passes_async(idle * 3).await;
        h2.send_frame(kind::DATA, END_STREAM, 1, b"all");
        let read = within(BOUND, "the rest", told.recv()).await;
        assert_eq!(read.expect("somebody reads").ok(), Some(7), "{what}");
        // From here on it is.
        assert_eq!(
            h2.read_until(kind::GOAWAY).goaway().0,
            u32::MAX >> 1,
            "{what}"
        );
        drop(h2);
        within(BOUND, "the end", terminator.terminate()).await;
    });
}

/// From outside, as its runtime is blocked, it was closed as idle 250 ms into that.
#[test]
fn g5_an_upload_behind_its_answer_is_not_closed_from_outside() {
    let terminator = patient().stall_timeout(BOUND).build();
    let host = Host::workers(1);
    let (tell, told) = mpsc::channel();
    let given_away = post(async move |body: Body| {
        let read = to_bytes(body, usize::MAX);
        tokio::spawn(async move { tell.send(read.await.map(|all| all.len())) });
        "ok"
    });
    let router = app(App::default()).route("/given", given_away);
    let server = host.block_on(start(FrontEnd::Serve, &terminator, router));
    let mut h2 = RawH2::connect(&server.target);
    h2.request("POST", "/given", 1, false);
    while !h2.read_frame().is_end_stream() {}
    let termination = terminator.terminate();
    let ping = h2.read_until(kind::PING);
    h2.ack_ping(&ping);
    assert_eq!(h2.read_until(kind::GOAWAY).goaway().0, 1);
    h2.send_frame(kind::DATA, 0, 1, b"more");
    time_passes(Duration::from_millis(50));
    let (blocks, blocked) = mpsc::channel();
    host.spawn(async move {
        blocks.send(()).expect("somebody waits");
        #[allow(clippy::disallowed_methods)] // that is the subject
        thread::sleep(Duration::from_secs(1));
    });
    blocked.recv_timeout(BOUND).expect("it runs");
    // Nothing of it lies there.
    time_passes(Duration::from_millis(600));
    h2.send_frame(kind::DATA, END_STREAM, 1, b"all");
    let read = told.recv_timeout(BOUND).expect("somebody reads");
    assert_eq!(read.ok(), Some(7));
    let report = block_on(BOUND, "the end", termination);
    assert!(report.is_clean(), "{report}");
}

/// A connection that is told for a reason of its own ends also when its peer says anything but what it is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g21_a_peer_that_acknowledges_nothing_but_is_not_silent_is_told_its_last_stream() {
    each(FrontEnd::all_and_tls(), async |front| {
        for sends in ["heads", "acknowledgments of others", "always a byte more"] {
            let what = format!("{front:?}, {sends}");
            let owed = Duration::from_millis(300);
            let terminator = patient()
                .max_requests_per_connection(1)
                .head_timeout(owed)
                .build();
            let server = start(front, &terminator, app(App::default())).await;
            let mut h2 = RawH2::connect(&server.target);
            h2.ack_settings();
            h2.get("/quick", 1);
            h2.read_until(kind::GOAWAY);
            let begun = Instant::now();
            let mut stream = 1;
            let end = loop {
                stream += 2;
                // `:method GET`, `:scheme http`, `:path /`.
                let flags = END_STREAM | END_HEADERS;
                let head = frame(kind::HEADERS, flags, stream, b"\x82\x86\x84");
                let sent = match sends {
                    "heads" => h2.try_send(head),
                    // The first of the next frame, which might be the one that is owed.
                    "always a byte more" if stream == 3 => h2.try_send([&head[..], &[0]].concat()),
                    "always a byte more" => h2.try_send([&head[1..], &[0]].concat()),
                    _ => h2.try_send(frame(kind::PING, 1, 0, &[7; 8])),
                };
                if let Err(error) = sent {
                    break error.to_string();
                }
                assert!(begun.elapsed() < BOUND, "{what}: it is never ended");
                time_passes_async(owed / 10).await;
            };
            println!("{what}: {end} after {:?}", begun.elapsed());
            assert!(begun.elapsed() >= owed, "{what}: {end}");
            let report = within(BOUND, "the end", terminator.terminate()).await;
            assert!(report.is_clean(), "{what}: {report}");
        }
    });
}

/// It was away for longer than that: what it brings back is read before it is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_a_peer_that_acknowledges_late_is_heard_to_its_end() {
    each(FrontEnd::all_and_tls(), async |front| {
        let owed = Duration::from_millis(300);
        let gate = Gate::new();
        let terminator = patient()
            .max_requests_per_connection(1)
            .head_timeout(owed)
            .build();
        let state = App {
            gate: gate.clone(),
            ..App::default()
        };
        let server = start(front, &terminator, app(state)).await;
        let mut h2 = RawH2::connect(&server.target);
        h2.get("/slow", 1);
        let ping = h2.read_until(kind::PING);
        gate.wait_entered(1);
        time_passes_async(owed * 2).await;
        let answer = frame(kind::PING, 1, 0, &ping.payload);
        let head = frame(kind::HEADERS, END_STREAM | END_HEADERS, 3, SLOW);
        h2.send([answer, head].concat());
        gate.wait_entered(2);
        gate.open();
        assert_eq!(h2.read_until(kind::GOAWAY).goaway(), (3, 0), "{front:?}");
        h2.expect_eof_within(SOON);
    });
}

/// Each head has the time that is for one, also if it comes right behind another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g22_heads_that_follow_each_other_closely_have_their_own_time() {
    each(FrontEnd::all_and_tls(), async |front| {
        let bound = Duration::from_millis(900);
        let terminator = patient().head_timeout(bound).build();
        let server = start(front, &terminator, app(App::default())).await;
        let mut h2 = RawH2::connect(&server.target);
        h2.ack_settings();
        // `:method GET`, `:scheme http`, `:path /`.
        let head = |stream| {
            frame(
                kind::HEADERS,
                END_STREAM | END_HEADERS,
                stream,
                b"\x82\x86\x84",
            )
        };
        let begun = Instant::now();
        let mut stream = 1;
        h2.send(&head(1)[..10]);
        while begun.elapsed() < bound * 2 {
            time_passes_async(bound / 9).await;
            h2.send([&head(stream)[10..], &head(stream + 2)[..10]].concat());
            let answered = h2.read_until(kind::HEADERS);
            assert_eq!(answered.stream, stream, "{front:?}");
            stream += 2;
        }
    });
}

/// Numbers may be skipped; what h2 refuses or the peer takes back is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_streams_that_come_and_go_leave_the_connection_idle() {
    let terminator = patient().build();
    let server = start(FrontEnd::Serve, &terminator, app(App::default())).await;
    let mut h2 = RawH2::connect(&server.target);
    h2.ack_settings();
    let mut stream = 1;
    for _ in 0..2_000 {
        let these = [stream, stream + 4, stream + 8, stream + 12, stream + 16];
        for stream in these {
            h2.get("/pending", stream);
        }
        // h2 takes only so many that are reset before it hands them over.
        busy_with(&terminator, these.len());
        for stream in these {
            reset(&h2, stream);
        }
        busy_with(&terminator, 0);
        stream += 20;
    }
    idle(&terminator, "reset by the peer");
    // More than it takes at once: the rest is refused.
    let these = (stream..).step_by(2).take(250);
    for stream in these.clone() {
        h2.get("/pending", stream);
    }
    busy_with(&terminator, 200);
    round_trip(&mut h2);
    for stream in these.take(200) {
        reset(&h2, stream);
    }
    idle(&terminator, "refused");
    let termination = terminator.terminate();
    let ping = h2.read_until(kind::PING);
    h2.ack_ping(&ping);
    h2.expect_eof_within(SOON);
    drop(h2);
    let report = within(BOUND, "the end", termination).await;
    assert!(report.is_clean(), "{report}");
}

/// h2 refuses it before it is opened, and does not open it then: nothing of it is in hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_stream_that_is_refused_before_its_head_is_no_request() {
    const PRIORITY: u8 = 2;
    each(FrontEnd::seeing(), async |front| {
        let terminator = terminator();
        let server = start(front, &terminator, app(App::default())).await;
        let mut h2 = RawH2::connect(server.target.clone());
        h2.ack_settings();
        // It depends on itself.
        h2.send_frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 16]);
        assert_eq!(h2.read_until(kind::RST_STREAM).stream, 1);
        h2.get("/pending", 1);
        h2.get("/quick", 3);
        while h2.read_until(kind::DATA).stream != 3 {}
        until_stats(&terminator, "nothing in hand", |it| it.requests == 0);
        let ended = terminator.terminate();
        let ping = h2.read_until(kind::PING);
        h2.ack_ping(&ping);
        h2.expect_eof_within(SOON);
        let report = within(BOUND, "the end", ended).await;
        assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
    });
}

// ===== G11: who blocks =====

/// One blocks the only thread, the others wait in its queue.
#[test]
fn g11_handlers_that_wait_behind_one_that_blocks_are_not_unresponsive() {
    for current_thread in [true, false] {
        let gate = Gate::new();
        let terminator = terminator();
        let blocks = gate.clone();
        let blocks = get(async move || {
            blocks.enter_blocking();
            "unblocked"
        });
        let router = Router::new().route("/block/{n}", blocks);
        let (addr, server) = on_one_thread(current_thread, &terminator, |listener, terminator| {
            terminator.serve(listener, router)
        });
        let mut h2 = RawH2::connect(addr);
        round_trip(&mut h2);
        let head = |n: u32| {
            let block = format!("\x04\x08/block/{n}");
            let block = [b"\x82\x86", block.as_bytes()].concat();
            frame(kind::HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &block)
        };
        h2.send((0..7).map(head).collect::<Vec<_>>().concat());
        gate.wait_entered(1);
        let report = report(&terminator);
        assert_eq!(report.unresponsive, 1, "{report}");
        let blocked: Vec<_> = report
            .stragglers
            .iter()
            .filter(|it| it.unresponsive)
            .collect();
        assert_eq!(blocked.len(), 1, "{report}");
        assert_eq!(report.stragglers.len(), 7, "{report}");
        gate.open();
        server.join().expect("the server ends");
    }
}

/// Before there is a future to poll.
#[test]
fn g11_a_service_that_blocks_in_its_call_is_unresponsive() {
    for http2 in [true, false] {
        let gate = Gate::new();
        let terminator = terminator();
        let blocks = gate.clone();
        let service = tower::service_fn(move |_: Request<Incoming>| {
            blocks.enter_blocking();
            async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
        });
        let (addr, server) = on_one_thread(true, &terminator, |listener, terminator| {
            terminator.serve(listener, service)
        });
        let (h1, mut h2);
        if http2 {
            h2 = RawH2::connect(addr);
            round_trip(&mut h2);
            h2.get("/call", 1);
        } else {
            h1 = RawClient::connect(addr);
            h1.get("/call");
        }
        gate.wait_entered(1);
        let report = report(&terminator);
        assert_eq!(report.unresponsive, 1, "{http2}: {report}");
        let straggler = &report.stragglers[0];
        assert_eq!(straggler.path.as_deref(), Some("/call"), "{report}");
        assert!(straggler.unresponsive, "{report}");
        gate.open();
        server.join().expect("the server ends");
    }
}

/// A future that was made, and is pending, does not block.
#[test]
fn g11_handlers_that_are_pending_are_not_unresponsive() {
    for http2 in [true, false] {
        let terminator = terminator();
        let router = app(App::default());
        let (addr, server) = on_one_thread(true, &terminator, |listener, terminator| {
            terminator.serve(listener, router)
        });
        let (h1, mut h2);
        if http2 {
            h2 = RawH2::connect(addr);
            h2.get("/pending", 1);
            round_trip(&mut h2);
        } else {
            h1 = RawClient::connect(addr);
            h1.get("/pending");
        }
        busy_with(&terminator, 1);
        let report = report(&terminator);
        assert_eq!(
            (report.unresponsive, report.forced),
            (0, 1),
            "{http2}: {report}"
        );
        server.join().expect("the server ends");
    }
}

// ===== G23: what it costs =====

/// Beside as many open streams as these a request took 20 times as long and more.
const OPEN: u32 = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g23_a_request_beside_many_open_streams_costs_what_it_costs_bare_hyper() {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(2 * OPEN);
    let router = Router::new()
        .route("/quick", get(async || "ok"))
        .fallback(pending::<&'static str>);

    let bare = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let bare_addr = bare.local_addr().expect("bound");
    let (bare_builder, bare_router) = (builder.clone(), router.clone());
    tokio::spawn(async move {
        while let Ok((io, _)) = bare.accept().await {
            let (builder, router) = (bare_builder.clone(), bare_router.clone());
            let service = TowerToHyperService::new(router);
            tokio::spawn(async move {
                let io = TokioIo::new(io);
                let _ = builder.serve_connection_with_upgrades(io, service).await;
            });
        }
    });

    let mut our_builder = HttpBuilder::default();
    our_builder.http2().max_concurrent_streams(2 * OPEN);
    let bare = crowded(bare_addr).await;
    for kind in ["hyper-util's builder", "ours", "an own loop"] {
        let terminator = terminator();
        let ours = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let our_addr = ours.local_addr().expect("bound");
        let serve = |ours| terminator.serve(ours, router.clone());
        let served: JoinHandle<()> = match kind {
            "ours" => tokio::spawn(serve(ours).builder(our_builder.clone()).map(drop)),
            "an own loop" => {
                let (mut listener, router) = (terminator.listen(ours), router.clone());
                let builder = our_builder.clone();
                tokio::spawn(async move {
                    while let Some((io, _)) = listener.accept().await {
                        let service = TowerToHyper::new(router.clone());
                        tokio::spawn(io.connection().serve(&builder, io, service));
                    }
                })
            }
            _ => tokio::spawn(serve(ours).http(builder.clone()).map(drop)),
        };
        let ours = crowded(our_addr).await;
        busy_with(&terminator, OPEN as usize);
        let (mut of_bare, mut of_ours) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            of_bare.push(timed(&bare.0).await);
            of_ours.push(timed(&ours.0).await);
        }
        let (of_bare, of_ours) = (median(of_bare), median(of_ours));
        println!("{kind}: bare {of_bare:?}, ours {of_ours:?}");
        assert!(
            of_ours < of_bare * 3,
            "{kind}: bare {of_bare:?}, ours {of_ours:?}"
        );
        drop(ours);
        within(BOUND, "the end", terminator.force()).await;
        within(BOUND, "serve", served).await.expect("no panic");
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A client with so many streams that wait for an answer.
async fn crowded(addr: SocketAddr) -> (H2Client, Vec<h2::client::ResponseFuture>) {
    let client = h2_connect_with(addr, |h2| {
        h2.initial_max_send_streams(2 * OPEN as usize);
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..OPEN {
        open.push(client.start("/pending").await);
    }
    // Whose head comes behind those.
    assert_eq!(client.get("/quick").await.1, b"ok");
    (client, open)
}

async fn timed(client: &H2Client) -> Duration {
    let begun = Instant::now();
    client.get("/quick").await;
    begun.elapsed()
}

// ===== what several tests do =====

/// Both bounds are longer than [`BOUND`]: a test that runs into one of them fails.
fn patient() -> TerminatorBuilder {
    let builder = Terminator::builder().grace_period(Duration::from_secs(30));
    builder.stall_timeout(Duration::from_secs(20))
}

/// Cuts soon.
fn terminator() -> Terminator {
    let builder = Terminator::builder().grace_period(Duration::from_millis(200));
    builder.answer_at_deadline(false).build()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

#[track_caller]
fn reset(h2: &RawH2, stream: u32) {
    h2.send_frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
}

/// All that was sent has been read.
#[track_caller]
fn round_trip(h2: &mut RawH2) {
    h2.send_frame(kind::PING, 0, 0, &[7; 8]);
    loop {
        let frame = h2.read_frame();
        let gone = frame.kind == kind::GOAWAY;
        assert!(!gone, "{}", frame.payload.escape_ascii());
        if frame.kind == kind::PING && frame.is_ack() {
            break;
        }
    }
}

/// The peer is told, acknowledges nothing, and is closed when it has been silent for so long.
async fn stalls(terminator: &Terminator, h2: &mut RawH2, silent: Range<Duration>, what: &str) {
    let begun = Instant::now();
    let termination = terminator.terminate();
    h2.read_until(kind::GOAWAY);
    h2.expect_eof_within(BOUND);
    let took = begun.elapsed();
    let report = within(BOUND, "the end", termination).await;
    assert_eq!(
        (report.stalled, report.connections()),
        (1, 1),
        "{what}: {report}"
    );
    assert!(took >= silent.start, "{what}: after {took:?}");
    measured(took, silent.end + LATE, &format!("{what}: the end"));
}

#[track_caller]
fn busy_with(terminator: &Terminator, requests: usize) {
    let what = format!("{requests} requests in hand");
    until_stats(terminator, &what, |it| it.requests == requests);
}

/// Waits for the end in this thread: the server's may be blocked.
fn report(terminator: &Terminator) -> Report {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(within(BOUND, "the end", terminator.terminate()))
}

/// A server on a runtime with one thread.
fn on_one_thread<F>(
    current_thread: bool,
    terminator: &Terminator,
    serve: impl FnOnce(TcpListener, &Terminator) -> F + Send + 'static,
) -> (SocketAddr, thread::JoinHandle<()>)
where
    F: Future<Output = Report> + Send + 'static,
{
    let (sends, receives) = mpsc::channel();
    let terminator = terminator.clone();
    let server = thread::spawn(move || {
        let mut builder = if current_thread {
            Builder::new_current_thread()
        } else {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(1);
            builder
        };
        let runtime = builder.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            sends
                .send(listener.local_addr().expect("bound"))
                .expect("the test waits");
            // In a task: the worker's thread is the only one that polls.
            tokio::spawn(serve(listener, &terminator))
                .await
                .expect("no panic");
        });
        runtime.shutdown_background();
    });
    let addr = receives.recv_timeout(BOUND).expect("the server starts");
    (addr, server)
}
