//! Clients, handlers and servers for tests that look from outside.
//!
//! Nothing here sleeps and every wait has a bound: what did not happen within [`BOUND`] panics with
//! the name of what was waited for. The clients are blocking; async tests call them in [`blocking`].
#![allow(dead_code, reason = "a library: not every test run uses all of it")]
#![allow(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "panics are its job"
)]

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};
use http::{StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower::{Service, ServiceExt};

pub mod clients;
pub mod closed_loop;
pub mod fronts;
pub mod load;
pub mod outside;
pub mod program;
pub mod skip;
pub mod storm;

use http_terminator::{Report, Terminator};

/// How long anything here waits before it panics.
pub const BOUND: Duration = Duration::from_secs(10);

/// After so long the driver closes a listener that nobody polls in a healthy runtime.
pub const ABANDONED: Duration = Duration::from_millis(500);

/// Length of what `/big` and `/bigstream` send.
pub const BIG: usize = 20 * 1024 * 1024;

// ===== waiting =====

/// Runs blocking code, such as a [`RawClient`], beside the test's runtime; its panics are ours.
pub async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(f).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => panic!("the runtime ended under blocking test code: {error}"),
    }
}

/// Runs `f` for each of these side by side, on a thread each; what panicked is named.
#[track_caller]
pub fn side_by_side<T: Copy + fmt::Debug + Send>(
    all: impl IntoIterator<Item = T>,
    f: impl Fn(T) + Sync,
) {
    let f = &f;
    let failed: Vec<_> = std::thread::scope(|scope| {
        let threads = all.into_iter().map(|it| (it, scope.spawn(move || f(it))));
        let threads: Vec<_> = threads.collect();
        let failed = threads.into_iter().filter_map(|(it, thread)| {
            thread.join().err()?;
            Some(format!("{it:?}"))
        });
        failed.collect()
    });
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}

/// The same, each with a runtime of two workers of its own, which `f` blocks none of.
#[track_caller]
pub fn each<T: Copy + fmt::Debug + Send>(
    all: impl IntoIterator<Item = T>,
    f: impl AsyncFn(T) + Sync,
) {
    side_by_side(all, |it| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.expect("threads can be had").block_on(f(it));
    });
}

/// Awaits `f` and panics with `what` if that takes longer than `d`. Lives on tokio's timer: of no
/// use where a test stalls the runtime.
pub async fn within<T>(d: Duration, what: &str, f: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(d, f).await;
    ended.unwrap_or_else(|_| panic!("not within {d:?}: {what}"))
}

/// A two-way gate: the test learns that a handler is in, and the handler waits until it is let on.
#[derive(Clone, Default)]
pub struct Gate(Arc<GateInner>);

#[derive(Default)]
struct GateInner {
    state: Mutex<GateState>,
    changed: Condvar,
    changed_async: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct GateState {
    entered: usize,
    left: usize,
    open: bool,
    /// How often the gate was opened: who came before an opening passes, also when the gate was
    /// closed again before it looked.
    openings: usize,
}

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    /// Called by a handler: says that it is here, then waits for [`open`](Self::open).
    pub async fn enter(&self) {
        let (_inside, openings) = self.arrive();
        self.until(|gate| gate.open || gate.openings != openings)
            .await;
    }

    /// Like [`enter`](Self::enter), but blocks the thread, for handlers that misbehave. Goes on by
    /// itself after three [`BOUND`]s, so that a failed test can end its runtime.
    pub fn enter_blocking(&self) {
        let (_inside, openings) = self.arrive();
        self.until_blocking(BOUND * 3, |gate| gate.open || gate.openings != openings);
    }

    /// Waits until `n` handlers have come, counted from the gate's creation.
    #[track_caller]
    pub fn wait_entered(&self, n: usize) {
        let in_time = self.until_blocking(BOUND, |gate| gate.entered >= n);
        self.assert_entered(n, in_time);
    }

    /// Like [`wait_entered`](Self::wait_entered), for async tests.
    pub async fn wait_entered_async(&self, n: usize) {
        let entered = self.until(|gate| gate.entered >= n);
        let in_time = tokio::time::timeout(BOUND, entered).await.is_ok();
        self.assert_entered(n, in_time);
    }

    /// Lets everybody through, those to come included.
    pub fn open(&self) {
        self.change(|gate| {
            gate.open = true;
            gate.openings += 1;
        });
    }

    /// Holds those to come again.
    pub fn close(&self) {
        self.change(|gate| gate.open = false);
    }

    /// How many have come so far.
    pub fn entered(&self) -> usize {
        self.state().entered
    }

    /// How many are held at the moment; a handler that was dropped is not.
    pub fn inside(&self) -> usize {
        let gate = self.state();
        gate.entered - gate.left
    }

    #[track_caller]
    fn assert_entered(&self, n: usize, in_time: bool) {
        let gate = self.state();
        assert!(in_time, "not {n} at the gate within {BOUND:?}: {gate:?}");
    }

    fn arrive(&self) -> (Inside<'_>, usize) {
        let openings = self.change(|gate| {
            gate.entered += 1;
            gate.openings
        });
        (Inside(self), openings)
    }

