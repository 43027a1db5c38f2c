//! A worker: serves with a `Terminator` of its own, and does what the supervisor says.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::panic;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use http_terminator::{HttpBuilder, Inherited, Phase, Terminator, TowerToHyper, TrackedIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use crate::app;
use crate::pool::GRACE;
use crate::say::say;
use crate::supervisor::TOGETHER;
use crate::wire::{Connection, ToSupervisor, ToWorker, Wire};

/// For what is still to be said at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A SIGTERM may be for all, and the supervisor's yet to come: until it has taken what is queued, or told us that it is ours,
/// somebody must be there.
const LISTENS_ON: Duration = Duration::from_millis(200);

/// Before a connection is given back that can't be served here. Two workers that have no descriptors would pass it to and
/// fro as fast as they can.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub struct Worker {
    pub terminator: Terminator,
    pub wire: Arc<Wire>,
    id: u64,
    /// What must not end with the terminator, but has its end soon.
    tasks: TaskTracker,
    stopping: Arc<AtomicBool>,
    faulty: Arc<AtomicBool>,
}

pub fn main(id: u64) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let worker = Worker {
            terminator: Terminator::builder().grace_period(GRACE).build(),
            wire: Arc::new(Wire::of_worker()?),
            id,
            tasks: TaskTracker::new(),
            stopping: Arc::default(),
            faulty: Arc::default(),
        };
        worker.run().await
    })?;
    // Without waiting for the runtime, in which a handler may block a thread for ever.
    process::exit(0);
}

impl Worker {
    async fn run(self) -> Result<(), Box<dyn Error>> {
        // Is for the supervisor, and reaches all by `pkill -HUP`. Ignored from here on, as nobody waits for it.
        drop(signal(SignalKind::hangup())?);
        let mut terms = signal(SignalKind::terminate())?;
        let mut interrupts = signal(SignalKind::interrupt())?;
        let Some((ToWorker::Begin, listener)) = self.wire.receive().await? else {
            return Ok(()); // the supervisor is gone already
        };
        self.leave_on_panic();
        let app = app::router(self.clone());
        let mut listener = listener.map(StdListener::from);
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
            let shared = Inherited(TcpListener::from_std(listener.try_clone()?)?);
            tokio::spawn(self.terminator.serve(shared, app.clone()));
        }
        self.wire.send(&ToSupervisor::Ready, None).await?;
        let this = self.clone();
        self.spawn(async move {
            this.terminator.draining().await;
            this.say_leaving().await;
        });

