//! Who holds a termination up, as the report, `in_hand` and the log name them (G18).
//!
//! Seen to fail with the source changed in each of these ways:
//!
//! - `in_hand` is not sorted, or stops at the first 64 of whatever kind.
//! - `connections` goes by the shards instead of by number, or does not leave out what is idle.
//! - `ShutdownGuard::before` or `spawn` is not `#[track_caller]`.
//! - `let_go` keeps the guard, or `name` at the deadline leaves guards out.
//! - the driver does not say what is left.

#![cfg(all(unix, feature = "serve"))]

use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use tracing_subscriber::layer::SubscriberExt;

use http_terminator::{Phase, Protocol, Report, Straggler, Terminator};

use crate::support;
use crate::support::log::Log;
use crate::support::outside::{Host, alone, block_on};
use crate::support::wait::{time_passes_async, until_async};
use crate::support::{
    App, BOUND, FrontEnd, Gate, RawClient, RawH2, Server, app, blocking, h2_connect, kind, start,
    within,
};

/// No list is longer.
const MOST: usize = 64;

// ===== what is named =====

/// hyper hands an answer in one piece on as a whole, long before its client takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_an_http2_answer_in_one_piece_that_nobody_takes_is_a_request() {
    for front in FrontEnd::all_and_tls() {
        let terminator = Terminator::builder()
            .grace_period(Duration::from_millis(300))
            .build();
        let server = start(front, &terminator, app(App::default())).await;
        let target = server.target.clone();
        let client = blocking(move || {
            let mut client = RawH2::connect(target);
            client.get("/big", 1);
            client.read_until(kind::DATA);
            client
        })
        .await;
        // The task that had the request has ended, too.
        time_passes_async(Duration::from_millis(50)).await;
        let stats = terminator.stats();
        assert_eq!((stats.busy, stats.requests), (1, 1), "{front:?}: {stats}");
        let [held] = &terminator.in_hand()[..] else {
            panic!("{front:?}: {:?}", terminator.in_hand());
        };
        assert_eq!(held.protocol, Protocol::Http2, "{front:?}");
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        drop(client);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_in_hand_names_requests_upgrades_and_guards_in_order() {
    for front in FrontEnd::all_and_tls() {
        let World {
            terminator,
            gate,
            server,
        } = World::start(front, Terminator::new()).await;
        let mut idle = server.connect();
        assert_eq!(idle.fetch("/quick").text(), "ok", "{front:?}");
        let http1 = server.connect();
        http1.get("/slow?token=secret");
        gate.wait_entered_async(1).await;
        let guard = terminator.guard().expect("serving");
        let guard_place = here(-1);
        let mut upgraded = server.connect();
        upgraded.get_upgrade("/upgrade");
        assert_eq!(upgraded.read_response().status, 101, "{front:?}");
        until_async("upgraded", || terminator.stats().upgraded == 1).await;
        let http2 = h2_connect(&server.target).await;
        let _streams = (http2.start("/slow").await, http2.start("/slow").await);
        gate.wait_entered_async(3).await;
        // Its task lets go of the gate inside of a poll.
        let held = gate.clone();
        let _work = terminator.spawn(async move { held.enter().await });
        let work_place = here(-1);
        gate.wait_entered_async(4).await;
        until_async("idle", || terminator.stats().idle == 1).await;

        let named = at_rest(&terminator).await;
        let shown = format!("{front:?}: {named:#?}");
        let kinds: Vec<_> = named
            .iter()
            .map(|it| (it.connection, it.protocol))
            .collect();
        let expected = [
            (2, Protocol::Http1),
            (0, Protocol::Guard),
            (3, Protocol::Upgraded),
            (4, Protocol::Http2),
            (4, Protocol::Http2),
            (0, Protocol::Guard),
        ];
        assert_eq!(kinds, expected, "{shown}");
        let paths = named.iter().map(|it| it.path.as_deref());
        let paths: Vec<_> = paths.collect();
        let (slow, upgrade) = (Some("/slow"), Some("/upgrade"));
        assert_eq!(paths, [slow, None, upgrade, slow, slow, None], "{shown}");
        let places: Vec<_> = named.iter().filter_map(|it| it.place.clone()).collect();
        assert!(places[0].starts_with(&guard_place), "{shown}");
        assert!(places[1].starts_with(&work_place), "{shown}");
        for it in &named {
            let is_guard = it.protocol == Protocol::Guard;
            assert_eq!(
                it.method.as_deref(),
                (!is_guard).then_some("GET"),
                "{shown}"
            );
            assert_eq!(it.place.is_some(), is_guard, "{shown}");
            assert_eq!(
                it.peer.is_some(),
                !is_guard && front != FrontEnd::ServeUnix,
                "{shown}"
            );
            assert!(it.age < BOUND && !it.unresponsive, "{shown}");
        }
        assert!(!shown.contains("secret"), "{shown}");

        drop(guard);
        let named = terminator.in_hand();
        assert_eq!(guards(&named), [&*places[1]], "{front:?}: {named:#?}");
        gate.open();
        // The idle one too.
        drop((http1, http2, upgraded, idle));
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert_eq!(report.stragglers, [], "{front:?}: {report}");
        assert_eq!(terminator.in_hand(), [], "{front:?}: after the end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_in_hand_escapes_the_path() {
    let world = World::start(FrontEnd::Serve, Terminator::new()).await;
    let client = world.server.connect();
    // The first line only, so that no handler is there that might refuse it.
    client.send(b"GET /a\x1b[31m\xffb?c HTTP/1.1\r\n");
    until_async("read", || world.terminator.stats().busy == 1).await;
    let named = world.terminator.in_hand();
    assert_eq!(named.len(), 1, "{named:?}");
    assert_eq!(named[0].path.as_deref(), Some("/a\\x1b[31m\\xffb"));
    within(BOUND, "the end", world.terminator.force()).await;
}

/// It must neither wait for itself nor for the others on its thread.
#[tokio::test]
async fn g18_in_hand_may_be_asked_from_inside_a_handler() {
    let terminator = Terminator::new();
    let asked = terminator.clone();
    let router = Router::new().route(
        "/who",
        get(async move || {
            let named = asked.in_hand();
            let shown = |it: &Straggler| format!("{:?} {}", it.path, it.unresponsive);
            named.iter().map(shown).collect::<Vec<_>>().join(", ")
        }),
    );
    let server = start(FrontEnd::Serve, &terminator, router).await;
    let http2 = h2_connect(&server.target).await;
    let (_, body) = http2.get("/who").await;
    let body = String::from_utf8(body).expect("ASCII");
    assert_eq!(body, "Some(\"/who\") true");
    let body = support::blocking(move || {
        let mut client = server.connect();
        client.fetch("/who").text().to_owned()
    });
    assert_eq!(body.await, "Some(\"/who\") true");
}

/// A clone is who holds it from then on.
#[test]
fn g18_a_clone_is_named_by_where_it_was_cloned() {
    let terminator = Terminator::new();
    let guard = terminator.guard().expect("serving");
    let first = here(-1);
    let clone = guard.clone();
    let second = here(-1);
    let named = terminator.in_hand();
    let places = guards(&named);
    assert!(places[0].starts_with(&first), "{places:?}");
    assert!(places[1].starts_with(&second), "{places:?}");
    assert!(named[0].age >= named[1].age, "{named:?}");
    drop(guard);
    let named = terminator.in_hand();
    assert!(guards(&named)[0].starts_with(&second), "{named:?}");
    drop(clone);
    assert_eq!(terminator.in_hand(), []);
}

/// Refused, it is nobody's.
#[tokio::test]
async fn g18_a_guard_that_was_refused_is_not_named() {
    let terminator = Terminator::new();
    let guard = terminator.guard();
    let ended = terminator.terminate();
    assert!(terminator.guard().is_none());
    assert_eq!(terminator.in_hand().len(), 1);
    drop(guard);
    within(BOUND, "the end", ended).await;
    drop(terminator.spawn(async {}));
    assert_eq!(terminator.in_hand(), []);
}

// ===== the bound =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_of_a_hundred_requests_the_oldest_are_named() {
    let world = World::start(FrontEnd::Serve, force_only()).await;
    let mut clients = Vec::new();
    for n in 1..=100 {
        clients.push(world.server.connect());
        clients[n - 1].get("/slow");
        // One after the other, so that their numbers are known.
        world.gate.wait_entered_async(n).await;
    }
    let oldest: Vec<_> = (1..=MOST as u64).collect();
    assert_eq!(numbers(&world.terminator.in_hand()), oldest);
    // Two of them leave: two more are seen.
    drop(clients.drain(..2));
    until_async("two gone", || world.terminator.stats().connections == 98).await;
    let oldest: Vec<_> = (3..=MOST as u64 + 2).collect();
    assert_eq!(numbers(&world.terminator.in_hand()), oldest);
    let report = within(BOUND, "the end", world.terminator.force()).await;
    assert_eq!(numbers(&report.stragglers), oldest, "{report}");
    assert!(
        format!("{report:#}").ends_with("\n  and 34 more"),
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_guards_hide_no_request_from_the_report() {
    let world = World::start(FrontEnd::Serve, force_only()).await;
    let mut held: Vec<_> = (0..100).map(|_| world.terminator.guard()).collect();
    let places = here(-1);
    let clients: Vec<_> = (0..3).map(|_| world.server.connect()).collect();
    for client in &clients {
        client.get("/slow");
    }
    world.gate.wait_entered_async(3).await;
    let named = world.terminator.in_hand();
    assert_eq!(
        guards(&named).len(),
        MOST,
        "the oldest are guards: {named:?}"
    );
    // All but ten are younger than the requests.
    held.drain(10..);
    held.extend((0..90).map(|_| world.terminator.guard()));
    let named = world.terminator.in_hand();
    assert_eq!(numbers(&named)[10..13], [1, 2, 3], "{named:?}");
    assert_eq!(named.len(), MOST);
    assert!(named.is_sorted_by(|a, b| a.age >= b.age), "{named:?}");

    let report = within(BOUND, "the end", world.terminator.force()).await;
    assert_eq!((report.forced, report.guards_cut), (3, 100), "{report}");
    let named = &report.stragglers;
    assert_eq!(numbers(&named[..3]), [1, 2, 3], "{report}");
    let guards = guards(named);
    assert_eq!(guards.len(), MOST - 3, "{report}");
    assert!(
        guards[..10].iter().all(|it| it.starts_with(&places)),
        "{report}"
    );
    assert!(
        format!("{report:#}").ends_with("\n  and 39 more"),
        "{report:#}"
    );
    drop((held, clients));
}

// ===== the phases =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_in_hand_is_there_in_every_phase() {
    let builder = Terminator::builder()
        .lame_duck(Duration::from_millis(50))
        .grace_period(Duration::from_millis(50));
    let world = World::start(FrontEnd::Serve, builder.build()).await;
    let terminator = &world.terminator;
    let client = world.server.connect();
    // It holds its thread, so that it is there to the end, and then.
    client.get("/block");
    world.gate.wait_entered_async(1).await;
    let guard = terminator.guard().expect("serving");
    let ended = terminator.terminate();
    for phase in [
        Phase::Serving,
        Phase::LameDuck,
        Phase::Draining,
        Phase::Forcing,
        Phase::Terminated,
    ] {
        within(BOUND, "a phase", terminator.reached(phase)).await;
        let named = terminator.in_hand();
        assert_eq!(named.len(), 2, "{phase}: {named:?}");
        assert_eq!(
            named[0].path.as_deref(),
            Some("/block"),
            "{phase}: {named:?}"
        );
        assert!(named[0].unresponsive, "{phase}: {named:?}");
        assert_eq!(guards(&named).len(), 1, "{phase}: {named:?}");
    }
    let report = within(BOUND, "the end", ended).await;
    assert_eq!((report.unresponsive, report.guards_cut), (1, 1), "{report}");
    world.gate.open();
    drop(guard);
    let gone = || terminator.in_hand().is_empty();
    until_async("they let go", gone).await;
}

/// With place and age; who let go in time is not.
#[tokio::test]
async fn g18_the_report_names_the_guards_that_were_cut() {
    let grace = Duration::from_millis(50);
    let terminator = Terminator::builder().grace_period(grace).build();
    let cut = terminator.guard();
    let cut_place = here(-1);
    let in_time = terminator.guard();
    let work = terminator.spawn(std::future::pending::<()>());
    let work_place = here(-1);
    let ended = terminator.terminate();
    drop(in_time);
    let report: Report = within(BOUND, "the end", ended).await;
    let places = guards(&report.stragglers);
    assert_eq!(places.len(), 2, "{report}");
    assert!(places[0].starts_with(&cut_place), "{report}");
    assert!(places[1].starts_with(&work_place), "{report}");
    let ages = report.stragglers.iter().map(|it| it.age);
    assert!(
        ages.clone().all(|age| age >= grace && age < BOUND),
        "{report}"
    );
    let text = report.to_string();
    assert!(
        text.contains(&format!("guard taken at {cut_place}")),
        "{text}"
    );
    // The work let go as it was dropped.
    assert_eq!(report.guards_cut, 1, "{report}");
    assert_eq!(work.await.expect("no panic"), None);
    drop(cut);
}

// ===== the log =====

/// In a process of its own, as the driver logs on a thread of its own.
#[test]
fn g18_a_long_drain_says_who_holds_it_up() {
    let name = concat!(module_path!(), "::g18_a_long_drain_says_who_holds_it_up");
    if alone(name, &[], BOUND * 3) {
        return;
    }
    let said = Log::default();
    let subscriber = tracing_subscriber::registry().with(said.clone());
    tracing::subscriber::set_global_default(subscriber).expect("this process has no other");
    let host = Host::workers(2);
    let terminator = Terminator::builder()
        .grace_period(Duration::from_millis(5_500))
        .build();
    let world = host.block_on(World::start(FrontEnd::Serve, terminator));
    let clients: [RawClient; 2] = [0, 1].map(|n| {
        let client = world.server.connect();
        client.get("/slow?token=secret");
        world.gate.wait_entered(n + 1);
        client
    });
    let guards = (world.terminator.guard(), world.terminator.guard());
    let place = here(-1);

    let began = Instant::now();
    let ended = world.terminator.terminate();
    let lines = || said.with("message=still draining");
    support::wait::until("it is said", || !lines().is_empty());
    assert!(began.elapsed() >= Duration::from_secs(5), "not before");
    let lines = lines();
    let line = &lines[0];
    for field in [
        "INFO ",
        " connections=2",
        " requests=2",
        " upgraded=0",
        " guards=2",
        " oldest=connection 1 from 127.0.0.1:",
        " second=connection 2 from 127.0.0.1:",
        &format!(" third=guard taken at {place}"),
    ] {
        assert!(line.contains(field), "{field:?} is not in {line:?}");
    }
    block_on(BOUND, "the end", ended);
    assert_eq!(
        said.with("message=still draining").len(),
        1,
        "once in 5.5 s"
    );
    // Another thread says it.
    let warned = || said.with("message=giving up a guard");
    support::wait::until("both are named", || warned().len() >= 2);
    let warned = warned();
    assert_eq!(warned.len(), 2, "{warned:?}");
    for line in &warned {
        assert!(line.starts_with("WARN "), "{line}");
        assert!(line.contains(&format!(" place=\"{place}")), "{line}");
        assert!(
            line.contains(&format!(" straggler=guard taken at {place}")),
            "{line}"
        );
    }
    assert_eq!(said.with("secret"), Vec::<String>::new());
    drop((clients, guards));
}

// ===== what several tests do =====

struct World {
    terminator: Terminator,
    gate: Gate,
    server: Server,
}

impl World {
    async fn start(front: FrontEnd, terminator: Terminator) -> Self {
        let gate = Gate::new();
        let state = App {
            gate: gate.clone(),
            terminator: None,
        };
        let server = start(front, &terminator, app(state)).await;
        Self {
            terminator,
            gate,
            server,
        }
    }
}

/// Nobody is to have ended by the time it is named.
fn force_only() -> Terminator {
    Terminator::builder().answer_at_deadline(false).build()
}

/// File and line of the call, so many lines on, as far as a place begins with them.
#[track_caller]
fn here(lines: i32) -> String {
    let here = std::panic::Location::caller();
    let line = here.line().checked_add_signed(lines).expect("in the file");
    format!("{}:{line}:", here.file())
}

/// A handler that has said it is at the gate may yet be inside of that very poll.
async fn at_rest(terminator: &Terminator) -> Vec<Straggler> {
    until_async("at rest", || {
        terminator.in_hand().iter().all(|it| !it.unresponsive)
    })
    .await;
    terminator.in_hand()
}

fn numbers(named: &[Straggler]) -> Vec<u64> {
    named.iter().map(|it| it.connection).collect()
}

fn guards(named: &[Straggler]) -> Vec<&str> {
    named.iter().filter_map(|it| it.place.as_deref()).collect()
}
