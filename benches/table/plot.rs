//! The picture in the README.

use std::fmt::Write;

use crate::load::KEEP_ALIVE;
use crate::servers::{SERVERS, is_ours};
use crate::{count, endings, of_each};

pub(crate) fn draw(file: &str) {
    let instructions = of_each(|server| count::instructions(server, KEEP_ALIVE));
    let heap = of_each(count::heap_of_idle);
    let ends = endings(8_000);
    let panels = [
        ("instructions per request, HTTP/1 kept alive", instructions),
        ("bytes of heap per idle connection", heap),
        ("milliseconds to end 8,000 idle connections", ends),
    ];
    std::fs::write(file, svg(&panels)).expect("written");
}

type Panel = (&'static str, Vec<Option<f64>>);

/// A panel for each, a bar for each server, as long as its figure.
fn svg(panels: &[Panel]) -> String {
    const LEFT: usize = 190;
    const WIDE: f64 = 360.0;
    const ROW: usize = 22;
    let tall = panels.len() * (SERVERS.len() + 2) * ROW;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"680\" height=\"{tall}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut y = ROW;
    let mut line = |text: String| writeln!(out, "{text}").expect("a string takes it");
    for (title, figures) in panels {
        line(format!(
            "<text x=\"8\" y=\"{y}\" font-weight=\"bold\">{title}</text>"
        ));
        let most = figures.iter().flatten().copied().fold(0.0, f64::max);
        for (server, figure) in SERVERS.iter().zip(figures) {
            let figure = figure.expect("a figure of each");
            y += ROW;
            let (wide, top) = (figure / most * WIDE, y - 13);
            let colour = if is_ours(server) {
                "#2a6fbb"
            } else {
                "#b8bec6"
            };
            line(format!(
                "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{server}</text>\
                 <rect x=\"{LEFT}\" y=\"{top}\" width=\"{wide:.1}\" height=\"16\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{y}\">{figure:.0}</text>",
                LEFT - 8,
                wide + 198.0,
            ));
        }
        y += 2 * ROW;
    }
    line("</svg>".to_owned());
    out
}
