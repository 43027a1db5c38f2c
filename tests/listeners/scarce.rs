//! Listeners whose process has no descriptors left: what is queued is served as they come free, or counted if nobody can be waited
//! for, and nothing is left behind (G14, G18).
#![cfg(feature = "serve")]

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use http_terminator::{Listener, Terminator};

use crate::support;
use crate::support::outside::{Host, block_on, measured};
use crate::support::wait::{time_passes, time_passes_async, until};
use crate::support::{BOUND, within};

const EMFILE: i32 = 24;
const ENFILE: i32 = 23;
const ENOMEM: i32 = 12;
#[cfg(target_os = "linux")]
const ENOBUFS: i32 = 105;

/// A process that has so many descriptors for connections.
#[derive(Clone)]
struct Descriptors(Arc<AtomicUsize>, Arc<AtomicBool>, i32);

impl Descriptors {
    fn new(n: usize) -> Self {
        Self::or(n, EMFILE)
    }

    /// Where there is none this is the error.
    fn or(n: usize, error: i32) -> Self {
        Self(Arc::new(AtomicUsize::new(n)), Arc::default(), error)
    }

    /// Once, by anybody.
    fn were_taken(&self) -> bool {
        self.1.load(SeqCst)
    }

    fn take(&self) -> io::Result<Descriptor> {
        let taken = self.0.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
        taken.map_err(|_| io::Error::from_raw_os_error(self.2))?;
        self.1.store(true, SeqCst);
        Ok(Descriptor(self.clone()))
    }
}

struct Descriptor(Descriptors);

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, SeqCst);
    }
}

