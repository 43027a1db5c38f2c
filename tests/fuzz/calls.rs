//! Calls in any order: they end, nobody panics, and the counts add up.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::time::Duration;

use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{sleep, timeout};

use super::input::Input;
use crate::serve::Listener as _;
use crate::sim::net::{Client, Dial, SimListener, SimStream, listen};
use crate::sim::{in_virtual_time, now, server};
use crate::{
    Connection, HttpBuilder, IdlePolicy, Phase, Report, ShutdownGuard, Termination, Terminator,
    TrackedIo, TrackedListener,
};

/// From the deadline to the end (G10), with what the clock of whole milliseconds adds.
const CUT: u64 = 152;

/// No period is longer, so that what is left waits no longer than two of them and the cut.
const MOST: usize = 1_200;

/// Nor a lame duck, of which a grace period is counted from the end.
const LAME: usize = 100;

const MOST_CALLS: usize = 60;

struct World {
    terminator: Terminator,
    /// What it was built with, in milliseconds.
    grace: Option<u64>,
    /// For those that no listener gives.
    pool: SimListener,
    dials: Vec<Dial>,
    listeners: Vec<TrackedListener<SimListener>>,
    serves: Vec<JoinHandle<Report>>,
    ios: Vec<TrackedIo<SimStream>>,
    left: Vec<SimStream>,
    connections: Vec<Connection>,
    clients: Vec<Client>,
    guards: Vec<ShutdownGuard>,
    spawned: Vec<JoinHandle<Option<u8>>>,
    served: Vec<JoinHandle<()>>,
    terminations: Vec<Termination>,
    phase: Phase,
    accepted: u64,
    /// It is to end by then, as far as its calls say.
    end: Option<u64>,
    began: u64,
    some_left: bool,
    too_late: usize,
    /// Guards that were held at the end.
    cut: usize,
}

/// And its grace period.
fn terminator(input: &mut Input<'_>) -> (Terminator, Option<u64>) {
    let grace = input.below(MOST) as u64;
    let mut some = |n: usize| Duration::from_millis(input.below(n) as u64);
    let (stall, settle) = (some(300), some(60));
    let (lame_duck, head, age, over) = (some(LAME), some(300), some(200), some(300));
    let grace = (!input.one_in(6)).then_some(grace);
    let builder = Terminator::builder()
        .stall_timeout(stall)
        .grace_period(grace.map(Duration::from_millis))
        .answer_at_deadline(!input.one_in(4))
        .head_timeout((!input.one_in(4)).then_some(head))
        .max_connection_age(input.one_in(4).then_some(age))
        .idle_timeout(input.one_in(4).then_some(over))
        .max_requests_per_connection(input.one_in(4).then_some(2));
    let builder = if input.one_in(3) {
        builder.lame_duck(lame_duck)
    } else {
        builder
    };
    let builder = if input.one_in(2) {
        builder.settle(settle)
    } else {
        builder
    };
    let idle = match input.below(4) {
        0 => IdlePolicy::LastRequest { wait: over },
        1 => IdlePolicy::Spread { over },
        _ => IdlePolicy::Immediate,
    };
    (builder.idle(idle).build_stepped(), grace)
}

async fn answer(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    match request.uri().path() {
        "/never" => pending().await,
        "/later" => sleep(Duration::from_millis(7)).await,
        _ => {}
    }
    Ok(Response::new("hello".to_owned()))
}

/// One of them, if there are any.
fn any<'a, T>(input: &mut Input<'_>, of: &'a mut [T]) -> Option<&'a mut T> {
    let n = input.below(of.len());
    of.get_mut(n)
}

fn take<T>(input: &mut Input<'_>, of: &mut Vec<T>) -> Option<T> {
    let n = input.below(of.len());
    (n < of.len()).then(|| of.remove(n))
}

