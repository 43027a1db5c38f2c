//! Connections that fail from outside, at every state: their peer resets them, the kernel is told to destroy them, or the
//! network is gone without a word. And the wall clock jumps. None of it holds a drain, leaves a descriptor, or touches others.
//!
//! Other faults have their tests elsewhere: no descriptors left (`queue.rs`, and faked in `listener.rs`), accept errors (there,
//! too), send buffers that are full (`http1.rs`, `http2.rs`, `cut.rs`), loggers that panic or block, IO whose drop panics, spawns
//! or blocks, `SO_LINGER` (`foreign.rs`), runtimes that are dropped, stalled or not run, and no thread to be had (`runtimes.rs`).
#![cfg(all(target_os = "linux", feature = "serve", feature = "rustls"))]
#![allow(
    unreachable_pub,
    reason = "the support library is a module of every test run"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests read the clock and spawn clients"
)]

mod support;

use std::fs;
use std::future::IntoFuture;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use socket2::Socket;

use http_terminator::{Phase, Terminator, TerminatorBuilder};
use support::outside::{FAR, Host, SOON, alone, block_on, is_alone, measured, promised};
use support::skip::skip;
use support::starts::Start;
use support::wait::until;
use support::{
    App, BOUND, Dir, FrontEnd, Gate, RawClient, RawH2, Server, app, client_hello, kind,
    open_fds_to, side_by_side, start, tls_client,
};

// ===== at every state =====

/// What a connection is at when it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// It has sent nothing, not even of a TLS handshake.
    New,
    HalfHello,
    HalfHead,
    /// Kept alive, and over TLS half a record of the next request has come.
    HalfRecord,
    Between,
    HalfBody,
    InHandler,
    /// The first part of a response is out.
    UnderWay,
    /// Nothing is read of a response of megabytes, and the buffers are full.
    Unread,
    /// An early answer is out, and its upload goes on.
    ClosingInStages,
    Upgraded,
    Http2Idle,
    Http2InHandler,
    Http2UnderWay,
    Http2Unread,
}

impl At {
    const PLAIN: [Self; 13] = [
        Self::New,
        Self::HalfHead,
        Self::Between,
        Self::HalfBody,
        Self::InHandler,
        Self::UnderWay,
        Self::Unread,
        Self::ClosingInStages,
        Self::Upgraded,
        Self::Http2Idle,
        Self::Http2InHandler,
        Self::Http2UnderWay,
        Self::Http2Unread,
    ];

    /// Which of them there are behind this front end.
    fn of(front: FrontEnd) -> Vec<Self> {
        let mut all = Self::PLAIN.to_vec();
        if front.is_tls() {
            all.extend([Self::HalfHello, Self::HalfRecord]);
        }
        all
    }

    fn is_busy(self) -> bool {
        use At::{
            HalfBody, Http2InHandler, Http2UnderWay, Http2Unread, InHandler, UnderWay, Unread,
        };
        match self {
            HalfBody | InHandler | UnderWay | Unread => true,
            other => matches!(other, Http2InHandler | Http2UnderWay | Http2Unread),
        }
    }

    /// In the drain it is not there any more as soon as it has settled.
    fn is_idle(self) -> bool {
        matches!(self, Self::New | Self::Between | Self::Http2Idle)
    }
}

enum Client {
    Http1(RawClient),
    Http2(RawH2),
}

struct Site {
    terminator: Terminator,
    server: Server,
    gate: Gate,
    /// How many connections are to have a request in hand.
    busy: AtomicUsize,
    // Last: it takes the tasks with it.
    _host: Host,
}

impl Site {
    fn start(front: FrontEnd, builder: TerminatorBuilder) -> Self {
        let terminator = builder.build();
        let host = Host::workers(2);
        let gate = Gate::new();
        let state = App {
            gate: gate.clone(),
            terminator: None,
        };
        let server = host.block_on(start(front, &terminator, app(state)));
        Self {
            terminator,
            server,
            gate,
            busy: AtomicUsize::new(0),
            _host: host,
        }
    }

