//! What is true at the end: nothing is open when a phase or a report says so, who left is no longer
//! counted, and the bound holds for thousands (G10, G13, G16).
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

use std::future::Future;
use std::hint;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::routing::post;
use futures_util::StreamExt;
use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use http_terminator::{
    Connection, IdlePolicy, Listener, Phase, Report, Terminator, TerminatorBuilder, TrackedListener,
};
use support::kind as frame;
use support::outside::{
    FAR, Host, LATE, PROMISED, SOON, alone, block_on, descriptors, ended, is_alone, measured,
    promised,
};
use support::skip::skip;
use support::wait::{time_passes, until};
use support::{App, BOUND, FrontEnd, Gate, RawClient, RawH2, app, bound, open_fds_to, start};

/// Held by those that measure thousands, while they are in a process of their own: not beside each other.
static MACHINE: Mutex<()> = Mutex::new(());

/// [`alone`], and one after the other.
#[track_caller]
fn in_turn(name: &str, wrapper: &[&str], bound: Duration) -> bool {
    let _machine = (!is_alone()).then(|| MACHINE.lock().unwrap_or_else(PoisonError::into_inner));
    alone(name, wrapper, bound)
}

// ===== the phase says what is true =====

/// A thread spins on the phase. In the moment in which it says `Terminated`, the last socket is closed
/// and the report is there. Counts descriptors, so it needs a process of its own.
#[test]
fn what_is_terminated_is_closed_and_reported() {
    const NAME: &str = "what_is_terminated_is_closed_and_reported";
    const ROUNDS: usize = 2_000;
    if alone(NAME, &[], 12 * BOUND) {
        return;
    }
    let host = Host::workers(1);
    let (mut early, mut open, mut alive) = (0, 0, 0);
    // Whatever is made once is there.
    for front in FrontEnd::seeing() {
        one_round(&host, front, Kind::Idle);
    }
    let before = descriptors();
    let (begun, mut rounds) = (Instant::now(), 0);
    // On a machine with other work fewer of them will do.
    while rounds < ROUNDS && (begun.elapsed() < 6 * BOUND || rounds < ROUNDS / 10) {
        let round = rounds;
        rounds += 1;
        // Most are quick. One in ten is over another front end; of those some have a request that is cut, or take the wait for an
        // acknowledgment.
        let other = round / 10;
        let (front, kind) = if round % 10 > 0 {
            (FrontEnd::Serve, Kind::Idle)
        } else {
            let fronts = FrontEnd::seeing();
            let kinds = [Kind::Cut, Kind::Http2, Kind::Http2Cut, Kind::Idle];
            (
                fronts[other % fronts.len()],
                kinds[(other / fronts.len()) % kinds.len()],
            )
        };
        let seen = one_round(&host, front, kind);
        early += usize::from(!seen.has_report);
        alive += seen.alive;
        open += usize::from(seen.descriptors != before + seen.clients);
    }
    println!(
        "measured: of {rounds} rounds, {early} without a report, {open} with a descriptor open; \
         {alive} clients not at their end"
    );
    assert_eq!((early, open, alive), (0, 0, 0));
}

/// A thousand that have been quiet for longer than `settle`: from the call to the last end-of-file, as their clients see it. What
/// looked at them each so often would be later by half of that.
#[test]
fn g1_a_thousand_idle_connections_are_closed_at_once() {
    const NAME: &str = "g1_a_thousand_idle_connections_are_closed_at_once";
    const CLIENTS: usize = 1_000;
    const SETTLE: Duration = Duration::from_millis(25);
    const AT_ONCE: Duration = Duration::from_millis(150);
    if in_turn(NAME, MOST_DESCRIPTORS, 6 * BOUND) {
        return;
    }
    let host = Host::workers(2);
    for front in FrontEnd::seeing() {
        let terminator = Terminator::builder().settle(SETTLE).build();
        let server = start(front, &terminator, app(App::default()));
        let server = host.block_on(server);
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
        for client in clients.iter_mut().step_by(2) {
            assert_eq!(client.fetch("/quick").status, 200);
        }
        until("all of them", || terminator.stats().idle == CLIENTS);
        // Time is the subject.
        time_passes(2 * SETTLE);
        let begin = Instant::now();
        let ended = terminator.terminate();
        for client in &mut clients {
            client.expect_eof();
        }
        measured(begin.elapsed(), AT_ONCE, &format!("{front:?}: a thousand"));
        let report = block_on(BOUND, "the end", ended);
        assert_eq!(
            (report.idle, report.connections()),
            (CLIENTS, CLIENTS),
            "{front:?}: {report}"
        );
    }
}

