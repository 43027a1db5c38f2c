//! The time before a connection speaks HTTP: while its service is made, and while TLS shakes hands,
//! it counts and is bounded.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::peek::Peek;
use super::shared::{Part, Shared};
use super::state::State;
use super::turn::{LEAST, Turn, prolong};
use crate::phase::Phase;
use crate::registry::Outcome;

pin_project! {
    /// Polls what has to be done first until it is done. Gives `None`, having dropped it, when it took
    /// too long while serving, when the drain finds the connection idle or its other side stalled, or waits too long for
    /// this side, and at the deadline.
    pub(super) struct Opening<F> {
        #[pin]
        future: Option<F>,
        // How long it may take, from when it is polled first.
        within: Option<Duration>,
        #[pin]
        bound: Option<Sleep>,
        reads: bool,
        whose: Whose,
        // The bound was over, and is given a moment more.
        late: bool,
        // It is over, as far as can be told of what can't be looked into.
        turn: Turn,
        waker: Option<Waker>,
        // Last: the connection counts until everything of it is gone, however long this is kept behind its end.
        part: Option<Part>,
    }

    impl<F> PinnedDrop for Opening<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(part) = this.part {
                // Whoever has it may go on without it; and after a panic in there.
                part.shared().clear(State::OPENING);
                part.shared().set_inside(false);
                forget_waker(this.waker, part.shared());
            }
        }
    }
}

/// Whose turn it was in the drain when it was looked at last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// It was not yet.
    Unknown,
    Ours,
    Theirs,
}

impl<F> Opening<F> {
    /// `reads`: whether it reads the socket itself, so that nothing lies there for long.
    pub(super) fn new(future: F, reads: bool, part: Part) -> Self {
        part.shared().set(State::OPENING);
        Self {
            future: Some(future),
            within: part.shared().registry.config.head_timeout,
            bound: None,
            reads,
            whose: Whose::Unknown,
            late: false,
            turn: Turn::default(),
            waker: None,
            part: Some(part),
        }
    }
}

impl<F: Future> Future for Opening<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let (Some(future), Some(part)) = (this.future.as_mut().as_pin_mut(), &*this.part) else {
            return Poll::Ready(None);
        };
        let shared = part.shared();
        // The waker first, the phase after (invariant 2).
        if !this
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            shared.set_waker(cx.waker());
            *this.waker = Some(cx.waker().clone());
        }
        if let (Some(within), None) = (*this.within, &*this.bound) {
            this.bound.set(Some(tokio::time::sleep(within)));
        }
        // Who blocks in there can be named.
        shared.set_inside(true);
        let polled = future.poll(cx);
        shared.set_inside(false);
        if let Poll::Ready(output) = polled {
            shared.clear(State::OPENING);
            forget_waker(this.waker, shared);
            // An IO that was cut under it is no error of its client's.
            let is_cut = shared.stage() >= Phase::Forcing && shared.was_ended();
            this.future.set(None);
            *this.part = None;
            return Poll::Ready(Some(output).filter(|_| !is_cut));
        }
        let stage = shared.stage();
        if stage >= Phase::Draining {
            let before = std::mem::replace(this.whose, whose(shared, *this.reads));
            let comes = *this.whose != before && before != Whose::Unknown;
            match (&*this.whose, *this.within) {
                (Whose::Ours, Some(within)) if comes => {
                    this.bound.set(Some(tokio::time::sleep(within)));
                    *this.late = false;
                }
                // From here on it owes something.
                (Whose::Theirs, _) if comes => shared.touch(),
                _ => {}
            }
        }
        let outcome = if stage >= Phase::Forcing {
            Some(Outcome::Forced)
        } else if (shared.phase() < Phase::Draining || *this.whose == Whose::Ours)
            && this
                .bound
                .as_mut()
                .as_pin_mut()
                .is_some_and(|bound| bound.poll(cx).is_ready())
        {
            // In a process that stood still that is seen before what had come.
            let may_have_come = *this.reads
                && !std::mem::replace(this.late, true)
                && matches!(shared.transport.peek(), Peek::Data | Peek::Unknown);
            let bound = this.bound.as_pin_mut().filter(|_| may_have_come);
            let waits = bound.is_some_and(|bound| prolong(bound, LEAST, cx));
            Some(Outcome::Stalled).filter(|_| !waits)
        } else if stage >= Phase::Draining && *this.whose != Whose::Ours {
            ends_in_drain(shared, *this.reads, this.turn, cx)
        } else {
            None
        };
        let Some(outcome) = outcome else {
            return Poll::Pending;
        };
        shared.end(outcome);
        this.future.set(None);
        shared.clear(State::OPENING);
        forget_waker(this.waker, shared);
        *this.part = None;
        Poll::Ready(None)
    }
}

/// It waits for us, who fetch a certificate say, and is polled when that is there; or for the other side.
fn whose(shared: &Shared, reads: bool) -> Whose {
    let ours = if shared.transport.has_spoken() {
        !shared.transport.waits_for_peer()
    } else {
        shared.transport.peek() == Peek::Data
    };
    if reads && ours {
        Whose::Ours
    } else {
        Whose::Theirs
    }
}

/// Another task may go on with the connection, and nobody would wake that one. By the time this is dropped it may be known,
/// so once only.
fn forget_waker(known: &mut Option<Waker>, shared: &Shared) {
    if known.take().is_some() {
        shared.forget_waker();
    }
}

fn ends_in_drain(
    shared: &Shared,
    reads: bool,
    turn: &mut Turn,
    cx: &mut Context<'_>,
) -> Option<Outcome> {
    let deadline = shared.registry.deadline();
    let (due, outcome) = if shared.transport.has_spoken() {
        (shared.stall_due(), Outcome::Stalled)
    } else {
        (shared.idle_due(shared.born()), Outcome::Idle)
    };
    let now = shared.registry.clock.now();
    if now < due {
        *turn = Turn::default();
        shared.remind_by(due, deadline);
        return None;
    }
    match shared.transport.peek() {
        // A request, or a ClientHello whose readiness has not been seen yet.
        Peek::Data => None,
        // A request may lie in there, and nobody but its service will look.
        Peek::Unknown if !reads => None,
        Peek::Unknown => match turn.again(now, cx) {
            Some(at) => {
                shared.remind(at);
                None
            }
            None => Some(outcome),
        },
        Peek::Nothing | Peek::Gone => Some(outcome),
    }
}
