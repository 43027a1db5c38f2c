//! What systemd hears of a terminator, and the example that it starts by its socket: under the real
//! `systemd-socket-activate` and `systemd-analyze`, where they are installed (Debian's package `systemd`).
//!
//! Who holds the sockets here is the test, as systemd would: `systemd-socket-activate` alone becomes the program that it
//! starts, and so can't restart it. Sockets that are passed to it, it passes on.
#![cfg(all(
    target_os = "linux",
    feature = "serve",
    feature = "signal",
    feature = "systemd"
))]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use http_terminator::Terminator;

use crate::support;
use crate::support::outside::{Host, Other, block_on, in_time, is_alone};
use crate::support::starts::Start;
use crate::support::wait::until;
use crate::support::{BOUND, Dir, Gate, RawClient, ReadEnd, Target};

const ACTIVATE: &str = "systemd-socket-activate";

/// The example's grace period.
const GRACE: Duration = Duration::from_secs(20);

/// From the deadline until all is cut.
const CUT: Duration = Duration::from_millis(135);

/// Of a message on its way here, on a machine that has other work.
const SLOW: Duration = Duration::from_millis(700);

// ===== what is said =====

#[test]
fn says_ready_stopping_what_is_left_and_the_end() {
    let manager = Manager::new();
    let service = Other::run(by_hand(&manager.name));
    let addr = address(&service);
    assert_eq!(manager.hear().lines, ["READY=1"]);

    let mut client = RawClient::connect(addr);
    assert_eq!(client.fetch("/").text(), "hello\n");
    client.get("/slow");
    service.terminate();
    let first = manager.hear();
    let deadline = first.at + GRACE;
    assert_eq!(first.lines[0], "STOPPING=1");
    let mut draining = vec![first];
    let last = loop {
        let next = manager.hear();
        if next.status().starts_with("terminated") {
            break next;
        }
        draining.push(next);
    };
    // At 0, 1 and 2 s of the three that the request takes.
    assert!((3..=4).contains(&draining.len()), "{draining:?}");
    for message in &draining {
        let status = message.status();
        assert!(status.starts_with("draining: 1 connection ("), "{status}");
        assert!(status.ends_with(" s left"), "{status}");
        message.asks_for_no_more_than(deadline);
    }
    let status = draining[1].status();
    assert!(
        status.contains(", 1 busy, 0 upgraded), 1 request, "),
        "{status}"
    );
    for (n, pair) in draining.windows(2).enumerate() {
        assert_eq!(pair[1].lines.len(), 2, "said once: {draining:?}");
        let apart = pair[1].at - pair[0].at;
        let second = Duration::from_secs(1);
        assert!(
            apart < second + SLOW && apart + SLOW > second,
            "{n}: {apart:?}"
        );
    }
    assert_eq!(last.lines.len(), 1, "{last:?}");
    let is_clean = last.status().starts_with("terminated cleanly in ");
    assert!(
        is_clean && last.status().ends_with(": 1 connection (1 finished)"),
        "{last:?}"
    );
    assert_eq!(client.read_response().status, 200);
    ends_well(service);
    manager.hears_nothing();
}

