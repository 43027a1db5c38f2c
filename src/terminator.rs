//! The facade: what users hold.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
#[cfg(feature = "signal")]
use std::sync::Weak;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "signal")]
use crate::census::Left;
#[cfg(all(test, feature = "serve"))]
use crate::clock::Clock;
use crate::clock::Moment;
use crate::config::{Config, IdlePolicy, LameDuck};
use crate::connection::{self, GracefulConnection, TrackedIo, Watched};
use crate::driver::Driver;
use crate::driver::in_hand::in_hand;
use crate::driver::noted::Noted;
use crate::guard::ShutdownGuard;
use crate::phase::Phase;
use crate::registry::Registry;
use crate::report::Straggler;
#[cfg(feature = "serve")]
use crate::serve::EndStreamsLayer;
use crate::serve::{Listener, TrackedListener};
use crate::stats::Stats;
use crate::termination::{Reached, Termination, Told};

/// Ends a server well: knows every connection, and closes each as soon as nothing is lost by it.
///
/// A cheap handle; clones are the same terminator. Different terminators share nothing but the process's
/// signals: a process may have any number of them, each for any number of listeners (each `Serve` is ready when
/// *all* has ended), and a new one can bind the address of an old one as soon as that one's listener is
/// closed ([`stats`](Self::stats)`().listeners`), with `SO_REUSEADDR`, which tokio's `TcpListener::bind` sets on Unix.
///
/// Dropping the last handle ends nothing: what is served goes on, and so does `terminate_on_signal`.
///
/// A terminator ends once. What is given to one that has ended is closed at once (a socket of tokio's, once it is dropped), `serve` is ready with the same report, and
/// `terminate_on_signal` does nothing: make a new one to serve again.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// # use axum::{Router, routing::get};
/// use http_terminator::Terminator;
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// let app = Router::new().route("/", get(|| async { "hello" }));
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
///
/// let terminator = Terminator::builder().grace_period(Duration::from_secs(20)).build();
/// let server = tokio::spawn(terminator.serve(listener, app));
///
/// // … later, in a shutdown hook:
/// let report = terminator.terminate().await;
/// assert!(report.is_clean());
/// # assert_eq!(server.await?, report);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Terminator {
    driver: Arc<Driver>,
}

/// Sets what a [`Terminator`] does; [`Terminator::builder`] makes one.
///
/// Durations may be absurd: one too long to count is taken as "never".
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// # use http_terminator::Terminator;
/// let terminator = Terminator::builder()
///     .grace_period(Duration::from_secs(20))
///     .lame_duck(Duration::from_secs(5))
///     .build();
/// # drop(terminator);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "call `build`"]
pub struct TerminatorBuilder {
    config: Config,
}

impl Terminator {
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// With the builder's defaults.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// assert!(Terminator::new().is_ready());
    /// ```
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// For other settings.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().grace_period(Duration::from_secs(20)).build();
    /// # drop(terminator);
    /// ```
    pub fn builder() -> TerminatorBuilder {
        TerminatorBuilder::default()
    }

    // ----- the call -----

    /// Ends everything: takes what the kernel has queued and closes the listeners, closes idle
    /// connections, lets work in hand finish for the grace period, then cuts what is left.
    ///
    /// Begins at the call, not at the first poll. It may be called again, from any thread, inside
    /// or outside of a runtime, in any phase, also before anything is served: there is one
    /// termination and one report. When the future is ready every tracked socket is closed, the
    /// listeners are closed, and no connection task is left but those that the report names.
    ///
    /// From inside a request handler call it and drop the future: that very request is answered, on HTTP/1 with
    /// `connection: close`. A handler that *awaits* it waits for itself until the deadline.
    ///
    /// Compared with [`force`](Self::force) it gives the grace period to what is in hand.
    ///
    /// It has the system's clock. In a test whose tokio time is paused, don't put a `timeout` around it: that fires at once. Use
    /// [`terminate_within`](Self::terminate_within), or await both inside of `testing::real_time` (feature `testing`).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::{Router, routing::post};
    /// # use http_terminator::Terminator;
    /// # let terminator = Terminator::new();
    /// let quit = terminator.clone();
    /// let app: Router = Router::new().route("/quit", post(move || async move {
    ///     drop(quit.terminate());
    ///     "bye"
    /// }));
    /// ```
    pub fn terminate(&self) -> Termination {
        self.terminate_within(self.registry().config.grace_period)
    }

    /// The same with a grace period of this call, `None` for as long as it takes: of several calls, of this or
    /// of [`terminate`](Self::terminate), the earliest deadline holds.
    ///
    /// It is counted from the start of the drain, or from the call if the drain has begun. Zero does what
    /// [`force`](Self::force) does, once the lame duck is over. Who only wants to wait for the end calls
    /// [`terminated`](Self::terminated).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// // The host goes down in ten seconds, and there is no lame duck.
    /// let report = terminator.terminate_within(Duration::from_secs(8)).await;
    /// # }
    /// ```
    pub fn terminate_within(&self, grace: impl Into<Option<Duration>>) -> Termination {
        self.driver.terminate(grace.into());
        self.terminated()
    }

