//! While serving, a client that sends whatever it likes gets from us what it gets from bare hyper: the same bytes after each
//! piece, and the same end. In the drain it gets the same once, with `connection: close`.
//!
//! Tables of odd and malformed input, and as many random ones as are asked for:
//! `SAME_RUNS=1000000 cargo test --release --all-features --test same_answers`. `SAME_SEED=7` repeats one of them.
#![cfg(feature = "serve")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests spawn, and this one has a clock of its own"
)]

use std::convert::Infallible;
use std::env;
use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use draw::Draw;
use http_terminator::{HttpBuilder, Report, Terminator, TrackedIo};
use http2_table::{malformed_http2, spoken};

#[allow(dead_code, reason = "the simulator has use for all of it")]
#[path = "sim/draw.rs"]
mod draw;
#[path = "same_answers/http2.rs"]
mod http2_table;

// ===== what is served =====

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn full(body: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(body.into()).boxed()
}

/// Says what it was asked, having read the body, part of it, or nothing.
async fn answer(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, mut body) = request.into_parts();
    let mut said = format!("{} {} {:?}", head.method, head.uri, head.version);
    // Or a second that passes would make a difference, on HTTP/2 one that can't be told from others.
    let mut answer = Response::builder().header("date", "today, GMT");
    match head.uri.path() {
        "/early" => {
            drop(body);
            answer = answer.status(StatusCode::PAYLOAD_TOO_LARGE);
        }
        "/part" => {
            let part = body.frame().await;
            let _ = write!(
                said,
                " {:?}",
                part.map(|it| it.map(|it| it.data_ref().map(Bytes::len)))
            );
        }
        "/later" => {
            sleep(Duration::from_millis(3)).await;
            let read = body.collect().await;
            let _ = write!(said, " {:?}", read.map(|it| it.to_bytes().len()).ok());
        }
        "/kept" => {
            // By somebody who does not read it, for a while.
            tokio::spawn(async move {
                sleep(Duration::from_millis(20)).await;
                drop(body);
            });
        }
        _ => match body.collect().await {
            Ok(read) => {
                let trailers = read.trailers().map(http::HeaderMap::len);
                let _ = write!(said, " {} {trailers:?}", read.to_bytes().len());
            }
            Err(_) => said.push_str(" broken"),
        },
    }
    let answer = answer.body(full(said)).expect("a response");
    Ok(answer)
}

/// What stands on the server's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Bare,
    BareHttp1,
    BareHttp2,
    /// hyper's own builders, and hyper-util's.
    Ours,
    Ours1,
    Ours2,
    OursAuto,
    OursAuto1,
    OursAuto2,
}

const PAIRS: [(Side, &[Side]); 3] = [
    (Side::Bare, &[Side::Ours, Side::OursAuto]),
    (Side::BareHttp1, &[Side::Ours1, Side::OursAuto1]),
    (Side::BareHttp2, &[Side::Ours2, Side::OursAuto2]),
];

/// Gives whether it has ended well.
async fn serve(side: Side, io: DuplexStream) -> bool {
    let auto = || auto::Builder::new(TokioExecutor::new());
    let auto = match side {
        Side::OursAuto1 => auto().http1_only(),
        Side::OursAuto2 => auto().http2_only(),
        _ => auto(),
    };
    let ours = match side {
        Side::Ours1 => HttpBuilder::default().http1_only(),
        Side::Ours2 => HttpBuilder::default().http2_only(),
        _ => HttpBuilder::default(),
    };
    let service = service_fn(answer);
    match side {
        Side::Bare => {
            let served = auto.serve_connection_with_upgrades(TokioIo::new(io), service);
            served.await.is_ok()
        }
        Side::BareHttp1 => {
            let served = http1::Builder::new().serve_connection(TokioIo::new(io), service);
            served.with_upgrades().await.is_ok()
        }
        Side::BareHttp2 => {
            let builder = http2::Builder::new(TokioExecutor::new());
            builder
                .serve_connection(TokioIo::new(io), service)
                .await
                .is_ok()
        }
        Side::Ours | Side::Ours1 | Side::Ours2 => {
            let io = Terminator::new().track(io);
            io.connection().serve(&ours, io, service).await.is_ok()
        }
        Side::OursAuto | Side::OursAuto1 | Side::OursAuto2 => {
            let io = Terminator::new().track(io);
            io.connection().serve(&auto, io, service).await.is_ok()
        }
    }
}

