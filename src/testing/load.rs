//! What the clients of a probe share: what they ask for, how far the termination is, and what was found.

use std::cell::{Cell, RefCell};
use std::future::{self, Future};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::findings::{Finding, Findings, Kind, When};
use super::pulse::{Pulse, is_crossed};
use super::socket::Socket;
use crate::report::Protocol;

/// What is asked for, of whom, and what is expected.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) requests: Vec<Request>,
    pub(super) http1: bool,
    pub(super) http2: bool,
    pub(super) clients: usize,
    pub(super) warm_up: Duration,
    pub(super) answer_within: Duration,
    pub(super) accepts_for: Duration,
    pub(super) settle: Duration,
    pub(super) limit: Duration,
}

impl Plan {
    /// How many clients connect anew each time, and how many speak HTTP/2.
    pub(super) fn quarter(&self) -> usize {
        self.clients.div_ceil(4)
    }

    /// On how many connections chance may have requests crossed by a close.
    ///
    /// It needs that one close in the microseconds between the last look at the socket and the write, or between the server's
    /// look and its close: of 500 connections whose rounds took 50 ms it was one now and then, and of a server that drops what
    /// it has read more than 400. Who does not wait closes whatever is idle, and meets any number.
    fn may_cross(&self) -> usize {
        if self.settle.is_zero() {
            return usize::MAX;
        }
        let http1 = usize::from(self.http1) * (self.clients + self.quarter());
        let http2 = usize::from(self.http2) * self.quarter();
        ((http1 + http2) / 8).max(2)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Bytes,
}

/// How far the termination is, as who calls for it tells.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stage {
    pub(super) called: Option<Instant>,
    pub(super) returned: Option<Instant>,
    /// Nobody waits for the findings any more.
    pub(super) abandoned: bool,
}

pub(super) struct Load {
    pub(super) plan: Plan,
    pub(super) address: SocketAddr,
    stage: Arc<Mutex<Stage>>,
    pub(super) pulse: Pulse,
    /// Cancelled when what is left open counts as such.
    pub(super) patience: CancellationToken,
    /// Cancelled when what has no answer will get none.
    pub(super) over: CancellationToken,
    /// How many clients have yet to find out anything.
    pub(super) newcomers: Cell<usize>,
    /// On how many connections requests were crossed by the close.
    crossings: Cell<usize>,
    watched: RefCell<JoinSet<()>>,
    findings: RefCell<Findings>,
    samples: RefCell<Vec<(Instant, Finding)>>,
}

/// When it was seen what became of a request: not later, when something else has been waited for.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// It had not come before.
    pub(super) came: Instant,
    found: Instant,
}

/// What became of a request.
pub(super) enum Verdict {
    /// By that status.
    Answered(u16),
    /// As a kind, and why.
    Not(Kind, String),
}

impl Load {
    pub(super) fn new(plan: Plan, address: SocketAddr, stage: Arc<Mutex<Stage>>) -> Self {
        Self {
            plan,
            address,
            stage,
            pulse: Pulse::start(Instant::now()),
            patience: CancellationToken::new(),
            over: CancellationToken::new(),
            newcomers: Cell::new(0),
            crossings: Cell::new(0),
            watched: RefCell::default(),
            findings: RefCell::default(),
            samples: RefCell::default(),
        }
    }

    pub(super) fn stage(&self) -> Stage {
        *self.stage.lock()
    }

    /// Whether to ask for more.
    pub(super) fn goes_on(&self) -> bool {
        self.stage().returned.is_none() && !self.over.is_cancelled()
    }

    pub(super) fn request(&self, n: usize) -> &Request {
        &self.plan.requests[n % self.plan.requests.len()]
    }

    // ----- connections -----

    /// `None` if it did not come about, which is noted; then there is a pause behind it.
    pub(super) async fn connect(&self, protocol: Protocol) -> Option<TcpStream> {
        let begin = Instant::now();
        let connecting = either(TcpStream::connect(self.address), self.patience.cancelled());
        let connected = either(connecting, self.over.cancelled()).await;
        let called = self.stage().called;
        // Behind it: refused in the moment of the call is refused after it.
        let mut found = Instant::now();
        let error = match connected.flatten() {
            // A socket may be given the very port that it is to connect to, and then meets itself.
            Some(Ok(stream)) if stream.local_addr().ok() != stream.peer_addr().ok() => {
                return Some(stream);
            }
            Some(Ok(_)) => io::Error::from(ErrorKind::ConnectionRefused),
            Some(Err(error)) => error,
            // The time was over. That of a connect which has just begun proves nothing.
            None if found < begin + PATIENCE => return None,
            None => {
                found = begin + PATIENCE;
                io::Error::new(ErrorKind::TimedOut, "nobody has answered")
            }
        };
        let kind = if is_our_own(&error) {
            Kind::Hindered
        } else {
            self.refused(called, found)
        };
        let what = error.to_string();
        self.note(kind, protocol, None, begin, Instant::now(), what);
        tokio::time::sleep(PAUSE).await;
        None
    }

