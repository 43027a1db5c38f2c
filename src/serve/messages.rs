//! Where the messages of a gRPC body end.

/// What has been read of a body, which is a sequence of messages behind their lengths: "Compressed-Flag
/// Message-Length Message" (gRPC over HTTP/2), one byte, four bytes in big endian, the message. They need
/// not be cut as the body's frames are.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// How many bytes of flag and length have been read.
    prefix: usize,
    /// The length, as far as it is read; then what is left of it.
    left: usize,
}

/// What ends in a piece of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) messages: usize,
    /// How far into the piece the last of them goes.
    pub(super) last: usize,
}

impl Messages {
    /// The next piece.
    pub(super) fn read(&mut self, piece: &[u8]) -> Ends {
        let mut ends = Ends::default();
        let mut rest = piece;
        while let [first, others @ ..] = rest {
            if self.prefix == PREFIX {
                let n = self.left.min(rest.len());
                self.left -= n;
                rest = &rest[n..];
            } else {
                if self.prefix > 0 {
                    self.left = self.left << 8 | usize::from(*first);
                }
                self.prefix += 1;
                rest = others;
            }
            if self.prefix == PREFIX && self.left == 0 {
                self.prefix = 0;
                ends.messages += 1;
                ends.last = piece.len() - rest.len();
            }
        }
        ends
    }

    /// No message has begun that has not ended.
    pub(super) fn is_between(&self) -> bool {
        self.prefix == 0
    }
}

/// One byte of flag, four of length.
const PREFIX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of these lengths, and where each ends.
    fn body(lengths: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for (n, length) in lengths.iter().enumerate() {
            bytes.push(u8::from(n % 2 == 0));
            bytes.extend(u32::try_from(*length).expect("short").to_be_bytes());
            // It looks like a prefix itself.
            bytes.extend([0, 0, 0, 0, 1].iter().cycle().take(*length));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn ends_are_found_wherever_two_cuts_are() {
        let (bytes, ends) = body(&[3, 0, 0, 7, 260, 1]);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let mut messages = Messages::default();
                let mut from = 0;
                for to in [first, second, bytes.len()] {
                    let within: Vec<_> = ends
                        .iter()
                        .filter(|it| (from + 1..=to).contains(it))
                        .collect();
                    let expected = Ends {
                        messages: within.len(),
                        last: within.last().map_or(0, |it| **it - from),
                    };
                    assert_eq!(messages.read(&bytes[from..to]), expected, "{from}..{to}");
                    let between = to == 0 || ends.contains(&to);
                    assert_eq!(messages.is_between(), between, "{to}");
                    from = to;
                }
            }
        }
    }

    #[test]
    fn ends_are_found_byte_by_byte() {
        let (bytes, ends) = body(&[0, 300, 2]);
        let mut messages = Messages::default();
        let mut found = Vec::new();
        for (n, byte) in bytes.iter().enumerate() {
            if messages.read(&[*byte]).messages == 1 {
                found.push(n + 1);
            }
        }
        assert_eq!(found, ends);
    }
}