// ===== what is said =====

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the client read after each piece it sent; whether there was an end; how the connection ended.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    after: Vec<String>,
    ended: bool,
    well: Option<bool>,
}

#[derive(Clone, Debug)]
struct Said {
    pieces: Vec<Vec<u8>>,
    half_closes: bool,
}

async fn talk(side: Side, said: &Said) -> Heard {
    let (mut client, server) = duplex(1 << 20);
    let connection = tokio::spawn(serve(side, server));
    let mut after = Vec::new();
    let mut ended = false;
    for piece in &said.pieces {
        // Who has closed is told nothing more.
        let _ = client.write_all(piece).await;
        after.push(read(&mut client, &mut ended, 1).await);
    }
    // What is not answered at once.
    after.push(read(&mut client, &mut ended, 40).await);
    if said.half_closes {
        let _ = client.shutdown().await;
        after.push(read(&mut client, &mut ended, 40).await);
    }
    let well = if connection.is_finished() {
        Some(connection.await.expect("no panic"))
    } else {
        connection.abort();
        None
    };
    Heard { after, ended, well }
}

/// Reads until nothing has come for so many ms of paused time, that is until nobody has anything to do.
async fn read(client: &mut DuplexStream, ended: &mut bool, ms: u64) -> String {
    without_date(&read_bytes(client, ended, ms).await)
}

async fn read_bytes(client: &mut DuplexStream, ended: &mut bool, ms: u64) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut part = [0; 4096];
        tokio::select! {
            biased;
            n = client.read(&mut part), if !*ended => match n {
                Ok(n) if n > 0 => all.extend_from_slice(&part[..n]),
                _ => *ended = true,
            },
            () = sleep(Duration::from_millis(ms)) => break,
        }
    }
    all
}

fn without_date(bytes: &[u8]) -> String {
    let text: String = bytes.escape_ascii().to_string();
    let mut rest = &text[..];
    let mut out = String::new();
    while let Some(at) = rest.find("date: ") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find("GMT").map_or(rest.len(), |end| end + 3);
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// All of it, without the update of the connection's window, which begins earlier or later.
fn without_window(heard: &Heard) -> String {
    let update = r"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x0f\x00\x01";
    heard.after.concat().replacen(update, "", 1)
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true);
    builder.build().expect("a runtime")
}

/// Panics if we answer otherwise than hyper does.
fn compare(what: &str, said: &Said) {
    let runtime = runtime();
    for (bare, ours) in PAIRS {
        for side in ours {
            let mut expected = runtime.block_on(talk(bare, said));
            if *side == Side::OursAuto2 && !said.pieces.concat().starts_with(PREFACE) {
                // Its builder serves other versions, too, unless it is given a preface before the client's, and
                // it has more to say then.
                continue;
            }
            let mut got = runtime.block_on(talk(*side, said));
            if *side == Side::OursAuto2 {
                got.after = vec![without_window(&got)];
                expected.after = vec![without_window(&expected)];
            }
            if !said.half_closes {
                // We may wait for the client's end, so that our answer arrives.
                got.well = expected.well;
            }
            if got != expected && !PREFACE.starts_with(&said.pieces[0]) {
                // hyper itself says what is wrong with a head that hyper-util gives it in two parts; and that one says later what we
                // have it serve as HTTP/1.
                let other = match side {
                    Side::Ours | Side::OursAuto => Some(Side::BareHttp1),
                    Side::OursAuto1 => Some(Side::Bare),
                    _ => None,
                };
                if let Some(other) = other {
                    expected = runtime.block_on(talk(other, said));
                    expected.well = got.well;
                }
            }
            assert_eq!(
                got,
                expected,
                "{what}: {side:?} and then {bare:?}; said was {:#?}, half-closed {}",
                said.pieces
                    .iter()
                    .map(|it| it.escape_ascii().to_string())
                    .collect::<Vec<_>>(),
                said.half_closes,
            );
        }
    }
}

