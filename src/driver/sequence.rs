//! The phases of one termination as a state machine without clock or thread: it is told what time
//! it is and what happened, and answers what to do and when to look again.
//!
//! ```text
//!  Serving ──terminate──▶ LameDuck ──period over──▶ Draining ──all gone──▶ Terminated
//!     │                      │                         │                       ▲
//!     └────────force─────────┴──────────force──────────┴──grace over──▶ Forcing┘
//!                                                              all gone, or END over
//! ```

use std::time::Duration;

use crate::clock::Moment;
use crate::config::Config;
use crate::phase::Phase;

/// When, after the deadline, nobody waits for an answer any more.
pub(crate) const LAST_ANSWER: Duration = Duration::from_millis(70);

/// From the deadline to the moment when every socket is closed, whatever it was doing. Until then
/// late answers go out and what the other side still sends is discarded.
pub(crate) const CUT: Duration = Duration::from_millis(90);

/// From the deadline to the report. What has not let go of its memory by now is not waited for.
pub(crate) const END: Duration = Duration::from_millis(135);

#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    phase: Phase,
    /// When each phase was entered, by its number.
    entered: [Option<Moment>; 5],
    /// When whoever takes the steps has seen that it is to force: a process that got no processor for a while
    /// answers and cuts all the same.
    noticed: Option<Moment>,
    /// How long the drain may take.
    grace: Option<Duration>,
    deadline: Moment,
}

/// What is left to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    Something,
    /// In the lame duck: nothing but listeners, and nobody has come for a while.
    Unused,
    /// No listener, no connection, no guard.
    Nothing,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// This phase was entered: act on it, then step again.
    Enter(Phase),
    /// Nothing until then, or until something happens.
    Wait(Moment),
    /// The end.
    Done,
}

impl Sequence {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Serving,
            entered: [None; 5],
            noticed: None,
            grace: None,
            deadline: Moment::NEVER,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn deadline(&self) -> Moment {
        self.deadline
    }

    pub(crate) fn entered(&self, phase: Phase) -> Option<Moment> {
        self.entered[phase as usize]
    }

    /// How long the phase took, counted to `now` if it is not over.
    pub(crate) fn took(&self, phase: Phase, now: Moment) -> Duration {
        let Some(from) = self.entered(phase) else {
            return Duration::ZERO;
        };
        let next = self.entered[phase as usize + 1..].iter().flatten().next();
        next.copied().unwrap_or(now).since(from)
    }

    /// The first call begins it; of all deadlines the earliest holds. `grace` is counted from when the drain
    /// begins, or from now if it has.
    pub(crate) fn terminate(&mut self, config: &Config, grace: Option<Duration>, now: Moment) {
        match self.phase {
            Phase::Serving => {
                self.grace = grace;
                if config.lame_duck.max > Duration::ZERO {
                    self.enter(Phase::LameDuck, now);
                    self.expect_deadline(config);
                } else {
                    self.drain(now);
                }
            }
            Phase::LameDuck => {
                self.grace = self.grace.into_iter().chain(grace).min();
                self.expect_deadline(config);
            }
            Phase::Draining => self.deadline = self.deadline.min(now.after_or_never(grace)),
            Phase::Forcing | Phase::Terminated => {}
        }
    }

    /// Should the lame duck last as long as it may.
    fn expect_deadline(&mut self, config: &Config) {
        let drain = self.since(Phase::LameDuck).after(config.lame_duck.max);
        self.deadline = drain.after_or_never(self.grace);
    }

    pub(crate) fn force(&mut self, now: Moment) {
        if self.phase < Phase::Forcing {
            self.enter(Phase::Forcing, now);
            self.deadline = now;
        }
    }

    pub(crate) fn step(&mut self, config: &Config, now: Moment, open: Open) -> Step {
        let before = self.phase;
        let empty = open == Open::Nothing;
        let wait = match self.phase {
            Phase::Serving => Moment::NEVER,
            Phase::LameDuck => {
                let since = self.since(Phase::LameDuck);
                let (min, max) = (config.lame_duck.min, config.lame_duck.max);
                let (min, max) = (since.after(min), since.after(max));
                if now >= max || now >= min && open == Open::Unused {
                    self.drain(now);
                }
                if now < min { min } else { max }
            }
            Phase::Draining => {
                if empty {
                    self.enter(Phase::Terminated, now);
                } else if now >= self.deadline {
                    self.enter(Phase::Forcing, now);
                }
                self.deadline
            }
            Phase::Forcing => {
                let end = self.noticed.get_or_insert(now).after(END);
                if empty || now >= end {
                    self.enter(Phase::Terminated, now);
                }
                end
            }
            Phase::Terminated => return Step::Done,
        };
        if self.phase == before {
            Step::Wait(wait)
        } else {
            Step::Enter(self.phase)
        }
    }

    fn drain(&mut self, now: Moment) {
        self.enter(Phase::Draining, now);
        self.deadline = now.after_or_never(self.grace);
    }

    fn enter(&mut self, phase: Phase, now: Moment) {
        debug_assert!(phase > self.phase, "a phase never falls (invariant 1)");
        self.phase = phase;
        self.entered[phase as usize] = Some(now);
    }

