//! A listener in the hands of two.
#![cfg(unix)]

use std::io;
#[cfg(feature = "serve")]
use std::sync::Arc;
#[cfg(feature = "serve")]
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::DuplexStream;
#[cfg(feature = "serve")]
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use http_terminator::{Listener, Terminator};

use crate::support;
use crate::support::wait::time_passes_async;
use crate::support::{BOUND, Gate, within};

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

/// Two are queued, and then it panics.
#[cfg(feature = "serve")]
struct Throws(Vec<DuplexStream>);

#[cfg(feature = "serve")]
impl Listener for Throws {
    type Io = DuplexStream;
    type Addr = ();

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
        Poll::Pending
    }

    fn accept_queued(&mut self) -> io::Result<Option<(DuplexStream, ())>> {
        let next = self.0.pop().expect("it panics on purpose");
        Ok(Some((next, ())))
    }
}

/// `Serve` was dropped: what finishes for it throws what the listener threw, and nobody comes after it.
#[cfg(feature = "serve")]
#[tokio::test]
async fn g19_what_was_taken_before_a_listener_panicked_is_served() {
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (clients, queued): (Vec<_>, Vec<_>) = (0..2).map(|_| tokio::io::duplex(4096)).unzip();
    let app = support::app(support::App::default());
    drop(terminator.serve(Throws(queued), app));
    for mut client in clients {
        let request = b"GET /quick HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        within(BOUND, "the answer", read).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.is_clean(), "{report}");
}

/// In want of descriptors a queue waits for whoever may free some. That is not who is detached, who himself waits to be cut
/// until all queues are closed: they waited for each other, without a grace period for ever.
#[cfg(feature = "serve")]
#[tokio::test]
async fn g13_a_queue_without_descriptors_does_not_wait_for_who_is_detached() {
    let terminator = Terminator::builder().grace_period(None).build();
    let (peer, io) = tokio::io::duplex(64);
    let io = terminator.track(io);
    io.connection().detach();
    let app = support::app(support::App::default());
    let server = tokio::spawn(terminator.serve(Scarce::never(), app).into_future());
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert_eq!(report.detached, 1, "{report}");
    within(BOUND, "the server", server).await.unwrap();
    drop((peer, io));
}

/// While serving nobody is being closed who might free some. It never closed.
#[cfg(feature = "serve")]
#[tokio::test]
async fn g14_a_serve_that_is_dropped_without_descriptors_closes_its_listener() {
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (peer, io) = tokio::io::duplex(64);
    let io = terminator.track(io);
    let app = support::app(support::App::default());
    drop(terminator.serve(Scarce::never(), app));
    let closed = async {
        while terminator.stats().listeners > 0 {
            time_passes_async(Duration::from_millis(5)).await;
        }
    };
    within(BOUND, "the listener's end", closed).await;
    drop((peer, io));
    within(BOUND, "the end", terminator.terminate()).await;
}

/// So many are queued; at first there is no descriptor, and then one at a time.
#[cfg(feature = "serve")]
struct Scarce {
    queued: Vec<DuplexStream>,
    few: bool,
    free: Arc<AtomicBool>,
    has_one: bool,
}

#[cfg(feature = "serve")]
impl Scarce {
    /// There is none.
    fn never() -> Self {
        Self {
            queued: vec![tokio::io::duplex(64).1],
            few: true,
            free: Arc::default(),
            has_one: false,
        }
    }
}

#[cfg(feature = "serve")]
impl Listener for Scarce {
    type Io = DuplexStream;
    type Addr = ();

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
        Poll::Pending
    }

    fn accept_queued(&mut self) -> io::Result<Option<(DuplexStream, ())>> {
        self.has_one = !self.has_one && self.free.load(SeqCst);
        if self.few && !self.has_one {
            return Err(io::Error::from_raw_os_error(24)); // EMFILE
        }
        Ok(self.queued.pop().map(|io| (io, ())))
    }
}

/// `settle` is for handshakes, and for who connects faster than anybody can accept: what was there as the drain began is
/// served whatever it is, and however late there are descriptors for it.
#[cfg(feature = "serve")]
#[tokio::test]
async fn g14_all_that_is_queued_is_taken() {
    for (settle, scarce) in [(0, false), (0, true), (25, true)] {
        let terminator = Terminator::builder()
            .grace_period(BOUND)
            .settle(Duration::from_millis(settle))
            .build();
        // Somebody whose descriptor may come free.
        let (holder, held) = tokio::io::duplex(64);
        let held = terminator.track(held);
        let (mut clients, queued): (Vec<_>, Vec<_>) =
            (0..5).map(|_| tokio::io::duplex(4096)).unzip();
        for client in &mut clients {
            let request = b"GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n";
            client.write_all(request).await.unwrap();
        }
        let free = Arc::new(AtomicBool::new(false));
        let listener = Scarce {
            queued,
            few: scarce,
            free: Arc::clone(&free),
            has_one: false,
        };
        let app = support::app(support::App::default());
        let server = tokio::spawn(terminator.serve(listener, app).into_future());
        let ended = terminator.terminate();
        // Time is the subject: longer than `settle`.
        time_passes_async(Duration::from_millis(60)).await;
        free.store(true, SeqCst);
        for mut client in clients {
            let mut answer = String::new();
            let read = client.read_to_string(&mut answer);
            within(BOUND, "the answer", read).await.unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 200"),
                "{settle}, {scarce}: {answer:?}"
            );
        }
        drop((holder, held));
        let report = within(BOUND, "the end", ended).await;
        assert!(report.is_clean(), "{report}");
        within(BOUND, "the server", server).await.unwrap();
    }
}
