//! What clients send reaches a report or a log as an escaped method and path, of requests, and in no
//! other way: not what passes on an upgraded stream (G13), not what only looks like a request, not the
//! rest of one. Every test's clients send [`SECRET`], and no line that the crate logs may hold it.
//!
//! The clients block in the test's own thread, which is none of the runtime's two workers.
#![cfg(all(unix, feature = "serve"))]
#![allow(
    unreachable_pub,
    reason = "the support module is shared by several test crates"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests look at the clock and spawn"
)]

mod support;

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;

use http_terminator::{Protocol, Report, Straggler, Terminator};
use support::wait::{busy, idle, time_passes, until, until_read};
use support::{
    App, BOUND, FrontEnd, Gate, RawClient, RawH2, ReadEnd, app, each, kind, start, within,
};

const SECRET: &str = "hunter2";

/// What a client has sent has been read by then.
const QUIET: Duration = Duration::from_millis(50);

// ===== upgraded streams =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_nothing_that_passes_on_an_upgraded_stream_is_named() {
    each(FrontEnd::all_and_tls(), async |front| {
        let terminator = terminator();
        let server = start(front, &terminator, app(App::default())).await;
        let mut client = server.connect();
        client.get_upgrade("/upgrade");
        assert_eq!(client.read_response_headers().status, 101, "{front:?}");
        // In one piece and in two, whole and half.
        for line in [
            "GET /hunter2 HTTP/1.1\r\n\r\n",
            "PASS hunter2\n\n",
            "GET /hunt",
            "er2",
        ] {
            client.send(line);
            assert_eq!(client.read_exact(line.len()), line.as_bytes());
        }
        let what = format!("{front:?}");
        let straggler = forced(&terminator, Some(("GET", "/upgrade")), &what).await;
        assert_eq!(straggler.protocol, Protocol::Upgraded, "{what}");
    });
}

