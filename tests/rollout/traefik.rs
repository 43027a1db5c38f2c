//! Traefik: by a file that it watches.

use std::net::SocketAddr;

use crate::balancer::{Balancer, OUTPUT, Process, Program, free_address, write};
use crate::support::Dir;
use crate::support::closed_loop::Speaks;

pub struct Traefik {
    process: Process,
    addr: SocketAddr,
    speaks: Speaks,
}

const SERVICES: &str = "services/services.yml";

impl Traefik {
    pub fn start(program: &Program, speaks: Speaks, backends: &[SocketAddr]) -> Self {
        let addr = free_address();
        let dir = Dir::new();
        std::fs::create_dir(dir.0.join("services")).expect("it is our folder");
        write(&dir, SERVICES, &services(speaks, backends));
        let arguments = [
            format!("--entrypoints.web.address={addr}"),
            format!("--providers.file.filename={}/{SERVICES}", dir.0.display()),
            "--providers.file.watch=true".to_owned(),
            // How long it waits after one change before it makes the next: two seconds, if not told.
            "--providers.providersthrottleduration=20ms".to_owned(),
            "--global.checknewversion=false".to_owned(),
            "--global.sendanonymoususage=false".to_owned(),
            "--log.level=ERROR".to_owned(),
        ];
        let process = Process::start(program, dir, &arguments, addr);
        Self {
            process,
            addr,
            speaks,
        }
    }
}

impl Balancer for Traefik {
    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        let services = services(self.speaks, backends);
        self.process.write(SERVICES, &services);
    }

    fn log(&self) -> String {
        self.process.read(OUTPUT)
    }
}

fn services(speaks: Speaks, backends: &[SocketAddr]) -> String {
    let scheme = match speaks {
        Speaks::Http1 => "http",
        Speaks::Http2 => "h2c",
    };
    let server = |it| format!("        - url: \"{scheme}://{it}\"\n");
    let servers = backends.iter().map(server).collect::<Vec<_>>().concat();
    format!(
        "\
http:
  routers:
    all:
      rule: \"PathPrefix(`/`)\"
      service: backends
      entryPoints: [web]
  services:
    backends:
      loadBalancer:
        servers:
{servers}"
    )
}
