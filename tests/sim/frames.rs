//! A client of HTTP/2 that knows only what it sends: frames of every kind, cut anywhere. It acknowledges nothing, and may stop
//! in the middle of one.

use std::collections::VecDeque;

use super::client::{Kind, upload};
use super::draw::Draw;
use super::net::{Client, Dial, Got};
use super::{now, say};

#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Its last byte was sent, and the end of its answer was read.
    pub(crate) whole_at: Option<u64>,
    pub(crate) answered: bool,
    /// It was given up in the end.
    pub(crate) reset: bool,
}

pub(crate) struct Silent {
    pub(crate) id: usize,
    dial: Dial,
    connects: u64,
    /// When, what, and the last of which request.
    pieces: VecDeque<(u64, Vec<u8>, Option<usize>)>,
    ready: Option<u64>,
    pub(crate) asked: Vec<Asked>,
    read: Vec<u8>,
    at: usize,
    pub(crate) client: Option<Client>,
    refused: bool,
    /// It has sent something, and when it last has, or has connected.
    pub(crate) spoke: bool,
    pub(crate) last_sent: u64,
    /// How many frames told it to go away, and when its end was read.
    pub(crate) goaways: usize,
    /// The server speaks HTTP/2 to it.
    pub(crate) has_settings: bool,
    pub(crate) ended: Option<u64>,
    pub(crate) end: Option<Got>,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types and flags (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The method, by the static table.
const POST: u8 = 0x83;

/// An error code (RFC 9113 section 7).
const CANCEL: u32 = 8;

const HEADER: usize = 9;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let n = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&n[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// More room on a stream, if any.
pub(crate) fn window_update(stream: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &1_u32.to_be_bytes())
}

/// A GET, by the static table and a literal path (RFC 7541 section 6.2.2, appendix A).
fn get(path: &str) -> Vec<u8> {
    let n = u8::try_from(path.len()).ok().filter(|n| *n < 127);
    let mut block = vec![0x82, 0x86, 0x01, 3];
    block.extend(b"sim");
    block.extend([0x04, n.expect("short")]);
    block.extend(path.as_bytes());
    block
}

/// One with this block, in any way that there is to write it.
fn request(stream: u32, mut block: Vec<u8>, draw: &mut Draw) -> Vec<u8> {
    let mut bytes = besides(draw);
    let has_body = draw.one_in(3);
    if has_body {
        block[0] = POST;
    }
    let mut more = Vec::new();
    if draw.one_in(3) {
        more.push(block.split_off(small(draw.below(block.len() as u64 + 1))));
        if draw.one_in(2) {
            let at = small(draw.below(more[0].len() as u64 + 1));
            let rest = more[0].split_off(at);
            more.push(rest);
        }
    }
    let mut flags = if has_body { 0 } else { END_STREAM };
    if more.is_empty() {
        flags |= END_HEADERS;
    }
    if draw.one_in(4) {
        flags |= PRIORITY;
        block = [&[0, 0, 0, 0, 16], &block[..]].concat();
    }
    bytes.extend(padded(HEADERS, flags, stream, &block, draw));
    let last = more.len();
    for (n, part) in (1..).zip(more) {
        let flags = if n == last { END_HEADERS } else { 0 };
        bytes.extend(frame(CONTINUATION, flags, stream, &part));
    }
    if has_body {
        let trailers = draw.one_in(3);
        let parts = 1 + draw.below(3);
        let mut at = 0;
        for n in 1..=parts {
            bytes.extend(besides(draw));
            let ends = n == parts && !trailers;
            let end = at + small(draw.below(200));
            let part: Vec<_> = upload(at..end).collect();
            at = end;
            bytes.extend(padded(DATA, u8::from(ends), stream, &part, draw));
        }
        if trailers {
            let flags = END_STREAM | END_HEADERS;
            // A literal field (RFC 7541 section 6.2.2).
            bytes.extend(frame(HEADERS, flags, stream, &[0, 1, b'x', 1, b'y']));
        }
    }
    bytes
}

/// What is about no stream, if anything.
fn besides(draw: &mut Draw) -> Vec<u8> {
    match draw.below(8) {
        0 => frame(PING, 0, 0, &[7; 8]),
        1 => window_update(0),
        // That nobody knows is skipped (RFC 9113 section 4.1).
        2 => frame(0x42, 0xff, 0, &vec![9; small(draw.below(40))]),
        _ => Vec::new(),
    }
}

fn padded(kind: u8, flags: u8, stream: u32, payload: &[u8], draw: &mut Draw) -> Vec<u8> {
    if draw.one_in(4) {
        let n = u8::try_from(draw.below(256)).expect("a byte");
        let payload = [&[n], payload, &vec![0; usize::from(n)]].concat();
        return frame(kind, flags | PADDED, stream, &payload);
    }
    frame(kind, flags, stream, payload)
}

fn small(n: u64) -> usize {
    usize::try_from(n).expect("small")
}

impl Silent {
    pub(crate) fn draw(id: usize, dial: Dial, draw: &mut Draw) -> Self {
        let mut pieces = VecDeque::new();
        let mut asked = Vec::new();
        let mut aside = draw.aside();
        let mut begin = PREFACE.to_vec();
        begin.extend(frame(SETTINGS, 0, 0, &[]));
        cut(begin, None, draw, &mut pieces);
        for n in 0..draw.below(4) {
            let kind = match draw.below(4) {
                0 => Kind::After(draw.below(100)),
                1 => Kind::Parts(draw.below(4), draw.below(30)),
                _ => Kind::After(0),
            };
            let name = format!("{id}-{n}");
            let block = get(&format!("{}?{name}", kind.path()));
            let stream = u32::try_from(1 + 2 * n).expect("few");
            let reset = aside.one_in(8);
            let mut bytes = request(stream, block, &mut aside);
            if reset {
                bytes.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
            }
            cut(bytes, Some(asked.len()), draw, &mut pieces);
            asked.push(Asked {
                name,
                kind,
                whole_at: None,
                answered: false,
                reset,
            });
        }
        if draw.one_in(3) {
            // Anywhere, also between two frames.
            let keeps = draw.below(1 + pieces.len() as u64);
            pieces.truncate(usize::try_from(keeps).expect("few"));
        }
        Self {
            id,
            dial,
            connects: draw.below(250),
            pieces,
            ready: None,
            asked,
            read: Vec::new(),
            at: 0,
            client: None,
            refused: false,
            spoke: false,
            last_sent: 0,
            goaways: 0,
            has_settings: false,
            ended: None,
            end: None,
        }
    }

    /// What it does in this millisecond.
    pub(crate) fn step(&mut self) {
        let now = now();
        if self.refused || self.ended.is_some() || now < self.connects {
            return;
        }
        if self.client.is_none() {
            self.client = self.dial.connect(self.id, 1 << 16);
            self.refused = self.client.is_none();
            self.last_sent = now;
            say(|| format!("client {}: connected: {}", self.id, !self.refused));
        }
        self.take();
        let Some(client) = &self.client else { return };
        while let Some((pause, bytes, last)) = self.pieces.front_mut() {
            if now < *self.ready.get_or_insert(now + *pause) {
                return;
            }
            let sent = client.send(bytes);
            say(|| format!("client {}: sent {sent}", self.id));
            bytes.drain(..sent);
            self.last_sent = now;
            self.spoke = true;
            if !bytes.is_empty() {
                return;
            }
            if let Some(n) = *last {
                self.asked[n].whole_at = Some(now);
            }
            self.ready = None;
            self.pieces.pop_front();
        }
    }

    pub(crate) fn take(&mut self) {
        let Some(client) = self.client.as_ref().filter(|_| self.end.is_none()) else {
            return;
        };
        match client.read(usize::MAX) {
            Got::Nothing => {}
            Got::Bytes(bytes) => {
                self.read.extend(bytes);
                self.parse();
            }
            end => {
                say(|| format!("client {}: {end:?}", self.id));
                self.ended = Some(now());
                self.end = Some(end);
            }
        }
    }

    fn parse(&mut self) {
        while let Some(header) = self.read.get(self.at..self.at + HEADER) {
            let n = u32::from_be_bytes([0, header[0], header[1], header[2]]);
            let (kind, flags) = (header[3], header[4]);
            let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
            let end = self.at + HEADER + usize::try_from(n).expect("short");
            if self.read.len() < end {
                return;
            }
            self.at = end;
            say(|| format!("client {}: frame {kind} {flags} {stream}", self.id));
            let ends = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
            if ends {
                let n = usize::try_from(stream / 2).expect("few");
                self.asked[n].answered = true;
            }
            self.goaways += usize::from(kind == GOAWAY);
            self.has_settings |= kind == SETTINGS;
        }
    }

    pub(crate) fn has_sent_all(&self) -> bool {
        self.pieces.is_empty()
    }
}

fn cut(
    bytes: Vec<u8>,
    n: Option<usize>,
    draw: &mut Draw,
    pieces: &mut VecDeque<(u64, Vec<u8>, Option<usize>)>,
) {
    let mut rest = bytes;
    let mut pause = draw.below(60);
    while !rest.is_empty() {
        let more = if draw.one_in(3) && rest.len() > 1 {
            let at = 1 + draw.below(rest.len() as u64 - 1);
            rest.split_off(usize::try_from(at).expect("short"))
        } else {
            Vec::new()
        };
        pieces.push_back((pause, rest, n.filter(|_| more.is_empty())));
        pause = draw.below(40);
        rest = more;
    }
}
