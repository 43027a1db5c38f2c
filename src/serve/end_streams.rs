//! Ends the responses of others that would never end by themselves.

use std::fmt;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::connection::Connection;
use crate::terminator::Terminator;

/// A layer that ends the responses of whole routes when the drain begins, from
/// [`Terminator::end_streams`].
///
/// For streams that others have made and that know nothing of any drain: server-sent events, gRPC health's
/// `Watch`, reflection. Without it each holds the drain until its deadline.
///
/// With [`Serve::connection_in_extensions`](crate::Serve::connection_in_extensions) they end when their own
/// connection is told, so also when that is old; otherwise when the terminator drains. How they end: see
/// [`EndingBody`]. Put it on the routes whose responses don't end, and on no others: a long response without
/// a length, such as a download that is made as it goes, would be cut by it.
#[derive(Clone, Debug)]
pub struct EndStreams {
    terminator: Terminator,
}

/// The service of [`EndStreams`].
#[derive(Clone, Debug)]
pub struct EndStreamsService<S> {
    inner: S,
    terminator: Terminator,
}

impl EndStreams {
    pub(crate) fn new(terminator: Terminator) -> Self {
        Self { terminator }
    }
}

impl<S> Layer<S> for EndStreams {
    type Service = EndStreamsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        EndStreamsService {
            inner,
            terminator: self.terminator.clone(),
        }
    }
}

impl<S, B, R> Service<Request<B>> for EndStreamsService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    type Response = Response<EndingBody<R>>;
    type Error = S::Error;
    type Future = EndStreamsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let told: Told = match request.extensions().get::<Connection>() {
            Some(connection) => Box::pin(connection.draining()),
            None => Box::pin(self.terminator.draining()),
        };
        EndStreamsFuture {
            inner: self.inner.call(request),
            told: Some(told),
        }
    }
}

pin_project! {
    /// The future of an [`EndStreamsService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct EndStreamsFuture<F> {
        #[pin]
        inner: F,
        told: Option<Told>,
    }
}

impl<F> fmt::Debug for EndStreamsFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndStreamsFuture").finish_non_exhaustive()
    }
}

impl<F, R, E> Future for EndStreamsFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
{
    type Output = Result<Response<EndingBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        let (head, body) = response.into_parts();
        let told = this.told.take().expect("polled after it was ready");
        let is_grpc = is_grpc(&head.headers);
        let has_length = head.headers.contains_key(CONTENT_LENGTH);
        let body = EndingBody::with(body, (!has_length).then_some(told), is_grpc);
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}

/// Not gRPC-Web, whose trailers are part of its body.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

type Told = Pin<Box<dyn Future<Output = ()> + Send>>;

pin_project! {
    /// A body that ends when it is told, if it has not ended before.
    ///
    /// It ends as soon as the body inside has nothing ready, by what its protocol has for an end: a last chunk
    /// (RFC 9112 section 7.1), `END_STREAM` (RFC 9113 section 8.1). One that always has more ready ends some
    /// frames later, so that what is ready as a whole, such as the answer to a unary call, is given as a whole.
    /// A body whose length is known is never cut.
    ///
    /// A gRPC response ends between two messages, with the status `UNAVAILABLE` in its trailers, upon which
    /// clients call again ("gRPC over HTTP2", section *Responses*).
    ///
    /// # Examples
    ///
    /// ```
    /// # use futures_util::StreamExt;
    /// # use http_body_util::{BodyExt, StreamBody};
    /// # use http_body::Frame;
    /// # use bytes::Bytes;
    /// use http_terminator::{EndingBody, Terminator};
    ///
    /// # #[tokio::main] async fn main() {
    /// # let terminator = Terminator::new();
    /// # let endless = futures_util::stream::pending::<Result<Frame<Bytes>, std::convert::Infallible>>();
    /// # let endless = StreamBody::new(endless);
    /// let body = EndingBody::new(endless, terminator.draining());
    /// # drop(terminator.terminate());
    /// # assert!(body.collect().await.unwrap().to_bytes().is_empty());
    /// # }
    /// ```
    pub struct EndingBody<B> {
        #[pin]
        inner: B,
        // None if it is never cut.
        told: Option<Told>,
        // It is told, and may give so many frames more.
        more: Option<u32>,
        messages: Option<Messages>,
        over: bool,
    }
}

/// How many frames a body gives that is told, as long as they are ready.
const MORE: u32 = 64;