impl World {
    #[allow(clippy::too_many_lines, reason = "a line each")]
    async fn call(&mut self, input: &mut Input<'_>) {
        let terminator = &self.terminator;
        match input.below(26) {
            0 => {
                let (listener, dial) = listen(0, false);
                self.listeners.push(terminator.listen(listener));
                self.dials.push(dial);
            }
            1 => {
                let (listener, dial) = listen(0, false);
                let serve = terminator.serve(listener, tower::service_fn(answer));
                self.serves.push(tokio::spawn(serve));
                self.dials.push(dial);
            }
            2 | 3 => {
                let room = input.pick(&[1 << 16, 3]);
                self.clients
                    .extend(any(input, &mut self.dials[1..]).and_then(|it| it.connect(0, room)));
            }
            4 => {
                if let Some(listener) = any(input, &mut self.listeners) {
                    if let Some(Some((io, ()))) = listener.accept().now_or_never() {
                        self.connections.push(io.connection());
                        self.ios.push(io);
                    }
                }
            }
            5 => {
                // Who comes when all is over is closed, and in no report.
                self.too_late += usize::from(terminator.phase() == Phase::Terminated);
                self.clients.extend(self.dials[0].connect(0, 1 << 16));
                let accepted = self.pool.accept_queued().expect("no errors");
                let io = terminator.track(accepted.expect("it is there").0);
                self.connections.push(io.connection());
                self.ios.push(io);
            }
            6 => drop(take(input, &mut self.ios)),
            7 => {
                if let Some(io) = take(input, &mut self.ios) {
                    let inner = io.into_inner();
                    self.some_left |= inner.is_some();
                    self.left.extend(inner);
                }
            }
            8 | 9 => {
                if let Some(io) = take(input, &mut self.ios) {
                    let serve =
                        io.connection()
                            .serve(&HttpBuilder::default(), io, service_fn(answer));
                    self.served.push(tokio::spawn(async {
                        let _ = serve.await;
                    }));
                }
            }
            10 => {
                if let Some(io) = take(input, &mut self.ios) {
                    let ms = input.below(100) as u64;
                    let connection = io.connection();
                    self.served.push(tokio::spawn(async move {
                        let shaken = sleep(Duration::from_millis(ms)).map(|()| io);
                        let Some(io) = connection.handshake(shaken).await else {
                            return;
                        };
                        let served =
                            connection.serve(&HttpBuilder::default(), io, service_fn(answer));
                        let _ = served.await;
                    }));
                }
            }
            11 => drop(take(input, &mut self.served).map(|it| it.abort())),
            12 | 13 => {
                let said: [&[u8]; 6] = [
                    b"GET / HTTP/1.1\r\n\r\n",
                    b"GET /later HTTP/1.1\r\n\r\n",
                    b"GET /never HTTP/1.1\r\n\r\n",
                    b"GET / HT",
                    b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n123",
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x0d\x01\x05\0\0\0\x01\x82\x86\x04\x06/later\x01\x01a",
                ];
                let said = input.pick(&said);
                if let Some(client) = any(input, &mut self.clients) {
                    client.send(said);
                }
            }
            14 => {
                if let Some(client) = any(input, &mut self.clients) {
                    match input.below(3) {
                        0 => client.finish(),
                        1 => client.reset(),
                        _ => drop(client.read(1 << 16)),
                    }
                }
            }
            15 => {
                let guard = terminator.guard();
                assert_eq!(guard.is_some(), self.phase < Phase::Draining);
                self.guards.extend(guard);
            }
            16 => {
                let another = any(input, &mut self.guards).map(|guard| guard.clone());
                self.guards.extend(another);
            }
            17 => drop(take(input, &mut self.guards)),
            18 => {
                let ms = input.below(300) as u64;
                self.spawned.push(match input.below(3) {
                    0 => terminator.spawn(pending()),
                    1 => terminator.spawn(ready(1)),
                    _ => terminator.spawn(sleep(Duration::from_millis(ms)).map(|()| 2)),
                });
            }
            19 => {
                if let Some(connection) = any(input, &mut self.connections) {
                    match input.below(4) {
                        0 => connection.detach(),
                        1 => connection.terminate(),
                        2 => connection.force(),
                        _ => drop(connection.draining().now_or_never()),
                    }
                }
            }
            20 | 21 => self.pass(input.pick(&[1, 30, 300, 3])).await,
            22 => self.terminate(input),
            23 => {
                if input.one_in(2) {
                    drop(take(input, &mut self.listeners));
                } else if let Some(serve) = take(input, &mut self.serves) {
                    serve.abort();
                }
            }
            24 => drop(take(input, &mut self.terminations)),
            _ => {
                if let Some(termination) = any(input, &mut self.terminations) {
                    let report = termination.now_or_never();
                    assert_eq!(report.is_some(), self.phase == Phase::Terminated);
                }
            }
        }
        yield_now().await;
    }

    fn terminate(&mut self, input: &mut Input<'_>) {
        let terminator = &self.terminator;
        let grace = input.below(MOST) as u64;
        let (termination, bound) = match input.below(8) {
            0 => (terminator.force(), Some(0)),
            1..=3 => (
                terminator.terminate_within(Duration::from_millis(grace)),
                Some(grace + LAME as u64),
            ),
            4 => (terminator.terminate_within(None), None),
            5 => (terminator.terminated(), None),
            _ => (terminator.terminate(), self.own_bound()),
        };
        self.terminations.push(termination);
        self.ends_within(bound);
    }

    /// For how long it may go on after a call of `terminate()`.
    fn own_bound(&self) -> Option<u64> {
        self.grace.map(|grace| grace + LAME as u64)
    }

    fn ends_within(&mut self, bound: Option<u64>) {
        let end = bound.map(|bound| now() + bound);
        self.end = self.end.into_iter().chain(end).min();
    }

