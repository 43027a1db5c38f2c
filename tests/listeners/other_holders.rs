//! A listening socket that somebody else holds too, in this process or in another, is left to him as it was
//! (G14).
#![cfg(all(target_os = "linux", feature = "serve"))]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener as StdUnix, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use socket2::SockRef;
use tokio::net::{TcpListener, UnixListener};

use crate::support::outside::{ALONE, FAR, Host, alone, block_on, is_alone, measured, only};
use crate::support::program::signal;
use crate::support::starts::{Start, no_starts};
use crate::support::storm::{self, DROPPED, SLOW, Seen, Storm};
use crate::support::wait::until;
use crate::support::{App, BOUND, Dir, RawClient, Target, app};
use http_terminator::{Inherited, Terminator, UnlinkOnClose};

// ===== a dup =====

/// Everybody's socket, whoever ends.
#[test]
fn a_tcp_socket_goes_on_for_another_holder() {
    for end in [Terminator::terminate, Terminator::force] {
        let host = Host::workers(1);
        let (listener, other, addr) = tcp(&host);
        let terminator = Terminator::new();
        let server = host.spawn(terminator.serve(listener, app(App::default())));
        let mut client = RawClient::connect(addr);
        assert_eq!(client.fetch("/quick").status, 200);
        let report = block_on(BOUND, "the end", end(&terminator));
        assert_eq!(report.connections(), 1, "{report}");
        block_on(BOUND, "the server's end", server).expect("it does not panic");
        assert_accepts_tcp(&other, addr);
    }
}

#[test]
fn a_tcp_socket_of_an_own_loop_goes_on_for_another_holder() {
    let host = Host::workers(1);
    let (listener, other, addr) = tcp(&host);
    let terminator = storm::serve(&host, listener);
    let mut client = connect(addr);
    client.read_exact(&mut [0]).expect("it is served");
    drop(client);
    block_on(BOUND, "the end", terminator.terminate());
    assert_accepts_tcp(&other, addr);
}

/// A `Serve` that is dropped serves what is queued first.
#[test]
fn a_tcp_socket_goes_on_when_serve_is_dropped() {
    let host = Host::workers(1);
    let (listener, other, addr) = tcp(&host);
    let terminator = Terminator::new();
    let mut queued = RawClient::connect(addr);
    host.block_on(async { drop(terminator.serve(listener, app(App::default()))) });
    assert_eq!(queued.fetch("/quick").status, 200);
    until("its end", || terminator.stats().listeners == 0);
    assert_accepts_tcp(&other, addr);
    block_on(BOUND, "the end", terminator.terminate());
}

#[test]
fn a_unix_socket_goes_on_for_another_holder() {
    for end in [Terminator::terminate, Terminator::force] {
        let host = Host::workers(1);
        let dir = Dir::new();
        let (listener, other, path) = unix(&host, &dir);
        let terminator = Terminator::new();
        let server = host.spawn(terminator.serve(listener, app(App::default())));
        let mut client = RawClient::connect(Target::Unix(path.clone()));
        assert_eq!(client.fetch("/quick").status, 200);
        let report = block_on(BOUND, "the end", end(&terminator));
        assert_eq!(report.connections(), 1, "{report}");
        block_on(BOUND, "the server's end", server).expect("it does not panic");
        assert_accepts_unix(&other, &path);
    }
}

// ===== what is queued belongs to the others =====

/// Nobody accepts when the drain begins; it ends without taking any, and the other one finds all.
#[test]
fn inherited_leaves_the_queue_to_the_others() {
    const QUEUED: usize = 50;
    for listen in [false, true] {
        let host = Host::workers(1);
        let (listener, other, addr) = tcp(&host);
        let terminator = Terminator::new();
        // Neither is polled: it would accept.
        let listener = Inherited(listener);
        let (served, own) = if listen {
            (None, Some(terminator.listen(listener)))
        } else {
            (Some(terminator.serve(listener, app(App::default()))), None)
        };
        let clients: Vec<_> = (0..QUEUED).map(|_| connect(addr)).collect();
        let begin = Instant::now();
        let report = block_on(BOUND, "the end", terminator.terminate());
        measured(begin.elapsed(), SLOW, "the end of an inherited listener");
        assert_eq!(report.connections(), 0, "{report}");
        for mut client in clients {
            bounded(&other);
            let (mut accepted, _) = other.accept().expect("it is queued");
            accepted.write_all(b"b").expect("there is room");
            client.read_exact(&mut [0]).expect("it is answered");
        }
        drop((served, own));
    }
}

