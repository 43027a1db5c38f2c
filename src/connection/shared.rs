//! What the parts of one connection share: the socket below, the plaintext above it, the service, and
//! the future that polls it all.
//!
//! A request writes to nothing but this, and to little of it: [`State`], which is loaded and stored by
//! the task of an HTTP/1 connection (S5), and its name. Outsiders look at both.
//!
//! Locks: the socket's first ([`Transport`]); under it the reader's, or the driver's for a reminder. The poller's and the
//! streams' are taken alone, and nothing is counted out under any of them.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed, Release, SeqCst},
};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::level_filters::LevelFilter;

use super::fate::{Fate, Why};
#[cfg(feature = "serve")]
use super::http1::reading::{self, BodyLength, Reader};
#[cfg(feature = "serve")]
use super::name;
use super::name::NameCopy;
use super::peek::Peek;
use super::poller::Poller;
use super::socket::Transport;
use super::state::{Close, State, Step};
use super::streams::Streams;
use crate::clock::Moment;
use crate::config::{self, Old};
use crate::driver::foreign;
use crate::driver::in_hand::{self, MOST_NAMED};
use crate::driver::keeper::Care;
use crate::driver::reporting::log_forced;
use crate::driver::sequence::CUT;
use crate::driver::steps::{LINGER, SWEEP};
use crate::phase::Phase;
use crate::registry::{Cut, Member, Outcome, Registry};

/// What is known of a connection in one moment.
#[derive(Clone, Copy)]
pub(super) struct Now {
    pub(super) state: State,
    /// Its task is inside of its poll.
    pub(super) inside: bool,
}

pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    id: u64,
    born: Moment,
    /// See [`State`].
    state: AtomicU32,
    /// What keeps the connection in the count: requests that are counted apart, and parts of it, each of
    /// which is [`PART`].
    held: AtomicU32,
    /// When it was accepted; during the drain, when bytes last came in, or a request ended.
    heard: AtomicU64,
    /// When the driver will wake the connection, at the earliest.
    reminder: AtomicU64,
    /// How often its task has gone into its poll and come out, so that who blocks in there can be named: odd while it is inside.
    inside: AtomicU32,
    /// In which of those polls the driver has found it, and when first.
    found_in: AtomicU32,
    found_at: AtomicU64,
    /// What was decided from outside, and how the connection ended, where somebody knows better than
    /// [`Shared::outcome`] can tell.
    fate: Fate,
    /// The HTTP/1 request in hand.
    pub(super) name: NameCopy,
    pub(super) poller: Mutex<Poller>,
    /// HTTP/1: where the requests lie in what is read, if that has to be known. While serving only the
    /// connection's own task takes it.
    #[cfg(feature = "serve")]
    reader: Mutex<Option<Box<Reader>>>,
    /// Its server's own, in place of the terminator's.
    idle_timeout: OnceLock<Duration>,
    /// Requests that are counted apart. Boxed, as most connections have none.
    pub(super) streams: OnceLock<Box<Mutex<Streams>>>,
    pub(super) transport: Arc<dyn Transport>,
}

/// What a [`Part`] adds to [`Shared::held`]: more than there can be requests on one connection.
const PART: u32 = 1 << 24;

