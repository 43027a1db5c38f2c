//! What bounds a client while serving: half-sent request heads (30 s), and idle connections if asked
//! for (`Serve::idle_timeout`).
#![cfg(all(unix, feature = "serve"))]
#![allow(
    unreachable_pub,
    reason = "the support module is shared by several test crates"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests look at the clock and spawn"
)]

mod support;

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use http_terminator::{Listener, Terminator};
use support::{App, BOUND, Gate, RawClient, app, blocking, within};

const GET: &[u8] = b"GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// The bound on half-sent heads.
const HEAD: Duration = Duration::from_secs(30);

// ===== half-sent heads, in tokio's paused time =====

#[tokio::test(start_paused = true)]
async fn a_first_head_must_be_whole_in_30_s() {
    half_a_head_is_given_up(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_later_head_must_be_whole_in_30_s() {
    half_a_head_is_given_up(&[GET]).await;
}

/// Nobody reads again behind the answer, so nobody comes by the half of it.
#[tokio::test(start_paused = true)]
async fn a_head_pipelined_behind_a_request_must_be_whole_in_30_s() {
    let both = [GET, &GET[..9]].concat();
    let mut client = serve();
    client.write_all(&both).await.expect("there is room");
    answers(&mut client, 1).await;
    ends_after(&mut client, HEAD).await;
}

/// Slowly, but in time.
#[tokio::test(start_paused = true)]
async fn a_head_in_time_is_answered_and_the_next_has_its_own_30_s() {
    let mut client = serve();
    for _ in 0..3 {
        let (begun, rest) = GET.split_at(9);
        client.write_all(begun).await.expect("there is room");
        tokio::time::sleep(HEAD * 9 / 10).await;
        client.write_all(rest).await.expect("there is room");
        answers(&mut client, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_sends_nothing_is_not_bounded() {
    let mut client = serve();
    for _ in 0..2 {
        tokio::time::sleep(HEAD * 100).await;
        client.write_all(GET).await.expect("there is room");
        answers(&mut client, 1).await;
    }
}

async fn half_a_head_is_given_up(before: &[&[u8]]) {
    let mut client = serve();
    for request in before {
        client.write_all(request).await.expect("there is room");
        answers(&mut client, 1).await;
    }
    client.write_all(&GET[..9]).await.expect("there is room");
    ends_after(&mut client, HEAD).await;
}

async fn answers(client: &mut DuplexStream, mut n: usize) {
    let mut read = Vec::new();
    while n > 0 {
        let got = client.read_buf(&mut read).await.expect("no error");
        assert!(got > 0, "ended after {:?}", String::from_utf8_lossy(&read));
        while let Some(end) = read.windows(6).position(|six| six == b"\r\n\r\nok") {
            assert!(read.starts_with(b"HTTP/1.1 200"));
            read.drain(..end + 6);
            n -= 1;
        }
    }
}

async fn ends_after(client: &mut DuplexStream, time: Duration) {
    let began = Instant::now();
    let mut rest = Vec::new();
    within(time * 2, "the end", client.read_to_end(&mut rest))
        .await
        .expect("an end of file");
    let took = began.elapsed();
    assert_eq!(rest, b"", "{:?}", String::from_utf8_lossy(&rest));
    assert!(took >= time, "{took:?}");
    assert!(took < time + Duration::from_secs(1), "{took:?}");
}

/// A server with one client, in memory.
fn serve() -> DuplexStream {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let terminator = Terminator::new();
    tokio::spawn(terminator.serve(One(Some(server)), app(App::default())));
    client
}

/// Accepts one connection.
struct One(Option<DuplexStream>);

impl Listener for One {
    type Io = DuplexStream;
    type Addr = ();

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
        self.0
            .take()
            .map_or(Poll::Pending, |io| Poll::Ready(Ok((io, ()))))
    }

    fn accept_queued(&mut self) -> io::Result<Option<(DuplexStream, ())>> {
        Ok(None)
    }
}

// ===== idle connections, in real time =====

const IDLE: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_closed_when_their_time_is_over() {
    let (addr, gate) = serve_tcp().await;
    gate.open();
    blocking(move || {
        for paths in [&[][..], &["/quick"], &["/slow"], &["/quick", "/slow"]] {
            let mut client = RawClient::connect(addr);
            for path in paths {
                assert_eq!(client.fetch(path).status, 200);
            }
            let began = std::time::Instant::now();
            client.expect_eof();
            let took = began.elapsed();
            assert!(
                took > IDLE * 9 / 10 && took < BOUND / 2,
                "{paths:?}: {took:?}"
            );
        }
    })
    .await;
}

/// Each request begins the time anew, and a request in flight is not idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_in_use_are_not_idle() {
    let (addr, gate) = serve_tcp().await;
    blocking(move || {
        let mut client = RawClient::connect(addr);
        client.get("/slow");
        gate.wait_entered(1);
        std::thread::sleep(IDLE * 2);
        gate.open();
        assert_eq!(client.read_response().text(), "slow");
        for _ in 0..6 {
            std::thread::sleep(IDLE / 2);
            assert_eq!(client.fetch("/quick").text(), "ok");
        }
        client.expect_eof();
    })
    .await;
}

async fn serve_tcp() -> (std::net::SocketAddr, Gate) {
    let gate = Gate::new();
    let state = App {
        gate: gate.clone(),
        terminator: None,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port is free");
    let addr = listener.local_addr().expect("bound");
    let terminator = Terminator::new();
    tokio::spawn(terminator.serve(listener, app(state)).idle_timeout(IDLE));
    (addr, gate)
}
