//! What must be true of every run, by what went over the wire.

use super::Ran;
use super::client::{Answer, HALVES, Kind, Peer, Request};
use super::client2::{End, Ends, Stream};
use super::frames::Silent;
use super::net::{Client, Fault, Got};
use super::notes::{self, Work};
use super::server::{Call, Front, body_of};
use super::tunnel::{Host, Tunnel};
use crate::IdlePolicy;

/// From the deadline to the last byte (G10).
const CUT: u64 = 150;

/// What is to be done this close to the deadline may be cut or not.
const NEAR: u64 = 5;

/// What was written last may be on its way for so long.
const LINGER: u64 = 1_000;

pub(crate) fn check(ran: &Ran) -> Result<(), String> {
    phases(ran, NEAR)?;
    counts(ran)?;
    nothing_is_left(ran)?;
    // Behind half a body comes what is none of it.
    let is_half = |name: &str| {
        let mut asked = ran.peers.iter().flat_map(|peer| &peer.requests);
        asked.any(|it| it.half && it.name == *name)
    };
    if let Some(name) = ran.notes.holes.iter().find(|it| !is_half(it)) {
        return Err(format!("{name} was given what was not sent so"));
    }
    for work in &ran.notes.works {
        of_work(ran, work).map_err(|what| format!("{what}: {work:?}"))?;
    }
    for stream in &ran.streams {
        of_stream(ran, stream)?;
    }
    for silent in &ran.silent {
        of_silent(ran, silent).map_err(|what| format!("client {}: {what}", silent.id))?;
    }
    for tunnel in &ran.tunnels {
        let tunnel = tunnel.lock();
        of_tunnel(ran, &tunnel).map_err(|what| format!("{what}: {tunnel:?}"))?;
    }
    for peer in &ran.peers {
        of_peer(ran, peer).map_err(|what| format!("client {}: {what}", peer.id))?;
    }
    Ok(())
}

/// By a process that has few descriptors: who waits for one is served late, while serving perhaps not at all.
pub(crate) fn check_scarce(ran: &Ran) -> Result<(), String> {
    // Without a descriptor no queue is found empty, and it is asked again some milliseconds later.
    phases(ran, 4 * NEAR)?;
    // Those that are detached are not waited for, and may have them all, as may others.
    if ran.notes.detached.is_empty() && !ran.starved {
        counts(ran)?;
    }
    nothing_is_left(ran)?;
    for work in &ran.notes.works {
        of_work(ran, work).map_err(|what| format!("{what}: {work:?}"))?;
    }
    let alone = |(_, call): &(u64, Call)| matches!(call, Call::ForceOne(_));
    let cut = ran.over + NEAR >= ran.deadline || ran.plan.calls.iter().any(alone) || ran.starved;
    let cut = cut || ran.plan.head.is_some() || ran.plan.quiet.is_some();
    for peer in ran
        .peers
        .iter()
        .filter(|peer| !cut && peer.front.is_whole())
    {
        let asked = peer.is_fair() && peer.fault == Fault::None && peer.has_sent_all();
        let wanted = asked && !peer.leaves() && peer.is_plain() && peer.reads_all();
        // Its first is what it has come with, and behind that it may be told to go elsewhere.
        let first = peer
            .requests
            .first()
            .filter(|it| it.first_at < Some(ran.drained));
        let Some(first) = first.filter(|it| wanted && it.kind.takes().is_some()) else {
            continue;
        };
        if peer.client.is_some() && peer.answers.whole.is_empty() {
            return Err(format!(
                "client {}: {first:?} was not answered: {}",
                peer.id, ran.report
            ));
        }
    }
    Ok(())
}

/// Neither a socket nor a listener in the moment of its end, and whoever serves has learned of that (G10, G14).
fn nothing_is_left(ran: &Ran) -> Result<(), String> {
    let left = |(_, at): &(usize, Option<u64>)| at.is_none_or(|at| at > ran.over);
    if ran.closed.iter().any(left) || ran.listening > 0 {
        return Err(format!("a socket was not closed: {}", ran.left));
    }
    if ran.serving > 0 {
        return Err(format!("{} go on serving", ran.serving));
    }
    Ok(())
}

