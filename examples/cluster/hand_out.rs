//! Connections on their way to a worker: those that the supervisor has accepted, and those that a worker gave away.
//!
//! The supervisor keeps a descriptor of each until the worker has said that it took it. If that is closing, it gives
//! the connection back, and if it has died before, so does its end: another one gets it. One that says nothing for
//! seconds is killed. No byte is read before it was taken.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::wire::{Connection, ToWorker};

/// A worker that has not said of so many what it does with them gets no more meanwhile.
const MOST_UNANSWERED: usize = 16;

/// Nor is one waited for beyond so many looks. Not by the clock: if the supervisor has stood still itself, it has heard
/// nothing meanwhile.
const MOST_LOOKS: u32 = 5;
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    RoundRobin,
    /// By the client's address.
    Sticky,
}

impl FromStr for How {
    type Err = String;

    fn from_str(how: &str) -> Result<Self, String> {
        match how {
            "round-robin" => Ok(Self::RoundRobin),
            "sticky" => Ok(Self::Sticky),
            other => Err(format!("{other}: neither round-robin nor sticky")),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Parcel {
    pub what: Connection,
    pub fd: Arc<OwnedFd>,
    /// Whose connection it is, if that decides who gets it.
    pub client: Option<IpAddr>,
}

#[derive(Debug, Default)]
pub struct HandOut {
    waiting: VecDeque<Parcel>,
    /// Parcels of which we have heard nothing yet.
    unanswered: HashMap<u64, Unanswered>,
    last: u64,
    turn: usize,
}

#[derive(Debug)]
struct Unanswered {
    worker: u64,
    parcel: Parcel,
    looks: u32,
}

impl HandOut {
    pub fn add(&mut self, parcel: Parcel) {
        self.waiting.push_back(parcel);
    }

    /// If not, more connections had better wait in the kernel.
    pub fn has_room(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn is_answered(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// To be called once in [`LOOK_EVERY`]: workers that have been silent for too long.
    pub fn look(&mut self) -> Vec<u64> {
        let asked = self.unanswered.values_mut();
        let silent = asked.filter_map(|asked| {
            asked.looks += 1;
            (asked.looks >= MOST_LOOKS).then_some(asked.worker)
        });
        silent.collect()
    }

    pub fn taken(&mut self, id: u64) {
        self.unanswered.remove(&id);
    }

    pub fn back(&mut self, id: u64) {
        let asked = self.unanswered.remove(&id);
        self.waiting.extend(asked.map(|asked| asked.parcel));
    }

    pub fn ended(&mut self, worker: u64) {
        self.unanswered.retain(|_, asked| {
            if asked.worker == worker {
                self.waiting.push_back(asked.parcel.clone());
            }
            asked.worker != worker
        });
    }

    /// The next one, and to whom; `None` while nobody takes it, or there is none.
    pub fn next(&mut self, workers: &[Option<u64>]) -> Option<(u64, ToWorker, Arc<OwnedFd>)> {
        let parcel = self.waiting.pop_front()?;
        let first = if let Some(client) = parcel.client {
            let mut hasher = DefaultHasher::new();
            client.hash(&mut hasher);
            usize::try_from(hasher.finish() % (1 << 16)).expect("16 bits")
        } else {
            self.turn += 1;
            self.turn
        };
        // From there on, the first that is there and not behind.
        let from_first = (0..workers.len()).map(|n| workers[(first + n) % workers.len()]);
        let Some(worker) = from_first.flatten().find(|it| !self.is_behind(*it)) else {
            self.waiting.push_front(parcel);
            return None;
        };
        self.last += 1;
        let (what, fd) = (parcel.what.clone(), Arc::clone(&parcel.fd));
        let asked = Unanswered {
            worker,
            parcel,
            looks: 0,
        };
        self.unanswered.insert(self.last, asked);
        let id = self.last;
        Some((worker, ToWorker::Take { id, what }, fd))
    }

    fn is_behind(&self, worker: u64) -> bool {
        let unanswered = self.unanswered.values();
        unanswered.filter(|asked| asked.worker == worker).count() >= MOST_UNANSWERED
    }
}
