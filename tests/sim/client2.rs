//! A client of HTTP/2, by `h2`: several streams at once, some of them slow, some reset.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::client::{Kind, upload};
use super::draw::Draw;
use super::frames::window_update;
use super::net::{Client, Dial};
use super::server::body_of;
use super::{now, say};
use crate::connection::frames::{Frame, Frames, HEADERS, PING};

/// How a stream ended, as its client saw it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    /// Nothing has come of it.
    Open,
    Answered(u16),
    /// Not what was to come.
    Wrong(String),
    /// It was not begun: the connection was told to go away, or has gone.
    Refused,
    /// The connection itself has ended.
    Closed,
    /// It was cut.
    Broken(String),
    /// The client gave it up.
    Cancelled,
}

#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) began: u64,
    pub(crate) end: End,
    pub(crate) ended: u64,
    /// For how long it reads nothing, in the middle of its answer; and its client sends in pieces.
    pub(crate) rests: u64,
    pub(crate) cuts: bool,
    pub(crate) upload: Option<Upload>,
}

/// The body of a request.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    /// After how many milliseconds comes a part of how many bytes.
    parts: Vec<(u64, usize)>,
    pub(crate) ends: Ends,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ends {
    Plainly,
    WithTrailers,
    Never,
}

impl Upload {
    fn draw(draw: &mut Draw) -> Self {
        let small = |n| usize::try_from(n).expect("small");
        let parts =
            (0..draw.below(4)).map(|_| (draw.below(LONGEST_PAUSE), small(draw.below(1_000))));
        Self {
            parts: parts.collect(),
            ends: match draw.below(6) {
                0 => Ends::Never,
                1 | 2 => Ends::WithTrailers,
                _ => Ends::Plainly,
            },
        }
    }

    /// How long it takes, should it end.
    pub(crate) fn takes(&self) -> Option<u64> {
        let takes = self.parts.iter().map(|(ms, _)| ms).sum();
        (self.ends != Ends::Never).then_some(takes)
    }

    pub(crate) fn length(&self) -> usize {
        self.parts.iter().map(|(_, n)| n).sum()
    }

    async fn send(self, mut body: h2::SendStream<Bytes>) {
        let mut at = 0;
        for (ms, n) in self.parts {
            sleep(Duration::from_millis(ms)).await;
            let part = upload(at..at + n).collect::<Bytes>();
            if body.send_data(part, false).is_err() {
                return;
            }
            at += n;
        }
        let _ = match self.ends {
            Ends::Plainly => body.send_data(Bytes::new(), true),
            Ends::WithTrailers => body.send_trailers(http::HeaderMap::new()),
            Ends::Never => std::future::pending().await,
        };
    }
}

/// Below every `stall_timeout`.
const LONGEST_PAUSE: u64 = 40;

/// For how long it reads nothing in the middle of an answer, at most.
pub(crate) const RESTS: u64 = 300;

/// For how long what comes behind an acknowledgment may be under way.
const BEHIND_A_PING: u64 = 100;

pub(crate) type Streams = Arc<Mutex<Vec<Stream>>>;