/// From the last client's end-of-file to `terminated()`, in the median of some rounds; on a machine with other work, in
/// those of its best moment. The bound is five times what is promised.
#[test]
fn g16_the_end_is_told_within_a_millisecond_of_the_last_close() {
    const NAME: &str = "g16_the_end_is_told_within_a_millisecond_of_the_last_close";
    if in_turn(NAME, &[], 6 * BOUND) {
        return;
    }
    let host = Host::workers(1);
    let mut medians = Vec::new();
    for _ in 0..10 {
        let mut took: Vec<_> = (0..11).map(|_| from_close_to_end(&host)).collect();
        took.sort_unstable();
        let median = took[took.len() / 2];
        println!("measured: the end {median:.1?} after the last close");
        if median < Duration::from_millis(5) {
            return;
        }
        medians.push(median);
    }
    panic!("{medians:.1?}");
}

fn from_close_to_end(host: &Host) -> Duration {
    let terminator = Terminator::builder().settle(Duration::ZERO).build();
    let server = start(FrontEnd::Serve, &terminator, app(App::default()));
    let server = host.block_on(server);
    let mut client = server.connect();
    assert_eq!(client.fetch("/quick").status, 200);
    let reads = thread::spawn(move || {
        client.expect_eof();
        Instant::now()
    });
    block_on(BOUND, "the end", terminator.terminate());
    let ended = Instant::now();
    let closed = reads.join().expect("an end-of-file");
    ended.saturating_duration_since(closed)
}

/// What was so when the phase said `Terminated`.
struct Round {
    has_report: bool,
    descriptors: usize,
    clients: usize,
    alive: usize,
}

/// Who is there besides an idle client of HTTP/1.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Idle,
    Cut,
    Http2,
    Http2Cut,
}

/// Of a client's connection.
type Held = Box<dyn FnOnce() -> bool + Send>;

fn one_round(host: &Host, front: FrontEnd, kind: Kind) -> Round {
    let terminator = Terminator::builder()
        .settle(Duration::ZERO)
        .stall_timeout(Duration::from_millis(20))
        .build();
    let server = start(front, &terminator, app(App::default()));
    let server = host.block_on(server);
    let mut idle = server.connect();
    assert_eq!(idle.fetch("/quick").status, 200);
    let mut clients: Vec<Held> = vec![Box::new(move || is_open(idle.socket()))];
    if kind == Kind::Cut {
        let pending = server.connect();
        pending.get("/pending");
        clients.push(Box::new(move || is_open(pending.socket())));
    } else if kind != Kind::Idle {
        let mut client = RawH2::connect(server.target.clone());
        client.get("/quick", 1);
        client.read_until(frame::DATA);
        if kind == Kind::Http2Cut {
            client.get("/pending", 3);
        }
        // It acknowledges what it reads, or would be waited for.
        let reads = thread::spawn(move || {
            while let Ok(frame) = client.try_read_frame() {
                if frame.kind == frame::PING && !frame.is_ack() {
                    // Whose other side may have gone.
                    let _ = client.try_ack_ping(&frame);
                }
            }
            client
        });
        clients.push(Box::new(move || {
            let client = reads.join().expect("no panic");
            is_open(client.socket())
        }));
    }
    let cut = matches!(kind, Kind::Cut | Kind::Http2Cut);
    if cut {
        until("it", || terminator.stats().requests == 1);
    }
    let spins = {
        let terminator = terminator.clone();
        thread::spawn(move || {
            let begin = Instant::now();
            while terminator.phase() < Phase::Terminated {
                assert!(begin.elapsed() < BOUND, "no end");
                hint::spin_loop();
            }
            let polled =
                pin!(terminator.terminated()).poll(&mut Context::from_waker(Waker::noop()));
            let has_report = polled.is_ready();
            let (descriptors, clients_there) = (descriptors(), clients.len());
            let alive = clients
                .into_iter()
                .map(|is_open| usize::from(is_open()))
                .sum();
            Round {
                has_report,
                descriptors,
                clients: clients_there,
                alive,
            }
        })
    };
    drop(if cut {
        terminator.force()
    } else {
        terminator.terminate()
    });
    let round = spins.join().expect("it comes to an end");
    block_on(BOUND, "the report", terminator.terminated());
    host.block_on(server.task).expect("it does not panic");
    round
}

