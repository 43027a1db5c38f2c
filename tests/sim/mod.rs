//! The whole crate in one thread, on a network of its own and a clock that goes when nobody has anything to do:
//! a run is its seed. The driver is the real one, stepped as a task; the connections are the real ones, under
//! the real hyper.
//!
//! `SIM_SEED=7 cargo test --all-features --lib sim -- --nocapture` replays one and shows what happened;
//! `SIM_RUNS=1000000 cargo test --release --all-features --lib sim` takes more of them.

#![allow(
    clippy::disallowed_methods,
    reason = "it spawns clients, and its clock is not the system's"
)]
#![allow(
    clippy::struct_excessive_bools,
    clippy::option_option,
    clippy::match_same_arms,
    clippy::format_push_string,
    clippy::too_many_lines,
    reason = "what is drawn is said one by one"
)]

mod client;
mod client2;
mod draw;
mod frames;
mod model;
pub(crate) mod net;
mod notes;
mod records;
pub(crate) mod server;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use self::client::Peer;
use self::draw::Draw;
use self::net::{Descriptors, Dial};
use self::notes::Notes;
use self::server::{Call, Front, Plan};
use crate::clock::virtual_time;
use crate::phase::Phase;
use crate::report::Report;

thread_local! {
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
    static TRACE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static TRACES: Cell<bool> = const { Cell::new(false) };
}

/// Milliseconds since the run began.
pub(crate) fn now() -> u64 {
    let start = START.get().expect("inside of a run");
    u64::try_from(start.elapsed().as_millis()).expect("a run is short")
}

/// Adds to the trace, if there is one.
pub(crate) fn say(what: impl FnOnce() -> String) {
    if TRACES.get() {
        let line = format!("{:>5} ms  {}", now(), what());
        TRACE.with_borrow_mut(|trace| trace.push(line));
    }
}

/// What a run has come to.
pub(crate) struct Ran {
    pub(crate) plan: Plan,
    pub(crate) peers: Vec<Peer>,
    pub(crate) streams: Vec<client2::Stream>,
    pub(crate) tunnels: Vec<tunnel::Shared>,
    pub(crate) silent: Vec<frames::Silent>,
    pub(crate) notes: Notes,
    /// When each socket was closed, and whose it was.
    pub(crate) closed: Vec<(usize, Option<u64>)>,
    pub(crate) report: Report,
    /// When it was seen to have begun, the drain began, the deadline was, and it was over.
    pub(crate) began: u64,
    pub(crate) drained: u64,
    pub(crate) deadline: u64,
    pub(crate) over: u64,
    pub(crate) left: String,
    /// How many ports are open, and servers at work, once those who wait for the end have had a turn.
    pub(crate) listening: usize,
    pub(crate) serving: usize,
    /// Others had all descriptors for a while.
    pub(crate) starved: bool,
}

/// So many milliseconds at most.
const LONGEST: u64 = 5_000;

/// Runs it on a clock that goes when nobody has anything to do.
pub(crate) fn in_virtual_time<T>(run: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let _virtual = virtual_time();
    runtime.block_on(async {
        START.set(Some(Instant::now()));
        run.await
    })
}