impl Shared {
    /// Registers, with one [`Part`] that the caller holds.
    pub(super) fn register(registry: &Arc<Registry>, transport: Arc<dyn Transport>) -> Arc<Self> {
        let now = registry.clock.now();
        let id = registry.next_id();
        let shared = Arc::new(Self {
            registry: Arc::clone(registry),
            id,
            born: now,
            state: AtomicU32::new(State::default().0),
            held: AtomicU32::new(PART),
            heard: AtomicU64::new(now.as_micros()),
            reminder: AtomicU64::new(Moment::NEVER.as_micros()),
            inside: AtomicU32::new(0),
            found_in: AtomicU32::new(0),
            found_at: AtomicU64::new(0),
            fate: Fate::default(),
            name: NameCopy::default(),
            poller: Mutex::default(),
            #[cfg(feature = "serve")]
            reader: Mutex::new(None),
            idle_timeout: OnceLock::new(),
            streams: OnceLock::new(),
            transport,
        });
        registry.join(id, Arc::clone(&shared) as Arc<dyn Member>);
        if let Some(age) = registry.config.max_connection_age {
            let at = now.after(config::aged(age, id));
            if at > now {
                registry.keeper.see_to(registry, at, id, Care::Tell);
            } else {
                shared.fate.tell(now, Why::Old);
            }
        }
        shared
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// When it was accepted.
    pub(super) fn born(&self) -> Moment {
        self.born
    }

    /// In which phase everything is. In most cases it is the [`stage`](Self::stage) that counts.
    #[inline]
    pub(super) fn phase(&self) -> Phase {
        self.registry.phase()
    }

    // ----- whether it is to end -----

    /// Nobody has asked for an end: neither of this connection, nor of all.
    #[inline]
    pub(super) fn is_left_alone(&self) -> bool {
        self.registry.progress.is_serving() && self.fate.is_open()
    }

    /// The phase that this connection is in: that of all, or one that it has reached before.
    pub(super) fn stage(&self) -> Phase {
        self.phase().max(self.fate.stage())
    }

    /// When this connection was told to end, or all were.
    pub(super) fn drain_began(&self) -> Moment {
        self.registry.drain_began().min(self.fate.since())
    }

    /// What a termination does to all it does to this one.
    pub(super) fn terminate(&self, why: Why) {
        let now = self.registry.clock.now();
        if self.fate.tell(now, why) {
            // Each of them would have to wait again.
            if why != Why::LameDuck {
                self.have_told();
            }
            self.wake();
        }
    }

    pub(super) fn force(self: &Arc<Self>) {
        let now = self.registry.clock.now();
        if !self.fate.force(now) {
            return;
        }
        self.have_told();
        let registry = &self.registry;
        if self.phase() == Phase::Draining && !self.fate.is_gone() {
            // The report is clean by that no more, and names who is there at the deadline.
            let named = in_hand::of(registry, &**self, now, MOST_NAMED);
            registry.log(move || named.iter().for_each(log_forced));
        }
        Arc::clone(self).cut(Cut::Soft);
        // Until it is closed somebody has to look after it.
        let care = Care::Cut(now.after(CUT));
        registry
            .keeper
            .see_to(registry, now.after(SWEEP), self.id, care);
        // Its task comes after that, as in a termination: it may have to answer and to say goodbye.
        self.wake();
    }

    /// It is told for no other reason than its age: nobody is in a hurry.
    pub(super) fn is_only_old(&self) -> bool {
        self.fate.is_old() && self.phase() < Phase::Draining
    }

    /// When it was forced, if it alone was.
    pub(super) fn forced_since(&self) -> Moment {
        match self.fate.stage() {
            Phase::Forcing => self.fate.since(),
            _ => Moment::NEVER,
        }
    }

    pub(super) fn is_told_or_gone(&self) -> bool {
        self.fate.is_told_or_gone()
    }

    /// Look at it after that (invariant 2). Gives the waiter's number.
    pub(super) fn wait_to_be_told(&self, n: Option<u64>, waker: Waker) -> u64 {
        let (n, old) = self.poller.lock().wait(n, waker);
        drop(old);
        n
    }

    pub(super) fn stop_waiting(&self, n: u64) {
        let waker = self.poller.lock().stop_waiting(n);
        drop(waker);
    }

    /// Wakes who waits for that.
    fn have_told(&self) {
        let waiting = self.poller.lock().take_waiting();
        for waker in waiting {
            self.registry.wake(waker);
        }
    }

    // ----- the state -----

    #[inline]
    pub(super) fn state(&self) -> State {
        State(self.state.load(Relaxed))
    }

    pub(super) fn set(&self, flags: u32) {
        self.state.fetch_or(flags, Relaxed);
    }

    pub(super) fn clear(&self, flags: u32) {
        self.state.fetch_and(!flags, Relaxed);
    }

    /// Of flags that the caller alone writes.
    #[cfg(feature = "serve")]
    pub(super) fn flip(&self, flags: u32) {
        self.state.fetch_xor(flags, Relaxed);
    }

    pub(super) fn has(&self, flags: u32) -> bool {
        self.state().has(flags)
    }

    /// It is no HTTP any more: nothing of it is followed.
    pub(super) fn leaves_http(&self) {
        if self.may_go_on() {
            // Of what it goes on with, ahead of our word that it may.
            self.set(State::AHEAD);
        }
        self.set(State::UPGRADED);
        #[cfg(feature = "serve")]
        drop(self.reader.lock().take());
    }

    /// Requests are in hand that are counted apart.
    pub(super) fn has_streams(&self) -> bool {
        self.streams_in_hand() > 0
    }

    pub(super) fn streams_in_hand(&self) -> u32 {
        self.held.load(SeqCst) % PART
    }

    pub(super) fn set_inside(&self, yes: bool) {
        let n = self.inside.load(Relaxed);
        if (n % 2 == 1) != yes {
            // Who sees that it is out of there sees what it has done.
            self.inside.store(n.wrapping_add(1), Release);
        }
    }

    pub(super) fn is_inside(&self) -> bool {
        self.inside.load(SeqCst) % 2 == 1
    }

    /// For the driver alone: since when it finds the task in the poll that it is in.
    pub(super) fn inside_since(&self, now: Moment) -> Option<Moment> {
        let n = self.inside.load(SeqCst);
        if n % 2 == 0 {
            return None;
        }
        if self.found_in.swap(n, Relaxed) != n {
            self.found_at.store(now.as_micros(), Relaxed);
        }
        Some(Moment::from_micros(self.found_at.load(Relaxed)))
    }

    // ----- what has come in -----

    /// Something has come that nobody has been given: bytes that lie in the socket, or half a TLS record. For who
    /// may wait for the socket's lock.
    pub(super) fn has_unread(&self) -> bool {
        self.transport.peek() == Peek::Data || self.transport.is_half_record()
    }

    // ----- how its socket is closed -----

    /// See [`State::close`]. `unread`: something of what has come was not read, or was half a TLS record.
    pub(super) fn close(&self, unread: bool) -> Close {
        self.state().close(unread || self.may_go_on())
    }

    /// In one read with the request in hand came others, for which hyper has not called (S1), or hyper may have refused
    /// the end of that request.
    #[cfg(feature = "serve")]
    fn may_go_on(&self) -> bool {
        let reader = self.reader.lock();
        let (reader, name) = (reader.as_deref(), self.name.whole());
        let name = name.as_deref();
        let read = name.or(reader.map(Reader::copied));
        reader.is_some_and(|it| it.is_refusable(name)) || read.is_some_and(reading::is_followed)
    }

    #[cfg(not(feature = "serve"))]
    #[allow(clippy::unused_self)] // as above
    fn may_go_on(&self) -> bool {
        false
    }

    /// This side was shut down, for which the socket's lock is held: who resets it looks under it too.
    pub(super) fn note_shut_down(&self) {
        // What is cut must not look whole, so from its head on until its end is out the socket is
        // closed by a reset.
        if self.has(State::OVER) {
            self.clear(State::BY_CLOSE | State::OVER);
        }
    }

    // ----- an answer from outside -----
    //
    // To be asked under the lock of the socket, without which nothing is written, and all by one look: the task is let to go on
    // by that lock, and notes behind it what it has read.

    pub(super) fn look(&self) -> Now {
        // This first: who is seen outside has noted it.
        let inside = self.is_inside();
        let state = self.state();
        Now { state, inside }
    }

    /// A `503` may go out, from whatever side.
    pub(super) fn is_owed_an_answer(&self, now: Now) -> bool {
        // Of whose answers nothing is known.
        let seen = State::SEEN | State::ENDED_FIRST | State::UPGRADED;
        let unseen = now.state.has(State::HTTP1) && !now.state.has(seen);
        let owes = now.state.owes_answer(now.inside) || unseen;
        self.registry.config.answer_at_deadline && owes
    }

    /// Nothing else is on its way out, so that it is this request's. `untouched`: nothing was written since its socket was read from, nor
    /// will be as it seems, though hyper has an answer: its body may block.
    pub(super) fn may_be_answered(&self, now: Now, untouched: bool) -> bool {
        let stuck = untouched && now.inside && now.state.is_unwritten();
        self.stage() >= Phase::Forcing && (now.state.may_be_answered(now.inside) || stuck)
    }

    /// Between two requests: what lies in its socket is the next one's.
    pub(super) fn may_have_asked(&self, now: Now) -> bool {
        self.stage() >= Phase::Forcing
            && self.registry.config.answer_at_deadline
            && now.state.is_between_requests()
            && !now.inside
    }

    /// Bytes that have come may be a request, or the rest of one, of which the state does not tell yet.
    pub(super) fn may_begin(&self, now: Now) -> bool {
        self.registry.config.answer_at_deadline && now.state.may_take_another()
    }

    pub(super) fn answered_from_outside(&self, wholly: bool) {
        self.end(Outcome::Forced);
        if wholly {
            self.count_answered();
        }
    }

    /// A `503` went out in place of an answer. Of interest only where connections that are cut are.
    pub(super) fn count_answered(&self) {
        let n = usize::from(self.phase() >= Phase::Draining);
        self.registry.answered_at_deadline.fetch_add(n, Relaxed);
    }

    /// The deadline has come, and the handler has not answered: a `503` is to go out instead.
    pub(super) fn is_late(&self) -> bool {
        self.stage() == Phase::Forcing && self.registry.config.answer_at_deadline
    }

    // ----- time -----

    /// Bytes came in. Only during the drain, in which the stall timeout starts anew; of what is upgraded nothing is owed.
    pub(super) fn came_in(&self) {
        if self.stage() >= Phase::Draining && !self.has(State::UPGRADED) {
            self.touch();
        }
    }

    /// During the drain: starts the stall timeout anew, at the end of which it is looked at.
    pub(super) fn touch(&self) {
        let now = self.registry.clock.now();
        self.heard.store(now.as_micros(), Relaxed);
        self.remind(self.stall_due());
    }

    /// When a peer that owes us bytes has been silent for too long.
    pub(super) fn stall_due(&self) -> Moment {
        self.quiet_since().after(self.registry.config.stall_timeout)
    }

    /// In the drain: since when it has been quiet, if it is.
    pub(super) fn quiet_since(&self) -> Moment {
        let heard = Moment::from_micros(self.heard.load(Relaxed));
        heard.max(self.drain_began())
    }

    /// When the connection may be closed if it is idle and has been since then.
    pub(super) fn idle_due(&self, quiet: Moment) -> Moment {
        let config = &self.registry.config;
        let with_all = config.idle_due(self.id, quiet, self.registry.drain());
        let old = match self.fate.is_old() {
            false => None,
            true if self.has_asked() => Some(Old::Used),
            true => Some(Old::Unused),
        };
        let alone = config.alone_due(quiet, self.fate.since(), old, self.idle_timeout());
        with_all.min(alone)
    }

    pub(super) fn idle_timeout(&self) -> Option<Duration> {
        let own = self.idle_timeout.get().copied();
        own.or(self.registry.config.idle_timeout)
    }

    /// Before it is served.
    #[cfg(feature = "serve")]
    pub(super) fn set_idle_timeout(&self, bound: Duration) {
        self.idle_timeout.get_or_init(|| bound);
    }

    /// When it is told to end, if it can't be closed but has to be told.
    pub(super) fn told_due(&self) -> Moment {
        let all = self
            .registry
            .config
            .told_due(self.id, self.registry.drain());
        let due = all.min(self.fate.since());
        if self.is_to_be_told_by_lame_duck() {
            // It may have come to its turn there, and nobody to it.
            return due.min(self.lame_duck_due());
        }
        due
    }

    /// The same of one of which no more is known than that it is there.
    pub(super) fn unseen_due(&self) -> Moment {
        let settled = self.drain_began().after(self.registry.config.settle);
        self.told_due().max(settled)
    }

    /// The same of one that is old, and was seen to have brought nothing then.
    pub(super) fn unused_due(&self, seen: Moment) -> Moment {
        self.registry.config.unused_due(seen)
    }

    /// There is one, or was, that tells it. HTTP/1 can't be told but by a response.
    pub(super) fn is_to_be_told_by_lame_duck(&self) -> bool {
        let began = self.registry.progress.lame_duck_began();
        let lasts = !self.registry.config.lame_duck.max.is_zero();
        self.has(State::HTTP2) && lasts && self.born <= began && began != Moment::NEVER
    }

    /// It has had a request.
    pub(super) fn has_asked(&self) -> bool {
        self.has(State::STREAMS) || self.streams.get().is_some() || !self.name.is_empty()
    }

    /// When a lame duck tells it, if it speaks HTTP/2: at once if it has come since.
    pub(super) fn lame_duck_due(&self) -> Moment {
        let began = self.registry.progress.lame_duck_began();
        if self.born > began {
            return began;
        }
        self.registry.config.lame_duck_due(self.id, began)
    }

    /// Has the connection woken then, or earlier. Only when it is to end.
    pub(super) fn remind(&self, at: Moment) {
        // One that comes earlier asks again: reminders must not multiply.
        if self.reminder.fetch_min(at.as_micros(), SeqCst) > at.as_micros() {
            self.registry.wake_at(at, self.id);
        }
    }

    /// The same of a time that was worked out by that deadline. Once it has come nearer all who had asked were woken, and this
    /// one may not have been one of them (invariant 2).
    pub(super) fn remind_by(&self, at: Moment, deadline: Moment) {
        self.remind(at);
        if self.registry.deadline() < deadline {
            self.remind(Moment::START);
        }
    }

    /// A reminder is yet to come.
    pub(super) fn is_to_be_reminded(&self) -> bool {
        self.reminder.load(SeqCst) != Moment::NEVER.as_micros()
    }

    /// It is being woken.
    pub(super) fn reminded(&self) {
        self.reminder.store(Moment::NEVER.as_micros(), SeqCst);
    }

    // ----- who polls it -----

    pub(super) fn forget_waker(&self) {
        let waker = self.poller.lock().forget_waker();
        drop(waker);
    }

    /// To be called on the task that polls the connection.
    pub(super) fn set_waker(&self, waker: &Waker) {
        // Foreign code is called without the lock: it may come back here.
        self.set_poller(Some(waker.clone()));
    }

    /// To be called on a task that reads or writes.
    pub(super) fn note_runtime(&self) {
        self.set_poller(None);
    }

    /// Remembers the runtime that this is called on, so that the driver can keep it going.
    fn set_poller(&self, waker: Option<Waker>) {
        let runtime = Handle::try_current().ok();
        let (old, moved) = self.poller.lock().set(waker, runtime);
        drop(old);
        if let Some(runtime) = moved.filter(|_| self.phase() >= Phase::Draining) {
            self.registry.tell_runtime(runtime);
        }
    }

    /// That of its last poll.
    pub(super) fn runtime(&self) -> Option<Handle> {
        self.poller.lock().runtime().cloned()
    }

    // ----- how it ends -----

    pub(super) fn end(&self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Forced if self.has(State::QUEUED) => Outcome::Lost,
            outcome => outcome,
        };
        self.fate.end(outcome);
    }

