//! The plain thread that walks a termination through its phases.
//!
//! It is no task, because one handler that blocks its thread can stall a whole tokio runtime, its
//! timers included, and whoever keeps the deadline must not be stalled with it. It is started inside
//! the call of `terminate()`, needs no runtime, and decides nothing by itself: `sequence.rs` says
//! what to do, this does it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Moment;
use crate::phase::Phase;
use crate::registry::{Cut, Member, Outcome, Registry, Sleeper, Snapshot};
use crate::report::{Report, Straggler};
use crate::sequence::{CUT, Sequence, Step};

/// How often every runtime is given an empty task, from the start of the drain on: a task from
/// outside gets a runtime going again whose IO and timer driver sits on a blocked worker.
const POKE: Duration = Duration::from_millis(20);

/// How often sockets are looked at in `Forcing`. They have 85 ms.
const SWEEP: Duration = Duration::from_millis(5);

/// When, after the deadline, nobody waits for an answer any more.
const LAST_ANSWER: Duration = Duration::from_millis(70);

/// How long a socket is kept whose client owed the rest of a request that nobody reads any more, so
/// that the answer is not destroyed by a reset (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(1);

/// How often listeners are looked at that nobody has polled since the drain began. At the second
/// look they are closed from outside, as their accept loop has ended without dropping them; but only
/// if every runtime has run a task in between, since a busy or stalled one may just be late.
const ABANDONED: Duration = Duration::from_millis(100);

/// How long the runtimes have to begin with waking the connections of a drain.
const CALL: Duration = Duration::from_millis(1);

/// A report lists no more stragglers than this.
const STRAGGLERS: usize = 64;

/// What the facade and the thread share.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) registry: Arc<Registry>,
    sequence: Mutex<Sequence>,
}

impl Driver {
    pub(crate) fn new(registry: Registry) -> Self {
        Self {
            registry: Arc::new(registry),
            sequence: Mutex::new(Sequence::new()),
        }
    }

    /// The phase has risen when this returns; the rest is up to the thread.
    pub(crate) fn terminate(self: &Arc<Self>) {
        let first = self.change(|sequence, now| {
            sequence.terminate(&self.registry.config, now);
        });
        if first {
            self.start();
        }
    }

    pub(crate) fn force(self: &Arc<Self>) {
        if self.change(Sequence::force) {
            self.start();
        } else {
            self.registry.ring();
        }
    }

    /// True if this ended `Serving`.
    fn change(&self, f: impl FnOnce(&mut Sequence, Moment)) -> bool {
        let mut sequence = self.sequence.lock();
        let now = self.registry.clock.now();
        let before = sequence.phase();
        f(&mut sequence, now);
        self.registry
            .raise(sequence.phase(), now, sequence.deadline());
        before == Phase::Serving
    }

    fn start(self: &Arc<Self>) {
        let driver = Arc::clone(self);
        let thread = thread::Builder::new().name("http-terminator".to_owned());
        if let Err(error) = thread.spawn(move || Thread::new(driver).run()) {
            // Without a thread nobody keeps the deadline; what is left is to end now, here.
            tracing::error!(%error, "no thread for the termination, forcing");
            self.change(Sequence::force);
            Thread::new(Arc::clone(self)).run();
        }
    }
}

/// Connections to be woken, by all who call, each by one of them.
#[derive(Default)]
struct Roll {
    connections: Vec<(u64, Arc<dyn Member>)>,
    next: AtomicUsize,
}

impl Roll {
    fn of(registry: &Registry) -> Self {
        Self {
            connections: registry.in_order(),
            next: AtomicUsize::new(0),
        }
    }

    fn call(&self, registry: &Registry) {
        const AT_ONCE: usize = 64;
        loop {
            let from = self.next.fetch_add(AT_ONCE, Relaxed);
            let some = self.connections.iter().skip(from).take(AT_ONCE);
            if some.len() == 0 {
                return;
            }
            some.for_each(|(id, connection)| registry.wake(*id, &**connection));
        }
    }
}

/// What only the thread needs.
struct Thread {
    driver: Arc<Driver>,
    acted: Phase,
    /// The connections that have to learn of the drain, and when this thread has a hand in it.
    roll: Arc<Roll>,
    call: Moment,
    /// Who is to be woken.
    due: BinaryHeap<Reverse<(Moment, Sleeper)>>,
    /// Sockets to be closed in stages, and when at the latest.
    lingering: Vec<(Moment, u64)>,
    poke: Moment,
    /// Whether each runtime has run a task since listeners were last looked at.
    beats: HashMap<tokio::runtime::Id, Arc<AtomicBool>>,
    sweep: Moment,
    abandoned: Moment,
    stragglers: Vec<Straggler>,
}