    /// Ends everything now: on HTTP/1 requests without a response are answered `503`, unless
    /// [`answer_at_deadline`](TerminatorBuilder::answer_at_deadline) is off, and all sockets are closed within 150 ms,
    /// whatever handlers do.
    ///
    /// For the second Ctrl-C. Also after [`terminate`](Self::terminate), whose future is then ready
    /// as well.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// let report = terminator.force().await;
    /// println!("{report:#}");
    /// # }
    /// ```
    pub fn force(&self) -> Termination {
        self.driver.force();
        self.terminated()
    }

    /// Waits for the end without asking for it. It may be called before anybody has, and any number of times.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() {
    /// let terminator = Terminator::new();
    /// let end = tokio::spawn(terminator.terminated());
    /// drop(terminator.terminate()); // by whomever
    /// assert!(end.await.is_ok_and(|report| report.is_clean()));
    /// # }
    /// ```
    pub fn terminated(&self) -> Termination {
        Termination::by(&self.driver)
    }

    // ----- what goes on -----

    /// How far the termination has come.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::{Phase, Terminator};
    /// let terminator = Terminator::new();
    /// assert_eq!(terminator.phase(), Phase::Serving);
    /// drop(terminator.terminate());
    /// assert!(terminator.phase() >= Phase::Draining);
    /// ```
    pub fn phase(&self) -> Phase {
        self.registry().phase()
    }

