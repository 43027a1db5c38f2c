//! Closing in stages (G8, RFC 9112 section 9.6): an answer that comes before the end of its upload
//! arrives whole, and a client that never ends its upload is cut all the same.
//!
//! The tests block in their own threads, which are none of the runtime's two workers. A name reads
//! `front_end::guarantee_behaviour`.
#![cfg(all(unix, feature = "serve"))]
#![allow(
    clippy::await_holding_lock,
    reason = "each test waits for it in a thread of its own"
)]

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use axum::routing::get;

use crate::support::load::{LOAD, stolen_in_the_last};
use crate::support::outside::{LATE, at_deadline, block_on, measured, promised};
use crate::support::wait::{accepted, gone, time_passes, time_passes_async};
use crate::support::{App, BOUND, FrontEnd, Gate, RawClient, ReadEnd, Server, over_front_ends};
use crate::support::{PREFACE, RawH2, app, blocking, each, kind, start, within};
use http_terminator::{HttpBuilder, Report, Terminator, TerminatorBuilder, TowerToHyper};

/// What is uploaded to who does not want it.
const UPLOAD: usize = 4 << 20;

/// How often each of it is done.
const TIMES: usize = 100;

/// The same where only what is around it differs.
const SOMETIMES: usize = 50;

/// A slow client sends so much, so often.
const PIECE: usize = 100_000;
const PAUSE: Duration = Duration::from_millis(20);

/// The library's bounds on the second stage, while serving.
const STAGED_FOR: Duration = Duration::from_secs(5);
const STAGED_BYTES: usize = 64 << 20;

/// What sockets hold of what was sent and not read, at most.
const SOCKETS: usize = 16 << 20;

/// What happens at once, on a machine with other things to do.
const SOON: Duration = Duration::from_secs(1);

over_front_ends! {
    [
        serve Serve,
        serve_unix ServeUnix,
        #[cfg(feature = "rustls")]
        serve_tls ServeTls,
    ]
    g8_an_early_answer_survives_a_fast_upload_while_serving,
    g8_an_early_answer_survives_a_fast_upload_while_draining,
    g8_an_early_answer_survives_a_slow_upload_while_serving,
    g8_an_early_answer_survives_a_slow_upload_while_draining,
    g8_an_early_answer_survives_a_drain_that_begins_in_the_middle_of_its_upload,
    g8_an_early_answer_survives_an_upload_that_goes_on_in_the_drain,
    g18_a_close_in_stages_behind_what_is_not_served_is_finished,
    g8_the_last_answer_survives_what_is_pipelined_behind_it,
    g8_what_hyper_refuses_is_answered_whatever_comes_behind_it,
    g8_an_answer_survives_the_rest_of_a_head_that_came_too_late_while_serving,
    g8_an_answer_that_is_read_slowly_survives_the_rest_of_a_head_that_came_too_late,
    g8_a_client_that_sends_on_is_cut_after_an_amount_while_serving,
    g8_a_client_that_sends_on_slowly_is_cut_after_a_time_while_serving,
    g8_a_client_that_falls_silent_is_cut_after_the_stall_timeout_while_serving,
    g8_a_client_that_falls_silent_is_cut_after_the_stall_timeout_while_draining,
    g8_clients_that_send_on_do_not_delay_the_deadline_of_a_drain,
    g8_clients_that_sent_on_before_do_not_delay_the_deadline_of_a_drain,
}

// ===== answers arrive whole =====

async fn g8_an_early_answer_survives_a_fast_upload_while_serving(front: FrontEnd) {
    let _busy = LOAD.write();
    early_answers(front, Drain::After, Duration::ZERO).await;
}

async fn g8_an_early_answer_survives_a_fast_upload_while_draining(front: FrontEnd) {
    let _busy = LOAD.write();
    early_answers(front, Drain::Before, Duration::ZERO).await;
}

async fn g8_an_early_answer_survives_a_slow_upload_while_serving(front: FrontEnd) {
    let _busy = LOAD.write();
    early_answers(front, Drain::After, PAUSE).await;
}

async fn g8_an_early_answer_survives_a_slow_upload_while_draining(front: FrontEnd) {
    let _busy = LOAD.write();
    early_answers(front, Drain::Before, PAUSE).await;
}

