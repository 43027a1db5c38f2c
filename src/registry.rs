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
//! 5. The report exists only after the last drop, and is written once.
//! 6. Counts change in `Drop` only.
//! 7. No lock in here is held across an await, a wake, or a call into foreign IO.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::phase::{Phase, RisingPhase};
use crate::report::{Report, Straggler};

/// Enough that cores which accept at the same time seldom meet.
const SHARDS: usize = 16;

/// A connection whose lock was held when it should have been woken is tried again then.
const RETRY: Duration = Duration::from_millis(1);

/// How long outsiders wait for a lock: somebody's IO may block inside its own poll.
pub(crate) const BRIEFLY: Duration = Duration::from_micros(100);

/// A connection, as the driver sees it.
pub(crate) trait Member: Send + Sync {
    /// Wakes whoever polls it, so that it looks at the phase. False if that could not be done
    /// because its lock was held: then somebody is inside its IO, so try again.
    fn wake(&self) -> bool;

    /// A step towards its end, in `Forcing`.
    fn cut(&self, how: Cut);

    fn snapshot(&self) -> Snapshot;

    /// Who it is, for the report: one for each request in hand, or one if there is none.
    fn stragglers(&self, now: Moment) -> Vec<Straggler>;
}

/// A listener, as the driver sees it.
pub(crate) trait Door: Send + Sync {
    /// The drain begins: wakes who accepts.
    fn wake(&self);

    /// Closes it if nobody has looked at it in the drain, and it was asked so before.
    fn close_if_abandoned(&self);

    fn close(&self);
}

/// How hard to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

type Shard = HashMap<u64, Arc<dyn Member>, BuildHasherDefault<Spread>>;

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
    announced: watch::Sender<Phase>,
    pub(crate) draining: CancellationToken,
    pub(crate) forcing: CancellationToken,
    drain_began: AtomicU64,
    deadline: AtomicU64,
    shards: [Mutex<Shard>; SHARDS],
    next_door: AtomicUsize,
    doors: Mutex<HashMap<usize, Arc<dyn Door>>>,
    next: AtomicU64,
    detached: AtomicUsize,
    guards: AtomicUsize,
    guards_taken: AtomicU64,
    outcomes: [AtomicUsize; OUTCOMES],
    pub(crate) accepted_late: AtomicUsize,
    pub(crate) answered_at_deadline: AtomicUsize,
    pub(crate) abandoned: AtomicUsize,
    runtimes: Mutex<Vec<Handle>>,
    next_waiter: AtomicU64,
    waiters: Mutex<HashMap<u64, Waker>>,
    agenda: Mutex<Agenda>,
    bell: Condvar,
    report: OnceLock<Report>,
}

/// Whom the driver is asked to wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sleeper {
    /// A connection.
    Connection(u64),
    /// Somebody who waits to be told of the drain.
    Waiter(u64),
}

/// What the driver has to look at next.
struct Agenda {
    rung: bool,
    due: Vec<(Moment, Sleeper)>,
    lingering: Vec<u64>,
    /// When the driver wakes up by itself.
    until: Moment,
}

impl Registry {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            clock: Clock::start(),
            config,
            phase: RisingPhase::new(),
            announced: watch::Sender::new(Phase::Serving),
            draining: CancellationToken::new(),
            forcing: CancellationToken::new(),
            drain_began: AtomicU64::new(Moment::NEVER.as_micros()),
            deadline: AtomicU64::new(Moment::NEVER.as_micros()),
            shards: std::array::from_fn(|_| Mutex::default()),
            next_door: AtomicUsize::new(1),
            doors: Mutex::default(),
            next: AtomicU64::new(1),
            detached: AtomicUsize::new(0),
            guards: AtomicUsize::new(0),
            guards_taken: AtomicU64::new(0),
            outcomes: std::array::from_fn(|_| AtomicUsize::new(0)),
            accepted_late: AtomicUsize::new(0),
            answered_at_deadline: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
            runtimes: Mutex::default(),
            next_waiter: AtomicU64::new(1),
            waiters: Mutex::default(),
            agenda: Mutex::new(Agenda {
                rung: false,
                due: Vec::new(),
                lingering: Vec::new(),
                until: Moment::NEVER,
            }),
            bell: Condvar::new(),
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