    fn since(&self, phase: Phase) -> Moment {
        self.entered(phase).unwrap_or(Moment::START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::START.after(Duration::from_millis(ms))
    }

    fn config(lame: u64, grace: Option<u64>) -> Config {
        Config {
            lame_duck: Duration::from_millis(lame).into(),
            grace_period: grace.map(Duration::from_millis),
            ..Config::default()
        }
    }

    #[test]
    fn walks_all_phases() {
        let config = config(100, Some(1_000));
        let mut s = Sequence::new();
        assert_eq!(
            s.step(&config, at(5), Open::Nothing),
            Step::Wait(Moment::NEVER)
        );
        s.terminate(&config, config.grace_period, at(10));
        // The second call changes nothing.
        s.terminate(&config, config.grace_period, at(11));
        assert_eq!(s.phase(), Phase::LameDuck);
        assert_eq!(s.deadline(), at(1_110), "time left is known from the start");
        assert_eq!(
            s.step(&config, at(10), Open::Nothing),
            Step::Wait(at(110)),
            "empty does not shorten it"
        );
        assert_eq!(
            s.step(&config, at(112), Open::Something),
            Step::Enter(Phase::Draining)
        );
        assert_eq!(
            s.step(&config, at(112), Open::Something),
            Step::Wait(at(1_112))
        );
        assert_eq!(
            s.step(&config, at(1_112), Open::Something),
            Step::Enter(Phase::Forcing)
        );
        assert_eq!(
            s.step(&config, at(1_112), Open::Something),
            Step::Wait(at(1_112).after(END))
        );
        assert_eq!(
            s.step(&config, at(1_150), Open::Nothing),
            Step::Enter(Phase::Terminated)
        );
        assert_eq!(s.step(&config, at(1_150), Open::Nothing), Step::Done);
        assert_eq!(
            s.took(Phase::LameDuck, at(9_999)),
            Duration::from_millis(102)
        );
        assert_eq!(s.took(Phase::Draining, at(9_999)), Duration::from_secs(1));
        assert_eq!(s.took(Phase::Forcing, at(9_999)), Duration::from_millis(38));
    }

    #[test]
    fn g12_no_grace_period_waits_without_end() {
        let config = config(0, None);
        let mut s = Sequence::new();
        s.terminate(&config, config.grace_period, at(1));
        assert_eq!(
            s.step(&config, at(1), Open::Something),
            Step::Wait(Moment::NEVER)
        );
        assert_eq!(
            s.step(&config, at(u64::from(u32::MAX)), Open::Something),
            Step::Wait(Moment::NEVER)
        );
        s.force(at(5));
        assert_eq!(s.phase(), Phase::Forcing);
    }

    #[test]
    fn g12_zero_grace_forces_at_once() {
        let config = config(0, Some(0));
        let mut s = Sequence::new();
        s.terminate(&config, config.grace_period, at(1));
        assert_eq!(
            s.step(&config, at(1), Open::Something),
            Step::Enter(Phase::Forcing)
        );
    }

    #[test]
    fn of_several_calls_the_earliest_deadline_holds() {
        let config = config(100, Some(1_000));
        let ms = |n| Some(Duration::from_millis(n));
        let mut s = Sequence::new();
        s.terminate(&config, None, at(0));
        assert_eq!(s.deadline(), Moment::NEVER);
        s.terminate(&config, ms(500), at(10));
        s.terminate(&config, ms(700), at(20));
        s.terminate(&config, None, at(30));
        assert_eq!(s.deadline(), at(600));
        s.step(&config, at(100), Open::Something);
        assert_eq!(s.deadline(), at(600));
        s.terminate(&config, ms(300), at(200));
        assert_eq!(s.deadline(), at(500));
        s.terminate(&config, ms(300), at(300));
        assert_eq!(
            s.step(&config, at(300), Open::Something),
            Step::Wait(at(500))
        );
        s.terminate(&config, ms(0), at(400));
        assert_eq!(
            s.step(&config, at(400), Open::Something),
            Step::Enter(Phase::Forcing)
        );
        s.terminate(&config, ms(0), at(410));
        assert_eq!(s.deadline(), at(400));
    }

    #[test]
    fn a_lame_duck_with_a_range_ends_when_nobody_comes() {
        let ms = Duration::from_millis;
        let config = Config {
            lame_duck: (ms(100)..=ms(1_000)).into(),
            ..Config::default()
        };
        let mut s = Sequence::new();
        s.terminate(&config, ms(50).into(), at(0));
        assert_eq!(s.deadline(), at(1_050));
        assert_eq!(s.step(&config, at(0), Open::Unused), Step::Wait(at(100)));
        assert_eq!(
            s.step(&config, at(100), Open::Something),
            Step::Wait(at(1_000))
        );
        assert_eq!(
            s.step(&config, at(300), Open::Unused),
            Step::Enter(Phase::Draining)
        );
        assert_eq!(s.deadline(), at(350), "counted from the drain");
    }

    /// Every sequence of five events over a small set, each time checked for what must always hold.
    #[test]
    fn exhaustively_phases_only_rise_and_end() {
        for lame in [0, 10] {
            for grace in [None, Some(0), Some(20)] {
                let config = config(lame, grace);
                for mut events in 0..5_u32.pow(5) {
                    let mut s = Sequence::new();
                    let mut now = 0;
                    let mut phase = s.phase();
                    for _ in 0..5 {
                        match events % 5 {
                            0 => s.terminate(&config, config.grace_period, at(now)),
                            1 => s.force(at(now)),
                            2 => drop(s.step(&config, at(now), Open::Nothing)),
                            3 => drop(s.step(&config, at(now), Open::Something)),
                            _ => now += 15,
                        }
                        events /= 5;
                        assert!(s.phase() >= phase);
                        phase = s.phase();
                    }
                    if phase > Phase::Serving && grace.is_some() {
                        for _ in 0..8 {
                            now += 200;
                            let _ = s.step(&config, at(now), Open::Something);
                        }
                        assert_eq!(s.phase(), Phase::Terminated, "nothing holds it up");
                    }
                }
            }
        }
    }
}
