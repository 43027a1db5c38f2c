//! Counts the bytes of two kinds of framing as they pass, whatever pieces they come in.

/// The frames of one direction of an HTTP/2 connection (RFC 9113 section 4.1).
///
/// Written ones tell how much of the responses is out: hyper drops a body when h2 has taken it over,
/// which may be long before the peer's window lets it go. What was given to h2 less what went out is
/// what we still owe (G4, G5). Read ones tell whether the peer has acknowledged a PING.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Bytes of the preface to come before the first frame.
    preface: usize,
    header: [u8; 9],
    filled: usize,
    /// Payload bytes of the frame at hand still to come.
    payload: usize,
}

/// What was in some bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Payload bytes of DATA.
    pub(super) data: u64,
    /// PINGs acknowledged.
    pub(super) pongs: u32,
}

const DATA: u8 = 0;
const PING: u8 = 6;
const ACK: u8 = 1;

impl Frames {
    /// What a client sends: the preface comes first (RFC 9113 section 3.4).
    pub(super) fn of_client() -> Self {
        Self {
            preface: 24,
            ..Self::default()
        }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        let preface = self.preface.min(bytes.len());
        self.preface -= preface;
        let mut bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.filled < self.header.len() {
                let n = bytes.len().min(self.header.len() - self.filled);
                self.header[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
                self.filled += n;
                bytes = &bytes[n..];
                if self.filled == self.header.len() {
                    let [a, b, c, kind, flags, ..] = self.header;
                    self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                    seen.pongs += u32::from(kind == PING && flags & ACK != 0);
                }
            } else {
                let n = bytes.len().min(self.payload);
                if self.header[3] == DATA {
                    seen.data += n as u64;
                }
                self.payload -= n;
                bytes = &bytes[n..];
            }
            if self.filled == self.header.len() && self.payload == 0 {
                self.filled = 0;
            }
        }
        seen
    }
}

/// Where TLS records end in what a socket reads. Half a record is invisible to whoever reads the
/// plaintext (G2).
#[derive(Debug, Default)]
pub(super) enum Records {
    /// Nothing read yet.
    #[default]
    Unknown,
    /// The first byte was none that TLS begins with.
    Plain,
    Tls {
        header: [u8; 5],
        filled: usize,
        payload: usize,
    },
}

/// RFC 8446 section 5.1: the content type of a handshake, with which every TLS connection begins.
const HANDSHAKE: u8 = 22;

impl Records {
    /// Takes what was read; true if it ends within a record.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> bool {
        if let (Self::Unknown, Some(first)) = (&self, bytes.first()) {
            *self = if *first == HANDSHAKE {
                Self::Tls {
                    header: [0; 5],
                    filled: 0,
                    payload: 0,
                }
            } else {
                Self::Plain
            };
        }
        let Self::Tls {
            header,
            filled,
            payload,
        } = self
        else {
            return false;
        };
        while !bytes.is_empty() {
            if *filled < header.len() {
                let n = bytes.len().min(header.len() - *filled);
                header[*filled..*filled + n].copy_from_slice(&bytes[..n]);
                *filled += n;
                bytes = &bytes[n..];
                if *filled == header.len() {
                    *payload = usize::from(header[3]) << 8 | usize::from(header[4]);
                }
            } else {
                let n = bytes.len().min(*payload);
                *payload -= n;
                bytes = &bytes[n..];
            }
            if *filled == header.len() && *payload == 0 {
                *filled = 0;
            }
        }
        *filled > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_data_and_pongs_in_any_pieces() {
        let mut stream = Vec::new();
        let frames = [
            (4_u8, 0_u8, 0_u8),
            (0, 0, 5),
            (6, 0, 8),
            (6, 1, 8),
            (0, 1, 0),
            (1, 5, 3),
            (0, 0, 200),
        ];
        for (kind, flags, len) in frames {
            stream.extend([0, 0, len, kind, flags, 0, 0, 0, 1]);
            stream.extend(vec![0; usize::from(len)]);
        }
        for preface in [0, 24] {
            stream.splice(0..0, vec![0xff; preface]);
            for piece in 1..stream.len() {
                let mut frames = Frames {
                    preface,
                    ..Frames::default()
                };
                let (mut data, mut pongs) = (0, 0);
                for seen in stream.chunks(piece).map(|bytes| frames.feed(bytes)) {
                    data += seen.data;
                    pongs += seen.pongs;
                }
                assert_eq!((data, pongs), (205, 1), "in pieces of {piece}");
            }
        }
        assert_eq!(
            Frames::of_client().preface,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()
        );
    }

    #[test]
    fn knows_half_a_record_in_any_pieces() {
        let mut stream = Vec::new();
        let mut ends = vec![0];
        for (kind, len) in [(22_u8, 4_u8), (20, 1), (23, 0), (23, 250)] {
            stream.extend([kind, 3, 3, 0, len]);
            stream.extend(vec![0; usize::from(len)]);
            ends.push(stream.len());
        }
        for piece in 1..stream.len() {
            let (mut records, mut at) = (Records::default(), 0);
            for bytes in stream.chunks(piece) {
                at += bytes.len();
                assert_eq!(records.feed(bytes), !ends.contains(&at), "at {at}");
            }
        }
        assert!(!Records::default().feed(b"GET / HTTP/1.1"));
    }
}