/// They come when they are to, the deadline is where the calls have put it, and it is over this soon behind the last
/// that is waited for (G10, G12, G16).
fn phases(ran: &Ran, near: u64) -> Result<(), String> {
    if ran.over > ran.deadline + CUT {
        return Err(format!("over at {}, deadline {}", ran.over, ran.deadline));
    }
    let ends = &ran.notes.ends;
    let forced = ends.iter().filter(|(_, grace)| grace.is_none());
    let forced = forced.map(|(at, _)| *at).min().unwrap_or(u64::MAX);
    let called = ends.iter().map(|(at, _)| *at).min().expect("it ends");
    let drains = forced.min(called + ran.plan.lame_duck);
    if ran.drained > drains + 1 || ran.drained < drains {
        return Err(format!(
            "the drain began at {}, not at {drains}",
            ran.drained
        ));
    }
    let due = |before| {
        let of_one = |(at, grace): &(u64, Option<u64>)| match grace {
            Some(grace) => (*at).max(ran.drained) + grace,
            None => *at,
        };
        let called = ends.iter().filter(|(at, _)| *at < before);
        called.map(of_one).min().unwrap_or(u64::MAX)
    };
    // What is detached is cut when everything else has ended.
    let early = ran.deadline + 1 < due(ran.over + 1) && ran.notes.detached.is_empty();
    if early || ran.deadline > due(ran.over).saturating_add(1) {
        return Err(format!(
            "the deadline was {}, not {}",
            ran.deadline,
            due(ran.over)
        ));
    }
    // What is detached is cut then.
    let slack = if ran.notes.detached.is_empty() {
        near
    } else {
        CUT + NEAR
    };
    if ran.over > everything_else(ran).saturating_add(slack) {
        return Err(format!(
            "over at {}, all but those detached were gone at {}",
            ran.over,
            everything_else(ran)
        ));
    }
    if ran.over + 1 < ran.deadline && ran.notes.forced.is_empty() && !ran.report.is_clean() {
        return Err(format!("nothing was cut at {}: {}", ran.over, ran.report));
    }
    Ok(())
}

/// When all was gone but what nobody waits for (G13).
fn everything_else(ran: &Ran) -> u64 {
    let detached = &ran.notes.detached;
    let waited = |who: &usize| !detached.iter().any(|(it, _)| it == who);
    let closed = ran.closed.iter().filter(|(who, _)| waited(who));
    let closed = closed.map(|(_, at)| at.unwrap_or(u64::MAX));
    let works = ran.notes.works.iter().filter(|it| !it.refused);
    let works = works.map(|it| it.gone.unwrap_or(u64::MAX));
    let others = detached.iter().map(|(_, at)| *at).chain([ran.drained]);
    closed.chain(works).chain(others).max().unwrap_or(u64::MAX)
}

/// Each is counted once, as what it was (G18).
fn counts(ran: &Ran) -> Result<(), String> {
    // Those that had gone before are not of interest.
    let since = |at| ran.closed.iter().filter(|(_, it)| *it >= Some(at)).count();
    let report = &ran.report;
    let counted = report.connections() + report.lost_in_queue;
    let (least, most) = (since(ran.began + 1), since(ran.began.saturating_sub(1)));
    if counted < least || counted > most {
        return Err(format!("{least} to {most} were there: {report}"));
    }
    let mut goodbyes = 0;
    for tunnel in &ran.tunnels {
        let tunnel = tunnel.lock();
        let ended = tunnel.ended.filter(|_| tunnel.goodbye).unwrap_or(0);
        goodbyes += usize::from(ended > ran.began && ended + NEAR < ran.deadline);
    }
    if report.upgraded < goodbyes {
        return Err(format!("{goodbyes} have said goodbye: {report}"));
    }
    let late = ran.peers.iter().map(|peer| {
        let late = |it: &&Answer| it.status == 503 && peer.written_at(it.begins) > ran.drained;
        peer.answers.whole.iter().filter(late).count()
    });
    let late: usize = late.sum();
    if report.answered_at_deadline < late {
        return Err(format!("{late} were answered late: {report}"));
    }
    let idle = ran.peers.iter().filter(|peer| {
        let ended = peer.client.as_ref().and_then(Client::ended_at);
        let in_drain = ended.is_some_and(|it| it > ran.began + 1 && it + NEAR < ran.deadline);
        in_drain && peer.front.is_whole() && is_idle(ran, peer) && !ran.plan.ends_single_ones()
    });
    let idle = idle.count();
    if report.idle < idle {
        return Err(format!("{idle} were idle: {report}"));
    }
    let works = |at| {
        let held = |it: &&Work| it.holds && !it.refused && it.began + it.takes >= at;
        ran.notes.works.iter().filter(held).count()
    };
    let begun = |it: &&Work| it.began < ran.over;
    let held = works(ran.over + 2).min(ran.notes.works.iter().filter(begun).count());
    if report.guards_cut < held || report.guards_cut > works(ran.over.saturating_sub(2)) {
        return Err(format!("{held} guards were held: {report}"));
    }
    are_few(ran)
}

/// No more are counted as answered late, or as idle, than can have been (G18).
fn are_few(ran: &Ran) -> Result<(), String> {
    let report = &ran.report;
    let unanswered = unanswered(ran);
    // At the deadline whatever has come is taken for a request.
    let rubbish = ran.peers.iter().filter(|peer| peer.rubbish.is_some());
    let late = unanswered.len() + rubbish.count();
    if report.answered_at_deadline > late {
        return Err(format!("no more than {late} were late: {report}"));
    }
    // Who has not read all may have been answered.
    let knows = |who: usize| {
        let mut peers = ran.peers.iter().filter(|peer| peer.id == who);
        peers.all(|peer| peer.is_fair() && peer.reads_all())
    };
    let called = |it: &&str| ran.notes.was_called(it).is_some();
    let called: Vec<_> = unanswered
        .into_iter()
        .filter(called)
        .map(notes::who)
        .collect();
    let in_hand = |who: usize| knows(who) && called.contains(&who);
    let since = Some(ran.began.saturating_sub(1));
    let closed = ran.closed.iter().filter(|(_, at)| *at >= since);
    let idle = closed.filter(|(who, _)| !in_hand(*who)).count();
    if report.idle > idle {
        return Err(format!("no more than {idle} were idle: {report}"));
    }
    Ok(())
}

