//! Exact reading (G2): whatever a client has sent, in whatever pieces, it is known whether a next head
//! has begun. A connection where none has is idle: closed at once in a drain, left alone before. One where
//! it has may complete it, and is closed as stalled if it does not.
//!
//! What clients send is in `requests.rs`. Many connections share a terminator; a failure prints
//! what those had sent that went wrong. The tests block in their own threads, which are none of the
//! runtime's two workers. A name reads `front_end::guarantee_behaviour`.
#![cfg(all(unix, feature = "serve"))]
#![allow(
    clippy::await_holding_lock,
    reason = "each test waits for it in a thread of its own"
)]

use std::convert::Infallible;
use std::io::{self, Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use futures_util::stream::{self, StreamExt};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_rustls::rustls::ClientConnection;

use crate::requests::{Answer, Case, Cut, Step, Stray, halves, idle, router};
use crate::support::load::{LOAD, stolen_in_the_last};
use crate::support::wait::{gone, time_passes, time_passes_async};
use crate::support::{App, BOUND, FrontEnd, Gate, RawClient, ReadEnd, Server, over_front_ends};
use crate::support::{app, start, within};
#[cfg(feature = "rustls")]
use crate::support::{tls_acceptor, tls_client};
use http_terminator::{Listener, Report, Terminator, TerminatorBuilder};

/// What happens at once, `settle` included, on a machine with other things to do. Far below [`STALL`].
const AT_ONCE: Duration = Duration::from_millis(400);

/// The default stall timeout.
const STALL: Duration = Duration::from_secs(1);

/// What is not closed before [`STALL`] is open for so long.
const ALMOST: Duration = Duration::from_millis(950);

/// [`STALL`], on a machine with other things to do; a second one would be over much later.
const STALLED: Duration = Duration::from_millis(1300);

/// Longer than the default `settle`: an idle connection would have been closed by then.
const PAST_SETTLE: Duration = Duration::from_millis(100);

/// The bound on half-sent heads while serving.
const HEAD: Duration = Duration::from_secs(30);

/// In which a server reads what it was sent, as far as [`is_read`] can tell. Where it does not, two segments
/// become one, which is another line of the table; those in memory come one by one for sure.
const READ: Duration = Duration::from_millis(3);

/// How many connections share a terminator.
const SIDE_BY_SIDE: usize = 300;

/// How many failures are shown.
const SHOWN: usize = 12;

/// Held by tests whose clock is tokio's: they keep one processor busy, and two would be all there are.
static IN_MEMORY: Mutex<()> = Mutex::new(());

over_front_ends! {
    [
        serve Serve,
        serve_unix ServeUnix,
        own_loop OwnLoopAuto,
        #[cfg(feature = "rustls")]
        serve_tls ServeTls,
        own_loop_tls OwnLoopAutoTls,
    ]
    g2_whatever_was_sent_a_connection_without_a_next_head_is_idle,
    g2_a_stray_cr_is_no_head,
    g4_whatever_was_sent_before_half_a_head_is_answered_when_completed,
    g4_whatever_was_sent_before_half_a_head_is_closed_once_stalled,
    g4_half_a_head_sent_in_the_drain_is_closed_once_stalled,
    g8_an_early_answer_behind_pipelined_requests_survives_its_upload_while_serving,
    g8_an_early_answer_behind_pipelined_requests_survives_its_upload_while_draining,
    g5_an_upload_that_nobody_reads_behind_pipelined_requests_ends_after_the_stall_timeout,
    g6_a_stream_that_ends_in_the_drain_is_closed_behind_its_last_byte,
}

/// One of so many of the table's cases is tried: all of them where what is read is the subject, some where
/// only what is around it differs.
fn share(front: FrontEnd) -> usize {
    match front {
        FrontEnd::Serve => 1,
        _ => 11, // no divisor of anything in the table's order
    }
}

// ===== A: idle, whatever was sent =====

/// The table's own assumptions: what hyper itself would close, or not answer, is no test of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inputs_are_answered_and_kept_open_by_hyper_itself() {
    let _busy = LOAD.write();
    let cases = idle();
    println!("{} cases", cases.len());
    for cases in batches(&cases) {
        let (gate, listener) = (Gate::new(), tokio::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.await.expect("a port is free");
        let addr = listener.local_addr().expect("bound");
        let app = router(gate.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                io.set_nodelay(true).expect("a TCP socket");
                let service = TowerToHyperService::new(app.clone());
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(io), service).await;
                });
            }
        });
        let clients = connect(cases, || RawClient::connect(addr));
        let mut clients = talk(&gate, cases, clients);
        let mut failures = tell(cases, &mut clients, |client, _| {
            client.try_send(AGAIN).map_err(|error| error.to_string())
        });
        failures.extend(tell(cases, &mut clients, |client, _| {
            read_answer(client, &to_again())
        }));
        accepting.abort();
        drop(clients);
        none(&failures);
    }
}

async fn g2_whatever_was_sent_a_connection_without_a_next_head_is_idle(front: FrontEnd) {
    let _busy = LOAD.write();
    let cases: Vec<_> = idle().into_iter().step_by(share(front)).collect();
    let mut failures = Vec::new();
    for cases in batches(&cases) {
        let (gate, terminator) = (Gate::new(), patient().build());
        let server = start(front, &terminator, router(gate.clone())).await;
        let mut clients = talk_to(&server, &gate, cases);
        failures.extend(idle_at_once(server, &terminator, cases, &mut clients).await);
    }
    println!("{front:?}: {} of {} failed", failures.len(), cases.len());
    none(&failures);
}

