//! The probe for users' tests finds what a bad server does, and nothing where there is nothing to be found.

#![cfg(all(unix, feature = "testing"))]
#![allow(
    unreachable_pub,
    reason = "the support module is shared by several test crates"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests look at the clock and spawn"
)]

use std::future::{self, Future};
use std::io::{self, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::{get, post};
use bytes::Bytes;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use http_terminator::testing::{Baseline, Finding, Findings, Kind, Probe, When, real_time};
use http_terminator::{Inherited, Phase, Protocol, Terminator};

mod support;

use support::outside::alone;
use support::starts::{Start, no_starts};
use support::wait::until_async;
use support::{App, BOUND, FrontEnd, PREFACE, Target, blocking, each, kind, start, within};

// ===== nothing is found with ours =====

fn app() -> Router {
    Router::new()
        .route("/", get(async || "hello"))
        .route("/later", get(later))
        .route("/echo", post(async |body: Bytes| body))
}

async fn later() -> &'static str {
    tokio::time::sleep(Duration::from_millis(3)).await;
    "later"
}

async fn serve(terminator: &Terminator) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(terminator.serve(listener, app()));
    address
}

fn probe(address: SocketAddr) -> Probe {
    let probe = Probe::new(address).get("/").get("/later");
    probe.post("/echo", vec![b'x'; 50_000]).limit(BOUND)
}

/// Nor is a socket left when it returns, nor a task.
async fn nothing_is_found() {
    for one in [Probe::http1_only, Probe::http2_only] {
        // By the kernel once at most.
        for again in [true, false] {
            let before = Baseline::now();
            let terminator = Terminator::new();
            let address = serve(&terminator).await;
            let probing = one(probe(address)).through(|| terminator.terminate());
            let findings = probing.await;
            let by_the_kernel = again && is_by_the_kernel(&findings);
            if by_the_kernel {
                println!("measured: {findings:#}");
            } else {
                findings.assert_nothing_lost();
            }
            findings.assert_nothing_left();
            before.leftovers(&terminator, address).await.assert_none();
            let report = terminator.terminated().await;
            assert!(report.is_clean(), "{report}");
            if !by_the_kernel {
                break;
            }
        }
    }
}

#[tokio::test]
async fn g2_g16_nothing_is_found_on_one_thread() {
    nothing_is_found().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_g9_nothing_is_lost_over_any_front_end() {
    const FRONTS: [FrontEnd; 3] = [FrontEnd::Serve, FrontEnd::OwnLoop, FrontEnd::HyperServe];
    let _alone = no_starts();
    each(FRONTS, async |front| {
        // What is lost in a window of microseconds is lost once in a few terminations.
        let mut by_the_kernel = false;
        for round in 0..ROUNDS {
            let one = [Probe::http1_only, Probe::http2_only][round % 2];
            let terminator = Terminator::new();
            let server = start(front, &terminator, support::app(App::default())).await;
            let Target::Tcp(address) = server.target else {
                panic!("{front:?} is no server over plain TCP");
            };
            let probe = one(Probe::new(address))
                .get("/quick")
                .post("/echo", "an echo");
            let findings = probe.limit(BOUND).through(|| terminator.terminate()).await;
            if is_by_the_kernel(&findings) && !mem::replace(&mut by_the_kernel, true) {
                println!("measured: {front:?}: {findings:#}");
            } else {
                assert!(findings.is_lossless(), "{front:?}: {findings:#}");
            }
            assert!(findings.is_gone(), "{front:?}: {findings:#}");
            within(BOUND, "its task", server.task)
                .await
                .expect("no panic");
        }
    });
}

#[tokio::test(start_paused = true)]
async fn g2_g16_nothing_is_found_in_paused_time() {
    nothing_is_found().await;
    assert!(is_paused(), "as it was");
}

#[test]
fn g2_g16_nothing_is_found_on_a_plain_thread() {
    let terminator = Terminator::new();
    let serving = terminator.clone();
    let probe = Probe::hosting(async move || Ok(serve(&serving).await));
    let findings = block_on(probe.through(|| terminator.terminate()));
    findings.assert_nothing_lost().assert_nothing_left();
}

/// One connection that was established and reset right away, as far as can be seen from here because its handshake ended between
/// the last look into the queue and the close of the port: that is the kernel's doing.
fn is_by_the_kernel(findings: &Findings) -> bool {
    let is_reset =
        |it: &Finding| it.what.contains("reset by peer") && matches!(it.at, When::After(_));
    let lost = findings.samples.iter().filter(|it| it.kind == Kind::Lost);
    let lost: Vec<_> = lost.collect();
    // Of HTTP/2 all requests that were sent at once.
    let at_once = lost.len() == findings.lost && lost.windows(2).all(|two| two[0].at == two[1].at);
    let lost_one = !lost.is_empty() && at_once && lost.into_iter().all(is_reset);
    lost_one && findings.cut + findings.failed + findings.late == 0
}

/// The control: where the same clients do lose something, it is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_axum_serve_loses_is_found() {
    for round in 1..=ROUNDS * 20 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = axum::serve(listener, app()).with_graceful_shutdown(async {
            let _ = stopped.await; // it is dropped
        });
        let server = tokio::spawn(serve.into_future());
        let findings = probing(address).http1_only().through(|| {
            drop(stop);
            server
        });
        let findings = findings.await;
        if findings.lost > 0 {
            println!("measured: in round {round}: {findings}");
            return;
        }
    }
    panic!("it has lost nothing");
}