/// What was sent before its end does not matter, and nothing can come any more.
fn is_open(socket: &Socket) -> bool {
    loop {
        // What is closed here may be on its way there: the kernel's to deliver, so it is waited for.
        let bounded = socket.set_read_timeout(Some(BOUND));
        bounded.expect("a socket can be that");
        let mut socket = socket;
        match socket.read(&mut [0; 4096]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

// ===== detaching =====

/// A TCP probe connects, leaves, and is detached afterwards by who holds its handle. The next request
/// is a live one, and nobody has detached that.
#[test]
fn who_is_detached_after_it_has_gone_takes_nobody_along() {
    let site = Detaching::start();
    let gone = site.probe();
    gone.detach();
    site.a_live_request_is_waited_for();
}

#[test]
fn who_is_detached_twice_counts_once() {
    let site = Detaching::start();
    let (probe, handle) = site.connect();
    handle.detach();
    handle.clone().detach();
    assert_eq!(site.terminator.stats().connections, 1, "it is tracked");
    site.a_live_request_is_waited_for();
    drop(probe);

    let site = Detaching::start();
    let gone = site.probe();
    gone.detach();
    gone.clone().detach();
    site.a_live_request_is_waited_for();
}

#[test]
fn who_is_detached_before_and_after_it_has_gone_takes_nobody_along() {
    let site = Detaching::start();
    let (probe, handle) = site.connect();
    handle.detach();
    drop(probe);
    site.until_nobody_is_left();
    handle.detach();
    site.a_live_request_is_waited_for();
}

/// While others drain.
#[test]
fn who_is_detached_during_the_drain_after_it_has_gone_takes_nobody_along() {
    let site = Detaching::start();
    let gone = site.probe();
    let mut live = site.live_request();
    let begin = Instant::now();
    let termination = site.terminator.terminate();
    block_on(BOUND, "the drain", site.terminator.reached(Phase::Draining));
    gone.detach();
    site.is_answered(&mut live, begin, termination);
}

/// Many probes, each detached a moment after its end or before it, whichever comes.
#[test]
fn whoever_is_detached_while_it_goes_the_count_is_right() {
    let site = Detaching::start();
    for _ in 0..200 {
        let (probe, handle) = site.connect();
        let detaches = thread::spawn(move || handle.detach());
        drop(probe);
        detaches.join().expect("it does not panic");
    }
    site.until_nobody_is_left();
    site.a_live_request_is_waited_for();
}

/// One that is detached and alive holds nobody, and is cut at the end.
#[test]
fn who_is_detached_alive_holds_no_drain() {
    let site = Detaching::start();
    let gone = site.probe();
    gone.detach();
    let (probe, handle) = site.connect();
    probe.get("/pending");
    until("it", || site.terminator.stats().requests == 1);
    handle.detach();
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", site.terminator.terminate());
    measured(begin.elapsed(), SOON, "the drain");
    assert_eq!((report.detached, report.connections()), (1, 1), "{report}");
}

/// An accept loop of one's own that hands out each connection's handle.
struct Detaching {
    terminator: Terminator,
    addr: SocketAddr,
    handles: mpsc::Receiver<Connection>,
    gate: Gate,
    _host: Host,
}

impl Detaching {
    fn start() -> Self {
        let host = Host::workers(2);
        let grace = Duration::from_secs(3);
        let terminator = Terminator::builder().grace_period(grace).build();
        let gate = Gate::new();
        let state = App {
            gate: gate.clone(),
            terminator: None,
        };
        let (listener, addr) = bound(host.handle());
        let (tell, handles) = mpsc::channel();
        let mut listener: TrackedListener<TcpListener> = terminator.listen(listener);
        let router = app(state);
        drop(host.spawn(async move {
            while let Some((io, _)) = listener.accept().await {
                let connection = io.connection();
                let builder = hyper_util::server::conn::auto::Builder::new(
                    hyper_util::rt::TokioExecutor::new(),
                );
                let service = hyper_util::service::TowerToHyperService::new(router.clone());
                tokio::spawn(connection.serve(&builder, io, service));
                let _ = tell.send(connection); // the test has ended
            }
        }));
        Self {
            terminator,
            addr,
            handles,
            gate,
            _host: host,
        }
    }

    fn connect(&self) -> (RawClient, Connection) {
        let client = RawClient::connect(self.addr);
        let handle = self.handles.recv_timeout(BOUND).expect("it was accepted");
        (client, handle)
    }

    /// One that has connected and gone.
    fn probe(&self) -> Connection {
        let (client, handle) = self.connect();
        drop(client);
        self.until_nobody_is_left();
        handle
    }

    fn until_nobody_is_left(&self) {
        until("its end", || self.terminator.stats().connections == 0);
    }

    fn live_request(&self) -> RawClient {
        let (live, _) = self.connect();
        live.get("/slow");
        self.gate.wait_entered(1);
        let stats = self.terminator.stats();
        assert_eq!((stats.busy, stats.requests), (1, 1), "{stats}");
        live
    }

    fn a_live_request_is_waited_for(&self) {
        let mut live = self.live_request();
        let begin = Instant::now();
        let termination = self.terminator.terminate();
        self.is_answered(&mut live, begin, termination);
    }

    fn is_answered<F>(&self, live: &mut RawClient, begin: Instant, termination: F)
    where
        F: Future<Output = Report>,
    {
        // The time is the subject: longer than it takes to force.
        time_passes(Duration::from_millis(300));
        assert_eq!(
            self.terminator.phase(),
            Phase::Draining,
            "{:?} after the call",
            begin.elapsed()
        );
        self.gate.open();
        let response = live.read_response();
        let report = block_on(BOUND, "the end", termination);
        assert_eq!(response.status, 200, "{response:?}: {report}");
        live.expect_eof();
        assert_eq!((report.finished, report.forced), (1, 0), "{report}");
        assert!(report.is_clean(), "{report}");
    }
}

// ===== drops that take their time =====

/// How long a drop takes.
const DROP: Duration = Duration::from_millis(300);

/// An IO whose drop takes its time, and says when it is over.
struct Slow<Io> {
    io: Io,
    begun: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl<Io> Drop for Slow<Io> {
    fn drop(&mut self) {
        self.begun.store(true, Ordering::SeqCst);
        thread::sleep(DROP);
        self.over.store(true, Ordering::SeqCst);
    }
}

/// It is tracked, and its owner drops it when the drain begins.
#[test]
fn a_tracked_io_is_counted_out_after_its_drop() {
    let terminator = Terminator::builder().grace_period(FAR).build();
    let (begun, over) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
    let io = terminator.track(Slow {
        io: (),
        begun: Arc::clone(&begun),
        over: Arc::clone(&over),
    });
    let termination = terminator.terminate();
    let drops = thread::spawn(move || drop(io));
    let report = block_on(BOUND, "the end", termination);
    assert!(over.load(Ordering::SeqCst), "{report}");
    assert_eq!(report.connections(), 1, "{report}");
    assert!(report.is_clean(), "{report}");
    drops.join().expect("it does not panic");
}

/// hyper drops it in the task of its connection, after an idle end.
#[test]
fn a_served_io_is_counted_out_after_its_drop() {
    let site = Slowly::start();
    let mut idle = RawClient::connect(site.addr);
    assert_eq!(idle.fetch("/quick").status, 200);
    let report = block_on(BOUND, "the end", site.terminator.terminate());
    assert!(site.over.load(Ordering::SeqCst), "{report}");
    assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
}

/// After a response that says `close`.
#[test]
fn a_finished_io_is_counted_out_after_its_drop() {
    let site = Slowly::start();
    let mut client = RawClient::connect(site.addr);
    client.get("/slow");
    site.gate.wait_entered(1);
    let termination = site.terminator.terminate();
    site.gate.open();
    assert!(client.read_response().says_close());
    let report = block_on(BOUND, "the end", termination);
    assert!(site.over.load(Ordering::SeqCst), "{report}");
    assert_eq!((report.finished, report.connections()), (1, 1), "{report}");
}

/// Whoever holds the upgraded stream drops it when it is told.
#[test]
fn an_upgraded_io_is_counted_out_after_its_drop() {
    let site = Slowly::start();
    let mut client = RawClient::connect(site.addr);
    client.get_upgrade("/upgrade-told");
    assert_eq!(client.read_response().status, 101);
    until("it", || site.terminator.stats().upgraded == 1);
    let report = block_on(BOUND, "the end", site.terminator.terminate());
    assert!(site.over.load(Ordering::SeqCst), "{report}");
    assert_eq!((report.upgraded, report.connections()), (1, 1), "{report}");
}

/// On the way out also `stats()` still has it in hand.
#[test]
fn a_tracked_io_is_in_the_stats_until_its_drop_is_over() {
    let terminator = Terminator::new();
    let (begun, over) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
    let io = terminator.track(Slow {
        io: (),
        begun: Arc::clone(&begun),
        over: Arc::clone(&over),
    });
    let drops = thread::spawn(move || drop(io));
    until("its drop", || begun.load(Ordering::SeqCst));
    let stats = terminator.stats();
    assert!(
        stats.connections == 1 || over.load(Ordering::SeqCst),
        "{stats}"
    );
    drops.join().expect("it does not panic");
    until("its end", || terminator.stats().connections == 0);
}

/// With plain TCP the drop takes microseconds, but there are 800 of them on two threads.
#[test]
fn no_descriptor_of_800_upgraded_connections_is_open_at_the_end() {
    const UPGRADED: usize = 800;
    const NAME: &str = "no_descriptor_of_800_upgraded_connections_is_open_at_the_end";
    if alone(NAME, MOST_DESCRIPTORS, 6 * BOUND) {
        return;
    }
    let mut left = Vec::new();
    for _ in 0..10 {
        let host = Host::workers(2);
        let terminator = Terminator::builder().grace_period(FAR).build();
        let state = App {
            gate: Gate::new(),
            terminator: Some(terminator.clone()),
        };
        let server = host.block_on(start(FrontEnd::Serve, &terminator, app(state)));
        let clients: Vec<_> = (0..UPGRADED)
            .map(|_| {
                let mut client = server.connect();
                client.get_upgrade("/upgrade-told");
                assert_eq!(client.read_response().status, 101);
                client
            })
            .collect();
        until("all", || terminator.stats().upgraded == UPGRADED);
        let before = descriptors();
        let begin = Instant::now();
        let mut termination = pin!(terminator.terminate());
        // Spins, so that nothing passes between the end and the look.
        let report = loop {
            assert!(begin.elapsed() < BOUND, "no end");
            let polled = termination
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(report) = polled {
                break report;
            }
        };
        // The listener is closed as well.
        left.push((descriptors() + UPGRADED + 1).abs_diff(before));
        assert_eq!(report.upgraded, UPGRADED, "{report}");
        drop(clients);
    }
    println!("measured: descriptors open on return, by round: {left:?}");
    assert_eq!(left, [0; 10]);
}

/// A server whose IOs are slow to drop.
struct Slowly {
    terminator: Terminator,
    addr: SocketAddr,
    gate: Gate,
    over: Arc<AtomicBool>,
    _host: Host,
}

impl Slowly {
    fn start() -> Self {
        let host = Host::workers(2);
        let terminator = Terminator::builder().grace_period(FAR).build();
        let gate = Gate::new();
        let state = App {
            gate: gate.clone(),
            terminator: Some(terminator.clone()),
        };
        let (inner, addr) = bound(host.handle());
        let over = Arc::<AtomicBool>::default();
        let listener = SlowListener {
            inner,
            over: Arc::clone(&over),
        };
        drop(host.spawn(terminator.serve(listener, app(state))));
        Self {
            terminator,
            addr,
            gate,
            over,
            _host: host,
        }
    }
}

struct SlowListener {
    inner: TcpListener,
    over: Arc<AtomicBool>,
}

impl SlowListener {
    fn slow(&self, io: TcpStream) -> Slow<TcpStream> {
        Slow {
            io,
            begun: Arc::default(),
            over: Arc::clone(&self.over),
        }
    }
}

impl Listener for SlowListener {
    type Io = Slow<TcpStream>;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
        let accepted = Listener::poll_accept(&mut self.inner, cx);
        accepted.map_ok(|(io, addr)| (self.slow(io), addr))
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
        let queued = Listener::accept_queued(&mut self.inner)?;
        Ok(queued.map(|(io, addr)| (self.slow(io), addr)))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Slow<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
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

// ===== thousands at the deadline =====

/// As many descriptors as the hard limit allows.
const MOST_DESCRIPTORS: &[&str] = &["sh", "-c", "ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\""];

/// Long enough that everybody is in hand before it begins, and is not to be measured.
const GRACE: Duration = Duration::from_secs(1);

/// All of them are answered in the same moment, and what the report says was written is what came.
#[test]
fn g10_eight_thousand_requests_at_the_deadline_are_answered_as_reported() {
    const NAME: &str = "g10_eight_thousand_requests_at_the_deadline_are_answered_as_reported";
    if !in_turn(NAME, MOST_DESCRIPTORS, 12 * BOUND) {
        pending_at_the_deadline(8_000, Workers::Free);
    }
}

/// The same for streams of HTTP/2, which get no answer, and over TLS: over every front end that has them.
#[test]
fn g10_requests_of_many_end_at_the_deadline_over_http2_and_tls() {
    const NAME: &str = "g10_requests_of_many_end_at_the_deadline_over_http2_and_tls";
    const STREAMS: usize = 100;
    if in_turn(NAME, MOST_DESCRIPTORS, 12 * BOUND) {
        return;
    }
    for front in FrontEnd::seeing() {
        let answered = many_at_the_deadline(front, 80, STREAMS, |target| {
            let client = RawH2::connect(target);
            for stream in 0..STREAMS {
                client.get("/pending", 2 * u32::try_from(stream).expect("few") + 1);
            }
            Box::new(move || answers_until_the_end(client))
        });
        assert_eq!(answered, 0, "{front:?}");
        if front.is_tls() {
            let answered = many_at_the_deadline(front, 250, 1, |target| {
                let mut client = RawClient::connect(target);
                client.get("/pending");
                Box::new(move || {
                    let answer = client.try_read_response();
                    let answered = answer.is_ok_and(|it| it.status == 503 && it.says_close());
                    assert!(ended(client.read_to_end()));
                    (usize::from(answered), Instant::now())
                })
            });
            // As many as their runtime has encrypted within 70 ms.
            assert!(answered > 0, "{front:?}");
        }
    }
}

/// Counts its answers, and when it has read the last of what came.
type Reads = Box<dyn FnOnce() -> (usize, Instant) + Send>;

fn many_at_the_deadline(
    front: FrontEnd,
    clients: usize,
    each: usize,
    client: impl Fn(support::Target) -> Reads,
) -> usize {
    let host = Host::workers(2);
    let terminator = Terminator::builder().grace_period(GRACE).build();
    let server = host.block_on(start(front, &terminator, app(App::default())));
    let clients: Vec<_> = (0..clients)
        .map(|_| client(server.target.clone()))
        .collect();
    let (connections, requests) = (clients.len(), clients.len() * each);
    until("all", || terminator.stats().requests == requests);
    let begin = Instant::now();
    let termination = terminator.terminate();
    let clients: Vec<_> = clients.into_iter().map(thread::spawn).collect();
    let report = block_on(BOUND, "the end", termination);
    let open = open_fds_to(server.port());
    let ends = clients.into_iter().map(|it| it.join().expect("an end"));
    let (answered, last) = ends.fold((0, begin), |(n, last), (more, end)| {
        (n + more, last.max(end))
    });
    let what = format!("{front:?}, {connections} clients with {each}");
    let brief = Brief(&report);
    assert_eq!(open, 0, "{what}: {brief:?}");
    assert_eq!(
        (report.connections(), report.forced),
        (connections, connections),
        "{what}: {brief:?}"
    );
    // A task that has no core while it writes is not waited for.
    let counted = report.answered_at_deadline..=report.answered_at_deadline + report.unclosed;
    assert!(
        counted.contains(&answered),
        "{what}: {answered} of {requests}, {brief:?}"
    );
    let late = last.duration_since(begin).saturating_sub(GRACE);
    measured(
        late,
        LATE,
        &format!("{what}: the last client's end, {answered} answered"),
    );
    promised(&report, GRACE);
    answered
}

/// It acknowledges no PING: it is waited for as long as it may be.
fn answers_until_the_end(mut client: RawH2) -> (usize, Instant) {
    let mut answers = 0;
    loop {
        match client.try_read_frame() {
            Ok(it) => answers += usize::from(it.kind == frame::HEADERS),
            // Over TLS what is cut has no `close_notify`.
            Err(end) if ended(end) => return (answers, Instant::now()),
            Err(end) => panic!("{end:?} behind {answers} answers"),
        }
    }
}

/// Nobody is there to write the answers but the driver: whatever becomes of them, the report is true
/// and the end comes in time.
#[test]
fn eight_thousand_requests_at_the_deadline_end_though_all_workers_are_blocked() {
    const NAME: &str = "eight_thousand_requests_at_the_deadline_end_though_all_workers_are_blocked";
    if !in_turn(NAME, MOST_DESCRIPTORS, 12 * BOUND) {
        pending_at_the_deadline(8_000, Workers::Blocked);
    }
}

#[test]
fn four_hundred_uploads_that_push_end_at_the_deadline() {
    const NAME: &str = "four_hundred_uploads_that_push_end_at_the_deadline";
    if !in_turn(NAME, MOST_DESCRIPTORS, 12 * BOUND) {
        uploads_at_the_deadline(400, Workers::Free);
    }
}

#[test]
fn a_thousand_uploads_that_push_end_at_the_deadline() {
    const NAME: &str = "a_thousand_uploads_that_push_end_at_the_deadline";
    if !in_turn(NAME, MOST_DESCRIPTORS, 12 * BOUND) {
        uploads_at_the_deadline(1_000, Workers::Free);
    }
}

#[test]
fn a_thousand_uploads_that_push_end_though_all_workers_are_blocked() {
    const NAME: &str = "a_thousand_uploads_that_push_end_though_all_workers_are_blocked";
    if !in_turn(NAME, MOST_DESCRIPTORS, 12 * BOUND) {
        uploads_at_the_deadline(1_000, Workers::Blocked);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Workers {
    Free,
    /// All of them, when the deadline comes.
    Blocked,
}

/// A server on two workers, with handlers that don't come to an end.
struct Crowd {
    host: Host,
    terminator: Terminator,
    server: support::Server,
    clients: Vec<StdStream>,
}

impl Crowd {
    /// Connects so many clients and has each send this; says so and gives none where there are not
    /// descriptors enough for both ends of them.
    fn start(n: usize, request: &[u8]) -> Option<Self> {
        let crowd = Self::of(n, request, Terminator::builder())?;
        until("all", || crowd.terminator.stats().requests == n);
        Some(crowd)
    }

    /// Connects so many that have had an answer.
    fn idle(n: usize, builder: TerminatorBuilder) -> Option<Self> {
        let crowd = Self::of(n, b"GET /quick HTTP/1.1\r\nhost: a\r\n\r\n", builder)?;
        until("all are idle", || crowd.terminator.stats().idle == n);
        Some(crowd)
    }

    fn of(n: usize, request: &[u8], builder: TerminatorBuilder) -> Option<Self> {
        let (allowed, wanted) = (descriptor_limit(), n * 2 + 200);
        if allowed < wanted {
            skip(format_args!(
                "{allowed} descriptors are allowed, {wanted} are wanted"
            ));
            return None;
        }
        println!("measured: {n} connections, {allowed} descriptors are allowed");
        let host = Host::workers(2);
        let terminator = builder.grace_period(GRACE).build();
        let router = Router::new()
            .route("/discard", post(discard))
            .merge(app(App::default()));
        let server = host.block_on(start(FrontEnd::Serve, &terminator, router));
        let addr = server.addr.expect("a TCP server");
        let clients: Vec<_> = (0..n)
            .map(|n| {
                // The queue holds a thousand.
                if n % 200 == 0 {
                    until("so many", || terminator.stats().connections == n);
                }
                let mut client = StdStream::connect(addr).expect("it listens");
                client.write_all(request).expect("there is room for it");
                client.set_nonblocking(true).expect("a socket can be that");
                client
            })
            .collect();
        until("all", || terminator.stats().connections == n);
        Some(Self {
            host,
            terminator,
            server,
            clients,
        })
    }

    /// Ends it; `clients` is what one thread does with the clients' sockets until all are closed.
    fn end(
        self,
        what: &str,
        workers: Workers,
        clients: impl FnOnce(Vec<StdStream>, Instant) -> Ends + Send + 'static,
    ) -> (Report, Ends) {
        let n = self.clients.len();
        let begin = Instant::now();
        let termination = self.terminator.terminate();
        let sockets = self.clients;
        let clients = thread::spawn(move || clients(sockets, begin));
        if workers == Workers::Blocked {
            time_passes(GRACE.saturating_sub(Duration::from_millis(100)));
            block_both_workers(&self.host);
        }
        let report = block_on(BOUND, "the end", termination);
        let returned = begin.elapsed().saturating_sub(GRACE);
        let open = open_fds_to(self.server.port());
        let ends = clients.join().expect("it does not panic");
        let last = ends.last.duration_since(begin).saturating_sub(GRACE);
        println!(
            "measured: {what}, {workers:?}: the report {returned:.1?} after the deadline (promised \
             {PROMISED:?}), the last client's end {last:.1?}; {open} descriptors open; received {} \
             times 503, {} ends, {} resets; {report:.0?}",
            ends.answered,
            ends.ended,
            ends.reset,
            report = Brief(&report),
        );
        assert_eq!(ends.ended, n, "clients at their end");
        assert_eq!(open, 0, "descriptors open on return");
        assert_eq!(report.connections(), n);
        measured(returned, LATE, &format!("{what}: the report"));
        promised(&report, GRACE);
        (report, ends)
    }
}

/// Blocks them for longer than the end may take; the runtime is left behind then.
fn block_both_workers(host: &Host) {
    let begun = Arc::<AtomicUsize>::default();
    until("both are blocked", || {
        let begun = Arc::clone(&begun);
        let count = Arc::clone(&begun);
        // A worker may take two of them: then the other one is still to come.
        drop(host.spawn(async move {
            if begun.fetch_add(1, Ordering::SeqCst) < 2 {
                thread::sleep(3 * SOON);
            }
        }));
        count.load(Ordering::SeqCst) >= 2
    });
}

/// Without its stragglers.
struct Brief<'a>(&'a Report);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said = self.0.to_string();
        f.write_str(said.lines().next().unwrap_or_default())
    }
}

/// What the clients have seen.
struct Ends {
    answered: usize,
    ended: usize,
    reset: usize,
    last: Instant,
}

/// Takes whatever comes, for ever.
async fn discard(request: Request) -> &'static str {
    let mut parts = request.into_body().into_data_stream();
    while let Some(Ok(_)) = parts.next().await {}
    "all of it"
}

fn pending_at_the_deadline(n: usize, workers: Workers) {
    let request = b"GET /pending HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let Some(crowd) = Crowd::start(n, request) else {
        return;
    };
    let (report, ends) = crowd.end("pending requests", workers, |clients, begin| {
        // Nothing comes before; a thread that spins would take a core from the server.
        let early = Duration::from_millis(5);
        time_passes(GRACE.saturating_sub(early + begin.elapsed()));
        read_all(clients, |_| {})
    });
    // A task that has no core while it writes is not waited for.
    let counted = report.answered_at_deadline..=report.answered_at_deadline + report.unclosed;
    assert!(
        counted.contains(&ends.answered),
        "{counted:?}, {:?}",
        Brief(&report)
    );
    // All, but what had no core; where only the driver writes, as many as there is time for.
    let at_least = match workers {
        Workers::Free => n - report.unclosed,
        Workers::Blocked => 1,
    };
    assert!(ends.answered >= at_least, "{:?}", Brief(&report));
    assert_eq!(report.forced, n);
}

fn uploads_at_the_deadline(n: usize, workers: Workers) {
    let request =
        b"POST /discard HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000000\r\n\r\n";
    let Some(crowd) = Crowd::start(n, request) else {
        return;
    };
    let (report, ends) = crowd.end("uploads", workers, |clients, _| {
        let part = [0; 16 * 1024];
        read_all(clients, move |client| drop(client.write(&part)))
    });
    assert_eq!(report.forced, n);
    println!("measured: of {n}, {} saw a 503", ends.answered);
    // A reset may have destroyed what was written, and nothing else may.
    let may_be = ends.answered..=ends.answered + ends.reset;
    let said = report.answered_at_deadline;
    assert!(may_be.contains(&said), "reported {said}, not {may_be:?}");
}

/// Reads from each in turn until all are at their end; before each look, it is given to `push`.
fn read_all(clients: Vec<StdStream>, push: impl Fn(&mut StdStream)) -> Ends {
    let mut ends = Ends {
        answered: 0,
        ended: 0,
        reset: 0,
        last: Instant::now(),
    };
    let begin = Instant::now();
    let mut part = [0; 4096];
    let mut clients: Vec<_> = clients.into_iter().map(|it| (it, Vec::new())).collect();
    while !clients.is_empty() && begin.elapsed() < BOUND {
        let mut progress = false;
        clients.retain_mut(|(client, read)| {
            push(client);
            loop {
                match client.read(&mut part) {
                    Ok(0) => {}
                    Ok(n) => {
                        progress = true;
                        read.extend_from_slice(&part[..n]);
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                    Err(_) => ends.reset += 1,
                }
                progress = true;
                let answered = read.starts_with(b"HTTP/1.1 503 ") && read.ends_with(b"\r\n\r\n");
                ends.answered += usize::from(answered);
                ends.ended += 1;
                ends.last = Instant::now();
                return false;
            }
        });
        if !progress {
            thread::park_timeout(Duration::from_millis(1));
        }
    }
    ends
}

/// How many descriptors this process may have.
fn descriptor_limit() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux has this file");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().nth(3));
    let soft = soft.expect("it names this limit");
    soft.parse().unwrap_or(1 << 20)
}

/// A policy as long as the grace period ends connections rather than forcing them, however many there are.
#[test]
fn g3_a_crowd_that_waits_for_a_last_request_is_closed_before_the_deadline() {
    const NAME: &str = "g3_a_crowd_that_waits_for_a_last_request_is_closed_before_the_deadline";
    const CLIENTS: usize = 9_000;
    if in_turn(NAME, MOST_DESCRIPTORS, 12 * BOUND) {
        return;
    }
    let wait = IdlePolicy::LastRequest { wait: GRACE };
    let Some(crowd) = Crowd::idle(CLIENTS, Terminator::builder().idle(wait)) else {
        return;
    };
    support::load::watch_load();
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", crowd.terminator.terminate());
    let stolen = support::load::stolen_in_the_last(begin.elapsed());
    println!(
        "measured: {:?}: {:.0?}; stolen: {stolen:?}",
        begin.elapsed(),
        Brief(&report)
    );
    assert_eq!(report.connections(), CLIENTS);
    // On a machine that others have to themselves it takes longer.
    let all = report.idle == CLIENTS || stolen > GRACE / 10;
    assert!(all, "{:?}, stolen: {stolen:?}", Brief(&report));
    drop(crowd);
}
