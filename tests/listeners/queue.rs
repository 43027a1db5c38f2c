//! What waits in the kernel's accept queue as the end comes is served, whatever holds the accept
//! loop up; the port is handed over without a loss; and nobody waits for it who need not (G14).
#![cfg(all(target_os = "linux", feature = "serve"))]

use std::future::Future;
use std::io::{self, BufRead, ErrorKind};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use futures_util::FutureExt;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Notify, Semaphore};
use tokio::time::MissedTickBehavior;
use tracing_subscriber::layer::SubscriberExt;

use crate::support;
use crate::support::log::Log;
use crate::support::outside::{FAR, Host, Other, SOON, block_on, is_alone, measured};
use crate::support::starts::{Start, no_starts};
use crate::support::storm::{self, SLOW, Seen, Storm};
use crate::support::wait::{gone, time_passes, time_passes_async, until};
use crate::support::{
    ABANDONED, App, BOUND, Dir, Gate, RawClient, ReadEnd, Target, app, blocking, bound, load,
    queued_at,
};
use http_terminator::{Listener, Phase, Report, Serve, Terminator, TrackedIo, TrackedListener};

// ===== listeners in blocking mode =====

/// `from_std` asserts in debug builds that the socket is non-blocking, and takes any in release ones;
/// the mode is set back here. The accept after the first one then waits in the kernel, with the
/// runtime's only thread in it.
#[test]
fn a_blocking_tcp_listener_is_made_non_blocking() {
    let host = Host::current_thread();
    let (listener, addr) = bound(host.handle());
    set_blocking(&listener);
    let terminator = Terminator::builder().grace_period(2 * SOON).build();
    let serve = terminator.serve(listener, app(App::default()));
    a_blocking_listener_ends(host, &terminator, serve, &addr.into());
}

#[test]
fn a_blocking_unix_listener_is_made_non_blocking() {
    let host = Host::current_thread();
    let dir = Dir::new();
    let path = dir.0.join("socket");
    let listener = {
        let _inside = host.enter();
        UnixListener::bind(&path).expect("binds in a fresh directory")
    };
    set_blocking(&listener);
    let terminator = Terminator::builder().grace_period(2 * SOON).build();
    let serve = terminator.serve(listener, app(App::default()));
    a_blocking_listener_ends(host, &terminator, serve, &Target::Unix(path));
}

/// An accept loop of one's own.
#[test]
fn a_blocking_listener_of_an_own_loop_is_made_non_blocking() {
    let host = Host::current_thread();
    let (listener, addr) = bound(host.handle());
    set_blocking(&listener);
    let terminator = Terminator::builder().grace_period(2 * SOON).build();
    let mut listener = terminator.listen(listener);
    let accepts = async move {
        while let Some((io, _)) = listener.accept().await {
            tokio::spawn(one(io, app(App::default())));
        }
    };
    a_blocking_listener_ends(host, &terminator, accepts, &addr.into());
}

/// A listener of the user's around tokio's, which passes on what prepares that one.
#[test]
fn a_blocking_listener_inside_of_another_holds_no_drain() {
    struct Around(TcpListener);

    impl Listener for Around {
        type Io = TcpStream;
        type Addr = SocketAddr;

        fn poll_accept(
            &mut self,
            cx: &mut Context<'_>,
        ) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
            Listener::poll_accept(&mut self.0, cx)
        }

        fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
            Listener::accept_queued(&mut self.0)
        }

        fn prepare(&mut self) {
            self.0.prepare();
        }
    }

    let host = Host::current_thread();
    let (listener, addr) = bound(host.handle());
    set_blocking(&listener);
    let terminator = Terminator::builder().grace_period(2 * SOON).build();
    let serve = terminator.serve(Around(listener), app(App::default()));
    a_blocking_listener_ends(host, &terminator, serve, &addr.into());
}

