//! The first bytes of the request in hand, so that a straggler can be named from outside.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// Enough for a method and most paths.
const WORDS: usize = 10;
const LEN: usize = WORDS * 8;

/// Written by the connection's task, read by the driver at the deadline. Words instead of a lock:
/// a reader that meets a writer may see the bytes of two requests mixed, which spoils a name in a
/// report and nothing else.
#[derive(Default)]
pub(super) struct HeadCopy {
    words: [AtomicU64; WORDS],
    len: AtomicU8,
}

impl HeadCopy {
    #[inline]
    pub(super) fn start(&self, bytes: &[u8]) {
        let n = bytes.len().min(LEN);
        let mut words = self.words.iter();
        let mut chunks = bytes[..n].chunks_exact(8);
        for (chunk, word) in chunks.by_ref().zip(words.by_ref()) {
            word.store(little_endian(chunk), Relaxed);
        }
        if let (Some(word), true) = (words.next(), n % 8 > 0) {
            word.store(little_endian(chunks.remainder()), Relaxed);
        }
        self.set_len(n);
    }

    /// The head was not seen, but this is what was in it.
    pub(super) fn request(&self, method: &str, path: &str) {
        let (mut head, mut n) = ([0; LEN], 0);
        for part in [method, " ", path] {
            let part = &part.as_bytes()[..part.len().min(LEN - n)];
            head[n..n + part.len()].copy_from_slice(part);
            n += part.len();
        }
        self.start(&head[..n]);
    }

    /// The head comes in pieces.
    pub(super) fn append(&self, bytes: &[u8]) {
        let len = usize::from(self.len.load(Relaxed));
        if len < LEN {
            let mut head = self.bytes();
            head.extend_from_slice(&bytes[..bytes.len().min(LEN - len)]);
            self.start(&head);
        }
    }

    /// The request in hand is not the one whose head was copied.
    pub(super) fn forget(&self) {
        self.set_len(0);
    }

    /// Method and path, as far as they are there.
    pub(super) fn name(&self) -> (Option<String>, Option<String>) {
        let head = self.bytes();
        let line = head
            .split(|&b| b == b'\r' || b == b'\n')
            .next()
            .unwrap_or_default();
        let mut words = line.split(|&b| b == b' ').filter(|word| !word.is_empty());
        let readable = |word: &[u8]| word.escape_ascii().to_string();
        let method = words.next().map(readable);
        // Not the query, which may hold what must not get into a log.
        let target = words
            .next()
            .and_then(|target| target.split(|&b| b == b'?').next());
        (method, target.map(readable))
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.load(Relaxed).to_le_bytes())
            .collect();
        bytes.truncate(usize::from(self.len.load(Relaxed)));
        bytes
    }

    fn set_len(&self, n: usize) {
        // At most `LEN`, so it fits.
        self.len.store(u8::try_from(n).unwrap_or(0), Relaxed);
    }
}

/// Of at most eight bytes.
#[inline]
fn little_endian(bytes: &[u8]) -> u64 {
    match bytes.try_into() {
        Ok(bytes) => u64::from_le_bytes(bytes),
        Err(_) => bytes
            .iter()
            .rev()
            .fold(0, |word, b| word << 8 | u64::from(*b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(head: &HeadCopy) -> (String, String) {
        let (method, path) = head.name();
        (method.unwrap_or_default(), path.unwrap_or_default())
    }

    #[test]
    fn names_a_request_however_it_came() {
        let request = b"POST /orders/17?x=y HTTP/1.1\r\nhost: a\r\n\r\n";
        for cut in 1..request.len() {
            let head = HeadCopy::default();
            head.start(&request[..cut]);
            head.append(&request[cut..]);
            assert_eq!(names(&head), ("POST".into(), "/orders/17".into()));
        }
    }

    #[test]
    fn names_a_request_whose_head_was_not_seen() {
        let head = HeadCopy::default();
        head.request("DELETE", "/orders/17");
        assert_eq!(names(&head), ("DELETE".into(), "/orders/17".into()));
        head.request("GET", &"/".repeat(500));
        assert_eq!(names(&head).1.len(), LEN - 4);
    }

    #[test]
    fn long_and_odd_heads_are_cut_and_escaped() {
        let head = HeadCopy::default();
        head.start(&[&b"GET /"[..], &[b'a'; 500]].concat());
        assert_eq!(names(&head).1.len(), LEN - 4);
        head.start(b"\x16\x03\x01\xff");
        assert_eq!(names(&head).0, "\\x16\\x03\\x01\\xff");
        head.forget();
        assert_eq!(head.name(), (None, None));
    }
}
