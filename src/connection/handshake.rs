//! The time before a connection speaks HTTP: a TLS handshake counts, and is bounded.

use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::peek::Peek;
use super::shared::Part;
use crate::phase::Phase;
use crate::registry::Outcome;

pin_project! {
    /// Polls a handshake until it is done. Gives `None`, having dropped it, when it took too long,
    /// when the other side stalls during the drain, and at the deadline.
    pub(super) struct Handshake<F> {
        #[pin]
        future: Option<F>,
        #[pin]
        bound: Sleep,
        waker: Option<Waker>,
        // Last: the connection counts until everything of it is gone.
        part: Part,
    }
}

impl<F> Handshake<F> {
    pub(super) fn new(handshake: F, bound: Duration, part: Part) -> Self {
        part.shared().handshaking.store(true, Relaxed);
        Self {
            future: Some(handshake),
            bound: tokio::time::sleep(bound),
            waker: None,
            part,
        }
    }
}

impl<F: Future> Future for Handshake<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let shared = this.part.shared();
        // The waker first, the phase after (invariant 2).
        if !this
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            shared.set_waker(cx.waker());
            *this.waker = Some(cx.waker().clone());
        }
        let Some(handshake) = this.future.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(output) = handshake.poll(cx) {
            shared.handshaking.store(false, Relaxed);
            return Poll::Ready(Some(output));
        }
        let phase = shared.phase();
        let outcome = if phase >= Phase::Forcing {
            Some(Outcome::Forced)
        } else if phase >= Phase::Draining {
            let (due, outcome) = if shared.spoke.load(Relaxed) {
                (shared.stall_due(), Outcome::Stalled)
            } else {
                (shared.idle_due(shared.born()), Outcome::Idle)
            };
            if shared.registry.clock.now() < due {
                shared.remind(due);
                None
            } else {
                // A ClientHello may lie there: its readiness has not been seen yet.
                Some(outcome).filter(|_| shared.transport.peek() != Peek::Data)
            }
        } else {
            this.bound.poll(cx).is_ready().then_some(Outcome::Stalled)
        };
        let Some(outcome) = outcome else {
            return Poll::Pending;
        };
        shared.end(outcome);
        this.future.set(None);
        Poll::Ready(None)
    }
}
