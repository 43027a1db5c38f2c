//! HTTP/2 seen from outside: GOAWAY in two phases, streams in hand, and peers that stay silent (G9,
//! and G4 and G5 for HTTP/2).

#![cfg(all(unix, feature = "serve"))]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{StatusCode, header};

use crate::support::outside::{self, measured};
use crate::support::wait::{busy, idle, time_passes, until_stats};
use crate::support::{
    App, BIG, BOUND, Frame, FrontEnd, Gate, H2Client, PREFACE, RawH2, ReadEnd, Server, app,
    assert_big, blocking, each, h2_connect, h2_connect_with, h2_finish, kind, start, within,
};
use http_terminator::{Phase, Report, Terminator, TerminatorBuilder};

/// `SETTINGS_INITIAL_WINDOW_SIZE` (RFC 9113 section 6.5.2).
#[cfg(target_os = "linux")]
const WINDOW: u16 = 4;

const STALL: Duration = Duration::from_millis(200);

/// Well past the stall timeout.
const QUIET: Duration = Duration::from_millis(600);

/// By then a peer that stays silent is gone, if the machine has nothing else to do.
const GONE: Duration = STALL.saturating_add(outside::LATE);

/// Where something ends: far from any deadline.
const SOON: Duration = Duration::from_secs(5);

/// The last stream of the first GOAWAY (RFC 9113 section 6.8).
const ANY_STREAM: u32 = (1 << 31) - 1;

const NO_ERROR: u32 = 0;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_WINDOW: u32 = (1 << 31) - 1;

