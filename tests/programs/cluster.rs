//! `examples/cluster` from outside: workers die, are replaced, give away what they have, and nobody notices.
#![cfg(all(target_os = "linux", feature = "serve", feature = "signal"))]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::backoff::Backoff;
use crate::pool::{Act, Pool};
use crate::support::clients::Clients;
use crate::support::outside::ended;
use crate::support::program::{
    Installed, PATIENCE, Program, built, freeze, is_alive, limit, limit_descriptors, pid, signal,
    until_gone,
};
use crate::support::skip::skip;
use crate::support::starts::Start;
use crate::support::wait::{time_passes, until};
use crate::support::{BOUND, Dir, RawClient};

const CLIENTS: usize = 6;

struct Cluster {
    program: Program,
    installed: Installed,
    addr: SocketAddr,
    _dir: Dir,
}

impl Cluster {
    /// All workers are ready.
    #[track_caller]
    fn start(workers: usize, how: Option<&str>) -> Self {
        Self::start_by(&[], workers, how)
    }

    /// By a program that becomes the one of which it is given the name.
    #[track_caller]
    fn start_by(by: &[&str], workers: usize, how: Option<&str>) -> Self {
        let dir = Dir::new();
        let installed = Installed::new(&dir.0, "cluster");
        let words = by
            .iter()
            .map(OsStr::new)
            .chain([installed.path().as_os_str()]);
        let words: Vec<_> = words.collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg("127.0.0.1:0")
            .arg(workers.to_string());
        let mut program = Program::start_command(command.args(how));
        let line = program.says("listening on ");
        let (_, addr) = line.split_once("listening on ").expect("it says so");
        let addr = addr.parse().expect("an address");
        let mut cluster = Self {
            program,
            installed,
            addr,
            _dir: dir,
        };
        cluster.are_ready(workers);
        cluster
    }

    /// So many more; their pids.
    #[track_caller]
    fn are_ready(&mut self, workers: usize) -> Vec<u32> {
        let ready = (0..workers).map(|_| self.program.says(": ready"));
        ready
            .map(|line| pid(&line).expect("it says its pid"))
            .collect()
    }

    /// The processes of workers, whatever they do.
    fn alive(&mut self) -> BTreeSet<u32> {
        let ready = self.program.has_said(": ready");
        let pids = ready.iter().filter_map(|line| pid(line));
        pids.filter(|pid| is_alive(*pid)).collect()
    }

    #[track_caller]
    fn until_alive(&mut self, workers: usize) {
        until("as many workers as there should be", || {
            self.alive().len() == workers
        });
    }

    #[track_caller]
    fn signal(&self, name: &str) {
        assert!(signal(self.program.pid(), name), "the supervisor is gone");
    }

    #[track_caller]
    fn connect(&self) -> RawClient {
        RawClient::connect(self.addr)
    }

    /// Replaces all, one by one.
    #[track_caller]
    fn roll(&mut self, workers: usize) {
        let old = self.alive();
        self.signal("HUP");
        self.are_ready(workers);
        old.into_iter().for_each(until_gone);
    }

    #[track_caller]
    fn ends(mut self) -> Vec<String> {
        self.signal("TERM");
        let said = self.program.ends_within(PATIENCE);
        self.program.assert_success();
        said
    }
}

/// The pid in `worker 1 (4711)`.
#[track_caller]
fn who(client: &mut RawClient) -> u32 {
    let response = client.fetch("/");
    by(response.text())
}

#[track_caller]
fn by(answer: &str) -> u32 {
    let pid = answer
        .split(['(', ')'])
        .nth(1)
        .and_then(|pid| pid.parse().ok());
    pid.unwrap_or_else(|| panic!("{answer:?}"))
}

// ===== workers that die =====

#[test]
fn a_worker_that_is_killed_is_replaced() {
    let mut cluster = Cluster::start(2, None);
    for _ in 0..3 {
        let old = *cluster.alive().first().expect("there are two");
        let mut others = cluster.connect();
        while who(&mut others) == old {
            others = cluster.connect();
        }
        assert!(signal(old, "KILL"));
        let new = cluster.are_ready(1);
        assert_ne!(new, [old]);
        cluster.until_alive(2);
        assert_eq!(others.fetch("/").status, 200);
    }
    cluster.ends();
}

