//! A tracked listener for tonic's `serve_with_incoming_shutdown`.

use tonic::transport::server::Connected;

use crate::connection::TrackedIo;

/// With [`TrackedListener`](crate::TrackedListener), which is a stream of these, for tonic's own
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
/// `TCP_NODELAY` on the listener.
///
/// Connections are tracked: `terminate` waits for them and the deadline holds (G11, G12). tonic tells
/// them to go away by itself, all at the same moment, whatever the [`IdlePolicy`](crate::IdlePolicy)
/// (G3); a silent peer is bounded by the grace period alone (G9), and neither the report nor
/// [`stats`](crate::Terminator::stats) know of requests (G18). [`Terminator::serve`](crate::Terminator::serve) takes tonic's `Routes`, and
/// gives all of it.
impl<Io: Connected + Send + 'static> Connected for TrackedIo<Io> {
    type ConnectInfo = Io::ConnectInfo;

    /// # Panics
    ///
    /// If the terminator has closed the connection already. tonic asks as soon as it has accepted.
    fn connect_info(&self) -> Self::ConnectInfo {
        self.with(Connected::connect_info)
            .expect("asked before the grace period is over")
    }
}
