//! `Serve::close_websockets`: web sockets whose handlers know nothing of any drain, and that say goodbye all
//! the same (G13). Handlers that do it themselves are in `websocket.rs`.

#![cfg(all(unix, feature = "serve"))]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Request};
use axum::response::{Html, Response};
use axum::routing::{any, get};
use futures_util::StreamExt;
use http::{StatusCode, Uri, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::coop::consume_budget;
use tokio_tungstenite::tungstenite::{Message, handshake::derive_accept_key};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::support;
use crate::support::load::watch_load;
use crate::support::outside::{FAR, Host, SOON, at_deadline, block_on, ended};
use crate::support::starts::Start;
use crate::support::wait::{gone, time_passes, until};
use crate::support::{BOUND, Gate, RawClient, ReadEnd, Target, side_by_side};
use http_terminator::{IdlePolicy, Phase, Report, Terminator, TerminatorBuilder};

/// "Service restart", of the IANA registry, and "going away" (RFC 6455 section 7.4.1).
const RESTART: u16 = 1012;
const AWAY: u16 = 1001;

/// A deadline that is to be reached.
const GRACE: Duration = Duration::from_millis(400);

const STALL: Duration = Duration::from_millis(150);

/// A WebSocket's opcodes, with FIN.
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;

/// What a client answers to a Close frame: masked, with the code 1012 (the mask is 0).
const ANSWER: &[u8] = &[CLOSE, 0x82, 0, 0, 0, 0, 0x03, 0xf4];

// ===== the goodbye =====

#[test]
fn g13_a_handler_that_only_reads_is_said_goodbye_for() {
    side_by_side(Front::all(), |front| {
        let it = Setup::new(front, FAR);
        let mut client = it.upgrade("/reads");
        let ended = it.terminator.terminate();
        assert_eq!(read_frame(&mut client), goodbye(RESTART), "{front:?}");
        // It goes on reading until the client has closed.
        client.send([0x81, 0x81, 0, 0, 0, 0, b'x']);
        client.send(ANSWER);
        client.expect_eof();
        let heard = it.heard.recv_timeout(BOUND).expect("the handler ends");
        assert_eq!(heard, [&[0x81, 0x81, 0, 0, 0, 0, b'x'], ANSWER].concat());
        assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
    });
}

/// The client has said it before, of which the handler took no notice.
#[test]
fn g13_a_client_that_has_said_goodbye_first_waits_for_nobody() {
    side_by_side(Front::all(), |front| {
        let it = Setup::new(front, FAR);
        let mut client = it.upgrade("/reads");
        client.send(ANSWER);
        until("the handler has read it", || {
            it.read.load(Ordering::SeqCst) == ANSWER.len()
        });
        let ended = it.terminator.terminate();
        assert_eq!(read_frame(&mut client), goodbye(RESTART), "{front:?}");
        client.expect_eof();
        let heard = it.heard.recv_timeout(BOUND).expect("the handler ends");
        assert_eq!(heard, ANSWER, "{front:?}");
        assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
    });
}

/// Part of a frame came with the handshake, in one read that looks like heads: what is behind it is not read from its middle.
#[test]
fn g13_a_frame_ahead_of_the_handshakes_answer_is_no_goodbye() {
    side_by_side(Front::all(), |front| {
        let it = Setup::new(front, FAR);
        let mut client = it.client();
        let begun = b"\x82\x8a\0\0\0\0ab\r\n\r\n";
        client.send([handshake("/reads").as_bytes(), begun].concat());
        assert_eq!(client.read_response_headers().status, 101, "{front:?}");
        // From there on it would be a Close frame, and three that are empty.
        let rest = [0x88, 0x80, 0, 0];
        let text = [0x81, 0x82, 0, 0, 0, 0, 0, 0];
        client.send([&rest[..], &text].concat());
        let so_far = begun.len() + rest.len() + text.len();
        until("the handler has read it", || {
            it.read.load(Ordering::SeqCst) == so_far
        });
        let ended = it.terminator.terminate();
        assert_eq!(read_frame(&mut client), goodbye(RESTART), "{front:?}");
        client.send(text);
        until("the handler has read more", || {
            it.read.load(Ordering::SeqCst) == so_far + text.len()
        });
        client.send(ANSWER);
        client.shutdown_write();
        let heard = it.heard.recv_timeout(BOUND).expect("the handler ends");
        assert_eq!(heard, [begun, &rest[..], &text, &text, ANSWER].concat());
        assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
    });
}

/// What it writes goes on until the end of the frame that is under way, wherever in that it is, and no
/// further.
#[test]
fn g13_a_frame_under_way_ends_before_the_goodbye() {
    let length = large().len();
    side_by_side(Front::all(), |front| {
        for cut in [1, 2, 9, 10, 11, 50_000, length - 1, length] {
            let it = Setup::new(front, FAR);
            let mut client = it.upgrade(&format!("/pieces-{cut}"));
            it.gate.wait_entered(1);
            assert_eq!(client.read_exact(cut), large()[..cut], "{front:?} {cut}");
            let ended = it.terminator.terminate();
            block_on(BOUND, "the drain", it.terminator.reached(Phase::Draining));
            it.gate.open();
            assert_eq!(client.read_exact(length - cut), large()[cut..], "{cut}");
            assert_eq!(
                read_frame(&mut client),
                goodbye(RESTART),
                "{front:?} {cut}: one more frame"
            );
            // What followed in the same write was taken, too, and so was one more.
            it.gate.wait_entered(2);
            client.send(ANSWER);
            client.expect_eof();
            assert_eq!(it.heard.recv_timeout(BOUND).as_deref(), Ok(ANSWER));
            assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
        }
    });
}

/// It lets go of its socket as it learns of the drain: whether goodbye was said by then was chance. Its client says something meanwhile, on
/// which a close would be a reset.
#[test]
fn g13_a_handler_that_leaves_is_said_goodbye_for() {
    side_by_side(Front::all(), |front| {
        let it = Setup::new(front, FAR);
        let mut client = it.upgrade("/leaves");
        it.gate.wait_entered(1);
        client.send([0x81, 0x81, 0, 0, 0, 0, b'x']);
        let ended = it.terminator.terminate();
        block_on(BOUND, "the drain", it.terminator.reached(Phase::Draining));
        it.gate.open();
        assert_eq!(read_frame(&mut client), goodbye(RESTART), "{front:?}");
        client.send(ANSWER);
        assert_ended(front, &mut client);
        assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
    });
}

/// Also ahead of its turn, and though its task has used up what it may do at once.
#[test]
fn g13_handlers_that_leave_ahead_of_their_turn_are_said_goodbye_for() {
    side_by_side(Front::all(), |front| {
        for manner in ["/leaves", "/leaves-exhausted"] {
            let it = Setup::with(front, FAR, Some(RESTART), |builder| {
                builder.idle(IdlePolicy::Spread { over: FAR / 2 })
            });
            let clients: Vec<_> = (0..4).map(|_| it.upgrade(manner)).collect();
            it.gate.wait_entered(4);
            let ended = it.terminator.terminate();
            block_on(BOUND, "the drain", it.terminator.reached(Phase::Draining));
            it.gate.open();
            for mut client in clients {
                assert_eq!(read_frame(&mut client), goodbye(RESTART), "{front:?}");
                client.send(ANSWER);
                assert_ended(front, &mut client);
            }
            assert_upgraded(front, &block_on(SOON, "the end", ended), 4);
        }
    });
}

/// It was told as it opened, and said goodbye: where one request is the limit, each of them.
#[test]
fn g13_g21_one_that_is_opened_by_the_last_of_so_many_requests_goes_on() {
    side_by_side(Front::all(), |front| {
        let limited = |builder: TerminatorBuilder| {
            builder.max_requests_per_connection(1).stall_timeout(STALL)
        };
        let it = Setup::with(front, FAR, Some(RESTART), limited);
        let mut client = it.upgrade("/reads");
        let frame = [0x81, 0x81, 0, 0, 0, 0, b'x'];
        client.send(frame);
        until("the handler has read it", || {
            it.read.load(Ordering::SeqCst) == frame.len()
        });
        client.set_timeout(2 * STALL);
        assert_eq!(client.read_to_end(), ReadEnd::Timeout, "{front:?}");
        client.set_timeout(BOUND);
        let ended = it.terminator.terminate();
        assert_eq!(read_frame(&mut client), goodbye(RESTART), "{front:?}");
        client.send(ANSWER);
        client.expect_eof();
        let heard = it.heard.recv_timeout(BOUND).expect("the handler ends");
        assert_eq!(heard, [&frame[..], ANSWER].concat());
        assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
    });
}

// What a handler writes behind the goodbye is dropped. One that only pushes never reads the answer, nor the client's end,
// and a write that goes on to succeed tells it nothing: so it pushed for ever, while serving too, and in a drain until it
// was cut.

#[test]
fn g13_a_handler_that_only_writes_ends_within_the_stall_timeout() {
    side_by_side(Front::all(), |front| {
        for answers in [true, false] {
            let it = Setup::new(front, FAR);
            let mut client = it.upgrade("/writes");
            assert_eq!(read_frame(&mut client), (TEXT, b"tick".to_vec()));
            let begin = Instant::now();
            let ended = it.terminator.terminate();
            assert_eq!(read_until_close(&mut client), goodbye(RESTART), "{front:?}");
            if answers {
                client.send(ANSWER);
            }
            let heard = it.heard.recv_timeout(BOUND);
            assert_eq!(heard.as_deref(), Ok(&b"BrokenPipe"[..]), "{front:?}");
            assert!(begin.elapsed() >= STALL, "{front:?}: it may yet be read");
            assert_ended(front, &mut client);
            assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
        }
    });
}

/// Below TLS what tells of the end lies in front of it, unread.
#[test]
fn g13_a_handler_that_only_writes_learns_that_its_client_has_left() {
    side_by_side([Front::Ours, Front::Theirs, Front::Unix], |front| {
        let it = Setup::with(front, FAR, Some(RESTART), |builder| {
            builder.stall_timeout(FAR)
        });
        let mut client = it.upgrade("/writes");
        let ended = it.terminator.terminate();
        assert_eq!(read_until_close(&mut client), goodbye(RESTART), "{front:?}");
        drop(client);
        let heard = it.heard.recv_timeout(BOUND);
        assert_eq!(heard.as_deref(), Ok(&b"BrokenPipe"[..]), "{front:?}");
        let report = block_on(SOON, "the end", ended);
        assert_upgraded(front, &report, 1);
    });
}

#[test]
fn g13_g21_a_handler_that_only_writes_ends_at_an_age() {
    side_by_side(Front::all(), |front| {
        let it = Setup::with(front, FAR, Some(RESTART), |builder| {
            builder.max_connection_age(Duration::from_millis(100))
        });
        let mut client = it.upgrade("/writes");
        assert_eq!(read_until_close(&mut client), goodbye(RESTART), "{front:?}");
        client.send(ANSWER);
        drop(client);
        let heard = it.heard.recv_timeout(BOUND);
        assert_eq!(heard.as_deref(), Ok(&b"BrokenPipe"[..]), "{front:?}");
        block_on(
            BOUND,
            "no connection",
            it.host.block_in(gone(&it.terminator)),
        );
        assert_eq!(it.terminator.phase(), Phase::Serving);
    });
}

#[test]
fn g11_g13_a_handler_that_only_writes_learns_of_the_deadline() {
    side_by_side(Front::all(), |front| {
        for force in [false, true] {
            let grace = if force { FAR } else { GRACE };
            let it = Setup::with(front, grace, Some(RESTART), |builder| {
                builder.stall_timeout(FAR)
            });
            let mut client = it.upgrade("/writes");
            let begin = Instant::now();
            let mut cut = it.terminator.terminate();
            assert_eq!(read_until_close(&mut client), goodbye(RESTART), "{front:?}");
            if force {
                cut = it.terminator.force();
            }
            let report = block_on(BOUND, "the end", cut);
            if !force {
                at_deadline(begin, GRACE, "a handler that only writes");
            }
            assert_eq!((report.forced, report.upgraded), (1, 0), "{report}");
            let heard = it.heard.recv_timeout(BOUND);
            assert_eq!(heard.as_deref(), Ok(&b"ConnectionAborted"[..]), "{front:?}");
            assert_ended(front, &mut client);
        }
    });
}

/// As long as its client speaks it may answer that, whatever becomes of it.
#[test]
fn g13_a_handler_that_is_spoken_to_may_go_on_to_answer() {
    side_by_side(Front::all(), |front| {
        let it = Setup::new(front, FAR);
        let mut client = it.upgrade("/answers");
        let ended = it.terminator.terminate();
        assert_eq!(read_frame(&mut client), goodbye(RESTART), "{front:?}");
        // Longer than a stall after the goodbye.
        for _ in 0..3 {
            time_passes(STALL * 2);
            client.send([0x81, 0x81, 0, 0, 0, 0, b'x']);
        }
        client.send(ANSWER);
        client.expect_eof();
        let heard = it.heard.recv_timeout(BOUND);
        assert_eq!(heard.as_deref(), Ok(&b"whole"[..]), "{front:?}");
        assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
    });
}

/// Its socket is full, one task waits for room in it and another for something to read.
#[test]
fn g13_a_full_socket_is_waited_for() {
    side_by_side(Front::all(), |front| {
        let it = Setup::with(front, FAR, Some(RESTART), |builder| {
            builder.stall_timeout(FAR)
        });
        let mut client = it.upgrade("/floods");
        it.until_full();
        let ended = it.terminator.terminate();
        block_on(BOUND, "the drain", it.terminator.reached(Phase::Draining));
        assert_eq!(read_until_close(&mut client), goodbye(RESTART), "{front:?}");
        client.send(ANSWER);
        client.expect_eof();
        assert_upgraded(front, &block_on(BOUND, "the end", ended), 1);
    });
}

/// A task waits for room in the socket, which is full, and says goodbye when there is some. What the client sends is read by
/// another one, which thereby said part of the goodbye, and had the socket wake itself for the rest in place of the first;
/// then it read no more. The first hung, beyond the deadline too.
#[test]
fn g11_g13_a_writer_is_woken_also_behind_a_reader_that_has_left() {
    side_by_side(Front::all(), |front| {
        for cut in [false, true] {
            let it = Setup::new(front, if cut { GRACE } else { FAR });
            let mut client = it.upgrade("/parts");
            it.until_full();
            let ended = it.terminator.terminate();
            block_on(BOUND, "the drain", it.terminator.reached(Phase::Draining));
            client.send([0x81, 0x81, 0, 0, 0, 0, b'x']);
            it.gate.wait_entered(1);
            if cut {
                // Somewhere there may be room for a goodbye.
                let report = block_on(BOUND, "the end", ended);
                assert_eq!(report.forced + report.upgraded, 1, "{report}");
                let heard = it.heard.recv_timeout(BOUND);
                assert!(heard.is_ok(), "{front:?}: it was not woken");
                continue;
            }
            assert_eq!(read_until_close(&mut client), goodbye(RESTART), "{front:?}");
            client.send(ANSWER);
            let heard = it.heard.recv_timeout(BOUND).expect("it is woken");
            assert_eq!(heard, b"BrokenPipe", "{front:?}");
            assert_ended(front, &mut client);
            assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
        }
    });
}

/// By tungstenite on both sides, over axum's own extractor and over hyper's upgrade.
#[test]
fn g13_tungstenite_sees_the_code() {
    side_by_side([Front::Ours, Front::Theirs], |front| {
        for code in [RESTART, AWAY] {
            let it = Setup::with(front, FAR, Some(code), |builder| builder);
            let mut clients: Vec<_> = ["/echo", "/bare-echo"].map(|path| it.connect(path)).into();
            let ended = it.terminator.terminate();
            for client in &mut clients {
                let closed = async {
                    let close = client.next().await;
                    // Its answer goes out when it is asked again.
                    (close, client.next().await.is_none())
                };
                match block_on(BOUND, "a goodbye", it.host.block_in(closed)) {
                    (Some(Ok(Message::Close(Some(frame)))), true) => {
                        assert_eq!(u16::from(frame.code), code, "{front:?}");
                    }
                    other => panic!("{front:?}: {other:?}"),
                }
            }
            assert_upgraded(front, &block_on(SOON, "the end", ended), 2);
        }
    });
}

#[test]
fn g13_a_handshake_in_flight_is_completed_and_said_goodbye() {
    side_by_side(Front::all(), |front| {
        let it = Setup::new(front, FAR);
        let mut client = it.client();
        client.send(handshake("/late"));
        it.gate.wait_entered(1);
        let ended = it.terminator.terminate();
        block_on(BOUND, "the drain", it.terminator.reached(Phase::Draining));
        it.gate.open();
        let head = client.read_response_headers();
        assert_eq!(head.status, 101, "{front:?}: {head:?}");
        assert_eq!(read_frame(&mut client), goodbye(RESTART), "{front:?}");
        client.send(ANSWER);
        client.expect_eof();
        assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
    });
}

#[test]
fn g3_g13_goodbyes_are_spread() {
    let over = Duration::from_millis(600);
    let it = Setup::with(Front::Ours, FAR, Some(RESTART), |builder| {
        builder.idle(IdlePolicy::Spread { over })
    });
    let clients: Vec<_> = (0..8).map(|_| it.upgrade("/reads")).collect();
    let begin = Instant::now();
    let ended = it.terminator.terminate();
    let told: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                assert_eq!(read_frame(&mut client), goodbye(RESTART));
                let told = begin.elapsed();
                client.send(ANSWER);
                client.expect_eof();
                told
            })
        })
        .collect();
    let mut told: Vec<_> = told.into_iter().map(|t| t.join().expect("told")).collect();
    told.sort();
    assert!(told[7].abs_diff(told[0]) > over / 3, "at once: {told:?}");
    assert_upgraded(Front::Ours, &block_on(SOON, "the end", ended), 8);
}

