//! Connections end, one after the other, under clients that go on asking: none of their requests is lost
//! (G21, G9, G14).
//!
//! What is short here is long in the tests that are ignored, which print tables:
//! `cargo test --all-features --test calls rotation -- --ignored --nocapture --test-threads 1`.

#![cfg(all(unix, feature = "serve", feature = "rustls"))]

use std::collections::HashSet;
use std::convert::Infallible;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::routing::post;
use axum::{Extension, Router};
use axum_server::ConnectionShutdown;
use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt};

use crate::support;
use crate::support::closed_loop::{Load, Pace, Random, Speaks, Tally, routes, run};
use crate::support::load::stolen_in_the_last;
use crate::support::program::free_address;
use crate::support::starts::{Start, no_starts};
use crate::support::wait::time_passes_async;
use crate::support::{BOUND, FrontEnd, Known, Target, h2_connect, start_known, within};
use http_terminator::{IdlePolicy, Phase, Report, Terminator, TerminatorBuilder};

const AGE: Duration = Duration::from_millis(50);

/// What an idle connection is given when it is ended by somebody.
const SETTLE: Duration = Duration::from_millis(25);

/// Of the tests that are not ignored, for one cell of a table.
const SHORT: Duration = Duration::from_millis(500);

const LONG: Duration = Duration::from_secs(10);

/// Their connections have a socket, a session of TLS, and a handshake of one's own.
const FRONTS: [FrontEnd; 4] = [
    FrontEnd::Serve,
    FrontEnd::ServeTls,
    FrontEnd::OwnLoop,
    FrontEnd::OwnLoopTls,
];

/// Who asks again at once.
const LOOPS: [(Speaks, Pace); 3] = [
    (Speaks::Http1, Pace::AtOnce),
    (Speaks::Http1, Pace::InPieces(15)),
    (Speaks::Http2, Pace::AtOnce),
];

// ===== an age =====

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_an_age_loses_none_of_a_closed_loop() {
    closed_loops(SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_an_age_loses_none_at_a_pace() {
    paced(SHORT, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "two minutes, for a table"]
async fn g21_an_age_loses_none_of_a_closed_loop_for_long() {
    closed_loops(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "80 seconds, for a table"]
async fn g21_an_age_loses_none_at_a_pace_for_long() {
    paced(LONG, 8).await;
}

async fn closed_loops(time: Duration) {
    heading();
    for front in FRONTS {
        for (speaks, pace) in LOOPS {
            let it = It::new(front, aged()).await;
            let load = || it.load(speaks, pace, time, AGE);
            let tally = it.rotated(load, 6).await;
            row(&format!("{front:?}"), speaks, &pace, &tally);
            it.end_well(&tally).await;
        }
    }
}

/// An age that has come before anything else has: each connection is served all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_no_age_is_too_low_to_be_served() {
    heading();
    for age in [0, 5].map(Duration::from_millis) {
        for front in FRONTS {
            for (speaks, pace) in LOOPS {
                let builder = Terminator::builder().max_connection_age(age);
                let it = It::new(front, builder).await;
                let load = || it.load(speaks, pace, SHORT / 6, SETTLE);
                let tally = it.rotated(load, 4).await;
                let who = format!("{front:?}, {age:?}");
                row(&who, speaks, &pace, &tally);
                it.end_well(&tally).await;
            }
        }
    }
}

/// It was told to go away before it had asked for anything, and its client came again without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_http2_that_does_not_ask_at_once_is_served_at_any_age() {
    for age in [0, 1, 5].map(Duration::from_millis) {
        for front in FRONTS {
            let builder = Terminator::builder().max_connection_age(age);
            let it = It::new(front, builder.settle(BOUND)).await;
            for _ in 0..3 {
                let mut client = h2_connect(&it.target).await;
                // For some, who wait for the server's settings, it takes a round trip.
                time_passes_async(Duration::from_millis(10)).await;
                assert_eq!(client.get("/quick").await.1, b"ok", "{front:?}, {age:?}");
                client.closed().await.expect("it goes away then");
            }
        }
    }
}

/// One that never asks is told as well, when it has been quiet.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_http2_that_never_asks_grows_old() {
    for front in FRONTS {
        let it = It::new(front, aged()).await;
        let mut client = h2_connect(&it.target).await;
        client.closed().await.expect("it goes away");
    }
}

/// Whatever idle connections of HTTP/1 are given: of HTTP/2 that policy is none, and none was told before its wait was over.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_http2_that_never_asks_grows_old_whatever_the_policy() {
    for front in FRONTS {
        let last = IdlePolicy::LastRequest {
            wait: Duration::MAX,
        };
        let it = It::new(front, aged().idle(last)).await;
        let mut client = h2_connect(&it.target).await;
        client.closed().await.expect("it goes away");
    }
}

