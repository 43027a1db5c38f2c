//! TLS from outside, below and above the handshake: connections that have not begun it (G1), records
//! and handshakes half way (G2, G4), what is no TLS (G18, G19), and the deadline (G10, G12). All that
//! HTTP/1 and HTTP/2 have over TLS as well is in `http1.rs` and `http2.rs`.
//!
//! The tests block in their own thread, which is none of the runtime's two workers. Time is the
//! subject of most: the waits are what is measured, each has a bound.
#![cfg(all(unix, feature = "serve", feature = "rustls"))]

use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};
use tracing::Level;

use crate::support;
use crate::support::log::Log;
use crate::support::outside::{LATE, at_deadline, measured, promised};
use crate::support::wait::{
    accepted, gone, time_passes, time_passes_async, until_async, until_read, until_stats,
    until_stats_async,
};
use crate::support::{App, BOUND, FrontEnd, RawClient, RawResponse, ReadEnd, Server, Target};
use crate::support::{
    app, blocking, bound_here, client_hello, early_data, h2_connect, localhost, open_fds_to, start,
    start_known, tls_acceptor, tls_client, within,
};
use http_terminator::{
    HttpBuilder, IdlePolicy, Protocol, Report, Terminator, TerminatorBuilder, TowerToHyper,
};

/// What happens at once, on a machine with other things to do.
const SOON: Duration = Duration::from_secs(5);

/// Longer than the default `settle`: an idle connection would have been closed by then.
const PAST_SETTLE: Duration = Duration::from_millis(100);

/// The library counts whole microseconds.
const ROUNDING: Duration = Duration::from_micros(10);

const GET_QUICK: &str = "GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n";

const HTTP_1: &[&str] = &["http/1.1"];

// ===== G2: early data =====

/// tokio-rustls accepts it, and gives it to nobody: its client waited, and a drain closed that as idle, behind a clean report.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_a_request_in_early_data_is_sent_again_and_answered() {
    let (acceptor, config) = early_data();
    let (listener, addr) = bound_here();
    // One of the same tickets that takes it, as ours gives none for that.
    let (other, at) = bound_here();
    let accepts = acceptor.clone();
    tokio::spawn(async move {
        let (tcp, _) = other.accept().await.expect("it listens");
        let mut tls = accepts.accept(tcp).await.expect("a handshake");
        tls.write_all(b"\r\n\r\nok").await.expect("it is read");
        tls.shutdown().await.expect("it is read");
    });
    let terminator = patient().build();
    let served = terminator.serve(listener, app(App::default()));
    tokio::spawn(served.tls(acceptor));
    blocking(move || {
        let connect = |addr| {
            let tls = ClientConnection::new(Arc::clone(&config), localhost());
            let socket = std::net::TcpStream::connect(addr).expect("it listens");
            socket.set_read_timeout(Some(BOUND)).expect("it can be");
            StreamOwned::new(tls.expect("a configuration"), socket)
        };
        let answer = |client: &mut StreamOwned<_, _>| {
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\nok") {
                let mut part = [0; 256];
                let n = client.read(&mut part).expect("an answer");
                assert!(n > 0, "an end in place of an answer");
                answer.extend_from_slice(&part[..n]);
            }
        };
        answer(&mut connect(at));
        // With what it was given by that one.
        let mut again = connect(addr);
        let mut early = again.conn.early_data().expect("a ticket that allows it");
        let sent = early.write_all(GET_QUICK.as_bytes());
        sent.expect("there is room");
        while again.conn.is_handshaking() {
            again.conn.complete_io(&mut again.sock).expect("it goes on");
        }
        assert!(!again.conn.is_early_data_accepted());
        again.write_all(GET_QUICK.as_bytes()).expect("it is read");
        answer(&mut again);
    })
    .await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.is_clean(), "{report}");
}

