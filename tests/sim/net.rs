//! A network of one process: listeners, and connections with what TCP has that matters here: both directions end
//! on their own, a reset destroys what the other side has not read yet, room is bounded, unread bytes can be
//! peeked at. It has no latency: what is sent is there.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::now;
use crate::connection::Peek;
use crate::serve::Listener;

/// One direction.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// No more will come.
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// How much was written in all, after each write, and when.
    written: Vec<(usize, u64)>,
}

impl Pipe {
    fn put(&mut self, bytes: &[u8], room: usize) -> usize {
        let n = bytes.len().min(room.saturating_sub(self.bytes.len()));
        self.bytes.extend(&bytes[..n]);
        if n > 0 {
            let before = self.written.last().map_or(0, |(n, _)| *n);
            self.written.push((before + n, now()));
        }
        n
    }
}

struct Wire {
    /// Whose it is.
    who: usize,
    up: Pipe,
    down: Pipe,
    /// How much fits either way.
    room: usize,
    /// The server's end is gone, or this side of it: since when.
    closed: Option<u64>,
    down_ended: Option<u64>,
    /// A close of the server's is to reset.
    resets: bool,
    reset_to_client: bool,
    reset_to_server: bool,
    fault: Fault,
}

/// In what the server's end of a connection panics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    /// After so many of them.
    Read(u64),
    Write(u64),
    Drop,
}

impl Fault {
    /// Whether this one is it.
    fn is_due(fault: &mut u64) -> bool {
        let due = *fault == 0;
        *fault = fault.saturating_sub(1);
        due
    }
}

type Shared = Arc<Mutex<Wire>>;

/// Wakes without the lock.
fn wake(wakers: impl IntoIterator<Item = Option<Waker>>) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}

// ===== the server's end =====

/// With what it has of the server's process, once that has accepted it.
pub(crate) struct SimStream(Shared, Option<Descriptor>);

impl SimStream {
    pub(crate) fn peek(&self) -> Peek {
        let mut wire = self.0.lock();
        if std::mem::take(&mut wire.reset_to_server) {
            wire.up.bytes.clear();
            wire.up.ended = true;
            return Peek::Gone;
        }
        match (wire.up.bytes.is_empty(), wire.up.ended) {
            (false, _) => Peek::Data,
            (true, true) => Peek::Gone,
            (true, false) => Peek::Nothing,
        }
    }

    pub(crate) fn shut_down(&self, how: Shutdown) {
        let mut wire = self.0.lock();
        wire.end_down();
        let mut woken = [wire.down.writer.take(), wire.down.reader.take(), None];
        if how != Shutdown::Write {
            wire.up.ended = true;
            woken[2] = wire.up.reader.take();
        }
        drop(wire);
        wake(woken);
    }

    pub(crate) fn reset_at_close(&self) {
        self.0.lock().resets = true;
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> usize {
        let mut wire = self.0.lock();
        if wire.down.ended || wire.reset_to_server {
            return 0;
        }
        let room = wire.room;
        let n = wire.down.put(bytes, room);
        let reader = wire.down.reader.take();
        drop(wire);
        wake([reader]);
        n
    }

    /// Whether the other side has ended.
    pub(crate) fn discard(&self) -> bool {
        let mut wire = self.0.lock();
        wire.up.bytes.clear();
        wire.up.ended || wire.reset_to_server
    }
}

impl Wire {
    fn end_down(&mut self) {
        self.down.ended = true;
        self.down_ended.get_or_insert_with(now);
    }

