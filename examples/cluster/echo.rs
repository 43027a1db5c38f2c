//! A connection that speaks no protocol any more: what comes is sent back, by whichever process has it.

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use http_terminator::TrackedIo;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wire::Connection;
use crate::worker::Worker;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Echo {
    /// Read, and not sent back yet.
    rest: Vec<u8>,
}

/// With `upgrade: echo`.
pub async fn join(State(worker): State<Worker>, mut request: Request) -> impl IntoResponse {
    let upgrade = hyper::upgrade::on(&mut request);
    worker.clone().spawn(async move {
        let Ok(upgraded) = upgrade.await else {
            return; // the client has left
        };
        let (io, rest) = TrackedIo::downcast(upgraded).expect("served over TCP");
        let rest = rest.to_vec();
        Echo { rest }.go_on(io, worker).await;
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")];
    (StatusCode::SWITCHING_PROTOCOLS, headers)
}

impl Echo {
    /// Until the client leaves, or the worker does.
    pub async fn go_on(mut self, mut io: TrackedIo<TcpStream>, worker: Worker) {
        let told = worker.terminator.cancellation_token();
        // Both can be dropped half-way: what was read is in `rest`, from which what was written is gone.
        while let Some(went_on) = told.run_until_cancelled(self.go_a_step(&mut io)).await {
            if went_on.is_none() {
                return;
            }
        }
        // If nobody takes it, it ends here.
        worker.give_away(io, Connection::Echo(self)).await;
    }

    async fn go_a_step(&mut self, io: &mut TrackedIo<TcpStream>) -> Option<()> {
        if self.rest.is_empty() {
            io.read_buf(&mut self.rest).await.ok().filter(|n| *n > 0)?;
        } else {
            let n = io.write(&self.rest).await.ok()?;
            self.rest.drain(..n);
        }
        Some(())
    }
}
