//! Starting other processes, and tests beside which none may be.
//!
//! Until it runs its program, a child holds a copy of each descriptor of the process that starts it. A listener that is
//! closed in that moment goes on listening: its address is in use, and whoever connects gets in, to be reset.

use std::io;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard};
use std::thread;

/// Held for writing while a process is started. It guards nothing, so poison is no matter.
static STARTS: RwLock<()> = RwLock::new(());

/// See [`no_starts`].
pub struct NoStarts(#[allow(dead_code, reason = "held")] RwLockReadGuard<'static, ()>);

/// While it is held, no process is started: for tests that look at what a listener does to others as it closes. They can't
/// start any themselves.
#[must_use]
pub fn no_starts() -> NoStarts {
    NoStarts(STARTS.read().unwrap_or_else(PoisonError::into_inner))
}

/// Where this variable is set, processes are started all the time that they may be: a test that should hold [`no_starts`],
/// and does not, fails then.
const BESET: &str = "HTTP_TERMINATOR_TEST_STARTS";

/// See [`BESET`].
pub fn beset() {
    static ONCE: Once = Once::new();
    if std::env::var_os(BESET).is_some() {
        ONCE.call_once(|| {
            thread::spawn(|| while Command::new("true").run().is_ok() {});
        });
    }
}

/// What [`Command`] does, but not beside [`no_starts`].
pub trait Start {
    /// As [`Command::spawn`].
    fn start(&mut self) -> io::Result<Child>;
    /// As [`Command::status`].
    fn run(&mut self) -> io::Result<ExitStatus>;
    /// As [`Command::output`].
    fn read(&mut self) -> io::Result<Output>;
}

impl Start for Command {
    fn start(&mut self) -> io::Result<Child> {
        let _alone = STARTS.write().unwrap_or_else(PoisonError::into_inner);
        self.spawn()
    }

    fn run(&mut self) -> io::Result<ExitStatus> {
        self.start()?.wait()
    }

    fn read(&mut self) -> io::Result<Output> {
        self.stdin(Stdio::null()).stdout(Stdio::piped());
        self.stderr(Stdio::piped()).start()?.wait_with_output()
    }
}
