//! Where TLS records end in what a socket reads: half a record is invisible to whoever reads the
//! plaintext.
//!
//! ```text
//!            begins as a record does
//!   Unknown ──────────────────────────▶ Tls ◀───────────┐
//!      │                                 │ no record     │ ClientHello, ChangeCipherSpec
//!      │ anything else                   ▼               │
//!      └──────────────────────────────▶ Seeking ─────────┘
//!                                        │ HTTP begins, or too much has passed
//!                                        ▼
//!                                  Plain or Veiled
//! ```
//!
//! Most connections begin with TLS, or have none. But an accept loop may read something before it,
//! the header of a PROXY protocol say, and that may hold any bytes. So TLS is sought by what it begins
//! with, its records are followed only as long as they are some, and when HTTP begins they must
//! have been enough for a handshake: nothing that is in a request is taken for TLS.

#[cfg(all(test, feature = "serve"))]
pub(super) mod fuzzed;

/// What has been seen of a connection's records.
#[derive(Debug, Default)]
pub(super) struct Records {
    state: State,
    in_http: bool,
    /// How much was read before, and the last of it.
    read: u32,
    tail: [u8; TAIL],
}

#[derive(Debug, Default)]
enum State {
    /// Nothing was read yet.
    #[default]
    Unknown,
    /// So many of the last bytes may be the beginning of TLS.
    Seeking { last: [u8; HELLO], filled: u8 },
    Tls {
        header: [u8; HEADER],
        filled: u8,
        payload: u16,
        /// How many records were found in a row: [`ENOUGH`] is as good as any more.
        found: u8,
    },
    /// There are no records and there will be none: HTTP is what the socket reads.
    #[cfg_attr(
        not(feature = "serve"),
        expect(dead_code, reason = "nobody says where it begins")
    )]
    Plain,
    /// The same, but something above the socket reads other bytes than it hands on, and may write
    /// others as well.
    Veiled,
}

const _: () = assert!(CHANGE_CIPHER_SPEC | 2 == HANDSHAKE, "as is looked for");

/// Content type, version, length (RFC 8446 section 5.1).
const HEADER: usize = 5;
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const HEARTBEAT: u8 = 24;

/// The longest payload there is (RFC 5246 section 6.2.3).
const LONGEST: u16 = (1 << 14) + 2048;

/// As much of a `ClientHello` as is looked at.
const HELLO: usize = 11;

/// So many bytes tell whether HTTP is what the socket has read: who hides it can't keep them by chance.
const TAIL: usize = 4;

/// A whole `ChangeCipherSpec`.
const CIPHER_CHANGE: usize = 6;

/// A request comes in the third record at the earliest, but for early data.
const ENOUGH: u8 = 3;

/// What precedes TLS is not longer: a PROXY header of version 2 counts its length in 16 bits.
const SOUGHT: u32 = 16 + (64 << 10);

impl Records {
    /// Nothing that is read from here on matters.
    #[inline]
    pub(super) fn are_none(&self) -> bool {
        matches!(self.state, State::Plain | State::Veiled)
    }

    /// What is written to the socket reaches the other side as HTTP.
    pub(super) fn are_plain(&self) -> bool {
        matches!(self.state, State::Plain)
    }