/// By who has the time in its hands.
#[test]
fn fifty_deaths_at_once_are_twelve_starts_a_minute() {
    for slots in [1, 4] {
        let begin = Instant::now();
        let mut backoff = Backoff::default();
        // When the worker of each slot is started, and dies.
        let mut dues = vec![begin; slots];
        let mut starts = Vec::new();
        let mut lines = 0;
        while starts.len() < 50 {
            dues.sort_unstable();
            let now = dues.remove(0);
            starts.push(now - begin);
            let (due, is_news) = backoff.died(now);
            lines += usize::from(is_news);
            dues.push(due);
        }
        // The first of each slot are none that replace one.
        starts.drain(..slots);
        let minute = Duration::from_secs(60);
        let in_minute = |from: &Duration| {
            let during = *from..*from + minute;
            starts.iter().filter(|it| during.contains(*it)).count()
        };
        let at_most = starts.iter().map(in_minute).max();
        println!("measured: {slots} slots: at most {at_most:?} starts in a minute, {lines} line");
        assert!(at_most <= Some(13), "{starts:?}");
        assert_eq!(lines, 1);
        // After a quiet time the next is the first of a row again.
        let later = begin + Duration::from_secs(3600);
        assert_eq!(backoff.died(later), (later, true));
    }
}

/// The word of one that was ready too late is in the pipe when it is killed, and its end comes after it.
#[test]
fn a_worker_that_is_ready_too_late_takes_nobodys_place() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let mut pool = Pool::new(1, begin);
    assert_eq!(pool.tick(begin), [Act::Start(1)]);
    assert_eq!(pool.ready(1, begin), []);
    assert_eq!(pool.roll(begin), [Act::Start(2)]);
    let late = pool.tick(at(5));
    assert!(late.contains(&Act::Kill(2)), "{late:?}");
    assert_eq!(pool.ready(2, at(5)), [], "the one that serves stays");
    assert_eq!(pool.ended(2, at(6)), []);
    assert_eq!(pool.current().collect::<Vec<_>>(), [Some(1)]);
    assert_eq!(pool.roll(at(6)), [Act::Start(3)]);
    assert_eq!(pool.ready(3, at(7)), [Act::Leave(1)]);
}

/// Nor is its slot forgotten if nobody serves there.
#[test]
fn a_first_worker_that_is_not_ready_in_time_is_replaced() {
    let begin = Instant::now();
    let late = begin + Duration::from_secs(5);
    let mut pool = Pool::new(1, begin);
    pool.tick(begin);
    let acts = pool.tick(late);
    assert!(
        acts.contains(&Act::Kill(1)) && acts.contains(&Act::Start(2)),
        "{acts:?}"
    );
    assert_eq!(pool.ended(1, late), []);
    assert_eq!(pool.ready(2, late), []);
    assert_eq!(pool.current().collect::<Vec<_>>(), [Some(2)]);
}

/// With the executable broken the other worker goes on, and there are few starts, and one line.
#[test]
fn workers_that_die_at_once_are_no_storm() {
    let mut cluster = Cluster::start(2, None);
    let clients = Clients::start(cluster.addr, CLIENTS);
    let script = "#!/bin/sh\necho started in vain\nexit 3\n";
    cluster.installed.put_script("broken", script);
    let victim = *cluster.alive().first().expect("there are two");
    // Without a request in hand that would be lost.
    assert!(signal(victim, "TERM"));
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        clients.go_on(50);
    }
    let starts = cluster.program.has_said("started in vain").len();
    println!("measured: {starts} starts in five seconds");
    // After 0, 0, 0.1, 0.3, 0.7, 1.5, 3.1 seconds.
    assert!((3..=8).contains(&starts), "{starts}");
    let lines = cluster.program.has_said("a worker has failed");
    assert_eq!(lines.len(), 1, "{lines:?}");
    cluster.installed.put(&built("cluster"));
    cluster.are_ready(1);
    cluster.until_alive(2);
    clients.stop().assert_nothing_lost();
    cluster.ends();
}

/// It accepts no more and finishes what it has, and another one is there before it has.
#[test]
fn a_worker_with_a_fault_finishes_what_it_has_and_is_replaced_meanwhile() {
    let mut cluster = Cluster::start(2, None);
    let clients = Clients::start(cluster.addr, CLIENTS);
    let mut slow = cluster.connect();
    let faulty = who(&mut slow);
    slow.get("/slow/3000");
    // On a connection that the same worker has.
    let mut asks = cluster.connect();
    while who(&mut asks) != faulty {
        asks = cluster.connect();
    }
    assert_eq!(by(asks.fetch("/panic").text()), faulty);
    let new = cluster.are_ready(1);
    assert!(is_alive(faulty), "it has something in hand");
    assert!(!new.contains(&faulty));
    assert_eq!(cluster.alive().len(), 3);
    let response = slow.read_response();
    assert_eq!(by(response.text()), faulty);
    assert!(response.says_close(), "{response:?}");
    until_gone(faulty);
    assert_eq!(cluster.alive().len(), 2);
    clients.go_on(50);
    clients.stop().assert_nothing_lost();
    cluster.ends();
}