impl<B: Body> EndingBody<B> {
    /// Ends `body` when `told` is ready.
    pub fn new(body: B, told: impl Future<Output = ()> + Send + 'static) -> Self {
        Self::with(body, Some(Box::pin(told)), false)
    }

    /// The same of a gRPC response.
    pub fn grpc(body: B, told: impl Future<Output = ()> + Send + 'static) -> Self {
        Self::with(body, Some(Box::pin(told)), true)
    }

    fn with(inner: B, told: Option<Told>, is_grpc: bool) -> Self {
        let has_end = inner.is_end_stream() || inner.size_hint().exact().is_some();
        Self {
            inner,
            told: told.filter(|_| !has_end),
            more: None,
            messages: is_grpc.then(Messages::default),
            over: false,
        }
    }
}

impl<B> fmt::Debug for EndingBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndingBody").finish_non_exhaustive()
    }
}

impl<B: Body> Body for EndingBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        if *this.over {
            return Poll::Ready(None);
        }
        let may_end = this.messages.as_ref().is_none_or(Messages::is_between);
        let is_enough = *this.more == Some(0) && may_end;
        let polled = if is_enough {
            Poll::Pending
        } else {
            this.inner.poll_frame(cx)
        };
        if let (None, Some(told)) = (&this.more, this.told) {
            if told.as_mut().poll(cx).is_ready() {
                *this.more = Some(MORE);
            }
        }
        match polled {
            Poll::Pending if this.more.is_some() && may_end => {
                *this.over = true;
                let status = this.messages.is_some();
                Poll::Ready(status.then(|| Ok(Frame::trailers(unavailable()))))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                *this.over = frame.is_trailers();
                if let (Some(messages), Some(data)) = (this.messages, frame.data_ref()) {
                    messages.follow(data);
                }
                if let Some(more) = this.more {
                    *more = more.saturating_sub(1);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            end @ Poll::Ready(_) => {
                *this.over = true;
                end
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.told.is_some() {
            SizeHint::new()
        } else {
            self.inner.size_hint()
        }
    }
}

/// A call that may be made again.
fn unavailable() -> HeaderMap {
    let status = HeaderName::from_static("grpc-status");
    let message = HeaderName::from_static("grpc-message");
    let mut trailers = HeaderMap::new();
    trailers.insert(status, HeaderValue::from_static("14"));
    trailers.insert(
        message,
        HeaderValue::from_static("the server is going away"),
    );
    trailers
}

/// Where in the messages of gRPC we are: each has a byte, its length in four more, and so many bytes.
#[derive(Debug, Default)]
struct Messages {
    head: [u8; 5],
    /// So much of it is there.
    read: usize,
    /// Of the message.
    left: usize,
}

impl Messages {
    fn is_between(&self) -> bool {
        self.read == 0 && self.left == 0
    }

    fn follow(&mut self, data: &impl Buf) {
        // Not read, which would take it out.
        let mut parts = [IoSlice::new(&[]); 16];
        let n = data.chunks_vectored(&mut parts);
        let seen: usize = parts[..n].iter().map(|part| part.len()).sum();
        if seen < data.remaining() {
            // In so many pieces nobody sends them. It is taken for whole messages.
            *self = Self::default();
            return;
        }
        for part in &parts[..n] {
            self.feed(part);
        }
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let n = self.left.min(bytes.len());
                self.left -= n;
                bytes = &bytes[n..];
                continue;
            }
            self.head[self.read] = bytes[0];
            self.read += 1;
            bytes = &bytes[1..];
            if self.read == self.head.len() {
                let [_, a, b, c, d] = self.head;
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                self.read = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_where_they_end_in_any_pieces() {
        let stream = [
            &[0, 0, 0, 0, 2, 7, 7][..],
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 1, 0],
            &[9; 256],
        ]
        .concat();
        let ends = [0, 7, 12, 273];
        for piece in 1..=stream.len() {
            let (mut messages, mut at) = (Messages::default(), 0);
            for part in stream.chunks(piece) {
                messages.follow(&part);
                at += part.len();
                assert_eq!(
                    messages.is_between(),
                    ends.contains(&at),
                    "at {at}, pieces of {piece}"
                );
            }
        }
    }

    #[test]
    fn only_grpc_is_grpc() {
        let kind = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            is_grpc(&headers)
        };
        assert!(kind("application/grpc") && kind("application/grpc+proto"));
        assert!(!kind("application/grpc-web") && !kind("text/event-stream"));
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