    /// A client whose connection is at that.
    fn client(&self, at: At) -> Client {
        if matches!(at, At::Unread | At::Http2Unread) {
            // Made once, and not by a handler that blocks its thread with it.
            support::big();
        }
        let accepted = self.terminator.stats().accepted;
        let client = match at {
            At::Http2Idle | At::Http2InHandler | At::Http2UnderWay | At::Http2Unread => {
                Client::Http2(self.http2(at))
            }
            at => Client::Http1(self.http1(at)),
        };
        let busy = self.busy.load(Ordering::SeqCst) + usize::from(at.is_busy());
        self.busy.store(busy, Ordering::SeqCst);
        until(&format!("{at:?}"), || {
            let stats = self.terminator.stats();
            stats.accepted > accepted
                && stats.busy >= busy
                && (at != At::Upgraded || stats.upgraded > 0)
        });
        client
    }

    fn http1(&self, at: At) -> RawClient {
        let addr = self.server.addr.expect("a TCP server");
        let mut client = match at {
            At::New | At::HalfHello => RawClient::connect(addr),
            _ => self.server.connect(),
        };
        match at {
            At::HalfHello => {
                let hello = client_hello(&mut tls_client(&["http/1.1"]));
                client.send(&hello[..hello.len() / 2]);
            }
            At::HalfHead => client.send("GET /quick HTTP/1.1\r\nhost:"),
            At::HalfRecord => {
                assert_eq!(client.fetch("/quick").status, 200);
                let record = client.encrypt("GET /quick HTTP/1.1\r\nhost: x\r\n\r\n");
                client.send_raw(&record[..record.len() / 2]);
            }
            At::Between => assert_eq!(client.fetch("/quick").status, 200),
            At::HalfBody => {
                client.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf");
            }
            At::InHandler => {
                let entered = self.gate.entered() + 1;
                client.get("/slow");
                self.gate.wait_entered(entered);
            }
            At::UnderWay => {
                let entered = self.gate.entered() + 1;
                client.get("/stream");
                assert_eq!(client.read_response_headers().status, 200);
                self.gate.wait_entered(entered);
            }
            At::Unread => client.get("/big"),
            At::ClosingInStages => {
                client.send("POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n\r\n");
                assert_eq!(client.read_response().status, 413);
                client.send([b'x'; 1_000]);
            }
            At::Upgraded => {
                client.get_upgrade("/upgrade");
                assert_eq!(client.read_response_headers().status, 101);
                client.send("hello");
                assert_eq!(client.read_exact(5), b"hello");
            }
            _ => assert_eq!(at, At::New, "the others speak HTTP/2"),
        }
        client
    }

    fn http2(&self, at: At) -> RawH2 {
        const INITIAL_WINDOW_SIZE: u16 = 4;
        let window = (1 << 31) - 1;
        let mut client = RawH2::connect_with(&self.server.target, &[(INITIAL_WINDOW_SIZE, window)]);
        client.ack_settings();
        client.window_update(0, 1 << 30);
        let entered = self.gate.entered();
        match at {
            At::Http2Idle => {
                client.get("/quick", 1);
                client.read_until(kind::DATA);
            }
            At::Http2InHandler => {
                for stream in [1, 3, 5] {
                    client.get("/slow", stream);
                }
                self.gate.wait_entered(entered + 3);
            }
            At::Http2UnderWay => {
                client.get("/stream", 1);
                client.read_until(kind::DATA);
                self.gate.wait_entered(entered + 1);
            }
            _ => client.get("/big", 1),
        }
        client
    }
}

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Its peer sends a reset.
    Reset,
    /// `ss -K` has the kernel take the server's socket away.
    Destroyed,
}

impl Fault {
    fn all() -> Vec<Self> {
        if can_destroy() {
            return vec![Self::Reset, Self::Destroyed];
        }
        skip("`ss -K`: needs root, iproute2, and a kernel with CONFIG_INET_DIAG_DESTROY");
        vec![Self::Reset]
    }

    fn strike(self, client: Client, server: u16) -> Option<Client> {
        match self {
            Self::Reset => {
                let lingers = client.socket().set_linger(Some(Duration::ZERO));
                lingers.expect("a TCP socket takes it");
                drop(client);
                None
            }
            Self::Destroyed => {
                assert!(destroy(server, client.port()), "it was there");
                Some(client)
            }
        }
    }
}

impl Client {
    fn socket(&self) -> &Socket {
        match self {
            Self::Http1(client) => client.socket(),
            Self::Http2(client) => client.socket(),
        }
    }