impl Thread {
    fn new(driver: Arc<Driver>) -> Self {
        Self {
            driver,
            acted: Phase::Serving,
            roll: Arc::default(),
            call: Moment::NEVER,
            due: BinaryHeap::new(),
            lingering: Vec::new(),
            poke: Moment::NEVER,
            beats: HashMap::new(),
            sweep: Moment::NEVER,
            abandoned: Moment::NEVER,
            stragglers: Vec::new(),
        }
    }

    fn run(mut self) {
        loop {
            let registry = Arc::clone(&self.driver.registry);
            let now = registry.clock.now();
            let empty = registry.is_empty();
            let (step, phase) = {
                let mut sequence = self.driver.sequence.lock();
                if empty && sequence.phase() == Phase::Draining && registry.connections() > 0 {
                    // Only detached ones are left.
                    sequence.force(now);
                }
                let all_gone = empty && registry.connections() == 0;
                let step = sequence.step(&registry.config, now, all_gone);
                registry.raise(sequence.phase(), now, sequence.deadline());
                (step, sequence.phase())
            };
            if phase > self.acted {
                self.acted = phase;
                self.enter(phase, now);
                continue;
            }
            let wait = match step {
                Step::Done => return,
                Step::Enter(_) => continue,
                Step::Wait(until) => until,
            };
            self.chores(now);
            let next = self
                .due
                .peek()
                .map_or(Moment::NEVER, |Reverse((at, _))| *at);
            let wait = wait
                .min(next)
                .min(self.call)
                .min(self.poke)
                .min(self.sweep)
                .min(self.abandoned);
            let (due, lingering) = registry.sleep(wait);
            self.due.extend(due.into_iter().map(Reverse));
            if !lingering.is_empty() {
                let now = registry.clock.now();
                self.lingering
                    .extend(lingering.into_iter().map(|id| (now.after(LINGER), id)));
                self.sweep = self.sweep.min(now);
            }
        }
    }

    fn enter(&mut self, phase: Phase, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        if phase < Phase::Terminated {
            tracing::info!(%phase, connections = registry.connections(), "terminating");
        }
        match phase {
            Phase::Serving => {}
            Phase::LameDuck => registry.announce(phase),
            Phase::Draining => {
                // Listeners first: what the kernel has queued is to be served.
                registry.doors().iter().for_each(|door| door.wake());
                self.have_connections_woken(now);
                registry.announce(phase);
                self.abandoned = now.after(ABANDONED);
                self.poke = now;
            }
            Phase::Forcing => {
                self.due.clear();
                self.abandoned = Moment::NEVER;
                self.name_stragglers(now);
                registry.doors().iter().for_each(|door| door.close());
                Roll::of(&registry).call(&registry);
                registry.announce(phase);
                self.poke = now;
                self.sweep = now.after(SWEEP);
            }
            Phase::Terminated => {
                registry.doors().iter().for_each(|door| door.close());
                // Who registers from now on sees the phase; who did before is found here.
                registry.each_connection(|connection| connection.cut(Cut::Hard));
                let report = self.report(now);
                tracing::info!(%report, "terminated");
                registry.write_report(report);
                registry.announce(phase);
            }
        }
    }

