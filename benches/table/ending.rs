//! How long ends take, in wall time: side by side in one run, medians, ratios.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use http_terminator::Terminator;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::load::{self, Http1};
use crate::servers::{Given, Hello, SLOW};

/// Longer than http-terminator's `settle`.
const QUIET: Duration = Duration::from_millis(100);

/// From the call to its return, with `n` clients, in a process of their own, whose connections are
/// idle. All of them must find an end of file then: over loopback it is there when the close returns.
pub(crate) fn idle_connections(server: &str, n: usize) -> Duration {
    let (addr, server) = load::start(server, Given::Hello, 1);
    let mut clients = Command::new(std::env::current_exe().expect("this program"))
        .args(["clients", &addr.to_string(), &n.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program runs");
    let said = clients.stdout.take().expect("piped");
    let mut line = String::new();
    let connected = BufReader::new(said).read_line(&mut line);
    connected.expect("they say that they are");
    thread::sleep(QUIET);
    let began = Instant::now();
    server.end();
    let took = began.elapsed();
    drop(clients.stdin.take());
    assert!(clients.wait().expect("they end").success());
    took
}

/// The clients of that: connect, ask once each, say so, and look for the end when standard input ends.
pub(crate) fn clients(addr: SocketAddr, n: usize) {
    let mut clients: Vec<_> = (0..n).map(|_| Http1::connect(addr)).collect();
    for client in &mut clients {
        client.ask(1, "/hello", 5);
    }
    println!("connected");
    let _ = std::io::stdin().read(&mut [0]);
    for client in &mut clients {
        client.socket.set_nonblocking(true).expect("a socket");
        match client.socket.read(&mut [0]) {
            Ok(n) => assert_eq!(n, 0, "an end of file"),
            // By a server that aborts.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}

/// From the last byte of an answer, as its client sees it, to the return of the call that ended the
/// server. The end of the connection itself lies in between.
pub(crate) fn last_byte_to_return(server: &str) -> Duration {
    let (addr, server) = load::start(server, Given::Hello, 1);
    let mut client = Http1::connect(addr);
    client.ask(1, "/hello", 5);
    let request = b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n";
    client.socket.write_all(request).expect("written");
    thread::sleep(QUIET);
    let ending = thread::spawn(|| {
        server.end();
        Instant::now()
    });
    thread::sleep(QUIET);
    SLOW.notify_one();
    // It says `connection: close`.
    client.head = 0;
    client.answer(5);
    let answered = Instant::now();
    let returned = ending.join().expect("no panic");
    returned.saturating_duration_since(answered)
}

/// What it costs to end `n` idle connections that are in memory only, for each of them.
pub(crate) fn per_connection_in_memory(n: usize) -> Duration {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let terminator = Terminator::builder().grace_period(None).build();
        let builder = auto::Builder::new(TokioExecutor::new());
        let service = TowerToHyperService::new(Hello::new());
        for _ in 0..n {
            let io = terminator.track(Silent);
            tokio::spawn(io.connection().serve(&builder, io, service.clone()));
        }
        tokio::time::sleep(QUIET).await;
        let began = Instant::now();
        let report = terminator.terminate().await;
        let took = began.elapsed();
        assert_eq!(report.idle, n, "{report}");
        took / u32::try_from(n).expect("a million at most")
    })
}

/// A connection on which nothing ever comes in.
struct Silent;

impl AsyncRead for Silent {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Silent {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
