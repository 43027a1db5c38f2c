//! G3, the idle policies; G16, the lame duck; G14, listeners, several and one after the other; G7,
//! what else HTTP/1 has. Most tests run over every front end; a name reads
//! `front_end::guarantee_behaviour`.
//!
//! Time is the subject here: the waits are what is measured, each has a bound. The tests block in
//! their own thread, which is none of the runtime's two workers.
#![cfg(all(unix, feature = "serve"))]

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use http::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::load::stolen_in_the_last;
use crate::support::starts::no_starts;
use crate::support::wait::{accepted, time_passes, until, until_stats_async};
use crate::support::{
    App, BOUND, FrontEnd, Gate, RawClient, RawH2, RawResponse, Server, Target, over_front_ends,
};
use crate::support::{app, h2_connect, h2_finish, kind, open_fds_to, start, within};
use http_terminator::{IdlePolicy, Phase, Report, Terminator, TerminatorBuilder, TowerToHyper};

/// How late a close may be seen, what was stolen aside: see [`slack`].
const SLACK: Duration = Duration::from_secs(1);

/// Longer than the default `settle`: an idle connection would have been closed by then.
const PAST_SETTLE: Duration = Duration::from_millis(100);

const NEVER: Duration = Duration::from_secs(3600);

/// How many idle connections the tests of whole crowds have.
const CROWD: usize = 40;

over_front_ends! {
    [
        serve Serve,
        serve_unix ServeUnix,
        own_loop OwnLoopAuto,
        hyper_serve HyperServe,
    ]
    g3_immediate_closes_a_crowd_at_once,
    g3_last_request_keeps_idle_connections_until_its_wait_is_over,
    g3_last_request_answers_one_more_request_with_close,
    g3_last_request_completes_a_head_begun_before_its_wait_was_over,
    g3_last_request_waits_for_the_answer_to_a_request_within_its_wait,
    g3_last_request_does_not_keep_connections_that_were_busy,
    g3_last_request_is_clamped_to_the_grace_period,
    g3_last_request_is_over_when_the_client_leaves,
    g3_spread_closes_evenly,
    g3_spread_is_clamped_to_the_grace_period,
    g3_spread_answers_one_more_request_with_close,
    g3_spread_tells_upgraded_connections_on_the_same_schedule,
    g3_without_spread_upgraded_connections_are_told_at_once,
    g3_spread_tells_http2_on_the_same_schedule,
    g3_g9_spread_tells_http2_all_through_the_lame_duck,
    g12_force_tells_whose_turn_has_not_come,
    g12_force_ends_a_patient_policy,
    g3_last_request_counts_from_the_end_of_the_lame_duck,
    g16_a_second_call_does_not_prolong_the_lame_duck,
    g16_what_began_in_the_lame_duck_drains,
    g7_a_304_says_close_without_a_body,
    g7_expect_100_continue_without_a_body_is_answered_503_at_the_deadline,
    g7_expect_100_continue_that_nobody_wants_is_answered_and_closed,
    g7_a_request_that_says_close_itself_is_answered_with_one_close,
}

// ===== G3: the idle policy =====

async fn g3_immediate_closes_a_crowd_at_once(front: FrontEnd) {
    let crowd = crowd(front, patient().idle(IdlePolicy::Immediate)).await;
    let (closes, report) = crowd.terminate().await;
    assert!(closes[CROWD - 1] < slack(), "{closes:?}");
    assert_eq!((report.idle, report.connections()), (CROWD, CROWD));
}

