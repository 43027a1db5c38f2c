//! How much time other work takes from this process: what a bound in milliseconds must allow for.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How much later than it should a thread has been woken, in all during the last `time`, that sleeps
/// 5 ms at a time, just as the driver does when it forces. Next to nothing on a machine that is idle.
pub fn stolen_in_the_last(time: Duration) -> Duration {
    let overslept = OVERSLEPT.lock().unwrap_or_else(PoisonError::into_inner);
    overslept
        .iter()
        .filter(|(at, _)| at.elapsed() <= time)
        .map(|(_, by)| *by)
        .sum()
}

/// Begins to look, so that later calls have something to tell.
pub fn watch_load() {
    LazyLock::force(&OVERSLEPT);
}

static OVERSLEPT: LazyLock<Mutex<Vec<(Instant, Duration)>>> = LazyLock::new(|| {
    thread::spawn(|| {
        const NAP: Duration = Duration::from_millis(5);
        loop {
            let begin = Instant::now();
            thread::sleep(NAP);
            let by = begin.elapsed().saturating_sub(NAP);
            let mut overslept = OVERSLEPT.lock().unwrap_or_else(PoisonError::into_inner);
            overslept.push((Instant::now(), by));
        }
    });
    Mutex::default()
});
