//! Connections on their way to a worker: those that the supervisor has accepted, and those that a worker gave away.
//!
//! The supervisor keeps a descriptor of each until the worker has said that it took it. If that is closing, it gives
//! the connection back, and if it has died before, so does its end: another one gets it. No byte is read
//! before it was taken.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::Arc;

use crate::wire::{Connection, ToWorker};

/// A worker that has not said of so many what it does with them gets no more meanwhile.
const MOST_UNANSWERED: usize = 16;

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
    /// Parcels of which we have heard nothing yet, and who has them.
    unanswered: HashMap<u64, (u64, Parcel)>,
    last: u64,
    turn: usize,
}

impl HandOut {
    pub fn add(&mut self, parcel: Parcel) {
        self.waiting.push_back(parcel);
    }

    /// If not, more connections had better wait in the kernel.
    pub fn has_room(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn taken(&mut self, id: u64) {
        self.unanswered.remove(&id);
    }

    pub fn back(&mut self, id: u64) {
        let parcel = self.unanswered.remove(&id).map(|(_, parcel)| parcel);
        self.waiting.extend(parcel);
    }

    pub fn ended(&mut self, worker: u64) {
        self.unanswered.retain(|_, (to, parcel)| {
            if *to == worker {
                self.waiting.push_back(parcel.clone());
            }
            *to != worker
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
        self.unanswered.insert(self.last, (worker, parcel));
        let id = self.last;
        Some((worker, ToWorker::Take { id, what }, fd))
    }

    fn is_behind(&self, worker: u64) -> bool {
        let unanswered = self.unanswered.values();
        unanswered.filter(|(to, _)| *to == worker).count() >= MOST_UNANSWERED
    }
}
