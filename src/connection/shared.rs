//! What the parts of one connection share: the socket below, the plaintext above it, the service,
//! each request, and the future that polls it all.
//!
//! A request writes to nothing but this. The words are atomics because the driver reads them from
//! its own thread, and because HTTP/2 requests run in tasks of their own; on HTTP/1 a single task
//! writes them, so relaxed order is enough except where said.

use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed, SeqCst},
};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use http::{Method, Request, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::level_filters::LevelFilter;

use super::head::{self, HeadCopy, Name};
#[cfg(feature = "serve")]
use super::http2::Open;
use super::socket::{Seen, Transport};
use super::state::{BodyLength, Reading, Word, is_whole_head};
use crate::clock::Moment;
use crate::foreign;
use crate::phase::Phase;
use crate::registry::{Cut, Member, Outcome, Registry, Sleeper, Snapshot};
use crate::report::{Protocol, Straggler};

/// The state of a connection.
pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    id: u64,
    born: Moment,
    /// Requests in flight, and what else keeps the connection in the count, in units of [`PART`].
    held: AtomicU32,
    reading: AtomicU64,
    /// During the drain: when bytes last came in, or a request ended.
    heard: AtomicU64,
    /// When the driver will wake the connection, at the earliest.
    reminder: AtomicU64,
    /// HTTP/2 streams on which we have not written the last frame. A response's body is dropped long
    /// before that, as h2 keeps what the peer's window does not let out.
    open_streams: AtomicU32,
    /// HTTP/2: part of a head has come.
    half_head: AtomicBool,
    /// Bytes came in, or a request was called, since the connection was last found quiet.
    stirred: AtomicBool,
    pub(super) write_blocked: AtomicBool,
    /// The bytes of its requests are seen as they pass.
    #[cfg(feature = "serve")]
    seen: AtomicBool,
    /// Something other than a plain request line came in first.
    #[cfg(feature = "serve")]
    pub(super) spoke: AtomicBool,
    /// Its service is being made, or TLS shakes hands.
    pub(super) opening: AtomicBool,
    /// TLS: the socket's last bytes were no whole record.
    pub(super) half_record: AtomicBool,
    /// A response head said `connection: close`, or HTTP/2 was told to go away.
    pub(super) told: AtomicBool,
    /// HTTP/2: a PING was acknowledged since.
    ponged: AtomicBool,
    pub(super) upgraded: AtomicBool,
    /// How far the response head of an HTTP/1 request is: see [`Owed`].
    owed: AtomicU8,
    /// What of the HTTP/1 request in hand matters when its response is there, and how that ends:
    /// [`CONNECT`], [`HEAD`], [`HTTP10`], [`BY_CLOSE`], [`OVER`].
    asked: AtomicU8,
    /// The other side's end-of-file was read, or a read failed.
    pub(super) peer_ended: AtomicBool,
    /// This side was shut down before.
    pub(super) ended_first: AtomicBool,
    /// Its owner has dropped the future that polls it.
    pub(super) given_up: AtomicBool,
    /// An HTTP/1 handler is inside a poll.
    pub(super) polling: AtomicBool,
    /// The IO is not of those whose flush is known to do nothing.
    pub(super) flushes: AtomicBool,
    /// How its socket is closed: see [`Closing`].
    closing: AtomicU8,
    /// How the connection ended, where somebody knows better than [`Shared::outcome`] can tell.
    ended: AtomicU8,
    head: HeadCopy,
    poller: Mutex<Poller>,
    /// HTTP/2 requests in flight. Boxed, as most connections have none.
    streams: OnceLock<Box<Mutex<Streams>>>,
    pub(super) transport: Arc<dyn Transport>,
}

/// A connection whose lock was held when it should have been woken is tried again then.
const RETRY: Duration = Duration::from_millis(1);

/// What a [`Part`] adds to `Core::held`: more than there can be requests on one connection.
const PART: u32 = 1 << 24;

const CONNECT: u8 = 1;
const HTTP10: u8 = 2;
const HEAD: u8 = 4;
/// Only the close tells the end of the response, and that end is not out.
const BY_CLOSE: u8 = 8;
/// All of that response's body is with hyper.
const OVER: u8 = 16;

