//! How far a termination has come: whoever looks, and whenever, finds it here.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use super::member::Cut;
use super::sequence::{CUT, END, LAST_ANSWER};
use crate::clock::Moment;
use crate::phase::{Phase, RisingPhase};

pub(crate) struct Progress {
    phase: RisingPhase,
    lame_duck_began: AtomicU64,
    drain_began: AtomicU64,
    /// How many connections there were then.
    crowd: AtomicUsize,
    deadline: AtomicU64,
    /// When the deadline was noticed: by a process that got no processor, long after it.
    forced: AtomicU64,
    /// Nothing is left, as far as could be seen: who wants a guard now is too late.
    guards_refused: AtomicBool,
    /// The last sweep begins, or has passed: who comes now has to end by itself.
    over: AtomicBool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            phase: RisingPhase::new(),
            lame_duck_began: AtomicU64::new(Moment::NEVER.as_micros()),
            drain_began: AtomicU64::new(Moment::NEVER.as_micros()),
            crowd: AtomicUsize::new(0),
            deadline: AtomicU64::new(Moment::NEVER.as_micros()),
            forced: AtomicU64::new(Moment::NEVER.as_micros()),
            guards_refused: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    #[inline]
    pub(crate) fn is_serving(&self) -> bool {
        self.phase.is_serving()
    }

    /// Everybody who looks from now on sees it.
    pub(crate) fn raise(&self, phase: Phase, now: Moment, deadline: Moment) {
        if phase == Phase::LameDuck {
            self.lame_duck_began.fetch_min(now.as_micros(), SeqCst);
        }
        if phase >= Phase::Draining {
            self.drain_began.fetch_min(now.as_micros(), SeqCst);
        }
        self.deadline.store(deadline.as_micros(), SeqCst);
        self.phase.raise(phase);
    }

    /// So many connections are there as the drain is about to begin.
    pub(crate) fn meets(&self, crowd: usize) {
        self.crowd.store(crowd, SeqCst);
    }

    /// The driver has seen that the deadline is there.
    pub(crate) fn notice_deadline(&self, now: Moment) {
        self.forced.fetch_min(now.as_micros(), SeqCst);
    }

    /// There is a report: everybody sees the end.
    pub(crate) fn finish(&self) {
        self.phase.raise(Phase::Terminated);
    }

    pub(crate) fn lame_duck_began(&self) -> Moment {
        Moment::from_micros(self.lame_duck_began.load(SeqCst))
    }

    pub(crate) fn drain_began(&self) -> Moment {
        Moment::from_micros(self.drain_began.load(SeqCst))
    }

    pub(crate) fn crowd(&self) -> usize {
        self.crowd.load(SeqCst)
    }

    pub(crate) fn deadline(&self) -> Moment {
        Moment::from_micros(self.deadline.load(SeqCst))
    }

    /// From now on nobody gets a guard, or does again.
    pub(crate) fn refuse_guards(&self, yes: bool) {
        self.guards_refused.store(yes, SeqCst);
    }

    /// Whether who wants one that is refused from that phase on is too late.
    pub(crate) fn refuses_guards(&self, from: Phase) -> bool {
        self.phase() >= from || self.guards_refused.load(SeqCst)
    }

    /// From now on nobody looks for late comers.
    pub(crate) fn end(&self) {
        self.over.store(true, SeqCst);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }

    /// Not all that is cut for good was, or only a moment ago: what they leave may yet be made use of, in time for the report.
    pub(crate) fn may_cut(&self, now: Moment) -> bool {
        let forced = Moment::from_micros(self.forced.load(SeqCst));
        !self.is_over() && now.since(forced) < (CUT + END) / 2
    }

    /// How hard to cut what is to be cut since the deadline was noticed, or since then.
    pub(crate) fn how_to_cut(&self, since: Moment, now: Moment) -> Cut {
        let forced = Moment::from_micros(self.forced.load(SeqCst));
        match now.since(since.min(forced)) {
            _ if self.is_over() => Cut::Hard,
            time if time >= CUT => Cut::Hard,
            time if time >= LAST_ANSWER => Cut::Firm,
            _ => Cut::Soft,
        }
    }
}