/// HTTP/2 is told at its turn, and accepts until then: what the last ones brought just before was cut at the deadline, and who
/// says nothing when told had not the time to be known for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_g9_spread_leaves_http2_the_time_to_answer() {
    const CLIENTS: usize = 12;
    let spread = Terminator::builder()
        .idle(IdlePolicy::Spread { over: NEVER })
        .grace_period(SLACK * 2);
    let terminator = spread.build();
    let slow = get(async || {
        // Time is the subject.
        tokio::time::sleep(SLACK / 2).await;
        "slow"
    });
    let server = start(
        FrontEnd::Serve,
        &terminator,
        Router::new().route("/slow", slow),
    )
    .await;
    let loops: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let target = server.target.clone();
            tokio::spawn(async move {
                let client = h2_connect(target).await;
                let mut answered = 0;
                // A stream that is not taken says so.
                while let Ok(started) = client.try_start("GET", "/slow", true).await {
                    match h2_finish(started.0).await {
                        Ok(_) => answered += 1,
                        // A stream that is not taken says so.
                        Err(error) => assert!(
                            error.reason() == Some(h2::Reason::NO_ERROR),
                            "behind {answered}: {error:?}"
                        ),
                    }
                }
            })
        })
        .collect();
    until_stats_async(&terminator, "requests", |it| it.requests == CLIENTS).await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!(
        (report.forced, report.connections()),
        (0, CLIENTS),
        "{report}"
    );
    for one in loops {
        within(BOUND, "its end", one).await.expect("none is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_g4_spread_leaves_silent_http2_the_time_to_be_known_for_that() {
    const CLIENTS: usize = 12;
    let spread = Terminator::builder()
        .idle(IdlePolicy::Spread { over: NEVER })
        .stall_timeout(SLACK / 2)
        .grace_period(SLACK * 3);
    let terminator = spread.build();
    let server = start(FrontEnd::Serve, &terminator, app(App::default())).await;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| RawH2::connect(&server.target))
        .collect();
    accepted(&terminator, CLIENTS);
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!((report.stalled, report.forced), (CLIENTS, 0), "{report}");
    drop(clients);
}

/// Of whose requests nothing is known: it was told when the wait was over, and a request cut that came just before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_last_request_is_immediate_where_no_requests_are_seen() {
    let last = IdlePolicy::LastRequest { wait: NEVER };
    let terminator = Terminator::builder()
        .idle(last)
        .grace_period(SLACK * 4)
        .build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let of_server = terminator.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = TowerToHyper::new(app(App::default()));
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(socket), service);
            tokio::spawn(of_server.watch(connection));
        }
    });
    let mut client = h2_connect(addr).await;
    assert_eq!(client.get("/quick").await.1, b"ok");
    let begin = Instant::now();
    let ended = terminator.terminate();
    within(BOUND, "goodbye", client.closed())
        .await
        .expect("it goes away");
    let report = within(BOUND, "the end", ended).await;
    assert!(report.is_clean(), "{report}");
    assert!(begin.elapsed() < SLACK * 2, "{report}");
}

async fn g3_last_request_keeps_idle_connections_until_its_wait_is_over(front: FrontEnd) {
    let wait = Duration::from_millis(600);
    let crowd = crowd(front, patient().idle(IdlePolicy::LastRequest { wait })).await;
    let (closes, report) = crowd.terminate().await;
    assert!(closes[0] >= wait, "the first close: {closes:?}");
    assert!(
        closes[CROWD - 1] < wait + slack(),
        "the last one: {closes:?}"
    );
    assert_eq!((report.idle, report.connections()), (CROWD, CROWD));
    assert!(report.draining < wait + slack(), "{report}");
}

async fn g3_last_request_answers_one_more_request_with_close(front: FrontEnd) {
    let (terminator, server) = serving(front, last_request(NEVER)).await;
    let (mut used, mut fresh) = (used(&server), server.connect());
    accepted(&terminator, 2);
    let ended = terminator.terminate();
    time_passes(PAST_SETTLE);
    for (what, client) in [("used", &mut used), ("fresh", &mut fresh)] {
        assert!(client.is_still_open(), "{what}");
        client.get("/quick");
        assert_eq!(last_answer(client, what).text(), "ok");
    }
    // Both have had theirs: nobody waits for the rest of the hour.
    let report = within(BOUND, "the end", ended).await;
    assert_eq!((report.finished, report.connections()), (2, 2), "{report}");
    assert!(report.is_clean(), "{report}");
}

async fn g3_last_request_completes_a_head_begun_before_its_wait_was_over(front: FrontEnd) {
    let wait = Duration::from_secs(1);
    let (terminator, server) = serving(front, last_request(wait)).await;
    let (mut used, mut fresh) = (used(&server), server.connect());
    accepted(&terminator, 2);
    let ended = terminator.terminate();
    time_passes(wait / 10);
    let (begun, rest) = "GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n".split_at(9);
    used.send(begun);
    fresh.send(begun);
    time_passes(wait);
    for (what, client) in [("used", &mut used), ("fresh", &mut fresh)] {
        assert!(client.is_still_open(), "{what}");
        client.send(rest);
        assert_eq!(last_answer(client, what).text(), "ok");
    }
    let report = within(BOUND, "the end", ended).await;
    assert_eq!((report.finished, report.connections()), (2, 2), "{report}");
}

