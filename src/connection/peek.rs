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

#[cfg(all(test, feature = "serve"))]
use crate::sim::net::SimStream;

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

/// `MSG_DONTWAIT` in recv(2): who made the socket may have left it in blocking mode, or somebody else who holds it may have put
/// it back, and then whoever looks would wait.
const DONT_WAIT: i32 = if cfg!(any(target_os = "linux", target_os = "android")) {
    0x40
} else if cfg!(any(
    target_vendor = "apple",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "dragonfly",
    target_os = "illumos",
    target_os = "solaris"
)) {
    0x80
} else {
    // Of others it is not known; what they refuse would look like an end.
    0
};

/// `MSG_PEEK`, the same everywhere.
const PEEK: i32 = 2;

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
    #[cfg(all(test, feature = "serve"))]
    if io.is::<SimStream>() {
        return true;
    }
    socket(io).is_some()
}

pub(super) fn peer(io: &dyn Any) -> Option<SocketAddr> {
    io.downcast_ref::<TcpStream>()?.peer_addr().ok()
}

pub(super) fn peek(io: &dyn Any) -> Peek {
    #[cfg(all(test, feature = "serve"))]
    if let Some(sim) = io.downcast_ref::<SimStream>() {
        return sim.peek();
    }
    let Some(socket) = socket(io) else {
        return Peek::Unknown;
    };
    match socket.recv_with_flags(&mut [MaybeUninit::uninit()], PEEK | DONT_WAIT) {
        Ok(0) => Peek::Gone,
        Ok(_) => Peek::Data,
        Err(e) if nothing_yet(&e) => Peek::Nothing,
        Err(_) => Peek::Gone,
    }
}

/// How many bytes were written that the other side's kernel has not acknowledged: of TCP, on Linux, where it may be asked.
pub(super) fn unsent(io: &dyn Any) -> Option<u32> {
    #[cfg(target_os = "linux")]
    if let Some(tcp) = io.downcast_ref::<TcpStream>() {
        let (local, peer) = (tcp.local_addr().ok()?, tcp.peer_addr().ok()?);
        return crate::sock_diag::unacknowledged(local, peer).ok();
    }
    let _ = io;
    None
}

/// As every HTTP server does: responses are written in whole, and the last part of one must not wait
/// for an acknowledgment that the client delays.
#[cfg(feature = "serve")]
pub(super) fn set_nodelay(io: &dyn Any) {
    if let Some(tcp) = io.downcast_ref::<TcpStream>() {
        let _ = tcp.set_nodelay(true);
    }
}

/// Both ways: its peer sees the end.
pub(super) fn shut_down(io: &dyn Any) {
    #[cfg(all(test, feature = "serve"))]
    if let Some(sim) = io.downcast_ref::<SimStream>() {
        sim.shut_down(Shutdown::Both);
    }
    if let Some(socket) = socket(io) {
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// What tonic's `Connected` says of an IO.
#[cfg(feature = "tonic")]
pub(super) type Info = Box<dyn Any + Send + Sync>;

#[cfg(feature = "tonic")]
pub(super) fn info(io: &dyn Any) -> Option<Info> {
    use tonic::transport::server::Connected;

    if let Some(tcp) = io.downcast_ref::<TcpStream>() {
        return Some(Box::new(tcp.connect_info()));
    }
    #[cfg(unix)]
    if let Some(unix) = io.downcast_ref::<UnixStream>() {
        return Some(Box::new(unix.connect_info()));
    }
    None
}

/// So that the last bytes sent are not destroyed by a reset when more comes in (RFC 9112 section
/// 9.6). An error means that it is closed already.
pub(super) fn half_close(io: &dyn Any) {
    #[cfg(all(test, feature = "serve"))]
    if let Some(sim) = io.downcast_ref::<SimStream>() {
        sim.shut_down(Shutdown::Write);
    }
    if let Some(socket) = socket(io) {
        let _ = socket.shutdown(Shutdown::Write);
    }
}

/// Has the next close not wait for what is unsent: the kernel goes on sending it by itself. A close that
/// is to reset, which is what waiting for no time at all means, stays one.
pub(super) fn dont_linger(io: &dyn Any) {
    let Some(socket) = socket(io) else { return };
    if let Ok(Some(1..)) = socket.linger().map(|it| it.map(|it| it.as_nanos())) {
        let _ = socket.set_linger(None);
    }
}

/// Has its close be a reset. What was not sent yet is then lost, and a Unix socket has none.
pub(super) fn reset_at_close(io: &dyn Any) {
    #[cfg(all(test, feature = "serve"))]
    if let Some(sim) = io.downcast_ref::<SimStream>() {
        sim.reset_at_close();
    }
    if let Some(socket) = socket(io) {
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

/// Sends as much of it as fits the socket's buffer now, and gives how much that was.
pub(super) fn send(io: &dyn Any, bytes: &[u8]) -> usize {
    /// `MSG_NOSIGNAL` in send(2): not every process ignores SIGPIPE. Of Apple's the socket has that.
    const NO_SIGNAL: i32 = if cfg!(any(target_os = "linux", target_os = "android")) {
        0x4000
    } else if cfg!(target_os = "freebsd") {
        0x2_0000
    } else if cfg!(any(
        target_os = "netbsd",
        target_os = "openbsd",
        target_os = "dragonfly"
    )) {
        0x400
    } else if cfg!(any(target_os = "illumos", target_os = "solaris")) {
        0x200
    } else {
        0
    };

    #[cfg(all(test, feature = "serve"))]
    if let Some(sim) = io.downcast_ref::<SimStream>() {
        return sim.send(bytes);
    }
    let sent =
        socket(io).and_then(|socket| socket.send_with_flags(bytes, NO_SIGNAL | DONT_WAIT).ok());
    sent.unwrap_or(0)
}

/// Reads and forgets what has come in, 256 KiB at most. True if the other side has closed.
pub(super) fn discard(io: &dyn Any) -> bool {
    /// `MSG_TRUNC` in tcp(7): the kernel forgets it without a copy.
    const FORGET: i32 = if cfg!(target_os = "linux") { 0x20 } else { 0 };

    #[cfg(all(test, feature = "serve"))]
    if let Some(sim) = io.downcast_ref::<SimStream>() {
        return sim.discard();
    }
    let Some(socket) = socket(io) else {
        return false;
    };
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    for _ in 0..16 {
        match socket.recv_with_flags(&mut buffer, FORGET | DONT_WAIT) {
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
