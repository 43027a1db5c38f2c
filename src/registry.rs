//! What all that is alive shares with the driver.
//!
//! It hands on, tells the driver of what it has to look at, and keeps the report and what is counted for that alone.
//!
//! Invariants, cited by number where code leans on them:
//!
//! 1. A phase never falls.
//! 2. Register first, read the phase after: who comes late sees it.
//! 3. A guard is counted before the phase is read.
//! 4. HTTP/2 is told at most once; an end-of-file is injected at most once.
//! 5. The report exists only after the last drop, and is written once; `Terminated` is visible only after it.
//! 6. Counts go down where what is counted is gone: in its `Drop`, or by whoever has taken it out and closed it. So no panic
//!    and no cancelled future can lose one.
//! 7. No lock of the census, the agenda, the waiters or the guards is held across an await, a wake, or a call into foreign
//!    IO. That of one IO, or one listener, is: whoever else wants it waits for a moment, and not more.

use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::census::Census;
pub(crate) use crate::census::Outcome;
use crate::clock::{Clock, Moment};
use crate::config::{Config, Drain};
use crate::connection::Taken;
use crate::driver::agenda::Agenda;
pub(crate) use crate::driver::agenda::Reminder;
pub(crate) use crate::driver::chore::Chore;
use crate::driver::foreign::{Call, Lane};
use crate::driver::held::Held;
use crate::driver::keeper::{Care, Keeper};
pub(crate) use crate::driver::member::{AcceptQueue, BRIEFLY, Cut, Member, Snapshot};
use crate::driver::noted::{Noted, NotedRuntimes};
use crate::driver::progress::Progress;
use crate::driver::waiters::Waiters;
use crate::phase::Phase;
use crate::report::Report;
use crate::stats::Stats;
#[cfg(all(unix, feature = "systemd"))]
use crate::systemd::Notices;

pub(crate) struct Registry {
    pub(crate) clock: Clock,
    pub(crate) config: Config,
    pub(crate) progress: Progress,
    pub(crate) census: Census<Arc<dyn Member>, Arc<dyn AcceptQueue>>,
    pub(crate) held: Held,
    pub(crate) waiters: Waiters,
    pub(crate) draining: CancellationToken,
    pub(crate) runtimes: Arc<NotedRuntimes>,
    pub(crate) agenda: Agenda,
    pub(crate) keeper: Keeper,
    #[cfg(all(unix, feature = "systemd"))]
    pub(crate) notices: Notices,
    foreign: Lane<Chore>,
    /// Wakes who waits for a phase: not behind what gets stuck elsewhere.
    wakes: Lane<Chore>,
    log: Lane<Call>,
    report: OnceLock<Report>,
    // What only the report asks for.
    pub(crate) accepted_late: AtomicUsize,
    pub(crate) lost_in_queue: AtomicUsize,
    /// IOs other than sockets that are inside of their own drop.
    pub(crate) unclosed: AtomicUsize,
    pub(crate) answered_at_deadline: AtomicUsize,
    pub(crate) abandoned: AtomicUsize,
}

impl Registry {
    pub(crate) fn new(config: Config) -> Self {
        Self::with(config, Clock::start(), FOREIGN_THREADS, 1)
    }

    fn with(config: Config, clock: Clock, foreign: usize, log: usize) -> Self {
        Self {
            clock,
            config,
            progress: Progress::new(),
            census: Census::new(),
            held: Held::default(),
            waiters: Waiters::new(),
            draining: CancellationToken::new(),
            runtimes: Arc::default(),
            agenda: Agenda::new(),
            keeper: Keeper::new(clock, foreign > 0),
            #[cfg(all(unix, feature = "systemd"))]
            notices: Notices::default(),
            foreign: Lane::new(foreign),
            wakes: Lane::new(foreign),
            log: Lane::new(log),
            report: OnceLock::new(),
            accepted_late: AtomicUsize::new(0),
            lost_in_queue: AtomicUsize::new(0),
            unclosed: AtomicUsize::new(0),
            answered_at_deadline: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
        }
    }

    /// For a termination that is stepped by hand: what is foreign is called at once, by whoever hands it over.
    #[cfg(test)]
    pub(crate) fn without_threads(config: Config, clock: Clock) -> Self {
        Self::with(config, clock, 0, 0)
    }

    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn is_stepped(&self) -> bool {
        self.foreign.is_inline()
    }

