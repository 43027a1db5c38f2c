//! What a well-behaved client can have sent by the time its connection is idle: requests of every shape,
//! one behind the other, cut into segments in every way, with line ends between them that belong to none.
//!
//! All of it is answered by hyper itself, which keeps the connection open:
//! `the_inputs_are_answered_and_kept_open_by_hyper_itself` holds this table to that.

use std::fmt;

use axum::Router;
use axum::extract::State;
use axum::routing::any;
use bytes::Bytes;

use crate::support::Gate;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Get,
    Head,
    Delete,
    GetWithBody,
    /// The head ends the segment, the body follows in the next.
    DeleteThenBody,
    Post,
    /// The body ends as a head does.
    PostEndingInBlank,
    /// The body is what a head ends with.
    PostOfBlank,
    /// More than hyper's buffer holds at first.
    PostBig,
    PutChunked,
    PutTrailers,
    PostExpect,
}

use Request::{
    Delete, DeleteThenBody, Get, GetWithBody, Head, Post, PostBig, PostEndingInBlank, PostExpect,
    PostOfBlank, PutChunked, PutTrailers,
};

const REQUESTS: [Request; 12] = [
    Get,
    Head,
    Delete,
    GetWithBody,
    DeleteThenBody,
    Post,
    PostEndingInBlank,
    PostOfBlank,
    PostBig,
    PutChunked,
    PutTrailers,
    PostExpect,
];

/// How heads are written; those of one connection take turns, from this one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// Below 64 bytes, no space after the colon.
    Short,
    Plain,
    /// Above 600 bytes.
    Long,
    LongTight,
    /// Lines end in LF alone.
    Lf,
    /// Only the empty line does.
    LfAtTheEnd,
}

const HEADS: [Heads; 6] = [
    Heads::Short,
    Heads::Plain,
    Heads::Long,
    Heads::LongTight,
    Heads::Lf,
    Heads::LfAtTheEnd,
];

/// Where a segment ends, other than at the end of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Nowhere,
    /// Before each request.
    Requests,
    /// The same, and the answer to the one before is read first.
    Answers,
    /// The same as [`Requests`](Self::Requests), while the first one's handler is held.
    Held,
    /// So many bytes into what ends each head.
    Blank(usize),
    /// Between each head and its body.
    Bodies,
    /// Inside of chunk-size lines and before a chunked body's last byte; else in the middle of a body; else
    /// in a request line.
    Sizes,
    /// After each byte.
    Bytes,
}

pub const CUTS: [Cut; 10] = [
    Cut::Nowhere,
    Cut::Requests,
    Cut::Answers,
    Cut::Held,
    Cut::Blank(1),
    Cut::Blank(2),
    Cut::Blank(3),
    Cut::Bodies,
    Cut::Sizes,
    Cut::Bytes,
];

