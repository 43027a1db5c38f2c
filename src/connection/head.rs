//! The first bytes of the request in hand, so that a straggler can be named from outside; and what
//! of a request may be shown at all.
//!
//! Reports and logs are read by people who must not learn what a client has sent: a method and a
//! path, escaped, are shown of it and nothing else. No query, no fragment, no user of an absolute
//! form; and nothing of what does not look like a request, as whoever connects to the wrong port may
//! begin with a password.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use http::{Method, Uri};

/// Enough for a method and most paths.
const WORDS: usize = 10;
const LEN: usize = WORDS * 8;

/// HTTP/2 hands over whole paths, and methods of any length.
const MOST_SHOWN: usize = 256;

/// Written by the connection's task, read by the driver at the deadline. Words instead of a lock:
/// a reader that meets a writer may see the bytes of two requests mixed, which spoils a name in a
/// report and nothing else.
#[derive(Default)]
pub(super) struct HeadCopy {
    words: [AtomicU64; WORDS],
    len: AtomicU8,
    /// A head that came behind the one that is named was not copied.
    passed: AtomicBool,
}

/// Method and path, as far as they are known and may be shown.
pub(super) type Name = (Option<String>, Option<String>);

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

    /// The head was not copied, but this is what was in it.
    pub(super) fn request(&self, method: &Method, uri: &Uri) {
        let connect = authority(method, uri);
        let target = connect.as_deref().unwrap_or(uri.path());
        let (mut head, mut n) = ([0; LEN], 0);
        // The last space tells that the target was not cut off.
        for part in [method.as_str(), " ", target, " "] {
            let part = &part.as_bytes()[..part.len().min(LEN - n)];
            head[n..n + part.len()].copy_from_slice(part);
            n += part.len();
        }
        self.start(&head[..n]);
        self.passed.store(false, Relaxed);
    }

    /// The head comes in pieces.
    pub(super) fn append(&self, bytes: &[u8]) {
        let len = usize::from(self.len.load(Relaxed));
        if len < LEN && !self.passed() {
            let mut head = self.bytes();
            head.extend_from_slice(&bytes[..bytes.len().min(LEN - len)]);
            self.start(&head);
        }
    }

    /// A head begins behind a request that is still in hand, whose name stays.
    pub(super) fn pass(&self) {
        self.passed.store(true, Relaxed);
    }

    /// The head that was read last was not copied.
    pub(super) fn passed(&self) -> bool {
        self.passed.load(Relaxed)
    }

    pub(super) fn name(&self) -> Name {
        name_in(&self.bytes())
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

/// What may be shown of an HTTP/2 request.
pub(super) fn name_of(method: &Method, uri: &Uri) -> Name {
    let path = authority(method, uri).unwrap_or_else(|| uri.path().to_owned());
    let shown = |text: &str| escaped(&text.as_bytes()[..text.len().min(MOST_SHOWN)]);
    let path = Some(path).filter(|path| !path.is_empty());
    (Some(shown(method.as_str())), path.as_deref().map(shown))
}

/// Where a `CONNECT` goes to, without a user.
fn authority(method: &Method, uri: &Uri) -> Option<String> {
    let connects = *method == Method::CONNECT && uri.path_and_query().is_none();
    let host = uri.host().filter(|_| connects)?;
    Some(match uri.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
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
    fn names_a_request_whose_head_was_not_copied() {
        let uri = |uri: &str| Uri::try_from(uri).expect("a URI");
        let head = HeadCopy::default();
        head.start(b"GET /first HTTP/1.1\r\n\r\n");
        head.pass();
        head.append(b"GET /second");
        assert_eq!(names(&head), ("GET".into(), "/first".into()));
        head.request(&Method::DELETE, &uri("http://a/orders/17?x=y"));
        assert_eq!(names(&head), ("DELETE".into(), "/orders/17".into()));
        assert!(!head.passed());
        head.request(&Method::CONNECT, &uri("user:secret@a:443"));
        assert_eq!(names(&head), ("CONNECT".into(), "a:443".into()));
        head.request(&Method::GET, &uri(&"/".repeat(500)));
        assert_eq!(names(&head).1.len(), LEN - 4);
    }

    #[test]
    fn long_heads_are_cut() {
        let head = HeadCopy::default();
        head.start(&[&b"GET /"[..], &[b'a'; 500]].concat());
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
            let head = HeadCopy::default();
            head.start(bytes);
            assert_eq!(
                names(&head),
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
            let (method, path) = name_of(&method, &Uri::try_from(uri).expect("a URI"));
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
