//! What an HTTP/2 client may say and should not.

use super::{PREFACE, frame};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Flags of HEADERS: that its block is whole, and that this was the request.
const WHOLE: u8 = 4;
const LAST: u8 = 1;
const PADDED: u8 = 8;
const PRIORITIZED: u8 = 0x20;

/// What a request has, by HPACK's static table: GET, http, and `/` as a path.
const FIELDS: &[u8] = &[0x82, 0x86, 0x84];
/// The same with POST.
const POST: &[u8] = &[0x83, 0x86, 0x84];

/// Frames that follow on a preface and a SETTINGS frame.
#[derive(Default)]
pub(super) struct Frames(Vec<u8>);

impl Frames {
    fn and(mut self, kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Self {
        frame(&mut self.0, kind, flags, stream, payload.as_ref());
        self
    }

    fn bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    /// A GET.
    fn get(self, stream: u32) -> Self {
        self.and(HEADERS, WHOLE | LAST, stream, FIELDS)
    }

    /// A POST whose body is to come.
    fn post(self, stream: u32) -> Self {
        self.and(HEADERS, WHOLE, stream, POST)
    }

    /// A GET of these fields.
    fn fields(self, block: impl AsRef<[u8]>) -> Self {
        self.and(HEADERS, WHOLE | LAST, 1, block)
    }

    fn settings(self, pairs: &[(u16, u32)]) -> Self {
        let pair =
            |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        self.and(
            SETTINGS,
            0,
            0,
            pairs.iter().flat_map(pair).collect::<Vec<_>>(),
        )
    }
}

fn frames() -> Frames {
    Frames::default()
}

/// A literal field, not indexed.
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name, value] {
        field.push(u8::try_from(text.len()).expect("short"));
        field.extend_from_slice(text.as_bytes());
    }
    field
}

/// [`FIELDS`] and these.
fn with(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = fields.iter().flat_map(|(name, value)| field(name, value));
    FIELDS.iter().copied().chain(fields).collect()
}

