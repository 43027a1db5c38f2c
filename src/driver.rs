//! The plain thread that walks a termination through its phases.
//!
//! It is no task, because one handler that blocks its thread can stall a whole tokio runtime, its
//! timers included, and whoever keeps the deadline must not be stalled with it. It is started inside
//! the call of `terminate()`, needs no runtime, and decides nothing by itself: `sequence.rs` says
//! what to do, this does it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::clock::Moment;
use crate::foreign;
use crate::phase::Phase;
use crate::registry::{Chore, Cut, Member, Outcome, Registry, Sleeper, Snapshot};
use crate::report::{Report, Straggler};
use crate::sequence::{Sequence, Step};

/// How often every runtime is given an empty task, from the start of the drain on: a task from
/// outside gets a runtime going again whose IO and timer driver sits on a blocked worker.
const POKE: Duration = Duration::from_millis(20);

/// A runtime that has not run such a task for so long is stalled, or nobody runs it.
const LATE: Duration = Duration::from_millis(250);

/// How often sockets are looked at in `Forcing`, at most.
const SWEEP: Duration = Duration::from_millis(5);

/// How long a socket is kept whose client owed the rest of a request that nobody reads any more, so
/// that the answer is not destroyed by a reset (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(1);

/// For how long nothing else must have been waited for before what listeners hold is given up.
const ABANDONED: Duration = Duration::from_millis(500);

/// How long the runtimes have to begin with waking the connections of a drain.
const CALL: Duration = Duration::from_millis(1);

/// How often those are looked after who do what may block.
const RELIEF: Duration = Duration::from_millis(2);

/// How long the last event of a termination has to be logged before its end is told, so that a
/// process that ends with it still says so.
const LAST_WORD: Duration = Duration::from_micros(500);

/// How often a termination steps that has no thread.
const TICK: Duration = Duration::from_millis(5);

/// A report lists no more stragglers than this.
const STRAGGLERS: usize = 64;

/// What the facade and the thread share.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) registry: Arc<Registry>,
    sequence: Mutex<Sequence>,
    /// Who was late at the deadline, from when that was about to show.
    stragglers: Mutex<Vec<Straggler>>,
}

impl Driver {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            sequence: Mutex::new(Sequence::new()),
            stragglers: Mutex::default(),
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
        if self.registry.phase() < Phase::Forcing {
            self.name_stragglers();
        }
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
        self.raise(&sequence, now);
        before == Phase::Serving
    }

    /// Before anybody can see that it is the deadline: who does will end, and can't be named any more.
    fn name_stragglers(&self) {
        let now = self.registry.clock.now();
        let mut named = Vec::new();
        self.registry.each_connection(|connection| {
            // What is idle is not late.
            let room = STRAGGLERS - named.len();
            if room > 0 && !matches!(connection.snapshot(), Snapshot::Idle) {
                named.extend(connection.stragglers(now).into_iter().take(room));
            }
        });
        *self.stragglers.lock() = named;
    }

    /// All but the end, which shows only when there is a report.
    fn raise(&self, sequence: &Sequence, now: Moment) {
        if sequence.phase() < Phase::Terminated {
            self.registry
                .raise(sequence.phase(), now, sequence.deadline());
        }
    }

    fn start(self: &Arc<Self>) {
        let steps = Steps::new(Arc::clone(self));
        let thread = thread::Builder::new().name("http-terminator".to_owned());
        let Err(error) = thread.spawn(move || steps.run()) else {
            return;
        };
        // A task keeps no deadline while its runtime is stalled, but it drains. Without a runtime
        // either, what is left is to end now, here.
        let mut runtimes = Runtimes::of(&self.registry, &self.registry.in_order());
        if let Ok(runtime) = Handle::try_current() {
            runtimes.note(&runtime);
        }
        let forced = !runtimes.0.iter().any(|runtime| {
            let steps = Steps::new(Arc::clone(self));
            let task = foreign::call(|| runtime.handle.spawn(steps.run_as_task()));
            // A runtime that was shut down ends it at once.
            task.is_some_and(|task| !task.is_finished() || self.registry.report().is_some())
        });
        if forced {
            self.change(Sequence::force);
            Steps::new(Arc::clone(self)).run();
        }
        foreign::call(|| tracing::error!(%error, forced, "no thread for the termination"));
    }
}

