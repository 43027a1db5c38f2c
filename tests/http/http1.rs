//! HTTP/1 from outside: connections at rest (G1, G2), partial heads (G4), requests in flight
//! (G5 to G7). Each test runs over every front end; a name reads `front_end::guarantee_behaviour`.
//!
//! The tests block in their own thread, which is none of the runtime's two workers.
#![cfg(all(unix, feature = "serve"))]

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::{MethodRouter, get, post};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use crate::support::outside::{LATE, measured};
use crate::support::wait::{accepted, time_passes, time_passes_async, until};
use crate::support::{
    App, BIG, BOUND, FrontEnd, Gate, RawClient, RawResponse, ReadEnd, Server, over_front_ends,
};
use crate::support::{app, assert_big, big, start, within};
use http_terminator::{Phase, Report, Terminator, TerminatorBuilder};

/// What happens at once, on a machine with other things to do. Far below the stall timeout and the
/// grace period of [`patient`].
const SOON: Duration = Duration::from_secs(5);

/// Longer than the default `settle`: an idle connection would have been closed by then.
const PAST_SETTLE: Duration = Duration::from_millis(100);

over_front_ends! {
    [
        serve Serve,
        serve_unix ServeUnix,
        own_loop OwnLoopAuto,
        hyper_serve HyperServe,
        #[cfg(feature = "rustls")]
        serve_tls ServeTls,
        own_loop_tls OwnLoopAutoTls,
    ]
    g1_connections_quiet_for_longer_than_settle_are_closed_in_the_same_wake_up,
    g1_connections_quiet_for_less_than_settle_are_closed_when_it_is_over,
    g1_an_idle_http_1_0_connection_is_closed_at_once,
    g1_uploads_in_pieces_leave_the_connection_idle,
    g1_pipelined_requests_leave_the_connection_idle,
    g1_a_drained_slow_reader_is_closed_when_it_has_settled,
    g2_requests_written_just_before_terminate_are_all_answered,
    g2_first_requests_written_just_before_terminate_are_all_answered,
    g2_a_request_within_settle_of_the_last_answer_is_answered,
    g2_half_a_head_read_together_with_the_request_before_it_is_answered,
    g2_half_a_head_on_a_kept_alive_connection_is_answered,
    g2_settle_counts_from_the_last_of_pipelined_requests,
    g2_no_request_is_lost_under_closed_loop_load,
    g4_half_a_first_head_is_answered,
    g4_a_head_that_comes_in_drips_is_answered,
    g4_a_head_that_is_never_finished_is_closed_after_the_stall_timeout,
    g4_half_an_http2_preface_is_closed_after_the_stall_timeout,
    g5_a_response_whose_head_was_not_sent_says_close,
    g5_close_is_appended_to_what_the_handler_said,
    g5_http_1_0_keep_alive_becomes_close,
    g5_a_slow_reader_gets_a_big_body_whole,
    g5_a_whole_upload_that_nobody_reads_ends_after_the_stall_timeout,
    g5_a_whole_upload_that_is_read_slowly_is_read_to_its_end,
    g5_an_upload_that_is_read_behind_its_answer_is_read_to_its_end,
    g2_a_request_behind_an_answer_that_is_taken_slowly_is_answered,
    g5_a_slow_reader_gets_a_big_stream_whole,
    g5_a_slow_reader_gets_a_big_body_whole_that_began_before_the_drain,
    g5_a_slow_reader_gets_a_big_stream_whole_that_began_before_the_drain,
    g5_an_upload_that_nobody_reads_ends_after_the_stall_timeout,
    g5_a_chunked_upload_that_nobody_reads_ends_after_the_stall_timeout,
    g5_an_upload_that_nobody_reads_and_was_answered_before_the_drain_ends,
    g5_an_upload_that_nobody_reads_is_closed_in_stages,
    g5_an_early_answer_is_not_destroyed_by_the_rest_of_its_upload,
    g5_an_early_answer_is_not_destroyed_by_the_rest_of_its_chunked_upload,
    g6_a_request_right_after_a_body_that_said_keep_alive_is_answered,
    g6_a_request_right_after_a_pipelined_body_that_said_keep_alive_is_answered,
    g6_a_request_right_after_a_slowly_read_body_is_answered,
    g6_without_another_request_the_connection_ends_after_settle,
    g6_without_another_request_a_pipelined_body_ends_after_settle,
    g6_of_pipelined_requests_the_last_one_answered_says_close,
    g6_of_more_pipelined_requests_than_are_read_the_last_one_answered_says_close,
    g6_requests_pipelined_behind_the_one_that_says_close_are_not_processed,
    g7_expect_100_continue_before_the_drain_is_finished,
    g7_expect_100_continue_during_the_drain_is_finished,
    g7_a_chunked_upload_half_way_is_finished,
    g7_a_slow_upload_is_not_bound_by_the_stall_timeout,
    g7_an_upload_that_is_read_after_its_answer_is_finished,
    g7_trailers_pass_both_ways,
    g7_head_and_204_say_close_without_a_body,
    g7_http_1_0_is_answered_and_closed,
}

// ===== G1: connections at rest =====

/// Time is the subject: `settle` passes before the call, so nothing is left to wait for.
async fn g1_connections_quiet_for_longer_than_settle_are_closed_in_the_same_wake_up(
    front: FrontEnd,
) {
    let settle = Duration::from_secs(1);
    let terminator = patient().settle(settle).build();
    let server = start(front, &terminator, app(App::default())).await;
    let (mut used, mut fresh) = (server.connect(), server.connect());
    assert_eq!(used.fetch("/quick").text(), "ok");
    accepted(&terminator, 2);
    time_passes(settle);

    let termination = terminator.terminate();
    used.expect_eof();
    fresh.expect_eof();
    let report = within(BOUND, "the end", termination).await;
    let second = report.draining + PAST_SETTLE >= settle;
    assert!(!second, "no second settle: {report}");
    assert_eq!((report.idle, report.connections()), (2, 2), "{report}");
    assert!(report.is_clean(), "{report}");
    finished(server, &report).await;
}

/// Time is the subject: the lower bound is exact, the upper one is [`LATE`].
async fn g1_connections_quiet_for_less_than_settle_are_closed_when_it_is_over(front: FrontEnd) {
    let settle = Duration::from_millis(250);
    for use_it in [true, false] {
        let terminator = patient().settle(settle).build();
        let server = start(front, &terminator, app(App::default())).await;
        let before = Instant::now();
        let mut client = server.connect();
        if use_it {
            assert_eq!(client.fetch("/quick").text(), "ok");
        }
        accepted(&terminator, 1);
        let termination = terminator.terminate();
        client.expect_eof();
        let open = before.elapsed();
        assert!(
            open + ROUNDING >= settle,
            "used {use_it}: closed after {open:?}"
        );
        measured(open, settle + LATE, &format!("used {use_it}: closed"));
        let report = within(BOUND, "the end", termination).await;
        assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
        finished(server, &report).await;
    }
}

