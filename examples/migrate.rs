//! The accept loop of hyper-util's `GracefulShutdown`, with that one word changed for `Terminator`.
//!
//! ```text
//! $ cargo run --example migrate         # or: cargo run --example migrate -- 127.0.0.1:8080
//! listening on 127.0.0.1:3000
//! ```
//!
//! Ask for `curl -i localhost:3000/` (answers after a second), and press Ctrl-C meanwhile:
//!
//! ```text
//! terminated cleanly in 600.0ms: 1 connection (1 finished)
//! ```
//!
//! That is the quick way: it gives the deadline and the report. For the rest, requests that
//! `graceful_shutdown` loses and connections that it forgets, see `hyper.rs`.

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

use std::convert::Infallible;
use std::time::Duration;

use http_terminator::Terminator;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);

    let graceful = Terminator::new(); // was: GracefulShutdown::new()
    let mut signal = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Not `Ok(…) = listener.accept()`: the first error would be the last that is heard of it.
                let stream = match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        eprintln!("accept error: {error}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue;
                    }
                };
                let connection = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(hello));
                let watched = graceful.watch(connection);
                tokio::spawn(async move {
                    if let Err(error) = watched.await {
                        eprintln!("{error}");
                    }
                });
            }
            _ = &mut signal => break,
        }
    }
    drop(listener);
    println!("{}", graceful.terminate().await); // was: shutdown(), inside a timeout
    Ok(())
}

async fn hello(_: Request<Incoming>) -> Result<Response<String>, Infallible> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(Response::new("hello\n".to_owned()))
}