async fn g8_an_early_answer_survives_a_drain_that_begins_in_the_middle_of_its_upload(
    front: FrontEnd,
) {
    let _busy = LOAD.write();
    early_answers(front, Drain::Within, PAUSE).await;
}

/// Longer than `stall_timeout`, and than a close lingers behind that: it is not silent.
async fn g8_an_early_answer_survives_an_upload_that_goes_on_in_the_drain(front: FrontEnd) {
    let _measuring = LOAD.read();
    let terminator = far().stall_timeout(PAUSE * 20).build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.send("POST /");
    accepted(&terminator, 1);
    drop(terminator.terminate());
    blocking(move || {
        client.send(&head(UPLOAD)["POST /".len()..]);
        // Time is the subject.
        for n in 0..125 {
            let sent = client.try_send([b'x'; 100]);
            sent.unwrap_or_else(|error| panic!("{error} after {n} pieces"));
            time_passes(PAUSE);
        }
        let says_close = answer(&mut client).unwrap_or_else(|what| panic!("{what}"));
        assert!(says_close);
        assert_eq!(client.read_to_end(), ReadEnd::Eof);
    })
    .await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
    ended(server, terminator.terminate(), 1).await;
}

/// Behind an answer that says close another request lies, read or not, and its client does not close. Whoever polls the
/// connection took it for one whose peer owes the rest of that request, or for an idle one that hyper does not ask for input
/// of: when the close in stages was over, or a moment before, that gave it up as stalled, and let the driver close it in
/// stages once more. So it is now and then, and there are many.
async fn g18_a_close_in_stages_behind_what_is_not_served_is_finished(front: FrontEnd) {
    const CLIENTS: usize = 20;
    let _measuring = LOAD.read();
    let stall = Duration::from_millis(600);
    let (gate, terminator) = (Gate::new(), far().stall_timeout(stall).build());
    let state = App {
        gate: gate.clone(),
        terminator: None,
    };
    let server = start(front, &terminator, app(state)).await;
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    let slow = "GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for (n, client) in clients.iter().enumerate() {
        client.send(slow.repeat(1 + n % 2));
    }
    gate.wait_entered_async(CLIENTS).await;
    for client in &clients {
        client.send(slow);
    }
    let termination = terminator.terminate();
    gate.open();
    for client in &mut clients {
        let answer = client.read_response();
        assert_eq!((answer.says_close(), answer.text()), (true, "slow"));
        client.expect_eof();
    }
    let report = within(BOUND, "the end", termination).await;
    assert_eq!(
        (report.finished, report.connections()),
        (CLIENTS, CLIENTS),
        "{report}"
    );
    assert_eq!(gate.entered(), CLIENTS, "what is behind it is not served");
    // The silence is looked at once for each stall timeout.
    measured(
        report.draining.saturating_sub(stall * 2),
        LATE,
        "the end, after that",
    );
}

/// Two requests come in one read. Of the second nothing is followed until hyper calls for it, which it does not behind an
/// answer that says close: so the connection was taken for one whose client has sent nothing more, and closed at once, while
/// most of the answer was still in the kernel. What that client pipelined next drew a reset, which destroyed it.
async fn g8_the_last_answer_survives_what_is_pipelined_behind_it(front: FrontEnd) {
    let _measuring = LOAD.read();
    let hosted = "GET /some HTTP/1.1\r\nhost: localhost\r\nuser-agent: somebody\r\n\r\n";
    let closing = "GET /some HTTP/1.1\r\nconnection: close\r\n\r\n";
    // Shorter than its name, and longer; and whose last one it is.
    for (request, drains) in [
        ("GET /some HTTP/1.1\r\n\r\n", true),
        (hosted, true),
        (closing, false),
    ] {
        let (gate, terminator) = (Gate::new(), far().stall_timeout(BOUND).build());
        let gated = gate.clone();
        let some = get(async move || {
            gated.enter().await;
            vec![b'x'; SOME]
        });
        let server = start(front, &terminator, app(App::default()).route("/some", some)).await;
        let mut client = server.connect();
        client.send(request.repeat(2));
        gate.wait_entered_async(1).await;
        let termination = drains.then(|| terminator.terminate());
        gate.open();
        let head = client.read_response_headers();
        assert!(head.says_close(), "{head:?}");
        // As much is taken as the kernel has no room for, and then this side is shut down.
        let mut body = Vec::new();
        while terminator.stats().busy > 0 {
            body.extend(client.read_exact(16 << 10));
            time_passes_async(PAUSE).await;
        }
        time_passes_async(PAUSE).await;
        client.send(request);
        time_passes_async(PAUSE).await;
        body.extend(client.read_exact(SOME - body.len()));
        assert!(body == vec![b'x'; SOME], "other bytes");
        client.expect_eof();
        assert_eq!(gate.entered(), 1, "what is behind it is not served");
        drop(client);
        gone(&terminator).await;
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.finished, usize::from(drains), "{report}");
        drop((server, termination));
    }
}