// ===== G1: not begun =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_handshakes_that_were_never_begun_are_closed_in_the_same_wake_up() {
    let settle = Duration::from_secs(1);
    let terminator = patient().settle(settle).build();
    let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
    let mut clients: Vec<_> = (0..20).map(|_| plain(&server)).collect();
    accepted(&terminator, clients.len());
    time_passes(settle);

    let termination = terminator.terminate();
    clients.iter_mut().for_each(RawClient::expect_eof);
    let report = within(BOUND, "the end", termination).await;
    let second = report.draining + PAST_SETTLE >= settle;
    assert!(!second, "no second settle: {report}");
    assert_eq!((report.idle, report.connections()), (20, 20), "{report}");
    finished(server, &report).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_a_handshake_that_was_never_begun_is_closed_when_it_has_settled() {
    let settle = Duration::from_millis(300);
    let terminator = patient().settle(settle).build();
    let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
    let before = Instant::now();
    let mut client = plain(&server);
    accepted(&terminator, 1);
    let termination = terminator.terminate();
    client.expect_eof();
    let open = before.elapsed();
    assert!(open + ROUNDING >= settle, "closed after {open:?}");
    measured(open, settle + LATE, "closed");
    let report = within(BOUND, "the end", termination).await;
    assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
    finished(server, &report).await;
}

// ===== G2: bytes on their way =====

/// Accepted already, or still in the kernel's queue. Without a `settle` it is the look at the socket
/// that saves them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_handshakes_begun_just_before_terminate_are_completed_and_answered() {
    for round in 0..12 {
        let mut builder = patient();
        if round % 2 == 0 {
            builder = builder.settle(Duration::ZERO);
        }
        let terminator = builder.build();
        let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
        let clients: Vec<_> = (0..20).map(|_| plain(&server)).collect();
        if round % 4 < 2 {
            accepted(&terminator, clients.len());
        }
        let begun: Vec<_> = clients
            .into_iter()
            .map(|client| {
                let mut tls = tls_client(HTTP_1);
                client.send(client_hello(&mut tls));
                (client, tls)
            })
            .collect();
        let termination = terminator.terminate();
        // Side by side: `settle` begins anew for each when its handshake is done.
        let clients: Vec<_> = begun
            .into_iter()
            .map(|(mut client, tls)| {
                thread::spawn(move || {
                    // The end of the handshake and the request in one write.
                    finish_with(&mut client, tls, GET_QUICK);
                    last_answer(&mut client, "begun just before");
                })
            })
            .collect();
        for client in clients {
            let joined = client.join();
            assert!(joined.is_ok(), "round {round}: lost one");
        }
        let report = within(BOUND, "the end", termination).await;
        assert_eq!(
            (report.finished, report.connections()),
            (20, 20),
            "round {round}: {report}"
        );
        finished(server, &report).await;
    }
}

/// Half a record is seen by nobody who reads the plaintext.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_half_a_record_on_a_kept_alive_connection_is_answered() {
    for front in FrontEnd::tls() {
        for settle in [Duration::ZERO, Duration::from_millis(25)] {
            half_records(front, settle, true).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_half_a_record_after_the_handshake_is_answered() {
    half_records(FrontEnd::ServeTls, Duration::from_millis(25), false).await;
}

/// Half of the first record carries a whole request, half of the second one a part of the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_half_a_record_behind_a_request_is_answered() {
    for front in FrontEnd::tls() {
        let state = App::default();
        let terminator = patient().build();
        let server = start(front, &terminator, app(state.clone())).await;
        let mut client = server.connect();
        let first = client.encrypt(GET_QUICK);
        let second = client.encrypt(GET_QUICK);
        let (begun, rest) = second.split_at(second.len() / 2);
        client.send_raw(&[&first[..], begun].concat());
        assert_eq!(client.read_response().text(), "ok", "{front:?}");
        let termination = terminator.terminate();
        time_passes(PAST_SETTLE);
        assert!(client.is_still_open(), "{front:?}");
        client.send_raw(rest);
        last_answer(&mut client, &format!("{front:?}"));
        let report = within(BOUND, "the end", termination).await;
        assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
        finished(server, &report).await;
    }
}

// ===== G4: half way =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_half_a_client_hello_may_be_completed_and_its_request_is_answered() {
    let terminator = patient().build();
    let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
    let begun: Vec<_> = (0..9)
        .map(|n| {
            let (client, mut tls) = (plain(&server), tls_client(HTTP_1));
            let hello = client_hello(&mut tls);
            // The whole of it too: then the server waits for the end of the handshake.
            let cuts = [1, 4, 5, 6, 50, hello.len() / 2, hello.len() - 1];
            let cut = cuts.get(n).copied().unwrap_or(hello.len());
            client.send(&hello[..cut]);
            (client, tls, cut, hello[cut..].to_vec())
        })
        .collect();
    accepted(&terminator, begun.len());
    let termination = terminator.terminate();
    time_passes(PAST_SETTLE);
    for (mut client, tls, cut, rest) in begun {
        assert!(client.is_still_open(), "after {cut} bytes");
        client.send(rest);
        let done = client.shake_hands(tls);
        assert!(done.is_ok(), "after {cut} bytes: {done:?}");
        client.send(GET_QUICK);
        last_answer(&mut client, &format!("after {cut} bytes"));
    }
    let report = within(BOUND, "the end", termination).await;
    assert_eq!(
        (report.finished, report.stalled, report.connections()),
        (9, 0, 9),
        "{report}"
    );
    finished(server, &report).await;
}

