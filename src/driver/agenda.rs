//! What the driver is asked to do, and sleeps until.
//!
//! Used during a termination only: before it, nobody reads it.

use std::time::Duration;

use tokio::runtime::Handle;

use crate::clock::{Clock, Moment};
use crate::sync::{Condvar, Mutex};

/// Whom the driver is asked to see to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reminder {
    /// A connection is to be woken.
    Connection(u64),
    /// Somebody who waits to be told of the drain is.
    Waiter(u64),
    /// A listener goes on being emptied.
    Listener(u64),
}

/// What was asked for since the driver looked last.
#[derive(Default)]
pub(crate) struct Asked {
    /// Whom to see to when.
    pub(crate) due: Vec<(Moment, Reminder)>,
    /// Whose socket to close in stages, and how long they may take.
    pub(crate) lingering: Vec<(u64, Duration)>,
    /// Where connections were polled that the driver did not find when the drain began.
    pub(crate) runtimes: Vec<Handle>,
}

pub(crate) struct Agenda {
    pending: Mutex<Pending>,
    changed: Condvar,
    /// The same, for a driver that is a task.
    #[cfg(all(test, feature = "serve"))]
    bell: tokio::sync::Notify,
}

struct Pending {
    asked: Asked,
    /// Something else has changed.
    woken: bool,
    /// When the driver wakes up by itself.
    until: Moment,
}

impl Agenda {
    pub(crate) fn new() -> Self {
        Self {
            pending: Mutex::new(Pending {
                asked: Asked::default(),
                woken: false,
                until: Moment::NEVER,
            }),
            changed: Condvar::new(),
            #[cfg(all(test, feature = "serve"))]
            bell: tokio::sync::Notify::new(),
        }
    }

    pub(crate) fn remind(&self, at: Moment, whom: Reminder) {
        let mut pending = self.pending.lock();
        pending.asked.due.push((at, whom));
        let sooner = at < pending.until;
        pending.until = pending.until.min(at);
        drop(pending);
        // Thousands may ask for about the same time.
        if sooner {
            self.ring();
        }
    }

    /// Has a socket closed in stages, which take so long at most.
    pub(crate) fn linger(&self, id: u64, most: Duration) {
        self.pending.lock().asked.lingering.push((id, most));
        self.ring();
    }

    /// It is told at the next step: a runtime alone is nothing to do.
    pub(crate) fn tell_runtime(&self, runtime: Handle) {
        self.pending.lock().asked.runtimes.push(runtime);
    }

    /// Has the driver look at what is left.
    pub(crate) fn wake(&self) {
        self.pending.lock().woken = true;
        self.ring();
    }

    fn ring(&self) {
        self.changed.notify_all();
        #[cfg(all(test, feature = "serve"))]
        self.bell.notify_one();
    }

    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn bell(&self) -> &tokio::sync::Notify {
        &self.bell
    }

    /// Takes what was asked for. What comes later, [`sleep`](Self::sleep) does not sleep over.
    pub(crate) fn take(&self) -> Asked {
        let mut pending = self.pending.lock();
        pending.woken = false;
        std::mem::take(&mut pending.asked)
    }

    /// Sleeps until `at`, or until something is asked for that comes earlier.
    pub(crate) fn sleep(&self, at: Moment, clock: &Clock) {
        let mut pending = self.pending.lock();
        pending.until = pending.next(at);
        loop {
            let left = pending.until.since(clock.now());
            if pending.is_at_once() || left.is_zero() {
                // Awake, it will see what comes now without being told.
                pending.until = Moment::START;
                return;
            }
            if pending.until == Moment::NEVER {
                self.changed.wait(&mut pending);
            } else {
                self.changed.wait_for(&mut pending, left);
            }
        }
    }

    /// When [`sleep`](Self::sleep) would end, as it is: for who sleeps until then, or until the bell rings.
    #[cfg(test)]
    pub(crate) fn sleeps_until(&self, at: Moment) -> Moment {
        let mut pending = self.pending.lock();
        pending.until = if pending.is_at_once() {
            Moment::START
        } else {
            pending.next(at)
        };
        pending.until
    }

    /// Keeps everybody from asking, for as long as what is returned lives.
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        self.pending.lock()
    }
}

impl Pending {
    /// `at`, or when something was asked for.
    fn next(&self, at: Moment) -> Moment {
        let due = self.asked.due.iter().map(|(at, _)| *at);
        due.fold(at, Moment::min)
    }

    fn is_at_once(&self) -> bool {
        self.woken || !self.asked.lingering.is_empty()
    }
}
