//! What a termination asks of its members: connections, listeners.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::clock::Moment;
use crate::report::Straggler;

/// How long outsiders wait for a lock: somebody's IO may block inside its own poll.
pub(crate) const BRIEFLY: Duration = Duration::from_micros(100);

/// A connection, as the driver sees it.
pub(crate) trait Member: Send + Sync {
    /// Wakes whoever polls it, so that it looks at the phase.
    fn wake(&self);

    /// It has reached the age at which it is told to end.
    fn grow_old(&self);

    /// The lame duck has begun. Those that were there and can be told without a loss are.
    fn lame_duck(&self);

    /// A step towards its end, as hard as that at least: see
    /// [`Registry::how_to_cut`](crate::registry::Registry::how_to_cut). Its task is not woken for it; true if
    /// it has to be at once, as the rest is up to it.
    fn cut(self: Arc<Self>, least: Cut) -> bool;

    /// What was written to it and is to be taken by the other side, if that can be told.
    fn unsent(&self) -> Option<u32>;

    /// Closes it from outside if it is idle: for one whose runtime does not get to do so. True if it did.
    fn close_idle(self: Arc<Self>, now: Moment) -> bool;

    fn snapshot(&self) -> Snapshot;

    /// It could not be closed.
    fn is_open(&self) -> bool;

    /// It is there, or its end was no end of its own.
    fn was_cut(&self) -> bool;

    /// Nobody has accepted it.
    fn is_lost(&self) -> bool;

    /// Whether a handler of it is inside a poll.
    fn is_in_a_poll(&self) -> bool;

    /// Who it is, for the report: one for each request in hand, or one if there is none; so many at most.
    fn stragglers(&self, now: Moment, most: usize) -> Vec<Straggler>;

    /// Calls with the runtime it was polled on last, if it was.
    fn on_runtime(&self, f: &mut dyn FnMut(&Handle));
}

/// A listener, as the driver sees it: the kernel queues for it, and it may hold what was taken out of there.
pub(crate) trait AcceptQueue: Send + Sync {
    /// The drain has begun: takes what the kernel has queued, for whoever accepts, and closes it. By force it closes it as it is.
    /// Gives when to go on.
    fn empty(&self, now: Moment) -> Option<Moment>;

    /// Closes it as it is. What it holds is lost.
    fn close(&self);

    /// The kernel still queues for it.
    fn is_open(&self) -> bool;

    /// How many connections it holds that nobody has asked for.
    fn held(&self) -> usize;

    /// There were no descriptors for what the kernel may have queued for it.
    fn is_starved(&self) -> bool;

    /// Calls with the runtime it was polled on last, if it was.
    fn on_runtime(&self, f: &mut dyn FnMut(&Handle));
}

/// How hard to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cut {
    /// Half-close, unless an answer may still go out, and discard what comes in.
    Soft,
    /// Half-close even then.
    Firm,
    /// Close the file descriptor.
    Hard,
}

/// What [`stats`](crate::Terminator::stats) asks a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Snapshot {
    Idle,
    Busy { requests: usize },
    Upgraded,
}
