//! The supervisor: has the listening socket, starts workers and hears how they are, and does what the operator says.

use std::collections::HashMap;
use std::error::Error;
use std::future::pending;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_terminator::Listener as Listen;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::hand_out::{HandOut, How, LOOK_EVERY, Parcel};
use crate::pool::{Act, MERCY, Pool};
use crate::process::{Event, Process};
use crate::say;
use crate::wire::{Connection, ToSupervisor, ToWorker};

/// For all that is in hand when all is to end.
const GRACE: Duration = Duration::from_secs(10);

/// Until all that is handed out was taken, but no longer, workers are not told that all is to end: who leaves takes
/// nothing. What is left of `GRACE` is theirs.
const TAKEN_WITHIN: Duration = Duration::from_secs(7);

/// Two signals within it are one: a terminal sends one to the whole group, where a script may pass its own on.
pub const TOGETHER: Duration = Duration::from_secs(1);

struct Supervisor {
    listener: Listener,
    pool: Pool,
    hand_out: HandOut,
    how: Option<How>,
    /// All is to end.
    is_ending: bool,
    /// It could not accept, and has said so.
    is_starved: bool,
    processes: HashMap<u64, Process>,
    events: mpsc::UnboundedSender<(u64, Event)>,
}

enum Listener {
    /// Inherited by all workers.
    Shared(Arc<OwnedFd>),
    /// The supervisor accepts, and hands out.
    Ours(TcpListener),
    /// It does so until nothing is queued.
    Closing(TcpListener),
    Closed,
}

#[tokio::main(flavor = "current_thread")]
pub async fn run(
    address: SocketAddr,
    workers: usize,
    how: Option<How>,
) -> Result<(), Box<dyn Error>> {
    // Before anybody can see us.
    let mut hangups = signal(SignalKind::hangup())?;
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terms = signal(SignalKind::terminate())?;
    let listener = StdListener::bind(address);
    let listener = listener.map_err(|error| {
        format!("can't listen on {address}: {error}. If it is this server that runs there, SIGHUP renews it")
    })?;
    listener.set_nonblocking(true)?;
    say(&format!("listening on {}", listener.local_addr()?));
    let listener = match how {
        Some(_) => Listener::Ours(TcpListener::from_std(listener)?),
        None => Listener::Shared(Arc::new(listener.into())),
    };
    let (events, mut heard) = mpsc::unbounded_channel();
    let mut supervisor = Supervisor {
        listener,
        pool: Pool::new(workers, Instant::now()),
        hand_out: HandOut::default(),
        how,
        is_ending: false,
        is_starved: false,
        processes: HashMap::new(),
        events,
    };
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        supervisor.hand_out();
        let due = supervisor.pool.due();
        let has_room = supervisor.hand_out.has_room();
        let acts = tokio::select! {
            Some((id, event)) = heard.recv() => supervisor.hear(id, event),
            () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                supervisor.pool.tick(Instant::now())
            }
            _ = looks.tick(), if !supervisor.hand_out.is_answered() => {
                supervisor.look();
                Vec::new()
            }
            accepted = supervisor.listener.accept(), if has_room => {
                supervisor.accepted(accepted).await;
                Vec::new()
            }
            _ = hangups.recv() => {
                say("replacing all workers");
                supervisor.pool.roll(Instant::now())
            }
            _ = interrupts.recv() => break,
            _ = terms.recv() => break,
        };
        supervisor.act(acts);
    }

    say("ending");
    supervisor.end();
    let first = Instant::now();
    let mut deadline = first + GRACE;
    let mut are_told = false;
    while !supervisor.processes.is_empty() {
        supervisor.empty();
        supervisor.hand_out();
        let is_time = first.elapsed() >= TAKEN_WITHIN;
        if !are_told && (is_time || supervisor.has_handed_out()) {
            are_told = true;
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.as_millis().try_into()?;
            supervisor.tell_all(|| ToWorker::Stop(left));
        }
        let forced = tokio::select! {
            Some((id, event)) = heard.recv() => {
                supervisor.hear(id, event);
                false
            }
            // By then there may be descriptors again.
            _ = looks.tick(), if !supervisor.has_handed_out() => {
                supervisor.look();
                false
            }
            () = sleep_until((deadline + MERCY).into()) => {
                say("killing those that have not ended in time");
                for process in supervisor.processes.values_mut() {
                    process.kill();
                }
                deadline = Instant::now() + GRACE;
                false
            }
            _ = interrupts.recv() => true,
            _ = terms.recv() => true,
        };
        if forced && first.elapsed() > TOGETHER {
            say("forcing");
            supervisor.tell_all(|| ToWorker::Force);
            deadline = Instant::now();
        }
    }
    say("all have ended");
    Ok(())
}

impl Supervisor {
    fn hear(&mut self, id: u64, event: Event) -> Vec<Act> {
        let now = Instant::now();
        match event {
            Event::Said(ToSupervisor::Ready, _) => {
                let pid = self.processes.get(&id).map_or(0, |process| process.pid);
                say::say(format_args!("worker {id} ({pid})"), "ready");
                return self.pool.ready(id, now);
            }
            Event::Said(ToSupervisor::Told, _) => return self.pool.leaving(id, false, now),
            Event::Said(ToSupervisor::Leaving { faulty }, _) => {
                if let Some(process) = self.processes.get_mut(&id) {
                    process.takes = false;
                }
                return self.pool.leaving(id, faulty, now);
            }
            Event::Said(ToSupervisor::Taken(parcel), _) => self.hand_out.taken(parcel),
            Event::Said(ToSupervisor::Back(parcel), _) => self.hand_out.back(parcel),
            Event::Said(ToSupervisor::Give(what), fd) => {
                let Some(fd) = fd else {
                    say(&format!(
                        "worker {id} gave a connection away that is lost: no descriptors are left"
                    ));
                    return Vec::new();
                };
                self.hand_out.add(Parcel {
                    what,
                    fd: Arc::new(fd),
                    client: None,
                });
            }
            Event::Ended(how) => {
                self.processes.remove(&id);
                self.hand_out.ended(id);
                let acts = self.pool.ended(id, now);
                if !acts.is_empty() {
                    say(&format!("worker {id}: {how}"));
                }
                return acts;
            }
        }
        Vec::new()
    }

