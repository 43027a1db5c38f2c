//! What hyper reads and writes: the layer above TLS, where requests can be told apart.
//!
//! Here an idle HTTP/1 connection is ended, by an end-of-file that the client did not send: hyper
//! closes as it would for a client that left, flushed and with `poll_shutdown`. Its own
//! `graceful_shutdown` would drop half a head in its buffer and bytes in the kernel.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::task::coop::unconstrained;
use tokio::time::Sleep;

use super::PerServer;
use super::fate::Why;
use super::http1::staged::Staged;
use super::http2::Http2;
use super::peek::Peek;
use super::shared::Shared;
use super::state::{Close, Due, State, Step, Verdict};
use super::taken::Taken;
use super::turn::{LEAST, Turn, prolong};
use super::websocket::WebSocket;
use crate::clock::{Moment, Stamp};
use crate::phase::Phase;
use crate::registry::Outcome;

/// The IO that hyper has.
#[allow(unnameable_types, missing_debug_implementations)] // within what is sealed
pub struct Plaintext<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> {
    /// There until `into_inner` takes it.
    io: Option<Io>,
    shared: Arc<Shared>,
    end: End,
    kind: Kind,
    /// When the last response was finished; at first, when HTTP began.
    quiet: Stamp,
    /// Where a peek can't tell.
    turn: Turn,
    /// HTTP/1: a response went out.
    answered: bool,
    /// Something was due, and hyper has not asked for input since: it was woken to.
    woken: bool,
    shut: Shut,
    timer: Option<Timer>,
    /// For how long it may be idle while serving.
    idle: Option<Duration>,
    /// With which code.
    close_websockets: Option<u16>,
    taken: Taken,
}

/// How far this side is shut down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shut {
    No,
    /// The IO was asked to be, or its peer is not waited for.
    Asked,
    /// It is. Asked once more, some wait for their peer to answer (`SSL_shutdown` of OpenSSL).
    Down,
}

/// What is followed beside the requests of HTTP/1. One comparison tells that it is nothing.
enum Kind {
    Ordinary,
    Http2(Box<Http2>),
    /// It was upgraded to one, and we say goodbye.
    WebSocket(Box<WebSocket>),
}

/// How the connection is begun and ended from this side.
enum End {
    Open,
    /// So much of HTTP/2's preface was read and nothing else, so that the version is not known.
    Unknown {
        matched: u8,
        sniffs: bool,
    },
    /// hyper-util is to be told which version is spoken.
    Saying(Only),
    /// It was, and what was read for it is to be followed with what comes behind it; and to be given to hyper, unless that
    /// has it.
    Held {
        begun: [u8; PREFACE.len()],
        n: u8,
        given: bool,
    },
    /// This error comes behind what was held back.
    Failed(Option<io::Error>),
    /// An end-of-file was injected (invariant 4): there is nothing to wait for.
    Eof,
    /// Half-closed: what comes in is discarded.
    Staged(Staged),
}

/// How hyper-util is told. It serves HTTP/2 to who begins with that one's preface, and HTTP/1 to all
/// others, also to those that end before.
#[derive(Clone, Copy)]
enum Only {
    /// By what comes.
    Either,
    /// By anything but that preface; and should that come, by an end-of-file.
    Http1,
    /// By a preface, so that it begins without waiting for the client's (RFC 9113 section 3.4).
    Http2,
    /// So much of the client's own has come since.
    Preface(usize),
}

/// What one connection begins with and the other does not (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Armed while serving, when it is first needed.
struct Timer {
    /// For half a head, or half a record of TLS, not for idleness.
    head: bool,
    /// Since when it had been quiet then.
    quiet: Stamp,
    /// It was over, and is given a moment more.
    late: bool,
    sleep: Pin<Box<Sleep>>,
}

