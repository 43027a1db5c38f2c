//! A straggler is named by the request in hand (G18), however it was read.

#![cfg(all(unix, feature = "serve"))]

use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

use http_terminator::{HttpBuilder, Terminator, TowerToHyper};

use crate::support::{App, BOUND, FrontEnd, Gate, RawClient, app, each, start, within};

const QUICK: &str = "GET /quick HTTP/1.1\r\nhost: a\r\n\r\n";
const LONG: &str =
    "GET /quick HTTP/1.1\r\nhost: a\r\nx: a header that makes it longer than is copied\r\n\r\n";
const POST: &str = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n\r\n\r\n";
const SLOW: &str = "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_of_pipelined_requests_the_one_in_hand_is_named() {
    each(
        [
            FrontEnd::Serve,
            FrontEnd::OwnLoopAuto,
            FrontEnd::OwnLoopAutoTls,
        ],
        async |front| {
            for (before, n) in [
                (String::new(), 0),
                (QUICK.to_owned(), 1),
                (LONG.to_owned(), 1),
                (POST.to_owned(), 1),
                ([QUICK, POST].concat(), 2),
                ([POST, QUICK, LONG].concat(), 3),
            ] {
                for behind in ["", QUICK, POST, "GET /half HTT"] {
                    let gate = Gate::new();
                    let state = App {
                        gate: gate.clone(),
                        terminator: None,
                    };
                    let terminator = Terminator::new();
                    let server = start(front, &terminator, app(state)).await;
                    let mut client = server.connect();
                    let what = format!("{front:?}: {before:?}, then {behind:?}");
                    client.send([&before, SLOW, behind].concat());
                    for _ in 0..n {
                        assert_eq!(client.read_response().status, 200, "{what}");
                    }
                    gate.wait_entered(1);
                    let report = within(BOUND, "the end", terminator.force()).await;
                    let [straggler] = &report.stragglers[..] else {
                        panic!("{what}: {report}");
                    };
                    let named = (straggler.method.as_deref(), straggler.path.as_deref());
                    assert_eq!(named, (Some("GET"), Some("/slow")), "{what}: {report}");
                    assert!(!straggler.unresponsive, "{what}: {report}");
                    drop(client);
                }
            }
        },
    );
}

/// `Connection::serve` tracks the service by itself: to have done so before changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_a_service_that_was_tracked_before_it_is_served_is_idle_after_its_requests() {
    for ours in [true, false] {
        let terminator = Terminator::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let mut listener = terminator.listen(listener);
        tokio::spawn(async move {
            while let Some((io, _)) = listener.accept().await {
                let connection = io.connection();
                let router = app(App::default());
                let service = connection.service(TowerToHyper::new(router));
                if ours {
                    tokio::spawn(connection.serve(
                        &HttpBuilder::new(TokioExecutor::new()),
                        io,
                        service,
                    ));
                } else {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    tokio::spawn(connection.serve(&builder, io, service));
                }
            }
        });
        let mut client = RawClient::connect(addr);
        client.send([QUICK, POST, LONG].concat());
        for _ in 0..3 {
            assert_eq!(client.read_response().status, 200);
        }
        let report = within(BOUND, "the end", terminator.terminate()).await;
        assert_eq!((report.idle, report.connections()), (1, 1), "{report}");
        drop(client);
    }
}