#[test]
fn a_worker_that_gets_sigterm_leaves_and_is_replaced() {
    let mut cluster = Cluster::start(2, None);
    let clients = Clients::start(cluster.addr, CLIENTS);
    for _ in 0..3 {
        let old = *cluster.alive().first().expect("there are two");
        assert!(signal(old, "TERM"));
        cluster.are_ready(1);
        until_gone(old);
        clients.go_on(50);
    }
    clients.stop().assert_nothing_lost();
    assert!(cluster.program.has_said("failed").is_empty());
    cluster.ends();
}

/// The pool grows by it and shrinks again.
#[test]
fn a_worker_that_takes_one_long_request_and_leaves_is_replaced_at_once() {
    let mut cluster = Cluster::start(2, None);
    let clients = Clients::start(cluster.addr, CLIENTS);
    let mut jobs: Vec<_> = (0..2)
        .map(|_| {
            let mut job = cluster.connect();
            let worker = who(&mut job);
            job.get("/job/2000");
            cluster.are_ready(1);
            (job, worker)
        })
        .collect();
    assert_eq!(cluster.alive().len(), 4);
    for (job, worker) in &mut jobs {
        let response = job.read_response();
        assert_eq!(by(response.text()), *worker);
        assert!(response.says_close(), "{response:?}");
        until_gone(*worker);
    }
    cluster.until_alive(2);
    clients.stop().assert_nothing_lost();
    cluster.ends();
}

// ===== all workers =====

#[test]
fn sighup_replaces_all_under_load_and_loses_nothing() {
    for how in [None, Some("round-robin"), Some("sticky")] {
        let mut cluster = Cluster::start(3, how);
        let clients = Clients::start(cluster.addr, CLIENTS);
        for _ in 0..5 {
            clients.go_on(50);
            cluster.roll(3);
        }
        clients.go_on(50);
        println!("measured: five times three workers, {how:?}:");
        clients.stop().assert_nothing_lost();
        cluster.until_alive(3);
        cluster.ends();
    }
}

/// Whether it fails at once or never gets ready.
#[test]
fn sighup_with_an_executable_that_does_not_work_harms_nothing() {
    let mut cluster = Cluster::start(2, None);
    let clients = Clients::start(cluster.addr, CLIENTS);
    let old = cluster.alive();
    for (name, script, why) in [
        ("fails", "#!/bin/sh\nexit 3\n", "exit status: 3"),
        ("hangs", "#!/bin/sh\nexec sleep 1000\n", "not ready in time"),
    ] {
        cluster.installed.put_script(name, script);
        cluster.signal("HUP");
        cluster.program.says(why);
        cluster.program.says("all others stay");
    }
    cluster.installed.remove();
    cluster.signal("HUP");
    cluster.program.says("can't start a worker: No such file");
    cluster.program.says("all others stay");
    assert_eq!(cluster.alive(), old);
    cluster.installed.put(&built("cluster"));
    cluster.roll(2);
    clients.go_on(50);
    clients.stop().assert_nothing_lost();
    cluster.ends();
}

/// What is in hand is finished, what is queued is served, who connects later is refused.
#[test]
fn sigterm_ends_all() {
    for how in [None, Some("round-robin")] {
        let mut cluster = Cluster::start(2, how);
        let mut slow = cluster.connect();
        let worker = who(&mut slow);
        slow.get("/slow/1000");
        let begin = Instant::now();
        cluster.signal("TERM");
        until("it refuses", || {
            RawClient::try_connect(cluster.addr).is_err()
        });
        println!("measured: refused after {:.1?}", begin.elapsed());
        let response = slow.read_response();
        assert_eq!(by(response.text()), worker);
        assert!(response.says_close(), "{response:?}");
        let said = cluster.program.ends_within(PATIENCE);
        cluster.program.assert_success();
        let clean = said
            .iter()
            .filter(|line| line.contains("terminated cleanly"));
        assert_eq!(clean.count(), 2, "{said:#?}");
    }
}

/// As systemd sends it to a whole control group: the workers get it too, before the supervisor has told them anything,
/// or before it has got its own. What was queued in the kernel, or was being handed out, had nobody then.
#[test]
fn sigterm_to_all_at_once_loses_nothing() {
    for how in [None, Some("round-robin")] {
        let mut losses = Vec::new();
        for workers_first in [false, true].repeat(4) {
            let mut cluster = Cluster::start(2, how);
            let clients = Newcomers::start(cluster.addr);
            clients.go_on(200);
            let mut pids: Vec<_> = cluster.alive().into_iter().collect();
            let at = if workers_first { pids.len() } else { 0 };
            pids.insert(at, cluster.program.pid());
            let mut kill = Command::new("kill");
            kill.arg("-TERM").args(pids.iter().map(u32::to_string));
            // The last of them may have ended before it is their turn.
            kill.run().expect("kill can be run");
            cluster.program.ends_within(PATIENCE);
            cluster.program.assert_success();
            let lost = clients.stop();
            if !lost.is_empty() {
                losses.push((workers_first, lost));
            }
        }
        // Where whoever closes the port loses its core right there, who connects meanwhile meets the close.
        println!("measured: {how:?}: losses in {} of 8 rounds", losses.len());
        assert!(losses.len() <= 1, "{how:?}: {losses:#?}");
    }
}