/// Who let go of it while it was being closed left what came of that to nobody: those clients hung, and the drain waited for them.
#[test]
fn g14_what_comes_of_a_close_behind_the_accept_loop_is_lost_at_once() {
    struct Closing {
        inside: mpsc::Sender<()>,
        goes_on: mpsc::Receiver<()>,
        last: Vec<tokio::io::DuplexStream>,
    }

    impl Listener for Closing {
        type Io = tokio::io::DuplexStream;
        type Addr = ();

        fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(Self::Io, ())>> {
            Poll::Pending
        }

        fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, ())>> {
            Ok(None)
        }

        fn close(self) -> Vec<(Self::Io, ())> {
            self.inside.send(()).expect("it waits");
            self.goes_on.recv().expect("it goes on");
            self.last.into_iter().map(|io| (io, ())).collect()
        }
    }

    load::watch_load();
    let terminator = Terminator::builder().grace_period(FAR).build();
    let ((inside, enters), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel());
    let (_client, last) = tokio::io::duplex(1);
    let listener = terminator.listen(Closing {
        inside,
        goes_on,
        last: vec![last],
    });
    let ended = terminator.terminate();
    enters.recv_timeout(BOUND).expect("it is closed");
    drop(listener);
    // It has its time to do the wrong thing.
    time_passes(Duration::from_millis(20));
    let begin = Instant::now();
    go_on.send(()).expect("it waits");
    let report = block_on(BOUND, "the end", ended);
    measured(begin.elapsed(), Duration::from_millis(250), "the end");
    assert_eq!(report.lost_in_queue, 1, "{report}");
}

fn a_blocking_listener_ends<F>(host: Host, terminator: &Terminator, serve: F, target: &Target)
where
    F: Future<Output: Send> + Send + 'static,
{
    let (tell, told) = mpsc::channel::<()>();
    thread::spawn(move || {
        let _ = host.block_on(serve);
        drop(tell);
    });
    let mut first = RawClient::connect(target);
    first.set_timeout(2 * SOON);
    first.get("/quick");
    let response = first.try_read_response();
    let _alone = no_starts();
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", terminator.terminate());
    let took = begin.elapsed();
    println!("measured: the drain: {took:.1?}; the first answer: {response:?}");
    let again = RawClient::try_connect(target).map(drop);
    // So that the thread comes out of the kernel, where it hangs in there.
    let _ = RawClient::try_connect(target);
    let ended = told.recv_timeout(BOUND) == Err(mpsc::RecvTimeoutError::Disconnected);
    assert_eq!(response.expect("an answer").status, 200);
    assert!(took < SOON, "{report}");
    let refused = again.expect_err("nobody listens any more").kind();
    assert!(
        matches!(refused, ErrorKind::ConnectionRefused | ErrorKind::NotFound),
        "{refused:?}"
    );
    assert!(ended, "the accept loop still runs");
    assert!(report.is_clean(), "{report}");
    first.expect_eof();
}

fn set_blocking<'a, S>(listener: &'a S)
where
    SockRef<'a>: From<&'a S>,
{
    let set = SockRef::from(listener).set_nonblocking(false);
    set.expect("a socket can be made blocking");
}

// ===== no descriptors left =====

/// All 64 descriptors of the process are in use, most of them by idle connections, as the drain
/// begins; eleven more connections wait in the queue, with their requests. The first look at the
/// queue fails for want of a descriptor; a moment later dozens are free.
#[test]
fn what_queued_without_a_descriptor_left_is_answered() {
    const NAME: &str = concat!(
        module_path!(),
        "::what_queued_without_a_descriptor_left_is_answered"
    );
    if is_alone() {
        return serve_until_told();
    }
    let mut other = Other::start(NAME, &["prlimit", "--nofile=64:64"]);
    let port: u16 = other.line("port ").parse().expect("a number");
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    let mut idle = Vec::new();
    let mut queued = Vec::new();
    while queued.is_empty() {
        let mut client = RawClient::connect(addr);
        client.set_timeout(SOON);
        client.get("/quick");
        match client.try_read_response() {
            Ok(_) => idle.push(client),
            Err(_) => queued.push(client),
        }
        assert!(idle.len() < 64, "no limit");
    }
    queued.extend(ask(addr, 10));
    other.tell("terminate");
    for client in &mut queued {
        client.set_timeout(BOUND);
    }
    let answered = count_answered(queued);
    let said = other.line("report ");
    println!(
        "measured: {} idle, answered {answered} of 11: {said}",
        idle.len()
    );
    assert_eq!(answered, 11, "{said}");
    assert!(said.contains("cleanly"), "{said}");
    idle.iter_mut().for_each(RawClient::expect_eof);
    assert_eq!(other.wait(BOUND), Some(true), "{}", other.said());
}

