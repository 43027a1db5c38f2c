//! Who listens, and the one thread that waits for signals while somebody does.
//!
//! The thread polls nothing at intervals: it sleeps until a signal comes or a terminator that listens
//! has ended or is gone, which wakes it like any other task.
//!
//! Invariants, cited by number where code leans on them:
//!
//! 1. Everything changes under the one lock; nothing foreign is called under it.
//! 2. There is a thread whenever somebody listens.
//! 3. Signals have their default effect exactly while there is no thread.

use std::io;
use std::sync::LazyLock;
use std::task::Waker;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::source::{self, Defaults, Signal, Source};
use crate::clock::{Clock, Moment};
use crate::driver::foreign;
use crate::phase::Phase;
use crate::termination::Ended;
use crate::terminator::{Terminator, WeakTerminator};

/// What is sent within this time is one signal: by a terminal to the process group, and by a
/// supervisor or a shell that forwards it.
const TOGETHER: Duration = Duration::from_secs(1);

static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(|| {
    Mutex::new(Shared {
        clock: Clock::start(),
        list: Listeners::default(),
        thread: None,
        defaults: Defaults::new(),
    })
});

struct Shared {
    clock: Clock,
    list: Listeners<Listener>,
    /// Wakes it.
    thread: Option<Waker>,
    defaults: Defaults,
}

/// It listens when this returns, unless it has ended.
pub(super) fn listen(terminator: &Terminator) -> io::Result<()> {
    let mut shared = SHARED.lock();
    let mut known = shared.list.all.iter();
    let known = known.any(|it| it.listener.terminator.is(terminator));
    if known || terminator.phase() == Phase::Terminated {
        return Ok(());
    }
    let waker = if let Some(waker) = &shared.thread {
        waker.clone()
    } else {
        let (source, waker) = Source::open(&mut shared.defaults)?;
        let thread = thread::Builder::new().name("http-terminator-signal".to_owned());
        // It waits for our lock first, and ends at once if nobody listens after all.
        thread.spawn(move || run(source))?;
        shared.thread = Some(waker.clone());
        shared.defaults.suspend();
        waker
    };
    let mut listener = Listener::new(terminator);
    if !listener.has_ended(&waker) {
        shared.list.add(listener);
    }
    Ok(())
}

fn run(mut source: Source) {
    loop {
        let patience = {
            let mut shared = SHARED.lock();
            shared.forget_ended();
            let now = shared.clock.now();
            match shared.list.patience(now) {
                Patience::Over => return shared.end_thread(source),
                Patience::For(time) => Some(time),
                Patience::Endless => None,
            }
        };
        let Ok(signals) = source.wait(patience) else {
            // Somebody has closed our descriptors. Better the default effect than none.
            let mut shared = SHARED.lock();
            shared.list = Listeners::default();
            return shared.end_thread(source);
        };
        signals.into_iter().for_each(hear);
    }
}

fn hear(signal: Signal) {
    let (heard, acts) = {
        let mut shared = SHARED.lock();
        shared.forget_ended();
        let now = shared.clock.now();
        let mut acts = Vec::new();
        let heard = shared.list.hear(now, |listener, act| {
            let before = acts.len();
            let terminator = listener.terminator.upgrade();
            acts.extend(terminator.map(|it| (act, it)));
            acts.len() > before
        });
        if !heard {
            shared.defaults.have_effect(signal);
        }
        (heard, acts)
    };
    if !heard {
        return;
    }
    let forced = acts.iter().filter(|(act, _)| *act == Act::Force).count();
    let terminated = acts.len() - forced;
    for (act, terminator) in acts {
        // It may be the last handle by now, and then drops what is foreign.
        foreign::call(move || match act {
            Act::Terminate => drop(terminator.terminate()),
            Act::Force => drop(terminator.force()),
        });
    }
    log(source::name(signal), terminated, forced);
}

/// On a thread that is thrown away: a logger may panic, or block for ever on a full pipe, and this
/// thread must hear the next signal. If there is no thread to be had, a line is lost.
fn log(signal: &'static str, terminated: usize, forced: usize) {
    if terminated + forced == 0 {
        return;
    }
    let logs = move || {
        // Not inside the macro: its fields are evaluated only if somebody listens.
        if terminated > 0 {
            tracing::info!(signal, terminators = terminated, "terminating on a signal");
        }
        if forced > 0 {
            tracing::warn!(signal, terminators = forced, "forcing on a second signal");
        }
    };
    let thread = thread::Builder::new().name("http-terminator-log".to_owned());
    let _ = thread.spawn(move || foreign::call(logs));
}

impl Shared {
    fn forget_ended(&mut self) {
        if let Some(waker) = &self.thread {
            self.list.all.retain_mut(|it| !it.listener.has_ended(waker));
        }
    }

    /// What was heard in the last moment, and by nobody here, has its effect after all.
    fn end_thread(&mut self, source: Source) {
        self.thread = None;
        self.defaults.resume();
        for signal in source.close() {
            self.defaults.have_effect(signal);
        }
    }
}

struct Listener {
    terminator: WeakTerminator,
    ended: Ended,
}

impl Listener {
    fn new(terminator: &Terminator) -> Self {
        Self {
            terminator: terminator.downgrade(),
            ended: Ended::of(terminator.registry()),
        }
    }

