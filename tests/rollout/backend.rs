//! The servers that are replaced: each is a process of its own, this test's executable again.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::support::BOUND;
use crate::support::closed_loop::routes;
use crate::support::outside::{Other, is_alone};
use crate::support::starts::Start;
use http_terminator::{Terminator, TerminatorBuilder};

/// What [`SLOW_PATH`] takes.
pub const SLOW: Duration = Duration::from_millis(100);
pub const SLOW_PATH: &str = "/slow";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Defaults,
    /// Of so long a period.
    LameDuck(Duration),
    /// With its own graceful shutdown.
    Axum,
    /// It gets no SIGTERM, and is gone long after it was removed: what fails is the balancer's own loss.
    Control,
}

impl Server {
    /// The test that serves so in a process of its own.
    fn test(self) -> &'static str {
        match self {
            Self::Defaults | Self::Control => concat!(module_path!(), "::defaults"),
            Self::LameDuck(_) => concat!(module_path!(), "::lame_duck"),
            Self::Axum => concat!(module_path!(), "::axum_serve"),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Defaults => "defaults",
            Self::LameDuck(_) => "lame duck",
            Self::Axum => "`axum::serve`",
            Self::Control => "control",
        })
    }
}

/// A process that serves. Dropped, it is killed.
pub struct Backend {
    process: Other,
    pub addr: SocketAddr,
    /// Of its process, for signals.
    pub id: String,
}

impl Backend {
    pub fn start(server: Server) -> Self {
        let lame_duck = match server {
            Server::LameDuck(period) => period.as_millis(),
            _ => 0,
        };
        let variable = format!("{LAME_DUCK}={lame_duck}");
        let process = Other::start(server.test(), &["env", &variable]);
        let line = process.line(LISTENING);
        let (addr, id) = line.split_once(' ').expect("two words");
        let addr = addr.parse().expect("an address");
        let id = id.to_owned();
        Self { process, addr, id }
    }

    /// What there is to say of its end, if it was none that one would wish for.
    pub fn end(mut self) -> Option<String> {
        let how = match self.process.wait(BOUND) {
            Some(true) => return None,
            Some(false) => "it ended badly".to_owned(),
            None => format!("it was not over within {BOUND:?}"),
        };
        Some(format!("{how}: {}", self.process.said()))
    }
}

/// By a shell, which has it built in, and is there before it is needed.
pub struct Signal {
    shell: Child,
}

impl Signal {
    pub fn new(name: &str, process: &str) -> Self {
        let script = format!("echo; read _; kill -{name} {process}");
        let shell = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .start();
        let mut shell = shell.expect("there is a shell");
        let ready = shell.stdout.as_mut().expect("it is piped");
        ready.read_exact(&mut [0]).expect("it begins");
        Self { shell }
    }

    pub fn send(mut self) {
        let mut stdin = self.shell.stdin.take().expect("it is piped");
        stdin.write_all(b"\n").expect("it reads");
        let status = self.shell.wait().expect("it is our child");
        assert!(status.success(), "the process is gone: {status}");
    }
}

const LISTENING: &str = "listening on ";

/// The environment variable that tells how many milliseconds it is.
const LAME_DUCK: &str = "HTTP_TERMINATOR_TEST_LAME_DUCK";

// ===== in the other process =====

#[test]
fn defaults() {
    serve_alone(|listener| terminated(Terminator::builder(), listener));
}

#[test]
fn lame_duck() {
    serve_alone(|listener| {
        let period = std::env::var(LAME_DUCK).expect("it was set");
        let period = Duration::from_millis(period.parse().expect("milliseconds"));
        terminated(Terminator::builder().lame_duck(period), listener)
    });
}

#[test]
fn axum_serve() {
    serve_alone(async |listener| {
        let mut term = signal(SignalKind::terminate())?;
        say_where(&listener)?;
        let shutdown = async move {
            term.recv().await;
        };
        axum::serve(listener, app())
            .with_graceful_shutdown(shutdown)
            .await
    });
}

async fn terminated(builder: TerminatorBuilder, listener: TcpListener) -> io::Result<()> {
    let terminator = builder.build();
    terminator.terminate_on_signal()?;
    say_where(&listener)?;
    let report = terminator.serve(listener, app()).await;
    assert!(report.is_clean(), "{report}");
    Ok(())
}

fn serve_alone(serve: impl AsyncFnOnce(TcpListener) -> io::Result<()>) {
    if !is_alone() {
        return;
    }
    // Whoever started it holds the other end, and may be killed.
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(1);
    });
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let served = runtime
        .expect("a runtime")
        .block_on(async { serve(TcpListener::bind("127.0.0.1:0").await?).await });
    served.expect("it serves");
}

/// Once it may be sent signals.
fn say_where(listener: &TcpListener) -> io::Result<()> {
    let addr = listener.local_addr()?;
    println!("{LISTENING}{addr} {}", std::process::id());
    Ok(())
}

fn app() -> Router {
    let slow = async || {
        tokio::time::sleep(SLOW).await;
        "slow"
    };
    routes().route(SLOW_PATH, get(slow))
}