    /// By us, whatever its owner has of that.
    pub(super) fn was_ended(&self) -> bool {
        let outcome = self.fate.outcome();
        outcome.is_some_and(|it| matches!(it, Outcome::Forced | Outcome::Idle | Outcome::Finished))
    }

    /// Or will be, if nobody has said how it ended.
    pub(super) fn was_forced(&self) -> bool {
        match self.fate.outcome() {
            Some(outcome) => matches!(outcome, Outcome::Forced | Outcome::Lost),
            None => !self.fate.is_gone(),
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self.fate.outcome() {
            Some(outcome) => outcome,
            None if self.has(State::UPGRADED) => Outcome::Upgraded,
            None if self.has(State::TOLD) => Outcome::Finished,
            None => Outcome::ClosedByPeer,
        }
    }

    /// hyper gives the IO of a request that asked for an upgrade, at the end of its connection, to whoever still has that request, also
    /// if it was declined: he would keep it open.
    pub(super) fn close_what_is_kept(&self) {
        let state = self.state();
        if state.has(State::UPGRADED | State::LET_GO) || self.stage() >= Phase::Forcing {
            return;
        }
        if state.step() == Step::Quiet && !state.has(State::BLOCKED) {
            // What is out is whole.
            self.note_shut_down();
        }
        self.set(State::IN_STAGES);
        self.end(self.outcome());
        self.registry.linger(self.id, LINGER);
    }

    /// A request is counted apart.
    pub(super) fn hold(&self) {
        self.held.fetch_add(1, Relaxed);
    }

    /// It no longer is.
    pub(super) fn let_go(&self) {
        self.release(1);
    }

    /// The socket is closed: the part that `register` made goes.
    pub(super) fn socket_closed(&self) {
        self.release(PART);
    }

    /// Called where what is counted is gone: in its `Drop`, or by whoever has taken it out and closed it (invariant 6).
    fn release(&self, what: u32) {
        // As `Arc` does: what others did before they let go has happened before the last one acts.
        if self.held.fetch_sub(what, AcqRel) == what {
            self.leave();
        }
    }

    pub(super) fn leave(&self) {
        let outcome = self.outcome();
        self.fate.leave();
        self.have_told();
        // In a drop, and perhaps in one that a panic has caused: it counts first and survives the log.
        if self.registry.leave(self.id, outcome) && LevelFilter::current() >= LevelFilter::DEBUG {
            let id = self.id;
            let event = move || tracing::debug!(connection = id, ?outcome, "connection closed");
            match self.stage() {
                // In stages it is closed by the keeper, or the driver.
                Phase::Serving | Phase::LameDuck if !self.has(State::IN_STAGES) => {
                    foreign::call(event);
                }
                _ => self.registry.log(event),
            }
        }
    }

    /// A request is dropped that has no answer, and whose handler has not panicked: to drop it is how hyper
    /// lets it know that its client has left, unless somebody on this side ends the connection.
    pub(super) fn abandon(&self) {
        let in_time = self.phase() >= Phase::LameDuck && self.stage() < Phase::Forcing;
        if in_time && !self.has(State::GIVEN_UP) {
            self.registry.abandoned.fetch_add(1, Relaxed);
        }
    }

    /// By its client, hyper, or whoever polls it, and not by us: whatever was agreed. Behind the deadline by that, whoever was quicker.
    pub(super) fn ends_under_an_answer(&self) {
        self.end(if self.stage() < Phase::Forcing {
            Outcome::ClosedByPeer
        } else {
            Outcome::Forced
        });
    }
}

// ===== HTTP/1, as its bytes and calls pass =====

#[cfg(feature = "serve")]
impl Shared {
    /// An ordinary request goes on; false if it is none (S5).
    #[inline]
    pub(super) fn step(&self, from: Step, to: Step) -> bool {
        let next = self.state().ordinary(from, to);
        if let Some(next) = next {
            self.state.store(next.0, Relaxed);
        }
        next.is_some()
    }

