//! A client of HTTP/1: what it will do is drawn beforehand, what it gets is read and kept.

use std::collections::VecDeque;
use std::ops::Range;

use super::draw::Draw;
use super::net::{Client, Dial, Fault, Got};
use super::records::{Unwrapped, hello, wrapped};
use super::server::{Front, Plan};
use super::{now, say};

/// What a handler does with a request: said in its path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Answers after so many milliseconds, having read the body.
    After(u64),
    /// The same, and leaves the body unread.
    Unread(u64),
    /// So many parts, each after so many milliseconds.
    Parts(u64, u64),
    Hangs,
    Panics,
    /// Answers with a body of that many bytes.
    Big(usize),
    /// Ends the whole.
    Terminates,
    /// Ends its connection.
    Alone,
    /// Says close by itself.
    Last,
    /// Forces its connection, and answers so much later.
    Cuts(u64),
    /// Nobody is to wait for its connection; and answers so much later.
    Detaches(u64),
    /// Has a drain wait for so long, by a guard of its own or not.
    Works(u64, bool),
    /// Gives the body of the request to somebody who reads it so much later.
    Gives(u64),
    /// After so many parts its body fails, or panics.
    Breaks(u64, bool),
}

impl Kind {
    pub(crate) fn draw(draw: &mut Draw) -> Self {
        match draw.below(25) {
            20 => Self::Cuts(draw.below(20)),
            21 => Self::Detaches(draw.below(100)),
            22 => Self::Works(draw.below(400), draw.one_in(2)),
            23 => Self::Gives(draw.below(100)),
            24 => Self::Breaks(draw.below(3), draw.one_in(2)),
            0..=7 => Self::After(0),
            8..=10 => Self::After(draw.below(120)),
            11 => Self::Unread(draw.below(20)),
            12 | 13 => Self::Parts(draw.below(6), draw.below(30)),
            14 => Self::Hangs,
            15 => Self::Panics,
            16 => Self::Big(1 << draw.below(18)),
            17 => Self::Alone,
            18 => Self::Last,
            _ if draw.one_in(4) => Self::Terminates,
            _ => Self::After(1),
        }
    }

    pub(crate) fn path(self) -> String {
        match self {
            Self::After(ms) => format!("/after/{ms}"),
            Self::Unread(ms) => format!("/unread/{ms}"),
            Self::Parts(n, ms) => format!("/parts/{n}/{ms}"),
            Self::Hangs => "/hangs".into(),
            Self::Panics => "/panics".into(),
            Self::Big(n) => format!("/big/{n}"),
            Self::Terminates => "/terminates".into(),
            Self::Alone => "/alone".into(),
            Self::Last => "/last".into(),
            Self::Cuts(ms) => format!("/cuts/{ms}"),
            Self::Detaches(ms) => format!("/detaches/{ms}"),
            Self::Works(ms, holds) => format!("/works/{ms}/{}", u8::from(holds)),
            Self::Gives(ms) => format!("/gives/{ms}"),
            Self::Breaks(n, panics) => format!("/breaks/{n}/{}", u8::from(panics)),
        }
    }

    /// How long it takes, should it end.
    pub(crate) fn takes(self) -> Option<u64> {
        match self {
            Self::After(ms) | Self::Unread(ms) | Self::Detaches(ms) => Some(ms),
            Self::Parts(n, ms) => Some(n * ms),
            Self::Hangs | Self::Panics | Self::Cuts(_) | Self::Breaks(..) => None,
            Self::Big(_) | Self::Terminates | Self::Alone | Self::Last => Some(0),
            Self::Works(..) | Self::Gives(_) => Some(0),
        }
    }

    pub(crate) fn says_close(self) -> bool {
        matches!(self, Self::Alone | Self::Last)
    }

    /// hyper loses what it has not flushed when its connection breaks.
    pub(crate) fn breaks(self) -> bool {
        matches!(self, Self::Panics | Self::Breaks(..))
    }
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    /// Comes back in the answer.
    pub(crate) name: String,
    pub(crate) head_only: bool,
    pub(crate) has_body: bool,
    pub(crate) asks_close: bool,
    /// The rest of its body never comes.
    pub(crate) half: bool,
    pub(crate) first_at: Option<u64>,
    pub(crate) whole_at: Option<u64>,
}

