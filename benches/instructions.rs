//! Instructions and system calls per request, beside peers, in one run.
//!
//! Runs itself under `valgrind --tool=callgrind` and `strace -c -f`, twice for each variant with
//! different numbers of requests, and takes the difference: start and end cost nothing then. Server
//! and client are in one process; the client is the same blocking loop for all, and the service is
//! one opaque, boxed function, so that inlining does not decide.
//!
//! `cargo bench --bench instructions` prints the table; a variant and a number of requests, as in
//! `-- http-terminator 1000`, runs just that.
#![allow(missing_docs, clippy::disallowed_methods)] // not the library

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::process::Command;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use http_terminator::Terminator;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

const VARIANTS: [&str; 10] = [
    "bare hyper",
    "hyper-util watch",
    "http-terminator",
    "bare tower",
    "watch tower",
    "http-terminator loop",
    "http-terminator serve",
    "bare axum",
    "axum::serve",
    "http-terminator axum",
];

const FEW: usize = 1_000;
const MANY: usize = 3_000;

fn main() {
    let args: Vec<_> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    match args.as_slice() {
        [variant, requests] => run(variant, requests.parse().expect("a number of requests")),
        _ => table(),
    }
}

// ===== the table =====

fn table() {
    println!(
        "{:<24}{:>14}{:>10}{:>12}",
        "per request", "instructions", "over bare", "syscalls"
    );
    let mut bare = 0.0;
    for variant in VARIANTS {
        let instructions = per_request(|n| callgrind(variant, n));
        let calls = per_request(|n| strace(variant, n));
        if variant.starts_with("bare") {
            bare = instructions;
        }
        println!(
            "{variant:<24}{instructions:>14.0}{:>+10.0}{calls:>12.2}",
            instructions - bare
        );
    }
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn per_request(measure: impl Fn(usize) -> u64) -> f64 {
    (measure(MANY) - measure(FEW)) as f64 / (MANY - FEW) as f64
}

fn callgrind(variant: &str, requests: usize) -> u64 {
    let options = ["--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let output = this("valgrind", &options, variant, requests);
    let line = output
        .lines()
        .find(|line| line.contains("Collected :"))
        .expect("callgrind's total");
    line.split_whitespace()
        .last()
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

/// All system calls of the process, but for the futex calls of two threads that hand over to each
/// other, which vary.
fn strace(variant: &str, requests: usize) -> u64 {
    let output = this("strace", &["-f", "-c", "-S", "calls"], variant, requests);
    let columns = output
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns
        .filter(|c| c.len() >= 5 && !["futex", "total", "syscall"].contains(&c[c.len() - 1]))
        .filter_map(|c| c[3].parse::<u64>().ok())
        .sum()
}

fn this(tool: &str, options: &[&str], variant: &str, requests: usize) -> String {
    let output = Command::new(tool)
        .args(options)
        .arg(std::env::current_exe().expect("this program"))
        .args([variant, &requests.to_string()])
        .output()
        .unwrap_or_else(|e| panic!("{tool} is needed for this: {e}"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

// ===== one variant =====

fn run(variant: &str, requests: usize) {
    let (address, told) = std::sync::mpsc::channel();
    let variant = variant.to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            address
                .send(listener.local_addr().expect("an address"))
                .expect("the client waits");
            serve(&variant, listener).await;
        });
    });
    client(told.recv().expect("an address"), requests);
}

fn client(address: SocketAddr, requests: usize) {
    let mut socket = TcpStream::connect(address).expect("the server listens");
    socket.set_nodelay(true).expect("a socket");
    let mut response = [0; 1024];
    for _ in 0..requests {
        socket
            .write_all(b"GET /hello HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .expect("written");
        let mut n = 0;
        while !response[..n].ends_with(b"hello") {
            let read = socket.read(&mut response[n..]).expect("a response");
            assert!(read > 0, "the server hung up");
            n += read;
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;

/// Opaque to the compiler in every variant.
#[inline(never)]
fn hello(request: Request<Incoming>) -> Answer {
    Box::pin(async move {
        std::hint::black_box(&request);
        Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
    })
}

#[derive(Clone)]
struct Hello(fn(Request<Incoming>) -> Answer);

impl tower::Service<Request<Incoming>> for Hello {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answer {
        (self.0)(request)
    }
}

async fn serve(variant: &str, listener: TcpListener) {
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = Hello(std::hint::black_box(hello));
    let router = axum::Router::new().route("/hello", axum::routing::get(|| async { "hello" }));
    let terminator = Terminator::new();
    match variant {
        "axum::serve" => {
            let served = axum::serve(listener, router).with_graceful_shutdown(pending());
            served.await.expect("it never ends");
        }
        "http-terminator serve" => drop(terminator.serve(listener, service).await),
        "http-terminator axum" => drop(terminator.serve(listener, router).await),
        "http-terminator" | "http-terminator loop" => {
            let mut listener = terminator.listen(listener);
            while let Some((io, _)) = listener.accept().await {
                if variant == "http-terminator" {
                    tokio::spawn(io.connection().serve(&builder, io, service_fn(service.0)));
                } else {
                    let service = TowerToHyperService::new(service.clone());
                    tokio::spawn(io.connection().serve(&builder, io, service));
                }
            }
        }
        _ => {
            let graceful = GracefulShutdown::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a client");
                stream.set_nodelay(true).expect("a socket");
                let io = TokioIo::new(stream);
                let tower = TowerToHyperService::new(service.clone());
                match variant {
                    "bare hyper" => drop(tokio::spawn(
                        builder
                            .serve_connection_with_upgrades(io, service_fn(service.0))
                            .into_owned(),
                    )),
                    "bare tower" => drop(tokio::spawn(
                        builder
                            .serve_connection_with_upgrades(io, tower)
                            .into_owned(),
                    )),
                    "bare axum" => {
                        let router = TowerToHyperService::new(router.clone());
                        drop(tokio::spawn(
                            builder
                                .serve_connection_with_upgrades(io, router)
                                .into_owned(),
                        ));
                    }
                    "hyper-util watch" => {
                        let connection = builder
                            .serve_connection_with_upgrades(io, service_fn(service.0))
                            .into_owned();
                        drop(tokio::spawn(graceful.watch(connection)));
                    }
                    "watch tower" => {
                        let connection = builder
                            .serve_connection_with_upgrades(io, tower)
                            .into_owned();
                        drop(tokio::spawn(graceful.watch(connection)));
                    }
                    _ => panic!("no such variant: {variant}"),
                }
            }
        }
    }
}
