//! Records in any pieces, against a model that keeps everything and looks at it anew.

use super::{Records, SOUGHT};
use crate::fuzz::input::Input;

/// What a socket has read, and when HTTP began in it.
#[derive(Debug, Default)]
struct Naive {
    all: Vec<u8>,
    /// The ends of the pieces.
    ends: Vec<usize>,
    http: Option<(usize, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Unknown,
    /// From there on it may be TLS.
    Seeking(usize),
    /// Within a record or not, after so many.
    Tls(bool, usize),
    Plain,
    Veiled,
}

/// A `ClientHello` of which this much has come, or a `ChangeCipherSpec`.
fn may_begin(bytes: &[u8]) -> bool {
    let all = |patterns: &[fn(u8) -> bool]| {
        let mut pairs = bytes.iter().zip(patterns);
        pairs.all(|(byte, fits)| fits(*byte))
    };
    let hello: [fn(u8) -> bool; 11] = [
        |b| b == 22,
        |b| b == 3,
        |b| b <= 4,
        |_| true,
        |_| true,
        |b| b == 1,
        |b| b == 0,
        |_| true,
        |_| true,
        |b| b == 3,
        |b| b <= 4,
    ];
    let spec: [fn(u8) -> bool; 6] = [
        |b| b == 20,
        |b| b == 3,
        |b| b <= 4,
        |b| b == 0,
        |b| b == 1,
        |b| b == 1,
    ];
    let lengths = bytes.len() < 9 || {
        let of = |at: usize| usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1]);
        (6..=18_432.min(4 + of(7))).contains(&of(3))
    };
    all(&hello) && lengths || bytes.len() <= spec.len() && all(&spec)
}

impl Naive {
    fn at(&self) -> At {
        match &self.http {
            None => self.before_http(self.all.len()),
            Some((begins, plaintext)) => {
                let tail = [&[0; 4], &self.all[..*begins]].concat();
                let passed = plaintext.ends_with(&tail[tail.len() - 4..]);
                match self.before_http(*begins) {
                    At::Plain | At::Veiled => At::Veiled,
                    _ if passed => At::Plain,
                    At::Tls(_, 3..) if *begins != plaintext.len() => {
                        match self.followed(self.all.len(), *begins) {
                            At::Tls(half, n) => At::Tls(half, n),
                            _ => At::Veiled,
                        }
                    }
                    _ => At::Veiled,
                }
            }
        }
    }

    fn before_http(&self, end: usize) -> At {
        for end in self
            .ends
            .iter()
            .filter(|it| **it <= end && **it > SOUGHT as usize)
        {
            if matches!(self.followed(*end, usize::MAX), At::Seeking(_)) {
                return At::Veiled;
            }
        }
        self.followed(end, usize::MAX)
    }

    /// Behind the beginning of HTTP it is not sought again.
    fn followed(&self, end: usize, http: usize) -> At {
        let all = &self.all[..end];
        let (mut at, mut tls, mut found) = match all.first() {
            None => return At::Unknown,
            Some(20..=24) => (0, true, 3),
            Some(_) => (0, false, 0),
        };
        loop {
            if !tls {
                // The first that may be it, and is or has not all come.
                let seen = |from: usize| &all[from..all.len().min(from + 11)];
                let begins = (at..all.len()).find(|&from| {
                    let is_spec =
                        all.len() >= from + 6 && may_begin(&all[from..from + 6]) && all[from] == 20;
                    is_spec || may_begin(seen(from))
                });
                let Some(from) = begins else {
                    return At::Seeking(all.len());
                };
                let needs = if all[from] == 20 { 6 } else { 11 };
                if all.len() < from + needs {
                    return At::Seeking(from);
                }
                (at, tls, found) = (from, true, 0);
            }
            let Some(&[kind, major, _, a, b]) = all[at..].first_chunk() else {
                return At::Tls(at < all.len(), found.min(3));
            };
            let length = usize::from(a) << 8 | usize::from(b);
            if !(20..=24).contains(&kind) || major != 3 || length > 18_432 {
                if at + 5 > http {
                    return At::Veiled;
                }
                tls = false;
                continue;
            }
            found += 1;
            if all.len() < at + 5 + length {
                return At::Tls(true, found.min(3));
            }
            at += 5 + length;
        }
    }

