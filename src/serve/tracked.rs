//! Accepting: backing off on errors, and from the drain on handing out what was queued.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;

use super::listener::{Listener, MOST_QUEUED, of_a_peer};
use super::queue::{Accepted, Queue};
use crate::connection::TrackedIo;
use crate::driver::foreign;
use crate::phase::Phase;
use crate::registry::Registry;

/// A listener that a [`Terminator`](crate::Terminator) knows of, from
/// [`listen`](crate::Terminator::listen): for accept loops of your own.
///
/// When the drain begins, what the kernel has queued is taken and kept for the next calls of
/// [`accept`](Self::accept), also while the loop waits elsewhere, for a permit, say. What it did not ask for is
/// reset at the deadline, or once nothing else has been waited for for half a second: no connection that
/// is not [`detach`](crate::Connection::detach)ed, and no guard. So an accept loop that waits for something
/// of its own, such as a rate limit, holds a [`guard`](crate::Terminator::guard) from before its first round to behind
/// its last: in the drain there are no new ones. (A [`lame_duck`](crate::TerminatorBuilder::lame_duck) of a range then lasts
/// for its whole time.) Drop the listener when the loop ends otherwise than by `None`: what is queued then is lost.
///
/// # Examples
///
/// See [`Connection::serve`](crate::Connection::serve) and `examples/hyper.rs`.
pub struct TrackedListener<L: Listener> {
    registry: Arc<Registry>,
    queue: Arc<Queue<L>>,
    pause: Option<Pin<Box<Sleep>>>,
    /// Errors in a row.
    errors: u32,
    /// Those in a row that a peer caused: each took one out of a kernel's queue, and a listener that has more of them than
    /// any such queue holds has failed.
    skipped: usize,
    /// Those of an episode, which ends when the queue is found empty: near the limit of descriptors each that comes free lets
    /// one connection in, and the next accept fails again.
    failed: u32,
    /// It ends as in a drain, in whatever phase.
    stops: bool,
}

/// Errors that a peer caused by going away are tried again at once, so many times before somebody
/// else gets a turn.
const MOST_SKIPPED: u32 = 64;

impl<L: Listener> TrackedListener<L> {
    pub(crate) fn new(registry: &Arc<Registry>, mut listener: L) -> Self {
        listener.prepare();
        Self {
            registry: Arc::clone(registry),
            queue: Queue::new(registry, listener),
            pause: None,
            errors: 0,
            skipped: 0,
            failed: 0,
            stops: false,
        }
    }

    /// Waits for a connection. `None` when the drain has begun, everything that the kernel had
    /// queued has been handed out, and the listener is closed.
    ///
    /// Errors are dealt with in here: those of a peer that has gone again are skipped; after any
    /// other, such as having no file descriptors left, there is a pause, 5 ms at first and a second
    /// at most, which never delays a termination.
    ///
    /// # Cancel safety
    ///
    /// No connection is lost when the future is dropped.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, and in a pause after an error if its timer is not enabled.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # use tokio::net::TcpListener;
    /// # #[tokio::main] async fn main() -> std::io::Result<()> {
    /// let terminator = Terminator::new();
    /// let mut listener = terminator.listen(TcpListener::bind("127.0.0.1:0").await?);
    /// # drop(terminator.terminate());
    /// while let Some((io, peer)) = listener.accept().await {
    ///     println!("{peer}");
    ///     drop(io);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn accept(&mut self) -> Option<(TrackedIo<L::Io>, L::Addr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// From now on it hands out what is queued, and is closed then, as in a drain.
    #[cfg(feature = "serve")]
    pub(super) fn stop(&mut self) {
        self.stops = true;
    }

