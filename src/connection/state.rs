//! What has been read of a connection's requests: the part of the idle test (G2) that nobody else
//! can tell. Pure: no IO, no clock.
//!
//! hyper keeps what it has read to itself, so whether a byte of a *next* request lies in its buffer
//! must be known from the outside: from the bytes as they pass, and from the requests as they are
//! called. No head is parsed here; hyper's own word on each body's length is what counts.
//!
//! ```text
//!            24 bytes of preface
//!   Fresh ───────────────────────▶ Http2
//!     │
//!     │ bytes         blank line         called: no body
//!     ▼              ┌──────────┐       ┌──────────────────────────┐
//!  Between ──────▶ Head ───▶ Parsed ────┤ length n                 ▼
//!     ▲                                 ├────────────▶ Body(n) ─▶ Between
//!     │          last chunk             │ chunked        ▲
//!     └──────────────────── Chunked ◀───┘                └ all read
//! ```
//!
//! *Between* promises that nothing of a next request was read and nothing of the last one is missing.
//! Where that can't be proven (bodies of pipelined requests that came in one read), the answer is
//! `Unsure`, which counts as owing us bytes: such a connection is closed a little later, never too
//! early.

/// The length of a request's body, as hyper tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyLength {
    Known(u64),
    Chunked,
}

/// How far the reading of requests has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// So many bytes of the HTTP/2 preface were read, and nothing else.
    Fresh(u8),
    /// At the end of a request, no byte of the next one read.
    Between,
    /// Part of a head was read; `Tail` is how much of an empty line its end is.
    Head(Tail),
    /// A whole head was read and `after` bytes behind it; hyper will call the service with it. If
    /// its body is chunked, `chunks` is how far that has come.
    Parsed {
        after: u32,
        tail: Tail,
        chunks: Chunks,
    },
    /// So many bytes of a body are to come.
    Body(u64),
    /// Within a chunked body.
    Chunked(Chunks),
    /// Several requests came in one read: where the last one ends is not known.
    Unsure(Tail),
    /// HTTP/2, which has its own ways.
    Http2,
}

/// RFC 9113 section 3.4.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// More bytes behind a head than this, in one read, are not counted.
const MOST_AFTER: u32 = (1 << 22) - 1;

impl Reading {
    pub(crate) const NEW: Self = Self::Fresh(0);

    const PARSED: Self = Self::Parsed {
        after: 0,
        tail: Tail::Blank,
        chunks: Chunks::NEW,
    };

    /// No byte of a next request has been read, and none of the last one is missing.
    pub(crate) fn is_between(self) -> bool {
        matches!(self, Self::Fresh(0) | Self::Between)
    }

    pub(crate) fn is_partial_head(self) -> bool {
        matches!(self, Self::Fresh(1..) | Self::Head(_))
    }

    /// The same, or it can't be told: of a connection without a request.
    pub(crate) fn may_be_partial_head(self) -> bool {
        self.is_partial_head() || matches!(self, Self::Unsure(_))
    }

