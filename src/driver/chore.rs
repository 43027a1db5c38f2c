//! What is handed to threads that may get stuck in it.

use std::sync::Arc;
use std::task::Waker;

use super::foreign::{Call, Job};
use super::member::{Cut, Member};

pub(crate) enum Chore {
    WakeMember(Arc<dyn Member>),
    Cut(Arc<dyn Member>),
    Wake(Waker),
    Call(Call),
}

impl Job for Chore {
    fn run(self) {
        match self {
            Self::WakeMember(member) => member.wake(),
            Self::Cut(member) => {
                if Arc::clone(&member).cut(Cut::Soft) {
                    member.wake();
                }
            }
            Self::Wake(waker) => waker.wake(),
            Self::Call(call) => call(),
        }
    }
}
