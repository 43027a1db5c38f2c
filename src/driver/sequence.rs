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
/// late answers go out and what the other side still sends is discarded (G10 allows 100 ms for it).
pub(crate) const CUT: Duration = Duration::from_millis(90);

/// From the deadline to the report. What has not let go of its memory by now is not waited for.
pub(crate) const END: Duration = Duration::from_millis(135);

#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    phase: Phase,
    /// When each phase was entered, by its number.
    entered: [Option<Moment>; 5],
    deadline: Moment,
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

    /// The first call counts, later ones change nothing. True if it was the first.
    pub(crate) fn terminate(&mut self, config: &Config, now: Moment) -> bool {
        if self.phase > Phase::Serving {
            return false;
        }
        if config.lame_duck > Duration::ZERO {
            self.enter(Phase::LameDuck, now);
            let drain = now.after(config.lame_duck);
            self.deadline = config
                .grace_period
                .map_or(Moment::NEVER, |grace| drain.after(grace));
        } else {
            self.drain(config, now);
        }
        true
    }

    pub(crate) fn force(&mut self, now: Moment) {
        if self.phase < Phase::Forcing {
            self.enter(Phase::Forcing, now);
            self.deadline = now;
        }
    }

    /// `empty`: no listener is open, no connection alive, no guard held.
    pub(crate) fn step(&mut self, config: &Config, now: Moment, empty: bool) -> Step {
        let before = self.phase;
        let wait = match self.phase {
            Phase::Serving => Moment::NEVER,
            Phase::LameDuck => {
                let over = self.since(Phase::LameDuck).after(config.lame_duck);
                if now >= over {
                    self.drain(config, now);
                }
                over
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
                let end = self.since(Phase::Forcing).after(END);
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

    fn drain(&mut self, config: &Config, now: Moment) {
        self.enter(Phase::Draining, now);
        self.deadline = config
            .grace_period
            .map_or(Moment::NEVER, |grace| now.after(grace));
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
            lame_duck: Duration::from_millis(lame),
            grace_period: grace.map(Duration::from_millis),
            ..Config::default()
        }
    }

    #[test]
    fn walks_all_phases() {
        let config = config(100, Some(1_000));
        let mut s = Sequence::new();
        assert_eq!(s.step(&config, at(5), true), Step::Wait(Moment::NEVER));
        assert!(s.terminate(&config, at(10)));
        assert!(
            !s.terminate(&config, at(11)),
            "the second call changes nothing"
        );
        assert_eq!(s.phase(), Phase::LameDuck);
        assert_eq!(s.deadline(), at(1_110), "time left is known from the start");
        assert_eq!(
            s.step(&config, at(10), true),
            Step::Wait(at(110)),
            "empty does not shorten it"
        );
        assert_eq!(
            s.step(&config, at(112), false),
            Step::Enter(Phase::Draining)
        );
        assert_eq!(s.step(&config, at(112), false), Step::Wait(at(1_112)));
        assert_eq!(
            s.step(&config, at(1_112), false),
            Step::Enter(Phase::Forcing)
        );
        assert_eq!(
            s.step(&config, at(1_112), false),
            Step::Wait(at(1_112).after(END))
        );
        assert_eq!(
            s.step(&config, at(1_150), true),
            Step::Enter(Phase::Terminated)
        );
        assert_eq!(s.step(&config, at(1_150), true), Step::Done);
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
        s.terminate(&config, at(1));
        assert_eq!(s.step(&config, at(1), false), Step::Wait(Moment::NEVER));
        assert_eq!(
            s.step(&config, at(u64::from(u32::MAX)), false),
            Step::Wait(Moment::NEVER)
        );
        s.force(at(5));
        assert_eq!(s.phase(), Phase::Forcing);
    }

    #[test]
    fn g12_zero_grace_forces_at_once() {
        let config = config(0, Some(0));
        let mut s = Sequence::new();
        s.terminate(&config, at(1));
        assert_eq!(s.step(&config, at(1), false), Step::Enter(Phase::Forcing));
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
                            0 => drop(s.terminate(&config, at(now))),
                            1 => s.force(at(now)),
                            2 => drop(s.step(&config, at(now), true)),
                            3 => drop(s.step(&config, at(now), false)),
                            _ => now += 15,
                        }
                        events /= 5;
                        assert!(s.phase() >= phase);
                        phase = s.phase();
                    }
                    if phase > Phase::Serving && grace.is_some() {
                        for _ in 0..8 {
                            now += 200;
                            let _ = s.step(&config, at(now), false);
                        }
                        assert_eq!(s.phase(), Phase::Terminated, "nothing holds it up");
                    }
                }
            }
        }
    }
}
