//! Who is to be woken for a connection: who polls it, and who waits to be told that it ends.

use std::collections::BTreeMap;
use std::task::Waker;

use tokio::runtime::Handle;

#[derive(Default)]
pub(super) struct Poller {
    /// Its task, from the first poll on.
    waker: Option<Waker>,
    /// The runtime on which it was polled last, or accepted.
    runtime: Option<Handle>,
    /// Who waits to be told, by number. On HTTP/2 that may be each of many streams.
    waiting: BTreeMap<u64, Waker>,
    next: u64,
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

    /// Has that one told. Gives its number, the one that it had if it waits already, and what was known.
    pub(super) fn wait(&mut self, n: Option<u64>, waker: Waker) -> (u64, Option<Waker>) {
        let n = n.unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        (n, self.waiting.insert(n, waker))
    }

    pub(super) fn stop_waiting(&mut self, n: u64) -> Option<Waker> {
        self.waiting.remove(&n)
    }

    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = Waker> + use<> {
        std::mem::take(&mut self.waiting).into_values()
    }
}