const ROUNDS: usize = 10;

/// Many short ones.
fn probing(address: SocketAddr) -> Probe {
    let probe = Probe::new(address).clients(24).limit(BOUND);
    probe.warm_up(Duration::from_millis(30))
}

/// Connects are refused from then on, and not before.
#[tokio::test]
async fn a_lame_duck_accepts() {
    let accepts = Duration::from_millis(200);
    for (expected, refused_early) in [(accepts, false), (accepts * 100, true)] {
        let terminator = Terminator::builder().lame_duck(accepts).build();
        let address = serve(&terminator).await;
        let probe = Probe::new(address).accepts_for(expected).limit(BOUND);
        let guard = terminator.guard();
        let findings = probe.through(async || {
            let ended = terminator.terminate();
            terminator.reached(Phase::Draining).await;
            // Time is the subject: that for which it refuses before it returns.
            tokio::time::sleep(accepts).await;
            drop(guard);
            ended.await
        });
        let findings = findings.await;
        assert_eq!(findings.refused_early > 0, refused_early, "{findings:#}");
        assert_eq!(findings.refused > 0, !refused_early, "{findings:#}");
        assert_eq!(findings.is_lossless(), !refused_early, "{findings:#}");
    }
}

/// Who takes over at once, it was said, and does not.
#[tokio::test]
async fn who_is_to_accept_for_ever_refuses_too_early() {
    let terminator = Terminator::new();
    let address = serve(&terminator).await;
    let probe = Probe::new(address).accepts_for(Duration::MAX).limit(BOUND);
    let findings = probe.through(|| terminator.terminate()).await;
    assert!(findings.refused_early > 0, "{findings:#}");
    assert_eq!(findings.refused, 0, "{findings:#}");
}

/// Its successor has accepted what it answers only long after the one that was told has returned.
#[tokio::test]
async fn a_successor_may_take_its_time() {
    for one in [Probe::http1_only, Probe::http2_only] {
        let (old, new) = (Terminator::new(), Terminator::new());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let shared = || {
            let listener = listener.try_clone().expect("a descriptor");
            listener.set_nonblocking(true).expect("it can be set");
            Inherited(TcpListener::from_std(listener).expect("a runtime"))
        };
        tokio::spawn(old.serve(shared(), app()));
        let (asks, mut asked) = mpsc::unbounded_channel();
        let first = old.clone();
        let slow = async move || {
            asks.send(()).expect("it is looked for");
            first.terminated().await;
            // Time is the subject.
            tokio::time::sleep(Duration::from_millis(700)).await;
            "late, and whole"
        };
        let successor = Router::new().route("/", get(slow));
        let probe = one(Probe::new(address)).accepts_for(Duration::MAX);
        let findings = probe.limit(BOUND).through(async || {
            tokio::spawn(new.serve(shared(), successor));
            let guard = old.guard();
            let ended = old.terminate();
            asked.recv().await.expect("somebody asks");
            drop(guard);
            ended.await
        });
        let findings = within(BOUND * 2, "the findings", findings).await;
        findings.assert_nothing_lost();
        new.terminate().await;
    }
}

/// That is no excuse for what the first one has in hand when it says that it has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_successor_is_late_all_the_same() {
    let takes_over = |it: Probe| it.http1_only().accepts_for(Duration::MAX);
    let findings = Bad::with(Fault::Late).through(takes_over, true).await;
    assert!(findings.late > 0, "{findings:#}");
}

