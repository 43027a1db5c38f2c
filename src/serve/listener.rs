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

    /// Called right before `accept_queued` is for the last time, and the listener is dropped then: keeps
    /// new connections from coming in between, only to be reset. Does nothing by default; one that wraps
    /// another listener should pass it on.
    fn prepare_close(&mut self) {}

    /// Called once, before the listener is used: whatever it takes so that neither of the accepting
    /// methods blocks. Does nothing by default; one that wraps another listener should pass it on.
    fn prepare(&mut self) {}
}

impl Listener for TcpListener {
    type Io = TcpStream;
    type Addr = std::net::SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
        Self::poll_accept(self, cx)
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
        let Some((socket, addr)) = accept_now(&SockRef::from(&*self))? else {
            return Ok(None);
        };
        let addr = addr.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some((TcpStream::from_std(socket.into())?, addr)))
    }

    #[cfg(target_os = "linux")]
    fn is_handshaking(&self) -> bool {
        // Where it may not be asked, there may be.
        let any = self.local_addr().and_then(handshakes::under_way);
        any.unwrap_or(true)
    }

    fn prepare_close(&mut self) {
        ignore_new_connects(&SockRef::from(&*self));
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
        let queued = match accept_now(&SockRef::from(&*self)) {
            // What Linux says of an empty queue once it refuses connects.
            Err(e) if cfg!(target_os = "linux") && e.kind() == io::ErrorKind::InvalidInput => None,
            queued => queued?,
        };
        let Some((socket, _)) = queued else {
            return Ok(None);
        };
        let stream = UnixStream::from_std(std::os::fd::OwnedFd::from(socket).into())?;
        let addr = stream.peer_addr()?;
        Ok(Some((stream, addr)))
    }

    fn prepare_close(&mut self) {
        // From now on connects are refused; what came before stays in the queue. Elsewhere it may mean
        // something else.
        if cfg!(target_os = "linux") {
            let _ = SockRef::from(&*self).shutdown(std::net::Shutdown::Read);
        }
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

/// Has the kernel drop the SYN of new connects, while handshakes that have begun go on. The client
/// tries again after a second, and is refused, or accepted by whoever has bound the address by then.
/// It lasts for microseconds: the listener is about to be closed.
#[cfg(target_os = "linux")]
fn ignore_new_connects(listener: &SockRef<'_>) {
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
    let _ = listener.attach_filter(&filter);
}

#[cfg(not(target_os = "linux"))]
fn ignore_new_connects(_: &SockRef<'_>) {}

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
