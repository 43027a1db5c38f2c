//! A live view of a terminator.

use std::fmt;

use crate::phase::Phase;
use crate::words::Count;

/// What a [`Terminator`](crate::Terminator) has in hand at one moment, from
/// [`stats`](crate::Terminator::stats).
///
/// It is gathered by walking the connections, so a request that ends meanwhile may be counted or
/// not; each connection is counted once.
///
/// # Examples
///
/// ```
/// # use http_terminator::Terminator;
/// let stats = Terminator::new().stats();
/// assert_eq!((stats.connections, stats.requests), (0, 0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// The phase when the walk began.
    pub phase: Phase,
    /// Listeners still open.
    pub listeners: usize,
    /// Tracked connections: `idle`, `busy` and `upgraded` together.
    pub connections: usize,
    /// Connections with nothing in hand.
    pub idle: usize,
    /// Connections with a request, part of a request, or an unfinished response.
    pub busy: usize,
    /// Connections that left HTTP by an upgrade or `CONNECT`.
    pub upgraded: usize,
    /// Requests whose response is not finished, on all connections together. An HTTP/2 response in one piece is out of
    /// hyper's hands before its client has taken it: of those a connection counts one, if it has no other request.
    pub requests: usize,
    /// [`ShutdownGuard`](crate::ShutdownGuard)s alive, those inside [`spawn`](crate::Terminator::spawn)ed work included.
    pub guards: usize,
    /// Connections tracked since the terminator was built.
    pub accepted: u64,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({} idle, {} busy, {} upgraded), {}, {}, {}, {} accepted so far",
            self.phase,
            Count(self.connections, "connection", "connections"),
            self.idle,
            self.busy,
            self.upgraded,
            Count(self.requests, "request", "requests"),
            Count(self.guards, "guard", "guards"),
            Count(self.listeners, "listener", "listeners"),
            self.accepted
        )
    }
}
