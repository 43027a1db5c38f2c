//! hyper-util's connection, of the versions of HTTP that its builder allows: what that serves with
//! upgrades is of both, whatever it was told.

use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::watched::GracefulConnection;

pin_project! {
    /// One of two.
    #[project = Projected]
    pub(super) enum Versions<A, B> {
        /// HTTP/1, and perhaps HTTP/2.
        WithUpgrades { #[pin] connection: A },
        /// HTTP/2, whose upgrades are nothing special.
        Http2 { #[pin] connection: B },
    }
}

impl<A, B> Future for Versions<A, B>
where
    A: Future,
    B: Future<Output = A::Output>,
{
    type Output = A::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projected::WithUpgrades { connection } => connection.poll(cx),
            Projected::Http2 { connection } => connection.poll(cx),
        }
    }
}

impl<A, B> GracefulConnection for Versions<A, B>
where
    A: GracefulConnection,
    B: GracefulConnection<Error = A::Error>,
{
    type Error = A::Error;

    fn graceful_shutdown(self: Pin<&mut Self>) {
        match self.project() {
            Projected::WithUpgrades { connection } => connection.graceful_shutdown(),
            Projected::Http2 { connection } => connection.graceful_shutdown(),
        }
    }
}