    /// As what a connect is counted that was refused then.
    fn refused(&self, called: Option<Instant>, found: Instant) -> Kind {
        let is_to_accept =
            |call| found < call || found.duration_since(call) < self.plan.accepts_for;
        if called.is_none_or(is_to_accept) {
            Kind::RefusedEarly
        } else {
            Kind::Refused
        }
    }

    /// As what is counted that could not be written, as the connection had ended: with a fresh one its connect was refused,
    /// unless it had been quiet for so long that it may have been closed as idle.
    pub(super) fn unwritten(&self, fresh: Option<Instant>) -> Kind {
        let quiet = fresh.filter(|quiet| quiet.elapsed() < self.plan.settle);
        quiet.map_or(Kind::Retried, |_| {
            self.refused(self.stage().called, Instant::now())
        })
    }

    /// The handshake of HTTP/2 failed so.
    pub(super) async fn was_refused(&self, begin: Instant, quiet: Instant, why: String) {
        self.note(
            self.unwritten(Some(quiet)),
            Protocol::Http2,
            None,
            begin,
            Instant::now(),
            why,
        );
        tokio::time::sleep(PAUSE).await;
    }

    /// Whether the end of the connection, seen just now in place of an answer, may have crossed the request: when it may have been
    /// quiet since then at the earliest.
    pub(super) fn is_crossed(&self, quiet: Instant, socket: &Socket) -> bool {
        socket.wrote().is_some_and(|wrote| {
            let ended = self.pulse.may_have_come(wrote);
            is_crossed(quiet, wrote, ended, self.plan.settle)
        })
    }

    /// So was what had been asked for on one connection.
    pub(super) fn has_crossed(&self) {
        self.crossings.set(self.crossings.get() + 1);
    }

    /// Watches a connection on which nothing is to come any more to its end, by what has still to be done for it.
    pub(super) fn watch(
        self: &Rc<Self>,
        protocol: Protocol,
        socket: Rc<Socket>,
        rest: impl Future<Output = ()> + 'static,
    ) {
        let (load, begin) = (Rc::clone(self), Instant::now());
        let watching = async move {
            let ended = async {
                rest.await;
                socket.ended().await;
            };
            let given_up = either(load.patience.cancelled(), load.over.cancelled());
            if either(ended, given_up).await.is_some() || load.stage().returned.is_none() {
                return;
            }
            let why = "it was not closed".to_owned();
            load.note(Kind::Open, protocol, None, begin, Instant::now(), why);
        };
        let mut watched = self.watched.borrow_mut();
        while watched.try_join_next().is_some() {}
        watched.spawn_local(watching);
    }

    /// Waits for all of them.
    pub(super) async fn watched(&self) {
        let mut watched = self.watched.take();
        while let Some(ended) = watched.join_next().await {
            ended.expect("it does not panic");
        }
    }

    // ----- findings -----

    /// That it is seen now what became of a request that was sent at that time.
    pub(super) fn seen(&self, sent: Instant) -> Seen {
        Seen {
            // What came while this thread stood still came in time.
            came: self.pulse.may_have_come(sent),
            found: Instant::now(),
        }
    }

    /// What became of a request that was sent at that time, on a connection that was first `served` then.
    pub(super) fn record(
        &self,
        protocol: Protocol,
        request: &Request,
        sent: Instant,
        served: Option<Instant>,
        seen: Seen,
        verdict: Verdict,
    ) {
        let stage = self.stage();
        let (kind, why) = match verdict {
            Verdict::Not(kind, why) => (kind, why),
            Verdict::Answered(status @ 500..) => (Kind::Failed, format!("answered {status}")),
            Verdict::Answered(_) => {
                let later_than = |it| seen.came.saturating_duration_since(it);
                let returned = stage.returned.filter(|_| self.is_theirs(served));
                let returned = returned.map(|it| it.max(sent));
                if returned.is_some_and(|it| later_than(it) >= PATIENCE) {
                    let why = "answered, when the termination had returned";
                    (Kind::Late, why.to_owned())
                } else if later_than(sent) > self.plan.answer_within {
                    (Kind::Late, "answered".to_owned())
                } else {
                    let mut findings = self.findings.borrow_mut();
                    findings.answered += 1;
                    let after = stage.called.is_some_and(|call| sent > call);
                    findings.answered_after += usize::from(after);
                    return;
                }
            }
        };
        self.note(kind, protocol, Some(request), sent, seen.found, why);
    }

    /// Whether it is known that who returns has accepted that connection: where somebody takes over, only of one that it
    /// had served before the call.
    fn is_theirs(&self, served: Option<Instant>) -> bool {
        let call = self.stage().called;
        self.plan.accepts_for < Duration::MAX || served.is_some_and(|it| Some(it) <= call)
    }