/// In a process of its own, as the variable is the process's: a lame duck, a deadline that is reached, and a handler that
/// blocks the only thread all the while.
#[test]
fn is_said_while_the_runtime_is_stalled_and_asks_for_no_time_beyond_the_deadline() {
    const LAME: Duration = Duration::from_millis(1_300);
    const GRACE: Duration = Duration::from_millis(1_500);
    if is_alone() {
        let terminator = Terminator::builder()
            .lame_duck(LAME)
            .grace_period(GRACE)
            .build();
        let host = Host::workers(1);
        let gate = Gate::new();
        let inside = gate.clone();
        let app = Router::new().route("/", get(async move || inside.enter_blocking()));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let addr = listener.local_addr().expect("it is bound");
        listener
            .set_nonblocking(true)
            .expect("a socket can be that");
        let ends = terminator.clone();
        let server = host.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            ends.serve(listener, app).await
        });
        // Twice is once, and as late as this is in time.
        until("it listens", || terminator.stats().listeners == 1);
        assert!(terminator.notify_systemd().expect("there is a socket"));
        assert!(terminator.notify_systemd().expect("there is a socket"));
        let client = RawClient::connect(addr);
        client.get("/");
        gate.wait_entered(1);
        let report = block_on(BOUND, "the end", terminator.terminate());
        assert_eq!(report.unresponsive, 1, "{report}");
        gate.open();
        drop(server);
        return;
    }
    let manager = Manager::new();
    let variable = format!("NOTIFY_SOCKET={}", manager.name);
    let name = concat!(
        module_path!(),
        "::is_said_while_the_runtime_is_stalled_and_asks_for_no_time_beyond_the_deadline"
    );
    let mut other = Other::start(name, &["env", &variable]);
    assert_eq!(manager.hear().lines, ["READY=1"]);
    let mut heard = vec![manager.hear()];
    while !heard
        .last()
        .is_some_and(|it| it.status().starts_with("terminated"))
    {
        heard.push(manager.hear());
    }
    let deadline = heard[0].at + LAME + GRACE;
    let phase = |it: &Message| it.status().split(':').next().map(str::to_owned);
    let mut phases: Vec<_> = heard.iter().filter_map(phase).collect();
    phases.dedup();
    let [lame, draining, forcing, last] = &phases[..] else {
        panic!("{heard:?}");
    };
    assert_eq!(
        (&lame[..], &draining[..], &forcing[..]),
        ("lame duck", "draining", "forcing")
    );
    assert!(last.starts_with("terminated by force in "), "{last}");
    // Two seconds have begun in each of the two.
    let (ending, [forcing, last]) = heard.split_at(heard.len() - 2) else {
        panic!("{heard:?}");
    };
    assert!((3..=4).contains(&ending.len()), "{heard:?}");
    assert_eq!(heard[0].lines[0], "STOPPING=1");
    for message in ending {
        message.asks_for_no_more_than(deadline);
    }
    // To cut, and to leave.
    assert_eq!(forcing.time(), Some(Duration::from_secs(1)));
    assert_eq!(last.time(), None);
    manager.hears_nothing();
    assert_eq!(other.wait(BOUND), Some(true), "{}", other.said());
}

/// A `Serve` that is dropped before anybody polls it serves what its listener has queued: that is an end, and no beginning.
#[test]
fn a_server_that_is_dropped_before_it_serves_is_not_ready() {
    if is_alone() {
        let terminator = Terminator::new();
        assert!(terminator.notify_systemd().expect("there is a socket"));
        let host = Host::workers(1);
        let _inside = host.enter();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let mut client = RawClient::connect(listener.local_addr().expect("it is bound"));
        listener
            .set_nonblocking(true)
            .expect("a socket can be that");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let app = Router::new().route("/", get(async || "served"));
        drop(terminator.serve(listener, app));
        assert_eq!(client.fetch("/").text(), "served");
        block_on(BOUND, "the end", terminator.terminate());
        return;
    }
    let manager = Manager::new();
    let variable = format!("NOTIFY_SOCKET={}", manager.name);
    let name = concat!(
        module_path!(),
        "::a_server_that_is_dropped_before_it_serves_is_not_ready"
    );
    let mut other = Other::start(name, &["env", &variable]);
    assert_eq!(manager.hear().lines[0], "STOPPING=1");
    assert_eq!(other.wait(BOUND), Some(true), "{}", other.said());
}

#[test]
fn hears_by_an_abstract_name_too() {
    let manager = Manager::new_abstract();
    let service = Other::run(by_hand(&manager.name));
    let addr = address(&service);
    assert_eq!(manager.hear().lines, ["READY=1"]);
    assert_eq!(RawClient::connect(addr).fetch("/").status, 200);
    service.terminate();
    assert_eq!(manager.hear().lines[0], "STOPPING=1");
    ends_well(service);
}

