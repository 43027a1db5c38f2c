//! What one connection is in, as one word: pure, without IO, clock or atomics.
//!
//! ```text
//!                       a whole head             the service       its response head
//!                        was read                 is called          is with hyper
//!   ┌──────────▶ Quiet ───────────▶ Head ───────────▶ Called ───────────▶ Answered
//!   │ flushed      ▲                                  ▲    │ deadline         │ flushed
//!   │              │ flushed                  flushed │    ▼                  ▼
//!   │            Late ◀──────────────────────────────────(503)            Streaming
//!   │                                                 │                       │
//!   │                 called, the answer before       │                       │
//!   │                 not being flushed               │                       │
//!   └─── Said ──────────────────────────────────▶ Behind                      │
//!         ▲                                                                   │
//!         └──────────────────── its body is dropped ──────────────────────────┘
//! ```
//!
//! That is where the HTTP/1 request in hand is. Beside it lies what else is known, as flags: one comparison
//! tells where a request is, and that nothing about it is out of the ordinary.
//!
//! | flag | rises | falls |
//! |---|---|---|
//! | `BLOCKED` | a write or a flush is Pending | a flush is Ready |
//! | `HALF` | part of a head was read (HTTP/2: of a stream's) | the rest is |
//! | `BODY` | the service is called, part of the body being to come; HTTP/2: an answer is over ahead of that | the rest is read |
//! | `AHEAD` | a whole head was read that hyper has not called for | it does |
//! | `CONNECT`, `HEAD`, `HTTP10` | the service is called with such a request | the next call |
//! | `BY_CLOSE` | the head of a response goes out that only the close ends | this side was shut down behind it |
//! | `OVER` | all of that response is with hyper | as well |
//! | `HTTP1`, `HTTP2` | the first bytes tell which | never |
//! | `STREAMS` | HTTP/2: the head of a stream was read | the last frame of the last one is written |
//! | `TOLD` | a response head says close; HTTP/2: GOAWAY | never |
//! | `GONE_AWAY` | HTTP/2: the last GOAWAY is written | never |
//! | `LAST` | HTTP/1: the service is called with the last of a limited number of requests | never |
//! | `TUNNELS` | HTTP/2: a `CONNECT` succeeds | nothing is open, nor owed |
//! | `UPGRADED` | a 101, or a `CONNECT` that succeeds | never |
//! | `WEBSOCKET` | a 101 for one, of HTTP/1 | its head is flushed, unless we say goodbye |
//! | `OPENING` | its service is being made, TLS shakes hands | that is done |
//! | `QUEUED` | it was taken out of a listener's queue | somebody accepts it |
//! | `SEEN` | from here on its bytes pass through us | never |
//! | `LOOK` | the drain is known here, or idleness has a bound | never |
//! | `ASKED` | `LOOK`: hyper asked for input, and the verdict was carried out | the next poll |
//! | `PEER_ENDED` | an end-of-file was read, or an error | never |
//! | `ENDED_FIRST` | this side was shut down before | never |
//! | `LET_GO` | hyper has dropped what it reads and writes, or somebody took it out | never |
//! | `GIVEN_UP` | its owner drops the future that polls it | never |
//! | `AT_ONCE`, `IN_STAGES` | how its socket is to be closed when it is dropped | never |
//!
//! Invariants:
//!
//! - S1. A byte of a request that was read and not answered is in one of `Head`, `Called`, `Behind`,
//!   `READING`; or it is of a short request without a body that was read together with the one in hand, and
//!   hyper has yet to call for it.
//! - S2. A byte of a response that is not flushed is in one of `Answered`, `Said`, `Late`, `Behind`,
//!   `BLOCKED`.
//! - S3. So once hyper has asked for input and got none, which it does not while it holds a whole head,
//!   [`is_idle`](State::is_idle) is true only where closing loses nothing, but for what lies below: half a
//!   TLS record, bytes in the kernel.
//! - S4. Whoever asks what is to become of a connection asks [`verdict`](State::verdict).
//! - S5. The steps of an HTTP/1 request are taken by one task, which is why the word may be loaded and
//!   stored for them. Everything else is a flag, and set by an atomic operation.