/// The half of a line end, which may become a whole one. RFC 9112 section 2.2 lets a server take a bare CR
/// for none; hyper waits for the LF.
async fn g2_a_stray_cr_is_no_head(front: FrontEnd) {
    let _measuring = LOAD.read();
    let mut cases = idle();
    cases.retain(|case| case.cut == Cut::Answers && case.stray == Stray::Nowhere && !case.drops);
    let mut cases: Vec<_> = cases.into_iter().step_by(7 * share(front).min(3)).collect();
    for (n, case) in cases.iter_mut().enumerate() {
        case.stray = [Stray::Behind("\r"), Stray::Later("\r")][n % 2];
    }
    let (gate, terminator) = (Gate::new(), patient().build());
    let server = start(front, &terminator, router(gate.clone())).await;
    let mut clients = talk_to(&server, &gate, &cases);
    none(&idle_at_once(server, &terminator, &cases, &mut clients).await);
}

/// Terminates and says what was not closed at once, as idle.
async fn idle_at_once(
    server: Server,
    terminator: &Terminator,
    cases: &[Case],
    clients: &mut [RawClient],
) -> Vec<String> {
    let called = Instant::now();
    let termination = terminator.terminate();
    let reported = tokio::spawn(async move {
        let report = within(BOUND, "the end", termination).await;
        (report, called.elapsed())
    });
    let mut failures = not_ended_by(cases, clients, called + AT_ONCE, called);
    let (report, took) = reported.await.expect("the report comes");
    if failures.is_empty() && took > AT_ONCE + stolen_in_the_last(took) {
        failures.push(format!("the report took {took:?}: {report}"));
    }
    let counted = (report.idle, report.connections(), report.stalled);
    if failures.is_empty() && counted != (cases.len(), cases.len(), 0) {
        failures.push(format!(
            "not {} idle: {report}; the first of them: {:?}",
            cases.len(),
            cases.first()
        ));
    }
    assert!(report.is_clean(), "{report}");
    finished(server).await;
    failures
}

// ===== B: left alone while serving, in tokio's paused time =====

#[tokio::test(start_paused = true)]
async fn g22_whatever_was_sent_a_connection_without_a_next_head_is_left_alone_by_serve() {
    left_alone(Memory::Serve).await;
}

#[tokio::test(start_paused = true)]
async fn g22_whatever_was_sent_a_connection_without_a_next_head_is_left_alone_by_an_own_loop() {
    left_alone(Memory::OwnLoop).await;
}

#[cfg(feature = "rustls")]
#[tokio::test(start_paused = true)]
async fn g22_whatever_was_sent_a_connection_without_a_next_head_is_left_alone_over_tls() {
    left_alone(Memory::Tls).await;
}

#[tokio::test(start_paused = true)]
async fn g22_whatever_was_sent_before_half_a_head_is_given_up_after_30_s_by_serve() {
    given_up(Memory::Serve).await;
}

#[cfg(feature = "rustls")]
#[tokio::test(start_paused = true)]
async fn g22_whatever_was_sent_before_half_a_head_is_given_up_after_30_s_over_tls() {
    given_up(Memory::Tls).await;
}

async fn left_alone(front: Memory) {
    let _busy = IN_MEMORY.lock();
    let (gate, cases) = (Gate::new(), idle());
    let terminator = patient().build();
    let connections = front.start(&terminator, router(gate.clone()));
    let (mut failures, mut tried) = (Vec::new(), 0);
    for case in cases.iter().step_by(front.share()) {
        tried += 1;
        let mut client = MemoryClient::connect(front, &connections).await;
        client.talk(case, &gate).await;
        // Twice: what was read afterwards must not look like something either.
        for stray in ["", "\r\n"] {
            client.send(stray.as_bytes()).await;
            time_passes_async(HEAD * 3).await;
            let answered = client.still_answers().await;
            if let Err(what) = answered {
                failures.push(format!("{what} after {case:?} and {stray:?}"));
                break;
            }
        }
    }
    println!("{front:?}: {} of {tried} failed", failures.len());
    none(&failures);
}

async fn given_up(front: Memory) {
    let _busy = IN_MEMORY.lock();
    let (gate, cases) = (Gate::new(), halves());
    let terminator = patient().build();
    let connections = front.start(&terminator, router(gate.clone()));
    let mut failures = Vec::new();
    for case in cases.iter().step_by(front.share()) {
        let begun = tokio::time::Instant::now();
        let mut client = MemoryClient::connect(front, &connections).await;
        client.talk(case, &gate).await;
        let talked = tokio::time::Instant::now();
        let ended = tokio::time::timeout(HEAD * 3, client.fill()).await;
        let at_most = talked.elapsed();
        if ended != Ok(false) || begun.elapsed() < HEAD || at_most > HEAD + STALL {
            failures.push(format!("{ended:?} after {at_most:?}: {case:?}"));
        }
    }
    none(&failures);
}

// ===== C: half a head, whatever was sent before =====

