//! Holds back the acknowledgment of the PING that is sent between the two GOAWAYs.
//!
//! "After allowing time for any in-flight stream creation (at least one round-trip time), the
//! server MAY send another GOAWAY frame with an updated last stream identifier" (RFC 9113 section
//! 6.8). h2 takes the acknowledgment for the end of that time. But its own client, and so every one
//! built on hyper, writes it *before* the heads of requests that it had queued, whose streams would
//! then be refused. Given to h2 a little later, it comes behind them.
//!
//! Behind the last GOAWAY h2 ignores what comes of later streams, but for window updates: of a stream that it has ignored it takes
//! one for an error of the connection, which ends every stream in flight (0.4.20, `recv_window_update`). Some clients send one behind
//! each head. So they are left out.

use std::time::Duration;

use tokio::io::ReadBuf;

use super::frames::{Frame, Frames, SHORT, WINDOW_UPDATE};
use crate::clock::Moment;
use crate::config::Config;

/// The acknowledgment of the PING that h2 sends with its first GOAWAY: the payload is its own (h2
/// `frame/ping.rs`). Should that change, then nothing is held back.
pub(super) const PONG: [u8; 17] = [
    0, 0, 8, 6, 1, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54,
];

/// Lets frames through, except for that one until it is released, and from then on for window updates of streams that came too late.
#[derive(Debug)]
pub(in super::super) struct Sieve {
    /// Where in the frames we are, but for what is kept.
    at: Frames,
    /// How many bytes were kept because the frame that they begin may be the one.
    kept: usize,
    pong: Pong,
    /// Since when it is missed.
    since: Option<Moment>,
    /// When it is to be released, unless more comes in; and even then.
    due: Moment,
    at_last: Moment,
    /// Something was waited for beyond that, as nobody had been there to read it.
    waited: bool,
    /// What was let through and not taken yet.
    through: Vec<u8>,
    /// The highest stream of those whose heads were let through, ahead of the acknowledgment: behind it, the last that h2 knows.
    highest: u32,
    /// Behind that: of the header of a frame what there is, and whether the payload is left out.
    header: Vec<u8>,
    is_left_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pong {
    Awaited,
    Held,
    /// To be put in where the frame at hand ends.
    Due,
    Released,
}

/// For how long it is held, at most: until then h2 sends no PING of its user's, whose own patience is longer (20 seconds by
/// default in hyper).
const LONGEST: Duration = Duration::from_secs(1);

impl Sieve {
    /// For what comes behind `at`, and a stream as the highest.
    pub(super) fn new(at: &Frames, highest: u32) -> Self {
        Self {
            at: at.clone(),
            kept: 0,
            pong: Pong::Awaited,
            since: None,
            due: Moment::NEVER,
            at_last: Moment::NEVER,
            waited: false,
            through: Vec::new(),
            highest,
            header: Vec::new(),
            is_left_out: false,
        }
    }

    /// Bytes came in.
    pub(in super::super) fn feed(&mut self, bytes: &[u8], now: Moment, config: &Config) {
        self.sift(bytes);
        if self.pong != Pong::Awaited {
            // While more comes there may be a head in it; but not without end.
            self.at_last = self
                .at_last
                .min(now.after(config.stall_timeout.min(LONGEST)));
            self.due = now.after(config.settle).min(self.at_last);
        }
    }

    fn sift(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.at.is_between() && self.pong == Pong::Awaited {
                let alike = PONG[self.kept..].iter().zip(bytes);
                let n = alike.take_while(|(a, b)| a == b).count();
                self.kept += n;
                bytes = &bytes[n..];
                if self.kept == PONG.len() {
                    self.kept = 0;
                    self.pong = Pong::Held;
                    continue;
                }
                if bytes.is_empty() {
                    return;
                }
                self.let_go_of_kept();
            }
            if self.pong == Pong::Released && self.at.is_between() {
                bytes = self.begin(bytes);
                continue;
            }
            let (n, frame) = self.at.step(bytes);
            if self.pong != Pong::Released {
                let head = frame.filter(|it| it.opens_above(self.highest));
                self.highest = head.map_or(self.highest, |it| it.stream);
            }
            if !self.is_left_out {
                self.through.extend_from_slice(&bytes[..n]);
            }
            bytes = &bytes[n..];
            if self.pong == Pong::Due {
                self.release();
            }
        }
    }

