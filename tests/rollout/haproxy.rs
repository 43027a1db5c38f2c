//! `HAProxy`: by its runtime socket. There is a place for each server that will ever come; one that leaves is put into
//! maintenance, and its place is not used again.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use crate::balancer::{Balancer, OUTPUT, Process, Program, free_address, write};
use crate::support::closed_loop::Speaks;
use crate::support::wait::until;
use crate::support::{BOUND, Dir};

pub struct HaProxy {
    process: Process,
    addr: SocketAddr,
    /// Those who are asked, and in which place they are.
    places: HashMap<SocketAddr, usize>,
    taken: usize,
}

const CONFIG: &str = "haproxy.cfg";
const PLACES: usize = 2000;

impl HaProxy {
    pub fn start(program: &Program, speaks: Speaks, backends: &[SocketAddr]) -> Self {
        let addr = free_address();
        let dir = Dir::new();
        write(&dir, CONFIG, &config(addr, speaks, &dir));
        let process = Process::start(program, dir, &["-db", "-f", CONFIG], addr);
        let mut haproxy = Self {
            process,
            addr,
            places: HashMap::new(),
            taken: 0,
        };
        haproxy.set(backends);
        haproxy
    }

    fn tell(&self, command: &str) {
        let path = self.process.dir.0.join("socket");
        let mut connected = None;
        // It may listen for clients before it does for this.
        until("HAProxy listens to us", || {
            connected = UnixStream::connect(&path).ok();
            connected.is_some()
        });
        let mut socket = connected.expect("it was, until now");
        let bound = Some(BOUND);
        socket.set_read_timeout(bound).expect("a time");
        let told = writeln!(socket, "{command}");
        told.expect("it reads");
        let mut answer = String::new();
        let read = socket.read_to_string(&mut answer);
        read.expect("it answers, and closes");
        // It says nothing, or what it has changed.
        let is_fine = answer.trim().is_empty() || answer.contains("changed");
        assert!(is_fine, "{command}: {answer}");
    }
}

impl Balancer for HaProxy {
    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        for backend in backends {
            if self.places.contains_key(backend) {
                continue;
            }
            self.taken += 1;
            assert!(self.taken <= PLACES, "more than {PLACES} servers");
            let (place, port) = (self.taken, backend.port());
            self.places.insert(*backend, place);
            self.tell(&format!(
                "set server backends/s{place} addr 127.0.0.1 port {port}"
            ));
            self.tell(&format!("set server backends/s{place} state ready"));
        }
        let gone = |addr: &SocketAddr| !backends.contains(addr);
        let leaving: Vec<_> = self.places.keys().copied().filter(gone).collect();
        for backend in leaving {
            if let Some(place) = self.places.remove(&backend) {
                self.tell(&format!("set server backends/s{place} state maint"));
            }
        }
    }

    fn log(&self) -> String {
        // Not who comes and goes.
        let output = self.process.read(OUTPUT);
        let lines = output.lines().filter(|line| !line.contains("Server "));
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn config(addr: SocketAddr, speaks: Speaks, dir: &Dir) -> String {
    let dir = dir.0.display();
    let proto = match speaks {
        Speaks::Http1 => "h1",
        Speaks::Http2 => "h2",
    };
    format!(
        "
global
    stats socket {dir}/socket mode 600 level admin
    nbthread 2
    log stdout format raw local0

defaults
    mode http
    log global
    option httplog
    option dontlog-normal
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    retries 0
    retry-on none
    http-reuse always

frontend clients
    bind {addr}
    default_backend backends

backend backends
    balance roundrobin
    server-template s 1-{PLACES} 127.0.0.1:1 disabled proto {proto}
"
    )
}
