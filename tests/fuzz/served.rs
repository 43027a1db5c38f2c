//! Bytes into a served connection, which is ended at some moment, beside what bare hyper says to the same bytes in the same
//! pieces.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::time::sleep;

use super::answers::{self, Answer, Ends};
use super::input::Input;
use crate::serve::Listener;
use crate::sim::net::{SimStream, listen};
use crate::sim::{in_virtual_time, now, server};
use crate::{Connection, HttpBuilder, IdlePolicy, Phase, Terminator};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Either,
    Http1,
    Http2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    None,
    Terminate,
    Within(u64),
    Force,
    Alone,
    ForceAlone,
}

/// In milliseconds.
#[derive(Debug)]
struct Plan {
    version: Version,
    /// By hyper-util's builder instead of ours.
    by_auto: bool,
    pieces: Vec<Vec<u8>>,
    half_closes: bool,
    call: Call,
    /// Ahead of which piece.
    moment: usize,
    grace: u64,
    lame_duck: u64,
    settle: u64,
    idle: IdlePolicy,
    answers_late: bool,
    room: usize,
}

/// Longer than a client takes for all of its pieces.
const STALL: u64 = 150;
const HEAD: u64 = 200;

/// From the deadline to the last byte (G10).
const CUT: u64 = 150;

/// So much later the handlers are done, and all that a peer may still owe is given up.
const LONG: u64 = 1_000;

const MOST_PIECES: usize = 8;

impl Plan {
    fn of(data: &[u8]) -> Self {
        let mut input = Input::new(data);
        let ms = Duration::from_millis;
        let version = input.pick(&[Version::Either, Version::Http1, Version::Http2]);
        let by_auto = input.one_in(2) && version != Version::Http2;
        let half_closes = input.one_in(2);
        let call = match input.below(8) {
            0 => Call::None,
            1 => Call::Within(input.below(200) as u64),
            2 => Call::Force,
            3 => Call::Alone,
            4 => Call::ForceAlone,
            _ => Call::Terminate,
        };
        let moment = input.below(MOST_PIECES + 1);
        let grace = input.pick(&[600, 0, 3, 30, 200]);
        let lame_duck = input.pick(&[0, 0, 0, 4]);
        let settle = input.pick(&[25, 25, 0, 3]);
        let idle = match input.below(6) {
            0 => IdlePolicy::LastRequest { wait: ms(50) },
            1 => IdlePolicy::Spread { over: ms(50) },
            _ => IdlePolicy::Immediate,
        };
        let answers_late = !input.one_in(4);
        let room = input.pick(&[1 << 20, 1 << 20, 100]);
        let cuts: Vec<_> = (0..input.below(MOST_PIECES))
            .map(|_| 1 + input.below(256))
            .collect();
        let mut rest = Input::new(input.rest());
        let mut pieces: Vec<_> = cuts.iter().map(|n| rest.take(*n).to_vec()).collect();
        pieces.push(rest.rest().to_vec());
        // What is written has some.
        pieces.retain(|piece| !piece.is_empty());
        Self {
            version,
            by_auto,
            moment: moment.min(pieces.len()),
            pieces,
            half_closes,
            call,
            grace,
            lame_duck,
            settle,
            idle,
            answers_late,
            room,
        }
    }

    fn terminator(&self) -> Terminator {
        let ms = Duration::from_millis;
        Terminator::builder()
            .grace_period(ms(self.grace))
            .lame_duck(ms(self.lame_duck))
            .settle(ms(self.settle))
            .stall_timeout(ms(STALL))
            .head_timeout(ms(HEAD))
            .answer_at_deadline(self.answers_late)
            .idle(self.idle)
            .build_stepped()
    }

    fn speaks_http2(&self) -> bool {
        let all = self.pieces.concat();
        self.version == Version::Http2
            || self.version == Version::Either
                && all.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    }
}

// ===== what is served =====

type Said = Response<BoxBody<Bytes, Infallible>>;

