//! The lowest layer of a connection: owns the socket, so that it can be closed from outside.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Connection;
use super::peek::{self, Peek};
use super::records::Records;
use super::shared::{Closing, Shared};
use crate::phase::Phase;
use crate::registry::{BRIEFLY, Cut, Outcome, Registry};

/// An IO that a [`Terminator`](crate::Terminator) knows of, from
/// [`track`](crate::Terminator::track) or a [`TrackedListener`](crate::TrackedListener).
///
/// It counts as a connection until it is dropped, also after an upgrade and in whoever's hands. At
/// the deadline its socket is closed from outside; then every read and write fails with
/// [`ConnectionAborted`](io::ErrorKind::ConnectionAborted).
///
/// Tracking alone makes the drain wait. Serve HTTP on it with
/// [`Connection::serve`](crate::Connection::serve), so that it is also told and ends well.
///
/// How well it can be ended depends on the kind of IO: TCP and Unix streams of tokio can be peeked
/// at and half-closed. Of any other the crate knows only what was read, so a request whose bytes
/// have reached this host unread may be lost when its connection is closed as idle.
pub struct TrackedIo<Io: Send + 'static> {
    shared: Arc<Shared>,
    slot: Arc<Mutex<Slot<Io>>>,
}

/// The IO, until somebody takes it out, and who to wake then: dropping a socket wakes nobody.
pub(crate) struct Slot<Io> {
    io: Option<Io>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    records: Records,
    half_closed: bool,
}

/// The socket of a connection as seen by those that don't know its type.
pub(crate) trait Transport: Send + Sync {
    fn peek(&self) -> Peek;

    /// Wakes its reader and its writer. False if somebody is inside its IO.
    fn wake(&self) -> bool;

    /// `None` if there was nothing to cut, or somebody is inside its IO.
    fn cut(&self, how: Cut) -> Option<Severed>;

    fn peer(&self) -> Option<SocketAddr>;

    /// So much of HTTP was read, the first of it; true if half a TLS record was read behind it.
    #[cfg(feature = "serve")]
    fn http_begins(&self, plaintext: usize) -> bool;

    /// Whether requests on it can be seen.
    fn is_tracked(&self) -> bool {
        true
    }
}

/// How much of a socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severed {
    /// Our half, if it is of a kind that can be.
    Half,
    Whole,
}

impl<Io: Send + 'static> TrackedIo<Io> {
    pub(crate) fn new(registry: &Arc<Registry>, io: Io) -> Self {
        let flushes = !peek::is_socket(&io);
        let slot = Slot {
            io: Some(io),
            reader: None,
            writer: None,
            records: Records::default(),
            half_closed: false,
        };
        let slot = Arc::new(Mutex::new(slot));
        let shared = Shared::register(registry, Arc::clone(&slot) as Arc<dyn Transport>);
        shared.flushes.store(flushes, Relaxed);
        let tracked = Self { shared, slot };
        // Registered first, then looked: if the driver's last sweep has passed, nobody else will
        // close it (invariant 2).
        if registry.phase() == Phase::Terminated {
            tracked.close();
        }
        tracked
    }

    /// The handle of this connection, with which to serve or watch it.
    pub fn connection(&self) -> Connection {
        Connection::new(self.shared.clone())
    }

    /// Takes the IO out: it leaves the terminator and is its caller's alone, neither counted nor
    /// told nor cut.
    ///
    /// # Panics
    ///
    /// If the terminator has closed the IO already, which it does when the grace period is over.
    pub fn into_inner(self) -> Io {
        self.shared.end(Outcome::Left);
        self.take()
            .expect("the terminator closed this connection when the grace period was over")
    }

    /// Calls with the IO, unless it was closed or taken out.
    #[cfg(any(feature = "serve", feature = "tonic"))]
    pub(crate) fn with<T>(&self, f: impl FnOnce(&Io) -> T) -> Option<T> {
        self.slot.lock().io.as_ref().map(f)
    }

    #[cfg(feature = "serve")]
    pub(crate) fn set_nodelay(&self) {
        self.with(|io| peek::set_nodelay(io));
    }

    fn take(&self) -> Option<Io> {
        let io = self.slot.lock().io.take();
        if io.is_some() {
            self.shared.socket_closed();
        }
        io
    }

    fn close(&self) {
        let io = self.take();
        drop(io);
    }
}

