//! Listeners, and the accept loop for the common case.

mod listener;
#[cfg(feature = "serve")]
mod server;
mod tracked;

pub use self::listener::Listener;
#[cfg(feature = "serve")]
pub use self::server::{PerConnection, Serve};
pub use self::tracked::TrackedListener;
