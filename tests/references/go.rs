//! Go's `net/http` (golang/go at 008b7b4b): what `src/net/http/serve_test.go` has of `Shutdown`, `Close`,
//! `RegisterOnShutdown`, `SetKeepAlivesEnabled` and hijacked connections.
//!
//! No counterpart: `TestServerListenNotComparableListener` (a listener as the key of a map; ours are owned),
//! `TestServerKeepAlivesEnabled`'s switch while the server runs (here a setting: `max_requests_per_connection`). Go's tests of
//! timeouts are those of `tests/calls/bounds.rs`.

use std::future::IntoFuture;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::routing::get;
use tokio::net::{TcpListener, TcpStream};

use http_terminator::{Listener, Phase, Terminator};

use super::support::outside::{SOON, measured};
use super::support::start_known;
use super::support::wait::until;
use super::support::{
    App, BOUND, FrontEnd, Gate, RawClient, app, assert_refused, bound_here, each, h2_connect,
    h2_finish, start, within,
};
use super::{Site, patient, plain, report};

/// `Shutdown` from inside of the first request's handler: that one finishes, hooks run while it does, new ones are refused.
/// Go closes the listener before it runs the hooks; here a hook may be told first, and the listener goes at once after.
#[test]
fn server_shutdown() {
    each(FrontEnd::all_and_tls(), async |front| {
        for http2 in [false, true] {
            let gate = Gate::new();
            let terminator = patient().build();
            let state = App {
                gate: gate.clone(),
                terminator: Some(terminator.clone()),
            };
            let (inside, called) = (gate.clone(), terminator.clone());
            let router = app(state).route(
                "/first",
                get(async move || {
                    let busy = called.stats().busy;
                    drop(called.terminate());
                    inside.enter().await;
                    format!("{busy} busy")
                }),
            );
            let server = start(front, &terminator, router).await;
            let hook = tokio::spawn(terminator.draining());
            let (mut client, h2) = if http2 {
                (None, Some(h2_connect(&server.target).await))
            } else {
                (Some(server.connect()), None)
            };
            let answer = match (&client, &h2) {
                (Some(client), _) => {
                    client.get("/first");
                    None
                }
                (_, Some(h2)) => Some(h2.start("/first").await),
                _ => unreachable!("one of them"),
            };
            gate.wait_entered_async(1).await;
            within(BOUND, "the hook", hook).await.expect("no panic");
            until("the listener's end", || terminator.stats().listeners == 0);
            assert_refused(&server.target);
            assert_eq!(gate.inside(), 1, "{front:?}: the first is in flight");
            gate.open();
            let what = format!("{front:?}, HTTP/2: {http2}");
            if let Some(client) = &mut client {
                let response = client.read_response();
                assert_eq!(
                    (response.says_close(), response.text()),
                    (true, "1 busy"),
                    "{what}"
                );
                client.expect_eof();
            }
            if let Some(answer) = answer {
                let answer = within(BOUND, "the answer", h2_finish(answer)).await;
                assert_eq!(answer.expect("not cut").1, b"1 busy", "{what}");
            }
            let report = report(terminator.terminated()).await;
            assert!(
                report.is_clean() && report.connections() == 1,
                "{what}: {report}"
            );
        }
    });
}

/// A connection that never sent a byte. Go gives it five seconds; here it is idle as soon as it has been quiet for `settle`.
#[test]
fn server_shutdown_state_new() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = patient().build();
        let (target, _known) = start_known(front, &terminator, app(App::default())).await;
        let mut client = plain(&target);
        until("it is accepted", || terminator.stats().connections == 1);
        let begin = Instant::now();
        let report = report(terminator.terminate()).await;
        measured(
            begin.elapsed(),
            SOON,
            &format!("{front:?}: one that is new"),
        );
        client.expect_eof();
        assert!(report.is_clean(), "{front:?}: {report}");
    });
}

/// `Close` twice, of a server that never served.
#[test]
fn server_close_deadlock() {
    each([()], async |()| {
        let terminator = Terminator::new();
        let first = report(terminator.force()).await;
        let second = report(terminator.force()).await;
        assert_eq!(first, second);
        assert_eq!(terminator.phase(), Phase::Terminated);
    });
}

/// A listener that counts how often it is closed.
struct Counted {
    inner: TcpListener,
    closes: Arc<AtomicUsize>,
}

impl Counted {
    fn bind() -> (Self, SocketAddr, Arc<AtomicUsize>) {
        let (inner, addr) = bound_here();
        let closes = Arc::default();
        let counted = Self {
            inner,
            closes: Arc::clone(&closes),
        };
        (counted, addr, closes)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.closes.fetch_add(1, Ordering::SeqCst);
    }
}

impl Listener for Counted {
    type Io = TcpStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        Listener::poll_accept(&mut self.inner, cx)
    }

    fn accept_queued(&mut self) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        self.inner.accept_queued()
    }
}

