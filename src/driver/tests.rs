//! Whole terminations, stepped by hand: without a thread, a sleep, or a clock that goes by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::{Event as Logged, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::Driver;
use super::agenda::Reminder;
use super::in_hand::{MOST_NAMED, in_hand};
use super::member::{AcceptQueue, Cut, Member, Snapshot};
use super::sequence::END;
use super::steps::{LINGER, Steps};
use crate::census::Outcome;
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::guard::ShutdownGuard;
use crate::phase::Phase;
use crate::registry::Registry;
use crate::report::{Protocol, Report, Straggler};

/// Several may force at once. Whoever names late finds only who is not cut yet.
#[test]
fn who_is_cut_is_named_before() {
    // Who forces a moment too late has named who was not cut.
    for (grace, named) in [(0, 1), (1_000, 0)] {
        let walk = Walk::new(0, grace);
        let connection = walk.connect(Until::Cut(Cut::Soft));
        let holds = walk.connect(Until::At(at(20)));
        let stragglers = &walk.driver.stragglers;
        stragglers.name(walk.registry());
        walk.registry().leave(connection.id, Outcome::Forced);
        walk.registry().leave(holds.id, Outcome::Finished);
        let late = walk.connect(Until::At(at(15)));
        stragglers.name(walk.registry());
        let (_, report) = walk.terminate(at(10));
        let names = report.stragglers.iter().map(|it| it.connection);
        assert_eq!(
            names.filter(|n| *n == connection.id).count(),
            named,
            "{report}"
        );
        drop(late);
    }
}

#[test]
fn one_leaves_and_one_is_cut() {
    let walk = Walk::new(100, 1_000);
    let quick = walk.connect(Until::At(at(300)));
    let slow = walk.connect(Until::Cut(Cut::Hard));
    let listener = walk.listen();

    let (trace, report) = walk.terminate(at(10));

    let phases = [
        (Phase::LameDuck, at(10)),
        (Phase::Draining, at(110)),
        (Phase::Forcing, at(1_110)),
        (Phase::Terminated, at(1_200)),
    ];
    assert_eq!(trace, phases);
    assert_eq!(
        quick.saw(),
        [
            (at(10), Event::LameDuck),
            (at(110), Event::Woken(Phase::Draining)),
            (at(300), Event::Woken(Phase::Draining)),
        ]
    );
    let slow = slow.saw();
    assert_eq!(slow[1], (at(110), Event::Woken(Phase::Draining)));
    assert_eq!(slow[2], (at(1_110), Event::Cut(Cut::Soft)));
    let first = |cut| slow.iter().find(|(_, it)| *it == Event::Cut(cut));
    assert_eq!(first(Cut::Firm), Some(&(at(1_180), Event::Cut(Cut::Firm))));
    assert_eq!(first(Cut::Hard), Some(&(at(1_200), Event::Cut(Cut::Hard))));
    assert_eq!(listener.emptied.lock()[..], [at(110), at(115)]);

    assert_eq!((report.finished, report.forced), (1, 1));
    assert_eq!((report.connections(), report.unclosed), (2, 0));
    assert_eq!(report.lame_duck, Duration::from_millis(100));
    assert_eq!(report.draining, Duration::from_secs(1));
    assert_eq!(report.forcing, Duration::from_millis(90));
    let named: Vec<_> = report.stragglers.iter().map(|it| it.connection).collect();
    assert_eq!(named, [2], "the other one was gone");
}

#[test]
fn the_last_one_ends_it_before_the_deadline() {
    let walk = Walk::new(0, 60_000);
    walk.connect(Until::At(at(300)));
    walk.connect(Until::At(at(700)));

    let (trace, report) = walk.terminate(at(10));

    let phases = [(Phase::Draining, at(10)), (Phase::Terminated, at(700))];
    assert_eq!(trace, phases);
    assert_eq!(report.finished, 2);
    assert!(report.is_clean());
}

#[test]
fn one_that_never_lets_go_is_named_and_not_waited_for() {
    let walk = Walk::new(0, 50);
    walk.connect(Until::Never);

    let (trace, report) = walk.terminate(at(0));

    let end = at(50).after(END);
    assert_eq!(trace.last(), Some(&(Phase::Terminated, end)));
    assert_eq!((report.forced, report.unresponsive), (1, 1));
    assert_eq!(
        report.stragglers.len(),
        1,
        "named once, though looked at twice"
    );
}

