//! For tests that stand outside of all runtimes: waiting on plain threads, figures, and processes
//! of their own for what belongs to a whole process (its logger, its limits, its descriptors).

use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::runtime::{self, Runtime};

use super::load::{stolen_in_the_last, undisturbed, watch_load};
use super::program::signal;
use super::starts::Start;
use super::{BOUND, ReadEnd};
use http_terminator::Report;

/// From the deadline to the end of everything (G10, G11). Measured and printed; what fails a test is
/// [`LATE`], as the machine may have other work.
pub const PROMISED: Duration = Duration::from_millis(150);

/// From the deadline to the end, on a machine that has other work.
pub const LATE: Duration = Duration::from_millis(400);

/// What ends before its deadline ends long before.
pub const SOON: Duration = Duration::from_secs(1);

/// For deadlines that are not to be reached.
pub const FAR: Duration = Duration::from_secs(30);

// ===== waiting =====

/// Polls `f` on this thread, which needs no runtime, and panics with `what` after `bound`.
#[track_caller]
pub fn block_on<F: Future>(bound: Duration, what: &str, f: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut f = pin!(f);
    let begin = Instant::now();
    loop {
        if let Poll::Ready(output) = f.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let left = bound.saturating_sub(begin.elapsed());
        assert!(!left.is_zero(), "not within {bound:?}: {what}");
        thread::park_timeout(left);
    }
}

