//! What a test does not try, and why, said where it is read: of a test that passes the runner shows no line.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;
use std::thread;

/// `.ci/run` names a file in it, and prints that at its end.
const FILE: &str = "HTTP_TERMINATOR_SKIPPED";

/// To be called on the test's own thread, which has its name; one that runs alone has the process's own.
pub fn skip(why: impl Display) {
    let this = thread::current();
    let named = this.name().filter(|it| *it != "main").map(str::to_owned);
    let asked_for = || std::env::args().skip_while(|it| it != "--exact").nth(1);
    let test = named.or_else(asked_for);
    let line = format!("skipped: {}: {why}\n", test.as_deref().unwrap_or("a test"));
    print!("{line}");
    if let Some(file) = std::env::var_os(FILE) {
        let file = OpenOptions::new().append(true).create(true).open(file);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("what is skipped can be written down");
    }
}