/// Clients that connect anew for each request.
struct Newcomers {
    threads: Vec<JoinHandle<Vec<String>>>,
    answered: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl Newcomers {
    fn start(addr: SocketAddr) -> Self {
        let (answered, stopped) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let threads = (0..CLIENTS).map(|_| {
            let (answered, stopped) = (Arc::clone(&answered), Arc::clone(&stopped));
            thread::spawn(move || {
                let mut lost = Vec::new();
                while !stopped.load(SeqCst) {
                    // Refused, at the end.
                    let Ok(mut client) = RawClient::try_connect(addr) else {
                        thread::yield_now();
                        continue;
                    };
                    let head = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
                    if let Err(error) = client.try_send(head) {
                        lost.push(error.to_string());
                        continue;
                    }
                    match client.try_read_response() {
                        Ok(response) if response.status == 200 => {
                            answered.fetch_add(1, SeqCst);
                        }
                        other => lost.push(format!("{other:?}")),
                    }
                }
                lost
            })
        });
        Self {
            threads: threads.collect(),
            answered,
            stopped,
        }
    }

    /// Until so many more were answered.
    #[track_caller]
    fn go_on(&self, more: usize) {
        let enough = self.answered.load(SeqCst) + more;
        until("answers", || self.answered.load(SeqCst) >= enough);
    }

    /// What became of those that were not answered.
    fn stop(self) -> Vec<String> {
        self.stopped.store(true, SeqCst);
        let threads = self.threads.into_iter();
        let lost = threads.flat_map(|it| it.join().expect("no panic"));
        lost.collect()
    }
}

/// Ten seconds for all, whatever they do: one answers 503 in time, and one is stopped and can't.
#[test]
fn sigterm_has_one_deadline() {
    let mut cluster = Cluster::start(2, None);
    let mut slow = cluster.connect();
    let worker = who(&mut slow);
    slow.set_timeout(PATIENCE);
    slow.get("/slow/60000");
    let mut alive = cluster.alive();
    alive.remove(&worker);
    let other = alive.pop_first().expect("there are two");
    freeze(other);
    let begin = Instant::now();
    cluster.signal("TERM");
    assert_cut(&mut slow);
    cluster
        .program
        .says("killing those that have not ended in time");
    cluster.program.ends_within(PATIENCE);
    let took = begin.elapsed();
    println!("measured: all have ended after {took:.1?}");
    assert!(
        took > Duration::from_secs(10) && took < Duration::from_secs(15),
        "{took:?}"
    );
    cluster.program.assert_success();
}

/// One that hangs is killed after a while, and keeps nobody from being replaced.
#[test]
fn a_worker_that_does_not_leave_is_killed() {
    let mut cluster = Cluster::start(2, None);
    let clients = Clients::start(cluster.addr, CLIENTS);
    let hangs = *cluster.alive().first().expect("there are two");
    clients.stop().assert_nothing_lost();
    // With nothing in hand.
    freeze(hangs);
    let clients = Clients::start(cluster.addr, CLIENTS);
    let begin = Instant::now();
    cluster.signal("HUP");
    cluster.are_ready(2);
    cluster.program.says("a worker does not leave: killed");
    until_gone(hangs);
    println!("measured: killed after {:.1?}", begin.elapsed());
    cluster.until_alive(2);
    clients.stop().assert_nothing_lost();
    cluster.ends();
}

#[test]
fn a_second_sigterm_forces() {
    let mut cluster = Cluster::start(2, None);
    let mut slow = cluster.connect();
    who(&mut slow);
    slow.get("/slow/60000");
    cluster.signal("TERM");
    cluster.program.says("ending");
    let begin = Instant::now();
    // Two within a second are one.
    while begin.elapsed() < Duration::from_millis(1100) {
        assert!(slow.is_still_open(), "after {:?}", begin.elapsed());
        time_passes(Duration::from_millis(10));
    }
    let begin = Instant::now();
    cluster.signal("TERM");
    assert_cut(&mut slow);
    cluster.program.ends_within(BOUND);
    println!("measured: forced in {:.1?}", begin.elapsed());
    cluster.program.assert_success();
}

/// With a 503, or without, as the deadline goes before it if the machine has much other work.
#[track_caller]
fn assert_cut(client: &mut RawClient) {
    match client.try_read_response() {
        Ok(response) => assert_eq!(response.status, 503, "{response:?}"),
        Err(end) => assert!(ended(end), "{end:?}"),
    }
}

/// Nobody tells them: they see that the other end of the pair is gone.
#[test]
fn workers_whose_supervisor_is_gone_finish_what_they_have_and_end() {
    let mut cluster = Cluster::start(2, None);
    let mut slow = cluster.connect();
    let worker = who(&mut slow);
    slow.get("/slow/1000");
    cluster.signal("KILL");
    for _ in 0..2 {
        cluster.program.says("the supervisor is gone");
    }
    until("it refuses", || {
        RawClient::try_connect(cluster.addr).is_err()
    });
    let response = slow.read_response();
    assert_eq!(by(response.text()), worker);
    assert!(response.says_close(), "{response:?}");
    let said = cluster.program.ends_within(PATIENCE);
    let clean = said
        .iter()
        .filter(|line| line.contains("terminated cleanly"));
    assert_eq!(clean.count(), 2, "{said:#?}");
}

/// A worker that stood still finds what it was handed out in its socket, and nobody there whom to tell that it took it.
#[test]
fn what_was_handed_out_is_served_though_the_supervisor_is_gone() {
    let mut cluster = Cluster::start(2, Some("round-robin"));
    let stopped = *cluster.alive().first().expect("there are two");
    freeze(stopped);
    let ask = |n| {
        let clients: Vec<_> = (0..n).map(|_| cluster.connect()).collect();
        for client in &clients {
            client.get("/");
        }
        // Every other one is the other worker's.
        until("answers of the other one", || {
            clients.iter().filter(|it| has_bytes(it)).count() == n / 2
        });
        clients
    };
    let clients = ask(20);
    // What was handed out before these is in the socket.
    drop(ask(2));
    cluster.signal("KILL");
    until_gone(cluster.program.pid());
    assert!(signal(stopped, "CONT"));
    let mut by_stopped = 0;
    for mut client in clients {
        let response = client.read_response();
        by_stopped += usize::from(by(response.text()) == stopped);
    }
    assert_eq!(by_stopped, 10);
    cluster.program.ends_within(PATIENCE);
}

/// Workers serve on, and what they have to say waits.
#[test]
fn workers_whose_supervisor_is_slow_serve_on() {
    let mut cluster = Cluster::start(2, None);
    let clients = Clients::start(cluster.addr, CLIENTS);
    freeze(cluster.program.pid());
    clients.go_on(100);
    let faulty = by(cluster.connect().fetch("/panic").text());
    until_gone(faulty);
    clients.go_on(100);
    cluster.signal("CONT");
    cluster.are_ready(1);
    cluster.until_alive(2);
    clients.stop().assert_nothing_lost();
    cluster.ends();
}

// ===== connections that go to another process =====

/// Its client has sent one frame and a half along with the handshake, and sends each following one in two halves, between
/// which the worker that has it leaves.
#[test]
fn a_websocket_goes_on_in_another_worker() {
    let mut cluster = Cluster::start(2, None);
    let mut socket = cluster.connect();
    let next = frame("two");
    let (half, mut rest) = next.split_at(4);
    let mut next_rest;
    socket.send([HANDSHAKE.as_bytes(), &frame("one"), half].concat());
    let response = socket.read_response_headers();
    assert_eq!(response.status, 101, "{response:?}");
    let accept = response.header("sec-websocket-accept");
    assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    let mut pids = BTreeMap::new();
    let (count, text, first) = counted(&mut socket);
    assert_eq!((count, &*text), (1, "one"));
    *pids.entry(first).or_insert(0) += 1;
    for n in 2..8 {
        cluster.roll(2);
        socket.send(rest);
        let (count, _, pid) = counted(&mut socket);
        assert_eq!(count, n);
        *pids.entry(pid).or_insert(0) += 1;
        assert!(cluster.alive().contains(&pid));
        // Half of the next one.
        let next = frame(&format!("number {n}"));
        socket.send(&next[..7]);
        next_rest = next[7..].to_vec();
        rest = &next_rest;
    }
    assert_eq!(pids.len(), 7, "each time another process: {pids:?}");
    // In the end there is nobody who would go on with it.
    cluster.signal("TERM");
    let (opcode, payload) = read_frame(&mut socket);
    assert_eq!((opcode, &payload[..2]), (8, &1012u16.to_be_bytes()[..]));
    drop(socket);
    cluster.program.ends_within(BOUND);
    cluster.program.assert_success();
}

#[test]
fn a_websocket_goes_on_when_its_worker_has_a_fault() {
    let mut cluster = Cluster::start(1, None);
    let mut socket = cluster.connect();
    socket.send(HANDSHAKE);
    socket.read_response_headers();
    for n in 1..4 {
        socket.send(frame("a"));
        let (count, _, pid) = counted(&mut socket);
        assert_eq!(count, n);
        assert_eq!(by(cluster.connect().fetch("/panic").text()), pid);
        cluster.are_ready(1);
    }
    drop(socket);
    cluster.ends();
}

/// What it was sent comes back whole and in order, while its client sends on and the workers change.
#[test]
fn a_plain_connection_goes_on_in_another_worker() {
    const BYTES: usize = 20_000_000;
    let mut cluster = Cluster::start(2, None);
    let mut plain = cluster.connect();
    let head = "GET /echo HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    // The first of them are read ahead, with the head.
    plain.send([head.as_bytes(), &pattern(0, 1000)].concat());
    assert_eq!(plain.read_response_headers().status, 101);
    assert_eq!(plain.read_exact(1000), pattern(0, 1000));
    let mut writer = plain.socket().try_clone().expect("a descriptor is left");
    let writing = std::thread::spawn(move || {
        for part in 0..BYTES / 1000 {
            writer
                .write_all(&pattern(part, 1000))
                .expect("somebody reads");
        }
    });
    let mut part = 0;
    for _ in 0..3 {
        let enough = part + BYTES / 1000 / 4;
        while part < enough {
            assert_eq!(plain.read_exact(1000), pattern(part, 1000), "part {part}");
            part += 1;
        }
        // Its buffers are full now, and it has something in hand.
        cluster.roll(2);
    }
    while part < BYTES / 1000 {
        assert_eq!(plain.read_exact(1000), pattern(part, 1000), "part {part}");
        part += 1;
    }
    writing.join().expect("it has written all");
    drop(plain);
    cluster.ends();
}

fn pattern(part: usize, n: usize) -> Vec<u8> {
    let bytes = (0..n).map(|i| (part * 7 + i) % 251);
    bytes
        .map(|byte| u8::try_from(byte).expect("less"))
        .collect()
}

/// With the key of RFC 6455 section 1.3.
const HANDSHAKE: &str = "GET /count HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Masked, as a client's must be (RFC 6455 section 5.3).
fn frame(text: &str) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let length = u8::try_from(text.len()).expect("a short one");
    let masked = text
        .bytes()
        .zip(mask.iter().cycle())
        .map(|(byte, mask)| byte ^ mask);
    [0x81, 0x80 | length]
        .into_iter()
        .chain(mask)
        .chain(masked)
        .collect()
}