// ===== a socket that is gone, or full =====

#[test]
fn without_a_socket_it_says_so_and_serves() {
    for (name, says) in [
        ("", "there is no NOTIFY_SOCKET"),
        (
            "/nowhere/notify",
            "nothing can be sent to the socket that NOTIFY_SOCKET names",
        ),
        (
            "vsock:2:1234",
            "nothing can be sent to the socket that NOTIFY_SOCKET names",
        ),
    ] {
        let service = Other::run(by_hand(name));
        let mut client = RawClient::connect(address(&service));
        assert_eq!(client.fetch("/").status, 200);
        service.terminate();
        let said = ends_well(service);
        assert!(
            said.contains(&format!("nobody is notified: {says}")),
            "{said}"
        );
        assert_eq!(said.contains("Type=notify"), !name.is_empty(), "{said}");
    }
}

#[test]
fn a_socket_that_goes_away_is_logged_once_and_holds_nothing_up() {
    let manager = Manager::new();
    let service = Other::run(by_hand(&manager.name));
    let mut client = RawClient::connect(address(&service));
    assert_eq!(manager.hear().lines, ["READY=1"]);
    drop(manager);
    assert_eq!(client.fetch("/").status, 200);
    client.get("/slow");
    service.terminate();
    assert_eq!(client.read_response().status, 200);
    let said = ends_well(service);
    assert_eq!(said.matches("cannot notify systemd").count(), 1, "{said}");
}

/// Its queue has room for a few, and whoever waits for more would wait for ever.
#[test]
fn a_socket_that_is_full_holds_nothing_up_and_hears_ready_later() {
    let manager = Manager::new();
    let filled = manager.fill();
    let service = Other::run(by_hand(&manager.name));
    let mut client = RawClient::connect(address(&service));
    assert_eq!(client.fetch("/").status, 200);
    for _ in 0..filled {
        assert_eq!(manager.hear().lines, ["FULL=1"]);
    }
    assert_eq!(manager.hear().lines, ["READY=1"]);
    let filled = manager.fill();
    let begin = Instant::now();
    service.terminate();
    assert_ne!(client.read_to_end(), ReadEnd::Timeout);
    let said = ends_well(service);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(said.matches("cannot notify systemd").count(), 1, "{said}");
    for _ in 0..filled {
        assert_eq!(manager.hear().lines, ["FULL=1"]);
    }
    manager.hears_nothing();
}

// ===== sockets that are passed =====

#[test]
fn is_started_by_the_first_connection() {
    if !has(ACTIVATE) {
        return;
    }
    let dir = Dir::new();
    let path = dir.0.join("hello");
    let manager = Manager::new();
    let mut command = Command::new(ACTIVATE);
    command.arg("-l").arg(&path);
    command.args(["-E", &format!("NOTIFY_SOCKET={}", manager.name)]);
    command.arg(example()).stdin(Stdio::null());
    let service = Other::run(command);
    service.line("Listening on ");
    manager.hears_nothing();
    let mut client = RawClient::connect(Target::Unix(path));
    assert_eq!(client.fetch("/").text(), "hello\n");
    service.line("serving 1 sockets that systemd passed");
    assert_eq!(manager.hear().lines, ["READY=1"]);
    service.terminate();
    client.expect_eof();
    ends_well(service);
}

#[test]
fn restarted_under_load_it_refuses_and_loses_nobody() {
    restart_under_load(&[]);
}

#[test]
fn restarted_under_load_by_the_real_one_it_refuses_and_loses_nobody() {
    if has(ACTIVATE) {
        restart_under_load(&[ACTIVATE]);
    }
}