// ===== what there is is found =====

/// What a bad server does with a request, once it is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Drop,
    Cut,
    CutChunks,
    HalfAHead,
    Hang,
    /// When it has ended, as it says, more than half a second ago.
    Late,
    Fail,
    /// It answers well, and closes neither its connections nor its port.
    StayOpen,
}

impl Fault {
    const ALL: [Self; 8] = [
        Self::Drop,
        Self::Cut,
        Self::CutChunks,
        Self::HalfAHead,
        Self::Hang,
        Self::Late,
        Self::Fail,
        Self::StayOpen,
    ];

    /// What it is found as.
    fn kind(self) -> Kind {
        match self {
            Self::Drop | Self::Hang => Kind::Lost,
            Self::Cut | Self::CutChunks | Self::HalfAHead => Kind::Cut,
            Self::Late => Kind::Late,
            Self::Fail => Kind::Failed,
            Self::StayOpen => Kind::Open,
        }
    }

    /// Whether its connections are open when it says that it has ended.
    fn hangs(self) -> bool {
        matches!(self, Self::Hang | Self::Late | Self::StayOpen)
    }

    fn commit(self, socket: &mut TcpStream, bad: &Bad) -> io::Result<()> {
        match self {
            Self::Drop => Ok(()),
            Self::Cut => socket.write_all(&OK[..OK.len() - 1]),
            Self::CutChunks => socket
                .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"),
            Self::HalfAHead => socket.write_all(b"HTTP/1.1 200 OK\r\ncont"),
            // Until the client leaves.
            Self::Hang => socket.read(&mut [0]).map(drop),
            Self::Late => {
                while !bad.0.has_ended.load(SeqCst) {
                    thread::yield_now();
                }
                // Time is the subject.
                thread::sleep(Duration::from_millis(1500));
                socket.write_all(LAST)
            }
            Self::Fail => socket.write_all(b"HTTP/1.1 503 Oh\r\ncontent-length: 0\r\n\r\n"),
            Self::StayOpen => {
                socket.write_all(LAST)?;
                // Until this process ends.
                loop {
                    thread::park();
                }
            }
        }
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const LAST: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// A server on threads that serves well until it is told to end. Then it closes its port, unless it is to stay open, and
/// only then go its connections wrong.
#[derive(Clone)]
struct Bad(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    told: AtomicBool,
    closed: AtomicBool,
    /// As far as it says.
    has_ended: AtomicBool,
    /// Connections.
    open: AtomicUsize,
    /// Of those, how many have gone wrong.
    wrong: AtomicUsize,
}

impl Bad {
    fn start(
        stays_open: bool,
        serve: impl Fn(TcpStream, &Self) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("it can be set");
        let it = Self(Arc::new(Inner {
            address: listener.local_addr().expect("it is bound"),
            told: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            wrong: AtomicUsize::new(0),
        }));
        let (bad, serve) = (it.clone(), Arc::new(serve));
        thread::spawn(move || {
            loop {
                let is_told = bad.0.told.load(SeqCst);
                if let Ok((socket, _)) = listener.accept() {
                    socket.set_nonblocking(false).expect("it can be set");
                    bad.0.open.fetch_add(1, SeqCst);
                    let (serve, bad) = (Arc::clone(&serve), bad.clone());
                    thread::spawn(move || {
                        let _ = serve(socket, &bad); // its client may have left
                        bad.0.open.fetch_sub(1, SeqCst);
                    });
                    continue;
                }
                if is_told && !stays_open {
                    break;
                }
                bad.0.closed.store(is_told, SeqCst);
                thread::sleep(Duration::from_micros(100));
            }
            drop(listener);
            bad.0.closed.store(true, SeqCst);
        });
        it
    }

    fn goes_wrong(&self) -> bool {
        self.0.closed.load(SeqCst)
    }

    fn with(fault: Fault) -> Self {
        Self::start(fault == Fault::StayOpen, move |mut socket, bad| {
            loop {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    socket.read_exact(&mut byte)?;
                    head.extend(byte);
                }
                if bad.goes_wrong() {
                    bad.0.wrong.fetch_add(1, SeqCst);
                    let done = fault.commit(&mut socket, bad);
                    drop(socket);
                    bad.0.wrong.fetch_sub(1, SeqCst);
                    return done;
                }
                socket.write_all(OK)?;
            }
        })
    }

    /// It says that it has ended when its connections have, or have all gone wrong, if they `hang`.
    async fn through(self, speaks: fn(Probe) -> Probe, hang: bool) -> Findings {
        // However long this machine may stand still, it is not to blame.
        let probe = Probe::new(self.0.address).settle(Duration::MAX);
        let findings = speaks(probe.clients(2).limit(LIMIT)).through(async || {
            self.0.told.store(true, SeqCst);
            let is_open = || {
                let open = self.0.open.load(SeqCst);
                !self.goes_wrong() || open > 0 && !(hang && open == self.0.wrong.load(SeqCst))
            };
            while is_open() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            self.0.has_ended.store(true, SeqCst);
        });
        within(BOUND * 2, "the findings", findings).await
    }
}

const LIMIT: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_is_found_over_http1() {
    each(Fault::ALL, async |fault| {
        let findings = Bad::with(fault)
            .through(Probe::http1_only, fault.hangs())
            .await;
        let of_kind = findings.samples.iter().filter(|it| it.kind == fault.kind());
        let of_kind: Vec<_> = of_kind.collect();
        assert!(!of_kind.is_empty(), "{fault:?}: {findings:#}");
        for it in of_kind {
            assert_eq!(it.protocol, Protocol::Http1);
            let request = (fault != Fault::StayOpen).then_some("GET /");
            assert_eq!(it.request.as_deref(), request, "{fault:?}: {findings:#}");
        }
        // A connect may have come between the last look into the queue and the close of the port.
        let lost = findings.lost <= 1 || fault.kind() == Kind::Lost;
        let cut = findings.cut == 0 || fault.kind() == Kind::Cut;
        let failed = findings.failed == 0 || fault.kind() == Kind::Failed;
        let late = findings.late == 0 || fault.kind() == Kind::Late;
        let open = findings.open == 0 || fault.hangs();
        assert!(
            lost && cut && failed && late && open,
            "{fault:?}: {findings:#}"
        );
        assert_eq!(findings.refused_early, 0, "{fault:?}: {findings:#}");
        let stays_open = fault == Fault::StayOpen;
        assert_eq!(
            findings.is_lossless(),
            stays_open,
            "{fault:?}: {findings:#}"
        );
        assert_eq!(findings.listening, stays_open, "{fault:?}: {findings:#}");
        assert!(!findings.is_gone() || findings.open == 0, "{findings:#}");
    });
}

/// So many clients take the probe's thread longer for a round than the server is to wait, so that of each request that it
/// reads and drops its close may have been decided on before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_clients_is_no_excuse_for_what_is_dropped() {
    let crowd = |it: Probe| it.http1_only().clients(400).settle(SETTLE);
    let findings = Bad::with(Fault::Drop).through(crowd, false).await;
    println!("measured: {findings}");
    assert!(findings.lost + findings.crossed > 100, "{findings:#}");
    assert!(!findings.is_lossless(), "{findings:#}");
}