/// A piece of what is sent.
struct Piece {
    /// After the piece before, or after the answers that are waited for.
    pause: u64,
    /// So many answers are there.
    answers: usize,
    bytes: Vec<u8>,
    first_of: Option<usize>,
    last_of: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Stays,
    /// Says that it will send no more, once all is sent.
    HalfCloses,
    /// The same, once all is answered.
    Finishes,
    Resets(u64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    All,
    /// So many bytes each millisecond.
    Slowly(usize),
    /// Nothing before then.
    Late(u64),
}

pub(crate) struct Peer {
    pub(crate) id: usize,
    /// By which port.
    pub(crate) port: usize,
    pub(crate) front: Front,
    /// How long it may take until it is accepted.
    pub(crate) lag: u64,
    pub(crate) fault: Fault,
    connects: u64,
    /// It sends before it reads: what it sends to who has gone destroys what it has not read.
    sends_first: bool,
    pub(crate) room: usize,
    pieces: VecDeque<Piece>,
    ready: Option<u64>,
    /// Of which request no more than line ends was sent.
    begins: Option<usize>,
    ending: Ending,
    reading: Reading,
    /// What it sends in place of a request, or of the rest of one.
    pub(crate) rubbish: Option<usize>,
    records: Option<Unwrapped>,
    pub(crate) last_sent: u64,
    pub(crate) client: Option<Client>,
    pub(crate) connected: u64,
    pub(crate) refused: bool,
    pub(crate) requests: Vec<Request>,
    pub(crate) answers: Answers,
    pub(crate) end: Option<Got>,
    /// It has left of its own: whatever is not answered by then is its fault.
    pub(crate) left: Option<u64>,
}

impl Peer {
    pub(crate) fn draw(id: usize, plan: &Plan, draw: &mut Draw) -> Self {
        let fronts = &plan.fronts;
        let port = usize::try_from(draw.below(fronts.len() as u64)).expect("small");
        let front = fronts[port];
        let connects = match draw.below(9) {
            0..=2 => 0,
            // In the moment of a call.
            3 => draw.pick(&plan.calls).0,
            _ => draw.below(250),
        };
        let mut requests = Vec::new();
        let mut pieces = VecDeque::new();
        let pipelines = draw.one_in(3);
        let wraps = front == Front::Records;
        if wraps {
            cut(None, hello(), 0, draw, &mut pieces);
        }
        for n in 0..draw.below(5) {
            let n = usize::try_from(n).expect("small");
            let (request, bytes) = request(id, n, draw);
            let stops = request.half;
            requests.push(request);
            let bytes = if wraps { wrapped(&bytes, draw) } else { bytes };
            let answers = if pipelines { 0 } else { n };
            cut(Some(n), bytes, answers, draw, &mut pieces);
            if stops {
                break;
            }
        }
        let rubbish = draw.one_in(8).then(|| draw.below(RUBBISH.len() as u64));
        let rubbish = rubbish.map(|n| usize::try_from(n).expect("small"));
        if let Some(n) = rubbish {
            // Half a head, or no HTTP at all.
            let mut bytes = RUBBISH[n].to_vec();
            if wraps {
                bytes = wrapped(&bytes, draw);
            }
            pieces.push_back(Piece {
                pause: draw.below(60),
                answers: if pipelines { 0 } else { requests.len() },
                bytes,
                first_of: None,
                last_of: None,
            });
        }
        let fault = match draw.below(30) {
            0 => Fault::Read(draw.below(6)),
            1 => Fault::Write(draw.below(4)),
            2 => Fault::Drop,
            _ => Fault::None,
        };
        let ending = match draw.below(12) {
            0 => Ending::HalfCloses,
            1 | 2 => Ending::Finishes,
            3 => Ending::Resets(draw.below(500)),
            _ => Ending::Stays,
        };
        let reading = match draw.below(10) {
            0 => Reading::Slowly(1 + usize::try_from(draw.below(2_000)).expect("small")),
            1 => Reading::Late(draw.below(600)),
            _ => Reading::All,
        };
        Self {
            id,
            port,
            front,
            lag: front.lag(),
            fault,
            connects,
            sends_first: draw.one_in(2),
            room: 64 << draw.below(12),
            pieces,
            ready: None,
            begins: None,
            ending,
            reading,
            rubbish,
            records: wraps.then(Unwrapped::default),
            last_sent: 0,
            client: None,
            connected: 0,
            refused: false,
            requests,
            answers: Answers::default(),
            end: None,
            left: None,
        }
    }

