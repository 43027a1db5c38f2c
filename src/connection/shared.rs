//! What the parts of one connection share: the socket below, the plaintext above it, the service,
//! each request, and the future that polls it all.
//!
//! A request writes to nothing but this. The words are atomics because the driver reads them from
//! its own thread, and because HTTP/2 requests run in tasks of their own; on HTTP/1 a single task
//! writes them, so relaxed order is enough except where said.

use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use http::{Method, Uri};

use super::head::HeadCopy;
use super::socket::Transport;
use super::state::{BodyLength, Reading};
use crate::clock::Moment;
use crate::phase::Phase;
use crate::registry::{Cut, Member, Outcome, Registry, Snapshot, lock};
use crate::report::{Protocol, Straggler};

/// The state of a connection and, behind it, its socket.
pub(crate) struct Shared<T: ?Sized = dyn Transport> {
    pub(crate) core: Core,
    pub(crate) transport: T,
}

pub(crate) struct Core {
    pub(crate) registry: Arc<Registry>,
    id: u64,
    born: Moment,
    /// Requests in flight, and what else keeps the connection in the count, in units of [`PART`].
    held: AtomicU32,
    reading: AtomicU64,
    /// When the last response was finished, or the connection accepted.
    quiet_since: AtomicU64,
    /// During the drain: when bytes last came in, or a request ended.
    heard: AtomicU64,
    /// Bytes of HTTP/2 response bodies that were given to h2, and that h2 has written.
    given: AtomicU64,
    written: AtomicU64,
    pub(super) write_blocked: AtomicBool,
    /// TLS: the socket's last bytes were no whole record.
    pub(super) half_record: AtomicBool,
    /// A response head said `connection: close`, or HTTP/2 was told to go away.
    pub(super) told: AtomicBool,
    /// HTTP/2: a PING was acknowledged since.
    ponged: AtomicBool,
    pub(super) upgraded: AtomicBool,
    /// How far the response head of an HTTP/1 request is: see [`Owed`].
    owed: AtomicU8,
    /// An HTTP/1 handler is inside a poll.
    pub(super) polling: AtomicBool,
    pub(super) detached: AtomicBool,
    /// How the connection ended, where somebody knows better than [`Core::outcome`] can tell.
    ended: AtomicU8,
    head: HeadCopy,
    /// The task that polls the connection, from the first poll on.
    waker: Mutex<Option<Waker>>,
    /// HTTP/2 requests in flight. Slots are used again, so that a request allocates nothing.
    streams: Mutex<Vec<Arc<Stream>>>,
}

/// What a [`Part`] adds to `Core::held`: more than there can be requests on one connection.
const PART: u32 = 1 << 24;

/// Whether an HTTP/1 request is without an answer, so that a `503` may still go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// The handler has not answered.
    Head,
    /// It has, but that may not have been written.
    Write,
}

/// An HTTP/2 request in flight.
#[derive(Default)]
pub(super) struct Stream {
    pub(super) polling: AtomicBool,
    taken: AtomicBool,
    name: Mutex<Option<(Method, Uri)>>,
}

/// What the idle test says of a connection that asked for input and got none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Something is in hand; its end will be noticed.
    Busy,
    /// Ask again then.
    Until(Moment),
    /// Idle as far as can be told without a look at the socket.
    Idle,
    /// It owes us bytes and has sent none for too long.
    Stalled,
}

impl<T: Transport + 'static> Shared<T> {
    /// Registers, with one [`Part`] that the caller holds.
    pub(super) fn register(registry: &Arc<Registry>, transport: T) -> Arc<Self> {
        let now = registry.clock.now();
        let id = registry.next_id();
        let shared = Arc::new(Self {
            core: Core {
                registry: Arc::clone(registry),
                id,
                born: now,
                held: AtomicU32::new(PART),
                reading: AtomicU64::new(Reading::NEW.pack()),
                quiet_since: AtomicU64::new(now.as_micros()),
                heard: AtomicU64::new(now.as_micros()),
                given: AtomicU64::new(0),
                written: AtomicU64::new(0),
                write_blocked: AtomicBool::new(false),
                half_record: AtomicBool::new(false),
                told: AtomicBool::new(false),
                ponged: AtomicBool::new(false),
                upgraded: AtomicBool::new(false),
                owed: AtomicU8::new(Owed::Nothing as u8),
                polling: AtomicBool::new(false),
                detached: AtomicBool::new(false),
                ended: AtomicU8::new(0),
                head: HeadCopy::default(),
                waker: Mutex::new(None),
                streams: Mutex::new(Vec::new()),
            },
            transport,
        });
        registry.join(id, Arc::clone(&shared) as Arc<dyn Member>);
        shared
    }
}

