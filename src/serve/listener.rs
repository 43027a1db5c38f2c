//! What a listener must be able to do.

use std::io;
use std::task::{Context, Poll};

#[cfg(target_os = "linux")]
use socket2::SockFilter;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};

#[cfg(target_os = "linux")]
use super::handshakes;

/// Accepts connections: tokio's TCP and Unix listeners do, and so can yours.
///
/// Dropping it must close it. It is handed from thread to thread, so that it can be closed while
/// the runtime it is on is stalled.
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
    /// been seen yet, and must not block. It is called on a thread of this crate's, in the context of the
    /// runtime on which the listener was polled last.
    ///
    /// # Errors
    ///
    /// As for [`poll_accept`](Self::poll_accept), but any error other than a peer's, or of having no
    /// descriptors left, ends it.
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
    /// default it is dropped; one that wraps another listener should pass this on. Not called at the
    /// deadline, nor where the accept loop has given up: it is dropped then.
    fn close(self) -> Vec<(Self::Io, Self::Addr)>
    where
        Self: Sized,
    {
        Vec::new()
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
        // First out of the runtime, so that as little as possible comes between the last steps.
        let Ok(listener) = self.into_std() else {
            return Vec::new();
        };
        let listener = SockRef::from(&listener);
        let ignores = ignore_new_connects(&listener);
        // Handshakes within this host that had begun have ended by now.
        let last = until_none(|| accept_tcp(&listener));
        if ignores {
            heed_new_connects(&listener);
        }
        last
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
        // As above. Nothing keeps connects away that would not keep them from other holders for good.
        let Ok(listener) = self.into_std() else {
            return Vec::new();
        };
        until_none(|| accept_unix(&SockRef::from(&listener)))
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

/// What is queued, until nothing is, or an error that is not a peer's.
pub(super) fn until_none<T>(mut next: impl FnMut() -> io::Result<Option<T>>) -> Vec<T> {
    let mut queued = Vec::new();
    for _ in 0..MOST_QUEUED {
        match next() {
            Ok(Some(one)) => queued.push(one),
            Err(e) if of_a_peer(&e) => {}
            Ok(None) | Err(_) => break,
        }
    }
    queued
}

/// Errors of the one connection and not of the listener (accept(2), "Error handling").
pub(super) fn of_a_peer(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

fn accept_tcp(listener: &SockRef<'_>) -> io::Result<Option<(TcpStream, std::net::SocketAddr)>> {
    let Some((socket, addr)) = accept_now(listener)? else {
        return Ok(None);
    };
    let addr = addr.as_socket().ok_or(io::ErrorKind::InvalidData)?;
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
    let addr = stream.peer_addr()?;
    Ok(Some((stream, addr)))
}

/// Has the kernel drop the SYN of new connects, while handshakes that have begun go on; whether it does. The
/// client tries again after a second, and is refused, or accepted by whoever has the address by then. It
/// lasts for microseconds: the listener is about to be closed.
#[cfg(target_os = "linux")]
fn ignore_new_connects(listener: &SockRef<'_>) -> bool {
    // Classic BPF (the kernel's Documentation/networking/filter.rst). That of a TCP socket begins at
    // the TCP header, whose byte 13 holds the flags (RFC 9293 section 3.1): SYN is 0x02, ACK 0x10.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, 0x12),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 0x02),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    // Without it a window of microseconds stays.
    listener.attach_filter(&filter).is_ok()
}

/// Others may go on accepting. What connects between this and the close is reset if nobody does.
#[cfg(target_os = "linux")]
fn heed_new_connects(listener: &SockRef<'_>) {
    let _ = listener.detach_filter();
}

#[cfg(not(target_os = "linux"))]
fn ignore_new_connects(_: &SockRef<'_>) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
fn heed_new_connects(_: &SockRef<'_>) {}

fn accept_now(listener: &SockRef<'_>) -> io::Result<Option<(socket2::Socket, socket2::SockAddr)>> {
    match listener.accept() {
        Ok((socket, addr)) => {
            socket.set_nonblocking(true)?;
            Ok(Some((socket, addr)))
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}
