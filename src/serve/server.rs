//! `Terminator::serve`: the accept loop and the tasks of its connections.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tower_service::Service;

use super::listener::Listener;
use super::tower::TowerToHyper;
use super::tracked::TrackedListener;
use crate::connection::{Connection, GracefulConnection, HttpBuilder, PerServer, Watched};
use crate::registry::Registry;
use crate::report::Report;
use crate::termination::Termination;

type BoxError = Box<dyn Error + Send + Sync>;

/// A server, from [`Terminator::serve`](crate::Terminator::serve): a future that accepts and serves
/// connections, each in a task of its own, until the terminator has ended them all.
///
/// Its output is the same [`Report`] that [`terminate`](crate::Terminator::terminate) gives.
///
/// # Cancel safety
///
/// Dropping it closes the listener, as the beginning of a drain does: what clients hold for connected by
/// then is accepted and served first, by a task of the runtime on which it is dropped (where there are no descriptors, what can be
/// within a second). So it may be
/// raced against a signal in a `select!`; but not with a [lame duck](crate::TerminatorBuilder::lame_duck), in which it has to
/// go on accepting: spawn it, or await it after the call (`drop(terminator.terminate()); server.await`). One that is kept and
/// no longer polled accepts nobody, and who is queued then is lost, as with a [`TrackedListener`].
/// Dropped outside of a runtime, or right before that ends, it resets what is queued. That task, and with it the service, may be dropped a turn of
/// its runtime behind the report.
/// Connections live on in their tasks, and the terminator with them.
///
/// # Panics
///
/// When polled outside of a tokio runtime with IO and time enabled.
///
/// # Examples
///
/// ```
/// # use axum::Router;
/// # use http_terminator::Terminator;
/// # use tokio::net::TcpListener;
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let terminator = Terminator::new();
/// let server = tokio::spawn(terminator.serve(listener, Router::new()));
/// let report = terminator.terminate().await;
/// assert_eq!(server.await?, report);
/// # Ok(()) }
/// ```
#[must_use = "nothing is served unless it is polled or spawned"]
pub struct Serve<L: Listener, S> {
    /// There until it has ended.
    accepting: Option<Accepting<L, S>>,
    /// What becomes of it when this is dropped before.
    finish: fn(Accepting<L, S>),
    terminated: Termination,
}

/// An accept loop, and how its connections are served.
struct Accepting<L: Listener, S> {
    listener: TrackedListener<L>,
    service: S,
    builder: Builder,
    settings: Arc<PerServer>,
    #[cfg(feature = "rustls")]
    tls: Option<Tls>,
}

/// The settings of HTTP.
#[derive(Clone)]
enum Builder {
    Ours(HttpBuilder),
    Theirs(Arc<auto::Builder<TokioExecutor>>),
}

/// An acceptor as it was given, and as the settings of HTTP allow.
#[cfg(feature = "rustls")]
struct Tls {
    given: tokio_rustls::TlsAcceptor,
    allowed: tokio_rustls::TlsAcceptor,
}

/// The service of a [`Serve`] that makes one for each connection, from
/// [`serve_make_service`](crate::Terminator::serve_make_service).
#[derive(Clone, Debug)]
pub struct PerConnection<M> {
    make: M,
}

impl<L, S> Serve<L, S>
where
    L: Listener<Io: AsyncRead + AsyncWrite + Unpin>,
    S: sealed::ForConnection<L::Addr> + Send + 'static,
{
    pub(crate) fn new(registry: &Arc<Registry>, listener: L, service: S) -> Self {
        Self {
            accepting: Some(Accepting {
                listener: TrackedListener::new(registry, listener),
                service,
                builder: Builder::Ours(HttpBuilder::default()),
                settings: Arc::default(),
                #[cfg(feature = "rustls")]
                tls: None,
            }),
            finish: Accepting::finish,
            terminated: Termination::new(registry),
        }
    }
}