/// With so many clients of each pace.
async fn paced(time: Duration, clients: usize) {
    heading();
    for front in FRONTS {
        for speaks in Speaks::ALL {
            let it = It::new(front, aged()).await;
            let loads = Pace::PACED.map(|pace| it.load(speaks, pace, time, AGE));
            let running = loads.iter().map(|load| run(load, clients));
            let tallies = futures_util::future::join_all(running).await;
            for (load, tally) in loads.iter().zip(&tallies) {
                row(&format!("{front:?}"), speaks, &load.pace, tally);
                it.assert_rotated(tally, clients);
            }
            it.end_well(&tallies.into_iter().sum()).await;
        }
    }
}

fn aged() -> TerminatorBuilder {
    Terminator::builder().max_connection_age(AGE)
}

// ===== a number =====

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_a_number_loses_none() {
    numbers(SHORT / 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "40 seconds, for a table"]
async fn g21_a_number_loses_none_for_long() {
    numbers(LONG / 4).await;
}

async fn numbers(time: Duration) {
    heading();
    for front in FRONTS {
        for (speaks, pace) in [
            (Speaks::Http1, Pace::AtOnce),
            (Speaks::Http1, Pace::Pipelined(2)),
            (Speaks::Http1, Pace::Pipelined(7)),
            (Speaks::Http2, Pace::AtOnce),
        ] {
            let builder = Terminator::builder().max_requests_per_connection(3);
            let it = It::new(front, builder).await;
            let load = || it.load(speaks, pace, time, SETTLE);
            let tally = it.rotated(load, 4).await;
            row(&format!("{front:?}"), speaks, &pace, &tally);
            if speaks == Speaks::Http1 {
                let most = tally.connections * 3;
                assert!(tally.requests <= most, "{front:?} {pace}: {tally:?}");
            }
            it.end_well(&tally).await;
        }
    }
}

// ===== somebody =====

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_terminate_at_any_moment_loses_none() {
    at_any_moment(SHORT / 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "two minutes, for a table"]
async fn g21_terminate_at_any_moment_loses_none_for_long() {
    at_any_moment(LONG).await;
}

async fn at_any_moment(time: Duration) {
    heading();
    for front in FRONTS {
        for (speaks, pace) in LOOPS {
            let it = It::new(front, Terminator::builder()).await;
            let over = Arc::new(AtomicBool::new(false));
            let ender = ender(it.known.clone(), &over);
            let tally = run(&it.load(speaks, pace, time, SETTLE), 6).await;
            over.store(true, Ordering::Relaxed);
            ender.join().expect("no panic");
            row(&format!("{front:?}"), speaks, &pace, &tally);
            it.assert_rotated(&tally, 6);
            it.end_well(&tally).await;
        }
    }
}

/// Ends connections, those that came last rather than others, after times from none to 3 ms.
fn ender(known: Known, over: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let over = Arc::clone(over);
    thread::spawn(move || {
        let mut random = Random::new(7);
        while !over.load(Ordering::Relaxed) {
            let n = known.len();
            let back = usize::try_from(random.below(8)).expect("below eight");
            if let Some(at) = n.checked_sub(back + 1) {
                known.get(at).terminate();
            }
            if random.below(2) == 0 {
                thread::sleep(Duration::from_micros(random.below(3000)));
            } else {
                thread::yield_now();
            }
        }
    })
}

// ===== the end of all =====

/// As the drain begins each client is between two requests, in one, or in a handshake. Over HTTP/2, and over TLS, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g2_g9_an_end_loses_none_of_a_closed_loop() {
    const ENDS: usize = 3;
    let _alone = no_starts();
    heading();
    let mut lost = Vec::new();
    for front in FRONTS {
        for (speaks, pace) in LOOPS {
            let mut all = Tally::default();
            for _ in 0..ENDS {
                let it = It::new(front, Terminator::builder()).await;
                let load = it.load(speaks, pace, BOUND, SETTLE);
                let clients = tokio::spawn(async move { run(&load, 6).await });
                within(BOUND, "a hundred requests or so", async {
                    while it.terminator.stats().accepted < 6 {
                        tokio::task::yield_now().await;
                    }
                    // The moment is to be any.
                    time_passes_async(Duration::from_millis(30)).await;
                })
                .await;
                let report = within(BOUND, "the end", it.terminator.terminate()).await;
                assert!(report.is_clean(), "{front:?}: {report}");
                let tally = within(BOUND, "the clients", clients).await;
                all = all + tally.expect("no panic");
            }
            row(&format!("{front:?}"), speaks, &pace, &all);
            assert!(all.requests > 0, "{all:?}");
            lost.extend((all.lost > 0).then_some((front, speaks, all)));
        }
    }
    // The kernel lets some connects meet the close of its listener (G14), which a client may learn of by its first request.
    let why = lost.iter().flat_map(|(.., tally)| &tally.why);
    let (connects, requests): (Vec<_>, Vec<_>) = why.partition(|it| it.starts_with("connecting"));
    assert!(requests.len() <= 1 && connects.len() <= 5, "{lost:#?}");
}

// ===== a lame duck =====

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_a_lame_duck_loses_none_until_it_refuses() {
    lame_ducks(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "half a minute, for a table"]
async fn g21_a_lame_duck_loses_none_until_it_refuses_for_long() {
    lame_ducks(Duration::from_secs(2)).await;
}

async fn lame_ducks(period: Duration) {
    heading();
    for front in FRONTS {
        for (speaks, pace) in LOOPS {
            let it = It::new(front, Terminator::builder().lame_duck(period)).await;
            let clients = 4;
            let load = it.load(speaks, pace, BOUND, SETTLE);
            let (tally, report) = tokio::join!(run(&load, clients), it.end_soon());
            let pace = format!("lame duck, {pace}");
            row(&format!("{front:?}"), speaks, &pace, &tally);
            assert_eq!(tally.refused, clients, "{front:?} {speaks:?}: {tally:?}");
            assert_none_lost(&tally);
            assert!(report.is_clean(), "{front:?} {speaks:?}: {report}");
            assert!(report.lame_duck >= period, "{front:?} {speaks:?}: {report}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_a_lame_duck_loses_no_call_of_a_channel_until_it_refuses() {
    channels(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "8 seconds, for a table"]
async fn g21_a_lame_duck_loses_no_call_of_a_channel_until_it_refuses_for_long() {
    channels(Duration::from_secs(2)).await;
}

/// tonic's channel connects again by itself.
async fn channels(period: Duration) {
    heading();
    for front in [FrontEnd::Serve, FrontEnd::OwnLoop] {
        for limit in [None, Some(AGE)] {
            let builder = Terminator::builder()
                .lame_duck(period)
                .max_connection_age(limit);
            let seen = Seen::default();
            let it = It::with(front, builder, grpc_routes(&seen)).await;
            let Target::Tcp(addr) = it.target else {
                unreachable!("it is plain")
            };
            let clients = (0..3).map(|n| calls(addr, seen.clone(), n));
            let clients = futures_util::future::join_all(clients);
            let (tallies, report) = tokio::join!(clients, it.end_soon());
            let tally: Tally = tallies.into_iter().sum();
            let load = limit.map_or("lame duck, channel", |_| "lame duck and age, channel");
            row(&format!("{front:?}"), Speaks::Http2, &load, &tally);
            assert_eq!(tally.refused, 3, "{front:?}: {tally:?}");
            assert_none_lost(&tally);
            assert!(report.is_clean(), "{front:?}: {report}");
        }
    }
}

/// Clients that go on for a while keep it up, and then nobody does.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_a_lame_duck_that_is_a_range_ends_when_nobody_comes() {
    let (min, busy) = (Duration::from_millis(50), Duration::from_millis(400));
    // Longer than these clients take from one connection to the next.
    let settle = SETTLE * 8;
    for front in FRONTS {
        for speaks in Speaks::ALL {
            let builder = Terminator::builder().lame_duck(min..=Duration::from_secs(3600));
            let it = It::new(front, builder.settle(settle)).await;
            let load = it.load(speaks, Pace::AtOnce, busy, settle);
            let begin = Instant::now();
            let (tally, report) = tokio::join!(run(&load, 4), it.end_soon());
            assert_none_lost(&tally);
            assert!(report.is_clean(), "{front:?} {speaks:?}: {report}");
            assert_eq!(tally.refused, 0, "{front:?} {speaks:?}: {report} {tally:?}");
            assert!(begin.elapsed() >= busy, "{front:?} {speaks:?}: {report}");
            assert!(report.lame_duck >= min, "{front:?} {speaks:?}: {report}");
            assert!(tally.connections >= 4, "{front:?} {speaks:?}: {tally:?}");
        }
    }
}

// ===== gRPC =====

/// How many calls a service was asked, each of which is to be answered.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<HashSet<String>>>);

impl Seen {
    fn has(&self, word: &str) -> bool {
        self.0.lock().expect("no panic").contains(word)
    }
}

/// One unary call that gives its message back, as it is on the wire.
fn grpc_routes(seen: &Seen) -> Router {
    let seen = seen.clone();
    let echo = async move |body: Bytes| {
        let word = String::from_utf8_lossy(body.get(5..).unwrap_or_default()).into_owned();
        seen.0.lock().expect("no panic").insert(word);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let frames = [Frame::data(body), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
        let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
        ([("content-type", "application/grpc")], body)
    };
    Router::new().route("/test.Echo/Unary", post(echo))
}

/// One call after the other on one channel, until nobody listens any more.
async fn calls(addr: SocketAddr, seen: Seen, client: usize) -> Tally {
    let mut tally = Tally::default();
    // When it began to connect, each time.
    let dials: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let dialed = Arc::clone(&dials);
    let connector = tower::service_fn(move |_: http::Uri| {
        dialed.lock().expect("no panic").push(Instant::now());
        async move {
            let tcp = TcpStream::connect(addr).await?;
            tcp.set_nodelay(true)?;
            io::Result::Ok(TokioIo::new(tcp))
        }
    });
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(BOUND);
    let mut channel = endpoint.connect_with_connector_lazy(connector);
    let begin = Instant::now();
    let mut answered_at = begin;
    for n in 0.. {
        assert!(begin.elapsed() < BOUND, "it is never refused: {tally:?}");
        let word = format!("{client} {n}");
        let Err(error) = within(BOUND, "a call", call(&mut channel, &word)).await else {
            tally.requests += 1;
            answered_at = Instant::now();
            continue;
        };
        let was_seen = seen.has(&word);
        if !was_seen && is_refused(error.as_ref()) {
            tally.refused += 1;
            break;
        } else if !was_seen && is_not_processed(error.as_ref()) {
            tally.retried += 1;
        } else {
            let dial = dials.lock().expect("no panic").last().copied();
            // One that has spoken is told to go away, and can't be late.
            let fresh = dial.filter(|dial| *dial > answered_at);
            let quiet = fresh.map(|dial| dial.elapsed());
            let is_late = !was_seen && quiet.is_some_and(|quiet| quiet >= SETTLE);
            let why = format!("seen: {was_seen}, fresh for {quiet:?}: {error:?}");
            tally.lose(is_late, why);
        }
    }
    tally.connections = dials.lock().expect("no panic").len();
    tally
}

type BoxError = Box<dyn Error + Send + Sync>;

async fn call(channel: &mut Channel, word: &str) -> Result<(), BoxError> {
    let length = u32::try_from(word.len())?.to_be_bytes();
    let message = [&[0][..], &length, word.as_bytes()].concat();
    let request = http::Request::post("/test.Echo/Unary")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Full::from(message.clone())))?;
    let answer = channel.ready().await?.call(request).await?;
    let answer = answer.into_body().collect().await?;
    let status = answer
        .trailers()
        .and_then(|it| it.get("grpc-status"))
        .cloned();
    let whole = answer.aggregate().copy_to_bytes(message.len()) == message;
    if whole && status.is_some_and(|it| it == "0") {
        Ok(())
    } else {
        Err("another answer".into())
    }
}

/// Nobody listens.
fn is_refused(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|it| {
        let io = it.downcast_ref::<io::Error>();
        io.is_some_and(|io| io.kind() == ErrorKind::ConnectionRefused)
    })
}

/// It was refused by GOAWAY, or never sent: hyper's client calls that canceled.
fn is_not_processed(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|it| {
        let canceled = it.downcast_ref::<hyper::Error>();
        let refused = it.downcast_ref::<h2::Error>();
        canceled.is_some_and(hyper::Error::is_canceled)
            || refused.is_some_and(|it| it.is_go_away() && it.is_remote())
    })
}

fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> + 'a {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let it = next?;
        next = it.source();
        Some(it)
    })
}