use crate::clock::Moment;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State(pub(super) u32);

/// Where the HTTP/1 request in hand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// None is in hand, and nothing is unwritten.
    Quiet,
    /// One whole head was read, and nothing behind it.
    Head,
    /// The handler is at work.
    Called,
    /// The same, while the answer before is not flushed.
    Behind,
    /// hyper has the head of the response.
    Answered,
    /// That head is flushed, the body is not over.
    Streaming,
    /// The body is over and dropped, but not flushed.
    Said,
    /// A `503` in place of the handler's answer is not flushed.
    Late,
}

const STEPS: [Step; 8] = [
    Step::Quiet,
    Step::Head,
    Step::Called,
    Step::Behind,
    Step::Answered,
    Step::Streaming,
    Step::Said,
    Step::Late,
];

const STEP: u32 = 7;

impl State {
    pub(super) const BLOCKED: u32 = 1 << 3;
    pub(super) const LOOK: u32 = 1 << 4;
    pub(super) const HALF: u32 = 1 << 5;
    pub(super) const BODY: u32 = 1 << 6;
    pub(super) const AHEAD: u32 = 1 << 7;
    pub(super) const CONNECT: u32 = 1 << 8;
    pub(super) const HEAD: u32 = 1 << 9;
    pub(super) const HTTP10: u32 = 1 << 10;
    pub(super) const BY_CLOSE: u32 = 1 << 11;
    pub(super) const OVER: u32 = 1 << 12;
    pub(super) const HTTP1: u32 = 1 << 13;
    pub(super) const HTTP2: u32 = 1 << 14;
    pub(super) const STREAMS: u32 = 1 << 15;
    pub(super) const TOLD: u32 = 1 << 16;
    pub(super) const GONE_AWAY: u32 = 1 << 17;
    pub(super) const UPGRADED: u32 = 1 << 18;
    pub(super) const OPENING: u32 = 1 << 19;
    pub(super) const SEEN: u32 = 1 << 20;
    pub(super) const ASKED: u32 = 1 << 21;
    pub(super) const PEER_ENDED: u32 = 1 << 22;
    pub(super) const ENDED_FIRST: u32 = 1 << 23;
    pub(super) const GIVEN_UP: u32 = 1 << 24;
    pub(super) const AT_ONCE: u32 = 1 << 25;
    pub(super) const IN_STAGES: u32 = 1 << 26;
    pub(super) const WEBSOCKET: u32 = 1 << 27;
    pub(super) const QUEUED: u32 = 1 << 28;
    pub(super) const TUNNELS: u32 = 1 << 29;
    pub(super) const LAST: u32 = 1 << 30;
    pub(super) const LET_GO: u32 = 1 << 31;

    /// HTTP/1: the reader follows what is read.
    pub(super) const READING: u32 = Self::HALF | Self::BODY | Self::AHEAD;

    /// hyper calls for no other request: its last answer said close, or it has gone.
    const PAST: u32 =
        Self::TOLD | Self::LET_GO | Self::GIVEN_UP | Self::IN_STAGES | Self::ENDED_FIRST;

    /// More is to be done when a flush is Ready.
    #[cfg(feature = "serve")]
    pub(super) const AT_FLUSH: u32 = Self::LOOK | Self::HALF | Self::WEBSOCKET;

    #[inline]
    pub(super) fn has(self, flags: u32) -> bool {
        self.0 & flags != 0
    }

    pub(super) fn step(self) -> Step {
        STEPS[(self.0 & STEP) as usize]
    }

    /// A response is to come, or not out.
    pub(super) fn has_response(self) -> bool {
        !matches!(self.step(), Step::Quiet | Step::Head) || self.has(Self::BLOCKED)
    }

