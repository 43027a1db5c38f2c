//! A supervisor and its workers, in one executable: what Node's `cluster` is, without losing a request.
//!
//! ```text
//! $ cargo build --example cluster
//! $ target/debug/examples/cluster 127.0.0.1:3000 4        # address, workers
//! supervisor 4711: listening on 127.0.0.1:3000
//! worker 1 (4712): ready
//! ```
//!
//! The supervisor has the listening socket, and no request ever passes through it. The workers inherit the socket,
//! each with a `Terminator`.
//!
//! - A worker that dies is replaced, with a pause that grows (`backoff.rs`).
//! - One that panics anywhere accepts no more, finishes what it has, and leaves; so does one that gets
//!   SIGTERM, a fifth of a second later. It is replaced meanwhile. So is one that was told to do one long job and leave: the pool
//!   grows by it and shrinks again.
//! - One whose supervisor is gone finishes what it has and ends.
//! - **SIGHUP** replaces all, one by one: one that is ready for one that leaves. The executable is started
//!   anew each time, so put a new one in its place before. If it is not ready within five seconds, all others
//!   stay.
//! - **SIGTERM**, Ctrl-C: all end within one deadline, ten seconds. The second forces. Under systemd it is best for the
//!   supervisor alone (`KillMode=mixed`). To the whole group at once, which is the default, it loses nothing either: a
//!   worker goes on for a moment, so that somebody is there for what is queued.
//! - A WebSocket does not end with its worker: it goes on in another one (`session.rs`), and so does an
//!   upgraded connection that speaks no protocol of its own (`echo.rs`).
//!
//! With a third argument, `round-robin` or `sticky`, the supervisor accepts and hands the connections out
//! (`hand_out.rs`): evenly, or those of one client's address to one worker, so that what it keeps in memory for
//! a client is found again by its next connection.
//!
//! Where it is: `supervisor.rs` hears everything, `pool.rs` decides, `process.rs` has a worker's process,
//! `wire.rs` is between it and `worker.rs`, and `app.rs` is what is served.

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it
#![allow(unreachable_pub)] // between the modules here

#[cfg(target_os = "linux")]
mod app;
#[cfg(target_os = "linux")]
mod backoff;
#[cfg(target_os = "linux")]
mod echo;
#[cfg(target_os = "linux")]
mod hand_out;
#[cfg(target_os = "linux")]
mod pool;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod say;
#[cfg(target_os = "linux")]
mod session;
#[cfg(target_os = "linux")]
mod supervisor;
#[cfg(target_os = "linux")]
mod wire;
#[cfg(target_os = "linux")]
mod worker;

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let [wire::WORKER, id] = args[..] {
        return worker::main(id.parse()?);
    }
    let address = args.first().unwrap_or(&"127.0.0.1:3000").parse()?;
    let workers = args.get(1).unwrap_or(&"2").parse()?;
    let hand_out = args.get(2).map(|how| how.parse()).transpose()?;
    supervisor::run(address, workers, hand_out)
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!(
        "packets on a pair of Unix sockets (SOCK_SEQPACKET) are not everywhere: this is for Linux"
    );
}