impl<T: Transport + ?Sized> Shared<T> {
    /// What the idle test says now, on the connection's own word alone.
    pub(super) fn verdict(&self, now: Moment) -> Verdict {
        let core = &self.core;
        let registry = &core.registry;
        if core.upgraded.load(Relaxed) || core.requests() > 0 || core.write_blocked.load(Relaxed) {
            return Verdict::Busy;
        }
        let drain = registry.drain_began();
        let (due, then) = match core.reading() {
            Reading::Http2 => {
                // It owes us the acknowledgment of the PING that follows the GOAWAY. After it h2
                // knows when to close, and what is open (a tunnel, say) may be silent.
                let owes = core.told.load(Relaxed) && !core.ponged.load(Relaxed);
                if !owes || core.given.load(SeqCst) > core.written.load(SeqCst) {
                    return Verdict::Busy;
                }
                (core.stall_due(drain), Verdict::Stalled)
            }
            reading if reading.is_between() && !core.half_record.load(Relaxed) => {
                let quiet = Moment::from_micros(core.quiet_since.load(Relaxed));
                (
                    registry.config.idle_due(core.id, quiet, drain),
                    Verdict::Idle,
                )
            }
            _ => (core.stall_due(drain), Verdict::Stalled),
        };
        if now >= due {
            then
        } else {
            Verdict::Until(due)
        }
    }
}

impl Core {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn phase(&self) -> Phase {
        self.registry.phase()
    }

    pub(super) fn reading(&self) -> Reading {
        Reading::unpack(self.reading.load(Relaxed))
    }

    pub(super) fn requests(&self) -> u32 {
        self.held.load(SeqCst) % PART
    }

    /// Plaintext came in.
    pub(super) fn read(&self, bytes: &[u8]) {
        let reading = self.reading();
        match reading {
            Reading::Fresh(0) | Reading::Between => self.head.start(bytes),
            Reading::Fresh(_) | Reading::Head(_) => self.head.append(bytes),
            Reading::Body(left) => {
                let next = usize::try_from(left)
                    .ok()
                    .and_then(|left| bytes.get(left..));
                if let Some(next) = next.filter(|next| !next.is_empty()) {
                    self.head.start(next);
                }
            }
            _ => {}
        }
        self.set_reading(reading.read(bytes));
        if self.phase() >= Phase::Draining {
            self.touch();
        }
    }

    /// Nothing is in hand: every response has been written out, and none is awaited.
    pub(super) fn settle(&self) -> Moment {
        let now = self.registry.clock.now();
        self.quiet_since.store(now.as_micros(), Relaxed);
        self.set_reading(self.reading().settled());
        now
    }

    /// The service is called with a request that has such a body.
    pub(super) fn called(&self, body: BodyLength) {
        let reading = self.reading();
        if !matches!(reading, Reading::Parsed { .. }) {
            // The head came together with an earlier one and was not copied.
            self.head.forget();
        }
        self.set_reading(reading.called(body));
    }

    /// An HTTP/2 peer has acknowledged a PING.
    pub(super) fn ponged(&self) {
        if self.told.load(Relaxed) {
            self.ponged.store(true, Relaxed);
        }
    }

    pub(super) fn data_given(&self, bytes: usize) {
        self.given.fetch_add(bytes as u64, SeqCst);
    }