    pub(crate) fn read(self, bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return self;
        }
        match self {
            Self::Fresh(n) => Self::preface(n, bytes),
            Self::Between => {
                // Line ends before it are none of its own, and hyper's parser skips them.
                let begins = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'));
                let Some(head) = begins.map(|n| &bytes[n..]) else {
                    return Self::Between;
                };
                if is_whole_head(head) {
                    return Self::PARSED;
                }
                Self::head(Tail::None, head)
            }
            Self::Head(tail) => Self::head(tail, bytes),
            Self::Parsed {
                after,
                tail,
                chunks,
            } => {
                let more = u32::try_from(bytes.len()).unwrap_or(MOST_AFTER);
                Self::Parsed {
                    after: after.saturating_add(more).min(MOST_AFTER),
                    tail: tail.feed(bytes),
                    chunks: chunks.feed_all(bytes),
                }
            }
            Self::Body(left) => match usize::try_from(left) {
                Ok(left) if left <= bytes.len() => Self::Between.read(&bytes[left..]),
                _ => Self::Body(left - bytes.len() as u64),
            },
            Self::Chunked(chunks) => match chunks.feed(bytes) {
                (Chunks::End, rest) => Self::Between.read(rest),
                (chunks, _) => Self::Chunked(chunks),
            },
            Self::Unsure(tail) => Self::Unsure(tail.feed(bytes)),
            Self::Http2 => Self::Http2,
        }
    }

    pub(crate) fn called(self, body: BodyLength) -> Self {
        let (after, tail, chunks) = match self {
            Self::Parsed {
                after,
                tail,
                chunks,
            } => (Some(u64::from(after)), tail, chunks),
            // A pipelined request whose head came in the same read as an earlier one.
            Self::Between => (Some(0), Tail::Blank, Chunks::Over),
            Self::Unsure(tail) | Self::Head(tail) => (None, tail, Chunks::Over),
            Self::Fresh(_) | Self::Body(_) | Self::Chunked(_) => (None, Tail::None, Chunks::Over),
            Self::Http2 => return Self::Http2,
        };
        match (body, after) {
            (BodyLength::Chunked, _) => match chunks {
                Chunks::End => Self::Between,
                Chunks::Over => Self::Unsure(tail),
                chunks => Self::Chunked(chunks),
            },
            (BodyLength::Known(_), Some(after)) if after == u64::from(MOST_AFTER) => {
                Self::Unsure(tail)
            }
            (BodyLength::Known(n), Some(after)) if n > after => Self::Body(n - after),
            (BodyLength::Known(n), Some(after)) if n == after => Self::Between,
            // Requests follow in the same read, the last of which has no body, as it ends in an empty
            // line, or they are called as well.
            (BodyLength::Known(0), _) if tail == Tail::Blank => Self::Between,
            (BodyLength::Known(_), _) => Self::Unsure(tail),
        }
    }

    fn preface(matched: u8, bytes: &[u8]) -> Self {
        let matched = usize::from(matched);
        let rest = &PREFACE[matched..];
        let n = rest.len().min(bytes.len());
        if bytes[..n] != rest[..n] {
            // What matched so far was the `P` of a POST, or more of something odd.
            return match Self::head(Tail::None, &PREFACE[..matched]) {
                Self::Head(tail) if matched > 0 => Self::head(tail, bytes),
                _ => Self::Between.read(bytes),
            };
        }
        if n == rest.len() {
            return Self::Http2;
        }
        // At most 24.
        Self::Fresh(u8::try_from(matched + n).unwrap_or(0))
    }

    /// Looks for the empty line that ends a head.
    fn head(mut tail: Tail, bytes: &[u8]) -> Self {
        let mut at = 0;
        while at < bytes.len() {
            // Between line ends nothing can happen.
            if tail == Tail::None {
                match bytes[at..].iter().position(|&b| b == b'\n') {
                    Some(n) => at += n,
                    None => break,
                }
            }
            tail = tail.feed(&bytes[at..=at]);
            at += 1;
            if tail == Tail::Blank {
                return Self::PARSED.read(&bytes[at..]);
            }
        }
        Self::Head(tail)
    }
}

/// Whether this is what nearly all reads between two requests are: one head, or several, and nothing
/// behind. Most requests have no body and come in one read; the methods that bring a body begin
/// with a P.
#[inline]
pub(crate) fn is_whole_head(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n\r\n") && !matches!(bytes[0], b'P' | b'\r' | b'\n')
}

/// How much of an empty line the last bytes are. hyper's parser takes a bare LF for a line end, so
/// this does too (RFC 9112 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    None,
    Line,
    LineCr,
    Blank,
}

impl Tail {
    /// After `bytes`. Only the last three matter.
    fn feed(self, bytes: &[u8]) -> Self {
        let (start, last) = if bytes.len() > 3 {
            (Self::None, &bytes[bytes.len() - 3..])
        } else {
            (self, bytes)
        };
        last.iter().fold(start, |tail, byte| match (tail, byte) {
            (Self::Line | Self::LineCr | Self::Blank, b'\n') => Self::Blank,
            (Self::Line, b'\r') => Self::LineCr,
            (_, b'\n') => Self::Line,
            _ => Self::None,
        })
    }
}

/// How far a chunked body has come (RFC 9112 section 7.1). hyper is the judge of what is valid and
/// closes the connection of who sends something else; this only finds the end of what is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunks {
    /// In a chunk's size, which is this so far.
    Size(u32),
    /// Behind it, until the end of the line.
    Extension(u32),
    /// So many bytes of a chunk are to come.
    Data(u32),
    /// The end of the line behind a chunk is to come.
    Line,
    /// In the trailer section.
    Trailers(Tail),
    /// All is read.
    End,
    /// All is read, and more than that; or the chunks are larger than can be counted.
    Over,
}

