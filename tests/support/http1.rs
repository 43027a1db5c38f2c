//! A blocking HTTP/1 client that shows everything.

use std::io;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use socket2::Socket;
use tokio_rustls::rustls::ClientConnection;

use super::response::{Framing, framing, lossless, parse_fields, parse_head};
use super::wire::{Wire, find, flush, lock, lossy};
use super::{Headers, RawResponse, ReadEnd, Target};

const HTTP_1: &str = "http/1.1";

/// A blocking HTTP/1 client that shows everything. No call waits longer than its timeout
/// ([`BOUND`] unless [set](Self::set_timeout)).
pub struct RawClient {
    pub(super) wire: Wire,
    body: Framing,
    trailers: Headers,
}

impl RawClient {
    #[track_caller]
    pub fn connect(target: impl Into<Target>) -> Self {
        Self::new(Wire::connected(&target.into(), HTTP_1))
    }

    /// For a server that may refuse.
    pub fn try_connect(target: impl Into<Target>) -> io::Result<Self> {
        Wire::connect(&target.into(), HTTP_1).map(Self::new)
    }

    fn new(wire: Wire) -> Self {
        Self {
            wire,
            body: Framing::Length(0),
            trailers: Headers::new(),
        }
    }

    /// Bounds every later read; shorter than [`BOUND`] where a test expects that nothing comes.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.wire.timeout = timeout;
    }

    #[track_caller]
    pub fn send(&self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes.as_ref());
    }

    /// For a peer that may have gone.
    pub fn try_send(&self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.write_all(bytes.as_ref())
    }

    /// Sends a GET that lets the connection live on.
    #[track_caller]
    pub fn get(&self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    }

    /// Sends a GET that asks for the echo protocol.
    #[track_caller]
    pub fn get_upgrade(&self, path: &str) {
        self.send(format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n"
        ));
    }

    /// Sends a POST with its whole body.
    #[track_caller]
    pub fn post(&self, path: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let length = body.len();
        self.send(format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
        ));
        self.send(body);
    }

    /// [`get`](Self::get) and its response.
    #[track_caller]
    pub fn fetch(&mut self, path: &str) -> RawResponse {
        self.get(path);
        self.read_response()
    }

    /// Reads one response, whole. Interim ones (1xx) are returned as they come. Not for the answer
    /// to a HEAD: that one is [`read_response_headers`](Self::read_response_headers).
    #[track_caller]
    pub fn read_response(&mut self) -> RawResponse {
        let read = self.try_read_response();
        self.wire.expect(read, "response")
    }

    pub fn try_read_response(&mut self) -> Result<RawResponse, ReadEnd> {
        let mut response = self.try_read_response_headers()?;
        response.body = self.try_read_body()?;
        response.trailers = std::mem::take(&mut self.trailers);
        Ok(response)
    }

    /// Reads a response up to the end of its head; `read_chunk` or `read_body` go on from there.
    #[track_caller]
    pub fn read_response_headers(&mut self) -> RawResponse {
        let read = self.try_read_response_headers();
        self.wire.expect(read, "response head")
    }

    pub fn try_read_response_headers(&mut self) -> Result<RawResponse, ReadEnd> {
        let deadline = self.wire.deadline();
        let end = loop {
            if let Some(at) = find(&self.wire.unread, b"\r\n\r\n") {
                break at + 4;
            }
            self.wire.fill_message(deadline)?;
        };
        let head = self.wire.unread.split_to(end);
        let response = parse_head(&head);
        self.body = framing(&response);
        Ok(response)
    }

    /// Reads the next part of the body: a chunk where it is chunked, else what has come. `None` is
    /// its end.
    #[track_caller]
    pub fn read_chunk(&mut self) -> Option<Bytes> {
        let read = self.try_read_chunk();
        self.wire.expect(read, "chunk")
    }

    pub fn try_read_chunk(&mut self) -> Result<Option<Bytes>, ReadEnd> {
        self.next_part(self.wire.deadline())
    }

    /// Reads what is left of the body.
    #[track_caller]
    pub fn read_body(&mut self) -> Vec<u8> {
        let read = self.try_read_body();
        self.wire.expect(read, "whole body")
    }

    pub fn try_read_body(&mut self) -> Result<Vec<u8>, ReadEnd> {
        let deadline = self.wire.deadline();
        let mut body = Vec::new();
        while let Some(part) = self.next_part(deadline)? {
            body.extend_from_slice(&part);
        }
        Ok(body)
    }

    /// Reads `n` bytes that are no HTTP, after a 101 say.
    #[track_caller]
    pub fn read_exact(&mut self, n: usize) -> Vec<u8> {
        let read = self.wire.take(n, self.wire.deadline());
        self.wire.expect(read, &format!("{n} bytes")).to_vec()
    }

    /// The peer ends the connection, without a word and without a reset.
    #[track_caller]
    pub fn expect_eof(&mut self) {
        assert_eq!(self.wire.end(), ReadEnd::Eof, "how the connection ended");
    }

    #[track_caller]
    pub fn expect_reset_or_eof(&mut self) {
        let end = self.wire.end();
        assert!(
            matches!(end, ReadEnd::Eof | ReadEnd::NoCloseNotify | ReadEnd::Reset),
            "how the connection ended: {end:?}"
        );
    }

    /// Reads and drops whatever comes until the connection ends; says how.
    pub fn read_to_end(&mut self) -> ReadEnd {
        let deadline = self.wire.deadline();
        loop {
            self.wire.unread.clear();
            if let Err(end) = self.wire.fill(deadline) {
                return end;
            }
        }
    }

    /// Whether the peer's end is still there, as far as is known here right now. Bytes that wait to
    /// be read count as open.
    pub fn is_still_open(&self) -> bool {
        self.wire.is_still_open()
    }

    pub fn is_tls(&self) -> bool {
        self.wire.tls.is_some()
    }

    /// Over TLS with a `close_notify`.
    pub fn shutdown_write(&self) {
        if let Some(tls) = &self.wire.tls {
            let mut tls = lock(tls);
            tls.send_close_notify();
            flush(&mut tls, &self.wire.socket).expect("the peer takes what we send");
        }
        self.wire
            .socket
            .shutdown(Shutdown::Write)
            .expect("the socket is still connected");
    }

    /// The socket: to set options on it, or for its address.
    pub fn socket(&self) -> &Socket {
        &self.wire.socket
    }

    /// The bare socket; converts into a `TcpStream` or `UnixStream`. Bytes read ahead are lost.
    pub fn into_inner(self) -> Socket {
        self.wire.socket
    }

    /// On a plain connection to a TLS server, after what was [sent](Self::send) of this client's
    /// bytes by hand: does the rest of its handshake, and speaks TLS from then on.
    pub fn shake_hands(&mut self, tls: ClientConnection) -> io::Result<()> {
        self.wire.shake_hands(tls)
    }

    /// The bytes that [`send`](Self::send) would send, for [`send_raw`](Self::send_raw).
    #[track_caller]
    pub fn encrypt(&self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        self.wire.encrypt(bytes.as_ref())
    }

    /// Sends bytes below TLS.
    #[track_caller]
    pub fn send_raw(&self, bytes: &[u8]) {
        self.wire.send_raw(bytes);
    }

    /// The application protocol that the server chose.
    pub fn alpn(&self) -> Option<String> {
        let tls = lock(self.wire.tls.as_ref()?);
        tls.alpn_protocol().map(lossless)
    }

    fn next_part(&mut self, deadline: Instant) -> Result<Option<Bytes>, ReadEnd> {
        loop {
            let unread = self.wire.unread.len();
            match self.body {
                Framing::Length(0) => return Ok(None),
                Framing::Length(left) if unread > 0 => {
                    let part = self.wire.unread.split_to(left.min(unread));
                    self.body = Framing::Length(left - part.len());
                    return Ok(Some(part.freeze()));
                }
                Framing::UntilEof if unread > 0 => {
                    return Ok(Some(self.wire.unread.split().freeze()));
                }
                Framing::Chunked => {
                    if let Some(chunk) = self.take_chunk() {
                        return Ok(Some(chunk).filter(|chunk| !chunk.is_empty()));
                    }
                }
                Framing::Length(_) | Framing::UntilEof => {}
            }
            match (self.wire.fill(deadline), self.body) {
                (Ok(()), _) => {}
                (Err(ReadEnd::Eof), Framing::UntilEof) => self.body = Framing::Length(0),
                (Err(ReadEnd::Eof), _) => return Err(ReadEnd::Truncated),
                (Err(end), _) => return Err(end),
            }
        }
    }

    /// The next chunk, if it is here as a whole; an empty one is the last, with its trailers.
    fn take_chunk(&mut self) -> Option<Bytes> {
        let unread = &mut self.wire.unread;
        let line = find(unread, b"\r\n")?;
        let size = std::str::from_utf8(&unread[..line]).expect("chunk sizes are text");
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16)
            .unwrap_or_else(|_| panic!("no chunk size: {:?}", lossy(unread)));
        if size == 0 {
            // The CRLF of the size line may be the first half of the empty line.
            let end = find(&unread[line..], b"\r\n\r\n")?;
            let trailers = unread.split_to(line + end + 4);
            self.trailers = parse_fields(&lossless(&trailers[line..]));
            self.body = Framing::Length(0);
            return Some(Bytes::new());
        }
        if unread.len() < line + 2 + size + 2 {
            return None;
        }
        unread.advance(line + 2);
        let chunk = unread.split_to(size).freeze();
        assert_eq!(&unread.split_to(2)[..], b"\r\n", "what ends a chunk");
        Some(chunk)
    }
}
