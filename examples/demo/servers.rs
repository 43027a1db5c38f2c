//! The same handlers, served by this crate and by others.

use std::convert::Infallible;
use std::future::pending;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::sse::Event;
use axum::response::{Response, Sse};
use axum::routing::{any, get, post};
use axum::{Router, extract::DefaultBodyLimit};
use futures_util::stream::{self, Stream};
use http_terminator::{Phase, Terminator};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Ours,
    Axum,
    AxumServer,
    HyperUtil,
}

impl Peer {
    pub(crate) fn title(self) -> String {
        let name = match self {
            Self::Ours => "http-terminator",
            Self::Axum => "axum::serve",
            Self::AxumServer => "axum-server",
            Self::HyperUtil => "hyper-util's GracefulShutdown",
        };
        name.to_owned()
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "axum" => Ok(Self::Axum),
            "axum-server" => Ok(Self::AxumServer),
            "hyper-util" => Ok(Self::HyperUtil),
            _ => Err(format!("axum, axum-server or hyper-util, not {name:?}")),
        }
    }
}

/// One that serves.
pub(crate) enum Server {
    Ours(Terminator),
    Axum(oneshot::Sender<()>, oneshot::Receiver<()>),
    Handle(
        axum_server::Handle<std::net::SocketAddr>,
        oneshot::Receiver<()>,
    ),
    HyperUtil(oneshot::Sender<()>, oneshot::Receiver<()>),
}

/// To be called inside of a runtime.
pub(crate) fn start(peer: Peer, listener: TcpListener) -> Server {
    let app = app();
    let (done, when_done) = oneshot::channel();
    match peer {
        Peer::Ours => {
            let terminator = Terminator::builder().grace_period(super::GRACE).build();
            let app = app.layer(terminator.end_streams());
            let serve = terminator.serve(listener, app).close_websockets(1001);
            tokio::spawn(serve);
            Server::Ours(terminator)
        }
        Peer::Axum => {
            let (end, signal) = oneshot::channel::<()>();
            let signal = async { drop(signal.await) };
            tokio::spawn(async move {
                let _ = axum::serve(listener, app)
                    .with_graceful_shutdown(signal)
                    .await;
                let _ = done.send(());
            });
            Server::Axum(end, when_done)
        }
        Peer::AxumServer => {
            let handle = axum_server::Handle::new();
            let server = listener.into_std().and_then(axum_server::from_tcp);
            let server = server.expect("a listener").handle(handle.clone());
            tokio::spawn(async move {
                let _ = server.serve(app.into_make_service()).await;
                let _ = done.send(());
            });
            Server::Handle(handle, when_done)
        }
        Peer::HyperUtil => {
            let (end, signal) = oneshot::channel();
            tokio::spawn(async move {
                accept(listener, app, signal).await;
                let _ = done.send(());
            });
            Server::HyperUtil(end, when_done)
        }
    }
}

/// The loop of hyper-util's own example, `server_graceful`.
async fn accept(listener: TcpListener, app: Router, mut signal: oneshot::Receiver<()>) {
    let builder = auto::Builder::new(TokioExecutor::new());
    let graceful = GracefulShutdown::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                };
                let service = TowerToHyperService::new(app.clone());
                let connection =
                    builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                tokio::spawn(graceful.watch(connection.into_owned()));
            }
            _ = &mut signal => break,
        }
    }
    drop(listener);
    graceful.shutdown().await;
}

/// A server that was told to end.
pub(crate) struct Ending {
    /// What it says at its end.
    said: Arc<Mutex<Option<String>>>,
    phases: Arc<Mutex<Vec<(String, Instant)>>>,
}

impl Server {
    pub(crate) fn end(self, runtime: &Handle, grace: Duration) -> Ending {
        let ending = Ending {
            said: Arc::default(),
            phases: Arc::default(),
        };
        let said = Arc::clone(&ending.said);
        let say = move |what: String| *said.lock().expect("nobody panics") = Some(what);
        let when_done = match self {
            Self::Ours(terminator) => {
                for phase in [Phase::Draining, Phase::Forcing] {
                    let (terminator, phases) = (terminator.clone(), Arc::clone(&ending.phases));
                    runtime.spawn(async move {
                        terminator.reached(phase).await;
                        let mut phases = phases.lock().expect("nobody panics");
                        if terminator.phase() == phase {
                            phases.push((phase.to_string(), Instant::now()));
                        }
                    });
                }
                let end = terminator.terminate();
                runtime.spawn(async move { say(end.await.to_string()) });
                return ending;
            }
            Self::Axum(end, done) | Self::HyperUtil(end, done) => {
                let _ = end.send(());
                done
            }
            Self::Handle(handle, done) => {
                handle.graceful_shutdown(Some(grace));
                done
            }
        };
        runtime.spawn(async move {
            if when_done.await.is_ok() {
                say("it has returned, and says no more".to_owned());
            }
        });
        ending
    }
}

impl Ending {
    pub(crate) fn is_over(&self) -> bool {
        self.said.lock().expect("nobody panics").is_some()
    }

    pub(crate) fn outcome(
        self,
        peer: Peer,
        ended: Option<Instant>,
    ) -> (Vec<(String, Instant)>, String) {
        let phases = self.phases.lock().expect("nobody panics").clone();
        let said = self.said.lock().expect("nobody panics").take();
        let report = match (ended, said) {
            (Some(_), Some(said)) => said,
            _ => "it still waits, long after the deadline that it does not have".to_owned(),
        };
        (phases, format!("{}: {report:#}", peer.title()))
    }
}

// ===== what is served =====

fn app() -> Router {
    Router::new()
        .route("/", get(async || "hello\n"))
        .route("/slow", get(slow))
        .route("/upload", post(async |body: Bytes| body.len().to_string()))
        .route("/big", get(async || Body::from(vec![b'.'; BIG])))
        .route("/events", get(events))
        .route("/chat", any(chat))
        .route("/hangs", get(async || pending::<&str>().await))
        .route("/blocks", get(blocks))
        .layer(DefaultBodyLimit::disable())
}

/// More than all buffers on the way take.
pub(crate) const BIG: usize = 24 << 20;

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_millis(1500)).await;
    "done\n"
}

/// What no handler should do.
async fn blocks() -> &'static str {
    std::thread::sleep(super::GRACE * 4);
    "too late\n"
}

async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(stream::unfold(0, |n| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Some((Ok(Event::default().data(n.to_string())), n + 1))
    }))
}

async fn chat(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket: WebSocket| while let Some(Ok(_)) = socket.recv().await {})
}
