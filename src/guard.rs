//! Holding the drain open from the outside.

use std::fmt;
use std::sync::Arc;

use crate::phase::Phase;
use crate::registry::Registry;

/// Holds the drain open until it is dropped; [`Terminator::guard`](crate::Terminator::guard) makes one.
///
/// For work that is no request: a message being handled, a file being written. A clone counts again.
/// At the deadline nobody waits for guards any longer; the report counts them.
///
/// A guard *holds*; to *learn* of the drain use [`draining`](crate::Terminator::draining) or a
/// [`cancellation_token`](crate::Terminator::cancellation_token).
#[must_use = "the drain is held open for as long as the guard lives"]
pub struct ShutdownGuard {
    registry: Arc<Registry>,
}

impl ShutdownGuard {
    /// None from `refused` on.
    pub(crate) fn before(refused: Phase, registry: &Arc<Registry>) -> Option<Self> {
        registry.count_guard();
        let guard = Self {
            registry: Arc::clone(registry),
        };
        // Counted first, so that either the driver sees the guard or the guard sees the phase
        // (invariant 3).
        (registry.phase() < refused).then_some(guard)
    }
}

impl Clone for ShutdownGuard {
    fn clone(&self) -> Self {
        self.registry.count_guard();
        Self {
            registry: Arc::clone(&self.registry),
        }
    }
}

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        self.registry.release_guard();
    }
}

impl fmt::Debug for ShutdownGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownGuard").finish_non_exhaustive()
    }
}