#[allow(clippy::too_many_lines, reason = "one run, in the order of its time")]
fn run(seed: u64, descriptors: Option<u64>) -> Ran {
    in_virtual_time(async {
        let start = Instant::now();
        drop(notes::take());
        let mut draw = Draw::new(seed);
        let mut plan = Plan::draw(&mut draw);
        if seed % 16 == 3 {
            // Otherwise the deadline comes before whatever takes a second.
            plan.grace = plan.grace.map(|grace| grace + 2_000);
        }
        let (mut others, mut theirs) = (0..0, Vec::new());
        if descriptors.is_some() {
            // What its own loop leaves behind in its queue nobody counts.
            plan.fronts.retain(|front| *front != Front::Bare);
            if draw.one_in(2) {
                let from = draw.below(400);
                others = from..from + draw.below(600);
            }
        }
        say(|| format!("{plan:?}"));
        let terminator = plan.terminator();
        let driver = tokio::spawn(server::drive(terminator.clone()));
        let (mut dials, mut served) = (Vec::new(), Vec::new());
        let descriptors = descriptors.map(Descriptors::new);
        for front in &plan.fronts {
            let errors = if draw.one_in(4) { draw.below(3) } else { 0 };
            let (listener, dial) = net::listen(errors, *front == Front::Records);
            let listener = match &descriptors {
                Some(all) => listener.with(all.clone()),
                None => listener,
            };
            served.push(server::serve(*front, &terminator, listener));
            dials.push(dial);
        }
        let of_all: Vec<_> = plan
            .fronts
            .iter()
            .zip(&dials)
            .filter(|(front, _)| front.speaks_all())
            .map(|(_, dial)| dial.clone())
            .collect();
        let small = |n| usize::try_from(n).expect("small");
        let mut peers: Vec<_> = (0..=small(draw.below(5)))
            .map(|id| Peer::draw(id, &plan, &mut draw))
            .collect();
        let seconds: Vec<_> = (0..small(draw.below(3)))
            .map(|id| {
                client2::spawn(
                    100 + id,
                    draw.pick(&of_all).clone(),
                    plan.head.is_none(),
                    &mut draw,
                )
            })
            .collect();
        let tunnels: Vec<_> = (0..small(draw.below(3)))
            .map(|id| tunnel::spawn(200 + id, draw.pick(&of_all).clone(), &mut draw))
            .collect();
        let mut silent: Vec<_> = (0..small(draw.below(2)))
            .map(|id| frames::Silent::draw(300 + id, draw.pick(&of_all).clone(), &mut draw))
            .collect();
        let (mut began, mut over) = (None, None);
        let (mut listening, mut serving) = (0, 0);
        for ms in 0..LONGEST {
            sleep_until(start + Duration::from_millis(ms)).await;
            for (at, call) in &plan.calls {
                if *at == ms {
                    say(|| format!("{call:?}"));
                    match call {
                        Call::Terminate => server::terminate(&terminator, plan.grace),
                        Call::Within(ms) => server::terminate(&terminator, Some(*ms)),
                        Call::Force => {
                            notes::note(|notes| notes.ends.push((*at, None)));
                            drop(terminator.force());
                        }
                        // Aborted, it is dropped at its next turn.
                        Call::DropServe => served[0].abort(),
                        Call::TerminateOne(n) | Call::ForceOne(n) => {
                            let one = notes::note(|notes| notes.connections.get(*n).cloned());
                            let Some((who, connection)) = one else {
                                continue;
                            };
                            if let Call::ForceOne(_) = call {
                                server::force(who, &connection);
                            } else {
                                notes::note(|notes| notes.told.push(who));
                                connection.terminate();
                            }
                        }
                    }
                }
            }
            if began.is_none() && terminator.phase() >= Phase::Draining {
                began = Some(ms);
            }
            server::care(&terminator);
            if others.contains(&ms) {
                // Something else in that process takes what there is.
                theirs.extend(
                    descriptors
                        .iter()
                        .flat_map(|all| std::iter::from_fn(|| all.take())),
                );
            } else {
                theirs.clear();
            }
            for peer in &mut peers {
                peer.step(&dials);
            }
            for one in &mut silent {
                one.step();
            }
            if over.is_some_and(|at| ms == at + 1) {
                // Who waits for it has had a turn, and no time.
                listening = dials.iter().filter(|dial| !dial.is_closed()).count();
                let goes_on = |(front, it): &(&Front, &JoinHandle<()>)| {
                    **front == Front::Serve && !it.is_finished()
                };
                serving = plan.fronts.iter().zip(&served).filter(goes_on).count();
            }
            if let Some(at) = over {
                // Whatever is on its way still gets there.
                if ms > at + 2 {
                    break;
                }
            } else if terminator.report().is_some() {
                over = Some(ms);
            }
        }
        for peer in &mut peers {
            peer.read(usize::MAX);
            peer.read(usize::MAX);
        }
        for one in &mut silent {
            one.take();
            one.take();
        }
        // Whoever rests reads what has become of it.
        sleep(Duration::from_millis(client2::RESTS)).await;
        let report = terminator.report().expect("it ends").clone();
        say(|| format!("{report}"));
        drop((driver, served));
        let (drained, deadline) = server::times(&terminator);
        Ran {
            left: format!("{:?}", terminator.stats()),
            listening,
            serving,
            starved: !others.is_empty(),
            closed: dials.iter().flat_map(Dial::closed).collect(),
            notes: notes::take(),
            silent,
            plan,
            peers,
            tunnels,
            streams: seconds.iter().flat_map(|it| it.lock().clone()).collect(),
            report,
            began: began.expect("it ends"),
            drained,
            deadline,
            over: over.expect("it ends"),
        }
    })
}

/// Runs it, and says what was wrong.
fn check(seed: u64) -> Result<(), String> {
    wrong(|| model::check(&run(seed, None)))
}

/// The same, by a process that has few descriptors.
fn check_scarce(seed: u64) -> Result<(), String> {
    wrong(|| model::check_scarce(&run(seed, Some(1 + seed % 5))))
}

fn wrong(check: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let checked = catch_unwind(AssertUnwindSafe(check));
    START.set(None);
    checked.unwrap_or_else(|thrown| {
        let said = thrown.downcast_ref::<String>().cloned();
        let said = said.or_else(|| thrown.downcast_ref::<&str>().map(|it| (*it).to_owned()));
        Err(format!("panicked: {}", said.unwrap_or_default()))
    })
}

/// The same, with its trace.
fn replay(seed: u64, check: fn(u64) -> Result<(), String>) -> (Vec<String>, Result<(), String>) {
    TRACES.set(true);
    let checked = check(seed);
    TRACES.set(false);
    (TRACE.take(), checked)
}

/// Handlers panic on purpose.
fn quietly() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if START.get().is_none() {
                hook(panic);
            }
        }));
    });
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Replays one, or takes all; `rare` are those in which the mutants are noticed that the default runs do not notice: see the
/// table in README.md.
fn take(check: fn(u64) -> Result<(), String>, runs: u64, rare: &[u64]) {
    quietly();
    if let Some(seed) = number("SIM_SEED") {
        let (trace, checked) = replay(seed, check);
        println!("{}", trace.join("\n"));
        return checked.expect("this seed");
    }
    let from = number("SIM_FROM").unwrap_or(0);
    let rare = rare.iter().filter(|_| number("SIM_RUNS").is_none());
    let runs = from..from + number("SIM_RUNS").unwrap_or(runs);
    let mut wrong = Vec::new();
    for seed in runs.chain(rare.copied()) {
        if let Err(what) = check(seed) {
            wrong.push(format!("SIM_SEED={seed}: {what}"));
            if wrong.len() == 10 || number("SIM_STOP").is_some() {
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_request_is_answered_or_its_end_is_told() {
    take(check, 2_000, &[3_173, 3_188, 7_056]);
}

#[test]
fn whoever_waits_for_a_descriptor_is_served_or_counted() {
    take(check_scarce, 500, &[]);
}

#[test]
fn a_seed_is_a_run() {
    quietly();
    for seed in 0..50 {
        for check in [check, check_scarce] {
            let run = || replay(seed, check);
            assert_eq!(run(), run(), "seed {seed}");
        }
    }
}