/// More than the client's kernel takes before it is read.
const SOME: usize = 400_000;

/// A short head, alone in its read, that hyper does not call for but refuses, or a body that it takes for broken where a
/// reading less strict finds its end. They were taken for ones behind which nothing comes, and the connection closed at
/// once: what came drew a reset.
async fn g8_what_hyper_refuses_is_answered_whatever_comes_behind_it(front: FrontEnd) {
    let _measuring = LOAD.read();
    let many = "a: b\r\n".repeat(110);
    let broken = "transfer-encoding: chunked\r\n\r\n5\r\nhello, you\r\n0\r\n";
    let trailed = "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\0: a\r\n";
    for (refused, status) in [
        ("content-length: nope\r\n", 400),
        (&many, 431),
        (broken, 400),
        (trailed, 400),
    ] {
        for drains in [false, true] {
            // A connection that came before the drain may bring its first request for so long.
            let terminator = far().settle(BOUND).stall_timeout(BOUND).build();
            let server = start(front, &terminator, app(App::default())).await;
            let mut client = server.connect();
            accepted(&terminator, 1);
            if drains {
                drop(terminator.terminate());
            }
            client.send(format!("POST /echo HTTP/1.1\r\n{refused}\r\n"));
            for n in 0..10 {
                time_passes_async(PAUSE).await;
                let sent = client.try_send([b'x'; 1000]);
                sent.unwrap_or_else(|error| panic!("{error} at piece {n}, {status}, {drains}"));
            }
            assert_eq!(client.read_response().status, status);
            client.expect_eof();
            drop(client);
            gone(&terminator).await;
            ended(server, terminator.terminate(), usize::from(drains)).await;
        }
    }
}

/// Half a head lies behind a request whose answer goes out. When its rest is given up that answer may be on its way, and a
/// client that sends the rest must not destroy it.
async fn g8_an_answer_survives_the_rest_of_a_head_that_came_too_late_while_serving(
    front: FrontEnd,
) {
    let _measuring = LOAD.read();
    let bound = Duration::from_millis(300);
    let terminator = far().head_timeout(bound).build();
    let some = get(async || vec![b'x'; SOME]);
    let server = start(front, &terminator, app(App::default()).route("/some", some)).await;
    let mut client = server.connect();
    client.send("GET /some HTTP/1.1\r\nhost: localhost\r\n\r\nGET /some HTTP/1.1\r\n");
    let head = client.read_response_headers();
    assert!(!head.says_close(), "{head:?}");
    // As much is taken as the kernel has no room for.
    let mut body = Vec::new();
    while terminator.stats().requests > 0 {
        body.extend(client.read_exact(16 << 10));
        time_passes_async(PAUSE).await;
    }
    // Nobody tells from outside when a socket is closed in stages.
    time_passes_async(bound * 2).await;
    for _ in 0..3 {
        let sent = client.try_send("host: localhost\r\n");
        sent.unwrap_or_else(|error| panic!("{error}"));
        time_passes_async(PAUSE).await;
    }
    body.extend(client.read_exact(SOME - body.len()));
    assert!(body == vec![b'x'; SOME], "other bytes");
    client.expect_eof();
    drop(client);
    gone(&terminator).await;
    ended(server, terminator.terminate(), 0).await;
}

