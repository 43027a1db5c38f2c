//! What a client understands of what it reads.

use std::collections::BTreeMap;

/// How its reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    End,
    Reset,
}

/// One of HTTP/1.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a word of its own")]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Without what may differ: the date, and what it says of the connection.
    pub(crate) head: Vec<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) whole: bool,
    pub(crate) closes: bool,
    pub(crate) http10: bool,
    pub(crate) chunked: bool,
    pub(crate) by_close: bool,
}

/// Whether a head was there, and what is behind its answer.
fn one(bytes: &[u8], ends: Option<Ends>) -> Option<(Answer, &[u8])> {
    let end = bytes.windows(4).position(|it| it == b"\r\n\r\n")?;
    let (head, rest) = (&bytes[..end], &bytes[end + 4..]);
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
    let value = |name| headers.iter().find(|it| it.0 == name).map(|it| it.1);
    let has_body = status >= 200 && status != 204 && value("x-head").is_none();
    let chunked = has_body && value("transfer-encoding").is_some();
    let length = value("content-length").and_then(|it| it.parse().ok());
    let by_close = has_body && !chunked && length.is_none();
    let (body, rest, whole) = if !has_body {
        (Vec::new(), rest, true)
    } else if chunked {
        unchunk(rest)
    } else if let Some(length) = length {
        let n = rest.len().min(length);
        (rest[..n].to_vec(), &rest[n..], n == length)
    } else {
        (rest.to_vec(), &rest[rest.len()..], ends == Some(Ends::End))
    };
    let answer = Answer {
        status,
        head: std::iter::once(status_line.to_owned())
            .chain(
                headers
                    .iter()
                    .filter(|it| !matches!(it.0, "date" | "connection"))
                    .map(|it| format!("{}: {}", it.0, it.1)),
            )
            .collect(),
        body,
        whole,
        closes: value("connection").is_some_and(|it| it.contains("close")),
        http10: status_line.starts_with("http/1.0"),
        chunked,
        by_close,
    };
    Some((answer, rest))
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, &[u8], bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|it| it == b"\r\n") else {
            return (body, &[], false);
        };
        let size = String::from_utf8_lossy(&rest[..end]).into_owned();
        // hyper sends no extensions; what else it may be is broken.
        let Ok(size) = usize::from_str_radix(&size, 16) else {
            return (body, &[], false);
        };
        rest = &rest[end + 2..];
        if rest.len() < size.saturating_add(2) {
            body.extend_from_slice(&rest[..size.min(rest.len())]);
            return (body, &[], false);
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
        if size == 0 {
            return (body, rest, true);
        }
    }
}

/// All that were begun.
pub(crate) fn of(mut bytes: &[u8], ends: Option<Ends>) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some((answer, rest)) = one(bytes, ends) {
        answers.push(answer);
        bytes = rest;
    }
    answers
}

/// One of HTTP/2, as far as it can be told without its heads.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) begun: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) reset: bool,
}

pub(crate) type Streams = BTreeMap<u32, Stream>;

pub(crate) fn streams(bytes: &[u8]) -> Streams {
    let mut streams = Streams::new();
    for (kind, flags, id, payload) in frames(bytes) {
        if matches!(kind, 0 | 1 | 3) {
            let stream = streams.entry(id).or_default();
            match kind {
                0 => stream.body.extend_from_slice(payload),
                1 => stream.begun = true,
                _ => stream.reset = true,
            }
            stream.ended |= kind != 3 && flags & 1 != 0;
        }
    }
    streams
}

/// There is a GOAWAY in it that tells an error.
pub(crate) fn fails(bytes: &[u8]) -> bool {
    frames(bytes).any(|(kind, _, _, payload)| kind == 7 && payload.get(4..8) != Some(&[0; 4]))
}

/// Kind, flags, stream and payload of each that is whole.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = (u8, u8, u32, &[u8])> {
    std::iter::from_fn(move || {
        let (&[a, b, c, kind, flags, ref id @ ..], rest) = bytes.split_first_chunk::<9>()?;
        let n = usize::try_from(u32::from_be_bytes([0, a, b, c])).expect("24 bits");
        let (payload, rest) = rest.split_at_checked(n)?;
        bytes = rest;
        let id = u32::from_be_bytes(*id) & 0x7fff_ffff;
        Some((kind, flags, id, payload))
    })
}
