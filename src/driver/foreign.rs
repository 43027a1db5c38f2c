//! The one place that calls what is not ours outside of a task: drops of IO and listeners, wakers,
//! the tracing subscriber. Any of them may panic or block, and none may take a termination with it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::clock::Stamp;

/// Calls it, and survives its panic: `None` then.
pub(crate) fn call<T>(f: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(f))
        // What was thrown is foreign as well, and its drop may panic again: it is not dropped.
        .map_err(std::mem::forget)
        .ok()
}

/// Something to be done on a [`Lane`].
pub(crate) trait Job: Send + 'static {
    fn run(self);
}

pub(crate) type Call = Box<dyn FnOnce() + Send>;

impl Job for Call {
    fn run(self) {
        self();
    }
}

/// Jobs that may panic or block, and the threads that do them, which live for as long as there are
/// any. Who hands a job over does not wait for it; one that blocks keeps its thread, and another is started for
/// what waits behind it.
pub(crate) struct Lane<J> {
    inner: Arc<Inner<J>>,
}

struct Inner<J> {
    /// How many threads there may be. Without any, who hands something over does it.
    most: usize,
    work: Mutex<Work<J>>,
    /// There is more to do, or nothing is left.
    changed: Condvar,
}

struct Work<J> {
    jobs: VecDeque<J>,
    /// Many small ones, with which others help: see [`Lane::help`].
    crowd: VecDeque<J>,
    /// Those of them that are for our threads alone.
    own: VecDeque<J>,
    /// Our threads do those too.
    joined: bool,
    /// Nothing more is expected: threads don't wait for it.
    closed: bool,
    threads: usize,
    /// Threads that wait for something to do.
    idle: usize,
    /// When the last one was taken, or the first that waits came, or threads were started as none had been taken; and
    /// how many those are to be next.
    moved_at: Stamp,
    more: usize,
    /// A thread looks after those that do them.
    watched: bool,
}

/// So many threads are started whenever all are busy. More only if none of them has begun anything for a while; in a
/// termination somebody looks sooner.
const FEW: usize = 3;
const STUCK: Duration = Duration::from_millis(10);
const MOMENT: Duration = Duration::from_millis(1);

/// For how long a thread waits for more.
const STAYS: Duration = Duration::from_millis(100);

impl<J: Job> Lane<J> {
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn is_inline(&self) -> bool {
        self.inner.most == 0
    }