/// The same in the drain, where its rest is given up after `stall_timeout`: it comes behind what is being read.
async fn g8_an_answer_that_is_read_slowly_survives_the_rest_of_a_head_that_came_too_late(
    front: FrontEnd,
) {
    const LITTLE: usize = 2 << 10;
    let _measuring = LOAD.read();
    let stall_timeout = Duration::from_millis(300);
    let terminator = far().stall_timeout(stall_timeout).build();
    let some = get(async || vec![b'x'; SOME]);
    let server = start(front, &terminator, app(App::default()).route("/some", some)).await;
    let mut client = server.connect();
    client.send("GET /some HTTP/1.1\r\nhost: localhost\r\n\r\nGET /some HTTP/1.1\r\n");
    client.read_response_headers();
    let mut body = Vec::new();
    while terminator.stats().requests > 0 {
        body.extend(client.read_exact(LITTLE));
        time_passes_async(PAUSE).await;
    }
    let ended = terminator.terminate();
    let begin = Instant::now();
    while begin.elapsed() < stall_timeout * 4 && body.len() + LITTLE < SOME {
        body.extend(client.read_exact(LITTLE));
        time_passes_async(PAUSE).await;
    }
    for _ in 0..3 {
        // A Unix socket that is closed at once takes nothing more, and keeps what is to be read.
        let _ = client.try_send("host: localhost\r\n");
        time_passes_async(PAUSE).await;
    }
    body.extend(client.read_exact(SOME - body.len()));
    assert!(body == vec![b'x'; SOME], "other bytes");
    client.expect_eof();
    drop(client);
    let report = within(BOUND, "the end", ended).await;
    assert!(report.is_clean(), "{report}");
    drop(server);
}

// ===== clients that do not end =====

async fn g8_a_client_that_sends_on_is_cut_after_an_amount_while_serving(front: FrontEnd) {
    let _busy = LOAD.write();
    let terminator = Terminator::new();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.send(head(usize::MAX >> 1));
    answer(&mut client).unwrap_or_else(|what| panic!("{what}"));
    let (sent, took) = sends_on(client, 64 << 10, Duration::ZERO).await;
    assert!(sent <= STAGED_BYTES + SOCKETS, "{sent} bytes in {took:?}");
    let stolen = stolen_in_the_last(took);
    assert!(
        took <= STAGED_FOR + SOON + stolen,
        "{sent} bytes in {took:?}"
    );
    // It is the amount, unless the machine is so slow that the time was over first.
    assert!(
        sent >= STAGED_BYTES || took >= STAGED_FOR,
        "{sent} bytes in {took:?}"
    );
    gone(&terminator).await;
    ended(server, terminator.terminate(), 0).await;
}

async fn g8_a_client_that_sends_on_slowly_is_cut_after_a_time_while_serving(front: FrontEnd) {
    let terminator = Terminator::new();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.send(head(UPLOAD));
    answer(&mut client).unwrap_or_else(|what| panic!("{what}"));
    let (sent, took) = sends_on(client, 100, PAUSE).await;
    after_a_time(took, &format!("{sent} bytes"));
    gone(&terminator).await;
    ended(server, terminator.terminate(), 0).await;
}

async fn g8_a_client_that_falls_silent_is_cut_after_the_stall_timeout_while_serving(
    front: FrontEnd,
) {
    falls_silent(front, false).await;
}

async fn g8_a_client_that_falls_silent_is_cut_after_the_stall_timeout_while_draining(
    front: FrontEnd,
) {
    falls_silent(front, true).await;
}

async fn g8_clients_that_send_on_do_not_delay_the_deadline_of_a_drain(front: FrontEnd) {
    do_not_delay(front, Drain::Before).await;
}

async fn g8_clients_that_sent_on_before_do_not_delay_the_deadline_of_a_drain(front: FrontEnd) {
    do_not_delay(front, Drain::Within).await;
}

