//! Clients that ask again as soon as they have an answer, or at a pace, and count what they lose.
//!
//! *Lost* is a request that was written on a connection which had not said that it will close, had not been
//! closed as far as its client could see, and got no whole answer. *Late* is one that was lost so when its
//! client, or the machine, had let the connection be quiet for as long as the server may close it after: the two may
//! do so at one moment, for which nobody is to blame. *Retried* is what a server has refused such that it may be sent again: by GOAWAY
//! (RFC 9113 section 6.8), or pipelined behind a response that says close (RFC 9112 section 9.6).

use std::fmt;
use std::io::{self, ErrorKind};
use std::iter::Sum;
use std::ops::Add;
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use http::StatusCode;

use super::{
    BOUND, H2Client, RawClient, ReadEnd, Target, blocking, client_hello, h2_finish, h2_try_connect,
    tls_client, within,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    Http2,
}

impl Speaks {
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];
}

/// What a client waits for between an answer and the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nothing.
    AtOnce,
    /// Nothing, with so many requests at a time: HTTP/1 only.
    Pipelined(usize),
    /// Nothing, but each request comes in two pieces, up to so many milliseconds apart, over TLS in pieces of records:
    /// HTTP/1 only.
    InPieces(u64),
    Every(u64),
    /// Up to so many milliseconds, evenly.
    Random(u64),
}

impl Pace {
    pub const PACED: [Self; 5] = [
        Self::Every(1),
        Self::Every(5),
        Self::Every(20),
        Self::Every(40),
        Self::Random(60),
    ];

    fn pause(self, random: &mut Random) -> Duration {
        match self {
            Self::AtOnce | Self::Pipelined(_) | Self::InPieces(_) => Duration::ZERO,
            Self::Every(ms) => Duration::from_millis(ms),
            Self::Random(ms) => Duration::from_micros(random.below(ms * 1000)),
        }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtOnce => write!(f, "closed loop"),
            Self::Pipelined(n) => write!(f, "pipelined by {n}"),
            Self::InPieces(ms) => write!(f, "pieces, 0-{ms} ms apart"),
            Self::Every(ms) => write!(f, "every {ms} ms"),
            Self::Random(ms) => write!(f, "0-{ms} ms"),
        }
    }
}

/// What one client does, until when.
#[derive(Clone, Debug)]
pub struct Load {
    pub target: Target,
    pub speaks: Speaks,
    pub pace: Pace,
    pub until: Instant,
    /// For how long at least a connection has to be quiet before the server may close it.
    pub quiet: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// With an answer.
    pub requests: usize,
    pub connections: usize,
    pub lost: usize,
    pub late: usize,
    pub retried: usize,
    /// Clients that ended because nobody listened any more.
    pub refused: usize,
    /// Of some that were lost, or late.
    pub why: Vec<String>,
}

impl Tally {
    pub fn lose(&mut self, is_late: bool, why: String) {
        if is_late {
            self.late += 1;
        } else {
            self.lost += 1;
        }
        self.why.push(why);
    }

    /// False when nobody listens any more.
    fn could_not_connect(&mut self, error: &io::Error, after: Duration, quiet: Duration) -> bool {
        let refused = error.kind() == ErrorKind::ConnectionRefused;
        if refused {
            self.refused += 1;
        } else {
            // Of a handshake.
            self.lose(after >= quiet, format!("connecting, {after:?}: {error}"));
        }
        !refused
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self.requests += other.requests;
        self.connections += other.connections;
        self.lost += other.lost;
        self.late += other.late;
        self.retried += other.retried;
        self.refused += other.refused;
        self.why.extend(other.why);
        self.why.truncate(8);
        self
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), Add::add)
    }
}

/// What the clients ask for: an answer in one piece, one in pieces, one that takes its time, an echo.
pub fn routes() -> Router {
    Router::new()
        .route("/quick", get(async || "ok"))
        .route("/pieces", get(pieces))
        .route("/later", get(later))
        .route("/echo", post(async |body: Bytes| body))
}

async fn pieces() -> Body {
    // The head is out before the body has ended.
    let pieces = stream::iter(["one", "two"]).then(async |piece| {
        tokio::time::sleep(Duration::from_millis(1)).await;
        io::Result::Ok(piece)
    });
    Body::from_stream(pieces)
}

async fn later() -> &'static str {
    tokio::time::sleep(Duration::from_millis(1)).await;
    "later"
}

const PATHS: [(&str, &str); 5] = [
    ("/quick", "ok"),
    ("/pieces", "onetwo"),
    ("/quick", "ok"),
    ("/echo", "an echo"),
    ("/later", "later"),
];