/// A connection that has one.
struct Metered {
    io: DuplexStream,
    _has: Descriptor,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Nobody connects any more. As Linux does it, a descriptor is wanted before it is looked whether anything is queued.
struct Queued {
    waiting: Vec<DuplexStream>,
    descriptors: Descriptors,
    /// While it is there, somebody has the listener.
    _there: Arc<()>,
}

impl Listener for Queued {
    type Io = Metered;
    type Addr = ();

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(Metered, ())>> {
        Poll::Pending
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Metered, ())>> {
        let descriptor = self.descriptors.take()?;
        let io = self.waiting.pop();
        Ok(io.map(|io| {
            (
                Metered {
                    io,
                    _has: descriptor,
                },
                (),
            )
        }))
    }
}

/// So many clients that have asked, what they are queued in, and what is there while that is.
fn queued(clients: usize, descriptors: &Descriptors) -> (Vec<DuplexStream>, Queued, Arc<()>) {
    let (mut clients, queued): (Vec<_>, Vec<_>) =
        (0..clients).map(|_| tokio::io::duplex(4096)).unzip();
    let host = Host::current_thread();
    for client in &mut clients {
        let request = b"GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n";
        host.block_on(client.write_all(request))
            .expect("there is room");
    }
    let there = Arc::new(());
    let listener = Queued {
        waiting: queued,
        descriptors: descriptors.clone(),
        _there: Arc::clone(&there),
    };
    (clients, listener, there)
}

/// How many got an answer.
fn answered(clients: Vec<DuplexStream>) -> usize {
    let host = Host::current_thread();
    let answered = clients.into_iter().filter_map(|mut client| {
        let mut answer = Vec::new();
        let read = client.read_to_end(&mut answer);
        let read = host.block_on(async { within(BOUND, "an answer, or the end", read).await });
        (read.is_ok() && answer.starts_with(b"HTTP/1.1 200")).then_some(())
    });
    answered.count()
}

fn app() -> axum::Router {
    support::app(support::App::default())
}

/// Others have all descriptors. Interleaving: the last close of all still saw the phase before the last, in which a listener is
/// kept for what comes free, and nobody came again: `serve` never ended, and its port stayed bound.
#[test]
fn g14_g15_by_force_a_listener_is_closed_without_a_descriptor() {
    for (n, serves) in [true, false].repeat(10).into_iter().enumerate() {
        let host = Host::workers(1);
        let terminator = Terminator::builder().grace_period(BOUND).build();
        let (clients, listener, there) = queued(n % 3, &Descriptors::new(0));
        let server = {
            let _inside = host.enter();
            terminator.serve(listener, app())
        };
        // One that is not polled is kept.
        let (server, kept) = if serves {
            (Some(host.spawn(server.into_future())), None)
        } else {
            (None, Some(server))
        };
        let begin = Instant::now();
        let report = block_on(BOUND, "the report", terminator.force());
        let took = begin.elapsed();
        assert_eq!(report.unclosed, 0, "{report}");
        // Nobody is there who might free one: that is not the 135 ms of those who force what is there.
        measured(took, Duration::from_millis(70), "the end by force");
        if let Some(server) = server {
            block_on(BOUND, "the server's end", server).expect("it does not panic");
        }
        until("the listener's end", || Arc::strong_count(&there) == 1);
        drop((clients, kept));
    }
}

/// Those that are lost leave their descriptors to those behind them.
#[test]
fn g18_by_force_all_that_is_queued_is_counted_few_at_a_time() {
    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (clients, listener, there) = queued(200, &Descriptors::new(2));
    let server = {
        let _inside = host.enter();
        terminator.serve(listener, app())
    };
    let server = host.spawn(server.into_future());
    let report = block_on(BOUND, "the report", terminator.force());
    assert_eq!(
        (report.lost_in_queue, report.unclosed),
        (200, 0),
        "{report}"
    );
    block_on(BOUND, "the server's end", server).expect("it does not panic");
    until("the listener's end", || Arc::strong_count(&there) == 1);
    assert_eq!(answered(clients), 0);
}

/// Two descriptors, and answers that take less time than the queue lets pass between two looks. Interleaving: whenever it looks it
/// holds the same number, and nobody else is there. It took that for having nobody who asks, and after half a second reset the
/// rest, behind a clean report.
#[test]
fn g14_what_is_served_in_batches_of_one_size_is_served_to_the_end() {
    let kinds = [
        EMFILE,
        ENFILE,
        ENOMEM,
        #[cfg(target_os = "linux")]
        ENOBUFS,
    ];
    for error in kinds {
        let host = Host::workers(1);
        let terminator = Terminator::builder().grace_period(6 * BOUND).build();
        let (clients, listener, _) = queued(300, &Descriptors::or(2, error));
        let server = {
            let _inside = host.enter();
            terminator.serve(listener, app())
        };
        let server = host.spawn(server.into_future());
        let ended = terminator.terminate();
        let answered = answered(clients);
        let report = block_on(BOUND, "the report", ended);
        assert_eq!(answered, 300, "{error}: {report}");
        assert!(report.is_clean(), "{error}: {report}");
        block_on(BOUND, "the server's end", server).expect("it does not panic");
    }
}

/// The runtime's only thread is blocked by something else for longer than an accept loop is waited for that runs.
#[test]
fn g14_a_queue_without_descriptors_waits_for_a_runtime_that_is_blocked() {
    let host = Host::current_thread();
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (clients, listener, _) = queued(6, &Descriptors::new(2));
    let serve = {
        let _inside = host.enter();
        terminator.serve(listener, app())
    };
    let ends = terminator.clone();
    let server = thread::spawn(move || {
        host.block_on(async move {
            let server = tokio::spawn(serve.into_future());
            tokio::task::yield_now().await;
            drop(ends.terminate());
            // The time is the subject.
            time_passes(Duration::from_millis(1_500));
            server.await.expect("it does not panic");
            ends.terminate().await
        })
    });
    assert_eq!(answered(clients), 6);
    let report = server.join().expect("it does not panic");
    assert!(report.is_clean(), "{report}");
}

/// Neither accept loop asks: one listener holds the only descriptor, and the other waits for it. They waited for each other,
/// without a grace period for ever; and what was given up was not counted.
#[test]
fn g14_g18_two_listeners_without_descriptors_do_not_wait_for_each_other() {
    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(None).build();
    let descriptors = Descriptors::new(1);
    let (one, first, _) = queued(1, &descriptors);
    let (three, second, _) = queued(3, &descriptors);
    let (first, second) = {
        let _inside = host.enter();
        (terminator.listen(first), terminator.listen(second))
    };
    let report = block_on(BOUND, "the report", terminator.terminate());
    assert_eq!(report.lost_in_queue, 4, "{report}");
    assert_eq!(answered(one) + answered(three), 0);
    drop((first, second));
}

/// The loop of one has ended, and what it holds is given up after a while; the other is served, and would take what comes free
/// then. It was closed with the first.
#[test]
fn g14_a_server_is_not_given_up_with_another_listener() {
    for server_first in [true, false].repeat(5) {
        given_up_beside_a_server(1, Duration::ZERO, server_first);
    }
}

/// So many are in a listener that nobody asks, which takes so long for each, and three in that of a server, which has nothing to
/// begin with: the one descriptor is the first one's.
fn given_up_beside_a_server(clients: usize, takes: Duration, server_first: bool) {
    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let descriptors = Descriptors::new(1);
    let (lost, held, _) = queued(clients, &descriptors);
    let (three, starved, _) = queued(3, &descriptors);
    let (held, starved) = (Slow(held, takes), Late(starved));
    let guard = terminator.guard();
    let (held, server) = {
        let _inside = host.enter();
        if server_first {
            let server = terminator.serve(starved, app());
            (terminator.listen(held), server)
        } else {
            let held = terminator.listen(held);
            (held, terminator.serve(starved, app()))
        }
    };
    let server = host.spawn(server.into_future());
    let ended = terminator.terminate();
    until("one is held", || descriptors.0.load(SeqCst) == 0);
    drop(guard);
    assert_eq!(answered(three), 3);
    let report = block_on(BOUND, "the report", ended);
    assert_eq!(report.lost_in_queue, clients, "{report}");
    assert_eq!(answered(lost), 0);
    block_on(BOUND, "the server's end", server).expect("it does not panic");
    drop(held);
}

/// What another one takes first.
struct Late(Queued);

impl Listener for Late {
    type Io = Metered;
    type Addr = ();

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Metered, ())>> {
        self.0.poll_accept(cx)
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Metered, ())>> {
        if !self.0.descriptors.were_taken() {
            return Err(io::Error::from_raw_os_error(24));
        }
        self.0.accept_queued()
    }
}

