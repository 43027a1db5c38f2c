//! One connection: its socket, the plaintext above it, its service and requests, and the future
//! that polls it all. They share [`shared::Shared`].

#[cfg(feature = "serve")]
mod builder;
#[cfg(all(test, feature = "serve"))]
mod exhaustive;
mod fate;
#[cfg(feature = "serve")]
mod http1;
#[cfg(feature = "serve")]
mod http2;
mod member;
mod name;
mod opening;
mod peek;
#[cfg(feature = "serve")]
mod plaintext;
mod poller;
mod records;
mod service;
mod shared;
mod socket;
mod state;
mod streams;
mod taken;
mod told;
mod turn;
mod watched;
#[cfg(feature = "serve")]
mod websocket;

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
#[cfg(feature = "serve")]
use std::time::Duration;

#[cfg(feature = "serve")]
pub use self::builder::{HttpBuilder, ServesHttp};
use self::fate::Why;
#[cfg(any(feature = "testing", all(test, feature = "serve")))]
pub(crate) use self::http2::frames;
use self::opening::Opening;
#[cfg(all(test, feature = "serve"))]
pub(crate) use self::peek::Peek;
pub use self::service::{TrackedBody, TrackedFuture, TrackedService};
use self::shared::{Part, Shared};
pub use self::socket::TrackedIo;
pub(crate) use self::taken::Taken;
pub(crate) use self::told::Told;
#[cfg(feature = "serve")]
pub(crate) use self::turn::yields;
use self::watched::Known;
pub use self::watched::{GracefulConnection, Watched};
use crate::registry::Registry;

/// What is fuzzed of it.
#[cfg(all(test, feature = "serve"))]
pub(crate) mod fuzzed {
    pub(crate) use super::exhaustive::fuzzed::reading;
    pub(crate) use super::http2::fuzzed::{frames, sieve};
    pub(crate) use super::records::fuzzed::records;
}

/// A cheap handle of one tracked connection, from [`TrackedIo::connection`].
///
/// It serves or watches the connection; holding it keeps nothing open and does not count. It does keep some memory, and
/// the handle of the runtime that the connection was served on: let go of it once it is
/// [`draining`](Self::draining), as it also is when it has gone.
///
/// # Examples
///
/// ```
/// # use http_terminator::Terminator;
/// # #[tokio::main] async fn main() {
/// # let (_client, server) = tokio::io::duplex(64);
/// let terminator = Terminator::new();
/// let io = terminator.track(server);
/// let connection = io.connection();
/// drop(io);
/// connection.draining().await; // as it has gone
/// # }
/// ```
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

/// What one server has set for its connections, instead of the terminator.
#[cfg(feature = "serve")]
#[derive(Clone, Debug, Default)]
pub(crate) struct PerServer {
    pub(crate) idle: Option<Duration>,
    /// The code with which WebSockets are told to go.
    pub(crate) close_websockets: Option<u16>,
    /// Requests are to have their connection with them.
    pub(crate) in_extensions: bool,
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Its number, by which the log and a [`Straggler`](crate::Straggler) name it: counted from 1 for each terminator.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # let (_client, server) = tokio::io::duplex(64);
    /// let io = Terminator::new().track(server);
    /// assert_eq!(io.connection().number(), 1);
    /// ```
    pub fn number(&self) -> u64 {
        self.shared.id()
    }

    /// Wraps a hyper service so that its requests are known: they are told to close, waited for and
    /// named in the report.
    ///
    /// [`serve`](Self::serve) does this by itself; it is for connections that are built by hand and
    /// [`watch`](Self::watch)ed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use http_terminator::TrackedIo;
    /// # use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
    /// # use hyper_util::rt::TokioIo;
    /// # use tokio::net::TcpStream;
    /// async fn serve(io: TrackedIo<TcpStream>) -> hyper::Result<()> {
    ///     let connection = io.connection();
    ///     let hello = service_fn(async |_: Request<Incoming>| {
    ///         Ok::<_, Infallible>(Response::new("hello".to_owned()))
    ///     });
    ///     let hello = connection.service(hello);
    ///     let served = http1::Builder::new().serve_connection(TokioIo::new(io), hello);
    ///     connection.watch(served).await
    /// }
    /// ```
    pub fn service<S>(&self, service: S) -> TrackedService<S> {
        TrackedService::new(service, Arc::clone(&self.shared))
    }

