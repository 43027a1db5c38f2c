//! The guards that are held, by where they were taken.
//!
//! For people to read. Whether one is left is for the census alone to say, which counts a guard in before
//! it is in here, and out when it no longer is.

use std::collections::BTreeMap;
use std::panic::Location;

use parking_lot::Mutex;

use crate::clock::Moment;

/// A guard, as it is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) place: &'static Location<'static>,
    pub(crate) at: Moment,
}

#[derive(Default)]
pub(crate) struct Held(Mutex<Guards>);

#[derive(Default)]
struct Guards {
    next: u64,
    /// By numbers that count up, so that the oldest come first and none but they are looked at.
    held: BTreeMap<u64, Holder>,
}

impl Held {
    /// Gives the number by which it is let go.
    pub(crate) fn take(&self, guard: Holder) -> u64 {
        let mut guards = self.0.lock();
        let n = guards.next;
        guards.next += 1;
        guards.held.insert(n, guard);
        n
    }

    pub(crate) fn let_go(&self, n: u64) {
        self.0.lock().held.remove(&n);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().held.len()
    }

    /// So many at most.
    pub(crate) fn oldest(&self, most: usize) -> Vec<Holder> {
        let guards = self.0.lock();
        guards.held.values().take(most).copied().collect()
    }

    /// Keeps everybody from taking one, for as long as what is returned lives.
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        self.0.lock()
    }
}