    /// Whether this server should be sent new connections: for readiness probes. False from
    /// [`Phase::LameDuck`] on. It costs next to nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::{Router, http::StatusCode, routing::get};
    /// # use http_terminator::Terminator;
    /// # let terminator = Terminator::new();
    /// let traffic = terminator.clone();
    /// let probes: Router = Router::new().route("/ready", get(move || async move {
    ///     if traffic.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    /// }));
    /// ```
    ///
    /// Serve the probes by a terminator that ends last, as `examples/order.rs` does.
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Serving
    }

    /// What is in hand right now. It walks all connections: for a scrape or a page, not for every request.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # let terminator = Terminator::new();
    /// let guard = terminator.guard();
    /// assert_eq!(terminator.stats().guards, 1);
    /// println!("{}", terminator.stats());
    /// # drop(guard);
    /// ```
    pub fn stats(&self) -> Stats {
        self.registry().stats()
    }

    /// Who would be named if everything were cut now: requests in hand, connections that are not idle
    /// and have none that can be seen, upgraded ones, and guards; the oldest first, those that were
    /// [detached](crate::Connection::detach) behind them, 64 at most.
    ///
    /// For a page that says what a drain waits for, and for whoever is on call to look at. It may be
    /// asked in any phase and from anywhere, also from inside of a handler, whose own request is then
    /// among them. [`unresponsive`](Straggler::unresponsive) says here that the handler is inside a
    /// poll at this very moment, which alone is nothing bad. After the end it names what could not be ended:
    /// handlers that block, and guards that are still held.
    ///
    /// Compared with [`stats`](Self::stats), which counts everything, it names some. Both walk all
    /// connections, so call them every second rather than for every request.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::new();
    /// assert!(terminator.in_hand().is_empty());
    ///
    /// let guard = terminator.guard();
    /// let [held] = &terminator.in_hand()[..] else { panic!("it is held") };
    /// assert!(held.place.as_ref().is_some_and(|place| place.contains(".rs:")));
    /// println!("{held}"); // guard taken at src/main.rs:7:24, held for 1.2µs
    /// # drop(guard);
    /// # assert!(terminator.in_hand().is_empty());
    /// ```
    pub fn in_hand(&self) -> Vec<Straggler> {
        in_hand(self.registry())
    }

    /// How long until the deadline. `None` while serving, and if there is no grace period. In a lame duck it counts the
    /// whole of that, should it last as long as it may; zero once the deadline is past. If the termination has ended
    /// before it, it goes on counting down, unless that had detached connections to cut.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().grace_period(Duration::from_secs(20)).build();
    /// assert_eq!(terminator.time_left(), None);
    ///
    /// let guard = terminator.guard(); // work in hand
    /// drop(terminator.terminate());
    /// assert!(terminator.time_left().is_some_and(|left| left <= Duration::from_secs(20)));
    /// # drop(guard);
    /// ```
    pub fn time_left(&self) -> Option<Duration> {
        // The phase first: it rises behind its deadline.
        let is_serving = self.phase() == Phase::Serving;
        let deadline = self.registry().deadline();
        (!is_serving && deadline != Moment::NEVER)
            .then(|| deadline.since(self.registry().clock.now()))
    }

    /// Waits until the termination has come to `phase`, or further. A phase that is left out is passed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future: a phase is a level, who asks late learns at once.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::{Phase, Terminator};
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// let watched = terminator.clone();
    /// let leaving = tokio::spawn(async move { watched.reached(Phase::Draining).await });
    /// # drop(terminator.terminate());
    /// # assert!(leaving.await.is_ok());
    /// # }
    /// ```
    pub async fn reached(&self, phase: Phase) {
        if phase == Phase::Terminated {
            self.terminated().await;
        } else {
            Reached::phase(self.registry(), phase).await;
        }
    }

    /// Waits until it is time to end: for streams that would never end, handlers of upgraded
    /// connections, and background tasks.
    ///
    /// That is when the drain begins; under [`IdlePolicy::Spread`] each such future has its own turn
    /// within that policy's time, so that not all upgraded connections say goodbye, and all their
    /// clients come back, at once. Who must know at once asks [`reached`](Self::reached)`(Phase::Draining)` or a
    /// [`cancellation_token`](Self::cancellation_token). It owns what it needs, and needs no runtime. Make it once and
    /// keep it: one made anew in each round of a loop has a turn of its own each time.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future.
    ///
    /// # Examples
    ///
    /// ```
    /// # use futures_util::StreamExt;
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// # let ticks = futures_util::stream::pending::<u8>();
    /// let events = ticks.take_until(terminator.draining());
    /// # drop(terminator.terminate());
    /// # assert_eq!(events.count().await, 0);
    /// # }
    /// ```
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.told()
    }

    pub(crate) fn told(&self) -> Told {
        Told::by(&self.driver)
    }

    /// A layer that ends the bodies of streaming responses when their connection is told, for routes whose
    /// handlers are somebody else's and know of no drain: server-sent events, a `Watch` of tonic-health,
    /// reflection. Without it such a stream holds the drain until the deadline.
    ///
    /// A response ends as [`EndingBody`](crate::EndingBody) says, on gRPC (known by its `content-type`) with the
    /// status `UNAVAILABLE`, and [`settle`](crate::TerminatorBuilder::settle) after it is told. That is when its own [`Connection`](crate::Connection) is told, if requests have that
    /// in their extensions ([`connection_in_extensions`](crate::Serve::connection_in_extensions)), so that an old
    /// connection ends as well; otherwise when the terminator drains.
    ///
    /// Put it around routes that stream without end, and no others:
    ///
    /// - What has a length is never cut, and a gRPC call with one answer neither, unless its handler waits between message and trailers. But a download without a
    ///   length, or a gRPC stream that would have ended, is, and a download then looks whole. The same holds
    ///   for a proxy's, whose answers pause at any point, one of a single message too.
    /// - It belongs inside of what encodes bodies, such as compression or gRPC-Web, whose last bytes
    ///   would otherwise be missing.
    /// - A client that does not read what was sent before can't be brought to the end: the deadline does.
    ///
    /// With tonic, `Routes` takes one service in it by tonic's `LayerExt::named_layer`, its `Server` takes it
    /// as a `layer` around all. Handlers of your own can say more by [`draining`](Self::draining): a goodbye that they
    /// send within `settle`, by a task of their own too, goes out first.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use axum::response::{Sse, sse::Event};
    /// # use axum::{Router, routing::get};
    /// # use futures_util::stream::{self, Stream};
    /// # use http_terminator::Terminator;
    /// # use tokio::net::TcpListener;
    /// /// Knows nothing of any termination.
    /// async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    ///     Sse::new(stream::pending())
    /// }
    ///
    /// # #[tokio::main] async fn main() -> std::io::Result<()> {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let terminator = Terminator::new();
    /// let app = Router::new()
    ///     .route("/events", get(events))
    ///     .route_layer(terminator.end_streams())
    ///     .route("/", get(|| async { "hello" }));
    /// let server = terminator.serve(listener, app).connection_in_extensions();
    /// # terminator.terminate();
    /// println!("{}", server.await);
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "serve")]
    pub fn end_streams(&self) -> EndStreamsLayer {
        EndStreamsLayer::new(self.clone())
    }

    /// A token that is cancelled when the drain begins, whatever the policy. Cancelling it yourself ends nothing but what
    /// waits for this one token and its children.
    ///
    /// It learns, and holds nothing: take a [`guard`](Self::guard) too. Tokens are cancelled by a thread of this crate, a
    /// moment after [`phase`](Self::phase) has risen, one after the other: a waker of somebody's own that blocks or panics
    /// there may keep other tokens from being seen, and none of [`draining`](Self::draining).
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # async fn next_job() { std::future::pending::<()>().await }
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// let (guard, token) = (terminator.guard(), terminator.cancellation_token());
    /// tokio::spawn(async move {
    ///     let _guard = guard; // the drain waits until this task has ended
    ///     // `next_job` must be cancel safe: at the drain it is dropped, in the middle of whatever it waits for.
    ///     while let Some(job) = token.run_until_cancelled(next_job()).await {
    ///         drop(job); // done to its end, also in the drain
    ///     }
    /// });
    /// assert!(terminator.terminate().await.is_clean());
    /// # }
    /// ```
    pub fn cancellation_token(&self) -> CancellationToken {
        let token = self.registry().draining.child_token();
        if self.phase() >= Phase::Draining {
            // The others are cancelled by a thread of ours, a moment after the phase has risen.
            token.cancel();
        }
        token
    }

    // ----- other work -----

    /// Holds the drain open until the guard is dropped. `None` from [`Phase::Draining`] on: it is too
    /// late to begin something. Who holds one must not wait for the end, which waits for him until the deadline.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// if let Some(guard) = terminator.guard() {
    ///     tokio::task::spawn_blocking(move || {
    ///         let _guard = guard; // the drain waits for it
    ///         // … write a file …
    ///     });
    /// }
    /// # let ended = terminator.terminate();
    /// # assert!(terminator.guard().is_none());
    /// # assert!(ended.await.is_clean());
    /// # }
    /// ```
    #[must_use = "the drain is held open for as long as the guard lives"]
    #[track_caller]
    pub fn guard(&self) -> Option<ShutdownGuard> {
        ShutdownGuard::before(Phase::Draining, self.registry())
    }

    /// Spawns work that the drain waits for. At the deadline it is dropped at its next await, and the
    /// handle gives `None`; so does work spawned after the deadline, which is never polled. The report names it then among the
    /// stragglers, and is clean all the same.
    ///
    /// It holds a guard that was taken where this is called, and is named by that. So it must not wait for the end
    /// ([`terminate`](Self::terminate), [`terminated`](Self::terminated), a `serve`), which waits for it until the deadline, where it is
    /// dropped: spawn that by `tokio::spawn`.
    ///
    /// Other than [`guard`](Self::guard) it may still be called while draining, as a request that
    /// finishes may have something to leave behind. What is not waited for itself, such as a task that waits for
    /// [`draining`](Self::draining) and then spawns, may come too late, when nothing else was left: let it hold a guard
    /// from the start.
    ///
    /// Its panic is the error of the handle, and ends its guard; a handle that is dropped detaches it, and it is waited
    /// for all the same. It is dropped before its guard: unless it was cut, its destructors have run when the report is there.
    /// `is_finished` of its handle may be false for a moment more. Of work that has ended nothing is kept.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// let written = terminator.spawn(async { 7 });
    /// terminator.terminate().await;
    /// assert!(matches!(written.await, Ok(Some(7))));
    /// # }
    /// ```
    #[track_caller]
    pub fn spawn<F>(&self, work: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let spawned = Spawned {
            work,
            forced: Reached::phase(self.registry(), Phase::Forcing),
            guard: ShutdownGuard::before(Phase::Forcing, self.registry()),
            _noted: self.registry().note_runtime(),
        };
        #[allow(clippy::disallowed_methods)] // this is the public `spawn`
        tokio::spawn(spawned)
    }

    // ----- front ends -----

    /// Tracks the connections that `listener` accepts: for accept loops of your own.
    ///
    /// Other than [`serve`](Self::serve) it sets no socket options: `TCP_NODELAY` is yours (without it the first answer over TLS may lie in the
    /// kernel for 40 ms, longer than [`settle`](crate::TerminatorBuilder::settle), and a request right behind it meet the close), by
    /// [`TrackedIo::with`] for instance. Dropped, it closes the listener. Do a TLS handshake of your own by
    /// [`Connection::handshake`](crate::Connection::handshake), or the grace period alone bounds it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::Router;
    /// # use http_terminator::{HttpBuilder, Terminator, TowerToHyper};
    /// # use tokio::net::TcpListener;
    /// # #[tokio::main] async fn main() -> std::io::Result<()> {
    /// # let (terminator, app) = (Terminator::new(), Router::<()>::new());
    /// let builder = HttpBuilder::default();
    /// let mut listener = terminator.listen(TcpListener::bind("127.0.0.1:0").await?);
    /// # drop(terminator.terminate());
    /// while let Some((io, peer)) = listener.accept().await {
    ///     let served = io.connection().serve(&builder, io, TowerToHyper::new(app.clone()));
    ///     tokio::spawn(async move {
    ///         if let Err(error) = served.await {
    ///             eprintln!("{peer}: {error}");
    ///         }
    ///     });
    /// }
    /// println!("{}", terminator.terminated().await);
    /// # Ok(()) }
    /// ```
    ///
    /// No more than a thousand at a time, and none of some peers. (TCP keepalive: on Linux what is accepted inherits the
    /// listener's.)
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use axum::Router;
    /// # use http_terminator::{HttpBuilder, Terminator, TowerToHyper};
    /// # use tokio::{net::TcpListener, sync::Semaphore};
    /// # async fn serve(terminator: Terminator, listener: TcpListener, app: Router) {
    /// # let builder = HttpBuilder::default();
    /// let mut listener = terminator.listen(listener);
    /// let permits = Arc::new(Semaphore::new(1000));
    /// while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
    ///     let Some((io, peer)) = listener.accept().await else {
    ///         break;
    ///     };
    ///     if peer.ip().is_multicast() {
    ///         continue; // it is closed by its drop; `io.with(|tcp| tcp.local_addr())` says where it came to
    ///     }
    ///     let served = io.connection().serve(&builder, io, TowerToHyper::new(app.clone()));
    ///     tokio::spawn(async move {
    ///         let _ = served.await;
    ///         drop(permit); // an upgrade ends this, too
    ///     });
    /// }
    /// # }
    /// ```
    #[must_use = "it closes the listener when it is dropped"]
    pub fn listen<L: Listener>(&self, listener: L) -> TrackedListener<L> {
        TrackedListener::new(self.registry(), listener)
    }

    /// Tracks one connection that came from elsewhere.
    ///
    /// It counts until it is dropped. Once the terminator has ended, it is shut down at once, and closed as it is dropped, if it is a socket of tokio's; any other is dropped in here. What passes through it is not
    /// looked at: it is idle, until it is [`serve`](crate::Connection::serve)d or [`watch`](crate::Connection::watch)ed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// let (_client, server) = tokio::io::duplex(64);
    /// let io = terminator.track(server);
    /// assert_eq!(terminator.stats().connections, 1);
    /// drop(io);
    /// assert!(terminator.terminate().await.is_clean());
    /// # }
    /// ```
    #[must_use = "it is closed when it is dropped"]
    pub fn track<Io: Send + 'static>(&self, io: Io) -> TrackedIo<Io> {
        TrackedIo::new(self.registry(), io)
    }

    /// Watches a connection of which nothing else is known: the same call as `watch` of hyper-util's
    /// `GracefulShutdown`. What is left after the grace period (5 s by default) is cut; in place of its `watcher()` a clone
    /// of this does, and in place of `count()` [`stats`](Self::stats)`().connections`.
    ///
    /// What it gives over that: a deadline, a report, and [`settle`](TerminatorBuilder::settle),
    /// after which the connection is told, so that a request on its way when the drain began is
    /// answered. What it can't give, since it sees neither bytes nor requests nor listeners: what the kernel has queued as the listener is
    /// dropped is reset; half a request head
    /// on a kept-alive connection is lost, and so are requests pipelined behind others, and one that comes behind a response during which
    /// the connection was told; an answer that is ahead of its request's body may be destroyed by a reset; an upgraded connection is no longer counted; in a lame duck it is not told; a silent
    /// HTTP/2 peer is bounded by the grace period alone; a response of HTTP/1.0 that is cut may look
    /// whole; a stalled runtime keeps the socket open past the deadline; no request is answered `503` there, counted in
    /// `stats`, or named by method and path; `head_timeout`, `idle_timeout`, and the limit of requests do nothing (of its age it is told). [`listen`](Self::listen) or [`track`](Self::track), and
    /// [`Connection::serve`](crate::Connection::serve), give all of it.
    ///
    /// Over a [`TrackedIo`] use [`Connection::watch`](crate::Connection::watch): this would count it once more.
    ///
    /// An accept loop of your own that is to stop does so by [`reached`](Self::reached)`(Phase::Draining)`: under
    /// [`IdlePolicy::Spread`] [`draining`](Self::draining) comes at its turn, until which it would
    /// go on accepting.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use http_terminator::Terminator;
    /// # use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
    /// # use hyper_util::rt::TokioIo;
    /// # use tokio::net::TcpStream;
    /// fn serve(terminator: &Terminator, socket: TcpStream) {
    ///     let hello = service_fn(async |_: Request<Incoming>| {
    ///         Ok::<_, Infallible>(Response::new("hello".to_owned()))
    ///     });
    ///     let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), hello);
    ///     tokio::spawn(terminator.watch(connection));
    /// }
    /// ```
    pub fn watch<C: GracefulConnection>(&self, connection: C) -> Watched<C> {
        connection::watch(self.registry(), connection)
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.driver.registry
    }

    #[cfg(feature = "signal")]
    pub(crate) fn downgrade(&self) -> WeakTerminator {
        WeakTerminator {
            driver: Arc::downgrade(&self.driver),
            registry: Arc::downgrade(self.registry()),
        }
    }
}

