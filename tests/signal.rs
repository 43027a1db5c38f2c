//! Signals, sent to a process of their own: what the first, the second and the third do, to one
//! terminator and to many, and what listening costs.
//!
//! The child is this very test run once more, a small interpreter: each line that the parent asks is
//! a command, each line that it says is the answer. It hangs, waiting for the next, until it is told
//! to end, or is killed.
#![cfg(all(target_os = "linux", feature = "serve", feature = "signal"))]
#![allow(
    unreachable_pub,
    reason = "support is written as a library, and here it is a private module"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "signals a second apart are two: time is the subject"
)]

use std::collections::HashMap;
use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{self, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use axum::routing::get;
use tokio::runtime::{self, Runtime};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use http_terminator::{Connection, OnSignal, Phase, ShutdownGuard, Terminator};

mod support;

use support::starts::Start;
use support::wait::time_passes;
use support::{App, BOUND, FrontEnd, Gate, RawClient, ReadEnd, Server, app, load};

const INT: i32 = 2;
const TERM: i32 = 15;

/// Signals further apart than this are two.
const APART: Duration = Duration::from_millis(1_100);

// ===== one terminator =====

/// Ctrl-C goes to the whole process group, and a parent there forwards a SIGTERM of its own.
#[test]
fn g16_two_signals_a_few_ms_apart_are_one() {
    let mut child = Child::start();
    let mut client = child.with_a_request_in_flight();
    child.signals(&["INT", "TERM"]);
    child.expect("reached 0 Draining", "yes");
    time_passes(Duration::from_millis(100)); // both have arrived, and neither forces later
    child.expect("phase 0", "Draining");
    child.expect("open", "yes");
    let response = client.read_response();
    assert_eq!((response.status, response.text()), (200, "slow"));
    client.expect_eof();
    child.expect("report 0", "clean=true");
    child.ends_well();
}

#[test]
fn g16_a_second_signal_forces_and_a_third_kills() {
    for (signals, by) in [
        (["TERM", "TERM", "TERM"], TERM),
        (["TERM", "INT", "INT"], INT),
    ] {
        let mut child = Child::start();
        let mut client = child.with_a_request_in_flight();
        child.signals(&signals[..1]);
        child.expect("reached 0 Draining", "yes");
        time_passes(APART);
        // As with the first: what comes right behind it is the same.
        child.signals(&[signals[1], "TERM", "INT"]);
        assert_forced(&mut client);
        client.expect_eof();
        child.expect("report 0", "clean=false");
        time_passes(APART);
        child.signals(&signals[2..]);
        assert_eq!(child.status().signal(), Some(by));
    }
}

/// The second is counted from the first, or who loses patience would never be heard.
#[test]
fn g16_signals_less_than_a_second_apart_force_once_one_has_passed() {
    let mut child = Child::start();
    let mut client = child.with_a_request_in_flight();
    child.signals(&["INT"]);
    child.expect("reached 0 Draining", "yes");
    let begin = Instant::now();
    time_passes(Duration::from_millis(550));
    child.signals(&["INT"]);
    child.expect("phase 0", "Draining");
    time_passes(APART.saturating_sub(begin.elapsed()));
    child.signals(&["INT"]);
    assert_forced(&mut client);
    child.ends_well();
}

/// Nothing is in hand, so that the end has come before the second of the two.
#[test]
fn g16_the_second_of_a_pair_does_not_kill_what_has_ended_at_the_first() {
    let mut child = Child::start();
    child.expect("listen 0", "listening");
    child.signals(&["TERM"]);
    child.expect("report 0", "clean=true");
    child.signals(&["INT"]);
    time_passes(Duration::from_millis(100)); // it has arrived
    child.ends_well();
}

#[test]
fn g16_the_first_signal_terminates_what_was_terminated_by_hand_the_second_forces() {
    let mut child = Child::start();
    let mut client = child.with_a_request_in_flight();
    child.expect("terminate 0", "yes");
    child.expect("reached 0 Draining", "yes");
    child.expect("listen 1", "listening"); // it shows that the first has been heard
    child.signals(&["TERM"]);
    child.expect("reached 1 Draining", "yes");
    time_passes(APART);
    child.expect("phase 0", "Draining");
    child.signals(&["TERM"]);
    assert_forced(&mut client);
    child.ends_well();
}

#[test]
fn g16_after_the_end_one_signal_kills_a_process_that_hangs_elsewhere() {
    for (signal, number) in [("INT", INT), ("TERM", TERM)] {
        let mut by_hand = Child::start();
        by_hand.expect("counts", "noted");
        by_hand.expect("listen 0", "listening");
        by_hand.expect("terminate 0", "yes");
        by_hand.expect("report 0", "clean=true");
        by_hand.expect("settled", "yes");
        by_hand.signals(&[signal]);
        assert_eq!(by_hand.status().signal(), Some(number));

        let mut by_signal = Child::start();
        by_signal.expect("counts", "noted");
        by_signal.expect("listen 0", "listening");
        by_signal.signals(&["TERM"]);
        by_signal.expect("report 0", "clean=true");
        time_passes(APART);
        by_signal.expect("settled", "yes");
        by_signal.signals(&[signal]);
        assert_eq!(by_signal.status().signal(), Some(number));
    }
}

// ===== many =====

#[test]
fn g16_sixty_that_listen_cost_one_thread_and_none_once_they_have_ended() {
    let mut child = Child::start();
    child.expect("counts", "noted");
    for _ in 0..3 {
        child.expect("listen 0..60", "listening");
        child.expect("threads more", "1");
        let descriptors = child.ask("descriptors more");
        assert!(
            descriptors.parse::<usize>().expect("a number") <= 4,
            "{descriptors}"
        );
        child.expect("terminate 0..60", "yes");
        child.expect("settled", "yes");
        child.expect("drop 0..60", "yes");
    }
    // And again one that is to be heard.
    child.expect("listen 0", "listening");
    child.signals(&["TERM"]);
    child.expect("report 0", "clean=true");
    child.ends_well();
}

/// Somebody has a map of connections, long after they and their server have gone.
#[test]
fn g16_a_handle_of_a_connection_that_has_gone_keeps_nobody_listening() {
    let mut child = Child::start();
    child.expect("listen 0", "listening");
    child.expect("handle 0", "kept");
    child.expect("drop 0", "yes");
    child.signals(&["INT"]);
    assert_eq!(child.status().signal(), Some(INT));
}

/// Somebody waits to be told, and that is all that is left of its terminator.
#[test]
fn g17_who_waits_to_be_told_is_told_by_a_signal() {
    let mut child = Child::start();
    child.expect("listen 0", "listening");
    child.expect("draining 0", "waits");
    child.expect("drop 0", "yes");
    child.signals(&["TERM"]);
    child.expect("heard 1", "yes");
    child.ends_well();
}

#[test]
fn g16_one_signal_terminates_all() {
    let mut child = Child::start();
    let mut first = child.with_a_request_in_flight();
    let mut second = child.serve(1, 2);
    child.expect("listen 1", "listening");
    child.expect("listen 1", "listening"); // once more is no more
    child.signals(&["TERM"]);
    child.expect("reached 0 Draining", "yes");
    child.expect("reached 1 Draining", "yes");
    time_passes(APART);
    child.signals(&["TERM"]);
    assert_forced(&mut first);
    assert_forced(&mut second);
    child.ends_well();
}

/// The second signal is its first.
#[test]
fn g16_who_comes_between_two_signals_is_terminated_by_the_second() {
    let mut child = Child::start();
    let mut early = child.with_a_request_in_flight();
    child.signals(&["TERM"]);
    child.expect("reached 0 Draining", "yes");
    time_passes(APART);
    let mut late = child.serve(1, 2);
    child.expect("listen 1", "listening");
    child.signals(&["TERM"]);
    assert_forced(&mut early);
    child.expect("reached 1 Draining", "yes");
    child.expect("report 0", "clean=false");
    child.expect("phase 1", "Draining");
    time_passes(APART);
    child.signals(&["TERM"]);
    assert_forced(&mut late);
    child.expect("report 1", "clean=false");
    time_passes(APART);
    child.signals(&["TERM"]);
    assert_eq!(child.status().signal(), Some(TERM));
}

/// In the second in which the thread still waits for what belongs to the first signal.
#[test]
fn g16_who_comes_right_after_an_end_is_heard() {
    let mut child = Child::start();
    child.expect("listen 0", "listening");
    child.signals(&["TERM"]);
    child.expect("report 0", "clean=true");
    let mut client = child.serve(1, 1);
    child.expect("listen 1", "listening");
    child.signals(&["TERM"]);
    child.expect("reached 1 Draining", "yes");
    time_passes(APART);
    child.expect("phase 1", "Draining");
    child.expect("open", "yes");
    assert_eq!(client.read_response().status, 200);
    child.expect("report 1", "clean=true");
    child.ends_well();
}

// ===== dropped =====

#[test]
fn g16_dropped_without_an_end_it_listens_no_longer() {
    let mut child = Child::start();
    child.expect("counts", "noted");
    child.expect("listen 0..3", "listening");
    child.expect("drop 0..3", "yes");
    child.expect("settled", "yes");
    child.signals(&["INT"]);
    assert_eq!(child.status().signal(), Some(INT));
}

/// What it serves can still be ended well, and forced.
#[test]
fn g16_dropped_while_it_serves_it_is_terminated_and_forced() {
    for force in [false, true] {
        let mut child = Child::start();
        child.expect("counts", "noted");
        let mut client = child.with_a_request_in_flight();
        child.expect("token 0", "held");
        child.expect("drop 0", "yes");
        child.signals(&["TERM"]);
        child.expect("told", "yes");
        time_passes(APART);
        if force {
            child.signals(&["TERM"]);
            assert_forced(&mut client);
        } else {
            child.expect("open", "yes");
            let response = client.read_response();
            assert_eq!(response.status, 200);
            assert!(response.says_close(), "{response:?}");
        }
        client.expect_eof();
        child.expect("served 0", if force { "clean=false" } else { "clean=true" });
        time_passes(APART);
        child.signals(&["TERM"]);
        assert_eq!(child.status().signal(), Some(TERM));
    }
}

/// A guard may be held for work that is to be ended well.
#[test]
fn g16_dropped_while_a_guard_is_held_it_listens_until_that_is_dropped() {
    let mut child = Child::start();
    child.expect("counts", "noted");
    child.expect("listen 0", "listening");
    child.expect("guard 0", "held");
    child.expect("token 0", "held");
    child.expect("drop 0", "yes");
    child.signals(&["TERM"]);
    child.expect("told", "yes");
    child.expect("unguard", "yes");
    child.expect("settled", "yes");
    child.ends_well();
}

// ===== who started us, and others in the process =====

#[test]
fn g16_a_signal_blocked_by_who_started_us_is_an_error() {
    for (blocked, named) in [
        ("TERM", "SIGTERM"),
        ("INT", "SIGINT"),
        ("INT,TERM", "SIGINT and SIGTERM"),
    ] {
        let mut child = Child::start_with("env", &[&format!("--block-signal={blocked}")], "");
        let answer = child.ask("listen 0");
        assert!(answer.starts_with(&format!("error: {named} ")), "{answer}");
        assert!(answer.contains("blocked"), "{answer}");
        child.expect("phase 0", "Serving");
        child.ends_well();
    }
    let mut child = Child::start_with("env", &["--block-signal=HUP"], "");
    child.expect("listen 0", "listening");
    child.ends_well();
}

/// As a script's shell has SIGINT for what it puts into the background.
#[test]
fn g16_a_signal_ignored_by_who_started_us_is_heard() {
    let mut child = Child::start_with("env", &["--ignore-signal=INT,TERM"], "");
    child.expect("listen 0", "listening");
    child.signals(&["INT"]);
    child.expect("report 0", "clean=true");
    time_passes(APART);
    child.signals(&["INT"]);
    assert_eq!(child.status().signal(), Some(INT));
}

/// No signal ends the first process of a container that has no handler, and to try would abort.
#[test]
fn g16_the_first_process_of_a_container_exits_at_the_third() {
    const CONTAINER: [&str; 3] = ["--pid", "--fork", "--mount-proc"];
    let allowed = Command::new("unshare").args(CONTAINER).arg("true").read();
    if !allowed.is_ok_and(|it| it.status.success()) {
        support::skip::skip("no `unshare`, or no right to it");
        return;
    }
    for (signal, number) in [("INT", INT), ("TERM", TERM)] {
        let mut child = Child::start_with("unshare", &CONTAINER, "");
        child.pid = child.only_child();
        let mut client = child.with_a_request_in_flight();
        child.signals(&[signal]);
        child.expect("reached 0 Draining", "yes");
        time_passes(APART);
        child.signals(&[signal]);
        assert_forced(&mut client);
        child.expect("report 0", "clean=false");
        time_passes(APART);
        child.signals(&[signal]);
        assert_eq!(child.status().code(), Some(128 + number));
    }
}

/// Somebody else heard it before we did: what happens when nobody of ours listens is up to them.
#[test]
fn g16_a_handler_installed_before_ours_keeps_the_process() {
    let mut child = Child::start();
    child.expect("tokio INT", "hears");
    child.expect("listen 0", "listening");
    for n in 1..=3 {
        child.signals(&["INT"]);
        child.expect("report 0", "clean=true");
        child.expect(&format!("heard {n}"), "yes");
        time_passes(APART);
    }
    // They know nothing of the other.
    child.signals(&["TERM"]);
    assert_eq!(child.status().signal(), Some(TERM));
}

#[test]
fn g16_no_descriptors_are_an_error_and_a_later_call_listens() {
    let limited = r#"ulimit -n 40; exec "$@""#;
    let mut child = Child::start_with("sh", &["-c", limited, "sh"], "");
    child.expect("counts", "noted");
    child.expect("exhaust", "yes");
    let answer = child.ask("listen 0");
    assert!(answer.starts_with("error: "), "{answer}");
    child.expect("release", "yes");
    child.expect("settled", "yes");
    child.expect("listen 0", "listening");
    child.signals(&["TERM"]);
    child.expect("report 0", "clean=true");
    child.ends_well();
}

// ===== what must not swallow a signal =====

#[test]
fn g11_a_stalled_runtime_hears_a_signal() {
    let mut child = Child::start();
    child.expect("stall", "stalled");
    child.signals(&["TERM"]);
    child.expect("reached 0 Draining", "yes");
    child.ends_well();
}

#[test]
fn g11_a_logger_that_panics_or_blocks_swallows_no_signal() {
    for logger in ["panics", "blocks"] {
        let mut child = Child::start_with("env", &[], logger);
        let mut client = child.with_a_request_in_flight();
        child.signals(&["TERM"]);
        child.expect("reached 0 Draining", "yes");
        time_passes(APART);
        child.signals(&["TERM"]);
        assert_forced(&mut client);
        child.expect("report 0", "clean=false");
        child.expect("logged 2", "yes");
        time_passes(APART);
        child.signals(&["TERM"]);
        assert_eq!(child.status().signal(), Some(TERM), "{logger}");
    }
}

/// Terminators come and go on four threads while signals rain: each ends, and nothing is left. (A
/// handler of somebody else's keeps the process where nobody listens.)
#[test]
fn g16_a_storm_of_signals_while_terminators_come_and_go() {
    let mut child = Child::start();
    child.expect("tokio INT", "hears");
    child.expect("counts", "noted");
    child.expect("storm", "all ended");
    time_passes(APART);
    child.expect("settled", "yes");
    child.expect("listen 0", "listening");
    child.signals(&["INT"]);
    child.expect("report 0", "clean=true");
    child.ends_well();
}

// ===== the parent's side =====

const LOGGER: &str = "HTTP_TERMINATOR_TEST_LOGGER";
const MARK: &str = "child says: ";

struct Child {
    process: process::Child,
    /// Where signals go.
    pid: u32,
    commands: Option<ChildStdin>,
    answers: mpsc::Receiver<String>,
}

impl Child {
    fn start() -> Self {
        Self::start_with("env", &[], "")
    }

    /// By a program that starts another.
    fn start_with(program: &str, args: &[&str], logger: &str) -> Self {
        load::watch_load();
        let binary = env::current_exe().expect("a test run is a file");
        let mut process = Command::new(program)
            .args(args)
            .arg(binary)
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(LOGGER, logger)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .start()
            .expect("it runs once more");
        let commands = process.stdin.take();
        let answers = answers(process.stdout.take().expect("it is piped"));
        let mut child = Self {
            pid: process.id(),
            process,
            commands,
            answers,
        };
        assert_eq!(child.answer("its start"), "ready");
        child
    }

    #[track_caller]
    fn ask(&mut self, command: &str) -> String {
        let commands = self.commands.as_mut().expect("it was not told to end");
        writeln!(commands, "{command}").expect("the child reads");
        self.answer(command)
    }

    #[track_caller]
    fn answer(&mut self, to: &str) -> String {
        let answer = self.answers.recv_timeout(BOUND * 2);
        answer.unwrap_or_else(|e| panic!("no answer to {to:?}: {e}"))
    }

    #[track_caller]
    fn expect(&mut self, command: &str, answer: &str) {
        assert_eq!(self.ask(command), answer, "to {command:?}");
    }

    /// Terminator 0 listens and serves, a client of it waits at the gate.
    #[track_caller]
    fn with_a_request_in_flight(&mut self) -> RawClient {
        self.expect("listen 0", "listening");
        self.serve(0, 1)
    }

    /// Has a terminator serve; its client is the nth at the gate.
    #[track_caller]
    fn serve(&mut self, terminator: usize, nth: usize) -> RawClient {
        let port: u16 = self
            .ask(&format!("serve {terminator}"))
            .parse()
            .expect("a port");
        let client = RawClient::connect(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
        client.get("/slow");
        self.expect(&format!("entered {nth}"), "yes");
        client
    }

    /// One by one, 5 ms apart.
    #[track_caller]
    fn signals(&self, names: &[&str]) {
        let pid = self.pid;
        let kills: Vec<_> = names
            .iter()
            .map(|name| format!("kill -{name} {pid}"))
            .collect();
        let script = kills.join(" && sleep 0.005 && ");
        let sent = Command::new("sh").args(["-c", &script]).run();
        assert!(sent.expect("`sh` is a program").success());
    }

    #[track_caller]
    fn only_child(&self) -> u32 {
        let pid = self.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.expect("it runs");
        children.trim().parse().expect("one number")
    }

    /// Tells it to end; it exits by itself.
    #[track_caller]
    fn ends_well(&mut self) {
        self.commands = None;
        let status = self.status();
        assert!(status.success(), "{status}");
    }

    #[track_caller]
    fn status(&mut self) -> ExitStatus {
        match self.answers.recv_timeout(BOUND * 2) {
            Err(mpsc::RecvTimeoutError::Disconnected) => {}
            still => panic!("the child has not ended: {still:?}"),
        }
        // Its output has ended: so has it, or is about to.
        self.process.wait().expect("it is our child")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have ended
        let _ = self.process.wait();
    }
}

/// Answered 503. On a machine so busy that nobody runs in the 70 ms that are left for it, it may be
/// closed without; that this is no death of the child is for the caller to see.
#[track_caller]
fn assert_forced(client: &mut RawClient) {
    match client.try_read_response() {
        Ok(response) => assert_eq!(response.status, 503, "{response:?}"),
        Err(ReadEnd::Timeout) => panic!("not forced"),
        Err(end) => {
            let stolen = load::stolen_in_the_last(Duration::from_millis(300));
            assert!(
                stolen > Duration::from_millis(30),
                "{end:?} under {stolen:?}"
            );
        }
    }
}

fn answers(out: ChildStdout) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(out).lines() {
            let Ok(line) = line else { return };
            if let Some(answer) = line.strip_prefix(MARK) {
                if tell.send(answer.to_owned()).is_err() {
                    return; // the test has failed
                }
            }
        }
    });
    told
}

