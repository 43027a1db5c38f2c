//! How much time other work takes from this process: what a bound in milliseconds must allow for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

/// For how long other work has kept this process from its time, in all during the last `time`: how much
/// later than it should a thread has been woken that sleeps 5 ms at a time, just as the driver does when it
/// forces, or how long a driver stood there without a core, whichever is more. Next to nothing on a machine
/// that is idle. Whose driver that was is not known: where tests run side by side a neighbour's counts too, and a
/// bound is wider than it had to be. What is to be exact runs alone.
pub fn stolen_in_the_last(time: Duration) -> Duration {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Where the whole process stood still, who asks may be on its feet before the one that looks.
    let under_way = seen.napping.map(|begin| begin.elapsed());
    let under_way = under_way.unwrap_or_default().saturating_sub(NAP);
    let stolen = seen.stolen.iter().rev();
    stolen
        .take_while(|(at, _)| at.elapsed() <= time)
        .map(|(_, by)| *by)
        .sum::<Duration>()
        + under_way.min(time)
}

/// How long this thread has waited for a core since it began. Nothing where the kernel does not tell.
pub fn waited_for_a_core() -> Duration {
    waited(Path::new("/proc/thread-self"))
}

/// Begins to look, so that later calls have something to tell.
pub fn watch_load() {
    LazyLock::force(&SEEN);
}

/// Holds up the one that looks: it opens files, and who counts descriptors is not to count those.
pub fn undisturbed() -> MutexGuard<'static, ()> {
    LOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held for writing by tests that keep the processors busy, for reading by those that measure. It guards nothing, so
/// poison is no matter.
pub static LOAD: RwLock<()> = RwLock::new(());

static LOOKS: Mutex<()> = Mutex::new(());

const NAP: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Seen {
    /// When, and for how long.
    stolen: Vec<(Instant, Duration)>,
    /// Since when the one that looks has slept.
    napping: Option<Instant>,
}

static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(|| {
    thread::spawn(|| {
        let mut drivers = Drivers::default();
        let mut begin = Instant::now();
        loop {
            thread::sleep(NAP);
            let by = begin.elapsed().saturating_sub(NAP);
            let looks = undisturbed();
            let by = by.max(drivers.waited());
            drop(looks);
            let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
            begin = Instant::now();
            seen.stolen.push((begin, by));
            seen.napping = Some(begin);
        }
    });
    Mutex::default()
});

/// The threads of the crate, and how long each had waited when they were last looked at.
#[derive(Default)]
struct Drivers {
    looks: usize,
    waited: HashMap<PathBuf, Duration>,
}

impl Drivers {
    /// For how long since the last call, the one that waited longest.
    fn waited(&mut self) -> Duration {
        if self.looks % 10 == 0 {
            self.look();
        }
        self.looks += 1;
        let longer = self.waited.iter_mut().map(|(thread, before)| {
            let now = waited(thread);
            now.saturating_sub(std::mem::replace(before, now))
        });
        longer.max().unwrap_or_default()
    }

    fn look(&mut self) {
        let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
        let of_the_crate = threads.filter_map(|it| {
            let thread = it.ok()?.path();
            let name = std::fs::read_to_string(thread.join("comm")).ok()?;
            name.starts_with("http-terminator").then_some(thread)
        });
        let first = self.looks == 0;
        let before = std::mem::take(&mut self.waited);
        self.waited = of_the_crate
            .map(|thread| {
                // One that is new has waited for all it has waited since the last look; at the first, who knows.
                let known = before.get(&thread).copied();
                let known = known.unwrap_or_else(|| {
                    if first {
                        waited(&thread)
                    } else {
                        Duration::ZERO
                    }
                });
                (thread, known)
            })
            .collect();
    }
}

fn waited(thread: &Path) -> Duration {
    let told = std::fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    let nanos = told
        .split_whitespace()
        .nth(1)
        .and_then(|it| it.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
