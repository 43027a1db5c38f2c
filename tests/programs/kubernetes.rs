//! `examples/kubernetes/`: its manifest is read, and its server deployed, by a kubelet and an endpoint controller that are
//! made of a few lines each.
//!
//! What is as in a cluster: SIGTERM and the removal from the service come in any order; a removal concerns new
//! connections alone; one more pod is ready before one is told to leave; probes go to the health port. A client
//! connects to one of the service's pods, keeps its connection or not, and asks again as soon as it has an answer.
#![cfg(all(unix, feature = "serve", feature = "signal"))]

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::ops::AddAssign;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http::StatusCode;
use saphyr::{LoadableYamlNode, Yaml};
use tokio::runtime;

use crate::support;
use crate::support::closed_loop::is_refused;
use crate::support::program::{PATIENCE, Program, built, signal};
use crate::support::starts::Start;
use crate::support::wait::{time_passes, until};
use crate::support::{BOUND, H2Client, RawClient, h2_finish, h2_try_connect, side_by_side};

const SOURCE: &str = include_str!("../../examples/kubernetes/main.rs");
const DEPLOYMENT: &str = include_str!("../../examples/kubernetes/deployment.yaml");
const SERVICE: &str = include_str!("../../examples/kubernetes/service.yaml");

/// Between SIGTERM and removal.
const APART: Duration = Duration::from_millis(200);
/// Here; the manifest's is for a cluster.
const LAME_DUCK: Duration = Duration::from_millis(600);
/// A SYN that was dropped comes again after a second.
const DROPPED: Duration = Duration::from_millis(900);
/// For so long a connection has to be quiet before a draining server may close it.
const QUIET: Duration = Duration::from_millis(25);

// ===== the manifest =====

fn parse(yaml: &str) -> Yaml<'_> {
    let documents = Yaml::load_from_str(yaml).expect("it is YAML");
    let [document] = <[_; 1]>::try_from(documents).expect("one document");
    document
}

fn pod<'a>(deployment: &'a Yaml<'a>) -> &'a Yaml<'a> {
    &deployment["spec"]["template"]["spec"]
}

/// The number of seconds in one of the container's variables.
fn variable(pod: &Yaml<'_>, name: &str) -> f64 {
    let variables = pod["containers"][0]["env"].as_sequence().expect("a list");
    let found = variables.iter().find(|it| text(&it["name"]) == name);
    let value = &found.unwrap_or_else(|| panic!("no {name}"))["value"];
    text(value).parse().expect("a number")
}

fn text<'a>(yaml: &'a Yaml<'_>) -> &'a str {
    yaml.as_str().unwrap_or_else(|| panic!("no text: {yaml:?}"))
}

fn number(yaml: &Yaml<'_>) -> f64 {
    let number = yaml.as_integer();
    let number = number.unwrap_or_else(|| panic!("no number: {yaml:?}"));
    f64::from(u32::try_from(number).expect("a small one"))
}

/// What `main.rs` does if nobody says otherwise.
fn default_of(name: &str) -> f64 {
    let (_, rest) = SOURCE
        .split_once(&format!("const {name}: f64 = "))
        .unwrap_or_else(|| panic!("no {name}"));
    let (value, _) = rest.split_once(';').expect("a statement");
    value.parse().expect("a number")
}

fn same(one: f64, other: f64) -> bool {
    (one - other).abs() < 1e-9
}

#[test]
fn the_times_in_the_manifest_fit_and_are_those_of_the_server() {
    let deployment = parse(DEPLOYMENT);
    let pod = pod(&deployment);
    let patience = number(&pod["terminationGracePeriodSeconds"]);
    let mut all = 1.0; // for forcing, and to exit
    for name in ["LAME_DUCK", "GRACE", "HEALTH_GRACE"] {
        let value = variable(pod, &format!("{name}_SECONDS"));
        assert!(same(value, default_of(name)), "{name}: {value}");
        all += value;
    }
    assert!(all <= patience, "{all} s do not fit into {patience} s");

    let probe = &pod["containers"][0]["readinessProbe"];
    let noticed = number(&probe["periodSeconds"]) * number(&probe["failureThreshold"]);
    let lame_duck = variable(pod, "LAME_DUCK_SECONDS");
    assert!(2.0 * noticed < lame_duck, "{noticed} s, {lame_duck} s");
}