    fn port(&self) -> u16 {
        let local = self.socket().local_addr().expect("it is connected");
        local.as_socket().expect("IP").port()
    }
}

/// Whether there was such a connection.
fn destroy(from: u16, to: u16) -> bool {
    let mut ss = Command::new("ss");
    ss.args(["-tKHn", "sport", "=", &format!(":{from}")]);
    ss.args(["and", "dport", "=", &format!(":{to}")]);
    let said = ss.read();
    said.is_ok_and(|said| said.status.success() && !said.stdout.is_empty())
}

/// Tried on a connection of nobody's.
fn can_destroy() -> bool {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("bound");
    let client = RawClient::connect(addr);
    let accepted = listener.accept();
    let port = Client::Http1(client).port();
    drop(accepted.expect("a client"));
    let client = RawClient::connect(addr);
    let accepted = listener.accept().expect("a client").0;
    let client = Client::Http1(client);
    assert_ne!(client.port(), port);
    destroy(addr.port(), client.port()) && accepted.take_error().is_ok_and(|it| it.is_some())
}

/// While serving: it is gone, and nobody else notices.
#[test]
fn a_connection_that_fails_at_any_state_is_gone_while_serving() {
    side_by_side(fronts(), |front| {
        for fault in Fault::all() {
            for at in At::of(front) {
                let what = format!("{front:?}, {fault:?}, {at:?}");
                let site = Site::start(front, patient());
                let mut other = site.server.connect();
                assert_eq!(other.fetch("/quick").status, 200, "{what}");
                until("the other one is idle", || {
                    site.terminator.stats().busy == 0
                });
                let client = site.client(at);
                let begin = Instant::now();
                let kept = fault.strike(client, site.server.port());
                until(&format!("{what}: it is counted out"), || {
                    site.terminator.stats().connections == 1
                });
                measured(begin.elapsed(), SOON, &what);
                until(&format!("{what}: its descriptor"), || {
                    open_fds_to(site.server.port()) == 1
                });
                assert_eq!(other.fetch("/quick").status, 200, "{what}");
                let report = block_on(BOUND, &what, site.terminator.terminate().into_future());
                assert!(
                    report.is_clean() && report.connections() == 1,
                    "{what}: {report}"
                );
                drop(kept);
            }
        }
    });
}

/// In the drain: it is waited for no longer.
#[test]
fn a_connection_that_fails_at_any_state_holds_no_drain() {
    side_by_side(fronts(), |front| {
        for fault in Fault::all() {
            for at in At::of(front).into_iter().filter(|at| !at.is_idle()) {
                let what = format!("{front:?}, {fault:?}, {at:?}");
                let site = Site::start(front, patient());
                let client = site.client(at);
                let termination = site.terminator.terminate();
                assert_eq!(site.terminator.phase(), Phase::Draining, "{what}");
                let begin = Instant::now();
                let kept = fault.strike(client, site.server.port());
                let report = block_on(BOUND, &what, termination.into_future());
                measured(begin.elapsed(), SOON, &what);
                assert!(
                    report.is_clean() && report.connections() == 1,
                    "{what}: {report}"
                );
                assert_eq!(open_fds_to(site.server.port()), 0, "{what}");
                drop(kept);
            }
        }
    });
}

fn fronts() -> [FrontEnd; 4] {
    [
        FrontEnd::Serve,
        FrontEnd::HyperServe,
        FrontEnd::OwnLoop,
        FrontEnd::ServeTls,
    ]
}

/// Neither the deadline nor a stall is to come.
fn patient() -> TerminatorBuilder {
    Terminator::builder().grace_period(FAR).stall_timeout(FAR)
}

// ===== without a word =====