    /// Watches a connection that was built by hand over this [`TrackedIo`]. Prefer
    /// [`serve`](Self::serve).
    ///
    /// The connection is told to end by hyper's `graceful_shutdown`, once it has been polled after
    /// the drain began and [`settle`](crate::TerminatorBuilder::settle) has passed, or what the
    /// [`IdlePolicy`](crate::IdlePolicy) says, with nothing unread in its socket; HTTP/2 that is seen to
    /// be spoken, by a [`service`](Self::service), without that wait. What that call can't do, this can't either:
    ///
    /// - half a request head on a kept-alive connection is lost, over TLS half a record, requests pipelined behind others may
    ///   be, and so is one that follows on a response during which the connection was told;
    /// - a peer that never finishes its first head or its HTTP/2 handshake, or never acknowledges a
    ///   PING, is bounded by the grace period alone, and while serving by nothing;
    /// - an answer to a client that still sends may be destroyed by a reset;
    /// - while all threads of its runtime are blocked at the deadline, no request is answered `503`;
    /// - while its runtime does not run, one that is idle is not closed before the deadline;
    /// - without a [`service`](Self::service), requests are in no `stats`, and named nowhere: it counts as idle.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use http_terminator::TrackedIo;
    /// # use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
    /// # use hyper_util::rt::TokioIo;
    /// # use tokio::net::TcpStream;
    /// fn serve(io: TrackedIo<TcpStream>) {
    ///     let connection = io.connection();
    ///     let hello = connection.service(service_fn(async |_: Request<Incoming>| {
    ///         Ok::<_, Infallible>(Response::new("hello".to_owned()))
    ///     }));
    ///     let by_hand = http1::Builder::new().serve_connection(TokioIo::new(io), hello);
    ///     tokio::spawn(connection.watch(by_hand));
    /// }
    /// ```
    pub fn watch<C: GracefulConnection>(&self, connection: C) -> Watched<C> {
        Watched::new(connection, Known::Socket, Part::new(&self.shared))
    }

    /// Does a TLS handshake, or what else has to be read and written before HTTP is, as a part of this
    /// connection: bounded by [`head_timeout`](crate::TerminatorBuilder::head_timeout), and in the drain
    /// by [`stall_timeout`](crate::TerminatorBuilder::stall_timeout) from the first byte on, but for what this side takes, to
    /// fetch a certificate say, which `head_timeout` bounds there too; before that byte the connection is idle, and closed as such. `None` when it was given up: `handshake` is dropped then, and
    /// what it holds with it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the handshake.
    ///
    /// # Panics
    ///
    /// The future panics where the runtime has no timer enabled, unless there is no such timeout.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use http_terminator::{HttpBuilder, TrackedIo};
    /// # use hyper::{Request, Response, body::Incoming, service::service_fn};
    /// # use tokio::net::TcpStream;
    /// # use tokio_rustls::TlsAcceptor;
    /// async fn serve(io: TrackedIo<TcpStream>, acceptor: TlsAcceptor) {
    ///     let _ = io.with(|tcp| tcp.set_nodelay(true));
    ///     let connection = io.connection();
    ///     let Some(Ok(tls)) = connection.handshake(acceptor.accept(io)).await else {
    ///         return;
    ///     };
    ///     let hello = service_fn(async |_: Request<Incoming>| {
    ///         Ok::<_, Infallible>(Response::new("hello".to_owned()))
    ///     });
    ///     let _ = connection.serve(&HttpBuilder::default(), tls, hello).await;
    /// }
    /// ```
    pub fn handshake<F: Future>(
        &self,
        handshake: F,
    ) -> impl Future<Output = Option<F::Output>> + use<F> {
        Opening::new(handshake, true, Part::new(&self.shared))
    }

