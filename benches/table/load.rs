//! One process with a server and its client: what is counted.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::client::{ResponseFuture, SendRequest};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::servers::{self, Given, LARGE, SLOW_CALLS};

/// What the client does, in the order of the table.
pub(crate) const LOADS: [&str; 8] = [
    KEEP_ALIVE,
    "HTTP/1, a head of 400 B",
    "HTTP/1, 10 KiB answers",
    "HTTP/1, 10 KiB uploads",
    "HTTP/1, a connection each",
    "HTTP/1, an axum Router",
    "HTTP/2, 1 stream",
    "HTTP/2, 32 streams",
];

pub(crate) const KEEP_ALIVE: &str = "HTTP/1, kept alive";

/// Idle kept-alive connections, each used once.
pub(crate) const IDLE: &str = "idle connections";

/// The same, and then the server is ended.
pub(crate) const ENDED: &str = "idle connections, ended";

/// Serves `n` requests of that kind, or that many connections; ends with the process.
pub(crate) fn run(server: &str, load: &str, n: usize) {
    let given = match load {
        "HTTP/1, an axum Router" => Given::Router,
        _ => Given::Hello,
    };
    let (addr, running) = start(server, given, 1);
    match load {
        KEEP_ALIVE | "HTTP/1, an axum Router" => {
            kept_alive(addr, &running, |client, n| client.ask(n, "/hello", 5), n);
        }
        "HTTP/1, a head of 400 B" => {
            kept_alive(
                addr,
                &running,
                |client, n| client.ask_with(n, BROWSER, 5),
                n,
            );
        }
        "HTTP/1, 10 KiB answers" => {
            kept_alive(addr, &running, |client, n| client.ask(n, "/10k", LARGE), n);
        }
        "HTTP/1, 10 KiB uploads" => kept_alive(addr, &running, Http1::upload, n),
        "HTTP/1, a connection each" => (0..n).for_each(|_| {
            let mut client = Http1::connect(addr);
            client.ask(1, "/hello", 5);
            client.leave();
        }),
        "HTTP/2, 1 stream" => Http2::connect(addr).ask(n, 1),
        "HTTP/2, 32 streams" => Http2::connect(addr).ask(n, 32),
        IDLE | ENDED => {
            let mut clients: Vec<_> = (0..n).map(|_| Http1::connect(addr)).collect();
            for client in &mut clients {
                client.ask(1, "/hello", 5);
            }
            if load == ENDED {
                thread::sleep(Duration::from_millis(100));
                running.end();
            }
            std::mem::forget(clients);
        }
        _ => panic!("no such load: {load}"),
    }
}

/// Without the fences chance would decide by 170 instructions: a buffer that is the last of the heap is cheaper
/// to free and to get back than one with something behind it. There are two, in turn.
fn kept_alive(addr: SocketAddr, running: &Server, ask: impl Fn(&mut Http1, usize), n: usize) {
    let mut client = Http1::connect(addr);
    for _ in 0..4 {
        ask(&mut client, 1);
        running.fence();
    }
    ask(&mut client, n);
}

/// What a browser sends: 400 bytes.
const BROWSER: &str = "GET /hello HTTP/1.1\r\n\
    Host: localhost:8080\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Connection: keep-alive\r\n\
    Sec-Fetch-Dest: document\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Cookie: session=2d711642b726b04401627ca9fbac3\r\n\
    \r\n";

const _: () = assert!(BROWSER.len() == 400, "as its load is called");

/// A server on threads of its own, and what ends it.
pub(crate) fn start(server: &str, given: Given, threads: usize) -> (SocketAddr, Server) {
    let (told, addr) = mpsc::channel();
    let (fence, mut fences) = tokio::sync::mpsc::unbounded_channel::<mpsc::Sender<()>>();
    let end = Arc::new(Notify::new());
    let (server, ends) = (server.to_owned(), Arc::clone(&end));
    let thread = thread::spawn(move || {
        let runtime = match threads {
            1 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        }
        .worker_threads(threads)
        .enable_all()
        .build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let addr = listener.local_addr().expect("an address");
            told.send(addr).expect("somebody waits");
            tokio::spawn(async move {
                while let Some(done) = fences.recv().await {
                    // Larger than what a connection frees, and so behind it all.
                    let fence = Vec::<u8>::with_capacity(64 * 1024);
                    std::hint::black_box(fence).leak();
                    done.send(()).expect("somebody waits");
                }
            });
            servers::serve(&server, given, listener, ends).await;
        });
    });
    let addr = addr.recv().expect("an address");
    (addr, Server { end, fence, thread })
}

pub(crate) struct Server {
    end: Arc<Notify>,
    fence: UnboundedSender<mpsc::Sender<()>>,
    thread: thread::JoinHandle<()>,
}

impl Server {
    /// Puts something at the end of the heap that its thread, if it is one, uses.
    fn fence(&self) {
        let (done, fenced) = mpsc::channel();
        self.fence.send(done).expect("it runs");
        fenced.recv().expect("it runs");
    }

    /// Asks it to end, and waits until it says that it has.
    pub(crate) fn end(self) {
        self.end.notify_one();
        self.thread.join().expect("no panic");
    }
}

// ===== clients =====

