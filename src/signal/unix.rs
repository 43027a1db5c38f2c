//! Signals of Unix: a pipe to wait at, a pair of handlers that stay, and what `/proc` knows.

use std::ffi::c_int;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use signal_hook::{flag, low_level};

pub(super) type Signal = c_int;

const SIGNALS: [Signal; 2] = [SIGINT, SIGTERM];

pub(super) fn name(signal: Signal) -> &'static str {
    low_level::signal_name(signal).unwrap_or("a signal")
}

/// Where signals, and wakes, are waited for.
pub(super) struct Source {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    bell: Arc<Bell>,
}

impl Source {
    /// Signals are kept for [`wait`](Self::wait) from here on; the waker ends a wait as well.
    pub(super) fn open(defaults: &mut Defaults) -> io::Result<(Self, Waker)> {
        let (read, write) = UnixStream::pair()?;
        let ringer = write.try_clone()?;
        // If it is full, who waits there wakes up anyway.
        ringer.set_nonblocking(true)?;
        // First, as handlers are called in the order in which they came.
        defaults.install()?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, SIGNALS)?;
        let bell = Arc::new(Bell(Mutex::new(Some(ringer))));
        let waker = Waker::from(Arc::clone(&bell));
        Ok((Self { delivery, bell }, waker))
    }

    /// Those that have come; none if it was woken, or patience is over.
    pub(super) fn wait(&mut self, patience: Option<Duration>) -> io::Result<Vec<Signal>> {
        let mut read = self.delivery.get_read();
        read.set_read_timeout(patience)?;
        match read.read(&mut [0; 64]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) => match e.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return Err(e),
            },
        }
        Ok(self.delivery.pending().collect())
    }

    /// Gives those that have come and were not waited for.
    pub(super) fn close(mut self) -> Vec<Signal> {
        // A wake that comes late must not write where nobody reads: SIGPIPE may not be ignored.
        drop(self.bell.0.lock().take());
        // It looks only when it is asked, and by then no handler is at work that knows of it: what
        // was on its way when the handlers were taken out is in there.
        let left = self.delivery.pending();
        // Nor must a handler: it closes this end before it takes them out.
        let read = self.delivery.get_read().try_clone();
        drop(self.delivery);
        drop(read);
        left.collect()
    }
}

struct Bell(Mutex<Option<UnixStream>>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(mut pipe) = self.0.lock().as_ref() {
            let _ = pipe.write(&[0]);
        }
    }
}

/// Handlers that give the signals their default effect while nobody listens. They stay: the registry
/// never puts back what was there before its first handler, so a signal would do nothing at all.
pub(super) struct Defaults {
    nobody_listens: Arc<AtomicBool>,
    /// Those for which there was no other handler before ours. None until they are installed.
    ours: Option<Vec<Signal>>,
}

impl Defaults {
    pub(super) fn new() -> Self {
        Self {
            nobody_listens: Arc::new(AtomicBool::new(true)),
            ours: None,
        }
    }

    fn install(&mut self) -> io::Result<()> {
        if self.ours.is_some() {
            return Ok(());
        }
        // Who handles it already would not expect us to end the process.
        let caught = fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|status| mask(&status, "SigCgt:"))
            .unwrap_or(0);
        let ours: Vec<_> = SIGNALS
            .into_iter()
            .filter(|signal| caught & bit(*signal) == 0)
            .collect();
        for signal in &ours {
            let nobody_listens = Arc::clone(&self.nobody_listens);
            if is_init() {
                flag::register_conditional_shutdown(*signal, status(*signal), nobody_listens)?;
            } else {
                flag::register_conditional_default(*signal, nobody_listens)?;
            }
        }
        self.ours = Some(ours);
        Ok(())
    }

    /// Somebody listens.
    pub(super) fn suspend(&self) {
        self.nobody_listens.store(false, SeqCst);
    }

    pub(super) fn resume(&self) {
        self.nobody_listens.store(true, SeqCst);
    }

    /// As if nobody had listened.
    pub(super) fn have_effect(&self, signal: Signal) {
        if !self.ours.as_ref().is_some_and(|it| it.contains(&signal)) {
            return;
        }
        if is_init() {
            low_level::exit(status(signal));
        }
        let _ = low_level::emulate_default_handler(signal); // known to it, as it was registered
    }
}

/// Whether this is a container's first process, which no signal ends that has no handler: there is no
/// default effect to be had, and to try aborts.
fn is_init() -> bool {
    process::id() == 1
}

/// What a shell says of a process that was ended by a signal.
fn status(signal: Signal) -> c_int {
    128 + signal
}

/// An error if one of the signals would never be heard.
pub(super) fn check_unblocked() -> io::Result<()> {
    // Nothing is known where there is no such directory.
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    let masks = threads.filter_map(|thread| {
        let status = fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
        mask(&status, "SigBlk:")
    });
    let blocked = blocked_in_all(masks);
    if blocked.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = blocked.into_iter().map(name).collect();
    Err(io::Error::other(format!(
        "{} blocked in all threads of this process and would never be heard; a process inherits \
         that from whoever starts it",
        match &names[..] {
            [one] => format!("{one} is"),
            _ => format!("{} are", names.join(" and ")),
        }
    )))
}

/// Looks at no more masks than it must: mostly at one.
fn blocked_in_all(masks: impl Iterator<Item = u128>) -> Vec<Signal> {
    let mut blocked = Vec::new();
    for (n, mask) in masks.enumerate() {
        if n == 0 {
            blocked.extend(SIGNALS);
        }
        blocked.retain(|signal| mask & bit(*signal) != 0);
        if blocked.is_empty() {
            break;
        }
    }
    blocked
}

fn bit(signal: Signal) -> u128 {
    1 << (signal - 1)
}

/// See `proc_pid_status(5)`.
fn mask(status: &str, field: &str) -> Option<u128> {
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    u128::from_str_radix(value.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_masks() {
        let status = "Name:\tx\nSigBlk:\t0000000000004000\nSigCgt:\t00000001800004fa\n";
        assert_eq!(mask(status, "SigBlk:"), Some(bit(SIGTERM)));
        assert_eq!(mask(status, "SigCgt:").map(|it| it & bit(SIGINT)), Some(2));
        assert_eq!(mask(status, "SigIgn:"), None);
    }

    #[test]
    fn blocked_is_what_no_thread_hears() {
        let (int, term) = (bit(SIGINT), bit(SIGTERM));
        let blocked = |masks: &[u128]| blocked_in_all(masks.iter().copied());
        assert!(blocked(&[]).is_empty());
        assert_eq!(blocked(&[int | term]), SIGNALS);
        assert_eq!(blocked(&[int | term, term]), [SIGTERM]);
        assert!(blocked(&[term, int]).is_empty());
    }
}