    fn note(
        &self,
        kind: Kind,
        protocol: Protocol,
        request: Option<&Request>,
        begin: Instant,
        found: Instant,
        what: String,
    ) {
        let mut findings = self.findings.borrow_mut();
        let count = match kind {
            Kind::Lost => &mut findings.lost,
            Kind::Cut => &mut findings.cut,
            Kind::Failed => &mut findings.failed,
            Kind::Late => &mut findings.late,
            Kind::RefusedEarly => &mut findings.refused_early,
            Kind::Refused => &mut findings.refused,
            Kind::Hindered => &mut findings.hindered,
            Kind::Retried => &mut findings.retried,
            Kind::Crossed => &mut findings.crossed,
            Kind::Open => &mut findings.open,
        };
        *count += 1;
        if *count <= SAMPLES {
            let finding = Finding {
                kind,
                protocol,
                request: request.map(|it| format!("{} {}", it.method, it.path)),
                // Until it is known when the call was.
                at: When::After(Duration::ZERO),
                took: found - begin,
                what,
            };
            self.samples.borrow_mut().push((begin, finding));
        }
    }

    /// All of them.
    pub(super) fn findings(&self) -> Findings {
        let mut findings = self.findings.take();
        findings.is_in_doubt = self.crossings.get() > self.plan.may_cross();
        let mut samples = self.samples.take();
        samples.sort_by_key(|(begin, _)| *begin);
        let stage = self.stage();
        if let Some(call) = stage.called {
            findings.returned = stage.returned.map(|it| it - call);
            let samples = samples.into_iter().map(|(begin, finding)| Finding {
                at: When::of(begin, call),
                ..finding
            });
            findings.samples = samples.collect();
        }
        findings
    }
}

/// No descriptors are left in this process or system (`ENFILE`, `EMFILE`), or no ports, or no memory.
fn is_our_own(error: &io::Error) -> bool {
    let of_descriptors = cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24));
    of_descriptors
        || matches!(
            error.kind(),
            ErrorKind::AddrNotAvailable | ErrorKind::OutOfMemory
        )
}

/// The first future's output, or `None` if the second is ready before.
pub(super) async fn either<A: Future, B: Future>(first: A, second: B) -> Option<A::Output> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let either = future::poll_fn(|cx| {
        if let Poll::Ready(output) = first.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        second.as_mut().poll(cx).map(|_| None)
    });
    either.await
}

/// How much later than `terminate` something may be seen by a thread that waits for a core.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// Behind a connect that was refused, and between connections of those who want a new one each time: ports are not
/// without number.
pub(super) const PAUSE: Duration = Duration::from_millis(2);

/// Why there is no answer, where nothing has gone wrong.
pub(super) const OVER: &str = "the time was over";

/// Of each kind.
const SAMPLES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(clients: usize, settle: Duration) -> Plan {
        Plan {
            requests: Vec::new(),
            http1: true,
            http2: false,
            clients,
            warm_up: Duration::ZERO,
            answer_within: Duration::MAX,
            accepts_for: Duration::ZERO,
            settle,
            limit: Duration::MAX,
        }
    }

    /// Rounds take longer than the server is to wait. The answer before was read behind the last turn, the request was
    /// written at once, and its end is found one round later: whether a close has crossed it, or the server has read and
    /// dropped it, can't be told. Of a few chance is to blame, and not of all.
    #[test]
    fn what_may_have_crossed_is_no_excuse_for_many() {
        const SETTLE: Duration = Duration::from_millis(25);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let lossless = |clients, settle, lost: usize| {
            let stage = Stage {
                called: Some(at(60)),
                returned: Some(at(120)),
                abandoned: false,
            };
            let plan = plan(clients, settle);
            let load = Load::new(plan, ([0; 4], 0).into(), Arc::new(Mutex::new(stage)));
            let request = Request {
                method: Method::GET,
                path: "/".to_owned(),
                body: Bytes::new(),
            };
            for ms in [0, 30, 60] {
                load.pulse.turn(at(ms));
            }
            let answered = load.seen(at(0));
            let verdict = Verdict::Answered(200);
            load.record(Protocol::Http1, &request, at(0), None, answered, verdict);
            load.pulse.turn(at(90));
            let ended = load.seen(at(61));
            assert!(is_crossed(answered.came, at(61), ended.came, settle));
            for _ in 0..lost {
                load.has_crossed();
                let verdict = Verdict::Not(Kind::Crossed, "closed".to_owned());
                load.record(Protocol::Http1, &request, at(61), None, ended, verdict);
            }
            let findings = load.findings();
            assert_eq!((findings.answered, findings.crossed), (1, lost));
            assert_ne!(
                findings.is_lossless(),
                findings.to_string().contains("too many"),
                "{findings}"
            );
            findings.is_lossless()
        };
        assert!(lossless(8, SETTLE, 2) && !lossless(8, SETTLE, 3));
        assert!(lossless(400, SETTLE, 62) && !lossless(400, SETTLE, 63));
        // Who waits for nothing loses what it loses.
        assert!(lossless(8, Duration::ZERO, 10));
    }
}