    /// It asks for nothing that ends a connection, or breaks it.
    pub(crate) fn is_plain(&self) -> bool {
        self.rubbish.is_none() && self.is_plain_but_rubbish()
    }

    pub(crate) fn is_plain_but_rubbish(&self) -> bool {
        let plain = |it: &Request| {
            let reads = !it.has_body || matches!(it.kind, Kind::After(_));
            it.kind.takes().is_some()
                && !it.kind.says_close()
                && !it.asks_close
                && !it.half
                && reads
        };
        self.requests.iter().all(plain)
    }

    /// It does its part for the server to be able to answer all, and in time.
    pub(crate) fn is_fair(&self) -> bool {
        self.left.is_none() && self.ending != Ending::HalfCloses && self.fault == Fault::None
    }

    pub(crate) fn reads_all(&self) -> bool {
        self.reading == Reading::All
    }

    /// When it has read so many bytes, which were there by then.
    pub(crate) fn reads(&self, bytes: usize, by: u64) -> u64 {
        match self.reading {
            // So much fits in a millisecond.
            Reading::All => by + (bytes / self.room) as u64,
            Reading::Slowly(n) => by + (bytes / n.min(self.room)) as u64 + 1,
            Reading::Late(at) => by.max(at) + (bytes / self.room) as u64 + 1,
        }
    }

    /// It ends its side before, or might.
    pub(crate) fn leaves(&self) -> bool {
        self.ending != Ending::Stays
    }

