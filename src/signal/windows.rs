//! Console events of Windows, by tokio: what is handled is what has a stream, and everything else
//! has its default effect.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::runtime::{self, Runtime};
use tokio::signal::windows;
use tokio::sync::Notify;

pub(super) type Signal = &'static str;

pub(super) fn name(signal: Signal) -> &'static str {
    signal
}

/// Nothing blocks them here.
#[allow(clippy::unnecessary_wraps)] // elsewhere it may be an error
pub(super) fn check_unblocked() -> io::Result<()> {
    Ok(())
}

pub(super) struct Source {
    /// Its own, so that no other runtime has to run for an event to be seen. Made by its thread, as a task may not drop one.
    runtime: Option<Runtime>,
    events: Events,
    bell: Arc<Bell>,
}

impl Source {
    /// Events are kept for [`wait`](Self::wait) from here on; the waker ends a wait as well.
    pub(super) fn open(_: &mut Defaults) -> io::Result<(Self, Waker)> {
        let events = Events::new()?;
        let bell = Arc::new(Bell(Notify::new()));
        let waker = Waker::from(Arc::clone(&bell));
        let source = Self {
            runtime: None,
            events,
            bell,
        };
        Ok((source, waker))
    }

    /// One that has come; none if it was woken, or patience is over.
    pub(super) fn wait(&mut self, patience: Option<Duration>) -> io::Result<Vec<Signal>> {
        let runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => runtime::Builder::new_current_thread()
                .enable_time()
                .build()?,
        };
        let runtime = self.runtime.insert(runtime);
        let (events, bell) = (&mut self.events, &self.bell.0);
        let heard = runtime.block_on(async {
            let mut rung = pin!(bell.notified());
            let heard = std::future::poll_fn(|cx| {
                if let Poll::Ready(event) = events.poll(cx) {
                    return Poll::Ready(Some(event));
                }
                rung.as_mut().poll(cx).map(|()| None)
            });
            match patience {
                Some(time) => tokio::time::timeout(time, heard).await.unwrap_or(None),
                None => heard.await,
            }
        });
        Ok(heard.into_iter().collect())
    }

    /// What was kept and not waited for is lost; the next one has its default effect.
    #[allow(clippy::unused_self)] // it is the end of it
    pub(super) fn close(self) -> Vec<Signal> {
        Vec::new()
    }
}

struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// tokio's handler gives an event back to the system that nobody has a stream for.
pub(super) struct Defaults;

#[allow(clippy::unused_self)] // elsewhere there is something to it
impl Defaults {
    pub(super) fn new() -> Self {
        Self
    }

    pub(super) fn suspend(&self) {}

    pub(super) fn resume(&self) {}

    pub(super) fn have_effect(&self, _: Signal) {}
}

struct Events {
    c: windows::CtrlC,
    r#break: windows::CtrlBreak,
    close: windows::CtrlClose,
    logoff: windows::CtrlLogoff,
    shutdown: windows::CtrlShutdown,
}

impl Events {
    fn new() -> io::Result<Self> {
        Ok(Self {
            c: windows::ctrl_c()?,
            r#break: windows::ctrl_break()?,
            close: windows::ctrl_close()?,
            logoff: windows::ctrl_logoff()?,
            shutdown: windows::ctrl_shutdown()?,
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
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
            Poll::Pending
        }
    }
}
