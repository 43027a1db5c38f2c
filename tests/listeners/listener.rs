//! G14, G15: the listener. What the kernel had queued is answered, the address is free at once, and
//! errors of accepting neither lose a connection nor delay a termination.
#![cfg(all(unix, feature = "serve"))]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::FutureExt;
use tokio::net::TcpListener;
use tracing::Level;
use tracing_subscriber::layer::SubscriberExt;

use crate::support::load::watch_load;
use crate::support::log::Log;
use crate::support::outside::{self, LATE, measured};
use crate::support::starts::no_starts;
use crate::support::wait::{time_passes_async, until_async};
use crate::support::{
    ABANDONED, App, BOUND, FrontEnd, Gate, RawClient, Target, app, assert_refused, blocking,
    bound_here, start, within,
};
use http_terminator::{Listener, Phase, Terminator};

const QUEUED: usize = 200;

/// What tokio's own `bind` lets the kernel queue is 128.
const QUEUED_BY_TOKIO: usize = 120;

// ===== G14: the accept queue =====

/// The runtime has one thread, and the test sits on it: nobody accepts while the clients connect.
#[tokio::test]
async fn g14_what_the_kernel_has_queued_is_answered() {
    for front in FrontEnd::all() {
        let terminator = Terminator::new();
        let server = start(front, &terminator, app(App::default())).await;
        // The accept loop has been polled, and waits.
        let mut first = server.connect();
        let first = blocking(move || {
            assert_eq!(first.fetch("/quick").status, 200);
            first
        });
        let _first = first.await;

        let clients: Vec<_> = (0..QUEUED_BY_TOKIO)
            .map(|_| {
                let client = server.connect();
                client.get("/quick");
                client
            })
            .collect();
        let ended = terminator.terminate();
        blocking(move || answered_and_closed(clients, front)).await;
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(report.accepted_late, QUEUED_BY_TOKIO, "{front:?}: {report}");
        assert_eq!(
            report.connections(),
            QUEUED_BY_TOKIO + 1,
            "{front:?}: {report}"
        );
        assert_eq!(report.finished, QUEUED_BY_TOKIO, "{front:?}: {report}");
    }
}

/// A runtime that never reported the listener as ready: `accept_queued` has to ask the kernel itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g14_the_queue_is_emptied_without_the_runtime_s_word() {
    let terminator = Terminator::new();
    let (listener, addr) = bound_here();
    let deaf = Faulty::new(listener, |_| Fault::Deaf);
    let polls = Arc::clone(&deaf.polls);
    tokio::spawn(terminator.serve(deaf, app(App::default())));
    until_async("the first poll", || polls.load(Ordering::SeqCst) > 0).await;

    let clients: Vec<_> = (0..QUEUED)
        .map(|_| {
            let client = RawClient::connect(addr);
            client.get("/quick");
            client
        })
        .collect();
    let ended = terminator.terminate();
    answered_and_closed(clients, FrontEnd::Serve);
    let report = within(BOUND, "the end", ended).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.accepted_late, QUEUED, "{report}");
}

/// Interleaving: `Serve` is spawned, clients connect, `terminate()` is called, and only then does the
/// runtime come to poll `Serve` for the first time.
#[tokio::test]
async fn g14_a_listener_not_polled_yet_loses_nothing() {
    let terminator = Terminator::new();
    let (listener, addr) = bound_here();
    tokio::spawn(terminator.serve(listener, app(App::default())));
    let clients: Vec<_> = (0..QUEUED)
        .map(|_| {
            let client = RawClient::connect(addr);
            client.get("/quick");
            client
        })
        .collect();
    let ended = terminator.terminate();
    // Until the driver has acted on it, so that it comes first.
    while terminator.draining().now_or_never().is_none() {
        std::thread::yield_now();
    }
    blocking(move || answered_and_closed(clients, FrontEnd::Serve)).await;
    let report = within(BOUND, "the end", ended).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.accepted_late, QUEUED, "{report}");
}

