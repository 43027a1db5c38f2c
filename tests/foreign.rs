//! What is foreign and runs outside of handlers holds no termination (G11): loggers that panic or
//! block, IO and listeners whose drop panics, spawns, blocks or lingers, wakers that panic or do
//! something when they are dropped.
//!
//! Everything here waits on plain threads, as the subject may take a runtime's with it.
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

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use http_terminator::{
    Connection, GracefulConnection, HttpBuilder, Listener, Phase, Report, Terminator, TowerToHyper,
    TrackedIo, TrackedListener,
};
use support::outside::{
    FAR, Host, LATE, SOON, alone, at_deadline, block_on, ended, in_time, measured,
};
#[cfg(feature = "signal")]
use support::program::signal;
use support::wait::until;
use support::{
    App, BOUND, FrontEnd, Gate, RawClient, RawH2, Server, app, bound, bound_here, kind, load,
    open_fds_to, queued_at, start,
};

const GRACE: Duration = Duration::from_millis(300);

/// The last stream of a first GOAWAY.
const LAST: u32 = (1 << 31) - 1;

/// How long a drop takes that blocks.
const BLOCKED: Duration = Duration::from_secs(3);

// ===== loggers =====

/// The driver says "terminating" as it enters `Draining`, before it has told anybody. The logger
/// looks for something that only a runtime's thread has, and panics: the driver's thread dies there.
#[test]
fn g11_a_logger_that_panics_on_plain_threads_holds_no_termination() {
    const NAME: &str = "g11_a_logger_that_panics_on_plain_threads_holds_no_termination";
    if !alone(NAME, &[], 3 * BOUND) {
        set_logger(Logger::PanicsOnPlainThreads);
        terminations_end();
    }
}

/// The same in the tasks of connections, and in the last drop of what is theirs.
#[test]
fn g11_a_logger_that_panics_everywhere_holds_no_termination() {
    const NAME: &str = "g11_a_logger_that_panics_everywhere_holds_no_termination";
    if !alone(NAME, &[], 3 * BOUND) {
        set_logger(Logger::PanicsEverywhere);
        terminations_end();
    }
}

/// A handler panics; its connection's task unwinds, and in there the connection says that it has
/// ended. A second panic inside of the first would end the process.
#[test]
fn a_logger_that_panics_under_a_handlers_panic_ends_no_process() {
    const NAME: &str = "a_logger_that_panics_under_a_handlers_panic_ends_no_process";
    if alone(NAME, &[], 3 * BOUND) {
        return;
    }
    set_logger(Logger::PanicsEverywhere);
    for (front, http2) in FrontEnd::all_and_tls()
        .into_iter()
        .flat_map(|front| [(front, false), (front, true)])
    {
        let site = Site::start(front, FAR);
        if http2 {
            let panics = RawH2::connect(&site.server.target);
            panics.get("/panic", 1);
            until("its panic", || site.terminator.stats().accepted == 1);
            drop(panics);
        } else {
            let mut panics = site.server.connect();
            panics.get("/panic");
            assert!(ended(panics.read_to_end()), "{front:?}");
        }
        // Its client sees its end before it is counted out.
        until("its end", || site.terminator.stats().connections == 0);
        let mut idle = site.server.connect();
        assert_eq!(idle.fetch("/quick").status, 200, "{front:?}");
        let begin = Instant::now();
        let report = report(site.terminator.terminate());
        measured(begin.elapsed(), SOON, &format!("{front:?}: the drain"));
        assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
        idle.expect_eof();
    }
}

/// The driver is held in its first event, by a full pipe say, and never comes back from there.
#[test]
fn g11_a_logger_that_blocks_for_ever_holds_no_termination() {
    const NAME: &str = "g11_a_logger_that_blocks_for_ever_holds_no_termination";
    if !alone(NAME, &[], 3 * BOUND) {
        set_logger(Logger::BlocksOnPlainThreads);
        terminations_end();
    }
}

/// The thread that waits for signals says which one has come, and then acts on it.
#[cfg(feature = "signal")]
#[test]
fn a_logger_that_panics_swallows_no_signal() {
    const NAME: &str = "a_logger_that_panics_swallows_no_signal";
    if !alone(NAME, &[], 3 * BOUND) {
        set_logger(Logger::PanicsOnPlainThreads);
        a_signal_is_heard();
    }
}

#[cfg(feature = "signal")]
#[test]
fn a_logger_that_blocks_swallows_no_signal() {
    const NAME: &str = "a_logger_that_blocks_swallows_no_signal";
    if !alone(NAME, &[], 3 * BOUND) {
        set_logger(Logger::BlocksOnPlainThreads);
        a_signal_is_heard();
    }
}

#[cfg(feature = "signal")]
fn a_signal_is_heard() {
    let site = Site::start(FrontEnd::Serve, FAR);
    let heard = site.terminator.terminate_on_signal().expect("it listens");
    let mut idle = site.server.connect();
    assert_eq!(idle.fetch("/quick").status, 200);
    assert!(signal(std::process::id(), "TERM"));
    let begin = Instant::now();
    let report = report(heard);
    measured(begin.elapsed(), SOON, "the drain after a SIGTERM");
    assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
    idle.expect_eof();
}

/// A drain, a deadline and a `force()`, over every front end.
fn terminations_end() {
    for front in FrontEnd::all_and_tls() {
        a_drain_ends(front);
        a_deadline_holds(front);
        a_force_ends(front);
        http2_ends(front);
    }
}

fn a_drain_ends(front: FrontEnd) {
    let site = Site::start(front, FAR);
    let mut idle = site.server.connect();
    assert_eq!(idle.fetch("/quick").status, 200, "{front:?}");
    let mut slow = site.server.connect();
    slow.get("/slow");
    site.gate.wait_entered(1);
    let begin = Instant::now();
    let termination = site.terminator.terminate();
    idle.expect_eof();
    site.gate.open();
    let response = slow.read_response();
    assert_eq!(response.status, 200, "{front:?}: {response:?}");
    assert!(response.says_close(), "{front:?}: {response:?}");
    slow.expect_eof();
    let report = report(termination);
    measured(begin.elapsed(), SOON, &format!("{front:?}: the drain"));
    site.assert_no_fds();
    assert!(report.is_clean(), "{front:?}: {report}");
    let counts = (report.idle, report.finished, report.connections());
    assert_eq!(counts, (1, 1, 2), "{front:?}: {report}");
}