/// Who goes on once it is told to go away, answers no ping, or says nothing after the preface: never.
pub(crate) fn spawn(id: usize, dial: Dial, cuts: bool, draw: &mut Draw) -> Streams {
    let streams = Streams::default();
    let connects = draw.below(200);
    let room = 256 << draw.below(10);
    let pieces = (cuts && draw.one_in(2)).then(|| draw.clone());
    let cuts = pieces.is_some();
    let mut aside = draw.aside();
    let plan: Vec<_> = (0..draw.below(6))
        .map(|n| {
            let kind = match Kind::draw(draw) {
                Kind::Last => Kind::After(3),
                // More than there is window for.
                Kind::Big(_) if draw.one_in(2) => Kind::Big(1 << 17),
                kind => kind,
            };
            let cancels = draw.one_in(10).then(|| draw.below(100));
            let rests = draw.one_in(3).then(|| draw.below(RESTS));
            let uploads = matches!(kind, Kind::Gives(_)) || aside.one_in(3);
            let upload = uploads.then(|| Upload::draw(&mut aside));
            let name = format!("{id}-{n}");
            (name, draw.below(150), kind, cancels, rests, upload)
        })
        .collect();
    // h2 knows nothing of them, and would take what comes beyond its own window for an error.
    let updates = !plan.iter().any(|it| matches!(it.2, Kind::Big(_)));
    let kept = Arc::clone(&streams);
    tokio::spawn(async move {
        sleep(Duration::from_millis(connects)).await;
        let Some(client) = dial.connect(id, room) else {
            return;
        };
        say(|| format!("client {id}: connected, HTTP/2"));
        let began = now();
        let Ok((send, connection)) =
            h2::client::handshake(Pieces::new(client, pieces, updates)).await
        else {
            return;
        };
        let streams = Arc::clone(&kept);
        tokio::spawn(async move {
            let ended = connection.await;
            say(|| format!("client {id}: connection ended: {ended:?}"));
            streams.lock().push(Stream {
                name: format!("{id}-connection"),
                kind: Kind::After(0),
                began,
                end: End::Closed,
                ended: now(),
                rests: 0,
                cuts,
                upload: None,
            });
        });
        let tasks: Vec<_> = plan
            .into_iter()
            .map(|(name, pause, kind, cancels, rests, upload)| {
                let (send, streams) = (send.clone(), Arc::clone(&kept));
                tokio::spawn(one(
                    send,
                    streams,
                    name,
                    pause,
                    kind,
                    (cancels, rests, upload),
                    cuts,
                ))
            })
            .collect();
        for task in tasks {
            let _ = task.await;
        }
        // Kept open.
        std::future::pending::<()>().await;
        drop(send);
    });
    streams
}

/// Sends in pieces, cut anywhere, with a pause after each, and a longer one behind an acknowledgment of a PING; and, as Firefox does, a window
/// update behind each head.
struct Pieces {
    client: Client,
    cuts: Option<Draw>,
    pause: Option<Pin<Box<Sleep>>>,
    updates: bool,
    /// What was sent, behind the preface.
    sent: Frames,
    preface: usize,
    /// A PING, or its acknowledgment, was sent.
    pause_behind: bool,
    /// The stream whose head was sent, and what is to come behind that.
    head: Option<u32>,
    update: Vec<u8>,
}

impl Pieces {
    fn new(client: Client, cuts: Option<Draw>, updates: bool) -> Self {
        Self {
            client,
            cuts,
            pause: None,
            updates,
            sent: Frames::default(),
            preface: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len(),
            pause_behind: false,
            head: None,
            update: Vec::new(),
        }
    }

    /// How many of these may be sent before an update, or a pause, is to be.
    fn to_the_end_of_a_head(&self, bytes: &[u8]) -> usize {
        let (mut sent, mut head) = (self.sent.clone(), self.head);
        let mut ping = self.pause_behind;
        let preface = self.preface.min(bytes.len());
        for (n, byte) in bytes.iter().enumerate().skip(preface) {
            sent.feed(&[*byte], |frame| {
                head = head_of(frame).or(head);
                ping |= frame.kind == PING;
            });
            if (head.is_some() || ping) && sent.is_between_any() {
                return n + 1;
            }
        }
        bytes.len()
    }

    fn was_sent(&mut self, bytes: &[u8]) {
        let preface = self.preface.min(bytes.len());
        self.preface -= preface;
        let (head, ping) = (&mut self.head, &mut self.pause_behind);
        self.sent.feed(&bytes[preface..], |frame| {
            *head = head_of(frame).or(*head);
            *ping |= frame.kind == PING;
        });
        if self.sent.is_between_any() {
            if let Some(cuts) = self.cuts.as_mut().filter(|_| std::mem::take(ping)) {
                let pause = Duration::from_millis(cuts.below(BEHIND_A_PING));
                self.pause = Some(Box::pin(sleep(pause)));
            }
            let stream = self.head.take().filter(|_| self.updates);
            self.update = stream.map_or(Vec::new(), window_update);
        }
    }
}

