//! The lowest layer of a connection: owns the socket, so that it can be closed from outside.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;

use super::Connection;
use super::peek::{self, Peek};
use super::records::Records;
use super::shared::Shared;
use super::state::{Close, State, Step};
use crate::driver::foreign;
use crate::driver::steps::LINGER;
use crate::phase::Phase;
use crate::registry::{BRIEFLY, Chore, Cut, Outcome, Registry};

/// An IO that a [`Terminator`](crate::Terminator) knows of, from
/// [`track`](crate::Terminator::track) or a [`TrackedListener`](crate::TrackedListener).
///
/// It counts as a connection until it is dropped, also after an upgrade and in whoever's hands. From
/// the deadline on, or once it is forced, its socket is closed from outside; then every read and write fails with
/// [`ConnectionAborted`](io::ErrorKind::ConnectionAborted). One that is closed from outside as idle reads an end-of-file.
///
/// Tracking alone makes the drain wait. Serve HTTP on it with
/// [`Connection::serve`](crate::Connection::serve), so that it is also told and ends well.
///
/// How well it can be ended depends on the kind of IO: TCP and Unix streams of tokio can be peeked
/// at and half-closed, and TCP ones reset. Of any other the crate knows only what was read, so a request whose bytes
/// have reached this host unread may be lost when its connection is closed as idle. Where there is no reset, over Unix sockets
/// too, half of a response that only the close would end (HTTP/1.0, no length) looks whole.
///
/// # Examples
///
/// ```
/// # use http_terminator::Terminator;
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # use tokio::io::AsyncWriteExt;
/// # let (_client, server) = tokio::io::duplex(64);
/// let terminator = Terminator::new();
/// let mut io = terminator.track(server);
/// io.write_all(b"hello").await?;
/// assert_eq!(terminator.stats().connections, 1);
/// # Ok(()) }
/// ```
pub struct TrackedIo<Io: Send + 'static> {
    shared: Arc<Shared>,
    slot: Arc<Mutex<Slot<Io>>>,
    /// It is not of those whose flush is known to do nothing.
    flushes: bool,
}

// As a `Terminator` is, but for what is tracked.
impl<Io: UnwindSafe + Send + 'static> UnwindSafe for TrackedIo<Io> {}
impl<Io: RefUnwindSafe + Send + 'static> RefUnwindSafe for TrackedIo<Io> {}

/// The IO, until somebody takes it out, and who to wake then: dropping a socket wakes nobody.
#[allow(clippy::struct_excessive_bools)] // of one thing each
pub(crate) struct Slot<Io> {
    io: Option<Io>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    records: Records,
    seen: Seen,
    /// Something was written since it was read from.
    wrote: bool,
    /// It is to be closed by a reset, and was left alone by a first cut.
    spared: bool,
    /// It was closed as idle: for its reader that is an end, and not an error.
    ended: bool,
    /// Out of its owner's reach, and to be closed: it came too late, has been answered from outside, or is being cut. Never
    /// there together with `io`.
    withdrawn: Option<Io>,
    /// It is not counted any more, though it is there.
    counted_out: bool,
    /// What tonic's `Connected` said of it before it was closed from outside.
    #[cfg(feature = "tonic")]
    info: Option<peek::Info>,
}

/// What its reader has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// No byte yet.
    Never,
    /// Bytes, when it looked last; or somebody has written who is not known.
    Bytes,
    /// None, when it looked last; so it has dealt with those before. That holds for hyper also while a
    /// handler is at work: it looks only when its buffer is empty, or holds part of a head.
    Nothing,
}

/// The socket of a connection as seen by those that don't know its type.
pub(crate) trait Transport: Send + Sync {
    fn peek(&self) -> Peek;

    /// What of it is to be taken by the other side, if that can be told: see [`peek::unsent`].
    fn unsent(&self) -> Option<u32>;

    /// Wakes its reader and its writer. False if somebody is inside its IO.
    fn wake(&self) -> bool;

    /// A step towards its end. Nothing happens if somebody is inside its IO. True if its task is to go on
    /// with it.
    fn cut(&self, how: Cut, shared: &Arc<Shared>) -> bool;

    /// Closes it if nothing lies in it unread and that is so. True if it did.
    fn close_if(&self, idle: &dyn Fn(Seen) -> bool, shared: &Arc<Shared>) -> bool;