impl<L, M> Serve<L, PerConnection<M>>
where
    L: Listener<Io: AsyncRead + AsyncWrite + Unpin>,
    PerConnection<M>: sealed::ForConnection<L::Addr> + Send + 'static,
{
    pub(crate) fn per_connection(registry: &Arc<Registry>, listener: L, make: M) -> Self {
        Serve::new(registry, listener, PerConnection { make })
    }
}

impl<L: Listener, S> Serve<L, S> {
    /// Serves with these settings of hyper-util's, `http1_only` and `http2_only` among them.
    ///
    /// hyper drops a request whose client half-closes the connection behind it, which is how a handler
    /// learns that its client has left. If yours half-close and wait for the answer, set
    /// `half_close(true)`, on `builder.http1()`.
    ///
    /// WebSockets over HTTP/2 (RFC 8441) are off, as in hyper; `axum::serve` offers them, by
    /// `builder.http2().enable_connect_protocol()`. Routes have to take CONNECT then (axum's `any`, not `get`): browsers no
    /// longer ask by HTTP/1.
    ///
    /// Leave its `header_read_timeout` alone: with a timer it costs every request, and closes
    /// connections that were kept and bring no other. Half-sent heads are bounded without it, by
    /// [`head_timeout`](crate::TerminatorBuilder::head_timeout).
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::Router;
    /// # use http_terminator::{Serve, Terminator};
    /// # use tokio::net::TcpListener;
    /// use hyper_util::{rt::TokioExecutor, server::conn::auto};
    ///
    /// fn serve(terminator: &Terminator, listener: TcpListener) -> Serve<TcpListener, Router> {
    ///     let mut builder = auto::Builder::new(TokioExecutor::new());
    ///     builder.http2().max_concurrent_streams(500);
    ///     terminator.serve(listener, Router::new()).http(builder)
    /// }
    /// ```
    pub fn http(self, builder: auto::Builder<TokioExecutor>) -> Self {
        self.with(Builder::Theirs(Arc::new(builder)))
    }

    /// The same with hyper's own builders, at less cost: this is what serves if nothing is said.
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::Router;
    /// # use http_terminator::{HttpBuilder, Serve, Terminator};
    /// # use tokio::net::TcpListener;
    /// fn serve(terminator: &Terminator, listener: TcpListener, app: Router) -> Serve<TcpListener, Router> {
    ///     let mut builder = HttpBuilder::default();
    ///     builder.http1().half_close(true);
    ///     terminator.serve(listener, app).builder(builder)
    /// }
    /// ```
    pub fn builder(self, builder: HttpBuilder) -> Self {
        self.with(Builder::Ours(builder))
    }

    fn with(self, builder: Builder) -> Self {
        self.set(|accepting| {
            #[cfg(feature = "rustls")]
            if let Some(tls) = &mut accepting.tls {
                tls.allow(&builder);
            }
            accepting.builder = builder;
        })
    }

    /// Serves over TLS.
    ///
    /// The handshake is done in the connection's own task, within
    /// [`head_timeout`](crate::TerminatorBuilder::head_timeout). If the acceptor's
    /// configuration names no application protocols, `h2` and `http/1.1` are offered; of these, or of
    /// its own, none that the builder given to [`http`](Self::http) does not serve, unless nothing
    /// would be left. Early data (0-RTT) are refused, whatever it says: tokio-rustls 0.26 takes them and gives them to nobody, and their client would
    /// wait. A handshake under way when the drain begins may be completed; a peer that stalls
    /// in it is closed after [`stall_timeout`](crate::TerminatorBuilder::stall_timeout).
    ///
    /// The configuration is taken once. To change certificates while serving, give it a `ResolvesServerCert` of your own,
    /// which is asked at each handshake; connections keep what they have. Handlers don't see the session: for its
    /// certificates or server name take [`listen`](crate::Terminator::listen) and
    /// [`Connection::handshake`](crate::Connection::handshake), then `tls.get_ref().1`, before the service is made. OpenSSL
    /// and others go that way as well. tokio-rustls 0.26 is yours to depend on, with a provider (`ring` or `aws_lc_rs`).
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::Router;
    /// # use http_terminator::{Serve, Terminator};
    /// # use tokio::net::TcpListener;
    /// # use tokio_rustls::TlsAcceptor;
    /// fn serve(terminator: &Terminator, listener: TcpListener, app: Router, acceptor: TlsAcceptor)
    ///     -> Serve<TcpListener, Router>
    /// {
    ///     terminator.serve(listener, app).tls(acceptor)
    /// }
    /// ```
    #[cfg(feature = "rustls")]
    pub fn tls(self, acceptor: tokio_rustls::TlsAcceptor) -> Self {
        let mut tls = Tls {
            allowed: acceptor.clone(),
            given: acceptor,
        };
        self.set(|accepting| {
            tls.allow(&accepting.builder);
            accepting.tls = Some(tls);
        })
    }