    async fn until(&self, done: impl Fn(&GateState) -> bool) {
        loop {
            // Made before looking: it sees every change from here on.
            let changed = self.0.changed_async.notified();
            if done(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn until_blocking(&self, bound: Duration, done: impl Fn(&GateState) -> bool) -> bool {
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.lock(), bound, |gate| !done(gate));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn change<T>(&self, change: impl FnOnce(&mut GateState) -> T) -> T {
        let value = change(&mut self.lock());
        self.0.changed.notify_all();
        self.0.changed_async.notify_waiters();
        value
    }

    fn state(&self) -> GateState {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the leaving on every path, a dropped handler's too.
struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.change(|gate| gate.left += 1);
    }
}

// ===== the application =====

/// What the handlers of [`app`] share with the test.
#[derive(Clone, Default)]
pub struct App {
    pub gate: Gate,
    /// For `/terminate`.
    pub terminator: Option<Terminator>,
}

/// Handlers for every way a request can be in flight. Tests add their own with `.route(…)`.
pub fn app(state: App) -> Router {
    Router::new()
        .route("/quick", get(async || "ok"))
        .route("/slow", get(slow).post(slow))
        .route("/block", get(block))
        .route("/echo", post(async |body: Bytes| body))
        .route("/stream", get(streamed))
        .route("/big", get(async || big()))
        .route("/bigstream", get(big_stream))
        // Does not look at the body, which is dropped before the answer is on its way.
        .route(
            "/early",
            post(async || (StatusCode::PAYLOAD_TOO_LARGE, "too much")),
        )
        .route("/upgrade", get(upgrade))
        .route("/upgrade-held", get(upgrade_held))
        .route("/upgrade-slow", get(upgrade_slow))
        .route("/upgrade-told", get(upgrade_told))
        .route("/panic", get(panics))
        .route("/pending", get(std::future::pending::<&str>))
        .route("/terminate", get(terminate))
        .route("/426", get(upgrade_required))
        .layer(DefaultBodyLimit::disable())
        .with_state(state)
}

/// The bytes of `/big` and `/bigstream`.
pub fn big() -> Bytes {
    // 251 is prime: no two blocks of a power of two are alike, so a swapped or lost one shows.
    static PATTERN: LazyLock<Bytes> = LazyLock::new(|| (0..=250).cycle().take(BIG).collect());
    PATTERN.clone()
}

/// Checks the body of `/big` without printing 20 MB.
#[track_caller]
pub fn assert_big(body: &[u8]) {
    let wrong = body.iter().zip(&big()).position(|(got, sent)| got != sent);
    assert_eq!(wrong, None, "position of the first wrong byte");
    assert_eq!(body.len(), BIG, "length of the big body");
}

async fn slow(State(app): State<App>) -> &'static str {
    app.gate.enter().await;
    "slow"
}

async fn block(State(app): State<App>) -> &'static str {
    app.gate.enter_blocking();
    "blocked"
}

async fn streamed(State(app): State<App>) -> Body {
    let last = stream::once(async move {
        // The first part is out before the gate is reached.
        tokio::task::yield_now().await;
        app.gate.enter().await;
        "last\n"
    });
    let chunks = stream::iter(["first\n"]).chain(last);
    Body::from_stream(chunks.map(Ok::<_, Infallible>))
}

async fn big_stream() -> Body {
    let chunks = (0..BIG)
        .step_by(64 * 1024)
        .map(|at| big().slice(at..at + 64 * 1024));
    Body::from_stream(stream::iter(chunks.map(Ok::<_, Infallible>)))
}

async fn upgrade(request: Request) -> Response {
    switch(request, |io| async move {
        let (mut from, mut to) = tokio::io::split(io);
        // An error is a connection that was cut: the client sees it, nobody here needs to.
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    })
}

async fn upgrade_held(request: Request) -> Response {
    switch(request, |io| async move {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        drop(io);
    })
}

async fn upgrade_slow(State(app): State<App>, request: Request) -> Response {
    app.gate.enter().await;
    upgrade(request).await
}

/// Holds the stream until it is told.
async fn upgrade_told(State(app): State<App>, request: Request) -> Response {
    let terminator = app.terminator.expect("`/upgrade-told` needs one");
    switch(request, move |io| async move {
        terminator.draining().await;
        drop(io);
    })
}

/// Answers 101 and gives the upgraded stream to `talk`, in a task of its own.
fn switch<F>(
    mut request: Request,
    talk: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    if request
        .headers()
        .get(header::UPGRADE)
        .is_none_or(|protocol| protocol != "echo")
    {
        return (StatusCode::BAD_REQUEST, "say `upgrade: echo`").into_response();
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // It fails if the connection ends before the 101 is out; then there is nobody to talk to.
        if let Ok(io) = upgraded.await {
            talk(TokioIo::new(io)).await;
        }
    });
    let names = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")];
    (StatusCode::SWITCHING_PROTOCOLS, names).into_response()
}

async fn panics() -> &'static str {
    panic!("this handler panics on purpose")
}

async fn terminate(State(app): State<App>) -> &'static str {
    let terminator = app
        .terminator
        .expect("`/terminate` needs `App { terminator: Some(…) }`");
    drop(terminator.terminate());
    "bye"
}

async fn upgrade_required() -> impl IntoResponse {
    let names = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "h2c")];
    (StatusCode::UPGRADE_REQUIRED, names, "upgrade, please")
}

// ===== servers =====

/// The ways to serve an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontEnd {
    /// `Terminator::serve` with a router, over TCP.
    Serve,
    /// The same over a Unix socket.
    ServeUnix,
    /// `Terminator::listen` and `Connection::serve` in an accept loop of the user's own.
    OwnLoop,
    /// `Terminator::serve` with a tower service that is not axum's.
    HyperServe,
    /// `Terminator::serve` over TLS, with the application protocols that `Serve::tls` offers.
    #[cfg(feature = "rustls")]
    ServeTls,
    /// [`OwnLoop`](Self::OwnLoop) with a TLS handshake of the user's own.
    OwnLoopTls,
}

impl FrontEnd {
    /// Those without TLS.
    pub fn all() -> [Self; 4] {
        [
            Self::Serve,
            Self::ServeUnix,
            Self::OwnLoop,
            Self::HyperServe,
        ]
    }

    /// Those over TLS.
    pub fn tls() -> Vec<Self> {
        [
            #[cfg(feature = "rustls")]
            Self::ServeTls,
            Self::OwnLoopTls,
        ]
        .to_vec()
    }

    /// Every one there is.
    pub fn all_and_tls() -> Vec<Self> {
        [&Self::all()[..], &Self::tls()].concat()
    }

