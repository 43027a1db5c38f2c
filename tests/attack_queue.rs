//! A listener in the hands of two.
#![cfg(unix)]
#![allow(
    unreachable_pub,
    reason = "the support module is shared by several test crates"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests look at the clock and spawn"
)]

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::DuplexStream;

use http_terminator::{Listener, Terminator};

mod support;
use support::{BOUND, Gate, within};

/// Nobody connects, and its drop waits.
struct Lingering(Gate);

impl Listener for Lingering {
    type Io = DuplexStream;
    type Addr = ();

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
        Poll::Pending
    }

    fn accept_queued(&mut self) -> io::Result<Option<(DuplexStream, ())>> {
        Ok(None)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.0.enter_blocking();
    }
}

/// The driver has taken the listener out and is inside of its drop when the accept loop asks; who binds the
/// address after the loop's end must not find it in use. Time is the subject: nothing comes meanwhile.
#[tokio::test]
async fn g14_an_accept_loop_ends_when_its_listener_is_closed() {
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let gate = Gate::new();
    let mut listener = terminator.listen(Lingering(gate.clone()));
    let ended = terminator.terminate();
    gate.wait_entered_async(1).await;
    let accept = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
    gate.open();
    assert!(accept.is_err(), "the listener is still there");
    assert!(within(BOUND, "None", listener.accept()).await.is_none());
    within(BOUND, "the end", ended).await;
}