/// A process that gets no processor for a while behind `force()` had no time left to answer when it did.
#[test]
fn who_sees_late_that_it_is_to_force_answers_before_it_cuts() {
    let walk = Walk::new(0, 60_000);
    let one = walk.connect(Until::Cut(Cut::Hard));
    let mut steps = walk.begin(at(10));
    steps.step(at(10));
    walk.registry().clock.set(at(20));
    walk.driver.force();
    let (_, report) = walk.go_on(steps, at(1_000));
    let saw = one.saw();
    let mut cuts = saw.iter().filter(|(_, it)| matches!(it, Event::Cut(_)));
    assert_eq!(cuts.next(), Some(&(at(1_000), Event::Cut(Cut::Soft))));
    let cut = at(1_000).after(super::sequence::CUT);
    assert!(cuts.next_back().is_some_and(|(last, _)| *last >= cut));
    assert_eq!(report.forced, 1);
}

/// The same while the drain begins, which takes its time with thousands.
#[test]
fn who_is_to_force_while_a_drain_begins_answers_before_it_cuts() {
    let walk = Walk::new(0, 60_000);
    let one = walk.connect(Until::Forced(Arc::clone(&walk.driver), 100));
    walk.terminate(at(10));
    let saw = one.saw();
    let mut cuts = saw.iter().filter(|(_, it)| matches!(it, Event::Cut(_)));
    assert_eq!(cuts.next(), Some(&(at(110), Event::Cut(Cut::Soft))));
}

/// Whoever sees the deadline ends, and can't be named any more. Interleaving: somebody terminates once more while those are being
/// named who are there at the deadline, and made it visible.
#[test]
fn who_terminates_at_the_deadline_does_not_tell_of_it() {
    let walk = Walk::new(0, 100);
    let one = walk.connect(Until::Named(Arc::clone(&walk.driver)));
    walk.terminate(at(10));
    let saw = one.saw();
    let named = saw.iter().find(|(_, it)| matches!(it, Event::Named(_)));
    assert_eq!(named, Some(&(at(110), Event::Named(Phase::Draining))));
}

