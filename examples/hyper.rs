//! A bare hyper server with an accept loop of its own.
//!
//! ```text
//! $ cargo run --example hyper           # or: cargo run --example hyper -- 127.0.0.1:8080
//! listening on 127.0.0.1:3000
//! ```
//!
//! Try `curl -i localhost:3000/` (answers after a second), and press Ctrl-C meanwhile. It is answered
//! with `connection: close`, and the server prints its report and exits with 0:
//!
//! ```text
//! terminated cleanly in 600.0ms: 1 connection (1 finished)
//! ```

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

use std::convert::Infallible;
use std::time::Duration;

use http_terminator::{HttpBuilder, Terminator};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let terminator = Terminator::new();
    terminator.terminate_on_signal()?;
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let mut listener = terminator.listen(listener);
    println!("listening on {address}");

    // hyper-util's `auto::Builder` works as well, at more cost.
    let builder = HttpBuilder::new(TokioExecutor::new());
    // Ends when the drain has begun and the kernel's queue is empty.
    while let Some((io, peer)) = listener.accept().await {
        // As `serve` does. The client may have gone.
        let _ = io.with(|tcp| tcp.set_nodelay(true));
        let served = io.connection().serve(&builder, io, service_fn(hello));
        tokio::spawn(async move {
            if let Err(error) = served.await {
                eprintln!("{peer}: {error}");
            }
        });
    }
    println!("{}", terminator.terminated().await);
    Ok(())
}

async fn hello(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(Response::new(format!(
        "hello, you asked for {}\n",
        request.uri()
    )))
}
