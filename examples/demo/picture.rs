//! A picture of it: a bar for each connection, the phases as columns. Without a script, light and dark.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::clients::CLIENTS;
use super::{Event, GRACE, Kind, Story};

const LEFT: f64 = 210.0;
const WIDTH: f64 = 960.0;
const TOP: f64 = 54.0;
const ROW: f64 = 30.0;

const STYLE: &str = "
text { font: 13px system-ui, sans-serif; fill: #1b1f24 }
.small { font-size: 11px; fill: #57606a } .on { fill: #ffffff }
.back { fill: #ffffff } .phase { fill: #eef1f4 } .late { fill: #fdeaea } .line { stroke: #8c959f; stroke-dasharray: 3 3 }
.idle { fill: #c9d1d9 } .busy { fill: #4c8eda } .well { fill: #2da44e } .told { fill: #d4a72c } .lost { fill: #cf222e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .on { fill: #ffffff }
  .back { fill: #0d1117 } .phase { fill: #161b22 } .late { fill: #2d1517 }
  .idle { fill: #484f58 } .well { fill: #3fb950 } .lost { fill: #f85149 }
}";

pub(crate) fn html(story: &Story, svg: &str) -> String {
    let (title, report) = (escaped(&story.title), escaped(&story.report));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
        <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}: how it ended</title>\n\
        <style>\nbody {{ margin: 1rem auto; max-width: 62rem; padding: 0 1rem; font: 15px system-ui, sans-serif }}\n\
        svg {{ width: 100%; height: auto }} div {{ overflow-x: auto }} pre {{ white-space: pre-wrap; font-size: 13px }}\n\
        @media (max-width: 40rem) {{ svg {{ width: 48rem }} }}\n\
        @media (prefers-color-scheme: dark) {{ body {{ background: #0d1117; color: #e6edf3 }} }}\n</style>\n\
        <h1>{title}</h1>\n<div>\n{svg}</div>\n<pre>{report}</pre>\n</html>\n"
    )
}

pub(crate) fn svg(story: &Story) -> String {
    let end = story.events.iter().map(|event| event.at);
    let end = end.chain([story.ended, story.called + GRACE]).max();
    let end = end.unwrap_or(story.ended) + Duration::from_millis(100);
    let rows = f64::from(u16::try_from(CLIENTS.len()).unwrap_or(u16::MAX));
    let bottom = TOP + rows * ROW;
    let height = bottom + 44.0;
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
        <title>{}: what each client saw</title>\n<style>{STYLE}\n</style>\n\
        <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n",
        escaped(&story.title)
    );
    let mut picture = Picture {
        story,
        end,
        bottom,
        svg,
    };
    picture.columns();
    picture.bars();
    picture.moments();
    picture.legend();
    picture.svg + "</svg>\n"
}

struct Picture<'a> {
    story: &'a Story,
    /// Of what is drawn.
    end: Instant,
    bottom: f64,
    svg: String,
}

impl Picture<'_> {
    fn x(&self, at: Instant) -> f64 {
        let began = self.story.began;
        let scale = (WIDTH - LEFT - 20.0) / (self.end - began).as_secs_f64();
        LEFT + at.saturating_duration_since(began).as_secs_f64() * scale
    }

    /// The phases.
    fn columns(&mut self) {
        let story = self.story;
        let (over, deadline) = (story.ended.min(self.end), story.called + GRACE);
        self.column("back", story.began, story.called, "serving");
        if story.phases.is_empty() {
            self.column("phase", story.called, over.min(deadline), "told to end");
            if over > deadline {
                self.column("late", deadline, over, "past its deadline");
            }
        }
        for (n, (name, from)) in story.phases.iter().enumerate() {
            let to = story.phases.get(n + 1).map_or(over, |(_, next)| *next);
            let class = if name == "forcing" { "late" } else { "phase" };
            self.column(class, *from, to, name);
        }
    }

    fn column(&mut self, class: &str, from: Instant, to: Instant, name: &str) {
        let from = self.x(from);
        let width = (self.x(to) - from).max(2.0);
        let (top, height) = (TOP - 8.0, self.bottom - TOP + 12.0);
        let (x, y, name) = (from + 3.0, TOP - 14.0, escaped(name));
        // A string takes all that is written to it.
        let _ = writeln!(
            self.svg,
            "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{top:.0}\" width=\"{width:.1}\" height=\"{height:.0}\"/>\
            <text class=\"small\" x=\"{x:.1}\" y=\"{y:.0}\">{name}</text>",
        );
    }

    fn bars(&mut self) {
        for (n, client) in CLIENTS.iter().enumerate() {
            let top = TOP + ROW * f64::from(u16::try_from(n).unwrap_or(u16::MAX));
            let (y, name) = (top + 18.0, client.name);
            let _ = writeln!(self.svg, "<text x=\"8\" y=\"{y:.0}\">{name}</text>");
            let seen: Vec<_> = self.story.events.iter().filter(|it| it.who == n).collect();
            for (i, event) in seen.iter().enumerate() {
                self.bar(event, seen.get(i + 1).map(|next| next.at), top);
            }
        }
    }

    /// Until the next event of the same client.
    fn bar(&mut self, event: &Event, next: Option<Instant>, top: f64) {
        let from = self.x(event.at);
        let last = is_last(event.kind);
        let to = self.x(next.unwrap_or(self.end));
        let width = if last { 5.0 } else { (to - from).max(1.0) };
        let (class, y, what) = (class(event.kind), top + 4.0, escaped(&event.what));
        let _ = writeln!(
            self.svg,
            "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"18\" rx=\"2\">\
            <title>{what}</title></rect>",
        );
        if last {
            // On the bar where there is no room behind it.
            let (at, anchor, on) = if from > WIDTH - 190.0 {
                (from - 6.0, "end", " on")
            } else {
                (from + 10.0, "start", "")
            };
            let y = top + 17.0;
            let _ = writeln!(
                self.svg,
                "<text class=\"small{on}\" x=\"{at:.1}\" y=\"{y:.0}\" text-anchor=\"{anchor}\">{what}</text>",
            );
        }
    }

    fn moments(&mut self) {
        let story = self.story;
        for (at, name) in [
            (story.called, "terminate()"),
            (story.called + GRACE, "deadline"),
        ] {
            let (x, top) = (self.x(at), TOP - 8.0);
            let (bottom, y) = (self.bottom + 4.0, self.bottom + 18.0);
            let _ = writeln!(
                self.svg,
                "<line class=\"line\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.0}\" y2=\"{bottom:.0}\"/>\
                <text class=\"small\" x=\"{x:.1}\" y=\"{y:.0}\" text-anchor=\"middle\">{name}</text>",
            );
        }
    }

    fn legend(&mut self) {
        let mut at = 8.0;
        for kind in [Kind::Idle, Kind::Busy, Kind::Well, Kind::Told, Kind::Lost] {
            let name = match kind {
                Kind::Idle => "owed nothing",
                Kind::Busy => "owed an answer",
                Kind::Well => "ended well",
                Kind::Told => "told that none will come",
                Kind::Lost => "lost",
            };
            let (class, x) = (class(kind), at + 15.0);
            let (top, y) = (self.bottom + 28.0, self.bottom + 37.0);
            let _ = writeln!(
                self.svg,
                "<rect class=\"{class}\" x=\"{at:.0}\" y=\"{top:.0}\" width=\"10\" height=\"10\"/>\
                <text class=\"small\" x=\"{x:.0}\" y=\"{y:.0}\">{name}</text>",
            );
            at += 170.0;
        }
    }
}

/// Nothing follows on it.
fn is_last(kind: Kind) -> bool {
    matches!(kind, Kind::Well | Kind::Told | Kind::Lost)
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Idle => "idle",
        Kind::Busy => "busy",
        Kind::Well => "well",
        Kind::Told => "told",
        Kind::Lost => "lost",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