#[track_caller]
fn read_frame(client: &mut RawClient) -> (u8, Vec<u8>) {
    let head = client.read_exact(2);
    (head[0] & 0xf, client.read_exact(head[1].into()))
}

/// `1: one, says 4711`
#[track_caller]
fn counted(client: &mut RawClient) -> (u64, String, u32) {
    let (opcode, payload) = read_frame(client);
    let text = String::from_utf8(payload).expect("text");
    assert_eq!(opcode, 1, "{text:?}");
    let parsed = text.split_once(": ").and_then(|(count, rest)| {
        let (said, pid) = rest.split_once(", says ")?;
        Some((count.parse().ok()?, said.to_owned(), pid.parse().ok()?))
    });
    parsed.unwrap_or_else(|| panic!("{text:?}"))
}

// ===== a supervisor that hands connections out =====

#[test]
fn round_robin_is_even() {
    let cluster = Cluster::start(3, Some("round-robin"));
    let mut by = BTreeMap::new();
    for _ in 0..30 {
        *by.entry(who(&mut cluster.connect())).or_insert(0) += 1;
    }
    assert_eq!(
        by.values().copied().collect::<Vec<_>>(),
        [10, 10, 10],
        "{by:?}"
    );
    cluster.ends();
}

/// Two connections of one client reach one worker, and also the next ones, until that worker is replaced; all clients
/// together reach all workers.
#[test]
fn sticky_is_by_the_clients_address() {
    let mut cluster = Cluster::start(3, Some("sticky"));
    for _ in 0..2 {
        let mut workers = BTreeSet::new();
        for client in 1..=30 {
            let ask = || from(client, cluster.addr);
            let worker = ask();
            assert_eq!([ask(), ask()], [worker; 2]);
            workers.insert(worker);
        }
        assert_eq!(workers.len(), 3);
        cluster.roll(3);
    }
    cluster.ends();
}

