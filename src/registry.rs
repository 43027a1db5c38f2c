//! The set of what is alive, and what it has to say to the driver.
//!
//! Nothing in here is written while a request is served: a connection takes one shard's lock when
//! it comes and when it goes.
//!
//! Invariants, cited by number where code leans on them:
//!
//! 1. A phase never falls.
//! 2. Register first, read the phase after: who comes late sees it.
//! 3. A guard is counted before the phase is read.
//! 4. HTTP/2 is told at most once; an end-of-file is injected at most once.
//! 5. The report exists only after the last drop, and is written once; `Terminated` is visible only after it.
//! 6. Counts change in `Drop` only.
//! 7. No lock in here is held across an await, a wake, or a call into foreign IO.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::foreign::{self, Call, Job, Lane};
use crate::phase::{Phase, RisingPhase};
use crate::report::{Report, Straggler};
use crate::sequence::{CUT, LAST_ANSWER};

/// Enough that cores which accept at the same time seldom meet.
const SHARDS: usize = 16;

/// How long outsiders wait for a lock: somebody's IO may block inside its own poll.
pub(crate) const BRIEFLY: Duration = Duration::from_micros(100);

/// Threads for what may block, at most: each is stuck in something that is not ours.
const HANDS: usize = 64;

/// A connection, as the driver sees it.
pub(crate) trait Member: Send + Sync {
    /// Wakes whoever polls it, so that it looks at the phase.
    fn wake(&self);

    /// A step towards its end, as hard as that at least: see [`Registry::how_to_cut`]. Its task is not
    /// woken for it; true if it has to be at once, as the rest is up to it.
    fn cut(self: Arc<Self>, least: Cut) -> bool;

    /// Closes it from outside if it is idle: for one whose runtime does not get to do so. True if it did.
    fn close_idle(self: Arc<Self>, now: Moment) -> bool;

    fn snapshot(&self) -> Snapshot;

    /// Whether a handler of it is inside a poll.
    fn is_inside(&self) -> bool;

    /// Who it is, for the report: one for each request in hand, or one if there is none.
    fn stragglers(&self, now: Moment) -> Vec<Straggler>;

    /// Calls with the runtime it was polled on last, if it was.
    fn on_runtime(&self, f: &mut dyn FnMut(&Handle));
}

/// A listener, as the driver sees it.
pub(crate) trait Door: Send + Sync {
    /// The drain has begun: takes what the kernel has queued, for whoever accepts, and closes it.
    /// Gives when to go on.
    fn empty(&self, now: Moment) -> Option<Moment>;

    /// Closes it as it is. What it holds is lost.
    fn close(&self);

    /// The kernel still queues for it.
    fn is_open(&self) -> bool;

    /// How many connections it holds that nobody has asked for.
    fn held(&self) -> usize;

    /// Calls with the runtime it was polled on last, if it was.
    fn on_runtime(&self, f: &mut dyn FnMut(&Handle));
}

/// How hard to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cut {
    /// Half-close, unless an answer may still go out, and discard what comes in.
    Soft,
    /// Half-close even then.
    Firm,
    /// Close the file descriptor.
    Hard,
}

/// What [`stats`](crate::Terminator::stats) asks a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Snapshot {
    Idle,
    Busy { requests: usize },
    Upgraded,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Idle,
    Finished,
    ClosedByPeer,
    Stalled,
    Upgraded,
    Left,
    Detached,
    Forced,
}

const OUTCOMES: usize = 8;

/// Some of the connections.
#[derive(Default)]
struct Shard {
    seats: HashMap<u64, Seat, BuildHasherDefault<Spread>>,
    /// Those that are not detached.
    waited_for: usize,
}

struct Seat {
    member: Arc<dyn Member>,
    detached: bool,
}

/// What is handed to threads that may get stuck in it.
pub(crate) enum Chore {
    WakeMember(Arc<dyn Member>),
    Cut(Arc<dyn Member>),
    Wake(Waker),
    Call(Call),
}

