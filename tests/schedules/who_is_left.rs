//! Who is alive, and whether anything is left.
//!
//! Seen to fail with `src/census.rs` changed in each of these ways:
//!
//! - `left` reads the guards before it takes the locks, does not keep a shard's lock until it has read them, or
//!   not that of the listeners: something that is handed over is overlooked, and the driver ends too early.
//! - `leave` says `last` by what was waited for before, or `release_guard` never: the driver sleeps for ever.
//! - `detach` counts out what is not there, or `leave` what is detached: the number waited for underflows.
//! - `leave` takes its lock twice, to go and to count how: in between, a connection is in neither number.
//! - `leave` looks whether a drain has begun before it takes the lock: an end that was to come is not counted.
//! - `count_guard_unless` does not look behind its count, or counts behind its look: nobody waits for who works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool as Ghost, AtomicU64, Ordering::SeqCst};

use shuttle::thread;

use crate::census::{self, Left, Outcome};
use crate::sync::{AtomicBool, Condvar, Mutex};

/// Two shards, so that one can be looked at before the other. The even numbers are in the first.
type Census = census::Census<u64, u64, 2>;

// ===== is anything left =====

/// What may hold a termination up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Thing {
    Listener,
    EvenConnection,
    OddConnection,
    Guard,
}

const THINGS: [Thing; 4] = [
    Thing::Listener,
    Thing::EvenConnection,
    Thing::OddConnection,
    Thing::Guard,
];

/// One after the other: each is counted in before the one before it is counted out. A handler spawns work
/// and ends, work tracks a connection, a listener yields one and is closed.
fn handovers() -> impl Iterator<Item = [Thing; 3]> {
    let pairs = THINGS.into_iter().flat_map(|a| THINGS.map(|b| (a, b)));
    pairs.flat_map(|(a, b)| THINGS.map(|c| [a, b, c]))
}

struct World {
    census: Census,
    /// Something has been there all the time until now.
    held: Ghost,
    /// The driver's agenda.
    woken: Mutex<bool>,
    changed: Condvar,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            census: Census::new(),
            held: Ghost::new(true),
            woken: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// Its number is what lets it be told from the others of the chain.
    fn count_in(&self, thing: Thing, n: u64) {
        match thing {
            Thing::Listener => self.census.open(n, n),
            Thing::EvenConnection => self.census.join(2 * n, n),
            Thing::OddConnection => self.census.join(2 * n + 1, n),
            Thing::Guard => self.census.count_guard(),
        }
    }

    /// True if it is to be looked again.
    fn count_out(&self, thing: Thing, n: u64) -> bool {
        let leave = |id| {
            let gone = self.census.leave(id, Outcome::Finished);
            gone.expect("nobody else ends it").last
        };
        match thing {
            Thing::Listener => self.census.close(n).is_some(),
            Thing::EvenConnection => leave(2 * n),
            Thing::OddConnection => leave(2 * n + 1),
            Thing::Guard => self.census.release_guard(),
        }
    }

    fn hand_over(&self, chain: &[Thing], wake: impl Fn()) {
        for (n, pair) in (1..).zip(chain.windows(2)) {
            self.count_in(pair[1], n + 1);
            if self.count_out(pair[0], n) {
                wake();
            }
        }
        self.held.store(false, SeqCst);
        if self.count_out(chain[chain.len() - 1], chain.len() as u64) {
            wake();
        }
    }

    /// With a guard, as `ShutdownGuard::before` takes one.
    fn works_unless(&self, refused: &AtomicBool, ended: &Ghost) {
        let release = || _ = self.census.release_guard();
        let refused = || refused.load(SeqCst);
        if self.census.count_guard_unless(refused, release) {
            assert!(!ended.load(SeqCst), "it works, and nobody waits for it");
            release();
        }
    }

    fn wake(&self) {
        *self.woken.lock() = true;
        self.changed.notify_all();
    }

    /// As the driver does: takes what it was told, looks, and sleeps until it is told something.
    fn wait_for_all(&self) {
        loop {
            *self.woken.lock() = false;
            if self.census.left() == Left::Nothing {
                return;
            }
            let mut woken = self.woken.lock();
            while !*woken {
                self.changed.wait(&mut woken);
            }
        }
    }
}

/// In every order.
#[test]
fn what_is_handed_over_is_never_overlooked() {
    for chain in handovers() {
        let all = move || {
            let world = World::new();
            world.count_in(chain[0], 1);
            let other = Arc::clone(&world);
            let thread = thread::spawn(move || other.hand_over(&chain, || {}));
            if world.census.left() != Left::Awaited {
                let held = world.held.load(SeqCst);
                assert!(!held, "{chain:?}: something was there all the time");
            }
            thread.join().expect("no panic");
            assert_eq!(world.census.left(), Left::Nothing);
        };
        shuttle::check_dfs(all, None);
    }
}