// All they share is behind locks that a panic does not poison.
impl UnwindSafe for Terminator {}
impl RefUnwindSafe for Terminator {}

pin_project! {
    /// Work that a drain waits for. A struct, as its parts have to go in this order also if it is never polled.
    struct Spawned<F> {
        #[pin]
        work: F,
        forced: Reached,
        guard: Option<ShutdownGuard>,
        _noted: Option<Noted>,
    }
}

impl<F: Future> Future for Spawned<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.guard.is_none() || Pin::new(this.forced).poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        this.work.poll(cx).map(Some)
    }
}

/// Keeps nothing alive, and is of use for as long as there is anything left to terminate.
#[cfg(feature = "signal")]
pub(crate) struct WeakTerminator {
    driver: Weak<Driver>,
    registry: Weak<Registry>,
}

#[cfg(feature = "signal")]
impl WeakTerminator {
    pub(crate) fn is(&self, terminator: &Terminator) -> bool {
        std::ptr::eq(self.registry.as_ptr(), Arc::as_ptr(terminator.registry()))
    }

    /// Nobody has it any more, and nothing is left of what it served or tracked, but perhaps handles of connections
    /// that are gone.
    pub(crate) fn has_ended(&self) -> bool {
        let is_empty = |registry: Arc<Registry>| registry.census.left() == Left::Nothing;
        self.driver.strong_count() == 0 && self.registry.upgrade().is_none_or(is_empty)
    }

