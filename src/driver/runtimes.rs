//! Keeps the runtimes of a termination going.
//!
//! A task from outside gets a runtime going again whose IO and timer driver sits on a blocked worker.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::foreign;
use super::member::Member;
use crate::clock::Moment;
use crate::registry::Registry;

/// The runtimes that connections and listeners are polled on.
#[derive(Default)]
pub(super) struct Runtimes(Vec<Runtime>);

struct Runtime {
    handle: Handle,
    /// An empty task, and since when it waits to be run.
    poke: Option<JoinHandle<()>>,
    since: Moment,
    /// When it is looked again whether it is there.
    look: Moment,
}

impl Runtimes {
    pub(super) fn of<'a>(
        registry: &Registry,
        connections: impl IntoIterator<Item = &'a Arc<dyn Member>>,
    ) -> Self {
        let mut all = Self::default();
        let mut note = |handle: &Handle| all.note(handle);
        registry.runtimes.each(&mut note);
        for (_, listener) in registry.census.listeners() {
            listener.on_runtime(&mut note);
        }
        for connection in connections {
            connection.on_runtime(&mut note);
        }
        all
    }

    pub(super) fn note(&mut self, handle: &Handle) {
        if self.0.iter().all(|known| known.handle.id() != handle.id()) {
            self.0.push(Runtime {
                handle: handle.clone(),
                poke: None,
                since: Moment::NEVER,
                look: Moment::START,
            });
        }
    }

    /// Gives each an empty task, unless it has yet to run the last one. Those that were shut down are forgotten, whose
    /// descriptors stay for as long as somebody has a handle.
    pub(super) fn poke(&mut self, now: Moment) {
        self.0.retain_mut(|runtime| {
            if runtime.waits() {
                return true;
            }
            if now >= runtime.look {
                runtime.look = now.after(LOOK);
                if foreign::call(|| is_over(&runtime.handle)) == Some(true) {
                    return false;
                }
            }
            runtime.poke = foreign::call(|| runtime.handle.spawn(async {}));
            runtime.since = now;
            true
        });
    }

    /// The connections there do not get to look at anything.
    pub(super) fn is_late(&self, handle: &Handle, now: Moment) -> bool {
        let known = self.0.iter().find(|it| it.handle.id() == handle.id());
        known.is_some_and(|runtime| runtime.is_late(now))
    }

    /// Some have yet to run the last one.
    pub(super) fn any_waits(&self) -> bool {
        self.0.iter().any(Runtime::waits)
    }

    pub(super) fn any_is_late(&self, now: Moment) -> bool {
        self.0.iter().any(|it| it.is_late(now))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.0.iter().map(|runtime| &runtime.handle)
    }
}

impl Runtime {
    /// It has yet to run the last one.
    fn waits(&self) -> bool {
        self.poke.as_ref().is_some_and(|it| !it.is_finished())
    }

    fn is_late(&self, now: Moment) -> bool {
        self.waits() && now.since(self.since) >= LATE
    }
}

/// Whether a runtime was shut down: it drops at once whatever is spawned there then.
pub(crate) fn is_over(runtime: &Handle) -> bool {
    let task = runtime.spawn(std::future::pending::<()>());
    let over = task.is_finished();
    task.abort();
    over
}

/// How often it is looked whether one is there.
const LOOK: Duration = Duration::from_secs(1);

/// A runtime that has not run an empty task for so long is stalled, or nobody runs it.
pub(super) const LATE: Duration = Duration::from_millis(250);
