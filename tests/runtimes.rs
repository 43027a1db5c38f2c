//! Runtimes that are not the one `serve` was called on, that are stalled, not run any more, or gone;
//! and a process that has no thread left (G11, G16, G19).
#![cfg(all(target_os = "linux", feature = "serve"))]
#![allow(
    unreachable_pub,
    reason = "the support library is a module of every test run"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests read the clock and spawn clients"
)]

mod support;

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use axum::Router;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;
use tracing::Level;
use tracing_subscriber::layer::SubscriberExt;

use http_terminator::{HttpBuilder, Terminator, TrackedIo};
use support::log::Log;
use support::outside::{
    FAR, Host, SOON, alone, at_deadline, block_on, descriptors, ended, is_alone, measured,
};
use support::wait::{time_passes, time_passes_async, until, until_stats_async};
use support::{
    ABANDONED, App, BOUND, FrontEnd, Gate, RawClient, RawH2, Target, app, blocking, bound, kind,
    load, start,
};

const GRACE: Duration = Duration::from_millis(300);

/// How long workers are blocked: past the moment when a listener that nobody polls in a healthy
/// runtime is closed from outside.
const BLOCKED: Duration = ABANDONED.saturating_add(Duration::from_millis(250));

// ===== looks from outside =====

/// Nobody but its handler knows what passes there: the driver does not look at what can't be idle, as that takes a reset.
#[test]
fn g10_the_reset_of_what_is_only_tracked_is_not_taken_for_its_end() {
    let host = Host::current_thread();
    let (listener, addr) = bound(host.handle());
    let terminator = Terminator::builder().grace_period(FAR).build();
    let client = thread::spawn({
        let terminator = terminator.clone();
        move || {
            let client = RawClient::connect(addr);
            client.send("half");
            until("it is accepted", || terminator.stats().accepted == 1);
            time_passes(Duration::from_millis(50));
            drop(terminator.terminate());
            let socket = client.into_inner();
            let resets = socket.set_linger(Some(Duration::ZERO));
            resets.expect("an option of sockets");
        }
    });
    let rest = host.block_on(async {
        let mut listener = terminator.listen(listener);
        let (mut io, _) = listener.accept().await.expect("serving");
        tokio::io::AsyncReadExt::read_exact(&mut io, &mut [0; 4])
            .await
            .expect("what was sent");
        // Time is the subject: so long that it is closed from outside, were it idle.
        thread::sleep(BLOCKED);
        tokio::io::AsyncReadExt::read(&mut io, &mut [0; 4]).await
    });
    client.join().expect("no panic");
    let rest = rest.map_err(|e| e.kind());
    assert_eq!(rest, Err(io::ErrorKind::ConnectionReset));
}

/// In a release build tokio takes them as they are. Whoever looked at one waited for its client, and held its lock.
#[test]
fn g11_sockets_in_blocking_mode_hold_no_deadline() {
    let host = Host::current_thread();
    let (listener, addr) = bound(host.handle());
    // Longer than it takes until a late runtime's connections are looked at from outside.
    let terminator = Terminator::builder().grace_period(SOON).build();
    let of_server = terminator.clone();
    let server = thread::spawn(move || {
        host.block_on(async {
            let mut listener = of_server.listen(listener);
            let builder = HttpBuilder::default();
            while let Some((io, _)) = listener.accept().await {
                let blocks = io.with(|tcp| socket2::SockRef::from(tcp).set_nonblocking(false));
                blocks.expect("it is open").expect("it can be");
                let service = http_terminator::TowerToHyper::new(app(App::default()));
                tokio::spawn(io.connection().serve(&builder, io, service));
            }
            of_server.terminated().await;
        });
    });
    let mut clients: Vec<_> = (0..3).map(|_| RawClient::connect(addr)).collect();
    for client in &mut clients {
        assert_eq!(client.fetch("/quick").status, 200);
    }
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", terminator.terminate());
    measured(begin.elapsed(), SOON, "the end");
    assert_eq!((report.idle, report.connections()), (3, 3), "{report}");
    drop(clients);
    server.join().expect("no panic");
}

// ===== runtimes that are late, but run =====

/// A runtime of one thread looks at tasks from outside once in 31 polls, of which each takes 15 ms here; so the driver takes
/// it for late, while its connections are polled. An answer that began before the drain, and so promised more, ends in it:
/// the driver saw an idle connection, and closed it at its next tick, 20 ms later at most.
#[test]
fn g6_requests_within_settle_are_answered_by_a_slow_runtime() {
    const CLIENTS: usize = 12;
    let terminator = Terminator::builder()
        .grace_period(FAR)
        .settle(Duration::from_millis(400))
        .build();
    let host = Host::current_thread();
    let (listener, addr) = bound(host.handle());
    let gates: Vec<_> = (0..CLIENTS).map(|_| Gate::new()).collect();
    let mut apps = Router::new();
    for (n, gate) in gates.iter().enumerate() {
        let app = app(App {
            gate: gate.clone(),
            ..App::default()
        });
        apps = apps.nest(&format!("/{n}"), app);
    }
    let (over, ends) = oneshot::channel::<()>();
    let server = terminator.serve(listener, apps);
    let (busy, begins) = oneshot::channel::<()>();
    let runs = thread::spawn(move || {
        host.block_on(async move {
            tokio::spawn(server);
            begins.await.expect("the test goes on");
            for _ in 0..40 {
                tokio::spawn(async {
                    loop {
                        thread::sleep(Duration::from_millis(15));
                        tokio::task::yield_now().await;
                    }
                });
            }
            ends.await
        })
    });
    let clients = gates.iter().enumerate().map(|(n, gate)| {
        let mut client = RawClient::connect(addr);
        client.get(&format!("/{n}/stream"));
        client.read_response_headers();
        assert_eq!(client.read_chunk().as_deref(), Some(&b"first\n"[..]));
        gate.wait_entered(1);
        thread::spawn(move || {
            while client.read_chunk().is_some() {}
            time_passes(Duration::from_millis(50));
            client.get(&format!("/{n}/quick"));
            answered(client)
        })
    });
    let clients: Vec<_> = clients.collect();
    busy.send(()).expect("it serves");
    let ended = terminator.terminate();
    for gate in &gates {
        time_passes(Duration::from_millis(60));
        gate.open();
    }
    let answers = clients
        .into_iter()
        .filter_map(|it| it.join().expect("no panic"));
    assert_eq!(answers.count(), CLIENTS);
    let report = block_on(BOUND, "the end", ended);
    assert!(report.is_clean(), "{report}");
    drop(over);
    drop(runs.join());
}

