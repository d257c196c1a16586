//! The `timestamp` stage: the time that a line itself tells.
//!
//! A time that is coarser than a nanosecond gets its missing digits from the number of the line in its
//! generation, so that equal times of one second stay apart, in order, and the same on every replay.
//! A line that tells no time keeps its stamp, counted.

use std::sync::Arc;

use jiff::fmt::temporal::DateTimeParser;

use super::line::{FieldId, Line};
use super::{Builder, Step};

/// `"type": "timestamp"`.
#[derive(Clone, Debug)]
pub struct TimestampOptions {
    pub from: TimeFrom,
    /// `format`.
    pub format: TimeFormat,
}

#[derive(Clone, Debug)]
pub enum TimeFrom {
    /// `"field": "time"`: a string or a number that a `json` stage before this one has read.
    Field(Arc<str>),
    /// `"from": "text"`: the text begins with the time, which stays there.
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeFormat {
    /// `rfc3339`: `2024-05-01T12:00:00.25+02:00`, as in section 5.6 there; digits after the ninth are cut off.
    Rfc3339,
    /// `unix`: seconds since 1970, UTC, like all that follow; a fraction may follow the point.
    Unix,
    /// `unix_ms`.
    UnixMs,
    /// `unix_us`.
    UnixUs,
    /// `unix_ns`.
    UnixNs,
}

pub(super) struct Timestamp {
    field: Option<FieldId>,
    format: TimeFormat,
}

impl Timestamp {
    pub fn new(options: &TimestampOptions, builder: &mut Builder<'_>) -> Timestamp {
        let field = match &options.from {
            TimeFrom::Field(name) => Some(builder.field("field", name)),
            TimeFrom::Text => None,
        };
        Timestamp { field, format: options.format }
    }

    pub fn step(&self, line: &mut Line<'_>) -> Step {
        let moment = match self.field {
            Some(id) => line.field(id).and_then(|value| self.whole(value.as_bytes())),
            None => self.head(line.text()),
        };
        match moment.and_then(|moment| moment.with_number(line.number)) {
            Some(time_ns) => {
                line.time_ns = Some(time_ns);
                Step::Next
            }
            None => Step::Unparsed,
        }
    }

    fn whole(&self, value: &[u8]) -> Option<Moment> {
        let (moment, rest) = self.format.read(value)?;
        rest.is_empty().then_some(moment)
    }