/// So many clients of that kind at once.
pub async fn run(load: &Load, clients: usize) -> Tally {
    let clients = (0..clients).map(|n| {
        let load = load.clone();
        // It may be in its last request when the time is over.
        let bound = load.until.saturating_duration_since(Instant::now()) + BOUND * 3;
        let asking = tokio::spawn(async move {
            match load.speaks {
                Speaks::Http1 => blocking(move || http1(&load, n)).await,
                Speaks::Http2 => http2(&load, n).await,
            }
        });
        async move { within(bound, "a client", asking).await.expect("no panic") }
    });
    join_all(clients).await.into_iter().sum()
}

// ===== HTTP/1 =====

fn http1(load: &Load, n: usize) -> Tally {
    let mut tally = Tally::default();
    let mut random = Random::new(n);
    let mut kept: Option<RawClient> = None;
    let mut asked = 0;
    // Before which the server has not seen its connection quiet.
    let mut since = Instant::now();
    while Instant::now() < load.until && tally.why.len() < 100 {
        thread::sleep(load.pace.pause(&mut random));
        let kept_open = kept.take().filter(RawClient::is_still_open);
        let mut client = if let Some(client) = kept_open {
            client
        } else {
            since = Instant::now();
            match connect(&load.target) {
                Ok(client) => {
                    tally.connections += 1;
                    client
                }
                Err((error, spoke)) => {
                    if tally.could_not_connect(&error, spoke - since, load.quiet) {
                        continue;
                    }
                    break;
                }
            }
        };
        let before = Instant::now();
        let asked = if let Pace::Pipelined(many) = load.pace {
            pipelined(&mut client, many, &mut tally)
        } else {
            asked += 1;
            let apart = match load.pace {
                Pace::InPieces(ms) => Some((&mut random, ms)),
                _ => None,
            };
            let keep = ask(&mut client, asked + n, apart);
            tally.requests += usize::from(keep.is_ok());
            keep
        };
        match asked {
            Ok(true) => kept = Some(client),
            Ok(false) => {}
            Err(Lost { why, sent }) => {
                let quiet = sent.duration_since(since);
                tally.lose(quiet >= load.quiet, format!("after {quiet:?}: {why}"));
            }
        }
        since = before;
    }
    tally
}

/// Or why not, and when its first byte was sent.
fn connect(target: &Target) -> Result<RawClient, (io::Error, Instant)> {
    let now = |error| (error, Instant::now());
    let Target::Tls(addr) = target else {
        return RawClient::try_connect(target).map_err(now);
    };
    let mut tls = tls_client(&["http/1.1"]);
    let hello = client_hello(&mut tls);
    let mut client = RawClient::try_connect(*addr).map_err(now)?;
    client.try_send(hello).map_err(now)?;
    let spoke = Instant::now();
    match client.shake_hands(tls) {
        Ok(()) => Ok(client),
        Err(error) => Err((error, spoke)),
    }
}

pub struct Lost {
    pub why: String,
    /// When its first byte was out.
    pub sent: Instant,
}

/// Asks for one thing. Says whether the connection may be used again.
pub fn ask(
    client: &mut RawClient,
    n: usize,
    apart: Option<(&mut Random, u64)>,
) -> Result<bool, Lost> {
    let (path, body) = PATHS[n % PATHS.len()];
    let length = body.len();
    let (head, sent_body) = if path == "/echo" {
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
        (head, body)
    } else {
        (head(path), "")
    };
    // When the first of it was out: what has begun may be completed.
    let sent;
    let wrote = if let Some((random, ms)) = apart {
        let mut bytes = (head + sent_body).into_bytes();
        if client.is_tls() {
            bytes = client.encrypt(bytes);
        }
        let at = usize::try_from(random.below(bytes.len() as u64 - 1)).expect("in it") + 1;
        let wrote = client.socket().send(&bytes[..at]);
        sent = Instant::now();
        thread::sleep(Duration::from_micros(random.below(ms * 1000)));
        wrote.and_then(|_| client.socket().send(&bytes[at..]).map(drop))
    } else {
        // In two pieces, if there are two.
        let wrote = client.try_send(head);
        sent = Instant::now();
        wrote.and_then(|()| match sent_body {
            "" => Ok(()),
            body => client.try_send(body),
        })
    };
    read(client, path, body).map_err(|why| Lost {
        why: format!("{why}, sending: {wrote:?}"),
        sent,
    })
}

