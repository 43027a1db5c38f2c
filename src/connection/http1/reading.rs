//! Where the requests lie in what is read: exact, as it follows every byte.
//!
//! hyper keeps what it has read to itself, so whether a byte of a *next* request lies in its buffer
//! must be known from outside: from the bytes as they pass, and from the requests as the service
//! is called with them. No head is parsed here; hyper's own word on each body's length is what counts.
//!
//! ```text
//!              bytes          empty line          called: no body
//!   Between ─────────▶ Head ─────────────▶ Whole ──────────────────────┐
//!     ▲  ▲                                 │   │ length n              ▼
//!     │  │            all read             │   └─────────▶ Body(n) ──▶ Between
//!     │  └─────────── Chunked ◀────────────┘ chunked          all read
//!     └ line ends (RFC 9112 section 2.2)
//! ```
//!
//! In `Whole` it is not known yet what the bytes behind the head are, so they are kept; once the
//! service is called they are taken for what they are, up to the next `Whole`, where they lie. hyper reads only when
//! its buffer is empty or holds part of a head, so what is kept is never more than one read.
//!
//! Most requests never come here: see [`is_ordinary`].

use super::super::name;
use super::super::state::Owes;

/// The length of a request's body, as hyper tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum BodyLength {
    Known(u64),
    Chunked,
}

/// What was read of a connection's requests.
#[derive(Debug, Default)]
pub(in super::super) struct Reader {
    at: At,
    /// In `Whole`: what was read behind the head, after so many bytes that are taken for what they are.
    kept: Vec<u8>,
    taken: usize,
    /// How the last head begins, and that of the request that was called last, for whoever has to name them.
    begins: Vec<u8>,
    in_hand: Vec<u8>,
    /// What was read last, if it was an ordinary head that is longer than its name.
    copy: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// At the end of a request, no byte of the next one read.
    #[default]
    Between,
    /// The same behind trailers, unless hyper refuses them.
    Trailed,
    /// Within a head; `Tail` is how much of an empty line its end is.
    Head(Tail),
    /// A whole head was read, with which hyper will call the service.
    Whole,
    /// More was read behind one than hyper has room for: its end is not where it was thought to be. Nothing more is
    /// known of this connection, except that it is not idle.
    Lost,
    /// So many bytes of a body are to come.
    Body(u64),
    /// Within a chunked body.
    Chunked(Chunks),
}

/// A head's first bytes that are kept for its name: as many as [`NameCopy`](name::NameCopy) holds, as the two are compared.
const NAMED: usize = name::LEN;

/// No more is kept: hyper's buffers hold less than half a megabyte, unless `max_buf_size` says otherwise.
const MOST: usize = 16 << 20;

/// Room for so much of what is kept stays for the next request.
const ROOM: usize = 1024;

impl Reader {
    pub(in super::super) fn owes(&self) -> Owes {
        match self.at {
            At::Between | At::Trailed => Owes::Nothing,
            At::Head(_) => Owes::Head,
            At::Whole | At::Lost => Owes::Call,
            At::Body(_) | At::Chunked(_) => Owes::Body,
        }
    }

    /// Whether hyper may have found no end of the last request where this did. `name`: of the request that was called for
    /// last, if that is whole.
    pub(in super::super) fn is_refusable(&self, name: Option<&[u8]>) -> bool {
        self.at == At::Trailed && name.is_none_or(|name| name == self.in_hand)
    }

    /// The same. It was taken, should hyper have called for another since, of which nothing was followed.
    pub(in super::super) fn is_taken(&mut self, name: Option<&[u8]>) {
        if self.at == At::Trailed && !self.is_refusable(name) {
            self.at = At::Between;
        }
    }

    /// The first bytes of the head that was read last.
    pub(in super::super) fn begins(&self) -> &[u8] {
        &self.begins
    }

    /// The same of the request that was called last.
    pub(in super::super) fn in_hand(&self) -> &[u8] {
        &self.in_hand
    }

    pub(in super::super) fn read(&mut self, bytes: &[u8]) {
        let n = self.follow(bytes);
        if n < bytes.len() && self.at == At::Whole {
            self.keep(&bytes[n..]);
        }
    }

