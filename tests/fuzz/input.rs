//! Bytes as a source of decisions. Where they are at an end every decision is zero, so that what a target does is as long
//! as its input.

pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// From zero on.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let [a, b] = if n > 256 {
            [self.byte(), self.byte()]
        } else {
            [0, self.byte()]
        };
        usize::from(u16::from_be_bytes([a, b])) % n.max(1)
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        // Not when there are no more.
        self.below(n) == n - 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// So many, or as many as there are.
    pub(crate) fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }
}
