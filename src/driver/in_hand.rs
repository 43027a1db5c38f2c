//! Who would be named by a report, at any moment.

use std::cmp::Reverse;

use super::held::Holder;
use super::member::{Member, Snapshot};
use crate::clock::Moment;
use crate::registry::Registry;
use crate::report::{Protocol, Straggler};

/// No list of stragglers is longer than this.
pub(crate) const MOST_NAMED: usize = 64;

/// Requests, connections and guards, the oldest first; those that nobody waits for behind them.
pub(crate) fn in_hand(registry: &Registry) -> Vec<Straggler> {
    let now = registry.clock.now();
    let mut named = connections(registry, now);
    named.extend(guards(registry, now, MOST_NAMED));
    named.sort_by_key(|it| (it.detached, Reverse(it.age)));
    named.truncate(MOST_NAMED);
    named
}

/// The oldest of those that are not idle, in the same order.
pub(super) fn connections(registry: &Registry, now: Moment) -> Vec<Straggler> {
    let mut named = Vec::new();
    // Whoever has been there for longest is met first, and the rest not named.
    for connection in registry.census.in_order() {
        if named.len() >= MOST_NAMED {
            break;
        }
        if !matches!(connection.snapshot(), Snapshot::Idle) {
            named.extend(of(registry, &*connection, now, MOST_NAMED));
        }
    }
    named.truncate(MOST_NAMED);
    named
}

/// Those of one connection, so many at most.
pub(crate) fn of(
    registry: &Registry,
    connection: &(impl Member + ?Sized),
    now: Moment,
    most: usize,
) -> Vec<Straggler> {
    let mut named = connection.stragglers(now, most);
    let id = named.first().map(|it| it.connection);
    let detached = id.is_some_and(|id| registry.census.is_detached(id));
    for straggler in &mut named {
        straggler.detached = detached;
    }
    named
}

/// So many at most.
pub(super) fn guards(registry: &Registry, now: Moment, most: usize) -> Vec<Straggler> {
    let name = |guard: Holder| Straggler {
        connection: 0,
        peer: None,
        protocol: Protocol::Guard,
        method: None,
        path: None,
        place: Some(guard.place.to_string()),
        age: now.since(guard.at),
        unresponsive: false,
        detached: false,
    };
    let oldest = registry.held.oldest(most);
    oldest.into_iter().map(name).collect()
}