impl<Io: Send + 'static> Drop for TrackedIo<Io> {
    fn drop(&mut self) {
        let shared = &self.shared;
        let unread = || {
            !shared.reading().is_between()
                || shared.upgraded.load(Relaxed)
                || shared.transport.peek() == Peek::Data
        };
        match shared.phase() {
            // The driver half-closes it, discards what comes in, and closes it (G10). If its last
            // sweep has passed already, it has taken the IO.
            Phase::Forcing if unread() => {}
            Phase::Draining if shared.closes(Closing::InStages) => {
                shared.registry.linger(shared.id());
            }
            _ => self.close(),
        }
    }
}

impl<Io: Send + 'static> fmt::Debug for TrackedIo<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedIo")
            .field("connection", &self.shared.id())
            .finish_non_exhaustive()
    }
}

// ===== IO =====

// `inline(always)`, where it is: each call of these would cost as much as what they do.

#[allow(clippy::inline_always)] // see above
impl<Io: AsyncRead + Unpin + Send + 'static> AsyncRead for TrackedIo<Io> {
    #[inline(always)]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let mut slot = self.slot.lock();
        let slot = &mut *slot;
        let Some(io) = &mut slot.io else {
            return Poll::Ready(Err(closed()));
        };
        let Poll::Ready(result) = Pin::new(io).poll_read(cx, buf) else {
            remember(&mut slot.reader, cx.waker());
            return Poll::Pending;
        };
        if !slot.records.are_none() {
            self.shared.raw(slot.records.feed(&buf.filled()[before..]));
        }
        Poll::Ready(result)
    }
}

#[allow(clippy::inline_always)] // see above
impl<Io: AsyncWrite + Unpin + Send + 'static> TrackedIo<Io> {
    #[inline(always)]
    fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut Io>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut slot = self.slot.lock();
        let slot = &mut *slot;
        let Some(io) = &mut slot.io else {
            return Poll::Ready(Err(closed()));
        };
        let result = poll(Pin::new(io), cx);
        if result.is_pending() {
            remember(&mut slot.writer, cx.waker());
        }
        result
    }
}

#[allow(clippy::inline_always)] // see above
impl<Io: AsyncWrite + Unpin + Send + 'static> AsyncWrite for TrackedIo<Io> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(cx, |io, cx| io.poll_write(cx, buf))
    }

    #[inline(always)]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.slot
            .lock()
            .io
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shared.flushes.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        self.poll_io(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shared.flushes.load(Relaxed) && self.shared.closes(Closing::AtOnce) {
            return Poll::Ready(Ok(()));
        }
        self.poll_io(cx, AsyncWrite::poll_shutdown)
    }
}

#[inline]
fn remember(slot: &mut Option<Waker>, waker: &Waker) {
    if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
        *slot = Some(waker.clone());
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "closed by the terminator")
}

// ===== from outside =====

impl<Io: Send + 'static> Transport for Mutex<Slot<Io>> {
    fn peek(&self) -> Peek {
        self.lock()
            .io
            .as_ref()
            .map_or(Peek::Gone, |io| peek::peek(io))
    }

    fn wake(&self) -> bool {
        let Some(mut slot) = self.try_lock_for(BRIEFLY) else {
            return false;
        };
        let wakers = [slot.reader.take(), slot.writer.take()];
        drop(slot);
        wakers.into_iter().flatten().for_each(Waker::wake);
        true
    }

    fn cut(&self, how: Cut) -> Option<Severed> {
        let mut slot = self.try_lock_for(BRIEFLY)?;
        let half_closed = std::mem::replace(&mut slot.half_closed, true);
        let io = slot.io.as_ref()?;
        if !half_closed {
            peek::half_close(io);
        }
        if !peek::discard(io) && how != Cut::Hard {
            return Some(Severed::Half);
        }
        let io = slot.io.take();
        let wakers = [slot.reader.take(), slot.writer.take()];
        drop(slot);
        drop(io);
        wakers.into_iter().flatten().for_each(Waker::wake);
        Some(Severed::Whole)
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.try_lock_for(BRIEFLY)?
            .io
            .as_ref()
            .and_then(|io| peek::peer(io))
    }

    #[cfg(feature = "serve")]
    fn http_begins(&self, plaintext: usize) -> bool {
        self.lock().records.http_begins(plaintext)
    }
}

/// What a connection has below it when its IO is not tracked.
pub(super) struct NoSocket;

impl Transport for NoSocket {
    fn peek(&self) -> Peek {
        Peek::Unknown
    }

    fn wake(&self) -> bool {
        true
    }

    fn cut(&self, _: Cut) -> Option<Severed> {
        None
    }

    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    #[cfg(feature = "serve")]
    fn http_begins(&self, _: usize) -> bool {
        false
    }

    fn is_tracked(&self) -> bool {
        false
    }
}