fn a_deadline_holds(front: FrontEnd) {
    let site = Site::start(front, GRACE);
    let mut pending = site.server.connect();
    pending.get("/pending");
    until("its request", || site.terminator.stats().requests == 1);
    let mut upgraded = site.server.connect();
    upgraded.get_upgrade("/upgrade-held");
    assert_eq!(upgraded.read_response().status, 101, "{front:?}");
    until("it", || site.terminator.stats().upgraded == 1);
    let begin = Instant::now();
    let termination = site.terminator.terminate();
    assert_eq!(pending.read_response().status, 503, "{front:?}");
    pending.expect_eof();
    assert!(ended(upgraded.read_to_end()), "{front:?}");
    at_deadline(begin, GRACE, &format!("{front:?}: the clients' end"));
    let report = report(termination);
    at_deadline(begin, GRACE, &format!("{front:?}: the report"));
    site.assert_no_fds();
    let counts = (report.forced, report.answered_at_deadline);
    assert_eq!(counts, (2, 1), "{front:?}: {report}");
    assert_eq!(report.connections(), 2, "{front:?}: {report}");
}

fn a_force_ends(front: FrontEnd) {
    let site = Site::start(front, FAR);
    let mut pending = site.server.connect();
    pending.get("/pending");
    until("its request", || site.terminator.stats().requests == 1);
    drop(site.terminator.terminate());
    let begin = Instant::now();
    let termination = site.terminator.force();
    assert_eq!(pending.read_response().status, 503, "{front:?}");
    pending.expect_eof();
    let report = report(termination);
    measured(begin.elapsed(), LATE, &format!("{front:?}: after force()"));
    site.assert_no_fds();
    let counts = (report.forced, report.answered_at_deadline);
    assert_eq!(counts, (1, 1), "{front:?}: {report}");
}

/// A drain, and behind it a deadline.
fn http2_ends(front: FrontEnd) {
    let site = Site::start(front, GRACE);
    let mut idle = RawH2::connect(&site.server.target);
    idle.get("/quick", 1);
    idle.read_until(kind::DATA);
    let mut slow = RawH2::connect(&site.server.target);
    slow.get("/slow", 1);
    slow.get("/pending", 3);
    until("two", || site.terminator.stats().requests == 2);
    let begin = Instant::now();
    let termination = site.terminator.terminate();
    for client in [&mut idle, &mut slow] {
        assert_eq!(
            client.read_until(kind::GOAWAY).goaway().0,
            LAST,
            "{front:?}"
        );
        let ping = client.read_until(kind::PING);
        client.ack_ping(&ping);
        let last = client.read_until(kind::GOAWAY).goaway();
        assert!(last.0 < LAST, "{front:?}: {last:?}");
    }
    idle.expect_eof_within(GRACE);
    site.gate.open();
    assert_eq!(slow.read_until(kind::DATA).stream, 1, "{front:?}");
    while let Ok(more) = slow.try_read_frame() {
        assert_ne!(more.kind, kind::HEADERS, "{front:?}: {more:?}");
    }
    at_deadline(begin, GRACE, &format!("{front:?}: an HTTP/2 client's end"));
    let report = report(termination);
    site.assert_no_fds();
    let counts = (report.finished, report.forced, report.connections());
    assert_eq!(counts, (1, 1, 2), "{front:?}: {report}");
}

/// What a logger does that was not written for plain threads. Only to what this crate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logger {
    PanicsOnPlainThreads,
    PanicsEverywhere,
    /// On plain threads, but not on the test's.
    BlocksOnPlainThreads,
}

fn set_logger(logger: Logger) {
    OURS.set(true);
    let set = tracing::subscriber::set_global_default(logger);
    set.expect("this process has no other");
}

