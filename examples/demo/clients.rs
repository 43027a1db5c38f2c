//! Clients, each on a thread of its own and a plain socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use super::{Event, Kind, servers::BIG};

/// One of them: what it is, and what it does.
pub(crate) struct Client {
    pub(crate) name: &'static str,
    act: fn(&mut Line<'_>) -> io::Result<()>,
}

pub(crate) const CLIENTS: &[Client] = &[
    client("a browser's tab, idle", idle),
    client("its spare connection", spare),
    client("a request in flight", in_flight),
    client("an upload", upload),
    client("half a request", half),
    client("a slow reader", slow_reader),
    client("a stream of events", events),
    client("a web socket", web_socket),
    client("HTTP/2 that never answers", silent_http2),
    client("a handler that hangs", hangs),
    client("a handler that blocks", blocks),
    client("one at the last moment", last_moment),
];

const fn client(name: &'static str, act: fn(&mut Line<'_>) -> io::Result<()>) -> Client {
    Client { name, act }
}

/// No client waits longer for anything.
const BOUND: Duration = Duration::from_secs(10);

impl Client {
    /// On that connection, if it has one already.
    pub(crate) fn run(
        &self,
        who: usize,
        address: SocketAddr,
        socket: Option<TcpStream>,
        call: Instant,
        tell: &Sender<Event>,
    ) {
        let mut line = Line {
            socket,
            read: Vec::new(),
            who,
            address,
            call,
            tell,
        };
        if let Err(error) = (self.act)(&mut line) {
            let what = match error.kind() {
                ErrorKind::UnexpectedEof => "cut in the middle".to_owned(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset".to_owned(),
                ErrorKind::ConnectionRefused => "refused".to_owned(),
                _ => error.to_string(),
            };
            line.says(Kind::Lost, what);
        }
    }
}

/// A client's connection, and whom it tells what it sees.
struct Line<'a> {
    socket: Option<TcpStream>,
    /// What was read, and not looked at.
    read: Vec<u8>,
    who: usize,
    address: SocketAddr,
    /// When `terminate()` is called.
    call: Instant,
    tell: &'a Sender<Event>,
}

// ===== what they do =====

fn idle(line: &mut Line<'_>) -> io::Result<()> {
    line.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
    line.answer()?;
    line.says(Kind::Idle, "answered, kept alive");
    line.end()?;
    line.says(Kind::Well, "closed, as it was idle");
    Ok(())
}

fn spare(line: &mut Line<'_>) -> io::Result<()> {
    line.socket()?;
    line.says(Kind::Idle, "connected, never used");
    line.end()?;
    line.says(Kind::Well, "closed, as it was never used");
    Ok(())
}

