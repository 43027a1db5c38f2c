//! Connections that have left HTTP: counted, waited for, cut at the deadline; and those that leave
//! the terminator (G13).

#![cfg(all(unix, feature = "serve"))]

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;

use crate::support::outside::{LATE, measured, promised};
use crate::support::wait::{gone, time_passes_async};
use crate::support::{
    App, BOUND, FrontEnd, Gate, RawClient, RawH2, RawResponse, Server, Target, app, blocking, each,
    kind, open_fds_to, start, start_known, within,
};
use http_terminator::{Connection, Phase, Protocol, Report, Terminator, TrackedIo};

/// What ends by itself ends long before any deadline.
const SOON: Duration = Duration::from_millis(1500);

/// A few times the default `settle`.
const PAST_SETTLE: Duration = Duration::from_millis(100);

// ===== counted, and waited for =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_an_upgraded_connection_is_counted_and_waited_for() {
    each(FrontEnd::all(), async |front| {
        let (terminator, server, _) = serve(front, Duration::from_secs(30)).await;
        let mut client = upgraded(&server, "/upgrade").await;
        let stats = terminator.stats();
        assert_eq!(
            (stats.upgraded, stats.connections),
            (1, 1),
            "{front:?}: {stats}"
        );

        let mut ended = terminator.terminate();
        for _ in 0..3 {
            client = echo(client, b"while draining").await;
        }
        // It is quiet for longer than an idle connection, or one that owes bytes, may be.
        let early = tokio::time::timeout(Duration::from_millis(1200), &mut ended).await;
        assert!(early.is_err(), "{front:?}: not waited for: {early:?}");
        client = echo(client, b"still here").await;
        assert_eq!(terminator.stats().upgraded, 1, "{front:?}");

        blocking(move || {
            client.shutdown_write();
            client.expect_eof();
        })
        .await;
        let report = within(SOON, "the end", ended).await;
        assert_eq!(report.upgraded, 1, "{front:?}: {report}");
        assert_eq!(report.connections(), 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// Counts change in `Drop` (invariant 6): also when nobody terminates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_an_upgraded_connection_leaves_the_count_when_it_ends() {
    each(FrontEnd::all(), async |front| {
        let (terminator, server, _) = serve(front, Duration::from_secs(30)).await;
        let mut client = upgraded(&server, "/upgrade").await;
        blocking(move || {
            client.shutdown_write();
            client.expect_eof();
        })
        .await;
        within(SOON, "an empty count", gone(&terminator)).await;
        let report = within(SOON, "the end", terminator.terminate()).await;
        assert_eq!(report.connections(), 0, "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_a_101_in_flight_when_the_drain_begins_is_valid() {
    each(FrontEnd::all(), async |front| {
        let (terminator, server, gate) = serve(front, Duration::from_secs(30)).await;
        let mut client = server.connect();
        client.get_upgrade("/upgrade-slow");
        gate.wait_entered_async(1).await;
        let ended = terminator.terminate();
        terminator.reached(Phase::Draining).await;
        gate.open();
        let mut client = blocking(move || {
            let head = client.read_response_headers();
            assert_switches(&head);
            client
        })
        .await;
        client = echo(client, b"hello").await;
        assert_eq!(terminator.stats().upgraded, 1, "{front:?}");
        blocking(move || {
            client.shutdown_write();
            client.expect_eof();
        })
        .await;
        let report = within(SOON, "the end", ended).await;
        assert_eq!(report.upgraded, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_a_connect_in_flight_when_the_drain_begins_is_a_tunnel() {
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        let terminator = Terminator::builder()
            .grace_period(Duration::from_secs(30))
            .build();
        let server = start(front, &terminator, tunnels(&gate)).await;
        let mut client = server.connect();
        client.send("CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\n");
        gate.wait_entered_async(1).await;
        drop(terminator.terminate());
        gate.open();
        let mut client = blocking(move || {
            let head = client.read_response_headers();
            assert_eq!(head.status, 200, "{head:?}");
            assert!(!head.says_close(), "{head:?}");
            assert_eq!(head.header("content-length"), None, "{head:?}");
            assert_eq!(head.header("transfer-encoding"), None, "{head:?}");
            client
        })
        .await;
        client = echo(client, b"through the tunnel").await;
        let stats = terminator.stats();
        assert_eq!(stats.upgraded, 1, "{front:?}: {stats}");
        waited_for(&terminator, front).await;
        blocking(move || {
            client.shutdown_write();
            client.expect_eof();
        })
        .await;
        let report = within(SOON, "the end", terminator.terminated()).await;
        assert_eq!(report.upgraded, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// On HTTP/2 a tunnel is one stream, and its request is over for hyper once it was accepted. The
/// client has acknowledged the PING and owes nothing, however quiet it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_a_quiet_http2_tunnel_is_waited_for() {
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        gate.open();
        let stall = Duration::from_millis(200);
        let terminator = Terminator::builder()
            .grace_period(Duration::from_secs(30))
            .stall_timeout(stall)
            .build();
        let server = start(front, &terminator, tunnels(&gate)).await;
        let mut tunnel = Tunnel::open(&server.target, to("db.example:5432")).await;
        tunnel.echo(b"before").await;

        let mut ended = terminator.terminate();
        tunnel.echo(b"while draining").await;
        let early = tokio::time::timeout(stall * 3, &mut ended).await;
        assert!(early.is_err(), "{front:?}: not waited for: {early:?}");
        tunnel.echo(b"after a while").await;
        tunnel.end().await;
        let report = within(SOON, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(
            (report.stalled, report.connections()),
            (0, 1),
            "{front:?}: {report}"
        );
    });
}

/// Which of two on one connection holds it can't be told: the one that had ended long before was named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_of_two_http2_tunnels_none_is_named_that_has_ended() {
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        gate.open();
        let terminator = Terminator::new();
        let server = start(front, &terminator, tunnels(&gate)).await;
        let mut stays = Tunnel::open(&server.target, to("stays.example:1")).await;
        stays.echo(b"the first").await;
        let ends = Tunnel::by(stays.sender.clone(), to("ends.example:2")).await;
        let mut ends = ends.expect("another tunnel");
        ends.echo(b"the second").await;
        ends.end().await;
        stays.echo(b"the first again").await;
        let ended = terminator.terminate_within(Duration::from_millis(500));
        let report = within(BOUND, "the end", ended).await;
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        let named = report.stragglers.iter().filter_map(|it| it.path.as_deref());
        assert!(
            named.into_iter().all(|path| !path.contains("ends")),
            "{front:?}: {report}"
        );
        drop(stays);
    });
}

/// Nor does one that ended before leave anything behind: the next one is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_tunnel_behind_one_that_has_ended_is_named() {
    each(FrontEnd::all(), async |front| {
        let gate = Gate::new();
        gate.open();
        let terminator = Terminator::new();
        let server = start(front, &terminator, tunnels(&gate)).await;
        let mut first = Tunnel::open(&server.target, to("first.example:1")).await;
        first.echo(b"the first").await;
        let sender = first.sender.clone();
        first.end().await;
        let next = Tunnel::by(sender, to("next.example:2")).await;
        let mut next = next.expect("another tunnel");
        next.echo(b"the next").await;
        let ended = terminator.terminate_within(Duration::from_millis(500));
        let report = within(BOUND, "the end", ended).await;
        let named = report.stragglers.iter().filter_map(|it| it.path.as_deref());
        let named: Vec<_> = named.collect();
        assert_eq!(named, ["next.example:2"], "{front:?}: {report}");
        drop(next);
    });
}

/// We have ended our side of it, and its client goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_half_a_tunnel_is_named() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = Terminator::new();
        let server = start(front, &terminator, half_tunnels()).await;
        let target = server.target.clone();
        let mut client = blocking(move || half_a_tunnel(target)).await;
        let ended = terminator.terminate_within(Duration::from_millis(500));
        let client = blocking(move || {
            let ping = client.read_until(kind::PING);
            client.ack_ping(&ping);
            client
        });
        let client = client.await;
        let in_hand = terminator.in_hand();
        let report = within(BOUND, "the end", ended).await;
        let named = in_hand.iter().chain(&report.stragglers);
        let named: Vec<_> = named.filter_map(|it| it.path.as_deref()).collect();
        assert_eq!(named, ["a:1", "a:1"], "{front:?}: {report}");
        drop(client);
    });
}

fn to(uri: &str) -> http::Request<()> {
    let request = http::Request::builder().method(Method::CONNECT).uri(uri);
    request.body(()).expect("a request")
}

/// Each is ended on our side, and read on.
fn half_tunnels() -> Router {
    let ends = |mut request: Request| async move {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgraded.await.expect("a tunnel"));
            let _ = io.shutdown().await;
            let _ = io.read_to_end(&mut Vec::new()).await; // until it is closed
        });
        StatusCode::OK
    };
    Router::new().fallback(ends)
}