    /// A request is in hand whose response is not over, and out. `inside`: its task is inside of its poll, so
    /// that hyper may be calling with what was read.
    pub(super) fn has_request(self, inside: bool) -> bool {
        !matches!(self.step(), Step::Quiet | Step::Head) || inside && self.is_uncalled()
    }

    /// No byte of its response was written, and nothing else is on its way out. `inside` as above.
    pub(super) fn may_be_answered(self, inside: bool) -> bool {
        let called = self.step() == Step::Called || self.is_about_to_be_called(inside);
        called && !self.has(Self::BLOCKED | Self::HTTP2) && self.has(Self::SEEN)
    }

    /// hyper has the head of a response, and no write was Pending since.
    pub(super) fn is_unwritten(self) -> bool {
        self.step() == Step::Answered
            && !self.has(Self::BLOCKED | Self::HTTP2)
            && self.has(Self::SEEN)
    }

    /// An answer is to come, or is on its way out.
    pub(super) fn owes_answer(self, inside: bool) -> bool {
        match self.step() {
            Step::Quiet | Step::Head | Step::Streaming => self.is_about_to_be_called(inside),
            Step::Called | Step::Behind | Step::Answered | Step::Said | Step::Late => true,
        }
    }

    /// hyper is calling, or will at its next turn: it lets others have one behind so many that it was sent together.
    fn is_about_to_be_called(self, inside: bool) -> bool {
        self.is_uncalled() && (inside || self.step() == Step::Quiet)
    }

    /// A whole head was read, and nothing else is in hand. Behind an answer that says close hyper calls for no other.
    fn is_uncalled(self) -> bool {
        let over = Self::PAST | Self::BY_CLOSE | Self::UPGRADED;
        let ahead = self.has(Self::AHEAD) && !self.has(over);
        self.step() == Step::Head || self.step() == Step::Quiet && ahead
    }

    /// Part of a head has come, and the peer owes the rest.
    pub(super) fn is_half_head(self) -> bool {
        self.has(Self::HALF) && !self.has(Self::UPGRADED)
    }

    /// No byte of a request was read that is not called for, and none of the last one is missing.
    pub(super) fn is_between(self) -> bool {
        !self.has(Self::READING | Self::UPGRADED | Self::HTTP2) && self.step() != Step::Head
    }

    /// Its last request is answered, and it may bring another.
    pub(super) fn is_between_requests(self) -> bool {
        self.has(Self::HTTP1)
            && self.has(Self::SEEN)
            && self.is_between()
            && !self.has_response()
            && !self.has(Self::TOLD | Self::BY_CLOSE)
    }

    /// No answer is owed, and a request that was read just now would get one.
    pub(super) fn may_take_another(self) -> bool {
        let over = Self::BY_CLOSE | Self::UPGRADED | Self::HTTP2;
        self.has(Self::SEEN) && !self.has_response() && !self.has(Self::PAST | over)
    }

    /// Whether the other side must not be told that this is the end.
    pub(super) fn is_cut_short(self) -> bool {
        self.has(Self::BY_CLOSE) && (!self.has(Self::OVER) || self.has(Self::BLOCKED))
    }

    /// How the socket of an HTTP/1 connection is closed so that what was sent arrives, and nothing that is
    /// cut looks whole. `unread`: something of what has come was not read, or was half a TLS record, or of a request
    /// that the flags don't know of (S1).
    pub(super) fn close(self, unread: bool) -> Close {
        // Flushed, and seen to be, it is whole: no more than an upload may go on.
        let is_out = self.has(Self::SEEN) && self.step() == Step::Quiet && !self.is_cut_short();
        if self.has(Self::BY_CLOSE) && !is_out {
            Close::Reset
        } else if self.is_between() && !unread {
            Close::AtOnce
        } else {
            Close::InStages
        }
    }

    /// HTTP/2: there was a tunnel since nothing was open, and what we have ended may be one.
    pub(super) fn is_half_tunnel(self) -> bool {
        self.has(Self::TUNNELS) && self.has(Self::BODY)
    }

