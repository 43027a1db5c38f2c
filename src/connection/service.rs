//! Around the service, each of its futures and each response body: what is in flight, and the
//! `connection: close` that ends an HTTP/1 connection.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use http::header::{CONNECTION, CONTENT_LENGTH, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use pin_project_lite::pin_project;

use super::shared::{InFlight, Shared};
use crate::phase::Phase;

/// A hyper service whose requests count for their connection, from
/// [`Connection::service`](crate::Connection::service).
///
/// A request is in flight from its call until its response's body is dropped. Responses on HTTP/1
/// say `connection: close` from [`Phase::LameDuck`] on; at the deadline a request without a
/// response is answered `503`.
#[derive(Clone)]
pub struct TrackedService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> TrackedService<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }
}

impl<S> fmt::Debug for TrackedService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedService").finish_non_exhaustive()
    }
}

impl<S, B> Service<Request<Incoming>> for TrackedService<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<TrackedBody<B>>;
    type Error = S::Error;
    type Future = TrackedFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if request.version() > Version::HTTP_11 {
            return self.call_http2(request);
        }
        let in_flight = InFlight::http1(&self.shared, &request);
        in_flight.polling(true);
        // In place: what a service's future holds (the request) may be large, and moving it costs. Its
        // first poll, which hyper does at once, ends this one.
        TrackedFuture {
            inner: self.inner.call(request),
            in_flight: Some(in_flight),
        }
    }
}

impl<S> TrackedService<S> {
    fn call_http2<B>(&self, request: Request<Incoming>) -> TrackedFuture<S::Future>
    where
        S: Service<Request<Incoming>, Response = Response<B>>,
    {
        let in_flight = InFlight::http2(&self.shared, &request);
        in_flight.polling(true);
        let future = TrackedFuture {
            inner: self.inner.call(request),
            in_flight: Some(in_flight),
        };
        // Its first poll is that of a task of its own, which may have to wait for a thread: one that
        // waits behind a handler that blocks does not block itself.
        if let Some(in_flight) = &future.in_flight {
            in_flight.polling(false);
        }
        future
    }
}

pin_project! {
    /// The future of a [`TrackedService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct TrackedFuture<F> {
        #[pin]
        inner: F,
        // After the handler's future, so that it is gone when the request no longer counts.
        in_flight: Option<InFlight>,
    }
}

impl<F> fmt::Debug for TrackedFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedFuture").finish_non_exhaustive()
    }
}

#[allow(clippy::inline_always)] // a call would move the response once more
impl<F, B, E> Future for TrackedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<TrackedBody<B>>, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let in_flight = this.in_flight.as_ref().expect("polled after it was ready");
        in_flight.polling(true);
        let mut result = this.inner.poll(cx);
        in_flight.polling(false);
        // Where it lies: what follows moves it once, and that is felt.
        match &mut result {
            Poll::Ready(Ok(response)) => finish(response, in_flight, note_framing),
            // The last word of it, too.
            Poll::Ready(Err(_)) => in_flight.answered(),
            Poll::Pending if in_flight.is_late() => {
                let mut response = service_unavailable();
                finish(&mut response, in_flight, |_, _| {});
                in_flight.said_late();
                let in_flight = this.in_flight.take().expect("looked at above");
                return Poll::Ready(Ok(response.map(|inner| TrackedBody { inner, in_flight })));
            }
            Poll::Pending => return Poll::Pending,
        }
        let in_flight = this.in_flight.take().expect("looked at above");
        result.map_ok(|response| {
            response.map(|body| TrackedBody {
                inner: Some(body),
                in_flight,
            })
        })
    }
}

