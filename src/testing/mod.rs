//! Asserts, in tests of yours, that a termination loses nothing and leaves nothing.
//!
//! For `[dev-dependencies]`: `http-terminator = { version = "…", features = ["testing"] }`. It works with any server of HTTP
//! without TLS, also with one of others, to see what is lost there.
//!
//! ```
//! use axum::{Router, routing::{get, post}};
//! use http_terminator::{Terminator, testing::Probe};
//! use tokio::net::TcpListener;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> { // #[tokio::test]
//! let app = Router::new()
//!     .route("/", get(async || "hello"))
//!     .route("/echo", post(async |body: String| body));
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let address = listener.local_addr()?;
//! let terminator = Terminator::new();
//! tokio::spawn(terminator.serve(listener, app));
//!
//! let probe = Probe::new(address).get("/").post("/echo", "a body");
//! let findings = probe.through(|| terminator.terminate()).await;
//! println!("{findings}");
//! findings.assert_nothing_lost().assert_nothing_left();
//! # Ok(()) }
//! ```
//!
//! # What the words mean
//!
//! | a request is | if |
//! |---|---|
//! | *answered* | an answer has come whole, whatever its status, but not 5xx |
//! | *lost* | some of it was written and no byte of an answer came, before the connection ended or the time was over |
//! | *cut* | an answer began and did not end whole |
//! | *failed* | it was answered whole by a 5xx; a `503` at the deadline is one |
//! | *late* | it was answered, but half a second after the termination had returned, or later than [`answer_within`](Probe::answer_within) |
//! | *sent again* | nothing of it was written, or the server said that it is not processed: no harm is done |
//! | *crossed* | it would be lost, but the machine had let its connection be quiet for so long that the server might close it |
//!
//! A connect is *refused* or *refused too early*, or *hindered* where this side could not make it. An answer on HTTP/2 begins with its HEADERS.
//!
//! # What is not the server's fault
//!
//! - A connect that is refused after the call, where nobody takes over: the port is closed. Before the call, and for as long
//!   as a lame duck goes on accepting ([`accepts_for`](Probe::accepts_for)), it is.
//! - A request that was not written. What this client could have seen of a close before its first byte, it is held to have
//!   seen: the socket is asked right before it is written to.
//! - A request that a GOAWAY or `REFUSED_STREAM` refuses.
//! - A request whose connection had been quiet for [`settle`](Probe::settle), because the probe's thread stood still: it counts
//!   as crossed. On an overloaded machine there may be some. [Too many](Findings::crossed) are no chance: then the assertion
//!   fails, and says that nothing is shown.
//! - A handshake that ends in the microsecond in which the port is closed is reset by the kernel. It counts as lost; on a busy
//!   machine it has been seen once in some 700 terminations. Where all cores are taken, the thread that closes may lose its own
//!   right there, and then it meets all who connect in that time slice.
//! - What came while the probe's thread stood still: it counts as having come when that began, so it is not late.
//! - An answer without a length or chunks ends with its connection, so one that was cut by an end-of-file looks whole.
//!
//! # Paused time
//!
//! A termination has the system's clock. Where tokio's time is paused (`start_paused = true`), a `timeout` around `terminate()`
//! fires at once: [`real_time()`] cures it, and is part of [`Probe::through`].
//!
//! # What is left
//!
//! [`Findings::assert_nothing_left`] looks from outside: every connection has seen its end, and nobody accepts. A
//! [`Baseline`] also counts tasks, and asks the terminator.
#![allow(
    clippy::disallowed_methods,
    reason = "it has clocks of its own, which measure what the crate does"
)]

mod baseline;
mod findings;
mod http1;
mod http2;
mod load;
mod probe;
mod pulse;
mod real_time;
mod socket;

pub use self::baseline::{Baseline, Leftovers};
pub use self::findings::{Finding, Findings, Kind, When};
pub use self::probe::Probe;
pub use self::real_time::real_time;
