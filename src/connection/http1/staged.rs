//! The second stage of a staged close: "the server … continues to read from the connection until it
//! receives a corresponding close by the client" (RFC 9112 section 9.6), in bounds.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::connection::Taken;

/// Bounds (nginx has 30 s, and no amount): enough for a response to reach a client in the middle of an
/// upload, not enough to be kept busy by it.
const FOR: Duration = Duration::from_secs(5);
const BYTES: u32 = 64 << 20;

/// This side is closed; what comes in is discarded.
pub(in super::super) struct Staged {
    /// The client is given up when it has sent nothing for so long.
    patience: Duration,
    timer: Pin<Box<Sleep>>,
    /// What was discarded, and what of it when the timer was last armed.
    bytes: u32,
    seen: u32,
    /// It may be silent for it reads what was sent.
    taken: Taken,
    began: Instant,
    is_http2: bool,
}

impl Staged {
    /// `unsent`: as [`Taken`] has it.
    ///
    /// # Panics
    ///
    /// Without a timer in the runtime.
    pub(in super::super) fn new(patience: Duration, is_http2: bool, unsent: Option<u32>) -> Self {
        let patience = patience.min(FOR);
        let mut taken = Taken::default();
        taken.goes_on(unsent);
        Self {
            patience,
            timer: Box::pin(tokio::time::sleep(patience)),
            bytes: 0,
            seen: 0,
            taken,
            began: Instant::now(),
            is_http2,
        }
    }

    /// How many bytes have come.
    pub(in super::super) fn discarded(&self) -> u32 {
        self.bytes
    }

    /// Ready when the client has closed as well, or has used up its bounds. `bounded`: in time, unless it is one of HTTP/2 that takes what
    /// was sent; `unsent`: as [`Taken`] has it.
    pub(in super::super) fn poll<Io: AsyncRead + Unpin>(
        &mut self,
        io: &mut Io,
        bounded: bool,
        unsent: impl Fn() -> Option<u32>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut chunk = [0; 16 * 1024];
        // A client that sends faster than this is read must not keep the thread.
        for _ in 0..16 {
            let mut buf = ReadBuf::new(&mut chunk);
            let Poll::Ready(result) = Pin::new(&mut *io).poll_read(cx, &mut buf) else {
                return self.is_over(bounded, unsent, cx);
            };
            let n = buf.filled().len();
            if result.is_err() || n == 0 {
                return Poll::Ready(());
            }
            // At most a chunk.
            self.bytes += u32::try_from(n).unwrap_or(0);
        }
        cx.waker().wake_by_ref();
        self.is_over(bounded, unsent, cx)
    }

    fn is_over(
        &mut self,
        bounded: bool,
        unsent: impl Fn() -> Option<u32>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        while self.bytes < BYTES {
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let is_silent = self.bytes == self.seen;
            let takes = (is_silent || self.is_http2) && self.taken.goes_on(unsent());
            let over = bounded && self.began.elapsed() >= FOR;
            // What a client of HTTP/2 sends is window back, for what it takes.
            let goes_on = self.is_http2 && takes;
            if over && !goes_on || is_silent && !takes {
                break;
            }
            self.seen = self.bytes;
            self.timer.set(tokio::time::sleep(self.patience));
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A client of HTTP/2 gives window back for what it reads: of its rest nothing was left after five seconds.
    #[tokio::test(start_paused = true)]
    async fn goes_on_while_what_was_sent_is_taken() {
        let one = Duration::from_secs(1);
        for (is_http2, patience, takes_for, ends) in [
            (true, one, 0, 5),
            (true, one, 12, 12),
            (true, FOR, 12, 15),
            (true, FOR * 9, 12, 15),
            (false, one, 12, 5),
            (false, FOR, 12, 5),
        ] {
            let (mut client, mut server) = tokio::io::duplex(64);
            let sends = async move {
                while client.write_all(b"a").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let mut staged = Staged::new(patience, is_http2, Some(takes_for));
            let began = Instant::now();
            let unsent = || {
                let so_far = u32::try_from(began.elapsed().as_secs()).expect("seconds");
                Some(takes_for - so_far.min(takes_for))
            };
            let over = poll_fn(|cx| staged.poll(&mut server, true, unsent, cx));
            tokio::select! {
                () = over => {}
                () = sends => unreachable!("it is not closed"),
            }
            assert_eq!(began.elapsed().as_secs(), ends, "{takes_for}");
        }
    }

    /// Whatever the patience: without any, nothing but the number of bytes was a bound.
    #[tokio::test(start_paused = true)]
    async fn is_over_after_five_seconds_of_bytes() {
        for patience in [
            Duration::ZERO,
            Duration::from_micros(1),
            Duration::from_secs(1),
            FOR,
        ] {
            let (mut client, mut server) = tokio::io::duplex(64);
            let sends = async move {
                while client.write_all(b"a").await.is_ok() {
                    tokio::time::sleep(Duration::from_micros(500)).await;
                }
            };
            let mut staged = Staged::new(patience, true, Some(9));
            let began = Instant::now();
            // It lies there, and is not taken.
            let over = poll_fn(|cx| staged.poll(&mut server, true, || Some(9), cx));
            tokio::select! {
                () = over => {}
                () = sends => unreachable!("it is not closed"),
            }
            assert!(began.elapsed() <= FOR + Duration::from_millis(2));
        }
    }
}