fn half_a_tunnel(target: Target) -> RawH2 {
    let mut client = RawH2::connect(target);
    client.ack_settings();
    // Literals, not indexed (RFC 7541 section 6.2.2).
    let block = b"\0\x07:method\x07CONNECT\0\x0a:authority\x03a:1";
    client.send_frame(kind::HEADERS, 4, 1, block);
    while !client.read_until(kind::DATA).is_end_stream() {}
    client
}

/// We have ended our side of it, its client is silent and acknowledges nothing: it is closed as any such client is, be it told alone, where
/// there is no deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_g21_half_a_tunnel_of_a_silent_http2_client_is_closed() {
    each(FrontEnd::seeing(), async |front| {
        for alone in [true, false] {
            let terminator = Terminator::builder().grace_period(BOUND * 3).build();
            let (target, known) = start_known(front, &terminator, half_tunnels()).await;
            let mut client = blocking(move || half_a_tunnel(target)).await;
            let ended = if alone {
                known.get(0).terminate();
                None
            } else {
                Some(terminator.terminate())
            };
            blocking(move || client.expect_eof_within(BOUND)).await;
            if let Some(ended) = ended {
                let report = within(SOON, "the end", ended).await;
                assert_eq!(report.stalled, 1, "{front:?}: {report}");
            }
            gone(&terminator).await;
        }
    });
}

