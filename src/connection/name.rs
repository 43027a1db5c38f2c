//! The first bytes of the request in hand, so that a straggler can be named from outside; and what
//! of a request may be shown at all.
//!
//! Reports and logs are read by people who must not learn what a client has sent: a method and a
//! path, escaped, are shown of it and nothing else. No query, no fragment, no user of an absolute
//! form; and nothing of what does not look like a request, as whoever connects to the wrong port may
//! begin with a password.

use std::borrow::Cow;
use std::sync::atomic::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

use http::uri::PathAndQuery;
use http::{Method, Uri};

/// Enough for a method and most paths.
pub(super) const LEN: usize = 64;
const HALF: usize = LEN / 2;
const WORDS: usize = HALF / 8;

/// HTTP/2 hands over whole paths, and methods of any length.
const MOST_SHOWN: usize = 256;

/// Written by the connection's task, read by the driver at the deadline. Words instead of a lock, and a stamp that changes
/// before and after each copy: a reader that meets a writer finds nothing, as a mixture of two requests could show
/// what stands behind the path of one of them (a sequence lock; Boehm, "Can seqlocks get along with programming
/// language memory models?", 2012).
///
/// The first half and the last half of what is copied, which overlap when it is short: so each is
/// copied without a loop.
#[derive(Default)]
pub(super) struct NameCopy {
    first: [AtomicU64; WORDS],
    last: [AtomicU64; WORDS],
    /// One more than there can be: it was longer.
    len: AtomicU8,
    /// Odd while it is written.
    stamp: AtomicU32,
}

/// How often a reader looks that meets a writer.
const LOOKS: usize = 8;

/// Method and path, as far as they are known and may be shown.
pub(super) type Name = (Option<String>, Option<String>);

impl NameCopy {
    #[inline]
    pub(super) fn copy(&self, head: &[u8]) {
        let named = &head[..head.len().min(LEN)];
        let (Some(first), Some(last)) = (named.first_chunk(), named.last_chunk()) else {
            return self.copy_short(named);
        };
        self.begin();
        store(&self.first, first);
        store(&self.last, last);
        self.end(head.len());
    }

    /// Nothing was copied yet.
    pub(super) fn is_empty(&self) -> bool {
        self.len.load(Relaxed) == 0
    }

    #[cold]
    fn copy_short(&self, head: &[u8]) {
        let mut first = [0; HALF];
        first[..head.len()].copy_from_slice(head);
        self.begin();
        store(&self.first, &first);
        self.end(head.len());
    }

    /// There is one writer. One instruction, where processors can add to memory.
    #[inline]
    fn begin(&self) {
        let stamp = self.stamp.load(Relaxed);
        self.stamp.store(stamp.wrapping_add(1), Relaxed);
        // Whoever sees one of the words sees that.
        fence(Release);
    }

    #[inline]
    fn end(&self, n: usize) {
        // It fits.
        let n = u8::try_from(n.min(LEN + 1)).unwrap_or(0);
        self.len.store(n, Relaxed);
        let stamp = self.stamp.load(Relaxed);
        self.stamp.store(stamp.wrapping_add(1), Release);
    }

    /// What was copied, if that is all there was. By the writer, or by who closes: a mixture has that done in stages.
    #[cfg(feature = "serve")]
    pub(super) fn whole(&self) -> Option<Vec<u8>> {
        let is_whole = usize::from(self.len.load(Relaxed)) <= LEN;
        is_whole.then(|| self.copied())
    }

    fn copied(&self) -> Vec<u8> {
        let n = usize::from(self.len.load(Relaxed)).min(LEN);
        let load = |word: &AtomicU64| word.load(Relaxed).to_ne_bytes();
        let mut bytes: Vec<u8> = self.first.iter().flat_map(load).collect();
        if n > HALF {
            bytes.truncate(n - HALF);
            bytes.extend(self.last.iter().flat_map(load));
        }
        bytes.truncate(n);
        bytes
    }

    pub(super) fn name(&self) -> Name {
        for _ in 0..LOOKS {
            let stamp = self.stamp.load(Acquire);
            let copied = self.copied();
            // Behind what was read of the words.
            fence(Acquire);
            if stamp & 1 == 0 && self.stamp.load(Relaxed) == stamp {
                return name_in(&copied);
            }
        }
        (None, None)
    }
}

#[inline]
fn store(words: &[AtomicU64; WORDS], bytes: &[u8; HALF]) {
    for (word, bytes) in words.iter().zip(bytes.chunks_exact(8)) {
        // They are eight.
        let bytes = bytes.try_into().unwrap_or_default();
        word.store(u64::from_ne_bytes(bytes), Relaxed);
    }
}

/// What is kept of a request that is counted apart: enough for its name.
#[derive(Clone)]
pub(super) struct Asked {
    method: Method,
    target: Whither,
}

#[derive(Clone)]
enum Whither {
    Path(PathAndQuery),
    /// Only a `CONNECT` has none, as a rule.
    Other(Box<Uri>),
}

