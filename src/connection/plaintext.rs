//! What hyper reads and writes: the layer above TLS, where requests can be told apart.
//!
//! Here an idle HTTP/1 connection is ended, by an end-of-file that the client did not send: hyper
//! closes as it would for a client that left, flushed and with `poll_shutdown`. Its own
//! `graceful_shutdown` would drop half a head in its buffer and bytes in the kernel.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::Bounds;
use super::http2::Http2;
use super::peek::Peek;
use super::shared::{Closing, Shared, Verdict};
use super::state::{PREFACE, Reading};
use crate::clock::Stamp;
use crate::phase::Phase;
use crate::registry::Outcome;

pub(crate) struct Plaintext<Io: AsyncRead + AsyncWrite + Unpin> {
    /// There until `into_inner` takes it.
    io: Option<Io>,
    bounds: Option<Arc<Bounds>>,
    /// A peek could not tell, and the reactor was given a turn since.
    looked: bool,
    end: End,
    /// Something was written and not flushed.
    unflushed: bool,
    /// When the last response was finished; at first, when HTTP began.
    quiet: Stamp,
    http2: Option<Box<Http2>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// What the timer is armed for.
    armed: Timer,
    shared: Arc<Shared>,
}

/// How the connection is being ended from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// The same, but nothing was read yet.
    Unread,
    /// The same, and hyper-util is to be told which version is spoken.
    Saying(Only),
    /// An end-of-file was injected (invariant 4): there is nothing to wait for.
    Eof,
    /// Half-closed: what comes in is discarded.
    Staged(Staged),
}

/// How hyper-util is told. It serves HTTP/2 to who begins with that one's preface, and HTTP/1 to all
/// others, also to those that end before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Only {
    /// By an end-of-file.
    Http1,
    /// By a preface, so that it begins without waiting for the client's (RFC 9113 section 3.4).
    Http2,
    /// So much of the client's own has come since.
    Preface(usize),
}

/// A staged close under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Staged {
    /// What was discarded, and what of it when the timer was last armed.
    bytes: u32,
    seen: u32,
    /// How often the timer has run out.
    rounds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    Head,
    Idle,
    Staged,
}

/// Bounds on a staged close (RFC 9112 section 9.6; nginx has 30 s, and no amount): enough for a
/// response to reach a client in the middle of an upload, not enough to be kept busy by it.
const STAGED_FOR: Duration = Duration::from_secs(5);
const STAGED_BYTES: u32 = 64 << 20;

impl<Io: AsyncRead + AsyncWrite + Unpin> Plaintext<Io> {
    pub(super) fn new(io: Io, shared: Arc<Shared>, bounds: Option<Arc<Bounds>>) -> Self {
        Self {
            io: Some(io),
            bounds,
            looked: false,
            end: End::Unread,
            unflushed: false,
            // After a TLS handshake the client has not had the time for a request yet.
            quiet: Stamp::now(),
            http2: None,
            timer: None,
            armed: Timer::Head,
            shared,
        }
    }

    /// Has hyper-util serve HTTP/1 and nothing else.
    pub(super) fn only_http1(&mut self) {
        self.shared.speaks_http1();
        self.end = End::Saying(Only::Http1);
    }

    /// The same for HTTP/2.
    pub(super) fn only_http2(&mut self) {
        // What is written is followed from the first frame on.
        self.http2 = Some(Box::default());
        self.end = End::Saying(Only::Http2);
    }