/// Says what it was asked, having read the body, part of it, or nothing.
async fn answer(request: Request<Incoming>, calls: Arc<AtomicUsize>) -> Result<Said, Infallible> {
    calls.fetch_add(1, SeqCst);
    let (head, mut body) = request.into_parts();
    let mut said = format!("{} {} {:?}", head.method, head.uri, head.version);
    // Or a second that passes would make a difference.
    let mut answer = Response::builder().header("date", "today, GMT");
    if head.method == Method::HEAD {
        answer = answer.header("x-head", "1");
    }
    if head.method == Method::CONNECT {
        answer = answer.status(StatusCode::METHOD_NOT_ALLOWED);
    }
    let mut in_parts = false;
    match head.uri.path() {
        "/e" => {
            drop(body);
            answer = answer.status(StatusCode::PAYLOAD_TOO_LARGE);
        }
        "/p" => {
            let part = body.frame().await;
            let part = part.map(|it| it.map(|it| it.data_ref().map(Bytes::len)).ok());
            let _ = write!(said, " {part:?}");
        }
        "/l" => {
            sleep(Duration::from_millis(3)).await;
            let read = body.collect().await;
            let read = read.map(|it| it.to_bytes().len()).ok();
            let _ = write!(said, " {read:?}");
        }
        "/k" => {
            // By somebody who does not read it, for a while.
            tokio::spawn(async move {
                sleep(Duration::from_millis(20)).await;
                drop(body);
            });
        }
        "/h" => std::future::pending().await,
        "/c" => in_parts = true,
        "/b" => said.push_str(&"b".repeat(5_000)),
        _ => match body.collect().await {
            Ok(read) => {
                let trailers = read.trailers().map(http::HeaderMap::len);
                let _ = write!(said, " {} {trailers:?}", read.to_bytes().len());
            }
            Err(_) => said.push_str(" broken"),
        },
    }
    let body = if in_parts {
        let parts = stream::unfold(0, |done| async move {
            sleep(Duration::from_millis(2)).await;
            (done < 3).then(|| (Ok(Frame::data(Bytes::from_static(b"part"))), done + 1))
        });
        StreamBody::new(parts).boxed()
    } else {
        Full::new(said.into()).boxed()
    };
    Ok(answer.body(body).expect("a response"))
}

/// By hyper alone.
async fn serve_bare<Io>(version: Version, by_auto: bool, io: Io) -> bool
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| answer(request, Arc::default()));
    let io = TokioIo::new(io);
    match version {
        Version::Either => {
            let builder = auto::Builder::new(TokioExecutor::new());
            let served = builder.serve_connection_with_upgrades(io, service);
            served.await.is_err()
        }
        Version::Http1 if by_auto => {
            let builder = auto::Builder::new(TokioExecutor::new()).http1_only();
            let served = builder.serve_connection_with_upgrades(io, service);
            served.await.is_err()
        }
        Version::Http1 => {
            let served = http1::Builder::new().serve_connection(io, service);
            served.with_upgrades().await.is_err()
        }
        Version::Http2 => {
            let builder = http2::Builder::new(TokioExecutor::new());
            builder.serve_connection(io, service).await.is_err()
        }
    }
}

fn serve_ours(
    plan: &Plan,
    terminator: &Terminator,
    io: SimStream,
    calls: &Arc<AtomicUsize>,
) -> Connection {
    let io = terminator.track(io);
    let connection = io.connection();
    let calls = Arc::clone(calls);
    let service = service_fn(move |request| answer(request, Arc::clone(&calls)));
    if plan.by_auto {
        let builder = auto::Builder::new(TokioExecutor::new());
        let builder = match plan.version {
            Version::Either => builder,
            Version::Http1 => builder.http1_only(),
            Version::Http2 => builder.http2_only(),
        };
        tokio::spawn(connection.serve(&builder, io, service));
    } else {
        let builder = match plan.version {
            Version::Either => HttpBuilder::default(),
            Version::Http1 => HttpBuilder::default().http1_only(),
            Version::Http2 => HttpBuilder::default().http2_only(),
        };
        tokio::spawn(connection.serve(&builder, io, service));
    }
    connection
}

