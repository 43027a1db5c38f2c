//! Around the service, each of its futures and each response body: what is in flight, and the
//! `connection: close` that ends an HTTP/1 connection.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{
    CONNECTION, CONTENT_LENGTH, Entry, HeaderMap, HeaderName, HeaderValue, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use pin_project_lite::pin_project;

#[cfg(feature = "serve")]
use super::http1::service::{Ending, length};
use super::shared::Shared;
use super::state::State;
use super::streams::Counted;
use crate::phase::Phase;
use crate::registry::Outcome;

/// A hyper service whose requests count for their connection, from
/// [`Connection::service`](crate::Connection::service).
///
/// A request is in flight from its call until its response's body is dropped. Responses on HTTP/1
/// say `connection: close` from [`Phase::LameDuck`] on, or once their connection is told; at the deadline a request without a
/// response is answered `503`.
#[derive(Clone)]
pub struct TrackedService<S> {
    inner: S,
    shared: Arc<Shared>,
    /// There is a limit on how many requests it is called with.
    limited: bool,
    /// It is the one that hyper calls, with what is seen to be read.
    #[cfg(feature = "serve")]
    seen: bool,
}

impl<S> TrackedService<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self {
            inner,
            limited: shared.registry.config.max_requests.is_some(),
            shared,
            #[cfg(feature = "serve")]
            seen: false,
        }
    }

    /// For a connection whose bytes are seen.
    #[cfg(feature = "serve")]
    pub(super) fn seen(inner: S, shared: Arc<Shared>) -> Self {
        Self {
            seen: true,
            ..Self::new(inner, shared)
        }
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
        let http2 = request.version() > Version::HTTP_11;
        #[cfg(feature = "serve")]
        if !http2 && self.seen {
            let (asks, length) = (asks(&request), length(&request));
            // In place: what a service's future holds (the request) may be large, and moving it costs.
            let inner = self.inner.call(request);
            self.shared.called(asks, length);
            if self.limited {
                self.shared.count_request(false);
            }
            return TrackedFuture {
                inner,
                in_flight: Some(InFlight::Seen(Ending(Arc::clone(&self.shared)))),
            };
        }
        let mut counted = Counted::new(&self.shared, http2, &request);
        counted.set_inside(true);
        let inner = self.inner.call(request);
        // Its first poll may be that of a task of its own, which may have to wait for a thread: one that
        // waits behind a handler that blocks does not block itself.
        counted.set_inside(false);
        if self.limited && self.shared.count_request(http2) {
            counted.is_the_last();
        }
        TrackedFuture {
            inner,
            in_flight: Some(InFlight::Counted(counted)),
        }
    }
}

/// A request, from its call until its response is finished or dropped.
enum InFlight {
    /// The connection's own state knows of it.
    #[cfg(feature = "serve")]
    Seen(Ending),
    /// It is counted apart.
    Counted(Counted),
}

impl InFlight {
    fn shared(&self) -> &Shared {
        match self {
            #[cfg(feature = "serve")]
            Self::Seen(Ending(shared)) => shared,
            Self::Counted(counted) => counted.shared(),
        }
    }

    fn is_http2(&self) -> bool {
        match self {
            #[cfg(feature = "serve")]
            Self::Seen(_) => false,
            Self::Counted(counted) => counted.is_http2(),
        }
    }

    #[inline]
    fn set_inside(&self, yes: bool) {
        match self {
            #[cfg(feature = "serve")]
            Self::Seen(_) => {}
            Self::Counted(counted) => counted.set_inside(yes),
        }
    }

    fn answered(&mut self) {
        match self {
            #[cfg(feature = "serve")]
            Self::Seen(Ending(shared)) => drop(shared.arrow(State::answered)),
            Self::Counted(counted) => counted.answered(),
        }
    }

    /// What of the request matters when its response is there.
    fn asks(&self) -> State {
        match self {
            #[cfg(feature = "serve")]
            Self::Seen(Ending(shared)) => shared.state(),
            Self::Counted(counted) => counted.asks(),
        }
    }

    /// The handler has answered with this.
    fn responds<B: Body>(&mut self, response: &mut Response<B>) {
        self.answered();
        if self.is_http2() {
            if let (Self::Counted(counted), true) = (self, response.status().is_success()) {
                counted.tunnels();
            }
            return;
        }
        note_framing(response, self.shared(), self.asks());
        let upgrades = finish(response, self.shared(), self.asks());
        if let (Self::Counted(counted), true) = (self, upgrades) {
            counted.upgrades();
        }
    }

