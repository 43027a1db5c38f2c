//! What is asked for by calls: the terminator's own, those on one connection, ages and numbers; and what they report.
#![cfg(unix)]
#![allow(
    unreachable_pub,
    reason = "the support library is a module of every test run"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests look at the clock and spawn"
)]

#[path = "../support/mod.rs"]
mod support;

mod alone;
mod bounds;
mod call;
mod from_outside;
mod rotation;
mod serde;