/// Four times as many as there are descriptors for, whose requests take all the same time. Interleaving: all that are in hand
/// end at once; the queue takes as many again, and there is nobody else then but those it holds itself: it took that for
/// having nobody to wait for, and reset the rest.
#[test]
fn g14_what_queued_without_a_descriptor_left_is_answered_in_batches() {
    const NAME: &str = concat!(
        module_path!(),
        "::g14_what_queued_without_a_descriptor_left_is_answered_in_batches"
    );
    if is_alone() {
        return serve_until_told();
    }
    for (limit, clients) in [(32, 128), (64, 256), (64, 256)] {
        let mut other = Other::start(NAME, &["prlimit", &format!("--nofile={limit}:{limit}")]);
        let port: u16 = other.line("port ").parse().expect("a number");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let queued: Vec<_> = (0..clients)
            .map(|_| {
                let mut client = RawClient::connect(addr);
                client.set_timeout(BOUND);
                client.get("/later");
                client
            })
            .collect();
        other.tell("terminate");
        let answered = count_answered(queued);
        let said = other.line("report ");
        assert_eq!(answered, clients, "{limit}: {said}");
        assert!(said.contains("cleanly"), "{said}");
        assert_eq!(other.line("waited "), "1", "each that came free was said");
        assert_eq!(other.wait(BOUND), Some(true), "{}", other.said());
    }
}

/// By force there are none for the queue either, until those that have them are cut, which comes first.
#[test]
fn g18_what_queued_without_a_descriptor_left_is_counted_as_lost() {
    const NAME: &str = concat!(
        module_path!(),
        "::g18_what_queued_without_a_descriptor_left_is_counted_as_lost"
    );
    if is_alone() {
        return serve_until_told();
    }
    let mut other = Other::start(NAME, &["prlimit", "--nofile=64:64"]);
    let port: u16 = other.line("port ").parse().expect("a number");
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let mut client = RawClient::connect(addr);
            client.set_timeout(BOUND);
            client.get("/pending");
            client
        })
        .collect();
    other.line("busy");
    other.tell("force");
    let answers = clients
        .into_iter()
        .map(|mut client| client.try_read_response());
    let late = answers
        .filter(|it| it.as_ref().is_ok_and(|it| it.status == 503))
        .count();
    let lost: usize = other.line("lost ").parse().expect("a number");
    let forced: usize = other.line("forced ").parse().expect("a number");
    // Of some that are accepted nothing may have been read.
    assert!(late > 20 && late <= forced, "{late}, {forced}");
    assert_eq!(forced + lost, 200, "{late}, {forced}");
    assert_eq!(other.wait(BOUND), Some(true), "{}", other.said());
}

/// Inside of the other process.
fn serve_until_told() {
    let host = Host::workers(2);
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (listener, addr) = bound(host.handle());
    let later = get(async || {
        time_passes_async(Duration::from_millis(200)).await;
        "later"
    });
    let app = app(App::default()).route("/later", later);
    let log = Log::default();
    let set =
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(log.clone()));
    set.expect("in a process of its own");
    drop(host.spawn(terminator.serve(listener, app)));
    println!("port {}", addr.port());
    let watched = terminator.clone();
    thread::spawn(move || {
        until("more than there are descriptors for", || {
            watched.stats().busy > 20
        });
        println!("busy");
    });
    let told = io::stdin().lock().lines().next();
    let told = told.expect("the parent is there").expect("a line");
    let ended = match &told[..] {
        "force" => terminator.force(),
        _ => terminator.terminate(),
    };
    let report = block_on(2 * BOUND, "the end", ended);
    println!("lost {}", report.lost_in_queue);
    println!("forced {}", report.forced);
    println!("report {}", format!("{report}").replace('\n', ";"));
    println!("waited {}", log.with("the accept queue has to wait").len());
}

// ===== TCP_DEFER_ACCEPT =====