async fn g4_whatever_was_sent_before_half_a_head_is_answered_when_completed(front: FrontEnd) {
    let _busy = LOAD.write();
    let cases: Vec<_> = halves().into_iter().step_by(share(front)).collect();
    for cases in batches(&cases) {
        let (gate, terminator) = (Gate::new(), patient().build());
        let server = start(front, &terminator, router(gate.clone())).await;
        let mut clients = talk_to(&server, &gate, cases);
        let called = Instant::now();
        drop(terminator.terminate());
        time_passes(PAST_SETTLE * 3);
        for (client, case) in clients.iter().zip(cases) {
            // One that was closed is told by what it reads.
            let _ = client.try_send(case.half.expect("all have one").rest);
        }
        let mut failures = tell(cases, &mut clients, |client, _| {
            match client.try_read_response() {
                Ok(answer) if answer.says_close() && answer.text() == "0" => {}
                other => return Err(format!("{other:?} instead of a last answer")),
            }
            Ok(())
        });
        if failures.is_empty() {
            let deadline = Instant::now() + AT_ONCE;
            failures = not_ended_by(cases, &mut clients, deadline, called);
        }
        let report = within(BOUND, "the end", terminator.terminated()).await;
        let took = called.elapsed();
        let all = cases.len();
        if (report.finished, report.connections()) != (all, all) {
            failures.push(format!("not {all} finished: {report}"));
        }
        if took > ALMOST + stolen_in_the_last(took) {
            failures.push(format!("it took {took:?}: {report}"));
        }
        finished(server).await;
        none(&failures);
    }
}

/// A thing of two clocks: which of them is read first must make no difference. So it is done many times,
/// with many terminators at once, of which some have a single connection.
async fn g4_whatever_was_sent_before_half_a_head_is_closed_once_stalled(front: FrontEnd) {
    const PAUSES: [u64; 4] = [0, 15, 30, 45];
    const ROUNDS: usize = 5;
    let _measuring = LOAD.read();
    let all: Vec<_> = halves().into_iter().step_by(share(front).min(4)).collect();
    let (mut failures, mut judged) = (Vec::new(), 0);
    for (wave, pause) in PAUSES.into_iter().enumerate() {
        let cases = all.iter().skip(wave).step_by(PAUSES.len());
        let cases: Vec<_> = cases.cloned().collect();
        let rounds = cases.chunks(cases.len().div_ceil(ROUNDS));
        let parts: Vec<_> = rounds
            .flat_map(|cases| {
                let (one, others) = cases.split_at(1);
                [one].into_iter().chain(others.chunks(15))
            })
            .collect();
        let mut ends = Vec::new();
        for cases in parts {
            let (gate, terminator) = (Gate::new(), patient().build());
            let server = start(front, &terminator, router(gate.clone())).await;
            let clients = talk_to(&server, &gate, cases);
            ends.push((server, terminator, cases, clients));
        }
        // Quiet for longer than `settle`, or for less.
        time_passes(Duration::from_millis(pause));
        let calls: Vec<_> = ends
            .iter()
            .map(|(_, terminator, ..)| (Instant::now(), terminator.terminate()))
            .collect();
        let (mut reports, mut called_each) = (Vec::new(), Vec::new());
        for (called, termination) in calls {
            called_each.push(called);
            reports.push(tokio::spawn(async move {
                let report = within(BOUND, "the end", termination).await;
                (called, report, called.elapsed())
            }));
        }
        let called = Instant::now();
        time_passes(ALMOST.saturating_sub(called.elapsed()));
        for ((_, _, cases, clients), called) in ends.iter_mut().zip(called_each) {
            failures.extend(tell(cases, clients, |client, _| {
                let is_open = client.is_still_open();
                if is_open {
                    judged += 1;
                }
                let took = called.elapsed();
                if is_open || took >= STALL {
                    Ok(()) // late: nobody can tell
                } else {
                    Err(format!("closed before {took:?}"))
                }
            }));
        }
        for ((server, _, cases, mut clients), reported) in ends.into_iter().zip(reports) {
            failures.extend(not_ended_by(cases, &mut clients, called + STALLED, called));
            let (called, report, took) = reported.await.expect("the report comes");
            failures.extend(stalled(cases, &report, took, called));
            finished(server).await;
        }
        if failures.len() > SHOWN {
            break;
        }
    }
    none(&failures);
    assert!(judged >= all.len() / 4, "{judged} of {} judged", all.len());
}