/// Clients that connected before the call, but write only after it.
#[tokio::test]
async fn g14_a_queued_connection_may_bring_its_request_within_settle() {
    for front in FrontEnd::all() {
        let settle = Duration::from_secs(1);
        let terminator = Terminator::builder().settle(settle).build();
        let server = start(front, &terminator, app(App::default())).await;
        tokio::task::yield_now().await; // the first poll
        let clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
        let ended = terminator.terminate();
        terminator.reached(Phase::Draining).await;
        blocking(move || {
            for client in &clients {
                client.get("/quick");
            }
            answered_and_closed(clients, front);
        })
        .await;
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{front:?}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g14_a_new_server_binds_at_once_while_old_connections_drain() {
    let _alone = no_starts();
    for front in FrontEnd::all() {
        if front == FrontEnd::ServeUnix {
            continue; // a path is unlinked, not taken over
        }
        let gate = Gate::new();
        let terminator = Terminator::new();
        let server = start(front, &terminator, gated(&gate)).await;
        let addr = server.addr.expect("a TCP server");
        let mut old = server.connect();
        old.get("/slow");
        gate.wait_entered(1);

        let ended = terminator.terminate();
        until_async("the listener's end", || terminator.stats().listeners == 0).await;
        let listener = TcpListener::bind(addr).await;
        let listener = listener.unwrap_or_else(|error| panic!("{front:?}: binding again: {error}"));
        let successor = Terminator::new();
        tokio::spawn(successor.serve(listener, app(App::default())));
        assert_eq!(RawClient::connect(addr).fetch("/quick").text(), "ok");
        assert_eq!(
            gate.inside(),
            1,
            "{front:?}: the old request is still in hand"
        );
        assert_eq!(terminator.phase(), Phase::Draining);

        gate.open();
        let response = old.read_response();
        assert_eq!(
            (response.status, response.text()),
            (200, "slow"),
            "{front:?}"
        );
        assert!(response.says_close(), "{front:?}: {response:?}");
        old.expect_eof();
        assert!(
            within(BOUND, "the end", ended).await.is_clean(),
            "{front:?}"
        );
        assert_eq!(RawClient::connect(addr).fetch("/quick").text(), "ok");
        assert!(
            within(BOUND, "the end", successor.terminate())
                .await
                .is_clean()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g14_later_connects_are_refused() {
    let _alone = no_starts();
    for front in FrontEnd::all() {
        let gate = Gate::new();
        let terminator = Terminator::new();
        let server = start(front, &terminator, gated(&gate)).await;
        let mut old = server.connect();
        old.get("/slow");
        gate.wait_entered(1);
        let ended = terminator.terminate();
        until_async("the listener's end", || terminator.stats().listeners == 0).await;
        assert_refused(&server.target);
        gate.open();
        assert_eq!(old.read_response().status, 200);
        within(BOUND, "the end", ended).await;
        assert_refused(&server.target);
    }
}

/// 32 threads connect in a loop while the server ends, each once more as soon as it is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g14_no_connection_is_reset_in_a_storm_of_connects() {
    const TERMINATIONS: usize = 3;
    const THREADS: usize = 32;
    let _alone = no_starts();
    let (mut answered, mut lost) = (0, Vec::new());
    for round in 0..TERMINATIONS {
        for front in FrontEnd::all() {
            let terminator = Terminator::new();
            let server = start(front, &terminator, app(App::default())).await;
            let count = Arc::new(AtomicUsize::new(0));
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    let (target, count) = (server.target.clone(), Arc::clone(&count));
                    thread::spawn(move || connect_until_refused(&target, &count))
                })
                .collect();
            until_async("a storm", || count.load(Ordering::SeqCst) >= 4 * THREADS).await;
            let report = within(BOUND, "the end", terminator.terminate()).await;
            for thread in threads {
                let ends = thread.join().expect("a client");
                lost.extend(ends.into_iter().map(|end| (round, front, end)));
            }
            answered += count.load(Ordering::SeqCst);
            assert!(report.is_clean(), "{front:?}: {report}");
        }
    }
    println!(
        "measured: {} lost besides {answered} answered: {lost:?}",
        lost.len()
    );
    // A handshake may end within the close itself (G14), and that is rare.
    lost.dedup_by_key(|(round, front, _)| (*round, *front));
    assert!(lost.len() <= 1, "lost in more than one end: {lost:?}");
}

/// Returns how the connections ended that were made and gave no answer.
fn connect_until_refused(target: &Target, answered: &AtomicUsize) -> Vec<String> {
    let mut lost = Vec::new();
    let start = Instant::now();
    while start.elapsed() < BOUND {
        let mut client = match RawClient::try_connect(target) {
            Ok(client) => client,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return lost,
            Err(error) => {
                lost.push(format!("connecting: {error}"));
                continue;
            }
        };
        let sent = client.try_send("GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n");
        match (sent, client.try_read_response()) {
            (_, Ok(response)) => {
                assert_eq!(response.text(), "ok");
                answered.fetch_add(1, Ordering::SeqCst);
            }
            (sent, Err(end)) => {
                lost.push(format!("{sent:?}, {end:?} after {:?}", start.elapsed()));
            }
        }
    }
    panic!("never refused");
}

#[tokio::test]
async fn g14_a_listener_never_polled_is_closed() {
    let _alone = no_starts();
    let terminator = Terminator::new();
    let (listener, addr) = bound_here();
    let serve = terminator.serve(listener, app(App::default()));
    let (listener, second) = bound_here();
    let unpolled = terminator.listen(listener);
    assert_eq!(terminator.stats().listeners, 2);

    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.draining < ABANDONED, "{report}");
    assert!(report.is_clean(), "{report}");
    assert_eq!(terminator.stats().listeners, 0);
    assert_refused(&addr.into());
    assert_refused(&second.into());
    assert_eq!(within(BOUND, "`Serve`", serve).await, report);
    drop(unpolled);
}

/// The accept loop has ended without dropping its listener.
#[tokio::test]
async fn g14_a_listener_nobody_polls_any_more_is_closed() {
    let _alone = no_starts();
    let terminator = Terminator::new();
    let (listener, addr) = bound_here();
    let mut listener = terminator.listen(listener);
    let _client = RawClient::connect(addr);
    let accepted = within(BOUND, "accepting", listener.accept()).await;
    drop(accepted.expect("a connection"));

    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.draining < ABANDONED * 2, "{report}");
    assert!(report.is_clean(), "{report}");
    assert_refused(&addr.into());
    assert!(listener.accept().await.is_none());
}