thread_local! {
    /// Set on the thread of the test.
    static OURS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("http_terminator")
    }

    fn event(&self, _: &Event<'_>) {
        let is_plain = Handle::try_current().is_err();
        match self {
            Self::PanicsOnPlainThreads if !is_plain => {}
            Self::PanicsOnPlainThreads | Self::PanicsEverywhere => {
                panic!("this logger panics on purpose");
            }
            Self::BlocksOnPlainThreads if !is_plain || OURS.get() => {}
            Self::BlocksOnPlainThreads => loop {
                thread::park();
            },
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

// ===== drops of IO =====

/// The driver drops the three sockets, one after another, and with the first panic its thread is
/// gone: an upgraded one that nobody polls, half an upload, one that lies in a drawer.
#[test]
fn g11_an_io_whose_drop_panics_holds_no_other_connection() {
    let odds = Odds::start(Drops::Panics);
    let report = odds.end_at_the_deadline();
    odds.assert_all_dropped_and_closed(&report);
}

/// As it may on a runtime's thread, and not on the driver's: the same panic.
#[test]
fn g11_an_io_whose_drop_spawns_holds_no_other_connection() {
    let odds = Odds::start(Drops::Spawns);
    let report = odds.end_at_the_deadline();
    odds.assert_all_dropped_and_closed(&report);
}

/// Three seconds for each of three, one after another, before anybody else's socket is closed.
#[test]
fn g11_an_io_whose_drop_blocks_holds_no_other_connection() {
    let report = Odds::start(Drops::Blocks).end_at_the_deadline();
    assert_eq!(report.unclosed, 3, "{report}");
}

/// What is queued for a terminator that has ended is dropped as it is taken: of several the second drop came within the panic of the first, and
/// ended the process.
#[test]
fn ios_whose_drop_panics_are_dropped_behind_the_end_one_by_one() {
    const NAME: &str = "ios_whose_drop_panics_are_dropped_behind_the_end_one_by_one";
    if alone(NAME, &[], 3 * BOUND) {
        return;
    }
    let host = Host::workers(1);
    let _inside = host.enter();
    for drops in [Drops::PanicsAlways, Drops::Spawns] {
        let (inner, addr) = bound_here();
        let mut clients: Vec<_> = (0..3).map(|_| RawClient::connect(addr)).collect();
        until("their handshakes", || queued_at(addr) == 3);
        let terminator = Terminator::new();
        assert!(report(terminator.terminate()).is_clean());
        let dropped = Arc::<AtomicUsize>::default();
        let listener = OddListener {
            inner,
            io: drops,
            dropped: Arc::clone(&dropped),
            _own: Odd::new((), Drops::Plainly, &Arc::default()),
        };
        drop(terminator.serve(listener, app(App::default())));
        for client in &mut clients {
            assert!(ended(client.read_to_end()), "{drops:?}");
        }
        until("their drops", || dropped.load(Ordering::SeqCst) == 3);
    }
}

/// Also where there are more of them than threads to drop them.
#[test]
fn g11_many_ios_whose_drop_blocks_hold_no_end() {
    for n in [40, 100] {
        load::watch_load();
        let terminator = Terminator::builder().grace_period(Duration::ZERO).build();
        let tracked: Vec<_> = (0..n)
            .map(|_| Odd::new(tokio::io::duplex(64).0, Drops::Blocks, &Arc::default()))
            .map(|io| terminator.track(io))
            .collect();
        let begin = Instant::now();
        let report = block_on(BOUND, "the end", terminator.terminate());
        measured(begin.elapsed(), LATE, &format!("the end of {n}"));
        assert_eq!((report.forced, report.unclosed), (n, n), "{report}");
        drop(tracked);
    }
}

/// While serving, each forced alone, and right after each other: the last one is like any other.
#[test]
fn g11_an_io_that_is_forced_behind_some_whose_drop_blocks_is_closed() {
    load::watch_load();
    let terminator = Terminator::builder().grace_period(FAR).build();
    let dropped = Arc::<AtomicUsize>::default();
    let tracked: Vec<_> = (0..20)
        .map(|_| Odd::new(tokio::io::duplex(64).0, Drops::Blocks, &Arc::default()))
        .chain([Odd::new(tokio::io::duplex(64).0, Drops::Plainly, &dropped)])
        .map(|io| terminator.track(io))
        .collect();
    let begin = Instant::now();
    for io in &tracked {
        io.connection().force();
    }
    until("it is closed", || dropped.load(Ordering::SeqCst) == 1);
    measured(begin.elapsed(), SOON, "the last one's end");
}

/// One that its own task drops, as its request has been answered at the deadline, and one that is inside of its own poll.
#[test]
fn an_io_that_blocks_in_its_own_task_is_counted() {
    let site = OddSite::start(Drops::Blocks, Drops::Plainly, GRACE);
    let pending = RawClient::connect(site.addr);
    pending.get("/pending");
    until("its request", || site.terminator.stats().requests == 1);
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", site.terminator.terminate());
    at_deadline(begin, GRACE, "the end");
    assert_eq!((report.forced, report.unclosed), (1, 1), "{report}");
    drop(pending);

    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(GRACE).build();
    let mut io = terminator.track(Sleeper);
    let (tell, told) = mpsc::channel();
    drop(host.spawn(async move {
        let _ = tell.send(());
        tokio::io::AsyncReadExt::read_u8(&mut io).await
    }));
    told.recv_timeout(BOUND).expect("it is polled");
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", terminator.terminate());
    at_deadline(begin, GRACE, "the end");
    assert_eq!((report.forced, report.unclosed), (1, 1), "{report}");
}

/// An IO whose every read blocks.
struct Sleeper;

impl AsyncRead for Sleeper {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        thread::sleep(BLOCKED);
        Poll::Ready(Ok(()))
    }
}

/// In the drain each is dropped by its own task: an idle one, and one whose request finishes.
#[test]
fn an_io_whose_drop_panics_in_its_own_task_is_counted_out() {
    for drops in [Drops::Panics, Drops::Spawns] {
        let site = OddSite::start(drops, Drops::Plainly, FAR);
        let mut idle = RawClient::connect(site.addr);
        assert_eq!(idle.fetch("/quick").status, 200, "{drops:?}");
        let mut slow = RawClient::connect(site.addr);
        slow.get("/slow");
        site.gate.wait_entered(1);
        let begin = Instant::now();
        let termination = site.terminator.terminate();
        idle.expect_eof();
        site.gate.open();
        assert_eq!(slow.read_response().status, 200, "{drops:?}");
        slow.expect_eof();
        let report = block_on(BOUND, "the end", termination);
        measured(begin.elapsed(), SOON, &format!("{drops:?}: the drain"));
        let counts = (report.idle, report.finished, report.connections());
        assert_eq!(counts, (1, 1, 2), "{drops:?}: {report}");
        assert!(report.is_clean(), "{drops:?}: {report}");
        assert_eq!(site.dropped.load(Ordering::SeqCst), 2, "{drops:?}");
        assert_eq!(open_fds_to(site.addr.port()), 0, "{drops:?}");
    }
}

/// Somebody has a duplicate of its socket, as a process that is just being started has for a moment: its peer is told of the end all the same.
#[test]
fn g10_a_socket_that_others_hold_is_ended_for_its_peer() {
    let host = Host::workers(2);
    let terminator = Terminator::builder().grace_period(GRACE).build();
    let (listener, addr) = bound(host.handle());
    let mut listener = terminator.listen(listener);
    let kept = Arc::<Mutex<Vec<OwnedFd>>>::default();
    let keeps = Arc::clone(&kept);
    drop(host.spawn(async move {
        while let Some((io, _)) = listener.accept().await {
            let duplicate = io.with(|io| io.as_fd().try_clone_to_owned());
            let duplicate = duplicate.expect("it is there").expect("a descriptor");
            keeps.lock().expect("no panic").push(duplicate);
            let service = TowerToHyper::new(app(App::default()));
            let connection = io.connection();
            tokio::spawn(connection.serve(&HttpBuilder::default(), io, service));
        }
    }));
    let mut idle = RawClient::connect(addr);
    assert_eq!(idle.fetch("/quick").status, 200);
    let mut silent = RawClient::connect(addr);
    let mut pending = RawClient::connect(addr);
    pending.get("/pending");
    until("all of them", || terminator.stats().requests == 1);
    until("all of them", || kept.lock().expect("no panic").len() == 3);
    let report = block_on(BOUND, "the end", terminator.terminate());
    assert_eq!((report.idle, report.forced), (2, 1), "{report}");
    for client in [&mut idle, &mut silent] {
        client.expect_eof();
    }
    assert_eq!(pending.read_response().status, 503);
    pending.expect_eof();
    assert_eq!(kept.lock().expect("no panic").len(), 3);
}

// ===== drops of listeners =====

/// Nobody polls the listener, and what waits in its queue blocks as it is dropped.
#[test]
fn a_listener_is_closed_though_what_is_queued_blocks() {
    load::watch_load();
    let terminator = Terminator::builder().grace_period(FAR).build();
    let host = Host::workers(1);
    let (odd, addr) = {
        let _inside = host.enter();
        let (inner, addr) = bound_here();
        let odd = OddListener {
            inner,
            io: Drops::Blocks,
            dropped: Arc::default(),
            _own: Odd::new((), Drops::Plainly, &Arc::default()),
        };
        (terminator.listen(odd), addr)
    };
    let clients = [RawClient::connect(addr), RawClient::connect(addr)];
    // Who has connected as he sees it may be in a handshake still as the kernel does.
    until("both are in the queue", || queued_at(addr) == 2);
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", terminator.force());
    measured(begin.elapsed(), LATE, "the end");
    assert_eq!((report.lost_in_queue, report.unclosed), (2, 2), "{report}");
    assert_eq!(report.connections(), 0, "{report}");
    assert!(report.stragglers.is_empty(), "{report}");
    assert!(std::net::TcpStream::connect(addr).is_err(), "{report}");
    drop((clients, odd));
}

/// Behind two that wait in its queue it panics, or blocks: those two are counted and reset all the same.
#[test]
fn what_is_queued_before_a_listener_panics_or_blocks_is_counted() {
    load::watch_load();
    for blocks in [false, true] {
        let terminator = Terminator::builder().grace_period(FAR).build();
        let host = Host::workers(1);
        let _inside = host.enter();
        let (ours, mut theirs): (Vec<_>, Vec<_>) = (0..2).map(|_| tokio::io::duplex(64)).unzip();
        let listener = terminator.listen(Breaks { ours, blocks });
        let begin = Instant::now();
        let report = block_on(BOUND, "the end", terminator.force());
        measured(begin.elapsed(), LATE, "the end");
        assert_eq!(report.lost_in_queue, 2, "blocks: {blocks}: {report}");
        for one in &mut theirs {
            let mut byte = [0];
            let ended = host.block_on(tokio::io::AsyncReadExt::read(one, &mut byte));
            assert_eq!(ended.expect("an end"), 0, "blocks: {blocks}");
        }
        drop(listener);
    }
}

struct Breaks {
    ours: Vec<tokio::io::DuplexStream>,
    blocks: bool,
}

impl Listener for Breaks {
    type Io = tokio::io::DuplexStream;
    type Addr = ();

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
        Poll::Pending
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
        let Some(one) = self.ours.pop() else {
            assert!(self.blocks, "this listener panics on purpose");
            thread::sleep(BLOCKED);
            return Ok(None);
        };
        Ok(Some((one, ())))
    }
}