/// Who answers a client at 127.0.0.n.
fn from(n: u8, addr: SocketAddr) -> u32 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let client = SocketAddr::new(IpAddr::from([127, 0, 0, n]), 0);
    socket
        .bind(&client.into())
        .expect("all of 127 is this host");
    socket.connect(&addr.into()).expect("it listens");
    let mut stream = TcpStream::from(socket);
    stream
        .set_read_timeout(Some(BOUND))
        .expect("a socket can have one");
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream
        .write_all(request.as_bytes())
        .expect("it takes a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    by(&answer)
}

/// One that does not read is asked to take only so many; and when it is gone, others get them, and none is lost.
#[test]
fn what_a_worker_did_not_take_goes_to_another() {
    for gone in [false, true] {
        let mut cluster = Cluster::start(2, Some("round-robin"));
        let stuck = *cluster.alive().first().expect("there are two");
        freeze(stuck);
        let clients: Vec<_> = (0..100).map(|_| cluster.connect()).collect();
        for client in &clients {
            client.get("/");
        }
        // All that the stuck one does not hold.
        let mut answered = BTreeSet::new();
        until("answers of the other one", || {
            let ready = |n: &usize| has_bytes(&clients[*n]);
            answered.extend((0..clients.len()).filter(ready));
            answered.len() >= 100 - 16
        });
        assert!(signal(stuck, if gone { "KILL" } else { "CONT" }));
        let mut by_stuck = 0;
        for mut client in clients {
            let response = client.read_response();
            assert_eq!(response.status, 200);
            by_stuck += usize::from(by(response.text()) == stuck);
        }
        println!("measured: of 100 {by_stuck} by the one that was stuck, gone: {gone}");
        assert_eq!(by_stuck, if gone { 0 } else { 16 });
        if gone {
            cluster.are_ready(1);
        }
        cluster.ends();
    }
}