/// Each byte starts the stall timeout anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_a_client_hello_that_comes_in_drips_is_answered() {
    let stall = Duration::from_secs(1);
    let terminator = patient().stall_timeout(stall).build();
    let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
    let (mut client, mut tls) = (plain(&server), tls_client(HTTP_1));
    let hello = client_hello(&mut tls);
    let (drips, rest) = hello.split_at(14);
    client.send(&drips[..1]);
    accepted(&terminator, 1);
    let begun = Instant::now();
    let termination = terminator.terminate();
    for drip in &drips[1..] {
        time_passes(stall / 10);
        client.send([*drip]);
    }
    assert!(begun.elapsed() > stall, "too fast to show anything");
    client.send(rest);
    client.shake_hands(tls).expect("the handshake goes on");
    client.send(GET_QUICK);
    last_answer(&mut client, "drips");
    let report = within(BOUND, "the end", termination).await;
    assert_eq!((report.finished, report.stalled), (1, 0), "{report}");
    finished(server, &report).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_g4_a_handshake_that_waits_for_us_is_completed() {
    // Time is the subject.
    let fetches = Duration::from_millis(600);
    for in_drain in [true, false] {
        let stall = fetches / 3;
        let terminator = patient().stall_timeout(stall).build();
        let (listener, addr) = bound_here();
        let mut listener = terminator.listen(listener);
        let config = Arc::clone(tls_acceptor(HTTP_1).config());
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some((io, _)) = listener.accept().await {
                let (connection, config, tell) = (io.connection(), config.clone(), tell.clone());
                tokio::spawn(async move {
                    let shakes = async {
                        let hello = tokio_rustls::LazyConfigAcceptor::new(Acceptor::default(), io);
                        let hello = hello.await?;
                        let _ = tell.send(connection.clone()); // somebody waits
                        // As who fetches a certificate.
                        tokio::time::sleep(fetches).await;
                        hello.into_stream(config).await
                    };
                    let Some(Ok(io)) = connection.handshake(shakes).await else {
                        return;
                    };
                    let service = TowerToHyper::new(app(App::default()));
                    let served = connection.serve(&HttpBuilder::default(), io, service);
                    let _ = served.await; // of its client's
                });
            }
        });
        let client = blocking(move || {
            let mut client = RawClient::connect(Target::Tls(addr));
            client.fetch("/quick")
        });
        let client = tokio::spawn(client);
        let connection = within(BOUND, "its hello", told.recv()).await;
        let connection = connection.expect("it is there");
        let ended = in_drain.then(|| terminator.terminate());
        connection.terminate();
        let answer = within(BOUND, "an answer", client).await.expect("no panic");
        assert!(answer.text() == "ok" && answer.says_close(), "{answer:?}");
        if let Some(ended) = ended {
            let report = within(BOUND, "the end", ended).await;
            assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
        }
    }
}

/// Which is bounded from when it begins to wait, and not where it waits for its client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_g4_a_handshake_that_begins_late_in_a_drain_has_its_time() {
    let head = Duration::from_millis(300);
    for bound in [head, Duration::MAX] {
        begins_late(head, bound).await;
    }
}

