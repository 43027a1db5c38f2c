//! What applications and their frameworks do on connections: axum, tonic, WebSockets, streams without an end, upgrades.
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

mod axum_serve;
mod axum_tap;
mod close_websockets;
mod end_streams;
mod grpc;
mod streams;
mod upgrades;
mod websocket;
