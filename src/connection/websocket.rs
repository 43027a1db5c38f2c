//! A WebSocket: where its frames end (RFC 6455 section 5.2), and the Close frame that is put in there when the
//! connection is to end. Without a clock: whoever calls says whether that is so, and brings the IO.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use tokio::io::AsyncWrite;
use tokio::task::coop;

use crate::clock::Moment;

/// One whose end is announced by us. From the end of the 101's head on it sees all that passes.
pub(super) struct WebSocket {
    /// What the handler writes.
    written: Frames,
    /// What the handler reads; nothing is known of that if some was read before.
    read: Option<Frames>,
    close: [u8; 4],
    goodbye: Goodbye,
    /// Who has to write again, or to go on saying it.
    writer: Option<Waker>,
    /// Who has to read again, should it be the writer's that says it: it may be over by that.
    reader: Option<Waker>,
}

/// How far ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goodbye {
    Unsaid,
    /// So much of it is written. From here on nothing of the handler's goes out.
    Begun(usize),
    /// All of it, which is yet to be flushed.
    Written,
    /// Then, or later if the client has sent something since.
    Said(Moment),
}

impl WebSocket {
    /// Says goodbye with that code. `read_ahead`: the client has sent something behind its handshake.
    pub(super) fn new(code: u16, read_ahead: bool) -> Self {
        let [high, low] = code.to_be_bytes();
        Self {
            written: Frames::default(),
            read: (!read_ahead).then(Frames::default),
            // Not masked, as all that a server sends.
            close: [FIN | CLOSE, 2, high, low],
            goodbye: Goodbye::Unsaid,
            writer: None,
            reader: None,
        }
    }