    fn peer(&self) -> Option<SocketAddr>;

    /// This was read, the first of HTTP.
    #[cfg(feature = "serve")]
    fn http_begins(&self, plaintext: &[u8]);

    /// TLS was read, and its last record is not whole: invisible to whoever reads the plaintext. For
    /// its own task, which waits for nobody but the driver's short looks.
    fn is_half_record(&self) -> bool;

    /// The same for others: somebody inside of its IO may be reading.
    fn may_be_half_record(&self) -> bool;

    /// Something was read before HTTP began.
    fn has_spoken(&self) -> bool;

    /// Whoever reads has found nothing more: it is the other side's turn.
    fn waits_for_peer(&self) -> bool;

    /// It is not closed, nor about to be: somebody is stuck inside its IO.
    fn is_open(&self) -> bool;

    /// Whether requests on it can be seen.
    fn is_tracked(&self) -> bool {
        true
    }
}

impl<Io: Send + 'static> TrackedIo<Io> {
    pub(crate) fn new(registry: &Arc<Registry>, io: Io) -> Self {
        let flushes = !peek::is_socket(&io);
        let slot = Slot {
            io: Some(io),
            reader: None,
            writer: None,
            records: Records::default(),
            seen: Seen::Never,
            wrote: false,
            spared: false,
            ended: false,
            withdrawn: None,
            counted_out: false,
            #[cfg(feature = "tonic")]
            info: None,
        };
        let slot = Arc::new(Mutex::new(slot));
        let shared = Shared::register(registry, Arc::clone(&slot) as Arc<dyn Transport>);
        let tracked = Self {
            shared,
            slot,
            flushes,
        };
        // Registered first, then looked: if the driver's last sweep has passed, nobody else will
        // close it (invariant 2).
        if registry.is_over() {
            tracked.refuse();
        }
        tracked
    }

    /// The handle of this connection, with which to serve or watch it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # let (_client, server) = tokio::io::duplex(64);
    /// let io = Terminator::new().track(server);
    /// io.connection().terminate();
    /// ```
    pub fn connection(&self) -> Connection {
        Connection::new(self.shared.clone())
    }

    /// Takes the IO out: it leaves the terminator and is its caller's alone, neither counted nor
    /// told nor cut. `None` if the terminator has closed it already: at the deadline, by
    /// [`force`](Connection::force), as idle, or because it had ended before.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # let (_client, server) = tokio::io::duplex(64);
    /// let terminator = Terminator::new();
    /// let io = terminator.track(server);
    /// assert!(io.into_inner().is_some());
    /// assert_eq!(terminator.stats().connections, 0);
    /// ```
    pub fn into_inner(self) -> Option<Io> {
        let io = self.take()?;
        self.shared.end(Outcome::Left);
        self.shared.socket_closed();
        Some(io)
    }

    /// What tonic's `Connected` says of it, or said.
    #[cfg(feature = "tonic")]
    pub(crate) fn info<T: Clone + 'static>(&self, ask: impl FnOnce(&Io) -> T) -> Option<T> {
        self.with(ask).or_else(|| {
            let slot = self.slot.lock();
            slot.info.as_ref()?.downcast_ref().cloned()
        })
    }

    /// Keeps that for when it is closed. False if it is.
    #[cfg(feature = "tonic")]
    pub(crate) fn keep_info<T: Send + Sync + 'static>(&self, ask: impl FnOnce(&Io) -> T) -> bool {
        let info = self.with(ask);
        let kept = info.is_some();
        self.slot.lock().info = info.map(|info| Box::new(info) as peek::Info);
        kept
    }

    /// Calls with the IO, for a socket's options for instance. `None` if it was closed or taken out.
    ///
    /// The IO is locked meanwhile: `f` must be quick, as the terminator may have to close it, and must
    /// not use this `TrackedIo` itself, for which it would wait for ever.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # use tokio::net::TcpListener;
    /// # #[tokio::main] async fn main() -> std::io::Result<()> {
    /// # let terminator = Terminator::new();
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let client = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
    /// let mut listener = terminator.listen(listener);
    /// if let Some((io, _)) = listener.accept().await {
    ///     io.with(|tcp| tcp.set_nodelay(true)).transpose()?;
    /// #   assert_eq!(io.with(|tcp| tcp.nodelay()).transpose()?, Some(true));
    /// }
    /// # Ok(()) }
    /// ```
    pub fn with<T>(&self, f: impl FnOnce(&Io) -> T) -> Option<T> {
        let slot = self.slot.lock();
        slot.any().map(f)
    }

    #[cfg(feature = "serve")]
    pub(crate) fn set_nodelay(&self) {
        self.with(|io| peek::set_nodelay(io));
    }

    /// It was taken out of a queue, and nobody has accepted it yet.
    pub(crate) fn set_queued(&self, yes: bool) {
        if yes {
            self.shared.set(State::QUEUED);
        } else {
            self.shared.clear(State::QUEUED);
        }
    }

    /// Closes it, as nobody has asked for it.
    pub(crate) fn lose(self) {
        self.shared.end(Outcome::Lost);
        // Also one that is being cut, or it would keep its descriptor for as long as that takes.
        let mut slot = self.slot.lock();
        let withdrawn = slot.withdrawn.take();
        slot.io = slot.io.take().or(withdrawn);
        drop(slot);
        self.close();
    }

    fn take(&self) -> Option<Io> {
        self.slot.lock().io.take()
    }

    /// Nobody will look for it any more, so it ends now. tonic asks a socket whose it is right after this,
    /// so its drop is up to its owner.
    fn refuse(&self) {
        self.shared.end(Outcome::Forced);
        let mut slot = self.slot.lock();
        if slot.io.as_ref().is_some_and(|io| peek::is_socket(io)) {
            slot.withdrawn = slot.io.take();
            slot.withdrawn.iter().for_each(|io| peek::shut_down(io));
            slot.counted_out = true;
            drop(slot);
            self.shared.socket_closed();
        } else {
            drop(slot);
            self.close();
        }
    }

    /// Closes it here, on the thread of its owner: how long that takes is up to the IO.
    fn close(&self) {
        let Some(io) = self.take() else { return };
        prepare_close(&io, &self.shared);
        // It counts until it is gone, also when its drop panics.
        if peek::is_socket(&io) {
            foreign::call(|| drop(io));
        } else {
            let unclosed = &self.shared.registry.unclosed;
            unclosed.fetch_add(1, Relaxed);
            foreign::call(|| drop(io));
            unclosed.fetch_sub(1, Relaxed);
        }
        self.shared.socket_closed();
    }
}