/// The same, while there is more in it than its descriptor can be had for. Interleaving: each that is lost leaves the descriptor
/// to whichever of the two is quicker, and the one that was given up was closed when it got none.
#[test]
fn g18_all_of_a_listener_that_is_given_up_beside_a_server_is_counted() {
    for _ in 0..5 {
        given_up_beside_a_server(20, Duration::from_millis(6), false);
    }
}

/// Somebody else is quicker.
struct Slow(Queued, Duration);

impl Listener for Slow {
    type Io = Metered;
    type Addr = ();

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Metered, ())>> {
        self.0.poll_accept(cx)
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Metered, ())>> {
        time_passes(self.1);
        self.0.accept_queued()
    }
}

/// A queue that has been found empty is one that others may still come to, within `settle`; what came then, and was found without
/// descriptors, is served however long that takes. It was closed with the first that could be taken later.
#[test]
fn g14_what_comes_within_settle_is_served_also_without_descriptors() {
    struct Settles(Queued, Arc<AtomicUsize>);

    impl Listener for Settles {
        type Io = Metered;
        type Addr = ();

        fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Metered, ())>> {
            self.0.poll_accept(cx)
        }

        fn accept_queued(&mut self) -> io::Result<Option<(Metered, ())>> {
            // Nobody is there when it looks first.
            if self.1.fetch_add(1, SeqCst) == 0 {
                return Ok(None);
            }
            self.0.accept_queued()
        }

        fn is_handshaking(&self) -> bool {
            true
        }
    }

    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let descriptors = Descriptors::new(0);
    let (clients, listener, _) = queued(5, &descriptors);
    let (busy, io) = tokio::io::duplex(64);
    let io = terminator.track(io);
    let looks = Arc::new(AtomicUsize::new(0));
    let server = {
        let _inside = host.enter();
        terminator.serve(Settles(listener, Arc::clone(&looks)), app())
    };
    let server = host.spawn(server.into_future());
    let ended = terminator.terminate();
    until("it has no descriptors", || looks.load(SeqCst) > 3);
    // The time is the subject: longer than `settle`.
    time_passes(Duration::from_millis(100));
    descriptors.0.fetch_add(1, SeqCst);
    assert_eq!(answered(clients), 5);
    drop((busy, io));
    let report = block_on(BOUND, "the report", ended);
    assert!(report.is_clean(), "{report}");
    block_on(BOUND, "the server's end", server).expect("it does not panic");
}