// ===== G9: GOAWAY =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_goaway_comes_in_two_phases() {
    each(FrontEnd::all_and_tls(), async |front| {
        let it = Setup::with(front, BOUND).await;
        let (terminator, gate, mut client) = (it.terminator.clone(), it.gate.clone(), it.raw());
        blocking(move || {
            client.get("/slow", 1);
            gate.wait_entered(1);
            let _ended = terminator.terminate();

            expect_goaway(&mut client, ANY_STREAM);
            let ping = next(&mut client);
            assert_eq!(ping.kind, kind::PING, "{front:?}: {ping:?}");
            client.ack_ping(&ping);
            expect_goaway(&mut client, 1);
            assert_eq!(terminator.phase(), Phase::Draining);

            gate.open();
            assert_eq!(read_bodies(&mut client, &[1])[&1], b"slow", "{front:?}");
            client.expect_eof_within(SOON);
        })
        .await;
        let report = it.report().await;
        assert_eq!(report.finished, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_an_idle_connection_is_told_and_ends_at_once() {
    each(FrontEnd::all_and_tls(), async |front| {
        // So that neither the stall timeout nor the deadline is what ends it.
        let it = Setup::with(front, BOUND).await;
        let mut client = it.client().await;
        assert_eq!(client.get("/quick").await.0, StatusCode::OK);
        let begin = Instant::now();
        drop(it.terminator.terminate());
        over(&mut client).await;
        measured(
            begin.elapsed(),
            outside::SOON,
            &format!("{front:?}: the end"),
        );
        let report = it.report().await;
        assert_eq!(report.finished, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_streams_in_flight_finish_after_goaway() {
    each(FrontEnd::all_and_tls(), async |front| {
        let it = Setup::new(front).await;
        let mut client = it.client().await;
        let mut responses = Vec::new();
        for n in 0..32 {
            let path = if n % 2 == 0 { "/slow" } else { "/stream" };
            responses.push(client.start(path).await);
        }
        it.gate.wait_entered_async(32).await;
        let ended = it.terminator.terminate();
        // The last GOAWAY is out when the client may start no more.
        it.refused(&client).await;
        assert!(
            ended.now_or_never().is_none(),
            "{front:?}: 32 streams are in hand"
        );
        it.gate.open();
        let got = within(
            BOUND,
            "32 responses",
            join_all(responses.into_iter().map(h2_finish)),
        )
        .await;
        for (n, got) in got.into_iter().enumerate() {
            let (status, body) = got.unwrap_or_else(|e| panic!("{front:?}: stream {n}: {e}"));
            let whole: &[u8] = if n % 2 == 0 {
                b"slow"
            } else {
                b"first\nlast\n"
            };
            assert_eq!(
                (status, &body[..]),
                (StatusCode::OK, whole),
                "{front:?}: {n}"
            );
        }
        over(&mut client).await;
        let report = it.report().await;
        assert_eq!(report.finished, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_streams_between_the_two_goaways_are_served() {
    each(FrontEnd::all_and_tls(), async |front| {
        let it = Setup::with(front, BOUND).await;
        let (terminator, mut client) = (it.terminator.clone(), it.raw());
        blocking(move || {
            client.get("/quick", 1);
            assert_eq!(read_bodies(&mut client, &[1])[&1], b"ok");
            let _ended = terminator.terminate();
            expect_goaway(&mut client, ANY_STREAM);
            let ping = next(&mut client);
            client.get("/quick", 3);
            client.get("/quick", 5);
            client.ack_ping(&ping);
            let (bodies, goaway) = read_bodies_and_goaway(&mut client, &[3, 5]);
            assert_eq!(bodies[&3], b"ok", "{front:?}");
            assert_eq!(bodies[&5], b"ok", "{front:?}");
            assert_eq!(
                goaway.map(|frame| frame.goaway()),
                Some((5, NO_ERROR)),
                "{front:?}"
            );
            client.expect_eof_within(SOON);
        })
        .await;
        let report = it.report().await;
        assert_eq!(report.finished, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// Three uploads: one that is under way as the connection is told, one whose head comes between the GOAWAYs, and whose parts come behind
/// the last of them, and one that ends with trailers there. DATA of a stream that was never opened would be an error of the
/// connection, and a server that closes behind the acknowledgment cuts all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_uploads_across_the_two_goaways_are_whole() {
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    // A literal field without a name in the table (RFC 7541 section 6.2.2).
    const TRAILERS: &[u8] = b"\0\x06x-last\x03yes";

    each(FrontEnd::all_and_tls(), async |front| {
        let it = Setup::with(front, BOUND).await;
        let (terminator, mut client) = (it.terminator.clone(), it.raw());
        blocking(move || {
            let data = |client: &RawH2, stream, part: &[u8], last| {
                client.send_frame(kind::DATA, if last { END_STREAM } else { 0 }, stream, part);
            };
            client.request("POST", "/echo", 1, false);
            data(&client, 1, b"one, ", false);
            busy(&terminator, "the first upload");
            let _ended = terminator.terminate();
            expect_goaway(&mut client, ANY_STREAM);
            let ping = next(&mut client);
            client.request("POST", "/echo", 3, false);
            client.request("POST", "/echo", 5, false);
            data(&client, 5, b"trailed", false);
            client.ack_ping(&ping);
            assert_eq!(client.read_until(kind::GOAWAY).goaway(), (5, NO_ERROR));
            data(&client, 3, b"three, ", false);
            data(&client, 1, b"across all", true);
            // Each is in hand longer than `settle` and whatever else is short.
            time_passes(Duration::from_millis(60));
            data(&client, 3, b"behind", true);
            let trailers = END_HEADERS | END_STREAM;
            client.send_frame(kind::HEADERS, trailers, 5, TRAILERS);
            let bodies = read_bodies(&mut client, &[1, 3, 5]);
            let bodies = [1, 3, 5].map(|stream| String::from_utf8_lossy(&bodies[&stream]));
            let whole = ["one, across all", "three, behind", "trailed"];
            assert_eq!(bodies, whole, "{front:?}");
            client.expect_eof_within(SOON);
        })
        .await;
        let report = it.report().await;
        assert_eq!(report.finished, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// h2's own client acknowledges the PING before it sends the heads that it has queued.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_streams_right_behind_the_acknowledgment_are_served() {
    let settle = Duration::from_secs(1);
    each(FrontEnd::all_and_tls(), async |front| {
        let builder = Terminator::builder().settle(settle);
        let it = Setup::built(front, builder.grace_period(BOUND)).await;
        let (terminator, mut client) = (it.terminator.clone(), it.raw());
        blocking(move || {
            client.get("/quick", 1);
            assert_eq!(read_bodies(&mut client, &[1])[&1], b"ok");
            let _ended = terminator.terminate();
            expect_goaway(&mut client, ANY_STREAM);
            let ping = next(&mut client);
            let acknowledged = Instant::now();
            client.ack_ping(&ping);
            for stream in [3, 5] {
                client.get("/quick", stream);
                let mut bodies = Bodies::new();
                let goaway = read_on(&mut client, &mut bodies, &[stream]);
                assert_eq!(bodies[&stream], b"ok", "{front:?}");
                assert_eq!(goaway, None, "{front:?}: within settle");
            }
            assert_eq!(client.read_until(kind::GOAWAY).goaway(), (5, NO_ERROR));
            assert!(acknowledged.elapsed() >= settle, "{front:?}");
            client.expect_eof_within(SOON);
        })
        .await;
        let report = it.report().await;
        assert_eq!(report.finished, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_streams_after_the_last_goaway_are_refused_and_hang_nothing() {
    each(FrontEnd::all_and_tls(), async |front| {
        let it = Setup::new(front).await;
        let (terminator, gate, mut client) = (it.terminator.clone(), it.gate.clone(), it.raw());
        blocking(move || {
            client.get("/slow", 1);
            gate.wait_entered(1);
            let _ended = terminator.terminate();
            expect_goaway(&mut client, ANY_STREAM);
            let ping = next(&mut client);
            client.ack_ping(&ping);
            expect_goaway(&mut client, 1);
            client.get("/slow", 3);
            // Firefox sends one behind each head. h2 took it for an error of the connection, and ended the stream in flight.
            client.window_update(3, 1 << 20);
            let update = [0, 0, 4, kind::WINDOW_UPDATE, 0, 0, 0, 0, 5, 0, 0, 0, 9];
            client.get("/slow", 5);
            client.send(&update[..5]);
            time_passes(QUIET);
            client.send(&update[5..]);
            // Its answer proves that the server has read what was sent before.
            client.send_frame(kind::PING, 0, 0, b"are you?");
            let answer = client.read_until(kind::PING);
            assert!(answer.is_ack(), "{front:?}: {answer:?}");
            gate.open();
            assert_eq!(read_bodies(&mut client, &[1])[&1], b"slow", "{front:?}");
            client.expect_eof_within(SOON);
            assert_eq!(gate.entered(), 1, "{front:?}: a refused stream was served");
        })
        .await;
        let report = it.report().await;
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

// ===== G5 =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_http2_responses_carry_no_connection_header() {
    each(FrontEnd::all_and_tls(), async |front| {
        let it = Setup::new(front).await;
        let mut client = it.client().await;
        let held = [client.start("/slow").await, client.start("/slow").await];
        it.gate.wait_entered_async(2).await;
        drop(it.terminator.terminate());
        it.refused(&client).await;
        it.gate.open();
        for response in held {
            let response = within(BOUND, "a response", response).await;
            let response = response.unwrap_or_else(|e| panic!("{front:?}: {e}"));
            let headers = response.headers();
            assert!(
                !headers.contains_key(header::CONNECTION),
                "{front:?}: {headers:?}"
            );
            assert!(
                !headers.contains_key("keep-alive"),
                "{front:?}: {headers:?}"
            );
        }
        over(&mut client).await;
    });
}

/// The handler sets one; hyper drops it, so nothing of ours may put it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_http2_responses_carry_no_connection_header_in_lame_duck() {
    each(FrontEnd::all_and_tls(), async |front| {
        let terminator = Terminator::builder().lame_duck(BOUND).build();
        let server = start(front, &terminator, app(App::default())).await;
        drop(terminator.terminate());
        for path in ["/quick", "/426"] {
            let client = h2_connect(&server.target).await;
            let response = within(BOUND, path, client.start(path).await).await;
            let response = response.unwrap_or_else(|e| panic!("{front:?} {path}: {e}"));
            let headers = response.headers();
            assert!(
                !headers.contains_key(header::CONNECTION),
                "{front:?} {path}: {headers:?}"
            );
        }
        within(SOON, "the forced end", terminator.force()).await;
    });
}

/// All of an answer lies in the server's kernel, and the PING behind it, while its client reads slowly. It owes the
/// acknowledgment for longer than any patience, and was taken for silent; the window that it gave back then drew a reset, and
/// what the kernel had yet to send was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg(target_os = "linux")]
async fn g5_an_answer_that_lies_in_the_kernel_is_read_however_slowly() {
    const LENGTH: usize = 3 << 20;
    each(FrontEnd::all_and_tls(), async |front| {
        let builder = Terminator::builder().grace_period(BOUND * 3);
        let terminator = builder.stall_timeout(Duration::from_millis(600)).build();
        let router = Router::new().route("/", get(async || vec![7; LENGTH]));
        let server = start(front, &terminator, router).await;
        let target = server.target.clone();
        let ended = blocking(move || {
            const MOST: u32 = u32::MAX >> 1;
            let mut client = RawH2::connect_with(target, &[(WINDOW, MOST)]);
            let buffer = client.socket().set_recv_buffer_size(1 << 18);
            buffer.expect("little");
            client.window_update(0, MOST - 65_535);
            client.get("/", 1);
            let (mut got, mut back, mut ended) = (0, 0, None);
            let (mut whole, mut pinged) = (false, false);
            while !(whole && pinged) {
                let frame = client.read_frame();
                match frame.kind {
                    kind::SETTINGS if !frame.is_ack() => client.ack_settings(),
                    kind::PING if !frame.is_ack() => {
                        client.ack_ping(&frame);
                        pinged = true;
                    }
                    kind::DATA => {
                        ended.get_or_insert_with(|| terminator.terminate());
                        let more = u32::try_from(frame.payload.len()).expect("little");
                        time_passes(Duration::from_micros(more.into()));
                        got += frame.payload.len();
                        back += more;
                        whole = frame.is_end_stream();
                        if back > 2 << 20 {
                            client.window_update(0, std::mem::take(&mut back));
                        }
                    }
                    _ => {}
                }
            }
            assert_eq!(got, LENGTH, "{front:?}");
            client.expect_eof_within(BOUND);
            ended.expect("it was asked for")
        })
        .await;
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_big_bodies_behind_a_small_window_are_delivered_whole() {
    for front in FrontEnd::all_and_tls() {
        let it = Setup::new(front).await;
        let mut client = h2_connect_with(&it.server.target, |h2| {
            h2.initial_window_size(32 * 1024)
                .initial_connection_window_size(65_535);
        })
        .await;
        let mut heads = Vec::new();
        for path in ["/big", "/bigstream"] {
            heads.push(client.start(path).await);
        }
        let heads = within(BOUND, "two heads", join_all(heads)).await;
        let begin = Instant::now();
        let mut ended = it.terminator.terminate();
        // The client acknowledges the PING, but takes no data until the stall timeout is well over.
        let early = tokio::time::timeout(QUIET.saturating_sub(begin.elapsed()), &mut ended).await;
        assert!(
            early.is_err(),
            "{front:?}: ended with 40 MB unsent: {early:?}"
        );
        for head in heads {
            let (_, mut stream) = head.expect("a response").into_parts();
            let mut body = Vec::with_capacity(BIG);
            let rest = async {
                while let Some(part) = stream.data().await {
                    let part = part.unwrap_or_else(|e| panic!("{front:?}: {}: {e}", body.len()));
                    let released = stream.flow_control().release_capacity(part.len());
                    released.expect("no more than what came");
                    body.extend_from_slice(&part);
                }
            };
            within(BOUND * 6, "20 MB", rest).await;
            assert_big(&body);
        }
        over(&mut client).await;
        let report = within(SOON, "the end", ended).await;
        assert_eq!(report.finished, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    }
}

/// The same with a client that acknowledges nothing, not even the PING, ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_big_bodies_go_whole_to_a_paused_client_that_acks_nothing() {
    for front in FrontEnd::all_and_tls() {
        let it = Setup::new(front).await;
        let (terminator, mut client) = (it.terminator.clone(), it.raw());
        blocking(move || {
            client.get("/big", 1);
            client.get("/bigstream", 3);
            // Both streams have begun when their heads are here; DATA is kept in the socket.
            let mut bodies = HashMap::new();
            let mut heads = 0;
            while heads < 2 {
                let frame = next(&mut client);
                heads += usize::from(frame.kind == kind::HEADERS);
                keep_data(&mut bodies, &frame);
            }
            let _ended = terminator.terminate();
            // Paused: the stall timeout passes before the next byte is read or any window given.
            time_passes(QUIET);
            assert!(
                client.is_still_open(),
                "{front:?}: closed on a paused reader"
            );
            client.window_update(0, MAX_WINDOW - 65_535);
            client.window_update(1, MAX_WINDOW - 65_535);
            client.window_update(3, MAX_WINDOW - 65_535);
            read_on(&mut client, &mut bodies, &[1, 3]);
            assert_big(&bodies[&1]);
            assert_big(&bodies[&3]);
            // It still owes the ack.
            client.expect_eof_within(SOON);
        })
        .await;
        let report = it.report().await;
        assert_eq!(report.stalled, 1, "{front:?}: {report}");
        assert_eq!(report.connections(), 1, "{front:?}: {report}");
    }
}

/// No window is in the way, but nobody reads: the bytes wait in the server's socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_big_bodies_go_whole_to_a_client_that_does_not_read_for_a_while() {
    for front in FrontEnd::all_and_tls() {
        let it = Setup::new(front).await;
        let terminator = it.terminator.clone();
        let target = it.server.target.clone();
        blocking(move || {
            let settings = [(INITIAL_WINDOW_SIZE, MAX_WINDOW)];
            let mut client = RawH2::connect_with(target, &settings);
            client.window_update(0, MAX_WINDOW - 65_535);
            client.get("/big", 1);
            let head = next(&mut client);
            assert_eq!(head.kind, kind::HEADERS, "{front:?}: {head:?}");
            let _ended = terminator.terminate();
            time_passes(QUIET);
            assert_big(&read_bodies(&mut client, &[1])[&1]);
            client.expect_eof_within(SOON);
        })
        .await;
        let report = it.report().await;
        assert_eq!(report.stalled, 1, "{front:?}: {report}");
    }
}

/// All of a body lies in the kernel, whose client reads nothing for longer than the stall timeout, or ends the
/// connection by itself, and then takes it, giving window back. What our side does meanwhile must not reset it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_a_body_in_the_kernel_arrives_at_a_client_that_pauses() {
    // More than a client takes that does not read, less than the server's side of a socket does.
    const SOME: usize = 400 << 10;
    // A Unix socket has no room for so much, nor a reset.
    let fronts = FrontEnd::all_and_tls().into_iter();
    for front in fronts.filter(|front| !matches!(front, FrontEnd::ServeUnix)) {
        for goes_away in [false, true] {
            let terminator = Terminator::builder()
                .grace_period(BOUND * 2)
                .stall_timeout(STALL)
                .build();
            let body = vec![b'b'; SOME];
            let route = axum::routing::get(async move || body.clone());
            let server = start(
                front,
                &terminator,
                app(App::default()).route("/some", route),
            )
            .await;
            let (ends, target) = (terminator.clone(), server.target.clone());
            blocking(move || {
                let settings = [(INITIAL_WINDOW_SIZE, MAX_WINDOW)];
                let mut client = RawH2::connect_with(target, &settings);
                client.ack_settings();
                client.window_update(0, MAX_WINDOW - 65_535);
                client.get("/some", 1);
                client.read_until(kind::HEADERS);
                idle(&ends, &format!("{front:?}: all of it is written"));
                drop(ends.terminate());
                if goes_away {
                    // With the last stream of its peer's, of which there is none.
                    client.send_frame(kind::GOAWAY, 0, 0, &[0; 8]);
                }
                // Who ends it is waited for in silence for the stall timeout, whoever owes us a PING for longer.
                time_passes(if goes_away { STALL / 2 } else { QUIET });
                let mut read = 0;
                loop {
                    let frame = match client.try_read_frame() {
                        Ok(frame) => frame,
                        Err(end) => panic!("{front:?}, {goes_away}: {end:?} after {read} bytes"),
                    };
                    if frame.kind != kind::DATA {
                        continue;
                    }
                    read += frame.payload.len();
                    if frame.is_end_stream() {
                        break;
                    }
                    let more = 16_384_u32.to_be_bytes();
                    let update = [&[0, 0, 4, kind::WINDOW_UPDATE, 0, 0, 0, 0, 0][..], &more];
                    let _ = client.try_send(update.concat());
                }
                assert_eq!(read, SOME, "{front:?}");
            })
            .await;
            let report = within(BOUND, "the end", terminator.terminated()).await;
            assert!(report.is_clean(), "{front:?}: {report}");
        }
    }
}

/// Clients give window back as they take the data, also for what is under way when the server has
/// written its last byte. If the socket is closed by then, such a frame draws a reset, and with it
/// goes what still waits in the server's kernel: a close in stages (G8) is called for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_the_tail_of_a_body_survives_window_updates_that_come_late() {
    for front in FrontEnd::all_and_tls() {
        let it = Setup::new(front).await;
        let (terminator, target) = (it.terminator.clone(), it.server.target.clone());
        blocking(move || {
            const WINDOW: u32 = 8 << 20;
            let mut client = RawH2::connect_with(target, &[(INITIAL_WINDOW_SIZE, WINDOW)]);
            client.window_update(0, WINDOW - 65_535);
            client.get("/big", 1);
            let head = next(&mut client);
            assert_eq!(head.kind, kind::HEADERS, "{front:?}: {head:?}");
            let _ended = terminator.terminate();
            let mut body = Vec::with_capacity(BIG);
            loop {
                let frame = match client.try_read_frame() {
                    Ok(frame) => frame,
                    Err(end) => panic!("{front:?}: {end:?} after {} bytes of {BIG}", body.len()),
                };
                match frame.kind {
                    kind::PING if !frame.is_ack() => client.ack_ping(&frame),
                    kind::DATA => {
                        body.extend_from_slice(&frame.payload);
                        if frame.is_end_stream() {
                            break;
                        }
                        let more = u32::try_from(frame.payload.len()).expect("a small frame");
                        let mut updates = Vec::new();
                        for stream in [0_u32, 1] {
                            updates.extend([0, 0, 4, kind::WINDOW_UPDATE, 0]);
                            updates.extend(stream.to_be_bytes());
                            updates.extend(more.to_be_bytes());
                        }
                        // It may be gone, if only all of its bytes arrive.
                        let _ = client.try_send(updates);
                    }
                    _ => {}
                }
            }
            assert_big(&body);
        })
        .await;
        let report = it.report().await;
        assert!(report.is_clean(), "{front:?}: {report}");
    }
}

// ===== G4: peers that owe us bytes =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_an_idle_peer_that_never_acks_the_ping_is_gone_after_the_stall_timeout() {
    each(FrontEnd::all_and_tls(), async |front| {
        let it = Setup::new(front).await;
        let (terminator, mut client) = (it.terminator.clone(), it.raw());
        blocking(move || {
            client.get("/quick", 1);
            assert_eq!(read_bodies(&mut client, &[1])[&1], b"ok");
            let last = expect_stalled(front, &terminator, client);
            // By which it knows that what it sends may be sent again: it may only have stood still.
            assert_eq!(last, [(ANY_STREAM, NO_ERROR), (1, NO_ERROR)], "{front:?}");
        })
        .await;
        it.assert_stalled().await;
    });
}

/// Once it is told its last stream, it was waited for once more, as one that may have yet to read its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_an_idle_peer_that_never_acks_the_ping_costs_one_stall_timeout_and_no_second() {
    const LONG: Duration = Duration::from_secs(4);
    each(FrontEnd::all_and_tls(), async |front| {
        let terminator = Terminator::builder()
            .grace_period(BOUND)
            .stall_timeout(LONG)
            .build();
        let server = start(front, &terminator, app(App::default())).await;
        let target = server.target.clone();
        let client = blocking(move || {
            let mut client = RawH2::connect(target);
            client.get("/quick", 1);
            client.read_until(kind::DATA);
            client
        })
        .await;
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert_eq!(
            (report.stalled, report.forced),
            (1, 0),
            "{front:?}: {report}"
        );
        // And a second for what it may have yet to read.
        let once = LONG..LONG * 7 / 4;
        assert!(once.contains(&report.draining), "{front:?}: {report}");
        drop(client);
    });
}

/// Nor one that acknowledges some other PING, or whose acknowledgment is followed by half a frame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_an_idle_peer_that_does_not_quite_ack_the_ping_is_gone_after_the_stall_timeout() {
    each(FrontEnd::all_and_tls(), async |front| {
        for other in [true, false] {
            let it = Setup::new(front).await;
            let (terminator, mut client) = (it.terminator.clone(), it.raw());
            blocking(move || {
                client.get("/quick", 1);
                assert_eq!(read_bodies(&mut client, &[1])[&1], b"ok");
                drop(terminator.terminate());
                let mut ping = client.read_until(kind::PING);
                if other {
                    ping.payload = vec![7; 8];
                }
                let begin = Instant::now();
                client.ack_ping(&ping);
                if !other {
                    client.send([0]);
                }
                client.expect_eof_within(BOUND);
                let took = begin.elapsed();
                assert!(took >= STALL, "{front:?}, {other}: {took:?}");
                measured(took, GONE, &format!("{front:?}, {other}: gone"));
            })
            .await;
            it.assert_stalled().await;
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_a_peer_without_settings_is_gone_after_the_stall_timeout() {
    each(FrontEnd::all_and_tls(), async |front| {
        let it = Setup::new(front).await;
        let (terminator, target) = (it.terminator.clone(), it.server.target.clone());
        blocking(move || {
            let mut client = RawH2::connect_silent(target);
            client.send(PREFACE);
            // The server's own; it has read the preface.
            client.read_until(kind::SETTINGS);
            expect_stalled(front, &terminator, client);
        })
        .await;
        it.assert_stalled().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_half_a_preface_is_gone_after_the_stall_timeout() {
    each(FrontEnd::all_and_tls(), async |front| {
        let it = Setup::new(front).await;
        let (terminator, target) = (it.terminator.clone(), it.server.target.clone());
        blocking(move || {
            let client = RawH2::connect_silent(target);
            client.send("PRI * HT");
            until_stats(&terminator, "accepted", |it| it.accepted >= 1);
            expect_stalled(front, &terminator, client);
        })
        .await;
        it.assert_stalled().await;
    });
}

/// Half a preface is a partial head (G4): it may be completed, and what it brings is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_half_a_preface_may_be_completed_during_the_drain() {
    each(FrontEnd::all_and_tls(), async |front| {
        // `P` may still become a POST, `PRI ` not.
        for cut in [1, 3, 4, 8, 23] {
            let it = Setup::with(front, Duration::from_secs(5)).await;
            let (terminator, target) = (it.terminator.clone(), it.server.target.clone());
            blocking(move || {
                let mut client = RawH2::connect_silent(target);
                client.send(&PREFACE[..cut]);
                until_stats(&terminator, "accepted", |it| it.accepted >= 1);
                let _ended = terminator.terminate();
                assert_eq!(terminator.phase(), Phase::Draining);
                // The server gets time to do the wrong thing.
                client.set_timeout(Duration::from_millis(100));
                assert_eq!(
                    client.try_read_frame(),
                    Err(ReadEnd::Timeout),
                    "{front:?}: after {cut} bytes of the preface"
                );
                client.set_timeout(BOUND);
                client.send(&PREFACE[cut..]);
                client.send_frame(kind::SETTINGS, 0, 0, &[]);
                client.get("/quick", 1);
                let bodies = read_bodies_acking(&mut client, &[1]);
                assert_eq!(bodies[&1], b"ok", "{front:?}: {cut}");
                client.expect_eof_within(SOON);
            })
            .await;
            let report = it.report().await;
            assert!(report.is_clean(), "{front:?}: {cut}: {report}");
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_a_peer_that_never_acks_gets_its_slow_response_whole_and_is_then_gone() {
    each(FrontEnd::all_and_tls(), async |front| {
        for path in ["/slow", "/stream"] {
            let it = Setup::new(front).await;
            let (terminator, gate, mut client) = (it.terminator.clone(), it.gate.clone(), it.raw());
            blocking(move || {
                client.get(path, 1);
                gate.wait_entered(1);
                let _ended = terminator.terminate();
                client.read_until(kind::PING);
                expect_silence(&mut client, QUIET);
                gate.open();
                let body = &read_bodies(&mut client, &[1])[&1];
                assert!(body.ends_with(b"slow") || body.ends_with(b"last\n"));
                let took = client.expect_eof_within(BOUND);
                let what = format!("{front:?} {path}: gone after its last response");
                measured(took, GONE, &what);
            })
            .await;
            it.assert_stalled().await;
        }
    });
}

/// Bytes of a stream that the client has reset will never be written: they are not owed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_a_reset_stream_does_not_keep_a_peer_that_never_acks() {
    each(FrontEnd::all_and_tls(), async |front| {
        let it = Setup::new(front).await;
        let (terminator, mut client) = (it.terminator.clone(), it.raw());
        blocking(move || {
            const CANCEL: u32 = 8;
            client.get("/big", 1);
            client.read_until(kind::DATA);
            client.send_frame(kind::RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
            // Its answer proves that the reset has been read.
            client.send_frame(kind::PING, 0, 0, b"are you?");
            client.read_until(kind::PING);
            expect_stalled(front, &terminator, client);
        })
        .await;
        it.assert_stalled().await;
    });
}

// ===== what they share =====

struct Setup {
    terminator: Terminator,
    gate: Gate,
    server: Server,
}

impl Setup {
    async fn new(front: FrontEnd) -> Self {
        Self::with(front, STALL).await
    }

    async fn with(front: FrontEnd, stall: Duration) -> Self {
        let grace = Duration::from_secs(30);
        let builder = Terminator::builder().grace_period(grace);
        Self::built(front, builder.stall_timeout(stall)).await
    }

    async fn built(front: FrontEnd, builder: TerminatorBuilder) -> Self {
        let terminator = builder.build();
        let gate = Gate::new();
        let router = app(App {
            gate: gate.clone(),
            terminator: None,
        });
        let server = start(front, &terminator, router).await;
        Self {
            terminator,
            gate,
            server,
        }
    }

    fn raw(&self) -> RawH2 {
        RawH2::connect(&self.server.target)
    }

    async fn client(&self) -> H2Client {
        h2_connect(&self.server.target).await
    }

    /// Waits until a new stream is refused; none hangs.
    async fn refused(&self, client: &H2Client) {
        let refused = async { while client.try_get("/quick").await.is_ok() {} };
        within(SOON, "a refused stream", refused).await;
    }

    /// The drain is over, or as good as.
    async fn report(&self) -> Report {
        within(SOON, "the report", self.terminator.terminated()).await
    }

    async fn assert_stalled(&self) {
        let report = self.report().await;
        assert_eq!(
            (report.stalled, report.connections()),
            (1, 1),
            "{:?}: {report}",
            self.server.target
        );
        assert!(report.is_clean(), "{report}");
    }
}

/// Begins the drain; the client never says a word again. Gives the GOAWAYs that it was told.
#[track_caller]
fn expect_stalled(front: FrontEnd, terminator: &Terminator, mut client: RawH2) -> Vec<(u32, u32)> {
    let begin = Instant::now();
    let _ended = terminator.terminate();
    let mut told = Vec::new();
    let end = loop {
        match client.try_read_frame() {
            Ok(frame) if frame.kind == kind::GOAWAY => told.push(frame.goaway()),
            Ok(_) => {}
            Err(end) => break end,
        }
    };
    assert_eq!(end, ReadEnd::Eof, "{front:?}");
    let took = begin.elapsed();
    assert!(took >= STALL, "{front:?}: gone too early, after {took:?}");
    measured(took, GONE, &format!("{front:?}: gone"));
    told
}

#[track_caller]
fn expect_goaway(client: &mut RawH2, last: u32) {
    let frame = next(client);
    assert_eq!(frame.kind, kind::GOAWAY, "{frame:?}");
    assert_eq!(frame.goaway(), (last, NO_ERROR));
}

/// Nothing comes, and it is not the end either.
#[track_caller]
fn expect_silence(client: &mut RawH2, time: Duration) {
    client.set_timeout(time);
    loop {
        match client.try_read_frame() {
            Ok(frame) if frame.kind == kind::DATA || frame.is_ack() => {}
            Ok(frame) => panic!("a frame came: {frame:?}"),
            Err(end) => {
                assert_eq!(end, ReadEnd::Timeout, "the connection is to stay open");
                break;
            }
        }
    }
    client.set_timeout(BOUND);
}

/// The next frame that is about streams or the end.
#[track_caller]
fn next(client: &mut RawH2) -> Frame {
    loop {
        let frame = client.read_frame();
        if !frame.is_ack() && !matches!(frame.kind, kind::SETTINGS | kind::WINDOW_UPDATE) {
            return frame;
        }
    }
}

/// The server has ended the connection. The client may learn it in the middle of its own goodbye.
async fn over(client: &mut H2Client) {
    if let Err(error) = client.closed().await {
        assert!(error.is_io(), "{error}");
    }
}

type Bodies = HashMap<u32, Vec<u8>>;

/// Reads until all these streams have ended; acknowledges nothing.
#[track_caller]
fn read_bodies(client: &mut RawH2, streams: &[u32]) -> Bodies {
    let mut bodies = Bodies::new();
    read_on(client, &mut bodies, streams);
    bodies
}

/// The same, and the GOAWAY that came meanwhile or comes after.
#[track_caller]
fn read_bodies_and_goaway(client: &mut RawH2, streams: &[u32]) -> (Bodies, Option<Frame>) {
    let mut bodies = Bodies::new();
    let goaway = read_on(client, &mut bodies, streams);
    (
        bodies,
        goaway.or_else(|| Some(client.read_until(kind::GOAWAY))),
    )
}

/// The same, from a client that acknowledges the PING.
#[track_caller]
fn read_bodies_acking(client: &mut RawH2, streams: &[u32]) -> Bodies {
    let mut bodies = Bodies::new();
    let (mut open, mut told) = (streams.to_vec(), false);
    while !open.is_empty() || !told {
        let frame = next(client);
        keep_data(&mut bodies, &frame);
        if frame.kind == kind::PING {
            client.ack_ping(&frame);
            told = true;
        }
        if frame.is_end_stream() {
            open.retain(|stream| *stream != frame.stream);
        }
    }
    bodies
}

#[track_caller]
fn read_on(client: &mut RawH2, bodies: &mut Bodies, streams: &[u32]) -> Option<Frame> {
    let mut open = streams.to_vec();
    let mut goaway = None;
    while !open.is_empty() {
        let frame = next(client);
        keep_data(bodies, &frame);
        assert_ne!(frame.kind, kind::RST_STREAM, "{frame:?}");
        if frame.is_end_stream() {
            open.retain(|stream| *stream != frame.stream);
        }
        if frame.kind == kind::GOAWAY {
            goaway = Some(frame);
        }
    }
    goaway
}

fn keep_data(bodies: &mut Bodies, frame: &Frame) {
    if frame.kind == kind::DATA {
        let body = bodies.entry(frame.stream).or_default();
        body.extend_from_slice(&frame.payload);
    }
}