/// Those that their clients have begun to send, or handlers were called with, and of whose answers the end did not come.
fn unanswered(ran: &Ran) -> Vec<&str> {
    let sent = ran.peers.iter().flat_map(|peer| &peer.requests);
    let sent = sent.filter(|it| it.first_at.is_some());
    let sent = sent.map(|it| &*it.name);
    let called = ran.notes.called.iter().map(|(name, _)| &**name);
    let mut all: Vec<_> = sent.chain(called).collect();
    all.sort_unstable();
    all.dedup();
    let of_peers = ran.peers.iter().flat_map(|peer| {
        let answers = peer.requests.iter().zip(&peer.answers.whole);
        answers.filter_map(|(asked, it)| (it.status == 200).then_some(&*asked.name))
    });
    let of_streams = ran.streams.iter();
    let of_streams = of_streams.filter(|it| it.end == End::Answered(200));
    let of_streams = of_streams.map(|it| &*it.name);
    let silent = ran.silent.iter().flat_map(|it| &it.asked);
    let of_silent = silent.filter_map(|it| it.answered.then_some(&*it.name));
    let answered: Vec<_> = of_peers.chain(of_streams).chain(of_silent).collect();
    all.retain(|name| !answered.contains(name));
    all
}

/// It is waited for, and nothing is cut before the deadline (G17).
fn of_work(ran: &Ran, work: &Work) -> Result<(), &'static str> {
    let due = work.began + work.takes;
    if work.holds && !work.refused && work.began > ran.drained {
        return Err("was begun in the drain");
    }
    if work.refused {
        return if work.began < ran.drained {
            Err("was refused before the drain")
        } else {
            Ok(())
        };
    }
    if work.began + 1 >= ran.over || due + NEAR >= ran.deadline {
        let cut = ran.deadline.max(work.began) + NEAR;
        return match work.gone {
            // Spawned, it gives way.
            Some(gone) if !work.holds && gone > cut && due > cut => {
                Err("was not cut at the deadline")
            }
            _ => Ok(()),
        };
    }
    match work.done {
        None => Err("was cut"),
        Some(done) if ran.over < done => Err("was not waited for"),
        Some(_) => Ok(()),
    }
}

/// For a connection, which may have one of its own.
fn deadline_of(ran: &Ran, id: usize) -> u64 {
    let forced = ran.notes.forced_at(id);
    forced.unwrap_or(u64::MAX).min(ran.deadline)
}

/// Every stream ends, what was begun is cut by the deadline only, or by its handler, and what is refused was not
/// begun (G9).
fn of_stream(ran: &Ran, stream: &Stream) -> Result<(), String> {
    let who = notes::who(&stream.name);
    let deadline = deadline_of(ran, who);
    let takes = stream.kind.takes();
    let takes = match (&stream.upload, stream.kind) {
        // It reads all of that first.
        (Some(upload), Kind::After(_)) => takes
            .max(upload.takes())
            .filter(|_| upload.ends != Ends::Never),
        _ => takes,
    };
    let due = takes.map(|ms| stream.began + ms);
    let cut = stream.ended + NEAR >= deadline;
    // While serving nobody is refused who was not told.
    let one = ran.plan.ends_single_ones() || ran.plan.quiet.is_some();
    let called = ran.notes.ends.iter().map(|(at, _)| *at).min();
    let told = one || ran.notes.told.contains(&who) || called.is_none_or(|at| stream.ended >= at);
    // Whose client owes the rest of a body, and rests, stalls.
    let never = |it: &Stream| it.upload.as_ref().is_some_and(|it| it.ends == Ends::Never);
    let mut of_same = ran.streams.iter().filter(|it| notes::who(&it.name) == who);
    let owes = of_same.any(never);
    let fine = match &stream.end {
        End::Answered(200) | End::Cancelled => true,
        End::Refused => ran.notes.was_called(&stream.name).is_none() && told || cut,
        End::Answered(503) => cut,
        End::Broken(_) => cut || due.is_none() || owes && stream.rests > 0,
        // The connection itself, with whatever is on it.
        End::Closed => told || cut,
        End::Answered(_) | End::Wrong(_) | End::Open => false,
    };
    // It may rest in the middle of its answer, and so may the big ones that it shares the window with.
    let big = |it: &&Stream| matches!(it.kind, Kind::Big(_)) && it.name != stream.name;
    let shared = ran.streams.iter().filter(big);
    let shared = shared.filter(|it| notes::who(&it.name) == who);
    let rests = stream.rests + shared.map(|it| it.rests).sum::<u64>();
    let lag = ran.plan.fronts.iter().map(|it| it.lag()).max().unwrap_or(0);
    let by = due.map(|due| due + lag + rests + NEAR);
    let by = by.filter(|_| !stream.cuts && stream.end == End::Answered(200));
    if let Some(by) = by.filter(|by| stream.ended > *by) {
        return Err(format!("{stream:?}, not by {by}"));
    }
    if !fine {
        return Err(format!("{stream:?}, deadline {deadline}"));
    }
    upload_behind_an_answer(ran, stream, deadline)
}

