//! What a listener must be able to do.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;

#[cfg(target_os = "linux")]
use super::handshakes;
use crate::clock::Stamp;

/// Accepts connections: tokio's TCP and Unix listeners do, and so can yours.
///
/// Dropping it must close it. It is handed from thread to thread, so that it can be closed while
/// the runtime it is on is stalled.
///
/// # Examples
///
/// One around another passes everything on:
///
/// ```
/// use std::{fmt::Debug, io, task::{Context, Poll}};
/// use http_terminator::Listener;
///
/// /// Says who comes.
/// struct Logged<L>(L);
///
/// impl<L: Listener<Addr: Debug>> Listener for Logged<L> {
///     type Io = L::Io;
///     type Addr = L::Addr;
///
///     fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(L::Io, L::Addr)>> {
///         let accepted = self.0.poll_accept(cx);
///         if let Poll::Ready(Ok((_, addr))) = &accepted {
///             println!("{addr:?}");
///         }
///         accepted
///     }
///     fn accept_queued(&mut self) -> io::Result<Option<(L::Io, L::Addr)>> {
///         self.0.accept_queued()
///     }
///     fn is_handshaking(&self) -> bool {
///         self.0.is_handshaking()
///     }
///     fn close(self) -> Vec<(L::Io, L::Addr)> {
///         self.0.close()
///     }
///     fn prepare(&mut self) {
///         self.0.prepare();
///     }
/// }
/// # let _ = Logged::<tokio::net::TcpListener>;
/// ```
pub trait Listener: Send + 'static {
    /// What it accepts.
    type Io: Send + 'static;
    /// Whom it accepts from.
    type Addr: Send + 'static;

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
    /// for established is reset. It must ask the kernel itself, as a runtime's readiness may not have
    /// been seen yet, and must not block. In a drain it is called on a thread of this crate's, in the context of the
    /// runtime on which the listener was polled last; where the accept loop has let go of it, by whoever did, or by a task.
    ///
    /// # Errors
    ///
    /// As for [`poll_accept`](Self::poll_accept), but any error other than a peer's (or its network's, or a firewall's), or of
    /// having no descriptors or memory left, ends it.
    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>>;

    /// Whether there are handshakes under way which clients may hold for done; they get
    /// [`settle`](crate::TerminatorBuilder::settle) to end up in the queue. False by default; one that wraps
    /// another listener should pass it on.
    fn is_handshaking(&self) -> bool {
        false
    }

    /// Closes it, once [`accept_queued`](Self::accept_queued) has said `None`. Gives what got in meanwhile, which
    /// would be reset otherwise.
    ///
    /// Others may hold the same socket, by `dup` or from before an `exec`: it must be left to them as it was. By
    /// default `accept_queued` is asked once more, until it says `None`, and the listener is dropped; one that
    /// wraps another should pass this on. Not called at the deadline, nor where the accept loop has
    /// given up: it is dropped then.
    fn close(mut self) -> Vec<(Self::Io, Self::Addr)>
    where
        Self: Sized,
    {
        until_none(MOST_LAST, || self.accept_queued())
    }

    /// Called once, before the listener is used: whatever it takes so that neither of the accepting
    /// methods blocks. Does nothing by default; one that wraps another listener should pass it on.
    ///
    /// Of tokio's it sets `O_NONBLOCK`, which everybody has who holds the socket, and which stays: none of them
    /// could do with a blocking one beside us.
    fn prepare(&mut self) {}
}

impl Listener for TcpListener {
    type Io = TcpStream;
    type Addr = std::net::SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
        Self::poll_accept(self, cx)
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
        accept_tcp(&SockRef::from(&*self))
    }

    #[cfg(target_os = "linux")]
    fn is_handshaking(&self) -> bool {
        // Where it may not be asked, there may be.
        let any = self.local_addr().and_then(handshakes::under_way);
        any.unwrap_or(true)
    }

    fn close(self) -> Vec<(Self::Io, Self::Addr)> {
        // First out of the runtime, so that as little as possible comes between the last look and the close.
        let listener = self.into_std();
        listener.map_or_else(
            |_| Vec::new(),
            |listener| last_of(|| accept_tcp(&SockRef::from(&listener))),
        )
    }

    fn prepare(&mut self) {
        dont_block(&SockRef::from(&*self));
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
        accept_unix(&SockRef::from(&*self))
    }

    fn close(self) -> Vec<(Self::Io, Self::Addr)> {
        let listener = self.into_std();
        listener.map_or_else(
            |_| Vec::new(),
            |listener| last_of(|| accept_unix(&SockRef::from(&listener))),
        )
    }

    fn prepare(&mut self) {
        dont_block(&SockRef::from(&*self));
    }
}

