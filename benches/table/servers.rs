//! The same service behind every server: one opaque, boxed function, so that inlining does not decide
//! between them; or an axum `Router` with one route.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body_util::BodyExt;
use http_terminator::{
    Connection, HttpBuilder, Terminator, TerminatorBuilder, TowerToHyper, TrackedIo,
};
use hyper::body::{Body as HttpBody, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tower::Service;
use tower::make::Shared;

/// Who serves, in the order of the table. The first is what the others are compared with. One more is
/// its name here, and what it does in [`Site::serve_by`].
pub(crate) const SERVERS: &[&str] = &[
    BARE,
    "hyper-util watch",
    "axum-server",
    "axum::serve",
    "http-terminator auto",
    "http-terminator loop",
    "http-terminator serve",
];

pub(crate) const BARE: &str = "bare hyper";

/// `serve` with what is off by default: an age, a number of requests, a bound on idleness, and the connection
/// in each request's extensions.
pub(crate) const OPTIONS: &[&str] = &[
    "http-terminator age",
    "http-terminator number",
    "http-terminator idle",
    "http-terminator handle",
];

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn is_ours(server: &str) -> bool {
    server.starts_with("http-terminator")
}

/// Whether HTTP/2 clients can be allowed more than hyper's 200 streams.
pub(crate) fn allows_streams(server: &str) -> bool {
    server != "axum::serve"
}

/// What is served.
#[derive(Clone, Copy)]
pub(crate) enum Given {
    Hello,
    /// The same, to clients that may have this many streams open.
    Streams(u32),
    /// Ready to serve: `with_state(())` is what axum's own servers call for each connection.
    Router,
}

/// Serves until `end` is notified, then ends in the server's own way: gracefully or, for bare hyper, by
/// aborting all tasks. Returns when the server says that it has ended.
pub(crate) async fn serve(server: &str, given: Given, listener: TcpListener, end: Arc<Notify>) {
    let mut site = Site {
        listener,
        end,
        builder: auto::Builder::new(TokioExecutor::new()),
        streams: None,
    };
    match given {
        Given::Hello => site.serve_by(server, Hello::new(), Hello::new()).await,
        Given::Streams(streams) => {
            site.builder.http2().max_concurrent_streams(streams);
            site.streams = Some(streams);
            site.serve_by(server, Hello::new(), Hello::new()).await;
        }
        Given::Router => site.serve_by(server, router(), router()).await,
    }
}

struct Site {
    listener: TcpListener,
    end: Arc<Notify>,
    builder: auto::Builder<TokioExecutor>,
    /// What has been set in the builder: for those who bring their own.
    streams: Option<u32>,
}

impl Site {
    /// Twice the same service: as hyper calls it, and as `axum::serve` does.
    async fn serve_by(
        self,
        server: &str,
        service: impl Answers<Incoming>,
        axum: impl Answers<Body>,
    ) {
        match server {
            BARE => self.bare(service).await,
            "hyper-util watch" => self.watch(service).await,
            "axum-server" => self.axum_server(service).await,
            "axum::serve" => self.axum_serve(axum).await,
            "http-terminator auto" => {
                let (builder, service) = (self.builder.clone(), TowerToHyperService::new(service));
                let serve =
                    |connection: Connection, io| connection.serve(&builder, io, service.clone());
                self.our_loop(serve).await;
            }
            "http-terminator loop" => {
                let builder = self.http_builder();
                let service = TowerToHyper::new(service);
                let serve =
                    |connection: Connection, io| connection.serve(&builder, io, service.clone());
                self.our_loop(serve).await;
            }
            "http-terminator serve" => self.our_serve(service, Terminator::builder(), false).await,
            "http-terminator age" => {
                let old = Terminator::builder().max_connection_age(HOUR);
                self.our_serve(service, old, false).await;
            }
            "http-terminator number" => {
                let many = Terminator::builder().max_requests_per_connection(u64::MAX);
                self.our_serve(service, many, false).await;
            }
            "http-terminator idle" => {
                let idle = Terminator::builder().idle_timeout(HOUR);
                self.our_serve(service, idle, false).await;
            }
            "http-terminator handle" => self.our_serve(service, Terminator::builder(), true).await,
            _ => panic!("no such server: {server}"),
        }
    }

    async fn bare(self, service: impl Answers<Incoming>) {
        let service = TowerToHyperService::new(service);
        let mut tasks = Vec::new();
        while let Some(stream) = self.accept().await {
            let io = TokioIo::new(stream);
            let connection = self
                .builder
                .serve_connection_with_upgrades(io, service.clone());
            tasks.push(tokio::spawn(connection.into_owned()).abort_handle());
        }
        drop(self.listener);
        for task in tasks {
            task.abort();
        }
    }

    async fn watch(self, service: impl Answers<Incoming>) {
        let service = TowerToHyperService::new(service);
        let graceful = GracefulShutdown::new();
        while let Some(stream) = self.accept().await {
            let io = TokioIo::new(stream);
            let connection = self
                .builder
                .serve_connection_with_upgrades(io, service.clone());
            tokio::spawn(graceful.watch(connection.into_owned()));
        }
        drop(self.listener);
        graceful.shutdown().await;
    }

    async fn accept(&self) -> Option<TcpStream> {
        let stream = tokio::select! {
            stream = self.listener.accept() => stream.expect("a client").0,
            () = self.end.notified() => return None,
        };
        stream.set_nodelay(true).expect("a socket");
        Some(stream)
    }

    async fn axum_server(self, service: impl Answers<Incoming>) {
        let handle = axum_server::Handle::new();
        let listener = self.listener.into_std().expect("a listener");
        let server = axum_server::from_tcp(listener).expect("a listener");
        let mut server = server.handle(handle.clone());
        if let Some(streams) = self.streams {
            server
                .http_builder()
                .http2()
                .max_concurrent_streams(streams);
        }
        let task = tokio::spawn(server.serve(Shared::new(service)));
        self.end.notified().await;
        handle.graceful_shutdown(Some(Duration::from_secs(60)));
        task.await.expect("no panic").expect("it serves");
    }

    async fn axum_serve(self, service: impl Answers<Body>) {
        axum::serve(self.listener, Shared::new(service))
            .with_graceful_shutdown(self.end.notified_owned())
            .await
            .expect("it serves");
    }

    /// With a task of its own for what `serve` makes of each connection.
    async fn our_loop<F>(self, serve: impl Fn(Connection, TrackedIo<TcpStream>) -> F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let terminator = Terminator::new();
        let mut listener = terminator.listen(self.listener);
        let accepting = async {
            while let Some((io, _)) = listener.accept().await {
                tokio::spawn(serve(io.connection(), io));
            }
        };
        let ending = async {
            self.end.notified().await;
            terminator.terminate().await
        };
        tokio::join!(accepting, ending);
    }

    fn http_builder(&self) -> HttpBuilder {
        let mut builder = HttpBuilder::default();
        if let Some(streams) = self.streams {
            builder.http2().max_concurrent_streams(streams);
        }
        builder
    }

    async fn our_serve(
        self,
        service: impl Answers<Incoming>,
        terminator: TerminatorBuilder,
        in_extensions: bool,
    ) {
        let terminator = terminator.build();
        let builder = self.http_builder();
        let mut server = terminator.serve(self.listener, service).builder(builder);
        if in_extensions {
            server = server.connection_in_extensions();
        }
        let task = tokio::spawn(server.into_future());
        self.end.notified().await;
        terminator.terminate().await;
        task.await.expect("no panic");
    }
}

// ===== the services =====

/// What is common to them, for requests with such a body.
trait Answers<B>:
    Service<Request<B>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<B, S> Answers<B> for S where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

fn router() -> Router {
    Router::new()
        .route("/hello", get(async || "hello"))
        .with_state(())
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// How long `/10k` is.
pub(crate) const LARGE: usize = 10 * 1024;

/// Lets `/slow` answer.
pub(crate) static SLOW: Notify = Notify::const_new();

/// How often that was asked for.
pub(crate) static SLOW_CALLS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Hello<B>(fn(Request<B>) -> Answer);

impl<B: HttpBody<Data: Send> + Send + Unpin + 'static> Hello<B> {
    pub(crate) fn new() -> Self {
        Self(std::hint::black_box(hello))
    }
}

impl<B> Clone for Hello<B> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

/// Holds its request until it has answered, as handlers do.
#[inline(never)]
fn hello<B: HttpBody<Data: Send> + Send + Unpin + 'static>(mut request: Request<B>) -> Answer {
    static LARGE_BODY: [u8; LARGE] = [b'x'; LARGE];
    Box::pin(async move {
        let body = match request.uri().path() {
            "/upload" => {
                let mut read = 0;
                while let Some(Ok(frame)) = request.body_mut().frame().await {
                    read += frame.data_ref().map_or(0, Buf::remaining);
                }
                assert_eq!(read, LARGE, "all of it");
                Bytes::from_static(b"hello")
            }
            "/10k" => Bytes::from_static(&LARGE_BODY),
            "/slow" => {
                SLOW_CALLS.fetch_add(1, Ordering::Relaxed);
                SLOW.notified().await;
                Bytes::from_static(b"hello")
            }
            _ => Bytes::from_static(b"hello"),
        };
        Ok(Response::new(Body::from(body)))
    })
}

impl<B> Service<Request<B>> for Hello<B> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Answer {
        (self.0)(request)
    }
}