    /// Something is in hand whose end will be noticed.
    fn is_busy(self, streams: bool) -> bool {
        streams
            || self.has(Self::UPGRADED | Self::BLOCKED | Self::OPENING)
            || !matches!(self.step(), Step::Quiet | Step::Head)
    }

    /// The same without a look at what is counted apart.
    #[cfg(feature = "serve")]
    pub(super) fn is_at_work(self) -> bool {
        self.is_busy(self.has(Self::STREAMS))
    }

    /// Nothing is in hand, as far as can be told from what has passed (S3). `streams`: requests that are
    /// counted apart.
    pub(super) fn is_idle(self, streams: bool) -> bool {
        !self.is_busy(streams)
            && if self.has(Self::HTTP2) {
                !self.has(Self::STREAMS | Self::HALF | Self::BODY)
            } else {
                self.is_between()
            }
    }

    /// What is to become of a connection that has nothing more to do by itself now. `streams` as above;
    /// `half_record`: TLS was read, and its last record is not whole.
    pub(super) fn verdict(
        self,
        streams: bool,
        half_record: bool,
        now: Moment,
        due: Due,
    ) -> Verdict {
        let (at, then) = if self.is_busy(streams) {
            return Verdict::Busy;
        } else if self.has(Self::HTTP2) {
            match self {
                _ if self.has(Self::STREAMS) => return Verdict::Busy,
                // What we have ended of one may go on from the other side.
                _ if self.has(Self::GONE_AWAY) && self.is_half_tunnel() => return Verdict::Busy,
                _ if self.has(Self::HALF) => (due.half_head, Verdict::Stalled),
                // It owes us the acknowledgment of the PING that follows the GOAWAY, or the rest of a body; h2 knows
                // when to close otherwise.
                _ if self.has(Self::TOLD) => (due.stalled, Verdict::Stalled),
                // Of nobody who was not told to end a body has a bound.
                _ if self.has(Self::BODY) => return Verdict::Busy,
                _ => (due.idle, Verdict::Idle),
            }
        } else if self.is_half_head() {
            (due.half_head, Verdict::Stalled)
        } else if self.is_between() && !half_record {
            (due.idle, Verdict::Idle)
        } else {
            (due.stalled, Verdict::Stalled)
        };
        match at {
            Moment::NEVER => Verdict::Busy,
            at if now < at => Verdict::Until(at),
            _ => then,
        }
    }
}

// ===== what happens to HTTP/1 =====

#[cfg(feature = "serve")]
impl State {
    const ASKS: u32 = Self::CONNECT | Self::HEAD | Self::HTTP10 | Self::BY_CLOSE | Self::OVER;

    /// Of an ordinary HTTP/1 connection nothing of this is there but the step.
    const ORDINARY: u32 =
        STEP | Self::BLOCKED | Self::READING | Self::ASKS | Self::UPGRADED | Self::LAST;

    fn at(self, step: Step) -> Self {
        Self(self.0 & !STEP | step as u32)
    }

    // ----- an ordinary request: one comparison each -----

    /// Goes on from there if nothing is out of the ordinary.
    #[inline]
    pub(super) fn ordinary(self, from: Step, to: Step) -> Option<Self> {
        (self.0 & Self::ORDINARY == from as u32).then_some(Self(self.0 ^ (from as u32 ^ to as u32)))
    }

    // ----- the arrows, of any HTTP/1 connection -----

    /// Something was read, after which the peer owes this, or hyper has to call.
    pub(super) fn read(self, owes: Owes) -> Self {
        let flags = match owes {
            Owes::Nothing => 0,
            Owes::Head => Self::HALF,
            Owes::Call => Self::AHEAD,
            Owes::Body => Self::BODY,
        };
        Self(self.0 & !Self::READING | flags)
    }

    /// The service is called: with a request of which this is to come, or after which that was read.
    pub(super) fn called(self, asks: u32, owes: Owes) -> Self {
        let step = match self.step() {
            Step::Quiet | Step::Head | Step::Called | Step::Streaming => Step::Called,
            Step::Answered | Step::Said | Step::Late | Step::Behind => Step::Behind,
        };
        Self(self.0 & !Self::ASKS | asks).read(owes).at(step)
    }

