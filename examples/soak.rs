//! Serves under load, and is terminated and made anew on the same port every few seconds: for an hour, or for as long as it is
//! told. What must not happen is counted, and what must not grow is printed.
//!
//! ```text
//! $ cargo run --release --example soak -- 600    # seconds; Linux, for the figures
//! round   requests  lost  late  met  refused  not clean  descriptors  threads  memory
//!     1      41210     0     0    0       12          0           41       25   9.8 MiB
//!     2      40988     0     0    0       11          0           41       25  10.1 MiB
//! …
//! 200 rounds, 8214377 requests, 0 lost: flat
//! ```
//!
//! *Lost* is a request without a whole answer on a connection whose last answer was less than the time ago for which a
//! server waits before it closes (`settle`), or on a new one. *Late* are those on connections that were quiet for
//! longer: the server's close crossed them, as the machine did not come to it in time. *Met* are connections that a
//! client held for made, and that were reset without a byte of an answer to their first request: their handshakes met the
//! close of the listening socket (G14 in docs/guarantees.md). *Refused* are connects between one server and the next. Both
//! are tried again.

#![allow(
    clippy::disallowed_methods,
    reason = "an example spawns, and looks at the clock"
)]

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use http_terminator::Terminator;
use tokio::net::TcpListener;

/// For how long one of them serves.
const ROUND: Duration = Duration::from_secs(3);

/// How long a connection is quiet at least before it is closed: the default.
const SETTLE: Duration = Duration::from_millis(25);

const CLIENTS: usize = 24;

#[tokio::main]
async fn main() -> io::Result<()> {
    let seconds = env::args().nth(1).and_then(|it| it.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(3600));
    let mut listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (counts, stop) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let (counts, stop) = (Arc::clone(&counts), Arc::clone(&stop));
            thread::spawn(move || client(n, addr, &counts, &stop))
        })
        .collect();

    println!("round   requests  lost  late  met  refused  not clean  descriptors  threads  memory");
    let (mut rounds, mut first, mut grown) = (0, None, false);
    loop {
        let terminator = Terminator::new();
        let served = tokio::spawn(terminator.serve(listener, app()));
        tokio::time::sleep(ROUND).await;
        let figures = Figures::now()?;
        let ended = terminator.terminate();
        rounds += 1;
        let over = Instant::now() >= until;
        if over {
            stop.store(true, SeqCst);
        }
        // The port is free as soon as what the kernel had queued is taken over, while the drain goes on.
        listener = loop {
            match TcpListener::bind(addr).await {
                Ok(listener) => break listener,
                Err(e) if e.kind() == ErrorKind::AddrInUse => tokio::task::yield_now().await,
                Err(e) => return Err(e),
            }
        };
        let report = ended.await;
        if !report.is_clean() {
            counts.unclean.fetch_add(1, Relaxed);
            println!("{report:#}");
        }
        served.await?;
        println!("{rounds:>5} {counts} {figures}");
        // The first ones fill what is filled once.
        if rounds == 3 {
            first = Some(figures);
        } else if over {
            grown = first.as_ref().is_some_and(|first| figures.is_above(first));
        }
        if over {
            break;
        }
    }
    drop(listener);
    for client in clients {
        client.join().expect("a client does not panic");
    }
    let (requests, lost) = (counts.requests.load(Relaxed), counts.lost.load(Relaxed));
    let verdict = if grown { "grown" } else { "flat" };
    println!("{rounds} rounds, {requests} requests, {lost} lost: {verdict}");
    // Chance meets few: a queue that is reset would be met at each end.
    let resets = counts.met.load(Relaxed) > 5 + rounds / 4;
    if lost > 0 || resets || grown || counts.unclean.load(Relaxed) > 0 {
        return Err(io::Error::other("it lost something, or grew"));
    }
    Ok(())
}

fn app() -> Router {
    Router::new()
        .route("/", get(async || "hello"))
        .route("/echo", post(async |body: Bytes| body))
        .route("/later", get(later))
        .route("/stream", get(streams))
}

async fn later() -> &'static str {
    tokio::time::sleep(Duration::from_millis(20)).await;
    "later"
}

