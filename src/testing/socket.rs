//! A socket of a probe, which knows what has been written to it, and what has come.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::connection::frames::{Frames, HEADERS};

pub(super) struct Socket {
    stream: TcpStream,
    /// Since [`begin`](Self::begin).
    written: Cell<usize>,
    read: Cell<usize>,
    /// When the first of it was out.
    wrote: Cell<Option<Instant>>,
    /// Nothing has been written, and the end is to be looked for first.
    looks: Cell<bool>,
    streams: Option<RefCell<Streams>>,
}

impl Socket {
    pub(super) fn http1(stream: TcpStream) -> Rc<Self> {
        Self::new(stream, None)
    }

    pub(super) fn http2(stream: TcpStream) -> Rc<Self> {
        Self::new(stream, Some(RefCell::default()))
    }

    fn new(stream: TcpStream, streams: Option<RefCell<Streams>>) -> Rc<Self> {
        let _ = stream.set_nodelay(true); // it may have been reset
        Rc::new(Self {
            stream,
            written: Cell::new(0),
            read: Cell::new(0),
            wrote: Cell::new(None),
            looks: Cell::new(true),
            streams,
        })
    }

    /// The next request begins. Before its first byte goes out, the socket is asked whether it has ended: what this
    /// client could have seen it is to see, though the reactor has not told yet.
    pub(super) fn begin(&self) {
        self.written.set(0);
        self.read.set(0);
        self.wrote.set(None);
        self.looks.set(true);
    }

    pub(super) fn has_written(&self) -> bool {
        self.written.get() > 0
    }

    pub(super) fn has_read(&self) -> bool {
        self.read.get() > 0
    }

    /// When the first byte was out.
    pub(super) fn wrote(&self) -> Option<Instant> {
        self.wrote.get()
    }

    /// Whether the head of that stream has been written, in part at least.
    pub(super) fn has_asked(&self, stream: u32) -> bool {
        let streams = self.streams.as_ref().map(RefCell::borrow);
        streams.is_some_and(|it| it.highest >= stream)
    }

    /// Whether an answer has begun on it.
    pub(super) fn has_answer(&self, stream: u32) -> bool {
        let streams = self.streams.as_ref().map(RefCell::borrow);
        streams.is_some_and(|it| it.answered.contains(&stream))
    }

    /// Says that nothing more will come from this side.
    pub(super) fn shutdown(&self) {
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Write); // it may have been reset
    }

    /// Waits for its end, whatever comes before.
    pub(super) async fn ended(&self) {
        let mut rest = [0; 4096];
        while self.stream.readable().await.is_ok() {
            match self.stream.try_read(&mut rest) {
                Ok(0) => return,
                // It may never be empty, and others have a turn, too.
                Ok(_) => tokio::task::coop::consume_budget().await,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    fn has_ended(&self) -> bool {
        let peeked = SockRef::from(&self.stream).peek(&mut [MaybeUninit::uninit()]);
        !matches!(&peeked, Ok(1..)) && !peeked.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    }
}

/// The socket in the hands of a client; it outlives it, to be watched to its end.
pub(super) struct Wire(pub(super) Rc<Socket>);

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = &self.0;
        loop {
            ready!(socket.stream.poll_read_ready(cx))?;
            match socket.stream.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    if let Some(streams) = &socket.streams {
                        streams.borrow_mut().read(&buf.initialize_unfilled()[..n]);
                    }
                    buf.advance(n);
                    socket.read.set(socket.read.get() + n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let socket = &self.0;
        loop {
            ready!(socket.stream.poll_write_ready(cx))?;
            if socket.looks.get() && socket.has_ended() {
                return Poll::Ready(Err(ErrorKind::NotConnected.into()));
            }
            match socket.stream.try_write(buf) {
                Ok(n) => {
                    socket.looks.set(false);
                    if let Some(streams) = &socket.streams {
                        streams.borrow_mut().wrote(&buf[..n]);
                    }
                    socket.written.set(socket.written.get() + n);
                    if socket.wrote.get().is_none() {
                        socket.wrote.set(Some(Instant::now()));
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.shutdown();
        Poll::Ready(Ok(()))
    }
}

/// Which streams of HTTP/2 have been asked for, and answered.
#[derive(Default)]
struct Streams {
    /// Of the preface (RFC 9113 section 3.4), which is no frame.
    preface: usize,
    sent: Frames,
    got: Frames,
    /// The last that was opened: this side opens them in order.
    highest: u32,
    answered: HashSet<u32>,
}

impl Streams {
    fn wrote(&mut self, bytes: &[u8]) {
        let preface = bytes.len().min(PREFACE - self.preface);
        self.preface += preface;
        let highest = &mut self.highest;
        self.sent.feed(&bytes[preface..], |frame| {
            if frame.kind == HEADERS {
                *highest = frame.stream.max(*highest);
            }
        });
    }

    fn read(&mut self, bytes: &[u8]) {
        let answered = &mut self.answered;
        self.got.feed(bytes, |frame| {
            if frame.kind == HEADERS {
                answered.insert(frame.stream);
            }
        });
    }
}

const PREFACE: usize = 24;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::net::TcpListener;

    use super::*;

    /// Between two requests the other side has closed; the reactor, which would tell, has had no turn since.
    #[tokio::test]
    async fn what_can_be_seen_of_an_end_is_seen_before_the_first_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (other, _) = listener.accept().await.expect("one has connected");
        let socket = Socket::http1(stream);
        let mut wire = Wire(Rc::clone(&socket));
        let mut cx = Context::from_waker(Waker::noop());

        socket.begin();
        let written = Pin::new(&mut wire).poll_write(&mut cx, b"one");
        assert!(matches!(written, Poll::Ready(Ok(3))), "{written:?}");
        assert!(socket.has_written() && !socket.has_read());

        socket.begin();
        // It has been read, so that this is no reset.
        other.readable().await.expect("it is open");
        other.try_read(&mut [0; 8]).expect("there is something");
        drop(other);
        let written = Pin::new(&mut wire).poll_write(&mut cx, b"two");
        assert!(matches!(written, Poll::Ready(Err(_))), "{written:?}");
        assert!(!socket.has_written() && socket.wrote().is_none());
    }

    #[test]
    fn the_preface_is_no_frame() {
        let mut streams = Streams::default();
        let head = [0, 0, 1, HEADERS, 5, 0, 0, 0, 3, 0x82];
        let bytes = [&[b'x'; PREFACE][..], &head].concat();
        for piece in bytes.chunks(7) {
            streams.wrote(piece);
        }
        assert_eq!(streams.highest, 3);
        streams.read(&head[..9]);
        assert!(streams.answered.contains(&3));
    }
}
