//! `examples/metrics.rs` as Prometheus sees it, and `examples/bar.rs` as a terminal does.
#![cfg(all(unix, feature = "serve", feature = "signal"))]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::program::{PATIENCE, Program, built, signal};
use crate::support::starts::Start;
use crate::support::wait::until;
use crate::support::{RawClient, Target};

const ANY: &str = "127.0.0.1:0";

/// Values, by name and labels.
type Metrics = BTreeMap<String, f64>;

struct Exporter {
    program: Program,
    traffic: Target,
    metrics: Target,
}

impl Exporter {
    fn start(patience: &str) -> Self {
        let mut program = Program::start(&built("metrics"), &[ANY, ANY, patience]);
        let line = program.says("traffic on ");
        let (traffic, metrics) = two_addresses(&line, "traffic on ", ", metrics on ");
        Self {
            program,
            traffic,
            metrics,
        }
    }

    fn connect(&self) -> RawClient {
        RawClient::connect(&self.traffic)
    }

    fn scrape(&self) -> Metrics {
        let response = RawClient::connect(&self.metrics).fetch("/metrics");
        assert_eq!(response.status, 200);
        let kind = response.header("content-type");
        assert_eq!(kind, Some("text/plain; version=0.0.4"));
        let lines = response.text().lines();
        let helped = lines.clone().filter(|line| line.starts_with("# HELP "));
        let typed = lines.clone().filter(|line| line.starts_with("# TYPE "));
        assert_eq!(helped.count(), typed.count(), "{}", response.text());
        lines
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                (name.to_owned(), value.parse().expect("a number"))
            })
            .collect()
    }

    /// Scrapes until this is so.
    #[track_caller]
    fn scrape_until(&self, what: &str, is_so: impl Fn(&Metrics) -> bool) -> Metrics {
        let mut metrics = Metrics::new();
        until(what, || {
            metrics = self.scrape();
            is_so(&metrics)
        });
        metrics
    }
}

/// As the two examples with two listeners say it.
fn two_addresses(line: &str, first: &str, second: &str) -> (Target, Target) {
    let (one, two) = line
        .strip_prefix(first)
        .and_then(|rest| rest.split_once(second))
        .unwrap_or_else(|| panic!("{line:?}"));
    let parse = |it: &str| Target::Tcp(it.parse::<SocketAddr>().expect("an address"));
    (parse(one), parse(two))
}

fn connections(state: &str) -> String {
    format!("http_terminator_connections{{state=\"{state}\"}}")
}

fn ended(outcome: &str) -> String {
    format!("http_terminator_end_connections{{outcome=\"{outcome}\"}}")
}

fn is_in(phase: &str) -> impl Fn(&Metrics) -> bool {
    let name = format!("http_terminator_phase{{phase=\"{phase}\"}}");
    move |metrics| metrics[&name].to_bits() == 1f64.to_bits()
}

#[track_caller]
fn assert_is(metrics: &Metrics, name: &str, value: u32) {
    let found = metrics.get(name).copied();
    assert_eq!(found, Some(f64::from(value)), "{name} in {metrics:#?}");
}

/// Everything is scraped as it is: serving, draining, and the report of the end. Then the process ends, and not before.
#[test]
fn a_scraper_sees_the_drain_and_the_report() {
    let mut exporter = Exporter::start("60");
    let mut idle = exporter.connect();
    assert_eq!(idle.fetch("/").text(), "hello\n");
    let mut busy = exporter.connect();
    busy.send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nec");
    // The first connection may be on its way to idle, the second not accepted yet.
    let one_each = |metrics: &Metrics| {
        metrics[&connections("busy")] > 0.5 && metrics[&connections("idle")] > 0.5
    };
    let metrics = exporter.scrape_until("a request", one_each);
    assert_is(&metrics, &connections("busy"), 1);
    assert_is(&metrics, &connections("idle"), 1);
    assert_is(&metrics, "http_terminator_requests", 1);
    assert_is(&metrics, "http_terminator_listeners", 1);
    assert_is(&metrics, "http_terminator_connections_accepted_total", 2);
    assert!(is_in("serving")(&metrics), "{metrics:#?}");
    assert!(!metrics.contains_key(&ended("finished")), "{metrics:#?}");

    assert!(signal(exporter.program.pid(), "TERM"));
    idle.expect_eof();
    // The phase rises first, then what it is about is done; who is at its end is counted until it has been dropped.
    let metrics = exporter.scrape_until("the drain", |it| {
        is_in("draining")(it)
            && it.get("http_terminator_listeners") == Some(&0.0)
            && it.get(&connections("idle")) == Some(&0.0)
    });
    assert_is(&metrics, &connections("busy"), 1);

    busy.send("ho");
    let response = busy.read_response();
    assert_eq!((response.text(), response.says_close()), ("echo", true));
    busy.expect_eof();
    let metrics = last_scrape(&exporter);
    assert!(is_in("terminated")(&metrics), "{metrics:#?}");
    assert_is(&metrics, &ended("finished"), 1);
    assert_is(&metrics, &ended("idle"), 1);
    assert_is(&metrics, &ended("forced"), 0);
    assert_is(&metrics, "http_terminator_end_clean", 1);
    assert_is(&metrics, "http_terminator_end_requests_abandoned", 0);
    assert!(metrics["http_terminator_end_seconds{phase=\"draining\"}"] > 0.0);

    exporter.program.says("its report was fetched: true");
    exporter.program.says("metrics: terminated cleanly");
    exporter.program.ends_within(PATIENCE);
    exporter.program.assert_success();
}

