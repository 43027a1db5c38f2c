//! How a connection is served: hyper's two protocols, and who finds out which is spoken.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};

use super::http1::service::Http1Service;
use super::plaintext::{Plaintext, Version};
use super::service::{TrackedBody, TrackedFuture, TrackedService};
use super::shared::Shared;
use super::state::State;
use super::{GracefulConnection, PerServer};

type BoxError = Box<dyn Error + Send + Sync>;

/// hyper's settings of both versions of HTTP, for [`Connection::serve`](crate::Connection::serve) and
/// [`Serve::builder`](crate::Serve::builder).
///
/// It does what hyper-util's `auto::Builder` does, with hyper's own builders inside, and costs less: a
/// connection is served as HTTP/1 from its first byte on, and only one that begins as HTTP/2 does is served
/// anew. Upgrades work. Clones are cheap. Without TLS a client of HTTP/2 has to know that beforehand: `Upgrade: h2c` is left
/// to the handler, and answered as HTTP/1.
///
/// # Examples
///
/// ```
/// use http_terminator::HttpBuilder;
/// use hyper_util::rt::TokioExecutor;
///
/// let mut builder = HttpBuilder::new(TokioExecutor::new());
/// builder.http1().max_headers(200);
/// builder.http2().max_concurrent_streams(100);
/// ```
pub struct HttpBuilder<E = TokioExecutor> {
    settings: Arc<Settings<E>>,
}

#[derive(Clone)]
struct Settings<E> {
    http1: http1::Builder,
    http2: http2::Builder<E>,
    version: Version,
}

impl<E> HttpBuilder<E> {
    /// hyper's defaults; `executor` runs the requests of HTTP/2.
    ///
    /// Half-sent request heads are bounded without hyper's help, so leave hyper's
    /// `header_read_timeout`, which needs a timer, alone: it costs every request.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::HttpBuilder;
    /// use hyper_util::rt::TokioExecutor;
    ///
    /// let builder = HttpBuilder::new(TokioExecutor::new()); // or `default()`
    /// # drop(builder);
    /// ```
    pub fn new(executor: E) -> Self {
        Self {
            settings: Arc::new(Settings {
                http1: http1::Builder::new(),
                http2: http2::Builder::new(executor),
                version: Version::Sniffed,
            }),
        }
    }
}

impl<E: Clone> HttpBuilder<E> {
    /// The settings of HTTP/1.
    ///
    /// Leave hyper's experimental `pipeline_flush` alone: while more of a request lies in its buffer, hyper then takes what
    /// it has not written for flushed, and closes behind a response that says close without having sent it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::HttpBuilder;
    /// let mut builder = HttpBuilder::default();
    /// builder.http1().half_close(true).max_buf_size(64 << 10);
    /// ```
    pub fn http1(&mut self) -> &mut http1::Builder {
        &mut self.settings().http1
    }

    /// The settings of HTTP/2. Those that need a timer, such as `keep_alive_interval`, panic in the connection's task if
    /// hyper is given none. There is no keep-alive by default;
    /// [`idle_timeout`](crate::TerminatorBuilder::idle_timeout) bounds what is quiet.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::HttpBuilder;
    /// use hyper_util::rt::TokioTimer;
    ///
    /// let mut builder = HttpBuilder::default();
    /// builder
    ///     .http2()
    ///     .timer(TokioTimer::new())
    ///     .keep_alive_interval(Duration::from_secs(30))
    ///     .keep_alive_timeout(Duration::from_secs(10));
    /// ```
    pub fn http2(&mut self) -> &mut http2::Builder<E> {
        &mut self.settings().http2
    }

    /// Serves HTTP/1 and nothing else: a connection that begins as HTTP/2 does is closed without an answer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::HttpBuilder;
    /// let builder = HttpBuilder::default().http1_only();
    /// # drop(builder);
    /// ```
    #[must_use]
    pub fn http1_only(mut self) -> Self {
        self.settings().version = Version::Http1;
        self
    }

    /// Serves HTTP/2 and nothing else.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::HttpBuilder;
    /// let builder = HttpBuilder::default().http2_only();
    /// # drop(builder);
    /// ```
    #[must_use]
    pub fn http2_only(mut self) -> Self {
        self.settings().version = Version::Http2;
        self
    }