    /// A `503` is to go out in place of what the handler has not answered.
    fn is_late(&self) -> bool {
        !self.is_http2() && self.shared().is_late()
    }

    fn responds_late<B>(&mut self) -> Response<Option<B>> {
        let response = service_unavailable(self.shared(), self.asks());
        match self {
            #[cfg(feature = "serve")]
            Self::Seen(Ending(shared)) => drop(shared.arrow(State::answered_late)),
            Self::Counted(counted) => counted.answered_late(),
        }
        response
    }
}

/// What of a request matters when its response is there.
#[inline(always)]
#[allow(clippy::inline_always)] // a call would take the request's address
pub(super) fn asks(request: &Request<Incoming>) -> u32 {
    let method = match *request.method() {
        Method::CONNECT => State::CONNECT,
        Method::HEAD => State::HEAD,
        _ => 0,
    };
    let version = match request.version() {
        Version::HTTP_11 => 0,
        _ => State::HTTP10,
    };
    method | version
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

impl<F, B, E> Future for TrackedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<TrackedBody<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let in_flight = this.in_flight.as_mut().expect("polled after it was ready");
        in_flight.set_inside(true);
        let mut polled = this.inner.poll(cx);
        in_flight.set_inside(false);
        // Where it lies: what follows moves it once, and that is felt.
        match &mut polled {
            Poll::Ready(Ok(response)) => in_flight.responds(response),
            // The last word of it, too.
            Poll::Ready(Err(_)) => in_flight.answered(),
            Poll::Pending if in_flight.is_late() => {
                let response = in_flight.responds_late();
                let in_flight = this.in_flight.take().expect("looked at above");
                return Poll::Ready(Ok(response.map(|inner| TrackedBody { inner, in_flight })));
            }
            Poll::Pending => return Poll::Pending,
        }
        let in_flight = this.in_flight.take().expect("looked at above");
        polled.map_ok(|response| {
            response.map(|body| TrackedBody {
                inner: Some(body),
                in_flight,
            })
        })
    }
}

/// What an HTTP/1 request is answered at the deadline.
#[cold]
pub(super) fn service_unavailable<B>(shared: &Shared, asks: State) -> Response<Option<B>> {
    shared.end(Outcome::Forced);
    let mut response = Response::new(None);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    finish(&mut response, shared, asks);
    response
}

/// The decision that an HTTP/1 connection ends is taken here, below all middleware and when the head
/// goes out, so that a drain that begins while the handler runs still counts. True if what follows is
/// no HTTP.
pub(super) fn finish<B>(response: &mut Response<B>, shared: &Shared, asks: State) -> bool {
    let status = response.status();
    let upgrades = status == StatusCode::SWITCHING_PROTOCOLS
        || status.is_success() && asks.has(State::CONNECT);
    if upgrades {
        shared.leaves_http();
        if is_websocket(response.headers()) && status == StatusCode::SWITCHING_PROTOCOLS {
            shared.set(State::WEBSOCKET);
        }
        return true;
    }
    if shared.stage() >= Phase::LameDuck || shared.has(State::LAST) {
        say_close(response.headers_mut());
        if asks.has(State::HTTP10) {
            // To a response that claims 1.1 hyper adds the `keep-alive` that a 1.0 client asked for.
            *response.version_mut() = Version::HTTP_10;
        }
        shared.set(State::TOLD);
    }
    false
}

/// Case does not matter (RFC 6455 section 4.1).
fn is_websocket(headers: &HeaderMap) -> bool {
    let to = headers.get(UPGRADE);
    to.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Whether hyper will end it by the close alone: it has no length, and can't be chunked in HTTP/1.0.
pub(super) fn note_framing<B: Body>(response: &Response<B>, shared: &Shared, asks: State) {
    let status = response.status();
    if !asks.has(State::HTTP10) && response.version() >= Version::HTTP_11 {
        // Chunked, at the worst.
        return;
    }
    let none = asks.has(State::HEAD)
        || asks.has(State::CONNECT) && status.is_success()
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || response.body().is_end_stream();
    let known = response.body().size_hint().exact().is_some()
        || response.headers().contains_key(CONTENT_LENGTH);
    if !none && !known {
        shared.set(State::BY_CLOSE);
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
pub(super) fn is_last<B: Body>(next: &Poll<Next<B>>, body: &B) -> bool {
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
        this.in_flight.set_inside(true);
        let frame = inner.as_mut().poll_frame(cx);
        this.in_flight.set_inside(false);
        let shared = this.in_flight.shared();
        if shared.has(State::BY_CLOSE) && is_last(&frame, &*inner) {
            shared.set(State::OVER);
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