    /// The header of a frame behind the acknowledgment: kept until it is whole. Gives what is behind it.
    fn begin<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (more, rest) = bytes.split_at(bytes.len().min(SHORT - self.header.len()));
        self.header.extend_from_slice(more);
        if self.header.len() == SHORT {
            let in_head = !self.at.is_between_any();
            let (_, frame) = self.at.step(&self.header);
            let is_late = |it: Frame| it.kind == WINDOW_UPDATE && it.stream > self.highest;
            self.is_left_out = !in_head && frame.is_some_and(is_late);
            if !self.is_left_out {
                self.through.extend_from_slice(&self.header);
            }
            self.header.clear();
        }
        rest
    }

    /// It is to be released, unless something has come that could not be read yet.
    pub(in super::super) fn is_due(&self, now: Moment) -> bool {
        self.pong == Pong::Held && now >= self.due
    }

    /// Something has. It is waited for, but not without end.
    pub(in super::super) fn waits_for_more(&mut self, now: Moment) -> bool {
        now < self.at_last || !std::mem::replace(&mut self.waited, true)
    }

    /// For how long it waits for the rest of what has begun to come.
    pub(in super::super) fn at_last(&self) -> Moment {
        self.at_last
    }

    /// Since when it is missed, counted from the first time this is asked. `None` if it is not.
    pub(in super::super) fn missed_since(&mut self, now: Moment) -> Option<Moment> {
        (self.pong == Pong::Awaited).then(|| *self.since.get_or_insert(now))
    }

    /// It may have begun to come.
    pub(super) fn has_begun(&self) -> bool {
        self.kept > 0
    }

    /// It is not waited for any longer: h2 is given one, behind what has begun.
    pub(super) fn give_up(&mut self) {
        self.let_go_of_kept();
        self.release();
    }

    /// What was kept is no acknowledgment, or is not to be one.
    fn let_go_of_kept(&mut self) {
        // Less than a frame.
        let kept = &PONG[..std::mem::take(&mut self.kept)];
        self.at.feed(kept, |_| {});
        self.through.extend_from_slice(kept);
    }

    /// Nothing came in. If it is held, gives when it is to be released, or does so.
    pub(in super::super) fn quiet(&mut self, now: Moment) -> Option<Moment> {
        if self.pong != Pong::Held {
            return None;
        }
        if now < self.due {
            return Some(self.due);
        }
        self.release();
        None
    }

    /// Lets it through, as soon as no other frame is half through, nor a head.
    fn release(&mut self) {
        self.pong = if self.at.is_between_any() {
            self.through.extend_from_slice(&PONG);
            Pong::Released
        } else {
            Pong::Due
        };
    }

    /// Gives what was let through, as far as there is room. False if there is nothing.
    pub(in super::super) fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let n = buf.remaining().min(self.through.len());
        buf.put_slice(&self.through[..n]);
        self.through.drain(..n);
        n > 0
    }

    /// It leaves out no more than window updates, and nothing is kept of one.
    pub(in super::super) fn is_open(&self) -> bool {
        self.pong == Pong::Released && self.header.is_empty() && self.is_empty()
    }

    /// Whether all of the last so many bytes were let through, which came to an open one: then they are not to be given again.
    pub(in super::super) fn has_passed(&mut self, n: usize) -> bool {
        let all = self.through.len() == n;
        if all {
            self.through.clear();
        }
        all
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.through.is_empty()
    }
}