// ===== what is heard =====

/// What the client read behind each piece, behind all, and behind its end.
#[derive(Debug, Default)]
struct Heard {
    after: Vec<Vec<u8>>,
    ends: Option<Ends>,
    /// hyper gave it up, which is said by nobody before it is closed.
    failed: bool,
    panicked: bool,
}

impl Heard {
    fn all(&self) -> Vec<u8> {
        self.after.concat()
    }

    /// Reads until nothing has come for so many ms, that is until nobody has anything to do.
    async fn read<Io: AsyncRead + Unpin>(&mut self, io: &mut Io, ms: u64) {
        let mut all = Vec::new();
        let mut part = [0; 4096];
        while self.ends.is_none() {
            tokio::select! {
                biased;
                n = io.read(&mut part) => match n {
                    Ok(0) => self.ends = Some(Ends::End),
                    Ok(n) => all.extend_from_slice(&part[..n]),
                    Err(_) => self.ends = Some(Ends::Reset),
                },
                () = sleep(Duration::from_millis(ms)) => break,
            }
        }
        self.after.push(all);
    }
}

async fn talk<Io>(plan: &Plan, mut client: Io, mut ahead: impl FnMut(usize, usize)) -> Heard
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut heard = Heard::default();
    let mut is_stuck = false;
    for (n, piece) in plan.pieces.iter().enumerate() {
        ahead(n, n);
        // Who has closed is told nothing more; who does not read is not waited for.
        let is_sent = tokio::select! {
            biased;
            _ = client.write_all(piece) => true,
            () = sleep(Duration::from_millis(1)) => false,
        };
        heard.read(&mut client, 1).await;
        if !is_sent {
            is_stuck = true;
            break;
        }
    }
    // Or what was to come ahead of a later one would not.
    ahead(plan.pieces.len(), heard.after.len());
    heard.read(&mut client, 30).await;
    if plan.half_closes && !is_stuck {
        let _ = client.shutdown().await;
        heard.read(&mut client, 30).await;
    }
    if plan.call != Call::None {
        // For as long as it takes.
        heard.read(&mut client, LONG).await;
    }
    heard
}

fn bare(plan: &Plan, version: Version, by_auto: bool) -> Heard {
    in_virtual_time(async {
        let (client, server) = duplex(plan.room);
        let task = tokio::spawn(serve_bare(version, by_auto, server));
        let mut heard = talk(plan, client, |_, _| {}).await;
        if task.is_finished() {
            // A debug build of hyper panics where it says 400 within another answer: see `is_torn`.
            let failed = task.await;
            heard.panicked = failed.is_err();
            heard.failed = failed.unwrap_or(true);
        } else {
            task.abort();
        }
        heard
    })
}

/// What we have said, and when.
#[derive(Debug)]
struct Ours {
    heard: Heard,
    /// How many requests were called by the moment.
    calls: usize,
    /// How often the client had read, and how many were called in all.
    before: usize,
    all_calls: usize,
    at: u64,
    deadline: u64,
    ended: u64,
    report: String,
}

