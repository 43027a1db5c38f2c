//! What a probe has found, as a value.

use std::fmt;
use std::time::{Duration, Instant};

use crate::report::Protocol;
use crate::words::{Count, Took};

/// What became of a probe's requests and connections, from [`Probe::through`](super::Probe::through).
///
/// Each request is counted once, by the first of these that it is; the module's docs tell what the words mean. `{}` is one line,
/// `{:#}` a block with the samples.
///
/// # Examples
///
/// See the [module](super).
#[derive(Clone, Debug, Default)]
#[must_use = "assert that nothing was lost"]
#[non_exhaustive]
pub struct Findings {
    /// Answered whole, in time, and not by a 5xx.
    pub answered: usize,
    /// Of those that were answered, how many were sent after the call.
    pub answered_after: usize,
    /// Written, in part at least, and no byte of an answer came.
    pub lost: usize,
    /// Requests whose answer began and did not end whole.
    pub cut: usize,
    /// Answered whole, by a 5xx.
    pub failed: usize,
    /// Answered whole, but half a second or more after the termination had returned, or later than
    /// [`answer_within`](super::Probe::answer_within). The first not of what a successor may have
    /// [accepted](super::Probe::accepts_for).
    pub late: usize,
    /// Connects that were refused while the server was to accept: before the call, and within
    /// [`accepts_for`](super::Probe::accepts_for) after it. Or that were answered by nobody for half a second of
    /// that time, and to the end; or whose connections had ended before anything could be written, within
    /// [`settle`](super::Probe::settle).
    pub refused_early: usize,
    /// Connects that were refused later, or answered by nobody. That is as it should be where nobody takes over.
    pub refused: usize,
    /// Connects that this side could not make, for want of a descriptor, a port or memory. They show nothing of the server,
    /// but that it was asked less.
    pub hindered: usize,
    /// Requests that were sent again, as they may be without harm: no byte of them was written, or a GOAWAY or
    /// `REFUSED_STREAM` said that they were not processed (RFC 9113 section 8.7).
    pub retried: usize,
    /// Lost, on a connection of HTTP/1 or a fresh one, that had been quiet for [`settle`](super::Probe::settle) when they
    /// were written, as this machine had not come to it: the server may close what is idle, and its close crossed them
    /// (RFC 9112 section 9.3.1). Nobody is to blame.
    ///
    /// That is chance, and rare: one close in some hundreds. If it is said of more than two connections, and of more than an
    /// eighth of those that there are at a time, they may as well have been read and dropped, and nothing is shown
    /// ([`is_lossless`](Self::is_lossless)): ask with fewer [clients](super::Probe::clients), or give the server, and the
    /// [probe](super::Probe::settle), a longer `settle`.
    pub crossed: usize,
    /// Connections that had not ended half a second after the termination had returned.
    pub open: usize,
    /// Somebody accepted at the server's address after the end. That is as it should be where somebody takes over.
    pub listening: bool,
    /// Tasks alive at the end, where the probe [hosts](super::Probe::hosting) the server.
    pub tasks: usize,
    /// How long the termination took to return. `None`: it had not, when [`limit`](super::Probe::limit) was over.
    pub returned: Option<Duration>,
    /// Some of each kind but those that were answered, in the order of time: 8 of each at most.
    pub samples: Vec<Finding>,
    /// So many have crossed that chance does not explain it.
    pub(super) is_in_doubt: bool,
}

impl Findings {
    /// Whether no request was lost, cut, failed or late, no connect refused too early, and the termination returned. False
    /// as well if nothing was answered, or so many have [crossed](Self::crossed) that they may have been lost: by that
    /// nothing would be shown.
    pub fn is_lossless(&self) -> bool {
        let bad = self.lost + self.cut + self.failed + self.late + self.refused_early;
        bad == 0 && !self.is_in_doubt && self.answered > 0 && self.returned.is_some()
    }

    /// Whether nothing is left: no connection was open, nobody accepted, no task was alive, and the termination returned.
    pub fn is_gone(&self) -> bool {
        self.open + self.tasks == 0 && !self.listening && self.returned.is_some()
    }

    /// Asserts that every request was answered: [`is_lossless`](Self::is_lossless).
    ///
    /// # Panics
    ///
    /// If not; the message is the block with the samples.
    #[track_caller]
    pub fn assert_nothing_lost(&self) -> &Self {
        assert!(self.is_lossless(), "{self:#}");
        self
    }

