//! A listener in the hands of two: who accepts, and from the drain on somebody who takes what the kernel
//! has queued, so that it is kept and the address is free, whatever who accepts is doing meanwhile.
//!
//! ```text
//!        the drain begins            no handshakes, or settle over
//!  Open ──────────────────▶ Settling ──────────────────▶ closed, and a last look
//! ```

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;

use super::listener::{Listener, MOST_LAST, MOST_QUEUED, of_a_peer};
use crate::clock::Moment;
use crate::connection::TrackedIo;
use crate::driver::foreign;
use crate::phase::Phase;
use crate::registry::{AcceptQueue, BRIEFLY, Registry, Reminder};

pub(super) type Accepted<L> = (TrackedIo<<L as Listener>::Io>, <L as Listener>::Addr);
type Untracked<L> = (<L as Listener>::Io, <L as Listener>::Addr);

pub(super) struct Queue<L: Listener> {
    registry: Arc<Registry>,
    id: u64,
    /// For who looks from outside.
    open: AtomicBool,
    held: AtomicUsize,
    /// See [`AcceptQueue::is_starved`].
    starved: AtomicBool,
    accepter: Mutex<Accepter>,
    /// Held inside somebody's listener, which may block. Whoever else than the accepter lets go of it wakes
    /// him then.
    inner: Mutex<Inner<L>>,
}

/// Who accepts.
#[derive(Default)]
struct Accepter {
    waker: Option<Waker>,
    /// The runtime on which the listener was polled last, or made: what it accepts belongs to that one.
    runtime: Option<Handle>,
}

struct Inner<L: Listener> {
    listener: Option<L>,
    /// Taken from the kernel, and not asked for yet.
    taken: VecDeque<Accepted<L>>,
    /// Until when handshakes may go on, from the beginning of the drain on.
    settling: Option<Moment>,
    /// How often the kernel was asked for one in the drain, but for when it has to be asked again; and to close it.
    tries: usize,
    lasts: usize,
    /// That was empty once.
    emptied: bool,
    want: Want,
    /// Nobody will ask: what is taken is lost.
    given_up: bool,
    /// And was, whoever has closed it: so is what comes of its listener's own close behind that.
    lost: bool,
    /// What somebody's listener threw, for who accepts: it breaks his task, and nobody else's.
    thrown: Option<Box<dyn Any + Send>>,
}

/// Of descriptors, since the queue was found empty: which is said once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    No,
    Yes,
    /// And there was nobody to free some.
    Alone,
}

/// How often the queue is looked at while handshakes may go on, or there are no descriptors.
const LOOKS: Duration = Duration::from_millis(5);

/// How long a listener that was made outside of a runtime has to be polled on one in the drain.
const UNPOLLED: Duration = Duration::from_millis(500);

/// How long a queue waits for descriptors while serving, when its `Serve` was dropped.
const SCARCE: Duration = Duration::from_secs(1);

impl<L: Listener> Queue<L> {
    pub(super) fn new(registry: &Arc<Registry>, listener: L) -> Arc<Self> {
        let id = registry.census.next_listener();
        let queue = Arc::new(Self {
            registry: Arc::clone(registry),
            id,
            open: AtomicBool::new(true),
            held: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
            accepter: Mutex::new(Accepter {
                waker: None,
                runtime: Handle::try_current().ok(),
            }),
            inner: Mutex::new(Inner {
                listener: Some(listener),
                taken: VecDeque::new(),
                settling: None,
                tries: 0,
                lasts: 0,
                emptied: false,
                want: Want::No,
                given_up: false,
                lost: false,
                thrown: None,
            }),
        });
        registry
            .census
            .open(id, Arc::clone(&queue) as Arc<dyn AcceptQueue>);
        // Registered first, then looked: if the driver has passed, nobody else will do it.
        match registry.phase() {
            _ if registry.is_over() => queue.close(),
            Phase::Serving | Phase::LameDuck => {}
            Phase::Draining => registry.remind(registry.clock.now(), Reminder::Listener(id)),
            _ => queue.close(),
        }
        queue
    }

