//! A server on a runtime and a thread of its own, whose handlers may block every thread of that runtime.

use std::future::Future;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;

use super::wait::until;
use super::{BOUND, Gate};

/// Dropped, it opens the gate, and ends once its handlers have.
pub struct Served<S> {
    pub server: S,
    /// Of the handlers.
    pub gate: Gate,
    pub handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: Send + 'static> Served<S> {
    /// Gives what `server`, which starts on `runtime`, gives.
    #[track_caller]
    pub fn start(
        runtime: Runtime,
        gate: &Gate,
        server: impl Future<Output = S> + Send + 'static,
    ) -> Self {
        let handle = runtime.handle().clone();
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let _ = tell.send(server.await); // the test has ended
                let _ = stopped.await;
            });
            runtime.shutdown_timeout(BOUND);
        });
        Self {
            server: told.recv_timeout(BOUND).expect("it serves"),
            gate: gate.clone(),
            handle,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Waits until so many handlers block their threads.
    #[track_caller]
    pub fn wait_blocked(&self, n: usize) {
        until("so many block", || {
            // The first one may hold the runtime's IO driver, and the second request then waits in
            // its socket: see `g11_one_blocked_handler_keeps_no_other…` in `deadline.rs`.
            drop(self.handle.spawn(async {}));
            self.gate.entered() >= n
        });
    }
}

impl<S> Drop for Served<S> {
    fn drop(&mut self) {
        self.gate.open();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "the server has panicked"
            );
        }
    }
}