/// Twenty times, each as soon as it has done some work.
fn restart_under_load(by: &[&str]) {
    const CLIENTS: usize = 16;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let addr = listener.local_addr().expect("it is bound");
    let manager = Manager::new();
    let stop = Arc::new(AtomicBool::new(false));
    let answers = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            thread::spawn(move || ask_again_and_again(addr, &stop, &answers))
        })
        .collect();
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let begin = Instant::now();
        let service = Other::run(passed(&listener, by, &manager.name));
        manager.hear_only("READY=1");
        longest = longest.max(begin.elapsed());
        let some = answers.load(Ordering::Relaxed) + 20 * CLIENTS;
        until("it serves", || answers.load(Ordering::Relaxed) >= some);
        service.terminate();
        let said = ends_well(service);
        assert!(said.contains("terminated cleanly"), "{said}");
    }
    // Nobody is left behind in a queue that nobody serves.
    let service = Other::run(passed(&listener, by, &manager.name));
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<_> = clients
        .into_iter()
        .map(|it| it.join().expect("no panic"))
        .collect();
    drop(service);
    let sum = |f: fn(&Seen) -> usize| seen.iter().map(f).sum::<usize>();
    let (lost, late, refused) = (sum(|it| it.lost), sum(|it| it.late), sum(|it| it.refused));
    let answers = answers.load(Ordering::Relaxed);
    println!(
        "measured: 20 restarts {by:?}: {answers} answers, {lost} lost, {refused} refused, {late} late, ready after \
         {longest:.1?} at most"
    );
    let why: Vec<_> = seen.iter().flat_map(|it| &it.why).take(8).collect();
    assert_eq!((lost, refused), (0, 0), "{why:?}");
}

/// What one client has seen; *late* as in `support/closed_loop.rs`.
#[derive(Default)]
struct Seen {
    lost: usize,
    late: usize,
    refused: usize,
    why: Vec<String>,
}

fn ask_again_and_again(addr: SocketAddr, stop: &AtomicBool, answers: &AtomicUsize) -> Seen {
    const SETTLE: Duration = Duration::from_millis(25);
    let mut seen = Seen::default();
    let mut kept: Option<RawClient> = None;
    // Before which the server has not seen the connection quiet.
    let mut since = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let still_open = kept.take().filter(RawClient::is_still_open);
        let mut client = if let Some(client) = still_open {
            client
        } else {
            since = Instant::now();
            match RawClient::try_connect(addr) {
                Ok(client) => client,
                Err(e) => {
                    seen.refused += 1;
                    seen.why.push(e.to_string());
                    return seen;
                }
            }
        };
        let before = Instant::now();
        let wrote = client.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let quiet = since.elapsed();
        match client.try_read_response() {
            Ok(it) if it.text() == "hello\n" => {
                answers.fetch_add(1, Ordering::Relaxed);
                if !it.says_close() {
                    kept = Some(client);
                }
            }
            other => {
                if quiet >= SETTLE {
                    seen.late += 1;
                } else {
                    seen.lost += 1;
                }
                seen.why
                    .push(format!("{other:?}, sending: {wrote:?}, after {quiet:?}"));
            }
        }
        since = before;
    }
    seen
}

/// As systemd passes it, unless `NonBlocking=yes` is set.
#[test]
fn a_blocking_listener_is_served_and_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let addr = listener.local_addr().expect("it is bound");
    let service = Other::run(passed(&listener, &[], ""));
    let mut client = RawClient::connect(addr);
    assert_eq!(client.fetch("/").status, 200);
    service.terminate();
    client.expect_eof();
    ends_well(service);
    // It is still ours.
    assert!(TcpStream::connect(addr).is_ok());
}