// ===== none =====

#[test]
fn g13_one_who_has_closed_gets_no_second_close() {
    side_by_side(Front::all(), |front| {
        let it = Setup::new(front, FAR);
        let mut client = it.upgrade("/closes");
        assert_eq!(read_frame(&mut client), goodbye(1000), "{front:?}");
        let ended = it.terminator.terminate();
        block_on(BOUND, "the drain", it.terminator.reached(Phase::Draining));
        // What it writes later, against the protocol, is its own.
        it.gate.open();
        assert_eq!(read_frame(&mut client), (TEXT, b"tick".to_vec()));
        client.send(ANSWER);
        client.shutdown_write();
        client.expect_eof();
        assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
    });
}

#[test]
fn g13_a_frame_that_does_not_end_is_cut_at_the_deadline() {
    side_by_side(Front::all(), |front| {
        let it = Setup::new(front, GRACE);
        let mut client = it.upgrade("/endless");
        let header = client.read_exact(20);
        assert_eq!(header[..2], [BINARY, 127], "{front:?}");
        let begin = Instant::now();
        let report = block_on(BOUND, "the end", it.terminator.terminate());
        at_deadline(begin, GRACE, "a frame that does not end");
        assert_eq!((report.forced, report.upgraded), (1, 0), "{report}");
        assert_ended(front, &mut client);
    });
}