async fn g3_last_request_waits_for_the_answer_to_a_request_within_its_wait(front: FrontEnd) {
    let wait = Duration::from_secs(1);
    let gate = Gate::new();
    let terminator = last_request(wait).build();
    let server = start(front, &terminator, gated(&gate)).await;
    let mut client = used(&server);
    let ended = terminator.terminate();
    time_passes(wait / 10);
    client.get("/slow");
    gate.wait_entered(1);
    time_passes(wait);
    assert!(client.is_still_open());
    gate.open();
    assert_eq!(last_answer(&mut client, "slow").text(), "slow");
    let report = within(BOUND, "the end", ended).await;
    assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
}

async fn g3_last_request_does_not_keep_connections_that_were_busy(front: FrontEnd) {
    let gate = Gate::new();
    let terminator = last_request(NEVER).build();
    let server = start(front, &terminator, gated(&gate)).await;
    let mut client = used(&server);
    client.get("/slow");
    gate.wait_entered(1);
    let ended = terminator.terminate();
    gate.open();
    assert_eq!(last_answer(&mut client, "busy").text(), "slow");
    let report = within(BOUND, "the end", ended).await;
    assert!(report.draining < slack(), "{report}");
}

async fn g3_last_request_is_clamped_to_the_grace_period(front: FrontEnd) {
    clamped(front, IdlePolicy::LastRequest { wait: NEVER }).await;
}

async fn g3_last_request_is_over_when_the_client_leaves(front: FrontEnd) {
    let (terminator, server) = serving(front, last_request(NEVER)).await;
    let client = used(&server);
    let ended = terminator.terminate();
    time_passes(PAST_SETTLE);
    assert!(client.is_still_open());
    drop(client);
    let report = within(BOUND, "the end", ended).await;
    assert_eq!((report.closed_by_peer, report.connections()), (1, 1));
    assert!(report.draining < PAST_SETTLE + slack(), "{report}");
}

async fn g3_spread_closes_evenly(front: FrontEnd) {
    let over = Duration::from_millis(1500);
    let crowd = crowd(front, patient().idle(IdlePolicy::Spread { over })).await;
    let (closes, report) = crowd.terminate().await;
    assert_even(&closes, over);
    assert_eq!((report.idle, report.connections()), (CROWD, CROWD));
}

/// The handlers ask `draining()`.
async fn g3_spread_tells_upgraded_connections_on_the_same_schedule(front: FrontEnd) {
    let over = Duration::from_millis(1500);
    let builder = patient().idle(IdlePolicy::Spread { over });
    let crowd = upgraded_crowd(front, builder).await;
    let at_once = crowd.terminator.cancellation_token();
    let began = Instant::now();
    let at_once = tokio::spawn(async move {
        at_once.cancelled().await;
        began.elapsed()
    });
    let (closes, report) = crowd.terminate().await;
    let at_once = at_once.await.expect("it is cancelled");
    let stolen = stolen_in_the_last(over);
    assert!(at_once < over / 5 + stolen, "the token: {at_once:?}");
    assert_even(&closes, over);
    assert_eq!((report.upgraded, report.connections()), (CROWD, CROWD));
}

async fn g3_without_spread_upgraded_connections_are_told_at_once(front: FrontEnd) {
    for idle in [
        IdlePolicy::Immediate,
        IdlePolicy::LastRequest { wait: NEVER },
    ] {
        let crowd = upgraded_crowd(front, patient().idle(idle)).await;
        let (closes, report) = crowd.terminate().await;
        assert!(closes[CROWD - 1] < slack(), "{idle:?}: {closes:?}");
        assert_eq!((report.upgraded, report.connections()), (CROWD, CROWD));
    }
}

async fn g3_spread_tells_http2_on_the_same_schedule(front: FrontEnd) {
    let over = Duration::from_millis(1500);
    let (terminator, server) = serving(front, patient().idle(IdlePolicy::Spread { over })).await;
    let connect = || {
        let mut client = RawH2::connect(&server.target);
        client.get("/quick", 1);
        client.read_until(kind::DATA);
        client
    };
    let clients: Vec<_> = (0..CROWD).map(|_| connect()).collect();
    let began = Instant::now();
    let ended = terminator.terminate();
    let watch = |mut client: RawH2| {
        thread::spawn(move || {
            client.read_until(kind::GOAWAY);
            let told = began.elapsed();
            let ping = client.read_until(kind::PING);
            client.ack_ping(&ping);
            client.expect_eof_within(BOUND);
            told
        })
    };
    let watched: Vec<_> = clients.into_iter().map(watch).collect();
    let told = watched.into_iter().map(thread::JoinHandle::join);
    let mut told: Vec<_> = told.map(|it| it.expect("an end of file")).collect();
    told.sort();
    assert_even(&told, over);
    let report = within(BOUND, "the end", ended).await;
    assert_eq!((report.finished, report.connections()), (CROWD, CROWD));
}

