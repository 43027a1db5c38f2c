//! A server, and the clients that people suffer from, in one process: it is told to end, and you see what becomes of each.
//!
//! ```text
//! $ cargo run --example demo                        # or: … -- --peer axum, axum-server, hyper-util: the same with others
//!                                                   #     … -- --html FILE: a picture of it; FILE.svg is the picture alone
//! ```
//!
//! Each client has a line: what it is, what it has seen last, and how long after the call of `terminate()`. Nobody but
//! the server's own end is asked for; three seconds after the call is the deadline.
//!
//! The handlers are the same whoever serves, and know nothing of an end. With this crate the stream of events is ended by
//! `Terminator::end_streams`, the web socket by `Serve::close_websockets`.

#![allow(clippy::disallowed_methods)] // meant for the library: this is a user of it

mod clients;
mod picture;
mod servers;
mod show;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clients::CLIENTS;
use servers::Peer;
use show::Show;

/// From the call to the deadline.
const GRACE: Duration = Duration::from_secs(3);

/// How long a peer without a deadline is watched behind it.
const PATIENCE: Duration = Duration::from_secs(1);

/// When everything is told to end.
const CALL: Duration = Duration::from_millis(700);

/// What a client sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is connected, and owed nothing.
    Idle,
    /// It is owed an answer, or the rest of one.
    Busy,
    /// It has what it was owed, and its connection has ended as it should.
    Well,
    /// It was told that there will be no answer, in time.
    Told,
    /// Its answer, or a part of it, will never come.
    Lost,
}

/// What one of them has seen, and when.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) who: usize,
    pub(crate) at: Instant,
    pub(crate) kind: Kind,
    pub(crate) what: String,
}

/// The times of one run.
#[derive(Clone, Debug)]
pub(crate) struct Story {
    pub(crate) began: Instant,
    pub(crate) called: Instant,
    pub(crate) ended: Instant,
    /// The server's own phases, and when they began.
    pub(crate) phases: Vec<(String, Instant)>,
    pub(crate) events: Vec<Event>,
    pub(crate) title: String,
    pub(crate) report: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let (peer, html) = arguments()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let address: SocketAddr = listener.local_addr()?;
    let server = {
        let _inside = runtime.enter();
        servers::start(peer, listener)
    };

    let began = Instant::now();
    let call = began + CALL;
    let (tell, told) = mpsc::channel();
    let (last, others) = CLIENTS.split_last().expect("there are some");
    for (who, client) in others.iter().enumerate() {
        let tell = tell.clone();
        thread::spawn(move || client.run(who, address, None, call, &tell));
    }

    let mut show = Show::new(peer, call);
    show.until(&told, call);
    let socket = clients::at_the_last_moment(address)?;
    let called = Instant::now();
    let ending = server.end(runtime.handle(), GRACE);
    thread::spawn(move || last.run(others.len(), address, Some(socket), call, &tell));
    let bound = called + GRACE + PATIENCE;
    let ended = show.while_it_ends(&told, &ending, bound);
    let (phases, report) = ending.outcome(peer, ended);
    // Nobody waits for the handler that blocks: what is still open now is cut by the end of the process.
    runtime.shutdown_background();
    show.rest(
        &told,
        Instant::now() + Duration::from_millis(300),
        ended.is_some(),
    );
    let story = Story {
        began,
        called,
        ended: ended.unwrap_or(bound),
        phases,
        events: show.finish(),
        title: peer.title(),
        report,
    };
    println!("{}", story.report);
    if let Some(path) = html {
        let svg = picture::svg(&story);
        std::fs::write(path.with_extension("svg"), &svg)?;
        std::fs::write(&path, picture::html(&story, &svg))?;
        println!("drawn: {}", path.display());
    }
    Ok(())
}

fn arguments() -> Result<(Peer, Option<PathBuf>), Box<dyn Error>> {
    let (mut peer, mut html) = (Peer::Ours, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next()) {
            ("--peer", Some(name)) => peer = name.parse()?,
            ("--html", Some(path)) => html = Some(PathBuf::from(path)),
            _ => return Err("demo [--peer axum|axum-server|hyper-util] [--html FILE]".into()),
        }
    }
    Ok((peer, html))
}