/// The kernel keeps a connection back until its client has sent something: to eight clients theirs is
/// established, and they write in the moment in which the drain begins, or within `settle`.
/// Nothing is in the queue then that could be accepted.
#[test]
fn connections_whose_accept_is_deferred_are_answered() {
    for after in [0, 20, 50, 100, 150].map(Duration::from_millis) {
        let host = Host::workers(2);
        let builder = Terminator::builder().grace_period(FAR);
        let terminator = builder.settle(Duration::from_millis(500)).build();
        let (listener, addr) = bound(host.handle());
        if !defer_accept(&listener) {
            support::skip::skip("neither perl nor python3");
            return;
        }
        drop(host.spawn(terminator.serve(listener, app(App::default()))));
        let mut first = RawClient::connect(addr);
        assert_eq!(first.fetch("/quick").status, 200, "it serves");
        let clients: Vec<_> = (0..8).map(|_| RawClient::connect(addr)).collect();
        assert_eq!(terminator.stats().accepted, 1, "they are kept back");
        let termination = terminator.terminate();
        // The time is the subject.
        time_passes(after);
        for client in &clients {
            let _ = client.try_send("GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n");
        }
        let answered = count_answered(clients);
        let report = block_on(BOUND, "the end", termination);
        println!("measured: written after {after:?}, answered {answered} of 8: {report}");
        assert_eq!(answered, 8, "{report}");
        assert!(report.is_clean(), "{report}");
    }
}

/// The standard library has no call for it, nor has socket2: the option is the socket's and not the
/// descriptor's, so another process can set it on the one that it is given.
fn defer_accept(listener: &TcpListener) -> bool {
    let perl = "setsockopt(STDIN, 6, 9, 10) or die $!";
    let python = "import socket; s = socket.socket(fileno=0); \
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10); s.detach()";
    [("perl", "-e", perl), ("python3", "-c", python)]
        .into_iter()
        .any(|(program, flag, script)| {
            let socket = SockRef::from(listener).try_clone();
            let socket = socket.expect("a descriptor is free");
            let set = Command::new(program)
                .args([flag, script])
                .stdin(Stdio::from(std::os::fd::OwnedFd::from(socket)))
                .run();
            match set {
                Ok(status) => {
                    assert!(status.success(), "{program} could not set the option");
                    true
                }
                Err(_) => false,
            }
        })
}

// ===== an accept loop that waits elsewhere =====

/// One connection at a time, by a permit. The first one's request takes half a second from the
/// beginning of the drain, and meanwhile nobody polls the listener; seven more are in its queue.
#[test]
fn what_queued_behind_a_permit_is_answered() {
    let host = Host::workers(2);
    let terminator = Terminator::builder().grace_period(FAR).build();
    let gate = Gate::new();
    let (listener, addr) = bound(host.handle());
    let mut listener = terminator.listen(listener);
    let router = app(App {
        gate: gate.clone(),
        terminator: None,
    });
    drop(host.spawn(async move {
        let permits = Arc::new(Semaphore::new(1));
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await;
            let Some((io, _)) = listener.accept().await else {
                return;
            };
            let served = one(io, router.clone());
            tokio::spawn(async move {
                served.await;
                drop(permit);
            });
        }
    }));
    let mut first = RawClient::connect(addr);
    first.get("/slow");
    gate.wait_entered(1);
    let queued = ask(addr, 7);
    let begin = Instant::now();
    let termination = terminator.terminate();
    // The time is the subject: past the one when an abandoned listener is closed.
    time_passes(ABANDONED * 3 / 2);
    gate.open();
    assert_eq!(first.read_response().status, 200);
    let answered = count_answered(queued);
    let report = block_on(BOUND, "the end", termination);
    println!("measured: answered {answered} of 7: {report}");
    assert_eq!(answered, 7, "{report}");
    measured(begin.elapsed(), 2 * SOON, "the drain");
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.connections(), 8, "{report}");
}

/// The permit never comes back: at the deadline everything is closed, the queue as well.
#[test]
fn what_queued_behind_a_permit_holds_no_deadline() {
    let grace = Duration::from_millis(300);
    let (host, terminator, listener, addr) = unpolled(grace);
    let mut first = RawClient::connect(addr);
    let (io, _) = accept_one(&host, listener);
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", terminator.terminate());
    support::outside::at_deadline(begin, grace, "the report");
    assert_eq!(report.forced, 1, "{report}");
    drop(io);
    assert!(support::outside::ended(first.read_to_end()));
}

// ===== a `Serve` that is dropped =====

/// `select!` with a signal: both are ready at once, as the runtime was late, and the signal's branch
/// drops the server with 200 connections in its queue.
#[test]
fn what_queued_is_answered_when_serve_is_dropped() {
    let report = drop_serve(|terminator| drop(terminator.terminate()), |_| {});
    assert!(report.is_clean(), "{report}");
}

/// The branch calls `terminate()` before the drop.
#[test]
fn what_queued_is_answered_when_serve_is_dropped_after_terminate() {
    let report = drop_serve(|_| {}, |terminator| drop(terminator.terminate()));
    assert!(report.is_clean(), "{report}");
}