impl<Io: Send + 'static> Drop for TrackedIo<Io> {
    fn drop(&mut self) {
        let shared = &self.shared;
        let mut slot = self.slot.lock();
        // Nobody reads or writes any more, and whoever is the last to let go of the slot must not have to
        // do with what is foreign.
        let wakers = slot.take_wakers();
        let is_cut = slot.withdrawn.is_some();
        drop(slot);
        for waker in wakers.into_iter().flatten() {
            foreign::call(|| drop(waker));
        }
        let in_stages = || shared.close(shared.has_unread()) == Close::InStages;
        let linger = |most| {
            // Who closes it in the end does not know how it ended.
            shared.end(shared.outcome());
            shared.registry.linger(shared.id(), most);
        };
        let is_left = match shared.stage() {
            // The driver half-closes it, discards what comes in, and closes it; also what it has begun with, where nobody knows
            // whether something is to come.
            Phase::Forcing => in_stages() || is_cut && !shared.has(State::SEEN),
            Phase::Serving | Phase::LameDuck | Phase::Draining if shared.has(State::IN_STAGES) => {
                linger(LINGER);
                true
            }
            // Somebody else's server has ended it, or the handler of a WebSocket, and does not read to the end what crosses that. A
            // client of HTTP/2 that is reset while it writes gives up answers that it has yet to read.
            Phase::Draining
                if shared.has(State::ENDED_FIRST)
                    && (shared.has(State::UPGRADED) || !shared.has(State::SEEN)) =>
            {
                linger(shared.registry.config.settle.min(LINGER));
                true
            }
            _ => false,
        };
        // Behind the last of our locks: the last sweep, which may have failed to get it, comes after this or is seen.
        if !is_left || shared.registry.is_over() {
            self.close();
            // What the driver is about to close.
            let mut slot = self.slot.lock();
            let (withdrawn, counted_out) = (slot.withdrawn.take(), slot.counted_out);
            drop(slot);
            let counts = withdrawn.is_some() && !counted_out;
            if let Some(io) = &withdrawn {
                prepare_close(io, shared);
            }
            foreign::call(|| drop(withdrawn));
            if counts {
                shared.socket_closed();
            }
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
        let mut guard = self.slot.lock();
        let slot = &mut *guard;
        let Some(io) = &mut slot.io else {
            return Poll::Ready(slot.closed());
        };
        let Poll::Ready(result) = Pin::new(io).poll_read(cx, buf) else {
            if slot.seen == Seen::Bytes {
                slot.seen = Seen::Nothing;
            }
            if knows(slot.reader.as_ref(), cx.waker()) {
                return Poll::Pending;
            }
            drop(guard);
            return self.remember(cx, |slot| &mut slot.reader);
        };
        slot.seen = Seen::Bytes;
        slot.wrote = false;
        if !slot.records.are_none() {
            slot.records.feed(&buf.filled()[before..]);
            // Behind the lock, as it may start a thread, or say that it can't.
            drop(guard);
            self.shared.came_in();
        }
        Poll::Ready(result)
    }
}

