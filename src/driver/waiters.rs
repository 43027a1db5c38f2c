//! Who waits for a phase.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use super::foreign;
use crate::phase::Phase;
use crate::sync::{AtomicU64, Mutex};

pub(crate) struct Waiters {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, (Phase, Waker)>>,
}

impl Waiters {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
        }
    }

    /// A number for one who is going to wait.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// Has the waiter woken when that phase is reached; false if it waited already. Look at the phase after it
    /// (invariant 2).
    pub(crate) fn wait_for(&self, phase: Phase, n: u64, waker: Waker) -> bool {
        let known = self.waiting.lock().insert(n, (phase, waker));
        known.is_none()
    }

    pub(crate) fn has(&self, n: u64) -> bool {
        self.waiting.lock().contains_key(&n)
    }

    /// It no longer waits, or is to be woken.
    pub(crate) fn take(&self, n: u64) -> Option<Waker> {
        let waiter = self.waiting.lock().remove(&n);
        waiter.map(|(_, waker)| waker)
    }

    /// Who is to be woken, as that phase is reached.
    pub(crate) fn take_all(&self, phase: Phase) -> Vec<Waker> {
        let mut waiting = self.waiting.lock();
        let reached = waiting.iter().filter(|(_, (it, _))| *it <= phase);
        let mut reached: Vec<_> = reached.map(|(n, _)| *n).collect();
        // Who waits for longest comes first.
        reached.sort_unstable();
        let reached = reached.iter().filter_map(|n| waiting.remove(n));
        reached.map(|(_, waker)| waker).collect()
    }

    /// Keeps everybody from coming, for as long as what is returned lives.
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        self.waiting.lock()
    }

    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn numbers(&self) -> u64 {
        self.next.load(Relaxed)
    }
}

/// Who waits without holding the termination learns that there is nothing left to wait for.
impl Drop for Waiters {
    fn drop(&mut self) {
        for (_, (_, waker)) in self.waiting.get_mut().drain() {
            foreign::call(|| waker.wake());
        }
    }
}