/// Nobody terminates for now: what queued is served all the same, and the port is free soon.
#[test]
fn the_port_is_free_soon_when_serve_is_dropped() {
    let report = drop_serve(|_| {}, |_| {});
    assert!(report.is_clean(), "{report}");
}

/// Drops a `Serve` by a `select!`, with 200 connections in its queue, and calls the one after the
/// drop, the other in the branch before it. All are to be answered.
fn drop_serve(
    after: impl FnOnce(&Terminator),
    before: impl FnOnce(&Terminator) + Send + 'static,
) -> Report {
    let terminator = Terminator::builder().grace_period(FAR).build();
    let host = Host::current_thread();
    let (listener, addr) = bound(host.handle());
    let serve = terminator.serve(listener, app(App::default()));
    let signal = Arc::new(Notify::new());
    let (blocks, blocked) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel::<()>();
    let handle = host.handle().clone();
    let (dropped, is_dropped) = mpsc::channel();
    {
        let (terminator, signal) = (terminator.clone(), Arc::clone(&signal));
        thread::spawn(move || {
            host.block_on(async move {
                let told = async {
                    signal.notified().await;
                    before(&terminator);
                };
                tokio::select! {
                    biased;
                    () = told => {}
                    _ = serve => {}
                }
                let _ = dropped.send(()); // the test has ended
                terminator.terminated().await;
            });
        });
    }
    let mut first = RawClient::connect(addr);
    assert_eq!(first.fetch("/quick").status, 200, "it serves");
    drop(handle.spawn(async move {
        let _ = blocks.send(()); // the test has ended
        let _ = goes_on.recv_timeout(BOUND);
    }));
    blocked.recv_timeout(BOUND).expect("it blocks");
    let clients = ask(addr, 200);
    signal.notify_one();
    let begin = Instant::now();
    drop(go_on);
    is_dropped.recv_timeout(BOUND).expect("it is dropped");
    after(&terminator);
    let answered = count_answered(clients);
    until("a free port", || std::net::TcpListener::bind(addr).is_ok());
    println!("measured: answered {answered} of 200");
    measured(begin.elapsed(), SOON, "the answers and a free port");
    let report = block_on(BOUND, "the end", terminator.terminate());
    assert_eq!(answered, 200, "{report}");
    measured(begin.elapsed(), 2 * SOON, "the end");
    first.expect_eof();
    report
}

/// Dropped outside of a runtime it loses its queue, which has to be told. Interleaving: the call; it is dropped, before the
/// driver has come to its queue.
#[test]
fn g14_g18_what_is_lost_with_a_serve_that_is_dropped_outside_of_a_runtime_is_counted() {
    let host = Host::workers(2);
    for round in 0..100 {
        let terminator = Terminator::builder().grace_period(FAR).build();
        let (listener, addr) = bound(host.handle());
        let mut serve = Box::pin(terminator.serve(listener, app(App::default())));
        host.block_on(async { assert!(serve.as_mut().now_or_never().is_none()) });
        let clients: Vec<_> = (0..3).map(|_| RawClient::connect(addr)).collect();
        let ended = terminator.terminate();
        drop(serve);
        let report = block_on(BOUND, "the end", ended);
        assert_eq!(report.lost_in_queue, 3, "{round}: {report}");
        drop(clients);
    }
}

// ===== loops that have ended =====

/// The loop took one connection and ended; its listener is still in scope, and will be for ever.
/// Nothing else is waited for.
#[test]
fn a_listener_left_in_scope_holds_no_drain() {
    let _alone = no_starts();
    let (host, terminator, listener, addr) = unpolled(FAR);
    let mut first = RawClient::connect(addr);
    let (io, _listener) = accept_one(&host, listener);
    drop(host.spawn(one(io, app(App::default()))));
    assert_eq!(first.fetch("/quick").status, 200);
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", terminator.terminate());
    measured(begin.elapsed(), SOON, "the drain");
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
    first.expect_eof();
    RawClient::try_connect(addr)
        .map(drop)
        .expect_err("it is closed");
}