    /// The same by any arrow. Gives what was before, and what is now.
    pub(super) fn arrow(&self, arrow: impl Fn(State) -> State) -> (State, State) {
        let next = |state| Some(arrow(State(state)).0);
        let before = self.state.fetch_update(Relaxed, Relaxed, next);
        let before = State(before.unwrap_or_else(|same| same));
        (before, arrow(before))
    }

    /// Takes what most requests bring, a whole head and nothing more; false if it was something else.
    #[inline(always)]
    #[allow(clippy::inline_always)] // a call would cost as much as what it does
    pub(super) fn read_ordinary(&self, bytes: &[u8]) -> bool {
        let Some(next) = self.state().ordinary(Step::Quiet, Step::Head) else {
            return false;
        };
        let ordinary = reading::is_ordinary(bytes);
        if ordinary {
            // Of a short one its name is all there is.
            if bytes.len() > name::LEN {
                self.copy(bytes);
            }
            self.name.copy(bytes);
            self.state.store(next.0, Relaxed);
        }
        ordinary
    }

    #[inline(never)]
    fn copy(&self, bytes: &[u8]) {
        self.reader.lock().get_or_insert_default().copy(bytes);
    }

    /// The same of anything. Gives whether the connection is idle by it, and was not.
    pub(super) fn read(&self, bytes: &[u8]) -> bool {
        let mut reader = self.reader.lock();
        let reader = reader.get_or_insert_default();
        if self.state().step() == Step::Head {
            reader.restart(self.name.whole().as_deref());
        } else if reader.is_refusable(None) {
            reader.is_taken(self.name.whole().as_deref());
        }
        reader.read(bytes);
        let owes = reader.owes();
        let (before, after) = self.arrow(|state| state.read(owes).without_head());
        if !after.has_response() {
            self.name.copy(reader.begins());
        }
        !before.is_between() && after.is_between()
    }

