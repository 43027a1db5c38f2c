//! Every sequence of what can happen to an HTTP/1 connection, up to a length, against a naive model that
//! keeps all it saw and works out everything anew.

pub(super) mod fuzzed;

use std::sync::Arc;

use super::http1::reading::BodyLength;
use super::shared::Shared;
use super::socket::NoSocket;
use super::state::{Close, Due, State, Step, Verdict};
use crate::clock::Moment;
use crate::config::Config;
use crate::registry::Registry;

/// A request: its head, its body, what hyper says of the body, and what it asks.
type Message<'a> = (&'a [u8], &'a [u8], BodyLength, u32);

const MESSAGES: [Message<'static>; 5] = [
    (b"GET / HTTP/1.1\r\n\r\n", b"", BodyLength::Known(0), 0),
    // Longer than what is copied of a head.
    (
        b"HEAD /a-long-path HTTP/1.1\r\nhost: a\r\nuser-agent: somebody with a name\r\n\r\n",
        b"",
        BodyLength::Known(0),
        State::HEAD,
    ),
    // Short enough to be read with the first one as if they were two of those.
    (
        b"D / HTTP/1.1\r\ncontent-length: 9\r\n\r\n",
        b"\r\n\r\nx\r\n\r\n",
        BodyLength::Known(9),
        0,
    ),
    (
        b"POST / HTTP/1.1\nhost: somewhere\ncontent-length: 4\nx: yyyyyyyyyyyyyyyyy\n\n",
        b"\r\n\r\n",
        BodyLength::Known(4),
        0,
    ),
    (
        b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"2\r\n\r\n\r\n0\r\n\r\n",
        BodyLength::Chunked,
        0,
    ),
];

/// What may come behind the last of them.
const TAILS: [&[u8]; 3] = [b"", b"\r\n", b"\r\nGET /half"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A read that ends there.
    Read(usize),
    Call,
    Answer,
    /// At the deadline. It has no body, so that is all.
    AnswerLate,
    /// The body of the response is dropped.
    Say,
    Block,
    Flush,
}

/// All that is known, in the simplest form.
#[derive(Clone)]
#[allow(clippy::struct_excessive_bools)] // see above
struct Model<'a> {
    messages: &'a [Message<'a>],
    stream: Vec<u8>,
    /// So much of it was read.
    read: usize,
    called: usize,
    /// Of the request that was called last.
    answered: bool,
    late: bool,
    said: bool,
    /// hyper has all of the body of the response before, and is yet to drop it.
    behind: bool,
    /// Something was handed to hyper since the last flush.
    unflushed: bool,
    head_flushed: bool,
    blocked: bool,
}

