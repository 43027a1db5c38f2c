//! Bytes on a blocking socket, over TLS as well: what the raw clients are built on.

use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use socket2::Socket;
use tokio_rustls::rustls::ClientConnection;

use super::{BOUND, Target, tls_client};

/// Why there is nothing more to read.
#[must_use = "a timeout is no end"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadEnd {
    /// The peer ended where it may: between two messages.
    Eof,
    /// The peer ended in the middle of a message.
    Truncated,
    /// Over TLS: the TCP stream ended without a `close_notify`, as an attacker could end it.
    NoCloseNotify,
    Reset,
    /// Nothing, or not all, came in time. What came of a head, a chunk or a frame is kept for the next
    /// call; a body that was to be read whole is lost.
    Timeout,
}

/// A blocking socket, what was read from it but not used yet, and a bound for each call.
///
/// Over TLS what goes through it is plaintext, and its end is a `close_notify` *and* the end of the
/// TCP stream.
pub(super) struct Wire {
    pub(super) socket: Socket,
    /// Locked, never waited for: it makes sending possible where only reading is exclusive.
    pub(super) tls: Option<Mutex<ClientConnection>>,
    pub(super) unread: BytesMut,
    pub(super) timeout: Duration,
}

impl Wire {
    /// Connects and panics at the caller's line if it can't.
    #[track_caller]
    pub(super) fn connected(target: &Target, alpn: &str) -> Self {
        match Self::connect(target, alpn) {
            Ok(wire) => wire,
            Err(error) => panic!("connecting {target:?}: {error}"),
        }
    }

    /// Over TLS: when the handshake is done, as far as this side can tell.
    pub(super) fn connect(target: &Target, alpn: &str) -> io::Result<Self> {
        let socket = match target {
            Target::Tcp(addr) | Target::Tls(addr) => {
                let stream = TcpStream::connect_timeout(addr, BOUND)?;
                stream.set_nodelay(true)?;
                Socket::from(stream)
            }
            Target::Unix(path) => Socket::from(UnixStream::connect(path)?),
        };
        socket.set_write_timeout(Some(BOUND))?;
        let mut wire = Self {
            socket,
            tls: None,
            unread: BytesMut::new(),
            timeout: BOUND,
        };
        if let Target::Tls(_) = target {
            wire.shake_hands(tls_client(&[alpn]))?;
        }
        Ok(wire)
    }

