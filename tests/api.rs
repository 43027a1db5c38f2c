//! The public names and what can be done with their types: a change here is a breaking one.
#![cfg(all(unix, feature = "serve", feature = "signal"))]

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http_terminator::{
    Connection, EndStreamsLayer, IdlePolicy, Inherited, LameDuck, Listener, OnSignal, Phase,
    Report, Serve, ShutdownGuard, Stats, Straggler, Termination, Terminator, TerminatorBuilder,
    TrackedIo, TrackedListener, TrackedService, UnlinkOnClose, Watched,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

fn anywhere<T: Send + Sync + Unpin + 'static>() {}
fn spawned<T: Future<Output: Send> + Send + 'static>(_: T) {}
fn listens<L: Listener>() {}
fn survives_panics<T: std::panic::UnwindSafe + std::panic::RefUnwindSafe>() {}

#[test]
fn handles_and_futures_go_anywhere() {
    anywhere::<Terminator>();
    anywhere::<TerminatorBuilder>();
    anywhere::<Termination>();
    anywhere::<Connection>();
    anywhere::<ShutdownGuard>();
    anywhere::<Report>();
    anywhere::<Stats>();
    anywhere::<Straggler>();
    anywhere::<OnSignal>();
    anywhere::<TrackedIo<TcpStream>>();
    anywhere::<TrackedIo<UnixStream>>();
    anywhere::<TrackedListener<TcpListener>>();
    anywhere::<TrackedService<()>>();
    anywhere::<Watched<()>>();
    anywhere::<EndStreamsLayer>();
    anywhere::<LameDuck>();
    anywhere::<Serve<TcpListener, ()>>();
    listens::<TcpListener>();
    listens::<UnixListener>();
    listens::<Inherited<TcpListener>>();
    listens::<Inherited<UnixListener>>();
    listens::<UnlinkOnClose>();
    survives_panics::<Terminator>();
    survives_panics::<Termination>();
    survives_panics::<Connection>();
    survives_panics::<ShutdownGuard>();
    survives_panics::<TrackedIo<TcpStream>>();
}

#[test]
fn names_are_as_promised() {
    type Downcast = fn(Upgraded) -> Result<(TrackedIo<TcpStream>, Bytes), Upgraded>;

    let _: fn() -> Terminator = Terminator::new;
    let _: fn() -> Terminator = Default::default;
    let _: fn() -> TerminatorBuilder = Terminator::builder;
    let _: fn(&Terminator) -> Termination = Terminator::terminate;
    let _: fn(&Terminator) -> Termination = Terminator::force;
    let _: fn(&Terminator) -> Termination = Terminator::terminated;
    let _: fn(&Terminator) -> io::Result<OnSignal> = Terminator::terminate_on_signal;
    let _: fn(&Terminator) -> Phase = Terminator::phase;
    let _: fn(&Terminator) -> bool = Terminator::is_ready;
    let _: fn(&Terminator) -> Stats = Terminator::stats;
    let _: fn(&Terminator) -> Vec<Straggler> = Terminator::in_hand;
    let _: fn(&Terminator) -> Option<Duration> = Terminator::time_left;
    let _: fn(&Terminator) -> CancellationToken = Terminator::cancellation_token;
    let _: fn(&Terminator) -> Option<ShutdownGuard> = Terminator::guard;
    let _: Downcast = TrackedIo::downcast;
    let _: fn(&Terminator, TcpStream) -> TrackedIo<TcpStream> = Terminator::track;
    let _: fn(TrackedIo<TcpStream>) -> Option<TcpStream> = TrackedIo::into_inner;
    let _: fn(&TrackedIo<TcpStream>) -> Connection = TrackedIo::connection;
    let _: fn(&Connection) = Connection::detach;
    let _: fn(&Connection) = Connection::terminate;
    let _: fn(&Connection) = Connection::force;
    let _: fn(&Terminator) -> EndStreamsLayer = Terminator::end_streams;
    let _: fn(&Connection, ()) -> TrackedService<()> = Connection::service;
    let _: fn(&Report) -> bool = Report::is_clean;
    assert!(Phase::Serving < Phase::LameDuck && Phase::LameDuck < Phase::Draining);
    assert!(Phase::Draining < Phase::Forcing && Phase::Forcing < Phase::Terminated);
}

#[tokio::test]
async fn what_is_to_be_spawned_borrows_nothing() {
    let terminator = Terminator::builder()
        .grace_period(Duration::from_secs(20))
        .grace_period(None)
        .lame_duck(Duration::ZERO)
        .lame_duck(Duration::ZERO..=Duration::ZERO)
        .lame_duck(LameDuck::default())
        .head_timeout(Duration::from_secs(30))
        .head_timeout(None)
        .idle_timeout(Duration::from_secs(75))
        .idle_timeout(None)
        .max_connection_age(Duration::from_secs(3600))
        .max_connection_age(None)
        .max_requests_per_connection(1_000)
        .max_requests_per_connection(None)
        .idle(IdlePolicy::Immediate)
        .settle(Duration::from_millis(25))
        .stall_timeout(Duration::from_secs(1))
        .answer_at_deadline(true)
        .build();
    let bind = || async { TcpListener::bind("127.0.0.1:0").await.expect("a port") };
    let router = Router::<()>::new();
    let builder = auto::Builder::new(TokioExecutor::new());

    let serve: Serve<TcpListener, Router> = terminator.serve(bind().await, router.clone());
    spawned(
        serve
            .http(builder.clone())
            .idle_timeout(Duration::from_secs(75))
            .connection_in_extensions()
            .close_websockets(1001),
    );
    let make = router
        .clone()
        .into_make_service_with_connect_info::<SocketAddr>();
    spawned(terminator.serve_make_service(bind().await, make));
    spawned(terminator.draining());
    let (ours, _theirs) = UnixStream::pair().expect("sockets");
    let io = terminator.track(ours);
    let service = hyper_util::service::TowerToHyperService::new(router);
    let connection = io.connection();
    spawned(connection.handshake(async { 7 }));
    spawned(connection.draining());
    spawned(connection.serve(&builder, io, service));
    let handle: JoinHandle<Option<u8>> = terminator.spawn(async { 7 });
    assert_eq!(handle.await.expect("it does not panic"), Some(7));
    spawned(terminator.listen(bind().await).accept_forever());
    let ended: Termination = terminator.terminate_within(None);
    drop(terminator.terminate_within(Duration::from_secs(20)));
    assert!(ended.await.is_clean());
    terminator.reached(Phase::Draining).await;
}

/// An accept loop, as a user would write it.
trait AcceptForever {
    fn accept_forever(self) -> impl Future<Output = ()> + Send + 'static;
}

impl AcceptForever for TrackedListener<TcpListener> {
    async fn accept_forever(mut self) {
        while let Some((io, _address)) = self.accept().await {
            drop(io);
        }
    }
}

/// Whose types are part of ours: a new major version of one of these is one of this crate. `docs/api.txt` is made by
/// `cargo public-api --all-features -sss > docs/api.txt`, and compared with that by `.ci/run`.
#[test]
fn no_other_crate_is_part_of_the_public_names() {
    const OURS: [&str; 4] = ["http_terminator", "core", "alloc", "std"];
    const OTHERS: [&str; 14] = [
        "axum",
        "bytes",
        "futures_core",
        "http",
        "http_body",
        "hyper",
        "hyper_util",
        "tokio",
        "tokio_rustls",
        "tokio_util",
        "tonic",
        "tower_layer",
        "tower_service",
        // Of the conditions under which its types are `Unpin`.
        "pin_project_lite",
    ];
    let is_of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    let names = include_str!("../docs/api.txt").split(|c: char| !is_of_a_name(c) && c != ':');
    let crates: BTreeSet<_> = names
        .filter_map(|name| name.split_once("::"))
        .map(|(first, _)| first)
        .filter(|first| first.starts_with(char::is_lowercase))
        .collect();
    let known: BTreeSet<_> = OURS.into_iter().chain(OTHERS).collect();
    assert_eq!(crates, known);
}