/// Who has an answer already, and sends on to somebody who reads it, is in hand until that has come (G5, G9).
fn upload_behind_an_answer(ran: &Ran, stream: &Stream, deadline: u64) -> Result<(), String> {
    let (Kind::Gives(ms), Some(upload)) = (stream.kind, &stream.upload) else {
        return Ok(());
    };
    let Some(takes) = upload.takes().filter(|_| stream.end == End::Answered(200)) else {
        return Ok(());
    };
    let read = stream.began.max(stream.ended) + takes + ms + NEAR;
    let is_read = |(name, n): &(String, usize)| *name == stream.name && *n == upload.length();
    if !stream.cuts && read < deadline && !ran.notes.bodies.iter().any(is_read) {
        return Err(format!(
            "the body of {stream:?} was not read to its end by {read}"
        ));
    }
    Ok(())
}

/// Whoever acknowledges nothing is answered all the same, and ends (G4, G9).
fn of_silent(ran: &Ran, silent: &Silent) -> Result<(), String> {
    let Some(client) = &silent.client else {
        return Ok(());
    };
    if ran.plan.head.is_some() || ran.plan.quiet.is_some() {
        return Ok(());
    }
    let deadline = deadline_of(ran, silent.id);
    let ended = client.ended_at().unwrap_or(u64::MAX);
    let in_drain = ended > ran.drained && ended + NEAR < deadline && silent.end == Some(Got::End);
    // It may have stalled before its turn.
    let told = !ran.plan.ends_single_ones() && !ran.plan.is_spread();
    if in_drain && silent.has_settings && silent.goaways == 0 && told {
        return Err(format!("ended at {ended}, and was not told to go away"));
    }
    let called = ran.notes.ends.iter().map(|(at, _)| *at).min();
    if called.is_some_and(|called| ended < called) && !ran.plan.ends_single_ones() {
        return Err(format!("ended at {ended}, while serving"));
    }
    let mut last = silent.last_sent;
    for asked in &silent.asked {
        let called = ran.notes.was_called(&asked.name);
        let Some(whole) = asked.whole_at else {
            if called.is_some() {
                // Its handler waits for the rest, until the deadline.
                last = deadline;
            }
            continue;
        };
        if asked.reset {
            // Whatever its handler is at.
            last = last.max(whole);
            continue;
        }
        // Its server may have waited before it accepted.
        let lag = ran.plan.fronts.iter().map(|it| it.lag()).max().unwrap_or(0);
        let due = called.unwrap_or(whole + lag) + asked.kind.takes().unwrap_or(0);
        // Its handler reads what comes.
        let due = due.max(whole);
        last = last.max(due);
        // Later ones may be above the last GOAWAY's stream.
        let begun = whole < ran.drained && whole < ended;
        let begun = begun || called.is_some();
        if begun && !asked.answered && due + NEAR < deadline && !ran.plan.ends_single_ones() {
            return Err(format!("{asked:?} was not answered, ended {ended}"));
        }
    }
    // What is written last, of one that has stalled, is the GOAWAY by which it ends.
    let had_stalled = silent.goaways > 1 && last + ran.plan.stall <= ended;
    let last = last.max(client.last_written());
    let waits = waits(ran, longest_grace(ran)).max(ran.plan.spreads_over());
    let idle = ran.drained + waits;
    // Once it has stalled, its end is to be read, and behind an answer what nobody knows to have been.
    let lingers = if silent.asked.iter().any(|it| it.answered) {
        LINGER
    } else {
        ran.plan.stall
    };
    let bound = last.max(idle) + ran.plan.stall + lingers + NEAR;
    if ended > bound.min(deadline + CUT) {
        return Err(format!("ended at {ended}, not by {bound}"));
    }
    // Nobody who may still go on is closed before it was due to.
    let owed = !silent.spoke
        || silent.last_sent >= ended
        || silent.has_sent_all()
        || had_stalled
        || last + ran.plan.stall <= ended;
    if !owed && ended + NEAR < deadline && !ran.plan.ends_single_ones() {
        return Err(format!("was closed at {ended}, having sent at {last}"));
    }
    Ok(())
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
    let cut = ended + NEAR >= deadline_of(ran, tunnel.id);
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
    // Its host reads what is there before it hears of the drain.
    let by = ended.min(ran.drained).saturating_sub(NEAR);
    let sent = tunnel.sent.iter().rfind(|(at, _)| *at <= by);
    let sent = sent.map_or(0, |(_, n)| *n);
    match tunnel.host {
        _ if tunnel.wrong.is_some() => Err("something else came back"),
        _ if left || cut => Ok(()),
        Host::Polite if !tunnel.goodbye => Err("was cut without a goodbye"),
        Host::Polite if tunnel.echoed < sent => Err("has lost what was sent"),
        Host::Polite if alone => Ok(()),
        Host::Polite if ended + 1 < ran.drained => Err("was told before the drain"),
        Host::Polite if ended > told.max(tunnel.opened.unwrap_or(0) + NEAR) => Err("was told late"),
        Host::Polite => Ok(()),
        Host::Deaf => Err("was cut before the deadline"),
        Host::Detached => Err("was cut while it may have been left alone"),
    }
}