/// Interleaving: `terminate()`; the driver wakes the listeners there are and, `ABANDONED` later, closes those
/// that nobody polled; then a listener is handed to the same terminator and not polled; the last
/// request ends. Nobody is left who would close the late one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_a_listener_made_late_in_the_drain_and_never_polled_is_closed() {
    let _alone = no_starts();
    let gate = Gate::new();
    let grace = Duration::from_secs(5);
    let terminator = Terminator::builder().grace_period(grace).build();
    let server = start(FrontEnd::Serve, &terminator, gated(&gate)).await;
    let mut client = server.connect();
    client.get("/slow");
    gate.wait_entered(1);
    let ended = terminator.terminate();
    // Longer than the driver waits for listeners that nobody polls: time is the subject.
    time_passes_async(ABANDONED * 3 / 2).await;

    let (listener, addr) = bound_here();
    let serve = terminator.serve(listener, app(App::default()));
    gate.open();
    assert_eq!(client.read_response().status, 200);
    client.expect_eof();
    let began = Instant::now();
    let report = within(BOUND, "the end", ended).await;
    let took = began.elapsed();
    measured(
        took,
        ABANDONED * 2,
        &format!("the drain was held open: {report}"),
    );
    assert_refused(&addr.into());
    drop(serve);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g14_restart_on_the_same_port_twenty_times() {
    let _alone = no_starts();
    let (mut listener, addr) = bound_here();
    for round in 0..20 {
        let terminator = Terminator::new();
        let server = tokio::spawn(terminator.serve(listener, app(App::default())));
        let mut idle = RawClient::connect(addr);
        assert_eq!(idle.fetch("/quick").text(), "ok", "round {round}");
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert!(report.is_clean(), "round {round}: {report}");
        idle.expect_eof();
        let again = TcpListener::bind(addr).await;
        listener = again.unwrap_or_else(|error| panic!("round {round}: binding again: {error}"));
        assert_eq!(server.await.expect("the server"), report);
    }
}