    /// Takes what was read.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        if !self.in_http {
            let more = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            self.read = self.read.saturating_add(more);
            let new = &bytes[bytes.len().saturating_sub(TAIL)..];
            self.tail.rotate_left(new.len());
            self.tail[TAIL - new.len()..].copy_from_slice(new);
        }
        while let Some(&first) = bytes.first() {
            let n = match &mut self.state {
                State::Plain | State::Veiled => return,
                State::Unknown => {
                    // No request begins with one of these.
                    self.state = if (CHANGE_CIPHER_SPEC..=HEARTBEAT).contains(&first) {
                        State::tls(ENOUGH)
                    } else {
                        State::SEEKING
                    };
                    0
                }
                State::Seeking { .. } => self.seek(bytes),
                State::Tls { .. } => self.follow(bytes),
            };
            bytes = &bytes[n..];
        }
        if self.read > SOUGHT && matches!(self.state, State::Seeking { .. }) {
            self.state = State::Veiled;
        }
    }

    /// Goes on to where TLS begins, if it does: by so many bytes.
    fn seek(&mut self, bytes: &[u8]) -> usize {
        let State::Seeking { last, filled } = &mut self.state else {
            return 0;
        };
        // As in nearly every request there is none of the two: looked at many bytes at a time.
        let begins = |byte: &u8| byte & !2 == CHANGE_CIPHER_SPEC;
        if *filled == 0 && !bytes.iter().fold(false, |any, byte| any | begins(byte)) {
            return bytes.len();
        }
        for (at, &byte) in bytes.iter().enumerate() {
            let mut n = usize::from(*filled);
            if n == 0 && byte != HANDSHAKE && byte != CHANGE_CIPHER_SPEC {
                continue;
            }
            last[n] = byte;
            n += 1;
            while n > 0 && !is_hello(&last[..n]) && !is_cipher_change(&last[..n]) {
                last.copy_within(1..n, 0);
                n -= 1;
            }
            // At most `HELLO`.
            *filled = u8::try_from(n).unwrap_or(0);
            if n == HELLO || n == CIPHER_CHANGE && is_cipher_change(&last[..n]) {
                let found = *last;
                self.state = State::tls(0);
                // Which is a record's header, and less than its payload.
                self.follow(&found[..HEADER]);
                self.follow(&found[HEADER..n]);
                return at + 1;
            }
        }
        bytes.len()
    }

    /// Goes on to the end of a record's header or payload: by so many bytes.
    #[allow(clippy::cast_possible_truncation)] // each is cut to what is left of a header or a record
    fn follow(&mut self, bytes: &[u8]) -> usize {
        let State::Tls {
            header,
            filled,
            payload,
            found,
        } = &mut self.state
        else {
            return 0;
        };
        let at = usize::from(*filled);
        let n;
        if at < HEADER {
            n = bytes.len().min(HEADER - at);
            header[at..at + n].copy_from_slice(&bytes[..n]);
            *filled += n as u8;
            if usize::from(*filled) == HEADER {
                let header = *header;
                let Some(length) = length(header) else {
                    self.lose(&header);
                    return n;
                };
                *payload = length;
                *found = (*found + 1).min(ENOUGH);
            }
        } else {
            n = bytes.len().min(usize::from(*payload));
            *payload -= n as u16;
        }
        if usize::from(*filled) == HEADER && *payload == 0 {
            *filled = 0;
        }
        n
    }

    /// These bytes are none that follow on a record.
    #[cold]
    fn lose(&mut self, header: &[u8]) {
        if self.in_http {
            self.state = State::Veiled;
        } else {
            self.state = State::SEEKING;
            self.seek(header);
        }
    }

    /// This was read, the first of HTTP.
    #[cfg(any(feature = "serve", test))]
    pub(super) fn http_begins(&mut self, plaintext: &[u8]) {
        self.in_http = true;
        // Also if it looks like TLS, as the body of a request may. Were it TLS, it would end in what nobody
        // can choose (RFC 8446 section 5.2); and of what is too short to tell the length does.
        let passed = plaintext.ends_with(&self.tail) && !self.are_none();
        let is_tls = matches!(
            self.state,
            State::Tls {
                found: ENOUGH..,
                ..
            }
        ) && usize::try_from(self.read) != Ok(plaintext.len());
        if passed {
            self.state = State::Plain;
        } else if !is_tls {
            self.state = State::Veiled;
        }
    }

    /// Something was read while HTTP had not begun.
    pub(super) fn have_begun(&self) -> bool {
        self.read > 0
    }

    /// What was read ends within a record.
    pub(super) fn are_half(&self) -> bool {
        match self.state {
            State::Unknown | State::Plain | State::Veiled => false,
            // Fewer may be anything.
            State::Seeking { filled, .. } => usize::from(filled) >= HEADER,
            State::Tls { filled, .. } => filled > 0,
        }
    }
}

impl State {
    const SEEKING: Self = Self::Seeking {
        last: [0; HELLO],
        filled: 0,
    };

    /// Before a record, having found so many.
    fn tls(found: u8) -> Self {
        Self::Tls {
            header: [0; HEADER],
            filled: 0,
            payload: 0,
            found,
        }
    }
}

/// The length that a record's header tells, if it is one.
fn length(header: [u8; HEADER]) -> Option<u16> {
    let [kind, major, _, length @ ..] = header;
    let length = u16::from_be_bytes(length);
    let is_record = (CHANGE_CIPHER_SPEC..=HEARTBEAT).contains(&kind) && major == 3;
    Some(length).filter(|length| is_record && *length <= LONGEST)
}