        let (mut has_supervisor, mut is_starved) = (true, false);
        let mut told: Option<Instant> = None;
        let report = loop {
            tokio::select! {
                biased;
                received = self.wire.receive(), if has_supervisor => match received {
                    Ok(Some((ToWorker::Take { id, what }, Some(fd)))) => {
                        is_starved = false;
                        self.take(&app, id, what, fd);
                    }
                    // The kernel delivers the rest, for want of a descriptor.
                    Ok(Some((ToWorker::Take { id, .. }, None))) => {
                        if !is_starved {
                            say(&self, "no descriptors are left, giving connections back");
                        }
                        is_starved = true;
                        self.give_back_later(id);
                    }
                    Ok(Some((ToWorker::Leave, _))) => drop(self.terminator.terminate()),
                    Ok(Some((ToWorker::Force, _))) => drop(self.terminator.force()),
                    Ok(Some((ToWorker::Stop(ms), _))) => {
                        self.stop(&app, listener.take(), Duration::from_millis(ms))?;
                    }
                    Ok(Some(other)) => say(&self, format!("did not understand {other:?}")),
                    Ok(None) | Err(_) => {
                        say(&self, "the supervisor is gone, ending");
                        has_supervisor = false;
                        self.stop(&app, listener.take(), GRACE)?;
                    }
                },
                report = self.terminator.terminated() => break report,
                _ = terms.recv() => self.told(&mut told),
                _ = interrupts.recv() => self.told(&mut told),
                () = sleep_until(told.unwrap_or_else(Instant::now) + LISTENS_ON),
                    if told.is_some() && self.terminator.phase() < Phase::Draining =>
                {
                    drop(self.terminator.terminate());
                }
            }
        };
        say(&self, report);
        self.tasks.close();
        // If the supervisor does not listen, it can't be helped.
        let _ = tokio::time::timeout(LAST_WORDS, self.tasks.wait()).await;
        Ok(())
    }

    /// By a signal. The second forces.
    fn told(&self, told: &mut Option<Instant>) {
        if told.is_some_and(|first| first.elapsed() > TOGETHER) {
            drop(self.terminator.force());
        } else if told.is_none() {
            *told = Some(Instant::now());
            let this = self.clone();
            self.spawn(async move {
                // If the supervisor is gone, `run` sees to it.
                let _ = this.wire.send(&ToSupervisor::Told, None).await;
            });
        }
    }

    /// In a task that is waited for at the end: for what is short, or ends with the terminator.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// To another worker. Gives it back if nobody takes it.
    pub async fn give_away(
        &self,
        io: TrackedIo<TcpStream>,
        what: Connection,
    ) -> Option<TrackedIo<TcpStream>> {
        // All others end too.
        if self.stopping.load(Relaxed) {
            return Some(io);
        }
        // From here on it is not the terminator's. Closed already, or no longer known to the runtime: it is gone.
        let fd = OwnedFd::from(io.into_inner()?.into_std().ok()?);
        let give = ToSupervisor::Give(what);
        if self.wire.send(&give, Some(&fd)).await.is_ok() {
            return None;
        }
        let io = TcpStream::from_std(fd.into()).ok()?;
        Some(self.terminator.track(io))
    }

    /// All others end too.
    fn stop(&self, app: &Router, queue: Option<StdListener>, within: Duration) -> io::Result<()> {
        self.stopping.store(true, Relaxed);
        if let Some(queue) = queue {
            // So what is queued is left to nobody, and served, and whoever connects later is refused.
            let queue = TcpListener::from_std(queue)?;
            tokio::spawn(self.terminator.serve(queue, app.clone()));
        }
        drop(self.terminator.terminate_within(within));
        Ok(())
    }

    /// Whoever panicked may have left something half done. What others have in hand is finished, and nothing new
    /// begun.
    fn leave_on_panic(&self) {
        let (this, print) = (self.clone(), panic::take_hook());
        panic::set_hook(Box::new(move |info| {
            this.faulty.store(true, Relaxed);
            drop(this.terminator.terminate());
            // Takes its time, with a backtrace.
            print(info);
        }));
    }

    async fn say_leaving(&self) {
        let faulty = self.faulty.load(Relaxed);
        let leaving = ToSupervisor::Leaving { faulty };
        // If the supervisor is gone, `run` sees to it.
        let _ = self.wire.send(&leaving, None).await;
    }

    fn take(&self, app: &Router, id: u64, what: Connection, fd: OwnedFd) {
        let this = self.clone();
        if self.terminator.phase() >= Phase::Draining {
            // Ours is only a copy of the descriptor. First that it is leaving, or it would be asked again.
            return self.spawn(async move {
                this.say_leaving().await;
                let _ = this.wire.send(&ToSupervisor::Back(id), None).await;
            });
        }
        let stream = StdStream::from(fd);
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(stream))
            // As `serve` does.
            .inspect(|stream| drop(stream.set_nodelay(true)));
        let Ok(stream) = stream else {
            return self.give_back_later(id);
        };
        let app = app.clone();
        // From here on a drain waits for it.
        let io = self.terminator.track(stream);
        self.spawn(async move {
            // Before its first byte is read: nobody else could go on with it from then on.
            // If the supervisor is gone there is nobody else either.
            let _ = this.wire.send(&ToSupervisor::Taken(id), None).await;
            match what {
                Connection::Session(session) => session.go_on(io, this).await,
                Connection::Echo(echo) => echo.go_on(io, this).await,
                Connection::Fresh => {
                    let (builder, service) = (HttpBuilder::default(), TowerToHyper::new(app));
                    let connection = io.connection();
                    // How it ended is in the report.
                    let _ = connection.serve(&builder, io, service).await;
                }
            }
        });
    }

    fn give_back_later(&self, id: u64) {
        let this = self.clone();
        self.spawn(async move {
            tokio::time::sleep(PAUSE).await;
            let _ = this.wire.send(&ToSupervisor::Back(id), None).await;
        });
    }
}

/// As it is named in answers and lines.
impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} ({})", self.id, process::id())
    }
}
