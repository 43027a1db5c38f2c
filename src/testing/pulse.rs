//! When a probe's thread was not running: what then happened, happened to it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Notes when the thread is alive, which it is every few milliseconds, and when it was not.
pub(super) struct Pulse {
    last: Cell<Instant>,
    /// From when to when it stood still, the last few times.
    still: RefCell<VecDeque<(Instant, Instant)>>,
}

impl Pulse {
    pub(super) fn start(now: Instant) -> Self {
        Self {
            last: Cell::new(now),
            still: RefCell::default(),
        }
    }

    /// It is alive; says when that is.
    pub(super) fn beat(&self) -> Instant {
        let now = Instant::now();
        self.beat_at(now);
        now
    }

    fn beat_at(&self, now: Instant) {
        let last = self.last.replace(now);
        if now.saturating_duration_since(last) > TWO_BEATS {
            let mut still = self.still.borrow_mut();
            still.truncate(MOST - 1);
            still.push_front((last, now));
        }
    }

    /// The earliest moment, up to a few milliseconds, at which may have come what was asked for at `asked` and is read now: as the
    /// thread began to stand still before, be it with an interruption that was too short to do anything.
    pub(super) fn may_have_come(&self, asked: Instant) -> Instant {
        self.may_have_come_by(asked, self.beat())
    }

    fn may_have_come_by(&self, asked: Instant, mut came: Instant) -> Instant {
        for (from, to) in &*self.still.borrow() {
            if came.saturating_duration_since(*to) > TWO_BEATS {
                break;
            }
            came = *from;
        }
        came.max(asked)
    }
}

/// Whether a close may have been decided on before the request came that it lost: the connection had been quiet for `settle` when
/// that was written, and the end came without waiting for anything.
pub(super) fn is_crossed(quiet: Instant, wrote: Instant, ended: Instant, settle: Duration) -> bool {
    wrote.saturating_duration_since(quiet) >= settle
        && ended.saturating_duration_since(wrote) < settle
}

/// Between two of them a thread that gets its core is alive at least once.
pub(super) const BEAT: Duration = Duration::from_millis(4);
const TWO_BEATS: Duration = Duration::from_millis(10);
const MOST: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_have_come_as_the_thread_stood_still() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let pulse = Pulse::start(start);
        let come = |ms, asked| {
            pulse.beat_at(at(ms));
            pulse.may_have_come_by(at(asked), at(ms))
        };
        assert_eq!(come(4, 2), at(4));
        assert_eq!(come(8, 2), at(8));
        assert_eq!(come(50, 2), at(8));
        assert_eq!(come(58, 20), at(20));
        assert_eq!(come(65, 20), at(65));
        assert_eq!(come(90, 20), at(65));
        assert_eq!(come(98, 95), at(95));
        assert_eq!(come(130, 20), at(65));
        assert_eq!(come(145, 20), at(65));
        assert_eq!(come(150, 20), at(65));
        assert_eq!(come(156, 20), at(156));
    }

    #[test]
    fn a_close_crosses_only_what_comes_late_and_at_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let settle = Duration::from_millis(25);
        assert!(is_crossed(at(0), at(30), at(31), settle));
        assert!(!is_crossed(at(0), at(20), at(21), settle));
        assert!(!is_crossed(at(0), at(30), at(90), settle));
        assert!(!is_crossed(at(0), at(30), at(31), Duration::MAX));
    }
}