/// A wake-up that was lost would leave the driver asleep, which is a deadlock to shuttle.
#[test]
fn the_driver_is_woken_when_nothing_is_left() {
    for chain in handovers() {
        let all = move || {
            let world = World::new();
            let other = [chain[2], chain[1]];
            world.count_in(chain[0], 1);
            world.count_in(other[0], 101);
            let threads = [
                spawn(&world, move |world| {
                    world.hand_over(&chain, || world.wake());
                }),
                spawn(&world, move |world| {
                    world.count_in(other[1], 102);
                    for (thing, n) in [(other[0], 101), (other[1], 102)] {
                        if world.count_out(thing, n) {
                            world.wake();
                        }
                    }
                }),
            ];
            world.wait_for_all();
            assert!(!world.held.load(SeqCst), "{chain:?}");
            for thread in threads {
                thread.join().expect("no panic");
            }
        };
        shuttle::check_pct(all, 150, 3);
    }
}

/// Either the driver sees the guard or the guard sees the phase (invariant 3).
#[test]
fn a_guard_that_was_not_refused_is_waited_for() {
    shuttle::check_dfs(
        || {
            let world = World::new();
            let draining = Arc::new(AtomicBool::new(false));
            let (phase, ended) = (Arc::clone(&draining), Arc::new(Ghost::new(false)));
            let over = Arc::clone(&ended);
            let thread = spawn(&world, move |world| {
                world.works_unless(&phase, &over);
            });
            draining.store(true, SeqCst);
            ended.store(world.census.left() == Left::Nothing, SeqCst);
            thread.join().expect("no panic");
        },
        None,
    );
}

/// In the drain, too, work may be spawned: up to the moment in which nothing is left.
#[test]
fn work_that_begins_in_the_drain_is_waited_for() {
    shuttle::check_dfs(
        || {
            let world = World::new();
            let refused = Arc::new(AtomicBool::new(false));
            let ended = Arc::new(Ghost::new(false));
            let (flag, over) = (Arc::clone(&refused), Arc::clone(&ended));
            let thread = spawn(&world, move |world| {
                world.works_unless(&flag, &over);
            });
            // As `Steps::left` does.
            let mut left = world.census.left();
            if left == Left::Nothing {
                refused.store(true, SeqCst);
                left = world.census.left();
                refused.store(left == Left::Nothing, SeqCst);
            }
            ended.store(left == Left::Nothing, SeqCst);
            thread.join().expect("no panic");
        },
        None,
    );
}

// ===== who is waited for, and what a connection counts as =====

/// Its task and its socket say that it ends, and somebody detaches it meanwhile.
#[test]
fn a_connection_ends_once() {
    shuttle::check_dfs(
        || {
            let world = World::new();
            world.census.begin();
            world.census.join(2, 2);
            // Of the same shard: none of it is about this one.
            world.census.join(4, 4);
            let threads = [
                spawn(&world, |world| {
                    world.census.leave(2, Outcome::Finished).is_some()
                }),
                spawn(&world, |world| {
                    world.census.detach(2);
                    world.census.leave(2, Outcome::Forced).is_some()
                }),
            ];
            let tally = world.census.tally();
            let all = tally.connections + tally.detached + ended(&tally);
            assert_eq!(all, 2, "each in one of them");
            let counted = threads.map(|it| it.join().expect("no panic"));
            assert_eq!(counted.iter().filter(|it| **it).count(), 1);

            assert!(world.census.leave(2, Outcome::Stalled).is_none());
            assert!(!world.census.detach(2), "it is gone");
            assert_eq!(ended(&world.census.tally()), 1);
            assert_eq!(world.census.waited_for(), 1, "the other");
            assert_eq!(world.census.left(), Left::Awaited);
        },
        None,
    );
}

/// Whoever sees that the drain has begun, and a connection there, finds its end in the report.
#[test]
fn an_end_that_was_to_come_is_counted() {
    shuttle::check_dfs(
        || {
            let world = World::new();
            world.census.join(1, 1);
            let thread = spawn(&world, |world| {
                world.census.leave(1, Outcome::Idle);
            });
            world.census.begin();
            let there = world.census.tally().connections;
            thread.join().expect("no panic");
            let tally = world.census.tally();
            assert!(ended(&tally) >= there);
            assert_eq!(tally.connections, 0);
        },
        None,
    );
}

