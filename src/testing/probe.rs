//! Hammers a server through its termination.

use std::fmt;
use std::future::{self, Future};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Uri};
use parking_lot::Mutex;
use tokio::runtime::{self, Runtime};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{MissedTickBehavior, interval};

use super::baseline::{alive, is_listening};
use super::findings::Findings;
use super::load::{Load, PATIENCE, Plan, Request, Stage, either};
use super::pulse::TURN;
use super::real_time::real_time;
use super::{http1, http2};

/// Clients that ask a server again and again while it is terminated, and tell what became of each request.
///
/// They are eight of HTTP/1 that keep their connections, two that connect anew each time, and two connections of HTTP/2 with
/// four requests at a time; all of them ask again as soon as they have an answer. They live on one thread of their own, with
/// a runtime and the system's clock, so that neither the runtime under test nor paused time is in their way.
///
/// Without a request of its own it asks for `GET /`; what is answered with a 404 is answered.
///
/// # Examples
///
/// See the [module](super), and `examples/deploy.rs`. All that can be said:
///
/// ```
/// # use std::time::Duration;
/// # use http_terminator::testing::Probe;
/// let probe = Probe::new(([127, 0, 0, 1], 3000))
///     .get("/slow")
///     .post("/echo", "hello")
///     .clients(16)
///     .http1_only()
///     .warm_up(Duration::from_millis(500))
///     .answer_within(Duration::from_secs(2))
///     .accepts_for(Duration::from_secs(1)) // its lame duck
///     .settle(Duration::from_millis(25))
///     .limit(Duration::from_secs(30));
/// # drop(probe);
/// ```
#[must_use = "it asks nothing until `through`"]
pub struct Probe {
    server: Server,
    plan: Plan,
}

enum Server {
    At(SocketAddr),
    Hosted(Box<dyn FnOnce() -> Starting + Send>),
}

type Starting = Pin<Box<dyn Future<Output = io::Result<SocketAddr>> + Send>>;

impl Probe {
    /// For a server that accepts at that address: in this process or in another, without TLS.
    pub fn new(address: impl Into<SocketAddr>) -> Self {
        Self::of(Server::At(address.into()))
    }

    /// For a server that it starts by itself, on a runtime of its own with two workers, and that gives its address. When the
    /// probe ends, the runtime is shut down; what is left in it then is [counted](Findings::tasks) before.
    ///
    /// For a test that has no runtime, or is to share none.
    ///
    /// # Examples
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use http_terminator::{Terminator, testing::Probe};
    /// use tokio::net::TcpListener;
    ///
    /// # let block_on = |future| tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
    /// let terminator = Terminator::new();
    /// let serving = terminator.clone();
    /// let probe = Probe::hosting(async move || {
    ///     let listener = TcpListener::bind("127.0.0.1:0").await?;
    ///     let address = listener.local_addr()?;
    ///     let app = Router::new().route("/", get(async || "hello"));
    ///     tokio::spawn(serving.serve(listener, app));
    ///     Ok(address)
    /// });
    /// let findings = block_on(probe.through(|| terminator.terminate())); // any executor's
    /// findings.assert_nothing_lost().assert_nothing_left();
    /// ```
    pub fn hosting<F, S>(start: F) -> Self
    where
        F: FnOnce() -> S + Send + 'static,
        S: Future<Output = io::Result<SocketAddr>> + Send + 'static,
    {
        Self::of(Server::Hosted(Box::new(move || Box::pin(start()))))
    }

    fn of(server: Server) -> Self {
        Self {
            server,
            plan: Plan {
                requests: Vec::new(),
                http1: true,
                http2: true,
                clients: 8,
                warm_up: Duration::from_millis(100),
                answer_within: Duration::from_secs(5),
                accepts_for: Duration::ZERO,
                // The default of the builder's.
                settle: Duration::from_millis(25),
                limit: Duration::from_secs(10),
            },
        }
    }

    /// Asks for this too, by GET. Each client asks for all that there is by turns.
    ///
    /// # Panics
    ///
    /// If it is not the path, and perhaps query, of a URI.
    #[track_caller]
    pub fn get(self, path: &str) -> Self {
        self.asking(Method::GET, path, Bytes::new())
    }

    /// Asks for this too, by POST, with that body.
    ///
    /// # Panics
    ///
    /// If it is not the path, and perhaps query, of a URI.
    #[track_caller]
    pub fn post(self, path: &str, body: impl Into<Bytes>) -> Self {
        self.asking(Method::POST, path, body.into())
    }

