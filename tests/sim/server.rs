//! What is served, how it is ended, and by whom the driver is stepped.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until};

use super::client::{self, Kind};
use super::draw::Draw;
use super::net::SimListener;
use super::notes::{Working, note, who};
use super::{now, records, say, tunnel};
use crate::IdlePolicy;
use crate::clock::Moment;
use crate::connection::{Connection, HttpBuilder};
use crate::driver::steps::Steps;
use crate::phase::Phase;
use crate::report::Report;
use crate::serve::{Listener, TrackedListener};
use crate::terminator::Terminator;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Terminate,
    Within(u64),
    Force,
    DropServe,
    /// That one of the connections that have had a request, if there are so many.
    TerminateOne(usize),
    ForceOne(usize),
}

/// How a port is served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Front {
    Serve,
    /// By a loop that waits so long between two, and serves by hyper-util's builder or by ours.
    Loop {
        theirs: bool,
        permit: u64,
    },
    /// The same with what TLS does.
    Records,
    /// `Connection::watch`.
    Watch,
    /// `Terminator::watch`.
    Bare,
}

impl Front {
    pub(crate) fn draw(draw: &mut Draw) -> Self {
        match draw.below(7) {
            0 => Self::Serve,
            1 | 2 => Self::Loop {
                theirs: draw.one_in(2),
                permit: if draw.one_in(2) { draw.below(30) } else { 0 },
            },
            3 | 4 => Self::Records,
            5 => Self::Watch,
            _ => Self::Bare,
        }
    }

    /// It gives all guarantees.
    pub(crate) fn is_whole(self) -> bool {
        !matches!(self, Self::Watch | Self::Bare)
    }

    /// HTTP/2 and upgrades are spoken there.
    pub(crate) fn speaks_all(self) -> bool {
        matches!(self, Self::Serve | Self::Loop { .. })
    }

    /// How long it may take until somebody is accepted.
    pub(crate) fn lag(self) -> u64 {
        match self {
            Self::Loop { permit, .. } => permit * 15,
            // Errors of the machine draw pauses.
            Self::Records => 20,
            _ => 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) grace: Option<u64>,
    pub(crate) lame_duck: u64,
    pub(crate) settle: u64,
    pub(crate) stall: u64,
    pub(crate) answer: bool,
    pub(crate) idle: IdlePolicy,
    /// Bounds while serving.
    pub(crate) head: Option<u64>,
    pub(crate) quiet: Option<u64>,
    pub(crate) age: Option<u64>,
    pub(crate) number: Option<u64>,
    pub(crate) calls: Vec<(u64, Call)>,
    pub(crate) fronts: Vec<Front>,
}

impl Plan {
    pub(crate) fn draw(draw: &mut Draw) -> Self {
        let mut calls = Vec::new();
        let at = draw.below(300);
        let first = match draw.below(12) {
            0 => Call::Within(draw.below(300)),
            1 => Call::Force,
            _ => Call::Terminate,
        };
        calls.push((at, first));
        if draw.one_in(4) {
            let later = at + draw.below(300);
            let second = if draw.one_in(2) {
                Call::Force
            } else {
                Call::Within(draw.below(300))
            };
            calls.push((later, second));
        }
        if draw.one_in(10) {
            calls.push((draw.below(300), Call::DropServe));
        }
        if draw.one_in(6) {
            let which = usize::try_from(draw.below(4)).expect("small");
            let call = if draw.one_in(2) {
                Call::TerminateOne(which)
            } else {
                Call::ForceOne(which)
            };
            calls.push((draw.below(500), call));
        }
        let mut fronts = vec![Front::Serve];
        for _ in 0..draw.below(3) {
            fronts.push(Front::draw(draw));
        }
        let idle = match draw.below(6) {
            0 => IdlePolicy::LastRequest {
                wait: Duration::from_millis(draw.below(200)),
            },
            1 => IdlePolicy::Spread {
                over: Duration::from_millis(draw.below(400)),
            },
            _ => IdlePolicy::Immediate,
        };
        Self {
            grace: Some(draw.below(900)),
            lame_duck: if draw.one_in(4) { draw.below(150) } else { 0 },
            settle: if draw.one_in(3) { draw.below(60) } else { 25 },
            stall: 50 + draw.below(950),
            answer: !draw.one_in(5),
            idle,
            head: draw.one_in(8).then(|| 20 + draw.below(100)),
            quiet: draw.one_in(8).then(|| 20 + draw.below(150)),
            age: draw.one_in(6).then(|| draw.below(200)),
            number: draw.one_in(6).then(|| 1 + draw.below(3)),
            calls,
            fronts,
        }
    }