impl<Io: Send + 'static> TrackedIo<Io> {
    /// Keeps the waker of a reader or a writer who was told to wait.
    #[cold]
    fn remember(
        &self,
        cx: &Context<'_>,
        which: impl FnOnce(&mut Slot<Io>) -> &mut Option<Waker>,
    ) -> Poll<io::Result<()>> {
        let state = self.shared.state();
        if !state.has(State::SEEN) || state.has(State::UPGRADED) {
            // Nobody else does, and who has what it was upgraded to may be on another.
            self.shared.note_runtime();
        }
        // Foreign code is called without the lock: it may come back here.
        let waker = cx.waker().clone();
        let mut slot = self.slot.lock();
        // Closed meanwhile, when there was nobody to wake.
        if slot.io.is_none() {
            return Poll::Ready(slot.closed());
        }
        let old = which(&mut slot).replace(waker);
        drop(slot);
        drop(old);
        Poll::Pending
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
        let mut guard = self.slot.lock();
        let slot = &mut *guard;
        let Some(io) = &mut slot.io else {
            return Poll::Ready(Err(closed()));
        };
        let result = poll(Pin::new(io), cx);
        slot.wrote |= result.is_ready();
        if slot.seen == Seen::Never && !self.shared.has(State::SEEN) {
            // Whoever speaks first, of something else than HTTP, is in the middle of it.
            slot.seen = Seen::Bytes;
        }
        if result.is_ready() || knows(slot.writer.as_ref(), cx.waker()) {
            return result;
        }
        drop(guard);
        self.remember(cx, |slot| &mut slot.writer)
            .map(|end| Err(end.err().unwrap_or_else(closed)))
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
        if !self.flushes {
            return Poll::Ready(Ok(()));
        }
        self.poll_io(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.flushes && self.shared.has(State::AT_ONCE) {
            return Poll::Ready(Ok(()));
        }
        let shared = &self.shared;
        if !shared.has(State::SEEN | State::HTTP2)
            && shared.phase() >= Phase::Draining
            // Nobody above knows whether the other side has ended already.
            && !matches!(shared.transport.peek(), Peek::Gone | Peek::Unknown)
        {
            shared.set(State::ENDED_FIRST);
        }
        self.poll_io(cx, |io, cx| {
            let shut = io.poll_shutdown(cx);
            if matches!(shut, Poll::Ready(Ok(()))) {
                shared.note_shut_down();
            }
            shut
        })
    }
}

#[inline]
fn knows(known: Option<&Waker>, waker: &Waker) -> bool {
    known.is_some_and(|known| known.will_wake(waker))
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "closed by the terminator")
}

impl<Io: 'static> Slot<Io> {
    /// What is written here reaches the other side as it is.
    fn is_plain(&self) -> bool {
        self.records.are_plain() && self.io.as_ref().is_some_and(|io| peek::is_socket(io))
    }

    /// It, whoever may reach it.
    fn any(&self) -> Option<&Io> {
        self.io.as_ref().or(self.withdrawn.as_ref())
    }

    /// Who waits for it.
    fn take_wakers(&mut self) -> [Option<Waker>; 2] {
        [self.reader.take(), self.writer.take()]
    }

    /// What its reader gets once it is closed.
    fn closed(&self) -> io::Result<()> {
        if self.ended { Ok(()) } else { Err(closed()) }
    }
}

