//! Lines for the operator. Who reads them may be gone, in which case `println!` panics: no reason to serve nobody.

use std::fmt::Display;
use std::io::{self, Write};

pub fn say(who: impl Display, what: impl Display) {
    let _ = writeln!(io::stdout(), "{who}: {what}");
}
