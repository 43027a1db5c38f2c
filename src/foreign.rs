//! The one place that calls what is not ours outside of a task: drops of IO and listeners, wakers,
//! the tracing subscriber. Any of them may panic, and none may take a termination with it.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls it, and survives its panic: `None` then.
pub(crate) fn call<T>(f: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(f))
        // What was thrown is foreign as well, and its drop may panic again: it is not dropped.
        .map_err(std::mem::forget)
        .ok()
}
