//! Something is read from a connection before its TLS, as accept loops behind a proxy do: half a
//! record of the next request counts all the same (G2), an idle connection is closed at once (G1), and
//! nothing that is in a plain request is taken for TLS.
//!
//! The clients block in the test's own thread, which is none of the runtime's two workers.
#![cfg(all(unix, feature = "serve"))]

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedProtocolVersion,
};

use crate::support::wait::{accepted, idle, time_passes, until_read};
use crate::support::{App, BOUND, RawClient, RawH2, app, client_hello, each, kind, within};
use http_terminator::{Report, Terminator, TerminatorBuilder, TrackedIo};

/// What happens at once, on a machine with many other things to do: less than what [`patient`] waits.
const SOON: Duration = Duration::from_secs(5);

/// Longer than the default `settle`: an idle connection would have been closed by then.
const PAST_SETTLE: Duration = Duration::from_millis(100);

const GET_QUICK: &str = "GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// The client's address and port look like the header of a TLS record, and may.
const V1: &[u8] = b"PROXY TCP4 22.3.1.0 10.0.0.1 5635 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x16\x03\x01\0\x0a\0\0\x01\x16\x03\x01\0";

const HTTP_1: &str = "http/1.1";
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// How an accept loop gets at what is before TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// Exactly what it needs, from the tracked connection.
    Exactly,
    /// Whatever comes, and hands the rest on.
    AndHandsOn,
    /// The same, before it has the connection tracked.
    BeforeItTracks,
}

const ALL: [Reads; 3] = [Reads::Exactly, Reads::AndHandsOn, Reads::BeforeItTracks];

// ===== TLS =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_half_a_record_is_answered_whatever_was_before_tls() {
    each(cases(), async |(version, before, reads)| {
        let what = format!("{version:?}, {}, {reads:?}", before.escape_ascii());
        let terminator = patient().build();
        let addr = serve(&terminator, before, reads, true).await;
        let mut clients: Vec<_> = (0..5)
            .map(|_| connect(addr, before, version, HTTP_1))
            .collect();
        let mut rests = Vec::new();
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.fetch("/quick").text(), "ok", "{what}");
            let record = client.encrypt(GET_QUICK);
            let cut = [1, 4, 5, record.len() / 2, record.len() - 1][n];
            client.send_raw(&record[..cut]);
            rests.push(record[cut..].to_vec());
        }
        let termination = terminator.terminate();
        time_passes(PAST_SETTLE);
        for (client, rest) in clients.iter_mut().zip(rests) {
            assert!(client.is_still_open(), "{what}: closed as idle");
            client.send_raw(&rest);
            last_answer(client, &what);
        }
        let report = within(BOUND, "the end", termination).await;
        let counted = (report.finished, report.connections());
        assert_eq!(counted, (5, 5), "{what}: {report}");
    });
}

