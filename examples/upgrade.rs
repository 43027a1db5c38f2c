//! A server that is replaced by a new executable in place, without a failed request.
//!
//! ```text
//! $ cargo build --example upgrade
//! $ target/debug/examples/upgrade       # or: target/debug/examples/upgrade 127.0.0.1:8080
//! 4711: listening on 127.0.0.1:3000
//! ```
//!
//! Put another executable in its place (by a rename: one that runs can't be written to), and send
//! SIGHUP to the process: `kill -HUP 4711`. The new one inherits the listening socket. Both accept
//! until it has been ready for up to half a second, and then the old one drains:
//!
//! ```text
//! 4712: listening on 127.0.0.1:3000
//! 4711: terminated cleanly in 6.7ms: 3 connections (3 finished)
//! ```
//!
//! If the new one crashes before it is ready, or is not ready within five seconds, it is killed and
//! the old one serves on, and says why. Several SIGHUPs at once are one. SIGTERM or Ctrl-C ends the
//! server for good, also while it is being replaced: the new one is told.
//!
//! `ecdysis` starts the executable and keeps the socket. What to know of its version 1.1:
//!
//! - Once it could not start one at all, because the file is missing, say, it never tries again. Hence `--check`.
//! - It knows a socket again by its address, so port 0 would be another port for each.
//! - The number of the socket's descriptor grows by one or two with each upgrade. When it reaches the limit
//!   (`ulimit -n`), the server can't be upgraded any more, but serves on.

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    unix::main().await
}

#[cfg(not(unix))]
fn main() {
    println!("sockets are inherited on Unix only");
}

#[cfg(unix)]
mod unix {
    use std::error::Error;
    use std::fmt::Display;
    use std::io::{self, Write};
    use std::net::{SocketAddr, TcpListener as StdListener};
    use std::os::unix::net::UnixDatagram as StdDatagram;
    use std::process;
    use std::sync::Arc;
    use std::time::Duration;

    use axum::{Router, routing::get};
    use ecdysis::Ecdysis;
    use http_terminator::{Inherited, Phase, Terminator};
    use tokio::net::{TcpListener, UnixDatagram};
    use tokio::process::Command;
    use tokio::signal::unix::{SignalKind, signal};
    use tokio::task::spawn_blocking;
    use tokio::time::timeout;

    /// Whoever is started with this ends at once, and well if it could serve.
    const CHECK: &str = "--check";

    pub(super) async fn main() -> Result<(), Box<dyn Error>> {
        let me = process::id();
        let argument = std::env::args().nth(1);
        if argument.as_deref() == Some(CHECK) {
            return Ok(()); // where a real one would read its settings
        }
        let address: SocketAddr = argument.as_deref().unwrap_or("127.0.0.1:3000").parse()?;
        let terminator = Terminator::builder()
            .grace_period(Duration::from_secs(30))
            .build();
        let app = Router::new()
            .route("/", get(move || async move { format!("{me}\n") }))
            .route("/slow", get(move || slow(me)));

        // Inherited from the predecessor, if there is one.
        let mut ecdysis = Ecdysis::new();
        let listener = ecdysis.build_listen_tcp(address, |_, address| StdListener::bind(address));
        let listener = listener.map_err(|error| {
            format!(
                "can't listen on {address}: {error}. If it is this server that runs there already, \
                 SIGHUP to it replaces it, SIGTERM ends it"
            )
        })?;
        listener.set_nonblocking(true)?;
        let queue = listener.try_clone()?;
        let listener = Inherited(TcpListener::from_std(listener)?);
        tokio::spawn(terminator.serve(listener, app.clone()));
        // Holds the drain open until it is settled whose the queue is. First: in a drain there are no new ones.
        let unsettled = terminator.guard();
        terminator.terminate_on_signal()?;
        let (predecessor, successor) = ecdysis.unix_datagram_pair("the end".to_owned());
        let successor = successor?;
        if let Some(predecessor) = predecessor {
            end_when_told(&terminator, predecessor)?;
        }

        // Before the predecessor goes: from then on signals are for us.
        let mut hangups = signal(SignalKind::hangup())?;
        if let Err(error) = ecdysis.ready() {
            // All the more reason to go on.
            say(format_args!("the predecessor is gone already: {error}"));
        }
        say(format_args!("listening on {address}"));

        let ecdysis = Arc::new(ecdysis);
        let has_successor = loop {
            tokio::select! {
                // Until the successor is ready, or has failed. What comes meanwhile is remembered, as one.
                _ = hangups.recv() => match upgrade(&ecdysis).await {
                    Ok(()) => break true,
                    Err(error) => say(format_args!("not replaced, serving on: {error}")),
                },
                () = terminator.draining() => break false,
            }
        };
        // It keeps a descriptor of the socket too.
        ecdysis.quit();
        if has_successor {
            drop(queue);
            // SIGTERM came while it was started: whoever sent it meant the server, and knew of one process.
            if terminator.phase() > Phase::Serving {
                if let Err(error) = successor.send(b"end") {
                    say(format_args!("the successor is not told to end: {error}"));
                }
            }
        } else {
            // Nobody accepts after us: what is queued is ours to serve, and whoever connects later is refused.
            let queue = TcpListener::from_std(queue)?;
            tokio::spawn(terminator.serve(queue, app));
        }
        drop(unsettled);
        say(terminator.terminate().await);
        Ok(())
    }

    /// To whoever reads it. If he is gone `println!` panics, by which a good successor would look like a bad one.
    fn say(what: impl Display) {
        let _ = writeln!(io::stdout(), "{}: {what}", process::id());
    }

    async fn upgrade(ecdysis: &Arc<Ecdysis>) -> Result<(), Box<dyn Error>> {
        let program = std::env::args_os().next().ok_or("it has no name")?;
        let mut check = Command::new(program);
        let check = check.arg(CHECK).kill_on_drop(true).status();
        let status = timeout(Duration::from_secs(5), check).await??;
        if !status.success() {
            return Err(format!("{CHECK}: {status}").into());
        }
        let ecdysis = Arc::clone(ecdysis);
        let upgraded = spawn_blocking(move || ecdysis.upgrade()).await?;
        upgraded.map_err(|error| error.to_string().into())
    }

    fn end_when_told(terminator: &Terminator, predecessor: StdDatagram) -> io::Result<()> {
        predecessor.set_nonblocking(true)?;
        let predecessor = UnixDatagram::from_std(predecessor)?;
        let terminator = terminator.clone();
        tokio::spawn(async move {
            // Most predecessors end without a word.
            if predecessor.recv(&mut [0; 3]).await.is_ok_and(|n| n > 0) {
                drop(terminator.terminate());
            }
        });
        Ok(())
    }

    async fn slow(me: u32) -> String {
        tokio::time::sleep(Duration::from_secs(3)).await;
        format!("{me}, after three seconds\n")
    }
}
