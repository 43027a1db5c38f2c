//! The future that polls a connection to its end: tells HTTP/2 to go away, and lets go at the
//! deadline.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::fate::Why;
use super::peek::Peek;
use super::shared::{Part, Shared};
use super::state::{Due, State, Step, Verdict};
use super::turn::Turn;
use crate::clock::Moment;
use crate::phase::Phase;
use crate::registry::Outcome;

/// A connection that can be asked to end after what it has in hand.
///
/// hyper's and hyper-util's server connections are; implement it for others to have them
/// [`watch`](crate::Terminator::watch)ed.
///
/// # Examples
///
/// ```
/// # use std::convert::Infallible;
/// # use std::pin::Pin;
/// # use std::task::{Context, Poll};
/// use http_terminator::GracefulConnection;
/// use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
///
/// /// Ends as soon as it is asked to.
/// struct Quick {
///     asked: CancellationToken,
///     ends: Pin<Box<WaitForCancellationFutureOwned>>,
/// }
///
/// impl Future for Quick {
///     type Output = Result<(), Infallible>;
///
///     fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
///         self.ends.as_mut().poll(cx).map(Ok)
///     }
/// }
///
/// impl GracefulConnection for Quick {
///     type Error = Infallible;
///
///     fn graceful_shutdown(self: Pin<&mut Self>) {
///         self.asked.cancel();
///     }
/// }
/// ```
pub trait GracefulConnection: Future<Output = Result<(), Self::Error>> {
    /// What the connection ends with when it fails.
    type Error;

    /// Asks it to end. Called once at most, and never after it has ended.
    fn graceful_shutdown(self: Pin<&mut Self>);
}

pin_project! {
    /// A watched connection, from [`Terminator::watch`](crate::Terminator::watch) or
    /// [`Connection::watch`](crate::Connection::watch).
    ///
    /// Ends as the connection does, or with `Ok` when it is dropped at the deadline: that is an
    /// outcome, which the [`Report`](crate::Report) tells, and not an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the connection, which is closed as if it had failed.
    ///
    /// # Examples
    ///
    /// See [`Terminator::watch`](crate::Terminator::watch).
    #[must_use = "futures do nothing unless polled"]
    pub struct Watched<C> {
        #[pin]
        connection: Option<C>,
        known: Known,
        // In the drain: the phase in which it was last polled from the start.
        seen: Phase,
        told: bool,
        // HTTP/2, in the lame duck and when it is old: when it was first seen to speak it. In the drain: when hyper was
        // first seen not to ask for input though nothing is in hand.
        since: Option<Moment>,
        // Behind that: when it was polled last, and not by us.
        polled: Moment,
        // Where its socket can't be looked into.
        turn: Turn,
        waker: Option<Waker>,
        // Last: the connection counts until everything of it is gone.
        guard: WakerGuard,
    }

    impl<C> PinnedDrop for Watched<C> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if this.connection.is_some() {
                let shared = this.guard.shared();
                shared.set(State::GIVEN_UP);
                if this.known.has_to_answer(shared) {
                    shared.ends_under_an_answer();
                }
                // After a panic in there.
                shared.set_inside(false);
            }
        }
    }
}

/// What is known of the connection besides its future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Its bytes pass through `Plaintext`, which ends HTTP/1.
    Plaintext,
    /// Its socket, if there is one (see [`NoSocket`](super::socket::NoSocket)).
    Socket,
}

/// Forgets the waker when the future is dropped, however that happens: it would keep the memory of
/// a finished task for as long as an upgraded stream lives.
///
/// There is nothing to guard once the connection has ended, also while somebody keeps this.
struct WakerGuard(Option<Part>);

impl WakerGuard {
    fn shared(&self) -> &Arc<Shared> {
        self.0.as_ref().expect("until it has ended").shared()
    }

    fn let_go(&mut self) {
        if let Some(part) = self.0.take() {
            part.shared().forget_waker();
        }
    }
}

