//! A body that ends when it is told.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::task::JoinHandle;

use super::messages::{Ends, Messages};
use crate::connection::yields;

pin_project! {
    /// A response body without an end of its own, which ends when it is told.
    ///
    /// [`Terminator::end_streams`](crate::Terminator::end_streams) puts it around the bodies of whole
    /// routes. By itself it is for one response, and may be told by any future.
    ///
    /// It gives what the other body gives. Once told, it ends as soon as that one has nothing to give, one
    /// turn later to be exact, so that a handler that is told at the same moment can say goodbye; and after
    /// eight more frames if it always has something. The end is the body's own: the last chunk on HTTP/1
    /// (RFC 9112 section 7.1), `END_STREAM` on HTTP/2 (RFC 9113 section 8.1), so that nobody takes it
    /// for a body that was cut. No frame is ever torn (but by `grpc`, between two messages). Server-sent events that are not a frame each may be,
    /// of which clients drop what is incomplete.
    ///
    /// A body that says its length ([`SizeHint::exact`]) or its end is given whole: the length is promised
    /// to the client, and less of it would be an error.
    ///
    /// Its data are `Bytes`, as axum and tonic want them; of a body of `Bytes` nothing is copied.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use bytes::Bytes;
    /// # use futures_util::stream::{self, Stream};
    /// # use http::Response;
    /// # use http_body::{Body, Frame};
    /// # use http_body_util::{BodyExt, StreamBody};
    /// use http_terminator::{EndingBody, Terminator};
    ///
    /// fn news(terminator: &Terminator) -> Response<impl Body<Data = Bytes>> {
    ///     let news = stream::pending::<Result<Frame<Bytes>, Infallible>>();
    ///     Response::new(EndingBody::new(StreamBody::new(news), terminator.draining()))
    /// }
    ///
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// # let news = news(&terminator).into_body();
    /// # drop(terminator.terminate());
    /// # assert!(news.collect().await.is_ok_and(|it| it.to_bytes().is_empty()));
    /// # }
    /// ```
    #[project = Projected]
    pub struct EndingBody<B, F> {
        #[pin]
        body: B,
        // None if it is not to be ended.
        #[pin]
        told: Option<F>,
        kind: Kind,
        state: State,
    }
}

/// ```text
///  Whole      First ──▶ More ──told──▶ Told ──▶ Last
///                └─────told─────────────┘        │
///    └───────────────┴───────┴──────────┴────────┴──▶ Over
/// ```
#[derive(Debug)]
enum State {
    /// Its end is its own, whatever happens.
    Whole,
    /// Nothing has come yet. What comes first may be all, as with a call that has one answer: it does not
    /// look whether it was told then, and so writes to nothing that others share.
    First,
    More,
    Told {
        /// How many frames, or messages, may still come.
        left: usize,
        rest: Rest,
    },
    /// The last frame was given, the end was not.
    Last,
    Over,
}

/// One turn in which there is nothing. hyper polls a body more than once in each of its own.
#[derive(Debug)]
enum Rest {
    No,
    Turn(JoinHandle<()>),
    /// Outside of a runtime: a poll.
    Poll,
}

/// How it ends.
#[derive(Debug)]
enum Kind {
    Plain,
    Grpc(Messages),
}

impl<B: Body, F: Future<Output = ()>> EndingBody<B, F> {
    /// Ends `body` when `told` is ready.
    pub fn new(body: B, told: F) -> Self {
        Self::of(Kind::Plain, body, told)
    }

    /// The same for a response of gRPC: its messages are delivered whole, however they lie in frames, and
    /// its end are the trailers that the protocol wants, with the status `UNAVAILABLE`, at which clients try
    /// again (gRPC over HTTP/2, "Responses", and gRPC's status codes).
    ///
    /// An answer of one message is never cut, unless its handler makes one wait between message and
    /// trailers.
    pub fn grpc(body: B, told: F) -> Self {
        Self::of(Kind::Grpc(Messages::default()), body, told)
    }

    /// Not to be ended.
    pub(super) fn whole(body: B) -> Self {
        Self {
            body,
            told: None,
            kind: Kind::Plain,
            state: State::Whole,
        }
    }

    fn of(kind: Kind, body: B, told: F) -> Self {
        let whole = body.is_end_stream() || body.size_hint().exact().is_some();
        let state = if whole { State::Whole } else { State::First };
        Self {
            body,
            told: Some(told),
            kind,
            state,
        }
    }
}

/// For layers that answer by themselves, such as tower-http's for timeouts and CORS.
impl<B: Body + Default, F: Future<Output = ()>> Default for EndingBody<B, F> {
    fn default() -> Self {
        Self::whole(B::default())
    }
}

