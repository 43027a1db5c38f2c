//! What all balancers have in common: where their programs are, and how one runs.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{Server, Signal};
use crate::support::closed_loop::Speaks;
pub use crate::support::program::free_address;
use crate::support::skip::skip;
use crate::support::starts::Start;
use crate::support::{BOUND, Dir};
use crate::{caddy, envoy, haproxy, nginx, traefik};

/// One that runs, with a configuration of its own. Dropped, it is ended.
pub trait Balancer: Send {
    /// Where its clients connect.
    fn addr(&self) -> SocketAddr;

    /// Tells it to ask these from now on, and nobody else: by its own means, in its own time.
    fn set(&mut self, backends: &[SocketAddr]);

    /// What it has written to its log.
    fn log(&self) -> String;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    HaProxy,
    Envoy,
    Traefik,
    Caddy,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Nginx,
        Self::HaProxy,
        Self::Envoy,
        Self::Traefik,
        Self::Caddy,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::HaProxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::Traefik => "Traefik",
            Self::Caddy => "Caddy",
        }
    }

    fn program(self) -> String {
        self.name().to_lowercase()
    }
}

/// One that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub kind: Kind,
    path: PathBuf,
    /// Where the libraries are that came with it.
    libraries: PathBuf,
    version: Vec<u32>,
}

impl Program {
    /// The system's.
    pub fn installed(kind: Kind) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
        places.find_map(|place| Self::at(kind, place.join(kind.program()), PathBuf::new()))
    }

    /// One that `fetch` got, into the folder that `BALANCERS` names, if not into its usual one.
    pub fn fetched(kind: Kind) -> Option<Self> {
        let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/balancers");
        let folder = std::env::var_os("BALANCERS").map_or(usual, PathBuf::from);
        let path = folder.join("bin").join(kind.program());
        Self::at(kind, path, folder.join("lib"))
    }

    /// All there are; says which are not.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for kind in Kind::ALL {
            if let Kind::Nginx | Kind::HaProxy = kind {
                let installed = Self::installed(kind);
                if installed.is_none() {
                    skip(format_args!("{} is not installed", kind.name()));
                }
                all.extend(installed);
            }
            let fetched = Self::fetched(kind);
            if fetched.is_none() {
                skip(format_args!(
                    "tests/rollout/fetch did not get {}",
                    kind.name()
                ));
            }
            all.extend(fetched);
        }
        all
    }

    fn at(kind: Kind, path: PathBuf, libraries: PathBuf) -> Option<Self> {
        if !path.exists() {
            return None;
        }
        let argument = match kind {
            Kind::Nginx | Kind::HaProxy => "-v",
            Kind::Envoy => "--version",
            Kind::Traefik | Kind::Caddy => "version",
        };
        let said = Command::new(&path)
            .arg(argument)
            .env("LD_LIBRARY_PATH", &libraries)
            .read()
            .ok()?;
        // nginx tells standard error.
        let said = [said.stdout, said.stderr].concat();
        let version = version(&String::from_utf8_lossy(&said))?;
        Some(Self {
            kind,
            path,
            libraries,
            version,
        })
    }

    /// To its upstreams, without TLS.
    pub fn speaks(&self) -> Vec<Speaks> {
        if self.kind == Kind::Nginx && self.version[..] < [1, 29, 4][..] {
            vec![Speaks::Http1]
        } else {
            Speaks::ALL.to_vec()
        }
    }

    /// Whether it sends again what GOAWAY has refused. Go's client can't if that is a POST.
    pub fn heeds_goaway(&self) -> bool {
        !matches!(self.kind, Kind::Traefik | Kind::Caddy)
    }

    /// Whether it learns without ending its clients' connections. Who does not, answers 502 for a server that
    /// failed: what its clients see end without an answer is its own loss.
    pub fn keeps_clients(&self) -> bool {
        !matches!(self.kind, Kind::Nginx | Kind::Caddy)
    }

    /// The servers that are compared behind it.
    pub fn servers(&self) -> [Server; 4] {
        let lame_duck = Server::LameDuck(self.lame_duck());
        [Server::Defaults, lame_duck, Server::Axum, Server::Control]
    }

    /// Longer than it takes this balancer to learn that a server is to be left alone, if that was told 200 ms before.
    pub fn lame_duck(&self) -> Duration {
        match self.kind {
            // It makes all of its routing anew.
            Kind::Traefik => Duration::from_secs(5),
            // Its old workers go on until the master has started new ones.
            Kind::Nginx => Duration::from_secs(1),
            _ => Duration::from_millis(400),
        }
    }

    /// With these upstreams.
    pub fn start(&self, speaks: Speaks, backends: &[SocketAddr]) -> Box<dyn Balancer> {
        match self.kind {
            Kind::Nginx => Box::new(nginx::Nginx::start(self, speaks, backends)),
            Kind::HaProxy => Box::new(haproxy::HaProxy::start(self, speaks, backends)),
            Kind::Envoy => Box::new(envoy::Envoy::start(self, speaks, backends)),
            Kind::Traefik => Box::new(traefik::Traefik::start(self, speaks, backends)),
            Kind::Caddy => Box::new(caddy::Caddy::start(self, speaks, backends)),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version: Vec<_> = self.version.iter().map(u32::to_string).collect();
        write!(f, "{} {}", self.kind.name(), version.join("."))
    }
}