/// Nobody polls the listener: the driver drops it, and dies of it.
#[test]
fn g11_a_listener_that_panics_when_the_driver_drops_it_holds_no_termination() {
    an_unpolled_listener_holds_nothing(Drops::Panics);
}

#[test]
fn g11_a_listener_that_spawns_when_the_driver_drops_it_holds_no_termination() {
    an_unpolled_listener_holds_nothing(Drops::Spawns);
}

#[test]
fn g11_a_listener_that_blocks_when_the_driver_drops_it_holds_no_termination() {
    let report = an_unpolled_listener_holds_nothing(Drops::Blocks);
    assert_eq!(report.unclosed, 1, "{report}");
}

/// It is dropped in the drain by the accept loop that it belongs to, before it is counted out.
#[test]
fn a_listener_that_panics_in_its_own_task_is_counted_out() {
    for drops in [Drops::Panics, Drops::Blocks] {
        let site = OddSite::start(Drops::Plainly, drops, FAR);
        let mut idle = RawClient::connect(site.addr);
        assert_eq!(idle.fetch("/quick").status, 200, "{drops:?}");
        let begin = Instant::now();
        let report = block_on(BOUND, "the end", site.terminator.terminate());
        let allowed = match drops {
            // In the grace period it is waited for.
            Drops::Blocks => BLOCKED + SOON,
            _ => SOON,
        };
        measured(begin.elapsed(), allowed, &format!("{drops:?}: the drain"));
        assert_eq!((report.idle, report.forced), (1, 0), "{drops:?}: {report}");
        assert!(report.is_clean(), "{drops:?}: {report}");
        idle.expect_eof();
    }
}

/// Beside it are a request without an end and an idle connection, on a listener like any other.
fn an_unpolled_listener_holds_nothing(drops: Drops) -> Report {
    let site = Site::start(FrontEnd::Serve, GRACE);
    let dropped = Arc::new(AtomicUsize::new(0));
    let (odd, _) = {
        let _inside = site.host.enter();
        let (inner, addr) = bound_here();
        let odd = OddListener {
            inner,
            io: Drops::Plainly,
            dropped: Arc::default(),
            _own: Odd::new((), drops, &dropped),
        };
        (site.terminator.listen(odd), addr)
    };
    let mut pending = site.server.connect();
    pending.get("/pending");
    until("its request", || site.terminator.stats().requests == 1);
    let mut idle = site.server.connect();
    assert_eq!(idle.fetch("/quick").status, 200);
    let begin = Instant::now();
    let termination = site.terminator.terminate();
    idle.expect_eof();
    measured(begin.elapsed(), SOON, &format!("{drops:?}: the idle one"));
    assert_eq!(pending.read_response().status, 503, "{drops:?}");
    pending.expect_eof();
    at_deadline(begin, GRACE, &format!("{drops:?}: the client's end"));
    let report = report(termination);
    at_deadline(begin, GRACE, &format!("{drops:?}: the report"));
    site.assert_no_fds();
    assert_eq!((report.idle, report.forced), (1, 1), "{drops:?}: {report}");
    if drops != Drops::Blocks {
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "{drops:?}");
    }
    drop(odd);
    report
}

// ===== SO_LINGER =====

/// Accepted sockets inherit the option. Each of the three owes its client megabytes, so that every
/// close waits five seconds for the client to take them.
#[test]
fn g11_sockets_that_linger_hold_no_deadline() {
    let site = Site::start(FrontEnd::Serve, GRACE);
    let (addr, server) = {
        let _inside = site.host.enter();
        let (listener, addr) = bound_here();
        let lingers = SockRef::from(&listener).set_linger(Some(Duration::from_secs(5)));
        lingers.expect("a TCP socket takes it");
        let router = app(App::default());
        let server = site.host.spawn(site.terminator.serve(listener, router));
        (addr, server)
    };
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let client = RawClient::connect(addr);
            client.get("/big");
            client
        })
        .collect();
    until("their requests", || {
        let stats = site.terminator.stats();
        (stats.connections, stats.busy) == (3, 3)
    });
    let others = site.others();
    let begin = Instant::now();
    let termination = site.terminator.terminate();
    others.wait(begin, "lingering ones");
    let report = report(termination);
    at_deadline(begin, GRACE, "lingering ones: the report");
    assert_eq!(open_fds_to(addr.port()), 0, "{report}");
    assert_eq!(report.forced, 5, "{report}");
    for mut reader in readers {
        assert!(ended(reader.read_to_end()));
    }
    drop(server);
}

/// By the task that has one, when it is cut, too: its only thread was stuck in there for all five seconds.
#[test]
fn g11_g21_who_lets_go_of_a_socket_that_lingers_is_not_held_by_it() {
    let host = Host::workers(1);
    let [cut, other] = [(); 2].map(|()| Terminator::new());
    let (lingers, addr) = bound(host.handle());
    let set = SockRef::from(&lingers).set_linger(Some(Duration::from_secs(5)));
    set.expect("a TCP socket takes it");
    drop(host.spawn(cut.serve(lingers, app(App::default()))));
    let (listener, beside) = bound(host.handle());
    drop(host.spawn(other.serve(listener, app(App::default()))));
    let mut reader = RawClient::connect(addr);
    reader.get("/big");
    until("its request", || cut.stats().busy == 1);
    let mut client = RawClient::connect(beside);
    assert_eq!(client.fetch("/quick").status, 200);
    let begin = Instant::now();
    let forced = cut.force();
    while begin.elapsed() < GRACE {
        let asked = Instant::now();
        assert_eq!(client.fetch("/quick").status, 200);
        measured(asked.elapsed(), Duration::from_secs(1), "beside it");
    }
    let report = block_on(BOUND, "the end", forced);
    assert_eq!(report.forced, 1, "{report}");
    assert!(ended(reader.read_to_end()));
}

