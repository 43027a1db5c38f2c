//! Waiting for a phase, and for the report.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
#[cfg(feature = "signal")]
use std::sync::Weak;
use std::task::{Context, Poll, Waker, ready};

use crate::driver::Driver;
use crate::level::{self, Level};
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
///
/// # Examples
///
/// ```
/// # use http_terminator::Terminator;
/// # #[tokio::main] async fn main() {
/// let terminator = Terminator::new();
/// drop(terminator.terminate()); // it goes on
/// let report = terminator.terminated().await;
/// # drop(report);
/// # }
/// ```
#[must_use = "await it to know when every socket is closed; drop it explicitly if you need not"]
pub struct Termination {
    reached: Reached,
    /// Whoever waits may also be who has it terminated, by a signal.
    _driver: Option<Arc<Driver>>,
}

impl Termination {
    pub(crate) fn new(registry: &Arc<Registry>) -> Self {
        Self {
            reached: Reached::phase(registry, Phase::Terminated),
            _driver: None,
        }
    }

    pub(crate) fn by(driver: &Arc<Driver>) -> Self {
        Self {
            _driver: Some(Arc::clone(driver)),
            ..Self::new(&driver.registry)
        }
    }
}

impl Future for Termination {
    type Output = Report;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Report> {
        ready!(Pin::new(&mut self.reached).poll(cx));
        let report = self.reached.level.registry.report();
        Poll::Ready(
            report
                .expect("written before its phase is visible (invariant 5)")
                .clone(),
        )
    }
}

// As a `Terminator` is.
impl UnwindSafe for Termination {}
impl RefUnwindSafe for Termination {}

impl fmt::Debug for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Termination").finish_non_exhaustive()
    }
}

/// Waits to be told of the drain: when it begins, or when its turn comes on the schedule of
/// [`IdlePolicy::Spread`](crate::IdlePolicy::Spread).
pub(crate) struct Told {
    draining: Reached,
    /// As of a [`Termination`].
    _driver: Option<Arc<Driver>>,
    /// Whose turn it is, if that is known; otherwise it has one of its own.
    turn: Option<u64>,
    /// From the first poll in the drain on.
    number: Option<u64>,
}

impl Told {
    pub(crate) fn new(registry: &Arc<Registry>, turn: Option<u64>) -> Self {
        Self {
            draining: Reached::phase(registry, Phase::Draining),
            _driver: None,
            turn,
            number: None,
        }
    }

    pub(crate) fn by(driver: &Arc<Driver>) -> Self {
        Self {
            draining: Reached::phase(&driver.registry, Phase::Draining),
            _driver: Some(Arc::clone(driver)),
            turn: None,
            number: None,
        }
    }
}

impl Future for Told {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.draining).poll(cx));
        let registry = &this.draining.level.registry;
        let n = *this.number.get_or_insert_with(|| registry.waiters.number());
        let turn = this.turn.unwrap_or(n);
        let drain = registry.drain();
        let due = registry.config.told_due(turn, drain);
        if registry.phase() >= Phase::Forcing || registry.clock.now() >= due {
            return Poll::Ready(());
        }
        registry.wait_until(due, n, cx.waker().clone());
        // It may have been announced meanwhile, or come nearer, of which all were told that were known (invariant 2).
        if registry.phase() >= Phase::Forcing {
            return Poll::Ready(());
        }
        if registry.deadline() < drain.deadline {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(n) = self.number {
            self.draining.level.stop_waiting(n);
        }
    }
}

/// Waits for a phase.
pub(crate) type Reached = level::Reached<Awaited>;

pub(crate) struct Awaited {
    registry: Arc<Registry>,
    phase: Phase,
}

impl Reached {
    pub(crate) fn phase(registry: &Arc<Registry>, phase: Phase) -> Self {
        let registry = Arc::clone(registry);
        Self::new(Awaited { registry, phase })
    }
}

impl Level for Awaited {
    fn is_reached(&self) -> bool {
        self.registry.phase() >= self.phase
    }

    fn wait(&self, n: Option<u64>, waker: Waker) -> u64 {
        let waiters = &self.registry.waiters;
        let n = n.unwrap_or_else(|| waiters.number());
        waiters.wait_for(self.phase, n, waker);
        n
    }

    fn stop_waiting(&self, n: u64) {
        let waker = self.registry.waiters.take(n);
        drop(waker);
    }
}

/// Whether a termination has come to its end, or there is nothing left that it could end. Does not
/// keep what it asks about.
#[cfg(feature = "signal")]
pub(crate) struct Ended {
    registry: Weak<Registry>,
    number: u64,
}

#[cfg(feature = "signal")]
impl Ended {
    pub(crate) fn of(registry: &Arc<Registry>) -> Self {
        Self {
            registry: Arc::downgrade(registry),
            number: registry.waiters.number(),
        }
    }

    /// If it has not, the waker is woken when it does.
    pub(crate) fn is_now(&self, waker: &Waker) -> bool {
        let Some(registry) = self.registry.upgrade() else {
            return true;
        };
        registry
            .waiters
            .wait_for(Phase::Terminated, self.number, waker.clone());
        // It may have been announced meanwhile (invariant 2).
        registry.phase() == Phase::Terminated
    }
}

#[cfg(feature = "signal")]
impl Drop for Ended {
    fn drop(&mut self) {
        let waker = self
            .registry
            .upgrade()
            .map(|it| it.waiters.take(self.number));
        drop(waker);
    }
}
