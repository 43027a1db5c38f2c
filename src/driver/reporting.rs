//! The report of a termination, from the deadline on, when who is late can still be named.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::field::display;

use super::in_hand::{MOST_NAMED, connections, guards, in_hand, of};
use super::member::Member;
use super::sequence::Sequence;
use crate::census::{Outcome, Tally};
use crate::clock::Moment;
use crate::phase::Phase;
use crate::registry::Registry;
use crate::report::{Report, Straggler};

/// Who was late at the deadline.
#[derive(Default)]
pub(super) struct Stragglers(Mutex<Option<Late>>);

#[derive(Clone, Default)]
struct Late {
    /// Some may be answered to the end all the same, before they are cut.
    connections: Vec<(Straggler, Arc<dyn Member>)>,
    /// For what room those leave, so that thousands of these hide none of them.
    guards: Vec<Straggler>,
}

impl fmt::Debug for Stragglers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stragglers").finish_non_exhaustive()
    }
}

impl Stragglers {
    /// Before anybody can see that it is the deadline: who does will end, and can't be named any more.
    pub(super) fn name(&self, registry: &Registry) {
        // The first list counts: what comes later may have been made while they were cut.
        if self.0.lock().is_some() {
            return;
        }
        let now = registry.clock.now();
        let named = connections(registry, now).into_iter();
        let with_member = |it: Straggler| {
            let member = registry.census.connection(it.connection)?;
            Some((it, member))
        };
        let connections: Vec<_> = named.filter_map(with_member).collect();
        let guards = guards(registry, now, MOST_NAMED);
        self.0.lock().get_or_insert(Late {
            connections,
            guards,
        });
    }

    pub(super) fn log(&self, registry: &Registry) {
        let late = self.0.lock().clone().unwrap_or_default();
        let room = MOST_NAMED - late.connections.len();
        registry.log(move || {
            for (straggler, _) in late.connections {
                log_forced(&straggler);
            }
            for straggler in late.guards.into_iter().take(room) {
                let place = straggler.place.as_deref();
                tracing::warn!(place, %straggler, "giving up a guard");
            }
        });
    }

    fn take(&self) -> Late {
        self.0.lock().take().unwrap_or_default()
    }
}

/// Before it is, or what it was about can't be told.
pub(crate) fn log_forced(straggler: &Straggler) {
    let number = straggler.connection;
    tracing::warn!(connection = number, %straggler, "forcing a connection");
}

/// Says what a drain still waits for.
pub(super) fn log_what_is_left(registry: &Registry) {
    let stats = registry.stats();
    let named = in_hand(registry);
    registry.log(move || {
        let [oldest, second, third] = [0, 1, 2].map(|n| named.get(n).map(display));
        tracing::info!(
            connections = stats.connections,
            requests = stats.requests,
            upgraded = stats.upgraded,
            guards = stats.guards,
            oldest,
            second,
            third,
            "still draining"
        );
    });
}

/// The report, once the last sweep is over. `tally`: as it was when nothing was left, if nothing had to be forced.
pub(super) fn report(
    registry: &Registry,
    sequence: &Sequence,
    late: &Stragglers,
    tally: Option<Tally>,
    now: Moment,
) -> Report {
    let forced = sequence.entered(Phase::Forcing).is_some();
    let late = late.take();
    // Somebody may force a moment too late: none of them was cut then.
    let cut = late
        .connections
        .into_iter()
        .filter(|(_, it)| forced && it.was_cut());
    let mut stragglers: Vec<_> = cut.map(|(it, _)| it).collect();
    let mut unresponsive = 0;
    if forced {
        unresponsive = put_blocked_first(registry, &mut stragglers, now);
        add_what_is_left(registry, &mut stragglers, now);
        stragglers.extend(late.guards);
        stragglers.truncate(MOST_NAMED);
    }
    let tally = tally.unwrap_or_else(|| registry.census.tally());
    let (left, detached, lost, unclosed) = if forced {
        let mut unclosed = registry.unclosed.load(Relaxed) + registry.census.listeners().len();
        let mut lost = 0;
        registry.census.each_connection(|it| {
            unclosed += usize::from(it.is_open());
            lost += usize::from(it.is_lost());
        });
        let left = tally.connections.saturating_sub(lost);
        (left, tally.detached, lost, unclosed)
    } else {
        (0, 0, 0, 0)
    };
    Report {
        idle: tally.ended(Outcome::Idle),
        finished: tally.ended(Outcome::Finished),
        closed_by_peer: tally.ended(Outcome::ClosedByPeer),
        stalled: tally.ended(Outcome::Stalled),
        upgraded: tally.ended(Outcome::Upgraded),
        left: tally.ended(Outcome::Left),
        // Those whose tasks have not let go yet are cut as well.
        detached: tally.ended(Outcome::Detached) + detached,
        forced: tally.ended(Outcome::Forced) + left,
        unclosed,
        lost_in_queue: registry.lost_in_queue.load(Relaxed) + tally.ended(Outcome::Lost) + lost,
        answered_at_deadline: registry.answered_at_deadline.load(Relaxed),
        abandoned: registry.abandoned.load(Relaxed),
        unresponsive,
        guards_cut: registry.held.len(),
        accepted_late: registry.accepted_late.load(Relaxed),
        lame_duck: sequence.took(Phase::LameDuck, now),
        draining: sequence.took(Phase::Draining, now),
        forcing: sequence.took(Phase::Forcing, now),
        stragglers,
    }
}

/// Those whose handlers are inside a poll, and how many they are: nothing can be done about them.
fn put_blocked_first(registry: &Registry, stragglers: &mut Vec<Straggler>, now: Moment) -> usize {
    // At the deadline anybody may have been inside of a poll for a moment.
    for straggler in &mut *stragglers {
        straggler.unresponsive = false;
    }
    let mut inside = Vec::new();
    registry.census.each_connection(|connection| {
        if connection.is_in_a_poll() {
            inside.push(Arc::clone(connection));
        }
    });
    if inside.is_empty() {
        return 0;
    }
    // Now as well: who is there after a while is taken for blocked.
    thread::sleep(WHILE);
    let mut blocked = 0;
    for connection in inside.iter().filter(|it| it.is_in_a_poll()) {
        for mut straggler in of(registry, &**connection, now, usize::MAX) {
            if straggler.unresponsive {
                // It may have become a straggler since the deadline. Otherwise its peer was known then,
                // and its socket is closed by now.
                let same = |s: &Straggler| {
                    s.connection == straggler.connection && s.path == straggler.path
                };
                // Behind those that were put in front.
                let known = stragglers[blocked..].iter().position(same);
                if let Some(known) = known {
                    straggler.peer = stragglers.remove(blocked + known).peer;
                }
                stragglers.insert(0, straggler);
                blocked += 1;
            }
        }
    }
    blocked
}

/// Longer than a poll takes that does not block.
const WHILE: Duration = Duration::from_millis(2);

/// Cut, but not gone: their IO is still inside its own drop, or their task was not dropped.
fn add_what_is_left(registry: &Registry, stragglers: &mut Vec<Straggler>, now: Moment) {
    registry.census.each_connection(|connection| {
        if stragglers.len() < MOST_NAMED {
            for left in of(registry, &**connection, now, MOST_NAMED) {
                let same = |known: &Straggler| known.connection == left.connection;
                if !stragglers.iter().any(same) {
                    stragglers.push(left);
                }
            }
        }
    });
}
