//! Runtimes that are remembered for as long as somebody has work on them that a termination waits for.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};

/// Those of [`spawn`](crate::Terminator::spawn)ed work: connections and listeners know their own.
#[derive(Default)]
pub(crate) struct NotedRuntimes {
    /// And how often each is needed.
    runtimes: Mutex<Vec<(Handle, usize)>>,
}

/// A runtime that is remembered for as long as this lives.
pub(crate) struct Noted {
    id: Id,
    within: Arc<NotedRuntimes>,
}

impl NotedRuntimes {
    /// Remembers the runtime this is called on, if any, so that the driver can keep it going. Gives the runtime as well
    /// if it was not known.
    pub(crate) fn note(self: &Arc<Self>) -> Option<(Noted, Option<Handle>)> {
        let handle = Handle::try_current().ok()?;
        let noted = Noted {
            id: handle.id(),
            within: Arc::clone(self),
        };
        let mut runtimes = self.runtimes.lock();
        let known = runtimes
            .iter_mut()
            .find(|(known, _)| known.id() == noted.id);
        let new = if let Some((_, n)) = known {
            *n += 1;
            None
        } else {
            runtimes.push((handle.clone(), 1));
            Some(handle)
        };
        drop(runtimes);
        Some((noted, new))
    }

    pub(crate) fn each(&self, mut f: impl FnMut(&Handle)) {
        let runtimes: Vec<_> = {
            let runtimes = self.runtimes.lock();
            runtimes.iter().map(|(handle, _)| handle.clone()).collect()
        };
        runtimes.iter().for_each(&mut f);
    }

    /// Keeps everybody from coming, for as long as what is returned lives.
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        self.runtimes.lock()
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let mut runtimes = self.within.runtimes.lock();
        let at = runtimes
            .iter()
            .position(|(handle, _)| handle.id() == self.id);
        let gone = at.and_then(|at| {
            runtimes[at].1 -= 1;
            (runtimes[at].1 == 0).then(|| runtimes.swap_remove(at))
        });
        // A handle may be the last that keeps a runtime's memory: not dropped under the lock.
        drop(runtimes);
        drop(gone);
    }
}
