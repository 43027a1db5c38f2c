//! Held to the references: the cases of the tests that other projects have for how their servers end, one test each in
//! our words, named after the case. Each module says at its top where the cases are, and which of them can have no
//! counterpart here.
//!
//! Where a reference and this crate part on purpose, the test shows what is done here, and says so.

#![cfg(all(unix, feature = "serve", feature = "rustls"))]
#![allow(
    unreachable_pub,
    reason = "the support library is a module of every test run"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests read the clock and spawn clients"
)]

mod axum_server;
mod bun;
mod go;
mod http_terminator_npm;
mod hyper_util;
mod node;
mod stoppable;
#[path = "../support/mod.rs"]
mod support;

use std::future::IntoFuture;

use http_terminator::{Report, Terminator, TerminatorBuilder};
use support::outside::{FAR, ended};
use support::{App, BOUND, FrontEnd, Gate, RawClient, Server, Target, app, start, within};

/// A deadline that is not to be reached.
fn patient() -> TerminatorBuilder {
    Terminator::builder().grace_period(FAR)
}

/// The application of the support library behind one front end; its gate holds `/slow` and the second half of `/stream`.
struct Site {
    terminator: Terminator,
    gate: Gate,
    server: Server,
}

impl Site {
    async fn start(front: FrontEnd, builder: TerminatorBuilder) -> Self {
        let terminator = builder.build();
        let gate = Gate::new();
        let state = App {
            gate: gate.clone(),
            terminator: Some(terminator.clone()),
        };
        let server = start(front, &terminator, app(state)).await;
        Self {
            terminator,
            gate,
            server,
        }
    }
}

/// A client that has sent nothing: over TLS not the first byte of a handshake.
fn plain(target: &Target) -> RawClient {
    match target {
        Target::Tls(addr) => RawClient::connect(*addr),
        target => RawClient::connect(target),
    }
}

/// What a request gets that is cut before its answer began: a `503`. Over TLS the task that writes it may not have had its turn
/// in time, where a machine has other work.
#[track_caller]
fn assert_cut(client: &mut RawClient) {
    match client.try_read_response() {
        Ok(response) => assert_eq!(response.status, 503, "{response:?}"),
        Err(end) => assert!(client.is_tls() && ended(end), "{end:?}"),
    }
}

/// Waits for a report, and for no longer than [`BOUND`].
async fn report(termination: impl IntoFuture<Output = Report>) -> Report {
    within(BOUND, "the end", termination.into_future()).await
}