/// What is tracked, and no more, is waited for: also where the client has nothing to say. Nobody has read a byte from it, by
/// which it was taken for a connection that was never used, and closed as idle in the middle of what it wrote, once any
/// runtime was late.
#[test]
fn what_a_server_says_first_is_not_cut_by_a_late_runtime() {
    for own in [true, false] {
        let (host, other) = (Host::workers(1), Host::workers(1));
        let terminator = Terminator::builder().grace_period(FAR).build();
        let (listener, addr) = bound(host.handle());
        let (idle, idle_addr) = bound(other.handle());
        drop(other.spawn(terminator.serve(idle, app(App::default()))));
        let mut listener = terminator.listen(listener);
        let gate = Gate::new();
        let inside = gate.clone();
        drop(host.spawn(async move {
            let (mut io, _) = listener.accept().await.expect("one comes");
            drop(listener);
            for n in 0..50 {
                io.write_all(b"line\n").await.expect("it is open");
                if n == 5 {
                    inside.enter().await;
                }
                time_passes_async(Duration::from_millis(20)).await;
            }
            io.write_all(b"the end\n").await.expect("it is open");
        }));
        let mut client = RawClient::connect(addr);
        assert_eq!(client.read_exact(30), b"line\n".repeat(6));
        // So that its runtime is known.
        let mut used = RawClient::connect(idle_addr);
        assert_eq!(used.fetch("/quick").status, 200);
        gate.wait_entered(1);
        let ended = terminator.terminate();
        let blocked = if own { &host } else { &other };
        block_workers(blocked, 1, BLOCKED);
        gate.open();
        assert_eq!(
            client.read_exact(228),
            [&b"line\n".repeat(44)[..], b"the end\n"].concat()
        );
        let report = block_on(BOUND, "the end", ended);
        assert_eq!((report.connections(), report.idle), (2, 1), "{report}");
    }
}

/// The driver closed an HTTP/2 connection whose task had read the acknowledgment of our PING, and was about to write the
/// last GOAWAY: idle it was, and its runtime late. Over TLS that end looked like a cut.
#[test]
fn g9_the_last_goaway_is_written_by_who_is_about_to() {
    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(FAR).build();
    let (listener, addr) = bound(host.handle());
    let mut listener = terminator.listen(listener);
    let (tell, told) = mpsc::channel();
    drop(host.spawn(async move {
        while let Some((io, _)) = listener.accept().await {
            let connection = io.connection();
            let io = Slow {
                io,
                tell: Some(tell.clone()),
            };
            let builder = auto::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(app(App::default()));
            tokio::spawn(connection.serve(&builder, io, service));
        }
    }));
    let mut client = RawH2::connect(addr);
    client.ack_settings();
    client.get("/quick", 1);
    while !client.read_frame().is_end_stream() {}
    let ended = terminator.terminate();
    let ping = client.read_until(kind::PING);
    client.ack_ping(&ping);
    told.recv_timeout(BOUND).expect("it has read that");
    let last = client.read_until(kind::GOAWAY);
    assert_eq!(last.goaway().0, 1);
    let report = block_on(BOUND, "the end", ended);
    assert!(report.is_clean(), "{report}");
}

/// On one worker, whose deadline is far.
fn idle_http2() -> (Host, Terminator, RawH2) {
    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(FAR).build();
    let (listener, addr) = bound(host.handle());
    drop(host.spawn(terminator.serve(listener, app(App::default()))));
    let mut client = RawH2::connect(addr);
    client.ack_settings();
    client.get("/quick", 1);
    while !client.read_frame().is_end_stream() {}
    (host, terminator, client)
}

/// The same, before its peer has acknowledged: it was told to go away, but not its last stream, when its runtime was late for a
/// moment. What the client sends behind the first GOAWAY is to be answered, or refused by the last; by neither it can't tell.
#[test]
fn g9_who_was_told_once_is_told_its_last_stream_by_a_late_runtime() {
    let (host, terminator, mut client) = idle_http2();
    let ended = terminator.terminate();
    let ping = client.read_until(kind::PING);
    block_workers(&host, 1, Duration::from_millis(450));
    time_passes(Duration::from_millis(500));
    client.ack_ping(&ping);
    assert_eq!(client.read_until(kind::GOAWAY).goaway().0, 1);
    let report = block_on(BOUND, "the end", ended);
    assert!(report.is_clean() && report.stalled == 0, "{report}");
}

