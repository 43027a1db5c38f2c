//! Responses that would never end by themselves, and the example programs, each as a process of its
//! own (G5, G9, G16, G17).

#![cfg(all(unix, feature = "serve", feature = "signal"))]

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::Event;
use axum::routing::get;
use futures_util::stream::{self, Stream, StreamExt};
use http::StatusCode;
use tokio::sync::watch;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

#[cfg(target_os = "linux")]
use crate::support::program::limit_descriptors;
use crate::support::program::signal;
use crate::support::starts::Start;
use crate::support::wait::{time_passes, until};
use crate::support::{
    BOUND, FrontEnd, Gate, RawClient, RawH2, Server, blocking, each, h2_connect, h2_finish, kind,
    start, within,
};
use http_terminator::{Phase, Terminator};

/// What ends by itself ends long before any deadline.
const SOON: Duration = Duration::from_millis(1500);

// ===== server-sent events =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_sse_ends_with_a_last_event_and_the_terminating_chunk() {
    each(FrontEnd::all(), async |front| {
        let it = Setup::new(front).await;
        let mut client = it.server.connect();
        let mut client = blocking(move || {
            client.get("/events");
            let head = client.read_response_headers();
            assert_eq!(head.header("content-type"), Some("text/event-stream"));
            assert!(!head.says_close(), "{head:?}");
            assert_eq!(text(client.read_chunk()), "data: 0\n\n");
            client
        })
        .await;
        it.tick.send_replace(1);
        let ended = it.terminator.terminate();
        blocking(move || {
            let mut events = String::new();
            // `read_chunk` says `None` for the terminating chunk alone: an end of file before it is
            // `Truncated`, and panics.
            while let Some(chunk) = client.read_chunk() {
                events += std::str::from_utf8(&chunk).expect("text");
            }
            assert!(
                events.ends_with("event: goodbye\ndata: restarting\n\n"),
                "{front:?}: {events:?}"
            );
            client.expect_eof();
        })
        .await;
        let report = within(SOON, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(report.connections(), 1, "{front:?}: {report}");
        assert_eq!(report.closed_by_peer, 0, "{front:?}: {report}");
    });
}

