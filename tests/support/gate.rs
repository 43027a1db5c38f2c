//! A gate between a test and its handlers, instead of a sleep.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::BOUND;

/// A two-way gate: the test learns that a handler is in, and the handler waits until it is let on.
#[derive(Clone, Default)]
pub struct Gate(Arc<GateInner>);

#[derive(Default)]
struct GateInner {
    state: Mutex<GateState>,
    changed: Condvar,
    changed_async: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct GateState {
    entered: usize,
    left: usize,
    open: bool,
    /// How often the gate was opened: who came before an opening passes, also when the gate was
    /// closed again before it looked.
    openings: usize,
}

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    /// Called by a handler: says that it is here, then waits for [`open`](Self::open).
    pub async fn enter(&self) {
        let (_inside, openings) = self.arrive();
        self.until(|gate| gate.open || gate.openings != openings)
            .await;
    }

    /// Like [`enter`](Self::enter), but blocks the thread, for handlers that misbehave. Goes on by
    /// itself after three [`BOUND`]s, so that a failed test can end its runtime.
    pub fn enter_blocking(&self) {
        let (_inside, openings) = self.arrive();
        self.until_blocking(BOUND * 3, |gate| gate.open || gate.openings != openings);
    }

    /// Waits until `n` handlers have come, counted from the gate's creation.
    #[track_caller]
    pub fn wait_entered(&self, n: usize) {
        let in_time = self.until_blocking(BOUND, |gate| gate.entered >= n);
        self.assert_entered(n, in_time);
    }

    /// Like [`wait_entered`](Self::wait_entered), for async tests.
    pub async fn wait_entered_async(&self, n: usize) {
        let entered = self.until(|gate| gate.entered >= n);
        let in_time = tokio::time::timeout(BOUND, entered).await.is_ok();
        self.assert_entered(n, in_time);
    }

    /// Lets everybody through, those to come included.
    pub fn open(&self) {
        self.change(|gate| {
            gate.open = true;
            gate.openings += 1;
        });
    }

    /// Holds those to come again.
    pub fn close(&self) {
        self.change(|gate| gate.open = false);
    }

    /// How many have come so far.
    pub fn entered(&self) -> usize {
        self.state().entered
    }

    /// How many are held at the moment; a handler that was dropped is not.
    pub fn inside(&self) -> usize {
        let gate = self.state();
        gate.entered - gate.left
    }

    #[track_caller]
    fn assert_entered(&self, n: usize, in_time: bool) {
        let gate = self.state();
        assert!(in_time, "not {n} at the gate within {BOUND:?}: {gate:?}");
    }

    fn arrive(&self) -> (Inside<'_>, usize) {
        let openings = self.change(|gate| {
            gate.entered += 1;
            gate.openings
        });
        (Inside(self), openings)
    }

    async fn until(&self, done: impl Fn(&GateState) -> bool) {
        loop {
            // Made before looking: it sees every change from here on.
            let changed = self.0.changed_async.notified();
            if done(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn until_blocking(&self, bound: Duration, done: impl Fn(&GateState) -> bool) -> bool {
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.lock(), bound, |gate| !done(gate));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn change<T>(&self, change: impl FnOnce(&mut GateState) -> T) -> T {
        let value = change(&mut self.lock());
        self.0.changed.notify_all();
        self.0.changed_async.notify_waiters();
        value
    }

    fn state(&self) -> GateState {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the leaving on every path, a dropped handler's too.
struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.change(|gate| gate.left += 1);
    }
}
