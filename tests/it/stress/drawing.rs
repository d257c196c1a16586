//! `stress.svg`: a few figures of a run below each other, over the same seconds. Pure, text by hand.

use std::fmt::Write;

use super::figures::least_and_most;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 96.0;
const RIGHT: f64 = 24.0;
const HEAD: f64 = 56.0;
const PANEL: f64 = 140.0;
/// Between two panels: the title of the next.
const GAP: f64 = 56.0;
const FOOT: f64 = 56.0;

/// More points than that on a line cannot be told apart.
const COLUMNS: usize = 400;

const COLORS: [&str; 2] = ["#1f5fa8", "#c8601a"];

pub struct Panel<'a> {
    /// With its unit.
    pub title: &'a str,
    /// Name and points: seconds, value. One without a name needs none.
    pub lines: Vec<(&'a str, Vec<(f64, f64)>)>,
    /// What must not be crossed.
    pub limit: Option<(&'a str, f64)>,
}

pub struct Drawing<'a> {
    pub title: &'a str,
    pub subtitle: String,
    pub seconds: f64,
    /// From and to: what is not judged.
    pub shaded: Vec<(f64, f64)>,
    pub panels: Vec<Panel<'a>>,
}

impl Drawing<'_> {
    pub fn svg(&self) -> String {
        let height = HEAD + self.panels.len() as f64 * (PANEL + GAP) + FOOT;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        text(&mut svg, LEFT, 28.0, "start", "font-size=\"18\" font-weight=\"bold\"", self.title);
        text(&mut svg, LEFT, 48.0, "start", "fill=\"#555\"", &self.subtitle);
        let (unit, unit_seconds) = match self.seconds {
            seconds if seconds < 300.0 => ("seconds", 1.0),
            seconds if seconds < 3.0 * 3600.0 => ("minutes", 60.0),
            _ => ("hours", 3600.0),
        };
        for (at, panel) in self.panels.iter().enumerate() {
            let top = HEAD + at as f64 * (PANEL + GAP) + GAP - 16.0;
            self.panel(&mut svg, panel, top, unit_seconds);
        }
        let foot = height - 12.0;
        let about = format!("time since the start, {unit}; shaded: warm-up and the end, not in the slopes");
        text(&mut svg, LEFT + (WIDTH - LEFT - RIGHT) / 2.0, foot, "middle", "", &about);
        svg + "</svg>\n"
    }

    fn panel(&self, svg: &mut String, panel: &Panel<'_>, top: f64, unit_seconds: f64) {
        let (right, bottom) = (WIDTH - RIGHT, top + PANEL);
        let values = panel.lines.iter().flat_map(|(_, points)| points.iter().map(|(_, value)| *value));
        let highest = least_and_most(values.chain(panel.limit.map(|(_, value)| value))).1.max(1e-9);
        let step = nice_step(highest, 4.0);
        let ceiling = (highest * 1.05 / step).ceil() * step; // no line on the edge
        let x = |seconds: f64| LEFT + seconds / self.seconds * (right - LEFT);
        let y = |value: f64| bottom - value / ceiling * PANEL;

        text(svg, LEFT, top - 12.0, "start", "font-weight=\"bold\"", panel.title);
        for (from, to) in &self.shaded {
            rectangle(svg, x(*from), top, x(*to) - x(*from), PANEL, "#efefec");
        }
        for at in 0..=(ceiling / step).round() as usize {
            let value = at as f64 * step;
            line(svg, (LEFT, y(value)), (right, y(value)), "#ddd", "");
            text(svg, LEFT - 8.0, y(value) + 4.0, "end", "fill=\"#555\"", &thousands(value, step));
        }
        let step = nice_step(self.seconds / unit_seconds, 10.0);
        for at in 0..=(self.seconds / unit_seconds / step) as usize {
            let units = at as f64 * step;
            let here = x(units * unit_seconds);
            line(svg, (here, bottom), (here, bottom + 4.0), "#888", "");
            text(
                svg,
                here,
                bottom + 17.0,
                "middle",
                "fill=\"#555\" font-size=\"11\"",
                &thousands(units, step),
            );
        }
        line(svg, (LEFT, bottom), (right, bottom), "#888", "");
        if let Some((name, value)) = panel.limit {
            line(svg, (LEFT, y(value)), (right, y(value)), "#b3261e", "stroke-dasharray=\"6 4\"");
            text(svg, right - 4.0, y(value) + 15.0, "end", "fill=\"#b3261e\"", name);
        }
        let mut legend = right;
        for ((name, points), color) in panel.lines.iter().zip(COLORS).rev() {
            let places: Vec<String> = thinned(points, self.seconds)
                .iter()
                .map(|(seconds, value)| format!("{:.1},{:.1}", x(*seconds), y(*value)))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.6\" \
                 stroke-linejoin=\"round\"/>",
                places.join(" ")
            ); // a String takes all
            if !name.is_empty() {
                text(svg, legend, top - 12.0, "end", &format!("fill=\"{color}\" font-weight=\"bold\""), name);
                legend -= 20.0 + 7.0 * name.len() as f64;
            }
        }
    }
}

