//! The same model, with requests of any bytes in reads that end anywhere.

use std::sync::Arc;

use super::super::http1::reading::{BodyLength, Reader};
use super::super::shared::Shared;
use super::super::socket::NoSocket;
use super::super::state::State;
use super::{Event, Message, Model, check, happens};
use crate::config::Config;
use crate::fuzz::input::Input;
use crate::registry::Registry;

/// Requests as they may be, and whatever the client, hyper and the handler do with them.
pub(crate) fn reading(data: &[u8]) {
    let mut input = Input::new(data);
    if input.one_in(8) {
        return never_panics(&mut input);
    }
    let parts: Vec<_> = (0..=input.below(3))
        .map(|n| message(n, &mut input))
        .collect();
    let messages: Vec<Message<'_>> = parts
        .iter()
        .map(|(head, body, length, asks)| (&head[..], &body[..], *length, *asks))
        .collect();
    let tail = match input.below(3) {
        0 => Vec::new(),
        1 => input
            .pick(&[&b"\r\n"[..], b"\n", b"\r\n\r\n", b"\r"])
            .to_vec(),
        _ => line_ends(&mut input, unfinished),
    };
    let registry = Arc::new(Registry::new(Config::default()));
    let shared = Shared::register(&registry, Arc::new(NoSocket));
    shared.set(State::SEEN);
    let (mut model, mut path) = (Model::new(&messages, &tail), Vec::new());
    // All decisions are zero in the end, and those read on.
    for _ in 0..200 {
        let enabled = model.enabled();
        let (reads, others): (Vec<_>, Vec<_>) = enabled
            .into_iter()
            .partition(|event| matches!(event, Event::Read(_)));
        let n = input.below(others.len() + usize::from(!reads.is_empty()));
        let event = match others.get(n) {
            Some(event) => *event,
            None if reads.is_empty() => break,
            None => {
                let left = model.stream.len() - model.read;
                Event::Read(model.read + 1 + input.below(left))
            }
        };
        happens(&shared, event, &model);
        model.happens(event);
        path.push(event);
        check(&shared, &model, &path);
    }
    shared.socket_closed();
}

/// Whatever hyper would never take, it is read to its end.
fn never_panics(input: &mut Input<'_>) {
    let mut reader = Reader::default();
    while !input.is_empty() {
        match input.below(6) {
            0 => reader.called(BodyLength::Chunked),
            1 => reader.called(BodyLength::Known(input.below(40) as u64)),
            2 => reader.called(BodyLength::Known(u64::MAX - input.below(2) as u64)),
            3 => {
                let short = input.below(20);
                reader.restart(Some(input.take(short)));
            }
            4 => {
                let n = input.below(100);
                reader.copy(input.take(n));
                reader.restart(None);
            }
            _ => {
                let n = input.below(100);
                reader.read(input.take(n));
            }
        }
        let _ = (reader.owes(), reader.begins(), reader.in_hand());
    }
}

/// Its head, its body, what hyper says of the body, and what it asks.
fn message(n: usize, input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>, BodyLength, u32) {
    let mut head = line_ends(input, unfinished);
    // The same head would say the same of its body.
    head[0] = b"GHIJ"[n];
    if input.one_in(16) {
        // More than is copied.
        let line = [b"\nx: ", &[b'y'; 2100][..]].concat();
        head.extend(line);
    }
    let ends: [&[u8]; 4] = [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"];
    head.extend(input.pick(&ends));
    let (body, length) = match input.below(3) {
        0 => (Vec::new(), BodyLength::Known(0)),
        1 => {
            let body = line_ends(input, <[u8]>::to_vec);
            let length = BodyLength::Known(body.len() as u64);
            (body, length)
        }
        _ => (chunked(input), BodyLength::Chunked),
    };
    let asks = if input.one_in(8) { State::HEAD } else { 0 };
    (head, body, length, asks)
}

/// Some bytes, of which line ends are more likely than by chance.
fn line_ends(input: &mut Input<'_>, as_part: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let n = input.below(60);
    let bytes = input.take(n).iter().map(|byte| match byte {
        0xf0..=0xf7 => b'\r',
        0xf8..=0xff => b'\n',
        byte => *byte,
    });
    as_part(&bytes.collect::<Vec<_>>())
}

/// The same as part of a head: it begins otherwise than with a line end, holds no empty line, and does not end in one
/// that has begun.
fn unfinished(bytes: &[u8]) -> Vec<u8> {
    let mut part = b"G".to_vec();
    for byte in bytes {
        part.push(*byte);
        if part.ends_with(b"\n\n") || part.ends_with(b"\n\r\n") {
            part.push(b'x');
            part.remove(part.len() - 2);
        }
    }
    while part.ends_with(b"\n") || part.ends_with(b"\r") {
        part.pop();
    }
    part
}

/// As hyper takes it.
fn chunked(input: &mut Input<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    let without = |bad: &'static [u8]| {
        move |bytes: &[u8]| {
            let bytes = bytes.iter().filter(|byte| !bad.contains(byte));
            bytes.copied().collect::<Vec<_>>()
        }
    };
    let size = |input: &mut Input<'_>, n: usize| {
        let size = if input.one_in(2) {
            format!("{n:X}")
        } else {
            format!("{n:0width$x}", width = input.below(6))
        };
        let mut line = size.into_bytes();
        if input.one_in(3) {
            line.push(b';');
            line.extend(line_ends(input, without(b"\r\n")));
        }
        line.extend(b"\r\n");
        line
    };
    for _ in 0..input.below(4) {
        let data = line_ends(input, <[u8]>::to_vec);
        if !data.is_empty() {
            body.extend(size(input, data.len()));
            body.extend(data);
            body.extend(b"\r\n");
        }
    }
    body.extend(size(input, 0));
    for _ in 0..input.below(3) {
        let line = line_ends(input, without(b"\r"));
        if !line.is_empty() {
            body.extend(line);
            body.extend(b"\r\n");
        }
    }
    body.extend(b"\r\n");
    body
}