// ===== from outside =====

impl<Io: Send + 'static> Transport for Mutex<Slot<Io>> {
    fn peek(&self) -> Peek {
        self.lock().any().map_or(Peek::Gone, |io| peek::peek(io))
    }

    fn unsent(&self) -> Option<u32> {
        let slot = self.try_lock_for(BRIEFLY)?;
        slot.any().and_then(|io| peek::unsent(io))
    }

    fn wake(&self) -> bool {
        let Some(mut slot) = self.try_lock_for(BRIEFLY) else {
            return false;
        };
        let wakers = slot.take_wakers();
        drop(slot);
        for waker in wakers.into_iter().flatten() {
            foreign::call(|| waker.wake());
        }
        true
    }

    fn cut(&self, how: Cut, shared: &Arc<Shared>) -> bool {
        let Some(mut slot) = self.try_lock_for(BRIEFLY) else {
            return true;
        };
        if let Some(io) = &slot.withdrawn {
            // What is unread when it closes would destroy what was sent.
            let is_over = peek::discard(io);
            if how == Cut::Hard || is_over {
                close(slot, shared);
            }
            return false;
        }
        let Some(io) = &slot.io else { return false };
        let now = shared.look();
        let resets = now.state.close(false) == Close::Reset;
        // It came while nobody ran the runtime, or just now.
        let asks = shared.may_have_asked(now) && slot.is_plain() && peek::peek(io) == Peek::Data;
        if !resets && (asks || shared.is_owed_an_answer(now)) {
            let untouched = how != Cut::Soft && !slot.wrote;
            // What hyper does not call for it may have refused just now.
            let refused = slot.wrote && now.state.step() == Step::Head;
            let may = slot.is_plain() && !refused && shared.may_be_answered(now, untouched);
            let sent = if asks || may {
                peek::send(io, LATE_ANSWER)
            } else {
                0
            };
            if sent > 0 {
                // Were it not all of it, nothing else may follow either.
                shared.answered_from_outside(sent == LATE_ANSWER.len());
                slot.withdrawn = slot.io.take();
                end_answered(slot, how, shared);
                return false;
            }
            // Of what hyper has let go of nobody writes the rest.
            if how == Cut::Soft && !now.state.has(State::LET_GO) {
                return true;
            }
        }
        if how == Cut::Hard {
            shared.end(Outcome::Forced);
            close(slot, shared);
            return false;
        }
        if resets {
            // At the second look: what was written before the deadline may be on its way out. An
            // end-of-file before the reset would be taken for the end of the response.
            if std::mem::replace(&mut slot.spared, true) {
                shared.end(Outcome::Forced);
                close(slot, shared);
            }
            return true;
        }
        // Behind so many of them hyper lets others have a turn, and has some left.
        let has_come = || slot.seen == Seen::Bytes || now.inside && peek::peek(io) == Peek::Data;
        if how == Cut::Soft && shared.may_begin(now) && has_come() {
            // It is looked at again when that is out.
            return true;
        }
        shared.end(Outcome::Forced);
        if !peek::is_socket(io) {
            return false;
        }
        peek::half_close(io);
        let is_over = peek::discard(io);
        // What follows must not be read as if what is discarded had never been there.
        slot.withdrawn = slot.io.take();
        if is_over {
            close(slot, shared);
        } else {
            let wakers = slot.take_wakers();
            drop(slot);
            have_woken(wakers, shared);
        }
        false
    }

    fn close_if(&self, idle: &dyn Fn(Seen) -> bool, shared: &Arc<Shared>) -> bool {
        let Some(mut slot) = self.try_lock_for(BRIEFLY) else {
            return false;
        };
        let quiet = |io| matches!(peek::peek(io), Peek::Nothing | Peek::Gone);
        // What came in may be half of something.
        let seen = if slot.records.are_half() {
            Seen::Bytes
        } else {
            slot.seen
        };
        // The state first: a look takes a reset that somebody who reads on would be told of.
        let closes = idle(seen) && slot.io.as_ref().is_some_and(|io| quiet(io));
        if closes {
            slot.ended = true;
            // One that was told has finished; its task had no turn to close it.
            shared.end(if shared.has(State::TOLD) {
                Outcome::Finished
            } else {
                Outcome::Idle
            });
            close(slot, shared);
        }
        closes
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.try_lock_for(BRIEFLY)?
            .any()
            .and_then(|io| peek::peer(io))
    }

    #[cfg(feature = "serve")]
    fn http_begins(&self, plaintext: &[u8]) {
        self.lock().records.http_begins(plaintext);
    }

    fn is_half_record(&self) -> bool {
        self.lock().records.are_half()
    }

    fn may_be_half_record(&self) -> bool {
        self.try_lock_for(BRIEFLY)
            .is_none_or(|slot| slot.records.are_half())
    }

    fn has_spoken(&self) -> bool {
        self.lock().records.have_begun()
    }

    fn waits_for_peer(&self) -> bool {
        self.lock().seen != Seen::Bytes
    }

    fn is_open(&self) -> bool {
        self.try_lock_for(BRIEFLY)
            .is_none_or(|slot| slot.any().is_some())
    }
}

