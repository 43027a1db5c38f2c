//! The program itself.

use std::env;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use axum::{Router, routing::get};
use futures_util::future::join_all;
use http_terminator::{Inherited, Terminator};
use listenfd::ListenFd;
use socket2::SockRef;

/// What is waited for is in the unit, too: `TimeoutStopSec`.
const GRACE_PERIOD: Duration = Duration::from_secs(20);

/// Why it can't serve, as one line that says what to do.
type Fault = String;

pub(crate) fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .without_time() // the journal has one
        .init();
    // Before there are other threads: listenfd takes its variables out of the environment.
    match passed_by_systemd().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(passed: Vec<Socket>) -> Result<(), Fault> {
    let terminator = Terminator::builder().grace_period(GRACE_PERIOD).build();
    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .route("/slow", get(slow));

    let on_signal = terminator.terminate_on_signal();
    on_signal.map_err(|e| format!("cannot listen for signals: {e}"))?;
    // Whoever started it may have left a variable behind: no reason not to serve.
    match terminator.notify_systemd() {
        Ok(true) => {}
        Ok(false) => println!("nobody is notified: there is no NOTIFY_SOCKET"),
        Err(e) => eprintln!("nobody is notified: {e}"),
    }

    if passed.is_empty() {
        let address = env::args().nth(1);
        let address = address.unwrap_or_else(|| "127.0.0.1:3000".to_owned());
        let listener = tokio::net::TcpListener::bind(&address).await;
        let listener = listener.map_err(|e| {
            format!("cannot bind {address}: {e}; name another address, or start hello.socket")
        })?;
        let address = listener.local_addr().map_err(|e| e.to_string())?;
        let server = terminator.serve(listener, app);
        println!("listening on {address}");
        println!("{}", server.await);
        return Ok(());
    }
    // systemd holds them, too, so that a queue is left to whom it starts next.
    let servers = passed.into_iter().map(|socket| match socket {
        Socket::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener);
            let server = listener.map(|it| terminator.serve(Inherited(it), app.clone()));
            server.map(tokio::spawn)
        }
        Socket::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener);
            let server = listener.map(|it| terminator.serve(Inherited(it), app.clone()));
            server.map(tokio::spawn)
        }
    });
    let servers: Vec<_> = servers
        .collect::<io::Result<_>>()
        .map_err(|e| format!("cannot serve what systemd has passed: {e}"))?;
    println!("serving {} sockets that systemd passed", servers.len());
    join_all(servers).await;
    println!("{}", terminator.terminated().await);
    Ok(())
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_secs(3)).await;
    "that took three seconds\n"
}

enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// Those of `LISTEN_FDS`, none without it. See `sd_listen_fds(3)`.
fn passed_by_systemd() -> Result<Vec<Socket>, Fault> {
    // listenfd takes what is no number for none, and a large one for that many.
    let Some(number) = env::var_os("LISTEN_FDS") else {
        return Ok(Vec::new());
    };
    let known = number.to_str().and_then(|it| it.parse::<u16>().ok());
    if known.is_none() {
        return Err(format!(
            "LISTEN_FDS is {number:?}, not a number of sockets: leave it to systemd, or unset it"
        ));
    }
    let mut fds = ListenFd::from_env();
    (0..fds.len()).map(|n| take(&mut fds, n)).collect()
}

fn take(fds: &mut ListenFd, n: usize) -> Result<Socket, Fault> {
    let fault = |why: &str| {
        let fd = n + 3;
        format!(
            "descriptor {fd}, of those that LISTEN_FDS counts, is {why}: this serves what \
             ListenStream= gives, of TCP or a Unix socket, with Accept=no"
        )
    };
    let socket = if let Ok(Some(listener)) = fds.take_tcp_listener(n) {
        Socket::Tcp(listener)
    } else if let Ok(Some(listener)) = fds.take_unix_listener(n) {
        Socket::Unix(listener)
    } else {
        return Err(fault("no stream socket"));
    };
    let listener = match &socket {
        Socket::Tcp(it) => SockRef::from(it),
        Socket::Unix(it) => SockRef::from(it),
    };
    if !listener.is_listener().unwrap_or(false) {
        return Err(fault("a socket that does not listen"));
    }
    // systemd passes them in blocking mode, unless `NonBlocking=yes` is set, and tokio takes none such.
    let set = listener.set_nonblocking(true);
    set.map_err(|e| fault(&format!("a socket that can't be made non-blocking ({e})")))?;
    Ok(socket)
}