// ===== the table =====

const GET: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";

/// Of the kinds that tests of parsers and papers on smuggled requests have.
const ODD: &[&str] = &[
    "",
    "\r\n",
    "\n\n\nGET /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "\rGET /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET",
    "GET /a\r\n\r\n",
    "GET /a HTTP/0.9\r\n\r\n",
    "GET /a HTTP/1.0\r\n\r\n",
    "GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    "GET /a HTTP/1.2\r\nhost: a\r\n\r\n",
    "GET /a HTTP/2.0\r\nhost: a\r\n\r\n",
    "GET /a HTTP/3.0\r\n\r\n",
    "GET  /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /a HTTP/1.1 \r\nhost: a\r\n\r\n",
    "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET a HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET * HTTP/1.1\r\nhost: a\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET http://a/b?c HTTP/1.1\r\nhost: d\r\n\r\n",
    "GET /a HTTP/1.1\nhost: a\n\n",
    "GET /a HTTP/1.1\r\nhost: a\n\r\n",
    "GET /a HTTP/1.1\r\nhost a\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost : a\r\n\r\n",
    "GET /a HTTP/1.1\r\n host: a\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\n b: c\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\n: c\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nx: \x01\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n",
    "G\u{e4}T /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /\u{e4} HTTP/1.1\r\nhost: a\r\n\r\n",
    "get /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "FROB /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "HEAD /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\nrest",
    "CONNECT /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "TRACE /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nrest",
    "GET /a HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\nconnection: upgrade, http2-settings\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhel",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 0x5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0;z\r\nt: u\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n05 \r\nhello\r\n00\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\n0\n\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloX0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nG\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx\r\n\r\n",
    "POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 50000\r\n\r\nhello",
    "POST /part HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /kept HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
    "POST /early HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\nexpect: 200-ok\r\ncontent-length: 5\r\n\r\nhello",
    "PRI * HTTP/2.0\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nXM\r\n\r\n",
    "PUT /a HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "\x16\x03\x01\x00\x05hello",
    "\0\0\0\0",
    // Versions and request lines.
    "GET /a HTTP/1.10\r\nhost: a\r\n\r\n",
    "GET /a HTTP/01.1\r\nhost: a\r\n\r\n",
    "GET /a HTTP/1,1\r\nhost: a\r\n\r\n",
    "GET /a http/1.1\r\nhost: a\r\n\r\n",
    "GET /a HTTP/1.1\rhost: a\r\r",
    "GET\t/a\tHTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /a\x0bHTTP/1.1\r\nhost: a\r\n\r\n",
    " GET /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET\r\n/a HTTP/1.1\r\nhost: a\r\n\r\n",
    "G\0T /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "GE(T /a HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /\x7f HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET //b/a HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET ?a HTTP/1.1\r\nhost: a\r\n\r\n",
    // Whom it is for.
    "GET http:// HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET http://u:p@a:80/b HTTP/1.1\r\nhost: d\r\n\r\n",
    "GET http://a\\@d/b HTTP/1.1\r\nhost: d\r\n\r\n",
    "GET https://a/b HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET a:80 HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /a HTTP/1.1\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost:\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a, b\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a/b\r\n\r\n",
    // Fields.
    "GET /a HTTP/1.1\r\nhost: a\r\nx: b\rc\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nx: b\x7f\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nx: \u{e4}\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nx\0: b\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nx\u{e4}: b\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nx[: b\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nx:\r\n\tb\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nx: b\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nconnection: content-length, close\r\ncontent-length: 2\r\n\r\nhiGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    // Two lengths, or one that is none.
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 005\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5 \t\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5;5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 6\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5.0\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5e0\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length : 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent_length: 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\nx: y\ncontent-length: 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\ncontent-length: 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: +5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551615\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551614\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551621\r\n\r\nhello",
    "GET /a HTTP/1.1\r\nhost: a\r\ncontent-length: 35\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\nx: abcd\r\n\r\n",
    // A length and chunks.
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n26\r\nGET /b HTTP/1.1\r\nhost: a\r\nx: abcdefg\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: xchunked\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: identity\r\n\r\nhello",
    "POST /a HTTP/1.0\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.0\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.0\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "HEAD /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    // What is taken for `transfer-encoding: chunked` by some.
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\tchunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked \t\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked,\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\n transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\nx: y\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\nx: y\rtransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer_encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding\0: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \r\n\r\n0\r\n\r\n",
    // Chunks.
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5 ;a=b\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;a=\"b\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;\0\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5h\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\rhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0000000000000000000000005\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\ntransfer-encoding: chunked\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n x: y\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: \0\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\n\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /early HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nG\r\nhello",
    "POST /part HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nG\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n",
];

/// More than there is room for.
fn huge() -> Vec<(&'static str, Vec<u8>)> {
    let head = |line: &str, fields: &str| {
        let head = format!("GET {line} HTTP/1.1\r\nhost: a\r\n{fields}\r\n{GET}");
        head.into_bytes()
    };
    let chunked = |rest: &str| {
        let all =
            format!("POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{rest}{GET}");
        all.into_bytes()
    };
    let long = |n| "x".repeat(n);
    vec![
        ("a long target", head(&format!("/{}", long(60_000)), "")),
        ("a longer target", head(&format!("/{}", long(70_000)), "")),
        (
            "a method",
            [long(5_000).as_bytes(), b" /a HTTP/1.1\r\n\r\n"].concat(),
        ),
        ("a hundred fields", head("/a", &"x: y\r\n".repeat(99))),
        ("more", head("/a", &"x: y\r\n".repeat(100))),
        (
            "a big field",
            head("/a", &format!("x: {}\r\n", long(300_000))),
        ),
        (
            "a big name",
            head("/a", &format!("{}: x\r\n", long(70_000))),
        ),
        (
            "a bigger head",
            head("/a", &format!("x: {}\r\n", long(500_000))),
        ),
        (
            "a head without end",
            [b"GET /a HTTP/1.1\r\nx: ", long(500_000).as_bytes()].concat(),
        ),
        (
            "line ends",
            ["\r\n".repeat(20_000).as_bytes(), GET.as_bytes()].concat(),
        ),
        (
            "a chunk's extension",
            chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", long(10_000))),
        ),
        (
            "a longer one",
            chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", long(20_000))),
        ),
        (
            "many of them",
            chunked(&format!(
                "{}0\r\n\r\n",
                format!("1;{}\r\na\r\n", long(1_000)).repeat(20)
            )),
        ),
        (
            "zeros",
            chunked(&format!("{}5\r\nhello\r\n0\r\n\r\n", "0".repeat(20_000))),
        ),
        (
            "trailers",
            chunked(&format!("0\r\n{}\r\n", "x: y\r\n".repeat(99))),
        ),
        (
            "more trailers",
            chunked(&format!("0\r\n{}\r\n", "x: y\r\n".repeat(2_000))),
        ),
        (
            "a big trailer",
            chunked(&format!("0\r\nx: {}\r\n\r\n", long(20_000))),
        ),
        (
            "a big body",
            [
                b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 300000\r\n\r\n",
                long(300_000).as_bytes(),
                GET.as_bytes(),
            ]
            .concat(),
        ),
        (
            "that nobody reads",
            [
                b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 300000\r\n\r\n",
                long(300_000).as_bytes(),
                GET.as_bytes(),
            ]
            .concat(),
        ),
    ]
}

#[test]
fn huge_input_is_answered_as_by_hyper() {
    for (what, bytes) in huge() {
        for half_closes in [false, true] {
            for piece in [bytes.len(), 1_000] {
                let pieces = bytes.chunks(piece).map(<[u8]>::to_vec).collect();
                compare(
                    what,
                    &Said {
                        pieces,
                        half_closes,
                    },
                );
            }
        }
    }
}

#[test]
fn odd_and_malformed_input_is_answered_as_by_hyper() {
    for odd in ODD {
        for before in ["", GET] {
            for half_closes in [false, true] {
                let bytes = [before, odd].concat().into_bytes();
                let whole = Said {
                    pieces: vec![bytes.clone()],
                    half_closes,
                };
                compare("whole", &whole);
                let dripped = Said {
                    pieces: bytes.iter().map(|byte| vec![*byte]).collect(),
                    half_closes,
                };
                compare("dripped", &dripped);
            }
        }
    }
}

// ===== HTTP/2 =====

#[test]
fn malformed_http2_is_answered_as_by_hyper() {
    for (what, frames) in malformed_http2() {
        let bytes = spoken(what, &frames);
        for half_closes in [false, true] {
            for piece in [bytes.len(), bytes.len() / 40 + 7] {
                let pieces = bytes.chunks(piece).map(<[u8]>::to_vec).collect();
                compare(
                    what,
                    &Said {
                        pieces,
                        half_closes,
                    },
                );
            }
        }
    }
}

// ===== in the drain =====

/// Connections of which the drain finds one byte, each, and then the rest comes: of the first request of each, or of one
/// that follows on another. What there is to answer is answered as hyper would, once and with `connection: close`, nothing
/// comes behind that, and all of them end without force.
#[test]
fn odd_and_malformed_input_is_answered_once_in_the_drain() {
    let rows: Vec<_> = ODD
        .iter()
        .filter(|odd| odd.len() > 1)
        .flat_map(|odd| [("", *odd), (GET, *odd)])
        .collect();
    let expected: Vec<_> = rows
        .iter()
        .map(|(before, odd)| {
            let pieces = [
                before.as_bytes(),
                &odd.as_bytes()[..1],
                &odd.as_bytes()[1..],
            ];
            let heard = runtime().block_on(hear(Side::BareHttp1, &pieces));
            Answered::first(odd, &heard[heard.len().min(answer_to_get(before))..])
        })
        .collect();
    let (got, report) = in_the_drain(&rows, Side::Ours1);
    let mut wrong = Vec::new();
    for ((row, got), expected) in rows.iter().zip(&got).zip(&expected) {
        let answered = Answered::first(row.1, &got[got.len().min(answer_to_get(row.0))..]);
        let same = (&answered.head, &answered.body) == (&expected.head, &expected.body);
        if !same || !answered.rest.is_empty() || !(answered.closes || answered.head.is_empty()) {
            wrong.push(format!("{row:?}: {answered:#?}, not {expected:#?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\n{} wrong, {report}",
        wrong.join("\n"),
        wrong.len()
    );
    // What can't begin a method is refused at once, and may be gone before the drain.
    let refused = rows.iter().filter(|(_, odd)| {
        let first = odd.as_bytes()[0];
        !(first.is_ascii_alphanumeric() || b"\r\n!#$%&'*+-.^_`|~".contains(&first))
    });
    let least = rows.len() - refused.count();
    assert_eq!(report.forced, 0, "{report}");
    assert!(
        (least..=rows.len()).contains(&report.connections()),
        "{report}"
    );
}

/// The same with frames: hyper says what it says, and all of them end without force.
#[test]
fn malformed_http2_ends_in_the_drain() {
    let rows = malformed_http2();
    let rows: Vec<_> = rows
        .iter()
        .map(|(what, frames)| spoken(what, frames))
        .collect();
    let pieces: Vec<_> = rows.iter().map(|row| (&row[..0], &row[..])).collect();
    let (_, report) = in_the_drain(&pieces, Side::Ours2);
    assert_eq!(
        (report.forced, report.connections()),
        (0, rows.len()),
        "{report}"
    );
    let (_, report) = in_the_drain(&pieces, Side::Ours);
    assert_eq!(
        (report.forced, report.connections()),
        (0, rows.len()),
        "{report}"
    );
}

/// What each client hears, which has said the first part and a byte of the second before the drain, and the rest in it.
fn in_the_drain(
    rows: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)],
    side: Side,
) -> (Vec<Vec<u8>>, Report) {
    const BOUND: Duration = Duration::from_secs(20);
    // Longer than who owes the rest of a head may be silent.
    const SILENT: Duration = Duration::from_secs(2);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let terminator = Terminator::builder()
            .grace_period(BOUND)
            // Line ends alone are no head, and who has sent none is idle.
            .settle(Duration::from_secs(1))
            .stall_timeout(Duration::from_millis(500))
            .build();
        let mut listener = terminator.listen(listener);
        tokio::spawn(async move {
            while let Some((io, _)) = listener.accept().await {
                tokio::spawn(serve_tracked(side, io));
            }
        });
        let mut clients = Vec::new();
        for (before, odd) in rows {
            let mut client = TcpStream::connect(addr).await.expect("it listens");
            client.set_nodelay(true).expect("a TCP option");
            let (before, odd) = (before.as_ref(), odd.as_ref());
            let written = client.write_all(&[before, &odd[..1]].concat()).await;
            written.expect("nothing was said yet");
            let mut heard = Vec::new();
            let begun = heard_of(&mut client, &mut heard, answer_to_get(before));
            timeout(BOUND, begun).await.expect("an answer to the GET");
            clients.push((client, heard));
        }
        let accepted = async {
            while terminator.stats().accepted < clients.len() as u64 {
                tokio::task::yield_now().await;
            }
        };
        timeout(BOUND, accepted).await.expect("all are accepted");
        let ended = terminator.terminate();
        let rests = clients
            .into_iter()
            .zip(rows)
            .map(|((mut client, mut heard), row)| {
                let rest = row.1.as_ref()[1..].to_vec();
                async move {
                    // It may be closed before it has said all.
                    let _ = client.write_all(&rest).await;
                    let all = heard_of(&mut client, &mut heard, usize::MAX);
                    if timeout(SILENT, all).await.is_err() {
                        // An upload without an end is waited for until the deadline.
                        let _ = client.shutdown().await;
                        heard_of(&mut client, &mut heard, usize::MAX).await;
                    }
                    heard
                }
            });
        let heard = timeout(BOUND, join_all(rests)).await;
        (heard.expect("all of them end"), ended.await)
    })
}

