//! Envoy: by a file of endpoints that it watches.

use std::net::SocketAddr;

use crate::balancer::{Balancer, OUTPUT, Process, Program, free_address, write};
use crate::support::Dir;
use crate::support::closed_loop::Speaks;

pub struct Envoy {
    process: Process,
    addr: SocketAddr,
}

const CONFIG: &str = "envoy.yaml";
const ENDPOINTS: &str = "endpoints/endpoints.yaml";
const FAILED: &str = "failed";

impl Envoy {
    pub fn start(program: &Program, speaks: Speaks, backends: &[SocketAddr]) -> Self {
        let addr = free_address();
        let dir = Dir::new();
        std::fs::create_dir(dir.0.join("endpoints")).expect("it is our folder");
        write(&dir, ENDPOINTS, &endpoints(backends));
        write(&dir, CONFIG, &config(addr, speaks, &dir));
        let arguments = [
            "-c",
            CONFIG,
            "--concurrency",
            "2",
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ];
        let process = Process::start(program, dir, &arguments, addr);
        Self { process, addr }
    }
}

impl Balancer for Envoy {
    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn set(&mut self, backends: &[SocketAddr]) {
        self.process.write(ENDPOINTS, &endpoints(backends));
    }

    fn log(&self) -> String {
        self.process.read(FAILED) + &self.process.read(OUTPUT)
    }
}

fn endpoints(backends: &[SocketAddr]) -> String {
    let endpoint = |it: &SocketAddr| {
        let address = format!("{{ address: 127.0.0.1, port_value: {} }}", it.port());
        format!("    - endpoint: {{ address: {{ socket_address: {address} }} }}\n")
    };
    let endpoints = backends.iter().map(endpoint).collect::<Vec<_>>().concat();
    format!(
        "\
resources:
- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: backends
  endpoints:
  - lb_endpoints:
{endpoints}"
    )
}

fn config(addr: SocketAddr, speaks: Speaks, dir: &Dir) -> String {
    let port = addr.port();
    let dir = dir.0.display();
    let version = match speaks {
        Speaks::Http1 => "http_protocol_options",
        Speaks::Http2 => "http2_protocol_options",
    };
    format!(
        r#"
node: {{ id: rollout, cluster: rollout }}
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: clients
          codec_type: HTTP1
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route: {{ cluster: backends }}
          http_filters:
          - name: router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          access_log:
          - name: failed
            filter:
              status_code_filter:
                comparison: {{ op: GE, value: {{ default_value: 500, runtime_key: none }} }}
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {dir}/{FAILED}
              log_format:
                text_format_source:
                  inline_string: "%START_TIME% %REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_HOST% %RESPONSE_CODE_DETAILS%\n"
  clusters:
  - name: backends
    type: EDS
    connect_timeout: 5s
    lb_policy: ROUND_ROBIN
    eds_cluster_config:
      eds_config:
        resource_api_version: V3
        path_config_source:
          path: {dir}/{ENDPOINTS}
          watched_directory: {{ path: {dir}/endpoints }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {version}: {{}} }}
"#
    )
}