/// The same, before it has been told at all: what it asks for then is answered, or a GOAWAY says that it is not.
#[test]
fn g9_who_was_told_nothing_is_not_closed_by_a_late_runtime() {
    let (host, terminator, mut client) = idle_http2();
    block_workers(&host, 1, Duration::from_millis(450));
    let ended = terminator.terminate();
    time_passes(Duration::from_millis(400));
    client.get("/quick", 3);
    let (mut answered, mut told) = (false, u32::MAX);
    while !answered && told >= 3 {
        let frame = client.read_frame();
        answered |= frame.is_end_stream();
        match frame.kind {
            kind::GOAWAY => told = frame.goaway().0,
            kind::PING => client.ack_ping(&frame),
            _ => {}
        }
    }
    while client.try_read_frame().is_ok() {}
    let report = block_on(BOUND, "the end", ended);
    assert!(report.is_clean(), "{report}");
}

/// Blocks once there is nothing more to read behind the acknowledgment of a PING.
struct Slow<Io> {
    io: Io,
    tell: Option<mpsc::Sender<()>>,
}

impl<Io: AsyncRead + Unpin> AsyncRead for Slow<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        const PONG: [u8; 5] = [0, 0, 8, 6, 1];
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let new = &buf.filled()[before..];
        let is_there = new.windows(PONG.len()).any(|it| it == PONG);
        if let Some(tell) = self.tell.take_if(|_| is_there) {
            // What it looks at next: there is nothing.
            let mut rest = [0];
            let rest = Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut rest));
            assert!(rest.is_pending());
            tell.send(()).expect("the test waits for it");
            // Late, but not for so long that it would be taken for stuck.
            thread::sleep(Duration::from_millis(350));
        }
        polled
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Slow<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

// ===== what has come in while nobody ran the runtime =====

/// A runtime of one thread, which a request to `/sleeps` blocks for so long.
struct OneThread {
    addr: SocketAddr,
    /// Tells that it sleeps.
    sleeps: mpsc::Receiver<()>,
    terminator: Terminator,
}

impl OneThread {
    const SLEEPS: Duration = Duration::from_millis(800);
    const STALL: Duration = Duration::from_millis(400);
    const SETTLE: Duration = Duration::from_millis(200);

    fn start() -> Self {
        let terminator = Terminator::builder()
            .grace_period(FAR)
            .stall_timeout(Self::STALL)
            .settle(Self::SETTLE)
            .build();
        let ((to, from), (tell, sleeps)) = (mpsc::channel(), mpsc::channel());
        let serves = terminator.clone();
        thread::spawn(move || {
            let host = Host::current_thread();
            host.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                to.send(listener.local_addr().expect("bound"))
                    .expect("asked for");
                let sleeps = async move || {
                    let _ = tell.send(());
                    thread::sleep(Self::SLEEPS);
                    "slept"
                };
                let app = app(App::default()).route("/sleeps", axum::routing::get(sleeps));
                serves.serve(listener, app).await
            })
        });
        let addr = from.recv_timeout(BOUND).expect("it serves");
        Self {
            addr,
            sleeps,
            terminator,
        }
    }

    /// Connections of which this much has been read.
    fn has_read(&self, busy: usize) {
        until("it was read", || self.terminator.stats().busy == busy);
    }

    fn falls_asleep(&self) {
        self.sleeps.recv_timeout(BOUND).expect("its handler runs");
    }

    fn ends_well(&self, connections: usize) {
        let report = block_on(BOUND, "the end", self.terminator.terminated());
        assert_eq!(
            (report.stalled, report.connections()),
            (0, connections),
            "{report}"
        );
    }
}

#[test]
fn g4_the_rest_of_a_head_that_came_while_the_runtime_was_blocked_is_read() {
    let it = OneThread::start();
    let (mut half, mut sleeps) = (RawClient::connect(it.addr), RawClient::connect(it.addr));
    half.send("GET /quick HTTP/1.1\r\nho");
    it.has_read(1);
    sleeps.get("/sleeps");
    it.falls_asleep();
    drop(it.terminator.terminate());
    half.send("st: a\r\n\r\n");
    assert_eq!(half.read_response().text(), "ok");
    assert_eq!(sleeps.read_response().text(), "slept");
    it.ends_well(2);
}

/// The acknowledgment of our PING, and a request behind it.
#[test]
fn g9_a_request_that_came_while_the_runtime_was_blocked_is_answered() {
    // Before it fell asleep, so that the acknowledgment is held when that ends, or after.
    for before in [true, false] {
        let it = OneThread::start();
        let (mut client, mut sleeps) = (RawH2::connect(it.addr), RawClient::connect(it.addr));
        client.ack_settings();
        sleeps.send("GET /sleeps HTTP/1.1\r\nho");
        it.has_read(1);
        drop(it.terminator.terminate());
        let ping = loop {
            let frame = client.read_frame();
            if frame.kind == kind::PING && !frame.is_ack() {
                break frame;
            }
        };
        if before {
            client.ack_ping(&ping);
            // It is read, and held for no longer than it takes to settle.
            time_passes(OneThread::SETTLE / 4);
        }
        sleeps.send("st: a\r\n\r\n");
        it.falls_asleep();
        if !before {
            client.ack_ping(&ping);
        }
        client.get("/quick", 1);
        let answer = client.read_until(kind::DATA);
        assert_eq!(answer.payload, b"ok", "acknowledged before: {before}");
        assert_eq!(sleeps.read_response().text(), "slept");
        it.ends_well(2);
    }
}

// ===== noted where it is polled =====

/// `serve` is called before there is a runtime, as in a `main` that builds one by hand. All its
/// workers block for a moment, fifty clients connect and ask, the drain begins: nobody has told the
/// driver of a runtime that is late, so it takes the listener for abandoned.
#[test]
fn what_queued_is_answered_where_serve_was_called_outside_of_its_runtime() {
    queued_behind_blocked_workers(|terminator, host, listener, app| {
        let serve = terminator.serve(listener, app);
        drop(host.spawn(serve));
        None
    });
}

