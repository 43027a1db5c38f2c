//! What threads may do at once, done in every order, or in many: parts of the crate compiled over shuttle's locks and
//! atomics. A wake-up that is lost leaves a thread asleep, which is a deadlock to shuttle.
//!
//! Each module says with which changes to the crate it was seen to fail.

mod bell;
mod phases;
mod who_is_left;

// ===== what is tested, and what that leans on =====

#[path = "../../src/census.rs"]
mod census;
#[path = "../../src/clock.rs"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod clock;
#[path = "../../src/connection"]
mod connection {
    #[allow(dead_code, reason = "not all of it is asked here")]
    mod fate;
    #[allow(dead_code, reason = "not all of it is asked here")]
    mod poller;
    #[path = "../../tests/schedules/told.rs"]
    mod told;
}
#[path = "../../src/driver"]
mod driver {
    #[allow(dead_code, reason = "not all of it is asked here")]
    pub(crate) mod agenda;
    /// In place of the real one, of which a waker here needs nothing.
    mod foreign {
        pub(super) fn call(f: impl FnOnce()) {
            f();
        }
    }
    #[allow(dead_code, reason = "not all of it is asked here")]
    pub(crate) mod waiters;
}
#[path = "../../src/level.rs"]
mod level;
#[path = "../../src/phase.rs"]
#[allow(dead_code, unreachable_pub, reason = "written for a library")]
mod phase;
mod registry {
    pub(crate) use crate::census::Outcome;
}

/// In place of those of `src/sync.rs`.
mod sync {
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};
    use shuttle::sync::{self, MutexGuard};

    pub(crate) fn run(test: impl Fn() + Send + Sync + 'static) {
        shuttle::check_dfs(test, None);
    }

    #[derive(Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    /// Empty while it waits.
    pub(crate) struct Guard<'a, T>(Option<MutexGuard<'a, T>>);

    #[derive(Default)]
    pub(crate) struct Condvar(sync::Condvar);

    const HELD: &str = "it waits for nothing";
    const SOUND: &str = "nobody panics under it";

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> Guard<'_, T> {
            Guard(Some(self.0.lock().expect(SOUND)))
        }

        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().expect(SOUND)
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().expect(HELD)
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect(HELD)
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn wait<T>(&self, guard: &mut Guard<'_, T>) {
            let held = guard.0.take().expect(HELD);
            guard.0 = Some(self.0.wait(held).expect(SOUND));
        }

        /// Time stands still here: only what would wait for ever is asked.
        pub(crate) fn wait_for<T>(&self, guard: &mut Guard<'_, T>, _: Duration) {
            self.wait(guard);
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}