// ===== the child's side =====

/// What the child does. By hand: nothing.
#[test]
#[ignore = "the child process of the tests with signals"]
fn child() {
    let Ok(logger) = env::var(LOGGER) else {
        return;
    };
    let lines = Arc::new(AtomicUsize::new(0));
    if !logger.is_empty() {
        let logger = Logger {
            panics: logger == "panics",
            lines: Arc::clone(&lines),
        };
        tracing_subscriber::registry().with(logger).init();
    }
    let mut host = Host {
        runtime: two_workers(),
        gate: Gate::new(),
        terminators: HashMap::new(),
        servers: HashMap::new(),
        heard: Arc::default(),
        lines,
        before: (0, 0),
        files: Vec::new(),
        guard: None,
        connection: None,
        token: CancellationToken::new(),
    };
    say("ready");
    for command in io::stdin().lines() {
        say(&host.obey(&command.expect("it is text")));
    }
}

fn say(what: &str) {
    // The harness may have left its own line unfinished.
    println!("\n{MARK}{what}");
}

/// Never returns from what the signal's side of the crate logs.
struct Logger {
    panics: bool,
    lines: Arc<AtomicUsize>,
}

impl<S: tracing::Subscriber> Layer<S> for Logger {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if !event
            .metadata()
            .target()
            .starts_with("http_terminator::signal")
        {
            return;
        }
        self.lines.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics, "a logger that panics");
        loop {
            thread::park();
        }
    }
}