#[test]
fn g13_a_client_that_does_not_answer_is_cut_at_the_deadline() {
    side_by_side(Front::all(), |front| {
        let it = Setup::new(front, GRACE);
        let mut client = it.upgrade("/reads");
        let begin = Instant::now();
        let cut = it.terminator.terminate();
        assert_eq!(read_frame(&mut client), goodbye(RESTART), "{front:?}");
        let report = block_on(BOUND, "the end", cut);
        at_deadline(begin, GRACE, "a client that does not answer");
        assert_eq!((report.forced, report.upgraded), (1, 0), "{report}");
        assert_ended(front, &mut client);
    });
}

/// Neither what has not asked for it nor what is no WebSocket.
#[test]
fn g13_others_get_no_close() {
    for (code, protocol) in [(None, "websocket"), (Some(RESTART), "echo")] {
        for front in Front::all() {
            let it = Setup::with(front, GRACE, code, |builder| builder);
            let mut client = it.client();
            client.send(handshake("/reads").replace(": websocket", &format!(": {protocol}")));
            assert_eq!(client.read_response_headers().status, 101, "{front:?}");
            let report = block_on(BOUND, "the end", it.terminator.terminate());
            assert_eq!((report.forced, report.upgraded), (1, 0), "{report}");
            assert_ended(front, &mut client);
        }
    }
}