    pub fn is_tls(self) -> bool {
        Self::tls().contains(&self)
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Tcp(SocketAddr),
    Tls(SocketAddr),
    Unix(PathBuf),
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
    /// Ends with the report, or with nothing from [`FrontEnd::OwnLoop`], whose accept loop has none.
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
    load::watch_load();
    if front == FrontEnd::ServeUnix {
        let dir = Dir::new();
        let path = dir.0.join("socket");
        let listener = tokio::net::UnixListener::bind(&path).expect("binds in a fresh directory");
        let task = tokio::spawn(some(terminator.serve(listener, app)));
        return Server {
            target: Target::Unix(path),
            addr: None,
            task,
            dir: Some(dir),
        };
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    let target = if front.is_tls() {
        Target::Tls(addr)
    } else {
        Target::Tcp(addr)
    };
    let task = match front {
        FrontEnd::Serve | FrontEnd::ServeUnix => {
            tokio::spawn(some(terminator.serve(listener, app)))
        }
        #[cfg(feature = "rustls")]
        FrontEnd::ServeTls => {
            tokio::spawn(some(terminator.serve(listener, app).tls(tls_acceptor(&[]))))
        }
        FrontEnd::OwnLoopTls => {
            let nodelay = SockRef::from(&listener).set_tcp_nodelay(true);
            nodelay.expect("a TCP listener takes TCP options");
            let mut listener = terminator.listen(listener);
            let acceptor = tls_acceptor(&["h2", "http/1.1"]);
            let builder = auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move {
                while let Some((io, _)) = listener.accept().await {
                    let connection = io.connection();
                    let service = TowerToHyperService::new(app.clone());
                    let (handshake, builder) = (acceptor.accept(io), builder.clone());
                    tokio::spawn(async move {
                        if let Ok(io) = handshake.await {
                            let _ = connection.serve(&builder, io, service).await;
                        }
                    });
                }
                None
            })
        }
        FrontEnd::HyperServe => tokio::spawn(some(terminator.serve(listener, Bare(app)))),
        FrontEnd::OwnLoop => {
            // As `serve` does for its connections; on Linux they inherit it from the listener.
            let nodelay = SockRef::from(&listener).set_tcp_nodelay(true);
            nodelay.expect("a TCP listener takes TCP options");
            let mut listener = terminator.listen(listener);
            let builder = auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move {
                while let Some((io, _)) = listener.accept().await {
                    let connection = io.connection();
                    let service = TowerToHyperService::new(app.clone());
                    tokio::spawn(connection.serve(&builder, io, service));
                }
                None
            })
        }
    };
    Server {
        target,
        addr: Some(addr),
        task,
        dir: None,
    }
}

async fn some<F: Future>(future: F) -> Option<F::Output> {
    Some(future.await)
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

// ===== TLS =====

/// Both ends' configurations, around one self-signed certificate.
struct Tls {
    server: ServerConfig,
    client: ClientConfig,
    key: String,
}

/// A test that starts itself once more sets this to [`tls_key`] for the other process, so that each believes the
/// other.
pub const TLS_KEY: &str = "HTTP_TERMINATOR_TEST_KEY";

pub fn tls_key() -> &'static str {
    &TLS.key
}

static TLS: LazyLock<Tls> = LazyLock::new(|| {
    let pair = match std::env::var(TLS_KEY) {
        Ok(pem) => rcgen::KeyPair::from_pem(&pem).expect("another's key"),
        Err(_) => rcgen::KeyPair::generate().expect("a key can be made"),
    };
    let names = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let made = names.self_signed(&pair).expect("a certificate can be made");
    let key = PrivateKeyDer::try_from(pair.serialize_der()).expect("rcgen's key");
    let certificate = made.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("it parses");
    let provider = Arc::new(ring::default_provider());
    let versions = "ring knows the default versions";
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect(versions)
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("the key is the certificate's");
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect(versions)
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every handshake is a whole one.
    client.resumption = Resumption::disabled();
    Tls {
        server,
        client,
        key: pair.serialize_pem(),
    }
});

/// Accepts handshakes for `localhost` and these application protocols.
pub fn tls_acceptor(alpn: &[&str]) -> TlsAcceptor {
    let mut config = TLS.server.clone();
    config.alpn_protocols = protocols(alpn);
    Arc::new(config).into()
}

/// A client's end of TLS, before its first byte; offers these application protocols.
pub fn tls_client(alpn: &[&str]) -> ClientConnection {
    let connection = ClientConnection::new(tls_config(alpn), localhost());
    connection.expect("the configuration is fine")
}

/// The first bytes of this client.
pub fn client_hello(tls: &mut ClientConnection) -> Vec<u8> {
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).expect("a vector takes it all");
    hello
}

fn tls_config(alpn: &[&str]) -> Arc<ClientConfig> {
    let mut config = TLS.client.clone();
    config.alpn_protocols = protocols(alpn);
    Arc::new(config)
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

// ===== bytes on a socket =====

/// Why there is nothing more to read.
#[must_use = "a timeout is no end"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadEnd {
    /// The peer ended where it may: between two messages.
    Eof,
    /// The peer ended in the middle of a message.
    Truncated,
    /// Over TLS: the TCP stream ended without a `close_notify`, as an attacker could end it.
    NoCloseNotify,
    Reset,
    /// Nothing, or not all, came in time. What came of a head, a chunk or a frame is kept for the next
    /// call; a body that was to be read whole is lost.
    Timeout,
}

/// A blocking socket, what was read from it but not used yet, and a bound for each call.
///
/// Over TLS what goes through it is plaintext, and its end is a `close_notify` *and* the end of the
/// TCP stream.
struct Wire {
    socket: Socket,
    /// Locked, never waited for: it makes sending possible where only reading is exclusive.
    tls: Option<Mutex<ClientConnection>>,
    unread: BytesMut,
    timeout: Duration,
}

impl Wire {
    /// Connects and panics at the caller's line if it can't.
    #[track_caller]
    fn connected(target: &Target, alpn: &str) -> Self {
        match Self::connect(target, alpn) {
            Ok(wire) => wire,
            Err(error) => panic!("connecting {target:?}: {error}"),
        }
    }

    /// Over TLS: when the handshake is done, as far as this side can tell.
    fn connect(target: &Target, alpn: &str) -> io::Result<Self> {
        let socket = match target {
            Target::Tcp(addr) | Target::Tls(addr) => {
                let stream = TcpStream::connect_timeout(addr, BOUND)?;
                stream.set_nodelay(true)?;
                Socket::from(stream)
            }
            Target::Unix(path) => Socket::from(UnixStream::connect(path)?),
        };
        socket.set_write_timeout(Some(BOUND))?;
        let mut wire = Self {
            socket,
            tls: None,
            unread: BytesMut::new(),
            timeout: BOUND,
        };
        if let Target::Tls(_) = target {
            wire.shake_hands(tls_client(&[alpn]))?;
        }
        Ok(wire)
    }

