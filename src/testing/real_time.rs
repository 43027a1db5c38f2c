//! Time that goes on while something is waited for that has the system's clock.

use std::cell::Cell;
use std::hint;
use std::thread::{self, ThreadId};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::time;

/// Lets tokio's time run while the future does, and pauses it again behind it, if it is paused: in a
/// `#[tokio::test(start_paused = true)]`, or after `tokio::time::pause`.
///
/// A termination is driven by a plain thread and the system's clock. A runtime whose time is paused and whose tasks all
/// wait takes itself for idle meanwhile, and jumps to its next timer, so that `timeout(bound, terminator.terminate())`
/// has run out before anything has happened, and handlers that sleep, and a bound on half a request, are through at
/// once. Inside of this all of them take the time that they say.
///
/// Several of them at once, or inside one another, are one: time is paused again when the last one ends. Where time is not
/// paused, and outside of tokio, it is the future and nothing else. What is inside must neither pause nor resume time.
///
/// [`Probe::through`](super::Probe::through) does this by itself.
///
/// # Cancel safety
///
/// As the future's. When this is dropped, time is paused again.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use http_terminator::{Terminator, testing};
/// use tokio::time::timeout;
///
/// #[tokio::main(flavor = "current_thread", start_paused = true)]
/// async fn main() {
///     let terminator = Terminator::new();
///     let ended = testing::real_time(timeout(Duration::from_secs(9), terminator.terminate()));
///     assert!(ended.await.expect("in time").is_clean());
/// }
/// ```
pub async fn real_time<F: Future>(future: F) -> F::Output {
    let _running = Running::begin();
    future.await
}

/// Not by a blocking task, which keeps a runtime from jumping as well: paused time stands still under one, and
/// no timer ever fires.
struct Running {
    /// The thread of the runtime, which has one only if its time can be paused.
    on: Option<ThreadId>,
}

impl Running {
    fn begin() -> Self {
        let others = OTHERS.get();
        if others == 0 && !is_paused() {
            return Self { on: None };
        }
        if others == 0 {
            time::resume();
        }
        OTHERS.set(others + 1);
        Self {
            on: Some(thread::current().id()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // On another thread there is no time that was paused.
        if self.on != Some(thread::current().id()) {
            return;
        }
        let others = OTHERS.get().saturating_sub(1);
        OTHERS.set(others);
        // It may be dropped behind its runtime.
        if others == 0 && Handle::try_current().is_ok() && !is_paused() {
            time::pause();
        }
    }
}

thread_local! {
    /// How many of them run on this thread's runtime.
    static OTHERS: Cell<usize> = const { Cell::new(0) };
}

/// tokio does not tell; but its clock stands while the system's moves.
fn is_paused() -> bool {
    let (tokio, system) = (time::Instant::now(), Instant::now());
    while Instant::now() == system {
        hint::spin_loop();
    }
    time::Instant::now() == tokio
}