// ===== wakers that panic =====

/// The driver wakes who waits, in one go: who comes behind the one that panics is forgotten, and the
/// driver is gone. (Not so with tokens, which tokio-util wakes: their docs say so.)
#[test]
fn a_waker_that_panics_keeps_nobody_else_asleep() {
    type Waits = fn(&Terminator) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    let kinds: [(&str, Waits); 3] = [
        ("terminated()", |terminator| {
            let terminated = terminator.terminated();
            Box::pin(async move { drop(terminated.await) })
        }),
        ("draining()", |terminator| Box::pin(terminator.draining())),
        ("reached()", |terminator| {
            let terminator = terminator.clone();
            Box::pin(async move { terminator.reached(Phase::Draining).await })
        }),
    ];
    for (what, waits) in kinds {
        let terminator = Terminator::builder().grace_period(GRACE).build();
        let woken: [_; 2] = std::array::from_fn(|_| Arc::new(Counts::default()));
        let wakers = [
            Waker::from(Arc::clone(&woken[0])),
            Panics::waker(),
            Waker::from(Arc::clone(&woken[1])),
        ];
        let mut waiting: Vec<_> = wakers.iter().map(|_| waits(&terminator)).collect();
        for (waits, waker) in waiting.iter_mut().zip(&wakers) {
            let polled = waits.as_mut().poll(&mut Context::from_waker(waker));
            assert!(polled.is_pending(), "{what}");
        }
        let begin = Instant::now();
        let report = block_on(BOUND, what, terminator.terminate());
        measured(begin.elapsed(), SOON, &format!("{what}: the end"));
        assert!(report.is_clean(), "{what}: {report}");
        for woken in &woken {
            until(what, || woken.0.load(Ordering::SeqCst) > 0);
        }
        for mut waits in waiting {
            let polled = waits.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_ready(), "{what}");
        }
    }
}

/// A hundred idle connections are woken by the runtime's thread in the order in which they came, and
/// in their midst is one that panics: those behind it stay open until the deadline.
#[test]
fn a_connection_whose_waker_panics_holds_no_other() {
    let site = Site::start(FrontEnd::Serve, FAR);
    let mut clients: Vec<RawClient> = Vec::new();
    let connect_some = |clients: &mut Vec<RawClient>| {
        for _ in 0..50 {
            let mut client = site.server.connect();
            assert_eq!(client.fetch("/quick").status, 200);
            clients.push(client);
        }
    };
    connect_some(&mut clients);
    let (io, _peer) = tokio::io::duplex(64);
    let io = site.terminator.track(io);
    let connection = io.connection();
    let service = TowerToHyperService::new(app(App::default()));
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut served = Box::pin(connection.serve(&builder, io, service));
    let panics = Panics::waker();
    let polled = {
        let _inside = site.host.enter();
        served.as_mut().poll(&mut Context::from_waker(&panics))
    };
    assert!(polled.is_pending());
    connect_some(&mut clients);

    let begin = Instant::now();
    drop(site.terminator.terminate());
    for client in &mut clients {
        client.expect_eof();
    }
    measured(begin.elapsed(), SOON, "the end of 100 idle connections");
    // Nobody polls it.
    let begin = Instant::now();
    let report = report(site.terminator.force());
    measured(begin.elapsed(), LATE, "the report after force()");
    assert_eq!(report.connections(), 101, "{report}");
    assert!(report.idle >= 100, "{report}");
    drop(served);
}

/// Upgraded streams have no task that watches them: their reader is woken, by the driver where there
/// is no runtime, in the order in which they came. The one in the middle panics.
#[test]
fn g11_a_tracked_io_whose_waker_panics_holds_no_termination() {
    let terminator = Terminator::builder().grace_period(GRACE).build();
    let woken: [_; 2] = std::array::from_fn(|_| Arc::new(Counts::default()));
    let wakers = [
        Waker::from(Arc::clone(&woken[0])),
        Panics::waker(),
        Waker::from(Arc::clone(&woken[1])),
    ];
    let mut peers = Vec::new();
    let ios = wakers.each_ref().map(|waker| {
        let (io, peer) = tokio::io::duplex(64);
        let mut io = terminator.track(io);
        assert!(poll_read(&mut io, waker).is_pending());
        peers.push(peer);
        io
    });
    let begin = Instant::now();
    let termination = terminator.terminate();
    for woken in &woken {
        until("it is told", || woken.0.load(Ordering::SeqCst) > 0);
    }
    let report = report(termination);
    at_deadline(begin, GRACE, "the report");
    assert_eq!(report.forced, 3, "{report}");
    drop(ios);
}

#[test]
fn g11_a_listener_whose_waker_panics_holds_no_termination() {
    let site = Site::start(FrontEnd::Serve, GRACE);
    let mut listener = {
        let _inside = site.host.enter();
        site.terminator.listen(bound_here().0)
    };
    let panics = Panics::waker();
    {
        let _inside = site.host.enter();
        let mut accept = pin!(listener.accept());
        let polled = accept.as_mut().poll(&mut Context::from_waker(&panics));
        assert!(polled.is_pending());
    }
    let others = site.others();
    let begin = Instant::now();
    let termination = site.terminator.terminate();
    others.wait(begin, "an acceptor whose waker panics");
    let report = report(termination);
    at_deadline(begin, GRACE, "the report");
    assert_eq!(
        (report.forced, report.answered_at_deadline),
        (2, 1),
        "{report}"
    );
}

/// Runtimes help to wake thousands as a drain begins. One that took that of somebody else's, polled outside of any, was held by it.
#[test]
fn a_waker_that_blocks_holds_up_no_runtime() {
    struct Blocks;

    impl Wake for Blocks {
        fn wake(self: Arc<Self>) {
            thread::sleep(BLOCKED);
        }
    }

    let terminator = Terminator::builder().grace_period(SOON).build();
    let mut ios: Vec<_> = (0..3)
        .map(|_| {
            let (io, peer) = tokio::io::duplex(1);
            (terminator.track(io), peer)
        })
        .collect();
    for (io, _) in &mut ios {
        assert!(poll_read(io, &Waker::from(Arc::new(Blocks))).is_pending());
    }
    let (tell, told) = std::sync::mpsc::channel();
    let gate = Gate::new();
    let state = App {
        gate: gate.clone(),
        terminator: None,
    };
    let of_server = terminator.clone();
    let server = thread::spawn(move || {
        let host = Host::current_thread();
        host.block_on(async {
            let (listener, addr) = bound_here();
            tell.send(addr).expect("it waits");
            of_server.serve(listener, app(state)).await;
        });
    });
    let mut client = RawClient::connect(told.recv_timeout(BOUND).expect("it starts"));
    client.get("/slow");
    gate.wait_entered(1);
    let ends = terminator.terminate();
    // Time for the runtime to do the wrong thing.
    support::wait::time_passes(Duration::from_millis(50));
    gate.open();
    assert_eq!(client.read_response().status, 200);
    report(ends);
    // Their drops would wake, here.
    std::mem::forget(ios);
    server.join().expect("no panic");
}