fn ours(plan: &Plan) -> Ours {
    in_virtual_time(async {
        let terminator = plan.terminator();
        let driver = tokio::spawn(server::drive(terminator.clone()));
        let keeper = tokio::spawn({
            let terminator = terminator.clone();
            async move {
                loop {
                    server::care(&terminator);
                    sleep(Duration::from_millis(1)).await;
                }
            }
        });
        let (mut listener, dial) = listen(0, false);
        let client = dial.connect(0, plan.room).expect("it listens");
        let (io, ()) = listener
            .accept_queued()
            .expect("no errors")
            .expect("it is there");
        let calls = Arc::new(AtomicUsize::new(0));
        let connection = serve_ours(plan, &terminator, io, &calls);
        assert_eq!(terminator.stats().connections, 1);
        let (mut called, mut deadline, mut at, mut ended_it) = (0, u64::MAX, 0, false);
        let mut before = 0;
        let heard = talk(plan, client, |n, read| {
            if n < plan.moment || std::mem::replace(&mut ended_it, true) {
                return;
            }
            at = now();
            before = read;
            called = calls.load(SeqCst);
            match plan.call {
                Call::None => {}
                Call::Terminate => {
                    deadline = now() + plan.lame_duck + plan.grace;
                    drop(terminator.terminate());
                }
                Call::Within(ms) => {
                    deadline = now() + plan.lame_duck + ms;
                    drop(terminator.terminate_within(Duration::from_millis(ms)));
                }
                Call::Force => {
                    deadline = now();
                    drop(terminator.force());
                }
                Call::Alone => connection.terminate(),
                Call::ForceAlone => {
                    deadline = now();
                    connection.force();
                }
            }
        })
        .await;
        let ended = now();
        let report = terminator.force().await;
        let stats = terminator.stats();
        assert_eq!(terminator.phase(), Phase::Terminated);
        assert!(report.connections() <= 1, "{report}");
        assert_eq!(
            (stats.connections, stats.requests, stats.listeners),
            (0, 0, 0),
            "{stats:?}, {report}"
        );
        drop((driver, keeper));
        Ours {
            heard,
            calls: called,
            before,
            all_calls: calls.load(SeqCst),
            at,
            deadline,
            ended,
            report: report.to_string(),
        }
    })
}

// ===== and compared =====

pub(crate) fn served(data: &[u8]) {
    let plan = Plan::of(data);
    if plan.pieces.is_empty() {
        return;
    }
    let ours = ours(&plan);
    let mut wrong = compare(&plan, &ours, &bare(&plan, plan.version, false));
    let begins = &plan.pieces[0];
    if plan.version == Version::Either && wrong.is_err() && !PREFACE.starts_with(begins) {
        // hyper itself says what is wrong with a head that hyper-util gives it in two parts.
        wrong = compare(&plan, &ours, &bare(&plan, Version::Http1, false));
    }
    if plan.version == Version::Http1 && plan.by_auto && wrong.is_err() {
        // It looks for the version all the same, and then gives a head in two parts.
        wrong = compare(&plan, &ours, &bare(&plan, Version::Http1, true));
    }
    if let Err(what) = wrong {
        let said: Vec<_> = plan
            .pieces
            .iter()
            .map(|it| it.escape_ascii().to_string())
            .collect();
        let heard = |heard: &Heard| -> Vec<_> {
            heard
                .after
                .iter()
                .map(|it| it.escape_ascii().to_string())
                .collect()
        };
        panic!(
            "{what}\n{plan:#?}\nsaid {said:#?}\nours {:#?}\n{:?}, called {}, at {}, deadline {}, ended {}: {}\nbare {:#?}",
            heard(&ours.heard),
            ours.heard.ends,
            ours.calls,
            ours.at,
            ours.deadline,
            ours.ended,
            ours.report,
            heard(&bare(&plan, plan.version, false)),
        );
    }
}