async fn g1_an_idle_http_1_0_connection_is_closed_at_once(front: FrontEnd) {
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.send("GET /quick HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    assert!(client.read_response().says_keep_alive());
    idle_at_once(server, &terminator, client, "HTTP/1.0").await;
}

/// Where a body ends must be known exactly: else the connection would be one that owes us bytes, and
/// live for the stall timeout.
async fn g1_uploads_in_pieces_leave_the_connection_idle(front: FrontEnd) {
    let length = "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 11\r\n\r\nhello world";
    let blank = "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\n\r\n\r\n";
    let chunked = "POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n\
                   5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let trailers = "POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n\
                    5\r\nhello\r\n6\r\n world\r\n0\r\nsum: 7\r\nmore: yes\r\n\r\n";
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut clients = Vec::new();
    for (what, request) in [
        ("content-length", length),
        ("a body that is an empty line", blank),
        ("chunked", chunked),
        ("chunked with trailers", trailers),
    ] {
        for piece in [1, 7, 1000] {
            for requests in [1, 3] {
                let mut client = server.connect();
                for _ in 0..requests {
                    for bytes in request.as_bytes().chunks(piece) {
                        client.send(bytes);
                    }
                    assert_eq!(client.read_response().status, 200);
                }
                let what = format!("{what}, {requests} times in pieces of {piece}");
                clients.push((client, what));
            }
        }
    }
    all_idle_at_once(server, &terminator, clients).await;
}

async fn g1_pipelined_requests_leave_the_connection_idle(front: FrontEnd) {
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.send(GET_QUICK.repeat(40));
    for _ in 0..40 {
        assert_eq!(client.read_response().text(), "ok");
    }
    idle_at_once(server, &terminator, client, "40 pipelined requests").await;
}

/// hyper asks for the next request while it still writes the last response. What it is told then
/// must not be the last word.
async fn g1_a_drained_slow_reader_is_closed_when_it_has_settled(front: FrontEnd) {
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.get("/big");
    client.read_response_headers();
    time_passes(PAST_SETTLE); // the socket fills
    same_as_big(&client.read_body());
    idle_at_once(
        server,
        &terminator,
        client,
        "a slow reader that has everything",
    )
    .await;
}

// ===== G2: no request is lost =====

/// With the default `settle` it is that which saves the requests; without one it is the look at the
/// socket.
async fn g2_requests_written_just_before_terminate_are_all_answered(front: FrontEnd) {
    for round in 0..few_over_tls(front, 8) {
        let terminator = with_or_without_settle(round);
        let server = start(front, &terminator, app(App::default())).await;
        let mut clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.fetch("/quick").text(), "ok");
        }
        for client in &clients {
            client.send(GET_QUICK);
        }
        all_answered(server, &terminator, clients, round).await;
    }
}

/// Accepted already, or still in the kernel's queue.
async fn g2_first_requests_written_just_before_terminate_are_all_answered(front: FrontEnd) {
    for round in 0..few_over_tls(front, 8) {
        let terminator = with_or_without_settle(round);
        let server = start(front, &terminator, app(App::default())).await;
        let clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
        if round % 4 < 2 {
            accepted(&terminator, 50);
        }
        for client in &clients {
            client.send(GET_QUICK);
        }
        all_answered(server, &terminator, clients, round).await;
    }
}

/// Time is the subject: the drain has begun when the request is written, `settle` is not over.
async fn g2_a_request_within_settle_of_the_last_answer_is_answered(front: FrontEnd) {
    let terminator = patient().settle(Duration::from_secs(2)).build();
    let server = start(front, &terminator, app(App::default())).await;
    let (mut used, mut fresh) = (server.connect(), server.connect());
    assert_eq!(used.fetch("/quick").text(), "ok");
    accepted(&terminator, 2);
    let termination = terminator.terminate();
    time_passes(PAST_SETTLE);
    for client in [&mut used, &mut fresh] {
        let answer = client.fetch("/quick");
        assert!(answer.says_close(), "{answer:?}");
        client.expect_eof();
    }
    let report = within(BOUND, "the end", termination).await;
    assert_eq!((report.finished, report.connections()), (2, 2), "{report}");
    finished(server, &report).await;
}

async fn g2_half_a_head_read_together_with_the_request_before_it_is_answered(front: FrontEnd) {
    for warm in [false, true] {
        let terminator = patient().build();
        let server = start(front, &terminator, app(App::default())).await;
        let mut client = server.connect();
        if warm {
            assert_eq!(client.fetch("/quick").text(), "ok");
        }
        client.send(format!("{GET_QUICK}{}", &GET_QUICK[..8]));
        assert_eq!(client.read_response().text(), "ok");
        let termination = terminator.terminate();
        time_passes(PAST_SETTLE);
        client.send(&GET_QUICK[8..]);
        last_answer(&mut client, &format!("warm {warm}"));
        let report = within(BOUND, "the end", termination).await;
        assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
        finished(server, &report).await;
    }
}

async fn g2_half_a_head_on_a_kept_alive_connection_is_answered(front: FrontEnd) {
    halves_are_answered(front, true).await;
}

/// Two requests in one write; the second one takes longer than `settle`. Its connection becomes
/// quiet when *it* has been answered, not when the first one was.
///
/// A flush between the two answers looks like the end of all requests that were read.
async fn g2_settle_counts_from_the_last_of_pipelined_requests(front: FrontEnd) {
    let settle = Duration::from_millis(400);
    let state = App::default();
    let terminator = patient().settle(settle).build();
    let server = start(front, &terminator, app(state.clone())).await;
    let mut client = server.connect();
    client.send(
        format!("{GET_QUICK}{GET_QUICK}")
            .replacen("GET /quick", "GET /slow", 2)
            .replacen("GET /slow", "GET /quick", 1),
    );
    assert_eq!(client.read_response().text(), "ok");
    state.gate.wait_entered(1);
    time_passes(settle);
    let before = Instant::now();
    state.gate.open();
    assert_eq!(client.read_response().text(), "slow");
    let termination = terminator.terminate();
    client.expect_eof();
    let quiet = before.elapsed();
    assert!(
        quiet + ROUNDING >= settle,
        "closed {quiet:?} after the second answer"
    );
    let report = within(BOUND, "the end", termination).await;
    assert_eq!(report.idle, 1, "{report}");
    finished(server, &report).await;
}

