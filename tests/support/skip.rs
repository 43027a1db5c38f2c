//! What a test does not try, and why, said where it is read: of a test that passes the runner shows no line.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;
use std::thread;

/// `.ci/run` names a file in it, and prints that at its end.
const FILE: &str = "HTTP_TERMINATOR_SKIPPED";

/// To be called on the test's own thread, which has its name.
pub fn skip(why: impl Display) {
    let this = thread::current();
    let line = format!("skipped: {}: {why}\n", this.name().unwrap_or("a test"));
    print!("{line}");
    if let Some(file) = std::env::var_os(FILE) {
        let file = OpenOptions::new().append(true).create(true).open(file);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("what is skipped can be written down");
    }
}