fn compare(plan: &Plan, ours: &Ours, bare: &Heard) -> Result<(), String> {
    // Nor does hyper say so where an upgrade was asked for.
    let breaks_off = || {
        let answers = answers::of(&bare.all(), bare.ends);
        !plan.speaks_http2() && answers.last().is_some_and(|it| !it.whole)
    };
    let is_reset = ours.heard.ends == Some(Ends::Reset);
    if bare.panicked || is_reset && (bare.failed || breaks_off()) {
        // What we had not read destroys what the client has not.
        return ends_in_time(plan, ours);
    }
    if is_torn(&ours.heard) || is_torn(bare) {
        return ends_in_time(plan, ours);
    }
    // While serving it is the same, byte for byte.
    let serving = if plan.call == Call::None {
        ours.heard.after.len()
    } else {
        ours.before
    };
    for (n, (got, expected)) in ours
        .heard
        .after
        .iter()
        .zip(&bare.after)
        .take(serving)
        .enumerate()
    {
        // A client that has said GOAWAY, and sends on, is closed by hyper over what it does not read: that may be a reset.
        if plan.speaks_http2() && ours.heard.ends == Some(Ends::Reset) && got.is_empty() {
            break;
        }
        let (got, expected) = (without_date(got), without_date(expected));
        // Behind a body that nobody reads hyper goes on if the rest of it is there, which in a narrow pipe is a matter of turns.
        if plan.room == 100 && got.len() > expected.len() && got.starts_with(&expected) {
            return ends_in_time(plan, ours);
        }
        if got != expected {
            return Err(format!("another answer to piece {n}, while serving"));
        }
    }
    if plan.call == Call::None {
        return lives_as_long(plan, ours, bare);
    }
    ends_in_time(plan, ours)?;
    if plan.speaks_http2() {
        same_streams(plan, ours, bare)
    } else {
        same_answers(plan, ours, bare)
    }
}

/// hyper says 400 ahead of what it holds of the answer before, when it could not write that; where, depends on the room.
fn is_torn(heard: &Heard) -> bool {
    let bad = b" 400 Bad Request\r\n";
    let all = heard.all();
    let said = all.windows(bad.len()).filter(|part| part == bad).count();
    let answers = answers::of(&all, heard.ends);
    said > answers.iter().filter(|it| it.status == 400).count()
}

/// While serving nobody ends what hyper goes on with. In a narrow pipe hyper may be stuck where we are not.
fn lives_as_long(plan: &Plan, ours: &Ours, bare: &Heard) -> Result<(), String> {
    if ours.heard.ends.is_some() && bare.ends.is_none() && plan.room != 100 {
        return Err(format!("{:?} while serving, not hyper's", ours.heard.ends));
    }
    Ok(())
}

fn ends_in_time(plan: &Plan, ours: &Ours) -> Result<(), String> {
    if plan.call == Call::None {
        // While serving nobody has asked for an end.
        return Ok(());
    }
    // Alone it has no deadline: what is in hand may take as long as it likes.
    let all = ours.heard.all();
    let answers = if plan.speaks_http2() {
        answers::streams(&all)
            .values()
            .filter(|it| it.ended)
            .count()
    } else {
        let answers = answers::of(&all, None);
        answers
            .iter()
            .filter(|it| it.status >= 200 && it.whole)
            .count()
    };
    let in_hand = plan.call == Call::Alone && answers < ours.all_calls;
    if ours.heard.ends.is_none() && !in_hand {
        return Err("no end".to_owned());
    }
    let deadline = ours.deadline.saturating_add(CUT + 1);
    if ours.ended > deadline {
        return Err(format!("ended at {}, after {deadline}", ours.ended));
    }
    Ok(())
}

/// Whether what is in hand at the moment has the time that it takes.
fn has_time(plan: &Plan, ours: &Ours) -> bool {
    let force = matches!(plan.call, Call::Force | Call::ForceAlone);
    !force && ours.deadline > ours.at + 100
}