    /// Goes on to the next `Whole`, or to the end of the bytes: by so many.
    fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += match self.at {
                At::Between | At::Trailed => {
                    // Line ends before it are none of its own, and hyper's parser skips them.
                    let begins = rest.iter().position(|b| !matches!(b, b'\r' | b'\n'));
                    if begins.is_some() {
                        self.at = At::Head(Tail::None);
                        self.begins.clear();
                    }
                    begins.unwrap_or(rest.len())
                }
                At::Head(tail) => {
                    let (tail, n) = tail.end(rest);
                    let named = n.min(NAMED - self.begins.len());
                    self.begins.extend_from_slice(&rest[..named]);
                    self.at = if tail == Tail::Blank {
                        At::Whole
                    } else {
                        At::Head(tail)
                    };
                    n
                }
                At::Whole | At::Lost => break,
                At::Body(left) => {
                    let n = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    self.at = match left - n as u64 {
                        0 => At::Between,
                        left => At::Body(left),
                    };
                    n
                }
                At::Chunked(chunks) => {
                    let (chunks, behind) = chunks.feed(rest);
                    self.at = match chunks {
                        Chunks::End => At::Between,
                        Chunks::EndOfTrailers => At::Trailed,
                        chunks => At::Chunked(chunks),
                    };
                    rest.len() - behind.len()
                }
            };
        }
        at
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.drain(..self.taken);
        self.taken = 0;
        if self.kept.len() + bytes.len() > MOST {
            self.kept = Vec::new();
            self.at = At::Lost;
        } else {
            self.kept.extend_from_slice(bytes);
        }
    }

    /// The service is called with the next request. It has been read, as hyper has it.
    pub(in super::super) fn called(&mut self, body: BodyLength) {
        self.in_hand.clone_from(&self.begins);
        if self.at == At::Lost {
            return;
        }
        self.at = match body {
            BodyLength::Known(0) => At::Between,
            BodyLength::Known(n) => At::Body(n),
            BodyLength::Chunked => At::Chunked(Chunks::Start),
        };
        // Where it lies, as thousands may be pipelined.
        let mut kept = std::mem::take(&mut self.kept);
        self.taken += self.follow(&kept[self.taken..]);
        if self.taken == kept.len() {
            kept.clear();
            self.taken = 0;
        }
        if !kept.is_empty() || kept.capacity() <= ROOM {
            self.kept = kept;
        }
    }

    /// An ordinary head was read, which is not followed.
    pub(in super::super) fn copy(&mut self, read: &[u8]) {
        self.at = At::Between;
        self.copy.clear();
        self.copy.extend_from_slice(read);
    }

    /// What was copied last.
    pub(in super::super) fn copied(&self) -> &[u8] {
        &self.copy
    }

    /// It is followed after all: what was read last is that, or these few bytes.
    pub(in super::super) fn restart(&mut self, short: Option<&[u8]>) {
        self.at = At::Between;
        self.kept.clear();
        self.taken = 0;
        if let Some(short) = short {
            self.read(short);
        } else {
            let copy = std::mem::take(&mut self.copy);
            self.read(&copy);
            self.copy = copy;
        }
    }
}

/// Whether this is what nearly all reads between two requests are: one head, or several, and nothing
/// behind. hyper asks for input with nothing in hand only if its buffer holds part of a head or
/// nothing, and no part of a head ends in an empty line: so unless a body is owed, nothing of a next
/// head is there, and no more needs to be known.
///
/// A body may be owed, and which of these bytes are part of it must be told then: so they are copied.
#[inline]
pub(in super::super) fn is_ordinary(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n\r\n") && !matches!(bytes[0], b'\r' | b'\n') && bytes.len() <= COPIED
}

/// Whether more than one head lies in what is ordinary.
pub(in super::super) fn is_followed(ordinary: &[u8]) -> bool {
    let (_, n) = Tail::None.end(ordinary);
    ordinary[n..].iter().any(|b| !matches!(b, b'\r' | b'\n'))
}

/// No more than this is copied.
const COPIED: usize = 2048;

/// How much of an empty line the last bytes are. hyper's parser takes a bare LF for a line end, so
/// this does too (RFC 9112 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    None,
    Line,
    LineCr,
    Blank,
}