fn of_peer(ran: &Ran, peer: &Peer) -> Result<(), String> {
    port(ran, peer)?;
    let Some(client) = &peer.client else {
        return Ok(());
    };
    if let Some(at) = ran.notes.forced_at(peer.id) {
        let closed = client.closed_at().unwrap_or(u64::MAX);
        if closed > at + CUT && peer.front.is_whole() {
            return Err(format!("was forced at {at}, and closed at {closed}"));
        }
    }
    if peer.fault != Fault::None {
        // It breaks its own connection, and no other.
        return Ok(());
    }
    let head_only: Vec<_> = peer.requests.iter().map(|it| it.head_only).collect();
    let rest = peer.answers.rest(&head_only);
    let by_end = match &rest {
        Some(Some(answer)) => Some(answer),
        _ => None,
    };
    let answers: Vec<_> = peer.answers.whole.iter().chain(by_end).collect();
    let deadline = deadline_of(ran, peer.id);
    // In order, each once, and whole; and what is no request is refused at most once.
    let asked = peer.requests.iter().filter(|it| it.first_at.is_some());
    let most = asked.count() + usize::from(peer.rubbish.is_some());
    if answers.len() > most {
        return Err(format!("{} answers, not {most}", answers.len()));
    }
    for (answer, request) in answers.iter().zip(&peer.requests) {
        let whole = body_of(request.kind, &request.name);
        let no_body = request.head_only;
        let ok = answer.status == 200 && (answer.body == whole || no_body);
        let late = answer.status == 503 && peer.written_at(answer.begins) + NEAR >= deadline;
        let broken = answer.status == 400;
        if answer.by_close && (peer.end == Some(Got::Reset) || !peer.front.is_whole()) {
            continue; // it can be told, or hyper alone knows
        }
        if !(ok || late || broken) {
            return Err(format!("answer to {}: {answer:?}", request.name));
        }
    }
    is_called(ran, peer)?;
    is_kept(ran, peer)?;
    settles(ran, peer, &answers)?;
    is_prompt(ran, peer)?;
    stalls(ran, peer)?;
    is_bounded(ran, peer)?;
    is_rotated(ran, peer)?;
    says_goodbye(ran, peer)?;
    for (n, request) in peer.requests.iter().enumerate() {
        let after_close = n > 0 && answers.get(n - 1).is_some_and(|it| it.says_close);
        if after_close && ran.notes.was_called(&request.name).is_some() {
            return Err(format!("{} was processed behind a close", request.name));
        }
        if answers.get(n).is_some_and(|it| it.status == 200) {
            said_close(ran, peer, &answers[..=n])?;
            is_in_time(peer, n, answers[n])?;
            continue;
        }
        if answers.len() == n && must_be_told_late(ran, peer, n) {
            return Err(format!("{} was not answered 503", request.name));
        }
        if must_be_answered(ran, peer, n, &answers) {
            return Err(format!(
                "{} ({:?}, whole at {:?}) was not answered: {:?}, drained {}, deadline {}, ended {:?}",
                request.name,
                request.kind,
                request.whole_at,
                peer.end,
                ran.drained,
                deadline,
                client.ended_at(),
            ));
        }
    }
    Ok(())
}

/// Before the drain nobody is refused, and soon after it everybody (G14).
fn port(ran: &Ran, peer: &Peer) -> Result<(), String> {
    let drops = |(_, call): &(u64, Call)| matches!(call, Call::DropServe);
    let drops = peer.front == Front::Serve && ran.plan.calls.iter().any(drops);
    let at = peer.connected;
    if peer.refused && at < ran.drained && !drops {
        return Err(format!("was refused at {at}, drained {}", ran.drained));
    }
    if peer.client.is_some() && at > ran.drained + NEAR && at < ran.over {
        return Err(format!("could connect at {at}, drained {}", ran.drained));
    }
    let dropped = |(at, call): &(u64, Call)| matches!(call, Call::DropServe).then_some(*at);
    let dropped = ran.plan.calls.iter().find_map(dropped);
    let dropped = dropped.filter(|_| peer.port == 0 && peer.client.is_some());
    if dropped.is_some_and(|dropped| at > dropped + NEAR) {
        return Err(format!("could connect at {at}, dropped at {dropped:?}"));
    }
    Ok(())
}

/// Whatever becomes of accepting, nobody waits for long (G15).
fn is_called(ran: &Ran, peer: &Peer) -> Result<(), String> {
    let Some(first) = peer.requests.first() else {
        return Ok(());
    };
    let (whole, called) = (first.whole_at, ran.notes.was_called(&first.name));
    let due = whole.map(|whole| whole.max(peer.connected + peer.lag) + NEAR);
    if due.is_some_and(|due| called.is_some_and(|called| called > due)) {
        return Err(format!(
            "{} was called at {called:?}, not by {due:?}",
            first.name
        ));
    }
    Ok(())
}