/// The same, and while a request goes on nobody need close it: its queue may yet be taken.
#[test]
fn a_listener_left_in_scope_is_not_closed_while_something_else_is_waited_for() {
    let (host, terminator, listener, addr) = unpolled(FAR);
    let guard = terminator.guard().expect("nobody has asked for an end");
    let queued = ask(addr, 3);
    let termination = terminator.terminate();
    // The time is the subject: past the one when an abandoned listener is closed.
    time_passes(ABANDONED * 3 / 2);
    let mut listener = listener;
    drop(host.spawn(async move {
        while let Some((io, _)) = listener.accept().await {
            tokio::spawn(one(io, app(App::default())));
        }
    }));
    let answered = count_answered(queued);
    drop(guard);
    let report = block_on(BOUND, "the end", termination);
    println!("measured: answered {answered} of 3: {report}");
    assert_eq!(answered, 3, "{report}");
    assert!(report.is_clean(), "{report}");
}

/// Five connections are in the queue of a listener that nobody polls, and nothing else is waited for.
#[test]
fn what_is_reset_in_a_queue_is_counted() {
    let (_host, terminator, listener, addr) = unpolled(FAR);
    let queued = wait_in_queue(addr, 5);
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", terminator.terminate());
    measured(begin.elapsed(), SOON, "the drain");
    assert_eq!(count_answered(queued), 0, "nobody is there to answer");
    assert!(!report.is_clean(), "{report}");
    assert_eq!(report.lost_in_queue, 5, "{report}");
    // Nobody has accepted them: they are no connections, and none was served.
    let others = (report.connections(), report.accepted_late);
    assert_eq!(others, (0, 0), "{report}");
    drop(listener);
}

/// At the deadline, at which whoever cuts connections may come before who closes listeners.
#[test]
fn what_is_reset_in_a_queue_at_the_deadline_is_counted_once() {
    for _ in 0..10 {
        let (_host, terminator, listener, addr) = unpolled(Duration::from_millis(100));
        let guard = terminator.guard().expect("nobody has asked for an end");
        let queued = wait_in_queue(addr, 5);
        let report = block_on(BOUND, "the end", terminator.terminate());
        assert_eq!(count_answered(queued), 0, "nobody is there to answer");
        let counts = (report.lost_in_queue, report.connections());
        assert_eq!(counts, (5, 0), "{report}");
        drop((listener, guard));
    }
}

/// Dropped while serving, as in a `select!`, it serves what is queued: that is no drain.
#[test]
fn what_a_dropped_serve_accepts_is_not_late() {
    let terminator = Terminator::new();
    let host = Host::workers(2);
    let (listener, addr) = bound(host.handle());
    let queued = {
        let _inside = host.enter();
        let serve = terminator.serve(listener, app(App::default()));
        let queued = ask(addr, 5);
        drop(serve);
        queued
    };
    assert_eq!(count_answered(queued), 5);
    let report = block_on(BOUND, "the end", terminator.terminate());
    assert_eq!(report.accepted_late, 0, "{report}");
}

#[test]
fn what_is_reset_in_a_queue_by_force_is_counted() {
    let (_host, terminator, listener, addr) = unpolled(FAR);
    let queued = wait_in_queue(addr, 5);
    let report = block_on(BOUND, "the end", terminator.force());
    assert_eq!(count_answered(queued), 0, "nobody is there to answer");
    assert!(!report.is_clean(), "{report}");
    assert_eq!(report.lost_in_queue, 5, "{report}");
    drop(listener);
}

type TcpTracked = TrackedListener<TcpListener>;

type Unpolled = (Host, Terminator, TcpTracked, SocketAddr);

/// A listener that nobody polls, in a healthy runtime.
fn unpolled(grace: Duration) -> Unpolled {
    let terminator = Terminator::builder().grace_period(grace).build();
    let host = Host::workers(2);
    let (listener, addr) = bound(host.handle());
    let listener = {
        let _inside = host.enter();
        terminator.listen(listener)
    };
    (host, terminator, listener, addr)
}

fn accept_one(host: &Host, mut listener: TcpTracked) -> (TrackedIo<TcpStream>, TcpTracked) {
    let accepted = host.block_on(async {
        let accepted = tokio::time::timeout(BOUND, listener.accept()).await;
        accepted.expect("a client has connected")
    });
    let (io, _) = accepted.expect("nobody has asked for an end");
    (io, listener)
}