/// The client does not wait for the `101`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_nothing_that_comes_before_the_101_is_named() {
    each(FrontEnd::all_and_tls(), async |front| {
        for open in [true, false] {
            for early in [
                "GET /hunter2 HTTP/1.1\r\n\r\n",
                "GET /hunter2",
                "PASS hunter2\r\n",
            ] {
                let what = format!("{front:?}, {open}, {early:?}");
                let (terminator, gate) = (terminator(), Gate::new());
                let state = App {
                    gate: gate.clone(),
                    ..App::default()
                };
                let server = start(front, &terminator, app(state)).await;
                let mut client = server.connect();
                client.get_upgrade("/upgrade-slow");
                gate.wait_entered(1);
                client.send(early);
                if open {
                    gate.open();
                    assert_eq!(client.read_response_headers().status, 101, "{what}");
                    assert_eq!(client.read_exact(early.len()), early.as_bytes());
                }
                forced(&terminator, Some(("GET", "/upgrade-slow")), &what).await;
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_nothing_that_passes_through_a_tunnel_is_named() {
    let terminator = terminator();
    let target = own_loop(&terminator, |mut request| async move {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let upgraded = upgraded.await.expect("a tunnel");
            let (mut reads, mut writes) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut reads, &mut writes).await;
            pending::<()>().await;
        });
        Ok(Response::new(Empty::<Bytes>::new()))
    })
    .await;
    let mut client = RawClient::connect(target);
    client.send("CONNECT me:hunter2@inside:443 HTTP/1.1\r\nhost: inside:443\r\n\r\n");
    assert_eq!(client.read_response_headers().status, 200);
    let line = "GET /hunter2 HTTP/1.1\r\n\r\n";
    client.send(line);
    assert_eq!(client.read_exact(line.len()), line.as_bytes());
    forced(&terminator, Some(("CONNECT", "inside:443")), "CONNECT").await;
}

// ===== the request in hand =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_the_request_in_hand_is_named_whatever_is_pipelined_behind_it() {
    each(FrontEnd::all_and_tls(), async |front| {
        for (apart, behind) in [
            (true, "GET /next HTTP/1.1\r\nhost: a\r\n\r\n"),
            (true, "GET /next HTT"),
            (
                true,
                "POST /next HTTP/1.1\r\ncontent-length: 9\r\n\r\nhunter2",
            ),
            (false, "GET /next HTTP/1.1\r\nhost: a\r\n\r\n"),
            (false, "GET /next HTT"),
        ] {
            let what = format!("{front:?}, {apart}, {behind:?}");
            let (terminator, gate) = (terminator(), Gate::new());
            let server = start(front, &terminator, slow_app(&gate)).await;
            let client = server.connect();
            let first = "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n";
            if apart {
                client.send(first);
                gate.wait_entered(1);
                client.send(behind);
            } else {
                client.send([first, behind].concat());
                gate.wait_entered(1);
            }
            forced(&terminator, Some(("GET", "/slow")), &what).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_request_is_named_that_came_behind_another() {
    const SLOW: &str = "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n";
    const CHUNKED: &str = "POST /slow HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n";
    const NEXT: &str = "GET /next?hunter2 HTTP/1.1\r\nhost: a\r\n\r\n";
    const POST: &str = "POST /next HTTP/1.1\r\ncontent-length: 9\r\n\r\nhunter2";
    const UPLOAD: &str =
        "POST /next HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n7\r\nhunter2\r\n";
    each(FrontEnd::all_and_tls(), async |front| {
        for next in [NEXT, POST, UPLOAD] {
            let half = next.len() / 3;
            let cases: [(&str, &[&str]); 5] = [
                (SLOW, &[next]),                         // all of it while the first is in hand
                (SLOW, &[&next[..half], &next[half..]]), // the rest, too
                (&[SLOW, next].concat(), &[]),
                (&[SLOW, &next[..half]].concat(), &[&next[half..]]),
                (CHUNKED, &[&["0\r\n\r\n", next].concat()]),
            ];
            for (n, (first, more)) in cases.into_iter().enumerate() {
                for late in [true, false] {
                    let what = format!("{front:?}, {next:?}, case {n}, {late}");
                    let (terminator, gate) = (terminator(), Gate::new());
                    let server = start(front, &terminator, slow_app(&gate)).await;
                    let mut client = server.connect();
                    client.send(first);
                    gate.wait_entered(1);
                    let (now, then) = more.split_at(more.len().min(usize::from(!late)));
                    send_all(&client, now);
                    gate.open();
                    if n == 4 {
                        // Its handler reads the body to its end.
                        send_all(&client, then);
                        assert_eq!(client.read_response().text(), "slow", "{what}");
                    } else {
                        assert_eq!(client.read_response().text(), "slow", "{what}");
                        send_all(&client, then);
                    }
                    gate.wait_entered(2);
                    let method = next.split(' ').next().expect("a word");
                    forced(&terminator, Some((method, "/next")), &what).await;
                }
            }
        }
    });
}

/// Half of the next head came while it was in hand; it is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_request_that_is_over_is_not_named() {
    let (terminator, gate) = (terminator(), Gate::new());
    let server = start(FrontEnd::Serve, &terminator, slow_app(&gate)).await;
    let mut client = server.connect();
    client.get("/slow");
    gate.wait_entered(1);
    client.send("GET /half");
    until_read(client.socket());
    gate.open();
    assert_eq!(client.read_response().text(), "slow");
    let half = |it: &Straggler| it.path.as_deref() != Some("/slow");
    forced_when(&terminator, half, "half").await;
}

// ===== no request, and the rest of one =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_what_does_not_look_like_a_request_is_not_named() {
    each(FrontEnd::all_and_tls(), async |front| {
        for bytes in [
            "PASS hunter2",
            "hunter2",
            "USER hunter2 ",
            "GET http:hunter2",
        ] {
            let what = format!("{front:?}, {bytes:?}");
            let terminator = terminator();
            let server = start(front, &terminator, slow_app(&Gate::new())).await;
            let mut client = server.connect();
            if front.is_tls() {
                // A handshake is busy, too.
                assert_eq!(client.fetch("/quick").text(), "ok", "{what}");
                idle(&terminator, &what);
            }
            client.send(bytes);
            busy(&terminator, &what);
            forced(&terminator, None, &what).await;
        }
    });
}

/// Those that hyper refuses at once: the report does not name them either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_what_is_refused_is_not_named() {
    each(FrontEnd::all(), async |front| {
        let terminator = terminator();
        let server = start(front, &terminator, slow_app(&Gate::new())).await;
        let mut clients = Vec::new();
        for bytes in [
            &b"USER hunter2\r\nPASS hunter2\r\n"[..],
            b"\x16\x03\x01\x02\x00\x01\x00hunter2\r\n\r\n",
            b"{\"password\": \"/hunter2\"}\r\n\r\n",
            b"\r\n\r\n hunter2 /hunter2\r\n\r\n",
        ] {
            let client = server.connect();
            client.send(bytes);
            clients.push(client);
        }
        for client in &mut clients {
            assert_ne!(client.read_to_end(), ReadEnd::Timeout, "{front:?}");
        }
        let report = within(BOUND, "the end", terminator.force()).await;
        assert_secret(&report, &format!("{front:?}"));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_of_half_a_request_line_method_and_path_are_named() {
    let cases: [(&str, &str, Option<&str>); 9] = [
        ("GET /path?hunter2", "GET", Some("/path")),
        ("GET /path#hunter2", "GET", Some("/path")),
        ("GET http://me:hunter2", "GET", None),
        ("GET http://me:hunter2@a/path?hunter2", "GET", Some("/path")),
        (
            "GET http://me:hunter2@a?hunter2 HTTP/1.1\r\n",
            "GET",
            Some("/"),
        ),
        ("OPTIONS * HTTP/1.1\r\nhunter2", "OPTIONS", Some("*")),
        ("CONNECT me:hunter2", "CONNECT", None),
        (
            "CONNECT me:hunter2@a:1 HTTP/1.1\r\n",
            "CONNECT",
            Some("a:1"),
        ),
        (
            "GET /a\u{e9}\u{9b}31m HTTP/1.1\r\n",
            "GET",
            Some("/a\\xc3\\xa9\\xc2\\x9b31m"),
        ),
    ];
    each(FrontEnd::all_and_tls(), async |front| {
        for (bytes, method, path) in cases {
            let what = format!("{front:?}, {bytes:?}");
            let terminator = terminator();
            let server = start(front, &terminator, slow_app(&Gate::new())).await;
            let mut client = server.connect();
            if front.is_tls() {
                // A handshake is busy, too.
                assert_eq!(client.fetch("/quick").text(), "ok", "{what}");
                idle(&terminator, &what);
            }
            client.send(bytes);
            busy(&terminator, &what);
            let is_it =
                |it: &Straggler| (it.method.as_deref(), it.path.as_deref()) == (Some(method), path);
            forced_when(&terminator, is_it, &what).await;
        }
    });
}

/// Those in hand, over both protocols.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_of_a_request_method_and_path_are_named() {
    each(FrontEnd::all_and_tls(), async |front| {
        for (path, shown) in [
            ("/path?hunter2", "/path"),
            ("/a\u{e9}\u{9b}31m", "/a\\xc3\\xa9\\xc2\\x9b31m"),
        ] {
            let what = format!("{front:?}, {path:?}");
            let (terminator, gate) = (terminator(), Gate::new());
            let server = start(front, &terminator, slow_app(&gate)).await;
            let h2 = RawH2::connect(&server.target);
            h2.request("GET", path, 1, true);
            gate.wait_entered(1);
            let straggler = forced(&terminator, Some(("GET", shown)), &what).await;
            drop(h2);
            assert_eq!(straggler.protocol, Protocol::Http2, "{what}");
        }
        let (terminator, gate) = (terminator(), Gate::new());
        let server = start(front, &terminator, slow_app(&gate)).await;
        let client = server.connect();
        client.send("GET http://me:hunter2@a/path?hunter2 HTTP/1.1\r\nhost: a\r\n\r\n");
        gate.wait_entered(1);
        let what = format!("{front:?}");
        forced(&terminator, Some(("GET", "/path")), &what).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_long_path_is_cut() {
    let (terminator, gate) = (terminator(), Gate::new());
    let server = start(FrontEnd::Serve, &terminator, slow_app(&gate)).await;
    let mut sender = support::h2_connect(&server.target).await;
    let path = format!("/{}", "a".repeat(9_000));
    let response = sender.start(&path).await;
    gate.wait_entered(1);
    let is_it = |it: &Straggler| {
        let path = it.path.as_deref().unwrap_or_default();
        path.len() <= 256 && path.starts_with("/aaa")
    };
    forced_when(&terminator, is_it, "a long path").await;
    drop(response);
    let _ = sender.closed().await;
}

// ===== errors =====

/// What a handler or a body fails with may hold what a client has sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_errors_of_handlers_and_bodies_are_not_logged() {
    let failing = tower::service_fn(|request: Request<Incoming>| async move {
        if request.uri().path() == "/handler" {
            return Err(io::Error::other(SECRET));
        }
        let frames = [
            Ok(Frame::data(Bytes::from("hi"))),
            Err(io::Error::other(SECRET)),
        ];
        Ok(Response::new(StreamBody::new(stream::iter(frames))))
    });
    let terminator = terminator();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let served = tokio::spawn(terminator.serve(listener, failing));
    for path in ["/handler", "/body"] {
        let mut client = RawClient::connect(addr);
        client.get(path);
        assert_ne!(client.read_to_end(), ReadEnd::Timeout, "{path}");
        let mut h2 = RawH2::connect(addr);
        h2.get(path, 1);
        h2.read_until(kind::RST_STREAM);
    }
    let report = within(BOUND, "the end", terminator.force()).await;
    assert_secret(&report, "errors");
    within(BOUND, "serve", served).await.expect("no panic");
    let logged = log().iter().any(|line| line.contains("connection failed"));
    assert!(logged, "there is nothing to see");
}

// ===== what several tests do =====

/// All lines that the crate has logged, from any thread.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn terminator() -> Terminator {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Lines);
        tracing::subscriber::set_global_default(subscriber).expect("the only one");
    });
    // Whatever is in hand at the deadline is cut without an answer.
    Terminator::builder().answer_at_deadline(false).build()
}

/// Every request waits at the gate.
fn slow_app(gate: &Gate) -> Router {
    let gate = gate.clone();
    Router::new().fallback(async move |request: axum::extract::Request| {
        let slow = request.uri().path() == "/slow";
        if request.uri().path() == "/quick" {
            return Body::from("ok");
        }
        gate.enter().await;
        if !slow {
            pending::<()>().await;
        }
        let body = request.into_body();
        let read = axum::body::to_bytes(body, 999).await;
        read.expect("a body");
        Body::from("slow")
    })
}

/// An accept loop that serves this.
async fn own_loop<F, R>(terminator: &Terminator, service: F) -> std::net::SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Result<Response<Empty<Bytes>>, Infallible>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let mut listener = terminator.listen(listener);
    tokio::spawn(async move {
        while let Some((io, _)) = listener.accept().await {
            let builder = auto::Builder::new(TokioExecutor::new());
            let service = service_fn(service.clone());
            tokio::spawn(io.connection().serve(&builder, io, service));
        }
    });
    addr
}

fn send_all(client: &RawClient, parts: &[&str]) {
    for part in parts {
        client.send(part);
    }
}

/// [`forced_when`] it would be named so.
async fn forced(terminator: &Terminator, name: Option<(&str, &str)>, what: &str) -> Straggler {
    let is_it = |it: &Straggler| match name {
        Some(name) => it.method.as_deref().zip(it.path.as_deref()) == Some(name),
        None => it.method.is_none() && it.path.is_none(),
    };
    forced_when(terminator, is_it, what).await
}

/// Forces when the only connection would be named so and rests; it is to be named so then. What is
/// named before that, while it is read, is held to be no secret.
async fn forced_when(
    terminator: &Terminator,
    is_it: impl Fn(&Straggler) -> bool,
    what: &str,
) -> Straggler {
    until(what, || {
        let in_hand = terminator.in_hand();
        let shown = format!("{in_hand:?}");
        assert!(!shown.contains(SECRET), "{what}: {shown}");
        matches!(&in_hand[..], [straggler] if is_it(straggler))
    });
    // hyper reads on while it waits; nothing tells when it has.
    time_passes(QUIET);
    let report = within(BOUND, "the end", terminator.force()).await;
    assert_secret(&report, what);
    assert_eq!(report.forced, 1, "{what}: {report}");
    match &report.stragglers[..] {
        [straggler] if is_it(straggler) => straggler.clone(),
        other => panic!("{what}: {other:?} in {report}"),
    }
}

#[track_caller]
fn assert_secret(report: &Report, what: &str) {
    let shown = format!("{report} {report:?}");
    assert!(!shown.contains(SECRET), "{what}: {shown}");
    // Of the logger nobody waits for long: everything before is there when this is.
    let last_word = format!("message=terminated report={report}");
    until(&last_word, || {
        log().iter().any(|line| line.contains(&last_word))
    });
    let mut lines = log();
    // Taken out, so that it fails this test only.
    let (leaks, rest) = lines.drain(..).partition(|line| line.contains(SECRET));
    *lines = rest;
    drop(lines);
    assert_eq!(leaks, Vec::<String>::new(), "{what}");
}

fn log() -> MutexGuard<'static, Vec<String>> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        if event.metadata().target().starts_with("http_terminator") {
            log().push(support::log::line(event));
        }
    }
}
