//! What bounds a client while serving: half-sent request heads and handshakes, and idle connections if asked
//! for (G22).
#![cfg(all(unix, feature = "serve"))]

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use crate::support::wait::{time_passes, time_passes_async};
use crate::support::{App, BOUND, Gate, RawClient, app, blocking, within};
use http_terminator::{HttpBuilder, Listener, Terminator, TowerToHyper};

const GET: &[u8] = b"GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// The bound on half-sent heads.
const HEAD: Duration = Duration::from_secs(30);

// ===== half-sent heads, in tokio's paused time =====

#[tokio::test(start_paused = true)]
async fn g22_a_first_head_must_be_whole_in_30_s() {
    half_a_head_is_given_up(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn g22_a_later_head_must_be_whole_in_30_s() {
    half_a_head_is_given_up(&[GET]).await;
}

/// Nobody reads again behind the answer, so nobody comes by the half of it.
#[tokio::test(start_paused = true)]
async fn g22_a_head_pipelined_behind_a_request_must_be_whole_in_30_s() {
    let both = [GET, &GET[..9]].concat();
    let mut client = serve();
    client.write_all(&both).await.expect("there is room");
    answers(&mut client, 1).await;
    ends_after(&mut client, HEAD).await;
}

/// Slowly, but in time.
#[tokio::test(start_paused = true)]
async fn g22_a_head_in_time_is_answered_and_the_next_has_its_own_30_s() {
    let mut client = serve();
    for _ in 0..3 {
        let (begun, rest) = GET.split_at(9);
        client.write_all(begun).await.expect("there is room");
        time_passes_async(HEAD * 9 / 10).await;
        client.write_all(rest).await.expect("there is room");
        answers(&mut client, 1).await;
    }
}

/// The time for which it was quiet was taken from the system's clock, and there was no end of waking up.
#[tokio::test(start_paused = true)]
async fn g22_idleness_is_bounded_in_paused_time() {
    const IDLE: Duration = Duration::from_secs(60);

    let terminator = Terminator::builder().idle_timeout(IDLE).build();
    ends_after(&mut serve_by(&terminator), IDLE).await;
    let mut client = serve_by(&terminator);
    for _ in 0..3 {
        client.write_all(GET).await.expect("there is room");
        answers(&mut client, 1).await;
        time_passes_async(IDLE * 9 / 10).await;
    }
    // The timer that it had is over first: then there is one for the whole of it.
    let began = Instant::now();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("an end of file");
    assert!(began.elapsed() < IDLE * 2, "{:?}", began.elapsed());
    assert_eq!(rest, b"");
}

/// In real time, in which the system's clock moves, too: each look began another turn of the reactor, and none was ever over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g22_idleness_is_bounded_over_an_io_that_cant_be_looked_into() {
    const IDLE: Duration = Duration::from_millis(200);

    let terminator = Terminator::builder().idle_timeout(IDLE).build();
    for requests in 0..3 {
        let (mut client, io) = tokio::io::duplex(1024);
        let io = terminator.track(io);
        let connection = io.connection();
        let polls = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&polls);
        tokio::spawn(async move {
            let service = TowerToHyper::new(app(App::default()));
            let builder = HttpBuilder::default();
            let mut served = pin!(connection.serve(&builder, io, service));
            poll_fn(|cx| {
                counts.fetch_add(1, Ordering::Relaxed);
                served.as_mut().poll(cx)
            })
            .await
        });
        for _ in 0..requests {
            client.write_all(GET).await.expect("there is room");
            answers(&mut client, 1).await;
        }
        let mut rest = Vec::new();
        within(BOUND / 2, "the end", client.read_to_end(&mut rest))
            .await
            .expect("an end of file");
        assert_eq!(rest, b"");
        let polls = polls.load(Ordering::Relaxed);
        assert!(polls < 30, "{polls}");
    }
}