struct Host {
    runtime: Runtime,
    gate: Gate,
    terminators: HashMap<usize, (Terminator, Vec<OnSignal>)>,
    servers: HashMap<usize, Server>,
    heard: Arc<AtomicUsize>,
    lines: Arc<AtomicUsize>,
    /// Threads and descriptors.
    before: (usize, usize),
    files: Vec<File>,
    guard: Option<ShutdownGuard>,
    connection: Option<Connection>,
    token: CancellationToken,
}

impl Host {
    fn obey(&mut self, command: &str) -> String {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        match verb {
            "counts" => {
                self.runtime.block_on(async {}); // what it opens at its first use is open
                self.before = counts();
                "noted".to_owned()
            }
            "threads" => (counts().0 - self.before.0).to_string(),
            "descriptors" => (counts().1 - self.before.1).to_string(),
            "settled" => until(|| counts() == self.before),
            "listen" => self.listen(rest),
            "serve" => self.serve(rest),
            "terminate" => {
                each(rest, |n| drop(self.terminator(n).terminate()));
                "yes".to_owned()
            }
            "drop" => {
                each(rest, |n| drop(self.terminators.remove(&n)));
                "yes".to_owned()
            }
            "guard" => {
                self.guard = self.terminator(number(rest)).guard();
                "held".to_owned()
            }
            "draining" => {
                let draining = self.terminator(number(rest)).draining();
                let heard = Arc::clone(&self.heard);
                self.runtime.spawn(async move {
                    draining.await;
                    heard.fetch_add(1, Ordering::SeqCst);
                });
                "waits".to_owned()
            }
            "handle" => {
                let _inside = self.runtime.enter();
                let io = self.terminator(number(rest)).track(tokio::io::empty());
                self.connection = Some(io.connection());
                "kept".to_owned()
            }
            "token" => {
                self.token = self.terminator(number(rest)).cancellation_token();
                "held".to_owned()
            }
            "told" => until(|| self.token.is_cancelled()),
            "unguard" => {
                self.guard = None;
                "yes".to_owned()
            }
            "phase" => format!("{:?}", self.terminator(number(rest)).phase()),
            "reached" => {
                let (n, phase) = rest.split_once(' ').expect("two words");
                assert_eq!(phase, "Draining", "the only one asked for");
                let terminator = self.terminator(number(n)).clone();
                until(|| terminator.phase() >= Phase::Draining)
            }
            "report" => {
                let terminated = self.terminator(number(rest)).terminated();
                let report = self.runtime.block_on(terminated);
                format!("clean={}", report.is_clean())
            }
            "served" => {
                let server = self.servers.remove(&number(rest)).expect("it serves");
                let report = self.runtime.block_on(server.task).expect("no panic");
                format!("clean={}", report.expect("a report").is_clean())
            }
            "entered" => {
                self.gate.wait_entered(number(rest));
                "yes".to_owned()
            }
            "open" => {
                self.gate.open();
                "yes".to_owned()
            }
            "tokio" => self.hear_by_tokio(),
            "heard" => until(|| self.heard.load(Ordering::SeqCst) >= number(rest)),
            "logged" => until(|| self.lines.load(Ordering::SeqCst) >= number(rest)),
            "stall" => self.stall(),
            "exhaust" => {
                while let Ok(file) = File::open("/dev/null") {
                    self.files.push(file);
                }
                "yes".to_owned()
            }
            "release" => {
                self.files.clear();
                "yes".to_owned()
            }
            "storm" => storm(),
            _ => panic!("what is {command:?}?"),
        }
    }