/// All of them were told as it began, and came again at once.
async fn g3_g9_spread_tells_http2_all_through_the_lame_duck(front: FrontEnd) {
    let lame_duck = Duration::from_millis(1500);
    let builder = patient().idle(IdlePolicy::Spread { over: NEVER });
    let (terminator, server) = serving(front, builder.lame_duck(lame_duck)).await;
    let connect = |_| {
        let mut client = RawH2::connect(&server.target);
        client.get("/quick", 1);
        client.read_until(kind::DATA);
        client
    };
    let clients: Vec<_> = (0..CROWD).map(connect).collect();
    let began = Instant::now();
    let ended = terminator.terminate();
    let watch = |mut client: RawH2| {
        thread::spawn(move || {
            // Nor does one more request change its turn.
            client.get("/quick", 3);
            client.read_until(kind::GOAWAY);
            let told = began.elapsed();
            let ping = client.read_until(kind::PING);
            client.ack_ping(&ping);
            client.expect_eof_within(BOUND);
            told
        })
    };
    let watched: Vec<_> = clients.into_iter().map(watch).collect();
    let told = watched.into_iter().map(thread::JoinHandle::join);
    let mut told: Vec<_> = told.map(|it| it.expect("an end of file")).collect();
    told.sort();
    assert_even(&told, lame_duck);
    let report = within(BOUND, "the end", ended).await;
    // Some had gone before the drain.
    assert!(report.is_clean(), "{report}");
    assert!(report.lame_duck >= lame_duck, "{report}");
}

async fn g12_force_tells_whose_turn_has_not_come(front: FrontEnd) {
    let builder = patient().idle(IdlePolicy::Spread { over: NEVER });
    let (terminator, _server) = serving(front, builder.grace_period(None)).await;
    let guard = terminator.guard();
    let waiting: Vec<_> = (0..4)
        .map(|_| tokio::spawn(terminator.draining()))
        .collect();
    drop(terminator.terminate());
    within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
    drop(terminator.force());
    for waiting in waiting {
        within(BOUND, "a turn", waiting).await.expect("no panic");
    }
    within(BOUND, "who asks late", terminator.draining()).await;
    drop(guard);
}

async fn g3_spread_is_clamped_to_the_grace_period(front: FrontEnd) {
    let closes = clamped(front, IdlePolicy::Spread { over: NEVER }).await;
    let (first, last) = (closes[0], closes[CROWD - 1]);
    assert!(last > first + GRACE / 2, "still spread: {closes:?}");
}

async fn g3_spread_answers_one_more_request_with_close(front: FrontEnd) {
    let over = Duration::from_millis(600);
    let (terminator, server) = serving(front, patient().idle(IdlePolicy::Spread { over })).await;
    let mut clients: Vec<_> = (0..10).map(|_| used(&server)).collect();
    let ended = terminator.terminate();
    time_passes(over / 3);
    clients.retain(RawClient::is_still_open);
    // Of ten, evenly spread, six or seven have not had their turn; on a slow machine, fewer.
    assert!(!clients.is_empty());
    let (mut answered, mut lost) = (0, Vec::new());
    for mut client in clients {
        if !client.is_still_open() {
            continue;
        }
        let sent = client.try_send(GET).map_err(|error| error.to_string());
        let read = |()| client.try_read_response().map_err(|end| format!("{end:?}"));
        match sent.and_then(read) {
            Ok(answer) => {
                assert!(answer.says_close(), "{answer:?}");
                client.expect_eof();
                answered += 1;
            }
            Err(what) => lost.push(what),
        }
    }
    assert!(answered > 0);
    // One whose turn comes in this moment is lost; there is nobody to blame for that one.
    assert!(lost.len() <= 1, "{lost:?}");
    let report = within(BOUND, "the end", ended).await;
    assert_eq!(
        (report.finished, report.connections()),
        (answered, 10),
        "{report}"
    );
}

