//! What is fuzzed: functions of bytes, which `fuzz/` calls without end, and which are called here with what it has found.

#![allow(
    clippy::disallowed_methods,
    reason = "it spawns clients, and its clock is not the system's"
)]

mod answers;
mod calls;
pub(crate) mod input;
mod served;

use std::path::Path;

/// The bytes of HTTP/1 requests, in any pieces.
pub fn reading(data: &[u8]) {
    crate::connection::fuzzed::reading(data);
}

/// The frames of HTTP/2, and the acknowledgment that is held back.
pub fn frames(data: &[u8]) {
    if let Some((first, rest)) = data.split_first() {
        if first % 2 == 0 {
            crate::connection::fuzzed::frames(rest);
        } else {
            crate::connection::fuzzed::sieve(rest);
        }
    }
}

/// The records of TLS.
pub fn records(data: &[u8]) {
    crate::connection::fuzzed::records(data);
}

/// Bytes into a served connection, which is ended at some moment.
pub fn served(data: &[u8]) {
    self::served::served(data);
}

/// Calls of the public interface, in any order.
pub fn calls(data: &[u8]) {
    self::calls::calls(data);
}

/// Calls it with each file of its corpus. A package of this crate has none.
#[cfg(test)]
fn replay(name: &str, target: fn(&[u8])) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    if !fuzz.exists() {
        return;
    }
    let files = std::fs::read_dir(fuzz.join("corpus").join(name)).expect("a corpus");
    let files: Vec<_> = files.collect();
    assert!(!files.is_empty(), "an empty corpus");
    for file in files {
        let path = file.expect("an entry").path();
        let data = std::fs::read(&path).expect("a file");
        println!("{}", path.display());
        target(&data);
    }
}

#[test]
fn reading_again() {
    replay("reading", reading);
}

#[test]
fn frames_again() {
    replay("frames", frames);
}

#[test]
fn records_again() {
    replay("records", records);
}

#[test]
fn served_again() {
    replay("served", served);
}

#[test]
fn calls_again() {
    replay("calls", calls);
}