    /// For this server instead of the terminator's [`idle_timeout`](crate::TerminatorBuilder::idle_timeout). To have none here
    /// alone, set none there and one on every other server.
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::Router;
    /// # use http_terminator::{Serve, Terminator};
    /// # use tokio::net::TcpListener;
    /// # use std::time::Duration;
    /// fn serve(terminator: &Terminator, listener: TcpListener) -> Serve<TcpListener, Router> {
    ///     let server = terminator.serve(listener, Router::new());
    ///     server.idle_timeout(Duration::from_secs(75))
    /// }
    /// ```
    pub fn idle_timeout(self, timeout: Duration) -> Self {
        self.set(|it| Arc::make_mut(&mut it.settings).idle = Some(timeout))
    }

    /// Puts its [`Connection`] into the extensions of every request, from which its handler can
    /// [`terminate`](Connection::terminate) it or learn that it [`drains`](Connection::draining): axum's
    /// `Extension<Connection>`. Off by default, as it costs each request four allocations, about
    /// a thousand instructions.
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::{Extension, Router, routing::get};
    /// # use http_terminator::{Connection, Serve, Terminator};
    /// # use tokio::net::TcpListener;
    /// async fn last(Extension(connection): Extension<Connection>) {
    ///     connection.terminate();
    /// }
    ///
    /// fn serve(terminator: &Terminator, listener: TcpListener) -> Serve<TcpListener, Router> {
    ///     let app = Router::new().route("/last", get(last));
    ///     terminator.serve(listener, app).connection_in_extensions()
    /// }
    /// ```
    pub fn connection_in_extensions(self) -> Self {
        self.set(|it| Arc::make_mut(&mut it.settings).in_extensions = true)
    }

