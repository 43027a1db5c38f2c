//! An HTTP/2 client that does nothing by itself, and the frames that it reads and writes.

use std::io;
use std::time::{Duration, Instant};

use bytes::Buf;
use socket2::Socket;

use super::http2::H2;
use super::wire::Wire;
use super::{RawClient, ReadEnd, Target};

/// The first bytes of an HTTP/2 client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types, for [`Frame::kind`].
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
}

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is smaller than 16 MB");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An HTTP/2 frame as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Of a SETTINGS or PING frame.
    pub fn is_ack(&self) -> bool {
        matches!(self.kind, kind::SETTINGS | kind::PING) && self.flags & ACK != 0
    }

    /// Of a DATA or HEADERS frame.
    pub fn is_end_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & END_STREAM != 0
    }

    /// Last stream and error code of a GOAWAY frame.
    pub fn goaway(&self) -> (u32, u32) {
        assert_eq!(self.kind, kind::GOAWAY, "{self:?} is no GOAWAY");
        let mut payload = &self.payload[..];
        (payload.get_u32() & 0x7fff_ffff, payload.get_u32())
    }
}

/// An HTTP/2 client that does nothing by itself: acknowledges neither SETTINGS nor PING, gives no
/// window back.
pub struct RawH2 {
    wire: Wire,
}

/// A connection on which nothing was sent yet but a TLS handshake.
impl From<RawClient> for RawH2 {
    fn from(client: RawClient) -> Self {
        Self { wire: client.wire }
    }
}

impl RawH2 {
    /// Connects; sends the preface and an empty SETTINGS frame.
    #[track_caller]
    pub fn connect(target: impl Into<Target>) -> Self {
        Self::connect_with(target, &[])
    }

    /// Connects; sends the preface and a SETTINGS frame with these `(identifier, value)` pairs.
    #[track_caller]
    pub fn connect_with(target: impl Into<Target>, settings: &[(u16, u32)]) -> Self {
        let client = Self::connect_silent(target);
        let pair =
            |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let payload: Vec<u8> = settings.iter().flat_map(pair).collect();
        client.send(PREFACE);
        client.send_frame(kind::SETTINGS, 0, 0, &payload);
        client
    }

    /// Connects and sends nothing.
    #[track_caller]
    pub fn connect_silent(target: impl Into<Target>) -> Self {
        Self {
            wire: Wire::connected(&target.into(), H2),
        }
    }

    /// Bounds every later read.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.wire.timeout = timeout;
    }

    pub fn socket(&self) -> &Socket {
        &self.wire.socket
    }

    #[track_caller]
    pub fn send(&self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes.as_ref());
    }

    /// For a peer that may have gone.
    pub fn try_send(&self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.write_all(bytes.as_ref())
    }

    #[track_caller]
    pub fn send_frame(&self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.send(frame(kind, flags, stream, payload));
    }

    #[track_caller]
    pub fn ack_settings(&self) {
        self.send_frame(kind::SETTINGS, ACK, 0, &[]);
    }

    /// Answers a PING of the server's.
    #[track_caller]
    pub fn ack_ping(&self, ping: &Frame) {
        self.send_frame(kind::PING, ACK, 0, &ping.payload);
    }

    /// For a server that may have gone.
    pub fn try_ack_ping(&self, ping: &Frame) -> io::Result<()> {
        self.try_send(frame(kind::PING, ACK, 0, &ping.payload))
    }

    /// The bytes that [`send`](Self::send) would send over TLS, for [`send_raw`](Self::send_raw).
    #[track_caller]
    pub fn encrypt(&self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        self.wire.encrypt(bytes.as_ref())
    }

    /// Sends bytes below TLS.
    #[track_caller]
    pub fn send_raw(&self, bytes: &[u8]) {
        self.wire.send_raw(bytes);
    }

    /// Gives the server room to send, on a stream or (0) on the connection.
    #[track_caller]
    pub fn window_update(&self, stream: u32, more: u32) {
        self.send_frame(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
    }

    /// Sends a whole GET. Streams are 1, 3, 5, …
    #[track_caller]
    pub fn get(&self, path: &str, stream: u32) {
        self.request("GET", path, stream, true);
    }

    /// Sends the head of a request; without `end`, DATA frames are to follow.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, stream: u32, end: bool) {
        let fields = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", path),
        ];
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0); // literal, not indexed, new name (RFC 7541 section 6.2.2)
            for text in [name, value] {
                let length = u8::try_from(text.len()).ok().filter(|length| *length < 127);
                block.push(length.expect("names and values here fit the one-byte length"));
                block.extend(text.as_bytes());
            }
        }
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.send_frame(kind::HEADERS, flags, stream, &block);
    }

    #[track_caller]
    pub fn read_frame(&mut self) -> Frame {
        let read = self.try_read_frame();
        self.wire.expect(read, "frame")
    }

    pub fn try_read_frame(&mut self) -> Result<Frame, ReadEnd> {
        self.frame_before(self.wire.deadline())
    }

    /// Reads and drops frames until one is of this kind.
    #[track_caller]
    pub fn read_until(&mut self, kind: u8) -> Frame {
        let deadline = self.wire.deadline();
        loop {
            match self.frame_before(deadline) {
                Ok(frame) if frame.kind == kind => return frame,
                Ok(_) => {}
                Err(end) => panic!("no frame of kind {kind}: {end:?}"),
            }
        }
    }

    /// Reads and drops whatever comes until the end of file; says how long that took.
    #[track_caller]
    pub fn expect_eof_within(&mut self, bound: Duration) -> Duration {
        let start = Instant::now();
        loop {
            self.wire.unread.clear();
            match self.wire.fill(start + bound) {
                Ok(()) => {}
                Err(ReadEnd::Eof) => return start.elapsed(),
                Err(end) => panic!("no end of file within {bound:?}: {end:?}"),
            }
        }
    }

    pub fn is_still_open(&self) -> bool {
        self.wire.is_still_open()
    }

    fn frame_before(&mut self, deadline: Instant) -> Result<Frame, ReadEnd> {
        // Taken at once with its payload, so that a timeout in between loses nothing.
        let length = loop {
            if let Some(length) = self.wire.unread.first_chunk::<3>() {
                break u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
            }
            self.wire.fill_message(deadline)?;
        };
        let mut frame = self.wire.take(9 + length, deadline)?;
        frame.advance(3);
        let (kind, flags) = (frame.get_u8(), frame.get_u8());
        let stream = frame.get_u32() & 0x7fff_ffff;
        Ok(Frame {
            kind,
            flags,
            stream,
            payload: frame.to_vec(),
        })
    }
}