async fn begins_late(head: Duration, bound: Duration) {
    let terminator = patient()
        .idle(IdlePolicy::LastRequest { wait: BOUND })
        .head_timeout(bound)
        .build();
    let (listener, addr) = bound_here();
    let mut listener = terminator.listen(listener);
    let accepts = tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.expect("serving");
        let connection = io.connection();
        let shakes = async move {
            io.read_u8().await?;
            // As who fetches a certificate.
            tokio::time::sleep(head / 6).await;
            io.write_u8(b'!').await?;
            io.read_u8().await?;
            std::io::Result::Ok(io)
        };
        let io = connection.handshake(shakes).await;
        io.is_some_and(|it| it.is_ok())
    });
    let client = blocking(move || RawClient::connect(addr)).await;
    until_async("it is accepted", || terminator.stats().accepted == 1).await;
    let ended = terminator.terminate();
    // Time is the subject.
    time_passes_async(head * 2).await;
    let client = blocking(move || {
        let mut client = client;
        client.send("a");
        assert_eq!(client.read_exact(1), b"!");
        client
    });
    let client = client.await;
    time_passes_async(head / 3).await;
    client.send("b");
    let shaken = within(BOUND, "the handshake", accepts).await;
    assert!(shaken.expect("no panic"));
    drop(client);
    within(BOUND, "the end", ended).await;
}

/// What its client has sent lies there, and it waits for something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_a_handshake_that_does_not_read_is_bounded_in_the_drain() {
    for before in [true, false] {
        let head = Duration::from_millis(300);
        let terminator = patient().head_timeout(head).build();
        let (listener, addr) = bound_here();
        let mut listener = terminator.listen(listener);
        let client = blocking(move || {
            let client = RawClient::connect(addr);
            client.send("a");
            client
        });
        let client = client.await;
        let accepts = async move {
            let (io, _) = listener.accept().await.expect("it is queued");
            let connection = io.connection();
            let shakes = async move {
                std::future::pending::<()>().await;
                drop(io);
            };
            connection.handshake(shakes).await
        };
        let ended = if before {
            let accepts = tokio::spawn(accepts);
            until_async("it is accepted", || terminator.stats().accepted == 1).await;
            let ended = terminator.terminate();
            let shaken = within(BOUND, "the handshake", accepts).await;
            assert_eq!(shaken.expect("no panic"), None);
            ended
        } else {
            let ended = terminator.terminate();
            assert_eq!(within(BOUND, "the handshake", accepts).await, None);
            ended
        };
        let report = within(SOON, "the end", ended).await;
        assert_eq!(report.stalled, 1, "{report}");
        drop(client);
    }
}

/// The bound on half a record counts from when it begins, and not from when the connection was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_g21_a_last_request_may_come_in_two_segments() {
    let head = Duration::from_millis(300);
    let terminator = patient()
        .idle(IdlePolicy::LastRequest { wait: BOUND })
        .head_timeout(head)
        .build();
    let router = app(App::default());
    let (target, known) = start_known(FrontEnd::OwnLoopTls, &terminator, router).await;
    let mut client = blocking(move || {
        let mut client = RawClient::connect(target);
        assert_eq!(client.fetch("/quick").status, 200);
        client
    })
    .await;
    known.get(0).terminate();
    blocking(move || {
        time_passes(head * 2);
        let record = client.encrypt(GET_QUICK);
        client.send_raw(&record[..record.len() / 2]);
        time_passes(PAST_SETTLE);
        client.send_raw(&record[record.len() / 2..]);
        assert!(client.read_response().says_close());
    })
    .await;
    gone(&terminator).await;
}

/// Asked a second time to shut down, it waits for the other side's end, as that of OpenSSL does.
struct AsksOnce<Io> {
    io: Io,
    asked: bool,
}

impl<Io: AsyncRead + Unpin> AsyncRead for AsksOnce<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for AsksOnce<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.asked {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.asked = polled.is_ready();
        polled
    }
}