    /// Calls with the listener, unless it was closed.
    #[cfg(feature = "axum")]
    pub(super) fn with<T>(&self, f: impl FnOnce(&L) -> T) -> Option<T> {
        self.inner.lock().listener.as_ref().map(f)
    }

    /// To be called on the task that accepts. Gives whether it was another one so far.
    pub(super) fn set_waker(&self, waker: &Waker) -> bool {
        let known = |known: &Waker| known.will_wake(waker);
        if self.accepter.lock().waker.as_ref().is_some_and(known) {
            return false;
        }
        // Foreign code is called without the lock: it may come back here.
        let accepter = Accepter {
            waker: Some(waker.clone()),
            runtime: Handle::try_current().ok(),
        };
        let runtime = accepter.runtime.clone();
        let old = std::mem::replace(&mut *self.accepter.lock(), accepter);
        drop(old);
        // Registered first, the phase after (invariant 2).
        if let Some(runtime) = runtime.filter(|_| self.registry.phase() >= Phase::Draining) {
            self.registry.tell_runtime(runtime);
        }
        true
    }

    /// `None` if it was closed, or is no longer for who accepts.
    pub(super) fn poll_listener(
        &self,
        cx: &mut Context<'_>,
    ) -> Option<Poll<io::Result<Accepted<L>>>> {
        let Some(mut inner) = self.inner.try_lock_for(BRIEFLY) else {
            // Somebody takes what is queued, or is inside a listener that blocks. He may have looked for a waker
            // before there was this one.
            cx.waker().wake_by_ref();
            return Some(Poll::Pending);
        };
        let listener = inner.listener.as_mut()?;
        let polled = listener.poll_accept(cx);
        // Counted before somebody else may close the listener, and find nothing left.
        Some(polled.map_ok(|(io, addr)| (TrackedIo::new(&self.registry, io), addr)))
    }

    /// What was taken from the kernel; `None` when the listener is closed, and there is nothing left.
    pub(super) fn poll_taken(&self) -> Poll<Option<Accepted<L>>> {
        // Who holds it, perhaps inside somebody's listener that blocks, wakes us when it is done.
        let Some(mut inner) = self.inner.try_lock_for(BRIEFLY) else {
            // At the end that is not waited for any more.
            return if self.registry.is_over() {
                Poll::Ready(None)
            } else {
                Poll::Pending
            };
        };
        // From the deadline on whoever is still in there is being cut.
        let forces = self.registry.phase() >= Phase::Forcing;
        let taken = if forces {
            None
        } else {
            inner.taken.pop_front()
        };
        if let Some((io, _)) = &taken {
            io.set_queued(false);
            // Also while serving a queue is emptied, of a `Serve` that is dropped.
            let late = usize::from(self.registry.phase() >= Phase::Draining);
            self.registry.accepted_late.fetch_add(late, Relaxed);
        }
        // What was taken before is served.
        if let Some(thrown) = inner.thrown.take_if(|_| taken.is_none()) {
            drop(inner);
            resume_unwind(thrown);
        }
        // Whoever closes it wakes us when it is closed; at the end that is not waited for any more.
        let closed = !self.is_open() || self.registry.is_over();
        let ends = inner.listener.is_none() && closed;
        self.unlock_and_tell(inner);
        match taken {
            None if !ends => Poll::Pending,
            taken => Poll::Ready(taken),
        }
    }