fn in_flight(line: &mut Line<'_>) -> io::Result<()> {
    line.send(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")?;
    line.says(Kind::Busy, "waits for its answer");
    line.last_answer()
}

fn upload(line: &mut Line<'_>) -> io::Result<()> {
    line.send(b"POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 22000\r\n\r\n")?;
    line.says(Kind::Busy, "sends 22 kB, a bit at a time");
    for _ in 0..22 {
        line.send(&[b'.'; 1000])?;
        thread::sleep(Duration::from_millis(100));
    }
    line.last_answer()
}

fn half(line: &mut Line<'_>) -> io::Result<()> {
    line.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
    line.answer()?;
    line.send(b"GET / HTTP/1.1\r\nho")?;
    line.says(Kind::Busy, "has sent half a request");
    line.wait(Duration::from_millis(300));
    line.send(b"st: a\r\n\r\n")?;
    line.last_answer()
}

fn slow_reader(line: &mut Line<'_>) -> io::Result<()> {
    line.send(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n")?;
    line.says(Kind::Busy, "does not read for a while");
    line.wait(Duration::from_millis(1800));
    let answer = line.answer()?;
    if answer.body != BIG {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    line.end()?;
    line.says(Kind::Well, format!("all {} MB came", BIG >> 20));
    Ok(())
}

fn events(line: &mut Line<'_>) -> io::Result<()> {
    line.send(b"GET /events HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n")?;
    line.says(Kind::Busy, "gets an event now and then");
    line.answer()?;
    line.end()?;
    line.says(Kind::Well, "ended, with its last chunk");
    Ok(())
}

fn web_socket(line: &mut Line<'_>) -> io::Result<()> {
    line.send(
        b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )?;
    line.until(b"\r\n\r\n")?;
    line.says(Kind::Busy, "open, and quiet");
    // A Close frame with its code (RFC 6455 section 5.5.1), which is answered.
    let frame = line.exactly(4)?;
    if frame[0] != 0x88 {
        return Err(io::Error::other(format!("a frame {frame:?}")));
    }
    let code = u16::from_be_bytes([frame[2], frame[3]]);
    line.send(&[0x88, 0x82, 0, 0, 0, 0, frame[2], frame[3]])?;
    line.end()?;
    line.says(Kind::Well, format!("said goodbye with {code}"));
    Ok(())
}

fn silent_http2(line: &mut Line<'_>) -> io::Result<()> {
    line.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    line.says(Kind::Idle, "connected, acknowledges nothing");
    let mut goaway = false;
    loop {
        let head = match line.exactly(9) {
            Ok(head) => head,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        line.exactly(length as usize)?;
        if head[3] == 7 && !std::mem::replace(&mut goaway, true) {
            line.says(Kind::Idle, "told by GOAWAY, acknowledges nothing");
        }
    }
    if !goaway {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    line.says(Kind::Well, "closed all the same");
    Ok(())
}

fn hangs(line: &mut Line<'_>) -> io::Result<()> {
    line.send(b"GET /hangs HTTP/1.1\r\nhost: a\r\n\r\n")?;
    line.says(Kind::Busy, "waits for what never comes");
    line.last_answer()
}

fn blocks(line: &mut Line<'_>) -> io::Result<()> {
    line.send(b"GET /blocks HTTP/1.1\r\nhost: a\r\n\r\n")?;
    line.says(Kind::Busy, "has a handler that blocks");
    line.last_answer()
}

/// It was connected by [`at_the_last_moment`].
fn last_moment(line: &mut Line<'_>) -> io::Result<()> {
    line.says(Kind::Busy, "connects just now");
    line.last_answer()
}

/// To be called right before the server is told: nobody has accepted it then, but its request is in the kernel. However
/// busy the machine is, it does not come too late.
pub(crate) fn at_the_last_moment(address: SocketAddr) -> io::Result<TcpStream> {
    let mut socket = connect(address)?;
    socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
    Ok(socket)
}

// ===== how =====

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(BOUND))?;
    Ok(socket)
}

struct Answer {
    status: String,
    says_close: bool,
    /// Its length.
    body: usize,
}

impl Line<'_> {
    fn says(&self, kind: Kind, what: impl Into<String>) {
        // Nobody listens any more at the end of the process.
        let _ = self.tell.send(Event {
            who: self.who,
            at: Instant::now(),
            kind,
            what: what.into(),
        });
    }

    /// Until so long after the call.
    fn wait(&self, time: Duration) {
        thread::sleep((self.call + time).saturating_duration_since(Instant::now()));
    }

    fn socket(&mut self) -> io::Result<&mut TcpStream> {
        if self.socket.is_none() {
            self.socket = Some(connect(self.address)?);
        }
        Ok(self.socket.as_mut().expect("made above"))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket()?.write_all(bytes)
    }

    /// False at the end-of-file.
    fn more(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 1 << 14];
        let n = self.socket()?.read(&mut buffer)?;
        self.read.extend_from_slice(&buffer[..n]);
        Ok(n > 0)
    }

    fn exactly(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < n {
            if !self.more()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.read.drain(..n).collect())
    }

    /// All up to there, and that.
    fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let mut from = 0;
        loop {
            let found = self.read[from..]
                .windows(end.len())
                .position(|window| window == end);
            if let Some(at) = found {
                return self.exactly(from + at + end.len());
            }
            from = self.read.len().saturating_sub(end.len() - 1);
            if !self.more()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let head = self.until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = if head.contains("\r\ntransfer-encoding: chunked") {
            self.chunks()?
        } else {
            let length = head.split_once("\r\ncontent-length: ");
            let length = length.and_then(|(_, rest)| rest.split('\r').next());
            let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
            self.exactly(length)?.len()
        };
        Ok(Answer {
            status,
            says_close: head.contains("\r\nconnection: close"),
            body,
        })
    }

    fn chunks(&mut self) -> io::Result<usize> {
        let mut length = 0;
        loop {
            let size = self.until(b"\r\n")?;
            let size = String::from_utf8_lossy(&size);
            let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            self.exactly(size + 2)?;
            length += size;
            if size == 0 {
                return Ok(length);
            }
        }
    }

    /// The connection has to end behind it.
    fn last_answer(&mut self) -> io::Result<()> {
        let answer = self.answer()?;
        let close = if answer.says_close {
            ", says close"
        } else {
            ""
        };
        let what = format!("answered {}{close}", answer.status);
        self.end()?;
        let kind = if answer.status == "200" {
            Kind::Well
        } else {
            Kind::Told
        };
        self.says(kind, what);
        Ok(())
    }

    /// Waits for the end-of-file.
    fn end(&mut self) -> io::Result<()> {
        while self.more()? {}
        Ok(())
    }
}
