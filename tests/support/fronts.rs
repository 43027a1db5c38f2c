//! Front ends whose connections a test has at hand.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use super::{Target, tls_acceptor};
use http_terminator::{Connection, HttpBuilder, Terminator, TowerToHyper, TrackedIo};

/// A way to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    Serve,
    /// With hyper-util's builder.
    ServeAuto,
    ServeTls,
    OwnLoop,
    OwnLoopAuto,
    /// With a handshake of one's own.
    OwnLoopTls,
    /// A connection built by hand.
    Watch,
}

impl Front {
    /// Those that see bytes and requests.
    pub const SEEING: [Self; 6] = [
        Self::Serve,
        Self::ServeAuto,
        Self::ServeTls,
        Self::OwnLoop,
        Self::OwnLoopAuto,
        Self::OwnLoopTls,
    ];

    pub const ALL: [Self; 7] = [
        Self::Serve,
        Self::ServeAuto,
        Self::ServeTls,
        Self::OwnLoop,
        Self::OwnLoopAuto,
        Self::OwnLoopTls,
        Self::Watch,
    ];

    pub fn is_tls(self) -> bool {
        matches!(self, Self::ServeTls | Self::OwnLoopTls)
    }
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
    /// Under [`Front::Serve`] and its kin a connection is known once it has had a request.
    pub fn get(&self, n: usize) -> Connection {
        self.0.lock().expect("no panic").connections[n].clone()
    }

    pub fn len(&self) -> usize {
        self.0.lock().expect("no panic").connections.len()
    }

    fn add(&self, connection: Connection) {
        let mut seen = self.0.lock().expect("no panic");
        if seen.names.insert(format!("{connection:?}")) {
            seen.connections.push(connection);
        }
    }
}

/// Serves `router` through `front`; each of its requests has its [`Connection`] in its extensions.
pub async fn serve(front: Front, terminator: &Terminator, router: Router) -> (Target, Known) {
    super::load::watch_load();
    let known = Known::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let to = known.clone();
    let router = router.layer(middleware::from_fn(move |request: Request, next: Next| {
        if let Some(connection) = request.extensions().get::<Connection>() {
            to.add(connection.clone());
        }
        next.run(request)
    }));
    match front {
        Front::Serve => {
            let serve = terminator.serve(listener, router);
            tokio::spawn(serve.connection_in_extensions());
        }
        Front::ServeAuto => {
            let builder = auto::Builder::new(TokioExecutor::new());
            let serve = terminator.serve(listener, router).http(builder);
            tokio::spawn(serve.connection_in_extensions());
        }
        Front::ServeTls => {
            let serve = terminator.serve(listener, router).tls(tls_acceptor(&[]));
            tokio::spawn(serve.connection_in_extensions());
        }
        Front::OwnLoop => accept(terminator, listener, &known, move |connection, io| {
            let service = TowerToHyper::new(with(&router, &connection));
            let served = connection.serve(&HttpBuilder::default(), io, service);
            async move { drop(served.await) }
        }),
        Front::OwnLoopAuto => accept(terminator, listener, &known, move |connection, io| {
            let service = TowerToHyperService::new(with(&router, &connection));
            let builder = auto::Builder::new(TokioExecutor::new());
            let served = connection.serve(&builder, io, service);
            async move { drop(served.await) }
        }),
        Front::OwnLoopTls => {
            let acceptor = tls_acceptor(&["h2", "http/1.1"]);
            accept(terminator, listener, &known, move |connection, io| {
                let service = TowerToHyper::new(with(&router, &connection));
                let accepting = acceptor.accept(io);
                async move {
                    if let Some(Ok(io)) = connection.handshake(accepting).await {
                        let builder = HttpBuilder::default();
                        let _ = connection.serve(&builder, io, service).await;
                    }
                }
            });
        }
        Front::Watch => accept(terminator, listener, &known, move |connection, io| {
            let service = TowerToHyperService::new(with(&router, &connection));
            let service = connection.service(service);
            async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let served = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
                let _ = connection.watch(served.into_owned()).await;
            }
        }),
    }
    let target = if front.is_tls() {
        Target::Tls(addr)
    } else {
        Target::Tcp(addr)
    };
    (target, known)
}

fn accept<F>(
    terminator: &Terminator,
    listener: TcpListener,
    known: &Known,
    serve: impl Fn(Connection, TrackedIo<TcpStream>) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut listener = terminator.listen(listener);
    let known = known.clone();
    tokio::spawn(async move {
        while let Some((io, _)) = listener.accept().await {
            let _ = io.with(|tcp| tcp.set_nodelay(true));
            let connection = io.connection();
            known.add(connection.clone());
            tokio::spawn(serve(connection, io));
        }
    });
}

fn with(router: &Router, connection: &Connection) -> Router {
    router.clone().layer(axum::Extension(connection.clone()))
}