    /// There is a response head, or there will be none.
    pub(super) fn answered(self) -> Self {
        match self.step() {
            Step::Called | Step::Behind => self.at(Step::Answered),
            _ => self,
        }
    }

    /// There is one, in place of the handler's.
    pub(super) fn answered_late(self) -> Self {
        self.at(Step::Late)
    }

    /// The response's body is dropped. That of the request before, if another one is called by now.
    pub(super) fn said(self) -> Self {
        match self.step() {
            Step::Answered | Step::Streaming => self.at(Step::Said),
            _ => self,
        }
    }

    /// Everything that hyper had to write is out.
    pub(super) fn flushed(self) -> Self {
        let flushed = Self(self.0 & !Self::BLOCKED);
        match self.step() {
            Step::Answered => flushed.at(Step::Streaming),
            Step::Said | Step::Late => flushed.at(Step::Quiet),
            Step::Behind => flushed.at(Step::Called),
            Step::Quiet | Step::Head | Step::Called | Step::Streaming => flushed,
        }
    }

    /// What was an ordinary head is followed exactly from here on.
    pub(super) fn without_head(self) -> Self {
        match self.step() {
            Step::Head => self.at(Step::Quiet),
            _ => self,
        }
    }

    /// An ordinary request that a flush takes no further.
    #[inline]
    pub(super) fn is_unmoved_by_flush(self) -> bool {
        const UNMOVED: u32 = 1 << Step::Quiet as u32
            | 1 << Step::Head as u32
            | 1 << Step::Called as u32
            | 1 << Step::Streaming as u32;
        let fast = self.0 & Self::ORDINARY;
        fast <= STEP && UNMOVED >> fast & 1 == 1
    }
}

/// What of the requests that were read is to come.
#[cfg(feature = "serve")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owes {
    Nothing,
    /// The peer owes the rest of a head.
    Head,
    /// The rest of a body.
    Body,
    /// hyper is to call for a head.
    Call,
}

/// How a socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    /// Nothing comes in any more whose arrival would destroy what was sent.
    AtOnce,
    /// This side first; what comes in is discarded (RFC 9112 section 9.6).
    InStages,
    /// The other side would take the close for the end of a response that is cut.
    Reset,
}