/// What a request is answered at the deadline.
#[cold]
fn service_unavailable<B>() -> Response<Option<B>> {
    let mut response = Response::new(None);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

/// The decision that a connection ends is taken here, below all middleware and when the head goes
/// out, so that a drain that begins while the handler runs still counts.
#[inline]
fn finish<B>(
    response: &mut Response<B>,
    in_flight: &InFlight,
    note_framing: impl FnOnce(&Response<B>, &Shared),
) {
    in_flight.answered();
    if in_flight.is_http2() {
        return;
    }
    let shared = in_flight.shared();
    let status = response.status();
    let special = shared.asks_specially() || response.version() != Version::HTTP_11;
    if special {
        note_framing(response, shared);
    }
    if status == StatusCode::SWITCHING_PROTOCOLS
        || special && status.is_success() && shared.asks_connect()
    {
        shared.upgrades();
    } else if shared.phase() >= Phase::LameDuck {
        say_close(response.headers_mut());
        if shared.asks_http10() {
            // To a response that claims 1.1 hyper adds the `keep-alive` that a 1.0 client asked for.
            *response.version_mut() = Version::HTTP_10;
        }
        shared.told.store(true, Relaxed);
    }
}

/// Whether hyper will end it by the close alone: it has no length, and can't be chunked in HTTP/1.0.
#[cold]
fn note_framing<B: Body>(response: &Response<B>, shared: &Shared) {
    let status = response.status();
    let chunked = !shared.asks_http10() && response.version() >= Version::HTTP_11;
    let none = shared.asks_head()
        || shared.asks_connect() && status.is_success()
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || response.body().is_end_stream();
    let known = response.body().size_hint().exact().is_some()
        || response.headers().contains_key(CONTENT_LENGTH);
    if !none && !known && !chunked {
        shared.begins_by_close();
    }
}

/// Adds `close` to what the handler set, and drops `keep-alive`: an `upgrade` for a 426 stays.
#[cold]
fn say_close(headers: &mut HeaderMap) {
    const CLOSE: HeaderValue = HeaderValue::from_static("close");
    headers.remove(HeaderName::from_static("keep-alive"));
    match headers.entry(CONNECTION) {
        Entry::Vacant(entry) => {
            entry.insert(CLOSE);
        }
        Entry::Occupied(mut entry) => {
            let options: Vec<String> = entry
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(','))
                .map(str::trim)
                .filter(|option| !option.is_empty())
                .filter(|option| !option.eq_ignore_ascii_case("keep-alive"))
                .filter(|option| !option.eq_ignore_ascii_case("close"))
                .map(str::to_owned)
                .chain(["close".to_owned()])
                .collect();
            // Made of parts of valid values.
            entry.insert(HeaderValue::try_from(options.join(", ")).unwrap_or(CLOSE));
        }
    }
}

pin_project! {
    /// The response body of a [`TrackedService`]: the request is in flight until it is dropped.
    pub struct TrackedBody<B> {
        #[pin]
        inner: Option<B>,
        // After the body, see `TrackedFuture`.
        in_flight: InFlight,
    }
}

impl<B> fmt::Debug for TrackedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedBody").finish_non_exhaustive()
    }
}

type Next<B> = Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>;

/// Whether hyper asks for no more after it.
#[cold]
fn is_last<B: Body>(next: &Poll<Next<B>>, body: &B) -> bool {
    match next {
        Poll::Ready(None) => true,
        Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || body.is_end_stream(),
        Poll::Ready(Some(Err(_))) | Poll::Pending => false,
    }
}

impl<B: Body> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let Some(mut inner) = this.inner.as_pin_mut() else {
            return Poll::Ready(None);
        };
        this.in_flight.polling(true);
        let frame = inner.as_mut().poll_frame(cx);
        this.in_flight.polling(false);
        if this.in_flight.shared().ends_by_close() && is_last(&frame, &*inner) {
            this.in_flight.shared().body_is_over();
        }
        frame
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closing(values: &[&'static str]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONNECTION, HeaderValue::from_static(value));
        }
        headers.insert("keep-alive", HeaderValue::from_static("timeout=5"));
        say_close(&mut headers);
        assert!(!headers.contains_key("keep-alive"));
        headers
            .get_all(CONNECTION)
            .iter()
            .map(|v| v.to_str().expect("ascii").to_owned())
            .collect()
    }

    #[test]
    fn close_is_added_to_what_the_handler_said() {
        assert_eq!(closing(&[]), ["close"]);
        assert_eq!(closing(&["keep-alive"]), ["close"]);
        assert_eq!(
            closing(&["Keep-Alive, Upgrade", "foo"]),
            ["Upgrade, foo, close"]
        );
        assert_eq!(closing(&["Close"]), ["close"]);
    }
}
