//! What hyper reads and writes: the layer above TLS, where requests can be told apart.
//!
//! Here an idle HTTP/1 connection is ended, by an end-of-file that the client did not send: hyper
//! closes as it would for a client that left, flushed and with `poll_shutdown`. Its own
//! `graceful_shutdown` would drop half a head in its buffer and bytes in the kernel.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::Bounds;
use super::frames::Frames;
use super::peek::Peek;
use super::shared::{Shared, Verdict};
use super::state::Reading;
use crate::phase::Phase;
use crate::registry::Outcome;

pub(crate) struct Plaintext<Io> {
    io: Io,
    bounds: Bounds,
    /// Bytes came in since the connection was last found quiet.
    stirred: bool,
    /// A peek could not tell, and the reactor was given a turn since.
    looked: bool,
    end: End,
    frames_in: Frames,
    frames_out: Frames,
    timer: Option<(Timer, Pin<Box<Sleep>>)>,
    shared: Arc<Shared>,
}

/// How the connection is being ended from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// An end-of-file was injected (invariant 4): there is nothing to wait for.
    Eof,
    /// Half-closed: what comes in is discarded, so many bytes at most.
    Staged {
        left: usize,
    },
}

/// What the timer is armed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    Head,
    Idle,
    Staged,
}

/// Bounds on a staged close (RFC 9112 section 9.6; nginx has 30 s, and no amount): enough for a
/// response to reach a client in the middle of an upload, not enough to be kept busy by it.
const STAGED_FOR: Duration = Duration::from_secs(5);
const STAGED_BYTES: usize = 64 << 20;

impl<Io> Plaintext<Io> {
    pub(super) fn new(io: Io, shared: Arc<Shared>, bounds: Bounds) -> Self {
        Self {
            io,
            bounds,
            stirred: false,
            looked: false,
            end: End::Open,
            frames_in: Frames::of_client(),
            frames_out: Frames::default(),
            timer: None,
            shared,
        }
    }

    /// After an upgrade: the IO, and out of the way.
    pub(crate) fn into_inner(self) -> Io {
        self.io
    }

    /// hyper asked for input and there is none: the place to find that the connection is idle.
    fn nothing_to_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let core = &self.shared.core;
        if self.stirred && core.requests() == 0 && core.reading().is_between() {
            self.settle();
        }
        if self.shared.core.phase() < Phase::Draining {
            return self.within_bounds(cx);
        }
        let now = self.shared.core.registry.clock.now();
        match self.shared.verdict(now) {
            Verdict::Busy => Poll::Pending,
            Verdict::Until(at) => {
                self.shared.core.remind(at);
                Poll::Pending
            }
            Verdict::Idle => match self.shared.transport.peek() {
                // Its readiness has not been seen yet; it will be.
                Peek::Data => Poll::Pending,
                Peek::Unknown if !self.looked => {
                    self.looked = true;
                    self.shared.core.remind(now.after(Duration::from_millis(1)));
                    Poll::Pending
                }
                Peek::Nothing | Peek::Gone | Peek::Unknown => {
                    self.end = End::Eof;
                    self.shared.core.end(Outcome::Idle);
                    Poll::Ready(Ok(()))
                }
            },
            Verdict::Stalled => {
                self.shared.core.end(Outcome::Stalled);
                Poll::Ready(Err(stalled()))
            }
        }
    }

    /// Nothing is in hand from now on. The clock is read here, once for each request.
    fn settle(&mut self) {
        self.stirred = false;
        let core = &self.shared.core;
        let now = core.settle();
        if core.phase() >= Phase::Draining {
            // hyper may not ask for input again before it is woken.
            self.shared
                .core
                .remind(now.after(core.registry.config.settle));
        }
    }

    /// While serving: the bound on half-sent heads and, if asked for, on idle connections. A timer
    /// is armed only here, so a request that comes in one piece arms none.
    fn within_bounds(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let reading = self.shared.core.reading();
        if reading.is_partial_head() {
            let bound = self.bounds.head;
            let over = bound.is_some_and(|bound| self.over(Timer::Head, bound, cx));
            return if over {
                Poll::Ready(Err(stalled()))
            } else {
                Poll::Pending
            };
        }
        let idle = reading.is_between() && self.shared.core.requests() == 0;
        let Some(bound) = self.bounds.idle.filter(|_| idle) else {
            return Poll::Pending;
        };
        // One timer serves many requests: it is armed for what is left when it is looked at.
        loop {
            let left = self.shared.core.idle_left(bound);
            if left.is_zero() {
                self.end = End::Eof;
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
        if !matches!(&self.timer, Some((armed, _)) if *armed == what) {
            self.timer = Some((what, Box::pin(tokio::time::sleep(time))));
        }
        let timer = self.timer.as_mut();
        timer.is_some_and(|(_, timer)| timer.as_mut().poll(cx).is_ready())
    }

    fn was_read(&mut self, bytes: &[u8]) {
        let core = &self.shared.core;
        if core.upgraded.load(Relaxed) {
            return;
        }
        self.stirred = true;
        self.looked = false;
        core.read(bytes);
        let reading = core.reading();
        if matches!(reading, Reading::Http2 | Reading::Fresh(_)) {
            if self.frames_in.feed(bytes).pongs > 0 {
                core.ponged();
            }
        } else if !reading.is_partial_head() {
            self.timer.take_if(|(what, _)| *what == Timer::Head);
        }
    }

    fn wrote(&mut self, result: &Poll<io::Result<usize>>, bufs: &[IoSlice<'_>]) {
        let core = &self.shared.core;
        core.write_blocked.store(result.is_pending(), Relaxed);
        if let (Reading::Http2, &Poll::Ready(Ok(mut n))) = (core.reading(), result) {
            let mut data = 0;
            for buf in bufs {
                let part = &buf[..buf.len().min(n)];
                data += self.frames_out.feed(part).data;
                n -= part.len();
            }
            if data > 0 {
                core.data_written(data);
            }
        }
    }
}

fn stalled() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the rest of a message did not come in time",
    )
}