impl Asked {
    #[inline]
    pub(super) fn new(method: &Method, uri: &Uri) -> Self {
        let target = match uri.path_and_query() {
            Some(path) => Whither::Path(path.clone()),
            None => Whither::Other(Box::new(uri.clone())),
        };
        let method = method.clone();
        Self { method, target }
    }

    /// What may be shown of it.
    pub(super) fn name(&self) -> Name {
        let shown = |text: &str| escaped(&text.as_bytes()[..text.len().min(MOST_SHOWN)]);
        let target = self.target();
        let target = Some(&*target).filter(|target| !target.is_empty());
        (Some(shown(self.method.as_str())), target.map(shown))
    }

    /// A head that names the request and holds nothing else of it.
    pub(super) fn head(&self) -> Vec<u8> {
        // The last space tells that the target was not cut off.
        format!("{} {} ", self.method, self.target()).into_bytes()
    }

    /// A path, or where a `CONNECT` goes to, without a user.
    fn target(&self) -> Cow<'_, str> {
        let uri = match &self.target {
            Whither::Path(path) => return path.path().into(),
            Whither::Other(uri) => uri,
        };
        match (uri.host(), uri.port()) {
            (Some(host), Some(port)) if self.method == Method::CONNECT => {
                format!("{host}:{port}").into()
            }
            (Some(host), None) if self.method == Method::CONNECT => host.into(),
            _ => uri.path().into(),
        }
    }
}

/// What may be shown of the bytes that begin a head, if they do: a request line, or the beginning of
/// one (RFC 9112 section 3).
fn name_in(head: &[u8]) -> Name {
    let is_end = |b: &u8| matches!(b, b'\r' | b'\n');
    let start = head.iter().position(|b| !is_end(b)).unwrap_or(head.len());
    let head = &head[start..];
    let line = head.split(is_end).next().unwrap_or_default();
    let mut words = line.splitn(3, |&b| b == b' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return (None, None);
    };
    let version = words.next();
    let is_http = match version {
        Some(version) => version.starts_with(VERSION) || VERSION.starts_with(version),
        None => line.len() == head.len(),
    };
    if !is_http || method.is_empty() || !method.iter().all(|&b| is_token(b)) {
        return (None, None);
    }
    let path = match shown(method, target, version.is_some()) {
        Target::Path(path) => Some(escaped(path)),
        Target::Hidden => None,
        Target::Odd => return (None, None),
    };
    (Some(escaped(method)), path)
}

const VERSION: &[u8] = b"HTTP/";

enum Target<'a> {
    Path(&'a [u8]),
    /// Its path has not come yet, or is none of those that are shown.
    Hidden,
    /// No target of a request.
    Odd,
}

/// The part of a request's target (RFC 9112 section 3.2) that is shown.
fn shown<'a>(method: &[u8], target: &'a [u8], whole: bool) -> Target<'a> {
    if method == b"CONNECT" {
        // While it may go on, what came may be the user, not the host.
        let host = target.rsplit(|&b| b == b'@').next().unwrap_or_default();
        let is_host = |&b: &u8| b.is_ascii_alphanumeric() || b".-_:[]%".contains(&b);
        return if whole && !host.is_empty() && host.iter().all(is_host) {
            Target::Path(host)
        } else {
            Target::Hidden
        };
    }
    match target {
        [b'/', ..] => Target::Path(path(target)),
        b"*" => Target::Path(target),
        _ => absolute(target, whole),
    }
}

fn absolute(target: &[u8], whole: bool) -> Target<'_> {
    let scheme = target.iter().position(|&b| b == b':').unwrap_or_default();
    let is_scheme = |&b: &u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    let Some(rest) = target[scheme..].strip_prefix(b"://") else {
        return Target::Odd;
    };
    if scheme == 0 || !target[..scheme].iter().all(is_scheme) {
        return Target::Odd;
    }
    match rest.iter().position(|b| b"/?#".contains(b)) {
        Some(at) if rest[at] == b'/' => Target::Path(path(&rest[at..])),
        None if !whole => Target::Hidden,
        _ => Target::Path(b"/"),
    }
}

/// Not the query, nor what should not have been sent.
fn path(target: &[u8]) -> &[u8] {
    target
        .split(|b| b"?#".contains(b))
        .next()
        .unwrap_or_default()
}