async fn g12_force_ends_a_patient_policy(front: FrontEnd) {
    for idle in [
        IdlePolicy::LastRequest { wait: NEVER },
        IdlePolicy::Spread { over: NEVER },
    ] {
        let builder = patient().grace_period(None).idle(idle);
        let (terminator, server) = serving(front, builder).await;
        // The spread has its own idea of whose turn is first, but it has an hour for it.
        let mut clients = [used(&server), used(&server), used(&server)];
        let ended = terminator.terminate();
        time_passes(PAST_SETTLE);
        let began = Instant::now();
        within(BOUND, "the end", terminator.force()).await;
        assert!(began.elapsed() < slack(), "{idle:?}: {:?}", began.elapsed());
        for client in &mut clients {
            client.expect_eof();
        }
        let report = within(BOUND, "the first call", ended).await;
        assert_eq!(report.connections(), 3, "{idle:?}: {report}");
        assert!(report.stragglers.is_empty(), "idle is not late: {report}");
    }
}

// ===== G16: the lame duck =====

async fn g3_last_request_counts_from_the_end_of_the_lame_duck(front: FrontEnd) {
    let (lame, wait) = (Duration::from_millis(400), Duration::from_millis(400));
    let crowd = crowd(front, last_request(wait).lame_duck(lame)).await;
    let (closes, report) = crowd.terminate().await;
    assert!(closes[0] >= lame + wait, "the first close: {closes:?}");
    assert!(closes[CROWD - 1] < lame + wait + slack(), "{closes:?}");
    assert_eq!((report.idle, report.connections()), (CROWD, CROWD));
}

async fn g16_a_second_call_does_not_prolong_the_lame_duck(front: FrontEnd) {
    let lame = Duration::from_millis(800);
    let (terminator, server) = serving(front, patient().lame_duck(lame)).await;
    let mut idle = used(&server);
    let first = terminator.terminate();
    time_passes(lame / 2);
    let second = terminator.terminate();
    let state = (terminator.phase(), terminator.is_ready());
    assert_eq!(state, (Phase::LameDuck, false));
    assert!(idle.is_still_open());
    let report = within(BOUND, "the end", first).await;
    let latest = lame + lame / 4 + stolen_in_the_last(lame);
    let took = report.lame_duck;
    assert!(took >= lame && took < latest, "{report:?}");
    assert_eq!(within(BOUND, "the second call", second).await, report);
    assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
    idle.expect_eof();
}

async fn g16_what_began_in_the_lame_duck_drains(front: FrontEnd) {
    let _alone = no_starts();
    let gate = Gate::new();
    let terminator = patient().lame_duck(Duration::from_secs(1)).build();
    let server = start(front, &terminator, gated(&gate)).await;
    let ended = terminator.terminate();
    // All of these come to a server that has said it will go.
    let (mut busy, mut silent, mut half) = (server.connect(), server.connect(), server.connect());
    busy.get("/slow");
    let (begun, rest) = GET.split_at(9);
    half.send(begun);
    gate.wait_entered(1);
    assert_eq!(terminator.phase(), Phase::LameDuck, "all that in time");

    within(BOUND, "the drain", terminator.reached(Phase::Draining)).await;
    until("its listener to close", || {
        terminator.stats().listeners == 0
    });
    assert!(RawClient::try_connect(&server.target).is_err());
    silent.expect_eof();
    assert!(busy.is_still_open() && half.is_still_open());
    half.send(rest);
    assert_eq!(last_answer(&mut half, "half a head").text(), "ok");
    gate.open();
    assert_eq!(last_answer(&mut busy, "busy").text(), "slow");
    let report = within(BOUND, "the end", ended).await;
    assert_eq!((report.idle, report.finished), (1, 2), "{report}");
    assert!(report.is_clean(), "{report}");
}

