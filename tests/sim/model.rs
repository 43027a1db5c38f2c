//! What must be true of every run, by what went over the wire.

use super::Ran;
use super::client::{Answer, Kind, Peer};
use super::client2::{End, Stream};
use super::net::Got;
use super::server::body_of;
use super::tunnel::{Host, Tunnel};

/// From the deadline to the last byte (G10).
const CUT: u64 = 150;

/// What is to be done this close to the deadline may be cut or not.
const NEAR: u64 = 5;

pub(crate) fn check(ran: &Ran) -> Result<(), String> {
    if ran.over > ran.deadline + CUT {
        return Err(format!("over at {}, deadline {}", ran.over, ran.deadline));
    }
    // Those that had gone before are not of interest.
    let since = |at| ran.closed.iter().filter(|it| **it >= Some(at)).count();
    let report = &ran.report;
    let counted = report.connections() + report.lost_in_queue;
    let (least, most) = (since(ran.began + 1), since(ran.began.saturating_sub(1)));
    if counted < least || counted > most {
        return Err(format!("{least} to {most} were there: {report}"));
    }
    if ran.closed.contains(&None) {
        return Err(format!("a socket was not closed: {}", ran.left));
    }
    for stream in &ran.streams {
        of_stream(ran, stream)?;
    }
    let mut goodbyes = 0;
    for tunnel in &ran.tunnels {
        let tunnel = tunnel.lock();
        of_tunnel(ran, &tunnel).map_err(|what| format!("{what}: {tunnel:?}"))?;
        let ended = tunnel.ended.filter(|_| tunnel.goodbye).unwrap_or(0);
        goodbyes += usize::from(ended > ran.began && ended + NEAR < ran.deadline);
    }
    if report.upgraded < goodbyes {
        return Err(format!("{goodbyes} have said goodbye: {report}"));
    }
    for peer in &ran.peers {
        of_peer(ran, peer).map_err(|what| format!("client {}: {what}", peer.id))?;
    }
    Ok(())
}

/// Every stream ends, and what was begun is cut by the deadline only, or by its handler.
fn of_stream(ran: &Ran, stream: &Stream) -> Result<(), String> {
    let due = stream.kind.takes().map(|ms| stream.began + ms);
    let cut = stream.ended + NEAR >= ran.deadline;
    let fine = match &stream.end {
        End::Answered(200) | End::Refused | End::Cancelled => true,
        End::Answered(503) => cut,
        End::Broken(_) => cut || due.is_none(),
        End::Answered(_) | End::Wrong(_) | End::Open => false,
    };
    if fine {
        Ok(())
    } else {
        Err(format!("{stream:?}, deadline {}", ran.deadline))
    }
}

/// It is opened, what comes back is what was sent, it is told of the drain and not before, and cut at the
/// deadline and not before (G13).
fn of_tunnel(ran: &Ran, tunnel: &Tunnel) -> Result<(), &'static str> {
    let Some(asked) = tunnel.asked else {
        return Ok(());
    };
    let Some(ended) = tunnel.ended else {
        return Err("has no end");
    };
    let cut = ended + NEAR >= ran.deadline;
    let alone = ran.plan.ends_single_ones();
    let left = tunnel.left.is_some_and(|left| left <= ended);
    if tunnel.opened.is_none() {
        let crossed = asked + 1 >= ran.drained || alone || left;
        return if cut || crossed {
            Ok(())
        } else {
            Err("was not opened")
        };
    }
    let told = ran.drained + ran.plan.spreads_over() + NEAR;
    match tunnel.host {
        _ if tunnel.wrong.is_some() => Err("something else came back"),
        _ if left || cut => Ok(()),
        Host::Polite if !tunnel.goodbye => Err("was cut without a goodbye"),
        Host::Polite if alone => Ok(()),
        Host::Polite if ended + 1 < ran.drained => Err("was told before the drain"),
        Host::Polite if ended > told.max(tunnel.opened.unwrap_or(0) + NEAR) => Err("was told late"),
        Host::Polite => Ok(()),
        Host::Deaf => Err("was cut before the deadline"),
        Host::Detached => Err("was cut while it may have been left alone"),
    }
}

