//! What has come over an IO that nobody can look into is known once its reactor has told.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{JoinHandle, yield_now};

use crate::clock::Moment;

/// One turn of the reactor, from when it is first asked for.
///
/// A runtime that was blocked polls who is due before it looks at what has come, however long that lies there. It wakes who
/// yields behind that look.
#[derive(Default)]
pub(super) struct Turn(Option<Box<Begun>>);

struct Begun {
    at: Moment,
    yields: Option<JoinHandle<()>>,
}

/// For a reactor on another thread.
const LEAST: Duration = Duration::from_millis(1);

impl Turn {
    /// When to ask again, as it is not over; at [`Moment::NEVER`] the task will be woken.
    pub(super) fn again(&mut self, now: Moment, cx: &mut Context<'_>) -> Option<Moment> {
        let begun = self.0.get_or_insert_with(|| {
            let runtime = Handle::try_current().ok();
            Box::new(Begun {
                at: now,
                yields: runtime.map(|it| it.spawn(yield_now())),
            })
        });
        if let Some(yields) = &mut begun.yields {
            // A runtime that is shut down drops it.
            if Pin::new(yields).poll(cx).is_pending() {
                return Some(Moment::NEVER);
            }
            begun.yields = None;
        }
        Some(begun.at.after(LEAST)).filter(|again| now < *again)
    }
}
