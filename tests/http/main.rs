//! HTTP/1, HTTP/2 and TLS as bytes on sockets: what happens to each kind of connection, and to what is in flight on it.
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

mod before_tls;
mod cut;
mod ended;
mod http1;
mod http2;
mod in_hand;
mod lame_duck;
mod left;
mod make_service;
mod matrix;
mod names;
mod policies;
mod reading;
mod ready;
mod requests;
mod staged;
mod streams_h2;
mod tls;
mod versions;
