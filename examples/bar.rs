//! A bar in the terminal while the server drains: how much has ended, how much time is left, and who is waited for.
//!
//! ```text
//! $ cargo run --example bar             # or: cargo run --example bar -- 127.0.0.1:8080
//! listening on 127.0.0.1:3000
//! ```
//!
//! Ask `curl localhost:3000/slow` from some other shells (answers after three seconds), and press Ctrl-C:
//!
//! ```text
//! draining ████████████████████░░░░░░░░░░░░░░░░░░░░ 2/4, 8.1s left, connection 3 from 127.0.0.1:41412, HTTP/1, GET /slow, …
//! ```
//!
//! Where there is no terminal, the same is printed as a line each second.

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};
use http_terminator::{Phase, Terminator};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::net::TcpListener;
use tokio::runtime::Handle;

const TICKS_A_SECOND: u32 = 10;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let terminator = Terminator::builder()
        .grace_period(Duration::from_secs(10))
        .build();
    let app = Router::new()
        .route("/slow", get(slow))
        .route("/echo", post(async |body: Bytes| body));

    let listener = TcpListener::bind(address).await?;
    terminator.terminate_on_signal()?;
    let address = listener.local_addr()?;
    // Before anybody is told: a termination takes over the queue of what it knows.
    let server = terminator.serve(listener, app);
    println!("listening on {address}");
    let (runtime, drains) = (Handle::current(), terminator.clone());
    // A thread of its own, also to wait for the drain: a handler that blocks the runtime's is just what one wants to see.
    let shown = thread::spawn(move || {
        runtime.block_on(drains.reached(Phase::Draining));
        draw(&drains);
    });
    let report = server.await;
    shown.join().expect("it draws");
    println!("{report}");
    Ok(())
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_secs(3)).await;
    "that took three seconds\n"
}

/// Until the end.
fn draw(terminator: &Terminator) {
    let style = ProgressStyle::with_template("draining {bar:40} {pos}/{len}, {wide_msg}")
        .expect("it is a template")
        .progress_chars("██░");
    let bar = ProgressBar::new(0).with_style(style);
    let mut total = 0;
    for n in 0.. {
        if terminator.phase() == Phase::Terminated {
            break;
        }
        let stats = terminator.stats();
        let left = stats.connections + stats.guards;
        // The accept queue may bring more.
        total = total.max(left);
        let done = total - left;
        let message = message(terminator);
        // Is no terminal there, or one that can't draw?
        if !bar.is_hidden() {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(message);
        } else if n % TICKS_A_SECOND == 0 {
            eprintln!("draining {done}/{total}, {message}");
        }
        thread::sleep(Duration::from_secs(1) / TICKS_A_SECOND);
    }
    bar.finish_and_clear();
}

/// How much time is left, and who has been there for longest.
fn message(terminator: &Terminator) -> String {
    let time_left = terminator.time_left().unwrap_or_default();
    let in_hand = terminator.in_hand();
    match in_hand.iter().max_by_key(|it| it.age) {
        Some(oldest) => format!("{time_left:.1?} left, {oldest}"),
        None => format!("{time_left:.1?} left"),
    }
}
