//! Ends hyper 1, axum, tonic and tower servers well.
//!
//! A [`Terminator`] serves ([`serve`](Terminator::serve)) or tracks
//! ([`listen`](Terminator::listen), [`track`](Terminator::track)) connections. When it is told to
//! [`terminate`](Terminator::terminate), it closes what is idle, lets finish what is in hand, cuts
//! what is left when the grace period ends, and gives a [`Report`].
//!
//! ```
//! # use std::time::Duration;
//! # use axum::{Router, routing::get};
//! use http_terminator::Terminator;
//!
//! # #[tokio::main] async fn main() -> std::io::Result<()> {
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let app = Router::new().route("/", get(|| async { "hello" }));
//! let terminator = Terminator::builder().grace_period(Duration::from_secs(20)).build();
//! tokio::spawn(terminator.serve(listener, app));
//!
//! // … later, in a shutdown hook:
//! let report = terminator.terminate().await; // every socket is closed when this returns
//! println!("{report}"); // on one line; `{report:#}` is a block for a terminal
//! # Ok(()) }
//! ```
//!
//! This takes the place of `axum::serve(listener, app).with_graceful_shutdown(..)`. For Ctrl-C and SIGTERM call
//! `terminator.terminate_on_signal()?` and await `terminator.serve(listener, app)`, which is ready with the report when all
//! has ended.
//!
//! # What happens when
//!
//! ```text
//!  Serving ──terminate()──▶ LameDuck ──period over──▶ Draining ──all gone──▶ Terminated
//!     │                        │                         │                       ▲
//!     └────────force()─────────┴────────force()──────────┴──grace over──▶ Forcing┘
//! ```
//!
//! | | Serving | `LameDuck` | Draining | Forcing |
//! |---|---|---|---|---|
//! | listener | accepts | accepts | queue emptied, then closed | closed |
//! | [`is_ready`](Terminator::is_ready) | true | false | false | false |
//! | HTTP/1 response heads | untouched | say `connection: close` | say `connection: close` | 503 where none was sent yet |
//! | HTTP/2 | open | told to go away (GOAWAY), streams finish; one that connects now, behind its first request | told, streams finish | dropped |
//! | idle connections | kept | kept | closed by the [`IdlePolicy`] | dropped |
//! | WebSockets and other upgraded connections | run | run | told by `draining`, waited for | cut |
//! | guards, spawned work | run | run | waited for; no new guards | given up; spawned work is dropped |
//!
//! Without a [`lame_duck`](TerminatorBuilder::lame_duck), the default, serving goes straight to draining.
//!
//! # How a termination goes, step by step
//!
//! As [`Terminator::serve`] and [`Connection::serve`] do it.
//!
//! 1. Somebody calls [`terminate`](Terminator::terminate), or a signal does. It has begun when the call returns: a thread
//!    of this crate drives it, and the future that you get only waits.
//! 2. [`is_ready`](Terminator::is_ready) is false from here on, so a readiness probe can say no.
//! 3. With a `lame_duck`, serving goes on for that time. HTTP/1 responses say `connection: close`; HTTP/2 clients get
//!    GOAWAY ("no new requests here"), and what they have asked is answered.
//! 4. The drain begins, and with it the grace period: [`time_left`](Terminator::time_left) counts down to the deadline.
//! 5. Each listener accepts what the kernel has queued, and is closed. Who connects now is refused, and the port can be
//!    bound again; who was queued is served.
//! 6. Whoever waits for [`draining`](Terminator::draining), or has a token, learns of it; under [`IdlePolicy::Spread`]
//!    those who wait for `draining` each in their turn.
//! 7. A kept-alive HTTP/1 connection with nothing in hand is closed, as soon as it has been quiet for 25 ms
//!    ([`settle`](TerminatorBuilder::settle)), or as the [`IdlePolicy`] says.
//! 8. A response whose head is not out says `connection: close`, and the connection ends behind it. One whose head is out
//!    has promised to keep the connection: it goes out whole, and a request within `settle` of its end is answered, too.
//! 9. Half a request head may be completed; a client that is silent in it for a second
//!    ([`stall_timeout`](TerminatorBuilder::stall_timeout)) is closed. An upload that its handler reads has the whole grace
//!    period; one that nobody reads has that second.
//! 10. HTTP/2 connections get a first GOAWAY, and the last one when they have acknowledged it; their streams finish.
//! 11. WebSockets and other upgraded connections count until their IO is dropped; a tunnel on HTTP/2 until its stream
//!     has ended both ways, so hold a [`guard`](Terminator::guard) for what comes after, or, as one that is opened in the drain gets none, do it in a
//!     [`spawn`](Terminator::spawn). Their handlers end by `draining`, or
//!     `Serve::close_websockets` says goodbye for them.
//! 12. A [`guard`](Terminator::guard) and [`spawn`](Terminator::spawn)ed work are waited for. New guards are refused; a
//!     request that finishes may still spawn.
//! 13. Every 5 s before the deadline the log says what is left; [`in_hand`](Terminator::in_hand) says it at any moment.
//! 14. When the last connection and the last guard have gone, that is the end: go on at 18. Connections that are
//!     [`detach`](Connection::detach)ed are not waited for; if only they are left, they are cut now.
//! 15. Otherwise the deadline comes. Who is late is named in the log; the report names who was then cut, and not
//!     who got the rest of an answer in the milliseconds after it.
//! 16. HTTP/1 requests without a response are answered `503`; streams of HTTP/2 end with their connection. The
//!     handlers' futures are dropped. A response that was half sent is cut in such a way that its client can tell.
//! 17. Every socket is closed within 150 ms, by this crate's own threads if the runtime does not run. Spawned work is
//!     dropped at its next await.
//! 18. The [`Report`] is written. `terminate`'s future, that of every `serve` and [`terminated`](Terminator::terminated)
//!     are ready with it.
//!
//! A handler learns of the drain from a terminator in its state, `.with_state(terminator.clone())`:
//!
//! ```
//! # use {axum::extract::State, http_terminator::Terminator};
//! async fn poll(State(terminator): State<Terminator>) -> &'static str {
//!     tokio::select! {
//!         () = terminator.draining() => "ask again",
//!         news = std::future::pending() => news, // yours
//!     }
//! }
//! ```
//!
//! [`force`](Terminator::force), or a second signal, goes to 15 from anywhere.
//!
//! The report is there in time; the *process* may not be. A runtime that is dropped, as at the end of a `#[tokio::main]`,
//! waits without end for a handler that blocks its thread, and for `spawn_blocking`. Leave by
//! `std::process::exit(i32::from(!report.is_clean()))`, or own the runtime and call its `shutdown_background`.
//!
//! # Which front end gives what
//!
//! For a `Router` or tonic's `Routes` take [`Terminator::serve`], for an accept loop of your own [`Terminator::listen`] and
//! [`Connection::serve`]: these give every guarantee. [`Serve`] alone has `close_websockets` and
//! `connection_in_extensions`, and sets `TCP_NODELAY` (of tokio's sockets). [`Connection::watch`] and
//! [`Terminator::watch`] are for connections that were built by hand; they lean on hyper's
//! `graceful_shutdown` and their docs say what that costs. [`Terminator::track`] alone makes the
//! drain wait for an IO, and closes it at the deadline. Services that are not `Send` are for `track` or `listen`,
//! [`Connection::service`], [`Connection::watch`] and `spawn_local`. A [`TrackedListener`] for `axum::serve` or tonic's own server gives
//! the deadline and the counts; what it can't give is said where it is one.
//!
//! What a termination does to all, [`Connection::terminate`], an age or a number of requests does to one, while
//! serving; [`Connection::draining`] tells whoever uses it.
//!
//! # While serving
//!
//! Half a request head, a TLS handshake and the making of a service have 30 s
//! ([`head_timeout`](TerminatorBuilder::head_timeout)). A connection that is idle, or has never sent a byte (behind its TLS handshake, if there is one), has no bound:
//! set [`idle_timeout`](TerminatorBuilder::idle_timeout), unless a balancer stands in front. An HTTP/2 client that is gone
//! without a word in the middle of a stream is found by hyper's `keep_alive_interval`, by `HttpBuilder::http2`. Handlers,
//! bodies, WebSockets and the number of connections are yours to bound.
//!
//! # In tests
//!
//! ```
//! # use std::time::Duration;
//! # use axum::Router;
//! # use http_terminator::Terminator;
//! # use tokio::net::TcpListener;
//! # #[tokio::main] async fn main() -> std::io::Result<()> {
//! # let app: Router = Router::new();
//! let listener = TcpListener::bind("127.0.0.1:0").await?; // any free port
//! let address = listener.local_addr()?; // asked before it is given away
//! let terminator = Terminator::new();
//! tokio::spawn(terminator.serve(listener, app));
//! // … requests to `address`; who connects before the first accept waits in the queue …
//! # let _ = address;
//! terminator.terminate_within(Duration::ZERO).await; // the port is free
//! # Ok(()) }
//! ```
//!
//! A termination's clock is the system's. The bounds while serving (`head_timeout`, `idle_timeout`, the pause after an
//! accept error; not `max_connection_age`) and a close in stages (half-closed first, so that a client that still sends gets its answer) are tokio's timers, but where a client's
//! half request behind an answer is given up, whose close the system's clock bounds: under paused time, half a request is closed as soon as nobody
//! has anything else to do. Don't wait for a termination by `tokio::time::timeout` then: paused time jumps to its end.
//! `testing::real_time` lets time run while it is waited for.
//!
//! The feature `testing` has clients for your own tests that ask a server without a pause through its termination, and tell what
//! was lost, cut, refused or late; and an assertion that no socket and no task of it is left.
//!
//! # What is promised
//!
//! The [`guarantees`], in plain words: what each does not promise, and the tests that show it.
//!
//! # The threads
//!
//! A termination is driven by a plain thread that is started inside the call: it needs no runtime,
//! so a stalled or dropped one stops neither the deadline nor the report. If no thread can be started, a task of a runtime drives it, which keeps the
//! deadline only while that runs (where it ends, another takes over); without a runtime either, the call forces, and returns when
//! everything is closed. An error in the log says so.
//!
//! What is not this crate's may panic or block: the drop of an IO or a listener, a waker, the
//! subscriber that logs. While terminating it is called on threads of its own, which end with the
//! termination, or when they come out of what they are stuck in; nobody waits for them past the
//! deadline, and the report counts what they had not closed by then.
//!
//! While draining, each runtime is given an empty task 50 times a second, unless it has yet to run the
//! last one: a handler that blocks its worker may otherwise keep the IO of a whole runtime from being
//! seen. Idle connections of a runtime that does not run, if they are served by this crate or nothing was read from them yet, are closed from outside, over TLS without a
//! `close_notify`.
//!
//! What ends single connections while serving, and can't be left to their tasks, has a thread of its own as long as there is anything to
//! wait for: [`Connection::terminate`], [`Connection::force`], an idle HTTP/2 connection that is told, a limit of requests that is reached, a
//! close in stages behind half a request; and [`max_connection_age`](TerminatorBuilder::max_connection_age) from the first connection
//! until the last one has reached it.
//!
//! Signals have a thread while a terminator listens for them, one for all.
//!
//! `Terminator::notify_systemd` has none: the thread that drives the termination says what there is to say, and never
//! waits for it. Only where there is no room for `READY=1`, one tries again for as long as the terminator serves.
//!
//! # The log
//!
//! Events of [`tracing`](https://docs.rs/tracing) whose targets begin with `http_terminator`. A log query
//! may rely on their levels, messages, and these fields:
//!
//! | level | message | fields |
//! |---|---|---|
//! | info | terminating | `phase`: which begins; `connections`: how many there are; not said of a phase that is over as it begins, as where nothing is open |
//! | info | still draining | `connections`, `requests`, `upgraded`, `guards`: how many there are, as in [`Stats`]; `oldest`, `second`, `third`: who has been there for longest, as [`in_hand`](Terminator::in_hand) names them; absent if there are fewer |
//! | warn | forcing a connection | `connection`: its number; `straggler`: the same, its request and its age. At the deadline, where one that still ends by itself is not in the report, 64 at most, with the guards; and by [`Connection::force`] in a drain |
//! | warn | giving up a guard | `place`: where it was taken; `straggler`: the same and its age |
//! | info | terminated | `report`: the [`Report`], on one line |
//! | info | terminating on a signal | `signal`: its name; `terminators`: how many it terminates |
//! | warn | forcing on a second signal | `signal`; `terminators`: how many it forces |
//! | error | no thread for the termination | `error`; `forced`: there was no runtime either |
//! | error | no thread for connections that are to end | `error`; told or forced alone, they end when they are polled |
//! | warn | cannot accept, trying again | `error`; once until the queue is found empty |
//! | info | accepting again | `errors`: how many there were |
//! | warn | the accept queue has to wait | `error`; no descriptors were left as the drain began, or as what serves it was dropped |
//! | warn | cannot empty the accept queue | `error` |
//! | warn | cannot notify systemd | `error`; once, it is tried again |
//! | debug | connection closed | `connection`: its number; `outcome`: how it ended |
//! | debug | connection failed | `connection`, `error` |
//! | debug | no service was made | `connection`, `error` |
//! | debug | making a service given up | `connection` |
//! | debug | TLS handshake failed | `connection`, `error` |
//! | debug | TLS handshake given up | `connection` |
//!
//! What belongs to a termination is logged on threads of its own, outside of all spans: a subscriber that was set for one
//! thread (`tracing::subscriber::set_default`) hears none of it, the global one does.
//!
//! *Still draining* is said every 5 s from the start of the drain until the deadline: with the default grace period of 5 s, never. It is no warning, as
//! nothing is lost by it: a drain may take as long as the grace period allows. Of what a client has sent
//! only the method and the path of its request are ever logged, without the query, and escaped.
//!
//! # Features
//!
//! On by default.
//!
//! - `http1`, `http2`: [`GracefulConnection`] for hyper's connections of that version, for `watch`. `serve` has both;
//!   which is served is set by `HttpBuilder::http1_only` or `http2_only`.
//! - `serve`: [`Terminator::serve`], [`Connection::serve`] and [`TrackedIo::downcast`]; turns both
//!   of the above on, as hyper-util's `auto::Builder` needs them.
//! - `signal`: [`Terminator::terminate_on_signal`].
//!
//! Off by default.
//!
//! - `rustls`: `Serve::tls`, by tokio-rustls. It brings no crypto provider: that is the application's
//!   choice.
//! - `axum`: [`TrackedListener`] is a listener for `axum::serve`; its docs say what that can't give.
//! - `tonic`: [`TrackedIo`] is a connection for tonic's `serve_with_incoming_shutdown`.
//! - `systemd`: `Terminator::notify_systemd`, on Unix.
//! - `serde`: `Serialize` for [`Report`], [`Stats`], [`Phase`] and what is in them.
//! - `testing`: the module `testing`, for `[dev-dependencies]`. It turns `serve` on, and tokio's `test-util`, which makes
//!   its clock dearer.
//!
//! # Stability
//!
//! The texts of errors, of `Display`, and so of what a field in the log holds that is no number; what else
//! is logged; and the order of stragglers in a report may change in any release. The names of fields, of what is serialised and in
//! the log, are as stable as those in code. A duration is serialised as serde does it: `secs` and `nanos`.
//!
//! Rust 1.85 or newer; no `unsafe` code. Tested on Linux; compiled for macOS and Windows.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod census;
mod clock;
mod config;
mod connection;
mod driver;
mod guard;
mod level;
mod phase;
mod registry;
mod report;
mod serve;
#[cfg(feature = "signal")]
mod signal;
#[cfg(target_os = "linux")]
mod sock_diag;
mod stats;
mod sync;
#[cfg(all(unix, feature = "systemd"))]
mod systemd;
mod termination;
mod terminator;
#[cfg(feature = "testing")]
pub mod testing;
mod words;

