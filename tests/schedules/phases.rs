//! Whoever waits for a phase learns of it, however it is polled.
//!
//! Seen to fail with these changes:
//!
//! - `src/level.rs`: it looks before it registers, and not after; or does not register anew with another waker.
//! - `src/level.rs`: dropped, it goes on waiting.
//! - `src/phase.rs`: `raise` looks, and then stores.
//! - `src/driver/waiters.rs`: `take_all` leaves out who waits for an earlier phase.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use shuttle::future::block_on;
use shuttle::thread;

use crate::driver::waiters::Waiters;
use crate::level::{Level, Reached};
use crate::phase::{Phase, RisingPhase};

struct World {
    phase: RisingPhase,
    waiters: Waiters,
}

/// As `Reached` of `src/termination.rs`.
struct Awaited(Arc<World>, Phase);

impl Level for Awaited {
    fn is_reached(&self) -> bool {
        self.0.phase.get() >= self.1
    }

    fn wait(&self, n: Option<u64>, waker: Waker) -> u64 {
        let n = n.unwrap_or_else(|| self.0.waiters.number());
        self.0.waiters.wait_for(self.1, n, waker);
        n
    }

    fn stop_waiting(&self, n: u64) {
        drop(self.0.waiters.take(n));
    }
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: RisingPhase::new(),
            waiters: Waiters::new(),
        })
    }

    fn waits_for(self: &Arc<Self>, phase: Phase) -> Reached<Awaited> {
        Reached::new(Awaited(Arc::clone(self), phase))
    }

    /// As the driver does.
    fn raise(&self, phase: Phase) {
        self.phase.raise(phase);
        for waker in self.waiters.take_all(phase) {
            waker.wake();
        }
    }
}

/// As the driver does, and whoever forces meanwhile.
#[test]
fn a_phase_that_two_raise_never_falls() {
    let all = || {
        let world = World::new();
        let other = Arc::clone(&world);
        let forces = thread::spawn(move || other.raise(Phase::Forcing));
        world.raise(Phase::Draining);
        forces.join().expect("no panic");
        assert_eq!(world.phase.get(), Phase::Forcing);
    };
    shuttle::check_dfs(all, None);
}

#[test]
fn a_phase_that_is_waited_for_is_heard_of() {
    let all = || {
        let world = World::new();
        let waits = [Phase::LameDuck, Phase::Forcing].map(|phase| {
            let reached = world.waits_for(phase);
            thread::spawn(move || block_on(reached))
        });
        world.raise(Phase::LameDuck);
        world.raise(Phase::Terminated);
        for thread in waits {
            thread.join().expect("no panic");
        }
    };
    shuttle::check_pct(all, 2_000, 3);
}

/// It was polled by somebody else before, whose waker is of no use any more.
#[test]
fn a_future_that_was_handed_over_wakes_who_has_it() {
    let all = || {
        let world = World::new();
        let mut reached = world.waits_for(Phase::Draining);
        let other = Arc::clone(&world);
        let driver = thread::spawn(move || other.raise(Phase::Draining));
        let mut nobody = Context::from_waker(Waker::noop());
        if pin!(&mut reached).poll(&mut nobody) == Poll::Pending {
            block_on(reached);
        }
        driver.join().expect("no panic");
    };
    shuttle::check_dfs(all, None);
}

#[test]
fn nothing_is_left_of_who_has_gone() {
    let all = || {
        let world = World::new();
        let reached = world.waits_for(Phase::Draining);
        let waits = thread::spawn(move || {
            let mut reached = pin!(reached);
            let mut nobody = Context::from_waker(Waker::noop());
            let _ = reached.as_mut().poll(&mut nobody);
        });
        world.raise(Phase::LameDuck);
        waits.join().expect("no panic");
        assert!(world.waiters.take_all(Phase::Terminated).is_empty());
    };
    shuttle::check_dfs(all, None);
}
