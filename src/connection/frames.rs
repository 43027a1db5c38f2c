//! Follows the frames of HTTP/2 as bytes pass, whatever pieces they come in.

/// The frames of one direction of an HTTP/2 connection (RFC 9113 section 4.1).
#[derive(Clone, Debug, Default)]
pub(super) struct Frames {
    header: [u8; 9],
    filled: usize,
    /// Payload bytes of the frame at hand still to come.
    payload: usize,
}

/// The header of a frame, but for its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const PING: u8 = 6;

impl Frame {
    pub(super) fn is_pong(self) -> bool {
        self.kind == PING && self.flags & 1 != 0
    }

    /// Its sender sends nothing more on this stream.
    pub(super) fn ends_stream(self) -> bool {
        self.kind == RST_STREAM || matches!(self.kind, DATA | HEADERS) && self.flags & 1 != 0
    }
}

impl Frames {
    /// Calls for every frame whose header ends in `bytes`.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let (n, frame) = self.step(bytes);
            bytes = &bytes[n..];
            frame.into_iter().for_each(&mut each);
        }
    }

    /// Goes on to the end of the header at hand, or of the payload: by so many bytes.
    pub(super) fn step(&mut self, bytes: &[u8]) -> (usize, Option<Frame>) {
        let mut frame = None;
        let n;
        if self.filled < self.header.len() {
            n = bytes.len().min(self.header.len() - self.filled);
            self.header[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            if self.filled == self.header.len() {
                let [a, b, c, kind, flags, stream @ ..] = self.header;
                self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                frame = Some(Frame {
                    kind,
                    flags,
                    stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
                });
            }
        } else {
            n = bytes.len().min(self.payload);
            self.payload -= n;
        }
        if self.filled == self.header.len() && self.payload == 0 {
            self.filled = 0;
        }
        (n, frame)
    }

    /// No part of a frame has come that others would have to follow.
    pub(super) fn is_between(&self) -> bool {
        self.filled == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_every_frame_in_any_pieces() {
        let frames = [
            (4, 0, 0, 0),
            (0, 0, 1, 5),
            (6, 1, 0, 8),
            (1, 5, 3, 3),
            (0, 1, 1, 200),
            (3, 0, 9, 4),
        ]
        .map(|(kind, flags, stream, len)| {
            (
                Frame {
                    kind,
                    flags,
                    stream,
                },
                len,
            )
        });
        let mut stream = Vec::new();
        for (frame, len) in frames {
            stream.extend([0, 0, len, frame.kind, frame.flags]);
            // The reserved bit is to be ignored.
            stream.extend((frame.stream | 1 << 31).to_be_bytes());
            stream.extend(vec![0; usize::from(len)]);
        }
        for piece in 1..stream.len() {
            let (mut parser, mut seen) = (Frames::default(), Vec::new());
            for bytes in stream.chunks(piece) {
                parser.feed(bytes, |frame| seen.push(frame));
            }
            assert_eq!(seen, frames.map(|(frame, _)| frame), "in pieces of {piece}");
        }
    }

    #[test]
    fn knows_the_ends_of_streams() {
        let ends = |kind, flags| {
            Frame {
                kind,
                flags,
                stream: 1,
            }
            .ends_stream()
        };
        assert!(ends(DATA, 1) && ends(HEADERS, 5) && ends(RST_STREAM, 0));
        assert!(!ends(DATA, 0) && !ends(HEADERS, 4) && !ends(PING, 1));
    }
}
