//! Web sockets: handlers that say goodbye when the drain begins, and those that don't (G13, G17). The
//! bare upgrades and tunnels are in `upgrades.rs`.

#![cfg(all(unix, feature = "serve"))]

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ws::{self, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{any, get};
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::support::outside::{LATE, measured, promised};
use crate::support::wait::until_stats_async;
use crate::support::{BOUND, Gate, load, open_fds_to, within};
use http_terminator::{Phase, Protocol, Terminator};

/// What ends by itself ends long before any deadline.
const SOON: Duration = Duration::from_millis(1500);

/// "Service restart", of the IANA registry, and "going away" (RFC 6455 section 7.4.1).
const RESTART: u16 = 1012;
const AWAY: u16 = 1001;

// ===== goodbye =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_g17_handlers_say_goodbye_and_end_cleanly() {
    for front in Front::ALL {
        let it = Setup::new(front, Duration::from_secs(30)).await;
        let mut clients = Vec::new();
        for code in [RESTART, AWAY, RESTART] {
            let mut client = it.connect(&format!("/{code}")).await;
            echo(&mut client, "before").await;
            clients.push((code, client));
        }
        let stats = it.terminator.stats();
        assert_eq!(
            (stats.upgraded, stats.connections),
            (3, 3),
            "{front:?}: {stats}"
        );

        let mut ended = it.terminator.terminate();
        for (code, client) in &mut clients {
            assert_eq!(closed(client).await, Some(*code), "{front:?}");
        }
        let report = within(SOON, "the end", &mut ended).await;
        assert_eq!(
            (report.upgraded, report.connections()),
            (3, 3),
            "{front:?}: {report}"
        );
        assert!(report.is_clean(), "{front:?}: {report}");
        assert_eq!(it.terminator.stats().upgraded, 0, "{front:?}");
    }
}

/// The drain waits until the client has answered the goodbye, in its own time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_the_answer_to_a_goodbye_is_waited_for() {
    for front in Front::ALL {
        let it = Setup::new(front, Duration::from_secs(30)).await;
        let mut client = it.connect("/1012").await;
        echo(&mut client, "before").await;
        let mut ended = it.terminator.terminate();
        // tungstenite answers when it is asked again.
        let goodbye = within(BOUND, "a goodbye", client.next()).await;
        assert!(
            matches!(&goodbye, Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Restart),
            "{front:?}: {goodbye:?}"
        );
        // Longer than the stall timeout, which is not for upgraded connections.
        let early = tokio::time::timeout(Duration::from_millis(400), &mut ended).await;
        assert!(early.is_err(), "{front:?}: not waited for: {early:?}");
        assert_eq!(it.terminator.stats().upgraded, 1, "{front:?}");
        assert_eq!(closed(&mut client).await, None, "{front:?}");
        let report = within(SOON, "the end", ended).await;
        assert_eq!(report.upgraded, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    }
}

/// `draining()` is a level: a handshake that was in flight is completed, and its handler learns too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_g17_a_handshake_in_flight_is_completed_and_told() {
    for front in Front::ALL {
        let it = Setup::new(front, Duration::from_secs(30)).await;
        let addr = it.addr;
        let connecting = tokio::spawn(async move { connect(addr, "/gated").await });
        it.gate.wait_entered_async(1).await;
        let ended = it.terminator.terminate();
        it.terminator.reached(Phase::Draining).await;
        it.gate.open();
        let mut client = connecting.await.expect("the handshake is completed");
        assert_eq!(closed(&mut client).await, Some(RESTART), "{front:?}");
        let report = within(SOON, "the end", ended).await;
        assert_eq!(report.upgraded, 1, "{front:?}: {report}");
        assert!(report.is_clean(), "{front:?}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_g18_stats_count_websockets_live() {
    for front in Front::ALL {
        let it = Setup::new(front, Duration::from_secs(30)).await;
        assert_eq!(it.terminator.stats().upgraded, 0, "{front:?}");
        let mut first = it.connect("/ignores").await;
        echo(&mut first, "one").await;
        assert_eq!(it.terminator.stats().upgraded, 1, "{front:?}");
        let mut second = it.connect("/1001").await;
        echo(&mut second, "two").await;
        let stats = it.terminator.stats();
        assert_eq!(
            (stats.upgraded, stats.busy, stats.idle, stats.accepted),
            (2, 0, 0, 2),
            "{front:?}: {stats}"
        );
        first.close(None).await.expect("the server is there");
        closed(&mut first).await;
        it.until_upgraded(1).await;
        second.close(None).await.expect("the server is there");
        closed(&mut second).await;
        it.until_upgraded(0).await;
        let report = within(SOON, "the end", it.terminator.terminate()).await;
        assert_eq!(report.connections(), 0, "{front:?}: {report}");
    }
}

// ===== no goodbye =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_handlers_that_ignore_the_drain_are_cut_at_the_deadline() {
    let grace = Duration::from_millis(500);
    for front in Front::ALL {
        let it = Setup::new(front, grace).await;
        let mut talks = it.connect("/ignores").await;
        let mut held = it.connect("/held").await;
        echo(&mut talks, "before").await;
        it.until_upgraded(2).await;
        let begin = Instant::now();
        let ended = it.terminator.terminate();
        echo(&mut talks, "while draining").await;
        assert_eq!(it.terminator.stats().upgraded, 2, "{front:?}");
        // Neither gets a goodbye, as nobody has said one.
        assert_eq!(closed(&mut talks).await, None, "{front:?}");
        assert_eq!(closed(&mut held).await, None, "{front:?}");
        assert_at(begin.elapsed(), grace, front);
        let report = within(BOUND, "the end", ended).await;
        promised(&report, grace);
        assert_at(begin.elapsed(), grace, front);
        assert_eq!(open_fds_to(it.addr.port()), 0, "{front:?}");
        assert_eq!(
            (report.forced, report.upgraded),
            (2, 0),
            "{front:?}: {report}"
        );
        assert!(!report.is_clean(), "{front:?}: {report}");
        assert_eq!(report.stragglers.len(), 2, "{front:?}: {report}");
        for straggler in &report.stragglers {
            assert_eq!(
                straggler.protocol,
                Protocol::Upgraded,
                "{front:?}: {report}"
            );
            assert!(straggler.peer.is_some(), "{front:?}: {report}");
        }
    }
}