/// Line ends that belong to no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    Nowhere,
    /// Right behind the last request.
    Behind(&'static str),
    /// In a segment of their own, when all has been answered.
    Later(&'static str),
    /// Right behind each request.
    BehindEach(&'static str),
    /// In a segment of their own, after each request.
    AfterEach(&'static str),
}

/// All but the first, which is none.
const STRAYS: [Stray; 13] = [
    Stray::Nowhere,
    Stray::Behind("\r\n"),
    Stray::Behind("\r\n\r\n"),
    Stray::Behind("\n"),
    Stray::Later("\r\n"),
    Stray::Later("\r\n\r\n"),
    Stray::Later("\n"),
    Stray::BehindEach("\r\n"),
    Stray::BehindEach("\r\n\r\n"),
    Stray::BehindEach("\n"),
    Stray::AfterEach("\r\n"),
    Stray::AfterEach("\r\n\r\n"),
    Stray::AfterEach("\n"),
];

/// A head that has begun, and what completes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half {
    pub begun: &'static str,
    pub rest: &'static str,
    /// Right behind the last request, not in a segment of its own when all has been answered.
    pub behind: bool,
}

pub const HALVES: [(&str, &str); 5] = [
    ("GE", "T /read HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("GET /read HTTP/1.1\r\nhost: a\r\n", "\r\n"),
    ("GET /read HTTP/1.1\r\nhost: a\r\n\r", "\n"),
    ("\r\nG", "ET /read HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("\nGET /read HTTP/1.1\nhost: a\n", "\n"),
];

/// What one client sends.
#[derive(Clone, PartialEq, Eq)]
pub struct Case {
    pub requests: Vec<Request>,
    pub heads: Heads,
    pub cut: Cut,
    pub stray: Stray,
    /// Whether the handlers drop the bodies instead of reading them.
    pub drops: bool,
    pub half: Option<Half>,
}

/// One thing to do after the other; the server is to have read what was sent before the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Send(Vec<u8>),
    /// Read the answer to this one.
    Answer(Answer),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// To a HEAD.
    pub without_body: bool,
    pub body: String,
}

/// After each of these its connection is idle.
pub fn idle() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut turn = 0;
    for requests in sequences() {
        for cut in CUTS {
            // Without strays, and with some, such that all meet all over the whole table.
            for k in 0..3 {
                turn += 1;
                let stray = if k == 0 { 0 } else { 1 + turn % 12 };
                let case = Case {
                    requests: requests.clone(),
                    heads: HEADS[(turn / 3) % HEADS.len()],
                    cut,
                    stray: STRAYS[stray],
                    drops: false,
                    half: None,
                };
                let dropped = Case {
                    drops: true,
                    ..case.clone()
                };
                cases.extend([case, dropped]);
            }
        }
    }
    for stray in STRAYS {
        cases.push(Case {
            requests: Vec::new(),
            heads: Heads::Short,
            cut: Cut::Nowhere,
            stray,
            drops: false,
            half: None,
        });
    }
    cases.retain(Case::is_of_use);
    // Those that are cut alike take the same steps.
    cases.sort_by_key(|case| CUTS.iter().position(|cut| *cut == case.cut));
    cases
}

/// After each of these a head has begun.
pub fn halves() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut turn = 0;
    for requests in sequences() {
        for (begun, rest) in HALVES {
            for behind in [true, false] {
                turn += 1;
                cases.push(Case {
                    requests: requests.clone(),
                    heads: HEADS[turn % HEADS.len()],
                    cut: CUTS[turn % (CUTS.len() - 1)],
                    stray: Stray::Nowhere,
                    drops: false,
                    half: Some(Half {
                        begun,
                        rest,
                        behind,
                    }),
                });
            }
        }
    }
    cases.retain(Case::is_of_use);
    // Those that are cut alike take the same steps.
    cases.sort_by_key(|case| CUTS.iter().position(|cut| *cut == case.cut));
    cases
}

/// One request, two, some of three, and all of them twice.
fn sequences() -> Vec<Vec<Request>> {
    let n = REQUESTS.len();
    let mut all: Vec<_> = REQUESTS.map(|one| vec![one]).to_vec();
    for first in REQUESTS {
        all.extend(REQUESTS.map(|second| vec![first, second]));
    }
    for (a, b) in [(1, 5), (5, 10), (7, 0)] {
        all.extend((0..n).map(|at| [at, at + a, at + b].map(|at| REQUESTS[at % n]).to_vec()));
    }
    all.push([REQUESTS, REQUESTS].concat());
    all
}

impl Case {
    /// The steps up to where the connection is idle, or the head half sent.
    pub fn steps(&self) -> Vec<Step> {
        let mut sent = self.sent();
        sent.cuts.sort_unstable();
        sent.cuts.dedup();
        let mut steps = Vec::new();
        let mut answers = self.answers().into_iter().map(Step::Answer);
        let mut at = 0;
        for end in sent.cuts {
            if end > at {
                steps.push(Step::Send(sent.bytes[at..end].to_vec()));
                at = end;
            }
            if self.cut == Cut::Answers && sent.ends.contains(&end) {
                steps.extend(answers.next());
            }
        }
        if at < sent.bytes.len() {
            steps.push(Step::Send(sent.bytes[at..].to_vec()));
        }
        steps.extend(answers);
        if let Stray::Later(stray) = self.stray {
            steps.push(Step::Send(stray.into()));
        }
        if let Some(half) = self.half.filter(|half| !half.behind) {
            steps.push(Step::Send(half.begun.into()));
        }
        steps
    }

    /// Whether hyper answers it all and keeps the connection, and it is another one than the others.
    fn is_of_use(&self) -> bool {
        let many = self.requests.len() > 3;
        // What it cuts depends on who is faster.
        let behind_held = self.cut == Cut::Held && (many || self.requests.len() < 2);
        let too_long =
            self.cut == Cut::Bytes && (self.requests.len() > 2 || self.sent().bytes.len() > 150);
        // A body that nobody reads is drained by hyper if it has it already, whole and in one piece.
        let is_drained = |request: &Request| {
            !matches!(request, DeleteThenBody | PostBig | PutChunked | PutTrailers)
        };
        let closed = self.drops
            && (many
                || !self.requests.iter().all(is_drained)
                || !matches!(
                    self.cut,
                    Cut::Nowhere | Cut::Requests | Cut::Answers | Cut::Blank(_)
                ));
        !(behind_held || too_long || closed)
    }

    fn answers(&self) -> Vec<Answer> {
        let length = |request: &Request| request.body().1.to_string();
        let answer = |request: &Request| Answer {
            without_body: *request == Head,
            body: if self.drops {
                "dropped".to_owned()
            } else {
                length(request)
            },
        };
        self.requests.iter().map(answer).collect()
    }

    fn sent(&self) -> Sent {
        let mut sent = Sent::default();
        let first = HEADS.iter().position(|it| *it == self.heads);
        let first = first.expect("all are in the list");
        for (n, request) in self.requests.iter().enumerate() {
            if n > 0 && matches!(self.cut, Cut::Requests | Cut::Answers | Cut::Held) {
                sent.cut(0);
            }
            let path = match (self.cut, self.drops) {
                (Cut::Held, _) if n == 0 => "/held",
                (_, true) => "/drop",
                (_, false) => "/read",
            };
            sent.request(
                *request,
                HEADS[(first + n) % HEADS.len()],
                path,
                self.cut,
                self.drops,
            );
            match self.stray {
                Stray::BehindEach(stray) => sent.push(stray),
                Stray::AfterEach(stray) => {
                    sent.cut(0);
                    sent.push(stray);
                    sent.cut(0);
                }
                _ => {}
            }
            sent.ends.push(sent.bytes.len());
        }
        match (self.stray, self.half) {
            (Stray::Behind(behind), _) => sent.push(behind),
            (Stray::BehindEach(behind) | Stray::AfterEach(behind), _)
                if self.requests.is_empty() =>
            {
                sent.push(behind);
            }
            (_, Some(half)) if half.behind => sent.push(half.begun),
            _ => {}
        }
        if self.cut == Cut::Answers {
            // Where the last answer is read; behind it nothing may be left to send.
            sent.ends.pop();
        }
        if self.cut == Cut::Bytes {
            sent.cuts = (0..sent.bytes.len()).collect();
        }
        sent
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            requests,
            heads,
            cut,
            stray,
            drops,
            half,
        } = self;
        write!(f, "{requests:?}, heads {heads:?}.., cut {cut:?}")?;
        if *stray != Stray::Nowhere {
            write!(f, ", stray {stray:?}")?;
        }
        if *drops {
            write!(f, ", bodies dropped")?;
        }
        if let Some(Half { begun, behind, .. }) = half {
            write!(
                f,
                ", then {begun:?} {}",
                if *behind { "right behind" } else { "later" }
            )?;
        }
        write!(f, ":")?;
        let steps = self.steps();
        for step in steps.iter().take(8) {
            match step {
                Step::Send(bytes) if bytes.len() > 120 => {
                    let (begin, end) = (&bytes[..80], &bytes[bytes.len() - 40..]);
                    write!(f, " \"{}…{}\"", begin.escape_ascii(), end.escape_ascii())?;
                }
                Step::Send(bytes) => write!(f, " \"{}\"", bytes.escape_ascii())?,
                Step::Answer(_) => write!(f, " <answer>")?,
            }
        }
        if steps.len() > 8 {
            write!(f, " …")?;
        }
        Ok(())
    }
}