    /// Has WebSockets say goodbye by themselves when the drain begins: with a Close frame of this code, 1001
    /// ("going away") or 1012 ("service restart", of the IANA registry) say. Off by default, as a handler that
    /// [is told](crate::Terminator::draining) can say more, and what it has in hand first.
    ///
    /// Goodbye is said when the drain begins, and to one whose connection is told alone, by
    /// [`Connection::terminate`](crate::Connection::terminate), an age or a number of requests: there is no deadline then, and nobody is cut at one.
    ///
    /// The frame is put in behind a frame of the handler's, and is the last that goes out: what the handler
    /// writes from there on is taken and dropped; when its client has left without an answer, or sent nothing for
    /// [`stall_timeout`](crate::TerminatorBuilder::stall_timeout) since, writes fail with
    /// [`BrokenPipe`](std::io::ErrorKind::BrokenPipe), by which one that only writes learns of it. It goes on reading. The
    /// client answers the frame and waits for the server to close (RFC 6455 sections 5.5.1 and 7.1.1), so once its answer
    /// is read, the handler reads an end-of-file. One that does not end then, one that waits for a client that does not
    /// answer, a handler that does not poll its IO, or in the middle of a frame that does not end: each is cut at the
    /// deadline, as without this. With [`IdlePolicy::Spread`](crate::IdlePolicy::Spread) each is told in its turn. A handler that has
    /// sent a Close frame of its own gets no other.
    ///
    /// It is for upgrades of HTTP/1 to `websocket`, whoever speaks it there. Not for WebSockets over HTTP/2
    /// (RFC 8441), which share their connection, and whose handlers have to say goodbye themselves; nor once
    /// the IO is taken out by [`TrackedIo::downcast`](crate::TrackedIo::downcast).
    ///
    /// A code that clients would take for an error of ours is replaced by 1001, rather than to fail a server
    /// over its goodbye. Those that may stand in a Close frame are 1000 to 1003, 1007 to 1014, and 3000 to
    /// 4999: the others are reserved (RFC 6455 section 7.4).
    ///
    /// Of a client that sends before it has read the `101` (RFC 6455 section 4.1 has it wait) frames can't be followed: its answer to the
    /// Close frame is not seen, and it is cut at the deadline, unless its handler ends before.
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::Router;
    /// # use axum::extract::ws::{WebSocket, WebSocketUpgrade};
    /// # use axum::routing::any;
    /// # use http_terminator::Terminator;
    /// # use tokio::net::TcpListener;
    /// /// Knows nothing of any termination.
    /// async fn echo(mut socket: WebSocket) {
    ///     while let Some(Ok(message)) = socket.recv().await {
    ///         if socket.send(message).await.is_err() {
    ///             return;
    ///         }
    ///     }
    /// }
    ///
    /// # #[tokio::main] async fn main() -> std::io::Result<()> {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let app = Router::new().route("/", any(async |ws: WebSocketUpgrade| ws.on_upgrade(echo)));
    /// let terminator = Terminator::new();
    /// let server = terminator.serve(listener, app).close_websockets(1012);
    /// # terminator.terminate();
    /// println!("{}", server.await);
    /// # Ok(()) }
    /// ```
    pub fn close_websockets(self, code: u16) -> Self {
        const GOING_AWAY: u16 = 1001;
        let may_be_sent = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        let code = if may_be_sent { code } else { GOING_AWAY };
        self.set(|it| Arc::make_mut(&mut it.settings).close_websockets = Some(code))
    }

    /// What is set once it has ended is of no use, and does no harm.
    fn set(mut self, set: impl FnOnce(&mut Accepting<L, S>)) -> Self {
        if let Some(accepting) = &mut self.accepting {
            set(accepting);
        }
        self
    }
}

impl<L: Listener, S> fmt::Debug for Serve<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").finish_non_exhaustive()
    }
}

// Nothing in it is ever pinned.
impl<L: Listener, S> Unpin for Serve<L, S> {}

impl<L, S> Future for Serve<L, S>
where
    L: Listener<Io: AsyncRead + AsyncWrite + Unpin>,
    S: sealed::ForConnection<L::Addr>,
{
    type Output = Report;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Report> {
        let this = &mut *self;
        if let Some(accepting) = &mut this.accepting {
            ready!(accepting.poll(cx));
            this.accepting = None;
        }
        Pin::new(&mut this.terminated).poll(cx)
    }
}

impl<L: Listener, S> Drop for Serve<L, S> {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            (self.finish)(accepting);
        }
    }
}

