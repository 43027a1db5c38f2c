//! What can be told of an HTTP/2 connection from the frames that pass.

use super::frames::{DATA, Frames, HEADERS, PING, RST_STREAM};
use super::pong::Sieve;

/// Follows the streams of a connection by their frames: hyper drops a response's body when h2 has
/// taken it over, which may be long before the peer's window lets it out.
#[derive(Debug, Default)]
pub(super) struct Http2 {
    read: Frames,
    written: Frames,
    /// Streams on which the last frame was not written.
    open: Vec<u32>,
    /// Answers, or parts of them, were written since our last PING: that one's acknowledgment does
    /// not prove that they have been read.
    unproven: bool,
    sieve: Option<Sieve>,
}

impl Http2 {
    /// Takes what was read, from behind the preface on. True if a PING was acknowledged in it.
    pub(super) fn read(&mut self, bytes: &[u8]) -> bool {
        let open = &mut self.open;
        let mut ponged = false;
        self.read.feed(bytes, |frame| match frame.kind {
            HEADERS if !open.contains(&frame.stream) => open.push(frame.stream),
            RST_STREAM => open.retain(|stream| *stream != frame.stream),
            _ => ponged |= frame.is_pong(),
        });
        ponged
    }

    /// For what is read from when the connection was told to go away on.
    pub(super) fn sieve(&mut self) -> &mut Sieve {
        self.sieve.get_or_insert_with(|| Sieve::new(&self.read))
    }

    pub(super) fn written(&mut self, bytes: &[u8]) {
        let (open, unproven) = (&mut self.open, &mut self.unproven);
        self.written.feed(bytes, |frame| {
            match frame.kind {
                DATA | HEADERS => *unproven = true,
                PING if !frame.is_pong() => *unproven = false,
                _ => {}
            }
            if frame.ends_stream() {
                open.retain(|stream| *stream != frame.stream);
            }
        });
    }

    pub(super) fn open_streams(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// Whether the peer may not have read all answers, as far as we know.
    pub(super) fn is_unproven(&self) -> bool {
        self.unproven
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(frames: &[(u8, u8, u32)]) -> Vec<u8> {
        let bytes = |&(kind, flags, stream): &(u8, u8, u32)| {
            let [a, b, c, d] = stream.to_be_bytes();
            [0, 0, 0, kind, flags, a, b, c, d]
        };
        frames.iter().flat_map(bytes).collect()
    }

    #[test]
    fn a_stream_is_open_until_its_last_frame_is_written_or_it_is_reset() {
        let mut http2 = Http2::default();
        assert!(!http2.read(&bytes(&[(HEADERS, 5, 1), (HEADERS, 4, 3), (HEADERS, 5, 5)])));
        // Trailers do not open it again.
        http2.read(&bytes(&[(DATA, 0, 3), (HEADERS, 5, 3)]));
        assert_eq!(http2.open_streams(), 3);
        http2.written(&bytes(&[(HEADERS, 4, 1), (DATA, 0, 1)]));
        assert_eq!(http2.open_streams(), 3);
        http2.written(&bytes(&[(DATA, 1, 1)]));
        http2.read(&bytes(&[(RST_STREAM, 0, 3)]));
        http2.written(&bytes(&[(RST_STREAM, 0, 5)]));
        assert_eq!(http2.open_streams(), 0);
    }

    #[test]
    fn an_answer_is_proven_by_the_ping_behind_it() {
        let mut http2 = Http2::default();
        http2.written(&bytes(&[(HEADERS, 5, 1)]));
        assert!(http2.is_unproven());
        http2.written(&bytes(&[(PING, 1, 0)]));
        assert!(http2.is_unproven(), "that is an acknowledgment");
        http2.written(&bytes(&[(PING, 0, 0)]));
        assert!(!http2.is_unproven());
        assert!(http2.read(&bytes(&[(PING, 1, 0)])));
        assert!(!http2.read(&bytes(&[(PING, 0, 0)])));
    }
}
