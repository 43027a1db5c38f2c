//! What is asked of a tower service before it is called: as often as by hyper-util's adapter, and with as much patience.

#![cfg(all(unix, feature = "serve"))]

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower::{Service, ServiceBuilder, ServiceExt};

use crate::support::{BOUND, RawClient, blocking, within};
use http_terminator::{HttpBuilder, Terminator, TowerToHyper};

/// On HTTP/2 it is asked by the connection's own task, whose budget a burst of requests uses up: those behind were shed, though
/// there was room.
#[tokio::test]
async fn g23_a_burst_is_not_refused_by_what_sheds_load() {
    const BURST: usize = 200;
    let answers = tower::service_fn(async |_: Request<hyper::body::Incoming>| {
        Ok::<_, Infallible>(Response::new(Body::from("ok")))
    });
    let shed = ServiceBuilder::new()
        .load_shed()
        .buffer(BURST * 2)
        .service(answers)
        .map_err(|error| panic!("there is room: {error}"));
    let shed = shed.map_result(|answer: Result<Response<Body>, Infallible>| answer);
    let terminator = Terminator::new();
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let io = terminator.track(theirs);
    let mut builder = HttpBuilder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(None);
    let served = io.connection().serve(&builder, io, TowerToHyper::new(shed));
    let (client, connection) = h2::client::handshake(ours)
        .await
        .expect("nothing is read yet");
    tokio::spawn(async move { drop(connection.await) });
    let mut client = client.ready().await.expect("it is new");
    let answers: Vec<_> = (0..BURST)
        .map(|_| {
            let request = Request::get("http://a/").body(()).expect("a request");
            client.send_request(request, true).expect("no limit yet").0
        })
        .collect();
    // All of them lie there when it is polled for the first time.
    tokio::task::yield_now().await;
    tokio::spawn(served);
    for answer in answers {
        let answer = within(BOUND, "an answer", answer).await;
        assert_eq!(answer.expect("it is answered").status(), StatusCode::OK);
    }
}

/// hyper reads as much at once as it was allowed to, and behind a head more than was kept of it: then nothing was known of the
/// connection any more, but that it is not idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g22_a_connection_with_a_large_buffer_can_be_idle() {
    const LARGE: usize = 2 << 20;
    let idle = Duration::from_millis(100);
    let terminator = Terminator::builder().idle_timeout(idle).build();
    let (mut client, theirs) = tokio::io::duplex(16 << 20);
    let io = terminator.track(theirs);
    let mut builder = HttpBuilder::default();
    builder.http1().max_buf_size(LARGE * 2);
    let read = axum::routing::post(async |body: Body| {
        let all = axum::body::to_bytes(body, usize::MAX).await;
        all.map_or_else(|e| e.to_string(), |all| all.len().to_string())
    });
    let service = TowerToHyper::new(axum::Router::new().route("/", read));
    for n in [LARGE + 4096, LARGE * 9 / 10] {
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {n}\r\n\r\n");
        client
            .write_all(head.as_bytes())
            .await
            .expect("there is room");
        client
            .write_all(&vec![b'x'; n])
            .await
            .expect("there is room");
    }
    tokio::spawn(io.connection().serve(&builder, io, service));
    let mut answers = Vec::new();
    // To its end.
    let read = within(BOUND, "the end", client.read_to_end(&mut answers)).await;
    read.expect("no error");
    let answers = String::from_utf8_lossy(&answers);
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
}

/// Takes from a pool when it is asked, and gives back when it is called or dropped.
struct Pooled {
    taken: Arc<AtomicUsize>,
    has: bool,
}

impl Clone for Pooled {
    fn clone(&self) -> Self {
        Self {
            taken: Arc::clone(&self.taken),
            has: false,
        }
    }
}

impl Service<Request<hyper::body::Incoming>> for Pooled {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if !self.has {
            self.has = true;
            self.taken.fetch_add(1, SeqCst);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<hyper::body::Incoming>) -> Self::Future {
        assert!(std::mem::take(&mut self.has), "it was asked");
        ready(Ok(Response::new(Body::from("ok"))))
    }
}

/// One that was asked and never called took a permit from others for a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g23_a_service_that_is_asked_is_called() {
    for in_extensions in [false, true] {
        let taken = Arc::new(AtomicUsize::new(0));
        let service = Pooled {
            taken: Arc::clone(&taken),
            has: false,
        };
        let terminator = Terminator::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let mut serve = terminator.serve(listener, service);
        if in_extensions {
            serve = serve.connection_in_extensions();
        }
        tokio::spawn(serve.into_future());
        blocking(move || {
            let mut client = RawClient::connect(addr);
            for _ in 0..3 {
                assert_eq!(client.fetch("/").text(), "ok");
            }
        })
        .await;
        assert_eq!(taken.load(SeqCst), 3, "{in_extensions}");
        within(BOUND, "the end", terminator.terminate()).await;
    }
}

/// Panics where it is cloned, while this is set.
struct Brittle(Arc<AtomicBool>);

impl Clone for Brittle {
    fn clone(&self) -> Self {
        assert!(!self.0.load(SeqCst), "on purpose");
        Self(Arc::clone(&self.0))
    }
}

impl<Asked> Service<Asked> for Brittle {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Asked) -> Self::Future {
        ready(Ok(Response::new(Body::from("ok"))))
    }
}

/// It is cloned by who accepts: that breaks the one connection that it was cloned for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_a_service_that_panics_as_it_is_cloned_breaks_its_own_connection_only() {
    let panics = Arc::new(AtomicBool::new(true));
    let terminator = Terminator::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let serve = terminator.serve(listener, Brittle(Arc::clone(&panics)));
    tokio::spawn(serve.into_future());
    blocking(move || {
        RawClient::connect(addr).expect_eof();
        panics.store(false, SeqCst);
        assert_eq!(RawClient::connect(addr).fetch("/").text(), "ok");
    })
    .await;
    assert_eq!(terminator.stats().listeners, 1);
    within(BOUND, "the end", terminator.terminate()).await;
}