impl Chunks {
    const NEW: Self = Self::Size(0);

    /// Gives what is behind the end.
    fn feed(mut self, mut bytes: &[u8]) -> (Self, &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            self = match (self, byte) {
                (Self::End | Self::Over, _) => return (self, bytes),
                (Self::Data(left), _) => {
                    let n = bytes.len().min(left as usize);
                    bytes = &bytes[n..];
                    // `n <= left`, so it fits.
                    let left = left - u32::try_from(n).unwrap_or(left);
                    self = if left == 0 {
                        Self::Line
                    } else {
                        Self::Data(left)
                    };
                    continue;
                }
                (Self::Size(0) | Self::Extension(0), b'\n') => Self::Trailers(Tail::Line),
                (Self::Size(n) | Self::Extension(n), b'\n') => Self::Data(n),
                (Self::Size(n), _) => match char::from(byte).to_digit(16) {
                    Some(digit) if n < 1 << 27 => Self::Size(n << 4 | digit),
                    Some(_) => Self::Over,
                    None => Self::Extension(n),
                },
                (Self::Extension(n), _) => Self::Extension(n),
                (Self::Line, b'\n') => Self::NEW,
                (Self::Line, _) => Self::Line,
                (Self::Trailers(tail), _) => match tail.feed(&[byte]) {
                    Tail::Blank => Self::End,
                    tail => Self::Trailers(tail),
                },
            };
            bytes = rest;
        }
        (self, bytes)
    }

    fn feed_all(self, bytes: &[u8]) -> Self {
        match self.feed(bytes) {
            (Self::End, rest) if !rest.is_empty() => Self::Over,
            (chunks, _) => chunks,
        }
    }
}

// ===== one word, for an atomic =====

/// A [`Reading`], packed. Nearly every request takes it from `BETWEEN` to `PARSED` and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    pub(crate) const BETWEEN: Self = Self(1);
    pub(crate) const PARSED: Self = Self(3 | (Tail::Blank as u64) << 3);
    /// The same, of a head that was not copied: in a bit of which `unpack` knows nothing.
    pub(crate) const PASSED: Self = Self(Self::PARSED.0 | 1 << 62);

    /// The same as [`Reading::is_between`].
    #[inline]
    pub(crate) fn is_between(self) -> bool {
        self.0 <= Self::BETWEEN.0
    }

    /// The same as [`Reading::read`].
    pub(crate) fn read(self, bytes: &[u8]) -> Self {
        Self(Reading::unpack(self.0).read(bytes).pack())
    }

    /// The same as [`Reading::called`].
    pub(crate) fn called(self, body: BodyLength) -> Self {
        Self(Reading::unpack(self.0).called(body).pack())
    }

    /// Whether [`called`](Self::called) is right to find it so: no head came before this one in the
    /// same read.
    pub(crate) fn is_parsed(self) -> bool {
        self.0 & 7 == Self::PARSED.0 & 7
    }
}

impl Reading {
    pub(crate) fn pack(self) -> u64 {
        match self {
            Self::Fresh(n) => u64::from(n) << 3,
            Self::Between => 1,
            Self::Head(tail) => 2 | (tail as u64) << 3,
            Self::Parsed {
                after,
                tail,
                chunks,
            } => 3 | (tail as u64) << 3 | u64::from(after) << 5 | chunks.pack() << 27,
            // A content-length of over 2^61 bytes is cut to that; it will not be reached.
            Self::Body(left) => 4 | left.min(u64::MAX >> 3) << 3,
            Self::Chunked(chunks) => 5 | chunks.pack() << 27,
            Self::Unsure(tail) => 6 | (tail as u64) << 3,
            Self::Http2 => 7,
        }
    }

    #[allow(clippy::cast_possible_truncation)] // what was packed fits
    pub(crate) fn unpack(word: u64) -> Self {
        let tail = Tail::unpack(word >> 3);
        match word & 7 {
            0 => Self::Fresh((word >> 3) as u8),
            1 => Self::Between,
            2 => Self::Head(tail),
            3 => Self::Parsed {
                after: (word >> 5) as u32 & MOST_AFTER,
                tail,
                chunks: Chunks::unpack(word >> 27),
            },
            4 => Self::Body(word >> 3),
            5 => Self::Chunked(Chunks::unpack(word >> 27)),
            6 => Self::Unsure(tail),
            _ => Self::Http2,
        }
    }
}