    /// It has nothing more to send.
    pub(crate) fn has_sent_all(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Of an orderly end under what TLS does.
    pub(crate) fn lacks_goodbye(&self) -> bool {
        self.records.as_ref().is_some_and(|it| !it.said_goodbye)
    }

    /// When the server had written that byte of its answers, or had begun to, which is when nothing more can be said in
    /// it.
    pub(crate) fn written_at(&self, offset: usize) -> u64 {
        let client = self.client.as_ref().expect("something was written");
        let records = self.records.as_ref();
        client.written_at(records.map_or(offset, |it| it.record_of(offset).0))
    }

    /// When the last of its answers was written, or when it was ready for one.
    pub(crate) fn quiet_since(&self) -> u64 {
        match self.answers.bytes.len() {
            0 if self.records.is_some() => self.last_sent,
            0 => self.connected,
            n => {
                let client = self.client.as_ref().expect("something was written");
                let records = self.records.as_ref();
                client.written_at(records.map_or(n - 1, |it| it.record_of(n - 1).1))
            }
        }
    }

    /// What it does in this millisecond.
    pub(crate) fn step(&mut self, dials: &[Dial]) {
        let now = now();
        if self.refused || self.end.is_some() || now < self.connects {
            return;
        }
        if self.client.is_none() {
            self.client = dials[self.port].connect_to(self.id, self.room, self.fault);
            self.refused = self.client.is_none();
            self.connected = now;
            let (id, refused) = (self.id, self.refused);
            say(|| format!("client {id}: connected by {:?}: {}", self.front, !refused));
        }
        let most = match self.reading {
            Reading::All => usize::MAX,
            Reading::Slowly(n) => n,
            Reading::Late(at) if now < at => 0,
            Reading::Late(_) => usize::MAX,
        };
        if self.sends_first {
            self.send(now);
            self.read(most);
        } else {
            self.read(most);
            self.send(now);
        }
        if let Ending::Resets(at) = self.ending {
            if now >= at && self.end.is_none() {
                self.leave(now, Client::reset);
                self.end = Some(Got::Reset);
            }
        }
    }

    /// All that is there, however slow it was.
    pub(crate) fn read(&mut self, most: usize) {
        let Some(client) = &self.client else { return };
        if most == 0 || self.end.is_some() {
            return;
        }
        match client.read(most) {
            Got::Nothing => {}
            Got::Bytes(bytes) => {
                let heads: Vec<_> = self.requests.iter().map(|it| it.head_only).collect();
                let bytes = match &mut self.records {
                    Some(records) => records.push(&bytes),
                    None => bytes,
                };
                self.answers.push(&bytes, &heads);
                let id = self.id;
                say(|| format!("client {id}: read {}", bytes.len()));
            }
            end => {
                say(|| format!("client {}: {end:?}", self.id));
                self.end = Some(end);
            }
        }
    }

    fn send(&mut self, now: u64) {
        while let Some(piece) = self.pieces.front_mut() {
            let Some(client) = &self.client else { return };
            if self.answers.say_close() || self.answers.whole.len() < piece.answers {
                return;
            }
            let ready = *self.ready.get_or_insert(now + piece.pause);
            if now < ready {
                return;
            }
            let sent = client.send(&piece.bytes);
            if sent > 0 {
                self.last_sent = now;
                say(|| format!("client {}: sent {sent}", self.id));
                self.begins = piece.first_of.take().or(self.begins);
                // Line ends ahead of a request are none of its own.
                let is_head = |byte: &u8| !matches!(byte, b'\r' | b'\n');
                if piece.bytes[..sent].iter().any(is_head) {
                    if let Some(n) = self.begins.take() {
                        self.requests[n].first_at = Some(now);
                    }
                }
            }
            piece.bytes.drain(..sent);
            if !piece.bytes.is_empty() {
                return;
            }
            if let Some(n) = piece.last_of.filter(|n| !self.requests[*n].half) {
                self.requests[n].whole_at = Some(now);
            }
            self.ready = None;
            self.pieces.pop_front();
        }
        let answered = self.answers.whole.len() == self.requests.len();
        if self.left.is_none()
            && (self.ending == Ending::HalfCloses || self.ending == Ending::Finishes && answered)
        {
            self.leave(now, Client::finish);
        }
    }

    fn leave(&mut self, now: u64, how: fn(&Client)) {
        if let Some(client) = &self.client {
            say(|| format!("client {}: leaves", self.id));
            how(client);
            self.left = Some(now);
        }
    }
}

/// The first of it is the beginning of a head.
pub(crate) const HALVES: usize = 3;

const RUBBISH: [&[u8]; 6] = [
    b"GET /after/0 HT",
    b"P",
    b"GET /after/0 HTTP/1.1\r\nhost: a\r\n",
    b"\r\n",
    b"\0\x01\x02 nonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
];

fn request(id: usize, n: usize, draw: &mut Draw) -> (Request, Vec<u8>) {
    let kind = Kind::draw(draw);
    let name = format!("{id}-{n}");
    let version = if draw.one_in(10) { "1.0" } else { "1.1" };
    let mut close = version == "1.0";
    let mut head = String::new();
    let (mut body, mut half) = (Vec::new(), false);
    let head_only = draw.one_in(20);
    let method = match draw.below(10) {
        _ if head_only => "HEAD",
        0..=2 => {
            body = upload(0..1 << draw.below(14)).collect();
            "POST"
        }
        _ => "GET",
    };
    if method == "POST" {
        if version == "1.1" && draw.one_in(2) {
            head += "transfer-encoding: chunked\r\n";
            body = chunked(&body, draw);
        } else {
            head += &format!("content-length: {}\r\n", body.len());
        }
        if draw.one_in(10) && body.len() > 1 {
            body.truncate(body.len() / 2);
            half = true;
        }
    }
    if version == "1.1" && draw.one_in(15) {
        head += "connection: close\r\n";
        close = true;
    } else if version == "1.0" && draw.one_in(2) {
        head += "connection: keep-alive\r\n";
        close = false;
    }
    // Only the end of the connection can end that.
    close |= version == "1.0" && matches!(kind, Kind::Parts(..));
    let mut bytes = format!(
        "{method} {}?{name} HTTP/{version}\r\nhost: sim\r\n{head}\r\n",
        kind.path()
    )
    .into_bytes();
    if draw.one_in(12) && n > 0 {
        bytes.splice(..0, *b"\r\n");
    }
    bytes.extend(body);
    let request = Request {
        kind,
        name,
        head_only,
        has_body: method == "POST",
        asks_close: close,
        half,
        first_at: None,
        whole_at: None,
    };
    (request, bytes)
}

/// These bytes of the body of any request: of no line ends, and where something is missing the rest does not fit.
pub(crate) fn upload(bytes: Range<usize>) -> impl Iterator<Item = u8> {
    const LETTERS: &[u8] = b"abcdefghijklmnopq";
    bytes.map(|at| LETTERS[(at + at / LETTERS.len()) % LETTERS.len()])
}

fn chunked(body: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let n = 1 + usize::try_from(draw.below(rest.len() as u64)).expect("small");
        let (chunk, more) = rest.split_at(n);
        bytes.extend(format!("{n:x}\r\n").into_bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
        rest = more;
    }
    bytes.extend(if draw.one_in(3) {
        b"0\r\ntrailer: t\r\n\r\n".as_slice()
    } else {
        b"0\r\n\r\n"
    });
    bytes
}

/// Anywhere.
fn cut(
    n: Option<usize>,
    bytes: Vec<u8>,
    answers: usize,
    draw: &mut Draw,
    pieces: &mut VecDeque<Piece>,
) {
    let mut rest = bytes;
    let mut first = n;
    let mut pause = if draw.one_in(2) { 0 } else { draw.below(80) };
    while !rest.is_empty() {
        let more = if draw.one_in(3) && rest.len() > 1 {
            let at = 1 + usize::try_from(draw.below(rest.len() as u64 - 1)).expect("small");
            rest.split_off(at)
        } else {
            Vec::new()
        };
        pieces.push_back(Piece {
            pause,
            answers,
            bytes: rest,
            first_of: first.take(),
            last_of: n.filter(|_| more.is_empty()),
        });
        pause = draw.below(40);
        rest = more;
    }
}

// ===== answers =====

#[derive(Debug)]
pub(crate) struct Answer {
    /// Where its head begins, in all that came.
    pub(crate) begins: usize,
    /// Behind its last byte.
    pub(crate) ends: usize,
    pub(crate) status: u16,
    pub(crate) says_close: bool,
    pub(crate) body: Vec<u8>,
    /// Only the end of the connection ends it.
    pub(crate) by_close: bool,
}

#[derive(Default)]
pub(crate) struct Answers {
    bytes: Vec<u8>,
    at: usize,
    pub(crate) whole: Vec<Answer>,
    closes: bool,
}

impl Answers {
    /// A head was read that says so.
    fn say_close(&self) -> bool {
        self.closes
    }

