//! The house that the tests share: clients, handlers and servers for tests that look from outside.
//!
//! Every wait has a bound, and what sleeps is called `time_passes`: what did not happen within [`BOUND`] panics with
//! the name of what was waited for. The raw clients are blocking; async tests call them in [`blocking`].
//!
//! | what | where |
//! |---|---|
//! | waiting: `until`, `within`, [`BOUND`]; a [`Gate`] that holds handlers | `wait.rs`, `gate.rs` |
//! | the application that is served, and what serves it | `app.rs`, `server.rs`, `fronts.rs` |
//! | code beside a runtime; each of many, side by side | `threads.rs` |
//! | a listener, on a port of its own | `bind.rs` |
//! | a server whose runtime may be blocked | `served.rs` |
//! | runtimes and processes that a test stands outside of; bounds in time | `outside.rs`, `load.rs` |
//! | a client of HTTP/1, byte by byte, and what it reads | `http1.rs`, `response.rs` |
//! | one of HTTP/2, and one that only does as it is told | `http2.rs`, `frames.rs` |
//! | what both are built on; both ends of TLS | `wire.rs`, `tls.rs` |
//! | many clients at once: in closed loops, while servers are replaced, as a storm of connects | `closed_loop.rs`, `clients.rs`, `storm.rs` |
//! | sockets as the kernel sees them; a directory of one's own | `kernel.rs`, `dir.rs` |
//! | what the crate logs | `log.rs` |
//! | starting processes, and tests beside which none is started | `starts.rs` |
//! | examples as programs; what is skipped where it can't be had | `program.rs`, `skip.rs` |
#![allow(dead_code, reason = "a library: not every test run uses all of it")]
#![allow(
    unused_imports,
    unused_macros,
    reason = "the names below are for the tests, and not every one uses all of them"
)]
#![allow(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "panics are its job"
)]

mod app;
mod bind;
pub mod clients;
pub mod closed_loop;
mod dir;
mod frames;
mod fronts;
mod gate;
mod http1;
mod http2;
mod kernel;
pub mod load;
pub mod log;
pub mod outside;
pub mod program;
mod response;
mod served;
mod server;
pub mod skip;
pub mod starts;
pub mod storm;
mod threads;
mod tls;
pub mod wait;
mod wire;

pub use app::{App, BIG, app, assert_big, big};
pub use bind::{bound, bound_here};
pub use dir::Dir;
pub use frames::{Frame, PREFACE, RawH2, kind};
pub use fronts::FrontEnd;
pub(crate) use fronts::over_front_ends;
pub use gate::Gate;
pub use http1::RawClient;
pub use http2::{H2Client, h2_connect, h2_connect_with, h2_finish, h2_try_connect};
pub use kernel::{assert_refused, open_fds_at, open_fds_to, queued_at};
pub use response::{Headers, RawResponse};
pub use served::Served;
pub use server::{Known, Server, Target, start, start_known};
pub use threads::{blocking, each, side_by_side};
pub use tls::{TLS_KEY, client_hello, early_data, localhost, tls_acceptor, tls_client, tls_key};
pub use wait::{ABANDONED, BOUND, within};
pub use wire::ReadEnd;