/// Whether a `ClientHello` may begin so: record header, type, length, version (RFC 8446 section 4).
fn is_hello(begun: &[u8]) -> bool {
    let fits = |(at, &byte): (usize, &u8)| match at {
        0 => byte == HANDSHAKE,
        1 | 9 => byte == 3,
        2 | 10 => byte <= 4,
        5 => byte == 1,
        6 => byte == 0,
        _ => true,
    };
    let &[_, _, _, a, b, _, _, c, d, ..] = begun else {
        return begun.iter().enumerate().all(fits);
    };
    // It may go on in another record, but nothing else comes in this one. One that is longer than any is none.
    let record = usize::from(u16::from_be_bytes([a, b]));
    let message = 4 + usize::from(u16::from_be_bytes([c, d]));
    let is_in = (HELLO - HEADER..=message.min(LONGEST.into())).contains(&record);
    is_in && begun.iter().enumerate().all(fits)
}

/// Whether a `ChangeCipherSpec` may begin so, which is always the same: every client sends one,
/// also one whose `ClientHello` was read before its socket was tracked.
fn is_cipher_change(begun: &[u8]) -> bool {
    let fits = |(at, &byte): (usize, &u8)| match at {
        0 => byte == CHANGE_CIPHER_SPEC,
        1 => byte == 3,
        2 => byte <= 4,
        3 => byte == 0,
        4 | 5 => byte == 1,
        _ => false,
    };
    begun.iter().enumerate().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether half a record is there after these were read.
    fn fed(records: &mut Records, bytes: &[u8]) -> bool {
        records.feed(bytes);
        records.are_half()
    }

    /// The same, HTTP beginning in them.
    fn begun(records: &mut Records, plaintext: &[u8]) -> bool {
        records.http_begins(plaintext);
        records.are_half()
    }

    /// Found by the one rule and lost by the other, it was followed without end, under the lock of its socket.
    #[test]
    fn a_hello_longer_than_any_record_is_none() {
        for length in [18_433_u16, 20_000, 65_535] {
            let [high, low] = length.to_be_bytes();
            let hello = [HANDSHAKE, 3, 1, high, low, 1, 0, 0xff, 0xff, 3, 3];
            for before in [&b""[..], b"A", &[23, 3, 3, 0, 0]] {
                let stream = [before, &hello].concat();
                for piece in 1..=stream.len() {
                    let mut records = Records::default();
                    stream.chunks(piece).for_each(|it| records.feed(it));
                    assert!(matches!(records.state, State::Seeking { .. }));
                }
            }
        }
    }

    #[test]
    fn the_longest_record_is_one_and_no_longer() {
        let [high, low] = 18_432_u16.to_be_bytes();
        let mut records = Records::default();
        assert!(fed(&mut records, &[HANDSHAKE, 3, 3, high, low]));
        assert!(fed(&mut records, &vec![1; 18_431]));
        assert!(!fed(&mut records, &[1]));
        // Of another kind, as one like that might begin a handshake.
        assert!(!fed(&mut records, &[23, 3, 3, high, low + 1]));
    }

    #[test]
    fn tls_is_not_sought_for_ever() {
        const BEGUN: [u8; 12] = [HANDSHAKE, 3, 1, 0, 14, 1, 0, 0, 10, 3, 3, 0];
        for (before, found) in [(65_000, true), (65_553, false)] {
            let mut records = Records::default();
            assert!(!fed(&mut records, &vec![b'a'; before]));
            assert_eq!(fed(&mut records, &BEGUN), found, "{before}");
        }
    }

    const V1: &[u8] = b"PROXY TCP4 22.3.1.0 10.0.0.1 5635 443\r\n";
    /// The client's address and port look like the header of a record.
    const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x16\x03\x01\0\x7f\0\0\x01\x16\x03\x01\0";

    fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).expect("short");
        [&[kind, 3, 3], &length.to_be_bytes()[..], payload].concat()
    }

    fn hello(rest: u8) -> Vec<u8> {
        record(
            HANDSHAKE,
            &[&[1, 0, 0, rest, 3, 3][..], &vec![22; usize::from(rest) - 2]].concat(),
        )
    }

    /// What a client sends, and where its records end.
    fn session() -> (Vec<u8>, Vec<usize>) {
        let records = [
            hello(200),
            record(CHANGE_CIPHER_SPEC, &[1]),
            record(23, &[20; 53]),
            record(23, &[]),
            record(23, &[22; 250]),
        ];
        let (mut stream, mut ends) = (Vec::new(), vec![0]);
        for record in records {
            stream.extend(record);
            ends.push(stream.len());
        }
        (stream, ends)
    }

    #[test]
    fn knows_half_a_record_in_any_pieces() {
        let (stream, ends) = session();
        for piece in 1..stream.len() {
            let (mut records, mut at) = (Records::default(), 0);
            for bytes in stream.chunks(piece) {
                at += bytes.len();
                assert_eq!(fed(&mut records, bytes), !ends.contains(&at), "at {at}");
            }
        }
        assert!(!fed(&mut Records::default(), b"GET / HTTP/1.1"));
    }

    #[test]
    fn finds_tls_behind_anything() {
        let (tls, ends) = session();
        let behind: [(&[u8], bool); 7] = [
            (V1, false),
            (V2, false),
            (b"\x16", false),
            (b"\x16\x16\x03", false),
            (&[22; 999], false),
            // With what follows the header of a record, which seems to hold the `ClientHello`.
            (&[HANDSHAKE, 3, 1, 0, 40], true),
            (&[20, 3, 3, 0], true),
        ];
        for (before, found_late) in behind {
            let stream = [before, &tls].concat();
            for piece in 1..stream.len() {
                let (mut records, mut at) = (Records::default(), 0);
                for bytes in stream.chunks(piece) {
                    at += bytes.len();
                    let half = fed(&mut records, bytes);
                    // Found when all that is looked at has come.
                    let found = at.checked_sub(before.len() + HELLO);
                    if let Some(at) = found.filter(|_| !found_late) {
                        let is_half = !ends.contains(&(at + HELLO));
                        let before = before.escape_ascii();
                        assert_eq!(half, is_half, "at {at}, pieces of {piece}, {before}");
                    }
                }
                assert!(!begun(&mut records, b"not these"));
                assert!(fed(&mut records, &[23]) && fed(&mut records, &[3, 3, 0, 1]));
                assert!(!fed(&mut records, &[0]));
            }
        }
    }

    #[test]
    fn finds_tls_whose_beginning_was_read_by_others() {
        let (stream, _) = session();
        // Within the `ClientHello`, and behind it.
        for at in [3, 9, 100, hello(200).len()] {
            let mut records = Records::default();
            assert!(!fed(&mut records, &stream[at..]));
            assert!(!begun(&mut records, b"not these"));
            assert!(fed(&mut records, &[23]), "from {at} on");
        }
    }

    #[test]
    fn takes_no_request_for_tls() {
        let body = session().0;
        let post = [
            b"POST / HTTP/1.1\r\ncontent-length: 9999\r\n\r\n",
            &body[..],
        ]
        .concat();
        let half_hello = &post[..90];
        let h2c = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        // All of it in one read, with nothing before; or no more than a record, behind a header.
        let alone: [&[u8]; 4] = [&post, half_hello, h2c, b"\x16\x03\x01"];
        let behind: [&[u8]; 3] = [half_hello, h2c, &post[..24]];
        let alone = alone.map(|request| (&b""[..], request));
        let behind = [V1, V2].map(|before| behind.map(|request| (before, request)));
        for (before, request) in alone.into_iter().chain(behind.into_iter().flatten()) {
            let mut records = Records::default();
            records.feed(before);
            records.feed(request);
            let half = begun(&mut records, request);
            assert!(!half, "{}", request.escape_ascii());
            assert!(records.are_none() && !fed(&mut records, &body[..50]));
        }
    }

    #[test]
    fn knows_what_is_handed_on_as_it_is() {
        let head = b"GET / HTTP/1.1\r\n\r\n";
        let veiled = head.map(|byte| byte ^ 0x55);
        let read = |raw: &[&[u8]], plaintext: &[u8]| {
            let mut records = Records::default();
            for bytes in raw {
                records.feed(bytes);
            }
            assert!(!begun(&mut records, plaintext));
            assert!(records.are_none());
            records.are_plain()
        };
        assert!(read(&[head], head));
        assert!(read(&[V1, head], head), "behind what was read by others");
        assert!(read(&[b"G", b"E", b"T ", b"/"], b"GET /"));
        assert!(!read(&[&veiled], head));
        assert!(!read(&[b"17 bytes too many", head], b"GET "));
        assert!(!read(&[b"G"], b"G"), "too few to tell");
        let much = vec![7; SOUGHT as usize + 1];
        assert!(!read(&[&much, head], head));
    }

    #[test]
    fn what_breaks_off_is_none() {
        let (stream, _) = session();
        let mut records = Records::default();
        records.feed(&stream);
        records.http_begins(b"not these");
        assert!(!fed(&mut records, b"GET / HTTP/1.1"));
        assert!(records.are_none());
    }

    #[test]
    fn seeks_so_far_and_no_further() {
        let mut records = Records::default();
        for _ in 0..SOUGHT / 8 {
            records.feed(b"whatever");
            assert!(!records.are_none());
        }
        records.feed(b"whatever");
        assert!(records.are_none());
    }
}
