//! What the driver says and does to a socket from outside of its task.
#![cfg(all(unix, feature = "serve"))]

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use http::header;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::runtime;
use tracing::Level;
use tracing_subscriber::layer::SubscriberExt;

use http_terminator::{Protocol, Report, Terminator};

use crate::support::log::Log;
use crate::support::outside::{Host, alone};
use crate::support::wait::{time_passes, until, until_stats};
use crate::support::{
    App, BOUND, FrontEnd, Gate, RawClient, RawH2, Target, app, blocking, start, start_known, within,
};

/// In a process of its own, whose logger it is: as the table of the crate's docs has it.
#[test]
fn g18_a_termination_by_force_is_logged() {
    let name = concat!(module_path!(), "::g18_a_termination_by_force_is_logged");
    if alone(name, &[], BOUND * 3) {
        return;
    }
    let log = Log::default();
    let subscriber = tracing_subscriber::registry().with(log.clone());
    tracing::subscriber::set_global_default(subscriber).expect("nobody else is here");
    let host = Host::workers(2);
    let grace = Duration::from_millis(200);
    let terminator = Terminator::builder().grace_period(grace).build();
    let server = host.block_on(start(FrontEnd::Serve, &terminator, app(App::default())));
    let client = server.connect();
    client.get("/pending");
    until_stats(&terminator, "a request", |it| it.requests == 1);
    let guard = terminator.guard();
    let report = block_on(terminator.terminate());
    // Nobody waits for a logger for long.
    until("its last word", || {
        !log.with("message=terminated").is_empty()
    });
    let straggler = |protocol| report.stragglers.iter().find(|it| it.protocol == protocol);
    let request = straggler(Protocol::Http1).expect("it is reported");
    let held = straggler(Protocol::Guard).expect("it is reported");
    let place = held.place.as_deref().expect("it is known");
    let expected = [
        "INFO message=terminating phase=draining connections=1".to_owned(),
        format!(
            "WARN message=forcing a connection connection={} straggler={request}",
            request.connection
        ),
        format!("WARN message=giving up a guard place={place:?} straggler={held}"),
        "INFO message=terminating phase=forcing connections=1".to_owned(),
        format!("INFO message=terminated report={report}"),
    ];
    assert_eq!(log.at_least(Level::INFO), expected);
    drop((client, guard));
}

/// It is the one reason for which a report is not clean that has no name there.
#[test]
fn g18_one_that_is_forced_in_a_drain_is_logged() {
    let name = concat!(
        module_path!(),
        "::g18_one_that_is_forced_in_a_drain_is_logged"
    );
    if alone(name, &[], BOUND * 3) {
        return;
    }
    let log = Log::default();
    let subscriber = tracing_subscriber::registry().with(log.clone());
    tracing::subscriber::set_global_default(subscriber).expect("nobody else is here");
    let host = Host::workers(2);
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let router = app(App::default());
    let (target, known) = host.block_on(start_known(FrontEnd::Serve, &terminator, router));
    let client = RawClient::connect(&target);
    client.get("/pending?token=secret");
    until("a request", || known.len() == 1);
    let gone = known.get(0);
    gone.force();
    drop(client);
    until_stats(&terminator, "its end", |it| it.connections == 0);
    let client = RawClient::connect(&target);
    client.get("/pending?token=secret");
    until("a request", || known.len() == 2);
    let ended = terminator.terminate();
    // Of one that has gone there is nothing to say.
    gone.force();
    let [held] = &terminator.in_hand()[..] else {
        panic!("{:?}", terminator.in_hand());
    };
    assert_eq!(held.path.as_deref(), Some("/pending"));
    known.get(1).force();
    let report = block_on(ended);
    assert_eq!((report.forced, report.stragglers.len()), (1, 0), "{report}");
    until("its last word", || {
        !log.with("message=terminated").is_empty()
    });
    let named = log.with("message=forcing a connection");
    assert_eq!(named.len(), 1, "{named:?}");
    assert!(named[0].contains("GET /pending,"), "{named:?}");
    drop(client);
}

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// Neither the one nor the other side of it speaks TLS.
struct Veiled<Io>(Io);

impl<Io: AsyncRead + Unpin> AsyncRead for Veiled<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        buf.filled_mut()[before..]
            .iter_mut()
            .for_each(|b| *b ^= 0x55);
        read
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Veiled<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let veiled: Vec<u8> = buf.iter().map(|b| b ^ 0x55).collect();
        Pin::new(&mut self.0).poll_write(cx, &veiled)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The driver finds a request without an answer on a socket that reads no TLS, but no HTTP either: an
