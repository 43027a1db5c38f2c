//! What a terminator was told when it was built.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::clock::Moment;

/// When idle kept-alive connections are closed during the drain.
///
/// Whatever the policy, a connection is closed only once it is truly idle and has been quiet for
/// [`settle`](crate::TerminatorBuilder::settle), and never later than the end of the grace period.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// # use http_terminator::{IdlePolicy, Terminator};
/// let wait = Duration::from_secs(5);
/// let terminator = Terminator::builder().idle(IdlePolicy::LastRequest { wait }).build();
/// # drop(terminator);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdlePolicy {
    /// At once. The default: behind most load balancers, and in tests and desktop apps, the quickest
    /// clean end is the best one.
    #[default]
    Immediate,
    /// An idle connection may bring one more request within `wait`, or what of it leaves the time to close them all before the
    /// deadline (125 ms, and 40 us for each); it is answered with
    /// `connection: close`. On HTTP/2, which is told to go away and loses none by that, and where no requests are seen
    /// ([`Terminator::watch`](crate::Terminator::watch)), this is [`Immediate`](Self::Immediate). For clients that can't retry a request on a connection that was closed
    /// under it.
    LastRequest {
        /// How long an idle connection is kept, counted from the start of the drain.
        wait: Duration,
    },
    /// Closes are spread evenly over the time, so that clients do not all reconnect at once. HTTP/2
    /// connections are told to go away on the same schedule, and so is who waits for
    /// [`draining`](crate::Terminator::draining), such as the handlers of upgraded connections. A
    /// [`lame_duck`](crate::TerminatorBuilder::lame_duck) tells the HTTP/2 connections that are there on such a
    /// schedule of its own, so that each has been told by its end.
    Spread {
        /// The time over which closes are spread, counted from the start of the drain, or of the lame duck. No longer than the grace
        /// period leaves room for: who is told, which is not closed by that, has [`stall_timeout`](crate::TerminatorBuilder::stall_timeout)
        /// to the deadline, or half of the grace period if that is less. So keep it shorter than the grace period by what your
        /// longest request takes.
        over: Duration,
    },
}

/// How long to be a lame duck: for a time, or between two times, for
/// [`TerminatorBuilder::lame_duck`](crate::TerminatorBuilder::lame_duck).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use http_terminator::LameDuck;
///
/// let fixed: LameDuck = Duration::from_secs(5).into();
/// let range: LameDuck = (Duration::from_secs(1)..=Duration::from_secs(30)).into();
/// assert_ne!(fixed, range);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LameDuck {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

impl From<Duration> for LameDuck {
    fn from(period: Duration) -> Self {
        Self {
            min: period,
            max: period,
        }
    }
}

impl From<RangeInclusive<Duration>> for LameDuck {
    /// It ends between the two, as soon as no connection is left, no guard, and nobody has connected for
    /// [`settle`](crate::TerminatorBuilder::settle). If the first exceeds the second, the first holds.
    fn from(range: RangeInclusive<Duration>) -> Self {
        let (min, max) = range.into_inner();
        Self {
            min,
            max: max.max(min),
        }
    }
}

/// When a drain began, and by when it is to be over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    pub(crate) began: Moment,
    pub(crate) deadline: Moment,
    /// How many connections there were when it began.
    pub(crate) crowd: usize,
}

impl Drain {
    fn grace(self) -> Duration {
        self.deadline.since(self.began)
    }

    /// As much of the duration as leaves that room before the deadline, so that a policy as long as the grace period
    /// ends connections rather than forcing them.
    fn leaving(self, room: Duration, duration: Duration) -> Duration {
        duration.min(self.grace().saturating_sub(room)).min(DAY)
    }

    /// What it takes to close all of them at once.
    fn closes(self) -> Duration {
        let each =
            u32::try_from(self.crowd).map_or(Duration::MAX, |n| CLOSES_ONE.saturating_mul(n));
        each.saturating_add(CLOSES)
    }