#[cfg(all(test, feature = "serve"))]
#[path = "../tests/sim/mod.rs"]
mod sim;

#[doc(hidden)]
#[cfg(all(test, feature = "serve"))]
#[path = "../tests/fuzz/mod.rs"]
pub mod fuzz;

pub use crate::config::{IdlePolicy, LameDuck};
pub use crate::connection::{
    Connection, GracefulConnection, TrackedBody, TrackedFuture, TrackedIo, TrackedService, Watched,
};
#[cfg(feature = "serve")]
pub use crate::connection::{HttpBuilder, ServesHttp};
pub use crate::guard::ShutdownGuard;
pub use crate::phase::Phase;
pub use crate::report::{Protocol, Report, Straggler};
#[cfg(unix)]
pub use crate::serve::UnlinkOnClose;
#[cfg(feature = "serve")]
pub use crate::serve::{
    EndStreams, EndStreamsFuture, EndStreamsLayer, EndingBody, PerConnection, Serve, TowerToHyper,
};
pub use crate::serve::{Inherited, Listener, TrackedListener};
#[cfg(feature = "signal")]
pub use crate::signal::OnSignal;
pub use crate::stats::Stats;
pub use crate::termination::Termination;
pub use crate::terminator::{Terminator, TerminatorBuilder};

#[cfg(doc)]
#[doc = include_str!("../docs/guarantees.md")]
pub mod guarantees {}

/// The examples of README.md are compiled too.
#[cfg(all(doctest, feature = "serve", feature = "signal"))]
#[doc = include_str!("../README.md")]
struct Readme;