#[test]
fn what_is_no_listening_socket_is_refused() {
    let dir = Dir::new();
    let file = File::create(dir.0.join("file")).expect("a file can be made");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let addr = listener.local_addr().expect("it is bound");
    let connected = TcpStream::connect(addr).expect("it listens");
    let no_stream = "descriptor 3, of those that LISTEN_FDS counts, is no stream socket";
    let not_listening =
        "descriptor 3, of those that LISTEN_FDS counts, is a socket that does not listen";
    for (passed, why) in [
        (pass(file.into(), "1", &[]), no_stream),
        (pass(udp.into(), "1", &[]), no_stream),
        (pass(connected.into(), "1", &[]), not_listening),
        (
            pass(listener.into(), "2", &[]),
            "descriptor 4, of those that",
        ),
        (
            pass(null(), "0 or 1", &[]),
            "LISTEN_FDS is \"0 or 1\", not a number of sockets",
        ),
        (
            pass(null(), "4000000000", &[]),
            "LISTEN_FDS is \"4000000000\", not a number",
        ),
    ] {
        let mut service = Other::run(passed);
        assert_eq!(service.wait(BOUND), Some(false), "{}", service.said());
        assert!(service.said().starts_with(why), "{}", service.said());
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let addr = listener.local_addr().expect("it is bound").to_string();
    let mut command = Command::new(example());
    command.arg(&addr).stdin(Stdio::null());
    let mut service = Other::run(command);
    assert_eq!(service.wait(BOUND), Some(false), "{}", service.said());
    let why = format!("cannot bind {addr}: ");
    assert!(service.said().contains(&why), "{}", service.said());
}

// ===== the units =====

#[test]
fn the_units_are_in_order() {
    if !has("systemd-analyze") {
        return;
    }
    let dir = Dir::new();
    for name in ["hello.service", "hello.socket"] {
        let from = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("examples/systemd")
            .join(name);
        let unit = fs::read_to_string(from).expect("it is there");
        // It is looked whether that can be run.
        let program = example().display().to_string();
        let unit = unit.replace("/usr/local/bin/hello", &program);
        assert_eq!(unit.contains(&program), name == "hello.service");
        fs::write(dir.0.join(name), unit).expect("a file can be written");
    }
    let verify = |name: &str| {
        let mut command = Command::new("systemd-analyze");
        command
            .args(["verify", "--man=no", name])
            .current_dir(&dir.0);
        let out = in_time(BOUND, "systemd-analyze", move || command.read());
        let out = out.expect("it can be run");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let of_ours: Vec<_> = said.lines().filter(|line| line.contains("hello")).collect();
        (out.status.success(), of_ours.join("\n"))
    };
    assert_eq!(verify("./hello.service"), (true, String::new()));
    assert_eq!(verify("./hello.socket"), (true, String::new()));
    // It does look.
    fs::write(
        dir.0.join("hello.service"),
        "[Service]\nExecStrat=/bin/true\n",
    )
    .expect("a file");
    let (_, said) = verify("./hello.service");
    assert!(said.contains("ExecStrat"), "{said}");
}

// ===== what they share =====

/// Says what is missing where it is.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").read().is_ok();
    if !found {
        support::skip::skip(format_args!("no {program}, of Debian's package systemd"));
    }
    found
}

/// `target/debug/examples/systemd`, for a test in `target/debug/deps/`.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("in target/debug/deps");
    let path = profile.join("examples/systemd");
    let hint = "`cargo test --all-features` builds it, `--test` alone does not";
    assert!(path.exists(), "{}: {hint}", path.display());
    path
}

/// Without a socket passed to it.
fn by_hand(notify: &str) -> Command {
    let mut command = Command::new(example());
    command
        .arg("127.0.0.1:0")
        .env("NOTIFY_SOCKET", notify)
        .stdin(Stdio::null());
    command
}

fn address(service: &Other) -> SocketAddr {
    service.line("listening on ").parse().expect("an address")
}

/// With this socket, which stays ours, too; by a program that passes it on.
fn passed(listener: &TcpListener, by: &[&str], notify: &str) -> Command {
    let listener = listener.try_clone().expect("a descriptor");
    // It knows no other environment than what it is told.
    let variable = format!("NOTIFY_SOCKET={notify}");
    let by: Vec<_> = by.iter().flat_map(|it| [*it, "-E", &variable]).collect();
    let mut command = pass(listener.into(), "1", &by);
    command.env("NOTIFY_SOCKET", notify);
    command
}