/// Runs `f` on a thread of its own and panics with `what` if that is not through in time: for what
/// may block for ever.
#[track_caller]
pub fn in_time<T: Send + 'static>(
    bound: Duration,
    what: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        let value = f();
        let _ = tell.send(()); // nobody waits any more
        value
    });
    match told.recv_timeout(bound) {
        Err(RecvTimeoutError::Timeout) => panic!("not within {bound:?}: {what}"),
        _ => match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

/// Prints how long something took and panics if that is more than `bound`, what other work has taken
/// from this process aside.
#[track_caller]
pub fn measured(took: Duration, bound: Duration, what: &str) {
    let stolen = stolen_in_the_last(took.max(SOON));
    println!("measured: {what}: {took:.1?} (bound {bound:.1?}, stolen {stolen:.1?})");
    assert!(
        took <= bound + stolen,
        "{what}: {took:.1?}, not {bound:.1?}"
    );
}

/// [`measured`] for what is to be over at the deadline of a termination that began then, and not before.
#[track_caller]
pub fn at_deadline(begin: Instant, grace: Duration, what: &str) {
    let took = begin.elapsed();
    // Both sides read the same clock, but not at the same moment.
    let early = grace.saturating_sub(Duration::from_millis(5));
    assert!(
        took >= early,
        "{what}: {took:.1?}, before the deadline of {grace:?}"
    );
    let after = took.saturating_sub(grace);
    measured(after, LATE, &format!("{what}, after the deadline"));
}

/// That all was over as soon after the deadline as is promised, by the driver's own clock: nothing else that
/// this process does counts, only what other work has taken from it.
#[track_caller]
pub fn promised(report: &Report, grace: Duration) {
    let after = (report.draining + report.forcing).saturating_sub(grace);
    let stolen = stolen_in_the_last(SOON);
    assert!(
        after <= PROMISED + stolen,
        "{after:.1?} after the deadline, not {PROMISED:?}, and {stolen:.1?} stolen: {report:?}"
    );
}

/// Whether a connection has ended, one way or another.
pub fn ended(end: ReadEnd) -> bool {
    matches!(
        end,
        ReadEnd::Eof | ReadEnd::Truncated | ReadEnd::NoCloseNotify | ReadEnd::Reset
    )
}

/// How many file descriptors this process has. Linux only.
pub fn descriptors() -> usize {
    let _undisturbed = undisturbed();
    let all = std::fs::read_dir("/proc/self/fd").expect("Linux has this directory");
    all.count()
}

// ===== a runtime =====

/// A runtime to which this thread does not belong. Dropped, it is left behind with all that blocks.
pub struct Host(Option<Runtime>);

impl Host {
    pub fn workers(n: usize) -> Self {
        watch_load();
        let built = runtime::Builder::new_multi_thread()
            .worker_threads(n)
            .enable_all()
            .build();
        Self(Some(built.expect("a runtime can be made")))
    }

    pub fn current_thread() -> Self {
        watch_load();
        let built = runtime::Builder::new_current_thread().enable_all().build();
        Self(Some(built.expect("a runtime can be made")))
    }
}

impl std::ops::Deref for Host {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0.as_ref().expect("taken in `drop` only")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

// ===== a process of its own =====

/// The environment variable that tells a test that it runs in a process of its own.
pub const ALONE: &str = "HTTP_TERMINATOR_TEST_ALONE";

/// Whether this process was made by [`alone`] or [`Other`].
pub fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// What a test run is told to run one test, with what that prints. One in a module is named
/// `concat!(module_path!(), "::its_name")`: libtest leaves out the crate.
pub fn only(name: &str) -> [&str; 4] {
    let name = name.split_once("::").map_or(name, |(_, path)| path);
    ["--exact", name, "--nocapture", "--test-threads=1"]
}

/// Runs this test in a process of its own and passes on what it printed. False inside of that
/// process: then the test is to do its work.
///
/// `wrapper` is a command that runs the one that follows it, under a limit say.
#[track_caller]
pub fn alone(name: &str, wrapper: &[&str], bound: Duration) -> bool {
    if is_alone() {
        return false;
    }
    let mut other = Other::start(name, wrapper);
    let passed = other.wait(bound);
    let said = other.said();
    print!("{said}");
    match passed {
        None => panic!("{name} alone: not over within {bound:?}; it said:\n{said}"),
        Some(passed) => assert!(
            passed && said.contains("1 passed"),
            "{name} alone: it failed"
        ),
    }
    true
}

/// A test that runs in a process of its own. Dropped, it is killed.
pub struct Other {
    child: Child,
    lines: Receiver<String>,
    said: Arc<Mutex<String>>,
}

impl Other {
    pub fn start(name: &str, wrapper: &[&str]) -> Self {
        let this = std::env::current_exe().expect("this test");
        let mut command = match wrapper.split_first() {
            Some((first, more)) => {
                let mut command = Command::new(first);
                command.args(more).arg(this);
                command
            }
            None => Command::new(this),
        };
        command
            .args(only(name))
            .env(ALONE, "1")
            .stdin(Stdio::piped());
        Self::run(command)
    }

    /// Any other program.
    pub fn run(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.start();
        let mut child = child.unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        let (tell, lines) = mpsc::channel();
        let said = Arc::new(Mutex::new(String::new()));
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");
        for from in [
            Box::new(stdout) as Box<dyn Read + Send>,
            Box::new(stderr) as Box<dyn Read + Send>,
        ] {
            let (tell, said) = (tell.clone(), Arc::clone(&said));
            thread::spawn(move || {
                for line in BufReader::new(from).lines().map_while(Result::ok) {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    said.push_str(&line);
                    said.push('\n');
                    let _ = tell.send(line); // nobody listens
                }
            });
        }
        Self { child, lines, said }
    }

    /// The rest of the next line that begins so.
    #[track_caller]
    pub fn line(&self, prefix: &str) -> String {
        let begin = Instant::now();
        loop {
            let left = BOUND.saturating_sub(begin.elapsed());
            match self.lines.recv_timeout(left) {
                // libtest writes the test's name in front of its first line, and ends it not.
                Ok(line) => {
                    if let Some((_, rest)) = line.split_once(prefix) {
                        return rest.to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("it never said {prefix:?}, but:\n{}", self.said())
                }
            }
        }
    }

    /// Sends it SIGTERM.
    pub fn terminate(&self) {
        assert!(signal(self.child.id(), "TERM"), "it has ended");
    }

    /// Sends it a line.
    #[track_caller]
    pub fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{line}").expect("it listens");
    }

    /// Whether it ended well; `None` if it has not ended in time.
    pub fn wait(&mut self, bound: Duration) -> Option<bool> {
        let begin = Instant::now();
        loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => {
                    // What it wrote last is on its way through the threads, which end with it.
                    while self.lines.recv_timeout(Duration::from_secs(2)).is_ok() {}
                    return Some(status.success());
                }
                None if begin.elapsed() > bound => return None,
                None => thread::park_timeout(Duration::from_millis(5)),
            }
        }
    }

    pub fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}