/// RFC 9110 section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(head: &[u8]) -> (String, String) {
        let copy = NameCopy::default();
        copy.copy(b"GET /of-the-one-before HTTP/1.1\r\nhost: a\r\nuser-agent: b\r\n\r\n");
        copy.copy(head);
        let (method, path) = copy.name();
        (method.unwrap_or_default(), path.unwrap_or_default())
    }

    #[test]
    fn copies_what_there_is_room_for() {
        let head: Vec<u8> = (0..=255).collect();
        for n in 0..=head.len() {
            let copy = NameCopy::default();
            copy.copy(&[b'x'; LEN]);
            copy.copy(&head[..n]);
            let room = n.min(LEN);
            assert_eq!(copy.copied(), head[..room]);
            assert_eq!(copy.whole().is_some(), n <= LEN);
        }
    }

    /// Interleaving: the first half of one request is read, and the last half of the next, which begins behind its `?`.
    #[test]
    fn who_looks_while_it_is_written_finds_no_mixture() {
        let path = "a".repeat(40);
        let one = format!("GET /{path} HTTP/1.1\r\nhost: a\r\n\r\n");
        let other = format!("GET /reset?token={} HTTP/1.1\r\n\r\n", "SECRET".repeat(20));
        let copy = NameCopy::default();
        copy.copy(one.as_bytes());
        std::thread::scope(|scope| {
            let writes = scope.spawn(|| {
                for _ in 0..if cfg!(miri) { 100 } else { 200_000 } {
                    copy.copy(other.as_bytes());
                    copy.copy(one.as_bytes());
                }
            });
            let mut named = 0;
            while !writes.is_finished() {
                let (_, shown) = copy.name();
                let Some(shown) = shown else { continue };
                named += 1;
                assert!(shown == "/reset" || shown[1..] == path, "{shown}");
            }
            println!("measured: named {named} times");
        });
    }

    #[test]
    fn names_a_request_whose_head_was_not_seen() {
        let uri = |uri: &str| Uri::try_from(uri).expect("a URI");
        let head = Asked::new(&Method::DELETE, &uri("http://a/orders/17?x=y")).head();
        assert_eq!(names(&head), ("DELETE".into(), "/orders/17".into()));
        let head = Asked::new(&Method::CONNECT, &uri("user:secret@a:443")).head();
        assert_eq!(names(&head), ("CONNECT".into(), "a:443".into()));
    }

    #[test]
    fn long_heads_are_cut() {
        let head = [&b"GET /"[..], &[b'a'; 500]].concat();
        assert_eq!(names(&head).1.len(), LEN - 4);
    }

    #[test]
    fn shows_a_method_and_a_path_and_nothing_else() {
        let cases: &[(&[u8], &str, &str)] = &[
            (b"GET /a HTTP/1.1\r\nhost: b\r\n", "GET", "/a"),
            (b"\r\n\r\nGET /a HTTP/1.1\r\n", "GET", "/a"),
            (b"GET /a?token=secret HTTP/1.1", "GET", "/a"),
            (b"GET /a#secret?b HTTP/1.1", "GET", "/a"),
            (b"GET /a\xff\x1b[m HTTP/1.1\n", "GET", "/a\\xff\\x1b[m"),
            (b"OPTIONS * HTTP/1.1\r\n", "OPTIONS", "*"),
            (b"PRI * HTTP/2.0\r\n\r\nSM", "PRI", "*"),
            // Absolute form.
            (b"GET http://me:secret@a/b?c HTTP/1.1", "GET", "/b"),
            (b"GET http://me:secret@a HTTP/1.1", "GET", "/"),
            (b"GET http://a?secret/b HTTP/1.1", "GET", "/"),
            (b"GET http://me:secret@a", "GET", ""),
            (b"GET http://", "GET", ""),
            (b"GET http:secret", "", ""),
            (b"GET ://secret", "", ""),
            // Authority form.
            (b"CONNECT a:443 HTTP/1.1\r\n", "CONNECT", "a:443"),
            (b"CONNECT [::1]:443 HTTP/1.1\r\n", "CONNECT", "[::1]:443"),
            (b"CONNECT me:secret@a:443 HTTP/1.1", "CONNECT", "a:443"),
            (b"CONNECT me:secret", "CONNECT", ""),
            (b"CONNECT /secret HTTP/1.1", "CONNECT", ""),
            // Beginnings.
            (b"", "", ""),
            (b"GET", "", ""),
            (b"GET ", "", ""),
            (b"GET /", "GET", "/"),
            (b"GET /a ", "GET", "/a"),
            (b"GET /a HTT", "GET", "/a"),
            // No HTTP at all.
            (b"USER bob\r\nPASS hunter2\r\n", "", ""),
            (b"PASS hunter2", "", ""),
            (b"PASS /hunter2\r\n", "", ""),
            (b"PASS /hunter2 now\r\n", "", ""),
            (b"AUTH *secret", "", ""),
            (b"\x16\x03\x01\x02\x00\x01\x00 /secret", "", ""),
            (b"{\"password\": \"/secret\"}", "", ""),
            (b" /secret", "", ""),
        ];
        for (bytes, method, path) in cases {
            assert_eq!(
                names(bytes),
                ((*method).into(), (*path).into()),
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn shows_of_http2_what_it_shows_of_http1() {
        let name = |method: &str, uri: &str| {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let asked = Asked::new(&method, &Uri::try_from(uri).expect("a URI"));
            let (method, path) = asked.name();
            (method.unwrap_or_default(), path.unwrap_or_default())
        };
        assert_eq!(
            name("GET", "http://me:pw@a/b?c"),
            ("GET".into(), "/b".into())
        );
        assert_eq!(
            name("CONNECT", "me:pw@a:1"),
            ("CONNECT".into(), "a:1".into())
        );
        assert_eq!(name("GET", "/\u{e9}").1, "/\\xc3\\xa9");
        assert_eq!(name("GET", &"/".repeat(500)).1.len(), MOST_SHOWN);
        assert_eq!(name(&"A".repeat(500), "/").0.len(), MOST_SHOWN);
    }
}
