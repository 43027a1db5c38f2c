//! Whether the other side takes what was written to it. A slow reader of the last that lies in our kernel says nothing for
//! long, and would lose it by a close: whatever it sends behind that draws a reset.

/// What lay in the kernel at the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Taken {
    left: u32,
    went_on: bool,
}

impl Default for Taken {
    fn default() -> Self {
        Self {
            left: u32::MAX,
            went_on: false,
        }
    }
}

impl Taken {
    /// `left`: what was written and is not acknowledged by the other side's kernel, where that can be told. True if there
    /// is something and it is not what there was at the last look, or that is the first one.
    pub(crate) fn goes_on(&mut self, left: Option<u32>) -> bool {
        let Some(left) = left else { return false };
        let before = std::mem::replace(&mut self.left, left);
        let goes_on = left > 0 && left != before;
        self.went_on |= goes_on;
        goes_on
    }

    /// It did at any look, so that the last of it may not have been read either.
    #[cfg(feature = "serve")]
    pub(crate) fn went_on(self) -> bool {
        self.went_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_not_taken() {
        let mut taken = Taken::default();
        assert!(!taken.goes_on(None) && taken.goes_on(Some(9)));
        assert!(!taken.goes_on(Some(9)) && taken.goes_on(Some(4)));
        assert!(!taken.goes_on(None) && !taken.goes_on(Some(4)));
        assert!(!taken.goes_on(Some(0)) && !taken.goes_on(Some(0)));
    }
}