    fn head(&self, text: &[u8]) -> Option<Moment> {
        let (moment, rest) = self.format.read(text)?;
        // RFC 3339 ends by itself. A number does not: that of `2024-05-01` and `10.0.0.1` is no time.
        let ends = self.format == TimeFormat::Rfc3339
            || rest.first().is_none_or(|next| next.is_ascii_whitespace() || b",;".contains(next));
        ends.then_some(moment)
    }
}

/// A time as exact as it was told.
#[derive(Debug, PartialEq, Eq)]
struct Moment {
    ns: i128,
    /// Of the second, at most nine.
    digits: u32,
}

impl Moment {
    /// `None`: outside of what 64 bits hold (the years 1677 to 2262).
    fn with_number(self, number: u64) -> Option<i64> {
        let missing = 10u64.pow(9 - self.digits);
        i64::try_from(self.ns + i128::from(number % missing)).ok()
    }
}

impl TimeFormat {
    /// The time at the beginning, and what follows it.
    fn read(self, text: &[u8]) -> Option<(Moment, &[u8])> {
        match self {
            TimeFormat::Rfc3339 => rfc3339(text),
            TimeFormat::Unix => decimal(text, 0),
            TimeFormat::UnixMs => decimal(text, 3),
            TimeFormat::UnixUs => decimal(text, 6),
            TimeFormat::UnixNs => decimal(text, 9),
        }
    }
}

const PARSER: DateTimeParser = DateTimeParser::new();

/// Holds the text to the shape of RFC 3339 (the parser takes more) and leaves the calendar to the parser.
fn rfc3339(text: &[u8]) -> Option<(Moment, &[u8])> {
    const SHAPE: &[u8; 19] = b"0000-00-00T00:00:00";
    let (date_time, rest) = text.split_first_chunk::<19>()?;
    let fits = |(byte, shape): (&u8, &u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        b'T' => b"Tt ".contains(byte),
        _ => byte == shape,
    };
    if !date_time.iter().zip(SHAPE).all(fits) {
        return None;
    }
    let (fraction, digits, rest) = fraction(rest, 9)?;
    let zone_bytes = match *rest {
        [b'Z' | b'z', ..] => 1,
        [b'+' | b'-', a, b, b':', c, d, ..] if [a, b, c, d].iter().all(u8::is_ascii_digit) => 6,
        _ => return None,
    };
    let (zone, rest) = rest.split_at(zone_bytes);
    let mut whole_second = [0; 25];
    whole_second[..19].copy_from_slice(date_time);
    whole_second[19..19 + zone_bytes].copy_from_slice(zone);
    let second = PARSER.parse_timestamp(&whole_second[..19 + zone_bytes]).ok()?.as_second();
    Some((Moment { ns: i128::from(second) * 1_000_000_000 + fraction, digits }, rest))
}

/// A decimal number of units, each of which is `10^-unit_digits` of a second.
fn decimal(text: &[u8], unit_digits: u32) -> Option<(Moment, &[u8])> {
    let (negative, text) = match text {
        [b'-', text @ ..] => (true, text),
        _ => (false, text),
    };
    let (whole, rest) = text.split_at(leading_digits(text));
    // Nineteen digits hold every 64-bit time in every unit.
    if whole.is_empty() || whole.len() > 19 {
        return None;
    }
    let missing = 9 - unit_digits;
    let (fraction, digits, rest) = fraction(rest, missing)?;
    let ns = number(whole) * 10i128.pow(missing) + fraction;
    Some((Moment { ns: if negative { -ns } else { ns }, digits: unit_digits + digits }, rest))
}

/// `.` and digits, if there are some: as an integer of `digits_max` digits, how many of them were told, and what
/// follows. A point without digits is none of ours.
fn fraction(text: &[u8], digits_max: u32) -> Option<(i128, u32, &[u8])> {
    let [b'.', text @ ..] = text else {
        return Some((0, 0, text));
    };
    let (all, rest) = text.split_at(leading_digits(text));
    let told = &all[..all.len().min(digits_max as usize)];
    let digits = told.len() as u32;
    (!all.is_empty()).then(|| (number(told) * 10i128.pow(digits_max - digits), digits, rest))
}

fn leading_digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn number(digits: &[u8]) -> i128 {
    digits.iter().fold(0, |sum, digit| sum * 10 + i128::from(digit - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_714_564_800_000_000_000; // 2024-05-01T12:00:00Z

    fn check(format: TimeFormat, text: &str, want: Option<i64>) {
        let stage = Timestamp { field: None, format };
        // Line 7 of its generation: what the missing digits are filled with.
        let got = stage.whole(text.as_bytes()).and_then(|moment| moment.with_number(7));
        assert_eq!(got, want, "{format:?} {text:?}");
    }

    fn check_head(format: TimeFormat, text: &str, want: Option<i64>) {
        let stage = Timestamp { field: None, format };
        let got = stage.head(text.as_bytes()).and_then(|moment| moment.with_number(7));
        assert_eq!(got, want, "{format:?} {text:?}");
    }

    #[test]
    fn rfc3339_with_the_digits_it_has() {
        let check = |text, want| check(TimeFormat::Rfc3339, text, want);
        check("2024-05-01T12:00:00Z", Some(NOON + 7));
        check("2024-05-01t12:00:00z", Some(NOON + 7));
        check("2024-05-01 12:00:00Z", Some(NOON + 7));
        check("2024-05-01T14:00:00+02:00", Some(NOON + 7));
        check("2024-05-01T06:30:00-05:30", Some(NOON + 7));
        check("2024-05-01T12:00:00.5Z", Some(NOON + 500_000_007));
        check("2024-05-01T12:00:00.250+00:00", Some(NOON + 250_000_007));
        check("2024-05-01T12:00:00.123456Z", Some(NOON + 123_456_007));
        check("2024-05-01T12:00:00.12345678Z", Some(NOON + 123_456_787));
        check("2024-05-01T12:00:00.123456789Z", Some(NOON + 123_456_789));
        check("2024-05-01T12:00:00.12345678999Z", Some(NOON + 123_456_789));
        check("1969-12-31T23:59:59.9Z", Some(-100_000_000 + 7));
    }

    #[test]
    fn what_is_no_rfc3339() {
        let check = |text| check(TimeFormat::Rfc3339, text, None);
        check("");
        check("2024-05-01");
        check("2024-05-01T12:00:00"); // whose noon?
        check("2024-05-01T12:00:00.Z");
        check("2024-05-01T12:00:00+02");
        check("2024-05-01T12:00:00Z and more");
        check("2024-05-01T12:00:00Z[UTC]");
        check("20240501T120000Z");
        check("2024-02-30T12:00:00Z");
        check("2024-05-01T25:00:00Z");
        check("2024-05-01T12:00:00,5Z");
        check("1500-01-01T00:00:00Z"); // beyond 64 bits
        check("9999-12-31T23:59:59Z");
    }

    #[test]
    fn numbers_since_1970() {
        check(TimeFormat::Unix, "1714564800", Some(NOON + 7));
        check(TimeFormat::Unix, "1714564800.25", Some(NOON + 250_000_007));
        check(TimeFormat::Unix, "1714564800.1234567891", Some(NOON + 123_456_789));
        check(TimeFormat::Unix, "-1.5", Some(-1_500_000_000 + 7));
        check(TimeFormat::UnixMs, "1714564800123", Some(NOON + 123_000_007));
        check(TimeFormat::UnixMs, "1714564800123.4", Some(NOON + 123_400_007));
        check(TimeFormat::UnixUs, "1714564800123456", Some(NOON + 123_456_007));
        check(TimeFormat::UnixNs, "1714564800123456789", Some(NOON + 123_456_789));
        check(TimeFormat::UnixNs, "1714564800123456789.9", Some(NOON + 123_456_789));
        check(TimeFormat::UnixNs, "9223372036854775807", Some(i64::MAX));
    }

    #[test]
    fn what_is_no_number_since_1970() {
        check(TimeFormat::Unix, "", None);
        check(TimeFormat::Unix, "-", None);
        check(TimeFormat::Unix, "1.", None);
        check(TimeFormat::Unix, ".5", None);
        check(TimeFormat::Unix, "1.7e9", None);
        check(TimeFormat::Unix, "1714564800123", None); // milliseconds, said to be seconds: the year 56303
        check(TimeFormat::UnixNs, "9223372036854775808", None);
        check(TimeFormat::Unix, "99999999999999999999999999999999999999999999999999", None);
    }

    #[test]
    fn at_the_head_of_a_text() {
        check_head(TimeFormat::Rfc3339, "2024-05-01T12:00:00Z GET /", Some(NOON + 7));
        check_head(TimeFormat::Rfc3339, "2024-05-01T12:00:00.5Z: started", Some(NOON + 500_000_007));
        check_head(TimeFormat::Rfc3339, " 2024-05-01T12:00:00Z", None);
        check_head(TimeFormat::Unix, "1714564800 GET /", Some(NOON + 7));
        check_head(TimeFormat::Unix, "1714564800,cpu,12", Some(NOON + 7));
        check_head(TimeFormat::Unix, "1714564800", Some(NOON + 7));
        check_head(TimeFormat::Unix, "2024-05-01 a date", None);
        check_head(TimeFormat::Unix, "10.0.0.1 an address", None);
    }

    #[test]
    fn the_number_of_the_line_never_touches_a_digit_that_was_told() {
        let fill = |text: &[u8], number| rfc3339(text).unwrap().0.with_number(number).unwrap();
        assert_eq!(fill(b"2024-05-01T12:00:00.123Z", 999_999), NOON + 123_999_999);
        assert_eq!(fill(b"2024-05-01T12:00:00.123Z", 1_000_000), NOON + 123_000_000);
        assert_eq!(fill(b"2024-05-01T12:00:00Z", 1_000_000_001), NOON + 1);
        assert_eq!(fill(b"2024-05-01T12:00:00.123456789Z", u64::MAX), NOON + 123_456_789);
    }
}