/// An early answer lies in the server's kernel, and its client reads it slowly, sends nothing meanwhile, and goes on with its
/// upload when it has the most of it: that drew a reset, and the rest was lost.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_g8_an_early_answer_that_is_read_slowly_survives_the_silence_of_its_client() {
    const LENGTH: usize = 3 << 20;
    const PART: usize = 1 << 14;
    for drains in [false, true] {
        each(FrontEnd::all_and_tls(), async move |front| {
            let builder = Terminator::builder().grace_period(BOUND * 3);
            let terminator = builder.stall_timeout(Duration::from_millis(600)).build();
            let early = axum::routing::post(async || vec![7; LENGTH]);
            let router = axum::Router::new().route("/", early);
            let server = start(front, &terminator, router).await;
            let mut client = server.connect();
            let ended = blocking(move || {
                let buffer = client.socket().set_recv_buffer_size(1 << 18);
                buffer.expect("little");
                client.send("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n");
                client.read_response_headers();
                let ended = drains.then(|| terminator.terminate());
                for n in 0..LENGTH / PART {
                    client.read_exact(PART);
                    time_passes(Duration::from_micros(PART as u64));
                    if n > LENGTH / PART * 2 / 3 {
                        let _ = client.try_send(b"x"); // it may have to wait for the answer's end
                    }
                }
                drop(client);
                ended.unwrap_or_else(|| terminator.terminate())
            })
            .await;
            let report = within(BOUND, "the end", ended).await;
            assert!(report.is_clean(), "{front:?}: {report}");
        });
    }
}

/// Nothing comes any more from one that has closed, by which an answer could be destroyed. A second stage for it took a timer,
/// which a runtime need not have.
#[test]
fn g8_a_client_that_has_closed_costs_no_second_stage() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_io()
        .build()
        .expect("a runtime");
    let terminator = Terminator::builder().head_timeout(None).build();
    let entered = runtime.enter();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("it can be");
    let addr = listener.local_addr().expect("bound");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    let mut listener = terminator.listen(listener);
    let (tell, told) = std::sync::mpsc::channel();
    let app = app(App::default());
    tokio::spawn(async move {
        while let Some((io, _)) = listener.accept().await {
            let service = TowerToHyper::new(app.clone());
            let served = io.connection().serve(&HttpBuilder::default(), io, service);
            let _ = tell.send(tokio::spawn(served)); // nobody asks
        }
    });
    drop(entered);
    for http2 in [false, true] {
        if http2 {
            let mut client = RawH2::connect(addr);
            client.get("/quick", 1);
            client.read_until(kind::DATA);
        } else {
            RawClient::connect(addr).fetch("/quick");
        }
        let served = told.recv_timeout(BOUND).expect("it is accepted");
        let ended = block_on(BOUND, "the end of its task", served);
        assert!(matches!(ended, Ok(Ok(()))), "HTTP/2 {http2}: {ended:?}");
    }
    // Nor does one that is silent: it was a panic.
    let mut client = RawH2::connect(addr);
    client.get("/quick", 1);
    client.read_until(kind::DATA);
    let served = told.recv_timeout(BOUND).expect("it is accepted");
    block_on(BOUND, "the end", terminator.terminate());
    let ended = block_on(BOUND, "the end of its task", served);
    assert!(matches!(ended, Ok(Ok(()))), "silent: {ended:?}");
}

/// A connection that ended for an error of the protocol is closed in stages too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g8_an_http2_client_that_sends_on_after_its_error_is_cut_while_serving() {
    let terminator = Terminator::new();
    let server = start(FrontEnd::Serve, &terminator, app(App::default())).await;
    let target = server.target.clone();
    let took = blocking(move || {
        let mut client = RawH2::connect(target);
        client.get("/quick", 1);
        client.read_until(kind::DATA);
        client.send_frame(kind::DATA, 0, 0, b"not on stream 0");
        client.read_until(kind::GOAWAY);
        let begun = Instant::now();
        while begun.elapsed() < BOUND && client.try_send([0]).is_ok() {
            time_passes(PAUSE);
        }
        begun.elapsed()
    })
    .await;
    after_a_time(took, "one byte at a time");
    gone(&terminator).await;
    ended(server, terminator.terminate(), 0).await;
}

/// What is no HTTP/2 behind a preface, from a client that goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g8_a_preface_and_nonsense_without_an_end_is_cut_while_serving() {
    let terminator = Terminator::new();
    let server = start(FrontEnd::Serve, &terminator, app(App::default())).await;
    let client = server.connect();
    client.send(PREFACE);
    let (sent, took) = sends_on(client, 100, PAUSE).await;
    let stolen = stolen_in_the_last(took);
    assert!(
        took <= STAGED_FOR + SOON + stolen,
        "{sent} bytes in {took:?}"
    );
    gone(&terminator).await;
    ended(server, terminator.terminate(), 0).await;
}