/// The network goes under all of them, in a namespace of its own, and nothing that is sent arrives any more. What is idle is
/// closed as idle, what owes us bytes as stalled, and what owes nothing is cut at the deadline.
#[test]
fn peers_that_vanish_hold_no_deadline() {
    const NAME: &str = "peers_that_vanish_hold_no_deadline";
    const GRACE: Duration = Duration::from_secs(1);
    const NETWORK: [&str; 5] = [
        "unshare",
        "--net",
        "sh",
        "-c",
        "ip link set lo up && exec \"$@\"",
    ];
    if !is_alone() {
        let [program, args @ ..] = NETWORK;
        let mut tried = Command::new(program);
        let tried = tried.args(args).args(["sh", "true"]).stderr(Stdio::null());
        if !tried.run().is_ok_and(|status| status.success()) {
            return skip("a network of its own: needs root, `unshare` and `ip`");
        }
    }
    if alone(NAME, &[&NETWORK[..], &["sh"]].concat(), 6 * BOUND) {
        return;
    }
    for front in [FrontEnd::Serve, FrontEnd::ServeTls] {
        link("up");
        let builder = Terminator::builder().grace_period(GRACE);
        let site = Site::start(front, builder.stall_timeout(Duration::from_millis(300)));
        let clients: Vec<_> = At::of(front)
            .into_iter()
            .map(|at| site.client(at))
            .collect();
        assert_eq!(
            site.terminator.stats().connections,
            clients.len(),
            "{front:?}"
        );
        link("down");
        let report = block_on(BOUND, "the end", site.terminator.terminate().into_future());
        println!("{front:?}: {report}");
        promised(&report, GRACE);
        assert_eq!(report.connections(), clients.len(), "{front:?}: {report}");
        assert!(
            report.idle > 0 && report.stalled > 0 && report.forced > 0,
            "{front:?}: {report}"
        );
        assert_eq!(open_fds_to(site.server.port()), 0, "{front:?}");
    }
}

fn link(state: &str) {
    let set = Command::new("ip").args(["link", "set", "lo", state]).run();
    assert!(set.expect("it was there before").success(), "lo {state}");
}

// ===== the clock =====

/// The wall clock jumps by ten years, there and back, while a server serves and drains: a grace period is one all the same.
#[test]
fn a_wall_clock_that_jumps_moves_no_deadline() {
    const NAME: &str = "a_wall_clock_that_jumps_moves_no_deadline";
    const GRACE: Duration = Duration::from_millis(700);
    const FILE: &str = "HTTP_TERMINATOR_TEST_CLOCK";
    if !is_alone() {
        let Some(library) = libfaketime() else {
            return skip("no libfaketime (Debian's package faketime)");
        };
        let dir = Dir::new();
        let file = dir.0.join("clock");
        fs::write(&file, "+0").expect("a directory of ours");
        let file = file.display();
        alone(
            NAME,
            &[
                "env",
                "DONT_FAKE_MONOTONIC=1",
                "FAKETIME_NO_CACHE=1",
                &format!("FAKETIME_TIMESTAMP_FILE={file}"),
                &format!("{FILE}={file}"),
                &format!("LD_PRELOAD={library}"),
            ],
            3 * BOUND,
        );
        return;
    }
    let file = std::env::var(FILE).expect("as it was started");
    let (stop, jumped) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let jumps = {
        let (stop, jumped) = (Arc::clone(&stop), Arc::clone(&jumped));
        thread::spawn(move || {
            let now = SystemTime::now();
            let mut shift = ["+3650d", "-3650d"].iter().cycle();
            while !stop.load(Ordering::SeqCst) {
                fs::write(&file, shift.next().expect("no end")).expect("a file of ours");
                thread::sleep(Duration::from_millis(20));
                let far = now.duration_since(SystemTime::now()).is_ok();
                jumped.fetch_or(far, Ordering::SeqCst);
            }
        })
    };
    let builder = Terminator::builder().grace_period(GRACE);
    let site = Site::start(
        FrontEnd::Serve,
        builder.lame_duck(Duration::from_millis(200)),
    );
    let mut idle = site.server.connect();
    assert_eq!(idle.fetch("/quick").status, 200);
    let _pending = site.client(At::InHandler);
    until("the clock has jumped back", || {
        jumped.load(Ordering::SeqCst)
    });
    let begin = Instant::now();
    let report = block_on(BOUND, "the end", site.terminator.terminate().into_future());
    measured(begin.elapsed(), GRACE + SOON, "the end");
    stop.store(true, Ordering::SeqCst);
    jumps.join().expect("no panic");
    println!("{report}");
    assert!(report.draining >= GRACE, "{report:?}");
    promised(&report, GRACE);
    assert_eq!((report.idle, report.forced), (1, 1), "{report}");
}

/// The one for programs with threads.
fn libfaketime() -> Option<String> {
    let folders = fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok);
    let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let library = libraries.find(|library| library.exists())?;
    Some(library.display().to_string())
}
