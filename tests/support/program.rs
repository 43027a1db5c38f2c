//! An example program as a family of processes: what all of them print, and signals to one of them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::starts::Start;
use super::wait::until;

/// How long a program may take for what takes it a moment, on a machine that has other work.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A program and all whom it starts, which print to the same two pipes. Dropped, it is killed, with all that
/// have named themselves in a line.
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    /// Nobody has asked for them yet.
    unread: Vec<String>,
    /// All of them.
    said: Vec<String>,
    pids: BTreeSet<u32>,
}

impl Program {
    #[track_caller]
    pub fn start(path: &Path, args: &[&str]) -> Self {
        Self::start_command(Command::new(path).args(args))
    }

    #[track_caller]
    pub fn start_command(command: &mut Command) -> Self {
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .start();
        let mut child = child.unwrap_or_else(|error| {
            panic!("{command:?}: {error} (`cargo test` builds examples, `--test` alone does not)")
        });
        let (tell, lines) = mpsc::channel();
        pass_on(child.stdout.take().expect("it is piped"), tell.clone());
        pass_on(child.stderr.take().expect("it is piped"), tell);
        Self {
            pids: BTreeSet::from([child.id()]),
            child,
            lines,
            unread: Vec::new(),
            said: Vec::new(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that contains this, among those that were not waited for yet.
    #[track_caller]
    pub fn says(&mut self, what: &str) -> String {
        self.says_within(PATIENCE, what)
    }

    #[track_caller]
    pub fn says_within(&mut self, bound: Duration, what: &str) -> String {
        let begin = Instant::now();
        loop {
            if let Some(n) = self.unread.iter().position(|line| line.contains(what)) {
                return self.unread.remove(n);
            }
            let left = bound.saturating_sub(begin.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.read(line),
                Err(end) => panic!(
                    "not within {bound:?}: {what:?} ({end}), but: {:#?}",
                    self.said
                ),
            }
        }
    }

    /// All lines so far that contain this.
    pub fn has_said(&mut self, what: &str) -> Vec<String> {
        while let Ok(line) = self.lines.try_recv() {
            self.read(line);
        }
        let said = self.said.iter().filter(|line| line.contains(what));
        said.cloned().collect()
    }

    /// Waits until it, and all that it started, have ended; what all of them have said.
    #[track_caller]
    pub fn ends_within(&mut self, bound: Duration) -> Vec<String> {
        let begin = Instant::now();
        loop {
            let left = bound.saturating_sub(begin.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.read(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("it, or what it started, has not ended: {:#?}", self.said)
                }
            }
        }
        self.said.clone()
    }

    /// The program itself has ended well.
    #[track_caller]
    pub fn assert_success(&mut self) {
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "{status}: {:#?}", self.said);
    }

    fn read(&mut self, line: String) {
        self.pids.extend(pid(&line));
        self.said.push(line.clone());
        self.unread.push(line);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("it said: {:#?}", self.has_said(""));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Those that it has started, while they are what they were.
        for pid in std::mem::take(&mut self.pids) {
            let is_ours = |exe: PathBuf| exe.to_string_lossy().contains("/examples/");
            if std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(is_ours) {
                signal(pid, "KILL");
            }
        }
    }
}

fn pass_on(out: impl Read + Send + 'static, tell: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return; // the test is over
            }
        }
    });
}

/// Of who printed this line: `4711: listening`, or `worker 1 (4711): ready`.
pub fn pid(line: &str) -> Option<u32> {
    let (who, _) = line.split_once(": ")?;
    let who = who.trim_end_matches(')');
    let number = who.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    number.parse().ok()
}

/// False if there is no such process. At once: a program that does it would have to be [started](super::starts).
pub fn signal(pid: u32, name: &str) -> bool {
    let signal = match name {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "TERM" => Signal::TERM,
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        _ => unreachable!("SIG{name}"),
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process"), signal).is_ok()
}

/// Stops a process, and waits until each of its threads has stopped. SIGCONT lets it go on.
#[track_caller]
pub fn freeze(pid: u32) {
    assert!(signal(pid, "STOP"), "{pid} is gone");
    let has_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
        // A thread that has ended meanwhile does nothing either.
        stat.map_or(true, |stat| stat.contains(") T "))
    };
    until("a process that has stopped", || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        tasks.expect("it is there").all(has_stopped)
    });
}

/// How many descriptors a process may have from now on. False, and says so, if it can't be set from outside.
pub fn limit_descriptors(pid: u32, most: u32) -> bool {
    limit(&mut Command::new("prlimit"), pid, "nofile", most)
}

/// The same of other resources, by this command.
pub fn limit(prlimit: &mut Command, pid: u32, resource: &str, most: u32) -> bool {
    prlimit.args(["--pid", &pid.to_string(), &format!("--{resource}={most}:")]);
    let Ok(status) = prlimit.run() else {
        super::skip::skip("no `prlimit` of util-linux");
        return false;
    };
    assert!(status.success(), "{prlimit:?}: {status}");
    true
}

#[track_caller]
pub fn until_gone(pid: u32) {
    until("the end of a process", || !is_alive(pid));
}

/// One that nobody has waited for is not.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// `target/debug/examples/{name}`, for a test in `target/debug/deps/`.
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("in target/debug/deps");
    profile.join("examples").join(name)
}

/// For a program that can't say where it listens: below the ports that the system gives to whoever asks for
/// any.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const PORTS: u16 = 10_000;
    // Other test runs begin elsewhere.
    let begin = u16::try_from(std::process::id() * 97 % u32::from(PORTS)).expect("below that");
    for _ in 0..PORTS {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (begin + next % PORTS) % PORTS;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
    panic!("no port is free");
}

/// A path under which there is one executable, and then another.
pub struct Installed(PathBuf);

impl Installed {
    pub fn new(dir: &Path, name: &str) -> Self {
        let installed = Self(dir.join("program"));
        installed.put(&built(name));
        installed
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// At once, as a deploy does, so that there is always one.
    pub fn put(&self, executable: &Path) {
        let new = self.0.with_extension("new");
        std::os::unix::fs::symlink(executable, &new).expect("its own folder can be written to");
        std::fs::rename(&new, &self.0).expect("and renamed in");
    }

    pub fn put_script(&self, name: &str, script: &str) {
        let path = self.0.with_file_name(name);
        std::fs::write(&path, script).expect("its own folder can be written to");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("it is ours");
        self.put(&path);
    }

    pub fn remove(&self) {
        std::fs::remove_file(&self.0).expect("it is there");
    }
}
