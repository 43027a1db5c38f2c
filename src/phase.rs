//! The phases of a termination, and the one word of memory that every request reads.

use std::fmt;
use std::sync::atomic::Ordering;

use crate::sync::AtomicU8;

/// How far a [`Terminator`](crate::Terminator) has come. Phases are ordered and only rise.
///
/// ```
/// use http_terminator::Phase;
///
/// assert!(Phase::Serving < Phase::Draining);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Phase {
    /// Nobody asked for an end yet.
    Serving,
    /// Everything is served and new connections are accepted, but readiness is gone, every HTTP/1 response
    /// says `connection: close`, and HTTP/2 connections are told to go away.
    LameDuck,
    /// Listeners take what the kernel has queued and close; idle connections are closed; work in
    /// hand finishes.
    Draining,
    /// The grace period is over, or [`force`](crate::Terminator::force) was called: whatever is
    /// left is cut.
    Forcing,
    /// Every socket is closed and the [`Report`](crate::Report) is written.
    Terminated,
}

impl Phase {
    fn from_u8(n: u8) -> Self {
        match n {
            0 => Self::Serving,
            1 => Self::LameDuck,
            2 => Self::Draining,
            3 => Self::Forcing,
            _ => Self::Terminated,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Serving => "serving",
            Self::LameDuck => "lame duck",
            Self::Draining => "draining",
            Self::Forcing => "forcing",
            Self::Terminated => "terminated",
        })
    }
}

/// A [`Phase`] that only rises (invariant 1).
///
/// Both orders are sequentially consistent: "register, then read the phase" on one side and "raise
/// the phase, then look at the registry" on the other must not both miss (invariants 2 and 3). On
/// the request path that costs nothing: such a load is a plain one on x86 and `ldar` on Arm.
#[derive(Debug)]
pub(crate) struct RisingPhase(AtomicU8);

impl RisingPhase {
    pub(crate) fn new() -> Self {
        Self(AtomicU8::new(Phase::Serving as u8))
    }

    pub(crate) fn get(&self) -> Phase {
        Phase::from_u8(self.0.load(Ordering::SeqCst))
    }

    /// The same as to ask whether it is [`Phase::Serving`], for every request.
    #[inline]
    pub(crate) fn is_serving(&self) -> bool {
        self.0.load(Ordering::SeqCst) == Phase::Serving as u8
    }

    pub(crate) fn raise(&self, to: Phase) {
        self.0.fetch_max(to as u8, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync;

    const ALL: [Phase; 5] = [
        Phase::Serving,
        Phase::LameDuck,
        Phase::Draining,
        Phase::Forcing,
        Phase::Terminated,
    ];

    #[test]
    fn a_phase_never_falls() {
        sync::run(|| {
            for from in ALL {
                for to in ALL {
                    let phase = RisingPhase::new();
                    phase.raise(from);
                    phase.raise(to);
                    assert_eq!(phase.get(), from.max(to));
                    assert_eq!(phase.is_serving(), phase.get() == Phase::Serving);
                }
            }
        });
    }

    #[test]
    fn a_phase_says_its_name() {
        let names = ALL.map(|phase| phase.to_string());
        let expected = ["serving", "lame duck", "draining", "forcing", "terminated"];
        assert_eq!(names, expected);
    }
}