#[tokio::test(start_paused = true)]
async fn g22_a_connection_that_sends_nothing_is_not_bounded() {
    let mut client = serve();
    for _ in 0..2 {
        time_passes_async(HEAD * 100).await;
        client.write_all(GET).await.expect("there is room");
        answers(&mut client, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn g22_a_head_without_a_bound_takes_as_long_as_it_takes() {
    for before in [&[][..], &[GET]] {
        let mut client = serve_by(&Terminator::builder().head_timeout(None).build());
        for request in before {
            client.write_all(request).await.expect("there is room");
            answers(&mut client, 1).await;
        }
        let (begun, rest) = GET.split_at(9);
        client.write_all(begun).await.expect("there is room");
        time_passes_async(HEAD * 20).await;
        client.write_all(rest).await.expect("there is room");
        answers(&mut client, 1).await;
    }
}

/// Without that bound nothing here asks for a timer.
#[test]
fn g22_a_head_without_a_bound_comes_in_halves_where_there_is_no_timer() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime can be made");
    runtime.block_on(async {
        let mut client = serve_by(&Terminator::builder().head_timeout(None).build());
        for _ in 0..2 {
            let (begun, rest) = GET.split_at(9);
            client.write_all(begun).await.expect("there is room");
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            client.write_all(rest).await.expect("there is room");
            answers(&mut client, 1).await;
        }
    });
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
    serve_by(&Terminator::new())
}

fn serve_by(terminator: &Terminator) -> DuplexStream {
    let (client, server) = tokio::io::duplex(64 * 1024);
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

const IDLE: Duration = Duration::from_millis(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g22_idle_connections_are_closed_when_their_time_is_over() {
    let (addr, gate) = serve_tcp().await;
    gate.open();
    blocking(move || {
        for paths in [&[][..], &["/quick"], &["/slow"], &["/quick", "/slow"]] {
            let began = std::time::Instant::now();
            let mut client = RawClient::connect(addr);
            for path in paths {
                assert_eq!(client.fetch(path).status, 200);
            }
            client.expect_eof();
            let took = began.elapsed();
            assert!(took >= IDLE && took < BOUND / 2, "{paths:?}: {took:?}");
        }
    })
    .await;
}

/// Each request begins the time anew, and a request in flight is not idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g22_connections_in_use_are_not_idle() {
    let (addr, gate) = serve_tcp().await;
    blocking(move || {
        let mut client = RawClient::connect(addr);
        client.get("/slow");
        gate.wait_entered(1);
        time_passes(IDLE * 2);
        gate.open();
        assert_eq!(client.read_response().text(), "slow");
        for _ in 0..6 {
            time_passes(IDLE / 4);
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

// ===== of the terminator, for every front end =====

#[cfg(feature = "rustls")]
mod every_front {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};
    use std::time::{Duration, Instant};

    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::routing::{get, post};
    use http_terminator::{
        HttpBuilder, IdlePolicy, Phase, Report, Terminator, TerminatorBuilder, TowerToHyper,
    };

    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

    use crate::support::outside::{Host, block_on, measured};
    use crate::support::wait::{gone, time_passes, time_passes_async, until_stats_async};
    use crate::support::{
        App, BOUND, FrontEnd, PREFACE, RawClient, RawH2, ReadEnd, Target, app, blocking,
        client_hello, kind, start_known, tls_client, within,
    };
    use crate::support::{bound, bound_here};

    const BOUNDED: Duration = Duration::from_millis(300);
    const SLACK: Duration = Duration::from_millis(700);

    async fn ends_while_serving(
        front: FrontEnd,
        builder: TerminatorBuilder,
        client: impl FnOnce(&Target) -> Box<dyn FnMut() + Send> + Send + 'static,
    ) -> Report {
        let terminator = builder.build();
        let (target, _) = start_known(front, &terminator, app(App::default())).await;
        blocking(move || {
            let begin = Instant::now();
            let mut end = client(&target);
            end();
            let took = begin.elapsed();
            assert!(took >= BOUNDED, "{front:?}: {took:?}");
            measured(took, BOUNDED + SLACK, "the end");
        })
        .await;
        gone(&terminator).await;
        within(BOUND, "the end", terminator.terminate()).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_half_a_head_is_bounded() {
        for front in FrontEnd::seeing() {
            for first in [true, false] {
                let builder = Terminator::builder().head_timeout(BOUNDED);
                ends_while_serving(front, builder, move |target| {
                    let mut client = RawClient::connect(target);
                    if !first {
                        client.fetch("/quick");
                    }
                    client.send("GET /quick HTTP/1.1\r\nho");
                    Box::new(move || client.expect_eof())
                })
                .await;
            }
        }
    }

    /// It looks like a whole head of HTTP/1.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_half_a_preface_of_http2_is_bounded() {
        for front in FrontEnd::seeing() {
            for n in [17, 18, 23] {
                let builder = Terminator::builder().head_timeout(BOUNDED);
                ends_while_serving(front, builder, move |target| {
                    let mut client = RawClient::connect(target);
                    client.send(&PREFACE[..n]);
                    Box::new(move || client.expect_eof())
                })
                .await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_half_a_head_of_http2_is_bounded() {
        for front in FrontEnd::seeing() {
            let builder = Terminator::builder().head_timeout(BOUNDED);
            ends_while_serving(front, builder, move |target| {
                let mut client = RawH2::connect(target);
                client.ack_settings();
                client.get("/quick", 1);
                client.read_until(kind::DATA);
                // HEADERS of 20 bytes, of which 3 come.
                client.send([0, 0, 20, 1, 4, 0, 0, 0, 3, 0x82, 0x86, 0x84]);
                Box::new(move || {
                    client.expect_eof_within(BOUND);
                })
            })
            .await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_an_idle_connection_is_closed() {
        for front in FrontEnd::seeing() {
            for used in [true, false] {
                let builder = Terminator::builder().idle_timeout(BOUNDED);
                ends_while_serving(front, builder, move |target| {
                    let mut client = RawClient::connect(target);
                    if used {
                        client.fetch("/quick");
                    }
                    Box::new(move || client.expect_eof())
                })
                .await;
            }
        }
    }

    /// Told for its age it may bring one more request, but there is no deadline by which that ends: it stayed for ever.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_an_idle_connection_that_has_grown_old_is_closed() {
        for front in FrontEnd::seeing() {
            for used in [true, false] {
                let builder = Terminator::builder()
                    .idle(IdlePolicy::LastRequest {
                        wait: Duration::MAX,
                    })
                    .max_connection_age(BOUNDED / 8)
                    .idle_timeout(BOUNDED);
                ends_while_serving(front, builder, move |target| {
                    let mut client = RawClient::connect(target);
                    if used {
                        client.fetch("/quick");
                    }
                    Box::new(move || client.expect_eof())
                })
                .await;
            }
        }
    }

    /// The same by its server's own bound.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_one_that_has_grown_old_is_closed_by_the_bound_of_its_server() {
        let terminator = Terminator::builder().max_connection_age(BOUNDED / 8);
        let wait = Duration::MAX;
        let terminator = terminator.idle(IdlePolicy::LastRequest { wait }).build();
        let (listener, addr) = bound_here();
        let served = terminator.serve(listener, app(App::default()));
        tokio::spawn(served.idle_timeout(BOUNDED));
        blocking(move || {
            let mut client = RawClient::connect(addr);
            client.fetch("/quick");
            client.expect_eof();
        })
        .await;
    }

    /// Whose trailers hold what looks like an empty line and a request, and are neither.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_a_connection_that_is_idle_behind_odd_trailers_is_closed() {
        for front in FrontEnd::seeing() {
            let builder = Terminator::builder().idle_timeout(BOUNDED);
            ends_while_serving(front, builder, move |target| {
                let mut client = RawClient::connect(target);
                client.send(
                    "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
                    0\r\nx: y\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
                );
                assert_eq!(client.read_response().status, 200);
                Box::new(move || client.expect_eof())
            })
            .await;
        }
    }

    /// The body of a request has arrived, and somebody keeps it unread: hyper reads no more.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_a_connection_whose_body_nobody_reads_is_closed_when_idle() {
        for front in FrontEnd::seeing() {
            let terminator = Terminator::builder()
                .idle_timeout(BOUNDED)
                .stall_timeout(Duration::from_millis(100))
                .build();
            let shelf = Arc::new(Mutex::new(Vec::new()));
            let shelve = async move |body: Body| {
                shelf.lock().expect("nobody panics with it").push(body);
                "shelved"
            };
            let app = Router::new().route("/shelve", post(shelve));
            let (target, _) = start_known(front, &terminator, app).await;
            blocking(move || {
                let mut client = RawClient::connect(&target);
                client.send(
                    "POST /shelve HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
                    5\r\nhello\r\n0\r\n\r\n",
                );
                let begin = Instant::now();
                assert_eq!(client.read_response().text(), "shelved");
                client.expect_eof();
                measured(begin.elapsed(), BOUNDED + SLACK, "the end");
            })
            .await;
            let report = within(BOUND, "the end", terminator.terminate()).await;
            assert!(report.is_clean(), "{front:?}: {report}");
        }
    }

    /// Told alone, behind its last answer, under a policy without end: nobody looked again.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g21_a_connection_whose_body_nobody_reads_is_closed_behind_its_last_answer() {
        for front in FrontEnd::seeing() {
            let last = IdlePolicy::LastRequest {
                wait: Duration::MAX,
            };
            let terminator = Terminator::builder()
                .max_requests_per_connection(1)
                .idle(last)
                .stall_timeout(Duration::from_millis(100))
                .build();
            let shelf = Arc::new(Mutex::new(Vec::new()));
            let shelve = async move |body: Body| {
                shelf.lock().expect("nobody panics with it").push(body);
                "shelved"
            };
            let app = Router::new().route("/shelve", post(shelve));
            let (target, _) = start_known(front, &terminator, app).await;
            blocking(move || {
                let mut client = RawClient::connect(&target);
                client.send(
                    "POST /shelve HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
                    5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n",
                );
                assert_eq!(client.read_response().text(), "shelved");
                let begin = Instant::now();
                client.expect_eof();
                measured(begin.elapsed(), SLACK, "the end");
            })
            .await;
            within(BOUND, "the end", terminator.terminate()).await;
        }
    }

    /// Half a record may be half a request: it is waited for as in a drain, and no longer.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_half_a_tls_record_is_no_way_out_of_idleness() {
        for front in [FrontEnd::ServeTls, FrontEnd::OwnLoopTls] {
            for used in [true, false] {
                let builder = Terminator::builder()
                    .idle_timeout(BOUNDED)
                    .stall_timeout(Duration::from_millis(100));
                ends_while_serving(front, builder, move |target| {
                    let mut client = RawClient::connect(target);
                    if used {
                        client.fetch("/quick");
                    }
                    // An application's, of a length that is to come.
                    client.send_raw(&[23]);
                    Box::new(move || client.expect_eof())
                })
                .await;
            }
        }
    }

    /// Its rest comes in time.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g2_a_request_half_of_whose_record_has_come_when_it_is_idle_is_answered() {
        for front in [FrontEnd::ServeTls, FrontEnd::OwnLoopTls] {
            let idle = Duration::from_secs(1);
            let terminator = Terminator::builder().idle_timeout(idle).build();
            let (target, _) = start_known(front, &terminator, app(App::default())).await;
            blocking(move || {
                let mut client = RawClient::connect(&target);
                client.fetch("/quick");
                let record = client.encrypt("GET /quick HTTP/1.1\r\nhost: a\r\n\r\n");
                let (begun, rest) = record.split_at(7);
                client.send_raw(begun);
                // Time is the subject.
                time_passes(idle + Duration::from_millis(200));
                client.send_raw(rest);
                let answer = client.read_response();
                assert_eq!(answer.text(), "ok");
                client.expect_eof();
            })
            .await;
            let report = within(BOUND, "the end", terminator.terminate()).await;
            assert!(report.is_clean(), "{front:?}: {report}");
        }
    }

    /// What the handler leaves behind outlives the last frame of its answer.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_idle_http2_is_told_however_late_its_body_is_dropped() {
        struct Late(Option<&'static [u8]>);
        impl http_body::Body for Late {
            type Data = Bytes;
            type Error = std::convert::Infallible;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
                let part = self.0.take();
                Poll::Ready(part.map(|part| Ok(http_body::Frame::data(Bytes::from_static(part)))))
            }
        }
        impl Drop for Late {
            fn drop(&mut self) {
                // The connection's task, which was woken last, is no longer the next on this thread, and
                // another one takes it.
                tokio::spawn(async {});
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        for front in FrontEnd::seeing() {
            let builder = Terminator::builder()
                .idle_timeout(BOUNDED)
                .stall_timeout(Duration::from_millis(100));
            let terminator = builder.build();
            let app = Router::new().route("/", get(async || Body::new(Late(Some(b"late")))));
            let (target, _) = start_known(front, &terminator, app).await;
            blocking(move || {
                let mut clients: Vec<_> = (0..4)
                    .map(|_| {
                        let mut client = RawH2::connect_silent(&target);
                        // In one segment, so that it has not been idle before.
                        let head = [0x82, 0x86, 0x84, 0x41, 1, b'a'];
                        let settings = [0, 0, 0, kind::SETTINGS, 0, 0, 0, 0, 0];
                        let headers = [0, 0, 6, 1, 5, 0, 0, 0, 1];
                        client.send([PREFACE, &settings, &headers, &head].concat());
                        while !client.read_until(kind::DATA).is_end_stream() {}
                        client
                    })
                    .collect();
                for client in &mut clients {
                    let begin = Instant::now();
                    assert_eq!(client.read_until(kind::GOAWAY).goaway().1, 0);
                    measured(begin.elapsed(), BOUNDED + SLACK, "told");
                }
            })
            .await;
            drop(terminator.force());
        }
    }

    /// A close in stages that is under way is not disturbed by a bound of less time: polls are counted.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_a_bound_that_is_over_costs_no_polls() {
        let builder = || Terminator::builder().head_timeout(BOUNDED);
        for terminator in [
            builder().build(),
            builder().idle_timeout(BOUNDED).build(),
            builder().idle_timeout(BOUNDED / 2).build(),
        ] {
            let (addr, polls) = counts_polls(&terminator, || app(App::default())).await;
            blocking(move || {
                let mut client = RawClient::connect(addr);
                client.send("GET /quick HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nX");
                assert_eq!(client.read_response().text(), "ok");
                let begin = Instant::now();
                while begin.elapsed() < BOUNDED * 4 {
                    // Time is the subject.
                    time_passes(BOUNDED / 6);
                    let _ = client.try_send("X");
                }
            })
            .await;
            let polls = polls.load(Relaxed);
            assert!(polls < 200, "{polls} polls of one connection");
            drop(terminator.force());
        }
    }

    /// Somebody reads a body slowly, behind its answer and in front of another request: looking whether he still does costs
    /// few polls, in the drain.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g5_a_body_that_is_read_slowly_costs_few_polls() {
        const PARTS: usize = 20;
        let terminator = Terminator::builder().grace_period(BOUND * 2).build();
        let (addr, polls) = counts_polls(&terminator, || {
            let later = axum::routing::post(async |body: axum::body::Body| {
                tokio::spawn(async move {
                    let mut body = body.into_data_stream();
                    while futures_util::StreamExt::next(&mut body).await.is_some() {
                        time_passes_async(Duration::from_millis(100)).await;
                    }
                });
                "accepted"
            });
            app(App::default()).route("/later", later)
        })
        .await;
        let ends = terminator.clone();
        blocking(move || {
            let mut client = RawClient::connect(addr);
            let parts = "5\r\nhello\r\n".repeat(PARTS);
            client.send(format!(
                "POST /later HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{parts}0\r\n\r\n\
                 GET /quick HTTP/1.1\r\nhost: a\r\n\r\n"
            ));
            assert_eq!(client.read_response().text(), "accepted");
            drop(ends.terminate());
            assert_eq!(client.read_response().text(), "ok");
        })
        .await;
        let polls = polls.load(Relaxed);
        assert!(polls < PARTS * 8, "{polls} polls for {PARTS} parts");
    }

    /// Serves, and counts how often its connections are polled.
    async fn counts_polls(
        terminator: &Terminator,
        router: impl Fn() -> Router + Send + 'static,
    ) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
        let any = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let any = any.expect("a free port");
        let addr = any.local_addr().expect("it is bound");
        let mut listener = terminator.listen(any);
        let polls = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&polls);
        tokio::spawn(async move {
            while let Some((io, _)) = listener.accept().await {
                let service = TowerToHyper::new(router());
                let builder = HttpBuilder::default();
                let mut served = Box::pin(io.connection().serve(&builder, io, service));
                let counts = Arc::clone(&counts);
                tokio::spawn(std::future::poll_fn(move |cx| {
                    counts.fetch_add(1, Relaxed);
                    served.as_mut().poll(cx).map(drop)
                }));
            }
        });
        (addr, polls)
    }

    /// 17 bytes that are no acknowledgment of the PING behind the GOAWAY buy no time.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_idle_http2_that_acks_another_ping_is_closed() {
        for front in FrontEnd::seeing() {
            let builder = Terminator::builder()
                .idle_timeout(BOUNDED)
                .stall_timeout(Duration::from_millis(100));
            ends_while_serving(front, builder, move |target| {
                let mut client = RawH2::connect(target);
                client.ack_settings();
                Box::new(move || {
                    client.read_until(kind::GOAWAY);
                    client.send_frame(kind::PING, 1, 0, &[7; 8]);
                    client.expect_eof_within(BOUND);
                })
            })
            .await;
        }
    }

    /// It is told that it is old, for which alone nobody is in a hurry, but half a head has no more time than before.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_half_a_head_that_comes_in_drops_is_bounded_when_its_connection_is_told() {
        for front in FrontEnd::seeing() {
            let builder = Terminator::builder()
                .max_connection_age(BOUNDED / 4)
                .head_timeout(BOUNDED);
            ends_while_serving(front, builder, move |target| {
                let client = RawClient::connect(target);
                client.send("GET /quick HTTP/1.1\r\nhost: ");
                Box::new(move || {
                    let begun = Instant::now();
                    while client.try_send("a").is_ok() {
                        assert!(begun.elapsed() < BOUND, "it is never ended");
                        time_passes(BOUNDED / 10);
                    }
                })
            })
            .await;
        }
    }

    /// A handshake that its caller gave up, who goes on without one.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g1_a_connection_whose_handshake_was_dropped_is_closed_when_idle() {
        let terminator = Terminator::builder().grace_period(BOUND * 9).build();
        let any = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let addr = any.local_addr().expect("it is bound");
        let mut listener = terminator.listen(any);
        let accepts = tokio::spawn(async move {
            while let Some((io, _)) = listener.accept().await {
                let connection = io.connection();
                drop(connection.handshake(std::future::pending::<()>()));
                let service = TowerToHyper::new(app(App::default()));
                let builder = HttpBuilder::default();
                tokio::spawn(connection.serve(&builder, io, service));
            }
        });
        let client = blocking(move || {
            let mut client = RawClient::connect(addr);
            assert_eq!(client.fetch("/quick").text(), "ok");
            client
        })
        .await;
        let begin = Instant::now();
        let report = within(BOUND, "the end", terminator.terminate()).await;
        measured(begin.elapsed(), SLACK, "the end");
        assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
        drop(client);
        accepts.await.expect("it does not panic");
    }

    /// What a connection waits for whose IO nobody can look into.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Waits {
        ForHello,
        Served,
        Watched,
    }

    /// Interleaving: while something else has the runtime's only thread, the first bytes of a handshake, or a request, come,
    /// and the drain; the task is polled, and woken and polled again, before the reactor has seen them, and took the
    /// connection for idle.
    #[test]
    fn g2_what_came_while_its_runtime_was_blocked_is_read_first() {
        for waits in [Waits::ForHello, Waits::Served, Waits::Watched] {
            let host = Host::current_thread();
            let terminator = Terminator::builder().grace_period(BOUND * 9).build();
            let (listener, addr) = bound(host.handle());
            let tracks = terminator.clone();
            let (tell, told) = std::sync::mpsc::channel();
            let task = host.spawn(async move {
                let (socket, _) = listener.accept().await.expect("accepted");
                let (read, write) = socket.into_split();
                let mut io = tracks.track(tokio::io::join(read, write));
                let connection = io.connection();
                if waits == Waits::ForHello {
                    let shaken = connection.handshake(async move {
                        tell.send(()).expect("it is awaited");
                        let mut hello = [0; 5];
                        io.read_exact(&mut hello).await.map(|_| io)
                    });
                    io = shaken.await.expect("not idle").expect("a hello");
                }
                let service = TowerToHyper::new(app(App::default()));
                if waits == Waits::Watched {
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(io), connection.service(service));
                    let _ = connection.watch(served).await;
                } else {
                    let _ = connection.serve(&HttpBuilder::default(), io, service).await;
                }
            });
            let handle = host.handle().clone();
            let runs = std::thread::spawn(move || host.block_on(task));
            let mut client = RawClient::connect(addr);
            client.set_timeout(BOUND);
            if waits == Waits::ForHello {
                told.recv_timeout(BOUND).expect("it is polled");
            } else {
                assert_eq!(client.fetch("/quick").text(), "ok");
            }
            // The time is the subject: longer than `settle`, and then how long the thread is taken.
            time_passes(Duration::from_millis(50));
            let (enter, entered) = std::sync::mpsc::channel();
            handle.spawn(async move {
                enter.send(()).expect("it is awaited");
                time_passes(Duration::from_millis(60));
            });
            entered.recv_timeout(BOUND).expect("it is blocked");
            if waits == Waits::ForHello {
                client.send("HELLO");
            }
            client.get("/quick");
            let ended = terminator.terminate();
            // It has been woken by then; behind its first look others take the thread once more, ahead of the reactor.
            time_passes(Duration::from_millis(20));
            for _ in 0..2 {
                handle.spawn(async { time_passes(Duration::from_millis(5)) });
            }
            let answer = client.read_response();
            assert_eq!(
                (answer.status, answer.says_close()),
                (200, true),
                "{waits:?}"
            );
            let report = block_on(BOUND, "the end", ended);
            assert!(report.is_clean(), "{waits:?}: {report}");
            runs.join().expect("no panic").expect("no panic");
        }
    }

    /// Whoever yields is woken by the thread on which he did, and no other. Interleaving: as it is looked whether what can't be looked
    /// into is idle, something else takes that thread, for longer than an idle connection stays open.
    #[test]
    fn g1_a_blocked_thread_keeps_nobody_from_being_found_idle() {
        const SETTLE: Duration = Duration::from_millis(50);
        const BLOCKED: Duration = Duration::from_secs(3);

        struct Blocks<Io>(Io, Terminator, Option<Instant>);

        impl<Io: AsyncRead + Unpin> AsyncRead for Blocks<Io> {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<std::io::Result<()>> {
                if self.1.phase() >= Phase::Draining {
                    let first = self.2.is_none();
                    let began = *self.2.get_or_insert_with(Instant::now);
                    if !first && began.elapsed() >= SETTLE / 2 {
                        self.2 = Some(began + BLOCKED);
                        tokio::spawn(async { time_passes(BLOCKED) });
                    }
                }
                Pin::new(&mut self.0).poll_read(cx, buf)
            }
        }

        impl<Io: AsyncWrite + Unpin> AsyncWrite for Blocks<Io> {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<std::io::Result<usize>> {
                Pin::new(&mut self.0).poll_write(cx, buf)
            }

            fn poll_flush(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<std::io::Result<()>> {
                Pin::new(&mut self.0).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<std::io::Result<()>> {
                Pin::new(&mut self.0).poll_shutdown(cx)
            }
        }

        for _ in 0..6 {
            let host = Host::workers(2);
            let terminator = Terminator::builder()
                .settle(SETTLE)
                .grace_period(BOUND)
                .build();
            let (client, io) = tokio::io::duplex(64);
            let io = terminator.track(Blocks(io, terminator.clone(), None));
            let service = TowerToHyper::new(app(App::default()));
            host.spawn(async move {
                let connection = io.connection();
                connection.serve(&HttpBuilder::default(), io, service).await
            });
            let begin = Instant::now();
            let report = block_on(BOUND, "the end", terminator.terminate());
            measured(begin.elapsed(), Duration::from_secs(1), "the end");
            assert_eq!(report.idle, 1, "{report}");
            drop(client);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_idle_http2_is_told_to_go_away() {
        for front in FrontEnd::seeing() {
            for used in [true, false] {
                let builder = Terminator::builder()
                    .idle_timeout(BOUNDED)
                    .stall_timeout(Duration::from_millis(100));
                ends_while_serving(front, builder, move |target| {
                    let mut client = RawH2::connect(target);
                    client.ack_settings();
                    if used {
                        client.get("/quick", 1);
                        client.read_until(kind::DATA);
                    }
                    Box::new(move || {
                        assert_eq!(client.read_until(kind::GOAWAY).goaway().1, 0);
                    })
                })
                .await;
            }
        }
    }

    /// Nor is one that comes a byte at a time. There is no deadline while serving.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_a_tls_record_in_drips_is_no_way_out_of_idleness() {
        for front in [FrontEnd::ServeTls, FrontEnd::OwnLoopTls] {
            let terminator = Terminator::builder()
                .idle_timeout(BOUNDED)
                .stall_timeout(BOUNDED)
                .head_timeout(BOUNDED * 3)
                .build();
            let (target, _) = start_known(front, &terminator, app(App::default())).await;
            blocking(move || {
                let mut client = RawClient::connect(target);
                client.fetch("/quick");
                // An application's.
                client.send_raw(&[23, 3, 3, 0x40, 0]);
                let begin = Instant::now();
                let mut socket = client.into_inner();
                while terminator.stats().connections > 0 {
                    assert!(begin.elapsed() < BOUND, "{front:?}: it is never closed");
                    time_passes(BOUNDED / 3);
                    let _ = std::io::Write::write(&mut socket, &[1]); // it may be closed
                }
            })
            .await;
        }
    }

    /// It is quiet that counts, not age.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_http2_in_use_is_not_idle() {
        for front in FrontEnd::seeing() {
            let builder = Terminator::builder().idle_timeout(BOUNDED * 10 / 3);
            let terminator = builder.build();
            let (target, _) = start_known(front, &terminator, app(App::default())).await;
            blocking(move || {
                let mut client = RawH2::connect(&target);
                client.ack_settings();
                for n in 0..8 {
                    client.get("/quick", n * 2 + 1);
                    client.read_until(kind::DATA);
                    // Time is the subject.
                    time_passes(BOUNDED / 2);
                }
                assert!(client.is_still_open(), "{front:?}");
            })
            .await;
            drop(terminator.force());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g22_a_handshake_is_bounded() {
        for front in [FrontEnd::ServeTls, FrontEnd::OwnLoopTls] {
            for part in [0, 1, 40] {
                let builder = Terminator::builder().head_timeout(BOUNDED);
                ends_while_serving(front, builder, move |target| {
                    let Target::Tls(addr) = *target else {
                        unreachable!("these are over TLS")
                    };
                    let mut client = RawClient::connect(addr);
                    let hello = client_hello(&mut tls_client(&["http/1.1"]));
                    client.send(&hello[..part]);
                    Box::new(move || client.expect_eof())
                })
                .await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g4_silent_clients_in_a_handshake_do_not_hold_a_drain() {
        for front in [FrontEnd::ServeTls, FrontEnd::OwnLoopTls] {
            let terminator = Terminator::builder().grace_period(BOUND * 9).build();
            let (target, _) = start_known(front, &terminator, app(App::default())).await;
            let Target::Tls(addr) = target else {
                unreachable!("these are over TLS")
            };
            let silent: Vec<_> = (0..5).map(|_| RawClient::connect(addr)).collect();
            until_stats_async(&terminator, "accepted", |it| it.connections >= 5).await;
            let begin = Instant::now();
            let report = within(BOUND, "the end", terminator.terminate()).await;
            measured(begin.elapsed(), Duration::from_millis(200), "the end");
            assert_eq!(
                (report.idle, report.connections()),
                (5, 5),
                "{front:?}: {report}"
            );
            drop(silent);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn g4_half_a_client_hello_stalls() {
        for front in [FrontEnd::ServeTls, FrontEnd::OwnLoopTls] {
            let terminator = Terminator::builder()
                .grace_period(BOUND * 9)
                .stall_timeout(BOUNDED)
                .build();
            let (target, _) = start_known(front, &terminator, app(App::default())).await;
            let Target::Tls(addr) = target else {
                unreachable!("these are over TLS")
            };
            let client = RawClient::connect(addr);
            client.send(&client_hello(&mut tls_client(&["http/1.1"]))[..40]);
            until_stats_async(&terminator, "accepted", |it| it.connections >= 1).await;
            let begin = Instant::now();
            let report = within(BOUND, "the end", terminator.terminate()).await;
            measured(begin.elapsed(), BOUNDED + SLACK, "the end");
            assert_eq!(
                (report.stalled, report.connections()),
                (1, 1),
                "{front:?}: {report}"
            );
            drop(client);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn absurd_bounds_are_defined() {
        for front in FrontEnd::seeing() {
            let terminator = Terminator::builder()
                .head_timeout(Duration::MAX)
                .idle_timeout(Duration::MAX)
                .build();
            let (target, _) = start_known(front, &terminator, app(App::default())).await;
            blocking(move || {
                let mut client = RawClient::connect(&target);
                assert_eq!(client.fetch("/quick").text(), "ok", "{front:?}");
                let mut client = RawH2::connect(&target);
                client.get("/quick", 1);
                client.read_until(kind::DATA);
            })
            .await;
            // Whatever comes is served or closed.
            let terminator = Terminator::builder()
                .head_timeout(Duration::ZERO)
                .idle_timeout(Duration::ZERO)
                .build();
            let (target, _) = start_known(front, &terminator, app(App::default())).await;
            blocking(move || {
                let mut client = RawClient::try_connect(&target);
                if let Ok(client) = &mut client {
                    let _ = client.try_send("GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n");
                    assert_ne!(client.read_to_end(), ReadEnd::Timeout, "{front:?}");
                }
            })
            .await;
        }
    }
}
