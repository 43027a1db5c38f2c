//! A client that leaves HTTP: it asks for an upgrade, and what it sends comes back until somebody says goodbye.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::sleep;

use super::draw::Draw;
use super::net::Dial;
use super::notes::note;
use super::{now, say};
use crate::connection::Connection;

/// Who has the other end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Host {
    /// Says goodbye when it is told.
    Polite,
    /// Hears nothing of a drain; slow, it reads a few bytes at a time, and on if its own go nowhere.
    Deaf,
    /// The same, and nobody is to wait for it.
    Detached,
}

const HOSTS: [Host; 3] = [Host::Polite, Host::Deaf, Host::Detached];

const GOODBYE: &[u8] = b"goodbye";

const MOST_WORDS: u64 = 4;

#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) id: usize,
    pub(crate) host: Host,
    /// When its request was there, and its answer, and its end.
    pub(crate) asked: Option<u64>,
    pub(crate) opened: Option<u64>,
    pub(crate) ended: Option<u64>,
    /// It has left of its own.
    pub(crate) left: Option<u64>,
    pub(crate) goodbye: bool,
    /// How much it had sent in all, after each word, and when; and how much of that came back.
    pub(crate) sent: Vec<(u64, usize)>,
    pub(crate) echoed: usize,
    /// Something else came than what had been sent.
    pub(crate) wrong: Option<String>,
}

pub(crate) type Shared = Arc<Mutex<Tunnel>>;

pub(crate) fn spawn(id: usize, dial: Dial, draw: &mut Draw) -> Shared {
    let host = *draw.pick(&HOSTS);
    let tunnel = Arc::new(Mutex::new(Tunnel {
        id,
        host,
        asked: None,
        opened: None,
        ended: None,
        left: None,
        goodbye: false,
        sent: Vec::new(),
        echoed: 0,
        wrong: None,
    }));
    let connects = draw.below(250);
    let pause = draw.below(100);
    let words = draw.below(MOST_WORDS);
    let leaves = draw.one_in(4);
    let shared = Arc::clone(&tunnel);
    tokio::spawn(async move {
        sleep(Duration::from_millis(connects)).await;
        let Some(mut client) = dial.connect(id, 4096) else {
            return;
        };
        let n = HOSTS
            .iter()
            .position(|it| *it == host)
            .expect("one of them");
        let head = format!(
            "GET /upgrade/{n}?{id} HTTP/1.1\r\nhost: sim\r\nconnection: upgrade\r\nupgrade: sim\r\n\r\n"
        );
        if client.write_all(head.as_bytes()).await.is_err() {
            return;
        }
        say(|| format!("tunnel {id}: {host:?}"));
        shared.lock().asked = Some(now());
        let (read, mut write) = tokio::io::split(client);
        let mut reads = tokio::spawn(read_all(read, Arc::clone(&shared), words));
        for n in 0..=words {
            // Who has read the end has nothing more to say; but who is cut may not have heard of it.
            tokio::select! {
                biased;
                _ = &mut reads, if leaves || host != Host::Deaf => return,
                () = sleep(Duration::from_millis(pause)), if n < words || leaves => {}
                () = std::future::ready(()), if n == words && !leaves => {}
            }
            if n < words {
                // It may have gone.
                let _ = write.write_all(word_of(n).as_bytes()).await;
                let mut it = shared.lock();
                let before = it.sent.last().map_or(0, |(_, n)| *n);
                it.sent.push((now(), before + word_of(n).len()));
            } else if leaves {
                shared.lock().left = Some(now());
                say(|| format!("tunnel {id}: leaves"));
                let _ = write.shutdown().await;
            }
        }
        let _ = reads.await;
        drop(write);
    });
    tunnel
}

fn word_of(n: u64) -> String {
    format!("word {n};")
}

async fn read_all(mut from: impl AsyncRead + Unpin, shared: Shared, words: u64) {
    let mut all = Vec::new();
    let mut buf = [0; 256];
    while let Ok(n @ 1..) = from.read(&mut buf).await {
        all.extend_from_slice(&buf[..n]);
        let mut it = shared.lock();
        if it.opened.is_none() && all.starts_with(b"HTTP/1.1 101") {
            say(|| format!("tunnel {}: open", it.id));
            it.opened = Some(now());
        }
    }
    let mut it = shared.lock();
    it.ended = Some(now());
    say(|| format!("tunnel {}: ended", it.id));
    if it.opened.is_none() {
        return;
    }
    let head = all.windows(4).position(|it| it == b"\r\n\r\n");
    let rest = head.map_or(&[][..], |head| &all[head + 4..]);
    it.goodbye = rest.ends_with(GOODBYE);
    let echo = rest.strip_suffix(GOODBYE).unwrap_or(rest);
    it.echoed = echo.len();
    let sent: String = (0..words).map(word_of).collect();
    if !sent.as_bytes().starts_with(echo) {
        it.wrong = Some(String::from_utf8_lossy(rest).into_owned());
    }
}

/// What the server does with the other end.
pub(crate) async fn host(
    host: u64,
    io: impl AsyncRead + AsyncWrite + Unpin,
    connection: Connection,
    who: usize,
) {
    let host = HOSTS[usize::try_from(host).expect("small")];
    if host == Host::Detached {
        let at = now();
        note(|notes| notes.detached.push((who, at)));
        connection.detach();
    }
    let mut told = std::pin::pin!(connection.draining());
    let (mut read, mut write) = tokio::io::split(io);
    let mut buf = [0; 256];
    let mut given = Vec::new();
    let mut takes = |bytes: &[u8]| {
        given.extend_from_slice(bytes);
        let sent: String = (0..=MOST_WORDS).map(word_of).collect();
        if !sent.as_bytes().starts_with(&given) {
            note(|notes| notes.holes.push(format!("tunnel {who}")));
        }
    };
    let most = if host == Host::Deaf { 4 } else { buf.len() };
    loop {
        let n = tokio::select! {
            biased; // a seed is a run
            read = read.read(&mut buf[..most]) => read.unwrap_or(0),
            () = &mut told, if host == Host::Polite => {
                let _ = write.write_all(GOODBYE).await;
                let _ = write.shutdown().await;
                // What comes now would draw a reset, which destroys it.
                while let Ok(n @ 1..) = read.read(&mut buf).await {
                    takes(&buf[..n]);
                }
                return;
            }
        };
        takes(&buf[..n]);
        let goes_nowhere = n == 0 || write.write_all(&buf[..n]).await.is_err();
        if n == 0 || goes_nowhere && host != Host::Deaf {
            return;
        }
        if host == Host::Deaf {
            sleep(Duration::from_millis(10)).await;
        }
    }
}