/// Reads so much, or until the end.
async fn heard_of(client: &mut TcpStream, heard: &mut Vec<u8>, n: usize) {
    let mut part = [0; 4096];
    while heard.len() < n {
        match client.read(&mut part).await {
            Ok(n) if n > 0 => heard.extend_from_slice(&part[..n]),
            _ => break,
        }
    }
}

async fn serve_tracked(side: Side, io: TrackedIo<TcpStream>) {
    let builder = match side {
        Side::Ours1 => HttpBuilder::default().http1_only(),
        Side::Ours2 => HttpBuilder::default().http2_only(),
        _ => HttpBuilder::default(),
    };
    let _ = io
        .connection()
        .serve(&builder, io, service_fn(answer))
        .await;
}

/// All that comes while these are said one after the other, and when there is no more.
async fn hear(side: Side, pieces: &[&[u8]]) -> Vec<u8> {
    let (mut client, server) = duplex(1 << 20);
    let connection = tokio::spawn(serve(side, server));
    let (mut heard, mut ended) = (Vec::new(), false);
    for piece in pieces {
        let _ = client.write_all(piece).await;
        heard.extend(read_bytes(&mut client, &mut ended, 40).await);
    }
    let _ = client.shutdown().await;
    heard.extend(read_bytes(&mut client, &mut ended, 40).await);
    connection.abort();
    heard
}