    pub(crate) fn announce(&self, phase: Phase) {
        if phase >= Phase::Draining {
            self.draining.cancel();
        }
        if phase >= Phase::Forcing {
            self.forcing.cancel();
        }
        self.announced.send_if_modified(|announced| {
            let rises = phase > *announced;
            *announced = phase.max(*announced);
            rises
        });
    }

    pub(crate) fn announcements(&self) -> watch::Receiver<Phase> {
        self.announced.subscribe()
    }

    pub(crate) fn drain_began(&self) -> Moment {
        Moment::from_micros(self.drain_began.load(Ordering::SeqCst))
    }

    pub(crate) fn deadline(&self) -> Moment {
        Moment::from_micros(self.deadline.load(Ordering::SeqCst))
    }

    // ----- members -----

    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn join(&self, id: u64, member: Arc<dyn Member>) {
        self.shard(id).lock().insert(id, member);
    }

    /// Called once for each connection, when the last of it is dropped.
    pub(crate) fn leave(&self, id: u64, outcome: Outcome, detached: bool) {
        if detached {
            self.detached.fetch_sub(1, Ordering::SeqCst);
        }
        if self.phase() >= Phase::Draining {
            self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        }
        let (gone, last) = {
            let mut shard = self.shard(id).lock();
            let gone = shard.remove(&id);
            (gone, shard.is_empty())
        };
        drop(gone);
        // Otherwise the driver would only count and sleep again.
        if last || self.detached.load(Ordering::SeqCst) > 0 {
            self.ring_if_ending();
        }
    }

    /// The count the drain waits for no longer includes this connection.
    pub(crate) fn detach(&self) {
        self.detached.fetch_add(1, Ordering::SeqCst);
        self.ring_if_ending();
    }