    /// If it has not, the waker is woken when it does.
    fn has_ended(&mut self, waker: &Waker) -> bool {
        self.terminator.has_ended() || self.ended.is_now(waker)
    }
}

/// Who listens, and what a signal is for each: told the time, so that it can be tested without a
/// clock.
struct Listeners<L> {
    all: Vec<Entry<L>>,
    /// When a signal was last acted upon, by whomever.
    acted: Option<Moment>,
}

struct Entry<L> {
    listener: L,
    terminated: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Terminate,
    Force,
}

/// How long to wait for signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    Endless,
    For(Duration),
    Over,
}

impl<L> Listeners<L> {
    fn add(&mut self, listener: L) {
        self.all.push(Entry {
            listener,
            terminated: None,
        });
    }

    /// `act` is false for who is gone. False if it is for nobody, nor part of one that was.
    fn hear(&mut self, now: Moment, mut act: impl FnMut(&mut L, Act) -> bool) -> bool {
        let is_part = self.acted.is_some_and(|at| now.since(at) < TOGETHER);
        let mut acted = false;
        self.all.retain_mut(|it| match it.terminated {
            None => {
                it.terminated = Some(now);
                let is_there = act(&mut it.listener, Act::Terminate);
                acted |= is_there;
                is_there
            }
            // Counted from what was acted upon: who loses patience is heard after a second.
            Some(at) if now.since(at) < TOGETHER => true,
            // It has no use for a third.
            Some(_) => {
                acted |= act(&mut it.listener, Act::Force);
                false
            }
        });
        if acted {
            self.acted = Some(now);
        }
        acted || is_part
    }

    /// Also when nobody is left a signal may have been the first half of a pair.
    fn patience(&self, now: Moment) -> Patience {
        if !self.all.is_empty() {
            return Patience::Endless;
        }
        let gone = self.acted.map_or(TOGETHER, |at| now.since(at));
        match TOGETHER.saturating_sub(gone) {
            Duration::ZERO => Patience::Over,
            left => Patience::For(left),
        }
    }
}

impl<L> Default for Listeners<L> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            acted: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Act::{Force, Terminate};

    fn at(ms: u64) -> Moment {
        Moment::START.after(Duration::from_millis(ms))
    }

    /// What a signal does, and whether anybody heard it.
    fn hear(list: &mut Listeners<char>, ms: u64) -> (Vec<(char, Act)>, bool) {
        let mut acts = Vec::new();
        let heard = list.hear(at(ms), |who, act| {
            let is_there = who.is_lowercase();
            acts.extend(is_there.then_some((*who, act)));
            is_there
        });
        (acts, heard)
    }

    #[test]
    fn the_first_terminates_the_second_forces_the_third_is_for_nobody() {
        let mut list = Listeners::default();
        assert_eq!(list.patience(at(0)), Patience::Over);
        list.add('a');
        assert_eq!(hear(&mut list, 5_000), (vec![('a', Terminate)], true));
        assert_eq!(list.patience(at(9_000)), Patience::Endless);
        assert_eq!(hear(&mut list, 6_000), (vec![('a', Force)], true));
        let left = Patience::For(Duration::from_millis(1));
        assert_eq!(list.patience(at(6_999)), left);
        assert_eq!(hear(&mut list, 6_999), (vec![], true));
        assert_eq!(list.patience(at(7_000)), Patience::Over);
        assert_eq!(hear(&mut list, 7_000), (vec![], false));
    }

    #[test]
    fn within_a_second_of_what_was_acted_upon_it_is_the_same() {
        let mut list = Listeners::default();
        list.add('a');
        assert_eq!(hear(&mut list, 0), (vec![('a', Terminate)], true));
        assert_eq!(hear(&mut list, 600), (vec![], true));
        assert_eq!(hear(&mut list, 1_200), (vec![('a', Force)], true));
        assert_eq!(hear(&mut list, 1_800), (vec![], true));
        assert_eq!(hear(&mut list, 2_400), (vec![], false));
    }

    /// It was dropped after it was last asked whether it has ended, and nobody acts for it.
    #[test]
    fn who_has_gone_does_not_hear() {
        let mut list = Listeners::default();
        list.add('A');
        assert_eq!(hear(&mut list, 5), (vec![], false));
        assert_eq!(list.patience(at(5)), Patience::Over);
        list.add('A');
        list.add('b');
        assert_eq!(hear(&mut list, 9), (vec![('b', Terminate)], true));
        assert_eq!(list.all.len(), 1);
    }

    #[test]
    fn each_counts_its_own() {
        let mut list = Listeners::default();
        list.add('a');
        assert_eq!(hear(&mut list, 0), (vec![('a', Terminate)], true));
        list.add('b');
        assert_eq!(hear(&mut list, 5), (vec![('b', Terminate)], true));
        assert_eq!(hear(&mut list, 1_002), (vec![('a', Force)], true));
        assert_eq!(hear(&mut list, 1_010), (vec![('b', Force)], true));
        assert_eq!(hear(&mut list, 1_020), (vec![], true));
        list.add('c');
        assert_eq!(hear(&mut list, 1_030), (vec![('c', Terminate)], true));
    }
}
