//! SIGINT and SIGTERM.

use std::future::IntoFuture;
use std::io;
use std::sync::mpsc;
use std::thread;

use crate::termination::Termination;
use crate::terminator::Terminator;

impl Terminator {
    /// Terminates on SIGINT (Ctrl-C) or SIGTERM; the second signal forces.
    ///
    /// The handlers are in place when this returns. They wait on a thread of their own, so that a
    /// stalled runtime can't swallow a signal. On Windows these are Ctrl-C, Ctrl-Break, and the close,
    /// logoff and shutdown events; Windows ends the process soon after the latter three whatever it
    /// does.
    ///
    /// What it returns may be awaited for the end, or ignored. The signals stay handled, so later
    /// ones do not end the process.
    ///
    /// # Errors
    ///
    /// If the handlers can't be registered, or no thread can be started.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use axum::Router;
    /// # use http_terminator::Terminator;
    /// # #[tokio::main] async fn main() -> std::io::Result<()> {
    /// # let app: Router = Router::new();
    /// # let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// let terminator = Terminator::new();
    /// terminator.terminate_on_signal()?;
    /// let report = terminator.serve(listener, app).await;
    /// println!("{report}");
    /// # Ok(()) }
    /// ```
    pub fn terminate_on_signal(&self) -> io::Result<OnSignal> {
        let (registered, result) = mpsc::channel();
        let terminator = self.clone();
        thread::Builder::new()
            .name("http-terminator-signal".to_owned())
            .spawn(move || {
                // Its own, so that no other runtime has to run for a signal to be seen.
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_io()
                    .build();
                let _ = match runtime {
                    Ok(runtime) => runtime.block_on(wait(&terminator, &registered)),
                    Err(e) => registered.send(Err(e)),
                };
            })?;
        result.recv().unwrap_or_else(|e| Err(io::Error::other(e)))?;
        Ok(OnSignal {
            terminator: self.clone(),
        })
    }
}

/// A termination to come, from [`terminate_on_signal`](Terminator::terminate_on_signal): await it to
/// wait for the signal and the end, or ignore it.
#[derive(Debug)]
pub struct OnSignal {
    terminator: Terminator,
}

impl IntoFuture for OnSignal {
    type Output = <Termination as Future>::Output;
    type IntoFuture = Termination;

    fn into_future(self) -> Termination {
        self.terminator.terminated()
    }
}

type Registered = mpsc::Sender<io::Result<()>>;

async fn wait(
    terminator: &Terminator,
    registered: &Registered,
) -> Result<(), mpsc::SendError<io::Result<()>>> {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(e) => return registered.send(Err(e)),
    };
    registered.send(Ok(()))?;
    // Not inside the macro: its fields are evaluated only if somebody listens.
    let signal = signals.next().await;
    tracing::info!(signal, "terminating on a signal");
    drop(terminator.terminate());
    let signal = signals.next().await;
    tracing::warn!(signal, "forcing on a second signal");
    drop(terminator.force());
    Ok(())
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        std::future::poll_fn(|cx| {
            if self.interrupt.poll_recv(cx).is_ready() {
                "SIGINT".into()
            } else if self.terminate.poll_recv(cx).is_ready() {
                "SIGTERM".into()
            } else {
                std::task::Poll::Pending
            }
        })
        .await
    }
}

#[cfg(windows)]
struct Signals {
    c: tokio::signal::windows::CtrlC,
    r#break: tokio::signal::windows::CtrlBreak,
    close: tokio::signal::windows::CtrlClose,
    logoff: tokio::signal::windows::CtrlLogoff,
    shutdown: tokio::signal::windows::CtrlShutdown,
}

#[cfg(windows)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::windows;
        Ok(Self {
            c: windows::ctrl_c()?,
            r#break: windows::ctrl_break()?,
            close: windows::ctrl_close()?,
            logoff: windows::ctrl_logoff()?,
            shutdown: windows::ctrl_shutdown()?,
        })
    }

    async fn next(&mut self) -> &'static str {
        std::future::poll_fn(|cx| {
            if self.c.poll_recv(cx).is_ready() {
                "Ctrl-C".into()
            } else if self.r#break.poll_recv(cx).is_ready() {
                "Ctrl-Break".into()
            } else if self.close.poll_recv(cx).is_ready() {
                "close".into()
            } else if self.logoff.poll_recv(cx).is_ready() {
                "logoff".into()
            } else if self.shutdown.poll_recv(cx).is_ready() {
                "shutdown".into()
            } else {
                std::task::Poll::Pending
            }
        })
        .await
    }
}