/// The default.
const SETTLE: Duration = Duration::from_millis(25);

/// It refuses long before it is told to end.
#[tokio::test]
async fn a_port_that_closes_early_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let task = tokio::spawn(async move {
        let (socket, _) = listener.accept().await?;
        drop(listener);
        let mut socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        blocking(move || {
            socket
                .read(&mut [0; 1000])
                .and_then(|_| socket.write_all(LAST))
        })
        .await
    });
    let probe = Probe::new(address).http1_only().clients(1);
    let findings = probe.through(|| task).await;
    assert!(findings.refused_early > 0, "{findings:#}");
    assert!(!findings.is_lossless(), "{findings:#}");
    let early = |it: &Finding| {
        let is_before = matches!(it.at, When::Before(_));
        it.kind == Kind::RefusedEarly && is_before
    };
    assert!(findings.samples.iter().any(early), "{findings:#}");
}

/// Accepted by the kernel and reset before a byte could be written: that is no request that may as well be sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_connection_that_is_reset_is_found() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let resets = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&resets);
        // Until the test's process ends.
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                SockRef::from(&socket)
                    .set_linger(Some(Duration::ZERO))
                    .expect("the option is known");
                drop(socket);
                counted.fetch_add(1, SeqCst);
            }
        });
        let probe = match protocol {
            Protocol::Http1 => Probe::new(address).http1_only(),
            _ => Probe::new(address).http2_only(),
        };
        let probe = probe.clients(2).warm_up(Duration::from_millis(300));
        let findings = within(BOUND, "the findings", probe.through(async || ())).await;
        assert!(resets.load(SeqCst) > 10, "{findings:#}");
        assert_eq!(findings.retried, 0, "{findings:#}");
        assert!(findings.lost + findings.refused_early > 10, "{findings:#}");
    }
}