/// The shell puts it where systemd does, and is the process that the variable has to name.
fn pass(socket: OwnedFd, number: &str, by: &[&str]) -> Command {
    const SCRIPT: &str =
        "exec 3<&0 </dev/null; export LISTEN_FDS=\"$1\" LISTEN_PID=$$; shift; exec \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT, "sh", number])
        .args(by)
        .arg(example())
        .stdin(socket);
    command
}

fn null() -> OwnedFd {
    File::open("/dev/null").expect("Linux has it").into()
}

/// What it has said.
#[track_caller]
fn ends_well(mut service: Other) -> String {
    assert_eq!(service.wait(BOUND), Some(true), "{}", service.said());
    service.said()
}

/// Systemd, as far as it listens.
struct Manager {
    socket: UnixDatagram,
    name: String,
    _dir: Option<Dir>,
}

impl Manager {
    fn new() -> Self {
        let dir = Dir::new();
        let path = dir.0.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let name = path.to_str().expect("it is ASCII").to_owned();
        Self {
            socket,
            name,
            _dir: Some(dir),
        }
    }

    fn new_abstract() -> Self {
        let name = format!("http-terminator-{}", std::process::id());
        let addr = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("it is short");
        let socket = UnixDatagram::bind_addr(&addr).expect("a socket");
        Self {
            socket,
            name: format!("@{name}"),
            _dir: None,
        }
    }

    #[track_caller]
    fn hear(&self) -> Message {
        let heard = self.hear_within(BOUND);
        heard.unwrap_or_else(|| panic!("nothing was said within {BOUND:?}"))
    }

    fn hear_within(&self, time: Duration) -> Option<Message> {
        self.socket
            .set_read_timeout(Some(time))
            .expect("it is not zero");
        let mut bytes = [0; 4096];
        let n = match self.socket.recv(&mut bytes) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
            Err(e) => panic!("{e}"),
        };
        let at = Instant::now();
        let text = std::str::from_utf8(&bytes[..n]).expect("text");
        assert!(text.ends_with('\n'), "{text:?}");
        Some(Message {
            at,
            lines: text.lines().map(str::to_owned).collect(),
        })
    }

    /// Whatever is said before.
    #[track_caller]
    fn hear_only(&self, line: &str) {
        while self.hear().lines != [line] {}
    }

    #[track_caller]
    fn hears_nothing(&self) {
        let heard = self.hear_within(Duration::from_millis(50));
        assert!(heard.is_none(), "{heard:?}");
    }

    /// Until there is no room, and how many that takes.
    fn fill(&self) -> usize {
        let filler = UnixDatagram::unbound().expect("a socket");
        filler
            .connect_addr(&self.socket.local_addr().expect("it is bound"))
            .expect("it is there");
        filler.set_nonblocking(true).expect("a socket can be that");
        (0..100_000)
            .take_while(|_| filler.send(b"FULL=1\n").is_ok())
            .count()
    }
}

#[derive(Debug)]
struct Message {
    at: Instant,
    lines: Vec<String>,
}

impl Message {
    #[track_caller]
    fn status(&self) -> &str {
        let status = self
            .lines
            .iter()
            .find_map(|line| line.strip_prefix("STATUS="));
        status.unwrap_or_else(|| panic!("without a status: {self:?}"))
    }

    fn time(&self) -> Option<Duration> {
        let time = self
            .lines
            .iter()
            .find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC="));
        time.map(|it| Duration::from_micros(it.parse().expect("a number")))
    }

    /// Nor much less.
    #[track_caller]
    fn asks_for_no_more_than(&self, deadline: Instant) {
        let until = self.at + self.time().expect("a time");
        let most = deadline + CUT;
        assert!(
            until < most + SLOW && until + SLOW > most,
            "{self:?}, {:?} before",
            most.saturating_duration_since(until)
        );
    }
}