/// Who waits for a turn that is far away, and gives up each time something else happens, leaves a reminder each time.
#[test]
fn reminders_of_those_who_have_gone_do_not_pile_up() {
    let walk = Walk::new(0, 60_000);
    let one = walk.connect(Until::Cut(Cut::Hard));
    let mut steps = walk.begin(at(10));
    steps.step(at(10));
    let registry = walk.registry();
    for _ in 0..100 {
        for _ in 0..100 {
            let n = registry.waiters.number();
            registry.wait_until(at(50_000), n, Waker::noop().clone());
            drop(registry.waiters.take(n));
        }
        steps.step(at(20));
    }
    assert!(steps.reminders() < 3_000, "{}", steps.reminders());
    // Whoever waits is kept.
    let (told, n) = (Arc::new(Woken::default()), registry.waiters.number());
    registry.wait_until(at(50_000), n, Arc::clone(&told).into());
    for _ in 0..2_000 {
        registry.remind(at(50_000), Reminder::Waiter(n + 1));
    }
    steps.step(at(30));
    steps.step(at(49_000));
    assert!(!told.0.load(Relaxed));
    steps.step(at(50_000));
    assert!(told.0.load(Relaxed));
    drop(one);
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn detached_ones_are_cut_when_nothing_else_is_left() {
    let walk = Walk::new(0, 60_000);
    walk.connect(Until::At(at(300)));
    let detached = walk.connect(Until::Cut(Cut::Soft));
    walk.registry().detach(detached.id);

    let (trace, report) = walk.terminate(at(10));

    let phases = [
        (Phase::Draining, at(10)),
        (Phase::Forcing, at(300)),
        (Phase::Terminated, at(300)),
    ];
    assert_eq!(trace, phases);
    assert_eq!((report.finished, report.detached, report.forced), (1, 1, 0));
}

/// Nobody waits for them, so however many they are they leave room for whoever held the drain up.
#[test]
fn detached_ones_do_not_keep_others_from_being_named() {
    let walk = Walk::new(0, 300);
    for _ in 0..MOST_NAMED {
        let detached = walk.connect(Until::Cut(Cut::Soft));
        walk.registry().detach(detached.id);
    }
    let held = walk.connect(Until::Cut(Cut::Soft));
    let first = |named: &[Straggler]| (named.len(), named[0].connection);
    let named = (MOST_NAMED, held.id);
    assert_eq!(first(&in_hand(walk.registry())), named);

    let (_, report) = walk.terminate(at(10));

    assert_eq!((report.forced, report.detached), (1, MOST_NAMED));
    assert_eq!(first(&report.stragglers), named);
}

/// The room is that which is left once it is known who was cut.
#[test]
fn guards_are_named_behind_many_that_were_not_cut() {
    let walk = Walk::new(0, 300);
    for _ in 0..MOST_NAMED {
        walk.connect(Until::At(at(310)));
    }
    let guard = ShutdownGuard::before(Phase::Draining, walk.registry());

    let (_, report) = walk.terminate(at(10));

    assert_eq!((report.forced, report.guards_cut), (0, 1));
    let named: Vec<_> = report.stragglers.iter().map(|it| it.protocol).collect();
    assert_eq!(named, [Protocol::Guard]);
    drop(guard);
}

/// What a listener holds is given up once nobody has asked for it for half a second, in which the process ran.
#[test]
fn what_nobody_asks_for_is_not_given_up_behind_a_time_in_which_the_process_stood_still() {
    let walk = Walk::new(0, 60_000);
    walk.listen_holding(1);
    let mut steps = walk.begin(at(10));
    let mut is_open_at = |ms| {
        walk.registry().clock.set(at(ms));
        steps.step(at(ms));
        !walk.registry().census.listeners().is_empty()
    };
    assert!((10..50).step_by(5).all(&mut is_open_at));
    // It was closed here.
    assert!((700..1_195).step_by(5).all(&mut is_open_at));
    assert!(!is_open_at(1_205));
}

#[test]
fn a_socket_is_closed_in_stages() {
    let walk = Walk::new(0, 60_000);
    let lingering = walk.connect(Until::Cut(Cut::Hard));
    walk.registry().agenda.linger(lingering.id, LINGER);

    let (trace, _) = walk.terminate(at(10));

    assert_eq!(
        trace.last(),
        Some(&(Phase::Terminated, at(1_010))),
        "a second after it was handed over, whatever the deadline"
    );
    let saw = lingering.saw();
    let first = saw.iter().find(|(_, it)| matches!(it, Event::Cut(_)));
    assert_eq!(first, Some(&(at(10), Event::Cut(Cut::Soft))));
}

#[test]
fn a_drain_says_every_five_seconds_what_is_left() {
    let five_seconds = |grace_period| {
        let walk = Walk::new(100, grace_period);
        walk.connect(Until::Never);
        said(&walk, "still draining", at(10))
    };
    assert_eq!(five_seconds(16_000), [at(5_110), at(10_110), at(15_110)]);
    assert_eq!(five_seconds(5_000), [], "the deadline says more");
    assert_eq!(five_seconds(5_001), [at(5_110)]);
    // When it would be time again, it is forcing.
    assert_eq!(five_seconds(9_950), [at(5_110)]);

    let walk = Walk::with(0, None);
    walk.connect(Until::At(at(12_000)));
    let said = said(&walk, "still draining", at(0));
    assert_eq!(said, [at(5_000), at(10_000)], "without a deadline too");
}

#[test]
fn what_was_slept_through_is_said_once() {
    let walk = Walk::with(0, None);
    walk.connect(Until::Never);
    let (log, _set) = Log::listen(&walk, "still draining");
    walk.registry().clock.set(at(0));
    assert!(walk.driver.begin(None));
    let mut steps = Steps::new(Arc::clone(&walk.driver));
    for now in [0, 4_999, 60_001, 64_999, 65_000].map(at) {
        walk.registry().clock.set(now);
        assert!(steps.step(now).is_some());
    }
    assert_eq!(log.0.lock()[..], [at(60_001), at(65_000)]);
}

/// It looked at the phase a moment before that said so, and has no deadline, nor a socket that was closed under it.
#[test]
fn who_comes_while_the_end_is_told_is_woken_when_it_is() {
    let walk = Walk::new(0, 60_000);
    let late = Arc::<Mutex<Vec<_>>>::default();
    let (registry, comes) = (Arc::clone(walk.registry()), Arc::clone(&late));
    let (_log, _set) = Log::listen_and(&walk, "terminated", move || {
        assert_eq!(registry.phase(), Phase::Draining);
        comes.lock().push(Connection::join(&registry, Until::Never));
    });
    let (_, report) = walk.terminate(at(10));
    assert_eq!(report.connections(), 0, "{report}");
    let late = late.lock().pop().expect("it is said");
    let woken = Event::Woken(Phase::Terminated);
    assert_eq!(late.saw(), [(at(10), woken)]);
}

/// There was no thread, and whoever had it has let go: nobody else would.
#[test]
fn what_was_to_be_closed_while_serving_and_was_not_is_closed_in_the_drain() {
    let walk = Walk::with(0, None);
    let lingers = walk.connect(Until::Cut(Cut::Hard));
    walk.registry().linger(lingers.id, LINGER);
    let (trace, _) = walk.terminate(at(10));
    let ended = trace.last().expect("it ends");
    assert!(*ended <= (Phase::Terminated, at(1_100)), "{trace:?}");
}

/// Who is busy until its turn asks for that again whenever it is woken for something else.
#[test]
fn who_asks_for_the_same_moment_again_is_reminded_once() {
    let walk = Walk::new(0, 600_000);
    let connection = walk.connect(Until::Never);
    let mut steps = walk.begin(at(0));
    steps.step(at(0));
    let before = connection.saw().len();
    let turn = at(60_000);
    for ms in (0..50_000).step_by(10) {
        walk.registry()
            .remind(turn, Reminder::Connection(connection.id));
        walk.registry().clock.set(at(ms));
        steps.step(at(ms));
    }
    assert!(steps.reminders() <= 1_025, "{}", steps.reminders());
    walk.registry().clock.set(turn);
    steps.step(turn);
    assert_eq!(connection.saw().len() - before, 1);
}

/// When the driver said so.
fn said(walk: &Walk, message: &'static str, from: Moment) -> Vec<Moment> {
    let (log, _set) = Log::listen(walk, message);
    walk.terminate(from);
    log.0.lock().clone()
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Moment>>>);

impl Log {
    fn listen(walk: &Walk, message: &'static str) -> (Self, tracing::subscriber::DefaultGuard) {
        Self::listen_and(walk, message, || {})
    }

    fn listen_and(
        walk: &Walk,
        message: &'static str,
        then: impl Fn() + Send + Sync + 'static,
    ) -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let layer = Listens {
            log: log.clone(),
            message,
            clock: walk.registry().clock,
            then: Box::new(then),
        };
        let subscriber = tracing_subscriber::registry().with(layer);
        (log, tracing::subscriber::set_default(subscriber))
    }
}