    /// Speaks TLS from here on; bytes of this client may have been sent.
    fn shake_hands(&mut self, mut tls: ClientConnection) -> io::Result<()> {
        self.socket.set_read_timeout(Some(BOUND))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut &self.socket)?;
        }
        self.tls = Some(Mutex::new(tls));
        Ok(())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    #[track_caller]
    fn send(&self, bytes: &[u8]) {
        self.write_all(bytes).expect("the peer takes what we send");
    }

    fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &self.tls else {
            return (&self.socket).write_all(bytes);
        };
        let mut tls = lock(tls);
        // Records one by one, past no limit of the buffer between.
        for record in bytes.chunks(16 * 1024) {
            tls.writer().write_all(record)?;
            flush(&mut tls, &self.socket)?;
        }
        Ok(())
    }

    /// Reads once; over TLS, until there is plaintext.
    fn read(&mut self, part: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return (&self.socket).read(part);
        };
        let tls = tls.get_mut().unwrap_or_else(PoisonError::into_inner);
        loop {
            match tls.reader().read(part) {
                Ok(0) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            tls.read_tls(&mut &self.socket)?;
            tls.process_new_packets().map_err(io::Error::other)?;
            flush(tls, &self.socket)?;
        }
        // After the close_notify.
        match (&self.socket).read(part)? {
            0 => Ok(0),
            n => Err(io::Error::other(format!(
                "{n} bytes after the close_notify"
            ))),
        }
    }

    /// Reads once; adds at least a byte to `unread`, or says why it can't.
    fn fill(&mut self, deadline: Instant) -> Result<(), ReadEnd> {
        let mut part = [0; 16 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ReadEnd::Timeout);
            }
            // Rounds to microseconds, and zero would mean for ever.
            let left = left.max(Duration::from_millis(1));
            self.socket
                .set_read_timeout(Some(left))
                .expect("sockets take a read timeout");
            match self.read(&mut part) {
                Ok(0) => return Err(ReadEnd::Eof),
                Ok(n) => {
                    self.unread.extend_from_slice(&part[..n]);
                    return Ok(());
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Err(ReadEnd::Timeout),
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                        return Err(ReadEnd::Reset);
                    }
                    ErrorKind::UnexpectedEof => return Err(ReadEnd::NoCloseNotify),
                    _ => panic!("reading: {error}"),
                },
            }
        }
    }

    /// Reads until `unread` holds `n` bytes and takes them.
    fn take(&mut self, n: usize, deadline: Instant) -> Result<BytesMut, ReadEnd> {
        while self.unread.len() < n {
            self.fill_message(deadline)?;
        }
        Ok(self.unread.split_to(n))
    }

    /// [`fill`](Self::fill) for messages: an end of file after a part of one is none.
    fn fill_message(&mut self, deadline: Instant) -> Result<(), ReadEnd> {
        match self.fill(deadline) {
            Err(ReadEnd::Eof) if !self.unread.is_empty() => Err(ReadEnd::Truncated),
            filled => filled,
        }
    }

    /// Unwraps what was read; the panic names the line of the test.
    #[track_caller]
    fn expect<T>(&self, read: Result<T, ReadEnd>, what: &str) -> T {
        match read {
            Ok(value) => value,
            Err(end) => panic!("no {what}: {end:?} after {:?}", lossy(&self.unread)),
        }
    }

    /// What ends the connection, if the peer sends nothing before.
    #[track_caller]
    fn end(&mut self) -> ReadEnd {
        let deadline = self.deadline();
        if self.unread.is_empty() {
            if let Err(end) = self.fill(deadline) {
                return end;
            }
        }
        panic!("the peer went on talking: {:?}", lossy(&self.unread));
    }

    #[track_caller]
    fn encrypt(&self, bytes: &[u8]) -> Vec<u8> {
        let mut tls = lock(self.tls.as_ref().expect("a TLS client"));
        let mut records = Vec::new();
        let buffered = tls.writer().write_all(bytes);
        buffered.expect("less than the buffer's limit");
        while tls.wants_write() {
            tls.write_tls(&mut records).expect("a vector takes it all");
        }
        records
    }

    #[track_caller]
    fn send_raw(&self, bytes: &[u8]) {
        let sent = (&self.socket).write_all(bytes);
        sent.expect("the peer takes what we send");
    }

    fn is_still_open(&self) -> bool {
        self.socket
            .set_nonblocking(true)
            .expect("sockets can be made non-blocking");
        let is_open = match &self.tls {
            None => match self.socket.peek(&mut [MaybeUninit::uninit()]) {
                Ok(n) => n > 0,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            },
            // A peek would see the session tickets, which nobody asked for.
            Some(tls) => is_open(&mut lock(tls), &self.socket),
        };
        self.socket
            .set_nonblocking(false)
            .expect("sockets can be made blocking again");
        is_open
    }
}

fn lock(tls: &Mutex<ClientConnection>) -> MutexGuard<'_, ClientConnection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

fn flush(tls: &mut ClientConnection, mut socket: &Socket) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    Ok(())
}

/// Takes in what has come, until it is plaintext or an end.
fn is_open(tls: &mut ClientConnection, mut socket: &Socket) -> bool {
    loop {
        match tls.process_new_packets() {
            Ok(state) if state.plaintext_bytes_to_read() > 0 => return true,
            Ok(state) if state.peer_has_closed() => return false,
            Ok(_) => {}
            Err(_) => return false,
        }
        match tls.read_tls(&mut socket) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// Text to show in a failure: the first few hundred bytes.
fn lossy(bytes: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
    let more = if bytes.len() > 300 { "…" } else { "" };
    format!("{shown}{more}")
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

// ===== HTTP/1 =====

const HTTP_1: &str = "http/1.1";

/// A blocking HTTP/1 client that shows everything. No call waits longer than its timeout
/// ([`BOUND`] unless [set](Self::set_timeout)).
pub struct RawClient {
    wire: Wire,
    body: Framing,
    trailers: Headers,
}

/// What is still to come of the body of the response read last.
#[derive(Clone, Copy)]
enum Framing {
    Length(usize),
    Chunked,
    UntilEof,
}

/// Names in lower case, in the order in which they came; the values of a name that came more than
/// once are joined by `, `.
pub type Headers = Vec<(String, String)>;

/// One response, an interim (1xx) one as well.
#[derive(Clone)]
pub struct RawResponse {
    pub status: u16,
    /// `HTTP/1.1`, say.
    pub version: String,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub trailers: Headers,
}

impl RawResponse {
    /// The value of a header, all values joined by `, `.
    pub fn header(&self, name: &str) -> Option<&str> {
        let field = self
            .headers
            .iter()
            .find(|(it, _)| it.eq_ignore_ascii_case(name))?;
        Some(&field.1)
    }

    /// Whether `Connection` lists `close`.
    pub fn says_close(&self) -> bool {
        self.connection_says("close")
    }

    /// Whether `Connection` lists `keep-alive`; HTTP/1.1 keeps connections also without.
    pub fn says_keep_alive(&self) -> bool {
        self.connection_says("keep-alive")
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("this body is text")
    }

    fn connection_says(&self, word: &str) -> bool {
        let options = self.header("connection").unwrap_or_default();
        options
            .split(',')
            .any(|option| option.trim().eq_ignore_ascii_case(word))
    }
}

impl fmt::Debug for RawResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            status,
            version,
            headers,
            body,
            trailers,
        } = self;
        write!(
            f,
            "{version} {status} {headers:?}, {} bytes {:?}",
            body.len(),
            lossy(body)
        )?;
        if trailers.is_empty() {
            Ok(())
        } else {
            write!(f, ", trailers {trailers:?}")
        }
    }
}