// ===== a proxy =====

/// nginx keeps connections to its upstream, and tries nothing again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "10 seconds, and it needs nginx"]
async fn g21_an_age_loses_none_behind_nginx() {
    let Some(program) = nginx() else {
        support::skip::skip("nginx is not installed");
        return;
    };
    heading();
    for clients in [8, 32] {
        let it = It::new(FrontEnd::Serve, aged()).await;
        let Target::Tcp(upstream) = it.target else {
            unreachable!("it is plain")
        };
        let nginx = Nginx::start(&program, upstream);
        // A client that keeps its connection to nginx for ever.
        let load = Load {
            target: Target::Tcp(nginx.addr),
            ..it.load(Speaks::Http1, Pace::AtOnce, LONG / 2, BOUND)
        };
        let tally = run(&load, clients).await;
        let at_server = Tally {
            connections: it.known.len(),
            ..tally.clone()
        };
        row(
            "Serve behind nginx",
            Speaks::Http1,
            &Pace::AtOnce,
            &at_server,
        );
        let errors = nginx.end();
        assert_eq!(tally.connections, clients, "{tally:?}");
        assert!(at_server.connections > 50, "{at_server:?}");
        assert!(errors.is_empty(), "{errors}");
        it.end_well(&tally).await;
    }
}