/// hyper shuts down what it was told has stalled, which had said goodbye by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_g21_a_peer_that_stalls_is_closed_over_an_io_that_waits_for_its_goodbye() {
    let stall = Duration::from_millis(300);
    for in_drain in [true, false] {
        let terminator = patient().stall_timeout(stall).build();
        let (listener, addr) = bound_here();
        let mut listener = terminator.listen(listener);
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let given_away = axum::routing::post(async |body: axum::body::Body| {
            drop(tokio::spawn(axum::body::to_bytes(body, usize::MAX)));
            "ok"
        });
        let router = app(App::default()).route("/given", given_away);
        tokio::spawn(async move {
            while let Some((io, _)) = listener.accept().await {
                let connection = io.connection();
                let _ = tell.send(connection.clone()); // somebody waits
                let io = AsksOnce { io, asked: false };
                let service = TowerToHyper::new(router.clone());
                tokio::spawn(connection.serve(&HttpBuilder::default(), io, service));
            }
        });
        let client = blocking(move || {
            let mut client = RawClient::connect(addr);
            client.send("POST /given HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf");
            assert_eq!(client.read_response().text(), "ok");
            client
        })
        .await;
        let connection = told.recv().await.expect("it is there");
        if in_drain {
            let report = within(SOON, "the end", terminator.terminate()).await;
            assert_eq!((report.stalled, report.forced), (1, 0), "{report}");
        } else {
            connection.terminate();
            gone(&terminator).await;
        }
        drop(client);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_a_handshake_that_is_never_finished_is_closed_after_the_stall_timeout() {
    for part in [0.01, 0.5, 0.99, 1.0] {
        let stall = Duration::from_millis(300);
        let terminator = patient().stall_timeout(stall).build();
        let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
        let mut client = plain(&server);
        send_part(&client, part);
        accepted(&terminator, 1);
        let called = Instant::now();
        let termination = terminator.terminate();
        // There is no TLS yet that could say its close_notify.
        assert_eq!(client.read_to_end(), ReadEnd::Eof, "{part} of it");
        let took = called.elapsed();
        assert!(took + ROUNDING >= stall, "{part} of it: {took:?}");
        measured(took, stall + LATE, &format!("{part} of it: the end"));
        let report = within(BOUND, "the end", termination).await;
        assert_eq!((report.stalled, report.connections()), (1, 1), "{report}");
        assert!(report.is_clean(), "{report}");
        finished(server, &report).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_half_a_record_that_is_never_finished_is_closed_after_the_stall_timeout() {
    for front in FrontEnd::tls() {
        for cut in [1, 5, 20] {
            let what = format!("{front:?}, {cut} bytes");
            let stall = Duration::from_millis(300);
            let terminator = patient().stall_timeout(stall).build();
            let server = start(front, &terminator, app(App::default())).await;
            let mut client = server.connect();
            assert_eq!(client.fetch("/quick").text(), "ok");
            client.send_raw(&client.encrypt(GET_QUICK)[..cut]);
            let called = Instant::now();
            let termination = terminator.terminate();
            let end = client.read_to_end();
            let took = called.elapsed();
            assert!(took + ROUNDING >= stall, "{what}: {took:?}");
            measured(took, stall + LATE, &what);
            let report = within(BOUND, "the end", termination).await;
            assert_eq!(
                (report.stalled, report.connections()),
                (1, 1),
                "{what}: {report}"
            );
            finished(server, &report).await;
            assert_eq!(end, ReadEnd::Eof, "{what}: how it ended");
        }
    }
}

// ===== G8: bytes behind the last answer =====

/// What follows behind the request whose answer says close is half a record when the connection ends. Its rest drew a
/// reset, as the half that had come lay neither in the socket nor in hyper's buffer; and a reset destroys an answer that
/// the client has yet to read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g8_half_a_record_behind_the_last_answer_draws_no_reset() {
    for front in FrontEnd::tls() {
        let terminator = patient().build();
        let server = start(front, &terminator, app(App::default())).await;
        let mut client = server.connect();
        let first =
            client.encrypt("GET /quick HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let second = client.encrypt(GET_QUICK);
        let (begun, rest) = second.split_at(second.len() / 2);
        client.send_raw(&[&first[..], begun].concat());
        last_answer(&mut client, &format!("{front:?}"));
        let (before, last) = rest.split_at(rest.len() / 2);
        client.send_raw(before);
        // Time is the subject: a reset would come meanwhile, and the next write would fail.
        time_passes(PAST_SETTLE);
        client.send_raw(last);
        drop(client);
        let report = within(BOUND, "the end", terminator.terminate()).await;
        finished(server, &report).await;
    }
}

// ===== the accept loop, ALPN =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g15_stalled_handshakes_do_not_hold_up_the_accept_loop() {
    let stall = Duration::from_millis(300);
    let terminator = patient().stall_timeout(stall).build();
    let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
    let mut stalled = Vec::new();
    for n in 0..60 {
        let client = plain(&server);
        if n % 3 > 0 {
            send_part(&client, if n % 3 == 1 { 0.5 } else { 1.0 });
        }
        stalled.push(client);
    }
    for _ in 0..10 {
        let begun = Instant::now();
        assert_eq!(server.connect().fetch("/quick").text(), "ok");
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    accepted(&terminator, stalled.len());
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!((report.idle, report.stalled), (20, 40), "{report}");
    finished(server, &report).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_alpn_chooses_the_protocol() {
    let terminator = patient().build();
    let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
    let cases: [(&[&str], Option<&str>); 5] = [
        (&["h2", "http/1.1"], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")), // ours is the preference
        (&["h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ];
    for (offered, chosen) in cases {
        let mut client = plain(&server);
        let done = client.shake_hands(tls_client(offered));
        assert!(done.is_ok(), "{offered:?}: {done:?}");
        assert_eq!(client.alpn().as_deref(), chosen, "{offered:?}");
        if chosen != Some("h2") {
            assert_eq!(client.fetch("/quick").text(), "ok", "{offered:?}");
        }
    }
    let mut client = h2_connect(&server.target).await;
    assert_eq!(client.get("/quick").await.1, b"ok");
    let report = within(BOUND, "the end", terminator.terminate()).await;
    client.closed().await.expect("a clean end");
    assert!(report.is_clean(), "{report}");
    finished(server, &report).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_the_applications_own_choice_of_protocols_is_kept() {
    let terminator = patient().build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port is free");
    let addr = listener.local_addr().expect("it is bound");
    let serve = terminator
        .serve(listener, app(App::default()))
        .tls(tls_acceptor(HTTP_1));
    let server = tokio::spawn(serve);
    let mut client = RawClient::connect(addr);
    client
        .shake_hands(tls_client(&["h2", "http/1.1"]))
        .expect("there is one in common");
    assert_eq!(client.alpn().as_deref(), Some("http/1.1"));
    assert_eq!(client.fetch("/quick").text(), "ok");
    let termination = terminator.terminate();
    client.expect_eof();
    let report = within(BOUND, "the end", termination).await;
    let its_own = within(BOUND, "end of the server's task", server).await;
    assert_eq!(its_own.expect("the server does not panic"), report);
}

// ===== G19: what is no TLS =====

type Misdeed = fn(&RawClient);

/// After these the server is to end the connection by itself.
const WRONG: [(&str, Misdeed); 5] = [
    ("a plain request", |client| client.send(GET_QUICK)),
    ("a plain HTTP/2 preface", |client| {
        client.send(support::PREFACE);
    }),
    ("a record of nonsense", |client| {
        client.send([&[22, 3, 1, 0, 40][..], &[0x55; 40]].concat());
    }),
    ("a record that is too long", |client| {
        client.send([22, 3, 1, 0xff, 0xff, 1, 2, 3]);
    }),
    ("no protocol in common", |client| {
        client.send(client_hello(&mut tls_client(&["spdy/3"])));
    }),
];

/// After these the client leaves.
const LEFT: [(&str, Misdeed); 4] = [
    ("nothing", |_| ()),
    ("half a ClientHello", |client| send_part(client, 0.5)),
    ("an unfinished handshake", |client| send_part(client, 1.0)),
    ("half a ClientHello and a reset", |client| {
        send_part(client, 0.5);
        let socket = client.socket();
        socket
            .set_linger(Some(Duration::ZERO))
            .expect("a TCP socket");
    }),
];

/// On a runtime with one thread, whose log can be seen.
#[tokio::test]
async fn g19_what_is_no_tls_is_closed_counted_and_not_logged() {
    let log = Log::default();
    let _here = log.here();
    let terminator = patient().build();
    let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
    let addr = server.addr.expect("it is TCP");
    for (what, misdeed) in WRONG {
        let end = blocking(move || {
            let mut client = RawClient::connect(addr);
            misdeed(&client);
            client.read_to_end()
        })
        .await;
        assert!(
            matches!(end, ReadEnd::Eof | ReadEnd::Reset),
            "{what}: {end:?}"
        );
        until_stats_async(&terminator, what, |it| it.connections == 0).await;
    }
    for (what, misdeed) in LEFT {
        blocking(move || misdeed(&RawClient::connect(addr))).await;
        until_stats_async(&terminator, what, |it| it.connections == 0).await;
    }
    let target = server.target.clone();
    let good = blocking(move || RawClient::connect(target).fetch("/quick")).await;
    assert_eq!(good.text(), "ok");
    let accepted = terminator.stats().accepted;
    assert_eq!(accepted, 10, "connections in all");
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.is_clean(), "{report}");
    let all = log.at_least(Level::TRACE);
    assert!(!all.is_empty(), "each connection is logged at DEBUG");
    let loud = log.at_least(Level::INFO);
    assert!(loud.is_empty(), "{loud:#?}");
}

/// Nothing of it may be taken for TLS that is half way.
#[tokio::test]
async fn g19_a_client_hello_on_a_plain_port_is_closed_counted_and_not_logged() {
    let log = Log::default();
    let _here = log.here();
    let terminator = patient().build();
    let server = start(FrontEnd::Serve, &terminator, app(App::default())).await;
    let addr = server.addr.expect("it is TCP");
    let end = blocking(move || {
        let mut client = RawClient::connect(addr);
        send_part(&client, 1.0);
        client.read_to_end()
    })
    .await;
    assert!(matches!(end, ReadEnd::Eof | ReadEnd::Reset), "{end:?}");
    gone(&terminator).await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!(report.connections(), 0, "{report}");
    let all = log.at_least(Level::TRACE);
    assert!(!all.is_empty(), "each connection is logged at DEBUG");
    let loud = log.at_least(Level::INFO);
    assert!(loud.is_empty(), "{loud:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_what_is_no_tls_does_not_delay_a_drain() {
    // Bytes of the client come within `settle`: nothing is closed before.
    let terminator = patient().settle(BOUND).build();
    let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
    let clients: Vec<_> = WRONG.iter().map(|_| plain(&server)).collect();
    accepted(&terminator, clients.len());
    let called = Instant::now();
    let termination = terminator.terminate();
    for (mut client, (what, misdeed)) in clients.into_iter().zip(WRONG) {
        misdeed(&client);
        let end = client.read_to_end();
        assert!(
            matches!(end, ReadEnd::Eof | ReadEnd::Reset),
            "{what}: {end:?}"
        );
    }
    let report = within(BOUND, "the end", termination).await;
    assert!(called.elapsed() < SOON, "{:?}", called.elapsed());
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        (report.closed_by_peer, report.connections()),
        (WRONG.len(), WRONG.len()),
        "{report}"
    );
    finished(server, &report).await;
}

// ===== G10, G12: the deadline =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_handshakes_in_progress_are_cut_at_the_deadline() {
    let grace = Duration::from_millis(400);
    for front in FrontEnd::tls() {
        cut_handshakes(front, grace, Terminator::terminate).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_handshakes_in_progress_are_cut_by_force() {
    for front in FrontEnd::tls() {
        cut_handshakes(front, Duration::ZERO, Terminator::force).await;
    }
}

/// They owe us bytes, as a connection with half a head does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_handshakes_and_halves_of_records_that_are_cut_are_named() {
    let terminator = patient().build();
    let server = start(FrontEnd::ServeTls, &terminator, app(App::default())).await;
    let clients = [0.5, 1.0].map(|part| {
        let client = plain(&server);
        send_part(&client, part);
        client
    });
    let mut half = server.connect();
    assert_eq!(half.fetch("/quick").text(), "ok");
    half.send_raw(&half.encrypt(GET_QUICK)[..20]);
    accepted(&terminator, 3);
    until_stats(&terminator, "all is read", |it| it.busy == 3);
    let report = within(BOUND, "the end", terminator.force()).await;
    assert_eq!((report.forced, report.connections()), (3, 3), "{report}");
    assert_eq!(report.stragglers.len(), 3, "{report}");
    for straggler in &report.stragglers {
        assert_ne!(straggler.protocol, Protocol::Http2, "{straggler}");
        assert!(straggler.peer.is_some(), "{straggler}");
    }
    drop((clients, half));
    finished(server, &report).await;
}

async fn cut_handshakes(
    front: FrontEnd,
    grace: Duration,
    begin: fn(&Terminator) -> http_terminator::Termination,
) {
    let terminator = patient().grace_period(grace).build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut clients: Vec<_> = (0..20).map(|_| plain(&server)).collect();
    for (n, client) in clients.iter().enumerate() {
        send_part(client, [0.01, 0.5, 0.99, 1.0][n % 4]);
    }
    accepted(&terminator, clients.len());
    // What lies there unread when a socket is closed draws a reset.
    for client in &clients {
        until_read(client.socket());
    }
    let called = Instant::now();
    let report = within(BOUND, "the end", begin(&terminator)).await;
    let took = called.elapsed();
    assert_eq!(open_fds_to(server.port()), 0, "{front:?}: {report}");
    assert!(took >= grace, "{front:?}: {took:?}, {report}");
    promised(&report, grace);
    at_deadline(called, grace, "the end");
    assert_eq!(
        (report.forced, report.connections()),
        (20, 20),
        "{front:?}: {report}"
    );
    assert_eq!(report.answered_at_deadline, 0, "{front:?}: {report}");
    for client in &mut clients {
        assert_eq!(client.read_to_end(), ReadEnd::Eof, "{front:?}");
    }
    finished(server, &report).await;
}

// ===== what several tests do =====

/// Both bounds are longer than [`BOUND`]: a test that runs into one of them fails.
fn patient() -> TerminatorBuilder {
    let builder = Terminator::builder().grace_period(Duration::from_secs(30));
    builder.stall_timeout(Duration::from_secs(20))
}

/// A connection on which no TLS was spoken yet.
#[track_caller]
fn plain(server: &Server) -> RawClient {
    let Target::Tls(addr) = server.target else {
        panic!("no TLS server: {:?}", server.target);
    };
    RawClient::connect(addr)
}

/// Sends a part of a `ClientHello`: at least a byte, and the whole of it if it is 1.
fn send_part(client: &RawClient, part: f64) {
    let hello = client_hello(&mut tls_client(HTTP_1));
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "some hundred bytes"
    )]
    let cut = ((hello.len() as f64 * part) as usize).max(1);
    client.send(&hello[..cut]);
}

/// Does the handshake, whose `ClientHello` was sent, and sends a request in one write with its end.
#[track_caller]
fn finish_with(client: &mut RawClient, mut tls: ClientConnection, request: &str) {
    use std::io::Write;
    let buffered = tls.writer().write_all(request.as_bytes());
    buffered.expect("sent when the handshake allows it");
    let done = client.shake_hands(tls);
    assert!(done.is_ok(), "the handshake: {done:?}");
    client.send_raw(&client.encrypt("")); // what of it is not out yet
}

async fn half_records(front: FrontEnd, settle: Duration, warm: bool) {
    let what = format!("{front:?}, settle {settle:?}, warm {warm}");
    let terminator = patient().settle(settle).build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut clients: Vec<_> = (0..7).map(|_| server.connect()).collect();
    accepted(&terminator, clients.len());
    let mut rests = Vec::new();
    for (n, client) in clients.iter_mut().enumerate() {
        if warm {
            assert_eq!(client.fetch("/quick").text(), "ok", "{what}");
        }
        let record = client.encrypt(GET_QUICK);
        let len = record.len();
        let cut = [1, 3, 4, 5, 6, len / 2, len - 1][n];
        client.send_raw(&record[..cut]);
        rests.push((cut, record[cut..].to_vec()));
    }
    let termination = terminator.terminate();
    time_passes(PAST_SETTLE);
    for (client, (cut, rest)) in clients.iter_mut().zip(rests) {
        assert!(client.is_still_open(), "{what}: after {cut} bytes");
        client.send_raw(&rest);
        last_answer(client, &format!("{what}: after {cut} bytes"));
    }
    let report = within(BOUND, "the end", termination).await;
    assert_eq!(
        (report.finished, report.stalled, report.connections()),
        (7, 0, 7),
        "{what}: {report}"
    );
    finished(server, &report).await;
}

/// An answer that says close, and the end of the connection.
#[track_caller]
fn last_answer(client: &mut RawClient, what: &str) -> RawResponse {
    match client.try_read_response() {
        Ok(answer) => {
            assert_eq!(answer.text(), "ok", "{what}: {answer:?}");
            assert!(answer.says_close(), "{what}: {answer:?}");
            client.expect_eof();
            answer
        }
        Err(end) => panic!("{what}: {end:?} instead of an answer"),
    }
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