/// The first scrape that finds the report is the last one that is answered, so it is not asked for twice.
fn last_scrape(exporter: &Exporter) -> Metrics {
    exporter.scrape_until("the report", |metrics| {
        metrics.contains_key(&ended("finished"))
    })
}

/// Nobody scrapes, though somebody asks whether there is an exporter: the process does not wait without end.
#[test]
fn a_report_that_nobody_fetches_keeps_nobody() {
    let mut exporter = Exporter::start("0.5");
    assert!(signal(exporter.program.pid(), "TERM"));
    exporter.program.says("traffic: terminated cleanly");
    let mut heads = 0;
    until("the end", || {
        let asked = RawClient::try_connect(&exporter.metrics).and_then(|mut client| {
            client.try_send("HEAD /metrics HTTP/1.1\r\nhost: a\r\n\r\n")?;
            let answered = client.try_read_response_headers();
            heads += usize::from(answered.is_ok());
            Ok(())
        });
        asked.is_err()
    });
    assert!(heads > 0);
    exporter.program.says("its report was fetched: false");
    exporter.program.ends_within(PATIENCE);
    exporter.program.assert_success();
}

/// In a terminal: Ctrl-C is typed, the bar is drawn while a request is in hand, and is gone at the end.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "asks for util-linux")]
fn a_bar_is_drawn_in_a_terminal() {
    let Some(mut terminal) = Terminal::run(&built("bar"), &[ANY]) else {
        return;
    };
    let line = terminal.wait_for("\n");
    let addr = line.trim().strip_prefix("listening on ");
    let addr: SocketAddr = addr.expect("its first line").parse().expect("an address");
    let mut client = RawClient::connect(addr);
    client.send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nec");

    terminal.type_in("\u{3}");
    terminal.wait_for(" 0/1, ");
    terminal.wait_for("POST /echo");
    let drawn = terminal.seen();
    assert!(drawn.contains("draining"), "{drawn:?}");
    assert!(drawn.contains('░'), "{drawn:?}");
    assert!(drawn.contains("s left, connection 1 from "), "{drawn:?}");

    client.send("ho");
    assert_eq!(client.read_response().text(), "echo");
    terminal.wait_for("terminated cleanly");
    terminal.wait_for("1 connection (1 finished)");
    terminal.ends();
    // The line is cleared before the report is printed.
    let seen = terminal.seen();
    let (before, _) = seen.split_once("terminated").expect("it was just there");
    assert!(before.ends_with("\u{1b}[2K"), "{before:?}");
}

/// No terminal: a line each second.
#[test]
fn without_a_terminal_there_are_lines() {
    let mut program = Program::start(&built("bar"), &[ANY]);
    let line = program.says("listening on ");
    let addr = line.strip_prefix("listening on ").expect("it begins so");
    let mut client = RawClient::connect(addr.parse::<SocketAddr>().expect("an address"));
    client.send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nec");
    assert!(signal(program.pid(), "INT"));
    for _ in 0..2 {
        // One before its request has been read names nobody.
        let line = program.says("s left, connection 1 from ");
        assert!(line.starts_with("draining 0/1, "), "{line:?}");
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
    client.send("ho");
    assert_eq!(client.read_response().text(), "echo");
    program.says("1 connection (1 finished)");
    program.ends_within(PATIENCE);
    program.assert_success();
}

// ===== a terminal =====

/// A program in a pseudo-terminal, by util-linux's `script`.
struct Terminal {
    script: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Terminal {
    /// `None`, and says so, if there is no `script`.
    fn run(path: &Path, args: &[&str]) -> Option<Self> {
        let command = format!(
            "stty cols 160 rows 24; exec {} {}",
            path.display(),
            args.join(" ")
        );
        let script = Command::new("script")
            .args(["-qefc", &command, "/dev/null"])
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .start();
        let mut script = match script {
            Ok(script) => script,
            Err(error) => {
                support::skip::skip(format_args!("no `script` of util-linux ({error})"));
                return None;
            }
        };
        let keyboard = script.stdin.take().expect("it is piped");
        let mut out = script.stdout.take().expect("it is piped");
        let screen = Arc::<Mutex<Vec<u8>>>::default();
        let seen = Arc::clone(&screen);
        let reader = thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut some) {
                seen.lock().expect("no panic").extend(&some[..n]);
            }
        });
        Some(Self {
            script,
            keyboard,
            screen,
            reader: Some(reader),
        })
    }

    fn type_in(&mut self, keys: &str) {
        let typed = self.keyboard.write_all(keys.as_bytes());
        typed.and_then(|()| self.keyboard.flush()).expect("it runs");
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("no panic")).into_owned()
    }

    #[track_caller]
    fn wait_for(&self, what: &str) -> String {
        let begin = Instant::now();
        while !self.seen().contains(what) {
            let seen = self.seen();
            assert!(begin.elapsed() < PATIENCE, "no {what:?} in {seen:?}");
            thread::sleep(Duration::from_millis(5));
        }
        self.seen()
    }

    #[track_caller]
    fn ends(&mut self) {
        let mut status = None;
        until("the end of the terminal", || {
            status = self.script.try_wait().expect("it is our child");
            status.is_some()
        });
        assert!(status.expect("it has ended").success(), "{:?}", self.seen());
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no panic");
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.script.kill(); // what runs in it is hung up on
        let _ = self.script.wait();
    }
}