impl Tail {
    fn next(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Line | Self::LineCr | Self::Blank, b'\n') => Self::Blank,
            (Self::Line, b'\r') => Self::LineCr,
            (_, b'\n') => Self::Line,
            _ => Self::None,
        }
    }

    /// Goes on to the end of an empty line, or of the bytes: by so many.
    fn end(mut self, bytes: &[u8]) -> (Self, usize) {
        let mut at = 0;
        while at < bytes.len() && self != Self::Blank {
            // Between line ends nothing can happen.
            if self == Self::None {
                match bytes[at..].iter().position(|&b| b == b'\n') {
                    Some(n) => at += n,
                    None => return (self, bytes.len()),
                }
            }
            self = self.next(bytes[at]);
            at += 1;
        }
        (self, at)
    }
}

/// How far a chunked body has come (RFC 9112 section 7.1). What hyper's decoder refuses never ends: it closes the
/// connection of who sends that, and what else comes is not to destroy its answer. What is in trailers is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunks {
    /// A chunk's size is to come.
    Start,
    /// It is this so far.
    Size(u64),
    /// White space behind it.
    Space(u64),
    Extension(u64),
    /// Behind the CR of that line.
    SizeLf(u64),
    /// So many bytes of a chunk are to come.
    Data(u64),
    /// The end of the line behind a chunk is to come.
    Cr,
    Lf,
    /// At the CR of an empty line, with which a body without trailers ends, or at the first of those.
    Last,
    LastLf,
    /// In a trailer, which end in CRLF only: hyper finds their end so before its parser, which takes a bare LF as well,
    /// sees them.
    Trailer,
    TrailerLf,
    /// At the next one, or at the empty line behind all.
    Trailers,
    TrailersLf,
    /// All is read.
    End,
    EndOfTrailers,
    Broken,
}

