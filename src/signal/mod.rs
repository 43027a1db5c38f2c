//! SIGINT and SIGTERM: the first terminates, a second forces, and what nobody has a use for has its
//! default effect.

mod listeners;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::future::IntoFuture;
use std::io;

use crate::termination::Termination;
use crate::terminator::Terminator;

#[cfg(unix)]
use unix as source;
#[cfg(windows)]
use windows as source;

impl Terminator {
    /// Terminates on SIGINT (Ctrl-C) or SIGTERM, whichever comes; a second one forces.
    ///
    /// The handlers are in place when this returns. A plain thread waits for the signals, so that a
    /// stalled runtime can't swallow one. What it returns may be awaited for the end, or ignored.
    ///
    /// - The first signal since this call [terminates](Self::terminate), also if that was asked for by
    ///   hand before; the second [forces](Self::force).
    /// - **What comes within a second of it is the same signal**: Ctrl-C goes to a whole process group,
    ///   where a supervisor sends its own right behind it. This also holds for the second one, and when
    ///   the end has come meanwhile.
    /// - A third one ends the process, and so does one when nobody listens any more: each then has its
    ///   default effect. So Ctrl-C always does something, wherever the process hangs. (The first process
    ///   of a container, on which signals have no such effect, exits with 128 + the signal's number.)
    ///
    /// Signals are the process's, so all terminators that listen share them, and one thread: each counts
    /// its own first and second. Who has ended, however it came to that, no longer listens; nor does who
    /// was dropped, once there is nothing left of what it serves or tracks and no [`ShutdownGuard`]
    /// (its [`cancellation_token`](Self::cancellation_token) alone does not count). When nobody listens,
    /// the thread and its descriptors are gone: at once, or when the second after a signal is over, or, while somebody
    /// keeps a [`Connection`](crate::Connection) that has ended, with the next signal, which has its default effect. To
    /// call this again changes nothing while it listens.
    ///
    /// # With other handlers in the process
    ///
    /// They are called as well. If there was one before the first call of this, for instance
    /// `tokio::signal::ctrl_c()`, what its signal does when nobody listens is left to it (seen on
    /// Linux only). One that is installed later can't be seen: a signal for which nobody here has a use
    /// ends the process, whoever else waits for it. That SIGINT was ignored when the process was started,
    /// as a script's shell has it for what it puts into the background, does not matter.
    ///
    /// A process that is forked has the handlers and not the thread, and hears neither signal; so fork first.
    ///
    /// # Windows
    ///
    /// There these are Ctrl-C, Ctrl-Break, and the close, logoff and shutdown events; Windows ends the
    /// process soon after the latter three whatever it does. Where nobody listens any more, but this thread has yet to see that, the
    /// next event is swallowed.
    ///
    /// # Errors
    ///
    /// If the handlers can't be registered, or no thread can be started; or if one of the two is blocked
    /// in all threads, as a process inherits it from whoever starts it: it would never be heard (seen
    /// on Linux only). Nothing listens then.
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
    ///
    /// [`ShutdownGuard`]: crate::ShutdownGuard
    pub fn terminate_on_signal(&self) -> io::Result<OnSignal> {
        source::check_unblocked()?;
        listeners::listen(self)?;
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