/// answer from there would be none for the client, and would keep that of the connection's task back.
#[tokio::test]
async fn g10_a_503_goes_through_what_veils_the_bytes() {
    let terminator = Terminator::builder()
        .grace_period(Duration::from_millis(100))
        .build();
    let gate = Gate::new();
    let router = app(App {
        gate: gate.clone(),
        terminator: None,
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut listener = terminator.listen(listener);
    tokio::spawn(async move {
        let builder = auto::Builder::new(TokioExecutor::new());
        while let Some((io, _)) = listener.accept().await {
            let connection = io.connection();
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(connection.serve(&builder, Veiled(io), service));
        }
    });
    let mut client = TcpStream::connect(addr).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    let request: Vec<u8> = b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n"
        .iter()
        .map(|b| b ^ 0x55)
        .collect();
    client.write_all(&request).unwrap();
    gate.wait_entered_async(1).await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    let got = blocking(move || {
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        got
    })
    .await;
    let plain: Vec<u8> = got.iter().map(|b| b ^ 0x55).collect();
    assert!(
        plain.starts_with(b"HTTP/1.1 503"),
        "{:?} / {report}",
        String::from_utf8_lossy(&got)
    );
    assert_eq!(report.answered_at_deadline, 1);
}

/// One task shakes hands and ends, and another has hyper serve the connection, without `watch`. At the deadline the driver
/// woke the first one, took the connection for one that is polled, and left the second alone, which had to answer.
#[tokio::test]
async fn g10_a_503_goes_out_from_another_task_than_the_handshake() {
    let (gate, terminator) = (Gate::new(), Terminator::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let mut listener = terminator.listen(listener);
    let asks = thread::spawn(move || {
        let mut client = RawClient::connect(addr);
        client.get("/slow");
        let answer = client.read_response();
        client.expect_eof();
        answer
    });
    let (io, _) = listener.accept().await.expect("accepted");
    let connection = io.connection();
    let shakes = tokio::spawn(connection.handshake(async { io }));
    let io = shakes.await.expect("no panic");
    let service = connection.service(TowerToHyperService::new(router(&gate)));
    let served = http1::Builder::new().serve_connection(TokioIo::new(io.expect("done")), service);
    let served = tokio::spawn(served);
    gate.wait_entered_async(1).await;
    let ended = terminator.terminate_within(Duration::from_millis(100));
    let report = within(BOUND, "the end", ended).await;
    let answer = blocking(move || asks.join().expect("an answer")).await;
    assert_eq!((answer.status, answer.says_close()), (503, true));
    assert_eq!(report.answered_at_deadline, 1, "{report}");
    drop(served.await.expect("no panic"));
}

/// The driver may answer for the handler, and close the socket, before the connection's task is polled.
#[tokio::test]
async fn g10_serve_ends_well_whoever_answers_503() {
    for _ in 0..10 {
        let terminator = Terminator::builder()
            .grace_period(Duration::from_millis(10))
            .build();
        let gate = Gate::new();
        let router = router(&gate);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut listener = terminator.listen(listener);
        let client = blocking(move || RawClient::connect(Target::Tcp(addr))).await;
        client.get("/slow");
        let (io, _) = listener.accept().await.unwrap();
        let connection = io.connection();
        let builder = auto::Builder::new(TokioExecutor::new());
        let service = TowerToHyperService::new(router);
        let served = async move { connection.serve(&builder, io, service).await };
        let served = tokio::spawn(served);
        gate.wait_entered_async(1).await;
        let report = within(BOUND, "the end", terminator.terminate()).await;
        let result = within(BOUND, "its task", served).await.unwrap();
        assert!(result.is_ok(), "{result:?}, {report}");
        assert_eq!(report.answered_at_deadline, 1);
    }
}

/// A server on a thread of its own, which one handler can block.
fn host(terminator: &Terminator, front: FrontEnd, router: Router) -> Target {
    let (tell, told) = mpsc::channel();
    let terminator = terminator.clone();
    thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let server = start(front, &terminator, router).await;
            tell.send(server.target.clone()).unwrap();
            let _ = server.task.await;
        });
    });
    told.recv_timeout(BOUND).unwrap()
}

fn block_on(ended: http_terminator::Termination) -> Report {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(within(BOUND, "the end", ended))
}

fn router(gate: &Gate) -> Router {
    app(App {
        gate: gate.clone(),
        terminator: None,
    })
    .route(
        "/sixteen",
        get(async || -> Response {
            let parts = (0..16).map(|_| Ok::<_, Infallible>("0123456789abcdef"));
            let body = Body::from_stream(stream::iter(parts));
            ([(header::CONTENT_LENGTH, "256")], body).into_response()
        }),
    )
}