impl Job for Chore {
    fn run(self) {
        match self {
            Self::WakeMember(member) => member.wake(),
            Self::Cut(member) => {
                if Arc::clone(&member).cut(Cut::Soft) {
                    member.wake();
                }
            }
            Self::Wake(waker) => waker.wake(),
            Self::Call(call) => call(),
        }
    }
}

/// Numbers that count up need no more hashing than this, and nobody but us chooses them: a product
/// with an odd number keeps all apart and moves their differences to the upper bits, which the map
/// looks at first (Knuth, The Art of Computer Programming, volume 3, section 6.4).
#[derive(Default)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn write_u64(&mut self, n: u64) {
        self.0 = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 << 8 | u64::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(crate) struct Registry {
    pub(crate) clock: Clock,
    pub(crate) config: Config,
    phase: RisingPhase,
    /// The last sweep begins, or has passed: who comes now has to end by itself.
    over: AtomicBool,
    pub(crate) draining: CancellationToken,
    drain_began: AtomicU64,
    deadline: AtomicU64,
    shards: [Mutex<Shard>; SHARDS],
    next_door: AtomicUsize,
    doors: Mutex<HashMap<usize, Arc<dyn Door>>>,
    next: AtomicU64,
    guards: AtomicUsize,
    /// In a drain: how often something was counted.
    arrivals: AtomicU64,
    outcomes: [AtomicUsize; OUTCOMES],
    pub(crate) accepted_late: AtomicUsize,
    pub(crate) lost_in_queue: AtomicUsize,
    /// Sockets that were cut, and whose drop has not come to its end.
    pub(crate) unclosed: AtomicUsize,
    pub(crate) answered_at_deadline: AtomicUsize,
    pub(crate) abandoned: AtomicUsize,
    /// Runtimes of [`spawn`](crate::Terminator::spawn)ed work, and of whoever else came when the drain had begun.
    runtimes: Mutex<Vec<(Handle, usize)>>,
    next_waiter: AtomicU64,
    waiters: Mutex<HashMap<u64, (Phase, Waker)>>,
    agenda: Mutex<Agenda>,
    bell: Condvar,
    hands: Lane<Chore>,
    log: Lane<Call>,
    report: OnceLock<Report>,
}

/// Whom the driver is asked to wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sleeper {
    /// A connection.
    Connection(u64),
    /// Somebody who waits to be told of the drain.
    Waiter(u64),
    /// A listener that is being emptied.
    Door(usize),
}

/// A runtime that is remembered for as long as this lives.
pub(crate) struct Noted {
    id: tokio::runtime::Id,
    registry: Arc<Registry>,
}

impl Drop for Noted {
    fn drop(&mut self) {
        let mut runtimes = self.registry.runtimes.lock();
        let at = runtimes
            .iter()
            .position(|(handle, _)| handle.id() == self.id);
        let gone = at.and_then(|at| {
            runtimes[at].1 -= 1;
            (runtimes[at].1 == 0).then(|| runtimes.swap_remove(at))
        });
        drop(runtimes);
        drop(gone);
    }
}

/// What the driver was asked for.
pub(crate) struct Asked {
    /// Whom to wake when.
    pub(crate) due: Vec<(Moment, Sleeper)>,
    /// Whose socket to close in stages.
    pub(crate) lingering: Vec<u64>,
    pub(crate) runtimes: Vec<Handle>,
}

/// What the driver has to look at next.
struct Agenda {
    rung: bool,
    due: Vec<(Moment, Sleeper)>,
    lingering: Vec<u64>,
    /// Where connections were polled that the driver did not find when the drain began.
    runtimes: Vec<Handle>,
    /// When the driver wakes up by itself.
    until: Moment,
}