    pub(crate) fn new(most: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                most,
                work: Mutex::new(Work {
                    jobs: VecDeque::new(),
                    crowd: VecDeque::new(),
                    own: VecDeque::new(),
                    joined: false,
                    closed: false,
                    threads: 0,
                    idle: 0,
                    moved_at: Stamp::now(),
                    more: 1,
                    watched: false,
                }),
                changed: Condvar::new(),
            }),
        }
    }

    pub(crate) fn hand_over(&self, job: J) {
        let mut work = self.inner.work.lock();
        work.begins_to_wait();
        work.jobs.push_back(job);
        self.attend(work);
    }

    /// Hands over many at once, for others to [`help`](Self::help) with, but for `own`; our threads take part, so many
    /// of them, once [`join`](Self::join) is called.
    pub(crate) fn hand_over_all(
        &self,
        jobs: impl IntoIterator<Item = J>,
        own: impl IntoIterator<Item = J>,
    ) {
        let mut work = self.inner.work.lock();
        work.joined = false;
        work.crowd.extend(jobs);
        work.own.extend(own);
    }

    pub(crate) fn join(&self, threads: usize) {
        let mut work = self.inner.work.lock();
        work.begins_to_wait();
        work.joined = true;
        if work.is_crowd_gone() {
            return;
        }
        while work.threads < threads.min(self.inner.most) && self.inner.start(&mut work) {}
        self.attend(work);
    }

    /// All that others were to help with is at least begun.
    pub(crate) fn is_crowd_gone(&self) -> bool {
        self.inner.work.lock().is_crowd_gone()
    }

    /// Does what [`hand_over_all`](Self::hand_over_all) brought, on the thread of who calls.
    pub(crate) fn help(&self) {
        loop {
            let job = self.inner.take(|work| work.crowd.pop_front());
            let Some(job) = job else { return };
            call(|| job.run());
        }
    }

    /// Whether something waits to be done. If nothing was begun for a moment, those who should do it are stuck, and
    /// more threads are started: one, then two, then four.
    pub(crate) fn relieve(&self) -> bool {
        let mut work = self.inner.work.lock();
        self.inner.relieve(&mut work, MOMENT);
        work.is_waiting()
    }

    /// Nothing more is expected, so that threads end as soon as they have nothing to do. What others were to
    /// help with, and have not, is of no use any more.
    pub(crate) fn close(&self) {
        let mut work = self.inner.work.lock();
        work.closed = true;
        let crowd = std::mem::take(&mut work.crowd);
        let own = std::mem::take(&mut work.own);
        drop(work);
        self.inner.changed.notify_all();
        for job in crowd.into_iter().chain(own) {
            call(|| drop(job));
        }
    }

    /// Waits until everything is done that was handed over; false if that takes longer.
    pub(crate) fn settles_within(&self, time: Duration) -> bool {
        let mut work = self.inner.work.lock();
        let busy = |work: &mut Work<J>| work.is_waiting() || work.idle < work.threads;
        let over = self.inner.changed.wait_while_for(&mut work, busy, time);
        !over.timed_out()
    }

    /// Sees to it that somebody does it, and does not wait behind one that is stuck.
    fn attend(&self, mut work: MutexGuard<'_, Work<J>>) {
        if work.threads > 0 {
            // Who was woken for the last one may not have come to it yet.
            let crowd = usize::from(work.joined && !work.is_crowd_gone());
            let busy = work.jobs.len() + crowd > work.idle && work.threads < self.inner.most;
            let started = busy && work.threads < FEW && self.inner.start(&mut work);
            if busy && !started && !work.watched {
                work.watched = self.inner.watch().is_ok();
            }
            drop(work);
            self.inner.changed.notify_all();
        } else if self.inner.most == 0 || !self.inner.start(&mut work) {
            work.threads += 1;
            // Better late than never: what blocks now holds the caller.
            drop(work);
            self.inner.work_off(Duration::ZERO);
        }
    }
}

impl<J: Job> Inner<J> {
    /// One more thread. False if there is none to be had.
    fn start(self: &Arc<Self>, work: &mut Work<J>) -> bool {
        let inner = Arc::clone(self);
        let started = spawn(move || inner.work_off(STAYS)).is_ok();
        work.threads += usize::from(started);
        started
    }

    /// If something waits and nothing was begun for so long, starts more threads.
    fn relieve(self: &Arc<Self>, work: &mut Work<J>, patience: Duration) {
        if !work.is_waiting() {
            work.more = 1;
        } else if work.moved_at.elapsed() >= patience {
            for _ in 0..work.more.min(self.most.saturating_sub(work.threads)) {
                if !self.start(work) {
                    break;
                }
            }
            work.more = (work.more * 2).min(self.most);
            work.moved_at = Stamp::now();
        }
    }

    /// Looks after those who do what waits, until nothing does, or all threads that there may be are there: each of
    /// them goes on with it once it is no longer stuck.
    fn watch(self: &Arc<Self>) -> std::io::Result<()> {
        let inner = Arc::clone(self);
        spawn(move || {
            loop {
                thread::sleep(STUCK);
                let mut work = inner.work.lock();
                inner.relieve(&mut work, STUCK);
                if !work.is_waiting() || work.threads >= inner.most {
                    work.watched = false;
                    return;
                }
            }
        })
    }

