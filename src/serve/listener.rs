//! What a listener must be able to do.

use std::io;
use std::task::{Context, Poll};

#[cfg(target_os = "linux")]
use socket2::SockFilter;
use socket2::SockRef;
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
        let listener = SockRef::from(&*self);
        let mut queued = accept_now(&listener)?;
        if queued.is_none() {
            // Between this word and the close more may come, only to be reset.
            ignore_new_connects(&listener);
            // Handshakes within this host that have begun end meanwhile. Once for each listener.
            std::thread::sleep(std::time::Duration::from_millis(1));
            queued = accept_now(&listener)?;
        }
        let Some((socket, addr)) = queued else {
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
        let listener = SockRef::from(&*self);
        let mut queued = accept_now(&listener)?;
        // Elsewhere it may mean something else.
        if queued.is_none() && cfg!(target_os = "linux") {
            // From now on connects are refused; what came before stays in the queue.
            let refusing = listener.shutdown(std::net::Shutdown::Read);
            queued = match accept_now(&listener) {
                // What Linux says of an empty queue then.
                Err(e) if refusing.is_ok() && e.kind() == io::ErrorKind::InvalidInput => None,
                queued => queued?,
            };
        }
        let Some((socket, _)) = queued else {
            return Ok(None);
        };
        let stream = UnixStream::from_std(std::os::fd::OwnedFd::from(socket).into())?;
        let addr = stream.peer_addr()?;
        Ok(Some((stream, addr)))
    }
}

/// Has the kernel drop the SYN of new connects, while handshakes that have begun go on. The client
/// tries again after a second, and is refused, or accepted by whoever has bound the address by then.
/// It should last for microseconds: the listener is about to be closed.
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