#[test]
fn g13_codes_that_may_not_be_sent_are_not() {
    for code in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535, 1000, 1003, 1014, 3000, 4999,
    ] {
        let may = matches!(code, 1000 | 1003 | 1014 | 3000 | 4999);
        let it = Setup::with(Front::Ours, FAR, Some(code), |builder| builder);
        let mut client = it.upgrade("/reads");
        let ended = it.terminator.terminate();
        let expected = goodbye(if may { code } else { AWAY });
        assert_eq!(read_frame(&mut client), expected, "{code}");
        client.send(ANSWER);
        client.expect_eof();
        assert_upgraded(Front::Ours, &block_on(SOON, "the end", ended), 1);
    }
}

// ===== real clients =====

/// Set where none may be missing, as `tests/clients/websockets` does.
const REQUIRED: &str = "HTTP_TERMINATOR_CLIENTS_REQUIRED";

#[test]
fn g13_pythons_websockets_closes_cleanly() {
    let script = r#"
import sys
from websockets.sync.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK
with connect(sys.argv[1], proxy=None) as socket:
    socket.send("before")
    assert socket.recv() == "before"
    print("open", flush=True)
    try:
        socket.recv(10)
    except ConnectionClosed as e:
        clean = e.rcvd is not None and e.sent is not None and e.rcvd_then_sent
        print("closed", "true" if clean else "false", e.rcvd and e.rcvd.code, flush=True)
"#;
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    real_client("websockets of Python", &python, "import websockets", script);
}