/// What a request is answered from outside whose handler has not answered at the deadline. It goes
/// out also while all threads of its runtime are blocked.
const LATE_ANSWER: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Ends the connection behind that answer.
fn end_answered<Io: Send + 'static>(
    mut slot: MutexGuard<'_, Slot<Io>>,
    how: Cut,
    shared: &Arc<Shared>,
) {
    let Some(io) = &slot.withdrawn else { return };
    match shared.close(peek::peek(io) == Peek::Data) {
        Close::InStages => {
            peek::half_close(io);
            if how == Cut::Hard {
                // What is unread when it closes would destroy the answer.
                peek::discard(io);
                return close(slot, shared);
            }
            let wakers = slot.take_wakers();
            drop(slot);
            have_woken(wakers, shared);
        }
        Close::AtOnce | Close::Reset => close(slot, shared),
    }
}

/// Whoever waits for an IO that was taken away. The driver wakes the connection as well, but perhaps before
/// that, and what is gone it wakes no more.
fn have_woken(wakers: [Option<Waker>; 2], shared: &Shared) {
    for waker in wakers.into_iter().flatten() {
        shared.registry.foreign().hand_over(Chore::Wake(waker));
    }
}

/// What is to be set before a socket is closed.
fn prepare_close(io: &dyn Any, shared: &Shared) {
    if shared.state().close(false) == Close::Reset {
        peek::reset_at_close(io);
        return;
    }
    if shared.stage() >= Phase::Draining || shared.has(State::IN_STAGES) {
        peek::dont_linger(io);
    }
    if shared.was_ended() && !shared.has(State::ENDED_FIRST) {
        // Others may hold the socket, a process say that is just being started: its peer is told all the same.
        peek::half_close(io);
    }
}

/// Closes it from outside of its task: at once if it is a socket. What the drop of any other does nobody
/// knows, so that is left to a thread that may get stuck in it.
fn close<Io: Send + 'static>(mut slot: MutexGuard<'_, Slot<Io>>, shared: &Arc<Shared>) {
    let io = slot.io.take().or_else(|| slot.withdrawn.take());
    let Some(io) = io else { return };
    #[cfg(feature = "tonic")]
    if slot.info.is_none() {
        slot.info = peek::info(&io);
    }
    let (wakers, counted_out) = (slot.take_wakers(), slot.counted_out);
    drop(slot);
    // Before it is counted out: what comes after the end is nobody's.
    have_woken(wakers, shared);
    if peek::is_socket(&io) {
        prepare_close(&io, shared);
        foreign::call(|| drop(io));
        if !counted_out {
            shared.socket_closed();
        }
        return;
    }
    let shared = Arc::clone(shared);
    let registry = Arc::clone(&shared.registry);
    registry.unclosed.fetch_add(1, Relaxed);
    registry.apart(move || {
        // It may spawn something.
        let runtime = shared.runtime();
        let entered = runtime.as_ref().map(Handle::enter);
        foreign::call(|| drop(io));
        drop(entered);
        shared.registry.unclosed.fetch_sub(1, Relaxed);
        shared.socket_closed();
    });
}

/// What a connection has below it when its IO is not tracked.
pub(super) struct NoSocket;

impl Transport for NoSocket {
    fn peek(&self) -> Peek {
        Peek::Unknown
    }

    fn unsent(&self) -> Option<u32> {
        None
    }

    fn wake(&self) -> bool {
        true
    }