/// The kinds that h2spec has, by the sections of RFC 9113 and RFC 7541.
#[allow(clippy::too_many_lines, reason = "a table")]
pub(super) fn malformed_http2() -> Vec<(&'static str, Frames)> {
    let big = 1 << 14;
    let most = (1 << 31) - 1_u32;
    vec![
        // 3.4: the preface.
        ("no SETTINGS", frames().get(1)),
        ("nonsense", frames().bytes("GET / HTTP/1.1\r\n\r\n")),
        // 4.1: frames.
        ("a frame unknown", frames().and(0x16, 0, 0, [0; 8]).get(1)),
        ("flags unknown", frames().and(PING, 0xfe, 0, [7; 8]).get(1)),
        (
            "a reserved bit",
            frames().and(PING, 0, 1 << 31, [7; 8]).get(1),
        ),
        ("half a frame", frames().bytes([0, 0, 8, PING])),
        // 4.2: their sizes.
        (
            "big DATA",
            frames().post(1).and(DATA, LAST, 1, vec![7; big]),
        ),
        (
            "too big DATA",
            frames().post(1).and(DATA, LAST, 1, vec![7; big + 1]),
        ),
        ("too big HEADERS", frames().fields(vec![0x82; big + 1])),
        (
            "too big unknown",
            frames().and(0x16, 0, 0, vec![7; big + 1]),
        ),
        (
            "short PRIORITY",
            frames().get(1).and(PRIORITY, 0, 1, [0; 4]),
        ),
        (
            "long RST_STREAM",
            frames().post(1).and(RST_STREAM, 0, 1, [0; 5]),
        ),
        (
            "short RST_STREAM",
            frames().post(1).and(RST_STREAM, 0, 1, [0; 3]),
        ),
        ("long SETTINGS", frames().and(SETTINGS, 0, 0, [0; 7])),
        ("short PING", frames().and(PING, 0, 0, [0; 7])),
        ("long PING", frames().and(PING, 0, 0, [0; 9])),
        ("short GOAWAY", frames().and(GOAWAY, 0, 0, [0; 7])),
        (
            "short WINDOW_UPDATE",
            frames().and(WINDOW_UPDATE, 0, 0, [0; 3]),
        ),
        (
            "long WINDOW_UPDATE",
            frames().post(1).and(WINDOW_UPDATE, 0, 1, [0; 5]),
        ),
        // 4.3: blocks of fields.
        (
            "PRIORITY in a block",
            frames()
                .and(HEADERS, LAST, 1, FIELDS)
                .and(PRIORITY, 0, 1, [0, 0, 0, 0, 9]),
        ),
        (
            "HEADERS in a block",
            frames().and(HEADERS, LAST, 1, FIELDS).get(3),
        ),
        (
            "an unknown frame in a block",
            frames().and(HEADERS, LAST, 1, FIELDS).and(0x16, 0, 0, []),
        ),
        (
            "a block without end",
            frames().and(HEADERS, LAST, 1, FIELDS),
        ),
        // 5.1: streams that are idle, half-closed, closed.
        ("DATA, idle", frames().and(DATA, LAST, 1, "hi")),
        (
            "RST_STREAM, idle",
            frames().and(RST_STREAM, 0, 1, [0, 0, 0, 8]),
        ),
        (
            "WINDOW_UPDATE, idle",
            frames().and(WINDOW_UPDATE, 0, 1, [0, 0, 0, 9]),
        ),
        (
            "CONTINUATION, idle",
            frames().and(CONTINUATION, WHOLE, 1, FIELDS),
        ),
        (
            "PRIORITY, idle",
            frames().and(PRIORITY, 0, 3, [0, 0, 0, 0, 9]).get(1),
        ),
        (
            "DATA, half-closed",
            frames().get(1).and(DATA, LAST, 1, "hi"),
        ),
        ("HEADERS, half-closed", frames().get(1).get(1)),
        (
            "CONTINUATION, half-closed",
            frames().get(1).and(CONTINUATION, WHOLE, 1, FIELDS),
        ),
        (
            "WINDOW_UPDATE, half-closed",
            frames()
                .get(1)
                .and(WINDOW_UPDATE, 0, 1, [0, 0, 0, 9])
                .get(3),
        ),
        (
            "RST_STREAM, closed",
            frames()
                .get(1)
                .and(RST_STREAM, 0, 1, [0, 0, 0, 8])
                .and(RST_STREAM, 0, 1, [0, 0, 0, 8])
                .get(3),
        ),
        (
            "DATA, closed",
            frames()
                .post(1)
                .and(RST_STREAM, 0, 1, [0, 0, 0, 8])
                .and(DATA, LAST, 1, "hi")
                .get(3),
        ),
        (
            "HEADERS, closed",
            frames().post(1).and(RST_STREAM, 0, 1, [0, 0, 0, 8]).get(1),
        ),
        (
            "CONTINUATION, closed",
            frames().post(1).and(RST_STREAM, 0, 1, [0, 0, 0, 8]).and(
                CONTINUATION,
                WHOLE,
                1,
                FIELDS,
            ),
        ),
        // 5.1.1, 5.1.2: their numbers.
        ("an even stream", frames().get(2)),
        ("a lower stream", frames().get(5).get(3)),
        ("the last stream", frames().get(most)),
        (
            "too many streams",
            (0..250).fold(frames(), |it, n| it.post(1 + 2 * n)),
        ),
        // 5.3: priorities.
        (
            "HEADERS that depend on themselves",
            frames().and(
                HEADERS,
                WHOLE | LAST | PRIORITIZED,
                1,
                [&[0, 0, 0, 1, 9], FIELDS].concat(),
            ),
        ),
        (
            "HEADERS with a priority",
            frames().and(
                HEADERS,
                WHOLE | LAST | PRIORITIZED,
                1,
                [&[0, 0, 0, 3, 9], FIELDS].concat(),
            ),
        ),
        (
            "HEADERS with half a priority",
            frames().and(HEADERS, WHOLE | LAST | PRIORITIZED, 1, [0, 0, 0]),
        ),
        (
            "PRIORITY that depends on itself",
            frames().get(1).and(PRIORITY, 0, 3, [0, 0, 0, 3, 9]),
        ),
        // 6.1: DATA.
        ("DATA, stream 0", frames().post(1).and(DATA, LAST, 0, "hi")),
        (
            "padded DATA",
            frames()
                .post(1)
                .and(DATA, LAST | PADDED, 1, [2, b'h', 0, 0]),
        ),
        (
            "DATA of padding",
            frames().post(1).and(DATA, LAST | PADDED, 1, [3, 0, 0, 0]),
        ),
        (
            "DATA, more padding than payload",
            frames().post(1).and(DATA, LAST | PADDED, 1, [4, 0, 0, 0]),
        ),
        (
            "DATA, no length of padding",
            frames().post(1).and(DATA, LAST | PADDED, 1, []),
        ),
        (
            "DATA of nothing",
            (0..9)
                .fold(frames().post(1), |it, _| it.and(DATA, 0, 1, []))
                .and(DATA, LAST, 1, []),
        ),
        // 6.2: HEADERS.
        ("HEADERS, stream 0", frames().get(0)),
        (
            "padded HEADERS",
            frames().and(
                HEADERS,
                WHOLE | LAST | PADDED,
                1,
                [&[2], FIELDS, &[0, 0]].concat(),
            ),
        ),
        (
            "HEADERS, more padding than payload",
            frames().and(HEADERS, WHOLE | LAST | PADDED, 1, [&[9], FIELDS].concat()),
        ),
        ("HEADERS of nothing", frames().fields([])),
        // 6.3, 6.4: PRIORITY and RST_STREAM.
        (
            "PRIORITY, stream 0",
            frames().and(PRIORITY, 0, 0, [0, 0, 0, 1, 9]),
        ),
        (
            "RST_STREAM, stream 0",
            frames().and(RST_STREAM, 0, 0, [0, 0, 0, 8]),
        ),
        (
            "RST_STREAM, a code unknown",
            frames().post(1).and(RST_STREAM, 0, 1, [0xff; 4]).get(3),
        ),
        // 6.5: SETTINGS.
        (
            "SETTINGS, an ACK with a payload",
            frames().and(SETTINGS, 1, 0, [0, 1, 0, 0, 0, 0]),
        ),
        (
            "SETTINGS, an ACK for none",
            frames()
                .and(SETTINGS, 1, 0, [])
                .and(SETTINGS, 1, 0, [])
                .and(SETTINGS, 1, 0, [])
                .get(1),
        ),
        ("SETTINGS, a stream", frames().and(SETTINGS, 0, 1, [])),
        ("SETTINGS, push", frames().settings(&[(2, 1)]).get(1)),
        ("SETTINGS, push of 2", frames().settings(&[(2, 2)])),
        (
            "SETTINGS, too big a window",
            frames().settings(&[(4, most + 1)]),
        ),
        (
            "SETTINGS, the biggest window",
            frames().settings(&[(4, most)]).get(1),
        ),
        (
            "SETTINGS, too small frames",
            frames().settings(&[(5, (1 << 14) - 1)]),
        ),
        (
            "SETTINGS, too big frames",
            frames().settings(&[(5, 1 << 24)]),
        ),
        ("SETTINGS, unknown", frames().settings(&[(0xff, 1)]).get(1)),
        (
            "SETTINGS, one of them twice",
            frames().settings(&[(4, 100), (4, 2)]).get(1),
        ),
        ("SETTINGS, no table", frames().settings(&[(1, 0)]).get(1)),
        ("SETTINGS, no streams", frames().settings(&[(3, 0)]).get(1)),
        (
            "SETTINGS, small lists of fields",
            frames().settings(&[(6, 1)]).get(1),
        ),
        // 6.6: PUSH_PROMISE.
        (
            "PUSH_PROMISE",
            frames()
                .get(1)
                .and(PUSH_PROMISE, WHOLE, 1, [&[0, 0, 0, 2], FIELDS].concat()),
        ),
        // 6.7, 6.8: PING and GOAWAY.
        ("PING", frames().and(PING, 0, 0, [7; 8])),
        (
            "PING, an ACK for none",
            frames().and(PING, 1, 0, [7; 8]).get(1),
        ),
        ("PING, a stream", frames().and(PING, 0, 1, [7; 8])),
        ("GOAWAY, a stream", frames().and(GOAWAY, 0, 1, [0; 8])),
        (
            "GOAWAY, then a request",
            frames().and(GOAWAY, 0, 0, [0; 8]).get(1),
        ),
        (
            "GOAWAY, a code unknown",
            frames()
                .post(1)
                .and(GOAWAY, 0, 0, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        ),
        (
            "GOAWAY, a higher stream",
            frames()
                .and(GOAWAY, 0, 0, [0; 8])
                .and(GOAWAY, 0, 0, [0, 0, 0, 9, 0, 0, 0, 0]),
        ),
        // 6.9: windows.
        (
            "WINDOW_UPDATE of nothing",
            frames().and(WINDOW_UPDATE, 0, 0, [0; 4]),
        ),
        (
            "WINDOW_UPDATE of nothing, a stream",
            frames().post(1).and(WINDOW_UPDATE, 0, 1, [0; 4]).get(3),
        ),
        (
            "too big a window",
            frames().and(WINDOW_UPDATE, 0, 0, most.to_be_bytes()),
        ),
        (
            "too big a window, a stream",
            frames()
                .post(1)
                .and(WINDOW_UPDATE, 0, 1, most.to_be_bytes())
                .get(3),
        ),
        (
            "a window that grows too big by SETTINGS",
            frames()
                .post(1)
                .and(WINDOW_UPDATE, 0, 1, [0, 1, 0, 0])
                .settings(&[(4, most)]),
        ),
        ("a window of nothing", frames().settings(&[(4, 0)]).get(1)),
        (
            "a window of 1",
            frames()
                .settings(&[(4, 1)])
                .get(1)
                .and(WINDOW_UPDATE, 0, 1, [0, 0, 0, 5]),
        ),
        (
            "a window below nothing",
            frames().settings(&[(4, 3)]).get(1).settings(&[(4, 0)]).and(
                WINDOW_UPDATE,
                0,
                1,
                [0, 0, 0, 5],
            ),
        ),
        (
            "more DATA than there is room for",
            (0..9).fold(frames().post(1), |it, _| it.and(DATA, 0, 1, vec![7; big])),
        ),
        // 6.10: CONTINUATION.
        (
            "blocks in parts",
            frames()
                .and(HEADERS, LAST, 1, &FIELDS[..1])
                .and(CONTINUATION, 0, 1, &FIELDS[1..2])
                .and(CONTINUATION, WHOLE, 1, &FIELDS[2..]),
        ),
        (
            "CONTINUATION, then DATA",
            frames()
                .and(HEADERS, 0, 1, POST)
                .and(CONTINUATION, 0, 1, [])
                .and(DATA, LAST, 1, "hi"),
        ),
        (
            "CONTINUATION, stream 0",
            frames()
                .and(HEADERS, LAST, 1, FIELDS)
                .and(CONTINUATION, WHOLE, 0, []),
        ),
        (
            "CONTINUATION of another",
            frames()
                .and(HEADERS, LAST, 1, FIELDS)
                .and(CONTINUATION, WHOLE, 3, []),
        ),
        (
            "CONTINUATION behind the end",
            frames().get(1).and(CONTINUATION, WHOLE, 1, field("x", "y")),
        ),
        (
            "CONTINUATION behind its end",
            frames()
                .and(HEADERS, LAST, 1, FIELDS)
                .and(CONTINUATION, WHOLE, 1, [])
                .and(CONTINUATION, WHOLE, 1, []),
        ),
        (
            "CONTINUATION behind DATA",
            frames()
                .post(1)
                .and(DATA, 0, 1, "hi")
                .and(CONTINUATION, WHOLE, 1, field("x", "y")),
        ),
        (
            "CONTINUATION without end",
            (0..50).fold(frames().and(HEADERS, LAST, 1, FIELDS), |it, _| {
                it.and(CONTINUATION, 0, 1, vec![0x82; 1_000])
            }),
        ),
        // 8.1, 8.2: messages.
        (
            "trailers",
            frames()
                .post(1)
                .and(DATA, 0, 1, "hi")
                .and(HEADERS, WHOLE | LAST, 1, field("x", "y")),
        ),
        (
            "trailers without an end",
            frames()
                .post(1)
                .and(DATA, 0, 1, "hi")
                .and(HEADERS, WHOLE, 1, field("x", "y")),
        ),
        (
            "a pseudo-header in trailers",
            frames().post(1).and(DATA, 0, 1, "hi").and(
                HEADERS,
                WHOLE | LAST,
                1,
                field(":path", "/b"),
            ),
        ),
        ("upper case", frames().fields(with(&[("X", "y")]))),
        ("a space in a name", frames().fields(with(&[("x y", "z")]))),
        ("an empty name", frames().fields(with(&[("", "z")]))),
        ("a colon in a name", frames().fields(with(&[("x:", "z")]))),
        (
            "a line end in a value",
            frames().fields(with(&[("x", "y\r\nz: a")])),
        ),
        ("a NUL in a value", frames().fields(with(&[("x", "\0")]))),
        (
            "spaces around a value",
            frames().fields(with(&[("x", " y ")])),
        ),
        (
            "a connection header",
            frames().fields(with(&[("connection", "close")])),
        ),
        (
            "keep-alive",
            frames().fields(with(&[("keep-alive", "timeout=5")])),
        ),
        (
            "transfer-encoding",
            frames()
                .and(HEADERS, WHOLE, 1, with(&[("transfer-encoding", "chunked")]))
                .and(DATA, LAST, 1, "0\r\n\r\n"),
        ),
        ("upgrade", frames().fields(with(&[("upgrade", "h2c")]))),
        ("te", frames().fields(with(&[("te", "trailers")]))),
        (
            "another te",
            frames().fields(with(&[("te", "trailers, deflate")])),
        ),
        (
            "expect",
            frames()
                .and(HEADERS, WHOLE, 1, with(&[("expect", "100-continue")]))
                .and(DATA, LAST, 1, "hi"),
        ),
        // 8.3: pseudo-headers.
        (
            "a pseudo-header unknown",
            frames().fields(with(&[(":x", "y")])),
        ),
        (
            "one of a response",
            frames().fields(with(&[(":status", "200")])),
        ),
        (
            "one behind a field",
            frames().fields([&[0x82, 0x86][..], &field("x", "y"), &[0x84]].concat()),
        ),
        ("no method", frames().fields([0x86, 0x84])),
        ("no scheme", frames().fields([0x82, 0x84])),
        ("no path", frames().fields([0x82, 0x86])),
        (
            "an empty path",
            frames().fields([&[0x82, 0x86][..], &field(":path", "")].concat()),
        ),
        (
            "a path without a slash",
            frames().fields([&[0x82, 0x86][..], &field(":path", "a")].concat()),
        ),
        (
            "a path with a space",
            frames().fields([&[0x82, 0x86][..], &field(":path", "/a b")].concat()),
        ),
        (
            "a path that is a star",
            frames().fields([&[0x82, 0x86][..], &field(":path", "*")].concat()),
        ),
        (
            "an odd method",
            frames().fields([&field(":method", "GE T")[..], &[0x86, 0x84]].concat()),
        ),
        ("two methods", frames().fields([0x82, 0x82, 0x86, 0x84])),
        ("two schemes", frames().fields([0x82, 0x86, 0x86, 0x84])),
        ("two paths", frames().fields([0x82, 0x86, 0x84, 0x84])),
        (
            "two authorities",
            frames().fields(with(&[(":authority", "a"), (":authority", "b")])),
        ),
        (
            "an authority and another host",
            frames().fields(with(&[(":authority", "a"), ("host", "b")])),
        ),
        (
            "an authority with a user",
            frames().fields(with(&[(":authority", "u@a")])),
        ),
        (
            "an odd scheme",
            frames().fields([&[0x82][..], &field(":scheme", "h t"), &[0x84]].concat()),
        ),
        (
            "CONNECT",
            frames()
                .and(
                    HEADERS,
                    WHOLE,
                    1,
                    [field(":method", "CONNECT"), field(":authority", "a:1")].concat(),
                )
                .and(DATA, 0, 1, "hi"),
        ),
        (
            "CONNECT with a path",
            frames().fields([&field(":method", "CONNECT")[..], &[0x86, 0x84]].concat()),
        ),
        (
            "CONNECT with a protocol",
            frames().fields(
                [
                    field(":method", "CONNECT"),
                    field(":protocol", "websocket"),
                    vec![0x86, 0x84],
                    field(":authority", "a"),
                ]
                .concat(),
            ),
        ),
        (
            "a protocol without CONNECT",
            frames().fields(with(&[(":protocol", "websocket")])),
        ),
        // 8.1.1: lengths.
        (
            "more than its length",
            frames()
                .and(HEADERS, WHOLE, 1, with(&[("content-length", "1")]))
                .and(DATA, LAST, 1, "hi"),
        ),
        (
            "less than its length",
            frames()
                .and(HEADERS, WHOLE, 1, with(&[("content-length", "9")]))
                .and(DATA, 0, 1, "h")
                .and(DATA, LAST, 1, "i"),
        ),
        (
            "a length and no body",
            frames().fields(with(&[("content-length", "9")])),
        ),
        (
            "two lengths",
            frames()
                .and(
                    HEADERS,
                    WHOLE,
                    1,
                    with(&[("content-length", "2"), ("content-length", "3")]),
                )
                .and(DATA, LAST, 1, "hi"),
        ),
        (
            "no number",
            frames()
                .and(HEADERS, WHOLE, 1, with(&[("content-length", "+2")]))
                .and(DATA, LAST, 1, "hi"),
        ),
        // RFC 7541.
        ("index 0", frames().fields([0x80])),
        (
            "an index there is not",
            frames().fields([0x82, 0x86, 0x84, 0xff, 0]),
        ),
        (
            "a name's index there is not",
            frames().fields([0x82, 0x86, 0x84, 0x7f, 0, 1, b'a']),
        ),
        (
            "an index without end",
            frames().fields([0x82, 0x86, 0x84, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        (
            "half a literal",
            frames().fields([0x82, 0x86, 0x84, 0, 5, b'x']),
        ),
        (
            "a table that is resized",
            frames().fields([&[0x20], FIELDS].concat()).fields([]),
        ),
        (
            "a table that is resized behind a field",
            frames().fields([FIELDS, &[0x20]].concat()),
        ),
        (
            "too big a table",
            frames().fields([&[0x3f, 0xe2, 0x1f], FIELDS].concat()),
        ),
        (
            "Huffman, EOS",
            frames().fields([FIELDS, &[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]].concat()),
        ),
        (
            "Huffman, padding of a byte",
            frames().fields([FIELDS, &[0, 1, b'x', 0x82, 0x1f, 0xff]].concat()),
        ),
        (
            "Huffman, padding of zeros",
            frames().fields([FIELDS, &[0, 1, b'x', 0x81, 0x18]].concat()),
        ),
        (
            "Huffman",
            frames().fields([FIELDS, &[0, 1, b'x', 0x81, 0x1f]].concat()),
        ),
        // Much of what is allowed.
        (
            "fields for a response of 431",
            frames().fields([FIELDS, &field("x", &"y".repeat(120)).repeat(130)].concat()),
        ),
        (
            "many PINGs",
            (0..200)
                .fold(frames(), |it, _| it.and(PING, 0, 0, [7; 8]))
                .get(1),
        ),
        (
            "many SETTINGS",
            (0..200)
                .fold(frames(), |it, _| it.and(SETTINGS, 0, 0, []))
                .get(1),
        ),
        (
            "many resets",
            (0..100).fold(frames(), |it, n| {
                it.post(1 + 2 * n)
                    .and(RST_STREAM, 0, 1 + 2 * n, [0, 0, 0, 8])
            }),
        ),
    ]
}

/// What the frames follow on: the first two rows have less.
pub(super) fn spoken(what: &str, frames: &Frames) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    if !matches!(what, "no SETTINGS" | "nonsense") {
        frame(&mut bytes, SETTINGS, 0, 0, &[]);
    }
    bytes.extend_from_slice(&frames.0);
    bytes
}