/// More clients want connections than there are descriptors, and others come as fast as they end: the queue is never found empty.
/// Who was there as the drain began, or within `settle`, is no further behind than a queue has room for; it was kept open for
/// whoever came, to the deadline.
#[test]
fn g14_a_crowd_that_takes_all_descriptors_does_not_keep_a_listener_open() {
    const ROOM: usize = 4_096;
    const DESCRIPTORS: usize = 100;

    struct Crowd {
        descriptors: Descriptors,
        clients: Arc<Mutex<Vec<DuplexStream>>>,
        /// Nobody is there when it looks first.
        late: bool,
    }

    impl Listener for Crowd {
        type Io = Metered;
        type Addr = ();

        fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(Metered, ())>> {
            Poll::Pending
        }

        fn accept_queued(&mut self) -> io::Result<Option<(Metered, ())>> {
            if std::mem::take(&mut self.late) {
                return Ok(None);
            }
            let descriptor = self.descriptors.take()?;
            let mut clients = self.clients.lock().expect("no panic");
            if clients.len() == 5 * ROOM {
                return Ok(None);
            }
            let (mut client, io) = tokio::io::duplex(512);
            let request = b"GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n";
            let mut cx = Context::from_waker(Waker::noop());
            assert!(
                Pin::new(&mut client)
                    .poll_write(&mut cx, request)
                    .is_ready()
            );
            clients.push(client);
            Ok(Some((
                Metered {
                    io,
                    _has: descriptor,
                },
                (),
            )))
        }

        fn is_handshaking(&self) -> bool {
            true
        }
    }

    for late in [false, true] {
        let host = Host::workers(1);
        let terminator = Terminator::builder().grace_period(6 * BOUND).build();
        let clients = Arc::default();
        let listener = Crowd {
            descriptors: Descriptors::new(DESCRIPTORS),
            clients: Arc::clone(&clients),
            late,
        };
        let server = {
            let _inside = host.enter();
            terminator.serve(listener, app())
        };
        let server = host.spawn(server.into_future());
        let report = block_on(6 * BOUND, "the report", terminator.terminate());
        assert!(report.is_clean(), "{report}");
        block_on(BOUND, "the server's end", server).expect("it does not panic");
        let came = std::mem::take(&mut *clients.lock().expect("no panic"));
        let came = answered(came);
        // What came before `settle` was over is not counted there.
        assert!((ROOM..2 * ROOM).contains(&came), "{came}, {late}");
    }
}

/// It is tried once more when whoever may have freed one has gone. Interleaving: that was used up while nobody was there; somebody
/// came, and left between the next try and the look whether anybody is there.
#[test]
fn g14_who_leaves_as_it_is_tried_has_it_tried_once_more() {
    struct Scripted(Queued, Terminator, Option<Held>, usize);
    type Held = (
        http_terminator::TrackedIo<DuplexStream>,
        DuplexStream,
        Descriptor,
    );

    impl Listener for Scripted {
        type Io = Metered;
        type Addr = ();

        fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Metered, ())>> {
            self.0.poll_accept(cx)
        }

        fn accept_queued(&mut self) -> io::Result<Option<(Metered, ())>> {
            self.3 += 1;
            match self.3 {
                1 => {}
                2 => {
                    let (io, peer) = tokio::io::duplex(64);
                    let taken = self.0.descriptors.take()?;
                    self.2 = Some((self.1.track(io), peer, taken));
                }
                3 => self.2 = None,
                _ => return self.0.accept_queued(),
            }
            Err(io::Error::from_raw_os_error(24))
        }
    }

    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (clients, listener, _) = queued(3, &Descriptors::new(1));
    let server = {
        let _inside = host.enter();
        terminator.serve(Scripted(listener, terminator.clone(), None, 0), app())
    };
    let server = host.spawn(server.into_future());
    let ended = terminator.terminate();
    assert_eq!(answered(clients), 3);
    let report = block_on(BOUND, "the report", ended);
    assert!(report.is_clean(), "{report}");
    block_on(BOUND, "the server's end", server).expect("it does not panic");
}

/// Connections that are detached as they come, as a health check's, are asked for by nobody either.
#[test]
fn g14_who_is_detached_does_not_put_off_what_nobody_asks_for() {
    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(None).build();
    let (clients, listener, _) = queued(1, &Descriptors::new(9));
    let listener = {
        let _inside = host.enter();
        terminator.listen(listener)
    };
    let ended = terminator.terminate();
    let (checks, over) = (terminator.clone(), Arc::new(AtomicBool::new(false)));
    let until_then = Arc::clone(&over);
    let checks = thread::spawn(move || {
        while !until_then.load(SeqCst) {
            let (peer, io) = tokio::io::duplex(64);
            let io = checks.track(io);
            io.connection().detach();
            // The time is the subject: less than that for which nobody must have asked.
            time_passes(Duration::from_millis(50));
            drop((peer, io));
        }
    });
    let report = block_on(BOUND, "the report", ended);
    over.store(true, SeqCst);
    assert_eq!(report.lost_in_queue, 1, "{report}");
    checks.join().expect("it does not panic");
    assert_eq!(answered(clients), 0);
    drop(listener);
}

