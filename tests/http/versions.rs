//! `http1_only` and `http2_only` of the builder are honoured, by ALPN as well (C8).

#![cfg(all(unix, feature = "serve"))]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use http_terminator::{HttpBuilder, Report, Terminator, TerminatorBuilder, TowerToHyper};

use crate::support::wait::{until_async, until_stats_async};
use crate::support::{
    App, BOUND, Gate, PREFACE, RawClient, RawH2, ReadEnd, Target, app, blocking, each, h2_connect,
    kind, within,
};

type Builder = auto::Builder<TokioExecutor>;

fn builder() -> Builder {
    auto::Builder::new(TokioExecutor::new())
}

fn patient() -> TerminatorBuilder {
    Terminator::builder().grace_period(BOUND * 3)
}

#[derive(Clone, Copy, Debug)]
enum Front {
    Serve,
    OwnLoop,
    /// These two with an [`HttpBuilder`] of the same settings.
    ServeBuilder,
    OwnLoopBuilder,
    /// hyper by itself, for comparison.
    Bare,
}

async fn start(front: Front, terminator: &Terminator, builder: Builder) -> Target {
    let router = app(App::default());
    start_with(front, terminator, builder, router).await
}

async fn start_with(
    front: Front,
    terminator: &Terminator,
    builder: Builder,
    router: Router,
) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    match front {
        Front::Serve => {
            tokio::spawn(terminator.serve(listener, router).http(builder));
        }
        Front::OwnLoop => {
            let mut listener = terminator.listen(listener);
            tokio::spawn(async move {
                while let Some((io, _)) = listener.accept().await {
                    let connection = io.connection();
                    let service = TowerToHyperService::new(router.clone());
                    tokio::spawn(connection.serve(&builder, io, service));
                }
            });
        }
        Front::ServeBuilder => {
            let builder = same(&builder);
            tokio::spawn(terminator.serve(listener, router).builder(builder));
        }
        Front::OwnLoopBuilder => {
            let builder = same(&builder);
            let mut listener = terminator.listen(listener);
            tokio::spawn(async move {
                while let Some((io, _)) = listener.accept().await {
                    let connection = io.connection();
                    let service = TowerToHyper::new(router.clone());
                    tokio::spawn(connection.serve(&builder, io, service));
                }
            });
        }
        Front::Bare => {
            tokio::spawn(async move {
                while let Ok((io, _)) = listener.accept().await {
                    let io = hyper_util::rt::TokioIo::new(io);
                    let service = TowerToHyperService::new(router.clone());
                    let served = builder.serve_connection(io, service).into_owned();
                    tokio::spawn(served);
                }
            });
        }
    }
    Target::Tcp(addr)
}

fn same(builder: &Builder) -> HttpBuilder {
    let mut same = HttpBuilder::new(TokioExecutor::new());
    same.http2().enable_connect_protocol();
    match (builder.is_http1_available(), builder.is_http2_available()) {
        (true, false) => same.http1_only(),
        (false, true) => same.http2_only(),
        _ => same,
    }
}

const OURS: [Front; 4] = [
    Front::Serve,
    Front::OwnLoop,
    Front::ServeBuilder,
    Front::OwnLoopBuilder,
];

async fn ended(terminator: &Terminator) -> Report {
    within(BOUND, "the end", terminator.terminate()).await
}