    pub(crate) fn terminator(&self) -> Terminator {
        let ms = Duration::from_millis;
        Terminator::builder()
            .grace_period(self.grace.map(ms))
            .lame_duck(ms(self.lame_duck))
            .settle(ms(self.settle))
            .stall_timeout(ms(self.stall))
            .answer_at_deadline(self.answer)
            .idle(self.idle)
            .head_timeout(ms(self.head.unwrap_or(30_000)))
            .idle_timeout(self.quiet.map(ms))
            .max_connection_age(self.age.map(ms))
            .max_requests_per_connection(self.number)
            .build_stepped()
    }
}

impl Plan {
    /// Some end before, or otherwise than, all do.
    pub(crate) fn ends_single_ones(&self) -> bool {
        let one = |call: &Call| matches!(call, Call::TerminateOne(_) | Call::ForceOne(_));
        self.age.is_some() || self.number.is_some() || self.calls.iter().any(|(_, it)| one(it))
    }

    pub(crate) fn is_spread(&self) -> bool {
        self.spreads_over() > 0
    }

    /// So many milliseconds.
    pub(crate) fn spreads_over(&self) -> u64 {
        match self.idle {
            IdlePolicy::Spread { over } => u64::try_from(over.as_millis()).expect("short"),
            _ => 0,
        }
    }
}

/// When the drain began, and when the deadline was.
pub(crate) fn times(terminator: &Terminator) -> (u64, u64) {
    let registry = terminator.registry();
    let ms = |at: Moment| at.as_micros() / 1_000;
    (ms(registry.drain_began()), ms(registry.deadline()))
}

impl Terminator {
    pub(super) fn report(&self) -> Option<&Report> {
        self.registry().report()
    }
}

/// Takes the driver's steps when they are due.
pub(crate) async fn drive(terminator: Terminator) {
    let registry = Arc::clone(terminator.registry());
    while registry.phase() == Phase::Serving {
        registry.agenda.bell().notified().await;
    }
    let start = tokio::time::Instant::now();
    let began = registry.clock.now();
    let mut steps = Steps::new(Arc::clone(terminator.driver()));
    let mut phase = Phase::Serving;
    while let Some(at) = steps.step(registry.clock.now()) {
        if registry.phase() > phase {
            phase = registry.phase();
            say(|| format!("{phase}"));
        }
        loop {
            let until = registry.agenda.sleeps_until(at);
            let now = registry.clock.now();
            if until <= now {
                break;
            }
            let far = Duration::from_secs(60);
            let wakes = start + until.since(began).min(far);
            tokio::select! {
                biased;
                () = registry.agenda.bell().notified() => {}
                () = sleep_until(wakes) => {}
            }
        }
    }
    say(|| "over".to_owned());
}

/// What the keeper's thread would do by now.
pub(crate) fn care(terminator: &Terminator) {
    let registry = terminator.registry();
    for (id, care) in registry.keeper.due() {
        say(|| format!("connection {id}: {care:?}"));
        registry.take_care(id, care);
    }
}

type Body = Pin<Box<dyn http_body::Body<Data = Bytes, Error = io::Error> + Send>>;

/// Serves that port; aborted, it is as if it was dropped.
pub(crate) fn serve(
    front: Front,
    terminator: &Terminator,
    listener: SimListener,
) -> JoinHandle<()> {
    let terminator = terminator.clone();
    match front {
        Front::Serve => {
            let handler = terminator.clone();
            let service = tower::service_fn(move |request| handle(handler.clone(), request));
            let served = terminator.serve(listener, service);
            let served = served.connection_in_extensions();
            tokio::spawn(async move { drop(served.await) })
        }
        Front::Bare => tokio::spawn(accept_bare(terminator, listener)),
        _ => {
            let listener = terminator.listen(listener);
            tokio::spawn(accept(front, terminator, listener))
        }
    }
}

/// As in the documentation of `Connection::serve`, and of `watch`.
async fn accept(front: Front, terminator: Terminator, mut listener: TrackedListener<SimListener>) {
    let (ours, theirs) = (
        HttpBuilder::default(),
        auto::Builder::new(TokioExecutor::new()),
    );
    while let Some((io, ())) = listener.accept().await {
        let connection = io.connection();
        let (handler, known) = (terminator.clone(), connection.clone());
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(known.clone());
            handle(handler.clone(), request)
        });
        match front {
            Front::Loop { theirs: true, .. } => {
                tokio::spawn(connection.serve(&theirs, io, service));
            }
            Front::Records => {
                let ours = ours.clone();
                tokio::spawn(async move {
                    let shaken = connection.handshake(records::accept(io)).await;
                    if let Some(Ok(io)) = shaken {
                        let _ = connection.serve(&ours, io, service).await;
                    }
                });
            }
            Front::Watch => {
                let service = connection.service(service);
                let served = http1::Builder::new().serve_connection(TokioIo::new(io), service);
                tokio::spawn(connection.watch(served));
            }
            _ => {
                tokio::spawn(connection.serve(&ours, io, service));
            }
        }
        if let Front::Loop {
            permit: permit @ 1..,
            ..
        } = front
        {
            sleep(Duration::from_millis(permit)).await;
        }
    }
}

