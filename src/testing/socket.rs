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
    /// What the read side is to end by.
    failed: Cell<Option<io::Error>>,
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
            failed: Cell::new(None),
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
        self.failed.set(None);
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
                    if n == 0 {
                        if let Some(error) = socket.failed.take() {
                            return Poll::Ready(Err(error));
                        }
                    }
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
                // What came before its end, as a GOAWAY that refuses this, may lie unread, and h2 reads nothing behind a
                // write that fails. So the read side tells, when it comes to the end.
                Err(error) if !socket.looks.get() && is_end(&error) => {
                    let first = socket.failed.take();
                    socket.failed.set(Some(first.unwrap_or(error)));
                    return Poll::Ready(Ok(buf.len()));
                }
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

/// Whether the connection has ended, so that who reads will learn of it.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
    )
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
    use std::future;
    use std::io::{Read, Write};
    use std::pin::pin;
    use std::task::Waker;

    use bytes::Bytes;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::super::http2::is_refused;
    use super::super::load::either;
    use super::*;

    /// And the other side.
    async fn pair(socket: fn(TcpStream) -> Rc<Socket>) -> (Rc<Socket>, Wire, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (other, _) = listener.accept().await.expect("one has connected");
        let socket = socket(stream);
        let wire = Wire(Rc::clone(&socket));
        (socket, wire, other.into_std().expect("it can be taken"))
    }

    /// Between two requests the other side has closed; the reactor, which would tell, has had no turn since.
    #[tokio::test]
    async fn what_can_be_seen_of_an_end_is_seen_before_the_first_byte() {
        let (socket, mut wire, mut other) = pair(Socket::http1).await;
        let mut cx = Context::from_waker(Waker::noop());

        socket.begin();
        let written = Pin::new(&mut wire).poll_write(&mut cx, b"one");
        assert!(matches!(written, Poll::Ready(Ok(3))), "{written:?}");
        assert!(socket.has_written() && !socket.has_read());

        socket.begin();
        // It has been read, so that this is no reset.
        other.read_exact(&mut [0; 3]).expect("there is something");
        drop(other);
        let written = Pin::new(&mut wire).poll_write(&mut cx, b"two");
        assert!(matches!(written, Poll::Ready(Err(_))), "{written:?}");
        assert!(!socket.has_written() && socket.wrote().is_none());
    }

    /// The other side has refused what comes by a GOAWAY, and closed. That lies unread, as the reactor has had no turn
    /// since: the first write succeeds, draws a reset, and the second fails.
    #[tokio::test]
    async fn a_goaway_that_lies_unread_is_read_though_a_write_fails() {
        let (socket, wire, mut other) = pair(Socket::http2).await;
        let (sender, driver) = h2::client::handshake(wire)
            .await
            .expect("it waits for nothing");
        let mut sender = sender.ready().await.expect("it is open");
        let mut driver = Box::pin(driver);
        let mut cx = Context::from_waker(Waker::noop());

        let (answer, _) = sender
            .send_request(http::Request::default(), true)
            .expect("it is open");
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let status_200 = [0, 0, 1, HEADERS, 5, 0, 0, 0, 1, 0x88];
        other
            .write_all(&[&settings[..], &status_200].concat())
            .expect("it is open");
        let answered = either(answer, driver.as_mut()).await;
        answered.expect("it has not ended").expect("an answer");
        assert!(socket.has_answer(1));
        // The reactor's readiness is used up.
        assert!(driver.as_mut().poll(&mut cx).is_pending());

        // It has been read, so that this is no reset.
        let read = other.read(&mut [0; 4096]).expect("there is something");
        assert!(read < 4096);
        let go_away = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        other.write_all(&go_away).expect("it is open");
        drop(other);
        socket.begin();
        let post = http::Request::post("/").body(()).expect("a request");
        let (answer, mut body) = sender.send_request(post, false).expect("it is open");
        body.send_data(Bytes::from(vec![b'x'; 8192]), true)
            .expect("it is open");
        let mut answer = pin!(answer);
        // Once it has ended, it is dropped.
        let mut driver = Some(driver);
        let refused = future::poll_fn(|cx| {
            driver.take_if(|it| it.as_mut().poll(cx).is_ready());
            answer.as_mut().poll(cx)
        });
        let error = refused.await.expect_err("nobody answers");
        assert!(socket.has_asked(3) && !socket.has_answer(3));
        assert!(is_refused(&error), "{error:?}");
    }

    /// A request whose write fails halfway has been written in part, and its connection tells why.
    #[tokio::test]
    async fn a_write_that_fails_halfway_is_told_by_the_read_side() {
        let (socket, mut wire, mut other) = pair(Socket::http1).await;
        let mut cx = Context::from_waker(Waker::noop());
        socket.begin();
        let written = Pin::new(&mut wire).poll_write(&mut cx, b"one");
        assert!(matches!(written, Poll::Ready(Ok(3))), "{written:?}");
        let wrote = socket.wrote();
        // One of them lies unread, so that this is a reset.
        other.read_exact(&mut [0; 2]).expect("there is something");
        other.write_all(b"an answer").expect("it is open");
        drop(other);
        for _ in 0..2 {
            let written = Pin::new(&mut wire).poll_write(&mut cx, b"two");
            assert!(matches!(written, Poll::Ready(Ok(3))), "{written:?}");
        }
        assert_eq!((socket.written.get(), socket.wrote()), (3, wrote));
        let mut rest = Vec::new();
        let error = wire.read_to_end(&mut rest).await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(rest, b"an answer");
        // Who comes later has written nothing.
        socket.begin();
        let written = Pin::new(&mut wire).poll_write(&mut cx, b"two");
        assert!(matches!(written, Poll::Ready(Err(_))), "{written:?}");
        assert!(!socket.has_written());
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