#[test]
fn inherited_is_served_until_then() {
    let host = Host::workers(1);
    let (listener, other, addr) = tcp(&host);
    let dir = Dir::new();
    let (unix_listener, other_unix, path) = unix(&host, &dir);
    let terminator = Terminator::new();
    let served = [
        host.spawn(terminator.serve(Inherited(listener), app(App::default()))),
        host.spawn(terminator.serve(Inherited(unix_listener), app(App::default()))),
    ];
    assert_eq!(RawClient::connect(addr).fetch("/quick").status, 200);
    let target = Target::Unix(path.clone());
    assert_eq!(RawClient::connect(target).fetch("/quick").status, 200);
    let report = block_on(BOUND, "the end", terminator.terminate());
    assert!(report.is_clean(), "{report}");
    for server in served {
        block_on(BOUND, "the server's end", server).expect("it does not panic");
    }
    assert_accepts_tcp(&other, addr);
    assert_accepts_unix(&other_unix, &path);
}

/// It stops at once also where the accept loop is dropped.
#[test]
fn inherited_that_is_dropped_leaves_the_queue() {
    let host = Host::workers(1);
    let (listener, other, addr) = tcp(&host);
    let terminator = Terminator::new();
    let mut client = connect(addr);
    host.block_on(async { drop(terminator.serve(Inherited(listener), app(App::default()))) });
    until("its end", || terminator.stats().listeners == 0);
    bounded(&other);
    let (mut accepted, _) = other.accept().expect("it is queued");
    accepted.write_all(b"b").expect("there is room");
    client.read_exact(&mut [0]).expect("it is answered");
    block_on(BOUND, "the end", terminator.terminate());
}

// ===== two that accept from one socket, and one of them ends =====

const CLIENTS: usize = 16;

/// One after the other ends, and a new one takes its place, by a `dup`.
#[test]
fn a_socket_is_handed_on_in_one_process_without_a_loss_or_a_wait() {
    let host = Host::workers(2);
    let (first, kept, addr) = tcp(&host);
    let clients = Storm::new(addr, CLIENTS);
    let mut now = storm::serve(&host, Inherited(first));
    for _ in 0..10 {
        clients.go_on(50);
        let next = tokio_tcp(&host, kept.try_clone().expect("a descriptor is left"));
        let next = storm::serve(&host, Inherited(next));
        let old = std::mem::replace(&mut now, next);
        let report = block_on(BOUND, "the end of the old one", old.terminate());
        assert!(report.is_clean(), "{report}");
    }
    clients.go_on(50);
    assert_nobody_noticed(&clients.stop());
    block_on(BOUND, "the end", now.terminate());
}

/// Without `Inherited` as well nobody is lost or refused, and nobody is the worse for it afterwards.
#[test]
fn a_socket_that_others_hold_unknown_to_us_loses_nothing() {
    let host = Host::workers(2);
    let (first, kept, addr) = tcp(&host);
    let clients = Storm::new(addr, CLIENTS);
    let mut now = storm::serve(&host, first);
    for _ in 0..10 {
        clients.go_on(50);
        let next = tokio_tcp(&host, kept.try_clone().expect("a descriptor is left"));
        let next = storm::serve(&host, next);
        let old = std::mem::replace(&mut now, next);
        let report = block_on(BOUND, "the end of the old one", old.terminate());
        assert!(report.is_clean(), "{report}");
    }
    clients.go_on(50);
    assert_nobody_noticed(&clients.stop());
    block_on(BOUND, "the end", now.terminate());
}

// ===== two processes =====