/// While `settle` still runs, so to speak at the last moment.
async fn g4_half_a_head_sent_in_the_drain_is_closed_once_stalled(front: FrontEnd) {
    let _measuring = LOAD.read();
    let mut cases = halves();
    cases.retain(|case| case.half.is_some_and(|half| !half.behind));
    let cases: Vec<_> = cases.into_iter().step_by(29).collect();
    let begun = cases.iter().cloned().map(|mut case| {
        case.half = None;
        case
    });
    let begun = begun.collect::<Vec<_>>();
    let (gate, terminator) = (Gate::new(), patient().settle(BOUND / 2).build());
    let server = start(front, &terminator, router(gate.clone())).await;
    let mut clients = talk_to(&server, &gate, &begun);
    let termination = terminator.terminate();
    let called = Instant::now();
    let reported = tokio::spawn(async move {
        let report = within(BOUND, "the end", termination).await;
        (report, called.elapsed())
    });
    time_passes(PAST_SETTLE);
    for (client, case) in clients.iter().zip(&cases) {
        client.send(case.half.expect("all have one").begun);
    }
    let sent = Instant::now();
    time_passes(STALL / 2);
    let judged = clients.iter_mut().filter(|it| it.is_still_open()).count();
    time_passes(ALMOST.saturating_sub(sent.elapsed()));
    let mut failures = tell(&cases, &mut clients, |client, _| {
        if client.is_still_open() || sent.elapsed() >= STALL {
            Ok(()) // late: nobody can tell
        } else {
            Err("closed too early".to_owned())
        }
    });
    failures.extend(not_ended_by(&cases, &mut clients, sent + STALLED, sent));
    let (report, took) = reported.await.expect("the report comes");
    failures.extend(stalled(
        &cases,
        &report,
        took.saturating_sub(PAST_SETTLE),
        called,
    ));
    finished(server).await;
    none(&failures);
    assert!(judged > 0, "none was looked at in time");
}

/// What is wrong with the end of those that are to have stalled.
fn stalled(cases: &[Case], report: &Report, took: Duration, called: Instant) -> Vec<String> {
    let mut failures = Vec::new();
    let all = cases.len();
    if (report.stalled, report.connections()) != (all, all) {
        failures.push(format!("not {all} stalled: {report}; these were {cases:?}"));
    }
    if took < STALL || took > STALLED + stolen_in_the_last(called.elapsed()) {
        failures.push(format!("the report after {took:?}: {report}; {cases:?}"));
    }
    failures
}

// ===== D: part of a body is missing, behind pipelined requests =====

/// What is in front, in the same segment, and its answers.
const IN_FRONT: [(&str, &[&str]); 4] = [
    ("GET /quick HTTP/1.1\r\nhost: a\r\n\r\n", &["ok"]),
    (
        "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n\r\n\r\n",
        &["\r\n\r\n"],
    ),
    (
        "PUT /read HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\na: b\r\n\r\n",
        &["5"],
    ),
    (
        "POST /echo HTTP/1.1\nhost: a\ncontent-length: 5\n\nhello\r\nGET /quick HTTP/1.1\nhost: a\n\n",
        &["hello", "ok"],
    ),
];

/// Framing, what is sent of the body with its head, what is sent later, in pieces.
const PARTS: [(&str, &str, [&str; 3]); 5] = [
    ("content-length: 15", "", ["01234", "56789", "abcde"]),
    (
        "content-length: 15",
        "\r\n\r\n",
        ["789", "\r\n\r", "\nbcde"],
    ),
    (
        "transfer-encoding: chunked",
        "",
        ["5\r\nhello\r\n", "0\r", "\n\r\n"],
    ),
    (
        "transfer-encoding: chunked",
        "5\r\nhel",
        ["lo", "\r\n0\r\n", "\r\n"],
    ),
    (
        "transfer-encoding: chunked",
        "4\r\n\r\n\r\n\r\n",
        ["4\r\n\r\n\r\n\r\n", "0\r\na: b\r\n", "\r\n"],
    ),
];

async fn g8_an_early_answer_behind_pipelined_requests_survives_its_upload_while_serving(
    front: FrontEnd,
) {
    early(front, false).await;
}

async fn g8_an_early_answer_behind_pipelined_requests_survives_its_upload_while_draining(
    front: FrontEnd,
) {
    early(front, true).await;
}

async fn early(front: FrontEnd, draining: bool) {
    let _measuring = LOAD.read();
    let terminator = patient().build();
    let app = app(App::default()).merge(router(Gate::new()));
    let server = start(front, &terminator, app).await;
    // The bound on a close in stages begins with the first answer: none waits for the handshakes of others.
    let mut connected: Vec<_> = (0..IN_FRONT.len() * PARTS.len())
        .map(|_| server.connect())
        .collect();
    let mut clients = Vec::new();
    for (before, answers) in IN_FRONT {
        for (framing, begun, rest) in PARTS {
            let mut client = connected.pop().expect("one for each");
            let head = format!("POST /early HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
            let all = format!("{before}{head}{begun}");
            client.send(&all);
            for answer in answers {
                assert_eq!(client.read_response().text(), *answer, "{all:?}");
            }
            clients.push((client, all, rest));
        }
    }
    let all = clients.len();
    if draining {
        drop(terminator.terminate());
    }
    for n in 0..3 {
        for (client, all, rest) in &clients {
            let sent = client.try_send(rest[n]);
            sent.unwrap_or_else(|error| panic!("{error} at piece {n} of {rest:?} after {all:?}"));
        }
        time_passes(Duration::from_millis(50));
    }
    for (client, all, _) in &mut clients {
        match client.try_read_response() {
            Ok(answer) if (answer.status, answer.text()) == (413, "too much") => {}
            other => panic!("{other:?} after {all:?}"),
        }
        assert_eq!(client.read_to_end(), ReadEnd::Eof, "after {all:?}");
    }
    drop(clients);
    if !draining {
        gone(&terminator).await;
    }
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.is_clean(), "{report}");
    if draining {
        assert_eq!(report.connections(), all, "{report}");
    }
    finished(server).await;
}

