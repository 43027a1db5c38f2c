//! What a termination did, as a value.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// What happened between [`terminate`](crate::Terminator::terminate) and the end.
///
/// The counts together are all connections that were open when the drain began or came during it:
/// each is counted once, by how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// Closed because they were idle.
    pub idle: usize,
    /// Closed after the last response, as was agreed: it said `connection: close`, or the client had
    /// asked for that, or spoke HTTP/1.0; or after GOAWAY.
    pub finished: usize,
    /// Ended by the other side first, or by an error on the connection; also where it can't be known
    /// who was first ([`watch`](crate::Terminator::watch), `axum::serve`).
    pub closed_by_peer: usize,
    /// Closed because the other side owed bytes (the rest of a request head, an HTTP/2 PING ack)
    /// and sent none for [`stall_timeout`](crate::TerminatorBuilder::stall_timeout).
    pub stalled: usize,
    /// Upgraded connections that ended by themselves.
    pub upgraded: usize,
    /// Taken out by [`into_inner`](crate::TrackedIo::into_inner).
    pub left: usize,
    /// [`detach`](crate::Connection::detach)ed, and cut when everything else had ended.
    pub detached: usize,
    /// Cut at the deadline or by [`force`](crate::Terminator::force).
    pub forced: usize,
    /// Requests that were answered `503` at the deadline, on connections counted in `forced`.
    pub answered_at_deadline: usize,
    /// Requests whose clients left before there was a response head, by closing or half-closing the
    /// connection or by resetting the HTTP/2 stream, from the call of `terminate` on. Their handlers
    /// were dropped. Clients that half-close behind a request and wait are answered if
    /// [`Serve::http`](crate::Serve::http) is given a builder with `half_close(true)`.
    pub abandoned: usize,
    /// Handlers that were inside a poll at the end, blocking their thread: nothing can stop them from
    /// outside. Their sockets are closed all the same.
    pub unresponsive: usize,
    /// [`ShutdownGuard`](crate::ShutdownGuard)s still held at the end.
    pub guards_cut: usize,
    /// Connections that were found in the kernel's accept queue when the drain began, and served.
    pub accepted_late: usize,
    /// Connections that were reset in the kernel's accept queue, or just out of it, because nobody accepted
    /// them before the deadline.
    pub lost_in_queue: usize,
    /// Connections and listeners that were cut, and whose IO was still inside its own drop at the end: a
    /// drop that blocks is not waited for.
    pub unclosed: usize,
    /// How long the lame-duck phase took.
    pub lame_duck: Duration,
    /// How long the drain took.
    pub draining: Duration,
    /// How long forcing took.
    pub forcing: Duration,
    /// Who was cut, 64 at most: connections first, then guards where there is room for them.
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
    /// ended for what the other side did, or did not do.
    pub fn is_clean(&self) -> bool {
        self.forced == 0
            && self.unresponsive == 0
            && self.guards_cut == 0
            && self.lost_in_queue == 0
            && self.unclosed == 0
    }

    /// All connections together.
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_clean() {
            "cleanly"
        } else {
            "by force"
        };
        let total = self.lame_duck + self.draining + self.forcing;
        write!(
            f,
            "terminated {how} in {total:.1?}: {} connections",
            self.connections()
        )?;
        let counts = [
            (self.idle, "idle"),
            (self.finished, "finished"),
            (self.closed_by_peer, "closed by peer"),
            (self.stalled, "stalled"),
            (self.upgraded, "upgraded"),
            (self.left, "left"),
            (self.detached, "detached"),
            (self.forced, "forced"),
        ];
        let counts: Vec<_> = counts
            .into_iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{n} {what}"))
            .collect();
        if !counts.is_empty() {
            write!(f, " ({})", counts.join(", "))?;
        }
        for (n, what) in [
            (self.accepted_late, "accepted late"),
            (self.answered_at_deadline, "answered 503 at the deadline"),
            (self.abandoned, "requests whose clients left"),
            (self.unresponsive, "unresponsive handlers"),
            (self.guards_cut, "guards left"),
            (self.lost_in_queue, "lost in the accept queue"),
            (self.unclosed, "not closed"),
        ] {
            if n > 0 {
                write!(f, ", {n} {what}")?;
            }
        }
        for straggler in &self.stragglers {
            write!(f, "\n  {straggler}")?;
        }
        let (guards, connections): (Vec<_>, Vec<_>) =
            (self.stragglers.iter()).partition(|it| it.protocol == Protocol::Guard);
        // One with several requests is listed several times.
        let connections: BTreeSet<_> = connections.iter().map(|it| it.connection).collect();
        let unlisted = self.forced.saturating_sub(connections.len())
            + self.guards_cut.saturating_sub(guards.len());
        if unlisted > 0 && !self.stragglers.is_empty() {
            write!(f, "\n  and {unlisted} more")?;
        }
        Ok(())
    }
}

/// Who holds a termination up: a request, or a connection without one, or a
/// [`ShutdownGuard`](crate::ShutdownGuard).
///
/// In a [`Report`] what was cut, or a handler that did not yield; from
/// [`in_hand`](crate::Terminator::in_hand) what would be if it were time now.
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
    /// The method of the request in hand, where it is known; of an upgraded connection, that of the
    /// request that upgraded it.
    pub method: Option<String>,
    /// The path of the same request, where it is known: without its query, or, of a `CONNECT`, host and
    /// port. What is not printable ASCII is escaped. It may be cut short: of an HTTP/1 request the first
    /// 80 bytes are kept, of an HTTP/2 one the first 256 of its path are shown.
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
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            return write!(f, "guard taken at {place}, held for {:.1?}", self.age);
        }
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
        write!(f, ", open for {:.1?}", self.age)?;
        if self.unresponsive {
            f.write_str(", its handler did not yield")?;
        }
        Ok(())
    }
}

/// What a [`Straggler`] speaks, or spoke when it was cut.
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
    fn reads_well_in_a_log() {
        let mut report = Report::default();
        assert_eq!(
            report.to_string(),
            "terminated cleanly in 0.0ns: 0 connections"
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
        });
        assert_eq!(
            report.to_string(),
            "terminated by force in 1.5s: 6 connections (3 idle, 2 finished, 1 forced), 1 unresponsive handlers\n  \
             connection 9 from 127.0.0.1:80, HTTP/1, GET /slow, open for 2.0s, its handler did not yield"
        );
        assert!(!report.is_clean());
        assert_eq!(report.connections(), 6);

        let guard = Straggler {
            connection: 0,
            peer: None,
            protocol: Protocol::Guard,
            method: None,
            path: None,
            place: Some("src/jobs.rs:10:5".into()),
            age: Duration::from_secs(2),
            unresponsive: false,
        };
        assert_eq!(
            guard.to_string(),
            "guard taken at src/jobs.rs:10:5, held for 2.0s"
        );
        // Each kind for itself: 1 of 1 connection and 1 of 4 guards are listed.
        report.stragglers.push(guard);
        report.guards_cut = 4;
        let shown = report.to_string();
        assert!(shown.ends_with("held for 2.0s\n  and 3 more"), "{shown}");
        // Two requests of one connection are one.
        report.stragglers.push(report.stragglers[0].clone());
        report.forced = 3;
        let shown = report.to_string();
        assert!(shown.ends_with("\n  and 5 more"), "{shown}");
    }
}