    /// When it is the turn of that number, of those that are spread over a time.
    fn turn(self, room: Duration, over: Duration, n: u64) -> Moment {
        self.began
            .after(self.leaving(room, over).mul_f64(fraction(n)))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) grace_period: Option<Duration>,
    pub(crate) lame_duck: LameDuck,
    pub(crate) head_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_connection_age: Option<Duration>,
    pub(crate) max_requests: Option<u64>,
    pub(crate) idle: IdlePolicy,
    pub(crate) settle: Duration,
    pub(crate) stall_timeout: Duration,
    pub(crate) answer_at_deadline: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grace_period: Some(Duration::from_secs(5)),
            lame_duck: LameDuck::default(),
            // hyper's own default, whose timer costs every request.
            head_timeout: Some(Duration::from_secs(30)),
            idle_timeout: None,
            max_connection_age: None,
            max_requests: None,
            idle: IdlePolicy::Immediate,
            settle: Duration::from_millis(25),
            stall_timeout: Duration::from_secs(1),
            answer_at_deadline: true,
        }
    }
}

impl Config {
    /// When the connection numbered `id`, quiet since `quiet`, may be closed as idle in that drain.
    pub(crate) fn idle_due(&self, id: u64, quiet: Moment, drain: Drain) -> Moment {
        let policy = match self.idle {
            IdlePolicy::Immediate => drain.began,
            IdlePolicy::LastRequest { wait } => {
                let room = self.settle.saturating_add(drain.closes());
                drain.began.after(drain.leaving(room, wait))
            }
            IdlePolicy::Spread { over } => {
                let room = self.settle.saturating_add(CLOSES);
                drain.turn(room, over, id)
            }
        };
        policy.max(quiet.after(self.settle))
    }

    /// The same of a connection that was told alone, at `told`: by somebody, or as it is old, and has brought a request or not.
    /// `most`: for how long it may be idle while serving.
    pub(crate) fn alone_due(
        &self,
        quiet: Moment,
        told: Moment,
        old: Option<Old>,
        most: Option<Duration>,
    ) -> Moment {
        let policy = match self.idle {
            // There is no deadline.
            IdlePolicy::LastRequest { wait } => {
                told.after(most.map_or(wait, |most| wait.min(most)))
            }
            IdlePolicy::Immediate | IdlePolicy::Spread { .. } => told,
        };
        let unhurried = match old {
            None => Duration::ZERO,
            Some(Old::Unused) => UNHURRIED,
            Some(Old::Used) => self
                .max_connection_age
                .map_or(UNHURRIED, |age| age.min(UNHURRIED)),
        };
        policy.max(quiet.after(self.settle.max(unhurried)))
    }

    /// When who can't be closed but has to be told, and whose number is `n`, is told.
    pub(crate) fn told_due(&self, n: u64, drain: Drain) -> Moment {
        match self.idle {
            IdlePolicy::Immediate | IdlePolicy::LastRequest { .. } => drain.began,
            IdlePolicy::Spread { over } => {
                // It may bring requests until then, and has to answer.
                let answers = self.settle.saturating_add(self.stall_timeout.max(CLOSES));
                drain.turn(answers.min(drain.grace() / 2), over, n)
            }
        }
    }

    /// When who is old and has brought no request yet, seen so at that time, is told for that alone.
    pub(crate) fn unused_due(&self, seen: Moment) -> Moment {
        seen.after(self.settle.max(UNHURRIED))
    }

    /// When the HTTP/2 connection of that number is told which was there as the lame duck began.
    pub(crate) fn lame_duck_due(&self, id: u64, began: Moment) -> Moment {
        match self.idle {
            IdlePolicy::Immediate | IdlePolicy::LastRequest { .. } => began,
            IdlePolicy::Spread { over } => {
                let over = over.min(self.lame_duck.max).min(DAY);
                began.after(over.mul_f64(fraction(id)))
            }
        }
    }
}

/// What it takes to close what is idle, and each of many that are to be closed in the same moment: 9,000 took 150 ms on two cores, their
/// clients beside them.
const CLOSES: Duration = Duration::from_millis(100);
const CLOSES_ONE: Duration = Duration::from_micros(40);

/// Bounds the arithmetic in floats.
const DAY: Duration = Duration::from_secs(86_400);

