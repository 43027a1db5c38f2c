//! An axum server over TLS, HTTP/2 and HTTP/1.1, that ends well.
//!
//! ```text
//! $ cargo run --example tls --features rustls     # or: … --features rustls -- 127.0.0.1:8443
//! listening on 127.0.0.1:3443
//! ```
//!
//! In another shell: `curl -ik https://localhost:3443/slow` (answers after three seconds; `-k`, as the
//! certificate is made when the example starts). Press Ctrl-C meanwhile: it is answered, the
//! connection ends with GOAWAY and `close_notify`, and the server prints its report and exits with 0:
//!
//! ```text
//! terminated cleanly in 2.4s: 1 connection (1 finished)
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::{Router, routing::get};
use http_terminator::Terminator;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:3443".to_owned());
    let terminator = Terminator::builder()
        .grace_period(Duration::from_secs(20))
        .build();
    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .route("/slow", get(slow));

    let acceptor = self_signed()?;
    let listener = TcpListener::bind(address).await?;
    terminator.terminate_on_signal()?;
    let address = listener.local_addr()?;
    let server = terminator.serve(listener, app).tls(acceptor);
    println!("listening on {address}");
    let report = server.await;
    println!("{report}");
    Ok(())
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_secs(3)).await;
    "that took three seconds\n"
}

/// Yours reads a certificate and its key from files.
fn self_signed() -> Result<TlsAcceptor, Box<dyn Error>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = made.signing_key.serialize_der().try_into()?;
    // `Serve::tls` offers `h2` and `http/1.1` if the configuration names no protocols.
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok(Arc::new(config).into())
}
