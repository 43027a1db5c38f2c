//! Servers are replaced behind real load balancers, one after the other, under clients that go on asking:
//! none of their requests fails (G2, G9, G14).
//!
//! A server is a process of its own, and SIGTERM a real signal. Balancers try nothing again: what one server
//! does not answer fails, and is counted.
//!
//! nginx and `HAProxy`, as Debian has them, are asked in every test run. Newer ones, Envoy, Traefik and Caddy come
//! by `tests/rollout/fetch`. The long form prints the table of `docs/operations.md`:
//!
//! ```text
//! tests/rollout/fetch
//! cargo test --all-features --test rollout -- --ignored --nocapture
//! ```
//!
//! It takes an hour and a half; `ROLLOUTS` (50) says how many there are for a cell of the table, `AT_ONCE` (1) how many
//! cells are run at once, and `ONLY` which: those whose names have all of its words, as in
//! `ONLY="HAProxy HTTP/2 duck"`.

#![cfg(all(unix, feature = "serve", feature = "signal"))]
#![allow(
    unreachable_pub,
    reason = "the support library is a module of every test run"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests read the clock and spawn clients"
)]

mod backend;
mod balancer;
mod caddy;
mod cell;
mod clients;
mod envoy;
mod haproxy;
mod nginx;
#[path = "../support/mod.rs"]
mod support;
mod traefik;

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use backend::Server;
use balancer::{Kind, Program};
use cell::{Cell, Order, Outcome};
use support::closed_loop::Speaks;
use support::skip::skip;

// ===== in every test run =====

#[test]
fn g14_no_request_fails_behind_nginx() {
    installed(Kind::Nginx, Speaks::Http1);
}

#[test]
fn g14_no_request_fails_behind_haproxy() {
    installed(Kind::HaProxy, Speaks::Http1);
}

#[test]
fn g14_no_request_fails_behind_haproxy_over_http2() {
    installed(Kind::HaProxy, Speaks::Http2);
}

#[test]
fn g14_no_request_fails_behind_newer_nginx() {
    fetched(Kind::Nginx);
}

#[test]
fn g14_no_request_fails_behind_newer_haproxy() {
    fetched(Kind::HaProxy);
}

#[test]
fn g14_no_request_fails_behind_envoy() {
    fetched(Kind::Envoy);
}

#[test]
fn g14_no_request_fails_behind_traefik() {
    fetched(Kind::Traefik);
}

#[test]
fn g14_no_request_fails_behind_caddy() {
    fetched(Kind::Caddy);
}

fn installed(kind: Kind, speaks: Speaks) {
    let Some(program) = Program::installed(kind) else {
        skip(format_args!("{} is not installed", kind.name()));
        return;
    };
    none_fails(&program, speaks, patient(&program), &Order::ALL, 6);
    if kind == Kind::HaProxy {
        // It knows when it says that it does, whatever else the machine has to do.
        let knows_first = [Order::RemovalFirst];
        none_fails(&program, speaks, Server::Defaults, &knows_first, 2);
    }
}

fn fetched(kind: Kind) {
    let Some(program) = Program::fetched(kind) else {
        skip(format_args!(
            "tests/rollout/fetch did not get {}",
            kind.name()
        ));
        return;
    };
    let mut all = program.speaks();
    all.retain(|speaks| *speaks == Speaks::Http1 || program.heeds_goaway());
    for speaks in all {
        none_fails(&program, speaks, patient(&program), &Order::ALL, 3);
    }
}

/// A lame duck for a machine that has other work, so that its balancers learn late.
fn patient(program: &Program) -> Server {
    Server::LameDuck(program.lame_duck().max(Duration::from_secs(1)))
}

fn none_fails(
    program: &Program,
    speaks: Speaks,
    server: Server,
    orders: &[Order],
    rollouts: usize,
) {
    let cell = Cell {
        program: program.clone(),
        speaks,
        server,
    };
    let outcome = cell.run(orders, rollouts);
    println!("{cell}: {outcome}");
    assert!(outcome.requests > 0, "{cell}: {outcome}");
    assert_eq!(outcome.failed, 0, "{cell}: {outcome:#}");
    assert_eq!(outcome.unwished, 0, "{cell}: {outcome:#}");
}