/// When patience ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// With a connection that is idle.
    pub(super) idle: Moment,
    /// With a peer that owes the rest of a head.
    pub(super) half_head: Moment,
    /// With one that owes anything else.
    pub(super) stalled: Moment,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Something is in hand; its end will be noticed.
    Busy,
    /// Nothing before then.
    Until(Moment),
    /// To be closed as idle, if nothing lies in its socket: by an end-of-file.
    Idle,
    /// Its peer owes us bytes and has sent none for too long: to be closed in stages.
    Stalled,
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Moment = Moment::from_micros(1);
    const HALF_HEAD: Moment = Moment::from_micros(2);
    const STALLED: Moment = Moment::from_micros(3);

    fn verdict(flags: u32, now: Moment) -> Verdict {
        let due = Due {
            idle: IDLE,
            half_head: HALF_HEAD,
            stalled: STALLED,
        };
        State(flags).verdict(false, false, now, due)
    }

    /// What of HTTP/1 the exhaustive model does not have, and all of HTTP/2.
    #[test]
    fn what_becomes_of_it_is_what_it_is_in() {
        const HTTP2: u32 = State::HTTP2;
        let told = HTTP2 | State::TOLD;
        let gone = told | State::GONE_AWAY;
        let until = |flags, due, then| {
            assert_eq!(
                verdict(flags, Moment::START),
                Verdict::Until(due),
                "{flags:b}"
            );
            assert_eq!(verdict(flags, due), then, "{flags:b}");
        };
        until(0, IDLE, Verdict::Idle);
        until(HTTP2, IDLE, Verdict::Idle);
        until(HTTP2 | State::TUNNELS, IDLE, Verdict::Idle);
        until(HTTP2 | State::GONE_AWAY, IDLE, Verdict::Idle);
        for flags in [State::HALF, HTTP2 | State::HALF, told | State::HALF] {
            until(flags, HALF_HEAD, Verdict::Stalled);
        }
        for flags in [
            State::BODY,
            State::AHEAD,
            told,
            gone,
            told | State::TUNNELS,
            told | State::TUNNELS | State::BODY,
            gone | State::BODY,
            gone | State::TUNNELS,
        ] {
            until(flags, STALLED, Verdict::Stalled);
        }
        let busy = [State::UPGRADED, State::OPENING, State::BLOCKED];
        let busy = busy
            .into_iter()
            .flat_map(|it| [it, HTTP2 | it, State::HALF | it]);
        for flags in busy.chain([
            HTTP2 | State::STREAMS,
            told | State::STREAMS,
            HTTP2 | State::BODY,
            gone | State::TUNNELS | State::BODY,
        ]) {
            assert_eq!(verdict(flags, STALLED), Verdict::Busy, "{flags:b}");
        }
        let due = Due {
            idle: IDLE,
            half_head: HALF_HEAD,
            stalled: STALLED,
        };
        let of =
            |streams, half_record| State::default().verdict(streams, half_record, STALLED, due);
        assert_eq!(
            [of(true, false), of(false, true)],
            [Verdict::Busy, Verdict::Stalled]
        );
        let never = Due {
            idle: Moment::NEVER,
            ..due
        };
        assert_eq!(
            State::default().verdict(false, false, STALLED, never),
            Verdict::Busy
        );
        for (flags, is_idle) in [
            (HTTP2, true),
            (told, true),
            (HTTP2 | State::STREAMS, false),
            (HTTP2 | State::HALF, false),
            (HTTP2 | State::BODY, false),
        ] {
            assert_eq!(State(flags).is_idle(false), is_idle, "{flags:b}");
            assert!(!State(flags).is_idle(true), "{flags:b}");
        }
    }

    #[test]
    fn each_flag_is_a_bit_of_its_own() {
        let flags = [
            State::BLOCKED,
            State::LOOK,
            State::HALF,
            State::BODY,
            State::AHEAD,
            State::CONNECT,
            State::HEAD,
            State::HTTP10,
            State::BY_CLOSE,
            State::OVER,
            State::HTTP1,
            State::HTTP2,
            State::STREAMS,
            State::TOLD,
            State::GONE_AWAY,
            State::UPGRADED,
            State::OPENING,
            State::SEEN,
            State::ASKED,
            State::PEER_ENDED,
            State::ENDED_FIRST,
            State::GIVEN_UP,
            State::AT_ONCE,
            State::IN_STAGES,
            State::WEBSOCKET,
            State::QUEUED,
            State::TUNNELS,
            State::LAST,
            State::LET_GO,
        ];
        let mut taken = STEP;
        for (n, flag) in flags.into_iter().enumerate() {
            assert_eq!(
                (flag.count_ones(), flag & taken),
                (1, 0),
                "the {n}th of them"
            );
            taken |= flag;
        }
    }

    /// What comes behind an answer that only the close ends is no request that could be answered: the `503` would be taken for the end of
    /// that answer.
    #[test]
    fn nothing_is_between_an_answer_and_the_close_that_ends_it() {
        let kept = State(State::HTTP1 | State::SEEN | Step::Quiet as u32);
        assert!(kept.is_between_requests());
        let over = State(kept.0 | State::BY_CLOSE | State::OVER);
        assert!(!over.is_between_requests());
        assert!(State(kept.0 | State::AHEAD).owes_answer(true));
        assert!(!State(over.0 | State::AHEAD).owes_answer(true));
        // Nor in a tunnel.
        let tunnel = State(kept.0 | State::UPGRADED | State::AHEAD);
        assert!(!tunnel.may_be_answered(true) && !tunnel.owes_answer(true));
    }
}