// ===== G14: listeners, several and one after the other =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g14_several_listeners_of_one_terminator_end_together() {
    let _alone = no_starts();
    let gate = Gate::new();
    let terminator = patient().build();
    let mut servers = Vec::new();
    for front in [FrontEnd::Serve, FrontEnd::HyperServe, FrontEnd::ServeUnix] {
        servers.push(start(front, &terminator, gated(&gate)).await);
    }
    let mut idle: Vec<_> = servers.iter().map(used).collect();
    let mut busy: Vec<_> = servers.iter().map(used).collect();
    for client in &busy {
        client.get("/slow");
    }
    gate.wait_entered(3);
    assert_eq!(terminator.stats().listeners, 3);

    let ended = terminator.terminate();
    idle.iter_mut().for_each(RawClient::expect_eof);
    until("all listeners to close", || {
        terminator.stats().listeners == 0
    });
    for server in &servers {
        let connected = RawClient::try_connect(&server.target);
        assert!(connected.is_err(), "{:?} still accepts", server.target);
        assert!(!server.task.is_finished(), "{:?}", server.target);
    }
    gate.open();
    for client in &mut busy {
        assert_eq!(last_answer(client, "busy").text(), "slow");
    }
    let report = within(BOUND, "the end", ended).await;
    assert_eq!((report.idle, report.finished), (3, 3), "{report}");
    assert!(report.is_clean(), "{report}");
    for server in servers {
        finished(server.task, &report).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_two_terminators_end_one_after_the_other() {
    let gate = Gate::new();
    let (traffic, health) = (patient().build(), patient().build());
    let served = start(FrontEnd::Serve, &traffic, gated(&gate)).await;
    let asked = traffic.clone();
    let ready = async move || {
        if asked.is_ready() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    let probes = Router::new().route("/ready", get(ready));
    let health_server = start(FrontEnd::Serve, &health, probes).await;

    let mut probe = health_server.connect();
    assert_eq!(probe.fetch("/ready").status, 200);
    let mut busy = served.connect();
    busy.get("/slow");
    gate.wait_entered(1);
    let ended = traffic.terminate();
    for probe in [&mut probe, &mut health_server.connect()] {
        let answer = probe.fetch("/ready");
        assert_eq!(answer.status, 503);
        assert!(!answer.says_close(), "only the other one ends: {answer:?}");
        time_passes(PAST_SETTLE);
        assert!(probe.is_still_open());
    }
    assert!(health.is_ready());
    gate.open();
    assert_eq!(last_answer(&mut busy, "busy").text(), "slow");
    let report = within(BOUND, "the traffic's end", ended).await;
    assert_eq!((report.finished, report.connections()), (1, 1), "{report}");

    assert_eq!(probe.fetch("/ready").status, 503, "still there");
    assert_eq!(health.phase(), Phase::Serving);
    let report = within(BOUND, "the probes' end", health.terminate()).await;
    probe.expect_eof();
    assert_eq!(report.connections(), report.idle + report.closed_by_peer);
    assert!(report.is_clean(), "{report}");
}

/// The clients of earlier rounds hold their ends, so that the port is never free of old connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g14_restart_on_the_same_port_a_hundred_times() {
    let mut listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr: SocketAddr = listener.local_addr().expect("it is bound");
    let mut held = Vec::new();
    for round in 0..100 {
        let gate = Gate::new();
        let terminator = patient().build();
        let server = tokio::spawn(terminator.serve(listener, gated(&gate)));
        let mut client = RawClient::connect(addr);
        let ended = match round % 3 {
            // Idle, with an answer behind it.
            0 => {
                assert_eq!(client.fetch("/quick").text(), "ok", "round {round}");
                terminator.terminate()
            }
            // A request in hand.
            1 => {
                client.get("/slow");
                gate.wait_entered(1);
                let ended = terminator.terminate();
                gate.open();
                assert_eq!(last_answer(&mut client, "in hand").text(), "slow");
                ended
            }
            // A request on its way, perhaps its connection still in the queue, perhaps its answer out.
            _ => {
                client.get("/quick");
                let ended = terminator.terminate();
                assert_eq!(client.read_response().text(), "ok", "round {round}");
                client.expect_eof();
                ended
            }
        };
        let report = within(BOUND, "the end", ended).await;
        let again = TcpListener::bind(addr).await;
        listener = again.unwrap_or_else(|error| panic!("round {round}: binding again: {error}"));
        assert!(report.is_clean(), "round {round}: {report}");
        assert_eq!(report.connections(), 1, "round {round}: {report}");
        if round % 3 == 0 {
            client.expect_eof();
        }
        let output = within(BOUND, "the server", server).await;
        assert_eq!(output.expect("it does not panic"), report, "round {round}");
        held.push(client);
    }
    assert_eq!(open_fds_to(addr.port()), 0);
}

// ===== G7: the rest of HTTP/1 =====

async fn g7_a_304_says_close_without_a_body(front: FrontEnd) {
    let unchanged = async || (StatusCode::NOT_MODIFIED, [(header::ETAG, "\"1\"")]);
    let terminator = patient().build();
    let app = app(App::default()).route("/unchanged", get(unchanged));
    let server = start(front, &terminator, app).await;
    let mut client = server.connect();
    client.send("GET /unch");
    accepted(&terminator, 1);
    let ended = terminator.terminate();
    client.send("anged HTTP/1.1\r\nhost: localhost\r\nif-none-match: \"1\"\r\n\r\n");
    let answer = client.read_response_headers();
    assert_eq!(answer.status, 304, "{answer:?}");
    assert_eq!(answer.header("etag"), Some("\"1\""), "{answer:?}");
    assert!(answer.says_close(), "{answer:?}");
    client.expect_eof();
    let report = within(BOUND, "the end", ended).await;
    assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
}

/// It was told to go on and never does. An upload is not bound by `stall_timeout`, since its handler
/// may have something to say yet, but by the deadline.
async fn g7_expect_100_continue_without_a_body_is_answered_503_at_the_deadline(front: FrontEnd) {
    for warm in [false, true] {
        let grace = Duration::from_millis(1200);
        let builder = Terminator::builder().grace_period(grace);
        let (terminator, server) = serving(front, builder.stall_timeout(grace / 4)).await;
        let mut client = if warm {
            used(&server)
        } else {
            server.connect()
        };
        let (half, rest) = EXPECTING.split_at(9);
        client.send(half);
        accepted(&terminator, 1);
        let began = Instant::now();
        let ended = terminator.terminate();
        client.send(rest);
        assert_eq!(client.read_response().status, 100);
        time_passes(grace / 2);
        assert!(client.is_still_open(), "past the stall timeout");
        assert_eq!(last_answer_with(503, &mut client, "expecting").status, 503);
        let took = began.elapsed();
        assert!(took >= grace && took < grace + slack(), "{took:?}");
        let report = within(BOUND, "the end", ended).await;
        let counts = (report.answered_at_deadline, report.connections());
        assert_eq!(counts, (1, 1), "{report}");
        assert!(!report.is_clean(), "{report}");
        assert_eq!(report.stragglers[0].path.as_deref(), Some("/echo"));
    }
}

/// Answered without a word of `100`: the client knows that it must not send its body.
async fn g7_expect_100_continue_that_nobody_wants_is_answered_and_closed(front: FrontEnd) {
    let stall = Duration::from_secs(1);
    let (terminator, server) = serving(front, patient().stall_timeout(stall)).await;
    let mut client = server.connect();
    let (begun, rest) = EXPECTING_NOTHING.split_at(9);
    client.send(begun);
    accepted(&terminator, 1);
    let ended = terminator.terminate();
    client.send(rest);
    assert_eq!(last_answer_with(413, &mut client, "unwanted").status, 413);
    drop(client);
    let report = within(BOUND, "the end", ended).await;
    assert!(report.draining < stall + slack(), "{report}");
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.connections(), 1, "{report}");
}