/// A `Serve` that is made outside of its runtime, as in a `main` that is not async, and is polled only when the drain has
/// begun: what has come meanwhile is taken on that runtime.
#[test]
fn a_serve_made_outside_of_a_runtime_serves_what_is_queued() {
    let host = Host::workers(1);
    let (listener, addr) = bound(host.handle());
    let terminator = Terminator::builder().grace_period(FAR).build();
    let serve = terminator.serve(listener, app(App::default()));
    let mut client = RawClient::connect(addr);
    client.get("/quick");
    let ended = terminator.terminate();
    block_on(BOUND, "the drain", terminator.draining());
    // Time is the subject: the driver looks for the queue meanwhile.
    time_passes(Duration::from_millis(50));
    let server = host.spawn(serve.into_future());
    let answer = client.read_response();
    assert_eq!(answer.text(), "ok");
    assert!(answer.says_close(), "{answer:?}");
    let report = block_on(BOUND, "the end", ended);
    assert!(report.is_clean(), "{report}");
    let said = block_on(BOUND, "the server", server).expect("it does not panic");
    assert_eq!(said, report);
}

/// Nobody ever polls it: it is closed all the same.
#[test]
fn a_serve_made_outside_of_a_runtime_and_never_polled_holds_no_drain() {
    let host = Host::workers(1);
    for force in [false, true] {
        let (listener, addr) = bound(host.handle());
        let terminator = Terminator::builder().grace_period(FAR).build();
        let serve = terminator.serve(listener, app(App::default()));
        let mut client = RawClient::connect(addr);
        client.get("/quick");
        let ended = if force {
            terminator.force()
        } else {
            terminator.terminate()
        };
        block_on(2 * SOON, "the end", ended);
        let end = client.try_read_response().expect_err("nobody was there");
        assert_ne!(end, ReadEnd::Timeout);
        drop(serve);
    }
}

// ===== handing the port over =====

/// How many rounds, and how many connects of a round may take longer than [`SLOW`] (the median).
const ROUNDS: usize = 6;
const MOST_SLOW: usize = 8;

/// 32 threads connect as fast as they can, each for one byte, so that at every moment most of them are
/// in a handshake; a successor has bound the port by `SO_REUSEPORT` just before the drain begins.
/// Whatever the old listener's queue holds, or the handshakes that have begun there, is nobody else's.
#[test]
fn g14_a_port_is_handed_over_without_a_loss_or_a_wait() {
    let Some(most_lost) = storm::most_lost(concat!(
        module_path!(),
        "::g14_a_port_is_handed_over_without_a_loss_or_a_wait"
    )) else {
        return;
    };
    let (mut slow, mut lost) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let seen = hand_over(true);
        println!("measured: round {round}, with a successor: {seen:?}");
        lost += seen.lost + seen.refused;
        slow.push(seen.slow);
    }
    assert_few_slow(slow);
    assert!(lost <= most_lost, "{lost}");
}

/// Nobody comes after: who connects too late is to learn that at once, and who was in time is
/// answered.
#[test]
fn a_port_is_given_up_without_a_loss_or_a_wait() {
    let (mut with_a_loss, mut slow) = (0, Vec::new());
    for round in 0..ROUNDS {
        let seen = hand_over(false);
        println!("measured: round {round}, without a successor: {seen:?}");
        with_a_loss += usize::from(seen.lost > 0);
        slow.push(seen.slow);
    }
    // A handshake may end within the close itself; and where the thread that closes loses its core right there, as it may on a
    // machine without a free one, the whole storm meets the close (G14).
    assert!(
        with_a_loss <= 1,
        "losses in {with_a_loss} of {ROUNDS} rounds"
    );
    assert_few_slow(slow);
}

#[track_caller]
fn assert_few_slow(mut slow: Vec<usize>) {
    slow.sort_unstable();
    let median = slow[slow.len() / 2];
    println!("measured: connects above {SLOW:?} in each round, sorted: {slow:?}");
    assert!(median <= MOST_SLOW, "{slow:?}");
}

fn hand_over(successor: bool) -> Seen {
    const CLIENTS: usize = 32;
    let _alone = no_starts();
    let host = Host::workers(2);
    let first = storm::reuse_port(&host, None);
    let addr = first.local_addr().expect("a bound listener has an address");
    let old = storm::serve(&host, first);
    let clients = Storm::new(addr, CLIENTS);
    // The times are the subject: the load is there before, and for a while when the old one is gone. Whose
    // SYN was dropped is waited for until it has come again.
    time_passes(Duration::from_millis(150));
    let new = successor.then(|| storm::serve(&host, storm::reuse_port(&host, Some(addr))));
    let report = block_on(BOUND, "the end of the old one", old.terminate());
    assert!(report.is_clean(), "{report}");
    time_passes(Duration::from_millis(150));
    let all = clients.stop();
    if let Some(new) = new {
        let report = block_on(BOUND, "the end of the new one", new.terminate());
        assert!(report.is_clean(), "{report}");
    }
    all
}

