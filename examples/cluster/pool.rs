//! Which workers there should be: what happened, and when, becomes what to do. Without clock or processes.
//!
//! Each slot has a worker that is current, and perhaps one that is to follow it once it is ready. Those that
//! leave are in none, and those that leave by themselves take their time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// For what a worker has in hand when nobody has said how long it may take.
pub const GRACE: Duration = Duration::from_secs(10);

/// For a worker to end once its deadline is over, on a machine that has other work.
pub const MERCY: Duration = Duration::from_secs(2);

/// A worker that is not ready after so long never will be.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// Nor will one end, for which it has its own deadline.
const GONE_WITHIN: Duration = GRACE.saturating_add(MERCY);

#[derive(Debug, PartialEq, Eq)]
pub enum Act {
    Start(u64),
    Leave(u64),
    Kill(u64),
    /// Tells the operator.
    Say(&'static str),
}

#[derive(Debug, Default)]
pub struct Pool {
    slots: Vec<Slot>,
    /// Numbers are never used twice.
    last: u64,
    backoff: Backoff,
    /// Slots whose worker is still to be replaced, after a SIGHUP.
    rolling: VecDeque<usize>,
    /// Those that were told to leave, and until when they must have ended.
    leaving: Vec<(u64, Instant)>,
}

#[derive(Debug, Default)]
struct Slot {
    current: Option<u64>,
    /// And until when it must be ready.
    next: Option<(u64, Instant)>,
    /// When to start one.
    due: Option<Instant>,
}

impl Pool {
    pub fn new(workers: usize, now: Instant) -> Self {
        let slot = || Slot {
            due: Some(now),
            ..Slot::default()
        };
        Self {
            slots: (0..workers).map(|_| slot()).collect(),
            ..Self::default()
        }
    }

    /// The workers that serve, by slot.
    pub fn current(&self) -> impl ExactSizeIterator<Item = Option<u64>> {
        self.slots.iter().map(|slot| slot.current)
    }

    /// When to call [`tick`](Self::tick) next.
    pub fn due(&self) -> Option<Instant> {
        let dues = self.slots.iter().flat_map(|slot| {
            let starting = slot.next.map(|(_, until)| until);
            [starting, slot.due]
        });
        let leaving = self.leaving.iter().map(|(_, until)| *until);
        dues.flatten().chain(leaving).min()
    }

    pub fn tick(&mut self, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        self.leaving.retain(|(id, until)| {
            if *until <= now {
                acts.push(Act::Say("a worker does not leave: killed"));
                acts.push(Act::Kill(*id));
            }
            *until > now
        });
        for n in 0..self.slots.len() {
            if let Some((id, _)) = self.slots[n].next.filter(|(_, until)| *until <= now) {
                acts.push(Act::Say("a worker is not ready in time: killed"));
                acts.push(Act::Kill(id));
                // Now, and not when its end is heard of: before that may come that it is ready.
                acts.extend(self.leaving(id, true, now));
            }
            if self.slots[n].due.is_some_and(|due| due <= now) {
                acts.push(self.start(n, now));
            }
        }
        acts
    }

    pub fn ready(&mut self, id: u64, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        let ready = |slot: &mut Slot| slot.next.take_if(|(next, _)| *next == id).is_some();
        if let Some(n) = self.slots.iter_mut().position(ready) {
            if let Some(old) = self.slots[n].current.replace(id) {
                self.leaving.push((old, now + GONE_WITHIN));
                acts.push(Act::Leave(old));
            }
            acts.extend(self.roll_on(now));
        }
        acts
    }

    /// It accepts no more, and was not asked to; `faulty` if that is a failure.
    pub fn leaving(&mut self, id: u64, faulty: bool, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        for slot in &mut self.slots {
            let was_next = slot.next.take_if(|(next, _)| *next == id).is_some();
            let was_current = slot.current.take_if(|current| *current == id).is_some();
            if was_next && slot.current.is_some() {
                self.rolling.clear();
                acts.push(Act::Say("the new worker has failed: all others stay"));
            } else if was_next || was_current && slot.next.is_none() {
                let (due, is_news) = if faulty {
                    self.backoff.died(now)
                } else {
                    (now, false)
                };
                slot.due = Some(due);
                acts.extend(is_news.then_some(Act::Say("a worker has failed: replacing it")));
            }
        }
        acts
    }

    pub fn ended(&mut self, id: u64, now: Instant) -> Vec<Act> {
        self.leaving.retain(|(leaving, _)| *leaving != id);
        self.leaving(id, true, now)
    }

    /// Replaces all, one by one. Once more from the beginning, if it is under way.
    pub fn roll(&mut self, now: Instant) -> Vec<Act> {
        let is_rolling = !self.rolling.is_empty();
        self.rolling = (0..self.slots.len()).collect();
        if is_rolling {
            return Vec::new();
        }
        self.roll_on(now).into_iter().collect()
    }

    /// If none is on its way; otherwise this is called again when it is ready.
    fn roll_on(&mut self, now: Instant) -> Option<Act> {
        if self.slots.iter().any(|slot| slot.next.is_some()) {
            return None;
        }
        let n = self.rolling.pop_front()?;
        Some(self.start(n, now))
    }

    fn start(&mut self, n: usize, now: Instant) -> Act {
        self.last += 1;
        let slot = &mut self.slots[n];
        slot.due = None;
        slot.next = Some((self.last, now + READY_WITHIN));
        Act::Start(self.last)
    }
}
