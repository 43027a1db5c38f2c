//! A layer under which streams without end end.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use super::ending::EndingBody;
use crate::connection::{self, Connection};
use crate::driver::foreign;
use crate::termination;
use crate::terminator::Terminator;

/// A layer that ends streaming responses when their connections are told, from
/// [`Terminator::end_streams`].
#[derive(Clone)]
pub struct EndStreamsLayer {
    terminator: Terminator,
}

/// The service of an [`EndStreamsLayer`].
#[derive(Clone)]
pub struct EndStreams<S> {
    inner: S,
    terminator: Terminator,
}

impl EndStreamsLayer {
    pub(crate) fn new(terminator: Terminator) -> Self {
        Self { terminator }
    }
}

impl fmt::Debug for EndStreamsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndStreamsLayer").finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for EndStreams<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndStreams").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for EndStreamsLayer {
    type Service = EndStreams<S>;

    fn layer(&self, inner: S) -> EndStreams<S> {
        EndStreams {
            inner,
            terminator: self.terminator.clone(),
        }
    }
}

impl<S, A, B> Service<Request<A>> for EndStreams<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<EndingBody<B, Draining>>;
    type Error = S::Error;
    type Future = EndStreamsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let told = match request.extensions().get::<Connection>() {
            Some(connection) => Told::One(connection.told()),
            None => Told::All(self.terminator.told()),
        };
        EndStreamsFuture {
            inner: self.inner.call(request),
            draining: Some(Draining {
                told,
                settle: self.terminator.registry().config.settle,
                rest: None,
            }),
        }
    }
}

pin_project! {
    /// The future of an [`EndStreams`].
    #[must_use = "futures do nothing unless polled"]
    pub struct EndStreamsFuture<F> {
        #[pin]
        inner: F,
        draining: Option<Draining>,
    }
}

impl<F> fmt::Debug for EndStreamsFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndStreamsFuture").finish_non_exhaustive()
    }
}

impl<F, B, E> Future for EndStreamsFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<EndingBody<B, Draining>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (head, body) = ready!(this.inner.poll(cx))?.into_parts();
        let draining = this.draining.take().expect("polled after it was ready");
        let body = if head.headers.contains_key(CONTENT_LENGTH) {
            EndingBody::whole(body)
        } else if head
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|it| is_grpc(it.as_bytes()))
        {
            EndingBody::grpc(body, draining)
        } else {
            EndingBody::new(body, draining)
        };
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}

/// `application/grpc`, or with `+proto`, `+json` and the like behind it. Not gRPC-Web, whose bodies are
/// others and have their trailers inside.
fn is_grpc(content_type: &[u8]) -> bool {
    let Some((essence, rest)) = content_type.split_at_checked(GRPC.len()) else {
        return false;
    };
    essence.eq_ignore_ascii_case(GRPC) && matches!(rest, [] | [b'+' | b';' | b' ', ..])
}

const GRPC: &[u8] = b"application/grpc";

/// Until it is told, which [`Connection::draining`] and [`Terminator::draining`] wait for, and `settle` behind that: a
/// handler that is told at the same moment may say goodbye from a task of its own, by a channel, and that one may be woken
/// after whoever polls the body.
#[allow(unnameable_types, missing_debug_implementations)] // nobody needs it
pub struct Draining {
    told: Told,
    settle: Duration,
    /// From when it is told, if the runtime has timers.
    rest: Option<Pin<Box<Sleep>>>,
}

enum Told {
    One(connection::Told),
    All(termination::Told),
}

impl Future for Draining {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.rest.is_none() {
            ready!(match &mut this.told {
                Told::One(told) => Pin::new(told).poll(cx),
                Told::All(told) => Pin::new(told).poll(cx),
            });
            if !this.settle.is_zero() {
                this.rest = foreign::call(|| Box::pin(tokio::time::sleep(this.settle)));
            }
        }
        match &mut this.rest {
            Some(rest) => rest.as_mut().poll(cx),
            None => Poll::Ready(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// In tokio's paused time, from when it is told.
    #[tokio::test(start_paused = true)]
    async fn a_body_has_settle_to_say_goodbye() {
        let settle = Duration::from_millis(300);
        let terminator = Terminator::builder().settle(settle).build();
        let draining = Draining {
            told: Told::All(terminator.told()),
            settle: terminator.registry().config.settle,
            rest: None,
        };
        drop(terminator.terminate());
        terminator.draining().await;
        let begin = Instant::now();
        draining.await;
        assert_eq!(begin.elapsed(), settle);
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for yes in [
            "application/grpc",
            "application/grpc+proto",
            "Application/GRPC;a=b",
        ] {
            assert!(is_grpc(yes.as_bytes()), "{yes}");
        }
        for no in [
            "application/grpc-web",
            "application/grpc-web-text+proto",
            "application/grp",
            "text/event-stream",
            "",
        ] {
            assert!(!is_grpc(no.as_bytes()), "{no}");
        }
    }
}