fn nginx() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    places
        .map(|place| place.join("nginx"))
        .find(|it| it.exists())
}

/// One process. Dropped, it is killed.
struct Nginx {
    child: Child,
    addr: SocketAddr,
    dir: PathBuf,
}

impl Nginx {
    fn start(program: &PathBuf, upstream: SocketAddr) -> Self {
        let addr = free_address();
        let dir = std::env::temp_dir().join(format!("rotation-{}", addr.port()));
        std::fs::create_dir(&dir).expect("a directory of our own");
        let at = dir.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|it| format!("{it}_temp_path {at};\n"))
            .concat();
        let config = format!(
            "daemon off; master_process off; error_log {at}/log info; pid {at}/pid;
            events {{ worker_connections 512; }}
            http {{
                access_log off; {temporary}
                upstream server {{ server {upstream} max_fails=0; keepalive 64; keepalive_requests 1000000; }}
                server {{
                    listen {addr};
                    keepalive_requests 1000000;
                    location / {{
                        proxy_pass http://server;
                        proxy_http_version 1.1;
                        proxy_set_header Connection \"\";
                        proxy_next_upstream off;
                    }}
                }}
            }}"
        );
        std::fs::write(dir.join("conf"), config).expect("it is our directory");
        let child = Command::new(program)
            .arg("-p")
            .arg(&dir)
            .arg("-c")
            .arg(dir.join("conf"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .start();
        let child = child.expect("it was there a moment ago");
        let nginx = Self { child, addr, dir };
        support::wait::until("nginx listens", || {
            std::net::TcpStream::connect(addr).is_ok()
        });
        nginx
    }

    /// What it had to complain of.
    fn end(self) -> String {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let complaints = ["[warn]", "[error]", "[crit]", "[alert]", "[emerg]"];
        let complained = |line: &&str| complaints.iter().any(|it| line.contains(it));
        log.lines().filter(complained).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

// ===== others =====

/// The same idea in other servers, under the same loads: what they lose is in `benches/README.md`.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "three minutes, for a table of what others lose"]
async fn others() {
    heading();
    for who in Who::ALL {
        for speaks in Speaks::ALL {
            for pace in [
                Pace::AtOnce,
                Pace::Every(5),
                Pace::Every(40),
                Pace::Random(60),
            ] {
                let (target, server) = who.serve().await;
                let load = Load {
                    target,
                    speaks,
                    pace,
                    until: Instant::now() + LONG / 2,
                    quiet: AGE,
                };
                let tally = run(&load, 6).await;
                row(who.name(), speaks, &pace, &tally);
                println!("  {:?}", tally.why.iter().take(2).collect::<Vec<_>>());
                server.abort();
                if who == Who::Ours {
                    assert_none_lost(&tally);
                }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Ours,
    Tonic,
    AxumServer,
    HyperUtil,
}

impl Who {
    const ALL: [Self; 4] = [Self::Ours, Self::Tonic, Self::AxumServer, Self::HyperUtil];

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "serve, max_connection_age",
            Self::Tonic => "tonic, max_connection_age",
            Self::AxumServer => "axum-server, ConnectionShutdown",
            Self::HyperUtil => "hyper-util, graceful_shutdown",
        }
    }

    /// Connections of [`AGE`].
    async fn serve(self) -> (Target, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = Target::Tcp(listener.local_addr().expect("bound"));
        let server = match self {
            Self::Ours => {
                let terminator = aged().build();
                let serve = terminator.serve(listener, routes());
                tokio::spawn(async move {
                    serve.await;
                })
            }
            Self::Tonic => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                let server = tonic::transport::Server::builder()
                    .accept_http1(true)
                    .max_connection_age(AGE)
                    .add_routes(tonic::service::Routes::from(routes()))
                    .serve_with_incoming(incoming);
                tokio::spawn(async move { server.await.expect("it serves") })
            }
            Self::AxumServer => {
                let listener = listener.into_std().expect("a listener");
                let router = routes().layer(middleware::from_fn(end_when_old));
                let server = axum_server::from_tcp(listener)
                    .expect("a listener")
                    .acceptor(axum_server::accept::NoDelayAcceptor::new())
                    .serve(router.into_make_service());
                tokio::spawn(async move { server.await.expect("it serves") })
            }
            Self::HyperUtil => tokio::spawn(hyper_util(listener)),
        };
        (target, server)
    }
}

/// Its connections are known by their requests: they are aged from the first one on.
async fn end_when_old(
    Extension(shutdown): Extension<ConnectionShutdown>,
    request: Request,
    next: Next,
) -> axum::response::Response {
    tokio::spawn(async move {
        time_passes_async(AGE).await;
        shutdown.graceful_shutdown();
    });
    next.run(request).await
}

async fn hyper_util(listener: TcpListener) {
    let builder = auto::Builder::new(TokioExecutor::new());
    loop {
        let (tcp, _) = listener.accept().await.expect("a client");
        tcp.set_nodelay(true).expect("a socket");
        let service = TowerToHyperService::new(routes());
        let serving = builder
            .serve_connection_with_upgrades(TokioIo::new(tcp), service)
            .into_owned();
        tokio::spawn(async move {
            let mut serving = std::pin::pin!(serving);
            let ended = tokio::time::timeout(AGE, serving.as_mut()).await;
            if ended.is_err() {
                serving.as_mut().graceful_shutdown();
                let _ = serving.await;
            }
        });
    }
}

// ===== what they share =====

struct It {
    terminator: Terminator,
    target: Target,
    known: Known,
}

impl It {
    async fn new(front: FrontEnd, builder: TerminatorBuilder) -> Self {
        Self::with(front, builder, routes()).await
    }

    async fn with(front: FrontEnd, builder: TerminatorBuilder, router: Router) -> Self {
        let terminator = builder.build();
        let (target, known) = start_known(front, &terminator, router).await;
        Self {
            terminator,
            target,
            known,
        }
    }

    fn load(&self, speaks: Speaks, pace: Pace, time: Duration, quiet: Duration) -> Load {
        Load {
            target: self.target.clone(),
            speaks,
            pace,
            until: Instant::now() + time,
            quiet,
        }
    }

    /// Runs so many clients, on a machine with no time for many again, until connections have ended.
    async fn rotated(&self, load: impl Fn() -> Load, clients: usize) -> Tally {
        let begin = Instant::now();
        let mut all = Tally::default();
        loop {
            let tally = run(&load(), clients).await;
            let rotated = tally.connections > clients;
            all = all + tally;
            if rotated {
                assert_eq!(self.terminator.phase(), Phase::Serving);
                return all;
            }
            assert!(begin.elapsed() < BOUND, "none has ended: {all:?}");
        }
    }

    /// Connections do end, also where the machine has no time for many.
    fn assert_rotated(&self, tally: &Tally, clients: usize) {
        assert!(
            tally.connections > clients || stolen_in_the_last(SHORT) > SHORT / 8,
            "{tally:?}"
        );
        assert_eq!(self.terminator.phase(), Phase::Serving);
    }

    /// As soon as somebody has come.
    async fn end_soon(&self) -> Report {
        within(BOUND, "somebody has come", async {
            while self.terminator.stats().accepted == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let _alone = no_starts();
        let ending = self.terminator.terminate();
        within(BOUND, "the end", ending).await
    }

    /// Nothing was lost, and nothing is left.
    async fn end_well(&self, tally: &Tally) {
        assert_none_lost(tally);
        assert_eq!(tally.refused, 0, "{tally:?}");
        let report = within(BOUND, "the end", self.terminator.terminate()).await;
        assert!(report.is_clean(), "{report}");
    }
}

#[track_caller]
fn assert_none_lost(tally: &Tally) {
    if tally.late > 0 {
        println!("late: {:?}", tally.why);
    }
    assert_eq!(tally.lost, 0, "{tally:#?}");
    assert!(tally.requests > 0, "{tally:?}");
}

fn heading() {
    println!("| who | protocol | load | requests | connections | lost | late | retried |");
    println!("|---|---|---|---|---|---|---|---|");
}

fn row(who: &str, speaks: Speaks, load: &dyn std::fmt::Display, tally: &Tally) {
    let Tally {
        requests,
        connections,
        lost,
        late,
        retried,
        ..
    } = tally;
    println!(
        "| {who} | {speaks:?} | {load} | {requests} | {connections} | {lost} | {late} | {retried} |"
    );
}
