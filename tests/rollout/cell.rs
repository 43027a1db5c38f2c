//! One balancer, one kind of server: rollout after rollout.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{Backend, Server, Signal};
use crate::balancer::{Balancer, Program};
use crate::clients::{Clients, is_unanswered};
use crate::support::closed_loop::Speaks;
use crate::support::wait::{time_passes, until};
use crate::support::{RawClient, Target};

/// From the removal to SIGTERM, or the other way round.
const APART: Duration = Duration::from_millis(200);

/// For a new server to be asked.
const ADDED: Duration = Duration::from_millis(50);

/// For what fails behind the end of the old one.
const AFTER: Duration = Duration::from_millis(50);

/// How many servers that got no SIGTERM there are at a time which nobody asks any more. The oldest is killed then:
/// what it had is long done.
const UNTOLD: usize = 4;

/// Who is told first that a server is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The balancer.
    RemovalFirst,
    SameMoment,
    /// The server.
    SigtermFirst,
}

impl Order {
    pub const ALL: [Self; 3] = [Self::RemovalFirst, Self::SameMoment, Self::SigtermFirst];
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RemovalFirst => "removal first",
            Self::SameMoment => "same moment",
            Self::SigtermFirst => "SIGTERM first",
        })
    }
}

#[derive(Clone)]
pub struct Cell {
    pub program: Program,
    pub speaks: Speaks,
    pub server: Server,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            program,
            speaks,
            server,
        } = self;
        write!(f, "{program}, {}, {server}", name(*speaks))
    }
}

pub fn name(speaks: Speaks) -> &'static str {
    match speaks {
        Speaks::Http1 => "HTTP/1",
        Speaks::Http2 => "HTTP/2",
    }
}

/// What came of some rollouts.
#[derive(Default)]
pub struct Outcome {
    pub rollouts: usize,
    pub requests: usize,
    pub failed: usize,
    /// Of which the balancer is to blame.
    pub own: usize,
    /// In which at least one request failed.
    pub bad_rollouts: usize,
    pub slowest: Duration,
    /// From a removal to the last that failed: until then, the balancer had not learned.
    pub learned: Option<Duration>,
    /// Servers that ended badly, or not in time.
    pub unwished: usize,
    /// Of some that failed, and of servers that ended otherwise than one would wish for.
    why: Vec<String>,
    log: String,
}