/// A request is lost if it was sent on a connection whose last answer did not say close, within
/// `settle` of that answer, and not a byte came back. When the answer was made stands in its body, so
/// a client that got no turn for longer than `settle` is told from a server that closed too early.
async fn g2_no_request_is_lost_under_closed_loop_load(front: FrontEnd) {
    const CLIENTS: usize = 64;
    let settle = Duration::from_millis(25); // the default
    for round in 0..few_over_tls(front, 5) {
        let epoch = Instant::now();
        let made_at = move || async move { epoch.elapsed().as_micros().to_string() };
        let terminator = patient().build();
        let app = app(App::default()).route("/made-at", get(made_at));
        let server = start(front, &terminator, app).await;
        let answered = Arc::new(AtomicUsize::new(0));
        let looping = |mut client: RawClient| {
            let answered = Arc::clone(&answered);
            move || {
                let mut quiet_since = Duration::ZERO;
                loop {
                    let request = "GET /made-at HTTP/1.1\r\nhost: localhost\r\n\r\n";
                    let _ = client.try_send(request); // if not, it is lost: seen below
                    let waited = epoch.elapsed().saturating_sub(quiet_since);
                    match client.try_read_response() {
                        Ok(answer) => {
                            assert_eq!(answer.status, 200);
                            let made_at = answer.text().parse().expect("a number");
                            quiet_since = Duration::from_micros(made_at);
                            answered.fetch_add(1, Ordering::Relaxed);
                            if answer.says_close() {
                                client.expect_eof();
                                return None;
                            }
                        }
                        Err(ReadEnd::Eof | ReadEnd::Reset) => {
                            return Some(waited);
                        }
                        Err(end) => panic!("{end:?} instead of an answer"),
                    }
                }
            }
        };
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| thread::spawn(looping(server.connect())))
            .collect();
        until("load", || answered.load(Ordering::Relaxed) > CLIENTS * 10);
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.connections(), CLIENTS, "{report}");
        let lost: Vec<_> = clients
            .into_iter()
            .filter_map(|client| client.join().expect("no client panicked"))
            .collect();
        let too_early: Vec<_> = lost.iter().filter(|waited| **waited < settle).collect();
        assert!(
            too_early.is_empty(),
            "round {round}: lost after {too_early:?}, {report}"
        );
        finished(server, &report).await;
    }
}

// ===== G4: partial heads =====

async fn g4_half_a_first_head_is_answered(front: FrontEnd) {
    halves_are_answered(front, false).await;
}

/// Time is the subject: each byte starts the stall timeout anew.
async fn g4_a_head_that_comes_in_drips_is_answered(front: FrontEnd) {
    let stall = Duration::from_secs(1);
    let terminator = patient().stall_timeout(stall).build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    let (drips, rest) = GET_QUICK.split_at(14);
    client.send(&drips[..1]);
    accepted(&terminator, 1);
    let begun = Instant::now();
    let termination = terminator.terminate();
    for drip in &drips.as_bytes()[1..] {
        time_passes(stall / 10);
        client.send([*drip]);
    }
    assert!(
        begun.elapsed() > stall,
        "the head came too fast to show anything"
    );
    client.send(rest);
    last_answer(&mut client, "drips");
    let report = within(BOUND, "the end", termination).await;
    assert_eq!((report.finished, report.stalled), (1, 0), "{report}");
    finished(server, &report).await;
}

async fn g4_a_head_that_is_never_finished_is_closed_after_the_stall_timeout(front: FrontEnd) {
    for begun in ["P", "GET /qui", &GET_QUICK[..GET_QUICK.len() - 1]] {
        stalls(front, begun, false).await;
        stalls(front, begun, true).await;
    }
}

/// More of it than is needed to tell it from HTTP/1.
async fn g4_half_an_http2_preface_is_closed_after_the_stall_timeout(front: FrontEnd) {
    stalls(front, "PRI", false).await;
    stalls(front, "PRI * HT", false).await;
}

// ===== G5: requests in flight =====

async fn g5_a_response_whose_head_was_not_sent_says_close(front: FrontEnd) {
    let state = App::default();
    let terminator = patient().build();
    let server = start(front, &terminator, app(state.clone())).await;
    let mut clients = [server.connect(), server.connect()];
    assert_eq!(clients[1].fetch("/quick").text(), "ok");
    for client in &clients {
        client.get("/slow");
    }
    state.gate.wait_entered(2);
    let termination = terminator.terminate();
    time_passes(PAST_SETTLE);
    assert!(clients.iter().all(RawClient::is_still_open));
    state.gate.open();
    for client in &mut clients {
        assert_eq!(last_answer(client, "in flight").text(), "slow");
    }
    let report = within(BOUND, "the end", termination).await;
    assert_eq!((report.finished, report.connections()), (2, 2), "{report}");
    finished(server, &report).await;
}

async fn g5_close_is_appended_to_what_the_handler_said(front: FrontEnd) {
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    let answer = during_the_drain(&terminator, &mut client, &GET_QUICK.replace("quick", "426"));
    assert_eq!(answer.status, 426);
    assert_eq!(answer.header("upgrade"), Some("h2c"));
    let options: Vec<_> = answer
        .header("connection")
        .expect("it is there")
        .split(", ")
        .collect();
    assert_eq!(options, ["upgrade", "close"]);
    assert_eq!(answer.text(), "upgrade, please");
    let report = ended_cleanly(server, &terminator).await;
    assert_eq!(report.finished, 1, "{report}");
}

