//! What the census counts with: `tests/census.rs` compiles it over shuttle's in place of these.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

pub(crate) use parking_lot::Mutex;