    /// What is served and tracked holds the registry only. A driver that is gone has begun nothing, as
    /// its thread would hold it, so a new one may take its place.
    pub(crate) fn upgrade(&mut self) -> Option<Terminator> {
        let driver = self.driver.upgrade().or_else(|| {
            let registry = self.registry.upgrade()?;
            // It has ended.
            if registry.phase() > Phase::Serving {
                return None;
            }
            let driver = Arc::new(Driver::new(registry));
            self.driver = Arc::downgrade(&driver);
            Some(driver)
        });
        driver.map(|driver| Terminator { driver })
    }
}

#[cfg(feature = "serve")]
mod serve {
    use std::error::Error;

    use http::{Request, Response};
    use http_body::Body;
    use hyper::body::Incoming;
    use tokio::io::{AsyncRead, AsyncWrite};
    use tower_service::Service;

    use super::{Listener, Terminator};
    use crate::serve::{PerConnection, Serve};

    type BoxError = Box<dyn Error + Send + Sync>;

    impl Terminator {
        /// Serves a tower service, such as an axum `Router`, on a listener: HTTP/1 and HTTP/2,
        /// upgrades included.
        ///
        /// Each request is served by a clone of the service. Sets what a server should have: `TCP_NODELAY` (where the listener's IO is
        /// tokio's `TcpStream` itself: one that wraps it is to set it), and bounds on half-sent request
        /// heads. The future runs until the terminator has ended everything; spawn it, or await it
        /// together with `terminate_on_signal`.
        ///
        /// It has no error: the listener is bound already, and what accepting fails with is logged and tried again
        /// ([the log](crate#the-log)). A handler of HTTP/1 runs in its connection's task, one of HTTP/2 in a task of its own.
        /// What blocks belongs into `spawn_blocking`: a handler that blocks can't be cut. There is no limit on connections:
        /// for one, for socket options, for peers to be turned away, or for the address that was connected to, take
        /// [`listen`](Self::listen).
        ///
        /// # Examples
        ///
        /// A `Router`: see [`Terminator`]. Any other service of tower's:
        ///
        /// ```
        /// # use std::convert::Infallible;
        /// # use http_terminator::Terminator;
        /// # use hyper::{Request, Response, body::Incoming};
        /// # async fn serve(terminator: Terminator, listener: tokio::net::TcpListener) {
        /// let hello = tower::service_fn(async |_: Request<Incoming>| {
        ///     Ok::<_, Infallible>(Response::new("hello".to_owned()))
        /// });
        /// println!("{}", terminator.serve(listener, hello).await);
        /// # }
        /// ```
        ///
        /// What is around a whole `Router`, and takes axum's own bodies, is given those:
        ///
        /// ```
        /// # use axum::{Router, body::Body, extract::Request, middleware::{Next, from_fn}, response::Response};
        /// # use http_terminator::Terminator;
        /// # use hyper::body::Incoming;
        /// use tower::{Layer, ServiceExt};
        ///
        /// # async fn checked(request: Request, next: Next) -> Response { next.run(request).await }
        /// # async fn serve(terminator: Terminator, listener: tokio::net::TcpListener, router: Router) {
        /// let app = from_fn(checked).layer(router);
        /// let app = app.map_request(|request: http::Request<Incoming>| request.map(Body::new));
        /// println!("{}", terminator.serve(listener, app).await);
        /// # }
        /// ```
        pub fn serve<L, S, B>(&self, listener: L, service: S) -> Serve<L, S>
        where
            L: Listener,
            L::Io: AsyncRead + AsyncWrite + Unpin,
            S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
            S::Future: Send + 'static,
            S::Error: Into<BoxError>,
            B: Body + Send + 'static,
            B::Data: Send,
            B::Error: Into<BoxError>,
        {
            Serve::new(self.registry(), listener, service)
        }