    fn cut(&self, _: Cut, _: &Arc<Shared>) -> bool {
        true
    }

    fn close_if(&self, _: &dyn Fn(Seen) -> bool, _: &Arc<Shared>) -> bool {
        false
    }

    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    #[cfg(feature = "serve")]
    fn http_begins(&self, _: &[u8]) {}

    fn is_half_record(&self) -> bool {
        false
    }

    fn may_be_half_record(&self) -> bool {
        false
    }

    fn has_spoken(&self) -> bool {
        false
    }

    fn waits_for_peer(&self) -> bool {
        true
    }

    fn is_open(&self) -> bool {
        false
    }

    fn is_tracked(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;
    use crate::Terminator;
    use crate::clock::Moment;

    /// Is called when it is dropped.
    struct AtDrop<F: Fn()>(F);

    impl<F: Fn()> Drop for AtDrop<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    impl<F: Fn() + Send + Sync + 'static> Wake for AtDrop<F> {
        fn wake(self: Arc<Self>) {}
    }

    /// A connection is dropped at the deadline that is to be closed in stages, by the driver. While its drop looks into the
    /// socket, and has its lock, the last sweep passes, which tries it for a moment only. Who then left the rest to the
    /// driver left it open.
    #[test]
    fn what_is_dropped_while_the_last_sweep_passes_is_closed() {
        let terminator = Terminator::new();
        let registry = terminator.registry();
        let (closed, was_closed) = std::sync::mpsc::channel();
        let io = AtDrop(move || closed.send(()).expect("somebody listens"));
        let tracked = terminator.track(io);
        let connection = tracked.connection();
        tracked.shared.set(State::HALF);
        registry.raise(Phase::Forcing, Moment::START, Moment::START);
        let at_end = Arc::clone(registry);
        let passes = AtDrop(move || at_end.progress.end());
        tracked.slot.lock().reader = Some(Waker::from(Arc::new(passes)));
        drop(tracked);
        assert!(registry.is_over(), "it has passed meanwhile");
        assert_eq!(was_closed.try_recv(), Ok(()));
        drop(connection);
    }

    /// It was answered from outside meanwhile, and taken away for that: nobody else counts it out.
    #[test]
    fn what_was_answered_and_is_dropped_behind_the_last_sweep_is_counted_out() {
        let terminator = Terminator::new();
        let registry = terminator.registry();
        let tracked = terminator.track(AtDrop(|| ()));
        let mut slot = tracked.slot.lock();
        slot.withdrawn = slot.io.take();
        drop(slot);
        registry.raise(Phase::Forcing, Moment::START, Moment::START);
        registry.progress.end();
        drop(tracked);
        assert_eq!(registry.census.connections(), 0);
    }