// ===== what several tests do =====

/// As long as a close in stages takes for whoever goes on, and no longer.
#[track_caller]
fn after_a_time(took: Duration, what: &str) {
    // The client begins to count when the server has.
    assert!(took + PAUSE * 10 >= STAGED_FOR, "{what} in {took:?}");
    let stolen = stolen_in_the_last(took);
    assert!(took <= STAGED_FOR + SOON + stolen, "{what} in {took:?}");
}

/// When the drain begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    /// The request was begun, and is in flight when it is finished.
    Before,
    /// Answers are out, uploads go on.
    Within,
    /// All has ended.
    After,
}

/// Uploads [`TIMES`] times to `/early`, some clients side by side.
async fn early_answers(front: FrontEnd, drain: Drain, pause: Duration) {
    // Those that mostly wait can be many, but all have to be served in time.
    let at_once = match pause {
        Duration::ZERO => 10,
        _ if front.is_tls() => 25,
        _ => 50,
    };
    let times = if front == FrontEnd::Serve {
        TIMES
    } else {
        SOMETIMES
    };
    let (mut failed, mut slowest) = (Vec::new(), Duration::ZERO);
    for _ in 0..times / at_once {
        let terminator = far().build();
        let server = start(front, &terminator, app(App::default())).await;
        let clients: Vec<_> = (0..at_once).map(|_| server.connect()).collect();
        for client in &clients {
            client.send("POST /");
        }
        accepted(&terminator, at_once);
        if drain == Drain::Before {
            drop(terminator.terminate());
        }
        let uploads: Vec<JoinHandle<Result<Duration, String>>> = clients
            .into_iter()
            .map(|client| thread::spawn(move || upload(client, drain, pause)))
            .collect();
        if drain == Drain::Within {
            time_passes(PAUSE * 10);
            drop(terminator.terminate());
        }
        for upload in uploads {
            match upload.join().expect("no client panics") {
                Ok(took) => slowest = slowest.max(took),
                Err(what) => failed.push(what),
            }
        }
        let still_there = if drain == Drain::After { 0 } else { at_once };
        if drain == Drain::After {
            gone(&terminator).await;
        }
        ended(server, terminator.terminate(), still_there).await;
    }
    assert!(
        failed.is_empty(),
        "{front:?}, {drain:?}: {} of {times} failed, the slowest of the others took {slowest:?}: {failed:#?}",
        failed.len()
    );
}

/// Pushes the whole upload before it looks at the answer, as many clients do.
fn upload(mut client: RawClient, drain: Drain, pause: Duration) -> Result<Duration, String> {
    let piece = vec![b'x'; PIECE];
    let begun = Instant::now();
    let head = head(UPLOAD);
    client
        .try_send(&head["POST /".len()..])
        .map_err(|error| format!("sending the head: {error}"))?;
    let mut sent = 0;
    while sent < UPLOAD {
        let part = &piece[..PIECE.min(UPLOAD - sent)];
        if let Err(error) = client.try_send(part) {
            let got = answer(&mut client);
            let took = begun.elapsed();
            return Err(format!(
                "{error} after {sent} bytes, {took:?}; then {got:?}"
            ));
        }
        sent += part.len();
        if !pause.is_zero() {
            time_passes(pause);
        }
    }
    let took = begun.elapsed();
    let says_close = answer(&mut client).map_err(|what| format!("{what}, sent in {took:?}"))?;
    if drain == Drain::Before && !says_close {
        return Err("an answer of the drain's that does not say close".to_owned());
    }
    match client.read_to_end() {
        ReadEnd::Eof => Ok(took),
        end => Err(format!("{end:?} after the answer, sent in {took:?}")),
    }
}

/// Reads the early answer, whole; whether it says close.
fn answer(client: &mut RawClient) -> Result<bool, String> {
    match client.try_read_response() {
        Ok(answer) if (answer.status, answer.text()) == (413, "too much") => {
            Ok(answer.says_close())
        }
        Ok(answer) => Err(format!("another answer: {answer:?}")),
        Err(end) => Err(format!("{end:?} instead of an answer")),
    }
}

