//! What can be done with a socket from outside of its task: look, half-close, discard.

use std::any::Any;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

/// What lies in a socket, unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    Nothing,
    /// At least a byte.
    Data,
    /// The other side has closed, or reset: nothing will come any more. A peek consumes a pending
    /// reset; the read after it sees a clean end.
    Gone,
    /// This kind of IO can't be looked into.
    Unknown,
}

/// The socket inside, if this kind of IO is known to be one.
pub(super) fn socket(io: &dyn Any) -> Option<SockRef<'_>> {
    if let Some(tcp) = io.downcast_ref::<TcpStream>() {
        return Some(SockRef::from(tcp));
    }
    #[cfg(unix)]
    if let Some(unix) = io.downcast_ref::<UnixStream>() {
        return Some(SockRef::from(unix));
    }
    None
}

pub(super) fn is_socket(io: &dyn Any) -> bool {
    socket(io).is_some()
}

pub(super) fn peer(io: &dyn Any) -> Option<SocketAddr> {
    io.downcast_ref::<TcpStream>()?.peer_addr().ok()
}

pub(super) fn peek(io: &dyn Any) -> Peek {
    let Some(socket) = socket(io) else {
        return Peek::Unknown;
    };
    match socket.peek(&mut [MaybeUninit::uninit()]) {
        Ok(0) => Peek::Gone,
        Ok(_) => Peek::Data,
        Err(e) if nothing_yet(&e) => Peek::Nothing,
        Err(_) => Peek::Gone,
    }
}

/// As every HTTP server does: responses are written in whole, and the last part of one must not wait
/// for an acknowledgment that the client delays.
#[cfg(feature = "serve")]
pub(super) fn set_nodelay(io: &dyn Any) {
    if let Some(tcp) = io.downcast_ref::<TcpStream>() {
        let _ = tcp.set_nodelay(true);
    }
}

/// So that the last bytes sent are not destroyed by a reset when more comes in (RFC 9112 section
/// 9.6). An error means that it is closed already.
pub(super) fn half_close(io: &dyn Any) {
    if let Some(socket) = socket(io) {
        let _ = socket.shutdown(Shutdown::Write);
    }
}

/// Has its close be a reset. What was not sent yet is then lost, and a Unix socket has none.
pub(super) fn reset_at_close(io: &dyn Any) {
    if let Some(socket) = socket(io) {
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

/// Reads and forgets what has come in, 256 KiB at most. True if the other side has closed.
pub(super) fn discard(io: &dyn Any) -> bool {
    let Some(socket) = socket(io) else {
        return false;
    };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    for _ in 0..64 {
        match socket.recv(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return !nothing_yet(&e),
        }
    }
    false
}

fn nothing_yet(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
