//! The examples as programs: in a cluster, upgraded in place, under systemd, as Kubernetes and those who watch see them.
#![cfg(unix)]
#![allow(
    unreachable_pub,
    reason = "the support library is a module of every test run"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests look at the clock and spawn"
)]

#[cfg(target_os = "linux")]
#[path = "../../examples/cluster/backoff.rs"]
mod backoff;
#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "not all of it is asked here")]
#[path = "../../examples/cluster/pool.rs"]
mod pool;
#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod kubernetes;
mod observability;
mod systemd;
mod upgrade;
