//! What has been read of a connection's requests: the part of the idle test (G2) that nobody else
//! can tell. Pure: no IO, no clock.
//!
//! hyper keeps what it has read to itself, so whether a byte of a *next* request lies in its buffer
//! must be known from the outside: from the bytes as they pass, and from the requests as they are
//! called. No head is parsed here; hyper's own word on each body's length is what counts.
//!
//! ```text
//!              "PRI "                 101, CONNECT
//!   Fresh ───────────────▶ Http2     (flag elsewhere)
//!     │
//!     │  bytes       blank line        called: no body
//!     ▼             ┌──────────┐      ┌─────────────────────────┐
//!  Between ──────▶ Head ───▶ Parsed ──┤ length n                ▼
//!     ▲                               ├───────────▶ Body(n) ─▶ Between
//!     │                               │ chunked
//!     └────────── quiet ──────────────┴───────────▶ Chunked
//! ```
//!
//! *Between* promises that nothing of a next request was read. Where that can't be proven (bodies
//! of pipelined requests that came in one read), the answer is `Unsure`, which counts as owing us
//! bytes: such a connection is closed a little later, never too early.

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
    /// Part of a head was read; `tail` is how much of an empty line its end is.
    Head(Tail),
    /// A whole head was read and `after` bytes behind it; hyper will call the service with it.
    Parsed { after: u64, tail: Tail },
    /// So many bytes of a body are to come.
    Body(u64),
    /// Within, or at the end of, a chunked body.
    Chunked(Tail),
    /// Several requests came in one read: where the last one ends is not known.
    Unsure(Tail),
    /// HTTP/2, which has its own ways.
    Http2,
}

const PREFACE: &[u8] = b"PRI ";

impl Reading {
    pub(crate) const NEW: Self = Self::Fresh(0);

    /// No byte of a next request has been read, and none of the last one is missing.
    pub(crate) fn is_between(self) -> bool {
        match self {
            Self::Fresh(n) => n == 0,
            Self::Between => true,
            // A chunked body ends in an empty line, and so does its trailer section (RFC 9112
            // section 7.1). Whether it is the end is told by the response being finished.
            Self::Chunked(tail) => tail == Tail::Blank,
            _ => false,
        }
    }

    pub(crate) fn is_partial_head(self) -> bool {
        matches!(self, Self::Fresh(1..) | Self::Head(_))
    }

    /// Whether the first bytes of a next request go to a place of their own.
    pub(crate) fn expects_head(self) -> bool {
        matches!(self, Self::Fresh(0) | Self::Between)
    }

    /// hyper has finished a request and its response. What was a guess about a chunked body becomes
    /// the start of the next request.
    pub(crate) fn settled(self) -> Self {
        if self.is_between() && self != Self::NEW {
            Self::Between
        } else {
            self
        }
    }

    pub(crate) fn read(self, bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return self;
        }
        match self {
            Self::Fresh(n) => Self::preface(n, bytes),
            Self::Between => {
                // Most requests have no body and come in one read: the last bytes tell it all. The
                // methods that bring one begin with a P.
                if bytes[0] != b'P' && Tail::None.feed(bytes) == Tail::Blank {
                    return Self::Parsed {
                        after: 0,
                        tail: Tail::Blank,
                    };
                }
                Self::head(Tail::None, bytes)
            }
            Self::Head(tail) => Self::head(tail, bytes),
            Self::Parsed { after, tail } => Self::Parsed {
                after: after + bytes.len() as u64,
                tail: tail.feed(bytes),
            },
            Self::Body(left) => {
                let len = bytes.len() as u64;
                if len < left {
                    Self::Body(left - len)
                } else {
                    // `left <= len`, so it fits.
                    Self::Between.read(&bytes[usize::try_from(left).unwrap_or(bytes.len())..])
                }
            }
            Self::Chunked(tail) => Self::Chunked(tail.feed(bytes)),
            Self::Unsure(tail) => Self::Unsure(tail.feed(bytes)),
            Self::Http2 => Self::Http2,
        }
    }

    pub(crate) fn called(self, body: BodyLength) -> Self {
        let (after, tail) = match self {
            Self::Parsed { after, tail } => (Some(after), tail),
            // A pipelined request whose head came in the same read as an earlier one.
            Self::Between => (Some(0), Tail::Blank),
            Self::Chunked(tail) | Self::Unsure(tail) | Self::Head(tail) => (None, tail),
            Self::Fresh(_) | Self::Body(_) => (None, Tail::None),
            Self::Http2 => return Self::Http2,
        };
        match (body, after) {
            (BodyLength::Chunked, _) => Self::Chunked(tail),
            (BodyLength::Known(0), Some(0)) => Self::Between,
            (BodyLength::Known(n), Some(after)) if n > after => Self::Body(n - after),
            (BodyLength::Known(n), Some(after)) if n == after => Self::Between,
            // A request follows that has no body, as it ends in an empty line: all is read.
            (BodyLength::Known(0), _) if tail == Tail::Blank => Self::Between,
            (BodyLength::Known(_), _) => Self::Unsure(tail),
        }
    }

    fn preface(matched: u8, bytes: &[u8]) -> Self {
        let rest = &PREFACE[usize::from(matched)..];
        let n = rest.len().min(bytes.len());
        if bytes[..n] != rest[..n] {
            // What matched so far was the `P` of a POST.
            return if matched == 0 {
                Self::Between.read(bytes)
            } else {
                Self::head(Tail::None, bytes)
            };
        }
        if n == rest.len() {
            return Self::Http2;
        }
        // Less than the preface, so the sum fits.
        Self::Fresh(matched + u8::try_from(n).unwrap_or(0))
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
                let after = &bytes[at..];
                return Self::Parsed {
                    after: after.len() as u64,
                    tail: tail.feed(after),
                };
            }
        }
        Self::Head(tail)
    }
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

