//! The steps of one termination. Whoever takes them only sleeps in between.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;

use super::agenda::Reminder;
use super::chore::Chore;
use super::member::{Cut, Member};
use super::reporting::{log_what_is_left, report};
use super::runtimes::{LATE, Runtimes};
use super::sequence::{Open, Step};
use super::{Driver, foreign};
use crate::census::Left;
use crate::clock::Moment;
use crate::connection::Taken;
use crate::phase::Phase;
#[cfg(all(unix, feature = "systemd"))]
use crate::systemd::EVERY;

/// Until when, whose socket, how long it was to be, and what of it was taken. One that is to be short is not made longer by
/// what its client has yet to take.
type Lingering = (Moment, u64, Duration, Taken);

pub(crate) struct Steps {
    driver: Arc<Driver>,
    acted: Phase,
    /// When this side takes part in waking the connections that have to learn of the drain.
    take_part: Moment,
    /// Who is to be woken, and how many there have to be before those that have gone are sorted out.
    due: BinaryHeap<Reverse<(Moment, Reminder)>>,
    crowd: usize,
    /// Sockets to be closed in stages, and when at the latest.
    lingering: Vec<Lingering>,
    runtimes: Runtimes,
    poke: Moment,
    /// When to look for idle connections whose runtime does not, since when that is done, and where it is to be.
    outside: Moment,
    looks: Moment,
    looked_at: Vec<Arc<dyn Member>>,
    /// The same for those that linger.
    sweep: Moment,
    sweeps: Moment,
    swept: usize,
    /// When to say next what is left.
    say: Moment,
    /// When to tell systemd.
    #[cfg(all(unix, feature = "systemd"))]
    tell: Moment,
    /// How many threads close sockets at the deadline.
    threads: usize,
    /// Since when nothing is waited for but what listeners hold, how much that is, and how many had been asked for by then; and
    /// when that was looked at.
    unclaimed: Option<(Moment, (usize, usize))>,
    unclaimed_at: Moment,
    /// In the lame duck: since when nothing is open but listeners, and how many had come by then.
    unused: Option<(Moment, u64)>,
    /// As it was last seen.
    deadline: Moment,
    /// At the end: until when those who are stuck are relieved.
    relieves: Option<Moment>,
}

impl Steps {
    pub(crate) fn new(driver: Arc<Driver>) -> Self {
        Self {
            driver,
            acted: Phase::Serving,
            take_part: Moment::NEVER,
            due: BinaryHeap::new(),
            crowd: CROWD,
            lingering: Vec::new(),
            runtimes: Runtimes::default(),
            poke: Moment::NEVER,
            outside: Moment::NEVER,
            looks: Moment::NEVER,
            looked_at: Vec::new(),
            sweep: Moment::NEVER,
            sweeps: Moment::NEVER,
            swept: 0,
            say: Moment::NEVER,
            #[cfg(all(unix, feature = "systemd"))]
            tell: Moment::NEVER,
            threads: 1,
            unclaimed: None,
            unclaimed_at: Moment::START,
            unused: None,
            deadline: Moment::NEVER,
            relieves: None,
        }
    }

    pub(super) fn run(mut self) {
        let registry = Arc::clone(&self.driver.registry);
        while let Some(at) = self.step_or_survive(registry.clock.now()) {
            registry.agenda.sleep(at, &registry.clock);
        }
    }

    /// By a task of that runtime; false if that was shut down. Should it be later, somebody else goes on.
    pub(super) fn run_on(self, runtime: &Handle) -> bool {
        let taken = Arc::new(AtomicBool::new(false));
        let registry = Arc::clone(&self.driver.registry);
        let steps = InTask {
            steps: self,
            taken: Arc::clone(&taken),
        };
        drop(foreign::call(|| runtime.spawn(steps.run())));
        !taken.swap(true, SeqCst) || registry.report().is_some()
    }

    /// How many are to come.
    #[cfg(test)]
    pub(super) fn reminders(&self) -> usize {
        self.due.len()
    }

    /// Foreign code is called elsewhere, or survived where it is called. Should some have been
    /// overlooked, the step is taken again.
    fn step_or_survive(&mut self, now: Moment) -> Option<Moment> {
        foreign::call(|| self.step(now)).unwrap_or_else(|| Some(now.after(SWEEP)))
    }

