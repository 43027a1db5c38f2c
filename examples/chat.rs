//! A WebSocket chat whose handlers say goodbye when the drain begins.
//!
//! ```text
//! $ cargo run --example chat            # or: cargo run --example chat -- 127.0.0.1:8080
//! listening on 127.0.0.1:3000
//! ```
//!
//! Connect some clients to `ws://localhost:3000/chat`; what one says, all get. On Ctrl-C each gets
//! a close frame with code 1012, "service restart" (RFC 6455 section 7.4, and the IANA registry for
//! 1012), so that it knows to connect again. The server waits for their answers, prints its report and
//! exits with 0:
//!
//! ```text
//! terminated cleanly in 1.9ms: 2 connections (2 upgraded)
//! ```

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use axum::{Router, routing::any};
use http_terminator::Terminator;
use tokio::net::TcpListener;
use tokio::sync::broadcast::{self, error::RecvError};

#[derive(Clone)]
struct Chat {
    said: broadcast::Sender<Utf8Bytes>,
    terminator: Terminator,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let terminator = Terminator::new();
    let chat = Chat {
        said: broadcast::Sender::new(64),
        terminator: terminator.clone(),
    };
    let app = Router::new().route("/chat", any(join)).with_state(chat);

    let listener = TcpListener::bind(address).await?;
    terminator.terminate_on_signal()?;
    let address = listener.local_addr()?;
    let server = terminator.serve(listener, app);
    println!("listening on {address}");
    println!("{}", server.await);
    Ok(())
}

async fn join(State(chat): State<Chat>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|socket| talk(socket, chat))
}

async fn talk(mut socket: WebSocket, chat: Chat) {
    let mut heard = chat.said.subscribe();
    let mut draining = std::pin::pin!(chat.terminator.draining());
    loop {
        let result = tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => {
                    // Nobody listening is no error: the speaker does.
                    let _ = chat.said.send(text);
                    Ok(())
                }
                Some(Ok(_)) => Ok(()),
                Some(Err(_)) | None => return,
            },
            heard = heard.recv() => match heard {
                Ok(text) => socket.send(Message::Text(text)).await,
                // Its client reads too slowly: what it has missed it misses, and it hears what comes now.
                Err(RecvError::Lagged(_)) => Ok(()),
                Err(RecvError::Closed) => return,
            },
            () = &mut draining => break,
        };
        if result.is_err() {
            return;
        }
    }
    let goodbye = CloseFrame {
        code: close_code::RESTART,
        reason: "restarting".into(),
    };
    if socket.send(Message::Close(Some(goodbye))).await.is_ok() {
        // Until the client has answered. If it never does, the deadline cuts it.
        while let Some(Ok(_)) = socket.recv().await {}
    }
}