/// And so is one that loses nothing, because it has answered nothing.
#[tokio::test]
async fn a_server_that_is_not_there_is_found() {
    // Nobody listens, and no other test is given that port: one that resets all who connect once was.
    let bound = TcpSocket::new_v4().expect("a socket");
    let any = "127.0.0.1:0".parse().expect("an address");
    bound.bind(any).expect("a port");
    let address = bound.local_addr().expect("it is bound");
    let probe = Probe::new(address).accepts_for(Duration::ZERO);
    let findings = probe.through(async || ()).await;
    assert_eq!((findings.answered, findings.lost), (0, 0), "{findings}");
    assert!(!findings.is_lossless(), "{findings}");
    drop(bound);
}

/// Its queue is full, and it never accepts: a connect is neither made nor refused.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_that_answers_no_connect_is_found() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    SockRef::from(&listener).listen(0).expect("it listens");
    let bound = Duration::from_millis(50);
    let connect = || TcpStream::connect_timeout(&address, bound).ok();
    let queued: Vec<_> = (0..4).map_while(|_| connect()).collect();
    assert!(queued.len() < 4, "room for all of them");
    // Half a second of it before the call, or not.
    for (before, early) in [(900, true), (10, false)] {
        let before = Duration::from_millis(before);
        let probe = Probe::new(address).warm_up(before).answer_within(before);
        let findings = within(BOUND, "the findings", probe.through(async || ())).await;
        let (is_early, is_late) = (findings.refused_early > 0, findings.refused > 0);
        assert!(if early { is_early } else { is_late }, "{findings:#}");
        assert_eq!((findings.lost, findings.answered), (0, 0), "{findings:#}");
    }
    drop((queued, listener));
}

/// It shows nothing of the server, and is not hidden. The limit is a process's, so it needs one of its own.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_probe_without_descriptors_blames_nobody() {
    const NAME: &str = "a_probe_without_descriptors_blames_nobody";
    const ADDRESS: &str = "HTTP_TERMINATOR_TEST_ADDRESS";
    if let Ok(address) = std::env::var(ADDRESS) {
        let address: SocketAddr = address.parse().expect("an address");
        let set = |most| format!("prlimit --pid {} --nofile={most}:", std::process::id());
        let script = format!("{} && sleep 0.2; {}", set(1), set(1024));
        let findings = Probe::new(address).limit(BOUND).through(async || {
            let mut sh = Command::new("sh").args(["-c", &script]).start();
            let sh = sh.as_mut().expect("there is a shell");
            while sh.try_wait().expect("it is ours").is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let findings = findings.await;
        assert!(findings.hindered > 0, "{findings:#}");
        let refused = findings.refused + findings.refused_early;
        assert_eq!(refused, 0, "{findings:#}");
        let is_said =
            |it: &Finding| it.kind == Kind::Hindered && it.what.contains("Too many open files");
        assert!(findings.samples.iter().any(is_said), "{findings:#}");
        findings.assert_nothing_lost();
        return;
    }
    if Command::new("prlimit").arg("-V").read().is_err() {
        support::skip::skip("no `prlimit` of util-linux");
        return;
    }
    let terminator = Terminator::new();
    let address = serve(&terminator).await;
    let child = blocking(move || {
        let this = std::env::current_exe().expect("this test");
        let mut child = Command::new(this);
        let child = child.args(["--exact", NAME]);
        child.env(ADDRESS, address.to_string()).read()
    });
    let child = child.await.expect("a process");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}"
    );
    terminator.terminate().await;
}

#[tokio::test]
async fn a_termination_that_does_not_return_is_found() {
    let terminator = Terminator::new();
    let probe = Probe::new(serve(&terminator).await).limit(Duration::from_millis(300));
    let begin = Instant::now();
    let findings = within(BOUND, "the findings", probe.through(future::pending::<()>)).await;
    assert!(findings.returned.is_none(), "{findings}");
    assert!(!findings.is_lossless() && !findings.is_gone(), "{findings}");
    assert!(begin.elapsed() < BOUND);
    terminator.force().await;
}

