//! nginx: a new configuration, and SIGHUP. Its master starts new workers, and the old ones end when they have
//! answered what they have, their clients' idle connections at once.

use std::net::SocketAddr;

use crate::balancer::{Balancer, OUTPUT, Process, Program, free_address, write};
use crate::support::Dir;
use crate::support::closed_loop::Speaks;

pub struct Nginx {
    process: Process,
    addr: SocketAddr,
    speaks: Speaks,
}

const CONFIG: &str = "nginx.conf";

impl Nginx {
    pub fn start(program: &Program, speaks: Speaks, backends: &[SocketAddr]) -> Self {
        let addr = free_address();
        let dir = Dir::new();
        write(&dir, CONFIG, &config(addr, speaks, backends));
        let arguments = ["-p", "./", "-c", CONFIG, "-e", "stderr"];
        let process = Process::start(program, dir, &arguments, addr);
        Self {
            process,
            addr,
            speaks,
        }
    }
}

impl Balancer for Nginx {
    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        let config = config(self.addr, self.speaks, backends);
        self.process.write(CONFIG, &config);
        self.process.send("HUP");
    }

    fn log(&self) -> String {
        self.process.read("log") + &self.process.read(OUTPUT)
    }
}

fn config(addr: SocketAddr, speaks: Speaks, backends: &[SocketAddr]) -> String {
    let server = |it| format!("server {it} max_fails=0; ");
    let servers = backends.iter().map(server).collect::<Vec<_>>().concat();
    let version = match speaks {
        Speaks::Http1 => "1.1",
        Speaks::Http2 => "2",
    };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|it| format!("{it}_temp_path temporary; "))
        .concat();
    // The user is for a master that may change it, and would else look for one that there need not be.
    format!(
        "
user root;
daemon off;
worker_processes 2;
error_log log notice;
pid pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    {temporary}
    upstream backends {{
        {servers}
        keepalive 64;
        keepalive_requests 1000000;
    }}
    server {{
        listen {addr};
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://backends;
            proxy_http_version {version};
            proxy_set_header Connection \"\";
            proxy_next_upstream off;
        }}
    }}
}}
"
    )
}
