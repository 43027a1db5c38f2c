//! HTTP/1 responses as they came.

use std::fmt;

use super::wire::lossy;

/// Names in lower case, in the order in which they came; the values of a name that came more than
/// once are joined by `, `.
pub type Headers = Vec<(String, String)>;

/// One response, an interim (1xx) one as well.
#[derive(Clone)]
pub struct RawResponse {
    pub status: u16,
    /// `HTTP/1.1`, say.
    pub version: String,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub trailers: Headers,
}

impl RawResponse {
    /// The value of a header, all values joined by `, `.
    pub fn header(&self, name: &str) -> Option<&str> {
        let field = self
            .headers
            .iter()
            .find(|(it, _)| it.eq_ignore_ascii_case(name))?;
        Some(&field.1)
    }

    /// Whether `Connection` lists `close`.
    pub fn says_close(&self) -> bool {
        self.connection_says("close")
    }

    /// Whether `Connection` lists `keep-alive`; HTTP/1.1 keeps connections also without.
    pub fn says_keep_alive(&self) -> bool {
        self.connection_says("keep-alive")
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("this body is text")
    }

    fn connection_says(&self, word: &str) -> bool {
        let options = self.header("connection").unwrap_or_default();
        options
            .split(',')
            .any(|option| option.trim().eq_ignore_ascii_case(word))
    }
}

impl fmt::Debug for RawResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            status,
            version,
            headers,
            body,
            trailers,
        } = self;
        write!(
            f,
            "{version} {status} {headers:?}, {} bytes {:?}",
            body.len(),
            lossy(body)
        )?;
        if trailers.is_empty() {
            Ok(())
        } else {
            write!(f, ", trailers {trailers:?}")
        }
    }
}

/// What is still to come of the body of the response read last.
#[derive(Clone, Copy)]
pub(super) enum Framing {
    Length(usize),
    Chunked,
    UntilEof,
}

pub(super) fn parse_head(head: &[u8]) -> RawResponse {
    let head = lossless(head);
    let (first, fields) = head.split_once("\r\n").unwrap_or((&head, ""));
    let mut words = first.splitn(3, ' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|status| status.parse().ok());
    let Some(status) = status.filter(|_| version.starts_with("HTTP/1.")) else {
        panic!("no HTTP/1 status line: {first:?}");
    };
    RawResponse {
        status,
        version: version.to_owned(),
        headers: parse_fields(fields),
        body: Vec::new(),
        trailers: Headers::new(),
    }
}

pub(super) fn parse_fields(fields: &str) -> Headers {
    let mut headers = Headers::new();
    for line in fields.split("\r\n").filter(|line| !line.is_empty()) {
        let (name, value) = line
            .split_once(':')
            .unwrap_or_else(|| panic!("no field: {line:?}"));
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        match headers.iter_mut().find(|(it, _)| *it == name) {
            Some((_, values)) => *values = format!("{values}, {value}"),
            None => headers.push((name, value.to_owned())),
        }
    }
    headers
}

pub(super) fn framing(response: &RawResponse) -> Framing {
    if matches!(response.status, 100..=199 | 204 | 304) {
        return Framing::Length(0);
    }
    if response
        .header("transfer-encoding")
        .is_some_and(|coding| coding.ends_with("chunked"))
    {
        return Framing::Chunked;
    }
    response
        .header("content-length")
        .map_or(Framing::UntilEof, |length| {
            Framing::Length(
                length
                    .parse()
                    .unwrap_or_else(|_| panic!("no length: {length:?}")),
            )
        })
}

pub(super) fn lossless(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("our own heads and trailers are UTF-8")
}