/// How many bytes the answer to [`GET`] has.
fn answer_to_get(before: impl AsRef<[u8]>) -> usize {
    static ANSWER: LazyLock<usize> = LazyLock::new(|| {
        let heard = runtime().block_on(hear(Side::BareHttp1, &[GET.as_bytes()]));
        heard.len()
    });
    if before.as_ref().is_empty() {
        0
    } else {
        *ANSWER
    }
}

/// The first response of some bytes, with all interim ones, and what is behind it.
#[derive(Debug, Default)]
struct Answered {
    /// Without `connection`.
    head: Vec<String>,
    body: String,
    rest: String,
    closes: bool,
}

impl Answered {
    fn first(request: &str, mut bytes: &[u8]) -> Self {
        let mut answered = Self::default();
        loop {
            let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else {
                answered.rest = bytes.escape_ascii().to_string();
                return answered;
            };
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            bytes = &bytes[end + 4..];
            let mut length = None;
            for line in head.split("\r\n") {
                let line = line.to_ascii_lowercase();
                if let Some(options) = line.strip_prefix("connection: ") {
                    answered.closes |= options == "close";
                    continue;
                }
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = Some(value.parse().expect("a length"));
                }
                if !line.starts_with("date: ") {
                    answered.head.push(line);
                }
            }
            if head.starts_with("HTTP/1.1 100") {
                continue;
            }
            let length = if request.starts_with("HEAD") {
                Some(0)
            } else {
                length
            };
            let (body, rest) = bytes.split_at(length.unwrap_or(bytes.len()).min(bytes.len()));
            answered.body = body.escape_ascii().to_string();
            answered.rest = rest.escape_ascii().to_string();
            // A tunnel has no next request, and HTTP/1.0 closes by itself.
            answered.closes |= request.starts_with("CONNECT") || head.starts_with("HTTP/1.0");
            return answered;
        }
    }
}