#[test]
fn server_close_listener_once() {
    each([()], async |()| {
        let (listener, addr, closes) = Counted::bind();
        let terminator = patient().build();
        let served = tokio::spawn(
            terminator
                .serve(listener, app(App::default()))
                .into_future(),
        );
        assert_eq!(RawClient::connect(addr).fetch("/quick").text(), "ok");
        assert_eq!(closes.load(Ordering::SeqCst), 0);
        let ended = report(terminator.terminate()).await;
        let served = within(BOUND, "the server", served).await.expect("no panic");
        assert_eq!(served, ended);
        assert_eq!(closes.load(Ordering::SeqCst), 1);
    });
}

/// `Serve` after `Shutdown` does not block, and closes the listener it was given.
#[test]
fn server_shutdown_then_serve() {
    each([()], async |()| {
        let (listener, addr, closes) = Counted::bind();
        let terminator = Terminator::new();
        let ended = report(terminator.terminate()).await;
        let served = report(terminator.serve(listener, app(App::default()))).await;
        assert_eq!(served, ended);
        assert_eq!(closes.load(Ordering::SeqCst), 1);
        assert_refused(&addr.into());
    });
}

/// A connection that is told to end is discarded when it is idle; the server goes on, with connections that are new.
#[test]
fn server_set_keep_alives_enabled_closes_conns() {
    each(FrontEnd::seeing(), async |front| {
        let terminator = patient().build();
        let (target, known) = start_known(front, &terminator, app(App::default())).await;
        let mut client = RawClient::connect(&target);
        for _ in 0..2 {
            assert_eq!(client.fetch("/quick").text(), "ok", "{front:?}");
        }
        assert_eq!(known.len(), 1, "{front:?}: both on one connection");
        known.get(0).terminate();
        client.expect_eof();
        let mut third = RawClient::connect(&target);
        assert_eq!(third.fetch("/quick").text(), "ok", "{front:?}");
        assert_eq!(terminator.phase(), Phase::Serving);
    });
}

/// Without keep-alive each request has a connection of its own, on HTTP/1 and on HTTP/2.
#[test]
fn server_keep_alives_enabled() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient().max_requests_per_connection(1)).await;
        for _ in 0..2 {
            let mut client = site.server.connect();
            assert!(client.fetch("/quick").says_close(), "{front:?}");
            client.expect_eof();
            let mut h2 = h2_connect(&site.server.target).await;
            assert_eq!(h2.get("/quick").await.1, b"ok", "{front:?}");
            let ended = within(BOUND, "HTTP/2 goes away", h2.closed()).await;
            assert!(ended.is_ok(), "{front:?}: {ended:?}");
        }
        until("no connection", || site.terminator.stats().connections == 0);
        assert_eq!(site.terminator.stats().accepted, 4, "{front:?}");
    });
}

/// An upgrade is one, also as the last request that its connection may bring.
#[test]
fn disable_keep_alive_upgrade() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient().max_requests_per_connection(1)).await;
        let mut client = site.server.connect();
        client.get_upgrade("/upgrade");
        let response = client.read_response_headers();
        assert_eq!(response.status, 101, "{front:?}: {response:?}");
        assert!(!response.says_close(), "{front:?}: {response:?}");
        client.send("hello");
        assert_eq!(client.read_exact(5), b"hello", "{front:?}");
    });
}

/// What the client sent while the handler thought about the upgrade.
#[test]
fn server_hijack_gets_background_byte() {
    hijacked(b"", b"foo");
}

#[test]
fn server_hijack_gets_background_byte_big() {
    hijacked(b"", &[b'x'; 8 << 10]);
}

/// What came in the same segments as the request.
#[test]
fn server_hijack_gets_full_body() {
    hijacked(&vec![b'x'; 100 << 10], b"");
}

/// Bytes right behind the request for an upgrade, and some that come while the handler is at it, reach the stream: here
/// also while the drain has begun between.
fn hijacked(behind: &[u8], later: &[u8]) {
    each(FrontEnd::all_and_tls(), async |front| {
        for drains in [false, true] {
            let site = Site::start(front, patient()).await;
            let mut client = site.server.connect();
            let head = "GET /upgrade-slow HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
            client.send([head.as_bytes(), behind].concat());
            site.gate.wait_entered(1);
            client.send(later);
            let termination = drains.then(|| site.terminator.terminate());
            site.gate.open();
            assert_eq!(client.read_response_headers().status, 101, "{front:?}");
            let all = [behind, later].concat();
            assert!(client.read_exact(all.len()) == all, "{front:?}");
            client.shutdown_write();
            client.expect_eof();
            if let Some(termination) = termination {
                let report = report(termination).await;
                assert_eq!(report.upgraded, 1, "{front:?}: {report}");
            }
        }
    });
}