/// Who polls a connection.
#[derive(Default)]
struct Poller {
    /// Its task, from the first poll on.
    waker: Option<Waker>,
    /// The runtime on which it was polled last, or accepted.
    runtime: Option<Handle>,
}

/// How a socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// As its owner does it.
    Plainly,
    /// The connection is idle, and is dropped right after it was shut down, which a socket need not be.
    AtOnce,
    /// When its owner drops it, the driver closes it in stages.
    InStages,
}

/// Whether an HTTP/1 request is without an answer, so that a `503` may still go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// The handler has not answered.
    Head,
    /// It has, but that may not have been written.
    Write,
    /// The same, and it is a `503` in place of the handler's.
    Late,
    /// The handler has not answered, and the answer before may not have been written.
    Behind,
}

/// HTTP/2 requests in flight. Slots are used again, so that a request allocates nothing, and those
/// that are free are known, so that it costs the same beside any number of others.
#[derive(Default)]
struct Streams {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

struct Slot {
    /// Of the request that has it.
    name: Option<(Method, Uri)>,
    stream: Arc<Stream>,
}

/// An HTTP/2 request in flight.
pub(super) struct Stream {
    pub(super) polling: AtomicBool,
    answered: AtomicBool,
    /// Its slot.
    at: usize,
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

impl Shared {
    /// Registers, with one [`Part`] that the caller holds.
    pub(super) fn register(registry: &Arc<Registry>, transport: Arc<dyn Transport>) -> Arc<Self> {
        let now = registry.clock.now();
        let id = registry.next_id();
        let shared = Arc::new(Self {
            registry: Arc::clone(registry),
            id,
            born: now,
            held: AtomicU32::new(PART),
            reading: AtomicU64::new(Reading::NEW.pack()),
            heard: AtomicU64::new(now.as_micros()),
            reminder: AtomicU64::new(Moment::NEVER.as_micros()),
            open_streams: AtomicU32::new(0),
            half_head: AtomicBool::new(false),
            stirred: AtomicBool::new(false),
            write_blocked: AtomicBool::new(false),
            #[cfg(feature = "serve")]
            seen: AtomicBool::new(false),
            #[cfg(feature = "serve")]
            spoke: AtomicBool::new(false),
            opening: AtomicBool::new(false),
            half_record: AtomicBool::new(false),
            told: AtomicBool::new(false),
            ponged: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            owed: AtomicU8::new(Owed::Nothing as u8),
            asked: AtomicU8::new(0),
            peer_ended: AtomicBool::new(false),
            ended_first: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            polling: AtomicBool::new(false),
            flushes: AtomicBool::new(true),
            closing: AtomicU8::new(Closing::Plainly as u8),
            ended: AtomicU8::new(0),
            head: HeadCopy::default(),
            poller: Mutex::default(),
            streams: OnceLock::new(),
            transport,
        });
        registry.join(id, Arc::clone(&shared) as Arc<dyn Member>);
        shared
    }

    /// Something is in hand whose end will be noticed.
    pub(super) fn is_busy(&self) -> bool {
        self.upgraded.load(Relaxed) || self.requests() > 0 || self.write_blocked.load(Relaxed)
    }

    /// What the idle test says now, on the connection's own word alone, of one that has been quiet
    /// since then.
    pub(super) fn verdict(&self, now: Moment, quiet: Moment) -> Verdict {
        if self.is_busy() {
            return Verdict::Busy;
        }
        let (due, then) = match self.reading() {
            Reading::Http2 => {
                // It owes us the acknowledgment of the PING that follows the GOAWAY. After it h2
                // knows when to close.
                let owes = self.told.load(Relaxed) && !self.ponged.load(Relaxed);
                if !owes || self.open_streams.load(Relaxed) > 0 {
                    return Verdict::Busy;
                }
                (self.stall_due(), Verdict::Stalled)
            }
            reading if reading.is_between() && !self.half_record.load(Relaxed) => {
                (self.idle_due(quiet), Verdict::Idle)
            }
            _ => (self.stall_due(), Verdict::Stalled),
        };
        if now >= due {
            then
        } else {
            Verdict::Until(due)
        }
    }