async fn g5_http_1_0_keep_alive_becomes_close(front: FrontEnd) {
    let state = App::default();
    let terminator = patient().build();
    let server = start(front, &terminator, app(state.clone())).await;
    let mut client = server.connect();
    client.send("GET /slow HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    state.gate.wait_entered(1);
    drop(terminator.terminate());
    state.gate.open();
    let answer = last_answer(&mut client, "HTTP/1.0");
    assert!(!answer.says_keep_alive(), "{answer:?}");
    assert_eq!(answer.text(), "slow");
    ended_cleanly(server, &terminator).await;
}

async fn g5_a_slow_reader_gets_a_big_body_whole(front: FrontEnd) {
    slow_reader(front, "big", true).await;
}

async fn g5_a_slow_reader_gets_a_big_stream_whole(front: FrontEnd) {
    slow_reader(front, "bigstream", true).await;
}

async fn g5_a_slow_reader_gets_a_big_body_whole_that_began_before_the_drain(front: FrontEnd) {
    slow_reader(front, "big", false).await;
}

async fn g5_a_slow_reader_gets_a_big_stream_whole_that_began_before_the_drain(front: FrontEnd) {
    slow_reader(front, "bigstream", false).await;
}

async fn g5_an_upload_that_nobody_reads_ends_after_the_stall_timeout(front: FrontEnd) {
    shelved_upload(front, LONG, "some of it", "", true).await;
}

/// The head of the request ends in an empty line, as its body would: the state must tell them apart.
async fn g5_a_chunked_upload_that_nobody_reads_ends_after_the_stall_timeout(front: FrontEnd) {
    for begun in ["5\r\nhello\r\n", "4\r\nhel\n\r\n", ""] {
        shelved_upload(front, CHUNKED, begun, "", true).await;
    }
}

/// The answer said keep-alive and is out when the drain begins; what is missing is the rest of the
/// request, for which hyper does not ask.
async fn g5_an_upload_that_nobody_reads_and_was_answered_before_the_drain_ends(front: FrontEnd) {
    shelved_upload(front, LONG, "some of it", "", false).await;
    shelved_upload(front, CHUNKED, "5\r\nhello\r\n", "", false).await;
}

/// What lies in the socket, for which nobody asked, must not reset the connection.
async fn g5_an_upload_that_nobody_reads_is_closed_in_stages(front: FrontEnd) {
    shelved_upload(front, LONG, "some of it", "and some more", true).await;
}

async fn g5_an_early_answer_is_not_destroyed_by_the_rest_of_its_upload(front: FrontEnd) {
    early_answer(front, LONG, b"1", b"2").await;
}

async fn g5_an_early_answer_is_not_destroyed_by_the_rest_of_its_chunked_upload(front: FrontEnd) {
    // The client waits for the answer before it sends a chunk: then all that was read is a head.
    early_answer(front, CHUNKED, b"", b"5\r\nhello\r\n").await;
    early_answer(front, CHUNKED, b"5\r\nhello\r\n", b"5\r\nhello\r\n").await;
}

// ===== G6: a head that promised keep-alive =====

async fn g6_a_request_right_after_a_body_that_said_keep_alive_is_answered(front: FrontEnd) {
    let state = App::default();
    let terminator = patient().settle(Duration::from_secs(1)).build();
    let server = start(front, &terminator, app(state.clone())).await;
    let mut client = server.connect();
    client.get("/stream");
    let termination = first_half_of_the_stream(&mut client, &terminator);
    state.gate.open();
    assert_eq!(client.read_body(), b"last\n");
    client.send(GET_QUICK);
    assert_eq!(last_answer(&mut client, "after the stream").text(), "ok");
    let report = within(BOUND, "the end", termination).await;
    assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
    finished(server, &report).await;
}

/// `/quick` and `/stream` in one write, see
/// [`g2_settle_counts_from_the_last_of_pipelined_requests`].
async fn g6_a_request_right_after_a_pipelined_body_that_said_keep_alive_is_answered(
    front: FrontEnd,
) {
    // On a machine that is stalled the request comes too late, and nothing is promised of it.
    let begin = Instant::now();
    while !is_answered_right_after_a_pipelined_body(front).await {
        assert!(begin.elapsed() < BOUND, "too late each time");
    }
}

/// False if the request came too late.
async fn is_answered_right_after_a_pipelined_body(front: FrontEnd) -> bool {
    // Much shorter than what passes between the two answers; the next request comes right after.
    let settle = Duration::from_millis(300);
    let state = App::default();
    let terminator = patient().settle(settle).build();
    let server = start(front, &terminator, app(state.clone())).await;
    let mut client = server.connect();
    client.send(format!(
        "{GET_QUICK}{}",
        GET_QUICK.replace("quick", "stream")
    ));
    assert_eq!(client.read_response().text(), "ok");
    let termination = first_half_of_the_stream(&mut client, &terminator);
    time_passes(settle * 2);
    let before = Instant::now();
    state.gate.open();
    assert_eq!(client.read_body(), b"last\n");
    // Longer than a close at once would take, and within `settle` on a machine that is not stalled.
    time_passes(settle / 5);
    let was_sent = client.try_send(GET_QUICK);
    let sent = before.elapsed();
    let answer = client.try_read_response();
    let in_time = sent < settle;
    if in_time {
        was_sent.expect("it has not settled");
        let answer = answer.unwrap_or_else(|end| panic!("{end:?}, sent {sent:?} after the body"));
        assert!(answer.says_close(), "{answer:?}");
        client.expect_eof();
    }
    let report = within(BOUND, "the end", termination).await;
    assert!(report.is_clean(), "{report}");
    finished(server, &report).await;
    in_time
}

/// hyper asks for the next request while it still writes the response, see
/// [`g1_a_drained_slow_reader_is_closed_when_it_has_settled`].
async fn g6_a_request_right_after_a_slowly_read_body_is_answered(front: FrontEnd) {
    let settle = Duration::from_millis(1500);
    let terminator = patient().settle(settle).build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.get("/big");
    let head = client.read_response_headers();
    assert!(!head.says_close(), "{head:?}");
    time_passes(PAST_SETTLE); // the socket fills
    let termination = terminator.terminate();
    time_passes(settle);
    same_as_big(&client.read_body());
    // The bytes in the socket were on their way for long, but the last one left just now.
    client.send(GET_QUICK);
    assert_eq!(
        last_answer(&mut client, "after a slowly read body").text(),
        "ok"
    );
    let report = within(BOUND, "the end", termination).await;
    assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
    finished(server, &report).await;
}

async fn g6_without_another_request_the_connection_ends_after_settle(front: FrontEnd) {
    ends_after_the_stream(front, "").await;
}

/// See [`g2_settle_counts_from_the_last_of_pipelined_requests`].
async fn g6_without_another_request_a_pipelined_body_ends_after_settle(front: FrontEnd) {
    ends_after_the_stream(front, GET_QUICK).await;
}

async fn g6_of_pipelined_requests_the_last_one_answered_says_close(front: FrontEnd) {
    pipelined(front, 40).await;
}

/// More than fits hyper's buffer: what is unread when the connection ends must not reset it.
async fn g6_of_more_pipelined_requests_than_are_read_the_last_one_answered_says_close(
    front: FrontEnd,
) {
    pipelined(front, 2000).await;
}

async fn g6_requests_pipelined_behind_the_one_that_says_close_are_not_processed(front: FrontEnd) {
    let state = App::default();
    let terminator = patient().build();
    let seen = Arc::new(AtomicBool::new(false));
    let see = Arc::clone(&seen);
    let app = app(state.clone()).route(
        "/seen",
        get(move || async move { see.store(true, Ordering::SeqCst) }),
    );
    let server = start(front, &terminator, app).await;
    let mut client = server.connect();
    let behind = GET_QUICK.replace("quick", "seen").repeat(39);
    client.send(format!("{}{behind}", GET_QUICK.replace("quick", "slow")));
    state.gate.wait_entered(1);
    drop(terminator.terminate());
    state.gate.open();
    assert_eq!(last_answer(&mut client, "held").text(), "slow");
    let report = ended_cleanly(server, &terminator).await;
    assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
    assert!(
        !seen.load(Ordering::SeqCst),
        "a request behind the last answer was processed"
    );
}

// ===== G7: the rest of HTTP/1 =====

async fn g7_expect_100_continue_before_the_drain_is_finished(front: FrontEnd) {
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.send(EXPECTING);
    assert_eq!(client.read_response().status, 100);
    drop(terminator.terminate());
    time_passes(PAST_SETTLE);
    client.send("hello");
    assert_eq!(last_answer(&mut client, "expecting").text(), "hello");
    ended_cleanly(server, &terminator).await;
}

async fn g7_expect_100_continue_during_the_drain_is_finished(front: FrontEnd) {
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    let interim = during_the_drain(&terminator, &mut client, EXPECTING);
    assert_eq!(interim.status, 100);
    assert!(!interim.says_close(), "{interim:?}");
    time_passes(PAST_SETTLE);
    client.send("hello");
    assert_eq!(last_answer(&mut client, "expecting").text(), "hello");
    ended_cleanly(server, &terminator).await;
}

async fn g7_a_chunked_upload_half_way_is_finished(front: FrontEnd) {
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send("5\r\nhello\r\n");
    until("a request", || terminator.stats().requests == 1);
    drop(terminator.terminate());
    time_passes(PAST_SETTLE);
    client.send("6\r\n wor");
    time_passes(PAST_SETTLE);
    client.send("ld\r\n0\r\n\r\n");
    assert_eq!(last_answer(&mut client, "chunked").text(), "hello world");
    ended_cleanly(server, &terminator).await;
}

/// Time is the subject: a body that its handler reads may come slower than `stall_timeout`.
async fn g7_a_slow_upload_is_not_bound_by_the_stall_timeout(front: FrontEnd) {
    let stall = Duration::from_millis(100);
    let terminator = patient().stall_timeout(stall).build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\n1");
    until("a request", || terminator.stats().requests == 1);
    drop(terminator.terminate());
    for piece in ["2", "3", "4"] {
        time_passes(stall * 2);
        assert!(client.is_still_open(), "before piece {piece}");
        client.send(piece);
    }
    assert_eq!(last_answer(&mut client, "slow upload").text(), "1234");
    let report = ended_cleanly(server, &terminator).await;
    assert_eq!((report.finished, report.stalled), (1, 0), "{report}");
}

/// The handler answers at once, with keep-alive, and leaves the reading to a task. The upload goes on
/// for as long as its client does not stall.
///
/// hyper 1.12 gives such a body its data, but not its end: that it holds back with the connection.
async fn g7_an_upload_that_is_read_after_its_answer_is_finished(front: FrontEnd) {
    let in_chunks = ["", "5\r\nhello\r\n", "6\r\n wor", "ld\r\n0\r\n\r\n"];
    let like_an_end = ["5\r\nhell\n\r\n", "7\r\no world\r\n", "", "0\r\n\r\n"];
    for (framing, pieces) in [
        ("content-length: 11", ["", "hello", " wor", "ld"]),
        (CHUNKED, in_chunks),
        (CHUNKED, like_an_end),
    ] {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let handler = move |mut body: Body| async move {
            tokio::spawn(async move {
                while let Some(frame) = body.frame().await {
                    let _ = sender.send(frame.map(|frame| frame.into_data().expect("no trailers")));
                }
            });
        };
        let terminator = patient().build();
        let app = app(App::default()).route("/later", post(handler));
        let server = start(front, &terminator, app).await;
        let mut client = server.connect();
        client.send(format!(
            "POST /later HTTP/1.1\r\nhost: localhost\r\n{framing}\r\n\r\n"
        ));
        client.send(pieces[0]);
        assert_eq!(client.read_response().status, 200);
        drop(terminator.terminate());
        for piece in &pieces[1..] {
            time_passes(PAST_SETTLE);
            let sent = client.try_send(piece);
            assert!(sent.is_ok(), "{framing}, {piece:?}: {sent:?}");
        }
        let mut body = String::new();
        while body.len() < 11 {
            match within(BOUND, "the upload", receiver.recv()).await {
                Some(Ok(data)) => {
                    let data = String::from_utf8_lossy(&data).replace('\n', "");
                    body.push_str(&data);
                }
                end => panic!("{framing}, {pieces:?}: {end:?} after {body:?}"),
            }
        }
        assert_eq!(body, "hello world", "{framing}, {pieces:?}");
        client.expect_eof();
        ended_cleanly(server, &terminator).await;
    }
}

async fn g7_trailers_pass_both_ways(front: FrontEnd) {
    // Answers the trailers of the request as those of the response.
    async fn mirror(body: Body) -> axum::response::Response {
        let collected = body.collect().await.expect("the upload is whole");
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let frames = [Frame::data(collected.to_bytes()), Frame::trailers(trailers)];
        let body = StreamBody::new(stream::iter(frames.map(Ok::<Frame<Bytes>, Infallible>)));
        let mut response = axum::response::Response::new(Body::new(body));
        response
            .headers_mut()
            .insert("trailer", HeaderValue::from_static("sum"));
        response
    }

    let terminator = patient().build();
    let app = app(App::default()).route("/mirror", post(mirror));
    let server = start(front, &terminator, app).await;
    let mut client = server.connect();
    client.send(
        "POST /mirror HTTP/1.1\r\nhost: localhost\r\nte: trailers\r\ntrailer: sum\r\n\
         transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    );
    until("a request", || terminator.stats().requests == 1);
    drop(terminator.terminate());
    time_passes(PAST_SETTLE);
    client.send("sum: 532\r\n\r\n");
    let answer = last_answer(&mut client, "trailers");
    assert_eq!(answer.text(), "hello");
    assert_eq!(answer.trailers, [("sum".to_owned(), "532".to_owned())]);
    ended_cleanly(server, &terminator).await;
}

async fn g7_head_and_204_say_close_without_a_body(front: FrontEnd) {
    for (request, status) in [
        ("HEAD /quick HTTP/1.1\r\nhost: localhost\r\n\r\n", 200),
        ("HEAD /big HTTP/1.1\r\nhost: localhost\r\n\r\n", 200),
        ("GET /nothing HTTP/1.1\r\nhost: localhost\r\n\r\n", 204),
    ] {
        let terminator = patient().build();
        let app = app(App::default()).route("/nothing", get(async || StatusCode::NO_CONTENT));
        let server = start(front, &terminator, app).await;
        let mut client = server.connect();
        let (begun, rest) = request.split_at(5);
        client.send(begun);
        drop(terminator.terminate());
        client.send(rest);
        let answer = client.read_response_headers();
        assert_eq!(answer.status, status, "{request:?}: {answer:?}");
        assert!(answer.says_close(), "{request:?}: {answer:?}");
        client.expect_eof();
        ended_cleanly(server, &terminator).await;
    }
}

async fn g7_http_1_0_is_answered_and_closed(front: FrontEnd) {
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    let answer = during_the_drain(&terminator, &mut client, "GET /bigstream HTTP/1.0\r\n\r\n");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("transfer-encoding"),
        None,
        "HTTP/1.0 knows no chunks"
    );
    same_as_big(&answer.body);
    client.expect_eof();
    ended_cleanly(server, &terminator).await;
}

// ===== the server itself =====

/// A drain waits for others; the server's own future must not be woken meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_the_server_sleeps_while_a_request_is_in_flight() {
    let state = App::default();
    let terminator = patient().build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let addr = listener.local_addr().expect("it is bound");
    let mut serve = Box::pin(terminator.serve(listener, app(state.clone())));
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let server = tokio::spawn(std::future::poll_fn(move |cx| {
        counted.fetch_add(1, Ordering::Relaxed);
        serve.as_mut().poll(cx)
    }));
    let mut client = RawClient::connect(addr);
    client.get("/slow");
    state.gate.wait_entered(1);
    drop(terminator.terminate());
    time_passes(PAST_SETTLE);
    state.gate.open();
    assert_eq!(last_answer(&mut client, "in flight").text(), "slow");
    let report = within(BOUND, "the end", server)
        .await
        .expect("the server does not panic");
    assert!(report.is_clean(), "{report}");
    let polls = polls.load(Ordering::Relaxed);
    assert!(polls < 20, "{polls} polls in {PAST_SETTLE:?}");
}

