//! A WebSocket that does not end with its worker: it goes on in another process, on the same connection, and its client
//! does not notice.
//!
//! It counts what it is told. What goes along is the count, what was read of the connection and not used yet, half a
//! frame perhaps, and the descriptor.

use std::io::{self, Cursor};
use std::pin::pin;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Buf, BufMut, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http_terminator::TrackedIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame, FrameHeader};
use tokio_util::codec::{Decoder, Encoder, Framed, FramedParts};

use crate::wire::Connection;
use crate::worker::Worker;

#[allow(clippy::unsafe_derive_deserialize)] // of `pin!`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Session {
    count: u64,
    read_ahead: Vec<u8>,
}

/// Shakes hands (RFC 6455 section 4.2.2).
pub async fn join(State(worker): State<Worker>, mut request: Request) -> Response {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    worker.clone().spawn(async move {
        let Ok(upgraded) = upgrade.await else {
            return; // the client has left
        };
        let (io, read_ahead) = TrackedIo::downcast(upgraded).expect("served over TCP");
        let session = Session {
            count: 0,
            read_ahead: read_ahead.to_vec(),
        };
        session.go_on(io, worker).await;
    });
    let headers = [
        (header::CONNECTION, "upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

impl Session {
    /// Until the client leaves, or the worker does.
    pub async fn go_on(mut self, io: TrackedIo<TcpStream>, worker: Worker) {
        let mut parts = FramedParts::new::<Frame>(io, Frames);
        parts.read_buf = BytesMut::from(&self.read_ahead[..]);
        let mut frames = Framed::from_parts(parts);
        let mut draining = pin!(worker.terminator.draining());
        loop {
            tokio::select! {
                frame = frames.next() => match frame {
                    Some(Ok(frame)) => if !self.answer(frame, &mut frames).await {
                        return;
                    },
                    Some(Err(_)) | None => return,
                },
                () = &mut draining => break,
            }
        }
        // Each answer has been sent whole, so there is nothing in the other buffer.
        let parts = frames.into_parts();
        self.read_ahead = parts.read_buf.to_vec();
        let what = Connection::Session(self);
        if let Some(io) = worker.give_away(parts.io, what).await {
            say_goodbye(io).await;
        }
    }

    /// False when it is over.
    async fn answer(
        &mut self,
        frame: Frame,
        to: &mut Framed<TrackedIo<TcpStream>, Frames>,
    ) -> bool {
        let header = frame.header();
        let answer = match header.opcode {
            OpCode::Data(kind @ Data::Text) if header.is_final => {
                self.count += 1;
                let me = std::process::id();
                let text = String::from_utf8_lossy(frame.payload());
                let text = format!("{}: {text}, says {me}", self.count);
                Frame::message(text, OpCode::Data(kind), true)
            }
            OpCode::Control(Control::Ping) => Frame::pong(frame.into_payload()),
            OpCode::Control(Control::Pong) => return true,
            // Or what this example knows nothing of.
            _ => Frame::close(None),
        };
        let is_last = answer.header().opcode == OpCode::Control(Control::Close);
        to.send(answer).await.is_ok() && !is_last
    }
}

async fn say_goodbye(io: TrackedIo<TcpStream>) {
    let mut frames = Framed::new(io, Frames);
    let goodbye = Frame::close(Some(CloseFrame {
        code: CloseCode::Restart,
        reason: "restarting".into(),
    }));
    if frames.send(goodbye).await.is_ok() {
        // Until the client has closed. If it never does, the deadline cuts it.
        while let Some(Ok(_)) = frames.next().await {}
    }
}

/// The frames of a client, unmasked, and ours.
pub struct Frames;

/// Of one frame. Together with what else was read it must go along in one packet.
const LONGEST: usize = 8 * 1024;

impl Decoder for Frames {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<Frame>> {
        let mut head = Cursor::new(&bytes[..]);
        let parsed = FrameHeader::parse(&mut head).map_err(io::Error::other)?;
        let Some((mut header, length)) = parsed else {
            return Ok(None);
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if head.remaining() < length {
            return Ok(None);
        }
        bytes.advance(bytes.len() - head.remaining());
        let mut payload = bytes.split_to(length);
        if let Some(mask) = header.mask.take() {
            let mask = mask.iter().cycle();
            payload
                .iter_mut()
                .zip(mask)
                .for_each(|(byte, mask)| *byte ^= mask);
        }
        Ok(Some(Frame::from_payload(header, payload.freeze())))
    }
}

impl Encoder<Frame> for Frames {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, bytes: &mut BytesMut) -> io::Result<()> {
        frame.format(&mut bytes.writer()).map_err(io::Error::other)
    }
}