    /// Takes what the kernel has queued, and closes the listener once nothing more is to be expected.
    /// Gives when to go on.
    pub(super) fn empty(&self, now: Moment) -> Option<Moment> {
        // What it accepts is registered there.
        let runtime = self.accepter.lock().runtime.clone();
        let entered = runtime.as_ref().map(Handle::enter);
        let mut inner = self.inner.lock();
        if inner.given_up || self.registry.phase() >= Phase::Forcing {
            drop(inner);
            self.close();
            return None;
        }
        let emptied = catch_unwind(AssertUnwindSafe(|| inner.empty(&self.registry, now)));
        let again = emptied.unwrap_or_else(|thrown| {
            inner.thrown = Some(thrown);
            None
        });
        if self.registry.phase() >= Phase::Forcing {
            // Since a moment ago what is queued is not kept any more, but counted.
            drop(inner);
            self.close();
            return None;
        }
        let listener = inner.listener.take_if(|_| again.is_none());
        self.let_go(inner, listener, L::close);
        drop(entered);
        self.wake();
        again
    }

    /// By who accepts, on whose thread nothing must block that need not.
    pub(super) fn abandon(self: &Arc<Self>) {
        // What it accepts is registered in one; but in a task that is dropped as it is spawned none can be entered.
        let outside = Handle::try_current().is_err_and(|e| e.is_missing_context());
        let runtime = self.accepter.lock().runtime.clone();
        let _entered = runtime.as_ref().filter(|_| outside).map(Handle::enter);
        let locked = self.inner.try_lock_for(BRIEFLY);
        if locked.is_none_or(|inner| self.close_locked(inner)) {
            let queue = Arc::clone(self);
            self.registry.apart(move || queue.close_now());
        }
    }

    /// Closes it as it is. What is queued, or was taken and not asked for, is lost.
    fn close(&self) {
        // Should somebody be inside of it for good.
        self.wake();
        self.inner.lock().given_up = true;
        self.close_now();
    }

    fn close_now(&self) {
        self.wake();
        let runtime = self.accepter.lock().runtime.clone();
        let entered = runtime.as_ref().map(Handle::enter);
        while self.close_locked(self.inner.lock()) {}
        drop(entered);
    }

    /// True if it is yet to be closed, as there may be more to count: what was lost has left its descriptors. It may be kept
    /// beyond that, until those have left that have them: by force as they are cut, and before when it was given up.
    fn close_locked(&self, mut inner: MutexGuard<'_, Inner<L>>) -> bool {
        let registry = &self.registry;
        let drains = registry.phase() == Phase::Draining;
        let hopes = if drains {
            inner.given_up
        } else {
            registry.is_cutting()
        };
        // Who is detached is cut when all queues are closed.
        let others = |inner: &Inner<L>| {
            let there = if drains {
                registry.census.waited_for()
            } else {
                registry.census.connections()
            };
            there > inner.taken.len()
        };
        let (before, known) = (others(&inner), inner.want);
        let mut late = Vec::new();
        let starves = registry.phase() >= Phase::Draining
            && foreign::call(|| inner.take_rest(registry, &mut late)).is_some_and(|it| it);
        // Whoever was there before and has left has left one.
        let others = before || others(&inner);
        let taken = std::mem::take(&mut inner.taken);
        inner.lost = true;
        let more = starves && !taken.is_empty();
        inner.want = match starves {
            false => Want::No,
            true if others || more => Want::Yes,
            true => Want::Alone,
        };
        // Once more if nobody is there: he who has one may be on his way between two listeners.
        let waits = starves && !more && hopes && (others || known != Want::Alone);
        let listener = inner.listener.take_if(|_| !more && !waits);
        self.let_go(inner, listener, |listener| {
            drop(listener);
            Vec::new()
        });
        // Before their drops, of which nobody knows what they do.
        self.wake();
        if !late.is_empty() {
            let runtime = self.accepter.lock().runtime.clone();
            registry.apart(move || {
                // Each may spawn something, or panic; a second panic within the first would end the process.
                let _entered = runtime.as_ref().map(Handle::enter);
                for io in late {
                    foreign::call(|| drop(io));
                }
            });
        }
        for (io, _) in taken {
            io.lose();
        }
        if waits {
            registry.remind(
                registry.clock.now().after(LOOKS),
                Reminder::Listener(self.id),
            );
        }
        more
    }