#[test]
fn g13_ws_of_npm_closes_cleanly() {
    let script = r#"
const socket = new (require("ws"))(process.argv[1]);
socket.on("open", () => socket.send("before"));
socket.on("message", () => console.log("open"));
socket.on("error", (error) => console.log("error", error));
// As a browser tells it; 1006 without a Close frame.
socket.addEventListener("close", (e) => console.log("closed", e.wasClean, e.code));
"#;
    real_client("ws of npm", "node", "require('ws')", script);
}

fn real_client(what: &str, interpreter: &str, needs: &str, script: &str) {
    let how = if interpreter == "node" { "-e" } else { "-c" };
    let there = Command::new(interpreter).args([how, needs]).read();
    if !is_there(what, there.is_ok_and(|it| it.status.success())) {
        return;
    }
    for front in [Front::Ours, Front::Theirs] {
        for code in [RESTART, AWAY] {
            let it = Setup::with(front, FAR, Some(code), |builder| builder);
            let url = format!("ws://{}/echo", it.authority());
            let client = Process::start(Command::new(interpreter).args([how, script, &url]));
            client.line("open");
            let ended = it.terminator.terminate();
            assert_eq!(client.line("closed "), format!("true {code}"), "{front:?}");
            assert_upgraded(front, &block_on(SOON, "the end", ended), 1);
        }
    }
}

#[test]
fn g13_chromium_closes_cleanly() {
    let there = Command::new("chromium").arg("--version").read();
    if !is_there("Chromium", there.is_ok_and(|it| it.status.success())) {
        return;
    }
    for code in [RESTART, AWAY] {
        let it = Setup::with(Front::Ours, FAR, Some(code), |builder| builder);
        // The page is of another server, as the one that ends accepts no more.
        let page = PAGE.replace("URL", &format!("ws://{}/echo", it.authority()));
        let (tell, told) = mpsc::channel::<String>();
        let said = move |uri: Uri| {
            let said = uri.query().unwrap_or_default().to_owned();
            let _ = tell.send(said);
            async {}
        };
        let home = Router::new()
            .route("/", get(async move || Html(page)))
            .route("/said", get(said));
        let entered = it.host.enter();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("it can be");
        let listener = TcpListener::from_std(listener).expect("a listener");
        let home = tokio::spawn(Terminator::new().serve(listener, home));
        drop(entered);
        let profile = std::env::temp_dir().join(format!("chromium-{}-{code}", std::process::id()));
        let mut command = Command::new("chromium");
        command.args(["--headless", "--no-sandbox", "--disable-gpu"]);
        command.args([
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
        ]);
        command.arg(format!("--user-data-dir={}", profile.display()));
        command.arg("--remote-debugging-port=0"); // or it ends when the page is loaded
        let client = Process::start(command.arg(format!("http://{addr}/")));
        let patience = Duration::from_secs(60); // a browser starts
        assert_eq!(told.recv_timeout(patience).as_deref(), Ok("open"));
        let ended = it.terminator.terminate();
        let closed = told.recv_timeout(BOUND);
        assert_eq!(closed, Ok(format!("closed-true-{code}")));
        assert_upgraded(Front::Ours, &block_on(SOON, "the end", ended), 1);
        drop(client);
        home.abort();
        let _ = std::fs::remove_dir_all(profile); // a leftover in /tmp fails no test
    }
}

