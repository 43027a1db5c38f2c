//! Waiting for a phase, and for the report.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::phase::Phase;
use crate::registry::Registry;
use crate::report::Report;

/// A termination under way, from [`terminate`](crate::Terminator::terminate),
/// [`force`](crate::Terminator::force) or [`terminated`](crate::Terminator::terminated): a future of
/// the [`Report`].
///
/// # Cancel safety
///
/// It only listens: dropping it stops nothing.
#[must_use = "await it to know when every socket is closed; drop it explicitly if you need not"]
pub struct Termination {
    reached: Reached,
}

impl Termination {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self {
            reached: Reached::new(registry, Phase::Terminated),
        }
    }
}

impl Future for Termination {
    type Output = Report;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Report> {
        // Not by the phase: that rises before the report is written, its announcement comes after.
        if self.reached.registry.report().is_none() {
            ready!(self.reached.poll_announced(cx));
        }
        let report = self.reached.registry.report();
        Poll::Ready(
            report
                .expect("written before it is announced (invariant 5)")
                .clone(),
        )
    }
}

impl fmt::Debug for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Termination").finish_non_exhaustive()
    }
}

/// Waits to be told of the drain: when it begins, or when its turn comes on the schedule of
/// [`IdlePolicy::Spread`](crate::IdlePolicy::Spread).
pub(crate) struct Told {
    draining: Reached,
    forcing: Reached,
    /// From the first poll in the drain on.
    number: Option<u64>,
}

impl Told {
    pub(crate) fn new(registry: &Arc<Registry>) -> Self {
        Self {
            draining: Reached::new(Arc::clone(registry), Phase::Draining),
            forcing: Reached::new(Arc::clone(registry), Phase::Forcing),
            number: None,
        }
    }
}

impl Future for Told {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.draining).poll(cx));
        let registry = &this.draining.registry;
        let n = *this.number.get_or_insert_with(|| registry.next_waiter());
        let due = registry.config.told_due(n, registry.drain_began());
        if registry.clock.now() < due && Pin::new(&mut this.forcing).poll(cx).is_pending() {
            registry.wait_until(due, n, cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let waker = self.number.map(|n| self.draining.registry.take_waiter(n));
        drop(waker);
    }
}

/// Waits for a phase. A level: who comes late finds it there.
pub(crate) struct Reached {
    registry: Arc<Registry>,
    phase: Phase,
    announced: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Reached {
    pub(crate) fn new(registry: Arc<Registry>, phase: Phase) -> Self {
        Self {
            registry,
            phase,
            announced: None,
        }
    }

    fn poll_announced(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let announced = self.announced.get_or_insert_with(|| {
            let mut receiver = self.registry.announcements();
            let phase = self.phase;
            // The sender lives in the registry, which lives as long as this.
            Box::pin(async move {
                let _ = receiver.wait_for(|announced| *announced >= phase).await;
            })
        });
        announced.as_mut().poll(cx)
    }
}

impl Future for Reached {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.registry.phase() >= self.phase {
            return Poll::Ready(());
        }
        self.poll_announced(cx)
    }
}
