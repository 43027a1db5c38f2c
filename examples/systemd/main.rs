//! A server that systemd starts by its socket, and restarts without refusing or losing anybody.
//!
//! ```text
//! $ cargo build --example systemd --features systemd
//! $ systemd-socket-activate -l 127.0.0.1:3000 target/debug/examples/systemd
//! Listening on 127.0.0.1:3000 as 3.
//! ```
//!
//! `curl -i localhost:3000/` starts it. SIGTERM ends it: `/slow` (three seconds) is answered with `connection: close`
//! before it leaves. As a service: `hello.service` and `hello.socket` beside this file go to `/etc/systemd/system`, the
//! program to `/usr/local/bin/hello`; then
//!
//! ```text
//! # systemctl daemon-reload && systemctl enable --now hello.socket
//! # systemctl restart hello.service; systemctl status hello.service
//! ```
//!
//! The socket stays with systemd, so who connects meanwhile waits for the new process. Started by hand, it binds the
//! address it is given.

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

#[cfg(target_os = "linux")]
mod server;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    server::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("systemd is for Linux only");
}