/// The runtimes that connections and listeners are polled on.
#[derive(Default)]
struct Runtimes(Vec<Runtime>);

struct Runtime {
    handle: Handle,
    /// An empty task, and since when it waits to be run.
    poke: Option<JoinHandle<()>>,
    since: Moment,
}

impl Runtimes {
    fn of<'a>(
        registry: &Registry,
        connections: impl IntoIterator<Item = &'a Arc<dyn Member>>,
    ) -> Self {
        let mut all = Self::default();
        let mut note = |handle: &Handle| all.note(handle);
        registry.each_runtime(&mut note);
        for door in registry.doors() {
            door.on_runtime(&mut note);
        }
        for connection in connections {
            connection.on_runtime(&mut note);
        }
        all
    }

    fn note(&mut self, handle: &Handle) {
        if self.0.iter().all(|known| known.handle.id() != handle.id()) {
            self.0.push(Runtime {
                handle: handle.clone(),
                poke: None,
                since: Moment::NEVER,
            });
        }
    }

    /// Gives each an empty task, unless it has yet to run the last one.
    fn poke(&mut self, now: Moment) {
        for runtime in &mut self.0 {
            if runtime.poke.as_ref().is_none_or(JoinHandle::is_finished) {
                // A runtime that was shut down ends it at once.
                runtime.poke = foreign::call(|| runtime.handle.spawn(async {}));
                runtime.since = now;
            }
        }
    }

    /// The connections there do not get to look at anything.
    fn is_late(&self, handle: &Handle, now: Moment) -> bool {
        let known = self.0.iter().find(|it| it.handle.id() == handle.id());
        known.is_some_and(|runtime| {
            let waits = runtime.poke.as_ref().is_some_and(|it| !it.is_finished());
            waits && now.since(runtime.since) >= LATE
        })
    }

    /// Some have yet to run the last one.
    fn any_waits(&self) -> bool {
        let mut pokes = self.0.iter().filter_map(|it| it.poke.as_ref());
        pokes.any(|poke| !poke.is_finished())
    }

    fn any_is_late(&self, now: Moment) -> bool {
        self.0.iter().any(|it| self.is_late(&it.handle, now))
    }
}

/// The steps of one termination: what is to be done now, and when to look again. Whoever takes them
/// only sleeps in between.
struct Steps {
    driver: Arc<Driver>,
    acted: Phase,
    /// When this side takes part in waking the connections that have to learn of the drain.
    call: Moment,
    /// Who is to be woken.
    due: BinaryHeap<Reverse<(Moment, Sleeper)>>,
    /// Sockets to be closed in stages, and when at the latest.
    lingering: Vec<(Moment, u64)>,
    runtimes: Runtimes,
    poke: Moment,
    /// When to look for idle connections whose runtime does not.
    outside: Moment,
    sweep: Moment,
    /// How many threads close sockets at the deadline.
    threads: usize,
    /// Since when nothing is waited for but what listeners hold, and how much that is.
    abandoned: Option<(Moment, usize)>,
}

impl Steps {
    fn new(driver: Arc<Driver>) -> Self {
        Self {
            driver,
            acted: Phase::Serving,
            call: Moment::NEVER,
            due: BinaryHeap::new(),
            lingering: Vec::new(),
            runtimes: Runtimes::default(),
            poke: Moment::NEVER,
            outside: Moment::NEVER,
            sweep: Moment::NEVER,
            threads: 1,
            abandoned: None,
        }
    }

