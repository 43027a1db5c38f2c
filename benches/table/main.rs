//! What http-terminator costs, beside its peers, in one run and one table.
//!
//! - `cargo bench --bench table` prints the table; README.md beside this tells how to read it. It needs
//!   `valgrind`, `objdump` and `strace`. `-- counts` is one half of it, `-- times` the other; `-- locked` and
//!   `-- streams` are parts of those. `-- options` is what costs something only while it is on.
//! - `cargo bench --bench table -- svg FILE` draws the part of it that the README shows.
//! - `cargo bench --bench table -- check` compares instructions per request with those in `recorded.txt`,
//!   and fails if they have risen; `-- record` writes them.
//! - `cargo bench --bench table -- SERVER LOAD N` is one run, for a profiler.
#![allow(missing_docs, clippy::disallowed_methods)] // not the library

mod count;
mod ending;
mod load;
mod locked;
mod plot;
mod recorded;
mod servers;

use std::time::{Duration, Instant};

use crate::load::{KEEP_ALIVE, LOADS};
use crate::servers::{BARE, Given, OPTIONS, SERVERS, allows_streams};

fn main() {
    let args: Vec<_> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [] => {
            counts();
            times();
        }
        ["counts"] => counts(),
        ["locked"] => {
            head();
            locked();
        }
        ["times"] => times(),
        ["streams"] => {
            head();
            streams();
        }
        ["options"] => options(),
        ["svg", file] => plot::draw(file),
        ["check"] => recorded::check(),
        ["record"] => recorded::record(),
        ["clients", addr, n] => ending::clients(
            addr.parse().expect("an address"),
            n.parse().expect("a number"),
        ),
        [server, load, n] => load::run(server, load, n.parse().expect("a number of requests")),
        _ => panic!("no such use: {args:?}"),
    }
}

fn head() {
    print!("{:<28}", "");
    for server in SERVERS {
        print!("{server:>0$}", width(server));
    }
    println!();
}

/// Of its column.
fn width(server: &str) -> usize {
    (server.len() + 2).max(23)
}

fn counts() {
    head();
    println!("instructions per request");
    for load in LOADS {
        row(
            load,
            &of_each(|server| count::instructions(server, load)),
            0,
        );
    }
    locked();
    println!("system calls per request");
    for load in LOADS {
        row(
            load,
            &of_each(|server| count::system_calls(server, load)),
            2,
        );
    }
    println!("memory");
    let blocks = of_each(|server| count::allocations(server, KEEP_ALIVE));
    row("blocks per request", &blocks, 2);
    row(
        "bytes per idle connection",
        &of_each(count::heap_of_idle),
        0,
    );
}

/// What is off by default costs that much while it is on.
fn options() {
    for load in [KEEP_ALIVE, "HTTP/1, a connection each", "HTTP/2, 1 stream"] {
        let without = count::instructions("http-terminator serve", load);
        println!("instructions per request over serve, {load}");
        for server in OPTIONS {
            let with = count::instructions(server, load);
            println!("  {server:<28}{:>+10.0}", with - without);
        }
    }
}

fn locked() {
    let mut addresses = locked::Addresses::default();
    let locked = SERVERS
        .iter()
        .map(|server| addresses.executed(server, KEEP_ALIVE));
    let (in_program, in_libraries): (Vec<_>, Vec<_>) = locked
        .map(|locked| (Some(locked.in_program), Some(locked.in_libraries)))
        .unzip();
    println!("locked instructions per request, {KEEP_ALIVE}");
    row("in the program", &in_program, 2);
    row("in shared libraries", &in_libraries, 2);
}