/// Which versions the connection may speak, and who finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// hyper-util.
    Theirs,
    /// We do: what HTTP/2 begins with is not read as HTTP/1.
    Sniffed,
    Http1,
    Http2,
    /// These two, and hyper-util has to be made to serve no other.
    TheirHttp1,
    TheirHttp2,
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> Plaintext<Io> {
    pub(super) fn new(
        io: Io,
        shared: Arc<Shared>,
        version: Version,
        server: Option<Arc<PerServer>>,
    ) -> Self {
        let server = server.map(|server| (*server).clone()).unwrap_or_default();
        if let Some(idle) = server.idle {
            shared.set_idle_timeout(idle);
        }
        let idle = shared.idle_timeout();
        shared.set(State::SEEN | if idle.is_some() { State::LOOK } else { 0 });
        let end = match version {
            Version::Theirs => End::Saying(Only::Either),
            Version::Http1 | Version::Http2 => End::Unknown {
                matched: 0,
                sniffs: false,
            },
            Version::Sniffed => End::Unknown {
                matched: 0,
                sniffs: true,
            },
            Version::TheirHttp1 => End::Saying(Only::Http1),
            Version::TheirHttp2 => End::Saying(Only::Http2),
        };
        if matches!(version, Version::Http1 | Version::TheirHttp1) {
            shared.set(State::HTTP1);
        }
        // Then what is written is followed from the first frame on.
        let is_http2 = matches!(version, Version::Http2 | Version::TheirHttp2);
        Self {
            io: Some(io),
            shared,
            end,
            kind: if is_http2 {
                Kind::Http2(Box::default())
            } else {
                Kind::Ordinary
            },
            // After a TLS handshake the client has not had the time for a request yet.
            quiet: Stamp::now(),
            turn: Turn::default(),
            answered: false,
            woken: false,
            shut: Shut::No,
            timer: None,
            idle,
            close_websockets: server.close_websockets,
            taken: Taken::default(),
        }
    }

    /// After an upgrade: the IO, and out of the way.
    pub(crate) fn into_inner(mut self) -> Io {
        self.io.take().expect("taken here only")
    }

    #[inline]
    fn io(&mut self) -> Pin<&mut Io> {
        Pin::new(self.io.as_mut().expect("there until it is taken"))
    }

    /// Says goodbye to a peer that stalled: over TLS its end of the connection learns that nothing was
    /// cut off.
    fn goodbye(&mut self, cx: &mut Context<'_>) {
        self.shut = Shut::Asked;
        if self.shared.state().is_cut_short() {
            return;
        }
        // If it can't be said at once it is not waited for; nor for the task's budget.
        let says = poll_fn(|cx| self.poll_say(cx));
        let _ = pin!(unconstrained(says)).poll(cx);
    }

    fn poll_say(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shut != Shut::Down {
            ready!(self.io().poll_shutdown(cx))?;
            self.shut = Shut::Down;
        }
        Poll::Ready(Ok(()))
    }

    // ----- the verdict is carried out -----

    /// hyper asked for input and there is none: the place to find that the connection is idle.
    #[cold]
    fn nothing_to_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let serves = self.shared.stage() < Phase::Draining;
        if serves && self.shared.state().is_at_work() {
            // Of an upload each part comes by here. Its end brings it here again.
            self.woken = false;
            return Poll::Pending;
        }
        if self.will_look_again(cx) {
            return Poll::Pending;
        }
        self.shared.set(State::ASKED);
        self.woken = false;
        let drains = self.shared.stage() >= Phase::Draining;
        let deadline = self.shared.registry.deadline();
        let now = self.shared.registry.clock.now();
        match self.verdict(now, cx) {
            Verdict::Busy => Poll::Pending,
            Verdict::Until(at) => {
                self.turn = Turn::default();
                self.look_again(now, at, deadline, cx);
                Poll::Pending
            }
            then if self.has_to_be_told(then) => {
                self.shared.terminate(Why::Asked);
                Poll::Pending
            }
            Verdict::Stalled if !drains && self.may_have_come_in_time(cx) => Poll::Pending,
            // A bound on half a head is no less over for what has come just now.
            Verdict::Stalled if !drains => self.has_stalled(cx),
            then => match self.shared.transport.peek() {
                // Its readiness has not been seen yet, as that of what came while nobody ran the runtime; it will
                // be.
                Peek::Data => {
                    if !drains {
                        // What lies there may never be read, by an IO of somebody's own: it is the last.
                        self.shared.terminate(Why::Asked);
                    }
                    Poll::Pending
                }
                Peek::Unknown if self.has_yet_to_be_told(now, cx) => Poll::Pending,
                Peek::Nothing | Peek::Gone | Peek::Unknown if then == Verdict::Idle => {
                    self.end = End::Eof;
                    self.shared.set(State::AT_ONCE);
                    self.shared.end(Outcome::Idle);
                    Poll::Ready(Ok(()))
                }
                Peek::Nothing | Peek::Unknown if self.is_read() => {
                    self.shared.touch();
                    Poll::Pending
                }
                Peek::Nothing | Peek::Gone | Peek::Unknown => self.has_stalled(cx),
            },
        }
    }

    /// In a process that stood still the timers are over before it is seen what had come. A new one is over behind that.
    fn may_have_come_in_time(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(timer) = self.timer.as_mut().filter(|timer| !timer.late) else {
            return false;
        };
        timer.late = true;
        let seen = self.shared.transport.peek();
        matches!(seen, Peek::Data | Peek::Unknown) && prolong(timer.sleep.as_mut(), LEAST, cx)
    }

    /// By the reactor, of what nobody can look at.
    fn has_yet_to_be_told(&mut self, now: Moment, cx: &mut Context<'_>) -> bool {
        let Some(again) = self.turn.again(now, cx) else {
            return false;
        };
        if self.shared.stage() >= Phase::Draining {
            self.shared.remind(again);
            return true;
        }
        let pause = again.since(now);
        self.is_over(false, pause, cx);
        // That of idleness is over.
        if let Some(timer) = &mut self.timer {
            (timer.late, timer.quiet) = (true, self.quiet);
            if !prolong(timer.sleep.as_mut(), pause, cx) {
                cx.waker().wake_by_ref();
            }
        }
        true
    }

    /// What it owes comes behind what it has yet to read, which it is taking: HTTP/2 the acknowledgment of that, HTTP/1 the
    /// rest of a head behind an answer.
    fn is_read(&mut self) -> bool {
        let unproven = match self.kind.http2() {
            Some(http2) => http2.is_unproven(),
            None => self.answered,
        };
        unproven && self.taken.goes_on(self.shared.transport.unsent())
    }

    fn has_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.end(Outcome::Stalled);
        let now = self.shared.registry.clock.now();
        // Half a tunnel keeps h2 from ending by that.
        let goes_on = self.shared.has(State::HALF) || self.shared.state().is_half_tunnel();
        let mut http2 = self.kind.http2();
        if let Some(http2) = http2.take_if(|it| !goes_on && it.owed_since(now).is_some()) {
            // h2 says the last stream then, and ends: by that the client knows which requests it may send again (RFC 9113
            // section 6.8).
            http2.waits_no_longer();
            if http2.is_unproven() {
                self.shared.set(State::IN_STAGES);
            }
            self.shared.touch();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // What was written last may be on its way. In a drain it has had `stall_timeout` for that, unless it is read slowly.
        let in_stages = match self.kind.http2() {
            Some(http2) => http2.is_unproven(),
            None => {
                self.answered && (self.shared.phase() < Phase::Draining || self.taken.went_on())
            }
        };
        if in_stages {
            self.shared.set(State::IN_STAGES);
        }
        self.goodbye(cx);
        Poll::Ready(Err(stalled()))
    }

    /// While serving: whether it can't be closed yet, but be ended as in a drain. HTTP/2 can't, and half a TLS
    /// record may be a request that is on its way.
    fn has_to_be_told(&self, verdict: Verdict) -> bool {
        let state = self.shared.state();
        match verdict {
            Verdict::Idle => state.has(State::HTTP2),
            Verdict::Stalled => state.is_between() && self.shared.stage() < Phase::Draining,
            Verdict::Busy | Verdict::Until(_) => false,
        }
    }

    fn verdict(&mut self, now: Moment, cx: &mut Context<'_>) -> Verdict {
        let mut streams = self.shared.has_streams();
        let half_record = self.shared.transport.is_half_record();
        let due = if self.shared.stage() >= Phase::Draining {
            // That has a bound of its own while there is no deadline.
            let over = self.shared.phase() < Phase::Draining && self.is_head_over(cx);
            if self.timer.take_if(|timer| !timer.head).is_some() {
                // What came since a turn that was had while serving has not been seen.
                self.turn = Turn::default();
            }
            let stalled = if self.is_half_record_over(half_record, cx) {
                Moment::START
            } else {
                self.shared.stall_due()
            };
            let quiet = self.shared.registry.clock.moment(self.quiet);
            Due {
                // HTTP/2 is told by who polls it.
                idle: if self.shared.has(State::HTTP2) {
                    Moment::NEVER
                } else {
                    self.shared.idle_due(quiet)
                },
                half_head: if over { Moment::START } else { stalled },
                stalled,
            }
        } else {
            // The frames tell. What lets go of its request behind the last of them wakes nobody.
            streams &= !self.kind.is_http2();
            self.due_while_serving(cx)
        };
        let state = self.shared.state();
        state.verdict(streams, half_record, now, due)
    }

    /// Told alone, between two requests, half a record is half for too long. Something of it may come for ever, and there is no deadline.
    fn is_half_record_over(&mut self, half_record: bool, cx: &mut Context<'_>) -> bool {
        let state = self.shared.state();
        if state.is_half_head() {
            return false;
        }
        if !half_record || !state.is_between() || self.shared.phase() >= Phase::Draining {
            // The next one has a time of its own.
            self.timer.take_if(|timer| timer.head);
            return false;
        }
        let bound = self.shared.registry.config.head_timeout;
        bound.is_some_and(|bound| self.is_over(true, bound, cx))
    }

    /// The bound on half-sent heads and, if asked for, on idle connections.
    fn due_while_serving(&mut self, cx: &mut Context<'_>) -> Due {
        let (over, slept) = (self.is_head_over(cx), self.has_slept(cx));
        let state = self.shared.state();
        let clock = &self.shared.registry.clock;
        let idle = match self.idle {
            // Whatever the system's clock says, where tokio's is paused.
            Some(_) if slept => Moment::START,
            Some(bound) => clock.moment(self.quiet).after(bound),
            None => Moment::NEVER,
        };
        Due {
            idle,
            half_head: if over { Moment::START } else { Moment::NEVER },
            // Half a TLS record makes it no less idle.
            stalled: if state.is_between() {
                idle
            } else {
                Moment::NEVER
            },
        }
    }

    /// For as long as it may be idle.
    fn has_slept(&mut self, cx: &mut Context<'_>) -> bool {
        let timer = self.idle_timer();
        timer.is_some_and(|timer| timer.late || timer.sleep.as_mut().poll(cx).is_ready())
    }

    /// The timer for that, if nothing has happened since it was armed.
    fn idle_timer(&mut self) -> Option<&mut Timer> {
        let quiet = self.quiet;
        let timer = self.timer.as_mut();
        timer.filter(|timer| !timer.head && timer.quiet == quiet)
    }

    /// Half a head has come, and is half for too long since that was first seen.
    fn is_head_over(&mut self, cx: &mut Context<'_>) -> bool {
        let half = self.shared.state().is_half_head();
        let head = self.shared.registry.config.head_timeout.filter(|_| half);
        head.is_some_and(|bound| self.is_over(true, bound, cx))
    }

    /// While serving: nothing comes of it before the timer is over that was armed for idleness.
    fn will_look_again(&mut self, cx: &mut Context<'_>) -> bool {
        let state = self.shared.state();
        if self.shared.stage() >= Phase::Draining || state.is_half_head() {
            return false;
        }
        let timer = self.timer.as_mut().filter(|it| !(it.head || it.late));
        timer.is_some_and(|timer| timer.sleep.as_mut().poll(cx).is_pending())
    }

    fn look_again(&mut self, now: Moment, at: Moment, deadline: Moment, cx: &mut Context<'_>) {
        if self.shared.stage() >= Phase::Draining {
            self.shared.remind_by(at, deadline);
        } else if self.is_over(false, at.since(now), cx) {
            // One timer serves many requests: it is armed for what is left when it is looked at.
            self.timer = None;
            cx.waker().wake_by_ref();
        }
    }

    /// Whether that time is over, counted from the first time this is asked.
    fn is_over(&mut self, head: bool, time: Duration, cx: &mut Context<'_>) -> bool {
        self.timer.take_if(|timer| timer.head != head);
        let timer = self.timer.get_or_insert_with(|| Timer {
            head,
            quiet: self.quiet,
            late: false,
            sleep: Box::pin(tokio::time::sleep(time)),
        });
        timer.sleep.as_mut().poll(cx).is_ready()
    }

    /// Everything is flushed, and hyper may not ask for input again before it is woken.
    #[cold]
    fn watch_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.has(State::WEBSOCKET) {
            return self.flushed_websocket(cx);
        }
        // In the drain whoever polls the connection looks after each poll; and what ends has other bounds.
        let ends = matches!(self.end, End::Eof | End::Staged(_) | End::Failed(_));
        if ends || self.shared.stage() >= Phase::Draining {
            return Poll::Ready(Ok(()));
        }
        if self.shared.state().is_at_work() || self.will_look_again(cx) {
            return Poll::Ready(Ok(()));
        }
        // The reactor has its turn, by which it will be polled.
        if self.idle_timer().is_some_and(|timer| timer.late) {
            return Poll::Ready(Ok(()));
        }
        let deadline = self.shared.registry.deadline();
        let now = self.shared.registry.clock.now();
        match self.verdict(now, cx) {
            Verdict::Busy => {}
            Verdict::Until(at) => self.look_again(now, at, deadline, cx),
            // Whoever has the body of the last request has not read it, for which hyper waits.
            Verdict::Idle | Verdict::Stalled if self.woken => self.shared.terminate(Why::Asked),
            Verdict::Idle | Verdict::Stalled => {
                self.woken = true;
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn falls_quiet(&mut self) {
        self.quiet = Stamp::now();
        self.turn = Turn::default();
        self.note_quiet();
    }

    /// Nothing is open on HTTP/2 any more. Its time is kept only where idleness has a bound.
    fn streams_ended(&mut self) {
        if self.idle.is_some() {
            self.falls_quiet();
        } else {
            self.note_quiet();
        }
    }

    /// Who closes it from outside counts from here.
    fn note_quiet(&self) {
        if !self.shared.is_left_alone() {
            self.shared.came_in();
        }
    }

    // ----- a WebSocket -----

    /// At the first time the head of its 101 is flushed, behind which hyper writes no more: what is written from
    /// here on are frames.
    fn flushed_websocket(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let told = self.told_at();
        match (&mut self.kind, self.close_websockets) {
            (Kind::WebSocket(websocket), _) => {
                let io = self.io.as_mut().expect("there until it is taken");
                websocket.poll_flushed(told, Pin::new(io), cx)
            }
            (kind, Some(code)) => {
                let read_ahead = self.shared.has(State::READING);
                *kind = Kind::WebSocket(Box::new(WebSocket::new(code, read_ahead)));
                Poll::Ready(Ok(()))
            }
            (_, None) => {
                self.shared.clear(State::WEBSOCKET);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// A handler lets go of it, perhaps as it is told of the same: goodbye may not have been said yet, or its client not have read it. True if
    /// the other side has yet to answer.
    fn leaves_with_a_goodbye(&mut self, cx: &mut Context<'_>) -> bool {
        let Kind::WebSocket(websocket) = &mut self.kind else {
            return false;
        };
        // Ahead of its turn, should it have one: it ends now.
        let is_told = self.shared.stage() == Phase::Draining;
        if self.shut != Shut::No || !is_told || thread::panicking() {
            return false;
        }
        let now = self.shared.registry.clock.now();
        let mut io = Pin::new(self.io.as_mut().expect("there until it is taken"));
        // If it can't be said at once it is not waited for; nor for the task's budget.
        let says = poll_fn(|cx| websocket.poll_goodbye(Some(now), io.as_mut(), cx));
        let _ = pin!(unconstrained(says)).poll(cx);
        websocket.waits_for_answer()
    }

    /// Now, if it is time to say goodbye. If it is not yet, it is woken when it is.
    fn told_at(&self) -> Option<Moment> {
        let shared = &self.shared;
        if self.shut != Shut::No || shared.stage() < Phase::Draining {
            return None;
        }
        let deadline = shared.registry.deadline();
        let due = shared.told_due();
        let now = shared.registry.clock.now();
        if now < due {
            shared.remind_by(due, deadline);
            return None;
        }
        Some(now)
    }

    /// What a handler writes behind the goodbye goes nowhere, of which one that never reads would not learn. Not before it
    /// could read the client's answer, and answer that.
    fn may_write(&mut self, told: Option<Moment>) -> io::Result<()> {
        let Kind::WebSocket(websocket) = &mut self.kind else {
            return Ok(());
        };
        let Some(since) = websocket.over_since() else {
            return Ok(());
        };
        let shared = &self.shared;
        let patience = shared.registry.config.stall_timeout;
        let mut may = told.is_some_and(|now| now < since.after(patience));
        if let Some(now) = told.filter(|_| !may) {
            // It has yet to read the goodbye.
            may = self.taken.goes_on(shared.transport.unsent());
            if may {
                websocket.is_heard(now);
            }
        }
        may = may && (websocket.has_answer() || shared.transport.peek() != Peek::Gone);
        // The socket first, the phase after: one that was cut looks gone.
        match shared.stage() {
            Phase::Forcing | Phase::Terminated => {
                // Also if it lets go before it is cut.
                shared.end(Outcome::Forced);
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            _ if !may => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }

    fn poll_websocket(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(&self.kind, Kind::WebSocket(websocket) if websocket.is_over()) {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = self.poll_http1(cx, buf);
        // The waker first, the phase after (invariant 2).
        let told = self.told_at();
        if let Kind::WebSocket(websocket) = &mut self.kind {
            websocket.was_read(&buf.filled()[before..], told);
            let io = self.io.as_mut().expect("there until it is taken");
            // The handler may never write. An error is for one that does.
            let _ = websocket.poll_goodbye(told, Pin::new(io), cx);
            if read.is_pending() {
                // If that was the second one of two.
                if websocket.is_over() {
                    return Poll::Ready(Ok(()));
                }
                websocket.waits_for_more(cx);
            }
        }
        read
    }

    // ----- reading -----

    fn poll_otherwise(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.end {
            End::Unknown { matched, sniffs } => self.poll_unknown(matched.into(), sniffs, cx, buf),
            End::Saying(only) => self.poll_saying(only, cx, buf),
            End::Held { begun, n, given } => self.poll_held(&begun[..n.into()], given, cx, buf),
            End::Failed(ref mut error) => Poll::Ready(Err(error.take().unwrap_or_else(stalled))),
            End::Eof => Poll::Ready(Ok(())),
            End::Open if matches!(self.kind, Kind::WebSocket(_)) => self.poll_websocket(cx, buf),
            End::Open | End::Staged(_) => self.poll_http2(cx, buf),
        }
    }

    /// What was held back is given to hyper, which would else take that for the end of a connection on which
    /// nothing came.
    fn fails(
        &mut self,
        held: &[u8],
        error: io::Error,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if held.is_empty() {
            return Poll::Ready(Err(error));
        }
        buf.put_slice(held);
        self.end = End::Failed(Some(error));
        Poll::Ready(Ok(()))
    }

    /// Reads until the version is known. If it is found out here, what may be the beginning of HTTP/2 is
    /// held back until it is not.
    #[cold]
    fn poll_unknown(
        &mut self,
        mut matched: usize,
        sniffs: bool,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let before = buf.filled().len();
            let held = sniffs && matched > 0;
            // No more than there will be room for behind what is held.
            let mut part = [0; PREFACE.len()];
            let mut part = ReadBuf::new(&mut part[matched..]);
            let read = if held {
                self.io().poll_read(cx, &mut part)
            } else {
                self.io().poll_read(cx, buf)
            };
            let so_far = if sniffs { &PREFACE[..matched] } else { &[] };
            match read {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.shared.set(State::PEER_ENDED);
                    return self.fails(so_far, error, buf);
                }
                Poll::Pending => {
                    return match self.nothing_to_read(cx) {
                        Poll::Ready(Err(error)) => self.fails(so_far, error, buf),
                        Poll::Ready(Ok(())) if self.kind.is_http2() => {
                            // It would take an end before the preface for an error.
                            let rest = &PREFACE[matched..];
                            buf.put_slice(&rest[..rest.len().min(buf.remaining())]);
                            Poll::Ready(Ok(()))
                        }
                        other => other,
                    };
                }
            }
            let bytes = if held {
                part.filled()
            } else {
                &buf.filled()[before..]
            };
            if matched == 0 && !bytes.is_empty() {
                self.shared.transport.http_begins(bytes);
            }
            let rest = &PREFACE[matched..];
            let n = rest.len().min(bytes.len());
            let only_http1 = self.shared.has(State::HTTP1);
            if only_http1 || n == 0 || bytes[..n] != rest[..n] {
                // Everything else is HTTP/1, also what ends before.
                if matched > 0 {
                    self.was_read(&PREFACE[..matched]);
                }
                self.begins_as_http1(matched == 0, bytes);
                if held {
                    buf.put_slice(&PREFACE[..matched]);
                    buf.put_slice(part.filled());
                }
                return Poll::Ready(Ok(()));
            }
            matched += n;
            if matched == PREFACE.len() {
                let frames = bytes[n..].to_vec();
                self.begins_as_http2(&frames);
                if !sniffs {
                    return Poll::Ready(Ok(()));
                }
                // Whoever has the connection sees that, and has it served otherwise.
                if !held {
                    buf.set_filled(before);
                }
                if let Some(http2) = self.kind.http2() {
                    http2.unread([PREFACE, &frames[..]].concat());
                }
                return Poll::Pending;
            }
            self.note_half();
            // Less than a preface.
            self.end = End::Unknown {
                matched: u8::try_from(matched).unwrap_or(0),
                sniffs,
            };
            if !sniffs {
                return Poll::Ready(Ok(()));
            }
            if !held {
                buf.set_filled(before);
            }
        }
    }

    /// So much of one has come that whose it is can't be told, or has yet to be followed: that is as half a head, whatever it looks like.
    fn note_half(&self) {
        self.shared.set(State::HALF);
        self.shared.came_in();
    }

    fn begins_as_http1(&mut self, first: bool, bytes: &[u8]) {
        self.end = End::Open;
        if !(first && self.shared.read_ordinary(bytes)) {
            self.was_read(bytes);
        }
        if !bytes.is_empty() && !self.kind.is_http2() {
            self.shared.set(State::HTTP1);
        }
    }

    /// The preface has been read, and these behind it.
    fn begins_as_http2(&mut self, frames: &[u8]) {
        self.end = End::Open;
        self.timer = None;
        self.falls_quiet();
        self.shared.speaks_http2();
        self.kind.become_http2();
        // An empty read would be an end.
        if !frames.is_empty() {
            self.read_frames(frames);
        }
    }

    /// Gives hyper what has come behind what was read for hyper-util; and that, unless it was `given`. Followed together they are one
    /// ordinary head, as a rule.
    fn poll_held(
        &mut self,
        begun: &[u8],
        given: bool,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if buf.remaining() < begun.len() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        buf.put_slice(begun);
        let more = self.io().poll_read(cx, buf);
        let bytes = &buf.filled()[before..];
        self.shared.transport.http_begins(bytes);
        if given {
            self.shared.clear(State::HALF);
        }
        self.begins_as_http1(true, bytes);
        let came = bytes.len() - begun.len();
        if given {
            buf.filled_mut()[before..].copy_within(begun.len().., 0);
            buf.set_filled(before + came);
        }
        let has_nothing = given && came == 0;
        match more {
            Poll::Ready(Ok(())) => {
                if has_nothing {
                    self.was_read(&[]);
                }
            }
            Poll::Ready(Err(error)) => {
                self.shared.set(State::PEER_ENDED);
                if has_nothing {
                    return Poll::Ready(Err(error));
                }
                self.end = End::Failed(Some(error));
            }
            Poll::Pending if has_nothing => return self.nothing_to_read(cx),
            Poll::Pending => {}
        }
        Poll::Ready(Ok(()))
    }

    #[cold]
    fn poll_saying(
        &mut self,
        only: Only,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut matched = match only {
            Only::Either | Only::Http1 => {
                let mut begun = [0; PREFACE.len()];
                let mut part = ReadBuf::new(&mut begun);
                match self.io().poll_read(cx, &mut part) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => {
                        self.shared.set(State::PEER_ENDED);
                        return Poll::Ready(Err(error));
                    }
                    Poll::Pending => return self.nothing_to_read(cx),
                }
                let part = part.filled();
                if PREFACE.starts_with(part) && !part.is_empty() && matches!(only, Only::Http1) {
                    // At most a preface.
                    let n = u8::try_from(part.len()).unwrap_or(0);
                    let given = false;
                    self.end = End::Held { begun, n, given };
                    return Poll::Ready(Ok(()));
                }
                buf.put_slice(part);
                if part.len() == PREFACE.len() && part != PREFACE && !may_be_whole(part) {
                    // hyper reads on, or refuses it.
                    self.note_half();
                    let (n, given) = (24, true);
                    self.end = End::Held { begun, n, given };
                    return Poll::Ready(Ok(()));
                }
                if !part.is_empty() {
                    self.shared.transport.http_begins(part);
                }
                if !PREFACE.starts_with(part) {
                    self.begins_as_http1(true, part);
                    return Poll::Ready(Ok(()));
                }
                // All of it may be HTTP/2's, and hyper-util finds out.
                if part.len() == PREFACE.len() {
                    self.begins_as_http2(&[]);
                } else {
                    self.end = End::Unknown {
                        // Less than that.
                        matched: u8::try_from(part.len()).unwrap_or(0),
                        sniffs: false,
                    };
                    if part.is_empty() {
                        self.shared.set(State::PEER_ENDED);
                    } else {
                        self.note_half();
                    }
                }
                return Poll::Ready(Ok(()));
            }
            Only::Http2 => {
                if buf.remaining() < PREFACE.len() {
                    return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
                }
                buf.put_slice(PREFACE);
                self.end = End::Saying(Only::Preface(0));
                return Poll::Ready(Ok(()));
            }
            Only::Preface(matched) => matched,
        };
        while matched < PREFACE.len() {
            let rest = &PREFACE[matched..];
            let mut part = [0; PREFACE.len()];
            let mut part = ReadBuf::new(&mut part[..rest.len()]);
            let Poll::Ready(read) = self.io().poll_read(cx, &mut part) else {
                return self.nothing_to_read(cx);
            };
            let part = part.filled();
            if matched == 0 && !part.is_empty() {
                self.shared.transport.http_begins(part);
            }
            if read.is_err() || part.is_empty() {
                self.shared.set(State::PEER_ENDED);
                return Poll::Ready(read);
            }
            self.note_half();
            if !rest.starts_with(part) {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "no HTTP/2 preface",
                )));
            }
            matched += part.len();
            self.end = End::Saying(Only::Preface(matched));
        }
        self.begins_as_http2(&[]);
        self.poll_http2(cx, buf)
    }

    fn poll_http2(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(http2) = self.kind.http2() else {
            return self.poll_http1(cx, buf);
        };
        if http2.give_unread(buf) {
            return Poll::Ready(Ok(()));
        }
        if self.shared.has(State::TOLD) {
            return self.poll_sifted(cx, buf);
        }
        let before = buf.filled().len();
        match self.io().poll_read(cx, buf) {
            Poll::Ready(result) => {
                self.read_frames(&buf.filled()[before..]);
                Poll::Ready(result)
            }
            Poll::Pending if self.shared.has(State::LOOK | State::HALF) => self.nothing_to_read(cx),
            Poll::Pending => Poll::Pending,
        }
    }

    /// HTTP/2 was told to go away, and has yet to see that acknowledged, or has.
    #[cold]
    fn poll_sifted(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut part = [0; 4096];
        while let Some(http2) = self.kind.http2() {
            let sieve = http2.sieve();
            let before = buf.filled().len();
            if sieve.give(buf) {
                self.read_frames(&buf.filled()[before..]);
                return Poll::Ready(Ok(()));
            }
            let io = Pin::new(self.io.as_mut().expect("there until it is taken"));
            // Next to all of what comes behind the acknowledgment passes as it is.
            let passes = sieve.is_open();
            let mut part = ReadBuf::new(&mut part);
            let (read, bytes) = if passes {
                let read = io.poll_read(cx, buf);
                (read, &buf.filled()[before..])
            } else {
                let read = io.poll_read(cx, &mut part);
                (read, part.filled())
            };
            let registry = &self.shared.registry;
            let now = registry.clock.now();
            match read {
                Poll::Ready(Ok(())) if !bytes.is_empty() => {
                    sieve.feed(bytes, now, &registry.config);
                    self.shared.came_in();
                    if passes && sieve.has_passed(bytes.len()) {
                        self.read_frames(&buf.filled()[before..]);
                        return Poll::Ready(Ok(()));
                    }
                    buf.set_filled(before);
                }
                Poll::Ready(end) => {
                    self.read_frames(&[]);
                    return Poll::Ready(end);
                }
                // A request may be in the rest of a TLS record.
                Poll::Pending
                    if sieve.is_due(now)
                        && now < sieve.at_last()
                        && self.shared.transport.is_half_record() =>
                {
                    self.shared.remind(sieve.at_last());
                    return Poll::Pending;
                }
                // Its readiness has not been seen yet, and a request may lie there.
                Poll::Pending
                    if sieve.is_due(now)
                        && self.shared.transport.peek() == Peek::Data
                        && sieve.waits_for_more(now) =>
                {
                    return Poll::Pending;
                }
                Poll::Pending => match sieve.quiet(now) {
                    Some(due) => {
                        self.shared.remind(due);
                        return Poll::Pending;
                    }
                    None if !sieve.is_empty() => {}
                    None if self.is_owed_for_too_long(now) => {
                        if let Some(http2) = self.kind.http2() {
                            http2.waits_no_longer();
                        }
                    }
                    None => return self.nothing_to_read(cx),
                },
            }
        }
        Poll::Pending
    }

    /// Told for a reason of its own, and with nothing more to read, it has not acknowledged that for longer than a peer
    /// may take for a head. In a drain of all the deadline is the bound.
    fn is_owed_for_too_long(&mut self, now: Moment) -> bool {
        let shared = &self.shared;
        let bound = shared.registry.config.head_timeout;
        let bound = bound.filter(|_| shared.phase() < Phase::Draining);
        let (Some(bound), Some(http2)) = (bound, self.kind.http2()) else {
            return false;
        };
        let Some(since) = http2.owed_since(now) else {
            return false;
        };
        let transport = &shared.transport;
        // Or a request may lie there, or in the rest of a TLS record; but not for ever.
        let mut comes = || {
            http2.is_half_acknowledged()
                || transport.peek() == Peek::Data
                || transport.is_half_record()
        };
        let over = since.after(bound);
        now >= over.after(bound) || now >= over && !comes()
    }

    fn read_frames(&mut self, bytes: &[u8]) {
        let shared = &self.shared;
        if bytes.is_empty() {
            shared.set(State::PEER_ENDED);
        }
        let Some(http2) = self.kind.http2() else {
            return;
        };
        let half = http2.half();
        http2.read(bytes);
        if half != http2.half() {
            // The next one has a time of its own.
            self.timer.take_if(|timer| timer.head);
        }
        let quiet = http2.show(shared);
        shared.came_in();
        if quiet {
            self.streams_ended();
        }
    }

    /// Something else than an ordinary head.
    #[cold]
    fn was_read(&mut self, bytes: &[u8]) {
        let shared = &self.shared;
        if bytes.is_empty() {
            shared.set(State::PEER_ENDED);
            return;
        }
        if shared.has(State::UPGRADED) {
            if self.kind.is_ordinary() && shared.has(State::WEBSOCKET) {
                // hyper looks for the end of a client to whom it has yet to write.
                shared.set(State::AHEAD);
            }
            return;
        }
        if shared.read(bytes) {
            self.falls_quiet();
        }
        let shared = &self.shared;
        if !shared.state().is_half_head() {
            self.timer.take_if(|timer| timer.head);
        }
        shared.came_in();
    }

    #[inline(always)]
    #[allow(clippy::inline_always)] // called twice, and one of them is for every read
    fn poll_http1(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match self.io().poll_read(cx, buf) {
            Poll::Ready(result) => {
                let bytes = &buf.filled()[before..];
                if !self.shared.read_ordinary(bytes) {
                    self.was_read(bytes);
                }
                Poll::Ready(result)
            }
            // While serving there are no more than two bounds.
            Poll::Pending if self.shared.has(State::LOOK | State::HALF) => self.nothing_to_read(cx),
            Poll::Pending => Poll::Pending,
        }
    }

    // ----- writing -----

    #[inline]
    fn wrote<T>(&mut self, result: &Poll<T>) {
        if result.is_pending() {
            self.shared.set(State::BLOCKED);
        }
    }

    /// Not HTTP/1.
    fn write_otherwise(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut told = None;
        if matches!(self.kind, Kind::WebSocket(_)) {
            told = self.told_at();
            self.may_write(told)?;
        }
        let io = Pin::new(self.io.as_mut().expect("there until it is taken"));
        let result = match (&mut self.kind, bufs) {
            (Kind::WebSocket(websocket), _) => websocket.poll_write(told, io, cx, bufs),
            (_, [buf]) => io.poll_write(cx, buf),
            _ => io.poll_write_vectored(cx, bufs),
        };
        self.wrote(&result);
        self.wrote_frames(&result, bufs);
        result
    }

    fn wrote_frames(&mut self, result: &Poll<io::Result<usize>>, bufs: &[IoSlice<'_>]) {
        let (Some(http2), &Poll::Ready(Ok(mut n))) = (self.kind.http2(), result) else {
            return;
        };
        let shared = &self.shared;
        if shared.has(State::BLOCKED) {
            shared.clear(State::BLOCKED);
        }
        for buf in bufs {
            let part = &buf[..buf.len().min(n)];
            http2.written(part);
            n -= part.len();
        }
        let quiet = http2.show(shared);
        if http2.has_gone_away() && !shared.has(State::GONE_AWAY) {
            shared.set(State::GONE_AWAY);
        }
        if shared.has(State::TOLD) {
            // h2 does not ask for input again after it has written the last of it.
            shared.touch();
        }
        if quiet {
            self.streams_ended();
        }
    }
}

impl Kind {
    #[inline]
    fn is_ordinary(&self) -> bool {
        matches!(self, Self::Ordinary)
    }

    fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    fn http2(&mut self) -> Option<&mut Http2> {
        match self {
            Self::Http2(http2) => Some(http2),
            Self::Ordinary | Self::WebSocket(_) => None,
        }
    }

    fn become_http2(&mut self) {
        if !self.is_http2() {
            *self = Self::Http2(Box::default());
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> Drop for Plaintext<Io> {
    fn drop(&mut self) {
        self.shared.set(State::LET_GO);
        if self.io.is_none() || self.shut != Shut::No {
            return;
        }
        let noop = &mut Context::from_waker(Waker::noop());
        if self.leaves_with_a_goodbye(noop) {
            self.shared.set(State::ENDED_FIRST);
            return self.goodbye(noop);
        }
        let (shared, state) = (&self.shared, self.shared.state());
        if state.has(State::IN_STAGES) {
            return self.goodbye(noop);
        }
        // Not after an error: hyper drops a connection then whose response may be cut off, and the
        // client must not take that for its end. But hyper drops it also at the end of one on which an
        // upgrade was asked for that did not come about, for whoever waits for that.
        let is_done = state.step() == Step::Quiet
            && !state.has(State::UPGRADED | State::HTTP2 | State::GIVEN_UP | State::PEER_ENDED)
            && state.has(State::HTTP1)
            && shared.stage() < Phase::Forcing;
        if !is_done {
            return;
        }
        if matches!(self.end, End::Open) && !state.has(State::HALF) && shared.is_inside() {
            // As was agreed: see above. After an error hyper does not let go of it until that is known.
            shared.set(State::TOLD);
        }
        if matches!(self.end, End::Eof) || shared.close(shared.has_unread()) != Close::InStages {
            self.goodbye(noop);
        } else if shared.stage() >= Phase::Draining {
            // By the driver.
            shared.set(State::IN_STAGES);
            self.goodbye(noop);
        } else if let Ok(runtime) = Handle::try_current() {
            // So that the rest, should it be dropped as well, is.
            shared.set(State::GIVEN_UP);
            let mut rest = Self {
                io: self.io.take(),
                shared: Arc::clone(shared),
                end: End::Open,
                kind: Kind::Ordinary,
                quiet: self.quiet,
                turn: Turn::default(),
                answered: true,
                woken: false,
                shut: Shut::No,
                timer: None,
                idle: None,
                close_websockets: None,
                taken: self.taken,
            };
            #[allow(clippy::disallowed_methods)] // of a connection that is spawned
            runtime.spawn(async move {
                // However that ends, it is closed.
                let _ = poll_fn(|cx| Pin::new(&mut rest).poll_shutdown(cx)).await;
                drop(rest.into_inner());
            });
        } else {
            self.goodbye(noop);
        }
    }
}

/// Whether an empty line is in there, with which a head may end.
fn may_be_whole(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|b| *b == b'\n').skip(1);
    lines.any(|line| matches!(line, b"" | b"\r"))
}

fn stalled() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the rest of a message did not come in time",
    )
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncRead for Plaintext<Io> {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(self.end, End::Open) && self.kind.is_ordinary() {
            self.poll_http1(cx, buf)
        } else {
            self.poll_otherwise(cx, buf)
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncWrite for Plaintext<Io> {
    #[inline]
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.kind.is_ordinary() {
            return self.write_otherwise(cx, &[IoSlice::new(buf)]);
        }
        let result = self.io().poll_write(cx, buf);
        self.wrote(&result);
        result
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.kind.is_ordinary() {
            return self.write_otherwise(cx, bufs);
        }
        let result = self.io().poll_write_vectored(cx, bufs);
        self.wrote(&result);
        result
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.io().poll_flush(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {
                this.shared.set(State::BLOCKED);
                if let Kind::WebSocket(websocket) = &mut this.kind {
                    websocket.has_to_wait(cx);
                }
                return Poll::Pending;
            }
        }
        // Also if nothing was written since: hyper may drop the body when the last of it is out.
        if this.shared.flushed() {
            this.answered = true;
            this.falls_quiet();
        }
        // After a handler that had to wait hyper writes the response and does not ask for input
        // again: this is where its end can be seen.
        if this.shared.has(State::AT_FLUSH) {
            return this.watch_out(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if matches!(this.kind, Kind::WebSocket(_)) && this.flushed_websocket(cx).is_pending() {
            return Poll::Pending;
        }
        if matches!(
            this.end,
            End::Open | End::Unknown { .. } | End::Saying(_) | End::Held { .. } | End::Failed(_)
        ) {
            // hyper does so for a client that left as well.
            if !this.kind.is_http2() && !this.shared.has(State::PEER_ENDED) {
                this.shared.set(State::ENDED_FIRST);
            }
            let shut = this.poll_say(cx);
            let shared = &this.shared;
            if shut.is_pending() {
                // The last of what we owe, over TLS.
                shared.set(State::BLOCKED);
                return Poll::Pending;
            }
            if shared.has(State::BLOCKED) {
                shared.clear(State::BLOCKED);
            }
            ready!(shut)?;
            let state = shared.state();
            if state.has(State::UPGRADED) {
                // Nor is it looked at, as that would take a reset for whoever reads on.
                return Poll::Ready(Ok(()));
            }
            // Nothing is lost by closing at once if nothing comes in any more: a reset is what
            // destroys a response on its way.
            let has_ended = state.has(State::PEER_ENDED);
            let in_stages = if let Some(http2) = this.kind.http2() {
                http2.is_unproven() && !has_ended
            } else {
                // Of who has ended nothing comes any more.
                let close = if has_ended {
                    state.close(false)
                } else {
                    shared.close(shared.has_unread())
                };
                close == Close::InStages
            };
            // Of a client that has been silent for that long already nothing is waited for here.
            if !in_stages || state.has(State::IN_STAGES) {
                return Poll::Ready(Ok(()));
            }
            let patience = shared.registry.config.stall_timeout;
            let unsent = shared.transport.unsent();
            this.end = End::Staged(Staged::new(patience, this.kind.is_http2(), unsent));
        }
        if let End::Staged(staged) = &mut this.end {
            let io = this.io.as_mut().expect("there until it is taken");
            // An HTTP/2 client gives window back for as long as it takes to read what was sent. In
            // the drain the deadline is its bound.
            let bounded = !this.kind.is_http2() || this.shared.phase() < Phase::Draining;
            let before = staged.discarded();
            let transport = &this.shared.transport;
            let polled = staged.poll(io, bounded, || transport.unsent(), cx);
            if staged.discarded() > before {
                // It is not silent.
                this.shared.came_in();
            }
            polled.map(Ok)
        } else {
            this.shut = this.shut.max(Shut::Asked);
            this.poll_say(cx)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::connection::socket::NoSocket;
    use crate::registry::Registry;

    /// Whoever is told which version is spoken may go on with what he was told by, as hyper-util, or begin by serving
    /// HTTP/1 and change over when that fails, as has been proposed (hyperium/hyper#3962): then an end-of-file would be one.
    #[tokio::test]
    async fn what_tells_the_version_is_served_by_whoever_begins_with_http1() {
        for version in [Version::Theirs, Version::TheirHttp1] {
            for head in [
                "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
                "PUT / HTTP/1.0\r\n\r\n",
            ] {
                let config = Config::default();
                let registry = Arc::new(Registry::without_threads(config, Clock::standing()));
                let shared = Shared::register(&registry, Arc::new(NoSocket));
                let (mut client, io) = tokio::io::duplex(1024);
                let plaintext = Plaintext::new(io, Arc::clone(&shared), version, None);
                let answers = service_fn(async |_: Request<Incoming>| {
                    Ok::<_, Infallible>(Response::new("ok".to_owned()))
                });
                let served =
                    http1::Builder::new().serve_connection(TokioIo::new(plaintext), answers);
                client
                    .write_all(head.as_bytes())
                    .await
                    .expect("there is room");
                let mut answer = String::new();
                let (read, _) = tokio::join!(client.read_to_string(&mut answer), served);
                read.expect("an end");
                assert!(answer.ends_with("\r\n\r\nok"), "{answer:?}");
                shared.socket_closed();
            }
        }
    }
}