    // ----- how far it has come -----

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        self.progress.phase()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.progress.is_over()
    }

    pub(crate) fn drain_began(&self) -> Moment {
        self.progress.drain_began()
    }

    pub(crate) fn drain(&self) -> Drain {
        Drain {
            began: self.progress.drain_began(),
            deadline: self.progress.deadline(),
            crowd: self.progress.crowd(),
        }
    }

    pub(crate) fn deadline(&self) -> Moment {
        self.progress.deadline()
    }

    /// By force, those that there were are yet to be cut, or were a moment ago.
    pub(crate) fn is_cutting(&self) -> bool {
        self.phase() == Phase::Forcing && self.progress.may_cut(self.clock.now())
    }

    /// How hard to cut by now what is to be cut since then, if not before. Whoever does it looks for himself,
    /// as there may be thousands before.
    pub(crate) fn how_to_cut(&self, since: Moment) -> Cut {
        self.progress.how_to_cut(since, self.clock.now())
    }

    /// Everybody who looks from now on sees it. Waiters are told by [`announce`](Self::announce).
    pub(crate) fn raise(&self, phase: Phase, now: Moment, deadline: Moment) {
        if phase >= Phase::Draining {
            self.census.begin();
            if self.drain_began() == Moment::NEVER {
                self.progress.meets(self.census.connections());
            }
        }
        self.progress.raise(phase, now, deadline);
    }

    /// Wakes who waits for that phase.
    pub(crate) fn announce(&self, phase: Phase) {
        if phase >= Phase::Draining {
            self.cancel_tokens();
        }
        for waker in self.waiters.take_all(phase) {
            self.wake(waker);
        }
    }

    /// False if they were.
    pub(crate) fn cancel_tokens(&self) -> bool {
        let yet_to = !self.draining.is_cancelled();
        if yet_to {
            let draining = self.draining.clone();
            let cancel = Box::new(move || draining.cancel());
            self.wakes.hand_over(Chore::Call(cancel));
        }
        yet_to
    }

    /// Wakes somebody who waits to be told.
    pub(crate) fn wake(&self, waker: Waker) {
        self.wakes.hand_over(Chore::Wake(waker));
    }

    pub(crate) fn report(&self) -> Option<&Report> {
        self.report.get()
    }

    /// Written once, and only then is the end visible (invariant 5).
    pub(crate) fn write_report(&self, report: Report) {
        let written = self.report.set(report);
        debug_assert!(written.is_ok(), "the report is written once (invariant 5)");
        self.keeper.close();
        self.progress.finish();
    }

    /// What is in hand right now.
    pub(crate) fn stats(&self) -> Stats {
        let listeners = self.census.listeners();
        let mut stats = Stats {
            phase: self.phase(),
            listeners: listeners.iter().filter(|(_, it)| it.is_open()).count(),
            connections: 0,
            idle: 0,
            busy: 0,
            upgraded: 0,
            requests: 0,
            guards: self.census.guards(),
            accepted: self.census.accepted(),
        };
        self.census.each_connection(|connection| {
            stats.connections += 1;
            match connection.snapshot() {
                Snapshot::Idle => stats.idle += 1,
                Snapshot::Upgraded => stats.upgraded += 1,
                Snapshot::Busy { requests } => {
                    stats.busy += 1;
                    stats.requests += requests;
                }
            }
        });
        stats
    }

    // ----- who comes and goes -----

    pub(crate) fn next_id(&self) -> u64 {
        self.census.next_id()
    }

    /// Look at the phase after it (invariant 2).
    pub(crate) fn join(&self, id: u64, member: Arc<dyn Member>) {
        self.census.join(id, member);
    }

    /// The last of a connection is gone, or nobody will get at it any more. False if that was known.
    pub(crate) fn leave(&self, id: u64, outcome: Outcome) -> bool {
        let Some(gone) = self.census.leave(id, outcome) else {
            return false;
        };
        drop(gone.member);
        // Otherwise the driver would only count and sleep again.
        if gone.last {
            self.look_again();
        }
        true
    }

    /// The drain no longer waits for this connection, if it is still there.
    pub(crate) fn detach(&self, id: u64) {
        if self.census.detach(id) {
            self.look_again();
        }
    }

    /// The listener is gone, and it holds nothing.
    pub(crate) fn closed(&self, listener: u64) {
        drop(self.census.close(listener));
        self.look_again();
    }

    /// False if they are refused.
    pub(crate) fn count_guard_unless(&self, refused: impl Fn() -> bool) -> bool {
        let release = || self.release_guard();
        self.census.count_guard_unless(refused, release)
    }

    /// Another one.
    pub(crate) fn count_guard(&self) {
        self.census.count_guard();
    }

    pub(crate) fn release_guard(&self) {
        if self.census.release_guard() {
            self.look_again();
        }
    }

    /// Something was counted out: it may have been the last.
    fn look_again(&self) {
        if self.phase() > Phase::Serving {
            self.agenda.wake();
        }
    }

    // ----- what the driver is asked for -----

    /// Has the driver see to somebody then. Only during a termination.
    pub(crate) fn remind(&self, at: Moment, whom: Reminder) {
        self.agenda.remind(at, whom);
    }

    /// Has a connection woken then.
    pub(crate) fn wake_at(self: &Arc<Self>, at: Moment, id: u64) {
        if self.phase() > Phase::Serving {
            self.remind(at, Reminder::Connection(id));
        } else {
            self.keeper.see_to(self, at, id, Care::Wake);
        }
    }

    /// Has a socket closed in stages, which take so long at most, or as long as its other side takes what was sent.
    pub(crate) fn linger(self: &Arc<Self>, id: u64, most: Duration) {
        if self.phase() > Phase::Serving {
            self.agenda.linger(id, most);
        } else {
            let now = self.clock.now();
            let care = Care::Linger(now.after(most), Taken::default());
            self.keeper.see_to(self, now, id, care);
        }
    }

    /// Tells the driver of a runtime. Only during a termination.
    pub(crate) fn tell_runtime(&self, runtime: Handle) {
        if self.is_over() {
            // Nobody asks any more.
            return;
        }
        self.agenda.tell_runtime(runtime);
    }

    /// Has the waiter woken then, or at the deadline. Only during a termination.
    pub(crate) fn wait_until(&self, at: Moment, n: u64, waker: Waker) {
        if self.waiters.wait_for(Phase::Forcing, n, waker) {
            self.remind(at, Reminder::Waiter(n));
        }
    }

    /// Remembers the runtime this is called on, if any, until what is returned is dropped.
    pub(crate) fn note_runtime(&self) -> Option<Noted> {
        let (noted, new) = self.runtimes.note()?;
        if let Some(runtime) = new.filter(|_| self.phase() >= Phase::Draining) {
            self.tell_runtime(runtime);
        }
        Some(noted)
    }

    // ----- what is foreign -----

    /// Does what may block, or panic, on a thread that may get stuck in it.
    pub(crate) fn apart(&self, call: impl FnOnce() + Send + 'static) {
        self.foreign.hand_over(Chore::Call(Box::new(call)));
    }

    pub(crate) fn foreign(&self) -> &Lane<Chore> {
        &self.foreign
    }

    pub(crate) fn wakes(&self) -> &Lane<Chore> {
        &self.wakes
    }

    /// Logs on a thread that may get stuck in it: a lost line is fine, a lost deadline is not.
    pub(crate) fn log(&self, event: impl FnOnce() + Send + 'static) {
        self.log.hand_over(Box::new(event));
    }

    pub(crate) fn logging(&self) -> &Lane<Call> {
        &self.log
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

/// Threads for what may block, at most: each is stuck in something that is not ours.
const FOREIGN_THREADS: usize = 64;

#[cfg(all(test, feature = "serve"))]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::Ordering::SeqCst;
    use std::thread;
    use std::time::Duration;

    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::{Bytes, Incoming};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioExecutor;
    use hyper_util::server::conn::auto;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::Terminator;

    impl Registry {
        /// Every word in here that is no lock and not behind one.
        fn words(&self) -> Vec<u64> {
            let counts = [
                &self.accepted_late,
                &self.lost_in_queue,
                &self.unclosed,
                &self.answered_at_deadline,
                &self.abandoned,
            ];
            let counts = counts.map(|n| n.load(SeqCst) as u64);
            let others = [
                self.census.accepted(),
                self.census.guards() as u64,
                self.waiters.numbers(),
                self.progress.drain_began().as_micros(),
                self.progress.deadline().as_micros(),
                self.progress.is_over().into(),
                self.phase() as u64,
            ];
            [&counts[..], &others].concat()
        }
    }

    async fn ask(client: &mut DuplexStream) {
        let request = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
        client.write_all(request).await.expect("there is room");
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            let n = client.read_buf(&mut answer).await.expect("no error");
            assert!(n > 0, "answered, not closed");
        }
    }

    /// While it is served, a request takes none of the locks that connections share (they are all held
    /// meanwhile) and writes none of the words.
    #[test]
    fn a_request_touches_nothing_shared() {
        let terminator = Terminator::new();
        let registry = Arc::clone(terminator.registry());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let mut clients: Vec<_> = (0..32)
            .map(|_| {
                let (client, server) = tokio::io::duplex(4096);
                let io = terminator.track(server);
                let hello = service_fn(async |_: Request<Incoming>| {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                runtime.spawn(io.connection().serve(&builder, io, hello));
                client
            })
            .collect();
        // The first request of each tells HTTP/1 from HTTP/2.
        runtime.block_on(async {
            for client in &mut clients {
                ask(client).await;
            }
        });

        let before = registry.words();
        let locked = (
            registry.census.hold(),
            registry.runtimes.hold(),
            registry.held.hold(),
            registry.waiters.hold(),
            registry.agenda.hold(),
        );
        let asking = runtime.spawn(async move {
            for _ in 0..50 {
                for client in &mut clients {
                    ask(client).await;
                }
            }
            clients
        });
        let deadline = Moment::START.after(Duration::from_secs(10));
        let clock = Clock::start();
        while !asking.is_finished() {
            assert!(clock.now() < deadline, "a request waits for a shared lock");
            thread::yield_now();
        }
        drop(locked);
        assert_eq!(registry.words(), before);
        drop(runtime.block_on(asking).expect("no panic"));
    }
}
