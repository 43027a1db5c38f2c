//! A server behind each of the front ends, and the connections of those where they can be had.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinHandle;
use tower::{Service, ServiceExt};

use super::{Dir, FrontEnd, RawClient, bound_here, load, open_fds_at, open_fds_to, tls_acceptor};
use http_terminator::{Connection, HttpBuilder, Report, Terminator, TowerToHyper, TrackedIo};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Tcp(SocketAddr),
    Tls(SocketAddr),
    Unix(PathBuf),
}

impl Target {
    /// How many descriptors of connections to it this process has, of the server's side: see [`open_fds_to`].
    pub fn open_fds(&self) -> usize {
        match self {
            Self::Tcp(addr) | Self::Tls(addr) => open_fds_to(addr.port()),
            Self::Unix(path) => open_fds_at(path),
        }
    }
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self::Tcp(addr)
    }
}

impl From<&Self> for Target {
    fn from(target: &Self) -> Self {
        target.clone()
    }
}

/// A server that [`start`] started. Dropping it takes the Unix socket's directory away, no more.
pub struct Server {
    pub target: Target,
    /// Where it listens on TCP.
    pub addr: Option<SocketAddr>,
    /// Ends with the report, or with nothing from an accept loop of one's own, which has none.
    pub task: JoinHandle<Option<Report>>,
    dir: Option<Dir>,
}

impl Server {
    /// A client, connected; blocks, but no longer than a connect over loopback takes.
    #[track_caller]
    pub fn connect(&self) -> RawClient {
        RawClient::connect(&self.target)
    }

    /// The TCP port, for [`open_fds_to`].
    pub fn port(&self) -> u16 {
        self.addr.expect("only TCP servers have a port").port()
    }
}

/// Serves `app` through `front` on an address of its own.
pub async fn start(front: FrontEnd, terminator: &Terminator, app: Router) -> Server {
    begin(front, terminator, app, None).await
}

/// The same; each request has its [`Connection`] in its extensions, and all of them are known. One of
/// [`FrontEnd::at_hand`].
pub async fn start_known(front: FrontEnd, terminator: &Terminator, app: Router) -> (Target, Known) {
    let known = Known::default();
    let to = known.clone();
    let app = app.layer(middleware::from_fn(move |request: Request, next: Next| {
        if let Some(connection) = request.extensions().get::<Connection>() {
            to.add(connection);
        }
        next.run(request)
    }));
    let server = begin(front, terminator, app, Some(&known)).await;
    (server.target.clone(), known)
}

/// The connections that are known, in the order in which they were seen first.
#[derive(Clone, Default)]
pub struct Known(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    names: HashSet<String>,
    connections: Vec<Connection>,
}

impl Known {
    /// Under [`FrontEnd::Serve`] and its kin a connection is known once it has had a request.
    pub fn get(&self, n: usize) -> Connection {
        self.0.lock().expect("no panic").connections[n].clone()
    }

    pub fn len(&self) -> usize {
        self.0.lock().expect("no panic").connections.len()
    }

    fn add(&self, connection: &Connection) {
        let mut seen = self.0.lock().expect("no panic");
        if seen.names.insert(format!("{connection:?}")) {
            seen.connections.push(connection.clone());
        }
    }
}

#[allow(clippy::unused_async, reason = "within a runtime, which it needs")]
async fn begin(
    front: FrontEnd,
    terminator: &Terminator,
    app: Router,
    known: Option<&Known>,
) -> Server {
    load::watch_load();
    if front == FrontEnd::ServeUnix {
        let dir = Dir::new();
        let path = dir.0.join("socket");
        let listener = UnixListener::bind(&path).expect("binds in a fresh directory");
        return Server {
            target: Target::Unix(path),
            addr: None,
            task: tokio::spawn(some(terminator.serve(listener, app))),
            dir: Some(dir),
        };
    }
    let (listener, addr) = bound_here();
    let target = if front.is_tls() {
        Target::Tls(addr)
    } else {
        Target::Tcp(addr)
    };
    Server {
        target,
        addr: Some(addr),
        task: serve(front, terminator, listener, app, known),
        dir: None,
    }
}