// ===== over HTTP/2 =====

/// What a bad server does with streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault2 {
    /// By `REFUSED_STREAM`.
    Refuse,
    /// By a GOAWAY whose last stream is an earlier one.
    GoAway,
    /// The same, for another reason than that there is none.
    GoAwayCalm,
    /// By a GOAWAY that says that it will be answered, and then by the end.
    GoAwayAndClose,
    Close,
    Reset,
    CutBody,
    /// `REFUSED_STREAM`, though an answer has begun.
    CutByRefusal,
    /// A GOAWAY whose last stream is an earlier one, though an answer has begun.
    CutByGoAway,
    HalfAHead,
    Hang,
    /// Takes one stream at a time, and closes as it comes.
    CloseOneAtATime,
}

impl Fault2 {
    const ALL: [Self; 12] = [
        Self::Refuse,
        Self::GoAway,
        Self::GoAwayCalm,
        Self::GoAwayAndClose,
        Self::Close,
        Self::Reset,
        Self::CutBody,
        Self::CutByRefusal,
        Self::CutByGoAway,
        Self::HalfAHead,
        Self::Hang,
        Self::CloseOneAtATime,
    ];

    fn kind(self) -> Kind {
        match self {
            Self::Refuse | Self::GoAway | Self::GoAwayCalm => Kind::Retried,
            Self::CutBody | Self::CutByRefusal | Self::CutByGoAway | Self::HalfAHead => Kind::Cut,
            _ => Kind::Lost,
        }
    }

