//! Tells systemd, or whoever else speaks `sd_notify(3)`, how far a terminator has come.
//!
//! Nothing in here waits: a datagram for which the other side has no room is not sent. What is said while it ends is
//! said by the driver, whose thread needs no runtime; `READY=1` by who polls the first listener.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use sd_notify::NotifyState;

use crate::clock::Moment;
use crate::driver::sequence::END;
use crate::phase::Phase;
use crate::registry::Registry;
use crate::report::Report;
use crate::terminator::Terminator;

impl Terminator {
    /// Tells systemd how far this has come, by the socket that `NOTIFY_SOCKET` in the environment names. False, and
    /// nothing is ever sent, if there is none: nobody has asked to be told.
    ///
    /// | when | what is sent |
    /// |---|---|
    /// | the first listener is polled for a connection | `READY=1` |
    /// | the termination begins, with its lame duck | `STOPPING=1` |
    /// | then, as each phase begins, and once a second | `STATUS=` the [`Stats`](crate::Stats) and the time left, `EXTEND_TIMEOUT_USEC=` |
    /// | the end | `STATUS=` the [`Report`], on one line |
    ///
    /// - It is ready when it accepts, not when it has bound: until somebody polls the listener, connections only queue.
    ///   A server that does not use a listener of this crate says `READY=1` by itself.
    /// - The time asked for never goes beyond the deadline and the 150 ms after it, in which all that is late is cut; while that is done it is a second, for the process to leave. It is a minute at most, so that a process
    ///   that hangs altogether is killed also if there is no deadline.
    /// - It works while runtimes are stalled, and holds nothing up: what can't be sent is said by one warning, and tried
    ///   again with the next message. No watchdog is fed: that your application is well only you can say.
    /// - To call it again changes nothing. What is said is of the whole service, so call it on one terminator: the one
    ///   whose traffic makes the service ready and stopping.
    ///
    /// The variable stays in the environment, so children of the process have it, too; with `NotifyAccess=main`, which
    /// comes with `Type=notify`, they are not heard. Unix only.
    ///
    /// # In the unit
    ///
    /// `Type=notify`. `TimeoutStopSec=` above lame duck and grace period, though the above makes up for one that is too short.
    /// `KillMode=mixed`, so that children are not sent the SIGTERM that this waits for, and are killed at the end. With a
    /// `.socket` unit the listener is systemd's, too: wrap it in [`Inherited`](crate::Inherited), and a restart refuses
    /// nobody. `examples/systemd` has both units. See `sd_notify(3)`, `systemd.service(5)`, `systemd.kill(5)`.
    ///
    /// # Errors
    ///
    /// If the variable names no socket that can be written to, or no socket can be made. The terminator is as it was.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # fn main() -> std::io::Result<()> {
    /// let terminator = Terminator::new();
    /// if !terminator.notify_systemd()? {
    ///     println!("not started by systemd, or not with Type=notify");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn notify_systemd(&self) -> io::Result<bool> {
        // An empty one is how a shell takes it away from one command.
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(false);
        };
        let manager = Manager::at(&name).map_err(|e| {
            let told = "nothing can be sent to the socket that NOTIFY_SOCKET names";
            let help = "run this as a unit of Type=notify, or without that variable";
            io::Error::new(e.kind(), format!("{told}, {name:?}: {e}; {help}"))
        })?;
        let registry = self.registry();
        registry.notices.say_ready(registry, |inner| {
            inner.manager.get_or_insert(manager);
        });
        Ok(true)
    }
}

/// What there is to tell, and what was told.
#[derive(Default)]
pub(crate) struct Notices(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    manager: Option<Manager>,
    /// A listener is polled.
    accepts: bool,
    told: Told,
    /// It is logged that something could not be sent.
    failed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    #[default]
    Nothing,
    /// There was no room for it; somebody tries again.
    AlmostReady,
    Ready,
    Stopping,
}

impl Notices {
    pub(crate) fn accepts(&self, registry: &Arc<Registry>) {
        self.say_ready(registry, |inner| inner.accepts = true);
    }

    fn say_ready(&self, registry: &Arc<Registry>, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.0.lock();
        change(&mut inner);
        let sent = inner.say_ready(registry);
        let retries = sent.is_err() && inner.told == Told::AlmostReady;
        // Nothing is logged or started under the lock: that may happen on this very thread.
        drop(inner);
        log(registry, sent);
        if retries {
            self.retry(registry);
        }
    }

    /// Without this one the service never starts, and there may soon be room. On a thread of its own, as others
    /// have more to do.
    fn retry(&self, registry: &Arc<Registry>) {
        let again = Arc::downgrade(registry);
        let thread = thread::Builder::new().name("http-terminator-notify".to_owned());
        let started = thread.spawn(move || {
            for n in 0.. {
                // Often at first, and then for as long as it serves.
                thread::sleep(if n < OFTEN { PAUSE } else { EVERY });
                // Nobody serves any more, or may.
                let Some(registry) = again.upgrade() else {
                    return;
                };
                let mut inner = registry.notices.0.lock();
                if inner.told > Told::AlmostReady || registry.phase() > Phase::Serving {
                    return;
                }
                if inner.send(&[NotifyState::Ready]).is_ok() {
                    inner.told = Told::Ready;
                    return;
                }
            }
        });
        if let Err(error) = started {
            // Whoever polls a listener next, and has not before, tries again.
            self.0.lock().told = Told::Nothing;
            log(registry, Err(Some(error)));
        }
    }

