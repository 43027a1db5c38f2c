//! Requests that are counted apart from their connection's state: those of HTTP/2, which run in tasks
//! of their own, and those of a service that was wrapped by hand, of whose connection nothing else is
//! known.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};

use http::{Method, Request};
use hyper::body::Incoming;
use parking_lot::MutexGuard;
use tokio::runtime::Handle;

use super::fate::Why;
use super::name::{Asked, Name};
use super::service::asks;
use super::shared::Shared;
use super::state::State;
use crate::driver::runtimes::is_over;

/// Slots are used again, so that a request allocates nothing, and those that are free are known, so that
/// it costs the same beside any number of others.
#[derive(Default)]
pub(super) struct Streams {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// One that became a tunnel, on HTTP/2, if nothing was asked for since.
    tunnel: Option<Box<Asked>>,
    /// How many requests there were, if their number is limited.
    brought: u64,
}

impl Streams {
    #[cold]
    fn forget_tunnel(&mut self) {
        self.tunnel = None;
    }
}

struct Slot {
    /// Of the request that has it.
    name: Option<Asked>,
    stream: Arc<Stream>,
}

struct Stream {
    /// Its handler is inside a poll.
    inside: AtomicBool,
    /// Its slot.
    at: usize,
}

/// A request, from its call until its response is finished or dropped.
#[allow(clippy::struct_excessive_bools)] // of one request each
pub(super) struct Counted {
    shared: Arc<Shared>,
    stream: Arc<Stream>,
    http2: bool,
    /// On HTTP/1.
    asks: State,
    is_connect: bool,
    answered: bool,
    /// Its connection is to end behind it.
    last: bool,
}

impl Counted {
    pub(super) fn new(shared: &Arc<Shared>, http2: bool, request: &Request<Incoming>) -> Self {
        shared.hold();
        let version = if http2 { State::HTTP2 } else { State::HTTP1 };
        if !shared.has(version) {
            shared.set(version);
        }
        let asks = State(if http2 { 0 } else { asks(request) });
        if !http2 {
            // Of the response before.
            shared.clear(State::BY_CLOSE | State::OVER);
        }
        let name = Some(Asked::new(request.method(), request.uri()));
        let mut streams = shared.counted_apart();
        if streams.tunnel.is_some() {
            // Which of them holds the connection could not be told any more.
            streams.forget_tunnel();
        }
        let stream = if let Some(at) = streams.free.pop() {
            let slot = &mut streams.slots[at];
            slot.name = name;
            Arc::clone(&slot.stream)
        } else {
            let stream = Arc::new(Stream {
                inside: AtomicBool::new(false),
                at: streams.slots.len(),
            });
            streams.slots.push(Slot {
                name,
                stream: Arc::clone(&stream),
            });
            stream
        };
        drop(streams);
        Self {
            shared: Arc::clone(shared),
            stream,
            http2,
            asks,
            is_connect: request.method() == Method::CONNECT,
            answered: false,
            last: false,
        }
    }

    pub(super) fn is_the_last(&mut self) {
        self.last = true;
    }

    pub(super) fn asks(&self) -> State {
        self.asks
    }

    /// What follows on it is no HTTP, and is named by it.
    pub(super) fn upgrades(&self) {
        let streams = self.shared.counted_apart();
        let name = streams.slots[self.stream.at].name.clone();
        drop(streams);
        if let Some(asked) = name {
            self.shared.name.copy(&asked.head());
        }
    }

    /// A `CONNECT` of HTTP/2 has succeeded: hyper drops its body at once, and what follows on the stream is named by it.
    pub(super) fn tunnels(&self) {
        if self.is_connect {
            // Beside another, or a request, which of them holds the connection in the end can't be told.
            let alone = !self.shared.has(State::TUNNELS) && self.shared.streams_in_hand() == 1;
            self.shared.set(State::TUNNELS);
            let mut streams = self.shared.counted_apart();
            let name = streams.slots[self.stream.at].name.clone();
            streams.tunnel = name.filter(|_| alone).map(Box::new);
        }
    }