    /// Whether it goes on with the next stream.
    fn commit(self, socket: &mut TcpStream, stream: u32) -> io::Result<bool> {
        const REFUSED_STREAM: u32 = 7;
        const CANCEL: u32 = 8;
        const ENHANCE_YOUR_CALM: u32 = 11;
        let go_away = |last: u32, code: u32| [last.to_be_bytes(), code.to_be_bytes()].concat();
        match self {
            Self::Refuse => write_frame(
                socket,
                kind::RST_STREAM,
                0,
                stream,
                &REFUSED_STREAM.to_be_bytes(),
            )?,
            Self::Reset => write_frame(socket, kind::RST_STREAM, 0, stream, &CANCEL.to_be_bytes())?,
            Self::GoAway => write_frame(
                socket,
                kind::GOAWAY,
                0,
                0,
                &go_away(stream.saturating_sub(2), 0),
            )?,
            Self::GoAwayCalm => {
                let payload = go_away(stream.saturating_sub(2), ENHANCE_YOUR_CALM);
                write_frame(socket, kind::GOAWAY, 0, 0, &payload)?;
            }
            Self::GoAwayAndClose => write_frame(socket, kind::GOAWAY, 0, 0, &go_away(1 << 30, 0))?,
            Self::CutBody => {
                write_frame(socket, kind::HEADERS, END_HEADERS, stream, STATUS_200)?;
                write_frame(socket, kind::DATA, 0, stream, b"some")?;
            }
            Self::CutByRefusal => {
                Self::CutBody.commit(socket, stream)?;
                return Self::Refuse.commit(socket, stream);
            }
            Self::CutByGoAway => {
                Self::CutBody.commit(socket, stream)?;
                return Self::GoAway.commit(socket, stream);
            }
            Self::HalfAHead => {
                let mut frame = Vec::new();
                write_frame(&mut frame, kind::HEADERS, END_HEADERS, stream, STATUS_200)?;
                socket.write_all(&frame[..frame.len() - 1])?;
            }
            Self::Hang | Self::Close | Self::CloseOneAtATime => {}
        }
        Ok(matches!(self, Self::Refuse | Self::Reset | Self::Hang))
    }
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
/// From HPACK's static table.
const STATUS_200: &[u8] = &[0x88];

fn write_frame(
    to: &mut impl Write,
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(payload.len()).expect("it is short");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    to.write_all(&frame)
}

/// Kind, flags and stream.
fn read_frame(from: &mut impl Read) -> io::Result<(u8, u8, u32)> {
    let mut header = [0; 9];
    from.read_exact(&mut header)?;
    let [a, b, c, kind, flags, stream @ ..] = header;
    let length = u64::from(u32::from_be_bytes([0, a, b, c]));
    io::copy(&mut from.by_ref().take(length), &mut io::sink())?;
    Ok((kind, flags, u32::from_be_bytes(stream)))
}

impl Bad {
    fn with2(fault: Fault2) -> Self {
        Self::start(false, move |mut socket, bad| {
            let mut has_gone_wrong = false;
            socket.read_exact(&mut [0; PREFACE.len()])?;
            // MAX_CONCURRENT_STREAMS
            let most: u32 = if fault == Fault2::CloseOneAtATime {
                1
            } else {
                100
            };
            let settings = [&[0, 3][..], &most.to_be_bytes()].concat();
            write_frame(&mut socket, kind::SETTINGS, 0, 0, &settings)?;
            loop {
                // Until its client leaves.
                let Ok((kind, flags, stream)) = read_frame(&mut socket) else {
                    bad.0.wrong.fetch_sub(usize::from(has_gone_wrong), SeqCst);
                    return Ok(());
                };
                if kind == kind::SETTINGS && flags & ACK == 0 {
                    write_frame(&mut socket, kind::SETTINGS, ACK, 0, &[])?;
                } else if kind == kind::HEADERS && bad.goes_wrong() {
                    if !mem::replace(&mut has_gone_wrong, true) {
                        bad.0.wrong.fetch_add(1, SeqCst);
                    }
                    if !fault.commit(&mut socket, stream)? {
                        return lingering_close(socket);
                    }
                } else if kind == kind::HEADERS {
                    let flags = END_HEADERS | END_STREAM;
                    write_frame(&mut socket, kind::HEADERS, flags, stream, STATUS_200)?;
                }
            }
        })
    }
}

/// Such that what was written is not destroyed by a reset.
fn lingering_close(mut socket: TcpStream) -> io::Result<()> {
    socket.shutdown(Shutdown::Write)?;
    socket.set_read_timeout(Some(BOUND))?;
    io::copy(&mut socket, &mut io::sink()).map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_is_found_over_http2() {
    each(Fault2::ALL, async |fault| {
        let findings = Bad::with2(fault);
        let findings = findings
            .through(Probe::http2_only, fault == Fault2::Hang)
            .await;
        let count = match fault.kind() {
            Kind::Lost => findings.lost,
            Kind::Cut => findings.cut,
            _ => findings.retried,
        };
        assert!(count > 0, "{fault:?}: {findings:#}");
        let is_harmless = fault.kind() == Kind::Retried;
        assert_eq!(
            findings.is_lossless(),
            is_harmless,
            "{fault:?}: {findings:#}"
        );
        if fault.kind() == Kind::Cut {
            // Those that were asked with it.
            assert!(findings.lost <= 3, "{fault:?}: {findings:#}");
        }
        if fault == Fault2::CloseOneAtATime {
            // Those that it was asked for with it, and that have not been answered, never came to be written.
            assert_eq!((findings.lost, findings.cut), (1, 0), "{findings:#}");
        }
        let sample = findings.samples.iter().find(|it| it.kind == fault.kind());
        let sample = sample.expect("it is counted");
        assert_eq!(sample.protocol, Protocol::Http2, "{findings:#}");
    });
}

/// Four requests at a time on each connection: that one of them takes its time is no delay of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_over_http2_is_not_late_for_what_was_asked_with_it() {
    let slow = async || {
        // Time is the subject.
        tokio::time::sleep(Duration::from_millis(300)).await;
        "late, and whole"
    };
    let terminator = Terminator::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let app = app().route("/slow", get(slow));
    tokio::spawn(terminator.serve(listener, app));
    let probe = Probe::new(address).http2_only().get("/").get("/slow");
    let probe = probe.answer_within(Duration::from_millis(150)).limit(BOUND);
    let findings = probe.through(|| terminator.terminate()).await;
    assert!(findings.late > 0 && findings.answered > 0, "{findings:#}");
    let late = findings.samples.iter().filter(|it| it.kind == Kind::Late);
    for it in late {
        assert_eq!(it.request.as_deref(), Some("GET /slow"), "{findings:#}");
    }
}

// ===== wherever it runs =====

/// The termination of somebody else, whose executor may be anything.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unparks(Thread);
    impl Wake for Unparks {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unparks(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    let begin = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        assert!(begin.elapsed() < BOUND * 2, "it does not end");
        thread::park_timeout(BOUND);
    }
}

/// It has begun and hammers; then nobody is interested any more.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_is_dropped_ends_its_thread() {
    // Other tests have threads of that name.
    if alone("a_probe_that_is_dropped_ends_its_thread", &[], 3 * BOUND) {
        return;
    }
    let terminator = Terminator::new();
    let address = serve(&terminator).await;
    let (asks, asked) = oneshot::channel();
    let probing = Probe::new(address).through(move || {
        let _ = asks.send(thread_names());
        future::pending::<()>()
    });
    let probing = tokio::spawn(probing);
    let names = within(BOUND, "the call", asked)
        .await
        .expect("it is called");
    assert!(
        names.iter().any(|it| PROBE.starts_with(it.as_str())),
        "{names:?}"
    );
    probing.abort();
    let ended = async {
        while terminator.stats().connections > 0 {
            tokio::task::yield_now().await;
        }
    };
    within(BOUND, "the end of its connections", ended).await;
    let has = |names: &[String]| names.iter().any(|it| PROBE.starts_with(it.as_str()));
    until_async("its thread's end", || !has(&thread_names())).await;
    terminator.terminate().await;
}

