//! Listeners that others go on accepting from.

use std::io;
use std::task::{Context, Poll};

use super::listener::Listener;

/// A listener that others hold too and go on accepting from: systemd with socket activation, a supervisor and its
/// workers, a successor that has inherited it.
///
/// When the drain begins, it accepts no more and lets go of the socket at once. What is queued there is left to
/// the others, who need not be there yet: the queue lasts as long as somebody holds the socket. With a
/// [`lame_duck`](crate::TerminatorBuilder::lame_duck) it accepts until that is over, beside the others.
///
/// Without this the queue is taken and served, which is as good as long as others accept as well. The socket itself
/// is left to its other holders as it was, with this or without.
///
/// It does not go with [`UnlinkOnClose`](crate::UnlinkOnClose), which takes from the others the path by which they
/// are found.
///
/// It is not for `SO_REUSEPORT`, where each has a socket, and a queue, of its own: what is left there is reset. A
/// listener of such a group takes its queue without this. A handshake that is under way when it closes, which
/// takes microseconds within a host and a round trip else, is lost all the same (`settle` waits
/// for those that are seen), unless `net.ipv4.tcp_migrate_req` is set, which hands it to another of the group (the
/// kernel's Documentation/networking/ip-sysctl.rst, Linux 5.14).
///
/// # Examples
///
/// ```
/// # use axum::Router;
/// use http_terminator::{Inherited, Terminator};
/// use tokio::net::TcpListener;
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let from_systemd = std::net::TcpListener::bind("127.0.0.1:0")?;
/// # let systemd_s_own = from_systemd.try_clone()?;
/// # let app: Router = Router::new();
/// // By the crate `listenfd`, say.
/// from_systemd.set_nonblocking(true)?;
/// let listener = Inherited(TcpListener::from_std(from_systemd)?);
/// let terminator = Terminator::new();
/// let server = tokio::spawn(terminator.serve(listener, app));
/// // … later:
/// terminator.terminate().await;
/// # let addr = systemd_s_own.local_addr()?;
/// # assert!(std::net::TcpStream::connect(addr).is_ok());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Inherited<L>(pub L);

impl<L: Listener> Listener for Inherited<L> {
    type Io = L::Io;
    type Addr = L::Addr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
        self.0.poll_accept(cx)
    }

    /// Nothing: it is the others'.
    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
        Ok(None)
    }

    fn prepare(&mut self) {
        self.0.prepare();
    }
}