/// The same with an accept loop of one's own.
#[test]
fn what_queued_is_answered_where_listen_was_called_outside_of_its_runtime() {
    queued_behind_blocked_workers(|terminator, host, listener, app| {
        let mut listener = terminator.listen(listener);
        drop(host.spawn(async move {
            while let Some((io, _)) = listener.accept().await {
                tokio::spawn(one(io, app.clone()));
            }
        }));
        None
    });
}

/// `serve` is called inside of a runtime, and its future is spawned on another one.
#[test]
fn what_queued_is_answered_where_serve_was_called_on_another_runtime() {
    queued_behind_blocked_workers(|terminator, host, listener, app| {
        let other = Host::workers(1);
        let serve = {
            let _inside = other.enter();
            terminator.serve(listener, app)
        };
        drop(host.spawn(serve));
        Some(other)
    });
}

fn queued_behind_blocked_workers(
    serve: impl FnOnce(&Terminator, &Host, TcpListener, axum::Router) -> Option<Host>,
) {
    let terminator = Terminator::builder().grace_period(FAR).build();
    let host = Host::workers(2);
    let (listener, addr) = bound(host.handle());
    let _other = serve(&terminator, &host, listener, app(App::default()));
    let mut first = RawClient::connect(addr);
    assert_eq!(first.fetch("/quick").status, 200, "it serves");
    block_workers(&host, 2, BLOCKED);
    let clients = ask(addr, 50);
    let begin = Instant::now();
    let termination = terminator.terminate();
    let answered = clients.into_iter().filter_map(answered).count();
    println!("measured: answered {answered} of 50");
    assert_eq!(answered, 50);
    first.expect_eof();
    let report = block_on(BOUND, "the end", termination);
    measured(begin.elapsed(), BLOCKED + SOON, "the drain");
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.connections(), 51, "{report}");
}

/// One listener on a thread that does nothing else, each connection on one of the others; `listen`
/// was called by whoever started them. The listener's thread blocks, and one of the others as well.
#[test]
fn what_queued_is_answered_by_a_thread_for_each_core() {
    load::watch_load();
    let terminator = Terminator::builder().grace_period(FAR).build();
    let gate = Gate::new();
    let cores: Vec<Core> = (0..3).map(|_| Core::start()).collect();
    let (listener, addr) = bound(&cores[0].handle);
    let mut listener = terminator.listen(listener);
    let router = app(App {
        gate: gate.clone(),
        terminator: None,
    });
    let others: Vec<Handle> = cores[1..].iter().map(|core| core.handle.clone()).collect();
    drop(cores[0].handle.spawn(async move {
        for other in others.iter().cycle() {
            let Some((io, _)) = listener.accept().await else {
                return;
            };
            drop(other.spawn(one(io, router.clone())));
        }
    }));

    let mut idle: Vec<RawClient> = (0..4).map(|_| RawClient::connect(addr)).collect();
    for client in &mut idle {
        assert_eq!(client.fetch("/quick").status, 200);
    }
    let blocked = [&cores[0], &cores[1]].map(|core| core.block(BLOCKED));
    for blocked in blocked {
        blocked.recv().expect("it blocks");
    }
    let clients = ask(addr, 50);
    let begin = Instant::now();
    let termination = terminator.terminate();
    let answered = clients.into_iter().filter_map(answered).count();
    println!("measured: answered {answered} of 50");
    assert_eq!(answered, 50);
    idle.iter_mut().for_each(RawClient::expect_eof);
    let report = block_on(BOUND, "the end", termination);
    measured(begin.elapsed(), BLOCKED + SOON, "the drain");
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.idle, report.connections()), (4, 54), "{report}");
}

// ===== forgotten when gone =====

/// A terminator that lives as long as the process, as in a test suite or a host of plug-ins; each of
/// the runtimes is gone before the next one comes. What is kept of them are four descriptors each.
#[test]
fn a_hundred_runtimes_later_descriptors_are_what_they_were() {
    const NAME: &str = "a_hundred_runtimes_later_descriptors_are_what_they_were";
    if alone(NAME, &[], 3 * BOUND) {
        return;
    }
    let terminator = Terminator::new();
    let visit = |host: Host| {
        let (listener, addr) = bound(host.handle());
        let serve = {
            let _inside = host.enter();
            terminator.serve(listener, app(App::default()))
        };
        let server = host.spawn(serve);
        let client = host.block_on(blocking(move || {
            let mut client = RawClient::connect(addr);
            assert_eq!(client.fetch("/quick").status, 200);
            client
        }));
        server.abort();
        drop(client);
        drop(host);
    };
    visit(Host::workers(1));
    visit(Host::current_thread());
    until("nothing in hand", || terminator.stats().connections == 0);
    let mut before = descriptors();
    until("the first runtimes' end", || {
        let now = descriptors();
        std::mem::replace(&mut before, now) == now
    });
    for n in 0..100 {
        visit(if n % 2 == 0 {
            Host::current_thread()
        } else {
            Host::workers(1)
        });
    }
    println!(
        "measured: {before} descriptors before, {} after",
        descriptors()
    );
    until("as few descriptors as before", || descriptors() <= before);
    let report = block_on(BOUND, "the end", terminator.terminate());
    assert!(report.is_clean(), "{report}");
}