/// The handler gave the body away and somebody holds it. Answered before the drain, as keep-alive.
async fn g5_an_upload_that_nobody_reads_behind_pipelined_requests_ends_after_the_stall_timeout(
    front: FrontEnd,
) {
    let _measuring = LOAD.read();
    let shelf = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let shelf = Arc::clone(&shelf);
        move |body: Body| async move {
            shelf.lock().expect("nobody panics with it").push(body);
            "shelved"
        }
    };
    let terminator = patient().build();
    let app = app(App::default()).merge(router(Gate::new()));
    let server = start(front, &terminator, app.route("/shelve", post(handler))).await;
    let mut clients = Vec::new();
    for (before, answers) in IN_FRONT {
        for (framing, begun, _) in PARTS {
            let mut client = server.connect();
            let head = format!("POST /shelve HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
            let all = format!("{before}{head}{begun}");
            client.send(&all);
            for answer in answers.iter().chain(&["shelved"]) {
                assert_eq!(client.read_response().text(), *answer, "{all:?}");
            }
            clients.push((client, all));
        }
    }
    let all = clients.len();
    time_passes(PAST_SETTLE);
    let called = Instant::now();
    let termination = terminator.terminate();
    time_passes(ALMOST);
    for (client, all) in &clients {
        let open = client.is_still_open() || called.elapsed() >= STALL;
        assert!(open, "closed too early: {all:?}");
    }
    for (client, all) in &mut clients {
        let end = client.try_read_response().map(drop);
        assert_eq!(end, Err(ReadEnd::Eof), "{all:?}");
        let (took, stolen) = (called.elapsed(), stolen_in_the_last(STALLED));
        // Not so narrow: they are read one after the other, on a machine that was seen at a load of 15.
        assert!(took <= STALLED + AT_ONCE + stolen, "{took:?}: {all:?}");
    }
    drop(clients);
    let report = within(BOUND, "the end", termination).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        (report.stalled, report.connections()),
        (all, all),
        "{report}"
    );
    let took = called.elapsed();
    let bound = STALLED + AT_ONCE + stolen_in_the_last(took);
    assert!(took <= bound, "the report took {took:?}: {report}");
    finished(server).await;
    drop(shelf);
}

// ===== E: streams that end in the drain =====

/// How the last chunk and the beginning of the drain meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meeting {
    /// The stream ends when it learns of the drain.
    Told,
    /// The last chunk is sent a moment after the call; each round waits a bit longer.
    After,
    /// The last chunk is sent beside the call.
    Beside,
    /// The whole stream begins after the call, and says close.
    Whole,
}

/// From the last byte to the end of the connection, `settle` included. Below [`STALL`], as the next one.
const CLOSED: Duration = Duration::from_millis(400);

/// From the last end of a connection to the report. No look at a listener that nobody polls is waited for.
const REPORTED: Duration = Duration::from_millis(400);

/// Meant to be run beside `stress -c 2` too.
async fn g6_a_stream_that_ends_in_the_drain_is_closed_behind_its_last_byte(front: FrontEnd) {
    const ROUNDS: usize = 200;
    const AT_ONCE: usize = 4;
    let _busy = LOAD.write();
    let rounds = if front == FrontEnd::Serve { 1 } else { 5 };
    let rounds: Vec<_> = (0..ROUNDS).step_by(rounds).collect();
    let (mut failures, mut slowest) = (Vec::new(), [Duration::ZERO; 2]);
    for some in rounds.chunks(AT_ONCE) {
        let runtime = tokio::runtime::Handle::current();
        let some = some.iter().map(|round| {
            let (runtime, round) = (runtime.clone(), *round);
            tokio::task::spawn_blocking(move || runtime.block_on(meets(front, round)))
        });
        for met in some.collect::<Vec<_>>() {
            let (failed, times) = met.await.expect("no panic");
            failures.extend(failed);
            slowest = [slowest[0].max(times[0]), slowest[1].max(times[1])];
        }
    }
    println!("{front:?}: the slowest close and report: {slowest:?}");
    none(&failures);
}

