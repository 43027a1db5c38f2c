//! When a probe's thread was not running: what then happened, happened to it.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Notes the last two of the turns that the thread takes every few milliseconds, if it gets a core.
///
/// In a turn the reactor is asked for what has come, and then who waits for that is polled, before the next turn. So what
/// is read now had not come at the turn before the last.
pub(super) struct Pulse {
    last: Cell<Instant>,
    before: Cell<Instant>,
}

impl Pulse {
    pub(super) fn start(now: Instant) -> Self {
        Self {
            last: Cell::new(now),
            before: Cell::new(now),
        }
    }

    /// The reactor has been asked.
    pub(super) fn turn(&self, now: Instant) {
        self.before.set(self.last.replace(now));
    }

    /// The earliest moment at which may have come what was asked for at `asked` and is read now.
    pub(super) fn may_have_come(&self, asked: Instant) -> Instant {
        self.before.get().max(asked)
    }
}

/// Whether a close may have been decided on before the request came that it lost: the connection had been quiet for `settle` when
/// that was written, and the end came without waiting for anything.
pub(super) fn is_crossed(quiet: Instant, wrote: Instant, ended: Instant, settle: Duration) -> bool {
    wrote.saturating_duration_since(quiet) >= settle
        && ended.saturating_duration_since(wrote) <= settle
}

/// Between two turns: far below what servers wait for.
pub(super) const TURN: Duration = Duration::from_millis(4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_had_not_come_at_the_turn_before_the_last() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let pulse = Pulse::start(start);
        // It stood still for a while, and has not yet got round to everything.
        for ms in [4, 8, 50] {
            pulse.turn(at(ms));
        }
        assert_eq!(pulse.may_have_come(at(2)), at(8));
        assert_eq!(pulse.may_have_come(at(20)), at(20));
        pulse.turn(at(54));
        assert_eq!(pulse.may_have_come(at(2)), at(50));
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
        // Who waits for nothing may always have decided before.
        assert!(is_crossed(at(30), at(30), at(30), Duration::ZERO));
    }
}