    fn settings(&mut self) -> &mut Settings<E> {
        Arc::make_mut(&mut self.settings)
    }
}

impl<E> HttpBuilder<E> {
    #[cfg(feature = "rustls")]
    pub(crate) fn is_http1_available(&self) -> bool {
        self.settings.version != Version::Http2
    }

    #[cfg(feature = "rustls")]
    pub(crate) fn is_http2_available(&self) -> bool {
        self.settings.version != Version::Http1
    }
}

impl<E> Clone for HttpBuilder<E> {
    fn clone(&self) -> Self {
        Self {
            settings: Arc::clone(&self.settings),
        }
    }
}

/// Over tokio, so that nothing has to be said about the executor.
impl Default for HttpBuilder {
    fn default() -> Self {
        Self::new(TokioExecutor::new())
    }
}

impl<E> fmt::Debug for HttpBuilder<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBuilder")
            .field("http1", &self.settings.http1)
            .field("version", &self.settings.version)
            .finish_non_exhaustive()
    }
}

/// What [`Connection::serve`](crate::Connection::serve) takes: an [`HttpBuilder`], or hyper-util's
/// `auto::Builder`, over any executor. Nobody else can implement it.
pub trait ServesHttp<Io, S>: sealed::Begin<Io, S> {}

impl<T: sealed::Begin<Io, S>, Io, S> ServesHttp<Io, S> for T {}

pub(crate) mod sealed {
    use super::{Arc, BoxError, GracefulConnection, PerServer, Shared};

    #[allow(unnameable_types)] // sealed on purpose
    pub trait Begin<Io, S> {
        type Connection: GracefulConnection<Error = BoxError> + Send + 'static;

        #[allow(private_interfaces)] // see above
        fn begin(
            &self,
            io: Io,
            service: S,
            shared: &Arc<Shared>,
            server: Option<Arc<PerServer>>,
        ) -> Self::Connection;
    }
}

// ===== hyper-util's =====

impl<E, Io, S, B> sealed::Begin<Io, S> for auto::Builder<E>
where
    E: auto::HttpServerConnExec<TrackedFuture<S::Future>, TrackedBody<B>>
        + Clone
        + Send
        + Sync
        + 'static,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Connection =
        auto::UpgradeableConnection<'static, TokioIo<Plaintext<Io>>, TrackedService<S>, E>;

    #[allow(private_interfaces)] // it is sealed
    fn begin(
        &self,
        io: Io,
        service: S,
        shared: &Arc<Shared>,
        server: Option<Arc<PerServer>>,
    ) -> Self::Connection {
        // Its connections with upgrades are of both versions, whatever it was told.
        let version = if !self.is_http2_available() {
            Version::TheirHttp1
        } else if !self.is_http1_available() {
            Version::TheirHttp2
        } else {
            Version::Theirs
        };
        let plaintext = Plaintext::new(io, Arc::clone(shared), version, server);
        let service = TrackedService::seen(service, Arc::clone(shared));
        self.serve_connection_with_upgrades(TokioIo::new(plaintext), service)
            .into_owned()
    }
}

// ===== ours =====

impl<E, Io, S, B> sealed::Begin<Io, S> for HttpBuilder<E>
where
    E: Http2ServerConnExec<TrackedFuture<S::Future>, TrackedBody<B>>
        + Clone
        + Send
        + Sync
        + 'static,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Connection = HttpConnection<Io, S, E>;

    #[allow(private_interfaces)] // it is sealed
    fn begin(
        &self,
        io: Io,
        service: S,
        shared: &Arc<Shared>,
        server: Option<Arc<PerServer>>,
    ) -> Self::Connection {
        let version = self.settings.version;
        let plaintext = Plaintext::new(io, Arc::clone(shared), version, server);
        HttpConnection {
            protocol: Protocol::New(plaintext, service),
            settings: Arc::clone(&self.settings),
            shared: Arc::clone(shared),
        }
    }
}

/// A connection that an [`HttpBuilder`] serves.
#[allow(unnameable_types, missing_debug_implementations)] // nobody gets it
pub struct HttpConnection<Io, S, E>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>>,
    Http1Service<S>: hyper::service::HttpService<Incoming>,
    TrackedService<S>: hyper::service::HttpService<Incoming>,
{
    protocol: Protocol<Io, S, E>,
    settings: Arc<Settings<E>>,
    shared: Arc<Shared>,
}