// ===== at random =====

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("short");
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A request of HTTP/2: method and path by HPACK's static table and plain literals (RFC 7541).
fn headers(draw: &mut Draw) -> Vec<u8> {
    let path = *draw.pick(&["/a", "/early", "/part", "/later", "/kept"]);
    let mut block = vec![*draw.pick(&[0x82, 0x83]), 0x86, 0x04];
    block.push(u8::try_from(path.len()).expect("short"));
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(&[0x01, 1, b'a']);
    if draw.one_in(4) {
        block.extend_from_slice(b"\x00\x01x\x01y");
    }
    if draw.one_in(12) {
        block.truncate(usize::try_from(draw.below(9)).expect("small"));
    }
    block
}

fn random_http2(draw: &mut Draw) -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    frame(&mut out, 4, 0, 0, &[]);
    let mut stream = 1;
    for _ in 0..draw.below(8) {
        let known = 1 + 2 * u32::try_from(draw.below(4)).expect("small");
        let some = vec![7; usize::try_from(draw.below(12)).expect("small")];
        match draw.below(14) {
            0..=4 => {
                let block = headers(draw);
                if draw.one_in(4) {
                    let (begun, rest) = block.split_at(block.len() / 2);
                    let end = u8::from(draw.one_in(2));
                    frame(&mut out, 1, end, stream, begun);
                    frame(&mut out, 9, 4, stream, rest);
                } else {
                    frame(&mut out, 1, *draw.pick(&[4, 5, 5, 5]), stream, &block);
                }
                stream += 2;
            }
            5 | 6 => frame(&mut out, 0, *draw.pick(&[0, 1, 1, 8]), known, &some),
            7 => frame(&mut out, 3, 0, known, &[0, 0, 0, 8]),
            8 => frame(&mut out, 6, *draw.pick(&[0, 1]), 0, &[1; 8]),
            9 => {
                let to = *draw.pick(&[0, known]);
                frame(&mut out, 8, 0, to, &[0, 0, *draw.pick(&[0, 1]), 0]);
            }
            10 => frame(&mut out, 2, 0, known, &[0, 0, 0, 0, 16]),
            11 => frame(&mut out, 4, *draw.pick(&[0, 1]), 0, &[]),
            12 => frame(&mut out, 7, 0, 0, &[0; 8]),
            _ => {
                let (kind, flags) = (draw.below(12), draw.below(256));
                let (kind, flags) = (u8::try_from(kind), u8::try_from(flags));
                frame(
                    &mut out,
                    kind.unwrap_or(0),
                    flags.unwrap_or(0),
                    known,
                    &some,
                );
            }
        }
    }
    out
}

