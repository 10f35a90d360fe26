//! A line chart as SVG: both axes logarithmic, legible on light and on dark pages.

use std::fmt::Write;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 590.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 380.0;

/// Neither too light for white nor too dark for black.
const COLOURS: [&str; 12] = [
    "#e4572e", "#3b8ed0", "#4aa564", "#b07cc6", "#c99a2e", "#8a8f98", "#d4699a", "#3aa6a0", "#8f7a5a",
    "#7d88e0", "#9aa53a", "#c0705a",
];

/// So that of lines that coincide each is seen.
const DASHES: [&str; 4] = ["none", "10 5", "4 4", "14 4 4 4"];

const STYLE: &str = "<style>text{font:13px sans-serif;fill:#777c84}.title{font-size:15px;font-weight:bold}\
line{stroke:#8884}</style>";

/// A line and its points.
type Series = (String, Vec<(f64, f64)>);

pub(super) struct Chart {
    title: String,
    across: &'static str,
    up: &'static str,
    series: Vec<Series>,
}

impl Chart {
    pub(super) fn new(title: impl Into<String>, across: &'static str, up: &'static str) -> Chart {
        Chart { title: title.into(), across, up, series: Vec::new() }
    }

    /// Adds a point to the line of that name. What a logarithm cannot show is left out.
    pub(super) fn add(&mut self, name: &str, x: f64, y: f64) {
        if !(x > 0.0 && y > 0.0) {
            return;
        }
        match self.series.iter_mut().find(|(known, _)| known == name) {
            Some((_, points)) => points.push((x, y)),
            None => self.series.push((name.to_owned(), vec![(x, y)])),
        }
    }

    pub(super) fn draw(&self) -> String {
        let points = || self.series.iter().flat_map(|(_, points)| points.iter().copied());
        let across = Axis::over(points().map(|(x, _)| x), (LEFT, RIGHT));
        let up = Axis::over(points().map(|(_, y)| y), (BOTTOM, TOP));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">{STYLE}\n\
             <title>{0}</title><text class=\"title\" x=\"{LEFT}\" y=\"24\">{0}</text>\n",
            self.title
        );
        self.axes(&mut svg, &across, &up);
        // The crate's own line last, so that no other hides it.
        let (own, others): (Vec<_>, Vec<_>) =
            self.series.iter().enumerate().partition(|(_, (name, _))| name.starts_with("ropewalk"));
        for (at, series) in others.into_iter().chain(own) {
            line(&mut svg, at, series, &across, &up);
        }
        svg + "</svg>\n"
    }

    fn axes(&self, svg: &mut String, across: &Axis, up: &Axis) {
        for value in across.marks() {
            let x = across.place(value);
            put(svg, format_args!("<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>"));
            put(
                svg,
                format_args!(
                    "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    BOTTOM + 18.0,
                    short(value)
                ),
            );
        }
        for value in up.marks() {
            let y = up.place(value);
            put(svg, format_args!("<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"));
            put(
                svg,
                format_args!(
                    "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    LEFT - 6.0,
                    y + 4.0,
                    plain(value)
                ),
            );
        }
        let middle = f64::midpoint(LEFT, RIGHT);
        put(
            svg,
            format_args!(
                "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                BOTTOM + 42.0,
                self.across
            ),
        );
        put(
            svg,
            format_args!("<text x=\"{LEFT}\" y=\"{}\" text-anchor=\"middle\">{}</text>", TOP - 8.0, self.up),
        );
    }
}

fn line(svg: &mut String, at: usize, (name, points): &Series, across: &Axis, up: &Axis) {
    let (colour, thick) = (COLOURS[at % COLOURS.len()], if name.starts_with("ropewalk") { 3 } else { 2 });
    let dashes = if name.starts_with("ropewalk") { DASHES[0] } else { DASHES[at % DASHES.len()] };
    let mut places: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (across.place(x), up.place(y))).collect();
    places.sort_by(|one, other| one.0.total_cmp(&other.0));
    let path = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
    put(
        svg,
        format_args!(
            "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{thick}\" \
             stroke-dasharray=\"{dashes}\"/>"
        ),
    );
    for (x, y) in places {
        put(svg, format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"));
    }
    let y = TOP + 10.0 + 22.0 * at as f64;
    let name = name.replace('&', "&amp;").replace('<', "&lt;");
    put(
        svg,
        format_args!(
            "<rect x=\"{}\" y=\"{}\" width=\"18\" height=\"4\" fill=\"{colour}\"/>",
            RIGHT + 16.0,
            y - 6.0
        ),
    );
    put(svg, format_args!("<text x=\"{}\" y=\"{y}\">{name}</text>", RIGHT + 40.0));
}

fn put(svg: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(svg, "{line}").expect("a string takes everything");
}

/// A logarithmic axis and where on the page it runs.
struct Axis {
    low: f64,
    high: f64,
    base: f64,
    ends: (f64, f64),
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, ends: (f64, f64)) -> Axis {
        let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
        let (low, high) = if low <= high { (low, high) } else { (1.0, 2.0) };
        // A short axis is marked by powers of 2, a longer one by those of 4 or 10.
        let base = if high / low < 100.0 {
            2.0
        } else if low >= 1.0 {
            4.0
        } else {
            10.0
        };
        let (low, high) = (low.log(base).floor(), high.log(base).ceil());
        Axis { low, high: high.max(low + 1.0), base, ends }
    }

    fn place(&self, value: f64) -> f64 {
        let part = (value.log(self.base) - self.low) / (self.high - self.low);
        self.ends.0 + part * (self.ends.1 - self.ends.0)
    }

    /// Powers of the base, at most about ten of them.
    fn marks(&self) -> impl Iterator<Item = f64> {
        let step = ((self.high - self.low) / 10.0).ceil().max(1.0) as usize;
        let count = (self.high - self.low) as usize;
        (0..=count).step_by(step).map(|mark| self.base.powf(self.low + mark as f64))
    }
}

/// Powers of 1024 by their letters.
fn short(value: f64) -> String {
    let letters = [(1e9, (1_u64 << 30) as f64, "G"), (1e6, (1 << 20) as f64, "M"), (1e3, 1024.0, "K")];
    let found = letters.iter().find(|(least, ..)| value >= *least);
    found.map_or_else(|| plain(value), |(_, unit, letter)| format!("{}{letter}", plain(value / unit)))
}

fn plain(value: f64) -> String {
    let digits = if value < 1.0 { (-value.log10().floor()) as usize } else { 0 };
    format!("{value:.digits$}")
}