/// Bytes, where segments end in them, and where requests with their strays do.
#[derive(Default)]
struct Sent {
    bytes: Vec<u8>,
    cuts: Vec<usize>,
    ends: Vec<usize>,
}

impl Sent {
    fn push(&mut self, bytes: impl AsRef<[u8]>) {
        self.bytes.extend_from_slice(bytes.as_ref());
    }

    /// A segment ends so many bytes from here.
    fn cut(&mut self, behind: usize) {
        self.cuts.push(self.bytes.len() + behind);
    }

    fn request(&mut self, request: Request, heads: Heads, path: &str, cut: Cut, drops: bool) {
        let (line, colon, end) = match heads {
            Heads::Plain | Heads::Long => ("\r\n", ": ", "\r\n"),
            Heads::Short | Heads::LongTight => ("\r\n", ":", "\r\n"),
            Heads::Lf => ("\n", ": ", "\n"),
            Heads::LfAtTheEnd => ("\r\n", ": ", "\n"),
        };
        let (body, _) = request.body();
        let begin = self.bytes.len();
        let mut fields = vec![
            format!("{} {path} HTTP/1.1", request.method()),
            format!("host{colon}a"),
        ];
        if matches!(heads, Heads::Long | Heads::LongTight) {
            fields.extend((80..87).map(|n| format!("x-padding-{n}{colon}{}", "p".repeat(n))));
        }
        match request {
            PutChunked | PutTrailers => fields.push(format!("Transfer-Encoding{colon}chunked")),
            _ if body.is_empty() => {}
            _ => fields.push(format!("Content-Length{colon}{}", body.len())),
        }
        if request == PostExpect {
            fields.push(format!("Expect{colon}100-continue"));
        }
        if heads == Heads::Plain {
            fields.push("Accept:   */*  ".to_owned());
        }
        self.push(fields.join(line));
        let blank = line.len() + end.len();
        if let Cut::Blank(n) = cut {
            self.cut(n.min(blank - 1));
        }
        self.push(line);
        self.push(end);
        if request == DeleteThenBody || (cut == Cut::Bodies && !drops && !body.is_empty()) {
            self.cut(0);
        }
        if cut == Cut::Sizes {
            match request {
                // Inside of the first size, inside of the line end behind it, and the same for the last.
                PutChunked | PutTrailers => {
                    let line = body.windows(2).position(|two| two == b"\r\n");
                    let line = line.expect("chunked");
                    for at in [1, line + 1, body.len() - 4, body.len() - 1] {
                        self.cut(at);
                    }
                }
                _ if body.is_empty() => self.cuts.push(begin + 7),
                _ => self.cut(body.len() / 2),
            }
        }
        self.push(body);
    }
}