    fn act(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Start(id) => {
                    if let Err(error) = self.start(id) {
                        // The pool tries again, and says so; why is said once as well.
                        let acts = self.pool.ended(id, Instant::now());
                        if !acts.is_empty() {
                            say(&format!("can't start a worker: {error}"));
                        }
                        self.act(acts);
                    }
                }
                Act::Leave(id) => self.tell(id, ToWorker::Leave, None),
                Act::Kill(id) => {
                    self.kill(id);
                }
                Act::Say(what) => say(what),
            }
        }
    }

    fn start(&mut self, id: u64) -> io::Result<()> {
        let listener = match &self.listener {
            Listener::Shared(fd) => Some(Arc::clone(fd)),
            Listener::Ours(_) | Listener::Closing(_) | Listener::Closed => None,
        };
        let mut process = Process::start(id, self.events.clone())?;
        process.tell(ToWorker::Begin, listener);
        self.processes.insert(id, process);
        Ok(())
    }

    fn tell(&mut self, id: u64, message: ToWorker, fd: Option<Arc<OwnedFd>>) {
        // If it has just ended, that is heard of in a moment.
        if let Some(process) = self.processes.get_mut(&id) {
            process.tell(message, fd);
        }
    }

    fn tell_all(&mut self, message: impl Fn() -> ToWorker) {
        for process in self.processes.values_mut() {
            process.tell(message(), None);
        }
    }

    fn kill(&mut self, id: u64) -> bool {
        let process = self.processes.get_mut(&id);
        process.is_some_and(Process::kill)
    }

    fn look(&mut self) {
        for id in self.hand_out.look() {
            if self.kill(id) {
                say(&format!(
                    "worker {id} does not take what it is given: killed"
                ));
            }
        }
    }

    fn hand_out(&mut self) {
        let takers = self.takers();
        while let Some((worker, message, fd)) = self.hand_out.next(&takers) {
            self.tell(worker, message, Some(fd));
        }
    }

    /// At the end it is whoever takes something yet, as there will be no others.
    fn takers(&self) -> Vec<Option<u64>> {
        if !self.is_ending {
            return self.pool.current().collect();
        }
        let takers = self.processes.iter().filter(|(_, process)| process.takes);
        let mut takers: Vec<_> = takers.map(|(id, _)| Some(*id)).collect();
        takers.sort_unstable();
        takers
    }

    async fn accepted(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        let added = accepted.and_then(|(stream, client)| {
            self.hand_out_to(stream.into_std()?, client);
            Ok(())
        });
        // No descriptors, perhaps: what is queued in the kernel waits until there are some.
        if let Err(error) = &added {
            if !self.is_starved {
                say(&format!("can't accept, trying again: {error}"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.is_starved = added.is_err();
    }

    /// What is queued is still served: by us here, or by the workers, which hold the socket too.
    fn end(&mut self) {
        self.is_ending = true;
        self.listener = match mem::replace(&mut self.listener, Listener::Closed) {
            Listener::Ours(listener) => Listener::Closing(listener),
            _ => Listener::Closed,
        };
    }

    /// Until the kernel says that nothing is queued: what is of one client is no reason to leave the others there.
    fn empty(&mut self) {
        while let Listener::Closing(listener) = &mut self.listener {
            match listener.accept_queued() {
                Ok(Some(accepted)) => self.add(accepted),
                Ok(None) => break,
                Err(error) if is_of_a_client(&error) => {}
                // No descriptors, perhaps: there are some when what is handed out was taken.
                Err(_) => return,
            }
        }
        if let Listener::Closing(listener) = mem::replace(&mut self.listener, Listener::Closed) {
            // With a last look, as close to the close as can be.
            for accepted in Listen::close(listener) {
                self.add(accepted);
            }
        }
    }

    fn add(&mut self, (stream, client): (TcpStream, SocketAddr)) {
        if let Ok(stream) = stream.into_std() {
            self.hand_out_to(stream, client);
        }
    }

    fn hand_out_to(&mut self, stream: StdStream, client: SocketAddr) {
        self.hand_out.add(Parcel {
            what: Connection::Fresh,
            fd: Arc::new(stream.into()),
            client: (self.how == Some(How::Sticky)).then_some(client.ip()),
        });
    }

    /// Or there is nobody who would take what is left.
    fn has_handed_out(&self) -> bool {
        let is_closed = !matches!(self.listener, Listener::Closing(_));
        is_closed && self.hand_out.has_room() && self.hand_out.is_answered()
            || self.takers().is_empty()
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Ours(listener) => listener.accept().await,
            Self::Shared(_) | Self::Closing(_) | Self::Closed => pending().await,
        }
    }
}

/// Who has gone before it was accepted.
fn is_of_a_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

fn say(what: &str) {
    say::say(format_args!("supervisor {}", process::id()), what);
}