    /// Does what is to be done by now, and gives when to look again; `None` at the end.
    pub(crate) fn step(&mut self, mut now: Moment) -> Option<Moment> {
        let registry = Arc::clone(&self.driver.registry);
        self.listen(now);
        let wait = loop {
            let left = self.left();
            let open = if self.is_unused(now) {
                Open::Unused
            } else if left == Left::Nothing {
                Open::Nothing
            } else {
                Open::Something
            };
            let (step, phase, deadline) = {
                let mut sequence = self.driver.sequence.lock();
                if left == Left::Detached && sequence.phase() == Phase::Draining {
                    sequence.force(now);
                }
                let step = sequence.step(&registry.config, now, open);
                (step, sequence.phase(), sequence.deadline())
            };
            let hurried = self.hurry(deadline, now);
            if phase == Phase::Forcing && self.acted < phase {
                // The first list counts, should somebody else have made one.
                self.driver.stragglers.name(&registry);
            }
            self.driver.raise(&self.driver.sequence.lock(), now);
            if phase > self.acted {
                self.acted = phase;
                self.enter(phase, now);
                // With thousands that takes its time, and what it is asked for meanwhile is counted from when it is seen.
                now = now.max(registry.clock.now());
                continue;
            }
            if hurried {
                // Who has left meanwhile has woken somebody who was awake.
                continue;
            }
            match step {
                // What entered it has panicked, if anything there can.
                Step::Done if registry.report().is_none() => self.enter(Phase::Terminated, now),
                // Who waits for the end is woken by those who may be stuck; all of them for good, perhaps.
                Step::Done
                    if now < *self.relieves.get_or_insert(now.after(RELIEVED))
                        && registry.wakes().relieve() =>
                {
                    return Some(now.after(RELIEF));
                }
                Step::Done => {
                    registry.foreign().close();
                    registry.wakes().close();
                    registry.logging().close();
                    drop(registry.agenda.take());
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
        if registry.foreign().relieve() | registry.wakes().relieve() {
            next = next.min(now.after(RELIEF));
        }
        #[cfg(all(unix, feature = "systemd"))]
        {
            next = next.min(self.tell);
        }
        if let Some((since, _)) = self.unused {
            let at = since.after(registry.config.settle);
            next = next.min(if at > now { at } else { Moment::NEVER });
        }
        Some(
            next.min(wait)
                .min(self.take_part)
                .min(self.poke)
                .min(self.outside)
                .min(self.sweep)
                .min(self.say),
        )
    }

    /// What is left. Where that is nothing to wait for, nothing can come any more that would have to be.
    fn left(&self) -> Left {
        let registry = &self.driver.registry;
        let left = registry.census.left();
        if registry.phase() != Phase::Draining || left == Left::Awaited {
            return left;
        }
        registry.progress.refuse_guards(true);
        // Who has got one before is counted (invariant 3).
        let left = registry.census.left();
        registry.progress.refuse_guards(left != Left::Awaited);
        left
    }

    /// Whether a lame duck has nothing open but listeners, and nobody has come for `settle`.
    fn is_unused(&mut self, now: Moment) -> bool {
        let registry = &self.driver.registry;
        let census = &registry.census;
        let alone =
            self.acted == Phase::LameDuck && census.guards() == 0 && census.waited_for() == 0;
        if !alone {
            self.unused = None;
            return false;
        }
        let accepted = census.accepted();
        self.unused.take_if(|(_, n)| *n != accepted);
        let (since, _) = *self.unused.get_or_insert((now, accepted));
        now >= since.after(registry.config.settle)
    }

    /// Whoever waits for a time may have waited too long when the deadline comes nearer. True if it does.
    fn hurry(&mut self, deadline: Moment, now: Moment) -> bool {
        let comes_nearer = std::mem::replace(&mut self.deadline, deadline) > deadline;
        if comes_nearer {
            self.listen(now);
            let due = std::mem::take(&mut self.due).into_iter();
            self.due = due
                .map(|Reverse((_, whom))| Reverse((Moment::START, whom)))
                .collect();
        }
        comes_nearer
    }

    /// Takes in what was asked for.
    fn listen(&mut self, now: Moment) {
        let asked = self.driver.registry.agenda.take();
        self.due.extend(asked.due.into_iter().map(Reverse));
        if self.due.len() > self.crowd {
            let registry = &self.driver.registry;
            let mut due = std::mem::take(&mut self.due).into_vec();
            // Who is woken for something else meanwhile asks for its turn once more.
            due.sort_unstable();
            due.dedup();
            due.retain(|Reverse((_, whom))| match *whom {
                Reminder::Connection(id) => registry.census.has(id),
                Reminder::Waiter(n) => registry.waiters.has(n),
                Reminder::Listener(id) => registry.census.listener(id).is_some(),
            });
            self.due = due.into();
            self.crowd = CROWD.max(self.due.len() * 2);
        }
        if !asked.lingering.is_empty() {
            let asked = asked.lingering.into_iter();
            self.lingering
                .extend(asked.map(|(id, most)| (now.after(most), id, most, Taken::default())));
            self.sweep = self.sweep.min(now);
        }
        for runtime in &asked.runtimes {
            self.runtimes.note(runtime);
        }
    }

    /// Acts first, logs after.
    fn enter(&mut self, phase: Phase, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        let connections = registry.census.connections();
        #[cfg(all(unix, feature = "systemd"))]
        {
            self.tell = now;
        }
        match phase {
            Phase::Serving => {}
            Phase::LameDuck => {
                registry.census.each_connection(|connection| {
                    let connection = Arc::clone(connection);
                    // It may wake somebody.
                    registry.apart(move || connection.lame_duck());
                });
                registry.announce(phase);
            }
            Phase::Draining => {
                let connections = registry.census.in_order();
                // For which there was no thread.
                for id in registry.keeper.take_unattended() {
                    registry.agenda.linger(id, LINGER);
                }
                self.runtimes = Runtimes::of(&registry, &connections);
                // Also of the runtimes that are told since.
                self.listen(now);
                // Listeners first: what the kernel has queued is to be served.
                for (id, _) in registry.census.listeners() {
                    self.empty(id, now);
                }
                self.hand_over_all(connections, &[Chore::WakeMember]);
                self.have_helped();
                // By the runtimes: woken from outside, each connection costs a system call. What they
                // have not begun with in time, stalled or gone, is left to our own threads.
                self.take_part = if self.runtimes.is_empty() {
                    now
                } else {
                    now.after(HEAD_START)
                };
                registry.announce(phase);
                self.poke = now;
                self.outside = now.after(LATE);
                self.say = registry.drain_began().after(SAY);
            }
            Phase::Forcing => {
                registry.progress.notice_deadline(now);
                self.due.clear();
                self.outside = Moment::NEVER;
                self.looked_at.clear();
                self.say = Moment::NEVER;
                self.threads = thread::available_parallelism().map_or(1, |n| n.get().min(8));
                let connections = registry.census.in_order();
                self.runtimes = Runtimes::of(&registry, &connections);
                self.poke = now;
                self.sweep = now.after(SWEEP);
                self.have_cut(connections);
                self.have_helped();
                self.close_listeners();
                registry.announce(phase);
                self.driver.stragglers.log(&registry);
            }
            Phase::Terminated => {
                let sequence = self.driver.sequence.lock().clone();
                // Who comes when all are gone is no part of it.
                let tally =
                    (sequence.entered(Phase::Forcing).is_none()).then(|| registry.census.tally());
                registry.progress.end();
                // Who registers from now on sees that; who did before is found here.
                self.close_listeners();
                registry.census.each_connection(|connection| {
                    Arc::clone(connection).cut(Cut::Hard);
                });
                let report = report(&registry, &sequence, &self.driver.stragglers, tally, now);
                let last_word = report.clone();
                registry.log(move || tracing::info!(report = %last_word, "terminated"));
                registry.logging().settles_within(LAST_WORD);
                #[cfg(all(unix, feature = "systemd"))]
                registry.notices.ended(&registry, &report);
                // Where nothing is open, there is no drain in which they would have been.
                if registry.cancel_tokens() {
                    registry.wakes().settles_within(TOKENS);
                }
                registry.write_report(report);
                // That of what has come until now, and perhaps looked a moment ago: by now it sees that it is over.
                registry.census.each_connection(|connection| {
                    let wakes = Chore::WakeMember(Arc::clone(connection));
                    registry.foreign().hand_over(wakes);
                });
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
            while self.due.peek() == Some(&Reverse((at, whom))) {
                self.due.pop();
            }
            match whom {
                Reminder::Connection(id) => {
                    if let Some(connection) = registry.census.connection(id) {
                        registry.foreign().hand_over(Chore::WakeMember(connection));
                    }
                }
                Reminder::Waiter(n) => {
                    if let Some(waker) = registry.waiters.take(n) {
                        registry.wake(waker);
                    }
                }
                Reminder::Listener(id) => self.empty(id, now),
            }
        }
        if now >= self.take_part {
            self.take_part = Moment::NEVER;
            registry.foreign().join(1);
        }
        if self.acted == Phase::Draining {
            self.close_unclaimed(now);
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
        if now >= self.say {
            // Counted from the start, and once for as many as were slept through.
            while self.say <= now {
                self.say = self.say.after(SAY);
            }
            log_what_is_left(&registry);
        }
        #[cfg(all(unix, feature = "systemd"))]
        if now >= self.tell {
            self.tell = now.after(EVERY);
            registry.notices.ending(&registry, now);
        }
    }

    /// An accept loop that has ended without dropping its listener will not ask for what that holds; one
    /// that waits for something else does, when it has that. So this gives up once nothing else is waited
    /// for, nothing was asked for for a while, and all runtimes ran.
    fn close_unclaimed(&mut self, now: Moment) {
        let registry = &self.driver.registry;
        let listeners = registry.census.listeners();
        let held: usize = listeners.iter().map(|(_, it)| it.held()).sum();
        let alone = held > 0
            && registry.census.guards() == 0
            && registry.census.waited_for() <= held
            // One that waits for descriptors may have them of these.
            && listeners.iter().all(|(_, it)| !it.is_open() || it.is_starved());
        if !alone {
            self.unclaimed = None;
            return;
        }
        let seen = (held, registry.accepted_late.load(Relaxed));
        // In a process that stood still it had no turn.
        let looked = std::mem::replace(&mut self.unclaimed_at, now);
        self.unclaimed
            .take_if(|_| now.since(looked) > UNCLAIMED / 2);
        match self.unclaimed {
            Some((since, known)) if known == seen => {
                if now.since(since) >= UNCLAIMED && !self.runtimes.any_waits() {
                    self.unclaimed = None;
                    // Others may be asked for what their descriptors let them take. One after the other: each counts all that
                    // it can take with those that it has.
                    let held = listeners.into_iter().filter(|(_, it)| it.held() > 0);
                    let held: Vec<_> = held.collect();
                    registry.apart(move || held.iter().for_each(|(_, it)| it.close()));
                }
            }
            _ => self.unclaimed = Some((now, seen)),
        }
    }

    /// Takes what a listener's queue holds, on a thread that may get stuck in it.
    fn empty(&self, id: u64, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        let Some(listener) = registry.census.listener(id) else {
            return;
        };
        self.driver.registry.apart(move || {
            if let Some(at) = listener.empty(now) {
                registry.remind(at, Reminder::Listener(id));
            }
        });
    }

    fn close_listeners(&self) {
        let registry = &self.driver.registry;
        for (_, listener) in registry.census.listeners() {
            registry.apart(move || listener.close());
        }
    }

    /// A runtime that is stalled, or that nobody runs, does not get to close what is idle.
    /// So many at a time, as the deadline may come.
    fn close_idle(&mut self, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        if self.looked_at.is_empty() {
            self.looks = now;
            if self.runtimes.any_is_late(now) {
                self.looked_at = registry.census.in_order();
            }
        }
        let left = self.looked_at.len().saturating_sub(AT_ONCE);
        for connection in self.looked_at.drain(left..) {
            // One that was never polled has none.
            let mut late = true;
            connection.on_runtime(&mut |handle| late = self.runtimes.is_late(handle, now));
            if late {
                connection.close_idle(now);
            }
        }
        self.outside = if left > 0 {
            now
        } else {
            // However many there are, most of the time is for something else.
            let took = registry.clock.now().since(self.looks);
            now.after(POKE.max(took * 4))
        };
    }

    fn sweep(&mut self, now: Moment) {
        let registry = Arc::clone(&self.driver.registry);
        if self.acted == Phase::Forcing {
            // However many there are, one look at all of them ends before the next begins.
            self.sweep = now.after(SWEEP);
            if registry.foreign().is_crowd_gone() {
                self.have_cut(registry.census.in_order());
            }
            return;
        }
        if self.swept == 0 {
            self.sweeps = now;
        }
        // So many at a time, as above.
        for _ in 0..AT_ONCE {
            let Some((until, id, most, taken)) = self.lingering.get_mut(self.swept) else {
                break;
            };
            let Some(connection) = registry.census.connection(*id) else {
                self.lingering.swap_remove(self.swept);
                continue;
            };
            if now >= *until && *most == LINGER && taken.goes_on(connection.unsent()) {
                *until = now.after(LINGER);
            }
            connection.cut(if now >= *until { Cut::Hard } else { Cut::Soft });
            self.swept += 1;
        }
        self.sweep = if self.swept < self.lingering.len() {
            now
        } else if self.lingering.is_empty() {
            self.swept = 0;
            Moment::NEVER
        } else {
            self.swept = 0;
            let took = registry.clock.now().since(self.sweeps);
            now.after(SWEEP.max(took))
        };
    }

    /// By the runtimes and by our own threads: each is several system calls, and there may be thousands.
    /// Tasks are woken behind all of them, so that they don't take the time from those that wait for
    /// their answer.
    fn have_cut(&self, connections: Vec<Arc<dyn Member>>) {
        self.hand_over_all(connections, &[Chore::Cut, Chore::WakeMember]);
        self.driver.registry.foreign().join(self.threads);
    }

    /// For the runtimes to help with; but not with what belongs to none: it may be polled by somebody whose wakers block.
    fn hand_over_all(&self, members: Vec<Arc<dyn Member>>, chores: &[Make]) {
        let foreign = self.driver.registry.foreign();
        let (theirs, ours): (Vec<_>, Vec<_>) = members.into_iter().partition(|it| {
            let mut has_runtime = false;
            it.on_runtime(&mut |_| has_runtime = true);
            has_runtime
        });
        for chore in chores {
            let theirs = theirs.iter().map(Arc::clone).map(chore);
            foreign.hand_over_all(theirs, ours.iter().map(Arc::clone).map(chore));
        }
    }

    fn have_helped(&self) {
        for runtime in self.runtimes.handles() {
            let registry = Arc::clone(&self.driver.registry);
            foreign::call(|| drop(runtime.spawn(async move { registry.foreign().help() })));
        }
    }
}

/// What a member is to do.
type Make = fn(Arc<dyn Member>) -> Chore;

/// Who waits anew again and again, for a turn that is far away, must not fill the memory with reminders.
const CROWD: usize = 1024;

/// How often every runtime is given an empty task, from the start of the drain on.
const POKE: Duration = Duration::from_millis(20);

/// How often a drain says what it waits for.
const SAY: Duration = Duration::from_secs(5);

/// Steps that go with a runtime, should that end before they do.
struct InTask {
    steps: Steps,
    /// By the runtime; or dropped before it was known whether they are.
    taken: Arc<AtomicBool>,
}

impl InTask {
    async fn run(mut self) {
        let registry = Arc::clone(&self.steps.driver.registry);
        let mut has_timer = true;
        while let Some(at) = self.steps.step_or_survive(registry.clock.now()) {
            let time = at.since(registry.clock.now()).min(TICK);
            // A runtime may have none, and then panics.
            let sleep = has_timer.then(|| foreign::call(|| tokio::time::sleep(time)));
            if let Some(sleep) = sleep.flatten() {
                sleep.await;
            } else {
                has_timer = false;
                // Without a bound it would leave nobody else a turn's worth of time.
                thread::sleep(time.min(BLINK));
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Somebody else goes on from where they were.
impl Drop for InTask {
    fn drop(&mut self) {
        let steps = &mut self.steps;
        let registry = &steps.driver.registry;
        if !self.taken.swap(true, SeqCst) || registry.report().is_some() {
            return;
        }
        for Reverse((at, whom)) in steps.due.drain() {
            registry.remind(at, whom);
        }
        for (_, id, most, _) in steps.lingering.drain(..) {
            registry.agenda.linger(id, most);
        }
        steps.driver.start();
    }
}

/// So many sockets are looked at or closed between two looks at the clock: each takes some ten microseconds.
const AT_ONCE: usize = 64;

/// How often sockets that are cut, or linger, are looked at, at most.
pub(crate) const SWEEP: Duration = Duration::from_millis(5);

/// How long a socket is kept whose client owed the rest of a request that nobody reads any more, so
/// that the answer is not destroyed by a reset (RFC 9112 section 9.6).
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// For how long nothing else must have been waited for before what listeners hold is given up.
const UNCLAIMED: Duration = Duration::from_millis(500);

/// How long the runtimes have to begin with waking the connections of a drain.
const HEAD_START: Duration = Duration::from_millis(1);

/// How often those are looked after who do what may block.
const RELIEF: Duration = Duration::from_millis(2);

/// For how long at the end: whoever gets on later goes on with the rest by himself.
const RELIEVED: Duration = Duration::from_secs(1);

/// How long the last event of a termination has to be logged before its end is told, so that a
/// process that ends with it still says so.
const LAST_WORD: Duration = Duration::from_micros(500);

/// The same for tokens, which are to be cancelled by then, unless the waker of somebody's own blocks.
const TOKENS: Duration = Duration::from_millis(10);

/// How often a termination steps that has no thread; and how long it blocks its runtime for where that has no timer
/// either.
const TICK: Duration = Duration::from_millis(5);
const BLINK: Duration = Duration::from_millis(1);
