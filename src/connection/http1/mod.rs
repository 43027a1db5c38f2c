//! What HTTP/1 alone needs.

pub(super) mod reading;
#[cfg(feature = "serve")]
pub(super) mod service;
#[cfg(feature = "serve")]
pub(super) mod staged;