    /// Both sides have said goodbye, and the client waits for this one to close (RFC 6455 section 7.1.1):
    /// a handler that takes no notice of the frame it has read is given an end-of-file.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.goodbye, Goodbye::Said(_)) && self.has_answer()
    }

    /// Ours is said, and that of the client was not read.
    pub(super) fn waits_for_answer(&self) -> bool {
        matches!(self.goodbye, Goodbye::Written | Goodbye::Said(_)) && !self.has_answer()
    }

    /// That of the client was read.
    pub(super) fn has_answer(&self) -> bool {
        self.read.is_some_and(Frames::are_over)
    }

    /// Since when what the handler writes is dropped, and the client has sent nothing.
    pub(super) fn over_since(&self) -> Option<Moment> {
        match self.goodbye {
            Goodbye::Said(since) => Some(since),
            _ => None,
        }
    }

    /// The client is not silent.
    pub(super) fn is_heard(&mut self, now: Moment) {
        if let Goodbye::Said(since) = &mut self.goodbye {
            *since = now;
        }
    }

    pub(super) fn was_read(&mut self, bytes: &[u8], told: Option<Moment>) {
        if let Some(now) = told.filter(|_| !bytes.is_empty()) {
            self.is_heard(now);
        }
        if let Some(frames) = &mut self.read {
            frames.feed(bytes);
        }
    }

    /// The handler writes. `told`: it is then, and the connection is to end, so that no frame may begin.
    pub(super) fn poll_write<Io: AsyncWrite>(
        &mut self,
        told: Option<Moment>,
        mut io: Pin<&mut Io>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.poll_goodbye(told, io.as_mut(), cx)?.is_pending() {
            self.has_to_wait(cx);
            return Poll::Pending;
        }
        if let Goodbye::Said(_) = self.goodbye {
            // It must not fail before it has read the client's answer, nor keep its thread to itself.
            ready!(coop::poll_proceed(cx)).made_progress();
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let first = bufs.iter().find(|buf| !buf.is_empty());
        let rest = first.filter(|_| told.is_some() && !self.written.has_close);
        // The rest of the frame that is under way, and no more.
        let rest = rest.map(|buf| [IoSlice::new(&buf[..self.written.rest(buf)])]);
        let bufs = rest.as_ref().map_or(bufs, |rest| &rest[..]);
        let Poll::Ready(written) = io.as_mut().poll_write_vectored(cx, bufs) else {
            self.has_to_wait(cx);
            return Poll::Pending;
        };
        let mut n = *written.as_ref().unwrap_or(&0);
        for buf in bufs {
            let part = &buf[..buf.len().min(n)];
            self.written.feed(part);
            n -= part.len();
        }
        // It may have nothing more to write. An error is for who does.
        let _ = self.poll_goodbye(told, io, cx);
        Poll::Ready(written)
    }

    /// What the handler has written is flushed, and so is the goodbye if this is ready.
    pub(super) fn poll_flushed<Io: AsyncWrite>(
        &mut self,
        told: Option<Moment>,
        io: Pin<&mut Io>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let said = self.poll_goodbye(told, io, cx);
        if said.is_pending() {
            self.has_to_wait(cx);
        }
        said
    }

    /// Says goodbye, once it is to be said and no frame is under way. Ready if there is nothing to say, or no
    /// more.
    pub(super) fn poll_goodbye<Io: AsyncWrite>(
        &mut self,
        told: Option<Moment>,
        io: Pin<&mut Io>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        match self.goodbye {
            // One Close frame is all there may be (section 5.5.1).
            Goodbye::Unsaid
                if told.is_some() && self.written.is_between() && !self.written.has_close =>
            {
                self.goodbye = Goodbye::Begun(0);
            }
            Goodbye::Unsaid | Goodbye::Said(_) => return Poll::Ready(Ok(())),
            Goodbye::Begun(_) | Goodbye::Written => {}
        }
        let waker = self.everybody(cx);
        let said = self.say(io, &mut Context::from_waker(&waker));
        match said {
            Poll::Ready(Ok(())) => {
                // It may have been shut down meanwhile.
                self.goodbye = Goodbye::Said(told.unwrap_or(Moment::START));
                let waiting = [self.writer.take(), self.reader.take()];
                waiting.into_iter().flatten().for_each(Waker::wake);
            }
            // It is for who writes.
            Poll::Ready(Err(_)) => self.writer.take().into_iter().for_each(Waker::wake),
            Poll::Pending => {}
        }
        said
    }

    fn say<Io: AsyncWrite>(
        &mut self,
        mut io: Pin<&mut Io>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Goodbye::Begun(n) = self.goodbye {
            match ready!(io.as_mut().poll_write(cx, &self.close[n..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more if n + more < self.close.len() => self.goodbye = Goodbye::Begun(n + more),
                _ => self.goodbye = Goodbye::Written,
            }
        }
        io.poll_flush(cx)
    }

    /// Whoever waits: the IO wakes the one that has asked last, and that may be one that looks no more.
    fn everybody(&self, cx: &Context<'_>) -> Waker {
        let others = [&self.writer, &self.reader].into_iter().flatten();
        let others = others.filter(|it| !it.will_wake(cx.waker()));
        let mut all: Vec<_> = others.cloned().collect();
        if all.is_empty() {
            return cx.waker().clone();
        }
        all.push(cx.waker().clone());
        Waker::from(Arc::new(All(all)))
    }

    /// Who writes or flushes has been told to.
    pub(super) fn has_to_wait(&mut self, cx: &Context<'_>) {
        self.writer = Some(cx.waker().clone());
    }

    /// There was nothing to read.
    pub(super) fn waits_for_more(&mut self, cx: &Context<'_>) {
        if !matches!(self.goodbye, Goodbye::Said(_)) {
            self.reader = Some(cx.waker().clone());
        }
    }
}

struct All(Vec<Waker>);

impl Wake for All {
    fn wake(self: Arc<Self>) {
        self.0.iter().for_each(Waker::wake_by_ref);
    }
}

const FIN: u8 = 0x80;
const OPCODE: u8 = 0x0f;
const CLOSE: u8 = 8;
const MASK: u8 = 0x80;

// ===== one direction =====

/// Follows frames, in whatever pieces they come. It judges nothing: that is up to the two ends.
#[derive(Clone, Copy, Debug, Default)]
struct Frames {
    /// What there is of a header.
    header: [u8; 14],
    n: usize,
    /// What is to come of a payload.
    payload: u64,
    /// A Close frame has begun.
    has_close: bool,
}

impl Frames {
    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = self.next(bytes);
            bytes = &bytes[n..];
        }
    }

    /// How many of these belong to the frame that is under way, or that begins here.
    fn rest(mut self, bytes: &[u8]) -> usize {
        self.next(bytes)
    }

    /// The last frame has ended, and none begun.
    fn is_between(&self) -> bool {
        self.n == 0 && self.payload == 0
    }

    /// A Close frame has passed.
    fn are_over(self) -> bool {
        self.has_close && self.is_between()
    }

    /// Follows these to the end of one frame; how many that were.
    fn next(&mut self, bytes: &[u8]) -> usize {
        let mut n = 0;
        while self.payload == 0 {
            let Some(&byte) = bytes.get(n) else { return n };
            n += 1;
            self.header[self.n] = byte;
            self.n += 1;
            let [first, second, ..] = self.header;
            let long = match second & !MASK {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            let mask = if second & MASK == 0 { 0 } else { 4 };
            if self.n < 2 + long + mask {
                // The second byte, should it be the one that is missing, is 0.
                continue;
            }
            let length = self.header[2..2 + long].iter();
            self.payload = match long {
                0 => u64::from(second & !MASK),
                _ => length.fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
            };
            self.has_close |= first & OPCODE == CLOSE;
            (self.header, self.n) = ([0; 14], 0);
            if self.payload == 0 {
                return n;
            }
        }
        let left = (bytes.len() - n) as u64;
        let part = self.payload.min(left);
        self.payload -= part;
        n + usize::try_from(part).expect("not more than there are bytes")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::io::{AsyncRead, DuplexStream, ReadBuf};

    use super::*;

    const TOLD: Option<Moment> = Some(Moment::START);

    fn frame(first: u8, mask: bool, length: usize) -> Vec<u8> {
        let mut frame = vec![first];
        let mask_bit = if mask { MASK } else { 0 };
        match length {
            0..126 => frame.push(mask_bit | u8::try_from(length).expect("small")),
            126..65536 => {
                frame.push(mask_bit + 126);
                frame.extend(u16::try_from(length).expect("small").to_be_bytes());
            }
            _ => {
                frame.push(mask_bit + 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        // All of it reads as the header of a Close frame.
        frame.extend(vec![FIN | CLOSE; length + if mask { 4 } else { 0 }]);
        frame
    }

    fn some() -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for mask in [false, true] {
            for length in [0, 1, 125, 126, 127, 300] {
                // Binary, a fragment of it, the rest, compressed, a ping.
                for first in [0x82, 0x02, 0x80, 0xc2, 0x89] {
                    frames.push(frame(first, mask, length));
                }
            }
        }
        frames
    }

    #[test]
    fn ends_are_found_at_every_cut() {
        for frame in some() {
            for next in [frame.clone(), frame_of_length_two()] {
                let both = [&frame[..], &next].concat();
                for cut in 0..both.len() {
                    let mut frames = Frames::default();
                    frames.feed(&both[..cut]);
                    let between = cut == 0 || cut == frame.len();
                    assert_eq!(frames.is_between(), between, "{cut} of {frame:?}");
                    let rest = if cut < frame.len() {
                        frame.len()
                    } else {
                        both.len()
                    } - cut;
                    assert_eq!(frames.rest(&both[cut..]), rest, "{cut} of {frame:?}");
                    frames.feed(&both[cut..]);
                    assert!(
                        frames.is_between() && !frames.has_close,
                        "{cut} of {frame:?}"
                    );
                }
            }
        }
    }

    fn frame_of_length_two() -> Vec<u8> {
        frame(0x81, false, 2)
    }

    #[test]
    fn bytes_one_by_one_make_the_same() {
        let mut frames = Frames::default();
        let mut ends = 0;
        for byte in some().concat() {
            frames.feed(&[byte]);
            ends += usize::from(frames.is_between());
        }
        assert_eq!(ends, some().len());
        frames.feed(&frame(0x82, true, 70_000)[..70_000]);
        assert!(!frames.is_between());
    }

    #[test]
    fn a_close_is_over_at_its_end() {
        for mask in [false, true] {
            let close = frame(FIN | CLOSE, mask, 2);
            for cut in 0..close.len() {
                let mut frames = Frames::default();
                frames.feed(&close[..cut]);
                assert!(!frames.are_over(), "{cut}");
                frames.feed(&close[cut..]);
                assert!(frames.are_over(), "{cut}");
            }
        }
    }

    // ----- both tasks of a handler, polled by hand -----

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// A task, and how often it was woken.
    fn task() -> (Waker, Arc<Wakes>) {
        let wakes = Arc::new(Wakes::default());
        (Waker::from(Arc::clone(&wakes)), wakes)
    }

    /// All that lies there.
    fn taken(client: &mut DuplexStream) -> Vec<u8> {
        let (mut all, mut part) = (Vec::new(), [0; 64]);
        loop {
            let mut part = ReadBuf::new(&mut part);
            let cx = &mut Context::from_waker(Waker::noop());
            if Pin::new(&mut *client).poll_read(cx, &mut part).is_pending() {
                return all;
            }
            all.extend(part.filled());
        }
    }

    #[test]
    fn a_goodbye_follows_a_write_that_nothing_follows() {
        let frame = frame(0x82, false, 10);
        for cut in 1..frame.len() {
            let (mut io, mut client) = tokio::io::duplex(64);
            let mut websocket = WebSocket::new(1012, false);
            let cx = &mut Context::from_waker(Waker::noop());
            for (told, part) in [(None, &frame[..cut]), (TOLD, &frame[cut..])] {
                let bufs = [IoSlice::new(part)];
                let written = websocket.poll_write(told, Pin::new(&mut io), cx, &bufs);
                assert!(matches!(written, Poll::Ready(Ok(n)) if n == part.len()));
            }
            let expected = [&frame[..], &[0x88, 2, 0x03, 0xf4]].concat();
            assert_eq!(taken(&mut client), expected, "{cut}");
        }
    }

    /// Of the tasks that wait for room the socket knows who has asked last. Who gets to finish the goodbye may be the
    /// one that looks no more: a writer hung behind a reader that had said part of it and left, also beyond the deadline.
    #[test]
    fn room_for_the_goodbye_wakes_the_writer_and_the_reader() {
        for last in ["the writer", "the reader"] {
            let (mut io, mut client) = tokio::io::duplex(1);
            let mut websocket = WebSocket::new(1012, false);
            let [(writer, writers), (reader, readers)] = [task(), task()];
            let mut order = ["the reader", "the writer", "the reader"].to_vec();
            order.retain(|it| *it != last);
            order.push(last);
            for who in order {
                if who == "the writer" {
                    let cx = &mut Context::from_waker(&writer);
                    let bufs = [IoSlice::new(&[0x82, 0])];
                    let written = websocket.poll_write(TOLD, Pin::new(&mut io), cx, &bufs);
                    assert!(written.is_pending());
                } else {
                    let cx = &mut Context::from_waker(&reader);
                    websocket.waits_for_more(cx);
                    let said = websocket.poll_goodbye(TOLD, Pin::new(&mut io), cx);
                    assert!(said.is_pending());
                }
            }
            assert_eq!(taken(&mut client), [0x88]);
            assert!(writers.0.load(SeqCst) > 0, "{last} came last");
            assert!(readers.0.load(SeqCst) > 0, "{last} came last");
        }
    }

    #[test]
    fn a_writer_is_woken_by_a_reader_whose_goodbye_fails() {
        let (mut io, client) = tokio::io::duplex(1);
        let mut websocket = WebSocket::new(1012, false);
        let [(writer, wakes), (reader, _)] = [task(), task()];
        let cx = &mut Context::from_waker(&writer);
        websocket.has_to_wait(cx);
        drop(client);
        let cx = &mut Context::from_waker(&reader);
        let said = websocket.poll_goodbye(TOLD, Pin::new(&mut io), cx);
        assert!(matches!(said, Poll::Ready(Err(_))));
        assert_eq!(wakes.0.load(SeqCst), 1);
    }

    /// The socket knows one task that waits for room, and that is the reader's.
    #[test]
    fn a_writer_is_woken_by_the_reader_who_has_said_goodbye() {
        for room in 1..4 {
            let (mut io, mut client) = tokio::io::duplex(room);
            let mut websocket = WebSocket::new(1012, false);
            let (writer, wakes) = task();
            let cx = &mut Context::from_waker(&writer);
            let bufs = [IoSlice::new(&[0x82, 0])];
            let written = websocket.poll_write(TOLD, Pin::new(&mut io), cx, &bufs);
            assert!(written.is_pending(), "{room}");
            let (reader, _) = task();
            let cx = &mut Context::from_waker(&reader);
            let mut sent = Vec::new();
            while websocket
                .poll_goodbye(TOLD, Pin::new(&mut io), cx)
                .is_pending()
            {
                sent.extend(taken(&mut client));
            }
            sent.extend(taken(&mut client));
            assert_eq!(sent, [0x88, 2, 0x03, 0xf4], "{room}");
            assert!(wakes.0.load(SeqCst) > 0, "{room}");
        }
    }

    #[test]
    fn a_reader_is_woken_by_the_writer_who_has_said_the_second_goodbye() {
        let frame = frame(0x82, false, 10);
        let (mut io, _client) = tokio::io::duplex(64);
        let mut websocket = WebSocket::new(1012, false);
        let cx = &mut Context::from_waker(Waker::noop());
        let bufs = [IoSlice::new(&frame[..5])];
        let written = websocket.poll_write(None, Pin::new(&mut io), cx, &bufs);
        assert!(written.is_ready());
        websocket.was_read(&self::frame(FIN | CLOSE, true, 2), None);
        let (reader, wakes) = task();
        websocket.waits_for_more(&Context::from_waker(&reader));
        assert!(!websocket.is_over());
        let bufs = [IoSlice::new(&frame[5..])];
        let written = websocket.poll_write(TOLD, Pin::new(&mut io), cx, &bufs);
        assert!(written.is_ready() && websocket.is_over());
        assert_eq!(wakes.0.load(SeqCst), 1);
    }

    #[test]
    fn the_longest_frame_never_ends() {
        let mut frames = Frames::default();
        frames.feed(&[0x82, MASK + 127]);
        frames.feed(&[0xff; 12]);
        assert_eq!((frames.payload, frames.n), (u64::MAX, 0));
        frames.feed(&[0; 10_000]);
        assert_eq!(frames.payload, u64::MAX - 10_000);
    }
}