fn of_peer(ran: &Ran, peer: &Peer) -> Result<(), String> {
    let Some(client) = &peer.client else {
        return Ok(());
    };
    let head_only: Vec<_> = peer.requests.iter().map(|it| it.head_only).collect();
    let rest = peer.answers.rest(&head_only);
    let by_end = match &rest {
        Some(Some(answer)) => Some(answer),
        _ => None,
    };
    let answers: Vec<_> = peer.answers.whole.iter().chain(by_end).collect();
    // In order, each once, and whole.
    for (answer, request) in answers.iter().zip(&peer.requests) {
        let whole = body_of(request.kind, &request.name);
        let ok = answer.status == 200 && (answer.body == whole || request.head_only);
        let late = answer.status == 503 && client.written_at(answer.begins) + NEAR >= ran.deadline;
        let broken = answer.status == 400;
        if answer.by_close && peer.end == Some(Got::Reset) {
            continue; // it can be told
        }
        if !(ok || late || broken) {
            return Err(format!("answer to {}: {answer:?}", request.name));
        }
    }
    settles(ran, peer, &answers)?;
    for (n, request) in peer.requests.iter().enumerate() {
        if answers.get(n).is_some_and(|it| it.status == 200) {
            said_close(ran, peer, &answers[..=n])?;
            continue;
        }
        if must_be_answered(ran, peer, n, &answers) {
            return Err(format!(
                "{} ({:?}, whole at {:?}) was not answered: {:?}, drained {}, deadline {}, ended {:?}",
                request.name,
                request.kind,
                request.whole_at,
                peer.end,
                ran.drained,
                ran.deadline,
                client.ended_at(),
            ));
        }
    }
    Ok(())
}

/// Of a head that went out in the drain (G5); behind an answer that did, hyper may have had it for long.
fn said_close(ran: &Ran, peer: &Peer, answers: &[&Answer]) -> Result<(), String> {
    let client = peer.client.as_ref().expect("it was answered");
    let answer = answers[answers.len() - 1];
    let at = client.written_at(answer.begins);
    let waited = answer.begins > 0 && client.written_at(answer.begins - 1) >= ran.drained;
    if at > ran.drained && !waited && !answer.says_close && !ran.plan.is_spread() {
        return Err(format!("at {at}, in the drain, without close: {answer:?}"));
    }
    Ok(())
}

/// Nobody is closed as idle within `settle` of its last answer, or of its connect (G1).
fn settles(ran: &Ran, peer: &Peer, answers: &[&Answer]) -> Result<(), String> {
    let client = peer.client.as_ref().expect("it is connected");
    let Some(ended) = client.ended_at() else {
        return Ok(());
    };
    let told = answers
        .last()
        .is_some_and(|it| it.says_close || it.status != 200);
    let lost = peer.answers.rest(&[]).is_some();
    let sent = peer
        .requests
        .iter()
        .filter(|it| it.first_at.is_some())
        .count();
    let idle = !told && !lost && sent == answers.len() && peer.left.is_none() && peer.is_plain();
    if !idle || ended <= ran.drained || ended >= ran.deadline || ran.plan.ends_single_ones() {
        return Ok(());
    }
    let quiet = client.last_written().max(peer.connected);
    if ended + 1 < quiet + ran.plan.settle {
        return Err(format!(
            "ended at {ended}, quiet since {quiet}, settle {}",
            ran.plan.settle
        ));
    }
    Ok(())
}

/// It was there, whole, before the server ended its side, and nothing said that no more would be answered.
fn must_be_answered(ran: &Ran, peer: &Peer, n: usize, answers: &[&Answer]) -> bool {
    let client = peer.client.as_ref().expect("there is a request");
    let ended = client.ended_at().unwrap_or(u64::MAX);
    if !peer.is_fair() {
        return false;
    }
    let mut done = 0;
    for (i, request) in peer.requests[..=n].iter().enumerate() {
        let (Some(whole), Some(takes)) = (request.whole_at, request.kind.takes()) else {
            return false;
        };
        // So much fits in a millisecond.
        let size = body_of(request.kind, &request.name).len() + 300;
        done = done.max(whole) + takes + (size / peer.room) as u64;
        if i < n {
            let closes = request.asks_close || request.kind.says_close();
            let said = answers.get(i).is_some_and(|it| it.says_close);
            // hyper closes where it would have to read a body that nobody wants.
            let unread = request.has_body && !matches!(request.kind, Kind::After(_));
            if closes || said || unread {
                return false;
            }
        }
    }
    // hyper loses what it has not flushed when a handler panics at once.
    let pipelined = |it: &&super::client::Request| it.first_at.is_some_and(|at| at <= done);
    if peer.requests[n + 1..]
        .iter()
        .take_while(pipelined)
        .any(|it| it.kind == Kind::Panics)
    {
        return false;
    }
    let whole = peer.requests[n].whole_at.unwrap_or(u64::MAX);
    whole < ended && done + NEAR < ran.deadline
}