impl<B, F> fmt::Debug for EndingBody<B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndingBody")
            .field("kind", &self.kind)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<B: Body, F: Future<Output = ()>> Body for EndingBody<B, F> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        if matches!(this.state, State::Over) {
            return Poll::Ready(None);
        }
        if matches!(this.state, State::Last) {
            return Poll::Ready(this.end());
        }
        let Poll::Ready(next) = this.body.as_mut().poll_frame(cx) else {
            // Second, so that both wake it, and what is ready goes first.
            return if this.ends_at_rest(cx) {
                Poll::Ready(this.end())
            } else {
                Poll::Pending
            };
        };
        let frame =
            next.map(|it| it.map(|it| it.map_data(|mut it| it.copy_to_bytes(it.remaining()))));
        Poll::Ready(match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Some(Ok(Frame::data(this.take(data, cx)))),
                Err(trailers) => {
                    *this.state = State::Over;
                    Some(Ok(trailers))
                }
            },
            end => {
                *this.state = State::Over;
                end
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match self.state {
            State::Over => true,
            State::Last => matches!(self.kind, Kind::Plain),
            _ => self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.body.size_hint();
        if matches!(self.state, State::Whole) {
            return inner;
        }
        // It may be less, never more.
        let mut hint = SizeHint::default();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper);
        }
        hint
    }
}

impl<B: Body, F: Future<Output = ()>> Projected<'_, B, F> {
    fn is_told(&mut self, cx: &mut Context<'_>) -> bool {
        match self.state {
            State::Told { .. } => true,
            State::First | State::More => {
                let told = self.told.as_mut().as_pin_mut();
                let told = told.is_some_and(|told| told.poll(cx).is_ready());
                if told {
                    *self.state = State::Told {
                        left: LAST_WORDS,
                        rest: Rest::No,
                    };
                }
                told
            }
            State::Whole | State::Last | State::Over => false,
        }
    }

    /// There is nothing to give.
    fn ends_at_rest(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_told(cx) || !self.kind.is_between() {
            return false;
        }
        let State::Told { rest, .. } = self.state else {
            return false;
        };
        if matches!(rest, Rest::No) {
            let Some(turn) = yields() else {
                *rest = Rest::Poll;
                cx.waker().wake_by_ref();
                return false;
            };
            *rest = Rest::Turn(turn);
        }
        match rest {
            Rest::Turn(turn) => Pin::new(turn).poll(cx).is_ready(),
            _ => true,
        }
    }

    /// What of `data` is given.
    fn take(&mut self, mut data: Bytes, cx: &mut Context<'_>) -> Bytes {
        let ends = self.kind.read(&data);
        match self.state {
            State::First => *self.state = State::More,
            _ => drop(self.is_told(cx)),
        }
        if let State::Told { left, rest } = self.state {
            *left = left.saturating_sub(ends.messages);
            *rest = Rest::No;
            if *left == 0 && ends.messages > 0 {
                data.truncate(ends.last);
                *self.state = State::Last;
            }
        }
        data
    }

    fn end<E>(&mut self) -> Option<Result<Frame<Bytes>, E>> {
        *self.state = State::Over;
        match self.kind {
            Kind::Plain => None,
            Kind::Grpc(_) => Some(Ok(Frame::trailers(unavailable()))),
        }
    }
}

impl Kind {
    fn read(&mut self, data: &Bytes) -> Ends {
        match self {
            Self::Plain => Ends {
                messages: 1,
                last: data.len(),
            },
            Self::Grpc(messages) => messages.read(data),
        }
    }

    fn is_between(&self) -> bool {
        match self {
            Self::Plain => true,
            Self::Grpc(messages) => messages.is_between(),
        }
    }
}

fn unavailable() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert("grpc-status", HeaderValue::from_static("14"));
    // Without a byte that would have to be percent-encoded.
    let message = HeaderValue::from_static("the server ends this connection");
    trailers.insert("grpc-message", message);
    trailers
}

