//! What is seen while it happens: a table that is drawn again in a terminal, else a line for each event.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::clients::CLIENTS;
use super::servers::{Ending, Peer};
use super::{Event, Kind};

pub(crate) struct Show {
    call: Instant,
    events: Vec<Event>,
    /// Of each client.
    last: Vec<Option<Event>>,
    terminal: bool,
    drawn: bool,
    /// What ends now is not the server's doing.
    process_ends: bool,
    title: String,
}

impl Show {
    pub(crate) fn new(peer: Peer, call: Instant) -> Self {
        Self {
            call,
            events: Vec::new(),
            last: vec![None; CLIENTS.len()],
            terminal: io::stdout().is_terminal(),
            drawn: false,
            process_ends: false,
            title: peer.title(),
        }
    }

    pub(crate) fn until(&mut self, told: &Receiver<Event>, end: Instant) {
        self.take(told, end, || false);
    }

    /// Gives when the server had ended, if it did in time.
    pub(crate) fn while_it_ends(
        &mut self,
        told: &Receiver<Event>,
        ending: &Ending,
        bound: Instant,
    ) -> Option<Instant> {
        self.call = Instant::now();
        if !self.terminal {
            println!("{}   {} is told to end", self.time(self.call), self.title);
        }
        self.take(told, bound, || ending.is_over());
        ending.is_over().then(Instant::now)
    }

    /// What comes in late, of a server that had ended or of one that had not.
    pub(crate) fn rest(&mut self, told: &Receiver<Event>, end: Instant, had_ended: bool) {
        self.process_ends = !had_ended;
        self.take(told, end, || false);
    }

    pub(crate) fn finish(self) -> Vec<Event> {
        self.events
    }

    fn take(&mut self, told: &Receiver<Event>, end: Instant, over: impl Fn() -> bool) {
        self.draw();
        while !over() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match told.recv_timeout(left.min(Duration::from_millis(10))) {
                Ok(event) => self.event(event),
                Err(RecvTimeoutError::Timeout) => {}
                // They have all ended; the server may not have.
                Err(RecvTimeoutError::Disconnected) if over() => return,
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(left.min(Duration::from_millis(10)));
                }
            }
        }
    }

    fn event(&mut self, mut event: Event) {
        if self.process_ends {
            event.kind = Kind::Lost;
            "ended with the process".clone_into(&mut event.what);
        }
        self.last[event.who] = Some(event.clone());
        if self.terminal {
            self.draw();
        } else {
            let name = CLIENTS[event.who].name;
            let time = self.time(event.at);
            println!("{time} {} {name:<26} {}", mark(event.kind), event.what);
        }
        self.events.push(event);
    }

    fn draw(&mut self) {
        if !self.terminal {
            return;
        }
        let mut text = String::new();
        if std::mem::replace(&mut self.drawn, true) {
            let _ = write!(text, "\x1b[{}A", CLIENTS.len() + 1); // a string takes all
        }
        let _ = writeln!(text, "\x1b[2K{}", self.title);
        for (client, last) in CLIENTS.iter().zip(&self.last) {
            let _ = match last {
                Some(Event { at, kind, what, .. }) => {
                    let (time, colour) = (self.time(*at), colour(*kind));
                    let mark = mark(*kind);
                    let name = client.name;
                    writeln!(
                        text,
                        "\x1b[2K{time} {colour}{mark} {name:<26} {what}\x1b[0m"
                    )
                }
                None => writeln!(text, "\x1b[2K{:>9}   {}", "", client.name),
            };
        }
        let mut out = io::stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush()); // it may be gone
    }

    /// From the call on.
    fn time(&self, at: Instant) -> String {
        let (sign, time) = match at.checked_duration_since(self.call) {
            Some(time) => ('+', time),
            None => ('-', self.call - at),
        };
        format!("{sign}{:>6.3} s", time.as_secs_f64())
    }
}

fn mark(kind: Kind) -> char {
    match kind {
        Kind::Idle => '○',
        Kind::Busy => '●',
        Kind::Well => '✓',
        Kind::Told => '!',
        Kind::Lost => '✗',
    }
}

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Idle => "\x1b[2m",
        Kind::Busy => "\x1b[34m",
        Kind::Well => "\x1b[32m",
        Kind::Told => "\x1b[33m",
        Kind::Lost => "\x1b[31m",
    }
}