    /// It is answered in place of the handler: whether that is written can't be seen.
    pub(super) fn answered_late(&mut self) {
        self.answered = true;
        self.shared.count_answered();
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    /// Set while the handler or its body is polled: who blocks in there can be named.
    #[inline]
    pub(super) fn set_inside(&self, yes: bool) {
        self.stream.inside.store(yes, Relaxed);
    }

    /// There is a response head, or there will be none.
    pub(super) fn answered(&mut self) {
        self.answered = true;
    }

    #[cold]
    fn ends_late(&self) {
        if !self.answered && !self.stream.inside.load(Relaxed) {
            if is_runtime_over() {
                self.shared.ends_under_an_answer();
            } else {
                self.shared.abandon();
            }
        }
        self.shared.came_in();
    }
}

impl Drop for Counted {
    #[inline]
    fn drop(&mut self) {
        if !self.shared.is_left_alone() {
            self.ends_late();
        }
        // Also after a panic in the handler.
        self.set_inside(false);
        let mut streams = self.shared.counted_apart();
        let name = streams.slots[self.stream.at].name.take();
        streams.free.push(self.stream.at);
        drop(streams);
        drop(name);
        if self.last && !self.shared.has(State::UPGRADED) {
            self.shared.terminate(Why::Asked);
        }
        self.shared.let_go();
    }
}

/// Then it drops its tasks in any order, and that of a stream, which no client has left, perhaps before that of its connection, which
/// may even be polled in between.
fn is_runtime_over() -> bool {
    Handle::try_current().is_ok_and(|runtime| is_over(&runtime))
}

impl Shared {
    fn counted_apart(&self) -> MutexGuard<'_, Streams> {
        self.streams.get_or_init(Box::default).lock()
    }

    /// A request was called for, and their number is limited: after the last one the connection is to end. Gives whether that
    /// is up to whoever has its response.
    #[cold]
    pub(super) fn count_request(&self, http2: bool) -> bool {
        let mut streams = self.counted_apart();
        streams.brought += 1;
        let last = self.registry.config.max_requests <= Some(streams.brought);
        drop(streams);
        if last && http2 {
            self.terminate(Why::Asked);
        } else if last {
            // Unless it is an upgrade; and a stream is told by its own end, not at once.
            self.set(State::LAST);
        }
        last && !http2
    }

    /// Method and path of so many requests that are counted apart, and whether their handlers are inside a poll.
    pub(super) fn names_of_streams(&self, most: usize) -> Vec<(Name, bool)> {
        let Some(streams) = self.streams.get() else {
            return Vec::new();
        };
        let taken: Vec<_> = {
            let streams = streams.lock();
            let taken = streams.slots.iter().filter_map(|slot| {
                let inside = slot.stream.inside.load(SeqCst);
                slot.name.clone().map(|name| (name, inside))
            });
            taken.take(most).collect()
        };
        // Written out after the lock, which requests take.
        let named = taken.into_iter();
        named
            .map(|(asked, inside)| (asked.name(), inside))
            .collect()
    }

    /// Nothing is open any more.
    #[cfg(feature = "serve")]
    pub(super) fn tunnels_are_over(&self) {
        self.clear(State::TUNNELS);
        let tunnel = self.counted_apart().tunnel.take();
        drop(tunnel);
    }

    pub(super) fn name_of_tunnel(&self) -> Option<Name> {
        let tunnel = self.streams.get()?.lock().tunnel.clone();
        tunnel.map(|asked| asked.name())
    }

    pub(super) fn any_stream_is_inside(&self) -> bool {
        let Some(streams) = self.streams.get() else {
            return false;
        };
        let streams = streams.lock();
        streams.slots.iter().any(|it| it.stream.inside.load(SeqCst))
    }
}
