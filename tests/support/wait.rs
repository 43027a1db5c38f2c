//! Waiting, always with a bound: what did not happen within it panics with the name of what was waited for.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything here waits before it panics.
pub const BOUND: Duration = Duration::from_secs(10);

/// After so long the driver closes a listener that nobody polls in a healthy runtime.
pub const ABANDONED: Duration = Duration::from_millis(500);

/// Awaits `f` and panics with `what` if that takes longer than `d`. Lives on tokio's timer: of no
/// use where a test stalls the runtime.
pub async fn within<T>(d: Duration, what: &str, f: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(d, f).await;
    ended.unwrap_or_else(|_| panic!("not within {d:?}: {what}"))
}