/// As the manifest's comments say: the hook in place of the lame duck.
#[test]
fn the_times_fit_with_the_hook_as_well() {
    let hook = DEPLOYMENT
        .split_once("# lifecycle:")
        .expect("it is there")
        .1;
    let (before, _) = DEPLOYMENT.split_once("# lifecycle:").expect("as above");
    let with_hook = format!("{before}lifecycle:{}", hook.replace("# ", ""));
    let deployment = parse(&with_hook);
    let pod = pod(&deployment);
    let sleep = number(&pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]);
    let all = sleep + variable(pod, "GRACE_SECONDS") + variable(pod, "HEALTH_GRACE_SECONDS") + 1.0;
    let patience = number(&pod["terminationGracePeriodSeconds"]);
    assert!(all <= patience, "{all} s do not fit into {patience} s");
}

#[test]
fn names_and_ports_in_the_manifests_agree() {
    let (deployment, service) = (parse(DEPLOYMENT), parse(SERVICE));
    assert_eq!(text(&deployment["kind"]), "Deployment");
    assert_eq!(text(&service["kind"]), "Service");
    let app = text(&deployment["spec"]["template"]["metadata"]["labels"]["app"]);
    assert_eq!(
        app,
        text(&deployment["spec"]["selector"]["matchLabels"]["app"])
    );
    assert_eq!(app, text(&service["spec"]["selector"]["app"]));
    assert_eq!(text(&service["spec"]["ports"][0]["targetPort"]), "http");

    let container = &pod(&deployment)["containers"][0];
    let ports = container["ports"].as_sequence().expect("a list");
    for (name, port) in [("http", 8080.0), ("health", 8081.0)] {
        let found = ports.iter().find(|it| text(&it["name"]) == name);
        let found = number(&found.expect("it is there")["containerPort"]);
        assert!(same(found, port), "{name}: {found}");
        let default = format!("\"0.0.0.0:{port}\"");
        assert!(SOURCE.contains(&default), "{default} in main.rs");
    }
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(text(&container[probe]["httpGet"]["port"]), "health");
    }
}

/// Against Kubernetes's own schema, where the tool is installed that has it.
#[test]
fn the_manifests_are_valid() {
    for file in ["deployment", "service"] {
        let path = format!("examples/kubernetes/{file}.yaml");
        let checked = Command::new("kubernetes-validate")
            .args(["--strict", &path])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .read();
        match checked {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => {
                support::skip::skip(format_args!("no `kubernetes-validate` ({error})"));
                return;
            }
        }
    }
}

// ===== pods =====

struct Pod {
    program: Program,
    http: SocketAddr,
    health: SocketAddr,
}

impl Pod {
    fn start(lame_duck: Duration) -> Self {
        let mut program = Program::start_command(
            Command::new(built("kubernetes"))
                .args(["127.0.0.1:0", "127.0.0.1:0"])
                .env("LAME_DUCK_SECONDS", lame_duck.as_secs_f64().to_string()),
        );
        let line = program.says("traffic on ");
        let addresses = line
            .strip_prefix("traffic on ")
            .and_then(|rest| rest.split_once(", health on "));
        let (http, health) = addresses.unwrap_or_else(|| panic!("{line:?}"));
        Self {
            program,
            http: http.parse().expect("an address"),
            health: health.parse().expect("an address"),
        }
    }

    /// What the kubelet is told by the probe of that name.
    fn probe(&self, name: &str) -> io::Result<u16> {
        let deployment = parse(DEPLOYMENT);
        let probe = &pod(&deployment)["containers"][0][name];
        let mut kubelet = RawClient::try_connect(self.health)?;
        kubelet.get(text(&probe["httpGet"]["path"]));
        Ok(kubelet.read_response().status)
    }

