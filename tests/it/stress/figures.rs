//! What a row of samples says: least and most, the slope with its interval, and where it would be in a day. Pure.

/// Of a straight line through the points, with the half width of its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    pub per_second: f64,
    pub interval: f64,
}

/// Least squares. Samples of one second resemble their neighbours, so fewer of them count than there are: the
/// interval is widened by the correlation of neighbouring residuals, `(1 + r) / (1 - r)` in the variance, or it
/// would claim more than is known. Fewer than four points: nothing is known.
pub fn slope(points: &[(f64, f64)]) -> Slope {
    let n = points.len() as f64;
    if points.len() < 4 {
        return Slope { per_second: 0.0, interval: f64::INFINITY };
    }
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let xx: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let xy: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let per_second = xy / xx;
    let residuals: Vec<f64> = points.iter().map(|(x, y)| y - mean_y - per_second * (x - mean_x)).collect();
    let rr: f64 = residuals.iter().map(|r| r * r).sum();
    if rr == 0.0 {
        return Slope { per_second, interval: 0.0 };
    }
    let neighbours: f64 = residuals.windows(2).map(|pair| pair[0] * pair[1]).sum();
    let r = (neighbours / rr).clamp(0.0, 0.98);
    let widened = (1.0 + r) / (1.0 - r);
    let freedom = (n / widened - 2.0).max(1.0);
    let error = (rr / (n - 2.0) / xx * widened).sqrt();
    Slope { per_second, interval: student_95(freedom) * error }
}

/// The 97.5 % point of Student's distribution: Cornish and Fisher's expansion around the normal one, and the
/// exact values where it is not good enough.
fn student_95(freedom: f64) -> f64 {
    const FEW: [f64; 4] = [12.706, 4.303, 3.182, 2.776];
    if freedom < 5.0 {
        return FEW[(freedom as usize).clamp(1, 4) - 1];
    }
    let z: f64 = 1.959964;
    z + (z.powi(3) + z) / (4.0 * freedom)
        + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * freedom * freedom)
}

pub fn least_and_most(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let start = (f64::INFINITY, f64::NEG_INFINITY);
    values.into_iter().fold(start, |(least, most), value| (least.min(value), most.max(value)))
}

/// A row of the table that is printed at the end. `digits` behind the point.
pub struct Row<'a> {
    pub name: &'a str,
    pub digits: usize,
    /// At the quiet points.
    pub start: f64,
    pub end: f64,
    /// After the warm-up: seconds and values.
    pub points: Vec<(f64, f64)>,
}

const HOUR: f64 = 3600.0;

pub fn table(rows: &[Row<'_>]) -> String {
    let line = |[name, start, end, range, slope, day]: [&str; 6]| {
        let line = format!("{name:<22} {start:>9} {end:>9}  {range:>17}  {slope:>19}  {day:>19}");
        line.trim_end().to_owned() + "\n"
    };
    let heads = ["", "at start", "at end", "after the warm-up", "an hour (95 %)", "in 24 hours"];
    let mut table = line(heads);
    for Row { name, digits, start, end, points } in rows {
        let (least, most) = least_and_most(points.iter().map(|(_, value)| *value));
        let Slope { per_second, interval } = slope(points);
        let growth = |seconds: f64, digits: usize| {
            let sum = 0.0 + per_second * seconds; // no "-0"
            format!("{sum:+.digits$} ± {:.digits$}", interval * seconds)
        };
        table += &line([
            name,
            &format!("{start:.digits$}"),
            &format!("{end:.digits$}"),
            &format!("{least:.digits$} to {most:.digits$}"),
            &growth(HOUR, digits + 1),
            &growth(24.0 * HOUR, *digits),
        ]);
    }
    table
}

#[test]
fn a_slope_is_told_from_noise() {
    let check = |what: &str, values: &dyn Fn(f64) -> f64, expected: f64, interval: std::ops::Range<f64>| {
        let points: Vec<(f64, f64)> = (0..200).map(|x| (f64::from(x), values(f64::from(x)))).collect();
        let slope = slope(&points);
        assert!((slope.per_second - expected).abs() <= slope.interval + 1e-9, "{what}: {slope:?}");
        assert!(interval.contains(&slope.interval), "{what}: {slope:?}");
    };
    let noise = |x: f64| ((x * 12.9898).sin() * 43758.5453).fract();
    check("flat", &|_| 7.0, 0.0, 0.0..1e-9);
    check("a straight line", &|x| 3.0 + 0.5 * x, 0.5, 0.0..1e-9);
    check("noise", &noise, 0.0, 1e-4..3e-3);
    check("a leak in noise", &|x| 0.05 * x + noise(x), 0.05, 1e-4..3e-3);
    check("a wave is no trend", &|x| (x / 8.0).sin(), 0.0, 3e-3..1.0);
    assert_eq!(slope(&[(0.0, 1.0), (1.0, 2.0)]).interval, f64::INFINITY, "two points know nothing");
}

#[test]
fn students_distribution_is_as_in_the_books() {
    for (freedom, expected) in [(1.0, 12.706), (4.0, 2.776), (5.0, 2.571), (10.0, 2.228), (60.0, 2.000)] {
        assert!((student_95(freedom) - expected).abs() < 0.03, "{freedom}: {}", student_95(freedom));
    }
}