    pub(super) fn data_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, SeqCst);
    }

    /// Starts the stall timeout anew.
    pub(super) fn touch(&self) {
        self.heard
            .store(self.registry.clock.now().as_micros(), Relaxed);
    }

    /// What has been said is out.
    pub(super) fn head_written(&self) {
        if self.owed.load(Relaxed) == Owed::Write as u8 {
            self.owed.store(Owed::Nothing as u8, SeqCst);
        }
    }

    pub(super) fn remind(&self, at: Moment) {
        self.registry.remind(at, self.id);
    }

    /// What is left of a bound on idleness.
    pub(super) fn idle_left(&self, bound: Duration) -> Duration {
        let quiet = Moment::from_micros(self.quiet_since.load(Relaxed));
        quiet.after(bound).since(self.registry.clock.now())
    }

    pub(super) fn forget_waker(&self) {
        let waker = lock(&self.waker).take();
        drop(waker);
    }

    pub(super) fn set_waker(&self, waker: &Waker) {
        let old = lock(&self.waker).replace(waker.clone());
        drop(old);
    }

    pub(super) fn end(&self, outcome: Outcome) {
        // Who says it first is right: what comes later is a consequence.
        let _ = self
            .ended
            .compare_exchange(0, outcome as u8 + 1, Relaxed, Relaxed);
    }

    pub(super) fn stream(&self, method: &Method, uri: &Uri) -> Arc<Stream> {
        let mut streams = lock(&self.streams);
        let free = streams.iter().find(|stream| !stream.taken.load(Relaxed));
        let stream = free.cloned().unwrap_or_else(|| {
            streams.push(Arc::default());
            Arc::clone(&streams[streams.len() - 1])
        });
        stream.taken.store(true, Relaxed);
        *lock(&stream.name) = Some((method.clone(), uri.clone()));
        stream
    }

    fn set_reading(&self, reading: Reading) {
        self.reading.store(reading.pack(), Relaxed);
    }

    fn stall_due(&self, drain: Moment) -> Moment {
        let heard = Moment::from_micros(self.heard.load(Relaxed));
        heard.max(drain).after(self.registry.config.stall_timeout)
    }

    fn outcome(&self) -> Outcome {
        match self.ended.load(Relaxed) {
            n if n == Outcome::Idle as u8 + 1 => Outcome::Idle,
            n if n == Outcome::Stalled as u8 + 1 => Outcome::Stalled,
            n if n == Outcome::Left as u8 + 1 => Outcome::Left,
            n if n == Outcome::Forced as u8 + 1 && self.detached.load(SeqCst) => Outcome::Detached,
            n if n == Outcome::Forced as u8 + 1 => Outcome::Forced,
            _ if self.upgraded.load(Relaxed) => Outcome::Upgraded,
            _ if self.told.load(Relaxed) => Outcome::Finished,
            _ => Outcome::ClosedByPeer,
        }
    }

    /// Counts change in `Drop` only (invariant 6): called by that of [`Part`] and [`InFlight`].
    fn release(&self, what: u32) {
        if self.held.fetch_sub(what, SeqCst) == what {
            let outcome = self.outcome();
            tracing::debug!(connection = self.id, ?outcome, "connection closed");
            self.registry
                .leave(self.id, outcome, self.detached.load(SeqCst));
        }
    }

    fn protocol(&self) -> Protocol {
        if self.upgraded.load(Relaxed) {
            return Protocol::Upgraded;
        }
        match self.reading() {
            Reading::Fresh(_) => Protocol::Unknown,
            Reading::Http2 => Protocol::Http2,
            _ => Protocol::Http1,
        }
    }

    /// The request in hand, the one that blocks its thread if there is one, and whether it does.
    fn request(&self) -> (Option<String>, Option<String>, bool) {
        if self.reading() != Reading::Http2 {
            let (method, path) = self.head.name();
            return (method, path, self.polling.load(SeqCst));
        }
        let streams = lock(&self.streams);
        let taken = || streams.iter().filter(|stream| stream.taken.load(Relaxed));
        let blocking = taken().find(|stream| stream.polling.load(SeqCst));
        let Some(stream) = blocking.or_else(|| taken().next()) else {
            return (None, None, false);
        };
        let name = lock(&stream.name);
        let method = name.as_ref().map(|(method, _)| method.to_string());
        let path = name.as_ref().map(|(_, uri)| uri.path().to_owned());
        (method, path, blocking.is_some())
    }
}