struct Listens {
    log: Log,
    message: &'static str,
    clock: Clock,
    then: Box<dyn Fn() + Send + Sync>,
}

impl<S: Subscriber> Layer<S> for Listens {
    fn on_event(&self, event: &Logged<'_>, _: Context<'_, S>) {
        let mut says_so = false;
        event.record(
            &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                says_so |= field.name() == "message" && format!("{value:?}") == self.message;
            },
        );
        if says_so {
            self.log.0.lock().push(self.clock.now());
            (self.then)();
        }
    }
}

/// However many linger, and however long it takes to look at each, the deadline is seen when it comes.
#[test]
fn a_crowd_that_lingers_does_not_delay_the_deadline() {
    let walk = Walk::new(0, 200);
    let all: Vec<_> = (0..1000).map(|_| walk.connect(Until::Slow(1))).collect();
    for connection in &all {
        walk.registry().agenda.linger(connection.id, LINGER);
    }
    let (trace, report) = walk.terminate(Moment::START);
    let forced = trace.iter().find(|(phase, _)| *phase == Phase::Forcing);
    let (_, forced) = forced.expect("there is a deadline");
    assert!((at(200)..at(300)).contains(forced), "{trace:?}");
    assert_eq!(report.forced, 1000);
}

// ===== the walk =====