    /// What is to be done by now.
    fn chores(&mut self, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        while let Some(Reverse((at, whom))) = self.due.peek().copied() {
            if at > now {
                break;
            }
            self.due.pop();
            match whom {
                Sleeper::Connection(id) => {
                    if let Some(connection) = registry.connection(id) {
                        registry.wake(id, &*connection);
                    }
                }
                Sleeper::Waiter(n) => {
                    registry.take_waiter(n).into_iter().for_each(Waker::wake);
                }
            }
        }
        if now >= self.call {
            self.call = Moment::NEVER;
            std::mem::take(&mut self.roll).call(&registry);
        }
        if now >= self.poke {
            self.poke = now.after(POKE);
            for runtime in registry.runtimes() {
                let beat = self.beats.entry(runtime.id()).or_default();
                let beats = Arc::clone(beat);
                let poked = runtime.spawn(async move { beats.store(true, Relaxed) });
                // A runtime that was shut down runs nothing, and is not waited for.
                beat.fetch_or(poked.is_finished(), Relaxed);
            }
        }
        if now >= self.abandoned {
            self.abandoned = now.after(ABANDONED);
            if self.beats.values().all(|beat| beat.load(Relaxed)) {
                self.beats
                    .values()
                    .for_each(|beat| beat.store(false, Relaxed));
                registry
                    .doors()
                    .iter()
                    .for_each(|door| door.close_if_abandoned());
            }
        }
        if now >= self.sweep {
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        if self.acted == Phase::Forcing {
            self.sweep = now.after(SWEEP);
            let began = self
                .driver
                .sequence
                .lock()
                .entered(Phase::Forcing)
                .unwrap_or(now);
            let how = match now.since(began) {
                d if d >= CUT => Cut::Hard,
                d if d >= LAST_ANSWER => Cut::Firm,
                _ => Cut::Soft,
            };
            registry.each_connection(|connection| connection.cut(how));
            return;
        }
        self.lingering.retain(|(until, id)| {
            let Some(connection) = registry.connection(*id) else {
                return false;
            };
            connection.cut(if now >= *until { Cut::Hard } else { Cut::Soft });
            true
        });
        let more = !self.lingering.is_empty();
        self.sweep = if more {
            now.after(SWEEP)
        } else {
            Moment::NEVER
        };
    }

    /// By the runtimes: woken from outside, each connection costs a system call. What they have not
    /// begun with in time, stalled or gone, is left to this thread.
    fn have_connections_woken(&mut self, now: Moment) {
        let registry = &self.driver.registry;
        let runtimes = registry.runtimes();
        self.call = if runtimes.is_empty() {
            now
        } else {
            now.after(CALL)
        };
        self.roll = Arc::new(Roll::of(registry));
        for runtime in runtimes {
            let (registry, roll) = (Arc::clone(registry), Arc::clone(&self.roll));
            runtime.spawn(async move { roll.call(&registry) });
        }
    }

    fn name_stragglers(&mut self, now: Moment) {
        let stragglers = &mut self.stragglers;
        self.driver.registry.each_connection(|connection| {
            // What is idle is not late.
            if stragglers.len() < STRAGGLERS && !matches!(connection.snapshot(), Snapshot::Idle) {
                for straggler in connection.stragglers(now) {
                    let number = straggler.connection;
                    tracing::warn!(connection = number, %straggler, "forcing a connection");
                    stragglers.push(straggler);
                }
            }
        });
    }

    fn report(&mut self, now: Moment) -> Report {
        let registry = &self.driver.registry;
        let mut stragglers = std::mem::take(&mut self.stragglers);
        let mut unresponsive = 0;
        registry.each_connection(|connection: &Arc<dyn Member>| {
            for mut blocked in connection.stragglers(now) {
                if blocked.unresponsive {
                    unresponsive += 1;
                    // It may have become a straggler since the deadline. Otherwise its peer was known
                    // then, and its socket is closed by now.
                    let same = |s: &Straggler| {
                        s.connection == blocked.connection && s.path == blocked.path
                    };
                    if let Some(known) = stragglers.iter().position(same) {
                        blocked.peer = stragglers.remove(known).peer;
                    }
                    stragglers.insert(0, blocked);
                }
            }
        });
        stragglers.truncate(STRAGGLERS);
        let took = |phase| self.driver.sequence.lock().took(phase, now);
        let outcome = |outcome| registry.outcome(outcome);
        Report {
            idle: outcome(Outcome::Idle),
            finished: outcome(Outcome::Finished),
            closed_by_peer: outcome(Outcome::ClosedByPeer),
            stalled: outcome(Outcome::Stalled),
            upgraded: outcome(Outcome::Upgraded),
            left: outcome(Outcome::Left),
            detached: outcome(Outcome::Detached),
            // Those whose tasks have not let go yet are cut as well.
            forced: outcome(Outcome::Forced) + registry.connections(),
            answered_at_deadline: registry.answered_at_deadline.load(Relaxed),
            abandoned: registry.abandoned.load(Relaxed),
            unresponsive,
            guards_cut: registry.guards(),
            accepted_late: registry.accepted_late.load(Relaxed),
            lame_duck: took(Phase::LameDuck),
            draining: took(Phase::Draining),
            forcing: took(Phase::Forcing),
            stragglers,
        }
    }
}