    /// What the client has not read is destroyed.
    fn reset_client(&mut self) {
        self.down.bytes.clear();
        self.reset_to_client = true;
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock();
        if let Fault::Read(n) = &mut wire.fault {
            assert!(!Fault::is_due(n), "on purpose");
        }
        if std::mem::take(&mut wire.reset_to_server) {
            wire.up.bytes.clear();
            wire.up.ended = true;
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let n = wire.up.bytes.len().min(buf.remaining());
        if n > 0 {
            let (front, back) = wire.up.bytes.as_slices();
            let first = n.min(front.len());
            buf.put_slice(&front[..first]);
            buf.put_slice(&back[..n - first]);
            wire.up.bytes.drain(..n);
            let writer = wire.up.writer.take();
            drop(wire);
            wake([writer]);
            return Poll::Ready(Ok(()));
        }
        if wire.up.ended {
            return Poll::Ready(Ok(()));
        }
        wire.up.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.0.lock();
        if let Fault::Write(n) = &mut wire.fault {
            assert!(!Fault::is_due(n), "on purpose");
        }
        if wire.down.ended || wire.reset_to_server {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = wire.room;
        let n = wire.down.put(bytes, room);
        if n == 0 && !bytes.is_empty() {
            wire.down.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let reader = wire.down.reader.take();
        drop(wire);
        wake([reader]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock();
        wire.end_down();
        let reader = wire.down.reader.take();
        drop(wire);
        wake([reader]);
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let mut wire = self.0.lock();
        wire.closed.get_or_insert_with(now);
        wire.end_down();
        if wire.resets || !wire.up.bytes.is_empty() {
            wire.reset_client();
        }
        let woken = [wire.down.reader.take(), wire.up.writer.take()];
        let panics = wire.fault == Fault::Drop && !std::thread::panicking();
        drop(wire);
        wake(woken);
        assert!(!panics, "on purpose");
    }
}

// ===== the client's end =====

pub(crate) struct Client(Shared);

/// What a client's read gives.
#[derive(Debug, PartialEq)]
pub(crate) enum Got {
    Bytes(Vec<u8>),
    Nothing,
    End,
    Reset,
}

impl Client {
    /// How much of it went.
    pub(crate) fn send(&self, bytes: &[u8]) -> usize {
        let mut wire = self.0.lock();
        if wire.up.ended {
            return bytes.len();
        }
        if wire.closed.is_some() {
            wire.reset_client();
            return bytes.len();
        }
        let room = wire.room;
        let n = wire.up.put(bytes, room);
        let reader = wire.up.reader.take();
        drop(wire);
        wake([reader]);
        n
    }

    pub(crate) fn read(&self, most: usize) -> Got {
        let mut wire = self.0.lock();
        if wire.reset_to_client {
            return Got::Reset;
        }
        let n = wire.down.bytes.len().min(most);
        if n > 0 {
            let bytes = wire.down.bytes.drain(..n).collect();
            let writer = wire.down.writer.take();
            drop(wire);
            wake([writer]);
            return Got::Bytes(bytes);
        }
        if wire.down.ended && wire.down.bytes.is_empty() {
            return Got::End;
        }
        Got::Nothing
    }

    /// It will send no more.
    pub(crate) fn finish(&self) {
        let mut wire = self.0.lock();
        wire.up.ended = true;
        let reader = wire.up.reader.take();
        drop(wire);
        wake([reader]);
    }

    pub(crate) fn reset(&self) {
        let mut wire = self.0.lock();
        wire.reset_to_server = true;
        let woken = [wire.up.reader.take(), wire.down.writer.take()];
        drop(wire);
        wake(woken);
    }

    /// When the server ended its side.
    pub(crate) fn ended_at(&self) -> Option<u64> {
        self.0.lock().down_ended
    }

    /// When the server let go of its end.
    pub(crate) fn closed_at(&self) -> Option<u64> {
        self.0.lock().closed
    }

    pub(crate) fn last_written(&self) -> u64 {
        self.0.lock().down.written.last().map_or(0, |(_, at)| *at)
    }

    /// When so much had been written by the server.
    pub(crate) fn written_at(&self, offset: usize) -> u64 {
        let wire = self.0.lock();
        let at = wire.down.written.iter().find(|(n, _)| *n > offset);
        at.map_or(u64::MAX, |(_, at)| *at)
    }
}

// For a client that is a task.

impl AsyncRead for Client {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.read(buf.remaining()) {
            Got::Bytes(bytes) => buf.put_slice(&bytes),
            Got::End => {}
            Got::Reset => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Got::Nothing => {
                self.0.lock().down.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = self.send(bytes);
        if n == 0 && !bytes.is_empty() {
            self.0.lock().up.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.finish();
    }
}

// ===== a listener =====

/// How many more the server's process may have.
#[derive(Clone)]
pub(crate) struct Descriptors(Arc<Mutex<u64>>);

pub(crate) struct Descriptor(Descriptors);

impl Descriptors {
    pub(crate) fn new(n: u64) -> Self {
        Self(Arc::new(Mutex::new(n)))
    }

    pub(crate) fn take(&self) -> Option<Descriptor> {
        let mut left = self.0.lock();
        *left = left.checked_sub(1)?;
        Some(Descriptor(self.clone()))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        *self.0.0.lock() += 1;
    }
}

/// None left.
const EMFILE: i32 = 24;

#[derive(Default)]
struct Port {
    queue: VecDeque<SimStream>,
    /// Everything that was connected here.
    all: Vec<Shared>,
    accepter: Option<Waker>,
    closed: bool,
    /// So many errors are to come of accepting, which are the machine's or a client's.
    errors: u64,
    of_machine: bool,
    descriptors: Option<Descriptors>,
}

impl Port {
    /// As Linux does it, a descriptor is wanted before it is looked whether anybody is there.
    fn accept(&mut self) -> io::Result<Option<SimStream>> {
        let descriptor = match &self.descriptors {
            Some(all) => {
                let one = all.take();
                Some(one.ok_or_else(|| io::Error::from_raw_os_error(EMFILE))?)
            }
            None => None,
        };
        Ok(self.queue.pop_front().map(|mut stream| {
            stream.1 = descriptor;
            stream
        }))
    }

    /// Before a connection.
    fn error(&mut self, of_machine: bool) -> Option<io::Error> {
        if self.errors == 0 || self.queue.is_empty() {
            return None;
        }
        self.errors -= 1;
        Some(if of_machine && self.of_machine {
            io::Error::from_raw_os_error(EMFILE)
        } else {
            io::ErrorKind::ConnectionAborted.into()
        })
    }
}

pub(crate) struct SimListener(Arc<Mutex<Port>>);

/// Whom clients connect by.
#[derive(Clone)]
pub(crate) struct Dial(Arc<Mutex<Port>>);

pub(crate) fn listen(errors: u64, of_machine: bool) -> (SimListener, Dial) {
    let port = Arc::new(Mutex::new(Port {
        errors,
        of_machine,
        ..Port::default()
    }));
    (SimListener(Arc::clone(&port)), Dial(port))
}

impl SimListener {
    /// By a process that has no more than these.
    pub(crate) fn with(self, descriptors: Descriptors) -> Self {
        self.0.lock().descriptors = Some(descriptors);
        self
    }
}

impl Dial {
    /// `None`: refused.
    pub(crate) fn connect(&self, who: usize, room: usize) -> Option<Client> {
        self.connect_to(who, room, Fault::None)
    }

    /// The same, to an end that panics.
    pub(crate) fn connect_to(&self, who: usize, room: usize, fault: Fault) -> Option<Client> {
        let mut port = self.0.lock();
        if port.closed {
            return None;
        }
        let wire = Arc::new(Mutex::new(Wire {
            who,
            up: Pipe::default(),
            down: Pipe::default(),
            room,
            closed: None,
            down_ended: None,
            resets: false,
            reset_to_client: false,
            reset_to_server: false,
            fault,
        }));
        port.all.push(Arc::clone(&wire));
        port.queue.push_back(SimStream(Arc::clone(&wire), None));
        let accepter = port.accepter.take();
        drop(port);
        wake([accepter]);
        Some(Client(wire))
    }
}

impl Dial {
    /// Nobody listens any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().closed
    }

    /// When each connection's socket was closed, and whose it was.
    pub(crate) fn closed(&self) -> Vec<(usize, Option<u64>)> {
        let port = self.0.lock();
        let closed = port.all.iter().map(|wire| {
            let wire = wire.lock();
            (wire.who, wire.closed)
        });
        closed.collect()
    }
}

impl Listener for SimListener {
    type Io = SimStream;
    type Addr = ();

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(SimStream, ())>> {
        let mut port = self.0.lock();
        if let Some(error) = port.error(true) {
            return Poll::Ready(Err(error));
        }
        // It is not asked before somebody is there.
        if !port.queue.is_empty() {
            if let Some(stream) = port.accept()? {
                return Poll::Ready(Ok((stream, ())));
            }
        }
        port.accepter = Some(cx.waker().clone());
        Poll::Pending
    }

    fn accept_queued(&mut self) -> io::Result<Option<(SimStream, ())>> {
        let mut port = self.0.lock();
        if let Some(error) = port.error(false) {
            return Err(error);
        }
        Ok(port.accept()?.map(|stream| (stream, ())))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut port = self.0.lock();
        port.closed = true;
        let queue = std::mem::take(&mut port.queue);
        drop(port);
        for stream in queue {
            stream.reset_at_close();
        }
    }
}