    fn run(mut self) {
        let registry = Arc::clone(&self.driver.registry);
        while let Some(at) = self.step_or_survive(registry.clock.now()) {
            registry.sleep(at);
        }
    }

    async fn run_as_task(mut self) {
        let registry = Arc::clone(&self.driver.registry);
        while let Some(at) = self.step_or_survive(registry.clock.now()) {
            let time = at.since(registry.clock.now()).min(TICK);
            // There may be no timer.
            match foreign::call(|| tokio::time::sleep(time)) {
                Some(sleep) => sleep.await,
                None => tokio::task::yield_now().await,
            }
        }
    }

    /// Foreign code is called elsewhere, or survived where it is called. Should some have been
    /// overlooked, the step is taken again.
    fn step_or_survive(&mut self, now: Moment) -> Option<Moment> {
        catch_unwind(AssertUnwindSafe(|| self.step(now))).unwrap_or_else(|thrown| {
            std::mem::forget(thrown);
            Some(now.after(SWEEP))
        })
    }

    /// Does what is to be done by now, and gives when to look again; `None` at the end.
    fn step(&mut self, now: Moment) -> Option<Moment> {
        let registry = Arc::clone(&self.driver.registry);
        self.listen(now);
        let wait = loop {
            let empty = registry.is_empty();
            let (step, phase) = {
                let mut sequence = self.driver.sequence.lock();
                if empty && sequence.phase() == Phase::Draining && registry.connections() > 0 {
                    // Only detached ones are left.
                    sequence.force(now);
                }
                let all_gone = empty && registry.connections() == 0;
                let step = sequence.step(&registry.config, now, all_gone);
                (step, sequence.phase())
            };
            if phase == Phase::Forcing && registry.phase() < phase {
                self.driver.name_stragglers();
            }
            self.driver.raise(&self.driver.sequence.lock(), now);
            if phase > self.acted {
                self.acted = phase;
                self.enter(phase, now);
                continue;
            }
            match step {
                // Who waits for the end is woken by those who may be stuck.
                Step::Done if registry.hands().relieve() => return Some(now.after(RELIEF)),
                Step::Done => {
                    registry.hands().close();
                    registry.log_lane().close();
                    return None;
                }
                Step::Enter(_) => {}
                Step::Wait(until) => break until,
            }
        };
        self.chores(now);
        let mut next = self
            .due
            .peek()
            .map_or(Moment::NEVER, |Reverse((at, _))| *at);
        if registry.hands().relieve() {
            next = next.min(now.after(RELIEF));
        }
        Some(
            next.min(wait)
                .min(self.call)
                .min(self.poke)
                .min(self.outside)
                .min(self.sweep),
        )
    }

    /// Takes in what was asked for.
    fn listen(&mut self, now: Moment) {
        let asked = self.driver.registry.asked();
        self.due.extend(asked.due.into_iter().map(Reverse));
        if !asked.lingering.is_empty() {
            let until = now.after(LINGER);
            self.lingering
                .extend(asked.lingering.into_iter().map(|id| (until, id)));
            self.sweep = self.sweep.min(now);
        }
        for runtime in &asked.runtimes {
            self.runtimes.note(runtime);
        }
    }

