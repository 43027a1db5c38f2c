//! Accepting: emptying the queue when the drain begins, backing off on errors, and closing from
//! outside.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_core::Stream;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Sleep;

use super::listener::Listener;
use crate::connection::TrackedIo;
use crate::phase::Phase;
use crate::registry::{BRIEFLY, Door, Registry};

/// A listener that a [`Terminator`](crate::Terminator) knows of, from
/// [`listen`](crate::Terminator::listen): for accept loops of your own.
///
/// Drop it when the loop ends otherwise than by `None`. One that nobody polls any more when the
/// drain begins is closed from outside a moment later, and what its queue held is lost.
pub struct TrackedListener<L: Listener> {
    registry: Arc<Registry>,
    state: Arc<State<L>>,
    pause: Option<Pin<Box<Sleep>>>,
    /// Errors in a row.
    errors: u32,
    late: usize,
}

/// Shared with the driver, which closes it while the runtime is stalled.
struct State<L> {
    registry: Arc<Registry>,
    id: usize,
    inner: Mutex<Inner<L>>,
}

struct Inner<L> {
    listener: Option<L>,
    waker: Option<Waker>,
    /// It was polled since the drain began.
    drained: bool,
    /// The driver has asked for that before.
    asked: bool,
}

type Accepted<L> = (TrackedIo<<L as Listener>::Io>, <L as Listener>::Addr);

/// No kernel queues more: a listener that always has one more must not keep the drain open.
const MOST_QUEUED: usize = 1 << 16;

/// Errors that a peer caused by going away are tried again at once, so many times before somebody
/// else gets a turn.
const MOST_SKIPPED: u32 = 64;

