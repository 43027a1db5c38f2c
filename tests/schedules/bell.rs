//! The driver sleeps until it is asked for something, and nothing that it was asked for is forgotten.
//!
//! Seen to fail with `src/driver/agenda.rs` changed in each of these ways:
//!
//! - `sleep` does not look at what was asked for since the driver took the last: it sleeps over it.
//! - `remind` does not ring, or forgets until when that lets the driver sleep.
//! - `wake` rings without saying why, or does not ring.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool as Ghost, Ordering::SeqCst};
use std::time::Duration;

use shuttle::thread;

use crate::clock::{Clock, Moment};
use crate::driver::agenda::{Agenda, Reminder};

#[derive(Clone, Copy, Debug)]
enum Ask {
    Remind(u64),
    Linger(u64),
    /// Without a word of what for: the driver looks.
    Wake,
}

struct World {
    agenda: Agenda,
    clock: Clock,
    /// What the driver looks for when it is woken.
    changed: Ghost,
}

fn world() -> Arc<World> {
    Arc::new(World {
        agenda: Agenda::new(),
        clock: Clock::standing(),
        changed: Ghost::new(false),
    })
}

impl World {
    fn ask(&self, what: Ask) {
        match what {
            Ask::Remind(id) => self.agenda.remind(Moment::START, Reminder::Connection(id)),
            Ask::Linger(id) => self.agenda.linger(id, Duration::ZERO),
            Ask::Wake => {
                self.changed.store(true, SeqCst);
                self.agenda.wake();
            }
        }
    }

    /// As the driver does: takes what it was asked for, looks, and sleeps.
    fn drive(&self, all: &[Ask]) {
        let mut left: BTreeSet<u64> = all.iter().filter_map(number).collect();
        let wakes = all.iter().any(|it| number(it).is_none());
        loop {
            let asked = self.agenda.take();
            for (_, whom) in asked.due {
                let Reminder::Connection(id) = whom else {
                    panic!("nobody asked for {whom:?}");
                };
                assert!(left.remove(&id), "{id} twice");
            }
            for (id, _) in asked.lingering {
                assert!(left.remove(&id), "{id} twice");
            }
            if left.is_empty() && (!wakes || self.changed.load(SeqCst)) {
                return;
            }
            self.agenda.sleep(Moment::NEVER, &self.clock);
        }
    }
}

fn number(ask: &Ask) -> Option<u64> {
    match ask {
        Ask::Remind(id) | Ask::Linger(id) => Some(*id),
        Ask::Wake => None,
    }
}

fn drive_beside(threads: &[&'static [Ask]]) {
    let world = world();
    let asking: Vec<_> = threads
        .iter()
        .map(|asks| {
            let (world, asks) = (Arc::clone(&world), *asks);
            thread::spawn(move || asks.iter().for_each(|ask| world.ask(*ask)))
        })
        .collect();
    world.drive(&threads.concat());
    for thread in asking {
        thread.join().expect("no panic");
    }
}

/// One after the other, in every order.
#[test]
fn nothing_that_is_asked_for_is_slept_over() {
    let all: [&'static [Ask]; 6] = [
        &[Ask::Remind(1), Ask::Remind(2)],
        &[Ask::Remind(1), Ask::Linger(2)],
        &[Ask::Linger(1), Ask::Remind(2)],
        &[Ask::Wake, Ask::Remind(2)],
        &[Ask::Remind(1), Ask::Wake],
        &[Ask::Linger(1), Ask::Wake],
    ];
    for asks in all {
        shuttle::check_dfs(move || drive_beside(&[asks]), None);
    }
}

/// Three at once, in many.
#[test]
fn nor_is_what_several_ask_for_at_once() {
    let all = || {
        drive_beside(&[
            &[Ask::Remind(1), Ask::Linger(2)],
            &[Ask::Wake, Ask::Remind(3)],
            &[Ask::Linger(4), Ask::Remind(5)],
        ]);
    };
    shuttle::check_pct(all, 2_000, 3);
}