fn random_http1(draw: &mut Draw) -> Vec<u8> {
    let mut out = String::new();
    for _ in 0..=draw.below(4) {
        if draw.one_in(3) {
            let more = *draw.pick(ODD);
            out.push_str(more);
            continue;
        }
        let method = *draw.pick(&["GET", "GET", "POST", "PUT", "HEAD", "DELETE"]);
        let path = *draw.pick(&["/a", "/a", "/early", "/part", "/later", "/kept"]);
        let version = *draw.pick(&["1.1", "1.1", "1.1", "1.0"]);
        let line = *draw.pick(&["\r\n", "\r\n", "\r\n", "\n"]);
        let _ = write!(out, "{method} {path} HTTP/{version}{line}host: a{line}");
        if draw.one_in(8) {
            let connection = *draw.pick(&["close", "keep-alive", "upgrade"]);
            let _ = write!(out, "connection: {connection}{line}");
        }
        let n = draw.below(30);
        let body = "b".repeat(usize::try_from(n).expect("small"));
        match draw.below(4) {
            0 => {
                let _ = write!(out, "content-length: {n}{line}{line}{body}");
            }
            1 => {
                let _ = write!(out, "transfer-encoding: chunked{line}{line}");
                if n > 0 {
                    let _ = write!(out, "{n:x}\r\n{body}\r\n");
                }
                let more = *draw.pick(&[
                    "0\r\n\r\n",
                    "0\r\n\r\n",
                    "0\r\na: b\r\n\r\n",
                    "2\r\nxx\r\n0\r\n\r\n",
                ]);
                out.push_str(more);
            }
            _ => out.push_str(line),
        }
        if draw.one_in(6) {
            let more = *draw.pick(&["\r\n", "\n", "\r"]);
            out.push_str(more);
        }
    }
    out.into_bytes()
}