        /// Serves with a service made for each connection, from its address.
        ///
        /// It is made in the connection's own task, before a TLS handshake, within
        /// [`head_timeout`](crate::TerminatorBuilder::head_timeout); in the drain a
        /// connection that has sent nothing is not waited for, if that can be seen (of tokio's sockets it can), and one that has until the
        /// deadline: its request has arrived.
        ///
        /// # Examples
        ///
        /// ```
        /// # use std::net::SocketAddr;
        /// # use axum::{Router, extract::ConnectInfo, routing::get};
        /// # use http_terminator::Terminator;
        /// # #[tokio::main] async fn main() -> std::io::Result<()> {
        /// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        /// # let terminator = Terminator::new();
        /// let app = Router::new()
        ///     .route("/", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }))
        ///     .into_make_service_with_connect_info::<SocketAddr>();
        /// tokio::spawn(terminator.serve_make_service(listener, app));
        /// # terminator.terminate().await;
        /// # Ok(()) }
        /// ```
        pub fn serve_make_service<L, M, S, B>(
            &self,
            listener: L,
            make: M,
        ) -> Serve<L, PerConnection<M>>
        where
            L: Listener,
            L::Io: AsyncRead + AsyncWrite + Unpin,
            M: Service<L::Addr, Response = S> + Clone + Send + 'static,
            M::Error: Into<BoxError>,
            M::Future: Send + 'static,
            S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
            S::Future: Send + 'static,
            S::Error: Into<BoxError>,
            B: Body + Send + 'static,
            B::Data: Send,
            B::Error: Into<BoxError>,
        {
            Serve::per_connection(self.registry(), listener, make)
        }
    }
}

