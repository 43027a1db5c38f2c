//! The locks and atomics of what `tests/schedules` compiles over shuttle's in place of these.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};

pub(crate) use parking_lot::{Condvar, Mutex};

/// Around a unit test of what has some of these: shuttle's are of use within its runs alone.
#[cfg(test)]
pub(crate) fn run(test: impl Fn() + Send + Sync + 'static) {
    test();
}