/// A look at its socket takes a reset, and the handler that reads on took a truncated upload for a whole one. While serving, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g10_the_reset_of_a_tunnel_is_not_taken_for_its_end() {
    for front in [FrontEnd::Serve, FrontEnd::OwnLoop, FrontEnd::OwnLoopAuto] {
        let (tell, mut told) = mpsc::unbounded_channel();
        let gate = Gate::new();
        let opens = gate.clone();
        let reads = move |mut request: Request| {
            let (tell, gate) = (tell.clone(), gate.clone());
            async move {
                let upgraded = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let mut io = TokioIo::new(upgraded.await.expect("a tunnel"));
                    io.read_exact(&mut [0; 4]).await.expect("what was sent");
                    gate.enter().await;
                    let _ = io.shutdown().await; // nobody is there
                    let rest = io.read(&mut [0; 4]).await;
                    let _ = tell.send(rest.map_err(|e| e.kind()));
                });
                StatusCode::OK
            }
        };
        let terminator = Terminator::new();
        let server = start(front, &terminator, Router::new().fallback(reads)).await;
        let mut client = server.connect();
        let client = blocking(move || {
            client.send("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n");
            assert_eq!(client.read_response_headers().status, 200);
            client.send("half");
            client
        })
        .await;
        opens.wait_entered_async(1).await;
        let socket = client.into_inner();
        socket
            .set_linger(Some(Duration::ZERO))
            .expect("an option of sockets");
        drop(socket);
        // Over loopback it is there by then.
        time_passes_async(Duration::from_millis(50)).await;
        opens.open();
        let rest = within(BOUND, "the handler", told.recv()).await;
        let expected = Some(Err(std::io::ErrorKind::ConnectionReset));
        assert_eq!(rest, expected, "{front:?}");
    }
}