/// All bytes that come for these, until the end.
async fn told(target: &Target, bytes: &'static [u8]) -> Vec<u8> {
    let target = target.clone();
    blocking(move || {
        let client = RawClient::connect(&target);
        client.send(bytes);
        let socket = client.into_inner();
        socket
            .set_read_timeout(Some(BOUND))
            .expect("a read timeout");
        let (mut got, mut part) = (Vec::new(), [0; 4096]);
        loop {
            match std::io::Read::read(&mut &socket, &mut part) {
                Ok(0) => return got,
                Ok(n) => got.extend_from_slice(&part[..n]),
                // As any server that closes with bytes unread.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return got,
                Err(error) => panic!("{error} after {got:?}"),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_what_is_not_spoken_is_refused_as_bare_hyper_does() {
    const HTTP1: &[u8] = b"GET /quick HTTP/1.1\r\nhost: a\r\nx: 1\r\n\r\n";
    let terminator = patient().build();
    for (which, builder) in [
        ("HTTP/1", builder().http1_only()),
        ("HTTP/2", {
            let mut builder = builder();
            builder.http2().enable_connect_protocol(); // as `same` does
            builder.http2_only()
        }),
    ] {
        let bare = start(Front::Bare, &terminator, builder.clone()).await;
        for front in OURS {
            let target = start(front, &terminator, builder.clone()).await;
            for bytes in [
                PREFACE,
                b"PRI * HTTP/2.0\r\n\r\n",
                HTTP1,
                b"nonsense, and more\r\n\r\n",
            ] {
                if which == "HTTP/1" && bytes == HTTP1 || which == "HTTP/2" && bytes == PREFACE {
                    continue;
                }
                if which == "HTTP/2" && PREFACE.starts_with(bytes) {
                    continue;
                }
                let undated = |answer: Vec<u8>| {
                    let answer = String::from_utf8_lossy(&answer).into_owned();
                    let lines = answer.lines().filter(|line| !line.starts_with("date:"));
                    lines.map(str::to_owned).collect::<Vec<_>>()
                };
                let (expected, got) = (told(&bare, bytes).await, told(&target, bytes).await);
                let what = format!("{front:?} {which} {:?}", String::from_utf8_lossy(bytes));
                if which == "HTTP/2" {
                    // Its own preface; ours may have given a window as well.
                    assert!(
                        !expected.is_empty() && got.starts_with(&expected),
                        "{what}: {got:?}"
                    );
                } else {
                    assert_eq!(undated(got), undated(expected), "{what}");
                }
            }
        }
    }
    assert!(ended(&terminator).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_http1_only_speaks_http1_with_upgrades() {
    each(OURS, async |front| {
        let terminator = patient().build();
        let target = start(front, &terminator, builder().http1_only()).await;
        let client = blocking(move || {
            let mut client = RawClient::connect(&target);
            assert_eq!(client.fetch("/quick").text(), "ok");
            client.post("/echo", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
            assert_eq!(
                client.read_response().text(),
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            );
            let mut upgraded = RawClient::connect(&target);
            upgraded.get_upgrade("/upgrade");
            assert_eq!(upgraded.read_response().status, 101);
            upgraded.send("hello");
            assert_eq!(upgraded.read_exact(5), b"hello");
            drop(upgraded);
            client
        })
        .await;
        let report = ended(&terminator).await;
        assert_eq!(report.idle, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
        drop(client);
    });
}

/// Also of a first request in pieces, each of which could be the preface's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_http1_only_answers_half_a_head_in_the_drain() {
    each(OURS, async |front| {
        let terminator = patient().build();
        let target = start(front, &terminator, builder().http1_only()).await;
        let (client, silent) = (RawClient::connect(&target), RawClient::connect(&target));
        client.send("P");
        until_stats_async(&terminator, "accepted and read", |it| {
            it.busy > 0 && it.connections >= 2
        })
        .await;
        let termination = terminator.terminate();
        let (mut client, mut silent) = (client, silent);
        blocking(move || {
            silent.expect_eof();
            client.send("OST /echo HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi");
            let response = client.read_response();
            assert_eq!((response.text(), response.says_close()), ("hi", true));
            client.expect_eof();
        })
        .await;
        let report = within(BOUND, "the end", termination).await;
        let counts = (report.idle, report.finished, report.connections());
        assert_eq!(counts, (1, 1, 2), "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_http2_only_speaks_http2_first_and_ends_well() {
    each(OURS, async |front| {
        let terminator = patient().build();
        let gate = Gate::new();
        let router = app(App {
            gate: gate.clone(),
            terminator: None,
        });
        let target = start_with(front, &terminator, builder().http2_only(), router).await;
        let mut silent = RawH2::connect_silent(&target);
        // A server's preface is sent without waiting for the client's (RFC 9113 section 3.4).
        silent = blocking(move || {
            assert_eq!(silent.read_frame().kind, kind::SETTINGS);
            silent
        })
        .await;
        let mut client = h2_connect(&target).await;
        let (status, body) = client.get("/quick").await;
        assert_eq!((status.as_u16(), &body[..]), (200, &b"ok"[..]));
        let slow = client.start("/slow").await;
        gate.wait_entered_async(1).await;
        let termination = terminator.terminate();
        blocking(move || silent.expect_eof_within(BOUND)).await;
        gate.open();
        assert_eq!(slow.await.expect("it is answered").status(), 200);
        within(BOUND, "the client's end", client.closed())
            .await
            .expect("without an error");
        let report = within(BOUND, "the end", termination).await;
        let counts = (report.idle, report.finished, report.connections());
        assert_eq!(counts, (1, 1, 2), "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_http2_only_takes_a_preface_in_pieces_and_bounds_half_of_one() {
    each(OURS, async |front| {
        let stall = std::time::Duration::from_millis(300);
        let terminator = patient().stall_timeout(stall).build();
        let target = start(front, &terminator, builder().http2_only()).await;
        let mut client = RawH2::connect_silent(&target);
        client.send(&PREFACE[..1]);
        let half = RawH2::connect_silent(&target);
        half.send(&PREFACE[..20]);
        until_stats_async(&terminator, "both read", |it| it.busy >= 2).await;
        let client = blocking(move || {
            client.send(&PREFACE[1..23]);
            client.send(&PREFACE[23..]);
            client.send_frame(kind::SETTINGS, 0, 0, &[]);
            client.get("/quick", 1);
            assert_eq!(client.read_until(kind::DATA).payload, b"ok");
            client
        })
        .await;
        drop(client);
        let report = ended(&terminator).await;
        assert_eq!(report.stalled, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
        drop(half);
    });
}

/// The future's own word of it.
#[tokio::test]
async fn g20_http2_only_ends_an_idle_connection_without_an_error() {
    for ours in [false, true] {
        let terminator = patient().build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let mut listener = terminator.listen(listener);
        let client = RawClient::connect(addr);
        let (io, _) = listener.accept().await.expect("serving");
        drop(listener);
        let service = TowerToHyperService::new(app(App::default()));
        let served = if ours {
            let builder = HttpBuilder::default().http2_only();
            tokio::spawn(io.connection().serve(&builder, io, service))
        } else {
            let builder = builder().http2_only();
            tokio::spawn(io.connection().serve(&builder, io, service))
        };
        let report = ended(&terminator).await;
        assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
        let end = served.await.expect("no panic");
        assert!(end.is_ok(), "ours {ours}: {end:?}");
        drop(client);
    }
}

/// Extended CONNECT, which needs no upgrade of hyper's builder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_http2_only_keeps_extended_connect() {
    use axum::extract::ws::WebSocketUpgrade;
    each(OURS, async |front| {
        let terminator = patient().build();
        let mut builder = builder().http2_only();
        builder.http2().enable_connect_protocol();
        let router = Router::new().route(
            "/ws",
            axum::routing::any(async |ws: WebSocketUpgrade| {
                ws.on_upgrade(async |mut socket| {
                    while let Some(Ok(message)) = socket.recv().await {
                        if socket.send(message).await.is_err() {
                            break;
                        }
                    }
                })
            }),
        );
        let target = start_with(front, &terminator, builder, router).await;
        let Target::Tcp(addr) = target else {
            unreachable!("it is plain")
        };
        let io = tokio::net::TcpStream::connect(addr)
            .await
            .expect("connects");
        let (sender, connection) = h2::client::handshake(io).await.expect("a handshake");
        tokio::spawn(connection);
        let mut sender = sender.ready().await.expect("ready");
        until_async("its SETTINGS", || {
            sender.is_extended_connect_protocol_enabled()
        })
        .await;
        let request = http::Request::builder()
            .method("CONNECT")
            .uri("http://localhost/ws")
            .header("sec-websocket-version", "13")
            .extension(h2::ext::Protocol::from_static("websocket"))
            .body(())
            .expect("a request");
        let (response, mut sending) = sender.send_request(request, false).expect("sent");
        let response = within(BOUND, "an answer", response).await.expect("one");
        assert_eq!(response.status(), 200, "{front:?}");
        // A masked text frame, mask zero.
        let frame: &[u8] = b"\x81\x82\0\0\0\0hi";
        sending.send_data(frame.into(), false).expect("sent");
        let mut body = response.into_body();
        let echo = within(BOUND, "an echo", body.data()).await;
        assert_eq!(&echo.expect("data").expect("no error")[..], b"\x81\x02hi");
        drop((sending, body, sender));
        assert!(ended(&terminator).await.is_clean());
    });
}

// ===== ALPN =====

#[cfg(feature = "rustls")]
mod alpn {
    use super::*;
    use crate::support::{tls_acceptor, tls_client};

    /// What is chosen of that which the client offers, in its order; `None` if it is refused.
    async fn chosen(
        addr: std::net::SocketAddr,
        offered: &'static [&'static str],
    ) -> Option<String> {
        blocking(move || {
            let mut client = RawClient::connect(addr);
            client.shake_hands(tls_client(offered)).ok()?;
            // A server that refuses says so right after what looks like the end of the handshake.
            Some(client.alpn().unwrap_or_default())
        })
        .await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g20_alpn_offers_what_the_builder_allows() {
        const BOTH: &[&str] = &["h2", "http/1.1"];
        type Case = (
            Builder,
            &'static [&'static str],
            &'static [&'static str],
            Option<&'static str>,
        );
        let any = builder;
        let http1 = || builder().http1_only();
        let http2 = || builder().http2_only();
        let cases: &[Case] = &[
            // builder, the acceptor's list, the client's, what is chosen
            (any(), &[], BOTH, Some("h2")),
            (http1(), &[], BOTH, Some("http/1.1")),
            (http1(), &[], &["h2"], None),
            (http2(), &[], BOTH, Some("h2")),
            (http2(), &[], &["http/1.1"], None),
            (any(), &["http/1.1", "h2"], BOTH, Some("http/1.1")),
            (http1(), &["h2", "http/1.1"], BOTH, Some("http/1.1")),
            (http2(), &["http/1.1", "h2"], BOTH, Some("h2")),
            (
                http2(),
                &["http/1.0", "acme-tls/1", "h2"],
                &["h2", "acme-tls/1"],
                Some("acme-tls/1"),
            ),
            // Nothing would be left.
            (http1(), &["h2"], BOTH, Some("h2")),
        ];
        for (builder, list, offered, expected) in cases {
            for tls_first in [false, true] {
                let terminator = patient().build();
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                let addr = listener.local_addr().expect("bound");
                let server = terminator.serve(listener, app(App::default()));
                let acceptor = tls_acceptor(list);
                let server = if tls_first {
                    server.tls(acceptor).http(builder.clone())
                } else {
                    server.http(builder.clone()).tls(acceptor)
                };
                tokio::spawn(server);
                let got = chosen(addr, offered).await;
                let (http1, http2) = (builder.is_http1_available(), builder.is_http2_available());
                assert_eq!(
                    got.as_deref(),
                    *expected,
                    "http1 {http1} http2 {http2} {list:?} {offered:?}, tls first: {tls_first}"
                );
                assert!(ended(&terminator).await.is_clean());
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g20_either_version_alone_works_over_tls() {
        either_alone(false).await;
        either_alone(true).await;
    }

    async fn either_alone(ours: bool) {
        let terminator = patient().build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = Target::Tls(listener.local_addr().expect("bound"));
        let server = terminator.serve(listener, app(App::default()));
        tokio::spawn(server.http(builder().http1_only()).tls(tls_acceptor(&[])));
        let mut client = blocking(move || {
            let mut client = RawClient::connect(&target);
            assert_eq!(client.fetch("/quick").text(), "ok");
            client
        })
        .await;

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = Target::Tls(listener.local_addr().expect("bound"));
        let server = terminator.serve(listener, app(App::default()));
        if ours {
            let builder = HttpBuilder::default().http2_only();
            tokio::spawn(server.builder(builder).tls(tls_acceptor(&[])));
        } else {
            tokio::spawn(server.http(builder().http2_only()).tls(tls_acceptor(&[])));
        }
        let h2 = h2_connect(&target).await;
        assert_eq!(h2.get("/quick").await.0, 200);
        let mut silent = RawH2::connect_silent(&target);
        let termination = terminator.terminate();
        let end = blocking(move || {
            client.expect_eof();
            loop {
                match silent.try_read_frame() {
                    Ok(_) => {}
                    Err(end) => return end,
                }
            }
        });
        assert_eq!(end.await, ReadEnd::Eof, "with a close_notify");
        let report = within(BOUND, "the end", termination).await;
        assert!(report.is_clean(), "{report}");
    }
}

/// Waits until what was sent has been read, and is known to be half of something.
async fn begun(terminator: &Terminator) {
    until_stats_async(terminator, "read", |it| it.busy > 0).await;
}

/// What it begins with tells the version, in whatever pieces it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_the_version_is_told_by_the_first_bytes_in_any_pieces() {
    let settings: &[u8] = &[0, 0, 0, kind::SETTINGS, 0, 0, 0, 0, 0];
    each(OURS, async |front| {
        for cut in 1..=PREFACE.len() {
            // The client answers nothing.
            let terminator = patient().stall_timeout(Duration::from_millis(20)).build();
            let target = start(front, &terminator, builder()).await;
            let client = RawClient::connect(&target);
            client.send(&PREFACE[..cut]);
            if cut < PREFACE.len() {
                begun(&terminator).await;
            }
            client.send([&PREFACE[cut..], settings].concat());
            let client = blocking(move || {
                let mut client = RawH2::from(client);
                assert_eq!(client.read_frame().kind, kind::SETTINGS);
                client
            })
            .await;
            let report = ended(&terminator).await;
            assert!(report.connections() == 1, "{front:?}, {cut}: {report}");
            drop(client);
        }
        // What only seems to be that, as far as it goes.
        for (begins, goes_on, status) in [
            (
                "P",
                "OST /echo HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi",
                200,
            ),
            ("P", "UT /none HTTP/1.1\r\n\r\n", 404),
            ("PRI", "NT / HTTP/1.1\r\n\r\n", 404),
            ("PRI *", " HTTP/1.1\r\n\r\n", 404),
            ("PRI * HTTP/2.0\r\n", "\r\nno\r\n\r\n", 400),
        ] {
            let terminator = patient().build();
            let target = start(front, &terminator, builder()).await;
            let client = RawClient::connect(&target);
            client.send(begins);
            begun(&terminator).await;
            client.send(goes_on);
            let mut client = client;
            let client = blocking(move || {
                assert_eq!(client.read_response().status, status, "{begins}{goes_on}");
                client
            })
            .await;
            assert!(ended(&terminator).await.is_clean(), "{front:?}, {begins}");
            drop(client);
        }
    });
}

/// Spawns, and counts how often.
#[derive(Clone, Default)]
struct Counting(Arc<AtomicUsize>);

impl<F> hyper::rt::Executor<F> for Counting
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(future);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_any_executor_runs_the_requests_of_http2() {
    for ours in [true, false] {
        let executor = Counting::default();
        let terminator = patient().build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = Target::Tcp(listener.local_addr().expect("bound"));
        let mut listener = terminator.listen(listener);
        let (ours_builder, their_builder) = (
            HttpBuilder::new(executor.clone()),
            auto::Builder::new(executor.clone()),
        );
        tokio::spawn(async move {
            while let Some((io, _)) = listener.accept().await {
                let connection = io.connection();
                let service = TowerToHyper::new(app(App::default()));
                if ours {
                    tokio::spawn(connection.serve(&ours_builder, io, service));
                } else {
                    tokio::spawn(connection.serve(&their_builder, io, service));
                }
            }
        });
        let client = h2_connect(&target).await;
        for n in 1..=3 {
            let (status, body) = client.get("/quick").await;
            assert_eq!((status.as_u16(), &body[..]), (200, &b"ok"[..]));
            assert_eq!(executor.0.load(Ordering::SeqCst), n, "ours: {ours}");
        }
        drop(client);
        let report = ended(&terminator).await;
        assert!(report.is_clean(), "ours: {ours}: {report}");
    }
}