    fn is_half(&self) -> bool {
        match self.at() {
            At::Unknown | At::Plain | At::Veiled => false,
            At::Seeking(from) => self.all.len() >= from + 5,
            At::Tls(half, _) => half,
        }
    }
}

fn some(input: &mut Input<'_>) -> Vec<u8> {
    match input.below(8) {
        0..=2 => {
            let (mut kind, n) = (20 + input.below(5), input.below(40));
            let mut major = 3;
            if input.one_in(16) {
                // Next to one.
                (kind, major) = [(19, 3), (25, 3), (23, 2), (22, 4)][input.below(4)];
            }
            let length = if input.one_in(8) {
                input.below(20_000)
            } else {
                n
            };
            let mut record = vec![u8::try_from(kind).expect("small"), major, 3];
            record.extend(u16::try_from(length).expect("small").to_be_bytes());
            record.extend(input.take(n));
            record
        }
        3 | 4 => {
            let mut rest = u16::from(input.byte());
            if input.one_in(8) {
                // Around the longest there is, or any.
                rest = if input.one_in(2) {
                    18_424 + rest % 16
                } else {
                    rest << 8 | u16::from(input.byte())
                };
            }
            let message = rest.saturating_add(2);
            let mut record = message.saturating_add(4);
            if input.one_in(4) {
                record = [5, 6, record - 1, record.saturating_add(1)][input.below(4)];
            }
            let mut version = || if input.one_in(16) { input.byte() } else { 3 };
            let (major, minor) = (version(), version());
            let ([a, b], [c, d]) = (record.to_be_bytes(), message.to_be_bytes());
            let mut hello = vec![22, 3, 1, a, b, 1, 0, c, d, major, minor];
            hello.extend(input.take(rest.into()));
            hello
        }
        5 => vec![20, 3, 3, 0, 1, 1],
        _ => {
            let n = input.below(30);
            let mut bytes = input.take(n).to_vec();
            if input.one_in(64) {
                bytes.extend(vec![7; 40_000]);
            }
            bytes
        }
    }
}

/// Whether what was read ends within a TLS record, whatever came before TLS, if any did.
pub(crate) fn records(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut records, mut naive) = (Records::default(), Naive::default());
    while !input.is_empty() && naive.all.len() < 200_000 {
        if naive.http.is_none() && input.one_in(8) {
            let mut plaintext = match input.below(4) {
                0 => Vec::new(),
                1 => b"xyz".to_vec(),
                _ => naive.all[input.below(naive.all.len().min(60_000) + 1)..].to_vec(),
            };
            if input.one_in(4) {
                plaintext.push(input.byte());
            }
            records.http_begins(&plaintext);
            naive.http = Some((naive.all.len(), plaintext));
        } else {
            let bytes = some(&mut input);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let n = 1 + input.below(rest.len());
                let piece = if n == 1 { rest } else { &rest[..n - 1] };
                rest = &rest[piece.len()..];
                records.feed(piece);
                naive.all.extend_from_slice(piece);
                naive.ends.push(naive.all.len());
                assert_eq!(
                    records.are_half(),
                    naive.is_half(),
                    "{naive:?}, {records:?}"
                );
            }
        }
        let at = naive.at();
        assert_eq!(
            records.are_half(),
            naive.is_half(),
            "{at:?}, {naive:?}, {records:?}"
        );
        assert_eq!(records.are_plain(), at == At::Plain, "{at:?}, {naive:?}");
        assert_eq!(
            records.are_none(),
            matches!(at, At::Plain | At::Veiled),
            "{at:?}, {naive:?}"
        );
        let before = naive.http.as_ref().map_or(naive.all.len(), |http| http.0);
        assert_eq!(records.have_begun(), before > 0);
    }
}