/// An old connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Old {
    Used,
    /// It has not brought a request yet, and is to be served once.
    Unused,
}

/// For how long an old connection must have been quiet to be closed as idle, at most. Nobody waits for its
/// end, and a client whose requests come more often than that is told by a response, by which it can't lose
/// one.
const UNHURRIED: Duration = Duration::from_secs(1);

/// The age at which the connection of that number is told to end: the limit with up to a tenth more or less.
pub(crate) fn aged(limit: Duration, id: u64) -> Duration {
    let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
    // In integers, as `mul_f64` panics where it overflows.
    let tenth = (u128::from(micros / 10) * 2 * u128::from(spread(id))) >> 32;
    let micros = (micros - micros / 10).saturating_add(u64::try_from(tenth).unwrap_or(u64::MAX));
    Duration::from_micros(micros)
}

/// Spreads consecutive numbers evenly over `[0, 1)`: multiples of the golden ratio, modulo one
/// (Knuth, The Art of Computer Programming, volume 3, section 6.4).
fn fraction(id: u64) -> f64 {
    f64::from(spread(id)) / 4_294_967_296.0
}

fn spread(id: u64) -> u32 {
    let spread = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    u32::try_from(spread).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::START.after(Duration::from_millis(ms))
    }

    /// One of five seconds.
    fn drain(began: Moment) -> Drain {
        let deadline = began.after(Duration::from_secs(5));
        let crowd = 0;
        Drain {
            began,
            deadline,
            crowd,
        }
    }

    #[test]
    fn a_lame_duck_is_a_time_or_two() {
        let ms = Duration::from_millis;
        let both = |min, max| LameDuck {
            min: ms(min),
            max: ms(max),
        };
        assert_eq!(LameDuck::from(ms(3)), both(3, 3));
        assert_eq!(LameDuck::from(ms(3)..=ms(7)), both(3, 7));
        assert_eq!(LameDuck::from(ms(7)..=ms(3)), both(7, 7));
    }

    #[test]
    fn immediate_waits_for_settle_only() {
        let config = Config::default();
        assert_eq!(config.idle_due(1, at(0), drain(at(1_000))), at(1_000));
        assert_eq!(config.idle_due(1, at(990), drain(at(1_000))), at(1_015));
    }

    #[test]
    fn last_request_waits_and_stays_within_the_grace_period() {
        let mut config = Config {
            idle: IdlePolicy::LastRequest {
                wait: Duration::from_secs(2),
            },
            ..Config::default()
        };
        assert_eq!(config.idle_due(1, at(0), drain(at(1_000))), at(3_000));
        config.idle = IdlePolicy::LastRequest {
            wait: Duration::MAX,
        };
        assert!(config.idle_due(1, at(0), drain(at(1_000))) < at(6_000));
        // So many are not closed in a moment.
        let crowd = Drain {
            crowd: 50_000,
            ..drain(at(1_000))
        };
        assert!(config.idle_due(1, at(0), crowd) <= at(4_000));
    }

    #[test]
    fn only_spread_tells_later() {
        let mut config = Config::default();
        assert_eq!(config.told_due(3, drain(at(7))), at(7));
        config.idle = IdlePolicy::LastRequest {
            wait: Duration::from_secs(1),
        };
        assert_eq!(config.told_due(3, drain(at(7))), at(7));
        config.idle = IdlePolicy::Spread {
            over: Duration::from_secs(1),
        };
        assert_eq!(
            config.told_due(3, drain(at(7))),
            config.idle_due(3, at(0), drain(at(7)))
        );
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
            let due = config.idle_due(id, at(0), drain(at(100))).since(at(100));
            tenths[usize::try_from(due.as_millis() / 100).expect("below ten")] += 1;
        }
        assert!(tenths.iter().all(|n| (95..=105).contains(n)), "{tenths:?}");
    }

    #[test]
    fn a_lame_duck_is_no_longer_than_it_is() {
        let mut config = Config {
            lame_duck: Duration::from_secs(1).into(),
            ..Config::default()
        };
        assert_eq!(config.lame_duck_due(3, at(7)), at(7));
        for over in [500, 5_000] {
            config.idle = IdlePolicy::Spread {
                over: Duration::from_millis(over),
            };
            let last = (0..1_000).map(|id| config.lame_duck_due(id, at(7))).max();
            let end = 7 + over.min(1_000);
            assert!(last > Some(at(end - 10)) && last < Some(at(end)));
        }
    }

    #[test]
    fn ages_differ_by_a_tenth_and_saturate() {
        let ages: Vec<_> = (0..1_000)
            .map(|id| aged(Duration::from_secs(100), id))
            .collect();
        let (least, most) = (ages.iter().min().copied(), ages.iter().max().copied());
        assert!(
            least >= Some(Duration::from_secs(90)) && least < Some(Duration::from_millis(90_100))
        );
        assert!(
            most <= Some(Duration::from_secs(110)) && most > Some(Duration::from_millis(109_900))
        );
        assert_eq!(aged(Duration::ZERO, 7), Duration::ZERO);
        assert!(aged(Duration::MAX, u64::MAX) > Duration::from_secs(1 << 40));
    }

    #[test]
    fn an_old_connection_is_not_hurried() {
        let mut config = Config {
            max_connection_age: Some(Duration::from_secs(60)),
            ..Config::default()
        };
        let used = Some(Old::Used);
        assert_eq!(config.alone_due(at(0), at(60_000), used, None), at(60_000));
        assert_eq!(
            config.alone_due(at(59_990), at(60_000), used, None),
            at(60_990)
        );
        assert_eq!(
            config.alone_due(at(59_990), at(60_000), None, None),
            at(60_015)
        );
        config.max_connection_age = Some(Duration::from_millis(50));
        assert_eq!(config.alone_due(at(40), at(55), used, None), at(90));
        let unused = Some(Old::Unused);
        assert_eq!(config.alone_due(at(40), at(55), unused, None), at(1_040));
    }

    #[test]
    fn one_that_is_told_alone_may_bring_a_last_request_too() {
        let told = |idle| {
            let config = Config {
                idle,
                ..Config::default()
            };
            config.alone_due(at(0), at(1_000), None, None)
        };
        let (wait, over) = (Duration::from_secs(2), Duration::from_secs(2));
        assert_eq!(told(IdlePolicy::LastRequest { wait }), at(3_000));
        assert_eq!(told(IdlePolicy::Immediate), at(1_000));
        assert_eq!(told(IdlePolicy::Spread { over }), at(1_000));
    }

    /// As the builder's methods say.
    #[test]
    fn what_nobody_sets_is_as_documented() {
        let Config {
            grace_period,
            lame_duck,
            head_timeout,
            idle_timeout,
            max_connection_age,
            max_requests,
            idle,
            settle,
            stall_timeout,
            answer_at_deadline,
        } = Config::default();
        assert_eq!(grace_period, Some(Duration::from_secs(5)));
        assert_eq!(lame_duck, LameDuck::from(Duration::ZERO));
        assert_eq!(head_timeout, Some(Duration::from_secs(30)));
        assert_eq!(idle_timeout, None);
        assert_eq!(max_connection_age, None);
        assert_eq!(max_requests, None);
        assert_eq!(idle, IdlePolicy::Immediate);
        assert_eq!(settle, Duration::from_millis(25));
        assert_eq!(stall_timeout, Duration::from_secs(1));
        assert!(answer_at_deadline);
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
            for deadline in [Moment::NEVER, Moment::START, at(3)] {
                for settle in [Duration::ZERO, Duration::MAX] {
                    let config = Config {
                        idle,
                        settle,
                        ..Config::default()
                    };
                    for began in [at(2), Moment::NEVER] {
                        let crowd = usize::MAX;
                        let drain = Drain {
                            began,
                            deadline,
                            crowd,
                        };
                        config.idle_due(u64::MAX, Moment::NEVER, drain);
                        config.idle_due(3, at(1), drain);
                        config.told_due(u64::MAX, drain);
                        config.lame_duck_due(u64::MAX, began);
                    }
                }
            }
        }
    }
}
