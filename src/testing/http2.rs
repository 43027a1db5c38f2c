//! Clients of HTTP/2 with prior knowledge, by h2's.

use std::cell::Cell;
use std::future::{self, Future};
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use h2::client::{self, Connection, SendRequest};

use super::findings::Kind;
use super::http1::text;
use super::load::{Load, OVER, Request, Seen, Verdict, either};
use super::socket::{Socket, Wire};
use crate::report::Protocol::Http2;

/// Asks for several things at a time, and again as soon as it has all the answers, on one connection for as long as it lasts.
pub(super) async fn client(load: Rc<Load>, number: usize) {
    let mut kept: Option<Client> = None;
    let mut newcomer = true;
    let mut n = number;
    while load.goes_on() {
        let client = match kept.take() {
            Some(client) => Some(client),
            None => Client::connect(&load).await,
        };
        if let Some(mut client) = client {
            let may_be_used_again = client.ask(&load, n).await;
            n += STREAMS;
            if may_be_used_again {
                kept = Some(client);
            } else {
                client.leave(&load);
            }
        }
        if mem::take(&mut newcomer) {
            load.newcomers.set(load.newcomers.get() - 1);
        }
    }
    if let Some(client) = kept {
        // It asks for nothing more, and acknowledges what it is told.
        let (sender, driver) = (client.sender, client.driver);
        load.watch(Http2, client.socket, async move {
            if let Some(driver) = driver {
                let _ = driver.await; // it may end by an error
            }
            drop(sender);
        });
    }
}

struct Client {
    sender: SendRequest<Bytes>,
    /// Until it has ended.
    driver: Option<Connection<Wire, Bytes>>,
    socket: Rc<Socket>,
    /// While it is fresh: since when the server may have seen it quiet. Later it is told to go away before it is closed.
    fresh: Option<Instant>,
    /// When it had its first answers.
    served: Option<Instant>,
}

impl Client {
    async fn connect(load: &Load) -> Option<Self> {
        let begin = Instant::now();
        let socket = Socket::http2(load.connect(Http2).await?);
        // As on HTTP/1.
        let quiet = load.pulse.may_have_come(begin);
        let shaking = client::Builder::new()
            .enable_push(false)
            .handshake(Wire(Rc::clone(&socket)));
        // It waits for nothing from the other side.
        let (sender, driver) = match either(shaking, load.over.cancelled()).await? {
            Ok(shaken) => shaken,
            Err(error) => {
                load.was_refused(begin, quiet, text(&error)).await;
                return None;
            }
        };
        Some(Self {
            sender,
            driver: Some(driver),
            socket,
            fresh: Some(quiet),
            served: None,
        })
    }

    /// Whether the connection may be used again.
    async fn ask(&mut self, load: &Load, n: usize) -> bool {
        // What the handshake wrote was the beginning of a fresh one.
        if self.fresh.is_none() {
            self.socket.begin();
        }
        let sent = Instant::now();
        let mut asked: Vec<_> = (0..STREAMS)
            .map(|i| Asked::new(self, load, load.request(n + i)))
            .collect();
        let answers = drive(&mut self.driver, &mut asked, || load.seen(sent));
        let _ = either(answers, load.over.cancelled()).await; // those without an answer are known
        let (mut all, mut crossed) = (true, false);
        for it in asked {
            let (answer, seen) = it.answer.unzip();
            let verdict = match answer {
                Some(Ok(status)) => Verdict::Answered(status),
                Some(Err(error)) => self.unanswered(load, it.stream.get(), Some(&error)),
                None => self.unanswered(load, it.stream.get(), None),
            };
            all &= matches!(verdict, Verdict::Answered(_));
            crossed |= matches!(verdict, Verdict::Not(Kind::Crossed, _));
            let seen = seen.unwrap_or_else(|| load.seen(sent));
            load.record(Http2, it.request, sent, self.served, seen, verdict);
        }
        if crossed {
            load.has_crossed();
        }
        self.fresh = None;
        self.served.get_or_insert_with(Instant::now);
        all && self.driver.is_some()
    }

