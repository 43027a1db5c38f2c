//! The one place that reads the clock. Everything else is told the time, so that it can be tested
//! without one.
//!
//! This is the system's monotonic clock and not tokio's: a termination has to keep its deadline
//! while a runtime is stalled, and `tokio::time::pause` does not stop it.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// A point in time: microseconds since the terminator was built.
///
/// One word, so that it fits an atomic, and saturating, so that absurd durations mean "never"
/// instead of a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) const START: Self = Self(0);
    pub(crate) const NEVER: Self = Self(u64::MAX);

    pub(crate) const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    pub(crate) fn as_micros(self) -> u64 {
        self.0
    }

    /// `NEVER` if it is out of range.
    pub(crate) fn after(self, duration: Duration) -> Self {
        // Not `as_micros`, which is 128 bits wide.
        let micros = duration.as_secs().saturating_mul(1_000_000);
        let micros = micros.saturating_add(duration.subsec_micros().into());
        Self(self.0.saturating_add(micros))
    }

    /// `NEVER` also after `None`.
    pub(crate) fn after_or_never(self, duration: Option<Duration>) -> Self {
        duration.map_or(Self::NEVER, |duration| self.after(duration))
    }

    /// Zero if `earlier` is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// What time it is, counted from when the terminator was built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Source);

#[derive(Clone, Copy, Debug)]
enum Source {
    /// The system's, since then.
    System(Stamp),
    /// What a test says it is.
    #[cfg(test)]
    Set(&'static AtomicU64),
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Source::System(Stamp::now()))
    }

    pub(crate) fn now(&self) -> Moment {
        self.moment(Stamp::now())
    }

    /// A clock that is set knows one time only: that is what every stamp says.
    pub(crate) fn moment(&self, stamp: Stamp) -> Moment {
        match self.0 {
            Source::System(start) => {
                Moment::START.after(stamp.0.saturating_duration_since(start.0))
            }
            #[cfg(test)]
            Source::Set(now) => Moment(now.load(SeqCst)),
        }
    }

    /// One that stands still unless it is [`set`](Self::set).
    #[cfg(test)]
    pub(crate) fn standing() -> Self {
        // Leaked, so that the real one stays a word to be copied.
        Self(Source::Set(Box::leak(Box::default())))
    }

    #[cfg(test)]
    pub(crate) fn set(&self, to: Moment) {
        match self.0 {
            Source::System(_) => panic!("only a clock that stands can be set"),
            Source::Set(now) => now.store(to.0, SeqCst),
        }
    }
}

/// A reading of the clock that may never be looked at: it is taken as every request ends, and most
/// of the price of a [`Moment`] is the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Instant);

impl Stamp {
    #[inline]
    #[allow(clippy::disallowed_methods)] // the place that the lint sends everybody to
    pub(crate) fn now() -> Self {
        #[cfg(all(test, feature = "serve"))]
        if VIRTUAL.get() {
            return Self(tokio::time::Instant::now().into_std());
        }
        Self(Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        Self::now().0.saturating_duration_since(self.0)
    }
}

#[cfg(all(test, feature = "serve"))]
thread_local! {
    /// On this thread the time is tokio's, which stands still until nobody has anything to do.
    static VIRTUAL: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Makes it so until what is returned is dropped.
#[cfg(all(test, feature = "serve"))]
pub(crate) fn virtual_time() -> impl Drop {
    struct Ends;

    impl Drop for Ends {
        fn drop(&mut self) {
            VIRTUAL.set(false);
        }
    }
    VIRTUAL.set(true);
    Ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_durations_saturate() {
        assert_eq!(Moment::from_micros(7).after(Duration::MAX), Moment::NEVER);
        assert_eq!(
            Moment::from_micros(7).since(Moment::from_micros(9)),
            Duration::ZERO
        );
        assert_eq!(
            Moment::START.after(Duration::from_millis(2)).as_micros(),
            2_000
        );
        assert_eq!(
            Moment::from_micros(9).since(Moment::from_micros(7)),
            Duration::from_micros(2)
        );
    }

    #[test]
    fn a_stamp_grows_old() {
        let stamp = Stamp::now();
        assert!((0..1_000_000).any(|_| !stamp.elapsed().is_zero()));
        // In microseconds, of which that may be less than one.
        let clock = Clock(Source::System(stamp));
        assert!((0..1_000_000).any(|_| clock.now() > Moment::START));
    }
}
