//! Numbers and durations as people read them.

use std::fmt;
use std::time::Duration;

/// So many of a thing, which has a name for one and another for none or several.
pub(crate) struct Count(
    pub(crate) usize,
    pub(crate) &'static str,
    pub(crate) &'static str,
);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.0 == 1 { self.1 } else { self.2 };
        write!(f, "{} {name}", self.0)
    }
}

/// How long something took: with one digit behind the point, in a unit that suits it.
pub(crate) struct Took(pub(crate) Duration);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            f.write_str("0s")
        } else {
            write!(f, "{:.1?}", self.0)
        }
    }
}