// ===== G15: errors =====

#[tokio::test]
async fn g15_errors_of_a_peer_are_skipped() {
    let log = Log::default();
    let _logging = log.here();
    let terminator = Terminator::new();
    let (listener, addr) = bound_here();
    let aborted = |poll| match poll {
        0..1_000 => Fault::Error(io::ErrorKind::ConnectionAborted.into()),
        _ => Fault::None,
    };
    let listener = Faulty::new(listener, aborted);
    let polls = Arc::clone(&listener.polls);
    tokio::spawn(terminator.serve(listener, app(App::default())));
    let began = Instant::now();
    let response = blocking(move || RawClient::connect(addr).fetch("/quick")).await;
    assert_eq!(response.text(), "ok");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "no pause for a peer's error"
    );
    assert!(polls.load(Ordering::SeqCst) > 1_000);
    assert!(
        within(BOUND, "the end", terminator.terminate())
            .await
            .is_clean()
    );
    assert_eq!(log.at_least(Level::INFO), [""; 0]);
}

/// Each of those that accept(2) calls errors of the one connection, of its network or of a firewall, over and over, while serving and
/// as the queue is emptied: who is behind them was reset.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn g14_g15_who_is_queued_behind_errors_is_answered() {
    struct Fails {
        inner: TcpListener,
        error: i32,
        left: Arc<AtomicUsize>,
    }

    impl Fails {
        fn try_it(&self) -> io::Result<()> {
            let less = |n: usize| n.checked_sub(1);
            let left = self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
            left.map_or(Ok(()), |_| Err(io::Error::from_raw_os_error(self.error)))
        }
    }

    impl Listener for Fails {
        type Io = tokio::net::TcpStream;
        type Addr = SocketAddr;

        fn poll_accept(
            &mut self,
            cx: &mut Context<'_>,
        ) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
            self.try_it()?;
            self.inner.poll_accept(cx)
        }

        fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
            self.try_it()?;
            self.inner.accept_queued()
        }
    }

    // EPERM, EINTR, EACCES, ENONET, EPROTO, ENOPROTOOPT, ENETDOWN, ENETUNREACH, ECONNABORTED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH.
    for error in [1, 4, 13, 64, 71, 92, 100, 101, 103, 104, 112, 113] {
        let log = Log::default();
        let _logging = log.here();
        let terminator = Terminator::new();
        let (inner, addr) = bound_here();
        let left = Arc::new(AtomicUsize::new(1_000));
        let listener = Fails {
            inner,
            error,
            left: Arc::clone(&left),
        };
        tokio::spawn(terminator.serve(listener, app(App::default())));
        let response = blocking(move || RawClient::connect(addr).fetch("/quick")).await;
        assert_eq!(response.text(), "ok", "{error}");
        // Nobody accepts until this waits.
        left.store(1_000, Ordering::SeqCst);
        let clients: Vec<_> = (0..QUEUED)
            .map(|_| {
                let client = RawClient::connect(addr);
                client.get("/quick");
                client
            })
            .collect();
        let ended = terminator.terminate();
        blocking(move || answered_and_closed(clients, FrontEnd::Serve)).await;
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{error}: {report}");
        assert_eq!(report.finished, QUEUED, "{error}: {report}");
        assert_eq!(log.at_least(Level::INFO), [""; 0], "{error}");
    }
}