/// Before the first request as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_half_a_record_right_after_the_handshake_is_answered_whatever_was_before_tls() {
    each(cases(), async |(version, before, reads)| {
        let what = format!("{version:?}, {}, {reads:?}", before.escape_ascii());
        let terminator = patient().build();
        let addr = serve(&terminator, before, reads, true).await;
        let mut client = connect(addr, before, version, HTTP_1);
        let record = client.encrypt(GET_QUICK);
        let (half, rest) = record.split_at(9);
        client.send_raw(half);
        let termination = terminator.terminate();
        time_passes(PAST_SETTLE);
        assert!(client.is_still_open(), "{what}: closed as idle");
        client.send_raw(rest);
        last_answer(&mut client, &what);
        let report = within(BOUND, "the end", termination).await;
        assert_eq!(report.finished, 1, "{what}: {report}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_whole_records_leave_a_connection_idle_whatever_was_before_tls() {
    each(cases(), async |(version, before, reads)| {
        let what = format!("{version:?}, {}, {reads:?}", before.escape_ascii());
        let terminator = patient().build();
        let addr = serve(&terminator, before, reads, true).await;
        let mut client = connect(addr, before, version, HTTP_1);
        // In two halves, so that it was known to be half.
        let record = client.encrypt(GET_QUICK);
        let (half, rest) = record.split_at(9);
        client.send_raw(half);
        until_read(client.socket());
        client.send_raw(rest);
        assert_eq!(client.read_response().text(), "ok", "{what}");
        idle(&terminator, &what);
        closed_as_idle(&terminator, &mut client, &what).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_http2_ends_well_whatever_was_before_tls() {
    each(cases(), async |(version, before, reads)| {
        let what = format!("{version:?}, {}, {reads:?}", before.escape_ascii());
        let terminator = patient().build();
        let addr = serve(&terminator, before, reads, true).await;
        let client = connect(addr, before, version, "h2");
        assert_eq!(client.alpn().as_deref(), Some("h2"), "{what}");
        let preface = [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            &[0, 0, 0, 4, 0, 0, 0, 0, 0],
        ];
        client.send(preface.concat());
        // ":method GET", ":scheme http", ":path /", by their numbers (RFC 7541 appendix A); and
        // ":path /quick" by its name's.
        let head = [
            &[0, 0, 9, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x04, 6][..],
            b"/quick",
        ]
        .concat();
        let head = [&[0, 0, 10], &head[3..]].concat();
        let record = client.encrypt(&head);
        let (half, rest) = record.split_at(record.len() / 2);
        client.send_raw(half);
        accepted(&terminator, 1);
        let termination = terminator.terminate();
        client.send_raw(rest);
        let mut h2 = RawH2::from(client);
        // Its handler may be at work when the last stream is said.
        let (mut answered, mut goes) = (false, false);
        while !(answered && goes) {
            let frame = h2.read_frame();
            match frame.kind {
                kind::PING if !frame.is_ack() => h2.ack_ping(&frame),
                kind::SETTINGS if !frame.is_ack() => h2.ack_settings(),
                kind::DATA => answered |= frame.payload == b"ok",
                kind::GOAWAY => goes |= frame.goaway().0 == 1,
                _ => {}
            }
        }
        h2.expect_eof_within(SOON);
        let report = within(BOUND, "the end", termination).await;
        assert_eq!(
            (report.finished, report.connections()),
            (1, 1),
            "{what}: {report}"
        );
    });
}

// ===== none =====

/// A body may hold a whole TLS session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_nothing_in_a_plain_request_is_taken_for_tls() {
    let mut session = client_hello(&mut client(&TLS13, HTTP_1));
    session.extend([20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 5, 1, 2, 3, 4, 5]);
    let one = session.len();
    session.extend([23, 3, 3, 64, 0, 1, 2, 3]);
    for before in [b"", V1, V2] {
        for reads in ALL {
            for (part, apart) in [(one, false), (session.len(), false), (session.len(), true)] {
                // A head that holds a part of it, too.
                let body = &session[..part];
                let what = format!("{}, {reads:?}, {part} {apart}", before.escape_ascii());
                let terminator = patient().build();
                let addr = serve(&terminator, before, reads, false).await;
                let mut client = RawClient::connect(addr);
                let length = body.len();
                let head =
                    format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
                if apart {
                    client.send([before, head.as_bytes()].concat());
                    client.send(body);
                } else {
                    client.send([before, head.as_bytes(), body].concat());
                }
                assert_eq!(client.read_response().body, body, "{what}");
                idle(&terminator, &what);
                closed_as_idle(&terminator, &mut client, &what).await;
            }
        }
    }
}

/// The same over HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_nothing_on_plain_http2_is_taken_for_tls() {
    for before in [b"", V1, V2] {
        for reads in ALL {
            let what = format!("{}, {reads:?}", before.escape_ascii());
            let terminator = patient().build();
            let addr = serve(&terminator, before, reads, false).await;
            let client = RawClient::connect(addr);
            let preface = [
                &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
                &[0, 0, 0, 4, 0, 0, 0, 0, 0],
            ];
            client.send([before, &preface.concat()].concat());
            let mut h2 = RawH2::from(client);
            h2.request("POST", "/echo", 1, false);
            let hello = client_hello(&mut self::client(&TLS13, HTTP_1));
            let body = [&hello[..], &[22, 3, 1, 64]].concat();
            h2.send_frame(kind::DATA, 1, 1, &body);
            while !h2.read_frame().is_end_stream() {}
            idle(&terminator, &what);
            let begun = Instant::now();
            let termination = terminator.terminate();
            let ping = h2.read_until(kind::PING);
            h2.ack_ping(&ping);
            h2.expect_eof_within(SOON);
            let report = within(BOUND, "the end", termination).await;
            assert!(
                report.is_clean() && begun.elapsed() < SOON,
                "{what}: {report}"
            );
        }
    }
}

// ===== what several tests do =====

/// Both bounds are longer than [`BOUND`]: a test that runs into one of them fails.
fn patient() -> TerminatorBuilder {
    let builder = Terminator::builder().grace_period(Duration::from_secs(30));
    builder.stall_timeout(Duration::from_secs(20))
}

fn cases() -> Vec<(&'static SupportedProtocolVersion, &'static [u8], Reads)> {
    let mut cases = Vec::new();
    for version in VERSIONS {
        for before in [V1, V2] {
            cases.extend(ALL.map(|reads| (version, before, reads)));
        }
    }
    cases
}

/// An accept loop that expects `before` on each connection.
async fn serve(terminator: &Terminator, before: &[u8], reads: Reads, tls: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let addr = listener.local_addr().expect("it is bound");
    let before = before.len();
    let terminator = terminator.clone();
    if reads == Reads::BeforeItTracks {
        let accepts = async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let terminator = terminator.clone();
                tokio::spawn(async move {
                    let rest = read(&mut io, before, reads).await;
                    go_on(terminator.track(io), rest, tls).await;
                });
            }
        };
        tokio::spawn(accepts);
    } else {
        let mut listener = terminator.listen(listener);
        tokio::spawn(async move {
            while let Some((mut io, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let rest = read(&mut io, before, reads).await;
                    go_on(io, rest, tls).await;
                });
            }
        });
    }
    addr
}