    fn is_ready(&self) -> bool {
        self.probe("readinessProbe").is_ok_and(|it| it == 200)
    }

    fn sigterm(&self) {
        assert!(signal(self.program.pid(), "TERM"));
    }

    /// By itself, well within what the kubelet would wait, and cleanly.
    fn ends(mut self) {
        self.program.ends_within(PATIENCE);
        self.program.says("traffic: terminated cleanly");
        self.program.assert_success();
    }
}

fn is_refused_at(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).is_err_and(|it| it.kind() == ErrorKind::ConnectionRefused)
}

/// Traffic has ended for whoever comes, a request is still in hand: both probes are answered, each as it should.
#[test]
fn probes_are_answered_to_the_last() {
    let pod = Pod::start(Duration::ZERO);
    until("the pod to be ready", || pod.is_ready());
    let mut client = RawClient::connect(pod.http);
    client.send("POST /echo HTTP/1.1\r\nhost: server\r\ncontent-length: 4\r\n\r\nec");
    pod.sigterm();
    until("the listener to be closed", || is_refused_at(pod.http));
    assert_eq!(pod.probe("readinessProbe").expect("an answer"), 503);
    assert_eq!(pod.probe("livenessProbe").expect("an answer"), 200);
    client.send("ho");
    let response = client.read_response();
    assert_eq!((response.text(), response.says_close()), ("echo", true));
    let health = pod.health;
    pod.ends();
    assert!(is_refused_at(health));
}

/// Readiness is the first to change: everything is still accepted and served meanwhile.
#[test]
fn readiness_fails_first() {
    let pod = Pod::start(Duration::from_secs(2));
    until("the pod to be ready", || pod.is_ready());
    pod.sigterm();
    until("the probe to fail", || !pod.is_ready());
    assert_eq!(pod.probe("readinessProbe").expect("an answer"), 503);
    assert_eq!(pod.probe("livenessProbe").expect("an answer"), 200);
    let response = RawClient::connect(pod.http).fetch("/");
    assert_eq!((response.status, response.says_close()), (200, true));
    pod.ends();
}

// ===== a rollout =====

/// When an old pod gets SIGTERM, and when nobody is sent to it any more.
#[derive(Clone, Copy, Debug)]
enum Order {
    RemovedFirst,
    Together,
    SigtermFirst,
    /// Nobody removes it but who asks whether it is ready.
    ByReadiness,
    /// The manifest's hook in place of a lame duck.
    Hook,
}

impl Order {
    const ALL: [Self; 5] = [
        Self::RemovedFirst,
        Self::Together,
        Self::SigtermFirst,
        Self::ByReadiness,
        Self::Hook,
    ];

    fn lame_duck(self) -> Duration {
        match self {
            Self::Hook => Duration::ZERO,
            _ => LAME_DUCK,
        }
    }
}

/// The pods of a service, as every node knows them.
#[derive(Clone, Default)]
struct Endpoints(Arc<Mutex<Vec<SocketAddr>>>);

impl Endpoints {
    fn add(&self, pod: &Pod) {
        self.0.lock().expect("no panic").push(pod.http);
    }

    fn remove(&self, pod: &Pod) {
        self.0
            .lock()
            .expect("no panic")
            .retain(|it| *it != pod.http);
    }

    fn pick(&self, n: usize) -> SocketAddr {
        let pods = self.0.lock().expect("no panic");
        pods[n % pods.len()]
    }
}

struct Cluster {
    endpoints: Endpoints,
    pods: Vec<Pod>,
    lame_duck: Duration,
}

impl Cluster {
    fn new(pods: usize, lame_duck: Duration) -> Self {
        let mut cluster = Self {
            endpoints: Endpoints::default(),
            pods: Vec::new(),
            lame_duck,
        };
        for _ in 0..pods {
            cluster.add_one();
        }
        cluster
    }