/// Workers that have inherited a listening socket from here, as their standard input; one after the other is
/// ended while all accept.
#[test]
fn workers_are_replaced_without_a_loss_or_a_wait() {
    const NAME: &str = concat!(
        module_path!(),
        "::workers_are_replaced_without_a_loss_or_a_wait"
    );
    if is_alone() {
        return work();
    }
    let kept = StdListener::bind("127.0.0.1:0").expect("a port is free");
    let addr = kept.local_addr().expect("a bound listener has an address");
    let mut workers = [Worker::start(NAME, &kept), Worker::start(NAME, &kept)];
    let clients = Storm::new(addr, CLIENTS);
    for round in 0..6 {
        clients.go_on(50);
        // One ends while the other accepts; and each second time, while its successor does.
        let next = Worker::start(NAME, &kept);
        let old = std::mem::replace(&mut workers[round % 2], next);
        old.end();
    }
    clients.go_on(50);
    assert_nobody_noticed(&clients.stop());
    for worker in workers {
        worker.end();
    }
}

/// The listener is the standard input.
fn work() {
    let host = Host::workers(1);
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let listener = StdListener::from(stdin.expect("a descriptor is left"));
    listener.set_nonblocking(true).expect("it is a socket");
    let terminator = storm::serve(&host, Inherited(tokio_tcp(&host, listener)));
    let signal = terminator.terminate_on_signal().expect("a thread is there");
    println!("\nready");
    let report = block_on(FAR, "a signal and the end", signal.into_future());
    assert!(report.is_clean(), "{report}");
}

/// A process that accepts. Dropped, it is killed.
struct Worker(Child);

impl Worker {
    fn start(test: &str, listener: &StdListener) -> Self {
        let this = std::env::current_exe().expect("this test");
        let listener = OwnedFd::from(listener.try_clone().expect("a descriptor is left"));
        let child = Command::new(this)
            .args(only(test))
            .env(ALONE, "1")
            .stdin(listener)
            .stdout(Stdio::piped())
            .start();
        let mut worker = Self(child.expect("it starts"));
        let stdout = worker.0.stdout.as_mut().expect("it is piped");
        let ready = BufReader::new(stdout).lines().map_while(Result::ok);
        assert!(ready.into_iter().any(|line| line == "ready"), "it died");
        worker
    }