    /// Closes what was taken out under the lock, and counts it out then, also when that panics.
    fn let_go(
        &self,
        inner: MutexGuard<'_, Inner<L>>,
        listener: Option<L>,
        close: fn(L) -> Vec<Untracked<L>>,
    ) {
        let Some(listener) = listener else {
            return self.unlock_and_tell(inner);
        };
        drop(inner);
        let last = foreign::call(|| close(listener)).unwrap_or_default();
        let mut inner = self.inner.lock();
        for (io, addr) in last {
            inner.keep(&self.registry, io, addr);
        }
        self.open.store(false, SeqCst);
        let is_lost = inner.lost || self.registry.phase() >= Phase::Forcing;
        if is_lost && !inner.taken.is_empty() {
            // Who closes it then has been here already.
            self.close_locked(inner);
            return;
        }
        self.unlock_and_tell(inner);
    }

    /// Tells what it holds to who looks from outside, or that it is done.
    fn unlock_and_tell(&self, inner: MutexGuard<'_, Inner<L>>) {
        self.held.store(inner.taken.len(), SeqCst);
        self.starved
            .store(inner.want != Want::No && inner.listener.is_some(), SeqCst);
        let done = inner.taken.is_empty() && !self.open.load(SeqCst);
        drop(inner);
        if done {
            self.registry.closed(self.id);
        }
    }

    fn wake(&self) {
        let waker = self.accepter.lock().waker.take();
        if let Some(waker) = waker {
            foreign::call(|| waker.wake());
        }
    }
}

impl<L: Listener> Inner<L> {
    /// Gives when to go on; `None` when it is to be closed.
    fn empty(&mut self, registry: &Arc<Registry>, now: Moment) -> Option<Moment> {
        // From now on, however late this is called.
        let settled = *self
            .settling
            .get_or_insert_with(|| registry.clock.now().after(registry.config.settle));
        if let again @ Some(_) = self.take(registry, settled) {
            return again;
        }
        let listener = self.listener.as_mut()?;
        if registry.clock.now() < settled && listener.is_handshaking() {
            return Some(now.after(LOOKS).min(settled));
        }
        None
    }

    /// Takes what is queued, until then. Gives when to try again if there are no descriptors for it.
    fn take(&mut self, registry: &Arc<Registry>, until: Moment) -> Option<Moment> {
        if self.tries == MOST_QUEUED {
            return None;
        }
        let mut skipped = None;
        while self.tries < MOST_QUEUED {
            self.tries += 1;
            let known = self.want;
            match self.listener.as_mut()?.accept_queued() {
                Ok(Some((io, addr))) => {
                    skipped = None;
                    if self.want == Want::Alone {
                        self.want = Want::Yes;
                    }
                    self.keep(registry, io, addr);
                }
                Ok(None) => {
                    (self.emptied, self.want) = (true, Want::No);
                    return None;
                }
                Err(e) if of_a_peer(&e) => skipped = Some(e),
                Err(e) if of_descriptors(&e) && self.may_come_free(registry, until) => {
                    self.tries -= 1;
                    if known == Want::No {
                        registry.log(
                            move || tracing::warn!(error = %e, "the accept queue has to wait"),
                        );
                    }
                    return Some(registry.clock.now().after(LOOKS));
                }
                // Made outside of any, and not polled yet: whoever has it may be about to.
                Err(_) if Handle::try_current().is_err() && is_new(registry) => {
                    self.tries -= 1;
                    return Some(registry.clock.now().after(LOOKS));
                }
                Err(error) => {
                    registry.log(move || tracing::warn!(%error, "cannot empty the accept queue"));
                    return None;
                }
            }
            if registry.phase() >= Phase::Forcing {
                return None;
            }
            // All that was there as the drain began is taken, unless the deadline comes first; but who
            // connects faster than this accepts must not keep it open.
            let is_late = registry.clock.now() >= until;
            if is_late && self.want != Want::No {
                // With few descriptors it is never found empty. Who came in time is ahead of those that come now.
                self.tries = self.tries.max(MOST_QUEUED - MOST_LAST);
            } else if is_late && self.emptied {
                return None;
            }
        }
        let error = skipped
            .unwrap_or_else(|| io::Error::other("clients come faster than they are accepted"));
        registry.log(move || tracing::warn!(%error, "cannot empty the accept queue"));
        None
    }