/// A WebSocket over HTTP/2 (RFC 8441).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_an_extended_connect_is_waited_for_and_cut_at_the_deadline() {
    let gate = Gate::new();
    gate.open();
    let grace = Duration::from_millis(1500);
    let terminator = Terminator::builder()
        .grace_period(grace)
        .stall_timeout(Duration::from_millis(200))
        .build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().enable_connect_protocol();
    tokio::spawn(terminator.serve(listener, tunnels(&gate)).http(builder));

    let request = http::Request::builder()
        .method(Method::CONNECT)
        .uri("http://localhost/chat");
    let mut request = request.body(()).expect("a request");
    let protocol = h2::ext::Protocol::from_static("websocket");
    request.extensions_mut().insert(protocol);
    let mut tunnel = Tunnel::open(&Target::Tcp(addr), request).await;
    tunnel.echo(b"before").await;

    let begin = Instant::now();
    let mut ended = terminator.terminate();
    let early = tokio::time::timeout(Duration::from_millis(500), &mut ended).await;
    assert!(early.is_err(), "not waited for: {early:?}");
    tunnel.echo(b"after a while").await;
    tunnel.cut().await;
    let report = within(SOON, "the end", ended).await;
    promised(&report, grace);
    assert_cut(FrontEnd::Serve, begin.elapsed(), grace);
    assert_eq!(report.forced, 1, "{report}");
    assert_eq!(report.stragglers.len(), 1, "it is to be named: {report}");
    let straggler = &report.stragglers[0];
    assert_eq!(straggler.protocol, Protocol::Http2, "{report}");
    let named = (straggler.method.as_deref(), straggler.path.as_deref());
    assert_eq!(named.0, Some("CONNECT"), "{report}");
    assert!(named.1.is_some(), "{report}");
}

// ===== cut at the deadline =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_an_upgraded_connection_that_nobody_touches_is_cut_at_the_deadline() {
    let grace = Duration::from_millis(300);
    each(FrontEnd::all(), async |front| {
        let (terminator, server, _) = serve(front, grace).await;
        let mut client = upgraded(&server, "/upgrade-held").await;
        let begin = Instant::now();
        let ended = terminator.terminate();
        let (client, took) = blocking(move || {
            client.expect_reset_or_eof();
            (client, begin.elapsed())
        })
        .await;
        assert_cut(front, took, grace);
        let report = within(BOUND, "the end", ended).await;
        promised(&report, grace);
        assert_cut(front, begin.elapsed(), grace);
        if server.addr.is_some() {
            assert_eq!(open_fds_to(server.port()), 0, "{front:?}: file descriptors");
        }
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        assert_eq!(report.connections(), 1, "{front:?}: {report}");
        assert_eq!(report.unresponsive, 0, "{front:?}: {report}");
        assert!(!report.is_clean());
        let straggler = &report.stragglers[0];
        assert_eq!(
            straggler.protocol,
            Protocol::Upgraded,
            "{front:?}: {report}"
        );
        drop(client);
    });
}

/// The stream talks when the deadline comes: both sides learn of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_an_upgraded_connection_in_use_is_cut_at_the_deadline() {
    let grace = Duration::from_millis(300);
    each(FrontEnd::all(), async |front| {
        let (terminator, server, _) = serve(front, grace).await;
        let client = upgraded(&server, "/upgrade").await;
        let begin = Instant::now();
        let ended = terminator.terminate();
        let took = blocking(move || {
            let mut socket = client.into_inner();
            let bounded = socket.set_read_timeout(Some(BOUND));
            bounded.expect("sockets take a read timeout");
            // Talks for as long as it is answered.
            let mut buffer = [0; 64];
            while socket.write_all(b"ping").is_ok() {
                match socket.read(&mut buffer) {
                    Ok(1..) => assert!(begin.elapsed() < BOUND, "never cut"),
                    Ok(0) | Err(_) => break,
                }
            }
            begin.elapsed()
        })
        .await;
        assert_cut(front, took, grace);
        let report = within(BOUND, "the end", ended).await;
        promised(&report, grace);
        assert_cut(front, begin.elapsed(), grace);
        assert_eq!(report.forced, 1, "{front:?}: {report}");
    });
}

// ===== getting the IO back =====

