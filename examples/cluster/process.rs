//! The process of a worker, as the supervisor has it: what it says, what it is told, and its end.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::pool::MERCY;
use crate::wire::{ToSupervisor, ToWorker, WORKER, Wire};

/// A worker that has read nothing for so long, with a buffer full of messages, hangs, and is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// So is one for which so many messages wait.
const MOST_ORDERS: usize = 64;

pub struct Process {
    pub pid: u32,
    /// What it is given. It has not said that it does not.
    pub takes: bool,
    /// To its task. Without it, it is killed.
    orders: Option<mpsc::Sender<Order>>,
}

struct Order(ToWorker, Option<Arc<OwnedFd>>);

pub enum Event {
    Said(ToSupervisor, Option<OwnedFd>),
    /// And how.
    Ended(String),
}

type Events = mpsc::UnboundedSender<(u64, Event)>;

impl Process {
    /// From the path by which this one was started, where there may be a newer executable by now.
    pub fn start(id: u64, events: Events) -> io::Result<Self> {
        let program = std::env::args_os().next();
        let program = program.ok_or_else(|| io::Error::other("this program has no name"))?;
        let (wire, theirs) = Wire::pair()?;
        let child = Command::new(program)
            .args([WORKER, &id.to_string()])
            .stdin(Stdio::from(theirs))
            // A terminal's Ctrl-C is for the supervisor alone.
            .process_group(0)
            .spawn()?;
        let (orders, ordered) = mpsc::channel(MOST_ORDERS);
        let pid = child.id().expect("nobody has waited for it yet");
        tokio::spawn(attend(id, child, wire, ordered, events));
        let orders = Some(orders);
        Ok(Self {
            pid,
            takes: true,
            orders,
        })
    }

    /// Never waits: the supervisor has others.
    pub fn tell(&mut self, message: ToWorker, fd: Option<Arc<OwnedFd>>) {
        let told = |orders: &mut mpsc::Sender<Order>| orders.try_send(Order(message, fd)).is_ok();
        self.orders.take_if(|orders| !told(orders));
    }

    /// False if it was killed before.
    pub fn kill(&mut self) -> bool {
        self.orders.take().is_some()
    }
}

/// One worker: passes on what it says and what it is told, until it has ended.
async fn attend(
    id: u64,
    mut child: Child,
    wire: Wire,
    mut orders: mpsc::Receiver<Order>,
    events: Events,
) {
    let (mut is_open, mut is_killed) = (true, false);
    let status = loop {
        tokio::select! {
            biased;
            received = wire.receive(), if is_open => match received {
                Ok(Some((said, fd))) => {
                    // At the very end nobody listens.
                    let _ = events.send((id, Event::Said(said, fd)));
                }
                Ok(None) | Err(_) => is_open = false,
            },
            status = child.wait() => break status,
            order = orders.recv(), if !is_killed => {
                is_killed = match &order {
                    // If it is gone it ends, which is heard in a moment.
                    Some(Order(message, fd)) => {
                        timeout(PATIENCE, wire.send(message, fd.as_deref())).await.is_err()
                    }
                    None => true,
                };
                if is_killed {
                    // If that fails it has ended.
                    let _ = child.start_kill();
                }
            }
        }
    };
    // What it said last is on its way.
    while let Ok(Ok(Some((said, fd)))) = timeout(MERCY, wire.receive()).await {
        let _ = events.send((id, Event::Said(said, fd)));
    }
    let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    let _ = events.send((id, Event::Ended(how)));
}
