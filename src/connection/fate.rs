//! What is decided about one connection from outside of its task: that it is to end, that it is cut, how it
//! has ended.
//!
//! One word, because whoever looks wants all of it at one moment, and as long as it is zero nothing of it has
//! been: that is one comparison for a request.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use crate::clock::Moment;
use crate::phase::Phase;
use crate::registry::Outcome;
use crate::sync::AtomicU64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Fate(AtomicU64);

/// Why a connection is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody asks for it, or a limit is reached.
    Asked,
    /// For its age.
    Old,
    /// Its client is to go elsewhere; what is under way goes on until the drain.
    LameDuck,
}

/// How it has ended, plus one.
const OUTCOME: u64 = 0xf;
const _: () = assert!(
    (Outcome::Forced as u64) < OUTCOME,
    "the last one has a number"
);
const FORCED: u64 = 1 << 4;
/// It is told because it is old, so that nobody is in a hurry.
const OLD: u64 = 1 << 5;
/// It is counted out.
const GONE: u64 = 1 << 6;
/// It is told by a lame duck, of which its streams need not know.
const LAME: u64 = 1 << 7;
/// Above it, when it was told to end or cut, in microseconds plus one.
const SINCE: u32 = 8;

impl Fate {
    /// Nothing was decided.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.0.load(SeqCst) == 0
    }

    /// It is to end, and if it is not for its age, somebody may be in a hurry. False if that was known.
    pub(super) fn tell(&self, now: Moment, why: Why) -> bool {
        let flag = match why {
            Why::Asked => 0,
            Why::Old => OLD,
            Why::LameDuck => LAME,
        };
        self.change(|fate| match (fate >> SINCE, why) {
            (0, _) => Some(fate | flag | since(now)),
            (_, Why::Old) if fate & LAME == 0 => None,
            (_, Why::LameDuck) if fate & OLD == 0 => None,
            // Its streams know, if not by a lame duck.
            (_, Why::LameDuck) => Some(fate & !OLD),
            _ if fate & (OLD | LAME) != 0 => Some(fate & !(OLD | LAME)),
            _ => None,
        })
    }

    /// It is to be cut. False if that was known.
    pub(super) fn force(&self, now: Moment) -> bool {
        let below = ((1 << SINCE) - 1) & !LAME;
        self.change(|fate| (fate & FORCED == 0).then(|| fate & below | FORCED | since(now)))
    }

    /// Who says it first is right: what comes later is a consequence.
    pub(super) fn end(&self, outcome: Outcome) {
        self.change(|fate| (fate & OUTCOME == 0).then_some(fate | (outcome as u64 + 1)));
    }

    /// Nobody has to be told of anything any more.
    pub(super) fn leave(&self) {
        self.0.fetch_or(GONE, SeqCst);
    }

    fn change(&self, f: impl Fn(u64) -> Option<u64>) -> bool {
        self.0.fetch_update(SeqCst, SeqCst, f).is_ok()
    }

    /// In which phase this connection alone is.
    pub(super) fn stage(&self) -> Phase {
        match self.0.load(SeqCst) {
            fate if fate & FORCED != 0 => Phase::Forcing,
            fate if fate >> SINCE != 0 => Phase::Draining,
            _ => Phase::Serving,
        }
    }

    /// Since when.
    pub(super) fn since(&self) -> Moment {
        match self.0.load(Relaxed) >> SINCE {
            0 => Moment::NEVER,
            since => Moment::from_micros(since - 1),
        }
    }

    pub(super) fn is_old(&self) -> bool {
        self.0.load(Relaxed) & OLD != 0
    }

    pub(super) fn is_gone(&self) -> bool {
        self.0.load(SeqCst) & GONE != 0
    }

    /// There is nothing more to wait for, unless it is the drain that follows a lame duck.
    pub(super) fn is_told_or_gone(&self) -> bool {
        let fate = self.0.load(SeqCst);
        fate & GONE != 0 || fate >> SINCE != 0 && fate & LAME == 0
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        let n = self.0.load(Relaxed) & OUTCOME;
        Outcome::ALL.into_iter().find(|it| *it as u64 + 1 == n)
    }
}

fn since(now: Moment) -> u64 {
    now.as_micros().saturating_add(1).min(u64::MAX >> SINCE) << SINCE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync;

    #[test]
    fn what_is_decided_first_holds() {
        sync::run(|| {
            let fate = Fate::default();
            assert!(fate.is_open());
            assert_eq!(
                (fate.stage(), fate.since()),
                (Phase::Serving, Moment::NEVER)
            );
            assert!(fate.tell(Moment::START, Why::Old));
            assert!(!fate.tell(Moment::from_micros(9), Why::Old));
            assert_eq!(
                (fate.stage(), fate.since()),
                (Phase::Draining, Moment::START)
            );
            assert!(fate.is_old() && fate.is_told_or_gone());
            assert!(fate.tell(Moment::from_micros(9), Why::Asked) && !fate.is_old());
            assert!(!fate.tell(Moment::from_micros(9), Why::Asked));
            assert!(!fate.tell(Moment::from_micros(9), Why::LameDuck) && fate.is_told_or_gone());
            assert_eq!(fate.since(), Moment::START);
            assert!(fate.force(Moment::from_micros(7)));
            assert!(!fate.force(Moment::NEVER) && !fate.tell(Moment::NEVER, Why::Asked));
            assert_eq!(fate.stage(), Phase::Forcing);
            assert_eq!(fate.since(), Moment::from_micros(7));
            assert_eq!(fate.outcome(), None);
            for outcome in Outcome::ALL {
                fate.end(outcome);
                assert_eq!(fate.outcome(), Some(Outcome::ALL[0]));
            }
        });
    }

    #[test]
    fn what_a_lame_duck_tells_streams_learn_by_another_reason() {
        sync::run(|| {
            let then = Moment::from_micros(9);
            for (why, old) in [(Why::Asked, false), (Why::Old, false)] {
                let fate = Fate::default();
                assert!(fate.tell(Moment::START, Why::LameDuck));
                assert!(!fate.tell(then, Why::LameDuck) && !fate.is_told_or_gone());
                assert_eq!(fate.stage(), Phase::Draining);
                assert!(fate.tell(then, why) && fate.is_told_or_gone());
                assert_eq!((fate.is_old(), fate.since()), (old, Moment::START));
                assert!(!fate.tell(then, why) && !fate.tell(then, Why::LameDuck));
            }
            let fate = Fate::default();
            assert!(fate.tell(Moment::START, Why::LameDuck) && fate.force(then));
            assert!(fate.is_told_or_gone());
            // One that is old is told at once, and its streams know.
            let fate = Fate::default();
            assert!(fate.tell(Moment::START, Why::Old) && fate.tell(then, Why::LameDuck));
            assert!(!fate.is_old() && fate.is_told_or_gone());
        });
    }

    #[test]
    fn each_outcome_is_told_apart() {
        sync::run(|| {
            for outcome in Outcome::ALL {
                let fate = Fate::default();
                fate.end(outcome);
                assert_eq!(fate.outcome(), Some(outcome));
                assert_eq!(fate.stage(), Phase::Serving);
                assert!(!fate.is_open() && !fate.is_told_or_gone());
                fate.leave();
                assert!(fate.is_told_or_gone());
            }
            let fate = Fate::default();
            fate.tell(Moment::NEVER, Why::Asked);
            assert_eq!(fate.stage(), Phase::Draining);
        });
    }
}