// ===== what several tests do =====

const GET_QUICK: &str = "GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n";

const EXPECTING: &str = "POST /echo HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n\
                         content-length: 5\r\n\r\n";

/// Ways to announce a body.
const LONG: &str = "content-length: 1000000";
const CHUNKED: &str = "transfer-encoding: chunked";

/// The library counts whole microseconds.
const ROUNDING: Duration = Duration::from_micros(10);

/// Both bounds are longer than [`BOUND`]: a test that runs into one of them fails.
fn patient() -> TerminatorBuilder {
    let builder = Terminator::builder().grace_period(Duration::from_secs(30));
    builder.stall_timeout(Duration::from_secs(20))
}

fn with_or_without_settle(round: usize) -> Terminator {
    match round % 2 {
        0 => patient().build(),
        _ => patient().settle(Duration::ZERO).build(),
    }
}

/// Rounds of dozens of connections each: over TLS every one costs a handshake.
fn few_over_tls(front: FrontEnd, rounds: usize) -> usize {
    if front.is_tls() { rounds / 2 } else { rounds }
}

/// The server has ended as well, with the same report.
async fn finished(server: Server, report: &Report) {
    let task = within(BOUND, "end of the server's task", server.task).await;
    let its_own = task.expect("the server does not panic");
    assert!(
        its_own.as_ref().is_none_or(|its_own| its_own == report),
        "{its_own:?}"
    );
}

