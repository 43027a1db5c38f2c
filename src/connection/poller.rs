//! Who polls a connection: where the driver wakes it.

use std::task::Waker;

use tokio::runtime::Handle;

#[derive(Default)]
pub(super) struct Poller {
    /// Its task, from the first poll on.
    waker: Option<Waker>,
    /// The runtime on which it was polled last, or accepted.
    runtime: Option<Handle>,
}

/// What was known before: foreign, so to be dropped without the lock.
pub(super) type Old = (Option<Waker>, Option<Handle>);

impl Poller {
    /// Gives what was known before, and the runtime, if it is another one.
    pub(super) fn set(
        &mut self,
        waker: Option<Waker>,
        runtime: Option<Handle>,
    ) -> (Old, Option<Handle>) {
        let id = |handle: &Option<Handle>| handle.as_ref().map(Handle::id);
        let moved = runtime.filter(|it| Some(it.id()) != id(&self.runtime));
        let runtime = match &moved {
            Some(runtime) => self.runtime.replace(runtime.clone()),
            None => None,
        };
        let waker = waker.and_then(|waker| self.waker.replace(waker));
        ((waker, runtime), moved)
    }

    pub(super) fn waker(&self) -> Option<&Waker> {
        self.waker.as_ref()
    }

    pub(super) fn runtime(&self) -> Option<&Handle> {
        self.runtime.as_ref()
    }

    pub(super) fn forget_waker(&mut self) -> Option<Waker> {
        self.waker.take()
    }
}