impl<'a> Model<'a> {
    fn new(messages: &'a [Message<'a>], tail: &[u8]) -> Self {
        let all = messages.iter().flat_map(|m| [m.0, m.1]).chain([tail]);
        Self {
            messages,
            stream: all.flatten().copied().collect(),
            read: 0,
            called: 0,
            answered: true,
            late: false,
            said: true,
            behind: false,
            unflushed: false,
            head_flushed: true,
            blocked: false,
        }
    }

    /// Where the message ends that was called last.
    fn done(&self) -> usize {
        let called = &self.messages[..self.called];
        called.iter().map(|m| m.0.len() + m.1.len()).sum()
    }

    fn has_whole_head(&self) -> bool {
        let next = self.messages.get(self.called);
        next.is_some_and(|m| self.read >= self.done() + m.0.len())
    }

    /// hyper reads while its buffer is empty or holds part of a head; and calls when it has a whole one,
    /// the request before it is read, and it has all of its response, whose body it may drop after that.
    fn enabled(&self) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.has_whole_head() || self.read < self.done() {
            events.extend(self.cuts().into_iter().map(Event::Read));
        }
        if self.has_whole_head() && self.read >= self.done() && self.answered {
            events.push(Event::Call);
        }
        if self.behind {
            events.push(Event::Say);
        } else if !self.answered {
            events.extend([Event::Answer, Event::AnswerLate]);
        } else if !self.said {
            events.push(Event::Say);
        }
        if self.unflushed {
            events.push(Event::Flush);
            if !self.blocked {
                events.push(Event::Block);
            }
        }
        events
    }

    /// Ends of reads that may matter: within the next head, within its empty line, at its end, within the
    /// body, at its end; and the end of all.
    fn cuts(&self) -> Vec<usize> {
        let (mut at, mut cuts) = (0, Vec::new());
        for (head, body, ..) in self.messages {
            let end = at + head.len();
            cuts.extend([at + 3, end - 1, end, end + body.len() / 2, end + body.len()]);
            at = end + body.len();
        }
        cuts.push(self.stream.len());
        cuts.retain(|cut| *cut > self.read);
        cuts.dedup();
        let last = cuts.pop();
        cuts.truncate(3);
        cuts.extend(last);
        cuts
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Read(end) => self.read = end,
            Event::Call => {
                self.called += 1;
                self.behind = !self.said;
                (self.answered, self.late, self.said) = (false, false, false);
                self.head_flushed = false;
            }
            Event::Answer | Event::AnswerLate => {
                (self.answered, self.unflushed) = (true, true);
                self.late = event == Event::AnswerLate;
                self.said = self.late;
            }
            Event::Say if self.behind => self.behind = false,
            Event::Say => (self.said, self.unflushed) = (true, true),
            Event::Block => self.blocked = true,
            Event::Flush => {
                (self.unflushed, self.blocked) = (false, false);
                self.head_flushed = self.answered;
            }
        }
    }

    /// What was read and is not called for.
    fn rest(&self) -> &[u8] {
        &self.stream[self.done().min(self.read)..self.read]
    }

    /// Part of a request is to come, or one was read that is not called for.
    fn is_incomplete(&self) -> bool {
        self.read < self.done() || self.rest().iter().any(|b| !matches!(b, b'\r' | b'\n'))
    }

    /// Of trailers hyper alone knows whether they are right, until it calls for what is behind them.
    fn may_be_refused(&self) -> bool {
        let last = self.messages[..self.called].last();
        last.is_some_and(|m| m.2 == BodyLength::Chunked && has_trailers(m.1))
    }

    fn verdict(&self) -> Verdict {
        let rest = self.rest();
        if !self.said || self.unflushed || self.blocked {
            Verdict::Busy
        } else if self.read < self.done() {
            Verdict::Stalled
        } else if rest.iter().all(|b| matches!(b, b'\r' | b'\n')) {
            Verdict::Idle
        } else if self.has_whole_head() {
            Verdict::Stalled
        } else {
            Verdict::Until(HALF)
        }
    }
}

/// Of a body in chunks.
fn has_trailers(mut body: &[u8]) -> bool {
    loop {
        let line = body
            .windows(2)
            .position(|it| it == b"\r\n")
            .expect("a line");
        let digits = body.iter().take_while(|it| it.is_ascii_hexdigit()).count();
        let size = std::str::from_utf8(&body[..digits]).expect("digits");
        let size = usize::from_str_radix(size, 16).expect("a size");
        body = &body[line + 2..];
        if size == 0 {
            return body != b"\r\n";
        }
        body = &body[size + 2..];
    }
}

/// Later than the rest, so that half a head can be told from it.
const HALF: Moment = Moment::from_micros(7);

fn happens(shared: &Shared, event: Event, model: &Model<'_>) {
    match event {
        Event::Read(end) => {
            let bytes = &model.stream[model.read..end];
            if !shared.read_ordinary(bytes) {
                shared.read(bytes);
            }
        }
        Event::Call => {
            let (_, _, length, asks) = model.messages[model.called];
            shared.called(asks, length);
        }
        Event::Answer => {
            if !shared.step(Step::Called, Step::Answered) {
                shared.arrow(State::answered);
            }
        }
        Event::AnswerLate => {
            shared.arrow(State::answered_late);
            shared.said();
        }
        Event::Say => shared.said(),
        Event::Block => shared.set(State::BLOCKED),
        Event::Flush => drop(shared.flushed()),
    }
}