// ===== the runtime goes on =====

/// 400 listeners on the one thread of a runtime, each in a task of its own, which looks at its queue
/// for the last time; a timer ticks beside them. One client waits in each queue.
#[test]
fn emptying_400_queues_holds_no_runtime_up() {
    empty_400_queues(|serves| {
        for serve in serves {
            drop(tokio::spawn(serve));
        }
    });
}

/// All of them in one task.
#[test]
fn emptying_400_queues_in_one_task_holds_no_runtime_up() {
    empty_400_queues(|serves| drop(tokio::spawn(futures_util::future::join_all(serves))));
}

fn empty_400_queues(spawn: impl FnOnce(Vec<Serve<TcpListener, Router>>)) {
    const LISTENERS: usize = 400;
    let host = Host::current_thread();
    let terminator = Terminator::builder().grace_period(FAR).build();
    let (serves, addrs): (Vec<_>, Vec<_>) = (0..LISTENERS)
        .map(|_| {
            let (listener, addr) = bound(host.handle());
            (terminator.serve(listener, app(App::default())), addr)
        })
        .unzip();
    let (latest, report, took, answered) = host.block_on(async {
        spawn(serves);
        // Every accept loop has been polled, and every task since.
        let polled = terminator.clone();
        let first = addrs[0];
        blocking(move || {
            assert_eq!(RawClient::connect(first).fetch("/quick").status, 200);
        })
        .await;
        gone(&polled).await;
        // Blocks the runtime, so that they are in the queues as the drain begins.
        let clients: Vec<_> = addrs.iter().flat_map(|addr| ask(*addr, 1)).collect();
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let ticks = tokio::spawn(async move {
            let mut interval = tokio::time::interval(Duration::from_millis(1));
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut latest = Duration::ZERO;
            let mut last = (Instant::now(), load::waited_for_a_core());
            while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                interval.tick().await;
                // All of the runtime is this thread. Without the core it cannot hold anything up.
                let now = (Instant::now(), load::waited_for_a_core());
                latest = latest.max((now.0 - last.0).saturating_sub(now.1.saturating_sub(last.1)));
                last = now;
            }
            latest
        });
        let begin = Instant::now();
        let termination = terminator.terminate();
        let answers = blocking(|| count_answered(clients));
        let report = tokio::time::timeout(BOUND, termination).await;
        let took = begin.elapsed();
        let answered = answers.await;
        drop(stop);
        (
            ticks.await.expect("it does not panic"),
            report,
            took,
            answered,
        )
    });
    let report = report.expect("the end");
    println!("measured: answered {answered} of {LISTENERS}; the drain: {took:.1?}");
    println!("measured: the longest wait of a 1 ms timer: {latest:.1?}");
    assert_eq!(answered, LISTENERS, "{report}");
    // A pause of 1 ms for each listener took 400; nothing takes 40.
    let bound = Duration::from_millis(150);
    measured(latest, bound, "the longest wait of a 1 ms timer");
    assert!(report.is_clean(), "{report}");
    assert_eq!(terminator.phase(), Phase::Terminated);
}

// ===== servers and clients =====

fn one(io: TrackedIo<TcpStream>, app: Router) -> impl Future<Output = ()> + Send {
    let connection = io.connection();
    let builder = auto::Builder::new(TokioExecutor::new());
    let served = connection.serve(&builder, io, TowerToHyperService::new(app));
    async move { drop(served.await) }
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

/// Who has connected as he sees it may be in a handshake still as the kernel does.
fn wait_in_queue(addr: SocketAddr, clients: usize) -> Vec<RawClient> {
    let all = ask(addr, clients);
    until("all are in the queue", || queued_at(addr) == clients);
    all
}

fn count_answered(clients: Vec<RawClient>) -> usize {
    let answers = clients.into_iter().map(|mut it| it.try_read_response());
    let answers = answers.filter(|it| it.as_ref().is_ok_and(|it| it.status == 200));
    answers.count()
}