type Http1<Io, S> = http1::UpgradeableConnection<TokioIo<Plaintext<Io>>, Http1Service<S>>;
type Http2<Io, S, E> = http2::Connection<TokioIo<Plaintext<Io>>, TrackedService<S>, E>;

#[allow(clippy::large_enum_variant)] // nearly all are of the large one
enum Protocol<Io, S, E>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>>,
    Http1Service<S>: hyper::service::HttpService<Incoming>,
    TrackedService<S>: hyper::service::HttpService<Incoming>,
{
    /// It has not been polled. hyper panics about settings that need a timer and have none, and that is
    /// to happen in the connection's own task.
    New(Plaintext<Io>, S),
    Http1(Http1<Io, S>),
    // Boxed, as most connections are of the other one.
    Http2(Pin<Box<Http2<Io, S, E>>>),
    /// It was upgraded, or is being taken from one to the other.
    Gone,
}

impl<E, Io, S, B> HttpConnection<Io, S, E>
where
    E: Http2ServerConnExec<TrackedFuture<S::Future>, TrackedBody<B>> + Clone,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    /// Goes on with the protocol that is known by now. What came first may have been the beginning of
    /// HTTP/2.
    #[cold]
    fn go_on(&mut self) {
        match std::mem::replace(&mut self.protocol, Protocol::Gone) {
            Protocol::New(io, service) if self.settings.version == Version::Http2 => {
                self.speak_http2(TokioIo::new(io), service);
            }
            Protocol::New(io, inner) => {
                let shared = Arc::clone(&self.shared);
                let limited = shared.registry.config.max_requests.is_some();
                let service = Http1Service {
                    inner,
                    shared,
                    limited,
                };
                let http1 = &self.settings.http1;
                let connection = http1.serve_connection(TokioIo::new(io), service);
                self.protocol = Protocol::Http1(connection.with_upgrades());
            }
            Protocol::Http1(connection) => {
                if let Some(parts) = connection.into_parts() {
                    self.speak_http2(parts.io, parts.service.inner);
                }
            }
            known => self.protocol = known,
        }
    }

    fn speak_http2(&mut self, io: TokioIo<Plaintext<Io>>, service: S) {
        let service = TrackedService::seen(service, Arc::clone(&self.shared));
        let connection = self.settings.http2.serve_connection(io, service);
        self.protocol = Protocol::Http2(Box::pin(connection));
    }
}

// Nothing in it is ever pinned, but for what is boxed.
impl<E, Io, S> Unpin for HttpConnection<Io, S, E>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>>,
    Http1Service<S>: hyper::service::HttpService<Incoming>,
    TrackedService<S>: hyper::service::HttpService<Incoming>,
{
}

impl<E, Io, S, B> Future for HttpConnection<Io, S, E>
where
    E: Http2ServerConnExec<TrackedFuture<S::Future>, TrackedBody<B>> + Clone,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<(), BoxError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.protocol {
                Protocol::Http1(connection) => {
                    let polled = Pin::new(connection).poll(cx);
                    if polled.is_ready() || !self.shared.has(State::HTTP2) {
                        return polled.map_err(Into::into);
                    }
                }
                Protocol::Http2(connection) => {
                    return connection.as_mut().poll(cx).map_err(Into::into);
                }
                Protocol::New(..) => {}
                Protocol::Gone => return Poll::Ready(Ok(())),
            }
            self.go_on();
        }
    }
}

impl<E, Io, S, B> GracefulConnection for HttpConnection<Io, S, E>
where
    E: Http2ServerConnExec<TrackedFuture<S::Future>, TrackedBody<B>> + Clone,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    type Error = BoxError;

    fn graceful_shutdown(mut self: Pin<&mut Self>) {
        match &mut self.protocol {
            Protocol::Http1(connection) => Pin::new(connection).graceful_shutdown(),
            Protocol::Http2(connection) => connection.as_mut().graceful_shutdown(),
            Protocol::New(..) | Protocol::Gone => {}
        }
    }
}