impl RawClient {
    #[track_caller]
    pub fn connect(target: impl Into<Target>) -> Self {
        Self::new(Wire::connected(&target.into(), HTTP_1))
    }

    /// For a server that may refuse.
    pub fn try_connect(target: impl Into<Target>) -> io::Result<Self> {
        Wire::connect(&target.into(), HTTP_1).map(Self::new)
    }

    fn new(wire: Wire) -> Self {
        Self {
            wire,
            body: Framing::Length(0),
            trailers: Headers::new(),
        }
    }

    /// Bounds every later read; shorter than [`BOUND`] where a test expects that nothing comes.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.wire.timeout = timeout;
    }

    #[track_caller]
    pub fn send(&self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes.as_ref());
    }

    /// For a peer that may have gone.
    pub fn try_send(&self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.write_all(bytes.as_ref())
    }

    /// Sends a GET that lets the connection live on.
    #[track_caller]
    pub fn get(&self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    }

    /// Sends a GET that asks for the echo protocol.
    #[track_caller]
    pub fn get_upgrade(&self, path: &str) {
        self.send(format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n"
        ));
    }

    /// Sends a POST with its whole body.
    #[track_caller]
    pub fn post(&self, path: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let length = body.len();
        self.send(format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
        ));
        self.send(body);
    }

    /// [`get`](Self::get) and its response.
    #[track_caller]
    pub fn fetch(&mut self, path: &str) -> RawResponse {
        self.get(path);
        self.read_response()
    }

    /// Reads one response, whole. Interim ones (1xx) are returned as they come. Not for the answer
    /// to a HEAD: that one is [`read_response_headers`](Self::read_response_headers).
    #[track_caller]
    pub fn read_response(&mut self) -> RawResponse {
        let read = self.try_read_response();
        self.wire.expect(read, "response")
    }

    pub fn try_read_response(&mut self) -> Result<RawResponse, ReadEnd> {
        let mut response = self.try_read_response_headers()?;
        response.body = self.try_read_body()?;
        response.trailers = std::mem::take(&mut self.trailers);
        Ok(response)
    }

    /// Reads a response up to the end of its head; `read_chunk` or `read_body` go on from there.
    #[track_caller]
    pub fn read_response_headers(&mut self) -> RawResponse {
        let read = self.try_read_response_headers();
        self.wire.expect(read, "response head")
    }

    pub fn try_read_response_headers(&mut self) -> Result<RawResponse, ReadEnd> {
        let deadline = self.wire.deadline();
        let end = loop {
            if let Some(at) = find(&self.wire.unread, b"\r\n\r\n") {
                break at + 4;
            }
            self.wire.fill_message(deadline)?;
        };
        let head = self.wire.unread.split_to(end);
        let response = parse_head(&head);
        self.body = framing(&response);
        Ok(response)
    }

    /// Reads the next part of the body: a chunk where it is chunked, else what has come. `None` is
    /// its end.
    #[track_caller]
    pub fn read_chunk(&mut self) -> Option<Bytes> {
        let read = self.try_read_chunk();
        self.wire.expect(read, "chunk")
    }

    pub fn try_read_chunk(&mut self) -> Result<Option<Bytes>, ReadEnd> {
        self.next_part(self.wire.deadline())
    }

    /// Reads what is left of the body.
    #[track_caller]
    pub fn read_body(&mut self) -> Vec<u8> {
        let read = self.try_read_body();
        self.wire.expect(read, "whole body")
    }

    pub fn try_read_body(&mut self) -> Result<Vec<u8>, ReadEnd> {
        let deadline = self.wire.deadline();
        let mut body = Vec::new();
        while let Some(part) = self.next_part(deadline)? {
            body.extend_from_slice(&part);
        }
        Ok(body)
    }

    /// Reads `n` bytes that are no HTTP, after a 101 say.
    #[track_caller]
    pub fn read_exact(&mut self, n: usize) -> Vec<u8> {
        let read = self.wire.take(n, self.wire.deadline());
        self.wire.expect(read, &format!("{n} bytes")).to_vec()
    }

    /// The peer ends the connection, without a word and without a reset.
    #[track_caller]
    pub fn expect_eof(&mut self) {
        assert_eq!(self.wire.end(), ReadEnd::Eof, "how the connection ended");
    }

    #[track_caller]
    pub fn expect_reset_or_eof(&mut self) {
        let end = self.wire.end();
        assert!(
            matches!(end, ReadEnd::Eof | ReadEnd::NoCloseNotify | ReadEnd::Reset),
            "how the connection ended: {end:?}"
        );
    }

    /// Reads and drops whatever comes until the connection ends; says how.
    pub fn read_to_end(&mut self) -> ReadEnd {
        let deadline = self.wire.deadline();
        loop {
            self.wire.unread.clear();
            if let Err(end) = self.wire.fill(deadline) {
                return end;
            }
        }
    }

    /// Whether the peer's end is still there, as far as is known here right now. Bytes that wait to
    /// be read count as open.
    pub fn is_still_open(&self) -> bool {
        self.wire.is_still_open()
    }

    pub fn is_tls(&self) -> bool {
        self.wire.tls.is_some()
    }

    /// Over TLS with a `close_notify`.
    pub fn shutdown_write(&self) {
        if let Some(tls) = &self.wire.tls {
            let mut tls = lock(tls);
            tls.send_close_notify();
            flush(&mut tls, &self.wire.socket).expect("the peer takes what we send");
        }
        self.wire
            .socket
            .shutdown(Shutdown::Write)
            .expect("the socket is still connected");
    }

    /// The socket: to set options on it, or for its address.
    pub fn socket(&self) -> &Socket {
        &self.wire.socket
    }

    /// The bare socket; converts into a `TcpStream` or `UnixStream`. Bytes read ahead are lost.
    pub fn into_inner(self) -> Socket {
        self.wire.socket
    }

    /// On a plain connection to a TLS server, after what was [sent](Self::send) of this client's
    /// bytes by hand: does the rest of its handshake, and speaks TLS from then on.
    pub fn shake_hands(&mut self, tls: ClientConnection) -> io::Result<()> {
        self.wire.shake_hands(tls)
    }

    /// The bytes that [`send`](Self::send) would send, for [`send_raw`](Self::send_raw).
    #[track_caller]
    pub fn encrypt(&self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        self.wire.encrypt(bytes.as_ref())
    }

    /// Sends bytes below TLS.
    #[track_caller]
    pub fn send_raw(&self, bytes: &[u8]) {
        self.wire.send_raw(bytes);
    }

    /// The application protocol that the server chose.
    pub fn alpn(&self) -> Option<String> {
        let tls = lock(self.wire.tls.as_ref()?);
        tls.alpn_protocol().map(lossless)
    }

    fn next_part(&mut self, deadline: Instant) -> Result<Option<Bytes>, ReadEnd> {
        loop {
            let unread = self.wire.unread.len();
            match self.body {
                Framing::Length(0) => return Ok(None),
                Framing::Length(left) if unread > 0 => {
                    let part = self.wire.unread.split_to(left.min(unread));
                    self.body = Framing::Length(left - part.len());
                    return Ok(Some(part.freeze()));
                }
                Framing::UntilEof if unread > 0 => {
                    return Ok(Some(self.wire.unread.split().freeze()));
                }
                Framing::Chunked => {
                    if let Some(chunk) = self.take_chunk() {
                        return Ok(Some(chunk).filter(|chunk| !chunk.is_empty()));
                    }
                }
                Framing::Length(_) | Framing::UntilEof => {}
            }
            match (self.wire.fill(deadline), self.body) {
                (Ok(()), _) => {}
                (Err(ReadEnd::Eof), Framing::UntilEof) => self.body = Framing::Length(0),
                (Err(ReadEnd::Eof), _) => return Err(ReadEnd::Truncated),
                (Err(end), _) => return Err(end),
            }
        }
    }

    /// The next chunk, if it is here as a whole; an empty one is the last, with its trailers.
    fn take_chunk(&mut self) -> Option<Bytes> {
        let unread = &mut self.wire.unread;
        let line = find(unread, b"\r\n")?;
        let size = std::str::from_utf8(&unread[..line]).expect("chunk sizes are text");
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16)
            .unwrap_or_else(|_| panic!("no chunk size: {:?}", lossy(unread)));
        if size == 0 {
            // The CRLF of the size line may be the first half of the empty line.
            let end = find(&unread[line..], b"\r\n\r\n")?;
            let trailers = unread.split_to(line + end + 4);
            self.trailers = parse_fields(&lossless(&trailers[line..]));
            self.body = Framing::Length(0);
            return Some(Bytes::new());
        }
        if unread.len() < line + 2 + size + 2 {
            return None;
        }
        unread.advance(line + 2);
        let chunk = unread.split_to(size).freeze();
        assert_eq!(&unread.split_to(2)[..], b"\r\n", "what ends a chunk");
        Some(chunk)
    }
}