/// What went wrong in one round, and how long the last close and the report took.
async fn meets(front: FrontEnd, round: usize) -> (Vec<String>, [Duration; 2]) {
    use Meeting::{After, Beside, Told, Whole};
    let (mut failures, mut slowest) = (Vec::new(), [Duration::ZERO; 2]);
    let (meeting, connections) = ([Told, After, Beside, Whole][round % 4], 1 + round / 4 % 3);
    let (gate, terminator) = (Gate::new(), patient().build());
    let (mut handlers, app) = streams(&terminator, meeting, &gate);
    let server = start(front, &terminator, app).await;
    let mut clients: Vec<_> = (0..connections).map(|_| server.connect()).collect();
    let mut ends = Vec::new();
    for client in &mut clients {
        client.get("/stream");
        ends.extend(within(BOUND, "a handler", handlers.recv()).await);
    }
    if meeting != Whole {
        for (client, end) in clients.iter_mut().zip(&ends) {
            for _ in 0..round % 7 * 5 {
                end.send("many").expect("the stream is there");
            }
            client.read_response_headers();
            assert_eq!(client.read_chunk().as_deref(), Some(&b"first"[..]));
        }
    }

    let begun = Instant::now();
    let pause = match meeting {
        After => Duration::from_micros(round as u64 / 4 * 60),
        _ => Duration::ZERO,
    };
    let last = move || {
        while begun.elapsed() < pause {
            thread::yield_now();
        }
        for end in ends {
            for chunk in ["more"; 20].iter().chain(&["last"]) {
                let _ = end.send(chunk); // one that is told may have ended
            }
        }
    };
    let (beside, last) = match meeting {
        Beside => (Some(thread::spawn(last)), None),
        _ => (None, Some(last)),
    };
    let reported = reported(&terminator);
    gate.open();
    if let Some(last) = last {
        last();
    }
    let ended = thread::scope(|scope| {
        let readers = clients.iter_mut().map(|client| {
            scope.spawn(|| {
                if meeting == Whole {
                    assert!(client.read_response_headers().says_close());
                }
                let body = client.read_body();
                assert!(meeting == Told || body.ends_with(b"last"), "all of it");
                let last = Instant::now();
                (client.try_read_response().map(drop), last, Instant::now())
            })
        });
        let readers: Vec<_> = readers.collect();
        let ended = readers.into_iter().map(thread::ScopedJoinHandle::join);
        ended.collect::<Result<Vec<_>, _>>().expect("no panic")
    });
    if let Some(beside) = beside {
        beside.join().expect("no panic");
    }
    let (report, reported) = reported.await.expect("the report comes");

    let mut failed = |what: String| {
        failures.push(format!(
            "round {round}, {meeting:?}, {connections} of them: {what}"
        ));
    };
    let (mut all_ended, stolen) = (begun, stolen_in_the_last(begun.elapsed()));
    for (end, last, at) in ended {
        let took = at.duration_since(last);
        slowest[0] = slowest[0].max(took);
        all_ended = all_ended.max(at);
        if end != Err(ReadEnd::Eof) || took > CLOSED + stolen {
            failed(format!("{end:?}, {took:?} after the last byte: {report}"));
        }
    }
    let took = reported.saturating_duration_since(all_ended);
    slowest[1] = slowest[1].max(took);
    if took > REPORTED + stolen {
        failed(format!(
            "the report {took:?} after the last close: {report}"
        ));
    }
    if report.connections() != connections || report.stalled > 0 || !report.is_clean() {
        failed(format!("{report}"));
    }
    finished(server).await;
    (failures, slowest)
}

/// Terminates; the report and when it came.
fn reported(terminator: &Terminator) -> tokio::task::JoinHandle<(Report, Instant)> {
    let termination = terminator.terminate();
    tokio::spawn(async move {
        let report = within(BOUND, "the end", termination).await;
        (report, Instant::now())
    })
}

/// Hands out where the chunks of each stream are to be sent.
fn streams(
    terminator: &Terminator,
    meeting: Meeting,
    gate: &Gate,
) -> (
    mpsc::UnboundedReceiver<mpsc::UnboundedSender<&'static str>>,
    Router,
) {
    let (tell, handlers) = mpsc::unbounded_channel();
    let (terminator, gate) = (terminator.clone(), gate.clone());
    let handler = async move || {
        let (sender, receiver) = mpsc::unbounded_channel();
        tell.send(sender).expect("the test listens");
        let chunks = stream::unfold(receiver, async |mut receiver| {
            Some((receiver.recv().await?, receiver))
        });
        let chunks = stream::iter(["first"])
            .chain(chunks)
            .map(Ok::<_, Infallible>);
        match meeting {
            Meeting::Told => Body::from_stream(chunks.take_until(terminator.draining())),
            Meeting::Whole => {
                gate.enter().await;
                Body::from_stream(chunks)
            }
            Meeting::After | Meeting::Beside => Body::from_stream(chunks),
        }
    };
    (handlers, Router::new().route("/stream", get(handler)))
}

// ===== clients =====

/// In parts of at most [`SIDE_BY_SIDE`]. Those that are cut alike are mostly together, as the table is sorted so.
fn batches(cases: &[Case]) -> std::slice::Chunks<'_, Case> {
    cases.chunks(SIDE_BY_SIDE)
}

/// Connects and [`talk`]s.
fn talk_to(server: &Server, gate: &Gate, cases: &[Case]) -> Vec<RawClient> {
    let clients = connect(cases, || server.connect());
    talk(gate, cases, clients)
}

/// A client each; not so many at once that the accept queue overflows, which takes 128.
fn connect(cases: &[Case], with: impl Fn() -> RawClient) -> Vec<RawClient> {
    let mut clients = Vec::new();
    for some in cases.chunks(100) {
        clients.extend(some.iter().map(|_| with()));
        if some.len() == 100 {
            is_read();
        }
    }
    clients
}

