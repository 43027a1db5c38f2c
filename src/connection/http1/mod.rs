//! What HTTP/1 alone needs.

pub(super) mod reading;
pub(super) mod service;
pub(super) mod staged;