async fn ended_cleanly(server: Server, terminator: &Terminator) -> Report {
    let report = within(BOUND, "the end", terminator.terminated()).await;
    assert!(report.is_clean(), "{report}");
    finished(server, &report).await;
    report
}

/// The one connection there is, at rest, is closed as idle.
async fn idle_at_once(server: Server, terminator: &Terminator, client: RawClient, what: &str) {
    all_idle_at_once(server, terminator, vec![(client, what.to_owned())]).await;
}

async fn all_idle_at_once(
    server: Server,
    terminator: &Terminator,
    mut clients: Vec<(RawClient, String)>,
) {
    let called = Instant::now();
    let termination = terminator.terminate();
    for (client, what) in &mut clients {
        client.set_timeout(SOON.saturating_sub(called.elapsed()));
        match client.try_read_response() {
            Err(ReadEnd::Eof) => {}
            other => panic!("{what}: {other:?} instead of an end of file"),
        }
    }
    let (all, first) = (clients.len(), &clients[0].1);
    let report = within(BOUND, "the end", termination).await;
    assert!(called.elapsed() < SOON, "{first}: {report}");
    assert_eq!(
        (report.idle, report.connections()),
        (all, all),
        "{first}: {report}"
    );
    finished(server, &report).await;
}

/// An answer that says close, and the end of the connection.
#[track_caller]
fn last_answer(client: &mut RawClient, what: &str) -> RawResponse {
    match client.try_read_response() {
        Ok(answer) => {
            assert_eq!(answer.status, 200, "{what}: {answer:?}");
            assert!(answer.says_close(), "{what}: {answer:?}");
            client.expect_eof();
            answer
        }
        Err(end) => panic!("{what}: {end:?} instead of an answer"),
    }
}

/// Begins a request, lets the drain begin, and finishes it: its answer is one of the drain's,
/// however quick the handler.
#[track_caller]
fn during_the_drain(terminator: &Terminator, client: &mut RawClient, request: &str) -> RawResponse {
    let (begun, rest) = request.split_at(5);
    client.send(begun);
    accepted(terminator, 1);
    drop(terminator.terminate());
    client.send(rest);
    client.read_response()
}

/// Requests that were written are answered, and then the connections end. Only what is answered after
/// the drain began says close, and some may have been answered before.
async fn all_answered(
    server: Server,
    terminator: &Terminator,
    mut clients: Vec<RawClient>,
    round: usize,
) {
    let termination = terminator.terminate();
    let mut lost = Vec::new();
    for (n, client) in clients.iter_mut().enumerate() {
        match client.try_read_response() {
            Ok(answer) => {
                assert_eq!(answer.text(), "ok");
                client.expect_eof();
            }
            Err(end) => lost.push((n, end)),
        }
    }
    assert!(lost.is_empty(), "round {round}: lost {lost:?}");
    let report = within(BOUND, "the end", termination).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.connections(), clients.len(), "{report}");
    finished(server, &report).await;
}

/// Heads cut anywhere; the rest comes when an idle connection would long be closed.
async fn halves_are_answered(front: FrontEnd, warm: bool) {
    let post = "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nok";
    let cuts: Vec<_> = [GET_QUICK, post]
        .into_iter()
        .flat_map(|request| [1, 4, 20, 22, 37, 38, 39].map(|cut| request.split_at(cut)))
        .collect();
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut clients: Vec<_> = cuts.iter().map(|_| server.connect()).collect();
    for (client, (begun, _)) in clients.iter_mut().zip(&cuts) {
        if warm {
            assert_eq!(client.fetch("/quick").text(), "ok");
        }
        client.send(begun);
    }
    accepted(&terminator, cuts.len());
    let termination = terminator.terminate();
    time_passes(PAST_SETTLE);
    for (client, (begun, rest)) in clients.iter_mut().zip(&cuts) {
        let sent = client.try_send(rest);
        assert!(sent.is_ok(), "{begun:?}: {sent:?}");
        assert_eq!(last_answer(client, begun).text(), "ok");
    }
    let report = within(BOUND, "the end", termination).await;
    assert_eq!(
        (report.finished, report.connections()),
        (cuts.len(), cuts.len()),
        "{report}"
    );
    finished(server, &report).await;
}

/// Requests in one write, and a termination somewhere in the middle of them.
/// At any moment of it; and surely in the middle, where one of them is held.
async fn pipelined(front: FrontEnd, requests: usize) {
    let state = App::default();
    let terminator = patient().build();
    let server = start(front, &terminator, app(state.clone())).await;
    let mut client = server.connect();
    let before = requests / 2;
    let held = GET_QUICK.replace("quick", "slow");
    let [quick, behind] = [before, requests - before].map(|n| GET_QUICK.repeat(n));
    client.send(format!("{quick}{held}{behind}"));
    for _ in 0..before {
        assert!(!client.read_response().says_close());
    }
    state.gate.wait_entered(1);
    drop(terminator.terminate());
    state.gate.open();
    assert_eq!(last_answer(&mut client, "held").text(), "slow");
    ended_cleanly(server, &terminator).await;

    let mut partly = 0;
    for round in 0..8_u64 {
        let state = App::default();
        let terminator = patient().build();
        let server = start(front, &terminator, app(state)).await;
        let mut client = server.connect();
        assert_eq!(client.fetch("/quick").text(), "ok");
        match client.try_send(GET_QUICK.repeat(requests)) {
            Ok(()) => {}
            Err(error) => panic!("the server reads on: {error}"),
        }
        let spin = Instant::now();
        while spin.elapsed() < Duration::from_micros(round * 125) {}
        let termination = terminator.terminate();
        let mut answers = 0;
        let closed = loop {
            match client.try_read_response() {
                Ok(answer) => {
                    assert_eq!(answer.text(), "ok");
                    answers += 1;
                    if answer.says_close() {
                        client.expect_eof();
                        break true;
                    }
                }
                Err(ReadEnd::Eof) => break false,
                Err(end) => panic!("round {round}: {end:?} after {answers} answers"),
            }
        };
        // Without a word only if there was nothing left to say.
        assert!(
            closed || answers == requests,
            "round {round}: ended after {answers} answers"
        );
        partly += usize::from(answers < requests);
        drop(client);
        let report = within(BOUND, "the end", termination).await;
        assert!(report.is_clean(), "{report}");
        finished(server, &report).await;
    }
    println!("{front:?}: {partly} of 8 terminations came in the middle of {requests} requests");
}

