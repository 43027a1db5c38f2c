//! What a termination did, as a value.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::words::{Count, Took};

/// What happened between [`terminate`](crate::Terminator::terminate) and the end.
///
/// The counts from `idle` to `forced` together are all connections that were open when the drain began or came during it:
/// each is counted once, by how it ended. Those after them count other things.
///
/// # Examples
///
/// ```
/// # use http_terminator::Terminator;
/// # #[tokio::main] async fn main() {
/// let report = Terminator::new().terminate().await;
/// println!("{report}");   // on one line
/// println!("{report:#}"); // as a block: who was cut, and what to do about each
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// Closed because they were idle.
    pub idle: usize,
    /// Closed after the last response, as was agreed: it said `connection: close`, or the client had
    /// asked for that, or spoke HTTP/1.0; or after GOAWAY.
    pub finished: usize,
    /// Ended by the other side first, by an error on the connection, or by whoever polls it, who dropped it or whose runtime
    /// ended, under an answer; also where it can't be known
    /// who was first ([`watch`](crate::Terminator::watch), `axum::serve`).
    pub closed_by_peer: usize,
    /// Closed because the other side owed bytes (the rest of a request head, an HTTP/2 PING ack)
    /// and sent none for [`stall_timeout`](crate::TerminatorBuilder::stall_timeout); or a handshake took this side longer than
    /// [`head_timeout`](crate::TerminatorBuilder::head_timeout).
    pub stalled: usize,
    /// Upgraded connections that ended by themselves.
    pub upgraded: usize,
    /// Taken out by [`into_inner`](crate::TrackedIo::into_inner).
    pub left: usize,
    /// [`detach`](crate::Connection::detach)ed, and cut when everything else had ended.
    pub detached: usize,
    /// Cut at the deadline or by [`force`](crate::Terminator::force); or one by one, in the drain, by
    /// [`Connection::force`](crate::Connection::force), which the log names and `stragglers` does not.
    pub forced: usize,
    /// Requests that were answered `503` at the deadline, or as their connection was forced, on connections counted in `forced` or `detached`.
    pub answered_at_deadline: usize,
    /// Requests whose clients left before there was a response head, by closing or half-closing the
    /// connection or by resetting the HTTP/2 stream, from the call of `terminate` on. Their handlers
    /// were dropped. Clients that half-close behind a request and wait are answered if
    /// [`Serve::http`](crate::Serve::http) is given a builder with `half_close(true)`.
    pub abandoned: usize,
    /// Handlers that were inside a poll at the end, blocking their thread: nothing can stop them from
    /// outside. Their sockets are closed all the same. One that blocks in its drop is none of them.
    pub unresponsive: usize,
    /// [`ShutdownGuard`](crate::ShutdownGuard)s still held at the end.
    pub guards_cut: usize,
    /// Connections that were found in the kernel's accept queue when the drain began, and given to who accepts.
    pub accepted_late: usize,
    /// Connections that were reset in the kernel's accept queue, or just out of it, because nobody accepted
    /// them before the deadline, or for half a second in which nothing else was left. They are counted nowhere else. Those for
    /// which there is no descriptor until the end can't be.
    pub lost_in_queue: usize,
    /// Connections and listeners that were cut, and whose IO was still inside its own drop at the end, or its own
    /// poll: what blocks there is not waited for.
    pub unclosed: usize,
    /// How long the lame-duck phase took.
    pub lame_duck: Duration,
    /// How long the drain took.
    pub draining: Duration,
    /// How long forcing took.
    pub forcing: Duration,
    /// Who was cut, 64 at most: connections first, then those with a request in hand that were detached, then guards,
    /// where there is room for them.
    ///
    /// These are the guards held at the deadline. Those that let go soon after it, such as that of work
    /// that was [`spawn`](crate::Terminator::spawn)ed, are among them, but not counted in `guards_cut`.
    pub stragglers: Vec<Straggler>,
}

impl Report {
    /// Whether nothing was cut: no connection was forced, or lost in an accept queue, no guard was left, no
    /// handler and no drop blocked.
    ///
    /// Connections counted as `stalled` and requests counted as `abandoned` do not matter here: they
    /// ended for what the other side did, or did not do. Nor does work of [`spawn`](crate::Terminator::spawn) that was
    /// dropped at the deadline: it let go in time, and is in `stragglers` all the same.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::process::ExitCode;
    /// # use http_terminator::Terminator;
    /// #[tokio::main]
    /// async fn main() -> ExitCode {
    ///     let report = Terminator::new().terminate().await;
    ///     if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    /// }
    /// ```
    pub fn is_clean(&self) -> bool {
        self.forced == 0
            && self.unresponsive == 0
            && self.guards_cut == 0
            && self.lost_in_queue == 0
            && self.unclosed == 0
    }

