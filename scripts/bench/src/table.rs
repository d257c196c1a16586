//! Medians, and figures as text.

use std::time::Duration;

pub const MB: f64 = 1e6;

/// Of at least one value.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value that this part of all values does not exceed.
pub fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len());
    sorted[at - 1]
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Three digits are as many as a benchmark knows.
pub fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => grouped(value.round() as u64),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

pub fn figure_or_dash(value: Option<f64>) -> String {
    value.map_or("-".into(), figure)
}

/// `1 234 567`.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A row of a table in Markdown.
pub fn row<T: AsRef<str>>(cells: &[T]) {
    let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
    println!("| {} |", cells.join(" | "));
}

/// Its first rows.
pub fn head(names: &[&str]) {
    println!();
    row(names);
    println!("|---|{}", "---:|".repeat(names.len() - 1));
}
