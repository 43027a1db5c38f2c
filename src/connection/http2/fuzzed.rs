//! Frames and the sieve, in any pieces, against models that keep everything.

use std::time::Duration;

use tokio::io::ReadBuf;

use super::frames::{CONTINUATION, Frame, Frames, GOAWAY, HEADERS, WINDOW_UPDATE};
use super::pong::{PONG, Sieve};
use crate::clock::Moment;
use crate::config::Config;
use crate::fuzz::input::Input;

/// What can be told of all that was read of a direction.
#[derive(Debug, Default, PartialEq, Eq)]
struct Naive {
    told: Vec<Frame>,
    between: bool,
    between_any: bool,
    past_payload: bool,
}

impl Naive {
    fn of(mut all: &[u8]) -> Self {
        let (mut told, mut past_payload) = (Vec::<Frame>::new(), true);
        let between = loop {
            let Some((&[a, b, c, kind, flags, ref stream @ ..], behind)) =
                all.split_first_chunk::<9>()
            else {
                break all.is_empty();
            };
            let payload = usize::try_from(u32::from_be_bytes([0, a, b, c])).expect("24 bits");
            let stream = if kind == GOAWAY && payload >= 4 {
                behind.first_chunk()
            } else {
                Some(stream)
            };
            let Some(stream) = stream else {
                break false;
            };
            told.push(Frame {
                kind,
                flags,
                stream: u32::from_be_bytes(*stream) & 0x7fff_ffff,
            });
            past_payload = behind.len() >= payload;
            if !past_payload {
                break false;
            }
            all = &behind[payload..];
        };
        let in_head = told
            .last()
            .is_some_and(|last| matches!(last.kind, 1 | 9) && last.flags & 4 == 0);
        Self {
            told,
            between,
            between_any: between && !in_head,
            past_payload,
        }
    }
}

/// Bytes that look like frames, more often than by chance: some of short ones, or anything.
fn some(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    match input.below(4) {
        0 | 1 => {
            let (mut payload, kind) = (input.below(14), input.below(12));
            if input.one_in(16) {
                // Of a length that does not fit a byte, or that is not to come.
                payload = [255, 256, 300, 0xff_ffff][input.below(4)];
            }
            let [_, a, b, c] = u32::try_from(payload).unwrap_or(0).to_be_bytes();
            let header = [kind, input.below(256)].map(|n| u8::try_from(n).unwrap_or(0));
            bytes.extend([a, b, c, header[0], header[1]]);
            let stream = if input.one_in(8) {
                [0, 2, u32::MAX >> 1, 1 << 31 | 1][input.below(4)]
            } else {
                input.byte().into()
            };
            bytes.extend(stream.to_be_bytes());
            let comes = input.take(payload.min(14));
            bytes.extend(comes);
            // The rest is nothing that has to be read from the input.
            bytes.extend(vec![7; payload.min(300) - comes.len().min(payload)]);
        }
        2 => bytes.extend(PONG),
        _ => {
            let n = input.below(20);
            bytes.extend(input.take(n));
        }
    }
    if input.one_in(6) {
        let n = input.below(bytes.len() + 1);
        bytes.truncate(n);
    }
    bytes
}

/// Frames as they pass, in any pieces.
pub(crate) fn frames(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut frames, mut all, mut told) = (Frames::default(), Vec::new(), Vec::new());
    let by_steps = input.one_in(2);
    while !input.is_empty() {
        let bytes = some(&mut input);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let n = 1 + input.below(rest.len());
            let piece = if n == 1 { rest } else { &rest[..n - 1] };
            rest = &rest[piece.len()..];
            all.extend_from_slice(piece);
            if by_steps {
                let mut piece = piece;
                while !piece.is_empty() {
                    let (n, frame) = frames.step(piece);
                    told.extend(frame);
                    piece = &piece[n..];
                }
            } else {
                frames.feed(piece, |frame| told.push(frame));
            }
            let said = Naive {
                told: told.clone(),
                between: frames.is_between(),
                between_any: frames.is_between_any(),
                past_payload: frames.is_past_payload(),
            };
            assert_eq!(said, Naive::of(&all), "after {}", all.escape_ascii());
        }
    }
}

/// All that was done with a sieve.
#[derive(Debug, Default)]
struct Sifted {
    /// What it came behind, and then what was fed.
    all: Vec<u8>,
    /// How long that was at first, when the acknowledgment was released, and when it was given up.
    behind: usize,
    released: Option<usize>,
    given_up: Option<usize>,
}

impl Sifted {
    /// Where the one begins that is held back.
    fn held(&self) -> Option<usize> {
        let most = self.given_up.unwrap_or(self.all.len());
        (self.behind..(most + 1).saturating_sub(PONG.len()))
            .find(|&at| self.all[at..].starts_with(&PONG) && Naive::of(&self.all[..at]).between)
    }