impl Registry {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            clock: Clock::start(),
            config,
            phase: RisingPhase::new(),
            over: AtomicBool::new(false),
            draining: CancellationToken::new(),
            drain_began: AtomicU64::new(Moment::NEVER.as_micros()),
            deadline: AtomicU64::new(Moment::NEVER.as_micros()),
            shards: std::array::from_fn(|_| Mutex::default()),
            next_door: AtomicUsize::new(1),
            doors: Mutex::default(),
            next: AtomicU64::new(1),
            guards: AtomicUsize::new(0),
            arrivals: AtomicU64::new(0),
            outcomes: std::array::from_fn(|_| AtomicUsize::new(0)),
            accepted_late: AtomicUsize::new(0),
            lost_in_queue: AtomicUsize::new(0),
            unclosed: AtomicUsize::new(0),
            answered_at_deadline: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
            runtimes: Mutex::default(),
            next_waiter: AtomicU64::new(1),
            waiters: Mutex::default(),
            agenda: Mutex::new(Agenda {
                rung: false,
                due: Vec::new(),
                lingering: Vec::new(),
                runtimes: Vec::new(),
                until: Moment::NEVER,
            }),
            bell: Condvar::new(),
            hands: Lane::new(HANDS),
            log: Lane::new(1),
            report: OnceLock::new(),
        }
    }

    // ----- phase and time -----

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Everybody who looks from now on sees it. Waiters are told by [`announce`](Self::announce).
    pub(crate) fn raise(&self, phase: Phase, now: Moment, deadline: Moment) {
        if phase >= Phase::Draining {
            self.drain_began
                .fetch_min(now.as_micros(), Ordering::SeqCst);
        }
        self.deadline.store(deadline.as_micros(), Ordering::SeqCst);
        self.phase.raise(phase);
    }

    /// Wakes who waits for that phase.
    pub(crate) fn announce(self: &Arc<Self>, phase: Phase) {
        let told: Vec<_> = {
            let mut waiters = self.waiters.lock();
            let told = waiters.iter().filter(|(_, (it, _))| *it <= phase);
            let told: Vec<_> = told.map(|(n, _)| *n).collect();
            let told = told.iter().filter_map(|n| waiters.remove(n));
            told.map(|(_, waker)| waker).collect()
        };
        for waker in told {
            self.hands.hand_over(Chore::Wake(waker));
        }
        if phase >= Phase::Draining && !self.draining.is_cancelled() {
            let registry = Arc::clone(self);
            self.apart(move || registry.draining.cancel());
        }
    }

    /// From now on nobody looks for late comers.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn drain_began(&self) -> Moment {
        Moment::from_micros(self.drain_began.load(Ordering::SeqCst))
    }

    pub(crate) fn deadline(&self) -> Moment {
        Moment::from_micros(self.deadline.load(Ordering::SeqCst))
    }

    /// How hard to cut by now. Whoever does it looks for himself, as there may be thousands before.
    pub(crate) fn how_to_cut(&self) -> Cut {
        match self.clock.now().since(self.deadline()) {
            _ if self.is_over() => Cut::Hard,
            time if time >= CUT => Cut::Hard,
            time if time >= LAST_ANSWER => Cut::Firm,
            _ => Cut::Soft,
        }
    }

    // ----- members -----

    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn join(&self, id: u64, member: Arc<dyn Member>) {
        let mut shard = self.shard(id).lock();
        shard.waited_for += 1;
        let seat = Seat {
            member,
            detached: false,
        };
        shard.seats.insert(id, seat);
        drop(shard);
        self.arrived();
    }

    /// The last of a connection is gone, or nobody will get at it any more. False if that was known.
    pub(crate) fn leave(&self, id: u64, outcome: Outcome) -> bool {
        let (seat, last) = {
            let mut shard = self.shard(id).lock();
            let Some(seat) = shard.seats.remove(&id) else {
                return false;
            };
            shard.waited_for -= usize::from(!seat.detached);
            if self.phase() >= Phase::Draining {
                let outcome = match outcome {
                    Outcome::Forced if seat.detached => Outcome::Detached,
                    outcome => outcome,
                };
                self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
            }
            (seat, shard.waited_for == 0)
        };
        drop(seat);
        // Otherwise the driver would only count and sleep again.
        if last {
            self.ring_if_ending();
        }
        true
    }

    /// The drain no longer waits for this connection, if it is still there.
    pub(crate) fn detach(&self, id: u64) {
        let mut shard = self.shard(id).lock();
        let Some(seat) = shard.seats.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut seat.detached, true) {
            shard.waited_for -= 1;
        }
        drop(shard);
        self.ring_if_ending();
    }

    pub(crate) fn next_door(&self) -> usize {
        self.next_door.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn open(&self, id: usize, door: Arc<dyn Door>) {
        self.doors.lock().insert(id, door);
        self.arrived();
    }

    pub(crate) fn door(&self, id: usize) -> Option<Arc<dyn Door>> {
        self.doors.lock().get(&id).cloned()
    }

    /// The listener behind that door is gone, and it holds nothing.
    pub(crate) fn closed(&self, id: usize) {
        let door = self.doors.lock().remove(&id);
        drop(door);
        self.ring_if_ending();
    }

    /// Has a listener emptied that came when the others were. Only during a termination.
    pub(crate) fn empty_door(&self, id: usize) {
        self.remind(self.clock.now(), Sleeper::Door(id));
    }

    pub(crate) fn doors_by_number(&self) -> Vec<(usize, Arc<dyn Door>)> {
        let doors = self.doors.lock();
        doors.iter().map(|(id, it)| (*id, Arc::clone(it))).collect()
    }

    pub(crate) fn doors(&self) -> Vec<Arc<dyn Door>> {
        self.doors.lock().values().cloned().collect()
    }

    /// How many connections there ever were.
    pub(crate) fn accepted(&self) -> u64 {
        self.next.load(Ordering::Relaxed) - 1
    }

    pub(crate) fn connection(&self, id: u64) -> Option<Arc<dyn Member>> {
        let shard = self.shard(id).lock();
        shard.seats.get(&id).map(|seat| Arc::clone(&seat.member))
    }

    pub(crate) fn connections(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().seats.len())
            .sum()
    }

    pub(crate) fn each_connection(&self, mut f: impl FnMut(&Arc<dyn Member>)) {
        for shard in &self.shards {
            // Not under its lock (invariant 7).
            let members: Vec<_> = {
                let shard = shard.lock();
                let seats = shard.seats.values();
                seats.map(|seat| Arc::clone(&seat.member)).collect()
            };
            members.iter().for_each(&mut f);
        }
    }

    /// All connections, in the order in which they were accepted: to end them in that order costs the
    /// kernel a third less than at random, and the allocator too, as what they have lies side by side.
    pub(crate) fn in_order(&self) -> Vec<Arc<dyn Member>> {
        let mut all = Vec::with_capacity(self.connections());
        for shard in &self.shards {
            let shard = shard.lock();
            let seats = shard.seats.iter();
            all.extend(seats.map(|(id, seat)| (*id, Arc::clone(&seat.member))));
        }
        all.sort_unstable_by_key(|(id, _)| *id);
        all.into_iter().map(|(_, member)| member).collect()
    }

    /// How many connections the drain waits for.
    pub(crate) fn waited_for(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().waited_for)
            .sum()
    }

    /// Nothing is left that the termination waits for.
    pub(crate) fn is_empty(&self) -> bool {
        // One may have been counted here before the last of another kind left there: a handler that
        // spawns work, work that tracks a connection. So nothing may have come while we looked.
        let arrivals = self.arrivals.load(Ordering::SeqCst);
        self.doors.lock().is_empty()
            && self.guards() == 0
            && self.waited_for() == 0
            && self.arrivals.load(Ordering::SeqCst) == arrivals
    }

    /// After something was counted: who looks for what is left either finds it, or sees that it has to
    /// look again. What is counted before the drain began is found.
    fn arrived(&self) {
        if self.phase() >= Phase::Draining {
            self.arrivals.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn shard(&self, id: u64) -> &Mutex<Shard> {
        &self.shards[usize::try_from(id % SHARDS as u64).unwrap_or(0)]
    }

    // ----- guards -----

    pub(crate) fn guards(&self) -> usize {
        self.guards.load(Ordering::SeqCst)
    }

    /// Count first, look at the phase after (invariant 3).
    pub(crate) fn count_guard(&self) {
        self.guards.fetch_add(1, Ordering::SeqCst);
        self.arrived();
    }

    pub(crate) fn release_guard(&self) {
        if self.guards.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.ring_if_ending();
        }
    }

    // ----- who waits for a phase -----

    pub(crate) fn next_waiter(&self) -> u64 {
        self.next_waiter.fetch_add(1, Ordering::Relaxed)
    }

    /// Has the waiter woken when that phase is announced. Look at the phase after it (invariant 2).
    pub(crate) fn wait_for(&self, phase: Phase, n: u64, waker: Waker) {
        let known = self.waiters.lock().insert(n, (phase, waker));
        drop(known);
    }

    /// Has the waiter woken then, or at the deadline. Only during a termination.
    pub(crate) fn wait_until(&self, at: Moment, n: u64, waker: Waker) {
        let known = self.waiters.lock().insert(n, (Phase::Forcing, waker));
        if known.is_none() {
            self.remind(at, Sleeper::Waiter(n));
        }
        drop(known);
    }

    /// It no longer waits, or is to be woken.
    pub(crate) fn take_waiter(&self, n: u64) -> Option<Waker> {
        let waiter = self.waiters.lock().remove(&n);
        waiter.map(|(_, waker)| waker)
    }

    // ----- what is foreign -----

    /// Does what may block, or panic, on a thread that may get stuck in it.
    pub(crate) fn apart(&self, call: impl FnOnce() + Send + 'static) {
        self.hands.hand_over(Chore::Call(Box::new(call)));
    }

    pub(crate) fn hands(&self) -> &Lane<Chore> {
        &self.hands
    }

    /// Logs on a thread that may get stuck in it: a lost line is fine, a lost deadline is not.
    pub(crate) fn log(&self, event: impl FnOnce() + Send + 'static) {
        self.log.hand_over(Box::new(event));
    }

    pub(crate) fn log_lane(&self) -> &Lane<Call> {
        &self.log
    }

    // ----- runtimes -----

    /// Remembers the runtime this is called on, if any, until what is returned is dropped, so that the
    /// driver can keep it going.
    pub(crate) fn note_runtime(self: &Arc<Self>) -> Option<Noted> {
        let handle = Handle::try_current().ok()?;
        let noted = Noted {
            id: handle.id(),
            registry: Arc::clone(self),
        };
        let mut runtimes = self.runtimes.lock();
        match runtimes
            .iter_mut()
            .find(|(known, _)| known.id() == noted.id)
        {
            Some((_, n)) => *n += 1,
            None => runtimes.push((handle, 1)),
        }
        Some(noted)
    }

    pub(crate) fn each_runtime(&self, mut f: impl FnMut(&Handle)) {
        let runtimes: Vec<_> = {
            let runtimes = self.runtimes.lock();
            runtimes.iter().map(|(handle, _)| handle.clone()).collect()
        };
        runtimes.iter().for_each(&mut f);
    }

    // ----- the driver's bell -----

    /// Asks the driver to wake somebody then. Only during a termination: before it, nobody reads it.
    pub(crate) fn remind(&self, at: Moment, whom: Sleeper) {
        let mut agenda = self.agenda.lock();
        agenda.due.push((at, whom));
        let sooner = at < agenda.until;
        agenda.until = agenda.until.min(at);
        drop(agenda);
        // Thousands may ask for about the same time.
        if sooner {
            self.bell.notify_all();
        }
    }

    /// Hands the driver a socket to be closed in stages. Only during a termination.
    pub(crate) fn linger(&self, id: u64) {
        self.agenda.lock().lingering.push(id);
        self.bell.notify_all();
    }

    pub(crate) fn ring(&self) {
        self.agenda.lock().rung = true;
        self.bell.notify_all();
    }

    fn ring_if_ending(&self) {
        if self.phase() > Phase::Serving {
            self.ring();
        }
    }

    /// Tells the driver of a runtime. Only during a termination.
    pub(crate) fn tell_runtime(&self, runtime: Handle) {
        self.agenda.lock().runtimes.push(runtime);
    }

    /// What was asked for since this was called last.
    pub(crate) fn asked(&self) -> Asked {
        let mut agenda = self.agenda.lock();
        agenda.rung = false;
        let agenda = &mut *agenda;
        Asked {
            due: std::mem::take(&mut agenda.due),
            lingering: std::mem::take(&mut agenda.lingering),
            runtimes: std::mem::take(&mut agenda.runtimes),
        }
    }

    /// Sleeps until `at`, or until something is asked for that comes earlier.
    pub(crate) fn sleep(&self, at: Moment) {
        let mut agenda = self.agenda.lock();
        let asked = agenda.due.iter().map(|(at, _)| *at);
        agenda.until = asked.fold(at, Moment::min);
        loop {
            let left = agenda.until.since(self.clock.now());
            if agenda.rung || !agenda.lingering.is_empty() || left.is_zero() {
                agenda.until = Moment::START;
                return;
            }
            if agenda.until == Moment::NEVER {
                self.bell.wait(&mut agenda);
            } else {
                self.bell.wait_for(&mut agenda, left);
            }
        }
    }

    // ----- the report -----

    /// How many connections there are, and how many have ended how: each is in one of these.
    pub(crate) fn tally(&self) -> (usize, [usize; OUTCOMES]) {
        // They change under these locks.
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.lock()).collect();
        let connections = shards.iter().map(|shard| shard.seats.len()).sum();
        let ended = self.outcomes.each_ref();
        (connections, ended.map(|n| n.load(Ordering::Relaxed)))
    }

    pub(crate) fn report(&self) -> Option<&Report> {
        self.report.get()
    }

    /// Written once, and only then is the end visible (invariant 5).
    pub(crate) fn write_report(&self, report: Report) {
        let written = self.report.set(report);
        debug_assert!(written.is_ok(), "the report is written once (invariant 5)");
        self.phase.raise(Phase::Terminated);
    }
}

/// Who waits without holding it learns that there is nothing left to wait for.
impl Drop for Registry {
    fn drop(&mut self) {
        for (_, waker) in self.waiters.get_mut().drain().map(|(_, waiter)| waiter) {
            foreign::call(|| waker.wake());
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "serve"))]
mod tests {
    use std::convert::Infallible;
    use std::thread;

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
            let outcomes = self.outcomes.iter();
            let counts = outcomes.chain([
                &self.next_door,
                &self.guards,
                &self.accepted_late,
                &self.lost_in_queue,
                &self.answered_at_deadline,
                &self.abandoned,
            ]);
            let counts = counts.map(|n| n.load(Ordering::SeqCst) as u64);
            let others = [
                &self.drain_began,
                &self.deadline,
                &self.next,
                &self.arrivals,
                &self.next_waiter,
            ];
            let others = others.map(|n| n.load(Ordering::SeqCst));
            counts.chain(others).chain([self.phase() as u64]).collect()
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
        let shards: Vec<_> = registry.shards.iter().map(|shard| shard.lock()).collect();
        let locked = (
            shards,
            registry.doors.lock(),
            registry.runtimes.lock(),
            registry.waiters.lock(),
            registry.agenda.lock(),
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