    #[track_caller]
    fn asking(mut self, method: Method, path: &str, body: Bytes) -> Self {
        // The address in front of it is part of the URI as well, which has no more than 65,534 bytes.
        let is_path = path.starts_with('/') && path.len() < 65_000 && path.parse::<Uri>().is_ok();
        assert!(is_path, "not a path: {path:?}");
        self.plan.requests.push(Request {
            method,
            path: path.to_owned(),
            body,
        });
        self
    }

    /// How many clients keep a connection of HTTP/1, 8 unless it is said. A quarter as many connect anew, and a quarter as many
    /// speak HTTP/2; at least one.
    pub fn clients(mut self, clients: usize) -> Self {
        self.plan.clients = clients.max(1);
        self
    }

    /// For a server that speaks no HTTP/2 without TLS.
    pub fn http1_only(mut self) -> Self {
        (self.plan.http1, self.plan.http2) = (true, false);
        self
    }

    /// For a server that speaks no HTTP/1, as tonic's.
    pub fn http2_only(mut self) -> Self {
        (self.plan.http1, self.plan.http2) = (false, true);
        self
    }

    /// For how long it asks before the call, 100 ms unless it is said. Longer if a client has no first answer by then, up to
    /// [`answer_within`](Self::answer_within).
    pub fn warm_up(mut self, time: Duration) -> Self {
        self.plan.warm_up = time;
        self
    }

    /// How long an answer may take, 5 s unless it is said. What takes longer is late.
    pub fn answer_within(mut self, bound: Duration) -> Self {
        self.plan.answer_within = bound;
        self
    }

    /// For how long after the call the server is to accept, 0 unless it is said: its lame duck, or `Duration::MAX` where somebody
    /// takes over. Connects that are refused before are [early](Findings::refused_early).
    ///
    /// Who takes over is to accept from the call on, not before. What it has accepted may be answered when the termination has
    /// long returned; of connections that had an answer before the call that is [late](Findings::late).
    pub fn accepts_for(mut self, time: Duration) -> Self {
        self.plan.accepts_for = time;
        self
    }

    /// How long a connection must have been quiet before the server may close it as idle, 25 ms unless it is said: the
    /// default of [`settle`](crate::TerminatorBuilder::settle). Say what yours has.
    ///
    /// The clients never wait for so long, if the machine lets them, and if they are not so many that a round of them takes
    /// longer. If it does, what is lost counts as [crossed](Findings::crossed); with `Duration::MAX` nothing does. A few of those are
    /// excused, and with `Duration::ZERO` any number: a server that closes at once whatever is idle loses what it loses, and
    /// nothing is shown of one that drops what it has read.
    pub fn settle(mut self, time: Duration) -> Self {
        self.plan.settle = time;
        self
    }

    /// How long after the call everything is to be over, 10 s unless it is said. What has no answer then is lost or cut, and the
    /// termination, if it has not returned, is given up: its future is dropped. Leave room for the grace period, and the lame duck.
    pub fn limit(mut self, time: Duration) -> Self {
        self.plan.limit = time;
        self
    }

    /// Asks, calls `terminate` while it does, and goes on until the future that this gives is ready and all connections
    /// have ended.
    ///
    /// The call is when `terminate` is called, not when its future is polled. tokio's time runs meanwhile, if it is paused
    /// ([`real_time`](super::real_time())).
    ///
    /// Takes 100 ms and what the termination takes, where all is well. The call comes after the longer of `warm_up` and
    /// `answer_within` at the latest, and what follows takes `limit`, and a second and a half more to look what is left, at most; only
    /// how long a hosted server takes to start is not bounded. Works in any executor.
    ///
    /// # Cancel safety
    ///
    /// Nothing has begun before the first poll. When it is dropped, its thread ends, and so do its connections; a termination
    /// that has begun goes on.
    ///
    /// # Panics
    ///
    /// If its thread can't be started, or has panicked; if a hosted server can't be started, panics, or fails.
    ///
    /// # Examples
    ///
    /// See the [module](super).
    pub async fn through<F: Future>(self, terminate: impl FnOnce() -> F) -> Findings {
        let Self { server, mut plan } = self;
        if plan.requests.is_empty() {
            plan.requests.push(Request {
                method: Method::GET,
                path: "/".to_owned(),
                body: Bytes::new(),
            });
        }
        real_time(async {
            let host = Host::default();
            let (address, host) = match server {
                Server::At(address) => (address, host),
                Server::Hosted(start) => Host::start(start).await,
            };
            let mut findings = through(plan, address, terminate).await;
            findings.tasks = host.tasks().await;
            findings
        })
        .await
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Probe");
        if let Server::At(address) = &self.server {
            debug.field("address", address);
        }
        debug.field("plan", &self.plan).finish()
    }
}

