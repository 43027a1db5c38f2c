//! Waiting for one connection to be told that it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::shared::Shared;
use crate::termination;

/// Ready when it is told, or gone: a level, who comes late finds it there.
pub(crate) struct Told {
    shared: Arc<Shared>,
    /// That all are.
    all: termination::Told,
    /// From the first poll on: its number, and who is woken.
    waits: Option<(u64, Waker)>,
}

impl Told {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            all: termination::Told::new(&shared.registry, Some(shared.id())),
            shared,
            waits: None,
        }
    }
}

impl Future for Told {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let known = this.waits.as_ref();
        if !known.is_some_and(|(_, waker)| waker.will_wake(cx.waker())) {
            let n = known.map(|(n, _)| *n);
            let n = this.shared.wait_to_be_told(n, cx.waker().clone());
            this.waits = Some((n, cx.waker().clone()));
        }
        // It may have been told meanwhile (invariant 2).
        if this.shared.is_told_or_gone() {
            return Poll::Ready(());
        }
        Pin::new(&mut this.all).poll(cx)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some((n, _)) = self.waits.take() {
            self.shared.stop_waiting(n);
        }
    }
}
