//! What a terminator was told when it was built.

use std::time::Duration;

use crate::clock::Moment;

/// When idle kept-alive connections are closed during the drain.
///
/// Whatever the policy, a connection is closed only once it is truly idle and has been quiet for
/// [`settle`](crate::TerminatorBuilder::settle), and never later than the end of the grace period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdlePolicy {
    /// At once. The default: behind most load balancers, and in tests and desktop apps, the quickest
    /// clean end is the best one.
    #[default]
    Immediate,
    /// An idle connection may bring one more request within `wait`; it is answered with
    /// `connection: close`. For clients that can't retry a request on a connection that was closed
    /// under it.
    LastRequest {
        /// How long an idle connection is kept, counted from the start of the drain.
        wait: Duration,
    },
    /// Closes are spread evenly over the time, so that clients do not all reconnect at once. HTTP/2
    /// connections are told to go away on the same schedule, and so is who waits for
    /// [`draining`](crate::Terminator::draining), such as the handlers of upgraded connections.
    Spread {
        /// The time over which closes are spread, counted from the start of the drain.
        over: Duration,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) grace_period: Option<Duration>,
    pub(crate) lame_duck: Duration,
    pub(crate) idle: IdlePolicy,
    pub(crate) settle: Duration,
    pub(crate) stall_timeout: Duration,
    pub(crate) answer_at_deadline: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grace_period: Some(Duration::from_secs(5)),
            lame_duck: Duration::ZERO,
            idle: IdlePolicy::Immediate,
            settle: Duration::from_millis(25),
            stall_timeout: Duration::from_secs(1),
            answer_at_deadline: true,
        }
    }
}

impl Config {
    /// When the connection numbered `id`, quiet since `quiet`, may be closed as idle in a drain that
    /// began at `drain`.
    pub(crate) fn idle_due(&self, id: u64, quiet: Moment, drain: Moment) -> Moment {
        let policy = match self.idle {
            IdlePolicy::LastRequest { wait } => drain.after(self.in_grace(wait)),
            IdlePolicy::Immediate | IdlePolicy::Spread { .. } => self.told_due(id, drain),
        };
        policy.max(quiet.after(self.settle))
    }

    /// When who can't be closed but has to be told, and whose number is `n`, is told.
    pub(crate) fn told_due(&self, n: u64, drain: Moment) -> Moment {
        match self.idle {
            IdlePolicy::Immediate | IdlePolicy::LastRequest { .. } => drain,
            IdlePolicy::Spread { over } => drain.after(self.in_grace(over).mul_f64(fraction(n))),
        }
    }

    /// Leaves room before the deadline, so that a policy as long as the grace period closes idle
    /// connections rather than forcing them.
    fn in_grace(&self, duration: Duration) -> Duration {
        let room = self.settle.saturating_add(Duration::from_millis(100));
        match self.grace_period {
            Some(grace) => duration.min(grace.saturating_sub(room)),
            // A day bounds the float arithmetic in `idle_due`.
            None => duration.min(Duration::from_secs(86_400)),
        }
    }
}

/// Spreads consecutive numbers evenly over `[0, 1)`: multiples of the golden ratio, modulo one
/// (Knuth, The Art of Computer Programming, volume 3, section 6.4).
fn fraction(id: u64) -> f64 {
    let spread = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    f64::from(u32::try_from(spread).unwrap_or(u32::MAX)) / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::START.after(Duration::from_millis(ms))
    }

    #[test]
    fn immediate_waits_for_settle_only() {
        let config = Config::default();
        assert_eq!(config.idle_due(1, at(0), at(1_000)), at(1_000));
        assert_eq!(config.idle_due(1, at(990), at(1_000)), at(1_015));
    }

    #[test]
    fn last_request_waits_and_stays_within_the_grace_period() {
        let mut config = Config {
            idle: IdlePolicy::LastRequest {
                wait: Duration::from_secs(2),
            },
            ..Config::default()
        };
        assert_eq!(config.idle_due(1, at(0), at(1_000)), at(3_000));
        config.idle = IdlePolicy::LastRequest {
            wait: Duration::MAX,
        };
        assert!(config.idle_due(1, at(0), at(1_000)) < at(6_000));
    }

    #[test]
    fn only_spread_tells_later() {
        let mut config = Config::default();
        assert_eq!(config.told_due(3, at(7)), at(7));
        config.idle = IdlePolicy::LastRequest {
            wait: Duration::from_secs(1),
        };
        assert_eq!(config.told_due(3, at(7)), at(7));
        config.idle = IdlePolicy::Spread {
            over: Duration::from_secs(1),
        };
        assert_eq!(config.told_due(3, at(7)), config.idle_due(3, at(0), at(7)));
    }

    #[test]
    fn spread_is_even() {
        let config = Config {
            idle: IdlePolicy::Spread {
                over: Duration::from_secs(1),
            },
            ..Config::default()
        };
        let mut tenths = [0; 10];
        for id in 0..1_000 {
            let due = config.idle_due(id, at(0), at(100)).since(at(100));
            tenths[usize::try_from(due.as_millis() / 100).expect("below ten")] += 1;
        }
        assert!(tenths.iter().all(|n| (95..=105).contains(n)), "{tenths:?}");
    }

    #[test]
    fn absurd_policies_do_not_panic() {
        for idle in [
            IdlePolicy::LastRequest {
                wait: Duration::MAX,
            },
            IdlePolicy::Spread {
                over: Duration::MAX,
            },
        ] {
            for grace_period in [None, Some(Duration::MAX), Some(Duration::ZERO)] {
                for settle in [Duration::ZERO, Duration::MAX] {
                    let config = Config {
                        grace_period,
                        idle,
                        settle,
                        ..Config::default()
                    };
                    config.idle_due(u64::MAX, Moment::NEVER, Moment::NEVER);
                    config.idle_due(3, at(1), at(2));
                    config.told_due(u64::MAX, Moment::NEVER);
                }
            }
        }
    }
}