pub(crate) struct Http1 {
    pub(crate) socket: TcpStream,
    /// How long the head of an answer is, once it is known.
    pub(crate) head: usize,
}

thread_local! {
    /// Not one for each client, whose memory is counted, nor for each answer, which would be cleared.
    static ANSWER: RefCell<Vec<u8>> = RefCell::new(vec![0; 2 * LARGE]);
}

impl Http1 {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let socket = TcpStream::connect(addr).expect("the server listens");
        socket.set_nodelay(true).expect("a socket");
        Self { socket, head: 0 }
    }

    /// Asks so many times, one after the other; the answer's body has so many bytes.
    pub(crate) fn ask(&mut self, times: usize, path: &str, body: usize) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        self.ask_with(times, &request, body);
    }

    fn ask_with(&mut self, times: usize, request: &str, body: usize) {
        for _ in 0..times {
            self.socket.write_all(request.as_bytes()).expect("written");
            self.answer(body);
        }
    }

    /// Sends a body so many times, each when the server has asked for it: as it finds nothing to read before, how often
    /// it looks is not left to chance.
    fn upload(&mut self, times: usize) {
        const ASKS: &str = "HTTP/1.1 100 Continue\r\n\r\n";
        let head = format!(
            "POST /upload HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: {LARGE}\r\n\r\n"
        );
        for _ in 0..times {
            self.socket.write_all(head.as_bytes()).expect("written");
            let mut asked = [0; ASKS.len()];
            self.socket.read_exact(&mut asked).expect("asked for");
            assert_eq!(asked, ASKS.as_bytes());
            self.socket.write_all(&[b'x'; LARGE]).expect("written");
            self.answer(5);
        }
    }

    /// Reads an answer with such a body. All have heads of one length, which is looked for once: what
    /// the client does would else be most of what is counted.
    pub(crate) fn answer(&mut self, body: usize) {
        ANSWER.with_borrow_mut(|answer| {
            let mut n = 0;
            while n == 0 || n < self.head + body {
                let read = self.socket.read(&mut answer[n..]).expect("an answer");
                assert!(read > 0, "the server hung up");
                n += read;
                if self.head == 0 {
                    let end = answer[..n].windows(4).position(|four| four == b"\r\n\r\n");
                    self.head = end.expect("a whole head") + 4;
                }
            }
            assert_eq!(n, self.head + body, "one answer");
        });
    }

    /// Waits until the server has seen the end.
    pub(crate) fn leave(mut self) {
        self.socket.shutdown(Shutdown::Write).expect("connected");
        assert_eq!(self.socket.read(&mut [0]).expect("an end of file"), 0);
    }
}

/// The time in which each of so many clients, on threads of their own, asks `n` times.
pub(crate) fn ask_at_once(addr: SocketAddr, clients: usize, n: usize) -> Duration {
    let mut clients: Vec<_> = (0..clients).map(|_| Http1::connect(addr)).collect();
    for client in &mut clients {
        client.ask(1, "/hello", 5);
    }
    let began = Instant::now();
    thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| client.ask(n, "/hello", 5));
        }
    });
    began.elapsed()
}

/// One connection; it lives while something is asked for.
pub(crate) struct Http2 {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
    /// Streams that wait for an answer.
    open: Vec<ResponseFuture>,
}

impl Http2 {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let sender = runtime.block_on(async {
            let socket = tokio::net::TcpStream::connect(addr).await;
            let socket = socket.expect("the server listens");
            socket.set_nodelay(true).expect("a socket");
            let (sender, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
            tokio::spawn(async move { connection.await.expect("it lives on") });
            sender
        });
        Self {
            runtime,
            sender,
            open: Vec::new(),
        }
    }

    /// Opens so many streams that are not answered. Returns when the server has seen them all.
    pub(crate) fn open(&mut self, streams: u32) {
        let before = SLOW_CALLS.load(Ordering::Relaxed);
        self.runtime.block_on(async {
            for _ in 0..streams {
                let answer = send(&self.sender, "http://localhost/slow").await;
                self.open.push(answer);
            }
        });
        // Its head comes behind theirs.
        self.ask(1, 1);
        let opened = SLOW_CALLS.load(Ordering::Relaxed) - before;
        assert_eq!(opened, streams, "handlers that wait");
    }

    /// Asks so many times.
    pub(crate) fn ask(&self, n: usize, at_once: usize) {
        let ask = || async {
            let answer = send(&self.sender, "http://localhost/hello").await;
            let mut body = answer.await.expect("an answer").into_body();
            let part = body.data().await.expect("a body").expect("all of it");
            assert_eq!(&part[..], b"hello");
            body.flow_control().release_capacity(5).expect("as much");
            assert!(body.data().await.is_none());
        };
        self.runtime.block_on(async {
            let mut asking: FuturesUnordered<_> = (0..at_once).map(|_| ask()).collect();
            for _ in at_once..n {
                asking.next().await;
                asking.push(ask());
            }
            while asking.next().await.is_some() {}
        });
    }
}

async fn send(sender: &SendRequest<Bytes>, uri: &str) -> ResponseFuture {
    let request = http::Request::get(uri).body(());
    let mut sender = sender.clone().ready().await.expect("room");
    let sent = sender.send_request(request.expect("a request"), true);
    sent.expect("sent").0
}