fn parse_head(head: &[u8]) -> RawResponse {
    let head = lossless(head);
    let (first, fields) = head.split_once("\r\n").unwrap_or((&head, ""));
    let mut words = first.splitn(3, ' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|status| status.parse().ok());
    let Some(status) = status.filter(|_| version.starts_with("HTTP/1.")) else {
        panic!("no HTTP/1 status line: {first:?}");
    };
    RawResponse {
        status,
        version: version.to_owned(),
        headers: parse_fields(fields),
        body: Vec::new(),
        trailers: Headers::new(),
    }
}

fn parse_fields(fields: &str) -> Headers {
    let mut headers = Headers::new();
    for line in fields.split("\r\n").filter(|line| !line.is_empty()) {
        let (name, value) = line
            .split_once(':')
            .unwrap_or_else(|| panic!("no field: {line:?}"));
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        match headers.iter_mut().find(|(it, _)| *it == name) {
            Some((_, values)) => *values = format!("{values}, {value}"),
            None => headers.push((name, value.to_owned())),
        }
    }
    headers
}

fn framing(response: &RawResponse) -> Framing {
    if matches!(response.status, 100..=199 | 204 | 304) {
        return Framing::Length(0);
    }
    if response
        .header("transfer-encoding")
        .is_some_and(|coding| coding.ends_with("chunked"))
    {
        return Framing::Chunked;
    }
    response
        .header("content-length")
        .map_or(Framing::UntilEof, |length| {
            Framing::Length(
                length
                    .parse()
                    .unwrap_or_else(|_| panic!("no length: {length:?}")),
            )
        })
}

fn lossless(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("our own heads and trailers are UTF-8")
}

// ===== HTTP/2 =====

const H2: &str = "h2";

/// An HTTP/2 client that behaves, on the `h2` crate.
pub struct H2Client {
    sender: h2::client::SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
    tls: bool,
}

/// Connects with h2's defaults.
pub async fn h2_connect(target: impl Into<Target>) -> H2Client {
    h2_connect_with(target, |_| ()).await
}

/// Connects with settings of the test's own, such as
/// `|h2| { h2.initial_window_size(1024); }`.
pub async fn h2_connect_with(
    target: impl Into<Target>,
    set: impl FnOnce(&mut h2::client::Builder),
) -> H2Client {
    let target = target.into();
    let connected = h2_try_connect_with(&target, set).await;
    connected.unwrap_or_else(|(error, _)| panic!("connecting {target:?}: {error}"))
}

/// For a server that may refuse: then with the time at which the first byte was sent, if any was.
pub async fn h2_try_connect(target: impl Into<Target>) -> Result<H2Client, (io::Error, Instant)> {
    h2_try_connect_with(&target.into(), |_| ()).await
}

async fn h2_try_connect_with(
    target: &Target,
    set: impl FnOnce(&mut h2::client::Builder),
) -> Result<H2Client, (io::Error, Instant)> {
    trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
    impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

    let mut builder = h2::client::Builder::new();
    set(&mut builder);
    let mut spoke = None;
    let connect = async {
        let io: Box<dyn Io> = match target {
            Target::Tcp(addr) => {
                let stream = tokio::net::TcpStream::connect(addr).await?;
                // Or its window updates wait for delayed ACKs: 45 ms each.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Target::Tls(addr) => {
                let stream = tokio::net::TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                let connector = TlsConnector::from(tls_config(&[H2]));
                let mut connecting = connector.connect(localhost(), stream);
                // Its first poll sends the ClientHello.
                let begun = poll_fn(|cx| Poll::Ready(Pin::new(&mut connecting).poll(cx))).await;
                spoke = Some(Instant::now());
                Box::new(match begun {
                    Poll::Ready(connected) => connected?,
                    Poll::Pending => connecting.await?,
                })
            }
            Target::Unix(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
        };
        builder.handshake(io).await.map_err(io::Error::other)
    };
    let connected: io::Result<_> = within(BOUND, "HTTP/2 connect", connect).await;
    let (sender, connection) =
        connected.map_err(|error| (error, spoke.unwrap_or_else(Instant::now)))?;
    Ok(H2Client {
        sender,
        connection: tokio::spawn(connection),
        tls: matches!(target, Target::Tls(_)),
    })
}

impl H2Client {
    /// GETs `path` whole.
    pub async fn get(&self, path: &str) -> (StatusCode, Vec<u8>) {
        let got = self.try_get(path).await;
        got.unwrap_or_else(|error| panic!("HTTP/2 GET {path}: {error}"))
    }

    pub async fn try_get(&self, path: &str) -> Result<(StatusCode, Vec<u8>), h2::Error> {
        within(BOUND, &format!("HTTP/2 GET {path}"), async {
            h2_finish(self.try_start("GET", path, true).await?.0).await
        })
        .await
    }

    /// Sends a GET; the response is the caller's to await, [`h2_finish`] to read.
    pub async fn start(&self, path: &str) -> h2::client::ResponseFuture {
        let started = self.try_start("GET", path, true).await;
        started
            .unwrap_or_else(|error| panic!("HTTP/2 GET {path}: {error}"))
            .0
    }

    /// Sends the head of a POST; the body goes through the second half of the result.
    pub async fn start_post(
        &self,
        path: &str,
    ) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let started = self.try_start("POST", path, false).await;
        started.unwrap_or_else(|error| panic!("HTTP/2 POST {path}: {error}"))
    }

    /// Waits until the server has ended the connection. To be called once.
    pub async fn closed(&mut self) -> Result<(), h2::Error> {
        // Our `sender` lives on: without it, it would be us who end an idle connection.
        let ended = within(BOUND, "end of the HTTP/2 connection", &mut self.connection).await;
        let ended = ended.expect("the client's connection task does not panic");
        // What our own close_notify meets if the server closed its end before.
        let broken = |error: &h2::Error| {
            let io = error.get_io();
            self.tls && io.is_some_and(|io| io.kind() == ErrorKind::BrokenPipe)
        };
        match ended {
            Err(error) if broken(&error) => Ok(()),
            ended => ended,
        }
    }

    pub fn is_closed(&self) -> bool {
        self.connection.is_finished()
    }

    /// What fails was not sent.
    pub async fn try_start(
        &self,
        method: &str,
        path: &str,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let request = http::Request::builder().method(method);
        let request = request.uri(format!("http://localhost{path}")).body(());
        let request = request.expect("the test's path makes a URI");
        let ready = within(BOUND, "room for a stream", self.sender.clone().ready()).await;
        ready?.send_request(request, end)
    }
}

/// Awaits a response and its body.
pub async fn h2_finish(
    response: h2::client::ResponseFuture,
) -> Result<(StatusCode, Vec<u8>), h2::Error> {
    let (head, mut stream) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(part) = stream.data().await {
        let part = part?;
        stream.flow_control().release_capacity(part.len())?;
        body.extend_from_slice(&part);
    }
    Ok((head.status, body))
}

/// The first bytes of an HTTP/2 client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types, for [`Frame::kind`].
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
}

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 frame as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Of a SETTINGS or PING frame.
    pub fn is_ack(&self) -> bool {
        matches!(self.kind, kind::SETTINGS | kind::PING) && self.flags & ACK != 0
    }

    /// Of a DATA or HEADERS frame.
    pub fn is_end_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & END_STREAM != 0
    }

    /// Last stream and error code of a GOAWAY frame.
    pub fn goaway(&self) -> (u32, u32) {
        assert_eq!(self.kind, kind::GOAWAY, "{self:?} is no GOAWAY");
        let mut payload = &self.payload[..];
        (payload.get_u32() & 0x7fff_ffff, payload.get_u32())
    }
}