/// What [`taking`] gives to the test.
type Taken<Io> = (TrackedIo<Io>, Bytes);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_downcast_gives_the_io_and_the_bytes_read_ahead() {
    for front in [FrontEnd::Serve, FrontEnd::OwnLoopAuto, FrontEnd::HyperServe] {
        downcasts::<TcpStream, UnixStream>(front).await;
    }
    downcasts::<UnixStream, TcpStream>(FrontEnd::ServeUnix).await;
}

async fn downcasts<Io, Other>(front: FrontEnd)
where
    Io: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
    Other: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let terminator = Terminator::builder()
        .grace_period(Duration::from_secs(30))
        .build();
    let (router, mut taken) = taking::<Io, Other>();
    let server = start(front, &terminator, router).await;
    let mut client = server.connect();
    // In one write, so that hyper reads it together with the head.
    client.send(
        "GET /take HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nread ahead",
    );
    let (mut io, ahead) = within(BOUND, "the IO", taken.recv()).await.expect("sent");
    assert_eq!(ahead, "read ahead", "{front:?}");
    if matches!(front, FrontEnd::Serve) {
        // An answer does not wait for the acknowledgment of the one before.
        let nodelay = io.with(|tcp| SockRef::from(tcp).tcp_nodelay());
        assert!(nodelay.expect("it is open").expect("a TCP option"));
    }
    client = blocking(move || {
        assert_switches(&client.read_response_headers());
        client.send(b"ping");
        client
    })
    .await;
    let mut got = [0; 4];
    within(BOUND, "a ping", io.read_exact(&mut got))
        .await
        .expect("reads");
    assert_eq!(&got, b"ping", "{front:?}");
    within(BOUND, "a pong", io.write_all(b"pong"))
        .await
        .expect("writes");
    let client = blocking(move || {
        assert_eq!(client.read_exact(4), b"pong");
        client
    })
    .await;

    // It is still tracked: counted, waited for, and let go when dropped.
    assert_eq!(terminator.stats().upgraded, 1, "{front:?}");
    let ended = terminator.terminate();
    waited_for(&terminator, front).await;
    drop(io);
    let report = within(SOON, "the end", ended).await;
    assert_eq!(report.upgraded, 1, "{front:?}: {report}");
    drop(client);
}