/// How much may still come from a body that is told and always has something: enough for a goodbye.
const LAST_WORDS: usize = 8;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use tokio_util::sync::CancellationToken;

    use super::*;

    /// What a body says when, one a poll; then nothing more, for ever.
    struct Script {
        says: VecDeque<Poll<Frame<Bytes>>>,
        /// At least, at most.
        hint: (u64, Option<u64>),
    }

    impl Script {
        fn new(says: impl IntoIterator<Item = Poll<Frame<Bytes>>>) -> Self {
            Self {
                says: says.into_iter().collect(),
                hint: (0, None),
            }
        }

        fn data(pieces: &[&[u8]]) -> Self {
            Self::new(pieces.iter().map(|it| data(it)))
        }
    }

    impl Body for Script {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let next = self.says.pop_front().unwrap_or(Poll::Pending);
            next.map(|frame| Some(Ok(frame)))
        }

        fn size_hint(&self) -> SizeHint {
            let mut hint = SizeHint::default();
            hint.set_lower(self.hint.0);
            if let Some(upper) = self.hint.1 {
                hint.set_upper(upper);
            }
            hint
        }
    }

    fn data(bytes: &[u8]) -> Poll<Frame<Bytes>> {
        Poll::Ready(Frame::data(Bytes::copy_from_slice(bytes)))
    }

    fn trailers(status: &'static str) -> Poll<Frame<Bytes>> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        Poll::Ready(Frame::trailers(trailers))
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Polls it `polls` times, as far as it has no end: what it gave, `-` where it gave nothing, the status
    /// of its trailers, `.` at its end.
    fn poll<B, F>(mut body: Pin<&mut EndingBody<B, F>>, polls: usize) -> (String, usize)
    where
        B: Body<Data = Bytes, Error = Infallible>,
        F: Future<Output = ()>,
    {
        let woken = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let mut given = String::new();
        for _ in 0..polls {
            let said = match body.as_mut().poll_frame(&mut cx) {
                Poll::Pending => "-".to_owned(),
                Poll::Ready(None) => {
                    assert!(body.is_end_stream());
                    ".".to_owned()
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => String::from_utf8(data.to_vec()).expect("text"),
                    Err(frame) => {
                        let trailers = frame.into_trailers().expect("neither");
                        format!("{:?}", trailers["grpc-status"])
                    }
                },
            };
            given.push_str(&said);
            if said == "." {
                break;
            }
        }
        (given, woken.0.load(Ordering::Relaxed))
    }

    #[test]
    fn a_quiet_body_ends_one_turn_after_it_is_told() {
        let token = CancellationToken::new();
        let told = token.clone().cancelled_owned();
        let mut body = pin!(EndingBody::new(Script::data(&[b"a", b"b"]), told));
        assert_eq!(poll(body.as_mut(), 4), ("ab--".to_owned(), 0));
        token.cancel();
        assert_eq!(poll(body, 9), ("-.".to_owned(), 1));
    }

    #[test]
    fn what_a_handler_says_in_that_turn_goes_out() {
        let says = [data(b"a"), Poll::Pending, data(b"bye"), data(b"!")];
        let body = pin!(EndingBody::new(Script::new(says), ready(())));
        assert_eq!(poll(body, 9), ("a-bye!-.".to_owned(), 2));
    }

    #[test]
    fn a_body_that_always_has_something_ends() {
        let body = pin!(EndingBody::new(Script::data(&[&b"a"[..]; 99]), ready(())));
        // The first, which may be all, is not counted.
        assert_eq!(poll(body, 99).0, "a".repeat(1 + LAST_WORDS) + ".");
    }

    /// What a layer answers by itself, for want of a body.
    #[test]
    fn one_by_default_is_whole() {
        type Empty = http_body_util::Empty<Bytes>;
        let body = pin!(EndingBody::<Empty, std::future::Pending<()>>::default());
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
    }

    #[test]
    fn a_length_that_is_promised_is_kept() {
        let mut script = Script::new([data(b"a"), Poll::Pending, Poll::Pending, data(b"b")]);
        script.hint = (2, Some(2));
        let body = pin!(EndingBody::new(script, ready(())));
        assert_eq!(body.size_hint().exact(), Some(2));
        assert_eq!(poll(body, 5), ("a--b-".to_owned(), 0));
    }

    #[test]
    fn no_length_is_promised_that_may_not_be_kept() {
        let mut script = Script::data(&[b"a"]);
        script.hint = (5, Some(9));
        let hint = EndingBody::new(script, pending()).size_hint();
        assert_eq!((hint.lower(), hint.upper()), (0, Some(9)));
    }

    #[test]
    fn an_answer_of_one_message_is_whole_however_it_is_cut() {
        // The 20 bytes of this message, and its trailers.
        let message = b"\0\0\0\0\x0fmany small ones";
        let says = message.iter().map(|it| data(&[*it]));
        let says = says.chain([trailers("0")]);
        let body = pin!(EndingBody::grpc(Script::new(says), ready(())));
        assert_eq!(poll(body, 99).0, "\0\0\0\0\x0fmany small ones\"0\".");
    }

    #[test]
    fn a_message_is_not_torn() {
        let says = [
            data(b"\0\0\0\0\x02a"),
            Poll::Pending,
            Poll::Pending,
            data(b"b"),
        ];
        let body = pin!(EndingBody::grpc(Script::new(says), ready(())));
        assert_eq!(poll(body, 9), ("\0\0\0\0\x02a--b-\"14\".".to_owned(), 1));
    }

    /// Its frames end in the middle of messages always.
    #[test]
    fn messages_without_end_end_between_two() {
        let piece: &[u8] = b"b\0\0\0\0\x02a";
        let pieces = [&[&piece[1..]][..], &[piece; 99]].concat();
        let body = pin!(EndingBody::grpc(Script::data(&pieces), ready(())));
        let expected = "\0\0\0\0\x02ab".repeat(LAST_WORDS) + "\"14\".";
        assert_eq!(poll(body, 99).0, expected);
    }
}
