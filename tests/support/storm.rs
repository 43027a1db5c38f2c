//! Threads that connect as fast as they can, so that at every moment most of them are in a handshake: what
//! happens to a listener meanwhile, they see.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use super::outside::{FAR, Host};
use super::starts::Start;
use super::wait::until;
use super::{BOUND, Target, load};
use http_terminator::{Listener, Terminator};

/// A SYN that was dropped comes again after a second.
pub const DROPPED: Duration = Duration::from_millis(900);

/// What takes longer on a machine that has nothing else to do met one.
pub const SLOW: Duration = Duration::from_millis(200);

/// What the clients have seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub answered: usize,
    /// Established, and then no answer.
    pub lost: usize,
    /// By what: a reset is the kernel's, an end-of-file the server's.
    pub how: Vec<io::ErrorKind>,
    pub refused: usize,
    /// Connects that took longer than [`SLOW`], refused ones included.
    pub slow: usize,
    pub slowest: Duration,
}

/// Writes a byte to each that comes: cheap, as the clients are to be bound by their connects.
pub fn serve<L>(host: &Host, listener: L) -> Terminator
where
    L: Listener<Io: AsyncRead + AsyncWrite + Unpin>,
{
    // The client says nothing: what is accepted late is idle, and closed, unless it is written to within `settle`,
    // in which this task may not get a turn.
    let terminator = Terminator::builder().grace_period(FAR).settle(SLOW).build();
    let mut listener = terminator.listen(listener);
    drop(host.spawn(async move {
        while let Some((mut io, _)) = listener.accept().await {
            let written = io.write_u8(b'a').await;
            written.expect("there is room for a byte");
        }
    }));
    terminator
}

/// Clients that connect until they are stopped or refused.
pub struct Storm {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Seen>>,
}

impl Storm {
    pub fn new(target: impl Into<Target>, clients: usize) -> Self {
        load::watch_load();
        let target = target.into();
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let clients = (0..clients).map(|_| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let target = target.clone();
            thread::spawn(move || connect_in_a_loop(&target, &stop, &answered))
        });
        Self {
            clients: clients.collect(),
            stop,
            answered,
        }
    }

    /// Waits for so many more answers.
    #[track_caller]
    pub fn go_on(&self, answers: usize) {
        let enough = self.answered.load(Ordering::SeqCst) + answers;
        until("answers in a storm of connects", || {
            self.answered.load(Ordering::SeqCst) >= enough
        });
    }

    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Seen::default();
        for client in self.clients {
            let seen = client.join().expect("a client");
            all.answered += seen.answered;
            all.lost += seen.lost;
            all.how.extend(seen.how);
            all.refused += seen.refused;
            all.slow += seen.slow;
            all.slowest = all.slowest.max(seen.slowest);
        }
        all
    }
}

fn connect_in_a_loop(target: &Target, stop: &AtomicBool, answered: &AtomicUsize) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::SeqCst) {
        let begin = Instant::now();
        let connected = connect(target);
        let took = begin.elapsed();
        seen.slowest = seen.slowest.max(took);
        seen.slow += usize::from(took > SLOW);
        let Ok(mut stream) = connected else {
            seen.refused += 1;
            return seen;
        };
        if let Err(error) = stream.read_exact(&mut [0]) {
            seen.lost += 1;
            seen.how.push(error.kind());
        } else {
            answered.fetch_add(1, Ordering::SeqCst);
            seen.answered += 1;
        }
    }
    seen
}

fn connect(target: &Target) -> io::Result<Box<dyn Read>> {
    match target {
        Target::Tcp(addr) | Target::Tls(addr) => {
            let stream = TcpStream::connect(addr)?;
            // So that thousands of ports are not kept for a minute each.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            stream.set_read_timeout(Some(BOUND))?;
            Ok(Box::new(stream))
        }
        Target::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(BOUND))?;
            Ok(Box::new(stream))
        }
    }
}

/// Binds with `SO_REUSEPORT`.
pub fn reuse_port(host: &Host, addr: Option<SocketAddr>) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("a TCP option");
    socket.set_reuse_port(true).expect("a TCP option");
    socket.set_nonblocking(true).expect("a socket can be that");
    let addr = addr.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    socket.bind(&addr.into()).expect("the port may be shared");
    socket.listen(1024).expect("a bound socket listens");
    let _inside = host.enter();
    TcpListener::from_std(socket.into()).expect("a runtime takes it")
}

/// How many connections a group of sockets on one port may lose as one of them closes. A handshake that is under way
/// in the microsecond of the close is the kernel's to lose, where another of the group would have taken it: in
/// such a storm about one end in fifty meets some. It would be kept by a filter that drops SYNs, each of which
/// then costs its client a second, or by `net.ipv4.tcp_migrate_req` (Linux 5.14): then none is. So the
/// test is run once more in a network of its own, where that may be set, and `None` says that it has passed
/// there.
pub fn most_lost(test: &str) -> Option<usize> {
    const MIGRATES: &str = "HTTP_TERMINATOR_TEST_MIGRATES";
    const SET: &str = "ip link set lo up && echo 1 > /proc/sys/net/ipv4/tcp_migrate_req";
    if std::env::var_os(MIGRATES).is_some() {
        return Some(0);
    }
    let alone = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script, "sh"]);
        command
    };
    let can = alone(SET).stderr(Stdio::null()).run();
    if !can.is_ok_and(|status| status.success()) {
        super::skip::skip("a network of its own: needs root, `unshare` and `ip`");
        return Some(8);
    }
    let binary = std::env::current_exe().expect("a test run is a file");
    let mut again = alone(&format!("{SET} && exec \"$@\""));
    again.arg(binary).args(super::outside::only(test));
    again.env(MIGRATES, "");
    let mut again = super::outside::Other::run(again);
    let passed = again.wait(BOUND * 12);
    let said = again.said();
    println!("{said}");
    let passed = passed == Some(true) && said.contains("1 passed");
    assert!(passed, "{said}");
    None
}
