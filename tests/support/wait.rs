//! Waiting, always with a bound: what did not happen within it panics with the name of what was waited for.
//!
//! A handler tells by a [`Gate`](super::Gate) where it is. What nobody tells is looked at again and again, here and
//! nowhere else. Those that block do so for a moment at a time, in async tests as well, whose servers need a second worker
//! then.

use std::fmt::Display;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::Location;
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio::net::TcpListener;

use super::kernel::unread;
use http_terminator::{Stats, Terminator};

/// How long anything here waits before it panics.
pub const BOUND: Duration = Duration::from_secs(10);

/// After so long the driver closes a listener that nobody polls in a healthy runtime.
pub const ABANDONED: Duration = Duration::from_millis(500);

/// Between two looks: not a bare yield, as tests run side by side and would starve each other's servers.
const PAUSE: Duration = Duration::from_millis(1);

/// Awaits `f` and panics with `what` if that takes longer than `d`. Lives on tokio's timer: of no
/// use where a test stalls the runtime.
pub async fn within<T>(d: Duration, what: &str, f: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(d, f).await;
    ended.unwrap_or_else(|_| panic!("not within {d:?}: {what}"))
}

/// Blocks until `done` says so.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let look = Look::new(what);
    while !done() {
        look.again("");
        thread::sleep(PAUSE);
    }
}

/// [`until`] that does not block.
#[track_caller]
pub fn until_async(what: &str, mut done: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let look = Look::new(what);
    async move {
        while !done() {
            look.again("");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Blocks until the counters are so; the panic shows them.
#[track_caller]
pub fn until_stats(terminator: &Terminator, what: &str, done: impl Fn(&Stats) -> bool) {
    let look = Look::new(what);
    loop {
        let stats = terminator.stats();
        if done(&stats) {
            return;
        }
        look.again(stats);
        thread::sleep(PAUSE);
    }
}

/// [`until_stats`] that does not block.
#[track_caller]
pub fn until_stats_async(
    terminator: &Terminator,
    what: &str,
    done: impl Fn(&Stats) -> bool,
) -> impl Future<Output = ()> {
    let look = Look::new(what);
    async move {
        loop {
            let stats = terminator.stats();
            if done(&stats) {
                return;
            }
            look.again(stats);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Blocks until the server knows of so many connections: it accepts them when it gets to it.
#[track_caller]
pub fn accepted(terminator: &Terminator, connections: usize) {
    let what = format!("{connections} connections");
    until_stats(terminator, &what, |it| it.connections == connections);
}

/// Waits until the server knows of no connection.
#[track_caller]
pub fn gone(terminator: &Terminator) -> impl Future<Output = ()> {
    until_stats_async(terminator, "no connection", |it| it.connections == 0)
}

/// Blocks until something of the only connection has been read that is to be answered.
#[track_caller]
pub fn busy(terminator: &Terminator, what: &str) {
    until_stats(terminator, &format!("busy: {what}"), |it| it.busy == 1);
}

/// Blocks until the only connection is idle.
#[track_caller]
pub fn idle(terminator: &Terminator, what: &str) {
    until_stats(terminator, &format!("idle: {what}"), |it| it.idle == 1);
}

/// A new listener on this address, once whoever listens there has gone.
#[track_caller]
pub fn bind_again(addr: SocketAddr) -> impl Future<Output = TcpListener> {
    let look = Look::new("a free port");
    async move {
        loop {
            match TcpListener::bind(addr).await {
                Ok(listener) => return listener,
                Err(error) => look.again(format!("{addr}: {error}")),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Blocks until the server has taken out of the kernel what was sent on this socket, though it may not have looked at it
/// yet. A Unix socket does not tell: it is given 20 ms, as is every one where there is no `/proc`.
#[track_caller]
pub fn until_read(client: &Socket) {
    if unread(client).is_none() {
        return time_passes(Duration::from_millis(20));
    }
    until("what was sent is read", || {
        unread(client).is_none_or(|bytes| bytes == 0) // or its connection has gone
    });
}

/// Sleeps, where time itself is the subject: nothing comes meanwhile, or nothing may.
pub fn time_passes(time: Duration) {
    thread::sleep(time);
}

/// [`time_passes`] that does not block; in tokio's paused time it takes none.
pub async fn time_passes_async(time: Duration) {
    tokio::time::sleep(time).await;
}

/// For what is waited, since when, and in which line of a test.
struct Look<'a> {
    what: &'a str,
    begin: Instant,
    from: &'static Location<'static>,
}

impl<'a> Look<'a> {
    #[track_caller]
    fn new(what: &'a str) -> Self {
        Self {
            what,
            begin: Instant::now(),
            from: Location::caller(),
        }
    }

    /// The time is not over yet.
    fn again(&self, seen: impl Display) {
        let Self { what, begin, from } = self;
        assert!(
            begin.elapsed() < BOUND,
            "not within {BOUND:?} at {from}: {what}; {seen}"
        );
    }
}