    /// Asserts that the server has gone: [`is_gone`](Self::is_gone). Not for one whose address a successor, or another
    /// holder of its socket, accepts at.
    ///
    /// # Panics
    ///
    /// If not; the message is the block with the samples.
    #[track_caller]
    pub fn assert_nothing_left(&self) -> &Self {
        assert!(self.is_gone(), "{self:#}");
        self
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = if f.alternate() { "\n  " } else { ", " };
        write!(
            f,
            "{} answered ({} of them sent after the call)",
            Count(self.answered, "request", "requests"),
            self.answered_after
        )?;
        if self.lost + self.cut + self.failed == 0 && !self.is_in_doubt {
            write!(f, "{line}none lost")?;
        }
        let crossed = if self.is_in_doubt {
            "lost, or crossed by the close of an idle connection: too many to tell; ask with fewer clients, or a longer `settle`"
        } else {
            "crossed by the close of an idle connection"
        };
        for (n, what) in [
            (self.lost, "lost"),
            (self.cut, "cut"),
            (self.failed, "failed"),
            (self.late, "late"),
            (self.retried, "sent again"),
            (self.crossed, crossed),
        ] {
            if n > 0 {
                write!(f, "{line}{n} {what}")?;
            }
        }
        for (n, what) in [
            (self.refused_early, "refused too early"),
            (self.refused, "refused"),
            (self.hindered, "that this side could not make"),
        ] {
            if n > 0 {
                write!(f, "{line}{} {what}", Count(n, "connect", "connects"))?;
            }
        }
        if let Some(returned) = self.returned {
            write!(f, "{line}returned after {}", Took(returned))?;
        } else {
            write!(f, "{line}never returned")?;
        }
        for (n, one, many) in [
            (self.open, "connection left", "connections left"),
            (self.tasks, "task left", "tasks left"),
        ] {
            if n > 0 {
                write!(f, "{line}{}", Count(n, one, many))?;
            }
        }
        if self.listening {
            write!(f, "{line}the port still open")?;
        }
        if f.alternate() {
            for finding in &self.samples {
                write!(f, "{line}{finding}")?;
            }
        }
        Ok(())
    }
}

/// One of the [samples](Findings::samples).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// As what it is counted.
    pub kind: Kind,
    /// What was spoken.
    pub protocol: Protocol,
    /// The request's method and path; of a connection `None`.
    pub request: Option<String>,
    /// When it was sent, or the connect begun.
    pub at: When,
    /// How long after that it was found.
    pub took: Duration,
    /// What happened, in words, which may change in any release.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kind)?;
        let request = self.request.as_deref().unwrap_or("connection");
        write!(f, "{request} over {}, {}; ", self.protocol, self.at)?;
        write!(f, "after {} {}", Took(self.took), self.what)
    }
}

/// As what something is counted in [`Findings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// As [`Findings::lost`].
    Lost,
    /// As [`Findings::cut`].
    Cut,
    /// As [`Findings::failed`].
    Failed,
    /// As [`Findings::late`].
    Late,
    /// As [`Findings::refused_early`].
    RefusedEarly,
    /// As [`Findings::refused`].
    Refused,
    /// As [`Findings::hindered`].
    Hindered,
    /// As [`Findings::retried`].
    Retried,
    /// As [`Findings::crossed`].
    Crossed,
    /// As [`Findings::open`].
    Open,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lost => "lost",
            Self::Cut => "cut",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::RefusedEarly => "refused too early",
            Self::Refused => "refused",
            Self::Hindered => "hindered",
            Self::Retried => "sent again",
            Self::Crossed => "crossed",
            Self::Open => "left open",
        })
    }
}

/// A moment, relative to the call that begins the termination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "there is nothing else")]
pub enum When {
    /// So long before it.
    Before(Duration),
    /// So long after it.
    After(Duration),
}

impl When {
    pub(super) fn of(moment: Instant, call: Instant) -> Self {
        match moment.checked_duration_since(call) {
            Some(after) => Self::After(after),
            None => Self::Before(call - moment),
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before(time) => write!(f, "{} before the call", Took(*time)),
            Self::After(time) => write!(f, "{} after the call", Took(*time)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        Findings {
            answered: 412,
            answered_after: 31,
            refused: 1,
            retried: 3,
            returned: Some(Duration::from_micros(26_130)),
            ..Findings::default()
        }
    }

    #[test]
    fn reads_well_on_a_line() {
        let good = findings();
        assert_eq!(
            good.to_string(),
            "412 requests answered (31 of them sent after the call), none lost, 3 sent again, 1 connect refused, returned after 26.1ms"
        );
        assert!(good.is_lossless() && good.is_gone());
    }

    #[test]
    fn reads_well_as_a_block() {
        let call = Instant::now();
        let sample = Finding {
            kind: Kind::Lost,
            protocol: Protocol::Http1,
            request: Some("GET /".to_owned()),
            at: When::of(call + Duration::from_micros(300), call),
            took: Duration::from_millis(2),
            what: "connection closed before message completed".to_owned(),
        };
        let bad = Findings {
            lost: 2,
            open: 1,
            tasks: 2,
            listening: true,
            returned: None,
            samples: vec![sample],
            ..findings()
        };
        assert_eq!(
            format!("{bad:#}"),
            "412 requests answered (31 of them sent after the call)\
             \n  2 lost\
             \n  3 sent again\
             \n  1 connect refused\
             \n  never returned\
             \n  1 connection left\
             \n  2 tasks left\
             \n  the port still open\
             \n  lost: GET / over HTTP/1, 300.0\u{b5}s after the call; after 2.0ms connection closed before message completed"
        );
        assert!(!bad.is_lossless() && !bad.is_gone());
    }

    /// Where nothing was answered nothing is shown, also if nothing was lost.
    #[test]
    #[should_panic(expected = "0 requests answered")]
    fn nothing_is_no_proof() {
        let nothing = Findings {
            answered: 0,
            ..findings()
        };
        nothing.assert_nothing_lost();
    }
}