/// In a drain that lasts, too: their handles, and with them their descriptors, were kept until its end.
#[test]
fn runtimes_that_end_in_a_drain_are_forgotten_in_it() {
    const NAME: &str = "runtimes_that_end_in_a_drain_are_forgotten_in_it";
    if alone(NAME, &[], 3 * BOUND) {
        return;
    }
    let terminator = Terminator::builder().grace_period(FAR).build();
    let guard = terminator.guard().expect("serving");
    let before = descriptors();
    let cores: Vec<_> = (0..20).map(|_| Core::start()).collect();
    let clients: Vec<_> = cores
        .iter()
        .map(|core| {
            let (listener, addr) = bound(&core.handle);
            let mut listener = terminator.listen(listener);
            core.handle.spawn(async move {
                let (io, _) = listener.accept().await.expect("serving");
                drop(listener);
                one(io, app(App::default())).await;
            });
            let mut client = RawClient::connect(addr);
            assert_eq!(client.fetch("/quick").status, 200);
            client
        })
        .collect();
    let ended = terminator.terminate();
    for mut client in clients {
        client.expect_eof();
    }
    drop(cores);
    until("few descriptors", || descriptors() <= before + 10);
    assert_eq!(terminator.phase(), http_terminator::Phase::Draining);
    drop(guard);
    assert!(block_on(BOUND, "the end", ended).is_clean());
}

/// What was upgraded may go to another runtime, and that is the one that has to be kept going.
#[test]
fn g11_the_runtime_of_an_upgraded_stream_is_kept_going() {
    let (first, second) = (Host::workers(1), Host::workers(2));
    let terminator = Terminator::builder().grace_period(FAR).build();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let (wakes, woken) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let other = second.handle().clone();
    let on_second = |socket: std::os::unix::net::UnixStream| {
        let _inside = second.enter();
        socket.set_nonblocking(true).expect("it can be");
        tokio::net::UnixStream::from_std(socket).expect("a socket")
    };
    let upstream = Arc::new(Mutex::new(Some(on_second(theirs))));
    let upgrade = axum::routing::get(async move |mut request: axum::extract::Request| {
        let upgrade = hyper::upgrade::on(&mut request);
        let upstream = upstream.lock().expect("no panic").take();
        other.spawn(async move {
            let mut upstream = upstream.expect("one client");
            let mut client = hyper_util::rt::TokioIo::new(upgrade.await.expect("it is one"));
            let mut from_client = [0];
            let mut said = String::new();
            tokio::select! {
                _ = tokio::io::AsyncReadExt::read(&mut client, &mut from_client) => {}
                _ = tokio::io::AsyncReadExt::read_to_string(&mut upstream, &mut said) => {}
            }
        });
        (
            http::StatusCode::SWITCHING_PROTOCOLS,
            [
                (http::header::CONNECTION, "upgrade"),
                (http::header::UPGRADE, "pipe"),
            ],
        )
    });
    let (listener, addr) = bound(first.handle());
    let serve = {
        let _inside = first.enter();
        terminator.serve(listener, Router::new().route("/", upgrade))
    };
    first.spawn(serve.into_future());
    let mut client = RawClient::connect(addr);
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: pipe\r\n\r\n");
    assert_eq!(client.read_response_headers().status, 101);
    // By then it is read on the other one.
    time_passes(Duration::from_millis(50));
    let mut woken = on_second(woken);
    second.spawn(async move {
        let _ = tokio::io::AsyncReadExt::read(&mut woken, &mut [0]).await;
        // That is the subject.
        thread::sleep(BLOCKED * 4);
    });
    let ended = terminator.terminate();
    time_passes(GRACE);
    std::io::Write::write_all(&mut &wakes, b"x").expect("it is read");
    time_passes(Duration::from_millis(50));
    let begin = Instant::now();
    ours.shutdown(std::net::Shutdown::Both).expect("it is open");
    let report = block_on(BOUND, "the end", ended);
    assert!(report.is_clean(), "{report}");
    assert!(begin.elapsed() < BLOCKED * 2, "{report}");
    drop(client);
}

// ===== not poked again before the last poke has run =====

/// The one thread of the runtime is in a handler that blocks, so that nothing it is given runs.
#[test]
fn a_stalled_runtime_does_not_pile_up_tasks() {
    load::watch_load();
    let terminator = Terminator::builder().grace_period(FAR).build();
    let core = Core::start();
    let (listener, addr) = bound(&core.handle);
    let serve = {
        let _inside = core.handle.enter();
        terminator.serve(listener, app(App::default()))
    };
    drop(core.handle.spawn(serve));
    let mut client = RawClient::connect(addr);
    assert_eq!(client.fetch("/quick").status, 200);
    let tasks = || core.handle.metrics().num_alive_tasks();

    let until_blocked = core.block(2 * SOON);
    until_blocked.recv().expect("it blocks");
    let before = tasks();
    let termination = terminator.terminate();
    let begin = Instant::now();
    let mut most = before;
    // The time is the subject.
    while begin.elapsed() < SOON {
        most = most.max(tasks());
        thread::park_timeout(Duration::from_millis(20));
    }
    println!("measured: {before} tasks before, {most} at most within {SOON:?} of draining");
    let report = block_on(BOUND, "the end", termination);
    assert!(most < before + 5, "{before} tasks, then {most}");
    assert!(report.is_clean(), "{report}");
    client.expect_eof();
}

