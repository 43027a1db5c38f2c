//! Listening sockets: their queues, who else holds them, and how a port is handed over.
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

mod listener;
mod other_holders;
mod queue;
mod queue_owner;
mod scarce;