    /// Works until there has been nothing to do for so long.
    fn work_off(&self, patience: Duration) {
        loop {
            while let Some(job) = self.take(Work::next) {
                call(|| job.run());
            }
            let mut work = self.work.lock();
            work.idle += 1;
            self.changed.notify_all();
            let nothing = |work: &mut Work<J>| !work.is_waiting() && !work.closed;
            self.changed.wait_while_for(&mut work, nothing, patience);
            work.idle -= 1;
            if !work.is_waiting() {
                work.threads -= 1;
                return;
            }
        }
    }

    fn take(&self, next: impl FnOnce(&mut Work<J>) -> Option<J>) -> Option<J> {
        let mut work = self.work.lock();
        let job = next(&mut work);
        if job.is_some() {
            work.moved_at = Stamp::now();
        }
        job
    }
}

fn spawn(f: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let thread = thread::Builder::new().name("http-terminator-foreign".to_owned());
    thread.spawn(f).map(drop)
}

impl<J> Work<J> {
    fn is_waiting(&self) -> bool {
        !self.jobs.is_empty() || self.joined && !self.is_crowd_gone()
    }

    fn is_crowd_gone(&self) -> bool {
        self.crowd.is_empty() && self.own.is_empty()
    }

    /// Something is to wait from now on. Nobody is stuck who could not have begun it yet.
    fn begins_to_wait(&mut self) {
        if !self.is_waiting() {
            self.moved_at = Stamp::now();
        }
    }

    fn next(&mut self) -> Option<J> {
        if self.jobs.is_empty() && self.joined {
            self.crowd.pop_front().or_else(|| self.own.pop_front())
        } else {
            self.jobs.pop_front()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// While serving nobody comes to relieve those who are stuck, and nothing may come later.
    #[test]
    fn what_comes_behind_jobs_that_are_stuck_is_done() {
        const COUNT: usize = 14;
        for pause in [Duration::ZERO, STUCK / 2, STUCK * 2] {
            let lane: Lane<Call> = Lane::new(16);
            let stuck = Arc::new(Mutex::new(()));
            let holds = stuck.lock();
            let (tell, begun) = mpsc::channel();
            for _ in 0..COUNT {
                let (tell, stuck) = (tell.clone(), Arc::clone(&stuck));
                lane.hand_over(Box::new(move || {
                    let _ = tell.send(());
                    drop(stuck.lock());
                }));
                thread::sleep(pause);
            }
            for n in 0..COUNT {
                let told = begun.recv_timeout(Duration::from_secs(10));
                told.unwrap_or_else(|_| panic!("{n} were begun, pause {pause:?}"));
            }
            drop(holds);
        }
    }

    /// Nothing was taken for long, but nothing was there: who is woken for what has just come is not stuck.
    #[test]
    fn what_has_just_come_starts_no_threads() {
        const LONG: Duration = Duration::from_millis(500);
        let lane: Lane<Call> = Lane::new(16);
        thread::sleep(LONG + MOMENT); // time is the subject
        let mut work = lane.inner.work.lock();
        work.begins_to_wait();
        work.jobs.push_back(Box::new(|| {}));
        lane.inner.relieve(&mut work, LONG);
        assert_eq!(work.threads, 0);
    }

    /// The thread that is idle takes the first, and gets stuck.
    #[test]
    fn of_two_jobs_at_once_one_that_is_stuck_holds_up_none() {
        let lane: Lane<Call> = Lane::new(16);
        lane.hand_over(Box::new(|| {}));
        thread::sleep(STUCK); // so that it is idle
        let (stuck, (tell, told)) = (Arc::new(Mutex::new(())), mpsc::channel());
        let holds = stuck.lock();
        let blocks = Arc::clone(&stuck);
        lane.hand_over(Box::new(move || drop(blocks.lock())));
        lane.hand_over(Box::new(move || tell.send(()).expect("it is awaited")));
        told.recv_timeout(Duration::from_secs(10)).expect("done");
        drop(holds);
    }
}