/// While serving, nobody is closed for nothing, also when its server has been dropped (G14); nor as if it was old, or had
/// brought as many requests as it may, before that is so (G21).
fn is_kept(ran: &Ran, peer: &Peer) -> Result<(), String> {
    let client = peer.client.as_ref().expect("it is connected");
    let bounded = ran.plan.head.is_some() || ran.plan.quiet.is_some();
    let alone = ran.notes.told.contains(&peer.id) || ran.notes.forced_at(peer.id).is_some();
    let kept = peer.is_plain() && peer.is_fair() && !peer.leaves() && !alone;
    let ended = client.ended_at().unwrap_or(u64::MAX);
    // From a lame duck on answers may say so, which a slow reader learns late.
    let called = ran.notes.ends.iter().map(|(at, _)| *at).min();
    let serving = called.is_some_and(|called| ended < called);
    let young = |age: u64| ended + 1 < peer.connected + age - age / 10;
    let young = ran.plan.age.is_none_or(young);
    let begun = |it: &&Request| ran.notes.was_called(&it.name).is_some();
    let brought = peer.requests.iter().filter(begun).count() as u64;
    let few = ran.plan.number.is_none_or(|most| brought < most);
    if kept && !bounded && young && few && peer.front.is_whole() && serving {
        return Err(format!("ended at {ended}, for nothing"));
    }
    Ok(())
}

/// Of a head that went out in the drain (G5); behind an answer that did, hyper may have had it for long.
fn said_close(ran: &Ran, peer: &Peer, answers: &[&Answer]) -> Result<(), String> {
    let answer = answers[answers.len() - 1];
    let at = peer.written_at(answer.begins);
    let waited = answer.begins > 0 && peer.written_at(answer.begins - 1) >= ran.drained;
    // As may what encrypts it.
    let asked = &peer.requests[answers.len() - 1];
    let called = ran.notes.was_called(&asked.name);
    let ready = called.and_then(|called| Some(called + asked.kind.takes()?));
    let kept = peer.front == Front::Records && ready.is_some_and(|ready| ready < ran.drained);
    let waited = waited || kept;
    // hyper itself is told later.
    let told = !ran.plan.is_spread() && peer.front != Front::Bare;
    if at > ran.drained && !waited && !answer.says_close && told {
        return Err(format!("at {at}, in the drain, without close: {answer:?}"));
    }
    Ok(())
}

/// A whole answer is no later than what it waits for (G2, G5).
fn is_in_time(peer: &Peer, n: usize, answer: &Answer) -> Result<(), String> {
    let timed = peer.is_plain() && peer.is_fair() && peer.reads_all() && peer.front.is_whole();
    let Some(due) = due(peer, n).filter(|_| timed) else {
        return Ok(());
    };
    let written = peer.written_at(answer.ends - 1);
    if written > due + NEAR {
        let name = &peer.requests[n].name;
        return Err(format!("{name} was answered at {written}, not by {due}"));
    }
    Ok(())
}

/// Everything that it asked for is answered, and nothing says that this was the end.
fn is_idle(ran: &Ran, peer: &Peer) -> bool {
    let all = peer.answers.whole.len() == peer.requests.len();
    let told = |it: &Answer| it.says_close || it.status != 200;
    // Under TLS it has spoken.
    let spoken = peer.front != Front::Records || !peer.requests.is_empty();
    let stays = peer.is_fair() && peer.left.is_none() && !peer.leaves();
    let one = ran.notes.told.contains(&peer.id) || ran.notes.forced_at(peer.id).is_some();
    all && peer.has_sent_all()
        && peer.is_plain()
        && !peer.answers.whole.last().is_some_and(told)
        && peer.answers.rest(&[]).is_none()
        && stays
        && spoken
        && !one
        && peer.reads_all()
        && peer.client.is_some()
}

/// Nobody is closed as idle within `settle` of its last answer, or of its connect (G1), nor before the policy
/// wants it (G3).
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
    // Half of what TLS begins with is something else.
    let speaks = peer.has_sent_all() && peer.last_sent < ended;
    let speaks = speaks || peer.front != Front::Records;
    if !peer.front.is_whole() || ran.notes.told.contains(&peer.id) || !speaks {
        return Ok(());
    }
    let quiet = peer.quiet_since();
    if ended + 1 < quiet + ran.plan.settle {
        return Err(format!(
            "ended at {ended}, quiet since {quiet}, settle {}",
            ran.plan.settle
        ));
    }
    if let IdlePolicy::LastRequest { .. } = ran.plan.idle {
        let wait = waits(ran, ran.deadline - ran.drained);
        if ended + 1 < ran.drained + wait {
            return Err(format!("ended at {ended}, waits {wait}"));
        }
    }
    Ok(())
}

/// For how long the policy keeps those that are idle, in milliseconds: within the grace period.
fn waits(ran: &Ran, grace: u64) -> u64 {
    let (IdlePolicy::LastRequest { wait: time } | IdlePolicy::Spread { over: time }) =
        ran.plan.idle
    else {
        return 0;
    };
    let time = u64::try_from(time.as_millis()).expect("short");
    time.min(grace.saturating_sub(ran.plan.settle + 100))
}

/// The longest that any call has given.
fn longest_grace(ran: &Ran) -> u64 {
    let given = ran.notes.ends.iter().filter_map(|(_, grace)| *grace);
    given.max().unwrap_or(0)
}