/// A firewall that forbids all of them: for as long as handshakes may go on it was said each five milliseconds, and of clients.
#[test]
fn g15_errors_without_end_in_the_drain_are_logged_once() {
    struct Forbidden;

    impl Listener for Forbidden {
        type Io = tokio::net::TcpStream;
        type Addr = SocketAddr;

        fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
            Poll::Pending
        }

        fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
            Err(io::ErrorKind::PermissionDenied.into())
        }

        fn is_handshaking(&self) -> bool {
            true
        }
    }

    let name = concat!(
        module_path!(),
        "::g15_errors_without_end_in_the_drain_are_logged_once"
    );
    // It is logged on a thread of the crate's, so this wants all of its process.
    if outside::alone(name, &[], BOUND * 3) {
        return;
    }

    let log = Log::default();
    let subscriber = tracing_subscriber::registry().with(log.clone());
    tracing::subscriber::set_global_default(subscriber).expect("nobody else is here");
    let settle = Duration::from_millis(300);
    let terminator = Terminator::builder().settle(settle).build();
    let host = outside::Host::workers(1);
    host.spawn(
        terminator
            .serve(Forbidden, app(App::default()))
            .into_future(),
    );
    let report = outside::block_on(BOUND, "the end", terminator.terminate());
    assert!(report.is_clean(), "{report}");
    let warnings = log.at_least(Level::WARN);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("permission denied"), "{warnings:?}");
}

#[tokio::test]
async fn g15_no_file_descriptors_for_ever_delays_nothing_and_is_logged_once() {
    let _alone = no_starts();
    watch_load();
    let log = Log::default();
    let _logging = log.here();
    let terminator = Terminator::new();
    let (listener, addr) = bound_here();
    let listener = Faulty::new(listener, |_| Fault::Error(emfile()));
    let polls = Arc::clone(&listener.polls);
    let server = tokio::spawn(terminator.serve(listener, app(App::default())));
    let began = Instant::now();
    // 5 + 10 + … + 640 ms; the pause after the ninth is a second.
    until_async("nine errors", || polls.load(Ordering::SeqCst) >= 9).await;
    assert!(
        began.elapsed() > Duration::from_millis(1200),
        "it backs off"
    );
    assert_eq!(
        log.at_least(Level::WARN).len(),
        1,
        "{:?}",
        log.at_least(Level::WARN)
    );

    let began = Instant::now();
    let report = within(BOUND, "the end", terminator.terminate()).await;
    measured(began.elapsed(), LATE, "the end");
    assert!(report.is_clean(), "{report}");
    assert_refused(&addr.into());
    assert_eq!(server.await.expect("the server"), report);
    assert_eq!(
        log.at_least(Level::WARN).len(),
        1,
        "{:?}",
        log.at_least(Level::WARN)
    );
}

#[tokio::test]
async fn g15_each_episode_is_logged_once_and_ends() {
    let log = Log::default();
    let _logging = log.here();
    let terminator = Terminator::new();
    let (listener, addr) = bound_here();
    let listener = Faulty::new(listener, |accepted_or_failed| match accepted_or_failed {
        0..3 => Fault::Error(emfile()),
        _ => Fault::None,
    });
    let polls = Arc::clone(&listener.polls);
    tokio::spawn(terminator.serve(listener, app(App::default())));
    for episode in 1..=2 {
        let response = blocking(move || RawClient::connect(addr).fetch("/quick")).await;
        assert_eq!(response.text(), "ok");
        let warnings = log.at_least(Level::WARN);
        assert_eq!(warnings.len(), episode, "{warnings:?}");
        polls.store(0, Ordering::SeqCst); // the next poll begins another episode
    }
    assert!(
        within(BOUND, "the end", terminator.terminate())
            .await
            .is_clean()
    );
}

