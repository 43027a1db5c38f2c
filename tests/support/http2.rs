//! An HTTP/2 client that behaves, on the `h2` crate.

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::tls::{localhost, tls_config};
use super::{BOUND, Target, within};

pub(super) const H2: &str = "h2";

/// An HTTP/2 client that behaves, on the `h2` crate.
pub struct H2Client {
    sender: h2::client::SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
    tls: bool,
}

/// Connects with h2's defaults.
pub async fn h2_connect(target: impl Into<Target>) -> H2Client {
    h2_connect_with(target, |_| ()).await
}

/// Connects with settings of the test's own, such as
/// `|h2| { h2.initial_window_size(1024); }`.
pub async fn h2_connect_with(
    target: impl Into<Target>,
    set: impl FnOnce(&mut h2::client::Builder),
) -> H2Client {
    let target = target.into();
    let connected = h2_try_connect_with(&target, set).await;
    connected.unwrap_or_else(|(error, _)| panic!("connecting {target:?}: {error}"))
}

/// For a server that may refuse: then with the time at which the first byte was sent, if any was.
pub async fn h2_try_connect(target: impl Into<Target>) -> Result<H2Client, (io::Error, Instant)> {
    h2_try_connect_with(&target.into(), |_| ()).await
}

async fn h2_try_connect_with(
    target: &Target,
    set: impl FnOnce(&mut h2::client::Builder),
) -> Result<H2Client, (io::Error, Instant)> {
    trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
    impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

    let mut builder = h2::client::Builder::new();
    set(&mut builder);
    let mut spoke = None;
    let connect = async {
        let io: Box<dyn Io> = match target {
            Target::Tcp(addr) => {
                let stream = tokio::net::TcpStream::connect(addr).await?;
                // Or its window updates wait for delayed ACKs: 45 ms each.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Target::Tls(addr) => {
                let stream = tokio::net::TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                let connector = TlsConnector::from(tls_config(&[H2]));
                let mut connecting = connector.connect(localhost(), stream);
                // Its first poll sends the ClientHello.
                let begun = poll_fn(|cx| Poll::Ready(Pin::new(&mut connecting).poll(cx))).await;
                spoke = Some(Instant::now());
                Box::new(match begun {
                    Poll::Ready(connected) => connected?,
                    Poll::Pending => connecting.await?,
                })
            }
            Target::Unix(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
        };
        builder.handshake(io).await.map_err(io::Error::other)
    };
    let connected: io::Result<_> = within(BOUND, "HTTP/2 connect", connect).await;
    let (sender, connection) =
        connected.map_err(|error| (error, spoke.unwrap_or_else(Instant::now)))?;
    Ok(H2Client {
        sender,
        connection: tokio::spawn(connection),
        tls: matches!(target, Target::Tls(_)),
    })
}

impl H2Client {
    /// GETs `path` whole.
    pub async fn get(&self, path: &str) -> (StatusCode, Vec<u8>) {
        let got = self.try_get(path).await;
        got.unwrap_or_else(|error| panic!("HTTP/2 GET {path}: {error}"))
    }

    pub async fn try_get(&self, path: &str) -> Result<(StatusCode, Vec<u8>), h2::Error> {
        within(BOUND, &format!("HTTP/2 GET {path}"), async {
            h2_finish(self.try_start("GET", path, true).await?.0).await
        })
        .await
    }

    /// Sends a GET; the response is the caller's to await, [`h2_finish`] to read.
    pub async fn start(&self, path: &str) -> h2::client::ResponseFuture {
        let started = self.try_start("GET", path, true).await;
        started
            .unwrap_or_else(|error| panic!("HTTP/2 GET {path}: {error}"))
            .0
    }

    /// Sends the head of a POST; the body goes through the second half of the result.
    pub async fn start_post(
        &self,
        path: &str,
    ) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let started = self.try_start("POST", path, false).await;
        started.unwrap_or_else(|error| panic!("HTTP/2 POST {path}: {error}"))
    }

    /// Waits until the server has ended the connection. To be called once.
    pub async fn closed(&mut self) -> Result<(), h2::Error> {
        // Our `sender` lives on: without it, it would be us who end an idle connection.
        let ended = within(BOUND, "end of the HTTP/2 connection", &mut self.connection).await;
        let ended = ended.expect("the client's connection task does not panic");
        // What our own close_notify meets if the server closed its end before.
        let broken = |error: &h2::Error| {
            let io = error.get_io();
            self.tls && io.is_some_and(|io| io.kind() == ErrorKind::BrokenPipe)
        };
        match ended {
            Err(error) if broken(&error) => Ok(()),
            ended => ended,
        }
    }

    pub fn is_closed(&self) -> bool {
        self.connection.is_finished()
    }

    /// What fails was not sent.
    pub async fn try_start(
        &self,
        method: &str,
        path: &str,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let request = http::Request::builder().method(method);
        let request = request.uri(format!("http://localhost{path}")).body(());
        let request = request.expect("the test's path makes a URI");
        let ready = within(BOUND, "room for a stream", self.sender.clone().ready()).await;
        ready?.send_request(request, end)
    }
}

/// Awaits a response and its body.
pub async fn h2_finish(
    response: h2::client::ResponseFuture,
) -> Result<(StatusCode, Vec<u8>), h2::Error> {
    let (head, mut stream) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(part) = stream.data().await {
        let part = part?;
        stream.flow_control().release_capacity(part.len())?;
        body.extend_from_slice(&part);
    }
    Ok((head.status, body))
}
