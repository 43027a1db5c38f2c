//! A tracked listener for tonic's `serve_with_incoming_shutdown`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tonic::transport::server::Connected;

use super::listener::Listener;
use super::tracked::TrackedListener;
use crate::connection::TrackedIo;

/// With [`TrackedListener`], which is a stream of these, for tonic's own
/// server:
///
/// ```text
/// Server::builder()
///     .add_service(greeter)
///     .serve_with_incoming_shutdown(terminator.listen(listener), std::future::pending())
/// ```
///
/// The stream ends by itself when the drain begins, and the server with it, which is better than a signal:
/// between a signal and the stream tonic chooses at random, and may leave the accept queue unserved. Set
/// `TCP_NODELAY` on the listener. With `tls_config` of tonic's own it forgets, at the end of the stream as at a signal, whoever
/// has yet to shake hands, the accept queue included: they are never served, and closed at the deadline.
///
/// Connections are tracked: `terminate` waits for them and the deadline holds. tonic tells
/// them to go away by itself, all at the same moment, whatever the [`IdlePolicy`](crate::IdlePolicy);
/// a silent peer is bounded by the grace period alone, and neither the report nor
/// [`stats`](crate::Terminator::stats) know of requests; no connection is told alone, by
/// [`terminate`](crate::Connection::terminate), its age or the number of its requests, nor in the lame duck; nothing
/// bounds half a request head or an idle connection. [`Terminator::serve`](crate::Terminator::serve) takes tonic's
/// `Routes`, and gives all of it, TLS as well. What tonic's server adds to them it can't: the client's address (`remote_addr`;
/// [`serve_make_service`](crate::Terminator::serve_make_service) makes a service that inserts a `TcpConnectInfo`), the bound
/// that a client sets by `grpc-timeout`, a status for what a layer fails with. tonic serves HTTP/2 alone and any number of
/// streams, hyper by default HTTP/1 too and 200:
///
/// ```
/// # use http_terminator::{HttpBuilder, Terminator};
/// # use tonic::service::Routes;
/// # async fn serve(terminator: Terminator, listener: tokio::net::TcpListener, routes: Routes) {
/// let mut builder = HttpBuilder::default().http2_only();
/// builder.http2().max_concurrent_streams(None);
/// let report = terminator.serve(listener, routes).builder(builder).await;
/// # drop(report);
/// # }
/// ```
impl<Io: Connected + Send + 'static> Connected for TrackedIo<Io> {
    type ConnectInfo = Io::ConnectInfo;

    /// # Panics
    ///
    /// If the terminator has closed the connection already, and it is neither from the stream of a
    /// [`TrackedListener`] nor a TCP or Unix stream of tokio's: then nobody knows any more.
    fn connect_info(&self) -> Self::ConnectInfo {
        self.info(Connected::connect_info)
            .expect("an IO of another kind was closed before it was asked")
    }
}

/// The connections, without their addresses. It ends as [`accept`](TrackedListener::accept) does, and has no errors.
impl<L: Listener + Unpin> Stream for TrackedListener<L>
where
    L::Io: Connected,
{
    type Item = Result<TrackedIo<L::Io>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some((io, _)) = ready!(self.poll_accept(cx)) else {
                return Poll::Ready(None);
            };
            // tonic asks for it, when the deadline may have passed.
            if io.keep_info(Connected::connect_info) {
                return Poll::Ready(Some(Ok(io)));
            }
        }
    }
}
