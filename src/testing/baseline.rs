//! What is left of a server, beside what was there before it.

use std::fmt;
use std::future;
use std::net::{SocketAddr, TcpStream};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::real_time::real_time;
use crate::terminator::Terminator;
use crate::words::Count;

/// What there was before a server was started, so that it can be asserted afterwards that nothing is left of it.
///
/// Take one in front of the server, in its runtime; a [`Probe`](super::Probe) that hosts the server does all this by
/// itself.
///
/// # Examples
///
/// ```
/// use axum::Router;
/// use http_terminator::{Terminator, testing::Baseline};
/// use tokio::net::TcpListener;
///
/// #[tokio::main]
/// async fn main() -> std::io::Result<()> {
///     let before = Baseline::now();
///
///     let terminator = Terminator::new();
///     let listener = TcpListener::bind("127.0.0.1:0").await?;
///     let address = listener.local_addr()?;
///     tokio::spawn(terminator.serve(listener, Router::new()));
///     terminator.terminate().await;
///
///     before.leftovers(&terminator, address).await.assert_none();
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "ask it for the leftovers of the server"]
pub struct Baseline {
    tasks: Option<(Handle, usize)>,
}

impl Baseline {
    /// Counts the tasks of the runtime that it is called in. Outside of tokio none are looked at.
    pub fn now() -> Self {
        let tasks = Handle::try_current().ok();
        Self {
            tasks: tasks.map(|handle| {
                let alive = alive(&handle);
                (handle, alive)
            }),
        }
    }

    /// What is left of the server after the termination has returned.
    ///
    /// Sockets are those that the terminator knows, and one that accepts at `address`, which is tried: that of a successor, or
    /// of another holder of the same socket, is found as well. Tasks are all that the runtime has more than before, also
    /// those of somebody else: don't start any of your own in between. One that was awaited may be on its way out when
    /// its result is there, so they are given a second, for which this yields time and again. tokio's time runs meanwhile, if it is
    /// paused ([`real_time`](super::real_time())). The connect blocks its thread, for a second at most.
    ///
    /// # Cancel safety
    ///
    /// It changes nothing, and may be dropped.
    pub async fn leftovers(&self, terminator: &Terminator, address: SocketAddr) -> Leftovers {
        let listening = is_listening(address);
        let begin = Instant::now();
        let tasks = future::poll_fn(|cx| {
            let more = self
                .tasks
                .as_ref()
                .map_or(0, |(handle, before)| alive(handle).saturating_sub(*before));
            if more == 0 || begin.elapsed() > PATIENCE {
                return Poll::Ready(more);
            }
            // Not a timer: the executor may be another one.
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        // Paused time stands still under who wakes himself, and no timer of theirs would fire.
        let tasks = real_time(tasks).await;
        let stats = terminator.stats();
        Leftovers {
            listening,
            listeners: stats.listeners,
            connections: stats.connections,
            guards: stats.guards,
            tasks,
        }
    }
}

/// What is left of a server, from [`Baseline::leftovers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "assert that there are none"]
#[non_exhaustive]
pub struct Leftovers {
    /// Somebody accepts at the server's address.
    pub listening: bool,
    /// The terminator's listeners that are open.
    pub listeners: usize,
    /// Its connections that are open.
    pub connections: usize,
    /// Its guards that are held, those of spawned work included.
    pub guards: usize,
    /// Tasks that are alive, beyond those that were.
    pub tasks: usize,
}

impl Leftovers {
    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        let open = self.listeners + self.connections + self.guards;
        !self.listening && open + self.tasks == 0
    }

    /// Asserts that there are none.
    ///
    /// # Panics
    ///
    /// If there are any; the message says which.
    #[track_caller]
    pub fn assert_none(&self) {
        assert!(self.is_none(), "{self}");
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("nothing left");
        }
        f.write_str("left are")?;
        let mut before = " ";
        for (n, one, many) in [
            (self.listeners, "listener", "listeners"),
            (self.connections, "connection", "connections"),
            (self.guards, "guard", "guards"),
            (self.tasks, "task", "tasks"),
        ] {
            if n > 0 {
                write!(f, "{before}{}", Count(n, one, many))?;
                before = ", ";
            }
        }
        if self.listening {
            write!(f, "{before}an open port")?;
        }
        Ok(())
    }
}

pub(super) fn alive(handle: &Handle) -> usize {
    handle.metrics().num_alive_tasks()
}

pub(super) fn is_listening(address: SocketAddr) -> bool {
    // A socket may be given the very port that it is to connect to, and then meets itself.
    TcpStream::connect_timeout(&address, PATIENCE)
        .is_ok_and(|socket| socket.local_addr().ok() != socket.peer_addr().ok())
}

const PATIENCE: Duration = Duration::from_secs(1);