impl Request {
    fn method(self) -> &'static str {
        match self {
            Get | GetWithBody => "GET",
            Head => "HEAD",
            Delete | DeleteThenBody => "DELETE",
            Post | PostEndingInBlank | PostOfBlank | PostBig | PostExpect => "POST",
            PutChunked | PutTrailers => "PUT",
        }
    }

    /// As it is sent, and how long it is to its handler.
    fn body(self) -> (Vec<u8>, usize) {
        let body = match self {
            Get | Head | Delete => b"".to_vec(),
            GetWithBody => b"what?".to_vec(),
            DeleteThenBody => b"this and\nthat".to_vec(),
            Post => b"hello world".to_vec(),
            PostEndingInBlank => b"a: b\r\n\r\n".to_vec(),
            PostOfBlank => b"\r\n\r\n".to_vec(),
            PostBig => b"0123456789abcde\n".repeat(1280),
            PostExpect => b"as expected".to_vec(),
            PutChunked => {
                return (
                    b"00a\r\nab\r\n\r\nef\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
                    15,
                );
            }
            PutTrailers => {
                let body = b"5;name=value;other=\"quoted\"\r\nhello\r\n4\r\n\r\n\r\n\r\n0;last\r\nsum: 7\r\nmore:yes\r\n\r\n";
                return (body.to_vec(), 9);
            }
        };
        let length = body.len();
        (body, length)
    }
}

/// Answers all of it.
pub fn router(gate: Gate) -> Router {
    Router::new()
        .route("/read", any(read))
        .route("/drop", any(async || "dropped"))
        .route("/held", any(held))
        .with_state(gate)
}

async fn read(body: Bytes) -> String {
    body.len().to_string()
}

async fn held(State(gate): State<Gate>, body: Bytes) -> String {
    gate.enter().await;
    body.len().to_string()
}