/// Who is idle is closed when it is due (G1, G3).
fn is_prompt(ran: &Ran, peer: &Peer) -> Result<(), String> {
    let client = peer.client.as_ref().expect("it is connected");
    let prompt = peer.front.is_whole() && peer.lag == 0 && is_idle(ran, peer);
    if !prompt || ran.plan.ends_single_ones() {
        return Ok(());
    }
    let due = (peer.quiet_since().max(peer.last_sent) + ran.plan.settle)
        .max(ran.drained + waits(ran, longest_grace(ran)));
    let ended = client.ended_at().unwrap_or(u64::MAX);
    if ended > due.min(ran.deadline + CUT) + NEAR {
        return Err(format!("ended at {ended}, was idle at {due}"));
    }
    Ok(())
}

/// Who owes the rest of a head is waited for so long, and no longer (G4).
fn stalls(ran: &Ran, peer: &Peer) -> Result<(), String> {
    let client = peer.client.as_ref().expect("it is connected");
    let half = peer.rubbish.is_some_and(|n| n < HALVES) && peer.has_sent_all();
    let all = peer.answers.whole.len() == peer.requests.len();
    let told = |it: &Answer| it.says_close || it.status != 200;
    let told = peer.answers.whole.iter().any(told);
    let stays = peer.is_fair() && !peer.leaves() && peer.reads_all() && peer.is_plain_but_rubbish();
    let owes = half && all && !told && stays && peer.front.is_whole() && peer.lag == 0;
    let ended = client.ended_at().unwrap_or(u64::MAX);
    if !owes || ran.plan.ends_single_ones() || peer.last_sent >= ended {
        return Ok(());
    }
    let since = peer.last_sent.max(peer.quiet_since()).max(ran.drained);
    let due = since + ran.plan.stall;
    if ended > due.min(ran.deadline + CUT) + NEAR {
        return Err(format!("ended at {ended}, had stalled at {due}"));
    }
    let early = ran.plan.head.is_none() && ended + NEAR < ran.deadline;
    if early && ended + 1 < peer.last_sent.max(ran.drained) + ran.plan.stall {
        return Err(format!("ended at {ended}, would have stalled at {due}"));
    }
    Ok(())
}

/// While serving, who is idle is closed when that has a bound, and not before; and half a head has one (G22).
fn is_bounded(ran: &Ran, peer: &Peer) -> Result<(), String> {
    let client = peer.client.as_ref().expect("it is connected");
    let ended = client.ended_at().unwrap_or(u64::MAX);
    if !peer.front.is_whole() || ran.plan.ends_single_ones() {
        return Ok(());
    }
    if is_idle(ran, peer) {
        let due = ran.plan.quiet.map(|bound| peer.quiet_since() + bound);
        if ended < ran.drained && due.is_none_or(|due| ended + 1 < due) {
            return Err(format!("ended at {ended}, while serving"));
        }
        let due = due.map(|due| due.max(peer.last_sent + ran.plan.quiet.unwrap_or(0)) + peer.lag);
        if due.is_some_and(|due| due + NEAR < ran.drained && ended > due + NEAR) {
            return Err(format!(
                "ended at {ended}, was idle for too long at {due:?}"
            ));
        }
    }
    let half = peer.rubbish.is_some_and(|n| n < HALVES) && peer.has_sent_all();
    let all = peer.answers.whole.len() == peer.requests.len();
    let due = ran
        .plan
        .head
        .map(|bound| peer.last_sent.max(peer.quiet_since()) + bound);
    let due = due.filter(|_| half && all && peer.is_plain_but_rubbish() && peer.is_fair());
    // The drain has a bound of its own.
    let due = due.filter(|due| due + peer.lag + NEAR < ran.drained);
    if due.is_some_and(|due| ended > due + peer.lag + NEAR) {
        return Err(format!(
            "ended at {ended}, was half a head for too long at {due:?}"
        ));
    }
    Ok(())
}

/// Who is old is ended, and so is who has brought as many requests as it may (G21).
fn is_rotated(ran: &Ran, peer: &Peer) -> Result<(), String> {
    let client = peer.client.as_ref().expect("it is connected");
    if !peer.front.is_whole() {
        return Ok(());
    }
    let brought = peer.answers.whole.len() as u64;
    if ran.plan.number.is_some_and(|most| brought > most) {
        return Err(format!("brought {brought} requests"));
    }
    let Some(age) = ran.plan.age.filter(|_| is_idle(ran, peer)) else {
        return Ok(());
    };
    let old = peer.connected + peer.lag + age + age / 10;
    let waits = match ran.plan.idle {
        IdlePolicy::LastRequest { wait } => u64::try_from(wait.as_millis()).expect("short"),
        _ => 0,
    };
    let quiet = peer.quiet_since().max(peer.last_sent);
    // Who has not asked yet has a second for that.
    let unhurried = if brought == 0 { 1_000 } else { age.min(1_000) };
    let due = (old + waits).max(quiet + unhurried.max(ran.plan.settle));
    let ended = client.ended_at().unwrap_or(u64::MAX);
    if ended > due.min(ran.deadline + CUT) + NEAR {
        return Err(format!("ended at {ended}, was old at {due}"));
    }
    Ok(())
}