/// A loop that knows nothing of us but `watch`, and takes its queue by itself.
async fn accept_bare(terminator: Terminator, mut listener: SimListener) {
    let Some(guard) = terminator.guard() else {
        return;
    };
    // Not `draining()`, which is ready when it is somebody's turn.
    let mut told = std::pin::pin!(terminator.reached(Phase::Draining));
    loop {
        let accepted = tokio::select! {
            biased; // a seed is a run
            accepted = std::future::poll_fn(|cx| listener.poll_accept(cx)) => accepted,
            () = &mut told => break,
        };
        let Ok((io, ())) = accepted else { continue };
        let handler = terminator.clone();
        let service = hyper::service::service_fn(move |request| handle(handler.clone(), request));
        let served = http1::Builder::new().serve_connection(TokioIo::new(io), service);
        tokio::spawn(terminator.watch(served));
    }
    drop((listener, guard));
}

fn parts(n: u64, ms: u64, part: Bytes) -> Body {
    let parts = stream::unfold(0, move |done| {
        let part = part.clone();
        async move {
            if done == n {
                return None;
            }
            sleep(Duration::from_millis(ms)).await;
            Some((Ok(Frame::data(part)), done + 1))
        }
    });
    Box::pin(StreamBody::new(parts))
}

fn whole(body: String) -> Body {
    let whole = http_body_util::Full::new(Bytes::from(body));
    Box::pin(whole.map_err(|never| match never {}))
}

/// So many of them, and then an error, or a panic.
fn broken(n: u64, panics: bool, part: Bytes) -> Body {
    let parts = stream::unfold(0, move |done| {
        let part = part.clone();
        async move {
            sleep(Duration::from_millis(1)).await;
            if done < n {
                return Some((Ok(Frame::data(part)), done + 1));
            }
            assert!(!panics, "on purpose");
            Some((Err(io::Error::other("on purpose")), done))
        }
    });
    Box::pin(StreamBody::new(parts))
}

/// Has a drain wait for something, in one way or the other.
fn work(terminator: &Terminator, holds: bool, ms: u64) {
    let guard = holds.then(|| terminator.guard());
    let working = Working::begin(holds, ms, matches!(guard, Some(None)));
    let work = async move {
        sleep(Duration::from_millis(ms)).await;
        working.done();
    };
    match guard {
        None => drop(terminator.spawn(work)),
        Some(None) => {}
        Some(Some(guard)) => drop(tokio::spawn(async move {
            work.await;
            drop(guard);
        })),
    }
}

