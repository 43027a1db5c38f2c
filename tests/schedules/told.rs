//! One connection is told once that it ends, whoever says so, and who waits for that hears of it, or that it has gone.
//!
//! Seen to fail with these changes:
//!
//! - `fate.rs`: `tell` does not look whether it was told; `is_told_or_gone` overlooks the end; `change` and `leave` look, and
//!   then store.
//! - `poller.rs`: `take_waiting` takes the first alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Ghost, Ordering::SeqCst};
use std::task::Waker;

use shuttle::future::block_on;
use shuttle::thread;

use super::fate::{Fate, Why};
use super::poller::Poller;
use crate::clock::Moment;
use crate::level::{Level, Reached};
use crate::sync::Mutex;

/// As much of `Shared` as that takes.
#[derive(Default)]
struct Connection {
    fate: Fate,
    poller: Mutex<Poller>,
    told: Ghost,
}

struct Alone(Arc<Connection>);

impl Level for Alone {
    fn is_reached(&self) -> bool {
        self.0.fate.is_told_or_gone()
    }

    fn wait(&self, n: Option<u64>, waker: Waker) -> u64 {
        let (n, old) = self.0.poller.lock().wait(n, waker);
        drop(old);
        n
    }

    fn stop_waiting(&self, n: u64) {
        drop(self.0.poller.lock().stop_waiting(n));
    }
}

impl Connection {
    fn tell(&self) {
        if self.fate.tell(Moment::START, Why::Asked) {
            self.told.fetch_add(1, SeqCst);
            self.wake();
        }
    }

    fn leave(&self) {
        self.fate.leave();
        self.wake();
    }

    fn wake(&self) {
        let waiting = self.poller.lock().take_waiting();
        for waker in waiting {
            waker.wake();
        }
    }
}

#[test]
fn who_waits_for_one_connection_hears_of_its_end() {
    let ends: [fn(&Connection); 2] = [Connection::tell, Connection::leave];
    for end in ends {
        let all = move || {
            let connection = Arc::<Connection>::default();
            let waits = [(); 2].map(|()| {
                let told = Reached::new(Alone(Arc::clone(&connection)));
                thread::spawn(move || block_on(told))
            });
            end(&connection);
            for thread in waits {
                thread.join().expect("no panic");
            }
        };
        shuttle::check_pct(all, 2_000, 3);
    }
}

#[test]
fn it_is_told_once() {
    let all = || {
        let connection = Arc::<Connection>::default();
        let others = [Connection::tell, Connection::leave].map(|end: fn(&Connection)| {
            let connection = Arc::clone(&connection);
            thread::spawn(move || end(&connection))
        });
        connection.tell();
        for thread in others {
            thread.join().expect("no panic");
        }
        assert_eq!(connection.told.load(SeqCst), 1);
        assert!(connection.fate.is_told_or_gone());
    };
    shuttle::check_dfs(all, None);
}
