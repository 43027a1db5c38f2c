//! Who is alive, of all that a termination waits for: connections, listeners, guards.
//!
//! Nothing in here is written while a request is served: a connection takes one shard's lock when it
//! comes and when it goes.
//!
//! What makes its answers true, each tried in every order by `tests/schedules`:
//!
//! - Count first, let go after. Whoever hands over to something else (a handler that spawns work and
//!   ends, work that tracks a connection, a listener that yields one and closes) has that counted
//!   before it is itself counted out. At no moment in between is nothing there.
//! - [`left`](Census::left) is about one moment: it holds every lock at once, and reads the guards
//!   under all of them. To look at one kind after the other, as this once did, is to meet each just
//!   when what it held has gone to a kind that was looked at before.
//! - What a connection counts as is decided in the same turn of its shard's lock in which it goes:
//!   once, whoever else says so too, and never both as gone and as there.
//!
//! Locks are taken in one order, listeners first, then shards by their number.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex};

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
    /// It was taken out of a queue, and nobody has accepted it: it was no connection of anybody's.
    Lost,
    Forced,
}

impl Outcome {
    pub(crate) const ALL: [Self; OUTCOMES] = [
        Self::Idle,
        Self::Finished,
        Self::ClosedByPeer,
        Self::Stalled,
        Self::Upgraded,
        Self::Left,
        Self::Detached,
        Self::Lost,
        Self::Forced,
    ];
}

/// What is there that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Something that a drain waits for.
    Awaited,
    /// Detached connections, and nothing else.
    Detached,
    Nothing,
}

/// A connection that was counted out just now.
pub(crate) struct Gone<M> {
    pub(crate) member: M,
    /// Nobody else in its shard is waited for, so that it may have been the last of all.
    pub(crate) last: bool,
}

/// How many connections there are, and how many have ended how: each is in one of these.
pub(crate) struct Tally {
    /// Those that are waited for.
    pub(crate) connections: usize,
    /// And those that are not.
    pub(crate) detached: usize,
    ended: [usize; OUTCOMES],
}

/// `M` is a connection, and `L` a listener, as whoever looks for them sees them.
pub(crate) struct Census<M, L, const SHARDS: usize = 16> {
    next: AtomicU64,
    next_listener: AtomicU64,
    guards: AtomicUsize,
    listeners: Mutex<Numbered<L>>,
    /// Enough that cores which accept at the same time seldom meet.
    shards: [Mutex<Shard<M>>; SHARDS],
    /// Outcomes are of interest.
    begun: AtomicBool,
}

/// Some of the connections.
struct Shard<M> {
    entries: Numbered<Entry<M>>,
    /// Those that are not detached.
    waited_for: usize,
    ended: [usize; OUTCOMES],
}

struct Entry<M> {
    member: M,
    detached: bool,
}

type Numbered<T> = HashMap<u64, T, BuildHasherDefault<Spread>>;