    /// The service was called: with an ordinary request that has no body, or with any other.
    #[inline(always)]
    #[allow(clippy::inline_always)] // see above
    pub(super) fn called(&self, asks: u32, length: BodyLength) {
        let ordinary = asks == 0 && length == BodyLength::Known(0);
        if !(ordinary && self.step(Step::Head, Step::Called)) {
            self.called_otherwise(asks, length);
        }
    }

    #[cold]
    fn called_otherwise(&self, asks: u32, length: BodyLength) {
        let mut reader = self.reader.lock();
        let reader = reader.get_or_insert_default();
        let state = self.state();
        if state.step() == Step::Head {
            reader.restart(self.name.whole().as_deref());
        } else if !state.has(State::READING) {
            // It came in one read with others, of which the one before it is the first, and had no body.
            reader.restart(self.name.whole().as_deref());
            reader.called(BodyLength::Known(0));
        }
        reader.called(length);
        self.name.copy(reader.in_hand());
        let owes = reader.owes();
        self.arrow(|state| state.called(asks, owes));
    }

    /// The response is over.
    #[inline]
    pub(super) fn said(&self) {
        if !(self.step(Step::Answered, Step::Said) || self.step(Step::Streaming, Step::Said)) {
            self.said_otherwise();
        }
    }

