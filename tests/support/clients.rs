//! Clients that ask for `/` again and again, some on connections that they keep, some on a new one each time, and count
//! what they lose while servers are replaced.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::wait::until;
use super::{RawClient, load};

/// For how long a connection is quiet at least before the server may close it.
const QUIET: Duration = Duration::from_millis(25);

/// A SYN that was dropped comes again after a second.
const DROPPED: Duration = Duration::from_millis(900);

pub struct Clients {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Seen>>,
}

#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub answers: usize,
    pub connections: usize,
    /// Asked on a new connection, or on one that had not said close and was open, and no answer. Or none at all
    /// to ask on.
    pub lost: Vec<String>,
    /// The same, but the client, or the machine, had let the connection be quiet for so long that it may be closed.
    pub late: usize,
    /// Connects whose SYN was dropped.
    pub slow: usize,
    /// How many answers there were of each kind.
    pub by: BTreeMap<String, usize>,
}

impl Clients {
    /// Half of them keep their connections.
    pub fn start(addr: SocketAddr, clients: usize) -> Self {
        load::watch_load();
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = (0..clients).map(|n| {
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            thread::spawn(move || ask(addr, n % 2 == 0, &stop, &answers))
        });
        Self {
            threads: threads.collect(),
            stop,
            answers,
        }
    }

    /// Waits for so many more answers.
    #[track_caller]
    pub fn go_on(&self, answers: usize) {
        let enough = self.answers.load(SeqCst) + answers;
        until("answers", || self.answers.load(SeqCst) >= enough);
    }

    pub fn stop(self) -> Seen {
        self.stop.store(true, SeqCst);
        let mut all = Seen::default();
        for thread in self.threads {
            let seen = thread.join().expect("a client");
            all.answers += seen.answers;
            all.connections += seen.connections;
            all.lost.extend(seen.lost);
            all.late += seen.late;
            all.slow += seen.slow;
            for (body, n) in seen.by {
                *all.by.entry(body).or_default() += n;
            }
        }
        println!(
            "measured: {} answers on {} connections from {} processes, {} lost, {} late, {} slow connects",
            all.answers,
            all.connections,
            all.by.len(),
            all.lost.len(),
            all.late,
            all.slow
        );
        all
    }
}

impl Seen {
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        assert!(self.lost.is_empty(), "{self:#?}");
        assert_eq!(self.slow, 0, "{self:#?}");
    }
}

fn ask(addr: SocketAddr, keeps: bool, stop: &AtomicBool, answers: &AtomicUsize) -> Seen {
    let mut seen = Seen::default();
    let mut kept: Option<RawClient> = None;
    // Before which the server has not seen its connection quiet.
    let mut since = Instant::now();
    while !stop.load(SeqCst) && seen.lost.len() < 10 {
        let open = kept.take().filter(RawClient::is_still_open);
        let was_open = open.is_some();
        let mut client = if let Some(client) = open {
            client
        } else {
            since = Instant::now();
            let connected = RawClient::try_connect(addr);
            seen.slow += usize::from(since.elapsed() > DROPPED);
            match connected {
                Ok(client) => {
                    seen.connections += 1;
                    client
                }
                Err(error) => {
                    seen.lost.push(format!("connecting: {error}"));
                    continue;
                }
            }
        };
        let before = Instant::now();
        let wrote = client.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let quiet = since.elapsed();
        match client.try_read_response() {
            Ok(response) if response.status == 200 => {
                seen.answers += 1;
                answers.fetch_add(1, SeqCst);
                *seen
                    .by
                    .entry(response.text().trim().to_owned())
                    .or_default() += 1;
                if !keeps {
                    // So that thousands of ports are not kept for a minute each.
                    let reset = client.socket().set_linger(Some(Duration::ZERO));
                    reset.expect("a socket can be told");
                }
                kept = Some(client).filter(|_| keeps && !response.says_close());
            }
            _ if quiet >= QUIET => seen.late += 1,
            other => {
                let why = format!("kept: {was_open}, {quiet:?}: {wrote:?}, {other:?}");
                seen.lost.push(why);
            }
        }
        since = before;
    }
    seen
}
