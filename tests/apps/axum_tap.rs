//! `axum::serve` with a tracked listener that is tapped, as our docs recommend it, and the way to a
//! socket's options (D5).

#![cfg(all(unix, feature = "serve", feature = "axum"))]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::ServiceExt;
use axum::extract::ConnectInfo;
use axum::routing::get;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;

use http_terminator::Terminator;

use crate::support;
use crate::support::{App, BOUND, RawClient, app, blocking, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_a_tapped_listener_serves_every_kind_of_service() {
    let terminator = Terminator::new();
    let nodelay = Arc::new(Mutex::new(Vec::new()));
    let mut addrs = Vec::new();
    for kind in 0..4 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        addrs.push(listener.local_addr().expect("bound"));
        let seen = Arc::clone(&nodelay);
        let listener = terminator.listen(listener).tap_io(move |io| {
            let set = io.with(|tcp| tcp.set_nodelay(true).and_then(|()| tcp.nodelay()));
            seen.lock().expect("no panic").push(set);
        });
        let app = app(App::default()).route(
            "/peer",
            get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()),
        );
        let end = terminator.draining();
        match kind {
            0 => tokio::spawn(
                axum::serve(listener, app)
                    .with_graceful_shutdown(end)
                    .into_future(),
            ),
            1 => {
                let make = app.into_make_service();
                let server = axum::serve(listener, make).with_graceful_shutdown(end);
                tokio::spawn(server.into_future())
            }
            2 => {
                let make = app.into_make_service_with_connect_info::<SocketAddr>();
                let server = axum::serve(listener, make).with_graceful_shutdown(end);
                tokio::spawn(server.into_future())
            }
            _ => {
                let make = ServiceExt::<axum::extract::Request>::into_make_service(app);
                let server = axum::serve(listener, make).with_graceful_shutdown(end);
                tokio::spawn(server.into_future())
            }
        };
    }
    for (kind, addr) in addrs.into_iter().enumerate() {
        blocking(move || {
            let mut client = RawClient::connect(addr);
            assert_eq!(client.fetch("/quick").text(), "ok");
            let local = client.socket().local_addr().expect("connected");
            let local = local.as_socket().expect("TCP").to_string();
            let peer = client.fetch("/peer");
            assert_eq!(peer.text() == local, kind == 2, "{peer:?}");
        })
        .await;
    }
    let report = within(BOUND, "the end", terminator.terminate()).await;
    assert!(report.is_clean(), "{report}");
    let seen = nodelay.lock().expect("no panic");
    assert_eq!(seen.len(), 4);
    for set in seen.iter() {
        assert!(matches!(set, Some(Ok(true))), "{set:?}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn g20_a_tapped_unix_listener_serves() {
    let dir = std::env::temp_dir().join(format!("http-terminator-tap-{}", std::process::id()));
    let _ = std::fs::remove_file(&dir);
    let listener = tokio::net::UnixListener::bind(&dir).expect("binds");
    let terminator = Terminator::new();
    let tapped = terminator.listen(listener).tap_io(|io| {
        io.with(|unix| unix.peer_cred().expect("credentials"));
    });
    let server = axum::serve(tapped, app(App::default()));
    tokio::spawn(
        server
            .with_graceful_shutdown(terminator.draining())
            .into_future(),
    );
    let target = support::Target::Unix(dir.clone());
    let fetched = blocking(move || RawClient::connect(target).fetch("/quick")).await;
    let _ = std::fs::remove_file(&dir);
    assert_eq!(fetched.text(), "ok");
    assert!(
        within(BOUND, "the end", terminator.terminate())
            .await
            .is_clean()
    );
}

#[tokio::test]
async fn g20_an_io_that_is_closed_has_no_options() {
    let terminator = Terminator::new();
    let (io, _other) = tokio::io::duplex(64);
    let io = terminator.track(io);
    assert_eq!(io.with(|_| 7), Some(7));
    within(BOUND, "the end", terminator.force()).await;
    assert_eq!(io.with(|_| 7), None);
}
