//! What can be told of an HTTP/2 connection from the frames that pass.

pub(crate) mod frames;
#[cfg(test)]
pub(super) mod fuzzed;
mod pong;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};

use tokio::io::ReadBuf;

use self::frames::{DATA, Frame, Frames, GOAWAY, HEADERS, PING, RST_STREAM};
use self::pong::Sieve;
use super::shared::Shared;
use super::state::State;
use crate::clock::Moment;

/// Follows the streams of a connection by their frames: hyper drops a response's body when h2 has
/// taken it over, which may be long before the peer's window lets it out.
#[derive(Debug)]
pub(super) struct Http2 {
    read: Frames,
    written: Frames,
    /// Streams on which the last frame was not written.
    open: HashMap<u32, bool, Keyed>,
    /// Streams whose answer is over, and whose request is not.
    owed: HashSet<u32, Keyed>,
    /// The highest stream seen.
    highest: u32,
    /// The last stream that we said we take: h2 ignores others without a word (RFC 9113 section 6.8).
    last: u32,
    half: Option<Half>,
    proof: Proof,
    sieve: Option<Sieve>,
    /// What was read before it was known to be HTTP/2.
    unread: Vec<u8>,
}

/// A stream whose head is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Half {
    stream: u32,
    /// The last frame of that has begun.
    last_frame: bool,
    /// It is all of the request.
    is_all: bool,
}

/// The peer chooses the numbers of streams, and should not be able to choose such as meet in a set:
/// they are mixed with one that it does not know. With std's hasher each stream took 200 to 400
/// instructions more.
#[derive(Clone, Debug)]
struct Keyed(u64);

impl Default for Keyed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for Keyed {
    type Hasher = Product;

    fn build_hasher(&self) -> Product {
        Product {
            key: self.0,
            hash: 0,
        }
    }
}

struct Product {
    key: u64,
    hash: u64,
}

impl Hasher for Product {
    fn write_u32(&mut self, n: u32) {
        // The key is no factor: by one next to a power of two (one of 60,000 is) numbers at equal distances meet.
        let once = folded(u64::from(n) ^ self.key, FACTORS[0]);
        self.hash = folded(once ^ self.key, FACTORS[1]);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

/// Odd, and without a pattern: the golden ratio's, and one of those in Steele et al., "Fast splittable pseudorandom number
/// generators", 2014.
const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9];

/// The upper half of the product goes into the lower, in which the set looks first.
#[allow(clippy::cast_possible_truncation)] // to that half
fn folded(n: u64, key: u64) -> u64 {
    let product = u128::from(n) * u128::from(key);
    (product ^ product >> 64) as u64
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            read: Frames::default(),
            written: Frames::default(),
            open: HashMap::default(),
            owed: HashSet::default(),
            highest: 0,
            last: u32::MAX,
            half: None,
            proof: Proof::default(),
            sieve: None,
            unread: Vec::new(),
        }
    }
}