    fn add_one(&mut self) {
        let pod = Pod::start(self.lame_duck);
        until("a pod to be ready", || pod.is_ready());
        self.endpoints.add(&pod);
        self.pods.push(pod);
    }

    /// The oldest pod, by one that is ready before.
    fn replace_one(&mut self, order: Order) {
        self.add_one();
        let pod = self.pods.remove(0);
        match order {
            Order::RemovedFirst => {
                self.endpoints.remove(&pod);
                time_passes(APART);
                pod.sigterm();
            }
            Order::Together => {
                pod.sigterm();
                self.endpoints.remove(&pod);
            }
            Order::SigtermFirst => {
                pod.sigterm();
                time_passes(APART);
                self.endpoints.remove(&pod);
            }
            Order::ByReadiness => {
                pod.sigterm();
                until("the probe to fail", || !pod.is_ready());
                self.endpoints.remove(&pod);
            }
            Order::Hook => {
                self.endpoints.remove(&pod);
                time_passes(LAME_DUCK);
                pod.sigterm();
            }
        }
        pod.ends();
    }
}

/// Two pods are replaced in each order, under clients that keep their connections, that do not, and of HTTP/2.
#[test]
fn a_rollout_loses_nothing_in_any_order() {
    side_by_side(Order::ALL, |order| {
        let mut cluster = Cluster::new(2, order.lame_duck());
        let clients = Clients::start(&cluster.endpoints);
        clients.go_on(200);
        for _ in 0..2 {
            cluster.replace_one(order);
            clients.go_on(200);
        }
        let seen = clients.stop();
        println!("measured: {order:?}: {seen}");
        assert!(seen.lost.is_empty(), "{order:?}: {seen} {:#?}", seen.lost);
        assert_eq!(seen.slow, 0, "{order:?}: {seen}");
    });
}

/// The clients do see it if something is lost: the same without a lame duck, in the order that needs it.
#[test]
fn without_a_lame_duck_who_has_not_learnt_is_refused() {
    let mut cluster = Cluster::new(2, Duration::ZERO);
    let clients = Clients::start(&cluster.endpoints);
    clients.go_on(200);
    cluster.add_one();
    let pod = cluster.pods.remove(0);
    pod.sigterm();
    // However long that takes on a machine that has other work.
    until("the listener to be closed", || is_refused_at(pod.http));
    clients.go_on(2000);
    cluster.endpoints.remove(&pod);
    pod.ends();
    let seen = clients.stop();
    println!("measured: the control: {seen}");
    assert!(!seen.lost.is_empty(), "{seen}");
}

// ===== clients =====

#[derive(Clone, Copy)]
enum Kind {
    Keeps,
    Leaves,
    Http2,
}

#[derive(Default)]
struct Seen {
    answers: usize,
    connections: usize,
    /// Refused with GOAWAY: nobody has begun with it, it is sent again.
    retried: usize,
    /// The client, or the machine, had let the connection be quiet for so long that it may be closed.
    late: usize,
    /// Connects whose SYN was dropped.
    slow: usize,
    lost: Vec<String>,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} answers on {} connections, {} lost, {} late, {} retried, {} slow connects",
            self.answers,
            self.connections,
            self.lost.len(),
            self.late,
            self.retried,
            self.slow
        )
    }
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.answers += other.answers;
        self.connections += other.connections;
        self.retried += other.retried;
        self.late += other.late;
        self.slow += other.slow;
        self.lost.extend(other.lost);
    }
}