    /// Ends this connection as a termination would, while everything else goes on: for an admin's route, for
    /// a session that has expired, for a client that is to come again elsewhere.
    ///
    /// On HTTP/1 the next response head says `connection: close`, or, if the connection is idle, it is closed
    /// once it has been quiet for [`settle`](crate::TerminatorBuilder::settle); on HTTP/2 it is told to go away,
    /// and its streams finish; whoever has upgraded it learns by [`draining`](Self::draining). A client that owes bytes
    /// is closed after [`stall_timeout`](crate::TerminatorBuilder::stall_timeout); under
    /// [`IdlePolicy::LastRequest`](crate::IdlePolicy::LastRequest) an idle connection is kept for that policy's time, or its `idle_timeout`. What is in
    /// flight may take as long as it takes: [`force`](Self::force) is for what does not end.
    ///
    /// It may be called again, from any thread, from inside a handler of this very connection, and when it has
    /// gone: then it does nothing.
    ///
    /// It is told by what serves it: [`serve`](Self::serve), [`service`](Self::service) together with
    /// [`watch`](Self::watch), or yourself by `draining`. A connection of `axum::serve` or tonic is not told.
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::Extension;
    /// use http_terminator::Connection;
    ///
    /// /// With `Serve::connection_in_extensions`.
    /// async fn log_out(Extension(connection): Extension<Connection>) -> &'static str {
    ///     connection.terminate();
    ///     "bye" // with `connection: close`
    /// }
    /// # let _ = axum::Router::<()>::new().route("/", axum::routing::post(log_out));
    /// ```
    pub fn terminate(&self) {
        self.shared.terminate(Why::Asked);
    }

    /// Cuts this connection as the deadline does all: on HTTP/1 a request without a response head is answered `503`,
    /// unless [`answer_at_deadline`](crate::TerminatorBuilder::answer_at_deadline) is off, streams of HTTP/2 end with their
    /// connection, and its socket is closed within 150 ms, whatever its handler does.
    ///
    /// As a bound on a slow client: a task of yours sleeps, and forces it. [`draining`](Self::draining) ends that sleep
    /// early, as the connection may be gone.
    ///
    /// It may be called from anywhere, again, and when the connection has gone.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::Connection;
    /// async fn bound(connection: Connection) {
    ///     tokio::select! {
    ///         () = tokio::time::sleep(Duration::from_secs(300)) => connection.force(),
    ///         () = connection.draining() => {}
    ///     }
    /// }
    /// ```
    pub fn force(&self) {
        self.shared.force();
    }

    /// Waits until this connection is told to end, by whomever: because the terminator drains (under
    /// [`IdlePolicy::Spread`](crate::IdlePolicy::Spread) when it is its turn), because of
    /// [`terminate`](Self::terminate) or a limit; or until it has gone. In a lame duck that has told HTTP/2 to go away it
    /// goes on waiting: streams last until the drain.
    ///
    /// Streams and sessions end by this rather than by
    /// [`Terminator::draining`](crate::Terminator::draining), so that an old connection ends as well. The future
    /// owns what it needs, needs no runtime, and keeps no connection open.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future: who asks late learns at once.
    ///
    /// # Examples
    ///
    /// ```
    /// # use futures_util::StreamExt;
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// # let (_client, server) = tokio::io::duplex(64);
    /// # let io = terminator.track(server);
    /// # let connection = io.connection();
    /// # let ticks = futures_util::stream::pending::<u8>();
    /// let events = ticks.take_until(connection.draining());
    /// # connection.terminate();
    /// # assert_eq!(events.count().await, 0);
    /// # }
    /// ```
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.told()
    }

    pub(crate) fn told(&self) -> Told {
        Told::new(Arc::clone(&self.shared))
    }

    /// Keeps the connection tracked, told and cut, but the drain, and a lame duck, no longer wait for it: for health
    /// probes, metrics scrapes, debug sessions. When everything else has ended, it is cut, and counts as
    /// [`detached`](crate::Report::detached), which leaves the report clean. It can't be undone. On a connection that has
    /// gone it does nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() {
    /// # let (_client, server) = tokio::io::duplex(64);
    /// let terminator = Terminator::new();
    /// let io = terminator.track(server);
    /// io.connection().detach();
    /// let report = terminator.terminate().await; // though it is open
    /// assert!(report.is_clean() && report.detached == 1);
    /// # drop(io);
    /// # }
    /// ```
    pub fn detach(&self) {
        self.shared.registry.detach(self.shared.id());
    }
}

// As a `Terminator` is.
impl UnwindSafe for Connection {}
impl RefUnwindSafe for Connection {}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("number", &self.number())
            .finish()
    }
}