struct Walk {
    driver: Arc<Driver>,
}

impl Walk {
    /// In milliseconds.
    fn new(lame_duck: u64, grace_period: u64) -> Self {
        Self::with(lame_duck, Some(Duration::from_millis(grace_period)))
    }

    fn with(lame_duck: u64, grace_period: Option<Duration>) -> Self {
        let config = Config {
            lame_duck: Duration::from_millis(lame_duck).into(),
            grace_period,
            ..Config::default()
        };
        let registry = Registry::without_threads(config, Clock::standing());
        Self {
            driver: Arc::new(Driver::new(Arc::new(registry))),
        }
    }

    fn registry(&self) -> &Arc<Registry> {
        &self.driver.registry
    }

    fn connect(&self, until: Until) -> Arc<Connection> {
        Connection::join(self.registry(), until)
    }

    fn listen(&self) -> Arc<Listener> {
        self.listen_holding(0)
    }

    fn listen_holding(&self, held: usize) -> Arc<Listener> {
        let registry = Arc::clone(self.registry());
        let listener = Arc::new(Listener {
            id: registry.census.next_listener(),
            registry,
            emptied: Mutex::default(),
            held,
        });
        let queue = Arc::clone(&listener) as Arc<dyn AcceptQueue>;
        self.registry().census.open(listener.id, queue);
        listener
    }

    fn begin(&self, now: Moment) -> Steps {
        let registry = self.registry();
        registry.clock.set(now);
        let grace = registry.config.grace_period;
        assert!(self.driver.begin(grace), "the first call");
        assert!(!self.driver.begin(grace), "which is the one that counts");
        Steps::new(Arc::clone(&self.driver))
    }

    /// Takes every step when it is due, and gives which phase came when.
    fn terminate(&self, now: Moment) -> (Vec<(Phase, Moment)>, Report) {
        let steps = self.begin(now);
        self.go_on(steps, now)
    }

    fn go_on(&self, mut steps: Steps, mut now: Moment) -> (Vec<(Phase, Moment)>, Report) {
        let registry = self.registry();
        registry.clock.set(now);
        let mut trace = vec![(registry.phase(), now)];
        for _ in 0..MOST_STEPS {
            let next = steps.step(now);
            // One step may pass through several.
            for phase in [Phase::Draining, Phase::Forcing, Phase::Terminated] {
                let known = trace.last().is_some_and(|(known, _)| *known >= phase);
                if registry.phase() >= phase && !known && self.entered(phase) {
                    trace.push((phase, now));
                }
            }
            let Some(at) = next else {
                assert!(registry.draining.is_cancelled());
                let report = registry.report().expect("it has ended");
                return (trace, report.clone());
            };
            now = registry.clock.now().max(registry.agenda.sleeps_until(at));
            registry.clock.set(now);
        }
        panic!("no end after {MOST_STEPS} steps: {trace:?}");
    }

    fn entered(&self, phase: Phase) -> bool {
        self.driver.sequence.lock().entered(phase).is_some()
    }
}

fn at(ms: u64) -> Moment {
    Moment::START.after(Duration::from_millis(ms))
}

/// One poke of the runtimes each 20 ms makes 3,000 of a minute.
const MOST_STEPS: usize = 10_000;

// ===== who takes part =====

/// For how long a connection stays.
enum Until {
    /// Then it has answered.
    At(Moment),
    /// It is cut so hard.
    Cut(Cut),
    /// It is inside its handler.
    Never,
    /// To look at it takes so many milliseconds.
    Slow(u64),
    /// To be asked for its runtime, too, and by then it was forced.
    Forced(Arc<Driver>, u64),
    /// While it is named, somebody terminates once more.
    Named(Arc<Driver>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    LameDuck,
    Woken(Phase),
    Cut(Cut),
    Named(Phase),
}

struct Connection {
    id: u64,
    registry: Arc<Registry>,
    until: Until,
    thread: ThreadId,
    saw: Mutex<Vec<(Moment, Event)>>,
}

impl Connection {
    fn join(registry: &Arc<Registry>, until: Until) -> Arc<Self> {
        let connection = Arc::new(Self {
            id: registry.next_id(),
            registry: Arc::clone(registry),
            until,
            thread: thread::current().id(),
            saw: Mutex::default(),
        });
        let member = Arc::clone(&connection) as Arc<dyn Member>;
        registry.join(connection.id, member);
        connection
    }