/// Who forces one alone whose waker panics neither gets the panic nor is it left open.
#[test]
fn one_that_is_forced_alone_is_closed_though_its_waker_panics() {
    struct PanicsAnywhere;

    impl Wake for PanicsAnywhere {
        fn wake(self: Arc<Self>) {
            panic!("this waker panics on purpose");
        }
    }

    let terminator = Terminator::builder().grace_period(None).build();
    let dropped = Arc::<AtomicUsize>::default();
    let (io, peer) = tokio::io::duplex(1);
    // Its drop would wake, here.
    std::mem::forget(peer);
    let mut io = terminator.track(Odd::new(io, Drops::Plainly, &dropped));
    let waker = Waker::from(Arc::new(PanicsAnywhere));
    assert!(poll_read(&mut io, &waker).is_pending());
    io.connection().force();
    until("its close", || dropped.load(Ordering::SeqCst) == 1);
    let report = report(terminator.terminate());
    assert_eq!(report.forced, 0, "before the drain: {report}");
}

/// On every thread but the test's, whose own drops wake as well.
struct Panics(ThreadId);

impl Panics {
    fn waker() -> Waker {
        Waker::from(Arc::new(Self(thread::current().id())))
    }
}

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        assert_eq!(
            thread::current().id(),
            self.0,
            "this waker panics on purpose"
        );
    }
}

#[derive(Default)]
struct Counts(AtomicUsize);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

// ===== wakers that do something when they are dropped =====

/// An executor whose tasks live as long as their wakers: the last one drops the task, and that looks
/// at the connection that is just being read. Its socket's lock is held at that moment.
#[test]
fn a_reader_may_replace_a_waker_whose_drop_looks_at_the_connection() {
    waker_is_replaced("a reader", |calls| {
        let terminator = Terminator::builder().settle(Duration::ZERO).build();
        let (io, peer) = tokio::io::duplex(1);
        let mut io = terminator.track(io);
        let old = calls.waker(&terminator, Some(io.connection()));
        assert!(poll_read(&mut io, &old).is_pending());
        drop(old);
        assert!(poll_read(&mut io, Waker::noop()).is_pending());
        drop(peer);
    });
}

#[test]
fn a_writer_may_replace_a_waker_whose_drop_looks_at_the_connection() {
    waker_is_replaced("a writer", |calls| {
        let terminator = Terminator::builder().settle(Duration::ZERO).build();
        let (io, peer) = tokio::io::duplex(1);
        let mut io = terminator.track(io);
        let old = calls.waker(&terminator, Some(io.connection()));
        assert!(poll_write(&mut io, &old).is_ready(), "one byte fits");
        assert!(poll_write(&mut io, &old).is_pending());
        drop(old);
        assert!(poll_write(&mut io, Waker::noop()).is_pending());
        drop(peer);
    });
}

#[test]
fn an_acceptor_may_replace_a_waker_whose_drop_calls_the_terminator() {
    waker_is_replaced("an acceptor", |calls| {
        let host = Host::current_thread();
        let _inside = host.enter();
        let terminator = Terminator::new();
        let mut listener = terminator.listen(bound_here().0);
        let accept = |listener: &mut TrackedListener<TcpListener>, waker: &Waker| {
            let mut accept = pin!(listener.accept());
            accept
                .as_mut()
                .poll(&mut Context::from_waker(waker))
                .is_pending()
        };
        let old = calls.waker(&terminator, None);
        assert!(accept(&mut listener, &old));
        drop(old);
        accept(&mut listener, Waker::noop());
    });
}

#[test]
fn who_waits_may_replace_a_waker_whose_drop_calls_the_terminator() {
    waker_is_replaced("terminated()", |calls| {
        let terminator = Terminator::new();
        let mut waits = pin!(terminator.terminated());
        let old = calls.waker(&terminator, None);
        let polled = waits.as_mut().poll(&mut Context::from_waker(&old));
        assert!(polled.is_pending());
        drop(old);
        let _ = waits.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    });
    waker_is_replaced("draining()", |calls| {
        let terminator = Terminator::new();
        let mut waits = pin!(terminator.draining());
        let old = calls.waker(&terminator, None);
        let polled = waits.as_mut().poll(&mut Context::from_waker(&old));
        assert!(polled.is_pending());
        drop(old);
        let _ = waits.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    });
}

/// Under `Spread` the waker of `draining()` is kept until its turn.
#[test]
fn who_waits_for_its_turn_may_replace_a_waker_whose_drop_calls_the_terminator() {
    waker_is_replaced("draining() under Spread", |calls| {
        let over = BOUND;
        let terminator = Terminator::builder()
            .idle(http_terminator::IdlePolicy::Spread { over })
            .build();
        let guard = terminator.guard().expect("nobody has asked for an end");
        // The first has its turn at once.
        let mut first = pin!(terminator.draining());
        let mut waits = pin!(terminator.draining());
        drop(terminator.terminate());
        block_on(BOUND, "the drain", terminator.reached(Phase::Draining));
        let _ = first.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let old = calls.waker(&terminator, None);
        let polled = waits.as_mut().poll(&mut Context::from_waker(&old));
        drop(old);
        let again = waits.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled.is_pending(), again.is_pending());
        drop(guard);
        drop(terminator.force());
    });
}

#[test]
fn a_watched_connection_may_replace_a_waker_whose_drop_looks_at_it() {
    waker_is_replaced("a watched connection", |calls| {
        let terminator = Terminator::builder().settle(Duration::ZERO).build();
        let (io, _peer) = tokio::io::duplex(1);
        let io = terminator.track(io);
        let mut watched = pin!(io.connection().watch(Stays));
        let old = calls.waker(&terminator, Some(io.connection()));
        let polled = watched.as_mut().poll(&mut Context::from_waker(&old));
        assert!(polled.is_pending());
        drop(old);
        let _ = watched
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
    });
}

/// Runs it on a thread of its own, as it may never come back; it must have called by then.
fn waker_is_replaced(what: &'static str, replaces: impl FnOnce(&Calls) + Send + 'static) {
    let calls = Calls::default();
    let called = Arc::clone(&calls.0);
    in_time(SOON, what, move || replaces(&calls));
    assert!(
        called.load(Ordering::SeqCst),
        "{what}: no waker was dropped"
    );
}

/// Makes wakers that call back as they are dropped.
#[derive(Default)]
struct Calls(Arc<AtomicBool>);