/// Watches a connection of which nothing but its future is known.
pub(crate) fn watch<C: GracefulConnection>(registry: &Arc<Registry>, connection: C) -> Watched<C> {
    let shared = Shared::register(registry, Arc::new(socket::NoSocket));
    Watched::new(connection, Known::Socket, Part::first(shared))
}

#[cfg(feature = "serve")]
mod serve {
    use std::error::Error;
    #[cfg(feature = "rustls")]
    use std::io::Read;
    use std::sync::Arc;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body::Body;
    use hyper::body::Incoming;
    use hyper::service::Service;
    use hyper::upgrade::Upgraded;
    use hyper_util::rt::TokioIo;
    use hyper_util::server::conn::auto;
    use tokio::io::{AsyncRead, AsyncWrite};
    #[cfg(feature = "rustls")]
    use tokio_rustls::server::TlsStream;

    use super::builder::ServesHttp;
    use super::opening::Opening;
    use super::plaintext::Plaintext;
    use super::{Connection, Known, Part, PerServer, TrackedIo, Watched};

    type BoxError = Box<dyn Error + Send + Sync>;

    impl Connection {
        /// Serves HTTP/1 and HTTP/2, upgrades included, on this connection's IO, until it ends: by
        /// itself, or because the terminator ends it.
        ///
        /// `io` is the [`TrackedIo`] that this handle is of, or TLS over it, once: HTTP inside of what an upgrade gave is served on
        /// its bare IO, tracked anew (see `TrackedIo::downcast`). The future borrows nothing, so it can be spawned.
        ///
        /// A connection that fails (an error of the handler, of a body, of the protocol) is closed
        /// at once, without the stages that let a response reach a client that still sends, and over
        /// TLS without a `close_notify`, so that nothing cut off looks whole. A response that only
        /// the close would end (HTTP/1.0, no length) is cut by a reset; a Unix socket has none, nor an IO that wraps one.
        ///
        /// A request whose client half-closes the connection behind it is dropped, which is how its
        /// handler learns that a client has left; `half_close(true)` of the builder has it answered.
        /// Upgraded, it counts until its IO is dropped. A tunnel on HTTP/2 (`CONNECT`) is waited for until its stream has
        /// ended both ways, as hyper does not tell when that one's IO is dropped: hold a
        /// [`guard`](crate::Terminator::guard) for what comes after.
        ///
        /// `http1_only` and `http2_only` are honoured, the former with upgrades.
        ///
        /// # Cancel safety
        ///
        /// Dropping the future closes the connection.
        ///
        /// # Errors
        ///
        /// What hyper ends with: an error of the IO or of the service, or a violation of the
        /// protocol. A connection that the terminator ended, also by force, ends with `Ok`; one
        /// whose client owed bytes and sent none ends with an error of kind
        /// [`TimedOut`](std::io::ErrorKind::TimedOut) inside, or with `Ok` where a body that nobody reads kept hyper from asking for them, or the
        /// acknowledgment of a GOAWAY was all that an HTTP/2 client owed.
        ///
        /// # Panics
        ///
        /// The future panics in a runtime without a timer (`enable_time`) as soon as it needs one: for half a request head, or,
        /// told alone, half a TLS record, unless [`head_timeout`](crate::TerminatorBuilder::head_timeout) is `None`; for an idle connection, if there is an
        /// [`idle_timeout`](crate::TerminatorBuilder::idle_timeout); for a client that still sends after its last response.
        ///
        /// # Examples
        ///
        /// ```
        /// # use std::convert::Infallible;
        /// # use http_terminator::Terminator;
        /// # use hyper::{Request, Response, body::Incoming, service::service_fn};
        /// # use hyper_util::{rt::TokioExecutor, server::conn::auto};
        /// # use tokio::net::TcpListener;
        /// async fn hello(_: Request<Incoming>) -> Result<Response<String>, Infallible> {
        ///     Ok(Response::new("hello".to_owned()))
        /// }
        ///
        /// # #[tokio::main] async fn main() -> std::io::Result<()> {
        /// let terminator = Terminator::new();
        /// let mut listener = terminator.listen(TcpListener::bind("127.0.0.1:0").await?);
        /// # terminator.terminate();
        /// while let Some((io, _)) = listener.accept().await {
        ///     let connection = io.connection();
        ///     let builder = auto::Builder::new(TokioExecutor::new());
        ///     tokio::spawn(connection.serve(&builder, io, service_fn(hello)));
        /// }
        /// # Ok(()) }
        /// ```
        pub fn serve<H, Io, S, B>(
            &self,
            builder: &H,
            io: Io,
            service: S,
        ) -> impl Future<Output = Result<(), BoxError>> + Send + use<H, Io, S, B>
        where
            H: ServesHttp<Io, S>,
            Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
            S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
            S::Future: Send + 'static,
            S::Error: Into<BoxError>,
            B: Body + Send + 'static,
            B::Data: Send,
            B::Error: Into<BoxError>,
        {
            self.serve_within(None, builder, io, service)
        }