    async fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            sleep(Duration::from_millis(1)).await;
            server::care(&self.terminator);
            self.check();
        }
    }

    fn check(&mut self) {
        let terminator = &self.terminator;
        let phase = terminator.phase();
        assert!(phase >= self.phase, "{phase} after {}", self.phase);
        if self.phase < Phase::Draining && phase >= Phase::Draining {
            self.began = now();
        }
        if self.phase < Phase::Terminated && phase == Phase::Terminated {
            self.cut = self.guards.len();
        }
        self.phase = phase;
        let stats = terminator.stats();
        assert_eq!(
            stats.connections,
            stats.idle + stats.busy + stats.upgraded,
            "{stats}"
        );
        assert!(stats.accepted >= self.accepted, "{stats}");
        self.accepted = stats.accepted;
        let unfinished = self.spawned.iter().filter(|it| !it.is_finished()).count();
        let most = self.guards.len() + unfinished;
        assert!(
            (self.guards.len()..=most).contains(&stats.guards),
            "{stats}, {most}"
        );
        assert!(terminator.in_hand().len() <= 64);
        assert_eq!(terminator.is_ready(), phase == Phase::Serving);
        assert!(phase != Phase::Serving || terminator.time_left().is_none());
        assert_eq!(
            terminator.cancellation_token().is_cancelled(),
            phase >= Phase::Draining
        );
        if let Some(end) = self.end {
            assert!(
                now() <= end + CUT || phase == Phase::Terminated,
                "since {end}: {stats}"
            );
        }
    }

    /// What it has come to, if it is terminated at all.
    async fn end(&mut self) {
        if self.phase < Phase::Terminated {
            self.terminations.push(self.terminator.terminate());
            self.ends_within(self.own_bound());
            let all = 3 * MOST as u64;
            for _ in 0..all {
                self.pass(1).await;
                if self.phase == Phase::Terminated {
                    break;
                }
            }
            // Without a deadline it may take for ever.
            self.terminations.push(self.terminator.force());
            self.ends_within(Some(0));
        }
        let report = timeout(Duration::from_secs(5), self.terminator.terminated());
        let report = report.await.expect("it ends");
        self.check();
        for termination in self.terminations.drain(..) {
            assert_eq!(
                termination.now_or_never(),
                Some(report.clone()),
                "the same for all"
            );
        }
        yield_now().await;
        let stats = self.terminator.stats();
        assert_eq!(
            (stats.connections, stats.listeners, stats.requests),
            (0, 0, 0),
            "{stats}"
        );
        assert_eq!(report.guards_cut, self.cut, "{report}");
        for io in self.ios.drain(..) {
            assert!(io.into_inner().is_none(), "it was closed");
        }
        for spawned in self.spawned.drain(..) {
            let out = timeout(Duration::from_secs(1), spawned).await;
            out.expect("it is dropped").expect("no panic");
        }
        for serve in self.serves.drain(..) {
            let served = timeout(Duration::from_secs(1), serve).await;
            assert_eq!(served.expect("it ends").expect("no panic"), report);
        }
        self.counts(&report);
    }

    fn counts(&mut self, report: &Report) {
        let closed = self.dials.iter().flat_map(Dial::closed);
        let closed: Vec<_> = closed.map(|(_, at)| at).collect();
        if self.some_left {
            return;
        }
        assert!(closed.iter().all(Option::is_some), "{closed:?}, {report}");
        let since = |at| closed.iter().filter(|it| **it >= Some(at)).count();
        let counted = report.connections() + report.lost_in_queue + self.too_late;
        let (least, most) = (since(self.began + 1), since(self.began.saturating_sub(1)));
        assert!(
            (least..=most).contains(&counted),
            "{least} to {most}, since {}, {closed:?}: {report}",
            self.began
        );
    }
}

pub(crate) fn calls(data: &[u8]) {
    let mut input = Input::new(data);
    in_virtual_time(async {
        let (terminator, grace) = terminator(&mut input);
        let driver = tokio::spawn(server::drive(terminator.clone()));
        let (pool, dial) = listen(0, false);
        let mut world = World {
            terminator,
            grace,
            pool,
            dials: vec![dial],
            listeners: Vec::new(),
            serves: Vec::new(),
            ios: Vec::new(),
            left: Vec::new(),
            connections: Vec::new(),
            clients: Vec::new(),
            guards: Vec::new(),
            spawned: Vec::new(),
            served: Vec::new(),
            terminations: Vec::new(),
            phase: Phase::Serving,
            accepted: 0,
            end: None,
            began: u64::MAX,
            some_left: false,
            too_late: 0,
            cut: 0,
        };
        let never_ended = input.one_in(8);
        for _ in 0..MOST_CALLS {
            if input.is_empty() {
                break;
            }
            world.call(&mut input).await;
            world.check();
        }
        if !never_ended || world.phase > Phase::Serving {
            world.end().await;
        }
        driver.abort();
    });
}
