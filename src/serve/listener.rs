//! What a listener must be able to do.

use std::io;
use std::task::{Context, Poll};

use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};

/// Accepts connections: tokio's TCP and Unix listeners do, and so can yours.
///
/// Dropping it must close it. It is handed from thread to thread, so that it can be closed while
/// the runtime it is on is stalled.
pub trait Listener: Send + 'static {
    /// What it accepts.
    type Io;
    /// Whom it accepts from.
    type Addr;

    /// Accepts a connection, or waits for one.
    ///
    /// # Errors
    ///
    /// An error does not end the listener: those of a peer that has gone again are skipped, after any
    /// other there is a pause before the next try.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>>;

    /// Accepts what the kernel has already queued, without waiting; `None` when there is nothing.
    ///
    /// Called when the drain begins, until it says `None`, so that no connection which a client holds
    /// for established is reset. It must ask the kernel itself, as a runtime's readiness may not
    /// have been seen yet.
    ///
    /// # Errors
    ///
    /// As for [`poll_accept`](Self::poll_accept), but any error other than a peer's ends it.
    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>>;
}

impl Listener for TcpListener {
    type Io = TcpStream;
    type Addr = std::net::SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
        Self::poll_accept(self, cx)
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
        let Some((socket, addr)) = accept_now(&socket2::SockRef::from(&*self))? else {
            return Ok(None);
        };
        let addr = addr.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some((TcpStream::from_std(socket.into())?, addr)))
    }
}

#[cfg(unix)]
impl Listener for UnixListener {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
        Self::poll_accept(self, cx)
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
        let Some((socket, _)) = accept_now(&socket2::SockRef::from(&*self))? else {
            return Ok(None);
        };
        let stream = UnixStream::from_std(std::os::fd::OwnedFd::from(socket).into())?;
        let addr = stream.peer_addr()?;
        Ok(Some((stream, addr)))
    }
}

fn accept_now(
    listener: &socket2::SockRef<'_>,
) -> io::Result<Option<(socket2::Socket, socket2::SockAddr)>> {
    match listener.accept() {
        Ok((socket, addr)) => {
            socket.set_nonblocking(true)?;
            Ok(Some((socket, addr)))
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}
