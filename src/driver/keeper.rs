//! Sees to single connections while nothing is terminated: to those that are old, and to those that somebody
//! ends or cuts.
//!
//! A plain thread, for the driver's reasons, that lives for as long as there is anything to see to. It keeps
//! nothing alive. In a termination the driver sees to all; what this one was asked for before, it still does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::chore::Chore;
use super::foreign;
use super::member::Cut;
use super::sequence::END;
use super::steps::{LINGER, SWEEP};
use crate::clock::{Clock, Moment};
use crate::connection::Taken;
use crate::registry::Registry;

/// What is to be done for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Care {
    Wake,
    /// It is old.
    Tell,
    /// It is cut, and that for good from then on.
    Cut(Moment),
    /// The same, if it does not take what it was sent.
    Linger(Moment, Taken),
}

pub(crate) struct Keeper {
    inner: Arc<Inner>,
    /// There may be a thread.
    starts: bool,
}

struct Inner {
    clock: Clock,
    work: Mutex<Work>,
    changed: Condvar,
}

struct Work {
    due: BinaryHeap<Reverse<(Moment, u64, Care)>>,
    /// When the thread wakes up by itself.
    until: Moment,
    running: bool,
    /// There was no thread for it, and that has been said.
    failed: bool,
    closed: bool,
    /// From how many on it is looked who of them has gone.
    most: usize,
}

/// For how long the thread waits for more.
const STAYS: Duration = Duration::from_millis(100);

/// How often a socket that was cut and is blocked by something is looked at, once that is not new any more.
const LATER: Duration = Duration::from_secs(1);

/// Among no more than these nobody is looked for who has gone: that asks the census for each.
const CROWD: usize = 64;

impl Keeper {
    pub(crate) fn new(clock: Clock, starts: bool) -> Self {
        Self {
            inner: Arc::new(Inner {
                clock,
                work: Mutex::new(Work {
                    due: BinaryHeap::new(),
                    until: Moment::NEVER,
                    running: false,
                    failed: false,
                    closed: false,
                    most: CROWD,
                }),
                changed: Condvar::new(),
            }),
            starts,
        }
    }

    /// Has that done for a connection then.
    pub(crate) fn see_to(&self, registry: &Arc<Registry>, at: Moment, id: u64, care: Care) {
        if at == Moment::NEVER {
            return;
        }
        let mut work = self.inner.work.lock();
        if work.closed {
            return;
        }
        work.due.push(Reverse((at, id, care)));
        if work.due.len() > work.most {
            // Most of those that would grow old have gone before: what is kept for them is less than what
            // is kept for those that are there.
            work.due
                .retain(|Reverse((_, id, _))| registry.census.has(*id));
            work.most = CROWD.max(work.due.len() * 2);
        }
        if at < work.until {
            work.until = at;
            self.inner.changed.notify_one();
        }
        if work.running || !self.starts {
            return;
        }
        let (inner, weak) = (Arc::clone(&self.inner), Arc::downgrade(registry));
        let thread = thread::Builder::new().name("http-terminator-keeper".to_owned());
        match thread.spawn(move || inner.run(&weak)) {
            Ok(_) => (work.running, work.failed) = (true, false),
            Err(error) => {
                // The next one tries again, and says nothing: how often they come is up to peers.
                let said = std::mem::replace(&mut work.failed, true);
                drop(work);
                if !said {
                    foreign::call(
                        || tracing::error!(%error, "no thread for connections that are to end"),
                    );
                }
            }
        }
    }

    /// What its thread would see to by now: that is who asks.
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn due(&self) -> Vec<(u64, Care)> {
        let now = self.inner.clock.now();
        let mut work = self.inner.work.lock();
        work.running = true;
        work.take_due(now)
    }

    /// Those to be closed that nobody looks after: there was no thread, and whoever had them has let go.
    pub(crate) fn take_unattended(&self) -> Vec<u64> {
        let mut work = self.inner.work.lock();
        if work.running {
            return Vec::new();
        }
        let closes = |care: &Care| matches!(care, Care::Linger(..) | Care::Cut(_));
        let due = std::mem::take(&mut work.due).into_iter();
        let (theirs, rest): (Vec<_>, Vec<_>) = due.partition(|Reverse((.., care))| closes(care));
        work.due = rest.into();
        theirs.into_iter().map(|Reverse((_, id, _))| id).collect()
    }

    /// Nothing is left to be seen to.
    pub(crate) fn close(&self) {
        let due = {
            let mut work = self.inner.work.lock();
            work.closed = true;
            std::mem::take(&mut work.due)
        };
        self.inner.changed.notify_one();
        drop(due);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.close();
    }
}

impl Work {
    fn take_due(&mut self, now: Moment) -> Vec<(u64, Care)> {
        let mut due = Vec::new();
        while let Some(Reverse((at, id, care))) = self.due.peek().copied() {
            if at > now {
                break;
            }
            self.due.pop();
            due.push((id, care));
        }
        due
    }
}

impl Inner {
    fn run(&self, registry: &Weak<Registry>) {
        while let Some(due) = self.sleep() {
            let Some(registry) = registry.upgrade() else {
                return;
            };
            for (id, care) in due {
                foreign::call(|| registry.take_care(id, care));
            }
        }
    }

    /// Gives what is due, when something is; `None` at the end.
    fn sleep(&self) -> Option<Vec<(u64, Care)>> {
        let mut work = self.work.lock();
        loop {
            if work.closed {
                return None;
            }
            let now = self.clock.now();
            let due = work.take_due(now);
            if !due.is_empty() {
                // Awake, it will see what comes now without being told.
                work.until = Moment::START;
                return Some(due);
            }
            let next = work.due.peek().map(|Reverse((at, ..))| *at);
            work.until = next.unwrap_or(Moment::NEVER);
            let time = next.map_or(STAYS, |at| at.since(now));
            let timed_out = self.changed.wait_for(&mut work, time).timed_out();
            if timed_out && work.due.is_empty() {
                work.running = false;
                return None;
            }
        }
    }
}

impl Registry {
    pub(crate) fn take_care(self: &Arc<Self>, id: u64, care: Care) {
        let Some(member) = self.census.connection(id) else {
            return;
        };
        match care {
            Care::Wake => self.foreign().hand_over(Chore::WakeMember(member)),
            Care::Tell => self
                .foreign()
                .hand_over(Chore::Call(Box::new(move || member.grow_old()))),
            Care::Linger(hard, mut taken) => {
                let now = self.clock.now();
                if now < hard {
                    Arc::clone(&member).cut(Cut::Soft);
                    let care = Care::Linger(hard, taken);
                    self.keeper.see_to(self, now.after(SWEEP), id, care);
                } else if taken.goes_on(member.unsent()) {
                    let care = Care::Linger(now.after(LINGER), taken);
                    self.keeper.see_to(self, now.after(SWEEP), id, care);
                } else {
                    self.take_care(id, Care::Cut(hard));
                }
            }
            Care::Cut(hard) => {
                let now = self.clock.now();
                let least = if now >= hard { Cut::Hard } else { Cut::Soft };
                if Arc::clone(&member).cut(least) {
                    self.foreign().hand_over(Chore::WakeMember(member));
                }
                let next = if now < hard.after(END) { SWEEP } else { LATER };
                self.keeper.see_to(self, now.after(next), id, care);
            }
        }
    }
}