fn times() {
    head();
    println!("milliseconds (medians; *: the fastest)");
    for threads in [1, 2] {
        let servers: Vec<_> = SERVERS
            .iter()
            .map(|server| load::start(server, Given::Hello, threads))
            .collect();
        // The fastest: where the machine puts the threads decides by a factor of two.
        let asked = side_by_side(101, fastest, |n| {
            Some(load::ask_at_once(servers[n].0, threads, 1_000))
        });
        row(&format!("1,000 requests, {threads} threads*"), &asked, 1);
    }
    for n in [1_000, 8_000] {
        row(&format!("end {n} idle connections"), &endings(n), 1);
    }
    let last_byte = side_by_side(15, median, |n| {
        // It aborts, so there is no last byte.
        (SERVERS[n] != BARE).then(|| ending::last_byte_to_return(SERVERS[n]))
    });
    row("last byte to return", &last_byte, 2);
    streams();
    println!("microseconds to end each of so many connections in memory (medians)");
    for n in [1_000, 100_000, 1_000_000] {
        let took = (0..5).map(|_| ending::per_connection_in_memory(n));
        let took = median(took.map(milliseconds).collect()) * 1e3;
        println!("  {n:<26}{:>23}", format!("{took:.2}"));
    }
}

/// A request of HTTP/2 that has others beside it, which are not answered.
fn streams() {
    println!(
        "microseconds for a request beside open streams, HTTP/2 (the fastest of 101 hundreds)"
    );
    for open in [0, 1_000, 50_000] {
        let mut servers: Vec<_> = SERVERS
            .iter()
            .map(|server| {
                let room = Given::Streams(open + 200);
                allows_streams(server).then(|| {
                    let (addr, server) = load::start(server, room, 1);
                    let mut client = load::Http2::connect(addr);
                    client.open(open);
                    (client, server)
                })
            })
            .collect();
        // The fastest, as above; of so many that what is done now and then only is in each.
        let took = side_by_side(101, fastest, |n| {
            let (client, _) = servers[n].as_ref()?;
            let began = Instant::now();
            client.ask(100, 1);
            Some(began.elapsed() / 100)
        });
        let took: Vec<_> = took
            .iter()
            .map(|took| took.map(|took| took * 1e3))
            .collect();
        row(&format!("beside {open}"), &took, 1);
        for (client, server) in servers.drain(..).flatten() {
            // With its streams, which no end would wait for otherwise.
            drop(client);
            server.end();
        }
    }
}

fn endings(n: usize) -> Vec<Option<f64>> {
    side_by_side(5, median, |server| {
        Some(ending::idle_connections(SERVERS[server], n))
    })
}

fn of_each(figure: impl Fn(&str) -> f64) -> Vec<Option<f64>> {
    SERVERS.iter().map(|server| Some(figure(server))).collect()
}

/// Milliseconds, of one server after the other, round by round, so that what else the
/// machine does hits all.
fn side_by_side(
    rounds: usize,
    of_all: fn(Vec<f64>) -> f64,
    measure: impl Fn(usize) -> Option<Duration>,
) -> Vec<Option<f64>> {
    let mut took = vec![Vec::new(); SERVERS.len()];
    for _ in 0..rounds {
        for (n, took) in took.iter_mut().enumerate() {
            took.extend(measure(n).map(milliseconds));
        }
    }
    let took = took.into_iter();
    took.map(|took| (!took.is_empty()).then(|| of_all(took)))
        .collect()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn fastest(figures: Vec<f64>) -> f64 {
    figures.into_iter().fold(f64::INFINITY, f64::min)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Each figure, how much it is over the first one, and how many times that.
fn row(what: &str, figures: &[Option<f64>], digits: usize) {
    print!("  {what:<26}");
    let first = figures[0];
    for (n, (figure, server)) in figures.iter().zip(SERVERS).enumerate() {
        let cell = match (figure, first) {
            (None, _) => "-".to_owned(),
            (Some(figure), Some(first)) if n > 0 => {
                let (over, times) = (figure - first, figure / first);
                format!("{figure:.digits$} {over:+.digits$} x{times:.3}")
            }
            (Some(figure), _) => format!("{figure:.digits$}"),
        };
        print!("{cell:>0$}", width(server));
    }
    println!();
}