impl<L, S> Accepting<L, S>
where
    L: Listener<Io: AsyncRead + AsyncWrite + Unpin>,
    S: sealed::ForConnection<L::Addr>,
{
    /// Accepts and serves, until the listener is closed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some((io, addr)) = ready!(self.listener.poll_accept(cx)) {
            io.set_nodelay();
            let accepted = Accepted {
                connection: io.connection(),
                builder: self.builder.clone(),
                settings: Arc::clone(&self.settings),
            };
            #[cfg(feature = "rustls")]
            let tls = self.tls.as_ref().map(|tls| &tls.allowed);
            #[cfg(not(feature = "rustls"))]
            let tls = None;
            match catch_unwind(AssertUnwindSafe(|| self.service.make(addr))) {
                Ok(Made::Now(service)) => accepted.spawn(io, tls, service),
                Ok(Made::Later(making)) => spawn(accepted.make(io, tls.cloned(), making)),
                // Its clone does: that breaks this connection, and nobody else's.
                Err(thrown) => spawn(async move {
                    let _its = io;
                    resume_unwind(thrown);
                }),
            }
        }
        Poll::Ready(())
    }

    /// Serves what is queued, and closes the listener.
    fn finish(mut self)
    where
        S: Send + 'static,
    {
        // Without a runtime nobody can.
        if Handle::try_current().is_ok() {
            self.listener.stop();
            spawn(async move { poll_fn(|cx| self.poll(cx)).await });
        }
    }
}

#[allow(clippy::disallowed_methods)] // this is `serve`
fn spawn(connection: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(connection));
}

#[cfg(feature = "rustls")]
impl Tls {
    fn allow(&mut self, builder: &Builder) {
        let given = &self.given.config().alpn_protocols;
        let (http1, http2) = match builder {
            Builder::Ours(it) => (it.is_http1_available(), it.is_http2_available()),
            Builder::Theirs(it) => (it.is_http1_available(), it.is_http2_available()),
        };
        let served = |protocol: &&[u8]| match *protocol {
            b"h2" => http2,
            b"http/1.1" | b"http/1.0" => http1,
            _ => true,
        };
        let offered: Vec<&[u8]> = if given.is_empty() {
            vec![b"h2", b"http/1.1"]
        } else {
            given.iter().map(Vec::as_slice).collect()
        };
        let allowed: Vec<_> = offered.into_iter().filter(served).collect();
        let stays = allowed.is_empty() || allowed == *given;
        self.allowed = if stays && self.given.config().max_early_data_size == 0 {
            self.given.clone()
        } else {
            let mut config = (**self.given.config()).clone();
            if !stays {
                config.alpn_protocols = allowed.into_iter().map(<[u8]>::to_vec).collect();
            }
            // tokio-rustls would not give it to anybody, and its client not send it again.
            config.max_early_data_size = 0;
            Arc::new(config).into()
        };
    }
}

/// One connection, and how it is served.
struct Accepted {
    connection: Connection,
    builder: Builder,
    settings: Arc<PerServer>,
}

#[cfg(feature = "rustls")]
type Acceptor = tokio_rustls::TlsAcceptor;
#[cfg(not(feature = "rustls"))]
type Acceptor = std::convert::Infallible;

impl Accepted {
    /// In a task of its own.
    fn spawn<Io, S, B>(self, io: Io, tls: Option<&Acceptor>, service: S)
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        match tls {
            #[cfg(feature = "rustls")]
            Some(acceptor) => spawn(self.shake_hands(acceptor.accept(io), service)),
            #[cfg(not(feature = "rustls"))]
            Some(never) => match *never {},
            None => match self.serve(io, service) {
                Serving::Ours(served) => spawn(served),
                Serving::Theirs(served) => spawn(served),
            },
        }
    }

    /// Before a TLS handshake, so that a look at the socket shows whether the client has sent anything.
    async fn make<Io, F, S, B>(self, io: Io, tls: Option<Acceptor>, making: F)
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Result<S, BoxError>> + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let connection = &self.connection;
        match connection.make_service(making).await {
            Some(Ok(service)) => self.spawn(io, tls.as_ref(), service),
            Some(Err(error)) => {
                tracing::debug!(connection = connection.number(), %error, "no service was made");
            }
            None => tracing::debug!(
                connection = connection.number(),
                "making a service given up"
            ),
        }
    }

    fn serve<Io, S, B>(
        self,
        io: Io,
        service: S,
    ) -> Serving<impl Future<Output = ()> + Send + 'static, impl Future<Output = ()> + Send + 'static>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let Self {
            connection,
            builder,
            settings,
        } = self;
        let handle = settings.in_extensions.then(|| connection.clone());
        let (settings, service) = (Some(settings), TowerToHyper::of(handle, service));
        match builder {
            Builder::Ours(builder) => {
                let served = connection.serve_within(settings, &builder, io, service);
                Serving::Ours(Served { served, connection })
            }
            Builder::Theirs(builder) => {
                let served = connection.serve_within(settings, &*builder, io, service);
                Serving::Theirs(Served { served, connection })
            }
        }
    }

    #[cfg(feature = "rustls")]
    async fn shake_hands<Io, S, B>(
        self,
        handshake: impl Future<Output = std::io::Result<Io>>,
        service: S,
    ) where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let connection = &self.connection;
        // What is the application's goes with what is counted.
        let handshake = async move { handshake.await.map(|io| (io, service)) };
        match connection.handshake(handshake).await {
            Some(Ok((io, service))) => match self.serve(io, service) {
                Serving::Ours(served) => served.await,
                Serving::Theirs(served) => served.await,
            },
            Some(Err(error)) => {
                tracing::debug!(connection = connection.number(), %error, "TLS handshake failed");
            }
            None => tracing::debug!(connection = connection.number(), "TLS handshake given up"),
        }
    }
}