/// It has nothing to do in its drain, and is woken for each poke.
#[test]
fn an_idle_runtime_is_poked_at_intervals() {
    load::watch_load();
    let terminator = Terminator::builder().grace_period(FAR).build();
    let woken = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&woken);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .on_thread_unpark(move || {
            count.fetch_add(1, Ordering::SeqCst);
        })
        .build();
    let runtime = runtime.expect("a runtime can be made");
    let server = runtime.block_on(start(FrontEnd::Serve, &terminator, app(App::default())));
    let client = server.connect();
    client.get("/pending");
    until("a request", || terminator.stats().requests == 1);
    drop(terminator.terminate());
    time_passes(Duration::from_millis(100));
    let before = woken.load(Ordering::SeqCst);
    time_passes(SOON);
    let pokes = woken.load(Ordering::SeqCst) - before;
    println!("measured: {pokes} pokes within {SOON:?}");
    // Every 20 ms; fewer on a machine with other work. Each may wake it more than once.
    assert!((20..250).contains(&pokes), "{pokes}");
    block_on(BOUND, "the end", terminator.force());
    drop(client);
    runtime.shutdown_background();
}

// ===== not run any more =====

/// `block_on` has returned and nobody polls the connection's task any more, but it is alive, and so
/// is its idle connection, which the driver can tell to be so by itself.
#[test]
fn an_idle_connection_of_a_runtime_that_is_not_run_is_closed_as_idle() {
    for front in FrontEnd::all() {
        closed_as_idle(front, Used::Once);
        closed_as_idle(front, Used::Never);
    }
}

#[test]
fn an_idle_tls_connection_of_a_runtime_that_is_not_run_is_closed_as_idle() {
    for front in FrontEnd::tls() {
        closed_as_idle(front, Used::Once);
        closed_as_idle(front, Used::Never);
        closed_as_idle(front, Used::ByHttp2);
    }
}

#[test]
fn an_idle_http2_connection_of_a_runtime_that_is_not_run_is_closed_as_idle() {
    for front in FrontEnd::all() {
        closed_as_idle(front, Used::ByHttp2);
    }
}

/// Closed from outside, its future ends as any that we have ended: with no error.
#[test]
fn g20_a_connection_that_is_closed_from_outside_ends_without_an_error() {
    for tls in [false, true] {
        let host = Host::current_thread();
        let terminator = Terminator::builder().grace_period(FAR).build();
        let ends = host.block_on(async {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let addr = tcp.local_addr().expect("it is bound");
            let target = if tls {
                Target::Tls(addr)
            } else {
                Target::Tcp(addr)
            };
            let mut listener = terminator.listen(tcp);
            let client = tokio::task::spawn_blocking(move || {
                let mut client = RawClient::connect(target);
                assert_eq!(client.fetch("/quick").text(), "ok");
                client
            });
            let (io, _) = listener.accept().await.expect("a client");
            let connection = io.connection();
            let service = TowerToHyperService::new(app(App::default()));
            let builder = HttpBuilder::default();
            let served = if tls {
                let io = support::tls_acceptor(&[])
                    .accept(io)
                    .await
                    .expect("a handshake");
                tokio::spawn(connection.serve(&builder, io, service))
            } else {
                tokio::spawn(connection.serve(&builder, io, service))
            };
            let client = client.await.expect("it does not panic");
            drop(terminator.terminate());
            thread::sleep(BLOCKED);
            let ends = tokio::time::timeout(BOUND, served).await;
            drop(client);
            ends.expect("it ends").expect("it does not panic")
        });
        assert!(ends.is_ok(), "TLS: {tls}: {ends:?}");
        let report = block_on(BOUND, "the end", terminator.terminated());
        assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
    }
}

/// A request's handler is pending there: that one is for the deadline.
#[test]
fn a_request_in_a_runtime_that_is_not_run_is_cut_at_the_deadline() {
    for front in FrontEnd::all() {
        let terminator = Terminator::builder().grace_period(GRACE).build();
        let host = Host::current_thread();
        let server = host.block_on(start(front, &terminator, app(App::default())));
        let target = server.target.clone();
        let mut client = host.block_on(async {
            let client = blocking(move || {
                let client = RawClient::connect(target);
                client.get("/pending");
                client
            });
            let client = client.await;
            until_stats_async(&terminator, "a request", |it| it.requests > 0).await;
            client
        });
        let begin = Instant::now();
        let report = block_on(BOUND, "the end", terminator.terminate());
        at_deadline(begin, GRACE, &format!("{front:?}: the report"));
        assert_eq!((report.idle, report.forced), (0, 1), "{front:?}: {report}");
        assert!(ended(client.read_to_end()), "{front:?}");
    }
}

/// How a connection has been used when it is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Used {
    Never,
    Once,
    ByHttp2,
}

enum Client {
    Http1(RawClient),
    Http2(RawH2),
}

fn closed_as_idle(front: FrontEnd, used: Used) {
    let what = format!("{front:?}, used {used:?}");
    let terminator = Terminator::builder()
        .grace_period(Duration::from_secs(3))
        .build();
    let host = Host::current_thread();
    let server = host.block_on(start(front, &terminator, app(App::default())));
    let target = server.target.clone();
    let client = host.block_on(async {
        let client = blocking(move || client(target, used)).await;
        // Its last bytes have come in, and its task has seen them.
        until_stats_async(&terminator, &what, |it| (it.idle, it.connections) == (1, 1)).await;
        time_passes_async(Duration::from_millis(50)).await; // longer than `settle`
        client
    });
    let begin = Instant::now();
    let report = block_on(BOUND, &what, terminator.terminate());
    // HTTP/2 is to be told, for which its task has `stall_timeout`.
    let bound = Duration::from_millis(if used == Used::ByHttp2 { 1500 } else { 500 });
    measured(begin.elapsed(), bound, &what);
    assert_eq!(
        (report.idle, report.connections()),
        (1, 1),
        "{what}: {report}"
    );
    assert!(report.is_clean(), "{what}: {report}");
    match client {
        Client::Http1(mut client) => assert!(ended(client.read_to_end()), "{what}"),
        // Over TLS without a close_notify: only its task could say that.
        Client::Http2(mut client) => while client.try_read_frame().is_ok() {},
    }
    drop(host);
}