        pub(crate) fn serve_within<H, Io, S>(
            &self,
            server: Option<Arc<PerServer>>,
            builder: &H,
            io: Io,
            service: S,
        ) -> Watched<H::Connection>
        where
            H: ServesHttp<Io, S>,
        {
            let connection = builder.begin(io, service, &self.shared, server);
            Watched::new(connection, Known::Plaintext, Part::new(&self.shared))
        }
    }

    impl Connection {
        /// Has its service made as a part of this connection. `None` if it was given up.
        pub(crate) fn make_service<F: Future>(
            &self,
            making: F,
        ) -> impl Future<Output = Option<F::Output>> + use<F> {
            Opening::new(making, false, Part::new(&self.shared))
        }
    }

    impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> TrackedIo<Io> {
        /// Takes the tracked IO out of what an upgrade gave, past hyper's wrappers and our own, with the bytes
        /// that were read ahead of it. It still counts as a connection.
        ///
        /// With the feature `rustls` it is found below TLS, too: then those bytes are what was decrypted, and
        /// the session is gone, so that what is read and written from here on is the socket's own.
        ///
        /// HTTP that is spoken inside (to a proxy of `CONNECT` that looks inside, or behind an upgrade to h2c) is served on what
        /// [`into_inner`](Self::into_inner) gives, [tracked](crate::Terminator::track) anew: here it would never be idle. Do that within a
        /// [`spawn`](crate::Terminator::spawn): in a drain it may be the last thing that is waited for, and in between it is not.
        ///
        /// A WebSocket that is taken out so gets no Close frame of
        /// [`close_websockets`](crate::Serve::close_websockets), nor the rest of one that is half written.
        ///
        /// # Errors
        ///
        /// Gives `upgraded` back if it is of another kind of IO, or not of a connection that was
        /// [served](crate::Connection::serve).
        ///
        /// # Examples
        ///
        /// ```
        /// # use http_terminator::TrackedIo;
        /// # use hyper::upgrade::Upgraded;
        /// # use tokio::net::TcpStream;
        /// fn leave(upgraded: Upgraded) -> Option<TcpStream> {
        ///     let (io, read_ahead) = TrackedIo::<TcpStream>::downcast(upgraded).ok()?;
        ///     assert!(read_ahead.is_empty());
        ///     io.into_inner()
        /// }
        /// ```
        pub fn downcast(upgraded: Upgraded) -> Result<(Self, Bytes), Upgraded> {
            let upgraded = match served_over::<Self>(upgraded) {
                Ok(found) => return Ok(found),
                Err(upgraded) => upgraded,
            };
            #[cfg(feature = "rustls")]
            let upgraded = match served_over::<TlsStream<Self>>(upgraded) {
                Ok((tls, mut read)) => {
                    let (io, mut session) = tls.into_inner();
                    // What was decrypted and not asked for. The end is an error that says there is no more.
                    let mut more = Vec::new();
                    let _ = session.reader().read_to_end(&mut more);
                    if !more.is_empty() {
                        read = [&read[..], &more].concat().into();
                    }
                    return Ok((io, read));
                }
                Err(upgraded) => upgraded,
            };
            Err(upgraded)
        }
    }

    /// What hyper has served over that, by whichever builder.
    fn served_over<Io>(upgraded: Upgraded) -> Result<(Io, Bytes), Upgraded>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (io, read) = match upgraded.downcast::<TokioIo<Plaintext<Io>>>() {
            Ok(parts) => (parts.io, parts.read_buf),
            Err(upgraded) => {
                let parts = auto::upgrade::downcast::<TokioIo<Plaintext<Io>>>(upgraded)?;
                (parts.io, parts.read_buf)
            }
        };
        Ok((io.into_inner().into_inner(), read))
    }
}