    /// All connections together.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() {
    /// assert_eq!(Terminator::new().terminate().await.connections(), 0);
    /// # }
    /// ```
    pub fn connections(&self) -> usize {
        self.idle
            + self.finished
            + self.closed_by_peer
            + self.stalled
            + self.upgraded
            + self.left
            + self.detached
            + self.forced
    }
}

/// `{}` is one line, for a log: how it went, and three of those that were cut, at most. `{:#}` is a block, for a terminal:
/// what became of the connections, a line for each other count that is not zero, and some for each straggler, with what can be done about it.
///
/// ```
/// # #[tokio::main] async fn main() {
/// let report = http_terminator::Terminator::new().terminate().await;
/// println!("{report}"); // terminated cleanly in 81.2µs: 0 connections
/// println!("{report:#}");
/// # }
/// ```
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_clean() {
            "cleanly"
        } else {
            "by force"
        };
        let total = Took(self.lame_duck + self.draining + self.forcing);
        let connections = Count(self.connections(), "connection", "connections");
        let outcomes = self.outcomes();
        let (line, listed) = if f.alternate() {
            ("\n  ", self.stragglers.len())
        } else {
            (", ", MOST_IN_A_LINE)
        };
        write!(f, "terminated {how} in {total}")?;
        if f.alternate() {
            for (phase, took) in [
                ("lame duck", self.lame_duck),
                ("draining", self.draining),
                ("forcing", self.forcing),
            ] {
                if !took.is_zero() {
                    write!(f, "{line}{phase} for {}", Took(took))?;
                }
            }
            write!(f, "{line}{connections}")?;
        } else {
            write!(f, ": {connections}")?;
        }
        if !outcomes.is_empty() {
            write!(f, " ({outcomes})")?;
        }
        for (n, one, many) in [
            (self.accepted_late, "accepted late", "accepted late"),
            (
                self.answered_at_deadline,
                "request answered 503 at the deadline",
                "requests answered 503 at the deadline",
            ),
            (
                self.abandoned,
                "request whose client left",
                "requests whose clients left",
            ),
            (
                self.unresponsive,
                "unresponsive handler",
                "unresponsive handlers",
            ),
            (self.guards_cut, "guard still held", "guards still held"),
            (
                self.lost_in_queue,
                "lost in the accept queue",
                "lost in the accept queue",
            ),
            (self.unclosed, "not closed", "not closed"),
        ] {
            if n > 0 {
                write!(f, "{line}{}", Count(n, one, many))?;
            }
        }
        self.list(f, listed)
    }
}

/// How many of them a line shows; who wants all of them has the field, and `{:#}`.
const MOST_IN_A_LINE: usize = 3;

impl Report {
    fn outcomes(&self) -> String {
        let counts = [
            (self.idle, "idle"),
            (self.finished, "finished"),
            (self.closed_by_peer, "closed by peer"),
            (self.stalled, "stalled"),
            (self.upgraded, "upgraded"),
            (self.left, "taken out"),
            (self.detached, "detached"),
            (self.forced, "forced"),
        ];
        let counts = counts.iter().filter(|(n, _)| *n > 0);
        let counts: Vec<_> = counts.map(|(n, what)| format!("{n} {what}")).collect();
        counts.join(", ")
    }

    fn list(&self, f: &mut fmt::Formatter<'_>, most: usize) -> fmt::Result {
        for (n, straggler) in self.stragglers.iter().take(most).enumerate() {
            if f.alternate() {
                write!(f, "\n  {straggler:#}")?;
            } else {
                let before = if n == 0 { "; cut:" } else { ";" };
                write!(f, "{before} {straggler}")?;
            }
        }
        let shown = &self.stragglers[..most.min(self.stragglers.len())];
        let guards = |listed: &[Straggler]| {
            let guards = listed.iter().filter(|it| it.protocol == Protocol::Guard);
            guards.count()
        };
        // One with several requests is listed several times.
        let connections = |listed: &[Straggler], detached| {
            let of_kind =
                |it: &&Straggler| it.protocol != Protocol::Guard && it.detached == detached;
            let numbers = listed.iter().filter(of_kind).map(|it| it.connection);
            numbers.collect::<BTreeSet<_>>().len()
        };
        let unlisted = self.forced.saturating_sub(connections(shown, false))
            + connections(&self.stragglers, true)
            - connections(shown, true)
            + self.guards_cut.saturating_sub(guards(shown));
        if unlisted > 0 && !self.stragglers.is_empty() {
            let before = if f.alternate() { "\n  and" } else { "; and" };
            write!(f, "{before} {unlisted} more")?;
        }
        Ok(())
    }
}