/// A socket that came from elsewhere may be in blocking mode, and would then keep whoever accepts. An
/// error means that it is no socket, which the first accept will tell.
fn dont_block(listener: &SockRef<'_>) {
    let _ = listener.set_nonblocking(true);
}

/// No kernel queues more: a listener that always has one more must not keep the drain open.
pub(super) const MOST_QUEUED: usize = 1 << 16;

/// Most queues have room for so many (`net.core.somaxconn`), and the last looks find those that have just been emptied:
/// who connects faster than they accept must not keep them from the close.
pub(super) const MOST_LAST: usize = 1 << 12;

/// What is queued, until nothing is, or an error that is not a peer's. So many tries at most.
fn until_none<T>(most: usize, mut next: impl FnMut() -> io::Result<Option<T>>) -> Vec<T> {
    let mut queued = Vec::new();
    for _ in 0..most {
        match next() {
            Ok(Some(one)) => queued.push(one),
            Err(e) if of_a_peer(&e) => {}
            Ok(None) | Err(_) => break,
        }
    }
    queued
}

/// What is queued, right before the close: if this thread lost its core in the last look, there may be more by now.
///
/// No trick of a filter, or of `shutdown`, which keeps out who comes then: others may go on accepting from the
/// same socket, and a SYN that is dropped comes again after a second.
fn last_of<T>(mut next: impl FnMut() -> io::Result<Option<T>>) -> Vec<T> {
    const A_LOOK: Duration = Duration::from_micros(10);
    const MOST_LOOKS: usize = 8;

    let mut queued = Vec::new();
    for _ in 0..MOST_LOOKS {
        let most = MOST_LAST.saturating_sub(queued.len());
        queued.append(&mut until_none(most, &mut next));
        let begin = Stamp::now();
        match next() {
            Ok(None) if begin.elapsed() < A_LOOK => break,
            Ok(one) => queued.extend(one),
            Err(_) => {}
        }
    }
    queued
}

/// Errors of the one connection and not of the listener: of its peer, its network, or a firewall (accept(2), "Error handling"
/// and "Errors").
pub(super) fn of_a_peer(e: &io::Error) -> bool {
    // These have no kind: `ENONET`, `EPROTO`, `ENOPROTOOPT`, `EHOSTDOWN`.
    let unnamed = cfg!(target_os = "linux") && matches!(e.raw_os_error(), Some(64 | 71 | 92 | 112));
    unnamed
        || matches!(
            e.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::Interrupted
        )
}

fn accept_tcp(listener: &SockRef<'_>) -> io::Result<Option<(TcpStream, std::net::SocketAddr)>> {
    let Some((socket, addr)) = accept_now(listener)? else {
        return Ok(None);
    };
    // Some systems have none of a peer that has gone.
    let addr = addr.as_socket().ok_or(io::ErrorKind::ConnectionAborted)?;
    // That it fails is the runtime's fault, and will be so of the next.
    Ok(Some((TcpStream::from_std(socket.into())?, addr)))
}

#[cfg(unix)]
fn accept_unix(
    listener: &SockRef<'_>,
) -> io::Result<Option<(UnixStream, tokio::net::unix::SocketAddr)>> {
    let Some((socket, _)) = accept_now(listener)? else {
        return Ok(None);
    };
    let stream = UnixStream::from_std(std::os::fd::OwnedFd::from(socket).into())?;
    let addr = stream.peer_addr().or_else(|_| unnamed())?;
    Ok(Some((stream, addr)))
}

/// For a peer that has closed already, of which macOS tells none (`EINVAL`, `ENOTCONN`): what it has sent is to be read all
/// the same, and it is no reason to leave those behind it in the queue.
#[cfg(unix)]
fn unnamed() -> io::Result<tokio::net::unix::SocketAddr> {
    let addr = std::os::unix::net::SocketAddr::from_pathname("");
    addr.map(Into::into)
        .map_err(|_| io::ErrorKind::ConnectionAborted.into())
}

fn accept_now(listener: &SockRef<'_>) -> io::Result<Option<(socket2::Socket, socket2::SockAddr)>> {
    // Or what is accepted would be lost in a panic.
    Handle::try_current().map_err(io::Error::other)?;
    match listener.accept() {
        Ok((socket, addr)) => {
            // Behind the accept it is that connection's error, and not the listener's.
            let set = socket.set_nonblocking(true);
            set.map_err(|_| io::ErrorKind::ConnectionAborted)?;
            Ok(Some((socket, addr)))
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_who_has_none() {
        assert!(unnamed().expect("it needs no peer").is_unnamed());
    }
}
