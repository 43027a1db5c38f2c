//! Holding the drain open from the outside.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::driver::held::Holder;
use crate::phase::Phase;
use crate::registry::Registry;

/// Holds the drain open until it is dropped; [`Terminator::guard`](crate::Terminator::guard) makes one.
///
/// For work that is no request: a message being handled, a file being written. A clone counts again.
/// At the deadline nobody waits for guards any longer; the report counts them.
///
/// Let go of it last. What a closure or an `async` block has captured and only borrows is dropped behind its locals, so
/// behind a `let _guard = guard;` as well, and the report may come before a buffer is flushed by its drop. Move such
/// things into locals below the guard. [`spawn`](crate::Terminator::spawn) has no such order to mind.
///
/// Each remembers where in the source it was taken, and since when it is held: reports and
/// [`in_hand`](crate::Terminator::in_hand) name it by that. A clone is another guard, named by where and
/// when it was cloned, as that is who holds it from then on. Where the standard library does so, as in
/// the `clone` of an `Option` around it, that is a line of the standard library: clone the guard itself.
///
/// A guard *holds*; to *learn* of the drain use [`draining`](crate::Terminator::draining) or a
/// [`cancellation_token`](crate::Terminator::cancellation_token).
///
/// # Examples
///
/// ```
/// # use http_terminator::Terminator;
/// # #[tokio::main] async fn main() {
/// let terminator = Terminator::new();
/// let guard = terminator.guard().expect("nobody has asked for an end");
/// let end = terminator.terminate();
/// tokio::spawn(async move {
///     let _last = guard; // let go at the end of this
///     // …
/// });
/// assert_eq!(end.await.guards_cut, 0);
/// # }
/// ```
#[must_use = "the drain is held open for as long as the guard lives"]
pub struct ShutdownGuard {
    registry: Arc<Registry>,
    /// By which it is known among those that are held.
    n: u64,
}

impl ShutdownGuard {
    /// None from `refused` on.
    #[track_caller]
    pub(crate) fn before(refused: Phase, registry: &Arc<Registry>) -> Option<Self> {
        let too_late = || registry.progress.refuses_guards(refused);
        if registry.count_guard_unless(too_late) {
            Some(Self::counted(registry))
        } else {
            None
        }
    }

    /// One that was counted just now: so it is never named without being waited for.
    #[track_caller]
    fn counted(registry: &Arc<Registry>) -> Self {
        let taken = Holder {
            place: Location::caller(),
            at: registry.clock.now(),
        };
        Self {
            registry: Arc::clone(registry),
            n: registry.held.take(taken),
        }
    }
}

impl Clone for ShutdownGuard {
    #[track_caller]
    fn clone(&self) -> Self {
        self.registry.count_guard();
        Self::counted(&self.registry)
    }
}

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        // Counted out last: when the drain has ended, it is no longer named.
        self.registry.held.let_go(self.n);
        self.registry.release_guard();
    }
}

// As a `Terminator` is.
impl UnwindSafe for ShutdownGuard {}
impl RefUnwindSafe for ShutdownGuard {}

impl fmt::Debug for ShutdownGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownGuard").finish_non_exhaustive()
    }
}
