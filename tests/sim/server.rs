//! What is served, how it is ended, and by whom the driver is stepped.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, sleep_until};

use super::client::Kind;
use super::draw::Draw;
use super::net::SimListener;
use super::{say, tunnel};
use crate::IdlePolicy;
use crate::clock::Moment;
use crate::connection::Connection;
use crate::driver::steps::Steps;
use crate::phase::Phase;
use crate::report::Report;
use crate::terminator::Terminator;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Terminate,
    Within(u64),
    Force,
    DropServe,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) grace: Option<u64>,
    lame_duck: u64,
    pub(crate) settle: u64,
    pub(crate) stall: u64,
    pub(crate) answer: bool,
    idle: IdlePolicy,
    age: Option<u64>,
    number: Option<u64>,
    pub(crate) calls: Vec<(u64, Call)>,
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
            age: draw.one_in(6).then(|| draw.below(200)),
            number: draw.one_in(6).then(|| 1 + draw.below(3)),
            calls,
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
            .max_connection_age(self.age.map(ms))
            .max_requests_per_connection(self.number)
            .build_stepped()
    }
}

impl Plan {
    /// Some end before, or otherwise than, all do.
    pub(crate) fn ends_single_ones(&self) -> bool {
        self.age.is_some() || self.number.is_some()
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

type Body = Pin<Box<dyn http_body::Body<Data = Bytes, Error = Infallible> + Send>>;

pub(crate) fn serve(
    terminator: &Terminator,
    listener: SimListener,
) -> impl Future<Output = Report> + Send + use<> {
    let handler = terminator.clone();
    let service = tower::service_fn(move |request| handle(handler.clone(), request));
    terminator
        .serve(listener, service)
        .connection_in_extensions()
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
    Box::pin(http_body_util::Full::new(Bytes::from(body)))
}

async fn handle(
    terminator: Terminator,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let name = request.uri().query().unwrap_or_default().to_owned();
    say(|| format!("handler of {name}: {path}"));
    let connection = request.extensions().get::<Connection>().cloned();
    let mut words = path.split('/').skip(1);
    let what = words.next().unwrap_or_default().to_owned();
    let mut number = || words.next().and_then(|it| it.parse().ok()).unwrap_or(0);
    let (a, b) = (number(), number());
    let mut response = Response::new(());
    let body = match what.as_str() {
        "after" => {
            sleep(Duration::from_millis(a)).await;
            match request.into_body().collect().await {
                Ok(_) => whole(name),
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
                    tunnel::host(a, TokioIo::new(io), connection).await;
                }
            });
            whole(String::new())
        }
        "hangs" => std::future::pending().await,
        "panics" => panic!("on purpose"),
        "big" => whole(name + &"x".repeat(usize::try_from(a).expect("small"))),
        "terminates" => {
            drop(terminator.terminate());
            whole(name)
        }
        "alone" => {
            connection.expect("it is in there").terminate();
            whole(name)
        }
        "last" => {
            let close = header::HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            whole(name)
        }
        _ => whole(name),
    };
    Ok(response.map(|()| body))
}

/// What a whole answer to it holds.
pub(crate) fn body_of(kind: Kind, name: &str) -> Vec<u8> {
    match kind {
        Kind::Parts(n, _) => name.repeat(usize::try_from(n).expect("small")).into_bytes(),
        Kind::Big(n) => (name.to_owned() + &"x".repeat(n)).into_bytes(),
        _ => name.as_bytes().to_vec(),
    }
}
