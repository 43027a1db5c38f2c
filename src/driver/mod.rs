//! The plain thread that walks a termination through its phases.
//!
//! It is no task, because one handler that blocks its thread can stall a whole tokio runtime, its
//! timers included, and whoever keeps the deadline must not be stalled with it. It is started inside
//! the call of `terminate()`, needs no runtime, and decides nothing by itself: [`sequence`] says
//! what to do, [`steps`] does it, and the thread only sleeps in between.

pub(crate) mod agenda;
pub(crate) mod chore;
pub(crate) mod foreign;
pub(crate) mod held;
pub(crate) mod in_hand;
pub(crate) mod keeper;
pub(crate) mod member;
pub(crate) mod noted;
pub(crate) mod progress;
pub(crate) mod reporting;
pub(crate) mod runtimes;
pub(crate) mod sequence;
pub(crate) mod steps;
#[cfg(test)]
mod tests;
pub(crate) mod waiters;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use self::reporting::Stragglers;
use self::runtimes::Runtimes;
use self::sequence::Sequence;
use self::steps::Steps;
use crate::clock::Moment;
use crate::phase::Phase;
use crate::registry::Registry;

/// What the facade and the thread share.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) registry: Arc<Registry>,
    sequence: Mutex<Sequence>,
    stragglers: Stragglers,
}

impl Driver {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            sequence: Mutex::new(Sequence::new()),
            stragglers: Stragglers::default(),
        }
    }

    /// The phase has risen when this returns; the rest is up to the thread.
    pub(crate) fn terminate(self: &Arc<Self>, grace: Option<Duration>) {
        if self.begin(grace) {
            self.start();
        } else {
            // The deadline may be another one.
            self.registry.agenda.wake();
        }
    }

    pub(crate) fn force(self: &Arc<Self>) {
        if self.registry.phase() < Phase::Forcing {
            self.stragglers.name(&self.registry);
        }
        if self.change(Sequence::force) {
            self.start();
        } else {
            self.registry.agenda.wake();
        }
    }

    /// True if it is up to the caller to have the steps taken.
    fn begin(&self, grace: Option<Duration>) -> bool {
        self.change(|sequence, now| {
            sequence.terminate(&self.registry.config, grace, now);
        })
    }

    /// True if this ended `Serving`.
    fn change(&self, f: impl FnOnce(&mut Sequence, Moment)) -> bool {
        let mut sequence = self.sequence.lock();
        let now = self.registry.clock.now();
        let before = sequence.phase();
        f(&mut sequence, now);
        // What somebody else has changed he makes known himself, when he has named those that it ends.
        if before < Phase::Forcing {
            self.raise(&sequence, now);
        }
        before == Phase::Serving
    }

    /// All but the end, which shows only when there is a report.
    fn raise(&self, sequence: &Sequence, now: Moment) {
        if sequence.phase() < Phase::Terminated {
            self.registry
                .raise(sequence.phase(), now, sequence.deadline());
        }
    }

    /// Has the steps taken, from wherever they are.
    fn start(self: &Arc<Self>) {
        #[cfg(all(test, feature = "serve"))]
        if self.registry.is_stepped() {
            return self.registry.agenda.wake();
        }
        let steps = Steps::new(Arc::clone(self));
        let thread = thread::Builder::new().name("http-terminator".to_owned());
        let Err(error) = thread.spawn(move || steps.run()) else {
            return;
        };
        // A task keeps no deadline while its runtime is stalled, but it drains. Without a runtime
        // either, what is left is to end now, here.
        let runtimes = Runtimes::of(&self.registry, &self.registry.census.in_order());
        // The caller's first: of the others nobody knows whether they run.
        let current = Handle::try_current().ok();
        let mut runtimes = current.iter().chain(runtimes.handles());
        let steps = || Steps::new(Arc::clone(self));
        let forced = !runtimes.any(|runtime| steps().run_on(runtime));
        if forced {
            self.stragglers.name(&self.registry);
            self.change(Sequence::force);
            steps().run();
        }
        foreign::call(|| tracing::error!(%error, forced, "no thread for the termination"));
    }
}