impl<M: Clone, L: Clone, const SHARDS: usize> Census<M, L, SHARDS> {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            next_listener: AtomicU64::new(1),
            guards: AtomicUsize::new(0),
            listeners: Mutex::new(HashMap::default()),
            shards: std::array::from_fn(|_| Mutex::new(Shard::new())),
            begun: AtomicBool::new(false),
        }
    }

    /// Nothing is left that a termination waits for, or what is. Whoever counts something out so that
    /// this may have become less is told so, and has to have it looked at again.
    pub(crate) fn left(&self) -> Left {
        let listeners = self.listeners.lock();
        if !listeners.is_empty() {
            return Left::Awaited;
        }
        let mut detached = false;
        // Held until the end, or what goes from a shard that is yet to be looked at could come in one that
        // was. While many go, the first shards say so and no more are taken.
        let mut held = [const { None }; SHARDS];
        for (held, shard) in held.iter_mut().zip(&self.shards) {
            let shard = shard.lock();
            if shard.waited_for > 0 {
                return Left::Awaited;
            }
            detached |= !shard.entries.is_empty();
            *held = Some(shard);
        }
        // Behind the locks: who let go of its entry after it had counted a guard has been waited for.
        match self.guards.load(SeqCst) {
            0 if detached => Left::Detached,
            0 => Left::Nothing,
            _ => Left::Awaited,
        }
    }

    /// From now on it is counted how connections end. To be called before anybody can see that a drain
    /// has begun: whoever sees that, and a connection there, finds its end counted.
    pub(crate) fn begin(&self) {
        self.begun.store(true, SeqCst);
    }

    pub(crate) fn tally(&self) -> Tally {
        let shards = self.shards.each_ref().map(Mutex::lock);
        let mut tally = Tally {
            connections: 0,
            detached: 0,
            ended: [0; OUTCOMES],
        };
        for shard in &shards {
            tally.connections += shard.waited_for;
            tally.detached += shard.entries.len() - shard.waited_for;
            for (all, some) in tally.ended.iter_mut().zip(shard.ended) {
                *all += some;
            }
        }
        tally
    }

    // ----- connections -----

    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, SeqCst)
    }

    /// How many connections there ever were.
    pub(crate) fn accepted(&self) -> u64 {
        self.next.load(Relaxed) - 1
    }

    pub(crate) fn join(&self, id: u64, member: M) {
        let mut shard = self.shard(id).lock();
        shard.waited_for += 1;
        let entry = Entry {
            member,
            detached: false,
        };
        let known = shard.entries.insert(id, entry);
        debug_assert!(known.is_none(), "a number is given once");
    }

    /// The last of a connection is gone, or nobody will get at it any more. `None` if that was known.
    pub(crate) fn leave(&self, id: u64, outcome: Outcome) -> Option<Gone<M>> {
        let mut shard = self.shard(id).lock();
        let Entry { member, detached } = shard.entries.remove(&id)?;
        shard.waited_for -= usize::from(!detached);
        if self.begun.load(SeqCst) {
            let outcome = match outcome {
                Outcome::Forced if detached => Outcome::Detached,
                outcome => outcome,
            };
            shard.ended[outcome as usize] += 1;
        }
        let last = shard.waited_for == 0;
        Some(Gone { member, last })
    }

    /// A drain no longer waits for this connection. False if it does not anyway.
    pub(crate) fn detach(&self, id: u64) -> bool {
        let mut shard = self.shard(id).lock();
        let Some(entry) = shard.entries.get_mut(&id) else {
            return false;
        };
        let detached = std::mem::replace(&mut entry.detached, true);
        shard.waited_for -= usize::from(!detached);
        !detached
    }

    pub(crate) fn is_detached(&self, id: u64) -> bool {
        let shard = self.shard(id).lock();
        shard.entries.get(&id).is_some_and(|entry| entry.detached)
    }

    pub(crate) fn connection(&self, id: u64) -> Option<M> {
        let shard = self.shard(id).lock();
        shard.entries.get(&id).map(|entry| entry.member.clone())
    }

    pub(crate) fn has(&self, id: u64) -> bool {
        self.shard(id).lock().entries.contains_key(&id)
    }

    pub(crate) fn connections(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.lock().entries.len()).sum()
    }

    /// How many connections a drain waits for.
    pub(crate) fn waited_for(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.lock().waited_for).sum()
    }

    pub(crate) fn each_connection(&self, mut f: impl FnMut(&M)) {
        for shard in &self.shards {
            // Not under its lock (invariant 7).
            let members: Vec<_> = {
                let shard = shard.lock();
                let entries = shard.entries.values();
                entries.map(|entry| entry.member.clone()).collect()
            };
            members.iter().for_each(&mut f);
        }
    }

    /// All connections, in the order in which they were accepted, those that are detached behind the others: to end them in
    /// that order costs the kernel a third less than at random, and the allocator too, as what they have lies side by side.
    pub(crate) fn in_order(&self) -> Vec<M> {
        let mut all = Vec::with_capacity(self.connections());
        for shard in &self.shards {
            let shard = shard.lock();
            let entries = shard.entries.iter();
            all.extend(entries.map(|(id, entry)| ((entry.detached, *id), entry.member.clone())));
        }
        all.sort_unstable_by_key(|(place, _)| *place);
        all.into_iter().map(|(_, member)| member).collect()
    }

    /// Keeps everybody from coming and going, for as long as what is returned lives.
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        let listeners = self.listeners.lock();
        (listeners, self.shards.each_ref().map(Mutex::lock))
    }

    fn shard(&self, id: u64) -> &Mutex<Shard<M>> {
        &self.shards[usize::try_from(id % SHARDS as u64).unwrap_or(0)]
    }

    // ----- listeners -----

    pub(crate) fn next_listener(&self) -> u64 {
        self.next_listener.fetch_add(1, SeqCst)
    }

    pub(crate) fn open(&self, id: u64, listener: L) {
        let known = self.listeners.lock().insert(id, listener);
        debug_assert!(known.is_none(), "a number is given once");
    }

    /// It is closed, and holds nothing. `None` if that was known.
    pub(crate) fn close(&self, id: u64) -> Option<L> {
        self.listeners.lock().remove(&id)
    }

    pub(crate) fn listener(&self, id: u64) -> Option<L> {
        self.listeners.lock().get(&id).cloned()
    }

    pub(crate) fn listeners(&self) -> Vec<(u64, L)> {
        let listeners = self.listeners.lock();
        listeners.iter().map(|(id, it)| (*id, it.clone())).collect()
    }

    // ----- guards -----

    pub(crate) fn guards(&self) -> usize {
        self.guards.load(SeqCst)
    }

    /// Counts one, unless they are refused. It looks before, as those who ask without end must not hold the drain open; and
    /// after, so that either the driver sees the guard or the guard sees that (invariant 3): then `release` is to count it out.
    pub(crate) fn count_guard_unless(
        &self,
        refused: impl Fn() -> bool,
        release: impl FnOnce(),
    ) -> bool {
        if refused() {
            return false;
        }
        self.count_guard();
        if refused() {
            release();
            return false;
        }
        true
    }

    /// By who has one, or nobody else would be waited for.
    pub(crate) fn count_guard(&self) {
        self.guards.fetch_add(1, SeqCst);
    }

    /// True if it was the last.
    pub(crate) fn release_guard(&self) -> bool {
        self.guards.fetch_sub(1, SeqCst) == 1
    }
}

impl Tally {
    pub(crate) fn ended(&self, outcome: Outcome) -> usize {
        self.ended[outcome as usize]
    }
}

impl<M> Shard<M> {
    fn new() -> Self {
        Self {
            entries: HashMap::default(),
            waited_for: 0,
            ended: [0; OUTCOMES],
        }
    }
}

/// Numbers that count up need no more hashing than this, and nobody but us chooses them: a product
/// with an odd number keeps all apart and moves their differences to the upper bits, which the map
/// looks at first (Knuth, The Art of Computer Programming, volume 3, section 6.4).
#[derive(Default)]
struct Spread(u64);

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

/// `Forced` is the last.
const OUTCOMES: usize = Outcome::Forced as usize + 1;