/// It is there, and nothing that is waited for; what it leaves behind is.
#[test]
fn a_detached_connection_is_left_behind() {
    shuttle::check_dfs(
        || {
            let world = World::new();
            world.census.begin();
            world.census.join(1, 1);
            world.census.join(2, 2);
            assert!(world.census.detach(1));
            assert!(!world.census.detach(1), "it was");
            assert!(world.census.is_detached(1) && !world.census.is_detached(2));
            let thread = spawn(&world, |world| {
                world.census.count_guard();
                world.census.leave(1, Outcome::Forced);
                world.census.leave(2, Outcome::Forced);
                world.held.store(false, SeqCst);
                world.census.release_guard();
            });
            match world.census.left() {
                Left::Awaited => {}
                left => {
                    assert!(
                        !world.held.load(SeqCst),
                        "the other, or the guard, is there"
                    );
                    assert_eq!(left, Left::Nothing, "it went before the guard");
                }
            }
            thread.join().expect("no panic");
            let tally = world.census.tally();
            assert_eq!(tally.ended(Outcome::Detached), 1);
            assert_eq!(tally.ended(Outcome::Forced), 1);
        },
        None,
    );
}

#[test]
fn detached_ones_alone_are_told_from_nothing() {
    shuttle::check_dfs(
        || {
            let census = Census::new();
            assert_eq!(census.left(), Left::Nothing);
            census.join(3, 3);
            assert!(census.detach(3));
            assert_eq!(census.left(), Left::Detached);
            census.count_guard();
            assert_eq!(census.left(), Left::Awaited);
            assert!(census.release_guard(), "the last");
            census.leave(3, Outcome::Idle);
            assert_eq!(census.left(), Left::Nothing);
        },
        None,
    );
}

// ===== who is there =====

#[test]
fn finds_who_is_there() {
    shuttle::check_dfs(
        || {
            let census = Census::new();
            let ids: Vec<_> = (0..9).map(|_| census.next_id()).collect();
            for id in &ids {
                census.join(*id, id * 10);
            }
            assert_eq!(census.accepted(), 9);
            let gone = census.leave(5, Outcome::Left).expect("it was there");
            assert_eq!((gone.member, gone.last), (50, false));
            assert_eq!(census.connections(), 8);
            assert_eq!(census.connection(5), None);
            assert!(!census.has(5) && census.has(6));
            assert_eq!(census.connection(6), Some(60));
            assert_eq!(census.in_order(), [10, 20, 30, 40, 60, 70, 80, 90]);
            let sum = AtomicU64::new(0);
            census.each_connection(|n| _ = sum.fetch_add(*n, SeqCst));
            assert_eq!(sum.into_inner(), 400);
            assert_eq!(ended(&census.tally()), 0, "nobody asked for it");

            let id = census.next_listener();
            census.open(id, 7);
            assert_eq!(census.listener(id), Some(7));
            assert_eq!(census.listeners(), [(id, 7)]);
            assert_eq!(census.close(id), Some(7));
            assert_eq!(census.close(id), None, "that was known");
            assert_eq!(census.guards(), 0);
        },
        None,
    );
}

/// A newcomer is counted first, and looks at the phase then; the driver raises it first, and looks at who is there then (invariant 2). So
/// either sees the other: a connection that comes as the drain begins, or as the end is told, is told. Seen to fail where the newcomer looks
/// first.
#[test]
fn whoever_comes_sees_the_phase_or_is_seen() {
    for thing in [Thing::Listener, Thing::EvenConnection, Thing::OddConnection] {
        shuttle::check_dfs(
            move || {
                let world = World::new();
                let raised = Arc::new(AtomicBool::new(false));
                let sees = Arc::clone(&raised);
                let comes = spawn(&world, move |world| {
                    world.count_in(thing, 1);
                    sees.load(SeqCst)
                });
                raised.store(true, SeqCst);
                let census = &world.census;
                let mut known = census.in_order();
                known.extend(census.listeners().into_iter().map(|(_, n)| n));
                // As it walks at the end.
                let walked = AtomicU64::new(0);
                census.each_connection(|n| _ = walked.fetch_add(*n, SeqCst));
                let saw = comes.join().expect("no panic");
                let was_walked = thing == Thing::Listener || walked.into_inner() % 2 == 1;
                assert!(saw || known.contains(&1) && was_walked, "{thing:?}");
            },
            None,
        );
    }
}

/// The test `a_request_touches_nothing_shared` of that feature leans on it.
#[cfg(feature = "serve")]
#[test]
fn nobody_comes_or_goes_while_it_is_held() {
    shuttle::check_dfs(
        || {
            let world = World::new();
            let held = world.census.hold();
            let thread = spawn(&world, |world| {
                world.census.join(1, 1);
                world.held.store(false, SeqCst);
            });
            thread::yield_now();
            assert!(world.held.load(SeqCst));
            drop(held);
            thread.join().expect("no panic");
        },
        None,
    );
}

// ===== helpers =====

fn spawn<T: Send + 'static>(
    world: &Arc<World>,
    f: impl FnOnce(&World) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let world = Arc::clone(world);
    thread::spawn(move || f(&world))
}

fn ended(tally: &census::Tally) -> usize {
    Outcome::ALL
        .into_iter()
        .map(|outcome| tally.ended(outcome))
        .sum()
}