    pub(super) fn close(&self, how: Closing) {
        self.closing.store(how as u8, Relaxed);
    }

    pub(super) fn closes(&self, how: Closing) -> bool {
        self.closing.load(Relaxed) == how as u8
    }

    /// When it was accepted.
    #[cfg(feature = "serve")]
    pub(super) fn born(&self) -> Moment {
        self.born
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    #[inline]
    pub(super) fn phase(&self) -> Phase {
        self.registry.phase()
    }

    pub(super) fn reading(&self) -> Reading {
        Reading::unpack(self.reading.load(Relaxed))
    }

    #[inline]
    pub(super) fn requests(&self) -> u32 {
        self.held.load(Relaxed) % PART
    }

    /// Bytes of TLS came in, and their end is that of a record, or not.
    pub(super) fn raw(&self, half_record: bool) {
        self.half_record.store(half_record, Relaxed);
        #[cfg(feature = "serve")]
        self.spoke.store(true, Relaxed);
        self.came_in();
    }

    /// This was read, the first of HTTP.
    #[cfg(feature = "serve")]
    pub(super) fn http_begins(&self, plaintext: &[u8]) {
        let half_record = self.transport.http_begins(plaintext);
        self.half_record.store(half_record, Relaxed);
    }

    /// Takes what most requests bring, a whole head and nothing more; false if it was something else.
    #[inline(always)]
    #[allow(clippy::inline_always)] // a call would cost as much as what it does
    pub(super) fn starts(&self, bytes: &[u8]) -> bool {
        let starts = Word(self.reading.load(Relaxed)).is_between()
            && self.requests() == 0
            && is_whole_head(bytes);
        if starts {
            self.head.start(bytes);
            self.reading.store(Word::PARSED.0, Relaxed);
            self.came_in();
        }
        starts
    }

    /// Plaintext came in.
    pub(super) fn read(&self, bytes: &[u8]) {
        let before = self.reading.load(Relaxed);
        let mut word = Word(before).read(bytes);
        self.copy_head(Reading::unpack(before), Reading::unpack(word.0), bytes);
        if word == Word::PARSED && self.head.passed() {
            word = Word::PASSED;
        }
        self.reading.store(word.0, Relaxed);
        // Line ends between two requests are nothing.
        if !(Word(before).is_between() && word.is_between()) {
            self.stirred.store(true, Relaxed);
        }
        self.came_in();
    }

    #[inline]
    fn came_in(&self) {
        if self.phase() >= Phase::Draining {
            self.touch();
        }
    }

    /// Copies what of a head is in the bytes that take the reading from `before` to `after`.
    fn copy_head(&self, before: Reading, after: Reading, bytes: &[u8]) {
        let begun = match before {
            _ if bytes.is_empty() => None,
            Reading::Fresh(0) | Reading::Between => Some(bytes),
            Reading::Fresh(_) | Reading::Head(_) => return self.head.append(bytes),
            Reading::Body(left) => usize::try_from(left)
                .ok()
                .and_then(|left| bytes.get(left..))
                .filter(|next| !next.is_empty()),
            // If one begins in them, it is not known where.
            Reading::Chunked(_) if !matches!(after, Reading::Chunked(_) | Reading::Between) => {
                return self.head.pass();
            }
            Reading::Chunked(_) | Reading::Parsed { .. } | Reading::Unsure(_) | Reading::Http2 => {
                None
            }
        };
        match begun {
            // hyper reads on while it waits for a handler, or for the client to take the response.
            Some(_) if self.requests() > 0 || self.write_blocked.load(Relaxed) => self.head.pass(),
            Some(head) => self.head.start(head),
            None => {}
        }
    }

    /// Whether something was in hand and nothing is any more. Says so once.
    #[inline]
    pub(super) fn settles(&self) -> bool {
        let settles = self.stirred.load(Relaxed)
            && self.requests() == 0
            && !self.write_blocked.load(Relaxed)
            && Word(self.reading.load(Relaxed)).is_between();
        if settles {
            self.stirred.store(false, Relaxed);
        }
        settles
    }

    /// From here on the bytes of its requests are seen as they pass.
    #[cfg(feature = "serve")]
    pub(super) fn see(&self) {
        self.seen.store(true, Relaxed);
    }

    /// It speaks nothing but HTTP/1: what an HTTP/2 client begins with is no beginning here.
    #[cfg(feature = "serve")]
    pub(super) fn speaks_http1(&self) {
        self.reading.store(Word::BETWEEN.0, Relaxed);
    }

    pub(super) fn sees(&self) -> bool {
        #[cfg(feature = "serve")]
        return self.seen.load(Relaxed);
        #[cfg(not(feature = "serve"))]
        false
    }

    /// The HTTP/1 request in hand is a `CONNECT`.
    #[inline]
    pub(super) fn asks_connect(&self) -> bool {
        self.asks(CONNECT)
    }

    /// It is of HTTP/1.0.
    #[inline]
    pub(super) fn asks_http10(&self) -> bool {
        self.asks(HTTP10)
    }

    /// It is not as nearly all are.
    #[inline]
    pub(super) fn asks_specially(&self) -> bool {
        self.asks(!0)
    }

    /// It is a `HEAD`.
    pub(super) fn asks_head(&self) -> bool {
        self.asks(HEAD)
    }

    #[inline]
    fn asks(&self, what: u8) -> bool {
        self.asked.load(Relaxed) & what > 0
    }

    // ----- a response whose end only the close tells -----
    //
    // What is cut must not look whole, so from its head on until its end is out the socket is closed
    // by a reset. The next request's call would forget it as well.

    /// Its head goes out.
    pub(super) fn begins_by_close(&self) {
        self.asked.fetch_or(BY_CLOSE, SeqCst);
    }

    /// Whether it is on its way, and not wholly out.
    #[inline]
    pub(super) fn ends_by_close(&self) -> bool {
        self.asks(BY_CLOSE)
    }

    /// Its body has ended: once hyper shuts the IO down, it has written all of it.
    pub(super) fn body_is_over(&self) {
        self.asked.fetch_or(OVER, SeqCst);
    }

    /// This side was shut down, for which the socket's lock is held: who resets it looks under it too.
    pub(super) fn shut_down(&self) {
        if self.asks(OVER) {
            self.asked.fetch_and(!(BY_CLOSE | OVER), SeqCst);
        }
    }

    /// Whether the other side must not be told that this is the end.
    pub(super) fn is_cut_short(&self) -> bool {
        self.ends_by_close() && (!self.asks(OVER) || self.write_blocked.load(Relaxed))
    }

    /// The service is called with this request.
    #[inline]
    fn called(&self, request: &Request<Incoming>) {
        let method = match *request.method() {
            Method::CONNECT => CONNECT,
            Method::HEAD => HEAD,
            _ => 0,
        };
        let http10 = u8::from(request.version() < Version::HTTP_11) * HTTP10;
        self.asked.store(method | http10, Relaxed);
        // Also for one whose bytes came together with an earlier one.
        self.stirred.store(true, Relaxed);
        let word = Word(self.reading.load(Relaxed));
        if word == Word::PARSED && request.body().is_end_stream() {
            self.reading.store(Word::BETWEEN.0, Relaxed);
        } else {
            self.called_otherwise(word, request);
        }
    }

    fn called_otherwise(&self, word: Word, request: &Request<Incoming>) {
        let sees = self.sees();
        if !sees || !word.is_parsed() || self.head.passed() {
            // The head came together with an earlier one, or behind it, and was not copied.
            self.head.request(request.method(), request.uri());
        }
        if !sees {
            self.reading.store(Word::BETWEEN.0, Relaxed);
            return;
        }
        let length = request.body().size_hint().exact();
        let length = length.map_or(BodyLength::Chunked, BodyLength::Known);
        self.reading.store(word.called(length).0, Relaxed);
    }

    /// A response says that what follows on it is no HTTP.
    pub(super) fn upgrades(&self) {
        self.upgraded.store(true, Relaxed);
        // Without end, so that no bytes are ever taken for those of a request.
        self.reading.store(Reading::Body(u64::MAX).pack(), Relaxed);
    }

    /// What of HTTP/2 is open has changed.
    #[cfg(feature = "serve")]
    pub(super) fn opened(&self, open: Open) {
        self.open_streams.store(open.streams, Relaxed);
        self.half_head.store(open.half, Relaxed);
    }

    /// An HTTP/2 peer has acknowledged a PING.
    pub(super) fn ponged(&self) {
        if self.told.load(Relaxed) {
            self.ponged.store(true, Relaxed);
        }
    }

    /// During the drain: starts the stall timeout anew, at the end of which it is looked at.
    pub(super) fn touch(&self) {
        let now = self.registry.clock.now();
        self.heard.store(now.as_micros(), Relaxed);
        self.remind(self.stall_due());
    }

    /// What has been said is out.
    #[inline]
    pub(super) fn head_written(&self) {
        let owed = self.owed.load(Relaxed);
        if owed >= Owed::Write as u8 {
            self.owed.store(Owed::Nothing as u8, Relaxed);
            if owed > Owed::Write as u8 {
                self.head_written_otherwise(owed);
            }
        }
    }

    #[cold]
    fn head_written_otherwise(&self, owed: u8) {
        if owed == Owed::Late as u8 {
            self.registry.answered_at_deadline.fetch_add(1, Relaxed);
        } else {
            self.owed.store(Owed::Head as u8, Relaxed);
        }
    }

    // ----- an answer from outside -----
    //
    // To be asked under the lock of the socket, without which nothing is written.

    /// A `503` may go out, from whatever side.
    pub(super) fn is_owed_an_answer(&self) -> bool {
        self.registry.config.answer_at_deadline && self.owed.load(SeqCst) != Owed::Nothing as u8
    }

    /// Nothing else is on its way out, so that it is this request's.
    pub(super) fn may_be_answered(&self) -> bool {
        self.sees()
            && self.phase() >= Phase::Forcing
            && self.owed.load(SeqCst) == Owed::Head as u8
            && !self.write_blocked.load(SeqCst)
            && self.reading() != Reading::Http2
    }

    pub(super) fn was_answered(&self, wholly: bool) {
        self.end(Outcome::Forced);
        let answered = &self.registry.answered_at_deadline;
        answered.fetch_add(usize::from(wholly), Relaxed);
    }

    /// Has the connection woken then, or earlier. Only during a termination.
    pub(super) fn remind(&self, at: Moment) {
        // One that comes earlier asks again: reminders must not multiply.
        if self.reminder.fetch_min(at.as_micros(), SeqCst) > at.as_micros() {
            self.registry.remind(at, Sleeper::Connection(self.id));
        }
    }

    pub(super) fn forget_waker(&self) {
        let waker = self.poller.lock().waker.take();
        drop(waker);
    }

    /// To be called on the task that polls the connection.
    pub(super) fn set_waker(&self, waker: &Waker) {
        // Foreign code is called without the lock: it may come back here.
        self.set_poller(Some(waker.clone()));
    }

    /// To be called on a task that reads or writes.
    pub(super) fn note_runtime(&self) {
        self.set_poller(None);
    }

    /// Remembers the runtime that this is called on, so that the driver can keep it going.
    fn set_poller(&self, waker: Option<Waker>) {
        let runtime = Handle::try_current().ok();
        let mut poller = self.poller.lock();
        let id = |handle: &Option<Handle>| handle.as_ref().map(Handle::id);
        let moved = runtime.is_some() && id(&runtime) != id(&poller.runtime);
        let told = if moved && self.phase() >= Phase::Draining {
            runtime.clone()
        } else {
            None
        };
        let old = (
            waker.and_then(|waker| poller.waker.replace(waker)),
            moved.then(|| std::mem::replace(&mut poller.runtime, runtime)),
        );
        drop(poller);
        drop(old);
        if let Some(runtime) = told {
            self.registry.tell_runtime(runtime);
        }
    }

    /// That of its last poll.
    pub(super) fn runtime(&self) -> Option<Handle> {
        self.poller.lock().runtime.clone()
    }

    pub(super) fn end(&self, outcome: Outcome) {
        // Who says it first is right: what comes later is a consequence.
        let _ = self
            .ended
            .compare_exchange(0, outcome as u8 + 1, Relaxed, Relaxed);
    }

    /// An HTTP/2 request takes a slot.
    fn enter(&self, method: &Method, uri: &Uri) -> Arc<Stream> {
        let name = Some((method.clone(), uri.clone()));
        let mut streams = self.streams.get_or_init(Box::default).lock();
        if let Some(at) = streams.free.pop() {
            let slot = &mut streams.slots[at];
            slot.name = name;
            return Arc::clone(&slot.stream);
        }
        let stream = Arc::new(Stream {
            polling: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            at: streams.slots.len(),
        });
        streams.slots.push(Slot {
            name,
            stream: Arc::clone(&stream),
        });
        stream
    }

    fn exit(&self, stream: &Stream) {
        let mut streams = self.streams.get_or_init(Box::default).lock();
        let name = streams.slots[stream.at].name.take();
        streams.free.push(stream.at);
        drop(streams);
        drop(name);
    }

    /// When a peer that owes us bytes has been silent for too long.
    pub(super) fn stall_due(&self) -> Moment {
        let heard = Moment::from_micros(self.heard.load(Relaxed));
        heard
            .max(self.registry.drain_began())
            .after(self.registry.config.stall_timeout)
    }

    /// When the connection may be closed if it is idle and has been since then.
    pub(super) fn idle_due(&self, quiet: Moment) -> Moment {
        self.registry
            .config
            .idle_due(self.id, quiet, self.registry.drain_began())
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self.ended.load(Relaxed) {
            n if n == Outcome::Idle as u8 + 1 => Outcome::Idle,
            n if n == Outcome::Stalled as u8 + 1 => Outcome::Stalled,
            n if n == Outcome::Left as u8 + 1 => Outcome::Left,
            n if n == Outcome::Forced as u8 + 1 => Outcome::Forced,
            _ if self.upgraded.load(Relaxed) => Outcome::Upgraded,
            _ if self.told.load(Relaxed) => Outcome::Finished,
            _ => Outcome::ClosedByPeer,
        }
    }

    /// Counts change in `Drop` only (invariant 6): called by that of [`Part`] and [`InFlight`].
    #[inline]
    fn release(&self, what: u32) {
        // As `Arc` does: what others did before they let go has happened before the last one acts.
        if self.held.fetch_sub(what, AcqRel) == what {
            self.leave();
        }
    }

    fn leave(&self) {
        let outcome = self.outcome();
        // In a drop, and perhaps in one that a panic has caused: it counts first and survives the log.
        if self.registry.leave(self.id, outcome) && LevelFilter::current() >= LevelFilter::DEBUG {
            let id = self.id;
            let event = move || tracing::debug!(connection = id, ?outcome, "connection closed");
            match self.phase() {
                Phase::Serving | Phase::LameDuck => drop(foreign::call(event)),
                // This may be the driver's thread.
                _ => self.registry.log(event),
            }
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

    /// Method and path of each request in hand, and whether its handler is inside a poll.
    fn named(&self) -> Vec<(Name, bool)> {
        let streams = self.streams.get().map(|streams| {
            let streams = streams.lock();
            let taken = streams.slots.iter().filter_map(|slot| {
                let polling = slot.stream.polling.load(SeqCst);
                slot.name.clone().map(|name| (name, polling))
            });
            taken.collect::<Vec<_>>()
        });
        // Written out after the lock, which requests take.
        let streams = streams.into_iter().flatten();
        let mut named: Vec<_> = streams
            .map(|((method, uri), polling)| (head::name_of(&method, &uri), polling))
            .collect();
        let unfinished = !self.reading().is_between() || self.write_blocked.load(Relaxed);
        if self.reading() != Reading::Http2 && (self.requests() > 0 || unfinished) {
            // What is copied is a request that is over, if all that came of the next one came behind it.
            let upgraded = self.upgraded.load(Relaxed);
            let stale = self.requests() == 0 && self.head.passed() && !upgraded;
            let name = Some(self.head.name()).filter(|_| !stale);
            named.push((name.unwrap_or_default(), self.polling.load(SeqCst)));
        }
        if named.is_empty() {
            // What makes its service may be inside a poll.
            named.push((Name::default(), self.polling.load(SeqCst)));
        }
        named
    }
}

// ===== what the driver asks =====

impl Member for Shared {
    fn wake(&self) {
        // Taken out under the lock, woken after it (invariant 7). Before the first poll there is
        // nobody to wake, and that poll will see the phase.
        self.reminder.store(Moment::NEVER.as_micros(), SeqCst);
        let waker = self.poller.lock().waker.clone();
        match waker {
            Some(waker) => waker.wake(),
            // Nobody watches it: an upgraded stream, or one served without our help. If somebody is
            // inside its IO, it is tried again.
            None if self.transport.wake() => {}
            None => {
                let at = self.registry.clock.now().after(RETRY);
                self.registry.remind(at, Sleeper::Connection(self.id));
            }
        }
    }

    fn cut(self: Arc<Self>, least: Cut) -> bool {
        let how = self.registry.how_to_cut().max(least);
        self.transport.cut(how, &self)
    }

    fn close_idle(self: Arc<Self>, now: Moment) -> bool {
        let drain = self.registry.drain_began();
        if now < self.idle_due(drain)
            || !self.transport.close_if(&|seen| self.is_quiet(seen), &self)
        {
            return false;
        }
        // Its task may never be polled again.
        self.leave();
        true
    }

    fn on_runtime(&self, f: &mut dyn FnMut(&Handle)) {
        if let Some(runtime) = &self.poller.lock().runtime {
            f(runtime);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let requests = self.requests() as usize;
        if self.upgraded.load(Relaxed) {
            Snapshot::Upgraded
        } else if requests == 0
            && self.transport.is_tracked()
            && !self.opening.load(Relaxed)
            && !self.half_record.load(Relaxed)
            && (self.reading() == Reading::Http2 || self.reading().is_between())
            && self.open_streams.load(Relaxed) == 0
            // hyper drops a body before it has written it.
            && !(self.sees() && self.owed.load(Relaxed) != Owed::Nothing as u8)
            && !self.half_head.load(Relaxed)
            && !self.write_blocked.load(Relaxed)
        {
            Snapshot::Idle
        } else {
            Snapshot::Busy { requests }
        }
    }

    fn is_inside(&self) -> bool {
        let streams = self.streams.get().map(|streams| streams.lock());
        let mut streams = streams.iter().flat_map(|streams| &streams.slots);
        self.polling.load(SeqCst) || streams.any(|slot| slot.stream.polling.load(SeqCst))
    }

    fn stragglers(&self, now: Moment) -> Vec<Straggler> {
        let (peer, protocol) = (self.transport.peer(), self.protocol());
        let straggler = |((method, path), unresponsive)| Straggler {
            connection: self.id,
            peer,
            protocol,
            method,
            path,
            age: now.since(self.born),
            unresponsive,
        };
        self.named().into_iter().map(straggler).collect()
    }
}

// ===== what keeps a connection in the count =====

/// Something of the connection that is alive: its socket, or the future that polls it.
pub(super) struct Part(Arc<Shared>);

impl Part {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.held.fetch_add(PART, SeqCst);
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
        self.0.release(PART);
    }
}

impl Shared {
    /// The socket is closed: the part that `register` made goes.
    pub(super) fn socket_closed(&self) {
        self.release(PART);
    }

    /// Whether it is idle as seen from outside. Called under the lock of its socket, by which nobody reads
    /// meanwhile.
    fn is_quiet(&self, seen: Seen) -> bool {
        let nothing_in_hand = match seen {
            Seen::Never => true,
            // What they are may not be known yet.
            Seen::Bytes => false,
            Seen::Nothing => {
                let between = match self.reading() {
                    Reading::Http2 => {
                        self.open_streams.load(Relaxed) == 0 && !self.half_head.load(Relaxed)
                    }
                    reading => reading.is_between(),
                };
                self.sees()
                    && between
                    && !self.opening.load(Relaxed)
                    && !self.half_record.load(Relaxed)
            }
        };
        // In this order: what ends a request says first that its answer is to be written.
        let busy = self.held.load(SeqCst) % PART > 0 || self.is_busy();
        let unwritten = self.owed.load(SeqCst) != Owed::Nothing as u8;
        nothing_in_hand && !busy && !unwritten
    }
}

/// A request, from its call until its response is finished or dropped.
pub(super) struct InFlight {
    shared: Arc<Shared>,
    /// On HTTP/2.
    stream: Option<Arc<Stream>>,
}

impl InFlight {
    #[inline]
    pub(super) fn http1(shared: &Arc<Shared>, request: &Request<Incoming>) -> Self {
        shared.held.fetch_add(1, Relaxed);
        let behind = shared.owed.load(Relaxed) >= Owed::Write as u8;
        let owed = if behind { Owed::Behind } else { Owed::Head };
        shared.owed.store(owed as u8, Relaxed);
        shared.called(request);
        Self {
            shared: Arc::clone(shared),
            stream: None,
        }
    }

    pub(super) fn http2(shared: &Arc<Shared>, request: &Request<Incoming>) -> Self {
        shared.held.fetch_add(1, Relaxed);
        if !shared.sees() {
            shared.reading.store(Reading::Http2.pack(), Relaxed);
        }
        let stream = shared.enter(request.method(), request.uri());
        stream.answered.store(false, Relaxed);
        Self {
            shared: Arc::clone(shared),
            stream: Some(stream),
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn is_http2(&self) -> bool {
        self.stream.is_some()
    }

    /// It ends during a termination.
    #[cold]
    fn ends_late(&self) {
        let shared = &self.shared;
        let phase = shared.phase();
        let unanswered = [Owed::Head as u8, Owed::Behind as u8];
        let (answered, polling) = match &self.stream {
            None => (
                !unanswered.contains(&shared.owed.load(Relaxed)),
                shared.polling.load(Relaxed),
            ),
            Some(stream) => (stream.answered.load(Relaxed), stream.polling.load(Relaxed)),
        };
        // To drop its handler is how hyper lets it know that the client has left; unless that has
        // panicked, or somebody on this side ends the connection.
        let given_up = shared.given_up.load(SeqCst);
        if !answered && !polling && !given_up && phase < Phase::Forcing {
            shared.registry.abandoned.fetch_add(1, Relaxed);
        }
        if phase >= Phase::Draining {
            shared.touch();
        }
    }

    /// The deadline has come and the handler has not answered: a `503` goes out instead.
    pub(super) fn is_late(&self) -> bool {
        let shared = &self.shared;
        let late = shared.phase() == Phase::Forcing
            && shared.registry.config.answer_at_deadline
            && !self.is_http2();
        if late {
            shared.end(Outcome::Forced);
        }
        late
    }

    /// That has been said. It counts once it is written, where that can be seen.
    pub(super) fn said_late(&self) {
        if self.shared.sees() {
            self.shared.owed.store(Owed::Late as u8, Relaxed);
        } else {
            let registry = &self.shared.registry;
            registry.answered_at_deadline.fetch_add(1, Relaxed);
        }
    }

    /// Set while the handler or its body is polled: who blocks in there can be named.
    #[inline]
    pub(super) fn polling(&self, yes: bool) {
        match &self.stream {
            None => self.shared.polling.store(yes, Relaxed),
            Some(stream) => stream.polling.store(yes, Relaxed),
        }
    }

    /// There is a response head, or there will be none.
    #[inline]
    pub(super) fn answered(&self) {
        match &self.stream {
            // What was said late is that until it is written, though its body goes before.
            None if self.shared.owed.load(Relaxed) == Owed::Late as u8 => {}
            None => self.shared.owed.store(Owed::Write as u8, Relaxed),
            Some(stream) => stream.answered.store(true, Relaxed),
        }
    }
}

impl Drop for InFlight {
    #[inline]
    fn drop(&mut self) {
        if self.shared.phase() > Phase::Serving {
            self.ends_late();
        }
        // Also after a panic in the handler.
        self.polling(false);
        self.answered();
        if let Some(stream) = &self.stream {
            self.shared.exit(stream);
        }
        self.shared.release(1);
    }
}