impl Http2 {
    /// Takes what was read, from behind the preface on.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let mut read = std::mem::take(&mut self.read);
        read.feed(bytes, |frame| {
            self.complete();
            self.take(frame);
        });
        if read.is_past_payload() {
            self.complete();
        }
        self.read = read;
    }

    fn take(&mut self, frame: Frame) {
        let Frame { kind, stream, .. } = frame;
        // What breaks the rules ends the connection, in h2.
        if frame.opens_above(self.highest) {
            self.highest = stream;
            self.half = (stream <= self.last).then_some(Half {
                stream,
                last_frame: false,
                is_all: frame.ends_stream(),
            });
        } else if frame.ends_stream() {
            self.owed.remove(&stream);
            if let Some(is_all) = self.open.get_mut(&stream) {
                *is_all = true;
            }
        }
        if kind == RST_STREAM {
            self.open.remove(&stream);
        }
        if frame.is_pong() {
            self.proof.acknowledged();
        }
        if let Some(half) = &mut self.half {
            half.last_frame = frame.ends_headers();
        }
    }

    /// What has begun before has come to its end.
    fn complete(&mut self) {
        if let Some(half) = self.half.take_if(|half| half.last_frame) {
            self.open.insert(half.stream, half.is_all);
        }
    }

    /// For what is read from when the connection was told to go away on.
    pub(super) fn sieve(&mut self) -> &mut Sieve {
        let at = || Sieve::new(&self.read, self.highest);
        self.sieve.get_or_insert_with(at)
    }

    /// Since when the peer owes the acknowledgment of the PING that follows the first GOAWAY.
    pub(super) fn owed_since(&mut self, now: Moment) -> Option<Moment> {
        if self.last == u32::MAX {
            return None;
        }
        self.sieve().missed_since(now)
    }

    /// It may have begun to come.
    pub(super) fn is_half_acknowledged(&mut self) -> bool {
        self.sieve().has_begun()
    }

    /// It may do so for ever, or never: h2 is to say the last stream.
    pub(super) fn waits_no_longer(&mut self) {
        self.proof.forged = true;
        self.sieve().give_up();
    }

    /// Of which stream part of a head has come.
    pub(super) fn half(&self) -> Option<u32> {
        self.half.map(|half| half.stream)
    }

    pub(super) fn written(&mut self, bytes: &[u8]) {
        let (open, owed) = (&mut self.open, &mut self.owed);
        let (proof, last) = (&mut self.proof, &mut self.last);
        let highest = &mut self.highest;
        self.written.feed(bytes, |frame| {
            match frame.kind {
                DATA | HEADERS => proof.wanted = proof.pings + 1,
                PING if !frame.is_pong() => proof.pings += 1,
                GOAWAY if frame.stream < *last => {
                    *last = frame.stream;
                    open.retain(|stream, _| *stream <= frame.stream);
                    owed.retain(|stream| *stream <= frame.stream);
                }
                // One that h2 refuses before it was opened, of a PRIORITY that depends on itself say, is never opened.
                RST_STREAM if frame.stream % 2 == 1 => *highest = frame.stream.max(*highest),
                _ => {}
            }
            if frame.ends_stream() {
                let is_all = open.remove(&frame.stream);
                if frame.kind == RST_STREAM {
                    owed.remove(&frame.stream);
                } else if is_all == Some(false) {
                    owed.insert(frame.stream);
                }
            }
        });
        self.half.take_if(|half| half.stream > self.last);
    }

    /// These bytes are to be read again.
    pub(super) fn unread(&mut self, bytes: Vec<u8>) {
        self.unread = bytes;
    }

    /// Gives what of them there is room for. False if there are none.
    pub(super) fn give_unread(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let n = buf.remaining().min(self.unread.len());
        if n > 0 {
            buf.put_slice(&self.unread[..n]);
            self.unread.drain(..n);
        }
        if n > 0 && self.unread.is_empty() {
            self.unread = Vec::new();
        }
        n > 0
    }

    /// Shows others what is open, once all of the preface has come. Gives whether nothing is any more.
    pub(super) fn show(&self, shared: &Shared) -> bool {
        if !shared.has(State::HTTP2) {
            return false;
        }
        let is_open = !self.open.is_empty();
        let streams = if is_open { State::STREAMS } else { 0 };
        let half = self.half.map_or(0, |_| State::HALF);
        let owed = if self.owed.is_empty() { 0 } else { State::BODY };
        let state = shared.state();
        let shown = state.0 & (State::STREAMS | State::HALF | State::BODY);
        let now = streams | half | owed;
        if shown != now {
            // Nobody else writes these.
            shared.flip(shown ^ now);
            if streams | owed == 0 && state.has(State::TUNNELS) {
                shared.tunnels_are_over();
            }
        }
        shown != 0 && now == 0
    }

    /// The last GOAWAY has been written: h2 knows when to close.
    pub(super) fn has_gone_away(&self) -> bool {
        // The first one says the highest stream that there can be.
        self.last < u32::MAX >> 1
    }

    /// Whether the peer may not have read all answers, as far as we know.
    pub(super) fn is_unproven(&self) -> bool {
        self.proof.wanted > self.proof.pongs
    }
}

/// Whether the peer has read what was written: PINGs are acknowledged in their order, and who has got to one has read
/// what lies before it.
#[derive(Clone, Copy, Debug, Default)]
struct Proof {
    /// How many were written, and how many acknowledged.
    pings: u64,
    pongs: u64,
    /// By how many acknowledgments all answers, and parts of them, are proven.
    wanted: u64,
    /// One of those that are read is not the peer's.
    forged: bool,
}