fn same_answers(plan: &Plan, ours: &Ours, bare: &Heard) -> Result<(), String> {
    let got = answers::of(&ours.heard.all(), ours.heard.ends);
    let expected = answers::of(&bare.all(), bare.ends);
    let is_forced = !has_time(plan, ours);
    for (n, answer) in got.iter().enumerate() {
        let is_late = ours.ended + 5 >= ours.deadline && n + 1 == got.len();
        if answer.status == 503 && is_late && plan.answers_late {
            continue;
        }
        let Some(same) = expected.get(n) else {
            return Err(format!("answer {n} is none of hyper's: {answer:?}"));
        };
        if !answer.whole {
            // What is cut is known to be.
            let tells = ours.heard.ends == Some(Ends::Reset) || !answer.by_close;
            if is_late && tells || !same.whole {
                continue;
            }
            return Err(format!("answer {n} is cut: {answer:?}"));
        }
        if (answer.status, &answer.head, &answer.body) != (same.status, &same.head, &same.body) {
            return Err(format!("answer {n} is another: {answer:?} and {same:?}"));
        }
    }
    if is_forced {
        return Ok(());
    }
    let is_final = |answer: &&Answer| answer.status >= 200;
    let finals = |answers: &[Answer]| answers.iter().filter(is_final).count();
    let whole = finals(&got);
    // hyper ends a connection in the middle of an answer when the body of its request goes wrong.
    let expected = expected
        .iter()
        .filter(is_final)
        .filter(|it| it.whole)
        .count();
    let least = ours.calls.min(expected);
    if whole < least {
        return Err(format!("{whole} answers, {least} were called in time"));
    }
    // One more, which begins in no time: somebody is quiet for 25 ms before that is the end (G2).
    let before = finals(&answers::of(
        &ours.heard.after[..ours.before].concat(),
        None,
    ));
    let is_prompt = plan.settle == 25 && !matches!(plan.idle, IdlePolicy::Spread { .. });
    let told_before = got[..]
        .iter()
        .filter(is_final)
        .take(before)
        .any(|it| it.closes);
    // Where little fits on its way, what a client has yet to send of one piece crosses the close, and destroys what it has not
    // read.
    let crosses = plan.room == 100 && ours.heard.ends == Some(Ends::Reset);
    if is_prompt && !told_before && !crosses && whole < expected.min(before + 1) {
        return Err(format!("{whole} answers, and {before} of them before"));
    }
    let next = got.iter().filter(is_final).nth(before);
    if let Some(next) = next.filter(|_| is_prompt && plan.room > 100 && plan.lame_duck == 0) {
        // Its head may have gone out before.
        let is_streamed = next.chunked || next.by_close;
        if !next.closes && !next.http10 && !is_streamed {
            return Err(format!("does not say close: {next:?}"));
        }
    }
    Ok(())
}

fn same_streams(plan: &Plan, ours: &Ours, bare: &Heard) -> Result<(), String> {
    let got = answers::streams(&ours.heard.all());
    let expected = answers::streams(&bare.all());
    let is_forced = !has_time(plan, ours);
    let fails = answers::fails(&bare.all());
    for (id, stream) in &got {
        let Some(same) = expected.get(id) else {
            // At an error of the connection hyper does not write what it has yet to write. What comes here in more reads it may
            // have answered, or refused, before it reads of that.
            if fails {
                continue;
            }
            return Err(format!("hyper has no stream {id}: {stream:?}"));
        };
        if stream.ended && same.ended && stream.body != same.body {
            return Err(format!("stream {id} is another: {stream:?} and {same:?}"));
        }
        if !stream.ended
            && same.ended
            && stream.begun
            && !is_forced
            && ours.ended + 5 < ours.deadline
        {
            return Err(format!("stream {id} is cut: {stream:?}"));
        }
    }
    let ended = |streams: &answers::Streams| streams.values().filter(|it| it.ended).count();
    let least = ours.calls.min(ended(&expected));
    if ended(&got) < least && !is_forced {
        return Err(format!(
            "{} answers, {least} were called in time",
            ended(&got)
        ));
    }
    Ok(())
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// hyper's own is the system's.
fn without_date(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let mut from = 0;
    while let Some(at) = out[from..].windows(6).position(|it| it == b"date: ") {
        let at = from + at;
        let end = out[at..].windows(3).position(|it| it == b"GMT");
        let end = end.map_or(out.len(), |end| at + end + 3);
        out.drain(at..end);
        from = at;
    }
    out
}