impl Default for Terminator {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Terminator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminator")
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

// ===== impl TerminatorBuilder =====

impl TerminatorBuilder {
    /// How long work in hand may take, counted from the start of the drain; `None` for as long as it
    /// takes. The default is 5 s: less than the patience of most supervisors (systemd has 90 s, Kubernetes 30 s,
    /// Docker 10 s), but not than the 5 s of Nomad and Fly. Zero does what [`force`](Terminator::force) does,
    /// once the lame duck is over.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().grace_period(Duration::from_secs(20)).build();
    /// drop(terminator.terminate());
    /// # let guard = terminator.guard();
    /// assert!(terminator.time_left().is_some_and(|left| left <= Duration::from_secs(20)));
    ///
    /// let patient = Terminator::builder().grace_period(None).build();
    /// # drop((guard, patient));
    /// ```
    pub fn grace_period(mut self, period: impl Into<Option<Duration>>) -> Self {
        self.config.grace_period = period.into();
        self
    }

    /// How long to go on serving and accepting after [`terminate`](Terminator::terminate), while
    /// [`is_ready`](Terminator::is_ready) is false. The default is zero. Behind a load balancer set it to the
    /// time in which that learns; as a range `min..=max` it ends in between, as soon as no connection is open (an idle
    /// one is, one that is [detached](crate::Connection::detach) does not count), no guard is held, and nobody has connected for [`settle`](Self::settle). Behind a proxy that keeps its
    /// connections that is mostly at `max`. A [`Serve`](crate::Serve) has to be polled all the while: don't drop it in a
    /// `select!`.
    ///
    /// Meanwhile HTTP/1 responses say `connection: close`, and HTTP/2 connections are told to go away: those
    /// that have had a request at once (with [`IdlePolicy::Spread`] each in its turn), and the others when they have had one, or for [`stall_timeout`](Self::stall_timeout) none.
    /// Streams without end go on: who waits for [`Connection::draining`](crate::Connection::draining), as
    /// [`end_streams`](Terminator::end_streams) does, is told when the drain begins.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::{Phase, Terminator};
    /// let terminator = Terminator::builder().lame_duck(Duration::from_secs(5)).build();
    /// drop(terminator.terminate());
    /// assert_eq!(terminator.phase(), Phase::LameDuck);
    /// assert!(!terminator.is_ready());
    ///
    /// let range = Duration::from_secs(2)..=Duration::from_secs(10);
    /// let early = Terminator::builder().lame_duck(range).build();
    /// # drop((terminator.force(), early));
    /// ```
    pub fn lame_duck(mut self, period: impl Into<LameDuck>) -> Self {
        self.config.lame_duck = period.into();
        self
    }

    /// How long a peer may take from the first byte of a request head to its last, for a TLS handshake
    /// that [`Serve::tls`](crate::Serve::tls) or [`Connection::handshake`](crate::Connection::handshake)
    /// does, and for the making of a service; `None` for as long as it takes (zero is no time at all). The default is 30 s, which
    /// is hyper's. In a drain of all [`stall_timeout`](Self::stall_timeout) and the deadline count in its
    /// place where it waits for the client; for what this side takes in a handshake, it counts from when that begins, and of
    /// the making of a service, whose request has arrived, the deadline alone.
    ///
    /// On HTTP/2 it holds while no stream is open; behind half a head no other stream can be opened. A TLS handshake and the
    /// making of a service are bounded from their beginning, also if nothing was sent; a plain connection that has sent nothing is
    /// bounded by [`idle_timeout`](Self::idle_timeout) alone. It
    /// holds where this crate sees the bytes, so not for connections that are only
    /// [`watch`](Terminator::watch)ed or served by `axum::serve` or tonic.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().head_timeout(Duration::from_secs(10)).build();
    /// # drop(terminator);
    /// ```
    pub fn head_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.config.head_timeout = time.into();
        self
    }