async fn g7_a_request_that_says_close_itself_is_answered_with_one_close(front: FrontEnd) {
    let gate = Gate::new();
    let terminator = patient().build();
    let server = start(front, &terminator, gated(&gate)).await;
    let slow = CLOSING.replace("/quick", "/slow");
    let (mut before, mut during) = (used(&server), used(&server));
    before.send(&slow);
    gate.wait_entered(1);
    let (begun, rest) = CLOSING.split_at(9);
    during.send(begun);
    let ended = terminator.terminate();
    during.send(rest);
    let answer = last_answer(&mut during, "during the drain");
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    gate.open();
    let answer = last_answer(&mut before, "before the drain");
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    assert_eq!(answer.text(), "slow");
    let report = within(BOUND, "the end", ended).await;
    assert_eq!((report.finished, report.connections()), (2, 2), "{report}");
}

// ===== helpers =====

/// How late a close may be seen: what comes at once is far from the hour of all else.
fn slack() -> Duration {
    SLACK + stolen_in_the_last(SLACK * 3)
}

const GET: &str = "GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n";

const CLOSING: &str = "GET /quick HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

const EXPECTING: &str = "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\
                         expect: 100-continue\r\n\r\n";

const EXPECTING_NOTHING: &str = "POST /early HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\
                                 expect: 100-continue\r\n\r\n";

/// Of the tests in which a policy is longer.
const GRACE: Duration = Duration::from_secs(2);

/// What a test does not set is far longer than anything it measures.
fn patient() -> TerminatorBuilder {
    let builder = Terminator::builder().grace_period(NEVER * 2);
    builder.stall_timeout(NEVER)
}

fn last_request(wait: Duration) -> TerminatorBuilder {
    patient().idle(IdlePolicy::LastRequest { wait })
}

fn gated(gate: &Gate) -> Router {
    app(App {
        gate: gate.clone(),
        ..App::default()
    })
}

async fn serving(front: FrontEnd, builder: TerminatorBuilder) -> (Terminator, Server) {
    let terminator = builder.build();
    let server = start(front, &terminator, app(App::default())).await;
    (terminator, server)
}

