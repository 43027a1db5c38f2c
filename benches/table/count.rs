//! Counts of a process that serves: it is run twice, with different numbers of requests, and the
//! difference taken, so that start and end cost nothing.

use std::process::Command;

use crate::load::IDLE;

pub(crate) const FEW: usize = 500;
pub(crate) const MANY: usize = 1_500;

/// Instructions of server and client for each request.
pub(crate) fn instructions(server: &str, load: &str) -> f64 {
    difference(|n| {
        let options = [
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            // Else chance decides how often the two threads find each other asleep.
            "--fair-sched=yes",
        ];
        let said = this("valgrind", &options, server, load, n);
        number_behind(&said, "Collected :")
    })
}

/// System calls for each request, but for the futex calls of two threads that hand over to each other,
/// which vary.
pub(crate) fn system_calls(server: &str, load: &str) -> f64 {
    difference(|n| {
        let said = this("strace", &["-f", "-c", "-S", "calls"], server, load, n);
        let columns = said
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        columns
            .filter(|c| c.len() >= 5 && !["futex", "total", "syscall"].contains(&c[c.len() - 1]))
            .filter_map(|c| c[3].parse::<u64>().ok())
            .sum()
    })
}

/// Blocks of memory that were allocated for each request.
pub(crate) fn allocations(server: &str, load: &str) -> f64 {
    difference(|n| {
        let said = dhat(server, load, n);
        let total = said.lines().find(|line| line.contains("Total:"));
        let (_, blocks) = total
            .and_then(|line| line.split_once(" in "))
            .expect("dhat's total");
        number(blocks)
    })
}

/// Bytes of heap for each idle connection.
pub(crate) fn heap_of_idle(server: &str) -> f64 {
    difference(|n| number_behind(&dhat(server, IDLE, n), "At t-gmax:"))
}

fn dhat(server: &str, load: &str, n: usize) -> String {
    let options = ["--tool=dhat", "--dhat-out-file=/dev/null"];
    this("valgrind", &options, server, load, n)
}

fn difference(count: impl Fn(usize) -> u64) -> f64 {
    per_one(count(FEW), count(MANY))
}

/// Of so many that were counted at [`FEW`] and at [`MANY`].
#[allow(clippy::cast_precision_loss)] // far below 2^52
pub(crate) fn per_one(few: u64, many: u64) -> f64 {
    (many as f64 - few as f64) / (MANY - FEW) as f64
}

pub(crate) fn this(tool: &str, options: &[&str], server: &str, load: &str, n: usize) -> String {
    let output = Command::new(tool)
        .args(options)
        .arg(std::env::current_exe().expect("this program"))
        .args([server, load, &n.to_string()])
        .output()
        .unwrap_or_else(|e| panic!("{tool} is needed for this: {e}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

fn number_behind(said: &str, words: &str) -> u64 {
    let line = said.lines().find(|line| line.contains(words));
    let (_, rest) = line
        .and_then(|line| line.split_once(words))
        .unwrap_or_else(|| panic!("no {words:?} in {said}"));
    number(rest)
}

/// The first one in there, which may have commas.
fn number(text: &str) -> u64 {
    let word = text.split_whitespace().next().unwrap_or_default();
    let digits: String = word.chars().filter(char::is_ascii_digit).collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no number: {text:?}"))
}