    /// Whether there may be descriptors soon. In a drain whoever is waited for ends: not who is detached, as he is cut when all
    /// queues are closed. If it is those that queues hold, and nobody asks for them, the driver gives up. While serving
    /// descriptors come free by chance.
    fn may_come_free(&mut self, registry: &Registry, settled: Moment) -> bool {
        let known = std::mem::replace(&mut self.want, Want::Yes);
        if registry.phase() < Phase::Draining {
            return registry.clock.now() < settled.after(SCARCE);
        }
        if registry.census.waited_for() > 0 || registry.census.guards() > 0 {
            return true;
        }
        // Whoever has left since there was none has left one: once more.
        self.want = Want::Alone;
        known != Want::Alone
    }

    /// For who accepts.
    fn keep(&mut self, registry: &Arc<Registry>, io: L::Io, addr: L::Addr) {
        let io = TrackedIo::new(registry, io);
        io.set_queued(true);
        self.taken.push_back((io, addr));
    }

    /// Takes what is queued, to be counted and reset: each as it comes, as the next accept may panic, or block. `late`: what
    /// comes behind the end, where it would be closed at once, and here.
    ///
    /// True if there were no descriptors for more.
    fn take_rest(&mut self, registry: &Arc<Registry>, late: &mut Vec<L::Io>) -> bool {
        while self.lasts < MOST_LAST {
            self.lasts += 1;
            let next = self.listener.as_mut().map(Listener::accept_queued);
            match next {
                Some(Ok(Some((io, _)))) if registry.is_over() => {
                    registry.lost_in_queue.fetch_add(1, Relaxed);
                    late.push(io);
                }
                Some(Ok(Some((io, addr)))) => self.keep(registry, io, addr),
                Some(Err(e)) if of_a_peer(&e) => {}
                Some(Err(e)) => {
                    let starves = of_descriptors(&e);
                    self.lasts -= usize::from(starves);
                    return starves;
                }
                _ => return false,
            }
        }
        false
    }
}

impl<L: Listener> AcceptQueue for Queue<L> {
    fn empty(&self, now: Moment) -> Option<Moment> {
        self.empty(now)
    }

    fn close(&self) {
        self.close();
    }

    fn is_open(&self) -> bool {
        self.open.load(SeqCst)
    }

    fn held(&self) -> usize {
        self.held.load(SeqCst)
    }

    fn is_starved(&self) -> bool {
        self.starved.load(SeqCst)
    }

    fn on_runtime(&self, f: &mut dyn FnMut(&Handle)) {
        if let Some(runtime) = &self.accepter.lock().runtime {
            f(runtime);
        }
    }
}

/// The drain has begun just now.
fn is_new(registry: &Registry) -> bool {
    registry.phase() < Phase::Forcing
        && registry.clock.now().since(registry.drain_began()) < UNPOLLED
}

/// No descriptors left in the process or the system, `ENFILE` and `EMFILE`, which have no kind of their own; or no memory
/// for one (`ENOMEM`, `ENOBUFS`).
fn of_descriptors(e: &io::Error) -> bool {
    let no_buffers = cfg!(target_os = "linux") && e.raw_os_error() == Some(105);
    let none_left = cfg!(unix) && matches!(e.raw_os_error(), Some(23 | 24));
    no_buffers || none_left || e.kind() == io::ErrorKind::OutOfMemory
}