impl Tail {
    fn unpack(word: u64) -> Self {
        match word & 3 {
            0 => Self::None,
            1 => Self::Line,
            2 => Self::LineCr,
            _ => Self::Blank,
        }
    }
}

impl Chunks {
    /// 35 bits.
    fn pack(self) -> u64 {
        match self {
            Self::Size(n) => u64::from(n) << 3,
            Self::Extension(n) => 1 | u64::from(n) << 3,
            Self::Data(left) => 2 | u64::from(left) << 3,
            Self::Line => 3,
            Self::Trailers(tail) => 4 | (tail as u64) << 3,
            Self::End => 5,
            Self::Over => 6,
        }
    }

    #[allow(clippy::cast_possible_truncation)] // what was packed fits
    fn unpack(word: u64) -> Self {
        let n = (word >> 3) as u32;
        match word & 7 {
            0 => Self::Size(n),
            1 => Self::Extension(n),
            2 => Self::Data(n),
            3 => Self::Line,
            4 => Self::Trailers(Tail::unpack(word >> 3)),
            5 => Self::End,
            _ => Self::Over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const DELETE_LF: &[u8] = b"DELETE / HTTP/1.1\n\n";
    const POST: &[u8] = b"POST / HTTP/1.1\r\ncontent-length: 7\r\n\r\n";
    const PUT: &[u8] = b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";

    /// A request: its head, its body, and what hyper says of the body.
    type Message = (&'static [u8], &'static [u8], BodyLength);

    const MESSAGES: [Message; 8] = [
        (GET, b"", BodyLength::Known(0)),
        (DELETE_LF, b"", BodyLength::Known(0)),
        (POST, b"1234567", BodyLength::Known(7)),
        // The body is, or ends in, or holds an empty line.
        (POST, b"abc\r\n\r\n", BodyLength::Known(7)),
        (POST, b"\r\n\r\nabc", BodyLength::Known(7)),
        (PUT, b"2\r\nhi\r\n0\r\n\r\n", BodyLength::Chunked),
        // A chunk that looks like the end, an extension, and trailers.
        (
            PUT,
            b"7;a=b\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n",
            BodyLength::Chunked,
        ),
        (
            PUT,
            b"1\r\n0\r\n0\r\nx: y\r\nz: 1\r\n\r\n",
            BodyLength::Chunked,
        ),
    ];

    /// What hyper does, as a naive model that sees all bytes: reads in the given pieces, calls the
    /// service as soon as a head is whole, and not before the request ahead of it is done. Checks
    /// the promise after every read.
    fn run(messages: &[Message], cuts: &[usize]) -> (usize, usize) {
        let stream: Vec<u8> = messages.iter().flat_map(|m| [m.0, m.1].concat()).collect();
        let mut ends = Vec::new();
        let mut heads = Vec::new();
        let mut end = 0;
        for m in messages {
            heads.push(end + m.0.len());
            end += m.0.len() + m.1.len();
            ends.push(end);
        }
        let (mut reading, mut at, mut called, mut sure, mut boundaries) =
            (Reading::NEW, 0, 0, 0, 0);
        for &cut in cuts.iter().chain([&stream.len()]) {
            if cut <= at {
                continue;
            }
            let word = Word(reading.pack()).read(&stream[at..cut]);
            assert_eq!(word.0, reading.read(&stream[at..cut]).pack());
            reading = Reading::unpack(word.0);
            at = cut;
            while called < messages.len()
                && at >= heads[called]
                && (called == 0 || at >= ends[called - 1])
            {
                let word = Word(reading.pack()).called(messages[called].2);
                assert_eq!(word.0, reading.called(messages[called].2).pack());
                reading = Reading::unpack(word.0);
                called += 1;
            }
            // Everything that was read has been used up by finished requests.
            let boundary = called > 0 && at == ends[called - 1];
            assert_eq!(reading.is_between(), Word(reading.pack()).is_between());
            assert!(
                boundary || !reading.is_between(),
                "false idle: {reading:?} after {at} of {:?}",
                String::from_utf8_lossy(&stream)
            );
            boundaries += usize::from(boundary);
            sure += usize::from(boundary && reading.is_between());
        }
        (boundaries, sure)
    }

    #[test]
    fn a_request_in_any_two_or_three_reads_ends_between() {
        for message in MESSAGES {
            let len = message.0.len() + message.1.len();
            for first in 1..=len {
                for second in first..=len {
                    let (boundaries, sure) = run(&[message], &[first, second]);
                    assert_eq!(
                        (boundaries, sure),
                        (1, 1),
                        "{message:?} cut at {first}, {second}"
                    );
                }
            }
        }
    }

    #[test]
    fn requests_one_after_the_other_end_between_each_time() {
        for a in MESSAGES {
            for b in MESSAGES {
                for c in MESSAGES {
                    let first = a.0.len() + a.1.len();
                    let second = first + b.0.len() + b.1.len();
                    assert_eq!(
                        run(&[a, b, c], &[first, second]),
                        (3, 3),
                        "{a:?} {b:?} {c:?}"
                    );
                }
            }
        }
    }

    /// The promise that matters, for every pair of requests and every way to cut them in three
    /// reads: a byte of a next request is never overlooked.
    #[test]
    fn exhaustively_no_pipelined_byte_is_overlooked() {
        for a in MESSAGES {
            for b in MESSAGES {
                let len = [a.0, a.1, b.0, b.1].concat().len();
                for first in 1..=len {
                    for second in first..=len {
                        run(&[a, b], &[first, second]);
                    }
                }
            }
        }
    }

    #[test]
    fn three_pipelined_requests_cut_anywhere() {
        for a in MESSAGES {
            for b in MESSAGES {
                for c in MESSAGES {
                    let len = [a.0, a.1, b.0, b.1, c.0, c.1].concat().len();
                    for first in 1..=len {
                        run(&[a, b, c], &[first]);
                    }
                }
            }
        }
    }

    #[test]
    fn the_http2_preface_is_told_from_a_post() {
        for first in 1..PREFACE.len() {
            let part = Reading::NEW.read(&PREFACE[..first]);
            assert!(!part.is_between(), "half a preface is a partial head");
            assert_eq!(
                Reading::unpack(part.pack()).read(&PREFACE[first..]),
                Reading::Http2
            );
        }
        assert_eq!(
            Reading::NEW.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore"),
            Reading::Http2
        );
        assert_eq!(Reading::NEW.read(b"P").read(&POST[1..]), Reading::PARSED);
        assert_eq!(
            Reading::NEW
                .read(b"PRI * HTTP/2.0\r")
                .read(b"\nhost: a\r\n\r\n"),
            Reading::PARSED
        );
        assert!(Reading::NEW.is_between());
    }

    #[test]
    fn early_answers_do_not_end_an_upload() {
        let put = Reading::Between.read(PUT).called(BodyLength::Chunked);
        assert!(!put.is_between(), "not a chunk was read");
        assert!(
            !put.read(b"4\r\nhel\n\r\n").is_between(),
            "the last chunk was not read"
        );
    }

    #[test]
    fn packing_keeps_everything() {
        let tails = [Tail::None, Tail::Line, Tail::LineCr, Tail::Blank];
        let mut all = vec![Chunks::Line, Chunks::End, Chunks::Over];
        all.extend(tails.map(Chunks::Trailers));
        for n in [0, 1, u32::MAX] {
            all.extend([Chunks::Size(n), Chunks::Extension(n), Chunks::Data(n)]);
        }
        for tail in tails {
            for reading in [
                Reading::Fresh(23),
                Reading::Between,
                Reading::Head(tail),
                Reading::Body((1 << 61) - 1),
                Reading::Unsure(tail),
                Reading::Http2,
            ] {
                assert_eq!(Reading::unpack(reading.pack()), reading);
            }
            for chunks in &all {
                let reading = Reading::Parsed {
                    after: MOST_AFTER,
                    tail,
                    chunks: *chunks,
                };
                assert_eq!(Reading::unpack(reading.pack()), reading);
                let reading = Reading::Chunked(*chunks);
                assert_eq!(Reading::unpack(reading.pack()), reading);
            }
        }
    }
}