#[allow(clippy::too_many_lines, reason = "a line for each kind of handler")]
async fn handle(
    terminator: Terminator,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let name = request.uri().query().unwrap_or_default().to_owned();
    say(|| format!("handler of {name}: {path}"));
    let connection = request.extensions().get::<Connection>().cloned();
    let (who, at) = (who(&name), now());
    note(|notes| {
        notes.called.push((name.clone(), at));
        if let Some(connection) = &connection {
            notes.connections.push((who, connection.clone()));
        }
    });
    let mut words = path.split('/').skip(1);
    let what = words.next().unwrap_or_default().to_owned();
    let mut number = || words.next().and_then(|it| it.parse().ok()).unwrap_or(0);
    let (a, b) = (number(), number());
    let mut response = Response::new(());
    let body = match what.as_str() {
        "after" => {
            sleep(Duration::from_millis(a)).await;
            match read_all(request.into_body(), &name).await {
                Ok(()) => whole(name),
                Err(error) => {
                    say(|| format!("handler of {name}: {error}"));
                    *response.status_mut() = StatusCode::BAD_REQUEST;
                    whole(name)
                }
            }
        }
        "unread" => {
            sleep(Duration::from_millis(a)).await;
            whole(name)
        }
        "parts" => parts(a, b, name.into()),
        "upgrade" => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(
                header::CONNECTION,
                header::HeaderValue::from_static("upgrade"),
            );
            headers.insert(header::UPGRADE, header::HeaderValue::from_static("sim"));
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                if let Ok(io) = upgraded.await {
                    let connection = connection.expect("it is in there");
                    tunnel::host(a, TokioIo::new(io), connection, who).await;
                }
            });
            whole(String::new())
        }
        "hangs" => std::future::pending().await,
        "panics" => panic!("on purpose"),
        "big" => whole(name + &"x".repeat(usize::try_from(a).expect("small"))),
        "terminates" => {
            terminate(&terminator, grace_of(&terminator));
            whole(name)
        }
        // Only who knows nothing of us has none.
        "alone" => {
            if let Some(connection) = connection {
                note(|notes| notes.told.push(who));
                connection.terminate();
            }
            whole(name)
        }
        "cuts" => {
            if let Some(connection) = connection {
                force(who, &connection);
            }
            sleep(Duration::from_millis(a)).await;
            whole(name)
        }
        "detaches" => {
            if let Some(connection) = connection {
                note(|notes| notes.detached.push((who, at)));
                connection.detach();
            }
            sleep(Duration::from_millis(a)).await;
            whole(name)
        }
        "works" => {
            work(&terminator, b == 1, a);
            whole(name)
        }
        "gives" => {
            let (given, whose) = (request.into_body(), name.clone());
            tokio::spawn(async move {
                sleep(Duration::from_millis(a)).await;
                // Whatever its end is.
                let _ = read_all(given, &whose).await;
            });
            whole(name)
        }
        "breaks" => broken(a, b == 1, name.into()),
        "last" => {
            let close = header::HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            whole(name)
        }
        _ => whole(name),
    };
    Ok(response.map(|()| body))
}

/// The body of a request is as far as it comes what its client has sent.
async fn read_all(mut body: Incoming, name: &str) -> hyper::Result<()> {
    let mut at = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        let sent = client::upload(at..at + data.len());
        if !sent.eq(data.iter().copied()) {
            note(|notes| notes.holes.push(name.to_owned()));
        }
        at += data.len();
    }
    note(|notes| notes.bodies.push((name.to_owned(), at)));
    Ok(())
}

fn grace_of(terminator: &Terminator) -> Option<u64> {
    let grace = terminator.registry().config.grace_period;
    grace.map(|it| u64::try_from(it.as_millis()).expect("short"))
}

/// Ends all, with the grace period of the plan or another one.
pub(crate) fn terminate(terminator: &Terminator, grace: Option<u64>) {
    let at = now();
    note(|notes| notes.ends.push((at, grace)));
    drop(terminator.terminate_within(grace.map(Duration::from_millis)));
}

pub(crate) fn force(who: usize, connection: &Connection) {
    let at = now();
    note(|notes| notes.forced.push((who, at)));
    connection.force();
}

/// What a whole answer to it holds.
pub(crate) fn body_of(kind: Kind, name: &str) -> Vec<u8> {
    match kind {
        Kind::Parts(n, _) => name.repeat(usize::try_from(n).expect("small")).into_bytes(),
        // It has no end.
        Kind::Breaks(..) => b"nothing".to_vec(),
        Kind::Big(n) => (name.to_owned() + &"x".repeat(n)).into_bytes(),
        _ => name.as_bytes().to_vec(),
    }
}