/// An HTTP/2 client that does nothing by itself: acknowledges neither SETTINGS nor PING, gives no
/// window back.
pub struct RawH2 {
    wire: Wire,
}

/// A connection on which nothing was sent yet but a TLS handshake.
impl From<RawClient> for RawH2 {
    fn from(client: RawClient) -> Self {
        Self { wire: client.wire }
    }
}

impl RawH2 {
    /// Connects; sends the preface and an empty SETTINGS frame.
    #[track_caller]
    pub fn connect(target: impl Into<Target>) -> Self {
        Self::connect_with(target, &[])
    }

    /// Connects; sends the preface and a SETTINGS frame with these `(identifier, value)` pairs.
    #[track_caller]
    pub fn connect_with(target: impl Into<Target>, settings: &[(u16, u32)]) -> Self {
        let client = Self::connect_silent(target);
        let pair =
            |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let payload: Vec<u8> = settings.iter().flat_map(pair).collect();
        client.send(PREFACE);
        client.send_frame(kind::SETTINGS, 0, 0, &payload);
        client
    }

    /// Connects and sends nothing.
    #[track_caller]
    pub fn connect_silent(target: impl Into<Target>) -> Self {
        Self {
            wire: Wire::connected(&target.into(), H2),
        }
    }

    /// Bounds every later read.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.wire.timeout = timeout;
    }

    #[track_caller]
    pub fn send(&self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes.as_ref());
    }

    /// The socket: to set options on it, or for its address.
    pub fn socket(&self) -> &Socket {
        &self.wire.socket
    }

    /// For a peer that may have gone.
    pub fn try_send(&self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.write_all(bytes.as_ref())
    }

    #[track_caller]
    pub fn send_frame(&self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a frame is smaller than 16 MB");
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.send(frame);
    }

    #[track_caller]
    pub fn ack_settings(&self) {
        self.send_frame(kind::SETTINGS, ACK, 0, &[]);
    }

    /// Answers a PING of the server's.
    #[track_caller]
    pub fn ack_ping(&self, ping: &Frame) {
        self.send_frame(kind::PING, ACK, 0, &ping.payload);
    }

    /// The bytes that [`send`](Self::send) would send over TLS, for [`send_raw`](Self::send_raw).
    #[track_caller]
    pub fn encrypt(&self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        self.wire.encrypt(bytes.as_ref())
    }

    /// Sends bytes below TLS.
    #[track_caller]
    pub fn send_raw(&self, bytes: &[u8]) {
        self.wire.send_raw(bytes);
    }

    /// Gives the server room to send, on a stream or (0) on the connection.
    #[track_caller]
    pub fn window_update(&self, stream: u32, more: u32) {
        self.send_frame(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
    }

    /// Sends a whole GET. Streams are 1, 3, 5, …
    #[track_caller]
    pub fn get(&self, path: &str, stream: u32) {
        self.request("GET", path, stream, true);
    }

    /// Sends the head of a request; without `end`, DATA frames are to follow.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, stream: u32, end: bool) {
        let fields = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", path),
        ];
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0); // literal, not indexed, new name (RFC 7541 section 6.2.2)
            for text in [name, value] {
                let length = u8::try_from(text.len()).ok().filter(|length| *length < 127);
                block.push(length.expect("names and values here fit the one-byte length"));
                block.extend(text.as_bytes());
            }
        }
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.send_frame(kind::HEADERS, flags, stream, &block);
    }

    #[track_caller]
    pub fn read_frame(&mut self) -> Frame {
        let read = self.try_read_frame();
        self.wire.expect(read, "frame")
    }

    pub fn try_read_frame(&mut self) -> Result<Frame, ReadEnd> {
        self.frame_before(self.wire.deadline())
    }

    /// Reads and drops frames until one is of this kind.
    #[track_caller]
    pub fn read_until(&mut self, kind: u8) -> Frame {
        let deadline = self.wire.deadline();
        loop {
            match self.frame_before(deadline) {
                Ok(frame) if frame.kind == kind => return frame,
                Ok(_) => {}
                Err(end) => panic!("no frame of kind {kind}: {end:?}"),
            }
        }
    }

    /// Reads and drops whatever comes until the end of file; says how long that took.
    #[track_caller]
    pub fn expect_eof_within(&mut self, bound: Duration) -> Duration {
        let start = Instant::now();
        loop {
            self.wire.unread.clear();
            match self.wire.fill(start + bound) {
                Ok(()) => {}
                Err(ReadEnd::Eof) => return start.elapsed(),
                Err(end) => panic!("no end of file within {bound:?}: {end:?}"),
            }
        }
    }

    pub fn is_still_open(&self) -> bool {
        self.wire.is_still_open()
    }

    fn frame_before(&mut self, deadline: Instant) -> Result<Frame, ReadEnd> {
        // Taken at once with its payload, so that a timeout in between loses nothing.
        let length = loop {
            if let Some(length) = self.wire.unread.first_chunk::<3>() {
                break u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
            }
            self.wire.fill_message(deadline)?;
        };
        let mut frame = self.wire.take(9 + length, deadline)?;
        frame.advance(3);
        let (kind, flags) = (frame.get_u8(), frame.get_u8());
        let stream = frame.get_u32() & 0x7fff_ffff;
        Ok(Frame {
            kind,
            flags,
            stream,
            payload: frame.to_vec(),
        })
    }
}