// ===== one word, for an atomic =====

impl Reading {
    pub(crate) fn pack(self) -> u64 {
        let (tag, flag, value) = match self {
            Self::Fresh(n) => (0, 0, u64::from(n)),
            Self::Between => (1, 0, 0),
            Self::Head(tail) => (2, tail as u64, 0),
            Self::Parsed { after, tail } => (3, tail as u64, after),
            Self::Body(left) => (4, 0, left),
            Self::Chunked(tail) => (5, tail as u64, 0),
            Self::Unsure(tail) => (6, tail as u64, 0),
            Self::Http2 => (7, 0, 0),
        };
        // A content-length of over 2^59 bytes is cut to that; it will not be reached.
        tag | flag << 3 | value.min(u64::MAX >> 5) << 5
    }

    pub(crate) fn unpack(word: u64) -> Self {
        let value = word >> 5;
        let tail = match word >> 3 & 3 {
            0 => Tail::None,
            1 => Tail::Line,
            2 => Tail::LineCr,
            _ => Tail::Blank,
        };
        match word & 7 {
            // Written by `pack`, so it fits.
            0 => Self::Fresh(u8::try_from(value).unwrap_or(0)),
            1 => Self::Between,
            2 => Self::Head(tail),
            3 => Self::Parsed { after: value, tail },
            4 => Self::Body(value),
            5 => Self::Chunked(tail),
            6 => Self::Unsure(tail),
            _ => Self::Http2,
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

    const MESSAGES: [Message; 6] = [
        (GET, b"", BodyLength::Known(0)),
        (DELETE_LF, b"", BodyLength::Known(0)),
        (POST, b"1234567", BodyLength::Known(7)),
        // The body is, or ends in, or holds an empty line.
        (POST, b"abc\r\n\r\n", BodyLength::Known(7)),
        (POST, b"\r\n\r\nabc", BodyLength::Known(7)),
        (PUT, b"2\r\nhi\r\n0\r\n\r\n", BodyLength::Chunked),
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
            reading = Reading::unpack(reading.read(&stream[at..cut]).pack());
            at = cut;
            while called < messages.len()
                && at >= heads[called]
                && (called == 0 || at >= ends[called - 1])
            {
                reading = Reading::unpack(reading.called(messages[called].2).pack());
                called += 1;
            }
            // Everything that was read has been used up by finished requests.
            let boundary = called > 0 && at == ends[called - 1];
            if reading.is_between() {
                // A chunked body may hold an empty line; then its response is not finished.
                let inside_chunked = called > 0
                    && messages[called - 1].2 == BodyLength::Chunked
                    && at < ends[called - 1];
                assert!(
                    boundary || inside_chunked,
                    "false idle: {reading:?} after {at} of {:?}",
                    String::from_utf8_lossy(&stream)
                );
                if boundary {
                    reading = reading.settled();
                }
            }
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
        assert_eq!(Reading::NEW.read(b"PRI * HTTP/2.0\r\n\r\n"), Reading::Http2);
        assert_eq!(Reading::NEW.read(b"PR").read(b"I "), Reading::Http2);
        assert!(
            !Reading::NEW.read(b"P").is_between(),
            "half a preface is a partial head"
        );
        let posted = Reading::NEW.read(b"P").read(&POST[1..]);
        assert_eq!(
            posted,
            Reading::Parsed {
                after: 0,
                tail: Tail::Blank
            }
        );
        assert!(Reading::NEW.is_between());
    }

    #[test]
    fn packing_keeps_everything() {
        for tail in [Tail::None, Tail::Line, Tail::LineCr, Tail::Blank] {
            for reading in [
                Reading::Fresh(3),
                Reading::Between,
                Reading::Head(tail),
                Reading::Parsed {
                    after: 1 << 40,
                    tail,
                },
                Reading::Body((1 << 59) - 1),
                Reading::Chunked(tail),
                Reading::Unsure(tail),
                Reading::Http2,
            ] {
                assert_eq!(Reading::unpack(reading.pack()), reading);
            }
        }
    }
}