    /// Makes those that are not there yet; holds what the call gives.
    fn listen(&mut self, which: &str) -> String {
        let mut answer = "listening".to_owned();
        each(which, |n| {
            let (terminator, listening) = self.terminators.entry(n).or_insert_with(make);
            match terminator.terminate_on_signal() {
                Ok(on_signal) => listening.push(on_signal),
                Err(error) => answer = format!("error: {error}"),
            }
        });
        answer
    }

    fn serve(&mut self, which: &str) -> String {
        let n = number(which);
        let (terminator, _) = self.terminators.entry(n).or_insert_with(make);
        let router = app(App {
            gate: self.gate.clone(),
            terminator: None,
        });
        let server = support::start(
            FrontEnd::Serve,
            terminator,
            router.route("/", get(async || "")),
        );
        let server = self.runtime.block_on(server);
        let port = server.port();
        self.servers.insert(n, server);
        port.to_string()
    }

    fn hear_by_tokio(&self) -> String {
        use tokio::signal::unix::{SignalKind, signal};
        let _inside = self.runtime.enter();
        let mut signals = signal(SignalKind::interrupt()).expect("it can be registered");
        let heard = Arc::clone(&self.heard);
        self.runtime.spawn(async move {
            while signals.recv().await.is_some() {
                heard.fetch_add(1, Ordering::SeqCst);
            }
        });
        "hears".to_owned()
    }