/// The goodbye is out, the answer never comes: the client has stopped reading, say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_a_client_that_never_answers_the_goodbye_is_cut_at_the_deadline() {
    let grace = Duration::from_secs(1);
    for front in Front::ALL {
        let it = Setup::new(front, grace).await;
        let mut polite = it.connect("/1012").await;
        let mut mute = it.connect("/1012").await;
        echo(&mut polite, "before").await;
        echo(&mut mute, "before").await;
        let begin = Instant::now();
        let ended = it.terminator.terminate();
        assert_eq!(closed(&mut polite).await, Some(RESTART), "{front:?}");
        assert!(begin.elapsed() < grace, "{front:?}: {:?}", begin.elapsed());
        let report = within(BOUND, "the end", ended).await;
        promised(&report, grace);
        assert_at(begin.elapsed(), grace, front);
        assert_eq!(
            (report.upgraded, report.forced),
            (1, 1),
            "{front:?}: {report}"
        );
        assert_eq!(open_fds_to(it.addr.port()), 0, "{front:?}");
        drop(mute);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_force_cuts_websockets_at_once() {
    for front in Front::ALL {
        let it = Setup::new(front, Duration::from_secs(30)).await;
        let mut client = it.connect("/ignores").await;
        echo(&mut client, "before").await;
        let begin = Instant::now();
        let report = within(BOUND, "the end", it.terminator.force()).await;
        promised(&report, Duration::ZERO);
        measured(begin.elapsed(), LATE, &format!("{front:?}: force"));
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        assert_eq!(closed(&mut client).await, None, "{front:?}");
    }
}

// ===== over HTTP/2 (RFC 8441) =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_g17_websockets_over_http2_say_goodbye() {
    for front in Front::ALL {
        let it = Setup::new(front, Duration::from_secs(30)).await;
        let mut client = Http2::connect(it.addr).await;
        // Two of them share a connection.
        let mut first = client.websocket("/1012").await;
        let mut second = client.websocket("/1001").await;
        echo(&mut first, "first").await;
        echo(&mut second, "second").await;
        assert_eq!(it.terminator.stats().connections, 1, "{front:?}");
        let mut ended = it.terminator.terminate();
        assert_eq!(closed(&mut first).await, Some(RESTART), "{front:?}");
        assert_eq!(closed(&mut second).await, Some(AWAY), "{front:?}");
        drop((first, second));
        let report = within(SOON, "the end", &mut ended).await;
        // The connection is still HTTP/2, told to go away like any other.
        assert_eq!(
            (report.finished, report.connections()),
            (1, 1),
            "{front:?}: {report}"
        );
        assert!(report.is_clean(), "{front:?}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_websockets_over_http2_that_ignore_the_drain_are_cut_at_the_deadline() {
    let grace = Duration::from_secs(1);
    for front in Front::ALL {
        let it = Setup::new(front, grace).await;
        let mut client = Http2::connect(it.addr).await;
        let mut talks = client.websocket("/ignores").await;
        echo(&mut talks, "before").await;
        let begin = Instant::now();
        let mut ended = it.terminator.terminate();
        echo(&mut talks, "while draining").await;
        // It is quiet for longer than the stall timeout, and is owed nothing.
        let early = tokio::time::timeout(Duration::from_millis(300), &mut ended).await;
        assert!(early.is_err(), "{front:?}: not waited for: {early:?}");
        echo(&mut talks, "after a while").await;
        assert_eq!(closed(&mut talks).await, None, "{front:?}");
        let report = within(BOUND, "the end", ended).await;
        promised(&report, grace);
        assert_at(begin.elapsed(), grace, front);
        assert_eq!(report.forced, 1, "{front:?}: {report}");
        assert_eq!(open_fds_to(it.addr.port()), 0, "{front:?}");
    }
}

// ===== servers =====

#[derive(Clone, Copy, Debug)]
enum Front {
    /// axum's extractor, through `Terminator::serve`.
    Extractor,
    /// tungstenite on bare hyper, with an accept loop of its own.
    Bare,
}

impl Front {
    const ALL: [Self; 2] = [Self::Extractor, Self::Bare];
}

struct Setup {
    terminator: Terminator,
    gate: Gate,
    addr: SocketAddr,
}

impl Setup {
    async fn new(front: Front, grace: Duration) -> Self {
        load::watch_load();
        let terminator = Terminator::builder()
            .grace_period(grace)
            .stall_timeout(Duration::from_millis(150))
            .build();
        let gate = Gate::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let host = Host {
            terminator: terminator.clone(),
            gate: gate.clone(),
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http2().enable_connect_protocol();
        match front {
            Front::Extractor => {
                let router = Router::new()
                    .route("/", get(async || "ok"))
                    .route("/{manner}", any(extracted))
                    .with_state(host);
                tokio::spawn(terminator.serve(listener, router).http(builder));
            }
            Front::Bare => {
                let mut listener = terminator.listen(listener);
                tokio::spawn(async move {
                    while let Some((io, _)) = listener.accept().await {
                        let host = host.clone();
                        let service = service_fn(move |request| bare(host.clone(), request));
                        tokio::spawn(io.connection().serve(&builder, io, service));
                    }
                });
            }
        }
        Self {
            terminator,
            gate,
            addr,
        }
    }

    async fn connect(&self, path: &str) -> WebSocketStream<TcpStream> {
        connect(self.addr, path).await
    }

    async fn until_upgraded(&self, n: usize) {
        until_stats_async(&self.terminator, &format!("{n} upgraded"), |it| {
            it.upgraded == n
        })
        .await;
    }
}

#[derive(Clone)]
struct Host {
    terminator: Terminator,
    gate: Gate,
}

async fn extracted(
    State(host): State<Host>,
    Path(manner): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    if manner == "gated" {
        host.gate.enter().await;
    }
    upgrade.on_upgrade(move |socket| host.talk(socket, manner))
}

async fn bare(
    host: Host,
    mut request: Request<Incoming>,
) -> Result<http::Response<Empty<&'static [u8]>>, Infallible> {
    let manner = request.uri().path().trim_start_matches('/').to_owned();
    let mut response = http::Response::new(Empty::new());
    if manner.is_empty() {
        return Ok(response);
    }
    if manner == "gated" {
        host.gate.enter().await;
    }
    if let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) {
        let accept = derive_accept_key(key.as_bytes());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, "upgrade".parse().expect("a value"));
        headers.insert(header::UPGRADE, "websocket".parse().expect("a value"));
        headers.insert(
            header::SEC_WEBSOCKET_ACCEPT,
            accept.parse().expect("a value"),
        );
    } else {
        assert_eq!(request.method(), Method::CONNECT, "HTTP/2");
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let io = TokioIo::new(upgraded.await.expect("the head goes out"));
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        host.talk(socket, manner).await;
    });
    Ok(response)
}