const PAGE: &str = r#"<!doctype html><script>
const socket = new WebSocket("URL");
socket.onopen = () => socket.send("before");
socket.onmessage = () => fetch("/said?open");
socket.onclose = (e) => fetch(`/said?closed-${e.wasClean}-${e.code}`);
</script>"#;

fn is_there(what: &str, there: bool) -> bool {
    assert!(
        there || std::env::var_os(REQUIRED).is_none(),
        "{what} is missing, and {REQUIRED} is set"
    );
    if !there {
        support::skip::skip(format_args!("{what} is not installed"));
    }
    there
}

/// A client in a process of its own. Dropped, it is killed.
struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::null());
        let mut child = command.start().expect("it was there a moment ago");
        let stdout = child.stdout.take().expect("it is piped");
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = tell.send(line); // nobody listens
            }
        });
        Self { child, lines }
    }

    /// The rest of the next line, which begins so.
    fn line(&self, prefix: &str) -> String {
        let line = self.lines.recv_timeout(BOUND);
        let line = line.unwrap_or_else(|error| panic!("waiting for {prefix:?}: {error}"));
        let rest = line.strip_prefix(prefix);
        rest.unwrap_or_else(|| panic!("{line:?}, not {prefix:?}"))
            .to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

// ===== servers =====

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    Ours,
    /// hyper-util's builder.
    Theirs,
    Unix,
    #[cfg(feature = "rustls")]
    Tls,
    #[cfg(feature = "rustls")]
    TheirsTls,
}

impl Front {
    fn all() -> Vec<Self> {
        vec![
            Self::Ours,
            Self::Theirs,
            Self::Unix,
            #[cfg(feature = "rustls")]
            Self::Tls,
            #[cfg(feature = "rustls")]
            Self::TheirsTls,
        ]
    }
}

struct Setup {
    terminator: Terminator,
    target: Target,
    gate: Gate,
    /// What handlers have read.
    heard: Receiver<Vec<u8>>,
    /// How many bytes they have read so far.
    read: Arc<AtomicUsize>,
    /// How many frames were written by one that floods.
    frames: Arc<AtomicUsize>,
    /// Last: it stops what is left.
    host: Running,
}

struct Running {
    host: Host,
    unix: Option<PathBuf>,
}

impl std::ops::Deref for Running {
    type Target = tokio::runtime::Runtime;

    fn deref(&self) -> &tokio::runtime::Runtime {
        &self.host
    }
}

impl Running {
    /// `future`, for a thread that is not the runtime's.
    async fn block_in<F: Future>(&self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| {
            let _entered = self.host.enter();
            future.as_mut().poll(cx)
        })
        .await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(path) = &self.unix {
            let _ = std::fs::remove_file(path); // a leftover in /tmp fails no test
        }
    }
}

impl Setup {
    fn new(front: Front, grace: Duration) -> Self {
        Self::with(front, grace, Some(RESTART), |builder| builder)
    }