    #[cold]
    fn said_otherwise(&self) {
        let (before, after) = self.arrow(State::said);
        // Of the one before, that may be late.
        let is_last = after.has(State::LAST) && before.step() != after.step();
        if is_last && !after.has(State::UPGRADED) {
            // Of what its client still owes nothing is waited for without end.
            self.terminate(Why::Asked);
        }
        if before.step() != after.step() && after.has(State::READING) && !after.has(State::UPGRADED)
        {
            let reader = self.reader.lock();
            if let Some(reader) = reader.as_ref() {
                // What came behind it is what is in hand now.
                self.name.copy(reader.begins());
            }
            drop(reader);
            self.came_in();
        }
    }

    /// hyper has written all it had. Gives whether nothing is in hand since.
    #[inline]
    pub(super) fn flushed(&self) -> bool {
        let state = self.state();
        if let Some(quiet) = state.ordinary(Step::Said, Step::Quiet) {
            self.state.store(quiet.0, Relaxed);
            return true;
        }
        !state.is_unmoved_by_flush() && self.flushed_otherwise()
    }

    #[cold]
    fn flushed_otherwise(&self) -> bool {
        let (before, after) = self.arrow(State::flushed);
        if before.step() == Step::Late {
            self.count_answered();
        }
        if before.has(State::BLOCKED) {
            // Its client has taken something, and nobody may look at it again by himself.
            self.came_in();
        }
        before.step() != after.step() && after.step() == Step::Quiet
    }

    /// What was read are no requests of HTTP/1.
    pub(super) fn speaks_http2(&self) {
        *self.reader.lock() = None;
        self.arrow(|state| state.read(super::state::Owes::Nothing));
        self.set(State::HTTP2);
    }
}

// ===== what keeps a connection in the count =====

/// Something of the connection that is alive: its socket, or the future that polls it.
pub(super) struct Part(Arc<Shared>);

impl Part {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.held.fetch_add(PART, SeqCst);
        Self(Arc::clone(shared))
    }

    /// The one that [`Shared::register`] made.
    pub(super) fn first(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.0.release(PART);
    }
}