/// What is below TLS; what was read ahead is what was decrypted.
#[cfg(feature = "rustls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_downcast_works_over_tls() {
    each(
        [FrontEnd::ServeTls, FrontEnd::OwnLoopAutoTls],
        async |front| {
            let terminator = Terminator::builder()
                .grace_period(Duration::from_secs(30))
                .build();
            let (router, mut taken) = taking::<TcpStream, UnixStream>();
            let server = start(front, &terminator, router).await;
            let mut client = server.connect();
            let ahead = "read ahead".repeat(3000);
            client.send(format!(
            "GET /take HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n{ahead}"
        ));
            let (io, read) = within(BOUND, "the IO", taken.recv()).await.expect("sent");
            assert!(
                !read.is_empty() && ahead.as_bytes().starts_with(&read),
                "{front:?}"
            );
            let client = blocking(move || {
                assert_switches(&client.read_response_headers());
                client
            })
            .await;
            assert_eq!(terminator.stats().upgraded, 1, "{front:?}");
            let ended = terminator.terminate();
            waited_for(&terminator, front).await;
            let tcp = io.into_inner().expect("it is open");
            if matches!(front, FrontEnd::ServeTls) {
                assert!(tcp.nodelay().expect("a TCP option"));
            }
            let report = within(SOON, "the end", ended).await;
            assert_eq!(report.left, 1, "{front:?}: {report}");
            drop((client, tcp));
        },
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_an_io_taken_out_during_the_drain_leaves_the_count_and_lives_on() {
    each(
        [FrontEnd::Serve, FrontEnd::OwnLoopAuto, FrontEnd::HyperServe],
        async |front| {
            let (_terminator, report) = leaves(front, true).await;
            assert_eq!(report.left, 1, "{front:?}: {report}");
            assert_eq!(report.connections(), 1, "{front:?}: {report}");
            assert!(report.is_clean(), "{front:?}: {report}");
        },
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_an_io_taken_out_before_the_drain_is_no_longer_counted_and_lives_on() {
    each(
        [FrontEnd::Serve, FrontEnd::OwnLoopAuto, FrontEnd::HyperServe],
        async |front| {
            let (_terminator, report) = leaves(front, false).await;
            assert_eq!(report.connections(), 0, "{front:?}: {report}");
            assert!(report.is_clean(), "{front:?}: {report}");
        },
    );
}

async fn leaves(front: FrontEnd, during_the_drain: bool) -> (Terminator, Report) {
    let terminator = Terminator::builder()
        .grace_period(Duration::from_secs(30))
        .build();
    let (router, mut taken) = taking::<TcpStream, UnixStream>();
    let server = start(front, &terminator, router).await;
    let mut client = server.connect();
    client.get_upgrade("/take");
    let (io, ahead) = within(BOUND, "the IO", taken.recv()).await.expect("sent");
    assert!(ahead.is_empty());
    client = blocking(move || {
        assert_switches(&client.read_response_headers());
        client
    })
    .await;
    let mut io: TcpStream = if during_the_drain {
        drop(terminator.terminate());
        waited_for(&terminator, front).await;
        io.into_inner().expect("not closed")
    } else {
        let io = io.into_inner().expect("not closed");
        // The connection's task may be about to end.
        within(SOON, "an empty count", gone(&terminator)).await;
        io
    };
    let report = within(SOON, "the end", terminator.terminate()).await;
    assert_eq!(terminator.phase(), Phase::Terminated);
    assert_eq!(terminator.stats().connections, 0, "{front:?}");

    client = blocking(move || {
        client.send(b"ping");
        client
    })
    .await;
    let mut got = [0; 4];
    within(BOUND, "a ping", io.read_exact(&mut got))
        .await
        .expect("reads");
    assert_eq!(&got, b"ping", "{front:?}");
    within(BOUND, "a pong", io.write_all(b"pong"))
        .await
        .expect("writes");
    drop(io);
    blocking(move || {
        assert_eq!(client.read_exact(4), b"pong");
        client.expect_eof();
    })
    .await;
    (terminator, report)
}

// ===== detached =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_a_detached_connection_does_not_hold_the_drain() {
    let mut it = OwnLoop::start().await;
    let (mut scrape, connection) = it.connect("/slow").await;
    it.gate.wait_entered_async(1).await;
    connection.detach();
    assert_eq!(it.terminator.stats().connections, 1, "it is still tracked");
    let begin = Instant::now();
    let report = within(BOUND, "the end", it.terminator.terminate()).await;
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_eq!((report.detached, report.forced), (1, 0), "{report}");
    assert_eq!(report.connections(), 1, "{report}");
    assert!(report.is_clean(), "{report}");
    assert_eq!(open_fds_to(it.port), 0, "it was closed");
    // An answer may come, as for any request at the end; then it is over.
    blocking(move || {
        let _ = scrape.try_read_response();
        scrape.expect_reset_or_eof();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_a_detached_connection_lives_while_others_drain() {
    let mut it = OwnLoop::start().await;
    let (mut slow, _) = it.connect("/slow").await;
    it.gate.wait_entered_async(1).await;
    let mut probe = it.client();
    probe.get_upgrade("/upgrade");
    let connection = it.accepted().await;
    connection.detach();
    let mut probe = blocking(move || {
        assert_switches(&probe.read_response_headers());
        probe
    })
    .await;

    let ended = it.terminator.terminate();
    for _ in 0..3 {
        probe = echo(probe, b"while others drain").await;
    }
    waited_for(&it.terminator, FrontEnd::OwnLoopAuto).await;
    it.gate.open();
    blocking(move || {
        let response = slow.read_response();
        assert_eq!(response.text(), "slow");
        assert!(response.says_close(), "{response:?}");
        slow.expect_eof();
    })
    .await;
    let report = within(SOON, "the end", ended).await;
    assert_eq!((report.detached, report.finished), (1, 1), "{report}");
    assert!(report.is_clean(), "{report}");
    blocking(move || probe.expect_reset_or_eof()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_detaching_during_the_drain_ends_it() {
    let mut it = OwnLoop::start().await;
    let (_slow, connection) = it.connect("/slow").await;
    it.gate.wait_entered_async(1).await;
    let ended = it.terminator.terminate();
    waited_for(&it.terminator, FrontEnd::OwnLoopAuto).await;
    connection.detach();
    let report = within(SOON, "the end", ended).await;
    assert_eq!((report.detached, report.forced), (1, 0), "{report}");
}

// ===== what they share =====

/// The drain has begun, and does not end by itself: time is the subject.
async fn waited_for(terminator: &Terminator, front: FrontEnd) {
    within(SOON, "the drain", terminator.reached(Phase::Draining)).await;
    time_passes_async(PAST_SETTLE).await;
    let ended = terminator.terminated().now_or_never();
    assert!(ended.is_none(), "{front:?}: not waited for: {ended:?}");
}

async fn serve(front: FrontEnd, grace: Duration) -> (Terminator, Server, Gate) {
    let gate = Gate::new();
    let terminator = Terminator::builder().grace_period(grace).build();
    let router = app(App {
        gate: gate.clone(),
        terminator: None,
    });
    let server = start(front, &terminator, router).await;
    (terminator, server, gate)
}

/// A connection that has left HTTP, and whose stream is in the hands of its task.
async fn upgraded(server: &Server, path: &'static str) -> RawClient {
    let mut client = server.connect();
    blocking(move || {
        client.get_upgrade(path);
        assert_switches(&client.read_response_headers());
        client
    })
    .await
}

#[track_caller]
fn assert_switches(head: &RawResponse) {
    assert_eq!(head.status, 101, "{head:?}");
    assert_eq!(head.header("upgrade"), Some("echo"), "{head:?}");
    let connection = head.header("connection").unwrap_or_default();
    assert!(
        connection.to_ascii_lowercase().contains("upgrade"),
        "{head:?}"
    );
    assert!(!head.says_close(), "{head:?}");
}

async fn echo(mut client: RawClient, word: &'static [u8]) -> RawClient {
    blocking(move || {
        client.send(word);
        assert_eq!(client.read_exact(word.len()), word);
        client
    })
    .await
}

#[track_caller]
fn assert_cut(front: FrontEnd, took: Duration, grace: Duration) {
    // The clocks on both sides are the same, the calls are not made at the same moment.
    let early = grace.saturating_sub(Duration::from_millis(5));
    assert!(
        took >= early,
        "{front:?}: before the deadline of {grace:?}: {took:?}"
    );
    measured(
        took.saturating_sub(grace),
        LATE,
        &format!("{front:?}: after the deadline"),
    );
}

/// Answers `CONNECT`, on HTTP/2 also the extended one, with an echo.
fn tunnels(gate: &Gate) -> Router {
    async fn tunnel(Extension(gate): Extension<Gate>, mut request: Request) -> Response {
        if request.method() != Method::CONNECT {
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
        gate.enter().await;
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            if let Ok(io) = upgraded.await {
                let (mut from, mut to) = tokio::io::split(TokioIo::new(io));
                let _ = tokio::io::copy(&mut from, &mut to).await; // cut at the deadline, perhaps
                let _ = to.shutdown().await;
            }
        });
        StatusCode::OK.into_response()
    }
    Router::new()
        .fallback(tunnel)
        .layer(Extension(gate.clone()))
}

/// `/take` is upgraded, and what [`TrackedIo::downcast`] gives is sent to the test.
fn taking<Io, Other>() -> (Router, mpsc::UnboundedReceiver<Taken<Io>>)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Other: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (give, taken) = mpsc::unbounded_channel();
    let take = move |mut request: Request| {
        let give = give.clone();
        async move {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let upgraded = upgraded.await.expect("the 101 goes out");
                let Err(upgraded) = TrackedIo::<Other>::downcast(upgraded) else {
                    panic!("it is of another type");
                };
                let Ok(parts) = TrackedIo::<Io>::downcast(upgraded) else {
                    panic!("it is of this type");
                };
                let _ = give.send(parts); // the test has failed already
            });
            let names = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")];
            (StatusCode::SWITCHING_PROTOCOLS, names)
        }
    };
    (Router::new().route("/take", get(take)), taken)
}

/// A user's accept loop that hands out its connections.
struct OwnLoop {
    terminator: Terminator,
    gate: Gate,
    port: u16,
    target: Target,
    connections: mpsc::UnboundedReceiver<Connection>,
}

impl OwnLoop {
    async fn start() -> Self {
        let terminator = Terminator::builder()
            .grace_period(Duration::from_secs(30))
            .build();
        let gate = Gate::new();
        let router = app(App {
            gate: gate.clone(),
            terminator: None,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let mut listener = terminator.listen(listener);
        let (give, connections) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            while let Some((io, _)) = listener.accept().await {
                let connection = io.connection();
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(connection.serve(&builder, io, service));
                let _ = give.send(connection); // the test has ended
            }
        });
        Self {
            terminator,
            gate,
            port: addr.port(),
            target: Target::Tcp(addr),
            connections,
        }
    }

    fn client(&self) -> RawClient {
        RawClient::connect(&self.target)
    }

    async fn accepted(&mut self) -> Connection {
        let accepted = within(BOUND, "a connection", self.connections.recv()).await;
        accepted.expect("the loop goes on")
    }

    async fn connect(&mut self, path: &str) -> (RawClient, Connection) {
        let client = self.client();
        client.get(path);
        (client, self.accepted().await)
    }
}

/// One stream of an HTTP/2 connection of its own.
struct Tunnel {
    to: h2::SendStream<Bytes>,
    from: h2::RecvStream,
    // Without it, it would be the client who ends the connection.
    sender: h2::client::SendRequest<Bytes>,
}

impl Tunnel {
    async fn open(target: &Target, request: http::Request<()>) -> Self {
        let opened = match target {
            Target::Tcp(addr) => {
                let io = TcpStream::connect(addr).await.expect("connects");
                within(BOUND, "a tunnel", Self::over(io, request)).await
            }
            Target::Tls(_) => unreachable!("tunnels are opened in plain"),
            Target::Unix(path) => {
                let io = UnixStream::connect(path).await.expect("connects");
                within(BOUND, "a tunnel", Self::over(io, request)).await
            }
        };
        opened.unwrap_or_else(|e| panic!("no tunnel to {target:?}: {e}"))
    }

    async fn over<Io>(io: Io, request: http::Request<()>) -> Result<Self, h2::Error>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = h2::client::handshake(io).await?;
        tokio::spawn(connection);
        let extended = request.extensions().get::<h2::ext::Protocol>().is_some();
        // Its SETTINGS tell, which come when they come.
        while extended && !sender.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        Self::by(sender, request).await
    }

    async fn by(
        sender: h2::client::SendRequest<Bytes>,
        request: http::Request<()>,
    ) -> Result<Self, h2::Error> {
        let mut sender = sender.ready().await?;
        let (response, to) = sender.send_request(request, false)?;
        let response = response.await?;
        assert_eq!(response.status(), StatusCode::OK);
        Ok(Self {
            to,
            from: response.into_body(),
            sender,
        })
    }

    async fn echo(&mut self, word: &'static [u8]) {
        self.to
            .send_data(Bytes::from_static(word), false)
            .unwrap_or_else(|e| panic!("sending {word:?}: {e}"));
        let mut got = Vec::new();
        while got.len() < word.len() {
            let part = within(BOUND, "an echo", self.from.data()).await;
            let part = part.unwrap_or_else(|| panic!("the tunnel has ended before {word:?}"));
            let part = part.unwrap_or_else(|e| panic!("waiting for {word:?}: {e}"));
            let released = self.from.flow_control().release_capacity(part.len());
            released.expect("no more than what came");
            got.extend_from_slice(&part);
        }
        assert_eq!(got, word);
    }

    async fn end(mut self) {
        self.to.send_data(Bytes::new(), true).expect("sends");
        let end = async {
            while let Some(part) = self.from.data().await {
                let part = part.expect("no reset");
                assert!(part.is_empty(), "{part:?} comes before the end");
            }
        };
        within(BOUND, "the end of the tunnel", end).await;
    }

    async fn cut(mut self) {
        let end = within(BOUND, "the end of the tunnel", self.from.data()).await;
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    }
}