#[cfg(target_os = "linux")]
const PROBE: &str = "terminator-probe";

#[cfg(target_os = "linux")]
fn thread_names() -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").expect("this is Linux");
    let names = threads.flatten().filter_map(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
        Some(name.trim_end().to_owned())
    });
    names.collect()
}

// ===== paused time =====

fn is_paused() -> bool {
    let (tokio, system) = (tokio::time::Instant::now(), Instant::now());
    while Instant::now() == system {}
    tokio == tokio::time::Instant::now()
}

/// Paused time jumps to the end of the timeout, as nobody has anything else to do while the driver's thread is at work.
#[tokio::test(start_paused = true)]
async fn a_timeout_around_terminate_fires_at_once_in_paused_time_only() {
    let grace = Duration::from_millis(100);
    let held = || {
        let terminator = Terminator::builder().grace_period(grace).build();
        let guard = terminator.guard().expect("it serves");
        (terminator, guard)
    };
    let (terminator, _guard) = held();
    let ended = timeout(Duration::from_secs(3600), terminator.terminate()).await;
    assert!(ended.is_err(), "{ended:?}");

    let (terminator, _guard) = held();
    let ended = real_time(timeout(BOUND, terminator.terminate())).await;
    assert_eq!(ended.expect("in time").guards_cut, 1);
    assert!(is_paused());

    // And it is no way to wait for ever.
    let (terminator, _guard) = held();
    let ended = real_time(timeout(grace / 10, terminator.terminate())).await;
    assert!(ended.is_err(), "{ended:?}");
    terminator.terminate().await;
}

/// The first of two ends while the second still waits.
#[tokio::test(start_paused = true)]
async fn several_at_once_are_one() {
    let short = real_time(tokio::time::sleep(Duration::from_millis(5)));
    let long = real_time(async {
        let begin = Instant::now();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!is_paused());
        begin.elapsed()
    });
    let ((), took) = tokio::join!(short, long);
    assert!(took >= Duration::from_millis(50), "{took:?}");
    assert!(is_paused());
    // What is dropped ends as well.
    let dropped = timeout(Duration::from_millis(5), real_time(future::pending::<()>()));
    assert!(dropped.await.is_err());
    assert!(is_paused());
}

// ===== what is left =====

#[tokio::test]
async fn leftovers_are_found() {
    let before = Baseline::now();
    let terminator = Terminator::new();
    let address = serve(&terminator).await;
    let guard = terminator.guard();
    let left = before.leftovers(&terminator, address).await;
    assert!(left.listening && !left.is_none(), "{left}");
    assert_eq!(
        (left.listeners, left.guards, left.tasks),
        (1, 1, 1),
        "{left}"
    );
    let client = TcpStream::connect(address).expect("it accepts");
    drop(guard);
    terminator.terminate().await;
    before.leftovers(&terminator, address).await.assert_none();
    drop(client);
}

/// A task that is to end by a timer does so also where time is paused.
#[tokio::test(start_paused = true)]
async fn what_ends_by_a_timer_is_not_left_in_paused_time() {
    let before = Baseline::now();
    let terminator = Terminator::new();
    let address = serve(&terminator).await;
    terminator.terminate().await;
    tokio::spawn(tokio::time::sleep(Duration::from_millis(20)));
    before.leftovers(&terminator, address).await.assert_none();
    assert!(is_paused(), "as it was");
}
