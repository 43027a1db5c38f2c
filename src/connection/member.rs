//! A connection as the driver sees it.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::fate::Why;
use super::name::Name;
use super::shared::Shared;
use super::socket::Seen;
use super::state::State;
use crate::clock::Moment;
use crate::driver::foreign;
use crate::registry::{Cut, Member, Snapshot};
use crate::report::{Protocol, Straggler};

/// A connection whose lock was held when it should have been woken is tried again then.
const RETRY: Duration = Duration::from_millis(1);

/// A task that is inside of its poll for so long is not about to leave it.
const STUCK: Duration = Duration::from_millis(250);

impl Member for Shared {
    fn wake(&self) {
        // Taken out under the lock, woken after it (invariant 7). Before the first poll there is
        // nobody to wake, and that poll will see the phase.
        self.reminded();
        let waker = self.poller.lock().waker().cloned();
        let is_watched = waker.is_some();
        if let Some(waker) = waker {
            foreign::call(|| waker.wake());
        }
        if is_watched && !self.has(State::UPGRADED) {
            return;
        }
        // Nobody watches it: an upgraded stream, or one served without our help. Whoever watches one that is
        // being upgraded may no longer be who reads and writes. If somebody is inside its IO, it is tried
        // again.
        if !self.transport.wake() {
            let at = self.registry.clock.now().after(RETRY);
            self.registry.wake_at(at, self.id());
        }
    }

    fn grow_old(&self) {
        self.terminate(Why::Old);
    }

    fn lame_duck(&self) {
        if !self.is_to_be_told_by_lame_duck() {
            return;
        }
        let due = self.lame_duck_due();
        if self.registry.clock.now() < due {
            self.remind(due);
        } else if self.has_asked() {
            self.terminate(Why::LameDuck);
        } else {
            // Its task gives it time for that.
            self.wake();
        }
    }

    fn cut(self: Arc<Self>, least: Cut) -> bool {
        let how = self.registry.how_to_cut(self.forced_since()).max(least);
        self.transport.cut(how, &self)
    }

    fn unsent(&self) -> Option<u32> {
        self.transport.unsent()
    }

    fn close_idle(self: Arc<Self>, now: Moment) -> bool {
        // What nobody has accepted is its listener's.
        // First whether it is quiet: how long it has been, is said before.
        let is_due = |seen| self.is_quiet(seen, now) && now >= self.due_from_outside();
        if self.has(State::QUEUED) || !self.transport.close_if(&is_due, &self) {
            return false;
        }
        // Its task may never be polled again.
        self.leave();
        true
    }

    fn on_runtime(&self, f: &mut dyn FnMut(&Handle)) {
        if let Some(runtime) = self.poller.lock().runtime() {
            f(runtime);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let streams = self.streams_in_hand();
        if state.has(State::UPGRADED) {
            Snapshot::Upgraded
        } else if state.is_idle(streams > 0)
            && self.transport.is_tracked()
            && !self.transport.may_be_half_record()
        {
            Snapshot::Idle
        } else {
            // hyper lets go of an answer in one piece before its client takes it.
            let unread = streams == 0 && state.has(State::STREAMS) && !state.has(State::TUNNELS);
            let in_hand = unread || state.has_request(self.is_inside());
            Snapshot::Busy {
                requests: streams as usize + usize::from(in_hand),
            }
        }
    }

    fn is_open(&self) -> bool {
        self.transport.is_open()
    }

    fn was_cut(&self) -> bool {
        self.was_forced()
    }

    fn is_lost(&self) -> bool {
        self.has(State::QUEUED)
    }

    fn is_in_a_poll(&self) -> bool {
        self.is_inside() || self.any_stream_is_inside()
    }

    fn stragglers(&self, now: Moment, most: usize) -> Vec<Straggler> {
        if self.is_lost() {
            return Vec::new();
        }
        let (peer, protocol) = (self.transport.peer(), self.protocol());
        let straggler = |((method, path), unresponsive)| Straggler {
            connection: self.id(),
            peer,
            protocol,
            method,
            path,
            place: None,
            age: now.since(self.born()),
            unresponsive,
            detached: false,
        };
        self.named(most).into_iter().map(straggler).collect()
    }
}

impl Shared {
    /// Under the lock of its socket, as it may have been busy since. HTTP/2 that has not been told its last stream has the time in
    /// which its peer is to acknowledge the first GOAWAY, also if its task has yet to say that.
    fn due_from_outside(&self) -> Moment {
        let state = self.state();
        let idle = self.idle_due(self.quiet_since());
        if state.has(State::HTTP2) && !state.has(State::GONE_AWAY) {
            // Nor before its turn.
            self.stall_due().max(idle)
        } else {
            idle
        }
    }

    /// Whether it is idle as seen from outside. Called under the lock of its socket, by which nobody reads
    /// meanwhile.
    fn is_quiet(&self, seen: Seen, now: Moment) -> bool {
        let seen = match seen {
            Seen::Never => true,
            // What they are may not be known yet.
            Seen::Bytes => false,
            Seen::Nothing => self.has(State::SEEN),
        };
        seen && self.state().is_idle(self.has_streams()) && !self.is_at_work(now)
    }

    /// Its task is inside of its poll, and about to act upon what it has read, be it with no more than a GOAWAY: unless it has
    /// been for a while, and is stuck there. Under the lock, before which it said that it is inside.
    fn is_at_work(&self, now: Moment) -> bool {
        let since = self.inside_since(now);
        since.is_some_and(|since| now < since.after(STUCK))
    }

    fn protocol(&self) -> Protocol {
        match self.state() {
            state if state.has(State::UPGRADED) => Protocol::Upgraded,
            state if state.has(State::HTTP2) => Protocol::Http2,
            state if state.has(State::HTTP1) => Protocol::Http1,
            _ => Protocol::Unknown,
        }
    }

    /// Method and path of so many requests in hand, and whether their handlers are inside a poll.
    fn named(&self, most: usize) -> Vec<(Name, bool)> {
        let mut named = self.names_of_streams(most);
        let state = self.state();
        if !state.has(State::HTTP2) && (state.has_response() || !state.is_between()) {
            named.push((self.name.name(), self.is_inside()));
        }
        if named.is_empty() && (state.has(State::STREAMS) || state.is_half_tunnel()) {
            // A tunnel, if it is one.
            named.extend(self.name_of_tunnel().map(|name| (name, false)));
        }
        if named.is_empty() {
            // What makes its service may be inside a poll.
            named.push((Name::default(), self.is_inside()));
        }
        named
    }
}