async fn through<F: Future>(
    plan: Plan,
    address: SocketAddr,
    terminate: impl FnOnce() -> F,
) -> Findings {
    let stage = Caller(Arc::default());
    let (warm, warmed) = oneshot::channel();
    let (tell, found) = oneshot::channel();
    let load = Arc::clone(&stage.0);
    thread::Builder::new()
        .name("terminator-probe".to_owned())
        .spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime can be built");
            let clients = run(plan, address, load, warm);
            let findings = LocalSet::new().block_on(&runtime, clients);
            // What is still under way ends first: nothing of it is left behind who waits.
            drop(runtime);
            if let Some(findings) = findings {
                let _ = tell.send(findings); // nobody waits any more
            }
        })
        .expect("a thread can be started");
    // If it has gone, that is told below.
    let _ = warmed.await;
    stage.0.lock().called = Some(Instant::now());
    let found = {
        let ended = terminate();
        let mut found = pin!(found);
        let returned = async {
            ended.await;
            stage.0.lock().returned = Some(Instant::now());
            future::pending::<()>().await;
        };
        either(&mut found, returned).await
    };
    match found {
        Some(Ok(findings)) => findings,
        _ => panic!("the probe's thread has panicked"),
    }
}

/// Who waits for the findings.
struct Caller(Arc<Mutex<Stage>>);

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.lock().abandoned = true;
    }
}

/// `None` if nobody wants to know any more.
async fn run(
    plan: Plan,
    address: SocketAddr,
    stage: Arc<Mutex<Stage>>,
    warm: oneshot::Sender<()>,
) -> Option<Findings> {
    let load = Rc::new(Load::new(plan, address, stage));
    let asked = async {
        let mut clients = JoinSet::new();
        let quarter = load.plan.quarter();
        if load.plan.http1 {
            for n in 0..load.plan.clients {
                clients.spawn_local(http1::client(Rc::clone(&load), n, true));
            }
            for n in 0..quarter {
                clients.spawn_local(http1::client(Rc::clone(&load), n, false));
            }
        }
        if load.plan.http2 {
            for n in 0..quarter {
                clients.spawn_local(http2::client(Rc::clone(&load), n));
            }
        }
        load.newcomers.set(clients.len());
        while let Some(client) = clients.join_next().await {
            client.expect("a client does not panic");
        }
        load.watched().await;
    };
    either(asked, oversee(&load, warm)).await?;
    let mut findings = load.findings();
    findings.listening = findings.returned.is_some() && is_listening(address);
    Some(findings)
}

/// Looks every few milliseconds how far it is. Ends when nobody wants to know any more.
async fn oversee(load: &Load, warm: oneshot::Sender<()>) {
    let begin = Instant::now();
    let mut warm = Some(warm);
    let mut turns = interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let now = Instant::now();
        // Behind all that were ready: of many tasks each turn polls some.
        let _ = tokio::task::spawn_local(async {}).await;
        load.pulse.turn(now);
        let stage = load.stage();
        if stage.abandoned {
            return;
        }
        let warmed_for = now - begin;
        let is_warm = load.newcomers.get() == 0 && warmed_for >= load.plan.warm_up;
        if is_warm || warmed_for >= load.plan.answer_within.max(load.plan.warm_up) {
            if let Some(warm) = warm.take() {
                let _ = warm.send(()); // nobody waits any more
            }
        }
        if stage.returned.is_some_and(|it| now - it >= PATIENCE) {
            load.patience.cancel();
        }
        if stage.called.is_some_and(|it| now - it >= load.plan.limit) {
            load.over.cancel();
        }
    }
}

/// The runtime of a server that was started for the probe.
#[derive(Default)]
struct Host(Option<Runtime>);

impl Host {
    async fn start(start: Box<dyn FnOnce() -> Starting + Send>) -> (SocketAddr, Self) {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime can be built");
        let host = Self(Some(runtime));
        let starting = host.0.as_ref().map(|it| it.spawn(async { start().await }));
        let started = starting.expect("it was put there").await;
        let address = started.expect("the server does not panic as it starts");
        (address.expect("the server can be started"), host)
    }

    /// How many are alive when they have been given some time to end.
    async fn tasks(&self) -> usize {
        let Some(runtime) = &self.0 else {
            return 0;
        };
        let begin = Instant::now();
        let tasks = future::poll_fn(|cx| {
            let alive = alive(runtime.handle());
            if alive == 0 || begin.elapsed() > PATIENCE {
                return Poll::Ready(alive);
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        tasks.await
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Its drop would wait, which is forbidden inside of another one.
            runtime.shutdown_background();
        }
    }
}