/// Takes all clients through their steps, side by side, with time to read what was sent after each.
fn talk(gate: &Gate, cases: &[Case], mut clients: Vec<RawClient>) -> Vec<RawClient> {
    for client in &clients {
        // Thousands of sockets in TIME_WAIT would be no help to other tests.
        let no_rest = client.socket().set_linger(Some(Duration::ZERO));
        no_rest.expect("sockets take it");
    }
    let steps = cases.iter().map(|case| case.steps().into_iter().peekable());
    let mut steps: Vec<_> = steps.collect();
    loop {
        let to_hold = steps.iter_mut().zip(cases).any(|(steps, case)| {
            case.cut == Cut::Held && matches!(steps.peek(), Some(Step::Send(_)))
        });
        if !to_hold {
            gate.open();
        }
        let mut sent = false;
        for ((client, steps), case) in clients.iter_mut().zip(&mut steps).zip(cases) {
            if !(case.cut == Cut::Held && to_hold) {
                while let Some(Step::Answer(answer)) =
                    steps.next_if(|step| matches!(step, Step::Answer(_)))
                {
                    let got = read_answer(client, &answer);
                    got.unwrap_or_else(|what| panic!("{what}: {case:?}"));
                }
            }
            if let Some(Step::Send(bytes)) = steps.next_if(|step| matches!(step, Step::Send(_))) {
                let done = client.try_send(bytes);
                done.unwrap_or_else(|error| panic!("sending: {error}: {case:?}"));
                sent = true;
            }
        }
        if sent {
            is_read();
        } else if !to_hold && steps.iter_mut().all(|steps| steps.peek().is_none()) {
            return clients;
        }
    }
}

/// Gives the runtime time to see what was sent, and to run everything that is woken by it.
fn is_read() {
    time_passes(READ);
    let (tell, told) = std::sync::mpsc::channel();
    tokio::spawn(async move {
        for _ in 0..8 {
            tokio::task::yield_now().await; // until the sockets have been looked at again
        }
        let _ = tell.send(()); // the test has given up
    });
    let run = told.recv_timeout(BOUND);
    run.expect("the runtime runs");
}

fn read_answer(client: &mut RawClient, expected: &Answer) -> Result<(), String> {
    loop {
        let read = if expected.without_body {
            client.try_read_response_headers()
        } else {
            client.try_read_response()
        };
        let answer = read.map_err(|end| format!("{end:?} instead of an answer"))?;
        if answer.status == 100 {
            continue;
        }
        let is_it = expected.without_body || answer.text() == expected.body;
        return if answer.status == 200 && is_it && !answer.says_close() {
            Ok(())
        } else {
            Err(format!("{answer:?} instead of {expected:?}"))
        };
    }
}

/// What is wrong with each.
fn tell(
    cases: &[Case],
    clients: &mut [RawClient],
    mut check: impl FnMut(&mut RawClient, &Case) -> Result<(), String>,
) -> Vec<String> {
    assert_eq!(cases.len(), clients.len(), "a client each");
    let checked = clients.iter_mut().zip(cases).filter_map(|(client, case)| {
        let what = check(client, case).err()?;
        Some(format!("{what}: {case:?}"))
    });
    checked.collect()
}

/// Panics with some of them.
#[track_caller]
fn none(failures: &[String]) {
    let shown: Vec<_> = failures
        .iter()
        .step_by(failures.len() / SHOWN + 1)
        .collect();
    assert!(
        failures.is_empty(),
        "{} failed, such as {shown:#?}",
        failures.len()
    );
}

/// What is wrong where the end of each connection, and nothing else, is to come in time.
fn not_ended_by(
    cases: &[Case],
    clients: &mut [RawClient],
    deadline: Instant,
    since: Instant,
) -> Vec<String> {
    for client in clients.iter_mut() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            time_passes(stolen_in_the_last(STALL));
            break;
        }
        client.set_timeout(left);
        let end = client.try_read_response();
        assert!(end.is_err(), "{end:?} instead of an end");
    }
    // All at once, or those that end late would be found ended.
    let open: Vec<_> = clients.iter().map(RawClient::is_still_open).collect();
    let took = since.elapsed();
    let mut open = open.into_iter();
    tell(cases, clients, |client, _| {
        if open.next() == Some(true) {
            return Err(format!("still open after {took:?}"));
        }
        client.set_timeout(STALL);
        match client.try_read_response() {
            Err(ReadEnd::Eof) => Ok(()),
            other => Err(format!("{other:?} instead of an end of file")),
        }
    })
}

/// Sent where a connection is to be of use still.
const AGAIN: &[u8] = b"GET /read HTTP/1.1\r\nhost: a\r\n\r\n";

fn to_again() -> Answer {
    Answer {
        without_body: false,
        body: "0".to_owned(),
    }
}

// ===== servers =====

/// Its deadline is not to be reached; the rest is as it comes.
fn patient() -> TerminatorBuilder {
    Terminator::builder().grace_period(BOUND)
}

async fn finished(server: Server) {
    let task = within(BOUND, "end of the server's task", server.task).await;
    task.expect("the server does not panic");
}

// ===== in memory, for tokio's paused time =====

/// The ways to serve what comes through memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Serve,
    OwnLoop,
    #[cfg(feature = "rustls")]
    Tls,
}

impl Memory {
    fn share(self) -> usize {
        match self {
            Self::Serve => 1,
            _ => 11,
        }
    }

    /// Serves what is sent.
    fn start(self, terminator: &Terminator, app: Router) -> mpsc::UnboundedSender<DuplexStream> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let listener = Queue(receiver);
        match self {
            Self::Serve => drop(tokio::spawn(terminator.serve(listener, app).into_future())),
            #[cfg(feature = "rustls")]
            Self::Tls => {
                let serve = terminator.serve(listener, app).tls(tls_acceptor(&[]));
                drop(tokio::spawn(serve.into_future()));
            }
            Self::OwnLoop => {
                let mut listener = terminator.listen(listener);
                let builder = auto::Builder::new(TokioExecutor::new());
                drop(tokio::spawn(async move {
                    while let Some((io, ())) = listener.accept().await {
                        let connection = io.connection();
                        let service = TowerToHyperService::new(app.clone());
                        tokio::spawn(connection.serve(&builder, io, service));
                    }
                }));
            }
        }
        sender
    }
}