impl Chunks {
    /// Gives what is behind the end.
    fn feed(mut self, mut bytes: &[u8]) -> (Self, &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self {
                Self::End | Self::EndOfTrailers => break,
                Self::Broken => return (self, &[]),
                Self::Data(left) => {
                    let n = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    bytes = &bytes[n..];
                    self = match left - n as u64 {
                        0 => Self::Cr,
                        left => Self::Data(left),
                    };
                }
                _ => {
                    self = self.next(byte);
                    bytes = rest;
                }
            }
        }
        (self, bytes)
    }

    fn next(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Start, _) if byte.is_ascii_hexdigit() => Self::Size(0).next(byte),
            (Self::Size(n) | Self::Space(n) | Self::Extension(n), b'\r') => Self::SizeLf(n),
            (Self::Size(n) | Self::Space(n), b' ' | b'\t') => Self::Space(n),
            (Self::Size(n) | Self::Space(n), b';') => Self::Extension(n),
            (Self::Size(n), _) => match char::from(byte).to_digit(16) {
                Some(digit) if n >> 60 == 0 => Self::Size(n << 4 | u64::from(digit)),
                _ => Self::Broken,
            },
            (Self::Extension(n), _) if byte != b'\n' => Self::Extension(n),
            (Self::SizeLf(0), b'\n') => Self::Last,
            (Self::SizeLf(n), b'\n') => Self::Data(n),
            (Self::Cr, b'\r') => Self::Lf,
            (Self::Lf, b'\n') => Self::Start,
            (Self::Last, b'\r') => Self::LastLf,
            (Self::LastLf, b'\n') => Self::End,
            (Self::Trailers, b'\r') => Self::TrailersLf,
            (Self::TrailersLf, b'\n') => Self::EndOfTrailers,
            (Self::Trailer, b'\r') => Self::TrailerLf,
            (Self::TrailerLf, b'\n') => Self::Trailers,
            (Self::Last | Self::Trailer | Self::Trailers, _) => Self::Trailer,
            _ => Self::Broken,
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

    const MESSAGES: [Message; 10] = [
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
            b"07 \t;a=b\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n",
            BodyLength::Chunked,
        ),
        (
            PUT,
            b"1\r\n0\r\n0\r\nx: y\r\nz: 1\r\n\r\n",
            BodyLength::Chunked,
        ),
        // What would be an empty line in a head is none in trailers.
        (PUT, b"0\r\nx: y\n\r\nz: 1\r\n\r\n", BodyLength::Chunked),
        (PUT, b"0\r\nx\n\n\nz\r\n\r\n", BodyLength::Chunked),
    ];

    /// What hyper does, as a naive model that keeps all bytes: reads in the given pieces, calls the
    /// service as soon as a head is whole, and not before the request ahead of it is done. After every read
    /// and every call the reader must say what the model knows.
    fn run(messages: &[Message], cuts: &[usize], after: &'static [u8]) {
        let mut stream: Vec<u8> = messages.iter().flat_map(|m| [m.0, m.1].concat()).collect();
        let (mut ends, mut heads, mut end) = (Vec::new(), Vec::new(), 0);
        for m in messages {
            heads.push(end + m.0.len());
            end += m.0.len() + m.1.len();
            ends.push(end);
        }
        stream.extend(after);
        let (mut reader, mut at, mut called) = (Reader::default(), 0, 0);
        for &cut in cuts.iter().chain([&stream.len()]) {
            if cut <= at {
                continue;
            }
            reader.read(&stream[at..cut]);
            at = cut;
            loop {
                let done = if called == 0 { 0 } else { ends[called - 1] };
                let begun = &stream[done.min(at)..at];
                let only_ends = begun.iter().all(|b| matches!(b, b'\r' | b'\n'));
                let expected = match heads.get(called) {
                    _ if at < done => Owes::Body,
                    _ if only_ends => Owes::Nothing,
                    Some(&head) if at >= head => Owes::Call,
                    _ => Owes::Head,
                };
                let said = stream.escape_ascii();
                assert_eq!(
                    reader.owes(),
                    expected,
                    "{called} called, after {at} of {said}"
                );
                if expected != Owes::Call {
                    break;
                }
                let begins = &stream[done..at.min(heads[called]).min(done + NAMED)];
                if called + 1 == messages.len() || at < heads[called + 1] {
                    assert!(begins.ends_with(reader.begins()), "of {said}");
                }
                reader.called(messages[called].2);
                called += 1;
            }
        }
        assert_eq!(called, messages.len());
        assert!(reader.kept.is_empty());
    }

    const ENDS: [&[u8]; 4] = [b"", b"\r\n", b"\r\n\r\n", b"\n"];

    #[test]
    fn one_request_in_any_three_reads() {
        for message in MESSAGES {
            for after in ENDS {
                let len = message.0.len() + message.1.len() + after.len();
                for first in 1..=len {
                    for second in first..=len {
                        run(&[message], &[first, second], after);
                    }
                }
            }
        }
    }

    #[test]
    fn two_requests_in_any_three_reads() {
        for a in MESSAGES {
            for b in MESSAGES {
                let len = [a.0, a.1, b.0, b.1].concat().len() + 2;
                for first in 1..=len {
                    for second in first..=len {
                        run(&[a, b], &[first, second], b"\r\n");
                    }
                }
            }
        }
    }

    #[test]
    fn three_requests_in_any_two_reads() {
        for a in MESSAGES {
            for b in MESSAGES {
                for c in MESSAGES {
                    let len = [a.0, a.1, b.0, b.1, c.0, c.1].concat().len();
                    for first in 1..=len {
                        run(&[a, b, c], &[first], b"");
                    }
                }
            }
        }
    }

    #[test]
    fn what_ends_in_an_empty_line_and_is_not_long_is_ordinary() {
        let long = [b"GET /", &[b'a'; COPIED][..], b" HTTP/1.1\r\n\r\n"].concat();
        for yes in [GET, POST, &[GET, GET].concat(), &long[20..]] {
            assert!(is_ordinary(yes), "{}", yes.escape_ascii());
        }
        let after_line = [b"\r\n", GET].concat();
        for no in [&b""[..], b"\r\n\r\n", &after_line, DELETE_LF, &long] {
            assert!(!is_ordinary(no), "{}", no.escape_ascii());
        }
    }

    #[test]
    fn what_is_followed_by_line_ends_is_by_nothing() {
        for (after, followed) in [(&b""[..], false), (b"\r\n\r\n", false), (GET, true)] {
            assert_eq!(is_followed(&[GET, after].concat()), followed);
        }
        assert!(!is_followed(b"") && !is_followed(&GET[..9]));
    }

    /// Of what hyper refuses nobody knows where it ends.
    #[test]
    fn a_broken_body_never_ends() {
        const BROKEN: [&[u8]; 14] = [
            b"\r\n",
            b";a\r\n",
            b"g\r\n",
            b"1g\r\n",
            b"0\n",
            b"0 \n",
            b"0 0\r\n",
            b"0;a\n",
            b"0;a\r\r\n",
            b"10000000000000000\r\n",
            b"1\r\nab\r\n",
            b"1\r\na\r\r\n",
            b"0\r\na\r\r\n",
            b"0\r\n\ra",
        ];
        for broken in BROKEN {
            let mut reader = Reader::default();
            reader.read(PUT);
            reader.called(BodyLength::Chunked);
            reader.read(broken);
            reader.read(b"\r\n0\r\n\r\n");
            reader.read(b"0\r\n\r\n\r\n\r\n");
            assert_eq!(reader.owes(), Owes::Body, "{}", broken.escape_ascii());
        }
    }

    #[test]
    fn what_hyper_may_have_refused_is_known_by_its_name() {
        let mut reader = Reader::default();
        reader.read(PUT);
        reader.called(BodyLength::Chunked);
        reader.read(b"0\r\n");
        assert!(!reader.is_refusable(Some(PUT)));
        reader.read(b"a: b\r\n\r\n");
        assert!(reader.is_refusable(Some(PUT)) && reader.is_refusable(None));
        assert!(!reader.is_refusable(Some(GET)));
        reader.is_taken(Some(PUT));
        assert!(reader.is_refusable(Some(PUT)));
        assert_eq!((reader.owes(), reader.in_hand()), (Owes::Nothing, PUT));
        reader.is_taken(Some(GET));
        assert!(!reader.is_refusable(Some(PUT)));
        reader.called(BodyLength::Chunked);
        reader.read(b"0\r\na: b\r\n\r\n");
        assert!(reader.is_refusable(None));
        reader.copy(GET);
        assert!(!reader.is_refusable(None));
        assert_eq!(reader.copied(), GET);
        reader.restart(None);
        assert_eq!((reader.owes(), reader.begins()), (Owes::Call, GET));
    }

    #[test]
    fn a_name_is_no_longer_than_that() {
        let head = [b"GET /", &[b'a'; 200][..]].concat();
        let mut reader = Reader::default();
        for piece in head.chunks(30) {
            reader.read(piece);
        }
        assert_eq!(reader.begins(), &head[..NAMED]);
    }

    /// Each call copied all that lay behind its head: of what is pipelined in one read, the square.
    #[test]
    fn what_is_kept_is_not_moved() {
        let mut reader = Reader::default();
        reader.read(&GET.repeat(1000));
        let kept = (reader.kept.as_ptr(), reader.kept.len());
        for called in 1..1000 {
            reader.called(BodyLength::Known(0));
            assert_eq!(reader.owes(), Owes::Call);
            if called < 999 {
                assert_eq!((reader.kept.as_ptr(), reader.kept.len()), kept);
            }
        }
        reader.called(BodyLength::Known(0));
        assert_eq!((reader.owes(), reader.kept.capacity()), (Owes::Nothing, 0));
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let mut reader = Reader::default();
        reader.read(GET);
        for _ in 0..=MOST / 60_000 {
            reader.read(&vec![b'x'; 60_000]);
        }
        assert_eq!((reader.owes(), reader.kept.capacity()), (Owes::Call, 0));
        reader.called(BodyLength::Known(0));
        assert_eq!(reader.owes(), Owes::Call);
    }

    #[test]
    fn little_is_kept_for_later() {
        let mut reader = Reader::default();
        reader.read(POST);
        reader.read(&vec![b'x'; 40_000]);
        reader.read(&vec![b'x'; 60_000]);
        reader.called(BodyLength::Known(100_000));
        assert_eq!((reader.owes(), reader.kept.capacity()), (Owes::Nothing, 0));
    }
}