impl Host {
    /// Echoes. `manner` is what it does when the drain begins: a number is a goodbye.
    async fn talk<S, M, E>(self, mut socket: S, manner: String)
    where
        S: Stream<Item = Result<M, E>> + Sink<M> + Unpin,
        M: Words,
    {
        if manner == "held" {
            std::future::pending::<()>().await;
        }
        let goodbye = match &manner[..] {
            "ignores" => None,
            "gated" => Some(RESTART),
            code => Some(code.parse().expect("a close code")),
        };
        let mut draining = std::pin::pin!(self.terminator.draining());
        loop {
            tokio::select! {
                word = socket.next() => match word {
                    Some(Ok(word)) if word.is_data() => {
                        if socket.send(word).await.is_err() {
                            return;
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return,
                },
                () = &mut draining, if goodbye.is_some() => break,
            }
        }
        let goodbye = goodbye.map(M::goodbye).expect("asked above");
        if socket.send(goodbye).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    }
}

/// A message of axum's, or of tungstenite's.
trait Words {
    fn goodbye(code: u16) -> Self;
    fn is_data(&self) -> bool;
}

impl Words for ws::Message {
    fn goodbye(code: u16) -> Self {
        Self::Close(Some(ws::CloseFrame {
            code,
            reason: "restarting".into(),
        }))
    }

    fn is_data(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Binary(_))
    }
}

impl Words for Message {
    fn goodbye(code: u16) -> Self {
        Self::Close(Some(CloseFrame {
            code: code.into(),
            reason: "restarting".into(),
        }))
    }