    /// How many of the last bytes may be its beginning.
    fn kept(&self) -> usize {
        if self.held().is_some() || self.given_up.is_some() {
            return 0;
        }
        let least = (self.all.len() + 1).saturating_sub(PONG.len());
        (least.max(self.behind)..self.all.len())
            .find(|&at| PONG.starts_with(&self.all[at..]) && Naive::of(&self.all[..at]).between)
            .map_or(0, |at| self.all.len() - at)
    }

    /// What has come through, and whether it is all.
    fn through(&self) -> (Vec<u8>, bool) {
        let mut all = self.all.clone();
        let held = self.held();
        let mut from = self.given_up;
        if let Some(at) = held {
            all.drain(at..at + PONG.len());
            from = self.released.map(|from| from - PONG.len());
        }
        let at =
            from.and_then(|from| (from..=all.len()).find(|&at| Naive::of(&all[..at]).between_any));
        all.truncate(all.len() - self.kept());
        if let Some(at) = at {
            let behind = all.split_off(at);
            let behind = without_late_updates(&behind, highest(&all));
            all.extend([&PONG[..], &behind].concat());
        }
        all.drain(..self.behind);
        (all, at.is_some())
    }
}

/// Of those that the peer's heads have opened.
fn highest(frames: &[u8]) -> u32 {
    let opened = Naive::of(frames).told.into_iter();
    let opened = opened.filter(|it| it.kind == HEADERS && it.stream % 2 == 1);
    opened.map(|it| it.stream).max().unwrap_or(0)
}

/// What is between two frames, without window updates of streams above that one, and without what may become one.
fn without_late_updates(mut frames: &[u8], highest: u32) -> Vec<u8> {
    let (mut left, mut in_head) = (Vec::new(), false);
    while let Some((&[a, b, c, kind, flags, ref stream @ ..], payload)) =
        frames.split_first_chunk::<9>()
    {
        let stream = u32::from_be_bytes(*stream) & (u32::MAX >> 1);
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let (this, rest) = frames.split_at(9 + length.min(payload.len()));
        if in_head || kind != WINDOW_UPDATE || stream <= highest {
            left.extend_from_slice(this);
        }
        in_head = matches!(kind, HEADERS | CONTINUATION) && flags & 4 == 0;
        frames = rest;
    }
    left
}

/// The acknowledgment is held back, comes behind what comes behind it; window updates of later streams are left out then, and
/// nothing else is touched.
pub(crate) fn sieve(data: &[u8]) {
    let mut input = Input::new(data);
    let config = Config::default();
    let mut sifted = Sifted {
        all: some(&mut input),
        ..Sifted::default()
    };
    sifted.behind = sifted.all.len();
    let mut at = Frames::default();
    at.feed(&sifted.all, |_| {});
    let mut sieve = Sieve::new(&at, highest(&sifted.all));
    let (mut now, mut through) = (Moment::START, Vec::new());
    // When the last bytes came, and those that were the first with it.
    let (mut last, mut first) = (Moment::START, None);
    // `through` is worked out anew for each byte.
    while !input.is_empty() && sifted.all.len() < 1_000 {
        match input.below(8) {
            0 => now = now.after(Duration::from_millis(input.below(1_200) as u64)),
            1 => {
                let (due, at_last) = match first {
                    Some(first) => (
                        config.settle,
                        Moment::after(first, config.stall_timeout.min(Duration::from_secs(1))),
                    ),
                    None => (Duration::ZERO, Moment::NEVER),
                };
                let due = last.after(due).min(at_last);
                let is_held = sifted.held().is_some() && sifted.released.is_none();
                assert_eq!(sieve.is_due(now), is_held && now >= due, "{sifted:?}");
                let expected = (is_held && now < due).then_some(due);
                assert_eq!(sieve.quiet(now), expected, "{sifted:?}");
                if is_held && now >= due {
                    sifted.released = Some(sifted.all.len());
                }
            }
            2 if sieve.missed_since(now).is_some() => {
                assert_eq!((sifted.held(), sifted.given_up), (None, None), "{sifted:?}");
                sieve.give_up();
                sifted.given_up = Some(sifted.all.len());
            }
            3 => {
                let mut part = [0; 20];
                let room = input.below(part.len() + 1);
                let mut buf = ReadBuf::new(&mut part[..room]);
                assert_eq!(sieve.give(&mut buf), !buf.filled().is_empty());
                through.extend_from_slice(buf.filled());
            }
            _ => {
                let bytes = some(&mut input);
                if bytes.is_empty() {
                    continue;
                }
                sieve.feed(&bytes, now, &config);
                sifted.all.extend(bytes);
                last = now;
                if sifted.held().is_some() {
                    first.get_or_insert(now);
                }
            }
        }
        assert_eq!(sieve.has_begun(), sifted.kept() > 0, "{sifted:?}");
    }
    let mut part = [0; 7];
    loop {
        let mut buf = ReadBuf::new(&mut part);
        if !sieve.give(&mut buf) {
            break;
        }
        through.extend_from_slice(buf.filled());
    }
    let (expected, released) = sifted.through();
    assert_eq!(through, expected, "{sifted:?}");
    assert_eq!(sieve.is_released(), released, "{sifted:?}");
}