    /// Speaks TLS from here on; bytes of this client may have been sent.
    pub(super) fn shake_hands(&mut self, mut tls: ClientConnection) -> io::Result<()> {
        self.socket.set_read_timeout(Some(BOUND))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut &self.socket)?;
        }
        self.tls = Some(Mutex::new(tls));
        Ok(())
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    #[track_caller]
    pub(super) fn send(&self, bytes: &[u8]) {
        self.write_all(bytes).expect("the peer takes what we send");
    }

    pub(super) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &self.tls else {
            return (&self.socket).write_all(bytes);
        };
        let mut tls = lock(tls);
        // Records one by one, past no limit of the buffer between.
        for record in bytes.chunks(16 * 1024) {
            tls.writer().write_all(record)?;
            flush(&mut tls, &self.socket)?;
        }
        Ok(())
    }

    /// Reads once; over TLS, until there is plaintext.
    fn read(&mut self, part: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return (&self.socket).read(part);
        };
        let tls = tls.get_mut().unwrap_or_else(PoisonError::into_inner);
        loop {
            match tls.reader().read(part) {
                Ok(0) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            tls.read_tls(&mut &self.socket)?;
            tls.process_new_packets().map_err(io::Error::other)?;
            flush(tls, &self.socket)?;
        }
        // After the close_notify.
        match (&self.socket).read(part)? {
            0 => Ok(0),
            n => Err(io::Error::other(format!(
                "{n} bytes after the close_notify"
            ))),
        }
    }

    /// Reads once; adds at least a byte to `unread`, or says why it can't.
    pub(super) fn fill(&mut self, deadline: Instant) -> Result<(), ReadEnd> {
        let mut part = [0; 16 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ReadEnd::Timeout);
            }
            // Rounds to microseconds, and zero would mean for ever.
            let left = left.max(Duration::from_millis(1));
            self.socket
                .set_read_timeout(Some(left))
                .expect("sockets take a read timeout");
            match self.read(&mut part) {
                Ok(0) => return Err(ReadEnd::Eof),
                Ok(n) => {
                    self.unread.extend_from_slice(&part[..n]);
                    return Ok(());
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Err(ReadEnd::Timeout),
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                        return Err(ReadEnd::Reset);
                    }
                    ErrorKind::UnexpectedEof => return Err(ReadEnd::NoCloseNotify),
                    _ => panic!("reading: {error}"),
                },
            }
        }
    }

    /// Reads until `unread` holds `n` bytes and takes them.
    pub(super) fn take(&mut self, n: usize, deadline: Instant) -> Result<BytesMut, ReadEnd> {
        while self.unread.len() < n {
            self.fill_message(deadline)?;
        }
        Ok(self.unread.split_to(n))
    }

    /// [`fill`](Self::fill) for messages: an end of file after a part of one is none.
    pub(super) fn fill_message(&mut self, deadline: Instant) -> Result<(), ReadEnd> {
        match self.fill(deadline) {
            Err(ReadEnd::Eof) if !self.unread.is_empty() => Err(ReadEnd::Truncated),
            filled => filled,
        }
    }

    /// Unwraps what was read; the panic names the line of the test.
    #[track_caller]
    pub(super) fn expect<T>(&self, read: Result<T, ReadEnd>, what: &str) -> T {
        match read {
            Ok(value) => value,
            Err(end) => panic!("no {what}: {end:?} after {:?}", lossy(&self.unread)),
        }
    }

    /// What ends the connection, if the peer sends nothing before.
    #[track_caller]
    pub(super) fn end(&mut self) -> ReadEnd {
        let deadline = self.deadline();
        if self.unread.is_empty() {
            if let Err(end) = self.fill(deadline) {
                return end;
            }
        }
        panic!("the peer went on talking: {:?}", lossy(&self.unread));
    }

    #[track_caller]
    pub(super) fn encrypt(&self, bytes: &[u8]) -> Vec<u8> {
        let mut tls = lock(self.tls.as_ref().expect("a TLS client"));
        let mut records = Vec::new();
        let buffered = tls.writer().write_all(bytes);
        buffered.expect("less than the buffer's limit");
        while tls.wants_write() {
            tls.write_tls(&mut records).expect("a vector takes it all");
        }
        records
    }

    #[track_caller]
    pub(super) fn send_raw(&self, bytes: &[u8]) {
        let sent = (&self.socket).write_all(bytes);
        sent.expect("the peer takes what we send");
    }

    pub(super) fn is_still_open(&self) -> bool {
        self.socket
            .set_nonblocking(true)
            .expect("sockets can be made non-blocking");
        let is_open = match &self.tls {
            None => match self.socket.peek(&mut [MaybeUninit::uninit()]) {
                Ok(n) => n > 0,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            },
            // A peek would see the session tickets, which nobody asked for.
            Some(tls) => is_open(&mut lock(tls), &self.socket),
        };
        self.socket
            .set_nonblocking(false)
            .expect("sockets can be made blocking again");
        is_open
    }
}

pub(super) fn lock(tls: &Mutex<ClientConnection>) -> MutexGuard<'_, ClientConnection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn flush(tls: &mut ClientConnection, mut socket: &Socket) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    Ok(())
}

/// Takes in what has come, until it is plaintext or an end.
fn is_open(tls: &mut ClientConnection, mut socket: &Socket) -> bool {
    loop {
        match tls.process_new_packets() {
            Ok(state) if state.plaintext_bytes_to_read() > 0 => return true,
            Ok(state) if state.peer_has_closed() => return false,
            Ok(_) => {}
            Err(_) => return false,
        }
        match tls.read_tls(&mut socket) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// Text to show in a failure: the first few hundred bytes.
pub(super) fn lossy(bytes: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
    let more = if bytes.len() > 300 { "…" } else { "" };
    format!("{shown}{more}")
}

pub(super) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
