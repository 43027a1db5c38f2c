//! Waiting for a level: who comes late finds it there, and nobody is overlooked.
//!
//! Who waits registers first and looks after it (invariant 2); who raises it does so first, and then wakes who is
//! registered. `tests/schedules` runs it against both kinds in every order.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// What can be waited for.
pub(crate) trait Level {
    /// Once it is, it stays so.
    fn is_reached(&self) -> bool;

    /// Has the waiter woken when it is. Gives its number, the one that it had if it waits already.
    fn wait(&self, n: Option<u64>, waker: Waker) -> u64;

    /// It no longer waits. Its waker is foreign, and so to be dropped without a lock.
    fn stop_waiting(&self, n: u64);
}

/// Ready when it is reached.
pub(crate) struct Reached<L: Level> {
    pub(crate) level: L,
    /// From the first poll on that found it not reached: its number there, and who is woken.
    waits: Option<(u64, Waker)>,
}

impl<L: Level> Reached<L> {
    pub(crate) fn new(level: L) -> Self {
        let waits = None;
        Self { level, waits }
    }
}

impl<L: Level + Unpin> Future for Reached<L> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { level, waits } = &mut *self;
        if level.is_reached() {
            return Poll::Ready(());
        }
        // Who polls it again while it waits takes no lock.
        let known = waits.as_ref();
        if known.is_some_and(|(_, waker)| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let n = level.wait(known.map(|(n, _)| *n), cx.waker().clone());
        *waits = Some((n, cx.waker().clone()));
        // It may have been reached meanwhile.
        if level.is_reached() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl<L: Level> Drop for Reached<L> {
    fn drop(&mut self) {
        if let Some((n, _)) = self.waits.take() {
            self.level.stop_waiting(n);
        }
    }
}
