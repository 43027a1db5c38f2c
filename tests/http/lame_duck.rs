//! The time between `terminate()` and the drain, in which everything is served and HTTP/2 is told.

#![cfg(all(unix, feature = "serve", feature = "rustls"))]

use std::time::{Duration, Instant};

use http_terminator::{LameDuck, Phase, Terminator};

use crate::support::outside::measured;
use crate::support::wait::{gone, time_passes};
use crate::support::{
    App, BOUND, FrontEnd, Gate, RawClient, RawH2, app, blocking, each, h2_connect, h2_finish, kind,
    start_known, within,
};

const SOON: Duration = Duration::from_millis(700);
const SETTLE: Duration = Duration::from_millis(25);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_connections_that_are_there_are_told_at_once() {
    for front in FrontEnd::at_hand() {
        let gate = Gate::new();
        let terminator = Terminator::builder().lame_duck(BOUND).build();
        let state = App {
            gate: gate.clone(),
            terminator: None,
        };
        let (target, _) = start_known(front, &terminator, app(state)).await;
        let mut idle = h2_connect(&target).await;
        let mut busy = h2_connect(&target).await;
        assert_eq!(idle.get("/quick").await.1, b"ok");
        let slow = busy.start("/slow").await;
        gate.wait_entered_async(1).await;
        drop(terminator.terminate());
        let end = within(BOUND / 2, "the idle one", idle.closed()).await;
        end.unwrap_or_else(|error| panic!("{front:?}: {error}"));
        gate.open();
        let slow = within(BOUND, "the answer", h2_finish(slow)).await;
        assert_eq!(slow.expect("answered").1, b"slow", "{front:?}");
        let end = within(BOUND / 2, "the busy one", busy.closed()).await;
        end.unwrap_or_else(|error| panic!("{front:?}: {error}"));
        assert_eq!(terminator.phase(), Phase::LameDuck);
        gone(&terminator).await;
        let report = within(BOUND, "the end", terminator.force()).await;
        assert!(report.is_clean(), "{front:?}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_one_that_comes_is_served_and_told_behind_its_first_request() {
    for front in FrontEnd::at_hand() {
        // It is the request that tells, not the quiet.
        let terminator = Terminator::builder()
            .stall_timeout(BOUND)
            .lame_duck(BOUND)
            .build();
        let (target, _) = start_known(front, &terminator, app(App::default())).await;
        drop(terminator.terminate());
        blocking(move || {
            for _ in 0..3 {
                let mut client = RawH2::connect(&target);
                client.ack_settings();
                client.get("/quick", 1);
                let begin = Instant::now();
                let (mut answered, mut told) = (false, false);
                while !(answered && told) {
                    let frame = client.read_frame();
                    answered |= frame.kind == kind::DATA && frame.payload == b"ok"[..];
                    told |= frame.kind == kind::GOAWAY;
                }
                measured(begin.elapsed(), SOON, &format!("{front:?}: told"));
            }
        })
        .await;
        assert_eq!(terminator.phase(), Phase::LameDuck);
        drop(terminator.force());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_one_that_comes_and_asks_for_nothing_is_told_after_the_stall_timeout() {
    for front in FrontEnd::seeing() {
        // A client may take longer than it takes to settle from its connect to its first request.
        let stall_timeout = Duration::from_millis(300);
        let terminator = Terminator::builder()
            .stall_timeout(stall_timeout)
            .lame_duck(BOUND)
            .build();
        let (target, _) = start_known(front, &terminator, app(App::default())).await;
        drop(terminator.terminate());
        let begin = Instant::now();
        blocking(move || {
            let mut client = RawH2::connect(&target);
            client.ack_settings();
            client.read_until(kind::GOAWAY);
            let took = begin.elapsed();
            assert!(took >= stall_timeout, "{front:?}: {took:?}");
            measured(took, stall_timeout + SOON, "the first GOAWAY");
        })
        .await;
        drop(terminator.force());
    }
}

/// Of those that were there as well: it had spoken, its first request was on its way, and the GOAWAY met that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_one_that_had_asked_for_nothing_is_told_behind_its_first_request() {
    for front in FrontEnd::seeing() {
        let terminator = Terminator::builder()
            .stall_timeout(BOUND)
            .lame_duck(BOUND)
            .build();
        let (target, _) = start_known(front, &terminator, app(App::default())).await;
        blocking({
            let terminator = terminator.clone();
            move || {
                let mut client = RawH2::connect(&target);
                client.read_until(kind::SETTINGS);
                client.ack_settings();
                drop(terminator.terminate());
                // Nobody tells from outside that it is not told.
                time_passes(Duration::from_millis(50));
                client.send_frame(kind::PING, 0, 0, &[7; 8]);
                let mut before = client.read_frame();
                while before.kind != kind::PING {
                    assert!(before.kind != kind::GOAWAY, "{front:?}: {before:?}");
                    before = client.read_frame();
                }
                client.get("/quick", 1);
                let (mut answered, mut told) = (false, false);
                while !(answered && told) {
                    let frame = client.read_frame();
                    answered |= frame.kind == kind::DATA && frame.payload == b"ok"[..];
                    told |= frame.kind == kind::GOAWAY;
                }
            }
        })
        .await;
        assert_eq!(terminator.phase(), Phase::LameDuck);
        drop(terminator.force());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_http1_is_told_by_its_next_response() {
    for front in FrontEnd::at_hand() {
        let terminator = Terminator::builder().lame_duck(BOUND).build();
        let (target, known) = start_known(front, &terminator, app(App::default())).await;
        blocking({
            let terminator = terminator.clone();
            move || {
                let mut client = RawClient::connect(&target);
                client.fetch("/quick");
                drop(terminator.terminate());
                assert!(client.is_still_open());
                assert!(client.fetch("/quick").says_close(), "{front:?}");
                client.expect_eof();
            }
        })
        .await;
        drop(terminator.force());
        drop(known);
    }
}

// ===== a range =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_ends_when_nothing_is_open_and_nobody_comes() {
    let min = Duration::from_millis(100);
    let terminator = Terminator::builder().lame_duck(min..=BOUND).build();
    let (target, _) = start_known(FrontEnd::Serve, &terminator, app(App::default())).await;
    let idle = blocking({
        let target = target.clone();
        move || {
            let mut idle = RawClient::connect(&target);
            idle.fetch("/quick");
            idle
        }
    })
    .await;
    let begin = Instant::now();
    let ended = terminator.terminate();
    // What is open holds it, beyond the minimum.
    let early = tokio::time::timeout(min * 3, terminator.reached(Phase::Draining)).await;
    assert!(early.is_err());
    drop(idle);
    let report = within(BOUND / 2, "the end", ended).await;
    assert!(begin.elapsed() >= min * 3 + SETTLE, "{report}");
    assert!(report.lame_duck >= min * 3 && report.is_clean(), "{report}");
}

/// A guard is work in hand too, though no connection is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_does_not_end_before_the_last_guard() {
    let min = Duration::from_millis(100);
    let terminator = Terminator::builder().lame_duck(min..=BOUND * 6).build();
    let guard = terminator.guard();
    let ended = terminator.terminate();
    let early = min + SETTLE * 10;
    let early = tokio::time::timeout(early, terminator.reached(Phase::Draining)).await;
    assert!(early.is_err(), "{:?}", terminator.phase());
    drop(guard);
    let report = within(BOUND, "the end", ended).await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_lasts_no_less_than_its_minimum_and_no_longer_than_its_maximum() {
    let ms = Duration::from_millis;
    // Nothing is there at all.
    for (lame, least) in [
        (LameDuck::from(ms(200)..=BOUND), ms(200)),
        (LameDuck::from(ms(200)..=ms(0)), ms(200)),
        (LameDuck::from(ms(200)), ms(200)),
        (LameDuck::from(ms(0)..=BOUND), SETTLE),
        (LameDuck::from(ms(0)..=ms(0)), ms(0)),
    ] {
        let terminator = Terminator::builder().lame_duck(lame).build();
        let (_, known) = start_known(FrontEnd::Serve, &terminator, app(App::default())).await;
        let begin = Instant::now();
        let report = within(BOUND, "the end", terminator.terminate()).await;
        let took = begin.elapsed();
        assert!(took >= least, "{lame:?}: {took:?}");
        measured(took, least + SOON, "a lame duck");
        assert!(report.is_clean() && known.len() == 0);
    }
    // Somebody is there who does not go.
    let terminator = Terminator::builder().lame_duck(ms(0)..=ms(300)).build();
    let (target, _) = start_known(FrontEnd::Serve, &terminator, app(App::default())).await;
    let client = blocking(move || {
        let mut client = RawClient::connect(&target);
        client.fetch("/quick");
        client
    })
    .await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.lame_duck >= ms(300), "{report}");
    measured(report.lame_duck, ms(300) + SOON, "a lame duck");
    assert_eq!(report.idle, 1, "{report}");
    drop(client);
}

#[tokio::test]
async fn absurd_lame_ducks_are_defined() {
    let terminator = Terminator::builder()
        .lame_duck(Duration::MAX..=Duration::MAX)
        .build();
    let ended = terminator.terminate();
    assert_eq!(terminator.phase(), Phase::LameDuck);
    assert_eq!(terminator.time_left(), None);
    drop(terminator.force());
    within(BOUND, "the end", ended).await;
}

// ===== terminate_within =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_the_earliest_deadline_holds() {
    let ms = Duration::from_millis;
    for front in FrontEnd::at_hand() {
        let gate = Gate::new();
        let terminator = Terminator::builder().grace_period(BOUND).build();
        let state = App {
            gate: gate.clone(),
            terminator: None,
        };
        let (target, _) = start_known(front, &terminator, app(state)).await;
        let client = RawClient::connect(&target);
        client.get("/slow");
        gate.wait_entered_async(1).await;
        let begin = Instant::now();
        let ended = terminator.terminate_within(None);
        assert_eq!(terminator.time_left(), None);
        drop(terminator.terminate_within(ms(400)));
        let left = terminator.time_left().expect("there is a deadline");
        assert!(left <= ms(400), "{left:?}");
        // Neither of these is sooner.
        drop(terminator.terminate());
        drop(terminator.terminate_within(ms(800)));
        drop(terminator.terminate_within(None));
        assert!(terminator.time_left().expect("as before") <= left);
        let report = within(BOUND, "the end", ended).await;
        let took = begin.elapsed();
        assert!(took >= ms(400), "{front:?}: {took:?}");
        measured(took, ms(400) + ms(250), "the end");
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        drop(client);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_within_no_time_is_by_force() {
    let terminator = Terminator::builder().grace_period(None).build();
    let gate = Gate::new();
    let state = App {
        gate: gate.clone(),
        terminator: None,
    };
    let (target, _) = start_known(FrontEnd::Serve, &terminator, app(state)).await;
    let client = RawClient::connect(&target);
    client.get("/slow");
    gate.wait_entered_async(1).await;
    let ended = terminator.terminate();
    let status = blocking(move || {
        drop(terminator.terminate_within(Duration::ZERO));
        let mut client = client;
        client.read_response().status
    })
    .await;
    assert_eq!(status, 503);
    let report = within(BOUND / 2, "the end", ended).await;
    assert_eq!(report.forced, 1, "{report}");
}

/// Who waits for a turn of its own does not wait beyond a deadline that came nearer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_a_policy_stays_within_the_deadline_of_the_call() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = Terminator::builder()
            .grace_period(None)
            .idle(http_terminator::IdlePolicy::LastRequest { wait: BOUND * 9 })
            .build();
        let (target, _) = start_known(front, &terminator, app(App::default())).await;
        let client = blocking(move || {
            let mut client = RawClient::connect(&target);
            client.fetch("/quick");
            client
        })
        .await;
        let ended = terminator.terminate();
        let early = tokio::time::timeout(SETTLE * 4, terminator.terminated()).await;
        assert!(early.is_err(), "it waits for a last request");
        drop(terminator.terminate_within(Duration::from_secs(2)));
        let report = within(BOUND, "the end", ended).await;
        assert_eq!((report.idle, report.forced), (1, 0), "{front:?}: {report}");
        drop(client);
    });
}
