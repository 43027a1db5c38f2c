//! What has come over an IO that nobody can look into is known once its reactor has told.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::Sleep;

use crate::clock::Moment;

/// One turn of the reactor, from when it is first asked for.
///
/// A runtime that was blocked polls who is due before it looks at what has come, however long that lies there. It wakes who
/// yields behind that look.
#[derive(Default)]
pub(super) struct Turn(Option<Box<Begun>>);

struct Begun {
    at: Moment,
    /// Until it is over.
    yields: Option<JoinHandle<()>>,
    /// When another one is tried, and how long behind the one before.
    again: Moment,
    pause: Duration,
}

/// For a reactor on another thread.
pub(super) const LEAST: Duration = Duration::from_millis(1);

/// On a thread that something blocks meanwhile nobody else can wake who has yielded there.
const TRIES: Duration = Duration::from_millis(50);

impl Turn {
    /// When to ask again, as it is not over. The task may be woken before.
    pub(super) fn again(&mut self, now: Moment, cx: &mut Context<'_>) -> Option<Moment> {
        let begun = self.0.get_or_insert_with(|| Box::new(Begun::begin(now)));
        if begun.has_yet_to_yield(cx) && now >= begun.again {
            begun.yields = yields();
            begun.pause *= 2;
            begun.again = now.after(begun.pause);
        }
        if begun.has_yet_to_yield(cx) {
            return Some(begun.again);
        }
        Some(begun.at.after(LEAST)).filter(|again| now < *again)
    }
}

impl Begun {
    fn begin(now: Moment) -> Self {
        Self {
            at: now,
            yields: yields(),
            again: now.after(TRIES),
            pause: TRIES,
        }
    }

    fn has_yet_to_yield(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(yields) = &mut self.yields else {
            return false;
        };
        // A runtime that is shut down drops it.
        let pending = Pin::new(yields).poll(cx).is_pending();
        if !pending {
            self.yields = None;
        }
        pending
    }
}

/// A timer is a turn, too, where there is one: a runtime looks whether it is over behind what has come. Gives whether it is not.
pub(super) fn prolong(mut timer: Pin<&mut Sleep>, time: Duration, cx: &mut Context<'_>) -> bool {
    timer.as_mut().reset(tokio::time::Instant::now() + time);
    timer.poll(cx).is_pending()
}

/// Ends behind that, and behind whoever is to be polled by then.
pub(crate) fn yields() -> Option<JoinHandle<()>> {
    let runtime = Handle::try_current().ok()?;
    Some(runtime.spawn(yield_now()))
}
