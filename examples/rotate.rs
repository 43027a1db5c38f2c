//! A server whose connections live for five seconds, for clients to spread anew over the servers behind a
//! load balancer, and two clients that lose nothing by it.
//!
//! ```text
//! $ cargo run --example rotate          # or: cargo run --example rotate -- 0.5 (seconds)
//! listening on 127.0.0.1:43897, where a connection lives for 5s
//!  1.0 s: HTTP/1 84 requests on 1 connections, HTTP/2 81 on 1
//!  2.0 s: HTTP/1 169 requests on 1 connections, HTTP/2 160 on 1
//! ```
//!
//! The clients are in the same process, one of HTTP/1 and one of HTTP/2. Each asks again and again on one
//! connection and connects anew when it is told: by `connection: close`, or by GOAWAY. After fifteen seconds the server
//! is terminated under them:
//!
//! ```text
//! terminated cleanly in 11.3ms: 2 connections (2 finished)
//! 2499 requests on 7 connections, 0 sent again, 0 failed
//! ```

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::{Router, routing::get};
use http_body_util::BodyExt;
use http_terminator::Terminator;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> io::Result<ExitCode> {
    let age = match std::env::args().nth(1) {
        Some(seconds) => seconds.parse().map_err(io::Error::other)?,
        None => 5.0,
    };
    let age = Duration::try_from_secs_f64(age).map_err(io::Error::other)?;
    let terminator = Terminator::builder().max_connection_age(age).build();
    let app = Router::new().route("/", get(async || "hello\n"));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!("listening on {address}, where a connection lives for {age:?}");
    tokio::spawn(terminator.serve(listener, app));

    let counts: [Arc<Counts>; 2] = Default::default();
    let [one, two] = [false, true].map(|is_http2| {
        let counts = Arc::clone(&counts[usize::from(is_http2)]);
        tokio::spawn(ask(address, is_http2, counts))
    });
    let step = age / 5;
    for n in 1..=15 {
        sleep(step).await;
        let [one, two] = counts.each_ref().map(|it| it.so_far());
        println!(
            "{:4.1} s: HTTP/1 {} requests on {} connections, HTTP/2 {} on {}",
            (step * n).as_secs_f64(),
            one.0,
            one.1,
            two.0,
            two.1
        );
    }

    println!("{}", terminator.terminate().await);
    one.await?;
    two.await?;
    let sum = |of: fn(&Counts) -> &AtomicUsize| -> usize {
        counts.iter().map(|it| of(it).load(Relaxed)).sum()
    };
    let failed = sum(|it| &it.failed);
    println!(
        "{} requests on {} connections, {} sent again, {failed} failed",
        sum(|it| &it.requests),
        sum(|it| &it.connections),
        sum(|it| &it.again)
    );
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// What one client has done.
#[derive(Default)]
struct Counts {
    requests: AtomicUsize,
    connections: AtomicUsize,
    again: AtomicUsize,
    failed: AtomicUsize,
}

impl Counts {
    fn so_far(&self) -> (usize, usize) {
        (self.requests.load(Relaxed), self.connections.load(Relaxed))
    }
}

/// Asks again and again, until nobody listens any more.
async fn ask(address: SocketAddr, is_http2: bool, counts: Arc<Counts>) {
    while let Ok(tcp) = TcpStream::connect(address).await {
        counts.connections.fetch_add(1, Relaxed);
        if let Err(error) = ask_on(tcp, is_http2, &counts).await {
            eprintln!("failed: {error}");
            counts.failed.fetch_add(1, Relaxed);
        }
    }
}

/// Asks on one connection, until it is time for another one.
async fn ask_on(tcp: TcpStream, is_http2: bool, counts: &Counts) -> hyper::Result<()> {
    // A small request waits for nothing. That it can't be set does no harm.
    let _ = tcp.set_nodelay(true);
    let mut client = Client::new(tcp, is_http2).await?;
    // Not once the server has said close, or has told it to go away.
    while client.is_ready().await {
        match client.get().await {
            Ok(_hello) => counts.requests.fetch_add(1, Relaxed),
            // No server has begun with it: it may be sent again on the next connection, whatever it asks for.
            Err(error) if is_refused(&error) => counts.again.fetch_add(1, Relaxed),
            Err(error) => return Err(error),
        };
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// It was never sent, or refused by GOAWAY (RFC 9113 section 6.8).
fn is_refused(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|it| it.downcast_ref::<h2::Error>());
    error.is_canceled() || cause.is_some_and(|it| it.is_go_away() && it.is_remote())
}

enum Client {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    async fn new(tcp: TcpStream, is_http2: bool) -> hyper::Result<Self> {
        let io = TokioIo::new(tcp);
        // How a connection ends is of no interest: what is lost by it, its requests tell.
        if is_http2 {
            let (client, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Ok(Self::Http2(client))
        } else {
            let (client, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            Ok(Self::Http1(client))
        }
    }

    async fn is_ready(&mut self) -> bool {
        match self {
            Self::Http1(client) => client.ready().await.is_ok(),
            Self::Http2(client) => client.ready().await.is_ok(),
        }
    }

    async fn get(&mut self) -> hyper::Result<Bytes> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "http://localhost/".parse().expect("a URI");
        let response: Response<Incoming> = match self {
            Self::Http1(client) => client.send_request(request).await?,
            Self::Http2(client) => client.send_request(request).await?,
        };
        Ok(response.into_body().collect().await?.to_bytes())
    }
}