/// The least and the most of each column in their order: a line of hours keeps its peaks.
fn thinned(points: &[(f64, f64)], seconds: f64) -> Vec<(f64, f64)> {
    if points.len() <= 2 * COLUMNS {
        return points.to_vec();
    }
    let column = |point: &(f64, f64)| (point.0 / seconds * COLUMNS as f64) as usize;
    let mut kept = Vec::new();
    for group in points.chunk_by(|a, b| column(a) == column(b)) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (least, most) = (group.iter().min_by(by_value), group.iter().max_by(by_value));
        let mut pair: Vec<(f64, f64)> = least.into_iter().chain(most).copied().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        kept.extend(pair);
    }
    kept
}

/// 1, 2 or 5 times a power of ten, so that at most `most` of them are below `highest`.
fn nice_step(highest: f64, most: f64) -> f64 {
    let power = 10f64.powf((highest / most).log10().floor());
    let fits = |factor: &f64| highest / (factor * power) <= most;
    [1.0, 2.0, 5.0, 10.0].into_iter().find(fits).unwrap_or(10.0) * power
}

/// `12 000`; digits behind the point only where the step has some.
fn thousands(value: f64, step: f64) -> String {
    let digits = if step < 1.0 { (-step.log10()).ceil() as usize } else { 0 };
    let text = format!("{value:.digits$}");
    let whole = text.find('.').unwrap_or(text.len());
    let mut out = String::new();
    for (at, c) in text.chars().enumerate() {
        if at > 0 && at < whole && (whole - at) % 3 == 0 {
            out.push('\u{a0}');
        }
        out.push(c);
    }
    out
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, style: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{words}</text>");
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), color: &str, style: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\" {style}/>"
    );
}

fn rectangle(svg: &mut String, x: f64, y: f64, width: f64, height: f64, color: &str) {
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{color}\"/>"
    );
}

#[test]
fn axes_have_round_numbers() {
    for (highest, most, expected) in [(17.0, 4.0, 5.0), (16.0, 4.0, 5.0), (40.0, 4.0, 10.0), (0.9, 4.0, 0.5)]
    {
        assert!(
            (nice_step(highest, most) - expected).abs() < 1e-9,
            "{highest}: {}",
            nice_step(highest, most)
        );
    }
    assert_eq!(thousands(1_234_567.0, 1.0).replace('\u{a0}', " "), "1 234 567");
    assert_eq!(thousands(0.5, 0.5), "0.5");
    assert_eq!(thousands(120.0, 20.0), "120");
}

#[test]
fn a_long_line_keeps_its_peaks() {
    let mut points: Vec<(f64, f64)> = (0..7200).map(|x| (f64::from(x), 1.0)).collect();
    points[5_000].1 = 9.0;
    let kept = thinned(&points, 7200.0);
    assert!(kept.len() <= 2 * COLUMNS, "{}", kept.len());
    assert_eq!(least_and_most(kept.iter().map(|point| point.1)), (1.0, 9.0));
    assert!(kept.is_sorted_by_key(|point| point.0));
}