/// The response head is still with the handler when the drain begins: it says close, and the stream,
/// which asks late, ends all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_g17_sse_that_begins_in_the_drain_says_close_and_ends() {
    each(FrontEnd::all(), async |front| {
        let it = Setup::new(front).await;
        let mut client = it.server.connect();
        client.get("/gated-events");
        it.gate.wait_entered_async(1).await;
        let ended = it.terminator.terminate();
        it.terminator.reached(Phase::Draining).await;
        it.gate.open();
        blocking(move || {
            let response = client.read_response();
            assert!(response.says_close(), "{front:?}: {response:?}");
            assert_eq!(
                response.text(),
                "event: goodbye\ndata: restarting\n\n",
                "{front:?}"
            );
            client.expect_eof();
        })
        .await;
        let report = within(SOON, "the end", ended).await;
        assert_eq!(report.finished, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_g17_sse_over_http2_ends_with_a_last_event_and_end_stream() {
    each(FrontEnd::all(), async |front| {
        let it = Setup::new(front).await;
        let terminator = it.terminator.clone();
        let mut client = RawH2::connect(&it.server.target);
        blocking(move || {
            client.read_until(kind::SETTINGS);
            client.ack_settings();
            client.get("/events", 1);
            assert_eq!(client.read_until(kind::DATA).payload, b"data: 0\n\n");
            drop(terminator.terminate());
            let (mut events, mut ended, mut told) = (Vec::new(), false, false);
            // The stream may end before the connection is told, or after.
            while let Ok(frame) = client.try_read_frame() {
                match frame.kind {
                    kind::GOAWAY => told = true,
                    kind::PING if !frame.is_ack() => client.ack_ping(&frame),
                    kind::DATA => events.extend(&frame.payload),
                    kind::RST_STREAM => panic!("{front:?}: {frame:?}"),
                    _ => {}
                }
                ended |= frame.is_end_stream();
            }
            let events = String::from_utf8(events).expect("text");
            assert_eq!(events, "event: goodbye\ndata: restarting\n\n", "{front:?}");
            assert!(
                ended && told,
                "{front:?}: END_STREAM {ended}, GOAWAY {told}"
            );
        })
        .await;
        let report = within(SOON, "the end", it.terminator.terminate()).await;
        assert_eq!(
            (report.finished, report.connections()),
            (1, 1),
            "{front:?}: {report}"
        );
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// A lame duck goes on serving: streams end when the drain begins, not before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_sse_goes_on_through_the_lame_duck() {
    let it = Setup::with(
        FrontEnd::Serve,
        Terminator::builder()
            .grace_period(Duration::from_secs(30))
            .lame_duck(Duration::from_millis(600))
            .build(),
    )
    .await;
    let mut client = it.server.connect();
    let mut client = blocking(move || {
        client.get("/events");
        client.read_response_headers();
        assert_eq!(text(client.read_chunk()), "data: 0\n\n");
        client
    })
    .await;
    let ended = it.terminator.terminate();
    it.terminator.reached(Phase::LameDuck).await;
    it.tick.send_replace(1);
    let mut client = blocking(move || {
        assert_eq!(text(client.read_chunk()), "data: 1\n\n");
        client
    })
    .await;
    assert_eq!(it.terminator.phase(), Phase::LameDuck, "a loaded machine");
    blocking(move || {
        assert_eq!(
            text(client.read_chunk()),
            "event: goodbye\ndata: restarting\n\n"
        );
        assert_eq!(client.read_chunk(), None);
        client.expect_eof();
    })
    .await;
    let report = within(SOON, "the end", ended).await;
    assert!(report.is_clean(), "{report}");
    assert!(report.lame_duck >= Duration::from_millis(599), "{report}");
}

// ===== long polls =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_g17_a_long_poll_answers_early_with_close() {
    each(FrontEnd::all(), async |front| {
        let it = Setup::new(front).await;
        let mut clients: Vec<_> = (0..3).map(|_| it.server.connect()).collect();
        for client in &clients {
            client.get("/poll");
        }
        it.gate.wait_entered_async(3).await;
        let ended = it.terminator.terminate();
        blocking(move || {
            for client in &mut clients {
                let response = client.read_response();
                assert_eq!(response.status, 204, "{front:?}: {response:?}");
                assert!(response.says_close(), "{front:?}: {response:?}");
                client.expect_eof();
            }
        })
        .await;
        let report = within(SOON, "the end", ended).await;
        assert_eq!(
            (report.finished, report.connections()),
            (3, 3),
            "{front:?}: {report}"
        );
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_g17_a_long_poll_over_http2_answers_early() {
    each(FrontEnd::all(), async |front| {
        let it = Setup::new(front).await;
        let mut client = h2_connect(&it.server.target).await;
        let response = client.start("/poll").await;
        it.gate.wait_entered_async(1).await;
        let ended = it.terminator.terminate();
        let (status, body) = within(SOON, "an answer", h2_finish(response))
            .await
            .unwrap_or_else(|e| panic!("{front:?}: {e}"));
        assert_eq!(
            (status, &body[..]),
            (StatusCode::NO_CONTENT, &b""[..]),
            "{front:?}"
        );
        if let Err(error) = client.closed().await {
            // The client may learn of the end in the middle of its own goodbye.
            assert!(error.is_io(), "{front:?}: {error}");
        }
        let report = within(SOON, "the end", ended).await;
        assert_eq!(report.finished, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// What comes in the drain finds the token cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_long_poll_that_comes_in_the_drain_is_answered_at_once() {
    let it = Setup::new(FrontEnd::Serve).await;
    let mut client = it.server.connect();
    // Half a head, which is to be completed (G4).
    let mut client = blocking(move || {
        client.get("/news");
        assert_eq!(client.read_response().text(), "news");
        client.send("GET /poll HTTP/1.1\r\nhost: a");
        client
    })
    .await;
    let ended = it.terminator.terminate();
    it.terminator.reached(Phase::Draining).await;
    blocking(move || {
        client.send("\r\n\r\n");
        let response = client.read_response();
        assert_eq!(response.status, 204, "{response:?}");
        assert!(response.says_close(), "{response:?}");
        client.expect_eof();
    })
    .await;
    let report = within(SOON, "the end", ended).await;
    assert!(report.is_clean(), "{report}");
}

// ===== the example programs =====

/// Twelve clients, each with an end as it should be.
#[test]
fn g18_example_demo() {
    let mut example = Example::run("demo", &[]);
    let lines = example.ends();
    let report = "http-terminator: terminated by force in 3";
    let report = lines.iter().find(|line| line.starts_with(report));
    assert!(
        report.is_some_and(|it| it.contains(": 12 connections")),
        "{lines:#?}"
    );
    let ends = |mark: &str| lines.iter().filter(|line| line.contains(mark)).count();
    assert_eq!(
        (ends(" \u{2713} "), ends(" ! "), ends(" \u{2717} ")),
        (10, 2, 0),
        "{lines:#?}"
    );
}

#[test]
fn g16_g17_example_sse() {
    let mut example = Example::run("sse", &["127.0.0.1:0"]);
    let addr = example.listens("listening on ");
    let mut events = RawClient::connect(addr);
    events.get("/events");
    events.read_response_headers();
    assert_eq!(text(events.read_chunk()), "data: 0\n\n");
    let mut poll = RawClient::connect(addr);
    poll.get("/poll");
    example.signal("TERM");
    let response = poll.read_response();
    assert_eq!(response.status, 204, "{response:?}");
    assert!(response.says_close(), "{response:?}");
    poll.expect_eof();
    let rest = events.read_body();
    assert!(
        rest.ends_with(b"event: goodbye\ndata: restarting\n\n"),
        "{:?}",
        String::from_utf8_lossy(&rest)
    );
    events.expect_eof();
    assert_clean(&example.ends(), "terminated cleanly", 2);
}

#[tokio::test]
async fn g13_g17_example_chat() {
    let mut example = Example::run("chat", &["127.0.0.1:0"]);
    let addr = example.listens("listening on ");
    let mut clients = Vec::new();
    for _ in 0..2 {
        let io = tokio::net::TcpStream::connect(addr)
            .await
            .expect("connects");
        let handshake = client_async(format!("ws://{addr}/chat"), io);
        let (mut client, _) = within(BOUND, "a handshake", handshake)
            .await
            .expect("a WebSocket");
        // Once it hears itself, it hears everybody.
        futures_util::SinkExt::send(&mut client, Message::text("here"))
            .await
            .expect("sends");
        let heard = within(BOUND, "itself", client.next()).await;
        assert!(
            matches!(&heard, Some(Ok(Message::Text(text))) if text.as_str() == "here"),
            "{heard:?}"
        );
        clients.push(client);
    }
    example.signal("INT");
    for client in &mut clients {
        let mut goodbye = None;
        while let Some(word) = within(BOUND, "a goodbye", client.next()).await {
            match word.expect("a clean end") {
                Message::Close(frame) => goodbye = frame,
                Message::Text(text) => assert_eq!(text.as_str(), "here"),
                other => panic!("{other:?}"),
            }
        }
        let goodbye = goodbye.expect("a goodbye");
        assert_eq!(u16::from(goodbye.code), 1012, "{goodbye:?}");
    }
    let out = blocking(move || example.ends()).await;
    assert_clean(&out, "terminated cleanly", 2);
    assert!(out[0].contains("2 upgraded"), "{out:?}");
}

/// One that reads too slowly misses what was said meanwhile; it heard nothing of what came after, either.
#[tokio::test]
async fn example_chat_goes_on_with_who_has_fallen_behind() {
    use futures_util::SinkExt;
    const MESSAGES: usize = 160;
    let example = Example::run("chat", &["127.0.0.1:0"]);
    let addr = example.listens("listening on ");
    let join = async |buffer: Option<u32>| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        if let Some(buffer) = buffer {
            socket.set_recv_buffer_size(buffer).expect("it can be set");
        }
        let io = socket.connect(addr).await.expect("connects");
        let handshake = client_async(format!("ws://{addr}/chat"), io);
        let (mut client, _) = handshake.await.expect("a WebSocket");
        // Once it hears itself, it hears everybody.
        client.send(Message::text("here")).await.expect("sends");
        while client.next().await.expect("open").expect("a message") != Message::text("here") {}
        client
    };
    let talk = async {
        let (mut slow, mut speaker) = (join(Some(4096)).await, join(None).await);
        // More than the channel and the kernel's buffer on the way take.
        let long = Message::text("a".repeat(64 << 10));
        for _ in 0..MESSAGES {
            speaker.send(long.clone()).await.expect("sends");
            while speaker.next().await.expect("open").expect("a message") != long {}
        }
        let mut heard = 0;
        let last = Message::text("the last word");
        let read = async {
            while slow.next().await.expect("open").expect("a message") != last {
                heard += 1;
            }
        };
        let say = async {
            loop {
                // Until it is heard: it may be missed as well.
                speaker.send(last.clone()).await.expect("sends");
                while speaker.next().await.expect("open").expect("a message") != last {}
            }
        };
        tokio::select! {
            () = read => {}
            () = say => {}
        }
        assert!(heard < MESSAGES, "it has missed nothing");
    };
    within(BOUND, "the last word", talk).await;
}

#[test]
fn g16_example_order() {
    let mut example = Example::run("order", &["127.0.0.1:0", "127.0.0.1:0"]);
    let line = example.line();
    let (traffic, health) = line
        .strip_prefix("traffic on ")
        .and_then(|line| line.split_once(", health on "))
        .unwrap_or_else(|| panic!("{line:?}"));
    let traffic: SocketAddr = traffic.parse().expect("an address");
    let health: SocketAddr = health.trim().parse().expect("an address");
    let mut client = RawClient::connect(traffic);
    let response = client.fetch("/");
    assert_eq!(response.text(), "hello\n");
    assert!(!response.says_close(), "{response:?}");
    let mut probe = RawClient::connect(health);
    assert_eq!(probe.fetch("/ready").status, 200);
    example.signal("TERM");
    // The signal takes its time to arrive.
    until("not ready", || probe.fetch("/ready").status == 503);
    // A lame duck serves, on old connections and new ones, and says close.
    let response = client.fetch("/");
    assert_eq!(response.text(), "hello\n");
    assert!(response.says_close(), "{response:?}");
    client.expect_eof();
    let mut late = RawClient::connect(traffic);
    assert_eq!(late.fetch("/").text(), "hello\n");
    let stats = probe.fetch("/stats");
    assert!(stats.text().starts_with("lame duck: "), "{stats:?}");
    // Health outlives traffic.
    let last = example.line();
    assert!(last.starts_with("traffic: terminated cleanly"), "{last:?}");
    probe.expect_eof();
    let out = example.ends();
    assert_clean(&out, "health: terminated cleanly", 1);
}

#[test]
fn g16_g17_example_axum() {
    let mut example = Example::run("axum", &["127.0.0.1:0"]);
    let addr = example.listens("listening on ");
    let mut client = RawClient::connect(addr);
    assert_eq!(client.fetch("/").text(), "hello\n");
    let mut stream = RawClient::connect(addr);
    stream.get("/stream");
    stream.read_response_headers();
    assert_eq!(text(stream.read_chunk()), "line 0\n");
    let mut slow = RawClient::connect(addr);
    slow.get("/slow");
    example.signal("INT");
    let response = slow.read_response();
    assert_eq!(response.text(), "that took three seconds\n");
    assert!(response.says_close(), "{response:?}");
    slow.expect_eof();
    client.expect_eof();
    stream.read_body();
    stream.expect_eof();
    assert_clean(&example.ends(), "terminated cleanly", 3);
}

/// The second signal ends it at once.
#[test]
fn g12_example_axum_is_forced_by_a_second_signal() {
    let mut example = Example::run("axum", &["127.0.0.1:0"]);
    let addr = example.listens("listening on ");
    let mut stream = RawClient::connect(addr);
    stream.get("/stream");
    stream.read_response_headers();
    let mut slow = RawClient::connect(addr);
    slow.get("/slow");
    example.signal("TERM");
    // It has arrived when the stream has ended; two within a second are one.
    stream.read_body();
    stream.expect_eof();
    time_passes(Duration::from_millis(1_100));
    example.signal("INT");
    let response = slow.read_response();
    assert_eq!(response.status, 503, "{response:?}");
    slow.expect_eof();
    let out = example.ends();
    assert!(out[0].starts_with("terminated by force"), "{out:?}");
    assert!(out.iter().any(|line| line.contains("GET /slow")), "{out:?}");
}

#[test]
fn g16_example_hyper() {
    let mut example = Example::run("hyper", &["127.0.0.1:0"]);
    let addr = example.listens("listening on ");
    let mut idle = RawClient::connect(addr);
    assert_eq!(idle.fetch("/a").text(), "hello, you asked for /a\n");
    let mut client = RawClient::connect(addr);
    client.get("/b");
    example.signal("TERM");
    idle.expect_eof();
    let response = client.read_response();
    assert_eq!(response.text(), "hello, you asked for /b\n");
    assert!(response.says_close(), "{response:?}");
    client.expect_eof();
    assert_clean(&example.ends(), "terminated cleanly", 2);
}

#[test]
fn g16_example_migrate() {
    let mut example = Example::run("migrate", &["127.0.0.1:0"]);
    let addr = example.listens("listening on ");
    // Its Ctrl-C handler is in place once it has accepted, not when it says that it listens.
    let mut client = RawClient::connect(addr);
    assert_eq!(client.fetch("/").text(), "hello\n");
    let mut idle = RawClient::connect(addr);
    assert_eq!(idle.fetch("/").text(), "hello\n");
    client.get("/");
    example.signal("INT");
    let response = client.read_response();
    assert_eq!(response.text(), "hello\n");
    client.expect_eof();
    idle.expect_eof();
    assert_clean(&example.ends(), "terminated cleanly", 2);
}

/// One failed accept made it deaf for ever, though descriptors came free.
#[cfg(target_os = "linux")]
#[test]
fn example_migrate_accepts_when_there_are_descriptors_again() {
    let mut example = Example::run_with("migrate", &["127.0.0.1:0"], Stdio::piped());
    let addr = example.listens("listening on ");
    let mut client = RawClient::connect(addr);
    assert_eq!(client.fetch("/").text(), "hello\n");
    if !limit_descriptors(example.child.id(), 1) {
        return;
    }
    let mut queued = RawClient::connect(addr);
    queued.get("/");
    let said = lines(example.child.stderr.take().expect("piped"));
    let said = said.recv_timeout(BOUND).expect("it says so");
    assert!(said.contains("Too many open files"), "{said}");
    limit_descriptors(example.child.id(), 1024);
    assert_eq!(queued.read_response().text(), "hello\n");
    // It stays: whether it has seen one leave as the signal comes is the kernel's to say.
    let mut behind = RawClient::connect(addr);
    assert_eq!(behind.fetch("/").text(), "hello\n");
    example.signal("INT");
    assert_clean(&example.ends(), "terminated cleanly", 3);
}

/// It ends by itself, and with another code if a request failed.
#[test]
fn g16_g21_example_rotate() {
    let mut example = Example::run("rotate", &["0.2"]);
    let line = example.line();
    assert!(line.ends_with("lives for 200ms"), "{line:?}");
    let out = example.ends();
    let [.., report, last] = &out[..] else {
        panic!("{out:?}");
    };
    assert!(report.starts_with("terminated cleanly"), "{out:?}");
    assert!(last.ends_with(" 0 failed"), "{out:?}");
    // Each of them at least a second time.
    let words: Vec<_> = last.split_whitespace().collect();
    let connections = words.iter().zip(&words[1..]);
    let connections = connections
        .filter(|(_, word)| **word == "connections,")
        .find_map(|(n, _)| n.parse::<usize>().ok());
    assert!(connections >= Some(4), "{out:?}");
}

// ===== what they share =====

struct Setup {
    terminator: Terminator,
    server: Server,
    gate: Gate,
    /// How many events `/events` has sent after the first.
    tick: watch::Sender<u32>,
}

#[derive(Clone)]
struct Shared {
    terminator: Terminator,
    gate: Gate,
    tick: watch::Receiver<u32>,
}

impl Setup {
    async fn new(front: FrontEnd) -> Self {
        let terminator = Terminator::builder()
            .grace_period(Duration::from_secs(30))
            .build();
        Self::with(front, terminator).await
    }

    async fn with(front: FrontEnd, terminator: Terminator) -> Self {
        let gate = Gate::new();
        let (tick, ticks) = watch::channel(0);
        let router = Router::new()
            .route("/events", get(events))
            .route("/gated-events", get(gated_events))
            .route("/poll", get(poll))
            .route("/news", get(async || "news"))
            .with_state(Shared {
                terminator: terminator.clone(),
                gate: gate.clone(),
                tick: ticks,
            });
        let server = start(front, &terminator, router).await;
        Self {
            terminator,
            server,
            gate,
            tick,
        }
    }
}

type Events = Sse<std::pin::Pin<Box<dyn Stream<Item = Result<Event, Infallible>> + Send>>>;

/// An event at once, one for each tick, and a goodbye.
async fn events(State(shared): State<Shared>) -> Events {
    let ticks = stream::unfold((shared.tick, 0), async |(mut tick, n)| {
        tick.wait_for(|now| *now >= n).await.ok()?;
        Some((Event::default().data(n.to_string()), (tick, n + 1)))
    });
    let goodbye = stream::iter([Event::default().event("goodbye").data("restarting")]);
    let events = ticks
        .take_until(shared.terminator.draining())
        .chain(goodbye)
        .map(Ok);
    Sse::new(Box::pin(events))
}

async fn gated_events(State(shared): State<Shared>) -> Events {
    shared.gate.enter().await;
    events(State(shared)).await
}

/// The gate stays closed: it counts, and stands for news that never come.
async fn poll(State(shared): State<Shared>) -> StatusCode {
    let news = shared.gate.enter();
    let token = shared.terminator.cancellation_token();
    match token.run_until_cancelled(news).await {
        Some(()) => StatusCode::OK,
        None => StatusCode::NO_CONTENT,
    }
}

#[track_caller]
fn text(chunk: Option<bytes::Bytes>) -> String {
    let chunk = chunk.expect("one more chunk");
    String::from_utf8(chunk.to_vec()).expect("text")
}

/// The last line of all, and how many connections it says there were.
#[track_caller]
fn assert_clean(out: &[String], beginning: &str, connections: usize) {
    let [line] = out else {
        panic!("one line more was expected: {out:?}");
    };
    assert!(line.starts_with(beginning), "{line:?}");
    assert!(
        line.contains(&format!(": {connections} connection")),
        "{line:?}"
    );
}

/// One of `examples/`, as a process. What it prints comes line by line.
struct Example {
    child: Child,
    out: mpsc::Receiver<String>,
    name: &'static str,
}

impl Example {
    #[track_caller]
    fn run(name: &'static str, args: &[&str]) -> Self {
        Self::run_with(name, args, Stdio::inherit())
    }

    #[track_caller]
    fn run_with(name: &'static str, args: &[&str], stderr: Stdio) -> Self {
        let path = built(name);
        let child = Command::new(&path)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .start();
        let mut child = child.unwrap_or_else(|e| {
            panic!(
                "{}: {e} (`cargo test` builds examples, `--test` alone does not)",
                path.display()
            )
        });
        let out = lines(child.stdout.take().expect("piped"));
        Self { child, out, name }
    }

    #[track_caller]
    fn line(&self) -> String {
        match self.out.recv_timeout(BOUND) {
            Ok(line) => line,
            Err(e) => panic!("{} prints nothing: {e}", self.name),
        }
    }

    #[track_caller]
    fn listens(&self, prefix: &str) -> SocketAddr {
        let line = self.line();
        let addr = line.strip_prefix(prefix).map(str::parse);
        addr.unwrap_or_else(|| panic!("{}: {line:?}", self.name))
            .expect("an address")
    }

    #[track_caller]
    fn signal(&self, name: &str) {
        assert!(signal(self.child.id(), name), "{}", self.name);
    }

    /// Waits until it has exited with 0; what it printed since it was last asked.
    #[track_caller]
    fn ends(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        loop {
            match self.out.recv_timeout(BOUND) {
                Ok(line) => out.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("{} does not end; it printed {out:?}", self.name)
                }
            }
        }
        // Its output has ended: so has it, or is about to.
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "{}: {status}, {out:?}", self.name);
        out
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended by itself, unless the test has failed
        let _ = self.child.wait();
    }
}

/// `target/debug/examples/{name}`, for a test in `target/debug/deps/`.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("in target/debug/deps");
    profile.join("examples").join(name)
}

fn lines(out: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut out = BufReader::new(out.take(1 << 20));
        let mut line = String::new();
        while out.read_line(&mut line).is_ok_and(|n| n > 0) {
            if tell.send(line.trim_end().to_owned()).is_err() {
                return; // the test has failed
            }
            line.clear();
        }
    });
    told
}