fn one(front: FrontEnd, ask: impl FnOnce(&mut RawClient)) -> (RawClient, Report) {
    let terminator = Terminator::builder()
        .grace_period(Duration::from_millis(100))
        .build();
    let gate = Gate::new();
    let target = host(&terminator, front, router(&gate));
    let mut client = RawClient::connect(&target);
    ask(&mut client);
    gate.wait_entered(1);
    let report = block_on(terminator.terminate());
    gate.open();
    (client, report)
}

/// hyper flushes when it has 16 parts of a body, and only then drops the body, which has ended: nothing is
/// written behind that. The next request blocks the only thread until the deadline.
#[test]
fn g10_a_503_goes_out_behind_a_response_that_was_out_before_its_body_was_dropped() {
    for front in FrontEnd::all() {
        let (mut client, report) = one(front, |client| {
            assert_eq!(client.fetch("/sixteen").text().len(), 256);
            client.get("/block");
        });
        let response = client.try_read_response();
        let response = response.unwrap_or_else(|e| panic!("{front:?}: {e:?} {report}"));
        assert_eq!(response.status, 503, "{front:?}");
        client.expect_eof();
        assert_eq!(report.answered_at_deadline, 1, "{front:?}");
    }
}

/// The same when all of them came in one segment.
#[test]
fn g10_each_pipelined_request_gets_one_response() {
    for front in FrontEnd::all() {
        let (mut client, report) = one(front, |client| {
            let get = |p| format!("GET {p} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            client.send([get("/quick"), get("/sixteen"), get("/block"), get("/quick")].concat());
        });
        for status in [200, 200, 503] {
            let r = client.try_read_response();
            let r = r.unwrap_or_else(|e| panic!("{front:?} {status}: {e:?} {report}"));
            assert_eq!(r.status, status, "{front:?}");
        }
        client.expect_reset_or_eof();
        assert_eq!(report.answered_at_deadline, 1, "{front:?}");
    }
}

/// The only thread blocks between the two halves of the head, and the drain begins meanwhile: the driver,
/// which looks from outside then, finds nothing in the socket and no stream open.
#[test]
fn g4_half_a_head_of_http2_is_not_idle_to_who_looks_from_outside() {
    let terminator = Terminator::builder()
        .grace_period(BOUND * 3)
        .stall_timeout(BOUND)
        .build();
    let gate = Gate::new();
    let target = host(&terminator, FrontEnd::Serve, router(&gate));
    let mut h2 = RawH2::connect(&target);
    h2.get("/quick", 1);
    while !h2.read_frame().is_end_stream() {}
    h2.send_frame(HEADERS, 1, 3, b"\x82\x86");
    until_stats(&terminator, "the half head is read", |it| it.idle == 0);
    let block = RawClient::connect(&target);
    block.get("/block");
    gate.wait_entered(1);
    let ended = terminator.terminate();
    // Time is the subject: twice as long as a runtime may be silent before it counts as stalled.
    time_passes(Duration::from_millis(500));
    assert!(h2.is_still_open(), "{}", terminator.stats());
    gate.open();
    h2.send_frame(CONTINUATION, 4, 3, b"\x84\x41\x01a");
    let answer = h2.read_until(HEADERS);
    assert_eq!(answer.stream, 3);
    drop((h2, block));
    let report = block_on(ended);
    assert!(report.is_clean(), "{report}");
}

/// Two line ends end as a whole head does, but hyper's parser skips them, and calls nothing.
#[tokio::test]
async fn g2_line_ends_alone_are_no_head() {
    for before in ["", "GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        for ends in ["\r\n", "\r\n\r\n", "\n\r\n\r\n"] {
            let terminator = Terminator::builder()
                .grace_period(BOUND * 3)
                .stall_timeout(BOUND * 2)
                .build();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let serve = terminator.serve(listener, app(App::default()));
            // Bounded while serving.
            tokio::spawn(serve.idle_timeout(Duration::from_millis(100)));
            let connect = move || {
                let mut client = RawClient::connect(Target::Tcp(addr));
                if !before.is_empty() {
                    client.send(before);
                    assert_eq!(client.read_response().status, 200);
                }
                client.send(ends);
                client
            };
            blocking(move || connect().expect_eof()).await;
            // In the drain.
            let mut client = blocking(connect).await;
            let report = within(BOUND, "the end", terminator.terminate()).await;
            blocking(move || client.expect_eof()).await;
            assert_eq!(report.stalled, 0, "{report}");
        }
    }
}