/// Under TLS its client learns that nothing is missing (G8).
fn says_goodbye(ran: &Ran, peer: &Peer) -> Result<(), String> {
    let client = peer.client.as_ref().expect("it is connected");
    let ended = client.ended_at().unwrap_or(u64::MAX);
    let orderly = peer.is_plain() && peer.is_fair() && !peer.leaves() && peer.end == Some(Got::End);
    let answered = !peer.requests.is_empty() && peer.answers.whole.len() == peer.requests.len();
    if orderly && answered && ended + NEAR < deadline_of(ran, peer.id) && peer.lacks_goodbye() {
        return Err(format!("ended at {ended} without a goodbye"));
    }
    Ok(())
}

/// At the deadline its handler had not answered (G10).
fn must_be_told_late(ran: &Ran, peer: &Peer, n: usize) -> bool {
    let request = &peer.requests[n];
    let client = peer.client.as_ref().expect("there is a request");
    let deadline = deadline_of(ran, peer.id);
    let called = ran.notes.was_called(&request.name);
    let takes = request.kind.takes().unwrap_or(u64::MAX / 2);
    let late = called.is_some_and(|at| at + NEAR < deadline && at + takes > deadline + NEAR);
    let kept = client.ended_at().is_some_and(|at| at + 1 >= deadline);
    // What is sent behind the end destroys what its client has not read.
    let crosses = peer.end == Some(Got::Reset) && Some(peer.last_sent) >= client.ended_at();
    let hangs = matches!(request.kind, Kind::After(_) | Kind::Unread(_) | Kind::Hangs);
    let own = ran.notes.forced_at(peer.id).is_none() || peer.front != Front::Records;
    ran.plan.answer
        && late
        && kept
        && !crosses
        && hangs
        && own
        && peer.front.is_whole()
        && peer.reads_all()
        && peer.is_fair()
        && !peer.leaves()
        // From outside it goes out at one go, for which any kernel has room.
        && peer.room >= 256
}

/// When it has its answer to that request, should it end, and those before.
fn due(peer: &Peer, n: usize) -> Option<u64> {
    let mut done = 0;
    for request in &peer.requests[..=n] {
        let (whole, takes) = (request.whole_at?, request.kind.takes()?);
        let size = body_of(request.kind, &request.name).len() + 300;
        done = peer.reads(size, done.max(whole).max(peer.connected + peer.lag) + takes);
    }
    Some(done)
}

/// Its first byte was there before the server ended its side, its rest came in time, and nothing said that no more would
/// be answered.
fn must_be_answered(ran: &Ran, peer: &Peer, n: usize, answers: &[&Answer]) -> bool {
    let client = peer.client.as_ref().expect("there is a request");
    let ended = client.ended_at().unwrap_or(u64::MAX);
    let deadline = deadline_of(ran, peer.id);
    if !peer.is_fair() {
        return false;
    }
    let Some(done) = due(peer, n) else {
        return false;
    };
    for (i, request) in peer.requests[..n].iter().enumerate() {
        let closes = request.asks_close || request.kind.says_close();
        let said = answers.get(i).is_some_and(|it| it.says_close);
        // hyper closes where it would have to read a body that nobody wants.
        let unread = request.has_body && !matches!(request.kind, Kind::After(_));
        if closes || said || unread {
            return false;
        }
    }
    let pipelined = |it: &&Request| it.first_at.is_some_and(|at| at <= done);
    let behind: Vec<_> = peer.requests[n + 1..]
        .iter()
        .take_while(pipelined)
        .collect();
    if behind.iter().any(|it| it.kind.breaks()) {
        return false;
    }
    let took = |it: &Request| Some(it.whole_at? - it.first_at?);
    let slow = |bound| {
        peer.requests[..=n]
            .iter()
            .any(|it| took(it).is_none_or(|took| took + 1 >= bound))
    };
    if ran
        .plan
        .head
        .is_some_and(|bound| peer.front == Front::Records || slow(bound))
    {
        return false;
    }
    let (Some(first), Some(whole)) = (peer.requests[n].first_at, peer.requests[n].whole_at) else {
        return false;
    };
    // What is begun behind the end destroys what its client has not read; the rest of what came before does not (G8).
    let behind_end = |it: &Request| it.first_at.is_some_and(|at| at >= ended);
    let crosses = peer.requests[n + 1..].iter().any(behind_end) || peer.rubbish.is_some();
    let crosses = crosses || !peer.reads_all() || !peer.front.is_whole();
    if peer.end == Some(Got::Reset) && whole < peer.last_sent && peer.last_sent >= ended && crosses
    {
        return false;
    }
    if !peer.front.is_whole() {
        // hyper loses what it has read of a head, and what is pipelined.
        let alone = first == whole && peer.end != Some(Got::Reset) && peer.left.is_none();
        let before = |n: usize| {
            answers
                .get(n)
                .is_some_and(|it| peer.written_at(it.ends - 1) < first)
        };
        let before = n == 0 || before(n - 1);
        let called =
            done + 1 < ran.drained || ran.notes.was_called(&peer.requests[n].name).is_some();
        return alone
            && before
            && behind.is_empty()
            && called
            && whole < ended
            && done + NEAR < deadline;
    }
    first < ended && done + NEAR < deadline
}
