//! What TLS does to its bytes: they come in records, half of one is nothing yet, and they are not what they were.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::draw::Draw;

// Content types (RFC 8446 section 5.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

const HEADER: usize = 5;

/// `close_notify`.
const GOODBYE: [u8; 2] = [1, 0];

fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let n = u16::try_from(payload.len()).expect("short").to_be_bytes();
    [&[kind, 3, 3, n[0], n[1]][..], &ciphered(payload)].concat()
}

/// The first whole one: its kind, its payload, and how long it is in all.
fn first(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let header = bytes.get(..HEADER)?;
    let end = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    Some((header[0], ciphered(bytes.get(HEADER..end)?), end))
}

/// Both ways.
fn ciphered(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| byte ^ 0x5a).collect()
}

// ===== the client's =====

/// What it begins with.
pub(crate) fn hello() -> Vec<u8> {
    record(HANDSHAKE, &[1; 40])
}

/// In records of any size.
pub(crate) fn wrapped(mut bytes: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let most = bytes.len().min(1 << 14) as u64;
        let n = if draw.one_in(2) {
            most
        } else {
            1 + draw.below(most)
        };
        let (one, rest) = bytes.split_at(usize::try_from(n).expect("short"));
        all.extend(record(DATA, one));
        bytes = rest;
    }
    all
}

/// What a client has read of them.
#[derive(Default)]
pub(crate) struct Unwrapped {
    raw: Vec<u8>,
    /// How much plaintext there is after each, and how much was read for it.
    ends: Vec<(usize, usize)>,
    pub(crate) said_goodbye: bool,
}

impl Unwrapped {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.raw.extend(bytes);
        let (mut plain, mut end) = self.ends.last().copied().unwrap_or_default();
        let mut new = Vec::new();
        while let Some((kind, payload, n)) = first(&self.raw[end..]) {
            if kind == DATA {
                plain += payload.len();
                new.extend(payload);
            }
            self.said_goodbye |= kind == ALERT;
            end += n;
            self.ends.push((plain, end));
        }
        new
    }

    /// In all that was read, where the record begins, and where it ends, that holds this byte of the plaintext.
    pub(crate) fn record_of(&self, plain: usize) -> (usize, usize) {
        let n = self.ends.iter().position(|(end, _)| *end > plain);
        let Some(n) = n else {
            return (usize::MAX, usize::MAX);
        };
        let begins = n.checked_sub(1).map_or(0, |before| self.ends[before].1);
        (begins, self.ends[n].1 - 1)
    }
}

// ===== the server's =====

pub(crate) struct Records<Io> {
    io: Io,
    raw: Vec<u8>,
    plain: VecDeque<u8>,
    ended: bool,
    out: Vec<u8>,
    said_goodbye: bool,
}

/// Does what there is of a handshake.
pub(crate) async fn accept<Io: AsyncRead + Unpin>(mut io: Io) -> io::Result<Records<Io>> {
    let mut hello = hello();
    io.read_exact(&mut hello).await?;
    Ok(Records {
        io,
        raw: Vec::new(),
        plain: VecDeque::new(),
        ended: false,
        out: Vec::new(),
        said_goodbye: false,
    })
}

impl<Io: AsyncWrite + Unpin> Records<Io> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            self.out.drain(..n);
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Records<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.plain.is_empty() {
                let n = this.plain.len().min(buf.remaining());
                buf.put_slice(&this.plain.drain(..n).collect::<Vec<_>>());
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            if let Some((kind, payload, n)) = first(&this.raw) {
                if kind == DATA {
                    this.plain.extend(payload);
                }
                this.ended |= kind == ALERT;
                this.raw.drain(..n);
                continue;
            }
            let mut more = [0; 4096];
            let mut more = ReadBuf::new(&mut more);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut more))?;
            this.ended = more.filled().is_empty();
            this.raw.extend(more.filled());
        }
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Records<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_out(cx))?;
        let n = bytes.len().min(4_000);
        self.out = record(DATA, &bytes[..n]);
        // The rest goes with what comes next, or with a flush.
        let _ = self.poll_out(cx)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.said_goodbye, true) {
            self.out.extend(record(ALERT, &GOODBYE));
        }
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
