//! While serving, a client that sends whatever it likes gets from us what it gets from bare hyper: the same bytes after each
//! piece, and the same end.
//!
//! A table of odd and malformed input, and as many random ones as are asked for:
//! `SAME_RUNS=1000000 cargo test --release --all-features --test same_answers`. `SAME_SEED=7` repeats one of them.
#![cfg(feature = "serve")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests spawn, and this one has a clock of its own"
)]

use std::convert::Infallible;
use std::env;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::sleep;

use draw::Draw;
use http_terminator::{HttpBuilder, Terminator};

#[path = "sim/draw.rs"]
mod draw;

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
    without_date(&all)
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
        let mut expected = runtime.block_on(talk(bare, said));
        for side in ours {
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
            if bare == Side::Bare && got != expected && !PREFACE.starts_with(&said.pieces[0]) {
                // hyper itself says what is wrong with a head that hyper-util gives it in two parts.
                expected = runtime.block_on(talk(Side::BareHttp1, said));
                expected.well = got.well;
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
];

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
