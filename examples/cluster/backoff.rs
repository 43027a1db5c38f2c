//! When a worker that died is replaced: the first at once, and the more die in a row, the later.

use std::time::{Duration, Instant};

/// At most a dozen in the first minute, and six in each that follows, however many workers there are.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Without a death for so long, it was none of a row. Longer than the longest pause, after which the next
/// one may die too.
const CALM: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub struct Backoff {
    row: u32,
    last: Option<Instant>,
    /// When the last replacement is started.
    due: Option<Instant>,
}

impl Backoff {
    /// When to replace one that has died now, and whether it is the first of a row: only that is worth a line.
    pub fn died(&mut self, now: Instant) -> (Instant, bool) {
        if self
            .last
            .is_some_and(|last| now.duration_since(last) > CALM)
        {
            self.row = 0;
        }
        let pause = match self.row {
            0 => Duration::ZERO,
            n => LONGEST.min(SHORTEST * 2u32.pow((n - 1).min(10))),
        };
        self.row += 1;
        self.last = Some(now);
        let due = self.due.map_or(now, |due| due.max(now)) + pause;
        self.due = Some(due);
        (due, self.row == 1)
    }
}