    /// What is left, while it ends.
    pub(crate) fn ending(&self, registry: &Registry, now: Moment) {
        if self.0.lock().manager.is_none() {
            return;
        }
        let deadline = registry.deadline();
        let mut status = registry.stats().to_string();
        let time = if registry.phase() >= Phase::Forcing {
            LEAVE
        } else {
            if deadline != Moment::NEVER {
                let left = deadline.since(now).as_secs_f64();
                let _ = write!(status, ", {left:.1} s left"); // a string takes it
            }
            deadline.after(END).since(now).min(LONGEST)
        };
        let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let more = [
            NotifyState::Status(&status),
            NotifyState::ExtendTimeoutUsec(time),
        ];
        let sent = self.0.lock().say_stopping(&more);
        log(registry, sent);
    }

    /// The last of all.
    pub(crate) fn ended(&self, registry: &Registry, report: &Report) {
        if self.0.lock().manager.is_none() {
            return;
        }
        let mut report = report.to_string();
        while report.len() > MOST {
            report.pop();
        }
        let sent = self.0.lock().say_stopping(&[NotifyState::Status(&report)]);
        log(registry, sent);
    }
}

/// Of a status, in bytes: systemd ignores a datagram of more than 4,096, with all that is in it (`NOTIFY_BUFFER_MAX`).
const MOST: usize = 3_500;

/// What was sent, or the error if it is the first.
type Sent = Result<(), Option<io::Error>>;

fn log(registry: &Registry, sent: Sent) {
    if let Err(Some(error)) = sent {
        let error = error.to_string();
        registry.log(move || tracing::warn!(error, "cannot notify systemd"));
    }
}

impl Inner {
    /// If it is, and nobody has said so.
    fn say_ready(&mut self, registry: &Registry) -> Sent {
        let serves = registry.phase() == Phase::Serving;
        if self.manager.is_none() || !self.accepts || self.told > Told::Nothing || !serves {
            return Ok(());
        }
        let sent = self.send(&[NotifyState::Ready]);
        self.told = match sent {
            Ok(()) => Told::Ready,
            Err(_) => Told::AlmostReady,
        };
        sent
    }

    /// That it ends is part of every message until one has gone out.
    fn say_stopping(&mut self, more: &[NotifyState<'_>]) -> Sent {
        let stopping = (self.told < Told::Stopping).then_some(NotifyState::Stopping);
        let all: Vec<_> = stopping.into_iter().chain(more.iter().cloned()).collect();
        self.send(&all)?;
        self.told = Told::Stopping;
        Ok(())
    }

    fn send(&mut self, states: &[NotifyState<'_>]) -> Sent {
        let Some(manager) = &self.manager else {
            return Ok(());
        };
        let first = !self.failed;
        manager.send(states).map_err(|error| {
            self.failed = true;
            Some(error).filter(|_| first)
        })
    }
}

/// Who is told. Not by sd-notify's own `notify`, which waits for room, and knows no abstract names.
struct Manager {
    socket: UnixDatagram,
    /// Looked up for each message: it may be bound anew.
    address: SocketAddr,
}

impl Manager {
    fn at(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            #[cfg(target_os = "linux")]
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        // Whether anybody is there.
        UnixDatagram::unbound()?.connect_addr(&address)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    fn send(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let mut lines = String::new();
        for state in states {
            let _ = writeln!(lines, "{state}"); // a string takes it
        }
        let sent = self.socket.send_to_addr(lines.as_bytes(), &self.address);
        sent.map(drop)
    }
}

/// How often it is said what is left.
pub(crate) const EVERY: Duration = Duration::from_secs(1);

/// For how long at most a message asks for time.
const LONGEST: Duration = Duration::from_secs(60);

/// What a process gets to be cut and to leave, from the deadline on.
const LEAVE: Duration = Duration::from_secs(1);

/// How often it is tried again to say that it is ready, so many times; then once [`EVERY`] second.
const PAUSE: Duration = Duration::from_millis(20);
const OFTEN: u32 = 1_000;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::clock::Clock;

    /// It is tried for as long as somebody serves, and keeps nothing of who does no more.
    #[test]
    fn a_ready_that_cannot_be_sent_keeps_nothing() {
        let path = env::temp_dir().join(format!("http-terminator-notify-2-{}", std::process::id()));
        let heard = UnixDatagram::bind(&path).expect("a fresh path");
        let manager = Manager::at(path.as_os_str()).expect("somebody is there");
        drop(heard);
        std::fs::remove_file(&path).expect("it was bound");
        let registry = Arc::new(Registry::new(crate::config::Config::default()));
        registry.notices.0.lock().manager = Some(manager);
        registry.notices.accepts(&registry);
        let weak = Arc::downgrade(&registry);
        drop(registry);
        for _ in 0..500 {
            if weak.upgrade().is_none() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it is kept");
    }

    /// With nobody to hear it and no thread to be had, whoever polls a listener gets on all the same.
    #[test]
    fn a_ready_that_cannot_be_sent_holds_nobody() {
        let path = env::temp_dir().join(format!("http-terminator-notify-{}", std::process::id()));
        let heard = UnixDatagram::bind(&path).expect("a fresh path");
        let manager = Manager::at(path.as_os_str()).expect("somebody is there");
        drop(heard);
        std::fs::remove_file(&path).expect("it was bound");
        let config = crate::config::Config::default();
        let registry = Arc::new(Registry::without_threads(config, Clock::start()));
        registry.notices.0.lock().manager = Some(manager);
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            registry.notices.accepts(&registry);
            assert!(registry.notices.0.lock().told == Told::AlmostReady);
            let _ = tell.send(());
        });
        let told = told.recv_timeout(Duration::from_secs(5));
        told.expect("it does not wait for itself");
    }
}