    fn sees(&self, event: Event) {
        // What is foreign survives this: it is missed in what was seen.
        assert_eq!(thread::current().id(), self.thread, "stepped by hand");
        self.saw.lock().push((self.registry.clock.now(), event));
    }

    fn saw(&self) -> Vec<(Moment, Event)> {
        self.saw.lock().clone()
    }
}

impl Member for Connection {
    fn wake(&self) {
        self.sees(Event::Woken(self.registry.phase()));
        let Until::At(end) = self.until else { return };
        if self.registry.clock.now() < end {
            self.registry.remind(end, Reminder::Connection(self.id));
        } else {
            self.registry.leave(self.id, Outcome::Finished);
        }
    }

    fn cut(self: Arc<Self>, least: Cut) -> bool {
        let how = self.registry.how_to_cut(Moment::NEVER).max(least);
        self.sees(Event::Cut(how));
        if let Until::Slow(ms) = self.until {
            let clock = &self.registry.clock;
            clock.set(clock.now().after(Duration::from_millis(ms)));
        }
        if matches!(self.until, Until::Cut(until) if how >= until) {
            self.registry.leave(self.id, Outcome::Forced);
        }
        false
    }

    fn unsent(&self) -> Option<u32> {
        None
    }

    fn grow_old(&self) {}

    fn lame_duck(&self) {
        self.sees(Event::LameDuck);
    }

    fn close_idle(self: Arc<Self>, _: Moment) -> bool {
        false
    }

    fn is_open(&self) -> bool {
        false
    }

    fn was_cut(&self) -> bool {
        !matches!(self.until, Until::At(_))
    }

    fn is_lost(&self) -> bool {
        false
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::Busy { requests: 1 }
    }

    fn is_in_a_poll(&self) -> bool {
        matches!(self.until, Until::Never)
    }

    fn stragglers(&self, now: Moment, _: usize) -> Vec<Straggler> {
        if let Until::Named(driver) = &self.until {
            assert!(!driver.begin(None), "it began long ago");
            self.sees(Event::Named(self.registry.phase()));
        }
        vec![Straggler {
            connection: self.id,
            peer: None,
            protocol: Protocol::Http1,
            method: None,
            path: None,
            place: None,
            age: now.since(Moment::START),
            unresponsive: self.is_in_a_poll(),
            detached: false,
        }]
    }

    fn on_runtime(&self, _: &mut dyn FnMut(&Handle)) {
        if let Until::Forced(driver, ms) = &self.until {
            let clock = &self.registry.clock;
            if self.registry.phase() < Phase::Forcing {
                clock.set(clock.now().after(Duration::from_millis(*ms)));
                driver.force();
            }
        }
    }
}

/// It is empty when it is looked at for the second time; but for what it holds, for which nobody asks.
struct Listener {
    id: u64,
    registry: Arc<Registry>,
    emptied: Mutex<Vec<Moment>>,
    held: usize,
}

impl AcceptQueue for Listener {
    fn empty(&self, now: Moment) -> Option<Moment> {
        self.emptied.lock().push(now);
        if self.emptied.lock().len() == 1 {
            return Some(now.after(Duration::from_millis(5)));
        }
        if self.held == 0 {
            self.registry.closed(self.id);
        }
        None
    }

    fn close(&self) {
        self.registry.closed(self.id);
    }

    fn is_open(&self) -> bool {
        self.emptied.lock().len() < 2
    }

    fn held(&self) -> usize {
        self.held
    }

    fn is_starved(&self) -> bool {
        false
    }

    fn on_runtime(&self, _: &mut dyn FnMut(&Handle)) {}
}