impl Proof {
    fn acknowledged(&mut self) {
        if !std::mem::take(&mut self.forged) {
            // Not of what was never sent.
            self.pongs = self.pings.min(self.pongs + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::frames::CONTINUATION;
    use super::*;

    fn bytes(frames: &[(u8, u8, u32)]) -> Vec<u8> {
        let bytes = |&(kind, flags, stream): &(u8, u8, u32)| {
            let [a, b, c, d] = stream.to_be_bytes();
            [0, 0, 0, kind, flags, a, b, c, d]
        };
        frames.iter().flat_map(bytes).collect()
    }

    #[test]
    fn a_stream_is_open_until_its_last_frame_is_written_or_it_is_reset() {
        let mut http2 = Http2::default();
        http2.read(&bytes(&[(HEADERS, 5, 1), (HEADERS, 4, 3), (HEADERS, 5, 5)]));
        // Trailers do not open it again.
        http2.read(&bytes(&[(DATA, 0, 3), (HEADERS, 5, 3)]));
        assert_eq!(http2.open.len(), 3);
        http2.written(&bytes(&[(HEADERS, 4, 1), (DATA, 0, 1)]));
        assert_eq!(http2.open.len(), 3);
        http2.written(&bytes(&[(DATA, 1, 1)]));
        http2.read(&bytes(&[(RST_STREAM, 0, 3)]));
        http2.written(&bytes(&[(RST_STREAM, 0, 5)]));
        assert_eq!(http2.open.len(), 0);
    }

    #[test]
    fn a_peer_cannot_choose_streams_that_meet() {
        // Also by chance: by keys that are next to a power of two, as by any.
        let rare = (0..64).flat_map(|n| [1 << n, (1 << n) - 1, !(1 << n), !((1 << n) - 1)]);
        let keys: Vec<_> = (0..100).map(|_| Keyed::default().0).chain(rare).collect();
        for (shift, &key) in (1..=20).flat_map(|shift| keys.iter().map(move |key| (shift, key))) {
            let streams = (0..1 << 11).map(|n| n << shift | 1);
            let keyed = Keyed(key);
            // As the set does: the lower bits choose a place.
            let places: HashSet<u64> = streams
                .map(|n: u32| keyed.hash_one(n) % (1 << 12))
                .collect();
            assert!(
                places.len() > 1 << 9,
                "{} for {shift}, {keyed:?}",
                places.len()
            );
        }
    }

    #[test]
    fn what_is_refused_before_it_is_opened_is_never_opened() {
        let mut http2 = Http2::default();
        http2.written(&bytes(&[(RST_STREAM, 0, 3), (RST_STREAM, 0, 2)]));
        http2.read(&bytes(&[(HEADERS, 5, 1), (HEADERS, 5, 3)]));
        assert_eq!(http2.open.len(), 0);
        http2.read(&bytes(&[(HEADERS, 5, 5)]));
        assert_eq!(http2.open.len(), 1);
    }

    #[test]
    fn trailers_behind_the_answer_open_nothing() {
        let mut http2 = Http2::default();
        http2.read(&bytes(&[(HEADERS, 4, 1), (HEADERS, 4, 7)]));
        http2.written(&bytes(&[(HEADERS, 5, 1), (RST_STREAM, 0, 7)]));
        // Of a stream that was skipped, and is closed thereby; and of none that there can be.
        http2.read(&bytes(&[(HEADERS, 5, 1), (HEADERS, 5, 7), (HEADERS, 5, 5)]));
        http2.read(&bytes(&[(HEADERS, 5, 0), (HEADERS, 5, 8)]));
        assert_eq!((http2.open.len(), http2.half), (0, None));
        http2.read(&bytes(&[(HEADERS, 5, 9)]));
        assert_eq!(http2.open.len(), 1);
    }

    /// Of whom we have answered ahead of his body he owes the rest, until he has sent it or somebody resets the stream.
    #[test]
    fn a_request_is_owed_until_its_last_frame_is_read_or_it_is_reset() {
        let mut http2 = Http2::default();
        for stream in [1, 3, 5, 7, 9] {
            let ends = if stream == 9 { 5 } else { 4 };
            http2.read(&bytes(&[(HEADERS, ends, stream)]));
        }
        http2.read(&bytes(&[(DATA, 0, 1), (DATA, 1, 7)]));
        assert_eq!((http2.open.len(), http2.owed.len()), (5, 0));
        for stream in [1, 3, 5, 7, 9] {
            http2.written(&bytes(&[(HEADERS, 5, stream)]));
        }
        assert_eq!((http2.open.len(), http2.owed.len()), (0, 3));
        http2.read(&bytes(&[(DATA, 0, 1), (DATA, 1, 3), (RST_STREAM, 0, 5)]));
        assert_eq!(http2.owed.len(), 1);
        http2.written(&bytes(&[(RST_STREAM, 0, 1)]));
        assert_eq!(http2.owed.len(), 0);
        // Trailers are an end as well; a reset of ours leaves nothing.
        http2.read(&bytes(&[(HEADERS, 4, 11), (HEADERS, 4, 13)]));
        http2.written(&bytes(&[(DATA, 1, 11), (RST_STREAM, 0, 13)]));
        assert_eq!(http2.owed.len(), 1);
        http2.read(&bytes(&[(HEADERS, 5, 11)]));
        assert_eq!((http2.open.len(), http2.owed.len()), (0, 0));
    }

    #[test]
    fn a_stream_is_open_when_its_head_is_complete() {
        let head = [0, 0, 2, HEADERS, 1, 0, 0, 0, 1, 9, 9];
        let more = [0, 0, 1, CONTINUATION, 0, 0, 0, 0, 1, 9];
        let last = [0, 0, 1, CONTINUATION, 4, 0, 0, 0, 1, 9];
        // What begins behind it changes nothing.
        let stream = [&head[..], &more, &last, &[0, 0, 0]].concat();
        let end = stream.len() - 3;
        for piece in 1..stream.len() {
            let (mut http2, mut at) = (Http2::default(), 0);
            for part in stream.chunks(piece) {
                http2.read(part);
                at += part.len();
                let half = at >= 9 && at < end;
                assert_eq!(http2.half.is_some(), half, "at {at}, pieces of {piece}");
                assert_eq!(http2.open.len(), usize::from(at >= end));
            }
        }
    }

    #[test]
    fn what_comes_behind_the_last_goaway_is_not_open() {
        let goaway = |last: u32| {
            [
                &[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0],
                &last.to_be_bytes()[..],
                &[0; 4],
            ]
            .concat()
        };
        let mut http2 = Http2::default();
        http2.read(&bytes(&[(HEADERS, 5, 1)]));
        http2.written(&goaway(u32::MAX >> 1));
        http2.read(&bytes(&[(HEADERS, 5, 3), (HEADERS, 5, 5), (HEADERS, 1, 7)]));
        assert_eq!((http2.open.len(), http2.half.is_some()), (3, true));
        http2.written(&goaway(3));
        http2.read(&bytes(&[(CONTINUATION, 4, 7), (HEADERS, 5, 9)]));
        assert_eq!((http2.open.len(), http2.half.is_some()), (2, false));
    }

    #[test]
    fn streams_that_come_and_go_leave_nothing() {
        let mut http2 = Http2::default();
        for stream in (1..200_000).step_by(2) {
            http2.read(&bytes(&[(HEADERS, 4, stream), (RST_STREAM, 0, stream)]));
        }
        assert_eq!((http2.open.len(), http2.half), (0, None));
        assert!(http2.open.capacity() < 100, "{}", http2.open.capacity());
    }

    #[test]
    fn an_answer_is_proven_by_the_ping_behind_it() {
        let mut http2 = Http2::default();
        http2.written(&bytes(&[(HEADERS, 5, 1)]));
        assert!(http2.is_unproven());
        http2.written(&bytes(&[(PING, 1, 0)]));
        assert!(http2.is_unproven(), "that is an acknowledgment");
        http2.written(&bytes(&[(PING, 0, 0)]));
        assert!(http2.is_unproven(), "it may lie in the kernel as well");
        http2.read(&bytes(&[(PING, 1, 0)]));
        assert!(!http2.is_unproven());
        // That of the first says nothing of what comes behind it.
        http2.written(&bytes(&[(PING, 0, 0), (DATA, 1, 1), (PING, 0, 0)]));
        http2.read(&bytes(&[(PING, 1, 0)]));
        assert!(http2.is_unproven());
        http2.read(&bytes(&[(PING, 1, 0)]));
        assert!(!http2.is_unproven());
    }
}
