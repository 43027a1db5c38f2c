//! Waiting for one connection to be told that it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::shared::Shared;
use crate::level::{Level, Reached};
use crate::termination;

/// Ready when it is told, or gone.
pub(crate) struct Told {
    alone: Reached<Alone>,
    all: termination::Told,
}

struct Alone(Arc<Shared>);

impl Told {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            all: termination::Told::new(&shared.registry, Some(shared.id())),
            alone: Reached::new(Alone(shared)),
        }
    }
}

impl Future for Told {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.alone).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        Pin::new(&mut self.all).poll(cx)
    }
}

impl Level for Alone {
    fn is_reached(&self) -> bool {
        self.0.is_told_or_gone()
    }

    fn wait(&self, n: Option<u64>, waker: Waker) -> u64 {
        self.0.wait_to_be_told(n, waker)
    }

    fn stop_waiting(&self, n: u64) {
        self.0.stop_waiting(n);
    }
}