/// Asks for many things at once.
fn pipelined(client: &mut RawClient, many: usize, tally: &mut Tally) -> Result<bool, Lost> {
    let heads: String = (0..many).map(|_| head("/quick")).collect();
    let wrote = client.try_send(heads);
    let sent = Instant::now();
    for n in 0..many {
        let keep = read(client, "/quick", "ok").map_err(|why| Lost {
            why: format!("{why} for number {n} of {many}, sending: {wrote:?}"),
            sent,
        })?;
        tally.requests += 1;
        if !keep {
            tally.retried += many - n - 1;
            return Ok(false);
        }
    }
    Ok(true)
}

fn head(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")
}

fn read(client: &mut RawClient, path: &str, body: &str) -> Result<bool, String> {
    match client.try_read_response() {
        Ok(it) if it.status == 200 && it.body == body.as_bytes() => Ok(!it.says_close()),
        Ok(it) => Err(format!("{path}: {it:?}")),
        // An end of file in place of an answer.
        Err(end @ ReadEnd::Eof) => Err(format!("{path}: no answer, {end:?}")),
        Err(end) => Err(format!("{path}: {end:?}")),
    }
}

// ===== HTTP/2 =====

async fn http2(load: &Load, n: usize) -> Tally {
    let mut tally = Tally::default();
    let mut random = Random::new(n);
    let mut kept: Option<H2Client> = None;
    let mut asked = n;
    while Instant::now() < load.until && tally.why.len() < 100 {
        tokio::time::sleep(load.pace.pause(&mut random)).await;
        let began = Instant::now();
        let (client, is_fresh) = match kept.take().filter(|it| !it.is_closed()) {
            Some(client) => (client, false),
            None => match h2_try_connect(&load.target).await {
                Ok(client) => {
                    tally.connections += 1;
                    (client, true)
                }
                Err((error, spoke)) => {
                    if tally.could_not_connect(&error, spoke - began, load.quiet) {
                        continue;
                    }
                    break;
                }
            },
        };
        // The preface is out.
        let spoke = began.elapsed();
        // One, two or three streams at once.
        let many = 1 + asked % 3;
        let streams = (0..many).map(|stream| ask2(&client, asked + stream));
        let mut keep = true;
        for answer in join_all(streams).await {
            match answer {
                Ok(()) => tally.requests += 1,
                Err(Unanswered::Retry) => {
                    tally.retried += 1;
                    keep = false;
                }
                Err(Unanswered::Lost(why)) => {
                    // Once it has spoken it is told to go away, and can't be late.
                    let is_late = is_fresh && spoke >= load.quiet;
                    tally.lose(is_late, format!("fresh: {is_fresh}, {spoke:?}: {why}"));
                    keep = false;
                }
            }
        }
        asked += many;
        kept = keep.then_some(client);
    }
    tally
}

enum Unanswered {
    /// It was not sent, or refused.
    Retry,
    Lost(String),
}

async fn ask2(client: &H2Client, n: usize) -> Result<(), Unanswered> {
    let (path, body) = PATHS[n % PATHS.len()];
    let is_post = path == "/echo";
    let method = if is_post { "POST" } else { "GET" };
    let started = client.try_start(method, path, !is_post).await;
    // The connection is going away, and this client knows: nothing was sent.
    let (response, mut sending) = started.map_err(|_| Unanswered::Retry)?;
    if is_post {
        // A stream that was refused meanwhile: the answer tells.
        let _ = sending.send_data(Bytes::from(body), true);
    }
    let answer = tokio::time::timeout(BOUND, h2_finish(response)).await;
    match answer {
        Ok(Ok((StatusCode::OK, got))) if got == body.as_bytes() => Ok(()),
        Ok(Ok((status, got))) => {
            let why = format!("{path}: {status} {:?}", String::from_utf8_lossy(&got));
            Err(Unanswered::Lost(why))
        }
        Ok(Err(error)) if is_refused(&error) => Err(Unanswered::Retry),
        Ok(Err(error)) => Err(Unanswered::Lost(format!("{path}: {error:?}"))),
        Err(_) => Err(Unanswered::Lost(format!("{path}: no answer in {BOUND:?}"))),
    }
}

/// By a GOAWAY whose last stream is an earlier one, which is when h2 says so of a stream, or by
/// `REFUSED_STREAM`.
pub fn is_refused(error: &h2::Error) -> bool {
    let reason = error.reason();
    error.is_remote()
        && (error.is_go_away() && reason == Some(h2::Reason::NO_ERROR)
            || error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM))
}

// ===== chance =====

/// Xorshift; the same numbers each time.
pub struct Random(u64);

impl Random {
    pub fn new(seed: usize) -> Self {
        let seed = u64::try_from(seed).expect("64 bits") + 1;
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}