/// Accepts what it is sent.
struct Queue(mpsc::UnboundedReceiver<DuplexStream>);

impl Listener for Queue {
    type Io = DuplexStream;
    type Addr = ();

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
        match self.0.poll_recv(cx) {
            Poll::Ready(Some(io)) => Poll::Ready(Ok((io, ()))),
            _ => Poll::Pending,
        }
    }

    fn accept_queued(&mut self) -> io::Result<Option<(DuplexStream, ())>> {
        Ok(None)
    }
}

struct MemoryClient {
    io: DuplexStream,
    tls: Option<ClientConnection>,
    unread: Vec<u8>,
}

impl MemoryClient {
    async fn connect(front: Memory, to: &mpsc::UnboundedSender<DuplexStream>) -> Self {
        let (client, server) = tokio::io::duplex(64 * 1024);
        to.send(server).expect("somebody accepts");
        let mut client = Self {
            io: client,
            tls: None,
            unread: Vec::new(),
        };
        #[cfg(feature = "rustls")]
        if front == Memory::Tls {
            client.tls = Some(tls_client(&["http/1.1"]));
            client.send(b"").await;
            while client.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
                assert!(client.receive().await, "the handshake is done");
            }
        }
        let _ = front; // without TLS they are all alike
        client
    }

    async fn talk(&mut self, case: &Case, gate: &Gate) {
        for step in case.steps() {
            match step {
                Step::Send(bytes) => self.send(&bytes).await,
                Step::Answer(answer) => {
                    gate.open();
                    let got = within(BOUND, "an answer", self.answer(&answer)).await;
                    got.unwrap_or_else(|what| panic!("{what}: {case:?}"));
                }
            }
            // It is over when everybody waits for something.
            time_passes_async(Duration::from_millis(1)).await;
        }
        gate.close();
    }

    async fn send(&mut self, bytes: &[u8]) {
        let Some(tls) = &mut self.tls else {
            self.io.write_all(bytes).await.expect("it is taken");
            return;
        };
        let mut records = Vec::new();
        for bytes in bytes.chunks(16 * 1024).chain([&[][..]]) {
            tls.writer().write_all(bytes).expect("there is room");
            while tls.wants_write() {
                tls.write_tls(&mut records).expect("a vector takes it all");
            }
        }
        self.io.write_all(&records).await.expect("it is taken");
    }

    async fn still_answers(&mut self) -> Result<(), String> {
        if self.tls.is_none() {
            let sent = self.io.write_all(AGAIN).await;
            sent.map_err(|error| error.to_string())?;
        } else {
            self.send(AGAIN).await;
        }
        within(BOUND, "an answer", self.answer(&to_again())).await
    }

    async fn answer(&mut self, expected: &Answer) -> Result<(), String> {
        loop {
            let head = self.until_blank().await?;
            if head.starts_with("HTTP/1.1 100 ") {
                continue;
            }
            if !head.starts_with("HTTP/1.1 200 ") || head.contains("connection: close") {
                return Err(format!("{head:?} instead of {expected:?}"));
            }
            let length = head.split("content-length: ").nth(1).expect("a length");
            let length = length.split('\r').next().map(str::parse);
            let length = length.expect("text").expect("a number");
            if expected.without_body {
                return Ok(());
            }
            while self.unread.len() < length {
                if !self.fill().await {
                    return Err("ended in a body".to_owned());
                }
            }
            let body: Vec<_> = self.unread.drain(..length).collect();
            return if body == expected.body.as_bytes() {
                Ok(())
            } else {
                Err(format!("{:?} instead of {expected:?}", body.escape_ascii()))
            };
        }
    }

    async fn until_blank(&mut self) -> Result<String, String> {
        loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.unread.drain(..at + 4).collect();
                return Ok(String::from_utf8(head).expect("our own heads are text"));
            }
            if !self.fill().await {
                return Err("ended instead of an answer".to_owned());
            }
        }
    }

    /// Adds to what is unread; false at the end.
    async fn fill(&mut self) -> bool {
        loop {
            let Some(tls) = &mut self.tls else {
                return self
                    .io
                    .read_buf(&mut self.unread)
                    .await
                    .is_ok_and(|n| n > 0);
            };
            let mut part = [0; 4096];
            match tls.reader().read(&mut part) {
                Ok(n) => {
                    self.unread.extend_from_slice(&part[..n]);
                    return n > 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
            if !self.receive().await {
                return false;
            }
        }
    }

    /// Takes in some of what the other side sends over TLS.
    async fn receive(&mut self) -> bool {
        let mut records = Vec::with_capacity(4096);
        if !self.io.read_buf(&mut records).await.is_ok_and(|n| n > 0) {
            return false;
        }
        let tls = self.tls.as_mut().expect("over TLS");
        let mut records = &records[..];
        while !records.is_empty() {
            tls.read_tls(&mut records).expect("a slice is no socket");
            tls.process_new_packets().expect("it is TLS");
        }
        self.send(b"").await;
        true
    }
}