/// Near the limit each descriptor that comes free lets one in, and the next accept fails again: two lines for each.
#[tokio::test]
async fn g15_an_episode_lasts_until_the_queue_is_empty() {
    const CLIENTS: usize = 10;
    let log = Log::default();
    let _logging = log.here();
    let terminator = Terminator::new();
    let (listener, addr) = bound_here();
    let listener = Faulty::new(listener, |poll| match poll % 2 {
        0 => Fault::Error(emfile()),
        _ => Fault::None,
    });
    let clients: Vec<_> = (0..CLIENTS).map(|_| RawClient::connect(addr)).collect();
    tokio::spawn(terminator.serve(listener, app(App::default())));
    blocking(move || {
        for mut client in clients {
            assert_eq!(client.fetch("/quick").text(), "ok");
        }
    })
    .await;
    let warnings = log.at_least(Level::WARN);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let ended = terminator.terminate();
    assert!(within(BOUND, "the end", ended).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_a_listener_that_panics_breaks_its_own_task_only() {
    let _alone = no_starts();
    let terminator = Terminator::new();
    let (listener, addr) = bound_here();
    let panics = Faulty::new(listener, |poll| match poll {
        0 => Fault::None,
        _ => Fault::Panic,
    });
    let broken = tokio::spawn(terminator.serve(panics, app(App::default())));
    let server = start(FrontEnd::Serve, &terminator, app(App::default())).await;

    // The first poll accepts it, or waits; at the latest the one after it panics.
    let _client = RawClient::connect(addr);
    let error = within(BOUND, "the panic", broken)
        .await
        .expect_err("a panic");
    assert!(error.is_panic());
    until_async("the end of the broken listener", || {
        terminator.stats().listeners == 1
    })
    .await;
    assert_refused(&addr.into());
    assert_eq!(server.connect().fetch("/quick").text(), "ok");
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(terminator.stats().listeners, 0);
}

/// The same when the queue is emptied: the termination goes on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_a_listener_that_panics_in_the_drain_delays_nothing() {
    let _alone = no_starts();
    let terminator = Terminator::new();
    let (listener, addr) = bound_here();
    let mut panics = Faulty::new(listener, |_| Fault::Deaf);
    panics.panics_when_emptied = true;
    let polls = Arc::clone(&panics.polls);
    let broken = tokio::spawn(terminator.serve(panics, app(App::default())));
    until_async("the first poll", || polls.load(Ordering::SeqCst) > 0).await;
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.draining < ABANDONED * 2, "{report}");
    assert!(report.is_clean(), "{report}");
    assert!(broken.await.expect_err("a panic").is_panic());
    assert_refused(&addr.into());
}

// ===== helpers =====

enum Fault {
    None,
    /// Pending, without ever waking.
    Deaf,
    Error(io::Error),
    Panic,
}

/// A listener that does as it is told; its `accept_queued` is real unless `poll_accept` fails.
struct Faulty {
    inner: TcpListener,
    fault: Box<dyn Fn(usize) -> Fault + Send>,
    polls: Arc<AtomicUsize>,
    panics_when_emptied: bool,
}

impl Faulty {
    fn new(inner: TcpListener, fault: impl Fn(usize) -> Fault + Send + 'static) -> Self {
        let polls = Arc::default();
        let fault = Box::new(fault);
        Self {
            inner,
            fault,
            polls,
            panics_when_emptied: false,
        }
    }
}

impl Listener for Faulty {
    type Io = tokio::net::TcpStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
        match (self.fault)(self.polls.fetch_add(1, Ordering::SeqCst)) {
            Fault::None => self.inner.poll_accept(cx),
            Fault::Deaf => Poll::Pending,
            Fault::Error(error) => Poll::Ready(Err(error)),
            Fault::Panic => panic!("this listener panics on purpose"),
        }
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
        assert!(!self.panics_when_emptied, "this listener panics on purpose");
        match (self.fault)(self.polls.load(Ordering::SeqCst)) {
            Fault::Error(error) => Err(error),
            _ => self.inner.accept_queued(),
        }
    }
}

fn emfile() -> io::Error {
    io::Error::from_raw_os_error(24)
}

fn gated(gate: &Gate) -> axum::Router {
    app(App {
        gate: gate.clone(),
        terminator: None,
    })
}

#[track_caller]
fn answered_and_closed(clients: Vec<RawClient>, front: FrontEnd) {
    for (n, mut client) in clients.into_iter().enumerate() {
        let response = client
            .try_read_response()
            .unwrap_or_else(|end| panic!("{front:?}: no answer for client {n}: {end:?}"));
        assert_eq!(
            (response.status, response.text()),
            (200, "ok"),
            "{front:?}, client {n}"
        );
        assert!(response.says_close(), "{front:?}, client {n}: {response:?}");
        client.expect_eof();
    }
}