impl<Io: AsyncRead + Unpin> AsyncRead for Plaintext<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.end == End::Eof {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(result) => {
                this.was_read(&buf.filled()[before..]);
                Poll::Ready(result)
            }
            Poll::Pending if this.shared.core.upgraded.load(Relaxed) => Poll::Pending,
            Poll::Pending => this.nothing_to_read(cx),
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Plaintext<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(&result, &[IoSlice::new(buf)]);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(&result, bufs);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        let core = &self.shared.core;
        core.write_blocked.store(flushed.is_pending(), Relaxed);
        if flushed.is_ready() {
            core.head_written();
        }
        // After a handler that had to wait hyper writes the response and does not ask for input
        // again: this is where its end can be seen.
        if self.stirred && flushed.is_ready() && core.requests() == 0 && core.reading().is_between()
        {
            self.settle();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let left = match this.end {
            End::Eof => return Pin::new(&mut this.io).poll_shutdown(cx),
            End::Staged { left } => left,
            End::Open => {
                ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
                let core = &this.shared.core;
                let all_read =
                    core.reading().is_between() && this.shared.transport.peek() != Peek::Data;
                if all_read || core.upgraded.load(Relaxed) || core.reading() == Reading::Http2 {
                    return Poll::Ready(Ok(()));
                }
                STAGED_BYTES
            }
        };
        this.discard(left, cx)
    }
}

impl<Io: AsyncRead + Unpin> Plaintext<Io> {
    /// The second stage of a staged close: "the server … continues to read from the connection
    /// until it receives a corresponding close by the client" (RFC 9112 section 9.6), in bounds.
    fn discard(&mut self, mut left: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut chunk = [0; 16 * 1024];
        // A client that sends faster than this is read must not keep the thread.
        for _ in 0..16 {
            let mut buf = ReadBuf::new(&mut chunk);
            let Poll::Ready(result) = Pin::new(&mut self.io).poll_read(cx, &mut buf) else {
                self.end = End::Staged { left };
                return self.staged_over(cx);
            };
            let n = buf.filled().len();
            if result.is_err() || n == 0 || n >= left {
                return Poll::Ready(Ok(()));
            }
            left -= n;
        }
        self.end = End::Staged { left };
        cx.waker().wake_by_ref();
        self.staged_over(cx)
    }

    fn staged_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.over(Timer::Staged, STAGED_FOR, cx) {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
}