// ===== for a table =====

#[test]
#[ignore = "an hour and a half, for a table"]
fn g14_no_request_fails_behind_any_balancer() {
    let rollouts = variable("ROLLOUTS").map_or(50, |it| it.parse().expect("a number"));
    let at_once = variable("AT_ONCE").map_or(1, |it| it.parse().expect("a number"));
    let programs = Program::all();
    let wanted: VecDeque<_> = Entry::all(&programs).collect();
    let total = wanted.len();
    let wanted = Mutex::new(wanted);
    let done = Mutex::new(Vec::new());
    let work = || {
        let next = || lock(&wanted).pop_front();
        while let Some(entry) = next() {
            let outcome = entry.cell.run(&entry.orders, rollouts);
            let mut done = lock(&done);
            println!("{} of {total}: {entry}: {outcome:#}", done.len() + 1);
            done.push((entry, outcome));
        }
    };
    // One that panics must not cost the table.
    let panics = thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        ended.filter(Result::is_err).count()
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("\n{rollouts} rollouts each:\n");
    table(&programs, &done);
    let lost: Vec<_> = done
        .iter()
        .filter(|(entry, outcome)| entry.must_lose_none() && outcome.failed > 0)
        .map(|(entry, outcome)| format!("{entry}: {outcome:#}"))
        .collect();
    assert!(lost.is_empty(), "{lost:#?}");
    assert_eq!(panics, 0, "what was under way then is not in the table");
}

/// What one column of one row, or of three, is found by.
struct Entry {
    cell: Cell,
    orders: Vec<Order>,
}

impl Entry {
    fn all(programs: &[Program]) -> impl Iterator<Item = Self> {
        let only = variable("ONLY").unwrap_or_default();
        let servers = |program: &Program, speaks| {
            let program = program.clone();
            program.servers().into_iter().flat_map(move |server| {
                // Without SIGTERM there is no order.
                let orders = match server {
                    Server::Control => vec![Order::ALL.to_vec()],
                    _ => Order::ALL.map(|order| vec![order]).to_vec(),
                };
                let cell = Cell {
                    program: program.clone(),
                    speaks,
                    server,
                };
                orders.into_iter().map(move |orders| Self {
                    cell: cell.clone(),
                    orders,
                })
            })
        };
        let all = programs.iter().flat_map(move |program| {
            let speaks = program.speaks().into_iter();
            speaks.flat_map(move |speaks| servers(program, speaks))
        });
        all.filter(move |entry| {
            let name = entry.to_string();
            only.split_whitespace().all(|word| name.contains(word))
        })
    }

    /// Whoever is told late, or never waits for it, may lose some.
    fn must_lose_none(&self) -> bool {
        if self.cell.speaks == Speaks::Http2 && !self.cell.program.heeds_goaway() {
            return false;
        }
        match self.cell.server {
            Server::LameDuck(_) => true,
            Server::Defaults => self.orders == [Order::RemovalFirst],
            Server::Axum | Server::Control => false,
        }
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.orders[..] {
            [order] => write!(f, "{}, {order}", self.cell),
            _ => write!(f, "{}", self.cell),
        }
    }
}

fn table(programs: &[Program], done: &[(Entry, Outcome)]) {
    println!("| balancer | upstream | order | defaults | lame duck | `axum::serve` | control |");
    println!("|---|---|---|---|---|---|---|");
    for program in programs {
        for speaks in program.speaks() {
            for order in Order::ALL {
                let of = |server| {
                    let found = done.iter().find(|(entry, _)| {
                        let it = &entry.cell;
                        (&it.program, it.speaks, it.server) == (program, speaks, server)
                            && entry.orders.contains(&order)
                    });
                    found.map(|(_, outcome)| outcome.in_a_table())
                };
                let row = program.servers().map(of);
                if row.iter().all(Option::is_none) {
                    continue;
                }
                print!("| {program} | {} | {order} |", cell::name(speaks));
                for text in row {
                    print!(" {} |", text.as_deref().unwrap_or("–"));
                }
                println!();
            }
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