struct Clients {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Clients {
    fn start(endpoints: &Endpoints) -> Self {
        use Kind::{Http2, Keeps, Leaves};
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let kinds = [Keeps, Keeps, Keeps, Leaves, Leaves, Http2, Http2];
        let threads = kinds.into_iter().enumerate().map(|(n, kind)| {
            let mut client = Client {
                endpoints: endpoints.clone(),
                stop: Arc::clone(&stop),
                answers: Arc::clone(&answers),
                seen: Seen::default(),
                n,
            };
            thread::spawn(move || {
                match kind {
                    Keeps | Leaves => client.http1(matches!(kind, Keeps)),
                    Http2 => runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .expect("a runtime")
                        .block_on(client.http2()),
                }
                client.seen
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            answers,
        }
    }

    /// Waits for so many more answers.
    fn go_on(&self, answers: usize) {
        let enough = self.answers.load(SeqCst) + answers;
        until("answers", || self.answers.load(SeqCst) >= enough);
    }

    fn stop(self) -> Seen {
        self.stop.store(true, SeqCst);
        let mut all = Seen::default();
        for thread in self.threads {
            all += thread.join().expect("a client");
        }
        all
    }
}

struct Client {
    endpoints: Endpoints,
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    seen: Seen,
    /// Which pod it goes to next.
    n: usize,
}

impl Client {
    fn goes_on(&self) -> bool {
        !self.stop.load(SeqCst) && self.seen.lost.len() < 20
    }

    fn next_pod(&mut self) -> SocketAddr {
        self.n += 1;
        self.endpoints.pick(self.n)
    }

    fn answered(&mut self) {
        self.seen.answers += 1;
        self.answers.fetch_add(1, SeqCst);
    }

    fn connected<T, E: std::fmt::Debug>(
        &mut self,
        pod: SocketAddr,
        begin: Instant,
        result: Result<T, E>,
    ) -> Option<T> {
        self.seen.slow += usize::from(begin.elapsed() > DROPPED);
        match result {
            Ok(client) => {
                self.seen.connections += 1;
                Some(client)
            }
            Err(error) => {
                self.seen.lost.push(format!("connecting {pod}: {error:?}"));
                thread::sleep(Duration::from_millis(1)); // nobody is there: no storm
                None
            }
        }
    }

    fn http1(&mut self, keeps: bool) {
        let mut kept: Option<RawClient> = None;
        // Before which the server has not seen its connection quiet.
        let mut since = Instant::now();
        while self.goes_on() {
            let open = kept.take().filter(RawClient::is_still_open);
            let mut client = if let Some(client) = open {
                client
            } else {
                since = Instant::now();
                let pod = self.next_pod();
                let connected = RawClient::try_connect(pod);
                let Some(client) = self.connected(pod, since, connected) else {
                    continue;
                };
                client
            };
            let before = Instant::now();
            let wrote = client.try_send("GET / HTTP/1.1\r\nhost: server\r\n\r\n");
            let quiet = since.elapsed();
            match client.try_read_response() {
                Ok(response) if response.status == 200 => {
                    self.answered();
                    if !keeps {
                        // So that thousands of ports are not kept for a minute each.
                        let reset = client.socket().set_linger(Some(Duration::ZERO));
                        reset.expect("a socket can be told");
                    }
                    kept = Some(client).filter(|_| keeps && !response.says_close());
                }
                _ if quiet >= QUIET => self.seen.late += 1,
                other => {
                    let why = format!("after {quiet:?}: {wrote:?}, {other:?}");
                    self.seen.lost.push(why);
                }
            }
            since = before;
        }
    }

    async fn http2(&mut self) {
        let mut kept: Option<H2Client> = None;
        while self.goes_on() {
            let client = if let Some(client) = kept.take().filter(|it| !it.is_closed()) {
                client
            } else {
                let (begin, pod) = (Instant::now(), self.next_pod());
                let connected = h2_try_connect(pod).await;
                let connected = connected.map_err(|(error, _)| error);
                let Some(client) = self.connected(pod, begin, connected) else {
                    continue;
                };
                client
            };
            // It is going away and this client knows: nothing was sent.
            let Ok((response, _)) = client.try_start("GET", "/", true).await else {
                self.seen.retried += 1;
                continue;
            };
            match tokio::time::timeout(BOUND, h2_finish(response)).await {
                Ok(Ok((StatusCode::OK, _))) => {
                    self.answered();
                    kept = Some(client);
                }
                Ok(Err(error)) if is_refused(&error) => self.seen.retried += 1,
                other => self.seen.lost.push(format!("HTTP/2: {other:?}")),
            }
        }
    }
}