    /// Calls with the listener, unless it was closed.
    #[cfg(feature = "axum")]
    pub(super) fn with<T>(&self, f: impl FnOnce(&L) -> T) -> Option<T> {
        self.queue.with(f)
    }

    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<L>>> {
        // The waker first, the phase after (invariant 2).
        let is_new = self.queue.set_waker(cx.waker());
        if self.registry.phase() >= Phase::Draining {
            return self.queue.poll_taken();
        }
        if self.stops {
            return self.poll_stopping(cx);
        }
        // Not at each poll: the first one has a new waker.
        if is_new {
            #[cfg(all(unix, feature = "systemd"))]
            self.registry.notices.accepts(&self.registry);
        }
        for _ in 0..MOST_SKIPPED {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let Some(polled) = self.queue.poll_listener(cx) else {
                // It was closed, or the drain began and somebody takes what it holds.
                return self.queue.poll_taken();
            };
            let Poll::Ready(polled) = polled else {
                self.skipped = 0;
                // Behind one that was accepted: a listener of somebody's own may fail, and wait then.
                if self.failed > 0 && self.errors == 0 {
                    let errors = std::mem::take(&mut self.failed);
                    foreign::call(|| tracing::info!(errors, "accepting again"));
                }
                return Poll::Pending;
            };
            match polled {
                Ok(accepted) => {
                    (self.errors, self.skipped) = (0, 0);
                    return Poll::Ready(Some(accepted));
                }
                Err(e) if of_a_peer(&e) && self.skipped < MOST_QUEUED => self.skipped += 1,
                Err(error) => {
                    if self.failed == 0 {
                        foreign::call(|| tracing::warn!(%error, "cannot accept, trying again"));
                    }
                    self.failed = self.failed.saturating_add(1);
                    let pause = Duration::from_millis(5 << self.errors.min(8));
                    self.errors = self.errors.saturating_add(1);
                    self.pause_for(pause.min(Duration::from_secs(1)));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What the driver does in a drain is up to us.
    fn poll_stopping(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<L>>> {
        loop {
            if let taken @ Poll::Ready(_) = self.queue.poll_taken() {
                return taken;
            }
            if self.registry.phase() >= Phase::Draining {
                // It is up to the driver now, which wakes us.
                return Poll::Pending;
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let now = self.registry.clock.now();
            if let Some(at) = self.queue.empty(now) {
                self.pause_for(at.since(now));
            }
        }
    }

    fn pause_for(&mut self, time: Duration) {
        self.pause = Some(Box::pin(tokio::time::sleep(time)));
    }
}

impl<L: Listener> Drop for TrackedListener<L> {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

impl<L: Listener> fmt::Debug for TrackedListener<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedListener").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc;
    use std::task::{Wake, Waker};

    use tokio::io::DuplexStream;
    use tokio::time::Instant;

    use super::*;
    use crate::Terminator;

    /// Nobody ever connects; it may call something when it is asked.
    struct Quiet<F>(F);

    impl<F: FnMut() + Send + 'static> Listener for Quiet<F> {
        type Io = DuplexStream;
        type Addr = ();

        fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
            (self.0)();
            Poll::Pending
        }

        fn accept_queued(&mut self) -> io::Result<Option<(DuplexStream, ())>> {
            Ok(None)
        }
    }

    /// It is woken then, as somebody else takes what is queued and closes it.
    #[test]
    fn a_drain_that_begins_inside_a_poll_is_seen() {
        let terminator = Terminator::new();
        let called = terminator.clone();
        let mut listener = terminator.listen(Quiet(move || drop(called.terminate())));
        let (ring, rings) = mpsc::channel();
        let bell = Waker::from(Arc::new(Bell(ring)));
        let mut polls = 0;
        while listener
            .poll_accept(&mut Context::from_waker(&bell))
            .is_pending()
        {
            polls += 1;
            let wake = rings.recv_timeout(Duration::from_secs(10));
            wake.expect("woken when there is nothing left to accept");
        }
        assert!(polls > 0, "not closed inside of its own poll");
        assert_eq!(terminator.stats().listeners, 0);
    }

    /// Out of descriptors, so many times; then somebody has connected.
    struct Exhausted(u32);

    impl Listener for Exhausted {
        type Io = DuplexStream;
        type Addr = ();

        fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
            let Some(left) = self.0.checked_sub(1) else {
                return Poll::Ready(Ok((tokio::io::duplex(1).0, ())));
            };
            self.0 = left;
            Poll::Ready(Err(io::Error::other("none is left")))
        }

        fn accept_queued(&mut self) -> io::Result<Option<(DuplexStream, ())>> {
            Ok(None)
        }
    }

    /// From 5 ms on each pause is twice the last one, up to a second: the eight up to 640 ms last 1,275 ms.
    #[tokio::test(start_paused = true)]
    async fn pauses_after_errors_grow_up_to_a_second() {
        let mut listener = Terminator::new().listen(Exhausted(12));
        let begin = Instant::now();
        assert!(listener.accept().await.is_some());
        assert_eq!(begin.elapsed(), Duration::from_millis(1_275 + 4 * 1_000));
    }

    /// Its session is gone, of which each call says the same.
    struct Gone;

    impl Listener for Gone {
        type Io = DuplexStream;
        type Addr = ();

        fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn accept_queued(&mut self) -> io::Result<Option<(DuplexStream, ())>> {
            Ok(None)
        }
    }

    /// It was skipped for ever, by a task that was never idle: paused time would not go on.
    #[tokio::test(start_paused = true)]
    async fn a_listener_whose_every_error_is_a_peers_does_not_spin() {
        let mut listener = Terminator::new().listen(Gone);
        let accepted = tokio::time::timeout(Duration::from_secs(60), listener.accept());
        assert!(accepted.await.is_err(), "nobody connects");
    }

    struct Bell(mpsc::Sender<()>);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }
}
