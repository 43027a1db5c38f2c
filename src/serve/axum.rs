//! A tracked listener for `axum::serve`, for those who want to keep that line.

use std::future::pending;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

use super::inherited::Inherited;
use super::listener::Listener;
use super::tracked::TrackedListener;
#[cfg(unix)]
use super::unlink::UnlinkOnClose;
use crate::connection::TrackedIo;

/// For `axum::serve`:
///
/// ```
/// # use axum::{Router, routing::get};
/// # use http_terminator::Terminator;
/// use axum::serve::ListenerExt;
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let app: Router = Router::new();
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// let terminator = Terminator::new();
/// let listener = terminator.listen(listener).tap_io(|io| {
///     let _ = io.with(|tcp| tcp.set_nodelay(true));
/// });
/// let server = axum::serve(listener, app).with_graceful_shutdown(terminator.draining());
/// let server = tokio::spawn(async move { server.await });
/// // … later:
/// let report = terminator.terminate().await;
/// # server.await?
/// # }
/// ```
///
/// Connections are tracked: `terminate` waits for them, upgraded ones included, the deadline holds
/// whatever handlers do, the call behaves as always, and the report counts
/// them. What axum does to end a connection stays axum's way, hyper's `graceful_shutdown`, so
/// only [`Terminator::serve`](crate::Terminator::serve) gives the rest:
///
/// - a request that arrives just before, or half a request head on a kept-alive connection, may be
///   lost, and so may what is in the accept queue;
/// - all connections are told at the same moment, whatever the [`IdlePolicy`](crate::IdlePolicy),
///   and a response that goes out before axum has seen its signal does not say close;
/// - an answer to a client that still sends may be destroyed by a reset;
/// - silent HTTP/2 peers, and those that never finish a request head, are bounded by the grace period
///   alone;
/// - requests are not answered `503` at the deadline, and a response that only the close would end
///   (HTTP/1.0, no length) looks whole when it is cut; the report and
///   [`stats`](crate::Terminator::stats) don't know of them, so that who was cut is counted but not
///   listed, and what was not cut counts as `closed_by_peer`, upgraded or not;
/// - no connection is told alone, by [`terminate`](crate::Connection::terminate), its age or the number of its
///   requests, nor in the lame duck; nothing bounds half a request head or an idle connection;
///   [`force`](crate::Connection::force) closes one, and [`draining`](crate::Connection::draining) is ready;
/// - `TCP_NODELAY` is left to you, as above. `into_make_service_with_connect_info::<SocketAddr>` wants that `tap_io` too, be
///   it with nothing in it: axum knows whose address it is by its own listeners alone.
///
/// Listeners of your own are not taken, as axum asks one for its address.
///
/// Under [`IdlePolicy::Spread`](crate::IdlePolicy::Spread) `draining` comes at a turn of its own, until which axum tells
/// nobody anything: take `async move { terminator.reached(Phase::Draining).await }` of a clone.
///
/// Without `with_graceful_shutdown(terminator.draining())` axum tells its connections nothing: idle ones too stay until the
/// deadline, at which they are cut, and the future of `axum::serve` never ends.
impl<L> axum::serve::Listener for TrackedListener<L>
where
    L: Listener + LocalAddr<Addr = <L as Listener>::Addr>,
    <L as Listener>::Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    <L as Listener>::Addr: Send,
{
    type Io = TrackedIo<<L as Listener>::Io>;
    type Addr = <L as Listener>::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match TrackedListener::accept(self).await {
            Some(accepted) => accepted,
            // axum ends by its own signal.
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.with(LocalAddr::local_addr)
            .unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }
}

/// What axum asks a listener, and ours need not know otherwise.
#[allow(unnameable_types)] // of this crate's and tokio's listeners; yours can be one of axum's itself
pub trait LocalAddr {
    /// The address.
    type Addr;

    /// The address it is bound to.
    ///
    /// # Errors
    ///
    /// Those of the system call.
    fn local_addr(&self) -> io::Result<Self::Addr>;
}

impl LocalAddr for tokio::net::TcpListener {
    type Addr = std::net::SocketAddr;

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Self::local_addr(self)
    }
}

#[cfg(unix)]
impl LocalAddr for tokio::net::UnixListener {
    type Addr = tokio::net::unix::SocketAddr;

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Self::local_addr(self)
    }
}

impl<L: LocalAddr> LocalAddr for Inherited<L> {
    type Addr = L::Addr;

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

#[cfg(unix)]
impl LocalAddr for UnlinkOnClose {
    type Addr = tokio::net::unix::SocketAddr;

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.get_ref().local_addr()
    }
}
