//! Follows the frames of HTTP/2 as bytes pass, whatever pieces they come in.

/// The frames of one direction of an HTTP/2 connection (RFC 9113 section 4.1).
#[derive(Clone, Debug, Default)]
pub(crate) struct Frames {
    /// Of a GOAWAY, the last stream as well.
    header: [u8; LONG],
    filled: usize,
    /// Payload bytes of the frame at hand still to come.
    payload: usize,
    /// A head, or trailers, have begun, and their last frame has not.
    in_head: bool,
}

/// The header of a frame, but for its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(super) flags: u8,
    /// Of a GOAWAY, the last stream that its sender takes (RFC 9113 section 6.8).
    pub(crate) stream: u32,
}

pub(super) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(crate) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// How long a header is.
pub(super) const SHORT: usize = 9;
const LONG: usize = SHORT + 4;

impl Frame {
    pub(super) fn is_pong(self) -> bool {
        self.kind == PING && self.flags & 1 != 0
    }

    /// Its sender sends nothing more on this stream.
    pub(super) fn ends_stream(self) -> bool {
        self.kind == RST_STREAM || matches!(self.kind, DATA | HEADERS) && self.flags & 1 != 0
    }

    /// A head of the peer's, whose streams are odd, of a stream above that one: it opens it, and anything else is trailers (RFC
    /// 9113 section 5.1.1).
    pub(super) fn opens_above(self, highest: u32) -> bool {
        self.kind == HEADERS && self.stream % 2 == 1 && self.stream > highest
    }

    /// It is part of a head, or of trailers.
    pub(super) fn is_of_headers(self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION)
    }

    /// With its last byte a head, or trailers, are complete.
    pub(super) fn ends_headers(self) -> bool {
        self.is_of_headers() && self.flags & 4 != 0
    }
}

impl Frames {
    /// Calls for every frame whose header ends in `bytes`.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let (n, frame) = self.leap(bytes).unwrap_or_else(|| self.step(bytes));
            bytes = &bytes[n..];
            frame.into_iter().for_each(&mut each);
        }
    }

    /// The same as several steps, over a header that is there as a whole, as nearly all are, and what there is
    /// of the payload.
    #[inline]
    fn leap(&mut self, bytes: &[u8]) -> Option<(usize, Option<Frame>)> {
        let &header = bytes.first_chunk::<SHORT>()?;
        let [a, b, c, kind, flags, stream @ ..] = header;
        if self.filled > 0 || kind == GOAWAY {
            return None;
        }
        let payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let n = payload.min(bytes.len() - SHORT);
        if n < payload {
            self.header[..SHORT].copy_from_slice(&header);
            self.filled = SHORT;
            self.payload = payload - n;
        }
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        let frame = Frame {
            kind,
            flags,
            stream,
        };
        self.in_head = frame.is_of_headers() && !frame.ends_headers();
        Some((SHORT + n, Some(frame)))
    }

    /// Goes on to the end of the header at hand, or of the payload: by so many bytes.
    pub(super) fn step(&mut self, bytes: &[u8]) -> (usize, Option<Frame>) {
        let mut frame = None;
        let n;
        let long = self.length();
        if self.filled < long {
            n = bytes.len().min(long - self.filled);
            self.header[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            // A GOAWAY turns out to be one when the short header is there.
            if self.filled == self.length() {
                let [a, b, c, kind, flags, ref stream @ ..] = self.header;
                self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.payload -= self.filled - SHORT;
                let stream = &stream[self.filled - SHORT..];
                let stream = stream.first_chunk().copied().unwrap_or_default();
                let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
                let begins = Frame {
                    kind,
                    flags,
                    stream,
                };
                self.in_head = begins.is_of_headers() && !begins.ends_headers();
                frame = Some(begins);
            }
        } else {
            n = bytes.len().min(self.payload);
            self.payload -= n;
        }
        if self.filled == self.length() && self.payload == 0 {
            self.filled = 0;
        }
        (n, frame)
    }

    /// How much of the frame at hand is looked at.
    fn length(&self) -> usize {
        let [a, b, c, kind, ..] = self.header;
        // One that is too short to be valid has no last stream.
        let is_long = self.filled >= SHORT && kind == GOAWAY && (a, b, c) >= (0, 0, 4);
        if is_long { LONG } else { SHORT }
    }

    /// The last frame that was told of has come to its end.
    pub(super) fn is_past_payload(&self) -> bool {
        self.payload == 0
    }

    /// No part of a frame has come that others would have to follow.
    pub(super) fn is_between(&self) -> bool {
        self.filled == 0
    }

    /// Nor of a head, into which no other frame may come (RFC 9113 section 6.10).
    pub(crate) fn is_between_any(&self) -> bool {
        self.is_between() && !self.in_head
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

    /// A length has three bytes.
    #[test]
    fn sees_what_is_behind_long_frames() {
        for len in [0, 255, 256, 300, 65_535, 65_536, 70_001, 0x01_02_03] {
            let data = [&u32::to_be_bytes(len)[1..], &[DATA, 0, 0, 0, 0, 1]].concat();
            let payload = vec![0xff; usize::try_from(len).expect("24 bits")];
            let stream = [&data, &payload[..], &[0, 0, 0, PING, 0, 0, 0, 0, 0]].concat();
            for piece in [5, 9, 1000, stream.len()] {
                let (mut parser, mut seen) = (Frames::default(), Vec::new());
                for bytes in stream.chunks(piece) {
                    parser.feed(bytes, |frame| seen.push(frame.kind));
                }
                assert_eq!(seen, [DATA, PING], "behind {len}, in pieces of {piece}");
                assert!(parser.is_between() && parser.is_past_payload());
            }
        }
    }

    #[test]
    fn knows_acknowledgments() {
        let is_pong = |kind, flags| {
            Frame {
                kind,
                flags,
                stream: 0,
            }
            .is_pong()
        };
        assert!(is_pong(PING, 1) && is_pong(PING, 3));
        assert!(!is_pong(PING, 0) && !is_pong(PING, 2) && !is_pong(DATA, 1));
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

    #[test]
    fn knows_the_last_stream_of_a_goaway() {
        let last = [0x80, 0, 1, 7];
        let whole = [&[0, 0, 9, GOAWAY, 0, 0, 0, 0, 0][..], &last, &[0; 5]].concat();
        let odd = [0, 0, 3, GOAWAY, 0, 0, 0, 0, 2, 9, 9, 9];
        let ping = [0, 0, 0, PING, 0, 0, 0, 0, 0];
        let stream = [&odd[..], &whole, &ping, &whole].concat();
        for piece in 1..stream.len() {
            let (mut parser, mut seen) = (Frames::default(), Vec::new());
            for bytes in stream.chunks(piece) {
                parser.feed(bytes, |frame| seen.push((frame.kind, frame.stream)));
            }
            let all = [(GOAWAY, 2), (GOAWAY, 0x107), (PING, 0), (GOAWAY, 0x107)];
            assert_eq!(seen, all, "in pieces of {piece}");
            assert!(parser.is_between());
        }
    }
}