// ===== what the driver asks =====

impl<T: Transport> Member for Shared<T> {
    fn wake(&self) -> bool {
        // Taken out under the lock, woken after it (invariant 7). Before the first poll there is
        // nobody to wake, and that poll will see the phase.
        let waker = lock(&self.core.waker).clone();
        match waker {
            Some(waker) => {
                waker.wake();
                true
            }
            // Nobody watches it: an upgraded stream, or one served without our help.
            None => self.transport.wake(),
        }
    }

    fn cut(&self, how: Cut) {
        let core = &self.core;
        let owed = core.owed.load(SeqCst) != Owed::Nothing as u8;
        if how == Cut::Soft && owed && core.registry.config.answer_at_deadline {
            return;
        }
        if self.transport.cut(how) {
            tracing::debug!(connection = core.id, "socket closed by force");
            core.end(Outcome::Forced);
            self.socket_closed();
        }
    }

    fn snapshot(&self) -> Snapshot {
        let core = &self.core;
        let requests = core.requests() as usize;
        if core.upgraded.load(Relaxed) {
            Snapshot::Upgraded
        } else if requests == 0
            && (core.reading() == Reading::Http2 || core.reading().is_between())
            && !core.write_blocked.load(Relaxed)
        {
            Snapshot::Idle
        } else {
            Snapshot::Busy { requests }
        }
    }

    fn straggler(&self, now: Moment) -> Straggler {
        let core = &self.core;
        let (method, path, unresponsive) = core.request();
        let in_hand = core.requests() > 0 || !core.reading().expects_head();
        Straggler {
            connection: core.id,
            peer: self.transport.peer(),
            protocol: core.protocol(),
            method: method.filter(|_| in_hand),
            path: path.filter(|_| in_hand),
            age: now.since(core.born),
            unresponsive: unresponsive && core.requests() > 0,
        }
    }
}

// ===== what keeps a connection in the count =====

/// Something of the connection that is alive: its socket, or the future that polls it.
pub(super) struct Part(Arc<Shared>);

impl Part {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.core.held.fetch_add(PART, SeqCst);
        Self(Arc::clone(shared))
    }

    /// The one that [`Shared::register`] made.
    pub(super) fn first(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.0.core.release(PART);
    }
}

impl<T: Transport + ?Sized> Shared<T> {
    /// The socket was closed by its owner: the part that `register` made goes.
    pub(super) fn socket_closed(&self) {
        self.core.release(PART);
    }
}

/// A request, from its call until its response is finished or dropped.
pub(super) struct InFlight {
    shared: Arc<Shared>,
    /// On HTTP/2.
    stream: Option<Arc<Stream>>,
}

impl InFlight {
    pub(super) fn enter(shared: &Arc<Shared>, http2: Option<(&Method, &Uri)>) -> Self {
        let core = &shared.core;
        core.held.fetch_add(1, SeqCst);
        let stream = http2.map(|(method, uri)| core.stream(method, uri));
        if stream.is_none() {
            core.owed.store(Owed::Head as u8, SeqCst);
        }
        Self {
            shared: Arc::clone(shared),
            stream,
        }
    }

    pub(super) fn core(&self) -> &Core {
        &self.shared.core
    }

    pub(super) fn is_http2(&self) -> bool {
        self.stream.is_some()
    }

    /// Set while the handler or its body is polled: who blocks in there can be named.
    pub(super) fn polling(&self, yes: bool) {
        let polling = self
            .stream
            .as_ref()
            .map_or(&self.core().polling, |stream| &stream.polling);
        polling.store(yes, Relaxed);
    }

    pub(super) fn head_sent(&self) {
        if self.stream.is_none() {
            self.core().owed.store(Owed::Write as u8, SeqCst);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Also after a panic in the handler.
        self.polling(false);
        self.head_sent();
        if let Some(stream) = &self.stream {
            let name = lock(&stream.name).take();
            drop(name);
            stream.taken.store(false, Relaxed);
        }
        let core = self.core();
        if core.phase() >= Phase::Draining {
            core.touch();
        }
        core.release(1);
    }
}