fn serve(
    front: FrontEnd,
    terminator: &Terminator,
    listener: TcpListener,
    app: Router,
    known: Option<&Known>,
) -> JoinHandle<Option<Report>> {
    let auto = auto::Builder::new(TokioExecutor::new());
    let serve = |listener, app| {
        let serve = terminator.serve(listener, app);
        match known {
            Some(_) => serve.connection_in_extensions(),
            None => serve,
        }
    };
    let own = |listener, app| OwnLoop {
        terminator,
        listener,
        app,
        known: known.cloned(),
    };
    match front {
        FrontEnd::ServeUnix => unreachable!("it has another listener"),
        FrontEnd::Serve => tokio::spawn(some(serve(listener, app))),
        FrontEnd::ServeAuto => tokio::spawn(some(serve(listener, app).http(auto))),
        FrontEnd::ServeHttp1 => tokio::spawn(some(serve(listener, app).http(auto.http1_only()))),
        FrontEnd::ServeHttp2 => tokio::spawn(some(serve(listener, app).http(auto.http2_only()))),
        FrontEnd::HyperServe => tokio::spawn(some(terminator.serve(listener, Bare(app)))),
        #[cfg(feature = "rustls")]
        FrontEnd::ServeTls => tokio::spawn(some(serve(listener, app).tls(tls_acceptor(&[])))),
        FrontEnd::OwnLoop => own(listener, app).run(|connection, io, app| {
            connection.serve(&HttpBuilder::default(), io, TowerToHyper::new(app))
        }),
        FrontEnd::OwnLoopAuto => own(listener, app).run(move |connection, io, app| {
            connection.serve(&auto, io, TowerToHyperService::new(app))
        }),
        FrontEnd::OwnLoopTls => {
            let acceptor = tls_acceptor(&["h2", "http/1.1"]);
            own(listener, app).run(move |connection, io, app| {
                let accepting = acceptor.accept(io);
                async move {
                    if let Some(Ok(io)) = connection.handshake(accepting).await {
                        let builder = HttpBuilder::default();
                        let service = TowerToHyper::new(app);
                        let _ = connection.serve(&builder, io, service).await;
                    }
                }
            })
        }
        FrontEnd::OwnLoopAutoTls => {
            let acceptor = tls_acceptor(&["h2", "http/1.1"]);
            own(listener, app).run(move |connection, io, app| {
                let (accepting, builder) = (acceptor.accept(io), auto.clone());
                async move {
                    if let Ok(io) = accepting.await {
                        let service = TowerToHyperService::new(app);
                        let _ = connection.serve(&builder, io, service).await;
                    }
                }
            })
        }
        FrontEnd::Watch => own(listener, app).run(move |connection, io, app| {
            let service = connection.service(TowerToHyperService::new(app));
            let served = auto.serve_connection_with_upgrades(TokioIo::new(io), service);
            connection.watch(served.into_owned())
        }),
        #[cfg(feature = "axum")]
        FrontEnd::Axum => {
            nodelay(&listener);
            let served = axum::serve(terminator.listen(listener), app)
                .with_graceful_shutdown(terminator.draining());
            tokio::spawn(async move {
                let _ = served.await;
                None
            })
        }
        #[cfg(feature = "tonic")]
        FrontEnd::Tonic => {
            nodelay(&listener);
            let served = tonic::transport::Server::builder()
                .add_routes(tonic::service::Routes::from(app))
                .serve_with_incoming_shutdown(terminator.listen(listener), std::future::pending());
            tokio::spawn(async move {
                let _ = served.await;
                None
            })
        }
    }
}

async fn some<F: IntoFuture>(future: F) -> Option<F::Output> {
    Some(future.await)
}

/// As `serve` does for its connections; on Linux they inherit it from the listener.
fn nodelay(listener: &TcpListener) {
    let set = SockRef::from(listener).set_tcp_nodelay(true);
    set.expect("a TCP listener takes TCP options");
}

struct OwnLoop<'a> {
    terminator: &'a Terminator,
    listener: TcpListener,
    app: Router,
    known: Option<Known>,
}

impl OwnLoop<'_> {
    fn run<F>(
        self,
        serve: impl Fn(Connection, TrackedIo<TcpStream>, Router) -> F + Send + 'static,
    ) -> JoinHandle<Option<Report>>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        nodelay(&self.listener);
        let mut listener = self.terminator.listen(self.listener);
        let (app, known) = (self.app, self.known);
        tokio::spawn(async move {
            while let Some((io, _)) = listener.accept().await {
                let connection = io.connection();
                let mut app = app.clone();
                if let Some(known) = &known {
                    known.add(&connection);
                    app = app.layer(Extension(connection.clone()));
                }
                tokio::spawn(serve(connection, io, app));
            }
            None
        })
    }
}

/// A tower service as people write it by hand: future boxed, error of its own.
#[derive(Clone)]
struct Bare(Router);

impl<B> Service<http::Request<B>> for Bare
where
    Router: Service<http::Request<B>, Response = Response, Error = Infallible>,
    <Router as Service<http::Request<B>>>::Future: Send,
    B: Send + 'static,
{
    type Response = Response;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let router = self.0.clone();
        Box::pin(async move {
            router
                .oneshot(request)
                .await
                .map_err(|never| match never {})
        })
    }
}