    /// As a rule hyper calls for what was read; where it has written instead, it may have been its own `400`.
    #[cfg(unix)]
    #[tokio::test]
    async fn what_hyper_may_have_refused_is_not_answered_from_outside() {
        let terminator = Terminator::new();
        let (mut client, server) = tokio::net::UnixStream::pair().expect("a pair");
        let mut tracked = terminator.track(server);
        let shared = Arc::clone(&tracked.shared);
        let request = b"GET / HTTP/1.1\r\n: \r\n\r\n";
        let sent = tokio::io::AsyncWriteExt::write_all(&mut client, request);
        sent.await.expect("there is room");
        let mut part = [0; 64];
        let read = tokio::io::AsyncReadExt::read(&mut tracked, &mut part);
        assert_eq!(read.await.expect("no error"), request.len());
        shared.transport.http_begins(request);
        shared.set(State::SEEN | State::HTTP1 | Step::Head as u32);
        let written = tokio::io::AsyncWriteExt::write_all(&mut tracked, b"400");
        written.await.expect("there is room");
        shared.set_inside(true);
        let registry = terminator.registry();
        registry.raise(Phase::Forcing, Moment::START, Moment::START);
        let slot: &Mutex<Slot<_>> = &tracked.slot;
        assert!(slot.cut(Cut::Soft, &shared), "it is looked at again");
        slot.cut(Cut::Firm, &shared);
        let mut all = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut client, &mut all);
        read.await.expect("an end");
        assert_eq!(all, b"400");
        shared.set_inside(false);
    }

    /// Nobody writes the rest of its answer.
    #[test]
    fn what_hyper_has_let_go_of_is_not_spared() {
        let terminator = Terminator::new();
        let tracked = terminator.track(AtDrop(|| ()));
        let shared = Arc::clone(&tracked.shared);
        shared.set(State::SEEN | State::HTTP1 | State::LET_GO | State::BLOCKED | Step::Said as u32);
        let slot: &Mutex<Slot<_>> = &tracked.slot;
        assert!(!slot.cut(Cut::Soft, &shared));
    }

    /// Its answer would be destroyed by what is unread.
    #[cfg(unix)]
    #[tokio::test]
    async fn what_was_answered_from_outside_is_discarded_before_it_is_closed() {
        let terminator = Terminator::new();
        let (mut client, mut server) = tokio::net::UnixStream::pair().expect("a pair");
        for (to, bytes) in [(&mut server, b"503"), (&mut client, b"all")] {
            let written = tokio::io::AsyncWriteExt::write_all(to, bytes);
            written.await.expect("there is room");
        }
        let tracked = terminator.track(server);
        let taken = tracked.take();
        tracked.slot.lock().withdrawn = taken;
        let slot: &Mutex<Slot<_>> = &tracked.slot;
        slot.cut(Cut::Hard, &tracked.shared);
        let mut all = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut client, &mut all);
        read.await.expect("an end, and no reset");
        assert_eq!(all, b"503");
    }

    /// Worked out by the deadline that there was: it may have come nearer meanwhile, and who has asked before been woken for that.
    #[test]
    fn who_asks_for_a_time_behind_a_nearer_deadline_is_woken_at_once() {
        let terminator = Terminator::new();
        let registry = terminator.registry();
        let tracked = terminator.track(AtDrop(|| ()));
        let far = Moment::START.after(std::time::Duration::from_secs(30));
        let due = Moment::START.after(std::time::Duration::from_secs(10));
        let asked = || {
            let asked = registry.agenda.take().due;
            asked.into_iter().map(|(at, _)| at).collect::<Vec<_>>()
        };
        registry.raise(Phase::Draining, Moment::START, far);
        tracked.shared.remind_by(due, far);
        assert_eq!(asked(), [due]);
        tracked.shared.reminded();
        registry.raise(Phase::Draining, Moment::START, due);
        tracked.shared.remind_by(due, far);
        assert_eq!(asked(), [due, Moment::START]);
        registry.progress.end();
    }

    /// A task that has read a request, and has not said so yet, or is about to read it, is given the moment that this takes: its client
    /// got an end of file in place of a `503`, or of its answer.
    #[cfg(unix)]
    #[tokio::test]
    async fn what_is_being_read_as_it_is_cut_is_not_taken_away() {
        // Also where it is not known yet what is spoken, and behind half a head.
        let states = [State::HTTP1, 0, State::HTTP1 | State::HALF];
        for (was_read, flags) in states.iter().flat_map(|it| [(true, *it), (false, *it)]) {
            let terminator = Terminator::new();
            let registry = terminator.registry();
            let (mut client, server) = tokio::net::UnixStream::pair().expect("a pair");
            let mut tracked = terminator.track(server);
            let shared = Arc::clone(&tracked.shared);
            shared.set(State::SEEN | flags);
            // It has asked for input, and got none.
            let mut part = [0; 64];
            let cx = &mut Context::from_waker(Waker::noop());
            let mut buf = ReadBuf::new(&mut part);
            assert!(Pin::new(&mut tracked).poll_read(cx, &mut buf).is_pending());
            let request = b"GET / HTTP/1.1\r\n\r\n";
            let sent = tokio::io::AsyncWriteExt::write_all(&mut client, request);
            sent.await.expect("there is room");
            shared.set_inside(true);
            if was_read {
                let read = tokio::io::AsyncReadExt::read(&mut tracked, &mut part);
                assert_eq!(read.await.expect("no error"), request.len());
            }
            registry.raise(Phase::Forcing, Moment::START, Moment::START);
            let slot: &Mutex<Slot<_>> = &tracked.slot;
            assert!(slot.cut(Cut::Soft, &shared), "it is looked at again");
            assert!(tracked.slot.lock().io.is_some());
            // But not for ever.
            slot.cut(Cut::Firm, &shared);
            assert!(tracked.slot.lock().io.is_none());
            shared.set_inside(false);
        }
    }
}