    pub(crate) fn next_door(&self) -> usize {
        self.next_door.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn open(&self, id: usize, door: Arc<dyn Door>) {
        self.doors.lock().insert(id, door);
    }

    /// The listener behind that door is gone.
    pub(crate) fn closed(&self, id: usize) {
        let door = self.doors.lock().remove(&id);
        drop(door);
        self.ring_if_ending();
    }

    pub(crate) fn doors(&self) -> Vec<Arc<dyn Door>> {
        self.doors.lock().values().cloned().collect()
    }

    /// How many connections there ever were.
    pub(crate) fn accepted(&self) -> u64 {
        self.next.load(Ordering::Relaxed) - 1
    }

    pub(crate) fn connection(&self, id: u64) -> Option<Arc<dyn Member>> {
        self.shard(id).lock().get(&id).cloned()
    }

    pub(crate) fn connections(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub(crate) fn each_connection(&self, mut f: impl FnMut(&Arc<dyn Member>)) {
        for shard in &self.shards {
            // Not under its lock (invariant 7).
            let members: Vec<_> = shard.lock().values().cloned().collect();
            members.iter().for_each(&mut f);
        }
    }

    /// All connections, in the order in which they were accepted: to end them in that order costs the
    /// kernel a third less than at random, and the allocator too, as what they have lies side by side.
    pub(crate) fn in_order(&self) -> Vec<(u64, Arc<dyn Member>)> {
        let mut all = Vec::with_capacity(self.connections());
        for shard in &self.shards {
            all.extend(shard.lock().iter().map(|(id, it)| (*id, Arc::clone(it))));
        }
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }

    pub(crate) fn wake(&self, id: u64, connection: &dyn Member) {
        if !connection.wake() {
            let at = self.clock.now().after(RETRY);
            self.remind(at, Sleeper::Connection(id));
        }
    }

    /// How many connections the drain waits for.
    pub(crate) fn waited_for(&self) -> usize {
        // Detached first: one that leaves in between is then missing from both.
        let detached = self.detached.load(Ordering::SeqCst);
        self.connections().saturating_sub(detached)
    }

    /// Nothing is left that the termination waits for.
    pub(crate) fn is_empty(&self) -> bool {
        // One may have been counted here before the last of another kind left there: a handler that
        // spawns work, work that tracks a connection. So nothing may have come while we looked.
        let arrivals = self.arrivals();
        self.doors.lock().is_empty()
            && self.guards() == 0
            && self.waited_for() == 0
            && self.arrivals() == arrivals
    }

    /// Only rises: whenever something is counted, and before it is.
    fn arrivals(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
            + self.next_door.load(Ordering::SeqCst) as u64
            + self.guards_taken.load(Ordering::SeqCst)
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
        self.guards_taken.fetch_add(1, Ordering::SeqCst);
        self.guards.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn release_guard(&self) {
        if self.guards.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.ring_if_ending();
        }
    }

    // ----- who waits to be told of the drain -----

    pub(crate) fn next_waiter(&self) -> u64 {
        self.next_waiter.fetch_add(1, Ordering::Relaxed)
    }

    /// Has the waiter woken then. Only during a termination.
    pub(crate) fn wait_until(&self, at: Moment, n: u64, waker: &Waker) {
        let known = self.waiters.lock().insert(n, waker.clone());
        if known.is_none() {
            self.remind(at, Sleeper::Waiter(n));
        }
        drop(known);
    }

    /// It no longer waits, or is to be woken.
    pub(crate) fn take_waiter(&self, n: u64) -> Option<Waker> {
        self.waiters.lock().remove(&n)
    }

    // ----- runtimes -----

    /// Remembers the runtime this is called on, if any, so that the driver can keep it going.
    pub(crate) fn note_runtime(&self) {
        let Ok(handle) = Handle::try_current() else {
            return;
        };
        let mut runtimes = self.runtimes.lock();
        if runtimes.iter().all(|known| known.id() != handle.id()) {
            runtimes.push(handle);
        }
    }

    pub(crate) fn runtimes(&self) -> Vec<Handle> {
        self.runtimes.lock().clone()
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

    /// Sleeps until `at`, or until something happens, and gives what was asked for: whom to wake
    /// when, and whose socket to close in stages.
    pub(crate) fn sleep(&self, at: Moment) -> (Vec<(Moment, Sleeper)>, Vec<u64>) {
        let mut agenda = self.agenda.lock();
        let asked = agenda.due.iter().map(|(at, _)| *at);
        agenda.until = asked.fold(at, Moment::min);
        loop {
            let left = agenda.until.since(self.clock.now());
            if agenda.rung || !agenda.lingering.is_empty() || left.is_zero() {
                agenda.rung = false;
                agenda.until = Moment::START;
                let agenda = &mut *agenda;
                return (
                    std::mem::take(&mut agenda.due),
                    std::mem::take(&mut agenda.lingering),
                );
            }
            if agenda.until == Moment::NEVER {
                self.bell.wait(&mut agenda);
            } else {
                self.bell.wait_for(&mut agenda, left);
            }
        }
    }

    // ----- the report -----

    pub(crate) fn outcome(&self, outcome: Outcome) -> usize {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn report(&self) -> Option<&Report> {
        self.report.get()
    }

    /// Written once (invariant 5).
    pub(crate) fn write_report(&self, report: Report) {
        let written = self.report.set(report);
        debug_assert!(written.is_ok(), "the report is written once (invariant 5)");
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
                &self.detached,
                &self.guards,
                &self.accepted_late,
                &self.answered_at_deadline,
                &self.abandoned,
            ]);
            let counts = counts.map(|n| n.load(Ordering::SeqCst) as u64);
            let others = [
                &self.drain_began,
                &self.deadline,
                &self.next,
                &self.guards_taken,
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