fn head_of(frame: Frame) -> Option<u32> {
    (frame.kind == HEADERS).then_some(frame.stream)
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        while !this.update.is_empty() {
            let n = ready!(Pin::new(&mut this.client).poll_write(cx, &this.update))?;
            this.update.drain(..n);
        }
        let mut n = this.to_the_end_of_a_head(bytes);
        if let Some(cuts) = this.cuts.as_mut().filter(|_| n > 1) {
            if cuts.one_in(2) {
                n = 1 + usize::try_from(cuts.below(n as u64 - 1)).expect("short");
                let pause = Duration::from_millis(cuts.below(12));
                this.pause = Some(Box::pin(sleep(pause)));
            }
        }
        let n = ready!(Pin::new(&mut this.client).poll_write(cx, &bytes[..n]))?;
        this.was_sent(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.update.is_empty() {
            let n = ready!(Pin::new(&mut this.client).poll_write(cx, &this.update))?;
            this.update.drain(..n);
        }
        Pin::new(&mut this.client).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_shutdown(cx)
    }
}

async fn one(
    send: h2::client::SendRequest<Bytes>,
    streams: Streams,
    name: String,
    pause: u64,
    kind: Kind,
    (cancels, rests, upload): (Option<u64>, Option<u64>, Option<Upload>),
    cuts: bool,
) {
    sleep(Duration::from_millis(pause)).await;
    let Ok(mut send) = send.ready().await else {
        return;
    };
    let uri = format!("http://sim{}?{name}", kind.path());
    let request = match upload {
        None => http::Request::get(uri),
        Some(_) => http::Request::post(uri),
    };
    let request = request.body(()).expect("a request");
    let Ok((response, body)) = send.send_request(request, upload.is_none()) else {
        return;
    };
    drop(send);
    say(|| format!("stream {name}: {kind:?}, {upload:?}"));
    let sends = upload.clone().map(|it| tokio::spawn(it.send(body)));
    let n = {
        let mut streams = streams.lock();
        streams.push(Stream {
            name: name.clone(),
            kind,
            began: now(),
            end: End::Open,
            ended: 0,
            rests: rests.unwrap_or(0),
            cuts,
            upload,
        });
        streams.len() - 1
    };
    let answer = answer(response, kind, &name, rests);
    let end = match cancels {
        Some(ms) => tokio::time::timeout(Duration::from_millis(ms), answer).await,
        None => Ok(answer.await),
    };
    let end = match end {
        Ok(Ok(end)) => end,
        Ok(Err(error)) => {
            // RFC 9113 sections 6.8 and 8.7: what was refused, or lies above the last stream, was not begun.
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM)
                || error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            if refused {
                End::Refused
            } else {
                End::Broken(error.to_string())
            }
        }
        Err(_) => {
            // Without its body, too, or it would not be reset.
            if let Some(sends) = sends {
                sends.abort();
            }
            End::Cancelled
        }
    };
    say(|| format!("stream {name}: {end:?}"));
    let mut streams = streams.lock();
    streams[n].end = end;
    streams[n].ended = now();
}

async fn answer(
    response: h2::client::ResponseFuture,
    kind: Kind,
    name: &str,
    mut rest: Option<u64>,
) -> Result<End, h2::Error> {
    let response = response.await?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut all = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        all.extend_from_slice(&part);
        if let Some(ms) = rest.take() {
            // It gives no window back meanwhile.
            sleep(Duration::from_millis(ms)).await;
        }
        let _ = body.flow_control().release_capacity(part.len());
    }
    if status == 200 && all != body_of(kind, name) {
        return Ok(End::Wrong(String::from_utf8_lossy(&all).into_owned()));
    }
    Ok(End::Answered(status))
}