/// Reads nothing until the drain has lasted for longer than the stall timeout, then pauses for as
/// long in the middle. Time is the subject.
async fn slow_reader(front: FrontEnd, path: &str, head_during_drain: bool) {
    let stall = Duration::from_millis(300);
    let terminator = patient().stall_timeout(stall).build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    let request = GET_QUICK.replace("quick", path);
    let (begun, rest) = request.split_at(5);
    client.send(begun);
    if !head_during_drain {
        client.send(rest);
        assert!(!client.read_response_headers().says_close());
        time_passes(PAST_SETTLE); // the socket fills
    }
    accepted(&terminator, 1);
    let termination = terminator.terminate();
    if head_during_drain {
        client.send(rest);
    }
    time_passes(stall * 2);
    if head_during_drain {
        assert!(client.read_response_headers().says_close());
    }
    let mut body = Vec::new();
    let mut pauses = 0..1;
    while let Some(part) = client.read_chunk() {
        body.extend_from_slice(&part);
        // Most of it is still at the server's: no socket holds so much.
        if body.len() > BIG / 8 && pauses.next().is_some() {
            assert_eq!(terminator.phase(), Phase::Draining);
            time_passes(stall * 2);
            assert_eq!(terminator.phase(), Phase::Draining);
        }
    }
    same_as_big(&body);
    client.expect_eof();
    let report = within(BOUND, "the end", termination).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.stalled, report.connections()), (0, 1), "{report}");
    finished(server, &report).await;
}

/// A head that is begun and never finished. Time is the subject.
async fn stalls(front: FrontEnd, begun: &str, warm: bool) {
    let stall = Duration::from_millis(200);
    let terminator = patient().stall_timeout(stall).build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    if warm {
        assert_eq!(client.fetch("/quick").text(), "ok");
    }
    client.send(begun);
    accepted(&terminator, 1);
    let called = Instant::now();
    let termination = terminator.terminate();
    client.expect_eof();
    let took = called.elapsed();
    let what = format!("{begun:?}, warm {warm}: closed");
    assert!(took + ROUNDING >= stall, "{what} after {took:?}");
    measured(took, stall + LATE, &what);
    let report = within(BOUND, "the end", termination).await;
    assert_eq!(
        (report.stalled, report.connections()),
        (1, 1),
        "{what}: {report}"
    );
    assert!(report.is_clean(), "{what}: {report}");
    finished(server, &report).await;
}

/// All of an upload has come, and a handler keeps it unread and answers: hyper reads no more, also not
/// whether the client has left.
async fn g5_a_whole_upload_that_nobody_reads_ends_after_the_stall_timeout(front: FrontEnd) {
    for told in [true, false] {
        let stall = Duration::from_millis(200);
        let gate = Gate::new();
        let (handler, _shelf) = shelving(&gate);
        let terminator = patient().stall_timeout(stall).build();
        let app = Router::new().route("/shelve", handler);
        let server = start(front, &terminator, app).await;
        let mut client = server.connect();
        client.send(
            "POST /shelve HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n\
            5\r\nhello\r\n0\r\n\r\n",
        );
        gate.wait_entered(1);
        let termination = told.then(|| terminator.terminate());
        gate.open();
        let answer = client.read_response();
        assert_eq!((answer.says_close(), answer.text()), (told, "shelved"));
        let since = Instant::now();
        let termination = termination.unwrap_or_else(|| terminator.terminate());
        client.expect_eof();
        let took = since.elapsed();
        measured(took, stall + LATE, &format!("{front:?}, {told}: the end"));
        let report = within(BOUND, "the end", termination).await;
        assert!(report.is_clean(), "{front:?}, {told}: {report}");
        let ends = if told { report.finished } else { report.idle };
        assert_eq!((ends, report.connections()), (1, 1), "{told}: {report}");
        finished(server, &report).await;
    }
}

/// All of an upload has come, and somebody reads it slowly, behind the answer; what has come behind it, whole or half, is
/// answered then.
async fn g5_a_whole_upload_that_is_read_slowly_is_read_to_its_end(front: FrontEnd) {
    const PARTS: usize = 8;
    for behind in ["", GET_QUICK, "GET /quick HTTP/1.1\r\nho"] {
        let stall = Duration::from_millis(500);
        let (handler, told) = read_slowly(stall / 5);
        let terminator = patient().stall_timeout(stall).build();
        let app = app(App::default()).route("/later", handler);
        let server = start(front, &terminator, app).await;
        let mut client = server.connect();
        let parts = "5\r\nhello\r\n".repeat(PARTS);
        client.send(format!(
            "POST /later HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{parts}0\r\n\r\n{behind}"
        ));
        assert_eq!(client.read_response().text(), "accepted");
        let termination = terminator.terminate();
        if behind.len() < GET_QUICK.len() {
            client.send(behind.strip_prefix("GET").map_or("", |_| "st: a\r\n\r\n"));
        }
        let read = told.recv_timeout(BOUND).expect("it was read");
        assert_eq!(read, PARTS * 5, "{front:?}, {behind:?}");
        if !behind.is_empty() {
            let answer = client.read_response();
            assert_eq!(
                (answer.says_close(), answer.text()),
                (true, "ok"),
                "{front:?}"
            );
        }
        let report = within(BOUND, "the end", termination).await;
        assert!(report.is_clean(), "{front:?}, {behind:?}: {report}");
        assert_eq!(report.stalled, 0, "{front:?}, {behind:?}: {report}");
    }
}

/// The same as it comes: neither side is silent.
async fn g5_an_upload_that_is_read_behind_its_answer_is_read_to_its_end(front: FrontEnd) {
    const PARTS: usize = 30;
    let stall = Duration::from_millis(500);
    let (handler, told) = read_slowly(stall / 10);
    let terminator = patient().stall_timeout(stall).build();
    let server = start(front, &terminator, Router::new().route("/later", handler)).await;
    let mut client = server.connect();
    let parts = "5\r\nhello\r\n".repeat(PARTS - 10);
    client.send(format!(
        "POST /later HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{parts}"
    ));
    assert_eq!(client.read_response().text(), "accepted");
    let termination = terminator.terminate();
    for _ in 0..10 {
        time_passes(stall / 10);
        client.send("5\r\nhello\r\n");
    }
    client.send("0\r\n\r\n");
    let read = told.recv_timeout(BOUND).expect("it was read");
    assert_eq!(read, PARTS * 5, "{front:?}");
    let report = within(BOUND, "the end", termination).await;
    assert_eq!(
        (report.stalled, report.connections()),
        (0, 1),
        "{front:?}: {report}"
    );
}