/// A connection that is served by either builder.
enum Serving<A, B> {
    Ours(A),
    Theirs(B),
}

pin_project! {
    /// A connection's task. No `async` block, which would cost a little of each request.
    struct Served<C> {
        #[pin]
        served: Watched<C>,
        connection: Connection,
    }
}

impl<C: GracefulConnection<Error = BoxError>> Future for Served<C> {
    type Output = ();

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let served = ready!(this.served.poll(cx));
        if let Err(error) = served {
            tracing::debug!(connection = this.connection.number(), %error, "connection failed");
        }
        Poll::Ready(())
    }
}

/// What [`sealed::ForConnection`] gives.
#[allow(unnameable_types, missing_debug_implementations)] // as private as that
pub enum Made<S, F> {
    /// A service that is there.
    Now(S),
    /// One that has to be made.
    Later(F),
}

mod sealed {
    use std::future::Pending;
    use std::pin::Pin;

    use super::{Body, BoxError, Incoming, Made, PerConnection, Request, Response, Service};

    /// A service for one connection: a clone, or what a make-service makes.
    // Private, and so nobody else can implement it: `Serve` takes two kinds of service.
    #[allow(unnameable_types)] // sealed on purpose
    pub trait ForConnection<Addr> {
        type Service: Service<
                Request<Incoming>,
                Response = Response<Self::Body>,
                Error: Into<BoxError>,
                Future: Send + 'static,
            > + Clone
            + Send
            + 'static;
        type Body: Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
        type Future: Future<Output = Result<Self::Service, BoxError>> + Send + 'static;

        fn make(&mut self, addr: Addr) -> Made<Self::Service, Self::Future>;
    }

    impl<S, B, Addr> ForConnection<Addr> for S
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        type Service = S;
        type Body = B;
        type Future = Pending<Result<S, BoxError>>;

        fn make(&mut self, _: Addr) -> Made<S, Self::Future> {
            Made::Now(self.clone())
        }
    }

    impl<M, S, B, Addr> ForConnection<Addr> for PerConnection<M>
    where
        M: Service<Addr, Response = S> + Clone + Send + 'static,
        M::Error: Into<BoxError>,
        M::Future: Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
        Addr: Send + 'static,
    {
        type Service = S;
        type Body = B;
        type Future = Pin<Box<dyn Future<Output = Result<S, BoxError>> + Send>>;

        fn make(&mut self, addr: Addr) -> Made<S, Self::Future> {
            let mut make = self.make.clone();
            Made::Later(Box::pin(async move {
                std::future::poll_fn(|cx| make.poll_ready(cx))
                    .await
                    .map_err(Into::into)?;
                make.call(addr).await.map_err(Into::into)
            }))
        }
    }
}