    /// `None`: the time was over.
    fn unanswered(&self, load: &Load, stream: Option<u32>, error: Option<&h2::Error>) -> Verdict {
        let is_written = stream.is_some_and(|it| self.socket.has_asked(it));
        let kind = if stream.is_some_and(|it| self.socket.has_answer(it)) {
            // Whatever is said of it then: it was processed.
            Kind::Cut
        } else if error.is_some_and(is_refused) {
            Kind::Retried
        } else if !is_written {
            load.unwritten(self.fresh.filter(|_| error.is_some()))
        } else if error.is_some() && self.is_crossed(load) {
            Kind::Crossed
        } else {
            Kind::Lost
        };
        let why = error.map_or_else(|| OVER.to_owned(), |it| text(it));
        Verdict::Not(kind, why)
    }

    fn is_crossed(&self, load: &Load) -> bool {
        let quiet = self.fresh;
        quiet.is_some_and(|it| load.is_crossed(it, &self.socket))
    }

    /// The streams have ended: it is closed as soon as the other side has read what there is.
    fn leave(self, load: &Rc<Load>) {
        let driver = self.driver;
        let socket = Rc::clone(&self.socket);
        drop(self.sender);
        load.watch(Http2, self.socket, async move {
            if let Some(driver) = driver {
                let _ = driver.await; // it may end by an error
            }
            socket.shutdown();
        });
    }
}

/// A request under way.
struct Asked<'a> {
    request: &'a Request,
    stream: Rc<Cell<Option<u32>>>,
    under_way: Pin<Box<dyn Future<Output = Result<u16, h2::Error>> + 'a>>,
    /// Its status when it has come whole, or why there is none; and when that was seen.
    answer: Option<(Result<u16, h2::Error>, Seen)>,
}

impl<'a> Asked<'a> {
    fn new(client: &Client, load: &'a Load, request: &'a Request) -> Self {
        let (sender, stream) = (client.sender.clone(), Rc::<Cell<_>>::default());
        Self {
            request,
            stream: Rc::clone(&stream),
            under_way: Box::pin(exchange(sender, load, request, stream)),
            answer: None,
        }
    }
}

async fn exchange(
    sender: SendRequest<Bytes>,
    load: &Load,
    request: &Request,
    stream: Rc<Cell<Option<u32>>>,
) -> Result<u16, h2::Error> {
    let head = http::Request::builder()
        .method(request.method.clone())
        .uri(format!("http://{}{}", load.address, request.path))
        .body(())
        .expect("path and method were checked");
    let mut sender = sender.ready().await?;
    let ends = request.body.is_empty();
    let (answer, mut sending) = sender.send_request(head, ends)?;
    stream.set(Some(answer.stream_id().as_u32()));
    drop(sender);
    if !ends {
        let _ = sending.send_data(request.body.clone(), true); // the answer tells
    }
    let (head, mut body) = answer.await?.into_parts();
    while let Some(data) = body.data().await {
        let _ = body.flow_control().release_capacity(data?.len()); // of a stream that has ended
    }
    body.trailers().await?;
    Ok(head.status.as_u16())
}

/// Polls the connection beside what is asked on it, until all of that has its answer.
async fn drive(
    driver: &mut Option<Connection<Wire, Bytes>>,
    asked: &mut [Asked<'_>],
    seen: impl Fn() -> Seen,
) {
    let polling = future::poll_fn(|cx| {
        let mut all = false;
        // Again behind the connection, which may have brought the answers, or its end.
        for _ in 0..2 {
            all = true;
            for it in &mut *asked {
                if it.answer.is_none() {
                    match it.under_way.as_mut().poll(cx) {
                        Poll::Ready(answer) => it.answer = Some((answer, seen())),
                        Poll::Pending => all = false,
                    }
                }
            }
            let has_ended = |it: &mut Connection<_, _>| Pin::new(it).poll(cx).is_ready();
            if !all && driver.as_mut().is_some_and(has_ended) {
                *driver = None;
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    });
    polling.await;
}

/// By a GOAWAY whose last stream is an earlier one, which is when h2 says so of a stream, or by `REFUSED_STREAM`
/// (RFC 9113 section 8.7).
pub(super) fn is_refused(error: &h2::Error) -> bool {
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || error.is_reset() && refused)
}

/// How many streams a connection has at a time.
const STREAMS: usize = 4;