    /// By SIGTERM.
    #[track_caller]
    fn end(mut self) {
        assert!(signal(self.0.id(), "TERM"), "it was gone");
        let mut status = None;
        until("a worker's end", || {
            status = self.0.try_wait().expect("it is our child");
            status.is_some()
        });
        assert!(status.is_some_and(|it| it.success()), "{status:?}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

// ===== a group of sockets =====

/// Each has a queue of its own. Nobody waits for a SYN to come again, as there is somebody who would take it.
#[test]
fn g14_a_group_of_reuse_port_goes_on_without_a_wait() {
    let Some(most_lost) = storm::most_lost(concat!(
        module_path!(),
        "::g14_a_group_of_reuse_port_goes_on_without_a_wait"
    )) else {
        return;
    };
    let _alone = no_starts();
    let host = Host::workers(2);
    let first = storm::reuse_port(&host, None);
    let addr = first.local_addr().expect("a bound listener has an address");
    let stays = storm::serve(&host, storm::reuse_port(&host, Some(addr)));
    let mut now = storm::serve(&host, first);
    let clients = Storm::new(addr, CLIENTS);
    for _ in 0..10 {
        clients.go_on(50);
        let next = storm::serve(&host, storm::reuse_port(&host, Some(addr)));
        let old = std::mem::replace(&mut now, next);
        let report = block_on(BOUND, "the end of the old one", old.terminate());
        assert!(report.is_clean(), "{report}");
    }
    clients.go_on(50);
    let seen = clients.stop();
    println!("measured: {seen:?}");
    assert!(seen.slowest < DROPPED, "{seen:?}");
    assert!(seen.lost + seen.refused <= most_lost, "{seen:?}");
    block_on(BOUND, "the end", now.terminate());
    block_on(BOUND, "the end", stays.terminate());
}

// ===== the path of a Unix socket =====

#[test]
fn a_path_stays_unless_it_is_to_go() {
    for end in [Terminator::terminate, Terminator::force] {
        let host = Host::workers(1);
        let dir = Dir::new();
        let inside = host.enter();
        let stays = dir.0.join("stays");
        let goes = dir.0.join("goes");
        let terminator = Terminator::new();
        let listener = UnixListener::bind(&stays).expect("binds in a fresh directory");
        let one = host.spawn(terminator.serve(listener, app(App::default())));
        let listener = UnlinkOnClose::bind(&goes).expect("binds in a fresh directory");
        let other = host.spawn(terminator.serve(listener, app(App::default())));
        drop(inside);
        for path in [&stays, &goes] {
            let mut client = RawClient::connect(Target::Unix(path.clone()));
            assert_eq!(client.fetch("/quick").status, 200);
        }
        block_on(BOUND, "the end", end(&terminator));
        assert!(stays.exists());
        assert!(!goes.exists());
        for server in [one, other] {
            block_on(BOUND, "the server's end", server).expect("it does not panic");
        }
    }
}

/// The socket itself was handed on, and whoever has it goes on with the path.
#[test]
fn a_path_that_was_handed_on_stays() {
    let host = Host::workers(1);
    let dir = Dir::new();
    let _inside = host.enter();
    let path = dir.0.join("socket");
    let bound = UnlinkOnClose::bind(&path).expect("binds in a fresh directory");
    let old = storm::serve(&host, bound.into_inner());
    block_on(BOUND, "the end", old.terminate());
    assert!(path.exists());
}

/// Whoever comes after may have put his own there, by `rename`; or somebody has removed it.
#[test]
fn a_path_of_somebody_else_stays() {
    let host = Host::workers(1);
    let dir = Dir::new();
    let _inside = host.enter();
    let path = dir.0.join("socket");
    let old = UnlinkOnClose::bind(&path).expect("binds in a fresh directory");
    let old = storm::serve(&host, old);
    let next = dir.0.join("next");
    let new = UnlinkOnClose::bind(&next).expect("binds in a fresh directory");
    std::fs::rename(&next, &path).expect("it is ours");
    let new = storm::serve(&host, new);
    block_on(BOUND, "the old one's end", old.terminate());
    let mut client = StdUnixStream::connect(&path).expect("the new one listens");
    client.read_exact(&mut [0]).expect("it is answered");
    std::fs::remove_file(&path).expect("it is there");
    let report = block_on(BOUND, "the end", new.terminate());
    assert!(report.is_clean(), "{report}");
}

/// The working directory is its process's, so it needs one of its own.
#[test]
fn a_path_that_was_relative_is_removed_from_elsewhere() {
    let name = concat!(
        module_path!(),
        "::a_path_that_was_relative_is_removed_from_elsewhere"
    );
    if alone(name, &[], BOUND * 3) {
        return;
    }
    let host = Host::workers(1);
    let dir = Dir::new();
    let _inside = host.enter();
    std::env::set_current_dir(&dir.0).expect("it is there");
    let listener = UnlinkOnClose::bind("socket").expect("binds in a fresh directory");
    std::env::set_current_dir("/").expect("it is there");
    assert!(dir.0.join("socket").exists());
    drop(listener);
    assert!(!dir.0.join("socket").exists());
}

/// Nor is one left there by a bind that fails: where the working directory has gone a path can be bound, and not made absolute.
#[cfg(target_os = "linux")]
#[test]
fn a_path_that_cannot_be_made_absolute_is_not_bound() {
    let name = concat!(
        module_path!(),
        "::a_path_that_cannot_be_made_absolute_is_not_bound"
    );
    if alone(name, &[], BOUND * 3) {
        return;
    }
    let host = Host::workers(1);
    let dir = Dir::new();
    let _inside = host.enter();
    let path = dir.0.join("socket");
    let within = dir.0.join("gone");
    std::fs::create_dir(&within).expect("a fresh directory");
    let holds = std::fs::File::open(&dir.0).expect("it is there");
    std::env::set_current_dir(&within).expect("it is there");
    std::fs::remove_dir(&within).expect("it is empty");
    let by_descriptor = format!(
        "/proc/self/fd/{}/socket",
        std::os::fd::AsRawFd::as_raw_fd(&holds)
    );
    // An absolute one has no need of it.
    drop(UnlinkOnClose::bind(by_descriptor).expect("it can be bound"));
    assert!(UnlinkOnClose::bind("../socket").is_err());
    assert!(!path.exists());
}

/// Where it can't be bound nothing is removed.
#[test]
fn a_path_that_is_in_use_stays() {
    let host = Host::workers(1);
    let dir = Dir::new();
    let _inside = host.enter();
    let path = dir.0.join("socket");
    let listener = UnlinkOnClose::bind(&path).expect("binds in a fresh directory");
    let error = UnlinkOnClose::bind(&path).expect_err("it is in use");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(path.exists());
    drop(listener);
    assert!(!path.exists());
}

/// A connect fails or is served: once the path has gone nobody gets into the queue.
#[test]
fn nobody_is_lost_where_the_path_goes() {
    for _ in 0..10 {
        let host = Host::workers(2);
        let dir = Dir::new();
        let path = dir.0.join("socket");
        let listener = {
            let _inside = host.enter();
            UnlinkOnClose::bind(&path).expect("binds in a fresh directory")
        };
        let terminator = storm::serve(&host, listener);
        let clients = Storm::new(Target::Unix(path), CLIENTS);
        clients.go_on(100);
        let report = block_on(BOUND, "the end", terminator.terminate());
        assert!(report.is_clean(), "{report}");
        let seen = clients.stop();
        assert_eq!(seen.lost, 0, "{seen:?}");
    }
}

// ===== what they share =====

#[track_caller]
fn assert_nobody_noticed(seen: &Seen) {
    println!("measured: {seen:?}");
    assert_eq!((seen.lost, seen.refused), (0, 0), "{seen:?}");
    assert!(seen.slowest < DROPPED, "{seen:?}");
}

#[track_caller]
fn assert_accepts_tcp(other: &StdListener, addr: SocketAddr) {
    let begin = Instant::now();
    let mut client = connect(addr);
    measured(begin.elapsed(), SLOW, "a connect to a socket that was left");
    bounded(other);
    let (mut accepted, _) = other.accept().expect("it is queued");
    accepted.write_all(b"b").expect("there is room");
    client.read_exact(&mut [0]).expect("it is answered");
}

#[track_caller]
fn assert_accepts_unix(other: &StdUnix, path: &Path) {
    let mut client = StdUnixStream::connect(path).expect("somebody listens");
    bounded(&client);
    bounded(other);
    let (mut accepted, _) = other.accept().expect("it is queued");
    accepted.write_all(b"b").expect("there is room");
    client.read_exact(&mut [0]).expect("it is answered");
}

#[track_caller]
fn connect(addr: SocketAddr) -> StdStream {
    let client = StdStream::connect_timeout(&addr, BOUND).expect("somebody listens");
    bounded(&client);
    client
}

/// It blocks, for a time: a read, or an accept.
#[track_caller]
fn bounded(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    socket.set_nonblocking(false).expect("a socket can be that");
    socket
        .set_read_timeout(Some(BOUND))
        .expect("a socket's option");
}

/// A listener, and a `dup` of it.
fn tcp(host: &Host) -> (TcpListener, StdListener, SocketAddr) {
    let other = StdListener::bind("127.0.0.1:0").expect("a port is free");
    let addr = other.local_addr().expect("a bound listener has an address");
    let listener = other.try_clone().expect("a descriptor is left");
    (tokio_tcp(host, listener), other, addr)
}

fn tokio_tcp(host: &Host, listener: StdListener) -> TcpListener {
    let _inside = host.enter();
    listener.set_nonblocking(true).expect("it is a socket");
    TcpListener::from_std(listener).expect("a runtime takes it")
}

fn unix(host: &Host, dir: &Dir) -> (UnixListener, StdUnix, PathBuf) {
    let path = dir.0.join("socket");
    let other = StdUnix::bind(&path).expect("binds in a fresh directory");
    let listener = other.try_clone().expect("a descriptor is left");
    listener.set_nonblocking(true).expect("it is a socket");
    let _inside = host.enter();
    let listener = UnixListener::from_std(listener).expect("a runtime takes it");
    (listener, other, path)
}