    fn with(
        front: Front,
        grace: Duration,
        code: Option<u16>,
        set: impl FnOnce(TerminatorBuilder) -> TerminatorBuilder,
    ) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        watch_load();
        let builder = Terminator::builder()
            .grace_period(grace)
            .stall_timeout(STALL);
        let terminator = set(builder).build();
        let (tell, heard) = mpsc::channel();
        let handler = Handler {
            gate: Gate::new(),
            tell,
            read: Arc::default(),
            frames: Arc::default(),
        };
        let (read, frames) = (Arc::clone(&handler.read), Arc::clone(&handler.frames));
        let gate = handler.gate.clone();
        let app = Router::new()
            .route(
                "/echo",
                any(async |upgrade: WebSocketUpgrade| upgrade.on_upgrade(echo)),
            )
            .route(
                "/{manner}",
                any(async move |Path(manner): Path<String>, request: Request| {
                    handler.switch(manner, request).await
                }),
            );
        let host = Host::workers(2);
        let entered = host.enter();
        if front == Front::Unix {
            let n = NEXT.fetch_add(1, Ordering::SeqCst);
            let name = format!("close-websockets-{}-{n}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let listener = UnixListener::bind(&path).expect("binds a fresh path");
            let mut server = terminator.serve(listener, app);
            if let Some(code) = code {
                server = server.close_websockets(code);
            }
            tokio::spawn(server);
            drop(entered);
            return Self {
                terminator,
                target: Target::Unix(path.clone()),
                gate,
                heard,
                read,
                frames,
                host: Running {
                    host,
                    unix: Some(path),
                },
            };
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("it can be");
        let addr = listener.local_addr().expect("bound");
        let listener = TcpListener::from_std(listener).expect("a listener");
        let mut server = terminator.serve(listener, app);
        if let Some(code) = code {
            server = server.close_websockets(code);
        }
        let theirs = || auto::Builder::new(TokioExecutor::new());
        let (server, target) = match front {
            Front::Ours | Front::Unix => (server, Target::Tcp(addr)),
            Front::Theirs => (server.http(theirs()), Target::Tcp(addr)),
            #[cfg(feature = "rustls")]
            Front::Tls => (server.tls(support::tls_acceptor(&[])), Target::Tls(addr)),
            #[cfg(feature = "rustls")]
            Front::TheirsTls => {
                let acceptor = support::tls_acceptor(&[]);
                (server.http(theirs()).tls(acceptor), Target::Tls(addr))
            }
        };
        tokio::spawn(server);
        drop(entered);
        let host = Running { host, unix: None };
        Self {
            terminator,
            target,
            gate,
            heard,
            read,
            frames,
            host,
        }
    }

    /// Until one that floods has to wait.
    fn until_full(&self) {
        let mut last = 0;
        until("a full socket", || {
            thread::park_timeout(Duration::from_millis(20));
            let frames = self.frames.load(Ordering::SeqCst);
            std::mem::replace(&mut last, frames) == frames && frames > 0
        });
    }

    fn authority(&self) -> String {
        match &self.target {
            Target::Tcp(addr) | Target::Tls(addr) => addr.to_string(),
            Target::Unix(path) => panic!("{} has none", path.display()),
        }
    }

    fn client(&self) -> RawClient {
        RawClient::connect(&self.target)
    }

    /// A client past its handshake, whose handler has begun.
    fn upgrade(&self, path: &str) -> RawClient {
        let mut client = self.client();
        client.send(handshake(path));
        let head = client.read_response_headers();
        assert_eq!(head.status, 101, "{head:?}");
        client
    }

    fn connect(&self, path: &str) -> WebSocketStream<TcpStream> {
        let authority = self.authority();
        let connect = async {
            let io = TcpStream::connect(&authority).await.expect("connects");
            let connected = client_async(format!("ws://{authority}{path}"), io).await;
            connected.expect("a handshake").0
        };
        block_on(BOUND, "a handshake", self.host.block_in(connect))
    }
}

fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

// ===== handlers =====

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

#[derive(Clone)]
struct Handler {
    gate: Gate,
    tell: Sender<Vec<u8>>,
    read: Arc<AtomicUsize>,
    frames: Arc<AtomicUsize>,
}

impl Handler {
    async fn switch(self, manner: String, mut request: Request) -> Response {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let asked = request.headers()[header::UPGRADE].clone();
        // Case does not matter.
        let asked = asked.to_str().expect("text").replace("web", "Web");
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, asked.parse().expect("a value"));
        headers.insert(header::CONNECTION, "upgrade".parse().expect("a value"));
        let key = &request.headers()[header::SEC_WEBSOCKET_KEY];
        let accept = derive_accept_key(key.as_bytes());
        headers.insert(
            header::SEC_WEBSOCKET_ACCEPT,
            accept.parse().expect("a value"),
        );
        if manner == "late" {
            self.gate.enter().await;
        }
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let io = TokioIo::new(upgraded.await.expect("the head goes out"));
            // Cut at the deadline, perhaps.
            let _ = self.talk(io, &manner).await;
        });
        response
    }

    #[allow(clippy::too_many_lines)] // each manner is short
    async fn talk(self, mut io: TokioIo<Upgraded>, manner: &str) -> std::io::Result<()> {
        match manner {
            "reads" | "late" => {}
            "leaves" | "leaves-exhausted" => {
                self.gate.enter().await;
                let exhausts = manner != "leaves";
                let noop = &mut Context::from_waker(Waker::noop());
                while exhausts && pin!(consume_budget()).poll(noop).is_ready() {}
                return Ok(());
            }
            "writes" => {
                let tick = frame(TEXT, b"tick");
                let failed = loop {
                    let written = io.write_all(&tick).await;
                    if let Err(failed) = written.and(io.flush().await) {
                        break failed;
                    }
                };
                let _ = self.tell.send(format!("{:?}", failed.kind()).into()); // nobody asks
                return Err(failed);
            }
            "answers" => {
                let mut part = [0; 64];
                while io.read(&mut part).await? > 0 {
                    if let Err(failed) = io.write_all(&frame(TEXT, b"tick")).await {
                        let _ = self.tell.send(format!("{:?}", failed.kind()).into()); // nobody asks
                        return Err(failed);
                    }
                }
                let _ = self.tell.send(b"whole".into()); // nobody asks
                return io.shutdown().await;
            }
            "floods" => {
                let (mut read, mut write) = tokio::io::split(io);
                let floods = async {
                    loop {
                        write.write_all(&large()).await?;
                        self.frames.fetch_add(1, Ordering::SeqCst);
                    }
                };
                let mut heard = Vec::new();
                tokio::select! {
                    failed = floods => { let failed: std::io::Result<()> = failed; failed?; }
                    read = read.read_to_end(&mut heard) => { read?; }
                }
                return write.shutdown().await;
            }
            "parts" => {
                let (mut read, mut write) = tokio::io::split(io);
                let (gate, frames) = (self.gate.clone(), Arc::clone(&self.frames));
                tokio::spawn(async move {
                    let _ = read.read(&mut [0; 64]).await; // or it was cut
                    drop(read);
                    gate.enter().await;
                });
                // As the kernel's buffers, so that it is between two of them when those are full.
                let page = frame(BINARY, &[0; 4092]);
                let failed = loop {
                    if let Err(failed) = write.write_all(&page).await {
                        break failed;
                    }
                    frames.fetch_add(1, Ordering::SeqCst);
                };
                let _ = self.tell.send(format!("{:?}", failed.kind()).into()); // nobody asks
                return Err(failed);
            }
            "closes" => {
                io.write_all(&frame(CLOSE, &1000_u16.to_be_bytes())).await?;
                io.flush().await?;
                self.gate.enter().await;
                io.write_all(&frame(TEXT, b"tick")).await?;
                io.flush().await?;
            }
            "endless" => {
                io.write_all(&[BINARY, 127]).await?;
                io.write_all(&u64::from(u32::MAX).to_be_bytes()).await?;
                io.write_all(&[0; 10]).await?;
                io.flush().await?;
            }
            "bare-echo" => {
                let role = tokio_tungstenite::tungstenite::protocol::Role::Server;
                let mut socket = WebSocketStream::from_raw_socket(io, role, None).await;
                while let Some(Ok(_)) = socket.next().await {}
                return Ok(());
            }
            pieces => {
                let cut = pieces.strip_prefix("pieces-").expect("a manner");
                let whole = large();
                let (first, rest) = whole.split_at(cut.parse().expect("a number"));
                io.write_all(first).await?;
                io.flush().await?;
                self.gate.enter().await;
                let tick = frame(TEXT, b"tick");
                io.write_all(&[rest, &tick].concat()).await?;
                io.write_all(&tick).await?;
                io.flush().await?;
                self.gate.enter().await;
            }
        }
        let mut heard = Vec::new();
        while io.read_buf(&mut heard).await? > 0 {
            self.read.store(heard.len(), Ordering::SeqCst);
        }
        let _ = self.tell.send(heard); // nobody asks
        io.shutdown().await
    }
}