#[cfg(test)]
impl Sieve {
    pub(super) fn is_released(&self) -> bool {
        self.pong == Pong::Released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW_UPDATE: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    const DATA: &[u8] = &[0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 0, 8, 6, 1];
    const OTHER_PONG: &[u8] = &[0, 0, 8, 6, 1, 0, 0, 0, 0, 0x0b, 0x7b, 0, 0, 0, 0, 0, 0];

    fn taken(sieve: &mut Sieve) -> Vec<u8> {
        let mut all = Vec::new();
        let mut part = [0; 3];
        loop {
            let mut buf = ReadBuf::new(&mut part);
            if !sieve.give(&mut buf) {
                return all;
            }
            all.extend_from_slice(buf.filled());
        }
    }

    fn is_done(sieve: &Sieve) -> bool {
        sieve.is_released() && sieve.is_empty()
    }

    #[test]
    fn leaves_out_the_one_in_any_pieces() {
        let others = [WINDOW_UPDATE, OTHER_PONG, DATA, DATA, OTHER_PONG].concat();
        for before in [0, 13, 30, 44, 58] {
            let all = [&others[..before], &PONG, &others[before..]].concat();
            for piece in 1..=all.len() {
                let mut sieve = Sieve::new(&Frames::default(), 0);
                all.chunks(piece).for_each(|bytes| sieve.sift(bytes));
                assert_eq!(taken(&mut sieve), others, "at {before}, pieces of {piece}");
                assert_eq!(sieve.pong, Pong::Held);
                sieve.release();
                assert!(!sieve.is_empty());
                assert_eq!(taken(&mut sieve), PONG);
                assert!(is_done(&sieve));
            }
        }
    }

    /// Whoever patiently waits for its clients pings them as well, which h2 does not do meanwhile.
    #[test]
    fn is_not_held_for_as_long_as_a_client_is_waited_for() {
        let config = Config {
            stall_timeout: Duration::from_secs(30),
            ..Config::default()
        };
        let mut sieve = Sieve::new(&Frames::default(), 0);
        sieve.feed(&PONG, Moment::START, &config);
        for ms in (0..1_000).step_by(10) {
            let now = Moment::START.after(Duration::from_millis(ms));
            sieve.feed(WINDOW_UPDATE, now, &config);
            assert!(!sieve.is_due(now), "{ms}");
        }
        assert!(sieve.is_due(Moment::START.after(LONGEST)));
    }

    #[test]
    fn is_put_back_between_two_frames() {
        for cut in 1..DATA.len() {
            let mut sieve = Sieve::new(&Frames::default(), 0);
            sieve.sift(&PONG);
            sieve.sift(&DATA[..cut]);
            sieve.release();
            sieve.sift(&DATA[cut..]);
            sieve.sift(WINDOW_UPDATE);
            assert_eq!(taken(&mut sieve), [DATA, &PONG, WINDOW_UPDATE].concat());
            assert!(is_done(&sieve));
        }
    }

    #[test]
    fn is_not_put_into_a_head() {
        let head = [0, 0, 2, 1, 1, 0, 0, 0, 3, 9, 9];
        let more = [0, 0, 1, 9, 0, 0, 0, 0, 3, 9];
        let last = [0, 0, 1, 9, 4, 0, 0, 0, 3, 9];
        let whole = [&head[..], &more, &last].concat();
        for cut in 1..whole.len() {
            let mut sieve = Sieve::new(&Frames::default(), 0);
            sieve.sift(&PONG);
            sieve.sift(&whole[..cut]);
            sieve.release();
            sieve.sift(&whole[cut..]);
            sieve.sift(WINDOW_UPDATE);
            let all = [&whole[..], &PONG, WINDOW_UPDATE].concat();
            assert_eq!(taken(&mut sieve), all, "cut at {cut}");
            assert!(is_done(&sieve));
        }
    }

    #[test]
    fn is_given_up_behind_a_head_that_has_begun() {
        let head = [0, 0, 2, 1, 1, 0, 0, 0, 3, 9, 9];
        let last = [0, 0, 1, 9, 4, 0, 0, 0, 3, 9];
        for cut in 1..=head.len() {
            let mut at = Frames::default();
            at.feed(&head[..cut], |_| {});
            let mut sieve = Sieve::new(&at, 0);
            sieve.give_up();
            sieve.sift(&head[cut..]);
            sieve.sift(&last);
            let all = [&head[cut..], &last, &PONG].concat();
            assert_eq!(taken(&mut sieve), all, "cut at {cut}");
        }
    }

    #[test]
    fn is_given_up_behind_what_may_have_been_its_beginning() {
        for cut in 1..PONG.len() {
            let mut sieve = Sieve::new(&Frames::default(), 0);
            sieve.sift(&PONG[..cut]);
            assert!(sieve.has_begun() && taken(&mut sieve).is_empty());
            sieve.give_up();
            sieve.sift(&PONG[cut..]);
            sieve.sift(WINDOW_UPDATE);
            let all = [&PONG[..], &PONG, WINDOW_UPDATE].concat();
            assert_eq!(taken(&mut sieve), all, "cut at {cut}");
            assert!(is_done(&sieve));
        }
    }

    #[test]
    fn begins_within_a_frame() {
        for cut in 1..DATA.len() {
            let mut at = Frames::default();
            at.feed(&DATA[..cut], |_| {});
            let mut sieve = Sieve::new(&at, 0);
            sieve.sift(&DATA[cut..]);
            sieve.sift(&PONG);
            sieve.sift(WINDOW_UPDATE);
            assert_eq!(taken(&mut sieve), [&DATA[cut..], WINDOW_UPDATE].concat());
            assert_eq!(sieve.pong, Pong::Held);
        }
    }

    #[test]
    fn waits_for_quiet_but_not_without_end() {
        let at = |ms| Moment::START.after(Duration::from_millis(ms));
        let config = Config::default();
        let mut sieve = Sieve::new(&Frames::default(), 0);
        sieve.feed(WINDOW_UPDATE, at(0), &config);
        assert_eq!(sieve.quiet(at(0)), None);
        sieve.feed(&PONG, at(10), &config);
        assert_eq!(sieve.quiet(at(10)), Some(at(35)));
        sieve.feed(DATA, at(30), &config);
        assert_eq!(sieve.quiet(at(35)), Some(at(55)));
        sieve.feed(DATA, at(1_000), &config);
        assert_eq!(sieve.quiet(at(1_009)), Some(at(1_010)));
        assert_eq!(sieve.quiet(at(1_010)), None);
        taken(&mut sieve);
        assert!(is_done(&sieve));
    }

    #[test]
    fn is_missed_from_when_that_is_first_asked_until_it_comes() {
        let at = |ms| Moment::START.after(Duration::from_millis(ms));
        let mut sieve = Sieve::new(&Frames::default(), 0);
        assert_eq!(sieve.missed_since(at(5)), Some(at(5)));
        sieve.feed(&PONG[..9], at(6), &Config::default());
        assert_eq!(sieve.missed_since(at(7)), Some(at(5)));
        sieve.feed(&PONG[9..], at(8), &Config::default());
        assert_eq!(sieve.missed_since(at(9)), None);
    }

    #[test]
    fn waits_for_more_once_beyond_its_time() {
        let at = |ms| Moment::START.after(Duration::from_millis(ms));
        let mut sieve = Sieve::new(&Frames::default(), 0);
        sieve.feed(&PONG, at(0), &Config::default());
        assert_eq!(sieve.at_last(), at(1_000));
        assert!(sieve.waits_for_more(at(999)) && sieve.waits_for_more(at(999)));
        assert!(sieve.waits_for_more(at(1_000)));
        assert!(!sieve.waits_for_more(at(1_000)));
    }

    #[test]
    fn leaves_out_window_updates_of_streams_that_come_behind_it() {
        let head = |stream: u8| [0, 0, 1, 1, 5, 0, 0, 0, stream, 9];
        let update = |stream: u8| [0, 0, 4, 8, 0, 0, 0, 0, stream, 0, 0, 0, 9];
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let empty = [0, 0, 0, 8, 0, 0, 0, 0, 7];
        let before = [&head(3)[..], &update(9)].concat();
        let behind = [
            (&head(5)[..], true),
            (&update(5), false),
            (&update(3), true),
            (&update(1), true),
            (&goaway, true),
            (&empty, false),
            (&empty, false),
            (&update(0), true),
            (DATA, true),
        ];
        let of = |left_out: bool| {
            let frames = behind.iter().filter(|it| it.1 || left_out);
            frames.map(|it| it.0).collect::<Vec<_>>().concat()
        };
        let all = of(true);
        for piece in 1..=all.len() {
            let mut sieve = Sieve::new(&Frames::default(), 1);
            sieve.sift(&before);
            sieve.sift(&PONG);
            sieve.release();
            all.chunks(piece).for_each(|bytes| sieve.sift(bytes));
            let expected = [&before[..], &PONG, &of(false)].concat();
            assert_eq!(taken(&mut sieve), expected, "pieces of {piece}");
        }
    }
}