fn check(shared: &Shared, model: &Model<'_>, path: &[Event]) {
    let state = shared.state();
    let due = Due {
        idle: Moment::START,
        half_head: HALF,
        stalled: Moment::START,
    };
    let case = || format!("{path:?} of {}", model.stream.escape_ascii());
    let verdict = state.verdict(false, false, Moment::START, due);
    assert_eq!(state.is_idle(false), verdict == Verdict::Idle, "{}", case());
    // Of short ones that were read at once the later are not known of, until hyper calls: but before it does
    // it does not ask for input (S3).
    if !(model.has_whole_head() && verdict == Verdict::Idle) {
        assert_eq!(verdict, model.verdict(), "{state:?} after {}", case());
    }
    let in_hand = !model.said || model.unflushed;
    assert_eq!(
        (state.has_request(false), state.has_response()),
        (in_hand, in_hand),
        "{state:?} after {}",
        case()
    );
    let untouched = model.called > 0 && !model.answered && !model.unflushed && !model.blocked;
    // hyper may let others have a turn ahead of it.
    let ahead = state.step() == Step::Quiet && state.has(State::AHEAD);
    let ahead = ahead && model.has_whole_head() && model.read >= model.done() && !in_hand;
    assert_eq!(
        state.may_be_answered(false),
        untouched || ahead,
        "{state:?} after {}",
        case()
    );
    let in_stages = shared.close(false) == Close::InStages;
    if !(in_stages && model.may_be_refused()) {
        assert_eq!(
            in_stages,
            model.is_incomplete(),
            "{state:?} after {}",
            case()
        );
    }
    let owes = !model.answered || model.unflushed || !model.head_flushed;
    let is_late = state.step() == Step::Late;
    assert_eq!(
        state.owes_answer(false),
        owes || is_late || ahead,
        "{}",
        case()
    );
    // Inside of its poll hyper may be calling with a whole head that was read; not all are known of, see above.
    let uncalled = model.has_whole_head() && model.read >= model.done() && !in_hand;
    if !(uncalled && verdict == Verdict::Idle) {
        assert_eq!(
            [
                state.has_request(true),
                state.may_be_answered(true),
                state.owes_answer(true)
            ],
            [
                in_hand || uncalled,
                untouched || uncalled,
                owes || is_late || uncalled
            ],
            "{state:?} inside, after {}",
            case()
        );
    }
}

/// Takes all paths from here on; each is taken anew from the start, as the real thing can't be copied.
fn explore(
    registry: &Arc<Registry>,
    start: &Model<'_>,
    path: &mut Vec<Event>,
    left: usize,
) -> usize {
    let shared = Shared::register(registry, Arc::new(NoSocket));
    shared.set(State::SEEN);
    let mut model = start.clone();
    for event in &*path {
        happens(&shared, *event, &model);
        model.happens(*event);
    }
    check(&shared, &model, path);
    shared.socket_closed();
    let mut paths = 1;
    if left > 0 {
        for event in model.enabled() {
            path.push(event);
            paths += explore(registry, start, path, left - 1);
            path.pop();
        }
    }
    paths
}

/// Two requests, and whatever the client, hyper and the handler do with them. Seen to fail with each of these:
/// `flushed` without `Behind`; `said` that takes `Streaming` to `Quiet`; `called_otherwise` that does not
/// restart the reader; `Between` in which a line feed begins a head; `read_ordinary` that copies nothing;
/// `ORDINARY` without `READING`; `said` that takes `Called` to `Said`.
#[test]
fn whatever_happens_the_verdict_is_the_naive_one() {
    let registry = Arc::new(Registry::new(Config::default()));
    let mut paths = 0;
    for a in MESSAGES {
        for b in MESSAGES {
            for tail in TAILS {
                let messages = [a, b];
                let start = Model::new(&messages, tail);
                paths += explore(&registry, &start, &mut Vec::new(), LENGTH);
            }
        }
    }
    assert!(paths > 100_000, "{paths}");
}

const LENGTH: usize = 8;