fn head(length: usize) -> String {
    format!("POST /early HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n")
}

/// Sends until it can't; gives up after twice [`BOUND`]. How much that was, and how long it took.
async fn sends_on(client: RawClient, piece: usize, pause: Duration) -> (usize, Duration) {
    blocking(move || send_on(&client, piece, pause)).await
}

fn send_on(client: &RawClient, piece: usize, pause: Duration) -> (usize, Duration) {
    let piece = vec![b'x'; piece];
    let (begun, mut sent) = (Instant::now(), 0);
    while begun.elapsed() < BOUND * 2 && client.try_send(&piece).is_ok() {
        sent += piece.len();
        time_passes(pause);
    }
    (sent, begun.elapsed())
}

async fn falls_silent(front: FrontEnd, draining: bool) {
    let _measuring = LOAD.read();
    let stall = Duration::from_millis(600);
    let terminator = far().stall_timeout(stall).build();
    let server = start(front, &terminator, app(App::default())).await;
    let mut client = server.connect();
    client.send("POST /");
    accepted(&terminator, 1);
    if draining {
        drop(terminator.terminate());
    }
    client.send(&head(UPLOAD)["POST /".len()..]);
    client.send(vec![b'x'; PIECE]);
    let silent = Instant::now();
    answer(&mut client).unwrap_or_else(|what| panic!("{what}"));
    client.expect_eof();
    if draining {
        ended(server, terminator.terminate(), 1).await;
    } else {
        gone(&terminator).await;
        ended(server, terminator.terminate(), 0).await;
    }
    let took = silent.elapsed();
    assert!(took >= stall, "cut after {took:?}");
    // The silence is looked at once for each stall timeout.
    let stolen = stolen_in_the_last(took);
    assert!(took < stall * 2 + SOON + stolen, "cut after {took:?}");
}

/// One client that sends as fast as it can, one in drips, one that is mostly silent.
async fn do_not_delay(front: FrontEnd, drain: Drain) {
    let busy = LOAD.write();
    let grace = Duration::from_millis(600);
    let terminator = Terminator::builder()
        .grace_period(grace)
        .stall_timeout(BOUND)
        .build();
    let server = start(front, &terminator, app(App::default())).await;
    let clients = [(64 << 10, 0), (100, 20), (1, 1000)]
        .map(|(piece, pause)| (server.connect(), piece, Duration::from_millis(pause)));
    for (client, ..) in &clients {
        client.send("POST /");
    }
    accepted(&terminator, 3);
    let mut termination = None;
    let mut called = Instant::now();
    if drain == Drain::Before {
        termination = Some(terminator.terminate());
    }
    let clients = clients.map(|(mut client, piece, pause)| {
        client.send(&head(usize::MAX >> 1)["POST /".len()..]);
        answer(&mut client).unwrap_or_else(|what| panic!("{what}"));
        thread::spawn(move || send_on(&client, piece, pause))
    });
    if drain == Drain::Within {
        time_passes(PAUSE);
        called = Instant::now();
        termination = Some(terminator.terminate());
    }
    let termination = termination.expect("it was begun before or within");
    let report = within(BOUND, "the end", termination).await;
    promised(&report, grace);
    at_deadline(called, grace, "the end");
    drop(busy); // that the clients notice takes longer, and is measured by nobody
    let [(fast, _), ..] = clients.map(|client| client.join().expect("no client panics"));
    // The fast one may have been cut for the amount before the drain began.
    let before = usize::from(drain == Drain::Within && fast >= STAGED_BYTES);
    assert!(report.connections() + before >= 3, "{fast} bytes: {report}");
    drop(server);
}

/// A deadline that is not to be reached.
fn far() -> TerminatorBuilder {
    Terminator::builder().grace_period(Duration::from_secs(30))
}

/// It has ended without force.
async fn ended(server: Server, termination: http_terminator::Termination, connections: usize) {
    let report: Report = within(BOUND, "the end", termination).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.connections(), connections, "{report}");
    let task = within(BOUND, "end of the server's task", server.task).await;
    task.expect("the server does not panic");
}