    #[cold]
    fn poll_saying(
        &mut self,
        only: Only,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut matched = match only {
            Only::Http1 => {
                self.end = End::Unread;
                return Poll::Ready(Ok(()));
            }
            Only::Http2 => {
                if buf.remaining() < PREFACE.len() {
                    return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
                }
                buf.put_slice(PREFACE);
                self.end = End::Saying(Only::Preface(0));
                return Poll::Ready(Ok(()));
            }
            Only::Preface(matched) => matched,
        };
        while matched < PREFACE.len() {
            let rest = &PREFACE[matched..];
            let mut part = [0; PREFACE.len()];
            let mut part = ReadBuf::new(&mut part[..rest.len()]);
            let Poll::Ready(read) = self.io().poll_read(cx, &mut part) else {
                return self.nothing_to_read(cx);
            };
            let part = part.filled();
            if matched == 0 && !part.is_empty() {
                self.shared.http_begins(part);
            }
            self.was_read(part);
            if read.is_err() || part.is_empty() {
                return Poll::Ready(read);
            }
            if !rest.starts_with(part) {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "no HTTP/2 preface",
                )));
            }
            matched += part.len();
            self.end = End::Saying(Only::Preface(matched));
        }
        self.end = End::Open;
        Pin::new(self).poll_read(cx, buf)
    }

    /// After an upgrade: the IO, and out of the way.
    pub(crate) fn into_inner(mut self) -> Io {
        self.io.take().expect("taken here only")
    }

    fn io(&mut self) -> Pin<&mut Io> {
        Pin::new(self.io.as_mut().expect("there until it is taken"))
    }

    /// Says goodbye to a peer that stalled: over TLS its end of the connection learns that nothing was
    /// cut off.
    fn goodbye(&mut self, cx: &mut Context<'_>) {
        if self.shared.is_cut_short() {
            return;
        }
        // If it can't be said at once it is not waited for.
        let _ = self.io().poll_shutdown(cx);
    }

    /// hyper asked for input and there is none: the place to find that the connection is idle.
    fn nothing_to_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.settles() {
            self.quiet = Stamp::now();
        }
        if self.shared.phase() < Phase::Draining {
            return self.within_bounds(cx);
        }
        let clock = &self.shared.registry.clock;
        let now = clock.now();
        match self.shared.verdict(now, clock.moment(self.quiet)) {
            Verdict::Busy => Poll::Pending,
            Verdict::Until(at) => {
                self.shared.remind(at);
                Poll::Pending
            }
            Verdict::Idle => match self.shared.transport.peek() {
                // Its readiness has not been seen yet; it will be.
                Peek::Data => Poll::Pending,
                Peek::Unknown if !self.looked => {
                    self.looked = true;
                    self.shared.remind(now.after(Duration::from_millis(1)));
                    Poll::Pending
                }
                Peek::Nothing | Peek::Gone | Peek::Unknown => {
                    self.end = End::Eof;
                    self.shared.close(Closing::AtOnce);
                    self.shared.end(Outcome::Idle);
                    Poll::Ready(Ok(()))
                }
            },
            Verdict::Stalled => {
                self.shared.end(Outcome::Stalled);
                self.goodbye(cx);
                Poll::Ready(Err(stalled()))
            }
        }
    }

    /// While serving: the bound on half-sent heads and, if asked for, on idle connections. A timer
    /// is armed only here, so a request that comes in one piece arms none.
    fn within_bounds(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let reading = self.shared.reading();
        if reading.may_be_partial_head() {
            let bound = self.bounds.as_ref().map(|bounds| bounds.head);
            let over = bound.is_some_and(|bound| self.over(Timer::Head, bound, cx));
            if over {
                self.shared.end(Outcome::Stalled);
                self.goodbye(cx);
                return Poll::Ready(Err(stalled()));
            }
            return Poll::Pending;
        }
        let idle = reading.is_between() && self.shared.requests() == 0;
        let bound = self.bounds.as_ref().and_then(|bounds| bounds.idle);
        let Some(bound) = bound.filter(|_| idle) else {
            return Poll::Pending;
        };
        // One timer serves many requests: it is armed for what is left when it is looked at.
        loop {
            let clock = &self.shared.registry.clock;
            let left = clock.moment(self.quiet).after(bound).since(clock.now());
            if left.is_zero() {
                if self.shared.transport.peek() == Peek::Data {
                    return Poll::Pending;
                }
                self.end = End::Eof;
                self.shared.end(Outcome::Idle);
                return Poll::Ready(Ok(()));
            }
            if !self.over(Timer::Idle, left, cx) {
                return Poll::Pending;
            }
            self.timer = None;
        }
    }

    /// Whether that time is over, counted from the first time this is asked.
    fn over(&mut self, what: Timer, time: Duration, cx: &mut Context<'_>) -> bool {
        if self.armed != what {
            self.timer = None;
            self.armed = what;
        }
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        timer.as_mut().poll(cx).is_ready()
    }

    /// If a request has ended, and nothing of a next one was read, the connection is quiet from now
    /// on.
    #[inline]
    fn settle(&mut self, cx: &mut Context<'_>) {
        if self.shared.settles() {
            self.quiet = Stamp::now();
            let bound = self.bounds.as_ref().and_then(|bounds| bounds.idle);
            if bound.is_none() && self.shared.phase() < Phase::Draining {
                return;
            }
        } else if !self.shared.reading().may_be_partial_head() {
            return;
        }
        self.watch_out(cx);
    }

    /// hyper may not ask for input again before it is woken.
    #[cold]
    fn watch_out(&mut self, cx: &mut Context<'_>) {
        if self.shared.phase() >= Phase::Draining {
            let quiet = self.shared.registry.clock.moment(self.quiet);
            self.shared.remind(self.shared.idle_due(quiet));
        } else if !self.shared.is_busy() && self.within_bounds(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    #[inline]
    fn was_read(&mut self, bytes: &[u8]) {
        self.looked = false;
        if self.http2.is_some() || !self.shared.starts(bytes) {
            self.was_read_otherwise(bytes);
        }
    }

    fn was_read_otherwise(&mut self, bytes: &[u8]) {
        let shared = &self.shared;
        if bytes.is_empty() {
            shared.peer_ended.store(true, Relaxed);
        }
        if shared.upgraded.load(Relaxed) {
            return;
        }
        let before = shared.reading();
        shared.read(bytes);
        match shared.reading() {
            Reading::Http2 => {
                let frames = match before {
                    Reading::Fresh(matched) => &bytes[PREFACE.len() - usize::from(matched)..],
                    _ => bytes,
                };
                let http2 = self.http2.get_or_insert_default();
                if http2.read(frames) {
                    shared.ponged();
                }
                shared.opened(http2.open());
            }
            reading if !reading.is_partial_head() => {
                self.timer.take_if(|_| self.armed == Timer::Head);
            }
            _ => {}
        }
    }

    fn wrote(&mut self, result: &Poll<io::Result<usize>>, bufs: &[IoSlice<'_>]) {
        let shared = &self.shared;
        shared.write_blocked.store(result.is_pending(), Relaxed);
        self.unflushed = true;
        if let (Some(http2), &Poll::Ready(Ok(mut n))) = (&mut self.http2, result) {
            for buf in bufs {
                let part = &buf[..buf.len().min(n)];
                http2.written(part);
                n -= part.len();
            }
            shared.opened(http2.open());
            if shared.told.load(Relaxed) {
                // h2 does not ask for input again after it has written the last of it.
                shared.touch();
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Drop for Plaintext<Io> {
    fn drop(&mut self) {
        // Not after an error: hyper drops a connection then whose response may be cut off, and the
        // client must not take that for its end.
        if self.io.is_some() && self.shared.closes(Closing::InStages) {
            self.goodbye(&mut Context::from_waker(Waker::noop()));
        }
    }
}

fn stalled() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the rest of a message did not come in time",
    )
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Plaintext<Io> {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end == End::Open {
            self.poll_open(cx, buf)
        } else {
            self.poll_not_open(cx, buf)
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Plaintext<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = self.io().poll_write(cx, buf);
        self.wrote(&result, &[IoSlice::new(buf)]);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.io().poll_write_vectored(cx, bufs);
        self.wrote(&result, bufs);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.unflushed {
            let flushed = this.io().poll_flush(cx);
            this.shared
                .write_blocked
                .store(flushed.is_pending(), Relaxed);
            ready!(flushed)?;
            this.unflushed = false;
        }
        // Also if nothing was written since: hyper may drop the body when the last of it is out.
        this.shared.head_written();
        // After a handler that had to wait hyper writes the response and does not ask for input
        // again: this is where its end can be seen.
        this.settle(cx);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if matches!(this.end, End::Open | End::Unread | End::Saying(_)) {
            // hyper does so for a client that left as well.
            let first = this.http2.is_none() && !this.shared.peer_ended.load(Relaxed);
            this.shared.ended_first.store(first, Relaxed);
            ready!(this.io().poll_shutdown(cx))?;
            let shared = &this.shared;
            // Nothing is lost by closing at once if nothing comes in any more: a reset is what
            // destroys a response on its way.
            let at_once = match &this.http2 {
                Some(http2) => !http2.is_unproven(),
                None => shared.reading().is_between() && shared.transport.peek() != Peek::Data,
            };
            if at_once || shared.upgraded.load(Relaxed) {
                return Poll::Ready(Ok(()));
            }
            this.end = End::Staged(Staged::default());
        }
        match this.end {
            End::Staged(staged) => this.discard(staged, cx),
            End::Eof | End::Open | End::Unread | End::Saying(_) => this.io().poll_shutdown(cx),
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Plaintext<Io> {
    #[inline(always)]
    #[allow(clippy::inline_always)] // called twice, and one of them is for every read
    fn poll_open(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.http2.is_some() && self.sifts() {
            return self.poll_sifted(cx, buf);
        }
        let before = buf.filled().len();
        match self.io().poll_read(cx, buf) {
            Poll::Ready(result) => {
                self.was_read(&buf.filled()[before..]);
                Poll::Ready(result)
            }
            // In the middle of a request, say.
            Poll::Pending if self.shared.is_busy() => Poll::Pending,
            Poll::Pending => self.nothing_to_read(cx),
        }
    }

    #[cold]
    fn poll_not_open(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.end {
            End::Saying(only) => return self.poll_saying(only, cx, buf),
            End::Eof => return Poll::Ready(Ok(())),
            End::Open | End::Unread | End::Staged(_) => {}
        }
        let before = buf.filled().len();
        let read = self.poll_open(cx, buf);
        let n = buf.filled().len() - before;
        if self.end == End::Unread && n > 0 {
            self.end = End::Open;
            self.shared.http_begins(&buf.filled()[before..]);
        }
        read
    }

    /// Whether HTTP/2 was told to go away and has yet to see that acknowledged.
    fn sifts(&mut self) -> bool {
        let told = self.shared.told.load(Relaxed);
        let sieve = self.http2.as_mut().filter(|_| told).map(|it| it.sieve());
        sieve.is_some_and(|sieve| !sieve.is_done())
    }

    #[cold]
    fn poll_sifted(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut part = [0; 4096];
        while let Some(http2) = &mut self.http2 {
            let sieve = http2.sieve();
            let before = buf.filled().len();
            if sieve.give(buf) {
                self.was_read(&buf.filled()[before..]);
                return Poll::Ready(Ok(()));
            }
            let mut part = ReadBuf::new(&mut part);
            let io = self.io.as_mut().expect("there until it is taken");
            let read = Pin::new(io).poll_read(cx, &mut part);
            let registry = &self.shared.registry;
            let now = registry.clock.now();
            match read {
                Poll::Ready(Ok(())) if !part.filled().is_empty() => {
                    if sieve.feed(part.filled(), now, &registry.config) {
                        self.shared.ponged();
                    }
                }
                Poll::Ready(end) => return Poll::Ready(end),
                Poll::Pending => match sieve.quiet(now) {
                    Some(due) => {
                        self.shared.remind(due);
                        return Poll::Pending;
                    }
                    None if sieve.is_empty() => return self.nothing_to_read(cx),
                    None => {}
                },
            }
        }
        Poll::Pending
    }

    /// The second stage of a staged close: "the server … continues to read from the connection
    /// until it receives a corresponding close by the client" (RFC 9112 section 9.6), in bounds.
    fn discard(&mut self, mut staged: Staged, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut chunk = [0; 16 * 1024];
        // A client that sends faster than this is read must not keep the thread.
        for _ in 0..16 {
            let mut buf = ReadBuf::new(&mut chunk);
            let Poll::Ready(result) = self.io().poll_read(cx, &mut buf) else {
                self.end = End::Staged(staged);
                return self.silent(staged, cx);
            };
            let n = buf.filled().len();
            if result.is_err() || n == 0 {
                return Poll::Ready(Ok(()));
            }
            // At most a chunk.
            staged.bytes += u32::try_from(n).unwrap_or(0);
        }
        self.end = End::Staged(staged);
        cx.waker().wake_by_ref();
        self.silent(staged, cx)
    }

    /// Whether the client has sent nothing for the stall timeout, or too much.
    fn silent(&mut self, mut staged: Staged, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if staged.bytes >= STAGED_BYTES {
            return Poll::Ready(Ok(()));
        }
        let timeout = self.shared.registry.config.stall_timeout.min(STAGED_FOR);
        if !self.over(Timer::Staged, timeout, cx) {
            return Poll::Pending;
        }
        staged.rounds = staged.rounds.saturating_add(1);
        // An HTTP/2 client gives window back for as long as it takes to read what was sent. In the
        // drain the deadline is its bound.
        let bounded = self.http2.is_none() || self.shared.phase() < Phase::Draining;
        let over = bounded && timeout.saturating_mul(staged.rounds) >= STAGED_FOR;
        if over || staged.bytes == staged.seen {
            return Poll::Ready(Ok(()));
        }
        staged.seen = staged.bytes;
        self.timer = None;
        self.end = End::Staged(staged);
        self.silent(staged, cx)
    }
}
