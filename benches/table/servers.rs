//! The same service behind every server: one opaque, boxed function, so that inlining does not decide
//! between them.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_terminator::Terminator;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tower::Service;
use tower::make::Shared;

/// Who serves, in the order of the table. The first is what the others are compared with.
pub(crate) const SERVERS: [&str; 6] = [
    BARE,
    "hyper-util watch",
    "axum-server",
    "axum::serve",
    "http-terminator loop",
    "http-terminator serve",
];

pub(crate) const BARE: &str = "bare hyper";

/// Those that are ours.
pub(crate) const OURS: [&str; 2] = ["http-terminator loop", "http-terminator serve"];

/// Serves until `end` is notified, then ends in the server's own way: gracefully or, for bare hyper, by
/// aborting all tasks. Returns when the server says that it has ended.
pub(crate) async fn serve(server: &str, listener: TcpListener, end: Arc<Notify>) {
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(Hello::new());
    match server {
        BARE => {
            let mut tasks = Vec::new();
            while let Some(stream) = accept(&listener, &end).await {
                let io = TokioIo::new(stream);
                let connection = builder.serve_connection_with_upgrades(io, service.clone());
                tasks.push(tokio::spawn(connection.into_owned()).abort_handle());
            }
            drop(listener);
            for task in tasks {
                task.abort();
            }
        }
        "hyper-util watch" => {
            let graceful = GracefulShutdown::new();
            while let Some(stream) = accept(&listener, &end).await {
                let io = TokioIo::new(stream);
                let connection = builder.serve_connection_with_upgrades(io, service.clone());
                tokio::spawn(graceful.watch(connection.into_owned()));
            }
            drop(listener);
            graceful.shutdown().await;
        }
        "axum-server" => {
            let handle = axum_server::Handle::new();
            let listener = listener.into_std().expect("a listener");
            let server = axum_server::from_tcp(listener)
                .expect("a listener")
                .handle(handle.clone())
                .serve(Shared::new(Hello::new()));
            let task = tokio::spawn(server);
            end.notified().await;
            handle.graceful_shutdown(Some(Duration::from_secs(60)));
            task.await.expect("no panic").expect("it serves");
        }
        "axum::serve" => {
            axum::serve(listener, Shared::new(Hello::new()))
                .with_graceful_shutdown(end.notified_owned())
                .await
                .expect("it serves");
        }
        "http-terminator loop" => {
            let terminator = Terminator::new();
            let mut listener = terminator.listen(listener);
            let accepting = async {
                while let Some((io, _)) = listener.accept().await {
                    let connection = io.connection();
                    tokio::spawn(connection.serve(&builder, io, service.clone()));
                }
            };
            let ending = async {
                end.notified().await;
                terminator.terminate().await
            };
            tokio::join!(accepting, ending);
        }
        "http-terminator serve" => {
            let terminator = Terminator::new();
            let task = tokio::spawn(terminator.serve(listener, Hello::new()));
            end.notified().await;
            terminator.terminate().await;
            task.await.expect("no panic");
        }
        _ => panic!("no such server: {server}"),
    }
}

async fn accept(listener: &TcpListener, end: &Notify) -> Option<TcpStream> {
    let stream = tokio::select! {
        stream = listener.accept() => stream.expect("a client").0,
        () = end.notified() => return None,
    };
    stream.set_nodelay(true).expect("a socket");
    Some(stream)
}

// ===== the service =====

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// How long `/10k` is.
pub(crate) const LARGE: usize = 10 * 1024;

/// Lets `/slow` answer.
pub(crate) static SLOW: Notify = Notify::const_new();

pub(crate) struct Hello<B>(fn(Request<B>) -> Answer);

impl<B: Send + 'static> Hello<B> {
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
fn hello<B: Send + 'static>(request: Request<B>) -> Answer {
    static LARGE_BODY: [u8; LARGE] = [b'x'; LARGE];
    Box::pin(async move {
        let body = match request.uri().path() {
            "/10k" => Bytes::from_static(&LARGE_BODY),
            "/slow" => {
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
