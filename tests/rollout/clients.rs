//! Clients that ask a balancer again and again, and remember what failed, and when.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::backend::SLOW_PATH;
use crate::support::closed_loop::{Random, ask};
use crate::support::{RawClient, ReadEnd, Target};

/// A client waits for up to so many microseconds between an answer and its next request.
const PAUSE: u64 = 3000;

/// Which request of [`ask`]'s is the one that is not idempotent.
const A_POST: usize = 3;

#[derive(Clone, Copy)]
enum Asks {
    /// In turn, one of five a POST.
    All,
    Posts,
    /// What is in hand for long.
    Slow,
}

const CONNECT: &str = "connecting";

const CLIENTS: [Asks; 8] = {
    use Asks::{All, Posts, Slow};
    [All, Posts, Slow, All, Posts, Slow, All, All]
};

#[derive(Default)]
pub struct Seen {
    pub answered: usize,
    pub failed: Vec<(Instant, String)>,
    /// Of what is not slow by itself.
    pub slowest: Duration,
}

pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Clients {
    /// `keep`: their connections, too. Not with a balancer that learns by exchanging its own processes or servers,
    /// and closes under its clients' requests then.
    pub fn start(addr: SocketAddr, keep: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..).zip(CLIENTS).map(|(n, asks)| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || ask_until(&stop, n, asks, addr, keep))
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    pub fn end(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for thread in self.threads.drain(..) {
            let seen = thread.join().expect("no panic");
            all.answered += seen.answered;
            all.failed.extend(seen.failed);
            all.slowest = all.slowest.max(seen.slowest);
        }
        all.failed.sort();
        all
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask_until(stop: &AtomicBool, n: usize, asks: Asks, addr: SocketAddr, keep: bool) -> Seen {
    let mut seen = Seen::default();
    let mut random = Random::new(n);
    let mut kept = None;
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(Duration::from_micros(random.below(PAUSE)));
        let begin = Instant::now();
        let kept_open = kept.take().filter(RawClient::is_still_open);
        let client = match kept_open {
            Some(client) => Ok(client),
            None => {
                RawClient::try_connect(Target::Tcp(addr)).map_err(|e| format!("{CONNECT}: {e}"))
            }
        };
        let asked = client.and_then(|mut client| {
            let again = match asks {
                Asks::All => ask(&mut client, turn, None).map_err(|lost| lost.why)?,
                Asks::Posts => ask(&mut client, A_POST, None).map_err(|lost| lost.why)?,
                Asks::Slow => ask_slow(&mut client)?,
            };
            Ok(Some(client).filter(|_| again && keep))
        });
        if !matches!(asks, Asks::Slow) {
            seen.slowest = seen.slowest.max(begin.elapsed());
        }
        match asked {
            Ok(client) => {
                seen.answered += 1;
                kept = client;
            }
            Err(why) => seen.failed.push((Instant::now(), why)),
        }
    }
    seen
}

/// Whether all that a client saw is the end of its connection.
pub fn is_unanswered(why: &str) -> bool {
    let ends = [ReadEnd::Eof, ReadEnd::Reset].map(|end| format!(": {end:?}"));
    why.starts_with(CONNECT)
        || ends.iter().any(|end| why.contains(end))
        || why.contains("no answer")
}

fn ask_slow(client: &mut RawClient) -> Result<bool, String> {
    let head = format!("GET {SLOW_PATH} HTTP/1.1\r\nhost: a\r\n\r\n");
    let sent = client.try_send(head);
    match client.try_read_response() {
        Ok(it) if it.status == 200 && it.body == b"slow" => Ok(!it.says_close()),
        Ok(it) => Err(format!("{SLOW_PATH}: {it:?}")),
        Err(end) => Err(format!("{SLOW_PATH}: {end:?}, sending: {sent:?}")),
    }
}
