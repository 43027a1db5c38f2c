//! The locks and atomics of what `tests/schedules` compiles over shuttle's in place of these.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

pub(crate) use parking_lot::{Condvar, Mutex};
