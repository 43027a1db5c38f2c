//! A tower service as one of hyper's, without moving the request twice.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use http::{Request, Version};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::task::coop::unconstrained;
use tower_service::Service;

use crate::connection::Connection;

/// A tower service as one of hyper's, for [`Connection::serve`](crate::Connection::serve).
///
/// It does what hyper-util's `TowerToHyperService` does, but a service that is ready, as nearly every
/// one is, is called at once: its future then holds neither the request nor the service.
///
/// # Examples
///
/// ```
/// use http_terminator::TowerToHyper;
///
/// let service = TowerToHyper::new(axum::Router::<()>::new());
/// ```
#[derive(Clone, Debug)]
pub struct TowerToHyper<S> {
    service: S,
    /// To be put into each request's extensions.
    connection: Option<Connection>,
}

impl<S> TowerToHyper<S> {
    /// Each request is served by a clone of it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use axum::Router;
    /// # use http_terminator::TowerToHyper;
    /// let service = TowerToHyper::new(Router::<()>::new());
    /// # drop(service);
    /// ```
    pub fn new(service: S) -> Self {
        Self {
            service,
            connection: None,
        }
    }

    pub(crate) fn of(connection: Option<Connection>, service: S) -> Self {
        Self {
            service,
            connection,
        }
    }
}

impl<S> hyper::service::Service<Request<Incoming>> for TowerToHyper<S>
where
    S: Service<Request<Incoming>> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Oneshot<S, S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        // Were the extension put in here, every request would be moved once more.
        if self.connection.is_none() {
            let mut service = self.service.clone();
            if is_ready(&mut service, request.version() == Version::HTTP_2) {
                return Oneshot::Called {
                    future: call(service, request),
                };
            }
        }
        self.call_later(request)
    }
}

impl<S> TowerToHyper<S>
where
    S: Service<Request<Incoming>> + Clone,
{
    /// Another one is asked, with the task's own waker.
    #[cold]
    #[inline(never)]
    fn call_later(&self, request: Request<Incoming>) -> Oneshot<S, S::Future> {
        Oneshot::Waiting {
            waiting: Box::new(Waiting {
                service: self.service.clone(),
                request: Some(request),
                connection: self.connection.clone(),
            }),
        }
    }
}

/// On HTTP/2 this is asked in the task of the connection, which has one budget for all of its requests: who is not ready for want of
/// that would be refused by a layer that sheds load.
#[inline]
fn is_ready<S: Service<Request<Incoming>>>(service: &mut S, is_http2: bool) -> bool {
    let cx = &mut Context::from_waker(Waker::noop());
    let ready = if is_http2 {
        pin!(unconstrained(poll_fn(|cx| service.poll_ready(cx)))).poll(cx)
    } else {
        service.poll_ready(cx)
    };
    matches!(ready, Poll::Ready(Ok(())))
}

/// By itself, as the future would otherwise be moved while the service is dropped.
#[inline(never)]
fn call<S: Service<Request<Incoming>>>(mut service: S, request: Request<Incoming>) -> S::Future {
    service.call(request)
}

pin_project! {
    /// One call of a service.
    #[project = Projected]
    #[allow(unnameable_types, missing_debug_implementations)] // nobody needs it
    pub enum Oneshot<S, F> {
        Called { #[pin] future: F },
        // Boxed, as it is rare and the request is large.
        Waiting { waiting: Box<Waiting<S>> },
    }
}

/// A call that is yet to be made.
#[allow(unnameable_types, missing_debug_implementations)] // as above
pub struct Waiting<S> {
    service: S,
    request: Option<Request<Incoming>>,
    /// For the request's extensions.
    connection: Option<Connection>,
}

impl<S: Service<Request<Incoming>>> Waiting<S> {
    #[cold]
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<S::Future, S::Error>> {
        ready!(self.service.poll_ready(cx))?;
        let mut request = self.request.take().expect("taken here only, once");
        if let Some(connection) = self.connection.take() {
            request.extensions_mut().insert(connection);
        }
        Poll::Ready(Ok(self.service.call(request)))
    }
}

impl<S> Future for Oneshot<S, S::Future>
where
    S: Service<Request<Incoming>>,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let future = match self.as_mut().project() {
                Projected::Called { future } => return future.poll(cx),
                Projected::Waiting { waiting } => ready!(waiting.poll(cx))?,
            };
            self.set(Self::Called { future });
        }
    }
}