    fn is_data(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Binary(_))
    }
}

// ===== clients =====

async fn connect(addr: SocketAddr, path: &str) -> WebSocketStream<TcpStream> {
    let handshake = async {
        let io = TcpStream::connect(addr).await.expect("connects");
        client_async(format!("ws://{addr}{path}"), io).await
    };
    let (client, response) = within(BOUND, "a handshake", handshake)
        .await
        .unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let connection = &response.headers()[header::CONNECTION];
    let connection = connection.to_str().expect("text").to_ascii_lowercase();
    assert_eq!(connection, "upgrade", "a 101 does not say close (G5)");
    client
}

async fn echo<Io>(client: &mut WebSocketStream<Io>, word: &'static str)
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let sent = client.send(Message::text(word)).await;
    sent.unwrap_or_else(|e| panic!("sending {word:?}: {e}"));
    match within(BOUND, "an echo", client.next()).await {
        Some(Ok(Message::Text(text))) => assert_eq!(text.as_str(), word),
        other => panic!("waiting for {word:?}: {other:?}"),
    }
}

/// Reads until the end; the code of the goodbye, if there was one.
async fn closed<Io>(client: &mut WebSocketStream<Io>) -> Option<u16>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut code = None;
    loop {
        match within(BOUND, "the end of a WebSocket", client.next()).await {
            Some(Ok(Message::Close(frame))) => code = frame.map(|frame| frame.code.into()),
            Some(Ok(word)) => panic!("{word:?} comes before the end"),
            // HTTP/2: who drops a stream whose other half is open resets it, as tungstenite's server
            // does once the goodbye was answered. That may overtake the client's flush.
            Some(Err(tungstenite::Error::Io(e)))
                if code.is_some() && e.kind() == ErrorKind::Other =>
            {
                return code;
            }
            Some(Err(e)) if code.is_some() => panic!("not a clean end after {code:?}: {e}"),
            None | Some(Err(tungstenite::Error::Io(_) | tungstenite::Error::Protocol(_))) => {
                return code;
            }
            Some(Err(e)) => panic!("the end: {e:?}"),
        }
    }
}

#[track_caller]
fn assert_at(took: Duration, grace: Duration, front: Front) {
    let early = grace.saturating_sub(Duration::from_millis(5));
    assert!(took >= early, "{front:?}: before the deadline: {took:?}");
    measured(
        took.saturating_sub(grace),
        LATE,
        &format!("{front:?}: after the deadline"),
    );
}

/// A connection for several web sockets.
struct Http2 {
    addr: SocketAddr,
    sender: hyper::client::conn::http2::SendRequest<Empty<&'static [u8]>>,
}

impl Http2 {
    async fn connect(addr: SocketAddr) -> Self {
        let io = TcpStream::connect(addr).await.expect("connects");
        io.set_nodelay(true).expect("a TCP option");
        let io = TokioIo::new(io);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (sender, connection) = within(BOUND, "an HTTP/2 handshake", handshake)
            .await
            .expect("speaks HTTP/2");
        tokio::spawn(connection.map(drop)); // cut at the deadline, perhaps
        let mut client = Self { addr, sender };
        // With its response the server's SETTINGS are here, without which no CONNECT goes out.
        let request = Request::get(format!("http://{addr}/")).body(Empty::new());
        let response = client.send(request.expect("a request")).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.expect("whole");
        client
    }

    async fn websocket(&mut self, path: &str) -> WebSocketStream<TokioIo<Upgraded>> {
        let mut request = Request::connect(format!("http://{}{path}", self.addr))
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .body(Empty::new())
            .expect("a request");
        let protocol = hyper::ext::Protocol::from_static("websocket");
        request.extensions_mut().insert(protocol);
        let response = self.send(request).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers().get(header::CONNECTION), None, "{path}");
        let upgraded = within(BOUND, "a stream", hyper::upgrade::on(response)).await;
        let io = TokioIo::new(upgraded.expect("a CONNECT is one"));
        WebSocketStream::from_raw_socket(io, Role::Client, None).await
    }

    async fn send(&mut self, request: Request<Empty<&'static [u8]>>) -> http::Response<Incoming> {
        let response = within(BOUND, "a response", self.sender.send_request(request)).await;
        response.expect("the server answers")
    }
}