fn client(target: Target, used: Used) -> Client {
    match used {
        Used::Never => Client::Http1(RawClient::connect(target)),
        Used::Once => {
            let mut client = RawClient::connect(target);
            assert_eq!(client.fetch("/quick").status, 200);
            Client::Http1(client)
        }
        Used::ByHttp2 => {
            let mut client = RawH2::connect(target);
            client.read_until(kind::SETTINGS);
            client.ack_settings();
            client.get("/quick", 1);
            while !client.read_until(kind::DATA).is_end_stream() {}
            Client::Http2(client)
        }
    }
}

// ===== no thread to be had =====

/// The process may have no more threads when the call comes (`RLIMIT_NPROC`): there is a runtime, so
/// the drain is a drain all the same. Root is not bound by the limit, so it is another user who runs
/// this.
#[test]
fn without_a_thread_to_be_had_the_drain_is_a_drain_all_the_same() {
    const NAME: &str = "without_a_thread_to_be_had_the_drain_is_a_drain_all_the_same";
    if alone_with_few_threads(NAME) {
        return;
    }
    let site = Threadless::start(FAR);
    let mut idle = site.connect();
    assert_eq!(idle.fetch("/quick").status, 200);
    let mut slow = site.connect();
    slow.get("/slow");
    site.gate.wait_entered(1);
    let hogs = hog_threads();

    let begin = Instant::now();
    let termination = site.terminator.terminate();
    idle.expect_eof();
    site.gate.open();
    let response = slow.try_read_response();
    let report = block_on(BOUND, "the end", termination);
    let took = begin.elapsed();
    println!("measured: the drain: {took:.1?}");
    drop(hogs);
    let response = response.expect("an answer");
    assert_eq!(response.status, 200, "{response:?}: {report}");
    assert!(took < SOON, "{report}");
    let counts = (report.idle, report.finished, report.connections());
    assert_eq!(counts, (1, 1, 2), "{report}");
    assert!(report.is_clean(), "{report}");
    site.assert_one_error();
}

/// The deadline is kept as well, as long as the runtime is healthy.
#[test]
fn without_a_thread_to_be_had_the_deadline_holds() {
    const NAME: &str = "without_a_thread_to_be_had_the_deadline_holds";
    if alone_with_few_threads(NAME) {
        return;
    }
    let site = Threadless::start(GRACE);
    let mut pending = site.connect();
    pending.get("/pending");
    until("it", || site.terminator.stats().requests == 1);
    let hogs = hog_threads();

    let begin = Instant::now();
    let termination = site.terminator.terminate();
    let response = pending.try_read_response();
    let took = begin.elapsed();
    let report = block_on(BOUND, "the end", termination);
    at_deadline(begin, GRACE, "the report");
    drop(hogs);
    let response = response.expect("an answer");
    assert_eq!(response.status, 503, "{response:?}: {report}");
    assert!(took >= GRACE, "cut after {took:?}: {report}");
    assert_eq!(
        (report.forced, report.answered_at_deadline),
        (1, 1),
        "{report}"
    );
    site.assert_one_error();
}

/// The runtime that keeps it is dropped, and there is another one, of a connection; or there is none.
#[test]
fn without_a_thread_to_be_had_the_end_of_a_runtime_is_not_the_end_of_the_deadline() {
    const NAME: &str =
        "without_a_thread_to_be_had_the_end_of_a_runtime_is_not_the_end_of_the_deadline";
    if alone_with_few_threads(NAME) {
        return;
    }
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().expect("a runtime")
    };
    for known in [true, false] {
        let (first, second) = (runtime(), runtime());
        let terminator = Terminator::builder().grace_period(GRACE).build();
        let guard = terminator.guard().expect("nobody has asked for an end");
        let inside = second.enter();
        let other = known.then(|| terminator.spawn(pending::<()>()));
        drop(inside);
        second.block_on(tokio::task::yield_now());
        let hogs = hog_threads();
        let inside = first.enter();
        let ended = terminator.terminate();
        drop(inside);
        drop(first);
        let report = second.block_on(async { tokio::time::timeout(BOUND, ended).await });
        drop(hogs);
        let report = report.unwrap_or_else(|_| panic!("{known}: no end"));
        assert!(report.guards_cut >= 1, "{known}: {report}");
        let drained = report.draining;
        assert_eq!(drained >= GRACE, known, "{drained:?}: {report}");
        drop((guard, other));
    }
}

/// Called on the one thread of a runtime, which awaits it.
#[test]
fn without_a_thread_to_be_had_a_current_thread_runtime_drains() {
    const NAME: &str = "without_a_thread_to_be_had_a_current_thread_runtime_drains";
    if alone_with_few_threads(NAME) {
        return;
    }
    let site = Threadless::new(Host::current_thread(), FAR);
    let terminator = site.terminator.clone();
    let (hogs, report, idle) = site.host.block_on(async {
        let target = site.target.clone();
        let idle = blocking(|| {
            let mut idle = RawClient::connect(target);
            assert_eq!(idle.fetch("/quick").status, 200);
            idle
        });
        let idle = idle.await;
        let hogs = hog_threads();
        let guard = terminator.guard().expect("nobody has asked for an end");
        let termination = terminator.terminate();
        tokio::spawn(async move {
            time_passes_async(Duration::from_millis(100)).await;
            drop(guard);
        });
        let report = tokio::time::timeout(BOUND, termination).await;
        (hogs, report.expect("the end"), idle)
    });
    drop(hogs);
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
    let mut idle = idle;
    idle.expect_eof();
    site.assert_one_error();
}