/// Who holds a termination up: a request, or a connection without one, or a
/// [`ShutdownGuard`](crate::ShutdownGuard).
///
/// In a [`Report`] what was cut, or a handler that did not yield; from
/// [`in_hand`](crate::Terminator::in_hand) what would be if it were time now.
///
/// # Examples
///
/// ```
/// # use http_terminator::{Protocol, Terminator};
/// # let terminator = Terminator::new();
/// let guard = terminator.guard();
/// let named = terminator.in_hand();
/// assert_eq!(named[0].protocol, Protocol::Guard);
/// # drop(guard);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Straggler {
    /// The connection's number, as in the log: counted from 1 for each terminator. That of a guard is 0.
    pub connection: u64,
    /// The other side's address, for TCP.
    pub peer: Option<SocketAddr>,
    /// What is spoken, or that it is a guard.
    pub protocol: Protocol,
    /// The method of the request in hand, where it is known: not of an HTTP/2 one whose response hyper had in one piece, and
    /// has let go of, while its client has yet to take it; of an upgraded connection, that of the
    /// request that upgraded it.
    pub method: Option<String>,
    /// The path of the same request, where it is known: without its query, or, of a `CONNECT`, host and
    /// port. What is not printable ASCII is escaped. It may be cut short: of an HTTP/1 request the first
    /// 64 bytes are kept, of an HTTP/2 one the first 256 of its path are shown.
    ///
    /// Nothing else that a client has sent is ever in a report or a log of this crate.
    pub path: Option<String>,
    /// Where in the source a guard was taken, by [`guard`](crate::Terminator::guard),
    /// [`spawn`](crate::Terminator::spawn), or as a clone: file, line and column, such as
    /// `src/jobs.rs:10:5`. `None` for all else.
    pub place: Option<String>,
    /// How long the connection had been open, or the guard held.
    pub age: Duration,
    /// Whether its handler was inside a poll, blocking its thread, when the report was written; from
    /// [`in_hand`](crate::Terminator::in_hand), whether it is inside one at this very moment.
    pub unresponsive: bool,
    /// Nobody waited for it, so that it is none of those that were forced.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(crate) detached: bool,
}

/// `{}` says who it is; `{:#}` also what can be done so that it does not hold up the next termination.
impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "guard taken at {place}, held for {}", Took(self.age))?;
        } else {
            write!(f, "connection {}", self.connection)?;
            if let Some(peer) = self.peer {
                write!(f, " from {peer}")?;
            }
            write!(f, ", {}", self.protocol)?;
            if let Some(method) = &self.method {
                write!(f, ", {method}")?;
            }
            if let Some(path) = &self.path {
                write!(f, " {path}")?;
            }
            write!(f, ", open for {}", Took(self.age))?;
            if self.detached {
                f.write_str(", detached")?;
            }
            if self.unresponsive {
                f.write_str(", its handler did not yield")?;
            }
        }
        if f.alternate() {
            write!(f, "\n    {}", self.advice())?;
        }
        Ok(())
    }
}

impl Straggler {
    fn advice(&self) -> &'static str {
        match self.protocol {
            _ if self.unresponsive => {
                "it blocks a thread of the runtime: move that into `tokio::task::spawn_blocking`"
            }
            Protocol::Guard => "end its work on `draining()`, or by `time_left()`",
            Protocol::Upgraded => {
                "end it on `draining()`; WebSockets end with `close_websockets(1001)`"
            }
            _ if self.method.is_some() => {
                "if it is a stream, end it on `draining()`, or with the layer `end_streams()`; else give it a longer `grace_period`"
            }
            _ => "no request of it is known: its client may be slow to read",
        }
    }
}

