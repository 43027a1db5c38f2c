//! What the server's side knows of a run, for the model.

use std::cell::RefCell;

use super::now;
use crate::connection::Connection;

#[derive(Default)]
pub(crate) struct Notes {
    /// Which requests their handlers were called with, and when.
    pub(crate) called: Vec<(String, u64)>,
    /// Each connection that a handler was called on, and its client.
    pub(crate) connections: Vec<(usize, Connection)>,
    /// Whose connection was forced alone, and when.
    pub(crate) forced: Vec<(usize, u64)>,
    /// Whose connection was told alone.
    pub(crate) told: Vec<usize>,
    /// Whose connection nobody is to wait for, since when.
    pub(crate) detached: Vec<(usize, u64)>,
    /// Each call that ends all: when, and the grace period; a force has none.
    pub(crate) ends: Vec<(u64, Option<u64>)>,
    pub(crate) works: Vec<Work>,
    /// The handlers of which requests, or tunnels, were given something else than what had been sent up to there.
    pub(crate) holes: Vec<String>,
    /// The body of which request was read to its end, and how long it was.
    pub(crate) bodies: Vec<(String, usize)>,
}

/// Work that is no request, and that a drain waits for.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// It holds a guard by itself; otherwise it was spawned.
    pub(crate) holds: bool,
    pub(crate) began: u64,
    pub(crate) takes: u64,
    /// There was no guard for it.
    pub(crate) refused: bool,
    /// It has come to its end.
    pub(crate) done: Option<u64>,
    /// It is dropped.
    pub(crate) gone: Option<u64>,
}

thread_local! {
    static NOTES: RefCell<Notes> = RefCell::default();
}

pub(crate) fn take() -> Notes {
    NOTES.take()
}

pub(crate) fn note<T>(f: impl FnOnce(&mut Notes) -> T) -> T {
    NOTES.with_borrow_mut(f)
}

/// The client that sends a request of this name.
pub(crate) fn who(name: &str) -> usize {
    let id = name.split('-').next().unwrap_or_default();
    id.parse().expect("a name begins with its client")
}

/// Lives for as long as the work does.
pub(crate) struct Working(usize);

impl Working {
    pub(crate) fn begin(holds: bool, takes: u64, refused: bool) -> Self {
        let began = now();
        Self(note(|notes| {
            notes.works.push(Work {
                holds,
                began,
                takes,
                refused,
                done: None,
                gone: None,
            });
            notes.works.len() - 1
        }))
    }

    pub(crate) fn done(&self) {
        let at = now();
        note(|notes| notes.works[self.0].done = Some(at));
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        // With the runtime, after the run, there is nobody to tell.
        let at = now();
        note(|notes| {
            if let Some(work) = notes.works.get_mut(self.0) {
                work.gone = Some(at);
            }
        });
    }
}

impl Notes {
    /// When its connection was forced alone, if ever.
    pub(crate) fn forced_at(&self, id: usize) -> Option<u64> {
        let own = self.forced.iter().filter(|(it, _)| *it == id);
        own.map(|(_, at)| *at).min()
    }

    pub(crate) fn was_called(&self, name: &str) -> Option<u64> {
        let own = self.called.iter().find(|(it, _)| it == name);
        own.map(|(_, at)| *at)
    }
}