/// The kernel delivers what goes with a descriptor, and not the descriptor. It is given back, so that another one gets it,
/// and if there is no other one it waits until there are some.
#[test]
fn what_workers_have_no_descriptors_for_is_not_lost() {
    let mut cluster = Cluster::start(2, Some("round-robin"));
    let [full, other] = cluster.alive().into_iter().collect::<Vec<_>>()[..] else {
        panic!("there are two")
    };
    if !limit_descriptors(full, 1) {
        return;
    }
    // More than one may leave unanswered.
    for _ in 0..40 {
        assert_eq!(who(&mut cluster.connect()), other);
    }
    limit_descriptors(other, 1);
    let clients: Vec<_> = (0..40).map(|_| cluster.connect()).collect();
    for client in &clients {
        client.get("/");
    }
    for _ in 0..2 {
        cluster.program.says("no descriptors");
    }
    for pid in [full, other] {
        limit_descriptors(pid, 1024);
    }
    for mut client in clients {
        assert_eq!(client.read_response().status, 200);
    }
    until("both serve again", || {
        let answers = [(); 4].map(|()| who(&mut cluster.connect()));
        answers.contains(&full) && answers.contains(&other)
    });
    // Once for each time, not for each connection.
    let lines = cluster.program.has_said("no descriptors");
    assert!(lines.len() <= 2, "{lines:?}");
    cluster.ends();
}

/// Whether all go on or all end: what it was given goes to another one, as it would if it had died.
#[test]
fn a_worker_that_takes_nothing_for_seconds_is_killed() {
    for all_end in [false, true] {
        let mut cluster = Cluster::start(2, Some("round-robin"));
        let stuck = *cluster.alive().first().expect("there are two");
        freeze(stuck);
        let clients: Vec<_> = (0..10).map(|_| cluster.connect()).collect();
        for client in &clients {
            client.get("/");
        }
        until("answers of the other one", || {
            clients.iter().filter(|client| has_bytes(client)).count() >= 5
        });
        if all_end {
            cluster.signal("TERM");
        }
        let begin = Instant::now();
        for mut client in clients {
            client.set_timeout(PATIENCE);
            assert_ne!(by(client.read_response().text()), stuck);
        }
        println!(
            "measured: answered after {:.1?}, all end: {all_end}",
            begin.elapsed()
        );
        if all_end {
            cluster.program.ends_within(PATIENCE);
            cluster.program.assert_success();
        } else {
            cluster.are_ready(1);
            cluster.ends();
        }
    }
}

fn has_bytes(client: &RawClient) -> bool {
    let socket = client.socket();
    socket.set_nonblocking(true).expect("a socket can be that");
    let peeked = socket.peek(&mut [std::mem::MaybeUninit::uninit()]);
    socket.set_nonblocking(false).expect("and back");
    peeked.is_ok_and(|n| n > 0)
}

// ===== a bad environment =====

#[test]
fn a_port_that_is_taken_is_said() {
    let cluster = Cluster::start(1, None);
    let mut other = Program::start(cluster.installed.path(), &[&cluster.addr.to_string()]);
    other.says("can't listen on");
    other.ends_within(BOUND);
    cluster.ends();
}