// ===== frames =====

/// As a server sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len();
    let mut frame = match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length), _) if length < 126 => vec![first, length],
        (_, Ok(length)) => [&[first, 126][..], &length.to_be_bytes()].concat(),
        _ => [&[first, 127][..], &(length as u64).to_be_bytes()].concat(),
    };
    frame.extend(payload);
    frame
}

/// Whose payload looks like Close frames.
fn large() -> Vec<u8> {
    frame(BINARY, &[CLOSE, 2].repeat(40_000))
}

fn goodbye(code: u16) -> (u8, Vec<u8>) {
    (CLOSE, code.to_be_bytes().to_vec())
}

#[track_caller]
fn read_frame(client: &mut RawClient) -> (u8, Vec<u8>) {
    let header = client.read_exact(2);
    let length = match header[1] {
        126 => {
            let length = client.read_exact(2);
            usize::from(u16::from_be_bytes([length[0], length[1]]))
        }
        127 => {
            let length = client.read_exact(8).try_into().expect("eight bytes");
            usize::try_from(u64::from_be_bytes(length)).expect("it fits")
        }
        length => usize::from(length),
    };
    (header[0], client.read_exact(length))
}

#[track_caller]
fn read_until_close(client: &mut RawClient) -> (u8, Vec<u8>) {
    let begin = Instant::now();
    loop {
        match read_frame(client) {
            close @ (CLOSE, _) => return close,
            (TEXT, tick) => assert_eq!(tick, b"tick"),
            (BINARY, large) => assert!(matches!(large.len(), 80_000 | 4092)),
            other => panic!("no frame of ours: {other:?}"),
        }
        assert!(begin.elapsed() < BOUND, "no Close frame");
    }
}

/// Cut, and not a byte more.
#[track_caller]
fn assert_ended(front: Front, client: &mut RawClient) {
    let end = match client.try_read_response_headers() {
        Err(end) => end,
        Ok(head) => panic!("{front:?}: {head:?}"),
    };
    // Truncated if anything came.
    assert!(
        ended(end) && end != ReadEnd::Truncated,
        "{front:?}: {end:?}"
    );
}

#[track_caller]
fn assert_upgraded(front: Front, report: &Report, n: usize) {
    assert_eq!(
        (report.upgraded, report.connections()),
        (n, n),
        "{front:?}: {report}"
    );
    assert!(report.is_clean(), "{front:?}: {report}");
}