/// hyper calls for a request before it drops the body of the answer before: that the client takes it slowly makes the
/// second one no less busy.
async fn g2_a_request_behind_an_answer_that_is_taken_slowly_is_answered(front: FrontEnd) {
    const SIZE: usize = 16 << 20;
    let gate = Gate::new();
    let big = post(|body: Body| async {
        drop(body);
        let one = stream::iter([Ok::<_, std::io::Error>(vec![b'b'; SIZE])]);
        ([(header::CONTENT_LENGTH, SIZE)], Body::from_stream(one))
    });
    let state = App {
        gate: gate.clone(),
        ..App::default()
    };
    let terminator = patient().build();
    let server = start(front, &terminator, app(state).route("/big", big)).await;
    let mut client = server.connect();
    client.set_timeout(BOUND * 6);
    client.send(
        "POST /big HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
         GET /slow HTTP/1.1\r\nhost: a\r\n\r\n",
    );
    // Time is the subject: the answer is blocked.
    time_passes(PAST_SETTLE);
    assert_eq!(client.read_response().body.len(), SIZE, "{front:?}");
    // hyper may have called, or may call only when it is polled once more: bare hyper forgets to one time in four.
    time_passes(PAST_SETTLE);
    let termination = terminator.terminate();
    gate.wait_entered(1);
    time_passes(PAST_SETTLE);
    gate.open();
    let answer = client.read_response();
    assert_eq!(
        (answer.says_close(), answer.text()),
        (true, "slow"),
        "{front:?}"
    );
    let report = within(BOUND, "the end", termination).await;
    assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
    finished(server, &report).await;
}

/// A handler that answers at once and reads the body behind that, a part in each `pause`; then it says how much there was.
fn read_slowly(pause: Duration) -> (MethodRouter, Receiver<usize>) {
    let (tell, told) = mpsc::channel();
    let handler = post(move |body: Body| async move {
        tokio::spawn(async move {
            let mut body = body.into_data_stream();
            let mut read = 0;
            while let Some(Ok(part)) = body.next().await {
                read += part.len();
                time_passes_async(pause).await;
            }
            let _ = tell.send(read); // the test has ended
        });
        "accepted"
    });
    (handler, told)
}

/// Where bodies are that nobody reads, for as long as it is.
type Shelf = Arc<Mutex<Vec<Body>>>;

/// A handler that keeps the body as it is, and answers when the gate is opened.
fn shelving(gate: &Gate) -> (MethodRouter, Shelf) {
    let (gate, shelf) = (gate.clone(), Shelf::default());
    let kept = Arc::clone(&shelf);
    let handler = post(move |body: Body| async move {
        kept.lock().expect("nobody panics with it").push(body);
        gate.enter().await;
        "shelved"
    });
    (handler, shelf)
}

/// A handler keeps the body of an upload alive and answers without having read it. The rest never
/// comes; `unread` waits in the socket. Time is the subject.
async fn shelved_upload(
    front: FrontEnd,
    framing: &str,
    begun: &str,
    unread: &str,
    answer_during_drain: bool,
) {
    let what = format!("{framing}, {begun:?}");
    let stall = Duration::from_millis(200);
    let gate = Gate::new();
    let (handler, shelf) = shelving(&gate);
    let terminator = patient().stall_timeout(stall).build();
    let app = Router::new().route("/shelve", handler);
    let server = start(front, &terminator, app).await;
    let mut client = server.connect();
    client.send(format!(
        "POST /shelve HTTP/1.1\r\nhost: localhost\r\n{framing}\r\n\r\n{begun}"
    ));
    gate.wait_entered(1);
    client.send(unread);
    let mut since = Instant::now();
    if answer_during_drain {
        drop(terminator.terminate());
    }
    gate.open();
    let answer = client.read_response();
    assert_eq!(answer.text(), "shelved");
    assert_eq!(
        answer.says_close(),
        answer_during_drain,
        "{what}: {answer:?}"
    );
    if !answer_during_drain {
        time_passes(PAST_SETTLE);
        since = Instant::now();
        drop(terminator.terminate());
    }
    match client.try_read_response() {
        Err(ReadEnd::Eof) => {}
        other => panic!("{what}: {other:?} instead of an end of file"),
    }
    let took = since.elapsed();
    assert!(
        took + ROUNDING >= stall,
        "{what}: the client had more time than {took:?}"
    );
    measured(took, stall + LATE, &what);
    drop(client);
    let report = ended_cleanly(server, &terminator).await;
    assert_eq!(
        (report.stalled, report.connections()),
        (1, 1),
        "{what}: {report}"
    );
    drop(shelf);
}

/// A handler answers during the drain without looking at the body, which goes on coming in slow
/// pieces. The client reads the answer only then: a reset would have destroyed it, or its end.
async fn early_answer(front: FrontEnd, framing: &str, begun: &[u8], piece: &[u8]) {
    let terminator = patient().build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.send("POST /");
    accepted(&terminator, 1);
    drop(terminator.terminate());
    client.send(format!(
        "early HTTP/1.1\r\nhost: localhost\r\n{framing}\r\n\r\n"
    ));
    client.send(begun);
    for n in 0..5 {
        time_passes(PAST_SETTLE / 5);
        if let Err(error) = client.try_send(piece) {
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ),
                "{error}"
            );
            panic!("{framing}: reset before piece {n} of the upload was taken");
        }
    }
    let answer = client.read_response();
    assert_eq!((answer.status, answer.text()), (413, "too much"));
    assert!(answer.says_close(), "{answer:?}");
    client.expect_eof();
    drop(client);
    ended_cleanly(server, &terminator).await;
}

/// A stream whose head said keep-alive, behind `pipelined`. Time is the subject.
async fn ends_after_the_stream(front: FrontEnd, pipelined: &str) {
    let settle = Duration::from_millis(300);
    let state = App::default();
    let terminator = patient().settle(settle).build();
    let server = start(front, &terminator, app(state.clone())).await;
    let mut client = server.connect();
    client.send(format!(
        "{pipelined}{}",
        GET_QUICK.replace("quick", "stream")
    ));
    if !pipelined.is_empty() {
        assert_eq!(client.read_response().text(), "ok");
    }
    let termination = first_half_of_the_stream(&mut client, &terminator);
    time_passes(settle);
    let before = Instant::now();
    state.gate.open();
    assert_eq!(client.read_body(), b"last\n");
    client.expect_eof();
    let quiet = before.elapsed();
    assert!(
        quiet + ROUNDING >= settle,
        "closed {quiet:?} after the body"
    );
    measured(quiet, settle + LATE, "closed after the body");
    let report = within(BOUND, "the end", termination).await;
    assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
    finished(server, &report).await;
}

/// Reads the head and the first chunk of `/stream`, and lets the drain begin.
#[track_caller]
fn first_half_of_the_stream(
    client: &mut RawClient,
    terminator: &Terminator,
) -> http_terminator::Termination {
    let head = client.read_response_headers();
    assert!(!head.says_close(), "{head:?}");
    assert_eq!(client.read_chunk().as_deref(), Some(&b"first\n"[..]));
    let termination = terminator.terminate();
    time_passes(PAST_SETTLE);
    termination
}

/// Fast where they are the same; [`assert_big`] tells where they are not.
#[track_caller]
fn same_as_big(body: &[u8]) {
    if body != big() {
        assert_big(body);
    }
}