/// The first three numbers with dots between them.
fn version(said: &str) -> Option<Vec<u32>> {
    let mut words = said.split(|c: char| !(c.is_ascii_digit() || c == '.'));
    let numbers = |word: &str| -> Option<Vec<u32>> {
        let numbers: Result<Vec<_>, _> = word.split('.').map(str::parse).collect();
        numbers.ok().filter(|numbers| numbers.len() == 3)
    };
    words.find_map(numbers)
}

// ===== a process =====

/// In the foreground, with a folder for what it reads and writes. Dropped, it is told to end.
pub struct Process {
    child: Child,
    pub dir: Dir,
}

impl Process {
    /// Waits until it listens there.
    pub fn start<S: AsRef<OsStr>>(
        program: &Program,
        dir: Dir,
        arguments: &[S],
        addr: SocketAddr,
    ) -> Self {
        let output = File::create(dir.0.join(OUTPUT)).expect("it is our folder");
        let errors = output.try_clone().expect("a descriptor");
        let child = Command::new(&program.path)
            .args(arguments)
            .current_dir(&dir.0)
            // Where some keep what they find out.
            .env("HOME", &dir.0)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .env("LD_LIBRARY_PATH", &program.libraries)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .start();
        let child = child.unwrap_or_else(|error| panic!("starting {program}: {error}"));
        let mut process = Self { child, dir };
        let begin = Instant::now();
        while TcpStream::connect(addr).is_err() {
            let ended = process.child.try_wait().expect("it is our child");
            assert!(
                ended.is_none() && begin.elapsed() < BOUND,
                "{program} does not listen, {ended:?}: {}",
                process.read(OUTPUT)
            );
            thread::sleep(Duration::from_millis(5));
        }
        process
    }

    pub fn send(&self, signal: &str) {
        Signal::new(signal, &self.child.id().to_string()).send();
    }

    /// Of what it wrote into its folder.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.0.join(name)).unwrap_or_default()
    }

    /// Whole at every moment, for who looks at it all the time.
    pub fn write(&self, name: &str, text: &str) {
        write(&self.dir, name, text);
    }
}

pub const OUTPUT: &str = "output";

impl Drop for Process {
    /// Not killed at once: some have processes of their own to end.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.send("TERM");
        }
        let begin = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if begin.elapsed() > Duration::from_secs(2) {
                let _ = self.child.kill(); // it may have ended
                let _ = self.child.wait();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Puts a file there in one step.
pub fn write(dir: &Dir, name: &str, text: &str) {
    let new = dir.0.join("new");
    std::fs::write(&new, text).expect("it is our folder");
    std::fs::rename(&new, dir.0.join(name)).expect("it is our folder");
}