async fn streams() -> Response {
    let parts = stream::unfold(0, async |n| {
        tokio::time::sleep(Duration::from_millis(2)).await;
        (n < 5).then(|| (Ok::<_, io::Error>(Bytes::from_static(b"part")), n + 1))
    });
    Body::from_stream(parts).into_response()
}

// ===== the load =====

#[derive(Default)]
struct Counts {
    requests: AtomicUsize,
    lost: AtomicUsize,
    late: AtomicUsize,
    met: AtomicUsize,
    refused: AtomicUsize,
    unclean: AtomicUsize,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [requests, lost, late, met, refused, unclean] = [
            &self.requests,
            &self.lost,
            &self.late,
            &self.met,
            &self.refused,
            &self.unclean,
        ]
        .map(|n| n.load(Relaxed));
        write!(
            f,
            "{requests:>10} {lost:>5} {late:>5} {met:>4} {refused:>8} {unclean:>10}"
        )
    }
}

/// One request after the other, on a connection for as long as the server keeps that.
fn client(n: usize, addr: SocketAddr, counts: &Counts, stop: &AtomicBool) {
    let upload = "u".repeat(10_000);
    let request = match n % 4 {
        0 => "GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        1 => format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10000\r\n\r\n{upload}"),
        2 => "GET /later HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        _ => "GET /stream HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
    };
    while !stop.load(SeqCst) {
        let Ok(socket) = TcpStream::connect(addr) else {
            counts.refused.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let mut socket = BufReader::new(socket);
        let (mut last, mut is_new) = (Instant::now(), true);
        while !stop.load(SeqCst) {
            let quiet = last.elapsed();
            let asked = begin(&mut socket, &request);
            let is_met = is_new && asked.as_ref().is_err_and(is_reset);
            let Ok(goes_on) = asked.and_then(|()| answer(&mut socket)) else {
                let count = match quiet < SETTLE {
                    _ if is_met => &counts.met,
                    true => &counts.lost,
                    false => &counts.late,
                };
                count.fetch_add(1, Relaxed);
                break;
            };
            counts.requests.fetch_add(1, Relaxed);
            (last, is_new) = (Instant::now(), false);
            if !goes_on {
                break;
            }
        }
    }
}

fn is_reset(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Sends it, until something comes: an answer's first byte, or the end.
fn begin(socket: &mut BufReader<TcpStream>, request: &str) -> io::Result<()> {
    socket.get_mut().write_all(request.as_bytes())?;
    socket.fill_buf().map(drop)
}

/// Gives whether the connection goes on.
fn answer(socket: &mut BufReader<TcpStream>) -> io::Result<bool> {
    let (mut goes_on, mut length) = (true, None);
    loop {
        let line = line(socket)?;
        match &*line.to_ascii_lowercase() {
            "" => break,
            "connection: close" => goes_on = false,
            other => {
                if let Some(n) = other.strip_prefix("content-length: ") {
                    length = n.parse().ok();
                }
            }
        }
    }
    match length {
        Some(n) => skip(socket, n)?,
        // In chunks.
        None => loop {
            let n = usize::from_str_radix(&line(socket)?, 16).map_err(io::Error::other)?;
            skip(socket, n)?;
            line(socket)?;
            if n == 0 {
                break;
            }
        },
    }
    Ok(goes_on)
}

fn line(socket: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if socket.read_line(&mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn skip(socket: &mut BufReader<TcpStream>, n: usize) -> io::Result<()> {
    let mut body = vec![0; n];
    socket.read_exact(&mut body)
}

// ===== what must not grow =====

struct Figures {
    descriptors: usize,
    threads: usize,
    kib: usize,
}

impl Figures {
    fn now() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let number = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            number.and_then(|it| it.parse().ok()).unwrap_or(0)
        };
        Ok(Self {
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            threads: number("Threads:"),
            kib: number("VmRSS:"),
        })
    }

    /// By more than what comes and goes.
    fn is_above(&self, first: &Self) -> bool {
        self.descriptors > first.descriptors + 8
            || self.threads > first.threads + 8
            || self.kib > first.kib + first.kib / 2 + 4096
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            descriptors,
            threads,
            kib,
        } = self;
        write!(
            f,
            "{descriptors:>12} {threads:>8} {:>4}.{} MiB",
            kib / 1024,
            kib % 1024 * 10 / 1024
        )
    }
}
