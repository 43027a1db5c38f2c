//! Caddy: a new configuration by its API. Its HTTP server is made anew, and the old one ended as Go's are.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::balancer::{Balancer, OUTPUT, Process, Program, free_address, write};
use crate::support::closed_loop::Speaks;
use crate::support::{Dir, RawClient, Target};

pub struct Caddy {
    process: Process,
    addr: SocketAddr,
    admin: SocketAddr,
    speaks: Speaks,
}

const CONFIG: &str = "caddy.json";

impl Caddy {
    pub fn start(program: &Program, speaks: Speaks, backends: &[SocketAddr]) -> Self {
        let (addr, admin) = (free_address(), free_address());
        let dir = Dir::new();
        let config = config(addr, admin, speaks, backends).to_string();
        write(&dir, CONFIG, &config);
        let process = Process::start(program, dir, &["run", "--config", CONFIG], addr);
        Self {
            process,
            addr,
            admin,
            speaks,
        }
    }
}

impl Balancer for Caddy {
    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        let admin = self.admin;
        let config = config(self.addr, admin, self.speaks, backends).to_string();
        let mut client = RawClient::connect(Target::Tcp(admin));
        client.send(format!(
            "POST /load HTTP/1.1\r\nhost: {admin}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{config}",
            config.len()
        ));
        // It is asked anew while it answers, and may close before.
        match client.try_read_response() {
            Ok(answer) => assert_eq!(answer.status, 200, "{answer:?}"),
            Err(end) => println!("caddy did not answer: {end:?}"),
        }
    }

    fn log(&self) -> String {
        self.process.read(OUTPUT)
    }
}

fn config(addr: SocketAddr, admin: SocketAddr, speaks: Speaks, backends: &[SocketAddr]) -> Value {
    let version = match speaks {
        Speaks::Http1 => "1.1",
        Speaks::Http2 => "h2c",
    };
    let upstreams: Vec<_> = backends
        .iter()
        .map(|it| json!({ "dial": it.to_string() }))
        .collect();
    let proxy = json!({
        "handler": "reverse_proxy",
        "upstreams": upstreams,
        "load_balancing": { "selection_policy": { "policy": "round_robin" } },
        "transport": { "protocol": "http", "versions": [version] },
    });
    json!({
        "admin": { "listen": admin.to_string(), "config": { "persist": false } },
        "logging": { "logs": { "default": { "level": "WARN" } } },
        "apps": { "http": { "servers": { "clients": {
            "listen": [addr.to_string()],
            "protocols": ["h1"],
            "automatic_https": { "disable": true },
            "routes": [{ "handle": [proxy] }],
        } } } },
    })
}