impl Calls {
    fn waker(&self, terminator: &Terminator, connection: Option<Connection>) -> Waker {
        let (terminator, called) = (terminator.clone(), Arc::clone(&self.0));
        // Outside of the waker: it is no part of what is looked at.
        let watched = connection.as_ref().map(|it| Box::pin(it.watch(Stays)));
        let calls = move || {
            println!("{}", terminator.stats());
            drop(terminator.guard());
            drop(terminator.terminate());
            drop(terminator.track(()));
            if let (Some(mut watched), Some(connection)) = (watched, connection) {
                // Twice: at first it sees the phase, then it looks at the socket.
                for _ in 0..2 {
                    let _ = watched
                        .as_mut()
                        .poll(&mut Context::from_waker(Waker::noop()));
                }
                connection.detach();
            }
            called.store(true, Ordering::SeqCst);
        };
        Waker::from(Arc::new(OnDrop(Mutex::new(Some(Box::new(calls))))))
    }
}

struct OnDrop(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for OnDrop {
    fn wake(self: Arc<Self>) {}
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        let calls = self.0.get_mut().expect("nobody panics with it").take();
        if let Some(calls) = calls {
            calls();
        }
    }
}

/// A connection that never ends.
struct Stays;

impl Future for Stays {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl GracefulConnection for Stays {
    type Error = io::Error;

    fn graceful_shutdown(self: Pin<&mut Self>) {}
}

fn poll_read<Io: AsyncRead + Unpin + Send + 'static>(
    io: &mut TrackedIo<Io>,
    waker: &Waker,
) -> Poll<io::Result<()>> {
    let mut byte = [0];
    let cx = &mut Context::from_waker(waker);
    Pin::new(io).poll_read(cx, &mut ReadBuf::new(&mut byte))
}

fn poll_write<Io: AsyncWrite + Unpin + Send + 'static>(
    io: &mut TrackedIo<Io>,
    waker: &Waker,
) -> Poll<io::Result<usize>> {
    Pin::new(io).poll_write(&mut Context::from_waker(waker), b"a")
}

// ===== bodies that block =====

/// No byte of its answer is out, as hyper writes the head behind the first part of the body, which does not come. As where a handler
/// blocks, a `503` goes out in place of it.
#[test]
fn g10_a_body_that_blocks_ahead_of_its_head_is_answered_503() {
    for front in [FrontEnd::Serve, FrontEnd::ServeUnix, FrontEnd::OwnLoop] {
        for when in [When::Polled, When::Dropped] {
            let host = Host::workers(2);
            let gate = Gate::new();
            let terminator = Terminator::builder().grace_period(GRACE).build();
            let blocks = gate.clone();
            let answers = async move || {
                let gate = blocks.clone();
                axum::body::Body::new(Blocks { gate, when })
            };
            let router = axum::Router::new().route("/blocks", axum::routing::get(answers));
            let router = router.merge(app(App::default()));
            let server = host.block_on(start(front, &terminator, router));
            let mut client = server.connect();
            // Behind another one, too.
            assert_eq!(client.fetch("/quick").status, 200);
            client.get("/blocks");
            gate.wait_entered(1);
            let begin = Instant::now();
            let report = block_on(BOUND, "the end", terminator.terminate());
            let answer = client.try_read_response();
            at_deadline(begin, GRACE, &format!("{front:?} {when:?}"));
            let answer = answer.map(|it| (it.status, it.says_close()));
            assert_eq!(
                answer.ok(),
                Some((503, true)),
                "{front:?} {when:?}: {report}"
            );
            assert_eq!(report.answered_at_deadline, 1, "{front:?}: {report}");
            assert!(ended(client.read_to_end()), "{front:?} {when:?}");
            gate.open();
        }
    }
}

/// What is out is gone on with by nobody else.
#[test]
fn g10_a_body_that_blocks_behind_its_head_is_cut() {
    for front in [FrontEnd::Serve, FrontEnd::ServeUnix, FrontEnd::OwnLoop] {
        let host = Host::workers(2);
        let gate = Gate::new();
        let terminator = Terminator::builder().grace_period(GRACE).build();
        let blocks = gate.clone();
        let answers = async move || {
            let gate = blocks.clone();
            let first = futures_util::stream::once(async { Ok::<_, io::Error>("first") });
            let then = futures_util::stream::poll_fn(move |_| {
                gate.enter_blocking();
                Poll::Ready(None)
            });
            let pauses = futures_util::stream::once(async {
                // What there is goes out.
                tokio::task::yield_now().await;
                Ok("")
            });
            axum::body::Body::from_stream(futures_util::StreamExt::chain(
                futures_util::StreamExt::chain(first, pauses),
                then,
            ))
        };
        let router = axum::Router::new().route("/blocks", axum::routing::get(answers));
        let server = host.block_on(start(front, &terminator, router));
        let mut client = server.connect();
        client.get("/blocks");
        gate.wait_entered(1);
        let report = block_on(BOUND, "the end", terminator.terminate());
        assert_eq!(report.answered_at_deadline, 0, "{front:?}: {report}");
        assert_eq!(client.read_response_headers().status, 200, "{front:?}");
        assert_eq!(client.read_chunk().as_deref(), Some(&b"first"[..]));
        gate.open();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Polled,
    Dropped,
}

struct Blocks {
    gate: Gate,
    when: When,
}

impl http_body::Body for Blocks {
    type Data = bytes::Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<http_body::Frame<Self::Data>>>> {
        if self.when == When::Polled {
            self.gate.enter_blocking();
        }
        Poll::Ready(None)
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if self.when == When::Dropped {
            self.gate.enter_blocking();
        }
    }
}

// ===== servers =====

#[track_caller]
fn report<F: IntoFuture<Output = Report>>(termination: F) -> Report {
    block_on(BOUND, "the end", termination.into_future())
}

/// A server like any other, on a runtime to which the test does not belong.
struct Site {
    terminator: Terminator,
    server: Server,
    gate: Gate,
    // Last: it takes the tasks with it.
    host: Host,
}

impl Site {
    fn start(front: FrontEnd, grace: Duration) -> Self {
        let terminator = Terminator::builder().grace_period(grace).build();
        let host = Host::workers(2);
        let gate = Gate::new();
        let state = App {
            gate: gate.clone(),
            terminator: None,
        };
        let server = host.block_on(start(front, &terminator, app(state)));
        Self {
            terminator,
            server,
            gate,
            host,
        }
    }

    #[track_caller]
    fn assert_no_fds(&self) {
        let open = self.server.target.open_fds();
        assert_eq!(open, 0, "file descriptors open after the end");
    }

    /// Two connections that last to the deadline.
    fn others(&self) -> Others {
        others(self.server.addr.expect("a TCP server"), &self.terminator)
    }
}

/// Connections that last to the deadline: a request without an end, and an upgraded one.
struct Others {
    pending: RawClient,
    upgraded: RawClient,
}

fn others(addr: SocketAddr, terminator: &Terminator) -> Others {
    let before = terminator.stats();
    let pending = RawClient::connect(addr);
    pending.get("/pending");
    let mut upgraded = RawClient::connect(addr);
    upgraded.get_upgrade("/upgrade-held");
    assert_eq!(upgraded.read_response().status, 101);
    until("other connections", || {
        let stats = terminator.stats();
        (stats.busy, stats.upgraded) == (before.busy + 1, before.upgraded + 1)
    });
    Others { pending, upgraded }
}

impl Others {
    /// Waits until both are at their end.
    #[track_caller]
    fn wait(mut self, begin: Instant, what: &str) {
        let ends = thread::spawn(move || {
            let end = self.upgraded.read_to_end();
            (end, Instant::now(), self.upgraded)
        });
        let response = self.pending.try_read_response();
        let response = response.unwrap_or_else(|end| panic!("{what}: no 503: {end:?}"));
        assert_eq!(response.status, 503, "{what}: {response:?}");
        self.pending.expect_eof();
        at_deadline(begin, GRACE, &format!("{what}: a pending request's end"));
        let (end, at, _client) = ends.join().expect("it does not panic");
        assert!(ended(end), "{what}: {end:?}");
        let after = at.duration_since(begin).saturating_sub(GRACE);
        measured(
            after,
            LATE,
            &format!("{what}: an upgraded one's end, after the deadline"),
        );
    }
}

/// What dropping it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drops {
    Plainly,
    Panics,
    /// Also within a panic.
    PanicsAlways,
    Spawns,
    Blocks,
}