    /// Acts first, logs after.
    fn enter(&mut self, phase: Phase, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        let connections = registry.connections();
        match phase {
            Phase::Serving => {}
            Phase::LameDuck => registry.announce(phase),
            Phase::Draining => {
                let connections = registry.in_order();
                self.runtimes = Runtimes::of(&registry, &connections);
                // Listeners first: what the kernel has queued is to be served.
                for (id, _) in registry.doors_by_number() {
                    self.empty(id, now);
                }
                let wakes = connections.into_iter().map(Chore::WakeMember);
                registry.hands().hand_over_all(wakes);
                self.have_helped();
                // By the runtimes: woken from outside, each connection costs a system call. What they
                // have not begun with in time, stalled or gone, is left to our own threads.
                self.call = if self.runtimes.0.is_empty() {
                    now
                } else {
                    now.after(CALL)
                };
                registry.announce(phase);
                self.poke = now;
                self.outside = now.after(LATE);
            }
            Phase::Forcing => {
                self.due.clear();
                self.outside = Moment::NEVER;
                self.threads = thread::available_parallelism().map_or(1, |n| n.get().min(8));
                let connections = registry.in_order();
                self.runtimes = Runtimes::of(&registry, &connections);
                self.have_cut(connections);
                self.have_helped();
                self.close_doors();
                registry.announce(phase);
                self.log_stragglers();
                self.poke = now;
                self.sweep = now.after(SWEEP);
            }
            Phase::Terminated => {
                registry.end();
                // Who registers from now on sees that; who did before is found here.
                self.close_doors();
                registry.each_connection(|connection| {
                    Arc::clone(connection).cut(Cut::Hard);
                    registry
                        .hands()
                        .hand_over(Chore::WakeMember(Arc::clone(connection)));
                });
                let report = self.report(now);
                let last_word = report.clone();
                registry.log(move || tracing::info!(report = %last_word, "terminated"));
                registry.log_lane().settles_within(LAST_WORD);
                registry.write_report(report);
                registry.announce(phase);
                return;
            }
        }
        registry.log(move || tracing::info!(%phase, connections, "terminating"));
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
                        registry.hands().hand_over(Chore::WakeMember(connection));
                    }
                }
                Sleeper::Waiter(n) => {
                    if let Some(waker) = registry.take_waiter(n) {
                        registry.hands().hand_over(Chore::Wake(waker));
                    }
                }
                Sleeper::Door(id) => self.empty(id, now),
            }
        }
        if now >= self.call {
            self.call = Moment::NEVER;
            registry.hands().join(1);
        }
        if self.acted == Phase::Draining {
            self.look_for_abandoned(now);
        }
        if now >= self.poke {
            self.poke = now.after(POKE);
            self.runtimes.poke(now);
        }
        if now >= self.outside {
            self.close_idle(now);
        }
        if now >= self.sweep {
            self.sweep(now);
        }
    }

    /// An accept loop that has ended without dropping its listener will not ask for what that holds; one
    /// that waits for something else does, when it has that. So this gives up once nothing else is waited
    /// for, and has not been for a while in which all runtimes ran.
    fn look_for_abandoned(&mut self, now: Moment) {
        let registry = &self.driver.registry;
        let doors = registry.doors();
        let held: usize = doors.iter().map(|door| door.held()).sum();
        let alone = held > 0
            && registry.guards() == 0
            && registry.waited_for() <= held
            && !doors.iter().any(|door| door.is_open());
        if !alone {
            self.abandoned = None;
            return;
        }
        match self.abandoned {
            Some((since, n)) if n == held => {
                if now.since(since) >= ABANDONED && !self.runtimes.any_waits() {
                    self.close_doors();
                }
            }
            _ => self.abandoned = Some((now, held)),
        }
    }

    /// Takes what a listener's queue holds, on a thread that may get stuck in it.
    fn empty(&self, id: usize, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        let Some(door) = registry.door(id) else {
            return;
        };
        self.driver.registry.apart(move || {
            if let Some(at) = door.empty(now) {
                registry.remind(at, Sleeper::Door(id));
            }
        });
    }

    fn close_doors(&self) {
        let registry = &self.driver.registry;
        for door in registry.doors() {
            registry.apart(move || door.close());
        }
    }

    /// A runtime that is stalled, or that nobody runs, does not get to close what is idle.
    fn close_idle(&mut self, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        if self.runtimes.any_is_late(now) {
            registry.each_connection(|connection| {
                // One that was never polled has none.
                let mut late = true;
                connection.on_runtime(&mut |handle| late = self.runtimes.is_late(handle, now));
                if late {
                    Arc::clone(connection).close_idle(now);
                }
            });
        }
        // However many there are, most of the time is for something else.
        let took = registry.clock.now().since(now);
        self.outside = now.after(POKE.max(took * 4));
    }

    fn sweep(&mut self, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        if self.acted == Phase::Forcing {
            // However many there are, one look at all of them ends before the next begins.
            self.sweep = now.after(SWEEP);
            if registry.hands().is_crowd_gone() {
                self.have_cut(registry.in_order());
            }
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

    /// By the runtimes and by our own threads: each is several system calls, and there may be thousands.
    /// Tasks are woken behind all of them, so that they don't take the time from those that wait for
    /// their answer.
    fn have_cut(&self, connections: Vec<Arc<dyn Member>>) {
        let hands = self.driver.registry.hands();
        let cuts = connections.iter().map(Arc::clone).map(Chore::Cut);
        hands.hand_over_all(cuts);
        hands.hand_over_all(connections.into_iter().map(Chore::WakeMember));
        hands.join(self.threads);
    }

    fn have_helped(&self) {
        for runtime in &self.runtimes.0 {
            let registry = Arc::clone(&self.driver.registry);
            foreign::call(|| drop(runtime.handle.spawn(async move { registry.hands().help() })));
        }
    }

    /// Says who was late.
    fn log_stragglers(&self) {
        let named = self.driver.stragglers.lock().clone();
        self.driver.registry.log(move || {
            for straggler in named {
                let number = straggler.connection;
                tracing::warn!(connection = number, %straggler, "forcing a connection");
            }
        });
    }

    fn report(&mut self, now: Moment) -> Report {
        let registry = &self.driver.registry;
        let mut stragglers = std::mem::take(&mut *self.driver.stragglers.lock());
        let mut unresponsive = 0;
        registry.each_connection(|connection| {
            // There may be thousands.
            if !connection.is_inside() {
                return;
            }
            for mut blocked in connection.stragglers(now) {
                if blocked.unresponsive {
                    unresponsive += 1;
                    // It may have become a straggler since the deadline. Otherwise its peer was known
                    // then, and its socket is closed by now.
                    let same = |s: &Straggler| {
                        s.connection == blocked.connection && s.path == blocked.path
                    };
                    // Behind those that were put in front.
                    let named = &stragglers[unresponsive - 1..];
                    if let Some(known) = named.iter().position(same) {
                        blocked.peer = stragglers.remove(unresponsive - 1 + known).peer;
                    }
                    stragglers.insert(0, blocked);
                }
            }
        });
        // Cut, but not gone: their IO is still inside its own drop, or their task was not dropped.
        registry.each_connection(|connection| {
            if stragglers.len() < STRAGGLERS {
                for left in connection.stragglers(now) {
                    let same = |known: &Straggler| known.connection == left.connection;
                    if !stragglers.iter().any(same) {
                        stragglers.push(left);
                    }
                }
            }
        });
        stragglers.truncate(STRAGGLERS);
        let (connections, ended) = registry.tally();
        // Who comes when all are gone is no part of this.
        let forced = self
            .driver
            .sequence
            .lock()
            .entered(Phase::Forcing)
            .is_some();
        let (left, unclosed) = if forced {
            let unclosed = registry.unclosed.load(Relaxed) + registry.doors().len();
            (connections, unclosed)
        } else {
            (0, 0)
        };
        let took = |phase| self.driver.sequence.lock().took(phase, now);
        let outcome = |outcome: Outcome| ended[outcome as usize];
        Report {
            idle: outcome(Outcome::Idle),
            finished: outcome(Outcome::Finished),
            closed_by_peer: outcome(Outcome::ClosedByPeer),
            stalled: outcome(Outcome::Stalled),
            upgraded: outcome(Outcome::Upgraded),
            left: outcome(Outcome::Left),
            detached: outcome(Outcome::Detached),
            // Those whose tasks have not let go yet are cut as well.
            forced: outcome(Outcome::Forced) + left,
            unclosed,
            lost_in_queue: registry.lost_in_queue.load(Relaxed),
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
