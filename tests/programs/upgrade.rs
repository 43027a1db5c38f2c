//! `examples/upgrade.rs` from outside: a server is replaced by another executable under load.
#![cfg(all(target_os = "linux", feature = "serve", feature = "signal"))]

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::clients::Clients;
use crate::support::program::{
    Installed, Program, built, free_address, is_alive, limit_descriptors, pid, signal, until_gone,
};
use crate::support::wait::until;
use crate::support::{BOUND, Dir, RawClient};

const CLIENTS: usize = 6;

struct Server {
    program: Program,
    installed: Installed,
    addr: SocketAddr,
    /// The process that accepts.
    pid: u32,
    _dir: Dir,
}

impl Server {
    #[track_caller]
    fn start() -> Self {
        let dir = Dir::new();
        let installed = Installed::new(&dir.0, "upgrade");
        let addr = free_address();
        let mut program = Program::start(installed.path(), &[&addr.to_string()]);
        program.says("listening on");
        Self {
            pid: program.pid(),
            program,
            installed,
            addr,
            _dir: dir,
        }
    }

    /// Waits until another one accepts, and gives the pid of the one before.
    #[track_caller]
    fn is_replaced(&mut self) -> u32 {
        let line = self.program.says("listening on");
        let new = pid(&line).expect("a line begins with a pid");
        assert_ne!(new, self.pid);
        std::mem::replace(&mut self.pid, new)
    }

    #[track_caller]
    fn upgrade(&mut self) -> u32 {
        assert!(signal(self.pid, "HUP"), "{} is gone", self.pid);
        self.is_replaced()
    }

    /// That one says how it ended.
    #[track_caller]
    fn ends_cleanly(&mut self, pid: u32) {
        self.program.says(&format!("{pid}: terminated cleanly"));
        until_gone(pid);
    }

    #[track_caller]
    fn answers(&self) -> u32 {
        let response = RawClient::connect(self.addr).fetch("/");
        response.text().trim().parse().expect("it answers its pid")
    }
}

#[test]
fn twenty_upgrades_under_load_lose_nothing() {
    const UPGRADES: usize = 20;
    let mut server = Server::start();
    let clients = Clients::start(server.addr, CLIENTS);
    let begin = Instant::now();
    for _ in 0..UPGRADES {
        clients.go_on(50);
        let old = server.upgrade();
        server.ends_cleanly(old);
    }
    clients.go_on(50);
    println!("measured: {UPGRADES} upgrades in {:.1?}", begin.elapsed());
    let seen = clients.stop();
    seen.assert_nothing_lost();
    assert_eq!(seen.by.len(), UPGRADES + 1, "{:?}", seen.by);
    let highest = sockets(server.pid).into_iter().max();
    println!("measured: highest descriptor of a socket after {UPGRADES} upgrades: {highest:?}");
    assert!(signal(server.pid, "TERM"));
    server.ends_cleanly(server.pid);
}

/// `2>&1 | tee`, say, has ended: the successor died as it said that it listens, and the one before at its own word of that.
#[test]
fn without_anybody_who_reads_its_lines_it_is_replaced_all_the_same() {
    let addr = free_address();
    let script = "\"$0\" \"$1\" 2>&1 | head -n 1";
    let mut sh = Command::new("sh");
    sh.args(["-c", script]).arg(built("upgrade"));
    let mut reader = Program::start_command(sh.arg(addr.to_string()));
    let first = pid(&reader.says("listening on")).expect("a line begins with a pid");
    let answers = || {
        let response = RawClient::connect(addr).fetch("/");
        response.text().trim().parse().expect("it answers its pid")
    };
    assert_eq!(answers(), first);
    let mut last = first;
    for _ in 0..2 {
        // `head` has ended, or does so now.
        assert!(signal(last, "HUP"));
        until_gone(last);
        let next: u32 = answers();
        assert_ne!(next, last);
        last = next;
    }
    assert!(signal(last, "TERM"));
    until_gone(last);
    reader.ends_within(BOUND);
}

/// It is not there, is nothing that can be run, fails its check, ends at once, or crashes; and in the end there is a
/// good one.
#[test]
fn a_successor_that_crashes_harms_nothing() {
    let mut server = Server::start();
    let first = server.pid;
    let clients = Clients::start(server.addr, CLIENTS);
    server.installed.remove();
    for (name, script) in [
        ("missing", None),
        ("garbage", Some("\x7fELF\0\0\0\0")),
        ("unfit", Some("#!/bin/sh\nexit 3\n")),
        ("ends", Some("#!/bin/sh\nexit 0\n")),
        ("fails", Some("#!/bin/sh\n[ $1 = --check ] || exit 3\n")),
        (
            "crashes",
            Some("#!/bin/sh\n[ $1 = --check ] || kill -SEGV $$\n"),
        ),
    ] {
        if let Some(script) = script {
            server.installed.put_script(name, script);
        }
        assert!(signal(first, "HUP"));
        let why = server.program.says("not replaced, serving on: ");
        println!("{name}: {why}");
        clients.go_on(50);
    }
    assert_eq!(server.answers(), first);
    server.installed.put(&support::program::built("upgrade"));
    assert_eq!(server.upgrade(), first);
    server.ends_cleanly(first);
    clients.go_on(50);
    let seen = clients.stop();
    seen.assert_nothing_lost();
    assert_eq!(seen.by.len(), 2, "{:?}", seen.by);
}