/// What a [`Straggler`] speaks, or spoke when it was cut.
///
/// # Examples
///
/// ```
/// # use http_terminator::Protocol;
/// assert_eq!(Protocol::Http2.to_string(), "HTTP/2");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Protocol {
    /// Nothing that could be told yet, or not HTTP as far as this crate can see.
    Unknown,
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Whatever it was upgraded to.
    Upgraded,
    /// Nothing: it is a [`ShutdownGuard`](crate::ShutdownGuard), and no connection.
    Guard,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "unknown protocol",
            Self::Http1 => "HTTP/1",
            Self::Http2 => "HTTP/2",
            Self::Upgraded => "upgraded",
            Self::Guard => "guard",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_well_in_a_log_and_in_a_terminal() {
        let mut report = Report::default();
        assert_eq!(
            report.to_string(),
            "terminated cleanly in 0s: 0 connections"
        );
        report.idle = 3;
        report.finished = 2;
        report.forced = 1;
        report.unresponsive = 1;
        report.draining = Duration::from_millis(1_500);
        report.stragglers.push(Straggler {
            connection: 9,
            peer: Some("127.0.0.1:80".parse().expect("an address")),
            protocol: Protocol::Http1,
            method: Some("GET".into()),
            path: Some("/slow".into()),
            place: None,
            age: Duration::from_secs(2),
            unresponsive: true,
            detached: false,
        });
        assert_eq!(
            report.to_string(),
            "terminated by force in 1.5s: 6 connections (3 idle, 2 finished, 1 forced), 1 unresponsive handler; \
             cut: connection 9 from 127.0.0.1:80, HTTP/1, GET /slow, open for 2.0s, its handler did not yield"
        );
        assert_eq!(
            format!("{report:#}"),
            "terminated by force in 1.5s\n  \
             draining for 1.5s\n  \
             6 connections (3 idle, 2 finished, 1 forced)\n  \
             1 unresponsive handler\n  \
             connection 9 from 127.0.0.1:80, HTTP/1, GET /slow, open for 2.0s, its handler did not yield\n    \
             it blocks a thread of the runtime: move that into `tokio::task::spawn_blocking`"
        );
        assert!(!report.is_clean());
        assert_eq!(report.connections(), 6);
    }

    #[test]
    fn who_is_not_shown_is_counted() {
        let connection = Straggler {
            connection: 9,
            peer: None,
            protocol: Protocol::Http2,
            method: None,
            path: None,
            place: None,
            age: Duration::from_secs(2),
            unresponsive: false,
            detached: false,
        };
        let guard = Straggler {
            connection: 0,
            protocol: Protocol::Guard,
            place: Some("src/jobs.rs:10:5".into()),
            ..connection.clone()
        };
        assert_eq!(
            guard.to_string(),
            "guard taken at src/jobs.rs:10:5, held for 2.0s"
        );
        // Each kind for itself: 1 of 1 connection and 1 of 4 guards are listed.
        let mut report = Report {
            forced: 1,
            guards_cut: 4,
            stragglers: vec![connection, guard],
            ..Report::default()
        };
        let ends_with = |report: &Report, line: &str, block: &str| {
            let shown = report.to_string();
            assert!(shown.ends_with(line), "{shown}");
            let shown = format!("{report:#}");
            assert!(shown.ends_with(block), "{shown}");
        };
        ends_with(
            &report,
            "held for 2.0s; and 3 more",
            "`time_left()`\n  and 3 more",
        );
        // Two requests of one connection are one.
        report.stragglers.push(report.stragglers[0].clone());
        report.forced = 3;
        ends_with(&report, "; and 5 more", "\n  and 5 more");
        // A line shows three.
        let mut another = report.stragglers[0].clone();
        another.connection = 10;
        report.stragglers.push(another);
        ends_with(&report, "; and 5 more", "\n  and 4 more");
        // Those that are detached are listed, too, if they have something in hand, and are none of the forced.
        report.stragglers[0].detached = true;
        report.stragglers[2].detached = true;
        report.detached = 9;
        ends_with(&report, "; and 6 more", "\n  and 5 more");
    }

    #[test]
    fn every_connection_is_counted_once_and_every_phase() {
        let ms = Duration::from_millis;
        let report = Report {
            idle: 1,
            finished: 2,
            closed_by_peer: 4,
            stalled: 8,
            upgraded: 16,
            left: 32,
            detached: 64,
            forced: 128,
            lame_duck: ms(1),
            draining: ms(2),
            forcing: ms(4),
            ..Report::default()
        };
        assert_eq!(report.connections(), 255);
        let shown = report.to_string();
        let begins = "terminated by force in 7.0ms: 255 connections (";
        assert!(shown.starts_with(begins), "{shown}");
    }

    #[test]
    fn whatever_was_cut_is_not_clean() {
        let cut: [fn(&mut Report) -> &mut usize; 5] = [
            |it| &mut it.forced,
            |it| &mut it.unresponsive,
            |it| &mut it.guards_cut,
            |it| &mut it.lost_in_queue,
            |it| &mut it.unclosed,
        ];
        for what in cut {
            let mut report = Report::default();
            assert!(report.is_clean());
            *what(&mut report) = 1;
            assert!(!report.is_clean(), "{report}");
        }
    }

    #[test]
    fn advice_is_for_what_was_in_hand() {
        let advice = |protocol, method: Option<&str>| {
            let straggler = Straggler {
                connection: 9,
                peer: None,
                protocol,
                method: method.map(Into::into),
                path: None,
                place: None,
                age: Duration::ZERO,
                unresponsive: false,
                detached: false,
            };
            straggler.advice()
        };
        assert!(advice(Protocol::Upgraded, Some("GET")).contains("close_websockets"));
        assert!(advice(Protocol::Http1, Some("GET")).contains("end_streams"));
        assert!(advice(Protocol::Http2, None).contains("no request"));
    }
}