    /// How long a connection may be idle while serving: HTTP/1 is then closed, and HTTP/2 told to go away. The
    /// default is `None` (zero is no time at all): a load balancer in front should be the one to close, as only it can know that it
    /// will not send another request. It begins behind the TLS handshake, which has
    /// [`head_timeout`](Self::head_timeout). Where it holds: as that.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().idle_timeout(Duration::from_secs(75)).build();
    /// # drop(terminator);
    /// ```
    pub fn idle_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.config.idle_timeout = time.into();
        self
    }

    /// How old a connection may grow before it is told to end, as
    /// [`Connection::terminate`](crate::Connection::terminate) does: for clients to spread anew over the servers
    /// behind a load balancer. What is in flight then finishes, however long it takes (but WebSockets, where
    /// [`close_websockets`](crate::Serve::close_websockets) says goodbye). The default is `None`.
    ///
    /// It differs by up to a tenth for each connection, so that those that came together do not leave
    /// together: for the connection numbered `n` it is `0.9 + 0.2 × f` times the age, where `f` is what is
    /// behind the point of `n × 0.6180339887` (the golden ratio).
    ///
    /// On HTTP/1 the next response says `connection: close`; an idle connection is closed when it has been quiet
    /// for a second, or for as long as this age (longer by the `wait` of [`IdlePolicy::LastRequest`]), so that a client whose requests come more often loses
    /// none. On HTTP/2 the client is told to go away. One that has not brought a request by then has a second for that in all, on HTTP/2
    /// from when it is told. Zero has every connection told as it comes: each is served once, and
    /// [`Connection::draining`](crate::Connection::draining) is ready from the start.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().max_connection_age(Duration::from_secs(600)).build();
    /// # drop(terminator);
    /// ```
    pub fn max_connection_age(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.config.max_connection_age = age.into();
        self
    }

    /// How many requests a connection may bring before it is told to end, as
    /// [`Connection::terminate`](crate::Connection::terminate) does. The default is `None`; zero is taken as one.
    ///
    /// On HTTP/1 the response to the last of them says `connection: close`, unless that is an upgrade, and goes on for as long
    /// as it takes, or until the drain. On HTTP/2 the client is told when it has brought the last one, and so are its
    /// [streams](crate::Connection::draining); requests that are on their way then are served as well.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().max_requests_per_connection(10_000).build();
    /// # drop(terminator);
    /// ```
    pub fn max_requests_per_connection(mut self, n: impl Into<Option<u64>>) -> Self {
        self.config.max_requests = n.into();
        self
    }

    /// When idle connections are closed. The default is [`IdlePolicy::Immediate`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::{IdlePolicy, Terminator};
    /// let over = Duration::from_secs(10);
    /// let terminator = Terminator::builder().idle(IdlePolicy::Spread { over }).build();
    /// # drop(terminator);
    /// ```
    pub fn idle(mut self, policy: IdlePolicy) -> Self {
        self.config.idle = policy;
        self
    }

    /// How long a connection must have been quiet before it may be closed as idle. The default is
    /// 25 ms.
    ///
    /// A client that has just got a response may be writing its next request: most of the requests
    /// that other servers lose are lost on connections that became idle microseconds ago. It should
    /// exceed the round trip to the clients; a connection that was quiet for longer anyway is closed
    /// without any wait. Keep it well below the grace period, at whose end also who has not settled yet is
    /// cut, and counts as such.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().settle(Duration::from_millis(100)).build();
    /// # drop(terminator);
    /// ```
    pub fn settle(mut self, time: Duration) -> Self {
        self.config.settle = time;
        self
    }

    /// How long during the drain a peer may be silent that owes us bytes: the rest of a request head, of a TLS handshake or of
    /// an upload that nobody reads, an HTTP/2 handshake or PING ack. The default is 1 s. A peer that may still be owed bytes by
    /// us, such as a slow reader, is not bound by it.
    ///
    /// It is also how long one that is ended alone ([`Connection::terminate`](crate::Connection::terminate)) may be silent, a
    /// WebSocket may take for its goodbye, and a connection of HTTP/2 may be without a first request in the lame duck before it is
    /// told to go away: raised to 30 s, it makes those wait as well.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().stall_timeout(Duration::from_secs(3)).build();
    /// # drop(terminator);
    /// ```
    pub fn stall_timeout(mut self, time: Duration) -> Self {
        self.config.stall_timeout = time;
        self
    }

    /// Whether HTTP/1 requests without a response are answered `503` at the deadline. The default is
    /// true: a load balancer can tell its client, and may retry, what it can't after a reset.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().answer_at_deadline(false).build();
    /// # drop(terminator);
    /// ```
    pub fn answer_at_deadline(mut self, yes: bool) -> Self {
        self.config.answer_at_deadline = yes;
        self
    }

    /// Makes the terminator.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// let terminator = Terminator::builder().build();
    /// # drop(terminator);
    /// ```
    pub fn build(self) -> Terminator {
        Terminator {
            driver: Arc::new(Driver::new(Arc::new(Registry::new(self.config)))),
        }
    }

    /// One without threads, whose driver somebody else steps.
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn build_stepped(self) -> Terminator {
        let registry = Registry::without_threads(self.config, Clock::start());
        Terminator {
            driver: Arc::new(Driver::new(Arc::new(registry))),
        }
    }
}