/// It is killed after five seconds, until when the server does not hang, and holds nothing afterwards.
#[test]
fn a_successor_that_never_gets_ready_harms_nothing() {
    let mut server = Server::start();
    let first = server.pid;
    let clients = Clients::start(server.addr, CLIENTS);
    let script = "#!/bin/sh\n[ $1 = --check ] && exit\necho $$: starting\nexec sleep 1000\n";
    server.installed.put_script("hangs", script);
    let begin = Instant::now();
    assert!(signal(first, "HUP"));
    let hanging = server.program.says(": starting");
    let hanging = pid(&hanging).expect("it said");
    server.program.says("not replaced, serving on: ");
    println!("measured: given up after {:.1?}", begin.elapsed());
    assert!(!is_alive(hanging));
    server.installed.put(&support::program::built("upgrade"));
    let old = server.upgrade();
    assert_eq!(old, first);
    server.ends_cleanly(first);
    clients.go_on(50);
    let seen = clients.stop();
    seen.assert_nothing_lost();
    assert_eq!(seen.by.len(), 2, "{:?}", seen.by);
}

#[test]
fn two_upgrades_at_once_are_one() {
    let mut server = Server::start();
    let first = server.pid;
    let clients = Clients::start(server.addr, CLIENTS);
    assert!(signal(first, "HUP"));
    assert!(signal(first, "HUP"));
    server.is_replaced();
    // While the old one has still something in hand, or is gone.
    signal(first, "HUP");
    server.ends_cleanly(first);
    let second = server.pid;
    clients.go_on(50);
    // The next one is the next one's, and there was no other.
    assert_eq!(server.upgrade(), second);
    server.ends_cleanly(second);
    clients.go_on(50);
    clients.stop().assert_nothing_lost();
    let listened = server.program.has_said("listening on");
    assert_eq!(listened.len(), 3, "{listened:?}");
}

/// There may be three generations at a time, if the first has something long in hand.
#[test]
fn what_is_in_hand_is_finished_by_who_has_it() {
    let mut server = Server::start();
    let first = server.pid;
    let mut slow = RawClient::connect(server.addr);
    slow.get("/slow");
    // It is in hand once its connection was accepted, in order, before this one.
    assert_eq!(server.answers(), first);
    server.upgrade();
    let second = server.pid;
    server.upgrade();
    assert!(is_alive(first), "it has something in hand");
    // Up to half a second after its successor got ready.
    until("it accepts no more", || {
        (0..20).all(|_| server.answers() != first)
    });
    let response = slow.read_response();
    assert_eq!(response.text(), format!("{first}, after three seconds\n"));
    assert!(response.says_close(), "{response:?}");
    server.ends_cleanly(first);
    server.ends_cleanly(second);
}

/// Until SIGTERM ends it for good: what had connected is answered, and who connects later is refused at once.
#[test]
fn sigterm_ends_it_for_good() {
    let mut server = Server::start();
    let old = server.upgrade();
    server.ends_cleanly(old);
    let mut slow = RawClient::connect(server.addr);
    slow.get("/slow");
    assert_eq!(server.answers(), server.pid);
    assert!(signal(server.pid, "TERM"));
    until("it refuses", || {
        RawClient::try_connect(server.addr).is_err()
    });
    assert!(slow.read_response().says_close());
    server.ends_cleanly(server.pid);
    server.program.ends_within(Duration::from_secs(5));
}

/// Also while it is being replaced: whoever sent it knows of one server, and of no successor.
#[test]
fn sigterm_during_an_upgrade_ends_it_for_good() {
    let mut server = Server::start();
    let first = server.pid;
    let built = support::program::built("upgrade");
    let script = format!(
        "#!/bin/sh\n[ $1 = --check ] && exit\necho $$: starting\nsleep 1\nexec {} \"$@\"\n",
        built.display()
    );
    server.installed.put_script("slow", &script);
    assert!(signal(first, "HUP"));
    server.program.says(": starting");
    assert!(signal(first, "TERM"));
    server.is_replaced();
    server.ends_cleanly(first);
    server.ends_cleanly(server.pid);
    server.program.ends_within(Duration::from_secs(5));
    assert!(RawClient::try_connect(server.addr).is_err());
}

#[test]
fn a_port_that_is_taken_is_said_and_harms_nobody() {
    let server = Server::start();
    let mut other = Program::start(server.installed.path(), &[&server.addr.to_string()]);
    other.says("SIGHUP to it replaces it");
    other.ends_within(Duration::from_secs(5));
    assert_eq!(server.answers(), server.pid);
}

/// Connections that it has are served; those that it can't accept wait.
#[test]
fn without_descriptors_it_serves_on_and_is_replaced_later() {
    let mut server = Server::start();
    let first = server.pid;
    let mut client = RawClient::connect(server.addr);
    assert_eq!(client.fetch("/").status, 200);
    if !limit_descriptors(first, 1) {
        return;
    }
    let mut waits = RawClient::connect(server.addr);
    waits.get("/");
    assert!(signal(first, "HUP"));
    // Its check can't open a library.
    server.program.says("not replaced, serving on: ");
    assert_eq!(client.fetch("/").status, 200);
    limit_descriptors(first, 1024);
    assert_eq!(waits.read_response().status, 200);
    server.upgrade();
    server.ends_cleanly(first);
}

/// The descriptors of its sockets.
fn sockets(pid: u32) -> Vec<u32> {
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it is ours");
    let paths = all.map(|fd| fd.expect("it is there").path());
    let sockets = paths.filter(|path| {
        let link = std::fs::read_link(path);
        link.is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    });
    sockets
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .collect()
}
