//! Listeners, and the accept loop for the common case.

#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "serve")]
mod end_streams;
#[cfg(feature = "serve")]
mod ending;
#[cfg(target_os = "linux")]
mod handshakes;
mod inherited;
mod listener;
#[cfg(feature = "serve")]
mod messages;
mod queue;
#[cfg(feature = "serve")]
mod server;
#[cfg(feature = "tonic")]
mod tonic;
#[cfg(feature = "serve")]
mod tower;
mod tracked;
#[cfg(unix)]
mod unlink;

#[cfg(feature = "serve")]
pub use self::end_streams::{EndStreams, EndStreamsFuture, EndStreamsLayer};
#[cfg(feature = "serve")]
pub use self::ending::EndingBody;
pub use self::inherited::Inherited;
pub use self::listener::Listener;
#[cfg(feature = "serve")]
pub use self::server::{PerConnection, Serve};
#[cfg(feature = "serve")]
pub use self::tower::TowerToHyper;
pub use self::tracked::TrackedListener;
#[cfg(unix)]
pub use self::unlink::UnlinkOnClose;