impl Outcome {
    /// How many failed, in how many rollouts, and how many by the balancer's own doing.
    pub fn in_a_table(&self) -> String {
        let failed = match self.failed {
            0 => "0".to_owned(),
            failed => format!("{failed} in {}", self.bad_rollouts),
        };
        match self.own {
            0 => failed,
            own => format!("{failed}, {own} its own"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rollouts,
            requests,
            failed,
            own,
            bad_rollouts,
            slowest,
            learned,
            unwished,
            why,
            log,
        } = self;
        write!(
            f,
            "{failed} of {requests} requests failed, in {bad_rollouts} of {rollouts} rollouts, and \
             {own} by the balancer; the slowest took {slowest:.0?}"
        )?;
        if let Some(learned) = learned {
            write!(f, ", and the last failed {learned:.0?} after its removal")?;
        }
        if *unwished > 0 {
            write!(
                f,
                "; {unwished} servers ended otherwise than one would wish for"
            )?;
        }
        if f.alternate() {
            for why in why {
                write!(f, "\n  {why}")?;
            }
            if *failed > 0 {
                write!(f, "\n  log: {}", log.trim_end().replace('\n', "\n       "))?;
            }
        }
        Ok(())
    }
}

/// When what happened in one rollout.
struct Rollout {
    begin: Instant,
    removal: Instant,
    sigterm: Option<Instant>,
    end: Instant,
}

impl Cell {
    /// Replaces one of two servers, so often, in these orders by turns.
    pub fn run(&self, orders: &[Order], rollouts: usize) -> Outcome {
        let start = || Backend::start(self.server);
        let mut serving: VecDeque<_> = [start(), start()].into();
        let mut balancer = self.program.start(self.speaks, &addresses(&serving));
        let addr = balancer.addr();
        until("it is asked through the balancer", || answers(addr));
        let clients = Clients::start(addr, self.program.keeps_clients());
        let mut done = Vec::new();
        let mut unwished = Vec::new();
        let mut untold = VecDeque::new();
        let mut new = start();
        for order in orders.iter().cycle().take(rollouts) {
            let begin = Instant::now();
            serving.push_back(new);
            balancer.set(&addresses(&serving));
            time_passes(ADDED);
            let old = serving.pop_front().expect("there are three");
            let left = addresses(&serving);
            let (removal, sigterm) = if self.server == Server::Control {
                balancer.set(&left);
                let removal = Instant::now();
                time_passes(APART);
                untold.push_back(old);
                if untold.len() > UNTOLD {
                    untold.pop_front();
                }
                new = start();
                (removal, None)
            } else {
                let (removal, sigterm) = replace(&mut *balancer, &left, &old.id, *order);
                // While the old one ends.
                new = start();
                unwished.extend(old.end());
                (removal, Some(sigterm))
            };
            time_passes(AFTER);
            done.push(Rollout {
                begin,
                removal,
                sigterm,
                end: Instant::now(),
            });
        }
        let mut seen = clients.end();
        let log = balancer.log();
        let requests = seen.answered + seen.failed.len();
        if !self.program.keeps_clients() {
            seen.failed.retain(|(_, why)| !is_unanswered(why));
        }
        let own = requests - seen.answered - seen.failed.len();
        let is_in = |rollout: &&Rollout, at: Instant| rollout.begin <= at && at <= rollout.end;
        let bad = done
            .iter()
            .filter(|it| seen.failed.iter().any(|(at, _)| is_in(it, *at)));
        let told = seen.failed.iter().map(|(at, why)| {
            let rollout = done.iter().find(|it| is_in(it, *at));
            format!(
                "{}: {why}",
                rollout.map_or_else(String::new, |it| it.told(*at))
            )
        });
        let learned = seen.failed.iter().filter_map(|(at, _)| {
            let rollout = done.iter().find(|it| is_in(it, *at))?;
            at.checked_duration_since(rollout.removal)
        });
        Outcome {
            learned: learned.max(),
            rollouts,
            requests,
            failed: seen.failed.len(),
            own,
            bad_rollouts: bad.count(),
            slowest: seen.slowest,
            unwished: unwished.len(),
            why: unwished.into_iter().take(3).chain(told.take(6)).collect(),
            log: last_lines(&log, 12),
        }
    }
}

/// Gives when it was removed, and when it got its signal.
fn replace(
    balancer: &mut dyn Balancer,
    left: &[SocketAddr],
    old: &str,
    order: Order,
) -> (Instant, Instant) {
    let mut remove = || {
        let at = Instant::now();
        balancer.set(left);
        at
    };
    let signal = Signal::new("TERM", old);
    let terminate = move || {
        let at = Instant::now();
        signal.send();
        at
    };
    match order {
        Order::RemovalFirst => {
            let removal = remove();
            time_passes(APART);
            (removal, terminate())
        }
        Order::SameMoment => {
            let both = Barrier::new(2);
            thread::scope(|scope| {
                let sigterm = scope.spawn(|| {
                    both.wait();
                    terminate()
                });
                both.wait();
                let removal = remove();
                (removal, sigterm.join().expect("no panic"))
            })
        }
        Order::SigtermFirst => {
            let sigterm = terminate();
            time_passes(APART);
            (remove(), sigterm)
        }
    }
}

impl Rollout {
    /// How long after what that was.
    fn told(&self, at: Instant) -> String {
        let after = |what: &str, then: Instant| {
            let ms = if at >= then {
                (at - then).as_secs_f64() * 1e3
            } else {
                (then - at).as_secs_f64() * -1e3
            };
            format!("{ms:.1} ms after the {what}")
        };
        let removal = after("removal", self.removal);
        match self.sigterm {
            Some(sigterm) => format!("{removal}, {}", after("SIGTERM", sigterm)),
            None => removal,
        }
    }
}

fn addresses(backends: &VecDeque<Backend>) -> Vec<SocketAddr> {
    backends.iter().map(|it| it.addr).collect()
}

fn answers(addr: SocketAddr) -> bool {
    let Ok(mut client) = RawClient::try_connect(Target::Tcp(addr)) else {
        return false;
    };
    let asked = client.try_send("GET /quick HTTP/1.1\r\nhost: a\r\n\r\n");
    asked.is_ok() && client.try_read_response().is_ok_and(|it| it.status == 200)
}

fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}