impl Drop for WakerGuard {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl<C> Watched<C> {
    pub(super) fn new(connection: C, known: Known, part: Part) -> Self {
        Self {
            connection: Some(connection),
            known,
            seen: Phase::Serving,
            told: false,
            since: None,
            polled: Moment::START,
            turn: Turn::default(),
            waker: None,
            guard: WakerGuard(Some(part)),
        }
    }
}

impl<C> fmt::Debug for Watched<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl<C: GracefulConnection> Future for Watched<C> {
    type Output = Result<(), C::Error>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        let Some(connection) = this.connection.as_pin_mut() else {
            return Poll::Ready(Ok(()));
        };
        let shared = this.guard.shared();
        // The waker first, the phase after (invariant 2).
        if !is(this.waker.as_ref(), cx.waker()) {
            shared.set_waker(cx.waker());
            *this.waker = Some(cx.waker().clone());
        }
        // The connection first, the phase after: what has come in by now is taken, not lost.
        shared.set_inside(true);
        let result = connection.poll(cx);
        shared.set_inside(false);
        if result.is_pending() && shared.is_left_alone() {
            return Poll::Pending;
        }
        self.polled(result, cx)
    }
}

impl<C: GracefulConnection> Watched<C> {
    /// What follows when it has ended, or is to end.
    #[cold]
    fn polled(
        self: Pin<&mut Self>,
        result: Poll<Result<(), C::Error>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), C::Error>> {
        let mut this = self.project();
        let shared = this.guard.shared();
        let phase = shared.stage();
        let state = shared.state();
        if let Poll::Ready(result) = result {
            if matches!(state.step(), Step::Called | Step::Behind) {
                shared.abandon();
            }
            if phase < Phase::Forcing && this.known.ends_under_an_answer(shared, result.is_err()) {
                // Whatever was agreed.
                shared.end(Outcome::ClosedByPeer);
            }
            if result.is_err() {
                if phase >= Phase::Forcing {
                    shared.end(Outcome::Forced);
                }
                if shared.was_ended() {
                    // Of a socket that was taken away, by whoever came first: as below.
                    this.connection.set(None);
                    this.guard.let_go();
                    return Poll::Ready(Ok(()));
                }
            }
            // hyper does not shut down one on which an upgrade was asked for once, and came to nothing.
            let unshut = *this.known == Known::Plaintext
                && state.has(State::HTTP1)
                && !state.has(State::PEER_ENDED | State::UPGRADED);
            if result.is_ok() && (state.has(State::ENDED_FIRST) || unshut) {
                // As was agreed, by whichever side, before the drain.
                shared.set(State::TOLD);
            }
            this.connection.set(None);
            if *this.known == Known::Plaintext {
                shared.close_what_is_kept();
            }
            this.guard.let_go();
            return Poll::Ready(result);
        }
        shared.clear(State::ASKED);
        if phase < Phase::Draining {
            if phase == Phase::LameDuck && state.has(State::HTTP2) {
                meets_lame_duck(shared, this.since);
            }
            return Poll::Pending;
        }
        if phase > *this.seen {
            // It may have risen meanwhile. If that was the deadline, the request has yet to be
            // answered so.
            *this.seen = phase;
            shared.set(State::LOOK);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if phase >= Phase::Forcing {
            // A `503` may be on its way out; the driver ends the wait for it.
            if phase == Phase::Forcing && this.known.may_still_write(shared) {
                return Poll::Pending;
            }
            shared.end(Outcome::Forced);
            this.connection.set(None);
            this.guard.let_go();
            return Poll::Ready(Ok(()));
        }
        if *this.told {
            return Poll::Pending;
        }
        let registry = &shared.registry;
        let (now, deadline) = (registry.clock.now(), registry.deadline());
        let due = match this.known {
            _ if state.has(State::HTTP2) => http2_due(shared, this.since, now),
            // Of whose requests nothing is known.
            Known::Socket if !shared.transport.is_tracked() => shared.unseen_due(),
            Known::Socket => shared.idle_due(shared.drain_began()),
            Known::Plaintext => match http1_verdict(shared, state, this.since, this.polled, now) {
                Verdict::Busy => return Poll::Pending,
                Verdict::Until(at) => at,
                given_up => {
                    if given_up == Verdict::Stalled {
                        shared.end(Outcome::Stalled);
                    } else if !state.has(State::TOLD) {
                        shared.end(Outcome::Idle);
                    }
                    shared.set(State::IN_STAGES);
                    this.connection.set(None);
                    this.guard.let_go();
                    return Poll::Ready(Ok(()));
                }
            },
        };
        if now < due {
            shared.remind_by(due, deadline);
            return Poll::Pending;
        }
        if this.known.may_have_come(shared, this.turn, now, cx) {
            return Poll::Pending;
        }
        // Once (invariant 4).
        *this.told = true;
        shared.set(State::TOLD);
        shared.touch();
        if let Some(connection) = this.connection.as_pin_mut() {
            connection.graceful_shutdown();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What is to become of an HTTP/1 connection in the drain that has just been polled. It ends when hyper asks for input, so
/// it is given up here, as idle or stalled, only if hyper does not.
fn http1_verdict(
    shared: &Shared,
    state: State,
    since: &mut Option<Moment>,
    polled: &mut Moment,
    now: Moment,
) -> Verdict {
    let stalled = shared.stall_due();
    let due = Due {
        // One that never comes would be as busy.
        idle: shared.idle_due(now).min(now.after(UNREAD)),
        half_head: stalled,
        stalled,
    };
    let half_record = shared.transport.is_half_record();
    let verdict = state.verdict(shared.has_streams(), half_record, now, due);
    if verdict == Verdict::Busy || state.has(State::ASKED) {
        *since = None;
        return match verdict {
            // Whoever reads was asked a moment before it was due.
            Verdict::Idle | Verdict::Stalled => Verdict::Until(now.after(SOON)),
            verdict => verdict,
        };
    }
    // As a rule it asks when it is polled again. But not while a body that has come is unread, whatever lies behind
    // it; by whoever reads that, the connection is polled before we have it polled. But so it is by whatever else its task
    // does.
    let fresh = since.is_none() || shared.is_to_be_reminded();
    let since = *since.get_or_insert(now);
    if fresh {
        *polled = now;
    }
    let patience = if state.has(State::ENDED_FIRST) {
        CLOSED_IN_STAGES
    } else {
        shared.registry.config.stall_timeout.max(SOON)
    };
    if now.since(polled.after(patience)) > STOOD_STILL {
        // Nor did whoever reads have a turn.
        *polled = now;
    }
    let unread = polled.after(patience);
    let unread = unread.min(since.max(shared.quiet_since()).after(patience.max(UNREAD)));
    if now < unread {
        return Verdict::Until(match verdict {
            Verdict::Until(at) => at.min(unread),
            _ if fresh => unread.min(now.after(SOON)),
            _ => unread,
        });
    }
    if state.is_between() {
        Verdict::Idle
    } else {
        Verdict::Stalled
    }
}

/// An HTTP/2 connection that came during the lame duck, or had asked for nothing before, is told once it has had a request: told
/// any earlier its client might come again without end, or fail what it has yet to send. It is told, too, if it brings none.
fn meets_lame_duck(shared: &Shared, began: &mut Option<Moment>) {
    let now = shared.registry.clock.now();
    let mut due = shared.lame_duck_due();
    if !shared.has_asked() {
        let patience = shared.registry.config.stall_timeout;
        due = due.max(began.get_or_insert(now).after(patience));
    }
    if now >= due {
        shared.terminate(Why::LameDuck);
    } else {
        shared.remind(due);
    }
}

/// When an HTTP/2 connection is told. One that is old, and no more than that, is served first, as in the lame duck.
fn http2_due(shared: &Shared, began: &mut Option<Moment>, now: Moment) -> Moment {
    let due = shared.told_due();
    if shared.is_only_old() && !shared.has_asked() {
        due.max(shared.unused_due(*began.get_or_insert(now)))
    } else {
        due
    }
}

/// How long whoever polls, who may be the one that reads what hyper has of a body, keeps it from asking for input, if nothing
/// comes: as long as a head may take.
const UNREAD: Duration = Duration::from_secs(30);

/// Within that a close in stages is over by bounds of its own, which end it as what it was: unless nobody runs the
/// runtime's timers.
const CLOSED_IN_STAGES: Duration = Duration::from_secs(10);

/// By so much a look comes late where the process stood still.
const STOOD_STILL: Duration = Duration::from_millis(100);

/// When a connection that is idle is polled once more, which has not asked for input.
const SOON: Duration = Duration::from_millis(1);

/// Whether this is the waker that is known.
#[inline]
fn is(known: Option<&Waker>, waker: &Waker) -> bool {
    known.is_some_and(|known| known.will_wake(waker))
}

impl Known {
    /// An answer is to come, or not out.
    fn has_to_answer(self, shared: &Shared) -> bool {
        let state = shared.state();
        // Where frames pass through us they tell it: the task of a stream may yet have to let go of
        // what its client has read.
        let streams = match self {
            Self::Plaintext if state.has(State::HTTP2) => state.has(State::STREAMS),
            _ => shared.has_streams(),
        };
        // Behind one that was flushed at the second try hyper ends before it drops its body.
        let is_out = state.step() == Step::Streaming
            && state.has(State::ENDED_FIRST)
            && !state.has(State::BLOCKED);
        state.has_response() && !is_out || streams
    }

    /// hyper has ended it, and one is to come, or not out.
    fn ends_under_an_answer(self, shared: &Shared, fails: bool) -> bool {
        let state = shared.state();
        // hyper itself may do so: where an upgrade is declined whose body nobody reads, what was not flushed by then is lost; and at a
        // malformed CONNECT of HTTP/2.
        let ends = self == Self::Plaintext && !state.has(State::UPGRADED);
        self.has_to_answer(shared) && (fails || ends || state.has(State::PEER_ENDED))
    }

    fn may_still_write(self, shared: &Shared) -> bool {
        let state = shared.state();
        self == Self::Plaintext
            && shared.registry.config.answer_at_deadline
            && !state.has(State::HTTP2)
            && state.has(State::BLOCKED)
    }

    /// Something that hyper has not read, in a socket whose readiness has not been seen yet. Where nobody can look, it is
    /// polled once more, when the reactor had a turn.
    fn may_have_come(
        self,
        shared: &Shared,
        turn: &mut Turn,
        now: Moment,
        cx: &mut Context<'_>,
    ) -> bool {
        if self == Self::Plaintext {
            return false;
        }
        match shared.transport.peek() {
            Peek::Data => true,
            Peek::Unknown => turn
                .again(now, cx)
                .inspect(|at| shared.remind(*at))
                .is_some(),
            Peek::Nothing | Peek::Gone => false,
        }
    }
}

// ===== hyper's connections =====

#[cfg(any(feature = "http1", feature = "http2"))]
mod hyper_connections {
    use std::error::Error;

    use http_body::Body;
    use hyper::body::Incoming;
    use hyper::rt::{Read, Write};
    use hyper::service::HttpService;

    use super::{GracefulConnection, Pin};

    type BoxError = Box<dyn Error + Send + Sync>;

    #[cfg(feature = "http1")]
    impl<I, B, S> GracefulConnection for hyper::server::conn::http1::Connection<I, S>
    where
        S: HttpService<Incoming, ResBody = B>,
        S::Error: Into<BoxError>,
        I: Read + Write + Unpin + 'static,
        B: Body + 'static,
        B::Error: Into<BoxError>,
    {
        type Error = hyper::Error;

        fn graceful_shutdown(self: Pin<&mut Self>) {
            Self::graceful_shutdown(self);
        }
    }

    #[cfg(feature = "http1")]
    impl<I, B, S> GracefulConnection for hyper::server::conn::http1::UpgradeableConnection<I, S>
    where
        S: HttpService<Incoming, ResBody = B>,
        S::Error: Into<BoxError>,
        I: Read + Write + Unpin + Send + 'static,
        B: Body + 'static,
        B::Error: Into<BoxError>,
    {
        type Error = hyper::Error;

        fn graceful_shutdown(self: Pin<&mut Self>) {
            Self::graceful_shutdown(self);
        }
    }

    #[cfg(feature = "http2")]
    impl<I, B, S, E> GracefulConnection for hyper::server::conn::http2::Connection<I, S, E>
    where
        S: HttpService<Incoming, ResBody = B>,
        S::Error: Into<BoxError>,
        I: Read + Write + Unpin + 'static,
        B: Body + 'static,
        B::Error: Into<BoxError>,
        E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
    {
        type Error = hyper::Error;

        fn graceful_shutdown(self: Pin<&mut Self>) {
            Self::graceful_shutdown(self);
        }
    }
}

#[cfg(feature = "serve")]
mod auto_connections {
    use std::error::Error;

    use http::{Request, Response};
    use http_body::Body;
    use hyper::body::Incoming;
    use hyper::rt::bounds::Http2ServerConnExec;
    use hyper::rt::{Read, Write};
    use hyper::service::Service;
    use hyper_util::server::conn::auto;

    use super::{GracefulConnection, Pin};

    type BoxError = Box<dyn Error + Send + Sync>;

    impl<I, B, S, E> GracefulConnection for auto::Connection<'_, I, S, E>
    where
        S: Service<Request<Incoming>, Response = Response<B>>,
        S::Error: Into<BoxError>,
        S::Future: 'static,
        I: Read + Write + Unpin + 'static,
        B: Body + 'static,
        B::Error: Into<BoxError>,
        E: Http2ServerConnExec<S::Future, B>,
    {
        type Error = BoxError;

        fn graceful_shutdown(self: Pin<&mut Self>) {
            Self::graceful_shutdown(self);
        }
    }

    impl<I, B, S, E> GracefulConnection for auto::UpgradeableConnection<'_, I, S, E>
    where
        S: Service<Request<Incoming>, Response = Response<B>>,
        S::Error: Into<BoxError>,
        S::Future: 'static,
        I: Read + Write + Unpin + Send + 'static,
        B: Body + 'static,
        B::Error: Into<BoxError>,
        E: Http2ServerConnExec<S::Future, B>,
    {
        type Error = BoxError;

        fn graceful_shutdown(self: Pin<&mut Self>) {
            Self::graceful_shutdown(self);
        }
    }
}

#[cfg(all(test, feature = "serve"))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::connection::http1::reading::BodyLength;
    use crate::connection::socket::NoSocket;
    use crate::registry::Registry;

    /// Its answer is out, of its body half has come, and its task is polled each 20 ms by something else. Gives when it is given up,
    /// where `comes` so often something of the body comes in.
    fn given_up(comes: Option<u64>) -> Option<u64> {
        let (clock, shared) = told_and_answered_ahead_of_its_body();
        let (mut since, mut polled) = (None, Moment::START);
        let ended = (0..6_000).map(|n| n * 20).find(|ms| {
            let now = Moment::from_micros(ms * 1_000);
            clock.set(now);
            if comes.is_some_and(|every| ms % every == 0) {
                shared.came_in();
            }
            // Of the reminders the last one is always yet to come.
            shared.remind(now.after(SOON));
            match http1_verdict(&shared, shared.state(), &mut since, &mut polled, now) {
                Verdict::Until(at) => assert!(at > now),
                verdict => {
                    assert_eq!(verdict, Verdict::Stalled);
                    return true;
                }
            }
            false
        });
        shared.socket_closed();
        ended
    }

    /// Behind a time in which the process stood still nobody has had the turn in which he would have read.
    #[test]
    fn who_reads_is_not_given_up_behind_a_time_in_which_the_process_stood_still() {
        let (clock, shared) = told_and_answered_ahead_of_its_body();
        let (mut since, mut polled) = (None, Moment::START);
        let mut look = |ms| {
            let now = Moment::START.after(Duration::from_millis(ms));
            clock.set(now);
            http1_verdict(&shared, shared.state(), &mut since, &mut polled, now)
        };
        let at = |ms| Verdict::Until(Moment::START.after(Duration::from_millis(ms)));
        shared.remind(Moment::NEVER);
        assert_eq!((look(0), look(1)), (at(1_000), at(1_000)));
        shared.reminded();
        assert_eq!((look(2), look(3_000)), (at(1_000), at(4_000)));
        assert_eq!(look(4_001), Verdict::Stalled);
        shared.socket_closed();
    }

    fn told_and_answered_ahead_of_its_body() -> (Clock, Arc<Shared>) {
        let clock = Clock::standing();
        let config = Config::default();
        let registry = Arc::new(Registry::without_threads(config, clock));
        let shared = Shared::register(&registry, Arc::new(NoSocket));
        shared.set(State::SEEN);
        shared.read(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\nabc");
        shared.called(0, BodyLength::Known(10));
        shared.arrow(State::answered);
        shared.said();
        assert!(shared.flushed());
        shared.terminate(Why::Asked);
        (clock, shared)
    }

    /// It was kept for ever; and then, where it was given up, under a body that was read no faster than it came.
    #[test]
    fn who_is_polled_without_end_is_given_up_once_nothing_comes() {
        assert_eq!(given_up(None), Some(30_000));
        assert_eq!(given_up(Some(500)), None);
    }
}