    /// Terminator 0 listens in a runtime that does nothing else from then on.
    fn stall(&mut self) -> String {
        let (stalled, is_stalled) = mpsc::channel();
        let (terminator, _) = self.terminators.entry(0).or_insert_with(make);
        let terminator = terminator.clone();
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                terminator.terminate_on_signal().expect("it can listen");
                stalled.send(()).expect("somebody waits");
                loop {
                    thread::park();
                }
            });
        });
        is_stalled.recv_timeout(BOUND).expect("it stalls");
        "stalled".to_owned()
    }

    fn terminator(&self, n: usize) -> &Terminator {
        &self.terminators[&n].0
    }
}

fn make() -> (Terminator, Vec<OnSignal>) {
    let grace = Duration::from_secs(60); // for ever, here
    (
        Terminator::builder().grace_period(grace).build(),
        Vec::new(),
    )
}

fn two_workers() -> Runtime {
    let mut builder = runtime::Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn storm() -> String {
    let over = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..4)
        .map(|k| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let runtime = runtime::Builder::new_current_thread().enable_time().build();
                let runtime = runtime.expect("a runtime");
                for n in 0..200 {
                    let terminator = Terminator::new();
                    terminator.terminate_on_signal().expect("it can listen");
                    match (n + k) % 4 {
                        0 => {} // dropped without an end
                        1 => drop(terminator.terminate()),
                        2 => drop(terminator.force()),
                        _ => {
                            let terminated = async {
                                tokio::time::timeout(BOUND, terminator.terminated()).await
                            };
                            runtime.block_on(terminated).expect("a signal comes");
                        }
                    }
                }
                over.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    let begin = Instant::now();
    while over.load(Ordering::SeqCst) < threads.len() && begin.elapsed() < BOUND {
        signal_hook::low_level::raise(INT).expect("it can be raised");
        thread::sleep(Duration::from_micros(200));
    }
    for thread in threads {
        thread.join().expect("no panic");
    }
    "all ended".to_owned()
}

/// `3`, or `0..60`.
fn each(which: &str, mut f: impl FnMut(usize)) {
    match which.split_once("..") {
        Some((from, to)) => (number(from)..number(to)).for_each(f),
        None => f(number(which)),
    }
}

#[track_caller]
fn number(word: &str) -> usize {
    word.parse()
        .unwrap_or_else(|_| panic!("no number: {word:?}"))
}

/// The threads and the descriptors of this process.
fn counts() -> (usize, usize) {
    let count = |dir| fs::read_dir(dir).map_or(0, Iterator::count);
    (count("/proc/self/task"), count("/proc/self/fd"))
}

fn until(happens: impl Fn() -> bool) -> String {
    let begin = Instant::now();
    while !happens() {
        if begin.elapsed() > BOUND {
            return format!("not within {BOUND:?}: {:?}", counts());
        }
        thread::sleep(Duration::from_millis(1));
    }
    "yes".to_owned()
}