impl<L: Listener> TrackedListener<L>
where
    L::Io: Send + 'static,
{
    pub(crate) fn new(registry: &Arc<Registry>, listener: L) -> Self {
        let id = registry.next_door();
        let inner = Inner {
            listener: Some(listener),
            waker: None,
            drained: false,
            asked: false,
        };
        let state = Arc::new(State {
            registry: Arc::clone(registry),
            id,
            inner: Mutex::new(inner),
        });
        registry.note_runtime();
        registry.open(id, Arc::clone(&state) as Arc<dyn Door>);
        // Registered first, then looked: if the driver has passed, nobody else will close it.
        if registry.phase() >= Phase::Forcing {
            state.close_by_owner();
        }
        Self {
            registry: Arc::clone(registry),
            state,
            pause: None,
            errors: 0,
            late: 0,
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
    pub async fn accept(&mut self) -> Option<(TrackedIo<L::Io>, L::Addr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Calls with the listener, unless it was closed.
    #[cfg(feature = "axum")]
    pub(super) fn with<T>(&self, f: impl FnOnce(&L) -> T) -> Option<T> {
        self.state.inner.lock().listener.as_ref().map(f)
    }

    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<L>>> {
        let mut polled = self.poll_untracked(cx);
        if polled.is_pending() && self.registry.phase() >= Phase::Draining {
            // It began meanwhile, and the driver could not get at the waker.
            polled = self.poll_untracked(cx);
        }
        let Some((io, addr)) = ready!(polled) else {
            // Not in there: a foreign drop must not happen under the lock.
            self.state.close_by_owner();
            return Poll::Ready(None);
        };
        Poll::Ready(Some((TrackedIo::new(&self.registry, io), addr)))
    }

    fn poll_untracked(&mut self, cx: &mut Context<'_>) -> Poll<Option<(L::Io, L::Addr)>> {
        let mut inner = self.state.inner.lock();
        // The waker first, the phase after (invariant 2).
        if !inner
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            inner.waker = Some(cx.waker().clone());
        }
        let phase = self.registry.phase();
        inner.drained = phase >= Phase::Draining;
        let Some(listener) = &mut inner.listener else {
            return Poll::Ready(None);
        };
        // The signal wins over a queue that never empties, and what is in the queue is then taken
        // on purpose.
        while phase == Phase::Draining && self.late < MOST_QUEUED {
            self.late += 1;
            match listener.accept_queued() {
                Ok(Some(accepted)) => {
                    self.registry.accepted_late.fetch_add(1, Relaxed);
                    return Poll::Ready(Some(accepted));
                }
                Ok(None) => break,
                Err(e) if of_a_peer(&e) => {}
                Err(error) => {
                    if self.errors == 0 {
                        tracing::warn!(%error, "cannot empty the accept queue");
                    }
                    break;
                }
            }
        }
        if phase >= Phase::Draining {
            return Poll::Ready(None);
        }
        for _ in 0..MOST_SKIPPED {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(listener.poll_accept(cx)) {
                Ok(accepted) => {
                    if self.errors > 0 {
                        tracing::info!(errors = self.errors, "accepting again");
                        self.errors = 0;
                    }
                    return Poll::Ready(Some(accepted));
                }
                Err(e) if of_a_peer(&e) => {}
                Err(error) => {
                    if self.errors == 0 {
                        tracing::warn!(%error, "cannot accept, trying again");
                    }
                    let pause = Duration::from_millis(5 << self.errors.min(8));
                    self.errors = self.errors.saturating_add(1);
                    self.pause = Some(Box::pin(tokio::time::sleep(
                        pause.min(Duration::from_secs(1)),
                    )));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The connections, without their addresses, for those who take a stream. It ends as
/// [`accept`](TrackedListener::accept) does, and has no errors.
impl<L: Listener + Unpin> Stream for TrackedListener<L>
where
    L::Io: Send + 'static,
{
    type Item = Result<TrackedIo<L::Io>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = ready!(self.poll_accept(cx));
        Poll::Ready(accepted.map(|(io, _)| Ok(io)))
    }
}

impl<L: Listener> Drop for TrackedListener<L> {
    fn drop(&mut self) {
        self.state.close_by_owner();
    }
}

impl<L: Listener> fmt::Debug for TrackedListener<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedListener").finish_non_exhaustive()
    }
}

/// Errors of the one connection and not of the listener (accept(2), "Error handling").
fn of_a_peer(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

impl<L> State<L> {
    /// Waits for who looks at it from outside, which takes moments: who else would close it?
    fn close_by_owner(&self) {
        self.close_locked(self.inner.lock());
    }

    fn close_if(&self, condition: impl FnOnce(&Inner<L>) -> bool) {
        // Somebody's listener may block in its own poll.
        let inner = self.inner.try_lock_for(BRIEFLY);
        if let Some(inner) = inner.filter(|inner| condition(inner)) {
            self.close_locked(inner);
        }
    }

    fn close_locked(&self, mut inner: MutexGuard<'_, Inner<L>>) {
        let Some(listener) = inner.listener.take() else {
            return;
        };
        let waker = inner.waker.take();
        drop(inner);
        drop(listener);
        self.registry.closed(self.id);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<L: Listener> Door for State<L> {
    fn wake(&self) {
        // One that is inside its poll looks at the phase after it.
        let waker = self
            .inner
            .try_lock_for(BRIEFLY)
            .and_then(|inner| inner.waker.clone());
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn close_if_abandoned(&self) {
        self.close_if(|inner| inner.asked && !inner.drained);
        if let Some(mut inner) = self.inner.try_lock_for(BRIEFLY) {
            inner.asked = true;
        }
    }

    fn close(&self) {
        self.close_if(|_| true);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::io::DuplexStream;

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

    #[test]
    fn its_owner_closes_it_however_long_somebody_looks_at_it() {
        let terminator = Terminator::new();
        let listener = terminator.listen(Quiet(|| {}));
        let state = Arc::clone(&listener.state);
        let looking = state.inner.lock();
        let dropping = thread::spawn(move || drop(listener));
        thread::sleep(100 * BRIEFLY);
        drop(looking);
        dropping.join().expect("no panic");
        assert_eq!(terminator.stats().listeners, 0);
    }

    /// The driver can't wake it then, as its lock is held.
    #[test]
    fn a_drain_that_begins_inside_a_poll_is_seen() {
        let terminator = Terminator::new();
        let called = terminator.clone();
        let mut listener = terminator.listen(Quiet(move || {
            drop(called.terminate());
            thread::sleep(100 * BRIEFLY);
        }));
        let polled = listener.poll_accept(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(None)), "nobody wakes it");
    }
}