fn said(seed: u64) -> Said {
    let mut draw = Draw::new(seed);
    let mut bytes = if draw.one_in(3) {
        random_http2(&mut draw)
    } else {
        random_http1(&mut draw)
    };
    for _ in 0..draw.below(3) * draw.below(2) {
        let at = usize::try_from(draw.below(bytes.len() as u64)).expect("an index");
        let byte = u8::try_from(draw.below(256)).expect("a byte");
        match draw.below(4) {
            0 if at < bytes.len() => bytes[at] = byte,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, byte),
        }
    }
    let mut pieces = Vec::new();
    let most = *draw.pick(&[4, 30, 200, 100_000]);
    while !bytes.is_empty() {
        let n = usize::try_from(1 + draw.below(most))
            .expect("small")
            .min(bytes.len());
        pieces.push(bytes.drain(..n).collect());
    }
    Said {
        pieces,
        half_closes: draw.one_in(2),
    }
}

#[test]
fn random_input_is_answered_as_by_hyper() {
    let number = |name| {
        env::var(name)
            .ok()
            .map(|n: String| n.parse().expect("a number"))
    };
    let (from, runs) = match number("SAME_SEED") {
        Some(seed) => (seed, 1),
        None => (
            number("SAME_FROM").unwrap_or(0),
            number("SAME_RUNS").unwrap_or(1_500),
        ),
    };
    for seed in from..from + runs {
        compare(&format!("seed {seed}"), &said(seed));
    }
}