/// What is detached is cut when all listeners are closed: they must not wait for it.
#[test]
fn g13_what_is_given_up_does_not_wait_for_who_is_detached() {
    struct Once(Queued);

    impl Listener for Once {
        type Io = Metered;
        type Addr = ();

        fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Metered, ())>> {
            self.0.poll_accept(cx)
        }

        fn accept_queued(&mut self) -> io::Result<Option<(Metered, ())>> {
            if self.0.descriptors.were_taken() {
                return Err(io::Error::from_raw_os_error(24));
            }
            self.0.accept_queued()
        }
    }

    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(None).build();
    let (clients, listener, _) = queued(1, &Descriptors::new(1));
    let listener = {
        let _inside = host.enter();
        terminator.listen(Once(listener))
    };
    let (peer, io) = tokio::io::duplex(64);
    let io = terminator.track(io);
    io.connection().detach();
    let report = block_on(BOUND, "the report", terminator.terminate());
    assert_eq!((report.lost_in_queue, report.detached), (1, 1), "{report}");
    drop((clients, listener, peer, io));
}

/// Its loop has let go of it, while another listener holds what nobody has asked for: it is closed, and nobody waits for it.
#[test]
fn g14_a_listener_that_is_dropped_without_descriptors_is_closed() {
    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let descriptors = Descriptors::new(1);
    let (one, held, _) = queued(1, &descriptors);
    let (three, dropped, there) = queued(3, &descriptors);
    let guard = terminator.guard();
    let (held, dropped) = {
        let _inside = host.enter();
        (terminator.listen(held), terminator.listen(Late(dropped)))
    };
    let ended = terminator.terminate();
    until("one is held", || descriptors.0.load(SeqCst) == 0);
    drop(dropped);
    until("the listener's end", || Arc::strong_count(&there) == 1);
    assert_eq!(answered(three), 0);
    drop((held, guard));
    let report = block_on(BOUND, "the report", ended);
    assert_eq!(report.lost_in_queue, 1, "{report}");
    assert_eq!(answered(one), 0);
}

/// What nobody asks for of one alone.
#[test]
fn g18_what_nobody_asks_for_is_counted_also_without_descriptors() {
    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (clients, listener, _) = queued(10, &Descriptors::new(2));
    let listener = {
        let _inside = host.enter();
        terminator.listen(listener)
    };
    let report = block_on(BOUND, "the report", terminator.terminate());
    assert_eq!(report.lost_in_queue, 10, "{report}");
    assert_eq!(answered(clients), 0);
    drop(listener);
}

/// An accept loop that takes its time for each. Interleaving: for each that it asks for another one is taken, so that as many are
/// held whenever that is looked at.
#[test]
fn g14_a_slow_accept_loop_is_waited_for_without_descriptors() {
    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (clients, listener, _) = queued(12, &Descriptors::new(2));
    let mut listener = {
        let _inside = host.enter();
        terminator.listen(listener)
    };
    let accepts = host.spawn(async move {
        while let Some((io, ())) = listener.accept().await {
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = io.connection();
            tokio::spawn(connection.serve(&builder, io, TowerToHyperService::new(app())));
            // The time is the subject.
            time_passes_async(Duration::from_millis(100)).await;
        }
    });
    let ended = terminator.terminate();
    assert_eq!(answered(clients), 12);
    let report = block_on(BOUND, "the report", ended);
    assert!(report.is_clean(), "{report}");
    block_on(BOUND, "the loop's end", accepts).expect("it does not panic");
}

/// Somebody forces while the queue is being emptied for a drain. Interleaving: what looks again for the drain comes behind the
/// first close by force, takes one, and closed the listener without counting the rest.
#[test]
fn g18_a_queue_that_is_being_emptied_as_it_is_forced_is_counted() {
    struct Forces(Queued, Terminator, usize);

    impl Listener for Forces {
        type Io = Metered;
        type Addr = ();

        fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Metered, ())>> {
            self.0.poll_accept(cx)
        }

        fn accept_queued(&mut self) -> io::Result<Option<(Metered, ())>> {
            self.2 += 1;
            if self.2 == 1 {
                drop(self.1.force());
                // So that the driver comes to it. The time is the subject.
                time_passes(Duration::from_millis(10));
            }
            if self.2 % 2 == 1 {
                return Err(io::Error::from_raw_os_error(24));
            }
            self.0.accept_queued()
        }
    }

    let host = Host::workers(1);
    let terminator = Terminator::builder().grace_period(BOUND).build();
    let (clients, listener, _) = queued(10, &Descriptors::new(100));
    let guard = terminator.guard();
    let listener = {
        let _inside = host.enter();
        let listener = Forces(listener, terminator.clone(), 0);
        terminator.listen(listener)
    };
    // Somebody is yet to be cut.
    let (peer, io) = tokio::io::duplex(64);
    let io = terminator.track(io);
    let report = block_on(BOUND, "the report", terminator.terminate());
    assert_eq!((report.lost_in_queue, report.unclosed), (10, 0), "{report}");
    drop((clients, listener, guard, peer, io));
}
