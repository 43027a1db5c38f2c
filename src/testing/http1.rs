//! Clients of HTTP/1, by hyper's.

use std::convert::Infallible;
use std::error::Error;
use std::future::{self, Future};
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::header::HOST;
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;

use super::findings::Kind;
use super::load::{Load, OVER, PAUSE, Request, Verdict, either};
use super::socket::{Socket, Wire};
use crate::report::Protocol::Http1;

/// Asks again as soon as it has an answer, on one connection for as long as it lasts, or on a new one each time.
pub(super) async fn client(load: Rc<Load>, number: usize, keeps: bool) {
    let mut kept: Option<Client> = None;
    let mut newcomer = true;
    let mut n = number;
    while load.goes_on() {
        let client = match kept.take() {
            Some(client) => Some(client),
            None => Client::connect(&load).await,
        };
        if let Some(mut client) = client {
            let may_be_used_again = client.ask(&load, load.request(n)).await;
            n += 1;
            if keeps && may_be_used_again {
                kept = Some(client);
            } else {
                client.leave(&load);
            }
        }
        if mem::take(&mut newcomer) {
            load.newcomers.set(load.newcomers.get() - 1);
        }
        if !keeps {
            tokio::time::sleep(PAUSE).await;
        }
    }
    if let Some(client) = kept {
        // This side says nothing, and waits for the other to close.
        load.watch(Http1, client.socket, async {});
    }
}

struct Client {
    sender: SendRequest<Whole>,
    /// Until it has ended: who waits for the sender learns of it by its drop.
    driver: Option<Connection<TokioIo<Wire>, Whole>>,
    socket: Rc<Socket>,
    /// Since when the server may have seen it quiet.
    quiet: Instant,
    /// When it had its first answer.
    served: Option<Instant>,
}

impl Client {
    async fn connect(load: &Load) -> Option<Self> {
        let begin = Instant::now();
        let socket = Socket::http1(load.connect(Http1).await?);
        // The server may have known of it for so long: not since a SYN that was dropped.
        let quiet = load.pulse.may_have_come(begin);
        let io = TokioIo::new(Wire(Rc::clone(&socket)));
        // Nothing is said in it.
        let (sender, driver) = http1::handshake(io).await.ok()?;
        Some(Self {
            sender,
            driver: Some(driver),
            socket,
            quiet,
            served: None,
        })
    }

    /// Whether the connection may be used again.
    async fn ask(&mut self, load: &Load, request: &Request) -> bool {
        self.socket.begin();
        let sent = Instant::now();
        let asking = exchange(self.sender.send_request(hyper_request(load, request)));
        let driven = drive(&mut self.driver, asking);
        let answer = either(driven, load.over.cancelled()).await;
        let seen = load.seen(sent);
        let verdict = match answer {
            Some(Ok(status)) => Verdict::Answered(status),
            Some(Err(why)) => self.unanswered(load, Some(why)),
            None => self.unanswered(load, None),
        };
        let answered = matches!(verdict, Verdict::Answered(_));
        load.record(Http1, request, sent, self.served, seen, verdict);
        if !answered {
            return false;
        }
        self.served.get_or_insert_with(Instant::now);
        self.quiet = seen.came;
        let ready = drive(&mut self.driver, self.sender.ready());
        matches!(either(ready, load.over.cancelled()).await, Some(Ok(())))
    }

    /// `None`: the time was over.
    fn unanswered(&self, load: &Load, why: Option<String>) -> Verdict {
        let kind = if !self.socket.has_written() {
            let fresh = self.served.is_none() && why.is_some();
            load.unwritten(fresh.then_some(self.quiet))
        } else if self.socket.has_read() {
            Kind::Cut
        } else if why.is_some() && load.is_crossed(self.quiet, &self.socket) {
            load.has_crossed();
            Kind::Crossed
        } else {
            Kind::Lost
        };
        Verdict::Not(kind, why.unwrap_or_else(|| OVER.to_owned()))
    }

    fn leave(self, load: &Rc<Load>) {
        self.socket.shutdown();
        load.watch(Http1, self.socket, async {});
    }
}

/// Polls the connection beside what is done on it, until that is done.
async fn drive<F: Future>(
    driver: &mut Option<Connection<TokioIo<Wire>, Whole>>,
    what: F,
) -> F::Output {
    let mut what = pin!(what);
    let polling = future::poll_fn(|cx| {
        if let Poll::Ready(output) = what.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        let has_ended = |it: &mut Connection<_, _>| Pin::new(it).poll(cx).is_ready();
        if driver.as_mut().is_some_and(has_ended) {
            *driver = None;
        }
        what.as_mut().poll(cx)
    });
    polling.await
}

/// The status of an answer that has come whole, or why none has.
async fn exchange(
    answer: impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>>,
) -> Result<u16, String> {
    let (head, body) = answer.await.map_err(|e| text(&e))?.into_parts();
    let mut body = pin!(body);
    while let Some(frame) = future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        frame.map_err(|e| text(&e))?;
    }
    Ok(head.status.as_u16())
}

fn hyper_request(load: &Load, request: &Request) -> http::Request<Whole> {
    let head = http::Request::builder()
        .method(request.method.clone())
        .uri(&request.path)
        .header(HOST, load.address.to_string());
    let body = Whole((!request.body.is_empty()).then(|| request.body.clone()));
    head.body(body).expect("path and method were checked")
}

/// An error and what is behind it.
pub(super) fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A body in one piece, or none.
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|it| Ok(Frame::data(it))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |it| it.len() as u64))
    }
}