/// A collector of logs that dies takes nobody along.
#[test]
fn without_anybody_who_reads_its_lines_it_serves_on() {
    const LINES: usize = 3; // that it listens, and two that are ready
    let script = format!("\"$0\" 127.0.0.1:0 2 2>&1 | head -n {LINES}");
    let mut sh = Command::new("sh");
    let mut reader = Program::start_command(sh.args(["-c", &script]).arg(built("cluster")));
    let line = reader.says("listening on ");
    let (_, addr) = line.split_once("listening on ").expect("it says so");
    let addr: SocketAddr = addr.parse().expect("an address");
    let supervisor = pid(&line).expect("it says its pid");
    let workers = [(); 2].map(|()| reader.says(": ready"));
    let mut old = workers.map(|line| pid(&line).expect("it says its pid"));
    // `head` has ended, or does so now.
    assert!(signal(supervisor, "HUP"));
    old.into_iter().for_each(until_gone);
    old = [0; 2];
    for seen in &mut old {
        *seen = who(&mut RawClient::connect(addr));
    }
    assert!(old.into_iter().all(is_alive));
    assert!(signal(supervisor, "TERM"));
    until_gone(supervisor);
    reader.ends_within(PATIENCE);
}

/// As `pkill -HUP cluster` sends it: it is for the supervisor alone.
#[test]
fn sighup_to_workers_is_nothing() {
    let mut cluster = Cluster::start(2, None);
    let old = cluster.alive();
    for worker in &old {
        assert!(signal(*worker, "HUP"));
    }
    let all = (0..20).map(|_| who(&mut cluster.connect()));
    assert!(all.collect::<BTreeSet<_>>().is_subset(&old));
    assert_eq!(cluster.alive(), old);
    cluster.ends();
}

/// It can't be received, and is gone: that is said, at least.
#[test]
fn what_the_supervisor_has_no_descriptor_for_is_lost_with_a_word() {
    let mut cluster = Cluster::start(2, None);
    if !limit_descriptors(cluster.program.pid(), 1) {
        return;
    }
    let mut socket = cluster.connect();
    socket.send(HANDSHAKE);
    socket.read_response_headers();
    socket.send(frame("a"));
    let (_, _, worker) = counted(&mut socket);
    assert!(signal(worker, "TERM"));
    cluster.program.says("gave a connection away that is lost");
    socket.expect_eof();
    limit_descriptors(cluster.program.pid(), 1024);
    cluster.are_ready(1);
    cluster.ends();
}

/// What is queued then waits until there are some again, also at the end.
#[test]
fn what_is_queued_at_the_end_waits_for_descriptors() {
    let mut cluster = Cluster::start(2, Some("round-robin"));
    let supervisor = cluster.program.pid();
    if !limit_descriptors(supervisor, 1) {
        return;
    }
    let clients: Vec<_> = (0..5).map(|_| cluster.connect()).collect();
    for client in &clients {
        client.get("/");
    }
    cluster.program.says("can't accept");
    cluster.signal("TERM");
    cluster.program.says("ending");
    // It has looked into the queue.
    time_passes(Duration::from_millis(50));
    limit_descriptors(supervisor, 1024);
    for mut client in clients {
        assert_eq!(client.read_response().status, 200);
    }
    cluster.program.ends_within(PATIENCE);
    cluster.program.assert_success();
}

/// For the supervisor, that is: workers have their own.
#[test]
fn without_descriptors_the_workers_stay() {
    let mut cluster = Cluster::start(2, None);
    let supervisor = cluster.program.pid();
    if !limit_descriptors(supervisor, 1) {
        return;
    }
    let clients = Clients::start(cluster.addr, CLIENTS);
    let old = cluster.alive();
    cluster.signal("HUP");
    cluster
        .program
        .says("can't start a worker: Too many open files");
    cluster.program.says("all others stay");
    clients.go_on(50);
    assert_eq!(cluster.alive(), old);
    limit_descriptors(supervisor, 1024);
    cluster.roll(2);
    clients.stop().assert_nothing_lost();
    cluster.ends();
}

/// As somebody whom that limits; root is not.
#[test]
fn without_processes_the_workers_stay() {
    let is_root = fs::metadata("/proc/self").is_ok_and(|it| it.uid() == 0);
    if !is_root {
        skip("only root may become another user");
        return;
    }
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let mut cluster = Cluster::start_by(&nobody, 2, None);
    let supervisor = cluster.program.pid();
    let may_have = |most| {
        let mut prlimit = Command::new(nobody[0]);
        prlimit.args(&nobody[1..]).arg("prlimit");
        limit(&mut prlimit, supervisor, "nproc", most)
    };
    if !may_have(1) {
        return;
    }
    let clients = Clients::start(cluster.addr, CLIENTS);
    let old = cluster.alive();
    cluster.signal("HUP");
    let why = "can't start a worker: Resource temporarily unavailable";
    cluster.program.says(why);
    cluster.program.says("all others stay");
    clients.go_on(50);
    assert_eq!(cluster.alive(), old);
    may_have(4096);
    cluster.roll(2);
    clients.stop().assert_nothing_lost();
    cluster.ends();
}