/// Nobody listens there any more.
#[track_caller]
pub fn assert_refused(target: &Target) {
    let error = match target {
        Target::Tcp(addr) | Target::Tls(addr) => TcpStream::connect_timeout(addr, BOUND).err(),
        Target::Unix(path) => UnixStream::connect(path).err(),
    };
    let kind = error.as_ref().map(io::Error::kind);
    assert_eq!(
        kind,
        Some(ErrorKind::ConnectionRefused),
        "{target:?}: {error:?}"
    );
}

// ===== file descriptors =====

/// How many file descriptors of this process are connections whose local port is `port`: those of
/// the server's side, not its listener, not the clients'. None, where it isn't Linux: nothing is known there.
///
/// To be asked while the clients still hold their ends: the kernel's table no longer lists a socket
/// that both sides have ended, even if its file descriptor is open. One that was only shut down here
/// is counted.
pub fn open_fds_to(port: u16) -> usize {
    if cfg!(not(target_os = "linux")) {
        return 0;
    }
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("Linux has this file");
    // Thousands of lines after other tests, most of them of connections in TIME_WAIT.
    let hex = format!(":{port:04X} ");
    let mut inodes: Vec<String> = table
        .lines()
        .skip(1)
        .filter(|line| line.contains(&hex))
        .filter_map(|line| {
            // sl local_address rem_address st queues tr:when retrnsmt uid timeout inode
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, local) = fields.get(1)?.rsplit_once(':')?;
            let is_ours = u16::from_str_radix(local, 16) == Ok(port);
            let listens = fields[3] == "0A";
            (is_ours && !listens).then(|| format!("socket:[{}]", fields[9]))
        })
        .collect();
    // Of thousands that come and go while it is read, it lists some more than once.
    inodes.sort_unstable();
    inodes.dedup();
    held(&inodes)
}

/// The same for the Unix socket that is bound to `path`.
pub fn open_fds_at(path: &Path) -> usize {
    if cfg!(not(target_os = "linux")) {
        return 0;
    }
    let table = std::fs::read_to_string("/proc/self/net/unix").expect("Linux has this file");
    let inodes: Vec<String> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            // Num RefCount Protocol Flags Type St Inode Path, where those accepted have the listener's
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields[3] == "00010000";
            let is_ours = fields.get(7).is_some_and(|at| Path::new(at) == path);
            (is_ours && !listens).then(|| format!("socket:[{}]", fields[6]))
        })
        .collect();
    held(&inodes)
}

/// How many of these are file descriptors of this process.
fn held(inodes: &[String]) -> usize {
    let links: HashSet<PathBuf> = std::fs::read_dir("/proc/self/fd")
        .expect("Linux has this directory")
        // Another thread may have closed one meanwhile.
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .collect();
    inodes
        .iter()
        .filter(|inode| links.contains(&PathBuf::from(inode)))
        .count()
}

/// A directory that goes with its value.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let n = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("http-terminator-{}-{n}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a name of its own");
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // a leftover fails no test
    }
}