/// Reads so much, and gives what came with it.
async fn read(io: &mut (impl AsyncRead + Unpin), before: usize, reads: Reads) -> Vec<u8> {
    if reads == Reads::Exactly {
        let read = io.read_exact(&mut vec![0; before]).await;
        read.expect("the client sends it");
        return Vec::new();
    }
    let mut bytes = Vec::new();
    while before > 0 && bytes.len() <= before {
        io.read_buf(&mut bytes).await.expect("the client sends it");
    }
    bytes.split_off(before)
}

async fn go_on(io: TrackedIo<TcpStream>, rest: Vec<u8>, tls: bool) {
    let connection = io.connection();
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(app(App::default()));
    let io = Prefixed { rest, io };
    let served = if tls {
        let acceptor = TlsAcceptor::from(Arc::clone(&TLS.server));
        let Ok(io) = acceptor.accept(io).await else {
            return;
        };
        connection.serve(&builder, io, service).await
    } else {
        connection.serve(&builder, io, service).await
    };
    // Of a client that is done with it.
    drop(served);
}

/// What was read already, and then the rest.
struct Prefixed {
    rest: Vec<u8>,
    io: TrackedIo<TcpStream>,
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = buf.remaining().min(self.rest.len());
        buf.put_slice(&self.rest[..n]);
        self.rest.drain(..n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Both ends' keys.
struct Tls {
    certificate: CertificateDer<'static>,
    server: Arc<ServerConfig>,
}

static TLS: LazyLock<Tls> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
    let made = made.expect("a certificate can be made");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("rcgen's key");
    let certificate = made.cert.der().clone();
    let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows the default versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("the key is the certificate's");
    server.alpn_protocols = vec![b"h2".to_vec(), HTTP_1.as_bytes().to_vec()];
    let server = Arc::new(server);
    Tls {
        certificate,
        server,
    }
});

/// A client's end of TLS, before its first byte.
fn client(version: &'static SupportedProtocolVersion, alpn: &str) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(TLS.certificate.clone()).expect("it parses");
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .expect("ring knows it")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::new(config), name).expect("the configuration is fine")
}

/// A client that speaks TLS; its first bytes come in one segment with what is before them.
#[track_caller]
fn connect(
    addr: SocketAddr,
    before: &[u8],
    version: &'static SupportedProtocolVersion,
    alpn: &str,
) -> RawClient {
    let mut client = RawClient::connect(addr);
    let mut tls = self::client(version, alpn);
    let hello = client_hello(&mut tls);
    client.send([before, &hello].concat());
    client.shake_hands(tls).expect("a handshake");
    client
}

/// An answer that says close, and the end of the connection.
#[track_caller]
fn last_answer(client: &mut RawClient, what: &str) {
    match client.try_read_response() {
        Ok(answer) => {
            assert_eq!(answer.text(), "ok", "{what}: {answer:?}");
            assert!(answer.says_close(), "{what}: {answer:?}");
            client.expect_eof();
        }
        Err(end) => panic!("{what}: {end:?} instead of an answer"),
    }
}

async fn closed_as_idle(terminator: &Terminator, client: &mut RawClient, what: &str) {
    let begun = Instant::now();
    let termination = terminator.terminate();
    client.expect_eof();
    let report: Report = within(BOUND, "the end", termination).await;
    assert!(begun.elapsed() < SOON, "{what}: {report}");
    assert_eq!(
        (report.idle, report.connections()),
        (1, 1),
        "{what}: {report}"
    );
}
