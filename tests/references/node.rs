//! Node's `http` server (nodejs/node): `test/parallel/test-http-server-close-all.js`, `…-close-idle.js` and
//! `…-close-idle-wait-response.js`, as of 2023.
//!
//! No counterpart: `…-close-destroy-timeout.js`, which is of a timer inside of it.

use std::time::Instant;

use super::support::outside::{SOON, ended, measured};
use super::support::wait::until;
use super::support::{BOUND, FrontEnd, each};
use super::{Site, patient, report};

/// Half a head and a kept-alive connection: all are closed, and nothing is left to wait for.
#[test]
fn server_close_all() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut half = site.server.connect();
        half.send("GET / HTTP/1.1");
        let mut idle = site.server.connect();
        assert_eq!(idle.fetch("/quick").text(), "ok", "{front:?}");
        let begin = Instant::now();
        let report = report(site.terminator.force()).await;
        measured(begin.elapsed(), SOON, &format!("{front:?}: all of them"));
        assert!(ended(half.read_to_end()), "{front:?}");
        assert!(ended(idle.read_to_end()), "{front:?}");
        assert_eq!(report.connections(), 2, "{front:?}: {report}");
    });
}

/// Only the idle one is closed; the other ends by force.
#[test]
fn server_close_idle() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient().stall_timeout(2 * BOUND)).await;
        let mut half = site.server.connect();
        half.send("GET / HTTP/1.1");
        let mut idle = site.server.connect();
        assert_eq!(idle.fetch("/quick").text(), "ok", "{front:?}");
        let closed = site.terminator.terminate();
        idle.expect_eof();
        until("the idle one's end", || {
            site.terminator.stats().connections == 1
        });
        assert!(half.is_still_open(), "{front:?}");
        drop(site.terminator.force());
        assert!(ended(half.read_to_end()), "{front:?}");
        let report = report(closed).await;
        assert_eq!((report.idle, report.forced), (1, 1), "{front:?}: {report}");
    });
}

/// Whoever waits for an answer is not idle, however long that takes.
#[test]
fn server_close_idle_wait_response() {
    each(FrontEnd::all_and_tls(), async |front| {
        let site = Site::start(front, patient()).await;
        let mut client = site.server.connect();
        client.get("/slow");
        site.gate.wait_entered(1);
        let mut idle = site.server.connect();
        assert_eq!(idle.fetch("/quick").text(), "ok", "{front:?}");
        let closed = site.terminator.terminate();
        idle.expect_eof();
        assert!(client.is_still_open(), "{front:?}");
        site.gate.open();
        assert_eq!(client.read_response().text(), "slow", "{front:?}");
        client.expect_eof();
        assert!(report(closed).await.is_clean(), "{front:?}");
    });
}