    fn push(&mut self, bytes: &[u8], head_only: &[bool]) {
        self.bytes.extend(bytes);
        while let Some(answer) = self.parse(head_only, false) {
            self.closes |= answer.says_close;
            self.at = answer.ends;
            self.whole.push(answer);
        }
    }

    /// What is left when nothing more comes: an answer that the end ends, or part of one.
    pub(crate) fn rest(&self, head_only: &[bool]) -> Option<Option<Answer>> {
        if self.at == self.bytes.len() {
            return None;
        }
        Some(self.parse(head_only, true))
    }

    /// The next answer, if it is whole.
    fn parse(&self, head_only: &[bool], ended: bool) -> Option<Answer> {
        let rest = &self.bytes[self.at..];
        let head = rest.windows(4).position(|it| it == b"\r\n\r\n")? + 4;
        let lines = std::str::from_utf8(&rest[..head]).expect("a head is text");
        let mut lines = lines.split("\r\n");
        let status = lines.next()?.get(9..12)?.parse().expect("a status");
        let (mut length, mut chunked, mut says_close, mut keeps) = (None, false, false, false);
        for line in lines {
            let Some((name, value)) = line.split_once(": ") else {
                continue;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = Some(value.parse::<usize>().expect("a length")),
                "transfer-encoding" => chunked = value == "chunked",
                "connection" => {
                    says_close = value.contains("close");
                    keeps = value.contains("keep-alive");
                }
                _ => {}
            }
        }
        says_close |= lines_say_1_0(rest) && !keeps;
        let body = &rest[head..];
        let no_body = head_only.get(self.whole.len()).copied().unwrap_or(false);
        let mut by_close = false;
        let (body, n) = if no_body {
            (Vec::new(), 0)
        } else if chunked {
            unchunked(body)?
        } else if let Some(n) = length {
            (body.get(..n)?.to_vec(), n)
        } else if ended {
            by_close = true;
            (body.to_vec(), body.len())
        } else {
            return None;
        };
        Some(Answer {
            begins: self.at,
            ends: self.at + head + n,
            status,
            says_close,
            body,
            by_close,
        })
    }
}

fn lines_say_1_0(head: &[u8]) -> bool {
    head.starts_with(b"HTTP/1.0")
}

/// The body, and how long it was on the way; `None` if it is not whole.
fn unchunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = bytes[at..].windows(2).position(|it| it == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).expect("a size is text");
        let size = usize::from_str_radix(size, 16).expect("a size");
        at += line + 2;
        if size == 0 {
            // No trailers are sent.
            return (bytes.len() >= at + 2).then_some((body, at + 2));
        }
        body.extend(bytes.get(at..at + size)?);
        at += size + 2;
        if at > bytes.len() {
            return None;
        }
    }
}