/// An IO, or part of a listener, whose drop does this first.
struct Odd<Io> {
    io: Io,
    drops: Drops,
    /// How many have been dropped.
    dropped: Arc<AtomicUsize>,
}

impl<Io> Odd<Io> {
    fn new(io: Io, drops: Drops, dropped: &Arc<AtomicUsize>) -> Self {
        Self {
            io,
            drops,
            dropped: Arc::clone(dropped),
        }
    }
}

impl<Io> Drop for Odd<Io> {
    fn drop(&mut self) {
        match self.drops {
            Drops::Blocks => thread::sleep(BLOCKED),
            Drops::Plainly | Drops::Panics | Drops::PanicsAlways | Drops::Spawns => {}
        }
        self.dropped.fetch_add(1, Ordering::SeqCst);
        match self.drops {
            // Not in a test that fails: a second panic would end all of them.
            Drops::Panics => assert!(thread::panicking(), "this drop panics on purpose"),
            Drops::PanicsAlways => panic!("this drop panics on purpose"),
            Drops::Spawns if thread::panicking() => {}
            Drops::Spawns => drop(tokio::spawn(async {})),
            Drops::Plainly | Drops::Blocks => {}
        }
    }
}

impl<Io> fmt::Debug for Odd<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Odd").field(&self.drops).finish()
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Odd<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Odd<Io> {
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

struct OddListener {
    inner: TcpListener,
    io: Drops,
    dropped: Arc<AtomicUsize>,
    _own: Odd<()>,
}

impl Listener for OddListener {
    type Io = Odd<TcpStream>;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
        let accepted = Listener::poll_accept(&mut self.inner, cx);
        accepted.map_ok(|(io, addr)| (Odd::new(io, self.io, &self.dropped), addr))
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
        let queued = Listener::accept_queued(&mut self.inner)?;
        Ok(queued.map(|(io, addr)| (Odd::new(io, self.io, &self.dropped), addr)))
    }
}

/// A server whose listener, or whose connections, are odd.
struct OddSite {
    terminator: Terminator,
    addr: SocketAddr,
    gate: Gate,
    /// How many connections' IOs have been dropped.
    dropped: Arc<AtomicUsize>,
    host: Host,
}

impl OddSite {
    fn start(io: Drops, listener: Drops, grace: Duration) -> Self {
        load::watch_load();
        let terminator = Terminator::builder().grace_period(grace).build();
        let host = Host::workers(2);
        let gate = Gate::new();
        let dropped = Arc::<AtomicUsize>::default();
        let state = App {
            gate: gate.clone(),
            terminator: None,
        };
        let addr = {
            let _inside = host.enter();
            let (inner, addr) = bound_here();
            let listener = OddListener {
                inner,
                io,
                dropped: Arc::clone(&dropped),
                _own: Odd::new((), listener, &Arc::default()),
            };
            drop(host.spawn(terminator.serve(listener, app(state))));
            addr
        };
        Self {
            terminator,
            addr,
            gate,
            dropped,
            host,
        }
    }
}

/// Three odd connections that last to the deadline, each in another place, and others beside them.
struct Odds {
    site: OddSite,
    /// Of the same terminator, with connections like any other.
    plain: Server,
    drops: Drops,
    _upgraded: RawClient,
    _uploads: RawClient,
    _drawer: TrackedIo<Odd<tokio::io::DuplexStream>>,
}

impl Odds {
    fn start(drops: Drops) -> Self {
        let site = OddSite::start(drops, Drops::Plainly, GRACE);
        let plain = start(FrontEnd::Serve, &site.terminator, app(App::default()));
        let plain = site.host.block_on(plain);
        let mut upgraded = RawClient::connect(site.addr);
        upgraded.get_upgrade("/upgrade-held");
        assert_eq!(upgraded.read_response().status, 101);
        let uploads = RawClient::connect(site.addr);
        uploads.send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf");
        let io = Odd::new(tokio::io::duplex(64).0, drops, &site.dropped);
        let drawer = site.terminator.track(io);
        until("them", || {
            let stats = site.terminator.stats();
            (stats.connections, stats.requests, stats.upgraded) == (3, 1, 1)
        });
        Self {
            site,
            plain,
            drops,
            _upgraded: upgraded,
            _uploads: uploads,
            _drawer: drawer,
        }
    }

    /// The others' clients see their end, and the report is there.
    fn end_at_the_deadline(&self) -> Report {
        let addr = self.plain.addr.expect("a TCP server");
        let others = others(addr, &self.site.terminator);
        let what = format!("{:?}", self.drops);
        let begin = Instant::now();
        let termination = self.site.terminator.terminate();
        others.wait(begin, &what);
        let report = block_on(BOUND, "the end", termination);
        at_deadline(begin, GRACE, &format!("{what}: the report"));
        assert_eq!(open_fds_to(addr.port()), 0, "{what}: {report}");
        assert_eq!(report.forced, 5, "{what}: {report}");
        assert_eq!(report.connections(), 5, "{what}: {report}");
        assert!(!report.is_clean(), "{what}: {report}");
        report
    }

    fn assert_all_dropped_and_closed(&self, report: &Report) {
        let dropped = self.site.dropped.load(Ordering::SeqCst);
        assert_eq!(dropped, 3, "{:?}: {report}", self.drops);
        let open = open_fds_to(self.site.addr.port());
        assert_eq!(open, 0, "{:?}: {report}", self.drops);
    }
}