/// Without a runtime there is nothing to drain on: all is ended at once, and the call comes back.
#[test]
fn without_a_thread_and_a_runtime_everything_is_ended_at_once() {
    const NAME: &str = "without_a_thread_and_a_runtime_everything_is_ended_at_once";
    if alone_with_few_threads(NAME) {
        return;
    }
    let said = Log::default();
    let here = said.here();
    let terminator = Terminator::builder().grace_period(FAR).build();
    let io = terminator.track(());
    let hogs = hog_threads();
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", terminator.terminate());
    let took = begin.elapsed();
    println!("measured: the end: {took:.1?}");
    drop(hogs);
    assert!(took < SOON, "{report}");
    assert_eq!((report.forced, report.connections()), (1, 1), "{report}");
    drop((io, here));
    assert_about_the_thread(&said);
}

/// Runs the test as another user, who may have so many threads and no more: root is not bound by the
/// limit. One at a time, as it counts all of the user's. False inside; see [`alone`].
fn alone_with_few_threads(name: &str) -> bool {
    static ONE: Mutex<()> = Mutex::new(());
    const WRAPPER: &[&str] = &[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "prlimit",
        "--nproc=200:200",
    ];
    if is_alone() {
        return false;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let uid = std::fs::metadata("/proc/self").expect("Linux has it").uid();
    if uid == 0 {
        return alone(name, WRAPPER, 3 * BOUND);
    }
    support::skip::skip("only root may become another user");
    true
}

struct Threadless {
    terminator: Terminator,
    target: Target,
    gate: Gate,
    said: Log,
    host: Host,
    _server: support::Server,
}

impl Threadless {
    fn start(grace: Duration) -> Self {
        Self::new(Host::workers(2), grace)
    }

    fn new(host: Host, grace: Duration) -> Self {
        let said = Log::default();
        let subscriber = tracing_subscriber::registry().with(said.clone());
        let set = tracing::subscriber::set_global_default(subscriber);
        set.expect("this process has no other");
        let terminator = Terminator::builder().grace_period(grace).build();
        let gate = Gate::new();
        let state = App {
            gate: gate.clone(),
            terminator: None,
        };
        let server = host.block_on(start(FrontEnd::Serve, &terminator, app(state)));
        Self {
            terminator,
            target: server.target.clone(),
            gate,
            said,
            host,
            _server: server,
        }
    }

    fn connect(&self) -> RawClient {
        RawClient::connect(&self.target)
    }

    #[track_caller]
    fn assert_one_error(&self) {
        assert_about_the_thread(&self.said);
    }
}

#[track_caller]
fn assert_about_the_thread(said: &Log) {
    let said = said.at_least(Level::ERROR);
    assert_eq!(said.len(), 1, "errors: {said:?}");
    assert!(said[0].contains("thread"), "{said:?}");
}

/// Threads that do nothing, as many as there may be. Dropped, they end.
struct Hogs(Vec<(oneshot::Sender<()>, JoinHandle<()>)>);

#[track_caller]
fn hog_threads() -> Hogs {
    let mut hogs = Vec::new();
    while hogs.len() < 1_000 {
        let (stop, stopped) = oneshot::channel::<()>();
        let hog = thread::Builder::new().stack_size(64 << 10);
        match hog.spawn(move || drop(stopped.blocking_recv())) {
            Ok(thread) => hogs.push((stop, thread)),
            Err(error) => {
                println!("no thread after {} more: {error}", hogs.len());
                return Hogs(hogs);
            }
        }
    }
    panic!("no limit: 1,000 threads more");
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for (stop, thread) in self.0.drain(..) {
            drop(stop);
            let _ = thread.join(); // it does not panic
        }
    }
}

// ===== servers and clients =====

/// A runtime of one thread, run by a thread of its own until it is dropped.
struct Core {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Core {
    fn start() -> Self {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime: Runtime = runtime.expect("a runtime can be made");
            let _ = tell.send(runtime.handle().clone()); // the test has ended
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        });
        Self {
            handle: told.recv_timeout(BOUND).expect("it runs"),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Blocks its thread for so long; says when that has begun.
    fn block(&self, time: Duration) -> mpsc::Receiver<()> {
        block_one(&self.handle, time)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // the test tells what went wrong
        }
    }
}

fn block_one(runtime: &Handle, time: Duration) -> mpsc::Receiver<()> {
    let (tell, told) = mpsc::channel();
    drop(runtime.spawn(async move {
        let _ = tell.send(()); // the test has ended
        thread::sleep(time);
    }));
    told
}

/// Blocks so many workers, and returns when they are.
fn block_workers(host: &Host, workers: usize, time: Duration) {
    let begun: Vec<_> = (0..workers)
        .map(|_| block_one(host.handle(), time))
        .collect();
    for begun in begun {
        begun.recv_timeout(BOUND).expect("it blocks");
    }
}

/// So many clients that have connected and sent a request.
fn ask(addr: SocketAddr, clients: usize) -> Vec<RawClient> {
    let client = |_| {
        let client = RawClient::connect(addr);
        client.get("/quick");
        client
    };
    (0..clients).map(client).collect()
}

/// Whether it was answered.
fn answered(mut client: RawClient) -> Option<()> {
    let response = client.try_read_response().ok()?;
    (response.status == 200).then_some(())
}

fn one(io: TrackedIo<tokio::net::TcpStream>, app: axum::Router) -> impl Future<Output = ()> + Send {
    let connection = io.connection();
    let builder = auto::Builder::new(TokioExecutor::new());
    let served = connection.serve(&builder, io, TowerToHyperService::new(app));
    async move { drop(served.await) }
}