/// A client whose connection is kept alive behind one answer.
#[track_caller]
fn used(server: &Server) -> RawClient {
    let mut client = server.connect();
    let answer = client.fetch("/quick");
    assert!(answer.status == 200 && !answer.says_close(), "{answer:?}");
    client
}

async fn finished(server: JoinHandle<Option<Report>>, report: &Report) {
    let output = within(BOUND, "the server", server).await;
    let output = output.expect("the server does not panic");
    assert_eq!(output.as_ref(), Some(report));
}

/// Reads a `200`, the last answer of its connection.
#[track_caller]
fn last_answer(client: &mut RawClient, what: &str) -> RawResponse {
    last_answer_with(200, client, what)
}

#[track_caller]
fn last_answer_with(status: u16, client: &mut RawClient, what: &str) -> RawResponse {
    let answer = client.read_response();
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert!(answer.says_close(), "{what}: {answer:?}");
    client.expect_eof();
    answer
}

/// Many idle connections, every other one never used.
struct Crowd {
    terminator: Terminator,
    server: Server,
    clients: Vec<RawClient>,
}

async fn crowd(front: FrontEnd, builder: TerminatorBuilder) -> Crowd {
    let (terminator, server) = serving(front, builder).await;
    let client = |n| match n % 2 {
        0 => used(&server),
        _ => server.connect(),
    };
    let clients: Vec<_> = (0..CROWD).map(client).collect();
    accepted(&terminator, CROWD);
    Crowd {
        terminator,
        server,
        clients,
    }
}

/// The same, each of them upgraded by a handler that lets go when it is told.
async fn upgraded_crowd(front: FrontEnd, builder: TerminatorBuilder) -> Crowd {
    let terminator = builder.build();
    let state = App {
        terminator: Some(terminator.clone()),
        ..App::default()
    };
    let server = start(front, &terminator, app(state)).await;
    let client = |_| {
        let mut client = server.connect();
        client.get_upgrade("/upgrade-told");
        assert_eq!(client.read_response_headers().status, 101);
        client
    };
    let clients: Vec<_> = (0..CROWD).map(client).collect();
    until("upgrades", || terminator.stats().upgraded == CROWD);
    Crowd {
        terminator,
        server,
        clients,
    }
}

#[track_caller]
fn assert_even(closes: &[Duration], over: Duration) {
    let stolen = stolen_in_the_last(over);
    assert!(closes[0] < over / 5 + stolen, "the first one: {closes:?}");
    let last = closes[CROWD - 1];
    assert!(last > over / 5 * 4, "the last one: {closes:?}");
    assert!(last < over + slack(), "the last one: {closes:?}");
    // No fifth of the time, wherever it begins, has more than a third of them.
    for (n, from) in closes.iter().enumerate() {
        let until = *from + over / 5;
        let close = closes[n..].iter().filter(|at| **at < until).count();
        let even = close <= CROWD / 3 || stolen > over / 10;
        assert!(even, "{close} from {from:?} on: {closes:?}");
    }
}

impl Crowd {
    /// When, counted from the call, each connection was closed, in order; none by a reset.
    async fn terminate(self) -> (Vec<Duration>, Report) {
        let _alone = no_starts();
        let target: Target = self.server.target.clone();
        let began = Instant::now();
        let ended = self.terminator.terminate();
        let watch = |mut client: RawClient| {
            thread::spawn(move || {
                client.expect_eof();
                began.elapsed()
            })
        };
        let watched: Vec<_> = self.clients.into_iter().map(watch).collect();
        let ends = watched.into_iter().map(thread::JoinHandle::join);
        let mut closes: Vec<_> = ends.map(|it| it.expect("an end of file")).collect();
        closes.sort();
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{report}");
        assert!(RawClient::try_connect(&target).is_err());
        (closes, report)
    }
}

/// A policy that would take longer than the grace period closes as idle all the same, none is cut.
async fn clamped(front: FrontEnd, idle: IdlePolicy) -> Vec<Duration> {
    let builder = Terminator::builder().grace_period(GRACE).idle(idle);
    let (closes, report) = crowd(front, builder).await.terminate().await;
    assert!(closes[CROWD - 1] > GRACE / 2, "but patient: {closes:?}");
    assert_eq!((report.idle, report.connections()), (CROWD, CROWD));
    // Within the grace period: a client may see it later.
    assert_eq!(report.forcing, Duration::ZERO, "{report}");
    closes
}
