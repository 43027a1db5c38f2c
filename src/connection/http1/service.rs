//! The service of a connection that is known to speak HTTP/1: its requests cost a few plain loads and
//! stores.
//!
//! What decides that are rules of the optimiser. Until the inner service has been called nothing is
//! written and the request's address goes nowhere, or its 264 bytes are copied once more; the response is
//! repaired where it lies, and moved once; and what is rare is out of line.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use pin_project_lite::pin_project;

use super::super::service::{asks, finish, is_last, note_framing, service_unavailable};
use super::super::shared::Shared;
use super::super::state::{State, Step};
use super::reading::BodyLength;

/// Around a service whose HTTP/1 requests are seen.
#[allow(unnameable_types, missing_debug_implementations)] // within what is sealed
pub struct Http1Service<S> {
    pub(in super::super) inner: S,
    pub(in super::super) shared: Arc<Shared>,
    /// There is a limit on how many requests it is called with.
    pub(in super::super) limited: bool,
}

impl<S, B> Service<Request<Incoming>> for Http1Service<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<Http1Body<B>>;
    type Error = S::Error;
    type Future = Http1Future<S::Future>;

    #[inline]
    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (asks, length) = (asks(&request), length(&request));
        let inner = self.inner.call(request);
        self.shared.called(asks, length);
        if self.limited {
            self.shared.count_request(false);
        }
        Http1Future {
            inner,
            shared: Some(Arc::clone(&self.shared)),
        }
    }
}

/// How long the body of a request is.
#[inline(always)]
#[allow(clippy::inline_always)] // see the module
pub(in super::super) fn length(request: &Request<Incoming>) -> BodyLength {
    // Not `is_end_stream`, which may call into h2.
    let length = request.body().size_hint().upper();
    length.map_or(BodyLength::Chunked, BodyLength::Known)
}

pin_project! {
    /// Without a `Drop` of its own: it is dropped unfinished only together with its connection.
    #[allow(unnameable_types, missing_debug_implementations)] // within what is sealed
    pub struct Http1Future<F> {
        #[pin]
        inner: F,
        shared: Option<Arc<Shared>>,
    }
}

impl<F, B, E> Future for Http1Future<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<Http1Body<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut polled = this.inner.poll(cx);
        let shared = this.shared.as_ref().expect("polled after it was ready");
        match &mut polled {
            Poll::Ready(Ok(response)) => answered(shared, response),
            // The last word of it, too.
            Poll::Ready(Err(_)) => drop(shared.arrow(State::answered)),
            Poll::Pending if shared.is_late() => {
                let response = service_unavailable(shared, shared.state());
                shared.arrow(State::answered_late);
                let ending = this.shared.take().map(Ending);
                return Poll::Ready(Ok(response.map(|inner| Http1Body { inner, ending })));
            }
            Poll::Pending => return Poll::Pending,
        }
        let ending = this.shared.take().map(Ending);
        polled.map_ok(|response| {
            response.map(|body| Http1Body {
                inner: Some(body),
                ending,
            })
        })
    }
}

#[inline]
fn answered<B: Body>(shared: &Shared, response: &mut Response<B>) {
    let plain = response.status() != StatusCode::SWITCHING_PROTOCOLS
        && response.version() == Version::HTTP_11
        && shared.is_left_alone();
    if !(plain && shared.step(Step::Called, Step::Answered)) {
        answered_otherwise(shared, response);
    }
}

#[cold]
fn answered_otherwise<B: Body>(shared: &Shared, response: &mut Response<B>) {
    shared.arrow(State::answered);
    note_framing(response, shared, shared.state());
    finish(response, shared, shared.state());
}

/// Dropped when the response is over.
pub(in super::super) struct Ending(pub(in super::super) Arc<Shared>);

impl Drop for Ending {
    #[inline]
    fn drop(&mut self) {
        self.0.said();
    }
}

pin_project! {
    #[allow(unnameable_types, missing_debug_implementations)] // within what is sealed
    pub struct Http1Body<B> {
        #[pin]
        inner: Option<B>,
        // After the body, so that it is gone when the response is over.
        ending: Option<Ending>,
    }
}

impl<B: Body> Body for Http1Body<B> {
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
        let frame = inner.as_mut().poll_frame(cx);
        let by_close = this.ending.as_ref().filter(|it| it.0.has(State::BY_CLOSE));
        if let Some(Ending(shared)) = by_close {
            if is_last(&frame, &*inner) {
                shared.set(State::OVER);
            }
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
